"""The critics by provider."""

from collections.abc import Callable

from mlxreflect.critics.base import Critic
from mlxreflect.critics.bedrock import BedrockCritic
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.local import LocalCritic
from mlxreflect.critics.ollama import OllamaCritic
from mlxreflect.critics.openai import OpenAICritic
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.tables import CriticConfig

# config, name of the task, id of the run, its ledger → critic
CRITICS: dict[str, Callable[[CriticConfig, str, str, Ledger], Critic]] = {
    "solver": lambda config, task, run_id, ledger: SolverCritic(config, task),
    "local": lambda config, task, run_id, ledger: LocalCritic(config),
    "ollama": lambda config, task, run_id, ledger: OllamaCritic(config, run_id, ledger),
    "openai": lambda config, task, run_id, ledger: OpenAICritic(config, run_id, ledger),
    "bedrock": lambda config, task, run_id, ledger: BedrockCritic(config, run_id, ledger),
}
