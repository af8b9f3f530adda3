"""Dropout's masks: each token has its own, whatever stands beside it."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import switch_layers
from support.architectures import SHARING, build
from support.training import fitting, rows

from mlxreflect.config.schema import LoraConfig
from mlxreflect.train.batches import Row, shape_of
from mlxreflect.train.dropout import layer_keys, masked
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.objectives import imitation
from mlxreflect.train.trainer import Trainer

WIDTH, RATE = 96, 0.3
STEP = (1, "sft", "dropout", 4)
ROWS = dict(zip((4, 0, 9), rows(3, [(5, 4), (9, 20), (3, 9)]), strict=True))
PLAIN = nn.Dropout.__call__


def layers(count: int = 1) -> Any:
    """A model of dropout layers alone, in training."""
    return nn.Sequential(*(nn.Dropout(RATE) for _ in range(count)))


def padded(part: dict[int, Row]) -> tuple[int, int]:
    """R and S of a batch of these rows."""
    return len(part), shape_of([(row,) for row in part.values()], share=False).suffix


def drawn(
    part: dict[int, Row], model: Any = None, at: int = 0, step: Any = STEP, width: int = WIDTH
) -> np.ndarray:
    """What a layer makes of ones, [R, S, width]."""
    model = model or layers()
    with masked(layer_keys(model), step, part):
        return np.array(model.layers[at](mx.ones((*padded(part), width))))


# ---- what a mask follows from --------------------------------------------------------------------


def test_a_row_has_its_mask_in_any_part_with_any_padding():
    whole = drawn(ROWS)
    for place, (i, row) in enumerate(ROWS.items()):
        (alone,) = drawn({i: row})
        assert len(alone) == padded({i: row})[1]
        assert (alone == whole[place, : len(alone)]).all()
    assert (drawn(dict(reversed(ROWS.items()))) == whole[::-1]).all()
    assert {len(drawn({i: row})[0]) for i, row in ROWS.items()} == {8, 16, 32}


def test_rows_tokens_layers_and_steps_have_masks_of_their_own():
    model = layers(2)
    first, second = drawn(ROWS, model), drawn(ROWS, model, at=1)
    later = drawn(ROWS, model, step=(*STEP[:-1], 5))
    tokens = np.concatenate([one.reshape(-1, WIDTH) for one in (first, second, later)])
    assert len(np.unique(tokens, axis=0)) == len(tokens) == 3 * first[..., 0].size


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_share_of_zeros_and_the_scale(dtype, rate):
    model: Any = nn.Sequential(nn.Dropout(rate))
    x = mx.random.normal((*padded(ROWS), 512), key=mx.random.key(1)).astype(dtype)
    with masked(layer_keys(model), STEP, ROWS):
        out, slopes = mx.vjp(model, [x], [mx.ones_like(x)])
    (out,), (slope,) = out, slopes
    assert out.dtype == slope.dtype == dtype
    kept = np.array(out.astype(mx.float32)) != 0
    expected = mx.where(mx.array(kept), x * (1 / (1 - rate)), mx.zeros_like(x))
    assert (out == expected).all().item()
    assert (slope == mx.where(mx.array(kept), 1 / (1 - rate), 0).astype(dtype)).all().item()
    assert 1 - kept.mean() == pytest.approx(rate, abs=5 * (rate / kept.size) ** 0.5)
    assert 1 - kept.mean(axis=(0, 1)) == pytest.approx(rate, abs=0.25)  # no feature is dead


def test_layers_out_of_training_and_of_rate_0_pass_all():
    model, x = layers(), mx.ones((*padded(ROWS), WIDTH))
    model.eval()
    idle: Any = nn.Sequential(nn.Dropout(0.0))
    for one in (model, idle):
        with masked(layer_keys(one), STEP, ROWS):
            assert (one(x) == x).all().item()


# ---- where tokens stand otherwise ----------------------------------------------------------------


def test_flattened_tokens_and_what_a_token_has_several_of_have_the_tokens_mask():
    model, expected = layers(), drawn(ROWS)
    shape = padded(ROWS)
    with masked(layer_keys(model), STEP, ROWS):
        flat = model(mx.ones((shape[0] * shape[1], WIDTH)))
        several = model(mx.ones((*shape, 4, 1, WIDTH)))
    assert (np.array(flat).reshape(expected.shape) == expected).all()
    assert (np.array(several) == expected[:, :, None, None]).all()


@pytest.mark.parametrize("flattened", [False, True])
def test_tokens_sorted_by_experts_have_the_tokens_mask(flattened):
    model, expected, chosen = layers(), drawn(ROWS), 2
    shape = (len(expected) * expected.shape[1],) if flattened else expected.shape[:2]
    experts = mx.random.randint(0, 4, (*shape, chosen), key=mx.random.key(2))
    with masked(layer_keys(model), STEP, ROWS):
        x, _, back = switch_layers._gather_sort(mx.ones((*shape, 1, 1, WIDTH)), experts)
        out = model(x)[back]
    found = np.array(out).reshape(*expected.shape[:2], chosen, WIDTH)
    assert (found == expected[:, :, None]).all()


def test_a_layer_of_an_unknown_shape_draws_from_names_too():
    model, x = layers(), mx.ones((7, 50, WIDTH))
    found = []
    for _ in range(2):
        with masked(layer_keys(model), STEP, ROWS):
            found.append(np.array(model(x)))
    assert (found[0] == found[1]).all()
    assert (found[0] == 0).mean() == pytest.approx(RATE, abs=0.02)


def test_all_is_as_before_however_the_block_ends():
    sort = switch_layers._gather_sort
    with masked({}, STEP, ROWS):
        assert nn.Dropout.__call__ is PLAIN
    with pytest.raises(ZeroDivisionError), masked(layer_keys(layers()), STEP, ROWS):
        assert nn.Dropout.__call__ is not PLAIN and switch_layers._gather_sort != sort
        raise ZeroDivisionError
    assert nn.Dropout.__call__ is PLAIN and switch_layers._gather_sort is sort


# ---- in training ---------------------------------------------------------------------------------

DATA = rows(1, [(12, 9), (17, 20), (9, 5), (20, 11), (5, 5), (3, 4)])


def trained(name: str, stream: tuple[int | str, ...] = STEP, **keys: Any) -> dict[str, np.ndarray]:
    """Loss and gradients of a step on all of the data, with LoRA on every layer, experts too."""
    model = build(*SHARING[name])
    attach_lora(model, LoraConfig(rank=2, scale=2.0, dropout=RATE, keys=[]), 0)
    mx.random.seed(2)
    for module in model.modules():
        if "lora_b" in module:
            module.lora_b = 0.2 * mx.random.normal(module.lora_b.shape)
    trainer, objective = Trainer(model), imitation(DATA)
    network, members = trainer.understood(objective.items), list(range(len(DATA)))
    config = fitting(**({"batch": 6} | keys))
    loss, grads, _ = trainer.gradients(network, objective, members, config, stream)
    return {"loss": np.array(loss), **{k: np.array(v) for k, v in tree_flatten(grads)}}


def apart(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference, of the largest number of its kind."""
    assert found.keys() == expected.keys()
    return max(float(abs(found[k] - expected[k]).max() / abs(expected[k]).max()) for k in expected)


# In parts of a row or two the few experts' tokens are not sorted; in the whole they are.
@pytest.mark.parametrize("name", ["qwen2", "gpt2", "olmoe", "mixtral"])
def test_a_step_is_the_same_however_it_is_divided(name):
    whole = trained(name)
    for keys in (
        {"part_tokens": 1},
        {"part_tokens": 70},
        {"batch": 2, "accumulate": 3},
        {"batch": 3, "grad_checkpoint": "yes"},
    ):
        assert apart(trained(name, **keys), whole) < 1e-4, keys
    assert apart(trained(name, (2, *STEP)), whole) > 1e-2
