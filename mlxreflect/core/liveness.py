"""Finds out which host is gone, by heartbeat files and a look at those that keep others waiting.

MLX says that a connection was lost, or says nothing where a host hangs or a cable is out. So each
process writes every few seconds that it lives, and whether it waits for the others; who waits too
long reads what the others wrote (over ssh, as `mlx.launch` reaches them) and names the one that is
missing. A host that works on, however slow, is waited for.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NoReturn

from mlxreflect.core.errors import UserError
from mlxreflect.core.launched import (
    FILE,
    LOOPBACK,
    doctor_command,
    has_names,
    host_label,
    hosts_option,
    is_own,
    launch_id,
    launched_names,
    launched_rank,
)
from mlxreflect.core.ui import say_error

BEATS = Path("/tmp")  # on every machine, whatever TMPDIR is there, or in a shell over ssh
BEAT_SIZE, SAID = 4096, 600  # bytes of a heartbeat; characters of what it says
BEAT_S = 2.0  # between heartbeats
PATIENCE_S = 20.0  # of waiting before the others are looked at, and between two such looks
STALE_S = 30.0  # a heartbeat that is older: its process does not run
START_S = 45.0  # for all hosts to be there; then ssh may take a while to say which one is not
DAY_S = 86_400.0
GRACE_S = 3.0  # after a lost connection: so long a dead process may still be listed
LOOK = "mlxreflect looks"  # before what a look prints
SYSCTL = shutil.which("sysctl", path="/usr/sbin:/sbin")
LOST, FAILED = "lost the others", "failed: "  # what a process leaves word of
STOPPED = "the work stopped at its last commit"
# What MLX says where another host is not there, and not of a fault that is this one's own.
APART = re.compile("connect|accept|closed|peer|timed out|interrupted", re.I)
# What ssh says where it gets no answer from a machine that may well be there.
UNASKED = re.compile("permission denied|host key|connection refused|could not resolve", re.I)
ENDING = signal.SIGTERM, signal.SIGHUP
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")


class HostGone(UserError):
    """Another host is gone. told: a lower rank is there, which says so to the person."""

    told = False


@dataclass(frozen=True)
class Place:
    """The place of a rank. name: as ssh reaches it. machine: as it calls itself."""

    rank: int
    name: str
    machine: str
    pid: int
    beat: str

    @property
    def label(self) -> str:
        return host_label(self.name, self.rank)


@dataclass(frozen=True)
class State:
    """The state that a look at a rank found.

    gone: why it is missing; "" where it is there, or unknown. hint: what mends that, where it said
    so itself. waits: seconds that it has waited for the others; 0 where it works, or unknown.
    left: it has ended because of another one.
    """

    place: Place
    gone: str = ""
    hint: str = ""
    waits: float = 0.0
    left: bool = False


def beat_file() -> Path:
    """Returns this process's heartbeat file."""
    return BEATS / f"mlxreflect-{os.getuid()}-{os.getpid()}.beat"


def sweep(folder: Path, beats: Path = BEATS) -> None:
    """Deletes what processes that were killed have left: of those without a beat for a day."""
    for left in folder.glob(f"mlxreflect-{os.getuid()}-*"):
        beat = beats / ("-".join(left.stem.split("-")[:3]) + ".beat")
        with suppress(OSError):  # another's, or gone meanwhile
            if beat.exists() and time.time() - beat.stat().st_mtime < DAY_S:
                continue
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def ranks_here(launch: str) -> list[int]:
    """Returns the processes of a launch that have, or had, a heartbeat on this machine."""
    found = []
    for file in BEATS.glob(f"mlxreflect-{os.getuid()}-*.beat"):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            if file.is_file() and json.loads(file.read_bytes()[:BEAT_SIZE])["launch"] == launch:
                found.append(int(file.stem.rsplit("-", 1)[1]))
    return found


def clear(pids: Sequence[int]) -> None:
    """Deletes what processes have left that had no time to do it."""
    for pid in pids:
        name = f"mlxreflect-{os.getuid()}-{pid}"
        (BEATS / f"{name}.beat").unlink(missing_ok=True)
        for folder in Path(tempfile.gettempdir()).glob(f"{name}-*"):
            shutil.rmtree(folder, ignore_errors=True)


class Liveness:
    """Says that this process lives, and finds out who else does.

    places: of all ranks, once they are known. hint: what to do where one of them is gone.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.launch, self.rank = launch_id(), launched_rank()
        self.places = list[Place]()
        self.hint = what_then()
        self.since, self.said = 0.0, ""  # since: on the monotonic clock; 0: it works
        self.limit, self.computes = PATIENCE_S, False
        self.begun = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def __enter__(self) -> "Liveness":
        for folder in {BEATS, Path(tempfile.gettempdir())}:
            sweep(folder)
        self.write()
        self.thread.start()
        # mlx.launch ends the others by SIGTERM; an ssh connection that is closed, by SIGHUP.
        self.before = {number: signal.signal(number, self.terminated) for number in ENDING}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Leaves word of an error, which rank 0 tells in this one's place, or ends without a trace.

        Raises SystemExit in place of what another rank says to the person.
        """
        self.ended.set()
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if error is None:
            self.file.unlink(missing_ok=True)
            return
        if self.rank == 0 or isinstance(error, HostGone | KeyboardInterrupt):
            self.say(LOST)
        else:
            told = getattr(error, "message", f"{type(error).__name__}: {error}")
            self.say(f"{FAILED}{told}\n{getattr(error, 'hint', '')}")
        alone = isinstance(error, HostGone) and not error.told
        if self.rank and isinstance(error, UserError) and not alone:
            raise SystemExit(2) from None

    # ---- its own heartbeat ----------------------------------------------------------------------

    @contextmanager
    def waiting(self, computes: bool = False) -> Iterator[None]:
        """Remembers since when the others are waited for.

        computes: they compute in step, and `step` says so each time; a step may take long.
        """
        self.step()
        self.computes = computes
        try:
            yield
        finally:
            self.since, self.computes = 0.0, False

    def step(self) -> None:
        """Begins to wait anew."""
        self.since, self.limit = time.monotonic(), PATIENCE_S

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Ends the process where the others have not come in time.

        MLX waits for them with Python's lock held, so no thread can end it: a signal interrupts it.
        It comes again, as it may find MLX where nothing can be interrupted.
        """
        before = signal.signal(signal.SIGALRM, self.not_started)
        signal.setitimer(signal.ITIMER_REAL, START_S, 1)
        try:
            yield
        except (RuntimeError, ValueError) as error:
            told, hint = " ".join(str(error).split()), f"`{doctor_command()}` looks at every host"
            if not APART.search(told):
                raise UserError(f"MLX cannot join the hosts: {told}", hint) from None
            raise self.absent() or HostGone(
                f"the hosts do not find each other: {told}", hint
            ) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def not_started(self, *number: object) -> None:
        """Ends this process, with the names of the hosts that are not there."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.end(self.absent() or self.nobody_there())

    def nobody_there(self) -> HostGone:
        return HostGone(f"not all hosts were there within {START_S:.0f} seconds",
                        f"`{doctor_command()}` says which one cannot be reached")  # fmt: skip

    def absent(self) -> HostGone | None:
        """Returns which hosts are not there as all come together; None where nobody can say."""
        others = [(rank, name) for rank, name in enumerate(launched_names()) if rank != self.rank]
        age = time.monotonic() - self.begun
        with ThreadPool(max(1, len(others))) as pool:
            found = pool.starmap(partial(look_for, self.launch, age), others)
        named = [f"{host_label(name, rank)} {gone}"
                 for (rank, name), gone in zip(others, found, strict=True) if gone]  # fmt: skip
        if not named:
            return None
        fault = HostGone(f"{'; '.join(named)} (the work did not begin)", self.hint)
        fault.told = "" in found[: self.rank]  # a lower one is there
        return fault

    def beat(self) -> None:
        """Writes heartbeats; where the others are waited for too long, looks who is missing."""
        while not self.ended.wait(BEAT_S):
            self.write()
            since = self.since
            waited = time.monotonic() - since if since else 0.0
            if waited > START_S and not self.places:
                absent = self.absent() or self.nobody_there()
                if self.since == since:
                    self.end(absent)
            if waited > self.limit and self.places:
                fault = self.missing(waited=True)
                if self.since == since:
                    if fault:
                        self.end(fault)
                    self.limit += PATIENCE_S

    def waits(self) -> float:
        """Returns for how many seconds it has done nothing but wait."""
        return time.monotonic() - self.since if self.since and not self.computes else 0.0

    def write(self) -> None:
        waits = self.waits()
        told = {"time": int(time.time()), "waits": waits, "said": self.said[:SAID],
                "launch": self.launch, "rank": self.rank}  # fmt: skip
        text = json.dumps(told)[:BEAT_SIZE].ljust(BEAT_SIZE)
        with suppress(OSError):  # in place: it goes on where the disk is full by now
            beat = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(beat, text.encode("ascii"), 0)
            finally:
                os.close(beat)

    # ---- the others -----------------------------------------------------------------------------

    def lost(self, error: str) -> HostGone:
        """Returns what to say where a collective failed: who is gone."""
        if not self.said:
            self.say(LOST)
        until = time.monotonic() + GRACE_S
        while not (fault := self.missing()) and time.monotonic() < until:
            time.sleep(0.3)
        if fault is None:
            fault = HostGone(f"a connection to another host was lost: {error.strip()}", self.hint)
            fault.told = self.rank > 0  # rank 0 knows why it ended
        return fault

    def missing(self, waited: bool = False) -> HostGone | None:
        """Returns who is missing, and why; None where all are there and at work.

        waited: for so long that one that ended because of another counts, too: some of MLX's
        engines do not tell that it did.
        """
        others = [place for place in self.places if place.rank != self.rank]
        if not others:
            return None
        with ThreadPool(len(others)) as pool:
            states = pool.map(look_at, others)
        own = self.waits()
        fault = None
        if gone := [state for state in states if state.gone]:
            named = "; ".join(f"{state.place.label} {state.gone}" for state in gone)
            hint = next(filter(None, (state.hint for state in gone)), self.hint)
            fault = HostGone(f"{named} ({STOPPED})", hint)
        elif min([own, *(state.waits for state in states)]) > PATIENCE_S / 2:
            names = ", ".join(place.label for place in self.places)
            fault = HostGone(
                f"the network between {names} is interrupted: each waits for the others "
                f"({STOPPED})",
                self.hint,
            )
        elif waited and (left := [state for state in states if state.left]):
            fault = HostGone(f"{left[0].place.label} has stopped ({STOPPED})", self.hint)
        if fault:
            fault.told = any(s.place.rank < self.rank and not s.gone for s in states)
        return fault

    def end(self, fault: HostGone) -> None:
        """Ends this process from its watching thread: the main one waits inside MLX."""
        self.say(LOST)
        if fault.told:
            os._exit(2)
        quit_with(fault.message, fault.hint)

    def say(self, why: str) -> None:
        """Leaves word, for the others to read, of why this process ends."""
        self.said = why
        self.write()

    def terminated(self, *signal: object) -> None:
        """Answers what ends all where one has ended."""
        if self.said:  # it is about to say who is gone
            return
        self.say(LOST)  # first: another one may look while this one does
        if fault := self.missing() if self.places else self.absent():
            raise fault
        raise KeyboardInterrupt


def this_machine() -> str:
    """Returns a name of this machine as it runs now; two that are called alike have two."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.is_file():
        return f"{socket.gethostname()} {boot.read_text().strip()}"
    said = ""
    if SYSCTL:
        asked = [SYSCTL, "-n", "kern.bootsessionuuid"]
        said = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return f"{socket.gethostname()} {said}"


def look_at(place: Place) -> State:
    """Returns how a rank is. Where it cannot be asked, nothing is held against it."""
    beat = shlex.quote(place.beat)
    asked = (
        f"echo {LOOK}; date +%s; ps -o stat= -p {place.pid} || echo none; cat {beat} 2>/dev/null"
    )
    lines, gone = ask(place.name, place.machine == this_machine(), asked)
    return State(place, gone) if gone else read_look(place, lines)


def ask(name: str, local: bool, asked: str) -> tuple[list[str], str]:
    """Returns the lines that a machine's shell prints after LOOK, else why it is gone, if it is."""
    command = ["sh", "-c", asked] if local else [*SSH, name, asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10)
    except subprocess.TimeoutExpired:
        return [], "" if local else "cannot be reached"  # this machine is but busy
    except FileNotFoundError:  # no ssh
        return [], ""
    if not local and done.returncode == 255:
        return [], "" if UNASKED.search(done.stderr) else "cannot be reached"
    lines = done.stdout.splitlines()  # after what a shell says as it starts
    return lines[lines.index(LOOK) + 1 :] if LOOK in lines else [], ""


def read_look(place: Place, lines: Sequence[str]) -> State:
    """Returns a rank's state from the clock, the process's status and its heartbeat."""
    if len(lines) < 2 or not lines[0].isdigit():
        return State(place)
    status = lines[1].strip()
    try:
        told = json.loads(lines[2])
        age = int(lines[0]) - int(told["time"])
        said, waits = str(told["said"]), float(told["waits"])
    except (IndexError, ValueError, KeyError, TypeError):
        age, said, waits = 0, "", 0.0
    if said.startswith(FAILED):
        why, _, hint = said.partition("\n")
        return State(place, why, hint, waits)
    ended = status == "none" or status.startswith("Z")
    gone = ""
    if said:  # it stops because of another one
        return State(place, waits=waits, left=ended)
    if ended:
        gone = "has ended"
    elif status.startswith("T"):
        gone = "is stopped"
    elif age > STALE_S:
        gone = f"gives no sign of life for {age} seconds"
    return State(place, gone, waits=waits)


def look_for(launch: str, age: float, rank: int, name: str) -> str | None:
    """Returns why a rank of a launch is not there yet; "" where it is, None where none can say.

    Its heartbeat file is among those of its machine: it cannot have told which one that is.
    age: seconds since this process began; heartbeats from before are of another launch.
    """
    if name in LOOPBACK and not all(map(is_own, launched_names())):
        return None  # only on its own machine that is its name
    asked = (
        f"echo {LOOK}; date +%s; cd {BEATS} && for f in mlxreflect-$(id -u)-*.beat; do "
        f'[ -f "$f" ] && [ -O "$f" ] && [ ! -L "$f" ] && grep -q {launch} "$f" || continue; '
        "p=${f##*-}; "
        'printf \'%s %s\\n\' "$(ps -o stat= -p "${p%.beat}" || echo none)" '
        f'"$(head -c {BEAT_SIZE} "$f")"; done'
    )
    lines, gone = ask(name, is_own(name), asked)
    if gone and not has_names():
        return None  # an address that perhaps only a neighbour can reach
    if gone or not lines or not lines[0].isdigit():
        return gone or None
    since = int(lines[0]) - age - STALE_S
    found = [read_beat(launch, rank, since, line) for line in lines[1:]]
    # Where it was tried twice, "" comes first.
    return min((why for why in found if why is not None), default="has not started")


def read_beat(launch: str, rank: int, since: float, line: str) -> str | None:
    """Returns as `look_for` does, from a process's status and heartbeat; None: of another rank."""
    status, _, beat = line.partition(" ")
    try:
        told = json.loads(beat)
        mine = (told["launch"], told["rank"]) == (launch, rank) and told["time"] > since
        said = str(told["said"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not mine:
        return None
    if said.startswith(FAILED):
        return said.partition("\n")[0]
    if said:  # it stops because of another one
        return ""
    if status == "none" or status.startswith("Z"):
        return "has ended"
    return "is stopped" if status.startswith("T") else ""


def what_then(command: str = "") -> str:
    """Returns what to do where a host is gone. command: that goes on with the work."""
    again = "then give the command again, or resume the run, with the hosts that are there"
    if command:
        alone = command.removesuffix(hosts_option()).rstrip()
        command = f"{alone} {hosts_option() or '--hosts FILE'}"
        known = os.environ.get(FILE, "FILE")
        again = f"take one that is gone out of {known} and go on: {command}"
        if len(launched_names()) == 2:
            again = f"go on without it: {alone}, or with both: {command}"
    return f"`{doctor_command()}` looks at every host; {again}"


def quit_with(message: str, hint: str) -> NoReturn:
    """Prints an error in two lines and ends the process at once."""
    say_error(message, hint)
    os._exit(2)
