"""How many calls of each kind a method makes of its critics, before any is made.

Rules of thumb, for `--dry-run`: a share `wrong` of all that is tried is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mlxreflect.config.schema import Recipe, Tier
from mlxreflect.methods.asked import keeps_bucket

MAX_MASTERY_ROUNDS = 100
Asked = dict[tuple[Tier, str], float]  # critic and role → calls


@dataclass(frozen=True)
class Plan:
    """attempts: of the policy, the first of each problem. side_by_side: problems at a time.

    wording: which attempt_… template they are asked with, where it is not that of the style.
    """

    attempts: int
    side_by_side: int
    asked: Asked
    roles: tuple[str, ...]  # also those that the policy plays itself
    wording: str = ""


@dataclass(frozen=True)
class Visits:
    """R³: problems shown to a critic, by its tier; tries: of critique and rewrite a visit.

    judged: calls of the judge a try.
    """

    visits: dict[Tier, float]
    tries: float
    judged: float


def r3_plan(recipe: Recipe, n: int, wrong: float) -> Plan:
    config = recipe.r3
    found = at_most(recipe, n) if wrong == 1 else expected(recipe, n, wrong)
    asked: Asked = {}
    for tier, visits in found.visits.items():
        for role, who in (("critique", config.feedback), ("rewrite", config.rewriter)):
            if who == "critic":
                asked[tier, role] = visits * found.tries
    roles: tuple[str, ...] = ("critique", "rewrite")
    if config.judge:
        asked["judge", "judge"] = sum(found.visits.values()) * found.tries * found.judged
        roles += ("judge",)
    return Plan(n * config.epochs, config.wave, asked, roles)


def at_most(recipe: Recipe, n: int) -> Visits:
    """Nothing is ever right, and the bucket list only grows; in mastery it loses one a round."""
    config = recipe.r3
    advanced = 0
    if every := config.bucket_every:
        passes = -(-n // every)  # an epoch
        advanced = sum(min(k * every, n) for k in range(1, passes + 1))
        advanced += (config.epochs - 1) * passes * n
    if config.until_mastered:
        advanced += sum(range(n, max(0, n - MAX_MASTERY_ROUNDS), -1)) + n
    visits: dict[Tier, float] = {"basic": n * config.epochs, "advanced": advanced}
    return Visits(visits, config.rewrites * max(1, config.verifications), 2)


def expected(recipe: Recipe, n: int, wrong: float) -> Visits:
    config = recipe.r3
    lost = wrong**config.rewrites  # a cycle without a winner
    tries = sum(wrong**i for i in range(config.rewrites))
    cycles = 1 + (1 - lost) * sum(wrong**i for i in range(1, config.verifications))
    unsolved = lost + (1 - lost) * (wrong**config.verifications if config.verifications else 0)
    first = n * config.epochs * wrong
    again = first * unsolved * wrong if keeps_bucket(recipe) else 0.0
    visits: dict[Tier, float] = {"basic": first, "advanced": again}
    return Visits(visits, tries * cycles, 1 - wrong)


def reflectevo_plan(recipe: Recipe, n: int, wrong: float) -> Plan:
    config = recipe.reflectevo
    made = n * wrong * config.reflections
    asked: Asked = {}
    if config.reflector == "critic" and not config.stored:
        asked["basic", "reflection"] = made
    roles: tuple[str, ...] = ("reflection",)
    if config.training == "IV":  # every two whose retries are right, in both orders
        right = 1.0 if wrong == 1 else 1 - wrong  # at most: all retries
        asked["judge", "prefer"] = made * (config.reflections - 1) * right**2
        roles += ("prefer",)
    return Plan(n, config.wave, asked, roles)


def rel_plan(recipe: Recipe, n: int, wrong: float) -> Plan:
    config = recipe.rel
    first = n * config.rounds
    tried = [first * wrong**i for i in range(config.tries)]
    most = wrong == 1  # what the judge refuses may have passed the grader, and no reply be read
    judged = sum(tried[:-1]) * (1.0 if config.judge else wrong)
    judged += tried[-1] * config.judge * (1.0 if most else 1 - wrong)
    asked: Asked = {("judge", "judge"): judged * (2 if most else 1)} if judged else {}
    roles: tuple[str, ...] = ("judge",) if judged else ()
    written = dict(zip(("continue", "rewrite"), tried[1:], strict=False))
    if config.review:
        written["integrate"] = first * (1.0 if most else 1 - wrong**config.tries)
    if config.writer == "critic":
        asked |= {("basic", role): calls for role, calls in written.items()}
    return Plan(first, config.wave, asked, (*roles, *written), "explore")


def traces_plan(recipe: Recipe, n: int, wrong: float) -> Plan:
    """At most: all traces of the warm-up are right, and each is asked about twice."""
    config = recipe.traces
    warm = min(n, config.warm_up)
    in_round = min(n, config.problems) if config.problems else n
    attempts = warm * config.samples + config.rounds * in_round * config.group
    side_by_side = min(n, config.wave) * config.samples
    if config.scorer == "rules" or not warm:
        return Plan(attempts, side_by_side, {}, ())
    share = 2.0 if wrong == 1 else 1 - wrong
    asked: Asked = {("judge", "score"): warm * config.samples * share}
    return Plan(attempts, side_by_side, asked, ("score",))


def preflexor_plan(recipe: Recipe, n: int, wrong: float) -> Plan:
    """n says nothing: there are as many questions as rounds ask for."""
    config = recipe.preflexor
    each = config.questions * max(1, len(config.topics))
    asked = float(each * (config.rounds + config.two.rounds))
    if not config.corpus:
        taught = asked * (wrong if config.only_wrong else 1)
        return Plan(round(asked), each, {("basic", "answer"): taught}, ("answer",))
    # What is no JSON is asked for once more.
    again, judged = (2, 4) if wrong == 1 else (1, 2)
    calls: Asked = {
        ("basic", "pose"): asked, ("basic", "extract"): asked * again, ("basic", "ground"): asked,
        ("judge", "support"): asked * judged,
    }  # fmt: skip
    return Plan(round(asked), each, calls, ("pose", "extract", "ground", "support"))


# recipe, problems, share that is wrong (1: the most that can be asked) → plan
PLANS: dict[str, Callable[[Recipe, int, float], Plan]] = {
    "r3": r3_plan, "rel": rel_plan, "preflexor": preflexor_plan,
    "reflectevo": reflectevo_plan, "traces": traces_plan,
}  # fmt: skip
