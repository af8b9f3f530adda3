"""What counts of a response, and short texts compared but for case, spacing and punctuation."""

import re

from mlxreflect.characters import composed
from mlxreflect.prompts import TAGS

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
