"""Compare counts of right answers where the questions are unknown, or not the same ones."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import fisher_exact

from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.arms import evaluations_within, read_answers, read_results, refuse_quick
from mlxreflect.evaluation.compare import Options, check_options, chosen_pairs, gathered
from mlxreflect.stats import holm, newcombe_unpaired, two_proportion, wilson
from mlxreflect.stats.sentences import level, points, verdict

COUNT = re.compile(r"([0-9]{1,12})/([0-9]{1,12})")
FEW = 5  # a smaller expected count is too small for the z test
SHARPER = "Pairing the answers question by question, where both have them, is a sharper test."


class Counted(NamedTuple):
    """right of n questions, one sample each."""

    name: str
    right: int
    n: int


def compare_counts(given: Sequence[str], options: Options) -> dict[str, Any]:
    """Each arm against the first by counts alone, with Newcombe's interval.

    The z test of two proportions (z, p) decides, or where a count is small Fisher's exact one
    (p_exact, else None).

    given: counts such as 627/1000, results.json files, evaluation folders, or files of samples.
    Two arms give one object; more give {"schema": "comparisons/1", …} as `compare_all` does.
    Raises UserError.
    """
    check_options(options)
    if len(given) < 2:
        raise UserError(
            f"{given[0]}: nothing to compare it with",
            "give two or more: mlxreflect compare --unpaired 627/1000 674/1000",
        )
    if options.differ or options.plan:
        raise UserError(
            f"--{'differ' if options.differ else 'plan'} needs the answers to each question",
            "leave it out, or leave --unpaired out",
        )
    arms = [count(one) for one in given]
    if len({arm.name for arm in arms}) < len(arms):
        arms = [arm._replace(name=one) for arm, one in zip(arms, given, strict=True)]
    chosen = chosen_pairs(len(arms), all_pairs=options.all_pairs)
    results = [tested(arms[i], arms[j], options.alpha) for i, j in chosen]
    for result, p in zip(results, holm([deciding(r) for r in results]), strict=True):
        result["p_holm"], result["tests"] = p, len(results)
        result["verdict"] = verdict(p, result["ci_low"], result["ci_high"], options.alpha)
        result["sentence"] = sentence(result)
    return gathered(results, options.alpha, [arm.name for arm in arms], [])


def tested(a: Counted, b: Counted, alpha: float) -> dict[str, Any]:
    z, p = two_proportion(a.right, a.n, b.right, b.n)
    right, n = a.right + b.right, a.n + b.n
    least = min(a.n, b.n) * min(right, n - right) / n  # of the four counts expected of equals
    few = least < FEW
    table = [[a.right, a.n - a.right], [b.right, b.n - b.right]]
    low, high = newcombe_unpaired(a.right, a.n, b.right, b.n, alpha=alpha)
    return {
        "unpaired": True,
        "a": a.name,
        "b": b.name,
        "alpha": alpha,
        "n_a": a.n,
        "n_b": b.n,
        "right_a": a.right,
        "right_b": b.right,
        "accuracy_a": a.right / a.n,
        "accuracy_b": b.right / b.n,
        "ci_a": list(wilson(a.right, a.n, alpha)),
        "ci_b": list(wilson(b.right, b.n, alpha)),
        "difference": b.right / b.n - a.right / a.n,
        "ci_low": low,
        "ci_high": high,
        "test": "Fisher's exact test" if few else "two-proportion z",
        "z": z,
        "p": p,
        "p_exact": float(fisher_exact(table).pvalue) if few else None,
    }


def deciding(result: dict[str, Any]) -> float:
    p: float = result["p"] if result["p_exact"] is None else result["p_exact"]
    return p


def sentence(result: dict[str, Any]) -> str:
    r = result
    z = f" = {r['z']:.2f}" if r["p_exact"] is None else ""
    told = f"{r['test']}{z}, p = {deciding(r):.2g}"
    if r["tests"] > 1:
        told += f"; {r['p_holm']:.2g} with Holm's adjustment for {r['tests']} comparisons"
    return (
        f"{r['b']} answers {r['right_b']} of {r['n_b']} questions right ({r['accuracy_b']:.1%}), "
        f"{r['a']} {r['right_a']} of {r['n_a']} ({r['accuracy_a']:.1%}): a difference of "
        f"{points(r['difference'])} points ({level(r['alpha'])} interval {points(r['ci_low'])} to "
        f"{points(r['ci_high'])}), {r['verdict']} ({told})."
        + (f" {SHARPER}" if r["tests"] == 1 else "")
    )


def count(given: str) -> Counted:
    """One arm's counts. Raises UserError for what has none."""
    if found := COUNT.fullmatch(given.strip()):
        right, n = int(found[1]), int(found[2])
        if not 0 <= right <= n or not n:
            raise UserError(f"{given}: not so many right of so many", "write RIGHT/QUESTIONS")
        return Counted(given.strip(), right, n)
    path = Path(given)
    refuse_quick(path)
    results = path / "results.json" if path.is_dir() else path
    if results.is_file() and results.suffix == ".json":
        return count_results(path, results)
    samples = evaluations_within(path) if path.is_dir() else [path] if path.is_file() else []
    if len(samples) != 1:
        raise UserError(
            f"{given}: no counts there",
            "give counts such as 627/1000, a results.json, an evaluation's folder or its samples",
        )
    answers = read_answers(samples[0])
    refuse_repeated(given, len(next(iter(answers.values()))))
    right = sum(one.correct for found in answers.values() for one in found.values())
    return Counted(path.stem if path.is_file() else path.name, right, len(answers))


def count_results(path: Path, file: Path) -> Counted:
    results = read_results(file) or {}
    accuracy, n, samples = (results.get(k) for k in ("accuracy", "n", "samples"))
    if results.get("schema") == "quick/1":
        refuse_quick(file.parent / "quick.jsonl")
    fine = type(n) is int and n > 0 and isinstance(accuracy, int | float) and 0 <= accuracy <= 1
    if not fine or type(accuracy) is bool:
        raise UserError(
            f"{file}: no accuracy and n of an evaluation in it", "give the results.json of one"
        )
    refuse_repeated(str(path), samples if type(samples) is int else 1)
    assert isinstance(accuracy, int | float) and isinstance(n, int)
    if abs(accuracy * n - round(accuracy * n)) > 1e-6 * n:
        raise UserError(
            f"{file}: an accuracy of {accuracy} is no whole number of {n} questions",
            "write the counts themselves: RIGHT/QUESTIONS",
        )
    name = path.name if path.is_dir() else path.resolve().parent.name
    return Counted(name, round(accuracy * n), n)


def refuse_repeated(given: str, samples: int) -> None:
    if samples > 1:
        raise UserError(
            f"{given} has {samples} samples a question: counts do not tell how they go together",
            "leave --unpaired out and give the folders with their samples",
        )
