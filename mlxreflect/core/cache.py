"""Where what is worth keeping between runs is kept.

A cache as one SQLite file, that any number of runs and processes may use at once.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import platformdirs
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from mlxreflect.core.errors import UserError


def cache_path(setting: str, name: str) -> Path | None:
    """setting: of a recipe; "" is `name` in the user's cache folder, "off" None, else a path.

    The environment variable MLXREFLECT_CACHE replaces the user's cache folder.
    """
    if setting == "off":
        return None
    if setting:
        return Path(setting).expanduser()
    folder = os.environ.get("MLXREFLECT_CACHE") or platformdirs.user_cache_dir("mlxreflect")
    return Path(folder).expanduser() / name


BUSY_S = 30.0  # how long a writer waits for the others


class Kind(NamedTuple):
    """name: what a person calls it. setting: the recipe's key, for hints. version: of the schema,
    kept in the file's user_version. schema: the statement that makes its one table."""

    name: str
    setting: str
    version: int
    schema: str


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
def connect(path: Path, kind: Kind) -> sqlite3.Connection:
    """Open or create the file. Each statement is its own transaction, on the disk when it ends.

    Threads may share the connection, one at a time. Raises UserError for a file of another kind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Transactions by hand; a short timeout, since this is repeated as a whole.
    connection = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
    try:
        prepare(connection, path, kind)
    except (sqlite3.Error, UserError):
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version not in (0, kind.version) or (version == 0 and tables):
        raise UserError(
            f"{path}: not a {kind.name} of this version (schema {version}, {kind.version} "
            "expected)",
            f"delete {path}, or set {kind.setting} to another file",
        )
    connection.execute("PRAGMA journal_mode = WAL")
    if version == 0:
        connection.execute("BEGIN IMMEDIATE")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:  # else another process was first
            connection.execute(kind.schema)
            connection.execute(f"PRAGMA user_version = {kind.version}")
        connection.execute("COMMIT")
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")


@contextmanager
def explained(path: Path, kind: Kind) -> Iterator[None]:
    """Turn what SQLite and the file system report into what a person can do about it."""
    elsewhere = f'set {kind.setting} to a file that can be written, or to "off"'
    try:
        yield
    except sqlite3.ProgrammingError:  # ours, not the file's: used after close
        raise
    except sqlite3.OperationalError as error:  # full, locked, read-only, no such folder
        raise UserError(f"{path}: {error}", elsewhere) from None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: the {kind.name} is damaged ({error})",
            f"delete {path} and, beside it, its -wal and -shm files",
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", elsewhere) from None
