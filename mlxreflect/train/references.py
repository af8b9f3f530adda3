"""Log-probabilities that no gradient is taken of: the reference's, once an item, kept on disk.

Kept are numbers under a hash of everything they depend on; never a text or a token.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxreflect.core.cache import KeyedCache, cache_path
from mlxreflect.models.load import model_key, on_cpu
from mlxreflect.train.batches import Item, Row, collate
from mlxreflect.train.cpu import in_parts
from mlxreflect.train.memory import most_tokens
from mlxreflect.train.network import Network, evaluating

FLOAT32 = np.dtype("<f4")
SCORED_TOKENS = {"cpu": 1024, "gpu": 8192}  # in a batch, shared ones counted for each row
LEAST_ROWS = 4  # in a batch, however long
What = Literal["sums", "tokens"]
# Batches of items → the index of each with its items' log-probabilities, in any order.
Compute = Callable[[Sequence[Sequence[Item]]], Iterator[tuple[int, list[np.ndarray]]]]


class References:
    """The float32 log-probabilities of one file. Raises UserError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.cache = KeyedCache(path, "reference cache", "train.reference_cache")
        # The last key, and what it is of.
        self.keyed: tuple[nn.Module, Mapping[str, mx.array], str] | None = None

    @staticmethod
    def open(setting: str) -> "References | None":
        """Opens what `core.cache.cache_path` makes of the setting; None where it is off."""
        path = cache_path(setting, "references.sqlite")
        return References(path) if path else None

    def key_of(self, model: nn.Module, adapter: Mapping[str, mx.array]) -> str:
        """Returns the key of log-probabilities under these parameters."""
        if self.keyed and self.keyed[0] is model and self.keyed[1] is adapter:
            return self.keyed[2]
        key = f"{model_key(model, adapter)} {mx.default_device()}"
        if any(name.endswith("lora_a") for name in adapter):  # all weights are not held twice
            self.keyed = model, adapter, key
        return key

    def get(self, key: str) -> np.ndarray | None:
        value = self.cache.get(key)
        if value is None:
            return None
        if len(value) % FLOAT32.itemsize:
            raise self.cache.damaged("a row that is no float32 list")
        return np.frombuffer(value, dtype=FLOAT32)

    def put(self, items: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Keeps all of the items, or none; returns what is kept: another may have been first."""
        self.cache.put_all({k: array.astype(FLOAT32).tobytes() for k, array in items.items()})
        return {k: array for k in items if (array := self.get(k)) is not None}

    def close(self) -> None:
        self.cache.close()


def score(
    network: Network,
    items: Sequence[Item],
    what: What,
    keep_shared: bool,
    references: References | None,
    policy_key: str,
    part_tokens: int = 0,
    compute: Compute | None = None,
) -> list[np.ndarray]:
    """Returns float32 log-probabilities of each item's rows under the network as it is.

    what: "sums", [rows], or "tokens", those of all its rows, one after the other.
    keep_shared: as for `collate`; without, only differences of sums mean something.
    references: where they are kept; policy_key: of the policy that they are of. part_tokens: the
    most in a batch of several items, as for `memory.most_tokens`. compute: what is done in place of
    `computed` with the batches that nothing is kept of.
    """
    found: list[np.ndarray] = [np.zeros(0)] * len(items)
    keys = [reference_key(policy_key, item, f"{what} {keep_shared}") if references else ""
            for item in items]  # fmt: skip
    owed: list[list[int]] = []
    for members in scoring_batches(items, most_tokens(part_tokens)):
        known = [references.get(keys[i]) if references else None for i in members]
        whole = [values for values in known if values is not None]
        if len(whole) < len(members):
            # All of a batch: what a stopped run does again comes out the same to the last bit.
            owed.append(members)
            continue
        for i, values in zip(members, whole, strict=True):
            found[i] = values

    compute = compute or partial(computed, network, what, keep_shared)
    for at, own in compute([[items[i] for i in members] for members in owed]):
        members = owed[at]
        if references:  # what was kept first counts for all processes
            first = references.put({keys[i]: o for i, o in zip(members, own, strict=True)})
            own = [first[keys[i]] for i in members]
        for i, values in zip(members, own, strict=True):
            found[i] = values
    return found


def computed(
    network: Network, what: What, keep_shared: bool, batches: Sequence[Sequence[Item]]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yields the index of each batch with its items' log-probabilities."""

    def scored(at: int) -> tuple[mx.array, mx.array]:
        layout = collate(batches[at], share=network.shares, keep_shared=keep_shared)
        return network.logps(layout), layout.mask

    with evaluating(network.model):  # dropout would make it another policy
        for at, (logps, mask) in in_parts(network.model, scored, range(len(batches))):
            yield at, list(split(logps, mask, batches[at], what))


def split(
    logps: mx.array, mask: mx.array, items: Sequence[Item], what: What
) -> Iterator[np.ndarray]:
    """Log-probabilities [R, T] of a batch's rows, item by item."""
    values, real = np.array(logps), np.array(mask) > 0
    at = 0
    for item in items:
        rows = [values[r][real[r]] for r in range(at, at + len(item))]
        at += len(item)
        if what == "tokens":
            yield np.concatenate(rows)
        else:
            yield np.array([row.sum(dtype=np.float64) for row in rows], dtype=np.float32)


def scoring_batches(items: Sequence[Item], most: float) -> Iterator[list[int]]:
    """The items in order of length, as many at a time as fit into so many tokens, and into most."""
    good = SCORED_TOKENS["cpu" if on_cpu() else "gpu"]
    lengths = [max(row.length for row in item) for item in items]
    part: list[int] = []
    rows = 0
    for i in sorted(range(len(items)), key=lambda i: lengths[i]):
        rows += len(items[i])
        tokens = rows * lengths[i]
        if part and (tokens > most or (rows > LEAST_ROWS and tokens > good)):
            yield part
            part, rows = [], len(items[i])
        part.append(i)
    if part:
        yield part


def reference_key(policy_key: str, rows: Sequence[Row], what: str) -> str:
    """Returns SHA-256, 64 hex digits, over the policy, the rows' tokens and masks, and `what`."""
    tokens = [[row.prompt, row.response, row.mask] for row in rows]
    return hashlib.sha256(json.dumps([policy_key, tokens, what]).encode()).hexdigest()
