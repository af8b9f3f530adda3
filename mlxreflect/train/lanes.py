"""Parts of a batch side by side on the CPU, where MLX computes a stream on one core.

MLX lets at most about a hundred operations wait, of all streams together, so a large graph would
keep another stream idle. A graph is therefore computed piece by piece, from mark to mark.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import mlx.core as mx

LANES = 2  # a constant: what a part may take of the memory must not depend on the machine's cores
Work = TypeVar("Work")
Result = TypeVar("Result")


def side_by_side(
    trace: Callable[[Work], Result], work: Sequence[Work]
) -> Iterator[tuple[Work, Result]]:
    """Each piece of work with its result, computed, in the order of the work.

    trace: makes a tree of arrays from what is computed already, and seeds what it draws at random.
    It runs in this thread, the computation in others. On a GPU one piece follows the other.
    """
    if len(work) < 2 or mx.default_device().type != mx.DeviceType.cpu:
        for piece in work:
            result = trace(piece)
            mx.eval(result)
            yield piece, result
        return
    free, running = deque(streams()), deque[tuple[Work, Result, mx.Stream, Future[None]]]()
    waiting = deque(work)
    try:
        while waiting or running:
            while waiting and free:
                piece, stream = waiting.popleft(), free.popleft()
                with mx.stream(stream), marking() as marks:
                    result = trace(piece)
                marks.append(result)
                computed = threads().submit(compute, marks)
                running.append((piece, result, stream, computed))
            piece, result, stream, computed = running.popleft()
            computed.result()
            free.append(stream)
            yield piece, result
    finally:  # also where the caller stops early: nothing goes on behind its back
        for *_, computed in running:
            computed.exception()


marked: list[list[Any]] = []  # of the graph that is being traced, if one is


@contextmanager
def marking() -> Iterator[list[Any]]:
    """The places that are marked inside, in the order of their computation."""
    marked.append([])
    try:
        yield marked[-1]
    finally:
        marked.pop()


@contextmanager
def unmarked() -> Iterator[None]:
    """Nothing inside is marked: what a recomputed layer makes would be kept by its marks."""
    outer, marked[:] = marked[:], []
    try:
        yield
    finally:
        marked[:] = outer


def mark(x: mx.array) -> mx.array:
    """x, as a place at which the computation may pause; its gradient becomes one too."""
    if not marked:
        return x
    marks = marked[-1]

    @mx.custom_function
    def same(x: mx.array) -> mx.array:
        return x

    @same.vjp
    def backward(primal: Any, cotangent: Any, output: Any) -> mx.array:
        marks.append(cotangent)
        slope: mx.array = cotangent
        return slope

    marks.append(x)
    out: Any = same(x)
    passed: mx.array = out
    return passed


def compute(pieces: list[Any]) -> None:
    """In a thread of its own: each piece in turn, and none is kept longer than it is needed.

    The list itself is emptied, for the graph refers to it, by `mark`, until its end.
    """
    pieces.reverse()
    while pieces:
        mx.eval(pieces.pop())


@cache
def streams() -> list[mx.Stream]:
    return [mx.new_thread_unsafe_stream(mx.cpu) for _ in range(LANES)]


@cache
def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LANES, thread_name_prefix="lane")
