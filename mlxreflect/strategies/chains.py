"""Chains: critique and rewrite of each wrong attempt by itself, in threads, while others wait.

A critic that is waited for answers many calls side by side. In lock-step the slowest reply of a
round would hold up all the others, and the policy would stand still meanwhile. So each story goes
its own way, call by call, and the main thread goes on generating. Threads only wait, grade and
write to their own story: MLX stays on the main thread, and what a story becomes does not depend on
the others, so no byte depends on which reply came first.
"""

import threading
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from queue import SimpleQueue
from types import TracebackType
from typing import Any


class Chains:
    """Worker threads for the length of a wave.

    stopped: set when a chain has failed or the wave is left early; chains must then send nothing.
    The first exception of a chain is raised in the main thread, by the next `start` or `wait`.
    """

    def __init__(self, threads: int, stopped: threading.Event) -> None:
        self.stopped = stopped
        self.out = 0
        self.ended: SimpleQueue[BaseException | None] = SimpleQueue()
        # Daemons, unlike those of concurrent.futures: Ctrl-C waits for no reply.
        self.pool = ThreadPool(threads)

    def __enter__(self) -> "Chains":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.out:
            self.stopped.set()
        self.pool.terminate()

    def start(self, work: Callable[[], None]) -> None:
        """Queue a chain. Raises what an earlier one raised."""
        while not self.ended.empty():
            self.collect()
        self.out += 1
        self.pool.apply_async(work, callback=self.ended.put, error_callback=self.failed)

    def wait(self, tell: Callable[[str], Any]) -> None:
        """Until every chain has ended, or one has failed: then raises what it raised."""
        while self.out:
            tell(f"critique and rewrite: {self.out} to go")
            self.collect()

    def collect(self) -> None:
        error = self.ended.get()
        if error is not None:
            raise error
        self.out -= 1

    def failed(self, error: BaseException) -> None:
        self.stopped.set()
        self.ended.put(error)
