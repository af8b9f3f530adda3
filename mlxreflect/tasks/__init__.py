"""The tasks by name."""

import difflib

from mlxreflect.config.schema import EvalSpec
from mlxreflect.core.errors import UserError
from mlxreflect.graders import Grader
from mlxreflect.tasks import arithmetic, countdown, jsonl, last_letter
from mlxreflect.tasks.base import Task, check_limit
from mlxreflect.tasks.benchmarks import BENCHMARKS
from mlxreflect.tasks.jsonl import KINDS

TASKS: dict[str, Task] = {
    "countdown": countdown.TASK,
    "arithmetic": arithmetic.TASK,
    "last_letter": last_letter.TASK,
    **BENCHMARKS,
    "jsonl": jsonl.TASK,
}


def get_task(name: str) -> Task:
    """Returns the task of a name. Raises UserError with the names there are."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "set task.name to one of the tasks"
    raise UserError(f"no task {name!r}; the tasks are: {', '.join(TASKS)}", hint)


def find_rules(task: Task, name: str, kind: str = "") -> tuple[str, Grader]:
    """Returns the grading rules of a name, "" for the headline's, as (their name, the grader).

    kind: the kind of answer that will be graded, of a task that has several (jsonl). Raises
    UserError with the rules there are.
    """
    several = task is jsonl.TASK and kind in KINDS
    known = list(KINDS[kind].rules if several else task.rules)
    chosen = name or known[0]
    if chosen in known:
        return chosen, task.rules[chosen]
    what = f"the task {task.name}" + (f" with answers of type {kind!r}" if several else "")
    near = difflib.get_close_matches(chosen, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"leave it out for {known[0]!r}"
    raise UserError(f"no rules {name!r}; {what} has: {', '.join(known)}", hint)


def check_eval(spec: EvalSpec) -> None:
    """Raises UserError for a spec whose task, grading rules or so many problems there are not."""
    task = get_task(spec.task.name)
    find_rules(task, spec.rules, spec.task.answer_type)
    if task.generated and not spec.task.source:
        check_limit(task.name, spec.limit)
