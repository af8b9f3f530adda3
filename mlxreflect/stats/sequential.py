"""Evidence that may be looked at after every question, and intervals that hold at every look.

A gambler bets on the differences B − A of questions in random order, D_1, D_2, … in [−1, 1], drawn
(as for McNemar's test) from all the questions that could be asked. If
their mean were m, no bet would be worth more than its stake, so the chance that the capital ever
reaches 1/alpha is alpha at most (Ville 1939), however often one looks and whatever makes one stop.

The bet is the uniform mixture over u in [0, 1] of products of

    (1 + D)/(1 + m)·u + (1 − D)/(1 − m)·(1 − u)

(Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86:1, whose bet 1 + λ(D − m) this is with λ
uniform over all it may be; Cover's universal portfolio). At m = 0 and D in {−1, 0, 1} it is
`stats.e_value`: 2^(g+l)·B(1+g, 1+l). The means m with less than 1/alpha are the interval. Each
product is log-convex in m, so that they are one interval, and the observed mean is in it.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from mlxreflect.stats import Interval, e_value

NODES = 512  # Gauss-Legendre: exact for polynomials of degree 1023, far closer than 1e-9 beyond
EDGE = 1e-9  # of the means, where a division by 1 ± m would fail

_X, _W = np.polynomial.legendre.leggauss(NODES)
U: NDArray[np.float64] = (_X + 1) / 2  # nodes (NODES,) in [0, 1]
LOG_W: NDArray[np.float64] = np.log(_W / 2)


def log_capital(counts: Mapping[float, int], mean: float) -> float:
    """Logarithm of what betting against `mean` has made of 1. counts: difference → how often."""
    log = LOG_W.copy()
    with np.errstate(divide="ignore"):  # a bet that has lost all
        for d, times in counts.items():
            if times:
                log += times * np.log((1 + d) / (1 + mean) * U + (1 - d) / (1 - mean) * (1 - U))
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
        float(brentq(surplus, low, centre)) if surplus(low) > 0 else -1.0,
        float(brentq(surplus, centre, high)) if surplus(high) > 0 else 1.0,
    )
