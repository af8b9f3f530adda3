"""The methods beside each other, from run directories: the table of the README.

usage: python tests/bench/methods.py RUN_DIR … [--json]
       python tests/bench/methods.py --make DIR [--seeds 0 1 2] [--json]

For each recipe its runs are taken together, one a seed. All runs must have been evaluated on the
same held-out problems. A problem counts once: its difference is the mean over the seeds, trained
minus base, and the interval (95 %) is that of `stats.clustered` over the problems; the range beside
it is that of the seeds. Then each method's trained answers against each other's, with Holm's
adjustment. Tokens and calls are what learning took, without the evaluation, the mean of a run; the
last columns are points for 1,000 calls of the critic and for 100,000 tokens of the policy.

--make first makes the runs, each recipe's quick profile at an equal budget (LIMITS): the same
settings, but that learning goes on until a limit is reached, in waves small enough to stop near it
(LENGTHS). What is in DIR already is resumed, or left as it is.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from mlxreflect.core.journal import read_json, read_rows
from mlxreflect.stats import clustered, holm

Right = dict[str, float]  # problem → share of its samples that are right
COLUMNS = ("recipe", "seeds", "base", "trained", "difference (95 %)", "of the seeds", "p",
           "policy tokens", "critic calls", "training tokens", "for 1,000 calls",
           "for 100,000 tokens")  # fmt: skip


LIMITS = {
    "limits.policy_tokens": 90_000, "limits.critic_calls": 3000, "limits.training_tokens": 75_000,
}  # fmt: skip
LENGTHS: dict[str, dict[str, int | float | str]] = {
    "r3": {"r3.wave": 200, "r3.epochs": 20},
    "rel": {"rel.wave": 200},  # its two rounds take the calls
    "preflexor": {
        "preflexor.rounds": 5,
        "preflexor.two.rounds": 1,
        "preflexor.two.lr": 2e-5,
        "preflexor.two.answer_only": "true",
    },
    "reflectevo": {"reflectevo.wave": 200, "task.limit": 2000, "reflectevo.retries": "false"},
    "traces": {"traces.rounds": 5},
}


def make(folder: Path, seeds: Sequence[int]) -> list[Path]:
    """The runs of the table; returns their directories."""
    always = {"profile": "quick", "eval.limit": 1000, **LIMITS}
    return run_all(
        [(name, folder / f"{name}-{seed}", {**always, "seed": seed, **LENGTHS[name]})
         for seed in seeds for name in LENGTHS]
    )  # fmt: skip


def run_all(runs: Sequence[tuple[str, Path, dict[str, Any]]]) -> list[Path]:
    """Makes or resumes runs, (recipe, directory, keys) each, one after the other."""
    for recipe, folder, keys in runs:
        flags = [f"--set={key}={value}" for key, value in keys.items()]
        begin = ["run", recipe, "--run-dir", str(folder), *flags]
        call = ["resume", str(folder)] if folder.exists() else begin
        print(folder, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "mlxreflect", *call, "--json"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    return [folder for _, folder, _ in runs]


def right(arm: Path) -> Right:
    samples: dict[str, list[bool]] = defaultdict(list)
    for row in read_rows(arm / "samples.jsonl"):
        samples[row["problem_id"]].append(row["correct"])
    return {problem: mean(found) for problem, found in samples.items()}


def over_seeds(arms: Sequence[Right], problems: Sequence[str]) -> list[float]:
    return [mean(arm[problem] for arm in arms) for problem in problems]


def compared(name: str, runs: Sequence[Path], over: str = "base") -> dict[str, Any]:
    """One row of the table: a recipe's runs, one a seed. over: the arm that trained is held to.

    for_1000_calls is None where no critic was asked.
    """
    base = [right(run / "eval" / over) for run in runs]
    trained = [right(run / "eval" / "trained") for run in runs]
    problems = sorted(base[0])
    if any(sorted(arm) != problems for arm in (*base, *trained)):
        sys.exit(f"{name}: its runs were not evaluated on the same problems")
    found, p = clustered(over_seeds(base, problems), over_seeds(trained, problems))
    each = [mean(t.values()) - mean(b.values()) for b, t in zip(base, trained, strict=True)]
    summaries = [read_json(run / "summary.json") for run in runs]
    calls = mean(s["critic"].get("calls", 0) for s in summaries)
    tokens = mean(s["tokens_generated"] for s in summaries)
    points = 100 * found.difference
    return {
        "recipe": name,
        "seeds": len(runs),
        "problems": problems,
        "answers": over_seeds(trained, problems),
        "base": found.accuracy_a,
        "trained": found.accuracy_b,
        "difference": found.difference,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "seeds_low": min(each),
        "seeds_high": max(each),
        "p": p,
        "policy_tokens": tokens,
        "critic_calls": calls,
        "training_tokens": mean(s["tokens_trained"] for s in summaries),
        "for_1000_calls": 1000 * points / calls if calls else None,
        "for_100000_tokens": 1e5 * points / tokens,
    }


def for_calls(row: dict[str, Any]) -> str:
    return "none asked" if row["for_1000_calls"] is None else f"{row['for_1000_calls']:+.1f}"


def line(row: dict[str, Any]) -> str:
    shown = ("difference", "ci_low", "ci_high", "seeds_low", "seeds_high")
    points = {name: f"{100 * row[name]:+.1f}" for name in shown}
    cells = [
        row["recipe"], str(row["seeds"]), f"{row['base']:.1%}", f"{row['trained']:.1%}",
        "{difference} ({ci_low} … {ci_high})".format(**points),
        "{seeds_low} … {seeds_high}".format(**points),
        f"{row['p']:.2g}", f"{row['policy_tokens']:,.0f}", f"{row['critic_calls']:,.0f}",
        f"{row['training_tokens']:,.0f}", for_calls(row), f"{row['for_100000_tokens']:+.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def between(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each two recipes: the trained answers of one minus the other's."""
    pairs = list(combinations(sorted(rows, key=lambda row: -row["trained"]), 2))
    found = [clustered(other["answers"], one["answers"]) for one, other in pairs]
    adjusted = holm([p for _, p in found])
    for (one, other), (c, _), p in zip(pairs, found, adjusted, strict=True):
        points = f"{100 * c.difference:+.1f} ({100 * c.ci_low:+.1f} … {100 * c.ci_high:+.1f})"
        yield f"{one['recipe']} against {other['recipe']}: {points}, p = {p:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--make", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    runs = make(given.make, given.seeds) if given.make else given.runs
    groups: dict[str, list[Path]] = defaultdict(list)
    for run in runs:
        groups[read_json(run / "summary.json")["recipe"]].append(run)
    rows = [compared(name, runs) for name, runs in groups.items()]
    if any(row["problems"] != rows[0]["problems"] for row in rows):
        sys.exit("the recipes were not evaluated on the same problems")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    print("\n".join(line(row) for row in rows))
    print("\n".join(["", *between(rows)]))
    if given.json:
        told = [{k: row[k] for k in row if k not in ("problems", "answers")} for row in rows]
        print(json.dumps(told))


if __name__ == "__main__":
    main()
