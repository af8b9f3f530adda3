"""Episodes as ReflectEvo's training rows (arXiv 2505.16475): D+, D± and Dpref.

Each begins at a failed attempt, of which reflections were sampled, each with one retry. D+: a
reflection whose retry is right. D±: one whose retry is right beside one whose retry is wrong, as
the run pairs them.
Dpref: two whose retries are right, of which the run preferred one (it trained on that pair).
Names of the fields are those that the authors' training scripts read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from mlxreflect.core.records import Episode, Example, Turn
from mlxreflect.data.kept import bare_example, keep
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.examples import whole
from mlxreflect.methods.reasonset import made_of
from mlxreflect.methods.reflected import Trial, helped_and_not, trials
from mlxreflect.tasks import get_task

Row = dict[str, Any]


def reflectevo_rows(episode: Episode, examples: Sequence[Example]) -> Iterator[tuple[str, Row]]:
    """(file, row). examples: what the run made of this episode."""
    found = trials(episode)
    for one in found:
        if one.right:
            turns = (one.reflection, one.retry)
            # In one stage both are one example, in two stages each is.
            told = (made_of(examples, "sft", *part) for part in (turns, turns[:1], turns[1:]))
            own = [example for example in told if example]
            yield "d_plus.jsonl", kept(episode, d_plus(episode, one), own, *turns)
    for one, other in helped_and_not(episode):
        turns = (one.reflection, other.reflection)
        made = made_of(examples, "preference", *turns)
        own = [made] if made else []
        yield "d_plus_minus.jsonl", kept(episode, paired(episode, one, other), own, *turns)
    for one, other in permutations([one for one in found if one.right], 2):
        turns = (one.reflection, other.reflection)
        if made := made_of(examples, "preference", *turns):
            yield "d_pref.jsonl", kept(episode, paired(episode, one, other), [made], *turns)


def begun(episode: Episode, one: Trial) -> Row:
    task = get_task(episode.problem.task)
    return {
        "id": episode.problem.id,
        "question": whole(task.show(episode.problem)),
        "answer": whole(episode.problem.gold or ""),
        "first_trial_reasoning": whole(one.attempt.text),
        "first_trial_answer": whole(one.attempt.parsed or ""),
    }


def d_plus(episode: Episode, one: Trial) -> Row:
    return {
        **begun(episode, one),
        "second_trial_reasoning": whole(one.retry.text),
        "second_trial_answer": whole(one.retry.parsed or ""),
        "reflections": whole(one.reflection.text),
        "reason_prompt": [whole(m["content"]) for m in one.attempt.messages],
        "reflect_prompt": asked(one),
    }


def paired(episode: Episode, chosen: Trial, rejected: Trial) -> Row:
    row = begun(episode, chosen)
    for side, one in (("chosen", chosen), ("rejected", rejected)):
        row[f"second_trial_reasoning_{side}"] = whole(one.retry.text)
        row[f"second_trial_answer_{side}"] = whole(one.retry.parsed or "")
        row[f"reflection_{side}"] = whole(one.reflection.text)
    row["reflection_prompt"] = asked(chosen)
    return row


def asked(one: Trial) -> str:
    """How the reflection was asked for; empty where its writer saw the answer."""
    if one.reflection.visibility in ("gold_answer", "gold_solution"):
        return ""
    return "\n\n".join(whole(m["content"]) for m in one.reflection.messages)


def kept(episode: Episode, row: Row, own: list[Example], *turns: Turn) -> Row:
    """The row with the run's own examples of it; where it made none, with its source alone."""
    bare = bare_example(row)
    if not own and bare:
        own = [replace(bare, source=pairs.source(episode, *turns))]
    return keep(own[0], row, own[1:]) if own else row
