"""What the types of a recipe cannot say: keys that contradict each other."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from mlxreflect.config.fields import changed_below, idle_keys
from mlxreflect.config.schema import (
    METHODS,
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
from mlxreflect.methods.asked import phases, traces_tiers

# For each provider, what a critic.model may look like.
MODELS = {
    "local": "mlx-community/Qwen2.5-7B-Instruct-4bit", "ollama": "qwen2.5:7b",
    "openai": "gpt-4.1-mini", "bedrock": "us.amazon.nova-pro-v1:0",
}  # fmt: skip
# Methods that teach workings and thoughts, and so have nothing for those asked for answers alone.
THOUGHTFUL = ("rel", "preflexor")


def check_recipe(recipe: Recipe, path: Path, settings: Sequence[str] = ()) -> None:
    """What the types cannot say: keys that contradict each other."""
    for name in METHODS:
        if name != recipe.strategy and name in recipe.model_fields_set:
            raise UserError(
                f"{path}: [{name}] does nothing while strategy = {recipe.strategy!r}",
                f"leave that table out, or set strategy = {name!r}",
            )
    if recipe.r3.verify_pass > recipe.r3.verify_samples:
        raise UserError(
            f"{path}: r3.verify_pass = {recipe.r3.verify_pass} can never be reached with "
            f"r3.verify_samples = {recipe.r3.verify_samples}",
            "lower r3.verify_pass or raise r3.verify_samples",
        )
    if recipe.prompt.style == "direct" and recipe.strategy in THOUGHTFUL:
        raise UserError(
            f"{path}: prompt.style = 'direct' asks for the answer alone, and {recipe.strategy} "
            "teaches thoughts that others wrote",
            "leave prompt.style out; eval.direct = true also asks for answers without a thought",
        )
    if recipe.train.dpo == 0 and recipe.train.nll == 0:
        raise UserError(
            f"{path}: train.dpo and train.nll are both 0, nothing would be trained",
            "give one of them a weight above 0",
        )
    if recipe.strategy == "traces":
        check_traces(recipe, path)
    check_idle(recipe, path)
    for train in phases(recipe):
        check_objective(train.objective, train, recipe.policy.quantize, path)
    if recipe.strategy == "reflectevo":
        check_reflectevo(recipe, path)
    if recipe.rel.target == "tidied" and not recipe.rel.review:
        raise UserError(
            f"{path}: rel.target = 'tidied' while rel.review = false, which tidies nothing",
            'set rel.review = true, or rel.target = "working"',
        )
    imitates = recipe.strategy == "reflectevo" and recipe.reflectevo.training in ("I", "II")
    pairs = recipe.strategy != "rel" and not imitates
    compared = any(train.objective != "orpo" for train in phases(recipe))
    refers = pairs and compared and recipe.train.dpo > 0
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
    if recipe.strategy == "preflexor":
        check_preflexor(recipe, path)
    check_spending(recipe, path)


def check_traces(recipe: Recipe, path: Path) -> None:
    config = recipe.traces
    if not config.rounds and not config.warm_up:
        raise UserError(
            f"{path}: traces.rounds and traces.warm_up are both 0, nothing would be trained",
            "give one of them a number",
        )
    if config.rounds and not config.reward_answer and not config.reward_format:
        raise UserError(
            f"{path}: traces.reward_answer and traces.reward_format are both 0: no reward",
            "give one of them a weight above 0",
        )
    if config.rounds and not recipe.policy.temperature:
        raise UserError(
            f"{path}: policy.temperature = 0: a group of samples that are all the same teaches "
            "nothing",
            "set policy.temperature, for example to 1.0, or traces.rounds = 0",
        )
    if traces_tiers(recipe) and recipe.critic.tier("judge").provider == "solver":
        raise UserError(
            f'{path}: traces.scorer = "critic" needs a model, and the solver gives no marks',
            'set critic.provider, or traces.scorer = "rules"',
        )


def check_idle(recipe: Recipe, path: Path) -> None:
    """Raises UserError for a key of [train] that the method has no use for."""
    idle = dict.fromkeys(idle_keys(TrainConfig, recipe.strategy), recipe.strategy)
    for key, value, method in changed_below(recipe.train, TrainConfig(), idle):
        raise UserError(
            f"{path}: train.{key} = {value!r} does nothing for {method}", "leave that key out"
        )


def check_reflectevo(recipe: Recipe, path: Path) -> None:
    """Keys of [reflectevo] that contradict each other, or the rest."""
    from mlxreflect.methods.reflectevo_data import POOL

    config = recipe.reflectevo
    if config.stored and config.reflector == "critic":
        raise UserError(
            f"{path}: reflectevo.reflector = 'critic' does nothing: reflections come from "
            f"reflectevo.stored = {config.stored!r}",
            "leave one of them out",
        )
    if strange := [name for name in config.instructions if name not in POOL]:
        raise UserError(
            f"{path}: reflectevo.instructions has no {strange[0]!r}",
            f"such as: {', '.join(list(POOL)[:3])}; mlxreflect/methods/reflectevo_data.py has all",
        )
    if config.training == "IV" and recipe.critic.tier("judge").provider == "solver":
        raise UserError(
            f"{path}: reflectevo.training = 'IV' asks the judge which reflection is better, and "
            "the solver cannot say",
            'set critic.judge.provider = "ollama" and critic.judge.model, or another training',
        )
    if config.training == "II" and recipe.train.tune == "full":
        raise UserError(
            f"{path}: reflectevo.training = 'II' trains two adapters, and train.tune = 'full' none",
            'leave out train.tune, or set reflectevo.training = "I"',
        )


def check_preflexor(recipe: Recipe, path: Path) -> None:
    config = recipe.preflexor
    if not config.rounds and not config.two.rounds:
        raise UserError(
            f"{path}: preflexor.rounds and preflexor.two.rounds are both 0, nothing would be done",
            "give one of the phases a round",
        )
    if config.topics and not config.corpus:
        raise UserError(
            f"{path}: preflexor.topics are looked for in a corpus, and preflexor.corpus is empty",
            "set preflexor.corpus to a folder of texts, or leave the topics out",
        )
    if config.corpus and recipe.task.name != "jsonl":
        raise UserError(
            f"{path}: questions posed from preflexor.corpus are no problems of the task "
            f"{recipe.task.name}",
            'set task.name = "jsonl", and task.source or eval.spec to what the model is tested on',
        )
    if config.corpus and "solver" in (critic.provider for critic in map(recipe.critic.tier, TIERS)):
        raise UserError(
            f'{path}: critic.provider = "solver" cannot pose questions from preflexor.corpus',
            'set critic.provider = "ollama", or another one that reads texts',
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
