"""Models while gradients are taken: in training mode, by formulas that have a gradient.

mlx-lm runs the states of some models by Metal kernels without a gradient: most of them only outside
of training mode, some always. And its plain formulas keep each token's state for the backward pass,
and more; here one state in CHUNK tokens is kept, and those between are computed again.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, cast
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.jamba import JambaMambaMixer

from mlxreflect.core.errors import UserError

CHUNK = 64
# Files of mlx-lm whose models are refused, and why.
UNTRAINABLE = {
    "bitlinear_layers": "layers run by a kernel without a gradient",
    "muse_spark": "layers run by kernels without a gradient",
    "deepseek_v41": "router lets no gradient pass",
    "prism_hadamard_qwen35": "packed layers take no LoRA",
    "recurrent_gemma": "weights cannot be frozen",
}
# What Kimi K3's layers keep of their weights: products of two, and a compiled step.
KEPT = ("_attn_res_w_eff", "_mlp_res_w_eff", "_output_res_w_eff", "_step")
Two = tuple[mx.array, mx.array]
# One token: its arrays [B, …], in order, what all tokens share, and the state before; returns the
# output and the state after.
Step = Callable[..., Two]


@contextmanager
def differentiable(model: nn.Module, dropout: bool) -> Iterator[None]:
    """Prepares a model for gradients, and puts it back in eval mode. dropout: tells if it is on."""
    model.train()
    if not dropout:  # it would make policy and reference differ from themselves
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    with ExitStack() as stack:
        for place, name, function in replacements():
            stack.enter_context(mock.patch.object(place, name, function))
        try:
            yield
        finally:
            model.eval()
            forget(model)


def forget(model: nn.Module) -> None:
    """Drops what layers have computed from weights that are about to change."""
    for module in model.modules():
        for name in KEPT if type(module).__module__.endswith(".kimi_k3") else ():
            if hasattr(module, name):
                setattr(module, name, None)


def replacements() -> Iterator[tuple[Any, str, Any]]:
    """Yields place, name and what replaces it there, for those files of mlx-lm that are loaded."""
    if file := loaded("gated_delta"):
        yield file, "gated_delta_ops", gated_delta(file._gated_delta_step_ops)
    if file := loaded("rwkv7"):
        yield file.Rwkv7TimeMixing, "_wkv7", wkv7(file._wkv7_step_ops)
    if file := loaded("mamba"):  # Jamba's layer asks for all tokens at once, Mamba's for each
        yield file.MambaBlock, "_process_sequence", JambaMambaMixer._process_sequence
        yield file.MambaBlock, "ssm_step", ssm_step
    yield JambaMambaMixer, "ssm_step", ssm_step
    if file := loaded("bailing_moe_linear"):
        yield file, "recurrent_gla", linear_attention


def loaded(name: str) -> ModuleType | None:
    return sys.modules.get(f"mlx_lm.models.{name}")


def refuse_untrainable(model: nn.Module) -> None:
    """Raises UserError for a model of mlx-lm through which no gradient can be taken."""
    files = {type(module).__module__.rpartition(".")[2] for module in model.modules()}
    for file in sorted(files & UNTRAINABLE.keys()):
        raise UserError(
            f"the model cannot be trained: its {UNTRAINABLE[file]} (mlx-lm's {file}.py)",
            "choose another policy.model; this one can only answer",
        )


# ---- one token after the other -------------------------------------------------------------------


def scan(
    step: Step, sequences: Sequence[mx.array], state: mx.array, shared: Sequence[mx.array] = ()
) -> Two:
    """Returns the outputs [B, T, …] of all tokens, and the last state. sequences: [B, T, …]."""
    cuts = list(range(CHUNK, sequences[0].shape[1], CHUNK))
    run, outputs = chunk_of(step, len(sequences)), []
    # Split, not sliced: the gradient of a slice is as long as the whole.
    for part in zip(*[mx.split(array, cuts, axis=1) for array in sequences], strict=True):
        output, state = run(state, *part, *shared)
        outputs.append(output)
    return mx.concatenate(outputs, axis=1), state


def chunk_of(step: Step, count: int) -> Callable[..., Two]:
    """Returns `step` on the tokens of a chunk, whose states the backward pass computes again.

    It takes the first state, `count` sequences [B, T, …], and what all tokens share.
    """

    def states_and_outputs(first: mx.array, *given: mx.array) -> tuple[list[mx.array], ...]:
        outputs, states = [], [first]
        for token in tokens(given[:count]):
            output, state = step(*token, *given[count:], states[-1])
            outputs.append(output)
            states.append(state)
        return states, outputs

    @mx.custom_function
    def run(first: mx.array, *given: mx.array) -> Two:
        states, outputs = states_and_outputs(first, *given)
        return mx.stack(outputs, axis=1), states[-1]

    @run.vjp
    def backward(primals: Any, cotangents: Any, _: Any) -> Any:
        of_outputs, of_state = cotangents
        # Not before the chunk after it is done: MLX would begin with all of them at once.
        first, *given = mx.depends(list(primals), [of_outputs, of_state])
        states, _ = states_and_outputs(first, *given)
        shared, found = given[count:], []
        of_shared = [mx.zeros_like(array) for array in shared]
        backwards = zip(tokens([*given[:count], of_outputs]), states[:-1], strict=True)
        for (*token, of_output), before in reversed(list(backwards)):
            _, slopes = mx.vjp(step, [*token, *shared, before], [of_output, of_state])
            of_shared = [a + b for a, b in zip(of_shared, slopes[count:-1], strict=True)]
            # Nor two tokens at once, or the gradients of all their states would be kept.
            (of_state,) = mx.depends([slopes[-1]], [*slopes[:count], *of_shared])
            found.append(slopes[:count])
        of_given = [mx.stack(list(one)[::-1], axis=1) for one in zip(*found, strict=True)]
        return (of_state, *of_given, *of_shared)

    return cast(Callable[..., Two], run)


def tokens(sequences: Sequence[mx.array]) -> list[tuple[mx.array, ...]]:
    """[B, T, …] of each → T times [B, …] of each."""
    length = sequences[0].shape[1]
    parts = [[one.squeeze(1) for one in mx.split(array, length, axis=1)] for array in sequences]
    return list(zip(*parts, strict=True))


# ---- in place of mlx-lm's own --------------------------------------------------------------------


def gated_delta(step: Step) -> Callable[..., Two]:
    """Returns `gated_delta_ops`: queries and keys [B, T, Hk, Dk], values [B, T, Hv, Dv]."""

    def ops(
        q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array,
        state: mx.array, mask: mx.array | None = None,
    ) -> Two:  # fmt: skip
        assert mask is None  # it belongs to a cache, and none is there
        q, k = (mx.repeat(array, v.shape[-2] // k.shape[-2], axis=-2) for array in (q, k))
        return scan(step, [q, k, v, g, beta], state)

    return ops


def wkv7(step: Step) -> Callable[..., Two]:
    """Returns RWKV-7's `_wkv7`, without its kernel."""

    def run(
        layer: Any, r: mx.array, w: mx.array, k: mx.array, v: mx.array, a: mx.array, b: mx.array,
        state: mx.array | None,
    ) -> Two:  # fmt: skip
        if state is None:
            shape = (r.shape[0], layer.num_heads, layer.head_dim, layer.head_dim)
            state = mx.zeros(shape, dtype=r.dtype)
        outputs, state = scan(step, [r, w, k, v, a, b], state)
        return outputs.astype(r.dtype), state

    return run


def ssm_step(layer: Any, x: mx.array, a: mx.array, state: mx.array | None = None) -> Two:
    """Replaces `ssm_step` of Mamba's and Jamba's layers: x [B, T, D], a [D, N]."""
    rank, size = layer.time_step_rank, layer.ssm_state_size
    delta, b, c = mx.split(layer.x_proj(x), [rank, rank + size], axis=-1)
    if "dt_layernorm" in layer:  # Jamba
        delta, b, c = layer.dt_layernorm(delta), layer.b_layernorm(b), layer.c_layernorm(c)
    elif layer.use_bcdt_rms:
        eps = layer.args.mixer_rms_eps
        delta, b, c = (mx.fast.rms_norm(one, None, eps) for one in (delta, b, c))
    if state is None:
        state = mx.zeros((x.shape[0], *a.shape), dtype=a.dtype)
    delta = nn.softplus(layer.dt_proj(delta))
    outputs, state = scan(selective, [delta, x, b, c], state, [a])
    return outputs.astype(x.dtype) + layer.D * x, state


def selective(
    delta: mx.array, x: mx.array, b: mx.array, c: mx.array, a: mx.array, state: mx.array
) -> Two:
    """One token of Mamba's selective state [B, D, N]: delta, x [B, D]; b, c [B, N]; a [D, N]."""
    state = state * mx.exp(delta[..., None] * a) + (delta * x)[..., None] * b[:, None]
    return (state @ c[..., None]).squeeze(-1), state


def linear_attention(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, scale: float, h: mx.array | None = None
) -> Two:
    """Replaces Ling-linear's `recurrent_gla`: queries, keys and values [B, H, T, D], decays [H]."""
    decay = mx.exp(g)[:, None, None].astype(q.dtype)

    def step(q: mx.array, k: mx.array, v: mx.array, state: mx.array) -> Two:
        state = state * decay + k[..., None] * v[..., None, :]
        return (q[..., None, :] @ state).squeeze(-2), state

    if h is None:
        h = mx.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), dtype=q.dtype)
    sequences = [array.swapaxes(1, 2) for array in (q * scale, k, v)]
    outputs, h = scan(step, sequences, h)
    return outputs.swapaxes(1, 2), h
