"""One call's sequences, written by several hosts: who begins what, and what came of it.

Work is handed out in small pieces. A few times a second all hosts tell how much each has in hand
and how fast it writes, and from that every rank computes the same shares: so none of them waits for
a slow one, but for a moment of its last sequences. What a sequence becomes does not depend on who
writes it: its random stream has a name of its own.
"""

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxreflect.core.hosts import Hosts

SLICE_S = 0.25  # between two meetings while there is something to hand out
FIRST_SHARE = 0.5  # of what is there, handed out at first where nobody knows yet who is how fast
PIECES = 4  # that a call has for each host, at least
RECENT = 0.5  # weight of the latest slice in a host's pace


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
        self.ended, self.tokens = 0, 0  # here, and since the last meeting
        self.told = 0  # to `advance`
        self.due = 0.0
        self.more = bool(asked)  # sequences have not ended: the others may still wait for this rank
        self.begun = time.monotonic()

    def take(self, room: int) -> list[int]:
        """Returns sequences to begin now; none until the next meeting, or where others take them.

        room: how many may be begun here; samples of one prompt come together, also where some must
        wait for room.
        """
        idle = self.ended == len(self.mine)
        if not self.more or (time.monotonic() < self.due and not idle):
            return []
        now = time.monotonic()
        pace = self.tokens / max(1e-6, now - self.begun)
        told = self.hosts.meet([room, len(self.mine) - self.ended, self.ended, pace])
        self.begun = time.monotonic()
        self.tokens, self.due = 0, self.begun + SLICE_S
        ended = sum(ended for _, _, ended, _ in told)
        self.more = ended < self.size
        self.tell(ended)
        self.learn([pace if held else 0.0 for _, held, _, pace in told])
        dealt = self.deal([room for room, *_ in told], [held for _, held, *_ in told])
        given = dealt[self.hosts.rank]
        self.mine += given
        return given

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

    def deal(self, rooms: list[int], held: list[int]) -> list[list[int]]:
        """Takes what is due now off the queue, prompt by prompt; returns what is each rank's.

        Each prompt goes to the host that lacks most of its share of all that is unfinished.
        """
        paces, left = self.hosts.paces, sum(map(len, self.runs))
        known = all(paces)
        total = sum(held) + left
        shares = [pace / sum(paces) if known else 1 / len(rooms) for pace in paces]
        due = left if known or any(held) else max(1, round(FIRST_SHARE * left))
        rooms, held = list(rooms), list(held)
        given: list[list[int]] = [[] for _ in rooms]
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
            given[rank] += run
        return given


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
