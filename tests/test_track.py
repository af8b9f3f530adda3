"""Trackers get a run's curves once, whatever stops it, and are never in its way."""

import json
import os
import sqlite3
import struct
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.marks import slow_but
from support.run_outputs import run_process
from support.shell import Shell, sets
from support.whole_runs import finish

from mlxreflect.runs import track
from mlxreflect.runs.track import MODULES, Journal, Row, plain_values, tracked

Points = list[tuple[str, int, float]]  # name, step, value
HERE = [name for name, modules in MODULES.items() if all(map(find_spec, modules))]
READERS = {"tensorboard": "tensorboard.backend"}  # beside what writes


def read_tensorboard(place: Path) -> tuple[Points, dict[str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    points = [(tag, one.step, one.value) for tag in found.Tags()["scalars"]
              for one in found.Scalars(tag)]  # fmt: skip
    return split(points)


def split(points: Points) -> tuple[Points, dict[str, float]]:
    """Returns the curves apart from the verdict, of which no name is there twice."""
    verdict = [(name, value) for name, _, value in points if name.startswith("summary/")]
    assert len(dict(verdict)) == len(verdict)
    return [one for one in points if not one[0].startswith("summary/")], dict(verdict)


def read_wandb(place: Path) -> tuple[Points, dict[str, float]]:
    """Records of the .wandb file: LevelDB's log, after a head of 7 bytes, in protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = place.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole = file.read_bytes(), 7, b""
    points: Points = []
    verdict = {}
    while at + 7 <= len(data):
        if (room := -at % 32768) < 7:  # of a block, which a record's head is never cut by
            at += room
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (2, 3):  # its first, or a middle part
            continue
        record, whole = Record.FromString(whole), b""
        names = {(item.key or ".".join(item.nested_key)): json.loads(item.value_json)
                 for item in record.history.item}  # fmt: skip
        points += [(name, names["_step"], v) for name, v in names.items() if "/" in name]
        verdict |= {(item.key or ".".join(item.nested_key)): json.loads(item.value_json)
                    for item in record.summary.update}  # fmt: skip
    return points, {name: v for name, v in verdict.items() if name.startswith("summary/")}


def read_trackio(place: Path) -> tuple[Points, dict[str, float]]:
    with sqlite3.connect(place / "trackio" / "mlxreflect.db") as store:
        rows = store.execute("SELECT step, metrics FROM metrics").fetchall()
    return split([(k, step, v) for step, text in rows for k, v in json.loads(text).items()])


def read_mlflow(place: Path) -> tuple[Points, dict[str, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    at = client.get_experiment_by_name("mlxreflect").experiment_id
    (run,) = client.search_runs([at])
    assert run.info.status == "FINISHED" and run.data.params["strategy"] == "r3"
    return split([(k, one.step, one.value) for k in run.data.metrics
                  for one in client.get_metric_history(run.info.run_id, k)])  # fmt: skip


READ: dict[str, Callable[[Path], tuple[Points, dict[str, float]]]] = {
    "tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio,
    "mlflow": read_mlflow,
}  # fmt: skip


def expected(run: Path, by_line: bool) -> Points:
    """Every number of metrics.jsonl. by_line: the step is the row's, not that of its kind."""
    points: Points = []
    steps = 0
    for line, text in enumerate((run / "metrics.jsonl").read_text().splitlines()):
        row = json.loads(text)
        steps += row["kind"] == "step"
        numbered = row.get("step") if row["kind"] == "held_out" else row.get("wave")
        step = line if by_line else steps if row["kind"] == "step" else numbered
        trees = [(f"{row['kind']}/{key}", value) for key, value in row.items()]
        while trees:
            name, value = trees.pop()
            if isinstance(value, dict):
                trees += [(f"{name}.{key}", one) for key, one in value.items()]
            elif isinstance(value, int | float):
                points.append((name, step, float(value)))
    return sorted(points)


SMALL = {"task.limit": 8, "r3.wave": 4, "r3.epochs": 1, "train.batch": 4, "eval.limit": 6,
         "eval.dev_every": 1, "eval.dev_limit": 4}  # fmt: skip


@pytest.fixture(scope="module")
def tracked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all trackers that are installed, killed after a commit, and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        for name in [name for name in os.environ if name.startswith(tuple(map(str.upper, READ)))]:
            patch.delenv(name)
        patch.setenv("MLXREFLECT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("mpl")))
        patch.setenv("HOME", str(home))
        patch.setenv("SECRET_KEY", "sesame")
        place = tmp_path_factory.mktemp("place")
        patch.chdir(place)
        settings = {**SMALL, "track": HERE}
        run_process("quickstart", settings, place / "run", "after a commit's rename", 4)
        assert not (place / "run" / "summary.json").exists()
        finish(place / "run")
        finish(place / "run")  # it is finished, and its trackers have everything
        assert [path.name for path in place.iterdir()] == ["run"]
        assert not [*home.iterdir()]
    return place / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_a_run_that_was_killed_is_tracked_once(name: str, tracked_run: Path) -> None:
    if name not in HERE or not find_spec(READERS.get(name, "json")):
        pytest.skip(f"the extra {name} is not installed, or its reader")
    points, verdict = READ[name](tracked_run / "track")
    by_line = name in ("wandb", "trackio")
    wanted = expected(tracked_run, by_line)
    assert [one[:2] for one in sorted(points)] == [one[:2] for one in wanted]
    near = pytest.approx([one[2] for one in wanted], rel=1e-6)  # TensorBoard's are float32
    assert [one[2] for one in sorted(points)] == near
    summary = json.loads((tracked_run / "summary.json").read_text())
    for key in ("difference", "ci_low", "ci_high", "p_exact"):
        value = summary["comparison"][key]
        assert verdict[f"summary/comparison.{key}"] == pytest.approx(value, rel=1e-6)
    assert verdict["summary/trained.accuracy"] == pytest.approx(summary["trained"]["accuracy"])
    written = b"".join(f.read_bytes() for f in (tracked_run / "track").rglob("*") if f.is_file())
    assert b"sesame" not in written


@pytest.mark.slow
def test_a_training_is_tracked(shell: Shell) -> None:
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    pytest.importorskip("tensorboard", reason="its reader is not installed")
    rows = (f'{{"prompt": "{i} + 1?", "completion": "{i + 1}"}}\n' for i in range(8))
    (shell.folder / "mine.jsonl").write_text("".join(rows))
    shell.works("train", "sft", "--data", "mine.jsonl", "--out", "out", "--model", shell.model,
                *sets("track=tensorboard", "data.held_out=2", "train.batch=2"))  # fmt: skip
    points, verdict = read_tensorboard(shell.folder / "out" / "track")
    wanted = expected(shell.folder / "out", by_line=False)
    assert [one[:2] for one in sorted(points)] == [one[:2] for one in wanted]
    assert ("held_out/loss", 0) in [one[:2] for one in wanted]
    summary = json.loads((shell.folder / "out" / "summary.json").read_text())
    after = summary["held_out_after"]["loss"]
    assert verdict["summary/held_out_after.loss"] == pytest.approx(after, rel=1e-6)


# ---- never in a run's way ------------------------------------------------------------------------

FAULTS = {
    "fails at the start": ("raise RuntimeError('no disk')", "code 1: RuntimeError: no disk"),
    "fails later": (
        "class SummaryWriter:\n  def __init__(self, *a, **k): pass\n"
        "  def add_text(self, *a): pass\n  def add_scalar(self, *a): 1 / 0",
        "code 1: ZeroDivisionError: division by zero",
    ),
    "hangs": ("import time\ntime.sleep(1000)", "it did not finish in time"),
    "is gone": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "it ended with code -9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", slow_but(FAULTS, "is gone"))
def test_a_tracker_that(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one warning, and the run goes on."""
    code, why = FAULTS[fault]
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tensorboardX.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.setattr(track, "PATIENCE_S", 0.5 if fault == "hangs" else 60.0)
    file, said = tmp_path / "metrics.jsonl", list[str]()
    with tracked(["tensorboard"], tmp_path, "x", {}, said.append) as (follower,):
        for n in range(3):
            file.write_text('{"kind": "wave", "wave": 0, "seconds": 1}\n' * n)
            follower.send(file.stat().st_size)
            if n == 1 and fault != "hangs":
                assert follower.process
                follower.process.wait()
    (line,) = said
    assert line.startswith("warning: the run goes on without its tracker tensorboard: ")
    assert why in line
    assert follower.process and follower.process.returncode is not None


@pytest.mark.slow
def test_wandb_online_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks nobody for a key."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    said = list[str]()
    with tracked(["wandb"], tmp_path, "x", {}, said.append) as (follower,):
        follower.send(0)
    (line,) = said
    assert "without its tracker wandb: it ended with code 1" in line and "wandb login" in line


def test_a_tracker_that_reads_nothing_fills_no_pipe(tmp_path: Path) -> None:
    said = list[str]()
    follower = track.Follower("tensorboard", tmp_path, track.Told("x", "x", {}), said.append)
    follower.process = track.subprocess.Popen(["sleep", "1000"], stdin=-1, bufsize=0,
                                              start_new_session=True)  # fmt: skip
    follower.log.parent.mkdir()
    follower.log.touch()
    assert follower.process.stdin
    os.set_blocking(follower.process.stdin.fileno(), False)
    began = time.monotonic()
    while not said and time.monotonic() - began < 60:
        follower.send(10**9)
    assert said == ["warning: the run goes on without its tracker tensorboard: it hangs"]


def test_one_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "wandb", ("no_such_module",))
    said = list[str]()
    with tracked(["wandb", "wandb"], tmp_path, "x", {}, said.append) as followers:
        for follower in followers:
            follower.send(0)
    assert said == ["warning: the run goes on without its tracker wandb: no_such_module is missing:"
                    " pip install 'mlxreflect[wandb]'"]  # fmt: skip


def test_rows_are_read_as_they_are_committed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first = '{"kind": "step", "loss": 0.5, "margin": null}\n{"kind": "held_out", "step": 7}\n'
    file.write_text(f'{first}{{"kind": "step", "loss": NaN, "a b": {{"c": true}}}}\n{{"kind": "st')
    journal = Journal(file)
    assert [*journal.rows_to(0)] == []
    assert [*journal.rows_to(len(first))] == [
        Row(0, 1, {"step/loss": 0.5}), Row(1, 7, {"held_out/step": 7.0}),
    ]  # fmt: skip
    (row,) = journal.rows_to(file.stat().st_size - len('{"kind": "st'))
    assert (row.line, row.step, row.figures.keys()) == (2, 2, {"step/loss", "step/a_b.c"})


def test_only_plain_values_of_a_recipe_are_told() -> None:
    told: dict[str, Any] = {
        "train.lr": 1e-4, "task.numbers": [3, 4], "allow_untrained": False,
        "policy.model": "org/model-4bit", "task.source": "data/mine.jsonl",
    }  # fmt: skip
    left_out = {
        "critic.base_url": "http://h/key", "critic.key_env": "MY_KEY", "critic.profile": "jane",
        "publish.to": "jane/sums", "mirror": "s3://jane/runs",
        "critic.judge.base_url": "http://h", "prompt.templates.attempt": "Say {x}, please!\n",
        "judge.rubric": "x " * 99, "policy.adapter": "", "a": None, "b": {}, "c": ["a\nb"],
    }  # fmt: skip
    assert plain_values({**told, **left_out, "prompt.file": "/Users/jane/mine.toml"}) == {
        **told, "task.numbers": "3 4", "prompt.file": "mine.toml",
    }  # fmt: skip
