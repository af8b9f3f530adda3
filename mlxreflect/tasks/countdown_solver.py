"""The exact Countdown solver: checks written steps, and finishes an opening to a right answer."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

from mlxreflect.core.records import Problem
from mlxreflect.core.seeds import rng_for
from mlxreflect.graders.countdown import NotAnExpression, combine, parse_expression
from mlxreflect.tasks.base import Review

MAX_LINES = 200
MAX_LINE = 300
# An equation inside a line: an expression, an equals sign, a number and no more arithmetic.
EQUATION = re.compile(
    r"([\d(-][\d\s+*/()×÷-]*)=\s*(-?\d{1,12}(?:/\d{1,12}|\.\d{1,12})?)"
    r"(?!\d|\.\d|\s*[-+*/×÷]\s*[\d(])"
)
LABEL = re.compile(r"^\s*(?:step\s+\d+\s*[:.)]|\d+[.)]|-\s)\s*", re.IGNORECASE)
# One step on two values that may be negative or fractions, as an earlier step left them.
NUMBER = r"(-?\d{1,12}(?:/\d{1,12})?)"
BINARY = re.compile(rf"{NUMBER} ([-+*/]) {NUMBER}")


@dataclass(frozen=True)
class Term:
    """A number at hand, and the expression of given numbers that made it."""

    value: Fraction
    text: str
    atom: bool  # a given number: needs no parentheses


@dataclass(frozen=True)
class Step:
    """A step a solver may take: left operator right = value."""

    operator: str
    left: Term
    right: Term

    @property
    def value(self) -> Fraction:
        return combine(self.operator, self.left.value, self.right.value)

    @property
    def term(self) -> Term:
        left, right = (t.text if t.atom else f"( {t.text} )" for t in (self.left, self.right))
        return Term(self.value, f"{left} {self.operator} {right}", False)

    def __str__(self) -> str:
        return f"{self.left.value} {self.operator} {self.right.value} = {self.value}"


def given(problem: Problem) -> list[Term]:
    return [Term(Fraction(n), str(n), True) for n in problem.fields["numbers"]]


def equation(line: str) -> tuple[str, str] | None:
    """Returns the (expression, result) a line states first; None for a line of prose."""
    found = EQUATION.search(LABEL.sub("", line[:MAX_LINE].replace("−", "-")))
    return (found[1].strip(), found[2]) if found else None


def steps_from(terms: list[Term]) -> Iterator[tuple[Step, list[Term]]]:
    """Yields every step from the numbers at hand, with what is at hand after it."""
    for i, a in enumerate(terms):
        for j in range(i + 1, len(terms)):
            high, low = (a, terms[j]) if a.value >= terms[j].value else (terms[j], a)
            rest = [t for k, t in enumerate(terms) if k not in (i, j)]
            pairs = [("+", a, terms[j]), ("*", a, terms[j]), ("-", high, low)]
            if low.value:
                pairs.append(("/", high, low))
            if high.value and low.value != high.value:
                pairs += [("-", low, high), ("/", low, high)]
            for operator, left, right in pairs:
                step = Step(operator, left, right)
                yield step, [*rest, step.term]


def take(terms: list[Term], expression: str, result: str) -> tuple[list[Term] | None, str]:
    """Applies a written step: returns (numbers at hand after it, "") or (None, its fault)."""
    try:
        pieces, found = read_step(expression, {t.value for t in terms})
        if found != parse_fraction(result):
            return None, f"is wrong: {expression} is {found}, not {result}"
    except NotAnExpression as error:
        return None, f"is no arithmetic: {error}"
    rest, text, atom = list(terms), list[str](), False
    for piece in pieces:
        if isinstance(piece, str):
            text.append(piece)
            continue
        match = next((t for t in rest if t.value == piece), None)
        if match is None:
            return None, f"uses {piece}, which is not there: {expression} = {result}"
        rest.remove(match)
        atom = match.atom and len(pieces) == 1
        text.append(match.text if match.atom or len(pieces) == 1 else f"( {match.text} )")
    return [*rest, Term(found, " ".join(text), atom)], ""


def read_step(expression: str, there: set[Fraction]) -> tuple[list[Fraction | str], Fraction]:
    """Reads a written step as numbers and other characters, and its value."""
    if binary := BINARY.fullmatch(expression):
        left, right = parse_fraction(binary[1]), parse_fraction(binary[3])
        if {left, right} <= there:  # else 8/4 + 3 may be three numbers
            return [left, binary[2], right], combine(binary[2], left, right)
    pieces = re.findall(r"\d+|[^\s\d]", expression)
    value = parse_expression(expression).value
    return [Fraction(int(p)) if p.isdigit() else p for p in pieces], value


def parse_fraction(text: str) -> Fraction:
    top, _, bottom = text.partition("/")
    return combine("/", Fraction(top), Fraction(bottom or 1))


def walk(problem: Problem, lines: list[str], search: bool) -> tuple[list[Term], int, int, str]:
    """Follows a thought: returns (numbers at hand, valid lines, valid steps, first fault)."""
    terms, steps = given(problem), 0
    target = problem.fields["target"]
    for number, line in enumerate(lines[:MAX_LINES]):
        written = equation(line)
        if written is None:
            continue
        after, fault = take(terms, *written)
        if after and search and not solvable([t.value for t in after], target):
            end = f"ends at {after[0].value}, not {target}"
            fault = "leads nowhere" if len(after) > 1 else end
            fault += f": {written[0]} = {written[1]}"
        if after is None or fault:
            return terms, number, steps, f"step {steps + 1} {fault}"
        terms, steps = after, steps + 1
    return terms, min(len(lines), MAX_LINES), steps, ""


def review(problem: Problem, thought: str, search: bool) -> Review:
    """Finds the first line of a thought that is wrong, or (searching) that leads nowhere."""
    lines = thought.strip("\n").split("\n") if thought.strip() else []
    terms, valid, _, fault = walk(problem, lines, search)
    if not fault and len(terms) > 1:
        fault = f"the steps stop with {len(terms)} numbers left"
    elif not fault and terms[0].value != problem.fields["target"]:
        fault = f"the steps end at {terms[0].value}, not {problem.fields['target']}"
    return Review(lines[:valid], fault, mend(terms, lines[valid]) if valid < len(lines) else "")


def mend(terms: list[Term], line: str) -> str:
    """Computes a step's result again; returns "" where more is wrong, or it would be the last."""
    written = equation(line)
    if written is None:
        return ""
    try:
        _, value = read_step(written[0], {t.value for t in terms})
    except NotAnExpression:
        return ""
    after, _ = take(terms, written[0], str(value))
    again = f"{line.partition('=')[0]}= {value}"
    fine = after is not None and 1 < len(after) < len(terms)
    return again if fine and equation(again) == (written[0], str(value)) else ""


def finish(problem: Problem, kept: list[str], seed: int) -> tuple[str, str] | None:
    """Continues the kept lines to the target: (thought, answer), None where they lead nowhere.

    Prefers steps with whole, positive results of at most 200, as a person would.
    """
    terms, valid, steps, fault = walk(problem, kept, search=False)
    if fault or valid < len(kept):
        return None
    target = Fraction(problem.fields["target"])
    for plain in (True, False):
        path = search_path(terms, target, plain, seed)
        if path is not None:
            new = [f"step {steps + i}: {step}" for i, step in enumerate(path, 1)]
            answer = path[-1].term.text if path else terms[0].text
            return "\n".join([*kept, *new]), answer
    return None


def search_path(terms: list[Term], target: Fraction, plain: bool, seed: int) -> list[Step] | None:
    """Returns steps to the target, depth first in an order that the seed shuffles."""
    if len(terms) == 1:
        return [] if terms[0].value == target else None
    options = list(steps_from(terms))
    rng_for("countdown", seed, len(terms)).shuffle(options)
    for step, after in options:
        if plain and not (step.value.denominator == 1 and 0 < step.value <= 200):
            continue
        rest = search_path(after, target, plain, seed)
        if rest is not None:
            return [step, *rest]
    return None


# ---- is there a way at all -----------------------------------------------------------------------

Ratio = tuple[int, int]  # reduced, the denominator above 0


def solvable(numbers: Sequence[Fraction | int], target: int) -> bool:
    """Tells whether the numbers, each used once, make the target: exact, over all subsets.

    Every subset's values are collected from its two halves; of all numbers together only the half
    that would be missing is looked up. About half a millisecond for four numbers.
    """
    values = {1 << i: {(n.numerator, n.denominator)} for i, n in enumerate(numbers)}
    whole = (1 << len(numbers)) - 1
    if whole in values:
        return (target, 1) in values[whole]
    for mask in range(3, whole):
        if mask not in values:
            values[mask] = {v for one, other in halves(mask) for a in values[one]
                            for b in values[other] for v in results(a, b)}  # fmt: skip
    return any(
        a[0] == target == 0 or not values[other].isdisjoint(missing(a, (target, 1)))
        for one, other in halves(whole)
        for a in values[one]
    )


def halves(mask: int) -> Iterator[tuple[int, int]]:
    """Yields each way to split a set of bits in two, once; the smaller number first."""
    one = (mask - 1) & mask
    while one:
        if one < mask ^ one:
            yield one, mask ^ one
        one = (one - 1) & mask


def reduced(top: int, bottom: int) -> Ratio:
    if bottom < 0:
        top, bottom = -top, -bottom
    divisor = gcd(top, bottom)
    return top // divisor, bottom // divisor


def results(a: Ratio, b: Ratio) -> Iterator[Ratio]:
    """Yields a + b, a - b, b - a, a * b, a / b, b / a."""
    cross, back, bottom = a[0] * b[1], b[0] * a[1], a[1] * b[1]
    yield reduced(cross + back, bottom)
    yield reduced(cross - back, bottom)
    yield reduced(back - cross, bottom)
    yield reduced(a[0] * b[0], bottom)
    if back:
        yield reduced(cross, back)
    if cross:
        yield reduced(back, cross)


def missing(a: Ratio, target: Ratio) -> list[Ratio]:
    """Returns every b for which one of `results(a, b)` is the target (but all, for 0 = 0 * b)."""
    plus, times = (a[0] * target[1], target[0] * a[1]), a[1] * target[1]
    found = [
        reduced(plus[1] - plus[0], times),  # a + b
        reduced(plus[0] - plus[1], times),  # a - b
        reduced(plus[1] + plus[0], times),  # b - a
    ]
    if plus[0]:
        found.append(reduced(plus[1], plus[0]))  # a * b: t / a
        found.append(reduced(a[0] * target[0], times))  # b / a: t * a
    if target[0] and a[0]:
        found.append(reduced(plus[0], plus[1]))  # a / b: a / t
    return found
