"""Log-probabilities that no gradient is taken of: the reference's, once an item, kept on disk."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mlxreflect.train.batches import Item, collate
from mlxreflect.train.network import Network, evaluating
from mlxreflect.train.references import References, reference_key

SCORED_TOKENS = 8192  # of a batch, where the trainer's own batch is smaller
What = Literal["sums", "tokens"]


class Kept(NamedTuple):
    """Where log-probabilities are kept, and the key of the policy that they are of."""

    references: References
    policy_key: str


def score(
    network: Network,
    items: Sequence[Item],
    batch: int,
    what: What,
    keep_shared: bool,
    kept: Kept | None,
) -> list[np.ndarray]:
    """float32 log-probabilities of each item's rows under the network as it is.

    what: "sums", [rows], or "tokens", those of all its rows, one after the other.
    keep_shared: as for `collate`; without, only differences of sums mean something.
    """
    by_length = sorted(range(len(items)), key=lambda i: longest(items[i]))
    found: list[np.ndarray] = [np.zeros(0)] * len(items)
    for members in scoring_batches(items, by_length, batch):
        keys = [reference_key(kept.policy_key, items[i], f"{what} {keep_shared}")
                for i in members] if kept else []  # fmt: skip
        known = kept.references.get(keys) if kept else [None]
        if all(values is not None for values in known):
            for i, values in zip(members, known, strict=True):
                found[i] = np.array(values, dtype=np.float32)
            continue
        # All of a batch again: what a stopped run does again, comes out the same to the last bit.
        layout = collate([items[i] for i in members], share=network.shares, keep_shared=keep_shared)
        with evaluating(network.model):  # dropout would make it another policy
            logps, mask = np.array(network.logps(layout)), np.array(layout.mask) > 0
        at = 0
        for i in members:
            rows = range(at, at + len(items[i]))
            at += len(items[i])
            each = [logps[r][mask[r]] for r in rows]
            sums = np.array([row.sum(dtype=np.float64) for row in each], dtype=np.float32)
            found[i] = np.concatenate(each) if what == "tokens" else sums
        if kept:
            values_of = (found[i].tolist() for i in members)
            kept.references.put(dict(zip(keys, values_of, strict=True)))
            # Another process may have been first: what is kept counts for both.
            for i, values in zip(members, kept.references.get(keys), strict=True):
                found[i] = np.array(values, dtype=np.float32)
    return found


def scoring_batches(items: Sequence[Item], order: list[int], batch: int) -> Iterator[list[int]]:
    """The items in order (of length), at least `batch` at a time and more while they are short."""
    part: list[int] = []
    rows = 0
    for i in order:
        rows += len(items[i])
        if len(part) >= batch and rows * longest(items[i]) > SCORED_TOKENS:
            yield part
            part, rows = [], len(items[i])
        part.append(i)
    if part:
        yield part


def longest(item: Item) -> int:
    return max(row.length for row in item)
