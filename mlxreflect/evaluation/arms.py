"""Evaluated arms: the one place that reads and writes their folders.

An arm is a model that answered the problems of a task: samples.jsonl, and beside it problems.jsonl,
shots.jsonl, setup.json (what was asked, and how) and results.json (the figures).
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from mlxreflect.config.schema import EvalSpec
from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import (
    convert_rows,
    dump_line,
    locked,
    read_json,
    read_rows,
    sha256,
    write_atomic,
)
from mlxreflect.core.records import Problem, Sample, fits, flat_from_row, to_row
from mlxreflect.graders.text import OPEN
from mlxreflect.stats import mean_interval

COUNTS = re.compile(r"^[0-9]+/[0-9]+$|\.json$")  # what --unpaired takes
ENDS = ("ci_low", "ci_high")
LONGEST_NAME = 60  # characters of an arm's folder
# Columns of a sample that a bare file may lack.
ABSENT = {"task": "", "sample": 0, "text": "", "token_ids": [], "finish_reason": None,
          "parsed": None, "format_ok": False}  # fmt: skip


@dataclass(frozen=True)
class ProblemSamples:
    """A problem's samples in their order. problem: None where the folder kept only its id."""

    id: str
    problem: Problem | None
    samples: list[Sample]

    @property
    def right(self) -> list[bool]:
        return [sample.correct for sample in self.samples]

    @property
    def score(self) -> float:
        """The share of its samples that are right."""
        return fmean(self.right)

    @property
    def strict(self) -> float:
        """The share of its samples that are right in the format asked for."""
        return fmean(sample.correct and sample.format_ok for sample in self.samples)

    @property
    def parsed(self) -> list[str | None]:
        return [sample.parsed for sample in self.samples]


@dataclass(frozen=True, eq=False)
class Arm:
    """One model on one task.

    name: what tells it from the others. part: the task's name, or that of its folder where the
    folder of an arm holds one a task. results, setup: the files of that name, {} without. shots:
    the worked examples before each problem. problems: by id, in the order they were asked in.
    """

    name: str
    task: str
    part: str
    path: Path
    file: Path
    results: dict[str, Any]
    setup: dict[str, Any]
    problems: dict[str, ProblemSamples]
    shots: list[Problem]

    @property
    def samples(self) -> int:
        """Samples of each problem; the reader has seen to it that all have as many."""
        return len(next(iter(self.problems.values())).samples)

    @cached_property
    def open(self) -> bool:
        """Tells if nothing says which of its answers are right: a critic judges two arms'."""
        asked = (one.problem for one in self.problems.values())
        return any(one is not None and one.fields.get("answer_type") == OPEN for one in asked)

    @property
    def model(self) -> str:
        return str(self.setup.get("model", "unknown"))

    @property
    def adapter(self) -> str:
        return str(self.setup.get("adapter", ""))

    @cached_property
    def spec(self) -> EvalSpec | None:
        """The evaluation; None where another version wrote it."""
        try:
            return EvalSpec.model_validate(self.setup.get("spec"))
        except ValidationError:
            return None

    @property
    def accuracy(self) -> tuple[float, float, float]:
        """(share of right samples, low, high): the interval that the evaluation wrote, if any."""
        mean, *ends = interval([*self.problems.values()])
        low, high = (float(self.results.get(k, v)) for k, v in zip(ENDS, ends, strict=True))
        return mean, low, high


def interval(problems: Sequence[ProblemSamples]) -> tuple[float, float, float]:
    """(accuracy, low, high): Wilson's interval, or with several samples the clustered one."""
    scores = [problem.score for problem in problems]
    single = all(len(problem.samples) == 1 for problem in problems)
    return fmean(scores), *mean_interval(scores, single=single)


def by_task(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    grouped: dict[str, list[Arm]] = {}
    for arm in arms:
        grouped.setdefault(arm.part, []).append(arm)
    return grouped


# ---- finding arms --------------------------------------------------------------------------------


def find_arms(folder: Path) -> list[Path]:
    """The folders of arms in a run or a folder, the baseline first.

    Inside may stand a folder an arm, or a folder an arm with one a task in it. The baseline is
    without an adapter and named base; see `arm_order` for the others.
    """
    folder = folder / "eval" if (folder / "eval").is_dir() else folder
    refuse_quick(folder)
    inside = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []

    def rank(path: Path) -> tuple[Any, ...]:
        results = read_results(sample_files(path)[0].parent / "results.json")
        return bool(results and results.get("adapter")), *arm_order(path.name)

    return sorted(filter(sample_files, inside), key=rank)


def arm_order(name: str) -> tuple[int, str, int, str]:
    """Returns the place of a run's arm in a table: base, the warm-up, rounds by number, trained."""
    plain = name.removesuffix("-direct")
    stem, _, number = plain.rpartition("-")
    counted = (stem, int(number)) if number.isdecimal() else (plain, 0)
    return {"base": 0, "warm-up": 1, "trained": 3}.get(plain, 2), *counted, name


def sample_files(path: Path) -> list[Path]:
    """The samples files of an arm: the folder's own, else those of its subfolders; a bare file."""
    if not path.is_dir():
        return [path] if path.is_file() and path.suffix != ".json" else []
    own = path / "samples.jsonl"
    return [own] if own.is_file() else sorted(path.glob("*/samples.jsonl"))


def refuse_quick(path: Path) -> None:
    if path.name == "quick.jsonl" or (path.is_dir() and (path / "quick.jsonl").is_file()):
        raise quick_fault(path)


def quick_fault(path: Path) -> UserError:
    return UserError(
        f"{path} is of a quick evaluation, which stopped as soon as it could decide: its answers "
        "overstate the difference, and no fixed-size test holds for them",
        "read its own verdict in quick.json, or evaluate both on all problems without --quick",
    )


# ---- reading arms --------------------------------------------------------------------------------


def load_arms(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Arm]:
    """The arms of these folders: each an arm's own, a run's, or one of several arms.

    names: of the folders, if given. Raises UserError for a folder without a finished evaluation.
    """
    check_arm_names(names, len(folders))
    found: dict[Path, Path] = {}
    called: dict[Path, str] = {}
    for folder, name in zip_longest(folders, names, fillvalue=""):
        folder = Path(folder)
        own = folder.is_file() or (folder / "samples.jsonl").is_file()
        paths = [folder] if own else find_arms(folder)
        if not paths:
            raise UserError(
                f"{folder}: {'no evaluation in it' if folder.is_dir() else 'no such folder'}",
                "give folders that `mlxreflect eval` or `run` made: `mlxreflect runs` lists them",
            )
        found |= {path.resolve(): path for path in paths}
        called |= {path: name if own else f"{name}/{path.name}" for path in paths}
    read = read_all([*found.values()], [called[path] for path in found.values()] if names else [])
    return [arm for arms in read for arm in arms]


def check_arm_names(names: Sequence[str], count: int) -> None:
    """Raises UserError where names are not one for each of so many folders, and no two alike."""
    if names and len(set(names)) != count:
        raise UserError(
            f"--name {names[0]}: {len(set(names))} names for {count} folders",
            "give one --name for each, in their order, or none",
        )


def read_all(paths: Sequence[Path], given: Sequence[str] = ()) -> list[list[Arm]]:
    """Of each path its arms, one a part, by a name that no other arm of that part has.

    given: names to call them by.
    """
    read = [read_arm(path) for path in paths]
    if given:
        named = zip(given, read, strict=True)
        return [[replace(arm, name=name) for arm in arms] for name, arms in named]
    owners = [(path, arm.part) for path, arms in zip(paths, read, strict=True) for arm in arms]
    names: dict[tuple[Path, str], str] = {}
    for part in {part for _, part in owners}:
        mine = [path for path, of in owners if of == part]
        names |= zip(((path, part) for path in mine), distinct_names(mine), strict=True)
    return [
        [replace(arm, name=names[path, arm.part]) for arm in arms]
        for path, arms in zip(paths, read, strict=True)
    ]


def pair_tasks(
    a: Sequence[Arm], b: Sequence[Arm], *, shared: bool = False
) -> dict[str, tuple[Arm, Arm]]:
    """Task → either one's arm of it, in the order of a.

    a, b: of each folder its arms, one a task. shared: what only one has is left out. Raises
    UserError where they are of other tasks.
    """
    if len(a) == len(b) == 1:
        return {a[0].task: (a[0], b[0])}
    left, right = ({arm.part: arm for arm in group} for group in (a, b))
    odd = sorted(set(left) ^ set(right))
    if odd and not (shared and set(left) & set(right)):
        only = a if odd[0] in left else b
        place = only[0].path.parent if len({arm.path for arm in only}) > 1 else only[0].path
        raise UserError(
            f"not the same tasks: {odd[0] or 'one without a name'} is only in {place}",
            "evaluate all arms on the same tasks, or name the folders of one task",
        )
    return {part: (left[part], right[part]) for part in left if part in right}


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The shortest names that differ: of the folders, of those above, or of both together.

    A run's own folder "eval" is in all of them, and so in no name.
    """
    parts: list[tuple[str, ...]] = []
    for path in map(Path.resolve, paths):
        if path.is_file():
            path = path.parent if path.stem == "samples" else path.with_suffix("")
        parts.append(tuple(part for part in path.parts[::-1] if part != "eval"))
    depths = range(min(map(len, parts)))
    single = ([whole[depth] for whole in parts] for depth in depths)
    joined = (["/".join(whole[depth::-1]) for whole in parts] for depth in depths)
    distinct = (names for names in (*single, *joined) if len(set(names)) == len(names))
    names = next(distinct, list(map(str, paths)))
    # Of the folders of runs, recipe--model--time, one part may do.
    split = [name.split("--") for name in names]
    if {3} == {*map(len, split)}:
        names = next((list(p) for p in zip(*split, strict=True) if len({*p}) == len(p)), names)
    return names


def read_arm(path: Path) -> list[Arm]:
    """An arm's folder, a folder of several (one a task), or a bare file of samples, by task.

    Raises UserError for what is no evaluation, or not a finished one.
    """
    refuse_quick(path)
    files = sample_files(path)
    if not files:
        hint = "give an evaluation's folder, or a JSONL file of its samples"
        if (path / "eval").is_dir():
            hint = f"name one of its evaluations, such as {path / 'eval' / 'base'}"
        elif (path / "results.json").is_file() or COUNTS.search(str(path)):
            hint += "; counts and results without answers: mlxreflect compare --unpaired A B"
        if path.is_file():
            raise UserError(f"{path}: not a JSONL file of samples", hint)
        missing = path / "samples.jsonl" if path.is_dir() else path
        raise UserError(f"{missing}: no such file", hint)
    arms = [arm for file in files for arm in read_tasks(file, path)]
    seen: dict[tuple[str, frozenset[str], str], Arm] = {}
    for arm in arms:  # the same problems may be asked in several ways, as in 5 shots and in none
        asked = json.dumps([arm.setup.get(key) for key in ("spec", "prompt_hash")])
        other = seen.setdefault((arm.task, frozenset(arm.problems), asked), arm)
        if other is not arm:
            raise UserError(
                f"{path} holds two evaluations of the same problems: {other.path.name} and "
                f"{arm.path.name}",
                f"compare those: mlxreflect compare {path}; or name one of them",
            )
    return arms


def read_tasks(file: Path, given: Path) -> Iterator[Arm]:
    """The arms that a samples file holds, one a task. given: what was named, the file or a folder.

    A bare file tells nothing of its setup: another may have been copied to where it stands.
    """
    folder, whole = file.parent, given.is_dir()
    results = read_whole_results(folder) if whole else None
    setup = read_results(folder / "setup.json") if whole else None
    if results is None and setup is not None:
        raise UserError(
            f"{folder} is an evaluation that is not finished",
            "give the command that began it again; it goes on where it stopped",
        )
    samples = read_samples(file)
    known = whole or file.name == "samples.jsonl"
    problems = {p.id: p for p in problems_of(folder / "problems.jsonl")} if known else {}
    order = {id_: i for i, id_ in enumerate(problems)}
    for task in dict.fromkeys(task for task, _ in samples):
        ids = [id_ for of, id_ in samples if of == task]
        ids.sort(key=lambda id_: order.get(id_, len(order)))
        yield Arm(
            name="",
            task=task,
            part=folder.name if whole and folder != given else task,
            path=folder if whole else file,
            file=file,
            results=results or {},
            setup=setup or results or {},
            problems={
                id_: ProblemSamples(id_, problems.get(id_), samples[task, id_]) for id_ in ids
            },
            shots=problems_of(folder / "shots.jsonl") if whole else [],
        )


def read_samples(path: Path) -> dict[tuple[str, str], list[Sample]]:
    """(task, problem id) → its samples by index; each problem of a task has equally many."""
    found: dict[tuple[str, str], dict[int, Sample]] = {}
    most: Counter[str] = Counter()
    for sample in convert_rows(path, partial(as_sample, path), "a sample", unique_rows):
        mine = found.setdefault((sample.task, sample.problem_id), {})
        mine[sample.sample] = sample
        most[sample.task] = max(most[sample.task], len(mine))
    if not found:
        raise UserError(f"{path}: no samples in it", "evaluate first; this one did not get far")
    for (task, problem), samples in found.items():
        if len(samples) < most[task]:
            raise UserError(
                f"{path}: problem {problem} has {len(samples)} samples, others have {most[task]}",
                "finish that evaluation first",
            )
    return {key: [samples[i] for i in sorted(samples)] for key, samples in found.items()}


def unique_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of samples or chains. Raises UserError where two are of one sample."""
    seen: set[str] = set()
    for row in read_rows(path):
        problem = row.get("problem_id") or row.get("problem", {}).get("id")  # of a chain: inside
        sample = repr((row.get("arm"), row.get("task"), problem, row.get("sample", 0)))
        if sample in seen:
            raise UserError(
                f"{path}: problem {problem} has sample {row.get('sample', 0)} twice",
                "delete what stands there twice, or evaluate again into another folder",
            )
        seen.add(sample)
        yield row


def problems_of(path: Path) -> list[Problem]:
    return list(convert_rows(path, as_problem, "a problem"))


def as_problem(row: dict[str, Any]) -> Problem:
    """Returns the problem of a row. Raises TypeError for what is none."""
    row = readable(row)
    if not fits(Problem)(row):
        raise TypeError("a column is missing, or holds another kind of value")
    problem: Problem = flat_from_row(Problem, row)
    return problem


def as_sample(path: Path, row: dict[str, Any]) -> Sample:
    """Returns the sample of a row, its tokens only counted. Raises TypeError for what is none."""
    if row.get("schema") == "quick-sample/1":
        raise quick_fault(path)
    row = readable(row)
    row = {**ABSENT, **row}
    row["parsed"] = None if row["parsed"] is None else str(row["parsed"])
    if not fits(Sample)(row):
        raise TypeError("a column is missing, or holds another kind of value")
    sample: Sample = flat_from_row(Sample, row)
    tokens = len(sample.token_ids) if sample.tokens is None else sample.tokens
    return replace(sample, token_ids=[], tokens=tokens)


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """Lone surrogates, which UTF-8 cannot hold and other readers refuse, become U+FFFD."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        row = json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    return row


def read_results(path: Path) -> dict[str, Any] | None:
    """The object in a results.json or comparison.json; None where there is no such file."""
    return read_json(path) if path.is_file() else None


def read_whole_results(folder: Path) -> dict[str, Any] | None:
    """results.json of an arm. Raises UserError where the rows are not those that it is of."""
    results = read_results(folder / "results.json")
    for name, digest in (results or {}).get("sha256", {}).items():
        if sha256(folder / name) != digest:
            raise UserError(
                f"{folder / name} is damaged: it is not as it was when results.json was written",
                f"restore that file, or delete {folder} and evaluate again",
            )
    return results


def read_arms(run_dir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """results.json of a run's arms by evaluation, as far as they were evaluated.

    The headline's arms are the first, by the name "" where the run has no other evaluation; of each
    base is the first and trained the last.
    """
    order = (read_results(run_dir / "comparisons.json") or {}).get("tasks", [])
    alone = sorted(run_dir.glob("eval/*/results.json"))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for file in alone or sorted(run_dir.glob("eval/*/*/results.json")):
        arm, name = (file.parent, "") if alone else (file.parent.parent, file.parent.name)
        results = read_results(file)
        if results and "accuracy" in results:
            found.setdefault(name, {})[arm.name] = results
    return {
        name: {arm: found[name][arm] for arm in sorted(found[name], key=arm_order)}
        for name in sorted(found, key=lambda name: (*order, name).index(name))
    }


# ---- writing an arm ------------------------------------------------------------------------------


def slug(text: str) -> str:
    """Returns a name that a folder can have: no separators, no dot in front."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:LONGEST_NAME] or "arm"


def short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@contextmanager
def open_arm(
    out: Path, setup: dict[str, Any], problems: Sequence[Problem], shots: Sequence[Problem]
) -> Iterator[None]:
    """Makes an arm's folder, this process's own while the block runs.

    shots: the worked examples that stand before each question. Raises UserError where another
    evaluation is in it, or another process writes it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}", "give another --out") from None
    with locked(out):
        begin_arm(out, setup, problems, shots)
        yield


def begin_arm(
    out: Path, setup: dict[str, Any], problems: Sequence[Problem], shots: Sequence[Problem]
) -> None:
    """Writes what an arm is asked, or sees that it is what its folder has."""
    path = out / "setup.json"
    before, now = flatten(read_json(path) if path.is_file() else setup), flatten(setup)
    for key in sorted({**before, **now}, key=lambda key: key.endswith("_hash")):  # these last
        if before.get(key) != now.get(key):
            raise UserError(
                f"{out} holds another evaluation: its {key} is {before.get(key)!r}, "
                f"not {now.get(key)!r}",
                "give another --out, or delete that folder",
            )
    if not path.is_file():
        write_atomic(path, json.dumps(setup, indent=2) + "\n")
    for name, rows in (("problems.jsonl", problems), ("shots.jsonl", shots)):
        if rows and not (out / name).is_file():
            write_atomic(out / name, "".join(dump_line(to_row(row)) for row in rows))


def whole_chunks(path: Path, size: int, total: int) -> int:
    """Keep the whole chunks of a samples file; returns how many rows they hold."""
    if not path.is_file():
        return 0
    with path.open("rb+") as samples:
        lengths = [0]
        for line in samples:
            if line.endswith(b"\n"):
                lengths.append(lengths[-1] + len(line))
        rows = len(lengths) - 1
        kept = rows if rows >= total else rows // size * size
        if lengths[kept] != samples.seek(0, os.SEEK_END):  # else it keeps its time, too
            samples.truncate(lengths[kept])
            os.fsync(samples.fileno())
    return kept


def fingerprint(adapter: Path) -> str:
    """Path and content of an adapter: another training run into the same folder is another one."""
    weights = adapter / "adapters.safetensors"
    content = (weights if weights.exists() else adapter / "adapter_model.safetensors").read_bytes()
    return f"{adapter} ({hashlib.sha256(content).hexdigest()[:8]})"
