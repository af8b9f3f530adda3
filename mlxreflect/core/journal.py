"""Commits of a folder that grows: journals and checkpoints, never half-written.

A commit is one folder `checkpoints/PREFIX-NNNNN`, made beside and renamed into place; its
commit.json holds the state, the SHA-256 of every file, and how long every journal is, with the
SHA-256 of so much. Rows are appended and flushed before the rename, so a journal is never shorter
than a commit says; what a crash left behind it is cut off when the last commit is read. A commit
that a disk has damaged is left out for the one before it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields number and object of each line of a JSONL file, or what is wrong with the line.

    Nothing where there is no such file. An unfinished last line is left out.
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
                if line.endswith(b"\n"):
                    yield number, f"not JSON ({in_line(error)})"
                continue
            whole = isinstance(row, dict)
            yield number, row if whole else f"a JSON object was expected, not {line[:40]!r}"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSONL file. Raises UserError naming a line that is none."""
    for number, row in read_lines(path):
        if isinstance(row, str):
            hint = "correct or delete that line: each holds one object in braces"
            raise UserError(f"{path}, line {number}: {row}", hint)
        yield row


def sound_rows(
    path: Path, sound: Callable[[Any], bool], damaged: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSONL file that are sound.

    damaged: gets the number of the others, by the file's name.
    """
    found = 0
    for _, row in read_lines(path):
        if isinstance(row, dict) and sound(row):
            yield row
        else:
            found += 1
            damaged[path.name] = found


def count_rows(path: Path) -> int:
    """Returns the whole lines of a file, 0 where there is none."""
    if not path.is_file():
        return 0
    with path.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)


def in_line(error: Exception) -> str:
    """Returns what is wrong with a line of JSONL, without the decoder's own line number."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]} at character {error.pos + 1}"
    return str(error)


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
BLOCK = 1 << 20  # bytes of a journal that are read at once


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file, 64 hex digits; "" where it cannot be read."""
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError:
        return ""


def digest_of(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()


@dataclass(frozen=True)
class Commits:
    """root: the folder; prefix: of the commits' names; journals: JSONL files in the root.

    hashed: of each journal, how many bytes were hashed so far, and their SHA-256.
    """

    root: Path
    prefix: str
    journals: Sequence[str]
    hashed: dict[str, tuple[int, Any]] = field(default_factory=dict, compare=False)

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

    def last(
        self, say: Callable[[str], None] = lambda line: None
    ) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole commit and its JSON; cuts the journals back to it, removes the rest.

        say: is told of each damaged commit. Raises UserError where all are.
        """
        for leftover in self.folder.glob("*.tmp/"):
            shutil.rmtree(leftover)
        commits = self.all()
        if not commits:
            for name in self.journals:
                (self.root / name).unlink(missing_ok=True)
            return None
        self.hashed.clear()
        faults: list[UserError] = []
        for commit in reversed(commits):
            try:
                found = self.read(commit)
                break
            except UserError as error:
                faults.append(error)
        else:
            raise faults[0]
        for fault, damaged in zip(faults, reversed(commits), strict=False):
            say(f"warning: {fault.message}: going on from the commit before it, {commit.name}")
            remove(damaged)
        for name, (length, _) in found["journals"].items():
            if length:
                os.truncate(self.root / name, length)
            else:
                (self.root / name).unlink(missing_ok=True)
        return commit, found

    def read(self, commit: Path) -> dict[str, Any]:
        """The JSON of a commit. Raises UserError where a file is not as it was committed."""
        file = commit / "commit.json"
        found = read_json(file)
        whole = found.pop("sha256", "") == digest_of(found)
        damaged = [] if whole else [file]
        if whole:
            files, journals = found["files"].items(), found["journals"].items()
            damaged += [commit / name for name, digest in files if sha256(commit / name) != digest]
            damaged += [self.root / name for name, (length, digest) in journals
                        if self.prefix_digest(name, length) != digest]  # fmt: skip
        if damaged:
            raise UserError(
                f"{damaged[0]} is damaged: it is not as it was committed",
                "restore that file, or begin anew in another folder",
            )
        return found

    def prefix_digest(self, name: str, length: int) -> str:
        """Returns the SHA-256 of a journal's first bytes, of which only new ones are read."""
        done, running = self.hashed.pop(name, (0, hashlib.sha256()))
        if done > length:
            done, running = 0, hashlib.sha256()
        if done < length and (self.root / name).is_file():
            with (self.root / name).open("rb") as rows:
                rows.seek(done)
                while block := rows.read(min(BLOCK, length - done)):
                    running.update(block)
                    done += len(block)
        self.hashed[name] = done, running
        return str(running.hexdigest())

    def add(
        self,
        number: int,
        rows: Mapping[str, list[dict[str, Any]]],
        state: dict[str, Any],
        save: Callable[[Path], None],
    ) -> Path:
        """Append rows to the journals, then commit `state` and what `save` writes, at once."""
        journals: dict[str, tuple[int, str]] = {}
        for name in self.journals:
            length = append_rows(self.root / name, rows.get(name, []))
            journals[name] = length, self.prefix_digest(name, length)

        def fill(temporary: Path) -> None:
            save(temporary)
            files = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            told = {"schema": "commit/2", "journals": journals, "files": files, **state}
            text = json.dumps({**told, "sha256": digest_of(told)})
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
            owner = owner_of(lock)
        raise UserError(
            f"{path} is in use by {f'process {owner}' if owner else 'another process'}",
            f"wait for it, or stop it{f': kill {owner}' if owner else ''}",
        ) from None
    if not file.exists() or not os.path.samestat(file.stat(), os.fstat(lock.fileno())):
        lock.close()  # `locked` removed the file meanwhile
        return take_lock(path)
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def owner_of(lock: TextIO) -> str:
    """Returns the id of the process that holds a lock; it writes it right after taking it."""
    for _ in range(20):
        lock.seek(0)
        if owner := lock.read().strip():
            return owner
        time.sleep(0.05)
    return ""


def owner_alive(path: Path) -> int | None:
    """Returns the process that works in a folder, as far as its id tells; None where none does.

    The lock itself is not touched: a run that begins at that moment would be refused it.
    """
    file = path / ".lock"
    said = file.read_text(encoding="ascii", errors="replace").strip() if file.is_file() else ""
    if not said.isdecimal():
        return None
    try:
        os.kill(int(said), 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # it is there, and another user's
        pass
    return int(said)


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
