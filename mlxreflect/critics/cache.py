"""Replies of critics on disk, so that nothing is asked, waited for or paid twice.

One SQLite file may serve any number of runs, processes and threads at once. A row holds what came
back and the run that fetched it; never a key, a header or the messages themselves.
"""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.cache import Kind, cache_path, connect, explained
from mlxreflect.critics.base import Call, Reply

FILE = "critic.sqlite"  # in the user's cache folder
KEPT = ("text", "finish_reason", "usage", "tries", "seconds")  # of a reply
SCHEMA = """
CREATE TABLE replies (
    key TEXT PRIMARY KEY, run_id TEXT NOT NULL, actor TEXT NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID
"""
KIND = Kind("critic cache", "critic.cache", 1, SCHEMA)


def cache_key(config: CriticConfig, call: Call) -> str:
    """SHA-256 over everything that makes one call another than the next."""
    parts = {
        "provider": config.provider,
        "model": config.model,
        "messages": call.messages,
        "sampling": {
            "temperature": call.heat(config.temperature),
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


def forget(config: CriticConfig, calls: Sequence[Call]) -> None:
    """Keep no reply to these calls any more: the next run asks again."""
    if calls and (cache := open_cache(config, "")):
        cache.delete(cache_key(config, call) for call in calls)
        cache.close()


class Cache:
    """The replies of one file, seen from one run. Raises UserError for a file it cannot use."""

    def __init__(self, path: Path, run_id: str, actor: str = "") -> None:
        self.path, self.run_id, self.actor = path, run_id, actor
        self.lock = threading.Lock()
        with explained(path, KIND):
            self.connection: sqlite3.Connection | None = connect(path, KIND)

    def get(self, key: str) -> Reply | None:
        """The reply kept under a key; `cached` unless this same run fetched it."""
        with self.lock, explained(self.path, KIND):
            return self.read(self.connection, key) if self.connection else None

    def put(self, key: str, reply: Reply) -> Reply:
        """Keep a reply and return what is kept: the first writer's, where two raced."""
        kept = {name: getattr(reply, name) for name in KEPT}
        row = (key, self.run_id, self.actor, json.dumps(kept))
        with self.lock, explained(self.path, KIND):
            if self.connection is None:  # closed while the call was out
                return reply
            self.connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", row)
            return self.read(self.connection, key) or reply

    def delete(self, keys: Iterable[str]) -> None:
        with self.lock, explained(self.path, KIND):
            if self.connection:
                rows = [(key,) for key in keys]
                self.connection.executemany("DELETE FROM replies WHERE key = ?", rows)

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
