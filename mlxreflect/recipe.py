"""A recipe: one TOML file that says everything about a run. Unknown keys are refused by name."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlxreflect.errors import UserError
from mlxreflect.settings import (
    apply_settings,
    explain,
    find_toml,
    flatten,
    merge,
    read_toml,
    toml_value,
    validate,
)
from mlxreflect.wording import fetch_templates

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Tier = Literal["basic", "advanced", "judge"]  # of critics
TIERS: tuple[Tier, ...] = ("basic", "advanced", "judge")
REMOTE = ("ollama", "openai", "bedrock")  # providers that are asked over a network


class Table(BaseModel):
    # strict: "8" is no number and 1 no boolean; infinity could not be written back as TOML.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PolicyConfig(Table):
    """The model that learns."""

    model: str = "tiny"  # hub name, path, or the embedded "tiny"
    adapter: str = ""  # a LoRA folder to start from
    quantize: Literal[0, 4, 8] = 0  # bits, on load
    dequantize: Literal["auto", "yes", "no"] = "auto"  # auto: only on the CPU, where it is faster
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Fraction = 0.9
    max_new_tokens: Positive = 1024
    batch: Positive = 32  # sequences in flight


class PromptConfig(Table):
    tags: Literal["think", "reasoning", "preflexor"] = "think"
    style: Literal["thinking", "direct"] = "thinking"
    file: str = ""  # TOML file with wording of your own: template = "text"
    templates: dict[str, str] = {}  # that wording, as the run keeps it


class TaskConfig(Table):
    """Where problems come from. Column names map foreign data onto question and answer."""

    name: str = "countdown"
    source: str = ""  # path or hub data set; empty: the task's own
    config: str = ""  # configuration of a hub data set
    split: str = "train"  # split of a hub data set that the run's problems come from
    limit: Count = 0  # problems of one epoch; 0: all there are
    question: str = "question"
    answer: str = "answer"
    answer_type: Literal["number", "text", "choice"] = "number"
    numbers: list[Annotated[int, Field(ge=2, le=6)]] = [3]  # countdown: how many, one or several


class CriticConfig(Table):
    provider: Literal["solver", "local", "ollama", "openai", "bedrock"] = "solver"
    model: str = ""
    base_url: str = ""
    key_env: str = ""  # openai: the environment variable that holds the key; never the key itself
    region: str = ""  # bedrock; "": as boto3 finds it
    profile: str = ""  # bedrock: of ~/.aws/config
    temperature: Annotated[float, Field(ge=0)] = 0.99
    max_tokens: Positive = 2000
    num_ctx: Positive = 8192
    concurrency: Positive = 4
    deadline_s: Rate = 600.0
    price_in: Annotated[float, Field(ge=0)] = 0.0  # dollars a million tokens of prompt
    price_out: Annotated[float, Field(ge=0)] = 0.0  # and of reply
    cache: str = ""  # "": the user's cache folder, "off", or a path
    replay: bool = False  # answer from the cache alone; what is not there is an error


class BudgetConfig(Table):
    """What all critics of a run together may spend; 0: no limit."""

    max_calls: Count = 0
    max_tokens: Count = 0  # of prompts and replies
    max_usd: Annotated[float, Field(ge=0)] = 0.0  # by critic.price_in and price_out


class Critics(CriticConfig):
    """[critic]; [critic.advanced] and [critic.judge] override it key by key.

    advanced: takes up the bucket list. judge: gives verdicts.
    """

    budget: BudgetConfig = BudgetConfig()
    advanced: dict[str, Any] = {}
    judge: dict[str, Any] = {}

    def tier(self, name: Tier) -> CriticConfig:
        base = self.model_dump(exclude={"budget", "advanced", "judge"})
        return CriticConfig(**{**base, **({} if name == "basic" else getattr(self, name))})


class R3Config(Table):
    wave: Positive = 1
    shard: Count = 0  # samples drawn while a remote critic reviews those before; 0: policy.batch
    epochs: Positive = 1
    rewrites: Positive = 3
    verifications: Count = 5
    verify_samples: Positive = 1
    verify_pass: Positive = 1
    feedback: Literal["critic", "self"] = "critic"
    rewriter: Literal["critic", "self"] = "critic"
    judge: bool = False  # rewrites that pass the grader must also convince the judge
    sft_mode: Literal[0, 1, 2, 3] = 1  # once verified: 0 none, 1 last winner, 2 verified, 3 both
    sft_correct: bool = False  # SFT on attempts that were right at once
    bucket_every: Count = 100  # problems between passes over the bucket list; 0: never
    until_mastered: bool = False
    max_failed: Fraction = 0.5  # a larger share of the last critic calls failed: the run stops


class LoraConfig(Table):
    rank: Positive = 16
    scale: Rate = 2.0  # = alpha / rank of other libraries
    alpha: Annotated[float, Field(ge=0)] = 0.0  # above 0: scale = alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    layers: Annotated[int, Field(ge=-1)] = -1  # last n layers; -1: all
    keys: list[str] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                       "self_attn.o_proj"]  # empty: every linear layer  # fmt: skip


class SftConfig(Table):
    lr: Rate = 2e-5
    scale_verified: Annotated[float, Field(ge=0)] = 0.1  # × lr: the verified answer
    scale_failed: Annotated[float, Field(ge=0)] = 0.01  # × lr: last winner after a failed verify


class MaskConfig(Table):
    """Which tokens of a response the loss sees."""

    answer_only: bool = False  # nothing up to the end of the last thought
    think_fraction: Fraction = 0.0  # share of the thought's tokens left out at random
    markers: bool = True  # with either of these: the think tags themselves stay in


class Fitting(Table):
    """What every training has; `run` and `train` add keys of their own."""

    lr: Rate = 1e-5
    beta: Rate = 0.1
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # of labels: dpo; exo_pair's ε
    logps: Literal["sum", "mean"] = "mean"
    nll: Annotated[float, Field(ge=0)] = 0.0  # weight of the chosen answer's NLL per token
    dpo: Annotated[float, Field(ge=0)] = 1.0  # weight of the preference term; 0: the NLL alone
    reference: Literal["stage", "base", "none"] = "stage"
    batch: Positive = 8
    accumulate: Positive = 1
    epochs: Positive = 1  # passes over the pairs of a wave
    clip: Annotated[float, Field(ge=0)] = 1.0  # of the gradient's norm; 0: off
    warmup: Count = 0  # steps
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_length: Positive = 4096  # tokens of prompt and response
    grad_checkpoint: Literal["auto", "yes", "no"] = "auto"  # layers computed twice, to save memory
    memory_gb: Annotated[float, Field(ge=0)] = 0.0  # for activations; 0: a part of the device's
    reference_cache: str = ""  # "": the user's cache folder, "off", or a path
    mask: MaskConfig = MaskConfig()
    tune: Literal["lora", "full"] = "lora"  # full: all weights, of a model that is not quantised
    lora: LoraConfig = LoraConfig()


class TrainConfig(Fitting):
    """[train] of a recipe; [train.sft] is for the answers that a strategy imitates."""

    objective: Literal["dpo", "ipo", "exo_pair", "orpo"] = "dpo"
    sft: SftConfig = SftConfig()


class EvalConfig(Table):
    """The evaluation of a run: base and trained on the same problems, none of them trained on."""

    spec: str = ""  # file or bundled name; empty: the task's own held-out problems
    source: str = ""  # other data for the spec, all of it
    limit: Count = 0  # 0: the spec's own
    seed: int = 0  # order of the problems, and so which ones a limit takes
    max_new_tokens: Count = 0  # 0: the policy's own


class Recipe(Table):
    strategy: Literal["r3"] = "r3"
    name: str = ""
    seed: int = 0
    policy: PolicyConfig = PolicyConfig()
    prompt: PromptConfig = PromptConfig()
    task: TaskConfig = TaskConfig()
    critic: Critics = Critics()
    r3: R3Config = R3Config()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


# For each provider, what a critic.model may look like.
MODELS = {
    "local": "mlx-community/Qwen2.5-7B-Instruct-4bit", "ollama": "qwen2.5:7b",
    "openai": "gpt-4.1-mini", "bedrock": "us.amazon.nova-pro-v1:0",
}  # fmt: skip
# A stopped run may be resumed with other values of these, and of no other key.
RESUMABLE = (
    "critic.concurrency", "critic.deadline_s", "critic.replay",
    "critic.budget.max_calls", "critic.budget.max_tokens", "critic.budget.max_usd",
)  # fmt: skip


class EvalSpec(Table):
    """What an evaluation asks and how; `evals/*.toml` hold the bundled ones."""

    task: TaskConfig
    prompt: PromptConfig = PromptConfig()
    part: Literal["heldout", "dev", "train", "all"] = "heldout"
    limit: Count = 0
    seed: int = 0
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Fraction = 1.0
    max_new_tokens: Positive = 1024
    samples: Positive = 1
    batch: Positive = 32


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by path or bundled name: its profile merged in, then each `a.b=value`."""
    path = find_toml(name, "recipes")
    tree = read_toml(path)
    profiles = check_profiles(tree.pop("profiles", {}), path)
    rest: list[str] = []
    for setting in settings:
        if setting.startswith("profile="):
            chosen = setting.removeprefix("profile=")
            if chosen not in profiles:
                raise UserError(
                    f"{path}: no profile {chosen!r}",
                    f"its profiles are: {', '.join(profiles) or 'none'}",
                )
            merge(tree, profiles[chosen])
        else:
            rest.append(setting)
    tree.setdefault("name", path.stem)
    fetch_templates(apply_settings(tree, rest), path)
    recipe = validate(Recipe, tree, path, rest)
    check_recipe(recipe, path, rest)
    return recipe


def check_profiles(profiles: Any, path: Path) -> dict[str, Any]:
    """Every profile is a part of a recipe, also one that is not chosen."""
    if not isinstance(profiles, dict):
        raise UserError(f"{path}: profiles = {profiles!r} is no table", "write [profiles.NAME]")
    for name, part in profiles.items():
        prefix = f"profiles.{name}"
        critics = validate(Recipe, part, path, prefix=prefix)
        validate_tier(critics, "advanced", path, prefix=prefix)
        validate_tier(critics, "judge", path, prefix=prefix)
    return profiles


def check_recipe(recipe: Recipe, path: Path, settings: Sequence[str] = ()) -> None:
    """What the types cannot say: keys that contradict each other."""
    if recipe.r3.verify_pass > recipe.r3.verify_samples:
        raise UserError(
            f"{path}: r3.verify_pass = {recipe.r3.verify_pass} can never be reached with "
            f"r3.verify_samples = {recipe.r3.verify_samples}",
            "lower r3.verify_pass or raise r3.verify_samples",
        )
    if recipe.train.dpo == 0 and recipe.train.nll == 0:
        raise UserError(
            f"{path}: train.dpo and train.nll are both 0, nothing would be trained",
            "give one of them a weight above 0",
        )
    check_objective(recipe.train.objective, recipe.train, recipe.policy.quantize, path)
    refers = recipe.train.objective != "orpo" and recipe.train.dpo > 0
    if recipe.train.tune == "full" and refers and recipe.train.reference != "none":
        raise UserError(
            f"{path}: with train.tune = 'full', r3 would need the weights of the stage's start a "
            "second time, for pairs that are only made later",
            'train LoRA, or set train.reference = "none", train.dpo = 0 or train.objective = '
            '"orpo"',
        )
    for tier in TIERS:
        critic = validate_tier(recipe, tier, path, settings)
        check_critic(critic, path)
    check_spending(recipe, path)


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


def digest(recipe: Recipe) -> str:
    """Eight hex digits over every key that decides what a run computes."""
    flat = {k: v for k, v in flatten(recipe.model_dump()).items() if k not in RESUMABLE}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:8]


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as TOML, one `table.key = value` a line."""
    lines = ["# The resolved recipe of this run; `mlxreflect resume` refuses it when it changed."]
    for key, value in flatten(recipe.model_dump()).items():
        lines.append(f"{key} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def eval_spec(recipe: Recipe) -> EvalSpec:
    """The evaluation a recipe ends in."""
    config = recipe.eval
    if config.spec:
        path = find_toml(config.spec, "evals")
        tree = read_toml(path)
    else:
        path, tree = Path("recipe"), {"task": recipe.task.model_dump() | {"limit": 0}}
    asked = tree.get("task")
    if isinstance(asked, dict):  # else `validate` says so
        if asked.get("name") == recipe.task.name and not asked.get("source"):
            # The same task on the data that the recipe names: its held-out part.
            asked |= recipe.task.model_dump(exclude={"limit", "numbers"})
        if config.source:
            asked["source"], tree["part"] = config.source, "all"
    prompt = tree.setdefault("prompt", recipe.prompt.model_dump(exclude={"file", "templates"}))
    if isinstance(prompt, dict) and not {"file", "templates"} & set(prompt):
        # Attempts are worded as in training.
        ours = recipe.prompt.templates.items()
        prompt["templates"] = {k: v for k, v in ours if k.startswith("attempt_")}
    fetch_templates(tree, path)
    tree["seed"] = config.seed
    tree["batch"] = recipe.policy.batch
    if config.limit:
        tree["limit"] = config.limit
    if config.max_new_tokens or "max_new_tokens" not in tree:
        tree["max_new_tokens"] = config.max_new_tokens or recipe.policy.max_new_tokens
    return validate(EvalSpec, tree, path)
