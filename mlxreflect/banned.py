"""Beginnings that a completion must not have."""

from collections.abc import Callable

import mlx.core as mx


def avoid(unread: int, banned: list[list[int]]) -> list[Callable[[mx.array, mx.array], mx.array]]:
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
