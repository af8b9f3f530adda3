"""Benchmarks: what they compare and how they count, not how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import stdev

import pytest

from mlxreflect.core.journal import dump_line

BENCH = Path(__file__).parent / "bench"


@pytest.mark.slow
def test_four_bit_weights_beside_the_peer() -> None:
    """Gradients equal the plain formulation's, and the peak of memory is a part of the peer's."""
    pytest.importorskip("mlx_lm_lora")
    flags = ["--models", "5M", "--bits", "4", "--pairs", "2", "--batch", "2", "--json"]
    call = [sys.executable, str(BENCH / "dpo_step.py"), *flags]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    print("\n".join(table))
    ours = [row for row in json.loads(last) if row["side"] == "mlxreflect"]
    assert len(ours) == 3
    assert all(row["gradient_difference"] < 1e-4 for row in ours), ours
    limits = {"prompt 60": 0.65, "prompt 450": 0.35, "450, 60 % kept": 0.35}
    for row in ours:
        assert row["memory"] < limits[row["case"].removeprefix("5M, ")], row


# ---- the table of the methods --------------------------------------------------------------------


def write_run(folder: Path, recipe: str, base: str, trained: str, tokens: int) -> Path:
    """A run directory, as far as the table reads it. base, trained: 1 a right answer, 0 a wrong."""
    for arm, answers in (("base", base), ("trained", trained)):
        rows = [{"problem_id": f"p{i}", "correct": a == "1"} for i, a in enumerate(answers)]
        (folder / "eval" / arm).mkdir(parents=True)
        (folder / "eval" / arm / "samples.jsonl").write_text("".join(map(dump_line, rows)))
    summary = {"recipe": recipe, "tokens_generated": tokens, "tokens_trained": 2 * tokens,
               "critic": {"calls": 7} if recipe == "r3" else {}}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def table(*runs: Path) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(BENCH / "methods.py"), *map(str, runs), "--json"]
    return subprocess.run(call, capture_output=True, text=True)


def test_methods_are_averaged_over_their_seeds(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a0", "r3", "1000", "1110", 100),
        write_run(tmp_path / "a1", "r3", "1000", "1100", 300),
        write_run(tmp_path / "b0", "traces", "1000", "0001", 50),
    ]
    done = table(*runs)
    assert done.returncode == 0, done.stderr
    r3, traces = json.loads(done.stdout.splitlines()[-1])
    # Problem by problem, trained minus base over the two seeds: 0, 1, 1/2, 0.
    assert (r3["base"], r3["trained"], r3["difference"]) == (0.25, 0.625, 0.375)
    spread = stdev([0, 1, 0.5, 0]) / 2  # standard error of four problems
    assert r3["ci_high"] - r3["ci_low"] == pytest.approx(2 * 1.959964 * spread)
    assert (r3["seeds_low"], r3["seeds_high"]) == (0.25, 0.5)
    assert (r3["policy_tokens"], r3["training_tokens"], r3["critic_calls"]) == (200, 400, 7)
    assert (traces["seeds"], traces["difference"], traces["critic_calls"]) == (1, 0, 0)
    assert "| r3 | 2 | 25.0% | 62.5% | +37.5 (" in done.stdout
    assert "r3 against traces: +37.5 (" in done.stdout


def test_methods_asked_other_problems_are_not_compared(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "r3", "1000", "1110", 1),
        write_run(tmp_path / "b", "rel", "100", "111", 1),
    ]
    done = table(*runs)
    assert done.returncode == 1 and "not evaluated on the same problems" in done.stderr


# ---- the simulation of many hosts ----------------------------------------------------------------


@pytest.mark.slow
def test_a_wave_over_many_hosts_is_foretold() -> None:
    """By stated figures: 256 wrong answers, two replies of 20 s each, four at a time on a host."""
    call = [sys.executable, str(BENCH / "scale.py"), "predict", "--hosts", "1", "2"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (line.split() for line in done.stdout.splitlines() if line.startswith("1 GbE"))
    seconds, critic = float(one[4]), float(one[7].rstrip("%")) / 100
    assert critic == pytest.approx(2 * 256 / 4 * 20 / seconds, abs=1e-3)
    assert float(two[5]) == pytest.approx(seconds / float(two[4]), abs=0.01)
    assert 1.9 < float(two[5]) < 2
    # A ring of two: each sends half of the 161.5 MB twice, over 0.117 GB/s.
    assert float(two[-2]) == pytest.approx(2 * (200e-6 + 161.5e6 / 2 / 0.117e9), abs=1e-3)
