r"""Countdown: arithmetic that a model wrote, read safely, and the rules by which it is right.

One parser reads every expression: no eval, no recursion, linear time. The headline rules are
`exact`. `tinyzero` is TinyZero's score (Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py),
which the original computes with `eval` of the model's text. Kept of it: the last line alone counts,
`\d+` names the numbers (so that 2.5 uses a 2 and a 5), `**` and `//` are operators, and a result
within 1e-5 of the target is right. What would take more than a moment to compute is wrong here,
where the original hangs.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from mlxreflect.core.records import Problem
from mlxreflect.graders import Judge, Judged, grader_of, rules_of, untagged
from mlxreflect.prompts.parsing import ANSWER, Parsed

# ---- expressions ---------------------------------------------------------------------------------

MAX_CHARACTERS = 400
MAX_DEPTH = 50
DIGITS = frozenset("0123456789")
# Mapped one by one: NFKC would turn 5² into 52.
SPELLINGS = {
    **dict.fromkeys("×·⋅∗∙•⁎⋆✕✖⨉⨯＊", "*"), **dict.fromkeys("÷∕⁄➗／", "/"),
    **dict.fromkeys("−‐‑‒–—―﹣－", "-"), "＋": "+", "﹢": "+",
}  # fmt: skip
LEVELS = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "sign +": 3, "sign -": 3, "**": 4}
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
              "//": operator.floordiv}  # fmt: skip


class NotAnExpression(ValueError):
    """The text is no arithmetic expression in the notation asked for, or has no value."""


@dataclass(frozen=True)
class Notation:
    """The characters that an expression may be made of.

    token: matches one number, operator or parenthesis. signs: that may stand before a number.
    digits: of a number at most. depth: of parentheses at most.
    """

    token: re.Pattern[str]
    signs: str = "+-"
    digits: int = 12
    depth: int = MAX_DEPTH


FRACTIONS = Notation(re.compile(rf"[0-9]+|[-+*/(){''.join(SPELLINGS)}]"))
# Python has no 012, but 00, 012.5 and 1. are numbers.
PYTHON = Notation(
    re.compile(r"[0-9]+\.[0-9]*|\.[0-9]+|0+(?![0-9])|[1-9][0-9]*|\*\*|//|[-+*/()]"),
    digits=MAX_CHARACTERS, depth=MAX_CHARACTERS,
)  # fmt: skip


def split(text: str, notation: Notation) -> list[str]:
    """Returns the tokens of a text without space. Raises NotAnExpression for other characters."""
    if len(text) > MAX_CHARACTERS:
        raise NotAnExpression(f"longer than {MAX_CHARACTERS} characters")
    tokens: list[str] = []
    at = 0
    while at < len(text):
        found = notation.token.match(text, at)
        if found:
            if found[0][0] in DIGITS and len(found[0]) > notation.digits:
                raise NotAnExpression(f"a number of more than {notation.digits} digits")
            tokens.append(SPELLINGS.get(found[0], found[0]))
        elif not text[at].isspace():
            raise NotAnExpression(f"the character {text[at]!r}")
        at = found.end() if found else at + 1
    return tokens


def read_tokens(text: str, notation: Notation) -> Iterator[str]:
    """Yields the tokens of an expression, each once it may stand where it does.

    A sign is told from an operator: it is "sign +" or "sign -". Raises NotAnExpression for other
    characters, implicit multiplication, unbalanced or too deep parentheses, or a text over the
    caps.
    """
    depth, operand_next = 0, True
    for token in split(text, notation):
        if token[0] in DIGITS or token[0] == ".":
            if not operand_next:
                raise NotAnExpression("two numbers without an operator between them")
            operand_next = False
        elif token == "(":
            depth += 1
            if not operand_next:
                raise NotAnExpression("a parenthesis without an operator before it")
            if depth > notation.depth:
                raise NotAnExpression(f"nested deeper than {notation.depth}")
        elif token == ")":
            depth -= 1
            if operand_next or depth < 0:
                raise NotAnExpression("a parenthesis closed too early")
        elif not operand_next:
            operand_next = True
        elif token in notation.signs:
            token = f"sign {token}"
        else:
            raise NotAnExpression(f"{token} where a number was expected")
        yield token
    if operand_next or depth:
        raise NotAnExpression("it ends too early")


N = TypeVar("N", Fraction, int | float)


def evaluate(
    tokens: Iterable[str], number: Callable[[str], N], combine: Callable[[str, N, N], N]
) -> N:
    """Returns the value of an expression, by an iterative shunting-yard.

    tokens: of `read_tokens`. number: reads one. combine(operator, left, right): their result.
    """
    values: list[N] = []
    operators: list[str] = []

    def apply() -> None:
        token, right = operators.pop(), values.pop()
        if token.startswith("sign"):
            values.append(-right if token[-1] == "-" else right)
        else:
            values.append(combine(token, values.pop(), right))

    for token in tokens:
        if token == ")":
            while operators[-1] != "(":
                apply()
            operators.pop()
        elif token == "(" or token.startswith("sign"):
            operators.append(token)
        elif level := LEVELS.get(token):
            while operators and LEVELS.get(operators[-1], 0) >= level + (token == "**"):
                apply()
            operators.append(token)
        else:
            values.append(number(token))
    while operators:
        apply()
    return values[0]


def parse_expression(text: str) -> tuple[Fraction, list[int]]:
    """Returns the exact value and the literals of an expression of integers with + - * / ( ).

    Raises NotAnExpression for any other text, and for a division by zero.
    """
    literals: list[int] = []

    def number(token: str) -> Fraction:
        literals.append(int(token))
        return Fraction(literals[-1])

    return evaluate(read_tokens(text, FRACTIONS), number, combine), literals


def combine(token: str, left: Fraction, right: Fraction) -> Fraction:
    """Returns the exact result of + - * or /. Raises NotAnExpression for a division by zero."""
    try:
        result: Fraction = OPERATIONS[token](left, right)
    except ZeroDivisionError:
        raise NotAnExpression("a division by zero") from None
    return result


# ---- the given numbers, and the target -----------------------------------------------------------


WRAPPERS = [
    ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("```python\n", "```"), ("`", "`"), ("*", "*"),
    ("_", "_"), ('"', '"'), ("'", "'"), ("“", "”"), ("\\boxed{", "}"), ("\\fbox{", "}"),
]  # fmt: skip
COMMANDS = {
    "times": "*", "cdot": "*", "ast": "*", "div": "/", "left": "", "right": "", "displaystyle": "",
    **dict.fromkeys(("big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr"), ""),
}  # fmt: skip
COMMAND = re.compile(rf"\\({'|'.join(COMMANDS)})(?![A-Za-z])|\\[ ,;:!]")
FRAC = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
SHORT_FRAC = re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9])(?![0-9])")  # \frac82
PAIRS = {")": "(", "]": "[", "}": "{"}
MAX_WRITTEN = 4 * MAX_CHARACTERS  # characters of an answer in LaTeX
MAX_NOTATION = 16  # wrappers around an answer, fractions within each other


def plain(answer: str) -> str:
    """Returns an answer in the parser's characters: no LaTeX, Markdown, square brackets or stop.

    It stays as it is where brackets do not match, and where it is too long.
    """
    text = untagged(answer).strip() if len(answer) <= MAX_WRITTEN else answer
    if len(text) > MAX_WRITTEN or not paired(text):
        return answer
    for _ in range(MAX_NOTATION):
        before, text = text, text.removesuffix(".").strip()
        for start, end in WRAPPERS:
            inner = text[len(start) : -len(end)]
            if text.startswith(start) and text.endswith(end) and inner and paired(inner):
                text = inner.strip()
        if text == before:
            break
    text = COMMAND.sub(lambda found: f" {COMMANDS.get(found[1], '')} ", text.replace("$", " "))
    text = SHORT_FRAC.sub(r" ((\1)/(\2)) ", text).replace("\\*", "*")
    for _ in range(MAX_NOTATION):
        text, found = FRAC.subn(r" ((\1)/(\2)) ", text)
        if not found:
            break
    return text.replace("[", "(").replace("]", ")")


def paired(text: str) -> bool:
    """Tells whether every bracket that closes matches the last one open, and all are closed."""
    opened: list[str] = []
    for character in text:
        if character in "([{":
            opened.append(character)
        elif character in PAIRS and (not opened or opened.pop() != PAIRS[character]):
            return False
    return not opened


def check(numbers: list[int], target: int, answer: str, every: bool = True) -> tuple[bool, str]:
    """Tells whether an expression uses every number once and is exactly the target, and why not.

    every: False lets numbers be left out (none is used more often than it is given).
    """
    text, equals, right = plain(answer).partition("=")
    try:
        value, literals = parse_expression(plain(text))
        if equals and parse_expression(plain(right))[0] != value:
            return False, f"{answer[:80]!r} is not true"
    except NotAnExpression as error:
        return False, f"not an expression of whole numbers: {error}"
    used, given = Counter(literals), Counter(numbers)
    if used - given or (every and given - used):
        return False, f"uses {show_numbers(literals)} instead of {show_numbers(numbers)}"
    if value != target:
        shown = str(value)
        shown = shown if len(shown) <= 40 else f"a number of {len(shown)} digits"
        return False, f"the answer is {shown}, not {target}"
    return True, ""


def show_numbers(numbers: list[int]) -> str:
    return " ".join(str(n) for n in sorted(numbers)[:20])


def judge_by(every: bool) -> Judge:
    """Returns the judge of the last closed answer block after the thought."""

    def judge(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
        if form.answer is None:
            return Judged(None, False, form.reason)
        numbers, target = problem.fields["numbers"], problem.fields["target"]
        return Judged(form.answer[:400], *check(numbers, target, form.answer, every))

    return judge


# ---- TinyZero's score ----------------------------------------------------------------------------

MAX_BITS = 4096  # of any whole number on the way
TOLERANCE = 1e-5
ALLOWED = re.compile(r"[0-9+\-*/().\s]+")


def judge_tinyzero(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    """Finds right what TinyZero would give the full score."""
    answer = last_line_block(text)
    if answer is None:
        return Judged(None, False, "no answer block on the last line")
    target, value = problem.fields["target"], None
    if len(answer) > MAX_CHARACTERS:
        reason = f"longer than {MAX_CHARACTERS} characters"
    elif not answer.isascii() or not ALLOWED.fullmatch(answer):
        reason = "other characters than digits, operators and parentheses"
    elif sorted(map(int, re.findall(r"[0-9]+", answer))) != sorted(problem.fields["numbers"]):
        reason = "not the given numbers"
    elif (value := python_value(answer)) is None:
        reason = "no expression that could be computed"
    else:
        reason = f"the answer is {str(value)[:40]}, not {target}"
    correct = value is not None and abs(value - target) < TOLERANCE
    return Judged(answer[:400], correct, reason)


def last_line_block(text: str) -> str | None:
    """Returns the last `<answer>…</answer>` of the last line, as `re.finditer` would find it."""
    line = text.rpartition("\n")[2]
    found, at = None, 0
    while (start := line.find(ANSWER[0], at)) >= 0:
        end = line.find(ANSWER[1], start)
        if end < 0:
            break
        found = line[start + len(ANSWER[0]) : end].strip()
        at = end + len(ANSWER[1])
    return found


def python_value(text: str) -> int | float | None:
    """Returns Python's value of an expression; None where it has none, or one too large."""

    def number(token: str) -> int | float:
        return float(token) if "." in token else int(token)

    try:
        return evaluate(read_tokens(text, PYTHON), number, python_combine)
    except (NotAnExpression, ArithmeticError):
        return None


def python_combine(token: str, left: int | float, right: int | float) -> int | float:
    if token == "**":
        return power(left, right)
    if token == "*" and sum(n.bit_length() for n in (left, right) if isinstance(n, int)) > MAX_BITS:
        raise NotAnExpression("a product that would take long to compute")
    result: int | float = OPERATIONS[token](left, right)
    return result


def power(base: int | float, exponent: int | float) -> int | float:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if abs(base) > 1 and base.bit_length() * exponent > MAX_BITS:
            raise NotAnExpression("a power that would take long to compute")
        return int(base**exponent)
    if base < 0 and not float(exponent).is_integer():
        raise NotAnExpression("a complex number")
    return float(float(base) ** float(exponent))


COUNTDOWN_RULES = {
    **rules_of(judge_by(every=True), "exact"),
    "subset": grader_of(judge_by(every=False)),
    "tinyzero": grader_of(judge_tinyzero),
}
