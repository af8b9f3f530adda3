"""One call's sequences, written by several hosts: who begins what, and what came of it.

Work is handed out in small pieces. Every little while all hosts tell how much each has in hand and
how fast it writes, and from that every rank computes the same shares: so none of them waits for
a slow one, but for a moment of its last sequences. Each also gets what it will have room for until
the next time, so that short answers leave no place empty. What a sequence becomes does not depend
on who writes it: its random stream has a name of its own.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxreflect.core.hosts import Hosts

SLICE_S = 0.25, 2.0  # least and most between two meetings
STEPS = 4  # of the slowest host between two meetings: they wait for each other's step, or prompt
FIRST_SHARE = 0.5  # of what is there, handed out at first where nobody knows yet who is how fast
PIECES = 4  # that a call has for each host, at least
RECENT = 0.2  # weight of the latest slice in a host's pace


class SharedQueue:
    """The sequences of a call that no host has begun; every rank has one, and all are alike.

    `take` is called again and again, also without room and when all is handed out: the others wait
    for it, and letters of critics go along. mine: what was handed out here. advance: told how many
    sequences ended on other hosts.
    """

    def __init__(
        self, hosts: Hosts, asked: Sequence[list[int]],
        advance: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.hosts, self.advance, self.size = hosts, advance, len(asked)
        longest = max(1, len(asked) // (PIECES * hosts.size))
        runs = [list(run) for _, run in groupby(range(len(asked)), asked.__getitem__)]
        # Equal prompts together: they are read once.
        self.runs = [run[at : at + longest] for run in runs for at in range(0, len(run), longest)]
        self.mine: list[int] = []
        self.waiting: deque[list[int]] = deque()  # of `mine`: runs for which there was no room yet
        self.ended, self.tokens = 0, 0  # here, and since the last meeting
        self.before = 0  # had ended at the last meeting
        self.told = 0  # to `advance`
        self.due = self.looked = 0.0
        self.step = 0.0  # longest time between two looks since the last meeting
        self.more = bool(asked)  # sequences have not ended: the others may still wait for this rank
        self.begun = time.monotonic()

    def take(self, room: int) -> list[int]:
        """Returns sequences to begin now, of those that are handed out here; maybe none.

        room: how many may be begun here; samples of one prompt come together, also where some must
        wait for room.
        """
        now = time.monotonic()
        self.step = max(self.step, now - self.looked) if self.looked else 0.0
        idle = self.ended == len(self.mine)
        if self.more and (idle or now >= self.due):
            self.meet(room)
        self.looked = time.monotonic()
        taken: list[int] = []
        while self.waiting and len(taken) < room:
            taken += self.waiting.popleft()
        return taken

    def meet(self, room: int) -> None:
        """Tells the other hosts how it stands here, and takes what is handed out."""
        now = time.monotonic()
        pace = self.tokens / max(1e-6, now - self.begun)
        # As many places as became free since the last time will be free before the next one. At
        # first nobody knows, and answers may be short; but who is slow could give none back.
        soon = self.ended - self.before if self.looked else room * all(self.hosts.paces)
        wanted = room + soon - sum(map(len, self.waiting))
        told = self.hosts.meet([wanted, len(self.mine) - self.ended, self.ended, pace, self.step])
        rooms, held, ended, paces, steps = map(list, zip(*told, strict=True))
        self.begun = time.monotonic()
        self.tokens, self.before, self.step = 0, self.ended, 0.0
        self.due = self.begun + slice_of(steps)
        self.more = sum(ended) < self.size
        self.tell(sum(ended))
        self.learn([pace if some else 0.0 for pace, some in zip(paces, held, strict=True)])
        dealt = self.deal(rooms, held)
        given = dealt[self.hosts.rank]
        self.mine += [number for run in given for number in run]
        self.waiting += given

    def count_token(self) -> None:
        """Counts a token that was written here."""
        self.tokens += 1

    def end(self, count: int) -> None:
        """Counts sequences that have ended here."""
        self.ended += count
        self.tell(self.told + count)

    def tell(self, ended: int) -> None:
        """Tells of the sequences that have ended anywhere, as far as that is known here."""
        more, self.told = ended - self.told, max(ended, self.told)
        if self.advance and more > 0:
            self.advance(more)

    def learn(self, paces: list[float]) -> None:
        """Remembers how fast each host writes, for this call and the next ones."""
        for rank, pace in enumerate(paces):
            if pace:
                old = self.hosts.paces[rank] or pace
                self.hosts.paces[rank] = old + RECENT * (pace - old)

    def deal(self, rooms: list[int], held: list[int]) -> list[list[list[int]]]:
        """Takes what is due now off the queue; returns the runs that are each rank's.

        Each prompt goes to the host that lacks most of its share of all that is unfinished.
        """
        paces, left = self.hosts.paces, sum(map(len, self.runs))
        known = all(paces)
        total = sum(held) + left
        shares = [pace / sum(paces) if known else 1 / len(rooms) for pace in paces]
        due = left if known or any(held) else max(1, round(FIRST_SHARE * left))
        rooms, held = list(rooms), list(held)
        given: list[list[list[int]]] = [[] for _ in rooms]
        while self.runs and due > 0:
            able = [rank for rank, room in enumerate(rooms) if room > 0]
            if not able:
                break
            rank = max(able, key=lambda rank: shares[rank] * total - held[rank])
            if shares[rank] * total - held[rank] < 0 and any(held[r] for r in able):
                break  # what is left belongs to hosts that have no room at the moment
            run = self.runs.pop(0)
            rooms[rank] -= len(run)
            held[rank] += len(run)
            due -= len(run)
            given[rank].append(run)
        return given


def slice_of(steps: Sequence[float]) -> float:
    """Returns the seconds until the next meeting, by the longest step of each host."""
    return min(max(SLICE_S[0], STEPS * max(steps)), SLICE_S[1])


def agree_on_weights(hosts: Hosts, model: nn.Module) -> None:
    """Gives the model rank 0's trainable parameters, to the last bit."""
    given = hosts.agree(dict(tree_flatten(model.trainable_parameters())))
    model.update(tree_unflatten(list(given.items())))


def gathered(hosts: Hosts, written: dict[int, Any]) -> dict[int, Any]:
    """Returns what all hosts wrote, by number."""
    found: dict[int, Any] = {}
    for each in hosts.meet(sorted(written.items())):
        found |= dict(each)
    return found
