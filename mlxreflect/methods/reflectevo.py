"""ReflectEvo: a model learns to reflect from its own reflections (arXiv 2505.16475), in waves.

Every problem once: attempt; grade; on what is wrong k reflections, each asked for by another
instruction of the pool, and one retry on each. Nobody is shown the expected answer. When all
problems are done, one training on all that came of it:

I    SFT on D+: failed attempt → reflection and right answer, in one response
II   SFT on D+ twice: failed attempt → reflection, and with the reflection → answer; two adapters,
     of which the first is kept as "adapter-reflection" and the second is the policy
III  DPO on D±: of two reflections on a failure, that which led to a right answer over the other
IV   DPO on Dpref: both led to a right answer, and the judge prefers one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlxreflect.config.fields import Fraction, LocalFile, Names, Positive, Table
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import (
    Episode,
    Example,
    Messages,
    Outcome,
    Problem,
    Turn,
    Verdict,
    flat_from_row,
    to_row,
)
from mlxreflect.core.seeds import rng_for
from mlxreflect.methods import reflectevo_data as reflected
from mlxreflect.methods.base import (
    Exam,
    ExportForm,
    Frame,
    Method,
    Plan,
    Played,
    Rows,
    SecondAnswers,
    Seed,
    Trajectory,
    Try,
    Wave,
)
from mlxreflect.methods.examples import passed
from mlxreflect.methods.reflectevo_data import POOL, Stored, draw_instructions, fault
from mlxreflect.prompts.roles import role_messages
from mlxreflect.prompts.templates import BUNDLED

if TYPE_CHECKING:
    from mlxreflect.config.schema import EvalSpec, Recipe, Tier
    from mlxreflect.core.ui import Ui
    from mlxreflect.tasks.base import Task


class ReflectEvoConfig(Table):
    """Attempts are drawn at policy.temperature, reflections at critic.temperature."""

    wave: Positive = 100  # problems taken and committed together
    reflector: Literal["self", "critic"] = "self"
    reflections: Positive = 2  # on each wrong attempt, each with one retry
    instructions: Names = []  # ids of the pool to draw from; empty: all 32
    stored: LocalFile = ""  # JSONL file with reflections to replay, in place of new ones
    words: Positive = 100  # a longer reflection gets no retry
    retry_temperature: Annotated[float, Field(ge=0)] = 0.0
    # I: SFT on reflection and answer in one; II: on each by itself, two adapters; III: DPO on
    # reflections that led to a right and a wrong answer; IV: on those of which the judge likes one.
    training: Literal["I", "II", "III", "IV"] = "I"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = 0.0  # of a training's steps
    retries: bool = True  # evaluate second answers, beside retries without a reflection


def check(recipe: Recipe, path: Path) -> None:
    """Keys of [reflectevo] that contradict each other, or the rest."""
    config = recipe.reflectevo
    if config.stored and config.reflector == "critic":
        raise UserError(
            f"{path}: reflectevo.reflector = 'critic' does nothing: reflections come from "
            f"reflectevo.stored = {config.stored!r}",
            "leave one of them out",
        )
    if strange := [name for name in config.instructions if name not in POOL]:
        raise UserError(
            f"{path}: reflectevo.instructions has no {strange[0]!r}",
            f"such as: {', '.join(list(POOL)[:3])}; mlxreflect/methods/reflectevo_data.py has all",
        )
    if config.training == "IV" and recipe.critic.tier("judge").provider == "solver":
        raise UserError(
            f"{path}: reflectevo.training = 'IV' asks the judge which reflection is better, and "
            "the solver cannot say",
            'set critic.judge.provider = "ollama" and critic.judge.model, or another training',
        )
    if config.training == "II" and recipe.train.tune == "full":
        raise UserError(
            f"{path}: reflectevo.training = 'II' trains two adapters, and train.tune = 'full' none",
            'leave out train.tune, or set reflectevo.training = "I"',
        )


def tiers(recipe: Recipe) -> list[Tier]:
    config = recipe.reflectevo
    found: list[Tier] = ["basic"] if config.reflector == "critic" and not config.stored else []
    return [*found, "judge"] if config.training == "IV" else found


def asks_itself(recipe: Recipe) -> bool:
    return recipe.reflectevo.reflector == "self" and not recipe.reflectevo.stored


def compares(recipe: Recipe) -> bool:
    return recipe.reflectevo.training in ("III", "IV")


def plan(recipe: Recipe, n: int, wrong: float) -> Plan:
    config = recipe.reflectevo
    made = n * wrong * config.reflections
    calls: dict[tuple[Tier, str], float] = {}
    if config.reflector == "critic" and not config.stored:
        calls["basic", "reflection"] = made
    roles: tuple[str, ...] = ("reflection",)
    if config.training == "IV":  # every two whose retries are right, in both orders
        right = 1.0 if wrong == 1 else 1 - wrong  # at most: all retries
        calls["judge", "prefer"] = made * (config.reflections - 1) * right**2
        roles += ("prefer",)
    return Plan(n, config.wave, calls, roles)


def prompts(recipe: Recipe, task: Task, problem: Problem) -> dict[str, Messages]:
    """The retry, which no critic writes."""
    return {"retry": retry_prompt(recipe, task, problem, "(an attempt)", "(a reflection)")}


def retry_prompt(
    recipe: Recipe, task: Task, problem: Problem, attempt: str, reflection: str
) -> Messages:
    """What asks for another answer after a reflection; the expected one is not shown."""
    return role_messages(
        "rewrite", recipe.prompt.tags, BUNDLED.replaced(recipe.prompt.templates),
        instruction=task.instruction(problem), question=task.show(problem),
        attempt=attempt, feedback=reflection,
    )  # fmt: skip


def export_rows(episode: Episode, examples: Sequence[Example]) -> Rows:
    from mlxreflect.methods.reflectevo_data import reflectevo_rows

    return reflectevo_rows(episode, examples)


def check_evaluation(recipe: Recipe, spec: EvalSpec) -> None:
    if not recipe.reflectevo.retries:
        return
    from mlxreflect.evaluation.chains import ONE_ANSWER

    for key, value in ONE_ANSWER.items():
        if getattr(spec, key) != value:
            raise UserError(
                f"second answers are one to a chat each, and {recipe.eval.spec} has {key} = "
                f"{getattr(spec, key)!r}",
                "set reflectevo.retries = false, or eval.spec to another evaluation",
            )


def second(recipe: Recipe, out: Path, exam: Exam, spec: EvalSpec, ui: Ui) -> SecondAnswers | None:
    if not recipe.reflectevo.retries:
        return None
    from mlxreflect.methods.retries import Retries

    return Retries(recipe, out, exam, spec, ui)


# The trainings of each kind, one after the other.
TRAININGS = {"I": ["both"], "II": ["reflection", "answer"], "III": ["pairs"], "IV": ["pairs"]}


@dataclass
class State:
    """Where the strategy stands between two waves; committed with the adapter.

    kept: training → its examples as rows, until it is done. trained: trainings done. stored: the
    digest of the file that reflections are replayed from.
    """

    epoch: int = 1
    cursor: int = 0
    wave: int = 0
    trained: int = 0
    kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stored: str = ""


class ReflectEvo:
    """Plays waves. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.recipe, self.problems = frame, frame.recipe, frame.problems
        self.config, self.task = frame.recipe.reflectevo, frame.task
        self.session, self.learning = frame.session, frame.learning
        self.learning.keep_start()  # what each training begins from
        self.stored = Stored(self.config.stored) if self.config.stored else None
        if self.stored and not any(map(self.stored_of, self.problems.values())):
            raise UserError(
                f"reflectevo.stored = {self.config.stored!r} has no reflection on a problem of "
                "this run",
                "name problems by their id, or by their question as a prompt shows it: "
                "--dry-run shows one",
            )
        self.state = State()

    @property
    def wave(self) -> Wave:
        return self.frame.wave

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        """Problems until there are no more, then one training after the other."""
        state = self.state
        order = self.frame.order(state.epoch)
        taken = [] if ending else order[state.cursor : state.cursor + self.config.wave]
        if taken:
            state.cursor += len(taken)
            first, own = state.wave == 0, {"training": ""}
            return Wave(state.wave, state.epoch, "problems", taken, first, own)
        left = TRAININGS[self.config.training][state.trained :]
        own = {"training": left[0] if left else ""}
        return Wave(state.wave, state.epoch, "training", [], own=own) if left else None

    def progress(self) -> tuple[int, int]:
        return self.state.cursor, len(self.problems)

    def play(self, wave: Wave) -> Played:
        stories = self.frame.trajectories()
        if wave.stage == "problems":
            self.check_stored()
            self.reflect(self.attempt(stories))
            if self.config.training == "IV":
                self.compare(stories)
            self.keep(stories)
        else:
            self.train(wave.own["training"])
        episodes = [self.episode(story) for story in stories]
        return Played(episodes, self.counted(episodes))

    # ---- a wave of problems ---------------------------------------------------------------------

    def attempt(self, stories: list[Trajectory]) -> list[Trajectory]:
        """A first answer to each; those that are wrong are returned."""
        self.frame.status(f"{len(stories)} attempts")
        problems = [story.problem for story in stories]
        drawn = self.frame.sample(problems, 1, self.seed("sample"))
        for story, (turn,) in zip(stories, drawn, strict=True):
            story.open(story.add(turn))
        return [s for s in stories if s.opened and not passed(s.opened)]

    def reflect(self, stories: list[Trajectory]) -> None:
        """k reflections on each failure, and a retry on each that is of use."""
        self.frame.status(
            f"{self.config.reflections} reflections on each of {len(stories)} wrong answers"
        )
        made = self.replayed(stories) if self.stored else self.reflections(stories)
        added = [(s, s.add(self.judged(turn))) for s, turn in made]
        useful = [(s, turn) for s, turn in added if turn.error is None and turn.verdict is None]
        self.frame.status(f"{len(useful)} retries")
        recipe, task = self.recipe, self.task
        asked = [
            (s.problem, retry_prompt(recipe, task, s.problem, text_of(s), turn.text))
            for s, turn in useful
        ]
        retries = self.frame.rollouts.draw(
            asked, "retry", self.seed("sample"), self.learning.actor,
            temperature=self.config.retry_temperature,
        )  # fmt: skip
        for (story, reflection), turn in zip(useful, retries, strict=True):
            # It is said to be wrong; what is right is not shown.
            story.add(replace(turn, parent=reflection.index, visibility="verdict"))

    def reflections(self, stories: list[Trajectory]) -> list[tuple[Trajectory, Turn]]:
        """Each story with its reflections, written now."""
        who = self.round()
        asked = [
            (story, POOL[name], replace(who, attempt=f"{who.attempt}/{number}"))
            for story in stories
            for number, name in enumerate(self.instructions(story.problem))
        ]
        calls = [
            self.session.call(
                "reflection",
                s.problem,
                at,
                attempt=text_of(s),
                instruction=how,
                words=str(self.config.words),
            )
            for s, how, at in asked
        ]
        turns = self.session.ask(calls, [s.turns[0] for s, _, _ in asked], who) if asked else []
        return [(s, turn) for (s, _, _), turn in zip(asked, turns, strict=True)]

    def replayed(self, stories: list[Trajectory]) -> list[tuple[Trajectory, Turn]]:
        """Each story with the reflections that the file has for it."""
        assert self.stored is not None
        actor = f"stored:{self.stored.digest}"
        return [
            (story, Turn(-1, 0, "reflection", actor, [], text))
            for story in stories
            for text in self.stored_of(story.problem)[: self.config.reflections]
        ]

    def stored_of(self, problem: Problem) -> list[str]:
        assert self.stored is not None
        return self.stored.of(problem.id, self.task.show(problem))

    def judged(self, turn: Turn) -> Turn:
        """The reflection; one of no use has a verdict that says why."""
        reason = "" if turn.error else fault(turn.text, self.config.words, turn.finish_reason)
        return replace(turn, verdict=Verdict(False, False, reason, "filter")) if reason else turn

    def compare(self, stories: list[Trajectory]) -> None:
        """The judge's preference between the reflections on a failure that led to right answers.

        Two are compared in both orders: a turn each, whose parent is the reflection shown first and
        whose `parsed` says which is better, "A", "B" or "tie"; None: no word.
        """
        at = replace(self.round(), tier="judge")
        shown = [
            (s, a, b, replace(at, attempt=f"{at.attempt}/{one.index}/{other.index}/{order}"))
            for s in stories
            for one, other in reflected.comparisons(self.episode(s))
            for a, b, order in ((one, other, "AB"), (other, one, "BA"))
        ]
        calls = [
            self.session.call("prefer", s.problem, key, attempt_A=a.text, attempt_B=b.text)
            for s, a, b, key in shown
        ]
        answers = self.session.structured(calls, [a for _, a, _, _ in shown], at)
        for (story, *_), (preference, turn) in zip(shown, answers, strict=True):
            story.add(replace(turn, parsed=preference.better if preference else None))

    # ---- training -------------------------------------------------------------------------------

    def keep(self, stories: Sequence[Trajectory]) -> None:
        """What the trainings will need of these."""
        builders, episodes = self.builders(), [self.episode(story) for story in stories]
        for name in TRAININGS[self.config.training]:
            rows = self.state.kept.setdefault(name, [])
            rows += [to_row(example) for e in episodes for example in builders[name](e)]

    def builders(self) -> dict[str, Callable[[Episode], Any]]:
        """For each training, episode → examples."""
        by_judge = self.config.training == "IV"
        chosen = reflected.preferred_reflections if by_judge else reflected.right_over_wrong
        return {
            "both": partial(reflected.reflect_and_retry, ask=self.both_prompt),
            "reflection": partial(reflected.right_reflections, ask=self.reflect_prompt),
            "answer": reflected.right_retries,
            "pairs": partial(chosen, ask=self.reflect_prompt),
        }

    def train(self, name: str) -> None:
        """One training, from where the run began."""
        examples = [flat_from_row(Example, row) for row in self.state.kept.pop(name)]
        self.frame.status(f"training on {len(examples)} examples ({name})")
        from mlxreflect.methods.learning import REFLECTOR
        from mlxreflect.train.trainer import LRSchedule

        schedule = LRSchedule(self.config.schedule, self.config.warmup)
        if name == "answer":  # the reflector's adapter is done
            self.learning.held[REFLECTOR] = dict(self.learning.trainer.trainable())
            self.learning.restart()
        if name == "pairs":
            self.learning.begin_stage()
            self.learning.prefer(examples, self.seed("train"), schedule)
        else:
            self.learning.imitate(examples, 1.0, self.seed("train"), schedule)
        self.state.trained += 1

    # ---- prompts --------------------------------------------------------------------------------
    # Those of an evaluation, word for word: see `rounds`.

    def reflect_prompt(self, problem: Problem, text: str) -> Messages:
        return self.prompt("check", problem, text)

    def both_prompt(self, problem: Problem, text: str) -> Messages:
        return self.prompt("reflect_and_retry", problem, text)

    def prompt(self, role: str, problem: Problem, text: str) -> Messages:
        return role_messages(
            role, self.recipe.prompt.tags, BUNDLED.replaced(self.recipe.prompt.templates),
            instruction=self.task.instruction(problem), question=self.task.show(problem),
            attempt=text,
        )  # fmt: skip

    # ---- bookkeeping ----------------------------------------------------------------------------

    def instructions(self, problem: Problem) -> list[str]:
        rng = rng_for(self.recipe.seed, "instructions", problem.id)
        return draw_instructions(self.config.instructions, self.config.reflections, rng)

    def check_stored(self) -> None:
        """Raises UserError where the file of reflections is another than when the run began."""
        found = self.stored.digest if self.stored else ""
        if self.state.wave and found != self.state.stored:
            raise UserError(
                f"reflectevo.stored = {self.config.stored!r} has changed since the run began",
                "restore that file, or begin a new run",
            )
        self.state.stored = found

    def round(self) -> Try:
        return Try(
            "basic" if self.config.reflector == "critic" else "self",
            self.wave.epoch,
            str(self.wave.number),
        )

    def seed(self, role: str) -> Seed:
        return self.frame.seed(role)

    def episode(self, story: Trajectory) -> Episode:
        return self.frame.episode(story.problem, story.turns, outcome_of(story))

    def counted(self, episodes: Sequence[Episode]) -> dict[str, Any]:
        """Of the method's own: retries, and how many are right."""
        found = [one for episode in episodes for one in reflected.trials(episode)]
        right = sum(one.right for one in found)
        kept = {name: len(rows) for name, rows in self.state.kept.items()}
        examples = " and ".join(str(count) for count in kept.values())
        told = f"{right} of {len(found)} retries right, {examples} examples so far"
        if self.wave.stage == "training":
            told = (
                f"trained on {len(self.learning.examples)} examples ({self.wave.own['training']})"
            )
        return {"retries": len(found), "retries_right": right, "kept": kept, "told": told}


def text_of(story: Trajectory) -> str:
    assert story.opened is not None  # every story begins with an attempt
    return story.opened.text


def outcome_of(story: Trajectory) -> Outcome:
    """Solved by the first retry that is right; failed where no reflection was written."""
    first, *rest = story.turns
    if passed(first):
        return Outcome(True, 0, "solved_first")
    right = next((turn for turn in rest if turn.role == "retry" and passed(turn)), None)
    if right:
        return Outcome(False, right.index, "solved")
    failed = all(turn.error for turn in rest) and bool(rest)
    return Outcome(False, None, "failed" if failed else "discarded")


METHOD = Method(
    name="reflectevo",
    keys=ReflectEvoConfig,
    check=check,
    tiers=tiers,
    asks_itself=asks_itself,
    compares=compares,
    plan=plan,
    start=ReflectEvo,
    words={"solved": "right at a retry"},
    prompts=prompts,
    check_evaluation=check_evaluation,
    second=second,
    exports={
        "reflectevo": ExportForm(
            export_rows, "reflections on failed attempts with their retries (strategy reflectevo)"
        )
    },
)
