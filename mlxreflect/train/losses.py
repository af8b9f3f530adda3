"""Losses as pure functions of log-probabilities: (…) → (loss a example, metrics a example).

Shapes: B examples (or pairs), T tokens. Log-probabilities are float32 sums over response tokens.
"""

import mlx.core as mx


def token_logps(logits: mx.array, targets: mx.array) -> mx.array:
    """Log-probability of each target token, in float32.

    logits: [B, T, V], any floating type; targets: [B, T] integers. Returns [B, T].
    """
    logits = logits.astype(mx.float32)
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    return picked - mx.logsumexp(logits, axis=-1)


def sequence_logps(logps: mx.array, mask: mx.array) -> mx.array:
    """Sums [B] of token log-probabilities [B, T] where mask [B, T] is 1."""
    return (logps * mask).sum(axis=-1)


def dpo_loss(
    chosen: mx.array, rejected: mx.array, ref_chosen: mx.array, ref_rejected: mx.array, beta: float
) -> tuple[mx.array, mx.array]:
    """DPO with the sigmoid link (Rafailov et al. 2023, eq. 7), all arguments [B].

    loss = −log σ(margin), margin = β((chosen − ref_chosen) − (rejected − ref_rejected)).
    Returns (loss, margin), both [B].
    """
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    # −log σ(x) = log(1 + e^−x), without overflow for large |x|.
    return mx.logaddexp(mx.zeros_like(margin), -margin), margin


def nll_loss(logps: mx.array, lengths: mx.array) -> mx.array:
    """Negative log-likelihood a token, [B], from summed log-probabilities and lengths [B]."""
    return -logps / lengths
