"""Functions that stand in for MLX's own while a model trains or is scored on the CPU.

Everything comes in by `faster_on_cpu` and `in_parts`; on a GPU neither does anything. Measured with
MLX 0.32 on x86: an exponential takes 17 to 25 ns, a power 7 to 9; a product with 4-bit weights, of
512 rows, takes 40 times as long as with weights made float32 first, and in bfloat16 300 times.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, TypeVar, cast
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import activations

from mlxreflect.models.load import on_cpu
from mlxreflect.train import losses
from mlxreflect.train.network import Logps, Network

LANES = 2  # a constant: what a part may take of the memory must not depend on the machine's cores
LOG2E = math.log2(math.e)
LOWEST = -1e30  # added to a masked score: its power is 0, and a row of such scores no NaN
LEAST_ROWS = 4  # of a product with quantised weights that making them float32 is worth it for
# Weights at a time that are made so; MLX needs about three times their 16 MB for it.
BLOCK = 1 << 22
theirs, their_product = mx.fast.scaled_dot_product_attention, mx.quantized_matmul
plain_chunks = Network.chunks
Work = TypeVar("Work")
Result = TypeVar("Result")


@contextmanager
def faster_on_cpu(model: nn.Module) -> Iterator[None]:
    """The model with what this file has, for the duration, where that is faster."""
    with ExitStack() as stack:

        def put(place: Any, name: str, function: Any) -> None:
            stack.enter_context(mock.patch.object(place, name, function))

        if on_cpu():
            put(mx, "quantized_matmul", quantized_matmul)
            put(mx, "checkpoint", partial(checkpoint, mx.checkpoint))
            put(Network, "chunks", marked_chunks)
        if on_cpu() and sys.platform != "darwin":  # whose exponentials are fast
            put(losses, "exp", exp)
            put(mx.fast, "scaled_dot_product_attention", attention)
            for module in {sys.modules[type(part).__module__] for part in model.modules()}:
                if getattr(module, "swiglu", None) is activations.swiglu:
                    put(module, "swiglu", swiglu)
        yield


# ---- streams side by side ------------------------------------------------------------------------


def in_parts(
    model: nn.Module, trace: Callable[[Work], Result], work: Sequence[Work]
) -> Iterator[tuple[Work, Result]]:
    """Yields each piece of work with its result, computed, in the order of the work.

    trace: makes a tree of arrays from what is computed already, and seeds what it draws at random.
    It runs in this thread, the computation in others, as MLX computes a stream on one core. MLX
    lets about a hundred operations wait, of all streams together, so a large graph would keep
    another stream idle: it is computed piece by piece, from mark to mark.
    """
    mx.eval(model.parameters())  # here, where they were made
    if len(work) < 2 or not on_cpu():
        for piece in work:
            with faster_on_cpu(model):
                result = trace(piece)
            mx.eval(result)
            yield piece, result
        return
    streams, threads = lanes()
    free, waiting = deque(streams), deque(work)
    running = deque[tuple[Work, Result, mx.Stream, Future[None]]]()
    try:
        while waiting or running:
            while waiting and free:
                piece, stream, marks = waiting.popleft(), free.popleft(), list[Any]()
                with mx.stream(stream), faster_on_cpu(model), marking(marks):
                    result = trace(piece)
                marks.append(result)
                computed = threads.submit(compute, marks)
                running.append((piece, result, stream, computed))
            piece, result, stream, computed = running.popleft()
            computed.result()
            free.append(stream)
            yield piece, result
    finally:  # also where the caller stops early: nothing goes on behind its back
        for *_, computed in running:
            computed.exception()


marked: list[list[Any] | None] = [None]  # what `mark` adds to; the last counts


@contextmanager
def marking(marks: list[Any] | None) -> Iterator[None]:
    """Places that are marked inside come into `marks`, in the order of their computation."""
    marked.append(marks)
    try:
        yield
    finally:
        marked.pop()


def mark(x: mx.array) -> mx.array:
    """x, as a place at which the computation may pause; its gradient becomes one too."""
    marks = marked[-1]
    if marks is None:
        return x

    @mx.custom_function
    def same(x: mx.array) -> mx.array:
        return x

    @same.vjp
    def backward(primal: Any, cotangent: Any, output: Any) -> mx.array:
        marks.append(cotangent)
        return cast(mx.array, cotangent)

    marks.append(x)
    return cast(mx.array, same(x))


def compute(pieces: list[Any]) -> None:
    """In another thread, each piece in turn; emptied, for the graph refers to it by `mark`."""
    pieces.reverse()
    while pieces:
        mx.eval(pieces.pop())


@cache
def lanes() -> tuple[list[mx.Stream], ThreadPoolExecutor]:
    """The streams, and the threads that compute what is on them."""
    streams = [mx.new_thread_unsafe_stream(mx.cpu) for _ in range(LANES)]
    return streams, ThreadPoolExecutor(LANES, thread_name_prefix="lane")


def checkpoint(theirs: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """mx.checkpoint; what it computes again is not marked, for its marks would keep it."""

    def without_marks(*given: Any) -> Any:
        with marking(None):
            return function(*given)

    return cast(Callable[..., Any], theirs(without_marks))


def marked_chunks(
    network: Network, score: Logps, hidden: mx.array, targets: mx.array
) -> Iterator[mx.array]:
    """Network.chunks, each a place at which the computation may pause."""
    return plain_chunks(network, lambda *given: mark(score(*given)), hidden, targets)


# ---- products with quantised weights -------------------------------------------------------------


def quantized_matmul(
    x: mx.array, w: mx.array, /, scales: mx.array, biases: mx.array | None = None, **how: Any
) -> mx.array:
    """mx.quantized_matmul; of many rows, by weights made float32 for the moment of the product.

    A block of outputs at a time, and again for the backward pass: float32 weights of a whole head
    may be larger than the packed model.
    """
    if w.ndim > 2 or not how.get("transpose", True) or x.size < LEAST_ROWS * x.shape[-1]:
        return their_product(x, w, scales, biases, **how)
    kind = {key: value for key, value in how.items() if key != "transpose"}
    rows = max(1, BLOCK // x.shape[-1])
    blocks = [slice(start, start + rows) for start in range(0, w.shape[0], rows)]

    def weights(block: slice, needed: mx.array) -> mx.array:
        # Not before they are needed: MLX would begin with those of all blocks and layers.
        packed = mx.depends(w[block], needed)
        offsets = None if biases is None else biases[block].astype(mx.float32)
        return mx.dequantize(packed, scales[block].astype(mx.float32), offsets, **kind)

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        needed, wide = x, x.astype(mx.float32)
        found = []
        for block in blocks:
            needed = wide @ weights(block, needed).T
            found.append(needed.astype(x.dtype))
        return mx.concatenate(found, axis=-1) if len(found) > 1 else found[0]

    @product.vjp
    def backward(primal: Any, cotangent: Any, output: Any) -> mx.array:
        wide = cotangent.astype(mx.float32)
        found = wide[..., blocks[0]] @ weights(blocks[0], cotangent)
        for block in blocks[1:]:
            found = found + wide[..., block] @ weights(block, found)
        return cast(mx.array, found.astype(primal.dtype))

    return cast(mx.array, product(x))


# ---- exponentials --------------------------------------------------------------------------------


def exp(x: mx.array) -> mx.array:
    """e to the x; float32 keeps its accuracy where |x| is below 100."""
    return mx.power(2.0, LOG2E * x)


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    **more: Any,
) -> mx.array:
    """mx.fast.scaled_dot_product_attention, in float32; with sinks, itself.

    queries: [B, heads, L, D]; keys, values: [B, groups of heads, S, D]; mask: broadcast to
    [B, heads, L, S], boolean, added, or "causal".
    """
    kind = queries.dtype
    if any(value is not None for value in more.values()):
        return theirs(queries, keys, values, scale=scale, mask=mask, **more)
    queries, keys, values = (a.astype(mx.float32) for a in (queries, keys, values))
    batch, heads, length, width = queries.shape
    groups = keys.shape[1]
    grouped = (batch, groups, heads // groups, length)
    scores = (queries * (scale * LOG2E)).reshape(*grouped, width) @ mx.expand_dims(
        keys.swapaxes(-1, -2), 2
    )
    if mask is not None:
        scores = scores + added(mask, groups, length, keys.shape[2])
    weighted = cast(mx.array, softmax_of_powers(scores)) @ mx.expand_dims(values, 2)
    return mark(weighted.reshape(batch, heads, length, values.shape[-1]).astype(kind))


def added(mask: mx.array | str, groups: int, length: int, keys: int) -> mx.array:
    """A mask as what is added to scores [B, groups, heads a group, L, S], powers of two."""
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
    found = math.log(2) * (slope - output * slope.sum(axis=-1, keepdims=True))
    return cast(mx.array, found)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) · x, as mlx-lm's models have it."""
    if gate.dtype != mx.float32:
        return cast(mx.array, activations.swiglu(gate, x))
    return mark(cast(list[mx.array], gated_unit(gate, x))[0])


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
