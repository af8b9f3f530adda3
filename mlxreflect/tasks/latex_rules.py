"""How a LaTeX answer is found and graded.

A check that Math-Verify does not finish is recorded as wrong, with the answer as `parsed` and a
reason that begins with "not decided": it stays in the denominator, and can be counted.
"""

from mlxreflect.mathworker import equal
from mlxreflect.prompts import parse_response
from mlxreflect.records import Problem, Verdict
from mlxreflect.tasks.base import Grade, Grader
from mlxreflect.tasks.latex import MAX_LATEX, decided, harmless, normal
from mlxreflect.tasks.markers import answer_block, box, phrases
from mlxreflect.tasks.strict import strict
from mlxreflect.tasks.text import final_part

__all__ = ["MATH_RULES", "MAX_LATEX"]


def extract_latex(text: str) -> str | None:
    """The answer of what counts of a response: the last block or box, else the last "answer is".

    Without any, a short text that is itself an answer.
    """
    spots = [(found.position, found.text) for find in (answer_block, box) if (found := find(text))]
    if spots:
        return max(spots)[1].strip() or None
    if said := phrases(text):
        return first_line(said[0].text) or None
    bare = text.strip()
    return bare if 0 < len(bare) <= MAX_LATEX and "\n" not in bare else None


def first_line(text: str) -> str:
    """What follows "answer is" on its line, up to the end of the sentence."""
    line = text.lstrip(" :\n*").split("\n", 1)[0]
    return line.split(". ", 1)[0].strip(" *")


def judge(gold: str, answer: str, worker: bool) -> tuple[bool, str]:
    """Whether an answer equals the gold, and why not."""
    if len(answer) > MAX_LATEX:
        return False, f"an answer of more than {MAX_LATEX} characters"
    one, other = normal(gold), normal(answer)
    same = decided(one, other)
    if same is None and worker:
        equation = "an equation" if "=" in other and "=" not in one else ""
        if fault := equation or harmless(other) or harmless(one):
            return False, f"expected {gold[:80]}, got {answer[:80]} ({fault})"
        same, undecided = equal(one, other)
        if undecided:
            return False, f"not decided: {undecided}"
    return bool(same), "" if same else f"expected {gold[:80]}, got {answer[:80]}"


def rules(worker: bool) -> Grader:
    def grade(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
        form = parse_response(text, tags, style)
        answer = extract_latex(final_part(text, tags))
        if answer is None:
            return Grade(None, Verdict(False, form.format_ok, "no answer found"))
        correct, reason = judge(problem.gold or "", answer, worker)
        return Grade(answer[:MAX_LATEX], Verdict(correct, form.format_ok, reason or form.reason))

    return grade


MATH_RULES: dict[str, Grader] = {
    "flexible": rules(worker=True),
    "strict": strict(rules(worker=True)),
    "exact": rules(worker=False),  # the same spelling, or the same rational number
}
