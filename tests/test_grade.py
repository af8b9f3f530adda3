"""`mlxreflect grade`: of a file's rows, and of a folder that an evaluation made."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.evaluations import samples_of
from support.rows import write_rows

from mlxreflect.config.schema import EvalSpec
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Sample, make_problem, to_row
from mlxreflect.evaluation.compare import compare
from mlxreflect.evaluation.evaluate import grade_file, rescore
from mlxreflect.tasks import TASKS, get_task


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
    out = list(grade_file(task, write_rows(tmp_path / "r.jsonl", rows)))
    assert out == [
        {"id": "a", "correct": True, "format_ok": True, "parsed": "0", "reason": ""},
        {**out[0], "id": 2, "correct": False, "parsed": "1", "reason": "expected 0, got 1"},
        {**out[2], "id": "c", "correct": True, "format_ok": False, "parsed": "1234"},
        {**out[0], "id": "d", "parsed": "2.5"},
        {"id": "e", "correct": False, "format_ok": False, "parsed": None,
         "reason": "no number found"},
    ]  # fmt: skip
    assert all(list(row) == ["id", "correct", "format_ok", "parsed", "reason"] for row in out)


def test_the_other_answer_types_and_countdown(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "gold": "Paris", "answer_type": "text", "response": answer("paris.")},
        {"id": 2, "gold": "B", "answer_type": "choice", "response": answer("(B)")},
        {"id": 3, "gold": 1, "answer_type": "choice", "choices": ["Rome", "Paris"],
         "response": answer("Paris")},
        {"id": 4, "gold": "A", "answer_type": "choice", "response": answer("B")},
    ]  # fmt: skip
    out = list(grade_file("jsonl", write_rows(tmp_path / "r.jsonl", rows)))
    assert [row["correct"] for row in out] == [True, True, True, False]
    assert [row["parsed"] for row in out] == ["paris.", "B", "B", "B"]
    game = {"id": 1, "numbers": [3, 4, 5], "target": 35}
    rows = [{**game, "response": answer(text)} for text in ("(3 + 4) * 5", "3 + 4 * 5")]
    out = list(grade_file("countdown", write_rows(tmp_path / "c.jsonl", rows)))
    assert [row["correct"] for row in out] == [True, False]


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
    rows = grade_file(task, write_rows(tmp_path / "bad.jsonl", [first, row]))
    next(rows)
    with pytest.raises(UserError) as caught:
        next(rows)
    assert "bad.jsonl, line 2" in caught.value.message and said in caught.value.message
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


def test_unknown_task_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the tasks are") as caught:
        list(grade_file("gsm8", write_rows(tmp_path / "r.jsonl", [])))
    assert "gsm8k" in caught.value.hint
    with pytest.raises(UserError, match="no such file"):
        list(grade_file("gsm8k", tmp_path / "none.jsonl"))
    assert {"countdown", "arithmetic", "last_letter", "gsm8k", "svamp", "aime", "math500", "logiqa",
            "math", "bigbench", "jsonl"} == set(TASKS)  # fmt: skip
    assert all(get_task(name).name == name for name in TASKS)


# ---- a folder, under other rules -----------------------------------------------------------------

TEXTS = [
    "<think>9 * 2</think><answer>18</answer>",
    "The answer is 18.",
    "so\n#### 18",
    "I do not know",
]


def write_arm(folder: Path, texts: list[str], task: dict[str, Any] | None = None) -> Path:
    """An evaluation's folder, with verdicts that another grader gave."""
    folder.mkdir()
    spec = EvalSpec.model_validate({"task": {"name": "gsm8k", **(task or {})}, "limit": 4})
    setup = {"prompt_hash": "0123", "decoding": {"temperature": 0.0}, "spec": spec.model_dump(),
             "model": "m", "adapter": ""}  # fmt: skip
    name = spec.task.name
    fields = {"answer_type": spec.task.answer_type} if name == "jsonl" else {}
    problems = [
        make_problem(name, {"question": f"{i}?", **fields}, "18") for i in range(len(texts))
    ]
    samples = [
        Sample(name, p.id, 0, text, [1, 2], "stop", None, False, False)
        for p, text in zip(problems, texts, strict=True)
    ]
    (folder / "setup.json").write_text(json.dumps(setup))
    append_rows(folder / "problems.jsonl", map(to_row, problems))
    append_rows(folder / "samples.jsonl", map(to_row, samples))
    return folder


@pytest.mark.parametrize(
    ("rules", "right", "kept", "unparsed"),
    [
        ("", [1, 1, 1, 0], 1, 1),
        ("strict", [1, 0, 0, 0], 1, 1),
        ("lm-eval-strict", [0, 0, 1, 0], 1, 3),
        ("lm-eval-flexible", [1, 1, 1, 0], 1, 1),
    ],
)
def test_the_verdicts_of_each_set_of_rules(
    tmp_path: Path, rules: str, right: list[int], kept: int, unparsed: int
) -> None:
    arm = write_arm(tmp_path / "arm", TEXTS)
    before = {path.name: path.read_bytes() for path in arm.iterdir()}
    found = rescore(arm, rules)
    out = Path(found["out"])
    assert out == arm / "graded" / (rules or "flexible")
    assert {p.name: p.read_bytes() for p in arm.iterdir() if p.is_file()} == before
    assert [row["correct"] for row in samples_of(out)] == [bool(r) for r in right]
    results = json.loads((out / "results.json").read_text())
    assert (results["n"], results["accuracy"]) == (4, sum(right) / 4)
    assert (results["format_rate"], results["parse_failures"]) == (kept / 4, unparsed)
    assert results["rules"] == (rules or "flexible")
    assert found["changed"] == sum(right)
    assert (out / "problems.jsonl").read_bytes() == (arm / "problems.jsonl").read_bytes()
    texts = [(row["text"], row["token_ids"]) for row in samples_of(out)]
    assert texts == [(text, [1, 2]) for text in TEXTS]
    again = {path.name: path.read_bytes() for path in out.iterdir()}
    rescore(arm, rules)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == again


def test_graded_folders_are_compared_and_never_mixed(tmp_path: Path) -> None:
    a, b = write_arm(tmp_path / "a", TEXTS), write_arm(tmp_path / "b", TEXTS[:1] * 4)
    flexible = [Path(rescore(arm)["out"]) for arm in (a, b)]
    strict = [Path(rescore(arm, "strict", tmp_path / f"s-{arm.name}")["out"]) for arm in (a, b)]
    assert compare(*flexible)["difference"] == pytest.approx(0.25)
    assert compare(*strict)["difference"] == pytest.approx(0.75)
    with pytest.raises(UserError, match=r"spec\.rules differs"):
        compare(flexible[0], strict[1])
    named = Path(rescore(a, "flexible", tmp_path / "named")["out"])  # the headline's own name
    assert compare(flexible[0], named)["difference"] == 0


def test_token_f1_is_reported(tmp_path: Path) -> None:
    texts = ["<answer>18</answer>", "<answer>18 eggs</answer>", "<answer>x</answer>", "18"]
    task = {"name": "jsonl", "answer_type": "f1", "source": "mine.jsonl"}
    arm = write_arm(tmp_path / "arm", texts, task)
    found = rescore(arm)
    assert found["accuracy"] == 0.25
    assert found["f1"] == pytest.approx((1 + 2 / 3) / 4)
    assert [row["score"] for row in samples_of(Path(found["out"]))][::3] == [1.0, 0.0]
    data = (arm / "samples.jsonl").read_bytes()
    (arm / "samples.jsonl").write_bytes(data[:-20])  # a torn last line is left out
    assert rescore(arm, out=tmp_path / "torn")["n"] == 3


def fault(*arguments: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        rescore(*arguments)
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_mistakes_are_two_lines(tmp_path: Path) -> None:
    arm = write_arm(tmp_path / "arm", TEXTS)
    assert "no rules 'stric'" in fault(arm, "stric").message
    assert "no such folder" in fault(tmp_path / "none").message
    assert "is the evaluation itself" in fault(arm, "", arm).message
    other = Path(rescore(arm, "strict", tmp_path / "out")["out"])
    assert "spec.rules" in fault(arm, "", other).message  # that folder holds other verdicts
    (tmp_path / "file").write_text("")
    assert "--out" in fault(arm, "", tmp_path / "file" / "x").hint
    lines = (arm / "problems.jsonl").read_text().splitlines(keepends=True)
    (arm / "problems.jsonl").write_text("".join(lines[1:]))
    assert "is not in problems.jsonl" in fault(arm).message
    (arm / "problems.jsonl").write_text("".join(lines))
    (arm / "samples.jsonl").write_text('{"task": "gsm8k"}\n')
    assert "row 1: not a sample" in fault(arm).message
    (arm / "samples.jsonl").write_text("")
    assert "no samples in it" in fault(arm).message
    (arm / "setup.json").write_text("{")
    assert "not JSON" in fault(arm).message
    for name in ("samples.jsonl", "problems.jsonl", "setup.json"):
        (arm / name).unlink()
        assert f"no {name} in it" in fault(arm).message
    choice = write_arm(tmp_path / "choice", TEXTS, {"name": "jsonl", "answer_type": "choice"})
    assert "has: flexible, strict" in fault(choice, "lm-eval-strict").message
