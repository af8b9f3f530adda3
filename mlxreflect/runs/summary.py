"""What a run comes to: its arms compared, its plots and report, and the figures of its summary."""

from collections import Counter
from typing import Any

import mlx.core as mx

from mlxreflect.config.methods import method_of
from mlxreflect.config.schema import Recipe
from mlxreflect.core.journal import read_rows
from mlxreflect.critics.ledger import total
from mlxreflect.evaluation.arms import find_arms
from mlxreflect.evaluation.compare import Options, compare, compare_all
from mlxreflect.methods.base import count_statuses
from mlxreflect.report.report import write_outputs
from mlxreflect.runs.folder import RunFolder

COMPARED = ("n", "accuracy_a", "accuracy_b", "gains", "losses", "difference", "ci_low", "ci_high",
            "p_exact", "p_mid")  # fmt: skip
MEASURED = ("n", "accuracy", "ci_low", "ci_high", "format_rate", "parse_failures", "truncated")


def conclude(
    run: RunFolder[Recipe],
    base: dict[str, Any],
    trained: dict[str, Any],
    asked: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write the comparisons, plots and report of a run whose arms are evaluated; its summary.

    base, trained: their results. asked: the ledger's lines.
    """
    comparison = compare(run.path / "eval" / "base", run.path / "eval" / "trained")
    run.write_json("comparison.json", comparison)
    if len(find_arms(run.path)) > 2:
        differ = ("prompt.style",) if run.config.eval.direct else ()
        run.write_json("comparisons.json", compare_all([run.path], Options(differ=differ)))
    from mlxreflect.report.plots import draw_plots

    draw_plots(run.path, method_of(run.config).solved)
    write_outputs([run.path], table_only=True)
    return summarise_run(run, base, trained, comparison, asked)


def summarise_run(
    run: RunFolder[Recipe],
    base: dict[str, Any],
    trained: dict[str, Any],
    comparison: dict[str, Any],
    asked: list[dict[str, Any]],
) -> dict[str, Any]:
    """Figures of a whole run, from what was committed; asked: the ledger's lines.

    statuses: problems as their last episodes left them. examples: what was trained on, by kind.
    dropped: what could not be, by reason.
    """
    metrics = list(read_rows(run.path / "metrics.jsonl"))
    waves = [row for row in metrics if row["kind"] == "wave"]
    statuses = count_statuses(read_rows(run.path / "episodes.jsonl"))
    examples = Counter(row["kind"] for row in read_rows(run.path / "examples.jsonl"))
    dropped = sum((Counter(row.get("dropped", {})) for row in waves), Counter[str]())
    failures = sum((Counter(row["failures"]) for row in waves), Counter[str]())
    return {
        "schema": "summary/2",
        "status": "finished",
        "recipe": run.config.name,
        "policy": run.config.policy.model,
        "wall_seconds": 0.0,
        "waves": len(waves),
        "problems": sum(statuses.values()),
        "statuses": statuses,
        "examples": dict(sorted(examples.items())),
        "dropped": dict(dropped),
        "cut_prompts": sum(row.get("cut_prompts", 0) for row in waves),
        "critic": total((row["critic"] for row in waves), asked),
        "failures": dict(failures),
        "base": {key: base[key] for key in MEASURED},
        "trained": {key: trained[key] for key in MEASURED},
        "comparison": {key: comparison.get(key) for key in COMPARED},
        "peak_memory_bytes": mx.get_peak_memory(),
        "tokens_generated": sum(row["tokens_generated"] for row in waves),
        "tokens_trained": sum(row["tokens_trained"] for row in waves),
    }
