"""Models behind a server: the same specs, whatever the server does in between."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.evaluations import evaluated, samples_of
from support.fake_ollama import FakeOllama
from support.fake_openai import BAD_JSON, FakeOpenAI, refusal
from support.fake_server import HANG_UP, RESET, SHORT, Body, Fault, http, ok
from support.mlx_server import serving

from mlxreflect.config.schema import EvalSpec
from mlxreflect.core.errors import UserError
from mlxreflect.critics import client
from mlxreflect.critics.ollama import is_ollama
from mlxreflect.evaluation.arms import load_arms
from mlxreflect.evaluation.evaluate import (
    eval_problems,
    evaluate,
    find_spec,
    problem_set,
    rescore,
)
from mlxreflect.evaluation.generators import ServedModel, ServerGenerator
from mlxreflect.tasks import get_task

KEY = "sk-very-secret-9876"
SPEC = EvalSpec.model_validate(
    {"task": {"name": "arithmetic"}, "limit": 12, "max_new_tokens": 50, "seed": 1}
)
PROBLEMS = eval_problems(get_task("arithmetic"), SPEC)
GOLD = {get_task("arithmetic").show(p): str(get_task("arithmetic").gold(p)) for p in PROBLEMS}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)


def answer(body: Body) -> str:
    """Right for every other problem, in the format asked for."""
    shown = body["messages"][-1]["content"]
    gold = GOLD[shown] if list(GOLD).index(shown) % 2 == 0 else "no idea"
    return f"<think>so</think><answer>{gold}</answer>"


def run(model: ServedModel, out: Path, **changes: Any) -> dict[str, Any]:
    return evaluated(model, SPEC.model_copy(update=changes), out)


# ---- what is asked and recorded ------------------------------------------------------------------


def test_a_server_answers_the_same_questions(tmp_path: Path) -> None:
    with FakeOpenAI(answer, models=["m", "n"]) as server:
        found = run(ServedModel(server.url, "m"), tmp_path)
        assert len(server.chats) == 12
        again = run(ServedModel(server.url, "m"), tmp_path)
        assert len(server.chats) == 12 and again == found
        with pytest.raises(UserError, match="its model is 'm', not 'n'"):
            run(ServedModel(server.url, "n"), tmp_path)
    assert (found["n"], found["accuracy"], found["format_rate"]) == (12, 0.5, 1.0)
    assert (found["model"], found["adapter"]) == ("m", "")
    assert found["server"] == server.url + "/v1"
    rows = samples_of(tmp_path)
    assert [row["problem_id"] for row in rows] == [p.id for p in PROBLEMS]
    assert [row["correct"] for row in rows] == [True, False] * 6
    assert {(*row["token_ids"], row["finish_reason"]) for row in rows} == {("stop",)}
    assert all(row["tokens"] == len(row["text"]) // 4 + 1 for row in rows)
    assert {p.name for p in tmp_path.iterdir()} == {
        "setup.json", "problems.jsonl", "samples.jsonl", "results.json"
    }  # fmt: skip


@pytest.mark.slow
def test_one_process_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    """The same command twice at once, each a process; the second is told who is at work."""
    gate = threading.Event()

    def late(body: Body) -> str:
        assert gate.wait(60)
        return "<answer>1</answer>"

    with FakeOpenAI(late, models=["m"]) as server:
        asked = [sys.executable, "-m", "mlxreflect", "eval", "arithmetic", "--limit", "6",
                 "--server", server.url, "--server-model", "m"]  # fmt: skip
        first = subprocess.Popen(asked, cwd=tmp_path, stderr=subprocess.PIPE)
        while not server.chats and first.poll() is None:
            time.sleep(0.01)
        second = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
        gate.set()
        first.communicate()
    (folder,) = (tmp_path / "runs" / "eval").iterdir()
    assert (first.returncode, second.returncode) == (0, 2)
    assert f"is in use by process {first.pid}\n" in second.stderr
    assert [row["sample"] for row in samples_of(folder)] == [0] * 6
    assert not (folder / ".lock").exists()


def test_rows_that_two_processes_mixed_are_refused(tmp_path: Path) -> None:
    """As an earlier version left them, whoever reads them."""
    with FakeOpenAI(answer, models=["m"]) as server:
        model = ServedModel(server.url, "m")
        run(model, tmp_path)
        file = tmp_path / "samples.jsonl"
        file.write_bytes(file.read_bytes() + file.read_bytes().partition(b"\n")[0] + b"\n")
        results = json.loads((tmp_path / "results.json").read_text())
        (tmp_path / "results.json").write_text(json.dumps({**results, "sha256": {}}))
        for read in (
            lambda: run(model, tmp_path),
            lambda: rescore(tmp_path, "strict"),
            lambda: load_arms([tmp_path]),
        ):
            with pytest.raises(UserError, match="has sample 0 twice"):
                read()


def test_decoding_reaches_the_server(tmp_path: Path) -> None:
    changes = {"temperature": 0.7, "top_p": 0.9, "samples": 3, "stop": ["<end>"], "limit": 4}
    with FakeOpenAI(lambda body: answer(body) + "<end>more", models=["m"]) as server:
        found = run(ServedModel(server.url, "m"), tmp_path, **changes)
    sent = [{k: body[k] for k in ("temperature", "top_p", "stop", "max_tokens")}
            for body in server.chats]  # fmt: skip
    assert sent == [{"temperature": 0.7, "top_p": 0.9, "stop": ["<end>"], "max_tokens": 50}] * 12
    assert len({body["seed"] for body in server.chats}) == 12
    assert found["samples"] == 3 and "pass_at" in found
    assert {(row["finish_reason"], "<end>" in row["text"]) for row in samples_of(tmp_path)} == {
        ("stop", False)
    }


def test_sampling_reaches_the_server_and_the_results(tmp_path: Path) -> None:
    changes = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 1.5}
    with FakeOpenAI(answer, models=["m"]) as server:
        found = run(ServedModel(server.url, "m"), tmp_path / "one", **changes)
        plain = run(ServedModel(server.url, "m"), tmp_path / "two")
    first, last = server.chats[0], server.chats[-1]
    assert {key: first[key] for key in changes} == changes
    assert not changes.keys() & last.keys()
    assert {key: found["decoding"][key] for key in changes} == changes
    assert {key: found["spec"][key] for key in changes} == changes
    assert not changes.keys() & {*plain["decoding"], *plain["spec"]}


def test_a_cut_answer_and_an_empty_one_are_answers(tmp_path: Path) -> None:
    def thought(content: str, reasoning: str, reason: str) -> Any:
        message = {"content": content, "reasoning_content": reasoning}
        return {"message": message, "finish_reason": reason}

    replies: list[Any] = ["", thought("", "hm " * 9, "length"),
                          thought("<answer>1</answer>", "one", "stop")]  # fmt: skip

    def reply(body: Body) -> Any:
        place = list(GOLD).index(body["messages"][-1]["content"])
        return replies[place] if place < 3 else "<think>" + "so " * 100

    with FakeOpenAI(reply, models=["m"]) as server:
        found = run(ServedModel(server.url, "m"), tmp_path)
        assert len(server.chats) == 12
    texts = [row["text"] for row in samples_of(tmp_path)]
    assert texts[:3] == ["", "<think>" + "hm " * 9, "<think>one</think><answer>1</answer>"]
    assert found["truncated"] == 10 and found["parse_failures"] >= 2


def test_a_raw_prompt_goes_to_completions(tmp_path: Path) -> None:
    asked: list[str] = []

    class Completing(FakeOpenAI):
        def answer(self, seen: Any) -> Fault:
            if seen.path != "/v1/completions":
                return super().answer(seen)
            asked.append(seen.body["prompt"])
            choice = {"index": 0, "text": " 7\n\nQuestion: next", "finish_reason": "stop"}
            return ok({"choices": [choice], "usage": {"completion_tokens": 5}})

    with Completing(models=["m"]) as server:
        changes = {"form": "completion", "stop": ["\n\n"], "limit": 3}
        found = run(ServedModel(server.url, "m"), tmp_path, **changes)
    assert len(asked) == 3 and all(isinstance(text, str) for text in asked)
    assert [row["text"] for row in samples_of(tmp_path)] == [" 7"] * 3
    assert found["tokens_mean"] == 5


def test_ollama_is_asked_its_own_way_with_room_for_the_prompt(tmp_path: Path) -> None:
    """Its OpenAI-compatible address would cut long prompts without a word."""

    def reply(body: Body) -> Body:
        message = {"role": "assistant", "content": answer(body)[17:], "thinking": "so"}
        return {"message": message}

    with FakeOllama(reply, models=["m"], capabilities=["completion", "thinking"]) as server:
        found = run(ServedModel(server.url + "/v1", "m"), tmp_path, max_new_tokens=6000)
        assert is_ollama(server.url)
    assert (found["provider"], found["server"]) == ("ollama", server.url)
    assert found["accuracy"] == 0.5 and found["format_rate"] == 1.0
    assert samples_of(tmp_path)[0]["text"].startswith("<think>so</think>")
    (window,) = {body["options"]["num_ctx"] for body in server.chats}
    assert window == 8192
    assert {body.get("think") for body in server.chats} == {None}


# ---- what goes wrong -----------------------------------------------------------------------------


def test_faults_on_the_way_change_nothing(tmp_path: Path) -> None:
    with FakeOpenAI(answer, models=["m"]) as server:
        run(ServedModel(server.url, "m"), tmp_path / "whole")
    faults = [http(503), None, RESET, HANG_UP, http(429, retry_after=0.05), SHORT, None, BAD_JSON]
    with FakeOpenAI(answer, faults * 2, models=["m"]) as server:
        found = run(ServedModel(server.url, "m", concurrency=3), tmp_path / "faults")
        assert len(server.chats) == 12 + 12
    whole, faulty = (tmp_path / n / "samples.jsonl" for n in ("whole", "faults"))
    assert whole.read_bytes() == faulty.read_bytes()
    assert "failed" not in found


def fails(place: int) -> Callable[[Body], Any]:
    def reply(body: Body) -> Any:
        if list(GOLD).index(body["messages"][-1]["content"]) == place:
            return refusal(400, f"this prompt is not allowed, Bearer {KEY}")
        return answer(body)

    return reply


def test_a_call_that_fails_for_good_stops_and_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with FakeOpenAI(fails(5), models=["m"], key=KEY) as server:
        model = ServedModel(server.url, "m", "MY_KEY")
        with pytest.raises(UserError, match="this prompt is not allowed") as caught:
            run(model, tmp_path)
    assert PROBLEMS[5].id in caught.value.message and "same command" in caught.value.hint
    assert KEY not in caught.value.message + caught.value.hint
    assert not (tmp_path / "results.json").exists()
    assert len(samples_of(tmp_path)) == 5
    with FakeOpenAI(answer, models=["m"], key=KEY) as mended:
        monkeypatch.setattr(
            "mlxreflect.evaluation.generators.shown_address", lambda config: server.url + "/v1"
        )
        run(ServedModel(mended.url, "m", "MY_KEY"), tmp_path)
        assert len(mended.chats) <= 7
    with FakeOpenAI(answer, models=["m"]) as server:
        run(ServedModel(server.url, "m"), tmp_path / "whole")
    whole, mine = (p / "samples.jsonl" for p in (tmp_path / "whole", tmp_path))
    assert whole.read_bytes() == mine.read_bytes()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_failed_calls_can_be_kept_as_such(tmp_path: Path) -> None:
    with FakeOpenAI(fails(4), models=["m"]) as server:
        found = run(ServedModel(server.url, "m", keep_failed=True), tmp_path)
    assert (found["failed"], found["accuracy"]) == (1, 5 / 12)
    row = samples_of(tmp_path)[4]
    assert (row["finish_reason"], row["text"], row["correct"]) == ("error", "", False)


def test_what_a_server_does_not_take_is_said(tmp_path: Path) -> None:
    asked = problem_set(get_task("arithmetic"), SPEC)
    with FakeOpenAI(answer, models=["m"], refuses=["temperature", "max_tokens"]) as server:
        generator = ServerGenerator(ServedModel(server.url, "m"), asked)
        found = evaluate(generator, tmp_path)
    assert found["refused"] == ["temperature"]
    assert generator.notes == [f"{server.url}/v1 does not take temperature: it answered without"]


@pytest.mark.parametrize(
    ("url", "name", "said", "hinted"),
    [("http://127.0.0.1:9", "m", "no server answers", "--server"),
     ("http://[", "m", "is no address of a server", "--server"),
     ("ftp://x", "m", "is no address of a server", "--server"),
     (" ", "m", "--server is empty", "an address"),
     ("{url}", "other", "has no model other", "--server-model")],
)  # fmt: skip
def test_a_server_that_cannot_be_used(
    tmp_path: Path, url: str, name: str, said: str, hinted: str
) -> None:
    with FakeOpenAI(answer, models=["m"]) as server, pytest.raises(UserError) as caught:
        run(ServedModel(url.replace("{url}", server.url), name), tmp_path)
    assert said in caught.value.message
    assert hinted in caught.value.hint and "critic." not in caught.value.hint


# ---- the command ---------------------------------------------------------------------------------


def command(*arguments: Any) -> list[str]:
    fixed = ["--limit", "12", "--set", "seed=1", "--set", "max_new_tokens=50", "--json"]
    given = map(str, arguments)
    return [sys.executable, "-m", "mlxreflect", "eval", "arithmetic", *fixed, *given]


@pytest.mark.slow
def test_served_and_local_in_one_table_and_killed_in_between(
    tmp_path: Path, tiny_random: Path
) -> None:
    """A process killed while replies are out asks again only what had not come in."""

    def slowly(body: Body) -> str:
        time.sleep(0.1)
        return answer(body)

    environment = os.environ | {"MY_KEY": KEY}
    arms = ["--model", tiny_random, "--server-key-env", "MY_KEY", "--server-model", "m"]
    with FakeOpenAI(slowly, models=["m"], key=KEY) as server:
        asked = [*arms, "--server", server.url, "--concurrency", 2, "--out"]
        subprocess.run(command(*asked, tmp_path / "whole"), check=True, env=environment)
        whole = len(server.chats)
        assert whole == 12
        process = subprocess.Popen(command(*asked, tmp_path / "killed"), env=environment)
        while len(server.chats) < whole + 7:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = subprocess.run(command(*asked, tmp_path / "killed"), check=True, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert len(server.chats) <= 2 * whole + 2  # those that were out
    names = [arm["name"] for arm in json.loads(done.stdout)]
    assert names[1] == "m"
    for name in names:
        for file in ("samples.jsonl", "problems.jsonl", "results.json"):
            one, other = (tmp_path / n / name / file for n in ("whole", "killed"))
            assert one.read_bytes() == other.read_bytes()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["chat", "completion"])
def test_mlx_lm_server_gives_the_greedy_answers_of_the_local_evaluation(
    tmp_path: Path, form: str
) -> None:
    from mlxreflect.config.schema import PolicyConfig
    from mlxreflect.models.load import TINY, load_policy

    spec = find_spec("countdown", 10, "", ["max_new_tokens=40", f"form={form}"])
    # As the server has it: weights stay in 4 bits.
    policy = load_policy(PolicyConfig(dequantize="no"))
    local = evaluated(policy, spec, tmp_path / "local")
    (tmp_path / "log").mkdir()
    with serving(TINY, tmp_path / "log") as url:
        served = evaluated(ServedModel(url, str(TINY)), spec, tmp_path / "served")
    assert served["prompt_hash"] == local["prompt_hash"]
    mine, theirs = samples_of(tmp_path / "local"), samples_of(tmp_path / "served")
    # Of a raw completion that server leaves out the space in front.
    texts = [[row["text"].lstrip(" ") for row in rows] for rows in (mine, theirs)]
    assert texts[0] == texts[1]
    assert served["accuracy"] == local["accuracy"]
