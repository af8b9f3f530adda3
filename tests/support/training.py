"""Small random models, rows and pairs of tokens, and what float64 says of them."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.config.schema import LoraConfig, TrainConfig
from mlxreflect.train.batches import Group, Pair, Row
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.network import Arrays
from mlxreflect.train.objectives import Objective, imitation
from mlxreflect.train.trainer import Seed, Step, Trainer

OnStep = Callable[[Step], None]
GRPO = GrpoConfig()


VOCABULARY = 29


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + e^x) in float64."""
    return np.where(x > 0, x + np.log1p(np.exp(-np.abs(x))), np.log1p(np.exp(-np.abs(x))))


def log_probabilities(model: nn.Module, row: Row) -> np.ndarray:
    """Of the response's tokens, each row by itself and without padding, in float64."""
    tokens = np.array(row.prompt + row.response)
    logits = np.array(model(mx.array(tokens[None, :-1])).astype(mx.float32), np.float64)[0]
    every = log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]]
    return every[len(row.prompt) - 1 :]


def small_model(seed: int = 0) -> nn.Module:
    mx.random.seed(seed)
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2", hidden_size=16, num_hidden_layers=2, intermediate_size=24,
            num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6, vocab_size=VOCABULARY,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    mx.eval(model.parameters())
    return model


def rows(seed: int, shapes: list[tuple[int, int]]) -> list[Row]:
    rng = np.random.default_rng(seed)

    def some(n: int) -> list[int]:
        return [int(t) for t in rng.integers(0, VOCABULARY, n)]

    return [Row(some(prompt), some(response)) for prompt, response in shapes]


SHAPES = [(5, 4), (3, 9), (7, 1), (5, 6), (3, 2), (7, 12)]


def long_pairs(seed: int) -> list[Pair]:
    """Pairs whose rows begin alike for so long that it is worth sharing: prompt and an opening."""
    found, shapes = [], [(30, 4, 3, 6), (26, 0, 5, 2), (33, 2, 1, 7)]
    for i, (prompt, opening, chosen, rejected) in enumerate(shapes):
        (begin,) = rows(seed + 10 * i, [(prompt, opening + 1)])
        ends = rows(seed + 10 * i + 1, [(1, chosen), (1, rejected)])
        shared = begin.response[:opening]
        found.append(Pair(*(Row(begin.prompt, shared + end.response) for end in ends)))
    return found


# The bias of k_proj is left out: its gradient is zero but for rounding, which Adam would blow up.
KEYS = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]


def make_pairs(seed: int, count: int) -> list[Pair]:
    """Pairs with shared prompts; no two have the same number of response tokens."""
    rng = np.random.default_rng(seed)
    lengths = [(1 + i, 3 + (5 * i) % 11) for i in range(count)]
    prompts = rows(seed, [(int(n), 1) for n in rng.integers(2, 9, count)])
    answers = rows(seed + 1, [(1, n) for both in lengths for n in both])
    return [
        Pair(Row(p.prompt, answers[2 * i].response), Row(p.prompt, answers[2 * i + 1].response))
        for i, p in enumerate(prompts)
    ]


def lora_trainer(seed: int = 0, *, grown: bool = True, dropout: float = 0.0) -> Trainer:
    """A small float32 model with LoRA; grown: lora_b is random, as if it had been trained."""
    model = small_model()
    attach_lora(model, LoraConfig(rank=4, scale=2.0, dropout=dropout, keys=KEYS), seed)
    if grown:
        mx.random.seed(1000 + seed)
        for _, module in model.named_modules():
            if "lora_b" in module:
                module.lora_b = 0.3 * mx.random.normal(module.lora_b.shape)
    mx.eval(model.parameters())
    return Trainer(model)


def copied(trainer: Trainer) -> dict[str, np.ndarray]:
    return {k: np.array(v) for k, v in trainer.trainable().items()}


def all_bytes(model: nn.Module) -> dict[str, bytes]:
    return {k: bytes(memoryview(v)) for k, v in tree_flatten(model.parameters())}


def lora_bytes(trainer: Trainer) -> dict[str, bytes]:
    return {k: v.tobytes() for k, v in copied(trainer).items()}


def first_gradient(trainer: Trainer, objective: str) -> dict[str, np.ndarray]:
    """The gradient of the first step, as the optimizer saw it: m = (1 − 0.9) · gradient."""
    state = dict(tree_flatten(trainer.optimizers[objective].state))
    return {k[:-2]: np.array(v) * 10 for k, v in state.items() if k.endswith(".m")}


def pair_scores(model: nn.Module, pairs: list[Pair]) -> np.ndarray:
    """[pairs, 2] summed log-probabilities, each sequence by itself, in float64."""
    return np.array(
        [[log_probabilities(model, row).sum() for row in (p.chosen, p.rejected)] for p in pairs]
    )


def near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=tolerance, rtol=0, err_msg=name)


def flagged(row: Row, seed: int) -> Row:
    """About half of the response hidden from the loss, never all of it."""
    flags = np.random.default_rng(seed).random(len(row.response)) < 0.5
    flags[seed % len(flags)] = True
    return Row(row.prompt, row.response, row.weight, tuple(flags.tolist()))


def kept(model: nn.Module, row: Row) -> np.ndarray:
    """Log-probabilities of the tokens that the loss sees, in float64."""
    every = log_probabilities(model, row)
    return every if row.mask is None else every[np.array(row.mask)]


def make_groups(seed: int) -> list[Group]:
    """Of two to four answers to one prompt, some that begin alike, some with tokens hidden."""
    rng, groups = np.random.default_rng(seed), []
    for i, k in enumerate((3, 2, 4, 3, 2)):
        (begin,) = rows(seed + i, [(6 + 5 * i, 3)])
        ends = rows(seed + 50 + i, [(1, int(n)) for n in rng.integers(2, 9, k)])
        answers = [Row(begin.prompt, begin.response[: i % 3] + end.response) for end in ends]
        answers[0] = flagged(answers[0], i)
        rewards = rng.normal(0, 1, k).round(2) if i else np.array([0.5, 0.5, 0.5])
        groups.append(Group(tuple(answers), tuple(rewards.tolist())))
    return groups


def most_bytes(go: Callable[[], object]) -> int:
    """The most bytes that are held at once, besides what was there before."""
    gc.collect()  # models of earlier tests, or what is there now goes meanwhile
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    go()
    mx.synchronize()
    return int(mx.get_peak_memory() - before)


def fitting(**keys: Any) -> TrainConfig:
    """[train] of a test; log-probabilities are summed unless it says otherwise."""
    return TrainConfig(**({"logps": "sum"} | keys))


def fit(
    trainer: Trainer, objective: Objective, config: TrainConfig, seed: Seed, on_step: OnStep | None
) -> list[Step]:
    """Trains to the end; on_step is called after each step."""
    steps = []
    for step in trainer.train(objective, config, seed):
        steps.append(step)
        if on_step:
            on_step(step)
    return steps


def fit_pairs(
    trainer: Trainer, pairs: Sequence[Pair], reference: Arrays | None, config: TrainConfig,
    seed: Seed, on_step: OnStep | None = None,
) -> list[Step]:  # fmt: skip
    objective = trainer.pair_objective(pairs, reference, config, config.objective)
    return fit(trainer, objective, config, seed, on_step)


def fit_rows(
    trainer: Trainer, data: Sequence[Row], config: TrainConfig, seed: Seed,
    on_step: OnStep | None = None, *, dropout: bool = True,
) -> list[Step]:  # fmt: skip
    return fit(trainer, imitation(data, dropout=dropout), config, seed, on_step)


def fit_groups(
    trainer: Trainer, groups: Sequence[Group], reference: Arrays | None, config: TrainConfig,
    seed: Seed, on_step: OnStep | None = None, *, grpo: GrpoConfig = GRPO,
) -> list[Step]:  # fmt: skip
    objective = trainer.group_objective(groups, reference, config, grpo)
    return fit(trainer, objective, config, seed, on_step)
