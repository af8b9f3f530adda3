"""What the types of a recipe cannot say: keys that contradict each other."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from mlxreflect.config.fields import changed_below, idle_keys
from mlxreflect.config.methods import METHODS, method_of
from mlxreflect.config.schema import (
    REMOTE,
    TIERS,
    CriticConfig,
    Fitting,
    Recipe,
    Tier,
    TrainConfig,
)
from mlxreflect.config.toml import explain
from mlxreflect.core.errors import UserError

# For each provider, what a critic.model may look like.
MODELS = {
    "local": "mlx-community/Qwen2.5-7B-Instruct-4bit", "ollama": "qwen2.5:7b",
    "openai": "gpt-4.1-mini", "bedrock": "us.amazon.nova-pro-v1:0",
}  # fmt: skip


def check_recipe(recipe: Recipe, path: Path, settings: Sequence[str] = ()) -> None:
    """What the types cannot say: keys that contradict each other."""
    for name in METHODS:
        if name != recipe.strategy and name in recipe.model_fields_set:
            raise UserError(
                f"{path}: [{name}] does nothing while strategy = {recipe.strategy!r}",
                f"leave that table out, or set strategy = {name!r}",
            )
    method = method_of(recipe)
    method.check(recipe, path)
    if recipe.train.dpo == 0 and recipe.train.nll == 0:
        raise UserError(
            f"{path}: train.dpo and train.nll are both 0, nothing would be trained",
            "give one of them a weight above 0",
        )
    check_idle(recipe, path)
    phases = method.phases(recipe)
    for train in phases:
        check_objective(train.objective, train, recipe.policy.quantize, path)
    compared = any(train.objective != "orpo" for train in phases)
    refers = method.compares(recipe) and compared and recipe.train.dpo > 0
    if recipe.train.tune == "full" and refers and recipe.train.reference != "none":
        raise UserError(
            f"{path}: with train.tune = 'full', {recipe.strategy} would need the weights of the "
            "stage's start a second time, for pairs that are only made later",
            'train LoRA, or set train.reference = "none", train.dpo = 0 or train.objective = '
            '"orpo"',
        )
    if recipe.eval.against and recipe.eval.decontaminate == "off":
        raise UserError(
            f"{path}: eval.against does nothing while eval.decontaminate = 'off'",
            'leave one of them out, or set eval.decontaminate = "exact"',
        )
    for tier in TIERS:
        critic = validate_tier(recipe, tier, path, settings)
        check_critic(critic, path)
    check_spending(recipe, path)


def check_idle(recipe: Recipe, path: Path) -> None:
    """Raises UserError for a key of [train] that the method has no use for."""
    idle = dict.fromkeys(idle_keys(TrainConfig, recipe.strategy), recipe.strategy)
    for key, value, method in changed_below(recipe.train, TrainConfig(), idle):
        raise UserError(
            f"{path}: train.{key} = {value!r} does nothing for {method}", "leave that key out"
        )


def check_critic(critic: CriticConfig, path: Path) -> None:
    """Keys of a critic that its provider could not do with."""
    if critic.provider != "solver" and not critic.model:
        raise UserError(
            f"{path}: critic.provider = {critic.provider!r} needs a model",
            f'set critic.model, for example "{MODELS[critic.provider]}"',
        )
    if critic.provider == "bedrock" and critic.temperature > 1:
        raise UserError(
            f"{path}: critic.temperature = {critic.temperature:g}, and Bedrock takes 0 to 1",
            "set critic.temperature to 1 or less",
        )
    # The value is not shown: it may be the key.
    if critic.key_env and not re.fullmatch("[A-Z_][A-Z0-9_]*", critic.key_env):
        raise UserError(
            f"{path}: critic.key_env is no name of an environment variable in capitals",
            'put the key itself into a variable, and its name here, for example "OPENAI_API_KEY"',
        )


def check_spending(recipe: Recipe, path: Path) -> None:
    """Critic settings that would ask for nothing, cost nothing or give a password away."""
    for tier in TIERS:
        critic = recipe.critic.tier(tier)
        if critic.replay and critic.cache == "off":
            raise UserError(
                f'{path}: critic.replay answers from the cache, and critic.cache = "off"',
                "set critic.cache to the file of the run to repeat, or leave it out",
            )
        free = critic.price_in == 0 and critic.price_out == 0
        if recipe.critic.budget.max_usd and free and critic.provider in REMOTE:
            raise UserError(
                f"{path}: critic.budget.max_usd limits nothing while {critic.provider} "
                f"({tier} critic) has critic.price_in = critic.price_out = 0",
                "set the prices in dollars a million tokens, or limit max_calls or max_tokens",
            )
        if re.search(r"//[^/]*@", critic.base_url):
            raise UserError(
                f"{path}: critic.base_url holds a user name or password, which would be written "
                "into every run",
                "take it out of the address; for Ollama put the whole address into OLLAMA_HOST",
            )


def check_objective(objective: str, train: Fitting, quantize: int, path: Path) -> None:
    """Keys of [train] that contradict an objective or each other."""
    if train.tune == "full" and quantize:
        raise UserError(
            f"{path}: train.tune = 'full' needs weights that are not quantised",
            "leave policy.quantize at 0",
        )
    if objective == "exo_pair" and not train.smoothing:
        raise UserError(
            f"{path}: exo_pair needs train.smoothing above 0",
            "set train.smoothing, for example 0.005",
        )
    if train.nll and objective == "orpo":
        raise UserError(
            f"{path}: train.nll does nothing for orpo, which has the chosen answer's NLL in it",
            "leave train.nll at 0",
        )
    if train.smoothing and objective not in ("dpo", "exo_pair"):
        raise UserError(
            f"{path}: train.smoothing does nothing for {objective}",
            "leave it out, or train dpo or exo_pair",
        )


def validate_tier(
    recipe: Recipe,
    tier: Tier,
    path: Path,
    settings: Sequence[str] = (),
    prefix: str = "",
) -> CriticConfig:
    try:
        return recipe.critic.tier(tier)
    except ValidationError as error:
        full = f"{prefix}.critic.{tier}".lstrip(".")
        raise explain(error, CriticConfig, path, settings, full) from None
