"""What a run comes to in figures, for a person: problems, what was trained on, who was asked."""

from pathlib import Path
from typing import Any

from mlxreflect.config.methods import method_of
from mlxreflect.config.schema import Recipe
from mlxreflect.core.journal import read_rows
from mlxreflect.data.contamination import told
from mlxreflect.methods.base import status_words

EXAMPLES = {"preference": "preference pairs", "sft": "SFT examples", "group": "groups of answers"}


def totals(run_dir: Path, summary: dict[str, Any], recipe: Recipe | None) -> dict[str, object]:
    """Names and values. summary: {} of a run that is not finished. recipe: None if not known."""
    method = method_of(recipe) if recipe else None
    who = method.critic_names(recipe) if method and recipe else "unknown"
    if not summary:
        return critic_lines(asked_so_far(run_dir), who)
    kinds = [f"{n} {kind.replace('_', ' ')}" for kind, n in summary.get("failures", {}).items()]
    made = summary.get("examples", {})
    trained = [f"{made[kind]} {name}" for kind, name in EXAMPLES.items() if made.get(kind)]
    dropped = [f"{n} ({reason})" for reason, n in summary.get("dropped", {}).items()]
    statuses = status_words(summary.get("statuses", {}), method.words if method else {})
    nothing = "nothing: the trained policy is the base" if "examples" in summary else None
    by = "; by what the last round of each came to:" if statuses else ""
    named = {
        "problems": f"{summary.get('problems', 0)}{by}",
        **{f"  {name}": value for name, value in statuses.items()},
        "decontaminated": summary.get("decontaminated") and told(summary["decontaminated"]),
        "trained on": ", ".join(trained) or nothing,
        "not trained on": ", ".join(dropped) or None,
        "prompts cut to fit": summary.get("cut_prompts") or None,
        **critic_lines(summary.get("critic") or {}, who),
        "errors of first attempts": ", ".join(kinds) or None,
        "wall time": minutes(summary.get("wall_seconds")),
    }
    return {name: value for name, value in named.items() if value is not None}


def asked_so_far(run_dir: Path) -> dict[str, Any]:
    """The critic's figures of a run that is not finished; {} where none was asked remotely."""
    ledger, metrics = run_dir / "critic.jsonl", run_dir / "metrics.jsonl"
    if not ledger.is_file():
        return {}
    from mlxreflect.critics.ledger import total

    rows = read_rows(metrics) if metrics.is_file() else iter(())
    waves = (row["critic"] for row in rows if row.get("kind") == "wave" and "critic" in row)
    return total(waves, read_rows(ledger))


def critic_lines(critic: dict[str, Any], who: str) -> dict[str, object]:
    """What was asked of whom; and where something was sent, what that took. {}: nobody was."""
    wire = critic.get("wire") or {}
    if not critic.get("calls") and not wire.get("requests"):
        return {}
    kinds = [f"{n} {kind.replace('_', ' ')}" for kind, n in critic.get("kinds", {}).items()]
    failed = f"{critic.get('failed', 0)} failed" + (f" ({', '.join(kinds)})" if kinds else "")
    cached = [f"{critic['cached']} of them from the cache"] if critic.get("cached") else []
    counts = [f"{critic.get('calls', 0)} calls", *cached, failed]
    counts.append(f"{critic.get('unknown', 0)} unknown")
    named = {"critic": f"{who}: {', '.join(counts)}"}
    if wire.get("requests"):
        median, p95 = wire.get("median_s"), wire.get("p95_s")
        took = f", a reply took {median:.1f} s (95 % within {p95:.1f} s)" if median else ""
        named["requests to it"] = (
            f"{wire['requests']}, {wire['retried']} of them retries; {wire['tokens_in']} tokens "
            f"in, {wire['tokens_out']} out, ${wire['usd']:.4f}{took}"
        )
    return dict(named)


def minutes(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds / 60:.1f} min"
