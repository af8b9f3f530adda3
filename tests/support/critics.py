"""Critics of the fake servers, and the calls that tests ask them."""

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.records import make_problem
from mlxreflect.critics import REMOTE, client
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.client import RETRIES, Client
from mlxreflect.critics.http import Wire
from support import fake_bedrock, fake_ollama, fake_openai
from support.fake_server import Fault, Loopback, http

TRIES = RETRIES + 1
client.BACKOFF_S = 0.001  # in all tests that ask a server
PROBLEM = make_problem("countdown", {"numbers": [1, 2, 3], "target": 6})


def call(content: str = "hello", **changes: Any) -> Call:
    messages = [{"role": "system", "content": "Review."}, {"role": "user", "content": content}]
    return replace(Call("critique", PROBLEM, messages, "1+2=4"), **changes)


def critic_at(server: Loopback | tuple[str, str], run_id: str = "run", **settings: Any) -> Client:
    """Returns the critic of a fake server, or of (provider, address)."""
    name, url = (server.name, server.url) if isinstance(server, Loopback) else server
    own = {"region": "us-east-1"} if name == "bedrock" else {}
    usual = {"deadline_s": 10.0, "cache": "off", "model": "critic", "base_url": url, **own}
    config = CriticConfig(provider=name, **usual | settings)  # type: ignore[arg-type]
    return Client(config, run_id, REMOTE[name](config))


def ask(server: Loopback, *calls: Call, **settings: Any) -> list[Reply]:
    with closing(critic_at(server, **settings)) as critic:
        return critic.ask(calls or [call()])


def preflight(server: Loopback | tuple[str, str], **settings: Any) -> Client:
    with closing(critic_at(server, **settings)) as critic:
        critic.preflight()
    return critic


def child(code: str, *arguments: object) -> list[str]:
    """The command of a process that runs code which imports from support."""
    path = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
    return [sys.executable, "-c", path + code, *map(str, arguments)]


@dataclass
class Scripted:
    """A provider without a server: answer(call) is its reply, or raises CallError."""

    answer: Callable[[Call], Reply]
    silent: str = "nobody answers"
    start: str = "start it"

    def __post_init__(self) -> None:
        self.wire = Wire("nowhere")

    def preflight(self) -> None:
        pass

    def send(self, call: Call, refused: frozenset[str]) -> Reply:
        return self.answer(call)

    def close(self) -> None:
        pass


# ---- the three of them ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Provider:
    """refuse: a refused request with a status. bad: the module with faults in its format."""

    fake: Callable[..., Loopback]
    refuse: Callable[..., Fault]
    bad: Any


def aws_refusal(status: int, *words: str, **fields: Any) -> Fault:
    code = next(code for code, its_status in fake_bedrock.STATUS.items() if its_status == status)
    return fake_bedrock.aws(code, *words, **fields)


PROVIDERS = {
    "ollama": Provider(fake_ollama.FakeOllama, http, fake_ollama),
    "openai": Provider(fake_openai.FakeOpenAI, http, fake_openai),
    "bedrock": Provider(fake_bedrock.FakeBedrock, aws_refusal, fake_bedrock),
}
