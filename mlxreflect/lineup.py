"""The arms of one `mlxreflect eval`: models, adapters on them, models behind a server.

With one model and one adapter the arm is the model with the adapter. With more of either every
model is also asked without, and an adapter goes with the model that it was trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxreflect.errors import UserError
from mlxreflect.loading import missing_model
from mlxreflect.records import read_json
from mlxreflect.served import ServedModel
from mlxreflect.tables import PolicyConfig

ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")
LONGEST_NAME = 60


@dataclass(frozen=True)
class Entry:
    """One arm. name: of its row in the table and, with several arms, of its folder."""

    name: str
    model: PolicyConfig | ServedModel


def line_up(
    models: Sequence[str],
    adapters: Sequence[str],
    bits: Sequence[int],
    served: Sequence[ServedModel],
    *,
    base: bool = False,
) -> list[Entry]:
    """The arms in the order of the table; the first is what the others are compared with.

    bits: of each quantisation on load, 0 for none. base: also a single adapter's model without it.
    Raises UserError for a model or adapter that is not there.
    """
    if wrong := set(bits) - {0, 4, 8}:
        raise UserError(f"--quantize {min(wrong)}: no such number of bits", "give 4, 8 or 0")
    configs = [
        PolicyConfig.model_validate({"model": model, "adapter": adapter, "quantize": each})
        for model, adapter in pair(models, adapters, base)
        for each in dict.fromkeys(bits or [0])
    ]
    for config in configs:
        check_files(config)
    # What shares its weights stands together, so that they are loaded once.
    order = {key: i for i, key in enumerate(dict.fromkeys((c.model, c.quantize) for c in configs))}
    configs.sort(key=lambda config: order[config.model, config.quantize])
    return unique([*(Entry(arm_name(c), c) for c in configs),
                   *(Entry(slug(model.name), model) for model in served)])  # fmt: skip


def pair(models: Sequence[str], adapters: Sequence[str], base: bool) -> list[tuple[str, str]]:
    """Model and adapter ("" for none) of each arm."""
    models, adapters = list(dict.fromkeys(models)), list(dict.fromkeys(adapters))
    if adapters and not models:
        raise UserError(f"--adapter {adapters[0]}: no --model to put it on", "give its --model")
    if len(models) == len(adapters) == 1 and not base:
        return [(models[0], adapters[0])]
    owners = {adapter: owner(adapter, models) for adapter in adapters}
    return [(m, a) for m in models for a in ("", *(a for a in adapters if owners[a] == m))]


def owner(adapter: str, models: Sequence[str]) -> str:
    """The one of the models that an adapter was trained on; the first, where it does not say."""
    check_adapter(adapter)
    told = read_json(Path(adapter) / ADAPTER_FILES[0]).get("model")
    if len(models) == 1 or not isinstance(told, str) or not told:
        return models[0]
    for model in models:
        if model == told or Path(model).resolve() == Path(told).resolve():
            return model
    raise UserError(
        f"--adapter {adapter}: it was trained on {told}, which is none of the models",
        f"evaluate it by itself, with the one --model it belongs to, or add --model {told}",
    )


def check_adapter(adapter: str) -> None:
    if not all((Path(adapter) / name).is_file() for name in ADAPTER_FILES):
        raise UserError(
            f"--adapter {adapter!r} is no adapter folder",
            "give a folder with adapter_config.json and adapters.safetensors",
        )


def check_files(config: PolicyConfig) -> None:
    """Raise for what is plainly not there, before the first arm has taken its time."""
    if config.adapter:
        check_adapter(config.adapter)
    if config.model.startswith(("/", ".", "~")) and not Path(config.model).is_dir():
        raise missing_model(
            config.model_copy(update={"adapter": ""}), FileNotFoundError(), "policy"
        )


def arm_name(config: PolicyConfig) -> str:
    name = slug(Path(config.model).name)
    if config.quantize:
        name += f"-{config.quantize}bit"
    if config.adapter:
        place = Path(config.adapter).resolve()
        usual = place.name in ("adapter", "adapters")  # says nothing: the run's name does
        name += "+" + slug(place.parent.name if usual else place.name)
    return name


def slug(text: str) -> str:
    """A name as a folder's: no separators, no dot in front."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:LONGEST_NAME] or "arm"


def unique(entries: Sequence[Entry]) -> list[Entry]:
    """Numbered where names are the same, also on a disk that ignores case."""
    seen: set[str] = set()
    found = []
    for entry in entries:
        name, number = entry.name, 1
        while name.lower() in seen:
            number += 1
            name = f"{entry.name}-{number}"
        seen.add(name.lower())
        found.append(Entry(name, entry.model))
    return found


def replaces_weights(config: PolicyConfig) -> bool:
    """Whether an adapter holds all weights, so that the model cannot be had back from under it."""
    if not config.adapter:
        return False
    return read_json(Path(config.adapter) / ADAPTER_FILES[0]).get("fine_tune_type") == "full"
