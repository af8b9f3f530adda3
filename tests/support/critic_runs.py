"""Whole runs of the embedded policy with a critic behind a socket that knows the answers.

The server solves each problem it is shown by the exact solver, so rewrites pass and train; what
else it does, `faults` decides. Runs are in this process, so a test can make the pauses short.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import Recipe
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import make_problem
from mlxreflect.core.ui import Ui
from mlxreflect.critics.base import Call
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.runs.folder import RunFolder, create_run, open_folder
from mlxreflect.runs.run import execute
from support.fake_server import Body, Fault
from support.whole_runs import contents

# Two waves, bucket passes with them, cycles after failed verifications: some 50 calls.
SETTINGS = {
    "task.limit": 12, "r3.wave": 6, "r3.epochs": 1, "r3.verifications": 2, "r3.sft_mode": 1,
    "r3.bucket_every": 6, "train.batch": 4, "train.sft.scale_failed": 0.01, "eval.limit": 4,
    "eval.max_new_tokens": 26, "policy.batch": 12, "policy.temperature": 1.0,
    "policy.max_new_tokens": 28, "train.lora.dropout": 0.1,
    "critic.provider": "ollama", "critic.model": "critic", "critic.concurrency": 4,
}  # fmt: skip
SOLVER = SolverCritic("countdown")


def flags(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def run(folder: Path, url: str, **settings: Any) -> dict[str, Any]:
    """Begin a run here and do it; its summary. Names of settings have _ for the critic's dots."""
    chosen = SETTINGS | {"critic.base_url": url} | keys(settings)
    return do(create_run(load_recipe("quickstart", flags(chosen)), folder))


def resume(folder: Path, **settings: Any) -> dict[str, Any]:
    return do(open_folder(folder, flags(keys(settings))))


def keys(settings: dict[str, Any]) -> dict[str, Any]:
    """cache → critic.cache, budget_max_usd → critic.budget.max_usd, r3_wave → r3.wave."""
    made = {}
    for name, value in settings.items():
        table, _, rest = name.partition("_")
        known = table in ("r3", "task", "budget", "advanced")
        dotted = f"{table}.{rest}" if known else name
        made[dotted if table in ("r3", "task") else f"critic.{dotted}"] = value
    return made


def arguments(folder: Path, url: str, **settings: Any) -> list[str]:
    """The same as `run`, for a process of its own."""
    chosen = flags(SETTINGS | {"critic.base_url": url} | keys(settings))
    return ["run", "quickstart", "--run-dir", str(folder), *(f"--set={flag}" for flag in chosen)]


def do(one: RunFolder[Recipe]) -> dict[str, Any]:
    try:
        return execute(one, Ui(quiet=True))
    finally:
        one.close()


def solving(body: Body) -> str:
    """A fault found, or a right solution, as the prompt asks; all by the exact solver."""
    said = body["messages"][-1]["content"]
    numbers = re.search(r"Numbers: ([\d ]+)", said)
    target = re.search(r"Target: (\d+)", said)
    assert numbers and target
    fields = {"numbers": [int(n) for n in numbers[1].split()], "target": int(target[1])}
    role: Any = "critique" if said.endswith("Reflect:") else "rewrite"
    attempt = said.partition("<attempt>\n")[2].partition("\n</attempt>")[0]
    call = Call(role, make_problem("countdown", fields), [], attempt, seed=5)
    return SOLVER.ask([call])[0].text


def words(body: Body) -> str:
    """What tells one call from another."""
    return json.dumps([body["messages"], body["options"]["seed"]])


class Faulty:
    """Replies as `solving`, or what `fault` makes of a call and of how often it came before."""

    def __init__(self, fault: Callable[[str, int], Fault | Body | None]) -> None:
        self.fault, self.seen, self.made = fault, Counter[str](), Counter[str]()

    def __call__(self, body: Body) -> str | Body | Fault:
        call = words(body)
        self.seen[call] += 1
        fault = self.fault(call, self.seen[call] - 1)
        if fault is None:
            return solving(body)
        self.made[fault.label if isinstance(fault, Fault) else "text"] += 1
        return fault


def figures(folder: Path) -> dict[str, Any]:
    """The summary's figures of the critic, once they are seen to add up with all the files."""
    waves = [row["critic"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "wave"]
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())["critic"]
    for row in (*waves, summary):
        outcomes = ("cached", "answered", "failed", "unknown")
        assert row["calls"] == sum(row[name] for name in outcomes)
        assert row["failed"] == sum(row["kinds"].values())
    episodes = list(read_rows(folder / "episodes.jsonl"))
    asked = [turn for e in episodes for turn in e["turns"] if turn["role"] in ASKED]
    assert summary["calls"] == sum(row["calls"] for row in waves) == len(asked)
    assert summary["failed"] == sum(turn["error"] is not None for turn in asked)
    requests, wire = list(read_rows(folder / "critic.jsonl")), summary["wire"]
    assert [row["n"] for row in requests] == list(dict.fromkeys(row["n"] for row in requests))
    assert wire["requests"] == len(requests)
    assert sum(wire["failed"].values()) == sum(row["kind"] != "ok" for row in requests)
    for name in ("tokens_in", "tokens_out"):
        assert wire[name] == sum(row[name] for row in requests)
        assert summary[name] <= wire[name]
    assert not (folder / "critic.open.json").exists()
    return summary


ASKED = ("critique", "rewrite")


def same(one: Path, other: Path) -> None:
    """Two runs ended with the same bytes."""
    first, second = contents(one), contents(other)
    assert not [name for name in first if first[name] != second[name]]


def written(folder: Path) -> bytes:
    """Everything under a folder."""
    found = b""
    for path in sorted(folder.rglob("*")):
        with suppress(IsADirectoryError):
            found += path.read_bytes()
    return found
