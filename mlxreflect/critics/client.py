"""The client every remote critic shares: threads, deadline, retries, cache and budget round `send`.

A provider writes one function, `send(call, timeout) -> Reply`, which raises CallError for whatever
went wrong. What `Client.ask` returns is in the order of the calls and does not depend on which
reply came first.
"""

import json
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import AsyncResult, ThreadPool

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
from mlxreflect.critics.base import Call, Cost, Reply
from mlxreflect.critics.cache import cache_key, open_cache
from mlxreflect.critics.http import CallError
from mlxreflect.critics.ledger import Ledger

RETRIES = 5  # of 30 % failing requests one call in 1400 is lost; half a minute covers a restart
BACKOFF_S = 1.0
BACKOFF_MAX_S = 60.0
# No text of max_tokens tokens is longer (four characters a token are usual); a text that is would
# fill the next prompts with rubbish.
TEXT_CHARS, CHARS_A_TOKEN = 20_000, 16

Send = Callable[[Call, float], Reply]


@dataclass
class Pace:
    """How a call goes. deadline: on the monotonic clock; given_up: nobody waits for it any more.

    empty: replies without a word so far.
    """

    deadline: float
    given_up: threading.Event
    tries: int = 0
    empty: int = 0


class Client:
    """Asks calls side by side, at most `concurrency` at once. A failure is a Reply with an error.

    ledger: of the run; counts every request and keeps the budget. None: one of its own.
    backoff_s: the first pause before a retry; it doubles, with as much jitter again.
    Raises UserError for a cache that cannot be used, a reply missing in a replay and a budget that
    is reached, and for nothing else.
    """

    def __init__(
        self,
        config: CriticConfig,
        run_id: str,
        send: Send,
        ledger: Ledger | None = None,
        *,
        backoff_s: float | None = None,
    ) -> None:
        self.config, self.send, self.ledger = config, send, ledger or Ledger()
        self.actor = f"{config.provider}:{config.model}"
        backoff_s = BACKOFF_S if backoff_s is None else backoff_s
        self.backoff = wait_exponential(multiplier=backoff_s, max=BACKOFF_MAX_S)
        self.jitter = wait_random(0, backoff_s)
        self.cache = open_cache(config, run_id)
        # Not concurrent.futures: its threads are joined at exit, so a stalled server would keep
        # an interrupted process alive. These are daemons.
        self.pool = ThreadPool(config.concurrency)
        self.out: dict[str, AsyncResult[Reply]] = {}  # calls under way, by their keys
        self.asking: set[threading.Event] = set()  # set, once nobody waits
        self.lock = threading.Lock()

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        """One reply a call, in the order of the calls; from any thread. Equal calls are sent once.

        A call's deadline begins when a worker takes it up, so a long wave does not time out by its
        own length; what queues inside the server counts.
        """
        given_up = threading.Event()
        self.asking.add(given_up)
        try:
            found = [self.find(call, given_up) for call in calls]
            return [one if isinstance(one, Reply) else one.get() for one in found]
        finally:
            given_up.set()  # after Ctrl-C, what still queues or backs off is not sent
            self.asking.discard(given_up)

    def close(self) -> None:
        """Abandon what is still out, also of other threads. Does not wait for a server."""
        for given_up in list(self.asking):
            given_up.set()
        self.pool.terminate()
        if self.cache:
            self.cache.close()

    def find(self, call: Call, given_up: threading.Event) -> "Reply | AsyncResult[Reply]":
        """The reply on disk, or the job that fetches it: one that is under way, or a new one."""
        key = cache_key(self.config, call)
        with self.lock:
            if key in self.out:
                return self.out[key]
            if self.cache and (hit := self.cache.get(key)):
                if hit.cached:
                    return replace(hit, tries=0, seconds=0.0)
                return replace(hit, cost=self.cost(call, hit.usage))
            if self.config.replay:
                raise self.missing(call)
            job = self.out[key] = self.pool.apply_async(self.answer, (key, call, given_up))
            return job

    def missing(self, call: Call) -> UserError:
        run = shlex.quote(str(self.ledger.path.parent)) if self.ledger.path else "RUN"
        return UserError(
            f"critic.replay: no reply on disk for problem {call.problem.id}, {call.role}, epoch "
            f"{call.epoch}, attempt {call.attempt} ({self.actor})",
            f"ask for what is missing: mlxreflect resume {run} --set critic.replay=false; or begin "
            "a run with the recipe and the critic.cache that the replies were made with",
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
            return failed(self.late() if late else error, pace.tries)
        finally:
            with self.lock:
                self.out.pop(key, None)

    def attempt(self, key: str, call: Call, pace: Pace) -> Reply:
        """One request, with its line in the ledger whatever comes of it."""
        begun = time.monotonic()
        if begun >= pace.deadline or pace.given_up.is_set():
            raise self.late()
        most = self.cost(call, {})
        number = self.ledger.reserve(call, self.actor, pace.tries + 1, most, pace.given_up)
        if number is None:
            raise self.late()
        sent = time.monotonic()
        pace.deadline += sent - begun  # waiting for the budget takes no time from the server
        pace.tries += 1
        kind, cost = "broken", most  # as a bug in `send` leaves it
        try:
            # Of the same seed, a server that is exact would say nothing once more.
            asked = replace(call, seed=call.seed + pace.empty)
            reply = self.checked(self.send(asked, pace.deadline - sent), call)
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

    def checked(self, reply: Reply, call: Call) -> Reply:
        """Raises CallError for a text that is none, or more than was asked for.

        An attempt may be without a word: then that is the answer.
        """
        if not reply.text.strip() and call.role != "attempt":
            said = f"empty reply (finish reason {reply.finish_reason})"
            raise CallError("empty", said, retry=True, usage=reply.usage)
        size = max(TEXT_CHARS, CHARS_A_TOKEN * self.config.max_tokens)
        if len(reply.text) > size:
            said = f"a text of {len(reply.text)} characters for critic.max_tokens = "
            raise CallError("too_large", f"{said}{self.config.max_tokens}", usage=reply.usage)
        return reply

    def cost(self, call: Call, usage: dict[str, int]) -> Cost:
        """What a request took. What the server did not report counts as the most it can be.

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
        prompt, completion = max(0, prompt), max(0, completion)
        dollars = prompt * self.config.price_in + completion * self.config.price_out
        return Cost(prompt, completion, round(dollars / 1e6, 9), estimated)

    def retrying(self, pace: Pace) -> Retrying:
        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, CallError) else None
            return max(self.backoff(state) + self.jitter(state), asked or 0.0)

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

    def late(self) -> CallError:
        return CallError("timeout", f"no reply within {self.config.deadline_s:g} s")


def failed(error: CallError, tries: int) -> Reply:
    return Reply("", error=str(error), kind=error.kind, tries=tries)
