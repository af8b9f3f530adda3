"""Layers with a running state, trained as on a Mac: where their kernels have no gradient."""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gated_delta, rwkv7
from support.architectures import (
    FIVE,
    KERNELS,
    MORE_KERNELS,
    PAIRS,
    RECURRENT,
    ROWS,
    SMALL,
    apart,
    build,
    furthest,
    plain_dpo,
    plain_sft,
    plain_sum,
    plainly,
    some_items,
    taken,
    trained,
    with_lora,
)
from support.marks import slow_but
from support.training import fitting

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.core.errors import UserError
from mlxreflect.train import recurrent
from mlxreflect.train.batches import Group, shape_of
from mlxreflect.train.lora import attach, attach_full, base_reference
from mlxreflect.train.memory import Footprint
from mlxreflect.train.network import Network, parameters
from mlxreflect.train.objectives import imitation
from mlxreflect.train.recurrent import differentiable
from mlxreflect.train.trainer import Trainer

# What becomes of each model of mlx-lm that has a kernel without a gradient.
FILES = {
    **dict.fromkeys(KERNELS, "trains"),
    **dict.fromkeys(["qwen3_5_moe", "kimi_k3", "olmo_hybrid", "bailing_moe_v3"], "trains"),
    **dict.fromkeys(["mamba2", "falcon_h1", "granitemoehybrid", "nemotron_h"], "trains"),
    **dict.fromkeys(["plamo2", "rwkv7"], "trains"),
    **dict.fromkeys(["bitnet", "muse_spark", "deepseek_v41", "prism_hadamard_qwen35"], "refused"),
    **dict.fromkeys(["gated_delta", "ssm", "bitlinear_layers"], "a part of others"),
}
MODELS = {**RECURRENT, **{name: (name, changes) for name, changes in MORE_KERNELS.items()}}
REFUSED = [name for name, found in FILES.items() if found == "refused"]
TRAINED = [name for name, found in FILES.items() if found == "trains"]
SHAPES = [*TRAINED, "mamba", "jamba", "bailing_moe_linear"]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "CHUNK", 16)


@contextmanager
def metal() -> Iterator[None]:
    """Kernels without a gradient, wherever mlx-lm would take them on a Mac."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TRAINED:
            module = importlib.import_module(f"mlx_lm.models.{name}")
            for function in ("gated_delta_update", "_attn_res_mix"):
                if plain := getattr(module, function, None):
                    patch.setattr(module, function, kernel_in(plain))
            if plain := getattr(module, "ssm_update", None):
                patch.setattr(module, "ssm_update", kernel_for_one(plain))
        patch.setattr(rwkv7.Rwkv7TimeMixing, "_wkv7", raising(rwkv7.Rwkv7TimeMixing._wkv7))
        yield


def kernel_in(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes its kernel unless it is told not to, by keyword or as the last."""

    def update(*given: Any, use_kernel: bool = True, **options: Any) -> Any:
        if given and isinstance(given[-1], bool):
            *given, use_kernel = given
        run = partial(plain, use_kernel=False, **options)
        return (raising(run) if use_kernel else run)(*given)

    return update


def kernel_for_one(plain: Callable[..., Any]) -> Callable[..., Any]:
    """SSD takes its kernel for one token after others."""

    def update(x: mx.array, *given: Any, **options: Any) -> Any:
        one = x.shape[1] == 1 and given[6] is not None
        return (raising(partial(plain, **options)) if one else partial(plain, **options))(x, *given)

    return update


def raising(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays, and of others, as a kernel: its backward pass raises."""

    def run(*given: Any) -> Any:
        @mx.custom_function
        def kernel(*arrays: mx.array) -> Any:
            found = iter(arrays)
            whole = [next(found) if isinstance(one, mx.array) else one for one in given]
            return plain(*whole)

        @kernel.vjp
        def no_gradient(*_: Any) -> Any:
            raise RuntimeError("[Primitive::vjp] Not implemented for CustomKernel")

        return kernel(*[one for one in given if isinstance(one, mx.array)])

    return run


def files_with_kernels() -> set[str]:
    """The files of the mlx-lm that is installed that have a kernel, and those that import them."""
    folder = Path(mlx_lm.__file__).parent / "models"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    found = {n for n, text in texts.items() if re.search("metal_kernel|from [.][.]kernels", text)}
    while True:
        names = "|".join(found)
        imports = re.compile(rf"^from [.]({names}) import|^from [.] import .*\b({names})\b", re.M)
        more = found | {name for name, text in texts.items() if imports.search(text)}
        if more == found:
            return found
        found = more


def test_every_file_with_a_kernel_is_known() -> None:
    assert files_with_kernels() == FILES.keys(), "a new one: does it train? Then say so in FILES"


@pytest.mark.parametrize("name", [*REFUSED, "recurrent_gemma"])
def test_what_cannot_be_trained_is_refused_in_two_lines(name: str) -> None:
    with pytest.raises(UserError, match=r"the model cannot be trained: its .+[.]py\)$") as raised:
        attach(build(*MODELS[name]), fitting(), 0, "", "")
    assert raised.value.hint


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_have_no_gradient(name: str) -> None:
    model = with_lora(build(*RECURRENT[name]))
    with metal():
        with pytest.raises(RuntimeError, match="vjp"):
            plainly(model, plain_sft)
        with differentiable(model, dropout=False):
            plainly(model, plain_sft)


@pytest.mark.parametrize("recomputed", ["no", "yes"])
@pytest.mark.parametrize("name", slow_but(SHAPES, "mamba", "qwen3_next", "jamba"))
def test_gradients_are_those_of_the_plain_formulation(name: str, recomputed: str) -> None:
    model = with_lora(build(*MODELS[name]))
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
    with metal():
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
@pytest.mark.parametrize("name", [*KERNELS, "rwkv7", "mamba", "jamba"])
def test_the_other_objectives_train(name: str, objective: str) -> None:
    model = with_lora(build(*RECURRENT[name]))
    trainer, settings = Trainer(model), fitting(batch=4, objective=objective, smoothing=0.01)
    with metal():
        asked = trainer.pair_objective(PAIRS, base_reference(model), settings, objective)
        value, gradients, _ = trained(trainer, asked, settings)
    assert mx.isfinite(mx.array(value)) and any(mx.any(g != 0) for g in gradients.values())


@pytest.mark.parametrize("name", [*KERNELS, "rwkv7", "mamba", "jamba"])
def test_groups_train(name: str) -> None:
    """A first step is along the mean of log-probabilities, each times its advantage: ±0.5."""
    model, rows = with_lora(build(*RECURRENT[name])), (PAIRS[0].chosen, PAIRS[0].rejected)

    def loss(model: nn.Module) -> mx.array:
        good, bad = (plain_sum(model, row) / len(row.response) for row in rows)
        return -(0.5 * good - 0.5 * bad) / 2

    trainer, settings = Trainer(model), fitting(batch=1)
    groups, grpo = [Group(rows, (1.0, 0.0))], GrpoConfig(scale_rewards=False)
    with metal():
        asked = trainer.group_objective(groups, None, settings, grpo)
        _, found, _ = trainer.gradients(trainer.understood([]), asked, [0], settings, (1,))
    model.train()
    _, expected = plainly(model, loss)
    assert furthest(dict(tree_flatten(found)), expected) < 1e-4


@pytest.mark.parametrize("name", ["qwen3_5", "kimi_k3", "rwkv7", "mamba", "jamba"])
def test_gradients_of_all_weights(name: str) -> None:
    """Also of those that all tokens of a layer share, and that no LoRA layer is on."""
    model = build(*MODELS[name])
    attach_full(model)
    model.train()
    _, expected = plainly(model, plain_sft)
    model.eval()
    with metal():
        _, gradients, _ = trained(Trainer(model), imitation(ROWS), fitting(batch=4))
    assert furthest(gradients, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_5", "olmo_hybrid", "rwkv7", "mamba"])
def test_bfloat16_rounds_no_more_than_the_plain_formulation(name: str) -> None:
    # Without experts: on the CPU they have no product in bfloat16.
    model = with_lora(build(*MODELS[name]))
    model.set_dtype(mx.bfloat16)
    found = {}
    for dtype in (mx.float32, mx.bfloat16):
        model.set_dtype(dtype)
        model.train()
        _, found[dtype] = plainly(model, plain_sft)
        model.eval()
    with metal():
        _, gradients, _ = trained(Trainer(model), imitation(ROWS), fitting(batch=4))
    plain = apart(found[mx.bfloat16], found[mx.float32])
    assert apart(gradients, found[mx.float32]) < 1.5 * plain < 0.5


def test_what_layers_keep_of_their_weights_is_no_older_than_these() -> None:
    """Kimi K3 keeps products of weights, which all training, and any reference, changes."""
    model, fresh = build(*MODELS["kimi_k3"]), build(*MODELS["kimi_k3"])
    attach_full(model)
    row, trainer = PAIRS[0].chosen, Trainer(model)
    before, weights = plain_sum(model, row).item(), trainer.trainable()
    for _ in trainer.train(imitation(ROWS), fitting(lr=0.05, batch=4, epochs=1), (1,)):
        fresh.update(model.parameters())
        assert plain_sum(model, row).item() == plain_sum(fresh, row).item() != before
    with parameters(model, weights):
        assert plain_sum(model, row).item() == before
    assert plain_sum(model, row).item() == plain_sum(fresh, row).item()


# ---- one token after the other -------------------------------------------------------------------


def slowly(step: recurrent.Step, sequences: list[mx.array], shared: list[mx.array]) -> Any:
    """Outputs of all tokens and the last state, by plain autodiff."""

    def run(state: mx.array, *given: mx.array) -> list[mx.array]:
        outputs = []
        for t in range(sequences[0].shape[1]):
            token = [array[:, t] for array in given[: len(sequences)]]
            output, state = step(*token, *given[len(sequences) :], state)
            outputs.append(output)
        return [mx.stack(outputs, axis=1), state]

    return run


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("step", ["delta", "selective"])
def test_gradients_of_a_scan_are_those_of_autodiff(step: str, length: int, dtype: mx.Dtype) -> None:
    """Of every input, of the first state, and of what is shared; also through the last state."""
    mx.random.seed(length)

    def some(*shape: int) -> mx.array:
        return mx.random.uniform(-0.7, 0.7, shape).astype(dtype)

    rows, shared = 3, []
    if step == "delta":
        run: recurrent.Step = gated_delta._gated_delta_step_ops
        keys, values = [some(rows, length, 2, 8) for _ in range(2)], some(rows, length, 2, 4)
        gates = [mx.sigmoid(some(rows, length, 2)) for _ in range(2)]
        sequences, state = [*keys, values, *gates], some(rows, 2, 4, 8).astype(mx.float32)
    else:
        run, shared = recurrent.selective, [-mx.exp(some(6, 4))]
        wide, narrow = (
            [some(rows, length, 6) for _ in range(2)],
            [some(rows, length, 4) for _ in "bc"],
        )
        sequences, state = [mx.abs(wide[0]), wide[1], *narrow], some(rows, 6, 4)

    def scanned(state: mx.array, *given: mx.array) -> list[mx.array]:
        count = len(sequences)
        return list(recurrent.scan(run, given[:count], state, given[count:]))

    primals = [state, *sequences, *shared]
    plain = slowly(run, sequences, shared)
    cotangents = [some(*one.shape).astype(one.dtype) for one in plain(*primals)]
    expected, slopes = mx.vjp(plain, primals, cotangents)
    found, found_slopes = mx.vjp(scanned, primals, cotangents)
    for one, other in zip([*found, *found_slopes], [*expected, *slopes], strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        worst = mx.abs(one - other).max() / mx.abs(other).max()
        assert worst.item() < (1e-4 if dtype == mx.float32 else 0.03)


def test_dropout_is_on_where_the_objective_wants_it() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4))
    model.eval()
    for wanted in (True, False):
        with differentiable(model, dropout=wanted):
            assert model.training and model.layers[1].training
            assert model.layers[0].training == wanted
        assert not model.training and not model.layers[0].training


# ---- memory --------------------------------------------------------------------------------------


# States as large beside the width as those of Qwen3.5-4B, in six layers of eight.
STATES: dict[str, Any] = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
}  # fmt: skip
EIGHT: dict[str, Any] = {**FIVE, "num_hidden_layers": 8}
MEMORY: dict[str, dict[str, Any]] = {
    "qwen3_5": {"text_config": {**SMALL, **EIGHT, **STATES, "model_type": "qwen3_5_text"}},
    "qwen3_next": {**RECURRENT["qwen3_next"][1], **EIGHT, **STATES, "moe_intermediate_size": 192,
                   "shared_expert_intermediate_size": 192},
    "kimi_linear": {**RECURRENT["kimi_linear"][1], **EIGHT, "moe_intermediate_size": 192,
                    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
                    "v_head_dim": 32, "linear_attn_config": {
                        "kda_layers": [1, 2, 3, 5, 6, 7], "full_attn_layers": [4, 8],
                        "num_heads": 2, "head_dim": 128, "short_conv_kernel_size": 4}},
    "mamba": {**RECURRENT["mamba"][1], **EIGHT, "state_size": 16, "intermediate_size": 384,
              "time_step_rank": 12},
    "jamba": {**RECURRENT["jamba"][1], **EIGHT, "intermediate_size": 384, "mamba_d_state": 16},
}  # fmt: skip


def peak(kind: str, changes: dict[str, Any], length: int, recomputed: bool) -> tuple[int, int]:
    """Bytes that a step on one row takes, as estimated and as measured."""
    model = with_lora(build(kind, changes, grow=False))
    network, items = Network(model), some_items(1, length - 64, 64, 1)
    layers = len(model.layers) if recomputed else 0
    with differentiable(model, dropout=False):
        found = taken(model, network, items, layers)
    shape = shape_of(items, network.shares)
    return Footprint(model, network.vocabulary).bytes(shape, layers), found


@cache
def attention_peak(length: int, recomputed: bool) -> int:
    """What a model of the same size takes that has attention in all of its layers."""
    return peak("qwen3", EIGHT, length, recomputed)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recomputed"),
    [*((name, True) for name in MEMORY), ("qwen3_5", False), ("mamba", False)],
)
def test_memory_grows_with_the_tokens_and_no_faster(
    name: str, recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "CHUNK", 64)
    measured = []
    for length in (256, 512):
        estimate, found = peak(name, MEMORY[name], length, recomputed)
        assert found < 2.5 * attention_peak(length, recomputed)
        assert 1 / 1.7 < estimate / found < 1.7
        measured.append(found)
    assert measured[1] < 1.7 * 2 * measured[0]  # attention has squares of tokens
