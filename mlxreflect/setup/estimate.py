"""What a run will ask its critics, before anything is spent: expected and at most, by stated rules.

Expected: half of all attempts, rewrites and verifications are wrong, replies fill half of what they
may, and what stays unsolved is on the bucket list once. At most: nothing is ever right, and every
text is as long as it may be. Requests that fail and are sent again are in neither.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlxreflect.config.schema import Recipe, Tier
from mlxreflect.core.records import Problem
from mlxreflect.methods.asked import asked_tiers
from mlxreflect.methods.plans import PLANS, Plan
from mlxreflect.methods.roles import Moves
from mlxreflect.tasks.base import Task

WRONG = 0.5  # assumed share of what is tried
FILLED = 0.5  # assumed share of what a text may have in tokens
CHARACTERS_A_TOKEN = 4
SECONDS_A_REPLY = 10.0  # a rule of thumb: 500 tokens at 50 a second
# Texts of the policy, and of a critic, that a prompt of each role quotes.
QUOTED = {"critique": (1, 0), "rewrite": (1, 1), "continue": (1, 1), "judge": (1, 0),
          "reflection": (1, 0), "prefer": (0, 2), "score": (1, 0),
          "pose": (0, 0), "integrate": (2, 1), "answer": (0, 0), "extract": (0, 0),
          "ground": (0, 1), "support": (1, 0)}  # fmt: skip


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


def estimate(recipe: Recipe, task: Task, problems: Sequence[Problem]) -> dict[str, Any]:
    """Figures of the whole run and of each critic in it; rules: what was assumed."""
    tiers: dict[str, dict[str, Any]] = {}
    totals: dict[str, Any] = {}
    planned = PLANS[recipe.strategy]
    for name, wrong, filled in (("expected", WRONG, FILLED), ("at_most", 1.0, 1.0)):
        plan = planned(recipe, len(problems), wrong)
        sizes = prompt_tokens(recipe, task, problems, plan.roles, longest=filled == 1)
        spent = {tier: spending(recipe, plan, sizes, filled, tier) for tier in asked_tiers(recipe)}
        totals[name] = sum(spent.values(), Spending()).rounded()
        for tier, one in spent.items():
            config = recipe.critic.tier(tier)
            tiers.setdefault(tier, {"critic": f"{config.provider}:{config.model}".rstrip(":")})
            tiers[tier][name] = one.rounded()
    return {
        "attempts": plan.attempts,
        "critic_calls_at_most": totals["at_most"]["calls"],
        **totals,
        "critics": tiers,
        "rules": {
            "wrong": WRONG, "filled": FILLED, "characters_a_token": CHARACTERS_A_TOKEN,
            "seconds_a_reply": SECONDS_A_REPLY,
        },
    }  # fmt: skip


def spending(
    recipe: Recipe, plan: Plan, sizes: dict[str, float], filled: float, tier: Tier
) -> Spending:
    """What one critic is asked in all. filled: share of its limit that a text has."""
    config = recipe.critic.tier(tier)
    attempt = filled * max(recipe.policy.max_new_tokens, config.max_tokens)
    reply = filled * config.max_tokens
    asked = {role: calls for (who, role), calls in plan.asked.items() if who == tier}
    calls = sum(asked.values())
    if config.provider == "solver":  # reads no tokens, and nobody waits for it
        return Spending(calls)
    tokens_in = 0.0
    for role, times in asked.items():
        attempts, replies = QUOTED[role]
        passages = filled * passages_in(recipe, role) * recipe.preflexor.chunk / CHARACTERS_A_TOKEN
        tokens_in += times * (sizes[role] + attempts * attempt + replies * reply + passages)
    tokens_out = calls * reply
    usd = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6
    side_by_side = min(config.concurrency, plan.side_by_side)
    return Spending(calls, tokens_in, tokens_out, usd, calls / side_by_side * SECONDS_A_REPLY)


def passages_in(recipe: Recipe, role: str) -> int:
    """How many passages of a corpus a prompt of a role quotes, at most."""
    beside = recipe.preflexor.retrieve
    return {"pose": 1}.get(role, 1 + beside if role in ("extract", "ground", "support") else 0)


def prompt_tokens(
    recipe: Recipe, task: Task, problems: Sequence[Problem], roles: Sequence[str], *, longest: bool
) -> dict[str, float]:
    """Tokens of each role's prompt around the texts quoted in it: the longest, or the mean."""
    moves = Moves(recipe, task)
    sizes = {
        role: [sum(len(m["content"]) for m in moves.example(role, p).messages) for p in problems]
        for role in roles
    }
    return {
        role: (max(found) if longest else sum(found) / len(found)) / CHARACTERS_A_TOKEN
        for role, found in sizes.items()
    }
