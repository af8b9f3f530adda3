"""Dropout whose masks belong to the tokens, whatever is computed beside them.

Each token draws from a key of its own, of its row's seed, its position and the layer. So a mask is
the same in every part of a step, with any padding, on any host, and in a layer that is run again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import switch_layers

from mlxreflect.core.seeds import seed_for
from mlxreflect.train.batches import Row, shape_of

LayerKeys = dict[int, mx.array]  # by a layer's id: [2] uint32


def layer_keys(model: nn.Module) -> LayerKeys:
    """Returns the keys of a model's dropout layers, of their names in it."""
    return {
        id(layer): mx.array(words(seed_for("dropout", path)))
        for path, layer in model.named_modules() if isinstance(layer, nn.Dropout)
    }  # fmt: skip


def words(seed: int) -> np.ndarray:
    """Returns a seed below 2**64 as MLX's keys have it, [2] uint32."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], dtype=np.uint32)


@contextmanager
def masked(
    layers: LayerKeys, stream: tuple[int | str, ...], rows: Mapping[int, Row]
) -> Iterator[None]:
    """Dropout layers draw for a batch of these rows, [R, S], for the duration.

    layers: without any, nothing changes. stream: names the draws of the step. rows: by the number
    of their item in the fit.
    """
    if not layers:
        yield
        return
    length = shape_of([(row,) for row in rows.values()], share=False).suffix
    masks = Masks(layers, np.stack([words(seed_for(*stream, i)) for i in rows]), length)
    with (
        mock.patch.object(nn.Dropout, "__call__", lambda layer, x: masks.drop(layer, x)),
        mock.patch.object(switch_layers, "_gather_sort", masks.sort),
    ):
        yield


class Masks:
    """Draws the masks of R rows of S tokens. seeds: [R, 2] uint32."""

    def __init__(self, layers: LayerKeys, seeds: np.ndarray, length: int) -> None:
        self.layers, self.shape = layers, (len(seeds), length)
        tokens = np.repeat(seeds[:, None], length, axis=1)
        tokens[..., 1] += np.arange(length, dtype=np.uint32)
        self.tokens = mx.array(tokens.reshape(-1, 2))
        self.order: mx.array | None = None  # tokens, as the last block of experts has sorted them
        self.gather_sort = switch_layers._gather_sort

    def drop(self, layer: nn.Dropout, x: mx.array) -> mx.array:
        """Replaces nn.Dropout's own: x [..., D]."""
        if layer._p_1 == 1 or not layer.training:
            return x
        mask = self.mask(x, self.layers[id(layer)], layer._p_1)
        return mx.where(mask, x * (1 / layer._p_1), mx.array(0, x.dtype))

    def mask(self, x: mx.array, key: mx.array, keep: float) -> mx.array:
        """Returns what of x is kept. All that a token has in one layer, as of experts, is alike."""
        ahead, tokens = x.shape[:-1], self.tokens
        if self.order is not None and ahead == (self.order.size, 1):
            tokens, ahead = tokens[self.order], (self.order.size,)
        elif ahead[:2] == self.shape:
            ahead = self.shape
        elif ahead[:1] == tokens.shape[:1]:
            ahead = ahead[:1]
        else:  # no model known has such a layer: its masks depend on the part
            return mx.random.bernoulli(keep, x.shape, key=key ^ tokens[0])
        width = x.shape[-1]
        draw = mx.vmap(lambda one: mx.random.bernoulli(keep, (width,), key=one))
        between = [1] * (x.ndim - 1 - len(ahead))
        return draw(tokens ^ key).reshape(*ahead, *between, width)

    def sort(self, x: mx.array, indices: mx.array) -> tuple[mx.array, ...]:
        """Replaces mlx-lm's `_gather_sort`: the tokens of x, once for each of their experts."""
        experts = indices.shape[-1]
        known = indices.size == experts * len(self.tokens)
        order = mx.argsort(mx.stop_gradient(indices).flatten()) // experts
        self.order = order if known else None
        return cast(tuple[mx.array, ...], self.gather_sort(x, indices))
