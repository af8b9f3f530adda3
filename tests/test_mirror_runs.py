"""Runs and trainings killed anywhere go on from their mirror elsewhere, to the same bytes."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.kill_driver import DRIVER
from support.run_outputs import outputs_in, run_process
from support.shell import Shell, sets
from support.whole_runs import arguments, assert_same, command, contents

from mlxreflect.core.ui import Ui
from mlxreflect.runs.mirror import bring_back

pytestmark = pytest.mark.slow
SHORT = {
    "task.limit": 32, "r3.wave": 4, "r3.epochs": 1, "r3.verifications": 2, "r3.bucket_every": 8,
    "train.batch": 4, "eval.limit": 20, "policy.batch": 2, "eval.dev_every": 2,
    "eval.dev_limit": 10, "eval.trained": "best",
}  # fmt: skip
S3_MISSING = next((name for name in ("s3fs", "moto", "flask", "flask_cors") if not find_spec(name)),
                  "")  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_process("quickstart", SHORT, run_dir)
    found = contents(run_dir)
    assert found["summary"]["waves"] > 8 and found["summary"]["dev"]["best"]
    return found


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if S3_MISSING:
        pytest.skip(f"{S3_MISSING} is missing: pip install s3fs 'moto[s3]' flask flask-cors")
    from s3fs import S3FileSystem
    from support.s3_server import s3_server

    S3FileSystem.clear_instance_cache()  # of the server of another test
    with s3_server() as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(params=["a folder", "S3"])
def mirrors(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "S3":
        return f"s3://{request.getfixturevalue('s3').bucket}/runs/mine"
    (tmp_path / "mirrors").mkdir()
    return str(tmp_path / "mirrors")


def resume(address: str, run_dir: Path) -> list[str]:
    return command("resume", address, "--run-dir", run_dir, "--json")


def finished(call: list[str]) -> str:
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def commits(run_dir: Path) -> int:
    """The number of the newest commit; -1 where there is none."""
    found = run_dir.glob("checkpoints/wave-?????/commit.json")
    return max((int(path.parent.name[-5:]) for path in found), default=-1)


def killed_after(call: list[str], run_dir: Path, more: int, delay: float, cache: Path) -> None:
    """Runs a command, and kills it some time after so many more commits."""
    env = {**os.environ, "MLXREFLECT_CACHE": str(cache)}
    process = subprocess.Popen(
        call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env, text=True
    )
    begun = -1
    while process.poll() is None and (begun < 0 or commits(run_dir) < begun + more):
        begun = commits(run_dir) if begun < 0 else begun
        time.sleep(0.02)
    time.sleep(delay)
    process.kill()
    said = process.communicate()[1]
    assert process.returncode == -9, said
    assert "s3sam" not in said


def test_killed_at_random_moments(mirrors: str, tmp_path: Path, uninterrupted: Any) -> None:
    """Every time only the mirror is left, and the next machine has an empty disk and cache."""
    rng = random.Random(11)
    call, run_dir = arguments(tmp_path / "0" / "run", {**SHORT, "mirror": mirrors}), tmp_path
    call, reached = command(*call), list[int]()
    for attempt in range(4):
        run_dir = tmp_path / f"{attempt}" / "run"
        more, delay = rng.randint(1, 2), rng.random() * rng.choice((0.2, 2))
        killed_after(call, run_dir, more, delay, tmp_path / f"cache-{attempt}")
        reached.append(commits(run_dir))
        call = resume(f"{mirrors}/run", tmp_path / f"{attempt + 1}" / "run")
    assert sorted(reached) == reached and reached[-1] > 3  # it went on, and not from its beginning
    finished(call)
    assert_same(tmp_path / "4" / "run", uninterrupted)
    # The mirror has all of it, and nothing of a secret.
    bring_back(f"{mirrors}/run", tmp_path / "end" / "run", Ui(quiet=True))
    assert contents(tmp_path / "end" / "run") == contents(tmp_path / "4" / "run")
    for path in (tmp_path / "end" / "run").rglob("*.*"):
        assert path.is_dir() or b"s3sam" not in path.read_bytes()


@pytest.mark.parametrize(
    ("point", "nth"),
    [("appended half a journal", 9), ("wrote half a commit", 5), ("after a commit's rename", 9),
     ("before the best is kept", 2)],
)  # fmt: skip
def test_killed_at_a_point(point: str, nth: int, tmp_path: Path, uninterrupted: Any) -> None:
    (tmp_path / "mirrors").mkdir()
    settings = {**SHORT, "mirror": str(tmp_path / "mirrors")}
    run_process("quickstart", settings, tmp_path / "run", point, nth)
    finished(resume(str(tmp_path / "mirrors" / "run"), tmp_path / "back"))
    assert_same(tmp_path / "back", uninterrupted)


def test_s3_that_is_out_of_order_for_a_while(s3: Any, tmp_path: Path, uninterrupted: Any) -> None:
    """The run ends as without a mirror, with one warning; at its end the mirror has everything."""
    run_dir, address = tmp_path / "run", f"s3://{s3.bucket}/run"
    call = command(*arguments(run_dir, {**SHORT, "mirror": f"s3://{s3.bucket}"}))
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and commits(run_dir) < 2:
        time.sleep(0.02)
    s3.fault = "SlowDown"
    while process.poll() is None and commits(run_dir) < 6:  # it goes on
        time.sleep(0.02)
    assert process.poll() is None
    s3.fault = ""
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert said.count("goes on without its mirror") <= 1 and "lacks" not in said
    assert_same(run_dir, uninterrupted)
    bring_back(address, tmp_path / "back", Ui(quiet=True))
    assert_same(tmp_path / "back", uninterrupted)
    listed = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix="run/")["Contents"]
    assert sum("manifest" in one["Key"] for one in listed) == 2


def test_buckets_and_credentials_that_are_none(
    s3: Any, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("run", "quickstart", *shell.small, "--run-dir", "RUN", "--set")
    error, hint = shell.mistake(*run, "mirror=s3://no-such-bucket/runs")
    assert error.startswith("s3://no-such-bucket/runs/RUN: FileNotFoundError: ")
    assert s3.client().list_buckets()["Buckets"][0]["Name"] == s3.bucket
    assert len(s3.client().list_buckets()["Buckets"]) == 1  # none is made of a slip of the pen
    s3.fault = "AccessDenied"
    error, hint = shell.mistake(*run, f"mirror=s3://{s3.bucket}/runs")
    assert "PermissionError" in error and hint.endswith("or do without: --set mirror=")
    assert "s3sam" not in error + hint and "AKIA" not in error + hint


def test_a_training_killed_goes_on_from_its_mirror(process: Shell) -> None:
    rows = "".join(f'{{"prompt": "{i} + 1?", "completion": "{i + 1}"}}\n' for i in range(16))
    (process.folder / "mine.jsonl").write_text(rows)
    (process.folder / "mirrors").mkdir()
    settings = sets("data.held_out=4", "train.batch=2", "train.save_every=1", "train.epochs=3")
    train = ("train", "sft", "--data", "mine.jsonl", "--model", str(process.model), *settings)
    process.works(*train, "--out", "whole")
    driver = [sys.executable, DRIVER, "took a training step", "8", *train, "--out", "killed"]
    env = {**process.env, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([*driver, *sets("mirror=mirrors")], cwd=process.folder, env=env)
    assert done.returncode == -9
    shutil.rmtree(process.folder / "killed")
    process.works("resume", "mirrors/killed")
    found, wanted = (outputs_in(process.folder / name) for name in ("runs/killed", "whole"))
    assert {n: d for n, d in wanted.items() if n in found and "checkpoints" not in n} == {
        n: d for n, d in found.items() if "checkpoints" not in n
    }  # fmt: skip
    assert "adapter/adapters.safetensors" in found and "metrics.jsonl" in found
