"""A causal language model taken apart: hidden states, shared beginnings, and a head in chunks.

A shared beginning is run once, by caches in mlx-lm's protocol that carry gradients: `Recorder`
keeps the keys and values of the prefixes, `Extension` hands them to the rows that go on from there.
Each way to run a model is tried on a few tokens, whatever the model's name, against the plain pass;
in float32, whatever the model's type, so that rounding hides no fault and looks like none.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import KVCache, RotatingKVCache, create_attention_mask, make_prompt_cache

from mlxreflect.models.load import device_memory, on_cpu
from mlxreflect.train.batches import Batch, Row, collate
from mlxreflect.train.losses import token_logps
from mlxreflect.train.recurrent import forget

Held = tuple[mx.array, ...]  # keys and values, or nothing yet


class Recorder:
    """Cache of the prefixes' pass, a part of them at a time: keeps what the layer computes.

    held: keys and values [G, heads, P, D] of the parts so far, with the last once the layer has
    run. offset: the length of the parts before.
    """

    def __init__(self, held: Held = ()) -> None:
        self.held = held
        self.offset = held[0].shape[2] if held else 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.held:
            keys = mx.concatenate([self.held[0], keys], axis=2)
            values = mx.concatenate([self.held[1], values], axis=2)
        self.held = keys, values
        return keys, values

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Prefixes are padded on the right, where causality hides the padding by itself."""
        mask = create_attention_mask(N, self.offset, return_array, window_size)
        return cast(mx.array | str | None, mask)


class Extension:
    """Cache of the rows' pass: each row's keys and values follow those of its prefix.

    held: keys and values [G, heads, P, D] of the prefixes; group: [R], the prefix of each row;
    lengths: [G], real tokens of each prefix. axes: how many axes of heads attention scores have;
    most models leave them to MLX, which has one. offset: [R], where each row goes on.
    Raises ValueError where the prefixes' pass has put nothing into its cache.
    """

    def __init__(self, held: Held, group: mx.array, lengths: mx.array, axes: int) -> None:
        self.held, self.group, self.lengths, self.axes = held, group, lengths, axes
        self.keys, self.values = held
        self.offset = lengths[group]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return (
            mx.concatenate([self.keys[self.group], keys], axis=2),
            mx.concatenate([self.values[self.group], values], axis=2),
        )

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """[R, …, N, P + N], an axis of 1 for each of heads: what is real, before, in the window."""
        prefix = self.keys.shape[2]
        ahead = mx.broadcast_to(mx.arange(prefix), (self.offset.shape[0], prefix))
        own = self.offset[:, None] + mx.arange(N)
        real = mx.concatenate([ahead < self.offset[:, None], mx.ones_like(own) > 0], axis=1)
        at, query = mx.concatenate([ahead, own], axis=1)[:, None, :], own[:, :, None]
        mask = real[:, None, :] & (at <= query)
        if window_size is not None:
            mask = mask & (query < at + window_size)
        return mx.expand_dims(mask, tuple(range(1, 1 + self.axes)))


Cache = Recorder | Extension


CHUNK_BYTES = 1 << 22  # of one chunk's logits, on the CPU
CHUNK_SHARE = 1 / 256  # of a GPU's memory that they take; a dozen times of it is at work at once
CHUNK_ROWS = (32, 1024)  # at least, at most
# Tokens of a prefix that are run at a time. Attention computes, and keeps for the backward pass, a
# full square of scores of which half is masked; in parts, it is little more than that half.
STRIDE = {"cpu": 128, "gpu": 1024}
UNFIT = (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError)
# How far two ways to the same log-probability may be apart, of the largest. M5 and CUDA multiply
# float32 with the 10 bits of TF32 by themselves.
TOLERANCE = {mx.float32: 5e-3, mx.bfloat16: 5e-2, mx.float16: 1e-2}
ROUNDING = 3.0  # times the plain pass's distance from float32, another way may be as far
HEAD_AXES = (1, 2)  # heads, or (gemma2) groups of heads and heads
Arrays = dict[str, mx.array]
Place = tuple[nn.Module, str]  # a module and the name of one of its attributes
Logps = Callable[[mx.array, mx.array], mx.array]  # hidden [n, D], targets [n] → [n]


class Network:
    """Log-probabilities of a batch's tokens under a model, in the cheapest way that it allows.

    precision: the type of its logits. place: where the backbone stands. splits: backbone and head
    can be run apart. shares: what several rows begin with can be run once. axes: of heads, in the
    masks for that.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        with evaluating(model):
            logits = model(mx.zeros((1, 1), dtype=mx.int32))
        self.vocabulary, self.precision = logits.shape[-1], logits.dtype
        self.place = find_backbone(model)
        self.stride = default_stride()
        self.splits = self.place is not None and self.agrees(axes=0)
        self.shares = self.splits and has_plain_caches(model) and any(map(self.agrees, HEAD_AXES))

    def logps(self, batch: Batch, *, training: bool = False) -> mx.array:
        """Log-probability of each scored token of each row, [R, T] float32; 0 where there is none.

        training: gradients will be taken.
        """
        return self.split_logps(batch, training) if self.splits else self.plain_logps(batch)

    def plain_logps(self, batch: Batch) -> mx.array:
        """Whole rows, all logits at once: what everything else has to be equal to."""
        logits = flat(self.model(batch.inputs))[batch.from_rows]
        return in_rows([token_logps(logits, batch.targets)], batch.slots)

    def split_logps(self, batch: Batch, training: bool = False) -> mx.array:
        score = self.head_logps
        if training:
            score = self.recomputed if self.head_parameters() else self.with_slope
        return in_rows(self.chunks(score, self.states(batch), batch.targets), batch.slots)

    def states(self, batch: Batch) -> mx.array:
        """Hidden states that predict the batch's targets, [N, D]."""
        assert self.place is not None  # else `splits` is False
        backbone = self.place[0][self.place[1]]
        if batch.prefix is None:
            return flat(backbone(batch.inputs, cache=None))[batch.from_rows]
        recorders = [Recorder() for _ in make_prompt_cache(self.model)]
        hidden = []
        for start in range(0, batch.prefix.shape[1], self.stride):
            recorders = [Recorder(before.held) for before in recorders]
            part = batch.prefix[:, start : start + self.stride]
            hidden.append(backbone(part, cache=recorders))
        ahead = flat(mx.concatenate(hidden, axis=1))[batch.from_prefix]
        caches = [Extension(recorder.held, batch.group, batch.prefix_lengths, self.axes)
                  for recorder in recorders]  # fmt: skip
        return mx.concatenate([ahead, flat(backbone(batch.inputs, cache=caches))[batch.from_rows]])

    # ---- the head -------------------------------------------------------------------------------

    def head(self, hidden: mx.array) -> mx.array:
        """Logits [n, V] of hidden states [n, D], by the model's own code."""
        assert self.place is not None  # else `splits` is False
        with standing_in(self.place, hidden[None]):
            logits = self.model(mx.zeros((1, hidden.shape[0]), dtype=mx.int32))
        return cast(mx.array, logits)[0]

    def head_logps(self, hidden: mx.array, targets: mx.array) -> mx.array:
        return token_logps(self.head(hidden), targets)

    def with_slope(self, hidden: mx.array, targets: mx.array) -> mx.array:
        """head_logps that keeps its gradient [n, D] instead of logits [n, V].

        Each log-probability depends on its own hidden state alone, so the backward pass is a
        product with that gradient, and nothing is computed twice.
        """

        @mx.custom_function
        def score(hidden: mx.array) -> tuple[mx.array, mx.array]:
            ones = mx.ones(hidden.shape[:1])
            (logps,), (slope,) = mx.vjp(lambda h: self.head_logps(h, targets), [hidden], [ones])
            return logps, slope

        @score.vjp
        def backward(primal: Any, cotangents: Any, outputs: Any) -> mx.array:
            gradient = (cotangents[0][:, None] * outputs[1]).astype(outputs[1].dtype)
            return cast(mx.array, gradient)

        return cast(list[mx.array], score(hidden))[0]

    def recomputed(self, hidden: mx.array, targets: mx.array) -> mx.array:
        """head_logps whose logits are computed again in the backward pass: for a trained head."""

        def score(arrays: Arrays, hidden: mx.array) -> mx.array:
            with parameters(self.model, arrays):
                return self.head_logps(hidden, targets)

        return mx.checkpoint(score)(self.head_parameters(), hidden)

    def chunks(self, score: Logps, hidden: mx.array, targets: mx.array) -> Iterator[mx.array]:
        """score, a few rows at a time."""
        rows = chunk_rows(self.vocabulary)
        logps = targets
        for start in range(0, targets.shape[0], rows):
            # One chunk after the other: MLX would begin with all of them at once.
            part = mx.depends(hidden[start : start + rows], logps)
            logps = score(part, targets[start : start + rows])
            yield logps

    def head_parameters(self) -> Arrays:
        """Trainable parameters outside the layers, which the head may use."""
        inside = {id(array) for layer in self.model.layers
                  for _, array in tree_flatten(layer.trainable_parameters())}  # fmt: skip
        arrays = dict(tree_flatten(self.model.trainable_parameters()))
        return {name: array for name, array in arrays.items() if id(array) not in inside}

    # ---- what the model allows ------------------------------------------------------------------

    def agrees(self, axes: int) -> bool:
        """Returns whether it gives what the plain pass does. axes: of heads, 0 for whole rows.

        In float32 both are the same; in the model's own precision it rounds as the plain pass does.
        """
        self.axes = axes
        stride, self.stride = self.stride, 3  # several parts, of however short a prefix
        try:
            with evaluating(self.model):
                plain, found, precision = self.both_ways()
                exact, same = plain, found
                if precision != mx.float32:
                    with float32_states(), suppress(*UNFIT):
                        exact, same, precision = self.both_ways()
            rounded = max(TOLERANCE[self.precision], ROUNDING * apart(plain, exact))
            return apart(same, exact) <= TOLERANCE[precision] and apart(found, exact) <= rounded
        except UNFIT:
            return False
        finally:
            self.stride = stride

    def both_ways(self) -> tuple[mx.array, mx.array, mx.Dtype]:
        """Returns log-probabilities by the plain pass and by the other, and the logits' type."""
        # Spread over the middle of the vocabulary: at its ends are special tokens, which were
        # trained little, and on which half precision rounds far more than on text.
        first, step = self.vocabulary // 4, max(1, self.vocabulary // 16)
        a, b, c, d, e, f = ((first + i * step) % self.vocabulary for i in range(6))
        one, other = [a, b, c], [b, c, a, e, d, a]
        items = [(Row(one, [d, e, f]), Row(one, [e, f])),
                 (Row(other, [c, a, d]), Row(other, [b, b, a, d]))]  # fmt: skip
        whole = collate(items)
        plain, precision = self.plain_logps(whole), self.model(whole.inputs).dtype
        found = self.split_logps(collate(items, share=self.axes > 0))
        mx.eval(plain, found)
        return plain, found, precision


def default_stride() -> int:
    """Tokens of a prefix that are run at a time on this device."""
    return STRIDE["cpu" if on_cpu() else "gpu"]


def chunk_rows(vocabulary: int) -> int:
    """Returns the number of hidden states that go through the head at a time.

    A GPU is kept busy only by more of them than the CPU, and has the memory for their logits.
    """
    least, most = CHUNK_ROWS
    size = CHUNK_BYTES if on_cpu() else int(CHUNK_SHARE * device_memory())
    return min(most, max(least, size // (4 * vocabulary)))


def find_backbone(model: nn.Module) -> Place | None:
    """Returns the owner of the module that holds the layers, and its name there."""
    first, count = model.layers[0], len(model.layers)
    for path, module in model.named_modules():
        lists = [value for value in module.values() if isinstance(value, list)]
        if path and any(len(one) == count and one[0] is first for one in lists):
            *way, name = path.split(".")
            owner = model
            for step in way:
                owner = owner[step]
            return owner, name
    return None


def has_plain_caches(model: nn.Module) -> bool:
    """Keys and values are all that a layer keeps of the past; no running state."""
    return all(type(cache) in (KVCache, RotatingKVCache) for cache in make_prompt_cache(model))


class StandIn:
    """Gives hidden states that are already there; for all else it is the backbone."""

    def __init__(self, backbone: nn.Module, hidden: mx.array) -> None:
        self.backbone, self.hidden = backbone, hidden

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return self.hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)


@contextmanager
def standing_in(place: Place, hidden: mx.array) -> Iterator[None]:
    """The model with hidden states in place of its backbone, for the duration."""
    owner, name = place
    backbone = owner[name]
    owner[name] = StandIn(backbone, hidden)
    try:
        yield
    finally:
        owner[name] = backbone


@contextmanager
def parameters(model: nn.Module, arrays: Arrays) -> Iterator[None]:
    """The model with other trainable parameters, for the duration."""
    own = {name: array for name, array in tree_flatten(model.trainable_parameters())
           if name in arrays}  # fmt: skip
    model.update(tree_unflatten(list(arrays.items())))
    if not model.training:  # in training mode nothing is kept
        forget(model)
    try:
        yield
    finally:
        model.update(tree_unflatten(list(own.items())))
        if not model.training:
            forget(model)


@contextmanager
def float32_states() -> Iterator[None]:
    """Models compute in float32 for the duration, on the weights that they have.

    Embeddings give float32, and what is computed from it by weights of any type is float32 too.
    """
    with ExitStack() as stack:
        for kind in (nn.Embedding, nn.QuantizedEmbedding):
            stack.enter_context(mock.patch.object(kind, "__call__", widened(kind.__call__)))
        yield


def widened(plain: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return lambda module, tokens: plain(module, tokens).astype(mx.float32)


def apart(found: mx.array, expected: mx.array) -> float:
    """The largest difference, of the largest log-probability."""
    share = mx.abs(found - expected).max() / mx.abs(expected).max()
    return cast(float, share.item())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def in_rows(logps: Iterable[mx.array], slots: mx.array) -> mx.array:
    """Log-probabilities [N], in parts, as [R, T] by slots [R, T]; 0 in the slot N."""
    return mx.concatenate([*logps, mx.zeros((1,))])[slots]


def flat(array: mx.array) -> mx.array:
    """[B, T, D] → [B·T, D]."""
    return array.reshape(-1, array.shape[-1])
