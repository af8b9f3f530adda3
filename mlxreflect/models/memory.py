"""The memory of generation, asked of the model: keys and values, prompts, and tokens."""

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRALinear

STEP = KVCache.step  # tokens that a cache grows by
CHUNK = 2048  # tokens of a prompt that are read at once
DRAWING = 8  # arrays of a batch's logits while tokens are drawn
LENGTHS = 6  # bytes of each weight of a layer, 3 to 7, at work while DoRA takes its rows' lengths
FUSED = (64, 80, 128)  # sizes of heads whose attention a GPU computes without keeping the scores
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads")
ADAPTED = ("lora_a", "lora_b", "m")  # what LoRA and DoRA layers have besides those they are on
LINEAR, EXPERTS = (nn.Linear, nn.QuantizedLinear), (SwitchLinear, QuantizedSwitchLinear)


class Decoding:
    """Bytes that generating takes besides the weights, within a few percent.

    One token is run through the model, lazily: nothing is computed, and no weight is read. growing:
    of each layer's keys and values, the bytes of a token and the most tokens that are kept.
    fixed: bytes of a sequence's recurrent states. shared: bytes that all sequences take together.
    """

    def __init__(self, model: nn.Module) -> None:
        caches = make_prompt_cache(model)
        logits = model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
        self.vocabulary, self.itemsize = logits.shape[-1], logits.dtype.size
        self.layers, self.heads = len(model.layers), argument(model, *HEADS)
        self.width, self.shared = width(model), int(LENGTHS * dora_weights(model)[0])
        self.growing: list[tuple[float, float]] = []
        self.fixed, self.fused = 0, mx.default_device().type == mx.DeviceType.gpu
        for cache in leaves(caches):
            keys = getattr(cache, "keys", None)
            if keys is None:
                self.fixed += cache.nbytes
                continue
            most = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
            self.growing.append((cache.nbytes / keys.shape[2], most or float("inf")))
            self.fused &= keys.shape[3] in FUSED

    def sequence(self, tokens: int) -> int:
        """Returns the bytes that one sequence of so many tokens keeps."""
        whole = -(-tokens // STEP) * STEP
        return int(sum(each * min(whole, most) for each, most in self.growing)) + self.fixed

    def bytes(self, batch: int, prompt: int, new: int) -> int:
        """Returns the most bytes that a batch takes. prompt, new: tokens of the longest."""
        kept = self.sequence(prompt + new)
        # A layer that grows is there twice. Those that join a batch are copied into it, as long
        # as they are then.
        kept += kept // max(1, self.layers) + self.sequence(prompt)
        read = min(prompt, CHUNK)
        scores = 0 if self.fused else self.heads * read * prompt
        at_work = max(read * self.width + scores, DRAWING * self.vocabulary)
        return batch * int(kept + at_work * self.itemsize) + self.shared

    def batch(self, most: int, prompt: int, new: int, limit: int) -> int:
        """Returns how many sequences at once, at most `most` and at least 1, the limit allows."""
        each = self.bytes(1, prompt, new) - self.shared
        return max(1, min(most, (limit - self.shared) // each))


def leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """Yields caches, and in place of a list of them its members."""
    for cache in caches:
        inner = getattr(cache, "caches", None)
        yield from [cache] if inner is None else leaves(inner)


def weights_of(model: nn.Module) -> int:
    """Returns the bytes of a model's weights, whatever LoRA layers are on it."""
    arrays = tree_flatten(model.parameters())
    return sum(array.nbytes for name, array in arrays if name.rpartition(".")[2] not in ADAPTED)


def width(model: nn.Module) -> float:
    """Returns the outputs of a layer's linear parts for one token; the mean of the layers."""
    parts = [m for layer in model.layers for _, m in layer.named_modules()]
    outputs = sum(m.weight.shape[0] for m in parts if isinstance(m, LINEAR))
    experts = sum(m.weight.shape[1] for m in parts if isinstance(m, EXPERTS))
    active = argument(model, "num_experts_per_tok")
    return float(outputs + active * experts) / len(model.layers)


def dora_weights(model: nn.Module) -> tuple[float, float]:
    """Returns how many weights of a layer DoRA is on, and how many of these are packed.

    Both the mean of the layers. DoRA computes with plain weights, and takes the lengths of their
    rows, each time that it is run.
    """
    parts = [m for layer in model.layers for m in layer.modules() if isinstance(m, DoRALinear)]
    sizes = [(m.lora_a.shape[0] * m.lora_b.shape[1], "scales" in m.linear) for m in parts]
    packed = sum(size for size, is_packed in sizes if is_packed)
    return sum(size for size, _ in sizes) / len(model.layers), packed / len(model.layers)


def argument(model: nn.Module, *names: str) -> int:
    """A number that the model was made with; 1 where it has none of such a name."""
    arguments = getattr(model, "args", None)
    text = getattr(arguments, "text_config", None)
    known = {**getattr(arguments, "__dict__", {}), **(text if isinstance(text, dict) else {})}
    return next((int(known[name]) for name in names if known.get(name)), 1)
