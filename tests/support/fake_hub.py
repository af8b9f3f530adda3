"""A loopback server in place of the hub: the wire forms that huggingface_hub speaks, files kept.

Repositories are made, files offered (preupload), large ones sent through Git LFS, and committed. As
on the hub, a commit of nothing new is never asked for: preupload says what is there.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import yaml

TOKEN = "hf_" + "abcdefgh" * 4
Answer = tuple[int, Any]


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, list[str]]] = field(default_factory=list)  # message, paths


@dataclass
class FakeHub:
    """owner: whose token is known. faults: part of a path → status of the answers to it.

    repos: by kind and name.
    """

    owner: str = "ann"
    faults: dict[str, int] = field(default_factory=dict)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)  # of LFS, by SHA-256
    stall: threading.Event = field(default_factory=threading.Event)

    def model(self, name: str) -> Repo:
        return self.repos["model", name]

    def dataset(self, name: str) -> Repo:
        return self.repos["dataset", name]

    def __enter__(self) -> Self:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stall.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, path: str, token: str, body: bytes) -> Answer:
        self.requests.append(f"{method} {path}")
        for part, status in self.faults.items():
            if part in path:
                return status, {"error": f"scripted {status}"}
        if method == "PUT":
            digest = path.removeprefix("/put/")
            assert hashlib.sha256(body).hexdigest() == digest
            self.stored[digest] = body
            return 200, {}
        if path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            assert isinstance(yaml.safe_load(text.split("---\n")[1]), dict)
            return 200, {"errors": [], "warnings": []}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid user token."}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [self.action(one) for one in asked]}
        if path.startswith(("/api/models/", "/api/datasets/")):
            kind, user, name, *rest = path.removeprefix("/api/").split("/")
            repo = self.repos.get((kind.rstrip("s"), f"{user}/{name}"))
            if repo is None:
                return 404, {"error": "Repository not found"}
            if user != self.owner and rest:
                return 403, {"error": "Your token may not write here"}
            return self.at(repo, f"{user}/{name}", rest[0] if rest else "", body)
        return 404, {"error": "no such page"}

    def create(self, asked: dict[str, Any]) -> Answer:
        user, kind = asked["organization"], asked.get("type", "model")
        name = f"{user}/{asked['name']}"
        if user != self.owner:
            fault = f'You don\'t have the rights to create a {kind} under the namespace "{user}"'
            return 403, {"error": fault}
        there = (kind, name) in self.repos
        self.repos.setdefault((kind, name), Repo(asked.get("visibility") == "private"))
        place = "datasets/" if kind == "dataset" else ""
        told = {"url": f"{self.url}/{place}{name}"}
        return (409, {**told, "error": f"You already created this {kind} repo"}) if there else (
            200, told)  # fmt: skip

    def action(self, asked: dict[str, Any]) -> dict[str, Any]:
        there = asked["oid"] in self.stored
        upload = {"upload": {"href": f"{self.url}/put/{asked['oid']}"}}
        return {**asked, **({} if there else {"actions": upload})}

    def at(self, repo: Repo, name: str, what: str, body: bytes) -> Answer:
        if what == "preupload":
            return 200, {
                "files": [self.mode(repo, one["path"]) for one in json.loads(body)["files"]]
            }
        if what == "commit":
            rows = [json.loads(line) for line in body.splitlines()]
            return self.commit(repo, name, rows)
        files = [{"rfilename": path} for path in repo.files]
        return 200, {"id": name, "private": repo.private, "sha": "0" * 40, "siblings": files,
                     "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def mode(self, repo: Repo, path: str) -> dict[str, Any]:
        large, old = path.endswith(".safetensors"), repo.files.get(path)
        oid = None
        if old is not None:
            blob = b"blob %d\0" % len(old) + old
            oid = hashlib.sha256(old).hexdigest() if large else hashlib.sha1(blob).hexdigest()
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False,
                "oid": oid}  # fmt: skip

    def commit(self, repo: Repo, name: str, rows: list[dict[str, Any]]) -> Answer:
        (head, *changes), paths = rows, list[str]()
        for row in changes:
            value = row["value"]
            paths.append(value["path"])
            repo.files[value["path"]] = (
                base64.b64decode(value["content"]) if row["key"] == "file"
                else self.stored[value["oid"]]
            )  # fmt: skip
        repo.commits.append((head["value"]["summary"], paths))
        oid = f"{len(repo.commits):040x}"
        url = f"https://huggingface.co/{name}/commit/{oid}"  # it reads no other host's
        return 200, {"success": True, "commitOid": oid, "commitUrl": url}


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def play(self) -> None:
        if length := self.headers.get("Content-Length"):
            body = self.rfile.read(int(length))
        else:
            body = self.chunks() if "Transfer-Encoding" in self.headers else b""
        path = self.path.partition("?")[0]
        status, told = self.hub.answer(
            self.command, path, self.headers.get("Authorization", ""), body
        )
        if status == 0:  # never
            self.hub.stall.wait()
            self.close_connection = True
            return
        text = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    do_GET = do_POST = do_PUT = play

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: pytest shows what tests print."""
