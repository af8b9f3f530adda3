"""Countdown: combine the given numbers, each exactly once, with + - * / so that they make a target.

Generated problems have n numbers from 1 to 99 and a target from 10 to 100, made by applying random
operations to random pairs, every result whole, positive and at most 200. Those of other people come
from a file or a hub data set: Jiayi-Pan/Countdown-Tasks-3to4 has 490,364 rows {"nums": [44, 19,
35], "target": 98} and one split; a row that has no solution is left out. A problem belongs to a
part by a hash of (sorted numbers, target), so that a generated training problem is never a held-out
one of a data set, whatever seeds made it.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, islice
from math import gcd
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core import seeds
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.core.seeds import rng_for
from mlxreflect.data.rows import good_rows, rows_of
from mlxreflect.graders.countdown import (
    COUNTDOWN_RULES,
    NotAnExpression,
    combine,
    parse_expression,
)
from mlxreflect.tasks.base import GENERATED_PARTS, Review, Solver, Task, generate

LARGEST = 200  # of results that a person would be glad to have on the way
MAX_NUMBERS = 20
MAX_SOLVED = 6  # numbers of a problem that is still searched for a solution
Drawn = tuple[list[int], int]  # numbers and target
HINT = (
    "connect to the internet once so that `datasets` can cache it, or set task.source to a file "
    'with rows such as {"nums": [44, 19, 35], "target": 98}'
)
EXAMPLE = 'write "numbers": [3, 4, 5], "target": 35'


def part_of(numbers: list[int], target: int) -> str:
    """Returns a problem's part: one tenth each is held out and for development."""
    return seeds.part_of(f"{sorted(numbers)}={target}", GENERATED_PARTS, size=1)


def key_of(drawn: Drawn) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(drawn[0])), drawn[1]


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """Returns the problems of a part; the held-out ones ignore the seed.

    `config.source` names problems of other people. Raises UserError.
    """
    if config.source:
        return problems_of_data(config, part)
    rng = rng_for("countdown", part, 0 if part == "heldout" else seed)
    drawn = generate(
        "countdown", config, part, lambda: draw(rng, rng.choice(config.numbers)),
        lambda one: part_of(*one), key_of,
    )  # fmt: skip
    return [make_problem("countdown", {"numbers": n, "target": target}) for n, target in drawn]


def draw(rng: random.Random, count: int) -> Drawn | None:
    """Tries to make a problem; None where the operations gave no target from 10 to 100."""
    bits, below = rng.getrandbits, seeds.below
    numbers = [below(bits, 99) + 1 for _ in range(count)]
    values = list(numbers)
    while (left := len(values)) > 1:
        # What rng.sample(range(left), 2) draws.
        first, second = below(bits, left), below(bits, left - 1)
        second = left - 1 if second == first else second
        one, other = values.pop(max(first, second)), values.pop(min(first, second))
        high, low = max(one, other), min(one, other)
        match below(bits, 4):
            case 0:
                value = high + low
            case 1:
                value = high - low
            case 2:
                value = high * low
            case _:
                value = high // low if high % low == 0 else 0
        if not 0 < value <= LARGEST:
            return None
        values.append(value)
    return (numbers, values[0]) if 10 <= values[0] <= 100 else None


# ---- problems of other people --------------------------------------------------------------------


def problems_of_data(config: TaskConfig, part: str) -> list[Problem]:
    """Returns the first `config.limit` different problems of a part (0: all), in the rows' order.

    Rows are read and verified only as far as they are needed.
    """
    found: dict[tuple[tuple[int, ...], int], Problem] = {}
    for problem in read_problems(config):
        drawn = problem.fields["numbers"], problem.fields["target"]
        mine = part == "all" or part_of(*drawn) == part
        if key_of(drawn) not in found and mine and solvable(*drawn):
            found[key_of(drawn)] = problem
            if len(found) == config.limit:
                break
    if not found:
        raise UserError(
            f"{config.source}: no problem with a solution in the part {part!r}",
            'give more rows, or an evaluation with part = "all"',
        )
    return list(found.values())


def read_problems(config: TaskConfig) -> Iterator[Problem]:
    """Yields the problem of each row of `config.source`. Raises UserError that names a bad row."""
    for row in good_rows(rows_of(config.source, config.config, config.split, HINT)):
        try:
            problem = problem_of(row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error.message}", error.hint) from None
        if len(problem.fields["numbers"]) > MAX_SOLVED:
            raise UserError(
                f"{row.where}: more than {MAX_SOLVED} numbers", "leave out rows with so many"
            )
        yield problem


def count_unsolvable(config: TaskConfig, most: int) -> tuple[int, int]:
    """Returns (rows without a solution, rows looked at), of the first `most`. Raises UserError."""
    fields = [problem.fields for problem in islice(read_problems(config), most)]
    return sum(not solvable(one["numbers"], one["target"]) for one in fields), len(fields)


def problem_of(row: dict[str, Any]) -> Problem:
    """Returns a problem of a row's numbers (or nums) and target. Raises UserError."""
    numbers, target = row.get("numbers", row.get("nums")), row.get("target")
    fine = isinstance(numbers, list) and 1 <= len(numbers) <= MAX_NUMBERS
    if not fine or not all(type(n) is int and n >= 0 for n in numbers or []):
        raise UserError(f"numbers = {str(numbers)[:60]}: not a list of whole numbers", EXAMPLE)
    if type(target) is not int:
        raise UserError(f"target = {str(target)[:60]}: not a whole number", EXAMPLE)
    return make_problem("countdown", {"numbers": numbers, "target": target})


# ---- the solver ----------------------------------------------------------------------------------

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


def given(problem: Problem) -> list[Term]:
    return [Term(Fraction(n), str(n), True) for n in problem.fields["numbers"]]


def equation(line: str) -> tuple[str, str] | None:
    """Returns the (expression, result) a line states first; None for a line of prose."""
    found = EQUATION.search(LABEL.sub("", line[:MAX_LINE].replace("−", "-")))
    return (found[1].strip(), found[2]) if found else None


def steps_from(terms: list[Term]) -> Iterator[tuple[str, list[Term]]]:
    """Yields every step from the numbers at hand as (its line, what is then at hand).

    Of what is at hand its result is the last.
    """
    for a, b in combinations(terms, 2):
        high, low = (a, b) if a.value >= b.value else (b, a)
        pairs = [("+", a, b), ("*", a, b), ("-", high, low)]
        if low.value:
            pairs.append(("/", high, low))
        if high.value and low.value != high.value:
            pairs += [("-", low, high), ("/", low, high)]
        rest = [term for term in terms if term is not a and term is not b]
        for operator, left, right in pairs:
            value = combine(operator, left.value, right.value)
            sides = [t.text if t.atom else f"( {t.text} )" for t in (left, right)]
            made = Term(value, f" {operator} ".join(sides), False)
            yield f"{left.value} {operator} {right.value} = {value}", [*rest, made]


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
    value, _ = parse_expression(expression)
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
    expression, _ = equation(line) or ("", "")
    try:
        _, value = read_step(expression, {t.value for t in terms})
    except NotAnExpression:
        return ""
    after, _ = take(terms, expression, str(value))
    again = f"{line.partition('=')[0]}= {value}"
    fine = after is not None and 1 < len(after) < len(terms)
    return again if fine and equation(again) == (expression, str(value)) else ""


def finish(problem: Problem, kept: list[str], seed: int) -> tuple[str, str] | None:
    """Continues the kept lines to the target: (thought, answer), None where they lead nowhere.

    Prefers steps with whole, positive results of at most 200, as a person would.
    """
    terms, valid, steps, fault = walk(problem, kept, search=False)
    if fault or valid < len(kept):
        return None
    for plain in (True, False):
        found = search_path(terms, problem.fields["target"], plain, seed)
        if found is not None:
            new = [f"step {steps + i}: {step}" for i, step in enumerate(found[0], 1)]
            return "\n".join([*kept, *new]), found[1]
    return None


def search_path(
    terms: list[Term], target: int, plain: bool, seed: int
) -> tuple[list[str], str] | None:
    """Returns (steps to the target, the answer), depth first in an order that the seed shuffles."""
    if len(terms) == 1:
        return ([], terms[0].text) if terms[0].value == target else None
    options = list(steps_from(terms))
    rng_for("countdown", seed, len(terms)).shuffle(options)
    for step, after in options:
        value = after[-1].value
        if plain and not (value.denominator == 1 and 0 < value <= LARGEST):
            continue
        if found := search_path(after, target, plain, seed):
            return [step, *found[0]], found[1]
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
    for one in range(1, mask):
        if one & mask == one and one < mask ^ one:
            yield one, mask ^ one


def results(a: Ratio, b: Ratio) -> Iterator[Ratio]:
    """Yields a + b, a - b, b - a, a * b, a / b, b / a."""
    cross, back, bottom = a[0] * b[1], b[0] * a[1], a[1] * b[1]
    sums = [(top, bottom) for top in (cross + back, cross - back, back - cross, a[0] * b[0])]
    for top, below in [*sums, (cross, back), (back, cross)]:
        if below:
            divisor = gcd(top, below) if below > 0 else -gcd(top, below)
            yield top // divisor, below // divisor


def missing(a: Ratio, target: Ratio) -> Iterator[Ratio]:
    """Yields every b for which one of `results(a, b)` is the target (but all, for 0 = 0 * b)."""
    return results(target, a) if a[0] else iter((target, (-target[0], target[1])))


# ---- the task ------------------------------------------------------------------------------------


def instruction(problem: Problem) -> str:
    return (
        "Combine the given numbers, each exactly once, with + - * / and parentheses so that the "
        'result is the target. Write each step on a line of its own, as in "step 1: 3 + 4 = 7". '
        "The final answer is the expression alone."
    )


def show(problem: Problem) -> str:
    numbers = " ".join(str(n) for n in problem.fields["numbers"])
    return f"Numbers: {numbers}\nTarget: {problem.fields['target']}"


TASK = Task(
    name="countdown",
    load=load,
    instruction=instruction,
    show=show,
    gold=lambda problem: None,
    from_row=problem_of,
    rules=COUNTDOWN_RULES,
    solver=Solver(review, finish),
    generated=True,
    checkable=True,
)
