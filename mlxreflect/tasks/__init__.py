"""The tasks by name."""

import difflib
from collections.abc import Sequence

from mlxreflect.errors import UserError
from mlxreflect.records import Problem
from mlxreflect.tables import EvalSpec, Recipe
from mlxreflect.tasks import (
    aime,
    arithmetic,
    countdown,
    gsm8k,
    jsonl,
    last_letter,
    logiqa,
    math500,
    svamp,
)
from mlxreflect.tasks.base import Grader, Task
from mlxreflect.tasks.kinds import KINDS

MODULES = (countdown, arithmetic, last_letter, gsm8k, svamp, aime, math500, logiqa, jsonl)
TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in MODULES}


def get_task(name: str) -> Task:
    """The task of a name. Raises UserError with the names there are."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "set task.name to one of the tasks"
    raise UserError(f"no task {name!r}; the tasks are: {', '.join(TASKS)}", hint)


def find_rules(task: Task, name: str, kind: str = "") -> tuple[str, Grader]:
    """The grading rules of a name, "" for the headline ones: (their name, the grader).

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


def check_exam(spec: EvalSpec) -> None:
    """Raises UserError for a spec whose task, or whose grading rules, there are not."""
    find_rules(get_task(spec.task.name), spec.rules, spec.task.answer_type)


def question_key(problem: Problem) -> str:
    """The question as it is shown, whatever its case, spacing and punctuation."""
    return "".join(c for c in TASKS[problem.task].show(problem).casefold() if c.isalnum())


def training_problems(recipe: Recipe, held_out: Sequence[Problem]) -> dict[str, Problem]:
    """The recipe's training problems by id, none of them asked in the evaluation."""
    loaded = TASKS[recipe.task.name].load(recipe.task, "train", recipe.seed)
    asked = {question_key(problem) for problem in held_out}
    kept = {p.id: p for p in loaded if question_key(p) not in asked}
    if recipe.task.limit:
        kept = dict(list(kept.items())[: recipe.task.limit])
    if not kept:
        raise UserError(
            f"task {recipe.task.name}: no problem is left to train on",
            "give more problems, or an evaluation with other ones",
        )
    return kept
