"""A critic answers calls with text, in order, and never raises for a failed call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.core.records import Messages, Problem, Role, Visibility

NANO = 10**9  # dollars are added as whole billionths: sums do not depend on their order


@dataclass(frozen=True)
class Call:
    """One request to a critic.

    role: that of the turn it makes; attempt: the model behind the server is evaluated, no critic;
        embed: its messages are texts to embed, and no turn comes of it.
    text: the attempt under review; feedback: what the rewrite is to act on.
    epoch, attempt: with problem and role, what makes this call another than the same words later
        (a retry from the bucket list is a new call, a resumed run's is not).
    seed: of the sampling. schema: JSON schema of the reply; None: text.
    temperature: of the sampling, where it is not the critic's own.
    stop: an attempt ends before any of these.
    raw: the one message is text to be completed.
    """

    role: Role
    problem: Problem
    messages: Messages
    text: str
    feedback: str = ""
    visibility: Visibility = "verdict"
    template: str = ""
    tags: str = "think"
    epoch: int = 0
    attempt: str = ""
    seed: int = 0
    schema: dict[str, Any] | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    raw: bool = False

    def heat(self, own: float) -> float:
        """Returns the temperature to ask at. own: the critic's."""
        return own if self.temperature is None else self.temperature


@dataclass(frozen=True)
class Cost:
    """Tokens and dollars (usd, to the billionth) that a request or a call took.

    estimated: the server did not say; then these are the most it can have been.
    """

    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    estimated: bool = False


def nano(dollars: float) -> int:
    """Returns dollars as whole billionths."""
    return round(dollars * NANO)


@dataclass(frozen=True)
class Reply:
    """An answer to a call; a failed call is data too, and never passes for praise.

    error: why there is no usable text.
    kind: the kind of error, one word ("timeout", "http_500", "empty", "unknown", …).
    cached: the reply was on disk before this run began; then it took nothing.
    token_ids: as generated, where the policy itself is the critic.
    tries: requests sent for it; 0 where nothing is sent. seconds: the answered one took so long.
    cost: of the answered request alone; what failed before it is in the run's ledger.
    """

    text: str
    error: str | None = None
    kind: str = ""
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    cached: bool = False
    token_ids: list[int] | None = None
    # Figures, no part of what was said.
    tries: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    cost: Cost = field(default=Cost(), compare=False)


class Critic:
    actor: str  # provider and model, as turns record it
    say: Callable[[str], None] = staticmethod(lambda text: None)  # what a person should know
    answered: Callable[[int], None] = staticmethod(lambda n: None)  # how many more replies are here
    waits: bool = False  # for replies from elsewhere: `ask` may be called from several threads
    hosts: Hosts = ALONE  # who makes its requests
    servers: int = 1  # that are asked, each as many requests at once as it is set to

    def preflight(self) -> None:
        """Raise UserError where the critic cannot be reached or its model is missing."""

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply a call, in the order of the calls."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what it holds."""
