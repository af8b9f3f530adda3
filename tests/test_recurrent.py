"""Layers with a running state, trained as on a Mac: where their kernels have no gradient."""

import importlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from support.architectures import (
    KERNELS,
    PAIRS,
    RECURRENT,
    ROWS,
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
from mlxreflect.train.lora import base_reference
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
