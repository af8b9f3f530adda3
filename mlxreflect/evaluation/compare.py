"""The one place that compares evaluations: pairs them, tests them, words the verdict.

The first arm is the baseline. Where several tasks or arms make several tests, Holm's adjustment
over all of them decides. Two arms must share tasks, problems, prompts, decoding and grading.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, takewhile
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from mlxreflect import stats
from mlxreflect.config.schema import Sampling
from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.arms import (
    Arm,
    ProblemSamples,
    by_task,
    check_arm_names,
    find_arms,
    pair_tasks,
    quick_fault,
    read_all,
    read_arm,
    read_results,
    refuse_quick,
)
from mlxreflect.evaluation.judge import Judging, find_judged, no_judge, read_judged

COUNT = re.compile(r"([0-9]{1,12})/([0-9]{1,12})")
FEW = 5  # a smaller expected count is too small for the z test
LISTED = 100  # characters of a problem that is listed
# Keys of results.json that both sides must share; what tells a person most comes first.
SETUP = ("decoding", "spec", "rules", "prompt_hash")
# What may differ while the prompts stay as they are.
AFTER_PROMPT = {"temperature", "top_p", *Sampling.model_fields, "max_new_tokens", "batch",
                "samples", "stop", "rules", "decoding"}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """alpha: of the tests and intervals. differ: keys of the setup that are meant to differ.

    all_pairs: each arm against each other, not only against the first. plan: a difference, as a
    fraction; the number of problems that would show it is computed. 0: not asked for. names: of
    the arms. judge: has answers to open questions judged; without it they have been, or are not
    compared. graded: leaves those out. Raises UserError for what cannot be.
    """

    alpha: float = 0.05
    differ: tuple[str, ...] = ()
    all_pairs: bool = False
    plan: float = 0.0
    names: tuple[str, ...] = ()
    judge: Judging | None = None
    graded: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError(
                f"--alpha {self.alpha:g}: not between 0 and 1", "0.05 is the usual level"
            )
        if self.plan and not 0 < self.plan < 1:
            raise UserError(
                f"--plan {self.plan:g}: not a difference between 0 and 1",
                "write three points as --plan 0.03",
            )


def compare(a: Path, b: Path, options: Options | None = None) -> dict[str, Any]:
    """B against A on one task; as `compare_all`."""
    return compare_all([a, b], options)


def compare_all(paths: Sequence[Path], options: Options | None = None) -> dict[str, Any]:
    """Every arm against the first, task by task; a single path is a folder of several arms.

    Of several runs, the trained policies are compared. Arms of a single folder need not have
    answered the same tasks: what both have is compared.
    Two arms of one task give one object: the keys of `stats.Comparison`, a, b, task, p_perm,
    p_holm, verdict, sentence, unchecked, and so on (see `compare_arms`). More of them give
    {"schema": "comparisons/1", "alpha", "arms", "tasks", "tests", "comparisons": [such objects]}.
    Raises UserError for what cannot be compared.
    """
    options, whole = options or Options(), len(paths) < 2
    if whole and len(paths := find_arms(folder := paths[0])) < 2:
        if (folder / "run.json").is_file():
            raise UserError(
                f"{folder}: the run is not finished, and so there is nothing to compare yet",
                f"go on with it: mlxreflect resume {quote(str(folder))}",
            )
        raise UserError(
            f"{folder}: not two evaluations to compare",
            "name two or more: mlxreflect compare BASE TRAINED",
        )
    check_arm_names(options.names, len(paths))
    arms = read_all([trained if (trained := path / "eval" / "trained").is_dir() else path
                     for path in paths], options.names)  # fmt: skip
    pairs = [
        (name, a, b) for i, j in chosen_pairs(len(arms), options)
        for name, (a, b) in pair_tasks(arms[i], arms[j], shared=whole).items()
        if not (options.graded and a.open)
    ]  # fmt: skip
    check_keys([arm for group in arms for arm in group], options.differ)
    check_judge(pairs, options)
    results = [compare_arms(a, b, name, options) for name, a, b in pairs]
    tasks = list(dict.fromkeys(name for name, _, _ in pairs))
    return gather(results, options.alpha, [group[0].name for group in arms], tasks)


def check_judge(pairs: Sequence[tuple[str, Arm, Arm]], options: Options) -> None:
    """Raises UserError for what is of open questions alone, or of all others."""
    judge, asked = options.judge, any(a.open for _, a, _ in pairs)
    if judge and (judge.named or judge.rubric) and not asked:
        raise UserError(
            f"--{'judge' if judge.named else 'rubric'}: {pairs[0][1].path} has right answers, "
            "which are graded",
            'leave it out; open questions have task.answer_type = "open"',
        )
    if options.plan and asked:
        raise UserError("--plan is of graded answers, and these are judged", "leave it out")


def compare_report(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Each arm against the first of its task, as `compare_arms` gives it.

    What cannot be compared has task, a, b and why ("fault"), and stops nothing. p_holm is adjusted
    for all pairs, over tasks and arms alike; each sentence is of its own test.
    """
    found: list[dict[str, Any]] = []
    for task, group in by_task(arms).items():
        for arm in group[1:]:
            try:
                one = compare_arms(group[0], arm, task, Options())
                decide([one], one["alpha"])
            except UserError as error:
                one = {"task": task, "a": group[0].name, "b": arm.name, "fault": error.message}
            found.append(one)
    tested = [one for one in found if "fault" not in one]
    for one, p in zip(tested, stats.holm([deciding_p(one) for one in tested]), strict=True):
        one["p_holm"] = p
    return found


def chosen_pairs(arms: int, options: Options) -> list[tuple[int, int]]:
    """The pairs of arms to compare, by number: each with the first, or each with each."""
    return [(i, j) for i, j in combinations(range(arms), 2) if options.all_pairs or i == 0]


def gather(
    results: list[dict[str, Any]], alpha: float, arms: list[str], tasks: list[str]
) -> dict[str, Any]:
    """One comparison, decided, as it is; several as one object."""
    decide(results, alpha, name_tasks=len(tasks) > 1)
    if len(results) == 1:
        return results[0]
    return {
        "schema": "comparisons/1", "alpha": alpha, "arms": arms, "tasks": tasks,
        "tests": len(results), "comparisons": results,
    }  # fmt: skip


# ---- one test ------------------------------------------------------------------------------------


def compare_arms(a: Arm, b: Arm, task: str, options: Options) -> dict[str, Any]:
    """B against A, problem by problem, still without the verdict, which `decide` adds.

    samples: of a problem. p_exact and p_mid are None, and p_perm is not, where that is more than
    one; pass_at and maj_at are there then. ci_a, ci_b: each arm's own interval. gained, lost: the
    problems (see `list_problem`). differs: what is meant to differ. unchecked: what of the setup
    could not be checked to be the same. Raises UserError where they are not alike.
    """
    differs, alpha = check_alike(a, b, options.differ), options.alpha
    if a.open or b.open:
        return compare_judged(a, b, task, options, differs)
    pairs = [(a.problems[id_], b.problems[id_]) for id_ in a.problems]
    means_a, means_b = [x.score for x, _ in pairs], [y.score for _, y in pairs]
    single, p_perm = a.samples == b.samples == 1, None
    if single:
        comparison = stats.paired([m == 1 for m in means_a], [m == 1 for m in means_b], alpha)
    else:
        comparison, p_perm = stats.clustered(means_a, means_b, alpha=alpha)
    several = {} if single else {"pass_at": pass_at(pairs, alpha), "maj_at": maj_at(pairs, alpha)}
    return {
        "task": task, "a": a.name, "b": b.name, "samples": max(a.samples, b.samples),
        "alpha": alpha, **asdict(comparison), "p_perm": p_perm,
        "ci_a": list(stats.mean_interval(means_a, alpha, single=single)),
        "ci_b": list(stats.mean_interval(means_b, alpha, single=single)),
        **several,
        **({"plan": plan(pairs, options)} if options.plan else {}),
        "gained": [list_problem(x, y) for x, y in pairs if y.score > x.score],
        "lost": [list_problem(x, y) for x, y in pairs if y.score < x.score],
        "differs": differs,
        "unchecked": unchecked(a, b),
    }  # fmt: skip


def compare_judged(
    a: Arm, b: Arm, task: str, options: Options, differs: list[dict[str, Any]]
) -> dict[str, Any]:
    """B against A on open questions, as `compare_arms`; a win of B is a gain.

    n: questions that were judged; the others count for nothing (unjudged, which a resumed judging
    asks again). accuracy_a, accuracy_b: the shares that each has won; p_exact, p_mid: of the sign
    test over the questions that one has. win_rate: B's, ties counted half, with its interval
    win_low to win_high. judged: the counts, and how far the judge can be believed (`figures_of`).
    Raises UserError where nobody has judged them, or can.
    """
    folder = options.judge(a, b) if options.judge else find_judged(a, b)
    if folder is None:
        raise no_judge(b)
    found, alpha = read_judged(folder, a, b), options.alpha
    won = [found.won[id_] for id_ in a.problems if id_ in found.won]
    comparison = stats.paired([w == "a" for w in won], [w == "b" for w in won], alpha)
    ends = (comparison.difference, comparison.ci_low, comparison.ci_high)
    win_rate, low, high = (0.5 + end / 2 for end in ends)
    n = comparison.n

    def told(id_: str) -> dict[str, Any]:
        row = list_problem(a.problems[id_], b.problems[id_])
        return {"id": id_, "question": row["question"], "why": found.why.get(id_, "")}

    return {
        "task": task, "a": a.name, "b": b.name, "samples": 1, "alpha": alpha, **asdict(comparison),
        "p_perm": None, "win_rate": win_rate, "win_low": low, "win_high": high,
        "ci_a": list(stats.wilson(comparison.losses, n, alpha)),
        "ci_b": list(stats.wilson(comparison.gains, n, alpha)),
        "judged": found.figures,
        "gained": [told(id_) for id_ in a.problems if found.won.get(id_) == "b"],
        "lost": [told(id_) for id_ in a.problems if found.won.get(id_) == "a"],
        "unjudged": [told(id_) for id_ in a.problems if id_ not in found.won],
        "differs": differs, "unchecked": unchecked(a, b),
    }  # fmt: skip


def deciding_p(result: Mapping[str, Any]) -> float:
    """The p-value of a comparison's test: exact, by sign flips, or the z test's."""
    p: float = next(result[k] for k in ("p_exact", "p_perm", "p") if result.get(k) is not None)
    return p


def decide(results: list[dict[str, Any]], alpha: float, *, name_tasks: bool = False) -> None:
    """Put p_holm, tests, verdict and sentence into each result."""
    adjusted = stats.holm([deciding_p(result) for result in results])
    for result, p in zip(results, adjusted, strict=True):
        result["p_holm"], result["tests"] = p, len(results)
        result["verdict"] = stats.verdict(p, result["ci_low"], result["ci_high"], alpha)
        task = result.get("task", "") if name_tasks else ""
        result["sentence"] = (
            stats.unpaired_sentence(result) if "unpaired" in result
            else stats.judged_sentence(result, task=task) if "judged" in result
            else stats.sentence(result, task=task)
        )  # fmt: skip


def list_problem(a: ProblemSamples, b: ProblemSamples) -> dict[str, Any]:
    """A problem that one side got right and the other did not (or more often than the other).

    question: None where neither folder has a problems.jsonl. right_a, right_b: shares of samples.
    answer_a, answer_b: what was parsed, of single samples.
    """
    found = a.problem or b.problem
    text = found.in_a_line(LISTED) if found else None
    row = {"id": a.id, "question": text, "right_a": a.score, "right_b": b.score}
    if len(a.samples) == len(b.samples) == 1:
        row |= {"answer_a": a.parsed[0], "answer_b": b.parsed[0]}
    return row


Pairs = Sequence[tuple[ProblemSamples, ProblemSamples]]


def secondary(a: Sequence[float], b: Sequence[float], alpha: float) -> dict[str, float]:
    """Another score of several samples, compared as the means are; Holm does not count it."""
    comparison, p = stats.clustered(a, b, alpha=alpha)
    named = ("accuracy_a", "accuracy_b", "difference", "ci_low", "ci_high")
    return {**{name: getattr(comparison, name) for name in named}, "p_perm": p}


def pass_at(pairs: Pairs, alpha: float) -> dict[str, dict[str, float]]:
    """k → unbiased pass@k compared, for k = 1, 2, 4, … and the number of samples itself."""
    most = min(len(one.samples) for one in pairs[0])
    counts = sorted({*(2**i for i in range(most.bit_length())), most})

    def scores(side: int, k: int) -> list[float]:
        return [
            stats.pass_at_k(len(pair[side].samples), sum(pair[side].right), k) for pair in pairs
        ]

    return {str(k): secondary(scores(0, k), scores(1, k), alpha) for k in counts}


def maj_at(pairs: Pairs, alpha: float) -> dict[str, dict[str, float]]:
    """k → maj@k compared, k the number of samples; a tie goes to the answer given first."""
    n, other = (len(one.samples) for one in pairs[0])
    if n != other:
        return {}
    a, b = (
        [float(stats.majority(pair[i].parsed, pair[i].right)) for pair in pairs] for i in (0, 1)
    )
    return {str(n): secondary(a, b, alpha)}


def plan(pairs: Pairs, options: Options) -> dict[str, Any]:
    """The problems that show the planned difference 4 times in 5 (Miller 2024, 2411.00640)."""
    delta = options.plan
    if len(pairs) < 2:
        raise UserError(
            "--plan: one problem says nothing of how much problems differ",
            "evaluate a few dozen problems first",
        )
    omega2, noise_a, noise_b = stats.variances(
        [x.right for x, _ in pairs], [y.right for _, y in pairs]
    )
    if all(len(one.samples) == 1 for one in pairs[0]):
        # single answers that differ by δ on average vary by δ − δ²
        omega2 = max(omega2, delta - delta**2)
    varies = {"omega2": omega2, "noise_a": noise_a, "noise_b": noise_b}
    needed = math.ceil(stats.questions_needed(delta, **varies, alpha=options.alpha))
    said = (
        f"About {needed} questions like these would probably show a difference of "
        f"{100 * delta:.3g} points (power {stats.POWER:.0%})."
    )
    return {"difference": delta, "questions": needed, **varies, "sentence": said}


# ---- what may be compared ------------------------------------------------------------------------


def check_alike(a: Arm, b: Arm, differ: Sequence[str]) -> list[dict[str, Any]]:
    """Refuses what cannot be compared; returns the differences that are intended.

    differ: keys of the setup that may differ, such as spec.prompt.style. Raises UserError.
    """
    differences = setup_differences(a, b)
    refused = [d for d in differences if not intended(d["key"], differ)]
    setup = setup_fault(a, b, refused)
    if a.task != b.task and a.task and b.task:
        raise UserError(
            f"not the same questions: {a.path} is of {a.task}, {b.path} of {b.task}",
            "evaluate both on the same spec",
        )
    if problems := problem_fault(a, b):
        raise UserError(
            "; ".join(filter(None, [problems, setup])),
            "evaluate both on the same spec, limit and seed, and to the end",
        )
    if setup:
        raise UserError(setup, hint_for([d["key"] for d in refused]))
    return differences


def hint_for(keys: Sequence[str]) -> str:
    """The --differ that allows these keys. One table that holds all of them is named, or each."""
    asked = [key for key in keys if key != "prompt_hash"]
    if not asked:
        return (
            "evaluate both with the same prompts; where only the models' chat templates differ: "
            "--differ prompt_hash"
        )
    levels = zip(*(key.split(".") for key in asked), strict=False)
    shared = ".".join(parts[0] for parts in takewhile(lambda parts: len({*parts}) == 1, levels))
    names = [shared] if "." in shared else {bare(key): key for key in asked}.values()
    given = " ".join(f"--differ {name}" for name in names)
    return (
        f"evaluate both alike, or, where that is what you compare: {given}; "
        "bare samples.jsonl files are compared regardless"
    )


def setup_differences(a: Arm, b: Arm) -> list[dict[str, Any]]:
    """The keys of two arms' setups that differ, as far as both tell, and either side's value."""
    found: dict[str, tuple[Any, Any]] = {}
    if a.samples != b.samples:
        found["decoding.samples"] = (a.samples, b.samples)
    for part in SETUP:
        if part in a.results and part in b.results:
            left, right = (flatten({part: one.results[part]}) for one in (a, b))
            for key in {**left, **right}:
                if left.get(key) != right.get(key):
                    found.setdefault(key, (left.get(key), right.get(key)))
    return [{"key": key, "a": x, "b": y} for key, (x, y) in found.items()]


def unchecked(a: Arm, b: Arm) -> list[str]:
    """The parts of the setup that one side does not tell."""
    told = [[part in one.results for one in (a, b)] for part in SETUP]
    # Results of before there were several rule sets name none.
    return [part for part, on in zip(SETUP, told, strict=True)
            if not all(on) and (part != "rules" or any(on))]  # fmt: skip


def intended(key: str, differ: Sequence[str]) -> bool:
    """True where a key, or a table it is in, is among those that may differ.

    decoding and spec share keys, and both prefixes may be left out. Where anything of the spec
    differs, so do the prompts that follow from it.
    """
    if key == "prompt_hash":
        return any(bare(given) not in AFTER_PROMPT for given in differ)
    head, plain = key.partition(".")[0], bare(key)
    return any(
        given == head or plain == bare(given) or plain.startswith(f"{bare(given)}.")
        for given in differ
    )


def bare(key: str) -> str:
    head, _, rest = key.partition(".")
    return rest if head in ("spec", "decoding") and rest else key


def check_keys(arms: Sequence[Arm], differ: Sequence[str]) -> None:
    """Refuse a --differ that no setup has: a slip there would look like a check that was made."""
    known = [
        key for arm in arms for part in SETUP if part in arm.results
        for key in flatten({part: arm.results[part]})
    ]  # fmt: skip
    settable = {"decoding.samples", *known} - {"prompt_hash"}
    for given in differ:
        fits = given in SETUP or any(intended(key, [given]) for key in settable)
        if known and not fits:
            raise UserError(
                f"--differ {given}: no such key in these evaluations",
                f"keys are: {', '.join(dict.fromkeys(known))}",
            )


def setup_fault(a: Arm, b: Arm, differences: Sequence[dict[str, Any]]) -> str:
    """The first key that differs with both values, and the names of the others."""
    if not differences:
        return ""
    first, *more = differences
    left, right = (repr(first[side]) for side in "ab")
    left, right = (text if len(text) <= 60 else text[:59] + "…" for text in (left, right))
    said = f"{first['key']} differs: {left} in {a.path}, {right} in {b.path}"
    return said + (f" (also: {', '.join(d['key'] for d in more)})" if more else "")


def problem_fault(a: Arm, b: Arm) -> str:
    """Returns how many problems only one side answered, and names the first of them."""
    same_task = a.task == b.task
    only_a = [id_ for id_ in a.problems if not same_task or id_ not in b.problems]
    only_b = [id_ for id_ in b.problems if not same_task or id_ not in a.problems]
    if not only_a and not only_b:
        return ""
    task, problem = (a.task, only_a[0]) if only_a else (b.task, only_b[0])
    return (
        f"not the same questions: {len(only_a)} only in {a.path}, {len(only_b)} only in {b.path}, "
        f"such as {f'{task} ' if task else ''}{problem}"
    )


# ---- counts alone --------------------------------------------------------------------------------


class Counted(NamedTuple):
    """right of n problems, one sample each."""

    name: str
    right: int
    n: int


def compare_counts(given: Sequence[str], options: Options) -> dict[str, Any]:
    """Each arm against the first where the problems are unknown, or not the same ones.

    The z test of two proportions (z, p) decides, or where a count is small Fisher's exact one
    (p_exact, else None); the interval is Newcombe's. given: counts such as 627/1000, results.json
    files, evaluation folders, or files of samples. As `compare_all`. Raises UserError.
    """
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
    check_arm_names(options.names, len(given))
    if options.names:
        arms = [arm._replace(name=one) for arm, one in zip(arms, options.names, strict=True)]
    elif len({arm.name for arm in arms}) < len(arms):
        arms = [arm._replace(name=one) for arm, one in zip(arms, given, strict=True)]
    chosen = chosen_pairs(len(arms), options)
    results = [compare_pair_of_counts(arms[i], arms[j], options.alpha) for i, j in chosen]
    return gather(results, options.alpha, [arm.name for arm in arms], [])


def compare_pair_of_counts(a: Counted, b: Counted, alpha: float) -> dict[str, Any]:
    z, p = stats.two_proportion(a.right, a.n, b.right, b.n)
    right, n = a.right + b.right, a.n + b.n
    few = min(a.n, b.n) * min(right, n - right) / n < FEW  # of the counts expected of equals
    table = [[a.right, a.n - a.right], [b.right, b.n - b.right]]
    low, high = stats.newcombe(a.right, a.n, b.right, b.n, alpha=alpha)
    return {
        "unpaired": True, "a": a.name, "b": b.name, "alpha": alpha, "n_a": a.n, "n_b": b.n,
        "right_a": a.right, "right_b": b.right,
        "accuracy_a": a.right / a.n, "accuracy_b": b.right / b.n,
        "ci_a": list(stats.wilson(a.right, a.n, alpha)),
        "ci_b": list(stats.wilson(b.right, b.n, alpha)),
        "difference": b.right / b.n - a.right / a.n, "ci_low": low, "ci_high": high,
        "test": "Fisher's exact test" if few else "two-proportion z", "z": z, "p": p,
        "p_exact": fisher_exact(table) if few else None,
    }  # fmt: skip


def fisher_exact(table: list[list[int]]) -> float:
    """Returns the p value of Fisher's exact test. Loaded when it is needed: the rest of scipy.stats
    would make every command begin half a second later."""
    from scipy.stats import fisher_exact as test

    return float(test(table).pvalue)


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
    arms = read_arm(path) if path.exists() else []
    if len(arms) != 1:
        raise UserError(
            f"{given}: no counts there",
            "give counts such as 627/1000, a results.json, an evaluation's folder or its samples",
        )
    refuse_repeated(given, arms[0].samples)
    right = sum(one.score == 1 for one in arms[0].problems.values())
    name = path.stem if path.is_file() else path.name
    return Counted(name, right, len(arms[0].problems))


def count_results(path: Path, file: Path) -> Counted:
    results = read_results(file) or {}
    accuracy, n, samples = (results.get(key, -1) for key in ("accuracy", "n", "samples"))
    if results.get("schema") == "quick/1":
        raise quick_fault(file)
    if type(n) is not int or n < 1 or type(accuracy) not in (int, float) or not 0 <= accuracy <= 1:
        raise UserError(
            f"{file}: no accuracy and n of an evaluation in it", "give the results.json of one"
        )
    refuse_repeated(str(path), samples if type(samples) is int else 1)
    right = round(accuracy * n)
    if abs(accuracy * n - right) > 1e-6 * n:
        raise UserError(
            f"{file}: an accuracy of {accuracy} is no whole number of {n} questions",
            "write the counts themselves: RIGHT/QUESTIONS",
        )
    return Counted(path.name if path.is_dir() else path.resolve().parent.name, right, n)


def refuse_repeated(given: str, samples: int) -> None:
    if samples > 1:
        raise UserError(
            f"{given} has {samples} samples a question: counts do not tell how they go together",
            "leave --unpaired out and give the folders with their samples",
        )
