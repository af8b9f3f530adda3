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

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlxreflect.config.fields import Fraction, LocalFile, Names, Positive, Table
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import (
    Episode,
    Example,
    Messages,
    Problem,
    Turn,
    Verdict,
    episode_from_row,
    flat_from_row,
    to_row,
)
from mlxreflect.core.seeds import rng_for
from mlxreflect.methods import reflectevo_data as data
from mlxreflect.methods.base import (
    Exam,
    ExportForm,
    Frame,
    Method,
    Plan,
    Played,
    Shares,
    Trajectory,
    Try,
    Wave,
    held_against,
    outcome_of,
    passed,
)
from mlxreflect.methods.reflectevo_data import (
    POOL,
    Stored,
    draw_instructions,
    fault,
    shortened,
)
from mlxreflect.prompts.roles import BUNDLED, role_messages

if TYPE_CHECKING:
    from mlxreflect.config.schema import EvalSpec, Recipe, Tier
    from mlxreflect.core.ui import Ui
    from mlxreflect.evaluation.chains import Chain
    from mlxreflect.tasks.base import Task
    from mlxreflect.train.network import Arrays


class ReflectEvoConfig(Table):
    """Attempts are drawn at policy.temperature, reflections at critic.temperature."""

    wave: Positive = 100  # problems taken and committed together
    reflector: Literal["self", "critic"] = "self"  # who reflects: the policy itself, or the critic
    reflections: Positive = 2  # on each wrong attempt, each with one retry
    instructions: Names = []  # ids of the pool to draw from; empty: all 32
    stored: LocalFile = ""  # JSONL file with reflections to replay, in place of new ones
    words: Positive = 100  # a longer reflection ends with its last whole sentence within these
    retry_temperature: Annotated[float, Field(ge=0)] = 0.0  # of the answer after a reflection
    # I: SFT on reflection and answer in one; II: on each by itself, two adapters; III: DPO on
    # reflections that led to a right and a wrong answer; IV: on those of which the judge likes one.
    training: Literal["I", "II", "III", "IV"] = "I"
    # of the learning rate over a training
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = 0.0  # of a training's steps
    retries: bool = True  # evaluate second answers, beside retries without a reflection


def check(recipe: Recipe, path: Path) -> None:
    """Raises UserError for keys of [reflectevo] that contradict each other, or the rest."""
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


def plan(recipe: Recipe, n: int, shares: Shares) -> Plan:
    config, k = recipe.reflectevo, recipe.reflectevo.reflections
    made = n * shares.wrong * k
    right = 1.0 if shares.most else 1 - shares.wrong  # of retries; at most all
    calls: dict[tuple[Tier, str], float] = {}
    if config.reflector == "critic" and not config.stored:
        calls["basic", "reflection"] = made
    roles: tuple[str, ...] = ("reflection",)
    if config.training == "IV":  # every two whose retries are right, in both orders
        calls["judge", "prefer"] = made * (k - 1) * right**2
        roles += ("prefer",)
    kind = "preference" if config.training in ("III", "IV") else "sft"
    pairs = {"III": made * (k - 1) * right * (1 - right), "IV": made * (k - 1) * right**2 / 2}
    trained = pairs.get(config.training, made * right * len(TRAININGS[config.training]))
    # Of an arm two chains of two answers and, beside one of them, a reflection: that of trained
    # may be in one with its answer.
    seconds = 10 - (config.training == "I") if config.retries else 0
    alone = config.reflector == "self" and not config.stored
    return Plan(
        n, config.wave, calls, roles, samples=made, written={"reflection": made} if alone else {},
        trained={(0, kind): trained}, answers=seconds, waves=n / config.wave,
    )  # fmt: skip


def role_prompt(
    recipe: Recipe, task: Task, role: str, problem: Problem, attempt: str,
    feedback: str | None = None,
) -> Messages:  # fmt: skip
    """Returns the prompt of a role, word for word as an evaluation asks it; it shows no answer."""
    return role_messages(
        role, recipe.prompt.tags, BUNDLED.replaced(recipe.prompt.templates),
        instruction=task.instruction(problem), question=task.show(problem), attempt=attempt,
        feedback=feedback,
    )  # fmt: skip


def dry_run_prompts(recipe: Recipe, task: Task, problem: Problem) -> dict[str, Messages]:
    """Returns the prompt of a retry, which no critic writes."""
    texts = ("(an attempt)", "(a reflection)")
    return {"retry": role_prompt(recipe, task, "rewrite", problem, *texts)}


def check_evaluation(recipe: Recipe, spec: EvalSpec) -> None:
    if not recipe.reflectevo.retries:
        return
    from mlxreflect.evaluation.chains import ONE_ANSWER

    for key, value in ONE_ANSWER.items():
        if getattr(spec, key) != value:
            raise UserError(
                f"second answers are one to a chat each, and {recipe.eval.spec[0]} has {key} = "
                f"{getattr(spec, key)!r}",
                "set reflectevo.retries = false, or eval.spec to another evaluation",
            )


# The trainings of each kind, one after the other, and what builds their examples.
TRAININGS: dict[str, dict[str, data.Builder]] = {
    "I": {"both": data.reflect_and_retry},
    "II": {"reflection": data.right_reflections, "answer": data.right_retries},
    "III": {"pairs": data.right_over_wrong},
    "IV": {"pairs": data.preferred_reflections},
}


@dataclass
class State:
    """The state between two waves. kept: training → its examples as rows, until it is done.

    trained: trainings done. stored: the digest of the file that reflections are replayed from.
    """

    epoch: int = 1
    cursor: int = 0
    wave: int = 0
    trained: int = 0
    kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stored: str = ""


class ReflectEvo:
    """Plays waves of problems, then the trainings."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.config, self.state = frame, frame.recipe.reflectevo, State()
        self.prompt = partial(role_prompt, frame.recipe, frame.task)
        frame.learning.keep_start()  # what each training begins from
        self.stored = Stored(self.config.stored) if self.config.stored else None
        if self.stored and not any(map(self.stored_of, frame.problems.values())):
            raise UserError(
                f"reflectevo.stored = {self.config.stored!r} has no reflection on a problem of "
                "this run",
                "name problems by their id, or by their question as a prompt shows it: "
                "--dry-run shows one",
            )

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        """Takes problems until there are no more, then one training after the other."""
        state, order = self.state, self.frame.order(self.state.epoch)
        taken = [] if ending else order[state.cursor : state.cursor + self.config.wave]
        if taken:
            state.cursor += len(taken)
            own = {"training": ""}
            return Wave(state.wave, state.epoch, "problems", taken, state.wave == 0, own)
        for training in list(TRAININGS[self.config.training])[state.trained :]:
            return Wave(state.wave, state.epoch, "training", [], own={"training": training})
        return None

    def progress(self) -> tuple[int, int]:
        return self.state.cursor, len(self.frame.problems)

    def play(self, wave: Wave) -> Played:
        found = self.frame.trajectories()
        if wave.stage == "training":
            self.train(wave.own["training"])
        else:
            self.check_stored()
            self.frame.attempt(found, self.frame.seed("sample"))
            self.reflect([one for one in found if not passed(one.turns[0])])
            if self.config.training == "IV":
                self.compare(found)
        episodes = [self.episode(one) for one in found]
        if wave.stage == "problems":
            self.keep(episodes)
        return Played(episodes, self.counted(episodes))

    # ---- a wave of problems ---------------------------------------------------------------------

    def reflect(self, wrong: list[Trajectory]) -> None:
        """Adds k reflections to each failure, and a retry to each that is of use."""
        self.frame.status(
            f"{self.config.reflections} reflections on each of {len(wrong)} wrong answers"
        )
        made = self.replayed(wrong) if self.stored else self.reflections(wrong)
        added = [(one, one.add(self.judged(turn))) for one, turn in made]
        useful = [(one, turn) for one, turn in added if not turn.error and turn.verdict is None]
        self.frame.status(f"{len(useful)} retries")
        prompts = [
            (one.problem, self.prompt("rewrite", one.problem, one.turns[0].text, turn.text))
            for one, turn in useful
        ]
        retries = self.frame.rollouts.draw(
            prompts, "retry", self.frame.seed("sample"), self.frame.learning.actor,
            temperature=self.config.retry_temperature,
        )  # fmt: skip
        for (one, reflection), turn in zip(useful, retries, strict=True):
            # It is said to be wrong; what is right is not shown.
            one.add(replace(turn, parent=reflection.index, visibility="verdict"))

    def reflections(self, wrong: list[Trajectory]) -> list[tuple[Trajectory, Turn]]:
        """Returns each trajectory with its reflections, written now."""
        at = self.at()
        reflecting, calls = [], []
        for one in wrong:
            rng = rng_for(self.frame.recipe.seed, "instructions", one.problem.id)
            names = draw_instructions(self.config.instructions, self.config.reflections, rng)
            for number, name in enumerate(names):
                call = self.frame.session.call(
                    "reflection", one.problem, replace(at, attempt=f"{at.attempt}/{number}"),
                    attempt=one.turns[0].text, instruction=POOL[name],
                    words=str(self.config.words),
                )  # fmt: skip
                reflecting.append(one)
                calls.append(call)
        if not calls:
            return []
        turns = self.frame.session.ask(calls, [one.turns[0] for one in reflecting], at)
        return list(zip(reflecting, turns, strict=True))

    def replayed(self, wrong: list[Trajectory]) -> list[tuple[Trajectory, Turn]]:
        """Returns each trajectory with the reflections that the file has for it."""
        return [
            (one, Turn(-1, 0, "reflection", f"stored:{self.state.stored}", [], text))
            for one in wrong
            for text in self.stored_of(one.problem)[: self.config.reflections]
        ]

    def stored_of(self, problem: Problem) -> list[str]:
        return self.stored.of(problem.id, self.frame.task.show(problem)) if self.stored else []

    def check_stored(self) -> None:
        """Raises UserError where the file of reflections is another than when the run began."""
        found = self.stored.digest if self.stored else ""
        if self.state.wave and found != self.state.stored:
            raise UserError(
                f"reflectevo.stored = {self.config.stored!r} has changed since the run began",
                "restore that file, or begin a new run",
            )
        self.state.stored = found

    def judged(self, turn: Turn) -> Turn:
        """Returns the reflection, shortened; one of no use has a verdict that says why."""
        if turn.error:
            return turn
        words = self.config.words
        text = shortened(turn.text, words, turn.finish_reason)
        if reason := fault(text, words):
            return replace(turn, verdict=Verdict(False, False, reason, "filter"))
        return turn if text == turn.text else replace(turn, text=text, token_ids=None)

    def compare(self, found: list[Trajectory]) -> None:
        """Adds the judge's preference between the reflections that led to right answers.

        Two on one failure are compared in both orders: a turn each, whose parent is the reflection
        shown first and whose `parsed` says which is better, "A", "B" or "tie"; None: no word.
        """
        at, session = replace(self.at(), tier="judge"), self.frame.session
        shown = [
            (one, a, b, replace(at, attempt=f"{at.attempt}/{first.index}/{second.index}/{order}"))
            for one in found
            for first, second in data.comparisons(self.episode(one))
            for a, b, order in ((first, second, "AB"), (second, first, "BA"))
        ]
        calls = [
            session.call("prefer", one.problem, key, attempt_A=a.text, attempt_B=b.text)
            for one, a, b, key in shown
        ]
        replies = session.structured(calls, [a for _, a, _, _ in shown], at)
        for (one, *_), (preference, turn) in zip(shown, replies, strict=True):
            one.add(replace(turn, parsed=preference.better if preference else None))

    # ---- training -------------------------------------------------------------------------------

    def keep(self, episodes: Sequence[Episode]) -> None:
        """Remembers what the trainings will need of these.

        A retry that was cut off does not tell whether its reflection led to a right answer.
        """
        train = self.frame.recipe.train
        told = [
            replace(e, turns=[t for t in e.turns if t.role != "retry" or held_against(t, train)])
            for e in episodes
        ]
        for name, build in TRAININGS[self.config.training].items():
            ask = partial(self.prompt, "reflect_and_retry" if name == "both" else "check")
            rows = self.state.kept.setdefault(name, [])
            rows += [to_row(example) for e in told for example in build(e, ask)]

    def train(self, name: str) -> None:
        """Makes one training, from where the run began."""
        from mlxreflect.methods.learning import REFLECTOR
        from mlxreflect.train.trainer import LRSchedule

        learning, seed = self.frame.learning, self.frame.seed("train")
        examples = [flat_from_row(Example, row) for row in self.state.kept.pop(name)]
        self.frame.status(f"training on {len(examples)} examples ({name})")
        schedule = LRSchedule(self.config.schedule, self.config.warmup)
        if name == "answer":  # the reflector's adapter is done
            learning.held[REFLECTOR] = dict(learning.trainer.trainable())
            learning.restart()
        if name == "pairs":
            learning.begin_stage()
            learning.prefer(examples, seed, schedule)
        else:
            learning.imitate(examples, 1.0, seed, schedule)
        self.state.trained += 1

    # ---- records --------------------------------------------------------------------------------

    def at(self) -> Try:
        wave = self.frame.wave
        tier: Any = "basic" if self.config.reflector == "critic" else "self"
        return Try(tier, wave.epoch, str(wave.number))

    def episode(self, one: Trajectory) -> Episode:
        right = (turn for turn in one.turns if turn.role in ("attempt", "retry") and passed(turn))
        outcome = outcome_of(next(right, None), one.turns[1:])
        return self.frame.episode(one.problem, one.turns, outcome)

    def counted(self, episodes: Sequence[Episode]) -> dict[str, Any]:
        """Returns figures of its own: retries, and how many are right."""
        found = [one for episode in episodes for one in data.trials(episode)]
        right, wave = sum(one.right for one in found), self.frame.wave
        kept = {name: len(rows) for name, rows in self.state.kept.items()}
        examples = " and ".join(map(str, kept.values()))
        told = f"{right} of {len(found)} retries right, {examples} examples so far"
        if wave.stage == "training":
            count = len(self.frame.learning.examples)
            told = f"trained on {count} examples ({wave.own['training']})"
        return {"retries": len(found), "retries_right": right, "kept": kept, "told": told}


# ---- second answers ------------------------------------------------------------------------------

RETRIES = ("reflection", "bare")
ARMS = ("base", "trained")


class Retries:
    """Measures second answers, base against trained: Acc@t1, Acc@t2 and what is between them.

    A retry after the policy's own reflection stands beside the control, a bare retry without one.
    Each is counted twice, from the same chains: ungated, where a reflection that finds no fault
    keeps the first answer, and right ones can be lost; and gated, where only wrong ones are tried
    again, so nothing can be lost by construction.
    """

    def __init__(self, recipe: Recipe, out: Path, exam: Exam, spec: EvalSpec, ui: Ui) -> None:
        self.out, self.exam, self.ui = out, exam, ui
        # What is said of an attempt is worded as in training, too.
        worded = {**recipe.prompt.templates, **spec.prompt.templates}
        prompt = spec.prompt.model_copy(update={"templates": worded})
        self.spec = spec.model_copy(update={"prompt": prompt})
        self.in_one = recipe.reflectevo.training == "I"  # reflection and answer, once trained
        self.tokens = recipe.critic.max_tokens  # of a reflection

    def measure(self, arm: str, adapter: str, reflector: Arrays | None = None) -> None:
        """Evaluates the policy as it is. reflector: what it reflects with, if not that."""
        from mlxreflect.evaluation.chains import self_critic
        from mlxreflect.evaluation.evaluate import evaluate, problem_set
        from mlxreflect.evaluation.generators import ChainGenerator, LocalModel
        from mlxreflect.models.load import weights_hash

        policy, task, problems = self.exam
        weights = f"{adapter} and {weights_hash(reflector)}" if reflector else adapter
        for retry in RETRIES:
            spec = self.spec_of(retry, arm)
            critic = self_critic(policy, spec, reflector) if spec.chain.feedback == "self" else None
            asked = problem_set(task, spec, problems)
            generator = ChainGenerator(LocalModel(policy, weights), asked, critic)
            with self.ui.progress(f"evaluating {arm}, {retry} retry", len(problems)) as bar:
                evaluate(generator, self.out / f"{arm}-{retry}", bar)

    def spec_of(self, retry: str, arm: str) -> EvalSpec:
        from mlxreflect.config.schema import ChainConfig

        reflects = retry == "reflection"
        in_one = reflects and self.in_one and arm == "trained"
        chain = ChainConfig(
            rounds=2,
            round="reflect" if in_one else "retry",
            feedback="self" if reflects and not in_one else "none",
            stops=False,
            max_tokens=self.tokens,
        )
        return self.spec.model_copy(update={"chain": chain})

    def results(self) -> dict[str, Any]:
        """Returns figures of both arms, and tests of trained against base."""
        from mlxreflect.evaluation.chains import chain_of
        from mlxreflect.stats import paired, sentence

        figures, tests = [], []
        for retry, gated in product(RETRIES, (False, True)):
            named, ends = {"retry": retry, "gated": gated}, {}
            for arm in ARMS:
                rows = read_rows(self.out / f"{arm}-{retry}" / "chains.jsonl")
                chains = [chain_of(episode_from_row(row), "") for row in rows]
                ends[arm] = seconds(chains, gated=gated)
                figures.append({"arm": arm, **named, **counted(chains, ends[arm])})
            test = asdict(paired(ends["base"], ends["trained"]))
            said = sentence({**test, "a": "base", "b": "trained", "alpha": 0.05})
            tests.append({**named, **test, "sentence": said})
        return {"schema": "retries/1", "arms": figures, "comparisons": tests}


def second_answers(recipe: Recipe, out: Path, exam: Exam, spec: EvalSpec, ui: Ui) -> Retries | None:
    return Retries(recipe, out, exam, spec, ui) if recipe.reflectevo.retries else None


def seconds(chains: Sequence[Chain], *, gated: bool) -> list[bool]:
    """Returns whether each chain ends right. gated: only wrong first answers are tried again."""
    from mlxreflect.evaluation.chains import correct, satisfied

    ended = []
    for chain in chains:
        first, last = correct(chain.answers[0]), correct(chain.answers[-1])
        praised = any(t.role == "reflection" and satisfied(t.text) for t in chain.turns)
        keeps = first if gated else praised
        ended.append(first if keeps else last)
    return ended


def counted(chains: Sequence[Chain], second: Sequence[bool]) -> dict[str, Any]:
    """Returns a row of figures. failed: reflections that were not written, whose retry is bare."""
    from mlxreflect.evaluation.chains import correct

    first = [correct(chain.answers[0]) for chain in chains]
    moved = list(zip(first, second, strict=True))
    n = len(chains)
    return {
        "n": n,
        "acc_t1": sum(first) / n,
        "acc_t2": sum(second) / n,
        "delta": (sum(second) - sum(first)) / n,
        "wrong_to_right": sum(b and not a for a, b in moved),
        "right_to_wrong": sum(a and not b for a, b in moved),
        "failed": sum(turn.error is not None for chain in chains for turn in chain.turns),
    }


METHOD = Method(
    name="reflectevo",
    keys=ReflectEvoConfig,
    check=check,
    tiers=tiers,
    asks_itself=lambda r: r.reflectevo.reflector == "self" and not r.reflectevo.stored,
    compares=lambda r: r.reflectevo.training in ("III", "IV"),
    plan=plan,
    start=ReflectEvo,
    words={"solved": "right at a retry"},
    prompts=dry_run_prompts,
    check_evaluation=check_evaluation,
    second=second_answers,
    exports={
        "reflectevo": ExportForm(
            data.reflectevo_rows,
            "reflections on failed attempts with their retries (strategy reflectevo)",
        )
    },
)
