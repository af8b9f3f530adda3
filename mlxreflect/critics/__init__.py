"""Opens critics by provider, and all those of a run."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack

from mlxreflect.config.schema import CriticConfig, Recipe, Tier
from mlxreflect.core.cache import cache_path
from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.critics.base import Critic
from mlxreflect.critics.bedrock import Bedrock
from mlxreflect.critics.client import Client, Provider
from mlxreflect.critics.embeddings import Embedder, Embeds
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.local import LocalCritic
from mlxreflect.critics.ollama import Ollama
from mlxreflect.critics.openai import OpenAI
from mlxreflect.critics.post import Delegate
from mlxreflect.critics.replies import FILE
from mlxreflect.critics.solver import SolverCritic

REMOTE: dict[str, Callable[[CriticConfig], Provider]] = {
    "ollama": Ollama, "openai": OpenAI, "bedrock": Bedrock,
}  # fmt: skip
EMBEDS: dict[str, Callable[[CriticConfig], Embeds]] = {"ollama": Ollama, "openai": OpenAI}
CRITICS = ("solver", "local", *REMOTE)


def open_critic(
    config: CriticConfig,
    task: str,
    run_id: str,
    ledger: Ledger | None = None,
    hosts: Hosts = ALONE,
) -> Critic:
    """Returns the critic of a provider. Raises UserError for settings it cannot be made with.

    task: the name of the task whose solver is asked. run_id: under which replies are kept. hosts:
    which make the requests, from the preflight on.
    """  # fmt: skip
    if config.provider == "solver":
        return SolverCritic(task)
    if config.provider == "local":
        return LocalCritic(config, hosts)
    return Client(config, run_id, REMOTE[config.provider](config), ledger, hosts)


def open_for_rank_0(delegate: Delegate, config: CriticConfig, run_id: str) -> None:
    """Opens a critic whose requests rank 0 hands out. Raises UserError as rank 0 would."""
    own = config.model_copy(update={"cache": "off"})  # replies are rank 0's to look up
    client = Client(own, run_id, REMOTE[config.provider](own))
    delegate.open(client, cache_path(config.cache, FILE))


def open_critics(
    recipe: Recipe,
    tiers: Iterable[Tier],
    run_id: str,
    ledger: Ledger,
    stack: ExitStack,
    hosts: Hosts = ALONE,
) -> dict[str, Critic]:
    """Returns the critics of a run, each known to answer; tiers with the same settings share one.

    stack: closes them. Raises UserError for one that cannot be reached.
    """
    opened: dict[CriticConfig, Critic] = {}
    found: dict[str, Critic] = {}
    for tier in tiers:
        config = recipe.critic.tier(tier)
        if config not in opened:
            critic = opened[config] = open_critic(config, recipe.task.name, run_id, ledger, hosts)
            stack.callback(critic.close)
            critic.preflight()
        found[tier] = opened[config]
    return found


def open_embedder(
    config: CriticConfig, run_id: str, stack: ExitStack, ledger: Ledger | None = None
) -> Embedder:
    """Returns the embedding model of a run, known to be there; stack: closes it.

    config: of its provider's critic, with the model's own name. Raises UserError where it cannot be
    reached.
    """
    made = Embedder(config, run_id, EMBEDS[config.provider](config), ledger)
    stack.callback(made.client.close)
    made.client.preflight()
    return made
