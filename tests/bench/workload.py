"""Random Qwen2 models, LoRA and pairs for the benchmarks, and what their work costs."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models import qwen2
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import get_total_parameters

from mlxreflect.train.batches import Pair, Row

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHAPES: dict[str, dict[str, int]] = {
    "5M": {"hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 768,
           "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 8192},
    "41M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1472,
            "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000},
}  # fmt: skip


def random_model(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model of about so many parameters, in float32, with weights of a trained one's size."""
    shape = {**SHAPES[name], "rms_norm_eps": 1e-6, "rope_theta": 10000.0, **changes}
    config = {"model_type": "qwen2", "tie_word_embeddings": True, **shape}
    mx.random.seed(seed)
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    model.update(tree_map(lambda a: a + 0.02 * mx.random.normal(a.shape), model.parameters()))
    mx.eval(model.parameters())
    return model


def with_lora(model: nn.Module) -> nn.Module:
    """Rank 16 on q, k, v and o of all layers; B is not zero, so that no gradient is."""
    keys = [f"self_attn.{name}_proj" for name in "qkvo"]
    parameters = {"rank": 16, "scale": 2.0, "dropout": 0.0, "keys": keys}
    mx.random.seed(1)
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), parameters)
    trained = tree_flatten(model.trainable_parameters())
    drawn = [(k, 0.02 * mx.random.normal(v.shape)) for k, v in trained if k.endswith("lora_b")]
    model.update(tree_unflatten(drawn))
    mx.eval(model.parameters())
    return model


def random_pairs(count: int, prompt: int, kept: float) -> list[Pair]:
    """Lengths within a tenth of `prompt` and 130; chosen keeps so much of rejected's beginning."""
    rng = np.random.default_rng(0)

    def draw(about: int) -> list[int]:
        length = int(rng.integers(about - about // 10, about + about // 10 + 1))
        drawn: list[int] = rng.integers(0, 512, length).tolist()
        return drawn

    pairs = []
    for _ in range(count):
        asked, rejected, chosen = draw(prompt), draw(130), draw(130)
        keep = int(kept * len(rejected))
        pairs.append(Pair(Row(asked, rejected[:keep] + chosen[keep:]), Row(asked, rejected)))
    return pairs


def useful_flops(model: nn.Module, pairs: list[Pair]) -> int:
    """A DPO step with LoRA, reference included: see the beginning of dpo_step.py."""
    arguments = model.args
    head = arguments.vocab_size * arguments.hidden_size
    tables = head * (1 if arguments.tie_word_embeddings else 2)
    body = get_total_parameters(model) - tables
    distinct = responses = 0
    for pair in pairs:
        one, other = pair.chosen.response, pair.rejected.response
        same = [a == b for a, b in zip(one, other, strict=False)]
        shared = [*same, False].index(False)
        responses += len(one) + len(other) - shared
        distinct += len(pair.chosen.prompt) + len(one) + len(other) - shared
    return 6 * (body * distinct + head * responses)


def gemm_peak(clock: Callable[[], float]) -> float:
    """FLOP a second of a float32 product of 1024 × 1024 matrices."""
    a, b = mx.random.normal((1024, 1024)), mx.random.normal((1024, 1024))
    mx.eval(a @ b)
    spent = []
    for _ in range(9):
        started = clock()
        mx.eval(a @ b)
        mx.synchronize()
        spent.append(clock() - started)
    return 2 * 1024**3 / median(spent)
