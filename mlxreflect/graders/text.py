"""Free text, graded as a whole or by its tokens, and answers that a text only states.

Token F1 and exact match are those of SQuAD 1.1's evaluation script (Rajpurkar et al. 2016): lower
case, without punctuation and articles; of several expected texts the best one counts.
"""

import re
import string
import unicodedata
from collections import Counter
from importlib.util import find_spec

from mlxreflect.core.records import Problem, make_problem
from mlxreflect.graders import (
    MAX_TEXT,
    WRAPPED,
    Judged,
    box,
    final_part,
    grader_of,
    rules_of,
    same_text,
)
from mlxreflect.graders.latex import MATH_RULES, MAX_LATEX
from mlxreflect.graders.number import NUMBER_RULES
from mlxreflect.graders.numerals import find_numbers, read_gold, read_number, tidy
from mlxreflect.prompts.parsing import ANSWER, TAGS, Parsed, parse_response

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
MISSING = "no answer in an <answer> block"


def tokens(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def token_f1(answer: str, gold: str) -> float:
    """Returns 2PR/(P+R) over the multisets of tokens; with an empty side, 1 if both are empty."""
    one, other = tokens(answer), tokens(gold)
    if not one or not other:
        return float(one == other)
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other))


def answer_of(text: str, tags: str) -> str | None:
    """Returns the last closed answer block after the thought; None where it is empty or missing."""
    # final_part has left the thought behind, so no think tag is due there any more.
    return parse_response(final_part(text, tags), tags, "direct").answer or None


def golds_of(problem: Problem) -> list[str]:
    """Returns every text that is right: `meta["golds"]` where a row gave several."""
    golds = problem.meta.get("golds")
    return [str(gold) for gold in golds] if isinstance(golds, list) else [problem.gold or ""]


def judge_text(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    """Finds an answer right that is an expected text but for case, spacing, quotes and a stop."""
    answer = answer_of(text, tags)
    if answer is None:
        return Judged(None, False, MISSING)
    correct = any(same_text(answer, gold) for gold in golds_of(problem))
    reason = f"expected {(problem.gold or '')[:80]}, got {answer[:80]}"
    return Judged(answer[:MAX_TEXT], correct, reason)


def judge_f1(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    """Finds an answer right by SQuAD's exact match; the score is its token F1."""
    answer = answer_of(text, tags)
    if answer is None:
        return Judged(None, False, MISSING, 0.0)
    correct, score, golds = False, 0.0, golds_of(problem)
    if len(answer) <= MAX_TEXT:
        correct = any(tokens(answer) == tokens(gold) for gold in golds)
        score = max((token_f1(answer, gold) for gold in golds), default=0.0)
    reason = f"expected {(problem.gold or '')[:80]}, got {answer[:80]} (F1 {score:.2f})"
    return Judged(answer[:MAX_TEXT], correct, reason, score)


def read_open(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    """Reads the answer to an open question; nobody here knows whether it is a good one.

    Without a closed answer block it is all that stands outside of a thought.
    """
    begin, end = TAGS[tags]
    plain = text.rpartition(end)[2].partition(begin)[0].replace(ANSWER[0], "").strip()
    answer = parse_response(text, tags, "direct").answer or plain
    return Judged(answer or None, False, "an open question: nothing says what is right")


OPEN = "open"  # these rules, and the answers that they read
OPEN_RULES = {OPEN: grader_of(read_open)}
TEXT_RULES = {**rules_of(judge_text), "f1": grader_of(judge_f1)}
F1_RULES = rules_of(judge_f1)


# ---- answers that are only stated ----------------------------------------------------------------

MAX_SAID = 20_000  # characters of what is said; no reply of a critic has more to say


def stated(text: str) -> str | None:
    r"""Returns the answer of a worked solution: its <answer> block, else its last `\boxed{}`."""
    answer = parse_response(text, style="direct").answer
    boxed = box(text) if answer is None else None
    return WRAPPED.sub(r"\1", boxed.text).strip() if boxed else answer


def agrees(answer: str, gold: str) -> bool:
    """Tells whether an answer is the one that a row of data gives: a number, LaTeX or text."""
    if answer.split() and "".join(answer.split()) == "".join(gold.split()):
        return True
    rules, most = TEXT_RULES, MAX_TEXT
    if number := read_gold(gold):
        rules = NUMBER_RULES
    elif "\\" in gold and find_spec("math_verify"):
        rules, most = MATH_RULES, MAX_LATEX
    if not gold.strip() or (not number and len(gold) > most):  # too long to be an answer
        return False
    problem = make_problem("jsonl", {}, number or gold.strip())
    said = f"<answer>{answer}</answer>"
    return rules["flexible"](problem, said, "think", "direct").verdict.correct


def withheld(said: str, *golds: str | None) -> str:
    """Returns what a critic says of an error without the expected answers that stand alone in it.

    A number goes however it is written: 1,234 and 1234.0, 1/2 and 0.5, with either sign.
    """
    said = said[:MAX_SAID]
    for gold in golds:
        if gold and gold.strip():
            said = without_number(without_text(said, gold), gold)
    return said


def without_text(said: str, gold: str) -> str:
    """Takes out a text. Letters of one choice keep their case: "a" is an article."""
    words = r"\s+".join(map(re.escape, gold.split()))
    case = re.IGNORECASE if len(gold.strip()) > 1 else re.NOFLAG
    return re.sub(rf"(?<![\w.,]){words}(?![\w]|[.,]\d)", "…", said, flags=case)


def without_number(said: str, gold: str) -> str:
    value = read_number(gold)
    if value is None:
        return said
    plain = tidy(unicodedata.normalize("NFKC", said.replace("…", "\0")).replace("\u2044", "/"))
    found = [n for n in find_numbers(plain) if n.value is not None and abs(n.value) == abs(value)]
    if not found:
        return said
    for number in reversed(found):
        plain = f"{plain[: number.start]}…{plain[number.end :]}"
    return plain.replace("\0", "…")
