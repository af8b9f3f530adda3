"""LoRA on loaded models, and adapters that mlx-lm itself loads."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from test_losses import SHAPES, rows

from mlxreflect.errors import UserError
from mlxreflect.policy import Policy, weights_hash
from mlxreflect.recipe import LoraConfig
from mlxreflect.train.lora import attach_lora, base_reference, linear_keys, save_adapter
from mlxreflect.train.trainer import Settings, Trainer

Load = Callable[..., Policy]
IDS = [[257, 40, 41, 42, 43, 258, 7, 8], [257, 99, 3, 300, 5, 258, 1, 2]]
ATTENTION = [f"self_attn.{x}_proj" for x in "qkvo"]
MLP = ["mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]


def logits_of(model: nn.Module) -> np.ndarray:
    return np.array(model(mx.array(IDS)).astype(mx.float32))


def trainable(model: nn.Module) -> dict[str, np.ndarray]:
    return {k: np.array(v) for k, v in tree_flatten(model.trainable_parameters())}


def lora_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if "lora_a" in module}


def train(policy: Policy, seed: int = 1, lr: float = 1e-2) -> Trainer:
    trainer = Trainer(policy.model)
    trainer.fit_rows(rows(1, SHAPES), Settings(lr=lr, batch=3, epochs=2), (seed,))
    return trainer


@pytest.mark.parametrize("dequantize", ["no", "yes"])
def test_an_adapter_loads_in_mlx_lm_with_the_same_logits(
    load_random: Load, tiny_random: Path, tmp_path: Path, dequantize: str
) -> None:
    policy = load_random(dequantize=dequantize)
    base = logits_of(policy.model)
    config = attach_lora(policy.model, LoraConfig(rank=4, layers=-1), 0)
    np.testing.assert_array_equal(logits_of(policy.model), base)  # lora_b begins at zero
    trainer = train(policy)
    trained = logits_of(policy.model)
    assert np.abs(trained - base).max() > 0.01
    save_adapter(tmp_path / "new" / "adapter", trainer.trainable(), config, str(tiny_random))
    loaded, _ = mlx_lm.load(str(tiny_random), adapter_path=str(tmp_path / "new" / "adapter"))
    exact = 0 if dequantize == "no" else 2e-4
    np.testing.assert_allclose(logits_of(loaded), trained, atol=exact)
    again = load_random(dequantize=dequantize, adapter=str(tmp_path / "new" / "adapter"))
    np.testing.assert_array_equal(logits_of(again.model), trained)


def test_the_config_is_what_mlx_lm_reads(load_random: Load, tmp_path: Path) -> None:
    policy = load_random()
    lora = LoraConfig(rank=3, scale=5.0, dropout=0.25, layers=1, keys=["mlp.up_proj"])
    save_adapter(
        tmp_path, dict(tree_flatten(policy.model.parameters())), attach_lora(policy.model, lora, 0),
        "some/model",
    )  # fmt: skip
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "fine_tune_type": "lora",
        "num_layers": 1,
        "lora_parameters": {"rank": 3, "scale": 5.0, "dropout": 0.25, "keys": ["mlp.up_proj"]},
        "model": "some/model",
    }


@pytest.mark.parametrize(
    ("keys", "layers", "expected"),
    [
        (ATTENTION, -1, {f"model.layers.{n}.{k}" for n in (0, 1) for k in ATTENTION}),
        (["mlp.up_proj"], 1, {"model.layers.1.mlp.up_proj"}),
        ([], -1, {f"model.layers.{n}.{k}" for n in (0, 1) for k in ATTENTION + MLP}),
        ([], 1, {f"model.layers.1.{k}" for k in ATTENTION + MLP}),
        (["self_attn.q_proj"], 2, {f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)}),
    ],
)
def test_keys_and_layers_choose_what_is_trained(
    load_random: Load, keys: list[str], layers: int, expected: set[str]
) -> None:
    model = load_random(dequantize="no").model
    attach_lora(model, LoraConfig(rank=2, keys=keys, layers=layers), 0)
    assert lora_layers(model) == expected
    assert set(trainable(model)) == {f"{n}.{x}" for n in expected for x in ("lora_a", "lora_b")}
    for name, module in model.named_modules():
        if name in expected:
            assert isinstance(module.linear, nn.QuantizedLinear)
            assert module.lora_a.shape[1] == module.lora_b.shape[0] == 2


def test_no_dropout_before_training(load_random: Load) -> None:
    """A policy that attempts right after LoRA is attached is the policy, not a noisy one."""
    model = load_random().model
    attach_lora(model, LoraConfig(rank=4, dropout=0.5), 0)
    arrays = [(k, 0.1 + v) for k, v in tree_flatten(model.trainable_parameters())]
    model.load_weights(arrays, strict=False)
    np.testing.assert_array_equal(logits_of(model), logits_of(model))


def test_the_seed_decides_the_initial_values(load_random: Load) -> None:
    def initial(seed: int, noise: int) -> dict[str, np.ndarray]:
        model = load_random().model
        mx.random.seed(noise)
        attach_lora(model, LoraConfig(rank=4), seed)
        return trainable(model)

    first, same, other = initial(1, 5), initial(1, 6), initial(2, 5)
    for name, array in first.items():
        np.testing.assert_array_equal(array, same[name])
        if name.endswith("lora_a"):
            assert np.abs(array).min() < np.abs(array).max() <= 1 / np.sqrt(array.shape[0])
            assert not np.array_equal(array, other[name])
        else:
            assert not array.any()


def test_an_unknown_key_names_the_known_ones(load_random: Load) -> None:
    model = load_random().model
    with pytest.raises(UserError) as caught:
        attach_lora(model, LoraConfig(keys=["self_attn.q_proj", "self_attn.qkv"]), 0)
    assert "self_attn.qkv" in caught.value.message
    assert all(key in caught.value.hint for key in ATTENTION + MLP)
    assert sorted(linear_keys(model)) == sorted(ATTENTION + MLP)
    assert not lora_layers(model)


def test_training_goes_on_from_an_adapter(load_random: Load, tmp_path: Path) -> None:
    policy = load_random(dequantize="no")
    config = attach_lora(policy.model, LoraConfig(rank=4, layers=1, keys=["mlp.up_proj"]), 0)
    first = train(policy)
    save_adapter(tmp_path / "a", first.trainable(), config, "tiny")
    before = trainable(policy.model)

    policy = load_random(dequantize="no", adapter=str(tmp_path / "a"))
    # Its own rank, layers and keys count, not the recipe's.
    again = attach_lora(policy.model, LoraConfig(rank=9), 0, str(tmp_path / "a"))
    assert again["lora_parameters"]["rank"] == 4
    assert lora_layers(policy.model) == {"model.layers.1.mlp.up_proj"}
    continued = trainable(policy.model)
    assert continued.keys() == before.keys()
    for name, array in continued.items():
        np.testing.assert_array_equal(array, before[name])
    frozen = {k: np.array(v.astype(mx.float32)) for k, v in tree_flatten(policy.model.parameters())}
    second = train(policy, seed=2)
    for name, array in tree_flatten(policy.model.parameters()):
        same = np.array_equal(np.array(array.astype(mx.float32)), frozen[name])
        assert same == (name not in before), name
    save_adapter(tmp_path / "b", second.trainable(), again, "tiny")
    trained = logits_of(policy.model)
    np.testing.assert_array_equal(
        logits_of(load_random(dequantize="no", adapter=str(tmp_path / "b")).model), trained
    )


def test_an_adapter_of_another_type_is_refused(load_random: Load, tmp_path: Path) -> None:
    policy = load_random()
    config = attach_lora(policy.model, LoraConfig(rank=2), 0)
    save_adapter(
        tmp_path, dict(tree_flatten(policy.model.trainable_parameters())),
        {**config, "fine_tune_type": "dora"}, "tiny",
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        attach_lora(load_random().model, LoraConfig(), 0, str(tmp_path))
    assert "dora" in caught.value.message
    assert caught.value.hint


def test_the_base_is_the_model_without_its_adapter(load_random: Load) -> None:
    policy = load_random(dequantize="no")
    base = logits_of(policy.model)
    attach_lora(policy.model, LoraConfig(rank=4), 0)
    train(policy)
    trained = trainable(policy.model)
    reference = base_reference(policy.model)
    for name, array in trainable(policy.model).items():
        np.testing.assert_array_equal(array, trained[name])  # only a proposal, nothing is changed
    assert np.abs(logits_of(policy.model) - base).max() > 0.01
    policy.model.load_weights(list(reference.items()), strict=False)
    np.testing.assert_array_equal(logits_of(policy.model), base)


def test_the_hash_of_an_adapter_sees_every_value() -> None:
    arrays = {"a": mx.array([1.0, 2.0]), "b": mx.array([[3.0], [4.0]], dtype=mx.bfloat16)}
    digest = weights_hash(arrays)
    assert len(digest) == 8
    assert digest == weights_hash(dict(reversed(arrays.items())))
    others = [
        {**arrays, "a": mx.array([1.0, 2.0000002])},
        {**arrays, "a": mx.array([2.0, 1.0])},
        {**arrays, "b": mx.array([[3.0, 4.0]], dtype=mx.bfloat16)},
        {"a": arrays["a"], "c": arrays["b"]},
        {"a": arrays["a"]},
    ]
    assert len({digest, *(weights_hash(other) for other in others)}) == 6
