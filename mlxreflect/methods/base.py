"""A method: a light record of plain functions, and the frame that plays its waves.

A method's file is light to import: `config.schema` names all of them, and `--help` loads those.
The heavy parts (samples, critics, training) are made by the frame and handed to `Method.start`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args, get_type_hints

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Episode, Example, Messages, Outcome, Problem, Turn, Verdict
from mlxreflect.core.seeds import rng_for
from mlxreflect.core.ui import plural
from mlxreflect.prompts.parsing import ANSWER

if TYPE_CHECKING:
    from mlxreflect.config.fields import Table
    from mlxreflect.config.schema import CriticConfig, EvalSpec, Recipe, Tier, TrainConfig
    from mlxreflect.core.ui import Ui
    from mlxreflect.critics.base import Critic
    from mlxreflect.critics.embeddings import Embedder
    from mlxreflect.critics.verdicts import Judgement
    from mlxreflect.models.policy import Policy
    from mlxreflect.tasks.base import Task
    from mlxreflect.train.network import Arrays
    from mlxreflect.train.trainer import Step, Trainer

Seed = tuple[int | str, ...]
LEAK_FILTER = "leak filter"  # the source of its verdicts
SAMPLED = ("attempt", "verify", "retry")  # roles of the policy's own answers
STATUSES: tuple[str, ...] = get_args(get_type_hints(Outcome)["status"])
WORDS = {
    "solved_first": "right at the first try",
    "solved": "right later",
    "trained": "trained on, not verified",
    "bucket": "on the bucket list",
    "discarded": "not solved",
    "failed": "no call to the critic got through",
}


# ---- what a method is ----------------------------------------------------------------------------


class Shares(NamedTuple):
    """Shares that a plan assumes. All wrong: it is of the most that can be asked.

    wrong: of the policy's samples. helped: of texts written with help, those that are wrong. cut:
    of wrong samples, those that nothing is learned from, for they were cut off.
    """

    wrong: float
    helped: float
    cut: float = 0.0

    @property
    def most(self) -> bool:
        return self.wrong == self.helped == 1

    def fails(self, samples: int, needed: int) -> float:
        """Returns how often fewer than `needed` of so many samples are right."""
        return sum(chance(samples, right, 1 - self.wrong) for right in range(needed))


AT_MOST = Shares(1.0, 1.0)
LIKELY = Shares(0.5, 0.5)  # where nothing is known


def chance(n: int, k: int, p: float) -> float:
    """Returns the probability of k among n, each with p."""
    return comb(n, k) * p**k * (1 - p) ** (n - k)


@dataclass(frozen=True)
class Plan:
    """Calls of each kind that a run makes of its critics, and what its policy does.

    attempts: first samples of the policy. side_by_side: problems at a time. calls: by critic and
    role. roles: of all prompts, also those that the policy answers itself. quoted: for a role, the
    characters of other texts (passages) that its prompt quotes at most. embedded: how many texts
    are embedded at a time, each time; of them `longest` characters at most.
    samples: of the policy besides: verifications, retries, problems taken up again. written: texts
    of a role that the policy writes in a critic's place. trained: examples, by the number of their
    phase and their kind. group: attempts at a problem, side by side. parts: of a wave's attempts;
    critics that are waited for look at one while the next is drawn. answers: that the policy gives
    to each question of the headline beside those of base and trained. waves: of problems, in all.
    """

    attempts: int
    side_by_side: int
    calls: dict[tuple[Tier, str], float]
    roles: tuple[str, ...]
    quoted: Mapping[str, int] = field(default_factory=dict)
    embedded: Sequence[int] = ()
    longest: int = 0
    samples: float = 0.0
    written: Mapping[str, float] = field(default_factory=dict)
    trained: Mapping[tuple[int, str], float] = field(default_factory=dict)
    group: int = 1
    parts: int = 1
    answers: float = 0.0
    waves: float = 1.0


class Note(NamedTuple):
    """A line about a recipe's own data. fine: false where a person had better look at it."""

    text: str
    fine: bool = True


Rows = Iterator[tuple[str, dict[str, Any]]]  # file and row


class ExportForm(NamedTuple):
    """A form that `export` writes: rows of an episode and the examples that were made of it.

    needs: what a run must hold for it. loose: the row of an example that no episode has.
    """

    rows: Callable[[Episode, Sequence[Example]], Rows]
    needs: str
    loose: Callable[[Example], Rows] | None = None


class SecondAnswers(Protocol):
    """An evaluation of base and trained beside the run's own."""

    def measure(self, arm: str, adapter: str, reflector: Arrays | None = None) -> None:
        """Evaluates the policy as it is. reflector: what it reflects with, if not that."""

    def results(self) -> dict[str, Any]:
        """Returns the figures of both arms, written beside the summary."""
        ...


Exam = tuple["Policy", "Task", Sequence[Problem]]


@dataclass(frozen=True)
class Method:
    """One method. Every function is pure but `start` and `second`."""

    name: str
    keys: type[Table]  # its table of the recipe
    tiers: Callable[[Recipe], list[Tier]]  # the critics that a run asks
    plan: Callable[[Recipe, int, Shares], Plan]  # of so many problems
    start: Callable[[Frame], Running]
    # Both raise UserError: for keys that contradict each other, for an evaluation that cannot be.
    check: Callable[[Recipe, Path], None] = lambda recipe, path: None
    check_evaluation: Callable[[Recipe, EvalSpec], None] = lambda recipe, spec: None
    # True where the policy writes what a critic would write otherwise.
    asks_itself: Callable[[Recipe], bool] = lambda recipe: False
    # The embedding model that looks texts up, with its provider's settings; None: none does.
    embedder: Callable[[Recipe], CriticConfig | None] = lambda recipe: None
    # The settings of each phase of training.
    phases: Callable[[Recipe], tuple[TrainConfig, ...]] = lambda recipe: (recipe.train,)
    compares: Callable[[Recipe], bool] = lambda recipe: True  # trains on preference pairs
    wording: str = ""  # of attempts, where it is not that of the style
    words: Mapping[str, str] = field(default_factory=dict)  # of statuses, where they are its own
    solved: str = "solved"  # a wave's problems that are; "" where they are those right at once
    escalates: bool = False  # problems change critics
    unsolvable: str = ""  # why a task's solver cannot be its critic
    alone: str = ""  # a remark on doing without a critic
    # Where it learns from; None for the task's own problems.
    sources: Callable[[Recipe], list[Problem] | None] = lambda recipe: None
    # Its sources as prompts show them.
    questions: Callable[[Recipe, list[Problem]], list[Problem]] = lambda recipe, sources: sources
    # About its own data, which without problems are only read.
    notes: Callable[[Recipe, list[Problem]], list[Note]] = lambda recipe, problems: []
    # Of roles that the policy alone plays, for the dry run.
    prompts: Callable[[Recipe, Task, Problem], dict[str, Messages]] = lambda recipe, task, one: {}
    exports: Mapping[str, ExportForm] = field(default_factory=dict)
    # An evaluation of base and trained beside the run's own.
    second: Callable[[Recipe, Path, Exam, EvalSpec, Ui], SecondAnswers | None] = (
        lambda recipe, out, exam, spec, ui: None
    )

    def critic_names(self, recipe: Recipe) -> str:
        """Returns who is asked while a run learns: critics, the policy itself, or none.

        A critic is provider and model, with its tiers where more than one critic is asked; an
        embedding model is one more.
        """
        found: dict[str, list[str]] = {}
        for tier in self.tiers(recipe):
            config = recipe.critic.tier(tier)
            found.setdefault(f"{config.provider}:{config.model}".rstrip(":"), []).append(tier)
        if embeds := self.embedder(recipe):
            found.setdefault(f"{embeds.provider}:{embeds.model}", []).append("embedder")
        several = len(found) > 1
        names = [f"{n} ({', '.join(t)})" for n, t in found.items()] if several else list(found)
        return " and ".join([*names, *["the policy itself"] * self.asks_itself(recipe)]) or "none"


def status_words(statuses: Mapping[str, int], own: Mapping[str, str]) -> dict[str, str]:
    """Returns statuses in words, with their counts and what `--status` calls them.

    own: a method's words, where they are not the usual ones.
    """
    words = {**WORDS, **own}
    return {words.get(status, status): f"{n} ({status})" for status, n in statuses.items()}


def refuse_direct(recipe: Recipe, path: Path) -> None:
    """Raises UserError where answers alone are asked for and thoughts are taught."""
    if recipe.prompt.style == "direct":
        raise UserError(
            f"{path}: prompt.style = 'direct' asks for the answer alone, and {recipe.strategy} "
            "teaches thoughts that others wrote",
            "leave prompt.style out; eval.direct = true also asks for answers without a thought",
        )


# ---- a method under way --------------------------------------------------------------------------


@dataclass(frozen=True)
class Wave:
    """Problems that are played and committed together.

    epoch: from 1, 0 for a warm-up; a round, where a method has rounds. new_epoch: another epoch
    begins with it, so the adapter is kept as it is at the end of the one before. own: what else the
    method says of it.
    """

    number: int
    epoch: int
    stage: str
    problems: list[str]
    new_epoch: bool = False
    own: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Played:
    """The records and figures of a wave, to be committed together.

    A method gives episodes, figures of its own, and the name of an arm where the policy is to be
    evaluated after the wave; the frame adds the rest. examples: those to be kept, where that is not
    all that was trained on.
    """

    episodes: list[Episode]
    figures: dict[str, Any] = field(default_factory=dict)
    arm: str = ""
    examples: list[Example] | None = None
    steps: list[Step] = field(default_factory=list)


class Running(Protocol):
    """The part of a method under way that is its own.

    state: a dataclass of JSON values, with `epoch` and `wave` in it. Beside the adapter, the
    optimizers and what `learning` holds it is all that a resumed run needs.
    """

    state: Any

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        """Returns the wave that follows the state, which is moved on; None at the end.

        ending: a limit of the recipe is reached. Only the training of what was collected follows.
        """

    def play(self, wave: Wave) -> Played:
        """Plays a wave: attempts, critics, training."""
        ...

    def progress(self) -> tuple[int, int]:
        """Returns problems done and problems in all, for the bar."""
        ...


class Frame:
    """A method under way, with all that it is handed. problems: by id.

    wave: the present one. tell: is told what is under way, and how much was done since the start.
    """

    def __init__(
        self, method: Method, recipe: Recipe, task: Task, policy: Policy, trainer: Trainer,
        critics: dict[str, Critic], problems: dict[str, Problem], embedder: Embedder | None = None,
    ) -> None:  # fmt: skip
        from mlxreflect.methods.learning import Learning
        from mlxreflect.methods.session import Rollouts, Session

        self.recipe, self.task, self.problems = recipe, task, problems
        self.embedder = embedder
        self.rollouts = Rollouts(recipe, task, policy, method.wording)
        self.session = Session(recipe, task, critics)
        self.learning = Learning(recipe, policy, trainer)
        self.rollouts.count = self.session.count_calls = self.learning.count = self.count
        self.tell: Callable[[str], None] = lambda text: None
        # All keys from the start: several threads count.
        self.counts, self.doing = {"attempts": 0, "critic calls": 0, "steps": 0}, ""
        self.wave = Wave(0, 1, "problems", [])
        self.running = method.start(self)
        self.next_wave, self.progress = self.running.next_wave, self.running.progress

    def play(self, wave: Wave) -> Played:
        """Plays a wave, and counts what came of it."""
        self.wave = wave
        self.session.begin_wave()
        self.learning.begin_wave()
        played = self.running.play(wave)
        self.running.state.wave += 1
        of_wave = asdict(wave)
        own = of_wave.pop("own")
        figures = {
            **of_wave,
            **own,
            **count_wave(played.episodes),
            **played.figures,
            **self.learning.figures(),
            "critic": self.session.figures(),
        }
        examples = self.learning.examples if played.examples is None else played.examples
        return replace(played, figures=figures, examples=examples, steps=self.learning.steps)

    @property
    def state(self) -> Any:
        """Returns the state of the method."""
        return self.running.state

    def status(self, doing: str) -> None:
        """Tells what is under way. From any thread."""
        self.doing = doing
        counted = [plural(n, what.removesuffix("s")) for what, n in self.counts.items() if n]
        so_far = f"; so far {', '.join(counted)}" if counted else ""
        self.tell(f"{doing}{so_far}")

    def count(self, what: str, n: int) -> None:
        """Tells that n more attempts, critic calls or steps are done. From any thread."""
        self.counts[what] += n
        self.status(self.doing)

    # ---- what every method does the same way ----------------------------------------------------

    def order(self, number: int) -> list[str]:
        """Returns the ids of all problems in the order of an epoch."""
        ids = list(self.problems)
        rng_for(self.recipe.seed, "order", number).shuffle(ids)
        return ids

    def seed(self, *role: int | str) -> Seed:
        return (self.recipe.seed, self.wave.epoch, self.wave.number, *role)

    def trajectories(self) -> list[Trajectory]:
        """Returns a new trajectory for each problem of the wave."""
        return [Trajectory(self.problems[pid]) for pid in self.wave.problems]

    def sample(
        self, problems: Sequence[Problem], n: int, seed: Seed,
        role: Literal["attempt", "verify"] = "attempt", first: int = 0,
    ) -> list[list[Turn]]:  # fmt: skip
        """Returns n graded samples of each problem, from the policy as it is now.

        first: samples that were drawn of the same seed before.
        """
        return self.rollouts.sample(problems, role, n, seed, self.learning.actor, first)

    def attempt(self, trajectories: Sequence[Trajectory], seed: Seed) -> None:
        """Adds a sample to each, which is the text to improve."""
        self.status(plural(len(trajectories), "attempt"))
        drawn = self.sample([one.problem for one in trajectories], 1, seed)
        for one, (turn,) in zip(trajectories, drawn, strict=True):
            one.current = one.add(turn)

    def episode(self, problem: Problem, turns: Sequence[Turn], outcome: Outcome) -> Episode:
        name, wave = self.recipe.strategy, self.wave
        return Episode(name, wave.epoch, wave.number, problem, list(turns), outcome)


@dataclass(eq=False)
class Trajectory:
    """An episode in the making; only one thread at a time writes to it.

    current: the text to improve. solved: the turn that solved it. A cycle of R³ has more. opened:
    the sample that opened it. tries: rounds of it. won: its rewrite that passed. winner: the last
    rewrite that passed in any cycle.
    """

    problem: Problem
    turns: list[Turn] = field(default_factory=list)
    opened: Turn | None = None
    current: Turn | None = None
    tries: int = 0
    won: Turn | None = None
    winner: Turn | None = None
    solved: Turn | None = None

    def add(self, turn: Turn) -> Turn:
        """Appends a turn, and returns it with its index."""
        turn = replace(turn, index=len(self.turns))
        self.turns.append(turn)
        return turn

    def open(self, turn: Turn) -> None:
        """Begins a cycle with a sample."""
        self.opened = self.current = turn
        self.tries, self.won = 0, None


def outcome_of(
    solved: Turn | None,
    calls: Sequence[Turn],
    otherwise: Literal["discarded", "bucket", "trained"] = "discarded",
) -> Outcome:
    """Returns solved, by the first turn or a later one; failed where all these calls were lost."""
    if solved:
        first = solved.index == 0
        return Outcome(first, solved.index, "solved_first" if first else "solved")
    lost = bool(calls) and all(turn.error for turn in calls)
    return Outcome(False, None, "failed" if lost else otherwise)


@dataclass(frozen=True)
class Try:
    """The try that a call belongs to. tier: the critic that answers; "self" is the policy.

    attempt: together with problem, epoch and role it tells the call from every other.
    """

    tier: Literal["basic", "advanced", "judge", "self"]
    epoch: int
    attempt: str


# ---- figures -------------------------------------------------------------------------------------


def count_statuses(episodes: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Returns problems by the status that their last episode left them with.

    episodes: rows of episodes.jsonl, in their order. Each problem is counted once.
    """
    last = {row["problem"]["id"]: row["outcome"]["status"] for row in episodes}
    counts = Counter(last.values())
    return {status: counts[status] for status in STATUSES if counts[status]}


def count_wave(episodes: list[Episode]) -> dict[str, Any]:
    """Returns counts over a wave's episodes; first_correct and format_ok are of first attempts.

    leaks: texts that the leak filter dropped.
    """
    turns = [turn for e in episodes for turn in e.turns]
    roles = Counter(turn.role for turn in turns)
    attempts = ([turn for turn in e.turns if turn.role == "attempt"] for e in episodes)
    first = [turns[0] for turns in attempts if turns]
    return {
        "problems": len(episodes),
        "first_correct": sum(bool(t.verdict and t.verdict.correct) for t in first),
        "format_ok": sum(bool(t.verdict and t.verdict.format_ok) for t in first),
        "passed": sum(e.outcome.first_correct for e in episodes),
        "solved": sum(e.outcome.status in ("solved_first", "solved") for e in episodes),
        "rewrites": roles["rewrite"] + roles["continue"],
        "leaks": sum(t.verdict is not None and t.verdict.source == LEAK_FILTER for t in turns),
        "verifications": roles["verify"],
        **count_cut(episodes),
        "failures": dict(Counter(filter(None, map(failure, first)))),
    }


def count_cut(episodes: list[Episode]) -> dict[str, int]:
    """Returns how many answers the policy gave, and how many policy.max_new_tokens cut off."""
    answers = [t for e in episodes for t in e.turns if t.role in SAMPLED]
    return {"answers": len(answers), "cut": sum(map(cut_off, answers))}


def failure(turn: Turn) -> str | None:
    """Returns the kind of error that an attempt made; None when it made none."""
    verdict = turn.verdict
    if verdict is None or verdict.passed:
        return None
    if cut_off(turn):
        return "truncated"
    if turn.parsed is None:
        return "no_answer"
    if verdict.correct:
        return "format"
    return "wrong_answer" if verdict.format_ok else "wrong_answer_and_format"


def found_wrong(turn: Turn) -> str | None:
    """Returns what a grader, a filter or a judge found wrong with a text, for a critic to know."""
    if turn.verdict is None or turn.verdict.passed:
        return None
    reason = turn.verdict.reason or "the answer is wrong"
    return f"cut off at the token limit: {reason}" if cut_off(turn) else reason


# ---- examples -----------------------------------------------------------------------------------
# A training prompt is the attempt's own prompt: nothing a critic was shown gets into it.


def as_asked(turn: Turn, style: str) -> Turn:
    """Returns a helped text as an attempt is asked for: in the style "direct" its answer alone."""
    span = turn.spans.get("answer")
    if style != "direct" or span is None:
        return turn
    alone = "".join((ANSWER[0], turn.text[slice(*span)].strip(), ANSWER[1]))
    return turn if alone == turn.text else replace(turn, text=alone, token_ids=None)


def preference(episode: Episode, chosen: Turn, rejected: Turn) -> Example:
    """Returns chosen ≻ rejected, both as answers to the first attempt's prompt."""
    return Example(
        kind="preference",
        prompt=episode.turns[0].messages,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_ids=chosen.token_ids,
        rejected_ids=rejected.token_ids,
        source=source(episode, chosen, rejected),
    )


def completion(episode: Episode, turn: Turn, weight: float = 1.0) -> Example:
    """Returns a text to imitate, as an answer to the first attempt's prompt."""
    return Example(
        kind="sft",
        prompt=episode.turns[0].messages,
        completion=turn.text,
        completion_ids=turn.token_ids,
        weight=weight,
        source=source(episode, turn),
    )


def source(episode: Episode, *turns: Turn) -> dict[str, object]:
    return {
        "problem": episode.problem.id,
        "epoch": episode.epoch,
        "wave": episode.wave,
        "turns": [turn.index for turn in turns],
    }


def passed(turn: Turn) -> bool:
    return turn.verdict is not None and turn.verdict.passed


def cut_off(turn: Turn) -> bool:
    return turn.finish_reason == "length"


def held_against(turn: Turn, train: TrainConfig) -> bool:
    """Returns whether the policy may learn that a text of its own is worse than another.

    One that was cut off says more of the token limit than of the policy; train.cut decides.
    """
    return train.cut == "keep" or not cut_off(turn)


# ---- what a judge says ---------------------------------------------------------------------------


def judged(judgement: Judgement | None) -> tuple[Literal["right", "wrong", "unknown"], str]:
    """Returns a verdict and why, in one line. No verdict is unknown, and never a pass."""
    if judgement is None:
        return "unknown", "the judge gave no verdict"
    said = ": ".join(filter(None, (judgement.step.strip(), judgement.why.strip())))
    return judgement.verdict, " ".join(said.split())[:300] or f"the judge says {judgement.verdict}"


def unless_right(turn: Turn, judgement: Judgement | None, judge: str) -> Turn:
    """Returns the turn, its verdict taken back where the judge does not call it right."""
    verdict, why = judged(judgement)
    if verdict == "right" or turn.verdict is None:
        return turn
    refused = Verdict(False, turn.verdict.format_ok, f"{verdict}: {why}", judge)
    return replace(turn, verdict=refused)
