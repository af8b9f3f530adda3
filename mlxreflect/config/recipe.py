"""A recipe: one TOML file that says everything about a run. Unknown keys are refused by name."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxreflect.config.checks import check_recipe, validate_tier
from mlxreflect.config.fields import make_paths_whole
from mlxreflect.config.methods import METHODS
from mlxreflect.config.schema import EvalSpec, Recipe
from mlxreflect.config.toml import (
    apply_settings,
    dump_toml,
    find_toml,
    flatten,
    merge,
    read_toml,
    validate,
)
from mlxreflect.core.errors import UserError
from mlxreflect.prompts.templates import BUNDLED

# A stopped run may be resumed with other values of these, and of no other key.
RESUMABLE = (
    "critic.concurrency", "critic.deadline_s", "critic.replay",
    "critic.budget.max_calls", "critic.budget.max_tokens", "critic.budget.max_usd",
)  # fmt: skip


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
    head = "# The resolved recipe of this run; `mlxreflect resume` refuses it when it changed.\n"
    return head + dump_toml(resolved(recipe))


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
            asked |= recipe.task.model_dump(exclude={"limit", "numbers", "words"})
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
    source = Path(file).expanduser()
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
    path = Path(file).expanduser()
    if file and path.is_file() and (now := read_toml(path)) != kept:
        raise UserError(
            f"{file} was changed: {first_difference(kept, now)} is not what the run began with",
            "change it back, or begin a new run",
        )


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return min(key for key in {**one, **other} if one.get(key) != other.get(key))
