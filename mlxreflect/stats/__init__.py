"""Statistics of right and wrong answers: intervals, exact paired tests, several samples, power.

A and B answer the same questions. A gain is a question that A got wrong and B right, a loss the
reverse; differences are B − A. The verdict is the exact McNemar p against alpha.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr

from mlxreflect.core.seeds import rng_for

Interval = tuple[float, float]
FLIPS = 10_000  # sign flips of the permutation test, where 2^questions is more than that
BLOCK = 1000  # of them at a time


@dataclass(frozen=True)
class Comparison:
    """B against A on the same n questions.

    accuracy_a, accuracy_b, difference (B − A), ci_low, ci_high, mde: fractions, not per cent.
    p_exact, p_mid: McNemar; None where several samples a question leave no such table.
    mde: the smallest true difference that n questions show 4 times out of 5.
    """

    n: int
    accuracy_a: float
    accuracy_b: float
    gains: int
    losses: int
    difference: float
    ci_low: float
    ci_high: float
    p_exact: float | None
    p_mid: float | None
    mde: float


def quantile(p: float) -> float:
    return NormalDist().inv_cdf(p)


def wilson(k: int, n: int, alpha: float = 0.05) -> Interval:
    """Score interval of k right of n (Wilson 1927). Raises ValueError unless 0 ≤ k ≤ n, n ≥ 1."""
    if not (0 <= k <= n and n >= 1):
        raise ValueError(f"{k} right of {n} is no proportion")
    z = quantile(1 - alpha / 2)
    p, scale = k / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # At the ends one limit is exactly p; rounding would leave it 1e-17 beside it.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def square_and_add(k_a: int, n_a: int, k_b: int, n_b: int, phi: float, alpha: float) -> Interval:
    """Interval of p_B − p_A from both Wilson intervals and their correlation phi (Newcombe)."""
    a, b = k_a / n_a, k_b / n_b
    (low_a, high_a), (low_b, high_b) = wilson(k_a, n_a, alpha), wilson(k_b, n_b, alpha)

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return b - a - distance(b - low_b, high_a - a), b - a + distance(high_b - b, a - low_a)


def newcombe_unpaired(k_a: int, n_a: int, k_b: int, n_b: int, *, alpha: float = 0.05) -> Interval:
    """Interval of p_B − p_A of different questions (Newcombe 1998, Stat Med 17:873, method 10)."""
    return square_and_add(k_a, n_a, k_b, n_b, 0.0, alpha)


def newcombe_paired(
    both_right: int, gains: int, losses: int, both_wrong: int, *, alpha: float = 0.05
) -> Interval:
    """Interval of p_B − p_A of the same questions (Newcombe 1998, Stat Med 17:2635, method 10).

    phi is the table's correlation with a continuity correction towards 0 where it is positive,
    and 0 where a margin is empty.
    """
    n = both_right + gains + losses + both_wrong
    k_a, k_b = both_right + losses, both_right + gains
    margins = k_a * (n - k_a) * k_b * (n - k_b)
    excess = float(both_right * both_wrong - gains * losses)
    if excess > 0:
        excess = max(0.0, excess - n / 2)
    phi = excess / math.sqrt(margins) if margins else 0.0
    return square_and_add(k_a, n, k_b, n, phi, alpha)


def mcnemar_exact(gains: int, losses: int) -> float:
    """Two-sided exact binomial p of gains against losses (McNemar 1947); 1 with neither."""
    return min(1.0, 2 * float(bdtr(min(gains, losses), gains + losses, 0.5)))


def mcnemar_mid_p(gains: int, losses: int) -> float:
    """The exact p less half the probability of what was seen (Fagerland et al. 2013)."""
    few, n = min(gains, losses), gains + losses
    if gains == losses:
        return 1.0
    below = float(bdtr(few - 1, n, 0.5)) if few else 0.0
    return below + float(bdtr(few, n, 0.5))  # 2·cdf(few) − pmf(few)


def two_proportion(k_a: int, n_a: int, k_b: int, n_b: int) -> tuple[float, float]:
    """z and two-sided p of B against A on different questions, with the pooled variance."""
    pooled = (k_a + k_b) / (n_a + n_b)
    variance = pooled * (1 - pooled) * (1 / n_a + 1 / n_b)
    if variance == 0:
        return 0.0, 1.0
    z = (k_b / n_b - k_a / n_a) / math.sqrt(variance)
    return z, math.erfc(abs(z) / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing them all (Holm 1979), in the order given."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def e_value(gains: int, losses: int) -> float:
    """2^(g+l)·B(1+g, 1+l): evidence against "gains and losses are equally likely".

    It may be looked at after every question; stop at 1/alpha or more (Ville's inequality).
    """
    n = gains + losses
    log = n * math.log(2) + math.lgamma(1 + gains) + math.lgamma(1 + losses) - math.lgamma(2 + n)
    return math.exp(log) if log < 700 else math.inf


def minimum_detectable_effect(
    discordance: float, n: int, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The paired difference d that n questions show with this power (Connor 1987).

    Solves z_α/2·√ψ + z_β·√(ψ − d²) = d·√n, with ψ the share of questions where the two differ;
    no less than d, for a difference of d takes that many. 1.0 where n is too small for any.
    """
    z_alpha, z_beta = quantile(1 - alpha / 2), quantile(power)

    def surplus(d: float) -> float:
        psi = max(discordance, d)
        return d * math.sqrt(n / psi) - z_alpha - z_beta * math.sqrt(1 - d * d / psi)

    return float(brentq(surplus, 1e-12, 1.0)) if surplus(1.0) > 0 else 1.0


def questions_needed(
    difference: float,
    *,
    omega2: float = 1 / 9,
    noise_a: float = 0.0,
    noise_b: float = 0.0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Questions that show a paired difference with this power (Miller 2024, arXiv 2411.00640).

    omega2: variance over questions of the difference of the arms' expected scores.
    noise_a, noise_b: an arm's variance within a question over its number of samples, σ²/K.
    """
    z = quantile(1 - alpha / 2) + quantile(power)
    return z * z * (omega2 + noise_a + noise_b) / difference**2


def variances(
    a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]]
) -> tuple[float, float, float]:
    """omega2, noise_a, noise_b of `questions_needed`: a[i] are question i's samples, at least one.

    One sample a question has no noise of its own to tell: it is in omega2 then. Raises ValueError
    for fewer than two questions.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} questions have no variance to tell")
    total = np.var([np.mean(y) - np.mean(x) for x, y in zip(a, b, strict=True)], ddof=1)
    # p(1−p)/(K−1) is the unbiased variance within a question, p(1−p)·K/(K−1), over K.
    noise_a, noise_b = (
        float(np.mean([np.mean(x) * (1 - np.mean(x)) / max(1, len(x) - 1) for x in arm]))
        for arm in (a, b)
    )
    return max(0.0, float(total) - noise_a - noise_b), noise_a, noise_b


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, c of n being so (Chen et al. 2021, eq. 1)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples, {c} of them right")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def paired(a: Sequence[bool], b: Sequence[bool], alpha: float = 0.05) -> Comparison:
    """B against A, question by question: a[i] and b[i] say who got question i right.

    Raises ValueError when there is no question, or not the same number of them.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} answers cannot be paired")
    n = len(a)
    both = sum(x and y for x, y in zip(a, b, strict=True))
    losses, gains = sum(a) - both, sum(b) - both
    low, high = newcombe_paired(both, gains, losses, n - both - gains - losses, alpha=alpha)
    return Comparison(
        n=n,
        accuracy_a=sum(a) / n,
        accuracy_b=sum(b) / n,
        gains=gains,
        losses=losses,
        difference=(gains - losses) / n,
        ci_low=low,
        ci_high=high,
        p_exact=mcnemar_exact(gains, losses),
        p_mid=mcnemar_mid_p(gains, losses),
        mde=minimum_detectable_effect((gains + losses) / n, n, alpha),
    )


def clustered(
    a: Sequence[float], b: Sequence[float], seed: int = 0, alpha: float = 0.05
) -> tuple[Comparison, float]:
    """B against A where a[i], b[i] are a question's means over its samples; and the permutation p.

    Questions are the units: the interval is normal with the standard error clustered by question
    (Miller 2024, eq. 7), the p-value from flipping the signs of the questions' differences.
    Raises ValueError when there is no question, or not the same number of them.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} questions cannot be paired")
    n = len(a)
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)  # (n,)
    mean = float(differences.mean())
    # One question says nothing of the others: then the error is as large as it can be.
    error = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else 1.0
    if error == 0:  # all the same: Wilson's limit says how many others may still go unseen
        error = wilson(0, n, alpha)[1] / quantile(1 - alpha / 2)
    half = quantile(1 - alpha / 2) * error
    comparison = Comparison(
        n=n,
        accuracy_a=sum(a) / n,
        accuracy_b=sum(b) / n,
        gains=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        difference=mean,
        ci_low=max(-1.0, mean - half),
        ci_high=min(1.0, mean + half),
        p_exact=None,
        p_mid=None,
        mde=min(1.0, half + quantile(0.8) * error),
    )
    return comparison, sign_flip_p(differences, seed)


def sign_flip_p(differences: NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p of "each difference (n,) could as well have had the other sign".

    All 2^n flips where those are few; else FLIPS seeded ones, the observed one counted with them
    so that p is never 0 (Phipson and Smyth 2010).
    """
    moved = differences[differences != 0]
    seen = abs(float(moved.sum())) * (1 - 1e-9)  # sums in another order differ in the last digit
    if 2 ** len(moved) <= FLIPS:
        flips = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        return float((abs((1 - 2 * flips) @ moved) >= seen).mean())
    rng, width, extreme = rng_for("sign flips", seed), -(-len(moved) // 8), 1
    for _ in range(0, FLIPS, BLOCK):  # a block of (BLOCK, n) signs at a time
        drawn = np.frombuffer(rng.randbytes(BLOCK * width), dtype=np.uint8).reshape(BLOCK, width)
        flips = np.unpackbits(drawn, axis=1, count=len(moved)).astype(np.float64)
        extreme += int((abs(moved.sum() - 2 * (flips @ moved)) >= seen).sum())
    return extreme / (FLIPS + 1)


def mean_interval(values: Sequence[float], alpha: float = 0.05) -> Interval:
    """Normal interval of the mean of questions' scores in [0, 1] (Miller 2024, eq. 1).

    Scores that are all the same show no spread; then it is Wilson's, of as many single answers.
    """
    n = len(values)
    if n < 2:
        return 0.0, 1.0  # one question says nothing of the others
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n)
    if error == 0:
        return wilson(round(mean * n), n, alpha)
    half = quantile(1 - alpha / 2) * error
    return max(0.0, mean - half), min(1.0, mean + half)


def majority(parsed: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """maj@k: whether the answer that most of k samples gave is right.

    parsed, correct: of the k samples. A tie goes to the answer that was given first; samples
    without an answer have no vote, and without any vote the question is wrong.
    """
    votes = Counter(answer for answer in parsed if answer is not None)
    if not votes:
        return False
    winner = max(votes, key=votes.__getitem__)  # of equals the first one met
    return correct[parsed.index(winner)]
