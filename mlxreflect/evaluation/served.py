"""Evaluation of a model behind a server: any that speaks OpenAI's chat completions, or Ollama.

It goes over the critics' clients: retries, deadlines, `Retry-After`, keys that reach no file. Each
reply is on disk (replies.sqlite in the arm's folder) before the next one is waited for, so what a
kill interrupts is asked again and nothing else is.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from mlxreflect.config.schema import CriticConfig, EvalSpec
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Messages, Problem, Sample
from mlxreflect.core.seeds import seed_for
from mlxreflect.critics import REMOTE
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.client import Client
from mlxreflect.critics.ollama import without_password
from mlxreflect.critics.openai import parse_base
from mlxreflect.evaluation.arms import (
    describe_setup,
    open_arm,
    sample_row,
    whole_chunks,
    write_results,
)
from mlxreflect.evaluation.evaluate import ask_all, grade_sample
from mlxreflect.evaluation.results import FAILED
from mlxreflect.graders.base import Grader
from mlxreflect.models.policy import Completion, cut_at
from mlxreflect.tasks import find_rules
from mlxreflect.tasks.base import Task, load_shots

LOOK_S = 5.0  # seconds to find out what kind of server it is
LEAST_WINDOW = 4096  # tokens of Ollama's num_ctx
KEYS = {  # as a critic's messages name them → as `eval` does
    "critic.base_url (or OLLAMA_HOST)": "--server", "critic.base_url": "--server",
    "critic.key_env": "--server-key-env", "critic.model": "--server-model",
    "critic.max_tokens": "max_new_tokens", "critic.num_ctx": "the server's context",
}  # fmt: skip
CHANGING = {"temperature", "top_p", "seed"}  # what a server may refuse and decides its answers


@dataclass(frozen=True)
class ServedModel:
    """One model of one server. url: as given. key_env: the variable that holds the key, or "".

    keep_failed: a call that fails for good is a wrong answer, counted as failed; else it stops the
    evaluation, which the same command continues.
    """

    url: str
    name: str
    key_env: str = ""
    concurrency: int = 4
    deadline_s: float = 600.0
    keep_failed: bool = False


def evaluate_served(
    model: ServedModel,
    task: Task,
    problems: Sequence[Problem],
    spec: EvalSpec,
    out: Path,
    *,
    advance: Callable[[int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """`evaluate.evaluate` of a model behind a server: no token ids, and tokens as it counts them.

    note: told what the server does not do as it is asked to. Raises UserError for a server that
    cannot be used, for a call that fails for good, and for a folder of another evaluation.
    """
    rules, grader = find_rules(task, spec.rules, spec.task.answer_type)
    shots = load_shots(task, spec)
    asked = ask_all(task, problems, spec, shots)
    config = client_config(model, spec, asked, out)
    with reworded(), ExitStack() as stack:
        setup = describe_setup(model, spec, problems, asked, "")
        setup |= {"server": shown_address(config), "provider": config.provider}
        path = open_arm(out, setup, problems, shots)
        pairs = [(i, j) for i in range(len(problems)) for j in range(spec.samples)]
        done = whole_chunks(path, 1, len(pairs))
        if advance:
            advance(done)
        server = stack.enter_context(closing(connect(config)))
        if done < len(pairs):
            server.preflight()
        calls = [attempt_call(problems[i], j, asked[i], spec) for i, j in pairs[done:]]
        replies = stack.enter_context(closing(in_order(server, calls, model.concurrency)))
        for (i, j), reply in zip(pairs[done:], replies, strict=True):
            if reply.error is not None and not model.keep_failed:
                raise given_up(problems[i], reply, out)
            append_rows(path, [sample_row(served_sample(grader, problems[i], j, reply, spec))])
            if advance:
                advance(1)
        refused = sorted(CHANGING & server.refused)
    if refused and note:
        note(f"{setup['server']} does not take {', '.join(refused)}: it answered without")
    for left in out.glob("replies.sqlite*"):
        left.unlink()
    more = {"eval": spec.name or spec.task.name, **({"refused": refused} if refused else {})}
    return write_results(out, setup, rules, **more)


def served_sample(
    grader: Grader, problem: Problem, index: int, reply: Reply, spec: EvalSpec
) -> Sample:
    text = cut_at(reply.text, spec.stop)
    reason = (reply.finish_reason or "stop") if text == reply.text else "stop"
    completion = Completion(text, [], FAILED if reply.error is not None else reason, 0)
    tokens = reply.usage.get("completion")
    return grade_sample(grader, problem, index, completion, spec, tokens=tokens)


def client_config(
    model: ServedModel, spec: EvalSpec, asked: Sequence[Messages | str], out: Path
) -> CriticConfig:
    """How the critics' client asks it. Ollama's own interface takes a context; its /v1 has none."""
    if not model.url.strip():
        raise UserError("--server is empty", "give an address such as http://127.0.0.1:1234/v1")
    ollama = is_ollama(model.url)
    # A token for two bytes is more than texts have; a power of two, so that a few questions more
    # do not make Ollama load the model again.
    longest = max(len(json.dumps(a, ensure_ascii=False).encode("utf-8", "replace")) for a in asked)
    window = LEAST_WINDOW
    while window < longest // 2 + spec.max_new_tokens:
        window *= 2
    return CriticConfig(
        provider="ollama" if ollama else "openai",
        model=model.name,
        base_url=root_of(model.url) if ollama else model.url,
        key_env="" if ollama else model.key_env,
        temperature=spec.temperature,
        max_tokens=spec.max_new_tokens,
        num_ctx=window,
        concurrency=model.concurrency,
        deadline_s=model.deadline_s,
        cache=str(out / "replies.sqlite"),
    )


def root_of(address: str) -> str:
    """An address without its path. Raises ValueError for what is no address."""
    place = urlsplit(address if "://" in address else f"http://{address}")
    return f"{place.scheme}://{place.netloc}"


def is_ollama(address: str) -> bool:
    """Whether Ollama answers there, also where its OpenAI-compatible path is given."""
    try:
        found = httpx.get(f"{root_of(address)}/api/version", timeout=LOOK_S).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("version"), str)


def shown_address(config: CriticConfig) -> str:
    """The server's address as it is recorded: without a password."""
    if config.provider == "ollama":
        return without_password(config.base_url)[0]
    return re.sub(r"//[^/]*@", "//", str(parse_base(config.base_url)))


def connect(config: CriticConfig) -> Client:
    return Client(config, "eval", REMOTE[config.provider](config))


def attempt_call(problem: Problem, index: int, asked: Messages | str, spec: EvalSpec) -> Call:
    raw = isinstance(asked, str)
    return Call(
        role="attempt",
        problem=problem,
        messages=[{"role": "user", "content": asked}] if isinstance(asked, str) else asked,
        text="",
        attempt=str(index),
        seed=seed_for("eval", spec.seed, problem.id, index),
        top_p=spec.top_p,
        stop=tuple(spec.stop),
        raw=raw,
    )


def in_order(server: Client, calls: Sequence[Call], concurrency: int) -> Generator[Reply]:
    """The replies in the order of the calls, as they come; `concurrency` calls are out at once."""
    # Not concurrent.futures: its threads would keep an interrupted process alive.
    pool = ThreadPool(concurrency)
    try:
        yield from pool.imap(lambda call: server.ask([call])[0], calls)
    finally:
        pool.terminate()


def given_up(problem: Problem, reply: Reply, out: Path) -> UserError:
    return UserError(
        f"no answer to problem {problem.id} in {reply.tries} tries: {reply.error}",
        f"what was answered is kept in {out}: mend the server and give the same command again, or "
        "add --keep-failed to count such a call as a wrong answer",
    )


@contextmanager
def reworded() -> Iterator[None]:
    """What the client says of the recipe's keys, said of the command's options."""
    try:
        yield
    except UserError as error:
        message, hint = error.message, error.hint
        for key, option in KEYS.items():
            message, hint = message.replace(key, option), hint.replace(key, option)
        raise UserError(message, hint) from None
