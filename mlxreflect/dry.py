"""What `--dry-run` shows: the resolved recipe, one rendered prompt a role, the calls expected."""

from typing import Any

from mlxreflect import prompts
from mlxreflect.recipe import Recipe, dump_recipe
from mlxreflect.tasks import TASKS, training_problems


def dry(recipe: Recipe) -> dict[str, Any]:
    """Spends nothing and loads no model. text: all of it, for a person."""
    task = TASKS[recipe.task.name]
    problems = training_problems(recipe, [])
    problem = next(iter(problems.values()))
    tags, question, gold = recipe.prompt.tags, task.show(problem), task.gold(problem)
    ask = task.instruction(problem)
    roles = {
        "attempt": prompts.attempt_messages(ask, question, tags, recipe.prompt.style),
        "critique": prompts.critique_messages(question, "(an attempt)", tags, gold),
        "rewrite": prompts.rewrite_messages(
            ask, question, "(an attempt)", "(feedback)", tags, gold
        ),
    }
    tries = recipe.r3.rewrites * max(1, recipe.r3.verifications)
    most = {
        "attempts": len(problems) * recipe.r3.epochs,
        "critic_calls_at_most": 2 * tries * len(problems) * recipe.r3.epochs,
    }
    text = [dump_recipe(recipe)]
    for role, messages in roles.items():
        text.append(f"--- {role}")
        text += [f"[{m['role']}]\n{m['content']}" for m in messages]
    text.append(f"--- {most['attempts']} attempts, at most {most['critic_calls_at_most']} "
                "critic calls (as many as if every rewrite failed)")  # fmt: skip
    return {
        "recipe": recipe.model_dump(), "prompts": roles, "estimate": most, "text": "\n".join(text)
    }  # fmt: skip
