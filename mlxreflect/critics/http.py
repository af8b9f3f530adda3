"""HTTP as every remote critic uses it: requests end in time and in size, errors hold no key.

Whatever goes wrong with a request is a CallError. Below that stands what all providers do to text:
make it fit to send, and leave out the critic's own thought before it.
"""

import base64
import email.utils
import json
import math
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from mlxreflect.core.records import Messages
from mlxreflect.critics.base import Call
from mlxreflect.prompts.parsing import ANSWER, TAGS

RETRIED = {408, 409, 429}  # and 5xx: the statuses that may be gone a moment later
REPLY_BYTES = 8 * 2**20  # a longer body is no critique
CHUNK = 2**16  # bytes unpacked at once
MOST_TOKENS = 10**9  # a larger count is none
NESTED = 8  # how deep a server's words may stand in JSON, itself in texts in JSON
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
    """Turns what httpx raises into CallError. shown: the address, without password."""
    try:
        yield
    except httpx.ConnectTimeout:
        said = f"no connection to {shown} in time"
        raise CallError("timeout", said, retry=True, usage=NOTHING) from None
    except httpx.TimeoutException:
        raise CallError("timeout", f"no reply from {shown} in time", retry=True) from None
    except httpx.ConnectError:
        raise CallError("connect", f"cannot reach {shown}", retry=True) from None
    except httpx.TransportError:  # it was sent, so a model may have worked on it
        raise CallError("reset", f"{shown} hung up without a reply", retry=True) from None
    except httpx.RequestError as error:
        raise invalid_reply(error) from None
    except UnicodeEncodeError:
        said = "the prompt has half a surrogate pair, which no request can hold"
        raise CallError("refused", said, usage=NOTHING) from None


@contextmanager
def reading() -> Iterator[None]:
    """Turns into CallError what is raised where a reply has other fields than it should.

    It is for the reading of a reply alone: elsewhere such an error is a bug of ours.
    """
    try:
        yield
    except UNREADABLE as error:
        raise invalid_reply(error) from None


class Body(httpx.SyncByteStream):
    """A response's body, unpacked and no longer than REPLY_BYTES; no more is ever held of it.

    encoding: how the server packed it, "" for not at all. Iterating raises CallError.
    """

    def __init__(self, stream: httpx.SyncByteStream, encoding: str) -> None:
        self.stream, self.encoding = stream, encoding

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in self.stream if self.encoding in ("", "identity") else self.unpacked():
                size += len(chunk)
                if size > REPLY_BYTES:
                    raise CallError("too_large", f"a reply of more than {REPLY_BYTES} bytes")
                yield chunk
        except zlib.error as error:
            raise invalid_reply(error) from None
        except httpx.TimeoutException:
            raise
        except httpx.TransportError as error:
            said = f"the connection broke inside the reply ({error})"
            raise CallError("reset", said, retry=True) from None

    def unpacked(self) -> Iterator[bytes]:
        """Yields what was packed with gzip or deflate, a small piece at a time."""
        if self.encoding not in ("gzip", "x-gzip", "deflate"):
            said = f"the reply is packed as {self.encoding[:40]!r}, which was not asked for"
            raise CallError("invalid", said)
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # whichever of the two it is
        for chunk in self.stream:
            while chunk and not unpack.eof:
                yield unpack.decompress(chunk, CHUNK)
                chunk = unpack.unconsumed_tail

    def close(self) -> None:
        self.stream.close()


class Deadline:
    """Ends what a thread requests: httpx limits each wait alone, and a server may drip.

    at: on the monotonic clock. The connection that is open then is shut down under the request.
    """

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds
        self.stream: Any = None  # of the connection
        self.timer = threading.Timer(seconds, self.cut)
        self.timer.daemon = True
        self.timer.start()

    @property
    def left(self) -> float:
        return self.at - time.monotonic()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Learns the connection; called by httpx at each of its steps."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.stream = info["return_value"]
            if self.left <= 0:
                self.cut()

    def cut(self) -> None:
        with suppress(AttributeError, OSError):  # not connected yet, or not any more
            self.stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def invalid_reply(error: Exception) -> CallError:
    """Returns the error of a reply in no known format, as servers send while they start or stop."""
    return CallError(
        "invalid", f"not a reply in the provider's format ({type(error).__name__})", retry=True
    )


# ---- refused -------------------------------------------------------------------------------------


def words(said: Any) -> str:
    """Returns the server's words: {"error": {"message": …}}, {"detail": …}, a page or plain text.

    Any of these may stand in a text, as JSON or as the first event of a stream.
    """
    for _ in range(NESTED):
        inner = inside(said)
        if inner is None:
            break
        said = inner
    try:
        text = said if isinstance(said, str) else json.dumps(said)
    except RecursionError:  # nested just so deep that reading it went well
        return ""
    return re.sub("<[^<>]*>", " ", text) if re.match(r"\s*<(!doctype|html)", text, re.I) else text


def inside(said: Any) -> Any:
    """Returns what a server says inside of what it said; None where that is all."""
    if isinstance(said, str):
        text = said.strip().removeprefix("data:").strip()
        if text.startswith("{"):
            with suppress(ValueError, RecursionError):
                said, _ = json.JSONDecoder().raw_decode(text)
    if not isinstance(said, dict):
        return None
    if isinstance(more := said.get("metadata"), dict) and isinstance(more.get("raw"), str):
        return more["raw"] or None  # OpenRouter's: what the provider behind it said
    return next((said[key] for key in ("error", "message", "detail") if said.get(key)), None)


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
LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
PREFLIGHT_S = 30.0


def is_loopback(shown: str) -> bool:
    """Tells if an address, with or without a scheme and a host, is one of this machine."""
    place = urlsplit(shown if "://" in shown else f"http://{shown}")
    return (place.hostname or LOOPBACK[0]) in LOOPBACK


class Wire:
    """Limits and secrets of the requests to one server, for any number of threads.

    shown: the server's address in errors. secrets: of the requests so far; no error and no text may
    hold them, though the server wrote them there.
    """

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.secrets: set[str] = set()
        self.local = threading.local()  # .deadline of what this thread requests

    def client(self, **settings: Any) -> httpx.Client:
        """Returns an httpx client whose requests end in time and in size, and where they were sent.

        It keeps no connection: a deadline may close the one it knows.
        """
        return httpx.Client(
            event_hooks={"request": [self.prepare], "response": [self.bound]},
            limits=httpx.Limits(max_keepalive_connections=0),
            follow_redirects=False,  # the prompt and the key are for this server alone
            **settings,
        )

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Gives this thread's requests so many seconds in all; errors come out as CallError."""
        self.local.deadline = deadline = Deadline(seconds)
        try:
            with typed(self.shown):
                yield
        except CallError as error:
            if error.kind == "reset" and deadline.left <= 0:
                said = f"no reply from {self.shown} in time"
                raise CallError("timeout", said, retry=True) from None
            raise
        finally:
            deadline.timer.cancel()

    def prepare(self, request: httpx.Request) -> None:
        """Lets no wait of this request, for a connection or a byte, go beyond the deadline."""
        self.secrets |= secrets_of(request)
        request.headers["Accept-Encoding"] = "identity"
        left = max(self.local.deadline.left, 0.001)
        request.extensions["timeout"] = httpx.Timeout(left, connect=min(left, CONNECT_S)).as_dict()
        request.extensions["trace"] = self.local.deadline.trace

    def bound(self, response: httpx.Response) -> None:
        encoding = response.headers.pop("content-encoding", "")  # Body unpacks it, not httpx
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = Body(response.stream, encoding.strip().lower())

    def read(self, response: httpx.Response) -> dict[str, Any]:
        """Returns the object that a reply holds.

        Raises CallError for a refusal, and for what is no object, in the server's own words.
        """
        if not response.is_success:
            raise self.error(response)
        text = response.content.decode("utf-8", "replace")
        try:
            found = json.loads(response.content)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
        said = f"not a reply in the provider's format: {self.line(text)}"
        raise CallError("invalid", said, retry=True)

    def error(self, response: httpx.Response) -> CallError:
        """Returns the CallError of a refused request. `response` has been read."""
        said: Any = response.content.decode("utf-8", "replace")
        with suppress(ValueError, RecursionError):
            said = json.loads(response.content)
        if place := response.headers.get("location") if response.is_redirect else "":
            said = f"the server sends us on to {place}; set critic.base_url if that is right"
        return self.refusal(response.status_code, said, response.headers.get("retry-after", ""))

    def refusal(self, status: Any, said: Any, asked: str = "") -> CallError:
        """Returns a refusal in the server's own words.

        status: what is none counts as 502. said: the body, or what it holds as JSON. asked: the
        header Retry-After.
        """
        status = status if type(status) is int and 300 <= status < 600 else 502
        text = self.line(said)
        return CallError(
            f"http_{status}",
            f"HTTP {status}: {text}" if text else f"HTTP {status}",
            retry=status in RETRIED or status >= 500,
            retry_after=retry_after(asked),
        )

    def line(self, said: Any) -> str:
        """Returns the server's words cut to one short line, without secrets."""
        return " ".join(self.clean(words(said)).split())[:200]

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


def fold_system(messages: Messages) -> Messages:
    """Returns the system message as the opening of the user's, for models without such a role."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    text = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{**messages[1], "content": text}, *messages[2:]]


# The end of a thought that the prompt began, as no sentence about the tag has it.
ENDED = re.compile(r"</think>(?=\w|\s*(?:\n|[<{]|$))")


def strip_thought(text: str, call: Call, cut: bool = False) -> str:
    """Returns the text without the <think>…</think> before it that the critic wrote for itself.

    In a solution whose own tags are `think`, a single block is its reasoning and stays; the first
    of two is the critic's. One that has nothing but its thought to say is heard, but for verdicts,
    and not where it was cut off. The opening tag may stand in the prompt, where nobody sees it; but
    what continues a thought has none. An attempt is left as it is.
    """
    start, end = TAGS["think"]
    if call.role == "attempt":
        return text
    solution = call.role in ("rewrite", "continue", "integrate", "answer")
    own = solution and call.tags == "think" and text.count(end) < 2
    head, closing = text.lstrip(), text.lstrip().find(end)
    if closing >= 0 and start not in head[:closing] and ENDED.match(head, closing):
        head = start + head
        text = text if call.role == "continue" else head
    if own or not head.startswith(start) or (end not in head and not cut):
        return text
    thought, _, said = head.removeprefix(start).partition(end)
    return said.lstrip() or ("" if call.schema or cut else thought.strip())


def with_thought(thought: str, text: str, call: Call, cut: bool) -> str:
    """Returns a reply as it was written, before the server took the thought out of the text.

    Of a rewrite that thought may be the solution's own; what is to stay, `strip_thought` decides.
    Some servers take all of a reply for its thought. cut: the reply was.
    """
    start, end = TAGS["think"]
    if not thought or end in text:
        return text
    silent = not text.strip()
    if silent and cut and call.role != "attempt":
        return ""
    said = ANSWER[1] in thought or (call.schema and thought.lstrip().startswith("{"))
    if silent and (end in thought or (said and call.role != "attempt")):
        return thought
    # Where the prompt speaks of tags, mlx_lm.server leaves the opening one in the thought.
    opened = ("" if thought.lstrip().startswith(start) else start) + thought
    return opened if silent and cut else opened + end + text


def no_words(limit: int, reason: str | None) -> str:
    """Returns what is wrong with a reply without a word. limit: of its tokens."""
    if reason == "length":
        return f"all {limit} tokens went into thinking: raise critic.max_tokens"
    return f"empty reply (finish reason {reason})"


def token_counts(prompt: Any, completion: Any) -> dict[str, int]:
    """Returns the usage of a Reply; a server may leave out either count, or both."""
    counts = {"prompt": prompt, "completion": completion}
    return {
        name: count
        for name, count in counts.items()
        if type(count) is int and 0 <= count <= MOST_TOKENS
    }
