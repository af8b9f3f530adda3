"""The keyed cache: first writer, threads, processes, killed ones and broken files."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxreflect.core import cache as core_cache
from mlxreflect.core.cache import KeyedCache
from mlxreflect.core.errors import UserError

OPEN = """
import sys
from pathlib import Path
from mlxreflect.core.cache import KeyedCache
cache = KeyedCache(Path(sys.argv[1]), "critic cache", "critic.cache")
"""
# Puts n values under keys that other processes put too.
WRITER = """
kept = [cache.put(f"shared-{n}", f"{sys.argv[2]} {n}".encode()).decode() for n in range(50)]
print(*kept, sep=",")
"""
# Puts batch after batch and prints the number of each before and after.
BUSY = """
for b in range(100000):
    print("put", b, flush=True)
    cache.put_all({f"{b}-{n}": b"1" * 200 for n in range(200)})
    print("kept", b, flush=True)
"""


def opened(path: Path) -> KeyedCache:
    return KeyedCache(path, "critic cache", "critic.cache")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[KeyedCache]:
    found = opened(tmp_path / "new" / "folder" / "c.sqlite")
    yield found
    found.close()


def test_the_first_writer_of_a_key_wins_until_it_is_deleted(cache: KeyedCache) -> None:
    assert cache.get("k") is None
    assert cache.put("k", b"\x00one") == b"\x00one"
    other = opened(cache.path)
    assert other.put("k", b"two") == other.get("k") == b"\x00one"
    other.put_all({"k": b"three", "l": b""})
    assert (cache.get("k"), cache.get("l")) == (b"\x00one", b"")
    other.delete(["k", "never put"])
    assert (cache.get("k"), cache.get("l")) == (None, b"")
    other.close()


def test_a_closed_cache_is_empty_and_keeps_nothing(cache: KeyedCache) -> None:
    cache.put("k", b"one")
    cache.close()
    cache.close()
    assert cache.get("k") is None
    assert cache.put("k", b"two") == b"two"
    cache.delete(["k"])
    again = opened(cache.path)
    assert again.get("k") == b"one"
    again.close()


def test_threads_share_one(cache: KeyedCache) -> None:
    seen: list[bytes] = []

    def work(own: int) -> None:
        seen.extend(cache.put(f"{n}", f"{own}".encode()) for n in range(100))

    threads = [threading.Thread(target=work, args=[own]) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [cache.get(f"{n}") or b"" for n in range(100)]
    assert sorted(seen) == sorted(kept * 4)  # every thread was given the first one's


def test_processes_that_open_a_new_file_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    command = [sys.executable, "-c", OPEN + WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    said = {writer.communicate()[0] for writer in writers}
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(said) == 1 and said.pop().count(",") == 49


def text_value(path: Path) -> None:
    opened(path).close()
    execute(path, "INSERT INTO kept VALUES ('k', 'text')")


def execute(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (lambda p: p.write_bytes(b"no database, and longer than a header " * 9), "damaged", "-wal"),
        (lambda p: execute(p, "CREATE TABLE own (a)"), "of this version (schema 0, 2", "delete"),
        (lambda p: execute(p, "PRAGMA user_version = 1"), "of this version (schema 1, 2", "delete"),
        (text_value, "the critic cache is damaged (a value that is not bytes)", "-shm"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_to_do(
    tmp_path: Path, spoil: Callable[[Path], object], message: str, hint: str
) -> None:
    path = tmp_path / "c.sqlite"
    spoil(path)
    with pytest.raises(UserError) as found:
        opened(path).get("k")
    assert str(path) in found.value.message and message in found.value.message
    assert hint in found.value.hint


@pytest.mark.parametrize("spoil", ["a folder is there", "a file is above"])
def test_without_a_file_values_last_as_long_as_the_command(
    tmp_path: Path, spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "above" / "c.sqlite"
    path.mkdir(parents=True) if "folder" in spoil else path.parent.write_text("")
    cache = opened(path)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}") and "set critic.cache to a file" in said
    assert cache.put("k", b"1") == cache.put("k", b"2") == cache.get("k") == b"1"
    cache.delete(["k"])
    assert cache.get("k") is None and capsys.readouterr().err == ""
    cache.close()
    assert cache.get("k") is None
    with pytest.raises(UserError, match=str(path)) as caught:  # a replay has nothing else
        KeyedCache(path, "critic cache", "critic.cache", needed=True)
    assert "set critic.cache to a file" in caught.value.hint


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.04])
def test_a_process_killed_at_any_instant(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "c.sqlite"
    command = [sys.executable, "-c", OPEN + BUSY, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(5)]
        time.sleep(delay)
        process.kill()
        lines += process.stdout.readlines()
    kept = {int(line.split()[1]) for line in lines if line.startswith("kept")}
    with sqlite3.connect(path) as file:
        keys = [key.split("-")[0] for (key,) in file.execute("SELECT key FROM kept")]
    assert {keys.count(batch) for batch in set(keys)} == {200}  # whole, or not there
    assert kept <= set(map(int, keys))
    cache = opened(path)  # and the lock has died with it
    cache.put("after", b"1")
    cache.close()


def test_damage_found_later(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    cache = opened(path)
    cache.put_all({f"{n:064d}": b"1" * 1200 for n in range(200)})
    cache.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xee" * (len(data) - 4096)
    path.write_bytes(data)
    cache = opened(path)
    for go in (lambda: cache.get(f"{7:064d}"), lambda: cache.put("k", b"1")):
        with pytest.raises(UserError, match=r"c\.sqlite.*damaged") as caught:
            go()
        assert str(path) in caught.value.hint
    cache.close()


@pytest.mark.parametrize(
    ("pragma", "message"), [("max_page_count = {}", "full"), ("query_only = 1", "readonly")]
)
def test_a_disk_that_takes_no_more_keeps_what_was_there(
    cache: KeyedCache, pragma: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.put("before", b"1")
    (file,) = cache.connections
    (pages,) = file.execute("PRAGMA page_count").fetchone()
    file.execute(f"PRAGMA {pragma.format(pages + 5)}")
    cache.put_all({f"{n}": b"1" * 4000 for n in range(100)})
    cache.put("before", b"2")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(cache.path) in said and message in said
    assert [cache.get(key) for key in ("before", "0", "99")] == [b"1", b"1" * 4000, b"1" * 4000]
    other = opened(cache.path)  # nothing is left open
    other.put("after", b"2")
    assert [other.get(key) for key in ("before", "0", "after")] == [b"1", None, b"2"]
    other.close()


def test_it_waits_for_another_writer_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.sqlite"
    monkeypatch.setattr(core_cache, "BUSY_S", 0.3)
    cache, other = opened(path), sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert cache.get("k") is None  # reading needs no lock
    assert cache.put("k", b"1") == b"1"  # in memory
    assert 0.25 < time.monotonic() - started < 10
    said = capsys.readouterr().err
    assert str(path) in said and "locked" in said
    other.execute("COMMIT")
    assert cache.put("k", b"2") == b"1"
    other.close()
    cache.close()
