"""Critics served by Ollama, on this machine or another."""

import os
import re
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import httpx

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Messages
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.http import LOOPBACK, CallError, Wire, reading, token_counts, with_thought

ADDRESS = re.compile(r"(\w+://)?(?:([^/]*)@)?(.*)", re.DOTALL)  # matches everything
PORT, LOOK_S = 11434, 5.0  # seconds to find out if a server is there
Think = bool | Literal["low", "medium", "high"] | None
# By critic.thinking. It is on by default and would use up max_tokens.
THINK: dict[str, Think] = {"auto": False, "off": False, "on": True,
                           "low": "low", "medium": "medium", "high": "high"}  # fmt: skip
WHOLE = (
    256  # the server rounds a window up to as many tokens, though /api/ps says what was asked for
)
CHARS_PER_TOKEN = 6  # more than any usual text has, so the estimate errs towards too few tokens
# Ollama's answers with status 500 that will be the same the next time, and to a prompt that is
# longer than the window, by its versions.
MISTAKES = re.compile("must be of type|invalid format|error loading model|more system memory")
TOO_LONG = re.compile("exceeds the available context size|longer than the context length|"
                      "exceeds (the|maximum) context length")  # fmt: skip


class Ollama:
    """One model. `num_ctx` is one for the whole run, for a change makes Ollama load it again.

    OLLAMA_HOST says where the server is, `config.base_url` overrides it.
    Raises UserError for an address that is none.
    """

    silent = "Ollama does not answer"
    start = "start it with `ollama serve`, or set critic.base_url"

    def __init__(self, config: CriticConfig) -> None:
        self.config = config
        host = config.base_url or os.environ.get("OLLAMA_HOST") or f"http://127.0.0.1:{PORT}"
        shown, login = without_password(host)
        self.wire = Wire(shown)
        self.think: Think = None
        self.window = config.num_ctx
        key = os.environ.get("OLLAMA_API_KEY", "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            base = address_of(shown)
        except (ValueError, httpx.InvalidURL):
            raise UserError(
                f"{shown} is no address of an Ollama server",
                "set critic.base_url (or OLLAMA_HOST) to something like http://127.0.0.1:11434",
            ) from None
        self.own = base.host in LOOPBACK  # else it may be Ollama's cloud, or another's for money
        self.http = self.wire.client(base_url=base, auth=login, headers=headers)

    def preflight(self) -> None:
        """Learns what the model can do. The server resolves its name: no tag means `:latest`."""
        self.pulled()
        name = self.config.model
        try:
            model = self.request("/api/show", {"model": name})
        except CallError as error:
            if error.kind == "http_404":
                missing = UserError(f"Ollama has no model {name}", f"run: ollama pull {name}")
                raise missing from None
            raise
        self.learn(model)

    @reading()
    def learn(self, model: dict[str, Any]) -> None:
        """Takes if it thinks, and its window, from what the server says of the model."""
        name = self.config.model
        if model.get("remote_host") or model.get("remote_model"):  # of the cloud, by any name
            self.own = False
        thinks, asked = "thinking" in (model.get("capabilities") or []), self.config.thinking
        if not thinks and asked not in ("auto", "off"):
            raise UserError(
                f"critic.thinking = {asked!r}: Ollama's {name} does not think", "leave it at auto"
            )
        self.think = THINK[asked] if thinks else None  # other models do not know the key
        if (model.get("details") or {}).get("family") == "gptoss" and not self.think:
            self.think = "low"  # it cannot but think, and with false it fills no schema
        for key, value in (model.get("model_info") or {}).items():
            if key.endswith(".context_length") and isinstance(value, int) and value > 0:
                self.window = min(self.config.num_ctx, value)

    @reading()
    def pulled(self) -> dict[str, int | None]:
        """Returns the size in bytes of each model that the server has, by name."""
        rows = self.request("/api/tags").get("models") or []
        return {str(row["model"]): row.get("size") for row in rows}

    def send(self, call: Call, refused: frozenset[str]) -> Reply:
        config = self.config
        options: dict[str, Any] = {
            "temperature": call.heat(config.temperature),
            "num_predict": config.max_tokens,
            "num_ctx": config.num_ctx,
            "seed": call.seed,
            # All of them: else those of the Modelfile hold, or a top_k of 40 and a top_p of 0.9.
            "top_p": config.top_p,
            "top_k": config.top_k,
            "min_p": config.min_p,
            "repeat_penalty": config.repetition_penalty,
            "presence_penalty": config.presence_penalty,
        }
        if call.stop:
            options["stop"] = list(call.stop)
        body: dict[str, Any] = {
            "model": config.model,
            "stream": False,
            "options": options,
            # Else it cuts a long prompt to half the window, and forgets the prompt's beginning
            # where a reply reaches its end, both without a word. Old servers do not know the keys.
            "truncate": False,
            "shift": False,
        }
        body |= self.keep_alive()
        if call.raw:
            body |= {"prompt": call.messages[0]["content"], "raw": True}
            return self.read(self.generate("/api/generate", body), call)
        body["messages"] = call.messages
        # A model that is evaluated thinks as it does by itself.
        if self.think is not None and call.role != "attempt":
            body["think"] = self.think
        if call.schema is not None:
            body["format"] = call.schema
        return self.read(self.generate("/api/chat", body), call)

    def keep_alive(self) -> dict[str, str | int]:
        alive = self.config.keep_alive  # a number without a unit has to be one
        return {"keep_alive": alive if alive[-1].isalpha() else int(alive)} if alive else {}

    def embed(self, texts: Sequence[str], refused: frozenset[str]) -> tuple[Any, dict[str, int]]:
        """Returns the embeddings of whole texts: else it would cut long ones without a word."""
        body = {"model": self.config.model, "input": texts, "truncate": False,
                "options": {"num_ctx": self.config.num_ctx}, **self.keep_alive()}  # fmt: skip
        answer = self.generate("/api/embed", body)
        return answer.get("embeddings"), token_counts(answer.get("prompt_eval_count"), 0)

    @reading()
    def digest(self) -> str:
        names = (self.config.model, f"{self.config.model}:latest")
        rows = self.request("/api/tags").get("models") or []
        return next((str(row.get("digest") or "") for row in rows if row["model"] in names), "")

    @reading()
    def read(self, answer: dict[str, Any], call: Call) -> Reply:
        if call.raw:
            text = answer["response"]
        else:
            said, cut = answer["message"], answer.get("done_reason") == "length"
            text = with_thought(said.get("thinking") or "", said.get("content") or "", call, cut)
        if not isinstance(text, str):
            raise TypeError("the reply's text is none")
        usage = token_counts(answer.get("prompt_eval_count"), answer.get("eval_count"))
        usage = self.check_prompt(call.messages, usage)
        return Reply(text, finish_reason=answer.get("done_reason"), usage=usage)

    def generate(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Sends a prompt; an error that will not pass by itself is not tried again."""
        try:
            return self.request(path, body)
        except CallError as error:
            said = str(error)
            if TOO_LONG.search(said):
                raise CallError(
                    "truncated_prompt", f"{said} ({self.mend()})", usage=error.usage
                ) from None
            error.retry = error.retry and not MISTAKES.search(said)
            raise

    def mend(self) -> str:
        asked = self.config.num_ctx
        if self.window < asked:
            return f"the model's window has {self.window} tokens: take one with a larger window"
        return f"raise critic.num_ctx, now {asked}"

    def check_prompt(self, messages: Messages, usage: dict[str, int]) -> dict[str, int]:
        """Returns the usage without a count of the prompt that cannot be right.

        Refuses a reply to a prompt that was cut, by servers that do not know `truncate` or
        `shift`: they fill the window, or keep its first 4 tokens and half of the rest. Far fewer
        tokens than were sent prove nothing: some versions do not count what they had cached.
        """
        prompt, completion = usage.get("prompt"), usage.get("completion", 0)
        if prompt is None:
            return usage
        least = estimate_tokens(messages)
        half = self.window - (self.window - 4) // 2
        room = -(-self.window // WHOLE) * WHOLE
        if prompt + completion > room or (abs(prompt - half) <= 2 and prompt < least):
            raise CallError(
                "truncated_prompt",
                f"Ollama cut the prompt: it counts {prompt} tokens of it and {completion} of the "
                f"reply in a window of {room} ({self.mend()})",
                usage=usage,
            )
        if prompt < 0.75 * least:
            return {name: count for name, count in usage.items() if name != "prompt"}
        return usage

    def request(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns the object that the server answers with. Raises CallError for an error in it."""
        sent = self.http.request("POST" if body else "GET", path, json=body)
        answer = self.wire.read(sent)
        if error := answer.get("error"):  # with HTTP 200, where the model failed midway
            raise self.wire.refusal(500, error)
        return answer

    def close(self) -> None:
        self.http.close()


def without_password(host: str) -> tuple[str, tuple[str, str] | None]:
    """Returns an address without the `user:password@` in it, and those two apart."""
    scheme, userinfo, rest = ADDRESS.match(host).groups()  # type: ignore[union-attr]
    if userinfo is None:
        return host, None
    user, _, password = userinfo.partition(":")
    return (scheme or "") + rest, (unquote(user), unquote(password))


def address_of(host: str) -> httpx.URL:
    """Returns a whole address; a host alone is reached at Ollama's port, and ":PORT" is here.

    Raises ValueError or httpx.InvalidURL for what is no address.
    """
    whole = host if "://" in host else f"http://{host}"
    if urlsplit(whole).scheme not in ("http", "https"):
        raise ValueError("no scheme of a web server")
    url = httpx.URL(whole)
    port = url.port or (None if "://" in host else PORT)
    return url.copy_with(host=url.host or "127.0.0.1", port=port)


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
        wire = Wire(root)
        with wire.within(LOOK_S), wire.client() as http:
            found = wire.read(http.get(f"{root}/api/version"))
    except CallError as error:
        silent = error.kind in ("connect", "timeout", "reset")
        return silent and urlsplit(root).port == PORT
    except (ValueError, httpx.InvalidURL):
        return False
    return isinstance(found.get("version"), str)
