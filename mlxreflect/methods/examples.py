"""Episode → Example, as far as all methods share it. Pure: no critic is needed to do it again.

A training prompt is the attempt's own prompt: nothing a critic was shown gets into it.
"""

from dataclasses import replace

from mlxreflect.core.records import Episode, Example, Turn
from mlxreflect.prompts.parsing import ANSWER


def as_asked(turn: Turn, style: str) -> Turn:
    """A helped text as an attempt is asked for: in the style "direct" its answer alone."""
    span = turn.spans.get("answer")
    if style != "direct" or span is None:
        return turn
    alone = "".join((ANSWER[0], turn.text[slice(*span)].strip(), ANSWER[1]))
    return turn if alone == turn.text else replace(turn, text=alone, token_ids=None)


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


def passed(turn: Turn) -> bool:
    return turn.verdict is not None and turn.verdict.passed
