"""An evaluation killed with SIGKILL and given again ends as one that was never killed."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.adapters import write_adapter
from support.kill_driver import DRIVER

FILES = ("samples.jsonl", "problems.jsonl", "setup.json", "results.json")
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
SPEC = ["eval", "countdown", "--limit", "60", "--set", "batch=3", "--set", "max_new_tokens=30"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mlxreflect", *map(str, arguments)]


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["off", "kept"])
@pytest.mark.parametrize("point", ["evaluated a chunk", "evaluated half a chunk"])
def test_killed_at_a_point(point: str, cache: str, tmp_path: Path) -> None:
    cache = cache if cache == "off" else str(tmp_path / "kept")
    asked = [*SPEC, "--model", "tiny", "--cache", cache, "--out", tmp_path / "killed"]
    driver = [sys.executable, DRIVER, point, "2", *map(str, asked)]
    assert subprocess.run(driver, capture_output=True).returncode == -9
    assert not (tmp_path / "killed" / "results.json").exists()
    subprocess.run(command(*asked), check=True, capture_output=True)
    whole = [*SPEC, "--model", "tiny", "--cache", "off", "--out", tmp_path / "whole"]
    subprocess.run(command(*whole), check=True, capture_output=True)
    assert set(contents(tmp_path / "killed")) == set(FILES)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [[], ["--set", "samples=2", "--set", "temperature=1"]])
def test_killed_at_random_moments(decoding: list[str], tmp_path: Path, tiny_random: Path) -> None:
    """Several arms; each kill comes so many rows after the last one, wherever that is."""
    adapter = write_adapter(tmp_path / "one", tiny_random)
    arms = ["--model", tiny_random, "--adapter", adapter, "--base", *decoding, "--cache", "off"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(*SPEC, *arms, "--out", whole), check=True, capture_output=True)

    def rows() -> int:
        return sum(p.read_bytes().count(b"\n") for p in killed.rglob("samples.jsonl"))

    rng, kills = random.Random(len(decoding)), 0
    for _ in range(5):
        until = rows() + rng.randrange(1, 40)
        process = subprocess.Popen(command(*SPEC, *arms, "--out", killed), **SILENT)
        while process.poll() is None and rows() < until:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    subprocess.run(command(*SPEC, *arms, "--out", killed), check=True, capture_output=True)
    assert kills >= 3
    assert contents(killed) == contents(whole)
