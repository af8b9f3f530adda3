"""The user's own problems: a file or any hub data set, with a question and an answer.

answer_type: "number" compares exact rationals, "text" the words of the <answer> block, "f1" its
tokens, "choice" the letter, "math" LaTeX, "countdown" an expression of the row's numbers. Parts are
70 % train, 10 % dev and 20 % heldout, by a hash of what is asked.
"""

from collections.abc import Iterable
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.data.rows import (
    HINT,
    Row,
    choose_part,
    column,
    hub_rows,
    is_path,
    local_path,
    question_text,
    read_file,
    unique,
)
from mlxreflect.graders.base import Grader
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.kinds import (
    KINDS,
    build,
    build_countdown,
    by_kind,
    instruction,
    options_of,
    problem_of_row,
    show,
)
from mlxreflect.tasks.table import key_of


def read(row: Row, config: TaskConfig) -> Problem:
    question = question_text(row, config.question)
    if config.answer_type == "countdown":
        try:
            return build_countdown(question, row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error.message}", error.hint) from None
    raw = column(row, config.answer, "task.answer")
    try:
        return build("jsonl", question, raw, config.answer_type, options=options_of(row.values))
    except UserError as error:
        where = f"{row.where}, column {config.answer!r}"
        raise UserError(f"{where}: {error.message}", error.hint) from None


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """The problems of a part, at most `config.limit`; the seed changes nothing."""
    if not config.source:
        raise UserError(
            'task.name = "jsonl" needs data', "set task.source to a file or a hub data set"
        )
    if is_path(config.source):
        rows: Iterable[Row] = read_file(local_path(config.source))
    else:
        rows = hub_rows(config.source, config.config, config.split, HINT)
    found = choose_part(unique((read(row, config) for row in rows), key_of), part, config.source)
    return found[: config.limit or None]


def from_row(row: dict[str, Any]) -> Problem:
    return problem_of_row("jsonl", row)


def rules() -> dict[str, Grader]:
    """Every name that some kind of answer has; "flexible", which all have, is the first."""
    names = dict.fromkeys(name for kind in KINDS.values() for name in kind.rules)
    return {name: by_kind(name) for name in names}


RULES = rules()
TASK = Task(
    name="jsonl",
    load=load,
    instruction=instruction,
    show=show,
    grade=RULES["flexible"],
    from_row=from_row,
    rules=RULES,
)
