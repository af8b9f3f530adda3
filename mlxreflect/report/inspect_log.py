"""An inspect_ai log (JSON, version 2) of an arm, made without inspect_ai.

`inspect view` opens it and `inspect_ai.log.read_eval_log` loads it. Two scores a sample: `correct`,
right by the rules of the evaluation, and `strict`, right and in the format asked for. Several
samples a question are epochs, reduced by their mean.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from mlxreflect.core.journal import write_atomic
from mlxreflect.core.records import Sample
from mlxreflect.evaluation.export_arms import Arm, Question, asked, expected, mean_error, tokens_of
from mlxreflect.report.lm_eval import installed, rules_of

SCORERS = ("correct", "strict")
STOPS = {"stop": "stop", "length": "max_tokens", "content_filter": "content_filter"}


def write_inspect(arm: Arm, folder: Path) -> Path:
    """Write the log under the name that inspect would give it; the same arm, the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    task = re.sub(r"[^\w.]", "-", arm.task).replace("_", "-")
    begun = moment(arm.started).replace(":", "-").replace("+", "-")
    path = folder / f"{begun}_{task}_{identifier(arm, 'task')}.json"
    write_atomic(path, json.dumps(log_object(arm), indent=2, ensure_ascii=False))
    return path


def log_object(arm: Arm) -> dict[str, Any]:
    """The header comes before the samples: inspect reads it alone where samples are many."""
    tokens = sum(tokens_of(s) for question in arm.questions for s in question.samples)
    return {
        "version": 2,
        "status": "success",
        "eval": eval_spec(arm),
        "plan": {
            "name": "plan",
            "steps": [{"solver": "generate", "params": {}, "params_passed": {}}],
            "config": generation(arm),
        },
        "results": results(arm),
        "stats": {
            "started_at": moment(arm.started),
            "completed_at": moment(arm.ended),
            "model_usage": {arm.model: usage(tokens)},
            "role_usage": {},
        },
        "invalidated": False,
        "tags": [],
        "metadata": {},
        "samples": [
            sample_object(arm, question, sample)
            for question in arm.questions for sample in question.samples
        ],
        "reductions": [reduction(arm, scorer) for scorer in SCORERS],
    }  # fmt: skip


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()


def identifier(arm: Arm, *what: object) -> str:
    """22 letters and digits that are the same whenever the log is written again."""
    content = json.dumps([arm.name, arm.setup, arm.started, *map(str, what)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:22]


def generation(arm: Arm) -> dict[str, Any]:
    decoding = arm.setup.get("decoding", {})
    names = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p",
             "seed": "seed"}  # fmt: skip
    return {ours: decoding[theirs] for ours, theirs in names.items() if theirs in decoding}


def usage(tokens: int) -> dict[str, int]:
    """Tokens of replies. Those of prompts are not kept in a folder."""
    return {"input_tokens": 0, "output_tokens": tokens, "total_tokens": tokens}


# ---- the header ----------------------------------------------------------------------------------


def eval_spec(arm: Arm) -> dict[str, Any]:
    arguments = {"adapter": arm.adapter, "server": arm.setup.get("server")}
    limit = arm.spec.limit if arm.spec else 0
    return {
        "eval_id": identifier(arm, "eval"),
        "run_id": identifier(arm, "run"),
        "created": moment(arm.started),
        "task": arm.task,
        "task_id": identifier(arm, "task"),
        "task_version": 1,
        "task_display_name": f"{arm.task} ({arm.name})",
        "task_attribs": {},
        "task_args": {},
        "task_args_passed": {},
        "tags": [arm.name],
        "dataset": {
            "name": arm.task,
            "samples": len(arm.questions),
            "sample_ids": [question.id for question in arm.questions],
            "shuffled": True,
        },
        "model": arm.model,
        "model_generate_config": generation(arm),
        "model_args": {key: value for key, value in arguments.items() if value},
        "config": {
            "epochs": arm.samples,
            "log_samples": True,
            **({"limit": limit} if limit else {}),
        },
        "packages": {"mlxreflect": installed("mlxreflect")},
        "metadata": {
            "arm": arm.name,
            "rules": rules_of(arm),
            **{key: arm.setup[key] for key in ("prompt_hash", "spec") if key in arm.setup},
        },
        "scorers": [
            {"name": name, "options": {}, "metadata": {},
             "metrics": [{"name": f"inspect_ai/{metric}", "options": {}}
                         for metric in ("accuracy", "stderr")]}
            for name in SCORERS
        ],
    }  # fmt: skip


def results(arm: Arm) -> dict[str, Any]:
    count = len(arm.questions) * arm.samples
    shown = ("format_rate", "parse_failures", "truncated", "pass_at", "maj_at")
    return {
        "total_samples": count,
        "completed_samples": count,
        "scores": [score_object(arm, scorer) for scorer in SCORERS],
        "headline": {"scorer": "correct", "score": "correct", "metric": "accuracy"},
        "metadata": {key: arm.results[key] for key in shown if key in arm.results},
    }


def score_object(arm: Arm, scorer: str) -> dict[str, Any]:
    values = [question_score(question, scorer) for question in arm.questions]
    measured = {"accuracy": fmean(values), "stderr": mean_error(values) or 0.0}
    return {
        "name": scorer,
        "scorer": scorer,
        "scored_samples": len(values),
        "unscored_samples": 0,
        "params": {},
        "metrics": {
            name: {"name": name, "value": value, "params": {}} for name, value in measured.items()
        },
    }


def question_score(question: Question, scorer: str) -> float:
    return question.strict if scorer == "strict" else question.score


def reduction(arm: Arm, scorer: str) -> dict[str, Any]:
    return {
        "scorer": scorer,
        "samples": [
            {
                "value": question_score(question, scorer),
                "answer": question.samples[0].parsed,
                "history": [],
                "sample_id": question.id,
            }
            for question in arm.questions
        ],
    }


# ---- samples -------------------------------------------------------------------------------------


def sample_object(arm: Arm, question: Question, sample: Sample) -> dict[str, Any]:
    epoch = sample.sample + 1
    made = usage(tokens_of(sample))
    reply = message(arm, question, epoch, "reply", {"role": "assistant", "content": sample.text})
    reply |= {"source": "generate", "model": arm.model}
    given = prompt(arm, question, epoch)
    problem = question.problem
    return {
        "id": question.id,
        "epoch": epoch,
        "input": given,
        "target": expected(problem),
        "messages": [*given, reply],
        "output": {
            "model": arm.model,
            "choices": [
                {"message": reply, "stop_reason": STOPS.get(sample.finish_reason or "", "unknown")}
            ],
            "completion": sample.text,
            "usage": made,
        },
        "scores": {scorer: score(sample, scorer) for scorer in SCORERS},
        "metadata": {} if problem is None else {**problem.meta, **problem.fields},
        "store": {},
        "model_usage": {arm.model: made},
        "role_usage": {},
        "uuid": identifier(arm, question.id, epoch),
        "attachments": {},
    }


def prompt(arm: Arm, question: Question, epoch: int) -> list[dict[str, Any]]:
    """The messages that were sent; a folder that kept only ids has the id in their place."""
    found = question.id if question.problem is None else asked(arm, question.problem)
    turns: Iterable[dict[str, str]]
    turns = [{"role": "user", "content": found}] if isinstance(found, str) else found
    return [message(arm, question, epoch, str(i), turn) for i, turn in enumerate(turns)]


def message(
    arm: Arm, question: Question, epoch: int, place: str, turn: dict[str, str]
) -> dict[str, Any]:
    return {"id": identifier(arm, question.id, epoch, place), **turn}


def score(sample: Sample, scorer: str) -> dict[str, Any]:
    right = sample.correct and (scorer == "correct" or sample.format_ok)
    said = "no answer could be read" if sample.parsed is None else "an answer was read"
    kept = "the format was kept" if sample.format_ok else "the format was not kept"
    return {
        "value": "C" if right else "I",
        "answer": sample.parsed,
        "explanation": f"{'Right' if right else 'Not right'}: {said}, {kept}.",
        "history": [],
    }
