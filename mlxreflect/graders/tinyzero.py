r"""TinyZero's Countdown score, computed safely: the original runs the model's text with `eval`.

Source: Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py. Kept: the last line alone counts,
`\d+` names the numbers (so that 2.5 uses a 2 and a 5), `**` and `//` are operators, and a result
within 1e-5 of the target is right. Not kept: whatever would take more than a moment to compute is
wrong here, where the original hangs.
"""

import re

MAX_CHARACTERS = 400
MAX_BITS = 4096  # of any whole number on the way
TOLERANCE = 1e-5
BLOCK = ("<answer>", "</answer>")
ALLOWED = re.compile(r"[0-9+\-*/().\s]+")
# Python has no 012, but 00, 012.5 and 1. are numbers.
TOKEN = re.compile(r"\s*(?:([0-9]+\.[0-9]*|\.[0-9]+|0+(?![0-9])|[1-9][0-9]*)|(\*\*|//|[-+*/()]))")
# Binary operators: (precedence, right-associative). A sign binds tighter than *, looser than **.
BINARY = {"+": (1, False), "-": (1, False), "*": (2, False), "/": (2, False), "//": (2, False),
          "**": (4, True)}  # fmt: skip
SIGN = 3
Number = int | float


def extract(text: str) -> str | None:
    """The last `<answer>…</answer>` of the last line, as `re.finditer` would find it."""
    line = text.rpartition("\n")[2]
    found, at = None, 0
    while (start := line.find(BLOCK[0], at)) >= 0:
        end = line.find(BLOCK[1], start)
        if end < 0:
            break
        found = line[start + len(BLOCK[0]) : end].strip()
        at = end + len(BLOCK[1])
    return found


def score(numbers: list[int], target: int, answer: str) -> tuple[bool, str]:
    """Whether TinyZero would give the full score, and why not."""
    if len(answer) > MAX_CHARACTERS:
        return False, f"longer than {MAX_CHARACTERS} characters"
    if not answer.isascii() or not ALLOWED.fullmatch(answer):
        return False, "other characters than digits, operators and parentheses"
    if sorted(int(n) for n in re.findall(r"[0-9]+", answer)) != sorted(numbers):
        return False, "not the given numbers"
    value = evaluate(answer)
    if value is None:
        return False, "no expression that could be computed"
    return abs(value - target) < TOLERANCE, f"the answer is {str(value)[:40]}, not {target}"


def evaluate(text: str) -> Number | None:
    """Python's value of an expression; None where it has none, or one too large."""
    tokens = tokenize(text)
    if tokens is None:
        return None
    values: list[Number] = []
    operators: list[str] = []
    operand_next = True
    try:
        for token in tokens:
            if token[0] in ".0123456789":
                if not operand_next:
                    return None
                values.append(float(token) if "." in token else int(token))
                operand_next = False
            elif token == "(":
                if not operand_next:
                    return None
                operators.append(token)
            elif token == ")":
                if operand_next:
                    return None
                while operators and operators[-1] != "(":
                    apply(operators.pop(), values)
                if not operators:
                    return None
                operators.pop()
            elif operand_next:
                if token not in "+-":
                    return None
                operators.append(f"sign{token}")
            else:
                level, right = BINARY[token]
                while operators and binds(operators[-1], level, right):
                    apply(operators.pop(), values)
                operators.append(token)
                operand_next = True
        if operand_next or "(" in operators:
            return None
        while operators:
            apply(operators.pop(), values)
    except (ArithmeticError, TooLarge):
        return None
    return values[0]


class TooLarge(ValueError):
    """A power or product that would take long to compute."""


def tokenize(text: str) -> list[str] | None:
    text, at, found = text.strip(), 0, []
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            return None
        found.append(match[1] or match[2])
        at = match.end()
    return found


def binds(operator: str, level: int, right: bool) -> bool:
    """Whether an operator on the stack is applied before one of this level."""
    if operator == "(":
        return False
    mine = SIGN if operator.startswith("sign") else BINARY[operator][0]
    return mine > level or (mine == level and not right)


def apply(operator: str, values: list[Number]) -> None:
    right = values.pop()
    if operator.startswith("sign"):
        values.append(-right if operator[-1] == "-" else right)
    else:
        values.append(combine(operator, values.pop(), right))


def combine(operator: str, left: Number, right: Number) -> Number:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        check_size(left, right)
        return left * right
    if operator == "/":
        return left / right
    if operator == "//":
        return left // right
    return power(left, right)


def check_size(*values: Number) -> None:
    if sum(v.bit_length() for v in values if isinstance(v, int)) > MAX_BITS:
        raise TooLarge


def power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if abs(base) > 1 and base.bit_length() * exponent > MAX_BITS:
            raise TooLarge
        return int(base**exponent)
    if base < 0 and not float(exponent).is_integer():
        raise TooLarge  # a complex number is no answer
    return float(float(base) ** float(exponent))
