"""The frame of every remote critic: threads, deadlines, retries, cache and budget round a provider.

A provider is a small object that knows one kind of server: how to put a request, how to read a
reply and what to look at before a run. Everything else stands here. What `Client.ask` returns is in
the order of the calls and does not depend on which reply came first.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Protocol

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    wait_exponential,
    wait_random,
)

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.critics.base import Call, Cost, Critic, Reply
from mlxreflect.critics.http import (
    PREFLIGHT_S,
    CallError,
    Wire,
    encodable,
    no_words,
    strip_thought,
)
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.post import Dispatcher, servers
from mlxreflect.critics.replies import cache_key, open_replies

RETRIES = 5  # of 30 % failing requests one call in 1400 is lost; half a minute covers a restart
BACKOFF_S = 1.0  # the first pause before a retry; it doubles, with as much jitter again
BACKOFF_MAX_S = 60.0
# No text of max_tokens tokens is longer (four characters a token are usual); a text that is would
# fill the next prompts with rubbish.
TEXT_CHARS, CHARS_A_TOKEN = 20_000, 16
# Reasons to finish that an empty reply will have again.
FINAL = ("length", "content_filter", "content_filtered", "guardrail_intervened")
SEED_BITS = 0x7FFFFFFF  # some servers, Ollama among them, keep the seed in 32 bits, signed


class Provider(Protocol):
    """One kind of server.

    wire: of its server. own: it is known to generate replies itself, which costs nothing; set by
    `preflight`. silent, start: what a person reads where no server answers, and what mends
    it; `silent` is followed by the address.
    """

    wire: Wire
    own: bool
    silent: str
    start: str

    def preflight(self) -> None:
        """Look for the server and the model, and generate nothing.

        Raises UserError for what a person can mend, CallError where the server does not answer.
        """

    def send(self, call: Call, refused: frozenset[str]) -> Reply:
        """Return the text as the server wrote it, with a thought that belongs to it.

        call: with messages and a seed that can be sent.
        refused: parameters to leave out, because the server does not take them. Raises CallError,
        with `blame` where the server names a parameter; whatever a parser raises of a strange reply
        becomes one.
        """

    def close(self) -> None: ...


@dataclass
class Pace:
    """The course of one call. deadline: on the monotonic clock; given_up: nobody waits for it now.

    empty: replies without a word so far.
    """

    deadline: float
    given_up: threading.Event
    tries: int = 0
    empty: int = 0


class Client(Critic):
    """A critic behind a server. Asks calls side by side, at most `concurrency` at once.

    A failure is a Reply with an error. ledger: of the run; counts every request and keeps the
    budget; None: one of its own. refused: the parameters that the server was seen not to take.
    hosts: which make the requests, each to the server that the same settings mean there; all else
    is done here, by rank 0.
    Raises UserError for a cache that cannot be used, a reply missing in a replay and a budget that
    is reached, and for nothing else.
    """

    waits = True

    def __init__(
        self,
        config: CriticConfig,
        run_id: str,
        provider: Provider,
        ledger: Ledger | None = None,
        hosts: Hosts = ALONE,
    ) -> None:
        self.config, self.provider, self.ledger = config, provider, ledger or Ledger()
        self.run_id, self.hosts = run_id, ALONE if config.replay else hosts
        self.servers = servers(provider.wire.shown, self.hosts)
        self.dispatcher: Dispatcher | None = None  # once the hosts are known to reach a server
        self.actor = f"{config.provider}:{config.model}"
        self.refused: frozenset[str] = frozenset()
        self.cache = open_replies(config, run_id)
        # Not concurrent.futures: its threads are joined at exit, so a stalled server would keep
        # an interrupted process alive. These are daemons.
        self.pool = ThreadPool(config.concurrency * self.servers)
        self.out: dict[str, AsyncResult[Reply]] = {}  # calls under way, by their keys
        self.asking: set[threading.Event] = set()  # set, once nobody waits
        self.lock = threading.Lock()

    def preflight(self) -> None:
        """Raises UserError where the server or the model is not there, on any of the hosts.

        A replay asks nobody.
        """
        if self.config.replay:
            return
        wire = self.provider.wire
        try:
            with wire.within(PREFLIGHT_S):
                self.provider.preflight()
        except CallError as error:
            why = "" if error.kind == "connect" else f" ({error})"
            raise UserError(
                f"{self.provider.silent} at {wire.shown}{why}", self.provider.start
            ) from None
        if not self.hosts.alone:
            post = self.hosts.post = self.hosts.post or Dispatcher(self.hosts)
            assert isinstance(post, Dispatcher)
            post.open(self)
            self.dispatcher = post

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        """Returns a reply a call, in their order; from any thread. Equal calls are sent once.

        A call's deadline begins when a worker takes it up, so a long wave does not time out by its
        own length; what queues inside the server counts.
        """
        given_up = threading.Event()
        self.asking.add(given_up)
        try:
            found = [self.find(call, given_up) for call in calls]
            replies = []
            for one in found:
                replies.append(one if isinstance(one, Reply) else self.wait_for(one))
                self.answered(1)
            return replies
        finally:
            given_up.set()  # after Ctrl-C, what still queues or backs off is not sent
            self.asking.discard(given_up)

    def wait_for(self, one: "AsyncResult[Reply]") -> Reply:
        """Returns a reply when it is there; in the main thread the post goes meanwhile."""
        if self.dispatcher and threading.current_thread() is threading.main_thread():
            self.hosts.wait(one.ready)
        return one.get()

    def close(self) -> None:
        """Abandon what is still out, also of other threads. Does not wait for a server."""
        for given_up in list(self.asking):
            given_up.set()
        self.pool.terminate()
        if self.cache:
            self.cache.close()
        self.provider.close()

    def find(self, call: Call, given_up: threading.Event) -> "Reply | AsyncResult[Reply]":
        """Returns the reply on disk, or the job that fetches it: one under way, or a new one."""
        key = cache_key(self.config, call)
        with self.lock:
            if key in self.out:
                return self.out[key]
            if self.cache and (hit := self.cache.get(key)):
                if hit.cached:
                    return replace(hit, tries=0, seconds=0.0)
                return replace(hit, cost=self.cost(call, hit.usage))
            if not self.config.replay:
                job = self.out[key] = self.pool.apply_async(self.answer, (key, call, given_up))
                return job
        raise UserError(
            f"critic.replay: no reply on disk for problem {call.problem.id}, {call.role}, epoch "
            f"{call.epoch}, attempt {call.attempt} ({self.actor})",
            f"ask for what is missing: mlxreflect resume {self.ledger.run} --set "
            "critic.replay=false; or begin a run with the recipe and the critic.cache that the "
            "replies were made with",
        )

    # ---- in a worker thread ---------------------------------------------------------------------

    def answer(self, key: str, call: Call, given_up: threading.Event) -> Reply:
        """Send until it works; the reply is kept before anyone sees it."""
        pace = Pace(time.monotonic() + self.config.deadline_s, given_up)
        try:
            return self.retrying(pace)(self.attempt, key, call, pace)
        except CallError as error:
            # A timeout reads the same whichever thread noticed it first.
            late = time.monotonic() >= pace.deadline
            return failed_reply(self.timeout() if late else error, pace.tries)
        finally:
            with self.lock:
                self.out.pop(key, None)

    def attempt(self, key: str, call: Call, pace: Pace) -> Reply:
        """Makes one request, with its line in the ledger whatever comes of it."""
        begun = time.monotonic()
        if begun >= pace.deadline or pace.given_up.is_set():
            raise self.timeout()
        most = self.cost(call, {})
        number = self.ledger.reserve(call, self.actor, pace.tries + 1, most, pace.given_up)
        if number is None:
            raise self.timeout()
        sent = time.monotonic()
        pace.deadline += sent - begun  # waiting for the budget takes no time from the server
        pace.tries += 1
        kind, cost = "broken", most  # as a bug in `send` leaves it
        try:
            # Of the same seed, a server that is exact would say nothing once more.
            seed = (call.seed + pace.empty) & SEED_BITS
            asked = replace(call, seed=seed, messages=encodable(call.messages))
            reply = self.request(key, asked, pace)
            kind, cost = "ok", self.cost(call, reply.usage)
            seconds = round(time.monotonic() - sent, 3)
            reply = replace(reply, tries=pace.tries, seconds=seconds)
            kept = self.cache.put(key, reply) if self.cache else reply
            return replace(kept, cost=Cost() if kept.cached else cost)
        except CallError as error:
            kind, cost = error.kind, self.cost(call, error.usage or {})
            pace.empty += kind == "empty"
            raise
        finally:
            self.ledger.settle(number, kind, time.monotonic() - sent, cost)

    def request(self, key: str, call: Call, pace: Pace) -> Reply:
        """Makes a request, or has another host make it."""
        if self.dispatcher:
            return self.dispatcher.request(self, key, call, pace)
        return self.request_here(call, pace.deadline - time.monotonic())

    def request_here(self, call: Call, seconds: float) -> Reply:
        """Returns a reply that can be used. Raises CallError."""
        return self.check(self.send(call, seconds), call)

    def send(self, call: Call, seconds: float) -> Reply:
        """Returns one reply of the server, without its secrets and the critic's own thought.

        A parameter that the server refuses is left out, and from then on once that has helped.
        """
        refused, wire = self.refused, self.provider.wire
        with wire.within(seconds):
            while True:
                try:
                    reply = self.provider.send(call, refused)
                    break
                except CallError as error:
                    if error.blame is None or error.blame in refused:
                        raise
                    refused |= {error.blame}
        self.refused |= refused
        reason = reply.finish_reason
        return replace(
            reply,
            text=strip_thought(wire.clean(reply.text), call, reason == "length"),
            finish_reason=wire.clean(reason) if isinstance(reason, str) else None,
        )

    def check(self, reply: Reply, call: Call) -> Reply:
        """Raises CallError for a text that is none, or more than was asked for.

        An attempt may be without a word: then that is the answer.
        """
        if not reply.text.strip() and call.role != "attempt":
            said = no_words(self.config.max_tokens, reply.finish_reason)
            again = reply.finish_reason not in FINAL
            raise CallError("empty", said, retry=again, usage=reply.usage)
        most, size = self.config.max_tokens, len(reply.text)
        if size > max(TEXT_CHARS, CHARS_A_TOKEN * most):
            said = f"a text of {size} characters for critic.max_tokens = {most}"
            raise CallError("too_large", said, usage=reply.usage)
        return reply

    def cost(self, call: Call, usage: dict[str, int]) -> Cost:
        """Returns what a request took. A count that the server left out is the most it can be.

        That is a token for each UTF-8 byte of the prompt (and of a schema, which may be shown to
        the model) with some for the chat template, and max_tokens for the reply.
        """
        prompt, completion = usage.get("prompt"), usage.get("completion")
        if estimated := prompt is None or completion is None:
            text = "".join(message["content"] for message in call.messages)
            text += json.dumps(call.schema) if call.schema else ""
            most = len(text.encode("utf-8", "replace")) + 16 * len(call.messages) + 32
            prompt = most if prompt is None else prompt
            completion = self.config.max_tokens if completion is None else completion
        dollars = prompt * self.config.price_in + completion * self.config.price_out
        return Cost(prompt, completion, round(dollars / 1e6, 9), estimated)

    def retrying(self, pace: Pace) -> Retrying:
        backoff = wait_exponential(multiplier=BACKOFF_S, max=BACKOFF_MAX_S)
        jitter = wait_random(0, BACKOFF_S)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, CallError) else None
            return max(backoff(state) + jitter(state), asked or 0.0)

        def enough(state: RetryCallState) -> bool:
            late = time.monotonic() + state.upcoming_sleep >= pace.deadline
            return state.attempt_number > RETRIES or late or pace.given_up.is_set()

        return Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, CallError) and error.retry),
            stop=enough,
            wait=pause,
            sleep=sleep_using_event(pace.given_up),
            reraise=True,
        )

    def timeout(self) -> CallError:
        return CallError("timeout", f"no reply within {self.config.deadline_s:g} s")


def failed_reply(error: CallError, tries: int) -> Reply:
    return Reply("", error=str(error), kind=error.kind, tries=tries)
