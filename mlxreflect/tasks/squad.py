"""Free text against one or several expected texts, as SQuAD 1.1's evaluation script compares them.

Exact match and token F1 after lower case, without punctuation and articles (Rajpurkar et al. 2016);
of several expected texts the best one counts.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from mlxreflect.tasks.text import MAX_TEXT

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
