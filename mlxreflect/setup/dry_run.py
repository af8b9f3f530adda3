"""What `--dry-run` shows: the resolved recipe, a prompt of each role, what critics will cost."""

from datetime import timedelta
from typing import Any

from mlxreflect.config.methods import method_of
from mlxreflect.config.recipe import resolved
from mlxreflect.config.schema import Recipe
from mlxreflect.core.records import Messages, Problem
from mlxreflect.evaluation.contamination import clean
from mlxreflect.methods.rollouts import attempt_prompt
from mlxreflect.methods.session import example_call
from mlxreflect.setup.estimate import estimate
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.base import Task


def dry(recipe: Recipe) -> dict[str, Any]:
    """Spends nothing, loads no model and asks no critic. text: prompts and costs, for a person."""
    task = TASKS[recipe.task.name]
    cleaned = clean(recipe)
    method, sources = method_of(recipe), list(cleaned.problems.values())
    problems = method.questions(recipe, sources)
    roles = rendered(recipe, task, problems[0])
    found = estimate(recipe, task, problems)
    text: list[str] = []
    for role, messages in roles.items():
        text.append(f"--- {role}")
        text += [f"[{m['role']}]\n{m['content']}" for m in messages]
    text += [f"--- {cleaned.sentence()}"] if cleaned.counts else []
    text += [f"--- {note.text}" for note in method.notes(recipe, sources)]
    text += told(recipe, found)
    return {
        "recipe": resolved(recipe), "prompts": roles, "estimate": found,
        "decontaminated": cleaned.counts, "text": "\n".join(text),
    }  # fmt: skip


def rendered(recipe: Recipe, task: Task, problem: Problem) -> dict[str, Messages]:
    """The prompt of each role that the run has, for one problem."""
    method = method_of(recipe)
    roles = {"attempt": attempt_prompt(recipe, task, problem, method.wording)}
    for role in method.plan(recipe, 1, 1.0).roles:
        call = example_call(recipe, task, role, problem, "(an attempt)", "(feedback)")
        roles[role] = call.messages
    return roles | method.prompts(recipe, task, problem)


def told(recipe: Recipe, found: dict[str, Any]) -> list[str]:
    """The estimate in words."""
    most, likely, rules = found["at_most"], found["expected"], found["rules"]
    lines = [
        f"--- {found['attempts']} attempts, at most {most['calls']} critic calls "
        f"(expected: {likely['calls']})"
    ]
    for tier in method_of(recipe).tiers(recipe):
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
