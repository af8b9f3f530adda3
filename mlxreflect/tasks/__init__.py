"""The tasks by name; those of reasoning_gym are made as they are asked for."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxreflect.config.fields import refuse
from mlxreflect.config.schema import GYM, EvalSpec, JudgeConfig, TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.graders import Grader
from mlxreflect.graders.own import open_own, own_rules
from mlxreflect.graders.text import OPEN
from mlxreflect.tasks import arithmetic, countdown, gym, jsonl, last_letter
from mlxreflect.tasks.base import Task, check_limit
from mlxreflect.tasks.benchmarks import BENCHMARKS
from mlxreflect.tasks.jsonl import KINDS, ungraded, with_row

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
    if name.startswith(GYM):
        return gym.task_of(name)
    near = difflib.get_close_matches(name, TASKS, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "set task.name to one of the tasks"
    raise UserError(f"no task {name!r}; the tasks are: {', '.join([*TASKS, GYM + 'NAME'])}", hint)


def find_task(config: TaskConfig) -> Task:
    """Returns the task of a [task] table, with a grader of a person's own where it names one.

    Raises UserError for a task that is not there, and for a grader that cannot be loaded.
    """
    task = get_task(config.name)
    if not config.grader:
        return task
    rules = own_rules(open_own(config.grader, config.grader_sha256, "grade"), task.show)

    def from_row(row: dict[str, Any]) -> Problem:
        needless = "gold" not in row and not task.checkable
        problem = ungraded(task.name, row) if needless else task.from_row(row)
        return with_row(problem, row)

    return replace(task, rules=rules, from_row=from_row)


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
    """Raises UserError for a spec whose task, rules, problems or worked examples there are not.

    And for keys that contradict open questions, or are of those alone.
    """
    task = find_task(spec.task)
    find_rules(task, spec.rules, spec.task.answer_type)
    if spec.shots and not task.teaches:
        raise UserError(
            f"prompt.shots = {spec.shots}: the task {task.name} is an evaluation alone, and has no "
            "training part for worked examples",
            "set prompt.shots = 0, or evaluate on another task",
        )
    if task.generated and not spec.task.source:
        check_limit(task.name, spec.limit)
    asks, judge = spec.task, spec.judge
    if not is_open(asks):
        faults = [(judge != JudgeConfig(), "[judge] does nothing for questions with right answers",
                   'leave that table out, or set task.answer_type = "open"')]  # fmt: skip
    else:
        one = 'task.answer_type = "open"'
        faults = [
            (spec.samples > 1, f"samples = {spec.samples} with {one}: one answer is judged",
             "leave samples out"),
            (spec.shots > 0, f"shots = {spec.shots} with {one}: there are no worked answers",
             "leave shots out"),
            (spec.chain.gated, f"chain.gated with {one}: no grader ends a chain",
             "leave chain.gated out"),
            (bool(asks.grader), f"task.grader with {one}: a critic judges, and no grader",
             "leave one of both out"),
        ]  # fmt: skip
    refuse(Path(spec.name or asks.name), *faults)


def is_open(config: TaskConfig) -> bool:
    """Tells if questions have no right answer: a critic judges which of two is better."""
    return config.name == jsonl.TASK.name and config.answer_type == OPEN
