"""Benchmarks that are tables of questions: their official splits, or a file of the same columns.

Of the hub and of a folder "heldout" and "all" are the test split, "dev" is 5 % of the training
split by a hash of the question, "train" the rest; a single file is split by that hash alone. A
benchmark without a training split has no other part than its questions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.data.rows import (
    Row,
    choose_part,
    fold,
    good_rows,
    is_path,
    local_path,
    part_of,
    read_file,
    rows_of,
    unique,
)
from mlxreflect.graders.number import row_gold

TRAINING_PARTS = {"dev": 5, "train": 95}  # of an official training split
DEFAULTS = TaskConfig()


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's rows are, and how one is read.

    hub, config, revision: of `datasets`. train: the split to learn from, "" where there is none.
    read(row, config): the row's problem. Raises UserError naming the row.
    """

    name: str
    hub: str
    read: Callable[[Row, TaskConfig], Problem]
    config: str = ""
    revision: str = ""
    train: str = "train"
    test: str = "test"

    @property
    def hint(self) -> str:
        files = f"{self.train}.jsonl and {self.test}.jsonl" if self.train else f"{self.test}.jsonl"
        return (
            "connect to the internet once so that it is cached, or set task.source to a folder "
            f"that holds {files}"
        )

    def load(self, config: TaskConfig, part: str, seed: int) -> list[Problem]:
        """The problems of a part, at most `config.limit`; the seed changes nothing."""
        return self.part(config, part)[: config.limit or None]

    def part(self, config: TaskConfig, part: str) -> list[Problem]:
        if not self.train and part in ("train", "dev"):
            raise UserError(
                f"the task {self.name} is an evaluation alone: it has no part {part!r}",
                "train on another task, and name this one in eval.spec",
            )
        path = local_path(config.source)
        if config.source and is_path(config.source) and not path.is_dir():
            found = self.problems(read_file(path), config)
            return choose_part(found, part if self.train else "all", config.source)
        test = self.official(config, self.test)
        if part in ("heldout", "all"):
            return list(test.values())
        return [
            problem
            for key, problem in self.official(config, self.train).items()
            if key not in test and part_of(key, TRAINING_PARTS) == part
        ]

    def official(self, config: TaskConfig, split: str) -> dict[str, Problem]:
        """The problems of an official split, of a folder or the hub."""
        source, name = config.source or self.hub, config.config or self.config
        revision = "" if config.source else self.revision
        rows = rows_of(source, name, split, self.hint, revision, empty="")
        return self.problems(good_rows(rows), config)

    def problems(self, rows: Iterable[Row], config: TaskConfig) -> dict[str, Problem]:
        """The problems of rows by normalised question, duplicates dropped."""
        return unique((self.read(row, config) for row in rows), key_of)


def key_of(problem: Problem) -> str:
    """What is asked, without differences of case, spacing and the order of options."""
    choices = sorted(fold(text) for text in problem.fields.get("choices", {}).values())
    return "\n".join([fold(problem.fields["question"]), *choices])


def column_of(row: Row, config: TaskConfig, key: str, names: Iterable[str]) -> str:
    """The column of the "question" or "answer": the one the recipe names, else a known one."""
    wanted: str = getattr(config, key)
    if wanted != getattr(DEFAULTS, key):
        return wanted
    return next((name for name in names if name in row.values), wanted)


def row_reader(task: str) -> Callable[[dict[str, Any]], Problem]:
    """`from_row` of a task whose answers are numbers."""
    return lambda row: make_problem(task, {"question": str(row.get("question", ""))}, row_gold(row))
