"""Answers that are only stated: compared with one another, and taken out of what is said."""

import re
import unicodedata
from importlib.util import find_spec

from mlxreflect.core.errors import UserError
from mlxreflect.graders.base import box
from mlxreflect.graders.choice import WRAPPED
from mlxreflect.graders.number import find_numbers, read_gold, read_number, tidy
from mlxreflect.prompts.messages import parse_response
from mlxreflect.tasks.kinds import KINDS, build

LONGEST = 20_000  # characters of what is said; no reply of a critic has more to say


def stated(text: str) -> str | None:
    r"""The answer that a worked solution gives: its <answer> block, else its last `\boxed{}`."""
    answer = parse_response(text, style="direct").answer
    boxed = box(text) if answer is None else None
    return WRAPPED.sub(r"\1", boxed.text).strip() if boxed else answer


def agrees(answer: str, gold: str) -> bool:
    """Whether an answer is the one that a row of data gives: as a number, in LaTeX or as text."""
    if answer.split() and "".join(answer.split()) == "".join(gold.split()):
        return True
    kind = "number" if read_gold(gold) is not None else "text"
    if kind == "text" and "\\" in gold and find_spec("math_verify"):
        kind = "math"
    try:
        problem = build("jsonl", "", gold, kind)
    except UserError:  # too long to be an answer
        return False
    said = f"<answer>{answer}</answer>"
    return KINDS[kind].rules["flexible"](problem, said, "think", "direct").verdict.correct


def withheld(said: str, *golds: str | None) -> str:
    """What a critic says of an error, the expected answers taken out wherever they stand alone.

    A number goes however it is written: 1,234 and 1234.0, 1/2 and 0.5, with either sign.
    """
    said = said[:LONGEST]
    for gold in golds:
        if gold and gold.strip():
            said = without_number(without_text(said, gold), gold)
    return said


def without_text(said: str, gold: str) -> str:
    """Letters of one choice keep their case: "a" is an article."""
    words = r"\s+".join(map(re.escape, gold.split()))
    case = re.IGNORECASE if len(gold.strip()) > 1 else re.NOFLAG
    return re.sub(rf"(?<![\w.,]){words}(?![\w]|[.,]\d)", "…", said, flags=case)


def without_number(said: str, gold: str) -> str:
    value = read_number(gold)
    if value is None:
        return said
    plain = tidy(unicodedata.normalize("NFKC", said.replace("…", "\0")).replace("\u2044", "/"))
    found = [n for n in find_numbers(plain) if n.value is not None and abs(n.value) == abs(value)]
    if not found:
        return said
    for number in reversed(found):
        plain = f"{plain[: number.start]}…{plain[number.end :]}"
    return plain.replace("\0", "…")
