"""ReflectEvo's reflections: a pool of 32 instructions, and reflections that were kept in a file.

The pool is composed of parts, as the paper's is (arXiv 2505.16475): how deep to verify (2), which
kind of error to look for (8), and a plan at a high or a low level (2). An id names the three parts.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows

DEPTHS = {
    "skim": "Look through the attempt once and find the place where it goes astray.",
    "trace": (
        "Go through the attempt line by line, work each line out anew, and stop at the first that "
        "does not hold."
    ),
}
ERRORS = {
    "reading": "Ask first whether the question was misread, or a condition of it left out.",
    "facts": "Ask first whether a fact or a rule that it relies on is untrue, or does not apply.",
    "logic": "Ask first whether a conclusion is drawn that its premises do not give.",
    "arithmetic": "Ask first whether a number was worked out or carried over wrongly.",
    "units": "Ask first whether signs, units or the order of operations were mixed up.",
    "missing": "Ask first whether a step or a case was passed over.",
    "goal": "Ask first whether it answers another question than the one that was asked.",
    "form": "Ask first whether the answer was written down otherwise than asked for.",
}
CLOSINGS = {
    "outline": "Close with the general way in which you will go about it next time.",
    "steps": "Close with the single steps that you will take next time, in their order.",
}
# id → instruction
POOL: dict[str, str] = {
    f"{depth}-{error}-{plan}": f"{DEPTHS[depth]} {ERRORS[error]} {CLOSINGS[plan]}"
    for depth, error, plan in product(DEPTHS, ERRORS, CLOSINGS)
}


def draw_instructions(names: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` ids out of these (none: the whole pool), each once before any comes again."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(list(names or POOL), len(names or POOL))
    return drawn[:count]


def fault(text: str, words: int, finish_reason: str | None) -> str:
    """Why a reflection is of no use; empty where it is."""
    if finish_reason == "length":
        return "cut off at the token limit"
    if (count := len(text.split())) > words:
        return f"{count} words, more than {words}"
    return "it gives an answer" if "<answer>" in text else ""


class Stored:
    """Reflections by the id of a problem, or by its question as it is shown.

    digest: of the file, for a run must not go on with another.
    Raises UserError for a file that cannot be read, naming the line.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: dict[str, list[str]] = {}
        file = Path(path).expanduser() if path.startswith("~/") else Path(path)
        try:
            data = file.read_bytes()
            for number, row in enumerate(read_rows(file, torn=False), 1):
                for key, texts in entries(row, f"{path}, row {number}"):
                    self.found.setdefault(key, []).extend(texts)
        except OSError as error:
            raise UserError(
                f"reflectevo.stored = {path!r} cannot be read: {error.strerror}",
                "name a JSONL file with id (or question) and reflections in each row",
            ) from None
        self.digest = hashlib.sha256(data).hexdigest()[:16]

    def of(self, key: str, question: str) -> list[str]:
        return self.found.get(key) or self.found.get(question.strip(), [])


def entries(row: Mapping[str, Any], at: str) -> Iterator[tuple[str, list[str]]]:
    """(problem, reflections) of a row; a row may have one reflection or several."""
    said = row.get("reflections")
    texts = [said] if isinstance(said, str) else said
    keys = [row[name] for name in ("id", "question") if isinstance(row.get(name), str)]
    fine = isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)
    if not keys or not fine or not isinstance(texts, list):
        raise UserError(
            f"{at}: no problem with reflections",
            'each row holds {"id": "…" or "question": "…", "reflections": "…" or ["…", …]}',
        )
    for key in keys:
        yield key.strip(), texts
