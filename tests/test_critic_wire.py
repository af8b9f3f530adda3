"""The fakes answer as real servers did, and the critics read what real servers said.

The recording holds exchanges with Ollama and mlx_lm.server. Each is checked below, but those that
`no_case` names.
"""

import http.client
import json
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.critics import TRIES, ask, preflight
from support.fake_ollama import FakeOllama
from support.fake_openai import FakeOpenAI
from support.fake_server import HANG_UP, SHORT, Fault, free_port

from mlxreflect.core.errors import UserError

RECORDED = Path(__file__).parents[2] / "shared/cases/wire/ollama-0.32.jsonl"
pytestmark = pytest.mark.skipif(not RECORDED.is_file(), reason="needs the recording")
Row = dict[str, Any]
ROWS: list[Row] = []
if RECORDED.is_file():
    ROWS = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]


def no_case(row: Row) -> bool:
    """The critics ask for no streams, and not what is loaded (/api/ps)."""
    kind = {name.lower(): value for name, value in row.get("headers", {}).items()}
    streamed = kind.get("content-type", "").startswith(
        ("application/x-ndjson", "text/event-stream")
    )
    return streamed or row["path"] == "/api/ps"


CASES = [row for row in ROWS if not no_case(row)]
BROKEN = [row for row in CASES if "exception" in row]
FAILED = [row for row in CASES if "error" in (row.get("response") or {})]
LISTS = [row for row in CASES if row["path"] == "/v1/models"]
# What comes of the server's disk or of a process that was killed, and requests that are no JSON:
# then the fakes are told what to answer, as in FAILED.
TOLD = re.compile("cannot load|is killed|broken JSON")
OLLAMA = [
    row for row in CASES
    if row not in BROKEN and "/v1" not in row["path"] and not TOLD.search(row["label"])
]  # fmt: skip
V1 = [row for row in CASES if row["path"].startswith("/v1/") and row not in FAILED + LISTS]
CHATS = [row for row in OLLAMA + V1 if row["path"].endswith(("/chat", "/chat/completions"))]
CHATS = [row for row in CHATS if row["status"] == 200]


def params(rows: Iterable[Row]) -> list[Any]:
    return [pytest.param(row, id=f"{row['server']}: {row['label']}") for row in rows]


def whole(request: Any) -> Any:
    """A request whose long text was cut in the recording, with as long a text as it had."""
    return json.loads(
        re.sub(
            r"…\[(\d+) chars\]…", lambda cut: "and so on " * (int(cut[1]) // 10),
            json.dumps(request, ensure_ascii=False),
        )
    )  # fmt: skip


def alike(fake: Any, real: Any) -> None:
    """Whatever a fake says, the real server says too, in the same place and as the same kind."""
    assert type(fake) is type(real)
    if isinstance(fake, dict):
        assert fake.keys() <= real.keys()
        for key, inner in fake.items():
            alike(inner, real[key])
    elif isinstance(fake, list):
        assert not fake or real
        for one in fake:
            alike(one, real[0])


def test_every_exchange_is_checked() -> None:
    checked = list(chain(BROKEN, FAILED, LISTS, OLLAMA, V1))
    assert len(ROWS) == 73
    assert [row for row in CASES if row not in checked] == []


@pytest.mark.parametrize("row", params(OLLAMA))
def test_the_fake_answers_as_ollama_does(row: Row) -> None:
    reply = "{}" if (row["request"] or {}).get("format") else "12 feet, and so on. " * 150
    smol = FakeOllama(models=["smol"], context=8192, architecture="llama", reply=lambda body: reply)
    with smol as server:
        said = httpx.request(row["method"], server.url + row["path"], json=whole(row["request"]))
    real = row["response"]
    assert said.status_code == row["status"]
    assert said.headers["content-type"].startswith(row["headers"]["Content-Type"].split(";")[0])
    if isinstance(real, str):
        assert said.text == real
        return
    fake = said.json()
    alike(fake, real)
    if "error" in real:
        assert shape(fake["error"]) == shape(real["error"])
    elif "done" in real:
        assert fake.keys() == real.keys()
        count, window = real.get("prompt_eval_count"), row["request"].get("options", {})
        if count == 258:  # cut: half of the window and the first tokens
            assert (fake["prompt_eval_count"], window["num_ctx"]) == (258, 512)
        if row["request"].get("shift") is False:
            assert fake["prompt_eval_count"] + fake["eval_count"] == window["num_ctx"] == 512
        assert "format" in row["request"] or real["done_reason"] in (fake["done_reason"], "stop")


def shape(error: str) -> Any:
    """An error as it stays the same for other texts: the form of nested ones, without numbers."""
    if error.startswith("{"):
        inner = json.loads(error)["error"]
        return {
            **inner,
            "message": re.sub(r"\d+|(?:ref #|schema: ).*|ref \{.*", "N", inner["message"]),
            "n_prompt_tokens": None,
        }
    return error


@pytest.mark.parametrize("row", params(V1))
def test_the_fake_answers_as_v1_does(row: Row) -> None:
    real, length = row["response"], row["request"]["max_tokens"]
    text = "{}" if real["choices"][0]["finish_reason"] == "stop" else "a" * 4 * (length + 1)
    with FakeOpenAI(reply=lambda body: text) as server:
        said = httpx.post(server.url + row["path"], json=row["request"])
    fake = said.json()
    assert said.status_code == row["status"] == 200
    assert said.headers["content-type"].startswith("application/json")
    alike(fake, real)
    assert fake["object"] == real["object"]
    for answer in (fake, real):
        usage = answer["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert fake["choices"][0]["finish_reason"] == real["choices"][0]["finish_reason"]
    if text != "{}":
        assert fake["usage"]["completion_tokens"] == length == real["usage"]["completion_tokens"]


@pytest.mark.parametrize("row", params(CHATS))
def test_the_critic_reads_a_reply(row: Row) -> None:
    real, v1 = row["response"], row["path"].startswith("/v1")
    said = real["choices"][0] if v1 else real
    played = Fault(body=json.dumps(real).encode())
    with (FakeOpenAI if v1 else FakeOllama)(reply=lambda body: played) as server:
        (reply,) = ask(server, num_ctx=8192)
    if not said["message"]["content"]:  # a model that was loaded
        assert (reply.kind, reply.tries) == ("empty", TRIES)
        return
    assert (reply.text, reply.error) == (said["message"]["content"], None)
    assert reply.finish_reason == said.get("finish_reason", said.get("done_reason"))
    usage = real["usage"]["completion_tokens"] if v1 else real["eval_count"]
    assert reply.usage["completion"] == usage


@pytest.mark.parametrize("row", params(FAILED))
def test_the_critic_keeps_the_words_of_an_error(row: Row) -> None:
    """And asks again only where that may help: where a process died."""
    played = Fault(row["status"], json.dumps(row["response"]).encode())
    kind = FakeOpenAI if row["path"].startswith("/v1") else FakeOllama
    with kind(reply=lambda body: played) as server:
        (reply,) = ask(server)
    words = row["response"]["error"]
    words = words["message"] if isinstance(words, dict) else words
    if words.startswith("{"):
        words = json.loads(words)["error"]["message"]
    too_long = "context" in words
    assert reply.kind == ("truncated_prompt" if too_long else f"http_{row['status']}")
    assert " ".join(words.split())[:150] in str(reply.error)
    assert reply.tries == (TRIES if "unexpected EOF" in words and row["status"] == 500 else 1)


@pytest.mark.parametrize("row", params(LISTS))
def test_a_model_is_looked_up_in_a_real_list(row: Row) -> None:
    played = Fault(body=json.dumps(row["response"]).encode())
    software = row["headers"].get("Server", "")
    with FakeOpenAI(models=played, software=software) as server:
        preflight(server, model="smol")
        if row["response"]:  # mlx_lm.server has a list of none and serves what it is asked for
            with pytest.raises(UserError, match="has no model nosuch"):
                preflight(server, model="nosuch")
            alike(json.loads(FakeOpenAI.listing(["a"]).body), row["response"])


@pytest.mark.parametrize("row", params(BROKEN))
def test_the_fakes_break_off_as_real_servers_do(row: Row) -> None:
    name = row["exception"].split(":")[0]
    fault = {"RemoteDisconnected": HANG_UP, "IncompleteRead": SHORT}.get(name)
    with FakeOllama(faults=[fault]) as server:
        port = int(server.url.rpartition(":")[2]) if fault else free_port()
        with pytest.raises((http.client.HTTPException, OSError)) as caught:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(row["method"], row["path"], json.dumps(row["request"]))
            connection.getresponse().read()
    assert type(caught.value).__name__ == name
