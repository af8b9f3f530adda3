"""Countdown: combine the given numbers, each exactly once, with + - * / so that they make a target.

Problems: n numbers from 1 to 99 and a target from 10 to 100, made by applying random operations to
random pairs, every result whole, positive and at most 200. A problem belongs to a part by a hash of
(sorted numbers, target), so the parts are disjoint whatever seeds made them.
"""

import hashlib
import random
from fractions import Fraction
from typing import Any

from mlxreflect.errors import UserError
from mlxreflect.prompts import parse_response
from mlxreflect.records import Problem, Verdict, make_problem
from mlxreflect.seeds import rng_for
from mlxreflect.tables import TaskConfig
from mlxreflect.tasks.base import Grade, Solver, Task
from mlxreflect.tasks.countdown_solver import finish, review
from mlxreflect.tasks.expression import NotAnExpression, parse_expression

DEFAULT_PROBLEMS = 1000
LARGEST = 200
MISSES = 200_000  # draws without a new problem after which there is none left


def part_of(numbers: list[int], target: int) -> str:
    """One tenth each is held out and kept for development, the rest is for training."""
    key = f"{sorted(numbers)}={target}"
    bucket = hashlib.sha256(key.encode()).digest()[0] % 10
    return {0: "heldout", 1: "dev"}.get(bucket, "train")


def draw(rng: random.Random, count: int) -> tuple[list[int], int] | None:
    """One try at a problem; None where the operations gave no target from 10 to 100."""
    numbers = [rng.randint(1, 99) for _ in range(count)]
    values = list(numbers)
    while len(values) > 1:
        a, b = sorted(rng.sample(range(len(values)), 2))
        high, low = max(values[a], values[b]), min(values[a], values[b])
        results = [high + low, high - low, high * low, high // low if high % low == 0 else 0]
        value = rng.choice(results)
        if not 0 < value <= LARGEST:
            return None
        values = [v for i, v in enumerate(values) if i not in (a, b)] + [value]
    return (numbers, values[0]) if 10 <= values[0] <= 100 else None


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """`config.limit` (1000 when 0) different problems of a part, or all it has.

    The held-out ones ignore the seed.
    """
    if config.source:
        raise UserError(
            f"task.source = {config.source!r}: countdown makes its own problems",
            'remove task.source, or set task.name = "jsonl"',
        )
    rng = rng_for("countdown", part, 0 if part == "heldout" else seed)
    problems: list[Problem] = []
    seen: set[tuple[tuple[int, ...], int]] = set()
    misses = 0
    while len(problems) < (config.limit or DEFAULT_PROBLEMS) and misses < MISSES:
        misses += 1
        drawn = draw(rng, rng.choice(config.numbers))
        if drawn is None:
            continue
        numbers, target = drawn
        key = (tuple(sorted(numbers)), target)
        if key in seen or part not in ("all", part_of(numbers, target)):
            continue
        seen.add(key)
        misses = 0
        problems.append(make_problem("countdown", {"numbers": numbers, "target": target}))
    return problems


def instruction(problem: Problem) -> str:
    return (
        "Combine the given numbers, each exactly once, with + - * / and parentheses so that the "
        'result is the target. Write each step on a line of its own, as in "step 1: 3 + 4 = 7". '
        "The final answer is the expression alone."
    )


def show(problem: Problem) -> str:
    numbers = " ".join(str(n) for n in problem.fields["numbers"])
    return f"Numbers: {numbers}\nTarget: {problem.fields['target']}"


def check(numbers: list[int], target: int, answer: str) -> tuple[bool, str]:
    """Whether an expression uses every number exactly once and is exactly the target, and why."""
    text, equals, right = answer.partition("=")
    try:
        found = parse_expression(text)
        if equals and parse_expression(right).value != found.value:
            return False, f"{answer[:80]!r} is not true"
    except NotAnExpression as error:
        return False, f"not an expression of whole numbers: {error}"
    if sorted(found.literals) != sorted(numbers):
        return False, f"uses {show_numbers(found.literals)} instead of {show_numbers(numbers)}"
    if found.value != target:
        return False, f"the answer is {show_value(found.value)}, not {target}"
    return True, ""


def show_numbers(numbers: list[int]) -> str:
    return " ".join(str(n) for n in sorted(numbers)[:20])


def show_value(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"a number of {len(text)} digits"


def grade(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
    parsed = parse_response(text, tags, style)
    if parsed.answer is None:
        return Grade(None, Verdict(False, parsed.format_ok, parsed.reason))
    correct, reason = check(problem.fields["numbers"], problem.fields["target"], parsed.answer)
    return Grade(parsed.answer[:400], Verdict(correct, parsed.format_ok, reason or parsed.reason))


def from_row(row: dict[str, Any]) -> Problem:
    numbers, target = row.get("numbers"), row.get("target")
    fine = isinstance(numbers, list) and 1 <= len(numbers) <= 20
    if not fine or not all(type(n) is int and n >= 0 for n in numbers or []):
        raise UserError(
            f"numbers = {str(numbers)[:60]}: not a list of whole numbers",
            'write "numbers": [3, 4, 5], "target": 35',
        )
    if type(target) is not int:
        raise UserError(
            f"target = {str(target)[:60]}: not a whole number",
            'write "numbers": [3, 4, 5], "target": 35',
        )
    return make_problem("countdown", {"numbers": numbers, "target": target})


TASK = Task(
    name="countdown",
    load=load,
    instruction=instruction,
    show=show,
    gold=lambda problem: None,
    grade=grade,
    from_row=from_row,
    solver=Solver(review, finish),
    generated=True,
)
