"""Exact, safe reading of arithmetic written by a model: no eval, no recursion, linear time."""

from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 400
MAX_DIGITS = 12
MAX_DEPTH = 50
DIGITS = frozenset("0123456789")
# Mapped one by one: NFKC would turn 5² into 52.
OPERATORS = {"+": "+", "-": "-", "*": "*", "/": "/", "×": "*", "÷": "/", "−": "-", "·": "*"}
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negate": 3, "plus": 3}


class NotAnExpression(ValueError):
    """The text is no arithmetic expression of integers, + - * / and parentheses."""


@dataclass(frozen=True)
class Expression:
    value: Fraction
    literals: list[int]


def tokenize(text: str) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        raise NotAnExpression(f"longer than {MAX_CHARACTERS} characters")
    tokens: list[str] = []
    i = 0
    while i < len(text):
        c = text[i]
        if c in DIGITS:
            j = i
            while j < len(text) and text[j] in DIGITS:
                j += 1
            if j - i > MAX_DIGITS:
                raise NotAnExpression(f"a number of more than {MAX_DIGITS} digits")
            tokens.append(text[i:j])
            i = j
            continue
        if c in OPERATORS:
            tokens.append(OPERATORS[c])
        elif c in "()":
            tokens.append(c)
        elif not c.isspace():
            raise NotAnExpression(f"the character {c!r}")
        i += 1
    return tokens


def parse_expression(text: str) -> Expression:
    """Value and literals of an expression, by an iterative shunting-yard on exact fractions.

    Raises NotAnExpression: other characters, `**`, `//`, implicit multiplication, unbalanced or
    too deep parentheses, division by zero, or a text over the caps.
    """
    values: list[Fraction] = []
    operators: list[str] = []
    literals: list[int] = []
    depth = 0
    operand_next = True
    for token in tokenize(text):
        if token[0] in DIGITS:
            if not operand_next:
                raise NotAnExpression("two numbers without an operator between them")
            literals.append(int(token))
            values.append(Fraction(literals[-1]))
            operand_next = False
        elif token == "(":
            depth += 1
            if not operand_next:
                raise NotAnExpression("a parenthesis without an operator before it")
            if depth > MAX_DEPTH:
                raise NotAnExpression(f"nested deeper than {MAX_DEPTH}")
            operators.append(token)
        elif token == ")":
            depth -= 1
            if operand_next or depth < 0:
                raise NotAnExpression("a parenthesis closed too early")
            while operators[-1] != "(":
                apply(operators.pop(), values)
            operators.pop()
        elif operand_next:
            if token not in "+-":
                raise NotAnExpression(f"{token} where a number was expected")
            operators.append("negate" if token == "-" else "plus")
        else:
            while (
                operators
                and operators[-1] != "("
                and PRECEDENCE[operators[-1]] >= PRECEDENCE[token]
            ):
                apply(operators.pop(), values)
            operators.append(token)
            operand_next = True
    if operand_next or depth:
        raise NotAnExpression("it ends too early")
    while operators:
        apply(operators.pop(), values)
    return Expression(values[0], literals)


def apply(operator: str, values: list[Fraction]) -> None:
    """Replace the operands at the end of `values` by the operator's result."""
    right = values.pop()
    if operator == "plus":
        values.append(right)
    elif operator == "negate":
        values.append(-right)
    else:
        values.append(combine(operator, values.pop(), right))


def combine(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise NotAnExpression("a division by zero")
    return left / right
