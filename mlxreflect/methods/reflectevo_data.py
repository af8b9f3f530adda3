"""ReflectEvo's reflections: a pool of 32 instructions, and reflections that were kept in a file.

The pool is composed of parts, as the paper's is (arXiv 2505.16475): how deep to verify (2), which
kind of error to look for (8), and a plan at a high or a low level (2). An id names the three parts.

Episode → Example for ReflectEvo (arXiv 2505.16475): D+, D± and Dpref. Pure, as `pairs` is.

Prompts are what asks to look at an attempt or to retry it, worded as an evaluation words it.

Episodes as ReflectEvo's training rows (arXiv 2505.16475): D+, D± and Dpref.

Each begins at a failed attempt, of which reflections were sampled, each with one retry. D+: a
reflection whose retry is right. D±: one whose retry is right beside one whose retry is wrong, as
the run pairs them.
Dpref: two whose retries are right, of which the run preferred one (it trained on that pair).
Names of the fields are those that the authors' training scripts read.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any, NamedTuple

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Episode, Example, Messages, Problem, Turn
from mlxreflect.data.kept import bare_example, keep
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.examples import completion, passed, preference, source, whole
from mlxreflect.methods.rel_worked import made_of
from mlxreflect.tasks import get_task

DEPTHS = {
    "skim": "Look through the attempt once and find the place where it goes astray.",
    "trace": (
        "Go through the attempt line by line, work each line out anew, and stop at the first that "
        "does not hold."
    ),
}
ERRORS = {
    "reading": "Ask first whether the question was misread, or a condition of it left out.",
    "facts": "Ask first whether a fact or a rule that it relies on is untrue, or does not apply.",
    "logic": "Ask first whether a conclusion is drawn that its premises do not give.",
    "arithmetic": "Ask first whether a number was worked out or carried over wrongly.",
    "units": "Ask first whether signs, units or the order of operations were mixed up.",
    "missing": "Ask first whether a step or a case was passed over.",
    "goal": "Ask first whether it answers another question than the one that was asked.",
    "form": "Ask first whether the answer was written down otherwise than asked for.",
}
CLOSINGS = {
    "outline": "Close with the general way in which you will go about it next time.",
    "steps": "Close with the single steps that you will take next time, in their order.",
}
# id → instruction
POOL: dict[str, str] = {
    f"{depth}-{error}-{plan}": f"{DEPTHS[depth]} {ERRORS[error]} {CLOSINGS[plan]}"
    for depth, error, plan in product(DEPTHS, ERRORS, CLOSINGS)
}


def draw_instructions(names: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` ids out of these (none: the whole pool), each once before any comes again."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(list(names or POOL), len(names or POOL))
    return drawn[:count]


def fault(text: str, words: int, finish_reason: str | None) -> str:
    """Why a reflection is of no use; empty where it is."""
    if finish_reason == "length":
        return "cut off at the token limit"
    if (count := len(text.split())) > words:
        return f"{count} words, more than {words}"
    return "it gives an answer" if "<answer>" in text else ""


class Stored:
    """Reflections by the id of a problem, or by its question as it is shown.

    digest: of the file, for a run must not go on with another.
    Raises UserError for a file that cannot be read, naming the line.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: dict[str, list[str]] = {}
        file = Path(path).expanduser() if path.startswith("~/") else Path(path)
        try:
            data = file.read_bytes()
            for number, row in enumerate(read_rows(file, torn=False), 1):
                for key, texts in entries(row, f"{path}, row {number}"):
                    self.found.setdefault(key, []).extend(texts)
        except OSError as error:
            raise UserError(
                f"reflectevo.stored = {path!r} cannot be read: {error.strerror}",
                "name a JSONL file with id (or question) and reflections in each row",
            ) from None
        self.digest = hashlib.sha256(data).hexdigest()[:16]

    def of(self, key: str, question: str) -> list[str]:
        return self.found.get(key) or self.found.get(question.strip(), [])


def entries(row: Mapping[str, Any], at: str) -> Iterator[tuple[str, list[str]]]:
    """(problem, reflections) of a row; a row may have one reflection or several."""
    said = row.get("reflections")
    texts = [said] if isinstance(said, str) else said
    keys = [row[name] for name in ("id", "question") if isinstance(row.get(name), str)]
    fine = isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)
    if not keys or not fine or not isinstance(texts, list):
        raise UserError(
            f"{at}: no problem with reflections",
            'each row holds {"id": "…" or "question": "…", "reflections": "…" or ["…", …]}',
        )
    for key in keys:
        yield key.strip(), texts


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
            yield "d_plus.jsonl", kept_row(episode, d_plus(episode, one), own, *turns)
    for one, other in helped_and_not(episode):
        turns = (one.reflection, other.reflection)
        made = made_of(examples, "preference", *turns)
        own = [made] if made else []
        yield "d_plus_minus.jsonl", kept_row(episode, paired(episode, one, other), own, *turns)
    for one, other in permutations([one for one in found if one.right], 2):
        turns = (one.reflection, other.reflection)
        if made := made_of(examples, "preference", *turns):
            yield "d_pref.jsonl", kept_row(episode, paired(episode, one, other), [made], *turns)


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


def kept_row(episode: Episode, row: Row, own: list[Example], *turns: Turn) -> Row:
    """The row with the run's own examples of it; where it made none, with its source alone."""
    bare = bare_example(row)
    if not own and bare:
        own = [replace(bare, source=pairs.source(episode, *turns))]
    return keep(own[0], row, own[1:]) if own else row
