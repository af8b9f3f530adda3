"""A critic served by Ollama, on this machine or another, through the `ollama` package."""

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import httpx
import ollama

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Messages
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.client import Client
from mlxreflect.critics.http import (
    PREFLIGHT_S,
    SEED_BITS,
    Body,
    CallError,
    encodable,
    http_error,
    invalid,
    limit,
    put_back,
    strip_thought,
    typed,
)
from mlxreflect.critics.ledger import Ledger

ADDRESS = re.compile(r"(\w+://)?(?:([^/]*)@)?(.*)", re.DOTALL)  # matches everything
CHARS_PER_TOKEN = 6  # more than any usual text has, so the estimate errs towards too few tokens


class OllamaCritic:
    """Asks one model for critiques and rewrites. `num_ctx` is one for the run: a change reloads it.

    OLLAMA_HOST says where the server is, `config.base_url` overrides it.
    Raises UserError for an address that is none and for a cache that cannot be used.
    """

    waits = True

    def __init__(
        self,
        config: CriticConfig,
        run_id: str,
        ledger: Ledger | None = None,
        *,
        backoff_s: float | None = None,
    ) -> None:
        self.config = config
        self.actor = f"ollama:{config.model}"
        host = config.base_url or os.environ.get("OLLAMA_HOST") or "http://127.0.0.1:11434"
        self.url, auth = without_password(host)  # what is shown to people
        self.think: bool | None = None
        self.window = config.num_ctx
        self.local = threading.local()  # .deadline of the request this thread is making
        try:
            self.server = ollama.Client(
                host=host,
                timeout=config.deadline_s,
                auth=auth,  # ollama leaves it out of the address
                event_hooks={"request": [self.limit], "response": [self.check]},
            )
        except (ValueError, httpx.InvalidURL):
            raise UserError(
                f"{self.url} is no address of an Ollama server",
                "set critic.base_url (or OLLAMA_HOST) to something like http://127.0.0.1:11434",
            ) from None
        self.client = Client(config, run_id, self.send, ledger, backoff_s=backoff_s)

    def preflight(self) -> None:
        """Is the server up, is the model there, what can it do?"""
        hint = "start it with `ollama serve`, or set critic.base_url"
        try:
            with self.typed(PREFLIGHT_S):
                self.server.list()
            self.look_up()
        except CallError as error:
            why = "" if error.kind == "connect" else f" ({error})"
            raise UserError(f"Ollama does not answer at {self.url}{why}", hint) from None

    def look_up(self) -> None:
        """Ask about the model. Its name is resolved by the server: without a tag, `:latest`."""
        name = self.config.model
        try:
            with self.typed(PREFLIGHT_S):
                model = self.server.show(name)
        except CallError as error:
            if error.kind == "http_404":
                missing = UserError(f"Ollama has no model {name}", f"run: ollama pull {name}")
                raise missing from None
            if error.kind == "invalid":  # an old server, which tells less about a model
                return
            raise
        # Thinking is on by default and would use up max_tokens. Other models do not know the key.
        self.think = False if "thinking" in (model.capabilities or []) else None
        for key, value in (model.modelinfo or {}).items():
            if key.endswith(".context_length") and isinstance(value, int) and value > 0:
                self.window = min(self.config.num_ctx, value)

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        return self.client.ask(calls)

    def close(self) -> None:
        self.client.close()
        if close := getattr(self.server, "close", None):  # not in the first of ollama 0.6
            close()

    def send(self, call: Call, timeout: float) -> Reply:
        options: dict[str, Any] = {
            "temperature": call.heat(self.config.temperature),
            "num_predict": self.config.max_tokens,
            "num_ctx": self.config.num_ctx,
            "seed": call.seed & SEED_BITS,
        }
        if call.top_p < 1:
            options["top_p"] = call.top_p
        if call.stop:
            options["stop"] = list(call.stop)
        with self.typed(timeout):
            text, response = self.complete(call, options) if call.raw else self.chat(call, options)
        counts = {"prompt": response.prompt_eval_count, "completion": response.eval_count}
        usage = {name: count for name, count in counts.items() if count is not None}
        self.check_prompt(call.messages, usage)
        return Reply(strip_thought(text, call), finish_reason=response.done_reason, usage=usage)

    def chat(self, call: Call, options: dict[str, Any]) -> tuple[str, ollama.ChatResponse]:
        """A model that is evaluated thinks as it does by itself, and its thought is in its text."""
        response = self.server.chat(
            model=self.config.model,
            messages=encodable(call.messages),
            options=options,
            think=None if call.role == "attempt" else self.think,
            format=call.schema,
        )
        text, thought = response.message.content or "", response.message.thinking
        if thought and call.role == "attempt":
            unfinished = not text.strip() and response.done_reason == "length"
            text = put_back(thought, text, unfinished)
        return text, response

    def complete(self, call: Call, options: dict[str, Any]) -> tuple[str, ollama.GenerateResponse]:
        prompt = encodable(call.messages)[0]["content"]
        response = self.server.generate(self.config.model, prompt, raw=True, options=options)
        return response.response or "", response

    def check_prompt(self, messages: Messages, usage: dict[str, int]) -> None:
        """Refuse a reply to a prompt that Ollama cut, which it does without a word.

        It counts after cutting: a window filled to the brim or far fewer tokens than were sent
        give it away. Old servers leave the count out; then nothing can be said.
        """
        count, sent = usage.get("prompt"), estimate_tokens(messages)
        if count and (count >= self.window or count < 0.75 * sent):
            raise CallError(
                "truncated_prompt",
                f"Ollama cut the prompt to {count} tokens (at least {sent} were sent): "
                f"raise critic.num_ctx, now {self.config.num_ctx}",
                usage=usage,
            )

    @contextmanager
    def typed(self, timeout: float) -> Iterator[None]:
        """Give the request inside `timeout` seconds; its errors come out as CallError."""
        self.local.deadline = time.monotonic() + timeout
        try:
            with typed(self.url):
                yield
        except (ValueError, TypeError, RecursionError) as error:
            # Not JSON, not UTF-8, not an object, not the fields of a reply.
            raise invalid(error) from None

    def limit(self, request: httpx.Request) -> None:
        limit(request, self.local.deadline)

    def check(self, response: httpx.Response) -> None:
        """Raise here for a refused request: ollama's ResponseError drops Retry-After."""
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = Body(response.stream, self.local.deadline)
        if not (response.is_success or response.has_redirect_location):
            response.read()
            raise http_error(response)


def without_password(host: str) -> tuple[str, httpx.BasicAuth | None]:
    """An address without the `user:password@` in it, and what signs requests with that."""
    scheme, userinfo, rest = ADDRESS.match(host).groups()  # type: ignore[union-attr]
    if userinfo is None:
        return host, None
    user, _, password = userinfo.partition(":")
    return (scheme or "") + rest, httpx.BasicAuth(unquote(user), unquote(password))


def estimate_tokens(messages: Messages) -> int:
    """At least how many tokens a prompt has. Runs of one character count once: they merge."""
    text = "\n".join(message["content"] for message in messages)
    return len(re.sub(r"(.)\1+", r"\1", text, flags=re.DOTALL)) // CHARS_PER_TOKEN
