"""A run in this process, and hashes of what it leaves behind."""

import hashlib
import json
from pathlib import Path

from mlxreflect.config.recipe import load_recipe
from mlxreflect.core.ui import Ui
from mlxreflect.runs.folder import create_run
from mlxreflect.runs.run import execute


def outputs_of_run(recipe, settings, folder):
    """Run a recipe here; every output file but the recipe, times and paths left out, as hashes.

    settings: dotted key → value, but a profile's name as it is.
    """
    flags = [f"{key}={value if key == 'profile' else json.dumps(value)}"
             for key, value in settings.items()]  # fmt: skip
    run = create_run(load_recipe(recipe, flags), folder)
    try:
        execute(run, Ui(quiet=True))
    finally:
        run.close()
    return outputs_in(folder)


def outputs_in(folder):
    """The same of a run that is done."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith("report/"):  # the evaluations again, with times and paths in them
            continue
        if path.is_file() and name not in ("recipe.toml", "run.json", ".lock", "critic.jsonl"):
            found[name] = hashlib.sha256(content(path)).hexdigest()
    return found


def content(path: Path) -> bytes:
    if path.suffix == ".png":
        return b""
    if path.name in ("metrics.jsonl", "summary.json", "commit.json", "adapter_config.json"):
        # A journal's length depends on how many digits its times have.
        drop = ("seconds", "wall_seconds", "peak_memory_bytes", "journals")
        text = path.read_text()
        rows = text.splitlines() if path.suffix == ".jsonl" else [text]
        kept = [{k: v for k, v in json.loads(r).items() if k not in drop} for r in rows]
        for row in kept:
            if isinstance(row.get("critic"), dict):
                row["critic"].pop("wire", None)
        return json.dumps(kept).encode()
    return path.read_bytes()
