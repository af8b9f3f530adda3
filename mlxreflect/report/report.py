"""`mlxreflect report`: a Markdown table, plots and logs of inspect_ai of evaluation folders."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import locked, write_atomic
from mlxreflect.core.records import Messages, Problem, Sample
from mlxreflect.core.ui import safe_text
from mlxreflect.evaluation.arms import Arm, ProblemSamples, load_arms
from mlxreflect.evaluation.compare import compare_report, deciding_p
from mlxreflect.stats import points
from mlxreflect.tasks import get_task
from mlxreflect.tasks.base import ask

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

LONGEST = 80  # characters of a name
# What Markdown, or HTML in it, takes for markup; an underscore inside a word is none.
MARKUP = re.compile(
    r"[\\`*\[\]<>#|~$&@]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/|(?<=www)\.", re.IGNORECASE
)
GET_INSPECT = (
    "no log for inspect_ai; to get one: pip install 'mlxreflect[inspect]', then this again"
)
SCORES = ("correct", "strict")
STOPS = {"stop": "stop", "length": "max_tokens", "content_filter": "content_filter"}


def write_outputs(
    folders: Sequence[Path],
    out: Path | None = None,
    names: Sequence[str] = (),
    *,
    logs: bool = True,
) -> dict[str, Any]:
    """Writes `table.md`, `plots/` and `inspect/` into `out`, and returns where everything is.

    folders: arm folders, folders of arms, or run directories. out: default `report` in the first.
    names: of the folders, if given. logs: also those for inspect_ai, which take longest. The result
    also has the figures of each arm and comparison, and `notes`. The same folders give the same
    files. Raises UserError for a folder without a finished evaluation.
    """
    arms = load_arms(folders, names)
    found = compare_report(arms)
    place = out or folders[0] / "report"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}", "give another --out") from None
    probes = [folder / "probes.jsonl" for folder in folders]
    notes = [f"answers to the run's own probes: {file}" for file in probes if file.is_file()]
    table = markdown(arms, found)
    inspects = logs and importlib.util.find_spec("inspect_ai") is not None
    from mlxreflect.report.plots import draw_report

    with locked(place):
        write_atomic(place / "table.md", table)
        plots = draw_report(arms, found, place / "plots")
        written = [write_inspect(arm, place / "inspect") for arm in arms] if inspects else []
    return {
        "out": str(place),
        "table": str(place / "table.md"),
        "inspect": list(map(str, written)),
        "plots": list(map(str, plots)),
        "notes": notes + [GET_INSPECT] * (logs and not inspects),
        "arms": [describe_arm(arm) for arm in arms],
        "comparisons": found,
        "markdown": table,
    }


def describe_arm(arm: Arm) -> dict[str, Any]:
    accuracy, low, high = (None, None, None) if arm.open else arm.accuracy
    return {
        "name": arm.name, "folder": str(arm.path), "task": arm.task, "model": arm.model,
        "adapter": arm.adapter, "n": len(arm.problems), "samples": arm.samples,
        "accuracy": accuracy, "ci_low": low, "ci_high": high,
    }  # fmt: skip


# ---- the table in Markdown, as it goes into a model card -----------------------------------------


def markdown(arms: Sequence[Arm], found: Sequence[Mapping[str, Any]]) -> str:
    """A row an arm and task, the sentences of the comparisons, and what could not be compared.

    found: as `compare_report` gives it.
    """
    head = ["task", "model", "questions", "right", "95 % interval", "right in the format"]
    align = [":--", ":--", "--:", "--:", ":-:", "--:"]
    if found:
        head += ["difference", "95 % interval", "gained, lost", "p"]
        align += ["--:", ":-:", "--:", "--:"]
    several = sum("fault" not in one for one in found) > 1
    if several:
        head, align = [*head, "p (Holm)"], [*align, "--:"]
    against = {(one["task"], one["b"]): one for one in found}
    rows = [head, align]
    for arm in arms:
        compared = difference(against.get((arm.part, arm.name)), several) if found else []
        rows.append([*measured(arm), *compared])
    lines = [f"| {' | '.join(cells)} |\n" for cells in rows]
    return "".join(lines + [f"\n{note(one)}\n" for one in found])


def measured(arm: Arm) -> list[str]:
    if arm.open:
        return [cell(arm.part), cell(arm.name), str(len(arm.problems)), "judged", "–", "–"]
    accuracy, low, high = arm.accuracy
    strict = sum(one.strict for one in arm.problems.values()) / len(arm.problems)
    right = f"{accuracy:.1%}" + (f" (avg@{arm.samples})" if arm.samples > 1 else "")
    between = f"{100 * low:.1f} to {100 * high:.1f}"
    return [cell(arm.part), cell(arm.name), str(len(arm.problems)), right, between, f"{strict:.1%}"]


def difference(one: Mapping[str, Any] | None, several: bool) -> list[str]:
    """The cells of a comparison; empty in the row that others are compared with."""
    if one is None or "fault" in one:
        return ["" if one is None else "–"] * (5 if several else 4)
    cells = [
        points(one["difference"]),
        f"{points(one['ci_low'])} to {points(one['ci_high'])}",
        f"{one['gains']}, {one['losses']}",
        f"{deciding_p(one):.2g}",
    ]
    return [*cells, f"{one['p_holm']:.2g}"] if several else cells


def note(one: Mapping[str, Any]) -> str:
    if "fault" in one:
        return prose(f"{one['task']}: {one['b']} is not compared with {one['a']}: {one['fault']}.")
    return prose(f"{one['task']}: {one['sentence']}")


def cell(text: str) -> str:
    """One line of text that stays text in a table of Markdown, however it is rendered."""
    line = safe_text(" ".join(text.split()))
    return prose(line if len(line) <= LONGEST else line[: LONGEST - 1] + "…")


def prose(text: str) -> str:
    """The same for a whole sentence."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", safe_text(" ".join(text.split())))


# ---- a log of inspect_ai, by its own writer ------------------------------------------------------


def write_inspect(arm: Arm, folder: Path) -> Path:
    """Writes the log of an arm, for `inspect view`, under the name that inspect would give it.

    Two scores a sample: `correct`, right by the rules of the evaluation, and `strict`, right and in
    the format asked for; none of open answers. Several samples of a problem are epochs. The same
    arm, the same file.
    """
    from inspect_ai.log import recompute_metrics, write_eval_log

    folder.mkdir(parents=True, exist_ok=True)
    log = inspect_log(arm)
    recompute_metrics(log)
    task = re.sub(r"[^\w.]", "-", arm.task).replace("_", "-")
    begun = log.eval.created.replace(":", "-").replace("+", "-")
    path = folder / f"{begun}_{task}_{log.eval.task_id}.json"
    write_eval_log(log, str(path), format="json")
    return path


def inspect_log(arm: Arm) -> "EvalLog":
    """Returns the log without the figures, which inspect_ai computes of its samples."""
    from inspect_ai.log import EvalLog

    decoding = arm.setup.get("decoding", {})
    names = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p",
             "top_k": "top_k", "presence_penalty": "presence_penalty", "seed": "seed"}  # fmt: skip
    config = {ours: decoding[theirs] for ours, theirs in names.items() if theirs in decoding}
    given = {"adapter": arm.adapter, "server": arm.setup.get("server")}
    metrics = [{"name": f"inspect_ai/{name}", "options": {}} for name in ("accuracy", "stderr")]
    samples = [(one, sample) for one in arm.problems.values() for sample in one.samples]
    limit = arm.spec.limit if arm.spec else 0
    begun = arm.path / "setup.json"
    created = moment(begun if begun.is_file() else arm.file)
    log: dict[str, Any] = {
        "status": "success",
        "eval": {
            "eval_id": identifier(arm, "eval"),
            "run_id": identifier(arm, "run"),
            "created": created,
            "task": arm.task,
            "task_id": identifier(arm, "task"),
            "task_display_name": f"{arm.task} ({arm.name})",
            "tags": [arm.name],
            "dataset": {"name": arm.task, "samples": len(arm.problems),
                        "sample_ids": [*arm.problems], "shuffled": True},
            "model": arm.model,
            "model_generate_config": config,
            "model_args": {key: value for key, value in given.items() if value},
            "config": {"epochs": arm.samples, "limit": limit or None},
            "packages": {"mlxreflect": version("mlxreflect")},
            "metadata": {"arm": arm.name, "rules": arm.results.get("rules", ""),
                         **{k: arm.setup[k] for k in ("prompt_hash", "spec") if k in arm.setup}},
            "scorers": [{"name": name, "metrics": metrics} for name in SCORES if not arm.open],
        },
        "plan": {"config": config},
        "stats": {
            "started_at": created,
            "completed_at": moment(arm.file),
            "model_usage": {arm.model: usage(sum(sample.tokens or 0 for _, sample in samples))},
        },
        "samples": [inspect_sample(arm, one, sample) for one, sample in samples],
    }  # fmt: skip
    return EvalLog.model_validate(log)


def inspect_sample(arm: Arm, one: ProblemSamples, sample: Sample) -> dict[str, Any]:
    """A sample's prompt, reply and verdict; a folder that kept only ids has them as prompts."""
    at, problem = (one.id, sample.sample), one.problem
    found = one.id if problem is None else prompt_of(arm, problem)
    turns = [{"role": "user", "content": found}] if isinstance(found, str) else found
    sent = [{"id": identifier(arm, *at, i), **turn} for i, turn in enumerate(turns)]
    reply = {"id": identifier(arm, *at, "reply"), "role": "assistant", "content": sample.text,
             "source": "generate", "model": arm.model}  # fmt: skip
    stop = STOPS.get(sample.finish_reason or "", "unknown")
    said = "no answer could be read" if sample.parsed is None else "an answer was read"
    form = "the format was kept" if sample.format_ok else "the format was not kept"
    scores = (sample.correct, sample.correct and sample.format_ok)
    right = {} if arm.open else dict(zip(SCORES, scores, strict=True))
    return {
        "id": one.id,
        "epoch": sample.sample + 1,
        "input": sent,
        "target": expected(problem),
        "messages": [*sent, reply],
        "output": {"model": arm.model, "choices": [{"message": reply, "stop_reason": stop}],
                   "completion": sample.text, "usage": usage(sample.tokens or 0)},
        "scores": {
            name: {"value": "C" if fine else "I", "answer": sample.parsed,
                   "explanation": f"{'Right' if fine else 'Not right'}: {said}, {form}."}
            for name, fine in right.items()
        },
        "metadata": {} if problem is None else {**problem.meta, **problem.fields},
        "model_usage": {arm.model: usage(sample.tokens or 0)},
        "uuid": identifier(arm, *at),
    }  # fmt: skip


def usage(tokens: int) -> dict[str, int]:
    """Tokens of replies; those of prompts are not kept in a folder."""
    return {"output_tokens": tokens, "total_tokens": tokens}


def prompt_of(arm: Arm, problem: Problem) -> Messages | str:
    """The prompt of a problem, as the model got it before its chat template."""
    task = get_task(problem.task)
    return task.show(problem) if arm.spec is None else ask(task, problem, arm.spec, arm.shots)


def expected(problem: Problem | None) -> str:
    """The right answer; of a Countdown problem the target, which many answers reach."""
    if problem is None:
        return ""
    return str(problem.fields.get("target", "")) if problem.gold is None else problem.gold


def moment(file: Path) -> str:
    """When a file was last written, to the second."""
    return datetime.fromtimestamp(int(file.stat().st_mtime), UTC).isoformat()


def identifier(arm: Arm, *what: object) -> str:
    """22 letters and digits that are the same whenever the log is written again."""
    content = json.dumps([arm.name, arm.setup, moment(arm.file), *map(str, what)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:22]
