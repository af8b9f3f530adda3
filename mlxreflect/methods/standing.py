"""How the problems of a run stand: the status of each one's last episode, and what it is called."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from mlxreflect.core.records import Outcome

STATUSES: tuple[str, ...] = get_args(get_type_hints(Outcome)["status"])
WORDS = {
    "solved_first": "right at the first try",
    "solved": "right later",
    "trained": "trained on, not verified",
    "bucket": "on the bucket list",
    "discarded": "not solved",
    "failed": "no call to the critic got through",
}
# What a status is with one method: who wrote what came out right is not the same for all.
OWN = {
    "r3": {"solved": "right after training"},
    "rel": {"solved": "accepted at a later try", "discarded": "not accepted"},
    "preflexor": {"trained": "taught by the teacher", "discarded": "nothing to learn from"},
    "reflectevo": {"solved": "right at a retry"},
    "traces": {"solved": "right in a later sample"},
}
# Of a wave: the first two statuses together. With PRefLexOR the second is never there.
SOLVED = {"rel": "accepted", "preflexor": ""}


def stand(episodes: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Problems by the status that their last episode left them with, as `show --status` does.

    episodes: rows of episodes.jsonl, in their order. Each problem is counted once.
    """
    last = {row["problem"]["id"]: row["outcome"]["status"] for row in episodes}
    counts = Counter(last.values())
    return {status: counts[status] for status in STATUSES if counts[status]}


def in_words(statuses: Mapping[str, int], method: str) -> dict[str, str]:
    """Name and value of each status: in words, and with what `--status` calls it."""
    words = {**WORDS, **OWN.get(method, {})}
    return {words.get(status, status): f"{n} ({status})" for status, n in statuses.items()}


def solved_word(method: str) -> str:
    """What a wave's `solved` are with a method; "" where they are those right at once."""
    return SOLVED.get(method, "solved")
