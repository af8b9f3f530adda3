"""The exact critic: offline, free, deterministic; for tasks that have a solver."""

import json
from collections.abc import Sequence

from mlxreflect.critics.base import Call, Reply
from mlxreflect.errors import UserError
from mlxreflect.prompts import ANSWER, TAGS, parse_response
from mlxreflect.tables import CriticConfig
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.base import Task


class SolverCritic:
    """Finds the first wrong step of an attempt, and rewrites from the opening that holds.

    With visibility "none" its critiques only check the steps that were written, without a search.
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


def thought_of(call: Call) -> str:
    """The attempt's thought; one never closed goes up to the answer."""
    start, _ = TAGS[call.tags]
    span = parse_response(call.text, call.tags).spans.get("think")
    if span is None:
        opened = call.text.find(start)
        begin = opened + len(start) if opened >= 0 else 0
        end = call.text.find(ANSWER[0], begin)
        span = [begin, end if end >= 0 else len(call.text)]
    return call.text[slice(*span)]


def critique(task: Task, call: Call) -> Reply:
    return Reply(fault_of(task, call) or "every step holds")


def judge(task: Task, call: Call) -> Reply:
    """Right: every step holds, and the grader says so of the answer."""
    fault = fault_of(task, call)
    return Reply(json.dumps({"step": "", "why": fault, "verdict": "wrong" if fault else "right"}))


def fault_of(task: Task, call: Call) -> str:
    assert task.solver is not None  # preflight
    fault = task.solver.review(call.problem, thought_of(call), call.visibility != "none").fault
    return fault or task.grade(call.problem, call.text, call.tags, "thinking").verdict.reason


def rewrite(task: Task, call: Call) -> Reply:
    assert task.solver is not None  # preflight
    kept = task.solver.review(call.problem, thought_of(call), True).kept
    solved = task.solver.finish(call.problem, kept, call.seed)
    if solved is None:
        return Reply("", error="the solver found no way to finish", kind="unsolved")
    start, end = TAGS[call.tags]
    body, answer = solved
    return Reply(f"{start}\n{body}\n{end}\n{ANSWER[0]} {answer} {ANSWER[1]}")


def unable(task: Task, call: Call) -> Reply:
    return Reply("", error=f"the solver has no move {call.role!r}", kind="unable")


ROLES = {"critique": critique, "rewrite": rewrite, "continue": rewrite, "answer": rewrite,
         "judge": judge}  # fmt: skip
