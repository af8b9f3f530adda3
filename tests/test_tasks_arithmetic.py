"""Arithmetic: generated problems, and the solver's view of written steps."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.expressions import ast_value

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.tasks.arithmetic import TASK, load

STEP = re.compile(r"step (\d+): (-?\d+) ([-+*]) (-?\d+) = (-?\d+)")


def some(part: str, limit: int, seed: int = 0) -> list[Problem]:
    return load(TaskConfig(name="arithmetic", limit=limit), part, seed)


def problem(expression: str) -> Problem:
    return make_problem("arithmetic", {"expression": expression}, str(ast_value(expression)))


def review(expression: str, thought: str) -> tuple[list[str], str]:
    assert TASK.solver
    found = TASK.solver.review(problem(expression), thought, True)
    assert found == TASK.solver.review(problem(expression), thought, False)
    return found.kept, found.fault


def finish(expression: str, kept: list[str]) -> tuple[str, str] | None:
    assert TASK.solver
    return TASK.solver.finish(problem(expression), kept, 0)


def test_golds_are_the_values() -> None:
    for p in some("all", 500):
        assert p.gold == str(ast_value(p.fields["expression"]))
        assert TASK.show(p) == f"Compute: {p.fields['expression']}"


def test_the_shape_of_the_problems() -> None:
    expressions = [p.fields["expression"] for p in some("train", 1000)]
    counts = {len(re.findall(r" [-+*] ", e)) for e in expressions}
    assert counts == {2, 3, 4}
    operands = [int(n) for e in expressions for n in re.findall(r"\d+", e)]
    assert {len(str(n)) for n in operands} == {1, 2, 3, 4, 5}
    assert any("(" in e for e in expressions) and any("(" not in e for e in expressions)
    assert any(e.lstrip("(").startswith("-") for e in expressions)
    assert any((ast_value(e) or 0) < 0 for e in expressions)


def test_the_solver_solves_and_stays_within_five_digits() -> None:
    assert TASK.solver
    for p in some("heldout", 300):
        solved = TASK.solver.finish(p, [], 0)
        assert solved is not None
        thought, answer = solved
        steps = [STEP.fullmatch(line) for line in thought.split("\n")]
        for number, step in enumerate(steps, 1):
            assert step and int(step[1]) == number
            left, right, result = int(step[2]), int(step[4]), int(step[5])
            assert result == {"+": left + right, "-": left - right, "*": left * right}[step[3]]
            assert abs(result) <= 99_999
        assert answer == p.gold and steps[-1] and steps[-1][5] == answer
        text = f"<think>\n{thought}\n</think>\n<answer> {answer} </answer>"
        assert TASK.grade(p, text, "think", "thinking").verdict.passed
        found = TASK.solver.review(p, thought, True)
        assert found.fault == "" and found.kept == thought.split("\n")


E = "12 + 345 * 6 - 78"
FIRST = "step 1: 345 * 6 = 2070"


@pytest.mark.parametrize(
    ("expression", "thought", "kept", "fault"),
    [
        (E, FIRST + "\nstep 2: 12 + 2070 = 2082\nstep 3: 2082 - 78 = 2004", 3, ""),
        (E, FIRST + "\nstep 2: 2070 - 78 = 1992\nstep 3: 12 + 1992 = 2004", 3, ""),
        (E, FIRST + "\nstep 2: 12 + 2070 = 2083", 1, "step 2 is wrong: 12 + 2070 = 2083"),
        (E, "step 1: 345 * 6 = 2060", 0, "step 1 is wrong: 345 * 6 = 2060"),
        (E, "step 1: 12 + 345 = 357", 0, "step 1 is wrong: 12 + 345 = 357 is not a next step"),
        (E, "step 1: 6 - 78 = -72", 0, "is not a next step"),
        (E, "step 1: 5 + 5 = 10", 0, "is not a next step"),
        (E, FIRST, 1, "the steps stop at 12 + 2070 - 78"),
        (E, "", 0, "the steps stop at 12 + 345 * 6 - 78"),
        (E, FIRST + "\nstep 2: 12 + 2070 - 78 = 2004", 1, "step 2 is no single operation"),
        (E, FIRST + "\nstep 2: 2070 + = 3", 1, "step 2 is no single operation"),
        (E, FIRST + "\nstep 2: 12 + 2070 = 2082 - 78 = 2004", 1, "no single operation"),
        (E, FIRST + "\nstep 2: 2070 / 2 = 1035", 1, "step 2 is no single operation"),
        (E, "345 × 6 = 2,070, so far\n2070 + 12 = 2082\n- 2082 − 78 = 2004", 3, ""),
        (E, "Let me see.\n1. 345 x 6 = 2070\n\n2) (12 + 2070) = 2082", 4, "the steps stop at"),
        (E, "6 * 345 = 2070 and 12 + 2070 = 2082\n2082 - 78 = 2004\nso it is 2004", 2, ""),
        (E, "345 * 6 = 2070 and 12 + 2070 = 2081", 0, "step 2 is wrong: 12 + 2070 = 2081"),
        ("10 - 3 - 2", "step 1: 3 - 2 = 1", 0, "is not a next step"),
        ("10 - 3 + 2", "step 1: 3 + 2 = 5", 0, "is not a next step"),
        ("10 + 3 - 2", "step 1: 3 - 2 = 1\nstep 2: 10 + 1 = 11", 2, ""),
        ("2 * 3 * 4", "step 1: 3 * 4 = 12\nstep 2: 2 * 12 = 24", 2, ""),
        ("2 * (3 + 4) - 5", "step 1: 3 + 4 = 7\nstep 2: 2 * 7 = 14\nstep 3: 14 - 5 = 9", 3, ""),
        ("2 * (3 + 4) - 5", "step 1: 2 * 3 = 6", 0, "is not a next step"),
        ("4 - (3 - 8)", "step 1: 3 - 8 = -5\nstep 2: 4 - -5 = 9", 2, ""),
        ("4 - (3 - 8)", "step 1: 3 - 8 = -5\nstep 2: 4 - (-5) = 9", 2, ""),
        ("-4 * 3 + 1", "step 1: -4 * 3 = -12\nstep 2: -12 + 1 = -11", 2, ""),
        ("1 + 1 + 1", "1 + 1 = 2\n2 + 1 = 3\n3 + 1 = 4", 2, "3 + 1 = 4 is not a next step of 3"),
    ],
)
def test_review(expression: str, thought: str, kept: int, fault: str) -> None:
    lines, said = review(expression, thought)
    assert lines == thought.split("\n")[:kept]
    assert fault in said and bool(fault) == bool(said)


def test_a_long_result_is_not_read_in_part() -> None:
    kept, fault = review("3 + 4 + 5", "step 1: 3 + 4 = 7" + "0" * 30)
    assert kept == [] and fault


def test_no_tag_of_an_attempt_gets_into_a_rewrite() -> None:
    kept, _ = review("3 + 4 + 5", "hm </think><answer>1</answer>\nstep 1: 3 + 4 = 7")
    assert kept == ["step 1: 3 + 4 = 7"]


def test_finish_goes_on_from_the_kept_lines() -> None:
    kept = ["First the product.", "345 * 6 = 2070"]
    assert finish(E, kept) == (
        "First the product.\n345 * 6 = 2070\nstep 2: 12 + 2070 = 2082\nstep 3: 2082 - 78 = 2004",
        "2004",
    )
    assert finish(E, ["step 1: 345 * 6 = 2071"]) is None
    done = [FIRST, "step 2: 12 + 2070 = 2082", "step 3: 2082 - 78 = 2004"]
    assert finish(E, done) == ("\n".join(done), "2004")


@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(-9, 9).filter(bool))
@settings(max_examples=60, deadline=None)
def test_a_broken_step_is_found_and_mended(seed: int, at: int, off: int) -> None:
    assert TASK.solver
    [p] = some("train", 1, seed)
    solved = TASK.solver.finish(p, [], 0)
    assert solved
    lines = solved[0].split("\n")
    at %= len(lines)
    left, _, result = lines[at].rpartition("= ")
    wrong = f"{left}= {int(result) + off}"
    found = TASK.solver.review(p, "\n".join([*lines[:at], wrong, *lines[at + 1 :]]), True)
    assert found.kept == lines[:at]
    assert found.fault == f"step {at + 1} is wrong: {wrong.split(': ')[1]}"
    assert TASK.solver.finish(p, found.kept, 0) == solved


@given(st.text(alphabet="0123456789+-*/=() x\nstep:<,.−×", max_size=400), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_thought_is_reviewed(thought: str, search: bool) -> None:
    assert TASK.solver
    p = problem("1 + 2 * 3")
    found = TASK.solver.review(p, thought, search)
    solved = TASK.solver.finish(p, found.kept, 0)
    assert solved is not None and solved[1] == "7"
    assert solved[0].split("\n")[: len(found.kept)] == found.kept or not found.kept


@pytest.mark.parametrize(("raw", "gold"), [(0, "0"), ("0", "0"), ("-1,234", "-1234"), (5.0, "5")])
def test_from_row(raw: object, gold: str) -> None:
    assert TASK.from_row({"gold": raw}).gold == gold


def test_a_row_without_an_expression_is_graded_but_not_solved() -> None:
    with pytest.raises(UserError):
        TASK.from_row({"gold": "many"})
    bare = TASK.from_row({"gold": 5})
    assert TASK.grade(bare, "#### 5", "think", "thinking").verdict.correct
    assert TASK.solver and TASK.solver.finish(bare, [], 0) is None
    assert TASK.solver.review(bare, "1 + 1 = 2", True).kept == []
