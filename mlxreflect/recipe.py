"""A recipe: one TOML file that says everything about a run. Unknown keys are refused by name."""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlxreflect.errors import UserError

PACKAGE = Path(__file__).parent
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


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
    provider: Literal["solver", "ollama"] = "solver"
    model: str = ""
    base_url: str = ""
    temperature: Annotated[float, Field(ge=0)] = 0.99
    max_tokens: Positive = 2000
    num_ctx: Positive = 8192
    concurrency: Positive = 4
    deadline_s: Rate = 600.0
    cache: str = ""  # "": the user's cache folder, "off", or a path


class Critics(CriticConfig):
    """[critic]; [critic.advanced] overrides it key by key for the bucket list."""

    advanced: dict[str, Any] = {}

    def tier(self, name: Literal["basic", "advanced"]) -> CriticConfig:
        base = self.model_dump(exclude={"advanced"})
        return CriticConfig(**{**base, **(self.advanced if name == "advanced" else {})})


class R3Config(Table):
    wave: Positive = 1
    epochs: Positive = 1
    rewrites: Positive = 3
    verifications: Count = 5
    verify_samples: Positive = 1
    verify_pass: Positive = 1
    feedback: Literal["critic", "self"] = "critic"
    rewriter: Literal["critic", "self"] = "critic"
    sft_mode: Literal[0, 1, 2, 3] = 1  # once verified: 0 none, 1 last winner, 2 verified, 3 both
    sft_correct: bool = False  # SFT on attempts that were right at once
    bucket_every: Count = 100  # problems between passes over the bucket list; 0: never
    until_mastered: bool = False
    max_failed: Fraction = 0.5  # a wave with more failed critic calls than this stops the run


class LoraConfig(Table):
    rank: Positive = 16
    scale: Rate = 2.0  # = alpha / rank of other libraries
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    layers: Annotated[int, Field(ge=-1)] = -1  # last n layers; -1: all
    keys: list[str] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                       "self_attn.o_proj"]  # empty: every linear layer  # fmt: skip


class SftConfig(Table):
    lr: Rate = 2e-5
    scale_verified: Annotated[float, Field(ge=0)] = 0.1  # × lr: the verified answer
    scale_failed: Annotated[float, Field(ge=0)] = 0.01  # × lr: last winner after a failed verify


class TrainConfig(Table):
    lr: Rate = 1e-5
    beta: Rate = 0.1
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
    grad_checkpoint: bool = False
    sft: SftConfig = SftConfig()
    lora: LoraConfig = LoraConfig()


class EvalConfig(Table):
    """The evaluation of a run: base and trained on the same problems, none of them trained on."""

    spec: str = ""  # file or bundled name; empty: the task's own held-out problems
    source: str = ""  # other data for the spec, all of it
    limit: Count = 0  # 0: the spec's own
    seed: int = 0  # which problems, in which order
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


T = TypeVar("T", bound=Table)

# A stopped run may be resumed with other values of these, and of no other key.
RESUMABLE = ("critic.concurrency", "critic.deadline_s")


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


def bundled(folder: Literal["recipes", "evals"]) -> dict[str, Path]:
    """Name → path of the TOML files shipped in the wheel (or standing in the checkout)."""
    inside, beside = PACKAGE / folder, PACKAGE.parent / folder
    return {p.stem: p for p in sorted((inside if inside.is_dir() else beside).glob("*.toml"))}


def find_toml(name: str, folder: Literal["recipes", "evals"]) -> Path:
    """A path as given, else a bundled name. Raises UserError with the nearest names."""
    path = Path(name)
    if path.is_file():
        return path
    known = bundled(folder)
    stem = path.stem if path.suffix == ".toml" else name
    if stem in known and (name == stem or path.parent.name in ("", folder)):
        return known[stem]
    kind = folder[:-1]
    fault = f"{name} is a folder, no {kind} file" if path.is_dir() else f"no {kind} {name!r}"
    raise UserError(fault, f"give a file, or one of: {', '.join(known)}")


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give a readable TOML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}", "correct that line") from None


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
    recipe = validate(Recipe, apply_settings(tree, rest), path, rest)
    check_recipe(recipe, path, rest)
    return recipe


def check_profiles(profiles: Any, path: Path) -> dict[str, Any]:
    """Every profile is a part of a recipe, also one that is not chosen."""
    if not isinstance(profiles, dict):
        raise UserError(f"{path}: profiles = {profiles!r} is no table", "write [profiles.NAME]")
    for name, part in profiles.items():
        prefix = f"profiles.{name}"
        validate_tier(validate(Recipe, part, path, prefix=prefix), "advanced", path, prefix=prefix)
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
    for tier in ("basic", "advanced"):
        critic = validate_tier(recipe, tier, path, settings)
        if critic.provider != "solver" and not critic.model:
            raise UserError(
                f"{path}: critic.provider = {critic.provider!r} needs a model",
                'set critic.model, for example "qwen2.5:7b"',
            )


def validate_tier(
    recipe: Recipe,
    tier: Literal["basic", "advanced"],
    path: Path,
    settings: Sequence[str] = (),
    prefix: str = "",
) -> CriticConfig:
    try:
        return recipe.critic.tier(tier)
    except ValidationError as error:
        full = f"{prefix}.critic.advanced".lstrip(".")
        raise explain(error, CriticConfig, path, settings, full) from None


def merge(tree: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value


def apply_settings(tree: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Put `a.b=value` into the tree; values are TOML, and bare words are strings."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting}: no key=value", "write --set train.lr=2e-4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *tables, leaf = key.strip().split(".")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {setting}: {table} is no table", "check the key's name")
        node[leaf] = value
    return tree


def validate(
    model: type[T],
    tree: dict[str, Any],
    path: Path,
    settings: Sequence[str] = (),
    prefix: str = "",
) -> T:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise explain(error, model, path, settings, prefix) from None


def explain(
    error: ValidationError, model: type[Table], path: Path, settings: Sequence[str], prefix: str
) -> UserError:
    """The first fault of a validation, with its line or --set, and the nearest known key."""
    fault = error.errors()[0]
    parts = [str(p) for p in fault["loc"]]
    key = ".".join([prefix, *parts] if prefix else parts)
    given = [s for s in settings if overlap(s.partition("=")[0].strip(), key)]
    where = f"{path}, line {line}" if (line := line_of(path, key)) else str(path)
    where = f"--set {given[-1]}" if given else where
    if fault["type"] == "extra_forbidden":
        table: Any = model
        for part in parts[:-1]:
            table = table.model_fields[part].annotation
        names = list(table.model_fields)
        near = difflib.get_close_matches(parts[-1], names, 1, cutoff=0.5)
        full = ".".join([*([prefix] if prefix else []), *parts[:-1], *near])
        hint = f"did you mean {full}?" if near else f"known keys here: {', '.join(names)}"
        return UserError(f"{where}: unknown key {key}", hint)
    if fault["type"] == "missing":
        return UserError(f"{where}: no {key}", f"give {key}")
    reason = fault["msg"][0].lower() + fault["msg"][1:]
    return UserError(f"{where}: {key} = {repr(fault['input'])[:80]}: {reason}", f"correct {key}")


def overlap(one: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or a table that holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def line_of(path: Path, key: str) -> int | None:
    """The line of a TOML file where a dotted key, or the inline table or list it is in, stands."""
    *tables, leaf = key.split(".")
    current: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for number, line in enumerate(lines, 1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            current = header[1].strip().split(".")
            if current == [*tables, leaf]:
                return number
        elif (found := re.match(r"\s*([\w.-]+)\s*=", line)) and [
            *current,
            *found[1].split("."),
        ] == [*tables, leaf]:
            return number
    return line_of(path, ".".join(tables)) if tables else None


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}; an empty table is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


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


def toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + "}"
    # JSON's strings, numbers, booleans and lists are TOML's too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML bans it raw


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
    tree.setdefault("prompt", recipe.prompt.model_dump())
    tree["seed"] = config.seed
    tree["batch"] = recipe.policy.batch
    if config.limit:
        tree["limit"] = config.limit
    if config.max_new_tokens or "max_new_tokens" not in tree:
        tree["max_new_tokens"] = config.max_new_tokens or recipe.policy.max_new_tokens
    return validate(EvalSpec, tree, path)
