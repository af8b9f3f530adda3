"""GSM8K (Cobbe et al. 2021): grade-school math word problems whose answer is a number.

The data set comes from the hub, from a folder with train.jsonl and test.jsonl, or from one JSONL
file. Of the hub and a folder "heldout" and "all" are the test set, "dev" is 5 % of the training
set by a hash of the question, "train" the rest; a single file is split by that hash alone.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from mlxreflect.errors import UserError
from mlxreflect.records import Problem, make_problem
from mlxreflect.tables import TaskConfig
from mlxreflect.tasks.base import Grade, Task
from mlxreflect.tasks.numbers import grade_number, read_gold, row_gold
from mlxreflect.tasks.rows import (
    Row,
    choose_part,
    column,
    fold,
    is_path,
    local_path,
    question_text,
    read_file,
    read_hub,
    share,
    unique,
)

HUB = "openai/gsm8k"
DEV_PERCENT = 5
HINT = (
    "connect to the internet once so that it is cached, or set task.source to a folder that holds "
    "train.jsonl and test.jsonl"
)


def problems_of(rows: Iterable[Row], config: TaskConfig) -> dict[str, Problem]:
    """The problems of rows by normalised question, duplicates dropped."""

    def each() -> Iterator[tuple[str, Problem]]:
        for row in rows:
            question = question_text(row, config.question)
            raw = column(row, config.answer, "task.answer")
            gold = read_gold(raw)
            if gold is None:
                raise UserError(
                    f"{row.where}: column {config.answer!r} ends in no number: {str(raw)[-60:]!r}",
                    'end the answer with "#### 42", or set task.answer to the right column',
                )
            fields = {"question": question}
            yield fold(question), make_problem("gsm8k", fields, gold, {"solution": str(raw)})

    return unique(each())


def official(config: TaskConfig, split: str) -> dict[str, Problem]:
    """The problems of the official train or test split, of a folder or the hub."""
    if config.source and is_path(config.source):
        rows: Iterable[Row] = read_file(local_path(config.source) / f"{split}.jsonl")
    else:
        rows = read_hub(config.source or HUB, config.config or "main", split, HINT)
    return problems_of(rows, config)


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """The problems of a part, at most `config.limit`; the seed changes nothing."""
    path = local_path(config.source)
    if config.source and is_path(config.source) and not path.is_dir():
        found = choose_part(problems_of(read_file(path), config), part, config.source)
        return found[: config.limit or None]
    test = official(config, "test")
    if part in ("heldout", "all"):
        return list(test.values())[: config.limit or None]
    found = [
        problem
        for key, problem in official(config, "train").items()
        if key not in test and (share(key) < DEV_PERCENT) == (part == "dev")
    ]
    return found[: config.limit or None]


def instruction(problem: Problem) -> str:
    return (
        "Solve the math word problem. The final answer is a number only, without units and without "
        "commas."
    )


def show(problem: Problem) -> str:
    return str(problem.fields["question"])


def grade(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
    return grade_number(problem.gold, text, tags, style)


def from_row(row: dict[str, Any]) -> Problem:
    return make_problem("gsm8k", {"question": str(row.get("question", ""))}, row_gold(row))


TASK = Task(
    name="gsm8k",
    load=load,
    instruction=instruction,
    show=show,
    gold=lambda problem: problem.gold,
    grade=grade,
    from_row=from_row,
)
