"""Critique and rewrite of each wrong attempt by itself, in threads, while others wait.

A critic that is waited for answers many calls side by side. In lock-step the slowest reply of a
round would hold up all the others, and the policy would stand still meanwhile. So each trajectory
goes its own way, call by call, and the main thread goes on generating. Threads only wait, grade and
write to their own trajectory: MLX stays on the main thread, and what a trajectory becomes does not
depend on the others, so no byte depends on which reply came first.
"""

from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from queue import SimpleQueue
from threading import Event
from types import TracebackType
from typing import Any


class Workers:
    """Threads for the length of a wave, each of which makes one call at a time.

    A job is an iterator that makes a call at each step. After it the job queues again, behind the
    others: so what is left at a wave's end are single calls and no whole jobs, and all threads stay
    busy almost to the last. The first exception of a job is raised in the main thread, by the next
    `start` or `wait`; from then on, and when the wave is left early, no job takes another step.
    """

    def __init__(self, threads: int) -> None:
        self.stopped = Event()
        self.out = 0  # jobs that have not ended
        self.ended: SimpleQueue[BaseException | None] = SimpleQueue()
        # Daemons, unlike those of concurrent.futures: Ctrl-C waits for no reply.
        self.pool = ThreadPool(threads)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopped.set()
        self.pool.terminate()

    def start(self, job: Iterator[Any]) -> None:
        """Queues a job. Raises what an earlier one raised."""
        while not self.ended.empty():
            self.collect()
        self.out += 1
        self.queue(job)

    def wait(self, tell: Callable[[str], Any]) -> None:
        """Returns when every job has ended. Raises what one raised as soon as it did."""
        while self.out:
            tell(f"critique and rewrite: {self.out} to go")
            self.collect()

    def collect(self) -> None:
        error = self.ended.get()
        if error is not None:
            raise error
        self.out -= 1

    # ---- in any thread --------------------------------------------------------------------------

    def queue(self, job: Iterator[Any]) -> None:
        self.pool.apply_async(self.step, (job,), error_callback=self.ended.put)

    def step(self, job: Iterator[Any]) -> None:
        if self.stopped.is_set():
            return
        fine = False
        try:
            more = next(job, self) is not self
            fine = True
        finally:
            if not fine:  # here, before this thread takes another job
                self.stopped.set()
        if more:
            self.queue(job)
        else:
            self.ended.put(None)
