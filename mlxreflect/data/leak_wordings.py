"""Weighs wordings by which a text may give away that its writer was helped.

No word leaks by itself; what leaks is a wording. Phrases of up to three words have learned weights,
with words or with classes of words (a CRITIC may be a reviewer or a grader), and a window of a
sentence leaks when its phrases sum up to more than a threshold. tests/bench/leaks.py learns the
weights from tests/data/leaks.tsv. `data.leaks` asks this after its rules.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, NamedTuple

import numpy as np

WINDOW = 40  # words that are weighed together; longer sentences are read in several windows
PHRASE = 8  # words of a window that a reason shows
FARTHEST = 5  # words between the two of a pair with a gap
RADIX = 1 << 13  # more than there are words and classes
NAMED = ("FEEDBACK", "REVIEW", "CRITIC", "TEACHER", "WRITER", "ATTEMPT")  # what a problem may have


class Scorer(NamedTuple):
    """ids: of words and of classes, from 1 on. classes: of a word. keys: of phrases, in order."""

    ids: dict[str, int]
    classes: dict[str, str]
    keys: Any
    weights: Any
    threshold: float


class Token(NamedTuple):
    text: str
    start: int
    end: int


def heaviest(text: str, question: str = "") -> str:
    """Returns the words by which a text most gives away that it was helped, or "".

    question: the problem as it is shown, of which a text may speak. Linear in the text's length.
    """
    scorer = load_scorer()
    text = TAG.sub("\n\n", text.translate(MARKUP))  # tags are no words, and end a sentence
    tokens, bounds = read(text)
    scores = weigh(scorer, *encode(scorer, tokens, names(scorer, question)), bounds)
    best, place = best_window(scores, bounds)
    if best <= scorer.threshold:
        return ""
    _, (start, end) = best_window(scores, [place], PHRASE, 1)
    return " ".join(text[tokens[start].start : tokens[end - 1].end].lower().split())


# ---- words ---------------------------------------------------------------------------------------


def read(text: str) -> tuple[list[Token], list[tuple[int, int]]]:
    """Returns the tokens, with "^" and "$" around each sentence, and the sentences' bounds."""
    tokens: list[Token] = []
    bounds = []
    at = 0
    for end in (*(found.end() for found in SENTENCE_END.finditer(text)), len(text)):
        first = len(tokens)
        tokens.append(Token("^", at, at))
        for found in WORD.finditer(text, at, end):
            word = found[0].lower()
            if not word[0].isalpha() and word not in PUNCTUATION:
                word = "0"  # numbers and signs of arithmetic
            if word != tokens[-1].text:  # however many
                tokens.append(Token(SLIPS.get(word, word), *found.span()))
        if len(tokens) > first + 1:
            tokens.append(Token("$", end, end))
            bounds.append((first, len(tokens)))
        else:
            tokens.pop()
        at = end
    return tokens, bounds


def names(scorer: Scorer, question: str) -> set[str]:
    """Returns the words of the problem that leak nothing in a text about it."""
    words = set(WORD.findall(question.lower()))
    named = {x.rstrip("s") for x in words if scorer.classes.get(x) in NAMED}
    return {x for x, kind in scorer.classes.items() if kind in NAMED and x.rstrip("s") in named}


def encode(scorer: Scorer, tokens: list[Token], innocent: set[str]) -> tuple[Any, Any]:
    """Returns the ids of the tokens' words and of their classes, 0 where there are none."""
    ids, classes = scorer.ids, scorer.classes
    known = [token.text if token.text not in innocent else "" for token in tokens]
    words = [ids.get(word, 0) for word in known]
    kinds = [ids.get(classes.get(word, ""), 0) for word in known]
    return np.array(words, np.int64), np.array(kinds, np.int64)


# ---- phrases -------------------------------------------------------------------------------------


def phrases(words: Any, kinds: Any) -> Iterator[tuple[int, Any]]:
    """Yields for each form of phrase how far it reaches, and its key at each place, or 0.

    A phrase belongs to the place of its first word. Forms: one to three neighbours, each as a word
    or as a class, and two with some others between them, each as a class where it has one.
    """
    size = len(words)
    words, kinds = (np.pad(x, (0, FARTHEST)) for x in (words, kinds))
    for length in (1, 2, 3):
        for form in product((words, kinds), repeat=length):
            parts = [x[i : i + size] for i, x in enumerate(form)]
            key = sum(x * RADIX**i for i, x in enumerate(parts))
            yield length - 1, np.where(np.logical_and.reduce(parts), key, 0)
    either = np.where(kinds > 0, kinds, words)
    for reach in range(2, FARTHEST + 1):
        first, second = either[:size], either[reach : reach + size]
        yield reach, np.where((first > 0) & (second > 0), first + RADIX**2 * second, 0)


def weigh(scorer: Scorer, words: Any, kinds: Any, bounds: list[tuple[int, int]]) -> Any:
    """Returns the sum of the weights of the phrases that begin at each place.

    A phrase lies within one of the sentences, and one that occurs again within a window of its
    sentence counts once.
    """
    lengths = [end - start for start, end in bounds]
    sentence = np.repeat(np.arange(len(bounds)), lengths)
    ends = np.repeat([end for _, end in bounds], lengths)
    hits = []
    for reach, keys in phrases(words, kinds):
        at = np.searchsorted(scorer.keys, keys).clip(max=len(scorer.keys) - 1)
        places = np.flatnonzero(scorer.keys[at] == keys)
        places = places[places + reach < ends[places]]
        hits.append(np.stack([at[places], places]))
    phrase, place = np.concatenate(hits, axis=1)
    order = np.lexsort((place, phrase))
    phrase, place = phrase[order], place[order]
    far = np.diff(place + WINDOW * sentence[place], prepend=-WINDOW)
    again = (np.diff(phrase, prepend=-1) == 0) & (far < WINDOW)
    weights = np.where(again, 0, scorer.weights[phrase])
    return np.bincount(place, weights, minlength=len(words))


def best_window(
    scores: Any, bounds: list[tuple[int, int]], length: int = WINDOW, step: int = WINDOW // 2
) -> tuple[float, tuple[int, int]]:
    """Returns the highest sum of a window within one of the bounds, and where that window is."""
    windows = [
        (at, min(at + length, end))
        for start, end in bounds
        for at in range(start, max(start + 1, end - length + step), step)
    ]
    if not windows:
        return -np.inf, (0, 0)
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    places = np.array(windows)
    totals = sums[places[:, 1]] - sums[places[:, 0]]
    best = int(totals.argmax())
    return float(totals[best]), windows[best]


@cache
def load_scorer() -> Scorer:
    """Reads the data file: words of each class, weights of phrases ("…" is a gap), threshold."""
    data = json.loads(
        files("mlxreflect.data").joinpath("leak_wordings.json").read_text(encoding="utf-8")
    )
    classes = {word: kind for kind, words in data["classes"].items() for word in words.split()}
    phrases = {tuple(phrase.split()): weight for phrase, weight in data["weights"].items()}
    parts = sorted({*data["classes"], *(part for phrase in phrases for part in phrase)} - {"…"})
    ids = {part: i for i, part in enumerate(parts, 1)} | {"…": 0}
    keyed = sorted(
        (sum(ids[x] * RADIX**i for i, x in enumerate(phrase)), weight)
        for phrase, weight in phrases.items()
    )
    keys, weights = zip(*keyed, strict=True)
    return Scorer(ids, classes, np.array(keys), np.array(weights), data["threshold"])


# ---- how texts are read --------------------------------------------------------------------------

MARKUP = str.maketrans({"’": "'", "_": " ", **dict.fromkeys('*`"“”')})
TAG = re.compile(r"<(/?\w{1,20}|\|/?\w{1,20}\|)>")
SENTENCE_END = re.compile(r"[.!?]+(?=\s)|\n")
PUNCTUATION = ",.:;?!()[]'<>"
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d[\d.,/]*|(?<!\w)-|[^\w\s-]")
# What is typed in haste: short forms, and a letter left out or two exchanged.
MISTYPED = """according answer attempt correct critic critique expected feedback previous reference
    reviewer solution suggestion"""
SLIPS = {"ans": "answer", "prev": "previous", "soln": "solution", "u": "you"} | {
    slip: word
    for word in MISTYPED.split()
    for i in range(len(word) - 1)
    for slip in (word[:i] + word[i + 1 :], word[:i] + word[i + 1] + word[i] + word[i + 2 :])
    if slip != word
}
