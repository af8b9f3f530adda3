"""The exact critic: offline, free, deterministic; for tasks that have a solver."""

import json
from collections.abc import Sequence

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.critics.base import Call, Reply
from mlxreflect.prompts.parsing import ANSWER, TAGS, parse_response, thought_of
from mlxreflect.prompts.roles import PRAISE
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.base import Task

MOST_LINES = 100  # of a thought that is looked at to tidy it
UNSOLVED = Reply("", error="the solver found no way to finish", kind="unsolved")


class SolverCritic:
    """Finds the first wrong step of an attempt, and rewrites from the opening that holds.

    With visibility "none" it only checks the steps that were written and never searches: a rewrite
    is then the opening that holds, for the policy to go on with.
    """

    actor = "solver"
    waits = False

    def __init__(self, config: CriticConfig, task: str) -> None:
        self.task = task

    def preflight(self) -> None:
        if TASKS[self.task].solver is None:
            able = ", ".join(name for name, task in TASKS.items() if task.solver)
            raise UserError(
                f'critic.provider = "solver": the task {self.task} has no exact solver',
                f'set critic.provider = "ollama", or task.name to one of: {able}',
            )

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        return [ROLES.get(call.role, unable)(TASKS[self.task], call) for call in calls]

    def close(self) -> None:
        pass


def critique(task: Task, call: Call) -> Reply:
    return Reply(fault_of(task, call) or PRAISE)


def judge(task: Task, call: Call) -> Reply:
    """Judges an attempt right where every step holds and the grader accepts its answer."""
    fault = fault_of(task, call)
    return Reply(json.dumps({"step": "", "why": fault, "verdict": "wrong" if fault else "right"}))


def fault_of(task: Task, call: Call) -> str:
    assert task.solver is not None  # preflight
    unseen = call.visibility == "none"
    fault = task.solver.review(call.problem, thought_of(call.text, call.tags), not unseen).fault
    if not fault and unseen and not task.checkable:
        return parse_response(call.text, call.tags).reason  # the grader would show it the answer
    return fault or task.grade(call.problem, call.text, call.tags, "thinking").verdict.reason


def rewrite(task: Task, call: Call) -> Reply:
    if call.visibility == "none":
        return opening(task, call)
    solved = solution_from(task, call)
    if solved is None:
        return UNSOLVED
    _, body, answer = solved
    return Reply(f"{TAGS[call.tags][0]}\n{body}\n{closing(answer, call.tags)}")


def go_on(task: Task, call: Call) -> Reply:
    """Continues a working: what is wrong with it, and the steps from the last that holds."""
    solved = solution_from(task, call)
    if solved is None:
        return UNSOLVED
    kept, body, answer = solved
    new = body.split("\n")[len(kept) :]
    told = call.feedback if len(kept) < len(lines_of(call)) else ""
    return Reply("\n".join([*filter(None, [told]), *new, closing(answer, call.tags)]))


def tidy(task: Task, call: Call) -> Reply:
    """Keeps the last lines of a thought that lead to its end by themselves.

    Where none do, that is the answer: the call has not failed.
    """
    assert task.solver is not None  # preflight
    lines, answer = lines_of(call), parse_response(call.text, call.tags).answer
    for first in reversed(range(len(lines))[-MOST_LINES:]):
        body = "\n".join(lines[first:])
        if answer is not None and not task.solver.review(call.problem, body, False).fault:
            return Reply(f"{TAGS[call.tags][0]}\n{body}\n{closing(answer, call.tags)}")
    return Reply('no lines like "step 1: 60 + 35 = 95" lead to the answer by themselves')


def solution_from(task: Task, call: Call) -> tuple[list[str], str, str] | None:
    """Returns the lines that hold, the thought that goes on from them, and its answer."""
    assert task.solver is not None  # preflight
    kept = task.solver.review(call.problem, thought_of(call.text, call.tags), True).kept
    solved = task.solver.finish(call.problem, kept, call.seed)
    return (kept, *solved) if solved else None


def lines_of(call: Call) -> list[str]:
    return thought_of(call.text, call.tags).strip("\n").split("\n")


def closing(answer: str, tags: str) -> str:
    return f"{TAGS[tags][1]}\n{ANSWER[0]} {answer} {ANSWER[1]}"


def opening(task: Task, call: Call) -> Reply:
    """Returns the thinking as far as its steps hold, its first wrong sum computed again."""
    assert task.solver is not None  # preflight
    review = task.solver.review(call.problem, thought_of(call.text, call.tags), False)
    lines = [*review.kept, *([review.mended] if review.mended else [])]
    return Reply("\n".join([TAGS[call.tags][0], *lines]))


def unable(task: Task, call: Call) -> Reply:
    return Reply("", error=f"the solver has no role {call.role!r}", kind="unable")


ROLES = {"critique": critique, "reflection": critique, "rewrite": rewrite, "continue": go_on,
         "answer": rewrite, "judge": judge, "integrate": tidy}  # fmt: skip
