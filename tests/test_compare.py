"""Comparing evaluations: real files in, the right figures out, and everything unlike refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Sample, to_row
from mlxreflect.evaluation.arms import load_arm
from mlxreflect.evaluation.comparability import hint_for
from mlxreflect.evaluation.compare import compare
from mlxreflect.report.view import render_comparison
from mlxreflect.stats import mcnemar_exact, newcombe_paired

DECODING = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 64, "seed": 0, "batch": 8}
RESULTS = {
    "schema": "results/1",
    "prompt_hash": "0123456789abcdef",
    "decoding": DECODING,
    "spec": {"task": {"name": "countdown", "limit": 0}, "limit": 20, "part": "heldout"},
    "model": "tiny",
}
PROMISED = {
    "n", "accuracy_a", "accuracy_b", "gains", "losses", "difference", "ci_low", "ci_high",
    "p_exact", "p_mid",
}  # fmt: skip


def row(problem: int, correct: bool, *, sample: int = 0, task: str = "countdown") -> dict[str, Any]:
    return to_row(
        Sample(task, f"{problem:016x}", sample, "text", [1, 2], "stop", "3", correct, True)
    )


def write(path: Path, rows: list[dict[str, Any]], results: dict[str, Any] | None = None) -> Path:
    """An evaluation folder; without results as a run that was killed leaves it."""
    path.mkdir(parents=True)
    append_rows(path / "samples.jsonl", rows)
    if results is not None:
        (path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return path


def evaluation(path: Path, right: str, results: dict[str, Any] | None = RESULTS) -> Path:
    return write(path, [row(i, c == "1") for i, c in enumerate(right)], results)


def changed(**over: Any) -> dict[str, Any]:
    return {**RESULTS, **over}


def test_two_evaluations(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "base", "1111000000")
    b = evaluation(tmp_path / "trained", "1110111100")
    result = compare(a, b)
    assert set(result) >= PROMISED
    assert (result["n"], result["gains"], result["losses"]) == (10, 4, 1)
    assert (result["accuracy_a"], result["accuracy_b"]) == (0.4, 0.7)
    assert result["difference"] == pytest.approx(0.3)
    assert result["p_exact"] == pytest.approx(2 * 6 / 32)  # (1 + 5) of 2^5 tables, both sides
    assert result["p_mid"] == pytest.approx(2 * (1 + 2.5) / 32)
    assert (result["ci_low"], result["ci_high"]) == newcombe_paired(3, 4, 1, 2)
    assert (result["p_perm"], result["verdict"]) == (None, "not significant")
    assert result["unchecked"] == []
    assert result["sentence"].startswith("trained answers 70.0% of 10 questions right, base 40.0%")
    assert json.loads(json.dumps(result)) == result


def test_questions_are_paired_whatever_their_order(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "110100")
    rows = [row(i, c == "1") for i, c in enumerate("101101")]
    b = write(tmp_path / "b", rows[::-1], RESULTS)
    assert (compare(a, b)["gains"], compare(a, b)["losses"]) == (2, 1)


def test_an_evaluation_against_itself(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "1100")
    result = compare(a, a)
    assert (result["p_exact"], result["p_mid"], result["difference"]) == (1.0, 1.0, 0.0)
    assert "not significant" in result["sentence"]


def test_bare_files_are_compared_and_say_what_was_not_checked(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "110", None) / "samples.jsonl"
    b = evaluation(tmp_path / "b", "011", changed(prompt_hash="other")) / "samples.jsonl"
    result = compare(a, b)
    assert result["unchecked"] == ["decoding", "spec", "prompt_hash"]
    assert (result["a"], result["b"]) == ("a", "b")
    renamed = a.rename(tmp_path / "before.jsonl")
    assert compare(renamed, b)["a"] == "before"


def test_what_one_side_does_not_tell_is_unchecked(tmp_path: Path) -> None:
    without = {k: v for k, v in RESULTS.items() if k != "spec"}
    a, b = evaluation(tmp_path / "a", "11", without), evaluation(tmp_path / "b", "11")
    assert compare(a, b)["unchecked"] == ["spec"]


def test_same_named_folders_are_told_apart(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "x" / "base", "1"), evaluation(tmp_path / "y" / "base", "0")
    assert (compare(a, b)["a"], compare(a, b)["b"]) == (str(a), str(b))


@pytest.mark.parametrize(
    ("over", "parts"),
    [
        ({"prompt_hash": "ffff"}, ["prompt_hash differs", "'0123456789abcdef'", "'ffff'"]),
        ({"decoding": {**DECODING, "temperature": 0.7}},
         ["decoding.temperature differs", "0.0", "0.7"]),
        ({"decoding": {**DECODING, "samples": 4}}, ["decoding.samples differs", "None", "4"]),
        ({"spec": {"limit": 50, "part": "heldout"}, "prompt_hash": "ffff"},
         ["spec.task.name differs", "(also: spec.task.limit, spec.limit, prompt_hash)"]),
    ],
)  # fmt: skip
def test_another_setup_is_refused(tmp_path: Path, over: dict[str, Any], parts: list[str]) -> None:
    a, b = evaluation(tmp_path / "a", "10"), evaluation(tmp_path / "b", "11", changed(**over))
    with pytest.raises(UserError) as caught:
        compare(a, b)
    for part in [*parts, str(a), str(b)]:
        assert part in caught.value.message


def test_another_model_or_adapter_is_what_one_compares(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10")
    b = evaluation(tmp_path / "b", "11", changed(model="big", adapter="abc"))
    assert compare(a, b)["gains"] == 1


def test_other_questions_are_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10110")
    b = write(tmp_path / "b", [row(i, True) for i in range(3, 10)], changed(prompt_hash="ffff"))
    with pytest.raises(UserError) as caught:
        compare(a, b)
    message = caught.value.message
    assert f"3 only in {a}" in message
    assert f"5 only in {b}" in message
    assert f"{0:016x}" in message
    assert "prompt_hash differs" in message


def test_the_same_ids_of_another_task_are_other_questions(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10", None)
    b = write(tmp_path / "b", [row(i, True, task="gsm8k") for i in range(2)])
    with pytest.raises(UserError, match=r"2 only in .* countdown 0"):
        compare(a, b)


def test_duplicates_are_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10", None)
    b = write(tmp_path / "b", [row(0, True), row(1, True), row(1, False)])
    with pytest.raises(UserError, match="0001 has sample 0 twice"):
        compare(a, b)


def test_empty_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10", None)
    empty = write(tmp_path / "empty", [])
    with pytest.raises(UserError, match="no samples in it"):
        compare(a, empty)
    with pytest.raises(UserError, match="no such file"):
        compare(a, tmp_path / "nowhere")
    (tmp_path / "run" / "eval" / "base").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        compare(a, tmp_path / "run")
    assert str(tmp_path / "run" / "eval" / "base") in caught.value.hint


@pytest.mark.parametrize(
    "bad",
    [
        {"problem_id": "x", "correct": 1},
        {"problem_id": 7, "correct": True},
        {"problem_id": "x"},
        {"problem_id": "x", "correct": True, "sample": "0"},
        {"problem_id": "x", "correct": True, "schema": "episode/1"},
    ],
)
def test_rows_that_are_no_samples_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    path = write(tmp_path / "bad", [row(0, True), bad])
    with pytest.raises(UserError, match=r"samples.jsonl, row 2: not a sample"):
        load_arm(path)


def test_broken_results_are_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10")
    for text in ('{"n": 2', "[1]"):
        (a / "results.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"results\.json: not"):
            compare(a, a)


def test_a_torn_last_line_is_not_a_sample(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10", None)
    b = evaluation(tmp_path / "b", "11", None)
    with (b / "samples.jsonl").open("a", encoding="utf-8") as out:
        out.write('{"schema": "sample/1", "pro')
    assert compare(a, b)["n"] == 2


def repeated(path: Path, counts: list[int]) -> Path:
    """Four samples a question, `counts` of them right."""
    rows = [row(i, j < k, sample=j) for i, k in enumerate(counts) for j in range(4)]
    return write(path, rows, RESULTS)


def test_several_samples_a_question(tmp_path: Path) -> None:
    a, b = repeated(tmp_path / "a", [0, 2, 4, 1]), repeated(tmp_path / "b", [2, 3, 4, 0])
    result = compare(a, b)
    assert (result["n"], result["gains"], result["losses"]) == (4, 2, 1)
    assert result["accuracy_a"] == pytest.approx(7 / 16)
    assert result["accuracy_b"] == pytest.approx(9 / 16)
    assert result["difference"] == pytest.approx(2 / 16)
    assert (result["p_exact"], result["p_mid"]) == (None, None)
    # Differences .5 .25 0 -.25: of the 8 sign patterns six reach |.5| or more in sum.
    assert result["p_perm"] == pytest.approx(6 / 8)
    error = 0.3227486 / 2  # standard deviation of the four differences over √4
    assert result["ci_low"] == pytest.approx(0.125 - 1.959964 * error, abs=1e-6)
    assert "sign-flip p = 0.75" in result["sentence"]


def test_an_unfinished_evaluation_of_several_samples_is_refused(tmp_path: Path) -> None:
    rows = [row(0, True, sample=j) for j in range(4)] + [row(1, True)]
    with pytest.raises(UserError, match="has 1 samples, others have 4"):
        load_arm(write(tmp_path / "a", rows))


def render(result: dict[str, Any]) -> str:
    console = Console(width=100, record=True, file=None, color_system=None)
    with console.capture() as capture:
        console.print(render_comparison(result))
    return capture.get()


def test_rendered_comparison(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "[red]base", "1111000000", None)
    b = evaluation(tmp_path / "trained", "1110111111", None)
    result = compare(a, b)
    text = render(result)
    for part in ("[red]base", "40.0% (16.8 to 68.7)", "6, 1", "+50.0 points", "Not checked"):
        assert part in text
    assert f"{mcnemar_exact(6, 1):.3g}" in text
    assert "sign-flip" not in text


def test_rendered_comparison_of_several_samples(tmp_path: Path) -> None:
    a, b = repeated(tmp_path / "a", [0, 2, 4, 1]), repeated(tmp_path / "b", [2, 3, 4, 0])
    text = render(compare(a, b))
    assert "sign-flip p" in text
    assert "mid-p" not in text


def test_the_hint_names_what_mends_it_at_once() -> None:
    for keys, given in (
        (["spec.chain.round", "spec.chain.feedback", "prompt_hash"], "--differ spec.chain;"),
        (["spec.prompt.style"], "--differ spec.prompt.style;"),
        (
            ["spec.limit", "decoding.limit", "spec.seed"],
            "--differ decoding.limit --differ spec.seed",
        ),
    ):
        assert given in hint_for(keys)
