"""Layers with a running state, trained as on a Mac: where their kernels have no gradient."""

import importlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.architectures import (
    DELTA,
    KERNELS,
    PAIRS,
    RECURRENT,
    ROWS,
    SMALL,
    build,
    furthest,
    plain_dpo,
    plain_sft,
    plain_sum,
    plainly,
    trained,
    with_lora,
)
from support.training import fitting

from mlxreflect.train import recurrent
from mlxreflect.train.batches import Row, shape_of
from mlxreflect.train.lora import base_reference
from mlxreflect.train.memory import Footprint
from mlxreflect.train.network import parameters
from mlxreflect.train.objectives import imitation
from mlxreflect.train.recurrent import differentiable
from mlxreflect.train.trainer import Trainer

SHAPES = [*KERNELS, "mamba", "jamba"]


@pytest.fixture(autouse=True)
def metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels without a gradient, wherever mlx-lm would take them on a Mac; several chunks."""
    monkeypatch.setattr(recurrent, "CHUNK", 16)
    for name in KERNELS:
        module = importlib.import_module(f"mlx_lm.models.{name}")
        monkeypatch.setattr(module, "gated_delta_update", kernel_in(module.gated_delta_update))


def kernel_in(plain: Callable[..., Any]) -> Callable[..., Any]:
    def update(*arrays: Any, use_kernel: bool = True, **options: Any) -> Any:
        given = [array for array in arrays if array is not None]

        @mx.custom_function
        def kernel(*given: mx.array) -> Any:
            found = iter(given)
            whole = [None if array is None else next(found) for array in arrays]
            return plain(*whole, use_kernel=False, **options)

        @kernel.vjp
        def no_gradient(*_: Any) -> Any:
            raise RuntimeError("[Primitive::vjp] Not implemented for CustomKernel")

        return kernel(*given) if use_kernel else plain(*arrays, use_kernel=False, **options)

    return update


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_have_no_gradient(name: str) -> None:
    model = with_lora(build(*RECURRENT[name]))
    with pytest.raises(RuntimeError, match="vjp"):
        plainly(model, plain_sft)
    with differentiable(model, dropout=False):
        plainly(model, plain_sft)


@pytest.mark.parametrize("recomputed", ["no", "yes"])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_the_plain_formulation(name: str, recomputed: str) -> None:
    model = with_lora(build(*RECURRENT[name]))
    trainer, reference = Trainer(model), base_reference(model)
    settings = fitting(
        lr=1e-3, batch=4, beta=0.3, logps="sum", grad_checkpoint=recomputed, memory_gb=1.0
    )
    with parameters(model, reference):
        references = [
            [plain_sum(model, row).item() for row in (p.chosen, p.rejected)] for p in PAIRS
        ]
    model.train()  # mlx-lm's own plain formulas
    value, expected = plainly(model, plain_dpo(references, settings))
    rows, expected_rows = plainly(model, plain_sft)
    model.eval()
    found, gradients, _ = trained(
        trainer, trainer.pair_objective(PAIRS, reference, settings, "dpo"), settings
    )
    assert found == pytest.approx(value, abs=3e-5)
    assert furthest(gradients, expected) < 1e-4
    found, gradients, _ = trained(trainer, imitation(ROWS), settings)
    assert found == pytest.approx(rows, rel=1e-5)
    assert furthest(gradients, expected_rows) < 1e-4
    assert not model.training


@pytest.mark.parametrize("objective", ["ipo", "exo_pair", "orpo"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_other_objectives_train(name: str, objective: str) -> None:
    model = with_lora(build(*RECURRENT[name]))
    trainer, settings = Trainer(model), fitting(batch=4, objective=objective, smoothing=0.01)
    asked = trainer.pair_objective(PAIRS, base_reference(model), settings, objective)
    value, gradients, _ = trained(trainer, asked, settings)
    assert mx.isfinite(mx.array(value)) and any(mx.any(g != 0) for g in gradients.values())


def test_dropout_is_on_where_the_objective_wants_it() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4))
    model.eval()
    for wanted in (True, False):
        with differentiable(model, dropout=wanted):
            assert model.training and model.layers[1].training
            assert model.layers[0].training == wanted
        assert not model.training and not model.layers[0].training


# ---- memory --------------------------------------------------------------------------------------

WIDE: dict[str, Any] = {
    **SMALL, "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512, "head_dim": 64,
    "vocab_size": 512, "max_position_embeddings": 4096,
}  # fmt: skip
WIDE_DELTA: dict[str, Any] = {
    **DELTA, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 64,
    "linear_value_head_dim": 64, "full_attention_interval": 4,
}  # fmt: skip


def peak_and_estimate(kind: str, changes: dict[str, Any], length: int) -> tuple[int, int]:
    """Bytes of one step's activations on a row of so many tokens."""
    model = with_lora(build(kind, changes))
    trainer, half = Trainer(model), length // 2
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, 512, length)]
    objective = imitation([Row(tokens[:half], tokens[half:])])
    network = trainer.understood(objective.items)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    settings = fitting(batch=1, grad_checkpoint="no", memory_gb=8.0)
    trainer.gradients(network, objective, [0], settings, (1,))
    estimate = Footprint(model, 512).bytes(shape_of([objective.items[0]], False))
    return mx.get_peak_memory() - before, estimate


@pytest.mark.slow
def test_memory_grows_with_the_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "CHUNK", 64)
    text = {"model_type": "qwen3_5_text", **WIDE, **WIDE_DELTA}
    peaks, plain = {}, {}
    for length in (256, 1024):
        plain[length], _ = peak_and_estimate("qwen3", WIDE, length)
        peaks[length], estimate = peak_and_estimate("qwen3_5", {"text_config": text}, length)
        print(f"{length} tokens: {peaks[length] / 1e6:.0f} MB, estimated {estimate / 1e6:.0f}, "
              f"qwen3 of the same width {plain[length] / 1e6:.0f}")  # fmt: skip
        assert peaks[length] <= 2.5 * plain[length]
        assert estimate / 1.7 <= peaks[length] <= estimate * 1.7
    # Attention's scores grow with the square; nothing else may grow faster than the tokens.
    assert peaks[1024] / peaks[256] <= plain[1024] / plain[256]
