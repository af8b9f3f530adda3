"""Memory: estimates against what MLX allocates, limits that hold, and recomputing that is exact."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from mlx_lm.models.cache import make_prompt_cache
from support.architectures import (
    FIVE,
    PAIRS,
    RECURRENT,
    SHARING,
    build,
    furthest,
    plain_dpo,
    plainly,
    some_items,
    taken,
    trained,
    with_lora,
)
from support.run_outputs import outputs_of_run
from support.training import fitting, lora_trainer, most_bytes, rows

from mlxreflect.models import load
from mlxreflect.models.memory import Decoding
from mlxreflect.runs.run import RunLoop
from mlxreflect.train import memory
from mlxreflect.train.batches import Item, Pair, Row, shape_of, whole
from mlxreflect.train.cpu import LANES
from mlxreflect.train.dropout import layer_keys, masked
from mlxreflect.train.memory import Footprint, memory_limit, plan, recomputed_layers
from mlxreflect.train.network import Network, parameters
from mlxreflect.train.objectives import imitation, preference
from mlxreflect.train.trainer import Trainer


def five_million(kind: str = "qwen2", adapter: str = "lora", **changes: Any) -> nn.Module:
    model = build(kind, {**FIVE, **changes}, grow=False)
    if adapter == "dora on 4 bits":
        nn.quantize(model, 64, 4, class_predicate=lambda path, _: "layers" in path and
                    path.endswith("proj"))  # fmt: skip
    return with_lora(model, dora=adapter != "lora")


# ---- estimates -----------------------------------------------------------------------------------


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "wide vocabulary": ("qwen2", {"vocab_size": 32000}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 32.0}),
    "gemma3": ("gemma3_text", {**SHARING["gemma3_text"][1], "query_pre_attn_scalar": 32.0}),
    "olmoe": ("olmoe", {**SHARING["olmoe"][1], "intermediate_size": 384}),
    "many heads": ("qwen2", {"hidden_size": 256, "num_attention_heads": 16, "head_dim": 16}),
    "half": ("qwen2", {"vocab_size": 4096}),
    "mamba2": ("mamba2", {**RECURRENT["mamba2"][1], "num_heads": 12, "state_size": 32}),
    "falcon_h1": ("falcon_h1", {"mamba_d_ssm": 192, "mamba_d_head": 32, "mamba_n_heads": 6,
                                "mamba_d_state": 32}),
    "dora": ("qwen2", {"adapter": "dora"}),
    "dora on 4 bits": ("qwen2", {"adapter": "dora on 4 bits"}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "work"), [
    *((name, (2, 62, 130, 2)) for name in KINDS),
    *((name, (2, 458, 130, 2)) for name in ("qwen2", "gemma3", "dora")),
    *((name, (4, 300, 60, 1)) for name in ("qwen2", "many heads")),
])  # fmt: skip
def test_estimates_are_within_a_factor_of_two(name: str, work: tuple[int, int, int, int]) -> None:
    kind, changes = KINDS[name]
    model = five_million(kind, **changes)
    if name == "half":
        model.set_dtype(mx.bfloat16, lambda dtype: dtype == mx.float32)
    network, items = Network(model), some_items(*work)
    footprint, shape = Footprint(model, network.vocabulary), shape_of(items, network.shares)
    for recomputed in {0, footprint.layers // 2 * (name == "qwen2"), footprint.layers}:
        estimate = footprint.bytes(shape, recomputed)
        measured = taken(model, network, items, recomputed)
        assert 0.5 < estimate / measured < 2, (recomputed, estimate, measured)


def test_what_an_estimate_is_made_of() -> None:
    """Numbers of the model's, also where it stands inside another one, and of its experts."""
    for name, heads in (("qwen2", 4), ("gemma3", 4), ("gpt2", 4), ("olmoe", 4)):
        model = build(*SHARING[name])
        footprint = Footprint(model, 40)
        assert (footprint.heads, footprint.hidden) == (heads, 32)
    dense, experts = (Footprint(build(*SHARING[name]), 40).width for name in ("qwen2", "olmoe"))
    assert dense == 32 + 2 * 16 + 32 + 2 * 48 + 32
    assert experts == 32 + 2 * 16 + 32 + 4 + 2 * (2 * 48 + 32)  # two of the four
    lora = Footprint(with_lora(build("qwen2", {})), 40)
    assert lora.width == dense


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_weights_under_dora_are_counted(packed: bool) -> None:
    """Each time that a layer is run it makes packed weights plain, and keeps them."""
    changes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4,
               "head_dim": 64, "num_hidden_layers": 3}  # fmt: skip
    model = five_million(adapter="dora on 4 bits" if packed else "dora", **changes)
    footprint = Footprint(model, 40)
    size = 256 * (256 + 2 * 128 + 256 + 3 * 1024)
    assert (footprint.dora, footprint.packed) == (size, size * packed)
    network, items = Network(model), some_items(1, 20, 3)
    shape = shape_of(items, network.shares)
    for recomputed in (0, 1, 3):
        estimate = footprint.bytes(shape, recomputed)
        measured = taken(model, network, items, recomputed)
        assert 0.5 < estimate / measured < 2, (recomputed, estimate, measured)
    shared = Decoding(model).shared
    cache = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, 4), mx.int32), cache=cache))
    measured = most_bytes(lambda: mx.eval(model(mx.zeros((1, 1), mx.int32), cache=cache)))
    assert 0.4 * shared < measured < 1.5 * shared
    lora = Decoding(five_million(**changes))
    assert lora.shared == 0
    room = 3 * lora.bytes(1, 9, 9)
    assert Decoding(model).batch(8, 9, 9, room + shared) == lora.batch(8, 9, 9, room) == 3


def test_estimates_grow_with_what_they_are_of() -> None:
    model = build("qwen2", {"num_hidden_layers": 4})
    footprint = Footprint(model, 40)
    sizes = [footprint.bytes(shape_of(some_items(n, 40, 30), True)) for n in (1, 2, 4)]
    assert sizes == sorted(sizes)
    shape = shape_of(some_items(4, 40, 30), True)
    falling = [footprint.bytes(shape, n) for n in range(5)]
    assert falling == sorted(falling, reverse=True)
    assert footprint.layers_to_recompute(shape, falling[0]) == 0
    assert footprint.layers_to_recompute(shape, falling[2]) == 2
    assert footprint.layers_to_recompute(shape, falling[2] - 1) == 3
    assert footprint.layers_to_recompute(shape, 1) == 4


# ---- limits --------------------------------------------------------------------------------------


def planned(model: nn.Module, items: list[Item], **changes: Any) -> tuple[list[list[int]], int]:
    settings = fitting(lr=1.0, batch=8, **changes)
    parts, recompute = plan(dict(enumerate(items)), True, False, Footprint(model, 40), settings)
    assert all(part == whole({i: items[i] for i in part}) for part in parts)
    return [list(part) for part in parts], recompute


def test_a_small_batch_is_left_alone() -> None:
    model, items = build("qwen2", {}), some_items(4, 20, 10)
    halves = [[0, 1], [2, 3]]  # one for each lane
    assert planned(model, items) == (halves, 0)
    assert planned(model, items, grad_checkpoint="yes") == (halves, 2)
    assert planned(model, some_items(4, 8, 4)) == ([[0, 1, 2, 3]], 0)  # too small for that
    assert planned(model, items, grad_checkpoint="no", memory_gb=1e-6) == (
        [[0], [1], [2], [3]], 0,
    )  # fmt: skip


def test_alike_lengths_go_together() -> None:
    """Rows in the order of anything but their length are mostly padding."""
    lengths = [int(n) for n in np.random.default_rng(9).integers(4, 200, 128)]
    items = [(Row([1], [2] * length),) for length in lengths]
    parts, _ = planned(build("qwen2", {}), items)
    assert [lengths[i] for part in parts for i in part] == sorted(lengths)


def test_a_limit_splits_first_and_then_recomputes() -> None:
    model, items = build("qwen2", {}), some_items(4, 20, 10)
    footprint = Footprint(model, 40)

    def needed(count: int, recomputed: int = 0) -> float:
        return LANES * (footprint.bytes(shape_of(items[:count], True), recomputed) + 1) / 1e9

    assert planned(model, items, memory_gb=needed(2)) == ([[0, 1], [2, 3]], 0)
    assert planned(model, items, memory_gb=needed(1)) == ([[0], [1], [2], [3]], 0)
    assert planned(model, items, memory_gb=needed(1, 1))[1] == 1
    assert planned(model, items, memory_gb=needed(1, 2))[1] == 2
    assert planned(model, items, memory_gb=1e-9) == ([[0], [1], [2], [3]], 2)


def test_a_group_is_split_as_far_as_it_has_to_be() -> None:
    """By its rows, once all layers are recomputed; of several groups, one group after the other."""
    model, items = build("qwen2", {}), some_items(2, 20, 40, rows=5)
    footprint = Footprint(model, 40)

    def parts(rows: int) -> list[list[tuple[int, int, int]]]:
        needed = footprint.bytes(shape_of([items[0][:rows]], True), 2)
        settings = fitting(lr=1.0, batch=8, memory_gb=LANES * (needed + 1) / 1e9)
        found, recompute = plan(dict(enumerate(items)), True, True, footprint, settings)
        assert recompute == 2
        return [[(i, rows.start, rows.stop) for i, rows in part.items()] for part in found]

    assert parts(5) == [[(0, 0, 5)], [(1, 0, 5)]]
    assert parts(3) == [[(i, *rows)] for i in (0, 1) for rows in ((0, 2), (2, 5))]
    alone = [[(i, row, row + 1)] for i in (0, 1) for row in range(5)]
    assert parts(1) == alone


@pytest.mark.parametrize("asked", [0, 100, 40])
def test_a_part_has_so_many_tokens_at_most(asked: int) -> None:
    """At once: rows go on from a prompt that is run before them. Rows of a pair stay together."""
    items, footprint = some_items(3, 64, 32, rows=4), Footprint(build("qwen2", {}), 40)
    settings = fitting(lr=1.0, batch=8, memory_gb=1.0, part_tokens=asked)
    for splits in (True, False):
        found, recompute = plan(dict(enumerate(items)), True, splits, footprint, settings)
        taken = [[items[i][rows] for i, rows in part.items()] for part in found]
        assert recompute == 0 and sum(len(rows) for part in taken for rows in part) == 12
        # Two of 32 tokens after a prompt of 64: one alone would be 96 at once.
        few = {(2,)} if splits else {(4,)}
        assert {tuple(map(len, part)) for part in taken} == (few if asked else {(4,), (4, 4)})


@pytest.mark.parametrize(("metal", "cpu", "most"), [(True, False, 2048), (False, False, math.inf),
                                                    (True, True, math.inf)])  # fmt: skip
def test_only_a_macs_gpu_has_a_display_to_draw(
    metal: bool, cpu: bool, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "on_cpu", lambda: cpu)
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    assert memory.most_tokens(0) == most
    assert memory.most_tokens(300) == 300


def test_limits_of_the_device() -> None:
    assert memory_limit(0.5) == 500_000_000
    assert memory_limit(0) == memory.CPU_BYTES


@pytest.mark.slow
def test_memory_falls_with_the_limit() -> None:
    model, items = five_million(num_hidden_layers=4), some_items(4, 150, 40)
    trainer, everything = Trainer(model), list(range(4))
    network = trainer.understood(items)
    limits, peaks = (0.3, 0.06, 0.03), []
    for memory_gb in limits:
        settings = fitting(lr=1e-3, batch=4, memory_gb=memory_gb)
        objective = preference([Pair(*item) for item in items], None, settings, settings.objective)
        go = partial(trainer.gradients, network, objective, everything, settings, (1,))
        go()  # what is made once, is made
        peaks.append(most_bytes(go))
    assert peaks[1] < 0.5 * peaks[0]
    assert peaks[2] < 0.7 * peaks[1]
    assert all(peak < 1e9 * limit for peak, limit in zip(peaks, limits, strict=True)), peaks


# ---- recomputing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "gemma4_text", "mixtral"])
def test_any_number_of_layers_can_be_recomputed(name: str) -> None:
    """Beginnings that are shared, and run in parts, included."""
    kind, changes = SHARING[name]
    model = with_lora(build(kind, changes if "layer_types" in changes else
                            {**changes, "num_hidden_layers": 3}))  # fmt: skip
    trainer = Trainer(model)
    trainer.understood([]).stride = 16
    settings = fitting(lr=1e-3, batch=4, beta=0.3, logps="mean", nll=0.4)
    objective = preference(PAIRS, None, settings, settings.objective)
    value, expected = plainly(model, plain_dpo([[0.0, 0.0]] * 4, settings))
    for count in range(len(model.layers) + 1):
        with pytest.MonkeyPatch.context() as patch:
            parts = [whole(dict(enumerate(objective.items)))]
            patch.setattr(trainer, "plan", lambda *_, parts=parts, count=count: (parts, count))
            found, gradients, batches = trained(trainer, objective, settings)
        assert batches[0].prefix is not None
        assert found == pytest.approx(value, rel=1e-5)
        assert furthest(gradients, expected) < 1e-4, count


class Counting(qwen2.MLP):
    """Counts how often it is run."""

    runs = 0

    def __call__(self, x: mx.array) -> mx.array:
        Counting.runs += 1
        return super().__call__(x)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_only_the_first_layers_run_twice(count: int) -> None:
    model = with_lora(build("qwen2", {"num_hidden_layers": 3}))
    for layer in model.layers:
        layer.mlp.__class__ = Counting
    Counting.runs, original = 0, qwen2.TransformerBlock.__call__
    with recomputed_layers(model, count):
        plainly(model, lambda model: model(mx.array([[1, 2, 3]])).sum())
    assert Counting.runs == 3 + count
    assert qwen2.TransformerBlock.__call__ is original


def test_patches_go_however_the_block_ends() -> None:
    model = build("qwen2", {})
    original = qwen2.TransformerBlock.__call__
    with recomputed_layers(model, 2):
        patched = qwen2.TransformerBlock.__call__
        with recomputed_layers(model, 2):
            assert qwen2.TransformerBlock.__call__ is patched is not original
        assert qwen2.TransformerBlock.__call__ is patched
    with pytest.raises(ZeroDivisionError), recomputed_layers(model, 2):
        raise ZeroDivisionError
    assert qwen2.TransformerBlock.__call__ is original


@pytest.mark.parametrize("count", [0, 1, 2])
def test_dropout_draws_the_same_again(count: int) -> None:
    """The slope along the gradient is its squared length, so no layer has drawn anew."""
    model = with_lora(build("qwen2", {}))
    for _, module in model.named_modules():
        if "dropout" in module:
            module.dropout = nn.Dropout(0.3)
    model.train()
    row = Row([1, 5, 9, 2], [7, 7, 3, 4, 1])
    tokens = mx.array([[*row.prompt, *row.response]])
    masks = masked(layer_keys(model), (1, "step"), {0: row})

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).sum()

    with masks, recomputed_layers(model, count):
        _, gradients = plainly(model, loss)
    arrays = dict(tree_flatten(model.trainable_parameters()))
    squared = sum(mx.square(g).sum().item() for g in gradients.values())
    values = []
    for sign in (1, -1):
        moved = {k: v + sign * 1e-4 * gradients[k] for k, v in arrays.items()}
        again = masked(layer_keys(model), (1, "step"), {0: row})
        with again, parameters(model, moved), recomputed_layers(model, count):
            values.append(loss(model).item())
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(squared, rel=2e-3)


# ---- what is freed -------------------------------------------------------------------------------


def held() -> int:
    return int(mx.get_active_memory() + mx.get_cache_memory())


# With a cache as large as a GPU's, for the CPU's own is 32 MB.
@pytest.mark.slow
def test_300_steps_of_differing_shapes_hold_what_the_first_ones_do() -> None:
    limit = mx.set_cache_limit(1 << 34)
    try:
        rng = np.random.default_rng(0)
        shapes = [(int(a), int(b)) for a, b in rng.integers(2, 120, (300, 2))]
        trainer = lora_trainer()
        steps = trainer.train(imitation(rows(3, shapes)), fitting(lr=1e-3, batch=1), (1,))
        sizes = [held() for _ in steps]
    finally:
        mx.set_cache_limit(limit)
        mx.clear_cache()
    assert len(sizes) == 300
    assert max(sizes) <= 1.3 * max(sizes[:10])


@pytest.mark.slow
def test_30_waves_of_a_run_hold_what_the_first_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, commit = [], RunLoop.commit

    def weighed(loop: RunLoop, *given: Any) -> None:
        commit(loop, *given)
        sizes.append(held())

    monkeypatch.setattr(RunLoop, "commit", weighed)
    settings = {
        "task.limit": 240, "r3.wave": 8, "r3.epochs": 1, "policy.batch": 8, "train.batch": 4,
        "eval.limit": 20,
    }  # fmt: skip
    limit = mx.set_cache_limit(1 << 34)
    try:
        outputs_of_run("quickstart", settings, tmp_path / "run")
    finally:
        mx.set_cache_limit(limit)
        mx.clear_cache()
    assert len(sizes) >= 30
    assert max(sizes[5:]) <= 1.3 * min(sizes[:5])


# A stand-in for Metal: what MLX is told there, by a fake that takes no more than it has.
@pytest.mark.parametrize(
    ("cache", "wired", "told"),
    [
        ("auto", "auto", (10**9, 10**10)),
        (2.0, 4.0, (2 * 10**9, 4 * 10**9)),
        (0.5, 99.0, (5 * 10**8, 10**10)),
    ],
)
def test_a_gpu_is_told_both_limits(
    cache: float | str, wired: float | str, told: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    monkeypatch.setattr(load, "on_cpu", lambda: False)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    size = {"max_recommended_working_set_size": 10**10}
    monkeypatch.setattr(mx, "device_info", lambda: size)
    monkeypatch.setattr(mx, "set_cache_limit", heard.append)
    monkeypatch.setattr(mx, "set_wired_limit", heard.append)
    load.limit_memory(cache, wired)
    assert tuple(heard) == told


def test_the_cpu_keeps_its_own_limits_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    monkeypatch.setattr(mx, "set_cache_limit", heard.append)
    monkeypatch.setattr(mx, "set_wired_limit", heard.append)
    load.limit_memory()
    assert heard == []
    load.limit_memory(0.25, 1.0)
    assert heard == [25 * 10**7]
