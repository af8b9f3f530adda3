"""What holds for every critic on a server: each fault has a kind, and none becomes text."""

import email.utils
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import test_critic_bedrock
import test_critic_ollama
import test_critic_openai
from support import fake_bedrock, fake_ollama, fake_openai
from support import fake_server as wire
from support.critic_calls import TRIES, call
from support.fake_bedrock import FakeBedrock, aws
from support.fake_ollama import FakeOllama
from support.fake_openai import FakeOpenAI, refusal
from support.fake_server import Body, Fault, free_port, http

from mlxreflect.critics.base import Reply
from mlxreflect.critics.http import http_error, retry_after

DEEP = b"[" * 100_000


@dataclass(frozen=True)
class Provider:
    """refuse: a refused request with a status. bad: the module with faults in its format."""

    fake: type[FakeOllama] | type[FakeOpenAI] | type[FakeBedrock]
    critic_at: Callable[..., Any]
    refuse: Callable[..., Fault]
    bad: Any


def aws_refusal(status: int, **fields: Any) -> Fault:
    code = next(code for code, its_status in fake_bedrock.STATUS.items() if its_status == status)
    return aws(code, **fields)


PROVIDERS = {
    "ollama": Provider(FakeOllama, test_critic_ollama.critic_at, http, fake_ollama),
    "openai": Provider(FakeOpenAI, test_critic_openai.critic_at, http, fake_openai),
    "bedrock": Provider(FakeBedrock, test_critic_bedrock.critic_at, aws_refusal, fake_bedrock),
}


@pytest.fixture(scope="module", params=PROVIDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass
class Service:
    """A server and its critic, for all tests of a provider: boto3 takes its time to start."""

    provider: Provider
    server: Any
    critic: Any

    def ask(self, *faults: Fault, content: str = "hello") -> tuple[Reply, int]:
        """The reply where these come first, and how many requests were sent for it."""
        self.server.requests.clear()
        self.server.faults[:] = faults
        [reply] = self.critic.ask([call(content)])
        self.server.faults.clear()
        return reply, len(self.server.chats)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    with pytest.MonkeyPatch.context() as patch:
        fake_bedrock.credentials(patch, tmp_path_factory.mktemp("aws"))
        made = {}
        for name, provider in PROVIDERS.items():
            server = provider.fake().__enter__()
            made[name] = Service(provider, server, provider.critic_at(server.url))
        yield made
        for one in made.values():
            one.critic.close()
            one.server.__exit__(None, None, None)


@pytest.fixture
def service(name: str, services: dict[str, Service]) -> Service:
    return services[name]


# ---- faults --------------------------------------------------------------------------------------

# By provider, where they differ: a status, the name of a fault in the fake's module, or a fault.
EVERYWHERE: list[tuple[int | str | Fault, str, int]] = [
    (429, "http_429", TRIES),
    (408, "http_408", TRIES),
    (500, "http_500", TRIES),
    (503, "http_503", TRIES),
    (400, "http_400", 1),
    (403, "http_403", 1),
    (404, "http_404", 1),
    (Fault(401, b"{}"), "http_401", 1),
    (Fault(502, b"<html>bad gateway</html>"), "http_502", TRIES),
    (wire.HANG_UP, "reset", TRIES),
    (wire.RESET, "reset", TRIES),
    (wire.SHORT, "reset", TRIES),
    (wire.EMPTY_BODY, "invalid", TRIES),
    (wire.NOT_OBJECT, "invalid", TRIES),
    ("BAD_JSON", "invalid", TRIES),
    ("WRONG_SCHEMA", "invalid", TRIES),
    ("NOT_UTF8", "invalid", TRIES),
    (Fault(body=DEEP), "invalid", TRIES),
    (Fault(body=b"plain", headers={"Content-Encoding": "gzip"}), "invalid", TRIES),
]
OWN: dict[str, list[tuple[Fault, str, int]]] = {
    "ollama": [
        (http(409), "http_409", TRIES),
        (http(401), "http_401", 1),
        (fake_ollama.NO_MODEL, "http_404", 1),
        (Fault(500, b"[]"), "http_500", TRIES),
        (Fault(500, DEEP), "http_500", TRIES),
        (Fault(body=b"x" * 2**20), "invalid", TRIES),
        (Fault(304), "http_304", 1),
    ],
    "openai": [
        (http(409), "http_409", TRIES),
        (http(401), "http_401", 1),
        (refusal(529, "overloaded"), "http_529", TRIES),
        (refusal(404, "The model 'critic' does not exist"), "http_404", 1),
        (Fault(307, headers={"Location": "http://127.0.0.1:1/"}), "http_307", 1),
        (fake_openai.NO_CHOICES, "invalid", TRIES),
        (fake_openai.NOT_TEXT, "invalid", TRIES),
        (Fault(500, b"[]"), "http_500", TRIES),
        (Fault(500, DEEP), "http_500", TRIES),
        (wire.ok({"error": {"code": 429, "message": "slow down"}}), "http_429", TRIES),
        (wire.ok({"error": {"code": 400, "message": "no"}, "choices": []}), "http_400", 1),
        (wire.ok({"error": "upstream failed"}), "http_502", TRIES),
    ],
    "bedrock": [
        (aws("ModelNotReadyException"), "http_429", TRIES),
        (aws("ModelErrorException"), "http_424", TRIES),
        (aws("ExpiredTokenException"), "http_403", 1),
        (Fault(body=b'{"output": {"message": {"content": [{"text": 7}]}}}'), "invalid", TRIES),
        (Fault(body=b'{"output": {"message": {"content": 7}}}'), "invalid", TRIES),
        (Fault(body=b'{"output": {"message": 7}, "usage": 7}'), "invalid", TRIES),
        (Fault(500, DEEP), "invalid", TRIES),
    ],
}  # fmt: skip


def kind_of(service: Service, fault: Fault, kind: str, sent: int) -> None:
    reply, requests = service.ask(*[fault] * TRIES)
    assert (reply.kind, requests) == (kind, sent)
    assert reply.error
    assert "\n" not in reply.error
    assert (reply.text, reply.cached, reply.tries) == ("", False, sent)


def label(value: object) -> str:
    return value.label if isinstance(value, Fault) else str(value)


@pytest.mark.parametrize(("fault", "kind", "sent"), EVERYWHERE, ids=label)
def test_each_fault_has_a_kind(
    service: Service, fault: int | str | Fault, kind: str, sent: int
) -> None:
    if isinstance(fault, int):
        fault = service.provider.refuse(fault)
    elif isinstance(fault, str):
        fault = getattr(service.provider.bad, fault)
    assert isinstance(fault, Fault)
    kind_of(service, fault, kind, sent)


@pytest.mark.parametrize(
    ("owner", "fault", "kind", "sent"),
    [(owner, *case) for owner, cases in OWN.items() for case in cases], ids=label,
)  # fmt: skip
def test_each_fault_of_one_provider_has_a_kind(
    services: dict[str, Service], owner: str, fault: Fault, kind: str, sent: int
) -> None:
    kind_of(services[owner], fault, kind, sent)


@pytest.mark.parametrize(
    "faults",
    [[429], [500, 503, 408], [wire.HANG_UP], [wire.RESET, wire.SHORT],
     [wire.EMPTY_BODY, "BAD_JSON", "NOT_UTF8"]],
)  # fmt: skip
def test_a_retried_call_succeeds(service: Service, faults: list[int | str | Fault]) -> None:
    provider = service.provider
    made = [
        provider.refuse(fault) if isinstance(fault, int)
        else getattr(provider.bad, fault) if isinstance(fault, str) else fault
        for fault in faults
    ]  # fmt: skip
    reply, sent = service.ask(*made)
    assert (reply.text, reply.error, reply.kind) == ("reply to hello", None, "")
    assert sent == len(faults) + 1


def test_retry_after_is_honoured(service: Service) -> None:
    refuse = service.provider.refuse
    reply, _ = service.ask(refuse(429, retry_after=0.3), refuse(503, retry_after=0.2))
    times = [seen.at for seen in service.server.requests]
    assert reply.text == "reply to hello"
    assert times[1] - times[0] >= 0.3
    assert times[2] - times[1] >= 0.2


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(service: Service) -> None:
    start = time.monotonic()
    reply, sent = service.ask(service.provider.refuse(429, retry_after=3600))
    assert (reply.kind, sent) == ("http_429", 1)
    assert time.monotonic() - start < 10  # the deadline


@pytest.mark.parametrize("text", ["", " \n", "<think></think>\n"])
def test_no_text_is_an_error(service: Service, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.server, "reply", lambda body: text)
    reply, sent = service.ask()
    assert (reply.kind, reply.text, sent) == ("empty", "", TRIES)


def test_half_an_emoji_is_sent_as_a_question_mark(service: Service) -> None:
    assert service.ask(content="cut \ud83d")[0].text == "reply to cut ?"


# ---- critics with settings of their own ----------------------------------------------------------


@pytest.fixture
def at(name: str, services: dict[str, Service]) -> Iterator[Callable[..., Any]]:
    """Makes another critic of the provider's server, or at another address."""
    made, service = [], services[name]
    original = service.server.reply

    def make(url: str = "", **settings: Any) -> Any:
        made.append(service.provider.critic_at(url or service.server.url, **settings))
        return made[-1]

    service.server.requests.clear()
    yield make
    for critic in made:
        critic.close()
    service.server.faults.clear()
    service.server.reply = original


@pytest.mark.parametrize("fault", [wire.STALL, wire.DRIP], ids=label)
def test_the_deadline_ends_a_call(service: Service, at: Callable[..., Any], fault: Fault) -> None:
    critic = at(deadline_s=0.5, concurrency=1)
    service.server.faults[:] = [fault] * 50
    start = time.monotonic()
    replies = critic.ask([call("a"), call("b")])
    assert time.monotonic() - start < 20  # a drip takes 50 s to its end
    assert replies == [Reply("", error="no reply within 0.5 s", kind="timeout")] * 2
    service.server.faults.clear()
    assert critic.ask([call("c")])[0].text == "reply to c"  # the thread came back


def test_the_order_is_that_of_the_calls(service: Service, at: Callable[..., Any]) -> None:
    answer = service.server.reply

    def slow(body: Body) -> Any:
        time.sleep(random.uniform(0, 0.05))
        return answer(body)

    service.server.reply, service.server.most_at_once = slow, 0
    service.server.faults[:] = [service.provider.refuse(500), wire.RESET]
    replies = at(concurrency=8).ask([call(str(n)) for n in range(24)])
    assert [reply.text for reply in replies] == [f"reply to {n}" for n in range(24)]
    assert 1 < service.server.most_at_once <= 8


def test_a_reply_cut_by_length_is_kept(service: Service, at: Callable[..., Any]) -> None:
    service.server.reply = lambda body: "12345678abcd"
    [reply] = at(max_tokens=2).ask([call()])
    assert (reply.text, reply.finish_reason, reply.error) == ("12345678", "length", None)


def test_a_megabyte_of_text(service: Service, at: Callable[..., Any]) -> None:
    service.server.reply = lambda body: "wrong " * 175_000
    [reply] = at(max_tokens=10**6).ask([call()])
    assert len(reply.text) == 6 * 175_000


def test_a_server_that_is_down_is_an_error_reply(at: Callable[..., Any]) -> None:
    assert at(f"http://127.0.0.1:{free_port()}").ask([call()])[0].kind == "connect"


# ---- refusals as words ---------------------------------------------------------------------------


def test_retry_after_forms() -> None:
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < (retry_after(date) or 0) <= 60
    assert retry_after("7") == 7
    assert retry_after("-7") == 0
    for text in ("", "soon", "inf", "nan", "Mon, 99 Foo 2020"):
        assert retry_after(text) is None


def test_an_error_keeps_one_short_line_of_the_servers_words() -> None:
    error = http_error(httpx.Response(400, text="a\nb " * 1000))
    assert str(error).startswith("HTTP 400: a b a b")
    assert len(str(error)) < 250


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "the words", "type": "x"}}, "the words"),
        ({"error": "the words"}, "the words"),
        ({"message": "the words"}, "the words"),
        ({"detail": "the words"}, "the words"),
        ({"error": {"detail": ["the words"]}}, '["the words"]'),
        (["the words"], '["the words"]'),
    ],
)
def test_a_refusal_says_what_the_server_said(body: Any, said: str) -> None:
    assert str(http_error(httpx.Response(400, json=body))) == f"HTTP 400: {said}"


def test_secrets_go_before_the_words_are_cut() -> None:
    headers = {"Authorization": "Bearer sk-own-secret", "X-Api-Key": "sk-own"}
    request = httpx.Request("GET", "http://me:pass%2Fword@host/", headers=headers)
    said = "sk-own-secret, sk-own, pass/word, planted " + "x" * 146 + " planted-longer"
    error = http_error(
        httpx.Response(401, text=said, request=request), ("planted", "planted-longer")
    )
    assert str(error).startswith("HTTP 401: [key], [key], [key], [key] xxx")
    assert str(error).endswith("xxx [key]")


def test_a_body_nested_to_the_limit_of_recursion_is_a_refusal() -> None:
    """Just below it the body can be read and what it says cannot be written."""
    for depth in range(900, 1010):
        body = b'{"error": ' + b"[" * depth + b"]" * depth + b"}"
        assert http_error(httpx.Response(500, content=body)).kind == "http_500"
