"""Passages by BM25, against the formula written out."""

import math
import random
from collections import Counter
from itertools import pairwise

import pytest

from mlxreflect.methods.preflexor_corpus import Library, words

VOCABULARY = ["bee", "honey", "rain", "sea", "hill", "Brücke", "iron", "the", "of", "7"]


def bm25(passages: list[str], text: str) -> list[float]:
    """Lucene's BM25 with k1 = 1.5 and b = 0.75, term by term."""
    documents = [Counter(passage.lower().split()) for passage in passages]
    lengths = [sum(document.values()) for document in documents]
    mean, n = sum(lengths) / len(lengths), len(documents)
    scores = [0.0] * n
    for term in text.lower().split():
        df = sum(term in document for document in documents)
        idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
        for i, document in enumerate(documents):
            tf = document[term]
            scores[i] += idf * tf / (tf + 1.5 * (0.25 + 0.75 * lengths[i] / mean))
    return scores


@pytest.mark.parametrize("seed", range(20))
def test_ranks_are_those_of_the_formula(seed: int) -> None:
    rng = random.Random(seed)
    passages = [" ".join(rng.choices(VOCABULARY, k=rng.randint(1, 30))) for _ in range(25)]
    text = " ".join(rng.choices(VOCABULARY, k=3))
    scores = bm25(passages, text)
    found = Library(passages).related(text)
    assert set(found) == {i for i, score in enumerate(scores) if score > 0}
    assert all(scores[a] >= scores[b] - 1e-5 for a, b in pairwise(found))
    assert Library(passages).related(text, 4) == found[:4]


def test_of_equals_the_first_is_first() -> None:
    library = Library(["rain and sea", "bees", "rain and sea", "rain and sea"])
    assert library.related("sea") == [0, 2, 3]


@pytest.mark.parametrize("text", ["", "?!", "unheard", "zz yy"])
def test_nothing_is_related_to_what_is_not_there(text: str) -> None:
    assert Library(["rain and sea", "bees"]).related(text) == []


def test_words_are_the_same_in_any_spelling() -> None:
    assert words("Die BRÜCKE, bru\u0308cke; it's 3.5") == [
        "die", "brücke", "brücke", "it", "s", "3", "5",
    ]  # fmt: skip
