"""An arm: one evaluation as its folder holds it. Every export is made of arms and nothing else."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import ValidationError

from mlxreflect.config.schema import EvalSpec
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json, read_rows
from mlxreflect.core.records import Messages, Problem, Sample, flat_from_row
from mlxreflect.evaluation.arms import arm_order, refuse_quick
from mlxreflect.stats import mean_interval, wilson
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.base import ask


@dataclass(frozen=True)
class Question:
    """A question and its samples in their order. problem: None in folders that kept only ids."""

    id: str
    problem: Problem | None
    samples: list[Sample]

    @property
    def score(self) -> float:
        """The share of its samples that are right."""
        return fmean(sample.correct for sample in self.samples)

    @property
    def strict(self) -> float:
        """The share of its samples that are right in the format asked for."""
        return fmean(sample.correct and sample.format_ok for sample in self.samples)


@dataclass(frozen=True, eq=False)
class Arm:
    """name: what tells it from the others. results, setup: the files of that name.

    shots: the worked examples before each question.
    started, ended: seconds since 1970, when the folder was begun and last answered into.
    """

    name: str
    path: Path
    results: dict[str, Any]
    setup: dict[str, Any]
    questions: list[Question]
    shots: list[Problem]
    started: float
    ended: float

    @property
    def task(self) -> str:
        return str(self.results["task"])

    @property
    def samples(self) -> int:
        """Samples of each question."""
        return len(self.questions[0].samples)

    @property
    def model(self) -> str:
        return str(self.setup.get("model", "unknown"))

    @property
    def adapter(self) -> str:
        return str(self.setup.get("adapter", ""))

    @cached_property
    def spec(self) -> EvalSpec | None:
        """What was asked and how; None where another version wrote it."""
        try:
            return EvalSpec.model_validate(self.setup.get("spec"))
        except ValidationError:
            return None


def tokens_of(sample: Sample) -> int:
    """How many tokens it has; of a model behind a server they are counted, but not there."""
    return len(sample.token_ids) if sample.tokens is None else sample.tokens


def mean_error(scores: Sequence[float]) -> float | None:
    """Standard error of the mean of questions' scores; None for a single one."""
    return stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None


def interval(questions: Sequence[Question]) -> tuple[float, float, float]:
    """(accuracy, low, high): Wilson's interval, or with several samples the clustered one."""
    scores = [question.score for question in questions]
    if all(len(question.samples) == 1 for question in questions):
        return fmean(scores), *wilson(round(sum(scores)), len(scores))
    return fmean(scores), *mean_interval(scores)


def arm_interval(arm: Arm) -> tuple[float, float, float]:
    """(accuracy, low, high) of an arm: the interval that the evaluation wrote, if it did."""
    mean, low, high = interval(arm.questions)
    return mean, float(arm.results.get("ci_low", low)), float(arm.results.get("ci_high", high))


def asked(arm: Arm, problem: Problem) -> Messages | str:
    """The prompt of a question, as the model got it before its chat template."""
    task = TASKS[problem.task]
    return task.show(problem) if arm.spec is None else ask(task, problem, arm.spec, arm.shots)


def expected(problem: Problem | None) -> str:
    """The right answer; of a Countdown problem the target, which many answers reach."""
    if problem is None:
        return ""
    return str(problem.fields.get("target", "")) if problem.gold is None else problem.gold


# ---- finding and reading folders -----------------------------------------------------------------


def find_arms(folders: Sequence[Path]) -> list[Path]:
    """The arm folders among the given ones: themselves, those in a run's `eval`, those inside.

    Inside may be a folder an arm, or a folder an arm with one a task in it. What others are
    compared with comes first: without an adapter, named base, then by name.
    Raises UserError for a folder with no evaluation in it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        inside = folder / "eval" if (folder / "eval").is_dir() else folder
        arms = [folder] if is_arm(folder) else filter(is_arm, children(inside))
        deeper = (arm for child in children(inside) for arm in filter(is_arm, children(child)))
        ranked = sorted(arms, key=rank) or sorted(deeper, key=rank)
        if not ranked:
            refuse_quick(folder)
            raise UserError(
                f"{folder}: no evaluation in it",
                "give folders that `mlxreflect eval` or `run` made, or a folder of such",
            )
        found |= {arm.resolve(): arm for arm in ranked}
    return list(found.values())


def children(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def is_arm(folder: Path) -> bool:
    return (folder / "samples.jsonl").is_file()


def rank(folder: Path) -> tuple[Any, ...]:
    results = folder / "results.json"
    adapted = results.is_file() and bool(read_json(results).get("adapter"))
    return adapted, folder.name != "base", arm_order(folder.name), str(folder)


def load_arms(folders: Sequence[Path]) -> list[Arm]:
    """The arms of find_arms, each by a name that no other arm of its task has."""
    arms = [load_arm(path) for path in find_arms(folders)]
    names: dict[int, str] = {}
    for task in {arm.task for arm in arms}:
        mine = [i for i, arm in enumerate(arms) if arm.task == task]
        names |= zip(mine, label([arms[i].path for i in mine]), strict=True)
    return [replace(arm, name=names[i]) for i, arm in enumerate(arms)]


def label(paths: Sequence[Path]) -> list[str]:
    """The shortest names that differ: of the folders, of those above, or of both together."""
    parts = [path.resolve().parts[::-1] for path in paths]
    depths = range(min(map(len, parts)))
    single = ([whole[depth] for whole in parts] for depth in depths)
    joined = (["/".join(whole[depth::-1]) for whole in parts] for depth in depths)
    names = (names for names in (*single, *joined) if len(set(names)) == len(names))
    return next(names, list(map(str, paths)))


def load_arm(path: Path) -> Arm:
    """Raises UserError for a folder that is not finished, or not an evaluation's."""
    if not (path / "results.json").is_file():
        raise UserError(
            f"{path}: its evaluation is not finished (no results.json)",
            "give the same eval or resume command again, it goes on where it stopped",
        )
    results, setup = read_json(path / "results.json"), path / "setup.json"
    return Arm(
        name=path.resolve().name,
        path=path,
        results={"task": "", **results},
        setup=read_json(setup) if setup.is_file() else results,
        questions=read_questions(path),
        shots=list(records(path / "shots.jsonl", Problem)),
        started=(setup if setup.is_file() else path / "samples.jsonl").stat().st_mtime,
        ended=(path / "samples.jsonl").stat().st_mtime,
    )


def read_questions(path: Path) -> list[Question]:
    """The questions in the order they were asked in."""
    problems = {problem.id: problem for problem in records(path / "problems.jsonl", Problem)}
    samples: dict[str, list[Sample]] = {}
    for sample in records(path / "samples.jsonl", Sample):
        samples.setdefault(sample.problem_id, []).append(sample)
    if not samples:
        raise UserError(f"{path / 'samples.jsonl'}: no samples in it", "evaluate first")
    order = {id_: i for i, id_ in enumerate(problems)}
    ids = sorted(samples, key=lambda id_: order.get(id_, len(order)))
    return [
        Question(id_, problems.get(id_), sorted(samples[id_], key=lambda s: s.sample))
        for id_ in ids
    ]


def records(path: Path, kind: type) -> Iterator[Any]:
    for number, row in enumerate(read_rows(path) if path.is_file() else (), 1):
        try:
            yield flat_from_row(kind, readable(row))
        except TypeError as error:
            raise UserError(
                f"{path}, row {number}: not a {kind.__name__.lower()} ({error})",
                "correct or delete that line",
            ) from None


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """Lone surrogates, which UTF-8 cannot hold and other readers refuse, become U+FFFD."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        row = json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    return row
