"""The one error a person can mend themselves; the CLI prints it in two lines and exits with 2."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


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
