"""Compare two evaluations of the same questions: pair them, refuse what is not alike, test."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxreflect.errors import UserError
from mlxreflect.records import read_rows
from mlxreflect.settings import flatten
from mlxreflect.stats import clustered, paired, points, sentence, verdict, wilson
from mlxreflect.ui import safe_text

if TYPE_CHECKING:
    from rich.console import Group

Key = tuple[str, str]  # task, problem id
# Keys of results.json that both sides must share; what tells a person most comes first.
SETUP = ("decoding", "spec", "prompt_hash")


@dataclass(frozen=True)
class Arm:
    """One evaluation: each question's samples, right or wrong, and its results.json if any."""

    name: str
    path: Path
    answers: dict[Key, dict[int, bool]]
    results: dict[str, Any] | None

    @property
    def repeated(self) -> bool:
        return any(sample > 0 for samples in self.answers.values() for sample in samples)

    def means(self, keys: Iterable[Key]) -> list[float]:
        return [sum(self.answers[key].values()) / len(self.answers[key]) for key in keys]


def compare(a: Path, b: Path) -> dict[str, Any]:
    """B against A: the keys of `stats.Comparison`, a, b, p_perm, verdict, sentence and unchecked.

    a, b: evaluation folders, or bare JSONL files of samples. unchecked: what of the setup could not
    be checked to be the same. p_exact and p_mid are None, and p_perm is not, where there are
    several samples a question. Raises UserError for what cannot be compared.
    """
    arm_a, arm_b = load_arm(a), load_arm(b)
    setup, unchecked = setup_fault(arm_a, arm_b)
    if questions := question_fault(arm_a, arm_b):
        raise UserError(
            "; ".join(filter(None, [questions, setup])),
            "evaluate both on the same spec, limit and seed, and to the end",
        )
    if setup:
        raise UserError(
            setup, "evaluate both alike; bare samples.jsonl files are compared regardless"
        )
    keys = list(arm_a.answers)
    means_a, means_b = arm_a.means(keys), arm_b.means(keys)
    p_perm = None
    if arm_a.repeated or arm_b.repeated:
        comparison, p_perm = clustered(means_a, means_b)
    else:
        comparison = paired([m == 1 for m in means_a], [m == 1 for m in means_b])
    name_a, name_b = names(arm_a, arm_b)
    p = comparison.p_exact if p_perm is None else p_perm
    assert p is not None  # one sample a question has the exact p, several have the other
    return {
        "a": name_a,
        "b": name_b,
        **asdict(comparison),
        "p_perm": p_perm,
        "verdict": verdict(p, comparison.ci_low, comparison.ci_high),
        "sentence": sentence(comparison, name_a, name_b, p_perm=p_perm),
        "unchecked": unchecked,
    }


def load_arm(path: Path) -> Arm:
    samples = path / "samples.jsonl" if path.is_dir() else path
    if not samples.is_file():
        hint = "give an evaluation's folder, or a JSONL file of its samples"
        if (path / "eval").is_dir():
            hint = f"name one of its evaluations, such as {path / 'eval' / 'base'}"
        raise UserError(f"{samples}: no such file", hint)
    bare = samples.stem in ("", "samples")
    return Arm(
        name=path.name if path.is_dir() else samples.resolve().parent.name if bare else path.stem,
        path=path,
        answers=read_answers(samples),
        results=read_results(path / "results.json") if path.is_dir() else None,
    )


def read_answers(path: Path) -> dict[Key, dict[int, bool]]:
    """Question → sample index → whether it is right; each question has equally many samples."""
    answers: dict[Key, dict[int, bool]] = {}
    for number, row in enumerate(read_rows(path), 1):
        problem, sample, correct = row.get("problem_id"), row.get("sample", 0), row.get("correct")
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
        seen[sample] = correct
    if not answers:
        raise UserError(f"{path}: no samples in it", "evaluate first; this one did not get far")
    check_counts(path, answers)
    return answers


def check_counts(path: Path, answers: dict[Key, dict[int, bool]]) -> None:
    most = max(map(len, answers.values()))
    for (_, problem), samples in answers.items():
        if len(samples) < most:
            raise UserError(
                f"{path}: question {problem} has {len(samples)} samples, others have {most}",
                "finish that evaluation first",
            )


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
    """results.json of base and trained, as far as they were evaluated."""
    found = {n: read_results(run_dir / "eval" / n / "results.json") for n in ("base", "trained")}
    return {name: arm for name, arm in found.items() if arm and arm.get("accuracy") is not None}


def setup_fault(a: Arm, b: Arm) -> tuple[str, list[str]]:
    """What differs in prompt, decoding or spec, in words; and the keys that one side lacks."""
    left: dict[str, Any] = {}
    right: dict[str, Any] = {}
    unchecked = []
    for key in SETUP:
        if a.results and b.results and key in a.results and key in b.results:
            left |= flatten({key: a.results[key]})
            right |= flatten({key: b.results[key]})
        else:
            unchecked.append(key)
    differing = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    if not differing:
        return "", unchecked
    first, *more = differing
    fault = (
        f"{first} differs: {show(left.get(first))} in {a.path}, {show(right.get(first))} in "
        f"{b.path}" + (f" (also: {', '.join(more)})" if more else "")
    )
    return fault, unchecked


def show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def question_fault(a: Arm, b: Arm) -> str:
    """Which questions only one side answered, in words."""
    only_a = [key for key in a.answers if key not in b.answers]
    only_b = [key for key in b.answers if key not in a.answers]
    if not only_a and not only_b:
        return ""
    task, problem = (only_a or only_b)[0]
    return (
        f"not the same questions: {len(only_a)} only in {a.path}, {len(only_b)} only in {b.path}, "
        f"such as {f'{task} ' if task else ''}{problem}"
    )


def names(a: Arm, b: Arm) -> tuple[str, str]:
    """What to call the two: the shortest that tells them apart."""
    return (a.name, b.name) if a.name != b.name else (str(a.path), str(b.path))


def render_comparison(result: dict[str, Any]) -> "Group":
    """The result of `compare` as a table, and the sentence below it."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    a, b = safe_text(str(result["a"])), safe_text(str(result["b"]))
    rows = {
        "questions": f"{result['n']}",
        f"accuracy of {a}": accuracy(result, "accuracy_a"),
        f"accuracy of {b}": accuracy(result, "accuracy_b"),
        "gained, lost": f"{result['gains']}, {result['losses']}",
        "difference": f"{points(result['difference'])} points",
        "95% interval": f"{points(result['ci_low'])} to {points(result['ci_high'])}",
        "exact McNemar p": number(result["p_exact"]),
        "mid-p": number(result["p_mid"]),
        "sign-flip p": number(result["p_perm"]),
        "verdict": result["verdict"],
    }
    title = Text(f"{b} against {a}", "bold")
    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
    for name, value in rows.items():
        if value:
            table.add_row(Text(name), Text(value))
    lines = [safe_text(result["sentence"])]
    if result["unchecked"]:
        lines.append(f"Not checked to be the same: {', '.join(result['unchecked'])}.")
    return Group(table, Text("\n".join(lines)))


def accuracy(result: dict[str, Any], key: str) -> str:
    """A percentage; with its Wilson interval where each question has one sample."""
    text = f"{result[key]:.1%}"
    if result["p_exact"] is None:
        return text
    low, high = wilson(round(result[key] * result["n"]), result["n"])
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def number(p: float | None) -> str:
    return "" if p is None else f"{p:.3g}"
