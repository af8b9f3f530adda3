"""What a task is: plain functions in one frozen record."""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.graders.base import Grader

GENERATED_PARTS = {"heldout": 1, "dev": 1, "train": 8}


@dataclass(frozen=True)
class Review:
    """What an exact solver says of a thought.

    kept: the opening lines of the thought that are valid (and, when searching, from which a right
        answer can still be reached). fault: what is wrong with the first other line, as one short
        sentence such as "step 2 is wrong: 4 + 13 = 17"; empty when every step holds.
    mended: that line with its arithmetic computed again, where nothing else is wrong with it and
        there is something to do after it; else empty.
    """

    kept: list[str]
    fault: str
    mended: str = ""


@dataclass(frozen=True)
class Solver:
    """A task's exact solver.

    review(problem, thought, search): search = False only checks the steps written.
    finish(problem, kept, seed): (thought, answer) that begins with the kept lines and is right;
        None where they lead nowhere. Deterministic in its arguments.
    """

    review: Callable[[Problem, str, bool], Review]
    finish: Callable[[Problem, list[str], int], tuple[str, str] | None]


@dataclass(frozen=True)
class Task:
    """One kind of problem.

    load(config, part, seed): the problems of a part ("train", "dev", "heldout", "all"), in a fixed
        order; parts never share a problem. Raises UserError for data that cannot be read.
    instruction(problem): what the system prompt asks for.
    show(problem): the user message.
    gold(problem): the expected answer as a critic may see it; None where any right answer counts.
    grade(problem, text, tags, style): never raises, linear in len(text).
    rules: every set of grading rules by name; the first one is `grade`, what a headline reports.
    from_row(row): a Problem of a row of `mlxreflect grade`. Raises UserError.
    hub: the data sets of the hub that it reads where no source is given.
    solver: exact, where the task has one.
    generated: it makes as many problems as are asked for.
    checkable: the question itself says what is right, so grading needs no gold answer.
    """

    name: str
    load: Callable[[TaskConfig, str, int], list[Problem]]
    instruction: Callable[[Problem], str]
    show: Callable[[Problem], str]
    grade: Grader
    from_row: Callable[[dict[str, Any]], Problem]
    gold: Callable[[Problem], str | None] = attrgetter("gold")
    rules: dict[str, Grader] = field(default_factory=dict)
    hub: tuple[str, ...] = ()
    solver: Solver | None = None
    generated: bool = False
    checkable: bool = False


MOST = 100_000  # problems that are generated of a part; more would take minutes before a run begins


def check_limit(name: str, limit: int) -> None:
    """Raises UserError for more problems than are generated."""
    if limit > MOST:
        raise UserError(
            f"limit = {limit}: {name} makes at most {MOST} problems of a part",
            f"set task.limit, eval.limit or limit to at most {MOST}",
        )
