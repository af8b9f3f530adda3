"""A loopback HTTP server that speaks Ollama's wire format, with scripted replies and faults.

    with FakeOllama(reply=lambda body: "…", faults=[http(503), None, RESET]) as server:
        critic = OllamaCritic(CriticConfig(model="critic", base_url=server.url, …), "run")
        …
        server.chats  # the bodies of the /api/chat requests, in the order they came

Like Ollama it cuts a prompt that is longer than num_ctx without a word, counts after cutting, and
cuts a reply at num_predict with done_reason "length". A token is four characters here.
"""

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Body = dict[str, Any]
CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class Fault:
    """An answer that is not a reply. action: what happens to the connection."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    action: str = "answer"  # answer, reset, short, stall, drip, hang_up

    @property
    def label(self) -> str:
        return f"{self.status} {self.action} {self.body[:30]!r}"


def http(status: int, message: str = "scripted fault", retry_after: str | float = "") -> Fault:
    headers = {"Retry-After": str(retry_after)} if retry_after != "" else {}
    return Fault(status, json.dumps({"error": message}).encode(), headers)


RESET = Fault(action="reset")  # RST in the middle of the body
SHORT = Fault(action="short")  # the connection ends in the middle of the body
STALL = Fault(action="stall")  # no answer until the server stops
DRIP = Fault(action="drip")  # a byte now and then, never the end
HANG_UP = Fault(action="hang_up")  # the connection ends before any answer
EMPTY_BODY = Fault()
BAD_JSON = Fault(body=b'{"model": "critic", "message": {"role": "assist')
WRONG_SCHEMA = Fault(body=b'{"choices": [{"message": {"content": "another API"}}]}')
NOT_OBJECT = Fault(body=b'["not", "an", "object"]')
NOT_UTF8 = Fault(body=b'{"message": {"role": "assistant", "content": "\xff\xfe"}, "done": true}')
NO_MODEL = http(404, "model 'critic' not found")

# What a reply function may return: the text, fields of the response to replace, or a fault.
Scripted = str | Body | Fault


@dataclass(frozen=True)
class Seen:
    """One request. at: time.monotonic() when its body had been read."""

    path: str
    body: Body
    at: float


def echo(body: Body) -> str:
    return f"reply to {body['messages'][-1]['content']}"


class FakeOllama:
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
        self.reply, self.faults = reply, list(faults)
        self.models = [name if ":" in name else f"{name}:latest" for name in models]
        self.capabilities, self.context = list(capabilities), context
        self.requests: list[Seen] = []
        self.most_at_once = 0  # chat requests in flight
        self.in_flight = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    @property
    def chats(self) -> list[Body]:
        return [seen.body for seen in list(self.requests) if seen.path == "/api/chat"]

    def __enter__(self) -> "FakeOllama":
        handler = type("BoundHandler", (Handler,), {"fake": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def chat(self, body: Body) -> Fault:
        """The answer to one chat request, faults first."""
        with self.lock:
            fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            return fault
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


def ok(answer: Body) -> Fault:
    return Fault(body=json.dumps(answer).encode())


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


class Handler(BaseHTTPRequestHandler):
    fake: FakeOllama
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.fake.requests.append(Seen(self.path, {}, time.monotonic()))
        if self.path == "/api/tags":
            self.play(self.fake.tags())
        elif self.path == "/api/version":
            self.play(ok({"version": "0.0.0"}))
        else:
            self.play(http(404, "no such page"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake = self.fake
        fake.requests.append(Seen(self.path, body, time.monotonic()))
        if self.path == "/api/show":
            self.play(fake.show(body))
        elif self.path == "/api/chat":
            self.count(+1)
            answer = fake.chat(body)
            self.count(-1)
            self.play(answer)
        else:
            self.play(http(404, "no such page"))

    def count(self, step: int) -> None:
        with self.fake.lock:
            self.fake.in_flight += step
            self.fake.most_at_once = max(self.fake.most_at_once, self.fake.in_flight)

    def play(self, fault: Fault) -> None:
        if fault.action == "stall":
            self.fake.stopped.wait()
        if fault.action in ("stall", "hang_up"):
            self.close_connection = True
            return
        self.send_response(fault.status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        for name, value in fault.headers.items():
            self.send_header(name, value)
        promised = len(fault.body) if fault.action == "answer" else 1000
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        if fault.action == "answer":
            self.wfile.write(fault.body)
        else:
            self.break_off(fault.action)

    def break_off(self, action: str) -> None:
        self.close_connection = True
        self.wfile.write(b'{"message": {"role"')
        while action == "drip" and not self.fake.stopped.wait(0.05):
            self.wfile.write(b" ")
        if action == "reset":
            time.sleep(0.05)  # let the client read the headers before the reset takes them away
            # Linger 0 makes close() send RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client has gone
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: pytest shows what tests print."""
