"""Arithmetic: expressions on whole numbers of up to five digits, by default of three to five.

`task.operands` says of how many, `task.digits` how long they are.

A problem belongs to a part by a hash of its expression, so the parts are disjoint whatever seeds
made them. Steps are written one a line, as in "step 1: 345 * 6 = 2070". The solver reduces an
expression one operation at a time: "a op b = c" is a legal next step where a and b are neighbours
and reducing them first leaves the expression's value as it is: `*` before `+` and `-`, parentheses
first, and nothing on the right of a `-` that the `-` does not reach.
"""

import random
import re
from dataclasses import dataclass, field
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.core.seeds import part_of, rng_for
from mlxreflect.graders.countdown import (
    MAX_CHARACTERS,
    OPERATIONS,
    NotAnExpression,
    Notation,
    read_tokens,
)
from mlxreflect.graders.number import NUMBER_RULES
from mlxreflect.graders.numerals import row_gold
from mlxreflect.tasks.base import GENERATED_PARTS, Review, Solver, Task, generate

LARGEST = 99_999  # of operands and of every result on the way
Tokens = list[int | str]


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """Returns `config.limit` different problems (1000 when 0); only training uses the seed."""
    rng = rng_for("arithmetic", part, seed if part == "train" else 0)
    drawn = generate(
        "arithmetic", config, part, lambda: draw(rng, config),
        lambda one: part_of(one[0], GENERATED_PARTS), lambda one: one[0],
    )  # fmt: skip
    return [make_problem("arithmetic", {"expression": e}, str(v)) for e, v in drawn]


def draw(rng: random.Random, config: TaskConfig) -> tuple[str, int] | None:
    """Tries to make an expression, with its value; None where a result on the way is too large."""
    operands = []
    for _ in range(rng.choice(config.operands)):
        digits = rng.choice(config.digits)
        operands.append(str(rng.randint(10 ** (digits - 1), 10**digits - 1)))
    if rng.random() < 0.1:
        operands[0] = f"-{operands[0]}"
    if rng.random() < 0.4 and len(operands) > 2:
        first = rng.randrange(len(operands) - 1)
        last = rng.randrange(first + 1, len(operands) if first else len(operands) - 1)
        operands[first] = f"({operands[first]}"
        operands[last] = f"{operands[last]})"
    pieces = [operands[0]]
    for operand in operands[1:]:
        pieces += [rng.choice("+-*"), operand]
    expression = " ".join(pieces)
    steps, _ = solve(parse(expression) or [])
    results = [int(step.rpartition("= ")[2]) for step in steps]
    if any(abs(value) > LARGEST for value in results):
        return None
    return expression, results[-1]


# ---- the solver ----------------------------------------------------------------------------------

MAX_LINES = 200
MAX_LINE = 300
WHOLE_NUMBERS = Notation(re.compile(r"[0-9]+|[-+*()]"), signs="-", depth=MAX_CHARACTERS)
LABEL = re.compile(r"^\s*(?:step\s{0,3}\d{1,4}\s{0,3}[:.)]?|\d{1,4}[.)]\s|-\s)\s*", re.IGNORECASE)
SPELLINGS = {
    "\\times": "*", "\\cdot": "*", "×": "*", "·": "*", "÷": "/", "−": "-", "(": "", ")": "",
}  # fmt: skip
NUMBER = r"-?[0-9]{1,12}"
OPERATOR = r" {0,2}[-+*/] {0,2}"
# A chain of operations and its result; a step is a chain of one, and not of a division.
EQUATION = re.compile(
    r"(?<![0-9A-Za-z.,/=])(?<!= )"
    rf"({NUMBER}(?:{OPERATOR}{NUMBER}){{1,8}}) {{0,2}}= {{0,2}}({NUMBER})"
    r"(?![0-9]|[.,/][0-9]| {0,2}[-+*/] {0,2}[0-9])"
)
OPERATION = re.compile(rf"({NUMBER}) {{0,2}}([-+*]) {{0,2}}({NUMBER})")
STATEMENT = re.compile(r"[0-9)] {0,2}= {0,2}-?[0-9]")
TIMES = re.compile(r"(?<=[0-9]) {0,2}[xX] {0,2}(?=[-0-9])")
COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


@dataclass
class Walk:
    """A thought followed so far: what is left of the expression, and the lines that hold.

    pending: lines without a step since the last step; they count once another step follows.
    """

    tokens: Tokens
    steps: int = 0
    kept: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    fault: str = ""


def parse(expression: str) -> Tokens | None:
    """Returns the tokens of an expression, signs joined to their numbers; None for other text."""
    tokens: Tokens = []
    sign = ""
    try:
        for token in read_tokens(expression, WHOLE_NUMBERS):
            if sign and not token.isdigit():  # a sign belongs to a number alone
                return None
            if token.isdigit():
                tokens.append(int(sign + token))
            elif token != "sign -":
                tokens.append(token)
            sign = "-" if token == "sign -" else ""
    except NotAnExpression:
        return None
    return strip_parentheses(tokens)


def strip_parentheses(tokens: Tokens) -> Tokens:
    """Takes off parentheses around a single number, as often as there are any."""
    out: Tokens = []
    for token in tokens:
        if token == ")" and len(out) >= 2 and out[-2] == "(":
            out[-2:] = [out[-1]]
        else:
            out.append(token)
    return out


def show_tokens(tokens: Tokens) -> str:
    return " ".join(str(token) for token in tokens).replace("( ", "(").replace(" )", ")")


def legal_steps(tokens: Tokens) -> list[int]:
    """Returns the positions of the operators that may be applied next."""
    found = []
    for i in range(1, len(tokens) - 1):
        left, operator, right = tokens[i - 1 : i + 2]
        if operator not in ("+", "-", "*") or isinstance(left, str) or isinstance(right, str):
            continue
        before = tokens[i - 2] if i >= 2 else "("
        after = tokens[i + 2] if i + 2 < len(tokens) else ")"
        if operator == "*" or (before not in ("-", "*") and after != "*"):
            found.append(i)
    return found


def reduce(tokens: Tokens, at: int) -> tuple[str, Tokens]:
    """Applies the operator at a position: returns the step as written, and the tokens after it."""
    left, operator, right = tokens[at - 1 : at + 2]
    assert isinstance(left, int) and isinstance(operator, str) and isinstance(right, int)
    value = OPERATIONS[operator](left, right)
    after = strip_parentheses([*tokens[: at - 1], value, *tokens[at + 2 :]])
    return f"{left} {operator} {right} = {value}", after


def next_step(tokens: Tokens) -> int | None:
    """Returns the step a person would take: the deepest parentheses, `*` first, from the left."""
    legal = legal_steps(tokens)
    if not legal:
        return None
    depths = [tokens[:i].count("(") - tokens[:i].count(")") for i in legal]
    ranked = [(-depth, tokens[i] != "*", i) for i, depth in zip(legal, depths, strict=True)]
    return min(ranked)[2]


def solve(tokens: Tokens) -> tuple[list[str], Tokens]:
    """Returns the steps to the value, and what is left: one number of a well-formed expression."""
    steps = []
    while (at := next_step(tokens)) is not None:
        step, tokens = reduce(tokens, at)
        steps.append(step)
    return steps, tokens


def find_step(tokens: Tokens, left: int, operator: str, right: int) -> int | None:
    """Finds an operation among the legal next steps; of + and * the sides may be swapped."""
    orders = [(left, right)] if operator == "-" else [(left, right), (right, left)]
    for sides in orders:
        for i in legal_steps(tokens):
            if tokens[i] == operator and (tokens[i - 1], tokens[i + 1]) == sides:
                return i
    return None


def equations(line: str) -> list[tuple[str, str, int]]:
    """Returns each (equation as written, left side, right side) that a line states, in order."""
    for written, plain in SPELLINGS.items():
        line = line.replace(written, plain)
    line = COMMA.sub("", TIMES.sub(" * ", LABEL.sub("", line)))
    return [(match[0], match[1], int(match[2])) for match in EQUATION.finditer(line)]


def take(tokens: Tokens, number: int, written: str, chain: str, result: int) -> tuple[Tokens, str]:
    """Applies one equation: returns (what is left of the expression, "") or its fault."""
    operation = OPERATION.fullmatch(chain)
    if operation is None:
        return tokens, f"step {number} is no single operation of + - *: {written}"
    title = f"step {number} is wrong: {written}"
    left, right = int(operation[1]), int(operation[3])
    if OPERATIONS[operation[2]](left, right) != result:
        return tokens, title
    at = find_step(tokens, left, operation[2], right)
    if at is None:
        return tokens, f"{title} is not a next step of {show_tokens(tokens)}"
    return reduce(tokens, at)[1], ""


def follow(tokens: Tokens, lines: list[str]) -> Walk:
    """Follows the steps of a thought up to its end or its first fault."""
    walk = Walk(tokens)
    for line in lines[:MAX_LINES]:
        steps, short = walk.steps, line[:MAX_LINE]
        written = equations(short)
        for equation in written:
            tokens, walk.fault = take(tokens, steps + 1, *equation)
            if walk.fault:
                return walk
            steps += 1
        labelled = short.lstrip()[:4].lower() == "step" and "=" in short
        if written:
            walk = Walk(tokens, steps, [*walk.kept, *walk.pending, line])
        elif labelled or STATEMENT.search(short):  # it means to be a step, and cannot be read
            quoted = LABEL.sub("", short).strip()[:80]
            walk.fault = f"step {steps + 1} is no single operation of + - *: {quoted}"
            return walk
        elif "<" not in line and len(line) <= MAX_LINE:  # no tag gets into a rewrite
            walk.pending.append(line)
    return walk


def review(problem: Problem, thought: str, search: bool) -> Review:
    """Finds the first wrong step. From any legal one the answer can be reached: no search."""
    tokens = parse(str(problem.fields.get("expression", "")))
    if tokens is None:
        return Review([], "")
    walk = follow(tokens, thought.strip("\n").split("\n", MAX_LINES))
    fault = walk.fault
    if not fault and len(walk.tokens) > 1:
        fault = f"the steps stop at {show_tokens(walk.tokens)}"
    return Review(walk.kept, fault)


def finish(problem: Problem, kept: list[str], seed: int) -> tuple[str, str] | None:
    """Continues the kept lines as a person would: (thought, answer); None where one is wrong."""
    tokens = parse(str(problem.fields.get("expression", "")))
    walk = follow(tokens, kept) if tokens else None
    if walk is None or walk.fault or len(kept) > MAX_LINES:
        return None
    steps, left = solve(walk.tokens)
    new = [f"step {walk.steps + i}: {step}" for i, step in enumerate(steps, 1)]
    return "\n".join([*kept, *new]), str(left[0])


# ---- the task ------------------------------------------------------------------------------------


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
    from_row=from_row,
    rules=NUMBER_RULES,
    solver=Solver(review, finish),
    generated=True,
)
