"""A critic's server at its worst, through whole runs: no problem is lost, no failure is praise."""

import json
import random
import re
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import fake_ollama as fake
from support import fake_server as wire
from support.critic_runs import Faulty, figures, run, same, solving
from support.critics import call, critic_at
from support.fake_ollama import FakeOllama
from support.fake_server import Body, Fault, free_port, http

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.critics import client
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.http import CallError


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.005)


PASSING = [
    http(429), http(429, retry_after=0.02), http(500), http(503), http(408), wire.RESET,
    wire.SHORT, wire.HANG_UP, wire.EMPTY_BODY, fake.BAD_JSON, fake.WRONG_SCHEMA, wire.NOT_OBJECT,
    fake.NOT_UTF8, Fault(body=b"x" * 2**20),
    Fault(body=b'{"message": {"role": "assistant", "content": " \\n"}, "done": true}'),
]  # fmt: skip


@pytest.mark.slow
def test_a_run_whose_failing_requests_succeed_later_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    with FakeOllama(reply=solving) as server:  # nothing goes wrong
        summary = run(tmp_path / "clean", server.url, cache=str(tmp_path / "clean.sqlite"))
    assert summary["examples"]["preference"] > 10 and summary["critic"]["calls"] > 40
    lock, kinds = threading.Lock(), list(PASSING)

    def fault(words: str, before: int) -> Fault | None:
        rng = random.Random(f"{words} {before}")
        if before >= client.RETRIES or rng.random() >= 0.5:
            return None
        with lock:  # each of them in turn, whatever the order of the calls
            kinds.append(kinds.pop(0))
            return kinds[-1]

    reply = Faulty(fault)
    with FakeOllama(reply=reply) as server:
        run(tmp_path / "run", server.url, cache=str(tmp_path / "c.sqlite"))
        sent = len(server.chats)
    assert set(reply.made) == {one.label for one in PASSING}
    counts = figures(tmp_path / "run")
    assert (counts["failed"], counts["answered"]) == (0, counts["calls"])
    assert counts["wire"]["requests"] == sent == counts["calls"] + sum(reply.made.values())
    assert counts["wire"]["retried"] == sum(reply.made.values())
    assert {"http_429", "http_500", "reset", "invalid", "empty"} <= set(counts["wire"]["failed"])
    same(tmp_path / "run", tmp_path / "clean")


@pytest.mark.slow
def test_what_fails_for_good_is_recorded_and_all_else_goes_on(tmp_path: Path) -> None:
    long: Body = {"message": {"role": "assistant", "content": "and so on " * 100_000}}
    lock, waiting = threading.Lock(), [http(401), fake.NO_MODEL, wire.STALL, long]
    faults: dict[str, Fault | Body | None] = {}  # by how the problem is shown

    def fault(words: str, before: int) -> Fault | Body | None:
        found = re.search(r"Numbers: [\d ]+\\nTarget: \d+", words)
        assert found
        with lock:  # the first problems that are asked about have bad luck
            if found[0] not in faults:
                faults[found[0]] = waiting.pop() if waiting else None
            return faults[found[0]]

    with FakeOllama(reply=Faulty(fault)) as server:
        run(tmp_path / "run", server.url, cache=str(tmp_path / "c.sqlite"), deadline_s=3.0,
            max_failed=1.0, r3_bucket_every=0)  # fmt: skip
    counts = figures(tmp_path / "run")
    assert counts["kinds"] == {"http_401": 1, "http_404": 1, "timeout": 1, "too_large": 1}
    assert counts["answered"] == counts["calls"] - 4 > 10
    episodes = list(read_rows(tmp_path / "run" / "episodes.jsonl"))
    assert len({row["problem"]["id"] for row in episodes}) == len(episodes) == 12
    failed = {shown(e["problem"]) for e in episodes if e["outcome"]["status"] == "failed"}
    assert failed == {problem for problem, what in faults.items() if what}
    for turn in (turn for row in episodes for turn in row["turns"] if turn["error"]):
        assert (turn["text"], turn["verdict"]) == ("", None)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert sum(summary["statuses"].values()) == summary["problems"] == 12
    assert summary["statuses"]["failed"] == len(failed)
    assert summary["examples"]["preference"] > 0


def shown(problem: dict[str, Any]) -> str:
    """How a problem stands in a request, inside of JSON."""
    numbers = " ".join(map(str, problem["fields"]["numbers"]))
    return f"Numbers: {numbers}\\nTarget: {problem['fields']['target']}"


def test_a_server_that_fails_for_everyone_stops_the_run(tmp_path: Path) -> None:
    """At its last commit, with nothing counted as solved by it."""
    with (
        FakeOllama(reply=lambda body: http(401, "no")) as server,
        pytest.raises(UserError, match="critic calls failed") as caught,
    ):
        run(tmp_path / "run", server.url, cache="off", r3_wave=12, r3_bucket_every=0, r3_rewrites=3)
    assert "HTTP 401: no" in caught.value.message
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "episodes.jsonl").exists()
    assert len((tmp_path / "run" / "critic.jsonl").read_bytes().splitlines()) >= 10


# ---- one call ------------------------------------------------------------------------------------


def test_a_server_that_was_away_is_asked_again() -> None:
    """It restarts: connections are refused, then it is there again at the same address."""
    refused: list[str] = []
    server = FakeOllama()
    server.port = free_port()
    critic = critic_at(("ollama", f"http://127.0.0.1:{server.port}"))
    really = critic.send

    with ExitStack() as stack:

        def send(one: Call, seconds: float) -> Reply:
            try:
                return really(one, seconds)
            except CallError as error:
                refused.append(error.kind)
                if len(refused) == 2:
                    stack.enter_context(server)
                raise

        critic.send = send  # type: ignore[method-assign]
        [reply] = critic.ask([call()])
        critic.close()
    assert (reply.text, reply.tries) == ("reply to hello", 3)
    assert refused == ["connect", "connect"]
