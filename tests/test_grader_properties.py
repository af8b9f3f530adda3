"""Countdown and number graders against values that are built together with the text they read."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxreflect.graders.countdown import check, python_value
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.countdown import solvable

MANY = 10_000
COUNTDOWN = TASKS["countdown"]
Built = tuple[str, Fraction | None, list[int]]  # text, exact value (None: divides by zero), numbers


def build(rng: random.Random, leaves: int) -> Built:
    """A random expression, and its value by exact arithmetic as it is put together."""
    if leaves == 1:
        number = rng.randint(0, 99)
        built: Built = (str(number), Fraction(number), [number])
    else:
        left = build(rng, cut := rng.randint(1, leaves - 1))
        built = join(rng.choice("+-*/"), left, build(rng, leaves - cut), rng)
    if rng.random() < 0.15:
        text, value, numbers = built
        built = (f"-({text})", None if value is None else -value, numbers)
    return built


def join(operator: str, left: Built, right: Built, rng: random.Random) -> Built:
    """Both sides in parentheses unless they are one number: nothing hangs on precedence here."""
    signs = {"*": rng.choice("*×·"), "/": rng.choice("/÷"), "-": rng.choice("-−"), "+": "+"}
    gap = rng.choice(["", " ", "  "])
    sides = [t if t.isdigit() else f"({t})" for t in (left[0], right[0])]
    text = f"{sides[0]}{gap}{signs[operator]}{gap}{sides[1]}"
    a, b, value = left[1], right[1], None
    if a is not None and b is not None:
        value = {"+": a + b, "-": a - b, "*": a * b}.get(operator)
        if operator == "/" and b != 0:
            value = a / b
    return text, value, left[2] + right[2]


def judge_expression(seed: int) -> None:
    rng = random.Random(seed)
    text, value, numbers = build(rng, rng.randint(1, 6))
    if len(text) > 400:
        return
    whole = value is not None and value.denominator == 1
    target = int(value) if value is not None and whole else rng.randint(10, 100)
    asked = rng.sample(numbers, len(numbers))
    problem = COUNTDOWN.from_row({"numbers": asked, "target": abs(target)})
    expected = whole and target >= 0
    said = f"<think>x</think>\n<answer>{text}</answer>"
    assert COUNTDOWN.grade(problem, said, "think", "thinking").verdict.correct is expected, text
    # Exactly: not for another target, not with one number more, less or another.
    assert not check(asked, target + 1, text)[0]
    assert not check([*asked, 1], target, text)[0]
    assert not check(asked[1:], target, text)[0]
    assert not check([asked[0] + 1, *asked[1:]], target, text)[0]
    # A part of more numbers is what `subset` takes, and nothing else does.
    assert check([*asked, 7], target, text, every=False)[0] is whole
    assert not check(asked[1:], target, text, every=False)[0]


@given(st.integers(0, 2**64))
@settings(max_examples=300)
def test_countdown_is_exact(seed: int) -> None:
    judge_expression(seed)


@pytest.mark.slow
@given(st.integers(0, 2**64))
@settings(max_examples=MANY)
def test_countdown_is_exact_on_ten_thousand(seed: int) -> None:
    judge_expression(seed)


def judge_number(whole: int, digits: str, dress: str) -> None:
    """A number as a person would write it is read as the rational that its digits are."""
    value = Fraction(f"{whole}.{digits}") if digits else Fraction(whole)
    written = f"{whole:,}" + (f".{digits}" if digits else "")
    text = dress.replace("@", written)
    task = TASKS["gsm8k"]
    right, wrong = (
        task.from_row({"gold": f"{g.numerator}/{g.denominator}"})
        for g in (value, value + Fraction(1, 10**12))
    )
    assert task.grade(right, text, "think", "thinking").verdict.correct, text
    assert not task.grade(wrong, text, "think", "thinking").verdict.correct, text


DRESSES = st.sampled_from([
    "#### @", "<think>1 + 1</think><answer>@</answer>", "So it is \\boxed{@}.", "The answer is @.",
    "<answer>$@</answer>", "<answer>**@**</answer>", "<answer>x = @</answer>", "2 + 2 gives @",
    "\\boxed{\\text{@ dollars}}", "<answer>@ eggs.</answer>", "#### $@.", "The answer is: @ a day",
])  # fmt: skip
WHOLES = st.integers(-(10**15), 10**15)
DECIMALS = st.text("0123456789", max_size=9)


@given(WHOLES, DECIMALS, DRESSES)
@settings(max_examples=150)
def test_numbers_are_exact(whole: int, digits: str, dress: str) -> None:
    judge_number(whole, digits if whole else "", dress)


@pytest.mark.slow
@given(WHOLES, DECIMALS, DRESSES)
@settings(max_examples=MANY)
def test_numbers_are_exact_ten_thousand_times(whole: int, digits: str, dress: str) -> None:
    judge_number(whole, digits if whole else "", dress)


# ---- TinyZero's arithmetic is Python's -----------------------------------------------------------

Float = tuple[str, float | int | None]


def build_python(rng: random.Random, leaves: int) -> Float:
    if leaves == 1:
        text = rng.choice(["{}", "{}.5", "{}.", ".{}"]).format(rng.randint(0, 30))
        return text, float(text) if "." in text else int(text)
    cut = rng.randint(1, leaves - 1)
    (a, x), (b, y) = build_python(rng, cut), build_python(rng, leaves - cut)
    operator = rng.choice(["+", "-", "*", "/", "//", "**"])
    value: float | int | None = None
    try:
        if x is not None and y is not None and not (operator == "**" and (abs(y) > 9 or x < 0)):
            value = {
                "+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y,
                "//": lambda: x // y, "**": lambda: x**y,
            }[operator]()  # fmt: skip
    except ArithmeticError:
        value = None
    return f"({a}){operator}({b})", value


@given(st.integers(0, 2**64))
@settings(max_examples=200)
def test_tinyzero_computes_as_python_does(seed: int) -> None:
    text, value = build_python(random.Random(seed), random.Random(seed).randint(1, 5))
    if value is None or len(text) > 400 or abs(value) > 1e100:
        return
    assert python_value(text) == pytest.approx(value, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2**3**2", 512), ("-2**2", -4), ("2**-1", 0.5), ("2*-3", -6), ("7//2*2", 6), ("1-2-3", -4),
        ("8/4/2", 1.0), ("--3", 3), ("2+3*4", 14), ("00", 0), ("1.", 1.0), (".5", 0.5),
        ("(3)(4)", None), ("3 4", None), ("012", None), ("()", None), ("1/0", None), ("3+", None),
        ("9**9**9**9", None), ("(-8)**.5", None), ("3*/4", None), (")3(", None), ("1..5", None),
    ],
)  # fmt: skip
def test_tinyzero_on_the_corners(text: str, value: float | None) -> None:
    assert python_value(text) == value


def test_tinyzero_passes_what_the_headline_does_not() -> None:
    problem = COUNTDOWN.from_row({"numbers": [2, 5, 8], "target": 20})
    for answer, theirs in (("2.5*8", True), ("8*5//2", True), ("8*5/2", True), ("2*5+8", False)):
        text = f"<think>x</think>\n<answer>{answer}</answer>"
        assert (
            COUNTDOWN.rules["tinyzero"](problem, text, "think", "thinking").verdict.correct
            is theirs
        )
        ours = COUNTDOWN.grade(problem, text, "think", "thinking").verdict.correct
        assert ours is (answer == "8*5/2")
    first_line = "<answer>8*5/2</answer>\nso"  # they look at the last line alone
    assert COUNTDOWN.grade(problem, first_line, "think", "direct").verdict.correct
    assert COUNTDOWN.rules["tinyzero"](problem, first_line, "think", "direct").parsed is None


def test_subset_lets_numbers_be_left_out() -> None:
    problem = COUNTDOWN.from_row({"numbers": [2, 5, 8], "target": 40})
    for answer, subset in (
        ("5*8", True),
        ("8*(2+5)-2*8", False),
        ("2*5*4", False),
        ("8*5+2", False),
    ):
        text = f"<think>x</think>\n<answer>{answer}</answer>"
        for rules, right in (("subset", subset), ("exact", False), ("strict", False)):
            found = COUNTDOWN.rules[rules](problem, text, "think", "thinking").verdict
            assert (found.correct, found.format_ok) == (right, True), (rules, answer)


def test_tinyzero_says_why_an_answer_is_wrong() -> None:
    problem = COUNTDOWN.from_row({"numbers": [2, 5, 8], "target": 20})
    for answer, reason in (
        ("2*5+8", "the answer is 18, not 20"),
        ("5*8", "not the given numbers"),
        ("2*5+8)", "no expression that could be computed"),
        ("2*5+x8", "other characters than digits, operators and parentheses"),
        (" " * 401 + "2", "not the given numbers"),
        ("2+" * 201, "longer than 400 characters"),
    ):
        text = f"<think>x</think><answer>{answer}</answer>"
        found = COUNTDOWN.rules["tinyzero"](problem, text, "think", "thinking").verdict
        assert (found.correct, found.format_ok, found.reason) == (False, True, reason)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 40))
@settings(max_examples=30)
def test_what_is_solvable_is_what_brute_force_reaches(numbers: list[int], target: int) -> None:
    assert solvable(numbers, target) == (Fraction(target) in reached(tuple(map(Fraction, numbers))))


def reached(values: tuple[Fraction, ...]) -> set[Fraction]:
    """Every value of an expression with all the numbers, by taking any two and putting one back."""
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
                    todo.append(tuple(sorted([*rest, c])))
    return found
