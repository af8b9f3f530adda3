"""Commits that a crash at any point leaves whole, folders that are whole or not there, locks."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxreflect.core import journal as module
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import KEEP, Commits, replace_folder, take_lock

NAMES = ("a.jsonl", "b.jsonl")
EMPTY = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def commits(tmp_path: Path) -> Commits:
    return Commits(tmp_path, "step", NAMES)


def add(commits: Commits, number: int) -> Path:
    def save(folder: Path) -> None:
        (folder / "weights").write_text(str(number))

    return commits.add(number, {"a.jsonl": [{"n": number}]}, {"step": number}, save)


def journal(commits: Commits, name: str = "a.jsonl") -> list[int]:
    path = commits.root / name
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_a_commit_holds_state_files_and_lengths(commits: Commits) -> None:
    assert commits.last() is None and commits.all() == []
    final = add(commits, 7)
    assert final == commits.folder / "step-00007"
    found = commits.last()
    rows = [9, hashlib.sha256(b'{"n": 7}\n').hexdigest()]
    assert found == (final, {
        "schema": "commit/2", "journals": {"a.jsonl": rows, "b.jsonl": [0, EMPTY]},
        "files": {"weights": hashlib.sha256(b"7").hexdigest()}, "step": 7,
    })  # fmt: skip
    assert (final / "weights").read_text() == "7"
    assert journal(commits) == [7]
    assert not (commits.root / "b.jsonl").exists()  # an empty file is what other readers fail on


def test_the_newest_are_kept_whatever_their_digits(commits: Commits) -> None:
    numbers = [1, 2, 99_999, 100_000, 100_001]
    (commits.folder / "epoch-1").mkdir(parents=True)  # another's: neither listed nor removed
    for number in numbers:
        add(commits, number)
    assert [commits.number(path) for path in commits.all()] == numbers[-KEEP:]
    assert journal(commits) == numbers
    assert (commits.folder / "epoch-1").is_dir()
    found = commits.last()
    assert found and found[1]["step"] == 100_001


class Stop(BaseException):
    """What ends a process, as far as a test can tell."""


def stop(*arguments: Any, **options: Any) -> Any:
    raise Stop


def torn(path: Path, rows: Any) -> int:
    with path.open("ab") as out:
        out.write(b'{"n": 9')
    raise Stop


def half_removed(folder: Path) -> None:
    (folder / "weights").unlink()
    raise Stop


# Where adding a commit may be stopped: (owner, attribute, what happens instead).
STOPS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "before the journals": (module, "append_rows", stop),
    "in its files": (Path, "write_text", stop),
    "in a journal": (module, "append_rows", torn),
    "before its JSON": (module.json, "dumps", stop),
    "before the rename": (Path, "rename", stop),
    "before an old one is removed": (module, "remove", stop),
    "while an old one is removed": (module.shutil, "rmtree", half_removed),
}


@pytest.mark.parametrize("where", STOPS)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_stopped_while_it_adds(commits: Commits, where: str, before: int) -> None:
    for number in range(before):
        add(commits, number)
    owner, name, instead = STOPS[where]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, instead)
        try:
            add(commits, before)
        except Stop:
            added = where.endswith("an old one is removed")
        else:  # there was none to remove
            added = before < KEEP
    count = before + added
    assert all((commit / "weights").exists() for commit in commits.all())
    found = commits.last()
    assert (found[1]["step"] if found else -1) == count - 1
    assert not list(commits.folder.glob("*.tmp"))
    if found:
        assert journal(commits) == list(range(count))
    else:
        assert not any((commits.root / name).exists() for name in NAMES)
    add(commits, count)
    assert journal(commits) == list(range(count + 1))
    assert len(commits.all()) == min(KEEP, count + 1)


def flip(path: Path, at: int = 0) -> None:
    """As a disk does: one bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {  # to the folder, whose newest commit is step-00003
    "weights": lambda root: flip(root / "checkpoints" / "step-00003" / "weights"),
    "no weights": lambda root: (root / "checkpoints" / "step-00003" / "weights").unlink(),
    "the state": lambda root: (  # {…, "step": 3, …} stays JSON
        flip(root / "checkpoints" / "step-00003" / "commit.json", -82)),
    "no state": lambda root: (root / "checkpoints" / "step-00003" / "commit.json").unlink(),
    "a row": lambda root: flip(root / "a.jsonl", -3),
    "a torn row": lambda root: os.truncate(root / "a.jsonl", 35),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_the_commit_before_a_damaged_one_is_the_last(commits: Commits, what: str) -> None:
    for number in range(4):
        add(commits, number)
    DAMAGE[what](commits.root)
    said: list[str] = []
    found = commits.last(said.append)
    assert found and found[1]["step"] == 2
    assert journal(commits) == [0, 1, 2]
    assert len(said) == 1 and "going on from the commit before it, step-00002" in said[0]
    assert [commits.number(path) for path in commits.all()] == [2]
    add(commits, 3)
    again = Commits(commits.root, "step", NAMES).last(said.append)  # as another process reads it
    assert again and again[1]["step"] == 3 and len(said) == 1


@pytest.mark.parametrize("cut", [None, 1, 9])
def test_a_folder_without_a_whole_commit_is_left_as_it_is(
    commits: Commits, cut: int | None
) -> None:
    add(commits, 0)
    path = commits.root / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-cut]) if cut else path.unlink()
    with pytest.raises(UserError, match=r"a\.jsonl is damaged") as caught:
        commits.last()
    assert "restore that file" in caught.value.hint
    assert len(commits.all()) == 1 and path.exists() == bool(cut)


# ---- folders and locks ---------------------------------------------------------------------------


def fill(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / text).write_text(text) and None


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    final = tmp_path / "adapter"
    replace_folder(final, fill("old"))
    replace_folder(final, fill("new"))
    assert [p.name for p in final.iterdir()] == ["new"]
    with pytest.raises(Stop):
        replace_folder(final, stop)
    assert [p.name for p in final.iterdir()] == ["new"]
    (tmp_path / "adapter.tmp" / "junk").mkdir()  # of a process that was killed
    replace_folder(final, fill("newest"))
    assert [p.name for p in final.iterdir()] == ["newest"]
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_lock_is_of_one_process_until_it_closes(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("123456789012")  # of one that died
    lock = take_lock(tmp_path)
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()}$"):
        take_lock(tmp_path)
    lock.close()
    take_lock(tmp_path).close()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mlxreflect.core.journal import take_lock;"
        "lock = take_lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=f"is in use by process {process.pid}$"):
        take_lock(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    take_lock(tmp_path).close()


def test_half_an_emoji_in_the_state_is_committed(commits: Commits) -> None:
    """A lone surrogate has no UTF-8 form; a model's text may end in one."""
    commits.add(1, {"a.jsonl": [{"n": "\ud83d"}]}, {"last": "ü \ud83d"}, lambda folder: None)
    found = commits.last()
    assert found is not None and found[1]["last"] == "ü \ud83d"
    assert journal(commits) == ["\ud83d"]
