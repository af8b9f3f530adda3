"""Which settings of a recipe are worth their calls? Chosen on dev problems, never on held-out ones.

usage: python tests/bench/sweep.py DIR [--only r3 …] [--seeds 0 1 2] [--over ARM] [--json]
       python tests/bench/sweep.py DIR --model FOLDER [--only r3-arithmetic …] [--seeds 0 1 2]

Each recipe's quick profile is run with each of its SETTINGS, over seeds, and evaluated on the dev
part of its evaluation. What is in DIR already is resumed, or left as it is. Printed for each
setting: points gained (trained minus base, a problem's mean over the seeds, with the 95 % interval
over the problems), points for 1,000 critic calls and for 100,000 tokens of the policy, and minutes.
--model: a folder with SmolLM2-135M-Instruct learns as in `real_model.py`, with each of REAL.
--over: points over another arm than base, such as phase-1 of preflexor.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from methods import compared, for_calls, run_all
from real_model import Case, run

from mlxreflect.config.toml import bundled, dump_toml, read_toml
from mlxreflect.core.journal import read_json

Keys = dict[str, Any]
# R³'s kinds of pairs at one budget.
BUDGET: Keys = {"r3.wave": 100, "r3.epochs": 20, "r3.verifications": 0,
                "limits.policy_tokens": 50_000}  # fmt: skip
# The recipe's own settings, but for the model, its problems and the critic.
EMBEDDED: Keys = {"profile": None, "policy.max_new_tokens": 40, "policy.batch": 200,
                  "prompt.tags": "think", "task.name": "countdown", "task.numbers": [3],
                  "critic.provider": "solver", "critic.model": "",
                  "eval.max_new_tokens": 40}  # fmt: skip
# recipe → setting → its keys over the quick profile (None: not set).
SETTINGS: dict[str, dict[str, Keys]] = {
    "r3": {
        "profile": {},
        "r3.toml": EMBEDDED,
        "imitation": {**BUDGET, "train.dpo": 0},
        "rewrite": BUDGET,
        "own": {**BUDGET, "r3.pairs": "own", "r3.attempts": 4},
        "both": {**BUDGET, "r3.pairs": "both", "r3.attempts": 4},
    },
    "rel": {"profile": {}, "1 round": {"rel.rounds": 1}, "lr x 2": {"train.sft.lr": 1e-3}},
    "preflexor": {
        "profile": {},
        **{f"II at {lr}": {"preflexor.two.lr": lr} for lr in (5e-5, 2e-4)},
        **{f"II at {lr}, 1 round": {"preflexor.two.lr": lr, "preflexor.two.rounds": 1}
           for lr in (2e-5, 1e-4, 5e-4)},
        "II answers alone": {"preflexor.two.answer_only": "true"},
        **{f"II at {lr}, 1 round, answers alone": {
            "preflexor.two.lr": lr, "preflexor.two.rounds": 1, "preflexor.two.answer_only": "true"}
           for lr in (2e-5, 1e-4, 5e-4, 2e-3)},
    },
    "reflectevo": {
        "profile": {},
        **{f"III at {lr}": {"reflectevo.training": "III", "train.lr": lr, "train.epochs": 1}
           for lr in (1e-5, 1e-4, 5e-4, 2e-3)},
        **{f"{kind} at {lr}": {"reflectevo.training": kind, "train.sft.lr": lr}
           for kind, lr in (("II", 3e-4), ("II", 2e-3), ("I", 1e-4), ("I", 3e-4), ("I", 1e-3),
                            ("I", 2e-3))},
    },
    "traces": {"profile": {}, "online DPO": {"traces.objective": "dpo", "traces.grpo.kl": 0.0}},
}  # fmt: skip
# The same for the cases of real_model.py, over its own settings.
REAL: dict[str, dict[str, Keys]] = {
    "r3-arithmetic": {
        "lr 5e-4": {},
        **{f"lr {lr}": {"train.lr": lr} for lr in (1e-4, 1e-3)},
        "imitation": {"train.dpo": 0},
        "both": {"r3.pairs": "both", "r3.attempts": 4},
    },
    "rel-arithmetic": {"lr 5e-4": {},
                       **{f"lr {lr}": {"train.sft.lr": lr} for lr in (1e-4, 1e-3)}},
}  # fmt: skip


def dev_spec(name: str, folder: Path) -> Path:
    """Writes a bundled evaluation's dev part as a spec of its own."""
    path = folder / f"{name}_dev.toml"
    path.write_text(dump_toml(read_toml(bundled("evals")[name]) | {"part": "dev"}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=[*SETTINGS, *REAL])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--over", default="base", metavar="ARM")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(namespace=argparse.Namespace(part="dev"))
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    table = REAL if given.model else SETTINGS
    rows = []
    print("| recipe | setting | difference (95 %) | of the seeds | for 1,000 calls | for 100,000 "
          "tokens | calls | tokens | minutes |\n|" + "---|" * 9)  # fmt: skip
    for recipe in given.only or table:
        for name, keys in table[recipe].items():
            runs = [made(recipe, name, keys, seed, given) for seed in given.seeds]
            rows.append(measured(recipe, name, runs, given.over))
            print(line(rows[-1]), flush=True)
    if given.json:
        print(json.dumps(rows))


def made(recipe: str, name: str, keys: Keys, seed: int, given: argparse.Namespace) -> Path:
    """The run of a setting, which is made or resumed."""
    if given.model:
        return run(Case(*recipe.split("-"), given.folder, name), seed, given, **keys)
    always = {"profile": "quick", "policy.model": "tiny", "eval.limit": 1000, "eval.seed": 7,
              "eval.spec": dev_spec("countdown", given.folder)}  # fmt: skip
    told = {key: value for key, value in {**always, **keys}.items() if value is not None}
    folder = given.folder / f"{recipe}-{name.replace(' ', '_')}-{seed}"
    [done] = run_all([(recipe, folder, {**told, "seed": seed})])
    return done


def measured(recipe: str, name: str, runs: list[Path], over: str) -> dict[str, Any]:
    """Returns a row of the table."""
    found = compared(recipe, runs, over)
    seconds = [read_json(run / "summary.json")["wall_seconds"] for run in runs]
    told = {key: found[key] for key in found if key not in ("problems", "answers")}
    return {"setting": name, **told, "minutes": mean(seconds) / 60}


def line(row: dict[str, Any]) -> str:
    shown = ("difference", "ci_low", "ci_high", "seeds_low", "seeds_high")
    points, low, high, least, most = (f"{100 * row[key]:+.1f}" for key in shown)
    cells = [
        row["recipe"], row["setting"], f"{points} ({low} … {high})",
        f"{least} … {most}", for_calls(row), f"{row['for_100000_tokens']:+.1f}",
        f"{row['critic_calls']:,.0f}", f"{row['policy_tokens']:,.0f}", f"{row['minutes']:.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
