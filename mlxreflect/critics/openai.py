"""Critics behind any server that speaks OpenAI's chat completions, on this machine or another.

Servers differ in what they refuse: what one refuses is left out from then on.
"""

import difflib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from mlxreflect.config.schema import EFFORTS, CriticConfig, Sampling
from mlxreflect.core.errors import UserError
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.http import (
    UNREADABLE,
    CallError,
    Wire,
    fold_system,
    reading,
    token_counts,
    with_thought,
)

HOME = "https://api.openai.com/v1"
MOST_STOPS = 4  # stop strings that OpenAI takes
# By their Server header: they serve names that their list does not have. The first is that of
# mlx_lm.server, and of any other server that is built on Python's own.
LENIENT = ("BaseHTTP", "llama.cpp")
OF_MLX = {"id", "object", "created"}  # keys of a row of mlx_lm.server's list
NEEDS_NO_SYSTEM = re.compile(r"system role|roles must alternate", re.IGNORECASE)


# Who owns a model, as lists of servers say that run it themselves; the last one is LM Studio's.
# A proxy, which may ask a paid model elsewhere, says something else.
ENGINES = ("vllm", "sglang", "llamacpp", "organization_owner")


class OpenAI:
    """One model of one server. An empty `base_url` means OpenAI itself.

    Raises UserError for an address that is none, and for a key that is not there.
    """

    own = False
    silent = "no server answers"
    start = "start it, for example with `mlx_lm.server --model NAME`, or set critic.base_url"

    def __init__(self, config: CriticConfig) -> None:
        self.config = config
        self.base = parse_base(config.base_url)
        if str(self.base).startswith(HOME):
            self.start = "see that you are online, or set critic.base_url to a server of your own"
            if not (config.key_env or config.replay):
                raise UserError(
                    "critic.key_env is empty, and OpenAI wants a key",
                    'set critic.key_env = "OPENAI_API_KEY", or critic.base_url to a server of your '
                    "own",
                )
        needs_key = config.key_env and not config.replay
        key = read_key(config.key_env) if needs_key else ""
        self.wire = Wire(re.sub(r"//[^/]*@", "//", str(self.base)))
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = self.wire.client(headers=headers)

    def preflight(self) -> None:
        """Looks whether the server takes the key and has the model."""
        shown, found = self.wire.shown, self.request("GET", "/models")
        # A key's scopes may leave out the list alone.
        if found.status_code in (401, 403) and "scope" not in found.text.lower():
            fault = "wants a key"
            hint = "set critic.key_env to the name of the environment variable that holds it"
            if name := self.config.key_env:
                fault = f"does not accept the key in {name}"
                hint = f"export {name} with a valid key, or set critic.key_env to another variable"
            raise UserError(f"{shown} {fault} (HTTP {found.status_code})", hint)
        if found.status_code in (401, 403, 404, 405, 429):
            return  # it keeps no list, or none for us: the first call will tell
        if not found.is_success:
            raise UserError(
                f"{shown} does not answer as it should: {self.wire.error(found)}",
                "look at the server's own messages, or set critic.base_url",
            )
        self.look_up(found)

    def look_up(self, found: httpx.Response) -> None:
        """Looks for the model in a list; servers take shorter and longer names too."""
        software = found.headers.get("server", "")
        self.own = software.startswith("llama.cpp")
        try:
            listed = json.loads(found.content)
            rows = listed["data"] if isinstance(listed, dict) else listed
            names = [row["id"] for row in rows if isinstance(row["id"], str)]
            engines = all(row.get("owned_by") in ENGINES for row in rows)
            of_mlx = software.startswith("BaseHTTP") and all(row.keys() == OF_MLX for row in rows)
            self.own = self.own or (bool(rows) and (engines or of_mlx))
        except UNREADABLE:
            return
        if software.startswith(LENIENT):
            return
        model = self.config.model
        same = {model, f"{model}:latest", model.rpartition(":")[0], str(Path(model).resolve())}
        if not names or same & set(names) or any(name.endswith(f"/{model}") for name in names):
            return
        near = difflib.get_close_matches(model, names, 5, cutoff=0.0)
        raise UserError(
            f"{self.wire.shown} has no model {model}",
            f"set critic.model to one that it has: {', '.join(name[:80] for name in near)}",
        )

    def send(self, call: Call, refused: frozenset[str]) -> Reply:
        path = "/completions" if call.raw else "/chat/completions"
        return self.read(self.post(path, self.body(call, refused)), call)

    def embed(self, texts: Sequence[str], refused: frozenset[str]) -> tuple[Any, dict[str, int]]:
        body = {"model": self.config.model, "input": texts, "encoding_format": "float"}
        body = {name: value for name, value in body.items() if name not in refused}
        return self.read_embeddings(self.post("/embeddings", body))

    def digest(self) -> str:
        return ""

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the object that the server answers with. Raises CallError for a refusal."""
        response = self.request("POST", path, body)
        try:
            return self.wire.read(response)
        except CallError as error:
            if not response.is_success:
                error.blame = refused_parameter(response, body)
            raise

    def body(self, call: Call, refused: frozenset[str]) -> dict[str, Any]:
        messages = call.messages
        length = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
        asked = {"messages": fold_system(messages) if "system" in refused else messages}
        body: dict[str, Any] = {
            "model": self.config.model,
            **({"prompt": messages[0]["content"]} if call.raw else asked),
            "stream": False,
            length: self.config.max_tokens,
            "temperature": call.heat(self.config.temperature),
            "seed": call.seed,
        }
        if self.config.top_p < 1:
            body["top_p"] = self.config.top_p
        body |= self.config.changed()  # as vLLM, mlx_lm.server and others know them
        if self.config.thinking in EFFORTS:
            body["reasoning_effort"] = self.config.thinking
        elif self.config.thinking != "auto":  # as vLLM, llama.cpp and mlx_lm.server know it
            body["chat_template_kwargs"] = {"enable_thinking": self.config.thinking == "on"}
        if call.stop:
            body["stop"] = list(call.stop[:MOST_STOPS])
        if call.schema is not None:
            schema = unbounded(call.schema) if "maxLength" in refused else call.schema
            shape = {"name": "reply", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        return {name: value for name, value in body.items() if name not in refused}

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        url = self.base.copy_with(path=self.base.path + path)
        return self.http.request(method, url, json=body)

    @reading()
    def read(self, answer: dict[str, Any], call: Call) -> Reply:
        choice, counts = (answer.get("choices") or [{}])[0], answer.get("usage")
        # Of a gateway that answered HTTP 200 before its model failed.
        if error := answer.get("error") if not choice else choice.get("error"):
            raise self.wire.refusal(error.get("code") if isinstance(error, dict) else 502, error)
        counts = counts if isinstance(counts, dict) else {}
        usage = token_counts(counts.get("prompt_tokens"), counts.get("completion_tokens"))
        reason = choice.get("finish_reason")
        message = {"content": choice["text"]} if call.raw else choice["message"]
        text = text_of(message.get("content"))
        thought = text_of(message.get("reasoning_content") or message.get("reasoning"))
        text = with_thought(thought, text, call, reason == "length")
        if not text and (declined := message.get("refusal")):
            raise CallError("empty", f"the model declined: {self.wire.line(declined)}", usage=usage)
        return Reply(text, finish_reason=reason, usage=usage)

    @reading()
    def read_embeddings(self, answer: dict[str, Any]) -> tuple[Any, dict[str, int]]:
        """Returns the embeddings in the order of the texts, whatever order they came in."""
        if error := answer.get("error"):
            raise self.wire.refusal(error.get("code") if isinstance(error, dict) else 502, error)
        rows, counts = answer["data"], answer.get("usage")
        placed = {row.get("index", i): row["embedding"] for i, row in enumerate(rows)}
        usage = token_counts(counts.get("prompt_tokens"), 0) if isinstance(counts, dict) else {}
        return [placed[i] for i in range(len(rows))], usage

    def close(self) -> None:
        self.http.close()


def unbounded(schema: dict[str, Any]) -> Any:
    """Returns a schema that leaves strings as long as they like."""
    return json.loads(
        json.dumps(schema),
        object_hook=lambda made: {key: made[key] for key in made if key != "maxLength"},
    )


def parse_base(setting: str) -> httpx.URL:
    """Returns the address that paths are put behind: with /v1 where only a host is given."""
    text = setting.strip() or HOME
    text = text if "://" in text else f"http://{text}"
    try:
        url = httpx.URL(text)
        if urlsplit(text).scheme not in ("http", "https") or not url.host:
            raise ValueError("no host")
    except (httpx.InvalidURL, ValueError):
        shown = re.sub(r"//[^/]*@", "//", text)
        raise UserError(
            f"{shown} is no address of a server",
            "set critic.base_url to something like http://127.0.0.1:1234/v1",
        ) from None
    path = url.path.rstrip("/").removesuffix("/chat/completions")
    return url.copy_with(path=path or "/v1")


def read_key(name: str) -> str:
    """Returns the key in an environment variable. Raises UserError, which does not show it."""
    key = os.environ.get(name, "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    fault = "holds characters that no key has" if key else "is not set"
    raise UserError(
        f"the environment variable {name} {fault}; critic.key_env names it",
        f"export {name}=KEY, or leave critic.key_env out where the server wants no key",
    )


def refused_parameter(response: httpx.Response, body: dict[str, Any]) -> str | None:
    """Returns the part of a refused request that the server names and that can be left out."""
    said, status = response.text, response.status_code
    first = body["messages"][0]["role"] if "messages" in body else ""
    system = first == "system" and NEEDS_NO_SYSTEM.search(said)
    if system and status in (400, 404, 422, 500):
        return "system"
    if status not in (400, 422):
        return None
    bounded = '"maxLength"' in json.dumps(body.get("response_format"))
    if bounded and "maxLength" in said:  # as OpenAI does
        return "maxLength"
    for name in ("response_format", "max_tokens", "temperature", "seed", "top_p", "stop",
                 "reasoning_effort", "chat_template_kwargs", "encoding_format",
                 *Sampling.model_fields):  # fmt: skip
        if name in body and re.search(rf"\b{name}\b", said):
            return name
    return "response_format" if "response_format" in body else None


def text_of(content: Any) -> str:
    """Returns the text of a message: as it is, or in parts, of which some are no text."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError("content is neither text nor parts")
    return content or ""
