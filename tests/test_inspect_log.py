"""The log as inspect_ai itself reads it: its loader, its own scoring, its command."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.arm_folders import RIGHT, gsm8k, write_arm

from mlxreflect.evaluation.export_arms import asked, load_arms
from mlxreflect.report.inspect_log import write_inspect

reader = pytest.importorskip("inspect_ai.log")

WRONG_FORM = "It is <answer>{}</answer>"
SURROGATE = "\ud83d</script>\x00"


def texts(samples: int) -> list[list[str]]:
    """Of ten questions: right and in the format, right only, wrong, cut off."""
    forms = [RIGHT, WRONG_FORM, RIGHT.format("-1"), "no end, cut"]
    return [[forms[(i + i * j) % 4].format(i + 1) for j in range(samples)] for i in range(10)]


@pytest.fixture(scope="module", params=[1, 4])
def arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arms") / "base"
    more = {"adapter": "a/b (12ab)", "max_new_tokens": 64, "limit": 10}
    return write_arm(folder, gsm8k(10), texts(request.param), temperature=0.5, **more)


@pytest.fixture(scope="module")
def path(arm: Path) -> Path:
    return write_inspect(load_arms([arm])[0], arm.parent / "logs")


@pytest.fixture(scope="module")
def log(path: Path) -> Any:
    return reader.read_eval_log(str(path))


def test_inspect_loads_the_log(log: Any, arm: Path) -> None:
    results = json.loads((arm / "results.json").read_text())
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
        assert statistics.fmean(marks) == pytest.approx(results[key])
        assert score.metrics["accuracy"].value == pytest.approx(results[key])


def test_inspect_computes_the_same_figures_from_the_samples(path: Path) -> None:
    log = reader.read_eval_log(str(path))
    ours, reduced = log.results, log.reductions
    reader.recompute_metrics(log)
    assert log.results is not ours
    assert [s.name for s in log.results.scores] == [s.name for s in ours.scores]
    for mine, own in zip(ours.scores, log.results.scores, strict=True):
        assert {n: m.value for n, m in mine.metrics.items()} == pytest.approx(
            {n: m.value for n, m in own.metrics.items()}
        )
        assert mine.scored_samples == own.scored_samples
    for mine, own in zip(reduced, log.reductions, strict=True):
        assert [(s.sample_id, s.value) for s in mine.samples] == [
            (s.sample_id, pytest.approx(s.value)) for s in own.samples
        ]
    assert log.results.headline == ours.headline


def test_a_sample_is_prompt_reply_and_verdict(log: Any, arm: Path) -> None:
    (loaded,) = load_arms([arm])
    for question in loaded.questions:
        mine = [s for s in log.samples if s.id == question.id]
        assert [s.epoch for s in mine] == list(range(1, len(question.samples) + 1))
        for sample, told in zip(question.samples, mine, strict=True):
            assert question.problem
            sent = asked(loaded, question.problem)
            assert [{"role": m.role, "content": m.content} for m in told.input] == sent
            assert told.messages[-1].role == "assistant"
            assert told.messages[-1].text == told.output.completion == sample.text
            assert told.target == question.problem.gold
            cut = sample.finish_reason == "length"
            assert told.output.stop_reason == ("max_tokens" if cut else "stop")
            assert told.output.usage.output_tokens == len(sample.token_ids)
            assert told.scores["correct"].answer == sample.parsed
            assert told.metadata["question"] == question.problem.fields["question"]
    ids = [m.id for s in log.samples for m in s.messages]
    assert len(ids) == len(set(ids))


def test_hostile_text_is_read_back(tmp_path: Path) -> None:
    folder = write_arm(tmp_path / "x|y", gsm8k(2), [[SURROGATE], ["<answer>" * 100_000]])
    log = reader.read_eval_log(str(write_inspect(load_arms([folder])[0], tmp_path)))
    assert log.samples[0].output.completion == "\ufffd</script>\x00"
    assert len(log.samples[1].output.completion) == 800_000


def test_headers_and_summaries_are_read_without_the_samples(path: Path) -> None:
    header = reader.read_eval_log(str(path), header_only=True)
    assert header.samples is None
    assert header.results.scores[0].metrics["accuracy"].value > 0
    assert [reader.read_eval_log(i).eval.task for i in reader.list_eval_logs(str(path.parent))] == [
        "gsm8k"
    ]
    first = reader.read_eval_log_sample_summaries(str(path))[0]
    assert first.scores["correct"].value in ("C", "I")


def test_each_sample_is_read_by_its_id(path: Path, log: Any) -> None:
    count = sum(1 for _ in reader.read_eval_log_samples(str(path)))
    assert count == len(log.samples)
    last = log.samples[-1]
    assert reader.read_eval_log_sample(str(path), last.id, last.epoch).uuid == last.uuid


@pytest.mark.slow
def test_the_inspect_command_shows_it(tmp_path: Path) -> None:
    inspect = Path(sys.executable).parent / "inspect"
    if not inspect.is_file():
        pytest.skip("the inspect command is not beside this Python")
    (arm,) = load_arms([write_arm(tmp_path / "base", gsm8k(10), texts(1))])
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
        assert opened["samples"][3]["output"]["completion"] == "no end, cut"
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
