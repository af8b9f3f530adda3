"""One optimizer step as figures, and the learning rate's course over steps."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxreflect.train.objectives import Metrics, Settings

TIE = 1e-5  # margins below it are rounding


@dataclass(frozen=True)
class Step:
    """Metrics of one optimizer step.

    loss: mean an item (or a token: sft). margin, accuracy: over its pairs, None without.
    tokens: response tokens trained. seconds: wall time. kl, clipped: grpo's, a token.
    """

    objective: str
    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    margin: float | None = None
    accuracy: float | None = None
    kl: float | None = None
    clipped: float | None = None

    def row(self) -> dict[str, Any]:
        return {
            k: v for k, v in asdict(self).items() if v is not None or k in ("margin", "accuracy")
        }


def schedule(settings: Settings, number: int, total: int) -> float:
    """Share of the learning rate in step `number` (from 0) of `total`, warm-up aside."""
    begun = max(0, number - settings.warmup) / max(1, total - settings.warmup)
    if settings.schedule == "linear":
        return 1 - begun
    return 0.5 * (1 + math.cos(math.pi * begun)) if settings.schedule == "cosine" else 1.0


def gather(value: mx.array, found: Metrics, metrics: dict[str, list[float]]) -> float:
    """A part's loss; its items' metrics join those of the parts before."""
    for name, values in found.items():
        metrics[name] += np.array(values).tolist()
    return float(np.array(value))


def mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def ranking(metrics: dict[str, list[float]]) -> dict[str, float | None]:
    """Mean margin, and the share of pairs ranked right; None where there are no pairs.

    A tie, as of a policy that still is its reference, is right by half.
    """
    margins = metrics.get("margin", [])
    right = [0.5 if abs(margin) < TIE else float(margin > 0) for margin in margins]
    return {"margin": mean(margins), "accuracy": mean(right)}
