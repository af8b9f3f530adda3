"""Reads a run directory for a person: header, waves, problems, verdict, one problem's story.

A run that is under way or died shows as far as it got. All text of models and critics goes through
`plain`: no markup, no control characters.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import SequenceMatcher
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from mlxreflect.config.schema import METHODS, Recipe, method_of
from mlxreflect.config.toml import read_toml, validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import (
    convert_rows,
    digest_of,
    owner_alive,
    read_json,
    read_rows,
    sound_rows,
)
from mlxreflect.core.records import (
    Episode,
    Example,
    MetricsRow,
    RequestRow,
    Turn,
    Verdict,
    episode_from_row,
    fits,
    flat_from_row,
)
from mlxreflect.core.ui import facts, percent, plain, plural, table
from mlxreflect.data.forms import shared
from mlxreflect.data.graph import read_graph
from mlxreflect.data.matching import sentence
from mlxreflect.evaluation.arms import problems_of, read_arms, read_results
from mlxreflect.methods.base import STATUSES, status_words
from mlxreflect.report.tables import (
    between,
    chain_line,
    comparisons,
    interval,
    judge_remarks,
    second_answers,
)
from mlxreflect.stats import points

EXAMPLES = {"preference": "preference pairs", "sft": "SFT examples", "group": "groups of answers"}
FOLDERS = "give the folder of a run: `mlxreflect runs` lists them, runs/latest is the newest"
LISTED = 44  # characters of a problem in a table
MOST_ASKED = 160  # characters of a question in a command
LAST_WAVES = 30  # rows of the table of waves
MOST_PROBLEMS = 40  # rows of the table of problems, unless a status is asked for
ANSWERS = ("attempt", "rewrite", "continue", "retry", "verify", "integrate", "answer", "ground")
MOST_WORDS = 10_000  # and spaces, in a difference; beyond, comparing would take seconds
REMOVED, ADDED = "red strike", "green"
MARKS = {REMOVED: ("[-", "-]"), ADDED: ("{+", "+}")}
STATUS_STYLE = {"solved_first": "green", "solved": "green", "trained": "cyan", "bucket": "yellow",
                "discarded": "yellow", "failed": "red"}  # fmt: skip
NOT_YET = {"working": "under way", "stopped": "not finished: resume it"}
ENDED = {
    "solved_first": "solved at the first try",
    "solved": "solved",
    "trained": "trained on, not verified",
    "bucket": "not solved: on the bucket list",
    "discarded": "given up: it is not trained on",
    "failed": "no call to the critic got through",
}


def show_run(run_dir: Path, status: str | None = None) -> list[RenderableType]:
    """The run's header, waves, problems (those with `status`) and summary.

    Raises UserError where there is no run, or no such status.
    """
    episodes = load_episodes(run_dir)
    if status and status not in STATUSES:
        raise UserError(f"no status {status!r}", f"the statuses are: {', '.join(STATUSES)}")
    problems = show_problems(episodes, status)
    parts = [show_header(run_dir), Text(), show_waves(run_dir), Text(), problems, Text()]
    return [*parts, *show_summary(run_dir)]


def list_runs(places: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns a row for each run and training in folders and below them, the newest first.

    Links and hidden folders are passed by. Raises UserError where there are none.
    """
    rows = []
    for place in places:
        for path, folders, files in os.walk(place):
            identity = next((name for name in ("run.json", "job.json") if name in files), None)
            if not identity and "checkpoints" in folders and "metrics.jsonl" in files:
                identity = "job.json" if "job.toml" in files else "run.json"  # which is lost
            if identity:
                rows.append(run_row(Path(path), identity))
            inside = [] if identity else [name for name in folders if not name.startswith(".")]
            folders[:] = inside  # which is where `walk` goes on
    if not rows:
        looked = ", ".join(str(place.resolve()) for place in places)
        hint = "give the folder of one, or make one: mlxreflect run quickstart"
        raise UserError(f"no runs in {looked}", hint)
    return sorted(rows, key=lambda row: str(row["began"]), reverse=True)


def run_row(folder: Path, identity: str) -> dict[str, Any]:
    """Returns a run or a training in a row, also one that is damaged.

    difference, ci_low, ci_high: of trained and base, as shares; None where they are not compared.
    """
    file = folder / identity
    began = (file if file.is_file() else folder).stat().st_mtime
    row = {
        "folder": str(folder), "method": None, "name": None, "model": None, "state": "damaged",
        "began": datetime.fromtimestamp(began).isoformat(timespec="seconds"), "verdict": "",
        **dict.fromkeys(("difference", "ci_low", "ci_high")),
    }  # fmt: skip
    try:
        said, summary = read_json(file), read_results(folder / "summary.json") or {}
        if said.pop("sha256", None) not in (None, digest_of(said)):
            return {**row, "verdict": f"{identity} is damaged or was edited"}
        keys = said["recipe" if identity == "run.json" else "job"]
        compared = summary.get("comparison") or {}
        return {
            **row, "method": keys.get("strategy") or keys["objective"], "name": keys.get("name"),
            "model": keys["policy"]["model"], "state": (state := state_of(folder, summary)),
            "verdict": outcome(summary) if summary else NOT_YET[state],
            **{key: compared.get(key) for key in ("difference", "ci_low", "ci_high")},
        }  # fmt: skip
    except UserError as error:
        return {**row, "verdict": error.message.removeprefix(f"{folder}/")}
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        return {**row, "verdict": f"one of its JSON files cannot be read ({error!r:.80})"}


def state_of(folder: Path, summary: Mapping[str, Any]) -> str:
    if summary and not summary.get("unjudged"):
        return "finished"
    return "working" if owner_alive(folder) else "stopped"


def outcome(summary: Mapping[str, Any]) -> str:
    """Returns what a finished run or training came to, in a few words."""
    if summary.get("unjudged"):
        return "not judged: resume it"
    if summary.get("untrained"):
        return "trained on nothing"
    if compared := summary.get("comparison"):
        return f"{points(compared['difference'])} points ({between(compared)})"
    before, after = summary.get("held_out_before"), summary.get("held_out_after")
    first, last = (before, after) if before and after else (summary["first"], summary["last"])
    of = "held-out" if before and after else "step's"
    losses = first["loss"], last["loss"]
    return "" if None in losses else "{} loss {:.4f} → {:.4f}".format(of, *losses)


def show_runs(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Returns the table of `list_runs`, and how to go on with one that is stopped."""
    cells = [
        [row["folder"], row["method"] or "unknown", row["model"] or "unknown", row["state"],
         row["began"][:16].replace("T", " "), row["verdict"]]
        for row in rows
    ]  # fmt: skip
    columns = ["run", "method", "model", "state", "began", "verdict"]
    stopped = [row["folder"] for row in rows if row["verdict"].endswith("resume it")][:1]
    lines = [plain(f"go on with one: mlxreflect resume {quote(path)}") for path in stopped]
    return [table("", columns, cells, wraps="model"), *lines]


def show_problem(run_dir: Path, problem_id: str) -> list[RenderableType]:
    """The whole story of the problem whose id begins so, over all epochs.

    Raises UserError where no problem, or more than one, has such an id.
    """
    episodes = load_episodes(run_dir)
    known = list(dict.fromkeys(episode.problem.id for episode in episodes))
    found = [i for i in known if i.startswith(problem_id)]
    if problem_id in found:
        found = [problem_id]
    if len(found) != 1:
        some = ", ".join((found or known)[:5]) or "none, no wave is finished yet"
        if found:
            message, hint = f"{len(found)} problems begin with", f"give more digits: {some}"
        else:
            message, hint = "no problem in this run begins with", f"some of its problems: {some}"
        raise UserError(f"{message} {problem_id!r}", hint)

    def make(row: dict[str, Any]) -> Example:
        example: Example = flat_from_row(Example, row)
        return example

    examples = convert_rows(run_dir / "examples.jsonl", make, "an example")
    mine = [example for example in examples if example.source.get("problem") == found[0]]
    return tell_story([e for e in episodes if e.problem.id == found[0]], mine)


def load_episodes(run_dir: Path) -> list[Episode]:
    if not any((run_dir / name).is_file() for name in ("recipe.toml", "episodes.jsonl")):
        fault = " is not a run folder" if run_dir.is_dir() else ": no such folder"
        raise UserError(f"{run_dir}{fault}", FOLDERS)
    return list(convert_rows(run_dir / "episodes.jsonl", episode_from_row, "an episode"))


def show_header(run_dir: Path) -> RenderableType:
    recipe = recipe_of(run_dir)
    summary = read_results(run_dir / "summary.json")
    unfinished = f"not finished: under way, or go on with: mlxreflect resume {quote(str(run_dir))}"
    known = summary or {}  # a run of another version has names, if not a recipe that can be read
    return facts({
        "run": run_dir,
        "recipe": recipe.name or recipe.strategy if recipe else known.get("recipe", "unknown"),
        "policy": recipe.policy.model if recipe else known.get("policy", "unknown"),
        "critic": method_of(recipe).critic_names(recipe) if recipe else "unknown",
        "status": known.get("status", unfinished),
    })  # fmt: skip


def recipe_of(run_dir: Path) -> Recipe | None:
    """None where there is none, or it is one of another version."""
    path = run_dir / "recipe.toml"
    try:
        return validate(Recipe, read_toml(path), path) if path.is_file() else None
    except UserError:
        return None


def show_waves(run_dir: Path) -> RenderableType:
    """Columns of what no wave has had are left out."""
    recipe = recipe_of(run_dir)
    waves = [row for row in read_rows(run_dir / "metrics.jsonl") if row.get("kind") == "wave"]
    if not waves:
        return Text("no wave is finished yet")
    word = method_of(recipe).solved if recipe else "solved"
    some = {
        "|bucket": "bucket", "|pairs": "pairs", "|rewrites": "rewrites", "|leaks": "leaks",
        "|verify": "verifications",
    }  # fmt: skip
    columns = {
        "|epoch": "epoch", "|wave": "wave", "stage": "stage", "|size": "problems",
        "|first": "first_correct", "|format": "format_ok",
        **({f"|{word}": "solved"} if word else {}),
        **{name: key for name, key in some.items() if any(row.get(key) for row in waves)},
    }  # fmt: skip
    title = "Waves"
    if len(waves) > LAST_WAVES:
        title = f"Waves (the last {LAST_WAVES} of {len(waves)}; all are in metrics.jsonl)"
    rows = [
        [*({**row, "wave": row["wave"] + 1}.get(key, "") for key in columns.values()),
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
            problem.id, problem.in_a_line(LISTED), attempts,
            roles.count("rewrite") + roles.count("continue"),
            plain(outcome.status, STATUS_STYLE.get(outcome.status, "")),
            *([outcome.tier] if tiers else []),
        ])  # fmt: skip
    return table(title, [*columns, "critic"] if tiers else columns, cells, wraps="problem")


def answered_question(run_dir: Path) -> tuple[str, str]:
    """Returns a short question that the trained policy answered rightly, and a task to ask it by.

    "" for a task where the question is asked in words, "" for both where nothing was right.
    """
    found: list[tuple[str, str]] = []
    for file in sorted((run_dir / "eval" / "trained").rglob("problems.jsonl")):
        right = {row["problem_id"] for row in read_rows(file.with_name("samples.jsonl"))
                 if row["correct"]}  # fmt: skip
        for problem in problems_of(file):
            text = problem.in_a_line(MOST_ASKED)
            task = "countdown" if problem.task == "countdown" else ""
            if problem.id in right and not text.startswith("-"):  # else it would be an option
                found.append((text, task))
    return min(found, key=lambda one: len(one[0]), default=("", ""))


def show_summary(run_dir: Path) -> list[RenderableType]:
    """Base against trained, the sentence, totals and plots, as far as there are any."""
    summary = read_results(run_dir / "summary.json") or {}
    told = {n: summary[n] for n in ("base", "trained") if summary.get(n)}
    parts: list[RenderableType] = []
    for evaluation, arms in (read_arms(run_dir) or ({"": told} if told else {})).items():
        parts.append(show_arms(arms, evaluation))
        chains = ((name, arm["chain"]) for name, arm in arms.items() if arm.get("chain"))
        parts += [*(plain(chain_line(name, chain)) for name, chain in chains), Text()]
    if further := read_results(run_dir / "comparisons.json"):
        several = len(further["tasks"]) > 1
        named = (f"{c['task']}: {c['b']}" if several else c["b"] for c in further["comparisons"])
        against = dict(zip(named, further["comparisons"], strict=True))
        parts += [comparisons(f"Against {further['arms'][0]}", against), Text()]
    comparison = read_results(run_dir / "comparison.json") or summary.get("comparison") or {}
    if comparison.get("sentence"):
        parts += [plain(comparison["sentence"], "bold")]
        parts += [*map(plain, judge_remarks(comparison.get("judged"))), Text()]
    if lacks := summary.get("unjudged"):
        said = f"The answers are not judged yet: {lacks['why']}\n{lacks['hint']}"
        parts += [plain(said, "bold"), Text()]
    if again := read_results(run_dir / "retries.json"):
        parts += [*second_answers(again), Text()]
    figures = totals(run_dir, summary, recipe_of(run_dir))
    if graph := read_graph(run_dir):
        figures["knowledge graph"] = graph.sentence()
    if (answers := run_dir / "probes.jsonl").is_file():
        figures["probes"] = answers
    if plots := sorted((run_dir / "plots").glob("*.png")):
        # A table cuts long words: whole paths of all of them would be.
        figures["plots"] = f"{run_dir / 'plots'}\n" + ", ".join(path.name for path in plots)
    return [*parts, facts(figures)] if figures else parts


def show_arms(arms: dict[str, dict[str, Any]], evaluation: str = "") -> RenderableType:
    columns = ["", "|answers", "|right", "|95% interval", "|format kept", "|unparsed", "|cut off"]
    rows = [
        [
            name, arm.get("n", ""), percent(arm.get("accuracy")), interval(arm),
            percent(arm.get("format_rate")), arm.get("parse_failures", ""),
            arm.get("truncated", ""),
        ]
        for name, arm in arms.items()
    ]  # fmt: skip
    return table(f"Held-out problems{evaluation and f': {evaluation}'}", columns, rows)


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
    nothing = (summary.get("untrained") or {}).get("why") or nothing
    n, cut = summary.get("answers", 0), summary.get("cut", 0)
    by = "; how each of them ended:" if statuses else ""
    seconds = summary.get("wall_seconds")
    named = {
        "problems": f"{summary.get('problems', 0)}{by}",
        **{f"  {name}": value for name, value in statuses.items()},
        "decontaminated": summary.get("decontaminated") and sentence(summary["decontaminated"]),
        "trained on": ", ".join(trained) or nothing,
        "not trained on": ", ".join(dropped) or None,
        "leaks dropped": leak_line(summary.get("leaks") or {}),
        "prompts cut to fit": summary.get("cut_prompts") or None,
        **critic_lines(summary.get("critic") or {}, who),
        "answers cut off": f"{percent(cut / n)} of {n}, at policy.max_new_tokens" if cut else None,
        "errors of attempts": ", ".join(kinds) or None,
        "dev problems": look_line(summary["dev"]) if summary.get("dev") else None,
        "wall time": f"{seconds / 60:.1f} min" if seconds is not None else None,
    }
    return {name: value for name, value in named.items() if value is not None}


def leak_line(leaks: dict[str, Any]) -> str | None:
    """Returns how many texts the leak filter dropped and why; None where none was written."""
    if not leaks.get("of"):
        return None
    why = "; ".join(f"{n} × {reason}" for reason, n in leaks["reasons"].items())
    return f"{leaks['dropped']} of {leaks['of']} rewrites" + (f" ({why})" if why else "")


def look_line(dev: dict[str, Any]) -> str:
    """Returns what the looks at dev problems came to, in one line."""
    at = {name: f"{percent(dev[name]['accuracy'])} after wave {dev[name]['wave'] + 1}"
          if dev[name] else "none above it" for name in ("best", "last")}  # fmt: skip
    ended = "; learning ended because base was better" if dev["stopped"] else ""
    return (
        f"base {percent(dev['base'])}, best {at['best']}, last {at['last']}; trained is "
        f"{'' if dev['trained'] == 'base' else 'the '}{dev['trained']}{ended}"
    )


def asked_so_far(run_dir: Path, damaged: dict[str, int] | None = None) -> dict[str, Any]:
    """Returns the critic's figures so far; {} where none was asked remotely.

    damaged: gets how many rows of each file are left out.
    """
    ledger, damaged = run_dir / "critic.jsonl", {} if damaged is None else damaged
    if not ledger.is_file():
        return {}
    from mlxreflect.critics.ledger import total

    rows = sound_rows(run_dir / "metrics.jsonl", fits(MetricsRow), damaged)
    waves = (row["critic"] for row in rows if row["kind"] == "wave" and "critic" in row)
    return total(waves, sound_rows(ledger, fits(RequestRow), damaged))


def critic_lines(critic: dict[str, Any], who: str) -> dict[str, object]:
    """Returns who was asked how often, and what the requests took; {} where nobody was asked."""
    wire = critic.get("wire") or {}
    if not critic.get("calls") and not wire.get("requests"):
        return {}
    kinds = [f"{n} {kind.replace('_', ' ')}" for kind, n in critic.get("kinds", {}).items()]
    failed = f"{critic.get('failed', 0)} failed" + (f" ({', '.join(kinds)})" if kinds else "")
    cached = [f"{critic['cached']} of them from the cache"] if critic.get("cached") else []
    counts = [plural(critic.get("calls", 0), "call"), *cached, failed]
    counts.append(f"{critic.get('unknown', 0)} unknown")
    named: dict[str, object] = {"critic": f"{who}: {', '.join(counts)}"}
    if wire.get("requests"):
        median, p95 = wire.get("median_s"), wire.get("p95_s")
        took = f", a reply took {median:.1f} s (95 % within {p95:.1f} s)" if median else ""
        named["requests to it"] = (
            f"{wire['requests']}, {wire['retried']} of them retries; {wire['tokens_in']} tokens "
            f"in, {wire['tokens_out']} out, ${wire['usd']:.4f}{took}"
        )
    return named


# ---- one problem's story ------------------------------------------------------------------------


def tell_story(episodes: list[Episode], examples: list[Example]) -> list[RenderableType]:
    """Returns all episodes of one problem, in order, with the examples that came of it."""
    problem = episodes[0].problem
    parts: list[RenderableType] = [plain(f"problem {problem.id} ({problem.task})", "bold")]
    asked = next((t.messages for t in episodes[0].turns if t.role == "attempt" and t.messages), [])
    parts.append(Padding(plain(asked[-1]["content"] if asked else problem.fields), (0, 2)))
    if problem.gold is not None:
        parts.append(plain(f"expected: {problem.gold}"))
    for episode in episodes:
        at = {"epoch": episode.epoch, "wave": episode.wave}
        own = [e for e in examples if {k: e.source.get(k) for k in at} == at]
        parts += tell_episode(episode, own)
    forced = sum(bool(example.source.get("forced")) for example in examples)
    if forced:
        parts.append(plain(f"on the bucket list to the last: {forced} × SFT on its last winner"))
    return parts


def tell_episode(episode: Episode, examples: list[Example]) -> list[RenderableType]:
    title = f"epoch {episode.epoch}, wave {episode.wave + 1}"
    method = METHODS.get(episode.recipe)
    title += f", {episode.outcome.tier} critic" if method and method.escalates else ""
    parts: list[RenderableType] = [Text(), Rule(plain(title, "bold"), align="left", style="dim")]
    made_of = [(example.kind, example.source.get("turns", [])) for example in examples]
    pairs = [turns for kind, turns in made_of if kind == "preference" and len(turns) == 2]
    for turn in episode.turns:
        parts += tell_turn(turn, episode.turns)
        for chosen, rejected in pairs:
            if chosen == turn.index:
                said = f"trained on a pair: turn {chosen} preferred to turn {rejected}"
                parts.append(plain(said, "magenta"))
    imitated = Counter(str(turn) for kind, turns in made_of if kind == "sft" for turn in turns)
    if imitated:
        times = ", ".join(f"{turn} ({n} ×)" if n > 1 else turn for turn, n in imitated.items())
        parts.append(plain(f"trained by SFT on turn {times}", "magenta"))
    for example in examples:
        if example.kind == "group":
            worth = ", ".join(f"{reward:g}" for reward in example.rewards or ())
            parts.append(plain(f"trained by GRPO, its answers worth {worth}", "magenta"))
    status, solved = episode.outcome.status, episode.outcome.solved_turn
    ended = ENDED.get(status, status)
    if solved is not None:
        trained = status == "solved" and episode.turns[solved].role == "verify"
        ended += f"{': verified after training' if trained else ''}, turn {solved}"
    return [*parts, plain(ended, f"bold {STATUS_STYLE.get(status, '')}")]


def tell_turn(turn: Turn, turns: list[Turn]) -> list[RenderableType]:
    """Returns a turn's head, its text (a rewrite as a difference) and its verdict."""
    facts = [f"{turn.index} {turn.role} by {turn.actor}"]
    if turn.role == "score":
        facts.append(f"of turn {turn.parent}")
    if turn.usage.get("completion"):
        facts.append(f"{turn.usage['completion']} tokens")
    if turn.finish_reason == "length":
        facts.append("cut off at the token limit")
    if turn.visibility != "none":
        facts.append(f"shown: {turn.visibility.replace('_', ' ')}")
    parts: list[RenderableType] = [Text(), plain(", ".join(facts), "bold")]
    if turn.error is not None:
        text = [Padding(plain(turn.text), (0, 2))] if turn.text.strip() else []
        what = "the reply is of no use" if text else "the call failed"
        return [*parts, *text, plain(f"  {what}: {turn.error}", "red")]
    before = rewritten(turn, turns) if turn.role == "rewrite" else None
    body = plain(turn.text) if before is None else Rewriting(before.text, turn.text)
    parts.append(Padding(body, (0, 2)))
    return parts if turn.verdict is None else [*parts, tell_verdict(turn.verdict)]


def tell_verdict(verdict: Verdict) -> Text:
    answer = "right" if verdict.correct else "wrong"
    shape = "format kept" if verdict.format_ok else "format broken"
    style = "green" if verdict.passed else "yellow" if verdict.correct else "red"
    text = f"  {'✓' if verdict.passed else '✗'} {answer}, {shape}"
    text += f": {verdict.reason}" if verdict.reason else ""
    return plain(text + (f" ({verdict.source})" if verdict.source != "grader" else ""), style)


def rewritten(turn: Turn, turns: list[Turn]) -> Turn | None:
    """Returns the answer that a turn rewrites: the nearest one among the turns it came from."""
    by_index = {t.index: t for t in turns}
    parent = turn.parent
    for _ in turns:  # no longer than there are turns, should parents go in a circle
        ancestor = by_index.get(parent) if parent is not None else None
        if ancestor is None or ancestor.role in ANSWERS:
            return ancestor
        parent = ancestor.parent
    return None


@dataclass(frozen=True)
class Rewriting:
    """A rewrite as the difference to what it rewrote, readable without colours too."""

    before: str
    after: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield word_diff(self.before, self.after, marks=console.no_color or not console.is_terminal)


def word_diff(before: str, after: str, *, marks: bool = False) -> Text:
    """Returns a rewrite as a difference to what it rewrote.

    The opening that it kept is dim, removed text is red, added text is green.
    marks: put [-…-] and {+…+} around what was removed and added, as git does.
    """
    old, new = (re.findall(r"\s+|\S+", side) for side in (before, after))
    kept = shared(old, new)
    tail = shared(old[kept:][::-1], new[kept:][::-1])
    middle = middle_diff(old[kept : len(old) - tail], new[kept : len(new) - tail])
    text = Text()
    for words, style in [(new[:kept], "dim"), *middle, (new[len(new) - tail :], "")]:
        left, right = MARKS.get(style, ("", "")) if marks else ("", "")
        if words:
            text.append_text(plain(f"{left}{''.join(words)}{right}", style))
    return text


def middle_diff(old: list[str], new: list[str]) -> list[tuple[list[str], str]]:
    """Returns runs of words, each with its style."""
    if len(old) + len(new) > MOST_WORDS:
        return [(old, REMOVED), (new, ADDED)]
    runs = []
    for tag, i, j, k, m in SequenceMatcher(None, old, new).get_opcodes():
        runs += [(new[k:m], "")] if tag == "equal" else [(old[i:j], REMOVED), (new[k:m], ADDED)]
    return runs
