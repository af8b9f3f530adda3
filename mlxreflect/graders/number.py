"""The number that a response answers with, and the rules by which it is right.

No tolerance; linear in the text's length: every search is a `find` over the whole text or a regular
expression over a window of bounded length.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

from mlxreflect.core.records import Problem, Verdict
from mlxreflect.graders import (
    AFTER_PHRASE,
    DOUBT,
    RETRACTED,
    SENTENCE,
    VULGAR,
    Grade,
    Grader,
    Judged,
    blocks,
    main_clause,
    phrases,
    rules_of,
    said_part,
    statements,
)
from mlxreflect.graders.numerals import (
    CALCULATION,
    DENIED,
    GROUPS,
    MAX_BLOCK,
    MAX_DIGITS,
    ZEROS,
    Found,
    find_numbers,
    is_after,
    is_bound,
    read_number,
    show_number,
    tidy,
)
from mlxreflect.prompts.parsing import Parsed

DIGITS = "0123456789" + "".join(VULGAR)
MAX_TAIL = 4000  # characters before the last digit in which the last number is looked for
RANGE = re.compile(r"\b(?:between|from)[\s$*(\\]{1,4}\Z", re.IGNORECASE)
# "18 is not the answer"
REFUTED = re.compile(
    r"[^.,\n0-9]{0,20}? (?:is|was)(?: (?:wrong|incorrect)\b"
    r"|(?:n['’]t| not) (?:(?:the|our|correct|right|final) ){0,3}(?:answer|correct|right|it)\b)"
)
# "Total: 18 (9 + 9)"
LABELLED = re.compile(r"[^\w\n]{0,8}(?:[A-Za-z]{1,20} ){0,3}[A-Za-z]{1,20}[*_]{0,4}[:=]")
WORDS = re.compile("[A-Za-z]")
# "15 000 people", all of a response
LONE = re.compile(
    r"\W{0,8}[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]{1,9})?[^\w\n]{0,4}(?:[A-Za-z]{1,20}\W{0,4}){0,3}"
)
# What may stand between #### and its number; a heading ("#### Step 2", "#### 2. Add") is no answer.
HASHED = re.compile(
    r"[\s$€£¥₹*_`\\(\[{:=+~≈<>≤≥-]*(?:(?:at (?:least|most)|up to|over|under|above|below|about"
    r"|around"
    r"|approximately|approx\.?|roughly|nearly|almost|exactly|only|just|not|no|between|from|twice"
    r"|half of"
    r"|(?:more|less|fewer|greater|other) than|(?:a )?total(?: of)?)[\s:*]{1,4}){0,3}"
    r"(?:[A-Za-z] ?= ?)?[$-]?\.?[0-9]",
    re.IGNORECASE,
)
HEADING = re.compile(r"[.):][ \t]+[A-Za-z]")
# "18 or 20", "18 dollars and 20 cents", "18 to 20", "18, 20": two answers are none.
HEDGE = re.compile(
    r"[\s*_$`)}\],(]{0,4}(?:[A-Za-z%]{1,20}\s{1,3}){0,3}or\s[^0-9\n.]{0,40}"
    r"|[\s*_$`)}\]]{0,4}(?:[A-Za-z%]{1,20}\s{0,3}){0,2}(?:(?:and|to|&|;|~|,|vs\.?|through|\.{2,3}|…"
    r"|maybe|perhaps|remainder|\b[rR]\b)\s{0,3}){1,2}(?:[A-Za-z] ?= ?)?[$*\s-]{0,4}|\s:\s"
)
MORE = re.compile(
    r"[^.,;\n]{0,3}(?:[A-Za-z]{1,20} ){0,2}(?:more|less|fewer|times|of|from|per|is|are|was|were)\b"
)
# What may follow a number that is a whole answer: at most three words.
UNIT = re.compile(
    r"[^A-Za-z\n.]{0,4}(?:[A-Za-z/°%²³]{1,20} ?){0,3}"
    r"(?=[.,;:(\n*$\\]|\Z|(?:since|because|as|which)\b)"
)
# "So 18 is the final answer"
CALLED = re.compile(
    r"(?:\A|[.!?:]\s|\n|\b(?:so|thus|hence|therefore|that),? )([^.!?:\n]{1,40}?(?:\.[0-9]{1,9})?)"
    r" is (?:the|my|our)(?: (?:final|correct|right|only))* \Z",
    re.IGNORECASE,
)
Spot = tuple[int, Fraction | None]  # of a marker: its position, and the number it points at


def after_hashes(text: str) -> Spot | None:
    """Finds the last `####` that a number follows at once."""
    for marked in phrases(text, "####"):
        window = tidy(marked.text, GROUPS)
        found = find_numbers(window) if HASHED.match(window[:AFTER_PHRASE]) else []
        if found and not HEADING.match(window, found[0].end):
            return marked.position, first_result(window, found)
    return None


def after_statement(text: str) -> Spot | None:
    """Finds the number that the last statement of an answer gives.

    It is the first one. Behind a colon a sentence may come first, or a whole solution: then it is
    the last one that stands in no brackets and is no reason.
    """
    denied: int | None = None
    for marked in statements(text):
        window = tidy(marked.text, GROUPS)
        found = find_numbers(window)
        if marked.kind == "not":  # "isn't 17, it's 18"
            denied = marked.position
            if instead := find_numbers(tidy(main_clause(SENTENCE.split(marked.text)[0])))[1:]:
                return marked.position, instead[-1].value
        elif marked.kind == "{":
            return marked.position, read_block(marked.text)
        elif found and found[0].start < AFTER_PHRASE:
            first, end = first_result(window, found), found[0].end
            rest = text[max(marked.position, len(text) - MAX_TAIL) :]
            # A solution has numbers in more than one sentence.
            solution = sum(any(map(str.isdigit, part)) for part in SENTENCE.split(rest)) > 1
            if RETRACTED.match(window, end):  # "17. Wait, no, it is 18"
                return marked.position, last_number(rest)
            spoken = WORDS.search(window, 0, found[0].start) or (
                solution and (CALCULATION.match(window, end) or not UNIT.match(window, end))
            )
            if marked.kind == "is" or not spoken or (first is None and len(found) < 3):
                return marked.position, first
            return marked.position, last_number(rest if solution else main_clause(rest), GROUPS)
    return None if denied is None else (denied, last_number(text[denied:]))


def before_verdict(text: str) -> Spot | None:
    """Finds the number that is called the answer: "18 is the answer"."""
    for marked in phrases(text, "answer"):
        at = max(0, marked.position - 60)
        called = CALLED.search(text, at, marked.position)
        if called and not DOUBT.search(text, at, called.start(1)):
            return marked.position, read_number(called[1])
    return None


def first_result(window: str, found: list[Found]) -> Fraction | None:
    """Reads the number a marker points at; of a calculation its result, None without one.

    None too for one of two answers, and for a bound.
    """
    first, rest = found[0], window[found[0].end :]
    if is_bound(window, first) or any(is_after(words, window, first) for words in (RANGE, DENIED)):
        return None
    if CALCULATION.match(window, first.end):
        left, equals, right = main_clause(rest.split("\n", 1)[0]).rpartition("=")
        results = find_numbers(right) if equals else []
        if results and CALCULATION.match(right, results[0].end):  # 18 = 9 + 9
            return None if left.strip() else first.value
        return results[0].value if results else None
    for one, other in pairwise(found):
        between = window[one.end : other.start]
        if not HEDGE.fullmatch(between) or MORE.match(window, other.end):
            break
        if CALCULATION.match(window, other.end):  # "18; 9 + 9 = 18"
            break
        if other.value != first.value:
            return None
    return first.value


def last_number(text: str, groups: re.Pattern[str] = ZEROS) -> Fraction | None:
    """Reads the last number that is not denied; None where there is none or it is not exact."""
    end = max(text.rfind(digit) for digit in DIGITS)
    if end < 0:
        return None
    text = tidy(text[max(0, end - MAX_TAIL) : end + MAX_DIGITS], groups)
    for found in reversed(find_numbers(text)):
        if not is_after(DENIED, text, found) and not REFUTED.match(text, found.end):
            return None if is_bound(text, found) else found.value
    return None


def extract_answer(text: str, tags: str = "think") -> Fraction | None:
    """Reads the number a response answers with, whatever its format ("flexible").

    The last explicit marker by position counts, `####`, `\\boxed{}`, `<answer>`, "answer is",
    "Answer:" or a heading. Without a marker the last number counts. Never raises; linear in
    len(text).
    """
    text = said_part(text, tags)
    spots: list[Spot] = [(found.position, read_block(found.text)) for found in blocks(text)]
    spots += [
        spot for find in (after_hashes, after_statement, before_verdict) if (spot := find(text))
    ]
    if spots:
        return max(spots, key=lambda spot: spot[0])[1]
    if len(text) <= MAX_BLOCK and LONE.fullmatch(text.strip()):
        return last_number(text, GROUPS)
    end = max(text.rfind(digit) for digit in DIGITS)
    line = text[text.rfind("\n", 0, end + 1) + 1 :] if end >= 0 else ""
    if len(line) <= MAX_BLOCK and (label := LABELLED.match(line)):
        return last_number(main_clause(line[label.end() :]), GROUPS)
    return last_number(text)


def read_block(text: str) -> Fraction | None:
    """Reads the number of a block or a box: "18", "18 (9 + 9)", "the answer is 18, not 20"."""
    return read_number(main_clause(text)) if len(text) <= MAX_BLOCK else None


# In these the answer is counted: "7 dozen" is 7.
ASKED = re.compile(r"\bhow many (dozen|hundred|thousand|million|billion)", re.IGNORECASE)


def judge_number(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    """Compares a response's number with the expected one, as exact rationals."""
    if asked := ASKED.search(str(problem.fields.get("question", ""))):
        text = re.sub(rf" {asked[1]}s?\b", "", text, flags=re.IGNORECASE)
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
