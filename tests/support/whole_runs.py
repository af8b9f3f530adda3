"""Runs as processes of their own, and what they leave that interruptions must not change."""

import json
import subprocess
import sys

MEASUREMENTS = ("wall_seconds", "peak_memory_bytes")


def arguments(run_dir, settings):
    flags = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return ["run", "quickstart", "--run-dir", str(run_dir), "--json", *flags]


def command(*args):
    return [sys.executable, "-m", "mlxreflect", *map(str, args)]


def finish(run_dir):
    done = subprocess.run(command("resume", run_dir, "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def contents(run_dir):
    """Every file that must not depend on interruptions; times and memory are left out."""
    exact = ["episodes.jsonl", "examples.jsonl", "preference.jsonl", "sft.jsonl",
             "graph.jsonl", "probes.jsonl",
             "adapter/adapters.safetensors", "adapter/adapter_config.json",
             "eval/base/samples.jsonl", "eval/trained/samples.jsonl",
             "eval/base/results.json", "eval/trained/results.json", "comparison.json"]  # fmt: skip
    found = {name: (run_dir / name).read_bytes() for name in exact
             if (run_dir / name).is_file()}  # fmt: skip
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [without_times(row, ("seconds",)) for row in rows]
    summary = json.loads((run_dir / "summary.json").read_text())
    found["summary"] = without_times(summary, MEASUREMENTS)
    return found


def without_times(row, measured):
    """A row without what depends on times and on retries."""
    kept = {k: v for k, v in row.items() if k not in measured}
    if "critic" in kept:
        kept["critic"] = {k: v for k, v in kept["critic"].items() if k != "wire"}
    return kept


def assert_same(run_dir, expected):
    found = contents(run_dir)
    different = [name for name in expected if found[name] != expected[name]]
    assert not different
