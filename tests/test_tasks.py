"""The tasks by name: their rules, the problems that they make, and the bundled specs."""

import hashlib
import itertools
import re
from typing import Any

import pytest

from mlxreflect.config.schema import TaskConfig
from mlxreflect.config.toml import bundled
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.evaluation.evaluate import eval_problems, find_spec
from mlxreflect.tasks import TASKS, find_rules
from mlxreflect.tasks.base import Review
from mlxreflect.tasks.jsonl import KINDS
from mlxreflect.tasks.last_letter import problem_of


def load(name: str, part: str = "heldout", seed: int = 0, **keys: Any) -> list[Problem]:
    return TASKS[name].load(TaskConfig(name=name, **keys), part, seed)


@pytest.mark.parametrize("name", TASKS)
def test_the_first_rules_are_the_headline(name: str) -> None:
    task = TASKS[name]
    assert next(iter(task.rules.values())) is task.grade
    assert find_rules(task, "") == (next(iter(task.rules)), task.grade)
    for rules in task.rules:
        assert find_rules(task, rules) == (rules, task.rules[rules])
    with pytest.raises(UserError) as caught:
        find_rules(task, "flexibel")
    assert all(rules in caught.value.message for rules in task.rules)


def test_rules_of_another_kind_of_answer_are_refused() -> None:
    assert find_rules(TASKS["jsonl"], "lm-eval-strict", "number")[0] == "lm-eval-strict"
    with pytest.raises(UserError, match="no rules 'lm-eval-strict'; the task jsonl with answers"):
        find_rules(TASKS["jsonl"], "lm-eval-strict", "choice")
    with pytest.raises(UserError, match="exact, strict, subset, tinyzero") as caught:
        find_rules(TASKS["countdown"], "tinyzer")
    assert caught.value.hint == "did you mean tinyzero?"
    for kind, rules in KINDS.items():
        assert next(iter(rules.rules)) == ("open" if kind == "open" else "flexible"), kind


# ---- generated problems --------------------------------------------------------------------------

# What makes two problems the same.
KEYS: dict[str, Any] = {
    "countdown": lambda fields: (tuple(sorted(fields["numbers"])), fields["target"]),
    "arithmetic": lambda fields: fields["expression"],
    "last_letter": lambda fields: tuple(sorted(fields["words"])),
}
# Few numbers and words: there the parts can only be told apart by their hash.
SMALL: dict[str, list[dict[str, Any]]] = {
    "countdown": [{"numbers": [2]}, {"numbers": [3]}, {"numbers": [3, 4]}],
    "arithmetic": [{}],
    "last_letter": [{"words": [1, 2, 3]}, {"words": [1]}],
}
PART_OF: dict[str, Any] = {
    "countdown": lambda fields: bucket(f"{sorted(fields['numbers'])}={fields['target']}", 1),
    "arithmetic": lambda fields: bucket(fields["expression"], 8),
    "last_letter": lambda fields: bucket(" ".join(sorted(fields["words"])), 8),
}


def bucket(text: str, size: int) -> str:
    """The part of a text, by the first bytes of its hash."""
    number = int(hashlib.sha256(text.encode()).hexdigest()[: 2 * size], 16)
    return {0: "heldout", 1: "dev"}.get(number % 10, "train")


def keys_of(name: str, part: str, seed: int, **keys: Any) -> set[Any]:
    return {KEYS[name](p.fields) for p in load(name, part, seed, **keys)}


@pytest.mark.parametrize("name", KEYS)
def test_parts_share_no_problem_whatever_made_them(name: str) -> None:
    seen: dict[str, set[Any]] = {"train": set(), "dev": set(), "heldout": set()}
    for seed, config in itertools.product((0, 1, 5), SMALL[name]):
        for part, found in seen.items():
            found |= keys_of(name, part, seed, limit=150, **config)
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    assert min(map(len, seen.values())) >= 150


@pytest.mark.parametrize("name", KEYS)
def test_the_seed_makes_other_problems_to_train_on_alone(name: str) -> None:
    limit = {"limit": 150}
    assert load(name, "heldout", 0, **limit) == load(name, "heldout", 9, **limit)
    assert (load(name, "dev", 0, **limit) == load(name, "dev", 9, **limit)) is (name != "countdown")
    assert load(name, "train", 0, **limit) != load(name, "train", 9, **limit)
    assert load(name, "train", 9, **limit) == load(name, "train", 9, **limit)


@pytest.mark.parametrize("part", ["train", "dev", "heldout", "all"])
@pytest.mark.parametrize("name", KEYS)
def test_fewer_problems_are_the_first_of_more(name: str, part: str) -> None:
    problems = load(name, part, 3, limit=60)
    assert load(name, part, 3, limit=20) == problems[:20]
    assert len({p.id for p in problems}) == 60


@pytest.mark.parametrize("name", KEYS)
def test_the_number_of_problems(name: str) -> None:
    every = load(name, "all", 0)
    assert len({p.id for p in every}) == len(every) == 1000
    assert len({p.id for p in load(name, "train", 0)}) == 1000
    parts = [PART_OF[name](p.fields) for p in every]
    assert all(70 < parts.count(part) < 140 for part in ("dev", "heldout"))  # a tenth each
    for part in ("train", "dev", "heldout"):
        assert {PART_OF[name](p.fields) for p in load(name, part, limit=50)} == {part}
    with pytest.raises(UserError, match="at most 100000 problems"):
        load(name, limit=100_001)


@pytest.mark.parametrize("name", ["arithmetic", "last_letter"])
def test_a_source_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} makes its own problems"):
        load(name, source="x.jsonl")


# ---- last letters --------------------------------------------------------------------------------


def test_last_letters_of_as_many_words_as_asked() -> None:
    for count in (1, 2, 6):
        for problem in load("last_letter", "train", words=[count], limit=20):
            words = problem.fields["words"]
            assert len(words) == count
            assert problem.gold == "".join(word[-1] for word in words)
            assert TASKS["last_letter"].show(problem) == f"Words: {' '.join(words)}"
    mixed = load("last_letter", "train", words=[2, 5], limit=50)
    assert {len(p.fields["words"]) for p in mixed} == {2, 5}


W = ["apple", "river", "zinc"]
A, R, Z = (f"The last letter of {word} is {word[-1]}." for word in W)


@pytest.mark.parametrize(
    ("thought", "kept", "fault"),
    [
        (f"{A}\n{R}\n{Z}", 3, ""),
        (f"{A}\n{Z}", 1, "step 2 is wrong: The last letter of zinc is c."),
        (f"{A}\nThe last letter of river is v.\n{Z}", 1, "step 2 is wrong: The last letter of"),
        ("I go word by word.\napple -> e\n**river**: **R**", 3, "the last letter of zinc is not"),
        ('apple ends in "e"', 0, "the last letter of apple is not there"),
        (f"{A} {R}\nSo the letters are e and r.", 1, "the last letter of zinc is not there"),
        (f"{A} {A}", 0, "step 1 is wrong"),
        (f"</think>\n{A}", 1, "the last letter of river"),
        ("", 0, "the last letter of apple is not there"),
        ("apple is a fruit, river is no fruit\n" + A, 2, "the last letter of river is not there"),
    ],
)
def test_the_solver_reads_last_letters(thought: str, kept: int, fault: str) -> None:
    solver, problem = TASKS["last_letter"].solver, problem_of(W)
    assert solver
    found = solver.review(problem, thought, True)
    lines = [line for line in thought.split("\n") if "<" not in line]
    assert found.kept == lines[:kept] and fault in found.fault and bool(fault) == bool(found.fault)
    solved = solver.finish(problem, found.kept, 0)
    assert solved and solved[1] == "erc" and solved[0].startswith("\n".join(found.kept))
    assert solver.review(problem, solved[0], False) == Review(solved[0].split("\n"), "")
    assert solver.finish(problem, ["The last letter of apple is l."], 0) is None


def test_arithmetic_as_short_as_asked() -> None:
    for problem in load("arithmetic", "train", operands=2, digits=[1, 2], limit=100):
        operands = re.findall(r"\d+", problem.fields["expression"])
        assert len(operands) == 2 and all(len(operand) <= 2 for operand in operands)


def test_last_letter_rows() -> None:
    from_row = TASKS["last_letter"].from_row
    assert from_row({"words": ["Sun", "Apple"]}).gold == "ne"
    assert from_row({"gold": "NE"}).gold == "ne"
    for row in ({}, {"gold": 5}, {"gold": "n e"}, {"words": ["a1"]}, {"words": []}):
        with pytest.raises(UserError, match="no letters"):
            from_row(row)


def test_one_word_makes_few_problems_to_hold_out() -> None:
    assert 0 < len(load("last_letter", "heldout", words=[1], limit=900)) < 100  # all there are


# ---- bundled specs -------------------------------------------------------------------------------


def test_every_spec_of_the_issue_is_bundled() -> None:
    wanted = {"countdown", "countdown4", "countdown_mixed", "countdown_3to4", "gsm8k",
              "gsm8k_5shot", "arithmetic", "last_letter", "svamp", "aime", "aime24", "aime25",
              "aime25_10",
              "math500", "logiqa", "math", "bigbench", "text_f1", "jsonl"}  # fmt: skip
    assert wanted <= set(bundled("evals"))
    numbers = {n: find_spec(n, 0, "", []).task.numbers for n in wanted if n.startswith("countdown")}
    assert numbers["countdown4"] == [4] and numbers["countdown_mixed"] == [3, 4]
    for name in wanted:
        path = bundled("evals")[name]
        assert path.read_text(encoding="utf-8").startswith("# "), f"{name} says nothing of its data"


@pytest.mark.parametrize("name", ["countdown4", "countdown_mixed", "last_letter"])
def test_generated_specs_hold_as_many_problems_as_they_say(name: str) -> None:
    spec = find_spec(name, 50, "", [])
    problems = eval_problems(TASKS[spec.task.name], spec)
    assert len({p.id for p in problems}) == 50
