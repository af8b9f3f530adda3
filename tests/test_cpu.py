"""What stands in for MLX on the CPU: the same values, side by side, for the duration only."""

import subprocess
import sys
import threading
from collections import deque
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import activations, qwen2
from support.architectures import build
from support.training import most_bytes

from mlxreflect.train import cpu
from mlxreflect.train.cpu import LANES, attention, exp, faster_on_cpu, in_parts, swiglu

NONE = nn.Module()
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


def test_half_the_bits_are_computed_with_all() -> None:
    inputs = [a.astype(mx.bfloat16) for a in arrays(4, 2, ROWS, COLUMNS)]
    half = attention(*inputs, scale=1.0)
    exact = original(*(a.astype(mx.float32) for a in inputs), scale=1.0)
    assert half.dtype == mx.bfloat16
    assert mx.abs(half - exact).max() < 5e-3 * mx.abs(exact).max()


def test_sinks_are_left_to_mlx() -> None:
    sinks, inputs = mx.array([1.0, 2.0, 3.0, 4.0]), arrays(4, 2, ROWS, COLUMNS)
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


def test_they_stand_in_for_the_duration_only() -> None:
    model = build("qwen2", {})
    with pytest.raises(ZeroDivisionError), faster_on_cpu(model):
        assert mx.fast.scaled_dot_product_attention is attention
        assert qwen2.swiglu is swiglu
        raise ZeroDivisionError
    assert mx.fast.scaled_dot_product_attention is original
    assert qwen2.swiglu is activations.swiglu


# ---- products with quantised weights -------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("rows", [64, 10, 1])
def test_products_are_those_of_mlx(
    rows: int, bits: int, kind: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "BLOCK", rows * 128 + 7)
    rng = np.random.default_rng(0)
    x = mx.array(rng.normal(size=(2, 9, 128)).astype(np.float32)).astype(kind)
    layer = nn.QuantizedLinear.from_linear(nn.Linear(128, 64), 32, bits)
    layer.set_dtype(kind)
    model = build("qwen2", {})

    def loss(x: mx.array) -> mx.array:
        return (layer(x).astype(mx.float32) * mx.arange(64)).sum()

    with faster_on_cpu(model):
        found, mine = layer(x), mx.grad(loss)(x)
        few = layer(x[:1, :3])
    # In bfloat16 MLX's own sums lose more than ours.
    exact = nn.QuantizedLinear.from_linear(nn.Linear(128, 64), 32, bits)
    exact.update(layer.parameters())
    exact.set_dtype(mx.float32)
    whole = x.astype(mx.float32)
    near = 1e-5 if kind == mx.float32 else 5e-3
    slope = (mx.ones((2, 9, 64)) * mx.arange(64)) @ mx.dequantize(
        exact.weight, exact.scales, exact.biases, 32, bits
    )
    for one, other in ((found, exact(whole)), (mine, slope)):
        assert one.dtype == kind
        assert mx.abs(one - other).max() <= near * mx.abs(other).max()
    assert mx.array_equal(few, layer(x[:1, :3]))  # few rows: MLX's own


def test_weights_made_float32_are_not_kept() -> None:
    """A chain of layers holds one layer's at a time, forwards and backwards."""
    side = 512
    layers = [nn.QuantizedLinear(side, side, bias=False) for _ in range(12)]
    x = mx.random.normal((16, side), key=mx.random.key(0))
    mx.eval(x, [layer.parameters() for layer in layers])

    def loss(x: mx.array) -> mx.array:
        for layer in layers:
            x = x + layer(x)
        return x.sum()

    with faster_on_cpu(build("qwen2", {})):
        assert most_bytes(lambda: mx.eval(mx.grad(loss)(x))) < 6 * 4 * side * side


def test_a_heads_weights_are_never_float32_as_a_whole() -> None:
    head = nn.QuantizedLinear(512, 1 << 16, bias=False)
    x = mx.random.normal((8, 512), key=mx.random.key(0))
    mx.eval(x, head.parameters())
    with faster_on_cpu(build("qwen2", {})):
        found = most_bytes(lambda: mx.eval(mx.grad(lambda x: head(x).sum())(x)))
    assert found < 0.6 * 4 * 512 * (1 << 16)


def test_stacks_of_weights_are_left_to_mlx() -> None:
    """As the heads of latent attention have them: a matrix a head."""
    packed, scales, biases = mx.quantize(mx.random.normal((3, 64, 128)), 32, 4)
    x = mx.random.normal((2, 3, 8, 128))

    def product() -> mx.array:
        found: mx.array = mx.quantized_matmul(x, packed, scales, biases, group_size=32, bits=4)
        return found

    expected = product()
    with faster_on_cpu(build("qwen2", {})):
        assert mx.array_equal(product(), expected)


# ---- streams side by side ------------------------------------------------------------------------


def work(seed: int) -> mx.array:
    x = mx.random.normal((60, 60), key=mx.random.key(seed))
    for _ in range(20):
        x = mx.softmax(x @ x, axis=-1) * 3
    return x


def test_results_come_in_order_and_are_those_of_one_thread() -> None:
    pieces = list(range(7))
    expected = [work(piece) for piece in pieces]
    mx.eval(expected)
    found = list(in_parts(NONE, work, pieces))
    assert [piece for piece, _ in found] == pieces
    assert all(mx.array_equal(a, b) for (_, a), b in zip(found, expected, strict=True))


def test_only_so_many_are_under_way() -> None:
    """Memory is planned for that."""
    begun = []

    def trace(piece: int) -> mx.array:
        begun.append(piece)
        return work(piece)

    for done, _ in enumerate(in_parts(NONE, trace, range(8))):
        assert len(begun) <= done + LANES


def test_nothing_is_drawn_but_what_the_trace_seeds() -> None:
    def trace(piece: int) -> mx.array:
        mx.random.seed(piece)
        return mx.random.uniform(shape=(50,)) + mx.random.normal((50,))

    one = [result.tolist() for _, result in in_parts(NONE, trace, range(6))]
    other = [result.tolist() for _, result in in_parts(NONE, trace, [5, 4, 3, 2, 1, 0])]
    assert one == other[::-1]


def test_an_error_while_tracing_is_the_callers() -> None:
    def trace(piece: int) -> mx.array:
        if piece == 3:
            raise ZeroDivisionError
        return work(piece)

    done = []
    with pytest.raises(ZeroDivisionError):
        for piece, _ in in_parts(NONE, trace, range(8)):
            done.append(piece)
    assert done == sorted(done)
    assert 3 not in done
    assert len(list(in_parts(NONE, work, range(4)))) == 4  # and it works again


def test_stopping_early_leaves_nothing_under_way() -> None:
    results = in_parts(NONE, work, range(8))
    next(results)
    results.close()
    assert all("lane" in t.name or t is threading.main_thread() or t.daemon
               for t in threading.enumerate())  # fmt: skip
    assert mx.array_equal(work(1), work(1))


@pytest.mark.slow
def test_a_process_that_used_lanes_exits_cleanly() -> None:
    code = (
        "import mlx.core as mx, mlx.nn as nn\nfrom mlxreflect.train.cpu import in_parts\n"
        "mx.set_default_device(mx.cpu)\n"
        "work = lambda i: mx.exp(mx.ones((200, 200)) * i)\n"
        "for _, x in in_parts(nn.Module(), work, range(6)): pass\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_marks_change_nothing_and_are_forgotten() -> None:
    """Values and gradients are those without marks; the graph's arrays are not kept."""

    def loss(marked: bool, x: mx.array) -> mx.array:
        for _ in range(4):
            x = mx.tanh(x @ x)
            x = cpu.mark(x) if marked else x
        return x.sum()

    x = mx.random.normal((20, 20), key=mx.random.key(0))
    mx.eval(x)
    expected = mx.value_and_grad(lambda x: loss(False, x))(x)
    traced = in_parts(NONE, lambda _: mx.value_and_grad(lambda x: loss(True, x))(x), range(3))
    for _, found in traced:
        assert all(mx.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert cpu.marked == [None]


def test_pieces_are_computed_in_turn_and_let_go() -> None:
    pieces = [mx.ones((10,)) * i for i in range(4)]
    last = pieces[-1]
    cpu.compute(pieces)
    assert pieces == []
    assert last.tolist() == [3.0] * 10


def test_what_was_marked_is_not_kept_until_the_end() -> None:
    """The graph's marks refer to each other; a forward pass still holds a few arrays at a time."""
    size, steps = 1 << 18, 40

    def trace(piece: int) -> mx.array:
        x = mx.full((size,), float(piece))
        for _ in range(steps):
            x = cpu.mark(mx.sin(x) + 1)
        return x.sum()

    assert most_bytes(lambda: deque(in_parts(NONE, trace, range(4)))) < LANES * 6 * 4 * size
