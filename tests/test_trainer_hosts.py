"""Training and scoring over several hosts: they give what one gives."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support import fits
from support.hosts import launch, launched
from support.training import SHAPES, fitting, flagged, make_groups, make_pairs, rows

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.train.batches import Row, collate, whole
from mlxreflect.train.hosts import divided, tokens_of
from mlxreflect.train.objectives import (
    from_json,
    imitation,
    odds_ratio,
    preference,
    reinforcement,
    to_json,
)

SCRIPT = Path(fits.__file__)
ENV = {"PYTHONPATH": os.pathsep.join(map(str, (SCRIPT.parents[2], SCRIPT.parents[1])))}
NEAR = 1e-5  # largest difference of a loss, a figure or a weight
FIGURES = ("loss", "margin", "accuracy", "kl", "clipped", "grad_norm", "lr", "tokens", "step")


def call(folder: Path, *names: str) -> list[str]:
    return [str(SCRIPT), str(folder), *names]


def on_hosts(folder: Path, size: int, *names: str) -> tuple[dict[str, Any], str]:
    """Returns what rank 0 found in each case, and what all of them said."""
    done = launched(folder, size, *call(folder, *names), env=ENV, timeout=900)
    assert done.returncode == 0 and "exited with code" not in done.stderr, done.stderr
    return json.loads((folder / "found.json").read_text()), done.stdout


def check(names: list[str], size: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one := folder / "one").mkdir()
    monkeypatch.setattr("sys.argv", ["", str(one)])
    expected = fits.results(names)
    found, said = on_hosts(folder, size, *names)
    assert expected is not None and list(found) == names
    assert "said:" not in said  # no host rounds otherwise than rank 0
    for name in names:
        same(name, found[name], expected[name])


def same(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert found.get("scores") == expected.get("scores"), name
    for a, b in zip(found.get("looks", []), expected.get("looks", []), strict=True):
        assert a == {key: value and pytest.approx(value, abs=NEAR) for key, value in b.items()}
    for a, b in zip(found.get("steps", []), expected.get("steps", []), strict=True):
        for key in FIGURES:
            most = NEAR if key != "grad_norm" else 3 * NEAR  # of thousands of rounded sums
            assert a[key] == (b[key] and pytest.approx(b[key], abs=most, rel=most)), (name, key, a)
    for path, values in expected.get("weights", {}).items():
        np.testing.assert_allclose(
            np.array(found["weights"][path]), np.array(values), atol=NEAR, rtol=0, err_msg=path
        )


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(tmp_path, monkeypatch):
    """Of few rows: a fit that is left for another, with looks at held-out rows; masks of dropout;
    more ranks than members; a rank with other weights."""
    check(["left", "recomputed", "single", "wrecked"], 2, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "names"), [
    (2, ["dpo", "exo_pair"]), (3, ["dropout", "orpo"]), (2, ["grpo", "accumulate"]),
    (3, ["ipo", "resumed", "full", "scored"]),
])  # fmt: skip
def test_several_processes_train_and_score_as_one(size, names, tmp_path, monkeypatch):
    """Over 50 steps, with accumulation, dropout, all weights, and a state that rank 0 loaded."""
    check(names, size, tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_host_that_dies_in_a_fit_stops_rank_0(tmp_path):
    process, said = launch(tmp_path, 2, *call(tmp_path, "endless"), env=ENV), ""
    assert process.stdout
    try:
        while "step 3" not in said:
            said += process.stdout.readline()
        (pid,) = re.findall(r"pid 1 (\d+)", said)
        os.kill(int(pid), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    (told,) = [line for line in err.splitlines() if "error: " in line]
    assert "(rank 1) has ended (the work stopped at its last commit)" in told


# ---- who computes what ---------------------------------------------------------------------------


def test_work_is_divided_by_its_cost():
    assert divided([5, 1, 4, 3, 3], 2) == [[0, 4], [1, 2, 3]]
    assert divided([7], 3) == [[0], [], []]
    costs = np.random.default_rng(0).integers(1, 400, 40).tolist()
    shares = divided(costs, 3)
    assert sorted(i for share in shares for i in share) == list(range(40))
    loads = [sum(costs[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)


def test_a_shared_prompt_is_run_once():
    pair = (Row([1, 2, 3], [4]), Row([1, 2, 3], [5, 6]))
    assert tokens_of([pair], shares=True) == 6
    assert tokens_of([pair, pair[:1]], shares=False) == 13


# ---- objectives as JSON --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "exo_pair", "orpo", "grpo"])
def test_an_objective_is_built_again_from_json(name):
    """Its loss too, of random log-probabilities, to the last bit."""
    rng = np.random.default_rng(7)
    train = fitting(beta=0.3, smoothing=0.1, nll=0.2, logps="mean")
    flags = [flagged(row, i) for i, row in enumerate(rows(5, SHAPES))]
    pairs, groups = make_pairs(3, 5), make_groups(4)
    known = [rng.normal(size=2).astype(np.float32) for _ in pairs]
    tokens = [rng.normal(size=sum(row.trained for row in group.rows)).astype(np.float32)
              for group in groups]  # fmt: skip
    made = {
        "sft": lambda: imitation(flags, dropout=False), "orpo": lambda: odds_ratio(pairs, 0.2),
        "grpo": lambda: reinforcement(groups, tokens, None, GrpoConfig(epsilon_high=0.3)),
    }.get(name, lambda: preference(pairs, known, train, name))()  # fmt: skip
    again = from_json(json.loads(json.dumps(to_json(made))))
    assert replace(again, loss=made.loss, given={}) == replace(made, given={})
    batch, part = collate(made.items), whole(dict(enumerate(made.items)))
    logps = mx.random.normal(batch.mask.shape, key=mx.random.key(1)) * batch.mask
    (loss, figures), (twin, others) = made.loss(logps, batch, part), again.loss(logps, batch, part)
    assert loss.item() == twin.item()
    assert tuple(figures) == tuple(others) == made.metrics
    assert all(array.tolist() == others[key].tolist() for key, array in figures.items())
