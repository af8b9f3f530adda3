"""The one keyed cache: values that are worth keeping between runs, in an SQLite file.

Replies of critics, reference log-probabilities and kept answers each have such a file. Any number
of runs, processes and threads may use one at once. A value is bytes under a key, a hash of all that
the value depends on; the first writer of a key wins. Where the file cannot be written, its values
are in memory, and last as long as the command.
"""

import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from mlxreflect.core.errors import UserError
from mlxreflect.core.ui import safe_text


def cache_path(setting: str, name: str) -> Path | None:
    """Returns the path that a recipe's setting means, or None for "off".

    setting: "" is the file `name` in the user's cache folder, anything else but "off" a path.
    The environment variable MLXREFLECT_CACHE replaces the user's cache folder.
    """
    if setting == "off":
        return None
    if setting:
        return Path(setting).expanduser()
    folder = os.environ.get("MLXREFLECT_CACHE") or platformdirs.user_cache_dir("mlxreflect")
    return Path(folder).expanduser() / name


BUSY_S = 30.0  # how long a writer waits for the others
VERSION = 2  # of the table, kept in the file's user_version
TABLE = "kept (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"


def transact(connection: sqlite3.Connection, statement: str, rows: list[tuple[Any, ...]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # commits, or rolls back
        connection.executemany(statement, rows)


class KeyedCache:
    """The values of one file. Its methods may be called from any thread.

    path: made with its folders where it is new. name: what a person calls it, "critic cache".
    setting: the recipe's key that names it, "critic.cache". needed: no values will do but the
    file's. Raises UserError, from every method too, for a file of something else, a damaged one,
    and a needed one that cannot be used. Once closed it is empty and keeps nothing.
    """

    def __init__(self, path: Path, name: str, setting: str, *, needed: bool = False) -> None:
        self.path, self.name, self.setting, self.needed = path, name, setting, needed
        self.lock = threading.RLock()
        # The file's, and one in memory once the file cannot be written: that is written then.
        self.connections: list[sqlite3.Connection] = []
        with self.explained():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.connections.append(self.connect())
            except (OSError, sqlite3.OperationalError) as error:  # no such folder, read-only
                self.go_without(error)

    def get(self, key: str) -> bytes | None:
        """Returns the value kept under a key, None where there is none."""
        with self.lock, self.explained():
            query = "SELECT value FROM kept WHERE key = ?"
            found = (one.execute(query, (key,)).fetchone() for one in self.connections)
            row = next((row for row in found if row is not None), (None,))
            if row[0] is not None and not isinstance(row[0], bytes):
                raise sqlite3.DatabaseError("a value that is not bytes")
            return row[0]

    def put(self, key: str, value: bytes) -> bytes:
        """Keeps a value and returns what is kept: the first writer's, where two raced."""
        with self.lock:
            self.put_all({key: value})
            return self.get(key) or value

    def put_all(self, items: Mapping[str, bytes]) -> None:
        """Keeps all items or, where the process dies or the disk fails, none of them.

        A key that already exists keeps its value.
        """
        self.write("INSERT OR IGNORE INTO kept VALUES (?, ?)", list(items.items()))

    def delete(self, keys: Iterable[str]) -> None:
        """Forgets the values of the keys."""
        self.write("DELETE FROM kept WHERE key = ?", [(key,) for key in keys])

    def write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """Executes a statement for all rows or for none, in memory where the file takes nothing."""
        with self.lock, self.explained():
            for connection in self.connections[-1:]:
                try:
                    transact(connection, statement, rows)
                except sqlite3.OperationalError as error:  # full, locked, read-only
                    self.go_without(error)
                    transact(self.connections[-1], statement, rows)

    def damaged(self, reason: object) -> UserError:
        """Returns the error for a value that its reader cannot make sense of."""
        return UserError(
            f"{self.path}: the {self.name} is damaged ({reason})",
            f"delete {self.path} and, beside it, its -wal and -shm files",
        )

    def close(self) -> None:
        with self.lock:
            for connection in self.connections:
                connection.close()
            self.connections = []

    # ---- the file -------------------------------------------------------------------------------

    # SQLite does not wait by itself while another process switches a new file to WAL.
    @retry(
        retry=retry_if_exception(
            lambda error: getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        ),
        stop=stop_after_delay(BUSY_S),
        wait=wait_random(0.01, 0.05),
        reraise=True,
    )
    def connect(self) -> sqlite3.Connection:
        """Opens or makes the file. Each statement is a transaction, on the disk at its end."""
        # Threads share it, one at a time; a short timeout, since this is repeated as a whole.
        connection = sqlite3.connect(
            self.path, timeout=1, isolation_level=None, check_same_thread=False
        )
        try:
            self.prepare(connection)
        except (sqlite3.Error, UserError):
            connection.close()
            raise
        return connection

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Makes the table in a new file. Raises UserError for a file of something else."""
        # The tables first: another process may make ours in between, with the version at once.
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION and (tables or version):
            raise UserError(
                f"{self.path}: not a {self.name} of this version (schema {version}, {VERSION} "
                "expected)",
                f"delete {self.path}, or set {self.setting} to another file",
            )
        connection.execute("PRAGMA journal_mode = WAL")
        if version != VERSION:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")

    def go_without(self, error: Exception) -> None:
        """Keeps values in memory from here on, and says why; raises it where none will do."""
        if self.needed:
            raise error
        reason = getattr(error, "strerror", None) or error
        print(
            safe_text(
                f"warning: {self.path}: {reason}: the {self.name} lasts as long as this command; "
                f"set {self.setting} to a file that can be written"
            ),
            file=sys.stderr,
        )
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        memory.execute(f"CREATE TABLE {TABLE}")
        self.connections.append(memory)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns what SQLite and the file system report into what a person can do about it."""
        elsewhere = f'set {self.setting} to a file that can be written, or to "off"'
        try:
            yield
        except sqlite3.ProgrammingError:  # ours, not the file's: used after close
            raise
        except sqlite3.OperationalError as error:  # full, locked, read-only, no such folder
            raise UserError(f"{self.path}: {error}", elsewhere) from None
        except sqlite3.DatabaseError as error:
            raise self.damaged(error) from None
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}", elsewhere) from None
