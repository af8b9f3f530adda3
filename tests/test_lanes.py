"""Work side by side: order, values, errors, and a process that ends as it should."""

import subprocess
import sys
import threading

import mlx.core as mx
import pytest

from mlxreflect.train import cpu as lanes
from mlxreflect.train.cpu import LANES, side_by_side


def work(seed: int) -> mx.array:
    x = mx.random.normal((60, 60), key=mx.random.key(seed))
    for _ in range(20):
        x = mx.softmax(x @ x, axis=-1) * 3
    return x


def test_results_come_in_order_and_are_those_of_one_thread() -> None:
    pieces = list(range(7))
    expected = [work(piece) for piece in pieces]
    mx.eval(expected)
    found = list(side_by_side(work, pieces))
    assert [piece for piece, _ in found] == pieces
    assert all(mx.array_equal(a, b) for (_, a), b in zip(found, expected, strict=True))


def test_only_so_many_are_under_way() -> None:
    """Memory is planned for that."""
    begun = []

    def trace(piece: int) -> mx.array:
        begun.append(piece)
        return work(piece)

    for done, _ in enumerate(side_by_side(trace, range(8))):
        assert len(begun) <= done + LANES


def test_nothing_is_drawn_but_what_the_trace_seeds() -> None:
    def trace(piece: int) -> mx.array:
        mx.random.seed(piece)
        return mx.random.uniform(shape=(50,)) + mx.random.normal((50,))

    one = [result.tolist() for _, result in side_by_side(trace, range(6))]
    other = [result.tolist() for _, result in side_by_side(trace, [5, 4, 3, 2, 1, 0])]
    assert one == other[::-1]


def test_an_error_while_tracing_is_the_callers() -> None:
    def trace(piece: int) -> mx.array:
        if piece == 3:
            raise ZeroDivisionError
        return work(piece)

    done = []
    with pytest.raises(ZeroDivisionError):
        for piece, _ in side_by_side(trace, range(8)):
            done.append(piece)
    assert done == sorted(done)
    assert 3 not in done
    assert len(list(side_by_side(work, range(4)))) == 4  # and it works again


def test_stopping_early_leaves_nothing_under_way() -> None:
    results = side_by_side(work, range(8))
    next(results)
    results.close()
    assert all("lane" in t.name or t is threading.main_thread() or t.daemon
               for t in threading.enumerate())  # fmt: skip
    assert mx.array_equal(work(1), work(1))


def test_a_process_that_used_lanes_exits_cleanly() -> None:
    code = (
        "import mlx.core as mx; from mlxreflect.train.cpu import side_by_side\n"
        "mx.set_default_device(mx.cpu)\n"
        "for _, x in side_by_side(lambda i: mx.exp(mx.ones((200, 200)) * i), range(6)): pass\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_marks_change_nothing_and_are_forgotten() -> None:
    """Values and gradients are those without marks; the graph's arrays are not kept."""

    def loss(marked: bool, x: mx.array) -> mx.array:
        for _ in range(4):
            x = mx.tanh(x @ x)
            x = lanes.mark(x) if marked else x
        return x.sum()

    x = mx.random.normal((20, 20), key=mx.random.key(0))
    mx.eval(x)
    expected = mx.value_and_grad(lambda x: loss(False, x))(x)
    traced = side_by_side(lambda _: mx.value_and_grad(lambda x: loss(True, x))(x), range(3))
    for _, found in traced:
        assert all(mx.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert lanes.marked == []


def test_pieces_are_computed_in_turn_and_let_go() -> None:
    pieces = [mx.ones((10,)) * i for i in range(4)]
    last = pieces[-1]
    lanes.compute(pieces)
    assert pieces == []
    assert last.tolist() == [3.0] * 10


def test_what_was_marked_is_not_kept_until_the_end() -> None:
    """The graph's marks refer to each other; a forward pass still holds a few arrays at a time."""
    size, steps = 1 << 18, 40

    def trace(piece: int) -> mx.array:
        x = mx.full((size,), float(piece))
        for _ in range(steps):
            x = lanes.mark(mx.sin(x) + 1)
        return x.sum()

    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert len(list(side_by_side(trace, range(4)))) == 4
    assert mx.get_peak_memory() - before < LANES * 6 * 4 * size
