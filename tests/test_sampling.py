"""Each sequence's own random stream: a completion follows from its number, not from its batch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.marks import slow_but

from mlxreflect.config.schema import PolicyConfig, Sampling
from mlxreflect.core.seeds import seed_for
from mlxreflect.models import policy as module
from mlxreflect.models.load import load_policy
from mlxreflect.models.policy import Completion, Policy, SeededBatch, Waiting, to_the_end
from mlxreflect.models.sampling import Draw

PLAIN: dict[str, Any] = {
    "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16, "batch": 64, "seed": ("test", 1),
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cool": {"temperature": 0.6},
    "top_p": {"top_p": 0.8},
    "top_k": {"sampling": Sampling(top_k=20)},
    "min_p": {"sampling": Sampling(min_p=0.3)},
    "all three": {"top_p": 0.9, "sampling": Sampling(top_k=40, min_p=0.1)},
    "penalties": {"sampling": Sampling(repetition_penalty=1.3, presence_penalty=0.5)},
    "stop": {"stop": ["a", "e", "0"], "max_new_tokens": 40},
}


@pytest.fixture(scope="module")
def policy(tiny_random: Path) -> Policy:
    """In float32 throughout; one in ten of its tokens ends."""
    loaded = load_policy(PolicyConfig(model=str(tiny_random), dequantize="yes"))
    loaded.eos = loaded.eos | set(range(60, 110))
    return loaded


def prompts() -> list[list[int]]:
    """Of 1 to 40 tokens: the first and the last also alike, and two of one token."""
    rng = np.random.default_rng(1)
    asked = [rng.integers(0, 500, 1 + (7 * i) % 40).tolist() for i in range(8)]
    return [*asked, asked[0], asked[7], asked[7]]


def ask(policy: Policy, **changes: Any) -> list[Completion]:
    return policy.generate(prompts(), **{**PLAIN, "samples": 3, **changes})


@pytest.mark.parametrize("way", slow_but(WAYS, "plain", "top_k"))
def test_a_completion_does_not_depend_on_the_batch(policy: Policy, way: str) -> None:
    together = ask(policy, **WAYS[way])
    assert len({tuple(one.token_ids) for one in together}) > 25  # of 33: some have a token or two
    assert len({len(one.token_ids) for one in together}) > 3  # they end, and begin, at their times
    for batch in (1, 2, 5):
        assert ask(policy, **WAYS[way], batch=batch) == together


class Handed(Waiting):
    """Hands out what it was given: a portion a call, however much room there is."""

    def __init__(self, portions: Sequence[Sequence[int]]) -> None:
        self.portions = [list(portion) for portion in portions]

    @property
    def more(self) -> bool:
        return bool(self.portions)

    def take(self, room: int) -> list[int]:
        return self.portions.pop(0)


EVERY = range(33)
TIMINGS: dict[str, list[list[int]]] = {
    "all at once": [list(EVERY)],
    "one by one": [[i] for i in EVERY],
    "backwards": [[i] for i in reversed(EVERY)],
    "nothing at times": [*[[]] * 2, [5, 4], *[[]] * 3, [0], *[[]] * 40, [*range(6, 33), 1, 3, 2]],
    "halves, the even ones first": [list(EVERY[::2]), [], list(EVERY[1::2])],
}


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("batch", [3, 64])
def test_a_completion_does_not_depend_on_when_it_was_begun(
    policy: Policy, timing: str, batch: int
) -> None:
    queue = Handed(TIMINGS[timing])
    assert ask(policy, queue=queue, batch=batch) == ask(policy)
    assert not queue.more


def test_a_shared_queue_gives_each_its_part(policy: Policy) -> None:
    """Returns, and counts, what was handed out here alone; it is what one would have got alone."""
    together = ask(policy)
    for mine in ([7], [32, 0, 11], []):
        before = policy.tokens_generated
        found = ask(policy, queue=Handed([mine]))
        assert found == [together[i] for i in sorted(mine)]
        assert policy.tokens_generated - before == sum(len(one.token_ids) for one in found)


def test_what_the_local_queue_hands_out() -> None:
    """In order; neighbours with one prompt together, and else no more than there is room for."""
    queue = Waiting([[1], [1], [1], [2], [3], [3], [1]])
    assert queue.more and queue.take(0) == []
    assert [queue.take(n) for n in (1, 2, 9)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert not queue.more and queue.take(5) == []


def test_a_batch_holds_no_more_than_it_may(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, original = list[int](), SeededBatch.following

    def following(rows: SeededBatch) -> list[tuple[int, int, str | None]]:
        sizes.append(rows.size)
        return original(rows)

    monkeypatch.setattr(SeededBatch, "following", following)
    ask(policy, batch=7, queue=Handed([EVERY]))
    assert max(sizes) == 7


def test_seeds_and_numbers_name_streams(policy: Policy) -> None:
    """Equal prompts differ by their numbers, equal numbers by their seeds; none moves MLX's own."""
    state = mx.random.state[0].tolist()
    first, second = (ask(policy, seed=("test", seed), max_new_tokens=40) for seed in (1, 2))
    assert mx.random.state[0].tolist() == state
    of_one = [one.token_ids for one in first if one.prompt_tokens == len(prompts()[7])]
    assert len(set(map(tuple, of_one))) > 6
    same = sum(a.token_ids == b.token_ids for a, b in zip(first, second, strict=True))
    assert same < 6


def test_two_that_write_in_turn_do_not_meet(policy: Policy) -> None:
    """As `chat` does, where each would otherwise draw on in the other's stream."""
    alone = policy.generate(prompts()[:2], **PLAIN)

    def in_turn() -> Iterator[list[Completion]]:
        writing = [policy.steps(prompts()[:2], **PLAIN) for _ in range(2)]
        while writing:
            for one in list(writing):
                try:
                    next(one)
                except StopIteration as end:
                    writing.remove(one)
                    yield end.value

    assert list(in_turn()) == [alone, alone]


# ---- the draw itself -----------------------------------------------------------------------------

SCORES = np.random.default_rng(3).normal(0, 1.5, 30).astype(np.float32)


def logprobs(rows: int) -> mx.array:
    return mx.broadcast_to(nn.log_softmax(mx.array(SCORES)), (rows, len(SCORES)))


def test_the_key_of_a_token() -> None:
    """Token t of sequence i: MLX's key of the hash + t, whichever rows stand beside it."""
    draw = Draw(("a", 3), 0.7, 1.0, Sampling())
    for t, rows in enumerate(([4, 0, 9], [9, 4], [4])):
        draw.rows = rows
        drawn = draw(logprobs(len(rows))).tolist()
        noise = mx.random.gumbel((30,), key=mx.random.key(seed_for("a", 3, 4) + t))
        assert drawn[rows.index(4)] == mx.argmax(logprobs(1)[0] / 0.7 + noise).item()


def over_sequences(draw: Draw, count: int) -> list[int]:
    draw.rows = range(count)
    return draw(logprobs(count)).tolist()


def over_tokens(draw: Draw, count: int) -> list[int]:
    draw.rows = [0]
    return [int(draw(logprobs(1)).item()) for _ in range(count)]


@pytest.mark.parametrize("drawn", [over_sequences, over_tokens])
@pytest.mark.parametrize(
    ("temperature", "top_k", "kept"), slow_but([(1.0, 0, 30), (0.7, 0, 30), (1.3, 6, 6)], "1.3")
)
def test_tokens_follow_their_distribution(
    drawn: Callable[[Draw, int], list[int]], temperature: float, top_k: int, kept: int
) -> None:
    """Chi-square of first tokens of many sequences, and of many tokens of one."""
    n = 6000
    found = drawn(Draw(("chi", 1), temperature, 1.0, Sampling(top_k=top_k)), n)
    best = np.argsort(-SCORES)[:kept]
    shares = np.exp(SCORES[best].astype(np.float64) / temperature)
    expected = n * shares / shares.sum()
    counts = np.bincount(found, minlength=len(SCORES))
    assert counts.sum() == counts[best].sum() == n
    chi2 = ((counts[best] - expected) ** 2 / expected).sum()
    assert abs(chi2 - (kept - 1)) < 4 * np.sqrt(2 * (kept - 1))


def test_neighbouring_tokens_and_sequences_are_independent() -> None:
    """Of pairs drawn one after another, and side by side, as many are equal as chance makes."""
    n = 4000
    shares = np.exp(SCORES.astype(np.float64))
    same = float(((shares / shares.sum()) ** 2).sum())
    for drawn in (over_sequences, over_tokens):
        found = np.array(drawn(Draw(("pairs",), 1.0, 1.0, Sampling()), n))
        equal = float((found[1:] == found[:-1]).mean())
        assert abs(equal - same) < 4 * np.sqrt(same * (1 - same) / n)


def test_the_noise_of_a_token_is_that_of_its_id() -> None:
    """So what top_k leaves of 25 is drawn alike wherever the others would not have been drawn."""
    every, few = (over_sequences(Draw((5,), 1.0, 1.0, Sampling(top_k=k)), 500) for k in (0, 25))
    worst = set(np.argsort(SCORES)[:5].tolist())
    assert any(token in worst for token in every)
    assert all(a == b for a, b in zip(every, few, strict=True) if a not in worst)


def test_temperature_zero_draws_nothing() -> None:
    draw = Draw((1,), 0.0, 0.5, Sampling(top_k=3, min_p=0.5))
    assert set(over_sequences(draw, 8)) == {int(SCORES.argmax())}
    assert not draw.following


# ---- what mlx-lm's BatchGenerator would do -------------------------------------------------------


def test_long_prompts_are_read_in_steps_apart_from_short_ones(
    policy: Policy, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(policy)
    monkeypatch.setattr(module, "CHUNK", 12)
    for samples in (1, 3):
        calls.clear()
        found = ask(policy, samples=samples, max_new_tokens=16)
        assert samples == 1 or found == expected
        assert max(columns for _, columns in calls) == 12
        # Of each dozen of tokens by itself: 1 to 11, 12 to 23, 24 to 35, and 36.
        assert sum(rows * columns for rows, columns in calls if columns > 1) < 8 * 36


@pytest.mark.parametrize("whole", [True, False])
def test_the_wired_limit_is_put_back(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Metal alone has one: it holds while tokens are generated, and also ends with what stops."""
    limits = list[int]()
    monkeypatch.setattr(module, "maybe_set_recommended_wired_limit", lambda: 7)
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    steps = policy.steps(prompts(), **PLAIN)
    next(steps)
    assert not limits
    if whole:
        to_the_end(lambda: steps)()
    else:
        steps.close()
    assert limits == [7]
