"""A loopback HTTP server that speaks Ollama's wire format, with scripted replies and faults.

It answers as Ollama 0.32 does. test_critic_wire compares the two, where the recording is there.
"""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from support.fake_server import (
    CHARS_PER_TOKEN,
    Body,
    Fault,
    Loopback,
    Scripted,
    Seen,
    cut,
    http,
    ok,
)

BAD_JSON = Fault(body=b'{"model": "critic", "message": {"role": "assist')
WRONG_SCHEMA = Fault(body=b'{"choices": [{"message": {"content": "another API"}}]}')
NOT_UTF8 = Fault(body=b'{"message": {"role": "assistant", "content": "\xff\xfe"}, "done": true}')
NO_MODEL = http(404, "model 'critic' not found")
WHEN = "2025-01-01T00:00:00.123456789+02:00"
TIMES = {"total_duration": 3, "load_duration": 1, "prompt_eval_duration": 1, "eval_duration": 1}
OPTIONS = {
    "temperature": ("float32", int | float), "top_p": ("float32", int | float),
    "min_p": ("float32", int | float), "repeat_penalty": ("float32", int | float),
    "num_ctx": ("integer", int), "num_predict": ("integer", int), "seed": ("integer", int),
    "top_k": ("integer", int),
}  # fmt: skip


def nested(**error: Any) -> Fault:
    """An error of the runner below Ollama, as Ollama hands it on: JSON in JSON."""
    return http(error["code"], json.dumps({"error": error}))


def text(status: int, body: str) -> Fault:
    return Fault(status, body.encode(), {"Content-Type": "text/plain"})


class FakeOllama(Loopback):
    """models: those that are pulled. capabilities, context: what /api/show says of each.

    version: "new" knows `truncate` and `shift`; "half" does not, and cuts a prompt to half the
    window; "old" cuts it to the window. remote_host: where its models are, of the cloud.
    """

    name = "ollama"

    def __init__(
        self,
        reply: Callable[[Body], Scripted] | None = None,
        faults: Sequence[Fault | None] = (),
        models: Sequence[str] = ("critic",),
        capabilities: Sequence[str] = ("completion",),
        context: int = 32768,
        version: str = "new",
        architecture: str = "fake",
        remote_host: str = "",
    ) -> None:
        super().__init__(reply, faults)
        self.models = [full_name(name) for name in models]
        self.capabilities, self.context = list(capabilities), context
        self.version, self.architecture = version, architecture
        self.remote = {"remote_host": remote_host} if remote_host else {}
        self.digests: dict[str, str] = {}  # by full names, where a test says so

    def is_chat(self, path: str) -> bool:
        return path == "/api/chat"

    def answer(self, seen: Seen) -> Fault:
        body, model = seen.body, seen.body.get("model")
        posts = seen.path in ("/api/show", "/api/chat", "/api/generate", "/api/embed")
        if posts and seen.method != "POST":
            return text(405, "405 method not allowed")
        match seen.path:
            case "/":
                return text(200, "Ollama is running")
            case "/api/tags":
                rows = [
                    {"name": n, "model": n, "modified_at": WHEN, "size": 1,
                     "digest": self.digests.get(n, sha256(n.encode()).hexdigest())}
                    for n in self.models
                ]  # fmt: skip
                return ok({"models": rows})
            case "/api/version":
                return ok({"version": "0.0.0"})
            case _ if not posts:
                return text(404, "404 page not found")
            case _ if not model:
                return http(400, "model is required")
            case "/api/show" if " " in model or ".." in model:
                return http(400, "invalid model name")
            case _ if full_name(model) not in self.models:
                shown = full_name(model) if seen.path == "/api/show" else model
                return http(404, f"model '{shown}' not found")
            case "/api/show":
                info = {"general.architecture": self.architecture}
                info |= {f"{self.architecture}.context_length": self.context}
                details = {"family": self.architecture}
                return ok({"details": details, "model_info": info,
                           "capabilities": self.capabilities, **self.remote})  # fmt: skip
            case "/api/embed":
                return self.embeddings(body)
        return self.refusal(body) or self.chat(body)

    def embeddings(self, body: Body) -> Fault:
        """As server/routes.go of Ollama 0.32 has it: each text has to fit by itself."""
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if not all(isinstance(text, str) for text in texts):
            return http(400, "invalid input type")
        sizes = [len(text) // CHARS_PER_TOKEN for text in texts]
        if body.get("truncate") is False and max(sizes, default=0) > self.window(body):
            return http(400, "the input length exceeds the context length")
        found = self.embed(texts)
        if isinstance(found, Fault):
            return found
        times = {"total_duration": 3, "load_duration": 1, "prompt_eval_count": sum(sizes)}
        return ok({"model": body["model"], "embeddings": found, **times})

    def refusal(self, body: Body) -> Fault | None:
        """What is wrong with a request to generate."""
        form, options = body.get("format"), body.get("options") or {}
        if body.get("think") and "thinking" not in self.capabilities:
            return http(400, f'"{body["model"]}" does not support thinking')
        for name, (kind, types) in OPTIONS.items():
            if name in options and not isinstance(options[name], types):
                return http(500, f'option "{name}" must be of type {kind}')
        if isinstance(form, str) and form != "json":
            wanted = 'expected "json" or a valid JSON Schema object'
            return http(500, f"invalid format: {json.dumps(json.dumps(form))}; {wanted}")
        if isinstance(form, dict) and form.get("type", "") != "object":
            why = "Error resolving ref" if "$ref" in form else "Unrecognized schema:"
            said = "Field 'json_schema': \"json_schema\": JSON schema conversion failed:\n"
            return nested(code=400, message=f"{said}{why} {form}", type="invalid_request_error")
        sent, window = self.tokens(body), self.window(body)
        if sent <= window or self.version != "new":
            return None
        if body.get("truncate") is False:
            said = f"request ({sent} tokens) exceeds the available context size ({window} tokens), "
            return nested(
                code=400, message=f"{said}try increasing it", type="exceed_context_size_error",
                n_prompt_tokens=sent, n_ctx=window,
            )  # fmt: skip
        if body.get("shift") is False:
            return http(400, "the prompt is longer than the context length currently available to "
                        "the model; shorten the prompt, adjust the context length in settings, or "
                        "use a model with a longer context length")  # fmt: skip
        return None

    def window(self, body: Body) -> int:
        return min((body.get("options") or {}).get("num_ctx", 4096), self.context)

    @staticmethod
    def tokens(body: Body) -> int:
        messages = body.get("messages") or [{"content": body.get("prompt", "")}]
        return cut("".join(message["content"] for message in messages), "", 1)[0]

    def chat(self, body: Body) -> Fault:
        if body.get("messages") == []:
            loaded = {"model": body["model"], "created_at": WHEN, "done": True}
            message = {"role": "assistant", "content": ""}
            return ok(loaded | {"message": message, "done_reason": "load"})
        return super().chat(body)

    def written(self, body: Body, text: str, fields: Body) -> Body:
        options, sent, window = body.get("options") or {}, self.tokens(body), self.window(body)
        if sent > window:
            sent = window if self.version == "old" else window - (window - 4) // 2
        most = options.get("num_predict", 10**6)
        if self.version == "new" and body.get("shift") is False:
            most = min(most, window - sent)
        _, text, tokens, was_cut = cut("", text, most)
        said: Body = {"message": {"role": "assistant", "content": text}}
        if "prompt" in body:
            said = {"response": text}
        response = said | TIMES | {
            "model": body["model"], "created_at": WHEN, "done": True,
            "done_reason": "length" if was_cut else "stop",
            "prompt_eval_count": sent, "eval_count": min(tokens, most),
        }  # fmt: skip
        return response | fields

    @classmethod
    def said(cls, body: Body) -> str:
        return str(body["prompt"]) if "prompt" in body else super().said(body)


def full_name(name: str) -> str:
    return name if ":" in name else f"{name}:latest"
