"""R³: Reflect, Rewrite, Repeat (EACL 2026), in waves.

For a wave of problems, in lock-step: attempt; grade; for what is wrong up to K rounds of critique
and rewrite; DPO on (winning rewrite ≻ the sample that opened its cycle); up to V verifications,
each a fresh sample of the updated policy. A pass ends in SFT and "solved"; a failure in SFT on the
last winner at a small learning rate and, while verifications are left, another cycle with the
failed sample as the rejected one. What stays unsolved goes to the bucket list, which the advanced
critic takes up after every `bucket_every` problems. `wave = 1` is the paper's sequential order.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mlxreflect import pairs
from mlxreflect.critics.base import Critic
from mlxreflect.policy import Policy
from mlxreflect.recipe import Recipe
from mlxreflect.records import Episode, Example, Outcome, Problem, Turn, Verdict
from mlxreflect.strategies.attempts import Attempts
from mlxreflect.strategies.exchange import Exchange, Round
from mlxreflect.strategies.figures import count_wave
from mlxreflect.strategies.learning import Learning
from mlxreflect.strategies.waves import State, Wave, next_wave
from mlxreflect.tasks.base import Task
from mlxreflect.train.steps import Step
from mlxreflect.train.trainer import Trainer


@dataclass(frozen=True)
class Played:
    """What a wave leaves behind: records and figures, to be committed together."""

    episodes: list[Episode]
    examples: list[Example]
    steps: list[Step]
    figures: dict[str, Any]


@dataclass(eq=False)
class Story:
    """An episode in the making.

    opened: the sample that opened the present cycle. current: the text to improve, that sample or
    the last rewrite of it. winner: the last rewrite that passed. solved: the turn that solved it.
    """

    problem: Problem
    turns: list[Turn] = field(default_factory=list)
    opened: Turn | None = None
    current: Turn | None = None
    winner: Turn | None = None
    solved: Turn | None = None

    def add(self, turn: Turn) -> Turn:
        turn = replace(turn, index=len(self.turns))
        self.turns.append(turn)
        return turn

    def open(self, turn: Turn) -> None:
        self.opened = self.current = turn


class R3:
    """Plays waves. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        policy: Policy,
        trainer: Trainer,
        critics: dict[str, Critic],
        problems: dict[str, Problem],
    ) -> None:
        self.recipe, self.problems, self.policy = recipe, problems, policy
        self.attempts = Attempts(recipe, task, policy)
        self.exchange = Exchange(recipe, task, critics)
        self.learning = Learning(recipe, policy, trainer)
        self.state = State()
        self.wave = Wave(0, 1, "problems", "basic", [])
        self.status: Callable[[str], None] = lambda text: None

    def next_wave(self) -> Wave | None:
        return next_wave(self.state, list(self.problems), self.recipe)

    # ---- one wave -------------------------------------------------------------------------------

    def play(self, wave: Wave) -> Played:
        """Attempt, improve, train, verify; moves the bucket list on."""
        self.wave = wave
        self.exchange.counts.clear()
        self.learning.begin_wave()
        if wave.new_epoch:
            self.learning.begin_stage()
        if wave.force_sft:
            self.force_sft()
        generated = self.policy.tokens_generated
        stories = [Story(self.problems[pid]) for pid in wave.problems]
        self.attempt(stories)
        wrong = [s for s in stories if s.solved is None]
        self.improve(wrong, 0)
        unverified = [s for s in wrong if s.winner]
        for number in range(1, self.recipe.r3.verifications + 1):
            unverified = self.verify(unverified, number)
            if number < self.recipe.r3.verifications:
                self.improve(unverified, number)
        episodes = [self.episode(story) for story in stories]
        self.keep_bucket(stories, episodes)
        self.state.wave += 1
        figures = {
            **asdict(wave),
            **count_wave(episodes),
            "bucket": len(self.state.bucket),
            "pairs": sum(e.kind == "preference" for e in self.learning.examples),
            "dropped": dict(self.learning.dropped),
            "critic": dict(self.exchange.counts),
            "tokens_generated": self.policy.tokens_generated - generated,
            "tokens_trained": sum(step.tokens for step in self.learning.steps),
        }
        return Played(episodes, self.learning.examples, self.learning.steps, figures)

    def attempt(self, stories: list[Story]) -> None:
        self.status(f"{len(stories)} attempts")
        drawn = self.sample(stories, "attempt", 0, 1)
        for story, (turn,) in zip(stories, drawn, strict=True):
            story.open(story.add(turn))
            if passed(turn):
                story.solved = story.opened
        if self.recipe.r3.sft_correct:
            right = ((s, s.solved) for s in stories)
            self.imitate(right, self.recipe.train.sft.scale_verified, "correct")

    def improve(self, stories: list[Story], cycle: int) -> None:
        """Critique and rewrite in lock-step until each has a winner or K tries; then DPO."""
        unsolved, winners = list(stories), list[Story]()
        for number in range(1, self.recipe.r3.rewrites + 1):
            if not unsolved:
                break
            self.status(f"critique and rewrite {number} of {len(unsolved)}")
            for story, turn in self.critique_and_rewrite(unsolved, cycle, number):
                if turn.error is None:
                    story.current = turn
                if passed(turn):
                    story.winner, self.state.last_winner = turn, turn.text
                    winners.append(story)
            unsolved = [s for s in unsolved if s not in set(winners)]
        examples = [
            pairs.preference(self.episode(s), s.winner, s.opened)
            for s in winners
            if s.winner and s.opened
        ]
        self.status(f"training on {len(examples)} pairs")
        self.learning.prefer(examples, self.seed("dpo", cycle))

    def critique_and_rewrite(
        self, stories: list[Story], cycle: int, number: int
    ) -> list[tuple[Story, Turn]]:
        """One critique, then one graded rewrite, of each story's current text.

        A story whose critique failed gets no rewrite: what failed is no feedback.
        """
        config = self.recipe.r3
        attempt = f"{self.wave.stage}/{self.wave.number}/{cycle}/{number}"
        critic = Round(
            "self" if config.feedback == "self" else self.wave.tier, self.wave.epoch, attempt
        )
        writer = replace(critic, tier="self" if config.rewriter == "self" else self.wave.tier)
        texts = [s.current for s in stories if s.current]  # every story has one
        critiques = self.exchange.critique(
            [s.problem for s in stories],
            texts,
            critic,
            self.state.last_winner if config.feedback == "self" else None,
        )
        ready = [
            (story, text, story.add(critique))
            for story, text, critique in zip(stories, texts, critiques, strict=True)
        ]
        ready = [one for one in ready if one[2].error is None]
        rewrites = self.exchange.rewrite(
            [s.problem for s, _, _ in ready],
            [text for _, text, _ in ready],
            [critique for _, _, critique in ready],
            writer,
        )
        return [
            (story, story.add(turn if turn.error else self.attempts.graded(story.problem, turn)))
            for (story, _, _), turn in zip(ready, rewrites, strict=True)
        ]

    def verify(self, stories: list[Story], number: int) -> list[Story]:
        """Fresh samples of the updated policy; returns the stories that failed."""
        if not stories:
            return []
        self.status(f"verification {number} of {len(stories)}")
        config, sft = self.recipe.r3, self.recipe.train.sft
        failed = []
        drawn = self.sample(stories, "verify", number, config.verify_samples)
        for story, samples in zip(stories, drawn, strict=True):
            turns = [story.add(replace(turn, parent=index(story.winner))) for turn in samples]
            right = [turn for turn in turns if passed(turn)]
            if len(right) >= config.verify_pass:
                story.solved = right[0]
            else:
                story.open(next(turn for turn in turns if turn not in right))
                failed.append(story)
        done = [s for s in stories if s.solved]
        if config.sft_mode in (1, 3):
            self.imitate(((s, s.winner) for s in done), 1.0, f"winner {number}")
        if config.sft_mode in (2, 3):
            verified = ((s, s.solved) for s in done)
            self.imitate(verified, sft.scale_verified, f"verified {number}")
        self.imitate(((s, s.winner) for s in failed), sft.scale_failed, f"failed {number}")
        return failed

    def sample(
        self, stories: list[Story], role: Literal["attempt", "verify"], number: int, n: int
    ) -> list[list[Turn]]:
        problems, seed = [s.problem for s in stories], self.seed("sample", number)
        return self.attempts.sample(problems, role, n, seed, self.learning.actor)

    def imitate(self, chosen: Iterable[tuple[Story, Turn | None]], scale: float, role: str) -> None:
        examples = [pairs.completion(self.episode(s), turn) for s, turn in chosen if turn]
        self.learning.imitate(examples, scale, self.seed(f"sft {role}", 0))

    def force_sft(self) -> None:
        """A mastery round without progress: SFT on what is left, each on its own winner."""
        examples = [
            Example(kind="sft", source={"problem": pid, "forced": True}, **winner)
            for pid, winner in self.state.bucket.items()
            if winner
        ]
        self.learning.imitate(examples, 1.0, self.seed("sft forced", 0))

    def seed(self, role: str, number: int) -> tuple[int | str, ...]:
        return (self.recipe.seed, self.wave.epoch, self.wave.number, role, number)

    # ---- records --------------------------------------------------------------------------------

    def episode(self, story: Story) -> Episode:
        return Episode(
            self.recipe.strategy,
            self.wave.epoch,
            self.wave.number,
            story.problem,
            list(story.turns),
            self.outcome(story),
        )

    def outcome(self, story: Story) -> Outcome:
        first = bool(story.turns) and passed(story.turns[0])
        critiques = [turn for turn in story.turns if turn.role == "critique"]
        if first:
            return Outcome(True, 0, "solved_first", self.wave.tier)
        if story.solved:
            return Outcome(False, story.solved.index, "solved", self.wave.tier)
        if story.winner and self.recipe.r3.verifications == 0:
            return Outcome(False, None, "trained", self.wave.tier)
        if critiques and all(turn.error for turn in critiques):
            return Outcome(False, None, "failed", self.wave.tier)
        return Outcome(False, None, "bucket", self.wave.tier)

    def keep_bucket(self, stories: list[Story], episodes: list[Episode]) -> None:
        """Move the bucket list on; a problem keeps the last winner it ever had."""
        bucket = self.state.bucket
        for story, episode in zip(stories, episodes, strict=True):
            pid = story.problem.id
            if self.wave.stage == "problems":
                self.state.first_correct += episode.outcome.first_correct
            if episode.outcome.status not in ("bucket", "failed"):
                bucket.pop(pid, None)
            elif story.winner:
                won = pairs.completion(episode, story.winner)
                bucket[pid] = {
                    "prompt": won.prompt,
                    "completion": won.completion,
                    "completion_ids": won.completion_ids,
                }
            else:
                bucket.setdefault(pid, None)


def passed(turn: Turn) -> bool:
    verdict: Verdict | None = turn.verdict
    return verdict is not None and verdict.passed


def index(turn: Turn | None) -> int | None:
    return turn.index if turn else None
