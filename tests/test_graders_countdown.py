"""Countdown's graders: expressions against Python's own parser, answers against built values."""

import random
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.expressions import ast_value

from mlxreflect.core.errors import UserError
from mlxreflect.graders.countdown import (
    MAX_DEPTH,
    NotAnExpression,
    check,
    parse_expression,
    python_value,
)
from mlxreflect.tasks import TASKS

TASK = TASKS["countdown"]

# ---- expressions --------------------------------------------------------------------------------


def read(text: str) -> tuple[Fraction | None, list[int]]:
    try:
        return parse_expression(text)
    except NotAnExpression:
        return None, []


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
    value, literals = read(text)
    assert value == ast_value(text)
    assert value is None or literals == [int(n) for n in re.findall(r"\d+", text)]


@given(st.text(alphabet="0123456789+-*/() ", max_size=12))
@example("(2)(3)")
@example(")1(")
@example("* 3")
def test_any_characters_are_what_python_reads_or_nothing(text: str) -> None:
    assert read(text)[0] == ast_value(text)


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 × 4 ÷ 2 − 1 · 5", 1), ("\u00a03\u2009+\t4\n", 7), ("9" * 12, 10**12 - 1),
        ("(" * MAX_DEPTH + "7" + ")" * MAX_DEPTH, 7), ("-" * 399 + "7", -7),
        ("1+" * 199 + "1 ", 200), ("999999999999*" * 30 + "1", 999999999999**30),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_other_signs_and_as_much_as_is_read(text: str, value: int) -> None:
    assert read(text)[0] == value


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


# (numbers, target): what is right, what is wrong
GRADED: dict[tuple[tuple[int, ...], int], tuple[list[str], list[str]]] = {
    ((3, 4, 5), 35): (
        ["(3 + 4) * 5", "5*(4+3)", "(3 + 4) * 5 = 35", "(3 + 4) * 5 = 7 * 5", "(3 + 4) × 5"],
        ["(3 + 4) * 5 = 36", "(3 + 4) * 5 =", "(3 + 4) * 5 = 35 = 35", "(3 + 4) * 5 = x", "35",
         "35 = (3 + 4) * 5", "3 * 4 + 5", "7 * 5", "34 + 5 / 5", "(3 + 4) * 5 + 3 - 3"],
    ),
    ((5, 3, 4), 35): (["5*(4+3)"], []),
    ((3, 4, 5), 12): ([], ["3 * 4"]),  # a number left over
    ((5, 5, 2), 20): (["(5 + 5) * 2"], []), ((5, 5, 2), 10): ([], ["5 * 2"]),
    ((5, 2, 2), 20): ([], ["(5 + 5) * 2"]), ((1, 12), 13): (["1 + 12"], []),
    ((1, 1, 2), 13): ([], ["1 + 12"]),  # the same digits are not the same numbers
    ((3, 3, 8, 8), 24): (["8 / (3 - 8 / 3)"], ["8 / (3 - 8 // 3)"]),
    ((1, 3), 1): ([], ["1 / 3 * 3"]), ((10, 3), 3): ([], ["10 / 3"]),  # exact: 3.33 is not 3
    ((3, 5), -2): (["3 - 5"], []), ((3, 5), 2): (["-(3 - 5)"], []), ((2, 3), 6): ([], ["2(3)"]),
    ((9, 9, 9), 9): ([], ["9**9**9"]), ((5, 2), 25): ([], ["5²"]), ((3, 4), 7): ([], ["３ + ４"]),
    ((8,), 20): ([], ["2.5 * 8"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "target", "answer", "correct"),
    [(list(numbers), target, answer, correct)
     for (numbers, target), sides in GRADED.items()
     for correct, answers in zip((True, False), sides, strict=True) for answer in answers],
)  # fmt: skip
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


# Of one value: what is written otherwise is right, and what is something else stays wrong.
# (numbers, target): right, wrong
WRITTEN: dict[tuple[tuple[int, ...], int], tuple[list[str], list[str]]] = {
    ((3, 4, 5), 35): (
        [
            r"(3+4) \times 5",
            "$(3+4)*5$",
            "$$(3+4)*5$$",
            "$$\n(3+4)*5\n$$",
            "(3+4)⋅5",
            "(3+4)∗5",
            "(3+4)∙5",
            "(3+4)•5",
            "(3+4)✕5",
            "(3+4)✖5",
            "(3+4)＊5",
            "(3+4)⁎5",
            r"\boxed{(3+4)*5}",
            r"$\boxed{(3+4)\cdot 5}$",
            r"\boxed{$(3+4)*5$}.",
            r"$\boxed{(3+4)*5}.$",
            "`(3+4)*5`",
            "```(3+4)*5```",
            "`(3+4)*5`.",
            "(3+4)*5.",
            "(3+4)*5 .",
            "[3+4]*5",
            "[(3+4)]*5",
            "[(3+4)*5]",
            "([3+4])*5",
            "5*[4+3]",
            r"\(5\times(3+4)\)",
            r"\[5\times\left(3+4\right)\]",
            r"5 \cdot \left[3+4\right]",
            "(3+4)*5 = $35$",
            "$(3+4)*5 = 35$.",
            "(3+4)*5 = 35.",
            r"\boxed{(3+4)*5 = 35}",
            r"\boxed{(3+4)*5} = 35",
            "**(3+4)*5**",
            "**`(3+4)*5`**",
            r"(3+4)\cdot5",
            r"(3+4)\times5",
            r"(3+4)\,\cdot\,5",
            r"(3+4)\ast 5",
            "(3–-4)*5",
            "(3−−4)*5",
            "(3—-4)*5",
            "(3‒-4)*5",
            "(3＋4)*5",
            "$(3+4)$ * $5$",
            r"(3+4)\;\times\;5 = 35",
            r"\boxed{\boxed{(3+4)*5}}",
            r"\left(3+4\right)\times 5",
            r"\left[3+4\right] \cdot 5",
            r"$5\times(4+3)=35$",
            "  `[3 + 4] × 5 = 35`. ",
            "(3+4)*5=$35$",
            "(3+4)⨉5",
            "__(3+4)*5__",
            "*(3+4)*5*",
            "```python\n(3+4)*5\n```",
            '"(3+4)*5"',
            "“(3+4)*5”",
            "(3+4)\\*5",
            "\\big(3+4\\big)*5",
            "\\Bigl(3+4\\Bigr)\\times5",
            "\\displaystyle (3+4)\\times 5",
            "(3﹢4)*5",
            "<b>(3+4)*5</b>",
            "(3+4)*5 <br>",
            "(3+4)*5 = <b>35</b>",
            "\\fbox{$(3+4)*5$}",
        ],
        [
            "(3+4) x 5",
            "(3+4) X 5",
            "(3+4)*5 = 7*5 = 35",
            "35 = (3+4)*5",
            "$35 = (3+4)*5$",
            r"\boxed{35}",
            r"\boxed{(3+4)*5 = 36}",
            "$(3+4)*5 = 36$",
            "$(3+4)*5 = 7*5 = 35$",
            "{3+4}*5",
            "(3+4]*5",
            "[3+4)*5",
            "[(3+4]*5)",
            "(3+4)∗∗5",
            "(3+4)⋅⋅5",
            r"(3+4)\cdot\cdot 5",
            r"(3+4)\cdot 5 = 36",
            r"5\frac{3+4}{1}",
            r"\frac{(3+4)*5}{1}",
            r"\frac{3+4}{5}",
            r"5(3+4)",
            r"$5(3+4)$",
            r"(3+4)\cdots 5",
            r"(3+4)\timesx 5",
            r"(3+4)*5\%",
            "(3+4)^5",
            r"(3+4)*5 \approx 35",
            r"(3+4)*5 \text{ = 35}",
            r"\sqrt{3+4}*5",
            r"\boxed{(3+4)*5}{}",
            r"\frac{3+4}*5",
            r"\frac{3+4}",
            r"\frac{}{}",
            r"3\,4+5",
            "$3$4+5",
            "34+5/5",
            "3+4*5",
            "$3+4*5$",
            r"3+4\times 5",
            "[3]+4*5",
            "`3+4`*5",
            r"\(3+4\)*5",
            "(3+4)*5..5",
            "(3+4)*5!",
            "(3+4)*5?",
            "((3+4)*5",
            r"\boxed{(3+4)*5",
            "(3+4)*5}",
            "(3+4)*5.5",
            "(3+4)×５",
            "-[3+4]*5",
            "–(3+4)*5",
            "(3+4)—5",
            "(3+4)÷5",
            r"(3+4)\div 5",
            r"\boxed{}",
            "$$",
            "``",
            "[]",
            "$[]$",
            r"\times",
            r"\boxed{3}\boxed{4}",
            "$(3+4)*5$, $35$",
            r"(3+4)*5 \\ 35",
            "(3+4)*5 or 35",
            "(3+4)*5; 5*(3+4)",
            "$(3+4)*5$ $(3+4)*5$",
            "(3+4)*5 \u200b= 35",
            r"\mathrm{(3+4)*5}",
            r"(3+4)*5 = \boxed{36}",
            r"(3+4)*5 \neq 35",
            r"(3+4)*5 \ne 35",
            "(3+4)*5 ≠ 35",
            "~~(3+4)*5~~",
            "3½*4*5",
            "(3+4)*5 ≈ 35",
            "(3+4)*5 == 35",
            "*(3+4)*6*",
            "(3:4)*5",
            "<b>(3+4)*5</b> or 35",
            "(3+4)<sup>5</sup>",
        ],
    ),
    ((8, 3, 8, 3), 24): (
        [
            r"\frac{8}{3-\frac{8}{3}}",
            r"\dfrac{8}{3 - \tfrac{8}{3}}",
            r"$\frac{8}{3-\frac{8}{3}}$",
            r"8 \div (3 - 8 \div 3)",
            "8÷[3−8÷3]",
            "8∕(3-8∕3)",
            "8⁄(3-8⁄3)",
            "8➗(3-8➗3)",
            "8／(3－8／3)",
            r"\boxed{\frac{8}{3-\frac{8}{3}}}.",
            r"\frac {8} {3-\frac {8} {3}} = 24",
            r"8 / \left[ 3 - \frac{8}{3} \right]",
            r"\frac{[8]}{(3-\cfrac{8}{3})}",
            r"\frac{8}{3-8/3}",
        ],
        [
            r"\frac{8}{3-\frac{3}{8}}",
            r"\frac{3-\frac{8}{3}}{8}",
            r"\frac{8}{3}-\frac{8}{3}",
            r"8\frac{3}{8}-3",
            r"\frac{8}{3-\frac{8}{3}} = 25",
            r"\frac{8}{3-\frac{8}{3}",
            "8/(3-8//3)",
            r"\frac{88}{33}",
            r"\frac{8}{3-\frac{8}{3}}\cdot",
            r"\binom{8}{3-\frac{8}{3}}",
            r"\frac{8}{3-2.666}",
            r"\frac{8}{3-3}\frac{8}{3}",
        ],
    ),
    ((6, 2, 1), 4): (
        [
            r"\frac{6}{2} + 1",
            r"1+\frac{6}{2}",
            "6÷2+1",
            r"6 \div 2 + 1 = 4",
            r"\frac62+1",
            r"\frac 6 2 + 1",
            "`6/2+1`",
            "6–2×1",
            r"6 - 2 \cdot 1",
            "[6-2]/1",
            "$6 - 2 * 1 = 4$",
            "(6 – 2) ÷ 1.",
        ],
        [
            r"1\frac{6}{2}",
            r"\frac{6}{2+1}",
            "6–2–1",
            r"6-2\cdot -1",
            r"\frac{6}{2}1",
            r"6^1-2",
            "6-2",
            "[6-2]",
            r"\frac{6-2}{1} = \frac{8}{1}",
            "6-2=4",
            "4",
            "6 2 1",
        ],
    ),
}


@pytest.mark.parametrize(
    ("numbers", "target", "answer", "right"),
    [(list(numbers), target, answer, right)
     for (numbers, target), sides in WRITTEN.items()
     for right, answers in zip((True, False), sides, strict=True) for answer in answers],
)  # fmt: skip
def test_notation_is_forgiven_and_arithmetic_is_not(
    numbers: list[int], target: int, answer: str, right: bool
) -> None:
    problem = TASK.from_row({"numbers": numbers, "target": target})
    text = f"<think>x</think><answer>{answer}</answer>"
    for rules in ("exact", "strict", "subset"):
        if right or rules != "subset":
            verdict = TASK.rules[rules](problem, text, "think", "thinking").verdict
            assert verdict.correct is right, verdict.reason


def test_grading_answers_in_the_wrong_format() -> None:
    problem = TASK.from_row({"numbers": [3, 4, 5], "target": 35})
    assert TASK.gold(problem) is None  # nothing to leak
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


@pytest.mark.parametrize(
    "row",
    [
        {"numbers": [3, 4]}, {"target": 7}, {"numbers": "3 4", "target": 7},
        {"numbers": [], "target": 7}, {"numbers": [3, "4"], "target": 7},
        {"numbers": [3, 4.0], "target": 7}, {"numbers": [True, 4], "target": 5},
        {"numbers": [-3, 4], "target": 1}, {"numbers": [1] * 21, "target": 21},
        {"numbers": [3, 4], "target": "7"}, {"numbers": [3, 4], "target": 7.0},
        {"numbers": [3, 4], "target": True},
    ],
)  # fmt: skip
def test_bad_rows_are_named(row: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        TASK.from_row(row)
    assert "numbers" in caught.value.message or "target" in caught.value.message
    assert caught.value.hint


# ---- answers whose value is built with them ------------------------------------------------------

SPELLED = str.maketrans({"*": "×", "/": "÷", "-": "−"})


def judge_expression(text: str, rng: random.Random) -> None:
    value, numbers = ast_value(text), [int(n) for n in re.findall(r"\d+", text)]
    whole = value is not None and value.denominator == 1
    target = int(value) if value is not None and whole else rng.randint(10, 100)
    given_numbers = rng.sample(numbers, len(numbers))
    problem = TASK.from_row({"numbers": given_numbers[:20], "target": abs(target)})
    for written in (text, text.translate(SPELLED)):
        said = f"<think>x</think>\n<answer>{written}</answer>"
        correct = TASK.grade(problem, said, "think", "thinking").verdict.correct
        assert correct is (whole and target >= 0), written
    # Exactly: not for another target, not with one number more, less or another.
    assert not check(given_numbers, target + 1, text)[0]
    assert not check([*given_numbers, 1], target, text)[0]
    assert not check(given_numbers[1:], target, text)[0]
    assert not check([given_numbers[0] + 1, *given_numbers[1:]], target, text)[0]
    # A part of more numbers is what `subset` takes, and nothing else does.
    assert check([*given_numbers, 7], target, text, every=False)[0] is whole
    assert not check(given_numbers[1:], target, text, every=False)[0]


@pytest.mark.parametrize("examples", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_countdown_is_exact(examples: int) -> None:
    texts = st.recursive(st.integers(0, 99).map(str), grown, max_leaves=6)
    plain = texts.filter(lambda text: len(text) <= 400 and "//" not in text and "**" not in text)
    settings(max_examples=examples)(given(plain, st.randoms())(judge_expression))()


# ---- the other rules -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2**3**2", 512), ("-2**2", -4), ("2**-1", 0.5), ("2*-3", -6), ("7//2*2", 6), ("1-2-3", -4),
        ("8/4/2", 1.0), ("--3", 3), ("2+3*4", 14), ("00", 0), ("1.", 1.0), (".5", 0.5), ("+4", 4),
        ("-7//2", -4), ("7.5//2", 3.0), ("2.25**.5", 1.5), ("(-8)**3.", -512.0), ("1.5*4", 6.0),
        ("2**2048", 2**2048), ("2**2049", None), ("1**5000", 1), ("(-1)**5001", -1), ("0**0", 1),
        ("2**2047*2**2047", 2**4094), ("2**2048*2**2047", None), ("0.**-1", None),
        ("0**.5", 0.0),
        ("(3)(4)", None), ("3 4", None), ("012", None), ("()", None), ("1/0", None), ("3+", None),
        ("9**9**9**9", None), ("(-8)**.5", None), ("3*/4", None), (")3(", None), ("1..5", None),
    ],
)  # fmt: skip
def test_tinyzero_computes_as_python_does(text: str, value: float | None) -> None:
    assert python_value(text) == value


# Of 2 5 8 → 20: an answer; who finds it right; what TinyZero says of it.
RULES: list[tuple[str, str, str]] = [
    ("8*5/2", "exact strict subset tinyzero", ""),
    ("8*5" + " " * 395 + "/2", "exact strict subset tinyzero", ""),  # 400 characters
    ("8*5\u00a0/2", "exact strict subset",
     "other characters than digits, operators and parentheses"),
    ("2.5*8", "tinyzero", ""), ("8*5//2", "tinyzero", ""), ("20", "", "not the given numbers"),
    ("5*8-20", "", "not the given numbers"), ("5*8/(8-2*3)", "", "not the given numbers"),
    ("2*5+8", "", "the answer is 18, not 20"), ("5*8", "", "not the given numbers"),
    ("(2+8)*2", "", "not the given numbers"), ("5*(8/2)", "exact strict subset tinyzero", ""),
    ("2*5+8)", "", "no expression that could be computed"),
    ("2*5+x8", "", "other characters than digits, operators and parentheses"),
    (" " * 401 + "2", "", "not the given numbers"), ("2+" * 201, "", "longer than 400 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "right", "reason"), RULES, ids=[r[0][:12] for r in RULES])
def test_what_each_set_of_rules_finds_right(answer: str, right: str, reason: str) -> None:
    problem = TASK.from_row({"numbers": [2, 5, 8], "target": 20})
    text = f"<think>x</think><answer>{answer}</answer>"
    for rules, grade in TASK.rules.items():
        verdict = grade(problem, text, "think", "thinking").verdict
        assert (verdict.correct, verdict.format_ok) == (rules in right.split(), True), rules
        if rules == "tinyzero":
            assert verdict.reason == reason


def test_subset_lets_numbers_be_left_out() -> None:
    problem = TASK.from_row({"numbers": [2, 5, 8], "target": 40})
    for answer, subset in (("5*8", True), ("8*(2+5)-2*8", False), ("2*5*4", False)):
        text = f"<think>x</think>\n<answer>{answer}</answer>"
        for rules, right in (("subset", subset), ("exact", False), ("strict", False)):
            assert TASK.rules[rules](problem, text, "think", "thinking").verdict.correct is right


def test_tinyzero_looks_at_the_last_line_alone() -> None:
    problem = TASK.from_row({"numbers": [2, 5, 8], "target": 20})
    for text, right in (
        ("<answer>8*5/2</answer>\nso", False), ("<answer>8*5/2</answer>", True),
        ("<answer>1</answer><answer>8*5/2</answer><answer>", True), ("<answer>8*5/2", False),
    ):  # fmt: skip
        grade = TASK.rules["tinyzero"](problem, text, "think", "direct")
        assert (grade.verdict.correct, grade.parsed) == (right, "8*5/2" if right else None)


@pytest.mark.parametrize(("off", "right"), [(10**6, True), (10**5, False), (10**4, False)])
def test_tinyzero_allows_for_rounding(off: int, right: bool) -> None:
    problem = TASK.from_row({"numbers": [1, 3, off], "target": 3})
    text = f"<answer>3+1/{off}</answer>"
    assert TASK.rules["tinyzero"](problem, text, "think", "direct").verdict.correct is right
    assert not TASK.grade(problem, text, "think", "direct").verdict.correct
