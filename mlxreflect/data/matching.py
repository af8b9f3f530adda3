"""Contamination of training texts by an evaluation: the same text, or n words in a row.

As Brown et al. 2020 (GPT-3), appendix C, and lm-evaluation-harness: words are what stands between
spaces, folded in case, without punctuation. Unlike there, what makes another number or another
calculation is kept: 3.5 is not 35, 3/4 is not 34, 3 + 4 is not 3 - 4 (brackets make no difference).
A question shorter than n words occurs only where a text is all of it. The time is linear in the
length of all texts.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mlxreflect.core.ui import composed

FILE = "decontamination.jsonl"  # in the folder of a run or a training: a row for each left out
WORDING = 10  # questions of an evaluation; words that more of them share tell none of them
SIGNS = str.maketrans(dict.fromkeys("−‐‑–—", "-") | {"×": "*", "⋅": "*", "·": "*", "÷": "/"})
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")  # between any two letters
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
OPERATORS = frozenset("-+*/^=<>")
# 3 + 4, x - 2, (…) * 5: an operand is a number, a single letter or what stands in brackets.
SPACED = re.compile(r"((?<=[\d)])|(?<=\b[a-z])|(?<=\d[a-z])) ([-+*/^=<>]{1,2}) (?=[\d(-]|[a-z]\b)")
SYMBOLS = re.compile(r"[^\w\s]+|_+")
DIGITS_MEET = re.compile(r"(?<=\d) (?=\d)")


class Question(NamedTuple):
    """A question of an evaluation.

    wholes: spellings of the whole question; a training text that equals one is the same question.
    body: the text whose runs of words count; "" where only whole questions are compared.
    """

    spec: str
    id: str
    wholes: Sequence[str]
    body: str


@dataclass(frozen=True)
class Match:
    """The place of a training text in an evaluation. shared: the n words, or all of them."""

    spec: str
    id: str
    how: Literal["exact", "ngram"]
    shared: str
    text: str


@dataclass(frozen=True)
class Index:
    """Evaluations, to be looked up in.

    n: words in a row that count; 0: none, only whole texts. whole, runs: text → (spec, id) of the
    first question with it. wording: runs left out, for too many questions share them.
    """

    n: int
    whole: dict[str, tuple[str, str]]
    runs: dict[str, tuple[str, str]]
    wording: int


def normal_words(text: str) -> list[str]:
    """The words of a text but for case, punctuation and spacing; never more than it has."""
    text = composed(UNSEEN.sub("", text)).translate(SIGNS).casefold()
    text = THOUSANDS.sub("", " ".join(text.split()))
    return SYMBOLS.sub(kept, SPACED.sub(r"\1 \2", text)).split()


def kept(found: re.Match[str]) -> str:
    """Returns what is left of symbols: those inside a number or between operands, and accents."""
    run, text = found[0], found.string
    start, end = found.span()
    before, after = text[max(0, start - 3) : start], text[end : end + 2]
    if before[-1:].isdecimal() and after[:1].isdecimal():
        return run
    if is_operand(before.rstrip()[::-1]) and is_operand(after):
        return "".join(c for c in run if c in OPERATORS)
    if run[-1] == "-" and before[-1:] in ("", " ") and after[:1].isdecimal():
        return "-"
    return "".join(c for c in run if unicodedata.category(c)[0] == "M")


def is_operand(beside: str) -> bool:
    """Of the characters beside an operator, the nearest first: a number, one letter, a bracket."""
    near = beside[:1]
    return near.isdecimal() or near in ("(", ")") or (near.isalpha() and not beside[1:2].isalpha())


def whole_key(words: Sequence[str]) -> str:
    """A text as a whole: spaces count only where two numbers would become one."""
    spaced = " ".join(words).replace(",", " ")  # 3,4 and 3, 4; other commas are gone
    return " ".join(part.replace(" ", "") for part in DIGITS_MEET.split(spaced))


def runs_of(words: Sequence[str], n: int) -> list[str]:
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)] if n else []


def build_index(questions: Iterable[Question], n: int) -> Index:
    """n: words in a row that count; 0: whole texts only."""
    whole: dict[str, tuple[str, str]] = {}
    runs: dict[str, tuple[str, str]] = {}
    seen: Counter[str] = Counter()
    for question in questions:
        at = question.spec, question.id
        keys = [key for text in question.wholes if (key := whole_key(normal_words(text)))]
        again = any(key in whole for key in keys)  # asked twice it counts once
        for key in keys:
            whole.setdefault(key, at)
        for run in () if again else dict.fromkeys(runs_of(normal_words(question.body), n)):
            runs.setdefault(run, at)
            seen[run] += 1
    wording = {run for run, count in seen.items() if count > WORDING}
    return Index(n, whole, {k: v for k, v in runs.items() if k not in wording}, len(wording))


def find(index: Index, wholes: Sequence[str], bodies: Sequence[str]) -> Match | None:
    """The first question that a training row's texts occur in, whole texts before runs."""
    words = {text: normal_words(text) for text in {*wholes, *bodies}}
    for text in wholes:
        if words[text] and (at := index.whole.get(whole_key(words[text]))):
            return Match(*at, "exact", " ".join(words[text]), text)
    for text in bodies:
        for run in runs_of(words[text], index.n):
            if at := index.runs.get(run):
                return Match(*at, "ngram", run, text)
    return None


def count(matches: Sequence[Match], index: Index) -> dict[str, Any]:
    """Returns counts of what was dropped: in all, by kind of match, by evaluation."""
    how = Counter(match.how for match in matches)
    specs = Counter(match.spec for match in matches)
    return {
        "dropped": len(matches), "exact": how["exact"], "ngram": how["ngram"],
        "specs": dict(specs), "n": index.n, "wording": index.wording,
    }  # fmt: skip


def clause(counts: dict[str, Any], what: str = "training problem") -> str:
    """The counts as a clause: "12 training problems occur in the evaluation (…)"."""
    dropped = counts["dropped"]
    if not dropped:
        return f"no {what} occurs in the evaluation"
    verb = "s occur" if dropped > 1 else " occurs"
    how = f"{counts['exact']} as a whole, {counts['ngram']} by {counts['n']} words in a row"
    return f"{dropped} {what}{verb} in the evaluation ({how})"


def sentence(counts: dict[str, Any], what: str = "training problem") -> str:
    """In words, and where to look."""
    found = clause(counts, what)
    verb = "were" if counts["dropped"] > 1 else "was"
    return f"{found} and {verb} left out; see {FILE}" if counts["dropped"] else found
