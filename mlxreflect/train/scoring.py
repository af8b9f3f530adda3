"""Log-probabilities that no gradient is taken of: the reference's, once an item, kept on disk."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from mlxreflect.train.batches import Item, collate
from mlxreflect.train.cpu import faster_on_cpu
from mlxreflect.train.lanes import side_by_side
from mlxreflect.train.network import Network, evaluating
from mlxreflect.train.references import References, reference_key

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
