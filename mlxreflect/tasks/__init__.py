"""The tasks by name."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

from mlxreflect.config.methods import method_of
from mlxreflect.config.schema import EvalSpec, Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.data.contamination import Index, Match, Question, build_index, find
from mlxreflect.graders.base import Grader
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


def question_of(problem: Problem, spec: str = "") -> Question:
    """Returns what a problem asks, to be looked for in other texts.

    The order of numbers and of options makes no other problem. Generated problems differ in a few
    words among many that are the same, so they are compared as a whole only.
    """
    task, fields = TASKS[problem.task], dict(problem.fields)
    if isinstance(fields.get("numbers"), list):
        fields["numbers"] = sorted(fields["numbers"])
    options = fields.get("choices") or {}
    body = task.show(replace(problem, fields={**fields, "choices": {}} if options else fields))
    wholes = [task.show(problem), "\n".join([body, *sorted(map(str, options.values()))])]
    return Question(spec, problem.id, wholes, "" if task.generated else body)


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


def training_problems(recipe: Recipe, held_out: Sequence[Problem]) -> dict[str, Problem]:
    """The recipe's training problems by id, none of them asked in the evaluation."""
    asked = [question_of(problem) for problem in held_out]
    return clean_problems(recipe, build_index(asked, recipe.eval.ngram))[0]


def load_sources(recipe: Recipe) -> list[Problem]:
    """What a recipe learns from: its task's problems, or what its method has in their place."""
    own = method_of(recipe).sources(recipe)
    if own is not None:
        return own
    return TASKS[recipe.task.name].load(recipe.task, "train", recipe.seed)


def clean_problems(
    recipe: Recipe, exams: Index | None
) -> tuple[dict[str, Problem], list[tuple[Problem, Match]]]:
    """The recipe's training problems by id, and those that occur in evaluations: left out of them.

    exams: what evaluations ask; None: nothing is left out.
    """
    loaded = {problem.id: problem for problem in load_sources(recipe)}
    left_out: dict[str, tuple[Problem, Match]] = {}
    if exams:
        for problem in loaded.values():
            question = question_of(problem)
            if match := find(exams, question.wholes, [question.body]):
                left_out[problem.id] = problem, match
    kept = {name: problem for name, problem in loaded.items() if name not in left_out}
    if recipe.task.limit:
        kept = dict(list(kept.items())[: recipe.task.limit])
    if not kept:
        why = f": all {len(left_out)} occur in the evaluation" if left_out else ""
        raise UserError(
            f"task {recipe.task.name}: no problem is left to train on{why}",
            "give more problems, or an evaluation with other ones"
            + ('; or set eval.decontaminate = "exact" where they only share words' if why else ""),
        )
    return kept, list(left_out.values())
