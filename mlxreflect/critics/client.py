"""The client every remote critic shares: threads, deadline, retries and the cache around `send`.

A provider writes one function, `send(call, timeout) -> Reply`, which raises CallError for whatever
went wrong. What `Client.ask` returns is in the order of the calls and does not depend on which
reply came first.
"""

import email.utils
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    wait_exponential,
    wait_random,
)

from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.cache import cache_key, open_cache
from mlxreflect.recipe import CriticConfig

RETRIES = 3
RETRIED = {408, 409, 429}  # and 5xx: the statuses that may be gone a moment later
BACKOFF_MAX_S = 60.0
REPLY_BYTES = 32 * 2**20  # a longer body is no critique


class CallError(Exception):
    """Why a call gave no usable text.

    kind: one word, as Reply records it: connect, timeout, reset (broke inside the reply), http_NNN,
        empty, invalid (not in the provider's format), too_large, truncated_prompt.
    retry: the same call may succeed a moment later.
    retry_after: seconds the server asked us to wait.
    """

    def __init__(
        self, kind: str, message: str, *, retry: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry = retry
        self.retry_after = retry_after


Send = Callable[[Call, float], Reply]


class Client:
    """Asks calls side by side, at most `concurrency` at once. A failure is a Reply with an error.

    backoff_s: the first pause before a retry; it doubles, with as much jitter again.
    Raises UserError for a cache that cannot be used, and for nothing else.
    """

    def __init__(
        self, config: CriticConfig, run_id: str, send: Send, *, backoff_s: float = 1.0
    ) -> None:
        self.config, self.send = config, send
        self.backoff = wait_exponential(multiplier=backoff_s, max=BACKOFF_MAX_S)
        self.jitter = wait_random(0, backoff_s)
        self.cache = open_cache(config, run_id)
        # Not concurrent.futures: its threads are joined at exit, so a stalled server would keep
        # an interrupted process alive. These are daemons.
        self.pool = ThreadPool(config.concurrency)

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        """One reply a call, in the order of the calls. Equal calls are sent once.

        A call's deadline begins when a worker takes it up, so a long wave does not time out by its
        own length; what queues inside the server counts.
        """
        keys = [cache_key(self.config, call) for call in calls]
        known = {key: hit for key in keys if self.cache and (hit := self.cache.get(key))}
        given_up = threading.Event()
        jobs: dict[str, AsyncResult[Reply]] = {}
        try:
            for key, call in zip(keys, calls, strict=True):
                if key not in known and key not in jobs:
                    job = (key, call, given_up)
                    jobs[key] = self.pool.apply_async(self.answer, job)
            return [known.get(key) or jobs[key].get() for key in keys]
        finally:
            given_up.set()  # after Ctrl-C, what still queues or backs off is not sent

    def close(self) -> None:
        """Abandon what is still out. Does not wait for a server."""
        self.pool.terminate()
        if self.cache:
            self.cache.close()

    def answer(self, key: str, call: Call, given_up: threading.Event) -> Reply:
        """In a worker thread: send until it works, and keep the reply before anyone sees it."""
        deadline = time.monotonic() + self.config.deadline_s
        try:
            reply = self.retrying(deadline, given_up)(self.attempt, call, deadline, given_up)
        except CallError as error:
            # A timeout reads the same whichever thread noticed it first.
            return failed(self.late() if time.monotonic() >= deadline else error)
        return self.cache.put(key, reply) if self.cache else reply

    def attempt(self, call: Call, deadline: float, given_up: threading.Event) -> Reply:
        left = deadline - time.monotonic()
        if left <= 0 or given_up.is_set():
            raise self.late()
        reply = self.send(call, left)
        if not reply.text.strip():
            raise CallError("empty", f"empty reply (finish reason {reply.finish_reason})")
        return reply

    def retrying(self, deadline: float, given_up: threading.Event) -> Retrying:
        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, CallError) else None
            return max(self.backoff(state) + self.jitter(state), asked or 0.0)

        def enough(state: RetryCallState) -> bool:
            late = time.monotonic() + state.upcoming_sleep >= deadline
            return state.attempt_number > RETRIES or late or given_up.is_set()

        return Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, CallError) and error.retry),
            stop=enough,
            wait=pause,
            sleep=sleep_using_event(given_up),
            reraise=True,
        )

    def late(self) -> CallError:
        return CallError("timeout", f"no reply within {self.config.deadline_s:g} s")


def failed(error: CallError) -> Reply:
    return Reply("", error=str(error), kind=error.kind)


def http_error(response: httpx.Response) -> CallError:
    """A refused request; `response` has been read. Its own words are cut to one short line."""
    status = response.status_code
    try:
        said = json.loads(response.content)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        said = response.text
    words = " ".join(str(said).split())[:200]
    return CallError(
        f"http_{status}",
        f"HTTP {status}: {words}" if words else f"HTTP {status}",
        retry=status in RETRIED or status >= 500,
        retry_after=retry_after(response.headers.get("retry-after", "")),
    )


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date; None for neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


class Body(httpx.SyncByteStream):
    """A response's body with an end: in time (a server may drip), in size, and by a typed error."""

    def __init__(self, stream: httpx.SyncByteStream, deadline: float) -> None:
        self.stream, self.deadline = stream, deadline

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in self.stream:
                size += len(chunk)
                if size > REPLY_BYTES:
                    raise CallError("too_large", f"a reply of more than {REPLY_BYTES} bytes")
                if time.monotonic() > self.deadline:
                    raise httpx.ReadTimeout("the deadline passed while the reply came in")
                yield chunk
        except httpx.TimeoutException:
            raise
        except httpx.TransportError as error:
            # Not asked again: the model has done its work, and may do it as badly once more.
            raise CallError("reset", f"the connection broke inside the reply ({error})") from None

    def close(self) -> None:
        self.stream.close()
