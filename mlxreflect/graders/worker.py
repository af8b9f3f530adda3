"""A module of the package as a process of its own, which can be killed: a line of JSON in, one out.

For what may hang, take all memory or end its process: sympy, and code of a person's own. The
module reads a line, computes, writes a line, and ends when its standard input ends.
"""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

from mlxreflect.core.errors import UserError


class Worker:
    """The process of one module; the next question starts another one where it was killed.

    module: its dotted name; it runs with this interpreter and package, whatever the working folder
    is. quiet: what it writes to stderr is dropped. Whoever exchanges lines holds `lock`.
    """

    def __init__(self, module: str, quiet: bool = False) -> None:
        self.module, self.quiet = module, quiet
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        paths = [str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if self.quiet else None,
            start_new_session=True,  # so that what it starts is killed with it
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def alive(self) -> bool:
        """Tells if there is a process to ask; one that was ended from outside is forgotten."""
        if self.process and self.process.poll() is not None:
            self.kill()
        return self.process is not None

    def ask(self, question: Any, seconds: float, first: Any, start_s: float) -> Any:
        """As `exchange`, for any thread, of a process that has imported what it needs.

        first: a question that it answers before, in `start_s`. Raises UserError where it does not:
        then no answer could be judged.
        """
        with self.lock:
            if not self.alive() and self.exchange(first, start_s) is None:
                raise UserError(
                    f"the process that judges answers does not start in {start_s:g} s",
                    f"see why: {quote(sys.executable)} -m {self.module} < /dev/null",
                )
            return self.exchange(question, seconds)

    def exchange(self, question: Any, seconds: float) -> Any:
        """Sends a line and returns the reply; None where there is none in time.

        The process of a question that ends otherwise, as by Ctrl-C, is killed too: its late reply
        would be taken for that of the next one.
        """
        process = self.process = self.process or self.start()
        assert process.stdin and process.stdout
        line = b""
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                # A reply is shorter than what a pipe passes on at once: it is there whole or not.
                if select.select([process.stdout], [], [], seconds)[0]:
                    line = process.stdout.readline()
        finally:
            if not line:
                self.kill()
        return json.loads(line) if line else None

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self.process.kill()
            self.process.communicate()
            self.process = None


def serve(answer: Callable[[Any], Any], cpu_s: float, memory: int) -> None:
    """Answers questions, in the process, until its standard input ends.

    cpu_s: processor time of one question, after which the process ends. memory: bytes of address
    space. What the answering prints is dropped.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS does not keep to it
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)  # its signal ends the process
        with contextlib.redirect_stdout(io.StringIO()):
            reply = answer(json.loads(line))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(reply), flush=True)
