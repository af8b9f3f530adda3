"""ReflectEvo's data (arXiv 2505.16475): instructions, stored reflections, examples, exported rows.

The pool has 32 instructions, composed of parts as the paper's is: how deep to verify (2), which
kind of error to look for (8), and a plan at a high or a low level (2). An id names the three parts.

Each example begins at a failed attempt, of which reflections were sampled, each with one retry. D+
is a reflection whose retry is right; D± one whose retry is right beside one whose retry is wrong;
Dpref two whose retries are right, of which the judge prefers one. All builders are pure.
"""

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice, permutations, product
from typing import Any, NamedTuple

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Episode, Example, Messages, Problem, Turn
from mlxreflect.data.forms import whole
from mlxreflect.data.rows import Row, local_path, read_file
from mlxreflect.methods.base import completion, passed, preference, source

# Problem and attempt → the prompt that asks to look at it, as an evaluation words it.
Ask = Callable[[Problem, str], Messages]
Builder = Callable[[Episode, Ask], Iterator[Example]]

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
    """Returns `count` ids out of these (none: the whole pool), each once before any comes again."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(list(names or POOL), len(names or POOL))
    return drawn[:count]


SENTENCE_END = re.compile(r"(?<!\s\d)[.!?][\"')\]]?(?=\s|$)")  # not of "1." in a list


def shortened(text: str, words: int, finish_reason: str | None) -> str:
    """Returns a reflection, one that is too long or was cut off up to its last whole sentence.

    Empty where no sentence ends within so many words.
    """
    ends = [word.end() for word in islice(re.finditer(r"\S+", text), words + 1)]
    if len(ends) <= words and finish_reason != "length":
        return text
    head = text[: ends[:words][-1]] if ends else ""
    last = max((end.end() for end in SENTENCE_END.finditer(head)), default=0)
    return head[:last]


def fault(text: str, words: int) -> str:
    """Returns why a reflection, as `shortened` leaves it, is of no use; empty where it is."""
    if not text:
        return f"no sentence ends within {words} words"
    return "it gives an answer" if "<answer>" in text else ""


class Stored:
    """Reflections of a file, by the id of a problem or by its question as it is shown.

    digest: of the file, since a run must not go on with another. Raises UserError for a file that
    cannot be read, naming the line.
    """

    def __init__(self, path: str) -> None:
        file = local_path(path)
        self.found: dict[str, list[str]] = defaultdict(list)
        for row in read_file(file):
            keys, texts = entry(row)
            for key in keys:
                self.found[key] += texts
        self.digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]

    def of(self, key: str, question: str) -> list[str]:
        return self.found.get(key) or self.found.get(question.strip(), [])


def entry(row: Row) -> tuple[list[str], list[str]]:
    """Returns what names the problem of a row, and its reflections, of which it may have one."""
    said = row.values.get("reflections")
    texts: list[Any] = said if isinstance(said, list) else [said]
    names = (row.values.get(name) for name in ("id", "question"))
    keys = [name.strip() for name in names if isinstance(name, str)]
    if keys and texts and all(isinstance(text, str) and text.strip() for text in texts):
        return keys, texts
    raise UserError(
        f"{row.where}: no problem with reflections",
        'each row holds {"id": "…" or "question": "…", "reflections": "…" or ["…", …]}',
    )


# ---- trials --------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """A reflection on a failed attempt, and the retry that followed it."""

    attempt: Turn
    reflection: Turn
    retry: Turn

    @property
    def right(self) -> bool:
        return passed(self.retry)

    @property
    def key(self) -> tuple[int, str]:
        """Returns the attempt's index and the reflection's words, which make it one reflection."""
        return self.attempt.index, self.reflection.text


def trials(episode: Episode) -> list[Trial]:
    """Returns every reflection on a failed attempt with its retry, in the order of the retries.

    Those of no use are left out: a reflection that says nothing, one on an attempt that had passed.
    """
    by_index: dict[int | None, Turn] = {t.index: t for t in episode.turns if t.error is None}
    found = []
    for turn in by_index.values():
        reflection = by_index.get(turn.parent)
        if turn.role != "retry" or reflection is None or reflection.role != "reflection":
            continue
        attempt = by_index.get(reflection.parent)
        if attempt is not None and reflection.text.strip() and not passed(attempt):
            found.append(Trial(attempt, reflection, turn))
    return found


def right_trials(episode: Episode) -> list[Trial]:
    return [one for one in trials(episode) if one.right]


def helpful(episode: Episode) -> list[Trial]:
    """Returns the reflections that led to a right answer, each once."""
    return firsts(right_trials(episode))


def firsts(found: Sequence[Trial]) -> list[Trial]:
    first: dict[tuple[int, str], Trial] = {}
    for one in found:
        first.setdefault(one.key, one)
    return list(first.values())


def helped_and_not(episode: Episode) -> list[tuple[Trial, Trial]]:
    """Returns, of each failure, reflections that led to a right answer with ones that never did."""
    right = helpful(episode)
    led = {one.key for one in right}
    others = firsts([one for one in trials(episode) if one.key not in led])
    return [(a, b) for a, b in product(right, others) if a.attempt.index == b.attempt.index]


def comparisons(episode: Episode) -> list[tuple[Turn, Turn]]:
    """Returns reflections to be compared: every two on one failure whose retries are right."""
    return [
        (one.reflection, other.reflection)
        for one, other in combinations(helpful(episode), 2)
        if one.attempt.index == other.attempt.index
    ]


# ---- examples ------------------------------------------------------------------------------------


def reflect_and_retry(episode: Episode, ask: Ask) -> Iterator[Example]:
    """Yields D+ for one-stage SFT: failed attempt → reflection and right answer, in one text."""
    for one in right_trials(episode):
        yield Example(
            kind="sft",
            prompt=ask(episode.problem, one.attempt.text),
            completion=f"{one.reflection.text.strip()}\n{one.retry.text}",
            source=source(episode, one.reflection, one.retry),
        )


def right_reflections(episode: Episode, ask: Ask) -> Iterator[Example]:
    """Yields D+ for the first of two stages: failed attempt → reflection."""
    for one in helpful(episode):
        prompt = ask(episode.problem, one.attempt.text)
        yield replace(completion(episode, one.reflection), prompt=prompt)


def right_retries(episode: Episode, ask: Ask) -> Iterator[Example]:
    """Yields D+ for the second of two stages: failed attempt and reflection → right answer."""
    for one in right_trials(episode):
        yield replace(completion(episode, one.retry), prompt=one.retry.messages)


def right_over_wrong(episode: Episode, ask: Ask) -> Iterator[Example]:
    """Yields D±: of two reflections on a failure, that which led to a right answer is chosen."""
    for one, other in helped_and_not(episode):
        yield reflection_pair(episode, ask, one, other)


def preferred_reflections(episode: Episode, ask: Ask) -> Iterator[Example]:
    """Yields Dpref: both answers are right, and the judge preferred one reflection in both orders.

    A comparison is two turns in a row, each the child of the reflection that it was shown first.
    """
    right = {one.reflection.index: one for one in right_trials(episode)}
    said = [turn for turn in episode.turns if turn.role == "prefer"]
    for forth, back in zip(said[::2], said[1::2], strict=False):
        one, other = (right.get(turn.parent or 0) for turn in (forth, back))
        if one is None or other is None or one.reflection.text == other.reflection.text:
            continue
        if (forth.parsed, back.parsed) == ("A", "B"):
            yield reflection_pair(episode, ask, one, other)
        elif (forth.parsed, back.parsed) == ("B", "A"):
            yield reflection_pair(episode, ask, other, one)


def reflection_pair(episode: Episode, ask: Ask, chosen: Trial, rejected: Trial) -> Example:
    """Returns a pair that compares the reflections alone."""
    pair = preference(episode, chosen.reflection, rejected.reflection)
    return replace(pair, prompt=ask(episode.problem, chosen.attempt.text))


# ---- exported rows -------------------------------------------------------------------------------
# Names of the fields are those that the authors' training scripts read.


def reflectevo_rows(
    episode: Episode, examples: Sequence[Example]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file, row). examples: those of this episode; the run's own pairs are Dpref."""
    for one in right_trials(episode):
        yield "d_plus.jsonl", d_plus(episode, one)
    for one, other in helped_and_not(episode):
        yield "d_plus_minus.jsonl", paired(episode, one, other)
    compared = [example.source["turns"] for example in examples if example.kind == "preference"]
    for one, other in permutations(right_trials(episode), 2):
        if [one.reflection.index, other.reflection.index] in compared:
            yield "d_pref.jsonl", paired(episode, one, other)


def begun(episode: Episode, one: Trial) -> dict[str, Any]:
    from mlxreflect.tasks import get_task

    return {
        "id": episode.problem.id,
        "question": whole(get_task(episode.problem.task).show(episode.problem)),
        "answer": whole(episode.problem.gold or ""),
        "first_trial_reasoning": whole(one.attempt.text),
        "first_trial_answer": whole(one.attempt.parsed or ""),
    }


def d_plus(episode: Episode, one: Trial) -> dict[str, Any]:
    return {
        **begun(episode, one),
        "second_trial_reasoning": whole(one.retry.text),
        "second_trial_answer": whole(one.retry.parsed or ""),
        "reflections": whole(one.reflection.text),
        "reason_prompt": [whole(m["content"]) for m in one.attempt.messages],
        "reflect_prompt": reflection_prompt(one),
    }


def paired(episode: Episode, chosen: Trial, rejected: Trial) -> dict[str, Any]:
    row = begun(episode, chosen)
    for side, one in (("chosen", chosen), ("rejected", rejected)):
        row[f"second_trial_reasoning_{side}"] = whole(one.retry.text)
        row[f"second_trial_answer_{side}"] = whole(one.retry.parsed or "")
        row[f"reflection_{side}"] = whole(one.reflection.text)
    return {**row, "reflection_prompt": reflection_prompt(chosen)}


def reflection_prompt(one: Trial) -> str:
    """Returns how the reflection was asked for; empty where its writer saw the answer."""
    if one.reflection.visibility in ("gold_answer", "gold_solution"):
        return ""
    return "\n\n".join(whole(m["content"]) for m in one.reflection.messages)
