"""Serves the page live: on loopback only, to those who know its address, and only itself.

A page asks for `tree` with the state it has seen, and gets nothing new until a file of the runs has
changed. Whatever is not asked for exactly so is answered 403.
"""

import os
import secrets
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import owner_alive
from mlxreflect.view.gather import Gathered, gather
from mlxreflect.view.page import embed, html, shorten_texts

LONGEST = 2_000_000  # characters of one text
PATIENCE = 10.0  # seconds that a connection may be silent
WATCHED = ("*.json", "*.jsonl", ".lock", "eval/**/*.json*", "dev/*/results.json")
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Watched:
    """Holds what is gathered of folders, and gathers it again once their files have changed.

    Gathering takes as long as reading the journals: it is not begun again before ten times as long
    has gone by. A file that cannot be read at that moment leaves what was there.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders, self.lock = folders, threading.Lock()
        self.state, self.fault, self.due = self.look(), "", 0.0
        self.gathered = gather(folders)
        self.version = 1

    def look(self) -> list[tuple[str, int, int]]:
        """Returns names, sizes and times of the files that tell how far runs are, and who runs."""
        files = (file for folder in self.folders for kind in WATCHED for file in folder.glob(kind))
        found = []
        for file in files:
            try:
                about = file.stat()
            except FileNotFoundError:  # a commit has just replaced it
                continue
            found.append((str(file), about.st_size, about.st_mtime_ns))
        found += [(str(folder), owner_alive(folder) or 0, 0) for folder in self.folders]
        return sorted(found)

    def now(self) -> tuple[int, Gathered]:
        """Returns the newest version and what it holds."""
        with self.lock:
            begun = time.monotonic()
            if begun >= self.due and (state := self.look()) != self.state:
                self.state = state
                try:
                    gathered = gather(self.folders)
                except (UserError, OSError) as error:
                    self.fault = str(error)
                else:
                    self.version += gathered.tree != self.gathered.tree
                    self.gathered, self.fault = gathered, ""
                finally:
                    self.due = time.monotonic() + 10 * (time.monotonic() - begun)
            return self.version, self.gathered

    def story(self, run: int, table: str, row: int) -> Any:
        """Returns the story of a row of a table, long texts without their middle.

        Raises LookupError where there is no such run, table or row.
        """
        gathered = self.now()[1]
        shown = gathered.tree["runs"][run]["tables"][table]
        if not 0 <= row < len(shown["rows"]):
            raise IndexError(row)
        return shorten_texts(gathered.stories[shown["first"] + row], LONGEST)


class Server(ThreadingHTTPServer):
    """A server on a random port of this machine. address: where a browser finds the page."""

    daemon_threads = True

    def __init__(self, folders: Sequence[Path]) -> None:
        self.watched, self.token = Watched(folders), secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", 0), Handler)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.address = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Shows errors but those of a browser that hangs up in the middle of an answer."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = PATIENCE
    server_version, sys_version = "mlxreflect", ""

    def do_GET(self) -> None:
        try:
            asked = urlsplit(self.path)
        except ValueError:  # "http://[/"
            asked = urlsplit("")
        _, token, *_ = f"{asked.path}//".split("/")
        known = compare_digest(token.encode(), self.server.token.encode())
        page = known and asked.path == f"/{token}/"
        if not known or not (self.from_our_page() or (page and self.is_opened())):
            self.answer(403, "text/plain", "403: this address is not open to you")
            return
        query = {name: values[-1] for name, values in parse_qs(asked.query).items()}
        match asked.path.removeprefix(f"/{token}/"):
            case "":
                self.answer(200, "text/html", html(None))
            case "tree":
                version, gathered = self.server.watched.now()
                new = query.get("seen") != str(version)
                told = {"version": version, "fault": self.server.watched.fault}
                self.answer_json({**told, "tree": gathered.tree} if new else told)
            case "story":
                try:
                    run, row = int(query["run"]), int(query["row"])
                    story = self.server.watched.story(run, query["table"], row)
                except (KeyError, ValueError, IndexError):
                    story = None
                self.answer_json(story)
            case _:
                self.answer(403, "text/plain", "403: there is nothing else here")

    def from_our_page(self) -> bool:
        """Tells if the request names this server, and no other page asks for it."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        same = origin is None or origin == f"http://{host}"
        return host in self.server.hosts and same and site in ("none", "same-origin")

    def is_opened(self) -> bool:
        """Tells if a browser opens the address as a page of its own, from wherever it was led."""
        modes = (self.headers.get(f"Sec-Fetch-{name}") for name in ("Mode", "Dest"))
        return self.headers.get("Host", "") in self.server.hosts and (*modes,) == (
            "navigate", "document"
        )  # fmt: skip

    def answer_json(self, value: Any) -> None:
        self.answer(200, "application/json", embed(value))

    def answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line on the terminal."""


def serve(folders: Sequence[Path], say: Callable[[str], None]) -> None:
    """Serves the page until Ctrl-C, and opens it where there is a screen."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    with Server(folders) as server:
        say(f"{server.address}\nfor this machine alone, by this address; Ctrl-C ends it")
        with suppress(KeyboardInterrupt), NamedTemporaryFile("w", suffix=".html") as led:
            if screen or sys.platform == "darwin":
                # All users of the machine see a browser's arguments, and none this file's content.
                led.write(f'<meta http-equiv="refresh" content="0; url={server.address}">')
                led.flush()
                webbrowser.open(Path(led.name).as_uri())
            server.serve_forever()
