"""Commands on several hosts: the file, mlx.launch, exit codes, and what a person reads."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.hosts import hostfile, launched, near_weights
from support.shell import TIMEOUT, Shell, last_two_lines, rows, two_lines

from mlxreflect.cli.hosts import SHARED, without_hosts
from mlxreflect.core.errors import UserError
from mlxreflect.core.launched import launched_rank, own_name
from mlxreflect.core.liveness import BEATS
from mlxreflect.core.ui import Ui
from mlxreflect.setup.hosts import check_hosts, compare_versions, render_hosts
from mlxreflect.setup.launch import NOISE, Forwarding, exit_code, is_own, read_hosts

KILLS = int(os.environ.get("MLXREFLECT_KILLS", "1"))
SEED = int(os.environ.get("MLXREFLECT_KILL_SEED", "0"))

# ---- the file ------------------------------------------------------------------------------------

ONE, TWO = {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, {"ssh": "mini", "ips": ["192.0.2.2"]}


@pytest.fixture(autouse=True)
def _own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever addresses the machine of the tests has, mini is another one."""
    loopback = "mlxreflect.setup.launch.is_own"
    monkeypatch.setattr(loopback, lambda address: address.startswith("127."))


def test_an_own_address_is_known(monkeypatch):
    monkeypatch.undo()
    assert is_own("127.0.0.1")
    assert not is_own("203.0.113.7")  # kept for documentation


def write(folder: Path, value: Any) -> Path:
    file = folder / "hosts.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return file


@pytest.mark.parametrize(("value", "error", "hint"), [
    ("{", "no JSON", "write it as mlx.launch takes it"),
    ({"backend": "ring"}, "hosts is no list", "mlx.launch"),
    ([ONE], "one host", "add the others"),
    ([], "no host", "add the others"),
    ([ONE, 2], "hosts[1] is no object", "mlx.launch"),
    ([ONE, {"ips": ["192.0.2.2"]}], "hosts[1].ssh is missing", "mlx.launch"),
    ([ONE, {"ssh": "-oProxyCommand=x", "ips": []}], "hosts[1].ssh = '-oProxy", "mlx.launch"),
    ([ONE, {"ssh": "mini", "ips": "192.0.2.2"}], "hosts[1].ips = '192.0.2.2'", "mlx.launch"),
    ([ONE, {"ssh": "mini", "ips": ["mini"]}], "hosts[1].ips = ['mini']", "mlx.launch"),
    ([ONE, {"ssh": "mini"}], "hosts[1].ips is empty, and ring needs an address", "add it to mini"),
    ([ONE, TWO, TWO], "hosts[2].ips has 192.0.2.2, as hosts[1].ips has", "its own address"),
    ([TWO, ONE], "hosts[0] is mini, and not this machine", "put this machine first"),
    ([ONE, {"ssh": "mini", "ip": ["192.0.2.2"]}], "hosts[1].ip: no such key", "did you mean ips?"),
    ([ONE, {**TWO, "user": "ann"}], "hosts[1].user: no such key", "mlx.launch"),
    ({"env": [], "hosts": [ONE, TWO]}, "env: no such key", "did you mean envs?"),
    ([{**ONE, "ips": ["192.0.2.1"]}, TWO], "hosts[0].ips has 192.0.2.1, and this", "`ifconfig`"),
    ({"backend": "rings", "hosts": [ONE, TWO]}, "backend = 'rings'", "one of ring, jaccl"),
    ({"envs": "A=1", "hosts": [ONE, TWO]}, "envs is no list", "mlx.launch"),
    ({"backend": "jaccl", "hosts": [ONE, TWO]}, "hosts[0].rdma needs 2", "mlx.distributed_config"),
])  # fmt: skip
def test_a_bad_file_is_two_lines_that_name_the_key(value, error, hint, tmp_path):
    file = write(tmp_path, value)
    with pytest.raises(UserError) as fault:
        read_hosts(file)
    assert str(file) in fault.value.message
    assert error in fault.value.message
    assert hint in fault.value.hint


@pytest.mark.parametrize("command", [
    ["run", "quickstart"], ["train", "sft", "--data", "x.jsonl", "--out", "o"], ["resume", "r"],
    ["eval", "countdown", "--model", "tiny"], ["doctor"],
])  # fmt: skip
def test_every_command_that_takes_a_file_says_that_it_is_not_there(command, shell):
    error, hint = shell.mistake(*command, "--hosts", "none.json")
    assert error == "--hosts none.json: no such file"
    assert '"ssh"' in hint and '"ips"' in hint


def test_the_backend_is_the_files_own_or_follows_from_it(tmp_path):
    assert read_hosts(write(tmp_path, [ONE, TWO])).backend == "ring"
    cabled = [{**ONE, "rdma": [None, "rdma_en2"]}, {**TWO, "rdma": ["rdma_en2", None]}]
    assert read_hosts(write(tmp_path, cabled)).backend == "jaccl"
    given = {"backend": "ring", "envs": ["A=1"], "hosts": cabled}
    found = read_hosts(write(tmp_path, given))
    assert (found.backend, found.envs) == ("ring", ("A=1",))


def test_mlx_launch_is_given_this_machine_without_ssh_and_others_by_their_name(tmp_path):
    own = {"ssh": "localhost", "ips": ["127.0.0.1"]}
    file = read_hosts(write(tmp_path, [own, TWO]))
    assert [h["ssh"] for h in json.loads(file.text())["hosts"]] == ["127.0.0.1", "mini"]
    assert file.names() == ["127.0.0.1", "mini"]  # by which the others reach this one
    assert read_hosts(write(tmp_path, [own, own])).names() == ["localhost", "localhost"]


def test_ranks_and_names_come_from_the_environment():
    env = {"MLX_RANK": "1", "MLXREFLECT_HOSTS": "studio,mini"}
    assert launched_rank(env) == 1
    assert [own_name(rank, env) for rank in (0, 1)] == ["studio", "mini"]
    assert own_name(0, {}) == os.uname().nodename
    assert launched_rank({}) == 0


def test_the_command_is_started_without_the_file():
    given = ["run", "r3", "--hosts", "a.json", "--set", "seed=1", "--hosts=b.json"]
    assert without_hosts(given) == ["run", "r3", "--set", "seed=1"]


# ---- what is passed on ---------------------------------------------------------------------------

TALK = (
    "import sys; print('result'); print('error: a\\nhint: b' if sys.argv[1:] else 'x', "
    "file=sys.stderr); print('\\x1b[33m[WARN] Node with rank 1 exited with code -9 \\x1b[0m\\n"
    "[ring] Too many send/recv errors. Aborting...\\n[other] note', file=sys.stderr)"
)


@pytest.mark.parametrize("error", [True, False])
def test_what_two_lines_say_already_is_withheld(error, tmp_path):
    call = [sys.executable, "-c", TALK, *["error"] * error]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = io.StringIO(), io.StringIO()
    withheld = Forwarding(process, out, err).to_end(tmp_path)
    assert out.getvalue() == "result\n"
    assert err.getvalue().splitlines() == [*(["error: a", "hint: b"] if error else ["x"]),
                                           "[other] note"]  # fmt: skip
    assert len(withheld) == (0 if error else 2)


RANK_0 = "\x1b[33m[WARN] Node with rank 0 exited with code 2 \x1b[0m"


@pytest.mark.parametrize(("lines", "kept"), [
    ([f"[ring]{RANK_0}", " Socket 3 was closed by the peer"], []),
    ([f"[ring] Socket {RANK_0}", "3 was closed by the peer"], []),
    (["[ring]error: a", " Socket 3 was closed by the peer"], ["error: a"]),
    (["[ring] Socket 3 was closed by the peer"], []),
    (["training: step 3 [ring]", "the socket was closed by the peer"],
     ["training: step 3 [ring]", "the socket was closed by the peer"]),
])  # fmt: skip
def test_lines_that_cut_each_other_off(lines, kept, tmp_path):
    """Processes and MLX's threads write to one stream at once, in pieces."""
    call = [sys.executable, "-c", f"import sys; sys.stderr.write({chr(10).join(lines)!r})"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    forwarding = Forwarding(process, io.StringIO(), err := io.StringIO())
    withheld = forwarding.to_end(tmp_path)
    assert err.getvalue().splitlines() == kept
    assert forwarding.told == ("error: a" in kept)
    ranks = [found["rank"] for line in withheld for found in NOISE.finditer(line) if found["rank"]]
    assert ranks == ["0"] * any("WARN" in line for line in lines)


def test_the_exit_code_is_the_first_hosts(tmp_path):
    file = read_hosts(write(tmp_path, [ONE, TWO]))
    line = "\x1b[33m[WARN] Node with rank 1 exited with code 127 \x1b[0m"
    assert NOISE.match(line)
    assert exit_code(file, tmp_path, 0, []) == 2  # it was killed, and another one told so
    assert exit_code(file, tmp_path, 3, []) == 3  # of mlx.launch itself
    with pytest.raises(UserError, match="was ended by signal 9"):
        exit_code(file, tmp_path, -9, [])
    with pytest.raises(UserError) as fault:
        exit_code(file, tmp_path, 0, [line])
    assert fault.value.message == "host mini (rank 1) exited with code 127"
    assert f"doctor --hosts {tmp_path}/hosts.json" in fault.value.hint
    ended = line.replace("rank 1", "rank 0").replace("127", "-15")
    with pytest.raises(UserError, match=r"^host mini \(rank 1\) exited with code 127$"):
        exit_code(file, tmp_path, 0, [line, ended])  # mlx.launch ended the other one for it
    (tmp_path / "again").write_text(
        "mlxreflect resume out"
    )  # the word of a first host that is gone
    with pytest.raises(UserError) as fault:
        exit_code(file, tmp_path, 0, [line])
    assert fault.value.hint.endswith("go on with: mlxreflect resume out")
    (tmp_path / "code").write_text("130")
    assert exit_code(file, tmp_path, 0, [line]) == 130


@pytest.mark.parametrize("command", ["show", "compare", "doctor"])
def test_what_one_host_does_is_refused_of_several(command, shell, monkeypatch):
    monkeypatch.setenv("MLX_RANK", "0")
    error, hint = shell.mistake(command, "x")
    assert error.startswith(f"mlxreflect {command}: mlx.launch")
    assert all(name in hint for name in SHARED)
    monkeypatch.setenv("MLX_RANK", "1")  # the first one says it
    assert tuple(shell(command, "x")) == (0, "", "")
    assert tuple(shell("train", "--nonsense")) == (0, "", "")


def test_a_launched_process_is_not_launched_again(shell, monkeypatch):
    monkeypatch.setenv("MLX_RANK", "0")
    error, _ = shell.mistake("run", "quickstart", "--hosts", "hosts.json")
    assert error == "--hosts hosts.json: mlx.launch has started this process on its hosts already"


# ---- two processes on this machine ---------------------------------------------------------------

HOSTS = "hosts-2.json"


@pytest.fixture
def pair(process: Shell) -> Shell:
    """The command line in processes of its own, with data to train on and a file of two hosts."""
    hostfile(process.folder, 2)
    data = [{"prompt": f"{i} + 1?", "completion": str(i + 1)} for i in range(30)]
    text = "".join(f"{json.dumps(row)}\n" for row in data)
    (process.folder / "d.jsonl").write_text(text, encoding="utf-8")
    (process.folder / "tmp").mkdir()
    process.env["TMPDIR"] = str(process.folder / "tmp")
    return process


def train(*more: object) -> list[object]:
    return ["train", "sft", "--data", "d.jsonl", "--out", "out", *more]


@pytest.mark.slow
def test_a_training_is_begun_on_the_hosts_of_a_file(pair):
    done = pair.works(*train("--json", "--set", "train.epochs=1", "--hosts", HOSTS))
    summary = json.loads(done.out)  # the first host's output, once, and no other's
    assert summary["steps"] == 4
    assert "[WARN]" not in done.err
    assert (pair.folder / "out" / "adapter").is_dir()
    assert not list(pair.folder.glob("tmp/mlxreflect-*"))


@pytest.mark.slow
def test_mlx_launch_alone_does_the_same(pair):
    call = map(str, train("--json", "--set", "train.epochs=1"))
    done = launched(pair.folder, 2, "-m", "mlxreflect", *call, env=pair.env)
    assert json.loads(done.stdout)["steps"] == 4
    assert (pair.folder / "out" / "adapter").is_dir()


@pytest.mark.parametrize("command", [
    ["run", "quickstrt"], ["run", "quickstart", "--set", "epochs=4"],
    ["train", "dpoo", "--data", "d.jsonl", "--out", "out"],
])  # fmt: skip
def test_a_mistake_is_told_before_anything_is_started(command, shell, monkeypatch):
    monkeypatch.setattr("mlxreflect.cli.hosts.start_on", None)
    expected = shell.mistake(*command)
    assert shell.mistake(*command, "--hosts", "none.json") == expected


@pytest.mark.slow
def test_a_mistake_is_told_once_by_the_first(pair):
    done = pair("train", "sft", "--data", "none.jsonl", "--out", "out", "--hosts", HOSTS)
    assert (done.code, done.out) == (2, "")
    assert two_lines(done.err)[0] == "none.jsonl: no such file"
    assert not (pair.folder / "out").exists()


def begin(pair: Shell) -> "tuple[subprocess.Popen[str], int, int]":
    """Begins a long training; returns, once it has a commit, its process and both ranks'."""
    given = train("--hosts", HOSTS, "--set", "train.epochs=500", "--set", "train.save_every=2")
    running = subprocess.Popen(
        pair.command(*given), cwd=pair.folder, env=pair.env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    ends = time.monotonic() + TIMEOUT
    while not list(pair.folder.glob("out/checkpoints/step-00002")):
        assert running.poll() is None and time.monotonic() < ends
        time.sleep(0.1)
    return running, wait_for_rank(0, pair), wait_for_rank(1, pair)


def goes_on(pair: Shell) -> None:
    """The training takes further steps when it is resumed, and can be stopped again."""
    before = (pair.folder / "out" / "metrics.jsonl").read_text().splitlines()
    again = pair.command("resume", "out", "--hosts", HOSTS)
    resumed = subprocess.Popen(again, cwd=pair.folder, env=pair.env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    ends = time.monotonic() + TIMEOUT
    while len((pair.folder / "out" / "metrics.jsonl").read_text().splitlines()) <= len(before):
        assert resumed.poll() is None and time.monotonic() < ends
        time.sleep(0.1)
    resumed.send_signal(signal.SIGTERM)
    resumed.communicate(timeout=TIMEOUT)
    assert resumed.returncode == 130


@pytest.mark.slow
def test_ctrl_c_stops_the_first_which_says_how_to_go_on(pair):
    running, *ranks = begin(pair)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130
    again = f"mlxreflect resume out --hosts {HOSTS}"
    assert err.splitlines()[-1] == f"stopped; go on with: {again}"
    assert err.count("\nstopped") == 1
    assert "stopping once each host has finished its piece of work" in err
    assert "WARN" not in err and "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    goes_on(pair)


@pytest.mark.slow
def test_a_second_ctrl_c_waits_for_no_host(pair):
    running, first, second = begin(pair)
    os.kill(second, signal.SIGSTOP)  # it is busy with something long
    running.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.communicate(timeout=3)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130
    assert "press Ctrl-C again to stop at once" in err and "Traceback" not in err
    ends = time.monotonic() + TIMEOUT
    while any(is_rank(pid, rank, pair.folder) for rank, pid in enumerate((first, second))):
        assert time.monotonic() < ends
        time.sleep(0.1)
    goes_on(pair)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_is_killed_is_named_with_the_command_that_goes_on(rank, pair):
    running, *ranks = begin(pair)
    os.kill(ranks[rank], signal.SIGKILL)
    _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 2
    error, hint = last_two_lines(err)
    assert error.startswith(f"host 127.0.0.1 (rank {rank}) has ended")
    assert f"`mlxreflect doctor --hosts {HOSTS}`" in hint
    again = "mlxreflect resume out"
    assert hint.endswith(f"go on without it: {again}, or with both: {again} --hosts {HOSTS}")
    assert "WARN" not in err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_is_killed_before_all_are_there_is_named(rank, pair):
    running = subprocess.Popen(pair.command(*train("--hosts", HOSTS)), cwd=pair.folder,
                               env=pair.env, stderr=subprocess.PIPE, text=True)  # fmt: skip
    os.kill(wait_for_rank(rank, pair), signal.SIGKILL)
    _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 2
    error, hint = two_lines(err)
    assert error.startswith(f"host 127.0.0.1 (rank {rank}) ")
    assert f"(rank {1 - rank})" not in error
    assert f"`mlxreflect doctor --hosts {HOSTS}`" in hint
    assert not (pair.folder / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEED, SEED + KILLS))
def test_killed_at_random_moments_it_ends_as_undisturbed(seed, pair):
    """On as many hosts as it happens, each time. MLXREFLECT_KILLS: seeds, of two kills each."""
    rng, sets = random.Random(seed), ["--set", "train.epochs=20", "--set", "train.save_every=5"]
    pair.works("train", "sft", "--data", "d.jsonl", "--out", "whole", *sets)
    call = train(*sets)
    for size in rng.choices([2, 3], k=2):
        hostfile(pair.folder, size)
        given = pair.command(*call, "--hosts", f"hosts-{size}.json")
        running = subprocess.Popen(given, cwd=pair.folder, env=pair.env, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)  # fmt: skip
        rank = rng.randrange(size)
        found = wait_for_rank(rank, pair)
        time.sleep(rng.uniform(0, 10))
        with suppress(ProcessLookupError):  # it is over already
            os.kill(found, signal.SIGKILL)
        _, err = running.communicate(timeout=TIMEOUT)
        print(f"rank {rank} of {size}: {running.returncode}", *err.splitlines()[-2:], sep="\n  ")
        assert "Traceback" not in err and "WARN" not in err
        if running.returncode:
            assert running.returncode == 2
            error, hint = last_two_lines(err)
            assert f"(rank {rank}) " in error and f"doctor --hosts hosts-{size}.json" in hint
        if (pair.folder / "out" / "job.json").exists():
            call = ["resume", "out"]
    size = rng.choice([1, 2, 3])
    hostfile(pair.folder, size)
    pair.works(*call, *(["--hosts", f"hosts-{size}.json"] if size > 1 else []))
    one, other = (pair.folder / name for name in ("whole", "out"))
    assert len(rows(one / "metrics.jsonl")) == len(rows(other / "metrics.jsonl"))
    near_weights(*(folder / "adapter" / "adapters.safetensors" for folder in (one, other)))


def wait_for_rank(rank: int, pair: Shell) -> int:
    """Returns the process of a rank as soon as it has begun."""
    ends = time.monotonic() + TIMEOUT
    while not (found := [pid for pid in process_ids() if is_rank(pid, rank, pair.folder)]):
        assert time.monotonic() < ends
        time.sleep(0.01)
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 1])
def test_ctrl_c_before_the_work_begins_says_that_it_stopped(rank, pair):
    """Before anything is started, and as soon as a rank has begun; no process stays."""
    running = subprocess.Popen(
        pair.command(*train("--hosts", HOSTS)), cwd=pair.folder, env=pair.env, text=True,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    launcher = b"mlxreflect.setup.mlx_launch"
    ends = time.monotonic() + TIMEOUT
    while not [pid for pid in process_ids() if launcher in command_line(pid, pair.folder)]:
        assert time.monotonic() < ends
        time.sleep(0.01)
    if rank is not None:
        wait_for_rank(rank, pair)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130
    assert err.splitlines()[-1].startswith("stopped") and "Traceback" not in err
    ends = time.monotonic() + TIMEOUT
    while [pid for pid in process_ids() if command_line(pid, pair.folder)]:
        assert time.monotonic() < ends
        time.sleep(0.1)
    assert not (pair.folder / "out").exists()


def process_ids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def command_line(pid: int, folder: Path) -> bytes:
    """Returns the command line of a process that works in a folder; else nothing."""
    try:
        inside = Path(f"/proc/{pid}/cwd").readlink() == folder
        return Path(f"/proc/{pid}/cmdline").read_bytes() if inside else b""
    except OSError:
        return b""


def is_rank(pid: int, rank: int, folder: Path) -> bool:
    """Tells whether a process is the Python of a rank that works in a folder."""
    if b"-m\0mlxreflect\0" not in command_line(pid, folder):
        return False
    try:
        told = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"MLX_RANK={rank}".encode() in told.split(b"\0")


@pytest.mark.slow
def test_a_host_that_hangs_is_named_and_the_command_ends(pair):
    running, first, second = begin(pair)
    os.kill(second, signal.SIGSTOP)
    _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 2
    error, hint = last_two_lines(err)
    assert error.startswith("host 127.0.0.1 (rank 1) is stopped")
    assert "mlxreflect resume out" in hint and "WARN" not in err
    assert not any(is_rank(pid, rank, pair.folder) for rank, pid in enumerate((first, second)))
    assert not list(pair.folder.glob("tmp/mlxreflect-*"))
    assert not any((BEATS / f"mlxreflect-{os.getuid()}-{pid}.beat").exists()
                   for pid in (first, second))  # fmt: skip
    goes_on(pair)


# ---- doctor --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_doctor_looks_at_every_host_and_measures_between_them(pair):
    done = pair("doctor", "quickstart", "--hosts", HOSTS, "--json")
    found = json.loads(done.out)
    assert (done.code, found["ok"], found["backend"]) == (0, True, "ring"), found
    assert [row["rank"] for row in found["hosts"]] == [0, 1]
    assert all(row["model"] == "is here" and row["memory"] > 1e8 for row in found["hosts"])
    link = found["link"]
    assert link["size"] == 2 and link["adapter"] > 100_000
    assert min(link["meeting_s"], link["sum_s"], link["adapter_s"]) > 0


def test_doctor_says_what_mends_each_fault(tmp_path, monkeypatch, capsys):
    """One host cannot be reached, and on the other one the model is not there."""
    monkeypatch.setattr("mlxreflect.setup.launch.SSH", ("sh", "-c", "echo refused >&2; exit 255"))
    from mlxreflect.config.recipe import load_recipe

    recipe = load_recipe("quickstart", ["policy.model=./gone"])
    file = read_hosts(write(tmp_path, [ONE, TWO]))
    result = check_hosts(file, recipe, Ui(quiet=True))
    assert (result["ok"], result["link"]) == (False, {})
    here, far = result["hosts"]
    assert "gone" in here["fault"] and "rsync -a ./gone" in here["hint"]
    assert far["fault"] == "host mini (rank 1) cannot be reached by ssh (refused)"
    assert "ssh-copy-id mini" in far["hint"]
    Ui().table(render_hosts(result))
    shown = capsys.readouterr().out
    assert far["fault"] in " ".join(shown.split()) and "something is missing" in shown


@pytest.mark.parametrize(("says", "error", "hint"), [
    ("echo sh: not found >&2; exit 127", f"has no {sys.executable}", "at the same path"),
    ("echo No module named mlxreflect >&2; exit 1", "has no mlxreflect like", "at the same path"),
    ("exit 1", "could not be asked (no word)", "ssh mini"),
])  # fmt: skip
def test_a_host_without_the_program_is_told(says, error, hint, shell, monkeypatch):
    monkeypatch.setattr("mlxreflect.setup.launch.SSH", ("sh", "-c", says))
    write(shell.folder, [ONE, TWO])
    message, mends = shell.mistake("run", "quickstart", "--hosts", "hosts.json")
    assert message.startswith("host mini (rank 1)")
    assert error in message and hint in mends


@pytest.mark.slow
def test_a_host_that_does_not_answer_ends_before_anything_starts(pair):
    """192.0.2.1 is kept for documentation: nothing is there."""
    write(pair.folder, [ONE, {"ssh": "192.0.2.1", "ips": ["192.0.2.1"]}])
    done = pair(*train("--hosts", "hosts.json"))
    assert (done.code, done.out) == (2, "")
    assert two_lines(done.err)[0].startswith("host 192.0.2.1 (rank 1) cannot be reached")
    assert not (pair.folder / "out").exists()


def test_other_versions_are_a_fault():
    same = {"python": "3.12.1", "mlxreflect": "0.1.0+aa", "mlx": "0.32.4"}
    other, edited = {**same, "mlx": "0.31.0"}, {**same, "mlxreflect": "0.1.0+ab"}
    found = [{"rank": r, "host": f"h{r}", "fault": "", "versions": v}
             for r, v in enumerate((same, same, other, edited))]  # fmt: skip
    compare_versions(found)
    assert [row["fault"] for row in found] == [
        "", "", "host h2 (rank 2) has mlx 0.31.0", "host h3 (rank 3) has mlxreflect 0.1.0+ab"
    ]  # fmt: skip
    assert found[2]["hint"].endswith("pip install mlx==0.32.4")
    assert found[3]["hint"].endswith("mlxreflect of the same commit")
