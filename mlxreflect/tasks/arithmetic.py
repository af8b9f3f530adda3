"""Arithmetic: expressions of two to four operations on whole numbers of up to five digits.

A problem belongs to a part by a hash of its expression, so the parts are disjoint whatever seeds
made them. Steps are written one a line, as in "step 1: 345 * 6 = 2070".
"""

import random
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.core.seeds import rng_for
from mlxreflect.data.rows import part_of
from mlxreflect.graders.number import NUMBER_RULES, row_gold
from mlxreflect.tasks.arithmetic_solver import compute, finish, review
from mlxreflect.tasks.base import GENERATED_PARTS, Solver, Task, check_limit

DEFAULT_PROBLEMS = 1000
LARGEST = 99_999  # of operands and of every result on the way
DIGITS = (1, 2, 2, 2, 3, 3, 4, 5)  # how long operands are: short ones are more frequent


def draw(rng: random.Random) -> tuple[str, int] | None:
    """One try at an expression and its value; None where a result on the way is too large."""
    operands = [draw_operand(rng) for _ in range(rng.randint(3, 5))]
    if rng.random() < 0.1:
        operands[0] = f"-{operands[0]}"
    if rng.random() < 0.4:
        first = rng.randrange(len(operands) - 1)
        last = rng.randrange(first + 1, len(operands) if first else len(operands) - 1)
        operands[first] = f"({operands[first]}"
        operands[last] = f"{operands[last]})"
    pieces = [operands[0]]
    for operand in operands[1:]:
        pieces += [rng.choice("+-*"), operand]
    expression = " ".join(pieces)
    results = compute(expression)
    if any(abs(value) > LARGEST for value in results):
        return None
    return expression, results[-1]


def draw_operand(rng: random.Random) -> str:
    digits = rng.choice(DIGITS)
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """`config.limit` different problems (1000 when 0) of a part; only training uses the seed."""
    if config.source:
        raise UserError(
            f"task.source = {config.source!r}: arithmetic makes its own problems",
            'remove task.source, or set task.name = "jsonl"',
        )
    check_limit("arithmetic", config.limit)
    rng = rng_for("arithmetic", part, seed if part == "train" else 0)
    found: dict[str, int] = {}
    while len(found) < (config.limit or DEFAULT_PROBLEMS):
        drawn = draw(rng)
        if drawn and part in ("all", part_of(drawn[0], GENERATED_PARTS)):
            found[drawn[0]] = drawn[1]
    return [make_problem("arithmetic", {"expression": e}, str(v)) for e, v in found.items()]


def instruction(problem: Problem) -> str:
    return (
        "Compute the value of the expression. Write each operation on a line of its own, as in "
        '"step 1: 345 * 6 = 2070". The final answer is a number only.'
    )


def show(problem: Problem) -> str:
    return f"Compute: {problem.fields['expression']}"


def from_row(row: dict[str, Any]) -> Problem:
    return make_problem("arithmetic", {"expression": str(row.get("expression", ""))}, row_gold(row))


TASK = Task(
    name="arithmetic",
    load=load,
    instruction=instruction,
    show=show,
    grade=NUMBER_RULES["flexible"],
    from_row=from_row,
    rules=NUMBER_RULES,
    solver=Solver(review, finish),
    generated=True,
)
