"""Which passages a text is about: BM25 over their words (Robertson & Zaragoza 2009, by bm25s)."""

import re
from collections.abc import Sequence

import numpy as np

from mlxreflect.core.text import composed

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    return WORD.findall(composed(text).casefold())


class Library:
    """Passages that can be looked up. Ranks do not depend on chance: of equals the first is first.

    Lucene's BM25 with k1 = 1.5, b = 0.75. Raises ValueError where no passage has a word.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        import bm25s  # takes half a second, which runs without a corpus are spared

        self.index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        spoken = [words(passage) for passage in passages]
        if not any(spoken):
            raise ValueError("no passage has a word")
        self.index.index(spoken, show_progress=False)

    def related(self, text: str, most: int | None = None) -> list[int]:
        """Numbers of the passages that share a word with the text, the most telling ones first."""
        asked = words(text)
        if not asked:
            return []
        scores = self.index.get_scores(asked)
        order = np.argsort(-scores, kind="stable")[:most]
        return [int(i) for i in order if scores[i] > 0]
