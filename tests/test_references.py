"""Log-probabilities of a reference: values, batches, what is kept on disk, and its keys."""

import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers
from support.training import (
    SHAPES,
    fit_pairs,
    fitting,
    kept,
    log_probabilities,
    long_pairs,
    lora_bytes,
    lora_trainer,
    make_groups,
    make_pairs,
    pair_scores,
    rows,
    small_model,
)

from mlxreflect.core.errors import UserError
from mlxreflect.models.load import model_key
from mlxreflect.train import references as scoring
from mlxreflect.train.batches import Item, Pair, Row
from mlxreflect.train.cpu import LANES
from mlxreflect.train.lora import base_reference
from mlxreflect.train.network import Network
from mlxreflect.train.references import (
    References,
    What,
    reference_key,
    score,
    scoring_batches,
)
from mlxreflect.train.trainer import Trainer

PAIR = [Row([1, 2, 3], [4, 5]), Row([1, 2, 3], [6], mask=(True,))]
SETTINGS = fitting(lr=1e-3, batch=2)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[References]:
    references = References(tmp_path / "references.sqlite")
    yield references
    references.close()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few items each, so that there are several."""
    monkeypatch.setattr(scoring, "SCORED_TOKENS", {"cpu": 0})


class Spy:
    """Counts the batches that a network computes, and may stop after some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.stop_after = -1
        original = Network.logps

        def logps(network: Network, batch: Any, **options: Any) -> mx.array:
            if len(self.rows) == self.stop_after:
                raise KeyboardInterrupt
            if not options.get("training"):
                self.rows.append(batch.inputs.shape[0])
            return original(network, batch, **options)

        monkeypatch.setattr(Network, "logps", logps)

    def take(self) -> int:
        """Batches computed since the last time."""
        found, self.rows = len(self.rows), []
        return found


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


def trainer_with(cache: References | None, **options: Any) -> Trainer:
    trainer = lora_trainer(**options)
    trainer.references = cache
    return trainer


def items_of(pairs: list[Pair]) -> list[Item]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(a.dtype == b.dtype == np.float32 and a.tobytes() == b.tobytes()
               for a, b in zip(found, expected, strict=True))  # fmt: skip


# ---- values -------------------------------------------------------------------------------------


def test_sums_are_a_number_a_row_and_tokens_one_a_token() -> None:
    """In the items' own order, whatever the batches'; only of tokens that the loss sees."""
    trainer = lora_trainer()
    for items in (
        items_of(long_pairs(1) + make_pairs(2, 4)),
        [(row,) for row in rows(3, SHAPES)],
        [group.rows for group in make_groups(4)],
    ):
        every = [[kept(trainer.model, row) for row in item] for item in items]
        sums = trainer.score(items, trainer.trainable(), "sums")
        tokens = trainer.score(items, trainer.trainable(), "tokens")
        for logps, one, each in zip(every, sums, tokens, strict=True):
            assert one.dtype == each.dtype == np.float32
            np.testing.assert_allclose(one, [x.sum() for x in logps], atol=2e-5)
            np.testing.assert_allclose(each, np.concatenate(logps), atol=5e-6)


def test_without_what_rows_share_differences_stay() -> None:
    trainer, pairs = lora_trainer(), long_pairs(5)
    expected = pair_scores(trainer.model, pairs)
    found = np.stack(trainer.score(items_of(pairs), trainer.trainable(), "sums", False))
    np.testing.assert_allclose(found[:, 0] - found[:, 1], expected[:, 0] - expected[:, 1],
                               atol=2e-5)  # fmt: skip
    assert np.abs(found - expected).max() > 1  # some were left out


def test_long_sums_are_as_exact_as_float32_can_be() -> None:
    (row,) = rows(6, [(3, 900)])
    trainer = lora_trainer()
    ((found,),) = trainer.score([(row,)], trainer.trainable(), "sums")
    expected = log_probabilities(trainer.model, row).sum()
    assert expected < -2000
    assert found == pytest.approx(expected, abs=0.002)


# ---- batches ------------------------------------------------------------------------------------


def test_batches_are_as_large_as_so_many_tokens_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    items = items_of(make_pairs(7, 20)) + [(row,) for row in rows(8, [(2, 300), (90, 10)])]

    def longest(item: Item) -> int:
        return max(row.length for row in item)

    order = sorted(range(len(items)), key=lambda i: longest(items[i]))
    for limit in (0, 100, 2000, 10**6):
        monkeypatch.setattr(scoring, "SCORED_TOKENS", {"cpu": limit})
        parts = list(scoring_batches(items, math.inf))
        assert [i for part in parts for i in part] == order
        sizes = [sum(len(items[i]) for i in part) * longest(items[part[-1]]) for part in parts]
        for part, size in zip(parts, sizes, strict=True):
            assert sum(len(items[i]) for i in part) <= scoring.LEAST_ROWS or size <= limit
        for part, after in pairwise(parts):
            rows_ = sum(len(items[i]) for i in [*part, after[0]])
            assert rows_ * longest(items[after[0]]) > limit
            assert rows_ > scoring.LEAST_ROWS
        assert limit < 10**6 or len(parts) == 1
    assert list(scoring_batches([], math.inf)) == []
    for part in (parts := list(scoring_batches(items, 100))):
        size = sum(len(items[i]) for i in part) * longest(items[part[-1]])
        assert len(part) == 1 or size <= 100
    assert [i for part in parts for i in part] == order


# ---- kept on disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["sums", "tokens"])
def test_the_second_pass_computes_nothing(cache: References, spy: Spy, what: What) -> None:
    items = items_of(long_pairs(11) + make_pairs(12, 4))
    first = trainer_with(cache)
    plain = trainer_with(None).score(items, first.trainable(), what)
    assert spy.take() == 4
    found = first.score(items, first.trainable(), what)
    assert spy.take() == 4
    assert same(found, plain)
    assert same(first.score(items, first.trainable(), what), plain)
    # Another process, and items in another order: the same weights are the same policy.
    second = trainer_with(cache)
    assert same(second.score(items[::-1], second.trainable(), what), plain[::-1])
    assert spy.take() == 0


def test_items_that_are_there_twice(cache: References, spy: Spy) -> None:
    """In one batch and in several."""
    some = items_of(make_pairs(14, 3))
    items = [item for item in some for _ in range(5)]
    first = trainer_with(cache)
    found = first.score(items, first.trainable(), "sums")
    assert spy.take() > 1
    plain = trainer_with(None).score(some, first.trainable(), "sums")
    for each, copies in zip(plain, [found[i : i + 5] for i in (0, 5, 10)], strict=True):
        assert same(copies, [copies[0]] * 5)
        np.testing.assert_allclose(copies[0], each, rtol=1e-6)
    spy.take()
    assert same(first.score(items, first.trainable(), "sums"), found)
    assert spy.take() == 0


def test_training_with_and_without_a_cache_is_the_same(cache: References, spy: Spy) -> None:
    results = []
    for references in (None, cache, cache):
        trainer = trainer_with(references)
        reference, settings = base_reference(trainer.model), fitting(lr=1e-2, batch=2)
        steps = fit_pairs(trainer, make_pairs(13, 6), reference, settings, (1,))
        results.append(([s.loss for s in steps], lora_bytes(trainer), spy.take() > 0))
    assert results[0] == results[1]
    assert results[2] == (*results[0][:2], False)


@pytest.mark.parametrize("name", ["the adapter", "a token", "what is kept"])
def test_a_change_is_computed_anew(cache: References, spy: Spy, name: str) -> None:
    (pair,) = make_pairs(14, 3)[2:]
    items, what = items_of([pair]), "sums"
    trainer = trainer_with(cache)
    reference = trainer.trainable()
    plain = trainer.score(items, reference, what)
    spy.take()
    if name == "the adapter":
        first = min(key for key in reference if key.endswith("lora_a"))
        reference = {**reference, first: reference[first].at[0, 0].add(1e-3)}
    elif name == "a token":
        *before, last = pair.rejected.response
        items = [(pair.chosen, replace(pair.rejected, response=[*before, (last + 1) % 29]))]
    else:
        what = "tokens"
    found = trainer.score(items, reference, what)
    assert spy.take() == 1
    assert not same(found, plain)
    trainer.references = None
    assert same(trainer.score(items, reference, what), found)


def test_sums_without_what_is_shared_are_not_taken_for_whole_ones(cache: References) -> None:
    items = items_of(long_pairs(23))
    trainer, plain = trainer_with(cache), trainer_with(None)
    for keep_shared in (False, True):
        arguments = (items, trainer.trainable(), "sums", keep_shared)
        assert same(trainer.score(*arguments), plain.score(*arguments))


def test_the_reference_is_hashed_once_and_may_be_forgotten(
    cache: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = scoring.model_key
    monkeypatch.setattr(scoring, "model_key", lambda *a: calls.append(1) or original(*a))
    trainer = trainer_with(cache)
    reference = trainer.trainable()
    for number in range(3):
        fit_pairs(trainer, make_pairs(17 + number, 2), reference, SETTINGS, (1,))
    assert len(calls) == 1


def test_float32_comes_back_bit_for_bit(cache: References) -> None:
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32)
    special = [0.0, -0.0, np.finfo(np.float32).max, np.finfo(np.float32).tiny, np.inf, -np.inf]
    subnormal = np.array([1, 2, 0x007FFFFF, 0x80000001], np.uint32).view(np.float32)
    for numbers in (patterns[~np.isnan(patterns)], np.array(special, np.float32), subnormal,
                    np.array([], np.float32)):  # fmt: skip
        key = f"{len(numbers)}"
        kept = cache.put({key: numbers})
        for found in (kept[key], cache.get(key)):
            assert found is not None and found.dtype == np.float32
            assert found.tobytes() == numbers.tobytes()
    assert cache.get("x") is None and cache.put({}) == {}


def test_the_first_writers_value_stays(cache: References) -> None:
    one, other = np.array([-1.0], np.float32), np.array([-2.0], np.float32)
    cache.put({"k": one})
    found = cache.put({"k": other, "l": other})
    assert (found["k"], found["l"]) == (one, other)


def test_a_row_that_is_no_list_of_numbers(cache: References) -> None:
    cache.cache.put("k", b"abc")
    with pytest.raises(UserError, match="the reference cache is damaged"):
        cache.get("k")


def test_the_setting_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLXREFLECT_CACHE", str(tmp_path))
    assert References.open("off") is None
    for setting, path in (("", "references.sqlite"), (str(tmp_path / "a" / "b"), "a/b")):
        found = References.open(setting)
        assert found and found.cache.path == tmp_path / path and (tmp_path / path).is_file()
        found.close()


# ---- stopped ------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", range(4))
@pytest.mark.parametrize("keep_shared", [True, False])
def test_a_stopped_pass_goes_on_to_the_same_bits(
    cache: References, spy: Spy, done: int, keep_shared: bool
) -> None:
    items = items_of(long_pairs(18) + make_pairs(19, 5))
    fresh = trainer_with(None)
    plain = fresh.score(items, fresh.trainable(), "sums", keep_shared)
    assert spy.take() == 4
    first = trainer_with(cache)
    before = lora_bytes(first)
    spy.stop_after = done
    with pytest.raises(KeyboardInterrupt):
        first.score(items, first.trainable(), "sums", keep_shared)
    assert lora_bytes(first) == before
    assert spy.take() == done
    spy.stop_after = -1
    second = trainer_with(cache)
    assert same(second.score(items, second.trainable(), "sums", keep_shared), plain)
    # What was under way beside the one that stopped is done again.
    assert spy.take() == 4 - max(0, done - LANES + 1)


def next_float(path: Path) -> None:
    """Moves each number by a unit in the last place, as if it came from a batch of another size."""
    with sqlite3.connect(path) as file:
        for key, value in file.execute("SELECT key, value FROM kept").fetchall():
            moved = np.nextafter(np.frombuffer(value, "<f4"), np.float32(0)).tobytes()
            file.execute("UPDATE kept SET value = ? WHERE key = ?", (moved, key))


def test_a_pass_stopped_among_values_that_others_left(cache: References, spy: Spy) -> None:
    """Some of a batch known from other data, in other batches: stopped or not, the same bits."""
    items = items_of(make_pairs(20, 8))
    results = []
    for stopped in (False, True):
        with sqlite3.connect(cache.cache.path) as file:
            file.execute("DELETE FROM kept")
        other = trainer_with(cache)
        other.score(items[::3], other.trainable(), "sums")
        next_float(cache.cache.path)
        trainer = trainer_with(cache)
        if stopped:
            spy.take()
            spy.stop_after = 2
            with pytest.raises(KeyboardInterrupt):
                trainer.score(items, trainer.trainable(), "sums")
            spy.stop_after = -1
        results.append(trainer.score(items, trainer.trainable(), "sums"))
    assert same(results[0], results[1])
    trainer.references = None
    assert not same(results[0], trainer.score(items, trainer.trainable(), "sums"))


def test_a_model_that_is_in_training_is_scored_without_dropout() -> None:
    trainer = lora_trainer(dropout=0.5)
    items, network = items_of(make_pairs(22, 4)), Network(trainer.model)
    expected = score(network, items, "sums", True, None, "")
    trainer.model.train()
    assert same(score(network, items, "sums", True, None, ""), expected)
    assert trainer.model.training


def test_nothing_to_score() -> None:
    assert score(Network(small_model()), [], "sums", True, None, "") == []


# ---- keys ----------------------------------------------------------------------------------------


def test_each_part_makes_another_key() -> None:
    first, second = PAIR
    changed = [
        ("other", PAIR, "sum"),
        ("policy", PAIR, "mean"),
        ("policys", PAIR, "um"),
        ("policy", PAIR[::-1], "sum"),
        ("policy", PAIR[:1], "sum"),
        ("policy", [], "sum"),
        ("policy", [replace(first, prompt=[1, 2, 4]), second], "sum"),
        ("policy", [replace(first, response=[4, 6]), second], "sum"),
        ("policy", [replace(first, prompt=[1, 2], response=[3, 4, 5]), second], "sum"),
        ("policy", [replace(first, prompt=[1, 23]), second], "sum"),
        ("policy", [replace(first, response=[45]), second], "sum"),
        ("policy", [replace(first, mask=(True, True)), second], "sum"),
        ("policy", [replace(first, mask=(True, False)), second], "sum"),
        ("policy", [replace(first, mask=(False, True)), second], "sum"),
        ("policy", [first, replace(second, mask=None)], "sum"),
    ]
    keys = {reference_key(*parts) for parts in [("policy", PAIR, "sum"), *changed]}
    assert len(keys) == len(changed) + 1
    assert {len(key) for key in keys} == {64}
    heavy = tuple(replace(row, weight=3.0) for row in PAIR)  # no part of it
    assert reference_key("policy", heavy, "sum") == reference_key("policy", PAIR, "sum")


def changed_at(array: mx.array, place: int) -> mx.array:
    """The same array with its lowest bit turned at one place."""
    raw = np.array(array.reshape(-1).view(mx.uint8))
    raw[place] ^= 1
    return mx.array(raw).view(array.dtype).reshape(array.shape)


def test_each_weight_is_part_of_the_models_key(load_random: Callable[..., Any]) -> None:
    model = load_random(dequantize="no").model
    key = model_key(model, {})
    assert key == model_key(load_random(dequantize="no").model, {})
    arrays = dict(tree_flatten(model.parameters()))
    assert mx.uint32 in {array.dtype for array in arrays.values()}
    for name, array in arrays.items():
        for place in (0, array.nbytes - array.itemsize):
            model.load_weights([(name, changed_at(array, place))], strict=False)
            assert model_key(model, {}) != key, name
        model.load_weights([(name, array)], strict=False)
    assert model_key(model, {}) == key


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_native_bytes_of_every_type(dtype: mx.Dtype) -> None:
    layer = nn.Linear(8, 8)
    layer.update(tree_map(lambda a: a.astype(dtype), layer.parameters()))
    key, weight = model_key(layer, {}), layer.weight
    layer.weight = changed_at(weight, weight.nbytes - weight.itemsize)
    assert model_key(layer, {}) != key
    layer.weight = mx.contiguous(weight.T).T  # another layout, the same weights
    assert model_key(layer, {}) == key
    layer.weight = weight.reshape(4, 16)
    assert model_key(layer, {}) != key
    layer.weight = weight.view(mx.uint8)
    assert model_key(layer, {}) != key


def test_a_number_that_is_no_list_has_bytes_too() -> None:
    layer = nn.Linear(8, 8)
    layer.scalar, layer.empty = mx.array(2.0), mx.zeros((0, 3))
    key = model_key(layer, {})
    layer.scalar = mx.array(3.0)
    assert model_key(layer, {}) != key


def test_the_adapter_is_part_of_the_key(load_random: Callable[..., Any]) -> None:
    model = load_random().model
    bare = model_key(model, {})
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 2, "scale": 10.0, "dropout": 0.0})
    start: Mapping[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))
    assert start
    key = model_key(model, {})
    assert key != bare
    assert model_key(model, start) == key
    name = next(name for name in start if name.endswith("lora_b"))
    moved = {name: start[name] + 1}
    assert model_key(model, moved) != key
    model.load_weights(list(moved.items()), strict=False)
    assert model_key(model, {}) == model_key(model, moved) != key
    assert model_key(model, start) == key  # a snapshot counts in place of what is there now


def test_what_is_in_no_array_is_part_of_the_key(load_random: Callable[..., Any]) -> None:
    """LoRA's scale and RoPE's base change the numbers; training mode does not."""
    model = load_random().model
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 2, "scale": 10.0, "dropout": 0.0})
    key = model_key(model, {})
    model.train()
    assert model_key(model, {}) == key
    scaled = next(layer for _, layer in model.named_modules() if hasattr(layer, "lora_a"))
    rope = next(layer for _, layer in model.named_modules() if isinstance(layer, nn.RoPE))
    for layer, setting in ((scaled, "scale"), (rope, "base")):
        before = getattr(layer, setting)
        setattr(layer, setting, before * 2)
        assert model_key(model, {}) != key
        setattr(layer, setting, before)
    assert model_key(model, {}) == key
