"""The rules by which a Countdown answer may be graded. The headline is `exact`."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

from mlxreflect.core.records import Problem, Verdict
from mlxreflect.graders import tinyzero
from mlxreflect.graders.base import Grade, Grader, strict
from mlxreflect.graders.expression import NotAnExpression, parse_expression
from mlxreflect.prompts.messages import parse_response


def check(numbers: list[int], target: int, answer: str, every: bool = True) -> tuple[bool, str]:
    """Whether an expression uses every number exactly once and is exactly the target, and why.

    every: False lets numbers be left out (none is used more often than it is given).
    """
    text, equals, right = answer.partition("=")
    try:
        found = parse_expression(text)
        if equals and parse_expression(right).value != found.value:
            return False, f"{answer[:80]!r} is not true"
    except NotAnExpression as error:
        return False, f"not an expression of whole numbers: {error}"
    used, given = Counter(found.literals), Counter(numbers)
    if used - given or (every and given - used):
        return False, f"uses {show_numbers(found.literals)} instead of {show_numbers(numbers)}"
    if found.value != target:
        return False, f"the answer is {show_value(found.value)}, not {target}"
    return True, ""


def show_numbers(numbers: list[int]) -> str:
    return " ".join(str(n) for n in sorted(numbers)[:20])


def show_value(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"a number of {len(text)} digits"


def graded(judge: Callable[[list[int], int, str], tuple[bool, str]]) -> Grader:
    """Rules on the last closed answer block after the thought."""

    def grade(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
        parsed = parse_response(text, tags, style)
        if parsed.answer is None:
            return Grade(None, Verdict(False, parsed.format_ok, parsed.reason))
        fields = problem.fields
        correct, reason = judge(fields["numbers"], fields["target"], parsed.answer)
        reason = parsed.reason if correct else reason
        return Grade(parsed.answer[:400], Verdict(correct, parsed.format_ok, reason))

    return grade


def grade_tinyzero(
    problem: Problem, text: str, tags: str = "think", style: str = "thinking"
) -> Grade:
    """TinyZero's own extraction and score; whether the format asked for was kept beside it."""
    form, answer = parse_response(text, tags, style), tinyzero.extract(text)
    if answer is None:
        return Grade(None, Verdict(False, form.format_ok, "no answer block on the last line"))
    correct, reason = tinyzero.score(problem.fields["numbers"], problem.fields["target"], answer)
    reason = form.reason if correct else reason
    return Grade(answer[:400], Verdict(correct, form.format_ok, reason))


grade_exact = graded(check)

COUNTDOWN_RULES: dict[str, Grader] = {
    "exact": grade_exact,
    "strict": strict(grade_exact),
    "subset": graded(lambda numbers, target, answer: check(numbers, target, answer, False)),
    "tinyzero": grade_tinyzero,
}
