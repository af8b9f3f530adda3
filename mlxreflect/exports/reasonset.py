"""Episodes as rows of REL's ReasonSet (arXiv 2412.04645): a problem and its working, messy and all.

working_out: the first text that was right, as it was written; of an unsolved problem the last one.
final_solution: its tidied form where someone made one, else its answer. iterations: texts it took.
error_description: the first critique.
"""

from typing import Any

from mlxreflect import pairs
from mlxreflect.pairs import whole
from mlxreflect.records import Episode, Turn
from mlxreflect.tasks import get_task
from mlxreflect.train.kept import keep

TRIES = ("attempt", "continue", "rewrite", "retry")
REVIEWS = ("critique", "reflection")


def reasonset_row(episode: Episode) -> dict[str, Any] | None:
    """None where not one text was written."""
    written = [turn for turn in episode.turns if turn.error is None]
    tries = [turn for turn in written if turn.role in TRIES]
    if not tries:
        return None
    right = next((turn for turn in tries if passed(turn)), None)
    shown = right or tries[-1]
    tidied = next((t for t in reversed(written) if t.role == "integrate" and passed(t)), None)
    review = next((turn for turn in written if turn.role in REVIEWS), None)
    row = {
        "problem": whole(get_task(episode.problem.task).show(episode.problem)),
        "ground_truth": optional(episode.problem.gold),
        "working_out": whole(shown.text),
        "final_solution": whole(tidied.text) if tidied else optional(shown.parsed),
        "is_correct": right is not None,
        "iterations": tries.index(shown) + 1,
        "error_description": optional(review.text if review else None),
    }
    return keep(pairs.completion(episode, right), row) if right else row


def passed(turn: Turn) -> bool:
    return turn.verdict is not None and turn.verdict.passed


def optional(text: str | None) -> str | None:
    return None if text is None else whole(text)
