"""Evaluation folders without a model: texts of the test's own, graded as an evaluation does."""

import json
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import EvalSpec
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Problem, Sample, make_problem, to_row
from mlxreflect.tasks import TASKS

RIGHT = "<think>\nstep 1\n</think>\n<answer>{}</answer>"
BEGAN, ENDED = 1_790_000_000.25, 1_790_000_061.5


def gsm8k(count: int) -> list[Problem]:
    """Question i asks for i + 1, in 1 + i % 4 steps."""
    return [
        make_problem(
            "gsm8k",
            {"question": f"What is {i} and one more?{' Think.' * (i % 5)}"},
            str(i + 1),
            {"solution": "A step <<1+1=2>>2.\n" * (1 + i % 4) + f"#### {i + 1}"},
        )
        for i in range(count)
    ]


def write_arm(
    folder: Path,
    problems: Sequence[Problem],
    texts: Sequence[Sequence[str]],
    *,
    model: str = "tiny",
    adapter: str = "",
    keep_problems: bool = True,
    **spec: Any,
) -> Path:
    """texts: each question's samples, in the order of the problems."""
    task = TASKS[problems[0].task]
    folder.mkdir(parents=True)
    samples = [
        sample_of(problem, i, text)
        for problem, mine in zip(problems, texts, strict=True)
        for i, text in enumerate(mine)
    ]
    asks = EvalSpec.model_validate({"task": {"name": task.name}, "samples": len(texts[0]), **spec})
    keys = ("temperature", "top_p", "max_new_tokens", "seed", "batch", "samples")
    setup = {
        "prompt_hash": "0123456789abcdef",
        "decoding": {key: getattr(asks, key) for key in keys},
        "spec": asks.model_dump(exclude={"task": {"source"}, "prompt": {"file"}}),
        "model": model,
        "adapter": adapter,
    }
    (folder / "setup.json").write_text(json.dumps(setup))
    if keep_problems:
        append_rows(folder / "problems.jsonl", map(to_row, problems))
    append_rows(folder / "samples.jsonl", map(to_row, samples))
    (folder / "results.json").write_text(json.dumps(figures(samples, task.name) | setup))
    os.utime(folder / "setup.json", (BEGAN, BEGAN))
    os.utime(folder / "samples.jsonl", (ENDED, ENDED))
    return folder


def sample_of(problem: Problem, index: int, text: str) -> Sample:
    grade = TASKS[problem.task].grade(problem, text, "think", "thinking")
    right, kept = grade.verdict.correct, grade.verdict.format_ok
    ids, ending = list(range(len(text) % 50)), "length" if text.endswith("cut") else "stop"
    return Sample(problem.task, problem.id, index, text, ids, ending, grade.parsed, right, kept)


def figures(samples: Sequence[Sample], task: str) -> dict[str, Any]:
    questions = {sample.problem_id for sample in samples}
    each = len(samples) // len(questions)
    share = float(Fraction(sum(s.correct for s in samples), len(samples)))
    strict = float(Fraction(sum(s.correct and s.format_ok for s in samples), len(samples)))
    more = {"pass_at": {"1": share, str(each): 0.75}, "maj_at": {str(each): 0.5}}
    return {
        "schema": "results/1", "task": task, "n": len(questions), "samples": each,
        "accuracy": share, "strict_accuracy": strict,
        "format_rate": 1.0, "parse_failures": sum(s.parsed is None for s in samples),
        "truncated": 0, "tokens_mean": 3.0, **(more if each > 1 else {}),
    }  # fmt: skip
