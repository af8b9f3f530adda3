"""The critics that are here to choose from; nothing is asked over the network but Ollama itself."""

import os
from pathlib import Path
from typing import NamedTuple

from mlxreflect.config.checks import MODELS
from mlxreflect.config.schema import Recipe
from mlxreflect.setup.checks import ollama_models
from mlxreflect.setup.recipe_template import HOSTS, self_keys


class Offer(NamedTuple):
    critic: str
    found: str
    base_url: str = ""


def find_offers(solver: bool, usual: Recipe) -> list[Offer]:
    """The critics that are here, the most likely first; the last of them need nothing."""
    offers = [*ollama_offers(usual.critic.model), *key_offers()]
    if is_aws():
        offers.append(Offer(f"bedrock:{MODELS['bedrock']}", "AWS credentials are here"))
    if solver:
        offers.append(Offer("solver", "the task's exact solver, in this process"))
    alone = self_keys(usual.strategy)
    if alone == {}:
        return [Offer("self", "this method asks no critic"), *offers]
    if alone:
        offers.append(Offer("self", f"no critic: {', '.join(f'{k} = {alone[k]}' for k in alone)}"))
    return offers


def ollama_offers(usual: str) -> list[Offer]:
    url, models = ollama_models()
    ordered = sorted(models or [], key=lambda name: name != usual)
    return [Offer(f"ollama:{name}", f"Ollama has it at {url}") for name in ordered if name]


def key_offers() -> list[Offer]:
    prefixes = {"OPENAI_API_KEY": "", "OPENROUTER_API_KEY": "openai/"}
    return [
        Offer(f"openai:{prefixes[name]}{MODELS['openai']}", f"{name} is set", address)
        for name, address in HOSTS.items()
        if os.environ.get(name, "").strip()
    ]


def is_aws() -> bool:
    """Whether AWS credentials are set; nothing is asked over the network."""
    names = ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
    return any(os.environ.get(name) for name in names) or file.expanduser().is_file()
