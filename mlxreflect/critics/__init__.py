"""The critics by provider, and those of a run."""

from collections.abc import Callable
from contextlib import ExitStack

from mlxreflect.config.schema import REMOTE, CriticConfig, Recipe
from mlxreflect.critics.base import Critic
from mlxreflect.critics.bedrock import BedrockCritic
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.local import LocalCritic
from mlxreflect.critics.ollama import OllamaCritic
from mlxreflect.critics.openai import OpenAICritic
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.methods.asked import asked_tiers

# config, name of the task, id of the run, its ledger → critic
CRITICS: dict[str, Callable[[CriticConfig, str, str, Ledger], Critic]] = {
    "solver": lambda config, task, run_id, ledger: SolverCritic(config, task),
    "local": lambda config, task, run_id, ledger: LocalCritic(config),
    "ollama": lambda config, task, run_id, ledger: OllamaCritic(config, run_id, ledger),
    "openai": lambda config, task, run_id, ledger: OpenAICritic(config, run_id, ledger),
    "bedrock": lambda config, task, run_id, ledger: BedrockCritic(config, run_id, ledger),
}


def open_critics(
    recipe: Recipe, run_id: str, ledger: Ledger, stack: ExitStack
) -> dict[str, Critic]:
    """The critics that a run asks, each known to answer; one where settings are the same.

    A replay asks nobody, so there is nobody who would have to answer.
    """
    wanted = asked_tiers(recipe)
    opened: dict[CriticConfig, Critic] = {}
    for tier in wanted:
        config = recipe.critic.tier(tier)
        if config in opened:
            continue
        critic = CRITICS[config.provider](config, recipe.task.name, run_id, ledger)
        stack.callback(critic.close)
        if not (config.replay and config.provider in REMOTE):
            critic.preflight()
        opened[config] = critic
    return {tier: opened[recipe.critic.tier(tier)] for tier in wanted}
