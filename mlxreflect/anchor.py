"""Whole paths in place of relative ones, so that a run may be resumed from any folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxreflect.recipe import resolved
from mlxreflect.tables import TIERS, Recipe
from mlxreflect.tasks.rows import local_path

# Keys that may name a folder or a file there is, a file alone, and a cache that is made.
PATHS = (
    "policy.model", "policy.adapter", "task.source", "eval.source", "preflexor.corpus",
)  # fmt: skip
FILES = ("prompt.file", "eval.spec", "eval.against", "rel.human", "reflectevo.stored")
CACHES = ("critic.cache", "critic.advanced.cache", "critic.judge.cache", "eval.cache",
          "train.reference_cache")  # fmt: skip


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with whole paths. Names of the hub, and of what is bundled, stay as they are."""
    tree = resolved(recipe)
    local = [t for t in TIERS if recipe.critic.tier(t).provider == "local"]
    models = [f"critic.{tier}.model".replace("basic.", "") for tier in local]
    for names, is_there in (
        ((*PATHS, *models), Path.exists), (FILES, Path.is_file), (CACHES, is_set),
    ):  # fmt: skip
        for name in names:
            *tables, leaf = name.split(".")
            node = tree
            for table in tables:
                node = node.get(table, {})
            if leaf in node and (leaf, node[leaf]) != ("model", "tiny"):
                node[leaf] = whole(node[leaf], is_there)
    return Recipe.model_validate(tree)


def whole(value: Any, is_there: Callable[[Path], bool]) -> Any:
    """The whole path that a name, or each of a list, stands for; a name of the hub stays."""
    if isinstance(value, list):
        return [whole(one, is_there) for one in value]
    path = local_path(value)
    return str(path.absolute()) if value and is_there(path) else value


def is_set(path: Path) -> bool:
    return path != Path("off")
