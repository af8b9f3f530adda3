"""What the OpenAI-compatible critic alone does; the rest is in test_critic_remote."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support import fake_server as wire
from support.critics import TRIES, ask, call, critic_at, preflight
from support.fake_openai import FakeOpenAI, refusal
from support.fake_server import Body, Fault, http
from support.methods import attempt_messages
from support.mlx_server import serving

from mlxreflect.config.schema import CriticConfig, PolicyConfig, TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.critics.openai import OpenAI, parse_base
from mlxreflect.models.load import TINY, load_policy
from mlxreflect.prompts.parsing import parse_response
from mlxreflect.tasks import TASKS, countdown

KEY = "sk-secret/0123456789+abc"
SCHEMA = {"type": "object", "properties": {"right": {"type": "boolean"}}, "required": ["right"]}


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CRITIC_KEY", KEY)
    return "CRITIC_KEY"


# ---- what is sent and what comes back ------------------------------------------------------------


def test_what_is_sent() -> None:
    with FakeOpenAI() as server:
        ask(server, call(seed=2**40 + 5), temperature=0.25, max_tokens=99)
        [seen] = server.requests
    assert seen.body == {
        "model": "critic", "messages": call().messages, "stream": False, "max_tokens": 99,
        "temperature": 0.25, "seed": 5,
    }  # fmt: skip
    assert "authorization" not in seen.headers


def test_the_key_is_sent_and_a_schema_too(key: str) -> None:
    with FakeOpenAI(key=KEY, reply=lambda body: '{"right": true}') as server:
        [reply] = ask(server, call(schema=SCHEMA), key_env=key)
        [body] = server.chats
    assert reply.text == '{"right": true}'
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert body["response_format"]["type"] == "json_schema"


def message(**fields: Any) -> Body:
    return {"message": {"role": "assistant", **fields}}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
        (message(content=[{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}]),
         "a"),
        (message(content="said", reasoning_content="thought"), "said"),
        (message(content="said", reasoning="thought", tool_calls=None), "said"),
        (message(content="half an emoji \ud83d"), "half an emoji \ud83d"),
        (message(content=None), ""),
        (message(content=[]), ""),
        (message(content=None, reasoning_content="hm") | {"finish_reason": "length"}, ""),
    ],
)  # fmt: skip
def test_forms_of_content(answer: Body, text: str) -> None:
    with FakeOpenAI(reply=lambda body: answer) as server:
        [reply] = ask(server, max_tokens=7)
        assert len(server.chats) == (1 if text or "reasoning" in str(answer) else TRIES)
    assert (reply.text, reply.kind) == (text, "" if text else "empty")
    used_up = reply.error == "all 7 tokens went into thinking: raise critic.max_tokens"
    assert used_up == ("length" in answer.values())


@pytest.mark.parametrize(
    ("tags", "thought", "content", "text"),
    [
        ("think", "hm", "\n<answer>1</answer>", "<think>hm</think>\n<answer>1</answer>"),
        ("think", "<think>\nhm", "<answer>1</answer>", "<think>\nhm</think><answer>1</answer>"),
        ("think", "hm", "<think>b</think><answer>", "<think>b</think><answer>"),
        ("reasoning", "hm", "<reasoning>b</reasoning>", "<reasoning>b</reasoning>"),
    ],
)
def test_a_rewrites_own_thought_that_the_server_took_apart(
    tags: str, thought: str, content: str, text: str
) -> None:
    answer = message(content=content, reasoning=thought)
    with FakeOpenAI(reply=lambda body: answer) as server:
        [rewrite, critique] = ask(server, call(role="rewrite", tags=tags), call("other"))
    assert rewrite.text == text
    assert critique.text == content.removeprefix("<think>b</think>").lstrip()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, {"prompt": 3, "completion": 4}),
        ({"prompt_tokens": 3}, {"prompt": 3}),
        ({"prompt_tokens": "3", "completion_tokens": -1}, {}),
        (None, {}),
        ("none", {}),
    ],
)
def test_usage_may_be_missing(usage: Any, expected: dict[str, int]) -> None:
    answer = {"choices": [{"message": {"content": "fine"}}], "usage": usage}
    with FakeOpenAI(faults=[wire.ok(answer)]) as server:
        [reply] = ask(server)
    assert (reply.text, reply.usage, reply.finish_reason) == ("fine", expected, None)


# ---- what servers refuse -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thinking", "sent"),
    [("auto", {}), ("medium", {"reasoning_effort": "medium"}),
     ("off", {"chat_template_kwargs": {"enable_thinking": False}}),
     ("on", {"chat_template_kwargs": {"enable_thinking": True}})],
)  # fmt: skip
def test_thinking_is_asked_for_and_left_out_where_it_is_refused(
    thinking: str, sent: dict[str, Any]
) -> None:
    names = ("reasoning_effort", "chat_template_kwargs")
    with FakeOpenAI() as server, FakeOpenAI(refuses=names) as strict:
        [reply], [other] = (ask(one, thinking=thinking) for one in (server, strict))
        [body], last = server.chats, strict.chats[-1]
    assert {name: body[name] for name in names if name in body} == sent
    assert reply.text == other.text and not set(names) & set(last)


@pytest.mark.parametrize("name", ["max_tokens", "temperature", "seed", "response_format"])
def test_what_is_refused_is_left_out_from_then_on(name: str) -> None:
    with FakeOpenAI(refuses=[name]) as server:
        replies = ask(server, call("a", schema=SCHEMA), call("b", schema=SCHEMA), concurrency=1)
        first, second, third = server.chats
    assert [reply.text for reply in replies] == ["reply to a", "reply to b"]
    assert name in first
    assert name not in second and name not in third
    assert (name == "max_tokens") == ("max_completion_tokens" in third)
    assert len(third) == len(first) - (name != "max_tokens")  # nothing else was left out


def test_all_that_is_refused_at_once_and_from_several_threads() -> None:
    with FakeOpenAI(refuses=["max_tokens", "temperature", "seed"]) as server:
        critic = critic_at(server, concurrency=4)
        replies = critic.ask([call(str(n)) for n in range(8)])
        before = len(server.chats)
        replies += critic.ask([call("9")])
        assert len(server.chats) == before + 1  # all of it is known by now
        assert set(server.chats[-1]) == {"model", "messages", "stream", "max_completion_tokens"}
        critic.close()
    assert [reply.error for reply in replies] == [None] * 9


@pytest.mark.parametrize(
    ("part", "status", "said", "texts"),
    [
        ("response_format", 400, "This kind of output is unavailable now", "reply to {}"),
        ("response_format", 422, "This kind of output is unavailable now", "reply to {}"),
        ("system", 400, "System role not supported", "reply to Review.\n\n{}"),
        ("system", 404, "System role not supported", "reply to Review.\n\n{}"),
        ("system", 500, "Conversation roles must alternate user/assistant/...",
         "reply to Review.\n\n{}"),
    ],
)  # fmt: skip
def test_what_is_refused_in_other_words(part: str, status: int, said: str, texts: str) -> None:
    def reply(body: Body) -> str | Fault:
        refused = part in body or body["messages"][0]["role"] == part
        return refusal(status, said) if refused else FakeOpenAI.echo(body)

    schema = SCHEMA if part == "response_format" else None
    with FakeOpenAI(reply=reply) as server:
        replies = ask(server, *(call(text, schema=schema) for text in "ab"), concurrency=1)
        assert len(server.chats) == 3
    assert [one.text for one in replies] == [texts.format(text) for text in "ab"]


# ---- the key -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "fault"),
    [(None, "is not set"), ("  ", "is not set"), ("sk-é", "holds"), ("a\nb", "holds")],
)
def test_a_key_that_is_not_there(
    value: str | None, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRITIC_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("CRITIC_KEY", value)
    with pytest.raises(UserError) as caught:
        critic_at(("openai", "http://127.0.0.1:1"), key_env="CRITIC_KEY")
    assert caught.value.message.startswith(f"the environment variable CRITIC_KEY {fault}")
    assert "CRITIC_KEY" in caught.value.hint
    assert not (value or "").strip() or value not in caught.value.message + caught.value.hint


def test_openai_itself_wants_a_key() -> None:
    with pytest.raises(UserError) as caught:
        OpenAI(CriticConfig(provider="openai", model="gpt-4.1-mini"))
    assert caught.value.message == "critic.key_env is empty, and OpenAI wants a key"
    assert 'set critic.key_env = "OPENAI_API_KEY"' in caught.value.hint
    assert OpenAI(CriticConfig(provider="openai", model="gpt-4.1-mini", replay=True))


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "base"),
    [
        ("", "https://api.openai.com/v1"),
        ("http://127.0.0.1:1234", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:1234/", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:1234/v1/", "http://127.0.0.1:1234/v1"),
        ("localhost:8080", "http://localhost:8080/v1"),
        (" https://openrouter.ai/api/v1 ", "https://openrouter.ai/api/v1"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1beta/openai/?a=b", "http://h/v1beta/openai?a=b"),
    ],
)
def test_addresses(setting: str, base: str) -> None:
    assert str(parse_base(setting)) == base


# ---- preflight -----------------------------------------------------------------------------------


def refused(server: FakeOpenAI, **settings: Any) -> tuple[str, str]:
    with pytest.raises(UserError) as caught:
        preflight(server, **settings)
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("critic", ["critic", "other"]),
        ("critic", ["models/critic"]),
        ("critic", ["critic:latest"]),
        ("maker/critic:online", ["maker/critic"]),
        ("critic", []),
        ("critic", http(404)),
        ("critic", http(405)),
        ("critic", http(429)),
        ("critic", refusal(403, "Missing scopes: api.model.read")),
        ("critic", Fault()),  # mlx_lm.server where there is no hub cache
        ("critic", Fault(body=b'[{"id": "critic"}]')),
        ("critic", Fault(body=b'{"data": [{"name": "critic"}, 7]}')),
    ],
    ids=str,
)
def test_preflight_passes(model: str, names: Any) -> None:
    with FakeOpenAI(models=names) as server:
        preflight(server, model=model)
        assert server.chats == []


@pytest.mark.parametrize("software", ["BaseHTTP/0.6 Python/3.11.9", "llama.cpp"])
def test_a_server_that_serves_what_it_does_not_list(software: str) -> None:
    with FakeOpenAI(models=["another"], software=software) as server:
        preflight(server, model="/models/critic")


def test_preflight_names_the_models_there_nearest_first() -> None:
    names = ["llama-3", "qwen2.5-7b-instruct", "z", "qwen2.5-14b-instruct"]
    with FakeOpenAI(models=names) as server:
        message, hint = refused(server, model="qwen2.5-7b")
    assert message == f"{server.url}/v1 has no model qwen2.5-7b"
    assert hint.startswith("set critic.model to one that it has: qwen2.5-7b-instruct, qwen2.5-14b")


def test_preflight_says_which_variable_holds_a_wrong_key(key: str) -> None:
    with FakeOpenAI(key="another") as server:
        message, hint = refused(server, key_env=key)
        assert message == f"{server.url}/v1 does not accept the key in CRITIC_KEY (HTTP 401)"
        assert hint.startswith("export CRITIC_KEY")
        message, hint = refused(server)
        assert message == f"{server.url}/v1 wants a key (HTTP 401)"
        assert "critic.key_env" in hint
    assert KEY not in message + hint


def test_preflight_of_a_server_that_fails() -> None:
    with FakeOpenAI(models=refusal(503, "Loading model")) as server:
        message, hint = refused(server)
    assert message.endswith("does not answer as it should: HTTP 503: Loading model")
    assert "critic.base_url" in hint


# ---- a real server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlx_lm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With the embedded policy."""
    with serving(TINY, tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("model", [str(TINY), "default_model"])
def test_mlx_lms_own_server_is_a_critic(mlx_lm_server: str, model: str) -> None:
    problems = TASKS["countdown"].load(TaskConfig(limit=3), "dev", 0)
    asked = [
        attempt_messages(countdown.instruction(p), countdown.show(p), "think", "thinking")
        for p in problems
    ]
    calls = [call(role="rewrite", messages=messages, schema=SCHEMA) for messages in asked]
    critic = critic_at(
        ("openai", mlx_lm_server), model=model, temperature=0.0, max_tokens=200, deadline_s=60.0
    )
    try:
        critic.preflight()
        replies = critic.ask([*calls, replace(calls[0], role="critique")])
    finally:
        critic.close()
    policy = load_policy(PolicyConfig())
    for reply, messages in zip(replies, [*asked, asked[0]], strict=True):
        assert (reply.error, reply.finish_reason) == (None, "stop")
        assert reply.usage["prompt"] == len(policy.encode(messages))
        assert 0 < reply.usage["completion"] < 200
    # The server takes thoughts apart; a rewrite has its own all the same, a critique has none.
    for rewrite in replies[:3]:
        assert parse_response(rewrite.text).format_ok, rewrite.text
    assert replies[0].text.endswith(replies[3].text)
    assert replies[3].text.startswith("<answer>")
