"""`--dry-run`: what critics will cost, how long a run takes, a prompt of each role, the recipe.

The costs are expected and at most, by stated rules. Expected: as many attempts are wrong as were
where the pace was measured, else half; replies fill half of what they may, and what stays unsolved
is on the bucket list once. At most: nothing is ever right, and every text is as long as it may be.
Requests that fail and are sent again are in neither.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mlxreflect.config.recipe import eval_specs, resolved
from mlxreflect.config.schema import CriticConfig, Recipe, Tier, method_of
from mlxreflect.core.records import Messages, Problem
from mlxreflect.core.ui import Ui, plural
from mlxreflect.critics.embeddings import BATCH
from mlxreflect.evaluation.contamination import clean
from mlxreflect.evaluation.evaluate import eval_problems
from mlxreflect.evaluation.judge import Pair, call_of, find_judge, judgements_of
from mlxreflect.methods.base import AT_MOST, LIKELY, Plan, Shares
from mlxreflect.methods.session import attempt_prompt, example_call
from mlxreflect.prompts.roles import ROLES, RUBRIC
from mlxreflect.setup.pace import foresee
from mlxreflect.tasks import find_task, get_task, is_open
from mlxreflect.tasks.base import Task

FILLED = 0.5  # assumed share of what a text may have in tokens
CHARACTERS_A_TOKEN = 4
EMBEDDER = "embedder"  # beside the tiers of critics


def dry(recipe: Recipe, ui: Ui | None = None) -> dict[str, Any]:
    """Spends nothing. text: prompts and costs, for a person. time: as of `pace.foresee`.

    ui: shows how the pace is measured; without it no model is loaded and no critic is asked.
    """
    task = get_task(recipe.task.name)
    cleaned = clean(recipe)
    method, sources = method_of(recipe), list(cleaned.problems.values())
    problems = method.questions(recipe, sources)
    roles = example_prompts(recipe, task, problems[0])
    time = foresee(recipe, cleaned.problems, ui) if ui else {"shares": LIKELY}
    found = estimate(recipe, task, problems, time["shares"])
    found |= {"judging": judging} if (judging := estimate_judging(recipe)) else {}
    text = estimate_lines(recipe, found)
    text += [f"--- {cleaned.sentence()}"] if cleaned.counts else []
    text += [f"--- {note.text}" for note in method.notes(recipe, sources)]
    for role, messages in roles.items():
        text.append(f"--- {role}")
        text += [f"[{m['role']}]\n{m['content']}" for m in messages]
    return {
        "recipe": resolved(recipe), "prompts": roles, "estimate": found,
        "time": time, "decontaminated": cleaned.counts, "text": "\n".join(text),
    }  # fmt: skip


def example_prompts(recipe: Recipe, task: Task, problem: Problem) -> dict[str, Messages]:
    """Returns the prompt of each role that the run has, for one problem."""
    method = method_of(recipe)
    roles = {"attempt": attempt_prompt(recipe, task, problem, method.wording)}
    for role in method.plan(recipe, 1, AT_MOST).roles:
        call = example_call(recipe, task, role, problem, "(an attempt)", "(feedback)")
        roles[role] = call.messages
    return roles | method.prompts(recipe, task, problem)


def estimate_lines(recipe: Recipe, found: dict[str, Any]) -> list[str]:
    """Returns the estimate in words."""
    most, likely, rules = found["at_most"], found["expected"], found["rules"]
    calls = f"at most {plural(most['calls'], 'critic call')} (expected: {likely['calls']})"
    attempts = plural(found["attempts"], "attempt")
    lines = [f"--- {attempts}, {calls if most['calls'] else 'no critic calls'}"]
    for tier, one in found["critics"].items():
        expected, at_most = (one[kind]["calls"] for kind in ("expected", "at_most"))
        both = f"{plural(expected, 'call')} expected, {at_most} at most"
        who = tier if tier == EMBEDDER else f"{tier} critic"
        lines.append(f"{who}, {one['critic']}: {both}")
    if most["tokens_in"]:  # all figures are 0 where only the exact solver is asked, or nobody
        lines += [
            f"{name}: {one['tokens_in']} tokens in, {one['tokens_out']} out, ${one['usd']:.2f}"
            for name, one in (("expected", likely), ("at most", most))
        ]
        lines.append(
            f"Rules of thumb: expected is with {rules['wrong']:.0%} of attempts and verifications "
            f"wrong, {rules['helped']:.0%} of rewrites, and texts {rules['filled']:.0%} of their "
            "limit; at most is with all wrong and every text at its limit. A token is "
            f"{rules['characters_a_token']} characters."
        )
    lines += [
        f"{name} is judged at the end by {one['critic']}: {one['calls']} calls for each model "
        f"against base, {one['tokens_in']} tokens in, {one['tokens_out']} out, ${one['usd']:.2f}"
        for name, one in found.get("judging", {}).items()
    ]
    limits = recipe.critic.budget.model_dump()
    lines += [
        f"The run stops at critic.budget.{name} = {limit}"
        for name, limit in limits.items()
        if limit
    ]
    lines += [
        f"Learning ends with the wave that reaches limits.{name} = {limit}"
        for name, limit in recipe.limits
        if limit
    ]
    return lines


# ---- the estimate --------------------------------------------------------------------------------


class Spending(NamedTuple):
    calls: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    usd: float = 0.0

    def rounded(self) -> dict[str, float]:
        whole = {name: round(value) for name, value in self._asdict().items()}
        return {**whole, "usd": round(self.usd, 4)}


def estimate(
    recipe: Recipe, task: Task, problems: Sequence[Problem], likely: Shares = LIKELY
) -> dict[str, Any]:
    """Returns figures of the whole run and of each critic in it. rules: what was assumed."""
    tiers: dict[str, dict[str, Any]] = {}
    totals: dict[str, Any] = {}
    method = method_of(recipe)
    for name, shares, filled in (("expected", likely, FILLED), ("at_most", AT_MOST, 1.0)):
        plan = method.plan(recipe, len(problems), shares)
        sizes = prompt_tokens(recipe, task, problems, plan.roles, longest=filled == 1)
        asked: dict[str, tuple[CriticConfig, Spending]] = {
            tier: (recipe.critic.tier(tier), spending(recipe, plan, sizes, filled, tier))
            for tier in method.tiers(recipe)
        }
        if embeds := method.embedder(recipe):
            asked[EMBEDDER] = embeds, embedding(plan, embeds, filled)
        sums = map(sum, zip(*(one for _, one in asked.values()), strict=True))
        totals[name] = Spending(*sums).rounded()
        for tier, (config, one) in asked.items():
            tiers.setdefault(tier, {"critic": f"{config.provider}:{config.model}".rstrip(":")})
            tiers[tier][name] = one.rounded()
    return {
        "attempts": plan.attempts,
        "critic_calls_at_most": totals["at_most"]["calls"],
        **totals,
        "critics": tiers,
        "rules": {
            "wrong": likely.wrong, "helped": likely.helped, "filled": FILLED,
            "characters_a_token": CHARACTERS_A_TOKEN,
        },
    }  # fmt: skip


def embedding(plan: Plan, config: CriticConfig, filled: float) -> Spending:
    """Returns what the embedding model is asked, where none of it is in the cache."""
    calls = sum(-(-texts // BATCH) for texts in plan.embedded)
    tokens = sum(plan.embedded) * filled * plan.longest / CHARACTERS_A_TOKEN
    return Spending(calls, tokens, usd=tokens * config.price_in / 1e6)


def estimate_judging(recipe: Recipe) -> dict[str, Any]:
    """Returns of each evaluation of open questions its judge, and what one comparison takes.

    Every question is asked in both orders; texts fill their usual share.
    """
    found: dict[str, Any] = {}
    for name, spec in eval_specs(recipe).items():
        config = find_judge(spec, usual=recipe.critic.tier("judge")) if is_open(spec.task) else None
        if config is None:
            continue
        pairs = [Pair(one, "a", "b") for one in eval_problems(find_task(spec.task), spec)]
        calls = [call_of(one, spec.judge.rubric or RUBRIC, spec)
                 for one in judgements_of(pairs, spec.seed)]  # fmt: skip
        written = sum(len(m["content"]) for call in calls for m in call.messages)
        answers = 2 * FILLED * spec.max_new_tokens * len(calls)
        tokens_in = written / CHARACTERS_A_TOKEN + answers
        tokens_out = FILLED * config.max_tokens * len(calls)
        usd = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6
        spent = Spending(len(calls), tokens_in, tokens_out, usd)
        found[name] = {"critic": f"{config.provider}:{config.model}", **spent.rounded()}
    return found


def spending(
    recipe: Recipe, plan: Plan, sizes: dict[str, float], filled: float, tier: Tier
) -> Spending:
    """Returns all that one critic is asked. filled: share of its limit that a text has."""
    config = recipe.critic.tier(tier)
    attempt = filled * max(recipe.policy.max_new_tokens, config.max_tokens)
    reply = filled * config.max_tokens
    asked = {role: calls for (who, role), calls in plan.calls.items() if who == tier}
    calls = sum(asked.values())
    if config.provider == "solver":  # reads no tokens, and nobody waits for it
        return Spending(calls)
    tokens_in = 0.0
    for role, times in asked.items():
        attempts, replies = ROLES[role].quotes
        passages = filled * plan.quoted.get(role, 0) / CHARACTERS_A_TOKEN
        tokens_in += times * (sizes[role] + attempts * attempt + replies * reply + passages)
    tokens_out = calls * reply
    usd = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6
    return Spending(calls, tokens_in, tokens_out, usd)


def prompt_tokens(
    recipe: Recipe, task: Task, problems: Sequence[Problem], roles: Sequence[str], *, longest: bool
) -> dict[str, float]:
    """Returns the tokens of each role's prompt around its quotes: the longest, or the mean."""

    def size(role: str, problem: Problem) -> int:
        return sum(len(m["content"]) for m in example_call(recipe, task, role, problem).messages)

    sizes = {role: [size(role, problem) for problem in problems] for role in roles}
    return {
        role: (max(found) if longest else sum(found) / len(found)) / CHARACTERS_A_TOKEN
        for role, found in sizes.items()
    }
