"""The Ollama critic against a loopback server: every fault has a kind, and none becomes text."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import fake_ollama as fake
from support.critic_calls import call
from support.fake_ollama import Body, FakeOllama, Fault, http
from support.fake_server import free_port

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.client import Client
from mlxreflect.critics.ollama import OllamaCritic, estimate_tokens


def critic_at(url: str, **settings: Any) -> OllamaCritic:
    defaults: dict[str, Any] = {"deadline_s": 10.0, "cache": "off", "model": "critic"}
    config = CriticConfig(provider="ollama", base_url=url, **defaults | settings)
    return OllamaCritic(config, "run", backoff_s=0.01)


def ask(server: FakeOllama, *calls: Call, **settings: Any) -> list[Reply]:
    critic = critic_at(server.url, **settings)
    try:
        return critic.ask(calls or [call()])
    finally:
        critic.close()


def test_a_reply_with_its_usage() -> None:
    with FakeOllama() as server:
        [reply] = ask(server)
    assert reply == Reply(
        "reply to hello", finish_reason="stop", usage={"prompt": 11, "completion": 4}
    )


def test_what_is_sent() -> None:
    with FakeOllama() as server:
        ask(server, call(seed=2**40 + 5), temperature=0.25, max_tokens=99, num_ctx=1234)
        [body] = server.chats
    assert body["options"] == {
        "temperature": 0.25, "num_predict": 99, "num_ctx": 1234, "seed": 5,
    }  # fmt: skip
    assert body["model"] == "critic"
    assert body["messages"] == call().messages
    assert body["stream"] is False
    assert not {"think", "keep_alive", "format"} & set(body)


def test_concurrency_is_a_limit() -> None:
    def slow(body: Body) -> str:
        time.sleep(0.02)
        return "ok"

    with FakeOllama(reply=slow) as server:
        ask(server, *[call(str(n)) for n in range(6)], concurrency=2)
        assert server.most_at_once == 2


def test_a_failed_call_leaves_the_others_alone() -> None:
    def reply(body: Body) -> str | Fault:
        return fake.BAD_JSON if body["messages"][-1]["content"] == "1" else "fine"

    with FakeOllama(reply=reply) as server:
        replies = ask(server, *[call(str(n)) for n in range(3)])
    assert [reply.kind for reply in replies] == ["", "invalid", ""]


def test_the_deadline_ends_the_retries_of_a_call() -> None:
    with FakeOllama(faults=[http(503, retry_after=0.1)] * 50) as server:
        critic = critic_at(server.url, deadline_s=0.5, concurrency=1)
        start = time.monotonic()
        replies = critic.ask([call("a"), call("b")])
        assert time.monotonic() - start < 5
        assert {reply.kind for reply in replies} <= {"timeout", "http_503"}
        server.faults.clear()
        assert critic.ask([call("c")])[0].text == "reply to c"  # the thread came back
        critic.close()


def test_a_stalled_server_does_not_hold_up_closing() -> None:
    with FakeOllama(faults=[fake.STALL]) as server:
        critic = critic_at(server.url, deadline_s=0.2)
        assert critic.ask([call()])[0].kind == "timeout"
        start = time.monotonic()
        critic.close()
        assert time.monotonic() - start < 1


def test_what_still_queues_is_not_sent_once_asking_has_ended() -> None:
    sent: list[str] = []

    def send(one: Call, timeout: float) -> Reply:
        sent.append(one.text)
        if len(sent) == 1:
            raise ZeroDivisionError("a bug is not a failed call")
        time.sleep(0.1)
        return Reply("fine")

    client = Client(CriticConfig(model="critic", concurrency=1, cache="off"), "run", send)
    with pytest.raises(ZeroDivisionError):
        client.ask([call(str(n)) for n in range(6)])
    time.sleep(0.4)
    client.close()
    assert len(sent) <= 2  # the second may have been under way


INTERRUPTED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_critic_ollama import call, critic_at
critic = critic_at(sys.argv[2], deadline_s=600.0, concurrency=2)
try:
    critic.ask([call(str(n)) for n in range(6)])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if sys.argv[3] == "close":
        critic.close()
    sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "leave"])
def test_ctrl_c_ends_the_process_promptly(end: str) -> None:
    """Two calls are out, four queue, and the server says nothing."""
    with FakeOllama(faults=[fake.STALL] * 6) as server:
        with subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parent), server.url, end],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            while len(server.chats) < 2:
                time.sleep(0.01)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        assert time.monotonic() - start < 3
        assert (process.returncode, out, err) == (7, "interrupted\n", "")
        assert len(server.chats) == 2


def test_a_prompt_that_was_cut_is_an_error() -> None:
    with FakeOllama() as server:
        [reply] = ask(server, call("a long prompt " * 1000), num_ctx=512)
    assert (reply.kind, reply.text) == ("truncated_prompt", "")
    assert "critic.num_ctx, now 512" in (reply.error or "")


def test_far_fewer_tokens_than_sent_are_a_cut_too() -> None:
    def counted(body: Body) -> Body:
        message = {"role": "assistant", "content": "fine"}
        return {"message": message, "prompt_eval_count": 300}

    with FakeOllama(reply=counted) as server:
        [short, long] = ask(server, call("word " * 200), call("word " * 2000))
    assert (short.text, long.kind) == ("fine", "truncated_prompt")


def test_a_missing_count_says_nothing() -> None:
    def uncounted(body: Body) -> Body:
        message = {"role": "assistant", "content": "fine"}
        return {"message": message, "prompt_eval_count": None, "eval_count": None}

    with FakeOllama(reply=uncounted) as server:
        [reply] = ask(server, call("word " * 5000))
    assert (reply.text, reply.usage) == ("fine", {})


def test_the_estimate_of_a_prompt_is_low() -> None:
    assert estimate_tokens([{"role": "user", "content": "=" * 6000}]) == 0
    prose = "It keeps the attempt word for word up to its first mistake. "
    assert estimate_tokens([{"role": "user", "content": prose * 10}]) < 10 * 12


ANSWER = "<answer>1</answer>"


@pytest.mark.parametrize(
    ("text", "role", "tags", "expected"),
    [
        ("<think>hm</think>\nThe sum is wrong.", "critique", "think", "The sum is wrong."),
        ("  <think>hm</think>Close </think>!", "critique", "think", "Close </think>!"),
        ("The <think> tag is missing.", "critique", "think", "The <think> tag is missing."),
        ("<think>cut off", "critique", "think", "<think>cut off"),
        (f"<think>a</think>{ANSWER}", "rewrite", "think", f"<think>a</think>{ANSWER}"),
        (f"<think>own</think>\n<think>a</think>{ANSWER}", "rewrite", "think",
         f"<think>a</think>{ANSWER}"),
        (f"<think>own</think><reasoning>a</reasoning>{ANSWER}", "rewrite", "reasoning",
         f"<reasoning>a</reasoning>{ANSWER}"),
    ],
)  # fmt: skip
def test_the_critics_own_thought_is_left_out(
    text: str, role: Any, tags: str, expected: str
) -> None:
    with FakeOllama(reply=lambda body: text) as server:
        [reply] = ask(server, call(role=role, tags=tags))
    assert reply.text == expected


def preflight(url: str, **settings: Any) -> OllamaCritic:
    critic = critic_at(url, **settings)
    try:
        critic.preflight()
    finally:
        critic.close()
    return critic


@pytest.mark.parametrize("model", ["critic", "critic:latest", "other:7b"])
def test_preflight_finds_the_model(model: str) -> None:
    with FakeOllama(models=["critic", "other:7b"]) as server:
        assert preflight(server.url, model=model).actor == f"ollama:{model}"
        assert server.chats == []


@pytest.mark.parametrize("model", ["missing", "other", "critic:8b"])
def test_preflight_names_the_missing_model(model: str) -> None:
    with FakeOllama(models=["critic", "other:7b"]) as server, pytest.raises(UserError) as caught:
        preflight(server.url, model=model)
    assert caught.value.message == f"Ollama has no model {model}"
    assert caught.value.hint == f"run: ollama pull {model}"


def test_preflight_says_when_the_server_is_down() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError) as caught:
        preflight(url)
    assert caught.value.message == f"Ollama does not answer at {url}"
    assert caught.value.hint == "start it with `ollama serve`, or set critic.base_url"


def test_preflight_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("OLLAMA_HOST", f"http://me:hidden-pw@127.0.0.1:{port}")
    with pytest.raises(UserError) as caught:
        preflight("")
    assert caught.value.message == f"Ollama does not answer at http://127.0.0.1:{port}"


def test_ollama_host_is_honoured_and_base_url_overrides_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeOllama() as server, FakeOllama() as other:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        preflight("")
        assert (len(server.requests), len(other.requests)) == (2, 0)
        preflight(other.url)
        assert (len(server.requests), len(other.requests)) == (2, 2)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://[half"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="no address"):
        critic_at(url)


@pytest.mark.parametrize(("can", "sent"), [("thinking", False), ("tools", None)])
def test_thinking_is_turned_off_where_it_can_be(can: str, sent: bool | None) -> None:
    with FakeOllama(capabilities=["completion", can]) as server:
        critic = critic_at(server.url)
        critic.preflight()
        critic.ask([call()])
        critic.close()
        assert server.chats[0].get("think") is sent


def test_a_window_smaller_than_num_ctx_is_known() -> None:
    with FakeOllama(context=256, reply=lambda body: counted_to(256)) as server:
        critic = critic_at(server.url)
        critic.preflight()
        assert critic.ask([call("word " * 300)])[0].kind == "truncated_prompt"
        critic.close()


def counted_to(count: int) -> Body:
    return {"message": {"role": "assistant", "content": "fine"}, "prompt_eval_count": count}
