"""Answers of evaluations on disk, so that no model answers again what it has answered alike.

A file holds the tokens of one chunk, generated together, under a hash of everything they depend
on: weights, prompts, decoding, batch and backend. So what comes from here is, byte for byte, what
generating it again would give. No text and no question is kept in readable form.
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

from mlxreflect.core.cache import cache_path
from mlxreflect.core.errors import UserError
from mlxreflect.models.load import device_name
from mlxreflect.models.policy import Completion, Policy
from mlxreflect.train.references import model_key

VERSION = 1
# Another BLAS, or another number of its threads, rounds otherwise.
BLAS = ("LD_PRELOAD", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
Kept = list[tuple[list[int], str]]  # token ids and finish reason


class Answers:
    """A folder of kept answers. Raises UserError for one that cannot be used.

    reused: how many answers came from it so far. A damaged file counts as none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.reused = folder, 0
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def open(setting: str) -> "Answers | None":
        """As `cachedir.cache_path` reads the setting; None where it is off."""
        path = cache_path(setting, "answers")
        return Answers(path) if path else None

    def get(self, key: str, count: int) -> Kept | None:
        """The `count` answers kept under a key."""
        try:
            found = json.loads(self.place(key).read_bytes())
            kept = [([int(i) for i in ids], str(reason)) for ids, reason in found]
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        if len(kept) != count:
            return None
        self.reused += count
        return kept

    def put(self, key: str, completions: Sequence[Completion]) -> None:
        """Keep a chunk's answers whole or, where the process dies or the disk fails, not at all."""
        place = self.place(key)
        temporary = place.with_name(f"{key}.{os.getpid()}.tmp")
        with explained(self.folder):
            place.parent.mkdir(exist_ok=True)
            temporary.write_text(json.dumps([(c.token_ids, c.finish_reason) for c in completions]))
            temporary.replace(place)

    def report(self) -> list[str]:
        """A line for a person on what was reused since the last report; none for nothing."""
        reused, self.reused = self.reused, 0
        return [f"{reused} answers were reused from the cache"] if reused else []

    def place(self, key: str) -> Path:
        return self.folder / key[:2] / key


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: the answers cannot be kept there ({error.strerror})",
            "set --cache (of a run: eval.cache) to a folder that can be written, or to off",
        ) from None


def policy_identity(policy: Policy) -> str:
    """What of a policy and of this machine decides its tokens, as a hash of 64 hex digits."""
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
