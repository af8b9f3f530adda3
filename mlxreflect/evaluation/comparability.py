"""What two evaluations must share to be compared: tasks, questions, prompts, decoding, grading."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.arms import Arm, Evaluation

# Keys of results.json that both sides must share; what tells a person most comes first.
SETUP = ("decoding", "spec", "rules", "prompt_hash")
# What may differ while the prompts stay as they are.
AFTER_PROMPT = {"temperature", "top_p", "max_new_tokens", "batch", "samples", "stop", "rules",
                "decoding"}  # fmt: skip


class Difference(NamedTuple):
    """A key of the setup, and its value on either side (None where a side has none)."""

    key: str
    a: Any
    b: Any


def pair_tasks(arms: Sequence[Arm]) -> list[list[Evaluation]]:
    """Of each task, each arm's evaluation. Raises UserError where the arms have other tasks."""
    first = arms[0]
    if all(len(arm.evaluations) == 1 for arm in arms):
        return [[next(iter(arm.evaluations.values())) for arm in arms]]
    for arm in arms[1:]:
        if odd := sorted(set(first.evaluations) ^ set(arm.evaluations)):
            only = first if odd[0] in first.evaluations else arm
            raise UserError(
                f"not the same tasks: {odd[0] or 'one without a name'} is only in {only.path}",
                "evaluate all arms on the same tasks, or name the folders of one task",
            )
    return [[arm.evaluations[task] for arm in arms] for task in first.evaluations]


def check_alike(a: Evaluation, b: Evaluation, differ: Sequence[str]) -> list[Difference]:
    """Refuse what cannot be compared; returns the differences that are intended.

    differ: keys of the setup that may differ, such as spec.prompt.style. Raises UserError.
    """
    differences = setup_differences(a, b)
    refused = [d for d in differences if not intended(d.key, differ)]
    setup = setup_fault(a, b, refused)
    if questions := question_fault(a, b):
        raise UserError(
            "; ".join(filter(None, [questions, setup])),
            "evaluate both on the same spec, limit and seed, and to the end",
        )
    if setup:
        raise UserError(setup, hint_for([d.key for d in refused]))
    return [d for d in differences if d not in refused]


def hint_for(keys: Sequence[str]) -> str:
    """keys: that differ. One table that holds all of them is named, or each of them."""
    asked = [key for key in keys if key != "prompt_hash"]
    if not asked:
        return (
            "evaluate both with the same prompts; where only the models' chat templates differ: "
            "--differ prompt_hash"
        )
    levels = zip(*(key.split(".") for key in asked), strict=False)
    shared = ".".join(parts[0] for parts in takewhile(lambda parts: len({*parts}) == 1, levels))
    names = [shared] if "." in shared else {bare(key): key for key in asked}.values()
    given = " ".join(f"--differ {name}" for name in names)
    return (
        f"evaluate both alike, or, where that is what you compare: {given}; "
        "bare samples.jsonl files are compared regardless"
    )


def setup_differences(a: Evaluation, b: Evaluation) -> list[Difference]:
    """Where two evaluations' setups differ, as far as both tell."""
    found = []
    if a.samples != b.samples:
        found.append(Difference("decoding.samples", a.samples, b.samples))
    for part in SETUP:
        if a.results and b.results and part in a.results and part in b.results:
            left, right = (flatten({part: one.results[part]}) for one in (a, b) if one.results)
            found += [
                Difference(key, left.get(key), right.get(key))
                for key in {**left, **right}
                if left.get(key) != right.get(key) and key not in [d.key for d in found]
            ]
    return found


def unchecked(a: Evaluation, b: Evaluation) -> list[str]:
    """What of the setup one side does not tell."""
    told = [one.results or {} for one in (a, b)]
    # Results of before there were several rule sets name none.
    wanted = [part for part in SETUP if part != "rules" or any(part in one for one in told)]
    return [part for part in wanted if not all(part in one for one in told)]


def intended(key: str, differ: Sequence[str]) -> bool:
    """Whether a key, or a table it is in, is among those that may differ.

    decoding and spec share keys, and both prefixes may be left out. Where anything of the spec
    differs, so do the prompts that follow from it.
    """
    if key == "prompt_hash":
        return any(bare(given) not in AFTER_PROMPT for given in differ)
    head, plain = key.partition(".")[0], bare(key)
    return any(
        given == head or plain == bare(given) or plain.startswith(f"{bare(given)}.")
        for given in differ
    )


def bare(key: str) -> str:
    head, _, rest = key.partition(".")
    return rest if head in ("spec", "decoding") and rest else key


def check_keys(evaluations: Sequence[Evaluation], differ: Sequence[str]) -> None:
    """Refuse a --differ that no setup has: a slip there would look like a check that was made."""
    known = [
        key
        for one in evaluations
        for part in SETUP
        if one.results and part in one.results
        for key in flatten({part: one.results[part]})
    ]
    settable = {"decoding.samples", *known} - {"prompt_hash"}
    for given in differ:
        fits = given in SETUP or any(intended(key, [given]) for key in settable)
        if known and not fits:
            raise UserError(
                f"--differ {given}: no such key in these evaluations",
                f"keys are: {', '.join(dict.fromkeys(known))}",
            )


def setup_fault(a: Evaluation, b: Evaluation, differences: Sequence[Difference]) -> str:
    """What differs in prompt, decoding, spec or grading, in words."""
    if not differences:
        return ""
    first, *more = differences
    return f"{first.key} differs: {show(first.a)} in {a.path}, {show(first.b)} in {b.path}" + (
        f" (also: {', '.join(d.key for d in more)})" if more else ""
    )


def show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def question_fault(a: Evaluation, b: Evaluation) -> str:
    """Which questions only one side answered, in words."""
    only_a = [key for key in a.answers if key not in b.answers]
    only_b = [key for key in b.answers if key not in a.answers]
    if not only_a and not only_b:
        return ""
    task, problem = (only_a or only_b)[0]
    return (
        f"not the same questions: {len(only_a)} only in {a.path}, {len(only_b)} only in {b.path}, "
        f"such as {f'{task} ' if task else ''}{problem}"
    )
