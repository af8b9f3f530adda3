"""Episode → Example. Pure, so training data can be rebuilt from episodes without a critic.

A training prompt is always the attempt's own prompt: nothing a critic was shown gets into it.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from mlxreflect.records import Episode, Example, Messages, Turn

LEAKS = (
    "expected answer", "the answer was given", "answer given above", "as provided",
    "given answer", "provided answer", "previous attempt", "according to the feedback",
)  # fmt: skip
MIN_WORKING = 2  # characters of thought; less only restates the answer


def leak(text: str, spans: dict[str, list[int]], style: str) -> str:
    """Why a rewrite gives away that it was helped, or has no working; empty when it does not."""
    lowered = text.lower()
    for phrase in LEAKS:
        if re.search(rf"\b{phrase}\b", lowered):  # not "has provided"
            return f"the rewrite says {phrase!r}"
    start, end = spans.get("think", [0, 0])
    if style != "direct" and len(text[start:end].strip()) < MIN_WORKING:
        return "the rewrite only restates the answer"
    return ""


def preference(episode: Episode, chosen: Turn, rejected: Turn) -> Example:
    """chosen ≻ rejected, both as answers to the first attempt's prompt."""
    return Example(
        kind="preference",
        prompt=episode.turns[0].messages,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_ids=chosen.token_ids,
        rejected_ids=rejected.token_ids,
        source=source(episode, chosen, rejected),
    )


def completion(episode: Episode, turn: Turn, weight: float = 1.0) -> Example:
    """A text to imitate, as an answer to the first attempt's prompt."""
    return Example(
        kind="sft",
        prompt=episode.turns[0].messages,
        completion=turn.text,
        completion_ids=turn.token_ids,
        weight=weight,
        source=source(episode, turn),
    )


def source(episode: Episode, *turns: Turn) -> dict[str, object]:
    return {
        "problem": episode.problem.id,
        "epoch": episode.epoch,
        "wave": episode.wave,
        "turns": [turn.index for turn in turns],
    }


def r3_pairs(episode: Episode) -> Iterator[Example]:
    """R³: each rewrite that passed, against the sample that opened its cycle."""
    by_index = {turn.index: turn for turn in episode.turns}
    for turn in episode.turns:
        if turn.role == "rewrite" and turn.verdict and turn.verdict.passed:
            yield preference(episode, turn, opener(by_index, turn))


def preflexor_pairs(episode: Episode, only_wrong: bool) -> Iterator[Example]:
    """PRefLexOR: a teacher's solution that passed, against the policy's own attempt.

    only_wrong: not where the attempt passed too, or nobody could say whether it did.
    """
    attempts = [turn for turn in episode.turns if turn.role == "attempt"]
    taught = [turn for turn in episode.turns if turn.role in ("answer", "ground")]
    for rejected, chosen in product(attempts, taught):
        fine = chosen.verdict is not None and chosen.verdict.passed
        wrong = rejected.verdict is not None and not rejected.verdict.passed
        if fine and (wrong or not only_wrong):
            yield replace(preference(episode, chosen, rejected), prompt=rejected.messages)


def opener(by_index: dict[int, Turn], turn: Turn) -> Turn:
    """The policy's sample (attempt or verify) from which a chain of rewrites began."""
    while turn.role not in ("attempt", "verify"):
        assert turn.parent is not None  # every chain begins at a sample
        turn = by_index[turn.parent]
    return turn


def trl_preference(example: Example) -> dict[str, object]:
    """TRL's conversational preference form."""
    return {
        "prompt": example.prompt,
        "chosen": answer(example.chosen),
        "rejected": answer(example.rejected),
    }


def trl_sft(example: Example) -> dict[str, object]:
    """TRL's conversational prompt-completion form."""
    return {
        "prompt": example.prompt,
        "completion": answer(example.completion),
    }


def answer(text: str | None) -> Messages:
    """An assistant's message. Half a character (a lone surrogate) becomes �: other readers of
    JSON give the whole file up for one."""
    clean = (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return [{"role": "assistant", "content": clean}]
