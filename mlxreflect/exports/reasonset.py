"""Episodes as rows of REL's ReasonSet (arXiv 2412.04645): a problem and its working, messy and all.

working_out: the first text that was right, as it was written; of an unsolved problem the last one.
final_solution: its tidied form where someone made one, else its answer. iterations: texts it took.
error_description: the first critique, or what a judge said was wrong.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mlxreflect import pairs
from mlxreflect.pairs import whole
from mlxreflect.records import Episode, Example, Turn
from mlxreflect.tasks import get_task
from mlxreflect.train.kept import keep

TRIES = ("attempt", "continue", "rewrite", "retry")
REVIEWS = ("critique", "reflection")


def reasonset_rows(
    episode: Episode, examples: Sequence[Example]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, row), none where not one text was written. examples: made of this episode."""
    written = [turn for turn in episode.turns if turn.error is None]
    tries = [turn for turn in written if turn.role in TRIES]
    if not tries:
        return
    right = next((turn for turn in tries if passed(turn)), None)
    shown = right or tries[-1]
    tidied = next((t for t in reversed(written) if t.role == "integrate" and passed(t)), None)
    reviews = (t.text if t.role in REVIEWS else t.parsed for t in written
               if t.role in (*REVIEWS, "judge"))  # fmt: skip
    row = {
        "problem": whole(get_task(episode.problem.task).show(episode.problem)),
        "ground_truth": optional(episode.problem.gold),
        "working_out": whole(shown.text),
        "final_solution": whole(tidied.text) if tidied else optional(shown.parsed),
        "is_correct": right is not None,
        "iterations": tries.index(shown) + 1,
        "error_description": optional(next(filter(None, reviews), None)),
    }
    if right is not None:
        own = made_of(examples, "sft", right) or pairs.completion(episode, right)
        row = keep(own, row)
    yield "reasonset.jsonl", row


def made_of(examples: Sequence[Example], kind: str, *turns: Turn) -> Example | None:
    """The run's own example of some turns: as it was asked, masked and weighted there."""
    indices = [turn.index for turn in turns]
    found = (e for e in examples if e.kind == kind and e.source.get("turns") == indices)
    return next(found, None)


def passed(turn: Turn) -> bool:
    return turn.verdict is not None and turn.verdict.passed


def optional(text: str | None) -> str | None:
    return None if text is None else whole(text)
