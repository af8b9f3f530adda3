"""What holds for every critic on a server: each fault has a kind, none becomes text, none is lost.

Written once and run for each provider against its fake, which differs in the wire form alone. What
only one of them does stands in test_critic_ollama, _openai and _bedrock.
"""

import email.utils
import gzip
import json
import random
import signal
import subprocess
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import fake_bedrock, fake_ollama, fake_openai
from support import fake_server as wire
from support.critics import PROVIDERS, TRIES, Provider, Scripted, call, child, critic_at, preflight
from support.fake_bedrock import aws
from support.fake_ollama import FakeOllama
from support.fake_openai import refusal
from support.fake_server import Body, Fault, Loopback, free_port, http

from mlxreflect.config.schema import BudgetConfig, CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.client import Client
from mlxreflect.critics.http import REPLY_BYTES, CallError, Wire, retry_after
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.replies import forget

DEEP = b"[" * 100_000
KEY = "sk-secret/0123456789+abc"


@dataclass
class Service:
    """A server and its critic, for all tests of a provider: boto3 takes its time to start."""

    name: str
    provider: Provider
    server: Loopback
    critic: Client

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
            made[name] = Service(name, provider, server, critic_at(server))
        yield made
        for one in made.values():
            one.critic.close()
            one.server.__exit__(None, None, None)


@pytest.fixture(params=PROVIDERS)
def service(request: pytest.FixtureRequest, services: dict[str, Service]) -> Iterator[Service]:
    one = services[request.param]
    original = one.server.reply
    one.server.requests.clear()
    yield one
    one.server.faults.clear()
    one.server.reply = original


@pytest.fixture
def at(service: Service) -> Iterator[Callable[..., Client]]:
    """Makes another critic of the provider's server, or at another address."""
    made = []

    def make(url: str = "", **settings: Any) -> Client:
        where = (service.name, url) if url else service.server
        made.append(critic_at(where, **settings))
        return made[-1]

    yield make
    for critic in made:
        critic.close()


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


def made(service: Service, fault: int | str | Fault) -> Fault:
    if isinstance(fault, int):
        return service.provider.refuse(fault)
    found = getattr(service.provider.bad, fault) if isinstance(fault, str) else fault
    assert isinstance(found, Fault)
    return found


def label(value: object) -> str:
    return value.label if isinstance(value, Fault) else str(value)


@pytest.mark.parametrize(("fault", "kind", "sent"), EVERYWHERE, ids=label)
def test_each_fault_has_a_kind(
    service: Service, fault: int | str | Fault, kind: str, sent: int
) -> None:
    kind_of(service, made(service, fault), kind, sent)


@pytest.mark.parametrize(
    ("owner", "fault", "kind", "sent"),
    [(owner, *case) for owner, cases in OWN.items() for case in cases], ids=label,
)  # fmt: skip
def test_each_fault_of_one_provider_has_a_kind(
    services: dict[str, Service], owner: str, fault: Fault, kind: str, sent: int
) -> None:
    kind_of(services[owner], fault, kind, sent)


def packed(body: bytes, times: int = 1) -> Fault:
    for _ in range(times):
        body = gzip.compress(body)
    return Fault(body=body, headers={"Content-Encoding": ", ".join(["gzip"] * times)})


@pytest.mark.slow
@pytest.mark.parametrize(("times", "kind"), [(1, "too_large"), (2, "invalid")])
def test_a_packed_reply_takes_no_more_memory_than_another(
    service: Service, times: int, kind: str
) -> None:
    bomb = packed(b" " * 200 * 2**20, times)
    tracemalloc.start()
    try:
        reply, sent = service.ask(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * REPLY_BYTES
    finally:
        tracemalloc.stop()
    assert (reply.kind, sent) == (kind, 1)


def test_a_packed_reply_is_read(service: Service) -> None:
    """Though nobody asked for one."""
    server = service.server
    answer = server.written(server_body(service), "packed", {})
    reply, _ = service.ask(packed(json.dumps(answer).encode()))
    assert reply.text == "packed"


def server_body(service: Service) -> Body:
    """A request to it, as it came."""
    service.ask()
    return service.server.chats[-1]


@pytest.mark.parametrize("count", [10**400, -1, 2.5, "7", None], ids=lambda n: str(n)[:9])
def test_a_count_that_is_none_is_unknown(service: Service, count: Any) -> None:
    names = ("prompt_tokens", "completion_tokens", "inputTokens", "outputTokens")
    counts = dict.fromkeys(("prompt_eval_count", "eval_count"), count)
    answer = service.server.written(server_body(service), "fine", {})
    reply, _ = service.ask(wire.ok(answer | counts | {"usage": dict.fromkeys(names, count)}))
    if service.name != "bedrock" or count not in (2.5, "7"):  # boto3 makes whole numbers of them
        assert (reply.text, reply.usage) == ("fine", {})
    assert service.critic.ledger.spent[2] == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_prompt_is_not_sent_on_to_another_host(service: Service, status: int) -> None:
    with FakeOllama() as other:
        place = f"{other.url}/api/chat"
        reply, sent = service.ask(Fault(status, b"{}", {"Location": place}))
        assert (reply.kind, sent, other.requests) == (f"http_{status}", 1, [])
    assert service.name == "bedrock" or place in (reply.error or "")


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


# ---- texts ---------------------------------------------------------------------------------------


def test_a_reply_with_its_usage(service: Service) -> None:
    reply, _ = service.ask()
    assert (reply.text, reply.error, reply.finish_reason) == ("reply to hello", None, "stop")
    assert (reply.tries, reply.cached, reply.usage["completion"]) == (1, False, 4)
    assert reply.usage["prompt"] == (9 if service.name == "bedrock" else 11)


@pytest.mark.parametrize("text", ["", " \n", "<think></think>\n"])
def test_no_text_is_an_error(service: Service, text: str) -> None:
    service.server.reply = lambda body: text
    reply, sent = service.ask()
    assert (reply.kind, reply.text, sent) == ("empty", "", TRIES)


SAMPLING = {"top_p": 0.8, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2,
            "presence_penalty": -0.5}  # fmt: skip


def test_sampling_is_sent(service: Service, at: Callable[..., Client]) -> None:
    at(**SAMPLING).ask([call()])
    [body] = service.server.chats
    if service.name == "bedrock":
        assert body["inferenceConfig"]["topP"] == 0.8
        return
    sent = body.get("options", body)
    asked = {name if service.name == "openai" else name.replace("repetition", "repeat"): value
             for name, value in SAMPLING.items()}  # fmt: skip
    assert {name: sent[name] for name in asked} == asked


def test_half_an_emoji_is_sent_as_a_question_mark(service: Service) -> None:
    assert service.ask(content="cut \ud83d")[0].text == "reply to cut ?"


ANSWER = "<answer>1</answer>"


@pytest.mark.parametrize(
    ("text", "role", "tags", "expected"),
    [
        ("<think>hm</think>\nThe sum is wrong.", "critique", "think", "The sum is wrong."),
        ("  <think>hm</think>Close </think>!", "critique", "think", "Close </think>!"),
        ("The <think> tag is missing.", "critique", "think", "The <think> tag is missing."),
        ("<think>cut off", "critique", "think", "<think>cut off"),
        ("<think>Step 2 is wrong.</think>", "critique", "think", "Step 2 is wrong."),
        ("<think>Step 2 is wrong.</think>", "judge", "think", ""),
        (f"<think>a</think>{ANSWER}", "rewrite", "think", f"<think>a</think>{ANSWER}"),
        (f"<think>own</think>\n<think>a</think>{ANSWER}", "rewrite", "think",
         f"<think>a</think>{ANSWER}"),
        (f"<think>own</think><reasoning>a</reasoning>{ANSWER}", "rewrite", "reasoning",
         f"<reasoning>a</reasoning>{ANSWER}"),
    ],
)  # fmt: skip
def test_the_critics_own_thought_is_left_out(
    service: Service, text: str, role: Any, tags: str, expected: str
) -> None:
    service.server.reply = lambda body: text
    schema = {"type": "object"} if role == "judge" else None
    [reply] = service.critic.ask([call(role=role, tags=tags, schema=schema)])
    assert (reply.text, reply.kind) == (expected, "" if expected else "empty")


def test_a_reply_cut_by_length_is_kept(service: Service, at: Callable[..., Client]) -> None:
    service.server.reply = lambda body: "12345678abcd"
    [reply] = at(max_tokens=2).ask([call()])
    assert (reply.text, reply.finish_reason, reply.error) == ("12345678", "length", None)


def test_a_text_far_beyond_max_tokens_is_no_critique(
    service: Service, at: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fill the next prompts; asked again, the server would send as much again."""
    monkeypatch.setattr(wire, "CHARS_PER_TOKEN", 10**6)  # a server that knows no limit
    service.server.reply = lambda body: "on and on " * 100_000
    [reply] = at(max_tokens=50).ask([call()])
    assert (reply.kind, reply.text, len(service.server.chats)) == ("too_large", "", 1)
    for most, size in ((4000, 15_000), (10**6, 2**20)):  # fewer may be few long words
        service.server.reply = lambda body, size=size: "x" * size
        assert len(at(max_tokens=most).ask([call()])[0].text) == size


# ---- time and threads ----------------------------------------------------------------------------


STALLS = [pytest.param(wire.STALL, id="stall"), *(
    pytest.param(one, id=one.action, marks=pytest.mark.slow)
    for one in (wire.DRIP, wire.DRIP_HEADERS)
)]  # fmt: skip


@pytest.mark.parametrize("fault", STALLS)
def test_the_deadline_ends_a_call(
    service: Service, at: Callable[..., Client], fault: Fault
) -> None:
    critic = at(deadline_s=0.5, concurrency=1)
    service.server.faults[:] = [fault] * 50
    start = time.monotonic()
    replies = critic.ask([call("a"), call("b")])
    assert time.monotonic() - start < 20  # a drip takes 50 s to its end
    assert replies == [Reply("", error="no reply within 0.5 s", kind="timeout")] * 2
    service.server.faults.clear()
    assert critic.ask([call("c")])[0].text == "reply to c"  # the thread came back
    start = time.monotonic()
    critic.close()
    assert time.monotonic() - start < 1  # the stalled server does not hold it up


def test_the_order_is_that_of_the_calls(service: Service, at: Callable[..., Client]) -> None:
    answer = service.server.reply

    def slow(body: Body) -> Any:
        time.sleep(random.uniform(0, 0.05))
        return answer(body)

    service.server.reply, service.server.most_at_once = slow, 0
    service.server.faults[:] = [service.provider.refuse(500), wire.RESET]
    replies = at(concurrency=8).ask([call(str(n)) for n in range(24)])
    assert [reply.text for reply in replies] == [f"reply to {n}" for n in range(24)]
    assert 1 < service.server.most_at_once <= 8


def test_a_server_that_is_down_is_an_error_reply(at: Callable[..., Client]) -> None:
    assert at(f"http://127.0.0.1:{free_port()}").ask([call()])[0].kind == "connect"


INTERRUPTED = """
from support.critics import call, critic_at
critic = critic_at((sys.argv[1], sys.argv[2]), deadline_s=600.0, concurrency=2)
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
def test_ctrl_c_ends_the_process_promptly(service: Service, end: str) -> None:
    """Two calls are out, four queue, and the server says nothing."""
    server = service.server
    server.faults[:] = [wire.STALL] * 6
    with subprocess.Popen(
        child(INTERRUPTED, service.name, server.url, end),
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


# ---- the client, whatever the provider -----------------------------------------------------------


def client(send: Callable[[Call], Reply], ledger: Ledger | None = None, **settings: Any) -> Client:
    config = CriticConfig(**{"model": "critic", "concurrency": 1, "cache": "off"} | settings)
    return Client(config, "run", Scripted(send), ledger)


def test_what_still_queues_is_not_sent_once_asking_has_ended() -> None:
    sent: list[str] = []

    def send(one: Call) -> Reply:
        sent.append(one.text)
        if len(sent) == 1:
            raise ZeroDivisionError("a bug is not a failed call")
        time.sleep(0.1)
        return Reply("fine")

    one = client(send, Ledger(None, BudgetConfig(max_calls=5)))
    with pytest.raises(ZeroDivisionError):
        one.ask([call(str(n)) for n in range(6)])
    time.sleep(0.4)
    one.close()
    assert len(sent) <= 2  # the second may have been under way
    assert not one.ledger.out  # the bug left nothing set aside


def test_a_call_that_is_given_up_while_it_waits_for_the_budget_is_not_sent() -> None:
    """As Ctrl-C leaves it: nobody waits for the second call, which waits for the first one's."""
    sent: list[str] = []
    go_on = threading.Event()

    def send(one: Call) -> Reply:
        sent.append(one.attempt)
        go_on.wait(20)
        return Reply("fine", usage={"prompt": 1, "completion": 1})

    ledger = Ledger(None, BudgetConfig(max_calls=1))
    one = client(send, ledger, concurrency=2)
    got: list[Reply] = []
    calls = [call(attempt="first"), call(attempt="second")]
    asking = threading.Thread(target=lambda: got.extend(one.ask(calls)), daemon=True)
    asking.start()
    while not sent:
        time.sleep(0.005)
    for given_up in list(one.asking):
        given_up.set()
    time.sleep(0.8)  # the second looks every half a second whether it is still wanted
    go_on.set()
    asking.join(20)
    assert sorted((reply.text, reply.kind) for reply in got) == [("", "timeout"), ("fine", "")]
    assert len(sent) == 1
    one.close()


def test_a_refused_parameter_is_remembered_only_once_leaving_it_out_has_helped() -> None:
    seen: list[frozenset[str]] = []

    class Picky(Scripted):
        def send(self, one: Call, refused: frozenset[str]) -> Reply:
            seen.append(refused)
            if "seed" not in refused:
                raise CallError("http_400", "no seed", blame="seed")
            if one.attempt == "hopeless":
                raise CallError("http_400", "no seed", blame="seed")
            return Reply("fine")

    config = CriticConfig(model="critic", cache="off", concurrency=1)
    one = Client(config, "run", Picky(lambda one: Reply("")))
    assert one.ask([call(attempt="hopeless")])[0].kind == "http_400"
    assert not one.refused
    assert [reply.text for reply in one.ask([call("a"), call("b")])] == ["fine", "fine"]
    assert one.refused == {"seed"}
    assert [len(refused) for refused in seen] == [0, 1, 0, 1, 1]
    one.close()


def test_an_empty_reply_is_asked_again_with_another_seed() -> None:
    """A server that draws by the seed would say nothing for ever."""
    seeds: list[int] = []

    def send(one: Call) -> Reply:
        seeds.append(one.seed)
        return Reply("" if one.seed == 7 else "Something.")

    [reply] = client(send).ask([call(seed=7)])
    assert (reply.text, reply.tries, seeds) == ("Something.", 2, [7, 8])


# ---- replies on disk -----------------------------------------------------------------------------


def test_what_is_asked_again_is_not_sent_again(
    service: Service, at: Callable[..., Client], tmp_path: Path
) -> None:
    """Only the reply that another run fetched counts as cached; another try is another call."""
    cache, one = str(tmp_path / "c.sqlite"), call()
    [first] = at(cache=cache, run_id="one").ask([one])
    [resumed] = at(cache=cache, run_id="one").ask([one])
    [other] = at(cache=cache, run_id="two").ask([one])
    assert len(service.server.chats) == 1
    assert first == resumed == replace(other, cached=False)
    assert (first.cached, other.cached) == (False, True)
    at(cache=cache).ask([replace(one, epoch=1), replace(one, attempt="bucket"), one])
    assert len(service.server.chats) == 3
    for _ in range(2):
        at(cache="off").ask([one, one])  # equal calls of one batch are sent once
    assert len(service.server.chats) == 5


def test_failures_are_not_kept(service: Service, at: Callable[..., Client], tmp_path: Path) -> None:
    service.server.faults[:] = [service.provider.refuse(400)]
    critic = at(cache=str(tmp_path / "c.sqlite"))
    [first], [second] = critic.ask([call()]), critic.ask([call()])
    assert (first.kind, second.text) == ("http_400", "reply to hello")


def test_what_is_forgotten_is_asked_again(
    service: Service, at: Callable[..., Client], tmp_path: Path
) -> None:
    critic = at(cache=str(tmp_path / "c.sqlite"))
    critic.ask([call("a"), call("b")])
    forget(critic.config, [call("a")])
    critic.ask([call("a"), call("b")])
    assert Counter(map(service.server.said, service.server.chats)) == {"a": 2, "b": 1}


def test_a_closed_critic_holds_no_file(at: Callable[..., Client], tmp_path: Path) -> None:
    critic = at(cache=str(tmp_path / "c.sqlite"))
    critic.ask([call()])
    assert critic.cache and list(tmp_path.glob("c.sqlite-wal"))
    critic.close()
    assert [path.name for path in tmp_path.iterdir()] == ["c.sqlite"]


# Asks n calls one by one and prints a line after each reply.
ASKER = """
from support.critics import call, critic_at
critic = critic_at((sys.argv[1], sys.argv[2]), cache=sys.argv[3])
for n in range(5):
    [reply] = critic.ask([call(str(n))])
    print(reply.text, reply.cached, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("replies", [1, 3])
def test_a_killed_process_pays_for_nothing_twice(
    service: Service, tmp_path: Path, replies: int
) -> None:
    """SIGKILL right after a reply was seen, while the next call is out."""
    server = service.server
    server.faults[:] = [None] * replies + [wire.STALL]
    command = child(ASKER, service.name, server.url, tmp_path / "c.sqlite")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = [process.stdout.readline() for _ in range(replies)]
        while len(server.chats) == replies:
            time.sleep(0.005)
        process.kill()
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert again.stdout.splitlines(keepends=True)[:replies] == first
    sent = Counter(map(server.said, server.chats))
    assert sent == Counter({str(n): 2 if n == replies else 1 for n in range(5)})
    assert "True" not in again.stdout  # its own replies, before and after, are not `cached`


# ---- replay, budget ------------------------------------------------------------------------------


def test_a_replay_asks_nobody_and_names_what_is_missing(
    service: Service, at: Callable[..., Client], tmp_path: Path
) -> None:
    cache, url = str(tmp_path / "c.sqlite"), f"http://127.0.0.1:{free_port()}"
    [said] = at(cache=cache).ask([call()])
    service.server.requests.clear()
    replayed = at(url, cache=cache, replay=True)
    replayed.ledger = Ledger(tmp_path / "a run" / "critic.jsonl")
    replayed.preflight()
    assert replayed.ask([call()]) == [said]
    with pytest.raises(UserError, match=r"critic\.replay: no reply on disk") as caught:
        replayed.ask([call("other", epoch=3, attempt="problems/1")])
    assert f"{call().problem.id}, critique, epoch 3, attempt problems/1" in caught.value.message
    again = f"mlxreflect resume '{tmp_path / 'a run'}' --set critic.replay=false"
    assert again in caught.value.hint
    assert service.server.requests == []


def test_retries_are_requests_of_the_budget_too(
    service: Service, at: Callable[..., Client]
) -> None:
    service.server.faults[:] = [service.provider.refuse(503)] * 10
    critic = at(concurrency=1)
    critic.ledger = Ledger(None, BudgetConfig(max_calls=3))
    with pytest.raises(UserError, match="max_calls = 3 is reached"):
        critic.ask([call("a"), call("b")])
    assert len(service.server.chats) == 3


# ---- preflight -----------------------------------------------------------------------------------


def test_preflight_generates_nothing(service: Service) -> None:
    critic = preflight(service.server)
    assert (critic.actor, service.server.chats) == (f"{service.name}:critic", [])


@pytest.mark.parametrize(
    ("name", "path", "word"), [("ollama", "", "ollama serve"), ("openai", "/v1", "mlx_lm.server")]
)
def test_preflight_says_where_no_server_answers(name: str, path: str, word: str) -> None:
    """Without the password of its address."""
    port = free_port()
    with pytest.raises(UserError) as caught:
        preflight((name, f"http://me:hidden-pw@127.0.0.1:{port}"))
    assert caught.value.message.endswith(f" at http://127.0.0.1:{port}{path}")
    assert word in caught.value.hint and "critic.base_url" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "url"),
    [("openai", "ftp://host"), ("openai", "http://"),
     *product(["ollama", "openai"], ["http://127.0.0.1:port", "http://[half"])],
)  # fmt: skip
def test_an_address_that_is_none(name: str, url: str) -> None:
    with pytest.raises(UserError, match="no address"):
        critic_at((name, url))


# ---- secrets -------------------------------------------------------------------------------------


def secret_critic(service: Service, patch: pytest.MonkeyPatch, cache: Path, folder: Path) -> Client:
    """A critic whose request carries KEY: as a password, a key, a session token."""
    url = service.server.url
    settings: dict[str, Any] = {"cache": str(cache)}
    if service.name == "ollama":
        url = url.replace("//", f"//me:{KEY.replace('/', '%2F').replace('+', '%2B')}@")
    elif service.name == "openai":
        patch.setenv("CRITIC_KEY", KEY)
        settings["key_env"] = "CRITIC_KEY"
    else:
        fake_bedrock.credentials(patch, folder)
        patch.setenv("AWS_SESSION_TOKEN", KEY)
    return critic_at((service.name, url), **settings)


def test_a_secret_gets_nowhere(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server repeats it, in a text and in refusals; no reply and no file has it."""
    server, refuse = service.server, service.provider.refuse

    def leaky(body: Body) -> str | Fault:
        match server.said(body):
            case "refuse":
                return refuse(400, "x" * 180 + f" {KEY} is what you sent")  # cut in the middle
            case "escape":
                escaped = refuse(403, KEY)
                return replace(escaped, body=escaped.body.replace(b"/", b"\\/"))
            case _:
                return f"you sent {KEY}"

    server.reply = leaky
    cache = tmp_path / "cache.sqlite"
    critic = secret_critic(service, monkeypatch, cache, tmp_path)
    replies = critic.ask([call("refuse"), call("escape"), call("reply")])
    files = [path.read_bytes() for path in tmp_path.glob("cache.sqlite*")]
    critic.close()
    files += [path.read_bytes() for path in tmp_path.glob("cache.sqlite*")]
    assert [reply.kind for reply in replies] == ["http_400", "http_403", ""]
    assert replies[2].text == "you sent [key]"
    assert "sk-secret" not in repr(replies)
    assert any(b"you sent [key]" in content for content in files)
    for content in files:
        assert b"sk-secret" not in content
        assert b"Review." not in content  # nor a word of a prompt


# ---- refusals as words ---------------------------------------------------------------------------


def test_retry_after_forms() -> None:
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < (retry_after(date) or 0) <= 60
    assert retry_after("7") == 7
    assert retry_after("-7") == 0
    for text in ("", "soon", "inf", "nan", "Mon, 99 Foo 2020"):
        assert retry_after(text) is None


def test_an_error_keeps_one_short_line_of_the_servers_words() -> None:
    error = Wire("host").error(httpx.Response(400, text="a\nb " * 1000))
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
    assert str(Wire("host").error(httpx.Response(400, json=body))) == f"HTTP 400: {said}"


def test_secrets_go_before_the_words_are_cut() -> None:
    headers = {"Authorization": "Bearer sk-own-secret", "X-Api-Key": "sk-own"}
    request = httpx.Request("GET", "http://me:pass%2Fword@host/", headers=headers)
    said = "sk-own-secret, sk-own, pass/word, planted " + "x" * 146 + " planted-longer"
    server = Wire("host")
    with server.within(1):
        server.prepare(request)
    server.secrets |= {"planted", "planted-longer"}
    error = server.error(httpx.Response(401, text=said))
    assert str(error).startswith("HTTP 401: [key], [key], [key], [key] xxx")
    assert str(error).endswith("xxx [key]")


def test_a_body_nested_to_the_limit_of_recursion_is_a_refusal() -> None:
    """Just below it the body can be read and what it says cannot be written."""
    for depth in range(900, 1010):
        body = b'{"error": ' + b"[" * depth + b"]" * depth + b"}"
        assert Wire("host").error(httpx.Response(500, content=body)).kind == "http_500"
