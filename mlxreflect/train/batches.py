"""Examples → tokens → padded batches. What the policy wrote keeps the tokens it generated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxreflect.policy import Policy
from mlxreflect.records import Example

PAD_TO = 8  # few distinct shapes


@dataclass(frozen=True)
class Row:
    """One prompt and response as tokens; the loss sees the response only."""

    prompt: list[int]
    response: list[int]
    weight: float = 1.0

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Pair:
    """A preference pair; both rows share their prompt."""

    chosen: Row
    rejected: Row


class Batch(NamedTuple):
    """inputs, targets: [B, T] int32; mask: [B, T] float32, 1 where the target is of a response.

    lengths: [B] response tokens; weights: [B].
    """

    inputs: mx.array
    targets: mx.array
    mask: mx.array
    lengths: mx.array
    weights: mx.array


@dataclass(frozen=True)
class Dropped:
    """An example that is not trained on, and why."""

    example: Example
    reason: str


def encode_example(policy: Policy, example: Example, max_length: int) -> Row | Pair | Dropped:
    """Tokens of an example. A prompt too long is cut from the left, a response never."""
    prompt = policy.encode(example.prompt)

    def row(text: str | None, token_ids: list[int] | None) -> Row | None:
        response = token_ids or policy.encode_response(prompt, text or "")
        room = max_length - len(response)
        return Row(prompt[-room:], response, example.weight) if room > 0 else None

    if example.kind == "sft":
        only = row(example.completion, example.completion_ids)
        return only or Dropped(example, f"the completion is over {max_length} tokens")
    chosen = row(example.chosen, example.chosen_ids)
    rejected = row(example.rejected, example.rejected_ids)
    if chosen is None or rejected is None:
        return Dropped(example, f"chosen or rejected is over {max_length} tokens")
    if chosen.response == rejected.response:
        return Dropped(example, "chosen and rejected are the same")
    keep = min(len(chosen.prompt), len(rejected.prompt))  # cut to the longer response for both
    return Pair(*(replace(r, prompt=r.prompt[-keep:]) for r in (chosen, rejected)))


def collate(rows: Sequence[Row]) -> Batch:
    """Right-pad rows to one length, a multiple of PAD_TO; padding is masked."""
    width = max(r.length for r in rows) - 1
    width = -(-width // PAD_TO) * PAD_TO
    tokens = np.zeros((len(rows), width + 1), dtype=np.int32)
    mask = np.zeros((len(rows), width), dtype=np.float32)
    for i, r in enumerate(rows):
        end = r.length
        tokens[i, :end] = r.prompt + r.response
        mask[i, len(r.prompt) - 1 : end - 1] = 1
    return Batch(
        mx.array(tokens[:, :-1]),
        mx.array(tokens[:, 1:]),
        mx.array(mask),
        mx.array([len(r.response) for r in rows], dtype=mx.float32),
        mx.array([r.weight for r in rows], dtype=mx.float32),
    )
