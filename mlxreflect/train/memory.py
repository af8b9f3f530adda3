"""The memory of a training step: an estimate of it, and layers that keep nothing.

Recomputed layers keep their input alone. Keys and values that one hands on through a cache of a
prefix enter and leave it as values, or their gradients would silently be lost.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxreflect.config.schema import Fitting
from mlxreflect.models.load import device_memory, on_cpu, on_mac_gpu
from mlxreflect.models.memory import HEADS, LENGTHS, argument, dora_weights, width
from mlxreflect.train.batches import WORTH, Item, Part, Shape, halved, shape_of, whole
from mlxreflect.train.cpu import LANES
from mlxreflect.train.network import (
    Arrays,
    Cache,
    Extension,
    Held,
    Recorder,
    chunk_rows,
    default_stride,
    has_plain_caches,
    parameters,
)

# Measured on models of 5 to 41 million parameters, of ten kinds, within a factor of 1.7. For the
# backward pass a layer keeps so many times the outputs of its linear parts, and attention's scores;
# a recomputed one its inputs. At work besides, at most: layers, or chunks of the head's logits.
OUTPUTS, SCORES, INPUTS, AT_WORK, HEAD = 2, 0.75, 2, 3, 12
STATE = 1.5, 256  # SSD: so many squares a head, of so many tokens at most
HALF = 3  # bytes of a number in a model of two bytes, for LoRA computes with four
CPU_BYTES = 10**9  # on the CPU, where parts of a batch are as fast as the whole
ENOUGH_TOKENS = 512  # in a part that is left whole: products of fewer rows are slow
# In a part, on a GPU that draws the display too: macOS stops work that keeps it waiting.
DISPLAY_TOKENS = 2048
LEAST_TOKENS = 64  # below that, a part of its own is not worth a thread
GPU_SHARE = 0.25  # of the working set that the device recommends; a critic may want the rest
# What a layer that is recomputed may be given.
GIVEN = (mx.array, str, int, float, tuple, list, dict, type(None), Recorder, Extension)


class Footprint:
    """Bytes that a step's activations take, estimated from the model's shapes.

    width: outputs of the linear layers of one layer, for one token; heads: attention heads. dora,
    packed: as of `dora_weights`.
    """

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.layers = len(model.layers)
        self.heads = argument(model, *HEADS)
        self.width = width(model)
        self.dora, self.packed = dora_weights(model)
        # Norms are as long as a layer's input, and keep the type that a model computes in.
        norms = [m.weight for _, m in model.layers[0].named_modules()
                 if "weight" in m and "norm" in type(m).__name__.lower()]  # fmt: skip
        self.hidden = max((norm.size for norm in norms), default=1)
        self.itemsize = HALF if any(norm.dtype.size == 2 for norm in norms) else 4
        self.stateful = not has_plain_caches(model)

    def bytes(self, shape: Shape, recomputed: int = 0) -> int:
        """shape: of one batch; recomputed: how many layers keep their inputs only."""
        scores = shape.rows * shape.suffix * (shape.suffix + shape.prefix)
        # A prefix is run in parts, each of which sees those before.
        part = min(shape.prefix, default_stride())
        scores += shape.groups * shape.prefix * (shape.prefix + part) // 2
        # DoRA keeps outputs from before and after their scaling.
        outputs = OUTPUTS + (self.dora > 0)
        layer = outputs * shape.tokens * self.width + SCORES * self.heads * scores
        if self.stateful:
            squares, step = STATE
            layer += squares * self.heads * shape.rows * shape.suffix * min(shape.suffix, step)
        inputs = INPUTS * shape.tokens * self.hidden
        # Weights that DoRA makes plain are kept of each time that a layer is run.
        plain = self.packed * (1 + -(-shape.prefix // default_stride()))
        kept = (layer + plain) * (self.layers - recomputed) + inputs * recomputed
        at_work = (AT_WORK * layer + plain) * self.itemsize + LENGTHS * self.dora
        logits = min(chunk_rows(self.vocabulary), shape.tokens) * self.vocabulary
        return int(kept * self.itemsize + max(at_work, HEAD * logits * 4))

    def layers_to_recompute(self, shape: Shape, limit: int) -> int:
        """The fewest layers that have to be recomputed to stay below the limit, or all."""
        fitting = (n for n in range(self.layers) if self.bytes(shape, n) <= limit)
        return next(fitting, self.layers)


def memory_limit(gigabytes: float) -> int:
    """Bytes that activations may take: as asked for, or a share of what the device has."""
    if gigabytes:
        return int(gigabytes * 1e9)
    return CPU_BYTES if on_cpu() else int(GPU_SHARE * device_memory())


def most_tokens(part_tokens: int) -> float:
    """Tokens that may be computed at once: as asked for, or few enough for a Mac's display."""
    return part_tokens or (DISPLAY_TOKENS if on_mac_gpu() else math.inf)


def plan(
    items: Mapping[int, Item], shares: bool, splits: bool, footprint: Footprint, config: Fitting
) -> tuple[list[Part], int]:
    """A step's items in parts of at most `batch`, and how many layers are recomputed.

    Alike lengths together: less padding, and the sum over the step stays what it was. A part is
    halved where it would take too much memory or more than `part_tokens` at once, or where that
    leaves out a good deal of padding; on the CPU, where several parts are under way, also where it
    is large or the only one. Layers are recomputed where one item alone takes too much, or the
    recipe says so; only what is too much then is halved by its rows, where `splits` allows it, for
    each half computes the prompt again.
    """
    cpu = on_cpu()
    limit = memory_limit(config.memory_gb) // (LANES if cpu else 1)
    most = most_tokens(config.part_tokens)

    def shape(part: Part) -> Shape:
        return shape_of([items[i][rows] for i, rows in part.items()], shares)

    def at_once(part: Part) -> int:
        """Its tokens in one pass: prefixes are run in parts, and rows go on from them later."""
        one = shape(part)
        return max(one.groups * min(one.prefix, default_stride()), one.rows * one.suffix)

    def halve(part: Part, halves: list[Part]) -> bool:
        too_many = at_once(part) > max(most, *map(at_once, halves))
        if too_many or footprint.bytes(shape(part), recompute) > limit:
            return True
        if len(part) == 1:
            return False
        tokens = shape(part).tokens
        if cpu and not (parts or waiting):
            return tokens >= 2 * LEAST_TOKENS
        large = tokens >= 2 * ENOUGH_TOKENS
        return large and (cpu or sum(shape(half).tokens for half in halves) < WORTH * tokens)

    order = sorted(items, key=lambda i: max(row.length for row in items[i]))
    recompute = 0 if config.grad_checkpoint == "no" else footprint.layers
    if config.grad_checkpoint == "auto":
        longest = whole({i: items[i] for i in order[-1:]})
        recompute = footprint.layers_to_recompute(shape(longest), limit)
    parts: list[Part] = []
    waiting = [whole({i: items[i] for i in order[at : at + config.batch]})
               for at in range(0, len(order), config.batch)]  # fmt: skip
    while waiting:
        part = waiting.pop(0)
        halves = halved(part, splits)
        if len(halves) > 1 and halve(part, halves):
            waiting[:0] = halves
        else:
            parts.append(part)
    return parts, recompute


# ---- recomputing ------------------------------------------------------------------------------


@contextmanager
def recomputed_layers(model: nn.Module, count: int) -> Iterator[None]:
    """The first `count` layers compute their activations again in the backward pass.

    Patches the layer classes for the duration only; inside another such block it does nothing.
    """
    chosen = list(model.layers[:count])
    kinds = {type(layer) for layer in chosen}
    originals = {kind: kind.__call__ for kind in kinds if not hasattr(kind.__call__, "recomputes")}
    for kind, original in originals.items():
        kind.__call__ = recomputing(original, {id(layer) for layer in chosen})
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__call__ = original


def recomputing(original: Callable[..., Any], chosen: set[int]) -> Callable[..., Any]:
    def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        # Gradients pass by what else a layer is given to change, as Kimi K3's are.
        if id(layer) not in chosen or not all(isinstance(a, GIVEN) for a in given):
            return original(layer, *args, **kwargs)
        caches = [a for a in given if isinstance(a, Recorder | Extension)]
        cache = caches[0] if caches else None

        def inner(arrays: Arrays, held: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            own = again(cache, held)
            args = [own if a is cache else a for a in args]
            kwargs = {k: own if a is cache else a for k, a in kwargs.items()}
            with parameters(layer, arrays):
                out = original(layer, *args, **kwargs)
            kept = own.held if isinstance(own, Recorder) else ()
            # As arrays of their own, for gemma4's layers return them too: of an array that leaves
            # twice, MLX loses the second gradient.
            return out, tuple(mx.expand_dims(array, 0) for array in kept)

        arrays = dict(tree_flatten(layer.trainable_parameters()))
        held = cache.held if cache else ()
        out, kept = mx.checkpoint(inner)(arrays, held, args, kwargs)
        if isinstance(cache, Recorder):
            cache.held = tuple(mx.squeeze(array, 0) for array in kept)
        return out

    call.recomputes = True  # type: ignore[attr-defined]
    return call


def again(cache: Cache | None, held: Held) -> Cache | None:
    """A cache of the same kind, on the arrays that entered the recomputed function."""
    if isinstance(cache, Extension):
        return Extension(held, cache.group, cache.lengths, cache.axes)
    return Recorder(held) if isinstance(cache, Recorder) else None
