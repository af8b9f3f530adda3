"""The one keyed cache: values that are worth keeping between runs, in an SQLite file.

Replies of critics, reference log-probabilities and kept answers each have such a file. Any number
of runs, processes and threads may use one at once. A value is bytes under a key, a hash of all that
the value depends on; the first writer of a key wins.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from mlxreflect.core.errors import UserError


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


class KeyedCache:
    """The values of one file. Its methods may be called from any thread.

    path: made with its folders where it is new. name: what a person calls it, "critic cache".
    setting: the recipe's key that names it, "critic.cache". Raises UserError, from every method
    too, for a file that cannot be used. Once closed it is empty and keeps nothing.
    """

    def __init__(self, path: Path, name: str, setting: str) -> None:
        self.path, self.name, self.setting = path, name, setting
        self.lock = threading.RLock()
        with self.explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection: sqlite3.Connection | None = self.connect()

    def get(self, key: str) -> bytes | None:
        """Returns the value kept under a key, None where there is none."""
        with self.lock, self.explained():
            if self.connection is None:
                return None
            query = "SELECT value FROM kept WHERE key = ?"
            row = self.connection.execute(query, (key,)).fetchone()
            if row is not None and not isinstance(row[0], bytes):
                raise sqlite3.DatabaseError("a value that is not bytes")
            return None if row is None else row[0]

    def put(self, key: str, value: bytes) -> bytes:
        """Keeps a value and returns what is kept: the first writer's, where two raced."""
        with self.lock:
            self.put_all({key: value})
            return self.get(key) or value

    def put_all(self, items: Mapping[str, bytes]) -> None:
        """Keeps all items or, where the process dies or the disk fails, none of them.

        A key that already exists keeps its value.
        """
        with self.lock, self.explained():
            if self.connection is not None:
                self.connection.execute("BEGIN IMMEDIATE")
                with self.connection:  # commits, or rolls back
                    insert = "INSERT OR IGNORE INTO kept VALUES (?, ?)"
                    self.connection.executemany(insert, items.items())

    def delete(self, keys: Iterable[str]) -> None:
        """Forgets the values of the keys."""
        with self.lock, self.explained():
            if self.connection is not None:
                rows = [(key,) for key in keys]
                self.connection.executemany("DELETE FROM kept WHERE key = ?", rows)

    def damaged(self, reason: object) -> UserError:
        """Returns the error for a value that its reader cannot make sense of."""
        return UserError(
            f"{self.path}: the {self.name} is damaged ({reason})",
            f"delete {self.path} and, beside it, its -wal and -shm files",
        )

    def close(self) -> None:
        with self.lock:
            if self.connection is not None:
                self.connection.close()
            self.connection = None

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
