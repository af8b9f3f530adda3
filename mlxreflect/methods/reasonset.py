"""Episodes as rows of REL's ReasonSet (arXiv 2412.04645): a problem and its working, messy and all.

working_out: the first text that was right, as it was written; of an unsolved problem the last one.
final_solution: its tidied form where someone made one, else its answer. iterations: texts it took.
error_description: the first critique, or what a judge said was wrong.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mlxreflect.core.records import Episode, Example, Turn
from mlxreflect.data.kept import keep
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.examples import passed, whole
from mlxreflect.prompts.messages import parse_response
from mlxreflect.tasks import get_task

FILE = "reasonset.jsonl"
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
    own = example_of(episode, examples, right)
    if own is not None:
        row = keep(own, row, [example for example in examples if example is not own])
    yield FILE, row


def example_of(episode: Episode, examples: Sequence[Example], right: Turn | None) -> Example | None:
    """What the row's working is to a trainer: the run's own example of it, or one made of it."""
    texts = [example for example in examples if example.kind == "sft"]
    if right is not None and (own := made_of(texts, "sft", right)):
        return own
    if texts:  # of another turn, such as the tidied one
        return texts[0]
    # REL explores under another prompt than its evaluation's.
    if right is not None and episode.recipe != "rel":
        return pairs.completion(episode, right)
    return next(iter(examples), None)


def worked_row(example: Example) -> dict[str, Any] | None:
    """The row of an example that no episode has: a person's worked solution."""
    if example.kind != "sft" or not example.prompt:
        return None
    text = example.completion or ""
    row = {
        "problem": whole(example.prompt[-1]["content"]),
        "ground_truth": optional(parse_response(text, style="direct").answer),
        "working_out": whole(text), "final_solution": None, "is_correct": True, "iterations": 1,
        "error_description": None,
    }  # fmt: skip
    return keep(example, row)


def made_of(examples: Sequence[Example], kind: str, *turns: Turn) -> Example | None:
    """The run's own example of some turns: as it was asked, masked and weighted there."""
    indices = [turn.index for turn in turns]
    found = (e for e in examples if e.kind == kind and e.source.get("turns") == indices)
    return next(found, None)


def optional(text: str | None) -> str | None:
    return None if text is None else whole(text)
