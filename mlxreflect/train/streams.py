"""Independent pieces of work side by side: on the CPU, MLX computes a stream on one core."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import TypeVar

import mlx.core as mx

MOST = 4  # streams: each holds the memory of its piece
Job = TypeVar("Job")
Built = TypeVar("Built")


@cache
def streams() -> list[mx.Stream]:
    """One a core on the CPU, a few at most; a GPU fills itself with one."""
    device = mx.default_device()
    if device.type != mx.DeviceType.cpu:
        return [mx.default_stream(device)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [mx.new_stream(device) for _ in range(min(MOST, cores or 1))]


def side_by_side(build: Callable[[Job], Built], jobs: Sequence[Job]) -> Iterator[Built]:
    """build(job) of each job in order, evaluated a few at a time.

    build: makes a tree of unevaluated arrays. What comes out does not depend on how many streams
    there are: no piece sees another.
    """
    waiting = iter(jobs)
    while some := list(islice(waiting, len(streams()))):
        built = []
        for stream, job in zip(streams(), some, strict=False):
            with mx.stream(stream):
                built.append(build(job))
        mx.eval(built)  # all in one call, or they would be computed one after the other
        yield from built
