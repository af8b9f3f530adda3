"""The machine: keeps it awake, reads its swap, and explains the errors that are its own."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlxreflect.core.errors import UserError

SYSCTL, MEMINFO = "/usr/sbin/sysctl", Path("/proc/meminfo")  # of macOS, of Linux
# What MLX says where the GPU stops, of memory and of anything: "Impacting Interactivity", timeouts.
NO_MEMORY = ("kIOGPUCommandBufferCallbackErrorOutOfMemory", "Insufficient Memory",
             "[metal::malloc]", "[malloc] Unable to allocate")  # fmt: skip
STOPPED = "[METAL] Command buffer execution failed"


@contextmanager
def awake() -> Iterator[None]:
    """Keeps a Mac from sleeping, to the end of this process at most; its display may."""
    program = shutil.which("caffeinate") if sys.platform == "darwin" else None
    quiet = subprocess.DEVNULL
    call = [program or "", "-i", "-w", str(os.getpid())]
    keeper = subprocess.Popen(call, stdin=quiet, stdout=quiet, stderr=quiet) if program else None
    try:
        yield
    finally:
        if keeper:
            keeper.terminate()
            keeper.wait()


def swap_used() -> float:
    """Returns the gigabytes that the system has moved from memory to the disk; 0: it does not say.

    Those of all programs together; no system says whose they are.
    """
    if sys.platform == "darwin":
        said = subprocess.run([SYSCTL, "-n", "vm.swapusage"], capture_output=True, text=True).stdout
        used = re.search(r"used = ([\d.,]+)M", said)
        return float(used[1].replace(",", ".")) * 2**20 / 1e9 if used else 0.0
    with suppress(OSError):
        sizes = dict(re.findall(r"^(Swap\w+): *(\d+) kB$", MEMINFO.read_text(), re.MULTILINE))
        return (int(sizes.get("SwapTotal", 0)) - int(sizes.get("SwapFree", 0))) * 1024 / 1e9
    return 0.0


def machine_fault(error: Exception) -> UserError | None:
    """Returns what is wrong with the machine where that, and no fault of ours, raised the error.

    A full disk, as the system says it, or MLX where it saves arrays; a GPU without the memory, or
    whose work macOS has stopped. The hint lacks its end: the command to give then.
    """
    said = " ".join(str(error).split())
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "Unable to write" in said:
        place = getattr(error, "filename", None) or "the disk"
        return UserError(f"{place}: no space left", "free some")
    less = "lower train.part_tokens (--set train.part_tokens=1024; of an evaluation: batch)"
    if any(name in said for name in NO_MEMORY):
        return UserError(f"no memory left for the GPU ({said})", f"close other programs, or {less}")
    if STOPPED in said:
        return UserError(f"the GPU's work was stopped ({said})", f"turn the display off, or {less}")
    return None
