"""Losses against float64 NumPy, and their gradients against finite differences."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from support.training import (
    fitting,
    log_probabilities,
    log_softmax,
    long_pairs,
    small_model,
)

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.train.batches import Group, collate, whole
from mlxreflect.train.losses import token_logps
from mlxreflect.train.network import Network
from mlxreflect.train.objectives import (
    Objective,
    imitation,
    odds_ratio,
    preference,
    reinforcement,
)

Loss = Callable[[nn.Module], mx.array]


def loss_of(network: Network, objective: Objective, share: bool = True) -> mx.array:
    """The summed loss of all items of an objective as one batch."""
    batch = collate(
        objective.items, share=share and network.shares, keep_shared=objective.keep_shared
    )
    everything = whole(dict(enumerate(objective.items)))
    return objective.loss(network.logps(batch, training=True), batch, everything)[0]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_token_logps_are_those_of_float64(dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(1)
    logits = mx.array(rng.normal(0, 6, (3, 7, 50)).astype(np.float32)).astype(dtype)
    targets = rng.integers(0, 50, (3, 7))
    exact = log_softmax(np.array(logits.astype(mx.float32), np.float64))
    expected = np.take_along_axis(exact, targets[..., None], -1)[..., 0]
    found = token_logps(logits, mx.array(targets))
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), expected, atol=3e-6, rtol=3e-7)


def test_long_sums_of_bf16_logits_are_float32() -> None:
    """A sum over 600 tokens: in bf16 it would be off by several units."""
    rng = np.random.default_rng(2)
    logits = mx.array(rng.normal(0, 1, (1, 600, 40)).astype(np.float32)).astype(mx.bfloat16)
    targets = rng.integers(0, 40, (1, 600))
    exact = log_softmax(np.array(logits.astype(mx.float32), np.float64))
    expected = np.take_along_axis(exact, targets[..., None], -1).sum()
    found = token_logps(logits, mx.array(targets)).sum(axis=-1)
    assert expected < -2000
    assert found.item() == pytest.approx(expected, abs=0.005)


def directional(loss: Loss, model: nn.Module, seed: int) -> tuple[float, float]:
    """The gradient along a random direction: by the product, and by central differences."""
    _, grads = nn.value_and_grad(model, loss)(model)
    grads, start = dict(tree_flatten(grads)), dict(tree_flatten(model.trainable_parameters()))
    assert grads.keys() == start.keys()
    rng = np.random.default_rng(seed)
    way = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in start.items()}

    def at(step: float) -> float:
        moved = [(k, v + step * mx.array(way[k])) for k, v in start.items()]
        model.update(tree_unflatten(moved))
        return float(loss(model).item())

    h = 2e-3  # central differences of the fourth order
    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    at(0.0)
    found = sum(float((np.array(grads[k], np.float64) * way[k]).sum()) for k in way)
    return found, difference


def frozen_head(model: nn.Module) -> nn.Module:
    """Only parts of the layers are trained, as with LoRA."""
    model.freeze()
    for layer in model.layers:
        layer.self_attn.q_proj.unfreeze()
        layer.mlp.down_proj.unfreeze()
        layer.input_layernorm.unfreeze()
    return model


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", ["dpo", "ipo", "exo_pair", "orpo", "sft", "grpo"])
def test_gradient_of_every_objective(name: str, share: bool) -> None:
    """Of parts of the layers alone: the head is frozen, its logits are not kept."""
    pairs, model = long_pairs(21), frozen_head(small_model(2))
    network = Network(model)
    settings = fitting(beta=0.4, smoothing=0.1 * (name != "ipo"))
    scores = [np.array([log_probabilities(model, row).sum() for row in (p.chosen, p.rejected)])
              for p in pairs]  # fmt: skip
    if name == "sft":
        objective = imitation([row for p in pairs for row in (p.chosen, p.rejected)])
    elif name == "orpo":
        objective = odds_ratio(pairs, settings.beta)
    elif name == "grpo":
        groups = [Group((p.chosen, p.rejected), (1.0, 0.2)) for p in pairs]
        rng = np.random.default_rng(22)
        old, reference = (
            [np.concatenate([log_probabilities(model, row) for row in g.rows]) for g in groups]
            for _ in range(2)
        )
        old = [o + rng.normal(0, 0.02, len(o)) for o in old]  # no ratio near the clip
        reference = [r + rng.normal(0, 0.5, len(r)) for r in reference]
        objective = reinforcement(groups, old, reference, GrpoConfig(kl=0.5))
    else:
        near = [s - np.array([1.0, -2.0]) for s in scores]
        objective = preference(pairs, near, settings, name)
    if share and name != "sft":
        assert collate(objective.items, share=True).prefix is not None
    found, difference = directional(lambda m: loss_of(network, objective, share), model, 5)
    assert found == pytest.approx(difference, rel=2e-3, abs=5e-4)
    assert abs(difference) > 0.1
