"""A whole model's weights: unpack them, merge an adapter into them, pack them.

Everything but `share_kept` is computed lazily, when the weights are written.
"""

import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear
from mlx_lm.utils import dequantize_model, quantize_model

from mlxreflect.errors import UserError
from mlxreflect.policy import GROUP_SIZE, to_float32
from mlxreflect.train.lora import Arrays, floating

PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear, QuantizedMultiLinear)
LEAST = 0.99  # share of an adapter's change that the model's own type must keep


def unpack(model: nn.Module, name: str) -> None:
    """Plain weights in place of packed ones, in the type that the model computes in."""
    plain = []
    for path, module in model.named_modules():
        weight = module.get("weight")
        if not isinstance(weight, mx.array) or floating(weight):
            continue
        # A subclass of those does more than its weights, which `dequantize_model` would drop.
        if type(module) not in PACKED or module.get("global_scale") is not None:
            raise UserError(
                f"{name!r}: no plain weights can be made of {path} ({type(module).__name__})",
                "give a model that is not quantised, or one that `mlx_lm.convert` quantised",
            )
        if isinstance(module, QuantizedMultiLinear):
            one = mx.dequantize(weight, module.scales, module.biases, module.group_size,
                                module.bits, module.mode)  # fmt: skip
            layer = MultiLinear(*one.shape[::-1])
            layer.weight = one
            plain.append((path, layer))
    model.update_modules(tree_unflatten(plain))
    dequantize_model(model)


def merge(model: nn.Module, own: Arrays, rounded: bool) -> float:
    """Plain layers in place of those with an adapter; returns what the own type keeps of it.

    own: the arrays without the adapter. Sums are in float32 and rounded once, or not at all where
    that would lose some of the change; with `rounded` always.
    """
    layers = [(path, m) for path, m in model.named_modules() if hasattr(m, "fuse")]
    if layers:
        types = {f"{path}.weight": base_of(m).weight.dtype for path, m in layers}
        kept = share_kept((base_of(m).weight, merged(m).weight) for _, m in layers)
        model.update_modules(tree_unflatten([(path, merged(m)) for path, m in layers]))
    else:
        arrays = dict(tree_flatten(model.parameters()))
        types = {name: array.dtype for name, array in own.items() if floating(array)}
        kept = share_kept((own[name], arrays[name]) for name in types)
    if kept >= LEAST or rounded:
        arrays = dict(tree_flatten(model.parameters()))
        model.update(tree_unflatten([(n, arrays[n].astype(kind)) for n, kind in types.items()]))
    else:
        model.update(tree_map(to_float32, model.parameters()))
    return kept


def base_of(module: nn.Module) -> nn.Module:
    return module.linear if "linear" in module else module.embedding


def merged(module: nn.Module) -> nn.Module:
    """The layer and its adapter as one, in float32."""
    base = base_of(module)
    weight = base.weight
    base.weight = weight.astype(mx.float32)
    layer = module.fuse(dequantize=True)
    base.weight = weight
    return layer


def share_kept(pairs: Iterable[tuple[mx.array, mx.array]]) -> float:
    """The share of a change that is left when the new weights take the type of the old ones.

    pairs: old and new weights, the new in float32. Measured along the change: Σ r·d / Σ d·d, where
    d is the change and r what rounding leaves of it.
    """
    left = whole = 0.0
    for old, new in pairs:
        change = new - old
        rounded = new.astype(old.dtype).astype(mx.float32) - old
        left += float((rounded * change).sum())
        whole += float((change * change).sum())
    return left / whole if whole else 1.0


def pack(model: nn.Module, config: dict[str, Any], bits: int, base: dict[str, Any]) -> None:
    """Quantise, as the base was where it had as many bits, and say so in the config."""
    alike = base.get("bits") == bits and base.get("mode", "affine") == "affine"
    usual = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def predicate(path: str, module: nn.Module) -> Any:
        return base[path] if alike and path in base else usual(path, module)

    group = base["group_size"] if alike else GROUP_SIZE
    with redirect_stdout(io.StringIO()):  # it prints, and stdout may be for JSON
        config.update(quantize_model(model, config, group, bits, quant_predicate=predicate)[1])
