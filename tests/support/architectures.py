"""Small random models of every kind, and their losses and gradients computed plainly."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxreflect.config.schema import LoraConfig, TrainConfig
from mlxreflect.train.batches import Batch, Item, Pair, Row, collate
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.memory import recomputed_layers
from mlxreflect.train.network import Network
from mlxreflect.train.objectives import Objective
from mlxreflect.train.trainer import Trainer
from support.training import most_bytes

VOCABULARY = 40


Gradients = dict[str, mx.array]

Loss = Callable[[nn.Module], mx.array]

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY,
    "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip

WINDOW: dict[str, Any] = {
    "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip

GEMMA: dict[str, Any] = {
    "query_pre_attn_scalar": 8.0, "sliding_window": 9, "sliding_window_pattern": 2,
}  # fmt: skip

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

# A gated-delta layer, then attention; keys wide enough for Metal's kernel.
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 32,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 3, "full_attention_interval": 2,
}  # fmt: skip

KIMI: dict[str, Any] = {
    **EXPERTS, "num_experts_per_token": 2, "num_shared_experts": 1, "model_max_length": 512,
    "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "first_k_dense_replace": 1, "linear_attn_config": {
        "kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 32,
        "short_conv_kernel_size": 3,
    },
}  # fmt: skip

# Their layers run by kernels without a gradient on a Mac, outside of training mode.
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5": ("qwen3_5", {"text_config": {"model_type": "qwen3_5_text", **SMALL, **DELTA}}),
    "qwen3_next": ("qwen3_next", {**EXPERTS, **DELTA, "shared_expert_intermediate_size": 24,
                                  "partial_rotary_factor": 0.5}),
    "kimi_linear": ("kimi_linear", KIMI),
}  # fmt: skip

MLA: dict[str, Any] = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip

# Two blocks of residuals that attend to each other; experts in the second layer.
KIMI3: dict[str, Any] = {**SMALL, **KIMI, **MLA, "attn_res_block_size": 1}

BAILING: dict[str, Any] = {
    **EXPERTS, **MLA, "moe_shared_expert_intermediate_size": 24, "n_group": 2, "topk_group": 1,
    "layer_group_size": 2, "head_dim": 32, "short_conv_kernel_size": 3,
}  # fmt: skip

NEMOTRON: dict[str, Any] = {
    "mamba_num_heads": 4, "mamba_head_dim": 8, "mamba_proj_bias": False, "ssm_state_size": 4,
    "conv_kernel": 3, "n_groups": 1, "attention_bias": False, "mlp_bias": False, "use_bias": False,
    "use_conv_bias": True, "layer_norm_epsilon": 1e-5, "hybrid_override_pattern": ["M", "*"],
}  # fmt: skip

PLAMO: dict[str, Any] = {
    "hidden_size_per_head": 8, "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_num_heads": 4,
}  # fmt: skip

DEEPSEEK: dict[str, Any] = {
    "head_dim": 16, "q_lora_rank": 8, "qk_rope_head_dim": 8, "o_groups": 2, "o_lora_rank": 8,
    "moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2, "hc_mult": 2,
    "hc_sinkhorn_iters": 3, "sliding_window": 9, "rms_norm_eps": 1e-6,
}  # fmt: skip

PRISM: dict[str, Any] = {
    "schema_version": 1, "tensor_namespace": "mlx-lm-text",
    "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
    "modules": [{"path": "model.layers.0.mlp.down_proj", "embedding": False, "dtype": "float16",
                 "block": 0}],
    "text_config": {**SMALL, **DELTA, "intermediate_size": 128, "model_type": "qwen3_5_text"},
}  # fmt: skip

SPARK: dict[str, Any] = {
    **SMALL, **EXPERTS, "post_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 1e4},
    "layer_rope_theta": [1e4, 0], "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 9, "final_logit_softcapping": 9.0, "output_multiplier": 1.0,
    "moe_hidden_size": 32,
}  # fmt: skip

GRIFFIN: dict[str, Any] = {
    "attention_bias": False, "conv1d_width": 3, "logits_soft_cap": 9.0, "attention_window_size": 9,
    "block_types": ["recurrent", "attention"],
}  # fmt: skip

# Other files of mlx-lm whose models have a kernel without a gradient, or are refused.
MORE_KERNELS: dict[str, dict[str, Any]] = {
    "qwen3_5_moe": {"text_config": {**SMALL, **DELTA, **EXPERTS, "model_type": "qwen3_5_moe_text",
                                    "shared_expert_intermediate_size": 24}},
    "prism_hadamard_qwen35": PRISM,
    "kimi_k3": {"text_config": KIMI3},
    "olmo_hybrid": {**DELTA, "linear_allow_neg_eigval": True, "attention_bias": False,
                    "layer_types": ["linear_attention", "full_attention"]},
    "bailing_moe_v3": BAILING,
    "granitemoehybrid": {**GRANITE, **EXPERTS, "layer_types": ["mamba", "attention"],
                         "shared_intermediate_size": 24, "mamba_n_heads": 4, "mamba_d_head": 8,
                         "mamba_proj_bias": False, "mamba_d_state": 4, "mamba_d_conv": 3,
                         "mamba_n_groups": 1, "mamba_conv_bias": True},
    "nemotron_h": NEMOTRON,
    "plamo2": PLAMO,
    "deepseek_v41": DEEPSEEK,
    "bitnet": {},
    "muse_spark": {"text_config": SPARK},
    "recurrent_gemma": GRIFFIN,
}  # fmt: skip

RWKV: dict[str, Any] = {
    "norm_eps": 1e-5, "a_low_rank_dim": 4, "v_low_rank_dim": 4, "gate_low_rank_dim": 4,
    "decay_low_rank_dim": 4,
}  # fmt: skip

LING: dict[str, Any] = {
    **EXPERTS, "num_shared_experts": 1, "first_k_dense_replace": 1, "layer_group_size": 2,
    "group_norm_size": 2, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip

RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    **KERNELS,
    "rwkv7": ("rwkv7", RWKV),
    "mamba": ("mamba", MAMBA),
    "mamba2": ("mamba2", MAMBA),
    "jamba": ("jamba", JAMBA),
    "falcon_h1": ("falcon_h1", FALCON),
    "bailing_moe_linear": ("bailing_moe_linear", LING),
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


def with_lora(model: nn.Module, *, dora: bool = False) -> nn.Module:
    """LoRA on every linear layer, experts too, as if it had been trained."""
    attach_lora(model, LoraConfig(rank=2, scale=2.0, dropout=0.0, keys=[], dora=dora), 0)
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
ROWS = [replace(p.chosen, weight=w) for p, w in zip(PAIRS, (1, 2, 1, 0.5), strict=True)]


def plain_sum(model: nn.Module, row: Row) -> mx.array:
    tokens = mx.array([*row.prompt, *row.response])
    logits = model(tokens[None, :-1])[0].astype(mx.float32)
    every = nn.log_softmax(logits, axis=-1)[mx.arange(row.length - 1), tokens[1:]]
    return every[len(row.prompt) - 1 :].sum()


def plain_sft(model: nn.Module) -> mx.array:
    return sum((-row.weight * plain_sum(model, row) for row in ROWS), mx.array(0.0))


def plain_dpo(references: list[list[float]], settings: TrainConfig) -> Loss:
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


def apart(found: Gradients, expected: Gradients) -> float:
    """The length of the difference of all gradients, of their own length."""
    lengths = [
        sum(mx.square(g).sum().item() for g in gradients.values())
        for gradients in ({k: found[k] - v for k, v in expected.items()}, expected)
    ]
    return float((lengths[0] / lengths[1]) ** 0.5)


def furthest(found: Gradients, expected: Gradients) -> float:
    """The largest error, of the largest value of the same tensor."""
    assert found.keys() == expected.keys()
    errors = {k: (mx.abs(found[k] - v).max() / mx.abs(v).max()).item() for k, v in expected.items()}
    return max(errors.values())


def trained(
    trainer: Trainer, objective: Objective, settings: TrainConfig
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
    size = sum(objective.sizes)
    return size * value, {k: size * v for k, v in tree_flatten(gradients)}, batches


# ---- memory --------------------------------------------------------------------------------------

FIVE: dict[str, Any] = {
    "hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 768, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
}  # fmt: skip


def some_items(count: int, prompt: int, response: int, rows: int = 2) -> list[Item]:
    rng = np.random.default_rng(0)

    def some(length: int) -> list[int]:
        return [int(t) for t in rng.integers(0, 500, length)]

    prompts = [some(prompt) for _ in range(count)]
    return [tuple(Row(one, some(response)) for _ in range(rows)) for one in prompts]


def taken(model: nn.Module, network: Network, items: list[Item], recomputed: int) -> int:
    """Bytes that the gradients of a batch take, besides what was there before."""
    batch = collate(items, share=network.shares)

    def go() -> None:
        with recomputed_layers(model, recomputed):
            plainly(model, lambda model: network.logps(batch, training=True).sum())

    go()  # what is made once, is made
    return most_bytes(go)
