"""Grading without a model: other people's responses, and an evaluation's under other rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import EvalSpec
from mlxreflect.config.toml import validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import dump_line, read_json, read_rows, write_atomic
from mlxreflect.core.records import Problem, Sample, flat_from_row
from mlxreflect.data.rows import Row, read_file
from mlxreflect.evaluation.arms import open_arm, problems_of, sample_row
from mlxreflect.evaluation.evaluate import ProblemSet, finish
from mlxreflect.tasks import find_rules, get_task


def grade_file(
    task_name: str, path: Path, rules: str = "", tags: str = "think", style: str = "thinking"
) -> Iterator[dict[str, Any]]:
    """Grade the rows {"id", "response", …} of a JSONL file, one at a time.

    What is expected stands in the row: "gold" (for the task jsonl with "answer_type" and
    "choices"), or "numbers" and "target" for countdown. rules: a set of the task's. Yields {"id",
    "correct", "format_ok", "parsed", "reason"}, and "score" where the rules have one. Raises
    UserError naming file and line of a row that cannot be graded.
    """
    task = get_task(task_name)
    find_rules(task, rules)
    for row in read_file(Path(path)):
        name, response = field(row, "id"), field(row, "response")
        if not isinstance(response, str):
            raise UserError(f"{row.where}: response is no text", 'write "response": "…"')
        try:
            problem = task.from_row(row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error.message}", error.hint) from None
        _, grader = find_rules(task, rules, problem.fields.get("answer_type", ""))
        grade = grader(problem, response, tags, style)
        score = {} if grade.score is None else {"score": grade.score}
        yield {
            "id": name,
            "correct": grade.verdict.correct,
            "format_ok": grade.verdict.format_ok,
            "parsed": grade.parsed,
            "reason": grade.verdict.reason,
            **score,
        }


def field(row: Row, name: str) -> Any:
    if name not in row.values:
        raise UserError(
            f"{row.where}: no {name!r}; the row has: {', '.join(row.values) or 'nothing'}",
            'each row holds "id", "response" and what is expected, such as "gold"',
        )
    return row.values[name]


FILES = ("setup.json", "problems.jsonl", "samples.jsonl")
AGAIN = "give an evaluation's folder, or evaluate again: mlxreflect eval SPEC --model M --out DIR"


def rescore(folder: Path, rules: str = "", out: Path | None = None) -> dict[str, Any]:
    """Grades a folder's samples under named rules ("": the headline ones) into another folder.

    out: FOLDER/graded/RULES by default. The spec of the new folder names the rules, so that
    `compare` refuses to mix two sets of them. Returns its results, and in "changed" how many
    verdicts are others than before. Raises UserError for a folder that is no evaluation.
    """
    setup, problems, samples = read_whole(folder)
    spec = validate(EvalSpec, setup["spec"], folder / "setup.json")
    task = get_task(spec.task.name)
    name, grader = find_rules(task, rules, spec.task.answer_type)
    out = out or folder / "graded" / name
    if out.resolve() == folder.resolve():
        raise UserError(f"--out {out} is the evaluation itself", "give another --out")
    # As an evaluation records it: the headline's name is left out.
    headline, _ = find_rules(task, "", spec.task.answer_type)
    named = {} if name == headline else {"rules": name}
    setup["spec"] = {**{k: v for k, v in setup["spec"].items() if k != "rules"}, **named}
    shots = problems_of(folder / "shots.jsonl")
    asked = ProblemSet(task, spec, list(problems.values()), shots, [], name, grader)
    graded = [
        asked.grade(
            problems[s.problem_id], s.sample, s.text, s.token_ids, s.finish_reason, s.tokens
        )
        for s in samples
    ]
    open_arm(out, setup, asked.problems, shots)
    write_atomic(out / "samples.jsonl", "".join(dump_line(sample_row(s)) for s in graded))
    results = finish(out, setup, name, {})
    changed = sum(a.correct != b.correct for a, b in zip(samples, graded, strict=True))
    return {**results, "changed": changed, "out": str(out)}


def read_whole(folder: Path) -> tuple[dict[str, Any], dict[str, Problem], list[Sample]]:
    """Returns setup, problems by id and samples of an evaluation, less a torn last line."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder",
            "give an evaluation's folder, or a task and a file: mlxreflect grade gsm8k FILE",
        )
    for name in FILES:
        if not (folder / name).is_file():
            inside = next(iter(sorted(folder.glob("eval/*/samples.jsonl"))), None)
            hint = f"name one of its evaluations, such as {inside.parent}" if inside else AGAIN
            raise UserError(f"{folder}: no {name} in it", hint)
    setup = read_json(folder / "setup.json")
    if not isinstance(setup.get("spec"), dict):
        raise UserError(f"{folder / 'setup.json'}: no spec in it", AGAIN)
    problems = {problem.id: problem for problem in problems_of(folder / "problems.jsonl")}
    path = folder / "samples.jsonl"
    samples: list[Sample] = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            sample = flat_from_row(Sample, row)
        except TypeError as error:
            fault = f"{path}, row {number}: not a sample ({error})"
            raise UserError(fault, "restore that file") from None
        if sample.problem_id not in problems:
            fault = f"problem {sample.problem_id} is not in problems.jsonl"
            raise UserError(f"{path}, row {number}: {fault}", AGAIN)
        if not isinstance(sample.text, str):
            raise UserError(f"{path}, row {number}: text is no text", "restore that file")
        samples.append(sample)
    if not samples:
        raise UserError(f"{path}: no samples in it", "evaluate first; this one did not get far")
    return setup, problems, samples
