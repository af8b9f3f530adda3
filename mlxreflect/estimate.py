"""What a run will ask its critics, before anything is spent: expected and at most, by stated rules.

Expected: half of all attempts, rewrites and verifications are wrong, replies fill half of what they
may, and what stays unsolved is on the bucket list once. At most: nothing is ever right, and every
text is as long as it may be. Requests that fail and are sent again are in neither.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlxreflect.recipe import asked_tiers, keeps_bucket
from mlxreflect.records import Problem
from mlxreflect.strategies.moves import Moves, Round
from mlxreflect.strategies.waves import MAX_MASTERY_ROUNDS
from mlxreflect.tables import Recipe, Tier
from mlxreflect.tasks.base import Task

WRONG = 0.5  # assumed share of what is tried
FILLED = 0.5  # assumed share of what a text may have in tokens
CHARACTERS_A_TOKEN = 4
SECONDS_A_REPLY = 10.0  # a rule of thumb: 500 tokens at 50 a second
NOTHING = Round("basic", 0, "")


@dataclass(frozen=True)
class Spending:
    """seconds: of waiting, all of a critic's places taken; the policy's own time is not in it."""

    calls: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    usd: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Spending") -> "Spending":
        mine, theirs = asdict(self), asdict(other)
        return Spending(**{name: mine[name] + theirs[name] for name in mine})

    def rounded(self) -> dict[str, float]:
        return {
            **{name: round(value) for name, value in asdict(self).items()},
            "usd": round(self.usd, 4),
        }


@dataclass(frozen=True)
class Amount:
    """How often things happen and how long texts are, in one of the two estimates.

    visits: problems shown to a critic, by its tier. tries: of critique and rewrite a visit.
    judged: calls of the judge a try. filled: share of its limit that a text has.
    """

    visits: dict[Tier, float]
    tries: float
    judged: float
    filled: float


def estimate(recipe: Recipe, task: Task, problems: Sequence[Problem]) -> dict[str, Any]:
    """Figures of the whole run and of each critic in it; rules: what was assumed."""
    tiers: dict[str, dict[str, Any]] = {}
    totals: dict[str, Any] = {}
    for name, amount in (("expected", expected(recipe, len(problems))),
                         ("at_most", at_most(recipe, len(problems)))):  # fmt: skip
        spent = {
            tier: spending(recipe, task, problems, amount, tier) for tier in asked_tiers(recipe)
        }
        totals[name] = sum(spent.values(), Spending()).rounded()
        for tier, one in spent.items():
            config = recipe.critic.tier(tier)
            tiers.setdefault(tier, {"critic": f"{config.provider}:{config.model}".rstrip(":")})
            tiers[tier][name] = one.rounded()
    return {
        "attempts": len(problems) * recipe.r3.epochs,
        "critic_calls_at_most": totals["at_most"]["calls"],
        **totals,
        "critics": tiers,
        "rules": {
            "wrong": WRONG, "filled": FILLED, "characters_a_token": CHARACTERS_A_TOKEN,
            "seconds_a_reply": SECONDS_A_REPLY,
        },
    }  # fmt: skip


def at_most(recipe: Recipe, n: int) -> Amount:
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
    return Amount(visits, config.rewrites * max(1, config.verifications), 2, 1.0)


def expected(recipe: Recipe, n: int) -> Amount:
    config = recipe.r3
    lost = WRONG**config.rewrites  # a cycle without a winner
    tries = sum(WRONG**i for i in range(config.rewrites))
    cycles = 1 + (1 - lost) * sum(WRONG**i for i in range(1, config.verifications))
    unsolved = lost + (1 - lost) * (WRONG**config.verifications if config.verifications else 0)
    wrong = n * config.epochs * WRONG
    again = wrong * unsolved * WRONG if keeps_bucket(recipe) else 0.0
    visits: dict[Tier, float] = {"basic": wrong, "advanced": again}
    return Amount(visits, tries * cycles, 1 - WRONG, FILLED)


def spending(
    recipe: Recipe, task: Task, problems: Sequence[Problem], amount: Amount, tier: Tier
) -> Spending:
    """What one critic is asked in all."""
    config, r3 = recipe.critic.tier(tier), recipe.r3
    sizes = prompt_tokens(recipe, task, problems, longest=amount.filled == 1)
    attempt = amount.filled * max(recipe.policy.max_new_tokens, config.max_tokens)
    reply = amount.filled * config.max_tokens
    if tier == "judge":
        calls = sum(amount.visits.values()) * amount.tries * amount.judged
        tokens_in = calls * (sizes["judge"] + attempt)
    else:
        tries = amount.visits[tier] * amount.tries
        critiques, rewrites = tries * (r3.feedback == "critic"), tries * (r3.rewriter == "critic")
        calls = critiques + rewrites
        tokens_in = critiques * (sizes["critique"] + attempt)
        tokens_in += rewrites * (sizes["rewrite"] + attempt + reply)
    if config.provider == "solver":  # reads no tokens, and nobody waits for it
        return Spending(calls)
    tokens_out = calls * reply
    usd = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6
    side_by_side = min(config.concurrency, r3.wave)
    return Spending(calls, tokens_in, tokens_out, usd, calls / side_by_side * SECONDS_A_REPLY)


def prompt_tokens(
    recipe: Recipe, task: Task, problems: Sequence[Problem], *, longest: bool
) -> dict[str, float]:
    """Tokens of each role's prompt around the texts quoted in it: the longest, or the mean."""
    moves = Moves(recipe, task)
    made = {
        "critique": [moves.critique(p, "", NOTHING) for p in problems],
        "rewrite": [moves.rewrite(p, "", "", NOTHING) for p in problems],
        "judge": [moves.judge(p, "", NOTHING) for p in problems],
    }
    sizes = {
        role: [sum(len(m["content"]) for m in call.messages) for call in calls]
        for role, calls in made.items()
    }
    return {
        role: (max(found) if longest else sum(found) / len(found)) / CHARACTERS_A_TOKEN
        for role, found in sizes.items()
    }
