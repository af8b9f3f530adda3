"""Compare evaluations of the same questions: pair them, refuse what is not alike, test.

The first arm is the baseline. Where several tasks or arms make several tests, Holm's adjustment
over all of them decides.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.arms import Arm, Evaluation, Key, load_arms
from mlxreflect.evaluation.comparability import check_alike, check_keys, pair_tasks, unchecked
from mlxreflect.stats import (
    Comparison,
    clustered,
    holm,
    majority,
    mean_interval,
    paired,
    pass_at_k,
    questions_needed,
    variances,
    wilson,
)
from mlxreflect.stats.sentences import sentence, verdict


@dataclass(frozen=True)
class Options:
    """alpha: of the tests and intervals. differ: keys of the setup that are meant to differ.

    all_pairs: each arm against each other, not only against the first. plan: a difference, as a
    fraction; the questions that would show it are reckoned. 0: not asked.
    """

    alpha: float = 0.05
    differ: tuple[str, ...] = ()
    all_pairs: bool = False
    plan: float = 0.0


def compare(a: Path, b: Path, options: Options | None = None) -> dict[str, Any]:
    """B against A on one task; as `compare_all`."""
    return compare_all([a, b], options)


def compare_all(paths: Sequence[Path], options: Options | None = None) -> dict[str, Any]:
    """Every arm against the first, task by task; a single path is a folder of several arms.

    Two arms of one task give one object: the keys of `stats.Comparison`, a, b, task, p_perm,
    p_holm, verdict, sentence, unchecked, and so on (see `tested`). More of them give
    {"schema": "comparisons/1", "alpha", "arms", "tasks", "tests", "comparisons": [such objects]}.
    Raises UserError for what cannot be compared.
    """
    options = options or Options()
    check_options(options)
    arms = load_arms(paths)
    tasks = pair_tasks(arms)
    check_keys([one for task in tasks for one in task], options.differ)
    found = [
        (task[i], task[j], arms[i].name, arms[j].name, name)
        for i, j in chosen_pairs(len(arms), all_pairs=options.all_pairs)
        for name, task in zip(task_names(arms), tasks, strict=True)
    ]
    results = [tested(a, b, (name_a, name_b, task), options)
               for a, b, name_a, name_b, task in found]  # fmt: skip
    decide(results, options.alpha, name_tasks=len(tasks) > 1)
    return gathered(results, options.alpha, [arm.name for arm in arms], task_names(arms))


def check_options(options: Options) -> None:
    if not 0 < options.alpha < 1:
        raise UserError(
            f"--alpha {options.alpha:g}: not between 0 and 1", "0.05 is the usual level"
        )
    if options.plan and not 0 < options.plan < 1:
        raise UserError(
            f"--plan {options.plan:g}: not a difference between 0 and 1",
            "write three points as --plan 0.03",
        )


def chosen_pairs(arms: int, *, all_pairs: bool) -> list[tuple[int, int]]:
    """Which arms are compared, by number: each with the first, or each with each."""
    return [(i, j) for i, j in combinations(range(arms), 2) if all_pairs or i == 0]


def task_names(arms: Sequence[Arm]) -> list[str]:
    """Of the first arm, in whose order `pair_tasks` gives them."""
    evaluations = arms[0].evaluations
    return [one.task for one in evaluations.values()] if len(evaluations) == 1 else [*evaluations]


def tested(
    a: Evaluation, b: Evaluation, names: tuple[str, str, str], options: Options
) -> dict[str, Any]:
    """One test, still without its verdict. names: of both arms and of the task.

    samples: a question's. p_exact and p_mid are None, and p_perm is not, where that is more than
    one; pass_at and maj_at are there then. ci_a, ci_b: each arm's own interval. gained, lost: the
    problems (see `listed`). differs: what is meant to differ. unchecked: what of the setup could
    not be checked to be the same.
    """
    differs = check_alike(a, b, options.differ)
    keys = list(a.answers)
    right_a, right_b = a.right(keys), b.right(keys)
    means_a, means_b = ([sum(one) / len(one) for one in arm] for arm in (right_a, right_b))
    single = a.samples == b.samples == 1
    p_perm = None
    if single:
        comparison = paired([m == 1 for m in means_a], [m == 1 for m in means_b], options.alpha)
    else:
        comparison, p_perm = clustered(means_a, means_b, alpha=options.alpha)
    moved = dict(zip(keys, zip(means_a, means_b, strict=True), strict=True))
    return {
        "task": names[2],
        "a": names[0],
        "b": names[1],
        "samples": max(a.samples, b.samples),
        "alpha": options.alpha,
        **asdict(comparison),
        "p_perm": p_perm,
        "ci_a": own_interval(means_a, single, options.alpha),
        "ci_b": own_interval(means_b, single, options.alpha),
        **({} if single else {"pass_at": pass_at(right_a, right_b, options.alpha),
                              "maj_at": maj_at(a, b, keys, options.alpha)}),
        **({"plan": plan(right_a, right_b, options)} if options.plan else {}),
        "gained": [listed(a, b, key) for key, (x, y) in moved.items() if y > x],
        "lost": [listed(a, b, key) for key, (x, y) in moved.items() if y < x],
        "differs": [d._asdict() for d in differs],
        "unchecked": unchecked(a, b),
    }  # fmt: skip


def own_interval(means: Sequence[float], single: bool, alpha: float) -> list[float]:
    """Wilson's of single answers, clustered by question of several samples."""
    if single:
        return list(wilson(round(sum(means)), len(means), alpha))
    return list(mean_interval(means, alpha))


def decide(results: list[dict[str, Any]], alpha: float, *, name_tasks: bool) -> None:
    """Put p_holm, tests, verdict and sentence into each result."""
    adjusted = holm([r["p_exact"] if r["p_perm"] is None else r["p_perm"] for r in results])
    fields = Comparison.__dataclass_fields__
    for result, p in zip(results, adjusted, strict=True):
        comparison = Comparison(**{name: result[name] for name in fields})
        result["p_holm"], result["tests"] = p, len(results)
        result["verdict"] = verdict(p, comparison.ci_low, comparison.ci_high, alpha)
        result["sentence"] = sentence(
            comparison,
            result["a"],
            result["b"],
            alpha=alpha,
            p_perm=result["p_perm"],
            p_holm=p,
            tests=len(results),
            task=result["task"] if name_tasks else "",
        )


def listed(a: Evaluation, b: Evaluation, key: Key) -> dict[str, Any]:
    """A problem that one side got right and the other did not (or more often than the other).

    question: None where neither folder has a problems.jsonl. right_a, right_b: shares of samples.
    answer_a, answer_b: what was parsed, of single samples.
    """
    (right_a,), (right_b,) = a.right([key]), b.right([key])
    told: dict[str, Any] = {
        "id": key[1],
        "question": a.questions.get(key[1]) or b.questions.get(key[1]),
        "right_a": sum(right_a) / len(right_a),
        "right_b": sum(right_b) / len(right_b),
    }
    if len(right_a) == len(right_b) == 1:
        told |= {"answer_a": a.parsed(key)[0], "answer_b": b.parsed(key)[0]}
    return told


def secondary(a: Sequence[float], b: Sequence[float], alpha: float) -> dict[str, float]:
    """Another score of several samples, compared as the means are; Holm does not count it."""
    comparison, p = clustered(a, b, alpha=alpha)
    named = ("accuracy_a", "accuracy_b", "difference", "ci_low", "ci_high")
    return {**{name: getattr(comparison, name) for name in named}, "p_perm": p}


def pass_at(
    a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]], alpha: float
) -> dict[str, dict[str, float]]:
    """k → unbiased pass@k compared, for k = 1, 2, 4, … and the number of samples itself."""
    most = min(len(a[0]), len(b[0]))
    counts = sorted({*(2**i for i in range(most.bit_length())), most})

    def scores(arm: Sequence[Sequence[bool]], k: int) -> list[float]:
        return [pass_at_k(len(one), sum(one), k) for one in arm]

    return {str(k): secondary(scores(a, k), scores(b, k), alpha) for k in counts}


def maj_at(
    a: Evaluation, b: Evaluation, keys: Sequence[Key], alpha: float
) -> dict[str, dict[str, float]]:
    """k → maj@k compared, k the number of samples; a tie goes to the answer given first."""
    if a.samples != b.samples:
        return {}

    def votes(arm: Evaluation) -> list[float]:
        right = arm.right(keys)
        return [float(majority(arm.parsed(k), r)) for k, r in zip(keys, right, strict=True)]

    return {str(a.samples): secondary(votes(a), votes(b), alpha)}


def plan(
    a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]], options: Options
) -> dict[str, Any]:
    """How many questions like these show the planned difference 4 times in 5 (Miller 2024)."""
    delta = options.plan
    if len(a) < 2:
        raise UserError(
            "--plan: one question says nothing of how much questions differ",
            "evaluate a few dozen questions first",
        )
    omega2, noise_a, noise_b = variances(a, b)
    if len(a[0]) == len(b[0]) == 1:  # single answers that differ by δ on average vary by δ − δ²
        omega2 = max(omega2, delta - delta**2)
    needed = questions_needed(
        delta, omega2=omega2, noise_a=noise_a, noise_b=noise_b, alpha=options.alpha
    )
    return {
        "difference": delta,
        "questions": math.ceil(needed),
        "omega2": omega2,
        "noise_a": noise_a,
        "noise_b": noise_b,
        "sentence": f"About {math.ceil(needed)} questions like these show a true difference of "
        f"{100 * delta:.3g} points 4 times in 5.",
    }


def gathered(
    results: list[dict[str, Any]], alpha: float, arms: list[str], tasks: list[str]
) -> dict[str, Any]:
    """One comparison as it is; several as one object."""
    if len(results) == 1:
        return results[0]
    return {
        "schema": "comparisons/1", "alpha": alpha, "arms": arms, "tasks": tasks,
        "tests": len(results), "comparisons": results,
    }  # fmt: skip
