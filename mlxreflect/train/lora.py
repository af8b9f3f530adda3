"""LoRA on a loaded model, in files that mlx-lm loads."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxreflect.errors import UserError
from mlxreflect.recipe import LoraConfig
from mlxreflect.seeds import seed_mlx

LINEAR = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
Arrays = dict[str, mx.array]


def linear_keys(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the model's blocks, such as self_attn.q_proj."""
    names = {n: 0 for layer in model.layers for n, m in layer.named_modules()
             if isinstance(m, LINEAR)}  # fmt: skip
    return list(names)


def attach_lora(
    model: nn.Module, config: LoraConfig, seed: int, adapter: str = ""
) -> dict[str, Any]:
    """Freeze the model and put LoRA layers on it, or go on with those an adapter brought.

    Returns the adapter_config.json that mlx-lm needs to load them again.
    """
    if adapter:
        text = (Path(adapter) / "adapter_config.json").read_text(encoding="utf-8")
        existing: dict[str, Any] = json.loads(text)
        if existing.get("fine_tune_type", "lora") != "lora":
            raise UserError(
                f"policy.adapter = {adapter!r} is of type {existing['fine_tune_type']!r}",
                "give a LoRA adapter, or none",
            )
        model.freeze()
        for _, module in model.named_modules():
            if "lora_a" in module:
                module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
        return existing
    known = linear_keys(model)
    keys = config.keys or known
    if missing := [key for key in keys if key not in known]:
        raise UserError(
            f"train.lora.keys: the model has no layer {missing[0]!r}",
            f"choose from: {', '.join(known)}; an empty list takes all of them",
        )
    layers = len(model.layers) if config.layers == -1 else config.layers
    parameters = {
        "rank": config.rank, "scale": config.scale, "dropout": config.dropout, "keys": keys
    }  # fmt: skip
    seed_mlx(seed, "lora")
    model.freeze()
    linear_to_lora_layers(model, layers, dict(parameters))
    model.eval()  # new layers begin in training mode, with dropout on
    mx.eval(model.parameters())
    return {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}


def base_reference(model: nn.Module) -> Arrays:
    """Trainable parameters under which LoRA layers add nothing."""
    arrays = dict(tree_flatten(model.trainable_parameters()))
    return {k: mx.zeros_like(v) if k.endswith("lora_b") else v for k, v in arrays.items()}


def save_adapter(folder: Path, arrays: Arrays, config: dict[str, Any], model: str) -> None:
    """adapters.safetensors and adapter_config.json, as `mlx_lm.generate --adapter-path` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), arrays)
    text = json.dumps({**config, "model": model}, indent=2)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
