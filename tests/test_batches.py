"""Padded batches against brute force: what each scored state has read, and what it predicts."""

from collections.abc import Sequence
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxreflect.train import batches
from mlxreflect.train.batches import PAD_TO, Batch, Item, Row, collate, shape_of

Scored = tuple[tuple[int, ...], int]  # all tokens that a state has read, and the one it predicts


def scored(batch: Batch) -> list[list[Scored]]:
    """Of each row, from the arrays alone."""
    inputs, targets, slots, group = (
        np.array(a) for a in (batch.inputs, batch.targets, batch.slots, batch.group)
    )
    ahead, from_rows = batch.from_prefix.tolist(), batch.from_rows.tolist()
    assert len(targets) == len(ahead) + len(from_rows)
    found = []
    for row in range(len(inputs)):
        begun: list[int] = []
        if batch.prefix is not None:
            begun = batch.prefix[group[row]].tolist()[: batch.prefix_lengths[group[row]].item()]
        found.append([])
        for n in slots[row][np.array(batch.mask[row]) == 1]:
            if n < len(ahead):
                of, at = divmod(ahead[n], batch.prefix.shape[1])
                assert of == group[row] and at < len(begun)
                read = begun[: at + 1]
            else:
                of, at = divmod(from_rows[n - len(ahead)], inputs.shape[1])
                assert of == row
                read = begun + inputs[row, : at + 1].tolist()
            found[-1].append((tuple(read), int(targets[n])))
    return found


def positions(row: Row) -> list[int]:
    """Of the response tokens that the loss sees, in prompt + response."""
    flags = row.mask or [True] * len(row.response)
    return [len(row.prompt) + i for i, seen in enumerate(flags) if seen]


def brute(row: Row, left_out: Sequence[int] = ()) -> list[Scored]:
    tokens = [*row.prompt, *row.response]
    return [(tuple(tokens[:i]), tokens[i]) for i in positions(row) if i not in left_out]


def brute_shared(item: Item) -> int:
    """How many tokens all rows begin with, the last of each left out."""
    wholes = [[*row.prompt, *row.response][:-1] for row in item]
    n = 0
    while n < min(map(len, wholes)) and len({tuple(whole[: n + 1]) for whole in wholes}) == 1:
        n += 1
    return n


def rows_of(items: Sequence[Item]) -> list[Row]:
    return [row for item in items for row in item]


def check(items: Sequence[Item], *, share: bool, keep_shared: bool) -> Batch:
    """Everything that a batch promises, for any items."""
    batch, rows = collate(items, share=share, keep_shared=keep_shared), rows_of(items)
    shared = [brute_shared(item) if batch.prefix is not None else 0 for item in items]
    expected, states = [], set()
    for number, (item, n) in enumerate(zip(items, shared, strict=True)):
        common = set.intersection(*(set(positions(row)) for row in item)) & set(range(n))
        for row in item:
            own = positions(row)
            expected.append(brute(row, () if keep_shared else common))
            for i in own:  # a state of the prefix that predicts one token for all is one
                if keep_shared or i not in common:
                    states.add((number, i) if i < n else (number, i, len(expected)))
    assert scored(batch) == expected
    assert batch.targets.size == len(states)
    assert batch.group.tolist() == [g for g, item in enumerate(items) for _ in item]
    assert batch.lengths.tolist() == [len(positions(row)) for row in rows]
    assert batch.weights.tolist() == [row.weight for row in rows]
    assert batch.slots.shape == batch.mask.shape
    assert batch.slots.shape[0] == batch.inputs.shape[0] == len(rows)
    padding = np.array(batch.slots)[np.array(batch.mask) == 0]
    assert (padding == batch.targets.size).all()
    assert batch.inputs.shape[1] % PAD_TO == batch.slots.shape[1] % PAD_TO == 0
    for array in (batch.inputs, batch.targets, batch.slots, batch.group):
        assert array.dtype == mx.int32
    if batch.prefix is None:
        assert batch.from_prefix.size == 0
        assert batch.inputs.shape[1] >= max(row.length for row in rows) - 1
    else:
        assert share
        assert batch.prefix.shape[0] == len(items)
        assert batch.prefix.shape[1] % PAD_TO == 0
        assert batch.prefix_lengths.tolist() == shared
    return batch


# ---- any rows ------------------------------------------------------------------------------------

TOKENS = st.integers(1, 2)  # so few that rows often begin alike, and that some are the same


@st.composite
def items(draw: st.DrawFn) -> Item:
    prompt = draw(st.lists(TOKENS, min_size=1, max_size=6))
    opening = draw(st.lists(TOKENS, max_size=4))
    responses = draw(st.lists(st.lists(TOKENS, max_size=6), min_size=1, max_size=4))
    rows = []
    for rest in responses:
        response = [*opening, *rest] or [1]
        flags = st.lists(st.booleans(), min_size=len(response), max_size=len(response))
        mask = draw(st.none() | flags.map(tuple))
        rows.append(Row(prompt, response, draw(st.sampled_from([1.0, 0.25])), mask))
    return tuple(rows)


@pytest.mark.parametrize("worth", [0.0, batches.WORTH, 1e9], ids=["whole", "cheaper", "shared"])
@given(items=st.lists(items(), min_size=1, max_size=4), keep_shared=st.booleans())
def test_any_rows(items: list[Item], keep_shared: bool, worth: float) -> None:
    """worth: which layout is taken; 1e9: prefixes by themselves though it saves nothing."""
    with patch.object(batches, "WORTH", worth):
        batch = check(items, share=True, keep_shared=keep_shared)
        several = any(len(item) > 1 for item in items)
        if worth != batches.WORTH:
            assert (batch.prefix is not None) == (worth > 1 and several)
        check(items, share=False, keep_shared=keep_shared)
        assert collate(items, share=False).prefix is None


# ---- layouts -------------------------------------------------------------------------------------


def test_a_batch_is_shifted_masked_and_padded() -> None:
    rows = [Row([5, 6, 7], [8, 9], 2.0), Row([1], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11])]
    batch = check([(row,) for row in rows], share=True, keep_shared=True)
    assert batch.prefix is None  # one row of each prompt: nothing to share
    assert batch.inputs.shape == (2, 16)
    assert batch.inputs[0].tolist() == [5, 6, 7, 8] + [0] * 12
    assert batch.from_rows.tolist() == [2, 3, *range(16, 26)]
    assert batch.targets.tolist() == [8, 9, *rows[1].response]
    assert batch.slots[0].tolist() == [0, 1] + [12] * 14
    assert batch.mask.sum(axis=1).tolist() == [2, 10]
    assert batch.lengths.tolist() == [2, 10]
    assert batch.weights.tolist() == [2, 1]


def test_a_shared_beginning_is_laid_out_once() -> None:
    """Prompt and the opening of both responses, here 20 + 2 tokens of 25 and 24."""
    prompt = list(range(10, 30))
    pair = (Row(prompt, [1, 2, 3, 4, 5]), Row(prompt, [1, 2, 7, 8]))
    batch = check([pair], share=True, keep_shared=True)
    assert batch.prefix is not None
    assert batch.prefix.tolist() == [[*prompt, 1, 2, 0, 0]]
    assert batch.prefix_lengths.tolist() == [22]
    assert batch.inputs.tolist() == [[3, 4] + [0] * 6, [7] + [0] * 7]
    # Position 21 has read all that is shared, and predicts 3 for one row and 7 for the other.
    assert batch.from_prefix.tolist() == [19, 20, 21, 21]
    assert batch.from_rows.tolist() == [0, 1, 8]
    assert batch.targets.tolist() == [1, 2, 3, 7, 4, 5, 8]
    assert batch.slots.tolist() == [[0, 1, 2, 4, 5, 7, 7, 7], [0, 1, 3, 6, 7, 7, 7, 7]]
    assert batch.lengths.tolist() == [5, 4]


def test_prefixes_by_themselves_only_where_that_saves_work() -> None:
    long, short = list(range(100)), [1]
    answers = ([1, 2, 3], [4, 5, 6])
    much = tuple(Row(long, answer) for answer in answers)
    little = tuple(Row(short, answer * 30) for answer in answers)
    assert shape_of([much], True) == (1, 104, 2, 8)
    assert shape_of([much], False) == (0, 0, 2, 104)
    assert shape_of([little], True) == (0, 0, 2, 96)
    assert shape_of([much, much], True).tokens == 2 * shape_of([much], True).tokens == 240
    for items in ([much], [little], [much, little], [much[:1]], [much, little[:1]]):
        for share in (False, True):
            shape, batch = shape_of(items, share), collate(items, share=share)
            assert (shape.rows, shape.suffix) == batch.inputs.shape
            ahead = (0, 0) if batch.prefix is None else batch.prefix.shape
            assert (shape.groups, shape.prefix) == ahead


def test_lengths_come_in_few_shapes() -> None:
    lengths = {collate([(Row([1], [2] * n),)]).inputs.shape[1] for n in range(1, 81)}
    assert lengths == set(range(PAD_TO, 81, PAD_TO))
