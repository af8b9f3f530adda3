"""Countdown's problems, generated and other people's, and the exact solver, by brute force."""

import itertools
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rows import write_rows

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.core.seeds import below
from mlxreflect.tasks.countdown import TASK, finish, part_of, review, solvable


def reached(values: tuple[Fraction, ...], plain: bool = False) -> set[Fraction]:
    """Every value of an expression with all the numbers, by taking any two and putting one back.

    plain: by steps whose results are whole, positive and at most 200 alone.
    """
    seen, found, todo = set(), set(), [tuple(sorted(values))]
    while todo:
        now = todo.pop()
        if now in seen:
            continue
        seen.add(now)
        if len(now) == 1:
            found.add(now[0])
            continue
        for i, a in enumerate(now):
            for j, b in enumerate(now):
                if i == j:
                    continue
                rest = [v for k, v in enumerate(now) if k not in (i, j)]
                for c in [a + b, a - b, a * b] + ([a / b] if b else []):
                    if not plain or (c.denominator == 1 and 0 < c <= 200):
                        todo.append(tuple(sorted([*rest, c])))
    return found


# ---- problems -----------------------------------------------------------------------------------


def load(part: str, seed: int, numbers: list[int], limit: int = 150) -> list[Problem]:
    return TASK.load(TaskConfig(numbers=numbers, limit=limit), part, seed)


def content(problem: Problem) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(problem.fields["numbers"])), problem.fields["target"]


@pytest.mark.parametrize(("count", "limit"), [(2, 60), (3, 60), (4, 30), (5, 3)])
def test_problems_can_be_solved(count: int, limit: int) -> None:
    problems = load("train", 5, [count], limit)
    assert len(problems) == limit
    for problem in problems:
        numbers, target = problem.fields["numbers"], problem.fields["target"]
        assert len(numbers) == count
        assert all(1 <= n <= 99 for n in numbers)
        assert 10 <= target <= 100
        assert target in reached(tuple(map(Fraction, numbers)), plain=True)
        assert problem.gold is None


@pytest.mark.parametrize("end", [1, 2, 3, 4, 99, 1 << 20])
def test_numbers_are_drawn_as_by_randrange(end: int) -> None:
    """What a seed made before, it makes still."""
    one, other = random.Random(7), random.Random(7)
    drawn = [below(one.getrandbits, end) for _ in range(200)]
    assert drawn == [other.randrange(end) for _ in range(200)]


@pytest.mark.slow
def test_a_part_that_has_fewer_problems_gives_all_it_has() -> None:
    """Two numbers make 644 held-out problems, counted here; the default asks for 1000."""
    every = set()
    for a, b in itertools.combinations_with_replacement(range(1, 100), 2):
        results = {a + b, b - a, a * b} | ({b // a} if b % a == 0 else set())
        every |= {((a, b), r) for r in results if 10 <= r <= 100}
    expected = {key for key in every if part_of(list(key[0]), key[1]) == "heldout"}
    assert {content(p) for p in load("heldout", 0, [2], 0)} == expected


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"my\.jsonl: no such file"):
        TASK.load(TaskConfig(source="my.jsonl"), "train", 0)


def test_what_the_policy_is_shown() -> None:
    problem = TASK.from_row({"numbers": [30, 4, 5], "target": 35})
    assert TASK.show(problem) == "Numbers: 30 4 5\nTarget: 35"
    assert "35" not in TASK.instruction(problem)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 40))
@settings(max_examples=30)
def test_what_is_solvable_is_what_brute_force_reaches(numbers: list[int], target: int) -> None:
    assert solvable(numbers, target) == (Fraction(target) in reached(tuple(map(Fraction, numbers))))


# ---- Countdown-Tasks-3to4 ------------------------------------------------------------------------

NUMS = [{"nums": [i % 60 + 1, i % 7 + 1, 5], "target": i % 60 + i % 7 + 7} for i in range(400)]


def load_file(part: str, seed: int = 0, **keys: Any) -> list[Problem]:
    return TASK.load(TaskConfig(**keys), part, seed)


def test_countdown_rows_of_other_people(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "c.jsonl", NUMS)
    parts = {p: load_file(p, source=str(path)) for p in ("train", "dev", "heldout", "all")}
    distinct = {(tuple(sorted(r["nums"])), r["target"]) for r in NUMS}
    assert len(parts["all"]) == len(distinct)  # each can be solved: the numbers' sum
    assert sum(len(parts[p]) for p in ("train", "dev", "heldout")) == len(distinct)
    for part in ("train", "dev", "heldout"):
        assert {part_of(p.fields["numbers"], p.fields["target"]) for p in parts[part]} == {part}
        assert load_file(part, seed=9, source=str(path)) == parts[part]  # no seed moves it
        assert load_file(part, source=str(path), limit=3) == parts[part][:3]


def test_what_cannot_be_solved_is_left_out(tmp_path: Path) -> None:
    rows = [{"nums": [3, 3, 8, 8], "target": 24}, {"nums": [1, 1, 1], "target": 90},
            {"nums": [1, 1], "target": 2}]  # fmt: skip
    found = load_file("all", source=str(write_rows(tmp_path / "c.jsonl", rows)))
    assert [p.fields["numbers"] for p in found] == [[3, 3, 8, 8], [1, 1]]
    with pytest.raises(UserError, match="no problem with a solution"):
        load_file("all", source=str(write_rows(tmp_path / "d.jsonl", rows[1:2])))


def test_rows_are_read_only_as_far_as_needed(monkeypatch: Any) -> None:
    """490,364 rows: a limit must not wait for all of them."""
    datasets = pytest.importorskip("datasets")
    read = 0

    def rows() -> Any:
        nonlocal read
        for row in NUMS * 100:
            read += 1
            yield row

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: rows())
    found = load_file("heldout", source="Jiayi-Pan/Countdown-Tasks-3to4", limit=5)
    assert len(found) == 5 and read < 400


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"nums": [1, "2"], "target": 3}, "not a list of whole numbers"),
        ({"target": 3}, "not a list of whole numbers"),
        ({"nums": [1, 2], "target": 3.5}, "not a whole number"),
        ({"nums": [1] * 7, "target": 7}, "more than 6 numbers"),
    ],
)
def test_a_bad_countdown_row_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = write_rows(tmp_path / "c.jsonl", [NUMS[0], row])
    with pytest.raises(UserError, match=r"c\.jsonl, line 2") as caught:
        load_file("all", source=str(path))
    assert said in caught.value.message


# ---- the solver ----------------------------------------------------------------------------------


def game(numbers: list[int], target: int) -> Problem:
    return make_problem("countdown", {"numbers": numbers, "target": target})


def written(thought: str, answer: str) -> str:
    return f"<think>\n{thought}\n</think>\n<answer> {answer} </answer>"


# numbers, target, thought; valid lines and fault when searching; when only checking, where other
CASES: dict[str, tuple[list[int], int, str, tuple[int, str], tuple[int, str] | None]] = {
    "right": ([3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35", (2, ""), None),
    "wrong sum": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 8\nstep 2: 8 * 5 = 40",
        (0, "step 1 is wrong: 3 + 4 is 7, not 8"), None,
    ),
    "wrong later": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 36",
        (1, "step 2 is wrong: 7 * 5 is 35, not 36"), None,
    ),
    "wrong decimal": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7.5",
        (0, "step 1 is wrong: 3 + 4 is 7, not 7.5"), None,
    ),
    "number not there": (
        [3, 4, 5], 35, "step 1: 3 + 6 = 9",
        (0, "step 1 uses 6, which is not there: 3 + 6 = 9"), None,
    ),
    "number used twice": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 3 * 5 = 15",
        (1, "step 2 uses 3, which is not there: 3 * 5 = 15"), None,
    ),
    "dead end": (
        [3, 4, 5], 35, "step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 17",
        (0, "step 1 leads nowhere: 3 * 4 = 12"), (2, "the steps end at 17, not 35"),
    ),
    "last step elsewhere": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 7 + 5 = 12",
        (1, "step 2 ends at 12, not 35: 7 + 5 = 12"), (2, "the steps end at 12, not 35"),
    ),
    "stops early": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7",
        (1, "the steps stop with 2 numbers left"), None,
    ),
    "nothing": ([3, 4, 5], 35, "", (0, "the steps stop with 3 numbers left"), None),
    "only prose": (
        [3, 4, 5], 35, "Let me think.\nHard.",
        (2, "the steps stop with 3 numbers left"), None,
    ),
    "prose between": (
        [3, 4, 5], 35, "First the sum.\n3 + 4 = 7, good\n\nSo 7 * 5 = 35!",
        (4, ""), None,
    ),
    "wrong before a dead end": (
        [3, 4, 5], 35, "step 1: 3 * 4 = 11\nstep 2: 11 + 5 = 16",
        (0, "step 1 is wrong: 3 * 4 is 12, not 11"), None,
    ),
    "in one line": ([3, 4, 5], 35, "(3 + 4) * 5 = 35", (1, ""), None),
    "other labels": ([3, 4, 5], 35, "1. 3 + 4 = 7\n2) 7 * 5 = 35", (2, ""), None),
    "other signs": ([3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 7 × 5 = 35", (2, ""), None),
    "fractions": (
        [3, 3, 8, 8], 24, "step 1: 8 / 3 = 8/3\nstep 2: 3 - 8/3 = 1/3\nstep 3: 8 / 1/3 = 24",
        (3, ""), None,
    ),
    "negative numbers": ([3, 5, 9], 7, "3 − 5 = −2\n9 + -2 = 7", (2, ""), None),
    "three numbers in a step": ([8, 4, 3], 5, "step 1: 8/4 + 3 = 5", (1, ""), None),
    "a chain": (
        [3, 4, 5], 35, "3 + 4 = 7 * 5 = 35",
        (0, "step 1 uses 7, which is not there: 7 * 5 = 35"), None,
    ),
    "division by zero": (
        [4, 4, 5], 5, "step 1: 4 - 4 = 0\nstep 2: 5 / 0 = 5",
        (1, "step 2 is no arithmetic: a division by zero"), None,
    ),
    "no arithmetic": (
        [3, 4, 5], 35, "step 1: 9**9 = 3",
        (0, "step 1 is no arithmetic: * where a number was expected"), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_first_fault(name: str) -> None:
    numbers, target, thought, searched, checked = CASES[name]
    lines = thought.split("\n") if thought else []
    for search, (valid, fault) in ((True, searched), (False, checked or searched)):
        found = review(game(numbers, target), f"\n{thought}\n", search)
        assert (found.fault, found.kept) == (fault, lines[:valid])


def test_a_dead_end_is_one_by_brute_force() -> None:
    """Every first step from four numbers: reported exactly where no way to the target is left."""
    numbers, target = [2, 7, 7, 25], 23
    reported = 0
    for a, b in [(2, 7), (2, 25), (7, 7), (7, 25), (25, 7), (25, 2), (7, 2)]:
        rest = list(numbers)
        rest.remove(a)
        rest.remove(b)
        for sign, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", Fraction(a, b))):
            line = f"step 1: {a} {sign} {b} = {value}"
            after = (*map(Fraction, rest), Fraction(value))
            fault = review(game(numbers, target), line, True).fault
            dead = target not in reached(after)
            assert ("leads nowhere" in fault) is dead, line
            reported += dead
    assert 0 < reported < 28


def test_lines_that_were_not_checked_are_not_kept() -> None:
    prose = [f"thought number {chr(97 + i % 26)}" for i in range(250)]
    found = review(game([3, 4, 5], 35), "\n".join([*prose, "step 1: 3 + 4 = 8"]), True)
    assert found.kept == prose[: len(found.kept)]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_every_opening_of_a_solution_is_finished(count: int) -> None:
    limit = {3: 12, 4: 8, 5: 4}[count]
    for problem in TASK.load(TaskConfig(numbers=[count], limit=limit), "train", 4):
        solved = finish(problem, [], 1)
        assert solved is not None
        lines = solved[0].split("\n")
        assert [line.split(":")[0] for line in lines] == [f"step {i}" for i in range(1, count)]
        for kept in range(count):
            opening = ["Let me see.", *lines[:kept]]
            again = finish(problem, opening, 2)
            assert again is not None
            thought, answer = again
            assert thought.split("\n")[: kept + 1] == opening
            assert review(problem, thought, True).fault == ""
            assert TASK.grade(problem, written(thought, answer), "think", "thinking").verdict.passed


@pytest.mark.parametrize(
    ("numbers", "target", "needed"),
    [([3, 3, 8, 8], 24, "1/3"), ([1, 5, 5, 5], 24, "1/5"), ([3, 5], -2, "3 - 5 = -2")],
)
def test_solutions_need_fractions_or_negative_numbers_at_times(
    numbers: list[int], target: int, needed: str
) -> None:
    solved = finish(game(numbers, target), [], 0)
    assert solved is not None
    assert needed in solved[0]
    grade = TASK.grade(game(numbers, target), written(*solved), "think", "thinking")
    assert grade.verdict.passed
    assert review(game(numbers, target), solved[0], True).fault == ""


def test_the_seed_chooses_among_solutions() -> None:
    problem = game([1, 2, 3, 4], 10)
    found = {finish(problem, [], seed) for seed in range(12)}
    assert len(found) > 3
    assert finish(problem, [], 3) == finish(problem, [], 3)


@pytest.mark.parametrize(
    ("numbers", "target", "kept"),
    [
        ([1, 1, 1], 100, []),
        ([3, 4, 5], 35, ["step 1: 3 * 4 = 12"]),
        ([3, 4, 5], 35, ["step 1: 3 + 4 = 8"]),
        ([3, 4, 5], 35, ["step 1: 3 + 4 = 7", "step 2: 7 + 5 = 12"]),
    ],
)
def test_what_leads_nowhere_is_not_finished(
    numbers: list[int], target: int, kept: list[str]
) -> None:
    assert finish(game(numbers, target), kept, 0) is None
