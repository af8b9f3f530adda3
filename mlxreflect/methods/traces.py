"""ThinkingTraces: SFT on traces that were filtered for quality, then rounds of GRPO, in waves.

Warm-up: n traces of a problem are sampled and graded; those that are right get marks for depth,
coherence, verification and completeness, by a critic or by rules; the best that pass the filter
are imitated. Rounds: a group of G fresh samples of each problem, from the policy as it is; each is
rewarded for its answer and its format, which need no critic; GRPO on the groups whose rewards
differ. The reference of the KL term is the policy as the round began. After the warm-up and after
each round but the last, whose policy is the trained one, the policy is evaluated as an arm.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from mlxreflect.core.records import Episode, Outcome, Turn
from mlxreflect.core.seeds import rng_for
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.base import Hands, Played
from mlxreflect.methods.examples import passed
from mlxreflect.methods.figures import count_wave
from mlxreflect.methods.learning import Learning
from mlxreflect.methods.quality import by_rules, written
from mlxreflect.methods.roles import Round
from mlxreflect.methods.rollouts import Attempts
from mlxreflect.methods.session import Exchange


@dataclass
class State:
    """epoch: 0 the warm-up, then the round. cursor: problems of it that are done."""

    epoch: int = 0
    cursor: int = 0
    wave: int = 0


@dataclass(frozen=True)
class Wave:
    """last: the warm-up or the round ends with it."""

    number: int
    epoch: int
    stage: str
    problems: list[str]
    new_epoch: bool
    last: bool


class Traces:
    """Plays waves. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(self, hands: Hands) -> None:
        recipe, task, policy, trainer, critics, problems = hands
        self.recipe, self.problems = recipe, problems
        self.attempts = Attempts(recipe, task, policy)
        self.exchange = Exchange(recipe, task, critics)
        self.learning = Learning(recipe, policy, trainer)
        self.state = State()
        self.status: Callable[[str], None] = lambda text: None

    def size(self, epoch: int) -> int:
        """Problems of the warm-up, or of a round."""
        config, n = self.recipe.traces, len(self.problems)
        if epoch == 0:
            return min(n, config.warm_up)
        return min(n, config.problems) if config.problems else n

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        if ending:
            return None
        state, config = self.state, self.recipe.traces
        if state.cursor >= self.size(state.epoch):
            if state.epoch >= config.rounds:
                return None
            state.epoch, state.cursor = state.epoch + 1, 0
        order = list(self.problems)
        rng_for(self.recipe.seed, "order", state.epoch).shuffle(order)
        size, begun = self.size(state.epoch), state.cursor
        state.cursor = min(size, begun + config.wave)
        return Wave(
            state.wave, state.epoch, "round" if state.epoch else "warm-up",
            order[begun : state.cursor], new_epoch=begun == 0, last=state.cursor == size,
        )  # fmt: skip

    def progress(self) -> tuple[int, int]:
        sizes = [self.size(epoch) for epoch in range(self.recipe.traces.rounds + 1)]
        return sum(sizes[: self.state.epoch]) + self.state.cursor, sum(sizes)

    # ---- one wave -------------------------------------------------------------------------------

    def play(self, wave: Wave) -> Played:
        """Sample, score or reward, train."""
        self.exchange.begin_wave()
        self.learning.begin_wave()
        if wave.new_epoch:
            self.learning.begin_stage()
        stage = self.round if wave.epoch else self.warm_up
        episodes, more = stage(wave)
        self.state.wave += 1
        figures = {
            **asdict(wave),
            **count_wave(episodes),
            **self.learning.figures(),
            **more,
            "critic": dict(self.exchange.counts),
        }
        steps = self.learning.steps
        return Played(episodes, self.learning.examples, steps, figures, self.arm(wave))

    def arm(self, wave: Wave) -> str:
        if not wave.last or wave.epoch == self.recipe.traces.rounds:
            return ""
        return f"round-{wave.epoch}" if wave.epoch else "warm-up"

    def warm_up(self, wave: Wave) -> tuple[list[Episode], dict[str, Any]]:
        """Traces, their marks, and SFT on those that pass the filter."""
        config = self.recipe.traces
        turns = self.sample(wave, config.samples)
        traces = sum(map(len, turns))
        right = [(i, turn) for i, drawn in enumerate(turns) for turn in right_once(drawn)]
        for (i, _), scored in zip(right, self.score(wave, right), strict=True):
            turns[i].append(replace(scored, index=len(turns[i])))
        episodes = self.episodes(wave, turns)
        examples = [example for e in episodes for example in pairs.traces_kept(e, config)]
        self.status(f"training on {len(examples)} traces")
        self.learning.imitate(examples, 1.0, self.seed(wave, "sft"))
        told = f"{len(examples)} of {traces} traces kept"
        counts = {"traces": traces, "right": len(right), "kept": len(examples)}
        return episodes, {**counts, "told": told}

    def score(self, wave: Wave, traces: list[tuple[int, Turn]]) -> list[Turn]:
        """A turn a trace with its marks, from the critic or by rules. traces: problem and trace."""
        if self.recipe.traces.scorer == "rules":
            return [scored_by_rules(turn) for _, turn in traces]
        self.status(f"marks of {len(traces)} traces")
        problems = [self.problems[wave.problems[i]] for i, _ in traces]
        at = Round("judge", wave.epoch, f"{wave.stage}/{wave.number}")
        return self.exchange.score(problems, [turn for _, turn in traces], at)

    def round(self, wave: Wave) -> tuple[list[Episode], dict[str, Any]]:
        """Groups, their rewards, and GRPO on those whose rewards differ."""
        config = self.recipe.traces
        drawn = self.sample(wave, config.group)
        episodes = self.episodes(wave, drawn)
        groups = [pairs.traces_group(episode, config) for episode in episodes]
        examples = [group for group in groups if group]
        self.status(f"training on {len(examples)} groups")
        self.learning.reinforce(examples, config.grpo, self.seed(wave, "grpo"))
        rewards = [pairs.reward(turn, config) for group in drawn for turn in group]
        flat = len(groups) - len(examples)
        told = f"mean reward {fmean(rewards):.2f}, {flat} of {len(groups)} groups all alike"
        return episodes, {"reward": fmean(rewards), "flat": flat, "told": told}

    def sample(self, wave: Wave, n: int) -> list[list[Turn]]:
        """n graded samples of each problem, numbered."""
        self.status(f"{n} samples of {len(wave.problems)} problems")
        problems = [self.problems[pid] for pid in wave.problems]
        seed = self.seed(wave, "sample")
        drawn = self.attempts.sample(problems, "attempt", n, seed, self.learning.actor)
        return [[replace(turn, index=i) for i, turn in enumerate(one)] for one in drawn]

    def seed(self, wave: Wave, role: str) -> tuple[int | str, ...]:
        return (self.recipe.seed, wave.epoch, wave.number, role, 0)

    def episodes(self, wave: Wave, turns: list[list[Turn]]) -> list[Episode]:
        return [
            Episode("traces", wave.epoch, wave.number, self.problems[pid], each, outcome_of(each))
            for pid, each in zip(wave.problems, turns, strict=True)
        ]


def right_once(traces: Sequence[Turn]) -> list[Turn]:
    """Those with a right answer, each text once: no filter lets others through."""
    right = {turn.text: turn for turn in reversed(traces) if turn.verdict and turn.verdict.correct}
    return [turn for turn in traces if right.get(turn.text) is turn]


def scored_by_rules(turn: Turn) -> Turn:
    """A turn with the marks that rules give a trace."""
    marks = written(by_rules(turn))
    return Turn(-1, turn.index, "score", "rules", [], marks, parsed=marks)


def outcome_of(turns: Sequence[Turn]) -> Outcome:
    """Of samples side by side: the first one, else another that passed."""
    won = next((turn for turn in turns if turn.role == "attempt" and passed(turn)), None)
    scores = [turn for turn in turns if turn.role == "score"]
    if won and won.index == 0:
        return Outcome(True, 0, "solved_first")
    if scores and all(turn.error for turn in scores):
        return Outcome(False, None, "failed")
    if won:
        return Outcome(False, won.index, "solved")
    return Outcome(False, None, "discarded")
