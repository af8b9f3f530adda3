"""Can the verdicts be trusted? False positives, interval coverage, and what stopping early saves.

usage: python tests/bench/evidence.py [--small] [--json]

Exact enumeration where that is possible, else seeded simulation, of the functions that `compare`
and `eval --quick` use. A discordance is the share of questions where the two models differ.
--small: fewer simulations. --json: all figures as one object on the last line.
"""

import json
import math
import sys
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, gammaln
from scipy.stats import binom

from mlxreflect import stats

Array = NDArray[Any]
Table = tuple[float, float, float, float]  # both right, gained, lost, both wrong: shares
ALPHA, N, BATCH, SAMPLES = 0.05, 1000, 32, 4
SMALL = "--small" in sys.argv
RNG = np.random.default_rng(20)


def runs(many: int) -> int:
    return many // 8 if SMALL else many


# ---- false positives of `compare` ----------------------------------------------------------------


def mcnemar_errors(sizes: list[int], discordances: list[float]) -> list[dict[str, Any]]:
    """Exact: over every number of discordant pairs, and every split of them."""
    rejected, few = [], -1  # few: the largest smaller cell that still is significant
    for d in range(max(sizes) + 1):
        while few + 1 <= d // 2 and stats.mcnemar_exact(few + 1, d - few - 1) < ALPHA:
            few += 1
        while few >= 0 and stats.mcnemar_exact(few, d - few) >= ALPHA:
            few -= 1
        rejected.append(2 * float(bdtr(few, d, 0.5)) if few >= 0 else 0.0)
    return [
        {"n": n, "discordance": psi, "errors": float(binom.pmf(np.arange(n + 1), n, psi)
                                                     @ np.array(rejected[: n + 1]))}
        for n, psi in product(sizes, discordances)
    ]  # fmt: skip


def clustered_errors(n: int, strengths: str, count: int) -> dict[str, Any]:
    """Simulated: two equally good models, 4 samples a question, questions of all difficulties.

    strengths: "same" (each question is equally hard for both) or "other" (each model has its own).
    size: the exact share of significant flips of the same differences, on average.
    """
    errors = covered = 0
    sizes = []
    for i in range(count):
        hard_a = RNG.beta(0.6, 0.6, n)
        hard_b = hard_a if strengths == "same" else RNG.beta(0.6, 0.6, n)
        a, b = RNG.binomial(SAMPLES, hard_a), RNG.binomial(SAMPLES, hard_b)
        comparison, p = stats.clustered(list(a / SAMPLES), list(b / SAMPLES), seed=i)
        errors += p < ALPHA
        covered += comparison.ci_low <= 0 <= comparison.ci_high
        if i % 10 == 0:
            sizes.append(flip_size(abs(b - a)))
    return {"n": n, "strengths": strengths, "runs": count, "errors": errors / count,
            "size": float(np.mean(sizes)), "coverage": covered / count}  # fmt: skip


def flip_size(moved: Array) -> float:
    """Share of all sign flips of these whole numbers that the exact test finds significant."""
    total = int(moved.sum())
    chance = np.zeros(2 * total + 1)
    chance[total] = 1.0
    for d in moved[moved > 0]:
        chance = (np.roll(chance, d) + np.roll(chance, -d)) / 2
    tails = chance[::-1].cumsum()[: total + 1] * 2  # of |sum| ≥ total, total − 1, …
    return float(max((t for t in tails if t < ALPHA), default=0.0))


# ---- looking all along ---------------------------------------------------------------------------


def log_e(gains: Array, losses: Array) -> Array:
    d = gains + losses
    found: Array = d * math.log(2) + gammaln(1 + gains) + gammaln(1 + losses) - gammaln(2 + d)
    return found


def quick_errors(discordances: list[float]) -> list[dict[str, Any]]:
    """Exact: the chance that E ever reaches 1/alpha, looking after each of 1000 questions."""
    alive, crossed, total = np.array([1.0]), [0.0], 0.0
    for d in range(1, N + 1):
        alive = (np.append(alive, 0) + np.append(0, alive)) / 2  # by gains 0 … d
        gains = np.arange(d + 1)
        out = log_e(gains, d - gains) >= math.log(1 / ALPHA)
        total += float(alive[out].sum())
        alive[out] = 0
        crossed.append(total)
    pairs = np.arange(N + 1)
    return [
        {"discordance": psi, "errors": float(binom.pmf(pairs, N, psi) @ np.array(crossed))}
        for psi in discordances
    ]


def paths(share: tuple[float, float], count: int) -> tuple[Array, Array]:
    """Running gains and losses [count, N]. share: of gains and of losses."""
    drawn = RNG.random((count, N))
    gain, lost = drawn < share[0], (drawn >= share[0]) & (drawn < sum(share))
    return gain.cumsum(axis=1), lost.cumsum(axis=1)


def peeking_errors(discordance: float, count: int, every: int = 10) -> dict[str, Any]:
    """What peeking at p-values does: significant at any look, between equals."""
    gains, losses = (
        side[:, every - 1 :: every] for side in paths((discordance / 2, discordance / 2), count)
    )
    few, d = np.minimum(gains, losses), gains + losses
    exact = np.where(gains == losses, 1.0, 2 * bdtr(few, d, 0.5))
    pmf = np.exp(gammaln(d + 1) - gammaln(gains + 1) - gammaln(losses + 1) - d * math.log(2))
    quick = log_e(gains, losses) >= math.log(1 / ALPHA)
    mid = np.where(gains == losses, 1.0, exact - pmf)
    wrong = {"exact": exact < ALPHA, "mid_p": mid < ALPHA, "e_value": quick}
    return {"discordance": discordance, "every": every, "runs": count,
            **{name: float(found.any(axis=1).mean()) for name, found in wrong.items()}}  # fmt: skip


def savings(discordance: float, difference: float, count: int) -> dict[str, Any]:
    """How many of 1000 questions --quick asks, looking after every batch of 32."""
    share = ((discordance + difference) / 2, (discordance - difference) / 2)
    looks = np.append(np.arange(BATCH, N, BATCH), N) - 1
    gains, losses = (side[:, looks] for side in paths(share, count))
    over = log_e(gains, losses) >= math.log(1 / ALPHA)
    decided, first = over.any(axis=1), over.argmax(axis=1)
    asked = np.where(decided, looks[first] + 1, N)
    rows = np.arange(count)
    right = decided & (gains[rows, first] > losses[rows, first])
    return {"discordance": discordance, "difference": difference, "runs": count,
            "saved": float(N - asked.mean()), "decided": float(decided.mean()),
            "right": float(right.mean())}  # fmt: skip


def anytime_coverage(share: tuple[float, float], count: int, nodes: int = 160) -> dict[str, Any]:
    """Share of runs whose interval holds the true difference after every one of 1000 questions."""
    mean = share[0] - share[1]
    x, w = np.polynomial.legendre.leggauss(nodes)
    u = (x + 1) / 2
    bets = np.log([(1 + d) / (1 + mean) * u + (1 - d) / (1 - mean) * (1 - u) for d in (0, 1, -1)])
    log, held = np.tile(np.log(w / 2), (count, 1)), np.ones(count, dtype=bool)
    chances = [1 - sum(share), *share]
    kinds = RNG.choice(3, size=(N, count), p=chances)
    for kind in kinds:
        log += bets[kind]
        held &= np.exp(log).sum(axis=1) < 1 / ALPHA
    seen = Counter({0.0: 0, 1.0: 0, -1.0: 0}) + Counter(float((0, 1, -1)[k]) for k in kinds[:, 0])
    assert math.isclose(stats.log_capital(seen, mean), math.log(np.exp(log[0]).sum()),
                        abs_tol=1e-6)  # fmt: skip
    return {"gained": share[0], "lost": share[1], "runs": count, "coverage": float(held.mean())}


# ---- coverage of the paired interval -------------------------------------------------------------


def grid() -> list[Table]:
    """Accuracies of 10 to 90 %, differences of 0, 5 and 15 points, correlations of 0 to 0.6."""
    tables = []
    for a, difference, phi in product((0.1, 0.3, 0.5, 0.7, 0.9), (0, 0.05, 0.15), (0, 0.3, 0.6)):
        b = a + difference
        both = a * b + phi * math.sqrt(a * (1 - a) * b * (1 - b)) if b < 1 else 2.0
        cells = (both, b - both, a - both, 1 - a - b + both)
        if min(cells) > 0:
            tables.append(cells)
    return tables


def intervals(tables: Array) -> tuple[Array, Array]:
    """`stats.newcombe_paired` of many tables [m, 4] at once; checked against it below."""
    both, gains, losses, neither = tables.T.astype(float)
    n = tables.sum(axis=1)
    z2 = stats.quantile(1 - ALPHA / 2) ** 2

    def wilson(p: Array) -> tuple[Array, Array]:
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2) * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return centre - half, centre + half

    a, b = (both + losses) / n, (both + gains) / n
    margins = a * (1 - a) * b * (1 - b) * n**4
    excess = both * neither - gains * losses
    excess = np.where(excess > 0, np.maximum(0, excess - n / 2), excess)
    phi = np.where(margins > 0, excess / np.sqrt(np.where(margins > 0, margins, 1)), 0)
    (low_a, high_a), (low_b, high_b) = wilson(a), wilson(b)

    def distance(x: Array, y: Array) -> Array:
        found: Array = np.sqrt(np.maximum(0, x * x - 2 * phi * x * y + y * y))
        return found

    return b - a - distance(b - low_b, high_a - a), b - a + distance(high_b - b, a - low_a)


def all_tables(n: int) -> Array:
    """Every 2×2 table of n questions, [m, 4]."""
    rows = [
        np.stack([np.full(n - g - x + 1, g), np.full(n - g - x + 1, x), np.arange(n - g - x + 1)])
        for g in range(n + 1)
        for x in range(n - g + 1)
    ]
    three = np.concatenate(rows, axis=1)
    return np.vstack([three, n - three.sum(axis=0)]).T


def coverage(n: int, cells: list[Table], draws: int) -> dict[str, Any]:
    """How often Newcombe's interval holds the true difference, of each cell of the grid.

    Exact up to 200 questions; else of `draws` tables a cell.
    """
    exact = n <= (50 if SMALL else 200)
    tables = all_tables(n) if exact else None
    if tables is not None:
        low, high = intervals(tables)
        log_ways = gammaln(n + 1) - gammaln(tables + 1).sum(axis=1)
    found = []
    for cell in cells:
        truth = cell[1] - cell[2]
        if tables is not None:
            inside = (low <= truth + 1e-12) & (high >= truth - 1e-12)
            found.append(float(np.exp(log_ways + tables @ np.log(cell))[inside].sum()))
        else:
            drawn_low, drawn_high = intervals(RNG.multinomial(n, cell, draws))
            found.append(float(((drawn_low <= truth) & (truth <= drawn_high)).mean()))
    return {"n": n, "how": "exact" if exact else f"{draws} tables", "cells": found,
            "mean": float(np.mean(found)), "least": min(found)}  # fmt: skip


def check_intervals() -> None:
    """The many-at-once form above is the one that is shipped."""
    tables = RNG.multinomial(60, [0.4, 0.3, 0.1, 0.2], 200)
    low, high = intervals(tables)
    for table, *limits in zip(tables, low, high, strict=True):
        assert np.allclose(limits, stats.newcombe_paired(*map(int, table)), atol=1e-12)


# ---- the report ----------------------------------------------------------------------------------


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    names = [name for name in rows[0] if name != "cells"]
    print("  ".join(f"{name:>11}" for name in names))
    for row in rows:
        print("  ".join(f"{tell(name, row[name]):>11}" for name in names))


def tell(name: str, value: Any) -> str:
    if name == "saved":
        return f"{value:.0f}"
    return f"{value:.2%}" if isinstance(value, float) else str(value)


def show_grid(cells: list[Table], found: list[dict[str, Any]]) -> None:
    heads = ["base", "difference", "discordance", *(f"n = {one['n']}" for one in found)]
    print("\n" + "  ".join(f"{head:>11}" for head in heads))
    for i, (both, gains, losses, _) in enumerate(cells):
        shares = [
            both + losses,
            gains - losses,
            gains + losses,
            *(one["cells"][i] for one in found),
        ]
        print("  ".join(f"{share:>11.1%}" for share in shares))


def main() -> None:
    check_intervals()
    discordances, cells = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8], grid()
    figures = {
        "compare": mcnemar_errors([20, 50, 200, 1000], discordances),
        "clustered": [clustered_errors(n, s, runs(many)) for s in ("same", "other")
                      for n, many in ((50, 3000), (100, 1500))],
        "quick": quick_errors(discordances),
        "peeking": [peeking_errors(psi, runs(4000)) for psi in (0.1, 0.2, 0.4)],
        "savings": [savings(psi, 0.15, runs(4000)) for psi in (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)],
        "smaller": [savings(0.3, d, runs(4000)) for d in (0.0, 0.02, 0.05, 0.1, 0.2)],
        "anytime": [anytime_coverage(s, runs(800)) for s in
                    ((0.1, 0.1), (0.325, 0.175), (0.2, 0.001), (0.02, 0.01), (0.4, 0.4))],
        "newcombe": [coverage(n, cells, runs(40000)) for n in (50, 200, 1000)],
    }  # fmt: skip
    show("compare, exact McNemar: significant between equals (exact)", figures["compare"])
    show("compare, 4 samples a question, sign flips: the same (simulated; size: exact)",
         figures["clustered"])  # fmt: skip
    show("eval --quick, looking after each of 1000 questions: the same (exact)", figures["quick"])
    show("Not done: peeking at p-values every 10 of 1000 questions", figures["peeking"])
    show(
        "eval --quick, a true difference of 15 points: questions saved of 1000", figures["savings"]
    )
    show("eval --quick, other differences", figures["smaller"])
    show("eval --quick, its interval: right after every question", figures["anytime"])
    show("compare, Newcombe's interval: coverage over a grid", figures["newcombe"])
    show_grid(cells, figures["newcombe"])
    if "--json" in sys.argv:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
