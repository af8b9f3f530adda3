"""The exact arithmetic solver: an expression as tokens, reduced one operation at a time.

A step "a op b = c" is a legal next one where a and b are neighbours and reducing them first
leaves the expression's value as it is: `*` before `+` and `-`, parentheses first, and nothing on
the right of a `-` that the `-` does not reach.
"""

import re
from dataclasses import dataclass, field

from mlxreflect.core.records import Problem
from mlxreflect.tasks.base import Review

Tokens = list[int | str]

MAX_LINES = 200
MAX_LINE = 300
MAX_EXPRESSION = 400
LABEL = re.compile(r"^\s*(?:step\s{0,3}\d{1,4}\s{0,3}[:.)]?|\d{1,4}[.)]\s|-\s)\s*", re.IGNORECASE)
SPELLINGS = {
    "\\times": "*",
    "\\cdot": "*",
    "×": "*",
    "·": "*",
    "÷": "/",
    "−": "-",
    "(": "",
    ")": "",
}
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
    """Tokens of a well-formed expression, signs joined to their numbers; None for another text."""
    if len(expression) > MAX_EXPRESSION or re.search(r"[^-+*()0-9 ]|[0-9]{13}", expression):
        return None
    tokens: Tokens = []
    depth = 0
    for piece in re.findall(r"[0-9]+|[-+*()]", expression):
        before = tokens[-1] if tokens else "("
        operand_next = before in ("(", "+", "-", "*", "negative")
        if piece.isdigit():
            if not operand_next:
                return None
            negative = before == "negative"
            if negative:
                tokens.pop()
            tokens.append(-int(piece) if negative else int(piece))
        elif operand_next and piece == "-" and before != "negative":
            tokens.append("negative")
        elif (piece == "(") != operand_next or before == "negative":
            return None
        else:
            depth += {"(": 1, ")": -1}.get(piece, 0)
            if depth < 0:
                return None
            tokens.append(piece)
    ends_well = bool(tokens) and (isinstance(tokens[-1], int) or tokens[-1] == ")")
    return strip_parentheses(tokens) if ends_well and not depth else None


def strip_parentheses(tokens: Tokens) -> Tokens:
    """Take off parentheses around a single number, as often as there are any."""
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
    """Positions of the operators that may be applied next."""
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


def operate(left: int, operator: str, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def reduce(tokens: Tokens, at: int) -> tuple[str, Tokens]:
    """Apply the operator at a position: the step as written, and the tokens after it."""
    left, operator, right = tokens[at - 1 : at + 2]
    assert isinstance(left, int) and isinstance(operator, str) and isinstance(right, int)
    value = operate(left, operator, right)
    after = strip_parentheses([*tokens[: at - 1], value, *tokens[at + 2 :]])
    return f"{left} {operator} {right} = {value}", after


def next_step(tokens: Tokens) -> int | None:
    """The step a person would take: the deepest parentheses, `*` first, from the left."""
    legal = legal_steps(tokens)
    if not legal:
        return None
    depths = [tokens[:i].count("(") - tokens[:i].count(")") for i in legal]
    ranked = [(-depth, tokens[i] != "*", i) for i, depth in zip(legal, depths, strict=True)]
    return min(ranked)[2]


def solve(tokens: Tokens) -> tuple[list[str], Tokens]:
    """The steps to the value, and what is left: one number, of a well-formed expression."""
    steps = []
    while (at := next_step(tokens)) is not None:
        step, tokens = reduce(tokens, at)
        steps.append(step)
    return steps, tokens


def compute(expression: str) -> list[int]:
    """The result of every step of a well-formed expression; the last is its value."""
    tokens = parse(expression)
    if tokens is None:
        raise ValueError(f"not an expression: {expression!r}")
    steps, left = solve(tokens)
    return [int(step.rpartition("= ")[2]) for step in steps] or [int(left[0])]


def find_step(tokens: Tokens, left: int, operator: str, right: int) -> int | None:
    """Where an operation stands as a legal next step; of + and * the sides may be swapped."""
    orders = [(left, right)] if operator == "-" else [(left, right), (right, left)]
    for sides in orders:
        for i in legal_steps(tokens):
            if tokens[i] == operator and (tokens[i - 1], tokens[i + 1]) == sides:
                return i
    return None


def equations(line: str) -> list[tuple[str, str, int]]:
    """The (equation as written, left side, right side) that a line states, in order."""
    text = line[:MAX_LINE]
    for written, plain in SPELLINGS.items():
        text = text.replace(written, plain)
    text = COMMA.sub("", TIMES.sub(" * ", LABEL.sub("", text)))
    return [(match[0], match[1], int(match[2])) for match in EQUATION.finditer(text)]


def take(walk: Walk, written: str, chain: str, result: int) -> None:
    """Apply one equation to the expression, or set the fault."""
    operation = OPERATION.fullmatch(chain)
    if operation is None:
        walk.fault = f"step {walk.steps + 1} is no single operation of + - *: {written}"
        return
    title = f"step {walk.steps + 1} is wrong: {written}"
    left, right = int(operation[1]), int(operation[3])
    at = find_step(walk.tokens, left, operation[2], right)
    if operate(left, operation[2], right) != result:
        walk.fault = title
    elif at is None:
        walk.fault = f"{title} is not a next step of {show_tokens(walk.tokens)}"
    else:
        walk.tokens = reduce(walk.tokens, at)[1]
        walk.steps += 1


def follow(tokens: Tokens, lines: list[str]) -> Walk:
    """Follow the steps of a thought up to its end or its first fault."""
    walk = Walk(tokens)
    for line in lines[:MAX_LINES]:
        before = walk.tokens, walk.steps
        written = equations(line)
        for equation in written:
            take(walk, *equation)
            if walk.fault:
                walk.tokens, walk.steps = before
                return walk
        if written:
            walk.kept += [*walk.pending, line]
            walk.pending = []
        elif is_broken_step(line):
            quoted = LABEL.sub("", line[:MAX_LINE]).strip()[:80]
            walk.fault = f"step {walk.steps + 1} is no single operation of + - *: {quoted}"
            return walk
        elif "<" not in line and len(line) <= MAX_LINE:  # no tag gets into a rewrite
            walk.pending.append(line)
    return walk


def is_broken_step(line: str) -> bool:
    """A line that means to be a step, and cannot be read as one."""
    line = line[:MAX_LINE]
    labelled = line.lstrip()[:4].lower() == "step" and "=" in line
    return labelled or STATEMENT.search(line) is not None


def review(problem: Problem, thought: str, search: bool) -> Review:
    """Find the first wrong step of a thought. From any legal step the answer can be reached.

    search: changes nothing, for that reason.
    """
    tokens = parse(str(problem.fields.get("expression", "")))
    if tokens is None:
        return Review([], "")
    walk = follow(tokens, thought.strip("\n").split("\n", MAX_LINES))
    fault = walk.fault
    if not fault and len(walk.tokens) > 1:
        fault = f"the steps stop at {show_tokens(walk.tokens)}"
    return Review(walk.kept, fault)


def finish(problem: Problem, kept: list[str], seed: int) -> tuple[str, str] | None:
    """Continue the kept lines to the value: (thought, answer); None where they hold a fault.

    seed: changes nothing, there is one way a person would go on.
    """
    tokens = parse(str(problem.fields.get("expression", "")))
    walk = follow(tokens, kept) if tokens else None
    if walk is None or walk.fault or len(kept) > MAX_LINES:
        return None
    steps, left = solve(walk.tokens)
    new = [f"step {walk.steps + i}: {step}" for i, step in enumerate(steps, 1)]
    return "\n".join([*kept, *new]), str(left[0])
