"""Attention, gates and softmax by powers of two, where MLX's own exponential is slow.

Without Apple's Accelerate, on a CPU, MLX takes 17 to 25 ns for an exponential (in softmax, silu and
logsumexp as well), 5 for a `where`, and 7 to 9 for a power: a third of a training step's time.
While a model trains or is scored on such a CPU, these stand in; everywhere else nothing changes.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import activations

LOG2E = math.log2(math.e)
LOWEST = -1e30  # added to a masked score: its power is 0, and a row of such scores no NaN
theirs = mx.fast.scaled_dot_product_attention


def slow_exponentials() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu and sys.platform != "darwin"


def exp(x: mx.array) -> mx.array:
    """e to the x; float32 keeps its accuracy where |x| is below 100."""
    return mx.power(2.0, LOG2E * x) if slow_exponentials() else mx.exp(x)


@contextmanager
def faster_exponentials(model: nn.Module) -> Iterator[None]:
    """The model with attention and gates of this file, for the duration, where that is faster."""
    with ExitStack() as stack:
        if slow_exponentials():
            put = mock.patch.object(mx.fast, "scaled_dot_product_attention", attention)
            stack.enter_context(put)
            for module in {sys.modules[type(part).__module__] for part in model.modules()}:
                if getattr(module, "swiglu", None) is activations.swiglu:
                    stack.enter_context(mock.patch.object(module, "swiglu", swiglu))
        yield


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    **more: Any,
) -> mx.array:
    """mx.fast.scaled_dot_product_attention, for float32 and without sinks; else itself.

    queries: [B, heads, L, D]; keys, values: [B, groups of heads, S, D]; mask: broadcast to
    [B, heads, L, S], boolean, added, or "causal".
    """
    if queries.dtype != mx.float32 or any(value is not None for value in more.values()):
        whole: mx.array = theirs(queries, keys, values, scale=scale, mask=mask, **more)
        return whole
    batch, heads, length, width = queries.shape
    groups = keys.shape[1]
    grouped = (batch, groups, heads // groups, length)
    scores = (queries * (scale * LOG2E)).reshape(*grouped, width) @ mx.expand_dims(
        keys.swapaxes(-1, -2), 2
    )
    if mask is not None:
        scores = scores + added(mask, groups, length, keys.shape[2])
    shares: Any = softmax_of_powers(scores)
    weighted: mx.array = shares @ mx.expand_dims(values, 2)
    return weighted.reshape(batch, heads, length, values.shape[-1])


def added(mask: mx.array | str, groups: int, length: int, keys: int) -> mx.array:
    """A mask as what is added to scores [B, groups, heads a group, L, S] in powers of two."""
    if isinstance(mask, str):
        mask = mx.arange(keys) <= mx.arange(keys - length, keys)[:, None]
    numbers = mx.where(mask, 0.0, LOWEST) if mask.dtype == mx.bool_ else LOG2E * mask
    while numbers.ndim < 4:
        numbers = numbers[None]
    if numbers.shape[1] == 1:
        return mx.expand_dims(numbers, 2)
    return numbers.reshape(numbers.shape[0], groups, -1, *numbers.shape[2:])


@mx.custom_function
def softmax_of_powers(scores: mx.array) -> mx.array:
    """2 to the scores, each over the sum of its row."""
    powers = mx.power(2.0, scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@softmax_of_powers.vjp
def softmax_backward(primal: Any, cotangent: Any, output: Any) -> mx.array:
    slope = output * cotangent
    found: mx.array = math.log(2) * (slope - output * slope.sum(axis=-1, keepdims=True))
    return found


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) · x, as mlx-lm's models have it."""
    if gate.dtype != mx.float32:
        found: mx.array = activations.swiglu(gate, x)
        return found
    gated: Any = gated_unit(gate, x)
    out: mx.array = gated[0]
    return out


@mx.custom_function
def gated_unit(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = 1 / (1 + mx.power(2.0, -LOG2E * gate))
    return gate * sigmoid * x, sigmoid


@gated_unit.vjp
def gated_backward(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
    gate, x = primals
    slope, sigmoid = cotangents[0], outputs[1]
    share = slope * sigmoid
    return share * x * (1 + gate * (1 - sigmoid)), share * gate
