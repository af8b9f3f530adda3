"""What goes to a critic and comes back as turns; failed calls are turns with an error."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from mlxreflect.config.schema import REMOTE, Recipe, Tier
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, Turn, Verdict
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.client import forget
from mlxreflect.critics.ledger import Tally
from mlxreflect.critics.verdicts import Answer, Judgement, M, Marks, Preference, ask_structured
from mlxreflect.methods.quality import written
from mlxreflect.methods.roles import Moves, Round, judged, marked
from mlxreflect.tasks.base import Task

ANSWERS = (
    "reflection",
    "rewrite",
    "continue",
    "integrate",
    "answer",
)  # roles whose text may become training data
RECENT, FEW = 40, 10  # a run stops for many failures among its last calls, never for a few


class Exchange:
    """Asks for critiques and rewrites, and counts what came of it; from any thread."""

    def __init__(self, recipe: Recipe, task: Task, critics: dict[str, Critic]) -> None:
        self.recipe, self.critics = recipe, critics
        self.moves = Moves(recipe, task)
        self.counts = Tally()
        self.recent: deque[bool] = deque(maxlen=RECENT)  # whether the last calls failed
        self.unread: list[tuple[Tier, Call]] = []  # of the wave, with replies without a verdict
        self.lock = threading.Lock()  # of all three

    def begin_wave(self) -> None:
        self.counts.clear()
        self.unread.clear()

    def critique(
        self,
        problems: Sequence[Problem],
        turns: Sequence[Turn],
        at: Round,
        example: str | None = None,
    ) -> list[Turn]:
        """A critique of each turn. example: the last winning rewrite, for self-feedback."""
        calls = [
            self.moves.critique(problem, turn.text, at, example)
            for problem, turn in zip(problems, turns, strict=True)
        ]
        return self.ask(calls, turns, at)

    def rewrite(
        self,
        problems: Sequence[Problem],
        turns: Sequence[Turn],
        critiques: Sequence[Turn],
        at: Round,
    ) -> list[Turn]:
        """A rewrite of each turn, told what its critique says."""
        calls = [
            self.moves.rewrite(problem, turn.text, said.text, at)
            for problem, turn, said in zip(problems, turns, critiques, strict=True)
        ]
        return self.ask(calls, critiques, at)

    def judge(
        self, problems: Sequence[Problem], rewrites: Sequence[Turn], at: Round
    ) -> list[tuple[Turn, Turn | None]]:
        """Each rewrite, its verdict taken back where the judge does not call it right, and the
        judge's turn, without index and parent; None for a rewrite that had not passed anyway."""
        shown = [i for i, turn in enumerate(rewrites) if turn.verdict and turn.verdict.passed]
        found = self.judgements([problems[i] for i in shown], [rewrites[i] for i in shown], at)
        both: list[tuple[Turn, Turn | None]] = [(turn, None) for turn in rewrites]
        for i, (judgement, said) in zip(shown, found, strict=True):
            both[i] = unless_right(rewrites[i], judgement, said.actor), said
        return both

    def judgements(
        self,
        problems: Sequence[Problem],
        turns: Sequence[Turn],
        at: Round,
        temperature: float | None = None,
    ) -> list[tuple[Judgement | None, Turn]]:
        """What the judge says of each text, None where it gave no verdict, and its turn, without
        index. temperature: where it is not the critic's own."""
        if not turns:  # a run that shows it nothing has no judge
            return []
        calls = [
            replace(self.moves.judge(problem, turn.text, at), temperature=temperature)
            for problem, turn in zip(problems, turns, strict=True)
        ]
        critic, answers = self.critics[at.tier], self.structured(calls, Judgement, at)
        return [
            (answer.value, turn_of(call, answer.replies[-1], critic.actor, turn.index))
            for call, answer, turn in zip(calls, answers, turns, strict=True)
        ]

    def score(self, problems: Sequence[Problem], traces: Sequence[Turn], at: Round) -> list[Turn]:
        """A turn a trace, with the marks in `parsed`; without, where none came."""
        calls = [
            # Its number tells a trace's call from those of the problem's others.
            self.moves.score(p, t.text, replace(at, attempt=f"{at.attempt}/{t.index}"))
            for p, t in zip(problems, traces, strict=True)
        ]
        critic, answers = self.critics[at.tier], self.structured(calls, Marks, at)
        turns = []
        for call, trace, answer in zip(calls, traces, answers, strict=True):
            quality = marked(answer.value)
            turn = turn_of(call, answer.replies[-1], critic.actor, trace.index)
            turns.append(replace(turn, parsed=written(quality) if quality else None))
        return turns

    def prefer(
        self, problems: Sequence[Problem], both: Sequence[tuple[Turn, Turn]], at: Round
    ) -> list[tuple[Turn, Turn]]:
        """What the judge says of two texts, asked in both orders: a turn each, whose parent is the
        text shown first and whose `parsed` says which is better, "A", "B" or "tie"; None: no word.
        """
        calls = [
            call
            for problem, (one, other) in zip(problems, both, strict=True)
            for call in self.moves.prefer(
                problem, one.text, other.text,
                replace(at, attempt=f"{at.attempt}/{one.index}/{other.index}"),
            )
        ]  # fmt: skip
        critic, answers = self.critics[at.tier], self.structured(calls, Preference, at)
        shown_first = [turn for pair in both for turn in pair]
        turns = [
            replace(
                turn_of(call, answer.replies[-1], critic.actor, first.index),
                parsed=answer.value.better if answer.value else None,
            )
            for call, answer, first in zip(calls, answers, shown_first, strict=True)
        ]
        return list(zip(turns[::2], turns[1::2], strict=True))

    def structured(self, calls: list[Call], model: type[M], at: Round) -> list[Answer[M]]:
        """A structured reply a call, counted."""
        answers = ask_structured(self.critics[at.tier], calls, model)
        with self.lock:
            if at.tier != "self":
                self.unread += [(at.tier, call) for one in answers for call in one.unread()]
            self.count([reply for answer in answers for reply in answer.replies])
        return answers

    def ask(self, calls: list[Call], parents: Sequence[Turn | None], at: Round) -> list[Turn]:
        """A turn a call."""
        critic = self.critics[at.tier]
        replies = critic.ask(calls)
        with self.lock:
            self.count(replies)
        return [
            turn_of(call, reply, critic.actor, parent.index if parent else None)
            for call, reply, parent in zip(calls, replies, parents, strict=True)
        ]

    def count(self, replies: list[Reply]) -> None:
        """Keep the counts. Raises UserError when too many of the last calls failed."""
        failed = [reply for reply in replies if reply.error is not None]
        self.counts.add(replies)
        self.recent.extend(reply.error is not None for reply in replies)
        limit, lost = self.recipe.critic.max_failed, sum(self.recent)
        if failed and lost >= FEW and lost > limit * len(self.recent):
            self.forget_unread()
            raise UserError(
                f"{lost} of the last {len(self.recent)} critic calls failed, more than "
                f"critic.max_failed = {limit:g}; the last: {failed[-1].error}",
                "see that the critic answers as it is asked to, then resume the run; this wave "
                "will be done again",
            )

    def forget_unread(self) -> None:
        """What could not be read is on disk, too: a critic that was mended is to be heard."""
        for tier in {tier for tier, _ in self.unread}:
            config = self.recipe.critic.tier(tier)
            if config.provider in REMOTE and not config.replay:
                forget(config, [call for one, call in self.unread if one == tier])


def unless_right(turn: Turn, judgement: Judgement | None, judge: str) -> Turn:
    """The turn, its verdict taken back where the judge does not call it right."""
    verdict, why = judged(judgement)
    if verdict == "right" or turn.verdict is None:
        return turn
    refused = Verdict(False, turn.verdict.format_ok, f"{verdict}: {why}", judge)
    return replace(turn, verdict=refused)


def turn_of(call: Call, reply: Reply, actor: str, parent: int | None) -> Turn:
    return Turn(
        index=-1,
        parent=parent,
        role=call.role,
        actor=actor,
        messages=call.messages,
        text=reply.text,
        visibility=call.visibility,
        finish_reason=reply.finish_reason,
        token_ids=reply.token_ids if call.role in ANSWERS else None,
        usage=reply.usage,
        error=reply.error,
    )
