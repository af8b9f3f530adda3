"""Generators, which answer the problems of an evaluation: a local model, a server, or chains."""

import hashlib
import json
import os
import re
from collections.abc import Generator as Chunks
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxreflect.config.schema import CriticConfig, EvalSpec, PolicyConfig, Sampling
from mlxreflect.core.cache import KeyedCache, cache_path
from mlxreflect.core.errors import UserError, reworded
from mlxreflect.core.journal import dump_line, write_atomic
from mlxreflect.core.records import Messages, Problem, episode_from_row, to_row
from mlxreflect.core.seeds import seed_for
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.ledger import Ledger
from mlxreflect.evaluation.arms import short_hash, unique_rows
from mlxreflect.evaluation.chains import (
    Chain,
    Rounds,
    answer_of,
    chain_of,
    chain_row,
    check_chain,
    figures,
    generated,
    open_critic,
)
from mlxreflect.evaluation.evaluate import FAILED, Bar, Generator, ProblemSet, Row
from mlxreflect.models.load import adapted, policy_identity
from mlxreflect.models.policy import Completion, Policy, cut_at

if TYPE_CHECKING:
    from mlxreflect.critics.client import Client

# Times the batch: what is generated together, and so the most that a kill loses. Fewer would lose
# less, but leave more places empty while a chunk's longest answers are finished.
CHUNK = 4
ANSWERS = "answers.sqlite"


class Answers:
    """Answers on disk, so that no model answers again what it has answered alike.

    A row of the cache holds the tokens of one chunk, generated together, under a hash of everything
    they depend on: weights, prompts, decoding, batch and backend. So what comes from here is, byte
    for byte, what generating it again would give. path: the file, or a folder that it stands in.
    reused: how many answers came from it so far. A damaged row counts as none. Raises UserError for
    a file that cannot be used.
    """

    def __init__(self, path: Path) -> None:
        folder = os.path.isdir(path)  # noqa: PTH112 -- also where it may not be looked at
        path = path / ANSWERS if folder else path
        self.cache = KeyedCache(path, "answer cache", "--cache (of a run: eval.cache)")
        self.reused = 0

    @staticmethod
    def open(setting: str) -> "Answers | None":
        """Opens the file that the setting means, as `core.cache.cache_path` reads it."""
        path = cache_path(setting, ANSWERS)
        return Answers(path) if path else None

    def get(self, key: str, count: int) -> list[tuple[list[int], str]] | None:
        """Returns token ids and finish reason of each of the `count` answers kept under a key."""
        value = self.cache.get(key)
        if value is None:
            return None
        try:
            answers = [([int(i) for i in ids], str(why)) for ids, why in json.loads(value)]
        except (ValueError, TypeError, RecursionError):
            answers = []
        if len(answers) != count:
            self.cache.delete([key])
            return None
        self.reused += count
        return answers

    def put(self, key: str, completions: Sequence[Completion]) -> None:
        """Keeps a chunk's answers whole or, where the process dies, not at all."""
        answers = [(one.token_ids, one.finish_reason) for one in completions]
        self.cache.put(key, json.dumps(answers).encode())

    def report(self) -> list[str]:
        """Returns a line on what was reused since the last report, or none."""
        reused, self.reused = self.reused, 0
        said = "answers were there already: this model was asked the same before (see --cache)"
        return [f"{reused} {said}"] if reused else []


# ---- a model in this process ---------------------------------------------------------------------


@dataclass(frozen=True)
class LocalModel:
    """A loaded policy, and the LoRA adapter to put on it while it answers.

    adapter: what the adapter is known by. quantize: the bits that it was quantised to on load.
    puts_on: whose adapter is put on; None where the policy has its adapter, or has none.
    """

    policy: Policy
    adapter: str = ""
    quantize: int = 0
    puts_on: PolicyConfig | None = None

    def weights(self) -> AbstractContextManager[None]:
        return adapted(self.policy, self.puts_on) if self.puts_on else nullcontext()


class LocalGenerator(Generator):
    """Answers with a local model, or with what it answered before, out of a cache.

    at_once: problems of a chunk; default: four batches for each host. purpose: names the random
    streams, which do not depend on the chunks.
    """

    def __init__(
        self,
        model: LocalModel,
        asked: ProblemSet,
        answers: Answers | None = None,
        *,
        at_once: int = 0,
        purpose: str = "eval",
    ) -> None:
        super().__init__(asked, model.policy.name, model.adapter)
        self.model, self.answers, self.purpose = model, answers, purpose
        batches = CHUNK * model.policy.hosts.size
        self.at_once = at_once or max(1, asked.spec.batch * batches // asked.spec.samples)
        self.size = self.at_once * asked.spec.samples
        self.prompts = [model.policy.encode(prompt) for prompt in asked.prompts]

    def setup(self) -> dict[str, Any]:
        quantize = {"quantize": self.model.quantize} if self.model.quantize else {}
        return {**quantize, "token_hash": short_hash(self.prompts)}

    def chunks(self, first: int, out: Path, bar: Bar) -> Chunks[list[Row]]:
        with self.model.weights():
            for start in range(first // self.asked.spec.samples, len(self.prompts), self.at_once):
                yield self.answer(start, start + self.at_once, bar)

    def answer(self, start: int, stop: int, bar: Bar) -> list[Row]:
        """Returns the rows of some problems, all samples of each in turn."""
        problems, samples = self.asked.problems[start:stop], self.asked.spec.samples
        pairs = [(problem, index) for problem in problems for index in range(samples)]
        completions = self.complete(start, stop, bar)
        return [
            to_row(self.asked.grade(problem, index, c.text, c.token_ids, c.finish_reason))
            for (problem, index), c in zip(pairs, completions, strict=True)
        ]

    def complete(self, start: int, stop: int, bar: Bar) -> list[Completion]:
        policy, spec, prompts = self.model.policy, self.asked.spec, self.prompts[start:stop]
        seed, key, kept = (self.purpose, spec.seed), "", None
        first = start * spec.samples
        if self.answers:
            keys = ("temperature", "top_p", "max_new_tokens", "batch", "samples")
            decoding = [getattr(spec, key) for key in keys]
            decoding += [how] if (how := spec.changed()) else []
            fits = policy.fitting(spec.batch, prompts, spec.max_new_tokens)
            decoding += [fits] if fits < spec.batch else []
            parts = [2, [self.identity, decoding, spec.stop, [*seed, first], prompts]]
            key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
            kept = self.answers.get(key, len(prompts) * spec.samples)
        if kept:
            bar.advance(len(kept))
            asked = [prompt for prompt in prompts for _ in range(spec.samples)]
            return [
                policy.completion(ids, reason, prompt, spec.stop)
                for (ids, reason), prompt in zip(kept, asked, strict=True)
            ]
        completions = policy.generate(
            prompts,
            temperature=spec.temperature,
            top_p=spec.top_p,
            max_new_tokens=spec.max_new_tokens,
            batch=spec.batch,
            seed=seed,
            first=first,
            samples=spec.samples,
            stop=spec.stop,
            sampling=spec,
            advance=bar.advance,
        )
        if self.answers:
            self.answers.put(key, completions)
        return completions

    @cached_property
    def identity(self) -> str:
        return policy_identity(self.model.policy)

    def finish(self, out: Path) -> dict[str, Any]:
        self.notes += self.answers.report() if self.answers else []
        return {}


# ---- chains --------------------------------------------------------------------------------------

MANY = 0.5  # a larger share of a chunk's critic calls failed: then no chain has shown anything


class ChainGenerator(Generator):
    """Answers each problem by a chain of answers, as the spec's `[chain]` says.

    chains.jsonl holds every turn of every chain, an episode a line with the index of its answer's
    turn. samples.jsonl follows from it: a problem's one graded sample is what its chain answers,
    and `tokens` is what the policy generated for the whole chain. So `compare` pairs chains as it
    does answers. critic: whoever looks at answers, in place of the one that the spec names. Raises
    UserError for keys that contradict each other, and where the critic cannot be asked.
    """

    file = "chains.jsonl"

    def __init__(self, model: LocalModel, asked: ProblemSet, critic: Critic | None = None) -> None:
        check_chain(asked.spec)
        super().__init__(asked, model.policy.name, model.adapter)
        self.model, self.critic, self.size = model, critic, asked.spec.batch * CHUNK

    def setup(self) -> dict[str, Any]:
        return LocalGenerator(self.model, self.asked).setup()

    def chunks(self, first: int, out: Path, bar: Bar) -> Chunks[list[Row]]:
        asked, policy = self.asked, self.model.policy
        with self.model.weights(), ExitStack() as stack:
            ledger = Ledger(out / "critic.jsonl")
            critic = self.critic or open_critic(policy, asked.spec, asked.task.name, ledger, stack)
            rounds = Rounds(policy, asked.task, asked.spec, asked.grader, critic)
            for start in range(first, self.total, self.size):
                problems = asked.problems[start : start + self.size]
                chains = rounds.play(problems, (asked.spec.seed, start), bar.update_text)
                check_failures(chains, out)
                yield [chain_row(chain, asked.spec.chain, start) for chain in chains]
                bar.advance(len(chains))

    def finish(self, out: Path) -> dict[str, Any]:
        config, lines = self.asked.spec.chain, []
        rows = unique_rows(out / self.file)
        chains = [chain_of(episode_from_row(row), row["stopped"]) for row in rows]
        for chain in chains:
            turn, tokens = answer_of(chain, config), generated([chain])
            ids, reason = turn.token_ids or [], turn.finish_reason or ""
            sample = self.asked.grade(chain.problem, 0, turn.text, ids, reason, tokens)
            lines.append(dump_line(to_row(sample)))
        write_atomic(out / LocalGenerator.file, "".join(lines))
        return {"chain": figures(chains, config)}


def check_failures(chains: Sequence[Chain], out: Path) -> None:
    calls = [turn for chain in chains for turn in chain.turns if turn.verdict is None]
    failed = [turn.error for turn in calls if turn.error is not None]
    if len(failed) > MANY * len(calls):
        raise UserError(
            f"{len(failed)} of {len(calls)} critic calls failed; the last: {failed[-1]}",
            f"see that the critic answers, then give the same command again; what was done is in "
            f"{out}",
        )


# ---- a server ------------------------------------------------------------------------------------

LEAST_WINDOW = 4096  # tokens of Ollama's num_ctx
REPLIES = "replies.sqlite"
OPTIONS = {  # as a critic's messages name them → as `eval` does
    "critic.base_url (or OLLAMA_HOST)": "--server", "critic.base_url": "--server",
    "critic.key_env": "--server-key-env", "critic.model": "--server-model",
    "critic.max_tokens": "max_new_tokens", "critic.num_ctx": "the server's context",
}  # fmt: skip
# What a server may refuse and decides its answers.
CHANGING = {"temperature", "top_p", "seed", *Sampling.model_fields}


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
    keep_failed: bool = False


class ServerGenerator(Generator):
    """Answers with a model behind a server: OpenAI's chat completions, or Ollama.

    It goes over the critics' clients: retries, deadlines, `Retry-After`, keys that reach no file.
    There are no token ids, and as many tokens as the server counts. Each reply is on disk
    (replies.sqlite in the arm's folder) before the next one is waited for, so only calls that a
    kill interrupts are made again. Raises UserError for a server that cannot be used.
    """

    def __init__(self, model: ServedModel, asked: ProblemSet) -> None:
        super().__init__(asked, model.name)
        self.model = model
        with reworded(OPTIONS):
            self.config = client_config(model, asked.spec, asked.prompts)
            self.address = shown_address(self.config)
        self.refused: list[str] = []

    def setup(self) -> dict[str, Any]:
        return {"server": self.address, "provider": self.config.provider}

    def chunks(self, first: int, out: Path, bar: Bar) -> Chunks[list[Row]]:
        from mlxreflect.critics import REMOTE
        from mlxreflect.critics.client import Client

        asked, samples = self.asked, self.asked.spec.samples
        pairs = [(i, j) for i in range(len(asked.problems)) for j in range(samples)][first:]
        config = self.config.model_copy(update={"cache": str(out / REPLIES)})
        with (
            reworded(OPTIONS),
            closing(Client(config, "eval", REMOTE[config.provider](config))) as server,
        ):
            server.preflight()
            calls = [
                attempt_call(asked.problems[i], j, asked.prompts[i], asked.spec) for i, j in pairs
            ]
            with closing(in_order(server, calls, self.model.concurrency)) as replies:
                for (i, j), reply in zip(pairs, replies, strict=True):
                    problem = asked.problems[i]
                    if reply.error is not None and not self.model.keep_failed:
                        raise UserError(
                            f"no answer to problem {problem.id} in {reply.tries} tries: "
                            f"{reply.error}",
                            f"what was answered is kept in {out}: mend the server and give the "
                            "same command again, or add --keep-failed to count such a call as a "
                            "wrong answer",
                        )
                    yield [self.row(problem, j, reply)]
                    bar.advance(1)
            self.refused = sorted(CHANGING & server.refused)

    def row(self, problem: Problem, index: int, reply: Reply) -> Row:
        text = cut_at(reply.text, self.asked.spec.stop)
        reason = (reply.finish_reason or "stop") if text == reply.text else "stop"
        reason = FAILED if reply.error is not None else reason
        tokens = reply.usage.get("completion")
        return to_row(self.asked.grade(problem, index, text, [], reason, tokens))

    def finish(self, out: Path) -> dict[str, Any]:
        for left in out.glob(f"{REPLIES}*"):
            left.unlink()
        if not self.refused:
            return {}
        refused = ", ".join(self.refused)
        self.notes.append(f"{self.address} does not take {refused}: it answered without")
        return {"refused": self.refused}


def client_config(
    model: ServedModel, spec: EvalSpec, prompts: Sequence[Messages | str]
) -> CriticConfig:
    """Returns a client's configuration. Ollama's own interface takes a context, its /v1 none."""
    from mlxreflect.critics.ollama import is_ollama, root_of

    if not model.url.strip():
        raise UserError("--server is empty", "give an address such as http://127.0.0.1:1234/v1")
    ollama = is_ollama(model.url)
    # A token for two bytes is more than texts have; a power of two, so that a few problems more do
    # not make Ollama load the model again.
    longest = max(len(json.dumps(p, ensure_ascii=False).encode("utf-8", "replace"))
                  for p in prompts)  # fmt: skip
    window = LEAST_WINDOW
    while window < longest // 2 + spec.max_new_tokens:
        window *= 2
    return CriticConfig(
        provider="ollama" if ollama else "openai",
        model=model.name,
        base_url=root_of(model.url) if ollama else model.url,
        key_env="" if ollama else model.key_env,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_tokens=spec.max_new_tokens,
        num_ctx=window,
        concurrency=model.concurrency,
        **spec.changed(),  # type: ignore[arg-type]
    )


def shown_address(config: CriticConfig) -> str:
    """Returns the server's address as it is recorded: without a password."""
    from mlxreflect.critics.ollama import without_password
    from mlxreflect.critics.openai import parse_base

    if config.provider == "ollama":
        return without_password(config.base_url)[0]
    return re.sub(r"//[^/]*@", "//", str(parse_base(config.base_url)))


def attempt_call(problem: Problem, index: int, prompt: Messages | str, spec: EvalSpec) -> Call:
    return Call(
        role="attempt",
        problem=problem,
        messages=[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        text="",
        attempt=str(index),
        seed=seed_for("eval", spec.seed, problem.id, index),
        stop=tuple(spec.stop),
        raw=isinstance(prompt, str),
    )


def in_order(server: "Client", calls: Sequence[Call], concurrency: int) -> Chunks[Reply]:
    """Yields the replies in the order of the calls, as they come; `concurrency` are out at once."""
    # Not concurrent.futures: its threads would keep an interrupted process alive.
    pool = ThreadPool(concurrency)
    try:
        yield from pool.imap(lambda call: server.ask([call])[0], calls)
    finally:
        pool.terminate()
