import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxreflect.config.schema import Fitting, LoraConfig, PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json
from mlxreflect.core.seeds import seed_mlx
from mlxreflect.models.load import floating, model_folder, read_adapter, to_float32
from mlxreflect.models.memory import ADAPTED, EXPERTS, LINEAR
from mlxreflect.models.policy import Policy
from mlxreflect.models.split import refuse_training
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
    """Freeze the model and put LoRA or DoRA layers on it, or go on with those an adapter brought.

    adapter: the folder that the model was loaded with; its kind, rank, layers and keys count then.
    Returns the adapter_config.json that mlx-lm needs to load them again. Raises UserError for
    layers or keys that the model does not have, and for an adapter of another type.
    """
    if adapter:
        return go_on(model, config, adapter)
    layers, keys = choose_layers(model, config), config.keys or default_keys(model)
    if config.dora:
        check_dora(model, layers, keys)
    parameters = {
        "rank": config.rank, "scale": scale_of(config), "dropout": config.dropout, "keys": keys
    }  # fmt: skip
    seed_mlx(seed, "lora")
    model.freeze()
    linear_to_lora_layers(model, layers, dict(parameters), use_dora=config.dora)
    model.eval()  # new layers begin in training mode, with dropout on
    # What was drawn. All else may stay unread, with the magnitudes that are taken from it.
    drawn = tree_flatten(model.trainable_parameters())
    mx.eval([array for name, array in drawn if not name.endswith(".m")])
    kind = "dora" if config.dora else "lora"
    return {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters}


def go_on(model: nn.Module, config: LoraConfig, adapter: str) -> dict[str, Any]:
    """Freezes all but the adapter that the model was loaded with; returns its config."""
    existing = read_adapter(adapter, "lora", "dora")
    if config.dora and existing.get("fine_tune_type") != "dora":
        raise UserError(
            f"train.lora.dora = true, and policy.adapter = {adapter!r} is LoRA",
            "leave train.lora.dora out, or begin without that adapter",
        )
    model.freeze()
    for module in model.modules():
        if "lora_a" in module:
            module.unfreeze(keys=[*ADAPTED], recurse=False)
    return existing


def scale_of(config: LoraConfig) -> float:
    """Returns what B @ A is multiplied by; with rsLoRA (https://arxiv.org/abs/2312.03732) α/√r."""
    if not config.alpha:
        return config.scale
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)


def check_dora(model: nn.Module, layers: int, keys: Sequence[str]) -> None:
    """Refuses what mlx-lm has no DoRA for: experts, and layers with a forward pass of their own."""
    chosen = [(name, module) for layer in model.layers[-layers:]
              for name, module in layer.named_modules() if name in keys]  # fmt: skip
    for name, module in chosen:
        if type(module) not in LINEAR:
            able = sorted({name for name, module in chosen if type(module) in LINEAR})
            named = f"name others in train.lora.keys ({', '.join(able)}), or " if able else ""
            raise UserError(
                f"train.lora.dora: mlx-lm has no DoRA for {name} ({type(module).__name__})",
                f"{named}leave train.lora.dora out",
            )


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
    """Trainable parameters under which LoRA layers add nothing. Raises UserError without LoRA.

    DoRA's magnitudes are the lengths of the base's rows again.
    """
    arrays = dict(tree_flatten(model.trainable_parameters()))
    if not any(name.endswith("lora_b") for name in arrays):
        raise UserError(
            'train.reference = "base" needs LoRA: with all weights trained, the base is gone',
            'set train.reference = "stage" or "none"',
        )
    # Both factors: what is kept under the base's name is then found again after any step.
    base = {
        k: mx.zeros_like(v) if k.endswith(("lora_a", "lora_b")) else v for k, v in arrays.items()
    }
    for path, layer in model.named_modules():
        if isinstance(layer, DoRALinear):
            trained = layer.m
            layer.set_linear(layer.linear)
            base[f"{path}.m"], layer.m = layer.m, trained
    return base


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


def attach_everywhere(
    policy: Policy, train: Fitting, seed: int, config: PolicyConfig
) -> dict[str, Any]:
    """Does `attach` on every host. config: what the policy was loaded with."""
    if policy.split:
        raise refuse_training(policy.name)
    fitting = train.model_dump(mode="json", include=set(Fitting.model_fields))
    policy.hosts.lead("attach", policy=policy.number, train=fitting, seed=seed)
    policy.learns = True
    return attach(policy.model, train, seed, config.model, config.adapter)


def attach(model: nn.Module, train: Fitting, seed: int, name: str, adapter: str) -> dict[str, Any]:
    """Choose what is trained, as train.tune says; returns the adapter_config.json.

    Raises UserError where the model cannot be trained, or not so.
    """
    refuse_untrainable(model)
    if train.tune == "full":
        return attach_full(model, name, adapter)
    return attach_lora(model, train.lora, seed, adapter)
