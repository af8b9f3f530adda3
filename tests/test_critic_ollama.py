"""What the Ollama critic alone does; the rest is in test_critic_remote."""

from contextlib import ExitStack
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
    }  # fmt: skip
    assert body["model"] == "critic"
    assert body["messages"] == call().messages
    assert body["stream"] is False
    assert not {"think", "keep_alive", "format"} & set(body)


def counted(prompt: int | None, **more: Any) -> Body:
    message = {"role": "assistant", "content": "fine"}
    return {"message": message, "prompt_eval_count": prompt, **more}


def test_a_prompt_that_was_cut_is_an_error() -> None:
    with FakeOllama() as server:
        [reply] = ask(server, call("a long prompt " * 1000), num_ctx=512)
    assert (reply.kind, reply.text) == ("truncated_prompt", "")
    assert "critic.num_ctx, now 512" in (reply.error or "")
    with FakeOllama(reply=lambda body: counted(300)) as server:  # far fewer tokens than were sent
        [short, long] = ask(server, call("word " * 200), call("word " * 2000))
    assert (short.text, long.kind) == ("fine", "truncated_prompt")
    with FakeOllama(reply=lambda body: counted(None, eval_count=None)) as server:
        [reply] = ask(server, call("word " * 5000))  # a missing count says nothing
    assert (reply.text, reply.usage) == ("fine", {})


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


def test_a_window_smaller_than_num_ctx_is_known() -> None:
    with FakeOllama(context=256, reply=lambda body: counted(256)) as server:
        critic = critic_at(server)
        critic.preflight()
        assert critic.ask([call("word " * 300)])[0].kind == "truncated_prompt"
        critic.close()
