"""Several machines (hosts) that share the work of one command, over MLX's distributed engine.

Rank 0 leads: it alone decides and writes. The others follow its orders, and hold nothing but copies
of weights and caches. What goes between them is JSON and arrays, by collectives of `mx.distributed`
(ring, JACCL, MPI or NCCL, as `mlx.launch` started them), which every rank calls in the same order.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import mlx.core as mx
import numpy as np

from mlxreflect.core.errors import UserError
from mlxreflect.core.launched import AGAIN, is_launched, leave_word, own_name
from mlxreflect.core.liveness import Liveness, Place, beat_file, this_machine, what_then

PIECE = 1 << 24  # bytes that are summed at once: two seconds over a slow link
FIRST = 4096  # bytes that go at once; what is longer takes a second collective
PAUSE_S, PAUSE_MAX_S = 0.005, 0.1  # between two meetings of one that waits
ENGINES = ("mlx", "mlx-lm")


class Post(Protocol):
    """Letters that go along with every meeting: critics' calls out, their replies back."""

    def collect(self) -> Any:
        """Returns what is to go out now, as JSON; None for nothing."""

    def deliver(self, rank: int, letters: Any) -> None:
        """Takes what another rank sent."""


class Hosts:
    """The ranks of one command; alone, where it was not launched on several hosts.

    names: of the hosts, by rank. post: what else goes along with every meeting; None: nothing.
    Each method is called by every rank, and returns when all have called it. Raises UserError where
    a host is gone.
    """

    def __init__(self, group: Any = None, liveness: Liveness | None = None) -> None:
        self.group, self.liveness = group, liveness
        self.rank = group.rank() if group else 0
        self.size = group.size() if group else 1
        self.names = ["this machine"]
        self.post: Post | None = None
        self.paces = [0.0] * self.size  # tokens that each writes a second; 0: not known yet
        # What rank 0 has the others hold, by number, as long as it holds that itself.
        self.numbers, self.held = count(1), WeakValueDictionary[int, Any]()

    @property
    def alone(self) -> bool:
        return self.size == 1

    def shown(self) -> dict[str, object]:
        """Returns the line of a header that names the hosts; none where there is but one."""
        return {} if self.alone else {"hosts": f"{self.size}: {', '.join(self.names)}"}

    def goes_on(self, command: str) -> None:
        """Tells all the command that goes on with the work, to be told where a host is gone."""
        if self.liveness:
            self.liveness.hint = what_then(command)
        if self.rank == 0:
            leave_word(AGAIN, command)
            self.lead("goes_on", command=command)

    # ---- JSON -----------------------------------------------------------------------------------

    def lead(self, order: str, **data: Any) -> None:
        """Gives the others an order; by rank 0. They wait for it in `meet`."""
        if not self.alone:
            self.meet({"do": order, **data})

    def meet(self, value: Any = None) -> list[Any]:
        """Returns the value of every rank, by rank; the post is taken along."""
        mail = self.post.collect() if self.post else None
        said = self.exchange([value, mail])
        for rank, (_, letters) in enumerate(said):
            if letters and self.post and rank != self.rank:
                self.post.deliver(rank, letters)
        return [value for value, _ in said]

    def wait(self, ready: Callable[[], bool]) -> None:
        """Returns when something is ready; by rank 0, which meets the others until then."""
        pause = PAUSE_S
        while not ready():
            self.meet()
            time.sleep(pause)
            pause = min(1.5 * pause, PAUSE_MAX_S)

    def exchange(self, value: Any) -> list[Any]:
        """Returns the JSON value of every rank, by rank."""
        if self.alone:
            return [value]
        data = json.dumps(value).encode()
        head = np.zeros(FIRST, dtype=np.uint8)
        head[:8] = np.frombuffer(len(data).to_bytes(8, "little"), dtype=np.uint8)
        begun = data[: FIRST - 8]
        head[8 : 8 + len(begun)] = np.frombuffer(begun, dtype=np.uint8)
        heads = self.collective(mx.distributed.all_gather, mx.array(head)).reshape(self.size, FIRST)
        sizes = [int.from_bytes(row[:8].tobytes(), "little") for row in heads]
        rests = self.rests(data, [max(0, size + 8 - FIRST) for size in sizes])
        found = [
            row[8 : 8 + min(size, FIRST - 8)].tobytes() + rest
            for row, size, rest in zip(heads, sizes, rests, strict=True)
        ]
        return [json.loads(each) for each in found]

    def rests(self, data: bytes, sizes: Sequence[int]) -> list[bytes]:
        """Returns what did not go at once, of every rank; each adds its own part to zeros."""
        ends = np.cumsum([0, *sizes])
        if not ends[-1]:
            return [b""] * self.size
        whole = np.zeros(int(ends[-1]), dtype=np.uint8)
        own = slice(int(ends[self.rank]), int(ends[self.rank + 1]))
        whole[own] = np.frombuffer(data[FIRST - 8 :], dtype=np.uint8)
        summed = self.collective(mx.distributed.all_sum, mx.array(whole))
        return [summed[ends[r] : ends[r + 1]].tobytes() for r in range(self.size)]

    # ---- arrays ---------------------------------------------------------------------------------

    def sum(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """Returns the sums of the arrays of all ranks, added in float32, in their own dtypes."""
        if self.alone or not arrays:
            return list(arrays)
        flat = mx.concatenate([array.reshape(-1).astype(mx.float32) for array in arrays])
        summed = mx.array(self.collective(mx.distributed.all_sum, flat))
        ends = np.cumsum([array.size for array in arrays])[:-1].tolist()
        parts = mx.split(summed, ends)
        return [
            part.reshape(array.shape).astype(array.dtype)
            for part, array in zip(parts, arrays, strict=True)
        ]

    def share(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Returns rank 0's arrays, to the last bit; what the others give is left aside."""
        if self.alone:
            return dict(arrays)
        own = dict(arrays) if self.rank == 0 else {}
        told = [[name, list(a.shape), str(a.dtype).split(".")[-1]] for name, a in own.items()]
        layout = self.exchange(told)[0]
        found: dict[str, mx.array] = {}
        for name, shape, kind in layout:
            dtype = mx.bool_ if kind == "bool" else getattr(mx, kind)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.size
            raw = own[name].reshape(-1).view(mx.uint8) if own else mx.zeros(size, dtype=mx.uint8)
            summed = mx.array(self.collective(mx.distributed.all_sum, raw))
            found[name] = own[name] if own else summed.view(dtype).reshape(shape)
        return found

    def share_files(self, files: Mapping[str, Path]) -> dict[str, bytes]:
        """Returns the bytes of rank 0's files, by name."""
        raw = {name: np.frombuffer(path.read_bytes(), dtype=np.uint8)
               for name, path in files.items()}  # fmt: skip
        shared = self.share({name: mx.array(each) for name, each in raw.items()})
        return {name: np.array(array).tobytes() for name, array in shared.items()}

    def agree(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Returns rank 0's arrays; they are sent where those of a rank are others."""
        digest = hashlib.sha256()
        for name in sorted(arrays):
            digest.update(name.encode())
            digest.update(np.array(arrays[name].reshape(-1).view(mx.uint8)).tobytes())
        alike = len(set(self.meet(digest.hexdigest()))) == 1
        return dict(arrays) if alike else self.share(arrays)

    def collective(self, operation: Any, array: mx.array) -> np.ndarray:
        """Returns the result of a collective. Raises UserError where a host is gone.

        A long sum goes in pieces: who waits for one of them knows that the others are there.
        """
        mx.eval(array)  # first: its own faults are none of the network's
        if operation is mx.distributed.all_sum and array.nbytes > PIECE:
            size = PIECE // array.dtype.size
            pieces = [array[at : at + size] for at in range(0, array.size, size)]
            return np.concatenate([self.collective(operation, piece) for piece in pieces])
        assert self.liveness is not None
        try:
            with self.liveness.waiting():
                made = operation(array, group=self.group, stream=stream())
                mx.eval(made)
        except RuntimeError as error:
            raise self.liveness.lost(str(error)) from None
        return np.array(made)


ALONE = Hosts()


@cache
def versions() -> dict[str, str]:
    """Returns the versions that must be the same everywhere; mlxreflect's names its files, too."""
    package, files = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        files.update(file.read_bytes())
    own = f"{version('mlxreflect')}+{files.hexdigest()[:8]}"
    return {"mlxreflect": own, **{name: version(name) for name in ENGINES}}


def stream() -> Any:
    """Returns where collectives run: NCCL's on the GPU, all others on the CPU."""
    return mx.gpu if "NCCL_HOST_IP" in os.environ else mx.cpu


@contextmanager
def joined() -> Iterator[Hosts]:
    """Joins the other hosts where this process was launched with them; else it stays alone.

    Rank 0 tells the others at the end that there is nothing more to do, and it alone tells a person
    what went wrong. Raises UserError where they do not have the same versions.
    """
    if not is_launched():
        yield ALONE
        return
    with Liveness(beat_file()) as liveness:
        with liveness.starting():
            group = mx.distributed.init(strict=True)
        if group.size() == 1:
            yield ALONE
            return
        hosts = Hosts(group, liveness)
        meet_all(hosts, liveness)
        yield hosts
        if hosts.rank == 0:
            hosts.lead("end")


def meet_all(hosts: Hosts, liveness: Liveness) -> None:
    """Learns who the others are. Raises UserError where their versions differ from rank 0's."""
    own = {
        "name": own_name(hosts.rank),
        "machine": this_machine(), "pid": os.getpid(), "beat": str(liveness.file),
        "versions": versions(),
    }  # fmt: skip
    found = hosts.exchange(own)
    liveness.rank = hosts.rank
    liveness.places = [
        Place(r, one["name"], one["machine"], int(one["pid"]), one["beat"])
        for r, one in enumerate(found)
    ]
    hosts.names = [place.label for place in liveness.places]
    first = found[0]["versions"]
    for rank, one in enumerate(found):
        for name, ours in first.items():
            if ours != (theirs := one["versions"].get(name)):
                raise UserError(
                    f"{hosts.names[rank]} has {name} {theirs}, and {hosts.names[0]} has {ours}",
                    f"install there what the first host has: {wanted(first, [name])}",
                )


def wanted(first: Mapping[str, str], names: Sequence[str]) -> str:
    """Returns what to install for some of the versions to be the first host's."""
    pins = " ".join(f"{name}=={first[name]}" for name in names if name in ENGINES)
    wants = [f"pip install {pins}"] if pins else []
    wants += ["mlxreflect of the same commit"] if "mlxreflect" in names else []
    wants += [f"Python {first['python']}"] if "python" in names else []
    return " and ".join(wants)
