"""Free text against one or several expected texts, as SQuAD 1.1's evaluation script compares them.

Exact match and token F1 after lower case, without punctuation and articles (Rajpurkar et al. 2016);
of several expected texts the best one counts.

How a text in an <answer> block is graded: as a whole, or by its tokens.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from mlxreflect.core.records import Problem, Verdict
from mlxreflect.graders.base import MAX_TEXT, Grade, Grader, final_part, same_text, strict
from mlxreflect.prompts.messages import parse_response

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def tokens(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def token_f1(answer: str, gold: str) -> float:
    """2PR/(P+R) over the multisets of tokens; without any token on a side, 1 if both have none."""
    one, other = tokens(answer), tokens(gold)
    if not one or not other:
        return float(one == other)
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other))


def squad(answer: str, golds: Sequence[str]) -> tuple[bool, float]:
    """(exact match, F1) against the best of the golds; a text over the cap matches none."""
    if len(answer) > MAX_TEXT:
        return False, 0.0
    exact = any(tokens(answer) == tokens(gold) for gold in golds)
    return exact, max((token_f1(answer, gold) for gold in golds), default=0.0)


MISSING = "no answer in an <answer> block"


def answer_of(text: str, tags: str) -> str | None:
    """The last closed answer block after the thought; None where it is empty or there is none."""
    # final_part has left the thought behind, so no think tag is due there any more.
    return parse_response(final_part(text, tags), tags, "direct").answer or None


def golds_of(problem: Problem) -> list[str]:
    """Every text that is right: `meta["golds"]` where a row gave several."""
    golds = problem.meta.get("golds")
    return [str(gold) for gold in golds] if isinstance(golds, list) else [problem.gold or ""]


def grade_text(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
    """Right is one of the expected texts but for case, spacing, quotes and a full stop."""
    form, answer = parse_response(text, tags, style), answer_of(text, tags)
    if answer is None:
        return Grade(None, Verdict(False, form.format_ok, MISSING))
    correct = any(same_text(answer, gold) for gold in golds_of(problem))
    reason = form.reason if correct else f"expected {(problem.gold or '')[:80]}, got {answer[:80]}"
    return Grade(answer[:MAX_TEXT], Verdict(correct, form.format_ok, reason))


def grade_f1(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
    """SQuAD's exact match, and its token F1 as `score`."""
    form, answer = parse_response(text, tags, style), answer_of(text, tags)
    if answer is None:
        return Grade(None, Verdict(False, form.format_ok, MISSING), 0.0)
    correct, score = squad(answer, golds_of(problem))
    wrong = f"expected {(problem.gold or '')[:80]}, got {answer[:80]} (F1 {score:.2f})"
    verdict = Verdict(correct, form.format_ok, form.reason if correct else wrong)
    return Grade(answer[:MAX_TEXT], verdict, score)


TEXT_RULES: dict[str, Grader] = {
    "flexible": grade_text, "strict": strict(grade_text), "f1": grade_f1,
}  # fmt: skip
F1_RULES: dict[str, Grader] = {"flexible": grade_f1, "strict": strict(grade_f1)}
