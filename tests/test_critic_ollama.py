"""What the Ollama critic alone does; the rest is in test_critic_remote."""

import re
from contextlib import ExitStack, closing
from typing import Any

import pytest
from support.critics import ask, call, critic_at, preflight
from support.fake_ollama import FakeOllama
from support.fake_server import Body

from mlxreflect.core.errors import UserError
from mlxreflect.critics.ollama import estimate_tokens


def test_what_is_sent() -> None:
    with FakeOllama() as server:
        ask(server, call(seed=2**40 + 5), temperature=0.25, max_tokens=99, num_ctx=1234)
        [body] = server.chats
    assert body["options"] == {
        "temperature": 0.25, "num_predict": 99, "num_ctx": 1234, "seed": 5,
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    }  # fmt: skip
    assert body["model"] == "critic"
    assert body["messages"] == call().messages
    assert body["stream"] is False
    assert (body["truncate"], body["shift"]) == (False, False)
    assert not {"think", "keep_alive", "format"} & set(body)


@pytest.mark.parametrize(
    ("keep_alive", "sent"), [("1h30m", "1h30m"), (0, 0), ("0", 0), (-1, -1), (90, 90)]
)
def test_how_long_the_model_stays_loaded(keep_alive: str | int, sent: str | int) -> None:
    with FakeOllama() as server:
        ask(server, keep_alive=keep_alive)
    assert server.chats[0]["keep_alive"] == sent


def counted(prompt: int | None, **more: Any) -> Body:
    message = {"role": "assistant", "content": "fine"}
    return {"message": message, "prompt_eval_count": prompt, **more}


LONG = call("a long prompt " * 1000)


@pytest.mark.parametrize(
    ("version", "said"),
    [("new", r"400: request \(3509 tokens\) exceeds the available context size \(512 tokens\)"),
     ("half", "counts 258 tokens of it"), ("old", "counts 512 tokens of it")],
)  # fmt: skip
def test_a_prompt_that_does_not_fit_is_an_error(version: str, said: str) -> None:
    with FakeOllama(version=version) as server:
        [reply] = ask(server, LONG, num_ctx=512)
        assert len(server.chats) == 1  # the same again would be the same
    assert (reply.kind, reply.text) == ("truncated_prompt", "")
    assert re.search(said, reply.error or "")
    assert "critic.num_ctx, now 512" in (reply.error or "")


@pytest.mark.parametrize(
    ("words", "prompt", "completion", "kind"),
    [
        (200, 300, 9, ""),
        (200, 258, 9, ""),  # half the window by chance
        (2000, 258, 9, "truncated_prompt"),
        (2000, 3, 9, ""),  # only what was not cached is counted
        (300, 400, 112, ""),
        (300, 400, 113, "truncated_prompt"),  # the window was shifted
        (5000, None, None, ""),
    ],
)
def test_what_the_counts_of_an_old_server_prove(
    words: int, prompt: int | None, completion: int | None, kind: str
) -> None:
    answer = counted(prompt, eval_count=completion)
    with FakeOllama(reply=lambda body: answer, version="half") as server:
        [reply] = ask(server, call("word " * words), num_ctx=512)
    assert reply.kind == kind
    if not kind:
        known = prompt is not None and prompt > 3
        assert (reply.text, "prompt" in reply.usage) == ("fine", known)


def test_a_reply_ends_where_the_window_does() -> None:
    with FakeOllama(reply=lambda body: "and so on " * 1000) as server:
        [reply] = ask(server, call("word " * 100), num_ctx=512)
    assert (reply.finish_reason, sum(reply.usage.values())) == ("length", 512)


def test_the_estimate_of_a_prompt_is_low() -> None:
    assert estimate_tokens([{"role": "user", "content": "=" * 6000}]) == 0
    prose = "It keeps the attempt word for word up to its first mistake. "
    assert estimate_tokens([{"role": "user", "content": prose * 10}]) < 10 * 12


@pytest.mark.parametrize(
    ("model", "there"),
    [("critic", True), ("critic:latest", True), ("other:7b", True), ("missing", False),
     ("other", False), ("critic:8b", False)],
)  # fmt: skip
def test_preflight_looks_for_the_model(model: str, there: bool) -> None:
    with FakeOllama(models=["critic", "other:7b"]) as server, ExitStack() as stack:
        if not there:
            known = pytest.raises(UserError, match=f"^Ollama has no model {model}$")
            caught = stack.enter_context(known)
        assert preflight(server, model=model).actor == f"ollama:{model}"
        assert server.chats == []
    assert there or caught.value.hint == f"run: ollama pull {model}"


def test_ollama_host_is_honoured_and_base_url_overrides_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeOllama() as server, FakeOllama() as other:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        preflight(("ollama", ""))
        assert (len(server.requests), len(other.requests)) == (2, 0)
        preflight(other)
        assert (len(server.requests), len(other.requests)) == (2, 2)


@pytest.mark.parametrize(
    ("can", "thinking", "sent"),
    [("thinking", "auto", False), ("thinking", "off", False), ("thinking", "on", True),
     ("thinking", "low", "low"), ("thinking", "high", "high"), ("tools", "auto", None),
     ("tools", "off", None)],
)  # fmt: skip
def test_thinking_is_off_where_it_can_be_unless_it_is_asked_for(
    can: str, thinking: str, sent: bool | str | None
) -> None:
    with FakeOllama(capabilities=["completion", can]) as server:
        critic = critic_at(server, thinking=thinking)
        critic.preflight()
        critic.ask([call()])
        critic.close()
        assert server.chats[0].get("think") == sent


@pytest.mark.parametrize(("thinking", "sent"), [("auto", "low"), ("off", "low"), ("high", "high")])
def test_gpt_oss_thinks_a_little_for_it_cannot_but_think(thinking: str, sent: str) -> None:
    """With false it fills no schema: its reply is empty."""
    with (
        FakeOllama(capabilities=["completion", "thinking"], architecture="gptoss") as server,
        closing(critic_at(server, thinking=thinking)) as critic,
    ):
        critic.preflight()
        critic.ask([call(schema={"type": "object"})])
    assert server.chats[0]["think"] == sent


def test_a_model_that_does_not_think_is_not_asked_to() -> None:
    with FakeOllama() as server, pytest.raises(UserError, match=r"'low': .*critic does not think"):
        preflight(server, thinking="low")


def test_a_reply_that_is_all_thought_is_an_error() -> None:
    message = {"role": "assistant", "content": "", "thinking": "hm"}
    cut = {"message": message, "done_reason": "length"}
    with FakeOllama(reply=lambda body: cut) as server:
        [reply] = ask(server, max_tokens=50)
    assert reply.kind == "empty"
    assert "all 50 tokens went into thinking: raise critic.max_tokens" in (reply.error or "")


@pytest.mark.parametrize(("completion", "kind"), [(17, ""), (18, "truncated_prompt")])
def test_a_window_is_a_multiple_of_256_tokens(completion: int, kind: str) -> None:
    """A real server counted 239 and 17 where 192 were asked for: it had cut nothing."""
    answer = counted(239, eval_count=completion)
    with FakeOllama(reply=lambda body: answer) as server:
        [reply] = ask(server, num_ctx=192)
    assert reply.kind == kind


def test_a_window_smaller_than_num_ctx_is_known() -> None:
    with FakeOllama(context=256, version="old") as server, closing(critic_at(server)) as critic:
        critic.preflight()
        [reply] = critic.ask([call("word " * 300)])
    assert reply.kind == "truncated_prompt"
    assert "the model's window has 256 tokens" in (reply.error or "")
