"""R³: Reflect, Rewrite, Repeat (EACL 2026), in waves.

For a wave of problems: attempt; grade; for what is wrong up to K rounds of critique and rewrite;
DPO on (winning rewrite ≻ the sample that opened its cycle); up to V verifications, each a fresh
sample of the updated policy. A pass ends in SFT and "solved"; a failure in SFT on the last winner
at a small learning rate and, while verifications are left, another cycle with the failed sample as
the rejected one. What stays unsolved goes to the bucket list, which the advanced critic takes up
after every `bucket_every` problems. `wave = 1` is the paper's sequential order.

The rounds go in lock-step where critiques are computed in this process. Where a critic is waited
for, each story has a chain of its own, and the policy goes on sampling meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Literal

from mlxreflect.core.records import Episode, Example, Turn
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.base import Hands, Played
from mlxreflect.methods.examples import passed
from mlxreflect.methods.figures import count_wave
from mlxreflect.methods.learning import Learning
from mlxreflect.methods.roles import Round
from mlxreflect.methods.rollouts import Attempts
from mlxreflect.methods.session import Exchange
from mlxreflect.methods.trajectories import Story, episode_of, index, keep_bucket
from mlxreflect.methods.waves import State, Wave, next_wave
from mlxreflect.methods.workers import Chains


class R3:
    """Plays waves. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(self, hands: Hands) -> None:
        recipe, task, policy, trainer, critics, problems = hands
        self.recipe, self.problems = recipe, problems
        self.attempts = Attempts(recipe, task, policy)
        self.exchange = Exchange(recipe, task, critics)
        self.learning = Learning(recipe, policy, trainer)
        self.state = State()
        self.wave = Wave(0, 1, "problems", "basic", [])
        self.chains: Chains | None = None  # None: lock-step
        self.status: Callable[[str], None] = lambda text: None

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        return None if ending else next_wave(self.state, list(self.problems), self.recipe)

    def progress(self) -> tuple[int, int]:
        state, n = self.state, len(self.problems)
        return n * (state.epoch - 1) + state.cursor, n * self.recipe.r3.epochs

    # ---- one wave -------------------------------------------------------------------------------

    def play(self, wave: Wave) -> Played:
        """Attempt, improve, train, verify; moves the bucket list on."""
        self.wave = wave
        self.exchange.begin_wave()
        self.learning.begin_wave()
        if wave.new_epoch:
            self.learning.begin_stage()
        if wave.force_sft:
            self.force_sft()
        stories = [Story(self.problems[pid]) for pid in wave.problems]
        with self.threads() as self.chains:
            wrong = self.attempt(stories)
            self.improve(wrong, 0)
            unverified = [s for s in wrong if s.winner]
            for number in range(1, self.recipe.r3.verifications + 1):
                unverified = self.verify(unverified, number)
                if number < self.recipe.r3.verifications:
                    self.improve(unverified, number)
        episodes = [self.episode(story) for story in stories]
        for story, episode in zip(stories, episodes, strict=True):
            keep_bucket(self.state, wave, story, episode)
        self.state.wave += 1
        figures = {
            **asdict(wave),
            **count_wave(episodes),
            "bucket": len(self.state.bucket),
            **self.learning.figures(),
            "critic": dict(self.exchange.counts),
        }
        return Played(episodes, self.learning.examples, self.learning.steps, figures)

    def threads(self) -> AbstractContextManager[Chains | None]:
        """Chains where every critic of the wave is waited for, else none."""
        if not all(self.exchange.critics[tier].waits for tier in self.tiers()):
            return nullcontext()
        return Chains(self.recipe.critic.tier(self.wave.tier).concurrency)

    def tiers(self) -> set[str]:
        """The critics that take part in the wave."""
        config, tier = self.recipe.r3, self.wave.tier
        taking: set[str] = {
            tier if who == "critic" else who for who in (config.feedback, config.rewriter)
        }
        return taking | {"judge"} if config.judge else taking

    def shards(self, stories: list[Story]) -> Iterator[tuple[int, list[Story]]]:
        """Parts whose samples are drawn together; the chains of one run while the next is drawn."""
        size = self.recipe.r3.shard or self.recipe.policy.batch
        if self.chains is None:
            size = max(1, len(stories))
        for shard, begin in enumerate(range(0, len(stories), size)):
            yield shard, stories[begin : begin + size]

    def attempt(self, stories: list[Story]) -> list[Story]:
        """The first samples, and chains for what is wrong, which is returned."""
        for shard, part in self.shards(stories):
            self.status(f"{len(part)} attempts")
            for story, (turn,) in zip(part, self.sample(part, "attempt", 0, 1, shard), strict=True):
                story.open(story.add(turn))
                if passed(turn):
                    story.solved = story.opened
            self.begin([s for s in part if not s.solved], 0)
        if self.recipe.r3.sft_correct:
            right = ((s, s.solved) for s in stories)
            self.imitate(right, self.recipe.train.sft.scale_verified, "correct")
        return [s for s in stories if not s.solved]

    # ---- a cycle --------------------------------------------------------------------------------

    def begin(self, stories: list[Story], cycle: int) -> None:
        """Let each of these go its own way from here on, where there are chains."""
        for story in stories:
            if self.chains:
                self.chains.start(self.rounds([story], cycle))

    def improve(self, stories: list[Story], cycle: int) -> None:
        """Critique and rewrite until each has a winner or K tries; then DPO on the winners."""
        if self.chains:
            self.chains.wait(self.status)
        else:
            for _ in self.rounds(stories, cycle):
                pass
        winners = self.remember(stories)
        for story in winners:
            story.winner = story.won
        examples = [
            pairs.preference(self.episode(s), s.won, s.opened)
            for s in winners
            if s.won and s.opened
        ]
        self.status(f"training on {len(examples)} pairs")
        self.learning.prefer(examples, self.seed("dpo", cycle))

    def rounds(self, stories: list[Story], cycle: int) -> Iterator[None]:
        """All of these in lock-step; a chain is this with one story. Yields between calls."""
        unsolved = list(stories)
        for number in range(1, self.recipe.r3.rewrites + 1):
            if not unsolved:
                break
            if self.chains is None:
                self.status(f"critique and rewrite {number}, {len(unsolved)} problems")
            yield from self.critique_and_rewrite(unsolved, cycle, number)
            unsolved = [s for s in unsolved if not s.won]
            if self.recipe.r3.feedback == "self":  # its next round sees the last winner
                self.remember(stories)

    def remember(self, stories: list[Story]) -> list[Story]:
        """The winners of a cycle, those of its first round first; the last one's text is kept."""
        winners = sorted((s for s in stories if s.won), key=lambda s: s.tries)
        if winners and winners[-1].won:
            self.state.last_winner = winners[-1].won.text
        return winners

    def critique_and_rewrite(self, stories: list[Story], cycle: int, number: int) -> Iterator[None]:
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
        yield
        rewrites = self.exchange.rewrite(
            [s.problem for s, _, _ in ready],
            [text for _, text, _ in ready],
            [critique for _, _, critique in ready],
            writer,
        )
        graded = [
            turn if turn.error else self.attempts.graded(story.problem, turn)
            for (story, _, _), turn in zip(ready, rewrites, strict=True)
        ]
        judged: list[tuple[Turn, Turn | None]] = [(turn, None) for turn in graded]
        if config.judge:
            yield
            judge = replace(critic, tier="judge")
            judged = self.exchange.judge([s.problem for s, _, _ in ready], graded, judge)
        for (story, _, _), (turn, judgement) in zip(ready, judged, strict=True):
            turn = story.add(turn)
            if judgement:
                story.add(replace(judgement, parent=turn.index))
            story.tries = number
            story.current = turn if turn.error is None else story.current
            style = self.recipe.prompt.style
            story.won = pairs.as_asked(turn, style) if passed(turn) else None
        yield

    # ---- verification ---------------------------------------------------------------------------

    def verify(self, stories: list[Story], number: int) -> list[Story]:
        """Fresh samples of the updated policy; returns the stories that failed.

        Where another cycle follows, the chains of those that failed begin here.
        """
        config, sft = self.recipe.r3, self.recipe.train.sft
        for shard, part in self.shards(stories):
            self.status(f"verification {number}, {len(part)} problems")
            drawn = self.sample(part, "verify", number, config.verify_samples, shard)
            for story, samples in zip(part, drawn, strict=True):
                turns = [story.add(replace(turn, parent=index(story.winner))) for turn in samples]
                right = [turn for turn in turns if passed(turn)]
                if len(right) >= config.verify_pass:
                    story.solved = right[0]
                else:
                    story.open(next(turn for turn in turns if turn not in right))
            if number < config.verifications:
                self.begin([s for s in part if not s.solved], number)
        done = [s for s in stories if s.solved]
        failed = [s for s in stories if not s.solved]
        if config.sft_mode in (1, 3):
            self.imitate(((s, s.winner) for s in done), 1.0, f"winner {number}")
        if config.sft_mode in (2, 3):
            verified = ((s, s.solved) for s in done)
            self.imitate(verified, sft.scale_verified, f"verified {number}")
        self.imitate(((s, s.winner) for s in failed), sft.scale_failed, f"failed {number}")
        return failed

    def sample(
        self,
        stories: list[Story],
        role: Literal["attempt", "verify"],
        number: int,
        n: int,
        shard: int,
    ) -> list[list[Turn]]:
        seed = self.seed("sample", number) + ((shard,) if shard else ())
        problems = [s.problem for s in stories]
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

    def episode(self, story: Story) -> Episode:
        return episode_of(story, self.wave, self.recipe)
