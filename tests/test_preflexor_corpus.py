"""Passages of a person's own texts: which files are read, how they are cut and looked up."""

import json
import math
import os
import random
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.data.matching import Question, build_index
from mlxreflect.evaluation.contamination import clean_problems
from mlxreflect.methods import preflexor_corpus as corpus
from mlxreflect.methods.preflexor_corpus import (
    FEWEST,
    Library,
    make_question,
    passages_of,
    read_corpus,
    words,
)
from mlxreflect.methods.preflexor_corpus import split_passages as split

LONG = "Bees gather nectar from flowers and make honey of it, all summer long."
OTHER = "Rain falls on the hills, runs down in brooks, and ends in the grey sea."


def texts(folder: Path, size: int = 200, column: str = "text") -> list[str]:
    return [passage.fields["question"] for passage in read_corpus(str(folder), size, column)]


def test_all_kinds_of_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.MD").write_text(f"# Bees\n\n{LONG}\n")
    (tmp_path / "a.txt").write_text(OTHER)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": LONG + " So they do."}) + "\n\n")
    (tmp_path / "code.py").write_text(LONG * 2)
    (tmp_path / ".hidden.txt").write_text(LONG * 2)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.txt").write_text(LONG * 2)
    found = read_corpus(str(tmp_path), 200, "text")
    assert [(p.meta["file"], p.meta["part"], p.fields["question"]) for p in found] == [
        ("a.txt", 0, OTHER), ("b/one.MD", 0, f"# Bees\n\n{LONG}"),
        ("c.jsonl", 0, LONG + " So they do."),
    ]  # fmt: skip
    assert len({p.id for p in found}) == 3
    # A file alone is a corpus too, and the same text twice is one passage.
    (tmp_path / "d.txt").write_text(OTHER)
    assert len(texts(tmp_path)) == 3
    assert texts(tmp_path / "d.txt") == [OTHER]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    said = "Größe, naïve, 漢字: " + LONG
    (tmp_path / "a.txt").write_text(said, encoding=encoding)
    assert texts(tmp_path) == [said]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", LONG.replace("honey", "Größe").encode("latin-1"), "not UTF-8"),
        ("a.md", b"\xff\xfe" + b"\x00\xd8\x00", "not UTF-8"),
        ("a.txt", LONG.encode() + b"\0", "NUL"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2: cut off in the middle"),
        ("a.jsonl", b'{"body": "a"}\n', "no column 'text'; the columns are: body"),
        ("a.jsonl", b'{"text": 7}\n', "line 1: column 'text' is no text"),
        ("a.txt", b" \n\n ", "no text in it"),
        ("a.txt", b"short", "no text in it"),
        ("a.rst", LONG.encode(), "no text in it"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        texts(tmp_path)
    assert said in caught.value.message and str(tmp_path) in caught.value.message
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


def test_a_folder_that_is_not_there_and_a_file_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"preflexor\.corpus: .*nowhere: no such folder"):
        texts(tmp_path / "nowhere")
    monkeypatch.setattr(corpus, "MOST_BYTES", 10)
    (tmp_path / "a.txt").write_text(LONG)
    with pytest.raises(UserError, match="over 0 MB"):
        texts(tmp_path)


def test_no_pipe_is_opened_and_no_link_leads_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LONG)
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "around").symlink_to(tmp_path)
    (tmp_path / "lost.txt").symlink_to(tmp_path / "nowhere")
    assert texts(tmp_path) == [LONG]


def test_columns_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": LONG, "inner": {"body": OTHER}}) + "\n")
    assert texts(tmp_path, column="inner.body") == [OTHER]
    assert list(passages_of(tmp_path / "a.jsonl", 500, "text")) == [LONG]


# ---- cutting -------------------------------------------------------------------------------------


def test_paragraphs_stay_whole_where_they_fit() -> None:
    text = f"{LONG}\r\n \r\n{OTHER}\r\n\r\n{LONG}"
    assert list(split(text, 150)) == [f"{LONG}\n\n{OTHER}", LONG]
    assert list(split(text, 100)) == [LONG, OTHER, LONG]


def test_a_heading_goes_with_what_follows_it() -> None:
    text = f"# Nature\n\n## Bees\n\n{LONG}\n\n## Rain\n{OTHER}\n\n## Empty"
    assert list(split(text, 500)) == [f"# Nature\n\n## Bees\n\n{LONG}", f"## Rain\n{OTHER}"]


@settings(max_examples=40)
@given(st.text(st.sampled_from("ab \n#\t"), max_size=400), st.integers(5, 80))
def test_no_word_is_lost_and_none_is_too_long(text: str, size: int) -> None:
    pieces = list(corpus.pieces_of(text, size))
    assert all(0 < len(piece) <= size for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(FEWEST <= len(passage) <= max(size, FEWEST) for passage in split(text, size))


@pytest.mark.parametrize("unit", ["a", "a ", "\n", "\n \t", "#\n\n", "# a\n\nb\n\n", " "])
def test_much_of_anything_takes_no_time(unit: str) -> None:
    began = time.monotonic()
    list(split(unit * (300_000 // len(unit)), 1500))
    assert time.monotonic() - began < 2


def test_a_passage_that_an_evaluation_asks_about_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LONG)
    (tmp_path / "b.txt").write_text(OTHER)
    asked = f"Is it so that {OTHER.lower()}?"
    recipe = Recipe.model_validate(
        {"strategy": "preflexor", "task": {"name": "jsonl"}, "preflexor": {"corpus": str(tmp_path)}}
    )
    exams = build_index([Question("exam", "q1", [asked], asked)], 13)
    kept, left_out = clean_problems(recipe, exams)
    assert [problem.fields["question"] for problem in kept.values()] == [LONG]
    ((passage, match),) = left_out
    assert passage.meta["file"] == "b.txt" and match.id == "q1"


def test_a_question_knows_its_passage() -> None:
    passage = corpus.make_passage(LONG, {"file": "a.txt", "part": 2})
    question = make_question(passage, "What do bees make?")
    assert question.fields == {"question": "What do bees make?", "answer_type": "text"}
    assert question.gold is None
    assert question.meta == {"file": "a.txt", "part": 2, "passage": passage.id}


# ---- looking up ----------------------------------------------------------------------------------

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


def test_a_corpus_without_bm25s_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a model is loaded; a run without a corpus does not miss it."""
    (tmp_path / "a.txt").write_text(LONG)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    table = {"corpus": str(tmp_path)}
    recipe = Recipe.model_validate(
        {"strategy": "preflexor", "task": {"name": "jsonl"}, "preflexor": table}
    )
    with pytest.raises(UserError, match="the package bm25s, which is missing") as caught:
        clean_problems(recipe, None)
    assert caught.value.hint == "pip install 'mlxreflect[corpus]'"
    assert clean_problems(Recipe.model_validate({"strategy": "preflexor"}), None)[0]


def test_words_are_the_same_in_any_spelling() -> None:
    assert words("Die BRÜCKE, bru\u0308cke; it's 3.5") == [
        "die", "brücke", "brücke", "it", "s", "3", "5",
    ]  # fmt: skip
