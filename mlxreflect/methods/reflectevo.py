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

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

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
from mlxreflect.methods.base import Hands, Played
from mlxreflect.methods.examples import passed
from mlxreflect.methods.figures import count_wave
from mlxreflect.methods.learning import REFLECTOR, Learning
from mlxreflect.methods.reflectevo_data import POOL, Stored, draw_instructions, fault
from mlxreflect.methods.roles import Round
from mlxreflect.methods.rollouts import Attempts
from mlxreflect.methods.session import Exchange
from mlxreflect.methods.trajectories import Story
from mlxreflect.prompts import messages as prompts
from mlxreflect.train.trainer import LRSchedule

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


@dataclass(frozen=True)
class Wave:
    """Problems of a wave, or (stage "training") one training."""

    number: int
    epoch: int
    stage: str
    problems: list[str]
    training: str = ""
    new_epoch: bool = False


class ReflectEvo:
    """Plays waves. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(self, hands: Hands) -> None:
        recipe, task, policy, trainer, critics, problems = hands
        self.recipe, self.config = recipe, recipe.reflectevo
        self.task, self.problems = task, problems
        self.attempts = Attempts(recipe, task, policy)
        self.exchange = Exchange(recipe, task, critics)
        self.learning = Learning(recipe, policy, trainer)
        self.learning.keep_start()  # what each training begins from
        self.stored = Stored(self.config.stored) if self.config.stored else None
        if self.stored and not any(map(self.stored_of, problems.values())):
            raise UserError(
                f"reflectevo.stored = {self.config.stored!r} has no reflection on a problem of "
                "this run",
                "name problems by their id, or by their question as a prompt shows it: "
                "--dry-run shows one",
            )
        self.state = State()
        self.wave = Wave(0, 1, "problems", [])
        self.status: Callable[[str], None] = lambda text: None

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        """Problems until there are no more, then one training after the other."""
        state, order = self.state, list(self.problems)
        rng_for(self.recipe.seed, "order", state.epoch).shuffle(order)
        taken = [] if ending else order[state.cursor : state.cursor + self.config.wave]
        if taken:
            state.cursor += len(taken)
            return Wave(state.wave, state.epoch, "problems", taken, new_epoch=state.wave == 0)
        left = TRAININGS[self.config.training][state.trained :]
        return Wave(state.wave, state.epoch, "training", [], left[0]) if left else None

    def progress(self) -> tuple[int, int]:
        return self.state.cursor, len(self.problems)

    def play(self, wave: Wave) -> Played:
        self.wave = wave
        self.exchange.begin_wave()
        self.learning.begin_wave()
        stories = [Story(self.problems[pid]) for pid in wave.problems]
        if wave.stage == "problems":
            self.check_stored()
            self.reflect(self.attempt(stories))
            if self.config.training == "IV":
                self.compare(stories)
            self.keep(stories)
        else:
            self.train(wave.training)
        episodes = [self.episode(story) for story in stories]
        self.state.wave += 1
        figures = {
            **asdict(wave),
            **count_wave(episodes),
            **self.counted(episodes),
            **self.learning.figures(),
            "critic": dict(self.exchange.counts),
        }
        return Played(episodes, self.learning.examples, self.learning.steps, figures)

    # ---- a wave of problems ---------------------------------------------------------------------

    def attempt(self, stories: list[Story]) -> list[Story]:
        """A first answer to each; those that are wrong are returned."""
        self.status(f"{len(stories)} attempts")
        problems = [story.problem for story in stories]
        drawn = self.attempts.sample(problems, "attempt", 1, self.seed("sample"), self.actor)
        for story, (turn,) in zip(stories, drawn, strict=True):
            story.open(story.add(turn))
        return [s for s in stories if s.opened and not passed(s.opened)]

    def reflect(self, stories: list[Story]) -> None:
        """k reflections on each failure, and a retry on each that is of use."""
        self.status(
            f"{self.config.reflections} reflections on each of {len(stories)} wrong answers"
        )
        made = self.replayed(stories) if self.stored else self.reflections(stories)
        added = [(s, s.add(self.judged(turn))) for s, turn in made]
        useful = [(s, turn) for s, turn in added if turn.error is None and turn.verdict is None]
        self.status(f"{len(useful)} retries")
        asked = [(s.problem, self.retry_prompt(s, turn)) for s, turn in useful]
        retries = self.attempts.draw(
            asked, "retry", self.seed("sample"), self.actor,
            temperature=self.config.retry_temperature,
        )  # fmt: skip
        for (story, reflection), turn in zip(useful, retries, strict=True):
            # It is said to be wrong; what is right is not shown.
            story.add(replace(turn, parent=reflection.index, visibility="verdict"))

    def reflections(self, stories: list[Story]) -> list[tuple[Story, Turn]]:
        """Each story with its reflections, written now."""
        who = self.round()
        asked = [
            (story, POOL[name], replace(who, attempt=f"{who.attempt}/{number}"))
            for story in stories
            for number, name in enumerate(self.instructions(story.problem))
        ]
        calls = [
            self.exchange.moves.reflection(s.problem, text_of(s), how, self.config.words, at)
            for s, how, at in asked
        ]
        turns = self.exchange.ask(calls, [s.turns[0] for s, _, _ in asked], who) if asked else []
        return [(s, turn) for (s, _, _), turn in zip(asked, turns, strict=True)]

    def replayed(self, stories: list[Story]) -> list[tuple[Story, Turn]]:
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

    def compare(self, stories: list[Story]) -> None:
        """The judge's preference between the reflections on a failure that led to right answers."""
        found = [(s, both) for s in stories for both in reflected.comparisons(self.episode(s))]
        if not found:
            return
        at = replace(self.round(), tier="judge")
        said = self.exchange.prefer([s.problem for s, _ in found], [b for _, b in found], at)
        for (story, _), orders in zip(found, said, strict=True):
            for turn in orders:
                story.add(turn)

    # ---- training -------------------------------------------------------------------------------

    def keep(self, stories: Sequence[Story]) -> None:
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
        self.status(f"training on {len(examples)} examples ({name})")
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
        shown, tags = self.task.show(problem), self.recipe.prompt.tags
        return prompts.check_messages(shown, text, tags, self.attempts.templates)

    def both_prompt(self, problem: Problem, text: str) -> Messages:
        return prompts.reflect_and_retry_messages(
            self.task.instruction(problem), self.task.show(problem), text, self.recipe.prompt.tags,
            self.attempts.templates,
        )  # fmt: skip

    def retry_prompt(self, story: Story, reflection: Turn) -> Messages:
        problem, tags = story.problem, self.recipe.prompt.tags
        return prompts.rewrite_messages(
            self.task.instruction(problem), self.task.show(problem), text_of(story),
            reflection.text, tags, None, self.attempts.templates,
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

    @property
    def actor(self) -> str:
        return self.learning.actor

    def round(self) -> Round:
        return Round(
            "basic" if self.config.reflector == "critic" else "self",
            self.wave.epoch,
            str(self.wave.number),
        )

    def seed(self, role: str) -> tuple[int | str, ...]:
        return (self.recipe.seed, self.wave.epoch, self.wave.number, role)

    def episode(self, story: Story) -> Episode:
        return Episode(
            self.recipe.strategy, self.wave.epoch, self.wave.number, story.problem,
            list(story.turns), outcome_of(story),
        )  # fmt: skip

    def counted(self, episodes: Sequence[Episode]) -> dict[str, Any]:
        """Of the method's own: retries, and how many are right."""
        found = [one for episode in episodes for one in reflected.trials(episode)]
        right = sum(one.right for one in found)
        kept = {name: len(rows) for name, rows in self.state.kept.items()}
        examples = " and ".join(str(count) for count in kept.values())
        told = f"{right} of {len(found)} retries right, {examples} examples so far"
        if self.wave.stage == "training":
            told = f"trained on {len(self.learning.examples)} examples ({self.wave.training})"
        return {"retries": len(found), "retries_right": right, "kept": kept, "told": told}


def text_of(story: Story) -> str:
    assert story.opened is not None  # every story begins with an attempt
    return story.opened.text


def outcome_of(story: Story) -> Outcome:
    """Solved by the first retry that is right; failed where no reflection was written."""
    first, *rest = story.turns
    if passed(first):
        return Outcome(True, 0, "solved_first")
    right = next((turn for turn in rest if turn.role == "retry" and passed(turn)), None)
    if right:
        return Outcome(False, right.index, "solved")
    failed = all(turn.error for turn in rest) and bool(rest)
    return Outcome(False, None, "failed" if failed else "discarded")
