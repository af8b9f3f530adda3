"""A recipe, one TOML file that says everything about a run, and the job of a `train`, loaded.

Unknown keys are refused by name, and keys that contradict each other.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from mlxreflect.config.fields import (
    check_clipping,
    idle_keys,
    make_paths_whole,
    paths_from,
    refuse,
    refuse_idle,
    split_name,
)
from mlxreflect.config.schema import (
    GYM,
    METHODS,
    REMOTE,
    TIERS,
    CriticConfig,
    EvalConfig,
    EvalSpec,
    Fitting,
    Job,
    Recipe,
    TaskConfig,
    Tier,
    TrainConfig,
    method_of,
)
from mlxreflect.config.toml import (
    SHARED,
    apply_settings,
    dump_toml,
    explain,
    find_toml,
    flatten,
    local_path,
    merge,
    read_toml,
    shipped,
    validate,
)
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import sha256
from mlxreflect.prompts.roles import BUNDLED

# A stopped run may be resumed with other values of these, and of no other key. train.part_tokens
# changes sums by their rounding only.
RESUMABLE = (
    "allow_untrained", "mirror", "track", "publish.to", "publish.each", "train.part_tokens",
    "train.swap_gb",
    "critic.concurrency", "critic.deadline_s", "critic.replay",
    "critic.budget.max_calls", "critic.budget.max_tokens", "critic.budget.max_usd",
)  # fmt: skip


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by path or bundled name: its profiles merged in, then each `a.b=value`.

    Paths in it are relative to its file, those of `settings` to the working folder.
    """
    path = find_toml(name, "recipes")
    tree = read_toml(path)
    profiles = check_profiles(tree.pop("profiles", {}), path)
    rest = [setting for setting in settings if not setting.startswith("profile=")]
    named = [s.removeprefix("profile=") for s in settings if s.startswith("profile=")]
    chosen = [name.strip() for names in named for name in names.split(",")]
    merge_profiles(tree, chosen, profiles, path)
    paths_from(path, tree, Recipe)
    tree.setdefault("name", path.stem)
    fetch_templates(apply_settings(tree, rest), path)
    fetch_digests(tree, path)
    recipe = validate(Recipe, tree, path, rest)
    check_recipe(recipe, path, rest)
    return recipe


def merge_profiles(
    tree: dict[str, Any], chosen: Sequence[str], own: dict[str, Any], path: Path
) -> None:
    """Merges profiles into a recipe: those of models.toml first, then the recipe's own.

    own: the recipe's; the one called "models" goes over every profile of models.toml. Raises
    UserError for a name that nobody has.
    """
    shared = read_shared().profiles if set(chosen) - own.keys() else {}
    if "" in chosen:
        raise UserError(
            f"--set profile={','.join(chosen)}: a name is missing",
            f"give some of: {', '.join(name for name in (*own, *shared) if name != SHARED)}",
        )
    if unknown := [name for name in chosen if name not in own and name not in shared]:
        known = [name for name in own if name != SHARED]
        mine = f"its profiles are: {', '.join(known)}" if known else "it has no profiles of its own"
        near = difflib.get_close_matches(unknown[0], [*known, *shared], 1, cutoff=0.6)
        asked = f"did you mean profile={near[0]}? " if near else ""
        raise UserError(
            f"{path}: no profile {unknown[0]!r}",
            f"{asked}{mine}; these go with every recipe: {', '.join(shared)}",
        )
    parts = [shared[name] for name in chosen if name not in own]
    if parts:
        parts.append(own.get(SHARED, {}))
    for part in (*parts, *(own[name] for name in chosen if name in own)):
        merge(tree, part)


class Shared(NamedTuple):
    """Holds recipes/models.toml.

    memory_gb: by profile, what its model takes. suggested: profiles that go together, the largest
    first.
    """

    profiles: dict[str, Any]
    memory_gb: dict[str, float]
    suggested: list[list[str]]

    def models(self, table: Literal["policy", "critic"]) -> dict[str, str]:
        """Returns the models of the profiles that name one in this table."""
        return {name: part[table]["model"] for name, part in self.profiles.items() if table in part}


def read_shared() -> Shared:
    path = shipped("recipes") / f"{SHARED}.toml"
    tree = read_toml(path)
    memory = {name: part.pop("memory_gb") for name, part in tree["profiles"].items()}
    return Shared(check_profiles(tree["profiles"], path), memory, tree["suggested"])


def check_profiles(profiles: Any, path: Path) -> dict[str, Any]:
    """Every profile is a part of a recipe, also one that is not chosen."""
    if not isinstance(profiles, dict):
        raise UserError(f"{path}: profiles = {profiles!r} is no table", "write [profiles.NAME]")
    for name, part in profiles.items():
        prefix = f"profiles.{name}"
        recipe = validate(Recipe, part, path, prefix=prefix)
        for tier in TIERS:
            validate_tier(recipe, tier, path, prefix=prefix)
    return profiles


def resolved(recipe: Recipe) -> dict[str, Any]:
    """All keys of a recipe that mean something in it: of the methods' tables, its own."""
    unused: set[str] = {name for name in METHODS if name != recipe.strategy}
    return recipe.model_dump(exclude=unused)


def with_whole_paths(recipe: Recipe) -> Recipe:
    """Returns the recipe with whole paths, so that its run may be resumed from any folder."""
    tree = resolved(recipe)
    make_paths_whole(tree, Recipe)
    return Recipe.model_validate(tree)


def digest(recipe: Recipe) -> str:
    """Eight hex digits over every key that decides what a run computes."""
    flat = {k: v for k, v in flatten(resolved(recipe)).items() if k not in RESUMABLE}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:8]


def dump_recipe(recipe: Recipe) -> str:
    """Returns the resolved recipe as TOML, one `table.key = value` a line."""
    head = "# The resolved recipe of this run; `mlxreflect resume` refuses it if it has changed.\n"
    return head + dump_toml(resolved(recipe))


def dump_changed(recipe: Recipe) -> str:
    """Returns the keys of a recipe that are not at their defaults, as `dump_recipe` does."""
    whole = flatten(resolved(recipe))
    usual = flatten(resolved(Recipe(strategy=recipe.strategy)))
    return dump_toml({k: v for k, v in whole.items() if k not in usual or v != usual[k]})


def eval_specs(recipe: Recipe) -> dict[str, EvalSpec]:
    """The evaluations a recipe ends in, by name; the headline is the first.

    Raises UserError for one that is not there, and for two of one name.
    """
    found: dict[str, EvalSpec] = {}
    for asked in recipe.eval.spec:
        name = (Path(asked).stem if asked else recipe.task.name).replace(":", "-")
        if name.lower() in map(str.lower, found):  # a folder is called so
            raise UserError(
                f"eval.spec names {name} twice", "name each evaluation once, files by other names"
            )
        found[name] = read_spec(recipe, asked)
    if len(found) == 1:
        return found
    return {name: spec.model_copy(update={"name": name}) for name, spec in found.items()}


def eval_spec(recipe: Recipe) -> EvalSpec:
    """The evaluation whose verdict is the recipe's."""
    return next(iter(eval_specs(recipe).values()))


def dev_spec(recipe: Recipe) -> EvalSpec:
    """Returns the evaluation that a run is watched by: its task's part dev, asked as held out."""
    config = recipe.eval.model_copy(update={"source": "", "limit": recipe.eval.dev_limit})
    spec = read_spec(recipe.model_copy(update={"eval": config}), "")
    return spec.model_copy(update={"name": "dev", "part": "dev"})


def read_spec(recipe: Recipe, name: str) -> EvalSpec:
    """One of a recipe's evaluations, with the keys of [eval] and of the policy on top.

    name: a file, a bundled name or "gym:NAME"; "": what the recipe's task holds out.
    """
    config, tree = recipe.eval, dict[str, Any]()
    if name.startswith(GYM):
        path, tree = Path(name), {"task": {"name": name}}
    elif name:
        path = find_toml(name, "evals")
        tree = read_toml(path)
        paths_from(path, tree, EvalSpec)
    else:
        path, tree = Path("recipe"), {"task": recipe.task.model_dump() | {"limit": 0}}
    asked = tree.get("task")
    if isinstance(asked, dict):  # else `validate` says so
        same = asked.get("name") == recipe.task.name and asked.get("answer_type") != "open"
        if same and not asked.get("source"):
            # The same task on the data that the recipe names: its held-out part.
            asked |= recipe.task.model_dump(
                exclude={"limit", "numbers", "words", "operands", "digits"}
            )
        if config.source:
            asked["source"], tree["part"] = config.source, "all"
    prompt = tree.setdefault("prompt", recipe.prompt.model_dump(exclude={"file", "templates"}))
    if isinstance(prompt, dict) and not {"file", "templates"} & set(prompt):
        # Attempts are worded as in training.
        ours = recipe.prompt.templates.items()
        prompt["templates"] = {k: v for k, v in ours if k.startswith("attempt_")}
    fetch_templates(tree, path)
    fetch_digests(tree, path)
    tree["seed"] = config.seed
    tree["batch"] = recipe.policy.batch
    tree["thinking"], tree["template"] = recipe.policy.thinking, recipe.policy.template
    if config.limit:
        tree["limit"] = config.limit
    if config.max_new_tokens or "max_new_tokens" not in tree:
        tree["max_new_tokens"] = config.max_new_tokens or recipe.policy.max_new_tokens
    spec = validate(EvalSpec, tree, path)
    check_task(spec.task, path)
    return spec


# ---- `train` -------------------------------------------------------------------------------------

# Where an objective of `train` wants another value than the tables say; --set comes after.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {"train": {"lr": 1e-4}},
    "dpo": {"train": {"logps": "sum"}},
    "ipo": {"train": {"logps": "mean"}},
    "exo_pair": {"train": {"logps": "sum", "smoothing": 5e-3}},
    "orpo": {"train": {"lr": 2e-5}},
    "grpo": {"data": {"held_out": 0.0}},
}
COMMAND = Path("mlxreflect train")  # where a key stands that no file holds


def load_job(objective: str, model: str, data: str, settings: Sequence[str] = ()) -> Job:
    """The job of a command line. Raises UserError for keys it does not know or that clash."""
    if objective not in DEFAULTS:
        near = difflib.get_close_matches(objective, DEFAULTS, 1, cutoff=0.6)
        asked = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no objective {objective!r}", f"{asked}choose from: {', '.join(DEFAULTS)}")
    tree = plain(objective)
    merge(tree, {"policy": {"model": model}, "data": {"source": data}})
    job = validate(Job, apply_settings(tree, settings), COMMAND, settings)
    if job.objective != objective:
        raise UserError(
            f"--set objective={job.objective}: the command says {objective}",
            f"give one of them: mlxreflect train {job.objective} …",
        )
    check_job(job)
    tree = job.model_dump()  # it may be resumed from any folder
    make_paths_whole(tree, Job)
    return Job.model_validate(tree)


def plain(objective: str) -> dict[str, Any]:
    """An objective's keys where they differ from the tables."""
    return {"objective": objective, **deepcopy(DEFAULTS[objective])}


# ---- a person's own wording of prompts -----------------------------------------------------------


def fetch_templates(tree: dict[str, Any], path: Path) -> None:
    """Copy what prompt.file says into prompt.templates: a run keeps the wording it began with.

    tree: of a recipe or an eval spec, as read from `path`. Raises UserError for a template that is
    none, and where file and templates are both given and differ.
    """
    prompt = tree.get("prompt")
    if not isinstance(prompt, dict):
        return  # a fault that validation names
    given, file = prompt.get("templates"), prompt.get("file")
    if isinstance(given, dict):
        BUNDLED.check(given, f"{path}: prompt.templates")
    if not file or not isinstance(file, str):
        return
    source = local_path(file)
    if given and not source.exists():
        return  # a run's own recipe, given to another run
    wording = BUNDLED.check(read_toml(source), file)
    if given and given != wording:
        raise UserError(
            f"{file}: {first_difference(given, wording)} is not as in prompt.templates of {path}",
            "take out one of prompt.file and prompt.templates",
        )
    prompt["templates"] = wording


def check_kept(file: str, kept: Mapping[str, str]) -> None:
    """A resumed run goes on with its own wording. Raises UserError where its file has another."""
    path = local_path(file)
    if file and path.is_file() and (now := read_toml(path)) != kept:
        raise UserError(
            f"{file} was changed: {first_difference(kept, now)} is not what the run began with",
            "change it back, or begin a new run",
        )


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return min(key for key in {**one, **other} if one.get(key) != other.get(key))


# ---- a person's own functions -------------------------------------------------------------------

FUNCTIONS = {"task": "grader", "traces": "reward"}  # keys of FILE.py:FUNCTION, by their table


def fetch_digests(tree: Mapping[str, Any], path: Path) -> None:
    """Puts the SHA-256 of each file of a person's own functions beside it, in a tree of `path`.

    A run keeps to the file that it began with: raises UserError where there is another digest.
    """
    for table, key in FUNCTIONS.items():
        held = tree.get(table)
        named = held.get(key) if isinstance(held, dict) else None
        lone = held.get(f"{key}_sha256") if isinstance(held, dict) and not named else None
        if lone and isinstance(lone, str):
            raise UserError(
                f"{path}: {table}.{key}_sha256 does nothing without {table}.{key}",
                f'leave that key out, or name the function: {table}.{key} = "mine.py:{key}"',
            )
        if not isinstance(held, dict) or not named or not isinstance(named, str):
            continue  # there is none, or a fault that validation names
        file, _ = split_name(named, f"{table}.{key}")
        kept, found = held.get(f"{key}_sha256"), sha256(file)
        if kept and kept != found:
            raise UserError(
                f"{file} was changed: {path} has another {table}.{key}_sha256",
                "change it back, or begin a new run without that key",
            )
        held[f"{key}_sha256"] = found


# ---- what the types cannot say -------------------------------------------------------------------

# For each provider, what a critic.model may look like.
MODELS = {
    "local": "mlx-community/Qwen2.5-7B-Instruct-4bit", "ollama": "qwen2.5:7b",
    "openai": "gpt-4.1-mini", "bedrock": "us.amazon.nova-pro-v1:0",
}  # fmt: skip


def check_recipe(recipe: Recipe, path: Path, settings: Sequence[str] = ()) -> None:
    """Refuses keys that contradict each other, which the types cannot. Raises UserError."""
    name, train = recipe.strategy, recipe.train
    for other in METHODS:
        refuse(path, (
            other != name and other in recipe.model_fields_set,
            f"[{other}] does nothing while strategy = {name!r}",
            f"leave that table out, or set strategy = {other!r}",
        ))  # fmt: skip
    method = method_of(recipe)
    method.check(recipe, path)
    idle = dict.fromkeys(idle_keys(TrainConfig, name), name)
    refuse_idle(train, TrainConfig(), idle, path, "train.")
    check_task(recipe.task, path)
    if not recipe.eval.dev_every:
        unwatched = dict.fromkeys(("dev_limit", "dev_stop"), "eval.dev_every = 0")
        refuse_idle(recipe.eval, EvalConfig(), unwatched, path, "eval.")
    phases = method.phases(recipe)
    for phase in phases:
        check_objective(phase.objective, phase, recipe.policy.quantize, path)
    opens = recipe.task.answer_type == "open"
    compared = any(phase.objective != "orpo" for phase in phases)
    refers = method.compares(recipe) and compared and train.dpo > 0
    refuse(
        path,
        (train.tune == "full" and refers and train.reference != "none",
         f"with train.tune = 'full', {name} would need the weights of the stage's start a second "
         "time, for pairs that are only made later",
         'train LoRA, or set train.reference = "none", train.dpo = 0 or train.objective = "orpo"'),
        (opens, "task.answer_type = 'open': no answer is right, so there is nothing to learn from",
         "let an evaluation ask such questions: --set eval.spec=open --set eval.source=FILE"),
        (recipe.probes.system != "" and not recipe.probes.prompts,
         "probes.system is said before probes.prompts, and there are none",
         "give some, or leave probes.system out"),
        (recipe.publish.each != "end" and not recipe.publish.to,
         f"publish.each = {recipe.publish.each!r} does nothing without publish.to",
         'say where to: publish.to = "USER/NAME"'),
        (recipe.eval.trained == "best" and recipe.eval.dev_every == 0,
         "eval.trained = 'best' is chosen by looks at dev problems, and eval.dev_every is 0",
         "set eval.dev_every, for example 1, or leave eval.trained out"),
        (len(recipe.eval.spec) > 1 and recipe.eval.source != "",
         f"eval.source is of one evaluation, and eval.spec names {len(recipe.eval.spec)}",
         "leave eval.source out, or put task.source into the file of a spec"),
        (bool(recipe.eval.against) and recipe.eval.decontaminate == "off",
         "eval.against does nothing while eval.decontaminate = 'off'",
         'leave one of them out, or set eval.decontaminate = "exact"'),
    )  # fmt: skip
    for tier in TIERS:
        check_critic(validate_tier(recipe, tier, path, settings), path)
    check_mirror(recipe.mirror, path)
    check_spending(recipe, path)


def check_mirror(address: str, path: Path) -> None:
    """Refuses an address that may hold a secret, which is not shown, or a mistyped one.

    Raises UserError.
    """
    refuse(path, (
        re.search("//.*[@?]|::", address) is not None,
        "mirror is an address with a user, a password or a query, or a chain of them",
        "leave the address alone, such as s3://bucket/runs; credentials are where its library "
        "looks for them: environment variables or ~/.aws",
    ), (
        re.fullmatch(r"(:|\w\w+:(?!//)|[^/]*:///*$).*", address) is not None,
        f"mirror = {address} is neither a folder nor a whole address",
        "write it as PROTOCOL://PLACE, such as s3://bucket/runs",
    ))  # fmt: skip


GENERATED = {"numbers": "countdown", "words": "last_letter",
             "operands": "arithmetic", "digits": "arithmetic"}  # fmt: skip


def check_task(task: TaskConfig, path: Path) -> None:
    """Refuses keys that say how another task makes its problems. Raises UserError."""
    others = [key for key, name in GENERATED.items() if name != task.name]
    refuse_idle(task, TaskConfig(), dict.fromkeys(others, f"the task {task.name}"), path, "task.")


def check_critic(critic: CriticConfig, path: Path) -> None:
    """Refuses keys of a critic that its provider could not do with. Raises UserError."""
    provider = critic.provider
    refuse(
        path,
        (provider != "solver" and not critic.model,
         f"critic.provider = {provider!r} needs a model",
         f'set critic.model, for example "{MODELS.get(provider)}"'),
        (provider == "bedrock" and critic.temperature > 1,
         f"critic.temperature = {critic.temperature:g}, and Bedrock takes 0 to 1",
         "set critic.temperature to 1 or less"),
        (provider == "bedrock" and critic.thinking != "auto",
         f"critic.thinking = {critic.thinking!r} does nothing for bedrock",
         "leave that key out"),
        (provider == "bedrock" and bool(critic.changed()),
         f"critic.{next(iter(critic.changed()), '')} does nothing for bedrock",
         "leave that key out: Bedrock takes critic.temperature and critic.top_p"),
        # The value is not shown: it may be the key.
        (critic.key_env != "" and not re.fullmatch("[A-Z_][A-Z0-9_]*", critic.key_env),
         "critic.key_env is no name of an environment variable in capitals",
         'put the key itself into a variable, and its name here, for example "OPENAI_API_KEY"'),
    )  # fmt: skip


def check_spending(recipe: Recipe, path: Path) -> None:
    """Refuses critics that would ask for nothing, cost nothing or give a password away."""
    for tier in TIERS:
        critic = recipe.critic.tier(tier)
        free = critic.provider in REMOTE and critic.price_in == critic.price_out == 0
        refuse(
            path,
            (critic.replay and critic.cache == "off",
             'critic.replay answers from the cache, and critic.cache = "off"',
             "set critic.cache to the file of the run to repeat, or leave it out"),
            (recipe.critic.budget.max_usd > 0 and free,
             f"critic.budget.max_usd limits nothing while {critic.provider} ({tier} critic) has "
             "critic.price_in = critic.price_out = 0",
             "set the prices in dollars a million tokens, or limit max_calls or max_tokens"),
            (re.search("//[^/]*@", critic.base_url) is not None,
             "critic.base_url holds a user name or password, which would be written into every run",
             "take it out of the address; for Ollama put the whole address into OLLAMA_HOST"),
        )  # fmt: skip


def check_objective(objective: str, train: Fitting, quantize: int, path: Path) -> None:
    """Refuses keys of [train] that contradict an objective or each other. Raises UserError."""
    lora = train.lora
    refuse(
        path,
        (train.tune == "full" and (lora.dora or lora.rslora),
         f"train.lora.{'dora' if lora.dora else 'rslora'} does nothing with train.tune = 'full'",
         "leave one of them out"),
        (lora.rslora and not lora.alpha,
         "train.lora.rslora does nothing without train.lora.alpha, which it divides by √rank",
         "set train.lora.alpha, for example 16, or leave train.lora.rslora out"),
        (train.dpo == 0 and train.nll == 0,
         "train.dpo and train.nll are both 0, nothing would be trained",
         "give one of them a weight above 0"),
        (train.tune == "full" and quantize > 0,
         "train.tune = 'full' needs weights that are not quantised",
         "leave policy.quantize at 0"),
        (objective == "exo_pair" and train.smoothing == 0,
         "exo_pair needs train.smoothing above 0", "set train.smoothing, for example 0.005"),
        (objective == "orpo" and train.nll > 0,
         "train.nll does nothing for orpo, which has the chosen answer's NLL in it",
         "leave train.nll at 0"),
        (objective not in ("dpo", "exo_pair") and train.smoothing > 0,
         f"train.smoothing does nothing for {objective}",
         "leave it out, or train dpo or exo_pair"),
    )  # fmt: skip


def check_job(job: Job) -> None:
    """Refuses keys that contradict each other, or do nothing. Raises UserError."""
    usual = Job.model_validate(plain(job.objective))
    train, data = job.train, job.data
    idle: dict[str, str] = dict.fromkeys(idle_keys(Job, job.objective), job.objective)
    if train.tune == "full":
        idle["train.lora"] = "full fine-tuning"
    elif job.policy.adapter:
        idle["train.lora"] = "an adapter that brings its own layers"
    refuse_idle(job, usual, idle, COMMAND)
    check_mirror(job.mirror, COMMAND)
    check_clipping(job.grpo, COMMAND, "grpo.")
    check_objective(job.objective, train, job.policy.quantize, COMMAND)
    refuse(
        COMMAND,
        (train.best_by == "margin" and job.objective == "sft",
         "train.best_by = 'margin': sft has no margin", "leave it at loss"),
        (train.tune == "full" and train.reference == "base",
         "train.reference = 'base' needs LoRA: with all weights trained, the base is gone",
         "set train.reference to stage or none"),
        (not data.against and data.ngram != usual.data.ngram,
         f"data.ngram = {data.ngram} does nothing without data.against",
         "name what to keep clean of, for example --set data.against=gsm8k"),
        (train.patience > 0 and data.held_out == 0,
         "train.patience counts looks at held-out examples, and data.held_out is 0",
         "hold some out, for example --set data.held_out=0.05"),
    )  # fmt: skip


def validate_tier(
    recipe: Recipe, tier: Tier, path: Path, settings: Sequence[str] = (), prefix: str = ""
) -> CriticConfig:
    try:
        return recipe.critic.tier(tier)
    except ValidationError as error:
        full = f"{prefix}.critic.{tier}".lstrip(".")
        raise explain(error, CriticConfig, path, settings, full) from None
