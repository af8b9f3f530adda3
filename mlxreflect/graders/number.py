"""Numbers: read exactly from untrusted text, and the rules by which a number is right.

No tolerance, no eval, linear in the text's length: only ASCII digits count, and every search is a
`find` over the whole text or a regular expression over a window of bounded length.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, Verdict
from mlxreflect.graders import (
    AFTER_PHRASE,
    Grade,
    Grader,
    Judged,
    blocks,
    final_part,
    phrases,
    rules_of,
)
from mlxreflect.prompts.parsing import Parsed

MAX_DIGITS = 40
MAX_EXPONENT = 30
MAX_BLOCK = 1000  # characters of an answer block that are read
MAX_TAIL = 4000  # characters before the last digit in which the last number is looked for
NUMERAL = (
    r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)*|(?:\.[0-9]+)+)(?:[eE][+-]?[0-9]{1,4}(?![0-9A-Za-z]))?"
)
# The first group is the whole part of a mixed number, "3 1/2".
TOKEN = re.compile(rf"(?:([0-9]{{1,12}}) (?=[0-9]{{1,12}}/[0-9]))?({NUMERAL}(?: ?/ ?{NUMERAL})*)")
DECIMAL = re.compile(
    r"([0-9]{1,3}(?:,[0-9]{3})*|[0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?", re.ASCII
)
FRAC = re.compile(r"\\[dt]?frac\{(-?[0-9]{1,40})\}\{([0-9]{1,40})\}")
SHORT_FRAC = re.compile(r"\\[dt]?frac ?([0-9]) ?([0-9])")  # \frac12
# "9 eggs * $2", "18/2 = 9": the number before is part of a calculation.
CALCULATION = re.compile(r" {0,3}(?:[A-Za-z]{1,20} {0,3})?[-+*/×÷x=] {0,3}\(?[$-]? ?[0-9]")
# "2 ^ 2", "2 ** 2": not a number yet. Degrees are a unit.
POWER = re.compile(r" {0,3}(?:\*\* {0,3}[-(]?[0-9]|\^(?! {0,3}\{? {0,3}\\?circ))")
EXPONENT = re.compile(r"[eE][+-]?[0-9]")  # one too large to be read
# "√18", "\\sqrt{18}", "log 18", "±18": a function of the number that follows.
FUNCTION = re.compile(r"(?:√|±|\\pm|(?:\\|\b)(?:sqrt|log|ln|exp|sin|cos|tan))[\s({\[$]{0,4}$")
SIGN_WORD = re.compile(r"(?:\bnegative|(?:\A|[=:]|\bis)\s{0,3}minus)[\s$€£¥]{1,3}\Z", re.IGNORECASE)
# "18 thousand", "1.5 million", "$18k".
MAGNITUDE = re.compile(r"(k|[\s]{0,2}(?:thousand|million|billion))(?![0-9A-Za-z])", re.IGNORECASE)
TIMES = {"k": 1000, "thousand": 1000, "million": 10**6, "billion": 10**9}
OR = re.compile(r"\bor\b", re.IGNORECASE)
CURRENCY = "$€£¥"
WORD = re.compile(r"[^\W\d_]+")
MAX_UNITS = 3  # words beside an expected number: "18 dollars per hour" is one, a sentence is not
# Signs that read as a minus, and the narrow spaces that some languages put between thousands.
CHARACTERS = str.maketrans(
    {"\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2013": "-", "\uff0d": "-"}
    | {"\u202f": ",", "\u2009": ","}
)
LATEX = {"{,}": ",", "\\,": "", "\\!": "", "\\$": "$", "\\%": "%", "\\times": "*", "\\cdot": "*"}


class Found(NamedTuple):
    """A number in a text; value None: digits that cannot be read exactly (a date, 50 digits)."""

    start: int
    end: int
    value: Fraction | None


def tidy(text: str) -> str:
    """Writes typographic and LaTeX ways of writing a number as plain characters."""
    for written, plain in LATEX.items():
        text = text.replace(written, plain)
    return SHORT_FRAC.sub(r" \1/\2", FRAC.sub(r" \1/\2", text.translate(CHARACTERS)))


def decimal(text: str) -> Fraction | None:
    """Reads one numeral: digits, thousands in threes, a decimal part, an exponent."""
    if len(text) > 2 * MAX_DIGITS or not (parts := DECIMAL.fullmatch(text)):
        return None
    whole, after = parts[1].replace(",", ""), parts[2] or ""
    exponent = int(parts[3] or 0)
    if not 1 <= len(whole + after) <= MAX_DIGITS or abs(exponent) > MAX_EXPONENT:
        return None
    return Fraction(int(whole + after)) * Fraction(10) ** (exponent - len(after))


def ratio(token: str) -> Fraction | None:
    """Reads a numeral, or two with a slash between them."""
    top, *below = [decimal(part.strip()) for part in token.split("/")]
    if top is None or not below:
        return top
    return top / below[0] if len(below) == 1 and below[0] else None


def is_negative(text: str, start: int) -> bool:
    """Tells a sign before the number at `start` from a subtraction or a bullet."""
    head = text[max(0, start - 12) : start]
    bare = head.rstrip(CURRENCY + " ")
    if SIGN_WORD.search(text, max(0, start - 30), start):
        return True
    if not bare.endswith("-"):
        return False
    before = bare[:-1].rstrip(" ")
    last = before[-1:]
    if " " in head[len(bare) :]:
        return last in ("", "=", ":")
    if last.isdigit() or last in (")", "]", "}", "%", "-"):
        return False
    return not (last.isalpha() and before == bare[:-1])


def is_invisible(character: str) -> bool:
    """Tells whether it joins what is around it without being seen: zero-width, combining."""
    return character != "" and unicodedata.category(character) in ("Cf", "Mn", "Me")


def is_name(text: str, start: int) -> bool:
    """Tells whether the digits at `start` end a name (H2, x_1) or a group (000 of 1_000)."""
    before = text[start - 1 : start] if start else ""
    if before == "_":
        return text[max(0, start - 2) : start - 1].isalnum()
    return before.isascii() and before.isalpha()


def find_numbers(text: str) -> list[Found]:
    """Finds every number of a short text, in order. `text` has been through `tidy`."""
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
            any(not c.isascii() and c.isnumeric() for c in (before, after[:1]))
            or ((after[:1] == "_" or is_invisible(after[:1])) and after[1:].isdigit())
            or (is_invisible(before) and text[start - 2 : start - 1].isdigit())
            or POWER.match(text, end)
            or EXPONENT.match(text, end)
            or FUNCTION.search(text, max(0, start - 12), start)
        ):  # 5², 5½, ٣5, 5^2, √5
            value = None
        elif value is not None and is_negative(text, start):
            value = -value
        if value is not None and (times := MAGNITUDE.match(text, end)):
            value *= TIMES[times[1].strip().lower()]
        found.append(Found(start, end, value))
    return unspaced(text, found)


def unspaced(text: str, found: list[Found]) -> list[Found]:
    """Reads no number where thousands stand behind a space: "18 000" is neither 18 nor 0."""
    groups = {i for i in range(1, len(found)) if text[found[i - 1].end : found[i].end] == " 000"}
    groups |= {i - 1 for i in groups}
    return [one._replace(value=None) if i in groups else one for i, one in enumerate(found)]


def read_number(text: str) -> Fraction | None:
    """Reads a text that is one number: "$1,234.50", "18 dollars.", "−3/4", "9 * 2 = 18", "50\\%".

    Units and words are dropped (a percentage is its number), and of an equation the right side
    counts. None where there is no number, one still to be computed ("9 * 2", "√18"), or more than
    one: "17 or 18" is no answer.
    """
    text = text.strip()
    if len(text) > MAX_BLOCK:
        return None
    values = {value for part in OR.split(tidy(text)) for value in side_values(part)}
    return values.pop() if len(values) == 1 else None


def side_values(text: str) -> set[Fraction | None]:
    """Reads what is right of the last equals sign that has a number there; None: calculation."""
    right = text[text.rfind("=") + 1 :]
    found = find_numbers(right)
    if not found:
        right, found = text, find_numbers(text)
    return {None if CALCULATION.match(right, n.end) else n.value for n in found}


def last_number(text: str) -> Fraction | None:
    """Reads the last number of a text; None where there is none or it is not exact."""
    end = max(text.rfind(digit) for digit in "0123456789")
    if end < 0:
        return None
    found = find_numbers(tidy(text[max(0, end - MAX_TAIL) : end + MAX_DIGITS]))
    return found[-1].value if found else None


def read_gold(raw: object) -> str | None:
    """Reads a row's expected number: int, float or text (after `####` if there is one).

    Returns it normalised, None for no number or a sentence. "1,234" → "1234", 6706.0 → "6706".
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
    """Writes it exactly: whole numbers as such, decimals where they end, else a/b."""
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


def row_gold(row: dict[str, Any]) -> str:
    """Reads the gold of a row of `mlxreflect grade`. Raises UserError for no number."""
    gold = read_gold(row.get("gold"))
    if gold is None:
        raise UserError(f"gold = {str(row.get('gold'))[:60]!r}: not a number", 'write "gold": 42')
    return gold


# ---- the number that a response answers with ----------------------------------------------------

# What may stand between #### and its number; a heading ("#### Step 2", "#### 2. Add") is no answer.
HASHED = re.compile(r"[\s$€£¥*_`\\(\[{:=+-]*\.?[0-9]")
HEADING = re.compile(r"[.):][ \t]+[A-Za-z]")
# "18 or 20", "18 dollars or 20 dollars": two answers are none.
HEDGE = re.compile(r"[\s*_$`)}\],]{0,4}(?:[A-Za-z]{1,20}\s{1,3}){0,3}or\s[^0-9\n.]{0,40}[0-9]")
NOT = re.compile(r"\s{1,3}not\b", re.IGNORECASE)  # "the answer is not 17"
Spot = tuple[int, Fraction | None]  # of a marker: its position, and the number it points at


def after_hashes(text: str) -> Spot | None:
    """Finds the last `####` that a number follows at once."""
    for marked in phrases(text, "####"):
        window = tidy(marked.text)
        found = find_numbers(window) if HASHED.match(window[:AFTER_PHRASE]) else []
        if found and not HEADING.match(window, found[0].end):
            return marked.position, first_result(window, found[0])
    return None


def after_phrase(text: str) -> Spot | None:
    """Finds the last "answer is" that a number follows."""
    for marked in phrases(text):
        if NOT.match(marked.text):
            continue
        window = tidy(marked.text)
        if (found := find_numbers(window)) and found[0].start < AFTER_PHRASE:
            return marked.position, first_result(window, found[0])
    return None


def first_result(window: str, first: Found) -> Fraction | None:
    """Reads the number a marker points at; of a calculation its result, None without one."""
    if HEDGE.match(window, first.end):
        return None
    if not CALCULATION.match(window, first.end):
        return first.value
    line = window[first.end :].split("\n", 1)[0]
    _, equals, right = line.rpartition("=")
    results = find_numbers(right) if equals else []
    return results[0].value if results else None


def extract_answer(text: str, tags: str = "think") -> Fraction | None:
    """Reads the number a response answers with, whatever its format ("flexible").

    The last explicit marker by position counts, `####`, `\\boxed{}`, `<answer>` or "answer is".
    Without a marker the last number counts. Never raises; linear in len(text).
    """
    text = final_part(text, tags)
    spots: list[Spot] = [(found.position, read_number(found.text)) for found in blocks(text)]
    spots += [spot for find in (after_hashes, after_phrase) if (spot := find(text))]
    if spots:
        return max(spots, key=lambda spot: spot[0])[1]
    return last_number(text)


def judge_number(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    """Compares a response's number with the expected one, as exact rationals."""
    value = extract_answer(text, tags)
    if value is None:
        return Judged(None, False, "no number found")
    parsed = show_number(value)
    correct = value == read_number(problem.gold or "")
    return Judged(parsed, correct, f"expected {problem.gold}, got {parsed}")


# ---- lm-evaluation-harness -----------------------------------------------------------------------
# GSM8K's two scores as version 0.4 computes them (tasks/gsm8k/gsm8k.yaml). Its filters and its
# `exact_match` compare texts, not numbers: "18.00" is not "18". They are here so that a figure can
# be put beside published ones; neither is a headline of this project.

UNTIL = ("Question:", "</s>", "<|im_end|>")  # generation_kwargs.until
INVALID = "[invalid]"  # the filters' fallback
STRICT = re.compile(r"#### (-?[0-9.,]+)")
# The last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)` is the first one of a text read backwards: runs of
# these characters never touch. It spares a list of half a million matches.
FLEXIBLE_BACKWARDS = re.compile(r"[$0-9.,]{2,}-?|[0-9]-?")
MAX_SHOWN = 80


def response_of(text: str) -> str:
    """Returns what lm-eval would have kept: nothing from a stop string on."""
    for stop in UNTIL:
        text = text.partition(stop)[0]
    return text


def strict_match(text: str) -> str:
    found = STRICT.search(text)
    return found[1].strip() if found else INVALID


def flexible_extract(text: str) -> str:
    found = FLEXIBLE_BACKWARDS.search(text[::-1])
    return found[0][::-1].strip() if found else INVALID


def compared(text: str) -> str:
    """Returns a text after exact_match's regexes_to_ignore, in their order, and ignore_case."""
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return re.sub(r"\.$", "", text).lower()


def lm_eval(extract: Callable[[str], str]) -> Grader:
    """Returns the rules of a filter. The format obeyed is a line `#### number`."""

    def grade(problem: Problem, text: str, tags: str, style: str) -> Grade:
        text = response_of(text)
        obeyed, found = STRICT.search(text) is not None, extract(text)
        # lm-eval's target is the whole worked answer; other tasks have the number alone.
        solution = str(problem.meta.get("solution"))
        target = solution if "#### " in solution else problem.gold or ""
        correct = compared(found) == compared(target)
        reason = "" if obeyed else 'no "#### number"'
        if not correct:
            reason = f"expected {problem.gold}, got {found[:MAX_SHOWN]}"
        parsed = None if found == INVALID else found[:MAX_SHOWN]
        return Grade(parsed, Verdict(correct, obeyed, reason))

    return grade


NUMBER_RULES: dict[str, Grader] = {
    **rules_of(judge_number),
    "lm-eval-strict": lm_eval(strict_match),
    "lm-eval-flexible": lm_eval(flexible_extract),
}
