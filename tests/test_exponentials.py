"""Attention and gates by powers of two, against MLX's own: values and gradients."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import activations, qwen2
from test_architectures import SHARING, build, furthest, plainly, with_lora

from mlxreflect.train import exponentials
from mlxreflect.train.exponentials import attention, exp, faster_exponentials, swiglu

pytestmark = pytest.mark.skipif(
    not exponentials.slow_exponentials(), reason="MLX's own exponentials are fast here"
)
original = mx.fast.scaled_dot_product_attention


def arrays(heads: int, groups: int, rows: int, columns: int) -> list[mx.array]:
    rng = np.random.default_rng(0)
    shapes = [(2, heads, rows, 8), (2, groups, columns, 8), (2, groups, columns, 8)]
    return [mx.array(3 * rng.normal(size=shape).astype(np.float32)) for shape in shapes]


ROWS, COLUMNS = 5, 9
some = mx.array(np.random.default_rng(1).random((2, 1, ROWS, COLUMNS)) < 0.6)
MASKS: dict[str, mx.array | str | None] = {
    "none": None,
    "causal": "causal",
    "two axes": some[0, 0],
    "three axes": some[0],
    "a row of the batch each": some,
    "a head each": mx.broadcast_to(some, (2, 4, ROWS, COLUMNS)),
    "added": mx.where(some, 0.5, -7.0),
    "almost nothing allowed": mx.arange(COLUMNS)[None] == mx.arange(ROWS)[:, None],
}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", MASKS)
def test_attention_is_that_of_mlx(name: str, groups: int) -> None:
    inputs, mask = arrays(4, groups, ROWS, COLUMNS), MASKS[name]

    def loss(function: Any, *given: mx.array) -> mx.array:
        out = function(*given, scale=0.3, mask=mask)
        return (out * mx.arange(out.size).reshape(out.shape) * 0.01).sum()

    for argument in range(3):
        gradient = mx.value_and_grad(loss, argnums=argument + 1)
        (found, mine), (expected, theirs) = (gradient(f, *inputs) for f in (attention, original))
        assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-3)
        assert mx.allclose(mine, theirs, rtol=1e-4, atol=1e-5 * mx.abs(theirs).max().item())


def test_a_row_that_sees_nothing_is_no_nan() -> None:
    """Padding, whose output nobody reads."""
    queries, keys, values = arrays(4, 2, ROWS, COLUMNS)
    mask = mx.zeros((ROWS, COLUMNS)) > 0
    out = attention(queries, keys, values, scale=1.0, mask=mask)
    assert mx.isfinite(out).all()


def test_other_types_and_sinks_are_left_to_mlx() -> None:
    inputs = [a.astype(mx.bfloat16) for a in arrays(4, 2, ROWS, COLUMNS)]
    half = attention(*inputs, scale=1.0)
    assert half.dtype == mx.bfloat16
    assert mx.array_equal(half, original(*inputs, scale=1.0))
    sinks = mx.array([1.0, 2.0, 3.0, 4.0])
    inputs = arrays(4, 2, ROWS, COLUMNS)
    found = attention(*inputs, scale=1.0, sinks=sinks)
    assert mx.array_equal(found, original(*inputs, scale=1.0, sinks=sinks))


@pytest.mark.parametrize("steep", [1.0, 30.0, 1000.0])
def test_gates_are_those_of_mlx(steep: float) -> None:
    rng = np.random.default_rng(0)
    gate, x = (mx.array(rng.normal(size=(3, 50)).astype(np.float32)) for _ in range(2))
    gate = steep * gate

    def loss(function: Any, gate: mx.array, x: mx.array) -> mx.array:
        return (function(gate, x) * mx.arange(50)).sum()

    for argument in (1, 2):
        gradient = mx.grad(loss, argnums=argument)
        mine, theirs = (gradient(f, gate, x) for f in (swiglu, activations.swiglu))
        assert mx.allclose(mine, theirs, rtol=1e-5, atol=1e-5 * mx.abs(theirs).max().item())
    assert mx.allclose(swiglu(gate, x), activations.swiglu(gate, x), rtol=1e-5, atol=1e-6)


def test_exponentials() -> None:
    x = np.linspace(-80, 80, 999, dtype=np.float32)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(np.array(exp(mx.array(x))) / expected - 1).max() < 2e-5
    assert exp(mx.array([-mx.inf, 0.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["qwen2", "llama", "mixtral", "phi3", "gemma3_text"])
def test_a_models_gradients_are_the_same(name: str) -> None:
    model = with_lora(build(*SHARING[name]))
    tokens = mx.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])

    def loss(model: nn.Module) -> mx.array:
        logits = model(tokens[:, :-1])
        return nn.losses.cross_entropy(logits, tokens[:, 1:]).mean()

    value, expected = plainly(model, loss)
    with faster_exponentials(model):
        found, gradients = plainly(model, loss)
    assert found == pytest.approx(value, rel=1e-5)
    assert furthest(gradients, expected) < 1e-4


def test_they_stand_in_for_the_duration_only() -> None:
    model = build("qwen2", {})
    with pytest.raises(ZeroDivisionError), faster_exponentials(model):
        assert mx.fast.scaled_dot_product_attention is attention
        assert qwen2.swiglu is swiglu
        raise ZeroDivisionError
    assert mx.fast.scaled_dot_product_attention is original
    assert qwen2.swiglu is activations.swiglu
