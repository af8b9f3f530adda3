"""How the sequences of one call are dealt out to several hosts."""

import random
from collections import Counter
from itertools import chain
from types import SimpleNamespace

import pytest

from mlxreflect.models.sharing import SharedQueue, gathered, slice_of


class Meeting:
    """Ranks that meet in one process: what each tells is set, and read by all."""

    def __init__(self, size):
        self.told = [None] * size
        self.paces = [[0.0] * size for _ in range(size)]
        self.asked = list[list[float]]()

    def meet(self, value):
        self.asked.append(value)
        return self.told

    def host(self, rank):
        return SimpleNamespace(
            rank=rank, size=len(self.told), paces=self.paces[rank], meet=self.meet
        )


def play(asked, paces, batch, seed=0):
    """Plays a call: in each slice host r writes paces[r] sequences' worth; returns who had what."""
    size, rng = len(paces), random.Random(seed)
    meeting = Meeting(size)
    queues = [SharedQueue(meeting.host(rank), asked) for rank in range(size)]
    held = [list[int]() for _ in paces]
    had = [list[int]() for _ in paces]
    before = [0] * size
    for _ in range(10_000):
        if not queues[0].more:
            break
        ended = [len(had[r]) - len(held[r]) for r in range(size)]
        rooms = [max(0, batch - len(mine)) for mine in held]
        waiting = [sum(map(len, queue.waiting)) for queue in queues]
        meeting.told = [
            [rooms[r] + ended[r] - before[r] - waiting[r], len(held[r]) + waiting[r], ended[r],
             paces[r] if had[r] else 0.0, 0.0]
            for r in range(size)
        ]  # fmt: skip
        before = ended
        for rank, queue in enumerate(queues):
            queue.due, queue.ended = 0.0, ended[rank]
            for room in (rooms[rank], *[1] * rng.randint(0, paces[rank])):
                mine = queue.take(room)
                held[rank] += mine
                had[rank] += mine
                queue.due = float("inf")  # no other meeting in this slice
                if held[rank]:
                    held[rank].pop(rng.randrange(len(held[rank])))
    assert not any(queue.more for queue in queues)
    return had


@pytest.mark.parametrize("paces", [[4, 4], [6, 2], [5, 3, 1], [3]])
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("samples", [1, 3])
def test_each_sequence_is_begun_once_and_in_order(paces, batch, samples):
    asked = [[i] for i in range(41) for _ in range(samples)]
    for seed in range(5):
        had = play(asked, paces, batch, seed)
        assert sorted(chain.from_iterable(had)) == list(range(len(asked)))
        assert all(mine == sorted(mine) for mine in had)


def test_a_slow_host_gets_less():
    asked = [[i] for i in range(400)]
    fast, slow = (len(mine) for mine in play(asked, [12, 4], 16))
    assert 2.5 < fast / slow < 3.5


def test_samples_of_a_prompt_stay_together_unless_there_are_few_prompts():
    for mine in play([[i] for i in range(60) for _ in range(4)], [4, 4], 16):
        assert set(Counter(number // 4 for number in mine).values()) == {4}
    assert [len(mine) for mine in play([[0]] * 64, [4, 4], 64)] == [32, 32]


def test_what_others_ended_is_told():
    meeting, told = Meeting(2), list[int]()
    queue = SharedQueue(meeting.host(0), [[i] for i in range(30)], told.append)
    meeting.told = [[2, 0, 0, 0.0, 0.0], [2, 0, 0, 0.0, 0.0]]
    assert queue.take(2) == [0, 2]
    queue.tokens += 11
    queue.end(1)
    queue.due = 0.0
    meeting.told = [[1, 1, 1, 5.0, 0.1], [2, 0, 2, 9.0, 0.1]]
    queue.take(1)
    assert told == [1, 2]
    assert meeting.paces[0] == [5.0, 0.0]


def test_a_place_that_becomes_free_between_two_meetings_is_filled():
    """With as many sequences as ended in the slice before."""
    meeting = Meeting(2)
    queue = SharedQueue(meeting.host(0), [[i] for i in range(60)])
    meeting.told = [[4, 0, 0, 0.0, 0.0], [4, 0, 0, 0.0, 0.0]]
    assert queue.take(4) == [0, 2, 4, 6]
    queue.end(3)
    assert queue.take(3) == []  # nobody knew of them
    queue.due, meeting.asked = 0.0, []
    meeting.told = [[6, 1, 3, 9.0, 0.0], [6, 1, 3, 9.0, 0.0]]
    assert queue.take(3) == [8, 10, 12]
    assert meeting.asked[0][:3] == [3 + 3, 1, 3]
    queue.end(2)
    assert queue.take(1) == [14]  # without a meeting
    assert queue.take(5) == [16, 18]
    assert len(meeting.asked) == 1


def test_hosts_with_long_steps_meet_less_often():
    assert slice_of([0.001, 0.02]) == 0.25
    assert slice_of([0.001, 0.3]) == pytest.approx(1.2)
    assert slice_of([11.0, 0.1]) == 2.0


def test_what_all_wrote_is_brought_together():
    meeting = Meeting(2)
    meeting.told = [[[1, ["a", "stop"]]], [[0, ["b", "length"]], [2, ["c", "stop"]]]]
    found = gathered(meeting.host(0), {1: ["a", "stop"]})
    assert found == {0: ["b", "length"], 1: ["a", "stop"], 2: ["c", "stop"]}
