"""Episode → Example for ReflectEvo (arXiv 2505.16475): D+, D± and Dpref. Pure, as `pairs` is.

Prompts are what asks to look at an attempt or to retry it, worded as an evaluation words it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import NamedTuple

from mlxreflect.core.records import Episode, Example, Messages, Problem, Turn
from mlxreflect.methods.examples import completion, passed, preference, source

Ask = Callable[[Problem, str], Messages]  # problem and attempt → the prompt of an evaluation


class Trial(NamedTuple):
    """A reflection on a failed attempt, and the retry that followed it."""

    attempt: Turn
    reflection: Turn
    retry: Turn

    @property
    def right(self) -> bool:
        return passed(self.retry)


def trials(episode: Episode) -> list[Trial]:
    """Every reflection on a failed attempt with its retry, in the order of the retries.

    Without those of no use: a reflection that says nothing, one on an attempt that had passed.
    """
    by_index = {turn.index: turn for turn in episode.turns if turn.error is None}
    found = []
    for turn in by_index.values():
        reflection = by_index.get(-1 if turn.parent is None else turn.parent)
        if turn.role != "retry" or reflection is None or reflection.role != "reflection":
            continue
        attempt = by_index.get(-1 if reflection.parent is None else reflection.parent)
        if attempt is not None and reflection.text.strip() and not passed(attempt):
            found.append(Trial(attempt, reflection, turn))
    return found


def helpful(episode: Episode) -> list[Trial]:
    """Reflections that led to a right answer, each once."""
    found: dict[tuple[int, str], Trial] = {}
    for one in trials(episode):
        if one.right:
            found.setdefault(key_of(one), one)
    return list(found.values())


def key_of(one: Trial) -> tuple[int, str]:
    """Which reflection on which attempt."""
    return one.attempt.index, one.reflection.text


def reflect_and_retry(episode: Episode, ask: Ask) -> Iterator[Example]:
    """D+ for one-stage SFT: failed attempt → reflection and right answer, in one text."""
    for one in trials(episode):
        if one.right:
            yield Example(
                kind="sft",
                prompt=ask(episode.problem, one.attempt.text),
                completion=f"{one.reflection.text.strip()}\n{one.retry.text}",
                source=source(episode, one.reflection, one.retry),
            )


def right_reflections(episode: Episode, ask: Ask) -> Iterator[Example]:
    """D+ for the first of two stages: failed attempt → a reflection that led to a right answer."""
    for one in helpful(episode):
        prompt = ask(episode.problem, one.attempt.text)
        yield replace(completion(episode, one.reflection), prompt=prompt)


def right_retries(episode: Episode) -> Iterator[Example]:
    """D+ for the second of two stages: failed attempt and reflection → the right answer."""
    for one in trials(episode):
        if one.right:
            yield replace(completion(episode, one.retry), prompt=one.retry.messages)


def right_over_wrong(episode: Episode, ask: Ask) -> Iterator[Example]:
    """D±: of two reflections on a failure, that which led to a right answer over the other."""
    for one, other in helped_and_not(episode):
        yield reflection_pair(episode, ask, one, other)


def helped_and_not(episode: Episode) -> list[tuple[Trial, Trial]]:
    """On each failure, a reflection that led to a right answer and one that never did, once."""
    right = helpful(episode)
    led = {key_of(one) for one in right}
    others: dict[tuple[int, str], Trial] = {}
    for one in trials(episode):
        if key_of(one) not in led:
            others.setdefault(key_of(one), one)
    found = product(right, others.values())
    return [(one, other) for one, other in found if one.attempt.index == other.attempt.index]


def preferred_reflections(episode: Episode, ask: Ask) -> Iterator[Example]:
    """Dpref: both answers are right, and the judge preferred one reflection in both orders.

    A comparison is two turns in a row, each the child of the reflection that it was shown first.
    """
    right = {one.reflection.index: one for one in trials(episode) if one.right}
    said = [turn for turn in episode.turns if turn.role == "prefer"]
    for forth, back in zip(said[::2], said[1::2], strict=False):
        one, other = (right.get(turn.parent or 0) for turn in (forth, back))
        if one is None or other is None or one.reflection.text == other.reflection.text:
            continue
        if (forth.parsed, back.parsed) == ("A", "B"):
            yield reflection_pair(episode, ask, one, other)
        elif (forth.parsed, back.parsed) == ("B", "A"):
            yield reflection_pair(episode, ask, other, one)


def comparisons(episode: Episode) -> list[tuple[Turn, Turn]]:
    """Reflections to be compared: every two on one failure whose retries are right."""
    return [
        (one.reflection, other.reflection)
        for one, other in combinations(helpful(episode), 2)
        if one.attempt.index == other.attempt.index
    ]


def reflection_pair(episode: Episode, ask: Ask, chosen: Trial, rejected: Trial) -> Example:
    """The reflections alone are compared."""
    pair = preference(episode, chosen.reflection, rejected.reflection)
    return replace(pair, prompt=ask(episode.problem, chosen.attempt.text))
