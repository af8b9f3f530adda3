"""Requests to critics by several hosts: rank 0 hands them out, another host makes them.

Threads, retries, cache, ledger and budget stay with rank 0 (`client.py`). A request goes out, and
its reply comes back, in letters that travel along with the meetings of the hosts (`Hosts.post`). A
host writes each reply to its own disk before it sends it; the next time that the run is opened,
rank 0 learns what it has missed, so nothing is paid twice.
"""

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxreflect.core.hosts import Hosts
from mlxreflect.core.records import Problem
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.http import NOTHING, CallError, is_loopback
from mlxreflect.critics.replies import HostReplies, LeftReplies, Replies

if TYPE_CHECKING:
    from mlxreflect.critics.client import Client, Pace

Letter = dict[str, Any]
SENT = ("role", "messages", "tags", "seed", "schema", "temperature", "raw")  # of a call, and `stop`
REPLIED = ("text", "finish_reason", "usage")  # of a reply


def servers(shown: str, hosts: Hosts) -> int:
    """Returns how many servers the hosts ask at an address: each its own one, or all the same."""
    return hosts.size if is_loopback(shown) else 1


# ---- rank 0 --------------------------------------------------------------------------------------


@dataclass(eq=False)
class Request:
    """A request of rank 0 that another host makes.

    letter: what goes to it. left: it is gone. late: nobody waits for the reply any more.
    """

    client: "Client"
    key: str
    tries: int
    deadline: float
    letter: Letter
    left: bool = False
    late: bool = False
    answer: Letter | None = None
    came: threading.Event = field(default_factory=threading.Event)


class Dispatcher:
    """Rank 0's post: chooses who makes a request, and waits for what comes of it.

    out: requests of each client that are out, by rank.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.clients: list[Client] = []
        self.out: list[list[int]] = []
        self.requests: dict[int, Request] = {}  # with other hosts, by number
        self.leaving: list[Request] = []
        self.last = 0  # number of a request
        self.lock = threading.Lock()  # of all of these

    def open(self, client: "Client") -> None:
        """Has the others open the same critic, and takes the replies that they have kept.

        Called by the main thread, as `collect` and `deliver`. Raises UserError where a host cannot
        reach its server.
        """
        self.hosts.lead("critic", number=len(self.clients), run_id=client.run_id,
                        config=client.config.model_dump(mode="json"))  # fmt: skip
        self.clients.append(client)
        self.out.append([0] * self.hosts.size)
        if client.cache:
            self.take_over(client.cache)

    def take_over(self, cache: Replies) -> None:
        """Takes each reply that some host has kept and that is not here."""
        keys, wanted = set[str](), []
        for found in self.hosts.meet([]):
            wanted.append([key for key in cache.missing(found) if key not in keys])
            keys.update(found)
        self.hosts.meet(wanted)
        for kept in self.hosts.meet({}):
            cache.take(kept)
        self.hosts.meet()  # they may delete them now
        cache.remember(keys)

    def request(self, client: "Client", key: str, call: Call, pace: "Pace") -> Reply:
        """Returns the reply of the host with the fewest requests out; from any thread.

        Of several such hosts a problem tends to have the same one. Raises CallError.
        """
        out = self.out[self.clients.index(client)]
        first = int(hashlib.sha256(call.problem.id.encode("ascii", "replace")).hexdigest(), 16)
        with self.lock:
            rank = min(range(len(out)), key=lambda r: (out[r], (r - first) % len(out)))
            out[rank] += 1
        try:
            if rank == 0:
                return client.request_here(call, pace.deadline - time.monotonic())
            return self.request_elsewhere(rank, client, key, call, pace)
        finally:
            with self.lock:
                out[rank] -= 1

    def request_elsewhere(self, rank: int, client: "Client", key: str, call: Call, pace: "Pace"
                          ) -> Reply:  # fmt: skip
        letter = {
            "to": rank, "client": self.clients.index(client), "key": key, "tries": pace.tries,
            "refused": sorted(client.refused), "call": letter_of(call),
        }  # fmt: skip
        one = Request(client, key, pace.tries, pace.deadline, letter)
        with self.lock:
            self.last += 1
            letter["n"] = self.last
            self.requests[self.last] = one
            self.leaving.append(one)
        one.came.wait(max(0.0, pace.deadline - time.monotonic()))
        with self.lock:
            if one.answer is None:
                raise self.give_up(one)
        client.refused |= set(one.answer["refused"])
        return read_answer(one.answer)

    def give_up(self, one: Request) -> CallError:
        """Returns the error of a request whose time is over; what never left took nothing."""
        one.late = True
        error = one.client.timeout()
        if not one.left:
            self.leaving.remove(one)
            del self.requests[one.letter["n"]]
            error.usage = NOTHING
        return error

    def collect(self) -> list[Letter] | None:
        """Returns the letters that leave now, each with the seconds that are left for it."""
        now = time.monotonic()
        with self.lock:
            leaving, self.leaving = self.leaving, []
            for one in leaving:
                one.left = True
        return [one.letter | {"seconds": one.deadline - now} for one in leaving] or None

    def deliver(self, rank: int, letters: Sequence[Letter]) -> None:
        """Hands answers to who waits for them; a reply that comes too late is only kept."""
        for letter in letters:
            with self.lock:
                one = self.requests.pop(letter["n"])
                one.answer = letter
            if one.late and one.client.cache and "reply" in letter:
                one.client.cache.put(one.key, replace(read_answer(letter), tries=one.tries))
            one.came.set()


# ---- another rank --------------------------------------------------------------------------------


class Delegate:
    """The post of another rank: makes the requests that rank 0 hands to it.

    Left without an error, when rank 0 has said that all is done, it deletes the replies that it has
    kept for the run.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.clients: list[tuple[Client, HostReplies | None]] = []
        self.kept: dict[tuple[Path, str], HostReplies] = {}  # by file of all replies, and run
        self.leaving: list[Letter] = []
        self.out = 0  # requests under way
        self.faults: list[BaseException] = []  # errors of ours in a thread
        self.lock = threading.Lock()  # of `leaving` and `out`

    def __enter__(self) -> "Delegate":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        whole = kind is None and not self.out and not self.leaving
        for client, _ in self.clients:
            client.close()
        for kept in self.kept.values() if whole else ():
            kept.path.unlink(missing_ok=True)

    def open(self, client: "Client", cache: Path | None) -> None:
        """Takes a client that is asked for rank 0, and hands over the replies of earlier processes.

        cache: the file of replies on this host, beside which its own are kept; None: nowhere.
        Raises UserError where the client's server is not there.
        """
        client.preflight()
        kept = None
        if cache:
            place = cache, client.run_id
            if place not in self.kept:
                self.hand_over(LeftReplies(*place))
                self.kept[place] = HostReplies(*place, self.hosts.rank)
            else:
                self.hand_over(None)
            kept = self.kept[place]
        self.clients.append((client, kept))

    def hand_over(self, left: LeftReplies | None) -> None:
        """Gives rank 0 what it has not of what was left here; then that is deleted."""
        rows = left.rows if left else {}
        self.hosts.meet(list(rows))
        wanted = self.hosts.meet()[0][self.hosts.rank]
        self.hosts.meet({key: rows[key] for key in wanted})
        self.hosts.meet()
        if left:
            left.delete()

    def collect(self) -> list[Letter] | None:
        """Returns the answers that have come since. Raises what went wrong in a thread."""
        if self.faults:
            raise self.faults[0]
        with self.lock:
            leaving, self.leaving = self.leaving, []
        return leaving or None

    def deliver(self, rank: int, letters: Sequence[Letter]) -> None:
        """Begins the requests that rank 0 has for this host."""
        for letter in letters if rank == 0 else ():
            if letter["to"] == self.hosts.rank:
                client, kept = self.clients[letter["client"]]
                job = partial(self.answer, client, kept, letter)
                with self.lock:
                    self.out += 1
                until = time.monotonic() + letter["seconds"]
                client.pool.apply_async(job, (until,), error_callback=self.faults.append)

    def answer(self, client: "Client", kept: HostReplies | None, letter: Letter, until: float
               ) -> None:  # fmt: skip
        """Makes a request, in a thread; its reply is kept before it is sent."""
        client.refused |= set(letter["refused"])
        begun = time.monotonic()
        answer: Letter
        try:
            if begun >= until:
                error = client.timeout()
                error.usage = NOTHING
                raise error
            reply = client.request_here(read_call(letter["call"]), until - begun)
            if kept:
                seconds = round(time.monotonic() - begun, 3)
                took = replace(reply, tries=letter["tries"], seconds=seconds)
                kept.add(letter["key"], client.actor, took)
            answer = {"reply": {name: getattr(reply, name) for name in REPLIED}}
        except CallError as failed:
            answer = {"error": asdict(failed)}
        with self.lock:
            self.out -= 1
            self.leaving.append({"n": letter["n"], "refused": sorted(client.refused), **answer})


# ---- what a letter holds -------------------------------------------------------------------------


def letter_of(call: Call) -> Letter:
    """Returns what a request needs of a call, as JSON."""
    return {name: getattr(call, name) for name in SENT} | {"stop": list(call.stop)}


def read_call(letter: Letter) -> Call:
    return Call(problem=Problem("", "", {}), text="", **letter | {"stop": tuple(letter["stop"])})


def read_answer(letter: Letter) -> Reply:
    """Returns the reply that a letter holds. Raises the CallError that it holds."""
    if "error" in letter:
        raise CallError(**letter["error"])
    return Reply(**letter["reply"])
