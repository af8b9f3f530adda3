"""Evaluation: the problems of a spec, answered by a generator, graded and counted.

There is one loop. A generator (see `generators`) gives the rows of chunk after chunk, each is
appended whole, and the caller stops when it has seen enough: `evaluate` after all problems, `quick`
when the evidence decides. In another batch a sequence's numbers round otherwise, and a tie may fall
the other way; because a chunk is always generated together, an evaluation that was killed and
continued gives the same bytes as one that was not.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Chunks
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from mlxreflect.config.fields import paths_from
from mlxreflect.config.schema import GYM, EvalSpec, Sampling, TaskConfig
from mlxreflect.config.toml import apply_settings, bundled, find_toml, read_toml, validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import (
    append_rows,
    convert_rows,
    dump_line,
    read_json,
    sha256,
    write_atomic,
)
from mlxreflect.core.records import Messages, Problem, Sample, flat_from_row, to_row
from mlxreflect.core.seeds import rng_for
from mlxreflect.core.ui import LiveBar, PlainBar
from mlxreflect.data.rows import read_file
from mlxreflect.evaluation.arms import (
    open_arm,
    problems_of,
    read_whole_results,
    short_hash,
    unique_rows,
    whole_chunks,
)
from mlxreflect.graders import Grader
from mlxreflect.graders.text import OPEN
from mlxreflect.stats import majority, mean_interval, pass_at_k
from mlxreflect.tasks import TASKS, find_rules, find_task, get_task
from mlxreflect.tasks.base import Task, ask, load_shots

Row = dict[str, Any]
Bar = LiveBar | PlainBar
Enough = Callable[[list[Row]], bool]
SILENT = PlainBar("", None, None)
MUCH = 0.05  # of the answers cut off: then a figure says more of max_new_tokens than of the model
FAILED = "error"  # finish reason of a call that was given up
FILES = ("setup.json", "problems.jsonl", "samples.jsonl")  # of an evaluation that is graded anew
AGAIN = "give an evaluation's folder, or evaluate again: mlxreflect eval SPEC --model M --out DIR"


@dataclass(frozen=True)
class ProblemSet:
    """The problems of a spec, as every model is asked them.

    shots: worked examples that stand before each problem. prompts: each problem's messages, or raw
    text to be completed. rules, grader: how answers are graded.
    """

    task: Task
    spec: EvalSpec
    problems: Sequence[Problem]
    shots: Sequence[Problem]
    prompts: Sequence[Messages | str]
    rules: str
    grader: Grader

    @property
    def total(self) -> int:
        """Returns how many samples there will be."""
        return len(self.problems) * self.spec.samples

    def grade(
        self,
        problem: Problem,
        index: int,
        text: str,
        token_ids: list[int],
        finish_reason: str | None,
        tokens: int | None = None,
    ) -> Sample:
        """Returns a graded sample. tokens: their number, where token_ids does not hold them."""
        prompt = self.spec.prompt
        grade = self.grader(problem, text, prompt.tags, prompt.style)
        return Sample(
            task=problem.task,
            problem_id=problem.id,
            sample=index,
            text=text,
            token_ids=token_ids,
            finish_reason=finish_reason,
            parsed=grade.parsed,
            correct=grade.verdict.correct,
            format_ok=grade.verdict.format_ok,
            score=grade.score,
            tokens=tokens,
        )


def problem_set(
    task: Task, spec: EvalSpec, problems: Sequence[Problem] | None = None
) -> ProblemSet:
    """Returns the spec's problems, or the given ones, ready to be asked. Raises UserError."""
    rules, grader = find_rules(task, spec.rules, spec.task.answer_type)
    shots = load_shots(task, spec)
    problems = eval_problems(task, spec) if problems is None else problems
    prompts = [ask(task, problem, spec, shots) for problem in problems]
    return ProblemSet(task, spec, problems, shots, prompts, rules, grader)


def eval_problems(task: Task, spec: EvalSpec) -> list[Problem]:
    """Returns the spec's part of the task, in an order that its seed shuffles, cut to its limit.

    The held-out problems of a generated task are the same for every seed, in another order.
    """
    config = spec.task
    if task.generated and not config.limit and spec.limit:
        config = config.model_copy(update={"limit": spec.limit})
    problems = task.load(config, spec.part, spec.seed)
    rng_for("eval", spec.seed).shuffle(problems)
    return problems[: spec.limit] if spec.limit else problems


def describe_setup(generator: "Generator") -> dict[str, Any]:
    """Returns what must be the same for two evaluations to be compared, and what was evaluated.

    Prompts are as they were before a model's own template and tokenizer, so that different models
    can be compared.
    """
    asked, spec = generator.asked, generator.asked.spec
    told = spec.model_dump(
        exclude={"task": {"source"}, "prompt": {"file"}, "quick": True, "name": True}
    )
    if spec.task.grader:  # the same function of the same file, wherever that stands
        told["task"]["grader"] = Path(spec.task.grader).name
    else:
        del told["task"]["grader"], told["task"]["grader_sha256"]
    if not spec.prompt.templates:
        del told["prompt"]["templates"]
    for key in (
        "form", "shots", "stop", "rules", "chain", "judge", "thinking", "template",
        *Sampling.model_fields,
    ):  # fmt: skip
        if is_usual(spec, key):
            del told[key]  # as in evaluations made before there was such a key
    keys = ("temperature", "top_p", "max_new_tokens", "seed", "batch", "samples")
    return {
        "prompt_hash": short_hash([[p.id for p in asked.problems], asked.prompts]),
        "decoding": {**{key: getattr(spec, key) for key in keys}, **spec.changed()},
        "spec": told,
        "model": generator.name,
        "adapter": generator.adapter,
        **generator.setup(),
    }


def is_usual(spec: EvalSpec, key: str) -> bool:
    """Tells if a key of a spec is as it is by default."""
    return bool(getattr(spec, key) == EvalSpec.model_fields[key].default)


class Generator(ABC):
    """Answers problems, a chunk at a time.

    name: of the model. adapter: what its adapter is known by, or "". file: where rows are appended.
    size: rows of a chunk; the last one may be shorter. total: rows of all problems. notes: lines
    for a person, once it has answered.
    """

    file = "samples.jsonl"
    size = 1

    def __init__(self, asked: ProblemSet, name: str = "", adapter: str = "") -> None:
        self.asked, self.name, self.adapter, self.total = asked, name, adapter, asked.total
        self.notes: list[str] = []

    @abstractmethod
    def setup(self) -> dict[str, Any]:
        """Returns what else must be the same for an evaluation to be continued."""

    @abstractmethod
    def chunks(self, first: int, out: Path, bar: Bar) -> Chunks[list[Row]]:
        """Yields the rows of each chunk from row `first` on. out: the arm's folder."""

    def finish(self, out: Path) -> dict[str, Any]:
        """Writes what follows from the rows; returns what the results say of it."""
        return {}


def answer_chunks(out: Path, generator: Generator, bar: Bar) -> Chunks[list[Row]]:
    """Yields the rows of each chunk: those that are in the folder, then new ones, once appended."""
    path = out / generator.file
    kept = whole_chunks(path, generator.size, generator.total)
    known = islice(unique_rows(path), min(kept, generator.total)) if kept else iter(())
    while rows := list(islice(known, generator.size)):
        bar.advance(len(rows))
        yield rows
    if kept < generator.total:
        with closing(generator.chunks(kept, out, bar)) as chunks:
            for rows in chunks:
                append_rows(path, rows)
                yield rows


def evaluate(
    generator: Generator, out: Path, bar: Bar = SILENT, enough: Enough = lambda rows: False
) -> dict[str, Any]:
    """Answers and grades what is not yet in `out`; returns (and writes) the results.

    enough: is shown each chunk's rows in their order; true ends it there. Raises UserError where
    `out` holds another evaluation, naming the key that differs.
    """
    asked, spec = generator.asked, generator.asked.spec
    setup = describe_setup(generator)
    with open_arm(out, setup, asked.problems, asked.shots):
        read_whole_results(out)
        with closing(answer_chunks(out, generator, bar)) as chunks:
            for rows in chunks:
                if enough(rows):
                    break
        more = {"eval": spec.name or spec.task.name, **generator.finish(out)}
        setup.pop("token_hash", None)  # of one tokenizer, so nothing to compare models by
        return finish(out, setup, asked.rules, more)


def find_spec(name: str, limit: int, source: str, settings: Sequence[str]) -> EvalSpec:
    """Returns a bundled spec, a file's, or a bare task's, with the command line's settings on top.

    limit, source: in place of the spec's; 0 and "" leave them. Raises UserError.
    """
    tree: dict[str, Any]
    if name.startswith(GYM) or (name in TASKS and name not in bundled("evals")):
        path, tree = Path(name), {"task": {"name": name}}
    else:
        path = find_toml(name, "evals")
        tree = read_toml(path)
        paths_from(path, tree, EvalSpec)
    if source and isinstance(asked := tree.get("task"), dict):  # else `validate` says so
        asked["source"], tree["part"] = source, "all"
    if limit:
        tree["limit"] = limit
    tree.setdefault("name", path.stem)
    tree = apply_settings(tree, settings)
    from mlxreflect.config.recipe import check_task, fetch_digests, fetch_templates

    fetch_templates(tree, path)
    fetch_digests(tree, path)
    spec = validate(EvalSpec, tree, path, settings)
    check_task(spec.task, path)
    return spec


# ---- figures -------------------------------------------------------------------------------------


def finish(out: Path, setup: dict[str, Any], rules: str, more: dict[str, Any]) -> dict[str, Any]:
    """Writes and returns the results of an arm's samples, with the setup and `more` in them."""
    digests = {file.name: sha256(file) for file in sorted(out.glob("*.jsonl"))}
    figures = summarise(out / "samples.jsonl")
    if rules == OPEN:  # nobody knows what is right
        figures |= dict.fromkeys(("accuracy", "ci_low", "ci_high", "strict_accuracy"))
        more = {**more, **({"chain": {**more["chain"], "acc_at": []}} if "chain" in more else {})}
    results = {**figures, "rules": rules, **setup, **more, "sha256": digests}
    write_atomic(out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def summarise(path: Path) -> dict[str, Any]:
    """Returns the keys of results.json that follow from the samples alone.

    What could not be parsed is wrong and stays in the denominator. With several samples a problem,
    problems are the units: accuracy is the mean over problems of the mean over samples (avg@k), and
    there are pass_at and maj_at. failed: only where calls were given up.
    """
    samples: list[Sample] = [flat_from_row(Sample, row) for row in unique_rows(path)]
    problems = [list(group) for _, group in groupby(samples, key=lambda s: s.problem_id)]
    means = [fmean(s.correct for s in problem) for problem in problems]
    each = len(problems[0])
    right = sum(s.correct for s in samples)
    low, high = mean_interval(means, single=each == 1)
    failed = sum(s.finish_reason == FAILED for s in samples)
    scores = [s.score for s in samples if s.score is not None]
    # Of those whose number is known: a server may not count them.
    tokens = [len(s.token_ids) if s.tokens is None else s.tokens for s in samples
              if s.token_ids or s.tokens is not None]  # fmt: skip
    return {
        "schema": "results/1", "task": samples[0].task, "n": len(problems), "samples": each,
        "accuracy": right / len(samples), "ci_low": low, "ci_high": high,
        "strict_accuracy": fmean(s.correct and s.format_ok for s in samples),
        "format_rate": fmean(s.format_ok for s in samples),
        "parse_failures": sum(s.parsed is None for s in samples) - failed,
        "truncated": sum(s.finish_reason == "length" for s in samples),
        "tokens_mean": fmean(tokens) if tokens else None,
        **({"f1": sum(scores) / len(samples)} if scores else {}),
        **({"failed": failed} if failed else {}),
        **(several(problems) if each > 1 else {}),
    }  # fmt: skip


def several(problems: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    """Returns pass@k for k = 1, 2, 4, … and all samples, and maj@k of all; means over problems."""
    n = len(problems[0])
    ks = [*(2**i for i in range(n.bit_length()) if 2**i < n), n]
    right = [sum(s.correct for s in problem) for problem in problems]
    voted = [majority([s.parsed for s in p], [s.correct for s in p]) for p in problems]
    return {
        "pass_at": {str(k): fmean(pass_at_k(n, c, k) for c in right) for k in ks},
        "maj_at": {str(n): fmean(voted)},
    }


def warnings(results: dict[str, Any]) -> list[str]:
    """Returns lines that a person should read before believing the figures."""
    total, cut = results["n"] * results["samples"], results["truncated"]
    most, lines = results["decoding"]["max_new_tokens"], []
    if cut > MUCH * total:
        lines.append(
            f"warning: {cut} of {total} answers ({cut / total:.1%}) were cut off at "
            f"max_new_tokens = {most}; how they would have ended is not known: raise max_new_tokens"
        )
    if failed := results.get("failed"):
        lines.append(f"warning: {failed} of {total} answers are failed calls, counted as wrong")
    return lines


# ---- graded without a model ----------------------------------------------------------------------


def grade_file(task_name: str, path: Path, rules: str = "") -> Iterator[dict[str, Any]]:
    """Grade the rows {"id", "response", …} of a JSONL file, one at a time.

    What is expected stands in the row: "gold" (for the task jsonl with "answer_type" and
    "choices"), or "numbers" and "target" for countdown. rules: a set of the task's. Yields {"id",
    "correct", "format_ok", "parsed", "reason"}, and "score" where the rules have one. Raises
    UserError naming file and line of a row that cannot be graded.
    """
    task, rules = task_of_rules(TaskConfig(name=task_name), rules)
    find_rules(task, rules)
    for row in read_file(path):
        for key in ("id", "response"):
            if key not in row.values:
                raise UserError(
                    f"{row.where}: no {key!r}; the row has: {', '.join(row.values) or 'nothing'}",
                    'each row holds "id", "response" and what is expected, such as "gold"',
                )
        response = row.values["response"]
        if not isinstance(response, str):
            raise UserError(f"{row.where}: response is no text", 'write "response": "…"')
        try:
            problem = task.from_row(row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error.message}", error.hint) from None
        _, grader = find_rules(task, rules, problem.fields.get("answer_type", ""))
        grade = grader(problem, response, "think", "thinking")
        verdict = grade.verdict
        yield {
            "id": row.values["id"], "correct": verdict.correct, "format_ok": verdict.format_ok,
            "parsed": grade.parsed, "reason": verdict.reason,
            **({} if grade.score is None else {"score": grade.score}),
        }  # fmt: skip


def task_of_rules(config: TaskConfig, rules: str) -> tuple[Task, str]:
    """Returns a task and the name of its rules; FILE.py:FUNCTION is a grader of one's own."""
    if ":" not in rules:
        return get_task(config.name), rules
    return find_task(config.model_copy(update={"grader": rules})), ""


def rescore(folder: Path, rules: str = "", out: Path | None = None) -> dict[str, Any]:
    """Grades a folder's samples under named rules ("": the headline ones) into another folder.

    out: FOLDER/graded/RULES by default. The spec of the new folder names the rules, so that
    `compare` refuses to mix two sets of them. Returns its results, and in "changed" how many
    verdicts are others than before. Raises UserError for a folder that is no evaluation.
    """
    setup, problems, samples = read_whole(folder)
    spec = validate(EvalSpec, setup["spec"], folder / "setup.json")
    # A grader of one's own that the folder names is not run: it may be anyone's.
    config = spec.task.model_copy(update={"grader": "", "grader_sha256": ""})
    own = rules if ":" in rules else ""
    task, rules = task_of_rules(config, rules)
    name, grader = find_rules(task, rules, spec.task.answer_type)
    out = out or folder / "graded" / name.replace(":", "-")
    if out.resolve() == folder.resolve():
        raise UserError(f"--out {out} is the evaluation itself", "give another --out")
    # As an evaluation records it: the headline's name is left out.
    headline, _ = find_rules(task, "", spec.task.answer_type)
    named = {} if name == headline else {"rules": name}
    setup["spec"] = {**{k: v for k, v in setup["spec"].items() if k != "rules"}, **named}
    kept = {k: v for k, v in setup["spec"]["task"].items() if not k.startswith("grader")}
    if own:
        kept |= {"grader": name, "grader_sha256": sha256(Path(own.rpartition(":")[0]).expanduser())}
    setup["spec"]["task"] = kept
    shots = problems_of(folder / "shots.jsonl")
    asked = ProblemSet(task, spec, list(problems.values()), shots, [], name, grader)
    graded = [
        asked.grade(
            problems[s.problem_id], s.sample, s.text, s.token_ids, s.finish_reason, s.tokens
        )
        for s in samples
    ]
    with open_arm(out, setup, asked.problems, shots):
        write_atomic(out / "samples.jsonl", "".join(dump_line(to_row(s)) for s in graded))
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

    def sample_of(row: dict[str, Any]) -> Sample:
        sample: Sample = flat_from_row(Sample, row)
        if sample.problem_id not in problems:
            raise TypeError(f"problem {sample.problem_id} is not in problems.jsonl")
        if not isinstance(sample.text, str):
            raise TypeError("text is no text")
        return sample

    path = folder / "samples.jsonl"
    samples = list(convert_rows(path, sample_of, "a sample", unique_rows))
    if not samples:
        raise UserError(f"{path}: no samples in it", "evaluate first; this one did not get far")
    return setup, problems, samples
