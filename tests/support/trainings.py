"""Data to train on, and `mlxreflect train` in the tests' own process."""

import json
from pathlib import Path
from typing import Any

from support.shell import Shell, sets

Data = list[dict[str, Any]]


def question(i: int) -> str:
    return f"What is {i} plus {i}?"


def good(i: int) -> str:
    return f"<think>\n{i} + {i} = {2 * i}\n</think>\n<answer> {2 * i} </answer>"


def poor(i: int) -> str:
    return f"<think>\nperhaps {i} - 1\n</think>\n<answer> {i - 1} </answer>"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


COUNT = range(3, 27)
PAIRS: Data = [{"prompt": question(i), "chosen": good(i), "rejected": poor(i)} for i in COUNT]
ANSWERS: Data = [{"prompt": question(i), "completion": good(i)} for i in COUNT]
GROUPS: Data = [
    {"prompt": question(i), "completions": [good(i), poor(i), "No."], "rewards": [1.0, 0.0, 0.5]}
    for i in COUNT
]
OF = {"sft": ANSWERS, "grpo": GROUPS}  # else PAIRS


def write(path: Path, data: Data) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(data).to_parquet(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(data))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return path


class Command(Shell):
    """The command line, with data to train on and what a training leaves."""

    def data(self, objective: str, name: str = "data.jsonl") -> Path:
        return write(self.folder / name, OF.get(objective, PAIRS))

    def arguments(
        self, objective: str, out: str, *settings: str, data: Any = None, model: Any = None
    ) -> list[str]:
        data = data or self.data(objective, f"{objective}.jsonl")
        model = model or self.model
        return ["train", objective, "--model", str(model), "--data", str(data), "--out", out,
                *sets(*settings)]  # fmt: skip

    def train(
        self, objective: str, out: str, *settings: str, data: Any = None, model: Any = None
    ) -> dict[str, Any]:
        """The summary of a training that succeeds: the one line on stdout."""
        arguments = self.arguments(objective, out, *settings, data=data, model=model)
        done = self.works(*arguments, "--json")
        assert done.out.count("\n") == 1
        summary: dict[str, Any] = json.loads(done.out)
        assert summary == json.loads((self.folder / out / "summary.json").read_text())
        return summary

    def weights(self, out: str, folder: str = "adapter") -> bytes:
        return (self.folder / out / folder / "adapters.safetensors").read_bytes()
