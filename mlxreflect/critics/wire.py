"""One HTTP request of a remote critic: it ends in time and in size, and its errors hold no key."""

import ssl
import time
from collections.abc import Iterable

import httpx

from mlxreflect.critics.faults import Body, blotted, typed
from mlxreflect.errors import UserError

CONNECT_S = 10.0
PREFLIGHT_S = 30.0
SEED_BITS = 0x7FFFFFFF  # some servers, Ollama among them, keep the seed in 32 bits, signed


class Wire:
    """Connections to one server, for any number of threads.

    shown: the server's address in errors. secrets: what no error or text may hold, though the
    server wrote it there. certificates: a file of those to trust; "": the usual ones.
    """

    def __init__(self, shown: str, secrets: Iterable[str] = (), certificates: str = "") -> None:
        self.shown = shown
        self.secrets = frozenset(secret for secret in secrets if secret)
        self.http = httpx.Client(verify=trusted(certificates))

    def fetch(self, request: httpx.Request, deadline: float) -> httpx.Response:
        """The whole response, whatever its status. Raises CallError where there is none.

        deadline: by time.monotonic().
        """
        limit(request, deadline)
        with typed(self.shown):
            response = self.http.send(request, stream=True)
            try:
                assert isinstance(response.stream, httpx.SyncByteStream)
                response.stream = Body(response.stream, deadline)
                response.read()
            finally:
                response.close()
        return response

    def clean(self, text: str) -> str:
        return blotted(text, self.secrets)

    def close(self) -> None:
        self.http.close()


def limit(request: httpx.Request, deadline: float) -> None:
    """No wait of this request, for a connection or a byte, goes beyond the deadline."""
    left = max(deadline - time.monotonic(), 0.001)
    request.extensions["timeout"] = httpx.Timeout(left, connect=min(left, CONNECT_S)).as_dict()


def trusted(certificates: str) -> ssl.SSLContext | bool:
    if not certificates:
        return True
    try:
        return ssl.create_default_context(cafile=certificates)
    except OSError:  # also what ssl says of a file without any
        raise UserError(
            f"{certificates} is no file of certificates", "correct or unset AWS_CA_BUNDLE"
        ) from None
