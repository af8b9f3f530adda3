"""Countdown: expressions against Python's own parser, problems against brute force."""

import ast
import itertools
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.graders.countdown import MAX_DEPTH, NotAnExpression, check, parse_expression
from mlxreflect.tasks.countdown import TASK, part_of

# ---- expressions --------------------------------------------------------------------------------


class Refused(Exception):
    pass


def evaluate(node: ast.AST) -> Fraction:
    """Python's syntax tree on exact fractions; anything but + - * / on integers is refused."""
    match node:
        case ast.Expression():
            return evaluate(node.body)
        case ast.Constant(value=int()):
            return Fraction(node.value)
        case ast.UnaryOp(op=ast.USub()):
            return -evaluate(node.operand)
        case ast.UnaryOp(op=ast.UAdd()):
            return evaluate(node.operand)
        case ast.BinOp(op=ast.Add()):
            return evaluate(node.left) + evaluate(node.right)
        case ast.BinOp(op=ast.Sub()):
            return evaluate(node.left) - evaluate(node.right)
        case ast.BinOp(op=ast.Mult()):
            return evaluate(node.left) * evaluate(node.right)
        case ast.BinOp(op=ast.Div()):
            return evaluate(node.left) / evaluate(node.right)
    raise Refused


def python_value(text: str) -> Fraction | None:
    """None for what is no expression of integers, + - * / and parentheses."""
    plain = re.sub(r"(?<!\d)0+(?=\d)", "", text).strip()  # 007 is no integer in Python
    try:
        return evaluate(ast.parse(plain, mode="eval"))
    except (SyntaxError, Refused, ZeroDivisionError):
        return None


def our_value(text: str) -> Fraction | None:
    try:
        return parse_expression(text).value
    except NotAnExpression:
        return None


GAPS = st.sampled_from(["", "", " ", "  "])
LITERALS = st.integers(0, 10**6).map(str)


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    binary = st.tuples(inner, GAPS, st.sampled_from("+-*/"), GAPS, inner).map("".join)
    unary = st.tuples(st.sampled_from("+-"), GAPS, inner).map("".join)
    wrapped = st.tuples(st.just("("), GAPS, inner, GAPS, st.just(")")).map("".join)
    return binary | unary | wrapped


@given(st.recursive(LITERALS, grown, max_leaves=14).filter(lambda text: len(text) <= 400))
@example("-2*-3--4/+5")
@example("8-4-2*3/4/5")
@example("2/-3*4")
@example("-(-(-7))")
@example("1/(2-2)")
@example("1/(1/3)*3")
def test_written_expressions_are_what_python_reads(text: str) -> None:
    if "//" in text or "**" in text:
        return
    assert our_value(text) == python_value(text)
    if our_value(text) is not None:
        assert parse_expression(text).literals == [int(n) for n in re.findall(r"\d+", text)]


@given(st.text(alphabet="0123456789+-*/() ", max_size=12))
@example("2(3)")
@example("(2)(3)")
@example("2 3")
@example("()")
@example("1+()")
@example("9**9")
@example("8//3")
@example(")1(")
@example("-")
@example("* 3")
def test_any_characters_are_what_python_reads_or_nothing(text: str) -> None:
    assert our_value(text) == python_value(text)


def test_other_signs_of_the_same_operators() -> None:
    assert parse_expression("3 × 4 ÷ 2 − 1 · 5").value == 1
    assert parse_expression("\u00a03\u2009+\t4\n").value == 7


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "9**9**9", "9 ** 9", "8//2", "2.5*8", "2,5", "2(3)", "(2)3", "2 3", "5²", "½",
        "5!", "5%3", "３+４", "٣+٤", "3 + x", "x", "abs(3)", "1e3", "0x10", "1_000", "nan", "inf",
        "3 if 1 else 4", "3 # 4", "3;4", "3=3", "3==3", "3<4", "[3]", "{3}", "√9", "3^4", "3&4",
        "~3", "π", "None", "True", "__import__('os').system('true')", "(lambda: 3)()", "3\x00",
        "\ud800", "3 +", "+", "(3", "3)", "((3)", ")(", "1/0", "1/(3-3)", "3 + + ", "3 */ 4",
        "(1+)", "()", "1+()2", "(1+2)+()3", "-()", "9" * 13, "1+" * 200 + "1",
        "(" * 51 + "1" + ")" * 51,
    ],
)  # fmt: skip
def test_everything_else_is_no_expression(text: str) -> None:
    with pytest.raises(NotAnExpression):
        parse_expression(text)


def test_up_to_the_caps() -> None:
    assert parse_expression("9" * 12).value == 10**12 - 1
    assert parse_expression("(" * MAX_DEPTH + "7" + ")" * MAX_DEPTH).value == 7
    assert parse_expression("-" * 399 + "7").value == -7
    assert parse_expression("1+" * 199 + "1 ").value == 200
    value = parse_expression("999999999999*" * 30 + "1").value
    assert value == Fraction(999999999999) ** 30


@pytest.mark.parametrize(
    "text",
    [
        "(" * 500_000 + "1" + ")" * 500_000, "-" * 1_000_000, "9" * 1_000_000, "1+" * 500_000,
        " " * 1_000_000, "9**" * 300_000 + "9", "(1)" * 300_000,
    ],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_a_megabyte_is_no_answer(text: str) -> None:
    with pytest.raises(NotAnExpression):
        parse_expression(text)
    for answer in (text, f"3 = {text}", f"{text} = 3"):
        correct, reason = check([3], 3, answer)
        assert not correct
        assert 0 < len(reason) < 200


# ---- grading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "target", "answer", "correct"),
    [
        ([3, 4, 5], 35, "(3 + 4) * 5", True),
        ([5, 3, 4], 35, "5*(4+3)", True),
        ([3, 4, 5], 35, "(3 + 4) * 5 = 35", True),
        ([3, 4, 5], 35, "(3 + 4) * 5 = 7 * 5", True),
        ([3, 4, 5], 35, "(3 + 4) × 5", True),
        ([3, 4, 5], 35, "(3 + 4) * 5 = 36", False),
        ([3, 4, 5], 35, "(3 + 4) * 5 =", False),
        ([3, 4, 5], 35, "(3 + 4) * 5 = 35 = 35", False),
        ([3, 4, 5], 35, "(3 + 4) * 5 = x", False),
        ([3, 4, 5], 35, "35", False),
        ([3, 4, 5], 35, "35 = (3 + 4) * 5", False),
        ([3, 4, 5], 35, "3 * 4 + 5", False),
        ([3, 4, 5], 35, "7 * 5", False),
        ([3, 4, 5], 12, "3 * 4", False),  # a number left over
        ([3, 4, 5], 35, "(3 + 4) * 5 + 3 - 3", False),  # a number used again
        ([3, 4, 5], 35, "34 + 5 / 5", False),
        ([5, 5, 2], 20, "(5 + 5) * 2", True),
        ([5, 5, 2], 10, "5 * 2", False),
        ([5, 2, 2], 20, "(5 + 5) * 2", False),
        ([1, 12], 13, "1 + 12", True),
        ([1, 1, 2], 13, "1 + 12", False),  # the same digits are not the same numbers
        ([3, 3, 8, 8], 24, "8 / (3 - 8 / 3)", True),
        ([3, 3, 8, 8], 24, "8 / (3 - 8 // 3)", False),
        ([1, 3], 1, "1 / 3 * 3", False),
        ([10, 3], 3, "10 / 3", False),  # exact: 3.33 is not 3
        ([3, 5], -2, "3 - 5", True),
        ([3, 5], 2, "-(3 - 5)", True),
        ([2, 3], 6, "2(3)", False),
        ([9, 9, 9], 9, "9**9**9", False),
        ([5, 2], 25, "5²", False),
        ([3, 4], 7, "３ + ４", False),
        ([8], 20, "2.5 * 8", False),
    ],
)
def test_every_number_exactly_once_and_exactly_the_target(
    numbers: list[int], target: int, answer: str, correct: bool
) -> None:
    found, reason = check(numbers, target, answer)
    assert found is correct
    assert bool(reason) is not correct
    problem = TASK.from_row({"numbers": numbers, "target": target})
    for tags, start, end in (("think", "<think>", "</think>"),
                             ("preflexor", "<|thinking|>", "<|/thinking|>")):  # fmt: skip
        text = f"{start}x{end}\n<answer> {answer} </answer>"
        grade = TASK.grade(problem, text, tags, "thinking")
        assert grade.parsed == answer
        assert (grade.verdict.correct, grade.verdict.format_ok) == (correct, True)


def test_grading_answers_in_the_wrong_format() -> None:
    problem = TASK.from_row({"numbers": [3, 4, 5], "target": 35})
    for text, correct, fine in (
        ("<answer>(3 + 4) * 5</answer>", True, False),
        ("<think>x<answer>(3 + 4) * 5</answer></think>", False, False),
        ("<think>x</think>(3 + 4) * 5", False, False),
        ("<think>x</think><answer></answer>", False, False),
        ("", False, False),
    ):
        verdict = TASK.grade(problem, text, "think", "thinking").verdict
        assert (verdict.correct, verdict.format_ok) == (correct, fine)
        assert verdict.reason
    assert TASK.grade(problem, "<answer>(3 + 4) * 5</answer>", "think", "direct").verdict.passed


def test_there_is_no_gold_to_leak() -> None:
    assert TASK.gold(TASK.from_row({"numbers": [3, 4, 5], "target": 35})) is None


@pytest.mark.parametrize(
    "row",
    [
        {}, {"numbers": [3, 4]}, {"target": 7}, {"numbers": "3 4", "target": 7},
        {"numbers": [], "target": 7}, {"numbers": [3, "4"], "target": 7},
        {"numbers": [3, 4.0], "target": 7}, {"numbers": [True, 4], "target": 5},
        {"numbers": [-3, 4], "target": 1}, {"numbers": [1] * 21, "target": 21},
        {"numbers": [3, 4], "target": "7"}, {"numbers": [3, 4], "target": 7.0},
        {"numbers": [3, 4], "target": True}, {"numbers": None, "target": None},
    ],
)  # fmt: skip
def test_bad_rows_are_named(row: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        TASK.from_row(row)
    assert "numbers" in caught.value.message or "target" in caught.value.message
    assert caught.value.hint


# ---- problems -----------------------------------------------------------------------------------


def load(part: str, seed: int, numbers: list[int], limit: int = 150) -> list[Problem]:
    return TASK.load(TaskConfig(numbers=numbers, limit=limit), part, seed)


def content(problem: Problem) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(problem.fields["numbers"])), problem.fields["target"]


def reaches(values: tuple[int, ...], target: int) -> bool:
    """Brute force over ordered pairs; every result whole, positive and at most 200."""
    if len(values) == 1:
        return values[0] == target
    for (i, a), (j, b) in itertools.permutations(enumerate(values), 2):
        rest = tuple(v for k, v in enumerate(values) if k not in (i, j))
        results = {a + b, a * b, a - b} | ({a // b} if a % b == 0 else set())
        if any(0 < r <= 200 and reaches((*rest, r), target) for r in results):
            return True
    return False


@pytest.mark.parametrize(("count", "limit"), [(2, 60), (3, 60), (4, 30), (5, 6)])
def test_problems_can_be_solved(count: int, limit: int) -> None:
    problems = load("train", 5, [count], limit)
    assert len(problems) == limit
    for problem in problems:
        numbers, target = problem.fields["numbers"], problem.fields["target"]
        assert len(numbers) == count
        assert all(1 <= n <= 99 for n in numbers)
        assert 10 <= target <= 100
        assert reaches(tuple(numbers), target)
        assert problem.gold is None


def test_parts_share_no_problem_whatever_made_them() -> None:
    seen: dict[str, set[Any]] = {"train": set(), "dev": set(), "heldout": set()}
    for seed, numbers in itertools.product((0, 1, 2), ([2], [3], [3, 4])):
        for part, found in seen.items():
            found |= {content(p) for p in load(part, seed, numbers)}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    for part, found in seen.items():
        assert {part_of(list(numbers)[::-1], target) for numbers, target in found} == {part}
    # Pairs of numbers are few enough for the parts to be told apart only by their hash.
    assert all(
        len([1 for numbers, _ in found if len(numbers) == 2]) > 140 for found in seen.values()
    )


def test_parts_are_about_a_tenth_each() -> None:
    problems = load("all", 0, [3], 1000)
    shares = [part_of(p.fields["numbers"], p.fields["target"]) for p in problems]
    assert 70 < shares.count("heldout") < 140
    assert 70 < shares.count("dev") < 140


def test_held_out_problems_are_the_same_for_every_seed() -> None:
    assert load("heldout", 0, [3]) == load("heldout", 1, [3])
    assert load("dev", 0, [3]) != load("dev", 1, [3])
    assert load("train", 0, [3]) != load("train", 1, [3])
    assert load("train", 1, [3]) == load("train", 1, [3])


@pytest.mark.parametrize("part", ["train", "dev", "heldout", "all"])
def test_fewer_problems_are_the_first_of_more(part: str) -> None:
    problems = load(part, 3, [3, 4], 60)
    assert load(part, 3, [3, 4], 20) == problems[:20]
    assert len({content(p) for p in problems}) == 60
    assert {len(p.fields["numbers"]) for p in problems} == {3, 4}


def test_the_number_of_problems() -> None:
    assert len(TASK.load(TaskConfig(), "train", 0)) == 1000
    assert len(TASK.load(TaskConfig(limit=7), "train", 0)) == 7


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
