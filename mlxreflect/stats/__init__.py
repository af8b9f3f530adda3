"""Statistics of right and wrong answers: intervals, exact paired tests, power; and their wording.

A and B answer the same questions. A gain is a question that A got wrong and B right, a loss the
reverse; differences are B − A. The verdict is the exact McNemar p against alpha.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from mlxreflect.core.seeds import rng_for

Interval = tuple[float, float]
FLIPS = 10_000  # sign flips of the permutation test, where 2^questions is more than that
BLOCK = 1000  # of them at a time
POWER = 0.8  # with which a difference is found: in 4 of 5 evaluations
DISCORDANCE = 0.2  # share of questions on which two arms are taken to differ, beforehand
NODES = 512  # Gauss-Legendre: exact for polynomials of degree 1023, far closer than 1e-9 beyond
EDGE = 1e-9  # of the means, where a division by 1 ± m would fail
SHARPER = "Pairing the answers question by question, where both have them, is a sharper test."


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


def newcombe(
    k_a: int, n_a: int, k_b: int, n_b: int, *, phi: float = 0.0, alpha: float = 0.05
) -> Interval:
    """Interval of p_B − p_A from both Wilson intervals (Newcombe 1998, Stat Med 17:873, method 10).

    phi: the correlation of the answers; 0 of different questions.
    """
    a, b = k_a / n_a, k_b / n_b
    (low_a, high_a), (low_b, high_b) = wilson(k_a, n_a, alpha), wilson(k_b, n_b, alpha)

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return b - a - distance(b - low_b, high_a - a), b - a + distance(high_b - b, a - low_a)


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
    return newcombe(k_a, n, k_b, n, phi=phi, alpha=alpha)


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


def zero_of(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns where a function is 0, between two points at which its signs differ (Brent 1973).

    scipy.optimize is loaded when it is needed: every command would begin later for it.
    """
    from scipy.optimize import brentq

    return float(brentq(function, low, high))


def minimum_detectable_effect(discordance: float, n: int, alpha: float = 0.05) -> float:
    """The paired difference d that n questions show 4 times out of 5 (Connor 1987).

    Solves z_α/2·√ψ + z_β·√(ψ − d²) = d·√n, with ψ the share of questions where the two differ;
    no less than d, for a difference of d takes that many. 1.0 where n is too small for any.
    """
    z_alpha, z_beta = quantile(1 - alpha / 2), quantile(POWER)

    def surplus(d: float) -> float:
        psi = max(discordance, d)
        return d * math.sqrt(n / psi) - z_alpha - z_beta * math.sqrt(1 - d * d / psi)

    return zero_of(surplus, 1e-12, 1.0) if surplus(1.0) > 0 else 1.0


def questions_needed(
    difference: float,
    *,
    omega2: float = 1 / 9,
    noise_a: float = 0.0,
    noise_b: float = 0.0,
    alpha: float = 0.05,
) -> float:
    """Questions that show a paired difference 4 times out of 5 (Miller 2024, arXiv 2411.00640).

    omega2: variance over questions of the difference of the arms' expected scores.
    noise_a, noise_b: an arm's variance within a question over its number of samples, σ²/K.
    """
    z = quantile(1 - alpha / 2) + quantile(POWER)
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
        n=n, accuracy_a=sum(a) / n, accuracy_b=sum(b) / n, gains=gains, losses=losses,
        difference=(gains - losses) / n, ci_low=low, ci_high=high,
        p_exact=mcnemar_exact(gains, losses), p_mid=mcnemar_mid_p(gains, losses),
        mde=minimum_detectable_effect((gains + losses) / n, n, alpha),
    )  # fmt: skip


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
        n=n, accuracy_a=sum(a) / n, accuracy_b=sum(b) / n,
        gains=int((differences > 0).sum()), losses=int((differences < 0).sum()),
        difference=mean, ci_low=max(-1.0, mean - half), ci_high=min(1.0, mean + half),
        p_exact=None, p_mid=None, mde=min(1.0, half + quantile(POWER) * error),
    )  # fmt: skip
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


def mean_interval(
    values: Sequence[float], alpha: float = 0.05, *, single: bool = False
) -> Interval:
    """Normal interval of the mean of questions' scores in [0, 1] (Miller 2024, eq. 1).

    single: each score is of one answer; then it is Wilson's. So it is of scores that are all the
    same, which show no spread.
    """
    n = len(values)
    if single:
        return wilson(round(sum(values)), n, alpha)
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


# ---- evidence that may be looked at after every question -----------------------------------------

# A gambler bets on the differences D_1, D_2, … in [−1, 1] of questions in random order. If their
# mean were m, no bet would be worth more than its stake, so the chance that the capital ever
# reaches 1/alpha is alpha at most (Ville 1939), however often one looks and whatever makes one
# stop. The bet is the uniform mixture over u in [0, 1] of products of
#
#     (1 + D)/(1 + m)·u + (1 − D)/(1 − m)·(1 − u)
#
# (Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86:1, whose bet 1 + λ(D − m) this is with λ
# uniform over all it may be). At m = 0 and D in {−1, 0, 1} it is `e_value`. The means with less
# than 1/alpha are one interval, for each product is log-convex in m; the observed mean is in it.


def e_value(gains: int, losses: int) -> float:
    """2^(g+l)·B(1+g, 1+l): evidence against "gains and losses are equally likely".

    It may be looked at after every question; stop at 1/alpha or more (Ville's inequality).
    """
    n = gains + losses
    log = n * math.log(2) + math.lgamma(1 + gains) + math.lgamma(1 + losses) - math.lgamma(2 + n)
    return math.exp(log) if log < 700 else math.inf


@cache
def bets() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The nodes u in [0, 1], and the logarithms of their weights; both (NODES,)."""
    x, weights = np.polynomial.legendre.leggauss(NODES)
    return (x + 1) / 2, np.log(weights / 2)


def log_capital(counts: Mapping[float, int], mean: float) -> float:
    """Logarithm of what betting against `mean` has made of 1. counts: difference → how often."""
    u, log_weights = bets()
    log = log_weights.copy()
    with np.errstate(divide="ignore"):  # a bet that has lost all
        for d, times in counts.items():
            if times:
                log += times * np.log((1 + d) / (1 + mean) * u + (1 - d) / (1 - mean) * (1 - u))
    top = float(log.max())
    return top + math.log(float(np.exp(log - top).sum())) if top > -math.inf else -math.inf


def evidence(counts: Mapping[float, int]) -> float:
    """E against "the mean difference is 0"; `e_value` where every difference is −1, 0 or 1."""
    if set(counts) <= {-1.0, 0.0, 1.0}:
        return e_value(counts.get(1.0, 0), counts.get(-1.0, 0))
    log = log_capital(counts, 0.0)
    return math.exp(log) if log < 700 else math.inf


def anytime_interval(counts: Mapping[float, int], alpha: float = 0.05) -> Interval:
    """The mean differences not yet ruled out; with probability 1 − alpha the true one always is.

    It leaves out 0 just when `evidence` reaches 1/alpha. (−1, 1) before the first question.
    """
    n = sum(counts.values())
    if not n:
        return -1.0, 1.0
    centre = sum(d * times for d, times in counts.items()) / n
    centre = min(1 - EDGE, max(EDGE - 1, centre))

    def surplus(mean: float) -> float:
        return log_capital(counts, mean) + math.log(alpha)

    low, high = EDGE - 1, 1 - EDGE
    return (
        zero_of(surplus, low, centre) if surplus(low) > 0 else -1.0,
        zero_of(surplus, centre, high) if surplus(high) > 0 else 1.0,
    )


# ---- in words ------------------------------------------------------------------------------------


def points(fraction: float) -> str:
    """A signed difference in percentage points."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def level(alpha: float) -> str:
    """The name of an interval: 95%."""
    return f"{100 * (1 - alpha):.10g}%"


def verdict(p: float, ci_low: float, ci_high: float, alpha: float = 0.05) -> str:
    """The test decides; borderline is an interval without 0 whose test does not reach alpha."""
    if p < alpha:
        return "significant"
    return "borderline" if ci_low > 0 or ci_high < 0 else "not significant"


def sentence(r: Mapping[str, Any], *, task: str = "") -> str:
    """Returns a paired comparison in words: significant, borderline or not significant.

    r: the fields of `Comparison`, a and b (the names), alpha; p_perm where there is no exact p;
    p_holm, which decides, and tests, where this is one of several. task: named where there are
    several. Raises ValueError without a p-value.
    """
    exact = r["p_exact"] is not None
    p, test = (r["p_exact"], "exact McNemar") if exact else (r.get("p_perm"), "sign-flip")
    if p is None:
        raise ValueError("a comparison of several samples a question needs its p_perm")
    alpha = r["alpha"]
    found = verdict(r.get("p_holm", p), r["ci_low"], r["ci_high"], alpha)
    text = (
        f"{f'{task}: ' if task else ''}{r['b']} answers {r['accuracy_b']:.1%} of {r['n']} "
        f"questions right, {r['a']} {r['accuracy_a']:.1%}: {spread(r)}; "
        f"{r['gains']} gained, {r['losses']} lost), {found} ({test} p = {p:.2g}{adjusted(r)})."
    )
    if found == "borderline":
        text += f" The interval leaves out 0, but the test does not reach {alpha:g}."
    return text if found == "significant" else f"{text} {power_sentence(r['n'], r['mde'])}"


TOO_FEW = "So few questions cannot show any difference."


def power_sentence(n: int, effect: float | None = None) -> str:
    """Returns what difference n questions can show. effect: the least, where it was measured.

    Before anything is measured, base and trained are taken to differ on DISCORDANCE of them. That
    is why the figure is another one afterwards, and the sentence says so.
    """
    given = "as much as they differ here"
    if effect is None:
        effect, given = minimum_detectable_effect(DISCORDANCE, n), "if every fifth answer changes"
    if effect >= 1:
        return TOO_FEW
    return (
        f"With {n} questions, a gain below {100 * effect:.3g} points would probably not show "
        f"(power {POWER:.0%}, {given})."
    )


def unpaired_sentence(r: Mapping[str, Any]) -> str:
    """Returns a comparison of counts in words. r: as `compare_counts` gives it."""
    exact = r["p_exact"] is not None
    found = verdict(r["p_holm"], r["ci_low"], r["ci_high"], r["alpha"])
    told = f"p = {r['p_exact']:.2g}" if exact else f"= {r['z']:.2f}, p = {r['p']:.2g}"
    return (
        f"{r['b']} answers {r['right_b']} of {r['n_b']} questions right ({r['accuracy_b']:.1%}), "
        f"{r['a']} {r['right_a']} of {r['n_a']} ({r['accuracy_a']:.1%}): {spread(r)}), {found} "
        f"({r['test']}{', ' if exact else ' '}{told}{adjusted(r)})."
        + (f" {SHARPER}" if r["tests"] == 1 else "")
    )


def judged_sentence(r: Mapping[str, Any], *, task: str = "") -> str:
    """Returns a comparison of open answers in words. r: as `judge.judged_comparison` gives it."""
    found = verdict(r["p_holm"], r["ci_low"], r["ci_high"], r["alpha"])
    judged, n = r["judged"], r["n"]
    shares = {
        "gave the same verdict in both orders on {} of the questions": judged["consistency"],
        "preferred the answer shown first in {} of its verdicts": judged["first_won"],
        "had the longer answer win {} of the decided questions": judged["longer_won"],
    }
    told = [said.format(f"{one:.1%}") for said, one in shares.items() if one is not None]
    text = (
        f"{f'{task}: ' if task else ''}{r['b']} is preferred on {r['gains']} of {n} questions, "
        f"{r['a']} on {r['losses']}, and {judged['ties']} tied: a win rate of {r['win_rate']:.1%} "
        f"({level(r['alpha'])} interval {r['win_low']:.1%} to {r['win_high']:.1%}), {found} "
        f"(exact sign test p = {r['p_exact']:.2g}{adjusted(r)})."
    )
    if left_out := judged.get("unjudged"):
        kinds = ", ".join(judged["kinds"])
        text += (
            f" {left_out} of {n + left_out} questions were not judged and do not count: "
            f"{judged['failed']} calls failed{kinds and f' ({kinds})'}, and {judged['unread']} "
            "replies had no verdict: compare again with --judge to ask them."
        )
    if told:
        said = ", and ".join([", ".join(told[:-1]), told[-1]]).removeprefix(", and ")
        text += f" The judge, {judged['by']}, {said}."
    if found == "borderline":
        text += f" The interval leaves out 50%, but the test does not reach {r['alpha']:g}."
    if found == "significant":
        return text
    least = f"With {n} questions, a win rate below {0.5 + r['mde'] / 2:.1%} would probably not show"
    return f"{text} {TOO_FEW if r['mde'] >= 1 else f'{least} (power {POWER:.0%}).'}"


def spread(r: Mapping[str, Any]) -> str:
    return (
        f"a difference of {points(r['difference'])} points ({level(r['alpha'])} interval "
        f"{points(r['ci_low'])} to {points(r['ci_high'])}"
    )


def adjusted(r: Mapping[str, Any]) -> str:
    tests = r.get("tests", 1)
    if tests == 1:
        return ""
    return f"; {r['p_holm']:.2g} with Holm's adjustment for {tests} comparisons"
