"""ThinkingTraces: SFT on traces filtered for quality, then rounds of GRPO or online DPO, in waves.

Warm-up: n traces of a problem are sampled and graded; those that are right get marks, by rules or a
critic; the best that pass the filter are imitated. Rounds: a group of G fresh samples of each
problem is rewarded for answers and format, which needs no critic; GRPO on the groups whose rewards
differ, or a preference loss of their best answer over their worst. The reference, of the KL term or
that loss, is the policy as the round began. After the warm-up and each round but the last, whose
policy is the trained one, the policy is evaluated as an arm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlxreflect.config.fields import (
    Count,
    Fraction,
    GrpoConfig,
    LocalFunction,
    Objective,
    Positive,
    Table,
    check_clipping,
    idle_keys,
    refuse_idle,
)
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Episode, Example, Outcome, Turn
from mlxreflect.methods.base import (
    Frame,
    Method,
    Plan,
    Played,
    Shares,
    Trajectory,
    Try,
    Wave,
    completion,
    cut_off,
    held_against,
    outcome_of,
    passed,
    preference,
    source,
)

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe, Tier, TrainConfig


Own = Mapping[int, float]  # rewards of a person's own function, by a turn's index


class TracesConfig(Table):
    """[traces]: SFT on filtered traces of the policy, then rounds of training on fresh groups."""

    wave: Positive = 16  # problems taken and committed together
    warm_up: Count = 0  # problems of the warm-up; 0: none, the rounds begin at once
    samples: Positive = 4  # traces of a problem in the warm-up
    scorer: Literal["rules", "critic"] = "rules"  # who marks a right trace
    filter: Literal["strict", "lenient"] = "strict"  # each mark, or their mean, and strict: format
    threshold: Fraction = 0.5  # what marks, from 0 to 1, must reach
    keep: Count = 1  # best traces of a problem; 0: all that pass
    rounds: Count = 3  # after the warm-up
    problems: Count = 0  # of a round; 0: all there are
    group: Annotated[int, Field(ge=2)] = 8  # samples of a problem in a round
    # of a round: GRPO, or a loss of the group's best answer over its worst (online DPO)
    objective: Literal["grpo", Objective] = "grpo"
    # how often a wave draws other problems in the place of groups whose rewards are all alike, as
    # DAPO's dynamic sampling does; 0: never
    redraws: Count = 0
    reward_answer: Annotated[float, Field(ge=0)] = 1.0  # what a right answer is worth
    reward_format: Annotated[float, Field(ge=0)] = 0.2  # what the right format is worth
    reward: LocalFunction = ""  # FILE.py:FUNCTION of your own, whose number is added to these
    reward_sha256: str = ""  # the digest of that file, as the run keeps it
    grpo: GrpoConfig = GrpoConfig()


OF_ROUNDS = ("problems", "group", "objective", "redraws", "reward_answer", "reward_format",
             "reward", "grpo")  # fmt: skip


def check(recipe: Recipe, path: Path) -> None:
    config = recipe.traces
    if not config.rounds and not config.warm_up:
        raise UserError(
            f"{path}: traces.rounds and traces.warm_up are both 0, nothing would be trained",
            "give one of them a number",
        )
    if config.rounds and not (config.reward_answer or config.reward_format or config.reward):
        raise UserError(
            f"{path}: traces.reward_answer and traces.reward_format are both 0: no reward",
            'give one of them a weight above 0, or set traces.reward = "mine.py:reward"',
        )
    if config.rounds and not recipe.policy.temperature:
        raise UserError(
            f"{path}: policy.temperature = 0: a group of samples that are all the same teaches "
            "nothing",
            "set policy.temperature, for example to 1.0, or traces.rounds = 0",
        )
    if config.objective == "grpo":
        usual = type(recipe.train)()
        of_pairs = dict.fromkeys([*idle_keys(type(usual), "grpo"), "smoothing"], "traces by GRPO")
        refuse_idle(recipe.train, usual, of_pairs, path, "train.")
    idle = (
        {} if config.objective == "grpo" else {"grpo": f"traces.objective = {config.objective!r}"}
    )
    if not config.rounds:
        idle = dict.fromkeys(OF_ROUNDS, "traces.rounds = 0")
    refuse_idle(config, TracesConfig(), idle, path, "traces.")
    check_clipping(config.grpo, path, "traces.grpo.")
    if tiers(recipe) and recipe.critic.tier("judge").provider == "solver":
        raise UserError(
            f'{path}: traces.scorer = "critic" needs a model, and the solver gives no marks',
            'set critic.provider, or traces.scorer = "rules"',
        )


def phases(recipe: Recipe) -> tuple[TrainConfig, ...]:
    """Returns the settings of training, with the loss of pairs where the rounds have one."""
    objective = recipe.traces.objective
    update = {} if objective == "grpo" else {"objective": objective}
    return (recipe.train.model_copy(update=update),)


def tiers(recipe: Recipe) -> list[Tier]:
    scored = recipe.traces.scorer == "critic" and recipe.traces.warm_up > 0
    return ["judge"] if scored else []


def plan(recipe: Recipe, n: int, shares: Shares) -> Plan:
    """Returns the calls; at most, all traces of the warm-up are right and asked about twice, and
    all groups are alike."""
    config, wrong = recipe.traces, shares.wrong
    warm = min(n, config.warm_up)
    in_round = min(n, config.problems) if config.problems else n
    alike = 1.0 if shares.most else wrong**config.group + (1 - wrong) ** config.group
    drawn = in_round * sum(alike**i for i in range(config.redraws + 1))
    attempts = warm * config.samples + config.rounds * round(drawn) * config.group
    side_by_side = min(n, config.wave) * config.samples
    right = warm * config.samples * (1 - wrong)
    kept = min(right, warm * (1 - wrong**config.samples) * config.keep) if config.keep else right
    kind = "group" if config.objective == "grpo" else "preference"
    calls: dict[tuple[Tier, str], float] = {}
    if config.scorer == "critic" and warm:
        share = 2.0 if shares.most else 1 - wrong
        calls["judge", "score"] = warm * config.samples * share
    return Plan(
        attempts, side_by_side, calls, ("score",) * bool(calls),
        trained={(0, "sft"): kept, (0, kind): config.rounds * drawn * (1 - alike)},
        group=config.group if config.rounds else config.samples,
        answers=max(0, config.rounds - (not warm)),  # after the warm-up and each round but the last
        waves=(warm + config.rounds * in_round) / config.wave,
    )  # fmt: skip


# ---- how good a trace is -------------------------------------------------------------------------

STEPS, WORDS = 3, 12  # a thought of so many steps and words is as deep as rules can tell
# Words of somebody who looks at his own work again.
CHECKS = ("check", "verif", "confirm", "wait", "actually", "let me see", "indeed", "makes sense",
          "substitut", "recompute", "mistake")  # fmt: skip
SENTENCE = re.compile(r"\n|(?<=[.!?;])\s")


@dataclass(frozen=True)
class Quality:
    """Marks from 0 to 1. Neither says whether the answer is right: that is the grader's.

    depth: worked out in steps. coherence: each follows from those before. verification: it looks at
    its own work again. completeness: it covers everything and ends in an answer.
    """

    depth: float
    coherence: float
    verification: float
    completeness: float

    @property
    def mean(self) -> float:
        return fmean(astuple(self))

    def written(self) -> str:
        """Returns the marks as a turn keeps them, in `parsed`."""
        return json.dumps({name: round(mark, 4) for name, mark in asdict(self).items()})


def by_rules(turn: Turn) -> Quality:
    """Marks a graded trace by its text, its format and the way it ended. Linear in its length."""
    start, end = turn.spans.get("think", [0, 0])
    thought = turn.text[start:end]
    steps = [" ".join(step.split()) for step in SENTENCE.split(thought) if step.strip()]
    lowered = thought.lower()
    whole = turn.verdict is not None and turn.verdict.format_ok
    return Quality(
        depth=(min(1, len(steps) / STEPS) + min(1, len(thought.split()) / WORDS)) / 2,
        coherence=len(set(steps)) / len(steps) if steps else 0.0,
        verification=float(any(word in lowered for word in CHECKS)),
        completeness=(whole + (turn.finish_reason != "length")) / 2,
    )


def fits(turn: Turn, quality: Quality | None, config: TracesConfig) -> bool:
    """Returns true for a trace that the filter lets through. One without marks never passes.

    strict: right in the format asked for, and no mark below the threshold. lenient: right, and the
    mean of its marks not below.
    """
    if quality is None or turn.verdict is None or not turn.verdict.correct:
        return False
    if config.filter == "strict":
        return turn.verdict.format_ok and min(astuple(quality)) >= config.threshold
    return quality.mean >= config.threshold


# ---- examples ------------------------------------------------------------------------------------


def best_traces(episode: Episode, config: TracesConfig) -> list[Example]:
    """Returns the best traces of the warm-up that pass the filter, each text once."""
    scores = [turn for turn in episode.turns if turn.role == "score" and turn.parsed is not None]
    marks = {turn.parent: Quality(**json.loads(turn.parsed or "")) for turn in scores}
    found: dict[str, tuple[float, Turn]] = {}
    for turn in episode.turns:
        quality = marks.get(turn.index)
        if turn.role == "attempt" and quality and fits(turn, quality, config):
            found.setdefault(turn.text, (quality.mean, turn))
    best = sorted(found.values(), key=lambda one: -one[0])[: config.keep or None]
    return [completion(episode, turn) for _, turn in best]


def group_of(
    episode: Episode, config: TracesConfig, train: TrainConfig, own: Own | None = None
) -> Example | None:
    """Returns the answers of a round with their rewards, or the best and the worst as a pair.

    None where the rewards are equal.

    What was cut off is left out of the loss, as DAPO has it, and of the mean that the others are
    compared with, unless train.cut keeps it: its reward is not known. Nor is that of
    a sample that has none in `own`, the rewards of a function of a person's own.
    """
    answers = (turn for turn in episode.turns if turn.role == "attempt")
    turns = [turn for turn in answers if held_against(turn, train)]
    turns = [turn for turn in turns if own is None or turn.index in own]
    rewards = [reward(turn, config, own) for turn in turns]
    if len(set(rewards)) < 2:
        return None
    if config.objective != "grpo":  # the first of each among equals
        best, worst = (turns[rewards.index(end)] for end in (max(rewards), min(rewards)))
        return preference(episode, best, worst)
    return Example(
        kind="group",
        prompt=episode.turns[0].messages,
        completions=[turn.text for turn in turns],
        completions_ids=[turn.token_ids or [] for turn in turns],
        rewards=rewards,
        source=source(episode, *turns),
    )


def reward(turn: Turn, config: TracesConfig, own: Own | None = None) -> float:
    """Returns what a sample is worth: its answer's weight, its format's, and its own reward."""
    worth = own.get(turn.index, 0.0) if own else 0.0
    if turn.verdict is None:
        return worth
    right, kept = turn.verdict.correct, turn.verdict.format_ok
    return config.reward_answer * right + config.reward_format * kept + worth


def count_rewards(worth: Sequence[float | None], flat: int, groups: int) -> dict[str, Any]:
    """Returns the figures of a round's wave, and them in words. worth: None where it is not known.

    flat: the groups that are all alike.
    """
    known = [one for one in worth if one is not None]
    mean, lost = fmean(known) if known else None, len(worth) - len(known)
    said = "no rewards" if mean is None else f"mean reward {mean:.2f}"
    said += f" ({lost} samples have none)" if lost else ""
    figures = {"reward": mean, "flat": flat, **({"unrewarded": lost} if lost else {})}
    return {**figures, "told": f"{said}, {flat} of {groups} groups all alike"}


# ---- the method under way ------------------------------------------------------------------------


@dataclass
class State:
    """epoch: 0 the warm-up, then the round. cursor: problems of it that are done.

    redrawn: problems of the round that were drawn in the place of others.
    """

    epoch: int = 0
    cursor: int = 0
    wave: int = 0
    redrawn: int = 0


class Traces:
    """Plays waves in a frame."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.config = frame, frame.recipe.traces
        self.learning = frame.learning
        self.learning.use(*phases(frame.recipe))
        self.state = State()

    def size(self, epoch: int) -> int:
        """Returns the number of problems in the warm-up, or in a round."""
        n = len(self.frame.problems)
        if epoch == 0:
            return min(n, self.config.warm_up)
        return min(n, self.config.problems) if self.config.problems else n

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        state, config = self.state, self.config
        if ending:
            return None
        if state.cursor >= self.size(state.epoch):
            if state.epoch >= config.rounds:
                return None
            state.epoch, state.cursor, state.redrawn = state.epoch + 1, 0, 0
        size, begun = self.size(state.epoch), state.cursor
        state.cursor = min(size, begun + config.wave)
        return Wave(
            state.wave, state.epoch, "round" if state.epoch else "warm-up",
            self.frame.order(state.epoch)[begun : state.cursor],
            new_epoch=begun == 0, own={"last": state.cursor == size},
        )  # fmt: skip

    def progress(self) -> tuple[int, int]:
        sizes = [self.size(epoch) for epoch in range(self.config.rounds + 1)]
        return sum(sizes[: self.state.epoch]) + self.state.cursor, sum(sizes)

    def play(self, wave: Wave) -> Played:
        """Samples, scores or rewards, and trains."""
        if wave.new_epoch:
            self.learning.begin_stage()
        played = self.round(wave) if wave.epoch else self.warm_up(wave)
        return replace(played, arm=self.arm(wave))

    def arm(self, wave: Wave) -> str:
        """Returns the arm as which the policy is evaluated after a wave, or ""."""
        if not wave.own["last"] or wave.epoch == self.config.rounds:
            return ""
        return f"round-{wave.epoch}" if wave.epoch else "warm-up"

    def warm_up(self, wave: Wave) -> Played:
        """Plays traces, their marks, and SFT on those that pass the filter."""
        drawn = self.sample(wave.problems, self.config.samples)
        traces = sum(len(one.turns) for one in drawn)
        right = [(one, turn) for one in drawn for turn in right_once(one.turns)]
        self.score(wave, right)
        episodes = self.episodes(drawn)
        examples = [example for e in episodes for example in best_traces(e, self.config)]
        self.frame.status(f"training on {len(examples)} traces")
        self.learning.imitate(examples, 1.0, self.frame.seed("sft", 0))
        counts = {"traces": traces, "right": len(right), "kept": len(examples)}
        return Played(episodes, {**counts, "told": f"{len(examples)} of {traces} traces kept"})

    def score(self, wave: Wave, traces: list[tuple[Trajectory, Turn]]) -> None:
        """Adds a turn with the marks of each trace, by the critic or by rules."""
        if self.config.scorer == "rules":
            for one, turn in traces:
                marks = by_rules(turn).written()
                one.add(Turn(-1, turn.index, "score", "rules", [], marks, parsed=marks))
            return
        self.frame.status(f"marks of {len(traces)} traces")
        session, at = self.frame.session, Try("judge", wave.epoch, f"{wave.stage}/{wave.number}")
        # Its number tells a trace's call from those of the problem's others.
        keys = [replace(at, attempt=f"{at.attempt}/{turn.index}") for _, turn in traces]
        calls = [
            session.call("score", one.problem, key, attempt=turn.text)
            for (one, turn), key in zip(traces, keys, strict=True)
        ]
        replies = session.structured(calls, [turn for _, turn in traces], at)
        for (one, _), (given, turn) in zip(traces, replies, strict=True):
            parsed = None  # no marks stay none, and never pass
            if given:
                of_five = given.depth, given.coherence, given.verification, given.completeness
                parsed = Quality(*((mark - 1) / 4 for mark in of_five)).written()
            one.add(replace(turn, parsed=parsed))

    def round(self, wave: Wave) -> Played:
        """Plays groups, their rewards, and trains on those whose rewards differ."""
        episodes, examples = list[Episode](), list[Example]()
        worth: list[float | None] = []  # of each sample; None: its own reward failed
        problems = wave.problems
        for number in range(self.config.redraws + 1):
            if number:  # in the place of groups that are all alike
                problems = self.others(len(wave.problems) - len(examples), episodes)
            if not problems:
                break
            drawn = self.episodes(self.sample(problems, self.config.group, number))
            episodes += drawn
            owns = [self.own_rewards(one) for one in drawn]
            train, pairs = self.frame.recipe.train, list(zip(drawn, owns, strict=True))
            groups = (group_of(one, self.config, train, own) for one, own in pairs)
            worth += [
                reward(turn, self.config, own) if own is None or turn.index in own else None
                for one, own in pairs for turn in one.turns
            ]  # fmt: skip
            examples += [group for group in groups if group]
        self.frame.status(f"training on {len(examples)} groups")
        if self.config.objective == "grpo":
            self.learning.reinforce(examples, self.config.grpo, self.frame.seed("grpo", 0))
        else:
            self.learning.prefer(examples, self.frame.seed("dpo", 0))
        flat = len(episodes) - len(examples)
        return Played(episodes, count_rewards(worth, flat, len(episodes)))

    def own_rewards(self, episode: Episode) -> Own | None:
        """Returns what the function of a person's own gives each sample; None without one."""
        from mlxreflect.graders.own import described, open_own

        config = self.config
        if not config.reward:
            return None
        function = open_own(config.reward, config.reward_sha256, "reward")
        problem = described(episode.problem, self.frame.task.show(episode.problem))
        replies = {turn.index: function.call(problem, turn.text) for turn in episode.turns}
        return {index: reply["value"] for index, reply in replies.items() if not reply["fault"]}

    def others(self, n: int, drawn: list[Episode]) -> list[str]:
        """Returns n problems that the wave has not drawn, or as many as there are.

        Those that are none of the round's come first, then those that it has yet to draw.
        """
        had, state = {one.problem.id for one in drawn}, self.state
        order, own = self.frame.order(state.epoch), self.size(state.epoch)
        fresh = order[own + state.redrawn :] + order[state.cursor : own]
        found = [pid for pid in dict.fromkeys(fresh + order) if pid not in had][:n]
        state.redrawn += len(found)
        return found

    def sample(self, problems: Sequence[str], n: int, number: int = 0) -> list[Trajectory]:
        """Returns a trajectory of n graded samples for each problem. number: of the drawing."""
        self.frame.status(f"{n} samples of {len(problems)} problems")
        found = [Trajectory(self.frame.problems[pid]) for pid in problems]
        seed = self.frame.seed("sample", number)
        drawn = self.frame.sample([t.problem for t in found], n, seed)
        for one, turns in zip(found, drawn, strict=True):
            for turn in turns:
                one.add(turn)
        return found

    def episodes(self, played: list[Trajectory]) -> list[Episode]:
        episode = self.frame.episode
        return [episode(one.problem, one.turns, samples_outcome(one.turns)) for one in played]


def right_once(traces: Sequence[Turn]) -> list[Turn]:
    """Returns those with a right answer, each text once: no filter lets others through.

    What was cut off is none of them, right or not: it must not be imitated.
    """
    whole = [turn for turn in traces if not cut_off(turn)]
    right = {turn.text: turn for turn in reversed(whole) if turn.verdict and turn.verdict.correct}
    return [turn for turn in traces if right.get(turn.text) is turn]


def samples_outcome(turns: Sequence[Turn]) -> Outcome:
    """Returns the outcome of samples side by side: the first one's, else another's that passed."""
    won = next((turn for turn in turns if turn.role == "attempt" and passed(turn)), None)
    scores = [turn for turn in turns if turn.role == "score"]
    lost = bool(scores) and all(turn.error for turn in scores)
    return outcome_of(None if won and won.index and lost else won, scores)


METHOD = Method(
    name="traces",
    keys=TracesConfig,
    check=check,
    tiers=tiers,
    plan=plan,
    start=Traces,
    phases=phases,
    words={"solved": "right in a later sample"},
    unsolvable="asks for marks, and the solver gives none",
    alone="marks by rules",
)
