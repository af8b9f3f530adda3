"""Texts as vectors, by an embedding model behind the client of the critics.

A batch of texts is one call. Its vectors are kept, each under its own text, before the client sees
the reply; so nothing is asked twice, whatever stops a run and however texts are put together.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.cache import KeyedCache, cache_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.client import Client, Provider
from mlxreflect.critics.http import CallError, encodable
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.replies import FILE

Floats = NDArray[np.float32]
BATCH = 32  # texts of a request
NUMBERS = (int, float)
# What servers say of a text that is longer than the model's window, some of them as a fault of
# their own (HTTP 500): it will be as long the next time.
TOO_LONG = re.compile(r"context (length|size|window)|too (large|long)|max\w* input|input length")


class Embeds(Provider, Protocol):
    """A provider whose server embeds texts."""

    def embed(self, texts: Sequence[str], refused: frozenset[str]) -> tuple[Any, dict[str, int]]:
        """Return what stands for each text's vector, unchecked, and the usage; as `send` does."""

    def digest(self) -> str:
        """Return what tells the model from others of its name; "" where the server has none."""


class Embedder:
    """An embedding model. It is its client's provider: its requests have the client's deadlines,
    retries and budget, and lines in the ledger.

    found: vectors of length 1, by their texts. size: how many numbers each has, 0 while there is
    none. say: is told of much work. Raises UserError for a cache that cannot be used.
    """

    def __init__(
        self, config: CriticConfig, run_id: str, provider: Embeds, ledger: Ledger | None = None
    ) -> None:
        self.config, self.provider = config, provider
        self.wire, self.own = provider.wire, provider.own
        self.silent, self.start = provider.silent, provider.start
        self.client = Client(config.model_copy(update={"cache": "off"}), run_id, self, ledger)
        self.say: Callable[[str], None] = lambda text: None
        path, needed = cache_path(config.cache, FILE), config.replay
        named = "critic cache", "critic.cache"
        self.cache = KeyedCache(path, *named, needed=needed) if path else None
        self.found: dict[str, Floats] = {}
        self.size, self.lock = 0, threading.Lock()
        kept = self.cache.get(self.key()) if self.cache and needed else None
        self.digest = (kept or b"").decode("utf-8", "replace")  # a replay asks no server

    def vectors(self, texts: Sequence[str]) -> Floats:
        """Returns the vector of each text, [texts, size]. No text is asked for again, ever.

        texts: at least one. Raises UserError where the model gives none, or others than before.
        """
        asked = [message["content"] for message in encodable([{"content": t} for t in texts])]
        missing = [text for text in dict.fromkeys(asked) if not self.known(text)]
        if missing and self.config.replay:
            raise UserError(
                f"critic.replay: {len(missing)} texts have no embedding of {self.client.actor} in "
                "critic.cache",
                "ask for what is missing: set critic.replay to false",
            )
        calls = [embed_call(missing[i : i + BATCH]) for i in range(0, len(missing), BATCH)]
        if len(calls) > 1:
            self.say(f"{self.client.actor} embeds {len(missing)} texts")
        wide = self.config.concurrency  # a few at a time: a server that fails is soon noticed
        for i in range(0, len(calls), wide):
            for reply in self.client.ask(calls[i : i + wide]):
                if reply.error is not None:
                    raise self.failure(CallError(reply.kind, reply.error))
        return np.stack([self.found[text] for text in asked])

    def failure(self, error: CallError) -> UserError:
        hint = "look at the server's own messages, or ask for one alone: mlxreflect doctor RECIPE"
        if error.kind == "truncated_prompt":
            hint = "lower preflexor.chunk, or take a model with a larger window"
        return UserError(f"{self.client.actor} does not embed the texts: {error}", hint)

    # ---- what is kept ---------------------------------------------------------------------------

    def key(self, text: str | None = None) -> str:
        """Returns the key of a text's vector; without a text, that of the model's digest."""
        model = [self.config.provider, self.config.model]
        parts = ["embedding", *model, self.digest, text] if text is not None else ["digest", *model]
        return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()

    def known(self, text: str) -> bool:
        """Tells if a text has its vector, here or on disk."""
        if text in self.found:
            return True
        if not self.cache or (kept := self.cache.get(self.key(text))) is None:
            return False
        try:
            vector = np.frombuffer(kept, "<f4")  # as it was: its length is 1
        except ValueError as error:
            raise self.cache.damaged(error) from None
        if not vector.size or not np.isfinite(vector).all():
            raise self.cache.damaged("an embedding that is none")
        try:
            self.take([text], vector[None])
        except CallError as error:
            raise self.failure(error) from None
        return True

    def take(self, texts: Sequence[str], vectors: Floats) -> None:
        """Holds vectors. Raises CallError for others than those before. From any thread."""
        size = vectors.shape[1]
        with self.lock:
            self.size = self.size or size
        if size != self.size:
            raise CallError(
                "invalid",
                f"a vector has {size} numbers and those before have {self.size}: another model is "
                "served under that name, and needs another critic.cache",
            )
        self.found.update(zip(texts, vectors, strict=True))

    # ---- as a provider --------------------------------------------------------------------------

    def preflight(self) -> None:
        self.provider.preflight()
        self.digest = self.provider.digest()
        if self.cache:
            self.cache.delete([self.key()])
            self.cache.put(self.key(), self.digest.encode())

    def send(self, call: Call, refused: frozenset[str]) -> Reply:
        """Returns what came, in words, once its vectors are kept."""
        texts = [message["content"] for message in call.messages]
        try:
            rows, usage = self.provider.embed(texts, refused)
        except CallError as error:
            if TOO_LONG.search(error.message):
                error.kind, error.retry = "truncated_prompt", False
            raise
        vectors = checked(rows, len(texts))
        self.take(texts, vectors)
        if self.cache:
            pairs = zip(texts, vectors, strict=True)
            self.cache.put_all({self.key(text): one.tobytes() for text, one in pairs})
        return Reply(f"{len(texts)} × {self.size} numbers", usage={"completion": 0, **usage})

    def close(self) -> None:
        if self.cache:
            self.cache.close()
        self.provider.close()


def embed_call(texts: Sequence[str]) -> Call:
    messages = [{"role": "user", "content": text} for text in texts]
    return Call("embed", Problem("", "", {}), messages, "")


def checked(rows: Any, texts: int) -> Floats:
    """Returns vectors of length 1, [texts, size] float32.

    rows: as a server sent them. Raises CallError for anything but as many lists of as many numbers,
    of which at least one is not 0.
    """
    fault = ""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        fault = "its embeddings are no lists of numbers"
    elif len(rows) != texts:
        fault = f"{len(rows)} embeddings for {texts} texts"
    elif len(sizes := {len(row) for row in rows}) > 1:
        fault = f"embeddings of {min(sizes)} and of {max(sizes)} numbers"
    elif 0 in sizes:
        fault = "an empty embedding"
    elif not all(type(number) in NUMBERS for row in rows for number in row):
        fault = "an embedding holds what is no number"
    if fault:
        raise CallError("invalid", fault)
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = np.array(rows, dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise CallError(
            "invalid", "an embedding is all zeros, or holds a number that is not finite"
        )
    made: Floats = (vectors / lengths).astype("<f4")
    return made
