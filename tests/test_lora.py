"""LoRA and full fine-tuning of loaded models, and adapters that mlx-lm itself loads."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file
from support.architectures import RECURRENT, SHARING, build
from support.training import most_bytes

from mlxreflect.config.schema import LoraConfig, PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.models.load import load_policy, load_shapes, weights_hash
from mlxreflect.models.memory import weights_of
from mlxreflect.models.policy import Policy
from mlxreflect.train.lora import (
    Arrays,
    attach_full,
    attach_lora,
    base_reference,
    save_adapter,
)

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


def train(model: nn.Module, steps: int = 4, lr: float = 1e-2) -> Arrays:
    """A few steps on IDS; returns what was trained."""
    ids, optimizer = mx.array(IDS), optim.AdamW(lr)

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="mean")

    for _ in range(steps):
        _, gradients = nn.value_and_grad(model, loss)(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    return dict(tree_flatten(model.trainable_parameters()))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dequantize", ["no", "yes"])
def test_an_adapter_loads_in_mlx_lm_with_the_same_logits(
    load_random: Load, tiny_random: Path, tmp_path: Path, dequantize: str, dora: bool
) -> None:
    policy = load_random(dequantize=dequantize)
    base = logits_of(policy.model)
    config = attach_lora(policy.model, LoraConfig(rank=4, layers=-1, dora=dora), 0)
    # lora_b begins at zero; DoRA makes its products with weights that were made plain.
    rounding = 2e-5 if dora else 0
    np.testing.assert_allclose(logits_of(policy.model), base, atol=rounding)
    arrays = train(policy.model)
    trained = logits_of(policy.model)
    assert np.abs(trained - base).max() > 0.01
    save_adapter(tmp_path / "new" / "adapter", arrays, config, str(tiny_random))
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


@pytest.mark.parametrize("dora", [False, True])
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
    load_random: Load, keys: list[str], layers: int, expected: set[str], dora: bool
) -> None:
    model = load_random(dequantize="no").model
    attach_lora(model, LoraConfig(rank=2, keys=keys, layers=layers, dora=dora), 0)
    assert lora_layers(model) == expected
    parts = ("lora_a", "lora_b", "m") if dora else ("lora_a", "lora_b")
    assert set(trainable(model)) == {f"{n}.{x}" for n in expected for x in parts}
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


@pytest.mark.parametrize("dequantize", ["no", "yes"])
def test_dora_computes_what_its_paper_says(load_random: Load, dequantize: str) -> None:
    """m · (W + s·BA) / ‖W + s·BA‖ in float64, and its gradients with the norm held constant.

    https://arxiv.org/abs/2402.09353, equations 5 and 11
    """
    model = load_random(dequantize=dequantize).model
    lora = LoraConfig(rank=4, alpha=6.0, rslora=True, dropout=0.0, dora=True)
    attach_lora(model, lora, 0)
    layer = model.layers[1].mlp.down_proj
    mx.random.seed(3)
    layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape)
    layer.m = layer.m * mx.random.uniform(0.5, 2.0, layer.m.shape)
    inner, out = layer.lora_a.shape[0], layer.lora_b.shape[1]
    x, slope = mx.random.normal((2, 5, inner)), mx.random.normal((2, 5, out))

    def weighted(layer: nn.Module) -> mx.array:
        return (layer(x) * slope).sum()

    y = layer(x)
    gradients = dict(tree_flatten(nn.value_and_grad(layer, weighted)(layer)[1]))
    plain = load_random(dequantize="yes").model.layers[1].mlp.down_proj.weight
    w, a, b, m, x, g = (np.array(v, np.float64).reshape(-1, v.shape[-1]) for v in (
        plain, layer.lora_a, layer.lora_b, layer.m, x, slope))  # fmt: skip
    scale = 6 / np.sqrt(4)
    whole = w + scale * (a @ b).T
    norm = np.linalg.norm(whole, axis=1)
    expected = {
        "m": (g * (x @ whole.T) / norm).sum(axis=0),
        "lora_a": scale * x.T @ (g * m / norm) @ b.T,
        "lora_b": scale * (x @ a).T @ (g * m / norm),
    }
    assert gradients.keys() == expected.keys()
    found = {name: (gradients[name], value) for name, value in expected.items()}
    for name, (got, wanted) in {**found, "y": (y, x @ whole.T * m / norm)}.items():
        far = np.abs(np.array(got).reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
        assert far < 1e-5, (name, far)


def test_no_weight_is_read_to_attach_dora(tiny_random: Path) -> None:
    """Doctor tells what a run takes without its weights, from which DoRA's magnitudes are made."""
    model = load_shapes(tiny_random, PolicyConfig(model=str(tiny_random), dequantize="no"))
    lora = LoraConfig(rank=1, dora=True)
    assert most_bytes(lambda: attach_lora(model, lora, 0)) < weights_of(model) / 8


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


@pytest.mark.parametrize("dora", [False, True])
def test_training_goes_on_from_an_adapter(load_random: Load, tmp_path: Path, dora: bool) -> None:
    policy = load_random(dequantize="no")
    lora = LoraConfig(rank=4, layers=1, keys=["mlp.up_proj"], dora=dora)
    config = attach_lora(policy.model, lora, 0)
    save_adapter(tmp_path / "a", train(policy.model), config, "tiny")
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
    second = train(policy.model)
    for name, array in tree_flatten(policy.model.parameters()):
        same = np.array_equal(np.array(array.astype(mx.float32)), frozen[name])
        assert same == (name not in before), name
    save_adapter(tmp_path / "b", second, again, "tiny")
    trained = logits_of(policy.model)
    np.testing.assert_array_equal(
        logits_of(load_random(dequantize="no", adapter=str(tmp_path / "b")).model), trained
    )


@pytest.mark.parametrize(
    ("config", "scale"),
    [(LoraConfig(rank=8), 2.0), (LoraConfig(rank=8, scale=20.0), 20.0),
     (LoraConfig(rank=8, alpha=16.0), 2.0), (LoraConfig(rank=16, scale=5.0, alpha=8.0), 0.5),
     (LoraConfig(rank=16, alpha=8.0, rslora=True), 2.0),
     (LoraConfig(rank=4, alpha=3.0, rslora=True, dora=True), 1.5)],
)  # fmt: skip
def test_the_scale_may_be_given_as_alpha(
    load_random: Load, config: LoraConfig, scale: float
) -> None:
    model = load_random().model
    assert attach_lora(model, config, 0)["lora_parameters"]["scale"] == scale
    assert {m.scale for _, m in model.named_modules() if "lora_a" in m} == {scale}


DELTA = [f"linear_attn.{x}" for x in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a",
                                      "out_proj")]  # fmt: skip
JOINED = ["linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba", "linear_attn.out_proj"]
SWITCH = [f"mlp.switch_mlp.{x}_proj" for x in ("gate", "up", "down")]
MIXTRAL = [f"block_sparse_moe.switch_mlp.{x}_proj" for x in ("gate", "up", "down")]
SHARED = [f"mlp.shared_expert.{x}_proj" for x in ("gate", "up", "down")]
GPT2 = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Of Qwen3.5's blocks the first has a running state (its convolution is no linear layer).
        ("qwen3_5", [{*DELTA, *MLP}, {*ATTENTION, *MLP}]),
        ("qwen3_next", [{*JOINED, *SWITCH, *SHARED}, {*ATTENTION, *SWITCH, *SHARED}]),
        ("qwen3_moe", [{*ATTENTION, *SWITCH}] * 2),
        ("mixtral", [{*ATTENTION, *MIXTRAL}] * 2),
        ("gpt2", [set(GPT2)] * 2),
    ],
)
def test_without_keys_every_linear_layer_of_the_blocks_is_trained(
    name: str, expected: list[set[str]]
) -> None:
    """No embeddings and no head, which are outside; and no router, which mlx-lm would take."""
    model = build(*{**SHARING, **RECURRENT}[name])
    attach_lora(model, LoraConfig(), 0)
    found = lora_layers(model)
    for number, (layer, names) in enumerate(zip(model.layers, expected, strict=True)):
        assert lora_layers(layer) == names, number
    assert len(found) == sum(map(len, expected))


def test_a_router_that_is_named_is_trained() -> None:
    model = build(*SHARING["qwen3_moe"])
    attach_lora(model, LoraConfig(keys=["mlp.gate"]), 0)
    assert lora_layers(model) == {"model.layers.0.mlp.gate", "model.layers.1.mlp.gate"}


@pytest.fixture
def hybrid() -> nn.Module:
    """A running state in the first block, attention in the second."""
    return build(*RECURRENT["jamba"])


def test_a_key_may_be_of_some_layers_only(hybrid: nn.Module) -> None:
    config = attach_lora(hybrid, LoraConfig(keys=["self_attn.q_proj", "mamba.in_proj"]), 0)
    assert lora_layers(hybrid) == {
        "model.layers.0.mamba.in_proj", "model.layers.1.self_attn.q_proj"
    }  # fmt: skip
    assert config["num_layers"] == 2


@pytest.mark.parametrize(
    ("keys", "layers", "message", "hint", "unsaid"),
    [
        # A key that no layer has: the known ones are named.
        (["mamba.in_proj", "self_attn.qkv"], -1, "self_attn.qkv", "self_attn.q_proj", "qkv"),
        ([], 0, "train.lora.layers = 0: the model has 2 layers", "1 to 2, or -1", "0"),
        ([], 3, "train.lora.layers = 3: the model has 2 layers", "1 to 2, or -1", "3"),
        # Keys of none of the layers chosen would train nothing.
        (["mamba.in_proj"], 1, "the last 1 of 2 layers", "self_attn.q_proj", "mamba"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    hybrid: nn.Module, keys: list[str], layers: int, message: str, hint: str, unsaid: str
) -> None:
    with pytest.raises(UserError) as caught:
        attach_lora(hybrid, LoraConfig(keys=keys, layers=layers), 0)
    assert message in caught.value.message
    assert hint in caught.value.hint and unsaid not in caught.value.hint
    assert not lora_layers(hybrid)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_experts_have_no_dora(kind: str) -> None:
    model = build(*SHARING[kind])
    with pytest.raises(UserError) as caught:
        attach_lora(model, LoraConfig(dora=True), 0)
    assert "mlx-lm has no DoRA for" in caught.value.message
    assert "switch_mlp" in caught.value.message and "SwitchLinear" in caught.value.message
    assert f"train.lora.keys ({', '.join(sorted(ATTENTION))})" in caught.value.hint
    assert not lora_layers(model)
    attach_lora(model, LoraConfig(dora=True, keys=ATTENTION), 0)
    assert len(lora_layers(model)) == 8


def test_lora_does_not_become_dora(load_random: Load, tmp_path: Path) -> None:
    policy = load_random()
    config = attach_lora(policy.model, LoraConfig(rank=2), 0)
    save_adapter(tmp_path, dict(tree_flatten(policy.model.trainable_parameters())), config, "x")
    model = load_random(adapter=str(tmp_path)).model
    with pytest.raises(UserError, match=r"train\.lora\.dora = true, and .* is LoRA"):
        attach_lora(model, LoraConfig(dora=True), 0, str(tmp_path))


@pytest.mark.parametrize(("kind", "attach"), [("full", "lora"), ("dora", "full"), ("lora", "full")])
def test_an_adapter_of_another_type_is_refused(
    load_random: Load, tmp_path: Path, kind: str, attach: str
) -> None:
    policy = load_random()
    config = attach_lora(policy.model, LoraConfig(rank=2), 0)
    save_adapter(
        tmp_path, dict(tree_flatten(policy.model.trainable_parameters())),
        {**config, "fine_tune_type": kind}, "tiny",
    )  # fmt: skip
    model = load_random().model
    with pytest.raises(UserError) as caught:
        if attach == "full":
            attach_full(model, "some/model", str(tmp_path))
        else:
            attach_lora(model, LoraConfig(), 0, str(tmp_path))
    assert repr(kind) in caught.value.message
    assert f"mlxreflect fuse --model MODEL --adapter {tmp_path} --out DIR" in caught.value.hint
    assert not lora_layers(model)


# ---- all weights ---------------------------------------------------------------------------------


def store(folder: Path, dtype: mx.Dtype) -> Path:
    """Bring the floats of a model folder to another type."""
    path = str(folder / "model.safetensors")
    arrays = {k: v.astype(dtype) if v.dtype == mx.float32 else v for k, v in mx.load(path).items()}
    mx.eval(arrays)
    mx.save_safetensors(path, arrays)
    return folder


def load_plain(folder: Path, **changes: str) -> Policy:
    return load_policy(PolicyConfig(model=str(folder), **changes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_all_weights_are_trained_and_load_in_mlx_lm(
    make_model: Callable[..., Path], tmp_path: Path, dtype: mx.Dtype, tied: bool
) -> None:
    folder = store(make_model(quantization=None, tie_word_embeddings=tied), dtype)
    model = load_plain(folder).model
    base = logits_of(model)
    config = attach_full(model, str(folder))
    assert config == {"fine_tune_type": "full", "num_layers": 2}
    np.testing.assert_allclose(logits_of(model), base, atol=1e-5)
    assert all(memoryview(v).c_contiguous for _, v in tree_flatten(model.parameters()))
    before = trainable(model)
    assert before.keys() == dict(tree_flatten(model.parameters())).keys()
    arrays = train(model, steps=1, lr=1e-5)
    assert all(not np.array_equal(np.array(v), before[k]) for k, v in arrays.items())
    assert {v.dtype for v in arrays.values()} == {mx.float32}
    save_adapter(tmp_path / "a", arrays, config, str(folder))

    loaded, _ = mlx_lm.load(str(folder), adapter_path=str(tmp_path / "a"))
    np.testing.assert_array_equal(logits_of(loaded), logits_of(model))
    written = load_file(tmp_path / "a" / "adapters.safetensors")  # another reader of the format
    assert written.keys() == arrays.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, np.array(arrays[name]))


def test_training_goes_on_from_a_full_adapter(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Bit for bit as if it had not been saved and loaded: the layout in memory is the same too."""
    folder, a = make_model(quantization=None), tmp_path / "a"
    model = load_plain(folder).model
    config = attach_full(model, str(folder))
    save_adapter(a, train(model, steps=1), config, str(folder))
    again = load_plain(folder, adapter=str(a)).model
    config = attach_full(again, str(folder), str(a))
    np.testing.assert_array_equal(logits_of(again), logits_of(model))
    train(again)
    train(model)
    for name, array in trainable(again).items():
        np.testing.assert_array_equal(array, trainable(model)[name])
    save_adapter(a, dict(tree_flatten(again.trainable_parameters())), config, str(folder))
    np.testing.assert_array_equal(
        logits_of(mlx_lm.load(str(folder), adapter_path=str(a))[0]), logits_of(model)
    )


def test_a_small_step_is_not_lost(make_model: Callable[..., Path]) -> None:
    """In bfloat16 most weights would stay what they are."""
    model = load_plain(store(make_model(quantization=None), mx.bfloat16), dequantize="no").model
    weight = model.layers[0].mlp.up_proj.weight
    assert weight.dtype == mx.bfloat16
    lost = ((weight + 1e-5).astype(mx.bfloat16) == weight).mean().item()
    attach_full(model)
    kept = model.layers[0].mlp.up_proj.weight
    assert lost > 0.8
    assert (kept + 1e-5 == kept).mean().item() == 0
    np.testing.assert_array_equal(np.array(kept), np.array(weight.astype(mx.float32)))


@pytest.mark.parametrize("dequantize", ["yes", "no"])
def test_quantised_weights_are_refused(
    load_random: Load, tiny_random: Path, dequantize: str
) -> None:
    """Also those that loading made plain: a full adapter would not fit the files."""
    model = load_random(dequantize=dequantize).model
    with pytest.raises(UserError) as caught:
        attach_full(model, str(tiny_random))
    assert "full fine-tuning needs weights that are not quantised" in caught.value.message
    assert f"mlxreflect fuse --model {tiny_random} --out DIR" in caught.value.hint


def test_the_embedded_model_is_quantised() -> None:
    with pytest.raises(UserError, match="tiny: full fine-tuning"):
        attach_full(load_plain(Path("tiny")).model, "tiny")


def test_arrays_that_are_no_floats_stay_frozen(make_model: Callable[..., Path]) -> None:
    model = load_plain(make_model(quantization=None)).model
    model.layers[0].mlp.table = mx.arange(4)
    attach_full(model)
    assert "model.layers.0.mlp.table" in dict(tree_flatten(model.parameters()))
    assert "model.layers.0.mlp.table" not in trainable(model)
    train(model, steps=1)


def test_all_weights_have_no_base_to_go_back_to(make_model: Callable[..., Path]) -> None:
    model = load_plain(make_model(quantization=None)).model
    attach_full(model)
    with pytest.raises(UserError, match="needs LoRA"):
        base_reference(model)


# ---- reference and name --------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dequantize", ["no", "yes"])
def test_the_base_is_the_model_without_its_adapter(
    load_random: Load, dequantize: str, dora: bool
) -> None:
    policy = load_random(dequantize=dequantize)
    base = logits_of(policy.model)
    attach_lora(policy.model, LoraConfig(rank=4, dora=dora), 0)
    first, proposed = trainable(policy.model), base_reference(policy.model)
    train(policy.model, steps=20)
    trained = trainable(policy.model)
    assert all(np.abs(array - first[name]).max() > 1e-3 for name, array in trained.items())
    reference = base_reference(policy.model)
    for name, array in reference.items():  # what is kept under its name is found after any step
        np.testing.assert_array_equal(array, proposed[name] if name.endswith(".m") else 0)
    for name, array in trainable(policy.model).items():
        np.testing.assert_array_equal(array, trained[name])  # only a proposal, nothing is changed
    assert np.abs(logits_of(policy.model) - base).max() > 0.01
    policy.model.load_weights(list(reference.items()), strict=False)
    # A DoRA layer makes its product with weights that were made plain.
    np.testing.assert_allclose(logits_of(policy.model), base, atol=2e-5 if dora else 0)


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
