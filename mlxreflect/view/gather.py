"""Gathers what a page shows of runs, trainings and evaluations.

`tree` is small and is plain JSON: verdict, curves, figures, keys, and a row for each problem. The
texts are in `stories`, one for each row, which the page opens one at a time.
"""

import json
import math
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlxreflect.config.recipe import load_recipe, plain, resolved
from mlxreflect.config.schema import METHODS, Job, Recipe, method_of
from mlxreflect.config.toml import bundled, flatten
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import count_rows, owner_alive, read_json, sound_rows
from mlxreflect.core.records import (
    Episode,
    Example,
    MetricsRow,
    ProbeRow,
    Sample,
    TripleRow,
    Turn,
    episode_from_row,
    fits,
    flat_from_row,
)
from mlxreflect.data import graph
from mlxreflect.evaluation.arms import (
    Arm,
    ProblemSamples,
    by_task,
    distinct_names,
    find_arms,
    load_arms,
    read_arms,
    read_results,
    sample_files,
)
from mlxreflect.evaluation.compare import Options, compare_all, compare_report
from mlxreflect.evaluation.evaluate import MUCH
from mlxreflect.methods.base import AT_MOST, LEAK_FILTER, WORDS, cut_off, failure
from mlxreflect.report.plots import (
    LOSSES,
    RunData,
    compared_in,
    fresh,
    held_out_figures,
    is_graded,
    moving,
    paired,
    rewarded,
    series,
    window_of,
)
from mlxreflect.report.show import (
    ENDED,
    asked_so_far,
    recipe_of,
    rewritten,
    state_of,
    totals,
)

Tree = dict[str, Any]
NODES = 60  # of a knowledge graph that are drawn
QUESTION = 160  # characters of a question in a table
VALUE = 2_000  # characters of a key's value
LEARNED = ["id", "question", "status", "change", "waves", "attempts", "rewrites", "error", "cut",
           "leak", "trained"]  # fmt: skip
HELD_OUT = ["id", "question", "part", "change", "answers", "error", "cut"]


@dataclass
class Gathered:
    """tree: what the page shows at once. stories: of each row of each table, in their order."""

    tree: Tree
    stories: list[Tree] = field(default_factory=list)

    def table(self, columns: Sequence[str], rows: list[list[Any]], stories: list[Tree]) -> Tree:
        """Returns a table whose row i has the story `first` + i."""
        first = len(self.stories)
        self.stories += stories
        return {"columns": columns, "rows": rows, "first": first}


def gather(folders: Sequence[Path]) -> Gathered:
    """Reads folders of runs, trainings and evaluations.

    Rows of their journals that are damaged are left out, and a warning of the page counts them.
    Raises UserError for a folder that is none of them.
    """
    found = Gathered({"schema": "page/1", "runs": []})
    arms: list[Path] = []
    real = [path.resolve() for path in folders]  # runs/* has runs/latest, too
    folders = [path for i, path in enumerate(folders) if real[i] not in real[i + 1 :]]
    names = dict(zip(folders, distinct_names(folders), strict=True))
    for folder, name in names.items():
        damaged: dict[str, int] = {}
        try:
            if (folder / "job.json").is_file():
                run = gather_training(folder, damaged)
            elif any((folder / file).is_file() for file in ("run.json", "recipe.toml")):
                run = gather_run(folder, found, damaged)
            else:
                arms.append(folder)
                continue
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder}: one of its JSON files has another form ({error!r:.80})",
                "restore that file: results, summary or comparison",
            ) from error
        run["warnings"] += map(damage, damaged, damaged.values())
        found.tree["runs"].append({"name": name, **run})
    if arms:
        found.tree["runs"].append(gather_evaluations(arms, found))
    runs = {path: names[path] for path in folders if (path / "eval" / "trained").is_dir()}
    if len(runs) > 1:
        found.tree["against"] = compare_runs(runs)
    return found


def damage(file: str, rows: int) -> str:
    if rows == 1:
        return f"1 row of {file} is damaged: it is left out"
    return f"{rows} rows of {file} are damaged: they are left out"


def compare_runs(runs: Mapping[Path, str]) -> Tree:
    """Returns how the trained policies of several runs compare with that of the first.

    runs: folder → name. faults: why others cannot be compared with it.
    """
    (first, name), *others = runs.items()
    alike, faults = {first: name}, list[str]()
    for run, other in others:
        try:
            compare_all([first, run])
            alike[run] = other
        except UserError as error:
            why = error.message.partition("; ")[0]
            for path, called in ((first, name), (run, other)):
                why = why.replace(str(path / "eval" / "trained"), called)
            faults.append(f"{other} with {name}: {why}")
    if len(alike) < 2:
        return {"faults": faults, "comparisons": []}
    compared = compare_all([*alike], Options(names=tuple(alike.values())))
    found = compared.get("comparisons", [compared])
    return {"faults": faults, "comparisons": [brief(one) for one in found]}


# ---- a run ---------------------------------------------------------------------------------------


def gather_run(folder: Path, found: Gathered, damaged: dict[str, int]) -> Tree:
    """damaged: gets the number of damaged rows of each journal."""
    recipe, summary = recipe_of(folder), read_results(folder / "summary.json") or {}
    method = method_of(recipe) if recipe else None
    data = RunData(read_metrics(folder, damaged), next(iter(read_arms(folder).values()), {}))
    rows, stories = learned(folder, damaged)
    arms, faults = finished_arms(folder)
    compared = compared_in(folder) or [one for one in compare_report(arms) if "fault" not in one]
    tables = {}
    if rows:
        tables["learned"] = {**found.table(LEARNED, rows, stories),
                             "words": {**WORDS, **(method.words if method else {})}}  # fmt: skip
    if arms:
        tables["held_out"] = held_out(arms, compared, found)
    if asked := probes(folder, damaged):
        tables["probes"] = found.table(["prompt", "answers"],
                                       [[one["prompt"], len(one["answers"])] for one in asked],
                                       asked)  # fmt: skip
    state = state_of(folder, summary)
    return {
        "kind": "run",
        "folder": str(folder),
        "state": state,
        "facts": {
            "recipe": recipe.name or recipe.strategy if recipe else summary.get("recipe"),
            "method": recipe.strategy if recipe else None,
            "policy": recipe.policy.model if recipe else summary.get("policy"),
            "critic": method.critic_names(recipe) if method and recipe else None,
        },
        "verdicts": [brief(one) for one in compared],
        "arms": [figures(arm) for arm in arms],
        "charts": charts(data, method.solved if method else "solved"),
        "cost": cost(folder, summary, data, damaged),
        "totals": {k.strip(): str(v) for k, v in totals(folder, summary, recipe).items()},
        "keys": recipe_keys(folder, recipe),
        "warnings": [*warnings_of(summary, arms, data), *faults],
        "tables": tables,
        "graph": knowledge(folder, damaged),
        "retries": second_answers(folder),
        **({"live": live(folder, recipe, data, stories)} if state != "finished" else {}),
    }


def finished_arms(folder: Path) -> tuple[list[Arm], list[str]]:
    """Returns the arms of a run that were evaluated to the end, and what is wrong with others."""
    paths = [
        path for path in find_arms(folder)
        if all((file.parent / "results.json").is_file() for file in sample_files(path))
    ]  # fmt: skip
    return whole_arms(paths)


def whole_arms(paths: Sequence[Path]) -> tuple[list[Arm], list[str]]:
    """Returns the arms that can be read, and what is wrong with the others."""
    faults: dict[Path, str] = {}
    while whole := [path for path in paths if path not in faults]:
        try:
            return load_arms(whole), [*faults.values()]
        except UserError:
            faults |= {path: fault for path in whole if (fault := fault_of(path))}
    return [], [*faults.values()]


def fault_of(path: Path) -> str:
    """Returns what is wrong with an arm's folder, "" where nothing is."""
    try:
        load_arms([path])
    except UserError as error:
        return error.message
    return ""


def read_metrics(folder: Path, damaged: dict[str, int]) -> list[Tree]:
    return list(sound_rows(folder / "metrics.jsonl", fits(MetricsRow), damaged))


def brief(one: Mapping[str, Any]) -> Tree:
    """Returns a comparison without its lists of problems, which a table shows."""
    return {key: value for key, value in one.items() if key not in ("gained", "lost")}


def figures(arm: Arm) -> Tree:
    accuracy, low, high = (None, None, None) if arm.open else arm.accuracy
    samples = [sample for one in arm.problems.values() for sample in one.samples]
    return {
        "name": arm.name, "part": arm.part, "model": arm.model, "n": len(arm.problems),
        "samples": arm.samples, "accuracy": accuracy, "low": low, "high": high,
        "format": sum(s.format_ok for s in samples) / len(samples),
        "unparsed": sum(s.parsed is None for s in samples),
        "cut": sum(s.finish_reason == "length" for s in samples),
    }  # fmt: skip


def cost(folder: Path, summary: Mapping[str, Any], data: RunData, damaged: dict[str, int]) -> Tree:
    """Returns what a run took so far; None where nobody measured it."""
    waves, steps = data.kind("wave"), data.kind("step")
    critic = summary.get("critic") or asked_so_far(folder, damaged)
    wire = critic.get("wire") or {}
    measured = sum(row.get("seconds", 0.0) for row in waves or steps)
    return {
        "seconds": summary.get("wall_seconds") or measured,
        "generated": sum(row.get("tokens_generated", 0) for row in waves) or None,
        "trained": sum(row.get("tokens", 0) for row in steps) or None,
        "calls": critic.get("calls") or sum(w.get("critic", {}).get("calls", 0) for w in waves),
        "tokens": wire.get("tokens_in", 0) + wire.get("tokens_out", 0) or None,
        "usd": wire.get("usd"),
        "memory": summary.get("peak_memory_bytes"),
    }


def recipe_keys(folder: Path, recipe: Recipe | None) -> Tree:
    """Returns rows of key, value and, where it differs, the value of the bundled recipe.

    of: what it is compared with: the bundled recipe of its name, else the method's defaults.
    """
    if recipe is None:
        return {"of": "", "rows": []}
    name = recipe.name if recipe.name in bundled("recipes") else ""
    usual = load_recipe(name) if name else Recipe(strategy=recipe.strategy)
    of = f"the bundled recipe {name}" if name else f"the defaults of {recipe.strategy}"
    return {"of": of, "rows": key_rows(resolved(recipe), resolved(usual))}


def key_rows(tree: Tree, usual: Tree) -> list[list[str]]:
    """Returns (key, value) of what is as usual, (key, value, usual value) of what is not."""
    mine, other = flatten(tree), flatten(usual)
    found = []
    for key in dict.fromkeys((*mine, *other)):
        value, same = mine.get(key), mine.get(key) == other.get(key)
        if key != "name" and not (same and value in ("", [], None)):
            found.append([key, told(value)] if same else [key, told(value), told(other.get(key))])
    return found


def told(value: Any) -> str:
    text = "–" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE else f"{text[:VALUE]}… ({len(text):,} characters)"


def warnings_of(summary: Mapping[str, Any], arms: Sequence[Arm], data: RunData) -> list[str]:
    """Returns what a person should know before believing the figures."""
    found = [summary[kind]["why"] for kind in ("untrained", "unjudged") if summary.get(kind)]
    waves = data.kind("wave")
    answers, cut = (sum(row.get(key, 0) for row in waves) for key in ("answers", "cut"))
    if answers and cut > MUCH * answers:
        found.append(f"{cut / answers:.1%} of {answers} answers were cut off at "
                     "policy.max_new_tokens")  # fmt: skip
    for one in map(figures, arms):
        n, who = one["n"] * one["samples"], f"{one['part']}: {one['name']}"
        if one["cut"] > MUCH * n:
            found.append(f"{who} was cut off in {one['cut'] / n:.1%} of {n} answers")
        if one["unparsed"] > MUCH * n:
            found.append(f"{who} gave no answer that could be read in {one['unparsed'] / n:.1%} "
                         f"of {n}")  # fmt: skip
    calls = sum((Counter({k: row.get("critic", {}).get(k, 0) for k in ("calls", "failed")})
                 for row in waves), Counter[str]())  # fmt: skip
    if calls["failed"] > MUCH * calls["calls"]:
        found.append(f"{calls['failed']} of {calls['calls']} calls to the critic failed")
    if any(row["worse"] for row in data.kind("dev")):
        found.append("learning ended because the policy became worse than base on dev problems")
    return found


# ---- what happens just now -----------------------------------------------------------------------


def live(folder: Path, recipe: Recipe | None, data: RunData, stories: Sequence[Tree]) -> Tree:
    """Returns phase, time left, speed, memory and the latest text of a run that is not finished."""
    waves, steps = data.kind("wave"), data.kind("step")
    under_way = [(file.parent, file) for path in find_arms(folder) for file in sample_files(path)
                 if not (file.parent / "results.json").is_file()]  # fmt: skip
    phase, done, total = "learning", attempts_made(stories), 0
    if under_way:
        place, file = under_way[-1]
        spec = (read_results(place / "setup.json") or {}).get("spec", {})
        phase = f"evaluating {place.relative_to(folder / 'eval')}"
        done, total = (
            count_rows(file),
            count_rows(place / "problems.jsonl") * spec.get("samples", 1),
        )
    elif recipe and recipe.task.limit:
        total = method_of(recipe).plan(recipe, recipe.task.limit, AT_MOST).attempts
    seconds = sum(row["seconds"] for row in waves)
    left = seconds / done * (total - done) if not under_way and 0 < done < total else None
    last = waves[-1] if waves else {}
    return {
        "phase": phase, "done": done, "total": max(total, done) if total else None,
        "seconds_left": left, "wave": last.get("wave"), "stage": last.get("stage"),
        "generating": rate(waves[-3:], "tokens_generated"), "training": rate(steps[-20:], "tokens"),
        "memory": resident(owner_alive(folder)),
        "latest": max(stories, key=lambda one: one["episodes"][-1]["wave"]) if stories else None,
    }  # fmt: skip


def attempts_made(stories: Sequence[Tree]) -> int:
    return sum(turn["role"] == "attempt" for story in stories for episode in story["episodes"]
               for turn in episode["turns"])  # fmt: skip


def rate(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Tokens a second over the latest rows."""
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    return sum(row.get(key, 0) for row in rows) / seconds if seconds else None


def resident(process: int | None) -> int | None:
    """Returns the bytes that a process holds in memory, on Linux and macOS; None if unknown."""
    if process is None:
        return None
    asked = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True)
    return int(asked.stdout) << 10 if asked.stdout.strip().isdecimal() else None


# ---- problems ------------------------------------------------------------------------------------


def learned(folder: Path, damaged: dict[str, int]) -> tuple[list[list[Any]], list[Tree]]:
    """Returns a row and a story for each problem of a run's journals, in their order."""
    examples: dict[tuple[Any, ...], list[Tree]] = {}
    for row in sound_rows(folder / "examples.jsonl", fits(Example), damaged):
        example: Example = flat_from_row(Example, row)
        at = tuple(example.source.get(key) for key in ("problem", "epoch", "wave"))
        examples.setdefault(at, []).append({
            "kind": example.kind, "turns": example.source.get("turns", []),
            "rewards": example.rewards, "forced": bool(example.source.get("forced")),
        })  # fmt: skip
    problems: dict[str, list[Any]] = {}
    stories: dict[str, Tree] = {}
    for row in sound_rows(folder / "episodes.jsonl", fits(Episode), damaged):
        episode = episode_from_row(row)
        problem = episode.problem
        mine = examples.get((problem.id, episode.epoch, episode.wave), [])
        story = stories.setdefault(problem.id, begin_story(episode))
        story["episodes"].append(tell(episode, mine, story["asked"]))
        problems[problem.id] = learned_row(episode, mine, problems.get(problem.id))
    return list(problems.values()), list(stories.values())


def learned_row(episode: Episode, examples: Sequence[Tree], before: list[Any] | None) -> list[Any]:
    """Returns a problem's row after an episode. before: its row after the one before."""
    turns = episode.turns
    row = dict(zip(LEARNED, before, strict=True)) if before else {}
    first = next((turn for turn in turns if turn.role == "attempt"), None)
    mark = "right" if first and first.verdict and first.verdict.correct else "wrong"
    began = str(row.get("change", mark)).split(" → ")[0]
    now = {
        "id": episode.problem.id,
        "question": episode.problem.in_a_line(QUESTION),
        "status": episode.outcome.status,
        "change": mark if before is None else f"{began} → {mark}",
        "waves": [*row.get("waves", []), episode.wave],
        "attempts": row.get("attempts", 0) + sum(t.role in ("attempt", "verify") for t in turns),
        "rewrites": row.get("rewrites", 0) + sum(t.role in ("rewrite", "continue") for t in turns),
        "error": (first and failure(first)) or "",
        "cut": row.get("cut", 0) or int(any(map(cut_off, turns))),
        "leak": row.get("leak", 0) or int(any(t.verdict is not None and
                                             t.verdict.source == LEAK_FILTER for t in turns)),
        "trained": row.get("trained", 0) + len(examples),
    }  # fmt: skip
    return [now[column] for column in LEARNED]


def begin_story(episode: Episode) -> Tree:
    asked = next((t.messages for t in episode.turns if t.messages), [])
    problem = episode.problem
    return {"kind": "learned", "id": problem.id, "task": problem.task, "gold": problem.gold,
            "asked": asked or [{"role": "user", "content": json.dumps(problem.fields)}],
            "episodes": []}  # fmt: skip


def tell(episode: Episode, examples: list[Tree], asked: list[Any]) -> Tree:
    """Returns an episode without what is said elsewhere. asked: the prompt of the first attempt."""
    method = METHODS.get(episode.recipe)
    outcome = episode.outcome
    return {
        "epoch": episode.epoch, "wave": episode.wave, "status": outcome.status,
        "ended": ENDED.get(outcome.status, outcome.status), "solved": outcome.solved_turn,
        "tier": outcome.tier if method and method.escalates else None, "examples": examples,
        "turns": [tell_turn(turn, episode.turns, asked) for turn in episode.turns],
    }  # fmt: skip


def tell_turn(turn: Turn, turns: list[Turn], asked: list[Any]) -> Tree:
    before = rewritten(turn, turns) if turn.role == "rewrite" and not turn.error else None
    told = {
        "i": turn.index, "role": turn.role, "actor": turn.actor, "text": turn.text,
        "parent": turn.parent, "verdict": turn.verdict and asdict(turn.verdict),
        "error": turn.error, "parsed": turn.parsed, "cut": cut_off(turn) or None,
        "shown": None if turn.visibility == "none" else turn.visibility,
        "tokens": turn.usage.get("completion"), "rewrites": before and before.index,
        "messages": turn.messages if turn.messages != asked else None,
    }  # fmt: skip
    return {key: value for key, value in told.items() if value is not None}


def held_out(arms: Sequence[Arm], compared: Sequence[Mapping[str, Any]], found: Gathered) -> Tree:
    """Returns the table of evaluated problems, with the answers of all arms beside each other.

    compared: tells which answers to open questions a judge preferred, and why.
    """
    judged = {
        (one["task"], problem["id"]): (word, problem["why"])
        for one in compared if "judged" in one
        for key, word in (("gained", "preferred"), ("lost", "not preferred"),
                          ("unjudged", "not judged"))
        for problem in one.get(key, ())
    }  # fmt: skip
    rows, stories, names = [], [], list(dict.fromkeys(arm.name for arm in arms))
    for part, group in by_task(arms).items():
        last = next((arm for arm in group if arm.name == "trained"), group[-1])
        ends = (group[0], last)[len(group) == 1 :]
        for id_ in dict.fromkeys(id_ for arm in group for id_ in arm.problems):
            asked = {arm.name: arm.problems[id_] for arm in group if id_ in arm.problems}
            problem = next((one.problem for one in asked.values() if one.problem), None)
            change = " → ".join(mark(asked.get(arm.name)) for arm in ends)
            why = None
            if last.open:
                change, why = judged.get((part, id_), ("tie", None))
            answers = [asked[name].parsed[0] if name in asked else None for name in names]
            error = "" if last.open else error_of(asked.get(last.name))
            samples = [sample for one in asked.values() for sample in one.samples]
            cut = int(any(sample.finish_reason == "length" for sample in samples))
            question = problem.in_a_line(QUESTION) if problem else ""
            rows.append([id_, question, part, change, answers, error, cut])
            stories.append({
                "kind": "held_out", "id": id_, "part": part, "gold": problem and problem.gold,
                "fields": problem.fields if problem else {}, "why": why, "change": change,
                "arms": [{"name": name, "open": last.open,
                          "samples": list(map(tell_sample, one.samples))}
                         for name, one in asked.items()],
            })  # fmt: skip
    return {**found.table(HELD_OUT, rows, stories), "arms": names}


def tell_sample(sample: Sample) -> Tree:
    return {
        "text": sample.text, "parsed": sample.parsed, "correct": sample.correct,
        "format": sample.format_ok, "score": sample.score, "tokens": sample.tokens,
        "cut": sample.finish_reason == "length",
    }  # fmt: skip


def mark(one: ProblemSamples | None) -> str:
    if one is None:
        return "not asked"
    return "right" if all(one.right) else "sometimes right" if any(one.right) else "wrong"


def error_of(one: ProblemSamples | None) -> str:
    """Returns what is wrong with the first sample that is: as `failure` names it for an attempt."""
    for s in one.samples if one else ():
        if not (s.correct and s.format_ok):
            wrong = "wrong_answer" if s.format_ok else "wrong_answer_and_format"
            answered = "no_answer" if s.parsed is None else "format" if s.correct else wrong
            return "truncated" if s.finish_reason == "length" else answered
    return ""


def probes(folder: Path, damaged: dict[str, int]) -> list[Tree]:
    """Returns a story for each prompt that a run asked again and again.

    Answers in a row that are the same are one; since, until: waves, None before training.
    """
    stories: dict[tuple[int, str], Tree] = {}
    for row in sound_rows(folder / "probes.jsonl", fits(ProbeRow), damaged):
        key = row["probe"], row["prompt"]
        answers = stories.setdefault(
            key, {"kind": "probe", "prompt": row["prompt"], "answers": []}
        )["answers"]
        if answers and answers[-1]["text"] == row["text"]:
            answers[-1]["until"] = row["wave"]
        else:
            answers.append({
                "since": row["wave"], "until": row["wave"], "text": row["text"],
                "tokens": row["tokens"], "cut": row["finish_reason"] == "length",
            })  # fmt: skip
    return [stories[key] for key in sorted(stories)]


def second_answers(folder: Path) -> Tree | None:
    """Returns the figures of retries.json: right answers before and after a second try."""
    found = read_results(folder / "retries.json")
    if found is None:
        return None
    kept = ("acc_t1", "acc_t2", "wrong_to_right", "right_to_wrong", "failed")

    def how(row: Tree) -> str:
        return f"{row['retry']} retry, {'gated' if row['gated'] else 'ungated'}"

    return {
        "arms": [{"name": f"{row['arm']}, {how(row)}", **{key: row[key] for key in kept}}
                 for row in found["arms"]],
        "comparisons": [{**brief(test), "a": "base", "b": f"trained, {how(test)}"}
                        for test in found["comparisons"]],
    }  # fmt: skip


def knowledge(folder: Path, damaged: dict[str, int]) -> Tree | None:
    """Returns the best connected nodes of a run's knowledge graph and the edges between them.

    nodes: name and number of edges. edges: numbers of two nodes, the relation, and how many
    thoughts drew it.
    """
    whole = graph.KnowledgeGraph()
    for row in sound_rows(folder / graph.FILE, fits(TripleRow), damaged):
        whole.add(row)
    ends = Counter(node for subject, _, object_ in whole.edges for node in (subject, object_))
    best = sorted(ends, key=lambda node: (-ends[node], whole.first[node], node))[:NODES]
    number = {node: i for i, node in enumerate(best)}
    edges = [
        [number[subject], number[object_], edge.relation, edge.count]
        for (subject, _, object_), edge in whole.edges.items()
        if subject in number and object_ in number
    ]
    nodes = [[whole.names[node], ends[node]] for node in best]
    return {"sentence": whole.sentence(), "nodes": nodes, "edges": edges} if nodes else None


# ---- curves --------------------------------------------------------------------------------------


def charts(data: RunData, solved: str) -> list[Tree]:
    """Returns the curves of a run or a training; what has not happened has none.

    A series has points (x, y), and where they are many their moving mean.
    """
    waves, steps = data.kind("wave"), data.kind("step")
    by_wave, by_step = marks(data, steps=False), marks(data, steps=True)
    found = []
    if shown := fresh(waves):
        weights = [wave["problems"] for _, wave in shown]
        keys = {"first_correct": "first answer right", "format_ok": "format kept",
                **({"solved": f"{solved} after the wave"} if solved else {})}  # fmt: skip
        lines = [line(name, [(i, w.get(key, 0) / w["problems"]) for i, w in shown], weights)
                 for key, name in keys.items()]  # fmt: skip
        at = {"base": -0.5, **{w["arm"]: i for i, w in enumerate(waves) if "arm" in w},
              "trained": len(waves) - 0.5}  # fmt: skip
        asked = [(x, data.arms[arm]["accuracy"]) for arm, x in at.items() if arm in data.arms]
        if is_graded(data.arms.values()):
            lines.append(line("held-out problems", asked, smooth=False))
        if looks := data.kind("dev"):
            seen = [(-0.5, looks[0]["base"]), *((row["wave"], row["accuracy"]) for row in looks)]
            lines.append(line("dev problems", seen, smooth=False))
        found.append(chart("accuracy", "Accuracy", "wave", lines, by_wave, percent=True))
    if rewards := rewarded(waves):
        found.append(chart("reward", "Mean reward", "wave", [line("reward", rewards)], by_wave))
    for kind, title in LOSSES.items():
        lines = [line("loss", series(steps, "loss", kind)),
                 line("held-out rows", held_out_figures(data, "loss"), smooth=False)]  # fmt: skip
        if lines[0]["points"]:
            name = " ".join(title.split())
            found.append(chart(f"loss-{kind}", name, "step", lines, by_step))
    if kinds := paired(steps):
        for key, title in (("margin", "Reward margin, chosen − rejected"),
                           ("accuracy", "Pairs ranked right")):  # fmt: skip
            lines = [line(kind.upper(), series(steps, key, kind)) for kind in kinds]
            lines.append(line("held-out rows", held_out_figures(data, key), smooth=False))
            found.append(chart(key if key == "margin" else "ranked", title, "step", lines, by_step,
                               percent=key == "accuracy"))  # fmt: skip
    if any(wave.get("bucket") or wave.get("verifications") for wave in waves):
        listed = {"bucket": "on the bucket list", "verifications": "answers verified in the wave"}
        lines = [line(name, [(i, w.get(key, 0)) for i, w in enumerate(waves)], smooth=False)
                 for key, name in listed.items()]  # fmt: skip
        found.append(chart("bucket", "Bucket list and verification", "wave", lines, by_wave))
    return found


def chart(
    id_: str, title: str, x: str, lines: list[Tree], marked: list[Tree], *, percent: bool = False
) -> Tree:
    lines = [one for one in lines if one["points"]]
    return {"id": id_, "title": title, "x": x, "percent": percent, "lines": lines, "marks": marked}


def line(
    name: str, points: Iterable[tuple[float, float]], weights: Sequence[float] | None = None,
    *, smooth: bool = True,
) -> Tree:  # fmt: skip
    found = [(x, short(y)) for x, y in points]
    window, ys = window_of(len(found)), [math.nan if y is None else y for _, y in found]
    if window == 1 or not smooth:
        return {"name": name, "points": found}
    means = moving(ys, weights or [1.0] * len(found), window)
    return {"name": name, "points": found, "window": window,
            "means": [short(mean) for mean in means]}  # fmt: skip


def short(value: float) -> float | None:
    """Five digits, which are all that a curve can show; a loss that is no number is a gap."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def marks(data: RunData, *, steps: bool) -> list[Tree]:
    """Returns where a stage, the reference or the adapter begins anew. steps: of the x axis."""
    found = [(before + 0.5 if steps else waves - 0.5, f"new {what}")
             for waves, before, what in data.anew()]  # fmt: skip
    stage, waves, before, since = None, 0, 0, 0
    for row in data.rows:
        before += row.get("kind") == "step"
        if row.get("kind") == "wave":
            if stage not in (None, row.get("stage")) and len(found) < 200:
                found.append((since + 0.5 if steps else waves - 0.5, f"stage {row['stage']}"))
            stage, waves, since = row.get("stage"), waves + 1, before
    at: dict[float, list[str]] = {}
    for x, what in found:
        at.setdefault(x, []).append(what)
    return [{"x": x, "what": ", ".join(whats)} for x, whats in sorted(at.items())]


# ---- trainings and evaluations -------------------------------------------------------------------


def gather_training(folder: Path, damaged: dict[str, int]) -> Tree:
    """The folder of a `train`: curves, keys and what it came to; it has no problems."""
    summary = read_results(folder / "summary.json") or {}
    data, job = RunData(read_metrics(folder, damaged)), read_json(folder / "job.json")
    keys = job.get("job") or {}
    model, source = keys.get("policy", {}).get("model"), keys.get("data", {}).get("source")
    before, after = (summary.get(f"held_out_{when}") for when in ("before", "after"))
    first, last, of = before, after, "held-out rows"
    if not (before and after):
        first, last, of = summary.get("first"), summary.get("last"), "its own steps"
    state = state_of(folder, summary)
    steps = data.kind("step")
    return {
        "kind": "training", "folder": str(folder), "state": state,
        "facts": {"objective": keys.get("objective"), "model": model, "data": source,
                  "rows": summary.get("rows"), "held out": summary.get("held_out")},
        "verdicts": [], "arms": [], "warnings": [], "tables": {},
        "learned": {"of": of, "first": first, "last": last, "best": summary.get("best")},
        "charts": charts(data, ""),
        "cost": cost(folder, summary, data, damaged),
        "totals": {},
        "keys": {"of": "the defaults of a training", "rows": key_rows(keys, usual_job(keys))},
        **({"live": {"phase": "training", "done": len(steps), "total": None,
                     "training": rate(steps[-20:], "tokens"),
                     "memory": resident(owner_alive(folder))}} if state != "finished" else {}),
    }  # fmt: skip


def usual_job(keys: Tree) -> Tree:
    """Returns a training of the same objective, model and data whose other keys are at defaults."""
    objective = keys.get("objective", "sft")
    same = {"policy": keys.get("policy", {}), "data": keys.get("data", {})}
    try:
        return Job.model_validate({**plain(objective), "objective": objective, **same}).model_dump()
    except ValueError:  # of another version: all of it is shown as it is
        return keys


def gather_evaluations(folders: Sequence[Path], found: Gathered) -> Tree:
    """Folders of arms: figures, each against the first of its task, and all answers."""
    arms, faults = whole_arms(folders)
    if not arms:
        load_arms(folders)  # raises the first fault
    compared = compare_report(arms)
    return {
        "kind": "evaluation", "name": ", ".join(dict.fromkeys(arm.part for arm in arms)),
        "folder": ", ".join(map(str, folders)), "state": "finished",
        "facts": {"model": ", ".join(dict.fromkeys(arm.model for arm in arms))},
        "verdicts": [brief(one) for one in compared if "fault" not in one],
        "arms": [figures(arm) for arm in arms],
        "charts": [], "totals": {}, "keys": {"of": "", "rows": evaluation_keys(arms)},
        "cost": {"seconds": None, "calls": 0, "generated":
                 sum(s.tokens or 0 for arm in arms for one in arm.problems.values()
                     for s in one.samples)},
        "warnings": [f"{one['b']} is not compared with {one['a']}: {one['fault']}"
                     for one in compared if "fault" in one]
                    + warnings_of({}, arms, RunData([])) + faults,
        "tables": {"held_out": held_out(arms, compared, found)},
    }  # fmt: skip


def evaluation_keys(arms: Sequence[Arm]) -> list[list[Any]]:
    setups = [flatten(arm.setup) for arm in arms]
    keys = dict.fromkeys(key for setup in setups for key in setup)
    return [[key, *dict.fromkeys(told(setup.get(key)) for setup in setups)] for key in keys
            if not key.startswith("sha256")]  # fmt: skip
