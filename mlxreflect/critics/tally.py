"""What critic calls came to: of a wave, of a run. Times and retries stand apart, under `wire`.

Everything else of a row depends on the replies alone, so a run that was stopped and resumed, or
whose failing requests succeeded later, has the same as one that went straight through.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mlxreflect.critics.base import NANO, Reply, nano

OUTCOMES = ("cached", "answered", "failed", "unknown")


class Tally:
    """Counts a wave's replies, in any order; `dict(tally)` is what metrics.jsonl has of them.

    calls = cached + answered + failed + unknown. unknown: answered, but with no verdict in it.
    tokens_in, tokens_out, usd: of the replies that were not cached; requests that failed before
    them are in critic.jsonl.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()  # of failures
        self.seconds: list[float] = []  # of answered requests, sorted

    def add(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            outcome = outcome_of(reply)
            self.counts.update({"calls": 1, outcome: 1, "retried": max(0, reply.tries - 1)})
            self.counts["tokens_in"] += reply.cost.tokens_in
            self.counts["tokens_out"] += reply.cost.tokens_out
            self.counts["nano"] += nano(reply.cost.usd)
            if outcome == "failed":
                self.kinds[reply.kind or "error"] += 1
            elif reply.tries:
                insort(self.seconds, reply.seconds)

    def keys(self) -> list[str]:
        return list(self.row())

    def __getitem__(self, key: str) -> Any:
        return self.row()[key]

    def row(self) -> dict[str, Any]:
        names = ("calls", *OUTCOMES)
        wire = {"retried": self.counts["retried"], **quantiles(self.seconds)}
        return {
            **{name: self.counts[name] for name in names},
            "kinds": dict(sorted(self.kinds.items())),
            "tokens_in": self.counts["tokens_in"],
            "tokens_out": self.counts["tokens_out"],
            "usd": self.counts["nano"] / NANO,
            "wire": wire,
        }


def outcome_of(reply: Reply) -> str:
    if reply.error is not None:
        return "unknown" if reply.kind == "unknown" else "failed"
    return "cached" if reply.cached else "answered"


def total(waves: Iterable[dict[str, Any]], requests: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A whole run's counts, from its waves' rows and the ledger's lines.

    wire: every request that was sent, also those that failed, were given up or belong to a wave
    that was done again; so its tokens and dollars are at least those of the replies.
    """
    rows = list(waves)
    sent = list(requests)
    kinds = sum((Counter(row.get("kinds", {})) for row in rows), Counter[str]())
    names = ("calls", *OUTCOMES, "tokens_in", "tokens_out")
    return {
        **{name: sum(row.get(name, 0) for row in rows) for name in names},
        "usd": sum(nano(row.get("usd", 0.0)) for row in rows) / NANO,
        "kinds": dict(sorted(kinds.items())),
        "wire": {
            "requests": len(sent),
            "retried": sum(row["try"] > 1 for row in sent),
            "failed": dict(sorted(Counter(r["kind"] for r in sent if r["kind"] != "ok").items())),
            "tokens_in": sum(row["tokens_in"] for row in sent),
            "tokens_out": sum(row["tokens_out"] for row in sent),
            "usd": sum(nano(row["usd"]) for row in sent) / NANO,
            **quantiles(sorted(row["seconds"] for row in sent if row["kind"] == "ok")),
        },
    }


def quantiles(ordered: list[float]) -> dict[str, float | None]:
    """Median and 95th percentile, each one of the values (the nearest rank)."""
    if not ordered:
        return {"median_s": None, "p95_s": None}
    ranks = {"median_s": 0.5, "p95_s": 0.95}
    # In whole hundredths, so that no rounding of a product moves a rank.
    last = len(ordered)
    return {name: ordered[-(-last * round(q * 100) // 100) - 1] for name, q in ranks.items()}
