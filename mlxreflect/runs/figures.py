"""Figures of a run: its waves, its limits, its summary."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import mlx.core as mx

from mlxreflect.config.schema import Limits, Recipe, method_of
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import to_row
from mlxreflect.core.ui import Ui, plural
from mlxreflect.critics.ledger import total
from mlxreflect.data import graph
from mlxreflect.data.forms import trl_row
from mlxreflect.evaluation.compare import Options, compare_all
from mlxreflect.evaluation.evaluate import MUCH
from mlxreflect.methods.base import LEAK_FILTER, SAMPLED, Played, Wave, count_statuses
from mlxreflect.methods.session import HELPED
from mlxreflect.prompts.parsing import TAGS
from mlxreflect.report.report import write_outputs
from mlxreflect.runs.folder import RunFolder

Figures = dict[str, Any]
Evaluated = Mapping[str, Figures]  # evaluation → its figures, the headline's first
COMPARED = ("n", "accuracy_a", "accuracy_b", "gains", "losses", "difference", "ci_low", "ci_high",
            "p_exact", "p_mid")  # fmt: skip
MEASURED = ("n", "accuracy", "ci_low", "ci_high", "format_rate", "parse_failures", "truncated")
ENOUGH = 20  # answers, of which a share can be told
FEW = 4  # fewer attempts say nothing of whether the policy knows the format
RUIN = 0.2  # share of base's figures below which a policy is ruined
SHOWN = 5  # reasons of the leak filter in a summary
ONLY_BASE = "trained is base: no look at dev problems was better"


# ---- waves ---------------------------------------------------------------------------------------


def describe_wave(figures: Figures, solved: str) -> str:
    """Returns a wave in one line, counted from 1.

    solved: the method's word for solved problems, or "".
    """
    n = figures["problems"]  # some waves are training alone
    parts = [
        plural(n, "problem") if n else "",
        f"{figures['passed'] / n:.1%} right at once" if n else "",
        f"{figures['solved']} {solved}" if n and solved else "",
        plural(figures["pairs"], "pair") if figures["pairs"] else "",
        f"{plural(figures['leaks'], 'leak')} dropped" if figures["leaks"] else "",
        f"bucket {figures['bucket']}" if "bucket" in figures else "",
        f"{figures['cut'] / figures['answers']:.1%} of answers cut off" if figures["cut"] else "",
        figures.get("told", ""),
        f"{figures['seconds']:.1f} s",
    ]
    at = f"epoch {figures['epoch']}, wave {figures['number'] + 1} ({figures['stage']})"
    return f"{at}: {', '.join(filter(None, parts))}"


def no_format(figures: Figures, recipe: Recipe) -> str:
    """Returns what to do where no attempt of the first wave keeps the format, else ""."""
    attempts = sum(figures["failures"].values())  # all of them, where none keeps it
    if figures["number"] or figures["format_ok"] or attempts < FEW:
        return ""
    tags = recipe.prompt.tags
    start, end = TAGS[tags]
    other = next(name for name in TAGS if name != tags)
    if recipe.policy.model == "tiny":  # knows one set of tags, and its task alone
        other = "" if tags == "think" else "think"
    retag = f"--set prompt.tags={other}, or " if other else ""
    return (
        f"warning: none of {attempts} attempts keeps the format {start}…{end}, and so the policy "
        f"can hardly learn: try {retag}a larger policy.max_new_tokens"
    )


def too_short(spent: Counter[str], recipe: Recipe) -> str:
    """Returns what to do where a good part of a run's answers so far were cut off, else ""."""
    n, cut = spent["answers"], spent["cut"]
    if n < ENOUGH or cut <= MUCH * n:
        return ""
    skips = recipe.train.cut == "skip"
    lost = ", and are neither imitated nor held against the policy" if skips else ""
    return (
        f"warning: {cut / n:.1%} of {n} answers were cut off at policy.max_new_tokens = "
        f"{recipe.policy.max_new_tokens}{lost}: raise policy.max_new_tokens"
    )


def journal_rows(wave: Wave, played: Played, figures: dict[str, Any], style: str) -> dict[str, Any]:
    """Returns the rows that a wave adds to each journal. style: of thoughts; some draw graphs."""
    at = {"schema": "metrics/1", "epoch": wave.epoch, "wave": wave.number}
    metrics = [{**at, "kind": "step", **step.row()} for step in played.steps]
    preference = [e for e in played.examples or () if e.kind == "preference"]
    imitation = [e for e in played.examples or () if e.kind == "sft"]
    return {
        "episodes.jsonl": [to_row(episode) for episode in played.episodes],
        "examples.jsonl": [to_row(example) for example in played.examples or ()],
        "preference.jsonl": [trl_row(example) for example in preference],
        "sft.jsonl": [trl_row(example) for example in imitation],
        "metrics.jsonl": [*metrics, {**at, "kind": "wave", **figures}],
        graph.FILE: [
            row for episode in played.episodes if style == "graph"
            for row in graph.graph_rows(episode)
        ],
    }  # fmt: skip


def ends_at(seconds: float, done: int, total: int, after: float) -> str:
    """Returns when a run will have ended, if problems go on to take as long as those done.

    seconds: that these took. after: seconds that follow the last problem.
    """
    if not done:
        return ""
    at = datetime.now() + timedelta(seconds=seconds / done * (total - done) + after)
    day = "" if at.date() == datetime.now().date() else f"{at:%a} "
    return f"ends about {day}{at:%H:%M}"


def spending(figures: Figures) -> Counter[str]:
    """Returns what a wave took, under the names of [limits], and its answers that were cut off."""
    return Counter(
        policy_tokens=figures["tokens_generated"],
        critic_calls=figures["critic"].get("calls", 0),
        training_tokens=figures["tokens_trained"],
        answers=figures.get("answers", 0),
        cut=figures.get("cut", 0),
    )


def reached(spent: Counter[str], limits: Limits, ui: Ui) -> bool:
    """Returns true where a limit is reached, and says so."""
    for name, limit in limits:
        if limit and spent[name] >= limit:
            ui.line(f"no more problems: {spent[name]} {name} reach limits.{name} = {limit}")
            return True
    return False


# ---- the whole run -------------------------------------------------------------------------------


def conclude(
    run: RunFolder[Recipe], base: Evaluated, trained: Evaluated, calls: list[Figures], ui: Ui,
    unjudged: dict[str, str],
) -> Figures:  # fmt: skip
    """Writes comparisons, plots and report of a run whose arms are evaluated; returns its summary.

    base, trained: the results of each evaluation, the headline's first. calls: the ledger's lines.
    All comparisons with base, also of arms on the way, are one family of tests (Holm). Says what
    was lost. unjudged: why open answers could not be judged; their evaluations are not compared.
    """
    differ = ("prompt.style",) if run.config.eval.direct else ()
    options = Options(differ=differ, graded=bool(unjudged))
    compared = in_order(compare_all([run.path], options), base)
    found = [one for one in compared.get("comparisons", [compared]) if one["b"] == "trained"]
    names = [name for name in base if not unjudged or base[name]["accuracy"] is not None]
    against = dict(zip(names, found, strict=True))
    several = "comparisons" in compared
    if kept_base(run):
        for one in found:
            one["sentence"] += f" {ONLY_BASE.capitalize()}."
    if (headline := next(iter(base))) in against:
        run.write_json("comparison.json", against[headline])
    if several and found:
        run.write_json("comparisons.json", compared)
    from mlxreflect.report.plots import draw_plots

    draw_plots(run.path, method_of(run.config).solved)
    write_outputs([run.path], logs=False)
    keys = (*COMPARED, "p_holm", "verdict") if several else COMPARED
    evaluated = {
        name: {"base": {key: base[name][key] for key in MEASURED},
               "trained": {key: trained[name][key] for key in MEASURED},
               **({"comparison": {key: one.get(key) for key in keys} | judged_figures(one)}
                  if (one := against.get(name)) else {})}
        for name in base
    }  # fmt: skip
    summary, lost = summarise_run(run, evaluated, calls), lost_texts(run.path)
    if lost.said:
        ui.line(f"warning: {lost.said}")
    if fault := ruined(summary):
        ui.line(fault)
    if not summary["tokens_trained"]:
        summary["untrained"] = untrained(run.path, summary, lost)
    return summary | ({"unjudged": unjudged} if unjudged else {})


def kept_base(run: RunFolder[Recipe]) -> bool:
    """Returns true where base itself is evaluated as trained, since no look was better."""
    looks = [row for row in read_rows(run.path / "metrics.jsonl") if row["kind"] == "dev"]
    chosen = run.config.eval.trained == "best" and len(looks) > 0
    return chosen and not any(row["best"] for row in looks)


def judged_figures(one: Figures) -> Figures:
    """Returns what a summary has of a comparison of open answers; of graded ones nothing."""
    return {key: one[key] for key in ("win_rate", "win_low", "win_high", "judged") if key in one}


def in_order(compared: Figures, evaluations: Iterable[str]) -> Figures:
    """Returns comparisons of several evaluations in the recipe's order: the headline's come first.

    Folders have an order of their own. A comparison of one evaluation stays as it is.
    """
    names = list(evaluations)
    if len(names) == 1 or "comparisons" not in compared:
        return compared
    rows = sorted(compared["comparisons"], key=lambda one: names.index(one["task"]))
    return {**compared, "tasks": names, "comparisons": rows}


def summarise_run(run: RunFolder[Recipe], evaluated: Evaluated, calls: list[Figures]) -> Figures:
    """Returns the figures of a whole run, from what was committed.

    evaluated: of each evaluation base, trained and their comparison. calls: the ledger's lines.
    statuses: problems as their last episodes left them. examples: what was trained on, by kind.
    dropped: what could not be, by reason. answers: of the policy, attempts and later ones; cut: of
    these, cut off at policy.max_new_tokens. leaks: of texts written with help that the leak filter
    dropped, as `dropped_leaks` gives them.
    """
    rows = list(read_rows(run.path / "metrics.jsonl"))
    waves, looks = ([row for row in rows if row["kind"] == kind] for kind in ("wave", "dev"))
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
        "leaks": dropped_leaks(run.path),
        "cut_prompts": sum(row.get("cut_prompts", 0) for row in waves),
        "answers": sum(row.get("answers", 0) for row in waves),
        "cut": sum(row.get("cut", 0) for row in waves),
        "critic": total((row["critic"] for row in waves), calls),
        "failures": dict(failures),
        **({"dev": summarise_looks(looks, run.config.eval.trained)} if looks else {}),
        **next(iter(evaluated.values())),
        **({"evaluations": evaluated} if len(evaluated) > 1 else {}),
        "peak_memory_bytes": mx.get_peak_memory(),
        "tokens_generated": sum(row["tokens_generated"] for row in waves),
        "tokens_trained": sum(row["tokens_trained"] for row in waves),
    }


def dropped_leaks(folder: Path) -> Figures:
    """Returns of how many texts written with help how many the leak filter dropped, and why.

    reasons: the most frequent ones.
    """
    turns = [turn for row in read_rows(folder / "episodes.jsonl") for turn in row["turns"]]
    verdicts = [turn["verdict"] for turn in turns if turn["role"] in (*HELPED, "ground")]
    reasons = Counter(one["reason"] for one in verdicts if one and one["source"] == LEAK_FILTER)
    return {"of": sum(one is not None for one in verdicts), "dropped": reasons.total(),
            "reasons": dict(reasons.most_common(SHOWN))}  # fmt: skip


def summarise_looks(looks: Sequence[Figures], trained: str) -> Figures:
    """Returns the figures of the looks at dev problems: base, the last and the best policy.

    best: None where no look was better than base. trained: which of the three was evaluated.
    stopped: base was better, which ended learning.
    """
    keys = ("wave", "accuracy", "n")
    last, best = looks[-1], next((row for row in reversed(looks) if row["best"]), None)
    return {
        "looks": len(looks), "base": looks[0]["base"], "last": {key: last[key] for key in keys},
        "best": {key: best[key] for key in keys} if best else None,
        "trained": trained if best or trained == "last" else "base",
        "stopped": any(row["worse"] for row in looks),
    }  # fmt: skip


# ---- a run that came to nothing ------------------------------------------------------------------


class Lost(NamedTuple):
    """said: why no text of a critic was of use, or "". calls: no call of one gave any."""

    said: str = ""
    calls: bool = False


def lost_texts(folder: Path) -> Lost:
    """Returns whether all calls of a critic, those for rewrites, or all rewrites were in vain.

    The last reason is said, however few there were.
    """
    turns = [turn for row in read_rows(folder / "episodes.jsonl") for turn in row["turns"]]
    asked = [turn for turn in turns if turn["role"] not in SAMPLED]
    helping = [turn for turn in asked if turn["role"] in HELPED]
    for kind, calls in (("critic calls", asked), ("calls for a rewrite", helping)):
        failed = [turn["error"] for turn in calls if turn["error"] is not None]
        if failed and len(failed) == len(calls):
            said = f"none of {len(calls)} {kind} gave a text; the last: {failed[-1]}"
            return Lost(said, calls=True)
    written = [t["verdict"] for t in turns if t["role"] in HELPED and t["verdict"] is not None]
    refused = [one for one in written if not (one["correct"] and one["format_ok"])]
    if refused and len(refused) == len(written):
        last = refused[-1]["reason"] or "the answer is wrong"
        return Lost(f"none of {len(written)} rewrites was taken; the last: {last}")
    return Lost()


def ruined(summary: Figures) -> str:
    """Returns what to do where learning destroyed the policy, else "": accuracy and format went."""
    base, trained = summary["base"], summary["trained"]
    if base["accuracy"] is None:
        return ""
    fell = [trained[key] < RUIN * base[key] for key in ("accuracy", "format_rate")]
    if not all(fell) or not base["accuracy"] >= RUIN / 2:
        return ""
    return (
        f"warning: trained answers {trained['accuracy']:.1%} right, base {base['accuracy']:.1%}, "
        f"and it keeps the format of {trained['format_rate']:.1%}: the learning rate has probably "
        "ruined it: lower train.lr"
    )


def untrained(folder: Path, summary: Figures, lost: Lost) -> dict[str, str]:
    """Returns why a run trained on nothing, and what to change. lost: as `lost_texts` says."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "wave"]
    asked, passed = sum(r["problems"] for r in rows), sum(r["passed"] for r in rows)
    cut, answers = sum(r.get("cut", 0) for r in rows), sum(r.get("answers", 0) for r in rows)
    show = f"`mlxreflect show {quote(str(folder))} --problem ID` tells what happened to one"
    why, hint = "no attempt and nothing else made an example", show
    if lost.calls:
        why = lost.said
        hint = "see that the critic answers as it is asked to: mlxreflect doctor RECIPE"
    elif cut and cut == answers:
        why, hint = f"all {cut} answers were cut off", "raise policy.max_new_tokens"
    elif asked and passed == asked:
        why = f"all {asked} attempts were right, and so there was nothing to learn from"
        hint = "take harder or more problems ([task]), or raise policy.temperature"
    elif lost.said:
        why = lost.said
        hint = f"take a stronger critic ([critic]), or raise critic.max_tokens; {show}"
    elif summary["dropped"]:
        why = f"no example could be trained on: {', '.join(summary['dropped'])}"
        hint = "raise train.max_length, or policy.max_new_tokens where answers were cut off"
    elif asked and not passed:
        why = f"none of {asked} attempts was right, and nothing else made an example"
        hint = f"take easier problems ([task]) or another policy.model; {show}"
    return {"why": f"the run trained on nothing: {why}",
            "hint": f"{hint}; allow_untrained = true lets it pass"}  # fmt: skip
