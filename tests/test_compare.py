"""Comparing evaluations: real files in, the right figures out, and everything unlike refused."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mlxreflect import stats
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Sample, make_problem, to_row
from mlxreflect.evaluation.arms import distinct_names, read_arm
from mlxreflect.evaluation.compare import Options, compare, compare_all, compare_counts, hint_for
from mlxreflect.report.tables import render_comparison

DECODING = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 64, "seed": 0, "batch": 8}
RESULTS = {
    "schema": "results/1",
    "prompt_hash": "0123456789abcdef",
    "decoding": DECODING,
    "spec": {"task": {"name": "countdown", "limit": 0}, "limit": 20, "part": "heldout"},
    "model": "tiny",
}
PROMISED = {
    "n", "accuracy_a", "accuracy_b", "gains", "losses", "difference", "ci_low", "ci_high",
    "p_exact", "p_mid",
}  # fmt: skip


def row(problem: int, correct: bool, *, sample: int = 0, task: str = "countdown") -> dict[str, Any]:
    return to_row(
        Sample(task, f"{problem:016x}", sample, "text", [1, 2], "stop", "3", correct, True)
    )


def write(path: Path, rows: list[dict[str, Any]], results: dict[str, Any] | None = None) -> Path:
    """An evaluation folder; without results as a run that was killed leaves it."""
    path.mkdir(parents=True)
    (path / "samples.jsonl").touch()
    append_rows(path / "samples.jsonl", rows)
    if results is not None:
        (path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return path


def evaluation(path: Path, right: str, results: dict[str, Any] | None = RESULTS) -> Path:
    return write(path, [row(i, c == "1") for i, c in enumerate(right)], results)


def changed(**over: Any) -> dict[str, Any]:
    return {**RESULTS, **over}


def shown(result: dict[str, Any], *, whole: bool = False) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(render_comparison(result, whole=whole))
    return " ".join(capture.get().split())


def bits(n: int, share: float, seed: int) -> str:
    rng = random.Random(seed)
    return "".join(str(int(rng.random() < share)) for _ in range(n))


def test_two_evaluations(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "base", "1111000000")
    b = evaluation(tmp_path / "trained", "1110111100")
    result = compare(a, b)
    assert set(result) >= PROMISED
    assert (result["n"], result["gains"], result["losses"]) == (10, 4, 1)
    assert (result["accuracy_a"], result["accuracy_b"]) == (0.4, 0.7)
    assert result["difference"] == pytest.approx(0.3)
    assert result["p_exact"] == pytest.approx(2 * 6 / 32)  # (1 + 5) of 2^5 tables, both sides
    assert result["p_mid"] == pytest.approx(2 * (1 + 2.5) / 32)
    assert (result["ci_low"], result["ci_high"]) == stats.newcombe_paired(3, 4, 1, 2)
    assert (result["p_perm"], result["verdict"]) == (None, "not significant")
    assert result["unchecked"] == []
    assert result["sentence"].startswith("trained answers 70.0% of 10 questions right, base 40.0%")
    assert json.loads(json.dumps(result)) == result
    same = compare(a, a)
    assert (same["p_exact"], same["p_mid"], same["difference"]) == (1.0, 1.0, 0.0)


def test_questions_are_paired_whatever_their_order(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "110100")
    rows = [row(i, c == "1") for i, c in enumerate("101101")]
    b = write(tmp_path / "b", rows[::-1], RESULTS)
    assert (compare(a, b)["gains"], compare(a, b)["losses"]) == (2, 1)


def test_bare_files_are_compared_and_say_what_was_not_checked(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "110", None) / "samples.jsonl"
    b = evaluation(tmp_path / "b", "011", changed(prompt_hash="other")) / "samples.jsonl"
    result = compare(a, b)
    assert result["unchecked"] == ["decoding", "spec", "prompt_hash"]
    assert (result["a"], result["b"]) == ("a", "b")
    renamed = a.rename(tmp_path / "before.jsonl")
    assert compare(renamed, b)["a"] == "before"
    without = {k: v for k, v in RESULTS.items() if k != "spec"}
    x = evaluation(tmp_path / "x" / "base", "11", without)
    y = evaluation(tmp_path / "y" / "base", "11")
    result = compare(x, y)
    assert result["unchecked"] == ["spec"]
    assert (result["a"], result["b"]) == ("x", "y")  # folders of the same name


@pytest.mark.parametrize(
    ("over", "parts"),
    [
        ({"prompt_hash": "ffff"}, ["prompt_hash differs", "'0123456789abcdef'", "'ffff'"]),
        ({"decoding": {**DECODING, "temperature": 0.7}},
         ["decoding.temperature differs", "0.0", "0.7"]),
        ({"decoding": {**DECODING, "samples": 4}}, ["decoding.samples differs", "None", "4"]),
        ({"spec": {"limit": 50, "part": "heldout"}, "prompt_hash": "ffff"},
         ["spec.task.name differs", "(also: spec.task.limit, spec.limit, prompt_hash)"]),
    ],
)  # fmt: skip
def test_another_setup_is_refused(tmp_path: Path, over: dict[str, Any], parts: list[str]) -> None:
    a, b = evaluation(tmp_path / "a", "10"), evaluation(tmp_path / "b", "11", changed(**over))
    with pytest.raises(UserError) as caught:
        compare(a, b)
    for part in [*parts, str(a), str(b)]:
        assert part in caught.value.message


def test_other_questions_are_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10110")
    b = write(tmp_path / "b", [row(i, True) for i in range(3, 10)], changed(prompt_hash="ffff"))
    with pytest.raises(UserError) as caught:
        compare(a, b)
    message = caught.value.message
    assert f"3 only in {a}" in message
    assert f"5 only in {b}" in message
    assert f"{0:016x}" in message
    assert "prompt_hash differs" in message


def test_faults_of_samples_are_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "10", None)
    for name, rows, said in (
        ("task", [row(i, True, task="gsm8k") for i in range(2)], r"is of countdown, .* of gsm8k"),
        ("twice", [row(0, True), row(1, True), row(1, False)], "0001 has sample 0 twice"),
        ("empty", [], "no samples in it"),
        ("few", [row(0, True), row(0, True, sample=1), row(1, True)],
         "has 1 samples, others have 2"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            compare(a, write(tmp_path / name, rows))
    (tmp_path / "run" / "eval" / "base").mkdir(parents=True)
    with pytest.raises(UserError, match="no such file") as caught:
        compare(a, tmp_path / "run")
    assert str(tmp_path / "run" / "eval" / "base") in caught.value.hint


@pytest.mark.parametrize(
    "bad",
    [
        {"problem_id": "x", "correct": 1},
        {"problem_id": 7, "correct": True},
        {"problem_id": "x"},
        {"problem_id": "x", "correct": True, "sample": "0"},
        {"problem_id": "x", "correct": True, "schema": "episode/1"},
    ],
)
def test_rows_that_are_no_samples_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    path = write(tmp_path / "bad", [row(0, True), bad])
    with pytest.raises(UserError, match=r"samples.jsonl, row 2: not a sample"):
        read_arm(path)
    for text in ('{"n": 2', "[1]"):
        (path / "results.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"results\.json: not"):
            read_arm(path)


def repeated(path: Path, counts: list[int]) -> Path:
    """Four samples a question, `counts` of them right."""
    rows = [row(i, j < k, sample=j) for i, k in enumerate(counts) for j in range(4)]
    return write(path, rows, RESULTS)


def test_several_samples_a_question(tmp_path: Path) -> None:
    a, b = repeated(tmp_path / "a", [0, 2, 4, 1]), repeated(tmp_path / "b", [2, 3, 4, 0])
    result = compare(a, b)
    assert (result["n"], result["gains"], result["losses"]) == (4, 2, 1)
    assert result["accuracy_a"] == pytest.approx(7 / 16)
    assert result["accuracy_b"] == pytest.approx(9 / 16)
    assert result["difference"] == pytest.approx(2 / 16)
    assert (result["p_exact"], result["p_mid"]) == (None, None)
    # Differences .5 .25 0 -.25: of the 8 sign patterns six reach |.5| or more in sum.
    assert result["p_perm"] == pytest.approx(6 / 8)
    error = 0.3227486 / 2  # standard deviation of the four differences over √4
    assert result["ci_low"] == pytest.approx(0.125 - 1.959964 * error, abs=1e-6)
    assert "sign-flip p = 0.75" in result["sentence"]
    (gained, _), (lost,) = result["gained"], result["lost"]
    assert (gained["right_a"], gained["right_b"], lost["right_b"]) == (0.0, 0.5, 0.0)
    assert "answer_a" not in gained and "(0% → 50%)" in shown(result)


def test_rendered_comparison(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "[red]base", "1111000000", None)
    b = evaluation(tmp_path / "trained", "1110111111", None)
    result = compare(a, b)
    text = shown(result)
    for part in ("[red]base", "40.0% (16.8 to 68.7)", "6, 1", "+50.0 points", "Not checked"):
        assert part in text
    assert f"{stats.mcnemar_exact(6, 1):.3g}" in text
    assert "sign-flip" not in text


@pytest.mark.parametrize(
    ("keys", "given"),
    [(["spec.chain.round", "spec.chain.feedback", "prompt_hash"], "--differ spec.chain;"),
     (["spec.prompt.style"], "--differ spec.prompt.style;"),
     (["spec.limit", "decoding.limit", "spec.seed"], "--differ decoding.limit --differ spec.seed")],
)  # fmt: skip
def test_the_hint_names_what_mends_it_at_once(keys: list[str], given: str) -> None:
    assert given in hint_for(keys)


THINKING = {"task": {"name": "countdown"}, "prompt": {"style": "thinking"}, "limit": 20}
DIRECT = {**THINKING, "prompt": {"style": "direct"}}


# ---- several arms --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "names"),
    [(["r3--tiny--20261129-1", "r3--tiny--20261129-2"], ["20261129-1", "20261129-2"]),
     (["r3--tiny--20261129-1", "rel--tiny--20261129-2"], ["r3", "rel"]),
     (["run-a", "run-b"], ["run-a", "run-b"])],
)  # fmt: skip
def test_runs_are_told_apart_by_short_names(
    folders: list[str], names: list[str], tmp_path: Path
) -> None:
    paths = [tmp_path / "runs" / folder / "eval" / "trained" for folder in folders]
    assert distinct_names(paths) == names


def test_every_arm_against_the_first_with_holms_adjustment(tmp_path: Path) -> None:
    answers = [bits(80, share, i) for i, share in enumerate((0.4, 0.55, 0.62, 0.45))]
    arms = [evaluation(tmp_path / f"arm{i}", right) for i, right in enumerate(answers)]
    result = compare_all(arms)
    assert result["schema"] == "comparisons/1"
    assert (result["arms"], result["tests"]) == (["arm0", "arm1", "arm2", "arm3"], 3)
    found = result["comparisons"]
    assert [(one["a"], one["b"]) for one in found] == [("arm0", f"arm{i}") for i in (1, 2, 3)]
    p = [compare(arms[0], arm)["p_exact"] for arm in arms[1:]]
    assert [one["p_exact"] for one in found] == p
    assert [one["p_holm"] for one in found] == stats.holm(p)
    for one in found:
        assert (one["verdict"] == "significant") == (one["p_holm"] < 0.05)
        assert "with Holm's adjustment for 3 comparisons" in one["sentence"]
    text = shown(result)
    assert "arm2 against arm0" in text
    assert "Holm's adjustment for 3 comparisons: of so many" in text
    every = compare_all(arms[:3], Options(all_pairs=True))["comparisons"]
    assert [(one["a"], one["b"], one["tests"]) for one in every] == [
        ("arm0", "arm1", 3), ("arm0", "arm2", 3), ("arm1", "arm2", 3),
    ]  # fmt: skip


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


def test_a_file_of_two_tasks_is_two_comparisons_in_the_order_of_the_first_arm(
    tmp_path: Path,
) -> None:
    """Each test is of one task, though the second arm answered them the other way round."""
    files = []
    for name, tasks in (("a", "xy"), ("b", "yx")):
        rows = [row(i, name == "b" and task == "y", task=task) for task in tasks for i in range(4)]
        files.append(write(tmp_path / name, rows) / "samples.jsonl")
    result = compare_all(files)
    assert result["tasks"] == ["x", "y"]
    found = [(one["task"], one["gains"]) for one in result["comparisons"]]
    assert found == [("x", 0), ("y", 4)]


@pytest.mark.parametrize("keeper", ["a", "b"])
def test_problems_are_told_where_only_one_folder_kept_them(tmp_path: Path, keeper: str) -> None:
    problem = make_problem("gsm8k", {"question": "How many?"}, "1")
    for name, right in (("a", False), ("b", True)):
        write(tmp_path / name, [{**row(0, right), "problem_id": problem.id}])
    append_rows(tmp_path / keeper / "problems.jsonl", [to_row(problem)])
    (gained,) = compare(tmp_path / "a", tmp_path / "b")["gained"]
    assert gained["question"] == "How many?"


def test_two_evaluations_of_the_same_questions_are_not_one_arm(tmp_path: Path) -> None:
    for arm in ("m1", "m2"):
        evaluation(tmp_path / "out" / arm, "1010")
    other = evaluation(tmp_path / "other", "1010")
    with pytest.raises(UserError, match="two evaluations of the same problems: m1 and m2") as error:
        compare_all([tmp_path / "out", other])
    assert f"mlxreflect compare {tmp_path / 'out'}" in error.value.hint


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
    assert first["question"] == "numbers 3 0, target 0"
    assert (first["answer_a"], first["answer_b"]) == ("1a", "0b")
    assert (first["right_a"], first["right_b"]) == (1.0, 0.0)
    long = result["gained"][-1]["question"]
    assert long.startswith("How many?") and len(long) == 100
    few, whole = shown(result), shown(result, whole=True)
    assert f"{problems[0].id} numbers 3 0, target 0 (1a → 0b)" in few
    assert "gained: 5" in few and "lost: 3" in few and "more;" not in few
    assert "\x1b" not in whole and "How many?\\x1b[2J" in whole
    more = evaluation(tmp_path / "c", "0" * 9, None), evaluation(tmp_path / "d", "1" * 9, None)
    many = compare(*more)
    assert many["gained"][0]["question"] is None
    assert "… and 4 more; all of them with --list or --json" in shown(many)
    assert f"{8:016x}" in shown(many, whole=True)


# ---- several samples -----------------------------------------------------------------------------


def test_pass_at_k_is_compared_by_question(tmp_path: Path) -> None:
    a, b = [0, 2, 4, 1, 3], [2, 3, 4, 0, 4]
    result = compare(repeated(tmp_path / "a", a), repeated(tmp_path / "b", b))
    assert list(result["pass_at"]) == ["1", "2", "4"]
    for k in (1, 2, 4):
        scores = [[stats.pass_at_k(4, c, k) for c in arm] for arm in (a, b)]
        expected, p = stats.clustered(*scores)
        found = result["pass_at"][str(k)]
        named = ("accuracy_a", "accuracy_b", "difference", "ci_low", "ci_high")
        assert found == {key: getattr(expected, key) for key in named} | {"p_perm": p}
    assert result["pass_at"]["1"]["difference"] == result["difference"]
    assert result["samples"] == 4
    text = shown(result)
    assert "pass@4" in text and "maj@4" in text and "sign-flip p" in text and "mid-p" not in text


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


HOT = {**DECODING, "temperature": 0.7}
STYLE = {"spec": THINKING}, {"spec": DIRECT, "prompt_hash": "ffff"}
MUCH = {"spec": THINKING}, {"spec": {**DIRECT, "limit": 30}, "decoding": HOT, "prompt_hash": "ffff"}
RULES = {"rules": "flexible"}, {"rules": "strict"}


@pytest.mark.parametrize(
    ("setups", "differ", "refused"),
    [(STYLE, key, "") for key in ("spec.prompt.style", "prompt.style", "spec.prompt", "spec")] + [
        (MUCH, "spec.prompt.style", r"^decoding.temperature differs.*\(also: spec.limit\)"),
        (MUCH, "temperature decoding", r"^spec.prompt.style.*also: spec.limit, prompt_hash"),
        (({}, {"decoding": HOT}), "spec.temperature", ""),
        # Decoding that may differ leaves the prompts to be the same.
        (({}, {"decoding": HOT, "prompt_hash": "ffff"}), "temperature", "^prompt_hash differs"),
        (({}, {"decoding": HOT}), "temprature", "--differ temprature: no such key"),
        (RULES, "", "rules differs: 'flexible'"),
        (RULES, "rules", ""),
    ],
)  # fmt: skip
def test_what_is_meant_to_differ_is_allowed_and_nothing_else(
    tmp_path: Path, setups: tuple[dict[str, Any], dict[str, Any]], differ: str, refused: str
) -> None:
    a, b = (evaluation(tmp_path / name, right, changed(**setup))
            for name, right, setup in zip("ab", ("10", "11"), setups, strict=True))  # fmt: skip
    options = Options(differ=tuple(differ.split()))
    if not refused:
        assert compare(a, b, options)["gains"] == 1
        return
    with pytest.raises(UserError, match=refused):
        compare(a, b, options)


def test_an_intended_difference_is_told(tmp_path: Path) -> None:
    a, b = (evaluation(tmp_path / name, "10", changed(**setup))
            for name, setup in zip("ab", STYLE, strict=True))  # fmt: skip
    with pytest.raises(UserError) as error:
        compare(a, b)
    assert "--differ spec.prompt.style" in error.value.hint
    result = compare(a, b, Options(differ=("prompt.style",)))
    assert [d["key"] for d in result["differs"]] == ["spec.prompt.style", "prompt_hash"]
    said = "Meant to differ: spec.prompt.style ('thinking' and 'direct'), prompt_hash"
    assert said in shown(result)
    ruled = evaluation(tmp_path / "c", "11", changed(rules="strict", **STYLE[0]))
    assert compare(a, ruled)["unchecked"] == ["rules"]


def test_alpha_moves_intervals_and_verdict(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", "0" * 8 + "1" * 12), evaluation(tmp_path / "b", "1" * 20)
    usual, strict = compare(a, b), compare(a, b, Options(alpha=0.001))
    assert (usual["verdict"], strict["verdict"]) == ("significant", "not significant")
    assert strict["ci_low"] < usual["ci_low"] and strict["ci_a"][0] < usual["ci_a"][0]
    assert "99.9% interval" in strict["sentence"] and "99.9% interval" in shown(strict)


# ---- what is not finished, and what stopped early ------------------------------------------------


def test_an_evaluation_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", "10"), evaluation(tmp_path / "b", "11", None)
    with (b / "samples.jsonl").open("a") as out:
        out.write('{"schema": "sample/1", "pro')  # a torn last line is no sample
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
    arms = [rng.binomial(4, rng.random(60)).tolist() for _ in "ab"]
    a, b = (repeated(tmp_path / name, arm) for name, arm in zip("ab", arms, strict=True))
    result = compare(a, b, Options(plan=0.03))
    omega2, *noise = stats.variances(*([[j < c for j in range(4)] for c in arm] for arm in arms))
    needed = math.ceil(
        stats.questions_needed(0.03, omega2=omega2, noise_a=noise[0], noise_b=noise[1])
    )
    assert (result["plan"]["omega2"], result["plan"]["questions"]) == (omega2, needed)
    said = f"About {needed} questions like these would probably show a difference of 3 points"
    assert said in shown(result)


def test_a_plan_without_discord_still_needs_questions(tmp_path: Path) -> None:
    """A difference of 3 points is at least 3 questions of 100 that differ."""
    a = evaluation(tmp_path / "a", "1100")
    assert 200 < compare(a, a, Options(plan=0.03))["plan"]["questions"] < 300
    with pytest.raises(UserError, match="one problem says nothing"):
        one = evaluation(tmp_path / "one", "1")
        compare(one, one, Options(plan=0.03))
    for key, value in (("plan", 3), ("alpha", 0), ("alpha", 1)):
        with pytest.raises(UserError, match=f"--{key} {value}: not"):
            Options(**{key: value})


# ---- counts alone --------------------------------------------------------------------------------


def test_counts_alone() -> None:
    result = compare_counts(["627/1000", "674/1000"], Options())
    assert (result["z"], result["p"]) == stats.two_proportion(627, 1000, 674, 1000)
    assert (result["ci_low"], result["ci_high"]) == stats.newcombe(627, 1000, 674, 1000)
    assert (tuple(result["ci_a"]), tuple(result["ci_b"])) == (
        stats.wilson(627, 1000),
        stats.wilson(674, 1000),
    )
    assert (result["verdict"], result["unpaired"]) == ("significant", True)
    assert "Pairing the answers question by question" in result["sentence"]
    assert "not paired" in shown(result)
    for options in (Options(differ=("spec",)), Options(plan=0.1)):
        with pytest.raises(UserError, match="needs the answers to each question"):
            compare_counts(["1/2", "1/2"], options)


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
    assert [one["p_holm"] for one in several["comparisons"]] == stats.holm(p)
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
