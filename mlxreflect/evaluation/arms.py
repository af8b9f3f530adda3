"""The arms of a comparison: read evaluations, pair them by task, and say what is not alike."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mlxreflect.config.schema import EvalSpec
from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import dump_line, read_json, read_rows, write_atomic
from mlxreflect.core.records import Problem, Sample, to_row
from mlxreflect.evaluation.results import summarise

Key = tuple[str, str]  # task, problem id
COUNTS = re.compile(r"^[0-9]+/[0-9]+$|\.json$")  # what --unpaired takes
QUESTION = 100  # characters of a question that is listed


class Answer(NamedTuple):
    correct: bool
    parsed: str | None


@dataclass(frozen=True)
class Evaluation:
    """One model on one task: each question's samples, and what else its folder tells.

    questions: problem id → the question, shortened; empty without a problems.jsonl.
    """

    path: Path
    task: str
    answers: dict[Key, dict[int, Answer]]
    results: dict[str, Any] | None
    questions: dict[str, str]

    @property
    def samples(self) -> int:
        """Of each question; `read_answers` has seen to it that all have as many."""
        return len(next(iter(self.answers.values())))

    def right(self, keys: Iterable[Key]) -> list[list[bool]]:
        """Of each question its samples, by index: right or wrong."""
        return [[found[i].correct for i in sorted(found)] for found in map(self.answers.get, keys)
                if found]  # fmt: skip

    def parsed(self, key: Key) -> list[str | None]:
        return [self.answers[key][i].parsed for i in sorted(self.answers[key])]


@dataclass(frozen=True)
class Arm:
    """What is compared: a model's evaluations, by the name of the task or of its folder."""

    name: str
    path: Path
    evaluations: dict[str, Evaluation]


# ---- finding and reading -------------------------------------------------------------------------


def load_arms(paths: Sequence[Path]) -> list[Arm]:
    """The arms of these paths, the baseline first, each with a name of its own.

    A single path is a folder of several arms, or a run's. Raises UserError.
    """
    arms = [load_arm(path) for path in (paths if len(paths) > 1 else arms_within(paths[0]))]
    names = [arm.name for arm in arms]
    if len(set(names)) == len(names):
        return arms
    return [Arm(str(arm.path), arm.path, arm.evaluations) for arm in arms]


def arms_within(folder: Path) -> list[Path]:
    """The arms in a folder, the baseline first: without an adapter, named base, then by name."""
    folder = folder / "eval" if (folder / "eval").is_dir() else folder
    refuse_quick(folder)
    found = [sub for sub in folder.iterdir() if evaluations_within(sub)] if folder.is_dir() else []
    if len(found) < 2:
        raise UserError(
            f"{folder}: not two evaluations to compare",
            "name two or more: mlxreflect compare BASE TRAINED",
        )

    def order(path: Path) -> tuple[Any, ...]:
        results = read_results(evaluations_within(path)[0].parent / "results.json")
        return bool(results and results.get("adapter")), *arm_order(path.name)

    return sorted(found, key=order)


def arm_order(name: str) -> tuple[int, str, int, str]:
    """Where a run's arm stands in a table: base, the warm-up, rounds by number, trained."""
    plain = name.removesuffix("-direct")
    stem, _, number = plain.rpartition("-")
    counted = (stem, int(number)) if number.isdecimal() else (plain, 0)
    return {"base": 0, "warm-up": 1, "trained": 3}.get(plain, 2), *counted, name


def evaluations_within(path: Path) -> list[Path]:
    """The samples files of an arm: the folder's own, else those of its subfolders."""
    own = path / "samples.jsonl"
    return [own] if own.is_file() else sorted(path.glob("*/samples.jsonl"))


def load_arm(path: Path) -> Arm:
    """An evaluation's folder, a folder of several (one a task), or a bare file of samples."""
    refuse_quick(path)
    if path.is_dir():
        files = evaluations_within(path)
        nested = bool(files) and files[0].parent != path
    else:
        files, nested = [path] if path.is_file() and path.suffix != ".json" else [], False
    if not files:
        raise no_samples(path)
    bare = path.stem in ("", "samples")
    name = path.resolve().parent.name if bare and not path.is_dir() else path.stem
    evaluations: dict[str, Evaluation] = {}
    for file in files:
        for one in read_evaluations(file, whole=path.is_dir()):
            label = file.parent.name if nested else one.task
            evaluations[f"{label}/{one.task}" if label in evaluations else label] = one
    refuse_arms(path, list(evaluations.values()))
    return Arm(path.name if path.is_dir() else name, path, evaluations)


def no_samples(path: Path) -> UserError:
    hint = "give an evaluation's folder, or a JSONL file of its samples"
    if (path / "eval").is_dir():
        hint = f"name one of its evaluations, such as {path / 'eval' / 'base'}"
    elif (path / "results.json").is_file() or COUNTS.search(str(path)):
        hint += "; counts and results without answers: mlxreflect compare --unpaired A B"
    if path.is_file():
        return UserError(f"{path}: not a JSONL file of samples", hint)
    return UserError(f"{path / 'samples.jsonl' if path.is_dir() else path}: no such file", hint)


def refuse_quick(path: Path) -> None:
    folder = path if path.is_dir() else path.parent
    if path.name == "quick.jsonl" or (path.is_dir() and (folder / "quick.jsonl").is_file()):
        raise quick_fault(path)


def quick_fault(path: Path) -> UserError:
    return UserError(
        f"{path} is of a quick evaluation, which stopped as soon as it could decide: its answers "
        "overstate the difference, and no fixed-size test holds for them",
        "read its own verdict in quick.json, or evaluate both on all questions without --quick",
    )


def refuse_arms(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """A folder of several arms is not one arm."""
    seen: dict[frozenset[Key], Evaluation] = {}
    for one in evaluations:
        other = seen.setdefault(frozenset(one.answers), one)
        if other is not one:
            raise UserError(
                f"{path} holds two evaluations of the same questions: {other.path.name} and "
                f"{one.path.name}",
                f"compare those: mlxreflect compare {path}; or name one of them",
            )


def read_evaluations(samples: Path, *, whole: bool) -> list[Evaluation]:
    """What a samples file holds, by task. whole: it stands in an evaluation's folder."""
    folder = samples.parent
    results = read_results(folder / "results.json") if whole else None
    if whole and results is None and (folder / "setup.json").is_file():
        raise UserError(
            f"{folder} is an evaluation that is not finished",
            "give the command that began it again; it goes on where it stopped",
        )
    answers = read_answers(samples)
    named = whole or samples.name == "samples.jsonl"
    questions = read_questions(folder / "problems.jsonl") if named else {}
    return [
        Evaluation(
            path=folder if whole else samples,
            task=task,
            answers={key: found for key, found in answers.items() if key[0] == task},
            results=results,
            questions=questions,
        )
        for task in dict.fromkeys(task for task, _ in answers)
    ]


def read_answers(path: Path) -> dict[Key, dict[int, Answer]]:
    """Question → sample index → its answer; each question has equally many samples."""
    answers: dict[Key, dict[int, Answer]] = {}
    for number, row in enumerate(read_rows(path), 1):
        problem, sample, correct = row.get("problem_id"), row.get("sample", 0), row.get("correct")
        if row.get("schema") == "quick-sample/1":
            raise quick_fault(path)
        fine = row.get("schema", "sample/1") == "sample/1" and isinstance(problem, str)
        if not fine or type(sample) is not int or type(correct) is not bool:
            raise UserError(
                f"{path}, row {number}: not a sample (problem_id a string, sample a whole number, "
                "correct true or false)",
                "give the samples.jsonl of an evaluation",
            )
        seen = answers.setdefault((str(row.get("task", "")), str(problem)), {})
        if sample in seen:
            raise UserError(
                f"{path}: question {problem} has sample {sample} twice", "remove one of the two"
            )
        parsed = row.get("parsed")
        seen[sample] = Answer(correct, None if parsed is None else str(parsed))
    if not answers:
        raise UserError(f"{path}: no samples in it", "evaluate first; this one did not get far")
    check_counts(path, answers)
    return answers


def check_counts(path: Path, answers: dict[Key, dict[int, Answer]]) -> None:
    most: dict[str, int] = {}
    for (task, _), samples in answers.items():
        most[task] = max(most.get(task, 0), len(samples))
    for (task, problem), samples in answers.items():
        if len(samples) < most[task]:
            raise UserError(
                f"{path}: question {problem} has {len(samples)} samples, others have {most[task]}",
                "finish that evaluation first",
            )


def read_questions(path: Path) -> dict[str, str]:
    """Problem id → its question on one line, of an evaluation's problems.jsonl."""
    questions: dict[str, str] = {}
    for row in read_rows(path) if path.is_file() else ():
        fields = row.get("fields")
        if not isinstance(fields, dict):
            continue
        asked = fields.get("question") or ", ".join(f"{k} {v}" for k, v in fields.items())
        text = " ".join(str(asked).split())
        questions[str(row.get("id"))] = (
            text if len(text) <= QUESTION else text[: QUESTION - 1] + "…"
        )
    return questions


def read_results(path: Path) -> dict[str, Any] | None:
    """The object in a results.json or comparison.json; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})", "remove it and make it anew") from None
    if not isinstance(results, dict):
        raise UserError(f"{path}: not a JSON object", "remove it and make it anew")
    return results


def read_arms(run_dir: Path) -> dict[str, dict[str, Any]]:
    """results.json of a run's arms, as far as they were evaluated: base first, trained last."""
    names = sorted(
        (path.parent.name for path in run_dir.glob("eval/*/results.json")), key=arm_order
    )
    found = {n: read_results(run_dir / "eval" / n / "results.json") for n in names}
    return {name: arm for name, arm in found.items() if arm and arm.get("accuracy") is not None}


def sample_row(sample: Sample) -> dict[str, Any]:
    """A row of samples.jsonl; what few samples have stands in those alone."""
    row = to_row(sample)
    return {key: row[key] for key in row if key not in ("score", "tokens") or row[key] is not None}


class Named(Protocol):
    @property
    def name(self) -> str: ...


def describe_setup(
    policy: Named,
    spec: EvalSpec,
    problems: Sequence[Problem],
    asked: Sequence[Any],
    adapter: str,
) -> dict[str, Any]:
    """What must be the same for two evaluations to be compared, and what was evaluated.

    asked: each problem's prompt as it is before a model's own template and tokenizer, so that
    different models can be compared.
    """
    told = spec.model_dump(
        exclude={"task": {"source"}, "prompt": {"file"}, "quick": True, "name": True}
    )
    if not spec.prompt.templates:
        del told["prompt"]["templates"]
    for key in ("form", "shots", "stop", "rules", "chain"):
        if getattr(spec, key) == EvalSpec.model_fields[key].default:
            del told[key]  # as in evaluations made before there was such a key
    return {
        "prompt_hash": short_hash([[p.id for p in problems], asked]),
        "decoding": {
            "temperature": spec.temperature, "top_p": spec.top_p,
            "max_new_tokens": spec.max_new_tokens, "seed": spec.seed, "batch": spec.batch,
            "samples": spec.samples,
        },
        "spec": told,
        "model": policy.name,
        "adapter": adapter,
    }  # fmt: skip


def short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def open_arm(
    out: Path, setup: dict[str, Any], problems: Sequence[Problem], shots: Sequence[Problem]
) -> Path:
    """Make an arm's folder, or check that it is this evaluation's; returns its samples file.

    shots: the worked examples that stand before each question.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}", "give another --out") from None
    continue_only(out, setup)
    for name, rows in (("problems.jsonl", problems), ("shots.jsonl", shots)):
        if rows and not (out / name).is_file():
            write_atomic(out / name, "".join(dump_line(to_row(row)) for row in rows))
    return out / "samples.jsonl"


def write_results(out: Path, setup: dict[str, Any], rules: str, **more: Any) -> dict[str, Any]:
    results = {**summarise(out / "samples.jsonl"), "rules": rules, **setup, **more}
    write_atomic(out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def continue_only(out: Path, setup: dict[str, Any]) -> None:
    """Refuse to mix two evaluations in one folder."""
    path = out / "setup.json"
    if not path.is_file():
        write_atomic(path, json.dumps(setup, indent=2) + "\n")
        return
    before, now = flatten(read_json(path)), flatten(setup)
    for key in sorted({**before, **now}, key=is_hash):  # what they follow from first
        if before.get(key) != now.get(key):
            raise UserError(
                f"{out} holds another evaluation: its {key} is {before.get(key)!r}, "
                f"not {now.get(key)!r}",
                "give another --out, or delete that folder",
            )


def is_hash(key: str) -> bool:
    return key.endswith("_hash")


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
    content = (adapter / "adapters.safetensors").read_bytes()
    return f"{adapter} ({hashlib.sha256(content).hexdigest()[:8]})"
