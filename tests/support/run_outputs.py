"""Whole runs of a recipe, here or in a process that kills itself, and what they leave behind.

Settings are dotted key → value, but a profile's name as it is.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlxreflect.config.recipe import load_recipe
from mlxreflect.core.ui import Ui
from mlxreflect.runs.folder import create_run
from mlxreflect.runs.run import execute
from support.kill_driver import DRIVER

# What a run or a training says of itself.
OWN = ("recipe.toml", "run.json", "job.toml", "job.json", ".lock", "critic.jsonl")


def outputs_of_run(recipe, settings, folder):
    """Run a recipe here; every output file but the recipe, times and paths left out, as hashes."""
    run = create_run(load_recipe(recipe, written(settings)), folder)
    try:
        execute(run, Ui(quiet=True))
    finally:
        run.close()
    return outputs_in(folder)


def written(settings):
    return [
        f"{key}={value if key == 'profile' else json.dumps(value)}"
        for key, value in settings.items()
    ]


def outputs_by_settings(tmp_path_factory, recipe, base):
    """Returns settings → `outputs_of_run` of base and them; each run is made once."""
    made = {}

    def get(settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("run") / "run"
            made[key] = outputs_of_run(recipe, {**base, **settings}, folder)
        return made[key]

    return get


def run_process(recipe, settings, folder, *driver, code=-9):
    """Run a recipe in a process of its own; returns what it says on stderr.

    driver: the point of kill_driver that ends it, nth; code: what it ends with then.
    """
    start = [DRIVER, *map(str, driver)] if driver else ["-m", "mlxreflect"]
    sets = [f"--set={one}" for one in written(settings)]
    call = [sys.executable, *start, "run", recipe, "--run-dir", str(folder), "--json", *sets]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == (code if driver else 0), done.stderr
    assert (folder / "summary.json").exists() != bool(driver)
    return done.stderr


def outputs_in(folder):
    """The same of a run, or of a training, that is done."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith("report/"):  # the evaluations again, with times and paths in them
            continue
        if path.is_file() and name not in OWN:
            found[name] = hashlib.sha256(content(path)).hexdigest()
    return found


def content(path: Path) -> bytes:
    if path.suffix in (".png", ".svg"):
        return b""
    if path.suffix == ".safetensors" and path.name != "adapters.safetensors":
        # What is held beside an adapter, and was read from a file, is written in another order.
        arrays = sorted(mx.load(str(path)).items())
        return repr([(name, np.array(array).tobytes()) for name, array in arrays]).encode()
    if path.name in ("metrics.jsonl", "summary.json", "commit.json", "adapter_config.json"):
        # A journal's length depends on how many digits its times have.
        drop = ("seconds", "wall_seconds", "peak_memory_bytes", "tokens_per_second", "journals",
                "files", "sha256", "adapter", "model")  # fmt: skip
        text = path.read_text()
        rows = text.splitlines() if path.suffix == ".jsonl" else [text]
        kept = [{k: v for k, v in json.loads(r).items() if k not in drop} for r in rows]
        for row in kept:
            if isinstance(row.get("critic"), dict):
                row["critic"].pop("wire", None)
        return json.dumps(kept).encode()
    return path.read_bytes()
