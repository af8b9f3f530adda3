"""Where a response says what its answer is: blocks, boxes and phrases, searched from the end."""

import re
from dataclasses import dataclass

from mlxreflect.prompts import ANSWER

MAX_BOX = 1000  # characters in which a box must be closed
MAX_TRIES = 16  # candidates looked at for each kind of marker, from the end
AFTER_PHRASE = 200  # characters after "answer is" in which the answer must begin
BRACE = re.compile(r"[{}]")


@dataclass(frozen=True)
class Marked:
    """The text that a marker points at.

    position: of two markers the later one counts; a block's position is its end, so that it rules
    over markers inside it.
    """

    position: int
    text: str


def answer_block(text: str) -> Marked | None:
    """The last closed <answer> block that is not empty."""
    close = len(text)
    for _ in range(MAX_TRIES):
        close = text.rfind(ANSWER[1], 0, close)
        start = text.rfind(ANSWER[0], 0, close) if close >= 0 else -1
        if start < 0:
            return None
        end = text.find(ANSWER[1], start)
        if content := text[start + len(ANSWER[0]) : end].strip():
            return Marked(end, content)
        close = start
    return None


def box(text: str) -> Marked | None:
    r"""The last closed `\boxed{}`."""
    start = len(text)
    for _ in range(MAX_TRIES):
        start = text.rfind("\\boxed{", 0, start)
        if start < 0:
            return None
        window = text[start + 7 : start + 7 + MAX_BOX]
        depth = 1
        for brace in BRACE.finditer(window):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                return Marked(start, window[: brace.start()])
    return None


def phrases(text: str, phrase: str = "answer is") -> list[Marked]:
    """What follows the phrase, in any case: its last occurrences, the last one first."""
    # İ is the one character whose lower case is longer; positions must stay.
    lower = text.replace("\u0130", "i").lower()
    found, at = [], len(text)
    for _ in range(MAX_TRIES):
        at = lower.rfind(phrase, 0, at)
        if at < 0:
            break
        after = at + len(phrase)
        found.append(Marked(at, text[after : after + 2 * AFTER_PHRASE]))
    return found
