"""The one training loop: preference pairs or single responses, on LoRA or on all weights.

A step is `batch × accumulate` examples. Gradients are of the sum of the examples' losses, divided
once by the step's number of pairs (dpo) or response tokens (sft), so neither the batch size nor the
accumulation changes the loss.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlxreflect.seeds import rng_for, seed_mlx
from mlxreflect.train.batches import Batch, Pair, Row, collate
from mlxreflect.train.losses import dpo_loss, nll_loss, sequence_logps, token_logps

Arrays = dict[str, mx.array]
Seed = tuple[int | str, ...]


@dataclass(frozen=True)
class Settings:
    """What one call of `fit` needs; see [train] of the recipe."""

    lr: float
    batch: int
    accumulate: int = 1
    epochs: int = 1
    beta: float = 0.1
    logps: str = "sum"
    nll: float = 0.0
    dpo: float = 1.0
    clip: float = 1.0
    warmup: int = 0
    weight_decay: float = 0.0
    grad_checkpoint: bool = False


@dataclass(frozen=True)
class Step:
    """Metrics of one optimizer step. margin, accuracy: over its pairs; None for sft.

    loss: mean a pair (dpo) or a token (sft). tokens: response tokens trained. seconds: wall time.
    """

    objective: str
    step: int
    loss: float
    margin: float | None
    accuracy: float | None
    lr: float
    grad_norm: float
    tokens: int
    seconds: float

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Trainer:
    """Trains the model's trainable parameters; one AdamW an objective, whose state is kept.

    Two optimizers, because the moments of one loss are no estimate of the other's gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizers: dict[str, optim.AdamW] = {}
        self.steps: dict[str, int] = {}

    def trainable(self) -> Arrays:
        return dict(tree_flatten(self.model.trainable_parameters()))

    def optimizer(self, objective: str, weight_decay: float) -> optim.AdamW:
        if objective not in self.optimizers:
            optimizer = optim.AdamW(0.0, weight_decay=weight_decay, bias_correction=True)
            optimizer.init(self.model.trainable_parameters())
            self.optimizers[objective], self.steps[objective] = optimizer, 0
        return self.optimizers[objective]

    def fit_pairs(
        self,
        pairs: Sequence[Pair],
        reference: Arrays | None,
        settings: Settings,
        seed: Seed,
        on_step: Callable[[Step], None] | None = None,
    ) -> list[Step]:
        """DPO (plus the optional NLL term) over all pairs, `epochs` times in a seeded order.

        reference: trainable parameters of the reference policy; None: no reference (zeros).
        """
        if not pairs:
            return []
        self.model.eval()  # dropout would make policy and reference differ from themselves
        rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
        scores = self.reference_logps(rows, reference, settings) if reference else [0.0] * len(rows)

        def loss(model: nn.Module, members: list[int]) -> tuple[mx.array, mx.array]:
            batch = [pairs[i].chosen for i in members] + [pairs[i].rejected for i in members]
            ref = mx.array([[scores[2 * i], scores[2 * i + 1]] for i in members])
            return pair_loss(model, collate(batch), ref, settings)

        def size(members: list[int]) -> float:
            return float(len(members))

        def tokens(members: list[int]) -> int:
            return sum(len(pairs[i].chosen.response + pairs[i].rejected.response) for i in members)

        def length(i: int) -> int:
            return max(pairs[i].chosen.length, pairs[i].rejected.length)

        return self.run("dpo", loss, len(pairs), size, tokens, length, settings, seed, on_step)

    def fit_rows(
        self,
        rows: Sequence[Row],
        settings: Settings,
        seed: Seed,
        on_step: Callable[[Step], None] | None = None,
        *,
        dropout: bool = True,
    ) -> list[Step]:
        """SFT on responses: mean NLL a token over each step."""
        if not rows:
            return []
        self.model.train(dropout)

        def loss(model: nn.Module, members: list[int]) -> tuple[mx.array, mx.array]:
            batch = collate([rows[i] for i in members])
            logps = batch_logps(model, batch)
            return (-logps * batch.weights).sum(), mx.zeros_like(logps)

        def size(members: list[int]) -> float:
            return sum(rows[i].weight * len(rows[i].response) for i in members)

        def tokens(members: list[int]) -> int:
            return sum(len(rows[i].response) for i in members)

        def length(i: int) -> int:
            return rows[i].length

        steps = self.run("sft", loss, len(rows), size, tokens, length, settings, seed, on_step)
        self.model.eval()
        return steps

    def run(
        self,
        objective: str,
        loss: Callable[[nn.Module, list[int]], tuple[mx.array, mx.array]],
        count: int,
        size: Callable[[list[int]], float],
        tokens: Callable[[list[int]], int],
        length: Callable[[int], int],
        settings: Settings,
        seed: Seed,
        on_step: Callable[[Step], None] | None,
    ) -> list[Step]:
        gradient = nn.value_and_grad(self.model, loss)
        steps: list[Step] = []
        seed_mlx(*seed, objective, "dropout")
        with layer_checkpoints(self.model, settings.grad_checkpoint):
            for epoch in range(settings.epochs):
                order = list(range(count))
                rng_for(*seed, objective, "order", epoch).shuffle(order)
                for group in chunks(order, settings.batch * settings.accumulate):
                    started = time.perf_counter()
                    total, norm, margins = self.step(
                        objective, gradient, group, size, length, settings
                    )
                    preference = objective == "dpo"
                    step = Step(
                        objective,
                        self.steps[objective],
                        total,
                        sum(margins) / len(margins) if preference else None,
                        sum(m > 0 for m in margins) / len(margins) if preference else None,
                        float(self.optimizers[objective].learning_rate.item()),
                        norm,
                        tokens(group),
                        time.perf_counter() - started,
                    )
                    steps.append(step)
                    if on_step:
                        on_step(step)
        mx.clear_cache()
        return steps

    def step(
        self,
        objective: str,
        gradient: Callable[..., Any],
        group: list[int],
        size: Callable[[list[int]], float],
        length: Callable[[int], int],
        settings: Settings,
    ) -> tuple[float, float, list[float]]:
        """One update; returns the loss, the gradient's norm before clipping, and the margins."""
        grads: Any = None
        total, margins = 0.0, []
        # Alike lengths together: less padding, and the sum over the step stays what it was.
        for members in chunks(sorted(group, key=length), settings.batch):
            (value, margin), part = gradient(self.model, members)
            grads = part if grads is None else tree_map(mx.add, grads, part)
            mx.eval(value, margin, grads)
            total += value.item()
            margins += margin.tolist()
        scale = 1 / size(group)
        grads = tree_map(lambda g: g * scale, grads)
        grads, norm = optim.clip_grad_norm(grads, settings.clip or math.inf)
        optimizer = self.optimizer(objective, settings.weight_decay)
        self.steps[objective] += 1
        done = self.steps[objective]
        optimizer.learning_rate = settings.lr * min(1.0, done / max(1, settings.warmup))
        optimizer.update(self.model, grads)
        mx.eval(self.model.trainable_parameters(), optimizer.state, norm)
        return total * scale, norm.item(), margins

    def reference_logps(
        self, rows: Sequence[Row], reference: Arrays, settings: Settings
    ) -> list[float]:
        """Summed log-probabilities of the responses under other trainable parameters."""
        scores = [0.0] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda i: rows[i].length)
        with parameters(self.model, reference):
            for members in chunks(by_length, 2 * settings.batch):
                logps = batch_logps(self.model, collate([rows[i] for i in members]))
                for i, score in zip(members, np.array(logps), strict=True):
                    scores[i] = float(score)
        return scores


def batch_logps(model: nn.Module, batch: Batch) -> mx.array:
    """Summed response log-probabilities of a batch, [B]."""
    return sequence_logps(token_logps(model(batch.inputs), batch.targets), batch.mask)


def pair_loss(
    model: nn.Module, batch: Batch, reference: mx.array, settings: Settings
) -> tuple[mx.array, mx.array]:
    """Summed loss over pairs, and each pair's margin [B].

    batch: chosen rows then rejected rows, [2B, T]; reference: [B, 2] summed log-probabilities.
    """
    logps = batch_logps(model, batch)
    half = reference.shape[0]
    lengths = batch.lengths if settings.logps == "mean" else mx.ones_like(batch.lengths)
    preference, margin = dpo_loss(
        logps[:half] / lengths[:half],
        logps[half:] / lengths[half:],
        reference[:, 0] / lengths[:half],
        reference[:, 1] / lengths[half:],
        settings.beta,
    )
    nll = nll_loss(logps[:half], batch.lengths[:half])
    loss = settings.dpo * preference + settings.nll * nll
    return (loss * batch.weights[:half]).sum(), margin


def chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def parameters(model: nn.Module, arrays: Arrays) -> Iterator[None]:
    """The model with other trainable parameters, for the duration."""
    own = dict(tree_flatten(model.trainable_parameters()))
    model.update(tree_unflatten(list(arrays.items())))
    try:
        yield
    finally:
        model.update(tree_unflatten(list(own.items())))


@contextmanager
def layer_checkpoints(model: nn.Module, on: bool) -> Iterator[None]:
    """Recompute each layer's activations in the backward pass instead of keeping them.

    Patches the layer classes for the duration only.
    """
    kinds = {type(layer) for layer in model.layers} if on else set()
    originals = {kind: kind.__call__ for kind in kinds}

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            def inner(params: Any, *args: Any, **kwargs: Any) -> Any:
                layer.update(params)
                return original(layer, *args, **kwargs)

            return mx.checkpoint(inner)(layer.trainable_parameters(), *args, **kwargs)

        return call

    for kind, original in originals.items():
        kind.__call__ = patched(original)
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__call__ = original
