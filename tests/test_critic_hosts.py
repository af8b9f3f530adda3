"""Critic calls that several processes make over MLX's ring: one budget, one ledger, none twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from support.critics import Scripted, call
from support.fake_ollama import FakeOllama
from support.fake_openai import FakeOpenAI, refusal
from support.fake_server import free_port, http
from support.hosts import ROOT, launch

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.hosts import Hosts
from mlxreflect.core.journal import read_rows
from mlxreflect.critics.base import Reply
from mlxreflect.critics.client import Client
from mlxreflect.critics.http import NOTHING, CallError, is_loopback
from mlxreflect.critics.post import letter_of, read_answer, read_call
from mlxreflect.critics.replies import HostReplies, LeftReplies, Replies, open_replies

# Each process has a cache of its own, as on a machine of its own, unless they are to share one.
SCRIPT = """
import json, os, sys, time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
options = json.loads(Path("options.json").read_text())
rank = int(os.environ.get("MLX_RANK", 0))
Path(f"pid-{rank}").write_text(str(os.getpid()))
os.environ["MLXREFLECT_CACHE"] = os.path.abspath(f"cache-{rank if options['apart'] else 0}")
from support.critics import PROBLEM, call
from mlxreflect.config.schema import BudgetConfig, CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import Hosts, joined
from mlxreflect.critics import REMOTE, open_critic
from mlxreflect.critics.ledger import Ledger
from mlxreflect.methods.session import Workers
from mlxreflect.runs.follow import follow

config = CriticConfig(**options["critic"])
provider = REMOTE[config.provider]
send = provider.send
def counted(self, call, refused):
    with open(f"sent-{rank}", "a") as out:
        out.write("1\\n")
    return send(self, call, refused)
provider.send = counted

if options["deaf"]:  # rank 0 goes on meeting until it is told not to
    meet = Hosts.meet
    def deaf(self, value=None):
        if rank == 0 and Path("deaf").exists():
            Path("is-deaf").touch()
            time.sleep(600)
        return meet(self, value)
    Hosts.meet = deaf

def asked(critic, text, i, step=0):
    one = call(f"{text} \\ud83d", problem=replace(PROBLEM, id=f"p{i}"), attempt=str(step))
    return critic.ask([one])[0]

def chain(critic, i, found):
    text = f"question {i}"
    for step in range(2):
        reply = asked(critic, text, i, step)
        found[i].append([reply.text, reply.kind])
        text = f"next {reply.text[:60]}"
        yield

def play(hosts):
    with ExitStack() as stack:
        ledger = Ledger(Path("critic.jsonl"), BudgetConfig(**options["budget"]))
        stack.callback(ledger.close)
        critic = open_critic(config, "countdown", "run", ledger, hosts)
        stack.callback(critic.close)
        critic.preflight()
        n = options["calls"]
        if options["chains"]:
            found = [[] for _ in range(n)]
            with Workers(config.concurrency * critic.servers, critic.hosts) as workers:
                for i in range(n):
                    workers.start(chain(critic, i, found))
                workers.wait(lambda text: None)
        else:
            calls = [call(f"question {i}", problem=replace(PROBLEM, id=f"p{i}")) for i in range(n)]
            found = [[reply.text, reply.kind] for reply in critic.ask(calls)]
    Path("found.json").write_text(json.dumps(found))

try:
    with joined() as hosts:
        follow(hosts) if hosts.rank else play(hosts)
except UserError as error:
    print(f"error: {error.message} | hint: {error.hint}", file=sys.stderr, flush=True)
    sys.exit(2)
"""


class Job:
    """A run of the script in a folder, on one process or several."""

    def __init__(self, folder: Path, server: FakeOllama | FakeOpenAI, **options):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
        critic = {"provider": server.name, "model": "critic", "base_url": server.url,
                  "concurrency": 2, "deadline_s": 120, **options.pop("critic", {})}  # fmt: skip
        usual = {"calls": 12, "chains": False, "apart": True, "deaf": False, "budget": {}}
        self.options = {**usual, **options, "critic": critic}

    def start(self, size: int, **options) -> "subprocess.Popen[str]":
        text = json.dumps({**self.options, **options})
        (self.folder / "options.json").write_text(text, encoding="utf-8")
        env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        if size > 1:
            return launch(self.folder, size, "script.py", env=env)
        return subprocess.Popen(
            [sys.executable, "script.py"], cwd=self.folder, env={**os.environ, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def end(self, process: "subprocess.Popen[str]") -> str:
        """Returns what the processes wrote to stderr, once they have ended."""
        try:
            return process.communicate(timeout=240)[1]
        finally:
            process.kill()

    def run(self, size: int, **options) -> list:
        said = self.end(self.start(size, **options))
        assert (self.folder / "found.json").exists(), said
        return json.loads((self.folder / "found.json").read_text())

    def requests(self, rank: int) -> int:
        file = self.folder / f"sent-{rank}"
        return len(file.read_text().split()) if file.exists() else 0

    def ledger(self) -> list:
        return list(read_rows(self.folder / "critic.jsonl"))

    def kept(self) -> set[str]:
        """Returns the keys of all replies on any disk."""
        keys: set[str] = set()
        for file in self.folder.glob("cache-*/critic.sqlite"):
            # It may be empty still.
            with suppress(sqlite3.OperationalError), sqlite3.connect(file) as found:
                keys |= {key for (key,) in found.execute("SELECT key FROM kept")}
        for file in self.folder.glob("cache-*/critic-*.jsonl"):
            keys |= {row["key"] for row in read_rows(file)}
        return keys

    def pid(self, rank: int) -> int:
        return int((self.folder / f"pid-{rank}").read_text())


def until(ready) -> None:
    began = time.monotonic()
    while not ready():
        assert time.monotonic() - began < 240
        time.sleep(0.05)


def contents(server) -> Counter:
    return Counter(body["messages"][-1]["content"] for body in server.chats)


# ---- the same, by one or by several --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chains", [False, True])
def test_replies_are_the_same_however_many_ask(chains, tmp_path):
    found = {}
    for size in (1, 2, 3):
        with FakeOllama() as server:
            job = Job(tmp_path / str(size), server, chains=chains)
            found[size] = job.run(size)
            assert set(contents(server).values()) == {1}
            assert len(server.chats) == len(job.ledger()) == 12 * (1 + chains)
            assert sum(job.requests(rank) for rank in range(3)) == len(server.chats)
            assert all(job.requests(rank) for rank in range(size))
            assert not list(job.folder.glob("cache-*/critic-*.jsonl"))  # rank 0 said "end"
    assert found[1] == found[2] == found[3]


@pytest.mark.slow
@pytest.mark.parametrize("size", [3])
def test_the_budget_is_one(size, tmp_path):
    with FakeOllama() as server:
        job = Job(tmp_path, server, budget={"max_calls": 7})
        said = job.end(job.start(size))
        assert len(server.chats) == len(job.ledger()) == 7
        (told,) = [line for line in said.splitlines() if "error: " in line]
        assert "critic.budget.max_calls = 7 is reached: 7 calls" in told
        assert "hint: mlxreflect resume" in told
        found = job.run(size, budget={})
        assert len(server.chats) == len(found) == 12
        assert set(contents(server).values()) == {1}


@pytest.mark.slow
def test_failing_requests_are_tried_again_wherever_they_were_made(tmp_path):
    faults = [http(500), http(429, retry_after=0.1), http(503), http(500), http(400)]
    with FakeOllama(faults=faults) as server:
        job = Job(tmp_path, server)
        found = job.run(2)
        kinds = Counter(row["kind"] for row in job.ledger())
        assert kinds == {"ok": 11, "http_500": 2, "http_429": 1, "http_503": 1, "http_400": 1}
        assert [kind for _, kind in found if kind] == ["http_400"]
        assert len(server.chats) == len(job.ledger()) == 16


@pytest.mark.slow
def test_what_one_host_learns_that_the_server_refuses_all_leave_out(tmp_path):
    def picky(body):
        return refusal(400, "seed is not supported", param="seed") if "seed" in body else "fine"

    with FakeOpenAI(reply=picky) as server:
        job = Job(tmp_path, server, calls=24)
        found = job.run(2)
        assert found == [["fine", ""]] * 24
        refused = [body for body in server.chats if "seed" in body]
        assert 1 <= len(refused) <= 4  # of the first that were out at once
        assert len(job.ledger()) == 24


@pytest.mark.slow
def test_a_follower_without_its_server_is_told_by_rank_0(tmp_path):
    with FakeOllama() as server:
        job = Job(tmp_path, server)
        script = tmp_path / "script.py"
        silent = f"http://127.0.0.1:{free_port()}"
        host = f'os.environ["OLLAMA_HOST"] = {server.url!r} if rank == 0 else {silent!r}\n'
        script.write_text(SCRIPT.replace("config = ", host + "config = ", 1), encoding="utf-8")
        job.options["critic"]["base_url"] = ""
        said = job.end(job.start(2))
    (told,) = [line for line in said.splitlines() if "error: " in line]
    assert f"(rank 1) failed: Ollama does not answer at {silent}" in told
    assert "hint: start it with `ollama serve`" in told
    assert not server.chats


# ---- kills ---------------------------------------------------------------------------------------


class Gate:
    """Replies of a server that are held back once so many were let through."""

    def __init__(self, let: int) -> None:
        self.let, self.answered = let, list[str]()
        self.lock, self.open = threading.Lock(), threading.Event()

    def __call__(self, body):
        said = FakeOllama.said(body)
        while True:
            with self.lock:
                if self.let:
                    self.let -= 1
                    self.answered.append(said)
                    return FakeOllama.echo(body)
            if self.open.wait(0.01):
                return FakeOllama.echo(body)


def resumed(job: Job, server, gate: Gate, size: int) -> None:
    """Goes on with so many processes: what had been answered is not asked for again."""
    gate.open.set()
    assert len(job.run(size, deaf=False)) == 12
    asked = contents(server)
    assert {text for text in gate.answered if asked[text] > 1} == set()
    replies = 12 * (1 + job.options["chains"])
    assert len(asked) == replies
    rows = job.ledger()
    assert len({row["n"] for row in rows}) == len(rows) >= asked.total()
    assert sum(row["kind"] != "abandoned" for row in rows) <= asked.total()  # at the kill


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dies", "then", "chains"), [
    (2, 0, 1, True), (2, 1, 2, True), (2, 0, 3, False), (3, 2, 2, False),
])  # fmt: skip
def test_after_a_kill_no_reply_is_asked_for_again(size, dies, then, chains, tmp_path):
    gate = Gate(random.Random(f"{size} {dies} {then} {chains}").randrange(1, 11))
    let = gate.let
    with FakeOllama(reply=gate) as server:
        job = Job(tmp_path, server, chains=chains, apart=False)
        process = job.start(size)
        until(lambda: len(job.kept()) == let)  # each has reached a disk, of whichever process
        os.kill(job.pid(dies), signal.SIGKILL)
        said = job.end(process)
        (told,) = [line for line in said.splitlines() if "error: " in line]
        assert f"(rank {dies}) has ended" in told
        resumed(job, server, gate, then)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_replies_that_rank_0_never_heard_of_are_handed_over(dies, tmp_path):
    """Rank 0 meets nobody any more when the replies come; rank 1 has a disk of its own."""
    gate = Gate(0)
    with FakeOllama(reply=gate) as server:
        job = Job(tmp_path, server, deaf=True)
        process = job.start(2)
        until(lambda: len(server.chats) == 4)  # two from each
        (tmp_path / "deaf").touch()
        until((tmp_path / "is-deaf").exists)
        with gate.lock:
            gate.let = 4
        until(lambda: len(job.kept()) >= 3)  # rank 0 goes on asking for itself
        (left,) = tmp_path.glob("cache-1/critic-*-1.jsonl")
        until(lambda: len(list(read_rows(left))) == 2)
        until(lambda: len(job.kept()) == 4)
        with left.open("ab") as out:
            out.write(b'{"key": "torn')
        os.kill(job.pid(dies), signal.SIGKILL)
        if dies:  # a deaf process hears of nothing
            os.kill(job.pid(0), signal.SIGKILL)
        job.end(process)
        (tmp_path / "deaf").unlink()
        resumed(job, server, gate, 2)
        assert not list(tmp_path.glob("cache-*/critic-*.jsonl"))


# ---- in one process ------------------------------------------------------------------------------


class Pair(Hosts):
    """Two ranks without a network: what rank 0 is told at its meetings is scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2
        self.said = list[object]()

    def exchange(self, value):
        self.said.append(value[0])
        return [value, [[] if value[0] == [] else {}, None]]


def config(tmp_path: Path) -> CriticConfig:
    return CriticConfig(provider="ollama", model="m", deadline_s=0.3,
                        cache=str(tmp_path / "c.sqlite"))  # fmt: skip


@pytest.fixture
def pair(tmp_path):
    """A critic of two hosts, whose own server answers nothing before `answered` is set."""
    answered = threading.Event()
    scripted = Scripted(lambda one: Reply("own") if answered.wait(30) else Reply(""))
    scripted.wire.shown = "http://127.0.0.1:1"
    critic = Client(config(tmp_path), "run", scripted, hosts=Pair())
    critic.preflight()
    critic.answered_here = answered
    yield critic
    critic.close()


def ask_aside(critic: Client, *texts: str) -> tuple[threading.Thread, list[Reply]]:
    """Asks from another thread, so that letters leave only when the test collects them."""
    found: list[Reply] = []
    calls = [call(text) for text in texts]
    thread = threading.Thread(target=lambda: found.extend(critic.ask(calls)))
    thread.start()
    return thread, found


def test_a_reply_that_comes_too_late_is_kept(pair):
    assert [said["do"] for said in pair.hosts.said if said and "do" in said] == ["critic"]
    asking, found = ask_aside(pair, "one", "two")
    until(lambda: pair.dispatcher.leaving)  # the other one is rank 0's own
    (letter,) = pair.dispatcher.collect()
    assert letter["to"] == 1
    assert 0 < letter["seconds"] <= 0.3
    until(lambda: pair.dispatcher.requests[letter["n"]].late)
    pair.answered_here.set()
    asking.join(30)
    assert "timeout" in [reply.kind for reply in found]
    late = {"n": letter["n"], "refused": [], "reply": {"text": "late", "usage": {}}}
    pair.dispatcher.deliver(1, [late])
    assert pair.cache.get(letter["key"]).text == "late"
    assert pair.dispatcher.requests == {}


def test_a_request_that_never_left_cost_nothing(pair):
    pair.dispatcher.out[0][0] = 9  # so the call is rank 1's
    asking, found = ask_aside(pair, "one")
    asking.join(30)
    assert [reply.kind for reply in found] == ["timeout"]
    assert pair.ledger.spent == (1, 0, 0)
    assert pair.dispatcher.requests == {}
    assert pair.dispatcher.collect() is None


def test_the_host_with_the_fewest_requests_is_asked(pair):
    pair.answered_here.set()
    pair.dispatcher.out[0][1] = 1  # so the call is rank 0's
    asking, found = ask_aside(pair, "one")
    asking.join(30)
    assert [reply.text for reply in found] == ["own"]
    assert pair.dispatcher.out == [[0, 1]]


def test_letters_hold_what_a_request_needs_and_no_more():
    one = call("half \ud83d", schema={"type": "object"}, stop=("a", "b"), temperature=0.5)
    letter = json.loads(json.dumps(letter_of(one)))
    again = read_call(letter)
    assert (again.messages, again.schema, again.stop) == (one.messages, one.schema, one.stop)
    assert (again.temperature, again.role, again.seed) == (0.5, one.role, one.seed)
    assert one.problem.id not in json.dumps(letter)
    error = CallError("http_429", "slow", retry=True, retry_after=2.5, blame="seed")
    with pytest.raises(CallError) as raised:
        read_answer(json.loads(json.dumps({"error": vars(error)})))
    assert vars(raised.value) == vars(error)
    assert raised.value.usage == NOTHING


@pytest.mark.parametrize(("shown", "here"), [
    ("http://127.0.0.1:11434", True), ("localhost:1", True), (":8080", True),
    ("http://[::1]:8000/v1", True), ("http://mini.local:11434", False), ("192.168.1.9", False),
    ("https://api.openai.com/v1", False), ("Bedrock", False),
])  # fmt: skip
def test_an_address_of_this_machine_is_each_hosts_own(shown, here):
    assert is_loopback(shown) is here


def test_replies_left_by_a_killed_process_are_taken_once(tmp_path):
    path = tmp_path / "c.sqlite"
    kept = HostReplies(path, "run", 1)
    kept.add("a", "ollama:m", Reply("half \ud83d", tries=2))
    kept.add("b", "ollama:m", Reply("unreadable"))
    HostReplies(path, "another", 1).add("c", "ollama:m", Reply("not ours"))
    with kept.path.open("ab") as out:
        out.write(b'{"key": "d", "kept": 5}\n{"key": "torn')
    assert list(LeftReplies(path, "run").rows) == ["a", "b"]
    before = Replies(path, "run")
    before.forget(["b"])
    before.close()
    settings = CriticConfig(provider="ollama", cache=str(path))
    taken = open_replies(settings, "run")
    assert taken.get("a").text == "half \ud83d"
    assert (taken.get("a").tries, taken.get("a").cached) == (2, False)
    assert [taken.get(key) for key in "bcd"] == [None] * 3
    assert not kept.path.exists()
    assert len(list(tmp_path.glob("c-*.jsonl"))) == 1
    kept.add("b", "ollama:m", Reply("asked again"))
    taken.close()
    assert open_replies(settings, "run").get("b").text == "asked again"


def test_a_disk_that_takes_nothing_is_a_warning(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    kept = HostReplies(tmp_path / "file" / "c.sqlite", "run", 1)
    for key in "ab":
        kept.add(key, "ollama:m", Reply("x"))
    assert capsys.readouterr().err.count("warning: ") == 1
