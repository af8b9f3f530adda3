"""The critics by provider."""

from collections.abc import Callable

from mlxreflect.critics.base import Critic
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.ollama import OllamaCritic
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.recipe import CriticConfig

# config, name of the task, id of the run, its ledger → critic
CRITICS: dict[str, Callable[[CriticConfig, str, str, Ledger], Critic]] = {
    "solver": lambda config, task, run_id, ledger: SolverCritic(config, task),
    "ollama": lambda config, task, run_id, ledger: OllamaCritic(config, run_id, ledger),
}
