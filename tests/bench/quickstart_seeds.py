"""Does the quickstart's gain hold over seeds, and what does DPO add to the NLL term?

usage: python tests/bench/quickstart_seeds.py [--seeds 0 1 2] [--set KEY=VALUE]… [--out DIR]

For each seed: the recipe as the README runs it, then a control that trains on the very same pairs,
wave by wave, from the same LoRA weights in the same order, with the NLL term alone (train.dpo = 0).
Prints one line a seed and arm; each control is also compared with its recipe, problem by problem.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

from mlxreflect.config.recipe import eval_spec, load_recipe
from mlxreflect.config.schema import Recipe
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Example, flat_from_row
from mlxreflect.evaluation.compare import compare
from mlxreflect.evaluation.evaluate import evaluate, problem_set
from mlxreflect.evaluation.generators import LocalGenerator, LocalModel
from mlxreflect.methods.learning import Learning
from mlxreflect.models.load import load_policy
from mlxreflect.tasks import TASKS
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.trainer import Trainer


def run_recipe(recipe: str, flags: list[str], folder: Path) -> float:
    """The command of the README in a process of its own; returns its seconds."""
    call = [sys.executable, "-m", "mlxreflect", "run", recipe, "--run-dir", str(folder), "--json"]
    started = time.monotonic()
    subprocess.run([*call, *(f"--set={flag}" for flag in flags)], check=True, capture_output=True)
    return time.monotonic() - started


def replay(recipe: Recipe, run_dir: Path, out: Path) -> None:
    """Train on a run's pairs under another recipe's [train], then evaluate."""
    policy = load_policy(recipe.policy)
    attach_lora(policy.model, recipe.train.lora, recipe.seed)
    learning = Learning(recipe, policy, Trainer(policy.model))
    rows = [row for row in read_rows(run_dir / "examples.jsonl") if row["kind"] == "preference"]
    waves = groupby(rows, key=lambda row: (row["source"]["epoch"], row["source"]["wave"]))
    for (epoch, wave), members in waves:
        learning.begin_wave()
        learning.begin_stage()
        examples = [flat_from_row(Example, row) for row in members]
        learning.prefer(examples, (recipe.seed, epoch, wave, "dpo", 0))
    spec = eval_spec(recipe)
    task = TASKS[spec.task.name]
    evaluate(LocalGenerator(LocalModel(policy, "control"), problem_set(task, spec)), out)


def line(name: str, result: dict, seconds: float | None = None) -> str:
    spent = f"  {seconds:5.1f} s" if seconds else ""
    return (
        f"{name:28} {result['accuracy_a']:6.1%} → {result['accuracy_b']:6.1%}  "
        f"{100 * result['difference']:+5.1f} points [{100 * result['ci_low']:+.1f}, "
        f"{100 * result['ci_high']:+.1f}]  exact McNemar p = {result['p_exact']:.2g}{spent}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="seeds-"))
    arms: dict[str, list[float]] = {"dpo + nll": [], "nll alone": [], "dpo + nll over nll": []}
    for seed in given.seeds:
        flags = [*given.set, f"seed={seed}"]
        run_dir, control = out / f"seed-{seed}", out / f"control-{seed}"
        seconds = run_recipe(given.recipe, flags, run_dir)
        replay(load_recipe(given.recipe, [*flags, "train.dpo=0"]), run_dir, control)
        base, trained = run_dir / "eval" / "base", run_dir / "eval" / "trained"
        results = [compare(base, trained), compare(base, control), compare(control, trained)]
        for name, result in zip(arms, results, strict=True):
            arms[name].append(result["difference"])
            print(line(f"seed {seed}  {name}", result, seconds), flush=True)
            seconds = None
    means = {name: sum(found) / len(found) for name, found in arms.items()}
    for name, mean in means.items():
        print(f"mean    {name:20} {100 * mean:+5.1f} points")
    print(json.dumps({"mean": means, "seeds": given.seeds, "out": str(out)}))


if __name__ == "__main__":
    main()
