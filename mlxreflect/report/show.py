"""Reads a run directory for a person: header, waves, problems, verdict, one problem's story.

A run that is under way or died shows as far as it got.
"""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxreflect.config.methods import METHODS, method_of
from mlxreflect.config.schema import Recipe
from mlxreflect.config.toml import read_toml, validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Episode, Example, episode_from_row, flat_from_row
from mlxreflect.data.contamination import told
from mlxreflect.evaluation.arms import read_arms, read_results
from mlxreflect.methods.base import STATUSES
from mlxreflect.report.scoreboard import chain_line, comparisons, second_answers
from mlxreflect.report.story import STATUS_STYLE, plain, tell_story
from mlxreflect.report.totals import totals

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
    path = run_dir / "examples.jsonl"
    rows = read_rows(path) if path.is_file() else iter(())
    mine = [row for row in rows if row.get("source", {}).get("problem") == found[0]]
    examples: list[Example] = [flat_from_row(Example, row) for row in mine]
    return tell_story([e for e in episodes if e.problem.id == found[0]], examples)


def check_run(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such folder", "give the folder that `mlxreflect run` made")
    if not any((run_dir / name).is_file() for name in ("recipe.toml", "episodes.jsonl")):
        raise UserError(
            f"{run_dir} is no run directory", "give the folder that `mlxreflect run` made"
        )


def load_episodes(run_dir: Path) -> list[Episode]:
    path, episodes = run_dir / "episodes.jsonl", []
    for number, row in enumerate(read_rows(path) if path.is_file() else (), 1):
        try:
            episodes.append(episode_from_row(row))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}, row {number}: not an episode ({error})", "correct or delete that line"
            ) from None
    return episodes


def facts(pairs: dict[str, object]) -> Table:
    """Names and values below each other."""
    grid = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        grid.add_row(plain(name, "bold"), value if isinstance(value, Text) else plain(value))
    return grid


def table(title: str, columns: Iterable[str]) -> Table:
    """A table; a column named `|name` holds numbers and is set to the right."""
    made = Table(
        title=Text(title, "bold"), title_justify="left", header_style="bold",
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0),
    )  # fmt: skip
    for column in columns:
        name, right = column.lstrip("|"), column.startswith("|")
        # On a narrow terminal only a problem's text gives way.
        made.add_column(name, justify="right" if right else "left", no_wrap=name != "problem")
    return made


def show_header(run_dir: Path) -> Table:
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
    rows = read_rows(path) if path.is_file() else iter(())
    waves = [row for row in rows if row.get("kind") == "wave"]
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
    made = table(title, [*columns, "|secs"])
    for row in waves[-LAST_WAVES:]:
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        made.add_row(*(plain(row.get(key, "")) for key in columns.values()), plain(seconds))
    return made


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
    made = table(title, [*columns, "critic"] if tiers else columns)
    for story in shown:
        roles = [turn.role for episode in story for turn in episode.turns]
        outcome, problem = story[-1].outcome, story[-1].problem
        attempts = roles.count("attempt") + roles.count("verify")
        made.add_row(
            plain(problem.id), plain(shorten(problem.fields)), plain(attempts),
            plain(roles.count("rewrite") + roles.count("continue")),
            plain(outcome.status, STATUS_STYLE.get(outcome.status, "")),
            *([plain(outcome.tier)] if tiers else []),
        )  # fmt: skip
    return made


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
        against = [{"name": c["b"], "comparison": c} for c in further["comparisons"]]
        parts += [comparisons([{"name": further["arms"][0]}, *against]), Text()]
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
    """What `mlxreflect train` did: held-out figures before and after, speed, the adapter."""
    shown: dict[str, object] = {
        "steps": f"{summary['steps']}" + (" (patience ended)" if summary["stopped_early"] else ""),
        "rows": f"{summary['rows']} trained on, {summary['held_out']} held out, "
        f"{summary['skipped']} skipped",
    }
    if summary.get("cut_prompts"):
        shown["prompts cut to fit"] = summary["cut_prompts"]
    if summary.get("decontaminated"):
        shown["decontaminated"] = told(summary["decontaminated"], "row")
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


def show_arms(arms: dict[str, dict[str, Any]]) -> Table:
    columns = ["", "|answers", "|right", "|95% interval", "|format kept", "|unparsed", "|cut off"]
    made = table("Held-out problems", columns)
    for name, arm in arms.items():
        low, high = arm.get("ci_low"), arm.get("ci_high")
        made.add_row(
            plain(name), plain(arm.get("n", "")), plain(percent(arm.get("accuracy"))),
            plain(f"{percent(low)} to {percent(high)}"), plain(percent(arm.get("format_rate"))),
            plain(arm.get("parse_failures", "")), plain(arm.get("truncated", "")),
        )  # fmt: skip
    return made


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
