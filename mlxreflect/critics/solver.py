"""The exact critic: offline, free, deterministic; for tasks that have a solver."""

import json
from collections.abc import Sequence

from mlxreflect.core.errors import UserError
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.prompts.parsing import ANSWER, TAGS, parse_response, thought_of
from mlxreflect.prompts.roles import PRAISE
from mlxreflect.tasks import TASKS, get_task
from mlxreflect.tasks.base import Review

MOST_LINES = 100  # of a thought that is looked at to tidy it


class SolverCritic(Critic):
    """Finds the first wrong step of an attempt, and rewrites from the opening that holds.

    With visibility "none" it only checks the steps that were written and never searches: a rewrite
    is then the opening that holds, for the policy to go on with. task: its name.
    """

    actor = "solver"

    def __init__(self, task: str) -> None:
        self.task = task

    def preflight(self) -> None:
        if get_task(self.task).solver is None:
            able = ", ".join(name for name, task in TASKS.items() if task.solver)
            raise UserError(
                f'critic.provider = "solver": the task {self.task} has no exact solver',
                f'set critic.provider = "ollama", or task.name to one of: {able}',
            )

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        return [self.reply(call) for call in calls]

    def reply(self, call: Call) -> Reply:
        match call.role:
            case "critique" | "reflection":
                return Reply(self.fault(call) or PRAISE)
            case "judge":
                fault = self.fault(call)
                verdict = "wrong" if fault else "right"
                return Reply(json.dumps({"step": "", "why": fault, "verdict": verdict}))
            case "rewrite" | "answer" if call.visibility == "none":
                return Reply(self.opening(call))
            case "rewrite" | "answer" | "continue":
                return self.solution(call)
            case "integrate":
                return Reply(self.tidied(call))
        return Reply("", error=f"the solver has no role {call.role!r}", kind="unable")

    def review(self, call: Call, thought: str, search: bool) -> Review:
        solver = get_task(self.task).solver
        assert solver is not None  # preflight
        return solver.review(call.problem, thought, search)

    def fault(self, call: Call) -> str:
        """Returns what is wrong; nothing where every step holds and the grader takes the answer."""
        task, unseen = get_task(self.task), call.visibility == "none"
        fault = self.review(call, thought_of(call.text, call.tags), not unseen).fault
        if not fault and unseen and not task.checkable:
            return parse_response(call.text, call.tags).reason  # the grader would show the answer
        return fault or task.grade(call.problem, call.text, call.tags, "thinking").verdict.reason

    def opening(self, call: Call) -> str:
        """Returns the thinking as far as its steps hold, its first wrong sum computed again."""
        review = self.review(call, thought_of(call.text, call.tags), False)
        lines = [*review.kept, *([review.mended] if review.mended else [])]
        return "\n".join([TAGS[call.tags][0], *lines])

    def solution(self, call: Call) -> Reply:
        """Rewrites a text, or continues it: what is wrong, then the steps after those that hold."""
        solver = get_task(self.task).solver
        assert solver is not None  # preflight
        kept = self.review(call, thought_of(call.text, call.tags), True).kept
        solved = solver.finish(call.problem, kept, call.seed)
        if solved is None:
            return Reply("", error="the solver found no way to finish", kind="unsolved")
        body, answer = solved
        if call.role != "continue":
            return Reply(whole(body, answer, call.tags))
        told = [call.feedback] if call.feedback and len(kept) < len(lines_of(call)) else []
        new = body.split("\n")[len(kept) :]
        return Reply("\n".join([*told, *new, closing(answer, call.tags)]))

    def tidied(self, call: Call) -> str:
        """Keeps the last lines of a thought that lead to its end by themselves.

        Where none do, that is the answer: the call has not failed.
        """
        lines, answer = lines_of(call), parse_response(call.text, call.tags).answer
        for first in reversed(range(len(lines))[-MOST_LINES:]):
            body = "\n".join(lines[first:])
            if answer is not None and not self.review(call, body, False).fault:
                return whole(body, answer, call.tags)
        return 'no lines like "step 1: 60 + 35 = 95" lead to the answer by themselves'


def lines_of(call: Call) -> list[str]:
    return thought_of(call.text, call.tags).strip("\n").split("\n")


def whole(body: str, answer: str, tags: str) -> str:
    return f"{TAGS[tags][0]}\n{body}\n{closing(answer, tags)}"


def closing(answer: str, tags: str) -> str:
    return f"{TAGS[tags][1]}\n{ANSWER[0]} {answer} {ANSWER[1]}"
