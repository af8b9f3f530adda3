"""The model taken apart: a head in chunks, stand-ins that go away again, and a probe that is clean.

That gradients are right on mlx-lm's models is in test_architectures.
"""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.architectures import SHARING, Gradients, build, furthest, plain_sum, plainly, with_lora
from support.marks import slow_but
from support.training import most_bytes

from mlxreflect.train import network as network_module
from mlxreflect.train.batches import Batch, Row, collate
from mlxreflect.train.lora import attach_full
from mlxreflect.train.network import (
    Network,
    chunk_rows,
    float32_states,
    parameters,
    standing_in,
)

WIDE = 20_000  # a vocabulary whose logits are most of a step's memory


def some_rows(vocabulary: int, lengths: list[tuple[int, int]]) -> list[Row]:
    rng = np.random.default_rng(5)
    return [
        Row(*([int(t) for t in rng.integers(0, vocabulary, n)] for n in both)) for both in lengths
    ]


ROWS = some_rows(40, [(5, 9), (3, 14), (11, 1), (7, 13)])  # 37 scored tokens
COEFFICIENTS = mx.array([1.0, -0.7, 0.4, 2.0])


def gradients(network: Network, batch: Batch) -> tuple[float, Gradients]:
    def loss(model: nn.Module) -> mx.array:
        sums = network.logps(batch, training=True).sum(axis=-1)
        return (sums * COEFFICIENTS[mx.arange(sums.size) % 4]).sum()

    return plainly(network.model, loss)


def plain_gradients(model: nn.Module) -> tuple[float, Gradients]:
    def loss(model: nn.Module) -> mx.array:
        return sum((c * plain_sum(model, row) for c, row in zip(COEFFICIENTS, ROWS, strict=True)),
                   mx.array(0.0))  # fmt: skip

    return plainly(model, loss)


# ---- the head in chunks --------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 36, 37, 1000])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "granite", "cohere2", "gemma3"])
def test_chunks_change_nothing(
    name: str, full: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With LoRA (each chunk keeps its gradient) and with a trained head (it is computed again).

    The head may be of its own (qwen2), and scale or cap its logits (the others).
    """
    kind, changes = SHARING[name]
    model = build(kind, {**changes, "tie_word_embeddings": name != "qwen2"})
    (attach_full if full else with_lora)(model)
    network, batch = Network(model), collate([(row,) for row in ROWS])
    assert batch.targets.size == 37
    assert bool(network.head_parameters()) == full
    value, expected = plain_gradients(model)
    monkeypatch.setattr(network_module, "CHUNK_ROWS", (rows, rows))
    found, chunked = gradients(network, batch)
    assert found == pytest.approx(value, rel=1e-5)
    assert furthest(chunked, expected) < 2e-5
    logps = network.logps(batch).sum(axis=-1).tolist()
    assert logps == pytest.approx([plain_sum(model, row).item() for row in ROWS], rel=1e-5)


def test_the_size_of_chunks() -> None:
    assert chunk_rows(300) == 1024
    assert chunk_rows(8_000) == 2**20 // 8_000
    assert chunk_rows(1_000_000) == 32


# Working sets of Macs with 8, 16, 64 and 128 GB.
@pytest.mark.parametrize(
    ("memory", "vocabulary", "rows"),
    [(5.7e9, 152_000, 36), (11.4e9, 152_000, 73), (51.5e9, 152_000, 330), (103e9, 152_000, 661),
     (11.4e9, 32_000, 347), (103e9, 32_000, 1024), (5.7e9, 262_000, 32)],
)  # fmt: skip
def test_a_gpu_takes_larger_chunks_by_its_memory(
    memory: float, vocabulary: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "on_cpu", lambda: False)
    monkeypatch.setattr(network_module, "device_memory", lambda: int(memory))
    assert chunk_rows(vocabulary) == rows


def test_a_logit_has_no_gradient_without_a_cotangent() -> None:
    """A loss that sees some tokens only: the others' chunks count nothing."""
    model = with_lora(build("qwen2", {}))
    network, batch = Network(model), collate([(ROWS[0],)])

    def loss(model: nn.Module) -> mx.array:
        return network.logps(batch, training=True)[0, 2:4].sum()

    row = Row(ROWS[0].prompt + ROWS[0].response[:2], ROWS[0].response[2:4])
    _, expected = plainly(model, lambda model: plain_sum(model, row))
    assert furthest(plainly(model, loss)[1], expected) < 2e-5


# ---- memory --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> Iterator[tuple[Network, Batch, int]]:
    """A model with a wide vocabulary, a batch, and the bytes of all its logits."""
    model = with_lora(build("qwen2", {"vocab_size": WIDE, "num_hidden_layers": 1}, grow=False))
    rows = some_rows(WIDE, [(4, 60)] * 40)
    yield Network(model), collate([(row,) for row in rows]), 2400 * WIDE * 4
    mx.clear_cache()


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_logits_never_exist_at_once(wide: tuple[Network, Batch, int], training: bool) -> None:
    network, batch, logits = wide

    def go() -> None:
        if training:
            gradients(network, batch)
        else:
            mx.eval(network.logps(batch))

    go()  # what is made once, is made
    assert most_bytes(go) < 0.8 * logits


# ---- what stands in for a moment, goes again -----------------------------------------------------


def bytes_of(model: nn.Module) -> dict[str, bytes]:
    return {name: bytes(memoryview(array)) for name, array in tree_flatten(model.parameters())}


def test_the_backbone_is_back_after_an_error() -> None:
    model = build("gemma3", SHARING["gemma3"][1])
    network = Network(model)
    assert network.place is not None
    owner, name = network.place
    backbone = owner[name]
    with pytest.raises(ZeroDivisionError), standing_in(network.place, mx.zeros((1, 2, 32))):
        assert owner[name] is not backbone
        assert owner.model.embed_tokens is backbone.embed_tokens  # for all else it is the same
        raise ZeroDivisionError
    assert owner[name] is backbone
    with pytest.raises(ValueError, match=r"\[\w+\]"):
        network.head(mx.zeros((2, 31)))  # one short: the head itself refuses it
    assert owner[name] is backbone


@pytest.mark.parametrize("count", [1, 100])
def test_parameters_are_back_after_an_error(count: int) -> None:
    """All of them, or a part."""
    model = with_lora(build("qwen2", {}))
    before = bytes_of(model)
    arrays = dict(tree_flatten(model.trainable_parameters()))
    other = {name: array + 1 for name, array in list(arrays.items())[:count]}
    with pytest.raises(ZeroDivisionError), parameters(model, other):
        assert {k for k, v in bytes_of(model).items() if v != before[k]} == set(other)
        raise ZeroDivisionError
    assert bytes_of(model) == before
    found = dict(tree_flatten(model.trainable_parameters()))
    assert all(found[name] is array for name, array in arrays.items())


# ---- the probe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "olmoe", "phi"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_the_probe_leaves_no_trace(name: str, training: bool, full: bool) -> None:
    model: Any = build(*SHARING[name])
    (attach_full if full else with_lora)(model)
    for _, module in model.named_modules():
        if "dropout" in module:
            module.dropout = nn.Dropout(0.5)
    model.train(training)
    mx.random.seed(9)
    expected = mx.random.uniform(shape=(3,)).tolist()
    before, trainable = bytes_of(model), set(dict(tree_flatten(model.trainable_parameters())))
    kinds = [type(module) for _, module in model.named_modules()]
    mx.random.seed(9)
    network = Network(model)
    assert mx.random.uniform(shape=(3,)).tolist() == expected
    assert network.splits and network.shares
    assert {module.training for _, module in model.named_modules()} == {training}
    assert bytes_of(model) == before
    assert set(dict(tree_flatten(model.trainable_parameters()))) == trainable
    assert [type(module) for _, module in model.named_modules()] == kinds


def test_the_probe_of_a_model_that_fails_leaves_no_trace() -> None:
    class Broken(nn.Module):
        def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
            if cache is not None:
                raise RuntimeError("no caches here")
            return x

    model: Any = build("qwen2", {})
    model.layers[1].self_attn = Broken()
    model.train()
    place = model.model
    network = Network(model)
    assert (network.splits, network.shares) == (True, False)
    assert model.model is place
    assert {module.training for _, module in model.named_modules()} == {True}


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(
    ("name", "bits"),
    slow_but(
        [("qwen2", 0), ("qwen2", 4), ("gemma2", 0), ("gemma2", 4), ("olmoe", 4), ("gpt2", 4)],
        "qwen2",
    ),
)
def test_the_probe_of_a_model_in_half_precision_is_in_float32(
    name: str, bits: int, dtype: mx.Dtype
) -> None:
    """There both ways are the same, which in half precision nobody could say."""
    kind, changes = SHARING[name]
    model: Any = build(kind, {**changes, "intermediate_size": 64, "moe_intermediate_size": 32})
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    model.set_dtype(dtype)
    plain = nn.Embedding.__call__, nn.QuantizedEmbedding.__call__
    network = Network(model)
    assert (network.shares, network.precision) == (True, dtype)
    with float32_states():
        expected, found, precision = network.both_ways()
    assert precision == mx.float32
    assert mx.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (nn.Embedding.__call__, nn.QuantizedEmbedding.__call__) == plain
    rounded, _, precision = network.both_ways()
    assert precision == dtype
    assert not mx.allclose(rounded, expected, rtol=1e-5, atol=1e-5)


class Noisy(nn.Module):
    """Attention that rounds otherwise with a cache, and far more than float32 or a bound allows.

    A GPU's kernels take another way for other lengths, too.
    """

    def __init__(self, plain: nn.Module, noise: float, always: bool) -> None:
        super().__init__()
        self.plain, self.noise, self.always = plain, noise, always

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        found = self.plain(x, mask, cache)
        if x.dtype == mx.float32 or (cache is None and not self.always):
            return found
        wave = mx.cos(mx.arange(found.size).reshape(found.shape) + (0 if cache is None else 1))
        return found + (self.noise * wave).astype(found.dtype)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("always", "shares"), [(True, True), (False, False)])
def test_rounding_is_judged_by_the_plain_pass(dtype: mx.Dtype, always: bool, shares: bool) -> None:
    """What rounds no more than the plain pass is shared; what rounds more is not."""
    model: Any = build("qwen2", {})
    model.set_dtype(dtype)
    for layer in model.layers:
        layer.self_attn = Noisy(layer.self_attn, 0.7, always)
    network = Network(model)
    network.axes = 1
    plain, found, _ = network.both_ways()
    limit = network_module.TOLERANCE[dtype]
    assert mx.abs(found - plain).max() > limit * mx.abs(plain).max()  # a bound alone would refuse
    assert (network.splits, network.shares) == (True, shares)
