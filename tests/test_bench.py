"""The benchmark of a DPO step on quantised weights: what it compares, not how fast it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench" / "dpo_step.py"


@pytest.mark.slow
def test_four_bit_weights_beside_the_peer() -> None:
    """Gradients equal the plain formulation's, and the peak of memory is a part of the peer's."""
    pytest.importorskip("mlx_lm_lora")
    call = [sys.executable, str(BENCH), "--models", "5M", "--bits", "4", "--pairs", "2",
            "--batch", "2", "--json"]  # fmt: skip
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    print("\n".join(table))
    ours = [row for row in json.loads(last) if row["side"] == "mlxreflect"]
    assert len(ours) == 3
    assert all(row["gradient_difference"] < 1e-4 for row in ours), ours
    limits = {"prompt 60": 0.65, "prompt 450": 0.35, "450, 60 % kept": 0.35}
    for row in ours:
        assert row["memory"] < limits[row["case"].removeprefix("5M, ")], row
