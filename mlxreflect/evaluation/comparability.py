"""Comparability: two arms must share tasks, problems, prompts, decoding and grading."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.arms import Arm

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


def pair_tasks(arms: Sequence[Sequence[Arm]]) -> dict[str, list[Arm]]:
    """Task → each one's arm of it, in the first one's order.

    arms: of each folder its arms, one a task. Raises UserError where they are of other tasks.
    """
    first = arms[0]
    if all(len(group) == 1 for group in arms):
        return {first[0].task: [group[0] for group in arms]}
    parts = [{arm.part: arm for arm in group} for group in arms]
    for group, other in zip(parts[1:], arms[1:], strict=True):
        if odd := sorted(set(parts[0]) ^ set(group)):
            only = first if odd[0] in parts[0] else other
            place = only[0].path.parent if len({a.path for a in only}) > 1 else only[0].path
            raise UserError(
                f"not the same tasks: {odd[0] or 'one without a name'} is only in {place}",
                "evaluate all arms on the same tasks, or name the folders of one task",
            )
    return {part: [group[part] for group in parts] for part in parts[0]}


def check_alike(a: Arm, b: Arm, differ: Sequence[str]) -> list[Difference]:
    """Refuse what cannot be compared; returns the differences that are intended.

    differ: keys of the setup that may differ, such as spec.prompt.style. Raises UserError.
    """
    differences = setup_differences(a, b)
    refused = [d for d in differences if not intended(d.key, differ)]
    setup = setup_fault(a, b, refused)
    if problems := problem_fault(a, b):
        raise UserError(
            "; ".join(filter(None, [problems, setup])),
            "evaluate both on the same spec, limit and seed, and to the end",
        )
    if setup:
        raise UserError(setup, hint_for([d.key for d in refused]))
    return [d for d in differences if d not in refused]


def hint_for(keys: Sequence[str]) -> str:
    """The --differ that allows these keys. One table that holds all of them is named, or each."""
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


def setup_differences(a: Arm, b: Arm) -> list[Difference]:
    """The keys of two arms' setups that differ, as far as both tell."""
    found = {}
    if a.samples != b.samples:
        found["decoding.samples"] = Difference("decoding.samples", a.samples, b.samples)
    for part in SETUP:
        if part in a.results and part in b.results:
            left, right = (flatten({part: one.results[part]}) for one in (a, b))
            for key in {**left, **right}:
                if left.get(key) != right.get(key):
                    found.setdefault(key, Difference(key, left.get(key), right.get(key)))
    return list(found.values())


def unchecked(a: Arm, b: Arm) -> list[str]:
    """The parts of the setup that one side does not tell."""
    told = [a.results, b.results]
    # Results of before there were several rule sets name none.
    wanted = [part for part in SETUP if part != "rules" or any(part in one for one in told)]
    return [part for part in wanted if not all(part in one for one in told)]


def intended(key: str, differ: Sequence[str]) -> bool:
    """True where a key, or a table it is in, is among those that may differ.

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


def check_keys(arms: Sequence[Arm], differ: Sequence[str]) -> None:
    """Refuse a --differ that no setup has: a slip there would look like a check that was made."""
    known = [
        key for arm in arms for part in SETUP if part in arm.results
        for key in flatten({part: arm.results[part]})
    ]  # fmt: skip
    settable = {"decoding.samples", *known} - {"prompt_hash"}
    for given in differ:
        fits = given in SETUP or any(intended(key, [given]) for key in settable)
        if known and not fits:
            raise UserError(
                f"--differ {given}: no such key in these evaluations",
                f"keys are: {', '.join(dict.fromkeys(known))}",
            )


def setup_fault(a: Arm, b: Arm, differences: Sequence[Difference]) -> str:
    """The first key that differs with both values, and the names of the others."""
    if not differences:
        return ""
    first, *more = differences
    left, right = (text if len(text) <= 60 else text[:59] + "…" for text in map(repr, first[1:]))
    said = f"{first.key} differs: {left} in {a.path}, {right} in {b.path}"
    return said + (f" (also: {', '.join(d.key for d in more)})" if more else "")


def problem_fault(a: Arm, b: Arm) -> str:
    """Returns how many problems only one side answered, and names the first of them."""
    same_task = a.task == b.task
    only_a = [id_ for id_ in a.problems if not same_task or id_ not in b.problems]
    only_b = [id_ for id_ in b.problems if not same_task or id_ not in a.problems]
    if not only_a and not only_b:
        return ""
    task, problem = (a.task, only_a[0]) if only_a else (b.task, only_b[0])
    return (
        f"not the same questions: {len(only_a)} only in {a.path}, {len(only_b)} only in {b.path}, "
        f"such as {f'{task} ' if task else ''}{problem}"
    )
