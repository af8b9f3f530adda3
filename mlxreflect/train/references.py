"""Reference log-probabilities on disk, so that no run computes again what one has computed.

One SQLite file may serve any number of runs and processes at once. A row holds numbers under a
hash of everything they depend on; never a text or a token.

Log-probabilities that no gradient is taken of: the reference's, once an item, kept on disk.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlxreflect.core.cache import Kind, cache_path, connect, explained
from mlxreflect.train.batches import Item, Row, collate
from mlxreflect.train.cpu import faster_on_cpu, side_by_side
from mlxreflect.train.network import Network, evaluating

SCHEMA = "CREATE TABLE logps (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
KIND = Kind("reference cache", "train.reference_cache", 1, SCHEMA)
FLOAT32 = np.dtype("<f4")


# ---- keys ----------------------------------------------------------------------------------------


def reference_key(policy_key: str, rows: Sequence[Row], what: str) -> str:
    """SHA-256, 64 hex digits, over the policy, each row's tokens and mask, and what is kept."""
    tokens = [[row.prompt, row.response, row.mask] for row in rows]
    return hashlib.sha256(json.dumps([policy_key, tokens, what]).encode()).hexdigest()


def model_key(model: nn.Module, adapter: Mapping[str, mx.array]) -> str:
    """SHA-256, 64 hex digits, over the bytes of every parameter and the settings of every layer.

    adapter: arrays that count in place of the model's own of the same name. The layers' settings
    (LoRA's scale, RoPE's base, the bits) are in no array and change the numbers as weights do.
    """
    digest = hashlib.sha256()
    arrays = dict(tree_flatten(model.parameters())) | dict(adapter)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        # One array at a time: at most one is copied, where its layout is not that of its shape.
        digest.update(memoryview(array.reshape(-1).view(mx.uint8)))
    for name, layer in sorted(model.named_modules(), key=lambda item: item[0]):
        digest.update(f"{name} {type(layer).__qualname__} {layer_settings(layer)}\n".encode())
    return digest.hexdigest()


def layer_settings(layer: nn.Module) -> list[tuple[str, object]]:
    """What a layer was made with, other than arrays and layers."""
    return sorted(
        (name, value)
        for name, value in vars(layer).items()
        if not name.startswith("_")
        and (isinstance(value, (bool, int, float, str)) or is_dataclass(value))
    )


# ---- the file ------------------------------------------------------------------------------------


class References:
    """The log-probabilities of one file. Raises UserError for a file it cannot use.

    Values are float32: what comes back is, bit for bit, what was put, if that was float32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The last key, and what it is of.
        self.keyed: tuple[nn.Module, Mapping[str, mx.array], str] | None = None
        with explained(path, KIND):
            self.connection = connect(path, KIND)

    @staticmethod
    def open(setting: str) -> "References | None":
        """As `cachedir.cache_path` reads the setting; None where it is off."""
        path = cache_path(setting, "references.sqlite")
        return References(path) if path else None

    def key_of(self, model: nn.Module, adapter: Mapping[str, mx.array]) -> str:
        """What log-probabilities under these parameters are kept by."""
        if self.keyed and self.keyed[0] is model and self.keyed[1] is adapter:
            return self.keyed[2]
        key = f"{model_key(model, adapter)} {mx.default_device()}"
        if any(name.endswith("lora_a") for name in adapter):  # all weights are not held twice
            self.keyed = model, adapter, key
        return key

    def get(self, keys: Sequence[str]) -> list[list[float] | None]:
        """What is kept under each key, None where nothing is."""
        query = "SELECT value FROM logps WHERE key = ?"
        with explained(self.path, KIND):
            rows = [self.connection.execute(query, (key,)).fetchone() for key in keys]
            return [None if row is None else unpack(row[0]) for row in rows]

    def put(self, items: Mapping[str, list[float]]) -> None:
        """Keep all of the items or, where the process dies or the disk fails, none.

        A key that is there already keeps its value, the first writer's.
        """
        insert = "INSERT OR IGNORE INTO logps VALUES (?, ?)"
        with explained(self.path, KIND):
            self.connection.execute("BEGIN IMMEDIATE")
            with self.connection:  # commits, or rolls back
                rows = ((key, pack(values)) for key, values in items.items())
                self.connection.executemany(insert, rows)

    def close(self) -> None:
        self.connection.close()


def pack(values: Sequence[float]) -> bytes:
    return np.asarray(values, dtype=FLOAT32).tobytes()


def unpack(value: object) -> list[float]:
    if not isinstance(value, bytes) or len(value) % FLOAT32.itemsize:
        raise sqlite3.DatabaseError("a row that is no float32 list")
    values: list[float] = np.frombuffer(value, dtype=FLOAT32).tolist()
    return values


SCORED_TOKENS = {"cpu": 1024, "gpu": 8192}  # in a batch, shared ones counted for each row
LEAST_ROWS = 4  # in a batch, however long
What = Literal["sums", "tokens"]


class Kept(NamedTuple):
    """Where log-probabilities are kept, and the key of the policy that they are of."""

    references: References
    policy_key: str


def score(
    network: Network,
    items: Sequence[Item],
    what: What,
    keep_shared: bool,
    kept: Kept | None,
) -> list[np.ndarray]:
    """float32 log-probabilities of each item's rows under the network as it is.

    what: "sums", [rows], or "tokens", those of all its rows, one after the other.
    keep_shared: as for `collate`; without, only differences of sums mean something.
    """
    found: list[np.ndarray] = [np.zeros(0)] * len(items)
    keys = [reference_key(kept.policy_key, item, f"{what} {keep_shared}") if kept else ""
            for item in items]  # fmt: skip
    owed: list[list[int]] = []
    for members in scoring_batches(items):
        known = kept.references.get([keys[i] for i in members]) if kept else [None]
        if any(values is None for values in known):
            # All of a batch: what a stopped run does again comes out the same to the last bit.
            owed.append(members)
            continue
        for i, values in zip(members, known, strict=True):
            found[i] = np.array(values, dtype=np.float32)

    def scored(members: list[int]) -> tuple[mx.array, mx.array]:
        some = [items[i] for i in members]
        layout = collate(some, share=network.shares, keep_shared=keep_shared)
        return network.logps(layout), layout.mask

    mx.eval(network.model.parameters())  # here, where they were made
    # Dropout would make it another policy.
    with evaluating(network.model), faster_on_cpu(network.model):
        for members, (logps, mask) in side_by_side(scored, owed):
            for i, own in zip(members, split(logps, mask, items, members, what), strict=True):
                found[i] = own
            if kept:
                kept.references.put({keys[i]: found[i].tolist() for i in members})
                # Another process may have been first: what is kept counts for both.
                firsts = kept.references.get([keys[i] for i in members])
                for i, first in zip(members, firsts, strict=True):
                    found[i] = np.array(first, dtype=np.float32)
    return found


def split(
    logps: mx.array, mask: mx.array, items: Sequence[Item], members: list[int], what: What
) -> Iterator[np.ndarray]:
    """Log-probabilities [R, T] of a batch's rows, item by item."""
    values, real = np.array(logps), np.array(mask) > 0
    at = 0
    for i in members:
        rows = [values[r][real[r]] for r in range(at, at + len(items[i]))]
        at += len(items[i])
        if what == "tokens":
            yield np.concatenate(rows)
        else:
            yield np.array([row.sum(dtype=np.float64) for row in rows], dtype=np.float32)


def scoring_batches(items: Sequence[Item]) -> Iterator[list[int]]:
    """The items in order of length, as many at a time as fit into so many tokens."""
    most = SCORED_TOKENS["cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"]
    part: list[int] = []
    rows = 0
    for i in sorted(range(len(items)), key=lambda i: longest(items[i])):
        rows += len(items[i])
        if rows > LEAST_ROWS and rows * longest(items[i]) > most:
            yield part
            part, rows = [], len(items[i])
        part.append(i)
    if part:
        yield part


def longest(item: Item) -> int:
    return max(row.length for row in item)
