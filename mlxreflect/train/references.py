"""Reference log-probabilities on disk, so that no run computes again what one has computed.

One SQLite file may serve any number of runs and processes at once. A row holds numbers under a
hash of everything they depend on; never a text or a token.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from mlxreflect.cachedir import cache_path
from mlxreflect.errors import UserError
from mlxreflect.train.batches import Row

SETTING = "train.reference_cache"  # the recipe's key, for hints
VERSION = 1  # of the schema, kept in the file's user_version
BUSY_S = 30.0  # how long a writer waits for the others
SCHEMA = "CREATE TABLE logps (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
FLOAT32 = np.dtype("<f4")


# ---- keys ----------------------------------------------------------------------------------------


def reference_key(policy_key: str, rows: Sequence[Row], what: str) -> str:
    """SHA-256, 64 hex digits, over the policy, each row's tokens and mask, and what is kept."""
    tokens = [[row.prompt, row.response, row.mask] for row in rows]
    return hashlib.sha256(json.dumps([policy_key, tokens, what]).encode()).hexdigest()


def model_key(model: nn.Module, adapter: Mapping[str, mx.array]) -> str:
    """SHA-256, 64 hex digits, over the bytes of every parameter and the settings of every layer.

    adapter: arrays that count in place of the model's own of the same name. The layers' settings
    (LoRA's scale, RoPE's base, the bits) are in no array and change the numbers as weights do.
    """
    digest = hashlib.sha256()
    arrays = dict(tree_flatten(model.parameters())) | dict(adapter)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        # One array at a time: at most one is copied, where its layout is not that of its shape.
        digest.update(memoryview(array.reshape(-1).view(mx.uint8)))
    for name, layer in sorted(model.named_modules(), key=lambda item: item[0]):
        digest.update(f"{name} {type(layer).__qualname__} {layer_settings(layer)}\n".encode())
    return digest.hexdigest()


def layer_settings(layer: nn.Module) -> list[tuple[str, object]]:
    """What a layer was made with, other than arrays and layers."""
    return sorted(
        (name, value)
        for name, value in vars(layer).items()
        if not name.startswith("_")
        and (isinstance(value, (bool, int, float, str)) or is_dataclass(value))
    )


# ---- the file ------------------------------------------------------------------------------------


class References:
    """The log-probabilities of one file. Raises UserError for a file it cannot use.

    Values are float32: what comes back is, bit for bit, what was put, if that was float32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The last key, and what it is of.
        self.keyed: tuple[nn.Module, Mapping[str, mx.array], str] | None = None
        with explained(path):
            self.connection = connect(path)

    @staticmethod
    def open(setting: str) -> "References | None":
        """As `cachedir.cache_path` reads the setting; None where it is off."""
        path = cache_path(setting, "references.sqlite")
        return References(path) if path else None

    def key_of(self, model: nn.Module, adapter: Mapping[str, mx.array]) -> str:
        """What log-probabilities under these parameters are kept by."""
        if self.keyed and self.keyed[0] is model and self.keyed[1] is adapter:
            return self.keyed[2]
        key = f"{model_key(model, adapter)} {mx.default_device()}"
        if any(name.endswith("lora_a") for name in adapter):  # all weights are not held twice
            self.keyed = model, adapter, key
        return key

    def get(self, keys: Sequence[str]) -> list[list[float] | None]:
        """What is kept under each key, None where nothing is."""
        query = "SELECT value FROM logps WHERE key = ?"
        with explained(self.path):
            rows = [self.connection.execute(query, (key,)).fetchone() for key in keys]
            return [None if row is None else unpack(row[0]) for row in rows]

    def put(self, items: Mapping[str, list[float]]) -> None:
        """Keep all of the items or, where the process dies or the disk fails, none.

        A key that is there already keeps its value, the first writer's.
        """
        insert = "INSERT OR IGNORE INTO logps VALUES (?, ?)"
        with explained(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            with self.connection:  # commits, or rolls back
                rows = ((key, pack(values)) for key, values in items.items())
                self.connection.executemany(insert, rows)

    def close(self) -> None:
        self.connection.close()


def pack(values: Sequence[float]) -> bytes:
    return np.asarray(values, dtype=FLOAT32).tobytes()


def unpack(value: object) -> list[float]:
    if not isinstance(value, bytes) or len(value) % FLOAT32.itemsize:
        raise sqlite3.DatabaseError("a row that is no float32 list")
    values: list[float] = np.frombuffer(value, dtype=FLOAT32).tolist()
    return values


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
    """Open or create the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=1, isolation_level=None)  # transactions by hand
    try:
        prepare(connection, path)
    except (sqlite3.Error, UserError):
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version not in (0, VERSION) or (version == 0 and tables):
        raise UserError(
            f"{path}: not a reference cache of this version (schema {version}, {VERSION} expected)",
            f"delete {path}, or set {SETTING} to another file",
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
    elsewhere = f'set {SETTING} to a file that can be written, or to "off"'
    try:
        yield
    except sqlite3.ProgrammingError:  # ours, not the file's: used after close
        raise
    except sqlite3.OperationalError as error:  # full, locked, read-only, no such folder
        raise UserError(f"{path}: {error}", elsewhere) from None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: the reference cache is damaged ({error})",
            f"delete {path} and, beside it, its -wal and -shm files",
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", elsewhere) from None
