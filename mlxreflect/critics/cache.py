"""Replies of critics on disk, so that nothing is asked, waited for or paid twice.

One SQLite file may serve any number of runs, processes and threads at once. A row holds what came
back and the run that fetched it; never a key, a header or the messages themselves.
"""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from mlxreflect.cachedir import cache_path
from mlxreflect.critics.base import Call, Reply
from mlxreflect.errors import UserError
from mlxreflect.tables import CriticConfig

FILE = "critic.sqlite"  # in the user's cache folder
VERSION = 1  # of the schema, kept in the file's user_version
KEPT = ("text", "finish_reason", "usage", "tries", "seconds")  # of a reply
BUSY_S = 30.0  # how long a writer waits for the others
SCHEMA = """
CREATE TABLE replies (
    key TEXT PRIMARY KEY, run_id TEXT NOT NULL, actor TEXT NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID
"""


def cache_key(config: CriticConfig, call: Call) -> str:
    """SHA-256 over everything that makes one call another than the next."""
    parts = {
        "provider": config.provider,
        "model": config.model,
        "messages": call.messages,
        "sampling": {
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "num_ctx": config.num_ctx,
            "seed": call.seed,
        },
        "template": call.template,
        "schema": call.schema,
        "call": [call.problem.id, call.epoch, call.role, call.attempt],
    }
    if call.role == "attempt":
        parts["attempt"] = [call.top_p, call.stop, call.raw]
    # ASCII: a model's half emoji (a lone surrogate) has no UTF-8 form.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()


def open_cache(config: CriticConfig, run_id: str) -> "Cache | None":
    path = cache_path(config.cache, FILE)
    return Cache(path, run_id, f"{config.provider}:{config.model}") if path else None


class Cache:
    """The replies of one file, seen from one run. Raises UserError for a file it cannot use."""

    def __init__(self, path: Path, run_id: str, actor: str = "") -> None:
        self.path, self.run_id, self.actor = path, run_id, actor
        self.lock = threading.Lock()
        with explained(path):
            self.connection: sqlite3.Connection | None = connect(path)

    def get(self, key: str) -> Reply | None:
        """The reply kept under a key; `cached` unless this same run fetched it."""
        with self.lock, explained(self.path):
            return self.read(self.connection, key) if self.connection else None

    def put(self, key: str, reply: Reply) -> Reply:
        """Keep a reply and return what is kept: the first writer's, where two raced."""
        kept = {name: getattr(reply, name) for name in KEPT}
        row = (key, self.run_id, self.actor, json.dumps(kept))
        with self.lock, explained(self.path):
            if self.connection is None:  # closed while the call was out
                return reply
            self.connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", row)
            return self.read(self.connection, key) or reply

    def read(self, connection: sqlite3.Connection, key: str) -> Reply | None:
        query = "SELECT run_id, reply FROM replies WHERE key = ?"
        row = connection.execute(query, (key,)).fetchone()
        if row is None:
            return None
        try:
            return Reply(**json.loads(row[1]), cached=row[0] != self.run_id)
        except (ValueError, TypeError) as error:
            raise sqlite3.DatabaseError(f"unreadable row: {error}") from None

    def close(self) -> None:
        with self.lock:
            if self.connection is not None:
                self.connection.close()
            self.connection = None


def is_busy(error: BaseException) -> bool:
    return (
        isinstance(error, sqlite3.OperationalError)
        and error.sqlite_errorcode == sqlite3.SQLITE_BUSY
    )


# SQLite does not wait by itself while another process switches a new file to WAL.
@retry(
    retry=retry_if_exception(is_busy),
    stop=stop_after_delay(BUSY_S),
    wait=wait_random(0.01, 0.05),
    reraise=True,
)
def connect(path: Path) -> sqlite3.Connection:
    """Open or create the file. Each statement is its own transaction, on the disk when it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        prepare(connection, path)
    except (sqlite3.Error, UserError):
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA busy_timeout = 1000")  # `connect` repeats; keep each wait short
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version not in (0, VERSION) or (version == 0 and tables):
        raise UserError(
            f"{path}: not a critic cache of this version (schema {version}, {VERSION} expected)",
            f"delete {path}, or set critic.cache to another file",
        )
    connection.execute("PRAGMA journal_mode = WAL")
    if version == 0:
        connection.execute("BEGIN IMMEDIATE")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:  # else another process was first
            connection.execute(SCHEMA)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system report into what a person can do about it."""
    elsewhere = 'set critic.cache to a file that can be written, or to "off"'
    try:
        yield
    except sqlite3.OperationalError as error:  # full, locked, read-only, no such folder
        raise UserError(f"{path}: {error}", elsewhere) from None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: the critic cache is damaged ({error})",
            f"delete {path} and, beside it, its -wal and -shm files",
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", elsewhere) from None
