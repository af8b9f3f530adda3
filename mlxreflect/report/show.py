"""Reads a run directory for a person: header, waves, problems, verdict, one problem's story.

A run that is under way or died shows as far as it got.
"""

from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from mlxreflect.config.schema import METHODS, Recipe, method_of
from mlxreflect.config.toml import read_toml, validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import convert_rows, read_rows
from mlxreflect.core.records import Episode, Example, episode_from_row, flat_from_row
from mlxreflect.core.ui import facts, plain, table
from mlxreflect.data.matching import sentence
from mlxreflect.evaluation.arms import read_arms, read_results
from mlxreflect.methods.base import STATUSES, status_words
from mlxreflect.report.story import STATUS_STYLE, tell_story
from mlxreflect.report.tables import chain_line, comparisons, percent, second_answers

EXAMPLES = {"preference": "preference pairs", "sft": "SFT examples", "group": "groups of answers"}
LAST_WAVES = 30  # rows of the table of waves
MOST_PROBLEMS = 40  # rows of the table of problems, unless a status is asked for


def show_run(run_dir: Path, status: str | None = None) -> list[RenderableType]:
    """The run's header, waves, problems (those with `status`) and summary.

    Raises UserError where there is no run, or no such status.
    """
    check_run(run_dir)
    if status and status not in STATUSES:
        raise UserError(f"no status {status!r}", f"the statuses are: {', '.join(STATUSES)}")
    episodes = load_episodes(run_dir)
    parts = [show_header(run_dir), Text(), show_waves(run_dir), Text()]
    parts.append(show_problems(episodes, status))
    return [*parts, Text(), *show_summary(run_dir)]


def show_problem(run_dir: Path, problem_id: str) -> list[RenderableType]:
    """The whole story of the problem whose id begins so, over all epochs.

    Raises UserError where no problem, or more than one, has such an id.
    """
    check_run(run_dir)
    episodes = load_episodes(run_dir)
    known = list(dict.fromkeys(episode.problem.id for episode in episodes))
    found = [i for i in known if i.startswith(problem_id)]
    if problem_id in found:
        found = [problem_id]
    if len(found) != 1:
        some = ", ".join((found or known)[:5]) or "none, no wave is finished yet"
        fault = "problems begin with" if found else "no problem in this run begins with"
        raise UserError(
            f"{f'{len(found)} ' if found else ''}{fault} {problem_id!r}",
            f"give more digits: {some}" if found else f"some of its problems: {some}",
        )
    examples = convert_rows(run_dir / "examples.jsonl", example_from_row, "an example")
    mine = [example for example in examples if example.source.get("problem") == found[0]]
    return tell_story([e for e in episodes if e.problem.id == found[0]], mine)


def example_from_row(row: dict[str, Any]) -> Example:
    example: Example = flat_from_row(Example, row)
    return example


def check_run(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such folder", "give the folder that `mlxreflect run` made")
    if not any((run_dir / name).is_file() for name in ("recipe.toml", "episodes.jsonl")):
        raise UserError(
            f"{run_dir} is not a run folder", "give the folder that `mlxreflect run` made"
        )


def load_episodes(run_dir: Path) -> list[Episode]:
    return list(convert_rows(run_dir / "episodes.jsonl", episode_from_row, "an episode"))


def show_header(run_dir: Path) -> RenderableType:
    recipe = recipe_of(run_dir)
    summary = read_results(run_dir / "summary.json")
    unfinished = f"not finished: under way, or go on with: mlxreflect resume {quote(str(run_dir))}"
    known = summary or {}  # a run of another version has names, if not a recipe that can be read
    return facts(
        {
            "run": run_dir,
            "recipe": recipe.name or recipe.strategy if recipe else known.get("recipe", "unknown"),
            "policy": recipe.policy.model if recipe else known.get("policy", "unknown"),
            "critic": method_of(recipe).critic_names(recipe) if recipe else "unknown",
            "status": known.get("status", unfinished),
        }
    )


def recipe_of(run_dir: Path) -> Recipe | None:
    """None where there is none, or it is one of another version."""
    path = run_dir / "recipe.toml"
    try:
        return validate(Recipe, read_toml(path), path) if path.is_file() else None
    except UserError:
        return None


def show_waves(run_dir: Path) -> RenderableType:
    """Columns of what no wave has had are left out."""
    path, recipe = run_dir / "metrics.jsonl", recipe_of(run_dir)
    metrics = read_rows(path) if path.is_file() else iter(())
    waves = [row for row in metrics if row.get("kind") == "wave"]
    if not waves:
        return Text("no wave is finished yet")
    word = method_of(recipe).solved if recipe else "solved"
    some = {
        "|bucket": "bucket", "|pairs": "pairs", "|rewrites": "rewrites", "|verify": "verifications",
    }  # fmt: skip
    columns = {
        "|epoch": "epoch", "|wave": "wave", "stage": "stage", "|size": "problems",
        "|first": "first_correct", "|format": "format_ok",
        **({f"|{word}": "solved"} if word else {}),
        **{name: key for name, key in some.items() if any(row.get(key) for row in waves)},
    }  # fmt: skip
    title = "Waves"
    if len(waves) > LAST_WAVES:
        title = f"Waves (the last {LAST_WAVES} of {len(waves)}; all are in {path.name})"
    rows = [
        [*(row.get(key, "") for key in columns.values()),
         f"{row['seconds']:.1f}" if "seconds" in row else ""]
        for row in waves[-LAST_WAVES:]
    ]  # fmt: skip
    return table(title, [*columns, "|secs"], rows)


def show_problems(episodes: list[Episode], status: str | None) -> RenderableType:
    """A row a problem, as its last episode left it; all of a status, else the first few."""
    told: dict[str, list[Episode]] = {}
    for episode in episodes:
        told.setdefault(episode.problem.id, []).append(episode)
    rows = [story for story in told.values() if status in (None, story[-1].outcome.status)]
    shown = rows if status else rows[:MOST_PROBLEMS]
    if not shown:
        return Text(f"no problem with status {status}" if status else "no problem is done yet")
    title = f"Problems ({status})" if status else "Problems"
    if len(shown) < len(rows):
        title += f" (the first {len(shown)} of {len(rows)}; --status shows all of one status)"
    method = METHODS.get(shown[0][0].recipe)
    tiers = method is not None and method.escalates
    columns = ["id", "problem", "|attempts", "|rewrites", "status"]
    cells: list[list[object]] = []
    for story in shown:
        roles = [turn.role for episode in story for turn in episode.turns]
        outcome, problem = story[-1].outcome, story[-1].problem
        attempts = roles.count("attempt") + roles.count("verify")
        cells.append([
            problem.id, shorten(problem.fields), attempts,
            roles.count("rewrite") + roles.count("continue"),
            plain(outcome.status, STATUS_STYLE.get(outcome.status, "")),
            *([outcome.tier] if tiers else []),
        ])  # fmt: skip
    return table(title, [*columns, "critic"] if tiers else columns, cells, wraps="problem")


def shorten(fields: dict[str, Any], width: int = 44) -> str:
    """A problem in one line: its question, else its fields."""
    text = fields.get("question") or ", ".join(f"{k} {v}" for k, v in fields.items())
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def show_summary(run_dir: Path) -> list[RenderableType]:
    """Base against trained, the sentence, totals and plots, as far as there are any."""
    summary = read_results(run_dir / "summary.json") or {}
    arms = read_arms(run_dir) or {n: summary[n] for n in ("base", "trained") if summary.get(n)}
    parts: list[RenderableType] = []
    if arms:
        parts.append(show_arms(arms))
        chains = ((name, arm["chain"]) for name, arm in arms.items() if arm.get("chain"))
        parts += [*(plain(chain_line(name, chain)) for name, chain in chains), Text()]
    if further := read_results(run_dir / "comparisons.json"):
        against = {c["b"]: c for c in further["comparisons"]}
        parts += [comparisons(f"Against {further['arms'][0]}", against), Text()]
    comparison = read_results(run_dir / "comparison.json") or summary.get("comparison") or {}
    if comparison.get("sentence"):
        parts += [plain(comparison["sentence"], "bold"), Text()]
    if again := read_results(run_dir / "retries.json"):
        parts += [*second_answers(again), Text()]
    named = totals(run_dir, summary, recipe_of(run_dir))
    if plots := sorted((run_dir / "plots").glob("*.png")):
        # A table cuts long words: whole paths of all of them would be.
        named["plots"] = f"{run_dir / 'plots'}\n" + ", ".join(path.name for path in plots)
    return [*parts, facts(named)] if named else parts


def show_training(summary: dict[str, Any]) -> RenderableType:
    """Returns the table of a training: held-out figures before and after, speed, the adapter."""
    shown: dict[str, object] = {
        "steps": f"{summary['steps']}" + (" (patience ended)" if summary["stopped_early"] else ""),
        "rows": f"{summary['rows']} trained on, {summary['held_out']} held out, "
        f"{summary['skipped']} skipped",
    }
    if summary.get("cut_prompts"):
        shown["prompts cut to fit"] = summary["cut_prompts"]
    if summary.get("decontaminated"):
        shown["decontaminated"] = sentence(summary["decontaminated"], "row")
    before, after = summary["held_out_before"], summary["held_out_after"]
    moves = (
        (before, after, "held-out ") if before else (summary["first"], summary["last"], "step's ")
    )
    for key in ("loss", "margin"):
        if moves[0][key] is not None:
            shown[moves[2] + key] = f"{moves[0][key]:.4f} → {moves[1][key]:.4f}"
    if moves[1]["accuracy"] is not None:
        shown["ranked right"] = f"{percent(moves[0]['accuracy'])} → {percent(moves[1]['accuracy'])}"
    if best := summary["best"]:
        unchanged = "before the first step; what is kept is as it began"
        when = f"after step {best['step']}" if best["step"] else unchanged
        shown["best"] = f"{best['value']:.4f}, {when}"
    shown |= {
        "speed": f"{summary['tokens_per_second']:.0f} trained tokens/s",
        "took": str(timedelta(seconds=round(summary["wall_seconds"]))),
        "peak memory": f"{summary['peak_memory_bytes'] / 1e9:.2f} GB",
        "adapter": summary["adapter"],
    }
    if summary["model"] != "tiny":
        command = f"mlx_lm.generate --model {summary['model']} --adapter-path {summary['adapter']}"
        shown["try it"] = command
    return facts(shown)


def show_arms(arms: dict[str, dict[str, Any]]) -> RenderableType:
    columns = ["", "|answers", "|right", "|95% interval", "|format kept", "|unparsed", "|cut off"]
    rows = [
        [
            name, arm.get("n", ""), percent(arm.get("accuracy")),
            f"{percent(arm.get('ci_low'))} to {percent(arm.get('ci_high'))}",
            percent(arm.get("format_rate")), arm.get("parse_failures", ""),
            arm.get("truncated", ""),
        ]
        for name, arm in arms.items()
    ]  # fmt: skip
    return table("Held-out problems", columns, rows)


# ---- figures of a whole run ----------------------------------------------------------------------


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
        "decontaminated": summary.get("decontaminated") and sentence(summary["decontaminated"]),
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
    """Returns who was asked how often, and what the requests took; {} where nobody was asked."""
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
