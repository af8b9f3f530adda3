"""The one error a person can mend themselves; the CLI prints it in two lines and exits with 2."""


class UserError(Exception):
    """What a person did wrong, and the command or edit that mends it.

    message: one line, naming the file, line, key or value at fault.
    hint: one line, the command or edit that mends it.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
