"""Losses as pure functions of log-probabilities: (…) → (loss an example, metrics an example).

Shapes: B examples (or pairs), R responses, T tokens. All arrays are float32. Log-probabilities are
natural, summed over response tokens (or their mean a token, where the caller divides).
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

exp = mx.exp  # on a CPU, `cpu.faster_on_cpu` puts another in its place
CERTAIN = -1e-7  # the largest mean log-probability that has log-odds; float32 logits tell no more
STEEP = 20.0  # a difference of log-probabilities beyond which exp is continued as its tangent


def token_logps(logits: mx.array, targets: mx.array) -> mx.array:
    """Log-probability of each target token, in float32.

    logits: [B, T, V], any floating type; targets: [B, T] integers. Returns [B, T].
    """
    at = targets[..., None]

    @mx.custom_function
    def score(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        top = logits.max(axis=-1, keepdims=True)
        powers = exp(logits - top)
        total = powers.sum(axis=-1, keepdims=True)
        picked = mx.take_along_axis(logits - top, at, axis=-1)
        return (picked - mx.log(total)).squeeze(-1), powers, total

    @score.vjp
    def backward(logits: Any, cotangents: Any, outputs: Any) -> mx.array:
        """Indicator minus probability, without the exponentials again: they cost the most."""
        _, powers, total = outputs
        slope = cotangents[0][..., None]
        probabilities = powers * (slope / total)
        own = slope - mx.take_along_axis(probabilities, at, axis=-1)
        return mx.put_along_axis(-probabilities, at, own, axis=-1)

    return cast(list[mx.array], score(logits.astype(mx.float32)))[0]


# ---- preference pairs ----------------------------------------------------------------------------


def log_ratio(
    chosen: mx.array, rejected: mx.array, ref_chosen: mx.array, ref_rejected: mx.array
) -> mx.array:
    """h = (chosen − ref_chosen) − (rejected − ref_rejected), all [B]."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo_loss(h: mx.array, beta: float, smoothing: float = 0.0) -> tuple[mx.array, mx.array]:
    """DPO with the sigmoid link (Rafailov et al. 2023, eq. 7), of the log-ratio h [B].

    margin = β·h, loss = −(1−s)·log σ(margin) − s·log σ(−margin), where the smoothing s is the share
    of labels taken to be flipped (conservative DPO: Mitchell 2023). Returns (loss, margin), [B].
    """
    margin = beta * h
    # log σ(x) − log σ(−x) = x, so both terms are one softplus and a line.
    return softplus(-margin) + smoothing * margin, margin


def ipo_loss(h: mx.array, beta: float, smoothing: float = 0.0) -> tuple[mx.array, mx.array]:
    """IPO (Azar et al. 2023, eq. 17, their τ is β here), of the log-ratio h [B].

    loss = (h − 1/2β)², margin = β·h. Returns (loss, margin), both [B]. IPO has no smoothing.
    """
    return mx.square(h - 1 / (2 * beta)), beta * h


def exo_pair_loss(h: mx.array, beta: float, smoothing: float) -> tuple[mx.array, mx.array]:
    """EXO on pairs (Ji et al. 2024, eq. 16), of the log-ratio h [B]: the reverse KL of DPO's.

    loss = σ(z)(log σ(z) − log(1−ε)) + σ(−z)(log σ(−z) − log ε), with z = β·h and ε the smoothing,
    in (0, 1); least at z = log((1−ε)/ε). Returns (loss, margin), both [B].
    """
    z = beta * h
    right = mx.sigmoid(z) * (-softplus(-z) - math.log1p(-smoothing))
    wrong = mx.sigmoid(-z) * (-softplus(z) - math.log(smoothing))
    return right + wrong, z


def orpo_loss(chosen: mx.array, rejected: mx.array, beta: float) -> tuple[mx.array, mx.array]:
    """The odds-ratio term of ORPO (Hong et al. 2024, eq. 7), MEAN log-probabilities a token [B].

    loss = −β·log σ(log_odds), log_odds = log(odds(chosen) / odds(rejected)), odds(p) = p/(1−p).
    Returns (loss, log_odds), both [B]; the caller adds the NLL of the chosen response.
    """
    log_odds = logit(chosen) - logit(rejected)
    return beta * softplus(-log_odds), log_odds


def softplus(x: mx.array) -> mx.array:
    """−log σ(−x) = log(1 + e^x), without overflow for large |x|.

    Not `mx.logaddexp`: its gradient is 1 − σ for one sign, which ORPO's steep log-odds magnify.
    """
    is_low, zero = x < 0, mx.zeros_like(x)
    low, high = mx.where(is_low, x, zero), mx.where(is_low, zero, x)
    return high + mx.log1p(mx.exp(low - high))


def logit(logp: mx.array) -> mx.array:
    """log(p / (1 − p)) from log p, exact at both ends (Mächler 2012 for log(1 − e^x))."""
    logp = mx.minimum(logp, CERTAIN)
    half = mx.array(-math.log(2))
    is_near = logp > half
    # Each branch sees only its own: where exp rounds to 1, the one not taken would give NaN.
    near, far = mx.where(is_near, logp, half), mx.where(is_near, half, logp)
    log_rest = mx.where(is_near, mx.log(-mx.expm1(near)), mx.log1p(-mx.exp(far)))
    return logp - log_rest


PREFERENCE = {"dpo": dpo_loss, "ipo": ipo_loss, "exo_pair": exo_pair_loss}


# ---- groups of responses -------------------------------------------------------------------------


def group_advantages(rewards: Sequence[float], scale: bool) -> list[float]:
    """Advantages of the responses to one prompt (Shao et al. 2024, section 4.1.2).

    reward − mean, with scale divided by (sample standard deviation + 1e-4), as TRL does. A group
    whose rewards are equal says nothing: exact zeros.
    """
    if not rewards or min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    spread = statistics.stdev(rewards, mean) + 1e-4 if scale else 1.0
    return [(reward - mean) / spread for reward in rewards]


def grpo_loss(
    logps: mx.array,
    old: mx.array,
    reference: mx.array | None,
    advantages: mx.array,
    clip: float,
    kl: float,
    clip_high: float = 0.0,
    lengths: mx.array | None = None,
) -> tuple[mx.array, dict[str, mx.array]]:
    """GRPO a token (Shao et al. 2024, eq. 3 and 4); the caller masks and averages.

    logps, old, reference: [R, T] token log-probabilities of the policy, of the policy that sampled
    and of the reference (None: no KL); advantages: [R]; clip: half-width of the ratio's range; kl:
    weight of the KL estimate e^d − d − 1, d = reference − logps. clip_high: the range's half above
    1, where it is another (DAPO: Yu et al. 2025, eq. 10). lengths: [R], tokens of each response:
    all of them have one ratio, their geometric mean (GSPO: Zheng et al. 2025, eq. 7), for which
    logps and old are equal where there is no token. Returns (loss [R, T], {"kl", "clipped"}:
    [R, T]), clipped 1 where the clip holds the token back. Where log-probabilities are more than
    STEEP apart, e^x goes on as a straight line, so that nothing overflows.
    """
    advantages, apart = advantages[:, None], logps - old
    if lengths is not None:
        mean = apart.sum(axis=-1, keepdims=True) / lengths[:, None]
        apart = mx.broadcast_to(mean, apart.shape)
    ratio = steep_exp(apart)
    limited = mx.clip(ratio, 1 - clip, 1 + (clip_high or clip))
    free, held = ratio * advantages, limited * advantages
    loss = -mx.minimum(free, held)
    estimate = mx.zeros_like(logps)
    if reference is not None:
        difference = reference - logps
        estimate = steep_exp(difference) - difference - 1
        if kl > 0:
            loss = loss + kl * estimate
    return loss, {"kl": estimate, "clipped": (held < free).astype(mx.float32)}


def steep_exp(x: mx.array) -> mx.array:
    """e^x up to STEEP, then its tangent: no overflow, and a gradient that still pulls back."""
    touch = mx.stop_gradient(mx.minimum(x, STEEP))  # where the tangent touches: x itself, mostly
    return mx.exp(touch) * (1 + x - touch)
