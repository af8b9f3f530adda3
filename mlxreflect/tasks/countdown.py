"""Countdown: combine the given numbers, each exactly once, with + - * / so that they make a target.

Generated problems have n numbers from 1 to 99 and a target from 10 to 100, made by applying random
operations to random pairs, every result whole, positive and at most 200. Those of other people come
from a file or a hub data set: Jiayi-Pan/Countdown-Tasks-3to4 has 490,364 rows {"nums": [44, 19,
35], "target": 98} and one split; a row that has no solution is left out. A problem belongs to a
part by a hash of (sorted numbers, target), so that a generated training problem is never a held-out
one of a data set, whatever seeds made it.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core import seeds
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.core.seeds import rng_for
from mlxreflect.data.rows import Row, good_rows, rows_of
from mlxreflect.graders.countdown import COUNTDOWN_RULES
from mlxreflect.tasks.base import GENERATED_PARTS, Solver, Task, generate
from mlxreflect.tasks.countdown_solver import finish, review, solvable

LARGEST = 200
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

    `config.source` names problems of other people: a file with the columns nums and target, or a
    hub data set such as Jiayi-Pan/Countdown-Tasks-3to4.
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


# ---- problems of other people --------------------------------------------------------------------


def problems_of_data(config: TaskConfig, part: str) -> list[Problem]:
    """Returns the first `config.limit` different problems of a part (0: all), in the rows' order.

    Rows are read and verified only as far as they are needed.
    """
    rows = good_rows(rows_of(config.source, config.config, config.split, HINT))
    found: dict[tuple[tuple[int, ...], int], Problem] = {}
    for problem in read_problems(rows):
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


def read_problems(rows: Iterable[Row]) -> Iterator[Problem]:
    for row in rows:
        try:
            problem = problem_of(row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error.message}", error.hint) from None
        if len(problem.fields["numbers"]) > MAX_SOLVED:
            raise UserError(
                f"{row.where}: more than {MAX_SOLVED} numbers", "leave out rows with so many"
            )
        yield problem


def problem_of(row: dict[str, Any]) -> Problem:
    """Returns a problem of a row's numbers (or nums) and target. Raises UserError."""
    numbers, target = row.get("numbers", row.get("nums")), row.get("target")
    fine = isinstance(numbers, list) and 1 <= len(numbers) <= MAX_NUMBERS
    if not fine or not all(type(n) is int and n >= 0 for n in numbers or []):
        raise UserError(f"numbers = {str(numbers)[:60]}: not a list of whole numbers", EXAMPLE)
    if type(target) is not int:
        raise UserError(f"target = {str(target)[:60]}: not a whole number", EXAMPLE)
    return make_problem("countdown", {"numbers": numbers, "target": target})


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
