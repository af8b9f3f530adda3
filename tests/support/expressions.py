"""The value of an expression by Python's own parser, independent of the package."""

import ast
import operator
import re
from fractions import Fraction

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
             ast.Div: operator.truediv, ast.USub: operator.neg, ast.UAdd: operator.pos}  # fmt: skip


class Refused(Exception):
    """Anything but + - * / on integers."""


def ast_value(text: str) -> Fraction | None:
    """None for what is no expression of integers, + - * / and parentheses."""
    plain = re.sub(r"(?<!\d)0+(?=\d)", "", text).strip()  # 007 is no integer in Python
    try:
        return evaluate(ast.parse(plain, mode="eval").body)
    except (SyntaxError, Refused, ZeroDivisionError):
        return None


def evaluate(node: ast.AST) -> Fraction:
    """Python's syntax tree on exact fractions."""
    match node:
        case ast.Constant(value=int()):
            return Fraction(node.value)
        case ast.UnaryOp() if type(node.op) in OPERATORS:
            return Fraction(OPERATORS[type(node.op)](evaluate(node.operand)))
        case ast.BinOp() if type(node.op) in OPERATORS:
            return Fraction(OPERATORS[type(node.op)](evaluate(node.left), evaluate(node.right)))
    raise Refused
