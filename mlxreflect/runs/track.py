"""Trackers: what metrics.jsonl holds of a run, also in TensorBoard, W&B, trackio and MLflow.

A tracker is a process of its own, this very file, which reads the journal as far as it is
committed and ends with its standard input. So none is in a run's way: one that fails, hangs or is
not installed is one warning, and what it prints goes into RUN/track/NAME.log. It asks its tracker,
or is sure, what is there of the run already: a resumed run goes on without a point twice. Only
numbers of the journal and plain values of the recipe are handed on. Nothing leaves the machine
unless the tracker's own environment variables say so.
"""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = "mlxreflect"
PATIENCE_S = 60.0  # for all trackers together, when a run ends
# Keys of a recipe whose values may be somebody's secret or address; the last is publish.to.
PRIVATE = ("base_url", "key_env", "mirror", "profile", "region", "to")
PLAIN = re.compile(r"[\w.:/ -]{1,100}")
# The key of a row that numbers those of its kind; steps are counted.
NUMBERED = {"wave": "wave", "dev": "wave", "held_out": "step"}
# Objects of summary.json that say what a run or a training came to.
VERDICT = ("comparison", "base", "trained", "first", "last", "held_out_before", "held_out_after",
           "best")  # fmt: skip


class Row(NamedTuple):
    """A row of metrics.jsonl. line: its number in it. step: its number among those of its kind."""

    line: int
    step: int
    figures: dict[str, float]


class Told(NamedTuple):
    """Holds what a tracker gets to know. id: 16 hex digits. keys: plain values of the recipe."""

    id: str
    name: str
    keys: dict[str, Any]


class Tracker(NamedTuple):
    """log: takes a row. end: takes the verdict, {} of a run that is not finished."""

    log: Callable[[Row], None]
    end: Callable[[dict[str, float]], None]


# ---- one function a tracker ----------------------------------------------------------------------


def tensorboard(place: Path, told: Told) -> Tracker:
    """Event files, written anew from the first row on: nothing is there twice."""
    from tensorboardX import SummaryWriter

    folder = place / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    # purge_step: a TensorBoard that is open forgets the files that were there before.
    writer = SummaryWriter(str(folder), purge_step=0, flush_secs=5)
    writer.add_text("recipe", "\n".join(f"    {key} = {v}" for key, v in told.keys.items()))

    def log(row: Row) -> None:
        for name, value in row.figures.items():
            writer.add_scalar(name, value, row.step)

    def end(verdict: dict[str, float]) -> None:
        log(Row(0, 0, verdict))
        writer.close()

    return Tracker(log, end)


def wandb(place: Path, told: Told) -> Tracker:
    """A W&B run. Its one step is the line: W&B has none smaller than the last, and knows that."""
    import wandb

    if os.environ["WANDB_MODE"] == "offline":  # which knows nothing of the process before
        for old in place.glob(f"wandb/offline-run-*-{told.id}"):
            shutil.rmtree(old)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), id=told.id, name=told.name,
        resume="allow", config=told.keys,
        settings=wandb.Settings(  # figures alone: nothing of the machine, its code or its output
            console="off", disable_code=True, disable_git=True, silent=True, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        ),
    )  # fmt: skip
    for kind, number in NUMBERED.items():
        run.define_metric(f"{kind}/*", step_metric=f"{kind}/{number}")
    known = run.step

    def log(row: Row) -> None:
        if row.line >= known:
            run.log(row.figures, step=row.line)

    def end(verdict: dict[str, float]) -> None:
        run.summary.update(verdict)
        run.finish(0 if verdict else 1)

    return Tracker(log, end)


def trackio(place: Path, told: Told) -> Tracker:
    """A run of trackio. Steps are lines, of which its store knows the last; so is the verdict."""
    import trackio

    run = trackio.init(
        PROJECT, f"{told.name}-{told.id[:6]}", config=told.keys, resume="allow", embed=False,
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
    known = run._next_step  # also of a Space or a server; it has no public name
    line = 0

    def log(row: Row) -> None:
        nonlocal line
        line = row.line + 1
        if row.line >= known:
            run.log(row.figures, step=row.line)

    def end(verdict: dict[str, float]) -> None:
        if verdict:
            log(Row(line, 0, verdict))
        trackio.finish()

    return Tracker(log, end)


def mlflow(place: Path, told: Told) -> Tracker:
    """A run of MLflow, found again by its tag. What its store has of a metric is asked once."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.chdir(place)  # where a store of its own puts a folder mlruns
        os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
    client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(name)
    at = found.experiment_id if found else client.create_experiment(name)
    runs = client.search_runs([at], f"tags.mlxreflect = '{told.id}'")
    run = (
        runs[0] if runs else client.create_run(at, tags={"mlxreflect": told.id}, run_name=told.name)
    )
    id_ = run.info.run_id
    if runs:
        client.set_terminated(id_, "RUNNING")
    else:
        keys = [Param(key, str(value)) for key, value in told.keys.items()]
        for i in range(0, len(keys), 100):  # as many as it takes at once
            client.log_batch(id_, params=keys[i : i + 100])

    @cache
    def known(metric: str) -> set[int]:
        return {one.step for one in client.get_metric_history(id_, metric)} if runs else set()

    def log(row: Row) -> None:
        now = round(time.time() * 1000)
        fresh = {k: v for k, v in row.figures.items() if row.step not in known(k)}
        client.log_batch(id_, [Metric(k, v, now, row.step) for k, v in fresh.items()])

    def end(verdict: dict[str, float]) -> None:
        log(Row(0, 0, verdict))
        client.set_terminated(id_, "FINISHED" if verdict else "KILLED")

    return Tracker(log, end)


TRACKERS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": mlflow}
# Of each extra what has to be there.
MODULES = {"tensorboard": ("tensorboardX",), "wandb": ("wandb",), "trackio": ("trackio",),
           "mlflow": ("mlflow", "sqlalchemy", "alembic")}  # fmt: skip


# ---- the process of a tracker --------------------------------------------------------------------


def follow(name: str, folder: Path) -> None:
    """Hands rows to a tracker, up to each length of the journal that a line of stdin says."""
    place = folder / "track"
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until that of a run that was killed has ended
        tracker = TRACKERS[name](place, Told(*json.loads(sys.stdin.readline())))
        journal = Journal(folder / "metrics.jsonl")
        for line in sys.stdin:
            for row in journal.rows_to(int(line)):
                tracker.log(row)
        tracker.end(read_verdict(folder / "summary.json"))


class Journal:
    """Reads metrics.jsonl bit by bit. done: bytes. rows: how many there were of each kind."""

    def __init__(self, file: Path) -> None:
        self.file, self.done, self.rows = file, 0, Counter[str]()

    def rows_to(self, length: int) -> Iterator[Row]:
        """Yields the rows up to a length in bytes that were not yielded before."""
        if length <= self.done:
            return
        with self.file.open("rb") as journal:
            journal.seek(self.done)
            lines = journal.read(length - self.done).splitlines()
        self.done = length
        for row in map(json.loads, lines):
            line, kind = self.rows.total(), str(row.pop("kind"))
            self.rows[kind] += 1
            step = row.get(NUMBERED.get(kind), self.rows[kind])
            yield Row(line, step, numbers(row, kind))


def numbers(tree: Any, name: str) -> dict[str, float]:
    """Returns the numbers of a tree by their dotted names, below the first: "wave/critic.calls"."""
    if isinstance(tree, int | float):  # also true and false
        return {re.sub(r"[^\w./-]", "_", name): float(tree)}
    if not isinstance(tree, Mapping):
        return {}
    mark = "." if "/" in name else "/"
    parts = (numbers(value, f"{name}{mark}{key}") for key, value in tree.items())
    return {key: value for part in parts for key, value in part.items()}


def read_verdict(file: Path) -> dict[str, float]:
    """Returns the numbers of a summary; {} where there is none, or it waits for a judge."""
    summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if summary.get("unjudged"):
        return {}
    return numbers({key: summary[key] for key in VERDICT if key in summary}, "summary")


# ---- the run's side ------------------------------------------------------------------------------


class Follower:
    """The process of a tracker, as its run sees it. say: is told once, where it fails."""

    def __init__(self, name: str, folder: Path, told: Told, say: Callable[[str], None]) -> None:
        self.name, self.folder, self.told, self.say = name, folder.resolve(), told, say
        self.log = self.folder / "track" / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.failed = False

    def send(self, length: int) -> None:
        """Says how much of the journal is committed; the first time the tracker is started."""
        if self.failed:
            return
        try:
            if self.process is None:
                self.start()
            self.write(f"{length}\n")
        except OSError as error:
            self.fail(str(error))

    def start(self) -> None:
        for module in MODULES[self.name]:
            if importlib.util.find_spec(module) is None:
                raise OSError(f"{module} is missing: pip install 'mlxreflect[{self.name}]'")
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            # -P: a folder here that is called wandb is no module. A session of its own: Ctrl-C is
            # for the run, which then ends its trackers in order.
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__, self.name, str(self.folder)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, bufsize=0, start_new_session=True,
                env={**usual_environment(self.name, self.log.parent), **os.environ},
            )  # fmt: skip
        assert self.process.stdin
        os.set_blocking(self.process.stdin.fileno(), False)
        self.write(f"{json.dumps(self.told)}\n")

    def write(self, line: str) -> None:
        """Raises OSError where the tracker has ended, or has read nothing for very long."""
        assert self.process and self.process.stdin
        if (code := self.process.poll()) is not None:
            raise OSError(f"it ended with code {code}")
        if self.process.stdin.write(line.encode()) != len(line.encode()):
            raise OSError("it hangs")

    def fail(self, why: str) -> None:
        """Ends the tracker, and says so with the last line that it wrote."""
        self.failed = True
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        said = self.log.read_text(errors="replace") if self.process else ""
        *_, last = ["", *filter(None, map(str.strip, said.splitlines()))]
        more = f": {last:.200} (all of it: {self.log})" if last else ""
        self.say(f"warning: the run goes on without its tracker {self.name}: {why}{more}")

    def close(self, deadline: float) -> None:
        """Waits until the tracker has finished, no longer than to the deadline."""
        if self.failed or not self.process:
            return
        try:
            if code := self.process.wait(max(0.0, deadline - time.monotonic())):
                self.fail(f"it ended with code {code}")
        except subprocess.TimeoutExpired:
            self.fail("it did not finish in time")


def usual_environment(name: str, place: Path) -> dict[str, str]:
    """Returns variables that the user's own override: all is written below RUN/track, none sent."""
    usual = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if name == "wandb" and os.environ.get("WANDB_MODE", "offline") == "offline":
        homes = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
        usual |= {"WANDB_MODE": "offline", **dict.fromkeys(homes, str(place))}
    if name == "trackio" and not os.environ.keys() & {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"}:
        # It would ask the hub who its user is.
        usual |= {"TRACKIO_DIR": str(place / "trackio"), "HF_HUB_OFFLINE": "1"}
    return usual


def plain_values(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys whose values are numbers, switches or plain words; of a path its last part.

    Texts of prompts, addresses and what may name an account are left out.
    """
    found = dict[str, Any]()
    for key, value in keys.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(text, str) and text.startswith(("/", "~", ".")):
            text = Path(text).name
        plain = isinstance(text, int | float) or PLAIN.fullmatch(str(text))
        if plain and text is not None and key.rpartition(".")[2] not in PRIVATE:
            found[key] = text
    return found


@contextmanager
def tracked(
    names: Sequence[str], folder: Path, id_: str, keys: Mapping[str, Any],
    say: Callable[[str], None],
) -> Iterator[list[Follower]]:  # fmt: skip
    """Yields a run's trackers, which finish at the end. keys: dotted, of its recipe."""
    told = Told(sha256(id_.encode()).hexdigest()[:16], folder.resolve().name, plain_values(keys))
    followers = [Follower(name, folder, told, say) for name in dict.fromkeys(names)]
    try:
        yield followers
    finally:
        deadline = time.monotonic() + PATIENCE_S
        for one in followers:  # all of them begin to finish before one is waited for
            if one.process and one.process.stdin:
                one.process.stdin.close()
        for one in followers:
            one.close(deadline)


if __name__ == "__main__":
    follow(sys.argv[1], Path(sys.argv[2]))
