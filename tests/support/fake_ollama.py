"""A loopback HTTP server that speaks Ollama's wire format, with scripted replies and faults.

Like Ollama it cuts a prompt that is longer than num_ctx without a word, counts after cutting, and
cuts a reply at num_predict with done_reason "length".
"""

from collections.abc import Callable, Sequence

from support.fake_server import Body, Fault, Loopback, Scripted, Seen, cut, http, ok

BAD_JSON = Fault(body=b'{"model": "critic", "message": {"role": "assist')
WRONG_SCHEMA = Fault(body=b'{"choices": [{"message": {"content": "another API"}}]}')
NOT_UTF8 = Fault(body=b'{"message": {"role": "assistant", "content": "\xff\xfe"}, "done": true}')
NO_MODEL = http(404, "model 'critic' not found")
WHEN = "2025-01-01T00:00:00.123456789+02:00"


class FakeOllama(Loopback):
    """models: those that are pulled. capabilities, context: what /api/show says of each."""

    name = "ollama"

    def __init__(
        self,
        reply: Callable[[Body], Scripted] | None = None,
        faults: Sequence[Fault | None] = (),
        models: Sequence[str] = ("critic",),
        capabilities: Sequence[str] = ("completion",),
        context: int = 32768,
    ) -> None:
        super().__init__(reply, faults)
        self.models = [full_name(name) for name in models]
        self.capabilities, self.context = list(capabilities), context

    def is_chat(self, path: str) -> bool:
        return path == "/api/chat"

    def answer(self, seen: Seen) -> Fault:
        match seen.path:
            case "/api/tags":
                rows = [
                    {"name": n, "model": n, "modified_at": WHEN, "size": 1} for n in self.models
                ]
                return ok({"models": rows})
            case "/api/version":
                return ok({"version": "0.0.0"})
            case "/api/show" | "/api/chat" if full_name(seen.body["model"]) not in self.models:
                return http(404, f"model '{seen.body['model']}' not found")
            case "/api/show":
                info = {"general.architecture": "fake", "fake.context_length": self.context}
                return ok({"details": {}, "model_info": info, "capabilities": self.capabilities})
            case "/api/chat" if seen.body.get("think") and "thinking" not in self.capabilities:
                return http(400, f'"{seen.body["model"]}" does not support thinking')
            case "/api/chat":
                return self.chat(seen.body)
        return http(404, "no such page")

    def written(self, body: Body, text: str, fields: Body) -> Body:
        options = body.get("options") or {}
        prompt = "".join(message["content"] for message in body["messages"])
        sent, text, tokens, was_cut = cut(prompt, text, options.get("num_predict", 10**6))
        response = {
            "model": body["model"], "created_at": WHEN, "done": True,
            "message": {"role": "assistant", "content": text},
            "done_reason": "length" if was_cut else "stop",
            "total_duration": 3, "load_duration": 1, "prompt_eval_duration": 1, "eval_duration": 1,
            "prompt_eval_count": min(sent, options.get("num_ctx", 4096)), "eval_count": tokens,
        }  # fmt: skip
        return response | fields


def full_name(name: str) -> str:
    return name if ":" in name else f"{name}:latest"
