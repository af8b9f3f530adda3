"""A run killed with SIGKILL and resumed ends with the same bytes as one never stopped."""

import json
import random
import shutil
import subprocess
import time

import pytest
from support.kill_driver import STOPPING
from support.run_outputs import run_process
from support.whole_runs import arguments, assert_same, command, contents, finish

from mlxreflect.runs.folder import open_folder

SHORT = {
    "task.limit": 12, "r3.wave": 4, "r3.epochs": 1, "r3.verifications": 2, "r3.sft_mode": 3,
    "r3.bucket_every": 8, "train.batch": 4, "train.sft.scale_failed": 0.01,
    "train.lora.dropout": 0.1, "eval.limit": 20, "policy.batch": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_process("quickstart", SHORT, run_dir)
    found = contents(run_dir)
    assert found["summary"]["examples"]["preference"] > 0
    assert b'"tier": "advanced"' in found["episodes.jsonl"]  # the bucket list was visited
    return found


# The second call of a point, or a later one, falls into the middle of the three waves.
NTH = {"appended half a journal": 3, "before a commit's rename": 6, "after a commit's rename": 6,
       "wrote half a commit": 3, "took a training step": 3, "critiqued": 2,
       "verified": 2}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        "evaluated half a chunk",
        "critiqued",
        "took a training step",
        "verified",
        "appended half a journal",
        "wrote half a commit",
        "before a commit's rename",
        "after a commit's rename",
        "wrote the adapter",
        "before the summary",
    ],
)
def test_killed_at_a_point(point, tmp_path, uninterrupted):
    run_dir = tmp_path / "run"
    run_process("quickstart", SHORT, run_dir, point, NTH.get(point, 1))
    finish(run_dir)
    assert_same(run_dir, uninterrupted)


@pytest.mark.slow
def test_own_pairs_and_patience_go_on_where_they_were(tmp_path):
    settings = {**SHORT, "r3.pairs": "both", "r3.attempts": 3, "r3.epochs": 2, "r3.patience": 3,
                "r3.bucket_every": 4}  # fmt: skip
    run_process("quickstart", settings, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    assert b'"tier": "advanced"' in expected["episodes.jsonl"]
    for point, nth in (("verified", 2), ("wrote half a commit", 5)):
        run_process("quickstart", settings, tmp_path / point, point, nth)
        finish(tmp_path / point)
        assert_same(tmp_path / point, expected)


@pytest.mark.slow
def test_probes_are_asked_once_a_wave_that_trained(tmp_path):
    """Also by a run that was killed in a commit."""
    settings = {**SHORT, "probes.prompts": ["What is 2 plus 2?", "Who are you?"]}
    run_process("quickstart", settings, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    rows = [json.loads(line) for line in expected["probes.jsonl"].splitlines()]
    trained = {row["wave"] for row in expected["metrics"] if row["kind"] == "step"}
    assert [row["wave"] for row in rows] == [w for w in (None, *sorted(trained)) for _ in range(2)]
    assert [row["prompt"] for row in rows[:2]] == settings["probes.prompts"]
    run_process("quickstart", settings, tmp_path / "run", "before a commit's rename", 3)
    finish(tmp_path / "run")
    assert_same(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.parametrize("point", STOPPING)
def test_a_gpu_that_is_stopped_says_how_to_go_on(point, tmp_path, uninterrupted):
    run_dir = tmp_path / "run"
    said = run_process("quickstart", SHORT, run_dir, point, 3, code=2)
    error, hint = said.splitlines()[-2:]
    assert error.startswith("error: the GPU's work was stopped ([METAL] Command buffer execution")
    assert "lower train.part_tokens" in hint
    assert hint.endswith(f"then: mlxreflect resume {run_dir}")
    assert "Traceback" not in said
    finish(run_dir)
    assert_same(run_dir, uninterrupted)
    # A smaller part is allowed on the way.
    open_folder(run_dir, ["train.part_tokens=1024"]).close()


@pytest.mark.slow
def test_quickstart_killed_at_random_moments(tmp_path):
    settings = {"task.limit": 60, "r3.wave": 20, "eval.limit": 60, "policy.batch": 16}
    whole = tmp_path / "whole"
    started = time.monotonic()
    run_process("quickstart", settings, whole)
    seconds = time.monotonic() - started
    rng = random.Random(7)
    run_dir, kills = tmp_path / "killed", 0
    call = command(*arguments(run_dir, settings))
    for _ in range(5):
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=1.5 + rng.random() * seconds / 2)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.wait()
        if (run_dir / "run.json").exists():
            call = command("resume", run_dir, "--json")
    assert kills >= 3
    finish(run_dir)
    assert_same(run_dir, contents(whole))


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    run_dir = tmp_path / "run"
    run_process("quickstart", SHORT, run_dir)
    before = contents(run_dir)
    assert before == uninterrupted  # the same recipe twice, byte for byte
    finish(run_dir)
    assert contents(run_dir) == before
    # What is lost is made again, the base evaluation on the base and not on what was learned.
    epoch = (run_dir / "checkpoints" / "epoch-1" / "adapters.safetensors").read_bytes()
    (run_dir / "summary.json").unlink()
    for folder in ("eval/base", "plots", "checkpoints/epoch-1"):
        shutil.rmtree(run_dir / folder)
    finish(run_dir)
    assert contents(run_dir) == before
    assert (run_dir / "checkpoints" / "epoch-1" / "adapters.safetensors").read_bytes() == epoch
    assert len(list((run_dir / "plots").glob("*.png"))) == 5
