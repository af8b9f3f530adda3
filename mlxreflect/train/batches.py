"""Rows of tokens → padded batches. Rows that begin alike share their beginning.

An item is a tuple of rows with one prompt: a single response (sft), chosen and rejected
(preference), or k completions (grpo). The tokens that all rows of an item begin with are laid out
once, as its prefix; the rows go on from there as suffixes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

import mlx.core as mx
import numpy as np

PAD_TO = 8  # lengths are rounded up to it: few distinct shapes, and little padding
WORTH = 0.9  # share of the tokens at which running a prefix by itself begins to pay


@dataclass(frozen=True)
class Row:
    """One prompt and response as tokens; the loss sees the response only.

    mask: a flag a response token, False where the loss does not see it either; None: sees all.
    cut: tokens that the prompt lost at its beginning, to fit; nothing depends on it.
    """

    prompt: list[int]
    response: list[int]
    weight: float = 1.0
    mask: tuple[bool, ...] | None = None
    cut: int = field(default=0, repr=False, compare=False)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def trained(self) -> int:
        """Tokens that the loss sees."""
        return len(self.response) if self.mask is None else sum(self.mask)


@dataclass(frozen=True)
class Pair:
    """A preference pair; both rows share their prompt."""

    chosen: Row
    rejected: Row

    @property
    def cut(self) -> int:
        return self.chosen.cut


@dataclass(frozen=True)
class Group:
    """Completions of one prompt and what each was worth."""

    rows: tuple[Row, ...]
    rewards: tuple[float, ...]

    @property
    def cut(self) -> int:
        return self.rows[0].cut


Item = tuple[Row, ...]
Part = dict[int, slice]  # what is computed at once: items by their index, and which of their rows


def whole(items: Mapping[int, Item]) -> Part:
    """Returns the items with all their rows."""
    return {i: slice(0, len(item)) for i, item in items.items()}


def halved(part: Part, splits: bool) -> list[Part]:
    """Returns a part as two: of several items, or where `splits` allows it of one item's rows.

    It comes back alone where it cannot be taken apart.
    """
    middle = len(part) // 2
    if middle:
        items = list(part.items())
        return [dict(items[:middle]), dict(items[middle:])]
    ((i, rows),) = part.items()
    middle = (rows.start + rows.stop) // 2
    if not splits or middle == rows.start:
        return [part]
    return [{i: slice(rows.start, middle)}, {i: slice(middle, rows.stop)}]


class Batch(NamedTuple):
    """Rows of several items, ready for a model. G prefixes, R rows, N scored tokens.

    prefix: [G, P] int32, or None where nothing is shared; then rows are whole.
    inputs: [R, S] int32, what follows the prefix in each row (all but its last token).
    group: [R] int32, the prefix of each row; prefix_lengths: [G] int32.
    from_prefix, from_rows: hidden states that are scored, as indices into [G·P] and [R·S].
    targets: [N] int32, the tokens they predict: first those of the prefix, then of the rows.
    slots: [R, T] int32, the scored tokens of each row in order, N where there are no more.
    mask: [R, T] float32, 1 where there is a token. lengths: [R] tokens that the loss sees,
    also those left out because all rows of an item share them. weights: [R].
    """

    prefix: mx.array | None
    inputs: mx.array
    group: mx.array
    prefix_lengths: mx.array
    from_prefix: mx.array
    from_rows: mx.array
    targets: mx.array
    slots: mx.array
    mask: mx.array
    lengths: mx.array
    weights: mx.array


class Shape(NamedTuple):
    """The cost of a batch. prefix: [G, P], rows: [R, S], as padded."""

    groups: int
    prefix: int
    rows: int
    suffix: int

    @property
    def tokens(self) -> int:
        return self.groups * self.prefix + self.rows * self.suffix


def padded(length: int) -> int:
    return -(-length // PAD_TO) * PAD_TO


def common_prefix(item: Item) -> int:
    """Returns with how many input tokens all rows begin (a row's last token is no input)."""
    wholes = [[*row.prompt, *row.response][:-1] for row in item]
    return sum(1 for _ in takewhile(lambda at: len(set(at)) == 1, zip(*wholes, strict=False)))


def shape_of(items: Sequence[Item], share: bool) -> Shape:
    """The cheaper of two layouts: with prefixes by themselves where `share` allows it, or whole."""
    rows = sum(map(len, items))
    plain = Shape(0, 0, rows, padded(max(row.length for item in items for row in item) - 1))
    if not share or rows == len(items):
        return plain
    prefixes = [common_prefix(item) for item in items]
    suffix = max(
        row.length - 1 - prefix
        for item, prefix in zip(items, prefixes, strict=True)
        for row in item
    )
    shared = Shape(len(items), padded(max(prefixes)), rows, padded(max(suffix, 1)))
    return shared if shared.tokens < WORTH * plain.tokens else plain


def collate(items: Sequence[Item], *, share: bool = False, keep_shared: bool = True) -> Batch:
    """Right-padded arrays of the items' rows.

    share: lay common beginnings out once, where that saves work. keep_shared: score response
    tokens that all rows of an item share; a difference of their sums does not need them.
    """
    shape = shape_of(items, share)
    layout = Layout(shape)
    for number, item in enumerate(items):
        layout.add(number, item, common_prefix(item) if shape.groups else 0, keep_shared)
    return layout.batch()


class Layout:
    """Fills the arrays of a Batch, item by item."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.prefix = np.zeros((shape.groups, shape.prefix), dtype=np.int32)
        self.inputs = np.zeros((shape.rows, shape.suffix), dtype=np.int32)
        self.group: list[int] = []
        self.prefix_lengths: list[int] = []
        self.from_prefix: list[tuple[int, int]] = []  # (index, target)
        self.from_rows: list[tuple[int, int]] = []
        self.slots: list[list[tuple[bool, int]]] = []  # (in the prefix, index into the above)
        self.rows: list[Row] = []

    def add(self, number: int, item: Item, shared: int, keep_shared: bool) -> None:
        if self.shape.groups:
            first = [*item[0].prompt, *item[0].response]
            self.prefix[number, :shared] = first[:shared]
            self.prefix_lengths.append(shared)
        scored: dict[int, int] = {}  # input index → index into from_prefix
        left_out: set[int] = set()  # predict a shared token that the loss of every row sees
        if not keep_shared:
            left_out = set.intersection(*map(set, map(seen, item))) & set(range(shared - 1))
        for row in item:
            tokens = [*row.prompt, *row.response]
            at = len(self.group)
            self.group.append(number)
            self.rows.append(row)
            self.inputs[at, : row.length - 1 - shared] = tokens[shared:-1]
            self.slots.append([])
            for i in seen(row):
                if i in left_out:
                    continue
                if i >= shared:
                    self.slots[at].append((False, len(self.from_rows)))
                    self.from_rows.append((at * self.shape.suffix + i - shared, tokens[i + 1]))
                    continue
                # The last shared position predicts a token of each row's own.
                key = i if i < shared - 1 else -1 - at
                if key not in scored:
                    scored[key] = len(self.from_prefix)
                    self.from_prefix.append((number * self.shape.prefix + i, tokens[i + 1]))
                self.slots[at].append((True, scored[key]))

    def batch(self) -> Batch:
        ahead, total = len(self.from_prefix), len(self.from_prefix) + len(self.from_rows)
        width = padded(max(1, *map(len, self.slots)))
        slots = np.full((len(self.rows), width), total, dtype=np.int32)
        for at, row in enumerate(self.slots):
            slots[at, : len(row)] = [i if in_prefix else ahead + i for in_prefix, i in row]
        scored = [*self.from_prefix, *self.from_rows]
        return Batch(
            mx.array(self.prefix) if self.shape.groups else None,
            mx.array(self.inputs),
            integers(self.group),
            integers(self.prefix_lengths),
            integers([i for i, _ in self.from_prefix]),
            integers([i for i, _ in self.from_rows]),
            integers([target for _, target in scored]),
            mx.array(slots),
            mx.array((slots < total).astype(np.float32)),
            mx.array([row.trained for row in self.rows], dtype=mx.float32),
            mx.array([row.weight for row in self.rows], dtype=mx.float32),
        )


def integers(values: Sequence[int]) -> mx.array:
    return mx.array(np.array(values, dtype=np.int32))


def seen(row: Row) -> Iterator[int]:
    """Input indices whose next token the loss sees."""
    first = len(row.prompt) - 1
    for i in range(len(row.response)):
        if row.mask is None or row.mask[i]:
            yield first + i
