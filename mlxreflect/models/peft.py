"""LoRA adapters in PEFT's form: put on a model, and written from those of mlx-lm.

PEFT keeps A as [r, in] and B as [out, r], mlx-lm as [in, r] and [r, out]; where PEFT divides alpha
by r (by its root for rsLoRA), mlx-lm has one scale. DoRA's magnitudes are the same, [out].
https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json

FILES = ("adapter_config.json", "adapter_model.safetensors")
MERGE = (
    "merge it into its model with PEFT (merge_and_unload), then: mlx_lm.convert --hf-path MERGED"
)
# Those begin on a changed base: no adapter for the model as it is published.
BEGAN = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Those compute otherwise, or hold more than LoRA of linear layers.
BEYOND = ("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication",
          "lora_bias", "modules_to_save", "monteclora_config", "target_parameters",
          "trainable_token_indices", "use_bdlora", "use_qalora")  # fmt: skip
# What sees and hears in models of several parts; no text goes through it, and mlx-lm leaves it out.
TOWERS = re.compile(
    r"\.(?:visual|(?:vision|audio)_\w+|embed_(?:vision|audio)|multi_modal_projector)\."
)
PATTERN = re.compile(r"(?:[\w.-]|\\\.|\\d\+)+", re.ASCII)  # a layer's name, or a simple regex
PARTS = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}
NAME = re.compile(
    rf"(?:base_model\.model\.)?(?P<path>.+?\.(?P<block>\d\d?\d?\d?)\.(?P<layer>.+?))"
    rf"\.(?P<part>{'|'.join(PARTS)})(?:\.default)?(?:\.weight)?"
)
# Where transformers' names of blocks are not those of mlx-lm: model type → (mlx-lm's, its).
BLOCKS = {
    "gpt2": ("model.h.", "transformer.h."),
    "gptj": ("model.h.", "transformer.h."),
    "gpt_neox": ("model.h.", "gpt_neox.layers."),
}
VISION = ("language_model.model.", "model.language_model.")
Arrays = dict[str, mx.array]


class Tensor(NamedTuple):
    """A tensor's place: the layer's path in transformers, its block, its name inside, and which."""

    path: str
    block: int
    layer: str
    part: str


def is_peft(folder: Path) -> bool:
    own = folder / "adapters.safetensors"  # mlx-lm's
    return all((folder / file).is_file() for file in FILES) and not own.exists()


def arrays_of(file: Path) -> Arrays:
    """Reads a safetensors file. Raises UserError for a damaged one."""
    try:
        arrays = mx.load(str(file))
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{file}: it cannot be read ({error})", "write or fetch it again") from None
    assert isinstance(arrays, dict)  # as of every safetensors file
    return arrays


# ---- read ----------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[dict[str, Any], dict[Tensor, mx.array]]:
    """Returns mlx-lm's adapter_config.json for an adapter of PEFT, and its tensors as mlx-lm's.

    All have one rank, the largest, filled up with zeros, and one scale: what a layer's differs by
    is in its B. Raises UserError for adapters that mlx-lm has no layers for.
    """
    config = read_json(folder / FILES[0])
    if (kind := config.get("peft_type")) != "LORA":
        raise UserError(f"{folder} is an adapter of PEFT of type {kind!r}, not LORA", MERGE)
    refuse_more(folder, config)
    found: dict[Tensor, mx.array] = {}
    for name, array in arrays_of(folder / FILES[1]).items():
        if TOWERS.search(name):
            continue
        if not (match := NAME.fullmatch(name)):
            raise UserError(f"{folder}: {name!r} is no LoRA of a linear layer in a block", MERGE)
        place = Tensor(match["path"], int(match["block"]), match["layer"], PARTS[match["part"]])
        if 0 in array.shape or array.ndim != (1 if place.part == "m" else 2):
            raise UserError(f"{folder}: {name!r} has the shape {array.shape}", "write it again")
        found[place] = array.astype(mx.float32)
    lasting = {place[:3] for place in found}
    if not found or any(Tensor(*place, part) not in found for place in lasting for part in
                        ("lora_a", "lora_b")):  # fmt: skip
        raise UserError(f"{folder}: a layer has not both lora_A and lora_B", "write it again")
    if len({place[1:] for place in found}) < len(found):
        raise UserError(f"{folder}: layers of two parts of its model have the same names", MERGE)
    ranks = {place: array.shape[0] for place, array in found.items() if place.part == "lora_a"}
    rank = max(ranks.values())
    try:
        scales = {place: scale_of(config, place.path, own) for place, own in ranks.items()}
    except (TypeError, AttributeError) as error:
        raise UserError(f"{folder}: its alphas are damaged ({error})", "write it again") from None
    scale = max(scales.values(), key=abs)
    tensors: dict[Tensor, mx.array] = {}
    for place, array in found.items():
        if place.part == "m":
            tensors[place] = array
            continue
        own = place._replace(part="lora_a")
        less = scales[own] / scale if scale and place.part == "lora_b" else 1.0
        missing = (0, rank - ranks[own])
        pad = [missing, (0, 0)] if place.part == "lora_a" else [(0, 0), missing]
        tensors[place] = mx.pad(array * less, pad).T
    parameters = {"rank": rank, "scale": scale, "dropout": config.get("lora_dropout") or 0.0,
                  "keys": sorted({place.layer for place in found})}  # fmt: skip
    dora = any(place.part == "m" for place in found)
    return {
        "fine_tune_type": "dora" if dora else "lora", "num_layers": -1,  # -1: all
        "lora_parameters": parameters,
    }, tensors  # fmt: skip


def refuse_more(folder: Path, config: dict[str, Any]) -> None:
    """Raises UserError for what its config says beyond LoRA, rsLoRA and DoRA of linear layers."""
    said = {key: config[key] for key in BEYOND if config.get(key)}
    if str(began := config.get("init_lora_weights")).lower().startswith(BEGAN):
        said["init_lora_weights"] = began
    if (bias := config.get("bias", "none")) != "none":
        said["bias"] = bias
    for key, value in said.items():
        told = f"{folder}: it has {key} = {str(value)[:80]}, for which MLX has no layer"
        if key == "init_lora_weights":
            told = f"{folder}: {key} = {value!r}, so it is no adapter for its plain model"
        raise UserError(told, MERGE)


def scale_of(config: dict[str, Any], path: str, rank: int) -> float:
    """Returns what B @ A is multiplied by in a layer: alpha / r, or alpha / √r for rsLoRA."""
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if not PATTERN.fullmatch(pattern):
            raise UserError(f"alpha_pattern has {pattern!r}, which is not read", MERGE)
        plain = re.escape(pattern.replace(r"\.", ".")).replace(re.escape(r"\d+"), r"\d+")
        if re.fullmatch(rf"(.*\.)?{plain}", path):  # the first that fits, as PEFT does
            alpha = own
            break
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def put_on(model: nn.Module, folder: Path) -> None:
    """Puts LoRA layers with an adapter's numbers on a model. Raises ValueError on a misfit.

    A layer is found by its block and its name inside: what is before that is not the same in
    transformers.
    """
    config, tensors = read(folder)
    linear_to_lora_layers(
        model, len(model.layers), config["lora_parameters"],
        use_dora=config["fine_tune_type"] == "dora",
    )  # fmt: skip
    blocks = [dict(tree_flatten(block.parameters())) for block in model.layers]
    for place, array in tensors.items():
        name = f"{place.layer}.{place.part}"
        there = blocks[place.block].get(name) if place.block < len(blocks) else None
        if there is None or there.shape != array.shape:
            said = "no such layer" if there is None else f"its shape is {there.shape}"
            raise ValueError(f"{place.path}, {array.shape}: {said} in the model")
    for number, block in enumerate(model.layers):
        own = {f"{p.layer}.{p.part}": array for p, array in tensors.items() if p.block == number}
        # Layers that the adapter leaves alone add nothing, and are left alone in training, too.
        idle = {name: mx.zeros_like(array) for name, array in blocks[number].items()
                if name.endswith((".lora_a", ".lora_b"))}  # fmt: skip
        block.load_weights(list((idle | own).items()), strict=False)


# ---- write ---------------------------------------------------------------------------------------


def write(
    adapter: Path, config: dict[str, Any], out: Path, model_type: str, base: str
) -> dict[str, Any]:
    """Writes an adapter of mlx-lm as PEFT loads it, into a new folder; returns PEFT's config.

    config: the adapter's, as mlx-lm has it. model_type: as in the model's config.json. base: the
    model's name for PEFT, or "". Raises UserError for adapters that PEFT has no form for.
    """
    kind, parameters = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    whole_model = f"write the whole model instead: mlxreflect fuse --adapter {adapter} --out DIR"
    if kind not in ("lora", "dora"):
        raise UserError(f"{adapter} is of type {kind!r}: PEFT has LoRA and DoRA", whole_model)
    numbers = [
        (parameters if isinstance(parameters, dict) else {}).get(k) for k in ("rank", "scale")
    ]
    rank, scale = (n if isinstance(n, int | float) and n else None for n in numbers)
    if rank is None or scale is None:
        raise UserError(f"{adapter}: its config has no lora_parameters with rank and scale",
                        "give the folder that training wrote")  # fmt: skip
    other = {ours: theirs for theirs, ours in PARTS.items()}
    tensors: Arrays = {}
    for name, array in arrays_of(adapter / "adapters.safetensors").items():
        path, _, part = name.rpartition(".")
        if part not in other or array.ndim != (1 if part == "m" else 2):
            raise UserError(f"{adapter}: PEFT has no LoRA for {path}", whole_model)
        if not model_type and path.startswith("model.h."):
            raise UserError(f"{adapter}: its layers' names in transformers depend on its model",
                            "have the model here, by the name in adapter_config.json")  # fmt: skip
        last = "" if part == "m" else ".weight"
        place = f"base_model.model.{transformers_name(path, model_type)}.{other[part]}{last}"
        tensors[place] = mx.contiguous(array.T)
    blocks = {int(match["block"]) for match in map(NAME.fullmatch, tensors) if match}
    whole = blocks == set(range(max(blocks, default=-1) + 1))
    made = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": rank, "lora_alpha": scale * rank,
        "lora_dropout": config["lora_parameters"].get("dropout", 0.0), "bias": "none",
        "use_dora": kind == "dora", "use_rslora": False,
        "fan_in_fan_out": model_type == "gpt2", "inference_mode": True,
        "target_modules": sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors}),
        "layers_to_transform": None if whole else sorted(blocks),
    }  # fmt: skip
    out.mkdir(parents=True)
    mx.save_safetensors(str(out / FILES[1]), tensors, {"format": "pt"})
    (out / FILES[0]).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return made


def transformers_name(path: str, model_type: str) -> str:
    ours, theirs = BLOCKS.get(model_type, VISION)
    return theirs + path.removeprefix(ours) if path.startswith(ours) else path
