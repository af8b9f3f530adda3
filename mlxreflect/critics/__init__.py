"""The critics by provider."""

from collections.abc import Callable

from mlxreflect.critics.base import Critic
from mlxreflect.critics.bedrock import BedrockCritic
from mlxreflect.critics.local import LocalCritic
from mlxreflect.critics.ollama import OllamaCritic
from mlxreflect.critics.openai import OpenAICritic
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.recipe import CriticConfig

# config, name of the task, id of the run → critic
CRITICS: dict[str, Callable[[CriticConfig, str, str], Critic]] = {
    "solver": lambda config, task, run_id: SolverCritic(config, task),
    "local": lambda config, task, run_id: LocalCritic(config),
    "ollama": lambda config, task, run_id: OllamaCritic(config, run_id),
    "openai": lambda config, task, run_id: OpenAICritic(config, run_id),
    "bedrock": lambda config, task, run_id: BedrockCritic(config, run_id),
}
