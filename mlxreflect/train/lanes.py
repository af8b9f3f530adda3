"""Parts of a batch side by side on the CPU, where MLX computes a stream on one core."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

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
                with mx.stream(stream):
                    result = trace(piece)
                running.append((piece, result, stream, threads().submit(mx.eval, result)))
            piece, result, stream, computed = running.popleft()
            computed.result()
            free.append(stream)
            yield piece, result
    finally:  # also where the caller stops early: nothing goes on behind its back
        for *_, computed in running:
            computed.exception()


@cache
def streams() -> list[mx.Stream]:
    return [mx.new_thread_unsafe_stream(mx.cpu) for _ in range(LANES)]


@cache
def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LANES, thread_name_prefix="lane")
