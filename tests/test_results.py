"""Figures of samples, recounted by hand or by brute force."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlxreflect.core.journal import append_rows
from mlxreflect.evaluation.evaluate import summarise, warnings
from mlxreflect.stats import mean_interval


def row(problem: str, sample: int, parsed: str | None, correct: bool, **changes: object) -> dict:
    return {
        "schema": "sample/1", "task": "gsm8k", "problem_id": problem, "sample": sample,
        "text": "t", "token_ids": [1, 2], "finish_reason": "stop", "parsed": parsed,
        "correct": correct, "format_ok": True,
    } | changes  # fmt: skip


def figures(path: Path, rows: list[dict]) -> dict:
    path.unlink(missing_ok=True)
    append_rows(path, rows)
    return summarise(path)


def test_several_samples_by_hand(tmp_path: Path) -> None:
    answers = {
        "a": [("1", True), ("1", True), ("2", False), ("3", False)],  # majority right
        "b": [("5", False), ("5", False), ("6", True), (None, False)],  # majority wrong
        "c": [("7", False), ("8", True), ("8", True), ("7", False)],  # a tie: the first, wrong
        "d": [(None, False)] * 4,
    }
    found = figures(
        tmp_path / "s.jsonl",
        [row(p, j, *answer) for p, given in answers.items() for j, answer in enumerate(given)],
    )
    assert (found["n"], found["samples"]) == (4, 4)
    assert found["accuracy"] == 5 / 16
    assert found["pass_at"] == {
        "1": 5 / 16, "2": pytest.approx((5 / 6 + 1 / 2 + 5 / 6 + 0) / 4), "4": 3 / 4,
    }  # fmt: skip
    assert found["maj_at"] == {"4": 1 / 4}
    assert found["parse_failures"] == 5
    means = np.array([2 / 4, 1 / 4, 2 / 4, 0])
    half = 1.959963984540054 * means.std(ddof=1) / 2
    assert found["ci_low"] == pytest.approx(max(0, means.mean() - half))
    assert found["ci_high"] == pytest.approx(means.mean() + half)


@pytest.mark.parametrize("samples", [2, 3, 5, 6])
def test_pass_and_majority_by_brute_force(tmp_path: Path, samples: int) -> None:
    """pass@k as the mean over all subsets of k; maj@k by counting, ties to the first seen."""
    rng = random.Random(samples)
    right = {"4", "5"}  # several answers may be right
    given = [[rng.choice(["3", "4", "5", "6", None]) for _ in range(samples)] for _ in range(30)]
    rows = [row(str(q), j, a, a in right) for q, one in enumerate(given) for j, a in enumerate(one)]
    found = figures(tmp_path / "s.jsonl", rows)
    ks = {2: "12", 3: "123", 5: "1245", 6: "1246"}[samples]
    assert list(found["pass_at"]) == list(ks)
    for k, share in found["pass_at"].items():
        chances = [
            np.mean([bool(right & set(part)) for part in itertools.combinations(one, int(k))])
            for one in given
        ]
        assert share == pytest.approx(np.mean(chances))
    wins = 0
    for one in given:
        votes = Counter(a for a in one if a is not None)
        most = max(votes.values(), default=0)
        first = next((a for a in one if a is not None and votes[a] == most), None)
        wins += first in right
    assert found["maj_at"] == {str(samples): wins / 30}


def test_what_one_sample_a_question_does_not_have(tmp_path: Path) -> None:
    found = figures(tmp_path / "s.jsonl", [row(str(i), 0, "1", i < 3) for i in range(10)])
    assert not {"pass_at", "maj_at", "failed"} & set(found)
    assert found["ci_high"] == pytest.approx(0.6032, abs=1e-4)  # Wilson, 3 of 10


def test_calls_that_failed_and_tokens_that_are_not_known(tmp_path: Path) -> None:
    none = {"token_ids": [], "format_ok": False}
    rows = [
        row("a", 0, "1", True, **none, tokens=7),
        row("b", 0, None, False, **none, finish_reason="error"),
        row("c", 0, None, False, **none, finish_reason="length", tokens=9),
        row("d", 0, "1", False, **none),
    ]
    found = figures(tmp_path / "s.jsonl", rows)
    assert (found["failed"], found["parse_failures"], found["truncated"]) == (1, 1, 1)
    assert (found["accuracy"], found["tokens_mean"]) == (0.25, 8)
    assert figures(tmp_path / "s.jsonl", rows[3:])["tokens_mean"] is None


def test_a_warning_names_what_cut_the_answers_off(tmp_path: Path) -> None:
    decoding = {"decoding": {"max_new_tokens": 64}}
    rows = [row(str(i), 0, "1", True) for i in range(40)]
    for cut, said in ((2, False), (3, True)):  # 5.0 % and 7.5 %
        for i in range(cut):
            rows[i]["finish_reason"] = "length"
        told = warnings(figures(tmp_path / "s.jsonl", rows) | decoding)
        assert bool(told) == said
    assert "3 of 40" in told[0] and "max_new_tokens = 64" in told[0]


def test_a_mean_over_questions_stays_between_0_and_1() -> None:
    assert mean_interval([0.5]) == (0.0, 1.0)
    assert mean_interval([1.0, 1.0, 0.9])[1] == 1.0
    assert mean_interval([0.0, 0.0, 0.1])[0] == 0.0


def test_rows_of_local_models_have_no_empty_key(tmp_path: Path) -> None:
    from mlxreflect.core.records import Sample, flat_from_row
    from mlxreflect.evaluation.arms import sample_row

    path = tmp_path / "s.jsonl"
    append_rows(path, [row("a", 0, "1", True)])
    before = json.loads(path.read_text())
    assert sample_row(flat_from_row(Sample, before)) == before
    served = {**before, "tokens": 3}
    assert sample_row(flat_from_row(Sample, served)) == served
