"""Evaluations as tests make them: a policy or a server, a spec, a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import EvalSpec
from mlxreflect.core.records import Problem
from mlxreflect.evaluation.evaluate import evaluate, problem_set
from mlxreflect.evaluation.generators import Answers, LocalModel, ServedModel
from mlxreflect.evaluation.runner import generator_of
from mlxreflect.models.policy import Policy
from mlxreflect.tasks import get_task


def evaluated(
    model: Policy | LocalModel | ServedModel,
    spec: EvalSpec,
    out: Path,
    problems: Sequence[Problem] | None = None,
    answers: Answers | None = None,
) -> dict[str, Any]:
    """Returns the results of the spec, answered by a model into a folder."""
    model = LocalModel(model) if isinstance(model, Policy) else model
    asked = problem_set(get_task(spec.task.name), spec, problems)
    return evaluate(generator_of(model, asked, answers), out)


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
