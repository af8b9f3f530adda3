"""What `--dry-run` shows: the resolved recipe, a prompt of each role, what critics will cost."""

from datetime import timedelta
from typing import Any

from mlxreflect.config.recipe import resolved
from mlxreflect.config.schema import Recipe
from mlxreflect.core.records import Messages, Problem
from mlxreflect.evaluation.contamination import clean
from mlxreflect.methods.asked import asked_tiers
from mlxreflect.methods.plans import PLANS
from mlxreflect.methods.preflexor_corpus import make_question
from mlxreflect.methods.rel_worked import human_examples
from mlxreflect.methods.roles import Moves
from mlxreflect.methods.rollouts import attempt_prompt
from mlxreflect.prompts.messages import rewrite_messages
from mlxreflect.setup.estimate import estimate
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.base import Task


def dry(recipe: Recipe) -> dict[str, Any]:
    """Spends nothing, loads no model and asks no critic. text: prompts and costs, for a person."""
    task = TASKS[recipe.task.name]
    cleaned = clean(recipe)
    problems = list(cleaned.problems.values())
    if recipe.preflexor.corpus:
        problems = [make_question(passage, "(a question)") for passage in problems]
    roles = rendered(recipe, task, problems[0])
    found = estimate(recipe, task, problems)
    text: list[str] = []
    for role, messages in roles.items():
        text.append(f"--- {role}")
        text += [f"[{m['role']}]\n{m['content']}" for m in messages]
    text += [f"--- {cleaned.sentence()}"] if cleaned.counts else []
    if recipe.strategy == "rel" and recipe.rel.human:
        text.append(f"--- {human_examples(recipe, task, problems).sentence()}")
    text += told(recipe, found)
    return {
        "recipe": resolved(recipe), "prompts": roles, "estimate": found,
        "decontaminated": cleaned.counts, "text": "\n".join(text),
    }  # fmt: skip


def rendered(recipe: Recipe, task: Task, problem: Problem) -> dict[str, Messages]:
    """The prompt of each role that the run has, for one problem."""
    moves = Moves(recipe, task)
    plan = PLANS[recipe.strategy](recipe, 1, 1.0)
    roles = {"attempt": attempt_prompt(recipe, task, problem, moves.templates, plan.wording)}
    for role in plan.roles:
        roles[role] = moves.example(role, problem, "(an attempt)", "(feedback)").messages
    if recipe.strategy == "reflectevo":  # of the policy, which no critic writes
        roles["retry"] = rewrite_messages(
            task.instruction(problem), task.show(problem), "(an attempt)", "(a reflection)",
            recipe.prompt.tags, None, moves.templates,
        )  # fmt: skip
    return roles


def told(recipe: Recipe, found: dict[str, Any]) -> list[str]:
    """The estimate in words."""
    most, likely, rules = found["at_most"], found["expected"], found["rules"]
    lines = [
        f"--- {found['attempts']} attempts, at most {most['calls']} critic calls "
        f"(expected: {likely['calls']})"
    ]
    for tier in asked_tiers(recipe):
        one = found["critics"][tier]
        both = f"{one['expected']['calls']} calls expected, {one['at_most']['calls']} at most"
        lines.append(f"{tier} critic, {one['critic']}: {both}")
    for name, one in (("expected", likely), ("at most", most)):
        lines.append(
            f"{name}: {one['tokens_in']} tokens in, {one['tokens_out']} out, ${one['usd']:.2f}, "
            f"about {timedelta(seconds=one['seconds'])} of waiting"
        )
    lines.append(
        f"Rules of thumb: expected is with {rules['wrong']:.0%} of attempts, rewrites and "
        f"verifications wrong and texts {rules['filled']:.0%} of their limit; at most is with all "
        f"wrong and every text at its limit. A token is {rules['characters_a_token']} characters, "
        f"a reply takes {rules['seconds_a_reply']:g} s; the policy's own time comes on top."
    )
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
