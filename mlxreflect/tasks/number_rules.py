"""How a response's number is found and graded, under each set of rules there is for numbers."""

import re
from fractions import Fraction

from mlxreflect.prompts import parse_response
from mlxreflect.records import Problem, Verdict
from mlxreflect.tasks.base import Grade, Grader
from mlxreflect.tasks.lm_eval import lm_eval_rules
from mlxreflect.tasks.markers import AFTER_PHRASE, MAX_TRIES, answer_block, box, phrases
from mlxreflect.tasks.numbers import (
    CALCULATION,
    Found,
    find_numbers,
    last_number,
    read_number,
    show_number,
    tidy,
)
from mlxreflect.tasks.strict import strict
from mlxreflect.tasks.text import final_part

# What may stand between #### and its number; a heading ("#### Step 2", "#### 2. Add") is no answer.
HASHED = re.compile(r"[\s$€£¥*_`\\(\[{:=+-]*\.?[0-9]")
HEADING = re.compile(r"[.):][ \t]+[A-Za-z]")
# "18 or 20", "18 dollars or 20 dollars": two answers are none.
HEDGE = re.compile(r"[\s*_$`)}\],]{0,4}(?:[A-Za-z]{1,20}\s{1,3}){0,3}or\s[^0-9\n.]{0,40}[0-9]")
NOT = re.compile(r"\s{1,3}not\b", re.IGNORECASE)  # "the answer is not 17"
Spot = tuple[int, Fraction | None]  # of a marker: its position, and the number it points at


def after_hashes(text: str) -> Spot | None:
    """The last `####` that a number follows at once."""
    at = len(text)
    for _ in range(MAX_TRIES):
        at = text.rfind("####", 0, at)
        if at < 0:
            return None
        window = tidy(text[at + 4 : at + 4 + 2 * AFTER_PHRASE])
        found = find_numbers(window) if HASHED.match(window[:AFTER_PHRASE]) else []
        if found and not HEADING.match(window, found[0].end):
            return at, first_result(window, found[0])
    return None


def after_phrase(text: str) -> Spot | None:
    """The last "answer is" that a number follows."""
    for marked in phrases(text):
        if NOT.match(marked.text):
            continue
        window = tidy(marked.text)
        if (found := find_numbers(window)) and found[0].start < AFTER_PHRASE:
            return marked.position, first_result(window, found[0])
    return None


def first_result(window: str, first: Found) -> Fraction | None:
    """The number a marker points at; of a calculation its result, None where it has none."""
    if HEDGE.match(window, first.end):
        return None
    if not CALCULATION.match(window, first.end):
        return first.value
    line = window[first.end :].split("\n", 1)[0]
    _, equals, right = line.rpartition("=")
    results = find_numbers(right) if equals else []
    return results[0].value if results else None


def extract_answer(text: str, tags: str = "think") -> Fraction | None:
    """The number a response answers with, whatever its format ("flexible" extraction).

    The last explicit marker by position counts, `####`, `\\boxed{}`, `<answer>` or "answer is".
    Without a marker the last number counts. Never raises; linear in len(text).
    """
    text = final_part(text, tags)
    blocks = [found for find in (answer_block, box) if (found := find(text))]
    spots: list[Spot] = [(found.position, read_number(found.text)) for found in blocks]
    spots += [spot for find in (after_hashes, after_phrase) if (spot := find(text))]
    if spots:
        return max(spots, key=lambda spot: spot[0])[1]
    return last_number(text)


def grade_number(
    problem: Problem, text: str, tags: str = "think", style: str = "thinking"
) -> Grade:
    """Compare a response's number with the expected one, as exact rationals."""
    value, expected = extract_answer(text, tags), read_number(problem.gold or "")
    form = parse_response(text, tags, style)
    if value is None:
        return Grade(None, Verdict(False, form.format_ok, "no number found"))
    correct, parsed = value == expected, show_number(value)
    reason = form.reason if correct else f"expected {problem.gold}, got {parsed}"
    return Grade(parsed, Verdict(correct, form.format_ok, reason))


NUMBER_RULES: dict[str, Grader] = {
    "flexible": grade_number,
    "strict": strict(grade_number),
    **lm_eval_rules(),
}
