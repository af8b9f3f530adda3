"""How hard a problem is, as far as the problem itself tells: steps, numbers, or length."""

from collections.abc import Sequence
from itertools import product
from statistics import quantiles

from mlxreflect.core.records import Problem
from mlxreflect.tasks import TASKS

MOST_NUMBERS = 6  # whose signs are tried, 2^n of them
MOST_LEVELS = 8  # levels beyond are drawn as one, "8 or more"


def difficulty(problems: Sequence[Problem]) -> tuple[str, dict[str, str]]:
    """(what the levels are, problem id → level) of one task's problems.

    Levels sort as they are in the dict. Countdown: how many numbers, and where all have as many,
    whether + and − suffice. Arithmetic: operations. GSM8K and other worked solutions: their steps.
    Anything else: the question's length, in quarters.
    """
    for name, levels in (
        ("numbers given", {p.id: count(p, "numbers") for p in problems}),
        ("operations in the expression", {p.id: operations(p) for p in problems}),
        ("steps of the worked solution", {p.id: steps(p) for p in problems}),
    ):
        known = {id_: level for id_, level in levels.items() if level is not None}
        if len(known) == len(problems) and len(set(known.values())) > 1:
            return name, in_order(known)
    if problems and all(0 < (count(p, "numbers") or 0) <= MOST_NUMBERS for p in problems):
        signs = {p.id: reached_by_signs(p) for p in problems}
        if len(set(signs.values())) > 1:
            named = {True: "+ and − suffice", False: "needs × or ÷"}
            return "what a solution takes", {
                id_: named[plain] for plain in (True, False) for id_ in signs if signs[id_] == plain
            }
    return "length of the question, in quarters", quarters(problems)


def in_order(levels: dict[str, int]) -> dict[str, str]:
    named = {
        level: f"{level}" if level < MOST_LEVELS else f"{MOST_LEVELS} or more"
        for level in sorted(set(levels.values()))
    }
    return {id_: named[levels[id_]] for id_ in sorted(levels, key=lambda id_: levels[id_])}


def count(problem: Problem, field: str) -> int | None:
    value = problem.fields.get(field)
    return len(value) if isinstance(value, list) else None


def operations(problem: Problem) -> int | None:
    """Operations between the numbers of an expression; a leading sign is none."""
    text = problem.fields.get("expression")
    return sum(text[1:].count(f" {sign} ") for sign in "+-*/") if isinstance(text, str) else None


def steps(problem: Problem) -> int | None:
    """Calculations noted as <<…>> in the worked solution, else its lines before the answer."""
    solution = problem.meta.get("solution")
    if not isinstance(solution, str):
        return None
    lines = [line for line in solution.splitlines() if line.strip() and "####" not in line]
    return max(1, solution.count("<<") or len(lines))


def reached_by_signs(problem: Problem) -> bool:
    numbers, target = problem.fields["numbers"], problem.fields.get("target")
    return any(
        sum(sign * n for sign, n in zip(signs, numbers, strict=True)) == target
        for signs in product((1, -1), repeat=len(numbers))
    )


def quarters(problems: Sequence[Problem]) -> dict[str, str]:
    """Shortest to longest questions, by characters."""
    lengths = {p.id: len(TASKS[p.task].show(p)) for p in problems}
    if len(lengths) < 2:
        return dict.fromkeys(lengths, "all")
    cuts = quantiles(lengths.values(), n=4, method="inclusive")
    quarter = {id_: sum(length > cut for cut in cuts) for id_, length in lengths.items()}
    ends = {q: [lengths[id_] for id_ in quarter if quarter[id_] == q] for q in range(4)}
    return {
        id_: f"{min(ends[q])}–{max(ends[q])}\ncharacters"
        for q in range(4) for id_ in quarter if quarter[id_] == q
    }  # fmt: skip
