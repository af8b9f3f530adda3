"""Shared by all graders: the grade, where a response says its answer, comparing short texts."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from mlxreflect.core.records import Problem, Verdict
from mlxreflect.core.ui import composed
from mlxreflect.prompts.parsing import ANSWER, TAGS, Parsed, parse_response


@dataclass(frozen=True)
class Grade:
    """A graded response.

    parsed: the answer read from the text (normalised), None when there is none to read.
    score: how near an answer comes, 0 to 1, where the rules measure that (token F1).
    """

    parsed: str | None
    verdict: Verdict
    score: float | None = None


# (problem, text, tags, style) → Grade; never raises, linear in len(text).
Grader = Callable[[Problem, str, str, str], Grade]


class Judged(NamedTuple):
    """An answer as it was read, and what is wrong with it; the format is looked at elsewhere."""

    parsed: str | None
    correct: bool
    reason: str
    score: float | None = None


# (problem, text, tags, form) → Judged. form: the response as the prompt's format has it.
Judge = Callable[[Problem, str, str, Parsed], Judged]


def grader_of(judge: Judge) -> Grader:
    """Returns the rules of a judge; whether the format was kept is graded beside its answer."""

    def grade(problem: Problem, text: str, tags: str, style: str) -> Grade:
        form = parse_response(text, tags, style)
        parsed, correct, reason, score = judge(problem, text, tags, form)
        reason = form.reason if correct else reason
        return Grade(parsed, Verdict(correct, form.format_ok, reason), score)

    return grade


def strict(grade: Grader) -> Grader:
    """Returns the same rules, under which an answer outside of the format is wrong."""

    def graded(problem: Problem, text: str, tags: str, style: str) -> Grade:
        found = grade(problem, text, tags, style)
        if found.verdict.format_ok:
            return found
        score = None if found.score is None else 0.0
        return replace(found, verdict=replace(found.verdict, correct=False), score=score)

    return graded


def rules_of(judge: Judge, headline: str = "flexible") -> dict[str, Grader]:
    """Returns the rules of a judge by name: the headline's, and "strict"."""
    grade = grader_of(judge)
    return {headline: grade, "strict": strict(grade)}


# ---- where a response says what its answer is ----------------------------------------------------

MAX_BOX = 1000  # characters in which a box must be closed
MAX_TRIES = 16  # candidates looked at for each kind of marker, from the end
AFTER_PHRASE = 200  # characters after "answer is" in which the answer must begin
BRACE = re.compile(r"[{}]")
WRAPPED = re.compile(r"\\(?:boxed|text|textbf|mathrm)\{([^{}]{0,200})\}")


class Marked(NamedTuple):
    """The text that a marker points at. Of two the later one counts.

    position: of a block its end, so that it rules over markers inside it.
    """

    position: int
    text: str


def answer_block(text: str) -> Marked | None:
    """Returns the last closed <answer> block that is not empty."""
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
    r"""Returns the last closed `\boxed{}`."""
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


def blocks(text: str) -> list[Marked]:
    """Returns the last answer block and the last box, as far as there are any."""
    return [found for find in (answer_block, box) if (found := find(text))]


def phrases(text: str, phrase: str = "answer is") -> list[Marked]:
    """Returns what follows the phrase, in any case: its last occurrences, the last one first."""
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


# ---- what counts of a response -------------------------------------------------------------------

MAX_QUESTIONS = 16  # occurrences of "Question:" looked at
END_TOKENS = (
    "<|im_end|>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<end_of_turn>",
)  # fmt: skip


def final_part(text: str, tags: str) -> str:
    """Returns a response up to its end token or the next `Question:`, without its thought."""
    ends = [at for token in END_TOKENS if (at := text.find(token)) >= 0]
    text = text[: min(ends)] if ends else text
    opening, closing = TAGS[tags]
    at = -1
    for _ in range(MAX_QUESTIONS):
        at = text.find("Question:", at + 1)
        if at < 0:
            break
        closed, opened = text.find(closing, at), text.find(opening, at)
        if closed >= 0 and not 0 <= opened < closed:  # a thought may quote a question
            at = closed
        elif text[:at].strip():
            text = text[:at]
            break
    return text.rpartition(closing)[2]


# ---- short texts, but for case, spacing and punctuation ------------------------------------------

MAX_TEXT = 4000  # characters
QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-", "‐": "-", "…": "..."}
)
SPACE_BEFORE = re.compile(r" (?=[.,;:!?])")


def normal_text(text: str) -> str:
    """Returns NFC, case folded, single spaces, plain quotes; no quotes or stops around it."""
    text = composed(text).translate(QUOTES).casefold()
    text = " ".join(composed(text).split())
    text = SPACE_BEFORE.sub("", text)
    return text.rstrip(".,;:!? \"'*_`").lstrip("\"' *_`") or text


def same_text(one: str, other: str) -> bool:
    """Tells whether two texts are equal once normalised; a text over the cap equals none."""
    if max(len(one), len(other)) > MAX_TEXT:
        return False
    return normal_text(one) == normal_text(other)
