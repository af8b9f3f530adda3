"""Whole commands on one, two and three processes: the same results, and what stops them.

Each process has a working folder, a temporary folder and, but for the kills, a cache of its own,
as on a machine of its own. MLXREFLECT_KILLS: how many kills; MLXREFLECT_KILL_SEED: of which.
"""

import json
import os
import random
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from support.critic_runs import arguments, solving, words
from support.fake_ollama import FakeOllama
from support.hosts import NEAR, Ranks, near_weights
from support.network import Network, available
from support.shell import last_two_lines, rows, sets
from support.trainings import OF, PAIRS, write

from mlxreflect.core.liveness import BEATS, DAY_S, sweep

pytestmark = pytest.mark.slow
TIMES = re.compile("seconds|peak_memory|tokens_per_second|^began$|^at$")
ACTOR = re.compile("policy:[0-9a-f]{8}")  # by the hash of its weights
NOT_BEGUN = r"host 10\.77\.0\.2 \(rank 1\) cannot be reached \(the work did not begin\)"
INTERRUPTED = "the network between host .* is interrupted: each waits for"
GUARD = 400.0  # seconds, against hanging only
KILLS = int(os.environ.get("MLXREFLECT_KILLS", "1"))
SEED = int(os.environ.get("MLXREFLECT_KILL_SEED", "0"))
IN = 'cd "$0" && exec "$@"'  # for sh: a folder, then a command
LONE = ("-u", "MLX_RANK", "-u", "MLX_HOSTFILE")
METHODS = {
    "quickstart": ["quickstart", *sets("task.limit=40", "r3.wave=20", "r3.epochs=2")],
    "reflectevo": ["reflectevo", *sets("profile=quick", "task.limit=60", "reflectevo.wave=30",
                   "reflectevo.reflections=2", "train.epochs=1")],
    "traces": ["traces", *sets("profile=quick", "task.limit=60", "traces.warm_up=30",
               "traces.problems=20", "traces.wave=10", "traces.samples=4")],
}  # fmt: skip


class Team:
    """Machines in a folder, one a rank: where each works, what it keeps, what it throws away."""

    def __init__(self, folder: Path, network: Network | None = None, shared_cache: bool = False):
        self.folder, self.network, self.shared_cache = folder, network, shared_cache
        folder.mkdir(exist_ok=True)

    def place(self, rank: int, name: str) -> Path:
        path = self.folder / f"host-{rank}" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def before(self, rank: int) -> list[str]:
        cache = self.place(0 if self.shared_cache else rank, "cache")
        inside = self.network.inside(rank) if self.network else ()
        names = [f"MLXREFLECT_HOSTS={','.join(self.network.ips)}"] if self.network else []
        given = *names, f"TMPDIR={self.place(rank, 'tmp')}", f"MLXREFLECT_CACHE={cache}"
        into = "sh", "-c", IN, str(self.place(rank, "work"))
        return [*inside, "env", *(LONE if self.lone else ()), *given, *into]

    def start(self, size: int, *command: str) -> Ranks:
        self.lone = size == 1
        ips = self.network.ips[:size] if self.network else ["127.0.0.1"] * size
        return Ranks(self.folder, ips, "-m", "mlxreflect", *command, before=self.before)

    def works(self, size: int, *command: str) -> str:
        """Does a command to its end; returns the output of rank 0.

        The others say nothing and leave nothing: no file, no process.
        """
        before = {path for rank in range(size) for path in self.place(rank, "tmp").iterdir()}
        ranks = self.start(size, *command)
        results = ranks.results(GUARD)
        assert [code for code, _, _ in results] == [0] * size, results
        assert [out + err for _, out, err in results[1:]] == [""] * (size - 1)
        for rank, process in enumerate(ranks.processes):
            assert not {*self.place(rank, "tmp").glob("mlxreflect-*")} - before
            assert not (BEATS / f"mlxreflect-{os.getuid()}-{process.pid}.beat").exists()
            assert rank == 0 or not list(self.place(rank, "work").iterdir())
        assert not running(self.folder)
        return results[0][1]

    @property
    def work(self) -> Path:
        return self.place(0, "work")


def running(folder: Path) -> list[str]:
    """Returns the commands of processes that name a folder, or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            told = (process / "cmdline").read_bytes().decode(errors="replace")
            at = (process / "cwd").readlink()
            if int(process.name) != os.getpid() and (str(folder) in told or folder in at.parents):
                found.append(told)
    return found


# ---- the same ------------------------------------------------------------------------------------


def near(one: Any, other: Any, at: str = "") -> None:
    """Two JSON values are the same, but for rounding and for what was measured."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            if not TIMES.search(key) and key not in ("adapter", "folder", "wire"):
                near(one[key], other[key], f"{at}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), at
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            near(a, b, f"{at}[{i}]")
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, abs=NEAR, rel=NEAR), at
    else:
        assert one == other, at


def same_runs(one: Path, other: Path, *, every: bool = True) -> None:
    """Two runs ended the same: problems, episodes, examples, answers, verdict; adapters nearly.

    every: as of `near_weights`.
    """
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    names = "episodes.jsonl", "examples.jsonl", "preference.jsonl", "sft.jsonl"
    journals = [name for name in names if (one / name).exists()]
    assert len(journals) > 2
    for name in journals:
        first, second = ((each / name).read_text(encoding="utf-8") for each in (one, other))
        assert ACTOR.sub("POLICY", first) == ACTOR.sub("POLICY", second), name
    samples = sorted(path.relative_to(one) for path in one.glob("eval/**/samples.jsonl"))
    assert len(samples) >= 2
    for path in (*samples, Path("comparison.json")):
        assert (one / path).read_bytes() == (other / path).read_bytes(), path
    near(rows(one / "metrics.jsonl"), rows(other / "metrics.jsonl"))
    near(*(json.loads((each / "summary.json").read_text()) for each in (one, other)))
    for path in sorted(one.glob("**/adapter*/adapters.safetensors")):
        near_weights(path, other / path.relative_to(one), every=every)


def run_method(team: Team, size: int, name: str) -> Path:
    held_out = sets("eval.limit=60", "train.lora.dropout=0.1")
    team.works(size, "run", *METHODS[name], *held_out, "--run-dir", "run", "--json")
    return team.work / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The runs of a single process, by method."""
    done: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in done:
            done[name] = run_method(Team(tmp_path_factory.mktemp("alone")), 1, name)
        return done[name]

    return find


@pytest.mark.parametrize(("size", "name"), [
    (2, "quickstart"), (3, "quickstart"), (2, "reflectevo"), (3, "traces"),
])  # fmt: skip
def test_a_run_ends_as_on_one_machine(size, name, alone, tmp_path):
    found = run_method(Team(tmp_path), size, name)
    same_runs(alone(name), found, every=name == "quickstart")


def test_an_evaluation_answers_as_on_one_machine(alone, tmp_path):
    adapter = str(alone("quickstart") / "adapter")
    for size in (1, 2, 3):
        team = Team(tmp_path / f"team-{size}")
        for heat in ("temperature=0", "temperature=0.8"):
            several = sets(heat, "limit=30", "max_new_tokens=40", "samples=2" if heat[-1] != "0"
                           else "samples=1")  # fmt: skip
            team.works(size, "eval", "countdown", "--model", "tiny", "--adapter", adapter,
                       "--base", *several, "--out", heat, "--json")  # fmt: skip
    one, *others = [tmp_path / f"team-{size}" / "host-0" / "work" for size in (1, 2, 3)]
    samples = sorted(path.relative_to(one) for path in one.glob("**/samples.jsonl"))
    assert len(samples) == 4
    for other in others:
        for path in samples:
            assert (one / path).read_bytes() == (other / path).read_bytes(), path


@pytest.mark.parametrize("objective", ["dpo", "sft", "grpo"])
def test_a_training_steps_as_on_one_machine(objective, tmp_path):
    data = write(tmp_path / "data.jsonl", OF.get(objective, PAIRS))
    found = []
    for size in (1, 3 if objective == "dpo" else 2):
        team = Team(tmp_path / f"team-{size}")
        held_out = [] if objective == "grpo" else sets("data.held_out=0.2")
        small = sets("train.epochs=9", "train.batch=4", "train.lora.dropout=0.1")
        team.works(size, "train", objective, "--data", str(data), "--out", "out",
                   *small, *held_out)  # fmt: skip
        found.append(team.work / "out")
    one, other = found
    assert len(rows(one / "metrics.jsonl")) > 50
    near(rows(one / "metrics.jsonl"), rows(other / "metrics.jsonl"))
    near_weights(one / "adapter/adapters.safetensors", other / "adapter/adapters.safetensors")


@pytest.fixture
def network() -> Iterator[Network]:
    if not available():
        pytest.skip("network namespaces and TUN devices need root on Linux")
    with Network(2) as made:
        yield made


def test_a_slow_lossy_network_changes_nothing(network, alone, tmp_path):
    team = Team(tmp_path, network)
    same_runs(alone("quickstart"), run_method(team, 2, "quickstart"))


# ---- what stops it -------------------------------------------------------------------------------


def test_a_host_that_never_comes_is_not_waited_for(tmp_path):
    """MLX waits for it where no thread of Python goes on."""
    script = tmp_path / "script.py"
    script.write_text(
        "from mlxreflect.core import hosts, liveness\n"
        "liveness.START_S = 3.0\n"
        "with hosts.joined():\n    pass\n"
    )
    ranks = Ranks(tmp_path, ["127.0.0.1"] * 2, str(script))
    ranks.processes[0].send_signal(signal.SIGSTOP)
    code, _, err = stopped(ranks, [0])[1]
    assert code == 2
    assert "host 127.0.0.1 (rank 0) " in err and "(the work did not begin)" in err


def test_what_killed_processes_left_is_swept(tmp_path):
    own = f"mlxreflect-{os.getuid()}-"
    for name, age in (("7", 9), ("8", 2 * DAY_S)):
        for suffix in (".beat", ".tmp", "-ab_c"):
            left = tmp_path / f"{own}{name}{suffix}"
            left.mkdir() if suffix == "-ab_c" else left.write_text("")
            os.utime(left, (time.time() - age,) * 2)
    (tmp_path / f"{own}9-orphan").mkdir()
    (tmp_path / "another").write_text("")
    sweep(tmp_path, tmp_path)
    left = {path.name.removeprefix(own) for path in tmp_path.iterdir()}
    assert left == {"7.beat", "7.tmp", "7-ab_c", "another"}


class Critic:
    """A server that takes a moment for each reply, and all that it was asked."""

    def __init__(self) -> None:
        self.server = FakeOllama(reply=self.reply)
        self.asked = list[str]()

    def reply(self, body: Any) -> str:
        self.asked.append(words(body))
        time.sleep(0.05)
        return solving(body)


def kept(team: Team) -> int:
    """Returns how many replies are on a disk."""
    keys = set[str]()
    for file in team.folder.glob("host-*/cache/critic.sqlite"):
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(file)) as found:
            keys |= {key for (key,) in found.execute("SELECT key FROM kept")}
    for file in team.folder.glob("host-*/cache/critic-*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # torn by the kill
                keys.add(json.loads(line)["key"])
    return len(keys)


def stopped(ranks: Ranks, hurt: Sequence[int]) -> list[tuple[int, str, str]]:
    """Returns how each rank ended; those that were hurt are ended once all others have."""
    others = [p for rank, p in enumerate(ranks.processes) if rank not in hurt]
    began = time.monotonic()
    while any(p.poll() is None for p in others) and time.monotonic() - began < GUARD:
        time.sleep(0.2)
    stuck = [rank for rank, p in enumerate(ranks.processes) if p in others and p.poll() is None]
    took = time.monotonic() - began
    for rank in hurt:
        ranks.processes[rank].kill()
    results = ranks.results(GUARD)
    print(f"hurt {hurt}: ended after {took:.1f} s", [r[0] for r in results])
    for rank, (_, _, err) in enumerate(results):
        print(f"  {rank}:", " | ".join(err.splitlines()[-2:]))
    assert not stuck
    return results


def hurt(rng: random.Random, ranks: Ranks, how: signal.Signals, critic: Critic, calls: int
         ) -> int | None:  # fmt: skip
    """Kills or stops a random rank at a random moment; None where it had ended before.

    The moment is some seconds after so many calls of the critic: as often in the beginning.
    """
    rank, after, pause = rng.randrange(len(ranks.processes)), rng.randrange(-20, calls), 8.0
    until = 0.0
    while ranks.processes[rank].poll() is None:
        if not until and len(critic.asked) >= after:
            until = time.monotonic() + rng.uniform(0, pause)
        if until and time.monotonic() > until:
            ranks.processes[rank].send_signal(how)
            return rank
        time.sleep(0.02)
    return None


def check_stopped(results: Sequence[tuple[int, str, str]], gone: int) -> None:
    """Every process that was left has ended; the lowest says who is gone, in two lines."""
    first, *others = [rank for rank in range(len(results)) if rank != gone]
    code, _, err = results[first]
    told = last_two_lines(err)
    assert f"(rank {gone}) " in told[0]
    if first == 0:
        assert code == 2
        assert "doctor --hosts" in told[1]
    for rank in others:
        assert "Traceback" not in results[rank][2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run of one process with a critic behind a socket, and how often it was asked."""
    team, critic = Team(tmp_path_factory.mktemp("one")), Critic()
    with critic.server as server:
        team.works(1, *arguments(Path("run"), server.url))
    assert len(set(critic.asked)) == len(critic.asked) > 30
    return team.work / "run", len(critic.asked)


@pytest.mark.parametrize("seed", range(SEED, SEED + KILLS))
def test_a_kill_loses_nothing_and_nothing_is_asked_twice(seed, undisturbed, tmp_path):
    """Of a random rank at a random moment; then again, on as many processes as it happens."""
    expected, calls = undisturbed
    rng, team, critic = random.Random(seed), Team(tmp_path, shared_cache=True), Critic()
    how = signal.SIGSTOP if seed % 10 == 7 else signal.SIGKILL
    again, twice = 0, 0
    with critic.server as server:
        begin = arguments(Path("run"), server.url)
        for size in (rng.choice([2, 3]), *[1 + (seed + i) % 3 for i in range(9)]):
            began = (team.work / "run" / "run.json").exists()
            ranks = team.start(size, *(["resume", "run"] if began else begin))
            before = len(critic.asked), kept(team)
            gone = hurt(rng, ranks, how, critic, calls) if again < 2 else None
            results = stopped(ranks, [] if gone is None else [gone])
            asked, answered = critic.asked[: before[0]], before[1]
            repeated = set(critic.asked[before[0] :]) & set(asked)
            assert len(repeated) <= len(set(asked)) - answered
            twice += len(repeated)
            again += 1
            assert not running(team.folder)
            if gone is None:
                assert [code for code, _, _ in results] == [0] * size, results
                break
            over = (team.work / "run" / "summary.json").exists()
            home = over and (gone == 0 or results[0][0] == 0)  # those that were left
            if size > 1 and not home:
                check_stopped(results, gone)
    assert len(critic.asked) == calls + twice
    assert len(set(critic.asked)) == calls
    same_runs(expected, team.work / "run")
    for rank in (1, 2):
        assert not list(team.place(rank, "work").iterdir())


@pytest.mark.parametrize("seed", range(SEED, SEED + KILLS))
def test_a_cable_that_is_cut_is_told(seed, network, alone, tmp_path):
    """At a random moment of the work; every third time before the hosts have come together."""
    team, rng = Team(tmp_path, network), random.Random(seed)
    begun = team.work / "run" / "checkpoints" / "wave-00001"
    network.cut = early = seed % 3 == 2
    ranks = team.start(2, "run", *METHODS["quickstart"], *sets("eval.limit=60",
                       "train.lora.dropout=0.1"), "--run-dir", "run")  # fmt: skip
    while not early and not begun.exists():
        assert ranks.processes[0].poll() is None
        time.sleep(0.1)
    time.sleep(0 if early else rng.uniform(0, 6))
    network.cut = True
    code, _, err = stopped(ranks, [])[0]
    if code or early:  # else it was over
        error, hint = last_two_lines(err)
        assert code == 2
        assert re.match(NOT_BEGUN if early else INTERRUPTED, error)
        assert "doctor --hosts" in hint
    network.cut = False
    if early:
        run_method(team, 2, "quickstart")
    else:
        team.works(2, "resume", "run")
    same_runs(alone("quickstart"), team.work / "run")


def test_ctrl_c_at_the_first_ends_all(tmp_path):
    team = Team(tmp_path)
    ranks = team.start(2, "run", *METHODS["quickstart"], "--run-dir", "run")
    while not (team.work / "run" / "checkpoints").exists():
        assert ranks.processes[0].poll() is None
        time.sleep(0.1)
    ranks.processes[0].send_signal(signal.SIGINT)
    results = stopped(ranks, [])
    assert results[0][0] == 130
    assert "go on with: mlxreflect resume" in results[0][2]
    assert "Traceback" not in results[1][2]
    assert not running(team.folder)
