"""A loopback HTTP server that speaks OpenAI's chat completions, with scripted replies and faults.

It cuts a reply at max_tokens with finish_reason "length".
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from support.fake_server import Body, Fault, Loopback, Scripted, Seen, cut, http, ok

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
BAD_JSON = Fault(body=b'{"id": "1", "choices": [{"index": 0, "message": {"role": "assist')
WRONG_SCHEMA = Fault(body=b'{"message": {"role": "assistant", "content": "another API"}}')
NO_CHOICES = Fault(body=b'{"choices": []}')
NOT_UTF8 = Fault(body=b'{"choices": [{"message": {"role": "assistant", "content": "\xff\xfe"}}]}')
NOT_TEXT = Fault(body=b'{"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}')


def refusal(status: int, message: str, **fields: Any) -> Fault:
    """A refused request as OpenAI words it."""
    return Fault(status, json.dumps({"error": {"message": message, **fields}}).encode())


class FakeOpenAI(Loopback):
    """models: the list of /v1/models, or the answer to it. key: the only one that is let in.
    refuses: parameters that are answered with 400. software: the Server header.
    """

    name = "openai"

    def __init__(
        self,
        reply: Callable[[Body], Scripted] | None = None,
        faults: Sequence[Fault | None] = (),
        *,
        models: Sequence[str] | Fault = ("critic",),
        key: str = "",
        refuses: Sequence[str] = (),
        software: str = "",
    ) -> None:
        super().__init__(reply, faults)
        self.models, self.key, self.refuses, self.software = models, key, refuses, software

    def is_chat(self, path: str) -> bool:
        return path == CHAT

    def answer(self, seen: Seen) -> Fault:
        if self.key and seen.headers.get("authorization") != f"Bearer {self.key}":
            given = seen.headers.get("authorization", "none")
            return refusal(401, f"Incorrect API key provided: {given}", code="invalid_api_key")
        if seen.path == "/v1/models":
            found = self.models if isinstance(self.models, Fault) else self.listing(self.models)
        elif seen.path == EMBEDDINGS:
            found = self.refused(seen.body) or self.embeddings(seen.body)
        elif seen.path in (CHAT, RAW):
            found = self.chat(seen.body)
        else:
            found = http(404, "Not Found")
        server = {"Server": self.software} if self.software else {}
        return replace(found, headers=found.headers | server)

    @staticmethod
    def listing(names: Sequence[str]) -> Fault:
        rows = [{"id": name, "object": "model", "created": 1} for name in names]
        return ok({"object": "list", "data": rows})

    def refused(self, body: Body) -> Fault | None:
        for name in self.refuses:
            if name in body:
                said = f"Unsupported parameter: '{name}' is not supported with this model."
                return refusal(400, said, param=name, code="unsupported_parameter")
        return None

    def chat(self, body: Body) -> Fault:
        return self.refused(body) or super().chat(body)

    def embeddings(self, body: Body) -> Fault:
        """In an order of its own: `index` says which text a row is of."""
        found, tokens = self.embed(body["input"]), sum(map(len, body["input"])) // 4
        if isinstance(found, Fault):
            return found
        rows = [{"object": "embedding", "index": i, "embedding": one}
                for i, one in enumerate(found)]  # fmt: skip
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return ok({"object": "list", "data": rows[::-1], "model": body["model"], "usage": usage})

    def written(self, body: Body, text: str, fields: Body) -> Body:
        messages = body.get("messages") or [{"content": body["prompt"]}]
        prompt = "".join(message["content"] for message in messages)
        most = body.get("max_tokens") or body["max_completion_tokens"]
        sent, text, tokens, was_cut = cut(prompt, text, most)
        tokens = min(tokens, most)
        said: Body = {"message": {"role": "assistant", "content": text}}
        kind = "chat.completion"
        if "prompt" in body:
            said, kind = {"text": text}, "text_completion"
        choice = said | {"index": 0, "finish_reason": "length" if was_cut else "stop"}
        return {
            "id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"],
            "choices": [choice | fields],
            "usage": {"prompt_tokens": sent, "completion_tokens": tokens,
                      "total_tokens": sent + tokens},
        }  # fmt: skip
