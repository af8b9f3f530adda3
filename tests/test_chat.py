"""`mlxreflect chat`: base and trained answer the same, as they do in the run's evaluation."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.evaluations import samples_of
from support.fake_ollama import FakeOllama
from support.fake_openai import FakeOpenAI
from support.fake_server import http
from support.shell import TIMEOUT, Shell, last_two_lines, rows

import mlxreflect
from mlxreflect.cli.chat import ChatLoop
from mlxreflect.config.recipe import eval_spec
from mlxreflect.core.ui import Ui
from mlxreflect.critics import client
from mlxreflect.evaluation.arms import problems_of
from mlxreflect.evaluation.generators import ServedModel
from mlxreflect.models.policy import Policy
from mlxreflect.runs.chat import Answer, Chat, find_subject
from mlxreflect.tasks import get_task
from mlxreflect.tasks.base import ask

HOSTILE = "\x1b[31mred\x07 [bold]\u202eevil\x9b2J </think>"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the embedded policy, which learned so fast that its answers changed."""
    recipe = mlxreflect.load_recipe(
        "quickstart",
        ["task.limit=8", "r3.wave=4", "r3.epochs=1", "eval.limit=6",
         "policy.batch=1", "train.lr=3e-3", "eval.decontaminate=off", "eval.cache=off"],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("learned") / "run"
    mlxreflect.run(recipe, folder)
    return folder


@pytest.fixture
def run(learned: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(learned, tmp_path / "run"))


def asked(shell: Shell, *arguments: object, typed: str) -> list[dict[str, Any]]:
    """What `chat --json` prints, a row a question."""
    done = shell.works("chat", *arguments, "--json", typed=typed)
    return [json.loads(line) for line in done.out.splitlines()]


def texts(found: list[dict[str, Any]], arm: int) -> list[str]:
    return [row["answers"][arm]["text"] for row in found]


# ---- a pipe --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_answers_are_those_of_the_evaluation(shell: Shell, run: Path) -> None:
    arms = [samples_of(run / "eval" / arm) for arm in ("base", "trained")]
    found = asked(shell, run, typed="/problem\n" * 5 + "/problem 6\n")
    for i, samples in enumerate(arms):
        assert texts(found, i) == [sample["text"] for sample in samples]
        for row, sample in zip(found, samples, strict=True):
            answer = row["answers"][i]
            assert row["problem_id"] == sample["problem_id"]
            assert {key: answer[key] for key in ("parsed", "correct", "format_ok")} == {
                key: sample[key] for key in ("parsed", "correct", "format_ok")
            }
            assert answer["tokens"] == len(sample["token_ids"])
    assert texts(found, 0) != texts(found, 1)


def test_a_typed_problem_is_asked_and_graded_as_one(shell: Shell, run: Path) -> None:
    fields = problems_of(run / "eval" / "base" / "problems.jsonl")[0].fields
    line = f"numbers {' '.join(map(str, fields['numbers']))}, target {fields['target']}"
    first, typed, talk = asked(shell, run, typed=f"/problem 1\n{line}\n\nHello there\n")
    assert {**typed, "problem_id": first["problem_id"]} == first
    assert (talk["task"], talk["problem_id"]) == ("question", None)
    assert "correct" not in talk["answers"][0]


def test_a_pipe_is_plain_text(shell: Shell, run: Path) -> None:
    done = shell.works("chat", run, typed="Hello\n/help\n/quit\nnever asked\n")
    assert re.fullmatch(r"> Hello\n\nbase:.*\n[^\0]+\n\ntrained:.*\n[^\0]+\n\n", done.out)
    assert done.err.startswith("/problem [N]") and "never" not in done.out


def test_settings_are_those_of_an_evaluation(shell: Shell, run: Path) -> None:
    warm = ["--temperature", 1, "--max-new-tokens", 7]
    two = [asked(shell, run, *warm, "--seed", seed, typed="/problem 1\n") for seed in (1, 1, 2)]
    assert two[0] == two[1] != two[2]
    assert {answer["finish_reason"] for answer in two[0][0]["answers"]} == {"length"}
    assert {answer["tokens"] for answer in two[0][0]["answers"]} == {7}


def test_folders_of_one_run(shell: Shell, run: Path) -> None:
    """Its adapter is asked as the run asks; without it, trained is the last commit."""
    (whole,) = asked(shell, run, typed="/problem 1\n")
    assert asked(shell, run / "adapter", typed="/problem 1\n") == [whole]
    last = max((run / "checkpoints").glob("wave-*"))
    shutil.rmtree(run / "adapter")
    (run / "summary.json").unlink()
    done = shell.works("chat", run, "--json", typed="/problem 1\n")
    assert json.loads(done.out) == whole
    assert f"not finished; trained is its last commit, {last.name}" in done.err
    for commit in sorted((run / "checkpoints").glob("wave-*")):
        if commit.name != "wave-00000":
            shutil.rmtree(commit)
    error, hint = shell.mistake("chat", run)
    assert "has learned nothing yet" in error and "mlxreflect resume" in hint


@pytest.mark.slow
def test_an_adapter_of_no_run_is_asked_as_typed(shell: Shell, run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "adapter", tmp_path / "alone")
    with FakeOpenAI() as server:
        (found,) = asked(shell, alone, *served(server), typed="Hello\n")
    assert server.chats[0]["messages"] == [{"role": "user", "content": "Hello"}]
    assert found["answers"][2]["text"] == "reply to Hello"
    as_run = asked(shell, alone, "--spec", "countdown", typed="numbers 3 4 5, target 35\n")
    assert as_run == asked(shell, run, typed="numbers 3 4 5, target 35\n")
    config = alone / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model": None}))
    assert "does not name its model" in shell.mistake("chat", alone)[0]
    assert asked(shell, alone, "--model", "tiny", typed="Hello\n")[0]["question"] == "Hello"


def test_a_training_is_asked_as_typed(shell: Shell) -> None:
    (shell.folder / "data.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n' * 4)
    done = shell.works(
        "train", "sft", "--data", "data.jsonl", "--out", "out", "--set", "data.held_out=0"
    )
    assert "mlxreflect chat out" in done.out
    (found,) = asked(shell, "out", typed="1 + 1?\n")
    assert (found["question"], len(found["answers"])) == ("1 + 1?", 2)


# ---- a server ------------------------------------------------------------------------------------


def served(server: FakeOpenAI | FakeOllama) -> list[str]:
    return ["--server", server.url, "--server-model", "critic"]


def test_a_server_answers_the_same_and_its_text_is_harmless(shell: Shell, run: Path) -> None:
    with FakeOpenAI(lambda body: HOSTILE) as server:
        done = shell.works("chat", run, *served(server), typed="/problem 1\n/save mine.jsonl\n")
        assert not set("\x1b\x07\x9b\u202e") & set(done.out + done.err)
        assert "\\x1b[31mred\\x07 [bold]\\u202eevil" in done.out
    (row,) = rows(shell.folder / "mine.jsonl")
    assert [answer["name"] for answer in row["answers"]] == ["base", "trained", "critic"]
    assert row["answers"][2]["text"] == HOSTILE and row["answers"][2]["correct"] is False
    (body,) = server.chats
    (problem, *_) = problems_of(run / "eval" / "base" / "problems.jsonl")
    recipe = mlxreflect.load_recipe(str(run / "recipe.toml"))
    assert body["messages"] == ask(get_task("countdown"), problem, eval_spec(recipe), [])


def test_ollama_answers_too_and_a_failed_call_is_said(shell: Shell, run: Path) -> None:
    with FakeOllama(faults=[None, http(400, "no")]) as server:
        good, bad = asked(shell, run, *served(server), typed="Hello\nAgain\n")
    assert good["answers"][2]["text"] == "reply to Hello"
    assert bad["answers"][2]["text"] == "" and "no" in bad["answers"][2]["error"]
    assert bad["answers"][0]["text"]


def test_an_answer_that_is_told_grades(shell: Shell, run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "adapter", tmp_path / "alone")
    with FakeOpenAI(lambda body: "<think>so</think><answer> 5 </answer>") as server:
        found = asked(
            shell, alone, *served(server), "--spec", "arithmetic",
            typed="2 + 3\n/answer 5\n/answer 6\n/save told.jsonl\n",
        )  # fmt: skip
    assert [row["answers"][2].get("correct") for row in found] == [None, True, False]
    assert [row["gold"] for row in found] == [None, "5", "6"]
    assert rows(shell.folder / "told.jsonl") == found[-1:]  # one question was asked
    assert len(server.chats) == 1


# ---- a person ------------------------------------------------------------------------------------


class Person:
    """Types lines into a chat; an exception in their place is what a key press does."""

    def __init__(self, chat: Chat, monkeypatch: pytest.MonkeyPatch, width: int = 100) -> None:
        self.lines: Iterator[str | type[BaseException]] = iter(())
        self.file = io.StringIO()
        out = Console(file=self.file, force_terminal=True, width=width, height=30)
        self.loop = ChatLoop(chat, Ui(), out)
        monkeypatch.setattr("builtins.input", self.input)

    def input(self, prompt: str) -> str:
        line = next(self.lines)
        if isinstance(line, str):
            return line
        raise line

    def types(self, *lines: str | type[BaseException]) -> str:
        self.lines = iter(lines)
        self.loop.talk()
        assert next(self.lines, None) is None, "it ended too early"
        return self.file.getvalue()


@pytest.fixture
def talk(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Person]:
    def begin(*models: ServedModel, width: int = 100, **settings: Any) -> Person:
        subject = find_subject(run)
        subject = replace(subject, spec=subject.spec.model_copy(update=settings))
        return Person(Chat(subject, models, print), monkeypatch, width)

    return begin


@pytest.mark.slow
def test_a_conversation_goes_on_until_a_new_one(talk: Callable[..., Person]) -> None:
    with FakeOpenAI() as server:
        person = talk(ServedModel(server.url, "critic"))
        policy = person.loop.chat.weights.policy
        person.types("One", "Two", "/new", "Three", "/problem", "Four", EOFError)
    said = [[m["content"] for m in body["messages"][1:]] for body in server.chats]
    four = person.loop.chat.rows[3]["question"]
    assert said == [["One"], ["One", "reply to One", "Two"], ["Three"], [four],
                    [four, f"reply to {four}", "Four"]]  # fmt: skip
    for name in ("base", "trained"):  # each goes on from its own answers
        answers = [a["text"] for r in person.loop.chat.rows[3:] for a in r["answers"]
                   if a["name"] == name]  # fmt: skip
        told = [m["content"] for m in person.loop.chat.history[name][1:]]
        assert told == [four, answers[0], "Four", answers[1]]
    assert person.loop.chat.weights.policy is policy  # the weights are there once


@pytest.mark.parametrize(("width", "beside"), [(100, True), (60, False)])
def test_answers_grow_beside_each_other(
    talk: Callable[..., Person], monkeypatch: pytest.MonkeyPatch, width: int, beside: bool
) -> None:
    monkeypatch.setattr("mlxreflect.runs.chat.DRAW_S", 0)
    shown = talk(width=width).types("/problem 1", "/quit")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in shown.splitlines()]
    heads = [line.split() for line in lines if line.split()[:1] == ["base"]]
    assert heads[-1] == (["base", "trained"] if beside else ["base"])
    assert len(heads) > 5  # drawn again as tokens came
    assert any("read as" in line for line in lines)


def test_both_write_at_once_and_what_they_would_write_alone(
    talk: Callable[..., Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxreflect.runs.chat.DRAW_S", 0)
    chat, shown = talk(temperature=1.0).loop.chat, list[Answer]()
    question = chat.draw("1")
    both = chat.answers(chat.arms, question, shown.append)
    ended = {answer.name: i for i, answer in enumerate(shown) if answer.finish_reason}
    first = {name: next(i for i, a in enumerate(shown) if a.name == name) for name in ended}
    assert max(first.values()) < min(ended.values())
    alone = [chat.answers([entry], question, lambda answer: None) for entry in chat.arms[::-1]]
    assert [both[1], both[0]] == [answer for answers in alone for answer in answers]
    assert both[0].text != both[1].text


def test_ctrl_c_stops_an_answer_and_twice_ends(
    talk: Callable[..., Person], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    person, steps = talk(), Policy.steps

    def interrupted(self: Policy, *given: Any, **named: Any) -> Any:
        yield from islice(steps(self, *given, **named), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(Policy, "steps", interrupted)
    person.types("One", KeyboardInterrupt)
    assert capsys.readouterr().out.count("Ctrl-C again") == 1
    (row,) = person.loop.chat.rows
    for answer in row["answers"]:  # both were at it
        assert (answer["finish_reason"], answer["tokens"]) == ("stopped", 4) and answer["text"]
    monkeypatch.setattr(Policy, "steps", steps)
    person.types(KeyboardInterrupt, "Two", "/nonsense", KeyboardInterrupt, KeyboardInterrupt)
    assert "/nonsense: no such command" in capsys.readouterr().out
    assert [len(person.loop.chat.history[name]) for name in ("base", "trained")] == [3, 3]


@pytest.mark.slow
def test_on_a_terminal(run: Path, process: Shell) -> None:
    theirs, ours = pty.openpty()
    with FakeOpenAI(lambda body: HOSTILE) as server:
        env = {**process.env, "COLUMNS": "120", "LINES": "30", "TERM": "xterm"}
        done = subprocess.Popen(
            process.command("chat", run, *served(server)), cwd=process.folder, env=env,
            stdin=ours, stdout=ours, stderr=ours,
        )  # fmt: skip
        os.close(ours)
        os.write(theirs, b"/problem 1\n/save\n/quit\n")
        shown = b""
        while True:
            try:
                shown += os.read(theirs, 65536)
            except OSError:  # it has ended
                break
        assert done.wait(TIMEOUT) == 0
    text = shown.decode()
    assert re.search(r"base +\S*trained +\S*critic", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))
    assert "\x1b[31mred" not in text and "\x9b" not in text and "\x07" not in text
    assert "kept in chat-1.jsonl" in text and len(rows(process.folder / "chat-1.jsonl")) == 1


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["nowhere"], "nowhere: no such folder", "runs/latest"),
        (["{run}/eval"], "is not an adapter folder", "adapter_config.json"),
        (["{run}", "--server", "http://127.0.0.1:1"], "--server alone", "--server-model"),
        (["{run}", "--temperature", "-1"], "--temperature", "likeliest"),
        (["{run}", "--temperature", "nan"], "--temperature", "likeliest"),
        (["{run}", "--temperature", "inf"], "--temperature", "likeliest"),
        (["{run}", "--spec", "nonsense"], "nonsense", ""),
        (["{run}", "--model", "{other}"], "does not fit", "the model that it was trained on"),
        (["{run}", "--server", "http://127.0.0.1:1", "--server-model", "m"], "127.0.0.1:1", ""),
    ],
)  # fmt: skip
def test_mistakes(shell: Shell, run: Path, arguments: list[str], error: str, hint: str) -> None:
    given = [part.format(run=run, other=shell.model) for part in arguments]
    said = shell.mistake("chat", *given, typed="Hello\n")
    assert error in said[0] and hint in said[1]


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        ("/problem 7", "/problem 7: no such problem"),
        ("/problem x", "/problem x: no such problem"),
        (f"/problem {'9' * 5000}", "no such problem"),
        ("/save", "there is nothing to keep yet"),
        ("/answer 5", "no question that the run's task grades"),
        ("/nonsense", "/nonsense: no such command"),
        ("Hello\n/save there.jsonl", "there.jsonl is there already"),
        ("Hello\n/save no/such/folder.jsonl", "cannot be written"),
    ],
)
def test_mistakes_in_a_line(shell: Shell, run: Path, typed: str, error: str) -> None:
    (shell.folder / "there.jsonl").write_text("mine")
    done = shell("chat", run, typed=f"{typed}\n")
    assert done.code == 2
    assert error in last_two_lines(done.err)[0]
    assert (shell.folder / "there.jsonl").read_text() == "mine"


def test_a_run_of_another_version(shell: Shell, run: Path) -> None:
    (run / "recipe.toml").write_text("nonsense = 1\n")
    assert "made by another version" in shell.mistake("chat", run)[0]
