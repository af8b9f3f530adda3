"""A shared beginning, run once: caches in mlx-lm's protocol that carry gradients.

`Recorder` keeps the keys and values that a layer makes of the prefixes; `Extension` hands them to
the rows that go on from there. Model code stays untouched, and gradients flow through both.
"""

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask


class Recorder:
    """Cache of the prefixes' pass, a part of them at a time: keeps what the layer computes.

    keys, values: [G, heads, P, D], of the parts so far, with the last once the layer has run.
    offset: the length of the parts before.
    """

    def __init__(self, keys: mx.array | None = None, values: mx.array | None = None) -> None:
        self.keys, self.values = keys, values
        self.offset = 0 if keys is None else keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Prefixes are padded on the right, where causality hides the padding by itself."""
        mask: mx.array | str | None = create_attention_mask(
            N, self.offset, return_array, window_size
        )
        return mask


class Extension:
    """Cache of the rows' pass: each row's keys and values follow those of its prefix.

    keys, values: [G, heads, P, D], the prefixes'; group: [R], the prefix of each row;
    lengths: [G], real tokens of each prefix. axes: how many axes of heads attention scores have;
    most models leave them to MLX, which has one. offset: [R], where each row goes on.
    """

    def __init__(
        self, keys: mx.array, values: mx.array, group: mx.array, lengths: mx.array, axes: int
    ) -> None:
        self.keys, self.values, self.group, self.lengths = keys, values, group, lengths
        self.axes = axes
        self.offset = lengths[group]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return (
            mx.concatenate([self.keys[self.group], keys], axis=2),
            mx.concatenate([self.values[self.group], values], axis=2),
        )

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """[R, …, N, P + N], an axis of 1 for each of heads: the real tokens of the prefix and those
        before, inside the window.
        """
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


def extend(
    recorders: list[Recorder], group: mx.array, lengths: mx.array, axes: int
) -> list[Extension]:
    """The caches of the rows' pass, of those that the prefixes' pass has filled."""
    caches = []
    for recorder in recorders:
        if recorder.keys is None or recorder.values is None:
            raise ValueError("a layer has put nothing into its cache")
        caches.append(Extension(recorder.keys, recorder.values, group, lengths, axes))
    return caches


def find_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    """The cache among a layer's arguments."""
    found = [a for a in (*args, *kwargs.values()) if isinstance(a, Recorder | Extension)]
    return found[0] if found else None
