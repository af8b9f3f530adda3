"""REL at its Mac settings, smallest sizes: a real 4-bit model, GSM8K's rows, a loopback critic."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from support.fake_ollama import FakeOllama
from test_real_model import SHARED, pytestmark, rows

__all__ = ["pytestmark"]


def critic(body: dict[str, Any]) -> str:
    """Marks all as wrong, continues to a wrong answer, and rewrites to the one it is shown."""
    asked = body["messages"][-1]["content"]
    if asked.endswith("Verdict:"):
        return json.dumps({"step": "step 2", "why": "it multiplies", "verdict": "wrong"})
    if asked.endswith("Continue:"):
        return "Wait, that multiplies.\n</think>\n<answer>-1</answer>"
    assert asked.endswith("Retry:")
    solution = asked.split("<expected>\n")[1].split("\n</expected>")[0]
    answer = solution.rpartition("#### ")[2]
    return f"<think>\nThe parts add up to {answer}.\n</think>\n<answer>{answer}</answer>"


def test_two_waves_of_each_round(smollm2: Any, tmp_path: Any) -> None:
    run_dir = tmp_path / "run"
    human = tmp_path / "worked.md"
    human.write_text("### Question\nAnn has 2 pens, Bob 3. How many?\n### Answer\n"
                     "2 * 3? No, together: 2 + 3 = 5.\n<answer>5</answer>\n")  # fmt: skip
    with FakeOllama(reply=critic, models=["critic"]) as server:
        settings = {
            "policy.model": smollm2, "policy.max_new_tokens": 24, "policy.batch": 4,
            "task.source": SHARED / "data" / "gsm8k" / "train.jsonl", "task.limit": 3,
            "eval.source": SHARED / "data" / "gsm8k" / "test.jsonl", "eval.limit": 2,
            "eval.max_new_tokens": 24, "critic.model": "critic", "critic.base_url": server.url,
            "critic.cache": "off", "rel.wave": 2, "rel.human": human, "train.epochs": 1,
            "train.accumulate": 1,
        }  # fmt: skip
        flags = [f"--set={key}={value}" for key, value in settings.items()]
        call = [sys.executable, "-m", "mlxreflect", "run", "rel", "--run-dir", str(run_dir)]
        done = subprocess.run([*call, "--json", *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asked = Counter(chat["messages"][-1]["content"].split()[-1] for chat in server.chats)
        heats = {chat["messages"][-1]["content"].split()[-1]: chat["options"]["temperature"]
                 for chat in server.chats}  # fmt: skip
    assert asked == {"Verdict:": 12, "Continue:": 6, "Retry:": 6}
    assert heats == {
        "Verdict:": 0.0,
        "Continue:": pytest.approx(0.9),
        "Retry:": pytest.approx(0.81),
    }
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["problems"]) == ("finished", 3)
    for episode in rows(run_dir / "episodes.jsonl"):
        seen = {turn["role"]: turn["visibility"] for turn in episode["turns"]}
        assert seen == {"attempt": "none", "judge": "gold_answer", "continue": "verdict",
                        "rewrite": "gold_solution"}  # fmt: skip
        assert episode["outcome"]["status"] == "solved"
    waves = [row for row in rows(run_dir / "metrics.jsonl") if row["kind"] == "wave"]
    assert [row["problems"] for row in waves] == [2, 1, 0] * 2
    examples = rows(run_dir / "examples.jsonl")
    assert len(examples) == 4  # of two rounds that say the same, each once; and a person's
    assert [e["weight"] for e in examples] == [2.0, 1.0, 1.0, 1.0]
    for row in examples:
        assert "scratch paper" not in json.dumps(row["prompt"])  # as an evaluation asks
        assert "<expected>" not in json.dumps(row["prompt"])
