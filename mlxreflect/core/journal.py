"""Commits of a folder that grows: journals and checkpoints, never half-written.

A commit is one folder `checkpoints/PREFIX-NNNNN`, made beside and renamed into place; its
commit.json holds the state and the length of every journal. Rows are appended and flushed before
the rename, so a journal is never shorter than a commit says; what a crash left behind it is cut
off when the last commit is read.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from mlxreflect.core.errors import UserError

T = TypeVar("T")


def dump_line(row: dict[str, Any]) -> str:
    """One line of JSONL. Lone surrogates (a model's half emoji) are escaped: the file is UTF-8."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(row, ensure_ascii=True)
    return text + "\n"


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Append whole lines and flush them to the disk; returns the file's length in bytes.

    No rows make no file: an empty one is what other readers of JSONL fail on.
    """
    data = "".join(dump_line(row) for row in rows).encode("utf-8")
    if not data and not path.exists():
        return 0
    with path.open("ab") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
        return out.tell()


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError for a damaged file, and for one that is not there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        fault = "" if isinstance(value, dict) else "not a JSON object"
    except FileNotFoundError:
        fault = "no such file"
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        fault = f"not JSON ({error})"
    if fault:
        raise UserError(f"{path}: {fault}", "restore that file, or begin anew")
    return cast(dict[str, Any], value)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, none where there is no such file.

    An unfinished last line is left out. Raises UserError naming the line for anything else that is
    not a JSON object.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
                if not line.endswith(b"\n"):
                    return
                raise UserError(
                    f"{path}, line {number}: not JSON ({error})", "correct or delete that line"
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}, line {number}: a JSON object was expected, not {line[:40]!r}",
                    "each line holds one object in braces",
                )
            yield row


def convert_rows(
    path: Path,
    make: Callable[[dict[str, Any]], T],
    name: str,
    read: Callable[[Path], Iterator[dict[str, Any]]] = read_rows,
) -> Iterator[T]:
    """Yields what `make` makes of each row of a JSONL file.

    name: what a row should be, with its article. Raises UserError naming a row that is none.
    """
    for number, row in enumerate(read(path), 1):
        try:
            made = make(row)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path}, row {number}: not {name} ({error!r:.80})",
                "restore that file, or correct or delete that line",
            ) from None
        yield made


KEEP = 2  # commits


@dataclass(frozen=True)
class Commits:
    """root: the folder; prefix: of the commits' names; journals: JSONL files in the root."""

    root: Path
    prefix: str
    journals: Sequence[str]

    @property
    def folder(self) -> Path:
        return self.root / "checkpoints"

    def all(self) -> list[Path]:
        """Commits, the oldest first."""
        found = self.folder.glob(f"{self.prefix}-*")  # a copy beside them has another name
        named = (p for p in found if p.name.removeprefix(f"{self.prefix}-").isdecimal())
        return sorted(named, key=self.number)

    def number(self, commit: Path) -> int:
        return int(commit.name.removeprefix(f"{self.prefix}-"))

    def last(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest commit and its JSON; cuts the journals back to it and removes leftovers."""
        for leftover in self.folder.glob("*.tmp/"):
            shutil.rmtree(leftover)
        commits = self.all()
        if not commits:
            for name in self.journals:
                (self.root / name).unlink(missing_ok=True)
            return None
        commit: dict[str, Any] = read_json(commits[-1] / "commit.json")
        for name, length in commit["journals"].items():
            journal = self.root / name
            if (journal.stat().st_size if journal.is_file() else 0) < length:
                raise UserError(
                    f"{journal} is shorter than its last commit says",
                    "restore that file, or begin anew in another folder",
                )
            if length:
                os.truncate(journal, length)
            else:
                journal.unlink(missing_ok=True)
        return commits[-1], commit

    def add(
        self,
        number: int,
        rows: Mapping[str, list[dict[str, Any]]],
        state: dict[str, Any],
        save: Callable[[Path], None],
    ) -> Path:
        """Append rows to the journals, then commit `state` and what `save` writes, at once."""
        lengths = {
            name: append_rows(self.root / name, rows.get(name, [])) for name in self.journals
        }

        def fill(temporary: Path) -> None:
            save(temporary)
            text = json.dumps({"schema": "commit/1", "journals": lengths, **state})
            (temporary / "commit.json").write_text(text + "\n", encoding="utf-8")

        final = self.folder / f"{self.prefix}-{number:05d}"
        replace_folder(final, fill)
        for old in self.all()[:-KEEP]:
            remove(old)
        return final


def remove(folder: Path) -> None:
    """Remove a folder at once: a crash leaves a whole one, or one by a name that nobody reads."""
    gone = folder.with_suffix(".gone.tmp")
    if gone.exists():
        shutil.rmtree(gone)
    folder.rename(gone)
    shutil.rmtree(gone)


def replace_folder(final: Path, fill: Callable[[Path], None]) -> None:
    """A folder that is there whole or not at all."""
    temporary = final.with_suffix(".tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    fill(temporary)
    if final.exists():
        remove(final)
    place(temporary, final)


def place(temporary: Path, final: Path) -> None:
    """Rename a folder whose files have reached the disk."""
    for file in temporary.iterdir():
        sync(file)
    sync(temporary)
    temporary.rename(final)
    sync(final.parent)


def take_lock(path: Path) -> TextIO:
    """An exclusive lock on a folder that ends with the process, however it ends."""
    file = path / ".lock"
    lock = file.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
        raise UserError(
            f"{path} is in use by process {owner}", "wait for it, or stop that process"
        ) from None
    if not file.exists() or not os.path.samestat(file.stat(), os.fstat(lock.fileno())):
        lock.close()  # `locked` removed the file meanwhile
        return take_lock(path)
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A folder is this process's own while the block runs. Raises UserError where it is in use."""
    with take_lock(path):
        try:
            yield
        finally:
            (path / ".lock").unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
