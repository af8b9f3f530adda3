"""A loopback HTTP server with scripted faults; the fakes of single providers are made of it."""

import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

Body = dict[str, Any]
CHARS_PER_TOKEN = 4  # of the fakes
EMBEDDINGS = ("/api/embed", "/v1/embeddings")
WORDS = ("bee", "rain", "sea", "iron", "water", "honey", "follows")  # of what the fakes embed


@dataclass(frozen=True)
class Fault:
    """An answer that is not a reply. action: what happens to the connection."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    action: str = "answer"  # answer, raw, reset, short, stall, drip, drip_headers, hang_up

    @property
    def label(self) -> str:
        return f"{self.status} {self.action} {self.body[:60]!r}"


def http(status: int, message: str = "scripted fault", retry_after: str | float = "") -> Fault:
    headers = {"Retry-After": str(retry_after)} if retry_after != "" else {}
    return Fault(status, json.dumps({"error": message}).encode(), headers)


def ok(answer: Body) -> Fault:
    return Fault(body=json.dumps(answer).encode())


RESET = Fault(action="reset")  # RST in the middle of the body
SHORT = Fault(action="short")  # the connection ends in the middle of the body
STALL = Fault(action="stall")  # no answer until the server stops
DRIP = Fault(action="drip")  # a byte now and then, never the end
DRIP_HEADERS = Fault(action="drip_headers")  # one now and then, and never a body
HANG_UP = Fault(action="hang_up")  # the connection ends before any answer
EMPTY_BODY = Fault()
NOT_OBJECT = Fault(body=b'["not", "an", "object"]')


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        assert isinstance(port, int)
        return port


# What a reply function may return: the text, fields of the response to replace, or a fault.
Scripted = str | Body | Fault


@dataclass(frozen=True)
class Seen:
    """One request. at: time.monotonic() when its body had been read. headers: names in lower."""

    path: str
    body: Body
    at: float
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def cut(prompt: str, whole: str, tokens: int) -> tuple[int, str, int, bool]:
    """Returns a prompt's tokens, a reply as far as it may go, its tokens, and if it was cut."""
    text = whole[: tokens * CHARS_PER_TOKEN]
    sent, came = len(prompt) // CHARS_PER_TOKEN + 8, len(text) // CHARS_PER_TOKEN + 1
    return sent, text, came, len(text) < len(whole)


class Loopback:
    """A provider's fake: it says which paths are chats and how a reply is written.

        with FakeOllama(reply=lambda body: "…", faults=[http(503), None, RESET]) as server:
            critic = critic_at(server)
            …
            server.chats  # the bodies of the chat requests, in the order they came

    reply: from the body of a chat request to its answer: a text, fields of the response, a fault.
    faults: what happens to the first chat requests and requests of embeddings, in the order they
    come; None answers normally. embed, of an instance, may be another function.
    certificate: for TLS, with its key in the same file. A token is four characters.
    """

    name = ""  # of the provider
    port = 0  # to listen at; 0: any that is free

    def __init__(
        self,
        reply: Callable[[Body], Scripted] | None = None,
        faults: Sequence[Fault | None] = (),
        certificate: Path | None = None,
    ) -> None:
        self.reply: Callable[[Body], Scripted] = reply or self.echo
        self.faults, self.certificate = list(faults), certificate
        self.requests: list[Seen] = []
        self.most_at_once = 0  # chat requests in flight
        self.in_flight = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    def is_chat(self, path: str) -> bool:
        raise NotImplementedError

    def embed(self, texts: Sequence[str]) -> Any:
        """The embeddings of texts: how often each of a few words is in them."""
        return [[1.0, *(float(text.lower().count(word)) for word in WORDS)] for text in texts]

    def answer(self, seen: Seen) -> Fault:
        """The answer to a request that no scripted fault takes."""
        raise NotImplementedError

    def written(self, body: Body, text: str, fields: Body) -> Body:
        """A reply with this text in the provider's format. fields: what it has instead."""
        raise NotImplementedError

    @classmethod
    def said(cls, body: Body) -> str:
        """The text of a request's last message."""
        return str(body["messages"][-1]["content"])

    @classmethod
    def echo(cls, body: Body) -> str:
        return f"reply to {cls.said(body)}"

    def chat(self, body: Body) -> Fault:
        answer = self.reply(body)
        if isinstance(answer, Fault):
            return answer
        text, fields = (answer, {}) if isinstance(answer, str) else ("", answer)
        return ok(self.written(body, text, fields))

    @property
    def embedded(self) -> list[str]:
        """The texts that were embedded, in the order they came."""
        asked = [seen for seen in list(self.requests) if seen.path in EMBEDDINGS]
        return [text for seen in asked for text in seen.body["input"]]

    @property
    def chats(self) -> list[Body]:
        return [seen.body for seen in list(self.requests) if self.is_chat(seen.path)]

    def __enter__(self) -> Self:
        handler = type("BoundHandler", (Handler,), {"fake": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        scheme = "http"
        if self.certificate:
            context, scheme = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "https"
            context.load_cert_chain(self.certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def respond(self, seen: Seen) -> Fault:
        self.requests.append(seen)
        if not (self.is_chat(seen.path) or seen.path in EMBEDDINGS):
            return self.answer(seen)
        with self.lock:
            self.in_flight += 1
            self.most_at_once = max(self.most_at_once, self.in_flight)
            fault = self.faults.pop(0) if self.faults else None
        answer = fault or self.answer(seen)
        with self.lock:
            self.in_flight -= 1
        return answer


class Handler(BaseHTTPRequestHandler):
    fake: Loopback
    protocol_version = "HTTP/1.1"
    server_version = "Fake/1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.play(self.fake.respond(self.seen({})))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.play(self.fake.respond(self.seen(body)))

    def seen(self, body: Body) -> Seen:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Seen(self.path, body, time.monotonic(), headers, self.command)

    def play(self, fault: Fault) -> None:
        if fault.action == "stall":
            self.fake.stopped.wait()
        if fault.action == "drip_headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.fake.stopped.wait(0.05):
                self.wfile.write(b"X-More: x\r\n")
        if fault.action == "raw":  # no HTTP but what the body has of it
            self.wfile.write(fault.body)
        if fault.action in ("stall", "hang_up", "drip_headers", "raw"):
            self.close_connection = True
            return
        self.send_response_only(fault.status)
        usual = {"Server": self.server_version, "Content-Type": "application/json; charset=utf-8"}
        for name, value in (usual | fault.headers).items():
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
