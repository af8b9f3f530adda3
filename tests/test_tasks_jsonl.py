"""The user's own problems: every file form, every answer type, and what is said of bad rows."""

import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.rows import write_rows

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.data import rows
from mlxreflect.tasks.jsonl import TASK

ROWS = [{"question": f"Question number {i}", "answer": str(i)} for i in range(300)]


def load(path: Path | str, part: str = "all", **keys: Any) -> list[Problem]:
    return TASK.load(TaskConfig(name="jsonl", source=str(path), **keys), part, 0)


def fault(path: Path | str, part: str = "all", **keys: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load(path, part, **keys)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_the_same_rows_in_every_form(tmp_path: Path) -> None:
    lines = write_rows(tmp_path / "p.jsonl", ROWS)
    plain = tmp_path / "p.json"
    plain.write_text(json.dumps(ROWS))
    nested = tmp_path / "n.json"
    nested.write_text(json.dumps({"version": 1, "data": ROWS}))
    misnamed = tmp_path / "lines.json"
    misnamed.write_text(lines.read_text())
    tables = []
    for name, between in (("p.csv", ","), ("p.tsv", "\t"), ("semicolons.csv", ";"),
                          ("tabs.csv", "\t"), ("spaces.csv", ", ")):  # fmt: skip
        cells = [["question", "answer"], *(row.values() for row in ROWS)]
        tables.append(tmp_path / name)
        tables[-1].write_text("".join(f"{between.join(map(str, c))}\n" for c in cells))
    for packed in (lines, tables[0]):
        tables.append(tmp_path / f"packed-{packed.name}.gz")
        tables[-1].write_bytes(gzip.compress(packed.read_bytes()))
    marked = tmp_path / "bom.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    expected = [p.id for p in load(lines)]
    assert len(set(expected)) == 300
    for path in (plain, nested, misnamed, marked, *tables):
        assert [p.id for p in load(path)] == expected, path.name


def test_quoted_cells_and_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('question,answer\n"One,\ntwo","1,234"\nThree,many\n', encoding="utf-8")
    assert "q.csv, line 4" in fault(path).message
    path.write_text('question, answer\n"One,\ntwo", "1,234"\n', encoding="utf-8")
    [problem] = load(path)
    assert problem.fields["question"] == "One,\ntwo" and problem.gold == "1234"
    path.write_text("question;answer\nWhat, in all?;3,5\n", encoding="utf-8")
    assert "write it with a point, 3.5" in fault(path).hint
    path.write_text("question,answer,answer\nQ?,1,2\n", encoding="utf-8")
    assert (load(path)[0].gold, load(path, answer="answer.1")[0].gold) == ("1", "2")


def test_of_two_answers_to_one_question_the_order_does_not_decide(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": "1"}, {"question": "q? ", "answer": "2"}]
    one, other = (
        write_rows(tmp_path / "a.jsonl", rows),
        write_rows(tmp_path / "b.jsonl", rows[::-1]),
    )
    assert len(load(one)) == 1
    assert load(one) == load(other)


def test_columns_are_mapped_also_nested_ones(tmp_path: Path) -> None:
    rows = [{"input": {"prompt": "How many?"}, "out.label": "7 eggs"}]
    [problem] = load(
        write_rows(tmp_path / "x.jsonl", rows), question="input.prompt", answer="out.label"
    )
    assert problem.fields["question"] == "How many?" and problem.gold == "7"


def test_a_missing_column_names_line_columns_and_key(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [ROWS[0], {"prompt": "a", "label": "1"}])
    error = fault(path)
    for word in ("x.jsonl, line 2", "'question'", "prompt, label"):
        assert word in error.message
    assert "task.question" in error.hint
    lacks = fault(write_rows(tmp_path / "lacks.jsonl", [{"question": "a"}]))
    assert lacks.hint == "correct that row, or set task.answer to the right column"
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"question": "a", "answer": "1"}\n{"question": 1+2}\n')
    assert fault(torn).message.endswith(
        "torn.jsonl, line 2: not JSON (expecting ',' delimiter at character 15)"
    )
    error = fault(write_rows(tmp_path / "y.jsonl", [{"question": "a", "solution": "1"}]))
    assert "'answer'" in error.message and "question, solution" in error.message
    assert "task.answer" in error.hint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "a", "answer": "1"', "not JSON"),
        ("[1, 2]", "no JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"question": "", "answer": "1"}', "is empty"),
        ('{"question": "  ", "answer": "1"}', "is empty"),
        ('{"question": null, "answer": "1"}', "is empty"),
        ('{"question": ["a"], "answer": "1"}', "is no text"),
        ('{"question": "a", "answer": "many"}', "is no number"),
        ('{"question": "a", "answer": null}', "is no number"),
        ('{"question": "a", "answer": true}', "is no number"),
        ('{"question": "a", "answer": NaN}', "is no number"),
        ('{"question": "a", "answer": {"x": 1}}', "is no number"),
        ('{"question": "a", "answer": ' + "7" * 41 + "}", "has more than 40 digits"),
        ('{"question": "a", "answer": "17 or 18"}', "is no number"),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", "not JSON"),
        ('{"question": "a", "answer": "\udc80"}', "not JSON"),
        ('{"question": "a \\ud800 b: 1+1?", "answer": "2"}', "'question' has half a surrogate"),
        ('{"question": "a", "answer": "2 #### \\ud83d 2"}', "'answer': half a surrogate pair"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    text = json.dumps(ROWS[0]) + "\n\n" + line + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    error = fault(path)
    assert "bad.jsonl, line 3" in error.message and said in error.message
    assert error.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in fault(tmp_path / "none.jsonl").message
    assert "no train.jsonl in this folder" in fault(tmp_path).message
    (tmp_path / "empty.jsonl").write_text("")
    assert "no rows" in fault(tmp_path / "empty.jsonl").message
    (tmp_path / "two.json").write_text('{"a": [], "b": []}')
    assert "no column 'question'; the columns are: a, b" in fault(tmp_path / "two.json").message
    (tmp_path / "latin.csv").write_bytes("question,answer\ncafé,1\n".encode("latin-1"))
    assert "UTF-8" in fault(tmp_path / "latin.csv").message
    wide = tmp_path / "it's wide.jsonl"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        wide.write_text(json.dumps(ROWS[0]) + "\n", encoding=encoding)
        assert fault(wide).message == f"{wide}: it is UTF-16, not UTF-8"
        assert f"iconv -f UTF-16 -t UTF-8 {shlex.quote(str(wide))} >" in fault(wide).hint
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}" * 999)[:-9])
    assert "x.jsonl.gz: damaged gzip" in fault(packed).message
    packed.write_bytes(gzip.compress(b"\n" * 10_001))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "MOST_UNPACKED", 10_000)
        assert "unpacks to more than 10000 bytes" in fault(packed).message
    (tmp_path / "short.csv").write_text("question,answer\na\n")
    assert "short.csv, line 2" in fault(tmp_path / "short.csv").message
    (tmp_path / "long.csv").write_text("question,answer\na,1,2\n")
    assert "long.csv, line 2" in fault(tmp_path / "long.csv").message
    with pytest.raises(UserError) as caught:
        TASK.load(TaskConfig(name="jsonl"), "all", 0)
    assert "task.source" in caught.value.hint


def test_a_part_without_rows_says_how_many_there_are(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "few.jsonl", ROWS[:2])
    empty = [part for part in ("train", "dev", "heldout") if not holds(path, part)]
    assert empty  # two rows cannot fill three parts
    error = fault(path, empty[0])
    assert "2 rows" in error.message and repr(empty[0]) in error.message
    assert "eval.source" in error.hint


def holds(path: Path, part: str) -> bool:
    try:
        return bool(load(path, part))
    except UserError:
        return False


def test_choices_are_shown_with_their_letters(tmp_path: Path) -> None:
    rows = [
        {
            "question": "Capital of France?",
            "choices": ["London", "Paris", "Rome, the old one"],
            "answer": "B",
        },
        {"question": "Capital of France?", "choices": ["Lyon", "Paris"], "answer": 1},
    ]
    first, second = load(write_rows(tmp_path / "c.jsonl", rows), answer_type="choice")
    assert TASK.show(first) == "Capital of France?\nA. London\nB. Paris\nC. Rome, the old one"
    assert TASK.show(second) == "Capital of France?\nA. Lyon\nB. Paris"
    assert "letter" in TASK.instruction(first)


def test_countdown_problems_in_a_file_of_ones_own(tmp_path: Path) -> None:
    row = {"question": "Make 35 of 3, 4 and 5.", "numbers": [3, 4, 5], "target": 35}
    [problem] = load(write_rows(tmp_path / "c.jsonl", [row]), answer_type="countdown")
    text = "<think>x</think><answer>(3 + 4) * 5</answer>"
    assert TASK.grade(problem, text, "think", "thinking").verdict.passed
    assert not TASK.grade(problem, text.replace("5<", "4<"), "think", "thinking").verdict.correct
    assert TASK.rules["subset"](problem, text, "think", "thinking").verdict.correct
    assert TASK.show(problem) == row["question"] and "35" not in TASK.instruction(problem)
    bad = write_rows(tmp_path / "c.jsonl", [{**row, "target": "35"}])
    assert "c.jsonl, line 1: target" in fault(bad, answer_type="countdown").message


def test_a_hub_data_set_with_its_config_and_split(monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("ChilleD/SVAMP", config="plain", split="test")) == 300
    assert asked == [("ChilleD/SVAMP", "plain", "test")]
    error = fault("ChilleD/SVAMP", question="Body")
    assert "ChilleD/SVAMP (train), row 1" in error.message and "question, answer" in error.message
    assert asked[-1] == ("ChilleD/SVAMP", None, "train")


def test_a_hub_data_set_that_cannot_be_had(monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "doesn't exist" in fault("nobody/nothing").message


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("a.jsonl", b'{"a": 1}\r{"a": 2}\r', [{"a": 1}, {"a": 2}]),
        ("a.json", b'{"rows": [{"a": 1}, {"a": 2}], "x": []}', [{"a": 1}, {"a": 2}]),
        ("a.json", b'{"prompt": "p", "tools": [{"name": "t"}]}', 1),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "packed twice"),
    ],
)
def test_odd_files_are_read_or_named(tmp_path: Path, name: str, data: bytes, found: Any) -> None:
    (tmp_path / name).write_bytes(data)
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            list(rows.read_file(tmp_path / name))
        return
    told = [row.values for row in rows.read_file(tmp_path / name)]
    assert told == found if isinstance(found, list) else len(told) == found
