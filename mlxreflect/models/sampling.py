"""Draws tokens: from a named stream for each sequence, and without what may not come."""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_min_p, apply_top_p, make_logits_processors

from mlxreflect.config.schema import Sampling
from mlxreflect.core.seeds import seed_for

WHOLE = 1 << 20  # more tokens than a completion has
Processor = Callable[[mx.array, mx.array], mx.array]  # tokens so far, logits


class Draw:
    """Draws a token for each row of a batch, each row from the stream of its own sequence.

    Token t of sequence i is drawn with the 64 bits of `seed_for(*seed, i)` + t as key, so it
    follows from its log-probabilities and from nothing else of its batch. The streams of two
    sequences would meet only where those hashes of 63 bits are nearer than the completions are
    long: for 10,000 sequences of 10,000 tokens, one time in ten million.

    rows: the numbers of the sequences whose rows come next; whoever computes rows says so first.
    first: the number that sequence 0 has in its stream's name.
    Temperature 0 takes the likeliest token and draws nothing.
    """

    def __init__(
        self, seed: Sequence[int | str], temperature: float, top_p: float, sampling: Sampling,
        first: int = 0,
    ) -> None:  # fmt: skip
        self.seed, self.temperature, self.first = seed, temperature, first
        self.top_p, self.min_p, self.top_k = top_p, sampling.min_p, sampling.top_k
        self.rows: Sequence[int] = ()
        self.following: dict[int, int] = {}  # each sequence's key of its next token

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Returns a token a row, [B], of log-probabilities [B, V].

        Of top_k likeliest ones, they are taken first, and the rest is of them alone: mlx-lm's own
        order sorts the whole vocabulary for top_p, and once more for top_k. A token's noise is that
        of its id, not of its place among them, which rounding may change.
        """
        if self.temperature == 0:
            return mx.argmax(logprobs, axis=-1)
        noise = gumbel(self.keys(), logprobs.shape[-1])
        if not 0 < self.top_k < logprobs.shape[-1]:
            return self.likeliest(logprobs, noise)
        ids = mx.argpartition(-logprobs, kth=self.top_k - 1, axis=-1)[:, : self.top_k]
        few = (mx.take_along_axis(array, ids, axis=-1) for array in (logprobs, noise))
        return mx.take_along_axis(ids, self.likeliest(*few)[:, None], axis=-1).squeeze(-1)

    def keys(self) -> mx.array:
        """Returns the key of each row's next token, [B, 2] uint32, as `mx.random.key` makes it."""
        keys = []
        for number in self.rows:
            if number not in self.following:
                self.following[number] = seed_for(*self.seed, self.first + number)
            key = self.following[number]
            self.following[number] += 1
            keys.append((key >> 32, key & 0xFFFFFFFF))
        return mx.array(np.array(keys, np.uint32))

    def likeliest(self, logprobs: mx.array, noise: mx.array) -> mx.array:
        """Returns the place of the greatest sum, [B]: with Gumbel noise, a categorical sample."""
        if 0 < self.top_p < 1:
            logprobs = apply_top_p(logprobs, self.top_p)
        if self.min_p:
            logprobs = apply_min_p(logprobs, self.min_p)
        return mx.argmax(logprobs * (1 / self.temperature) + noise, axis=-1)


def gumbel(keys: mx.array, size: int) -> mx.array:
    """Returns a row of Gumbel noise for each key, [B, size] float32: those that it has alone."""
    rows: mx.array = mx.vmap(lambda key: mx.random.gumbel((size,), key=key))(keys)
    return rows


def avoid(unread: int, banned: list[list[int]]) -> list[Processor]:
    """A logits processor that keeps a completion from beginning with any of these tokens.

    unread: tokens that the generator was given to read, which stand before the completion's.
    """
    longest = max(map(len, banned), default=0)

    def limit(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.size - unread >= longest:
            return logits  # without waiting for the tokens to be known
        made = tokens[unread:].tolist()
        last = [ids[-1] for ids in banned if ids[:-1] == made]
        if last:
            logits[..., mx.array(last)] = -mx.inf
        return logits

    return [limit] if longest else []


def penalties(unread: int, sampling: Sampling) -> list[Processor]:
    """mlx-lm's logits processors for what a completion has already, from its beginning.

    unread: as of `avoid`. How much of a prompt that is depends on what is shared: it never counts.
    """
    repetition, presence = sampling.repetition_penalty, sampling.presence_penalty
    made = make_logits_processors(
        repetition_penalty=None if repetition == 1 else repetition,
        repetition_context_size=WHOLE,
        presence_penalty=presence or None,
        presence_context_size=WHOLE,
    )
    return [partial(after, unread, penalty) for penalty in made]


def after(unread: int, penalty: Processor, tokens: mx.array, logits: mx.array) -> mx.array:
    return penalty(tokens[unread:], logits)
