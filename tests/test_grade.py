"""`mlxreflect grade`: rows in, verdicts out, and what is said of a row that cannot be graded."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.grade import grade_file
from mlxreflect.tasks import TASKS, get_task


def save(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answer(text: str) -> str:
    return f"<think>x</think>\n<answer>{text}</answer>"


@pytest.mark.parametrize("task", ["gsm8k", "arithmetic", "jsonl"])
def test_numbers(tmp_path: Path, task: str) -> None:
    rows = [
        {"id": "a", "gold": 0, "response": answer("0")},
        {"id": 2, "gold": "0", "response": answer("1")},
        {"id": "c", "gold": "1,234", "response": "The answer is $1,234."},
        {"id": "d", "gold": 2.5, "response": answer("5/2")},
        {"id": "e", "gold": 18, "response": "no idea"},
    ]
    out = list(grade_file(task, save(tmp_path / "r.jsonl", rows)))
    assert out == [
        {"id": "a", "correct": True, "format_ok": True, "parsed": "0", "reason": ""},
        {
            "id": 2,
            "correct": False,
            "format_ok": True,
            "parsed": "1",
            "reason": "expected 0, got 1",
        },
        {**out[2], "id": "c", "correct": True, "format_ok": False, "parsed": "1234"},
        {"id": "d", "correct": True, "format_ok": True, "parsed": "2.5", "reason": ""},
        {
            "id": "e",
            "correct": False,
            "format_ok": False,
            "parsed": None,
            "reason": "no number found",
        },
    ]
    assert all(list(row) == ["id", "correct", "format_ok", "parsed", "reason"] for row in out)


def test_the_other_answer_types(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "gold": "Paris", "answer_type": "text", "response": answer("paris.")},
        {"id": 2, "gold": "B", "answer_type": "choice", "response": answer("(B)")},
        {
            "id": 3,
            "gold": 1,
            "answer_type": "choice",
            "choices": ["Rome", "Paris"],
            "response": answer("Paris"),
        },
        {"id": 4, "gold": "A", "answer_type": "choice", "response": answer("B")},
    ]
    out = list(grade_file("jsonl", save(tmp_path / "r.jsonl", rows)))
    assert [row["correct"] for row in out] == [True, True, True, False]
    assert [row["parsed"] for row in out] == ["paris.", "B", "B", "B"]


def test_countdown(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "numbers": [3, 4, 5], "target": 35, "response": answer("(3 + 4) * 5")},
        {"id": 2, "numbers": [3, 4, 5], "target": 35, "response": answer("3 + 4 * 5")},
    ]
    out = list(grade_file("countdown", save(tmp_path / "r.jsonl", rows)))
    assert [row["correct"] for row in out] == [True, False]


def test_tags_and_style_are_the_callers(tmp_path: Path) -> None:
    row = {"id": 1, "gold": 5, "response": "<reasoning>x</reasoning><answer>5</answer>"}
    path = save(tmp_path / "r.jsonl", [row])
    assert not next(iter(grade_file("gsm8k", path)))["format_ok"]
    assert next(iter(grade_file("gsm8k", path, tags="reasoning")))["format_ok"]
    direct = save(tmp_path / "d.jsonl", [{**row, "response": "<answer>5</answer>"}])
    assert next(iter(grade_file("gsm8k", direct, style="direct")))["format_ok"]


GOOD = {"id": 1, "gold": 5, "response": "5"}


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("gsm8k", {"gold": 5, "response": "5"}, "no 'id'"),
        ("gsm8k", {"id": 1, "gold": 5}, "no 'response'"),
        ("gsm8k", {**GOOD, "response": None}, "response is no text"),
        ("gsm8k", {**GOOD, "response": 5}, "response is no text"),
        ("gsm8k", {"id": 1, "response": "5"}, "gold"),
        ("gsm8k", {**GOOD, "gold": "many"}, "gold"),
        ("gsm8k", {**GOOD, "gold": None}, "gold"),
        ("arithmetic", {**GOOD, "gold": "x"}, "gold"),
        ("jsonl", {**GOOD, "gold": []}, "gold"),
        ("jsonl", {**GOOD, "answer_type": "essay"}, "answer_type"),
        ("jsonl", {**GOOD, "answer_type": ["text"]}, "answer_type"),
        ("jsonl", {**GOOD, "answer_type": "choice", "gold": "Paris"}, "choice"),
        ("countdown", GOOD, "numbers"),
        ("countdown", {**GOOD, "numbers": [1, 2], "target": "3"}, "target"),
        ("gsm8k", [1], "no JSON object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, task: str, row: Any, said: str) -> None:
    first = {**GOOD, "numbers": [5], "target": 5}
    rows = grade_file(task, save(tmp_path / "bad.jsonl", [first, row]))
    next(rows)
    with pytest.raises(UserError) as caught:
        next(rows)
    assert "bad.jsonl, line 2" in caught.value.message and said in caught.value.message
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


def test_unknown_task_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the tasks are") as caught:
        list(grade_file("gsm8", save(tmp_path / "r.jsonl", [])))
    assert "gsm8k" in caught.value.hint
    with pytest.raises(UserError, match="no such file"):
        list(grade_file("gsm8k", tmp_path / "none.jsonl"))
    assert {"countdown", "arithmetic", "last_letter", "gsm8k", "svamp", "aime", "math500", "logiqa",
            "jsonl"} == set(TASKS)  # fmt: skip
    assert all(get_task(name).name == name for name in TASKS)
