"""Evaluation: a spec × a model → samples.jsonl and results.json.

Problems are answered in fixed chunks, each appended whole. Because a chunk is always generated
together, an evaluation that was killed and continued gives the same bytes as one that was not.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxreflect import prompts
from mlxreflect.errors import UserError
from mlxreflect.policy import Completion, Policy, load_policy
from mlxreflect.records import (
    Problem,
    Sample,
    append_rows,
    flat_from_row,
    read_json,
    read_rows,
    to_row,
    write_atomic,
)
from mlxreflect.seeds import rng_for
from mlxreflect.settings import apply_settings, bundled, find_toml, flatten, read_toml, validate
from mlxreflect.stats import wilson
from mlxreflect.tables import EvalSpec, PolicyConfig
from mlxreflect.tasks import TASKS, get_task
from mlxreflect.tasks.base import Task
from mlxreflect.ui import Ui
from mlxreflect.wording import fetch_templates

CHUNK = 8  # times the batch: few stragglers, and little lost when killed


def eval_problems(task: Task, spec: EvalSpec) -> list[Problem]:
    """The spec's problems: its part of the task, in an order its seed shuffles, cut to limit.

    The held-out problems of a generated task are the same for every seed, in another order.
    """
    config = spec.task
    if task.generated and not config.limit and spec.limit:
        config = config.model_copy(update={"limit": spec.limit})
    problems = task.load(config, spec.part, spec.seed)
    rng_for("eval", spec.seed).shuffle(problems)
    return problems[: spec.limit] if spec.limit else problems


def evaluate(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    spec: EvalSpec,
    out: Path,
    *,
    adapter: str = "",
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Answer and grade what is not yet in `out`; returns (and writes) the results.

    Raises UserError where `out` holds samples of another evaluation, naming the changed key.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}", "give another --out") from None
    tags, style = spec.prompt.tags, spec.prompt.style
    wording = prompts.BUNDLED.replaced(spec.prompt.templates)
    asked = [
        policy.encode(
            prompts.attempt_messages(task.instruction(p), task.show(p), tags, style, wording)
        )
        for p in problems
    ]
    setup = describe_setup(policy, spec, problems, asked, adapter)
    continue_only(out, setup)
    path = out / "samples.jsonl"
    size = max(1, spec.batch * CHUNK // spec.samples)
    done = whole_chunks(path, size * spec.samples, len(problems) * spec.samples)
    if advance:
        advance(done)
    for start in range(done // spec.samples, len(problems), size):
        chunk = range(start, min(start + size, len(problems)))
        completions = policy.generate(
            [asked[i] for i in chunk for _ in range(spec.samples)],
            temperature=spec.temperature,
            top_p=spec.top_p,
            max_new_tokens=spec.max_new_tokens,
            batch=spec.batch,
            seed=("eval", spec.seed, start),
            advance=advance,
        )
        rows = [
            to_row(grade_sample(task, problems[i], j, completions[(i - start) * spec.samples + j],
                                tags, style))
            for i in chunk for j in range(spec.samples)
        ]  # fmt: skip
        append_rows(path, rows)
    results = {**summarise(path), **setup}
    write_atomic(out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def grade_sample(
    task: Task, problem: Problem, index: int, completion: Completion, tags: str, style: str
) -> Sample:
    grade = task.grade(problem, completion.text, tags, style)
    return Sample(
        task=task.name,
        problem_id=problem.id,
        sample=index,
        text=completion.text,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        parsed=grade.parsed,
        correct=grade.verdict.correct,
        format_ok=grade.verdict.format_ok,
    )


def describe_setup(
    policy: Policy,
    spec: EvalSpec,
    problems: Sequence[Problem],
    asked: Sequence[list[int]],
    adapter: str,
) -> dict[str, Any]:
    """What must be the same for two evaluations to be compared, and what was evaluated."""
    ids = json.dumps([[p.id for p in problems], asked])
    told = spec.model_dump(exclude={"task": {"source"}, "prompt": {"file"}, "quick": True})
    if not spec.prompt.templates:
        del told["prompt"]["templates"]
    return {
        "prompt_hash": hashlib.sha256(ids.encode()).hexdigest()[:16],
        "decoding": {
            "temperature": spec.temperature, "top_p": spec.top_p,
            "max_new_tokens": spec.max_new_tokens, "seed": spec.seed, "batch": spec.batch,
            "samples": spec.samples,
        },
        "spec": told,
        "model": policy.name,
        "adapter": adapter,
    }  # fmt: skip


def continue_only(out: Path, setup: dict[str, Any]) -> None:
    """Refuse to mix two evaluations in one folder."""
    path = out / "setup.json"
    if not path.is_file():
        write_atomic(path, json.dumps(setup, indent=2) + "\n")
        return
    before, now = flatten(read_json(path)), flatten(setup)
    for key in sorted({**before, **now}, key="prompt_hash".__eq__):  # what it follows from first
        if before.get(key) != now.get(key):
            raise UserError(
                f"{out} holds another evaluation: its {key} is {before.get(key)!r}, "
                f"not {now.get(key)!r}",
                "give another --out, or delete that folder",
            )


def whole_chunks(path: Path, size: int, total: int) -> int:
    """Keep the whole chunks of a samples file; returns how many rows they hold."""
    if not path.is_file():
        return 0
    with path.open("rb+") as samples:
        lengths = [0]
        for line in samples:
            if line.endswith(b"\n"):
                lengths.append(lengths[-1] + len(line))
        rows = len(lengths) - 1
        kept = rows if rows >= total else rows // size * size
        samples.truncate(lengths[kept])
        os.fsync(samples.fileno())
    return kept


def summarise(path: Path) -> dict[str, Any]:
    """Figures of a samples file. What could not be parsed is wrong and stays in the denominator."""
    samples: list[Sample] = [flat_from_row(Sample, row) for row in read_rows(path)]
    n = len(samples)
    correct = sum(s.correct for s in samples)
    low, high = wilson(correct, n)
    return {
        "schema": "results/1",
        "task": samples[0].task,
        "n": n,
        "samples": 1 + max(s.sample for s in samples),
        "accuracy": correct / n,
        "ci_low": low,
        "ci_high": high,
        "strict_accuracy": sum(s.correct and s.format_ok for s in samples) / n,
        "format_rate": sum(s.format_ok for s in samples) / n,
        "parse_failures": sum(s.parsed is None for s in samples),
        "truncated": sum(s.finish_reason == "length" for s in samples),
        "tokens_mean": sum(len(s.token_ids) for s in samples) / n,
    }


def evaluate_model(
    name: str,
    model: str,
    adapter: str,
    limit: int,
    source: str,
    out: Path | None,
    settings: Sequence[str],
    ui: Ui,
) -> dict[str, Any]:
    """`mlxreflect eval`: load a model and answer a spec with it. name: a spec's or a task's."""
    spec = find_spec(name, limit, source, settings)
    task = get_task(spec.task.name)
    problems = eval_problems(task, spec)
    policy = load_policy(PolicyConfig(model=model, adapter=adapter))
    folder = out or default_folder(spec, model, adapter)
    weights = fingerprint(Path(adapter)) if adapter else ""
    ui.header({"evaluating": name, "model": model, "adapter": adapter or "none",
               "problems": len(problems), "out": str(folder)})  # fmt: skip
    with ui.progress("evaluating", len(problems) * spec.samples) as bar:
        return evaluate(policy, task, problems, spec, folder, adapter=weights, advance=bar.advance)


def fingerprint(adapter: Path) -> str:
    """Path and content of an adapter: another training run into the same folder is another one."""
    content = (adapter / "adapters.safetensors").read_bytes()
    return f"{adapter} ({hashlib.sha256(content).hexdigest()[:8]})"


def default_folder(spec: EvalSpec, model: str, adapter: str) -> Path:
    """One folder for each evaluation, so that the same command again goes on with it."""
    what = json.dumps([spec.model_dump(exclude={"quick"}), model, adapter], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    return Path("runs") / "eval" / f"{spec.task.name}--{Path(model).name}--{digest}"


def find_spec(name: str, limit: int, source: str, settings: Sequence[str]) -> EvalSpec:
    """A bundled spec, a file, or a bare task; with the command line's settings on top."""
    tree: dict[str, Any]
    if name in TASKS and name not in bundled("evals"):
        path, tree = Path(name), {"task": {"name": name}}
    else:
        path = find_toml(name, "evals")
        tree = read_toml(path)
    if source and isinstance(asked := tree.get("task"), dict):  # else `validate` says so
        asked["source"], tree["part"] = source, "all"
    if limit:
        tree["limit"] = limit
    fetch_templates(apply_settings(tree, settings), path)
    return validate(EvalSpec, tree, path, settings)
