"""`--hosts FILE`: reads a file of hosts, and starts a command on each of them by `mlx.launch`.

The file is mlx.launch's own. Its first host is this machine, which leads: it keeps the folder of
the run, and its output, its exit code and Ctrl-C are those of the command.
"""

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from multiprocessing.pool import ThreadPool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, TextIO

from mlxreflect.core.errors import UserError
from mlxreflect.core.launched import (
    AGAIN,
    FILE,
    LEAD,
    LOOPBACK,
    NAMES,
    host_label,
    is_own,
    launch_id,
)
from mlxreflect.core.liveness import SSH, clear, ranks_here

BACKENDS = ("ring", "jaccl", "jaccl-ring", "mpi", "nccl")
LOOK_S = 120.0  # a Python there may have to read MLX from a cold disk
PAUSE_S, LEFT_S = 0.5, 10.0  # between looks; for the others to end, once the first has
INTERRUPTED = 130
GONE = 2  # the exit code where the first host could leave none
# What mlx.launch and MLX's engines say of a process that has ended, as our own two lines do. They
# write at once, in pieces: a line may be cut off by another, and go on in the next.
ENGINE = r"\[(?:ring|jaccl)\]"
NOISE = re.compile(rf"^{ENGINE}[ \w]*?(?=\x1b|\[WARN\]|error: )|"
                   r"(\x1b\[\d+m)?\[WARN\] Node with rank (?P<rank>\d+) "
                   r"(?P<how>.*?)\s*(\x1b\[0m|$)|"
                   rf"^{ENGINE}( .*)?$|^ ?(Socket ?)?(\d+ ?)?was closed by the peer$")  # fmt: skip
PORTS = range(20_000, 32_000)  # below those that systems hand out by themselves


@dataclass(frozen=True)
class Host:
    """ssh: its name in the file, by which ssh reaches it. here: it is this machine."""

    rank: int
    ssh: str
    ips: tuple[str, ...]
    rdma: tuple[Any, ...]
    here: bool

    @property
    def label(self) -> str:
        return host_label(self.ssh, self.rank)


@dataclass(frozen=True)
class HostsFile:
    path: Path
    backend: str
    envs: tuple[str, ...]
    hosts: tuple[Host, ...]

    def names(self) -> list[str]:
        """Returns the names by which the hosts reach each other."""
        far = not all(host.here for host in self.hosts)
        return [h.ips[0] if far and h.ssh in LOOPBACK and h.ips else h.ssh for h in self.hosts]

    def text(self) -> str:
        """Returns the file for mlx.launch, which starts processes here without ssh."""
        hosts = [
            {"ssh": LOOPBACK[0] if h.here else h.ssh, "ips": list(h.ips), "rdma": list(h.rdma)}
            for h in self.hosts
        ]
        return json.dumps({"backend": self.backend, "envs": list(self.envs), "hosts": hosts})


# ---- the file ------------------------------------------------------------------------------------

EXAMPLE = '[{"ssh": "127.0.0.1", "ips": ["10.0.0.1"]}, {"ssh": "mini.local", "ips": ["10.0.0.2"]}]'
AS = f"write it as mlx.launch takes it: {EXAMPLE}"


def read_hosts(path: Path) -> HostsFile:
    """Reads a file of hosts. Raises UserError, which names the key at fault."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--hosts {path}: no such file", AS) from None
    except OSError as error:
        raise UserError(f"--hosts {path}: {error.strerror}", AS) from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error})", AS) from None
    whole = found if isinstance(found, dict) else {"hosts": found}
    rows, envs = whole.get("hosts"), whole.get("envs", [])
    if not isinstance(rows, list):
        raise UserError(f"{path}: hosts is no list", AS)
    check_keys(f"{path}: ", whole, ("backend", "envs", "hosts"))
    if not is_list_of_text(envs):
        raise UserError(f"{path}: envs is no list of NAME=VALUE", AS)
    hosts = tuple(read_host(path, rank, row) for rank, row in enumerate(rows))
    if len(hosts) < 2:
        what = "one host" if hosts else "no host"
        raise UserError(f"{path}: {what}, and the work is to be shared by several",
                        "add the others, or leave --hosts out")  # fmt: skip
    backend = whole.get("backend") or ("jaccl" if all(h.rdma for h in hosts) else "ring")
    if backend not in BACKENDS:
        raise UserError(
            f"{path}: backend = {backend!r}: there is no such backend",
            f"give one of {', '.join(BACKENDS)}",
        )
    check_backend(path, backend, hosts)
    if not hosts[0].here:
        raise UserError(
            f"{path}: hosts[0] is {hosts[0].ssh}, and not this machine",
            "put this machine first: it leads, and keeps the folder of the run",
        )
    return HostsFile(path, backend, tuple(envs), hosts)


def read_host(path: Path, rank: int, row: Any) -> Host:
    """Returns a host of the file. Raises UserError."""
    at = f"{path}: hosts[{rank}]"
    if not isinstance(row, dict):
        raise UserError(f"{at} is no object", AS)
    check_keys(f"{at}.", row, ("ssh", "ips", "rdma"))
    name, ips, rdma = row.get("ssh"), row.get("ips", []), row.get("rdma", [])
    if name is None:
        raise UserError(f"{at}.ssh is missing", AS)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.@:%\[][\w.@:%\[\]-]*", name):
        raise UserError(f"{at}.ssh = {name!r}: no name that ssh takes", AS)
    if not is_list_of_text(ips) or not all(map(is_ip, ips)):
        raise UserError(f"{at}.ips = {ips!r}: no list of IP addresses", AS)
    if not isinstance(rdma, list):
        raise UserError(f"{at}.rdma = {rdma!r}: no list of devices",
                        "`mlx.distributed_config --backend jaccl` writes it")  # fmt: skip
    here = name in LOOPBACK or any(map(is_own, ips))
    for ip in ips if here else ():
        if not is_own(ip):
            raise UserError(f"{at}.ips has {ip}, and this machine has no such address",
                            "`ifconfig` shows those that it has")  # fmt: skip
    return Host(rank, name, tuple(ips), tuple(rdma), here)


def check_keys(at: str, found: dict[str, Any], known: Sequence[str]) -> None:
    """Raises UserError where a key is none of those that are known."""
    for key in found:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise UserError(f"{at}{key}: no such key", f"did you mean {near[0]}?" if near else AS)


def is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def is_ip(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


def check_backend(path: Path, backend: str, hosts: Sequence[Host]) -> None:
    """Raises UserError where a host lacks what the backend needs."""
    if backend in ("jaccl", "jaccl-ring"):
        for host in hosts:
            if len(host.rdma) != len(hosts) or host.rdma[host.rank] is not None:
                raise UserError(
                    f"{path}: hosts[{host.rank}].rdma needs {len(hosts)} devices, one a host, and "
                    "null for itself",
                    "`mlx.distributed_config --backend jaccl` writes it",
                )
    for host in hosts if backend == "ring" else hosts[:1] if backend != "mpi" else ():
        if not host.ips:
            raise UserError(
                f"{path}: hosts[{host.rank}].ips is empty, and {backend} needs an address",
                f'add it to {host.ssh}: "ips": ["10.0.0.1"]',
            )
    if backend != "ring":
        return
    seen: dict[str, int] = {}
    for host in hosts:
        for ip in host.ips:
            if ip in seen and not ip_address(ip).is_loopback:
                raise UserError(
                    f"{path}: hosts[{host.rank}].ips has {ip}, as hosts[{seen[ip]}].ips has",
                    "give each host its own address",
                )
            seen[ip] = host.rank


# ---- the other machines --------------------------------------------------------------------------


def look(file: HostsFile, host: Host, *asked: str) -> dict[str, Any]:
    """Returns what a host says of itself (`mlxreflect.setup.hosts`). Raises UserError.

    Whatever its Python is, it is asked as a run starts it: by the same path.
    """
    call = shlex.join([sys.executable, "-m", "mlxreflect.setup.hosts", "look", *asked])
    text = f"cd {shlex.quote(str(Path.cwd()))} 2>/dev/null; {call}"
    command = ["sh", "-c", text] if host.here else [*SSH, host.ssh, text]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=LOOK_S)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{host.label} does not answer within {LOOK_S:.0f} seconds",
            f"look at it: ssh {host.ssh}",
        ) from None
    said = (done.stderr.strip() or "no word").splitlines()[-1]
    if done.returncode == 255 and not host.here and "resolve" in said:
        raise UserError(f"{host.label}: there is no such machine ({said})",
                        f"write its name into {file.path} as ssh takes it")  # fmt: skip
    if done.returncode == 255 and not host.here:
        raise UserError(
            f"{host.label} cannot be reached by ssh ({said})",
            f"`ssh -o BatchMode=yes {host.ssh} true` has to work: turn Remote Login on there, and "
            f"copy your key: ssh-copy-id {host.ssh}",
        )
    if done.returncode in (126, 127):
        raise UserError(
            f"{host.label} has no {sys.executable}",
            "install mlxreflect there at the same path, in an environment of the same name",
        )
    if "No module named" in said:
        raise UserError(
            f"{host.label}: {sys.executable} has no mlxreflect like this one's ({said})",
            "install the same version there at the same path",
        )
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise UserError(
            f"{host.label} could not be asked ({said})",
            f"look at it: ssh {host.ssh} {sys.executable} -m mlxreflect --version",
        ) from None
    return found


def check_reachable(file: HostsFile) -> None:
    """Raises UserError where a host cannot be reached, or has no mlxreflect."""
    others = [host for host in file.hosts if not host.here]
    if others:
        with ThreadPool(len(others)) as pool:
            pool.map(lambda host: look(file, host), others)


# ---- the launch ----------------------------------------------------------------------------------


def launch(file: HostsFile, command: Sequence[str], out: TextIO | None = None,
           err: TextIO | None = None) -> int:  # fmt: skip
    """Starts Python with a command on all hosts; returns the exit code of the first one.

    out, err: where to its output goes, by default to this process's. Raises UserError where a
    host ended without a word.
    """
    out, err = out or sys.stdout, err or sys.stderr
    if err.isatty():
        print(f"starting {len(file.hosts)} hosts", file=err, flush=True)
    with TemporaryDirectory(prefix="mlxreflect-") as name:
        folder = Path(name)
        process = start(file, folder, command)
        forwarding = Forwarding(process, out, err)
        try:
            with interrupting(process, folder, err):
                withheld = forwarding.to_end(folder)
        finally:
            clear(ranks_here(launch_id({LEAD: name})))
        code = exit_code(file, folder, process.returncode, withheld)
        if code == INTERRUPTED and not forwarding.told:
            print("stopped", file=err, flush=True)
        return code


def start(file: HostsFile, folder: Path, command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Starts mlx.launch, out of reach of this terminal's Ctrl-C, which ends it too early."""
    hosts = folder / "hosts.json"
    hosts.write_text(file.text(), encoding="utf-8")
    told = {NAMES: ",".join(file.names()), FILE: str(file.path), LEAD: str(folder)}
    ports = sum(max(1, len(host.ips)) for host in file.hosts)
    call = [sys.executable, "-m", "mlxreflect.setup.mlx_launch",
            "--hostfile", str(hosts), "--backend", file.backend,
            "--starting-port", str(free_ports(ports)),
            *(part for key, value in told.items() for part in ("--env", f"{key}={value}")),
            "--", sys.executable, *command]  # fmt: skip
    return subprocess.Popen(call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, process_group=0)  # fmt: skip


def free_ports(count: int) -> int:
    """Returns the first of so many ports in a row that are free here; drawn, not always the same.

    Two commands on the same hosts so do not meet.
    """
    draw = random.SystemRandom()
    for _ in range(100):
        first = draw.choice(PORTS)
        if all(is_free(first + i) for i in range(count)):
            return first
    raise UserError(f"no {count} ports in a row are free", "end other programs that listen")


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True


@contextmanager
def interrupting(process: "subprocess.Popen[bytes]", folder: Path, err: TextIO) -> Iterator[None]:
    """Passes Ctrl-C, and what else is to end this process, on to the first host's, which stops.

    The first host waits for those at work before it stops. A second Ctrl-C ends it at once; hosts
    elsewhere then find that it is gone, and end. The last commit stays either way.
    """
    heard = 0

    def pass_on(number: int, frame: object) -> None:
        nonlocal heard
        heard += 1
        file = folder / "pid"
        first = int(file.read_text(encoding="utf-8")) if file.is_file() else 0
        if first and heard == 1:
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            print(f"stopping once each host has finished its piece of work{again}", file=err,
                  flush=True)  # fmt: skip
            with suppress(ProcessLookupError):
                os.kill(first, signal.SIGINT)
            return
        (folder / "code").write_text(str(INTERRUPTED), encoding="utf-8")
        if first:
            end_all(process, folder)
            return
        with suppress(ProcessLookupError):  # nobody works yet; it ends its processes elsewhere, too
            os.killpg(process.pid, signal.SIGTERM)

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, pass_on) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)


def end_all(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Ends mlx.launch and all ranks on this machine, also one that is stopped."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in ranks_here(launch_id({LEAD: str(folder)})):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def first_has_ended(folder: Path) -> bool:
    """Tells whether the first host's process is over; False before it has begun."""
    file = folder / "pid"
    if not file.is_file():
        return False
    try:
        os.kill(int(file.read_text(encoding="utf-8")), 0)
    except ProcessLookupError:
        return True
    return False


class Forwarding:
    """Passes on what mlx.launch prints, but for what it says of processes that have ended."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: TextIO, err: TextIO) -> None:
        self.process, self.out, self.err = process, out, err
        self.withheld = list[str]()
        self.told = False  # an error, in two lines, or that it stopped

    def to_end(self, folder: Path) -> list[str]:
        """Returns, when the process has ended, what was withheld; [] where an error was told.

        Once the first host's has ended the others have a little time: one may hang for ever.
        folder: where the first host leaves word.
        """
        pairs = (self.process.stdout, self.out), (self.process.stderr, self.err)
        threads = [threading.Thread(target=self.forward, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        left = LEFT_S
        while self.process.poll() is None:
            if first_has_ended(folder):
                left -= PAUSE_S
            if left < 0:
                end_all(self.process, folder)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PAUSE_S)
        for thread in threads:
            thread.join()
        return [] if self.told else self.withheld

    def forward(self, stream: IO[bytes], out: TextIO) -> None:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip("\r\n")
            kept = NOISE.sub("", line)
            self.told = self.told or kept.startswith(("error: ", "stopped"))
            if kept != line:
                self.withheld.append(line)
                if not kept.strip():
                    continue
            with suppress(BrokenPipeError):  # as of `| head`
                known = out.encoding or "utf-8"
                print(kept.encode(known, "replace").decode(known), file=out, flush=True)


def exit_code(file: HostsFile, folder: Path, launched: int, withheld: Sequence[str]) -> int:
    """Returns the first host's exit code. Raises UserError where nobody has told what went wrong.

    launched: mlx.launch's own, which is 0 whatever its processes did.
    """
    word = folder / "code"
    if word.is_file():
        return int(word.read_text(encoding="utf-8"))
    doctor = f"`mlxreflect doctor --hosts {shlex.quote(str(file.path))}` looks at every host"
    if (again := folder / AGAIN).is_file():
        doctor += f"; go on with: {again.read_text(encoding='utf-8')}"
    if launched < 0 and not first_has_ended(folder):
        raise UserError(f"mlx.launch was ended by signal {-launched}", doctor)
    if launched > 0:  # it has told why
        return launched
    ended = [found for line in withheld for found in NOISE.finditer(line) if found["rank"]]
    if not ended:
        return GONE
    first = ended[0]  # for whose sake mlx.launch has ended the others
    raise UserError(f"{file.hosts[int(first['rank'])].label} {first['how']}", doctor)
