"""Models while gradients are taken: in training mode, by formulas that have a gradient.

mlx-lm runs the states of some models by Metal kernels without a gradient, most of them only outside
of training mode. Its plain formulas keep the state of every token for the backward pass; here one
in CHUNK is kept, and those between are computed again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn

CHUNK = 64
DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
State = mx.array | None
Run = Callable[[list[mx.array], State], tuple[mx.array, mx.array]]


@contextmanager
def differentiable(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Prepares a model for gradients, and puts it back in eval mode. dropout: tells if it is on."""
    model.train()
    if not dropout:  # it would make policy and reference differ from themselves
        for module in model.modules():
            if isinstance(module, DROPOUTS):
                module.eval()
    with ExitStack() as stack:
        for place, name, function in replacements():
            stack.enter_context(mock.patch.object(place, name, function))
        try:
            yield
        finally:
            model.eval()


def replacements() -> Iterator[tuple[Any, str, Any]]:
    """Yields place, name and what replaces it there, for those files of mlx-lm that are loaded."""
    if file := loaded("gated_delta"):
        yield file, "gated_delta_ops", gated_delta(file.gated_delta_ops)
    if file := loaded("rwkv7"):
        yield file.Rwkv7TimeMixing, "_wkv7", wkv7(file._wkv7_step_ops)
    if file := loaded("deepseek_v41"):
        yield file, "_sinkhorn_kernel", None  # without it, it takes its plain formula


def loaded(name: str) -> ModuleType | None:
    return sys.modules.get(f"mlx_lm.models.{name}")


def in_chunks(run: Run, sequences: list[mx.array], state: State) -> tuple[mx.array, mx.array]:
    """Applies `run` to CHUNK tokens at a time; the backward pass computes its inside again.

    sequences: [B, T, …]. run: returns outputs [B, T, …] and the state after them.
    """
    outputs, run = [], recomputed(run)
    for start in range(0, sequences[0].shape[1], CHUNK):
        part = [array[:, start : start + CHUNK] for array in sequences]
        output, state = run(part, state)
        outputs.append(output)
    assert state is not None  # a sequence has tokens
    return mx.concatenate(outputs, axis=1), state


def recomputed(run: Run) -> Run:
    """Returns `run` so that only its inputs are kept for the backward pass.

    As mx.checkpoint does it, but all gradients of a chunk are there before that of its first state
    is handed on. MLX computes one gradient after another through all chunks, and would keep what
    is inside every one of them until the last gradient is done.
    """

    def call(part: list[mx.array], state: State) -> tuple[mx.array, mx.array]:
        floats = [mx.issubdtype(array.dtype, mx.floating) for array in part]

        def whole(*given: mx.array) -> list[mx.array]:
            *moving, state = given
            found = iter(moving)
            arrays = [next(found) if f else a for f, a in zip(floats, part, strict=True)]
            return list(run(arrays, state))

        @mx.custom_function
        def forward(*given: mx.array) -> list[mx.array]:
            return whole(*given)

        @forward.vjp
        def backward(primals: Any, cotangents: Any, _: Any) -> Any:
            cotangents = list(cotangents)
            _, gradients = mx.vjp(whole, mx.depends(list(primals), cotangents), cotangents)
            return tuple(mx.depends(gradients, gradients))

        moving = [array for f, array in zip(floats, part, strict=True) if f]
        made: Any = forward(*moving, state)
        return made[0], made[1]

    return call


def gated_delta(plain: Callable[..., tuple[mx.array, mx.array]]) -> Callable[..., Any]:
    """Returns mlx-lm's `gated_delta_ops` in chunks."""

    def ops(
        q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array,
        state: State = None, mask: State = None,
    ) -> tuple[mx.array, mx.array]:  # fmt: skip
        if state is None:
            shape = (*v.shape[:1], *v.shape[2:], k.shape[-1])
            state = mx.zeros(shape, dtype=mx.float32)
        sequences = [q, k, v, g, beta] + ([] if mask is None else [mask])

        def run(part: list[mx.array], state: State) -> tuple[mx.array, mx.array]:
            return plain(*part[:5], state, *part[5:])

        return in_chunks(run, sequences, state)

    return ops


def wkv7(step: Callable[..., tuple[mx.array, mx.array]]) -> Callable[..., Any]:
    """Returns RWKV-7's `_wkv7` without its kernel, in chunks."""

    def plain(part: list[mx.array], state: State) -> tuple[mx.array, mx.array]:
        outputs = []
        for t in range(part[0].shape[1]):
            output, state = step(*[array[:, t] for array in part], state)
            outputs.append(output)
        assert state is not None
        return mx.stack(outputs, axis=1).astype(part[0].dtype), state

    def run(
        layer: Any, r: mx.array, w: mx.array, k: mx.array, v: mx.array, a: mx.array, b: mx.array,
        state: State,
    ) -> tuple[mx.array, mx.array]:  # fmt: skip
        if state is None:
            shape = (r.shape[0], layer.num_heads, layer.head_dim, layer.head_dim)
            state = mx.zeros(shape, dtype=r.dtype)
        return in_chunks(plain, [r, w, k, v, a, b], state)

    return run
