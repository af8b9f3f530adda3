"""Records and their JSONL form: nothing is lost, and damage is named."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows, dump_line, read_rows, write_atomic
from mlxreflect.core.records import (
    Episode,
    Example,
    Outcome,
    Sample,
    Turn,
    Verdict,
    episode_from_row,
    flat_from_row,
    make_problem,
    to_row,
)

HALF = "half an emoji: \ud83d, and its other half: \ude00"
ODD = f'"quotes" \\ \n \r \u2028 \u0085 \x00 \x7f ﷺ 😀 {HALF}'


def an_episode(text: str) -> Episode:
    problem = make_problem("countdown", {"numbers": [3, 4], "target": 12}, "3 * 4", {"level": 2})
    prompt = [{"role": "user", "content": text}]
    turns = [
        Turn(0, None, "attempt", "policy:ab", prompt, text, {"think": [0, 3]}, "3 + 4",
             Verdict(False, True, "the answer is 7", "grader"), finish_reason="stop",
             token_ids=[1, 2, 3], usage={"prompt": 4, "completion": 3}),
        Turn(1, 0, "critique", "solver", prompt, "", visibility="verdict", error="timed out"),
    ]  # fmt: skip
    return Episode("r3", 1, 2, problem, turns, Outcome(False, None, "bucket", "advanced"))


RECORDS: list[Any] = [
    make_problem("jsonl", {"question": ODD}, "7", {"row": 3}),
    Example("preference", [{"role": "user", "content": ODD}], "a", "b", rejected_ids=[1, 2],
            weight=0.5, source={"problem": "x", "turns": [2, 0]}),
    Example("sft", [], completion=ODD, completion_ids=[5]),
    Sample("gsm8k", "ab", 3, ODD, [1, 2], "length", None, False, True),
]  # fmt: skip


@pytest.mark.parametrize("record", [an_episode(ODD), *RECORDS], ids=lambda r: type(r).__name__)
def test_records_survive_a_file(tmp_path: Path, record: Any) -> None:
    append_rows(tmp_path / "r.jsonl", [to_row(record)])
    (row,) = read_rows(tmp_path / "r.jsonl")
    assert next(iter(row)) == "schema"
    assert row["schema"] == f"{type(record).__name__.lower()}/1"
    if isinstance(record, Episode):
        assert episode_from_row(row) == record
    else:
        assert flat_from_row(type(record), row) == record
        assert flat_from_row(type(record), {**row, "of_a_later_version": 1}) == record
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.SCHEMA = "another"


@given(st.text(alphabet=st.characters(codec=None), max_size=30))
def test_any_text_is_one_line_of_utf8(text: str) -> None:
    data = dump_line({"text": text}).encode("utf-8")
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    read, written = (t.encode("utf-16", "surrogatepass") for t in (json.loads(data)["text"], text))
    assert read == written


def test_text_stays_readable() -> None:
    assert "naïve 😀" in dump_line({"a": "naïve 😀"})


def test_appending_returns_the_length(tmp_path: Path) -> None:
    path, rows = tmp_path / "r.jsonl", [{"n": n, "text": "é" * n} for n in range(5)]
    assert append_rows(path, []) == 0
    first = append_rows(path, rows[:2])
    assert first == path.stat().st_size
    assert append_rows(path, rows[2:]) == path.stat().st_size > first
    assert list(read_rows(path)) == rows
    with path.open("rb+") as file:  # what a crash left behind the first append is cut off by it
        file.truncate(first)
    assert list(read_rows(path)) == rows[:2]


def test_every_cut_of_the_last_line_is_an_unfinished_line(tmp_path: Path) -> None:
    rows = [{"n": 1, "text": "a"}, {"n": 2, "text": "é 😀"}, {"n": 3, "text": "ü", "x": [1, {}]}]
    whole = "".join(dump_line(row) for row in rows).encode()
    begin = whole[:-1].rindex(b"\n") + 1
    for end in range(begin, len(whole) - 1):
        (tmp_path / "r.jsonl").write_bytes(whole[:end])
        assert list(read_rows(tmp_path / "r.jsonl")) == rows[:2], whole[begin:end]
    for end in (len(whole) - 1, len(whole)):  # only the newline is missing: the row is there
        (tmp_path / "r.jsonl").write_bytes(whole[:end])
        assert list(read_rows(tmp_path / "r.jsonl")) == rows
    (tmp_path / "r.jsonl").write_bytes(whole[:begin] + b"\x00" * 64)  # as a power cut leaves it
    assert list(read_rows(tmp_path / "r.jsonl")) == rows[:2]


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1', b"oops", b'{"a": "\xff"}', b"[1, 2]", b"7", b"null", b'"text"', b"{'a': 1}",
        b'{"a": 1} {"a": 2}', b"\x00\x00", b"[" * 100_000, b'{"a": ' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda line: line[:12].decode("ascii", "replace"),
)  # fmt: skip
def test_a_bad_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\n{"a": "\xe2\x80\xa8"}\r\n' + line + b'\n{"a": 3}\n')
    rows = read_rows(path)
    assert next(rows) == {"a": "\u2028"}
    with pytest.raises(UserError) as caught:
        next(rows)
    assert f"{path}, line 3" in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.hint


def write_many(path: Path, writer: int) -> None:
    for n in range(40):
        append_rows(path, [{"writer": writer, "n": n, "text": "x" * (100 * writer)}] * 2)


def test_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    writers = [threading.Thread(target=write_many, args=(path, w)) for w in range(1, 4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    rows = list(read_rows(path))
    for writer in range(1, 4):
        own = [row for row in rows if row["writer"] == writer]
        assert [row["n"] for row in own] == [n for n in range(40) for _ in range(2)]
        assert {row["text"] for row in own} == {"x" * (100 * writer)}


def test_write_atomic_replaces_or_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_atomic(path, "one")
    write_atomic(path, "twö")
    assert path.read_text(encoding="utf-8") == "twö"
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "three" * 100_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "twö"


def test_a_problems_id_is_of_its_content() -> None:
    problem = make_problem("jsonl", {"question": "q", "n": 1}, "7")
    assert problem.id == make_problem("jsonl", {"n": 1, "question": "q"}, "7", {"row": 9}).id
    assert len(problem.id) == 16
    others = [
        make_problem("gsm8k", {"question": "q", "n": 1}, "7"),
        make_problem("jsonl", {"question": "q", "n": 2}, "7"),
        make_problem("jsonl", {"question": "q", "n": 1}, "8"),
        make_problem("jsonl", {"question": "q", "n": 1}),
        make_problem("jsonl", {"question": "\ud83d", "n": 1}, "7"),
    ]
    assert len({problem.id, *(p.id for p in others)}) == 6
    # Fixed for good: committed runs name their problems by it.
    assert make_problem("countdown", {"numbers": [3, 4, 5], "target": 35}).id == "82c008f1f56c695a"


def test_scores() -> None:
    verdicts = [
        Verdict(correct, fine, "why") for correct in (True, False) for fine in (True, False)
    ]
    assert [verdict.score for verdict in verdicts] == [1.0, 0.5, 0.5, 0.0]
    assert [verdict.passed for verdict in verdicts] == [True, False, False, False]
