"""Replies on disk: the cache of all runs, and what a host has had for rank 0 of one run.

A reply is kept the moment it arrives, under a key that holds all that makes one call another than
the next.
"""

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.cache import KeyedCache, cache_path
from mlxreflect.core.journal import read_lines
from mlxreflect.core.ui import safe_text
from mlxreflect.critics.base import Call, Reply

FILE = "critic.sqlite"  # in the user's cache folder
FORGOTTEN = "forgotten "  # before a key whose reply is not to be taken from a host
KEPT = ("text", "finish_reason", "usage", "tries", "seconds")  # of a reply


def cache_key(config: CriticConfig, call: Call) -> str:
    """Returns the SHA-256 over everything that makes one call another than the next."""
    parts: dict[str, Any] = {
        "provider": config.provider,
        "model": config.model,
        "messages": call.messages,
        "sampling": {
            "temperature": call.heat(config.temperature),
            "max_tokens": config.max_tokens,
            "num_ctx": config.num_ctx,
            "seed": call.seed,
            **config.changed(),
        },
        "template": call.template,
        "schema": call.schema,
        "call": [call.problem.id, call.epoch, call.role, call.attempt],
    }
    if config.thinking != "auto":
        parts["thinking"] = config.thinking
    if call.role == "attempt":
        parts["attempt"] = [config.top_p, call.stop, call.raw]
    elif config.top_p < 1:
        parts["top_p"] = config.top_p
    # ASCII: a model's half emoji (a lone surrogate) has no UTF-8 form.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()


def kept_reply(run_id: str, actor: str, reply: Reply) -> dict[str, Any]:
    """Returns what is kept of a reply, as JSON."""
    kept = {name: getattr(reply, name) for name in KEPT}
    return {"run": run_id, "actor": actor, "reply": kept}


class Replies:
    """The kept replies of one file, seen from one run.

    A value holds what came back and the run that fetched it; never a key, a header or the messages
    themselves. Raises UserError for a file that cannot be used.
    """

    def __init__(self, path: Path, run_id: str, actor: str = "", *, replay: bool = False) -> None:
        self.cache = KeyedCache(path, "critic cache", "critic.cache", needed=replay)
        self.run_id, self.actor = run_id, actor

    def get(self, key: str) -> Reply | None:
        """Returns the reply under a key; it is `cached` unless this same run fetched it."""
        kept = self.cache.get(key)
        return self.read(kept) if kept is not None else None

    def put(self, key: str, reply: Reply) -> Reply:
        """Keeps a reply and returns what is kept: the first writer's, where two raced."""
        value = kept_reply(self.run_id, self.actor, reply)
        return self.read(self.cache.put(key, json.dumps(value).encode("ascii")))

    def forget(self, keys: Sequence[str]) -> None:
        """Keeps no reply under the keys any more, nor takes one that a host had before."""
        self.cache.delete(keys)
        self.cache.put_all({FORGOTTEN + key: b"" for key in keys})

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Returns the keys of the replies that a host had and that are to be taken from it."""
        return [k for k in keys if not (self.known(k) or self.known(FORGOTTEN + k))]

    def take(self, kept: Mapping[str, Any]) -> None:
        """Keeps replies that a host had. kept: by keys, as `kept_reply` has them."""
        self.cache.put_all({k: json.dumps(value).encode("ascii") for k, value in kept.items()})

    def remember(self, keys: Iterable[str]) -> None:
        """Takes replies under the keys again: no host has one of before they were forgotten."""
        self.cache.delete(FORGOTTEN + key for key in keys)

    def known(self, key: str) -> bool:
        return self.cache.get(key) is not None

    def read(self, kept: bytes) -> Reply:
        try:
            value = json.loads(kept)
            return Reply(**value["reply"], cached=value["run"] != self.run_id)
        except (ValueError, TypeError, LookupError) as error:
            raise self.cache.damaged(f"unreadable row: {error}") from None

    def close(self) -> None:
        self.cache.close()


def open_replies(config: CriticConfig, run_id: str) -> Replies | None:
    """Opens the kept replies, and takes those that this host has had for another one's run."""
    path, actor = cache_path(config.cache, FILE), f"{config.provider}:{config.model}"
    if path is None:
        return None
    replies, left = Replies(path, run_id, actor, replay=config.replay), LeftReplies(path, run_id)
    if left.files:
        replies.take({key: left.rows[key] for key in replies.missing(left.rows)})
        left.delete()
        replies.remember(left.rows)
    return replies


def forget(config: CriticConfig, calls: Sequence[Call]) -> None:
    """Keeps no reply to these calls any more: the next run asks again."""
    if calls and (replies := open_replies(config, "")):
        replies.forget([cache_key(config, call) for call in calls])
        replies.close()


# ---- what a host had -----------------------------------------------------------------------------


def kept_name(cache: Path, run_id: str, rank: int | str) -> str:
    """Returns the name of the file of a rank's replies, beside a file of replies."""
    return f"{cache.stem}-{hashlib.sha256(run_id.encode()).hexdigest()[:16]}-{rank}.jsonl"


class HostReplies:
    """The replies that this process has had for rank 0, in a file of lines.

    cache: the file of all replies on this host, beside which that one is. A disk that takes nothing
    is a warning.
    """

    def __init__(self, cache: Path, run_id: str, rank: int) -> None:
        self.cache, self.run_id = cache, run_id
        self.path = cache.with_name(kept_name(cache, run_id, rank))
        self.lock, self.warned = threading.Lock(), False

    def add(self, key: str, actor: str, reply: Reply) -> None:
        row = {"key": key, "kept": kept_reply(self.run_id, actor, reply)}
        line = json.dumps(row) + "\n"  # ASCII: half an emoji has no UTF-8 form
        with self.lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as out:
                    out.write(line.encode("ascii"))
                    out.flush()
                    os.fsync(out.fileno())
            except OSError as error:
                self.warn(error)

    def warn(self, error: OSError) -> None:
        if not self.warned:
            said = (
                f"warning: {self.path}: {error.strerror}: a reply is lost where the run is killed"
            )
            print(safe_text(said), file=sys.stderr)
        self.warned = True


class LeftReplies:
    """The replies that earlier processes of a run have left on this host, which others led.

    rows: by keys, as the cache of replies has them. A line that is damaged, as the last one of a
    killed process, is left out.
    """

    def __init__(self, cache: Path, run_id: str) -> None:
        self.files = sorted(cache.parent.glob(kept_name(cache, run_id, "*")))
        self.rows: dict[str, dict[str, Any]] = {}
        for _, row in (one for file in self.files for one in read_lines(file)):
            if isinstance(row, dict) and is_kept(row.get("kept")):
                self.rows.setdefault(str(row.get("key")), row["kept"])

    def delete(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)


def is_kept(value: Any) -> bool:
    try:
        Reply(**value["reply"])
    except (TypeError, LookupError):
        return False
    return isinstance(value.get("run"), str)
