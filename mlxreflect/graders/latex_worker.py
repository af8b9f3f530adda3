"""Math-Verify in a process of its own, which can be killed: it works on sympy, which can hang.

The worker is `python -m mlxreflect.graders.latex_worker`: one JSON object a line in and out. It
limits its own processor time a question, so that a verdict does not depend on what else the
machine does; whoever asks waits a bounded time and kills it. After that the next question starts
another one.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

CPU_S = 4.0  # processor time of one question, in the worker
WALL_S = 30.0  # until the worker is killed, whatever it does
START_S = 120.0  # to import sympy, on a machine with much to do
MEMORY = 4 << 30  # bytes of address space
ROUNDING = 12  # decimal places that must agree; Math-Verify's own 6 pass 0.333333 for 1/3


class Worker:
    """The process and the lock that hands it to one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """The worker's reply; None where it died or had to be killed. Callable from any thread."""
        with self.lock:
            if (
                self.process is None
                and self.exchange({"gold": "1", "answer": "1"}, START_S) is None
            ):
                return None
            return self.exchange(question, WALL_S)

    def exchange(self, question: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        process = self.process = self.process or start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = read_line(process.stdout.fileno(), seconds)
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            self.kill()
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self.process = None


def start() -> subprocess.Popen[bytes]:
    """This interpreter, with this package, whatever the working folder is."""
    paths = [str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "mlxreflect.graders.latex_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def read_line(descriptor: int, seconds: float) -> bytes:
    """One line; what came of it when the time is over or the other side is gone."""
    line, end = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            break
        piece = os.read(descriptor, 4096)
        if not piece:
            break
        line += piece
    return line


WORKER = Worker()


@lru_cache(maxsize=4096)
def equal(gold: str, answer: str) -> tuple[bool, str]:
    """(whether two LaTeX expressions are equal, why that could not be decided or "").

    Never raises; takes CPU_S at most where the machine is free, and WALL_S where it is not.
    """
    reply = WORKER.ask({"gold": gold, "answer": answer})
    if reply is None:
        return False, f"the comparison took more than {CPU_S:g} s or more memory than allowed"
    return bool(reply["equal"]), ""


def main() -> None:
    """The worker's side: until its standard input ends."""
    from math_verify import parse, verify

    limit_memory()
    for line in sys.stdin:
        # Virtual time is the processor's; its signal ends the process.
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
        asked = json.loads(line)
        gold, answer = (
            parse(f"${asked[key]}$", parsing_timeout=None) for key in ("gold", "answer")
        )
        same = verify(gold, answer, float_rounding=ROUNDING, timeout_seconds=None)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps({"equal": bool(same)}), flush=True)


def limit_memory() -> None:
    """No more than MEMORY, where the system keeps to it (Linux does, macOS does not)."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    main()
