"""Does a real model get better? A small instruct model, methods and tasks beside each other.

usage: python tests/bench/real_model.py DIR --model FOLDER [--gsm8k FILE]
       [--only r3-arithmetic …] [--seeds 0 1 2] [--controls 0] [--part dev] [--json]

It was made for SmolLM2-135M-Instruct in 4 bits, which answers hardly a question of these tasks in
the form asked for. Every method learns every task with the exact solver as critic, over seeds, and
is judged on 300 held-out problems. What is in DIR already is resumed, or left as it is; the base is
asked once. Beside the runs stand:

- shots: the untrained model with four worked examples in its prompt, which shows it the form.
- SFT: the task's own worked solutions, new problems until the loss has seen as many tokens as in
  the run of the same seed (--controls: of which seeds).
- GSM8K (--gsm8k: its test.jsonl): 200 problems before and after, for what was forgotten.

Settings were chosen on other problems (`sweep.py DIR --model FOLDER`, or --part dev here).
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from methods import compared, right, run_all
from transformers import AutoTokenizer

from mlxreflect.config.schema import PromptConfig, TaskConfig
from mlxreflect.config.toml import dump_toml
from mlxreflect.core.journal import read_json
from mlxreflect.tasks import get_task
from mlxreflect.tasks.base import ask_in_chat, reply_of

Keys = dict[str, Any]
PROBLEMS = {"heldout": 300, "dev": 100}  # that the policy is judged on
SHOTS, GSM8K = 4, 200
MOST = 4000  # problems that a control may take
COLUMNS = ("case", "seeds", "base", "4 shots", "SFT", "trained", "difference (95 %)",
           "of the seeds", "largest p", "GSM8K", "critic calls", "policy tokens",
           "training tokens", "minutes")  # fmt: skip
# Fewer words than the bundled prompt: half of the time on a CPU goes into reading it.
PROMPT = (
    "{instruction}\nWrite {open}, then your steps, then {close}, then <answer>your answer</answer>."
)


@dataclass(frozen=True)
class Setting:
    """How a task is learned.

    problems: of a run; wave: taken and committed together. rate: of learning. epochs: passes over
    what a wave brought. limit: tokens of an attempt.
    """

    task: Keys
    problems: int
    wave: int
    rate: float
    epochs: int
    limit: int


TASKS: dict[str, Setting] = {
    "arithmetic": Setting({"name": "arithmetic", "operands": [2], "digits": [1, 2]},
                          192, 96, 5e-4, 1, 64),
    "last_letter": Setting({"name": "last_letter", "words": [2]}, 384, 128, 1e-3, 2, 48),
}  # fmt: skip
LORA: Keys = {"rank": 16, "scale": 2.0}
METHODS = ("r3", "rel")


def recipe_of(method: str, setting: Setting) -> Keys:
    train = {"batch": 4, "epochs": setting.epochs, "lora": LORA}
    own: dict[str, Keys] = {
        "r3": {
            "r3": {"wave": setting.wave, "rewrites": 1, "verifications": 0, "bucket_every": 0},
            "train": {"lr": setting.rate, "logps": "sum", "nll": 4.0, "cut": "keep", **train},
        },
        "rel": {
            "rel": {"wave": setting.wave, "rounds": 1, "review": True, "target": "tidied"},
            "train": {"sft": {"lr": setting.rate}, **train},
        },
    }
    return {
        "strategy": method,
        "policy": {"temperature": 0.7, "top_p": 1.0, "top_k": 40, "batch": 32,
                   "max_new_tokens": setting.limit},
        "prompt": {"templates": {"attempt_thinking": PROMPT, "attempt_explore": PROMPT}},
        "task": {**setting.task, "limit": setting.problems},
        "critic": {"provider": "solver"},
        **own[method],
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    method: str
    task: str
    folder: Path  # of all that is made
    setting: str = ""  # where more keys than the task's are set

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.method, self.task, self.setting.replace(" ", "_"))))

    def run(self, seed: int) -> Path:
        return self.folder / f"{self.name}-{seed}"


def mlxreflect(*words: str | Path) -> None:
    print("mlxreflect", *words, file=sys.stderr)
    call = [sys.executable, "-m", "mlxreflect", *map(str, words), "--json"]
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)


def write_toml(path: Path, tree: Keys) -> Path:
    path.write_text(dump_toml(tree))
    return path


def spec_of(task: str, given: argparse.Namespace) -> Path:
    """The evaluation of a task, written to DIR."""
    return write_toml(given.folder / f"{task}.toml", {
        "part": given.part, "limit": PROBLEMS[given.part], "max_new_tokens": 128,
        "task": TASKS[task].task,
        "prompt": {"templates": {"attempt_thinking": PROMPT}},
    })  # fmt: skip


def run(case: Case, seed: int, given: argparse.Namespace, **more: Any) -> Path:
    """Makes or resumes a run: it learns, and is judged on its task. more: keys of its recipe."""
    path = write_toml(given.folder / f"{case.name}.toml", recipe_of(case.method, TASKS[case.task]))
    keys = {"seed": seed, "policy.model": given.model, "eval.cache": given.folder / "cache",
            "eval.spec": spec_of(case.task, given), **more}  # fmt: skip
    [made] = run_all([(str(path), case.run(seed), keys)])
    return made


def evaluated(spec: str | Path, out: Path, *words: str | Path) -> Path:
    """The folder of an arm that was asked once."""
    if not (out / "results.json").exists():
        mlxreflect("eval", spec, "--out", out, *words)
    return out


def gsm8k(out: Path, given: argparse.Namespace, *words: str | Path) -> Path:
    keys = [f"--set=prompt.templates.attempt_thinking={json.dumps(PROMPT)}"]
    return evaluated("gsm8k", out, "--source", given.gsm8k, "--limit", str(GSM8K), *keys,
                     "--set=max_new_tokens=128", "--model", given.model, *words)  # fmt: skip


def imitated(case: Case, seed: int, given: argparse.Namespace) -> Path:
    """The control: SFT on the task's own worked solutions, as many tokens as the run had."""
    out = given.folder / f"sft-{case.name}-{seed}"
    rows_file = given.folder / f"{out.name}.jsonl"
    if not (out / "summary.json").exists():
        left = read_json(case.run(seed) / "summary.json")["tokens_trained"]
        tokenizer = AutoTokenizer.from_pretrained(given.model)
        task, asked = get_task(case.task), PromptConfig(templates={"attempt_thinking": PROMPT})
        problems = task.load(TaskConfig(**TASKS[case.task].task, limit=MOST), "train", seed)
        with rows_file.open("w") as rows:
            for problem in problems:
                prompt = ask_in_chat(task, problem, asked, "attempt_thinking", ())
                reply = reply_of(task, problem, "think", "thinking")
                said = [*prompt, {"role": "assistant", "content": reply}]
                rows.write(json.dumps({"messages": said}) + "\n")
                left -= len(tokenizer.encode(reply, add_special_tokens=False)) + 1
                if left <= 0:
                    break
            else:
                sys.exit(f"{case.name}: {MOST} problems do not have so many tokens")
        keys = {"train.lr": TASKS[case.task].rate, "train.batch": 4, "seed": seed,
                "train.lora.rank": LORA["rank"], "train.lora.scale": LORA["scale"]}  # fmt: skip
        mlxreflect("train", "sft", "--data", rows_file, "--out", out, "--model", given.model,
                   *(f"--set={key}={value}" for key, value in keys.items()))  # fmt: skip
    return evaluated(spec_of(case.task, given), given.folder / f"eval-{out.name}",
                     "--model", given.model, "--adapter", out)  # fmt: skip


def accuracy(arm: Path) -> float:
    return mean(right(arm).values())


def measured(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """Makes what is not there yet, and returns a row of the table."""
    runs = [run(case, seed, given) for seed in given.seeds]
    found = compared(case.name, runs)
    row = {key: found[key] for key in ("base", "trained", "difference", "ci_low", "ci_high",
                                       "seeds_low", "seeds_high", "critic_calls", "policy_tokens",
                                       "training_tokens")}  # fmt: skip
    row["p"] = [read_json(made / "comparison.json")["p_exact"] for made in runs]
    row["minutes"] = [read_json(made / "summary.json")["wall_seconds"] / 60 for made in runs]
    row["shots"] = accuracy(
        evaluated(spec_of(case.task, given), given.folder / f"eval-shots-{case.task}",
                  "--model", given.model, "--set", f"shots={SHOTS}")
    )  # fmt: skip
    controls = [accuracy(imitated(case, seed, given)) for seed in given.controls]
    row["sft"] = mean(controls) if controls else None
    if given.gsm8k:
        row["gsm8k_before"] = accuracy(gsm8k(given.folder / "gsm8k-base", given))
        row["gsm8k_after"] = [
            accuracy(gsm8k(given.folder / f"gsm8k-{made.name}", given, "--adapter", made))
            for made in runs
        ]
    return {"case": case.name, "seeds": len(runs), **row}


def line(row: dict[str, Any]) -> str:
    low, high, least, most = (
        f"{100 * row[key]:+.1f}" for key in ("ci_low", "ci_high", "seeds_low", "seeds_high")
    )
    before, after = row.get("gsm8k_before"), row.get("gsm8k_after", [])
    cells = [
        row["case"], str(row["seeds"]), f"{row['base']:.1%}", f"{row['shots']:.1%}",
        "–" if row["sft"] is None else f"{row['sft']:.1%}", f"{row['trained']:.1%}",
        f"{100 * row['difference']:+.1f} ({low} … {high})", f"{least} … {most}",
        f"{max(row['p']):.1g}",
        "–" if before is None else f"{before:.1%} → " + ", ".join(f"{a:.1%}" for a in after),
        f"{row['critic_calls']:,.0f}", f"{row['policy_tokens']:,.0f}",
        f"{row['training_tokens']:,.0f}", f"{max(row['minutes']):.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path)
    names = [f"{method}-{task}" for task in TASKS for method in METHODS]
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", type=int, nargs="*", default=[0])
    parser.add_argument("--part", default="heldout", choices=["heldout", "dev"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    rows = []
    for name in given.only:
        method, _, task = name.partition("-")
        rows.append(measured(Case(method, task, given.folder), given))
        print(line(rows[-1]), flush=True)
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    sys.exit(main())
