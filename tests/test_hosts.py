"""Several processes over MLX's ring on loopback: what goes between them, and who is missing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.hosts import launch, launched, run_script
from support.shell import two_lines

from mlxreflect.core.hosts import ALONE
from mlxreflect.core.launched import launched_names
from mlxreflect.core.liveness import (
    FAILED,
    LOST,
    Place,
    look_at,
    look_for,
    read_look,
    this_machine,
)

TALK = """
import mlx.core as mx, numpy as np, zlib
import mlxreflect.core.hosts
from mlxreflect.core.hosts import joined
mlxreflect.core.hosts.PIECE = 1000  # bytes, so that all that is long goes in pieces
with joined() as hosts:
    assert hosts.share({"yes": mx.array([True, False])})["yes"].tolist() == [True, False]
    sizes = [len(text) for text in hosts.meet("ä" * (3000 * hosts.rank))]
    short = hosts.meet({"rank": hosts.rank})
    bits = mx.random.normal((300, 7), key=mx.random.key(5 + hosts.rank))
    given = {"half": bits.astype(mx.bfloat16), "zero": mx.array([-0.0]), "whole": mx.arange(9)}
    taken = hosts.share(given if hosts.rank == 0 else {})
    raw = [bytes(np.array(taken[name].reshape(-1).view(mx.uint8))) for name in sorted(taken)]
    tall, one = hosts.sum([mx.full((2, 3), hosts.rank + 1.0), mx.array(1, dtype=mx.float16)])
    found = zlib.crc32(b"".join(raw)), tall.tolist(), one.item(), one.dtype
    print(hosts.rank, hosts.size, sizes, short, *found)
    if hosts.rank:
        assert hosts.meet()[0] == {"do": "end"}
"""


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_json_and_arrays_are_the_same_everywhere(size, tmp_path):
    import zlib

    import mlx.core as mx
    import numpy as np

    lines = run_script(tmp_path, size, TALK)
    bits = mx.random.normal((300, 7), key=mx.random.key(5)).astype(mx.bfloat16)
    raw = [array.reshape(-1).view(mx.uint8) for array in (bits, mx.arange(9), mx.array([-0.0]))]
    shared = zlib.crc32(b"".join(bytes(np.array(each)) for each in raw))
    total, ranks = float(sum(range(1, size + 1))), [{"rank": rank} for rank in range(size)]
    sizes = [3000 * rank for rank in range(size)]
    said = f"{sizes} {ranks} {shared} {[[total] * 3] * 2} {float(size)} mlx.core.float16"
    assert list(lines) == [f"{rank} {size} {said}" for rank in range(size)]


def test_alone_everything_is_its_own():
    assert ALONE.meet({"a": 1}) == [{"a": 1}]
    assert ALONE.share({}) == {}
    ALONE.lead("nothing")


WORK = """
import os, sys, time
from pathlib import Path
from mlxreflect.core.hosts import joined
from mlxreflect.core.errors import UserError
try:
    with joined() as hosts:
        Path(f"new-{hosts.rank}").write_text(str(os.getpid()))
        os.rename(f"new-{hosts.rank}", f"pid-{hosts.rank}")
        while True:
            hosts.meet("go on")
            if sys.argv[1:] == ["fail"] and hosts.rank == 1:
                raise UserError("policy.model = 'x': no such folder", "give one")
            time.sleep(0.05)
except UserError as error:
    print(f"error: {error.message} | {error.hint}", file=sys.stderr, flush=True)
    sys.exit(2)
"""


def start(tmp_path: Path, size: int) -> tuple["subprocess.Popen[str]", dict[int, int]]:
    script = tmp_path / "work.py"
    script.write_text(WORK)
    process = launch(tmp_path, size, str(script))
    files = [tmp_path / f"pid-{rank}" for rank in range(size)]
    while not all(file.exists() for file in files):
        time.sleep(0.05)
    return process, {rank: int(file.read_text()) for rank, file in enumerate(files)}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dies", "how"), [
    (2, 0, signal.SIGKILL), (3, 1, signal.SIGKILL), (2, 1, signal.SIGSTOP), (3, 0, signal.SIGSTOP),
])  # fmt: skip
def test_a_host_that_dies_or_hangs_is_named_within_a_minute(size, dies, how, tmp_path):
    process, pids = start(tmp_path, size)
    began = time.monotonic()
    os.kill(pids[dies], how)
    try:
        if how == signal.SIGSTOP:  # `mlx.launch` waits for it to end
            others = [pid for rank, pid in pids.items() if rank != dies]
            while any(Path(f"/proc/{pid}").exists() for pid in others):
                assert time.monotonic() - began < 60
                time.sleep(0.2)
            os.kill(pids[dies], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - began < 60
    found = [line for line in err.splitlines() if "error: " in line]
    assert len(found) == 1, err
    assert f"(rank {dies}) " in found[0]
    assert ("has ended" if how == signal.SIGKILL else "is stopped") in found[0]


@pytest.mark.slow
def test_a_mistake_on_one_host_is_told_by_the_first(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(WORK)
    done = launched(tmp_path, 2, str(script), "fail", timeout=60)
    (told,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert "(rank 1) failed: policy.model = 'x': no such folder" in told
    assert told.endswith("| give one")


def test_other_files_of_the_same_version_are_told(tmp_path):
    """As of two checkouts: what they compute need not be the same."""
    script = tmp_path / "work.py"
    script.write_text(
        "import sys\n"
        "from mlxreflect.core import hosts\n"
        "from mlxreflect.core.errors import UserError\n"
        "from mlxreflect.core.launched import launched_rank\n"
        "own = hosts.versions()\n"
        "if launched_rank():\n"
        "    hosts.versions = lambda: {**own, 'mlxreflect': '0.1.0+edited'}\n"
        "try:\n"
        "    with hosts.joined():\n"
        "        pass\n"
        "except UserError as error:\n"
        "    print(f'error: {error.message} | {error.hint}', file=sys.stderr, flush=True)\n"
        "    sys.exit(2)\n"
    )
    done = launched(tmp_path, 2, str(script), timeout=60)
    (told,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert f"(rank 1) has mlxreflect 0.1.0+edited, and host {os.uname().nodename}" in told
    assert told.endswith("| install there what the first host has: mlxreflect of the same commit")


# ---- a look at one host --------------------------------------------------------------------------

PLACE = Place(1, "mini", "mini", 7, "/nowhere")


@pytest.mark.parametrize(("status", "age", "said", "gone"), [
    ("S", 1, "", ""), ("none", 1, "", "has ended"), ("Z+", 1, "", "has ended"),
    ("T", 1, "", "is stopped"), ("S", 40, "", "gives no sign of life for 40 seconds"),
    ("none", 1, LOST, ""), ("none", 99, FAILED + "no model\ngive one", "failed: no model"),
])  # fmt: skip
def test_what_a_look_finds(status, age, said, gone):
    beat = json.dumps({"time": 1000 - age, "waits": 3.5, "said": said})
    state = read_look(PLACE, ["1000", status, beat])
    assert state.gone == gone
    assert state.waits == 3.5
    assert state.hint == ("give one" if "give one" in said else "")
    assert state.left == (said == LOST)


def test_what_cannot_be_read_is_held_against_nobody():
    assert read_look(PLACE, []).gone == ""
    assert read_look(PLACE, ["bash: ps: not found"]).gone == ""
    assert read_look(PLACE, ["1000", "S", "{half"]).gone == ""


@pytest.mark.parametrize(("says", "gone"), [
    ("ssh: connect to host mini port 22: Operation timed out", "cannot be reached"),
    ("ssh: connect to host mini port 22: No route to host", "cannot be reached"),
    ("ssh: connect to host mini port 22: Connection refused", ""),
    ("ssh: Could not resolve hostname mini: nodename nor servname provided", ""),
    ("me@mini: Permission denied (publickey).", ""),
])  # fmt: skip
def test_a_machine_that_ssh_does_not_enter_may_be_there(says, gone, monkeypatch):
    call = ("sh", "-c", 'echo "$0" >&2; exit 255', says)
    monkeypatch.setattr("mlxreflect.core.liveness.SSH", call)
    assert look_at(PLACE).gone == gone


def test_a_process_of_this_machine_is_looked_at_without_ssh():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    place = Place(1, "x", this_machine(), child.pid, "/nowhere")
    try:
        assert look_at(place).gone == ""
    finally:
        child.kill()
        child.wait()
    assert look_at(place).gone == "has ended"


# ---- before all are there ------------------------------------------------------------------------

AGE = 5.0  # seconds that the process that looks is old


@pytest.fixture
def beat(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxreflect.core.liveness.BEATS", tmp_path)

    def write(pid: int, said: str = "", launch: str = "a", rank: int = 1, age: float = 0) -> None:
        told = {"time": int(time.time() - age), "waits": 0.0, "said": said, "launch": launch,
                "rank": rank}  # fmt: skip
        path = tmp_path / f"mlxreflect-{os.getuid()}-{pid}.beat"
        path.write_text(json.dumps(told).ljust(4096), encoding="ascii")

    return write


GONE = 1 << 22  # above any process's number


def test_a_rank_is_found_among_the_heartbeats_of_its_machine(beat):
    assert look_for("a", AGE, 1, "localhost") == "has not started"
    beat(os.getpid(), launch="of another command")
    beat(os.getppid(), rank=0)
    assert look_for("a", AGE, 1, "localhost") == "has not started"
    beat(GONE)
    assert look_for("a", AGE, 1, "localhost") == "has ended"
    beat(GONE, FAILED + "mlx is older\ninstall 0.32")
    assert look_for("a", AGE, 1, "localhost") == "failed: mlx is older"
    beat(GONE, LOST)  # and has told so
    assert look_for("a", AGE, 1, "localhost") == ""
    beat(GONE, LOST, age=60)  # in an earlier launch with the same file of hosts
    assert look_for("a", AGE, 1, "localhost") == "has not started"
    beat(GONE)
    beat(os.getpid())
    assert look_for("a", AGE, 1, "127.0.0.1") == ""


def test_other_files_among_the_heartbeats_are_passed_over(beat, tmp_path):
    beat(os.getpid())
    own = f"{tmp_path}/mlxreflect-{os.getuid()}-"
    Path(f"{own}1.beat").write_text("{half")
    Path(f"{own}2.beat").write_bytes(b"\xff\x00" * 3000)
    Path(f"{own}3.beat").write_text("[" * 200_000)
    os.mkfifo(f"{own}4.beat")
    Path(f"{own}5.beat").symlink_to("/dev/zero")
    assert look_for("a", AGE, 1, "localhost") == ""


def test_a_stopped_rank_is_named_before_all_are_there(beat):
    with subprocess.Popen(["sleep", "60"]) as child:
        beat(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert look_for("a", AGE, 1, "localhost") == "is stopped"
        child.kill()


@pytest.mark.parametrize(("says", "code", "names", "found"), [
    ("ssh: connect to host mini port 22: Operation timed out", 255, "x,mini", "cannot be reached"),
    ("ssh: connect to host mini port 22: Operation timed out", 255, "", None),  # a neighbour's?
    ("me@mini: Permission denied (publickey).", 255, "x,mini", None), ("", 1, "x,mini", None),
])  # fmt: skip
def test_another_machine_is_asked_over_ssh(says, code, names, found, monkeypatch):
    call = ("sh", "-c", f'echo "$0" >&2; exit {code}', says)
    monkeypatch.setattr("mlxreflect.core.liveness.SSH", call)
    monkeypatch.setenv("MLXREFLECT_HOSTS", names)
    assert look_for("a", AGE, 1, "203.0.113.7") == found


def test_localhost_is_this_machine_only_where_all_hosts_are(beat, monkeypatch):
    monkeypatch.setenv("MLXREFLECT_HOSTS", "localhost,mini")
    assert look_for("a", AGE, 0, "localhost") is None


JOIN = """
from mlxreflect.core import hosts, liveness
from mlxreflect.core.errors import UserError
liveness.START_S = 4.0
try:
    with hosts.joined():
        pass
except UserError as error:
    print(f"error: {error.message}\\nhint: {error.hint}", flush=True)
"""


@pytest.mark.parametrize(("ring", "error"), [
    ('[["127.0.0.1:29998"],', "MLX cannot join the hosts: "), ('[["127.0.0.1:29998"], []]', ""),
])  # fmt: skip
def test_a_file_that_mlx_cannot_read_is_told_in_two_lines(ring, error, tmp_path):
    (tmp_path / "ring.json").write_text(ring)
    env = {**os.environ, "MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "ring.json")}
    done = subprocess.run([sys.executable, "-c", JOIN], env=env, capture_output=True, text=True)
    assert two_lines(done.stdout or done.stderr)[0].startswith(error)


@pytest.mark.slow
def test_a_port_that_is_taken_is_told_and_nobody_is_blamed(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        (tmp_path / "ring.json").write_text(f'[["127.0.0.1:{port}"], ["127.0.0.1:1"]]')
        env = {**os.environ, "MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "ring.json")}
        done = subprocess.run([sys.executable, "-c", JOIN], env=env, capture_output=True, text=True)
    assert "MLX cannot join the hosts: " in done.stdout and "bind" in done.stdout


def test_the_hosts_of_a_launch_are_known_by_name_else_by_address(tmp_path):
    ring = tmp_path / "ring.json"
    ring.write_text('[["10.0.0.1:5000", "10.1.0.1:5001"], ["fe80::1:5000"]]')
    assert launched_names({"MLX_HOSTFILE": str(ring)}) == ["10.0.0.1", "fe80::1"]
    named = {"MLX_HOSTFILE": str(ring), "MLXREFLECT_HOSTS": "studio,mini"}
    assert launched_names(named) == ["studio", "mini"]
    assert launched_names({}) == []
