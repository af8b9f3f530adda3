"""A loopback HTTP server that speaks Ollama's wire format, with scripted replies and faults.

    with FakeOllama(reply=lambda body: "…", faults=[http(503), None, RESET]) as server:
        critic = OllamaCritic(CriticConfig(model="critic", base_url=server.url, …), "run")
        …
        server.chats  # the bodies of the /api/chat requests, in the order they came

Like Ollama it cuts a prompt that is longer than num_ctx without a word, counts after cutting, and
cuts a reply at num_predict with done_reason "length". A token is four characters here.
"""

from collections.abc import Callable, Sequence

from support.fake_server import CHARS_PER_TOKEN as CHARS_PER_TOKEN
from support.fake_server import DRIP as DRIP
from support.fake_server import EMPTY_BODY as EMPTY_BODY
from support.fake_server import HANG_UP as HANG_UP
from support.fake_server import NOT_OBJECT as NOT_OBJECT
from support.fake_server import RESET as RESET
from support.fake_server import SHORT as SHORT
from support.fake_server import STALL as STALL
from support.fake_server import Body, Fault, Loopback, Scripted, Seen, http, ok

BAD_JSON = Fault(body=b'{"model": "critic", "message": {"role": "assist')
WRONG_SCHEMA = Fault(body=b'{"choices": [{"message": {"content": "another API"}}]}')
NOT_UTF8 = Fault(body=b'{"message": {"role": "assistant", "content": "\xff\xfe"}, "done": true}')
NO_MODEL = http(404, "model 'critic' not found")


def echo(body: Body) -> str:
    return f"reply to {body['messages'][-1]['content']}"


class FakeOllama(Loopback):
    """reply: from the body of a chat request to its answer.
    faults: what happens to the first chat requests, in the order they come; None answers normally.
    models: those that are pulled. capabilities, context: what /api/show says of each.
    """

    def __init__(
        self,
        reply: Callable[[Body], Scripted] = echo,
        faults: Sequence[Fault | None] = (),
        models: Sequence[str] = ("critic",),
        capabilities: Sequence[str] = ("completion",),
        context: int = 32768,
    ) -> None:
        super().__init__(faults)
        self.reply = reply
        self.models = [name if ":" in name else f"{name}:latest" for name in models]
        self.capabilities, self.context = list(capabilities), context

    def is_chat(self, path: str) -> bool:
        return path == "/api/chat"

    def answer(self, seen: Seen) -> Fault:
        match seen.path:
            case "/api/tags":
                return self.tags()
            case "/api/version":
                return ok({"version": "0.0.0"})
            case "/api/show":
                return self.show(seen.body)
            case "/api/chat":
                return self.chat(seen.body)
        return http(404, "no such page")

    def chat(self, body: Body) -> Fault:
        if self.full_name(body["model"]) not in self.models:
            return http(404, f"model '{body['model']}' not found")
        if body.get("think") and "thinking" not in self.capabilities:
            return http(400, f'"{body["model"]}" does not support thinking')
        answer = self.reply(body)
        if isinstance(answer, Fault):
            return answer
        return ok(chat_response(body, answer))

    def show(self, body: Body) -> Fault:
        if self.full_name(body["model"]) not in self.models:
            return http(404, f"model '{body['model']}' not found")
        info = {"general.architecture": "fake", "fake.context_length": self.context}
        return ok({"details": {}, "model_info": info, "capabilities": self.capabilities})

    def tags(self) -> Fault:
        when = "2025-01-01T00:00:00.123456789+02:00"
        rows = [{"name": n, "model": n, "modified_at": when, "size": 1} for n in self.models]
        return ok({"models": rows})

    @staticmethod
    def full_name(name: str) -> str:
        return name if ":" in name else f"{name}:latest"


def chat_response(body: Body, answer: str | Body) -> Body:
    options = body.get("options") or {}
    sent = sum(len(message["content"]) for message in body["messages"]) // CHARS_PER_TOKEN + 8
    text = answer if isinstance(answer, str) else ""
    room = options.get("num_predict", 10**6) * CHARS_PER_TOKEN
    response = {
        "model": body["model"],
        "created_at": "2025-01-01T00:00:00.123456789Z",
        "message": {"role": "assistant", "content": text[:room]},
        "done": True,
        "done_reason": "length" if len(text) > room else "stop",
        "total_duration": 3,
        "load_duration": 1,
        "prompt_eval_count": min(sent, options.get("num_ctx", 4096)),
        "prompt_eval_duration": 1,
        "eval_count": len(text[:room]) // CHARS_PER_TOKEN + 1,
        "eval_duration": 1,
    }
    return response | (answer if isinstance(answer, dict) else {})
