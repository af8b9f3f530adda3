"""Evidence and intervals that may be looked at after every question."""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

from mlxreflect.stats import anytime_interval, e_value, evidence, log_capital

BENCH = Path(__file__).parent / "bench" / "evidence.py"


def counts(gains: int, losses: int, ties: int) -> dict[float, int]:
    return {1.0: gains, -1.0: losses, 0.0: ties}


def test_against_no_difference_the_capital_is_the_e_value() -> None:
    """For any number of ties: they bet on nothing."""
    rng = random.Random(4)
    for _ in range(200):
        gains, losses, ties = (rng.randrange(300) for _ in range(3))
        log = log_capital(counts(gains, losses, ties), 0.0)
        assert log == pytest.approx(math.log(e_value(gains, losses)), abs=1e-6)
    assert evidence(counts(12, 4, 9)) == pytest.approx(2.118164, abs=1e-6)
    assert evidence({}) == 1.0


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.3])
def test_the_capital_is_the_integral_of_all_bets(mean: float) -> None:
    """By another road: bets 1 + λ(D − m), λ uniform over all that can never lose more than 1."""
    found = {1.0: 9, -1.0: 5, 0.0: 7, 0.5: 3, -0.25: 2}
    low, high = -1 / (1 - mean), 1 / (1 + mean)

    def bets(stake: float) -> float:
        return math.prod((1 + stake * (d - mean)) ** times for d, times in found.items())

    capital = quad(bets, low, high)[0] / (high - low)
    assert math.exp(log_capital(found, mean)) == pytest.approx(capital, rel=1e-9)


def test_the_capital_is_a_fair_game() -> None:
    """Its mean is 1 after any number of differences whose mean is what it bets against."""
    chances = {1.0: 0.3, -1.0: 0.1, 0.0: 0.4, 0.5: 0.2}
    mean = sum(d * p for d, p in chances.items())
    sums = [({}, 1.0)]
    for _ in range(4):
        sums = [({**c, d: c.get(d, 0) + 1}, p * q) for c, p in sums for d, q in chances.items()]
        assert sum(p * math.exp(log_capital(c, mean)) for c, p in sums) == pytest.approx(1.0)


def test_the_interval_leaves_out_0_just_when_the_evidence_decides() -> None:
    rng = random.Random(6)
    decided = 0
    for _ in range(100):
        gains, losses, ties = rng.randrange(60), rng.randrange(30), rng.randrange(200)
        found = counts(gains, losses, ties)
        low, high = anytime_interval(found)
        n = max(1, gains + losses + ties)
        assert -1 <= low <= (gains - losses) / n <= high <= 1
        decided += e_value(gains, losses) >= 20
        assert (low > 0 or high < 0) == (e_value(gains, losses) >= 20)
        assert anytime_interval(counts(losses, gains, ties)) == pytest.approx((-high, -low))
    assert 10 < decided < 90


def test_intervals_of_the_ends() -> None:
    assert anytime_interval({}) == (-1.0, 1.0)
    low, high = anytime_interval(counts(10, 0, 0))
    assert (round(low, 3), high) == (0.166, 1.0)
    assert anytime_interval(counts(0, 0, 100)) == pytest.approx((-0.0515, 0.0515), abs=1e-4)
    wide, narrow = anytime_interval(counts(30, 10, 60), 0.01), anytime_interval(counts(30, 10, 60))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_several_samples_a_question_are_bet_on_too() -> None:
    """Quarters that always go up are evidence, though no question is all gained."""
    assert evidence({0.25: 40}) > 20
    assert evidence({0.25: 40, -0.25: 40}) < 1
    low, high = anytime_interval({0.25: 40})
    assert 0 < low < 0.25 < high
    assert evidence({0.5: 5000}) == math.inf


def test_the_interval_holds_at_every_look() -> None:
    """Simulated: misses after any of 300 questions are at most 5 % (with room for chance)."""
    rng = np.random.default_rng(8)
    missed = 0
    for _ in range(100):
        drawn = rng.choice([1.0, -1.0, 0.0], size=300, p=[0.25, 0.15, 0.6])
        seen: Counter[float] = Counter()
        for i, d in enumerate(drawn):
            seen[float(d)] += 1
            if i % 5 == 4 and log_capital(seen, 0.1) >= math.log(20):
                missed += 1
                break
    assert missed <= 9


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
