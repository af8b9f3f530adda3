"""Reports out of evaluation folders: arms, table, difficulty, hostile text, the command."""

import json
import re
import sys
from pathlib import Path
from statistics import NormalDist, fmean, stdev

import pytest
from markdown_it import MarkdownIt
from support.arm_folders import RIGHT, gsm8k, write_arm

from mlxreflect.cli.main import main
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.evaluation.export_arms import arm_interval, asked, interval, load_arms
from mlxreflect.report.difficulty import difficulty
from mlxreflect.report.inspect_log import write_inspect
from mlxreflect.report.lm_eval import write_lm_eval
from mlxreflect.report.markdown import cell, markdown
from mlxreflect.report.pairs import pair_up
from mlxreflect.report.report import file_names, write_outputs
from mlxreflect.stats import wilson

HOSTILE = {
    "surrogates": "half \ud83d of one, \udc4d of another",
    "nul": "a\x00b\x1b[31mred\x1b[0m\x07",
    "script": "</script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "markdown": "| a | `b` | **c** | [d](http://e.example) |\n\n# f\n---\n```",
    "long": "<answer>" * 120_000,
    "separators": "\u2028\u2029\u202e\r\n\t",
}
NAMES = ["a|b", "`x`", "<b>c</b>", "[d](http://e)", "**f**", "__g__", "$h$", "~~i~~", "\x1b[31mj",
         "https://k.example", "www.l.example", "m@n.example", "&lt;", "\\", "o\np",
         "my_model"]  # fmt: skip


def right(problems: list[Problem], ids: set[int]) -> list[list[str]]:
    """One text a question; those of the given places are right."""
    return [[RIGHT.format(p.gold if i in ids else -1)] for i, p in enumerate(problems)]


def run_dir(root: Path) -> Path:
    problems = gsm8k(40)
    write_arm(root / "eval" / "trained", problems, right(problems, set(range(30))), adapter="ab12")
    write_arm(root / "eval" / "base", problems, right(problems, set(range(8, 24))))
    return root


# ---- which arms, and what they hold --------------------------------------------------------------


def test_arms_are_found_in_folders_runs_and_by_themselves(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run")
    for given in ([run], [run / "eval"], [run / "eval" / "base", run / "eval" / "trained"]):
        assert [arm.name for arm in load_arms(given)] == ["base", "trained"]
    assert [arm.name for arm in load_arms([run / "eval" / "trained", run])] == ["trained", "base"]
    again = run_dir(tmp_path / "again")

    def named(*folders: Path) -> list[str]:
        return [arm.name for arm in load_arms(folders)]

    assert named(run / "eval" / "base", again / "eval" / "base") == ["run", "again"]
    assert named(run, again)[::2] == ["run/eval/base", "again/eval/base"]
    texts = right(gsm8k(3), {0})
    for arm in ("a", "b"):
        write_arm(tmp_path / "many" / arm / "gsm8k", gsm8k(3), texts)
    assert named(tmp_path / "many") == ["a", "b"]


def test_faults_of_folders_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(UserError, match="no evaluation in it"):
            write_outputs([folder])
    arm = run_dir(tmp_path / "run") / "eval" / "base"
    (arm / "results.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        write_outputs([tmp_path / "run"])
    (arm / "results.json").write_text("{}")
    with (arm / "samples.jsonl").open("a") as samples:
        samples.write('{"task": "gsm8k"}\n')
    with pytest.raises(UserError, match="row 41: not a sample"):
        write_outputs([arm])


def test_questions_keep_their_order_and_samples(tmp_path: Path) -> None:
    problems = gsm8k(6)
    texts = [[RIGHT.format(i + 1), "nothing", RIGHT.format(i)] for i in range(6)]
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, texts)])
    assert [q.id for q in arm.questions] == [p.id for p in problems]
    assert [s.text for s in arm.questions[2].samples] == texts[2]
    assert [q.score for q in arm.questions] == pytest.approx([1 / 3] * 6)


def test_the_prompt_is_the_one_that_was_sent(tmp_path: Path) -> None:
    problems = gsm8k(2)
    templates = {"attempt_direct": "{instruction} In short."}
    prompt = {"style": "direct", "templates": templates}
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, right(problems, {0}), prompt=prompt)])
    system, user = asked(arm, problems[1])
    assert isinstance(system, dict) and isinstance(user, dict)
    assert system["content"].endswith("and without commas. In short.")
    assert user == {"role": "user", "content": problems[1].fields["question"]}


def test_intervals_are_wilsons_or_clustered(tmp_path: Path) -> None:
    problems = gsm8k(20)
    (one,) = load_arms([write_arm(tmp_path / "one", problems, right(problems, set(range(13))))])
    assert interval(one.questions) == (0.65, *wilson(13, 20))
    texts = [[RIGHT.format(p.gold if i % 4 <= j else 0) for j in range(3)]
             for i, p in enumerate(problems)]  # fmt: skip
    (many,) = load_arms([write_arm(tmp_path / "many", problems, texts)])
    scores = [max(0, 3 - i % 4) / 3 for i in range(20)]
    half = NormalDist().inv_cdf(0.975) * stdev(scores) / 20**0.5
    assert interval(many.questions) == pytest.approx(
        (fmean(scores), fmean(scores) - half, fmean(scores) + half)
    )


def test_an_interval_of_the_evaluation_itself_is_kept(tmp_path: Path) -> None:
    folder = write_arm(tmp_path / "a", gsm8k(4), right(gsm8k(4), {0}))
    (arm,) = load_arms([folder])
    assert arm_interval(arm) == (0.25, *wilson(1, 4))
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"ci_low": 0.1, "ci_high": 0.6}))
    assert arm_interval(load_arms([folder])[0]) == (0.25, 0.1, 0.6)


def test_scores_that_are_all_alike_have_an_interval(tmp_path: Path) -> None:
    (arm,) = load_arms([write_arm(tmp_path / "a", gsm8k(10), [["no", "no"]] * 10)])
    assert interval(arm.questions) == (0.0, *wilson(0, 10))


# ---- the table -----------------------------------------------------------------------------------


def html_cells(table: str) -> list[list[str]]:
    """Rows of cells as a Markdown renderer sees them, without raw HTML."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(table)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r, re.S) for r in html.split("<tr>")[1:]]


def test_the_table_holds_accuracy_interval_difference_and_p(tmp_path: Path) -> None:
    arms = load_arms([run_dir(tmp_path)])
    table = markdown(arms, pair_up(arms))
    head, base, trained = html_cells(table)
    assert base[:4] == ["gsm8k", "base", "40", "40.0%"]
    low, high = wilson(30, 40)
    assert trained[2:5] == ["40", "75.0%", f"{100 * low:.1f} to {100 * high:.1f}"]
    # 22 right in both arms' order: 14 gained (0–7, 24–29), none lost.
    assert dict(zip(head, trained, strict=True))["difference"] == "+35.0"
    assert dict(zip(head, trained, strict=True))["gained, lost"] == "14, 0"
    assert float(trained[-1]) == pytest.approx(2 * 0.5**14, rel=0.05)
    assert "significant (exact McNemar" in table
    assert base[6:] == [""] * 4


def test_holm_is_over_all_comparisons_of_the_report(tmp_path: Path) -> None:
    problems = gsm8k(40)
    for name, ids in (("a", range(20)), ("b", range(26)), ("c", range(31))):
        write_arm(tmp_path / name, problems, right(problems, set(ids)))
    pairs = pair_up(load_arms([tmp_path]))
    first, second = 2 * 0.5**6, 2 * 0.5**11
    assert [pair.p for pair in pairs] == pytest.approx([first, second])
    assert [pair.p_holm for pair in pairs] == pytest.approx([first, 2 * second])


def test_what_cannot_be_compared_says_so(tmp_path: Path) -> None:
    problems = gsm8k(10)
    write_arm(tmp_path / "base", problems, right(problems, {1}))
    write_arm(tmp_path / "other", problems[:9], right(problems[:9], {1}))
    arms = load_arms([tmp_path])
    pairs = pair_up(arms)
    assert pairs[0].fault.startswith("not the same questions")
    table = markdown(arms, pairs)
    assert "other is not compared with base: not the same questions" in table
    assert [len(cells) for cells in html_cells(table)] == [10, 10, 10]


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_text_in_one_cell(name: str) -> None:
    table = f"| model | n |\n| :-- | --: |\n| {cell(name)} | 1 |\n"
    html = MarkdownIt("gfm-like", {"html": True}).render(table)
    (shown,) = re.findall(r"<tr>\s*<td[^>]*>(.*?)</td>\s*<td[^>]*>1</td>", html, re.S)
    assert "<" not in shown
    plain = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain == name.replace("\n", " ").replace("\x1b", "\\x1b")


def test_long_names_are_cut() -> None:
    assert len(cell("n" * 500)) == 80


# ---- difficulty ----------------------------------------------------------------------------------


def test_difficulty_of_each_task() -> None:
    name, levels = difficulty(gsm8k(8))
    assert name == "steps of the worked solution"
    assert list(dict.fromkeys(levels.values())) == ["1", "2", "3", "4"]
    assert levels[gsm8k(8)[6].id] == "3"

    def countdown(*numbers: int) -> Problem:
        return make_problem("countdown", {"numbers": list(numbers), "target": 24})

    mixed = [countdown(20, 3, 1), countdown(1, 2, 3, 4)]
    assert difficulty(mixed) == ("numbers given", {mixed[0].id: "3", mixed[1].id: "4"})
    three = [countdown(4, 6, 1), countdown(20, 5, 1)]
    name, levels = difficulty(three)
    assert levels == {three[1].id: "+ and − suffice", three[0].id: "needs × or ÷"}
    sums = [make_problem("arithmetic", {"expression": e}, "0") for e in
            ("-3 + 4 * (2 - 1)", "1 - 1")]  # fmt: skip
    assert difficulty(sums) == (
        "operations in the expression", {sums[1].id: "1", sums[0].id: "3"}
    )  # fmt: skip


def test_difficulty_of_anything_else_is_length_in_quarters() -> None:
    asked = [make_problem("jsonl", {"question": "q" * n, "answer_type": "number"}, "1")
             for n in range(1, 101)]  # fmt: skip
    name, levels = difficulty(asked)
    assert "length" in name
    named = [levels[p.id].split("\n")[0] for p in asked]
    assert [named.count(level) for level in dict.fromkeys(named)] == [25] * 4
    assert next(iter(levels.values())).startswith("1–25")
    assert difficulty(asked[:1])[1] == {asked[0].id: "all"}


# ---- hostile text, old folders, the command ------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_breaks_no_file(kind: str, tmp_path: Path) -> None:
    text = HOSTILE[kind]
    problems = [make_problem("gsm8k", {"question": text}, "7", {"solution": text + "#### 7"}),
                *gsm8k(3)]  # fmt: skip
    texts = [[text], [RIGHT.format(text)], ["x"], ["y"]]
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, texts)])
    log = json.loads(write_inspect(arm, tmp_path).read_text("utf-8"))
    (answer,) = [s["output"]["completion"] for s in log["samples"] if s["id"] == problems[0].id]
    assert answer == re.sub("[\ud800-\udfff]", "\ufffd", text)
    results, samples = write_lm_eval(arm, tmp_path)
    assert json.loads(results.read_text("utf-8"))["n-samples"]["gsm8k"]["effective"] == 4
    rows = [json.loads(line) for line in samples.read_bytes().splitlines()]
    assert len(rows) == 8
    assert rows[0]["resps"] == [[answer]]


def test_two_half_characters_beside_each_other_are_one(tmp_path: Path) -> None:
    problems = gsm8k(1)
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, [["\ud83d\ude00"]])])
    assert arm.questions[0].samples[0].text == "\U0001f600"


def test_folders_without_problems_have_ids_instead(tmp_path: Path) -> None:
    problems = gsm8k(5)
    texts = right(problems, {0, 1})
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, texts, keep_problems=False)])
    log = json.loads(write_inspect(arm, tmp_path).read_text())
    assert [s["input"][0]["content"] for s in log["samples"]] == [p.id for p in problems]
    rows = write_lm_eval(arm, tmp_path)[1].read_text().splitlines()
    assert [json.loads(row)["doc"] for row in rows[:5]] == [{"id": p.id} for p in problems]


def test_files_of_arms_have_names_of_their_own(tmp_path: Path) -> None:
    problems = gsm8k(2)
    for name in ("..a", "A b", "a_b", "a b"):
        write_arm(tmp_path / "arms" / name, problems, right(problems, {0}))
    arms = load_arms([tmp_path / "arms"])
    names = file_names(arms)
    assert len({name.casefold() for name in names}) == 4
    assert all(re.fullmatch(r"[A-Za-z_][\w.-]*", name) for name in names)
    assert len({write_inspect(arm, tmp_path) for arm in arms}) == 4


def test_a_report_again_is_the_same_files(tmp_path: Path) -> None:
    run_dir(tmp_path)

    def files() -> dict[str, bytes]:
        write_outputs([tmp_path])
        found = (tmp_path / "report").rglob("*")
        return {str(path): path.read_bytes() for path in found if path.is_file()}

    first = files()
    assert len(first) == 1 + 2 * 2 + 2 + 3
    assert files() == first


def test_the_time_in_a_name_is_when_the_last_answer_came(tmp_path: Path) -> None:
    problems = gsm8k(2)
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, right(problems, {0}))])
    results, samples = write_lm_eval(arm, tmp_path)
    assert re.fullmatch(r"results_2026-09-\d\dT\d\d-\d\d-\d1\.500000\.json", results.name)
    assert samples.name == results.name.replace("results", "samples_gsm8k") + "l"


def test_the_command_prints_the_table_and_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir(tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def report(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mlxreflect", "report", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, out, _ = report("run", "--json", "--out", "there")
    found = json.loads(out)
    assert [(arm["name"], arm["accuracy"]) for arm in found["arms"]] == [
        ("base", 0.4), ("trained", 0.75)
    ]  # fmt: skip
    assert (code, found["comparisons"][0]["gains"]) == (0, 14)
    for path in (found["table"], *found["lm_eval"], *found["inspect"], *found["plots"]):
        assert (tmp_path / path).is_file() and path.startswith("there/")
    code, out, _ = report("run/eval/base")
    assert out.startswith("| task | model |") and "run/eval/base/report/table.md" in out
    code, _, error = report("missing")
    assert code == 2
    assert error.startswith("error: missing: no evaluation in it\nhint: ")
