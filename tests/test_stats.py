"""Statistics against published vectors, statsmodels, scipy and plain enumeration."""

import itertools
import json
import math
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats
from scipy.integrate import quad
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import (
    confint_proportions_2indep,
    proportion_confint,
    proportions_ztest,
)

from mlxreflect import stats

TABLES = [  # both right, gains, losses, both wrong; exact p, mid-p, Newcombe's interval
    ((550, 124, 77, 249), 0.00112338, 0.00089781, (0.0192708, 0.0746201)),
    ((40, 12, 4, 44), 0.07681274, 0.04904175, (0.0009890, 0.1566267)),
    ((90, 6, 1, 3), 0.125, 0.0703125, (-0.0074217, 0.1168724)),
    ((600, 5, 0, 10), 0.0625, 0.03125, (-0.0004392, 0.0189563)),
]


def near(value: object) -> object:
    return pytest.approx(value, abs=1e-6)


def answers(both: int, gains: int, losses: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * both + [False] * gains + [True] * losses + [False] * neither
    b = [True] * both + [True] * gains + [False] * losses + [False] * neither
    order = random.Random(3).sample(range(len(a)), len(a))
    return [a[i] for i in order], [b[i] for i in order]


def random_tables(count: int) -> list[tuple[int, int, int, int]]:
    """Of all shapes: large and small, lopsided, empty margins, and every fifth without discord."""
    rng = random.Random(5)
    tables = []
    for i in range(count):
        cells = [rng.choice([0, rng.randrange(4), rng.randrange(400)]) for _ in range(4)]
        if i % 5 == 0:
            cells[1] = cells[2] = 0
        if not sum(cells):
            cells[3] = 1
        tables.append((cells[0], cells[1], cells[2], cells[3]))
    return tables


@pytest.mark.parametrize(("table", "exact", "mid", "interval"), TABLES)
def test_paired_vectors(
    table: tuple[int, int, int, int], exact: float, mid: float, interval: tuple[float, float]
) -> None:
    c = stats.paired(*answers(*table))
    assert (c.p_exact, c.p_mid) == near((exact, mid))
    assert (c.ci_low, c.ci_high) == near(interval)
    both, gains, losses, _ = table
    assert (c.n, c.gains, c.losses) == (sum(table), gains, losses)
    assert c.accuracy_a == near((both + losses) / sum(table))
    assert c.difference == near(c.accuracy_b - c.accuracy_a)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # Fagerland, Lydersen and Laake 2014: airway reactivity, 1, 1, 7, 12; phi is corrected to 0.
        (np.round(stats.newcombe_paired(1, 7, 1, 12), 3), (0.026, 0.507)),
        (stats.two_proportion(627, 1000, 674, 1000), (2.2041220, 0.0275158)),
        (stats.newcombe(627, 1000, 674, 1000), (0.0052064, 0.0885646)),
        (stats.wilson(627, 1000), (0.5965940, 0.6564339)),
        (stats.wilson(674, 1000), (0.6443294, 0.7023389)),
        (stats.wilson(0, 10), (0.0, 0.2775328)),
        (stats.two_proportion(0, 5, 0, 9), (0.0, 1.0)),
        (stats.holm([0.001, 0.012, 0.03, 0.04, 0.2]), [0.005, 0.048, 0.09, 0.09, 0.2]),
        (stats.pass_at_k(10, 3, 5), 0.9166667),
        (stats.pass_at_k(16, 4, 8), 0.9615385),
        (stats.e_value(12, 4), 2.118164),
        (stats.e_value(124, 77), 21.946989),
        (stats.e_value(8, 0), 28.444444),
        (stats.e_value(5000, 0), math.inf),
        (round(stats.questions_needed(0.03), 1), 969.0),
        (stats.mean_interval([0.5]), (0.0, 1.0)),
        (stats.mean_interval([1.0, 1.0, 1.0]), stats.wilson(3, 3)),
        (stats.mean_interval([1.0, 0.0, 1.0], single=True), stats.wilson(2, 3)),
        (stats.mean_interval([1.0, 1.0, 0.9])[1], 1.0),
        (stats.mean_interval([0.0, 0.0, 0.1])[0], 0.0),
    ],
)
def test_vectors(found: object, expected: object) -> None:
    assert found == near(expected)


def test_tests_and_intervals_agree_with_statsmodels_on_random_tables() -> None:
    for both, gains, losses, neither in random_tables(1000):
        n = both + gains + losses + neither
        theirs = mcnemar([[both, losses], [gains, neither]], exact=True).pvalue
        expected = 1.0 if gains == losses else theirs
        assert stats.mcnemar_exact(gains, losses) == near(expected)
        few = min(gains, losses)
        table = scipy_stats.binom(gains + losses, 0.5)
        mid = 1.0 if gains == losses else 2 * table.cdf(few) - table.pmf(few)
        assert stats.mcnemar_mid_p(gains, losses) == near(mid)
        assert stats.wilson(both, n) == near(proportion_confint(both, n, method="wilson"))
        assert stats.newcombe_paired(both, gains, losses, neither) == near(
            newcombe_by_correlation(both, gains, losses, neither)
        )


def newcombe_by_correlation(
    both: int, gains: int, losses: int, neither: int
) -> tuple[float, float]:
    """Method 10 by another road: Pearson's correlation of the answers, statsmodels' limits."""
    n = both + gains + losses + neither
    counts = [both, gains, losses, neither]
    a, b = np.repeat([1, 0, 1, 0], counts), np.repeat([1, 1, 0, 0], counts)
    phi, covariance = 0.0, both * neither - gains * losses
    if a.std() and b.std():
        phi = float(np.corrcoef(a, b)[0, 1])
        if covariance > 0:  # the correction takes n/2 off the covariance, but not past 0
            phi *= max(0.0, covariance - n / 2) / covariance
    (la, ua), (lb, ub) = (proportion_confint(x.sum(), n, method="wilson") for x in (a, b))
    down = np.array([b.mean() - lb, ua - a.mean()])
    up = np.array([ub - b.mean(), a.mean() - la])
    matrix = np.array([[1.0, -phi], [-phi, 1.0]])
    low, high = (math.sqrt(max(0.0, float(v @ matrix @ v))) for v in (down, up))
    return float(b.mean() - a.mean() - low), float(b.mean() - a.mean() + high)


def test_unpaired_agree_with_statsmodels_on_random_tables() -> None:
    rng = random.Random(11)
    for _ in range(1000):
        n_a, n_b = rng.randrange(2, 300), rng.randrange(2, 300)
        k_a, k_b = rng.randrange(n_a), rng.randrange(1, n_b + 1)
        z, p = proportions_ztest([k_b, k_a], [n_b, n_a])
        if not math.isnan(z):
            assert stats.two_proportion(k_a, n_a, k_b, n_b) == near((z, p))
        theirs = confint_proportions_2indep(k_b, n_b, k_a, n_a, method="newcomb", compare="diff")
        assert stats.newcombe(k_a, n_a, k_b, n_b) == near(theirs)


def test_no_discordant_pair_is_p_1() -> None:
    for n in (1, 7, 500):
        c = stats.paired([True] * n, [True] * n)
        assert (c.p_exact, c.p_mid, c.difference) == (1.0, 1.0, 0.0)
        assert c.ci_low < 0 < c.ci_high
        assert 0 < c.mde <= 1
    keys = "n accuracy_a accuracy_b gains losses difference ci_low ci_high p_exact p_mid mde"
    assert list(asdict(c)) == keys.split()


def test_holm_agrees_with_statsmodels_in_any_order() -> None:
    rng = random.Random(2)
    for size in (1, 2, 6, 20):
        p = [rng.choice([0.01, 1.0, rng.random() ** 3]) for _ in range(size)]  # ties too
        assert stats.holm(p) == near(list(multipletests(p, method="holm")[1]))


def test_e_value_is_fair_under_the_null() -> None:
    """Its mean over fair coin flips is 1 at every number of flips: a bet at fair odds."""
    for n in (1, 2, 9, 30):
        mean = sum(math.comb(n, g) / 2**n * stats.e_value(g, n - g) for g in range(n + 1))
        assert mean == near(1.0)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    for n, c, k in ((5, 2, 3), (6, 0, 2), (6, 6, 1), (7, 3, 7)):
        right = [i < c for i in range(n)]
        subsets = list(itertools.combinations(right, k))
        assert stats.pass_at_k(n, c, k) == near(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="pass@6 of 5"):
        stats.pass_at_k(5, 1, 6)


def test_majority() -> None:
    assert stats.majority(["a", "b", "b"], [True, False, False]) is False
    assert stats.majority(["a", "b", "b", "a"], [True, False, False, True]) is True  # a tie
    assert stats.majority(["b", "a", "b", "a"], [False, True, False, True]) is False
    assert stats.majority([None, None, "a"], [False, False, True]) is True
    assert stats.majority([None, None], [False, False]) is False


def test_interval_of_a_mean_over_questions() -> None:
    values = [0.25, 0.5, 0.0, 1.0, 0.75]
    error = scipy_stats.sem(values)
    low, high = stats.mean_interval(values)
    assert (low, high) == near((max(0, 0.5 - 1.959964 * error), min(1, 0.5 + 1.959964 * error)))


def test_variances_are_those_that_made_the_answers() -> None:
    """Questions whose difference varies by 1/12 + 1/12, 8 samples each with noise of 1/6."""
    rng = np.random.default_rng(2)
    hard_a, hard_b = rng.random(4000), rng.random(4000)
    a, b = (rng.random((4000, 8)) < hard[:, None] for hard in (hard_a, hard_b))
    omega2, noise_a, noise_b = stats.variances(a.tolist(), b.tolist())
    assert omega2 == pytest.approx(1 / 6, abs=0.01)
    assert (noise_a, noise_b) == pytest.approx((1 / 48, 1 / 48), abs=0.001)
    assert stats.questions_needed(0.03, omega2=omega2, noise_a=noise_a) > 969
    with pytest.raises(ValueError, match="no variance"):
        stats.variances([[True]], [[False]])


@pytest.mark.parametrize(("n", "effect"), [(100, 0.124), (200, 0.088), (500, 0.056), (1319, 0.034)])
def test_minimum_detectable_effect(n: int, effect: float) -> None:
    assert round(stats.minimum_detectable_effect(0.2, n), 3) == effect


@pytest.mark.parametrize(("discordance", "n"), [(0.2, 200), (0.1, 600)])
def test_the_detectable_effect_is_found_with_80_percent_power(discordance: float, n: int) -> None:
    """Counted over all outcomes of the asymptotic test, not by the formula that gave it."""
    effect = stats.minimum_detectable_effect(discordance, n)
    z = scipy_stats.norm.ppf(0.975)
    power = 0.0
    for d in range(1, n + 1):
        gains = np.arange(d + 1)
        rejected = abs(2 * gains - d) / math.sqrt(d) > z
        share = scipy_stats.binom.pmf(gains, d, (1 + effect / discordance) / 2)
        power += scipy_stats.binom.pmf(d, n, discordance) * share[rejected].sum()
    assert power == pytest.approx(0.8, abs=0.02)


def test_without_discord_the_detectable_effect_brings_its_own() -> None:
    """All discordant pairs are then gains; about 8 of them are needed at any n."""
    for n in (50, 1000):
        effect = stats.minimum_detectable_effect(0.0, n)
        needed = round(effect * n)
        assert 6 <= needed <= 9
        assert stats.mcnemar_exact(needed, 0) < 0.05
    assert stats.minimum_detectable_effect(0.3, 3) == 1.0


def test_clustered_interval_is_that_of_a_clustered_regression() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((60, 4)) < 0.4, rng.random((60, 4)) < 0.55
    c, _ = stats.clustered(list(a.mean(axis=1)), list(b.mean(axis=1)))
    differences = (b.astype(float) - a).ravel()
    fit = sm.OLS(differences, np.ones(240)).fit(
        cov_type="cluster",
        cov_kwds={"groups": np.repeat(np.arange(60), 4), "use_correction": False},
    )
    error = float(fit.bse[0]) * math.sqrt(60 / 59)
    z = scipy_stats.norm.ppf(0.975)
    assert c.difference == near(differences.mean())
    assert (c.ci_low, c.ci_high) == near((c.difference - z * error, c.difference + z * error))
    assert (c.p_exact, c.p_mid) == (None, None)
    assert c.gains == sum(b.mean(axis=1) > a.mean(axis=1))


def test_sign_flips_of_single_answers_are_the_exact_mcnemar_test() -> None:
    few = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 30)
    assert stats.sign_flip_p(few) == near(stats.mcnemar_exact(9, 2))
    many = np.array([1.0] * 40 + [-1.0] * 22 + [0.0] * 300)
    assert stats.sign_flip_p(many) == pytest.approx(stats.mcnemar_exact(40, 22), abs=0.006)
    assert stats.sign_flip_p(many, 7) == stats.sign_flip_p(many, 7)
    assert stats.sign_flip_p(many, 7) != stats.sign_flip_p(many, 8)
    assert stats.sign_flip_p(np.zeros(5)) == 1.0


def test_sign_flips_of_means_agree_with_enumeration() -> None:
    differences = [0.25, -0.5, 0.75, 0.3333333, -0.1, 0.6, 0.0]
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    expected = sum(s >= observed - 1e-12 for s in sums) / len(sums)
    assert stats.sign_flip_p(np.array(differences)) == near(expected)


def test_one_question_says_nothing() -> None:
    c, p = stats.clustered([0.25], [0.75])
    assert (c.ci_low, c.ci_high, p) == (-1.0, 1.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [([], []), ([True], [True, False])])
def test_what_cannot_be_paired_is_refused(a: list[bool], b: list[bool]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.paired(a, b)
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.clustered([float(x) for x in a], [float(x) for x in b])


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_proportion(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        stats.wilson(k, n)


@pytest.mark.parametrize(
    ("table", "verdict"),
    [((550, 124, 77, 249), "significant"), ((550, 77, 124, 249), "significant"),
     ((40, 12, 4, 44), "borderline"), ((90, 6, 1, 3), "not significant"),
     ((5, 0, 0, 5), "not significant")],
)  # fmt: skip
def test_sentence(table: tuple[int, int, int, int], verdict: str) -> None:
    text = worded(stats.paired(*answers(*table)), a="base", b="trained")
    assert text.startswith("trained answers ") and f", {verdict} (" in text
    assert f"of {sum(table)} questions" in text
    assert f"{table[1]} gained, {table[2]} lost" in text
    assert ("points would probably not show (power 80%, as much as" in text) == (
        verdict != "significant"
    )


def worded(comparison: stats.Comparison, **more: Any) -> str:
    return stats.sentence({**asdict(comparison), "a": "A", "b": "B", "alpha": 0.05, **more})


def test_sentence_follows_alpha_and_the_permutation_test() -> None:
    a, b = answers(550, 124, 77, 249)
    strict = worded(stats.paired(a, b, alpha=0.001), alpha=0.001)
    assert "99.9% interval" in strict
    assert ", borderline (exact McNemar p = 0.0011). The interval leaves out 0, but" in strict
    c, p = stats.clustered([0.0, 0.5] * 40, [0.25, 0.5] * 40)
    text = worded(c, p_perm=p)
    assert "significant (sign-flip p = 0.0001)" in text
    with pytest.raises(ValueError, match="p_perm"):
        worded(c)


@pytest.mark.parametrize("moved", [0.0, 0.25])
def test_questions_that_all_differ_alike_still_leave_a_doubt(moved: float) -> None:
    found, _ = stats.clustered([0.5] * 8, [0.5 + moved] * 8)
    assert found.ci_low < 0 < found.ci_high
    assert found.ci_high - moved == pytest.approx(stats.wilson(0, 8)[1])
    assert found.mde > 0.3


# ---- evidence at every look ----------------------------------------------------------------------

BENCH = Path(__file__).parent / "bench" / "evidence.py"


def counts(gains: int, losses: int, ties: int) -> dict[float, int]:
    return {1.0: gains, -1.0: losses, 0.0: ties}


def test_against_no_difference_the_capital_is_the_e_value() -> None:
    """For any number of ties: they bet on nothing."""
    rng = random.Random(4)
    for _ in range(200):
        gains, losses, ties = (rng.randrange(300) for _ in range(3))
        log = stats.log_capital(counts(gains, losses, ties), 0.0)
        assert log == pytest.approx(math.log(stats.e_value(gains, losses)), abs=1e-6)
    assert stats.evidence(counts(12, 4, 9)) == pytest.approx(2.118164, abs=1e-6)
    assert stats.evidence({}) == 1.0


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.3])
def test_the_capital_is_the_integral_of_all_bets(mean: float) -> None:
    """By another road: bets 1 + λ(D − m), λ uniform over all that can never lose more than 1."""
    found = {1.0: 9, -1.0: 5, 0.0: 7, 0.5: 3, -0.25: 2}
    low, high = -1 / (1 - mean), 1 / (1 + mean)

    def bets(stake: float) -> float:
        return math.prod((1 + stake * (d - mean)) ** times for d, times in found.items())

    capital = quad(bets, low, high)[0] / (high - low)
    assert math.exp(stats.log_capital(found, mean)) == pytest.approx(capital, rel=1e-9)


def test_the_capital_is_a_fair_game() -> None:
    """Its mean is 1 after any number of differences whose mean is what it bets against."""
    chances = {1.0: 0.3, -1.0: 0.1, 0.0: 0.4, 0.5: 0.2}
    mean = sum(d * p for d, p in chances.items())
    sums = [({}, 1.0)]
    for _ in range(4):
        sums = [({**c, d: c.get(d, 0) + 1}, p * q) for c, p in sums for d, q in chances.items()]
        assert sum(p * math.exp(stats.log_capital(c, mean)) for c, p in sums) == pytest.approx(1.0)


def test_the_interval_leaves_out_0_just_when_the_evidence_decides() -> None:
    rng = random.Random(6)
    decided = 0
    for _ in range(100):
        gains, losses, ties = rng.randrange(60), rng.randrange(30), rng.randrange(200)
        found = counts(gains, losses, ties)
        low, high = stats.anytime_interval(found)
        n = max(1, gains + losses + ties)
        assert -1 <= low <= (gains - losses) / n <= high <= 1
        decided += stats.e_value(gains, losses) >= 20
        assert (low > 0 or high < 0) == (stats.e_value(gains, losses) >= 20)
        assert stats.anytime_interval(counts(losses, gains, ties)) == pytest.approx((-high, -low))
    assert 10 < decided < 90


def test_intervals_of_the_ends() -> None:
    assert stats.anytime_interval({}) == (-1.0, 1.0)
    low, high = stats.anytime_interval(counts(10, 0, 0))
    assert (round(low, 3), high) == (0.166, 1.0)
    assert stats.anytime_interval(counts(0, 0, 100)) == pytest.approx((-0.0515, 0.0515), abs=1e-4)
    wide, narrow = (
        stats.anytime_interval(counts(30, 10, 60), 0.01),
        stats.anytime_interval(counts(30, 10, 60)),
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_several_samples_a_question_are_bet_on_too() -> None:
    """Quarters that always go up are evidence, though no question is all gained."""
    assert stats.evidence({0.25: 40}) > 20
    assert stats.evidence({0.25: 40, -0.25: 40}) < 1
    low, high = stats.anytime_interval({0.25: 40})
    assert 0 < low < 0.25 < high
    assert stats.evidence({0.5: 5000}) == math.inf


@pytest.mark.slow
def test_the_benchmark_finds_what_is_promised() -> None:
    call = [sys.executable, str(BENCH), "--small", "--json"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(row["errors"] <= 0.05 for row in found["compare"] + found["quick"])
    assert all(row["size"] <= 0.05 and row["errors"] <= 0.07 for row in found["clustered"])
    assert all(row["exact"] > 0.15 and row["e_value"] <= 0.05 for row in found["peeking"])
    assert all(row["saved"] >= 500 for row in found["savings"])
    assert all(row["coverage"] >= 0.92 for row in found["anytime"])
    exact, _, _ = found["newcombe"]
    assert exact["mean"] >= 0.95 and exact["least"] >= 0.90
    assert all(row["mean"] >= 0.948 and row["least"] >= 0.90 for row in found["newcombe"])
