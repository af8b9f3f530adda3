"""A person's own wording: the file that prompt.file names, and the copy of it a run keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxreflect.config.toml import read_toml
from mlxreflect.core.errors import UserError
from mlxreflect.prompts.templates import BUNDLED


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
