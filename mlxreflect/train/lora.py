import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxreflect.config.schema import Fitting, LoraConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json
from mlxreflect.core.seeds import seed_mlx
from mlxreflect.models.load import floating, model_folder, read_adapter, to_float32
from mlxreflect.models.memory import EXPERTS, LINEAR
from mlxreflect.train.recurrent import refuse_untrainable

# Names, anywhere in a layer's, of what weighs experts in mlx-lm's models.
ROUTERS = {"gate", "router", "wg", "classifier", "shared_expert_gate"}
Arrays = dict[str, mx.array]


# ---- LoRA ----------------------------------------------------------------------------------------


def linear_keys(model: nn.Module, last: int = 0) -> list[str]:
    """Names of the linear layers inside the last n blocks (0: all), such as self_attn.q_proj.

    Without those of Kimi K3 whose weights its blocks read themselves, past any LoRA.
    """
    names = {n: 0 for layer in model.layers[-last:] for n, m in layer.named_modules()
             if isinstance(m, LINEAR + EXPERTS) and not n.endswith("_res_proj")}  # fmt: skip
    return list(names)


def default_keys(model: nn.Module) -> list[str]:
    """Names of all linear layers but the routers of blocks with experts.

    On few examples, a router that moves sends tokens to experts that have not learned from them.
    """
    names = linear_keys(model)
    expert = any(isinstance(m, EXPERTS) for layer in model.layers for m in layer.modules())
    return [name for name in names if not (expert and ROUTERS & set(name.split(".")))]


def attach_lora(
    model: nn.Module, config: LoraConfig, seed: int, adapter: str = ""
) -> dict[str, Any]:
    """Freeze the model and put LoRA layers on it, or go on with those an adapter brought.

    adapter: the LoRA folder that the model was loaded with; its rank, layers and keys count then.
    Returns the adapter_config.json that mlx-lm needs to load them again. Raises UserError for
    layers or keys that the model does not have, and for an adapter of another type.
    """
    if adapter:
        existing = read_adapter(adapter, "lora")
        model.freeze()
        for _, module in model.named_modules():
            if "lora_a" in module:
                module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
        return existing
    layers, keys = choose_layers(model, config), config.keys or default_keys(model)
    scale = config.alpha / config.rank if config.alpha else config.scale
    parameters = {
        "rank": config.rank, "scale": scale, "dropout": config.dropout, "keys": keys
    }  # fmt: skip
    seed_mlx(seed, "lora")
    model.freeze()
    linear_to_lora_layers(model, layers, dict(parameters))
    model.eval()  # new layers begin in training mode, with dropout on
    mx.eval(model.trainable_parameters())  # the others may stay unread
    return {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}


def choose_layers(model: nn.Module, config: LoraConfig) -> int:
    """Returns how many last blocks to train; refuses what would train nothing, or is not there."""
    total, known = len(model.layers), linear_keys(model)
    if config.layers != -1 and not 1 <= config.layers <= total:
        raise UserError(
            f"train.lora.layers = {config.layers}: the model has {total} layers",
            f"give 1 to {total}, or -1 for all of them",
        )
    if missing := [key for key in config.keys if key not in known]:
        raise UserError(
            f"train.lora.keys: the model has no layer {missing[0]!r}",
            f"choose from: {', '.join(known)}; an empty list takes every one but routers",
        )
    layers = total if config.layers == -1 else config.layers
    there = linear_keys(model, layers)
    if not set(config.keys or known) & set(there):
        raise UserError(
            f"train.lora.keys: the last {layers} of {total} layers have none of them",
            f"raise train.lora.layers, or choose from: {', '.join(there)}",
        )
    return layers


def base_reference(model: nn.Module) -> Arrays:
    """Trainable parameters under which LoRA layers add nothing. Raises UserError without LoRA."""
    arrays = dict(tree_flatten(model.trainable_parameters()))
    if not any(name.endswith("lora_b") for name in arrays):
        raise UserError(
            'train.reference = "base" needs LoRA: with all weights trained, the base is gone',
            'set train.reference = "stage" or "none"',
        )
    # Both factors: what is kept under the base's name is then found again after any step.
    return {
        k: mx.zeros_like(v) if k.endswith(("lora_a", "lora_b")) else v for k, v in arrays.items()
    }


# ---- all weights ---------------------------------------------------------------------------------


def attach_full(model: nn.Module, name: str = "", adapter: str = "") -> dict[str, Any]:
    """Let all floating weights be trained, in float32.

    In bfloat16 a step of 1e-5 is less than half a unit in the last place of most weights, and is
    lost. name: the recipe's policy.model; adapter: the full adapter the model was loaded with.
    Returns the adapter_config.json. Raises UserError where the model is quantised, in memory or in
    its files (a full adapter would not fit those), and for an adapter of another type.
    """
    if adapter:
        read_adapter(adapter, "full")
    packed = any("scales" in module and hasattr(module, "bits") for module in model.modules())
    if packed or stored_packed(name):
        raise UserError(
            f"{name or 'the model'}: full fine-tuning needs weights that are not quantised",
            f"make such a folder: mlxreflect fuse --model {name or 'MODEL'} --out DIR",
        )
    # Row by row, as steps and files leave them: a resumed run then sums in the same order.
    model.update(tree_map(lambda a: mx.contiguous(to_float32(a)), model.parameters()))
    model.unfreeze()
    for module in model.modules():
        whole = [k for k, v in module.items() if isinstance(v, mx.array) and not floating(v)]
        module.freeze(keys=whole, recurse=False)
    model.eval()
    mx.eval(model.parameters())
    return {"fine_tune_type": "full", "num_layers": len(model.layers)}


def stored_packed(name: str) -> bool:
    """Returns whether a model's files are quantised, whatever loading made of them."""
    folder = model_folder(name)
    if folder is None or not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json")
    parts = (config, config.get("text_config") or {})
    return any(part.get(key) for part in parts for key in ("quantization", "quantization_config"))


def save_adapter(folder: Path, arrays: Arrays, config: dict[str, Any], model: str) -> None:
    """Writes what was trained and its config as `mlx_lm.generate --adapter-path` loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), arrays)
    text = json.dumps({**config, "model": model}, indent=2)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def attach(model: nn.Module, train: Fitting, seed: int, name: str, adapter: str) -> dict[str, Any]:
    """Choose what is trained, as train.tune says; returns the adapter_config.json.

    Raises UserError where the model cannot be trained, or not so.
    """
    refuse_untrainable(model)
    if train.tune == "full":
        return attach_full(model, name, adapter)
    return attach_lora(model, train.lora, seed, adapter)
