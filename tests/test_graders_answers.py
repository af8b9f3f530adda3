"""Answers as they are written: tables with both verdicts, and the cases from practice."""

import json
from pathlib import Path

import pytest
from support.answers import LATEX, LETTERS, NUMBERS, Table
from support.rows import write_rows

from mlxreflect.evaluation.evaluate import grade_file
from mlxreflect.tasks import TASKS

OPTIONS = ["red", "blue", "green", "none"]
KINDS: dict[str, tuple[Table, dict[str, object]]] = {
    "number": (NUMBERS, {}), "math": (LATEX, {}), "choice": (LETTERS, {"choices": OPTIONS}),
}  # fmt: skip
CASES = Path(__file__).parents[2] / "shared" / "cases" / "grade"
FILES = {
    "choice": "choice", "countdown-notation": "countdown", "math-no-box": "math",
    "num-answer-colon": "number", "num-notation": "number", "num-time-date": "number",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "gold", "right"),
    [
        (kind, gold, right)
        for kind, (table, _) in KINDS.items()
        for gold in table
        for right in (1, 0)
    ],
)
def test_what_is_right_and_what_stays_wrong(kind: str, gold: str, right: int) -> None:
    if kind == "math":
        pytest.importorskip("math_verify")
    table, row = KINDS[kind]
    problem = TASKS["jsonl"].from_row({"gold": gold, "answer_type": kind, **row})
    found = {
        text: TASKS["jsonl"].grade(problem, text, "think", "direct")
        for text in table[gold][1 - right]
    }
    misjudged = {t: g.parsed for t, g in found.items() if g.verdict.correct is not bool(right)}
    assert not misjudged


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases from practice are not there")
@pytest.mark.parametrize("name", FILES)
def test_cases_from_practice(name: str, tmp_path: Path) -> None:
    if FILES[name] == "math":
        pytest.importorskip("math_verify")
    lines = (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{**json.loads(line), "answer_type": FILES[name]} for line in lines]
    graded = grade_file("jsonl", write_rows(tmp_path / "rows.jsonl", rows))
    assert [row["correct"] for row in graded] == [row["expected_correct"] for row in rows]
