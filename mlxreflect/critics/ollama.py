"""Critics served by Ollama, on this machine or another, through the `ollama` package."""

import os
import re
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import httpx
import ollama

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Messages
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.http import CallError, Wire, all_thought, put_back, token_counts, typed

ADDRESS = re.compile(r"(\w+://)?(?:([^/]*)@)?(.*)", re.DOTALL)  # matches everything
PORT, LOOK_S = 11434, 5.0  # seconds to find out if a server is there
Think = bool | Literal["low", "medium", "high"] | None
# By critic.thinking. It is on by default and would use up max_tokens.
THINK: dict[str, Think] = {"auto": False, "off": False, "on": True,
                           "low": "low", "medium": "medium", "high": "high"}  # fmt: skip
RENAMED = {"repetition_penalty": "repeat_penalty"}  # of Sampling, as Ollama has it
CHARS_PER_TOKEN = 6  # more than any usual text has, so the estimate errs towards too few tokens


class Ollama:
    """One model. `num_ctx` is one for the whole run, for a change makes Ollama load it again.

    OLLAMA_HOST says where the server is, `config.base_url` overrides it.
    Raises UserError for an address that is none.
    """

    silent = "Ollama does not answer"
    start = "start it with `ollama serve`, or set critic.base_url"

    def __init__(self, config: CriticConfig) -> None:
        self.config = config
        host = config.base_url or os.environ.get("OLLAMA_HOST") or "http://127.0.0.1:11434"
        shown, login = without_password(host)
        self.wire = Wire(shown)
        self.think: Think = None
        self.window = config.num_ctx
        hooks = {**self.wire.hooks, "response": [*self.wire.hooks["response"], self.check]}
        try:  # the login apart, since ollama leaves it out of the address
            self.server = ollama.Client(host=host, auth=login, event_hooks=hooks)
        except (ValueError, httpx.InvalidURL):
            raise UserError(
                f"{shown} is no address of an Ollama server",
                "set critic.base_url (or OLLAMA_HOST) to something like http://127.0.0.1:11434",
            ) from None

    def preflight(self) -> None:
        """Learns what the model can do. The server resolves its name: no tag means `:latest`."""
        self.server.list()
        name = self.config.model
        try:
            with typed(self.wire.shown):
                model = self.server.show(name)
        except CallError as error:
            if error.kind == "invalid":  # an old server, which tells less about a model
                return
            if error.kind != "http_404":
                raise
            missing = UserError(f"Ollama has no model {name}", f"run: ollama pull {name}")
            raise missing from None
        thinks, asked = "thinking" in (model.capabilities or []), self.config.thinking
        if not thinks and asked not in ("auto", "off"):
            raise UserError(
                f"critic.thinking = {asked!r}: Ollama's {name} does not think", "leave it at auto"
            )
        self.think = THINK[asked] if thinks else None  # other models do not know the key
        for key, value in (model.modelinfo or {}).items():
            if key.endswith(".context_length") and isinstance(value, int) and value > 0:
                self.window = min(self.config.num_ctx, value)

    def send(self, call: Call, refused: frozenset[str]) -> Reply:
        options: dict[str, Any] = {
            "temperature": call.heat(self.config.temperature),
            "num_predict": self.config.max_tokens,
            "num_ctx": self.config.num_ctx,
            "seed": call.seed,
        }
        if call.top_p < 1:
            options["top_p"] = call.top_p
        options |= {RENAMED.get(name, name): value for name, value in call.sampling.items()}
        if call.stop:
            options["stop"] = list(call.stop)
        response: ollama.GenerateResponse | ollama.ChatResponse
        if call.raw:
            prompt = call.messages[0]["content"]
            response = self.server.generate(self.config.model, prompt, raw=True, options=options)
            text = response.response or ""
        else:
            text, response = self.chat(call, options)
        usage = token_counts(response.prompt_eval_count, response.eval_count)
        self.check_prompt(call.messages, usage)
        return Reply(text, finish_reason=response.done_reason, usage=usage)

    def chat(self, call: Call, options: dict[str, Any]) -> tuple[str, ollama.ChatResponse]:
        """A model that is evaluated thinks as it does by itself, and its thought is in its text."""
        response = self.server.chat(
            model=self.config.model,
            messages=call.messages,
            options=options,
            think=None if call.role == "attempt" else self.think,
            format=call.schema,
        )
        text, thought = response.message.content or "", response.message.thinking
        unfinished = bool(thought) and not text.strip() and response.done_reason == "length"
        if thought and call.role == "attempt":
            text = put_back(thought, text, unfinished)
        elif unfinished:
            usage = token_counts(response.prompt_eval_count, response.eval_count)
            raise all_thought(self.config.max_tokens, usage)
        return text, response

    def check_prompt(self, messages: Messages, usage: dict[str, int]) -> None:
        """Refuses a reply to a prompt that Ollama cut, which it does without a word.

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

    def check(self, response: httpx.Response) -> None:
        """Raises here for a refused request: ollama's ResponseError drops Retry-After."""
        if not (response.is_success or response.has_redirect_location):
            response.read()
            raise self.wire.error(response)

    def close(self) -> None:
        if close := getattr(self.server, "close", None):  # not in the first of ollama 0.6
            close()


def without_password(host: str) -> tuple[str, tuple[str, str] | None]:
    """Returns an address without the `user:password@` in it, and those two apart."""
    scheme, userinfo, rest = ADDRESS.match(host).groups()  # type: ignore[union-attr]
    if userinfo is None:
        return host, None
    user, _, password = userinfo.partition(":")
    return (scheme or "") + rest, (unquote(user), unquote(password))


def estimate_tokens(messages: Messages) -> int:
    """Returns the least tokens of a prompt. Runs of one character count once: they merge."""
    text = "\n".join(message["content"] for message in messages)
    return len(re.sub(r"(.)\1+", r"\1", text, flags=re.DOTALL)) // CHARS_PER_TOKEN


def root_of(address: str) -> str:
    """Returns an address without its path. Raises ValueError for what is no address."""
    place = urlsplit(address if "://" in address else f"http://{address}")
    return f"{place.scheme}://{place.netloc}"


def is_ollama(address: str) -> bool:
    """Tells if Ollama answers there, also at its OpenAI-compatible path; or would, by its port."""
    try:
        root = root_of(address)
        found = httpx.get(f"{root}/api/version", timeout=LOOK_S).json()
    except httpx.TransportError:
        return urlsplit(root).port == PORT
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("version"), str)
