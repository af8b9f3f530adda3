"""What a run needs, looked at before the night it is meant for; `mlxreflect doctor` shows it.

Nothing is downloaded, and each critic is asked for one token.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from huggingface_hub import constants

from mlxreflect.config.methods import method_of
from mlxreflect.config.recipe import eval_spec
from mlxreflect.config.schema import Recipe, TaskConfig
from mlxreflect.core.cache import cache_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.ui import Ui, safe_text
from mlxreflect.critics.client import FILE
from mlxreflect.data.contamination import in_words
from mlxreflect.data.rows import is_path
from mlxreflect.evaluation.contamination import clean, further_specs
from mlxreflect.evaluation.evaluate import eval_problems
from mlxreflect.models.load import device_name, on_cpu
from mlxreflect.setup.checks import (
    Check,
    Sizes,
    check_critic,
    check_ollama,
    find_model,
    memory_of,
    tiers,
    to_download,
)
from mlxreflect.tasks import TASKS, training_problems
from mlxreflect.train.memory import memory_limit

if TYPE_CHECKING:
    from rich.console import Group


GB = 1e9
DISK_GB = 1.0  # less than this is no place for a run


def doctor(recipe: Recipe | None, ui: Ui) -> dict[str, Any]:
    """All checks, in the order of a run; ok: none of them fails."""
    sizes: Sizes = {}
    steps: list[tuple[str, Callable[[], Iterable[Check]]]] = [("device", check_device)]
    if recipe is None:
        steps += [("cache", check_caches), ("ollama", check_ollama)]
    else:
        steps.append(("policy", partial(check_policy, recipe, sizes)))
        steps.append(("data", partial(check_data, recipe)))
        for name, config in tiers(recipe).items():
            asked = (name, config, recipe.task.name, sizes)
            steps.append((name, partial(check_critic, *asked)))
    steps += [("memory", partial(check_memory, recipe, sizes)), ("disk", check_disk)]
    checks: list[Check] = []
    with ui.progress("checking", len(steps)) as bar:
        for name, step in steps:
            bar.update_text(name)
            checks += carried_out(name, step)
            bar.advance(1)
    return {
        "schema": "doctor/1",
        "recipe": recipe.name if recipe else None,
        "ok": all(check.status != "fail" for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def carried_out(name: str, step: Callable[[], Iterable[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(step())
    except UserError as error:
        found.append(Check(name, "fail", error.message, error.hint))
    return found


# ---- this machine --------------------------------------------------------------------------------


def check_device() -> Iterator[Check]:
    yield Check("device", "ok", device_name())


def check_caches() -> Iterator[Check]:
    yield Check("cache", "ok", f"models in {constants.HF_HUB_CACHE}")
    yield Check("cache", "ok", f"replies of critics in {cache_path('', FILE)}")


def check_disk() -> Iterator[Check]:
    """Where `run` puts its folders: below runs/ in the folder it is started in."""
    place = next(p for p in (Path("runs").resolve(), *Path("runs").resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free / GB
    if not os.access(place, os.W_OK):
        yield Check("disk", "fail", f"{place} cannot be written to", "start it in another folder")
    elif free < DISK_GB:
        hint = "free some, or start it in a folder on another disk"
        yield Check("disk", "fail", f"{free:.1f} GB free in {place}", hint)
    else:
        yield Check("disk", "ok", f"{free:.1f} GB free in {place}")


def device_memory() -> int:
    """Bytes that models can have here: what the GPU recommends, or all of the machine's."""
    found = {} if on_cpu() else mx.device_info()
    whole = found.get("max_recommended_working_set_size") or found.get("memory_size")
    return int(whole) if whole else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(recipe: Recipe | None, sizes: Sizes) -> Iterator[Check]:
    """The weights in memory and what training may take, beside what there is."""
    there = device_memory() / GB
    if recipe is None:
        yield Check("memory", "ok", f"{there:.1f} GB")
        return
    parts: Sizes = {**sizes, "training, at most": memory_limit(recipe.train.memory_gb)}
    needed = sum(size or 0 for size in parts.values()) / GB
    each = ", ".join(
        f"{name} {'unknown' if size is None else f'{size / GB:.1f}'}"
        for name, size in parts.items()
    )
    detail = f"about {needed:.1f} of {there:.1f} GB are needed ({each})"
    if needed > there:
        hint = "take a smaller policy or critic, more bits off them, or set train.memory_gb lower"
        yield Check("memory", "fail", detail, hint)
    else:
        close = needed > 0.8 * there or None in parts.values()
        yield Check("memory", "note" if close else "ok", detail)


# ---- the policy and the data ---------------------------------------------------------------------


def check_policy(recipe: Recipe, sizes: Sizes) -> Iterator[Check]:
    config = recipe.policy
    folder = find_model(config.model, "policy.model")
    if folder is None:
        sizes["policy"] = None
        yield to_download("policy", config.model)
    else:
        sizes["policy"] = size = memory_of(folder, config.quantize, config.dequantize)
        yield Check("policy", "ok", f"{config.model} is here, {size / GB:.2f} GB once loaded")
    files = ("adapter_config.json", "adapters.safetensors")
    if config.adapter and not all((Path(config.adapter) / name).is_file() for name in files):
        hint = f"give a folder with {' and '.join(files)}"
        yield Check("adapter", "fail", f"{config.adapter} is no adapter folder", hint)


def check_data(recipe: Recipe) -> Iterator[Check]:
    """Problems of this machine are read; those of the hub are only looked for in the cache."""
    spec = eval_spec(recipe)
    others = [hub_data(other.task) for other in further_specs(recipe)]
    sources = [hub_data(recipe.task), hub_data(spec.task), *others]
    for name in dict.fromkeys(name for names in sources for name in names):
        yield check_hub_data(name)
    held_out = [] if sources[1] else eval_problems(TASKS[spec.task.name], spec)
    if held_out:
        yield Check("data", "ok", f"{len(held_out)} problems held out")
    if not any(sources):
        cleaned = clean(recipe, held_out)
        left_out = f"; {in_words(cleaned.counts)}" if cleaned.counts else ""
        yield Check("data", "ok", f"{len(cleaned.problems)} problems to learn from{left_out}")
    elif not sources[0]:
        found = len(training_problems(recipe, held_out))
        yield Check("data", "ok", f"{found} problems to learn from")
    problems = [] if any(sources) else list(cleaned.problems.values())
    for note in method_of(recipe).notes(recipe, problems):
        yield Check("data", "ok" if note.fine else "note", note.text)


def check_hub_data(name: str) -> Check:
    from datasets import config

    kept = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if kept.is_dir() and any(kept.iterdir()):
        return Check("data", "ok", f"the data set {name} is in the cache")
    if not constants.HF_HUB_OFFLINE:
        return Check("data", "note", f"the data set {name} is to be downloaded")
    hint = "run it once without HF_HUB_OFFLINE, or set task.source to a file"
    found = f"the data set {name} is not in the cache, and HF_HUB_OFFLINE is set"
    return Check("data", "fail", found, hint)


def hub_data(config: TaskConfig) -> tuple[str, ...]:
    """The hub data sets that a task reads."""
    if not config.source:
        return TASKS[config.name].hub
    return () if is_path(config.source) else (config.source,)


def render_doctor(result: dict[str, Any]) -> "Group":
    """The checks as a table, and below it what mends those that fail."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "note": "yellow", "fail": "bold red"}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    hints = []
    for check in result["checks"]:
        mark = Text(check["status"], style[check["status"]])
        table.add_row(mark, Text(check["name"]), Text(safe_text(check["detail"])))
        if check["hint"]:
            hints.append(Text(safe_text(f"{check['name']}: {check['hint']}")))
    later = any("is to be downloaded" in check["detail"] for check in result["checks"])
    there = "all but what is to be downloaded is there" if later else "all is there"
    verdict = there if result["ok"] else "something is missing"
    return Group(table, Text(), *hints, Text(verdict, "bold"))
