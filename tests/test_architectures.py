"""Gradients of mlx-lm's own model files, as the trainer takes them and as written out plainly.

Plainly: each sequence by itself, without padding, all logits, log-softmax, sum. The trainer runs
what rows share once, and the head on responses only; the gradients have to be equal all the same.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import qwen2
from support.architectures import (
    PAIRS,
    RECURRENT,
    ROWS,
    SHARING,
    SMALL,
    VOCABULARY,
    apart,
    build,
    furthest,
    plain_dpo,
    plain_sft,
    plain_sum,
    plainly,
    trained,
    with_lora,
)
from support.training import fit_pairs, fit_rows, fitting

from mlxreflect.config.schema import TrainConfig
from mlxreflect.train.batches import Pair
from mlxreflect.train.lora import attach_full, base_reference
from mlxreflect.train.network import Network, parameters
from mlxreflect.train.objectives import imitation
from mlxreflect.train.trainer import Trainer

# ---- as the trainer does it ----------------------------------------------------------------------


def settings_for(logps: str, nll: float, recomputed: str) -> TrainConfig:
    return fitting(
        lr=1e-3, batch=4, beta=0.3, logps=logps, nll=nll, grad_checkpoint=recomputed, memory_gb=1.0
    )


def compare_dpo(trainer: Trainer, logps: str, nll: float, *, shared: bool = True) -> float:
    """How far DPO's gradients are apart, with no layer recomputed and with all of them."""
    model, errors = trainer.model, []
    reference = base_reference(model)
    with parameters(model, reference):
        references = [
            [plain_sum(model, row).item() for row in (pair.chosen, pair.rejected)] for pair in PAIRS
        ]
    settings = settings_for(logps, nll, "no")
    value, expected = plainly(model, plain_dpo(references, settings))
    objective = trainer.pair_objective(PAIRS, reference, settings, settings.objective)
    for recomputed in ("no", "yes"):
        found, gradients, batches = trained(
            trainer, objective, settings_for(logps, nll, recomputed)
        )
        assert {batch.prefix is not None for batch in batches} == {shared}
        assert found == pytest.approx(value, abs=3e-5)
        errors.append(furthest(gradients, expected))
    return max(errors)


def compare_sft(trainer: Trainer) -> float:
    errors = []
    value, expected = plainly(trainer.model, plain_sft)
    for recomputed in ("no", "yes"):
        found, gradients, _ = trained(trainer, imitation(ROWS), settings_for("sum", 0, recomputed))
        assert found == pytest.approx(value, rel=1e-5)
        errors.append(furthest(gradients, expected))
    return max(errors)


# ---- models that share ---------------------------------------------------------------------------


QUICK = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "qwen3_moe")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in SHARING if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_gradients_are_those_of_the_plain_formulation(name: str) -> None:
    trainer = Trainer(with_lora(build(*SHARING[name])))
    network = trainer.understood([])
    assert network.splits and network.shares
    assert network.head_parameters() == {}
    assert compare_sft(trainer) < 1e-4
    assert compare_dpo(trainer, "mean", 0.4) < 1e-4
    network.stride = 16  # prefixes in three parts, the last ones of padding alone for some
    assert compare_dpo(trainer, "sum", 0.0) < 1e-4  # response tokens of both rows are left out


@pytest.mark.parametrize(
    ("name", "dtype", "bits"),
    [("qwen2", mx.bfloat16, 0), ("qwen2", mx.bfloat16, 4), ("qwen2", mx.float16, 0),
     ("gemma2", mx.bfloat16, 0)],
)  # fmt: skip
def test_half_precision_is_as_exact_as_the_plain_formulation(
    name: str, dtype: mx.Dtype, bits: int
) -> None:
    """Both are measured against float32 on the same weights: neither layout rounds more."""
    kind, changes = SHARING[name]
    model = build(kind, {**changes, "intermediate_size": 64})
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    model.set_dtype(dtype)
    trainer, settings = Trainer(with_lora(model)), settings_for("mean", 0.4, "yes")
    trainer.understood([]).stride = 16
    loss = plain_dpo([[0.0, 0.0]] * len(PAIRS), settings)
    objective = trainer.pair_objective(PAIRS, None, settings, settings.objective)
    _, found, batches = trained(trainer, objective, settings)
    _, plain = plainly(model, loss)
    model.set_dtype(mx.float32)
    _, exact = plainly(model, loss)
    assert batches[0].prefix is not None
    assert apart(found, exact) < 1.2 * apart(plain, exact) + 1e-3
    assert furthest(found, exact) < (0.2 if dtype == mx.bfloat16 else 0.05)


@pytest.mark.parametrize("logps", ["mean", "sum"])
def test_small_gradients_are_not_lost_in_float16(logps: str) -> None:
    """A loss that hardly depends on a token, as a mean over a long response does."""
    model = build("qwen2", {"intermediate_size": 64})
    model.set_dtype(mx.float16)
    trainer = Trainer(with_lora(model))
    settings = fitting(lr=1e-3, batch=4, beta=1e-6, logps=logps)
    objective = trainer.pair_objective(PAIRS, None, settings, settings.objective)
    _, found, _ = trained(trainer, objective, settings)
    loss = plain_dpo([[0.0, 0.0]] * len(PAIRS), settings)
    _, plain = plainly(model, loss)
    model.set_dtype(mx.float32)
    _, exact = plainly(model, loss)
    assert apart(plain, exact) > 0.5
    assert apart(found, exact) < 0.01


def test_a_loss_without_a_gradient_has_none_in_float16() -> None:
    """Chosen is rejected: there is nothing to enlarge."""
    model = build("qwen2", {})
    model.set_dtype(mx.float16)
    trainer, same = Trainer(with_lora(model)), [Pair(pair.chosen, pair.chosen) for pair in PAIRS]
    settings = fitting(lr=1e-3, batch=4)
    objective = trainer.pair_objective(same, None, settings, "dpo")
    _, found, _ = trained(trainer, objective, settings)
    assert all((gradient == 0).all() for gradient in found.values())


def test_gradients_of_four_bit_models() -> None:
    model = build("qwen2", {"intermediate_size": 64})
    nn.quantize(model, group_size=32, bits=4)
    trainer = Trainer(with_lora(model))
    assert compare_sft(trainer) < 1e-4
    assert compare_dpo(trainer, "mean", 0.4) < 1e-4


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "olmoe", "phi"])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_all_weights(name: str, tied: bool) -> None:
    """A trained head: embeddings that are the head as well, or a head of its own."""
    kind, changes = SHARING[name]
    model = build(kind, {**changes, "tie_word_embeddings": tied})
    attach_full(model)
    trainer = Trainer(model)
    network = trainer.understood([])
    assert network.shares and network.head_parameters()
    for logps, recomputed in (("mean", "no"), ("sum", "yes")):
        settings = settings_for(logps, 0.4, recomputed)
        value, expected = plainly(model, plain_dpo([[0.0, 0.0]] * len(PAIRS), settings))
        objective = trainer.pair_objective(PAIRS, None, settings, settings.objective)
        found, gradients, batches = trained(trainer, objective, settings)
        assert batches[0].prefix is not None
        assert found == pytest.approx(value, abs=3e-5)
        assert furthest(gradients, expected) < 1e-4
    assert compare_sft(trainer) < 1e-4


# ---- models that do not --------------------------------------------------------------------------


def falls_back(model: nn.Module, *, splits: bool) -> None:
    """Each row is run whole, with the right gradients; a person is told once; training works."""
    said: list[str] = []
    trainer = Trainer(with_lora(model), say=said.append)
    settings = fitting(lr=1e-2, batch=4, epochs=2)
    fit_rows(trainer, ROWS, settings, (1,))
    assert said == []  # nothing is shared there
    assert compare_dpo(trainer, "mean", 0.4, shared=False) < 1e-4
    steps = [fit_pairs(trainer, PAIRS, None, settings, (1, n)) for n in range(2)]
    assert steps[1][-1].loss < steps[0][0].loss
    assert len(said) == 1
    assert trainer.network is not None
    assert (trainer.network.splits, trainer.network.shares) == (splits, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENT)
def test_running_states_are_not_shared(name: str) -> None:
    falls_back(build(*RECURRENT[name]), splits=True)


class IntegerOffset(qwen2.Attention):
    """As of before arrays were allowed."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if cache is not None:
            int(cache.offset)
        return super().__call__(x, mask, cache)


class NoOffset(qwen2.Attention):
    """Takes every token after a cache for the first one."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if cache is not None:
            cache.offset = 0 * cache.offset
        return super().__call__(x, mask, cache)


class NoMask(qwen2.Attention):
    """Makes a mask of its own, which knows nothing of padding inside the cache."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        return super().__call__(x, "causal", cache)


@pytest.mark.parametrize(
    ("attention", "dtype"),
    [(IntegerOffset, mx.float32), (NoOffset, mx.float32), (NoMask, mx.float32),
     (IntegerOffset, mx.bfloat16), (NoOffset, mx.bfloat16), (NoMask, mx.bfloat16),
     (NoOffset, mx.float16), (NoMask, mx.float16)],
)  # fmt: skip
def test_attention_that_would_be_wrong_is_not_shared(
    attention: type[qwen2.Attention], dtype: mx.Dtype
) -> None:
    model = build("qwen2", {}, grow=False)  # near its start, context matters least
    for layer in model.layers:
        layer.self_attn.__class__ = attention
    model.set_dtype(dtype)
    network = Network(model)
    assert (network.splits, network.shares) == (True, False)
    if dtype == mx.float32:
        falls_back(model, splits=True)


class SeesTokens(qwen2.Model):
    """Its head is a function of the hidden states and of the tokens."""

    def __init__(self, args: qwen2.ModelArgs) -> None:
        super().__init__(args)
        self.after = mx.zeros((VOCABULARY, VOCABULARY))

    def __call__(self, inputs: mx.array, cache: Any = None, **kwargs: Any) -> mx.array:
        return super().__call__(inputs, cache) + self.after[inputs]


class SeesAll(qwen2.Model):
    """Its head is a function of more than one hidden state."""

    def __call__(self, inputs: mx.array, cache: Any = None, **kwargs: Any) -> mx.array:
        logits = super().__call__(inputs, cache)
        return logits + 0.1 * mx.cumsum(logits, axis=1)


@pytest.mark.parametrize("kind", [SeesTokens, SeesAll])
def test_a_head_that_needs_more_than_hidden_states_is_not_split(kind: type[qwen2.Model]) -> None:
    mx.random.seed(1)
    model = kind(qwen2.ModelArgs.from_dict({"model_type": "qwen2", **SMALL}))
    if "after" in model:
        model.after = mx.random.normal(model.after.shape)
    falls_back(model, splits=False)


class Flat(nn.Module):
    """Its layers are its own, and nothing stands between them and the head."""

    def __init__(self, args: qwen2.ModelArgs) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [qwen2.TransformerBlock(args) for _ in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size)

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        hidden = self.embed_tokens(inputs)
        for layer in self.layers:
            hidden = layer(hidden, "causal", None)
        return self.embed_tokens.as_linear(self.norm(hidden))


def test_a_model_without_a_backbone_is_run_plainly() -> None:
    mx.random.seed(1)
    falls_back(Flat(qwen2.ModelArgs.from_dict({"model_type": "qwen2", **SMALL})), splits=False)
