"""What an evaluation asks: a problem as messages or raw text, after worked examples if any."""

from collections.abc import Sequence

from mlxreflect import prompts
from mlxreflect.records import Messages, Problem
from mlxreflect.tables import EvalSpec
from mlxreflect.tasks.base import Task


def load_shots(task: Task, spec: EvalSpec) -> list[Problem]:
    """The worked examples of a spec, from the task's training part."""
    return task.load(spec.task, "train", spec.seed)[: spec.shots] if spec.shots else []


def ask(task: Task, problem: Problem, spec: EvalSpec, shots: Sequence[Problem]) -> Messages | str:
    """Messages for a chat; for a completion the raw text that the model goes on with."""
    if spec.form == "completion":
        told = [f"Question: {task.show(p)}\nAnswer: {task.gold(p) or ''}\n\n" for p in shots]
        return "".join(told) + f"Question: {task.show(problem)}\nAnswer:"
    wording = prompts.BUNDLED.replaced(spec.prompt.templates)
    tags, style = spec.prompt.tags, spec.prompt.style
    asked = prompts.attempt_messages(
        task.instruction(problem), task.show(problem), tags, style, wording
    )
    turns: Messages = []
    for shot in shots:
        turns.append({"role": "user", "content": task.show(shot)})
        turns.append({"role": "assistant", "content": f"<answer>{task.gold(shot)}</answer>"})
    return [asked[0], *turns, *asked[1:]]
