"""R³: Reflect, Rewrite, Repeat (EACL 2026), in waves.

For a wave of problems: attempt; grade; for what is wrong up to K rounds of critique and rewrite;
DPO on (winning rewrite ≻ the sample that opened its cycle); up to V verifications, each a fresh
sample of the updated policy. A pass ends in SFT and "solved"; a failure in SFT on the last winner
at a small learning rate and, while verifications are left, another cycle with the failed sample as
the rejected one. What stays unsolved goes to the bucket list, for the advanced critic. The rounds
go in lock-step; where a critic is waited for, each trajectory goes its own way.

Beyond the paper, an attempt may be several samples. A problem that has a right one among them is
solved without a critic, and the policy's own right and wrong samples may make the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlxreflect.config.fields import Count, Positive, Table, refuse, refuse_idle
from mlxreflect.core.records import Episode, Example, Turn
from mlxreflect.core.seeds import rng_for
from mlxreflect.core.ui import plural
from mlxreflect.methods.base import (
    Frame,
    Method,
    Plan,
    Played,
    Shares,
    Trajectory,
    Try,
    Wave,
    as_asked,
    chance,
    completion,
    found_wrong,
    held_against,
    outcome_of,
    passed,
    preference,
    unless_right,
)

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe, Tier
    from mlxreflect.critics.verdicts import Judgement
    from mlxreflect.methods.session import Workers

MAX_MASTERY_ROUNDS = 100


class R3Config(Table):
    wave: Positive = 1  # problems taken and committed together; 1: the paper's sequential order
    shard: Count = (
        0  # samples drawn while a remote critic reviews those before; 0: policy.batch a host
    )
    epochs: Positive = 1  # passes over all problems
    # rewrite: the winning rewrite over the wrong sample. own: of the samples that a problem's
    # attempt, or a verification, draws, a right one over a wrong one; rewrites are imitated. both:
    # pairs of either kind
    pairs: Literal["rewrite", "own", "both"] = "rewrite"
    # samples of an attempt; a critic sees only a problem that has no right one among them
    attempts: Positive = 1
    rewrites: Count = 3  # rewrites of an attempt at most; 0: no critic is asked
    verifications: Count = 5  # fresh samples after training, at most
    verify_samples: Positive = 1  # samples of a verification
    verify_pass: Positive = 1  # samples of them that must be right
    # who critiques: the critic, or the policy itself
    feedback: Literal["critic", "self"] = "critic"
    rewriter: Literal["critic", "self"] = "critic"  # who rewrites
    judge: bool = False  # rewrites that pass the grader must also convince the judge
    sft_mode: Literal[0, 1, 2, 3] = 1  # once verified: 0 none, 1 last winner, 2 verified, 3 both
    sft_correct: bool = False  # SFT on attempts that were right at once
    bucket_every: Count = 100  # problems between passes over the bucket list; 0: never
    bucket_visits: Count = 1  # passes of an epoch that take up the same problem; 0: all of them
    # so many problems in a row that critics could not help to solve end a pass over the bucket
    # list; until one is solved, no problem is verified twice and no epoch begins; 0: never
    patience: Count = 50
    until_mastered: bool = False  # go on over the bucket list while it shrinks

    @property
    def takes_up_bucket(self) -> bool:
        return self.bucket_every > 0 or self.until_mastered


def check(recipe: Recipe, path: Path) -> None:
    config = recipe.r3
    several = config.attempts > 1 or (config.verify_samples > 1 and config.verifications > 0)
    own = config.pairs != "rewrite"
    refuse(
        path,
        (config.verify_pass > config.verify_samples,
         f"r3.verify_pass = {config.verify_pass} can never be reached with r3.verify_samples = "
         f"{config.verify_samples}",
         "lower r3.verify_pass or raise r3.verify_samples"),
        (own and not (several and recipe.policy.temperature),
         f"r3.pairs = {config.pairs!r} compares samples of a problem, and there is one, or all are "
         "the same",
         "set r3.attempts, for example to 4, and policy.temperature above 0"),
        (config.rewrites == 0 and not own and not config.sft_correct,
         "r3.rewrites = 0 leaves nothing to train on",
         'set r3.pairs = "own" and r3.attempts = 4, or r3.rewrites = 3'),
    )  # fmt: skip
    if not config.rewrites:
        of_critics = ("feedback", "rewriter", "judge", "patience")
        refuse_idle(config, R3Config(), dict.fromkeys(of_critics, "r3.rewrites = 0"), path, "r3.")


# ---- the critics that it asks, and how often -----------------------------------------------------


def tiers(recipe: Recipe) -> list[Tier]:
    found: list[Tier] = []
    if not recipe.r3.rewrites:
        return found
    if not recipe.r3.feedback == recipe.r3.rewriter == "self":
        found += ["basic", "advanced"] if recipe.r3.takes_up_bucket else ["basic"]
    return [*found, "judge"] if recipe.r3.judge else found


def plan(recipe: Recipe, n: int, shares: Shares) -> Plan:
    config = recipe.r3
    visits, tries = at_most(recipe, n) if shares.most else expected(recipe, n, shares)
    writers = {"critique": config.feedback, "rewrite": config.rewriter} if config.rewrites else {}
    calls: dict[tuple[Tier, str], float] = {
        (tier, role): shown * tries
        for tier, shown in visits.items()
        for role, who in writers.items()
        if who == "critic"
    }
    shown = sum(visits.values())
    if writers and config.judge:
        judged = 2 if shares.most else 1 - shares.helped  # of a try; it may be asked for again
        calls["judge", "judge"] = shown * tries * judged
    roles = (*writers, "judge") if writers and config.judge else (*writers,)
    all_wrong = shares.wrong**config.attempts
    again = visits["advanced"] / all_wrong if all_wrong else 0.0  # problems that are taken up
    checks, trained = practice(recipe, n * config.epochs + again, shown, shares)
    return Plan(
        n * config.epochs * config.attempts, config.wave, calls, roles,
        samples=again * config.attempts + checks,
        written={role: shown * tries for role, who in writers.items() if who == "self"},
        trained={(0, kind): count for kind, count in trained.items()},
        group=config.attempts,
        parts=-(-config.wave // (config.shard or recipe.policy.batch)),
        waves=(n * config.epochs + again) / config.wave,
    )  # fmt: skip


def at_most(recipe: Recipe, n: int) -> tuple[dict[Tier, float], float]:
    """Returns problems shown to each critic, and tries at each, where nothing is ever right.

    The bucket list only grows, and a round of mastery takes one off it.
    """
    config = recipe.r3
    advanced = 0
    if every := config.bucket_every:
        passes = -(-n // every)  # an epoch
        visits = min(config.bucket_visits or passes, passes)
        advanced = sum(min(every, n - k * every) * min(visits, passes - k) for k in range(passes))
        advanced += (config.epochs - 1) * visits * n
    if config.until_mastered:
        advanced += sum(range(n, max(0, n - MAX_MASTERY_ROUNDS), -1)) + n
    tries = config.rewrites * max(1, config.verifications)
    return {"basic": n * config.epochs, "advanced": advanced}, tries


def expected(recipe: Recipe, n: int, shares: Shares) -> tuple[dict[Tier, float], float]:
    """Returns the same where shares of everything are wrong, and what is unsolved listed once."""
    config, fails = recipe.r3, shares.fails(recipe.r3.verify_samples, recipe.r3.verify_pass)
    lost = shares.helped**config.rewrites  # a cycle without a winner
    tries = sum(shares.helped**i for i in range(config.rewrites))
    cycles = 1 + (1 - lost) * sum(fails**i for i in range(1, config.verifications))
    unsolved = lost + (1 - lost) * (fails**config.verifications if config.verifications else 0)
    all_wrong = shares.wrong**config.attempts
    first = n * config.epochs * all_wrong
    again = first * unsolved * all_wrong if config.takes_up_bucket else 0.0
    return {"basic": first, "advanced": again}, tries * cycles


def practice(
    recipe: Recipe, tried: float, shown: float, shares: Shares
) -> tuple[float, dict[str, float]]:
    """Returns samples of verifications, and the examples of each kind that are trained on.

    tried: problems that are attempted, shown: of these, those that a critic sees.
    """
    config, sft, most = recipe.r3, recipe.train.sft, recipe.r3.verifications
    fails = shares.fails(config.verify_samples, config.verify_pass)
    wins = 1 - shares.helped**config.rewrites  # a cycle
    won = shown * wins
    failed = [won * fails**i for i in range(1, most + 1)]  # at each verification
    winners = won + wins * sum(failed[: most - 1] if most else [])
    verified = won - failed[-1] if most else 0.0
    imitated = verified * (config.sft_mode in (1, 3)) + sum(failed) * (sft.scale_failed > 0)
    imitated += verified * (config.sft_mode in (2, 3)) * (sft.scale_verified > 0)
    alone = shares.fails(config.attempts, 1)  # how often no attempt is right
    imitated += tried * (1 - alone) * config.sft_correct
    both = (min(k, config.attempts - k) * chance(config.attempts, k, shares.wrong)
            for k in range(config.attempts + 1))  # fmt: skip
    pairs = tried * sum(both) * (config.pairs != "rewrite")
    if config.pairs == "own":
        imitated += winners
    else:
        pairs += winners * (1 - shares.cut)
    checks = (won + sum(failed[:-1])) * config.verify_samples if most else 0.0
    return checks, {"preference": pairs, "sft": imitated}


# ---- which problems come next --------------------------------------------------------------------


@dataclass
class State:
    """The state that is committed with the adapter between two waves.

    bucket: problem id → its last winning rewrite, or None. queue: what is left of the pass over
    the bucket under way. since_bucket: problems since the last pass. visits: of this epoch, how
    many passes took a problem up. unsolved: problems in a row that a critic could not help to
    solve. first_correct: of this epoch.
    before: size of the bucket when the mastery round began; -1: no round under way. force: the
    round begins with forced SFT; forced: it began so.
    """

    epoch: int = 1
    cursor: int = 0
    wave: int = 0
    stage: str = "problems"
    bucket: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)
    since_bucket: int = 0
    visits: dict[str, int] = field(default_factory=dict)
    unsolved: int = 0
    first_correct: int = 0
    round: int = 0
    before: int = -1
    force: bool = False
    forced: bool = False
    last_winner: str | None = None

    def stuck(self, recipe: Recipe) -> bool:
        return 0 < recipe.r3.patience <= self.unsolved


def next_wave(state: State, problems: Sequence[str], recipe: Recipe) -> Wave | None:
    """Returns the wave that follows `state`, whose bookkeeping it moves on; None at the end.

    Epochs over all problems, with passes over the bucket list, then mastery rounds.
    """
    config, size = recipe.r3, recipe.r3.wave
    new_epoch = state.cursor == 0 and state.wave == 0
    if state.stage == "bucket" and state.stuck(recipe):
        state.queue = []  # stays on the list
    while not state.queue:
        ended = state.cursor >= len(problems)
        full = state.since_bucket >= config.bucket_every
        mastered = state.first_correct == len(problems) and not state.bucket
        if state.stage == "mastery":
            if not (config.until_mastered and begin_mastery_round(state)):
                return None
        elif config.bucket_every and state.since_bucket and (full or ended):
            most = config.bucket_visits or math.inf
            due = [pid for pid in state.bucket if state.visits.get(pid, 0) < most]
            state.stage, state.queue, state.since_bucket = "bucket", due, 0
        elif not ended:
            # A wave ends where a pass over the bucket is due.
            room = config.bucket_every - state.since_bucket if config.bucket_every else size
            order = list(problems)
            rng_for(recipe.seed, "order", state.epoch).shuffle(order)
            state.stage = "problems"
            state.queue = order[state.cursor : state.cursor + min(size, room)]
            state.cursor += len(state.queue)
            state.since_bucket += len(state.queue)
        elif mastered or state.epoch >= config.epochs or state.stuck(recipe):
            state.stage = "mastery"
        else:
            state.epoch, state.cursor, state.first_correct = state.epoch + 1, 0, 0
            state.visits.clear()
            new_epoch = True
    taken, state.queue = state.queue[:size], state.queue[size:]
    if state.stage == "bucket":
        state.visits |= {pid: state.visits.get(pid, 0) + 1 for pid in taken}
    tier = "basic" if state.stage == "problems" else "advanced"
    own = {"tier": tier, "force_sft": state.force}
    state.force = False
    return Wave(state.wave, state.epoch, state.stage, taken, new_epoch, own)


def begin_mastery_round(state: State) -> bool:
    """Queues the bucket, while it shrinks; a round without progress forces SFT, once."""
    stuck = state.before >= 0 and len(state.bucket) >= state.before
    if not state.bucket or state.round >= MAX_MASTERY_ROUNDS or (stuck and state.forced):
        return False
    state.force = state.forced = stuck
    state.round, state.before, state.queue = state.round + 1, len(state.bucket), list(state.bucket)
    return True


# ---- the method under way ------------------------------------------------------------------------


class R3:
    """Plays waves in a frame."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.recipe = frame, frame.recipe
        self.session, self.learning = frame.session, frame.learning
        self.state = State()
        self.tier: Literal["basic", "advanced"] = "basic"  # the critic of the wave
        self.workers: Workers | None = None  # None: lock-step
        self.verifications = 0  # of a problem of the wave, at most
        self.own: list[tuple[Trajectory, Turn, Turn]] = []  # pairs that wait for their training

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        return None if ending else next_wave(self.state, list(self.frame.problems), self.recipe)

    def progress(self) -> tuple[int, int]:
        n = len(self.frame.problems)
        return n * (self.state.epoch - 1) + self.state.cursor, n * self.recipe.r3.epochs

    def play(self, wave: Wave) -> Played:
        """Attempts, improves, trains and verifies; moves the bucket list on."""
        self.tier = wave.own["tier"]
        if wave.new_epoch:
            self.learning.begin_stage()
        if wave.own["force_sft"]:
            self.force_sft()
        trajectories, config = self.frame.trajectories(), self.recipe.r3
        asked: set[str] = {
            self.tier if who == "critic" else who for who in (config.feedback, config.rewriter)
        }
        asked |= {"judge"} if config.judge else set()
        asked = asked if config.rewrites else set()
        most = 1 if self.state.stuck(self.recipe) else config.verifications
        self.verifications = min(most, config.verifications)
        with self.session.workers(self.tier, asked) as self.workers:
            wrong = self.attempt(trajectories)
            self.improve(wrong, 0)
            unverified = [t for t in wrong if t.winner]
            for number in range(1, self.verifications + 1):
                unverified = self.verify(unverified, number)
                again = unverified if number < self.verifications else []
                self.improve(again, number)
        episodes = [self.episode(t) for t in trajectories]
        for trajectory, episode in zip(trajectories, episodes, strict=True):
            self.keep_bucket(trajectory, episode)
        return Played(episodes, {"bucket": len(self.state.bucket)})

    # ---- samples --------------------------------------------------------------------------------

    def attempt(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Draws the first samples; returns the trajectories that have no right one."""
        for part, samples in self.sample(trajectories, 0):
            for trajectory, drawn in zip(part, samples, strict=True):
                self.take(trajectory, [trajectory.add(turn) for turn in drawn], 1)
        if self.recipe.r3.sft_correct:
            right = ((t, t.solved) for t in trajectories)
            self.imitate(right, self.recipe.train.sft.scale_verified, "correct")
        return [t for t in trajectories if not t.solved]

    def verify(self, trajectories: list[Trajectory], number: int) -> list[Trajectory]:
        """Draws fresh samples of the updated policy; returns the trajectories that failed."""
        config, sft = self.recipe.r3, self.recipe.train.sft
        for part, samples in self.sample(trajectories, number):
            for trajectory, drawn in zip(part, samples, strict=True):
                parent = trajectory.winner.index if trajectory.winner else None
                turns = [trajectory.add(replace(turn, parent=parent)) for turn in drawn]
                self.take(trajectory, turns, config.verify_pass)
        done = [t for t in trajectories if t.solved]
        failed = [t for t in trajectories if not t.solved]
        if config.sft_mode in (1, 3):
            self.imitate(((t, t.winner) for t in done), 1.0, f"winner {number}")
        if config.sft_mode in (2, 3):
            self.imitate(((t, t.solved) for t in done), sft.scale_verified, f"verified {number}")
        self.imitate(((t, t.winner) for t in failed), sft.scale_failed, f"failed {number}")
        return failed

    def take(self, trajectory: Trajectory, turns: list[Turn], needed: int) -> None:
        """Solves a trajectory by so many right samples, or opens a cycle with a wrong one.

        Right samples and wrong ones, each text once, also make the policy's own pairs.
        """
        right = [turn for turn in turns if passed(turn)]
        wrong = [turn for turn in turns if turn not in right]
        whole = [turn for turn in wrong if held_against(turn, self.recipe.train)]
        if len(right) >= needed:
            trajectory.solved = right[0]
        else:
            trajectory.open(next(iter(whole), wrong[0]))
        if self.recipe.r3.pairs != "rewrite":
            pairs = zip(once(right), once(whole), strict=False)
            self.own += [(trajectory, chosen, rejected) for chosen, rejected in pairs]

    def sample(
        self, trajectories: list[Trajectory], number: int
    ) -> Iterator[tuple[list[Trajectory], list[list[Turn]]]]:
        """Yields parts with their samples. number: of the verification, 0 for attempts.

        Where there are workers, those of a part that are unsolved and may have another cycle go
        their own way from then on: critics look at one part while the next is drawn.
        """
        config = self.recipe.r3
        role: Literal["attempt", "verify"] = "verify" if number else "attempt"
        n = config.verify_samples if number else config.attempts
        told = (f"verification {number}, ", "problem") if number else ("", "attempt")
        policy = self.frame.rollouts.policy
        size = config.shard or self.recipe.policy.batch * policy.hosts.size
        if self.workers is None:
            size = max(1, len(trajectories))
        seed = self.frame.seed("sample", number)
        for begin in range(0, len(trajectories), size):
            part = trajectories[begin : begin + size]
            self.frame.status(f"{told[0]}{plural(len(part), told[1])}")
            yield part, self.frame.sample([t.problem for t in part], n, seed, role, begin * n)
            if self.workers and (not number or number < self.verifications):
                for trajectory in (t for t in part if not t.solved):
                    self.workers.start(self.rounds([trajectory], number))

    # ---- a cycle --------------------------------------------------------------------------------

    def improve(self, trajectories: list[Trajectory], cycle: int) -> None:
        """Critiques and rewrites until each has a winner or K tries; then trains on the winners,
        and on the policy's own pairs that wait for it."""
        if self.workers:
            self.workers.wait(self.frame.status)
        else:
            for _ in self.rounds(trajectories, cycle):
                pass
        winners = self.remember(trajectories)
        for trajectory in winners:
            trajectory.winner = trajectory.won
        pairs, self.own = self.own, []
        if self.recipe.r3.pairs == "own":
            self.imitate(((t, t.won) for t in winners), 1.0, f"rewrite {cycle}")
        else:
            held = ((t, t.won, t.opened) for t in winners if t.won and t.opened)
            pairs += [pair for pair in held if held_against(pair[2], self.recipe.train)]
        examples = [preference(self.episode(t), chosen, rejected) for t, chosen, rejected in pairs]
        self.frame.status(f"training on {plural(len(examples), 'pair')}")
        self.learning.prefer(examples, self.frame.seed("dpo", cycle))

    def rounds(self, trajectories: list[Trajectory], cycle: int) -> Iterator[None]:
        """Plays rounds: of all these in lock-step, or of one in a worker. Yields between calls."""
        unsolved = list(trajectories)
        for number in range(1, self.recipe.r3.rewrites + 1):
            if not unsolved:
                break
            if self.workers is None:
                self.frame.status(
                    f"critique and rewrite {number}, {plural(len(unsolved), 'problem')}"
                )
            yield from self.one_round(unsolved, cycle, number)
            unsolved = [t for t in unsolved if not t.won]
            if self.recipe.r3.feedback == "self":  # its next round sees the last winner
                self.remember(trajectories)

    def remember(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Returns a cycle's winners, those of its first round first; keeps the last one's text."""
        winners = sorted((t for t in trajectories if t.won), key=lambda t: t.tries)
        if winners and winners[-1].won:
            self.state.last_winner = winners[-1].won.text
        return winners

    def one_round(self, trajectories: list[Trajectory], cycle: int, number: int) -> Iterator[None]:
        """Adds a critique, then a graded rewrite, of each; none after one that failed."""
        config, wave = self.recipe.r3, self.frame.wave
        key = f"{wave.stage}/{wave.number}/{cycle}/{number}"
        critic = Try("self" if config.feedback == "self" else self.tier, wave.epoch, key)
        writer = Try("self" if config.rewriter == "self" else self.tier, wave.epoch, key)
        critiques = self.critique(trajectories, critic)
        yield
        both = zip(trajectories, critiques, strict=True)
        ready = [(trajectory, said) for trajectory, said in both if not said.error]
        rewrites = self.rewrite(ready, writer)
        verdicts: dict[int, tuple[Judgement | None, Turn]] = {}
        if config.judge:  # those that it does not call right fail
            yield
            shown = [i for i, turn in enumerate(rewrites) if passed(turn)]
            problems = [ready[i][0].problem for i in shown]
            texts = [rewrites[i] for i in shown]
            found = self.session.judge(problems, texts, replace(critic, tier="judge"))
            verdicts = dict(zip(shown, found, strict=True))
        for i, ((trajectory, _), turn) in enumerate(zip(ready, rewrites, strict=True)):
            judgement, verdict = verdicts.get(i, (None, None))
            turn = trajectory.add(unless_right(turn, judgement, verdict.actor) if verdict else turn)
            if verdict:
                trajectory.add(replace(verdict, parent=turn.index))
            trajectory.tries = number
            trajectory.current = turn if turn.error is None else trajectory.current
            trajectory.won = as_asked(turn, self.recipe.prompt.style) if passed(turn) else None
        yield

    def critique(self, trajectories: list[Trajectory], at: Try) -> list[Turn]:
        """Adds a critique of each current text. A policy that critiques sees the last winner."""
        example = self.state.last_winner if at.tier == "self" else None
        calls = [
            self.session.call("critique", t.problem, at, attempt=t.current.text,
                              found=found_wrong(t.current), example=example)
            for t in trajectories
            if t.current  # all have one
        ]  # fmt: skip
        turns = self.session.ask(calls, [t.current for t in trajectories], at)
        return [t.add(turn) for t, turn in zip(trajectories, turns, strict=True)]

    def rewrite(self, ready: list[tuple[Trajectory, Turn]], at: Try) -> list[Turn]:
        """Returns a graded rewrite of each current text, whose writer sees the critique."""
        calls = [
            self.session.call("rewrite", t.problem, at, attempt=t.current.text, feedback=said.text)
            for t, said in ready
            if t.current
        ]
        turns = self.session.ask(calls, [said for _, said in ready], at)
        graded = self.frame.rollouts.graded
        return [graded(t.problem, turn) for (t, _), turn in zip(ready, turns, strict=True)]

    # ---- training and records -------------------------------------------------------------------

    def imitate(
        self, chosen: Iterable[tuple[Trajectory, Turn | None]], scale: float, role: str
    ) -> None:
        examples = [completion(self.episode(t), turn) for t, turn in chosen if turn]
        self.learning.imitate(examples, scale, self.frame.seed(f"sft {role}", 0))

    def force_sft(self) -> None:
        """Trains by SFT on what a mastery round left over, each problem on its own winner."""
        examples = [
            Example(kind="sft", source={"problem": pid, "forced": True}, **winner)
            for pid, winner in self.state.bucket.items()
            if winner
        ]
        self.learning.imitate(examples, 1.0, self.frame.seed("sft forced", 0))

    def episode(self, trajectory: Trajectory) -> Episode:
        solved, turns = trajectory.solved, trajectory.turns
        opened, imitated = trajectory.opened, self.recipe.r3.pairs == "own"
        held = opened and (imitated or held_against(opened, self.recipe.train))
        if trajectory.winner and held and not self.recipe.r3.verifications:
            outcome = outcome_of(solved, [], "trained")
        else:
            outcome = outcome_of(solved, [t for t in turns if t.role == "critique"], "bucket")
        return self.frame.episode(trajectory.problem, turns, replace(outcome, tier=self.tier))

    def keep_bucket(self, trajectory: Trajectory, episode: Episode) -> None:
        """Moves the bucket list on; a problem keeps the last winner it ever had."""
        bucket, pid = self.state.bucket, trajectory.problem.id
        if self.frame.wave.stage == "problems":
            self.state.first_correct += episode.outcome.first_correct
        left = episode.outcome.status in ("bucket", "failed")
        if any(turn.role == "critique" for turn in trajectory.turns):
            self.state.unsolved = self.state.unsolved + 1 if left else 0
        if not left:
            bucket.pop(pid, None)
        elif trajectory.winner:
            won = completion(episode, trajectory.winner)
            kept = ("prompt", "completion", "completion_ids")
            bucket[pid] = {name: getattr(won, name) for name in kept}
        else:
            bucket.setdefault(pid, None)


def once(turns: Iterable[Turn]) -> list[Turn]:
    """Returns the first turn of each text."""
    found: dict[str, Turn] = {}
    for turn in turns:
        found.setdefault(turn.text, turn)
    return list(found.values())


METHOD = Method(
    name="r3",
    keys=R3Config,
    check=check,
    tiers=tiers,
    asks_itself=lambda recipe: (
        recipe.r3.rewrites > 0 and "self" in (recipe.r3.feedback, recipe.r3.rewriter)
    ),
    plan=plan,
    start=R3,
    escalates=True,
)
