"""What goes to a critic and comes back as turns; failed calls are turns with an error."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlxreflect import prompts
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.tally import Tally
from mlxreflect.errors import UserError
from mlxreflect.recipe import Recipe
from mlxreflect.records import Messages, Problem, Turn
from mlxreflect.seeds import seed_for
from mlxreflect.tasks.base import Task

RECENT, FEW = 40, 10  # a run stops for many failures among its last calls, never for a few


@dataclass(frozen=True)
class Round:
    """Which try this is. tier: the critic that answers; "self" is the policy.

    attempt: together with problem, epoch and role it tells this call from every other.
    """

    tier: Literal["basic", "advanced", "self"]
    epoch: int
    attempt: str


class Stopped(Exception):
    """A chain would have sent a call after another one had failed."""


class Exchange:
    """Asks for critiques and rewrites, and counts what came of it; from any thread.

    stopped: once set, nothing more is sent.
    """

    def __init__(self, recipe: Recipe, task: Task, critics: dict[str, Critic]) -> None:
        self.recipe, self.task, self.critics = recipe, task, critics
        self.counts = Tally()
        self.recent: deque[bool] = deque(maxlen=RECENT)  # whether the last calls failed
        self.lock = threading.Lock()  # of both
        self.stopped = threading.Event()

    def tiers(self, tier: str) -> set[str]:
        """The critics that take part in a wave of this tier."""
        config = self.recipe.r3
        return {tier if who == "critic" else who for who in (config.feedback, config.rewriter)}

    def critique(
        self,
        problems: Sequence[Problem],
        turns: Sequence[Turn],
        round_: Round,
        example: str | None = None,
    ) -> list[Turn]:
        """A critique of each turn. example: the last winning rewrite, for self-feedback."""
        tags = self.recipe.prompt.tags
        calls = []
        for problem, turn in zip(problems, turns, strict=True):
            shown, gold = self.task.show(problem), self.task.gold(problem)
            messages = prompts.critique_messages(shown, turn.text, tags, gold, example)
            calls.append(self.call("critique", problem, messages, turn.text, "", round_))
        return self.ask(calls, turns, round_)

    def rewrite(
        self,
        problems: Sequence[Problem],
        turns: Sequence[Turn],
        critiques: Sequence[Turn],
        round_: Round,
    ) -> list[Turn]:
        """A rewrite of each turn, told what its critique says."""
        tags = self.recipe.prompt.tags
        calls = []
        for problem, turn, said in zip(problems, turns, critiques, strict=True):
            asked, shown = self.task.instruction(problem), self.task.show(problem)
            gold = self.task.gold(problem)
            messages = prompts.rewrite_messages(asked, shown, turn.text, said.text, tags, gold)
            calls.append(self.call("rewrite", problem, messages, turn.text, said.text, round_))
        return self.ask(calls, critiques, round_)

    def call(
        self,
        role: Literal["critique", "rewrite"],
        problem: Problem,
        messages: Messages,
        text: str,
        feedback: str,
        round_: Round,
    ) -> Call:
        return Call(
            role=role,
            problem=problem,
            messages=messages,
            text=text,
            feedback=feedback,
            visibility="verdict" if self.task.gold(problem) is None else "gold_answer",
            template=str(prompts.VERSIONS[role]),
            tags=self.recipe.prompt.tags,
            epoch=round_.epoch,
            attempt=round_.attempt,
            seed=seed_for(self.recipe.seed, round_.epoch, round_.attempt, role, problem.id),
        )

    def ask(self, calls: list[Call], parents: Sequence[Turn], round_: Round) -> list[Turn]:
        """A turn a call. Raises Stopped where nothing may be sent any more."""
        if self.stopped.is_set():
            raise Stopped
        critic = self.critics[round_.tier]
        replies = critic.ask(calls)
        with self.lock:
            self.count(replies)
        return [
            Turn(
                index=-1,
                parent=parent.index,
                role=call.role,
                actor=critic.actor,
                messages=call.messages,
                text=reply.text,
                visibility=call.visibility,
                finish_reason=reply.finish_reason,
                token_ids=reply.token_ids if call.role == "rewrite" else None,
                usage=reply.usage,
                error=reply.error,
            )
            for call, reply, parent in zip(calls, replies, parents, strict=True)
        ]

    def count(self, replies: list[Reply]) -> None:
        """Keep the counts. Raises UserError when too many of the last calls failed."""
        failed = [reply for reply in replies if reply.error is not None]
        self.counts.add(replies)
        self.recent.extend(reply.error is not None for reply in replies)
        limit, lost = self.recipe.r3.max_failed, sum(self.recent)
        if failed and lost >= FEW and lost > limit * len(self.recent):
            raise UserError(
                f"{lost} of the last {len(self.recent)} critic calls failed, more than "
                f"r3.max_failed = {limit:g}; the last: {failed[-1].error}",
                "see that the critic answers, then resume the run; this wave will be done again",
            )
