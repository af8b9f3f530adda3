"""One HTTP request of a remote critic: it ends in time and in size, and its errors hold no key."""

import json
import ssl
import time
from collections.abc import Iterable

import httpx

from mlxreflect.critics.client import NOTHING, Body, CallError, http_error
from mlxreflect.errors import UserError

CONNECT_S = 10.0


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
        left = max(deadline - time.monotonic(), 0.001)
        request.extensions["timeout"] = httpx.Timeout(left, connect=min(left, CONNECT_S)).as_dict()
        try:
            response = self.http.send(request, stream=True)
            try:
                assert isinstance(response.stream, httpx.SyncByteStream)
                response.stream = Body(response.stream, deadline)
                response.read()
            finally:
                response.close()
        except httpx.ConnectTimeout:
            said = f"no connection to {self.shown}"
            raise CallError("timeout", said, retry=True, usage=NOTHING) from None
        except httpx.TimeoutException:
            raise CallError("timeout", f"no reply from {self.shown} in time", retry=True) from None
        except httpx.ConnectError:
            raise CallError("connect", f"cannot reach {self.shown}", retry=True) from None
        except httpx.TransportError:  # it was sent, so a model may have worked on it
            raise CallError("reset", f"{self.shown} hung up without a reply", retry=True) from None
        except httpx.RequestError as error:  # compressed in a way it is not
            raise invalid(error) from None
        return response

    def refusal(self, response: httpx.Response) -> CallError:
        """Why the server refused, in its own words; secrets go before the words are cut."""
        plain = json.dumps({"error": self.clean(words(response))}).encode()
        asked = {"Retry-After": response.headers.get("retry-after", "")}
        return http_error(httpx.Response(response.status_code, content=plain, headers=asked))

    def clean(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        return text

    def close(self) -> None:
        self.http.close()


def trusted(certificates: str) -> ssl.SSLContext | bool:
    if not certificates:
        return True
    try:
        return ssl.create_default_context(cafile=certificates)
    except OSError:  # also what ssl says of a file without any
        raise UserError(
            f"{certificates} is no file of certificates", "correct or unset AWS_CA_BUNDLE"
        ) from None


def invalid(error: Exception) -> CallError:
    """A reply in no known format. Asked again: servers send such while they start or stop."""
    return CallError(
        "invalid", f"not a reply in the provider's format ({type(error).__name__})", retry=True
    )


def words(response: httpx.Response) -> str:
    """What a refused request was told: {"error": {"message": …}}, {"detail": …} or plain text."""
    try:
        said = json.loads(response.content)
    except (ValueError, RecursionError):
        return response.text
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(key):
            said = said[key]
    return said if isinstance(said, str) else json.dumps(said)
