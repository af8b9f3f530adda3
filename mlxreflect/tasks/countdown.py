"""Countdown: combine the given numbers, each exactly once, with + - * / so that they make a target.

Problems: n numbers from 1 to 99 and a target from 10 to 100, made by applying random operations to
random pairs, every result whole, positive and at most 200. A problem belongs to a part by a hash of
(sorted numbers, target), so the parts are disjoint whatever seeds made them.
"""

import random

from mlxreflect.records import Problem, make_problem
from mlxreflect.seeds import rng_for
from mlxreflect.tables import TaskConfig
from mlxreflect.tasks.base import Solver, Task, check_limit
from mlxreflect.tasks.countdown_data import part_of, problem_of, problems_of_data
from mlxreflect.tasks.countdown_rules import COUNTDOWN_RULES
from mlxreflect.tasks.countdown_solver import finish, review

DEFAULT_PROBLEMS = 1000
LARGEST = 200
MISSES = 200_000  # draws without a new problem after which there is none left


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

    The held-out ones ignore the seed. `config.source` names foreign problems instead: a file with
    the columns nums and target, or a hub data set such as Jiayi-Pan/Countdown-Tasks-3to4.
    """
    if config.source:
        return problems_of_data(config, part)
    check_limit("countdown", config.limit)
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


TASK = Task(
    name="countdown",
    load=load,
    instruction=instruction,
    show=show,
    gold=lambda problem: None,
    grade=COUNTDOWN_RULES["exact"],
    from_row=problem_of,
    rules=COUNTDOWN_RULES,
    solver=Solver(review, finish),
    generated=True,
    checkable=True,
)
