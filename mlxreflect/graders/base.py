"""Rules that count an answer only where the format asked for was kept.

Where a response says what its answer is: blocks, boxes and phrases, searched from the end.

What counts of a response, and short texts compared but for case, spacing and punctuation.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from mlxreflect.core.records import Problem, Verdict
from mlxreflect.core.text import composed
from mlxreflect.prompts.messages import ANSWER, TAGS


@dataclass(frozen=True)
class Grade:
    """parsed: the answer read from the text (normalised), None when there is none to read.

    score: how near an answer comes, 0 to 1 (token F1), where the rules have such a measure.
    """

    parsed: str | None
    verdict: Verdict
    score: float | None = None


# (problem, text, tags, style) → Grade; never raises, linear in len(text).
Grader = Callable[[Problem, str, str, str], Grade]


def strict(grade: Grader) -> Grader:
    """The same rules, with an answer outside of the format being wrong."""

    def graded(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
        found = grade(problem, text, tags, style)
        if found.verdict.format_ok:
            return found
        score = None if found.score is None else 0.0
        return replace(found, verdict=replace(found.verdict, correct=False), score=score)

    return graded


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


MAX_TEXT = 4000  # characters
MAX_QUESTIONS = 16  # occurrences of "Question:" looked at
END_TOKENS = (
    "<|im_end|>",
    "</s>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<end_of_turn>",
)
QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-", "‐": "-", "…": "..."}
)
SPACE_BEFORE = re.compile(r" (?=[.,;:!?])")


def final_part(text: str, tags: str) -> str:
    """What counts of a response: up to its end token or the next `Question:`, after the thought."""
    ends = [at for token in END_TOKENS if (at := text.find(token)) >= 0]
    text = cut_at_question(text[: min(ends)] if ends else text, tags)
    _, _, after = text.rpartition(TAGS[tags][1])
    return after


def cut_at_question(text: str, tags: str) -> str:
    """Leave out a next question that the model goes on to pose; a thought may quote one."""
    opening, closing = TAGS[tags]
    at = -1
    for _ in range(MAX_QUESTIONS):
        at = text.find("Question:", at + 1)
        if at < 0:
            break
        closed, opened = text.find(closing, at), text.find(opening, at)
        if closed >= 0 and not 0 <= opened < closed:  # inside a thought
            at = closed
        elif text[:at].strip():
            return text[:at]
    return text


def normal_text(text: str) -> str:
    """NFC, case folded, single spaces, plain quotes; no quotes, marks or stops around it."""
    text = composed(text).translate(QUOTES).casefold()
    text = " ".join(composed(text).split())
    text = SPACE_BEFORE.sub("", text)
    return text.rstrip(".,;:!? \"'*_`").lstrip("\"' *_`") or text


def same_text(one: str, other: str) -> bool:
    """Whether two texts are equal once normalised; a text over the cap equals none."""
    if max(len(one), len(other)) > MAX_TEXT:
        return False
    return normal_text(one) == normal_text(other)
