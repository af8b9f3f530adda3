"""Measures how long a run will take: its policy, trainer and critics do some of what they will do.

Every figure is of this machine, of these models, and of the recipe's batches and lengths. What
cannot be measured is named, and not guessed. A clock on the wall ends it, whoever is waited for.
Nothing is written, and no cache is read.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import cycle, islice
from statistics import fmean, stdev
from typing import Any, NamedTuple

from mlxreflect.config.recipe import eval_specs
from mlxreflect.config.schema import REMOTE, CriticConfig, EvalSpec, Recipe, method_of
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Example, Problem, Turn
from mlxreflect.core.ui import Ui
from mlxreflect.critics import open_critic
from mlxreflect.critics.base import Critic, Reply
from mlxreflect.critics.client import Client
from mlxreflect.critics.http import LOOPBACK
from mlxreflect.critics.local import SelfCritic
from mlxreflect.critics.openai import parse_base
from mlxreflect.evaluation.evaluate import SILENT, ProblemSet, problem_set
from mlxreflect.evaluation.generators import LocalGenerator, LocalModel
from mlxreflect.methods.base import LIKELY, Shares, cut_off, passed
from mlxreflect.methods.learning import Learning
from mlxreflect.methods.session import HELPED, STRUCTURED, Rollouts, example_call, turn_of
from mlxreflect.models.load import find_model, limit_memory, load_policy
from mlxreflect.models.template import with_tags
from mlxreflect.runs.arms import directly
from mlxreflect.setup.forecast import Drawn, Pace, Speed, told
from mlxreflect.tasks import find_task, is_open
from mlxreflect.tasks.base import Task
from mlxreflect.train.lora import attach
from mlxreflect.train.trainer import Trainer

# Seconds that attempts, evaluations and training are measured for together: long enough for stable
# figures, and short beside any run. Where they are stable before, it ends before.
SECONDS = 20.0
REPLIES_S = 30.0  # that a critic is waited for besides: one reply of a large model may take as long
MOST_S = 60.0  # that all of it may take once the policy is loaded
STEPS = 8  # tokens of a short answer, by which one step is timed
STABLE = 0.1  # a mean is known well enough with a standard error of this share of it
REPEATS = 20  # of what is short, whether stable or not
LATE = f"not measured within {MOST_S:.0f} s"
CLOUD = ("-cloud", ":cloud")  # ends of names of models that Ollama asks elsewhere, for money
TryOut = tuple[Problem, Turn]
clock = time.monotonic


# ---- a run, before it begins ---------------------------------------------------------------------


def foresee(recipe: Recipe, problems: Mapping[str, Problem], ui: Ui) -> dict[str, Any]:
    """Measures, and returns how long the run takes and when it ends, in figures and in lines.

    problems: that it learns from. shares: measured, or else assumed. What stands in the way is
    said; Ctrl-C leaves it out.
    """
    try:
        if find_model(recipe.policy.model, "policy.model") is None:
            raise UserError(f"{recipe.policy.model} is not here yet", "")
        pace = measure(recipe, problems, ui)
        return told(recipe, len(problems), pace, datetime.now())
    except UserError as error:
        why = error.message
    except KeyboardInterrupt:
        why = "stopped"
    text = f"not known, for nothing was measured: {why}"
    return {"seconds": None, "known_seconds": 0.0, "unknown": {"policy": why}, "shares": LIKELY,
            "text": text, "lines": [f"--- time: {text}"]}  # fmt: skip


# ---- measuring -----------------------------------------------------------------------------------


class Trial(NamedTuple):
    """The parts of a run over n problems that are measured."""

    recipe: Recipe
    task: Task
    n: int
    rollouts: Rollouts
    learning: Learning


class OutOfTime(Exception):
    """Raised in the main thread wherever it is, as Ctrl-C is."""


@contextmanager
def until(end: float) -> Iterator[None]:
    """Raises OutOfTime in a block at that time on the clock, as far as it is the main thread's."""
    left = end - clock()
    if left <= 0:
        raise OutOfTime
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise OutOfTime

    before, timer = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, left)
    try:
        try:
            yield
        finally:  # where the signal may still come
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def measure(recipe: Recipe, problems: Mapping[str, Problem], ui: Ui) -> Pace:
    """Measures for some seconds. problems: those that the run learns from.

    Raises UserError where the model, the adapter or the data of an evaluation cannot be loaded, and
    where not even attempts can be measured in time.
    """
    begun, imported = clock(), time.process_time()  # by Python and its imports, as of a run
    with ui.progress("measuring the pace", 4) as bar:
        policy = load_policy(recipe.policy)
        policy.say = ui.line
        limit_memory(recipe.train.cache_limit_gb, recipe.train.wired_limit_gb)
        recipe = with_tags(recipe, policy.template)
        attach(policy.model, recipe.train, recipe.seed, recipe.policy.model, recipe.policy.adapter)
        method, trainer = method_of(recipe), Trainer(policy.model, None)
        task = find_task(recipe.task)
        rollouts = Rollouts(recipe, task, policy, method.wording)
        trial = Trial(recipe, task, len(problems), rollouts, Learning(recipe, policy, trainer))
        draws = Draws(trial, method.questions(recipe, list(problems.values())))
        end = clock() + MOST_S
        try:
            with until(end):
                draws.draw(1, STEPS)  # what is compiled at the first call, is compiled by now
                pace, tries = attempts_pace(draws, imported + clock() - begun)
        except OutOfTime:
            raise UserError(f"{LATE}: attempts", "") from None
        sets = {name: problem_set(find_task(spec.task), with_tags(spec, policy.template))
                for name, spec in evaluations(recipe).items()}  # fmt: skip
        pace.questions = {name: one.total * one.spec.chain.rounds for name, one in sets.items()}
        helped = Helped()
        for name, work, rest in (  # rest: seconds that are left for what follows
            ("evaluations", partial(evaluations_pace, trial, pace, sets), SECONDS),
            ("critics", partial(critics_pace, trial, pace, tries, helped, end), SECONDS / 3),
            ("training", partial(training_pace, trial, pace, tries, helped), 0.0),
        ):
            bar.advance(1)
            bar.update_text(name)
            with suppress(OutOfTime), until(end - rest):
                work()
        bar.advance(1)
    name_missing(trial, pace)
    if method.embedder(recipe):
        pace.unknown["embedder"] = "not measured"
    if any(is_open(spec.task) for spec in eval_specs(recipe).values()):
        pace.unknown["judge of open questions"] = "not measured"
    pace.took = clock() - begun
    return pace


def name_missing(trial: Trial, pace: Pace) -> None:
    """Puts what the run does and was not measured into `unknown`."""
    plan = method_of(trial.recipe).plan(trial.recipe, trial.n, pace.shares)
    missing = [name for name in pace.questions if name not in pace.evaluations]
    missing += [key[0] for key, count in plan.calls.items() if count and key not in pace.replies]
    missing += [role for role, count in plan.written.items() if count and role not in pace.written]
    if any(count and key not in pace.examples for key, count in plan.trained.items()):
        missing.append("training")
    for name in missing:
        pace.unknown.setdefault(name, LATE)


def stable(took: Sequence[float]) -> bool:
    known = len(took) > 3 and stdev(took) <= STABLE * fmean(took) * len(took) ** 0.5
    return known or len(took) == REPEATS


def repeated(work: Callable[[], Any], most: float) -> list[float]:
    """Returns the seconds of work that is done until they are stable, or time is over."""
    took: list[float] = []
    while not took or (sum(took) + took[-1] < most and not stable(took)):
        begun = clock()
        work()
        took.append(clock() - begun)
    return took


# ---- the policy ----------------------------------------------------------------------------------


class Answer(NamedTuple):
    """Tokens of a prompt and of its answer, and whether a limit cut that off."""

    prompt: int
    made: int
    cut: bool


def answers_pace(
    draw: Callable[[int], Sequence[Answer]], speed: Speed, batch: int, group: int, most: int,
    seconds: float,
) -> Drawn:  # fmt: skip
    """Draws answers until their time is stable. draw: a call, of so many tokens an answer at most.

    group: answers to each prompt, which is read once. most: tokens that the run lets them have.
    """
    tokens = min(most, max(STEPS, int(seconds / (speed.step + speed.token * batch))))
    calls: list[Sequence[Answer]] = []
    took = repeated(lambda: calls.append(draw(tokens)), seconds)
    every = [one for call in calls for one in call]
    prompt = fmean(one.prompt for one in every) / group
    plain = sum(speed.seconds(prompt, [one.made for one in call], batch) for call in calls)
    return Drawn(prompt, whole_lengths(every, tokens, most), batch, sum(took) / plain)


def whole_lengths(answers: Sequence[Answer], tokens: int, most: int) -> list[float]:
    """Returns the tokens of each answer, also of those that were cut off early, at `tokens`.

    most: where the run cuts them off. Of what goes on, as many are taken to end with each token as
    did before; where none did, all go on to the end.
    """
    ended = sum(not one.cut for one in answers) / max(1, sum(one.made for one in answers))
    left = (1 - (1 - ended) ** (most - tokens)) / ended if ended else most - tokens
    return [one.made + left * one.cut for one in answers]


class Draws:
    """Draws attempts as the run does, of other problems each time.

    group: samples of each. at_once: samples that a wave draws together, at most a batch.
    """

    def __init__(self, trial: Trial, problems: Sequence[Problem]) -> None:
        self.trial, self.next, self.calls = trial, cycle(problems), 0
        plan = method_of(trial.recipe).plan(trial.recipe, len(problems), LIKELY)
        self.group, batch = plan.group, trial.recipe.policy.batch
        self.at_once = min(batch, max(self.group, round(plan.attempts / plan.waves)))

    def draw(self, samples: int, tokens: int) -> list[TryOut]:
        """Returns so many samples, of so many tokens at most."""
        trial, recipe = self.trial, limited(self.trial.recipe, tokens)
        rollouts = Rollouts(recipe, trial.task, trial.learning.policy, trial.rollouts.wording)
        problems, group = list(islice(self.next, -(-samples // self.group))), self.group
        self.calls += 1
        seed = ("pace", self.calls)
        drawn = rollouts.sample(problems, "attempt", min(samples, group), seed, "policy")
        return [(p, turn) for p, turns in zip(problems, drawn, strict=True) for turn in turns]

    def timed(self, samples: int, tokens: int) -> tuple[float, float]:
        """Returns their seconds, and the tokens of prompts that were read."""
        begun = clock()
        drawn = self.draw(samples, tokens)
        seconds = clock() - begun
        return seconds, sum(turn.usage["prompt"] for _, turn in drawn) / min(samples, self.group)

    def speed(self) -> Speed:
        """Returns the speed of short answers: alone, and as many as the run draws at once."""
        many, few = self.at_once, min(self.at_once, self.group)
        alone, little = self.timed(few, STEPS)
        first, much = self.timed(many, 1)
        more, _ = self.timed(many, STEPS)
        step = max((more - first) / (STEPS - 1), first / 1000)
        prompt = max(0.0, first - step) / much
        step_alone = min(step, max(0.0, alone - prompt * little) / STEPS)
        token = (step - step_alone) / (many - few) if many > few else 0.0
        return Speed(prompt, max(0.0, step - token * many), token)


def limited(recipe: Recipe, tokens: int) -> Recipe:
    policy = recipe.policy.model_copy(update={"max_new_tokens": tokens})
    return recipe.model_copy(update={"policy": policy})


def attempts_pace(draws: Draws, start: float) -> tuple[Pace, list[TryOut]]:
    """Returns what is known after attempts, and these, as long as they will be in the run."""
    recipe, tries = draws.trial.recipe, list[TryOut]()
    most = recipe.policy.max_new_tokens

    def draw(tokens: int) -> list[Answer]:
        drawn = draws.draw(draws.at_once, tokens)
        tries.extend(drawn)
        return [Answer(t.usage["prompt"], t.usage["completion"], cut_off(t)) for _, t in drawn]

    speed, batch = draws.speed(), recipe.policy.batch
    attempts = answers_pace(draw, speed, batch, draws.group, most, SECONDS / 3)
    # One that measuring cut off may still be right.
    known = [t for _, t in tries if not cut_off(t) or t.usage["completion"] >= most]
    wrong = [turn for turn in known if not passed(turn)]
    cut = fmean(map(cut_off, wrong)) if wrong else 0.0
    shares = Shares((len(wrong) + 1) / (len(known) + 2), LIKELY.helped, cut)
    if method_of(recipe).sources(recipe) is not None:  # its questions are posed later
        shares = LIKELY
    grown = [
        (problem, replace(turn, token_ids=list(islice(cycle(turn.token_ids or [0]), round(n)))))
        for (problem, turn), n in zip(tries, attempts.lengths, strict=True)
    ]
    return Pace(start, speed, attempts, shares, len(known), len(known) - len(wrong)), grown


def evaluations(recipe: Recipe) -> dict[str, EvalSpec]:
    """Returns what base and trained are asked, by name; the headline is the first."""
    specs = eval_specs(recipe)
    name, headline = next(iter(specs.items()))
    return specs | ({f"{name}, direct": directly(headline)} if recipe.eval.direct else {})


def evaluations_pace(trial: Trial, pace: Pace, sets: Mapping[str, ProblemSet]) -> None:
    """Answers some questions of each evaluation, as base and trained will answer all."""
    policy = trial.learning.policy
    for name, asked in sets.items():
        spec = asked.spec
        each = max(1, spec.batch // spec.samples)
        places = cycle(range(0, len(asked.problems), each))

        def draw(tokens: int, asked: ProblemSet = asked, each: int = each,
                 places: Iterator[int] = places) -> list[Answer]:  # fmt: skip
            at, spec = next(places), asked.spec.model_copy(update={"max_new_tokens": tokens})
            some = replace(asked, spec=spec, problems=asked.problems[at : at + each],
                           prompts=asked.prompts[at : at + each])  # fmt: skip
            generator = LocalGenerator(LocalModel(policy), some)
            prompts = [prompt for prompt in generator.prompts for _ in range(spec.samples)]
            return [
                Answer(len(prompt), len(row["token_ids"]), row["finish_reason"] == "length")
                for prompt, row in zip(prompts, generator.answer(0, each, SILENT), strict=True)
            ]

        pace.evaluations[name] = answers_pace(
            draw, pace.speed, spec.batch, spec.samples, spec.max_new_tokens,
            SECONDS / 3 / len(sets),
        )  # fmt: skip


# ---- critics -------------------------------------------------------------------------------------


@dataclass
class Helped:
    """Texts that were written with help. right: of each, whether it is. texts: those that are."""

    right: list[bool] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def critics_pace(
    trial: Trial, pace: Pace, tries: Sequence[TryOut], helped: Helped, end: float
) -> None:
    """Asks whoever costs nothing about attempts. helped: gets what was written with help.

    end: of all measuring, on the clock.
    """
    recipe, method = trial.recipe, method_of(trial.recipe)
    plan = method.plan(recipe, trial.n, pace.shares)
    shown = sorted(tries, key=lambda one: (cut_off(one[1]), passed(one[1])))  # wrong ones first
    known: dict[CriticConfig, dict[str, float]] = {}
    for tier in method.tiers(recipe):
        config, roles = recipe.critic.tier(tier), [r for who, r in plan.calls if who == tier]
        width = round(max(1, min(config.concurrency, plan.side_by_side)))
        try:
            if config not in known:
                most = min(REPLIES_S, end - SECONDS / 3 - clock())
                known[config] = replies_pace(trial, config, roles, shown[:width], helped, most)
        except UserError as error:
            pace.unknown[tier] = error.message
            continue
        mean = fmean(known[config].values())
        pace.replies |= {(tier, role): known[config].get(role, mean) for role in roles}
        if config.provider in REMOTE and not config.replay:
            pace.waited.add(tier)
    if plan.written:
        written_pace(trial, pace, list(plan.written), shown, helped)
    if helped.right:
        wrong = (helped.right.count(False) + 1) / (len(helped.right) + 2)
        pace.shares = pace.shares._replace(helped=wrong)


def may_cost(config: CriticConfig) -> str:
    """Returns why asking a critic may cost money; "" where nothing in the recipe tells that."""
    priced = config.price_in > 0 or config.price_out > 0
    if priced or config.provider == "bedrock" or config.model.endswith(CLOUD):
        return "not asked, for that costs money"
    if config.key_env:
        return f"not asked, for that may cost money: it is let in by the key in {config.key_env}"
    if config.provider == "openai" and parse_base(config.base_url).host not in LOOPBACK:
        return "not asked, for that may cost money: its server is not on this machine"
    return ""


def replies_pace(
    trial: Trial, config: CriticConfig, roles: Sequence[str], shown: Sequence[TryOut],
    helped: Helped, most: float,
) -> dict[str, float]:  # fmt: skip
    """Returns the seconds a call, with as many out at once as in the run, of the roles that there
    was time for. most: seconds that a reply is waited for. Raises UserError where it cannot be
    asked, is not to be, or does not answer."""
    if config.replay:
        return dict.fromkeys(roles, 0.0)
    if why := may_cost(config):
        raise UserError(why, "")
    if config.provider == "local" and find_model(config.model, "critic.model") is None:
        raise UserError(f"{config.model} is not here yet", "")
    tried = config.model_copy(update={"cache": "off", "deadline_s": max(most, 0.1)})
    begun, found = clock(), dict[str, float]()
    with closing(open_critic(tried, trial.recipe.task.name, "pace")) as critic:
        critic.preflight()
        if isinstance(critic, Client) and not critic.provider.own:
            at = critic.provider.wire.shown
            raise UserError(f"not asked, for that may cost money: {at} may ask others for it", "")
        if config.provider != "solver":  # a model may have to be loaded first
            ask(trial, critic, roles[0], shown[:1], Helped())
        for role in roles:
            if found and clock() - begun > most / 2:
                break
            seconds, replies = ask(trial, critic, role, shown, helped)
            seconds = fmean(reply.seconds for reply in replies) if critic.waits else seconds
            found[role] = seconds / len(replies)
    return found


def ask(
    trial: Trial, critic: Critic, role: str, shown: Sequence[TryOut], helped: Helped
) -> tuple[float, list[Reply]]:
    """Returns the seconds of calls about attempts, all at once, and the replies.

    Raises UserError for a call that failed.
    """
    calls = [example_call(trial.recipe, trial.task, role, problem, turn.text, "(feedback)")
             for problem, turn in shown]  # fmt: skip
    if role in STRUCTURED:
        calls = [replace(call, schema=STRUCTURED[role].model_json_schema()) for call in calls]
    begun = clock()
    replies = critic.ask(calls)
    seconds = clock() - begun
    if lost := [reply.error for reply in replies if reply.error and reply.kind != "empty"]:
        raise UserError(f"{critic.actor}: {lost[0]}", "")
    for call, reply in zip(calls, replies, strict=True):
        if call.role in HELPED and not reply.error:
            turn = trial.rollouts.graded(call.problem, turn_of(call, reply, critic.actor, None))
            helped.right.append(passed(turn))
            helped.texts += [reply.text] * passed(turn)
    return seconds, replies


def written_pace(
    trial: Trial, pace: Pace, roles: Sequence[str], shown: Sequence[TryOut], helped: Helped
) -> None:
    """Lets the policy write in a critic's place."""
    config, batch = trial.recipe.critic.tier("basic"), pace.attempts.batch
    for role in roles:

        def draw(tokens: int, role: str = role) -> list[Answer]:
            short = config.model_copy(update={"max_tokens": tokens})
            critic = SelfCritic(trial.learning.policy, short, batch)
            _, replies = ask(trial, critic, role, shown[:batch], helped)
            return [Answer(one.usage["prompt"], one.usage["completion"],
                           one.finish_reason == "length") for one in replies]  # fmt: skip

        seconds = SECONDS / 3 / len(roles)
        pace.written[role] = answers_pace(draw, pace.speed, batch, 1, config.max_tokens, seconds)


# ---- training ------------------------------------------------------------------------------------


def training_pace(trial: Trial, pace: Pace, tries: Sequence[TryOut], helped: Helped) -> None:
    """Makes steps of each kind that the run will make, on attempts and what was made of them."""
    recipe, method, learning = trial.recipe, method_of(trial.recipe), trial.learning
    plan = method.plan(recipe, trial.n, pace.shares)
    kinds = [key for key, count in plan.trained.items() if count]
    for phase, kind in kinds:
        train = method.phases(recipe)[phase]
        learning.use(train)

        def fit(count: int, kind: str = kind, most: int = train.batch * train.accumulate) -> None:
            learning.begin_wave()
            learning.begin_stage()
            made = [example_of(trial, kind, tries, helped, i) for i in range(min(count, most))]
            if kind == "sft":
                learning.imitate(made, 1.0, ("pace",))
            elif kind == "group":
                learning.reinforce(made, recipe.traces.grpo, ("pace",))
            else:
                learning.prefer(made, ("pace",))

        begun, most = clock(), SECONDS / 3 / len(kinds)
        fit(1)  # what is compiled at the first step, is compiled by now
        one = fmean(repeated(partial(fit, 1), most / 8))
        left = most - (clock() - begun)
        count = max(1, min(train.batch * train.accumulate, int(left / one)))
        pace.examples[phase, kind] = fmean(repeated(partial(fit, count), left)) / count
        if not learning.steps:
            pace.unknown["training"] = "no example of it fits into train.max_length"


def example_of(
    trial: Trial, kind: str, tries: Sequence[TryOut], helped: Helped, at: int
) -> Example:
    """Returns an example of a kind, as long as those of the run. Nothing is to be learned of it."""
    problem, turn = tries[at % len(tries)]
    prompt, ids = trial.rollouts.prompt(problem), list(turn.token_ids or ())
    text = helped.texts[at % len(helped.texts)] if helped.texts else None
    other = list(tries[(at + 1) % len(tries)][1].token_ids or ())
    if kind == "sft":
        own = None if text else ids
        return Example("sft", prompt, completion=text or turn.text, completion_ids=own)
    if kind == "group":
        size = trial.recipe.traces.group
        made = [tries[(at + i) % len(tries)][1] for i in range(size)]
        return Example(
            "group", prompt, completions=[one.text for one in made],
            completions_ids=[list(one.token_ids or ()) for one in made],
            rewards=[float(i % 2) for i in range(size)],
        )  # fmt: skip
    chosen = None if text else (other if other != ids else [*ids, ids[-1]])
    return Example("preference", prompt, chosen=text or turn.text, rejected=turn.text,
                   chosen_ids=chosen, rejected_ids=ids)  # fmt: skip
