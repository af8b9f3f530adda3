"""How an evaluation asks: as a chat or as raw text, with or without worked examples before it.

Completion form is that of lm-evaluation-harness for GSM8K: `Question: …\nAnswer:`, after examples
of `Question: …\nAnswer: worked solution` with an empty line between them. The examples are the
first ones of the training part, the same for every question (lm-eval calls that sampler `first_n`;
by default it draws others for each question): so the prompts do not depend on the order of the
questions, and what they share is computed once.
"""

import re
from collections.abc import Sequence

from mlxreflect.config.schema import EvalSpec
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Messages, Problem
from mlxreflect.prompts.messages import ANSWER, TAGS, attempt_messages
from mlxreflect.prompts.templates import BUNDLED
from mlxreflect.tasks.base import Task

ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's notes for a calculator


def ask(task: Task, problem: Problem, spec: EvalSpec, shots: Sequence[Problem]) -> Messages | str:
    """What a model is asked: messages (chat), or the raw text to be continued (completion).

    shots: of `load_shots`. The problem itself is never one of its own examples.
    """
    shots = [shot for shot in shots if shot.id != problem.id][: spec.shots]
    if spec.form == "completion":
        parts = [f"{question(task, shot)} {completion_of(task, shot)}" for shot in shots]
        return "\n\n".join([*parts, question(task, problem)])
    tags, style = spec.prompt.tags, spec.prompt.style
    wording = BUNDLED.replaced(spec.prompt.templates)
    system, user = attempt_messages(
        task.instruction(problem), task.show(problem), tags, style, wording
    )
    turns: Messages = []
    for shot in shots:
        turns += [
            {"role": "user", "content": task.show(shot)},
            {"role": "assistant", "content": reply_of(task, shot, tags, style)},
        ]
    return [system, *turns, user]


def load_shots(task: Task, spec: EvalSpec) -> list[Problem]:
    """The first `spec.shots` problems of the training part; one more where they may be asked.

    Raises UserError for a task without enough of them, for examples that have no worked solution
    to show, and for a stop string that would cut the answers that the examples teach.
    """
    shots: list[Problem] = []
    if spec.shots:
        wanted = spec.shots + (spec.part in ("train", "all"))
        config = spec.task.model_copy(update={"limit": wanted})
        shots = task.load(config, "train", 0)[:wanted]
        if len(shots) < spec.shots:
            raise UserError(
                f"shots = {spec.shots}: the training part of {task.name} has {len(shots)}",
                f"set shots to {len(shots)} or less",
            )
    thinks = spec.form == "completion" or spec.prompt.style != "direct"
    if shots and thinks and not all(worked(task, shot)[0] for shot in shots):
        raise UserError(
            f"shots = {spec.shots}: the problems of {task.name} come without worked solutions",
            'set prompt.style = "direct" and form = "chat", or leave shots out',
        )
    check_stop(task, spec, shots)
    return shots


def check_stop(task: Task, spec: EvalSpec, shots: Sequence[Problem]) -> None:
    """Raises UserError for a stop string inside of what a right response holds."""
    if spec.form == "completion":
        taught = [completion_of(task, shot) for shot in shots]
    else:
        taught = ["".join(TAGS[spec.prompt.tags] + ANSWER)]
        taught += [reply_of(task, s, spec.prompt.tags, spec.prompt.style) for s in shots]
    for stop in spec.stop:
        if any(stop in text for text in taught):
            raise UserError(
                f"stop = {stop!r} would cut a right response before it ends",
                'take it out of stop, or use one such as "Question:"',
            )


def question(task: Task, problem: Problem) -> str:
    return f"Question: {task.show(problem)}\nAnswer:"


def completion_of(task: Task, problem: Problem) -> str:
    """A worked solution as raw text, in the form that the task's rules read.

    GSM8K's own solutions end in `#### 72`; other answers stand in a block.
    """
    thought, answer = worked(task, problem)
    solution = problem.meta.get("solution")
    if isinstance(solution, str) and "####" in solution:
        return solution
    return f"{thought}\n{ANSWER[0]}{answer}{ANSWER[1]}"


def reply_of(task: Task, problem: Problem, tags: str, style: str) -> str:
    """A worked solution in the format that the chat asks for."""
    thought, answer = worked(task, problem)
    block = f"{ANSWER[0]}{answer}{ANSWER[1]}"
    start, end = TAGS[tags]
    return f"{start}\n{thought}\n{end}\n{block}" if style != "direct" else block


def worked(task: Task, problem: Problem) -> tuple[str, str]:
    """(thought, answer) of a solution: the exact solver's, or the data's own; "" for none."""
    if task.solver and (found := task.solver.finish(problem, [], 0)):
        return found
    solution = problem.meta.get("solution")
    thought = solution.partition("####")[0] if isinstance(solution, str) else ""
    return ANNOTATION.sub("", thought).strip(), problem.gold or ""
