"""An evaluation against one `mlx_lm.generate` call after another: same prompts, greedy, same model.

usage: python tests/bench/evaluate.py --model FOLDER --data test.jsonl [--prompts 64] [--tokens 64]
       [--repeats 3] [--clock cpu] [--json]

one by one: mlx_lm.generate on the model as mlx-lm loads it, with its own end tokens, on every
PART-th of the prompts (it is slow, and as fast on a part). eval: mlxreflect's evaluation with the
policy as it is loaded by default, grading and writing included, no kept answers. A round runs both;
the ratio of their seconds a prompt is the median of the rounds'. --clock cpu counts this process's
CPU seconds, for a machine that others use too.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import mlx.core as mx
from mlx_lm import generate, load
from workload import CLOCKS

from mlxreflect.config.schema import EvalSpec, PolicyConfig
from mlxreflect.evaluation.evaluate import evaluate, problem_set
from mlxreflect.evaluation.generators import LocalGenerator, LocalModel
from mlxreflect.models.load import load_policy
from mlxreflect.models.policy import encode_chat
from mlxreflect.tasks import get_task

PART = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    clock: Callable[[], float] = CLOCKS[given.clock]
    task = get_task("gsm8k")
    spec = EvalSpec.model_validate({
        "task": {"name": "gsm8k", "source": given.data}, "part": "all", "limit": given.prompts,
        "max_new_tokens": given.tokens,
    })  # fmt: skip
    asked = problem_set(task, spec)

    model, tokenizer = load(given.model)
    policy = load_policy(PolicyConfig(model=given.model))
    prompts = [encode_chat(tokenizer, messages) for messages in asked.prompts]  # type: ignore[arg-type]
    generate(model, tokenizer, prompts[0], max_tokens=4)  # what is compiled once, is by now
    ratios, speeds = [], []
    for _ in range(given.repeats):
        started = clock()
        for prompt in prompts[::PART]:
            generate(model, tokenizer, prompt, max_tokens=given.tokens)
        alone = (clock() - started) / len(prompts[::PART])
        mx.clear_cache()
        with tempfile.TemporaryDirectory() as folder:
            started = clock()
            evaluate(LocalGenerator(LocalModel(policy), asked), Path(folder) / "out")
            ours = (clock() - started) / len(prompts)
        ratios.append(alone / ours)
        speeds.append((alone, ours))
        print(f"one by one {alone:.3f} s a prompt, eval {ours:.3f}: {ratios[-1]:.2f}×", flush=True)
    found = {"prompts": len(prompts), "tokens": given.tokens, "clock": given.clock,
             "ratio": median(ratios), "rounds": speeds}  # fmt: skip
    print(json.dumps(found) if given.json else f"{found['ratio']:.2f}× as fast")


if __name__ == "__main__":
    main()
