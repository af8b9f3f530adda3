"""HTTP as every remote critic uses it: requests end in time and in size, errors hold no key.

Whatever goes wrong with a request is a CallError. Below that stands what all providers do to text:
make it fit to send, and leave out the critic's own thought before it.
"""

import base64
import email.utils
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any

import httpx

from mlxreflect.core.records import Messages
from mlxreflect.critics.base import Call
from mlxreflect.prompts.parsing import TAGS

RETRIED = {408, 409, 429}  # and 5xx: the statuses that may be gone a moment later
REPLY_BYTES = 32 * 2**20  # a longer body is no critique
SECRET_CHARS = 4  # what is shorter stands in any text, and is no secret
SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "x-amz-security-token")
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # of a parser
NOTHING = {"prompt": 0, "completion": 0}  # usage of a request that no model worked on


@dataclass(eq=False)
class CallError(Exception):
    """A call gave no usable text.

    kind: one word, as Reply records it: connect, timeout, reset (broke before the reply's end),
        http_NNN, empty, invalid (not in the provider's format), too_large, truncated_prompt.
    retry: the same call may succeed a moment later.
    retry_after: seconds the server asked us to wait.
    usage: what the request took, where that is known: as Reply.usage.
    blame: the parameter of the request that the server does not take; without it, it may answer.
    """

    kind: str
    message: str
    _: KW_ONLY
    retry: bool = False
    retry_after: float | None = None
    usage: dict[str, int] | None = None
    blame: str | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)
        refused = self.kind == "connect" or self.kind.startswith("http_")
        if self.usage is None and refused:
            self.usage = NOTHING


# ---- no reply ------------------------------------------------------------------------------------


@contextmanager
def typed(shown: str) -> Iterator[None]:
    """Turns what httpx and a parser raise into CallError. shown: the address, without password."""
    try:
        yield
    except httpx.ConnectTimeout:
        said = f"no connection to {shown} in time"
        raise CallError("timeout", said, retry=True, usage=NOTHING) from None
    except httpx.TimeoutException:
        raise CallError("timeout", f"no reply from {shown} in time", retry=True) from None
    except (httpx.ConnectError, ConnectionError):  # ollama makes the second of refusals
        raise CallError("connect", f"cannot reach {shown}", retry=True) from None
    except httpx.TransportError:  # it was sent, so a model may have worked on it
        raise CallError("reset", f"{shown} hung up without a reply", retry=True) from None
    except (httpx.RequestError, *UNREADABLE) as error:
        # Compressed in a way it is not, endless redirects; not JSON, not the fields of a reply.
        raise invalid_reply(error) from None


class Body(httpx.SyncByteStream):
    """A response's body that ends in time (a server may drip), in size, and by a typed error."""

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
            said = f"the connection broke inside the reply ({error})"
            raise CallError("reset", said, retry=True) from None

    def close(self) -> None:
        self.stream.close()


def invalid_reply(error: Exception) -> CallError:
    """Returns the error of a reply in no known format, as servers send while they start or stop."""
    return CallError(
        "invalid", f"not a reply in the provider's format ({type(error).__name__})", retry=True
    )


# ---- refused -------------------------------------------------------------------------------------


def words(said: Any) -> str:
    """Returns the server's words: {"error": {"message": …}}, {"detail": …} or plain text."""
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(key):
            said = said[key]
    try:
        return said if isinstance(said, str) else json.dumps(said)
    except RecursionError:  # nested just so deep that reading it went well
        return ""


def secrets_of(request: httpx.Request) -> set[str]:
    """Returns what must not be repeated of a request: some servers repeat the key they refuse."""
    found = [request.url.password, request.url.userinfo.decode("ascii", "replace")]
    for name in SECRET_HEADERS:
        value = request.headers.get(name, "")
        scheme, _, token = value.partition(" ")
        found += [value, token]
        if scheme.lower() == "basic":
            with suppress(ValueError):
                plain = base64.b64decode(token).decode("utf-8", "replace")
                found += [plain, plain.partition(":")[2]]
    return {secret for secret in found if len(secret) >= SECRET_CHARS}


def retry_after(value: str) -> float | None:
    """Returns the seconds that a Retry-After header asks for: a number or an HTTP date."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


# ---- one server ----------------------------------------------------------------------------------

CONNECT_S = 10.0
PREFLIGHT_S = 30.0


class Wire:
    """Limits and secrets of the requests to one server, for any number of threads.

    An httpx client that is made with `hooks` ends each request in time and in size.
    shown: the server's address in errors. secrets: of the requests so far; no error and no text may
    hold them, though the server wrote them there.
    """

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.secrets: set[str] = set()
        self.local = threading.local()  # .deadline of the request that this thread is making
        self.hooks: dict[str, list[Callable[..., Any]]] = {
            "request": [self.prepare], "response": [self.bound],
        }  # fmt: skip

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Gives this thread's requests so many seconds in all; errors come out as CallError."""
        self.local.deadline = time.monotonic() + seconds
        with typed(self.shown):
            yield

    def prepare(self, request: httpx.Request) -> None:
        """Lets no wait of this request, for a connection or a byte, go beyond the deadline."""
        self.secrets |= secrets_of(request)
        left = max(self.local.deadline - time.monotonic(), 0.001)
        request.extensions["timeout"] = httpx.Timeout(left, connect=min(left, CONNECT_S)).as_dict()

    def bound(self, response: httpx.Response) -> None:
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = Body(response.stream, self.local.deadline)

    def error(self, response: httpx.Response) -> CallError:
        """Returns the CallError of a refused request. `response` has been read."""
        try:
            said = json.loads(response.content)
        except (ValueError, RecursionError):
            said = response.text
        return self.refusal(response.status_code, said, response.headers.get("retry-after", ""))

    def refusal(self, status: int, said: Any, asked: str = "") -> CallError:
        """Returns a refusal in the server's own words, cut to one short line.

        said: the body, or what it holds as JSON. asked: the header Retry-After.
        """
        text = " ".join(self.clean(words(said)).split())[:200]
        return CallError(
            f"http_{status}",
            f"HTTP {status}: {text}" if text else f"HTTP {status}",
            retry=status in RETRIED or status >= 500,
            retry_after=retry_after(asked),
        )

    def clean(self, text: str) -> str:
        """Returns a text without the secrets."""
        for secret in sorted(self.secrets.copy(), key=len, reverse=True):  # one may hold another
            text = text.replace(secret, "[key]")
        return text


# ---- text ----------------------------------------------------------------------------------------


def encodable(messages: Messages) -> Messages:
    """Puts a "?" for half an emoji, as a policy's last token may leave it: it has no UTF-8 form."""
    return [
        {key: value.encode("utf-8", "replace").decode("utf-8") for key, value in message.items()}
        for message in messages
    ]


def strip_thought(text: str, call: Call) -> str:
    """Returns the text without a leading <think>…</think> that the critic wrote for itself.

    In a solution whose own tags are `think`, a single block is its reasoning and stays; the first
    of two is the critic's. One that has nothing but its thought to say is heard, but for verdicts.
    An attempt is left as it is.
    """
    start, end = TAGS["think"]
    head = text.lstrip()
    solution = call.role in ("rewrite", "continue", "integrate", "answer")
    own = solution and call.tags == "think" and text.count(end) < 2
    if call.role == "attempt" or own or not head.startswith(start) or end not in head:
        return text
    thought, _, said = head.removeprefix(start).partition(end)
    return said.lstrip() or ("" if call.schema else thought.strip())


def put_back(thought: str, text: str, unfinished: bool = False) -> str:
    """Returns a reply as it was written, before the server took the thought out of the text.

    Of a rewrite that thought may be the solution's own; what is to stay, `strip_thought` decides.
    unfinished: the thought was cut off, so that nothing follows it.
    """
    start, end = TAGS["think"]
    if end in text:
        return text
    # Where the prompt speaks of tags, mlx_lm.server leaves the opening one in the thought.
    opened = ("" if thought.lstrip().startswith(start) else start) + thought
    return opened if unfinished else opened + end + text


def all_thought(limit: int, usage: dict[str, int]) -> CallError:
    """Returns the error of a reply of which nothing is left without its unfinished thought."""
    said = f"all {limit} tokens went into thinking: raise critic.max_tokens"
    return CallError("empty", said, usage=usage)


def token_counts(prompt: Any, completion: Any) -> dict[str, int]:
    """Returns the usage of a Reply; a server may leave out either count, or both."""
    counts = {"prompt": prompt, "completion": completion}
    return {name: count for name, count in counts.items() if type(count) is int and count >= 0}
