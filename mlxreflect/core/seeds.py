"""Randomness: every stream is named by what it is for, and this is the one place that seeds.

A hash decides, too, which part of a task a problem is in.
"""

import hashlib
import random
from collections.abc import Callable, Mapping


def seed_for(*parts: int | str) -> int:
    """A seed below 2**63 from names such as (seed, epoch, wave, role, shard)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng_for(*parts: int | str) -> random.Random:
    """A Python generator of its own for what `parts` names."""
    return random.Random(seed_for(*parts))


def below(bits: Callable[[int], int], end: int) -> int:
    """Draws a whole number below `end` as `Random.randrange` does, in a third of its time.

    bits: a generator's `getrandbits`.
    """
    size = end.bit_length()
    while (drawn := bits(size)) >= end:
        pass
    return drawn


def seed_mlx(*parts: int | str) -> None:
    """Seeds MLX's global generator, for the initialisation of LoRA.

    Tokens are not drawn from it: each sequence has a stream of its own (`models/sampling.py`).
    """
    import mlx.core as mx

    mx.random.seed(seed_for(*parts))


# ---- parts ---------------------------------------------------------------------------------------

OWN_PARTS = {"train": 70, "dev": 10, "heldout": 20}  # of a file of one's own


def part_of(key: str, shares: Mapping[str, int] = OWN_PARTS, size: int = 8) -> str:
    """Returns the part of a problem, by a hash of its text alone: the same in every file and run.

    shares: how much of all is in each part. size: bytes of the hash that decide.
    """
    at = int.from_bytes(hash_of(key)[:size], "big") % sum(shares.values())
    for part, share in shares.items():
        if at < share:
            return part
        at -= share
    raise AssertionError("shares are above 0")


def hash_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
