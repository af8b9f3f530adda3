"""Whole paths in place of relative ones, so that a run may be resumed from any folder.

The run directory: create, lock, journal, commit, resume.

A commit `checkpoints/wave-NNNNN` holds the adapter, the optimizers, the stage's reference and the
strategy's state.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from mlxreflect.config.recipe import resolved
from mlxreflect.config.schema import TIERS, Recipe
from mlxreflect.data.rows import local_path
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from shlex import quote
from typing import Any, TextIO
from mlxreflect.core.journal import Commits, take_lock
from mlxreflect.config.checks import check_spending
from mlxreflect.core.errors import UserError
from mlxreflect.config.recipe import (RESUMABLE, digest, dump_recipe, resolved, with_whole_paths)
from mlxreflect.core.journal import read_json, write_atomic
from mlxreflect.config.toml import (apply_settings, flatten, read_toml, validate)
from mlxreflect.config.schema import Recipe
from mlxreflect.config.recipe import check_kept


JOURNALS = ("episodes.jsonl", "examples.jsonl", "preference.jsonl", "sft.jsonl", "metrics.jsonl")
# What a process killed while it began may leave: not yet a run.
FIRST = {".lock", "recipe.toml", "recipe.toml.tmp", "run.json.tmp"}


class Run:
    """One run directory, locked by this process while it is open."""

    def __init__(self, path: Path, recipe: Recipe, lock: TextIO) -> None:
        self.path = path
        self.recipe = recipe
        self._lock = lock

    # ---- opening --------------------------------------------------------------------------------

    @classmethod
    def create(cls, recipe: Recipe, path: Path | None) -> "Run":
        """A new run directory. Raises UserError where one already is."""
        recipe = with_whole_paths(recipe)
        if path is None:
            model = recipe.policy.model.rstrip("/").rsplit("/", 1)[-1]
            stamp = time.strftime("%Y%m%d-%H%M%S")
            name = f"{recipe.name}--{model}--{stamp}-{digest(recipe)[:4]}"
            path = Path("runs") / re.sub(r"[^\w.-]+", "-", name).lstrip(".")
        if path.exists() and (
            not path.is_dir() or any(p.name not in FIRST for p in path.iterdir())
        ):
            raise UserError(
                f"{path} is there already",
                f"go on with it by: mlxreflect resume {quote(str(path))}, or give another "
                "--run-dir",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}", "give another --run-dir") from None
        lock = take_lock(path)
        write_atomic(path / "recipe.toml", dump_recipe(recipe))
        identity = {
            "schema": "run/1", "id": f"{path.name}-{time.time_ns():x}", "digest": digest(recipe),
            "recipe": resolved(recipe),
        }  # fmt: skip
        write_atomic(path / "run.json", json.dumps(identity, indent=1) + "\n")
        return cls(path, recipe, lock)

    @classmethod
    def open(cls, path: Path, settings: Sequence[str] = ()) -> "Run":
        """A run directory to go on with. Refuses a changed recipe, naming the changed keys."""
        if not (path / "run.json").is_file():
            raise UserError(
                f"{path} is no run directory",
                "give the folder that `mlxreflect run` or `mlxreflect train` made",
            )
        tree = read_toml(path / "recipe.toml")
        original = began_with(path / "run.json")
        now = resolved(validate(Recipe, tree, path / "recipe.toml"))
        old, new = flatten(original), flatten(now)
        changed = sorted(k for k in {**old, **new} if old.get(k) != new.get(k))
        if refused := [k for k in changed if k not in RESUMABLE]:
            raise UserError(
                f"{path / 'recipe.toml'} was changed: {describe(refused, old, new)}",
                f"set {refused[0]} back, or begin a new run",
            )
        for setting in settings:
            if setting.partition("=")[0].strip() not in RESUMABLE:
                raise UserError(
                    f"--set {setting}: a run is resumed with the recipe it began with",
                    f"only these can change: {', '.join(RESUMABLE)}; or begin a new run",
                )
        recipe = validate(Recipe, apply_settings(now, settings), path / "recipe.toml", settings)
        check_spending(recipe, path / "recipe.toml")
        check_kept(recipe.prompt.file, recipe.prompt.templates)
        return cls(path, recipe, take_lock(path))

    def take_back(self) -> None:
        """Remove a run that never began, so that the same command works once it is mended."""
        if not (self.path / "checkpoints").exists():
            for name in ("recipe.toml", "run.json", ".lock"):
                (self.path / name).unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                self.path.rmdir()

    @property
    def id(self) -> str:
        name: str = read_json(self.path / "run.json")["id"]
        return name

    def keep_data(self, digest: str) -> None:
        """Remember what is learned from and tested on. Raises UserError where it was other data."""
        identity = read_json(self.path / "run.json")
        if "data" not in identity:
            self.write_json("run.json", {**identity, "data": digest})
        elif identity["data"] != digest:
            raise UserError(
                f"{self.path} began with other problems than its task and its evaluation give now",
                "bring the data back as they were, or begin a new run",
            )

    def close(self) -> None:
        self._lock.close()

    # ---- commits --------------------------------------------------------------------------------

    @property
    def commits(self) -> Commits:
        return Commits(self.path, "wave", JOURNALS)

    def last_commit(self) -> tuple[Path, dict[str, Any]] | None:
        """As `Commits.last`. Raises UserError where commits are lost."""
        begun = [file for name in JOURNALS if is_filled(file := self.path / name)]
        if begun and not self.commits.all():
            raise UserError(
                f"{begun[0]} has rows, and there is no commit to go on from",
                f"bring {self.commits.folder} back, or begin a new run",
            )
        return self.commits.last()

    def write_json(self, name: str, value: Any) -> None:
        write_atomic(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def began_with(file: Path) -> dict[str, Any]:
    """The recipe in run.json, with this version's usual values of keys that it does not have.

    Raises UserError where it is none, or one of a version with other keys.
    """
    recipe = read_json(file).get("recipe")
    if not isinstance(recipe, dict):
        raise UserError(f"{file}: no recipe in it", "restore that file, or begin a new run")
    try:
        return resolved(validate(Recipe, recipe, file))
    except UserError as error:
        raise UserError(
            f"{file.parent} was made by another version of mlxreflect ({error.message})",
            "go on with it by that version, or begin a new run; `mlxreflect show` reads it",
        ) from None


def is_filled(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def describe(keys: list[str], old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(f"{k} (was {old.get(k)!r}, is {new.get(k)!r})" for k in keys)
