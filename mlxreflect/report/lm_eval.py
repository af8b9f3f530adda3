"""lm-eval's files: `results_<time>.json` and `samples_<task>_<time>.jsonl`.

Keys, nesting, hashes and file names are those of lm_eval 0.4.13 (loggers/evaluation_tracker.py,
evaluator.py, result_schema.py). A text counts under two filters: `flexible-extract`, right by the
rules of the evaluation, and `strict-match`, right and in the format asked for.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

from mlxreflect.core.journal import dump_line, write_atomic
from mlxreflect.core.records import Messages, Sample
from mlxreflect.evaluation.export_arms import Arm, Question, asked, expected, mean_error

LAYOUT = "0.4.13"  # of lm_eval
FILTERS = ("strict-match", "flexible-extract")
INVALID = "[invalid]"  # what lm-eval's filters say where they find no answer


def write_lm_eval(arm: Arm, folder: Path) -> list[Path]:
    """Write both files into the folder, in place of those of a time before; returns their paths.

    The same arm gives the same files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.fromtimestamp(arm.ended).isoformat().replace(":", "-")
    task = re.sub(r"\W", "_", arm.task)
    rows = list(sample_rows(arm))
    for old in (*folder.glob("results_*.json"), *folder.glob(f"samples_{task}_*.jsonl")):
        old.unlink()
    samples = folder / f"samples_{task}_{date}.jsonl"
    write_atomic(samples, "".join(map(dump_line, rows)))
    results = folder / f"results_{date}.json"
    write_atomic(results, json.dumps(results_object(arm, rows), indent=2, ensure_ascii=False))
    return [results, samples]


def hash_string(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# ---- samples -------------------------------------------------------------------------------------


def sample_rows(arm: Arm) -> Iterator[dict[str, Any]]:
    """A row a filter and question, in lm-eval's order."""
    kwargs = generation(arm)
    for name in FILTERS:
        for number, question in enumerate(arm.questions):
            yield sample_row(arm, question, number, name, kwargs)


def sample_row(
    arm: Arm, question: Question, number: int, name: str, kwargs: dict[str, Any]
) -> dict[str, Any]:
    doc, target, prompt = document(question), expected(question.problem), prompt_text(arm, question)
    strict = name == "strict-match"
    found = [answer(sample, strict) for sample in question.samples]
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": kwargs}},
        "resps": [[sample.text for sample in question.samples]],
        "filtered_resps": found if len(found) == 1 else [found],
        "filter": name,
        "metrics": ["exact_match"],
        "doc_hash": hash_string(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": hash_string(prompt),
        "target_hash": hash_string(target),
        "exact_match": question.strict if strict else question.score,
    }


def answer(sample: Sample, strict: bool) -> str:
    missing = sample.parsed is None or (strict and not sample.format_ok)
    return INVALID if missing else str(sample.parsed)


def document(question: Question) -> dict[str, Any]:
    """The question as data: its fields, with the worked solution or the answer where it has one."""
    if question.problem is None:
        return {"id": question.id}
    problem = question.problem
    solved = problem.meta.get("solution", problem.gold)
    return {"id": problem.id, **problem.fields} | ({} if solved is None else {"answer": solved})


def prompt_text(arm: Arm, question: Question) -> str:
    """The prompt; a chat as lm-eval's API models have it, JSON of its messages."""
    if question.problem is None:
        return ""
    prompt = asked(arm, question.problem)
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def generation(arm: Arm) -> dict[str, Any]:
    decoding = arm.setup.get("decoding", {})
    temperature = float(decoding.get("temperature", 0.0))
    return {
        "until": arm.spec.stop if arm.spec else [],
        "do_sample": temperature > 0,
        "temperature": temperature,
        "top_p": decoding.get("top_p", 1.0),
        "max_gen_toks": decoding.get("max_new_tokens"),
    }


def shots_of(arm: Arm) -> int:
    return arm.spec.shots if arm.spec else 0


# ---- results -------------------------------------------------------------------------------------


def results_object(arm: Arm, rows: list[dict[str, Any]]) -> dict[str, Any]:
    task, shots = arm.task, shots_of(arm)
    measured = metrics(arm)
    return {
        "results": {
            task: {"name": task, "alias": task, "sample_len": len(arm.questions), **measured}
        },
        "group_subtasks": {},
        "configs": {task: task_config(arm)},
        "versions": {task: 1.0},
        "n-shot": {task: shots},
        "higher_is_better": {task: {key.partition(",")[0]: True for key in measured
                                    if "_stderr" not in key}},
        "n-samples": {
            task: {"original": len(arm.questions), "effective": len(arm.questions)}
        },
        "config": run_config(arm),
        "git_hash": None,  # of the code that evaluated; a folder does not know it
        "date": arm.started,
        **environment(),
        "task_hashes": {task: hash_string("".join(
            row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))},
        **identity(arm),
    }  # fmt: skip


def metrics(arm: Arm) -> dict[str, Any]:
    """`metric,filter` and `metric_stderr,filter`; the errors are clustered by question."""
    scores = {
        "exact_match,strict-match": [question.strict for question in arm.questions],
        "exact_match,flexible-extract": [question.score for question in arm.questions],
    }
    found: dict[str, Any] = {}
    for key, values in scores.items():
        error = mean_error(values)
        metric, _, name = key.partition(",")
        found[key] = fmean(values)
        found[f"{metric}_stderr,{name}"] = "N/A" if error is None else error
    for k, value in arm.results.get("pass_at", {}).items():
        found |= {f"pass@{k},flexible-extract": value, f"pass@{k}_stderr,flexible-extract": "N/A"}
    for k, value in arm.results.get("maj_at", {}).items():
        found |= {f"exact_match,maj@{k}": value, f"exact_match_stderr,maj@{k}": "N/A"}
    return found


def task_config(arm: Arm) -> dict[str, Any]:
    """The keys of lm-eval's TaskConfig that say something here."""
    asks = arm.spec.task if arm.spec else None
    return {
        "task": arm.task,
        "dataset_path": (asks.source if asks else "") or arm.task,
        "test_split": arm.spec.part if arm.spec else "heldout",
        "unsafe_code": False,
        "description": "",
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": shots_of(arm),
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "output_type": "generate_until",
        "generation_kwargs": generation(arm),
        "repeats": arm.samples,
        "filter_list": [
            {"name": name, "filter": [{"function": f"mlxreflect:{rules_of(arm)}"}]}
            for name in FILTERS
        ],
        "should_decontaminate": False,
        "metadata": {"version": 1.0, "rules": rules_of(arm), "spec": arm.setup.get("spec")},
    }


def rules_of(arm: Arm) -> str:
    return str(arm.results.get("rules") or arm.task)


def run_config(arm: Arm) -> dict[str, Any]:
    decoding = arm.setup.get("decoding", {})
    arguments = {"pretrained": arm.model, "peft": arm.adapter, "base_url": arm.setup.get("server")}
    seed = decoding.get("seed", 0)
    return {
        "model": source(arm),
        "model_args": {key: value for key, value in arguments.items() if value},
        "batch_size": str(decoding.get("batch", "")),
        "batch_sizes": [],
        "device": None,
        "use_cache": None,
        "limit": (arm.spec.limit if arm.spec else 0) or None,
        "bootstrap_iters": 0,  # standard errors of means are computed, not drawn
        "gen_kwargs": generation(arm),
        "random_seed": seed,
        "numpy_seed": seed,
        "torch_seed": seed,
        "fewshot_seed": seed,
    }


def source(arm: Arm) -> str:
    return "local-chat-completions" if arm.setup.get("server") else "mlx_lm"


def environment() -> dict[str, Any]:
    return {
        "pretty_env_info": f"{platform.platform()}, Python {platform.python_version()}",
        "transformers_version": installed("transformers"),
        "lm_eval_version": f"{LAYOUT} (layout; written by mlxreflect {installed('mlxreflect')})",
        "upper_git_hash": None,
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "N/A"


def identity(arm: Arm) -> dict[str, Any]:
    """What lm-eval's tracker adds. Of model and adapter the adapter names it, as there."""
    name = arm.adapter or arm.model
    system = system_instruction(arm)
    return {
        "model_source": source(arm),
        "model_name": name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name),
        "system_instruction": system,
        "system_instruction_sha": hash_string(system) if system else None,
        "fewshot_as_multiturn": shots_of(arm) > 0,
        "chat_template": None,  # the model's own; a folder does not know it
        "chat_template_sha": None,
        "start_time": arm.started,
        "end_time": arm.ended,
        "total_evaluation_time_seconds": str(max(0.0, arm.ended - arm.started)),
    }


def system_instruction(arm: Arm) -> str | None:
    """The system message, where all questions have the same."""
    first: set[str | None] = set()
    for question in arm.questions:
        if question.problem is None:
            return None
        prompt: Messages | str = asked(arm, question.problem)
        begins = not isinstance(prompt, str) and prompt[0]["role"] == "system"
        first.add(prompt[0]["content"] if begins and not isinstance(prompt, str) else None)
    return first.pop() if len(first) == 1 else None
