"""Exact numbers from untrusted text: no tolerance, no eval, linear in the text's length.

Only ASCII digits count. Every search is a `find` over the whole text or a regular expression over
a window of bounded length, so that hostile text cannot make a grade slow.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mlxreflect.errors import UserError
from mlxreflect.prompts import ANSWER, parse_response
from mlxreflect.records import Verdict
from mlxreflect.tasks.base import Grade
from mlxreflect.tasks.text import final_part

MAX_DIGITS = 40
MAX_EXPONENT = 30
MAX_BLOCK = 1000  # characters of an answer block that are read
MAX_TAIL = 4000  # characters before the last digit in which the last number is looked for
MAX_TRIES = 16  # candidates looked at for each kind of marker, from the end
AFTER_MARKER = 200  # characters after "answer is" in which its number must begin
NUMERAL = (
    r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)*|(?:\.[0-9]+)+)(?:[eE][+-]?[0-9]{1,4}(?![0-9A-Za-z]))?"
)
# The first group is the whole part of a mixed number, "3 1/2".
TOKEN = re.compile(rf"(?:([0-9]{{1,12}}) (?=[0-9]{{1,12}}/[0-9]))?({NUMERAL}(?: ?/ ?{NUMERAL})*)")
DECIMAL = re.compile(
    r"([0-9]{1,3}(?:,[0-9]{3})*|[0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?", re.ASCII
)
FRAC = re.compile(r"\\[dt]?frac\{(-?[0-9]{1,40})\}\{([0-9]{1,40})\}")
# "9 eggs * $2", "18/2 = 9": the number before is part of a calculation.
CALCULATION = re.compile(r" {0,3}(?:[A-Za-z]{1,20} {0,3})?[-+*/×÷x=] {0,3}\(?[$-]? ?[0-9]")
# What may stand between #### and its number; a heading ("#### Step 2", "#### 2. Add") is no answer.
HASHED = re.compile(r"[\s$€£¥*_`\\(\[{:=+-]*\.?[0-9]")
HEADING = re.compile(r"[.):][ \t]+[A-Za-z]")
CURRENCY = "$€£¥"
WORD = re.compile(r"[^\W\d_]+")
MAX_UNITS = 3  # words beside an expected number: "18 dollars per hour" is one, a sentence is not
# Signs that read as a minus, and the narrow spaces that some languages put between thousands.
CHARACTERS = str.maketrans(
    {"\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2013": "-", "\uff0d": "-"}
    | {"\u202f": ",", "\u2009": ","}
)
LATEX = {"{,}": ",", "\\,": "", "\\!": "", "\\$": "$", "\\%": "%", "\\times": "*", "\\cdot": "*"}


@dataclass(frozen=True)
class Found:
    """A number in a text; value None: digits that cannot be read exactly (a date, 50 digits)."""

    start: int
    end: int
    value: Fraction | None


@dataclass(frozen=True)
class Marked:
    """The answer a marker points at; value None: the marked block holds no single number."""

    position: int
    value: Fraction | None


def tidy(text: str) -> str:
    """Typographic and LaTeX ways of writing a number, as plain characters."""
    for written, plain in LATEX.items():
        text = text.replace(written, plain)
    return FRAC.sub(r" \1/\2", text.translate(CHARACTERS))


def decimal(text: str) -> Fraction | None:
    """One numeral: digits, thousands in threes, a decimal part, an exponent."""
    if len(text) > 2 * MAX_DIGITS or not (parts := DECIMAL.fullmatch(text)):
        return None
    whole, after = parts[1].replace(",", ""), parts[2] or ""
    exponent = int(parts[3] or 0)
    if not 1 <= len(whole + after) <= MAX_DIGITS or abs(exponent) > MAX_EXPONENT:
        return None
    return Fraction(int(whole + after)) * Fraction(10) ** (exponent - len(after))


def ratio(token: str) -> Fraction | None:
    """A numeral, or two with a slash between them."""
    values = [decimal(part.strip()) for part in token.split("/", 2)]
    if values[0] is None or len(values) > 2:
        return None
    if len(values) == 1:
        return values[0]
    return values[0] / values[1] if values[1] else None


def is_negative(text: str, start: int) -> bool:
    """Whether a minus before the number at `start` is its sign, not a subtraction or a bullet."""
    head = text[max(0, start - 12) : start]
    bare = head.rstrip(CURRENCY + " ")
    if not bare.endswith("-"):
        return False
    before = bare[:-1].rstrip(" ")
    last = before[-1:]
    if " " in head[len(bare) :]:
        return last in ("", "=", ":")
    if last.isdigit() or last in (")", "]", "}", "%", "-"):
        return False
    return not (last.isalpha() and before == bare[:-1])


def is_other_digit(character: str) -> bool:
    return not character.isascii() and character.isnumeric()


def is_name(text: str, start: int) -> bool:
    """Whether the digits at `start` end a name (H2, x_1) or a group (the 000 of 1_000)."""
    before = text[start - 1 : start] if start else ""
    if before == "_":
        return text[max(0, start - 2) : start - 1].isalnum()
    return before.isascii() and before.isalpha()


def find_numbers(text: str) -> list[Found]:
    """Every number of a short text, in order. `text` has been through `tidy`."""
    found = []
    for match in TOKEN.finditer(text):
        start, end = match.span()
        if is_name(text, start):
            continue
        token, before = match[2], text[start - 1 : start] if start else ""
        if token[0] == "." and before == ".":  # "so it is...5"
            token = token[1:]
        value = ratio(token)
        if match[1] and value is not None:
            value = int(match[1]) + value if value < 1 else None
        after = text[end : end + 2]
        if (
            is_other_digit(before)
            or is_other_digit(after[:1])
            or (after[:1] == "_" and after[1:].isdigit())
        ):  # 5², 5½, ٣5
            value = None
        elif value is not None and is_negative(text, start):
            value = -value
        found.append(Found(start, end, value))
    return found


def read_number(text: str) -> Fraction | None:
    """A text that is one number: "$1,234.50", "18 dollars.", "−3/4", "9 * 2 = 18", "50\\%".

    Units and words are dropped (a percentage is its number), and of an equation the right side
    counts. None where there is no number, or more than one: "17 or 18" is no answer.
    """
    text = text.strip()
    if len(text) > MAX_BLOCK:
        return None
    text = tidy(text)
    found = find_numbers(text[text.rfind("=") + 1 :]) or find_numbers(text)
    values = {number.value for number in found}
    return values.pop() if len(values) == 1 else None


def last_number(text: str) -> Fraction | None:
    """The last number of a text; None where there is none or it cannot be read exactly."""
    end = max(text.rfind(digit) for digit in "0123456789")
    if end < 0:
        return None
    found = find_numbers(tidy(text[max(0, end - MAX_TAIL) : end + MAX_DIGITS]))
    return found[-1].value if found else None


def read_gold(raw: object) -> str | None:
    """A row's expected number (int, float or text, after `####` if there is one), normalised.

    None where it is no number, or a sentence. "1,234" → "1234", 6706.0 → "6706", 0 → "0".
    """
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        return None
    if isinstance(raw, int) and raw.bit_length() > 4 * MAX_DIGITS:  # str() of it may raise
        return None
    text = str(raw).rpartition("####")[2].strip()
    if len(text) > MAX_BLOCK or "=" in text or len(WORD.findall(text)) > MAX_UNITS:
        return None
    value = read_number(text)
    return None if value is None else show_number(value)


def show_number(value: Fraction) -> str:
    """An exact text: whole numbers as such, decimals where they end, else a/b."""
    places, rest = 0, value.denominator
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    if not places:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def in_answer_block(text: str) -> Marked | None:
    """The last closed <answer> block that is not empty."""
    close = len(text)
    for _ in range(MAX_TRIES):
        close = text.rfind(ANSWER[1], 0, close)
        start = text.rfind(ANSWER[0], 0, close) if close >= 0 else -1
        if start < 0:
            return None
        if content := text[start + len(ANSWER[0]) : close].strip():
            return Marked(close, read_number(content))
        close = start
    return None


def in_box(text: str) -> Marked | None:
    r"""The last closed `\boxed{}`."""
    start = len(text)
    for _ in range(MAX_TRIES):
        start = text.rfind("\\boxed{", 0, start)
        if start < 0:
            return None
        window = text[start + 7 : start + 7 + MAX_BLOCK]
        depth = 1
        for brace in re.finditer(r"[{}]", window):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                return Marked(start, read_number(window[: brace.start()]))
    return None


def after_hashes(text: str) -> Marked | None:
    """The last `####` that a number follows at once."""
    at = len(text)
    for _ in range(MAX_TRIES):
        at = text.rfind("####", 0, at)
        if at < 0:
            return None
        window = tidy(text[at + 4 : at + 4 + 2 * AFTER_MARKER])
        found = find_numbers(window) if HASHED.match(window[:AFTER_MARKER]) else []
        if found and not HEADING.match(window, found[0].end):
            return Marked(at, first_result(window, found[0]))
    return None


def after_phrase(text: str) -> Marked | None:
    """The last "answer is", in any case, that a number follows."""
    # İ is the one character whose lower case is longer; positions must stay.
    lower = text.replace("\u0130", "i").lower()
    at = len(text)
    for _ in range(MAX_TRIES):
        at = lower.rfind("answer is", 0, at)
        if at < 0:
            return None
        window = tidy(text[at + 9 : at + 9 + 2 * AFTER_MARKER])
        if (found := find_numbers(window)) and found[0].start < AFTER_MARKER:
            return Marked(at, first_result(window, found[0]))
    return None


def first_result(window: str, first: Found) -> Fraction | None:
    """The number a marker points at; of a calculation its result, None where it has none."""
    if not CALCULATION.match(window, first.end):
        return first.value
    line = window[first.end :].split("\n", 1)[0]
    _, equals, right = line.rpartition("=")
    results = find_numbers(right) if equals else []
    return results[0].value if results else None


def extract_answer(text: str, tags: str = "think") -> Fraction | None:
    """The number a response answers with, whatever its format ("flexible" extraction).

    The last explicit marker by position counts, `####`, `\\boxed{}`, `<answer>` or "answer is"; a
    block's position is its end, so that it rules over markers inside it. Without a marker the
    last number counts. Never raises; linear in len(text).
    """
    text = final_part(text, tags)
    finders = (in_answer_block, in_box, after_hashes, after_phrase)
    marked = [found for finder in finders if (found := finder(text))]
    if marked:
        return max(marked, key=lambda m: m.position).value
    return last_number(text)


def grade_number(gold: str | None, text: str, tags: str, style: str) -> Grade:
    """Compare a response's number with the expected one, as exact rationals."""
    value, expected = extract_answer(text, tags), read_number(gold or "")
    form = parse_response(text, tags, style)
    if value is None:
        return Grade(None, Verdict(False, form.format_ok, "no number found"))
    correct, parsed = value == expected, show_number(value)
    reason = form.reason if correct else f"expected {gold}, got {parsed}"
    return Grade(parsed, Verdict(correct, form.format_ok, reason))


def row_gold(row: dict[str, Any]) -> str:
    """The gold of a row of `mlxreflect grade`. Raises UserError where it is no number."""
    gold = read_gold(row.get("gold"))
    if gold is None:
        raise UserError(f"gold = {str(row.get('gold'))[:60]!r}: not a number", 'write "gold": 42')
    return gold
