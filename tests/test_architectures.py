"""Gradients of mlx-lm's own model files, as the trainer takes them and as written out plainly.

Plainly: each sequence by itself, without padding, all logits, log-softmax, sum. The trainer runs
what rows share once, and the head on responses only; the gradients have to be equal all the same.
"""

import importlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen2

from mlxreflect.config.schema import LoraConfig
from mlxreflect.train.batches import Batch, Pair, Row
from mlxreflect.train.lora import attach_full, attach_lora, base_reference
from mlxreflect.train.network import Network, parameters
from mlxreflect.train.objectives import Objective, Settings, imitation
from mlxreflect.train.trainer import Trainer

VOCABULARY = 40
Gradients = dict[str, mx.array]
Loss = Callable[[nn.Module], mx.array]

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY,
    "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
WINDOW: dict[str, Any] = {
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention"],
}
GEMMA: dict[str, Any] = {
    "query_pre_attn_scalar": 8.0,
    "sliding_window": 9,
    "sliding_window_pattern": 2,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "moe_intermediate_size": 24, "norm_topk_prob": True,
}  # fmt: skip
LONG: dict[str, Any] = {
    "original_max_position_embeddings": 16,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4,
                     "long_factor": [1.0, 1.3, 2.0, 4.0]},
}  # fmt: skip
GRANITE: dict[str, Any] = {
    "logits_scaling": 3.0, "attention_multiplier": 0.3, "embedding_multiplier": 2.0,
    "residual_multiplier": 0.7, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    **WINDOW, "num_hidden_layers": 4, "layer_types": WINDOW["layer_types"] * 2,
    "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 8,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_ctx": 64, "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
}  # fmt: skip
# What is shared where: a name, mlx-lm's file, and what it needs besides.
SHARING: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, sliding": ("llama", WINDOW),
    "llama, llama3 rope": ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {}),
    "gemma2, rows as many as heads": ("gemma2", {"num_key_value_heads": 4}),
    "gemma3_text": ("gemma3_text", GEMMA),
    "gemma3": ("gemma3", {"text_config": {"model_type": "gemma3_text", **SMALL, **GEMMA}}),
    "gemma4_text": ("gemma4_text", GEMMA4),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {}),
    "phi3, longrope": ("phi3", LONG),
    "olmoe": ("olmoe", EXPERTS),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "mixtral": ("mixtral", EXPERTS),
    "granite": ("granite", GRANITE),
    "gpt2": ("gpt2", GPT2),
    "cohere2": ("cohere2", {"logit_scale": 0.3, **GEMMA}),
}
MAMBA: dict[str, Any] = {
    "state_size": 4, "conv_kernel": 3, "use_bias": False, "use_conv_bias": True,
    "time_step_rank": 4, "num_heads": 4, "n_groups": 1, "layer_norm_epsilon": 1e-5,
    "time_step_limit": (0.0, 100.0), "intermediate_size": 32,
}  # fmt: skip
JAMBA: dict[str, Any] = {
    **EXPERTS, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
    "expert_layer_period": 2, "mamba_d_conv": 3, "mamba_d_state": 4, "mamba_expand": 2,
}  # fmt: skip
FALCON: dict[str, Any] = {
    "mamba_d_ssm": 32, "mamba_d_head": 8, "mamba_n_heads": 4, "mamba_d_state": 4, "mamba_d_conv": 3,
}  # fmt: skip
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", MAMBA),
    "mamba2": ("mamba2", MAMBA),
    "jamba": ("jamba", JAMBA),
    "falcon_h1": ("falcon_h1", FALCON),
}


def build(kind: str, changes: dict[str, Any], *, grow: bool = True) -> nn.Module:
    """A small random model in float32; grow: weights far enough from their start to matter."""
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict({"model_type": kind, **SMALL, **changes}))
    if grow:
        model.update(tree_map(lambda a: a + 0.05 * mx.random.normal(a.shape), model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def with_lora(model: nn.Module) -> nn.Module:
    """LoRA on every linear layer, experts too, as if it had been trained."""
    attach_lora(model, LoraConfig(rank=2, scale=2.0, dropout=0.0, keys=[]), 0)
    mx.random.seed(2)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.2 * mx.random.normal(module.lora_b.shape)
    mx.eval(model.parameters())
    return model


def make_pairs() -> list[Pair]:
    """Long prompts of several lengths, and responses that begin alike in every way there is."""
    rng = np.random.default_rng(3)

    def some(count: int) -> list[int]:
        return [int(t) for t in rng.integers(0, VOCABULARY, count)]

    prompts, attempt, answer = [some(n) for n in (41, 23, 34, 12)], some(15), some(4)
    responses = [
        (attempt[:9] + some(4), attempt),  # a rewrite that keeps 60 % of the attempt
        (answer, answer + some(5)),  # chosen is how rejected begins
        ([5], [7]),
        (some(6), [3, *some(2)]),
    ]
    return [
        Pair(Row(prompt, chosen), Row(prompt, rejected))
        for prompt, (chosen, rejected) in zip(prompts, responses, strict=True)
    ]


PAIRS = make_pairs()
WEIGHTS = (1, 2, 1, 0.5)
ROWS = [
    Row(pair.chosen.prompt, pair.chosen.response, weight)
    for pair, weight in zip(PAIRS, WEIGHTS, strict=True)
]


# ---- plainly -------------------------------------------------------------------------------------


def plain_sum(model: nn.Module, row: Row) -> mx.array:
    tokens = mx.array([*row.prompt, *row.response])
    logits = model(tokens[None, :-1])[0].astype(mx.float32)
    every = nn.log_softmax(logits, axis=-1)[mx.arange(row.length - 1), tokens[1:]]
    return every[len(row.prompt) - 1 :].sum()


def plain_sft(model: nn.Module) -> mx.array:
    return sum((-row.weight * plain_sum(model, row) for row in ROWS), mx.array(0.0))


def plain_dpo(references: list[list[float]], settings: Settings) -> Loss:
    def loss(model: nn.Module) -> mx.array:
        total = mx.array(0.0)
        for pair, (ref_chosen, ref_rejected) in zip(PAIRS, references, strict=True):
            chosen, rejected = plain_sum(model, pair.chosen), plain_sum(model, pair.rejected)
            ratios = [chosen - ref_chosen, rejected - ref_rejected]
            if settings.logps == "mean":
                ratios[0] /= len(pair.chosen.response)
                ratios[1] /= len(pair.rejected.response)
            margin = settings.beta * (ratios[0] - ratios[1])
            nll = -chosen / len(pair.chosen.response)
            total = total - mx.log(mx.sigmoid(margin)) + settings.nll * nll
        return total

    return loss


def plainly(model: nn.Module, loss: Loss) -> tuple[float, Gradients]:
    value, gradients = nn.value_and_grad(model, loss)(model)
    mx.eval(value, gradients)
    return value.item(), dict(tree_flatten(gradients))


# ---- as the trainer does it ----------------------------------------------------------------------


def trained(
    trainer: Trainer, objective: Objective, settings: Settings
) -> tuple[float, Gradients, list[Batch]]:
    """Summed loss, gradients, and the batches that the network has seen."""
    network = trainer.understood(objective.items)
    run, batches = network.logps, []

    def watched(batch: Batch, *, training: bool = False) -> mx.array:
        batches.append(batch)
        return run(batch, training=training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "logps", watched)
        value, gradients, _ = trainer.gradients(
            network, objective, list(range(len(PAIRS))), settings, (1,)
        )
    return value, dict(tree_flatten(gradients)), batches


def furthest(found: Gradients, expected: Gradients) -> float:
    """The largest error, of the largest value of the same tensor."""
    assert found.keys() == expected.keys()
    errors = {k: (mx.abs(found[k] - v).max() / mx.abs(v).max()).item() for k, v in expected.items()}
    return max(errors.values())


def apart(found: Gradients, expected: Gradients) -> float:
    """The length of the difference of all gradients, of their own length."""
    lengths = [
        sum(mx.square(g).sum().item() for g in gradients.values())
        for gradients in ({k: found[k] - v for k, v in expected.items()}, expected)
    ]
    return float((lengths[0] / lengths[1]) ** 0.5)


def settings_for(logps: str, nll: float, recomputed: str) -> Settings:
    return Settings(
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
    objective = trainer.pair_objective(PAIRS, reference, settings)
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


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "olmoe"])
def test_sums_with_nll_keep_the_shared_tokens(name: str) -> None:
    assert compare_dpo(Trainer(with_lora(build(*SHARING[name]))), "sum", 0.4) < 1e-4


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
    objective = trainer.pair_objective(PAIRS, None, settings)
    _, found, batches = trained(trainer, objective, settings)
    _, plain = plainly(model, loss)
    model.set_dtype(mx.float32)
    _, exact = plainly(model, loss)
    assert batches[0].prefix is not None
    assert apart(found, exact) < 1.2 * apart(plain, exact) + 1e-3
    assert furthest(found, exact) < (0.2 if dtype == mx.bfloat16 else 0.05)


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
        objective = trainer.pair_objective(PAIRS, None, settings)
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
    settings = Settings(lr=1e-2, batch=4, epochs=2)
    trainer.fit_rows(ROWS, settings, (1,))
    assert said == []  # nothing is shared there
    assert compare_dpo(trainer, "mean", 0.4, shared=False) < 1e-4
    steps = [trainer.fit_pairs(PAIRS, None, settings, (1, n)) for n in range(2)]
    assert steps[1][-1].loss < steps[0][0].loss
    assert len(said) == 1
    assert trainer.network is not None
    assert (trainer.network.splits, trainer.network.shares) == (splits, False)


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
     (IntegerOffset, mx.bfloat16), (NoMask, mx.bfloat16)],
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
