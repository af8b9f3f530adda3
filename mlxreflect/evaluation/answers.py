"""Answers that models gave, on disk, so that none answers again what it has answered alike.

A row of the cache holds the tokens of one chunk, generated together, under a hash of everything
they depend on: weights, prompts, decoding, batch and backend. So what comes from here is, byte for
byte, what generating it again would give. No text and no problem is kept in readable form.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlxreflect.core.cache import KeyedCache, cache_path
from mlxreflect.models.load import device_name
from mlxreflect.models.policy import Completion, Policy

VERSION = 1
FILE = "answers.sqlite"
# Another BLAS, or another number of its threads, rounds otherwise.
BLAS = ("LD_PRELOAD", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


class Answers:
    """The answers of one file. Raises UserError for one that cannot be used.

    path: the file, or a folder that it stands in. reused: how many answers came from it so far. A
    damaged row counts as none.
    """

    def __init__(self, path: Path) -> None:
        path = path / FILE if path.is_dir() else path
        self.cache = KeyedCache(path, "answer cache", "--cache (of a run: eval.cache)")
        self.reused = 0

    @staticmethod
    def open(setting: str) -> "Answers | None":
        """Opens the file that the setting means, as `core.cache.cache_path` reads it."""
        path = cache_path(setting, FILE)
        return Answers(path) if path else None

    def get(self, key: str, count: int) -> list[tuple[list[int], str]] | None:
        """Returns token ids and finish reason of each of the `count` answers kept under a key."""
        value = self.cache.get(key)
        if value is None:
            return None
        try:
            answers = [([int(i) for i in ids], str(why)) for ids, why in json.loads(value)]
        except (ValueError, TypeError, RecursionError):
            answers = []
        if len(answers) != count:
            self.cache.delete([key])
            return None
        self.reused += count
        return answers

    def put(self, key: str, completions: Sequence[Completion]) -> None:
        """Keeps a chunk's answers whole or, where the process dies, not at all."""
        answers = [(one.token_ids, one.finish_reason) for one in completions]
        self.cache.put(key, json.dumps(answers).encode())

    def report(self) -> list[str]:
        """Returns a line on what was reused since the last report, or none."""
        reused, self.reused = self.reused, 0
        return [f"{reused} answers were reused from the cache"] if reused else []


def policy_identity(policy: Policy) -> str:
    """Returns a hash, 64 hex digits, of what of a policy and of this machine decides its tokens."""
    from mlxreflect.train.references import model_key

    with without_idle(policy.model):
        weights = model_key(policy.model, {})
    libraries = {name: version(name) for name in ("mlx", "mlx-lm")}
    blas = [os.environ.get(name, "") for name in BLAS]
    return digest(
        [weights, sorted(policy.eos), libraries, device_name(), platform.platform(), blas]
    )


def digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps([VERSION, parts], sort_keys=True).encode()).hexdigest()


@contextmanager
def without_idle(model: nn.Module) -> Iterator[None]:
    """The model without LoRA layers that add nothing, as a run attaches them before it trains.

    Their second factor is zero, so with them every number is the same to the last bit.
    """
    idle = [
        (name, layer)
        for name, layer in model.named_modules()
        if "lora_b" in layer and "linear" in layer and "m" not in layer  # m: DoRA's
        and not mx.any(layer.lora_b).item()
    ]  # fmt: skip
    model.update_modules(tree_unflatten([(name, layer.linear) for name, layer in idle]))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(idle))
