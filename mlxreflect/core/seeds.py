"""Randomness: every stream is named by what it is for, and this is the one place that seeds."""

import hashlib
import random


def seed_for(*parts: int | str) -> int:
    """A seed below 2**63 from names such as (seed, epoch, wave, role, shard)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng_for(*parts: int | str) -> random.Random:
    """A Python generator of its own for what `parts` names."""
    return random.Random(seed_for(*parts))


def seed_mlx(*parts: int | str) -> None:
    """Seed MLX's global generator (sampling, dropout, LoRA initialisation)."""
    import mlx.core as mx

    mx.random.seed(seed_for(*parts))
