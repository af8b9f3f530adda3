"""Several arms and tasks, intended differences, counts alone: what `compare` does beyond a pair."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest
from test_compare import DECODING, RESULTS, changed, evaluation, repeated, row, write

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import make_problem, to_row
from mlxreflect.evaluation.compare import Options, compare, compare_all
from mlxreflect.evaluation.unpaired import compare_counts
from mlxreflect.report.view import render_comparison

THINKING = {"task": {"name": "countdown"}, "prompt": {"style": "thinking"}, "limit": 20}
DIRECT = {**THINKING, "prompt": {"style": "direct"}}


def shown(result: dict[str, Any], *, whole: bool = False) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(render_comparison(result, whole=whole))
    return " ".join(capture.get().split())


def bits(n: int, share: float, seed: int) -> str:
    rng = random.Random(seed)
    return "".join(str(int(rng.random() < share)) for _ in range(n))


# ---- several arms --------------------------------------------------------------------------------


def test_every_arm_against_the_first_with_holms_adjustment(tmp_path: Path) -> None:
    answers = [bits(80, share, i) for i, share in enumerate((0.4, 0.55, 0.62, 0.45))]
    arms = [evaluation(tmp_path / f"arm{i}", right) for i, right in enumerate(answers)]
    result = compare_all(arms)
    assert result["schema"] == "comparisons/1"
    assert (result["arms"], result["tests"]) == (["arm0", "arm1", "arm2", "arm3"], 3)
    found = result["comparisons"]
    assert [(one["a"], one["b"]) for one in found] == [("arm0", f"arm{i}") for i in (1, 2, 3)]
    p = []
    for one, right in zip(found, answers[1:], strict=True):
        gains = sum(x < y for x, y in zip(answers[0], right, strict=True))
        losses = sum(x > y for x, y in zip(answers[0], right, strict=True))
        assert (one["gains"], one["losses"]) == (gains, losses)
        p.append(float(mcnemar([[0, losses], [gains, 0]], exact=True).pvalue))
    assert [one["p_exact"] for one in found] == pytest.approx(p)
    adjusted = multipletests(p, method="holm")[1]
    assert [one["p_holm"] for one in found] == pytest.approx(list(adjusted))
    for one in found:
        assert (one["verdict"] == "significant") == (one["p_holm"] < 0.05)
        assert "with Holm's adjustment for 3 comparisons" in one["sentence"]
    text = shown(result)
    assert "arm2 against arm0" in text
    assert "Holm's adjustment for 3 comparisons: of so many" in text


def test_the_adjusted_p_decides(tmp_path: Path) -> None:
    """8 gained and 1 lost: p = .039 alone, .078 as the smaller of two."""
    base, better = "0" * 8 + "1" + "1" * 11, "1" * 8 + "0" + "1" * 11
    a, b = evaluation(tmp_path / "a", base), evaluation(tmp_path / "b", better)
    same = evaluation(tmp_path / "c", base)
    assert compare(a, b)["verdict"] == "significant"
    assert compare(a, b)["p_holm"] == compare(a, b)["p_exact"]
    among, _ = compare_all([a, b, same])["comparisons"]
    assert among["p_holm"] == pytest.approx(2 * among["p_exact"])
    assert among["verdict"] == "borderline"


def test_all_pairs(tmp_path: Path) -> None:
    arms = [evaluation(tmp_path / name, bits(30, 0.5, i)) for i, name in enumerate("abc")]
    result = compare_all(arms, Options(all_pairs=True))
    pairs = [(one["a"], one["b"]) for one in result["comparisons"]]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    assert result["tests"] == 3


def test_one_folder_of_several_arms(tmp_path: Path) -> None:
    """The arm without an adapter is the baseline, whatever the names; a run's folder works too."""
    out = tmp_path / "run" / "eval"
    evaluation(out / "a-trained", "1111", changed(adapter="abc"))
    evaluation(out / "plain", "1000")
    for folder in (out, tmp_path / "run"):
        result = compare_all([folder])
        assert (result["a"], result["b"], result["gains"]) == ("plain", "a-trained", 3)
    evaluation(out / "base", "1000")
    assert compare_all([out])["arms"] == ["base", "plain", "a-trained"]
    with pytest.raises(UserError, match="not two evaluations"):
        compare_all([out / "base"])


def test_several_tasks_in_the_same_arms(tmp_path: Path) -> None:
    tasks = {"easy": ("1100", "1111"), "hard": ("0000", "0010")}
    for name, answers in tasks.items():
        for arm, right in zip(("base", "new"), answers, strict=True):
            rows = [row(i, c == "1", task=name) for i, c in enumerate(right)]
            write(tmp_path / arm / name, rows, RESULTS)
    result = compare_all([tmp_path / "base", tmp_path / "new"])
    assert result["tasks"] == ["easy", "hard"]
    assert [(one["task"], one["gains"]) for one in result["comparisons"]] == [
        ("easy", 2), ("hard", 1),
    ]  # fmt: skip
    assert result["comparisons"][1]["sentence"].startswith("hard: new answers 25.0% of 4")
    assert compare_all([tmp_path])["comparisons"] == result["comparisons"]
    write(tmp_path / "new" / "third", [row(0, True)], RESULTS)
    with pytest.raises(UserError, match=r"not the same tasks: third is only in .*new"):
        compare_all([tmp_path / "base", tmp_path / "new"])


def test_a_file_with_two_tasks_is_two_comparisons(tmp_path: Path) -> None:
    files = []
    for name, right in (("a", "1010"), ("b", "1111")):
        rows = [row(i, c == "1", task=task) for task in ("x", "y") for i, c in enumerate(right)]
        files.append(write(tmp_path / name, rows) / "samples.jsonl")
    assert [one["task"] for one in compare_all(files)["comparisons"]] == ["x", "y"]


def test_two_evaluations_of_the_same_questions_are_not_one_arm(tmp_path: Path) -> None:
    for arm in ("m1", "m2"):
        evaluation(tmp_path / "out" / arm, "1010")
    other = evaluation(tmp_path / "other", "1010")
    with pytest.raises(
        UserError, match="two evaluations of the same questions: m1 and m2"
    ) as error:
        compare_all([tmp_path / "out", other])
    assert f"mlxreflect compare {tmp_path / 'out'}" in error.value.hint


def test_what_is_not_alike_among_several_is_named(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", "10"), evaluation(tmp_path / "b", "11")
    c = evaluation(tmp_path / "c", "11", changed(decoding={**DECODING, "temperature": 1.0}))
    with pytest.raises(UserError, match=r"decoding.temperature differs: 0.0 in .*a, 1.0 in .*c"):
        compare_all([a, b, c])


# ---- problems gained and lost --------------------------------------------------------------------


def test_problems_gained_and_lost_are_listed(tmp_path: Path) -> None:
    problems = [make_problem("countdown", {"numbers": [3, i], "target": i}) for i in range(8)]
    problems.append(make_problem("gsm8k", {"question": "How\nmany?\x1b[2J " + "x" * 200}, "4"))
    for arm, right in (("a", "111000000"), ("b", "000011111")):
        rows = [{**row(0, c == "1"), "problem_id": p.id, "parsed": c + arm}
                for p, c in zip(problems, right, strict=True)]  # fmt: skip
        append_rows(write(tmp_path / arm, rows) / "problems.jsonl", map(to_row, problems))
    result = compare(tmp_path / "a", tmp_path / "b")
    assert [one["id"] for one in result["lost"]] == [p.id for p in problems[:3]]
    assert [one["id"] for one in result["gained"]] == [p.id for p in problems[4:]]
    first = result["lost"][0]
    assert first["question"] == "numbers [3, 0], target 0"
    assert (first["answer_a"], first["answer_b"]) == ("1a", "0b")
    assert (first["right_a"], first["right_b"]) == (1.0, 0.0)
    long = result["gained"][-1]["question"]
    assert long.startswith("How many?") and len(long) == 100
    few, whole = shown(result), shown(result, whole=True)
    assert f"{problems[0].id} numbers [3, 0], target 0 (1a → 0b)" in few
    assert "gained: 5" in few and "lost: 3" in few and "more;" not in few
    assert "\x1b" not in whole and "How many?\\x1b[2J" in whole
    more = evaluation(tmp_path / "c", "0" * 9, None), evaluation(tmp_path / "d", "1" * 9, None)
    many = compare(*more)
    assert many["gained"][0]["question"] is None
    assert "… and 4 more; all of them with --list or --json" in shown(many)
    assert f"{8:016x}" in shown(many, whole=True)


def test_samples_of_a_question_are_listed_by_their_shares(tmp_path: Path) -> None:
    result = compare(repeated(tmp_path / "a", [0, 2]), repeated(tmp_path / "b", [1, 1]))
    (gained,), (lost,) = result["gained"], result["lost"]
    assert (gained["right_a"], gained["right_b"]) == (0.0, 0.25)
    assert (lost["right_a"], lost["right_b"]) == (0.5, 0.25)
    assert "answer_a" not in gained
    assert "(0% → 25%)" in shown(result)


# ---- several samples -----------------------------------------------------------------------------


def test_pass_at_k_is_compared_by_question(tmp_path: Path) -> None:
    a, b = [0, 2, 4, 1, 3], [2, 3, 4, 0, 4]
    result = compare(repeated(tmp_path / "a", a), repeated(tmp_path / "b", b))
    assert list(result["pass_at"]) == ["1", "2", "4"]
    for k in (1, 2, 4):
        scores = [
            [1 - math.comb(4 - c, k) / math.comb(4, k) for c in arm] for arm in (a, b)
        ]  # fmt: skip
        found = result["pass_at"][str(k)]
        assert found["accuracy_a"] == pytest.approx(np.mean(scores[0]))
        difference = np.subtract(scores[1], scores[0])
        assert found["difference"] == pytest.approx(difference.mean())
        half = scipy_stats.norm.ppf(0.975) * difference.std(ddof=1) / math.sqrt(5)
        assert found["ci_high"] == pytest.approx(min(1, difference.mean() + half))
    assert result["pass_at"]["1"]["p_perm"] == result["p_perm"]
    assert result["samples"] == 4
    assert "pass@4" in shown(result) and "maj@4" in shown(result)


def test_majorities_are_compared_with_a_tie_for_the_first(tmp_path: Path) -> None:
    def voted(path: Path, votes: list[str]) -> Path:
        """A letter a sample; x is right, - is no answer."""
        rows = [
            {**row(i, vote == "x", sample=j), "parsed": None if vote == "-" else vote}
            for i, question in enumerate(votes)
            for j, vote in enumerate(question)
        ]
        return write(path, rows, None)

    a = voted(tmp_path / "a", ["xyyx", "yxxz", "----", "yxyx"])
    b = voted(tmp_path / "b", ["yxyx", "xxyy", "--x-", "zyxx"])
    (found,) = compare(a, b)["maj_at"].values()
    assert (found["accuracy_a"], found["accuracy_b"]) == (2 / 4, 3 / 4)


def test_unequal_numbers_of_samples(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [row(i, i < 3) for i in range(6)])
    four = repeated(tmp_path / "four", [4, 2, 0, 1, 1, 0])
    with pytest.raises(UserError, match=r"decoding.samples differs: 1 in .*one, 4 in .*four"):
        compare(one, four)
    result = compare(one, four, Options(differ=("samples",)))
    assert result["p_exact"] is None and result["p_perm"] is not None
    assert result["differs"] == [{"key": "decoding.samples", "a": 1, "b": 4}]
    assert list(result["pass_at"]) == ["1"] and result["maj_at"] == {}


# ---- what may differ -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["spec.prompt.style", "prompt.style", "spec.prompt", "spec"])
def test_an_intended_difference_is_allowed_and_told(tmp_path: Path, key: str) -> None:
    a = evaluation(tmp_path / "a", "10", changed(spec=THINKING))
    b = evaluation(tmp_path / "b", "11", changed(spec=DIRECT, prompt_hash="ffff"))
    with pytest.raises(UserError) as error:
        compare(a, b)
    assert "--differ spec.prompt.style" in error.value.hint
    result = compare(a, b, Options(differ=(key,)))
    assert [d["key"] for d in result["differs"]] == ["spec.prompt.style", "prompt_hash"]
    assert "Meant to differ: spec.prompt.style ('thinking' and 'direct'), prompt_hash" in shown(
        result
    )


def test_an_intended_difference_allows_no_other(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10", changed(spec=THINKING))
    spec, hot = {**DIRECT, "limit": 30}, {**DECODING, "temperature": 0.7}
    b = evaluation(tmp_path / "b", "11", changed(spec=spec, decoding=hot, prompt_hash="ffff"))
    with pytest.raises(UserError, match=r"^decoding.temperature differs.*\(also: spec.limit\)"):
        compare(a, b, Options(differ=("spec.prompt.style",)))
    with pytest.raises(UserError, match=r"^spec.prompt.style.*also: spec.limit, prompt_hash"):
        compare(a, b, Options(differ=("temperature", "decoding")))


def test_decoding_that_may_differ_leaves_the_prompts_to_be_the_same(tmp_path: Path) -> None:
    hot = {**DECODING, "temperature": 0.7}
    a = evaluation(tmp_path / "a", "10")
    b = evaluation(tmp_path / "b", "11", changed(decoding=hot))
    assert compare(a, b, Options(differ=("spec.temperature",)))["gains"] == 1
    c = evaluation(tmp_path / "c", "11", changed(decoding=hot, prompt_hash="ffff"))
    with pytest.raises(UserError, match=r"^prompt_hash differs") as error:
        compare(a, c, Options(differ=("decoding.temperature",)))
    assert "--differ prompt_hash" in error.value.hint
    with pytest.raises(UserError, match="--differ temprature: no such key"):
        compare(a, b, Options(differ=("temprature",)))


def test_answers_graded_by_other_rules_are_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10", changed(rules="flexible"))
    b = evaluation(tmp_path / "b", "11", changed(rules="strict"))
    with pytest.raises(UserError, match="rules differs: 'flexible'"):
        compare(a, b)
    assert compare(a, b, Options(differ=("rules",)))["gains"] == 1
    assert compare(a, evaluation(tmp_path / "c", "11"))["unchecked"] == ["rules"]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_an_alpha_that_is_none_is_refused(tmp_path: Path, alpha: float) -> None:
    a = evaluation(tmp_path / "a", "10")
    with pytest.raises(UserError, match="--alpha"):
        compare(a, a, Options(alpha=alpha))


def test_alpha_moves_intervals_and_verdict(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", "0" * 8 + "1" * 12), evaluation(tmp_path / "b", "1" * 20)
    usual, strict = compare(a, b), compare(a, b, Options(alpha=0.001))
    assert (usual["verdict"], strict["verdict"]) == ("significant", "not significant")
    assert strict["ci_low"] < usual["ci_low"] and strict["ci_a"][0] < usual["ci_a"][0]
    assert "99.9% interval" in strict["sentence"] and "99.9% interval" in shown(strict)


# ---- what is not finished, and what stopped early ------------------------------------------------


def test_an_evaluation_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", "10"), evaluation(tmp_path / "b", "11", None)
    (b / "setup.json").write_text("{}")
    with pytest.raises(UserError, match="b is an evaluation that is not finished"):
        compare(a, b)
    (b / "results.json").write_text(json.dumps(RESULTS))
    assert compare(a, b)["n"] == 2


def test_a_quick_evaluation_is_refused_with_the_reason(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10")
    quick = tmp_path / "quick"
    quick.mkdir()
    append_rows(quick / "quick.jsonl", [{**row(0, True), "schema": "quick-sample/1"}])
    (quick / "quick.json").write_text(json.dumps({"schema": "quick/1", "n": 1, "accuracy_a": 1}))
    renamed = quick / "copy" / "samples.jsonl"
    renamed.parent.mkdir()
    renamed.write_bytes((quick / "quick.jsonl").read_bytes())
    for path in (quick, quick / "quick.jsonl", renamed, renamed.parent):
        with pytest.raises(UserError, match="overstate the difference") as error:
            compare(a, path)
        assert "without --quick" in error.value.hint
    for given in (quick, quick / "quick.json", quick / "quick.jsonl"):
        with pytest.raises(UserError, match="overstate the difference"):
            compare_counts(["1/2", str(given)], Options())


# ---- how many questions --------------------------------------------------------------------------


def test_the_plan_is_millers_formula(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    hard = rng.random(60)
    a, b = rng.binomial(4, hard), rng.binomial(4, rng.random(60))
    result = compare(
        repeated(tmp_path / "a", a.tolist()),
        repeated(tmp_path / "b", b.tolist()),
        Options(plan=0.03),
    )
    within = [np.mean(c / 4 * (1 - c / 4) * 4 / 3) for c in (a, b)]  # σ², of one sample
    omega2 = np.var((b - a) / 4, ddof=1) - (within[0] + within[1]) / 4
    z = scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8)
    n = z**2 * (omega2 + within[0] / 4 + within[1] / 4) / 0.03**2
    assert result["plan"]["omega2"] == pytest.approx(omega2)
    assert result["plan"]["questions"] == math.ceil(n)
    assert f"About {math.ceil(n)} questions like these show a true difference of 3 points" in shown(
        result
    )


def test_a_plan_without_discord_still_needs_questions(tmp_path: Path) -> None:
    """A difference of 3 points is at least 3 questions of 100 that differ."""
    a = evaluation(tmp_path / "a", "1100")
    assert 200 < compare(a, a, Options(plan=0.03))["plan"]["questions"] < 300
    with pytest.raises(UserError, match="one question says nothing"):
        one = evaluation(tmp_path / "one", "1")
        compare(one, one, Options(plan=0.03))
    with pytest.raises(UserError, match="--plan 3"):
        compare(a, a, Options(plan=3))


# ---- counts alone --------------------------------------------------------------------------------


def test_counts_of_the_published_vector() -> None:
    result = compare_counts(["627/1000", "674/1000"], Options())
    assert result["z"] == pytest.approx(2.2041220, abs=1e-6)
    assert result["p"] == pytest.approx(0.0275158, abs=1e-6)
    assert (result["ci_low"], result["ci_high"]) == pytest.approx((0.0052064, 0.0885646), abs=1e-6)
    assert result["ci_a"] == pytest.approx([0.5965940, 0.6564339], abs=1e-6)
    assert (result["verdict"], result["unpaired"]) == ("significant", True)
    assert "Pairing the answers question by question" in result["sentence"]
    assert "not paired" in shown(result)


def test_counts_agree_with_statsmodels(tmp_path: Path) -> None:
    rng = random.Random(12)
    for _ in range(300):
        n, m = rng.randrange(2, 500), rng.randrange(2, 500)
        k, j = rng.randrange(n), rng.randrange(1, m + 1)
        found = compare_counts([f"{k}/{n}", f"{j}/{m}"], Options())
        z, p = proportions_ztest([j, k], [m, n])
        if not math.isnan(z):
            assert (found["z"], found["p"]) == pytest.approx((z, p), abs=1e-6)
        theirs = confint_proportions_2indep(j, m, k, n, method="newcomb", compare="diff")
        assert (found["ci_low"], found["ci_high"]) == pytest.approx(theirs, abs=1e-6)


def test_few_counts_are_tested_exactly() -> None:
    """5 of 5 against 1 of 3: z says 0.035; counted by hand, 3 of the 28 tables are as odd."""
    found = compare_counts(["5/5", "1/3"], Options())
    assert found["p"] == pytest.approx(0.0346, abs=1e-3)
    assert found["p_exact"] == pytest.approx(3 / 28)
    assert found["verdict"] != "significant" and "Fisher" in found["sentence"]
    many = compare_counts(["50/60", "20/60"], Options())
    assert many["p_exact"] is None and many["verdict"] == "significant"


def test_counts_of_files(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "1100", None)
    b = evaluation(tmp_path / "b", "11" * 10, {**RESULTS, "n": 20, "accuracy": 0.65, "samples": 1})
    for left, right in ((a, b), (a / "samples.jsonl", b / "results.json")):
        result = compare_counts([str(left), str(right)], Options())
        assert [result[key] for key in ("right_a", "n_a", "right_b", "n_b")] == [2, 4, 13, 20]
    several = compare_counts([str(b), "30/90", "50/90"], Options(all_pairs=True))
    assert several["tests"] == 3
    p = [one["p"] for one in several["comparisons"]]
    adjusted = multipletests(p, method="holm")[1]
    assert [one["p_holm"] for one in several["comparisons"]] == pytest.approx(list(adjusted))
    assert shown(several).count("Pairing the answers") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["1/2"], "nothing to compare it with"),
        (["1/2", "3/2"], "3/2: not so many"),
        (["1/2", "0/0"], "0/0: not so many"),
        (["1/2", "nope"], "nope: no counts there"),
        (["1/2", "{repeated}"], "has 4 samples a question"),
        (["1/2", "{odd}"], "no whole number of 7 questions"),
        (["1/2", "{empty}"], "no accuracy and n"),
    ],
)
def test_what_has_no_counts_is_refused(tmp_path: Path, given: list[str], said: str) -> None:
    places = {"repeated": repeated(tmp_path / "r", [1, 2]), "odd": tmp_path / "odd.json",
              "empty": tmp_path / "empty.json"}  # fmt: skip
    (places["repeated"] / "results.json").unlink()
    places["odd"].write_text('{"n": 7, "accuracy": 0.5}')
    places["empty"].write_text('{"accuracy": true}')
    with pytest.raises(UserError, match=said):
        compare_counts([one.format(**places) for one in given], Options())


def test_who_has_counts_alone_is_told_of_unpaired(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10")
    only = tmp_path / "only"
    only.mkdir()
    (only / "results.json").write_text("{}")
    for other, said in ((only, "no such file"), (only / "results.json", "not a JSONL file"),
                        (Path("627/1000"), "no such file")):  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            compare(a, other)
        assert "--unpaired" in error.value.hint


def test_counts_alone_take_no_keys_that_need_answers() -> None:
    for options in (Options(differ=("spec",)), Options(plan=0.1)):
        with pytest.raises(UserError, match="needs the answers to each question"):
            compare_counts(["1/2", "1/2"], options)
