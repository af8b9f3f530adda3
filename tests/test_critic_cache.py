"""The cache of replies: what makes a call new, who pays, and what survives a killed process."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from support.fake_ollama import STALL, Body, FakeOllama, Fault, http

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.cache import cache_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import make_problem
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.cache import FILE, Cache, cache_key
from mlxreflect.critics.ollama import OllamaCritic

CALL = Call(
    role="critique",
    problem=make_problem("countdown", {"numbers": [1, 2, 3], "target": 6}),
    messages=[{"role": "system", "content": "Review."}, {"role": "user", "content": "1+2=4"}],
    text="1+2=4",
    template="abcd",
    attempt="1",
    seed=7,
)
CONFIG = CriticConfig(provider="ollama", model="critic")

# Asks n calls one by one and prints a line after each reply.
ASKER = """
import sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from test_critic_cache import CALL, config
from mlxreflect.critics.ollama import OllamaCritic
critic = OllamaCritic(config(sys.argv[2], sys.argv[3]), sys.argv[4])
for n in range(int(sys.argv[5])):
    call = replace(CALL, messages=[{"role": "user", "content": str(n)}])
    [reply] = critic.ask([call])
    print(reply.text, reply.cached, flush=True)
"""
# Writes n replies, all under keys that another process writes too.
WRITER = """
import sys
from pathlib import Path
from mlxreflect.critics.base import Reply
from mlxreflect.critics.cache import Cache
name = sys.argv[2]
cache = Cache(Path(sys.argv[1]), name)
for n in range(int(sys.argv[3])):
    cache.put(f"{name}-{n}", Reply(f"{name} {n}"))
    cache.put(f"shared-{n}", Reply(f"{name} {n}"))
"""


def config(url: str, cache: str | Path, **changes: Any) -> CriticConfig:
    return CriticConfig(
        provider="ollama", model="critic", base_url=url, cache=str(cache), **changes
    )


def ask(url: str, cache: str | Path, calls: list[Call], run_id: str = "run") -> list[Reply]:
    critic = OllamaCritic(config(url, cache), run_id, backoff_s=0.01)
    try:
        return critic.ask(calls)
    finally:
        critic.close()


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 1},
        {"attempt": "2"},
        {"role": "rewrite"},
        {"template": "efgh"},
        {"seed": 8},
        {"messages": [{"role": "user", "content": "other"}]},
        {"problem": make_problem("countdown", {"numbers": [1, 2, 4], "target": 6})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_part_of_a_call_makes_another_key(change: dict[str, Any]) -> None:
    assert cache_key(CONFIG, replace(CALL, **change)) != cache_key(CONFIG, CALL)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"model": "other"}, False),
        ({"provider": "solver"}, False),
        ({"temperature": 0.5}, False),
        ({"max_tokens": 100}, False),
        ({"num_ctx": 4096}, False),
        ({"concurrency": 9}, True),
        ({"deadline_s": 9.0}, True),
        ({"base_url": "http://elsewhere"}, True),
    ],
)
def test_the_sampling_is_part_of_the_key(change: dict[str, Any], same: bool) -> None:
    changed = CONFIG.model_copy(update=change)
    assert (cache_key(changed, CALL) == cache_key(CONFIG, CALL)) is same


def test_half_an_emoji_has_a_key() -> None:
    assert cache_key(CONFIG, replace(CALL, messages=[{"role": "user", "content": "\ud83d"}]))


def test_the_settings_say_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLXREFLECT_CACHE", raising=False)
    assert cache_path("off", FILE) is None
    assert cache_path("", FILE) == Path(platformdirs.user_cache_dir("mlxreflect")) / "critic.sqlite"
    assert cache_path("~/c.sqlite", FILE) == Path.home() / "c.sqlite"
    monkeypatch.setenv("MLXREFLECT_CACHE", str(tmp_path))
    assert cache_path("", FILE) == tmp_path / "critic.sqlite"
    assert cache_path("here.sqlite", FILE) == Path("here.sqlite")


def test_a_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    reply = Reply("a \ud83d \x00 ü", finish_reason="stop", usage={"prompt": 3, "completion": 4})
    cache = Cache(tmp_path / "new" / "folder" / "c.sqlite", "run")
    assert cache.get("k") is None
    assert cache.put("k", reply) == reply
    assert cache.get("k") == reply
    cache.close()
    assert cache.get("k") is None
    assert cache.put("k", reply) == reply


def test_only_the_row_of_another_run_counts_as_cached(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with FakeOllama() as server:
        [first] = ask(server.url, path, [CALL], "one")
        [resumed] = ask(server.url, path, [CALL], "one")
        [other] = ask(server.url, path, [CALL], "two")
        assert len(server.chats) == 1
    assert first == resumed == replace(other, cached=False)
    assert (first.cached, other.cached) == (False, True)


def test_another_epoch_or_try_is_sent_again(tmp_path: Path) -> None:
    calls = [CALL, replace(CALL, epoch=1), replace(CALL, attempt="bucket")]
    with FakeOllama() as server:
        for _ in range(2):
            assert not any(r.error for r in ask(server.url, tmp_path / "c.sqlite", calls))
        assert len(server.chats) == 3


def test_off_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXREFLECT_CACHE", str(tmp_path))
    with FakeOllama() as server:
        for _ in range(2):
            ask(server.url, "off", [CALL])
        assert len(server.chats) == 2
    assert list(tmp_path.iterdir()) == []


def test_equal_calls_of_one_batch_are_sent_once(tmp_path: Path) -> None:
    with FakeOllama() as server:
        for cache in ("off", tmp_path / "c.sqlite"):
            one, two = ask(server.url, cache, [CALL, CALL])
            assert one == two
        assert len(server.chats) == 2


def test_no_secret_and_no_message_reaches_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "sk-very-secret")
    path = tmp_path / "c.sqlite"
    with FakeOllama(reply=lambda body: "good") as server:
        ask(server.url.replace("//", "//user:hidden-pw@"), path, [CALL])
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"good" in written
    for secret in (b"sk-very-secret", b"hidden-pw", b"1+2=4"):
        assert secret not in written


@pytest.mark.slow
@pytest.mark.parametrize("replies", [1, 3])
def test_a_killed_process_pays_for_nothing_twice(tmp_path: Path, replies: int) -> None:
    """SIGKILL right after a reply was seen, while the next call is out."""
    faults: list[Fault | None] = [None] * replies + [STALL]
    with FakeOllama(faults=faults) as server:
        command = [
            sys.executable, "-c", ASKER, str(Path(__file__).parent), server.url,
            str(tmp_path / "c.sqlite"), "run", "5",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            first = [process.stdout.readline() for _ in range(replies)]
            while len(server.chats) == replies:
                time.sleep(0.005)
            process.kill()
        again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        sent = Counter(body["messages"][-1]["content"] for body in server.chats)
    assert again.stdout.splitlines(keepends=True)[:replies] == first
    assert sent == Counter({str(n): 2 if n == replies else 1 for n in range(5)})
    assert "True" not in again.stdout  # its own replies, before and after, are not `cached`


def rows(path: Path) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT key, run_id, reply FROM replies").fetchall()
    finally:
        connection.close()


@pytest.mark.slow
def test_processes_write_at_once(tmp_path: Path) -> None:
    path, count = tmp_path / "c.sqlite", 100
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)])
        for name in ("a", "b", "c")
    ]
    assert [process.wait(timeout=30) for process in processes] == [0, 0, 0]
    stored = {key: (run, json.loads(reply)["text"]) for key, run, reply in rows(path)}
    assert len(stored) == 4 * count
    for n in range(count):
        run, text = stored[f"shared-{n}"]  # the first writer's, whole
        assert text == f"{run} {n}"


def test_threads_write_at_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c.sqlite", "run")
    kept: list[str] = []

    def write(name: int) -> None:
        kept.extend(cache.put(f"k{n}", Reply(f"{name}")).text for n in range(30))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    final = [reply.text for n in range(30) if (reply := cache.get(f"k{n}"))]
    assert sorted(kept) == sorted(final * 4)
    cache.close()


def test_failures_are_not_kept(tmp_path: Path) -> None:
    answers = iter([http(400), "better"])

    def reply(body: Body) -> str | Fault:
        return next(answers)

    with FakeOllama(reply=reply) as server:
        [first] = ask(server.url, tmp_path / "c.sqlite", [CALL])
        [second] = ask(server.url, tmp_path / "c.sqlite", [CALL])
    assert (first.kind, second.text) == ("http_400", "better")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database, whatever its name says " * 200)
    with pytest.raises(UserError, match=r"c\.sqlite.*damaged") as caught:
        OllamaCritic(config("", path), "run")
    assert str(path) in caught.value.hint
    assert "delete" in caught.value.hint


def test_damage_found_while_asking_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    cache = Cache(path, "run")
    for n in range(200):
        cache.put(f"{n:064d}", Reply("x" * 500))
    cache.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xee" * (len(data) - 4096)
    path.write_bytes(data)
    with FakeOllama() as server, pytest.raises(UserError, match=r"c\.sqlite") as caught:
        ask(server.url, path, [CALL])
    assert str(path) in caught.value.hint


def test_an_unreadable_row_is_damage(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c.sqlite", "run")
    assert cache.connection
    for key, text in (("a", "{"), ("b", "[]"), ("c", '{"body": 1}')):
        cache.connection.execute("INSERT INTO replies VALUES (?, '', '', ?)", (key, text))
        with pytest.raises(UserError, match="damaged"):
            cache.get(key)
    cache.close()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    for name, statement in (("later", "PRAGMA user_version = 2"), ("foreign", "CREATE TABLE t(a)")):
        connection = sqlite3.connect(tmp_path / name)
        connection.execute(statement)
        connection.close()
        with pytest.raises(UserError, match="not a critic cache of this version") as caught:
            Cache(tmp_path / name, "run")
        assert str(tmp_path / name) in caught.value.hint


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "c.sqlite"):
        with pytest.raises(UserError, match=str(path)) as caught:
            Cache(path, "run")
        assert "critic.cache" in caught.value.hint
