"""Reports out of evaluation folders: arms, table, difficulty, hostile text, the command."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest
from markdown_it import MarkdownIt
from support.arm_folders import RIGHT, gsm8k, write_arm

from mlxreflect.cli.main import main
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.evaluation.arms import interval, load_arms
from mlxreflect.evaluation.compare import Options, compare_all, compare_report
from mlxreflect.report.plots import difficulty
from mlxreflect.report.report import cell, markdown, prompt_of, write_inspect, write_outputs
from mlxreflect.stats import wilson

reader = pytest.importorskip("inspect_ai.log")

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
    assert named(run, again)[::2] == ["run/base", "again/base"]
    texts = right(gsm8k(3), {0})
    for arm in ("a", "b"):
        write_arm(tmp_path / "many" / arm / "gsm8k", gsm8k(3), texts)
    assert named(tmp_path / "many") == ["a", "b"]
    arms = load_arms([run, again / "eval" / "trained"], ["mine", "other"])
    assert [arm.name for arm in arms] == ["mine/base", "mine/trained", "other"]
    for names in (["one"], ["one", "one"], ["a", "b", "c"]):
        with pytest.raises(UserError, match=r"--name \w+: \d names for 2 folders"):
            load_arms([run, again], names)


def test_of_several_runs_the_trained_policies_are_compared(tmp_path: Path) -> None:
    runs = [run_dir(tmp_path / name) for name in ("run", "again")]
    result = compare_all(runs)
    assert (result["a"], result["b"], result["accuracy_a"]) == ("run", "again", 0.75)
    result = compare_all([runs[0] / "eval" / "base", runs[1]], Options(names=("old", "new")))
    assert (result["a"], result["b"]) == ("old", "new")
    assert (result["gains"], result["losses"]) == (14, 0)
    assert result["sentence"].startswith("new answers 75.0% of 40 questions right, old 40.0%")


def test_faults_of_folders_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "no evaluation in it"), ("nothing", "no such folder")):
        with pytest.raises(UserError, match=said):
            write_outputs([tmp_path / name])
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
    assert [*arm.problems] == [p.id for p in problems]
    assert [s.text for s in arm.problems[problems[2].id].samples] == texts[2]
    assert [one.score for one in arm.problems.values()] == pytest.approx([1 / 3] * 6)


def test_the_prompt_is_the_one_that_was_sent(tmp_path: Path) -> None:
    problems = gsm8k(2)
    templates = {"attempt_direct": "{instruction} In short."}
    prompt = {"style": "direct", "templates": templates}
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, right(problems, {0}), prompt=prompt)])
    system, user = prompt_of(arm, problems[1])
    assert isinstance(system, dict) and isinstance(user, dict)
    assert system["content"].endswith("and without commas. In short.")
    assert user == {"role": "user", "content": problems[1].fields["question"]}


def test_intervals_are_wilsons_or_clustered(tmp_path: Path) -> None:
    problems = gsm8k(20)
    (one,) = load_arms([write_arm(tmp_path / "one", problems, right(problems, set(range(13))))])
    assert interval([*one.problems.values()]) == (0.65, *wilson(13, 20))
    texts = [[RIGHT.format(p.gold if i % 4 <= j else 0) for j in range(3)]
             for i, p in enumerate(problems)]  # fmt: skip
    (many,) = load_arms([write_arm(tmp_path / "many", problems, texts)])
    scores = [max(0, 3 - i % 4) / 3 for i in range(20)]
    half = NormalDist().inv_cdf(0.975) * stdev(scores) / 20**0.5
    assert interval([*many.problems.values()]) == pytest.approx(
        (fmean(scores), fmean(scores) - half, fmean(scores) + half)
    )


def test_an_interval_of_the_evaluation_itself_is_kept(tmp_path: Path) -> None:
    folder = write_arm(tmp_path / "a", gsm8k(4), right(gsm8k(4), {0}))
    (arm,) = load_arms([folder])
    assert arm.accuracy == (0.25, *wilson(1, 4))
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"ci_low": 0.1, "ci_high": 0.6}))
    assert load_arms([folder])[0].accuracy == (0.25, 0.1, 0.6)


def test_scores_that_are_all_alike_have_an_interval(tmp_path: Path) -> None:
    (arm,) = load_arms([write_arm(tmp_path / "a", gsm8k(10), [["no", "no"]] * 10)])
    assert interval([*arm.problems.values()]) == (0.0, *wilson(0, 10))


# ---- the table -----------------------------------------------------------------------------------


def html_cells(table: str) -> list[list[str]]:
    """Rows of cells as a Markdown renderer sees them, without raw HTML."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(table)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r, re.S) for r in html.split("<tr>")[1:]]


def test_the_table_holds_accuracy_interval_difference_and_p(tmp_path: Path) -> None:
    arms = load_arms([run_dir(tmp_path)])
    table = markdown(arms, compare_report(arms))
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
    pairs = compare_report(load_arms([tmp_path]))
    first, second = 2 * 0.5**6, 2 * 0.5**11
    assert [one["p_exact"] for one in pairs] == pytest.approx([first, second])
    assert [one["p_holm"] for one in pairs] == pytest.approx([first, 2 * second])


def test_what_cannot_be_compared_says_so(tmp_path: Path) -> None:
    problems = gsm8k(10)
    write_arm(tmp_path / "base", problems, right(problems, {1}))
    write_arm(tmp_path / "other", problems[:9], right(problems[:9], {1}))
    arms = load_arms([tmp_path])
    pairs = compare_report(arms)
    assert pairs[0]["fault"].startswith("not the same questions")
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


def test_two_half_characters_beside_each_other_are_one(tmp_path: Path) -> None:
    problems = gsm8k(1)
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, [["\ud83d\ude00"]])])
    assert arm.problems[problems[0].id].samples[0].text == "\U0001f600"


def test_folders_without_problems_have_ids_instead(tmp_path: Path) -> None:
    problems = gsm8k(5)
    texts = right(problems, {0, 1})
    (arm,) = load_arms([write_arm(tmp_path / "a", problems, texts, keep_problems=False)])
    log = json.loads(write_inspect(arm, tmp_path).read_text())
    assert {s["input"][0]["content"] for s in log["samples"]} == {p.id for p in problems}


def test_each_arm_has_a_log_of_its_own(tmp_path: Path) -> None:
    for name in ("..a", "A b", "a_b", "a b"):
        write_arm(tmp_path / "arms" / name, gsm8k(2), right(gsm8k(2), {0}))
    assert len({write_inspect(arm, tmp_path) for arm in load_arms([tmp_path / "arms"])}) == 4


def test_without_inspect_a_line_says_how_to_get_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    written = write_outputs([run_dir(tmp_path)])
    assert written["inspect"] == [] and len(written["plots"]) == 6
    assert "pip install 'mlxreflect[inspect]'" in written["notes"][0]
    assert not (tmp_path / "report" / "inspect").exists()


def test_a_report_again_is_the_same_files(tmp_path: Path) -> None:
    run_dir(tmp_path)

    def files() -> dict[str, bytes]:
        write_outputs([tmp_path])
        found = (tmp_path / "report").rglob("*")
        return {str(path): path.read_bytes() for path in found if path.is_file()}

    first = files()
    assert len(first) == 1 + 2 + 2 * 3
    assert files() == first


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
    for path in (found["table"], *found["inspect"], *found["plots"]):
        assert (tmp_path / path).is_file() and path.startswith("there/")
    code, out, _ = report("run/eval/base")
    assert out.startswith("| task | model |") and "run/eval/base/report/table.md" in out
    code, _, error = report("missing")
    assert code == 2
    assert error.startswith("error: missing: no such folder\nhint: ")


# ---- the log, as inspect_ai itself reads it: its loader, its scoring, its command ----------------


WRONG_FORM = "It is <answer>{}</answer>"
SURROGATE = "\ud83d</script>\x00"


def forms_of(samples: int) -> list[list[str]]:
    """Of ten questions: right and in the format, right only, wrong, cut off."""
    forms = [RIGHT, WRONG_FORM, RIGHT.format("-1"), "no end, cut"]
    return [[forms[(i + i * j) % 4].format(i + 1) for j in range(samples)] for i in range(10)]


@pytest.fixture(scope="module", params=[1, 4])
def arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arms") / "base"
    more = {"adapter": "a/b (12ab)", "max_new_tokens": 64, "limit": 10}
    return write_arm(folder, gsm8k(10), forms_of(request.param), temperature=0.5, **more)


@pytest.fixture(scope="module")
def path(arm: Path) -> Path:
    return write_inspect(load_arms([arm])[0], arm.parent / "logs")


@pytest.fixture(scope="module")
def log(path: Path) -> Any:
    return reader.read_eval_log(str(path))


def test_inspect_loads_the_log(log: Any, arm: Path, path: Path) -> None:
    results = json.loads((arm / "results.json").read_text())
    assert [Path(info.name).name for info in reader.list_eval_logs(str(path.parent))] == [path.name]
    assert reader.read_eval_log(str(path), header_only=True).results.scores[0].metrics
    assert (log.version, log.status) == (2, "success")
    assert (log.eval.task, log.eval.model, log.eval.dataset.samples) == ("gsm8k", "tiny", 10)
    assert log.eval.model_args == {"adapter": "a/b (12ab)"}
    config = log.eval.model_generate_config
    assert (config.max_tokens, config.temperature, config.seed) == (64, 0.5, 0)
    assert (log.eval.config.epochs, log.eval.config.limit) == (results["samples"], 10)
    assert log.results.total_samples == len(log.samples) == 10 * results["samples"]
    assert log.eval.metadata["prompt_hash"] == "0123456789abcdef"
    assert log.stats.completed_at > log.stats.started_at == log.eval.created


def test_accuracies_are_those_of_results_json(log: Any, arm: Path) -> None:
    results = json.loads((arm / "results.json").read_text())
    for name, key in (("correct", "accuracy"), ("strict", "strict_accuracy")):
        (score,) = [s for s in log.results.scores if s.name == name]
        marks = [sample.scores[name].value == "C" for sample in log.samples]
        assert fmean(marks) == pytest.approx(results[key])
        assert score.metrics["accuracy"].value == pytest.approx(results[key])


def test_several_samples_are_reduced_by_their_mean(log: Any, arm: Path) -> None:
    (loaded,) = load_arms([arm])
    means = [fmean(s.correct for s in one.samples) for one in loaded.problems.values()]
    error = stdev(means) / len(means) ** 0.5
    metrics = {s.name: s.metrics for s in log.results.scores}["correct"]
    assert metrics["stderr"].value == pytest.approx(error)
    reduced = {r.scorer: r.samples for r in log.reductions}["correct"]
    assert [s.value for s in reduced] == pytest.approx(means)


def test_a_sample_is_prompt_reply_and_verdict(log: Any, arm: Path) -> None:
    (loaded,) = load_arms([arm])
    for question in loaded.problems.values():
        mine = [s for s in log.samples if s.id == question.id]
        assert [s.epoch for s in mine] == list(range(1, len(question.samples) + 1))
        for sample, told in zip(question.samples, mine, strict=True):
            assert question.problem
            sent = prompt_of(loaded, question.problem)
            assert [{"role": m.role, "content": m.content} for m in told.input] == sent
            assert told.messages[-1].role == "assistant"
            assert told.messages[-1].text == told.output.completion == sample.text
            assert told.target == question.problem.gold
            cut = sample.finish_reason == "length"
            assert told.output.stop_reason == ("max_tokens" if cut else "stop")
            assert told.output.usage.output_tokens == sample.tokens
            assert told.scores["correct"].answer == sample.parsed
            assert told.metadata["question"] == question.problem.fields["question"]
    ids = [m.id for s in log.samples for m in s.messages]
    assert len(ids) == len(set(ids))


def test_hostile_text_is_read_back(tmp_path: Path) -> None:
    folder = write_arm(tmp_path / "x|y", gsm8k(2), [[SURROGATE], ["<answer>" * 100_000]])
    log = reader.read_eval_log(str(write_inspect(load_arms([folder])[0], tmp_path)))
    assert log.samples[0].output.completion == "\ufffd</script>\x00"
    assert len(log.samples[1].output.completion) == 800_000


@pytest.mark.slow
def test_the_inspect_command_shows_it(tmp_path: Path) -> None:
    inspect = Path(sys.executable).parent / "inspect"
    if not inspect.is_file():
        pytest.skip("the inspect command is not beside this Python")
    (arm,) = load_arms([write_arm(tmp_path / "base", gsm8k(10), forms_of(1))])
    path = write_inspect(arm, tmp_path / "logs")

    def run(*arguments: str) -> str:
        env = os.environ | {"INSPECT_LOG_DIR": str(tmp_path / "logs")}
        done = subprocess.run(
            [str(inspect), *arguments], capture_output=True, text=True, env=env, check=True
        )
        return done.stdout

    (listed,) = json.loads(run("log", "list", "--json"))
    assert listed["task"] == "gsm8k"
    dumped = json.loads(run("log", "dump", str(path)))
    assert dumped["results"]["scores"][0]["name"] == "correct"
    port = free_port()
    view = subprocess.Popen([str(inspect), "view", "start", "--port", str(port), "--log-dir",
                             str(tmp_path / "logs")])  # fmt: skip
    try:
        (seen,) = fetch(f"http://127.0.0.1:{port}/api/logs", view)["files"]
        assert seen["task"] == "gsm8k"
        name = urllib.parse.quote(seen["name"], safe="")
        opened = fetch(f"http://127.0.0.1:{port}/api/logs/{name}", view)
        replies = {s["id"]: s["output"]["completion"] for s in opened["samples"]}
        assert replies[gsm8k(10)[3].id] == "no end, cut"
    finally:
        view.terminate()
        view.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def fetch(url: str, server: subprocess.Popen[bytes]) -> Any:
    """What the server answers, once it is up."""
    while True:
        try:
            with urllib.request.urlopen(url) as reply:
                return json.load(reply)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            assert server.poll() is None, "the viewer ended"
            time.sleep(0.2)
