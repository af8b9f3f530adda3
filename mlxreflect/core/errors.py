"""The one error a person can mend themselves; the CLI prints it in two lines and exits with 2."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# What MLX says where the GPU stops, of memory and of anything: "Impacting Interactivity", timeouts.
NO_MEMORY = ("kIOGPUCommandBufferCallbackErrorOutOfMemory", "Insufficient Memory",
             "[metal::malloc]", "[malloc] Unable to allocate")  # fmt: skip
STOPPED = "[METAL] Command buffer execution failed"


class UserError(Exception):
    """A person's mistake.

    message: one line, naming the file, line, key or value at fault.
    hint: one line, the command or edit that mends it.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@contextmanager
def reworded(words: Mapping[str, str]) -> Iterator[None]:
    """Replaces words in a UserError: a recipe's keys by those that this person can change."""
    try:
        yield
    except UserError as error:
        message, hint = error.message, error.hint
        for old, new in words.items():
            message, hint = message.replace(old, new), hint.replace(old, new)
        raise UserError(message, hint) from None


def machine_fault(error: Exception) -> UserError | None:
    """Returns what is wrong with the machine where that, and no fault of ours, raised the error.

    A full disk, as the system says it, or MLX where it saves arrays; a GPU without the memory, or
    whose work macOS has stopped. The hint lacks its end: the command
    to give then.
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
