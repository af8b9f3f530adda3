"""Counts of critic calls, of a wave and of a run, and the ledger of requests with its budget.

Times and retries stand apart, under `wire`. Everything else of a row depends on the replies alone,
so a run that was stopped and resumed, or whose failing requests succeeded later, has the same as
one that went straight through.

Every request that was sent is a line of RUN_DIR/critic.jsonl, without a word of what was said in
it; the sums are read back when a run is resumed. A request that is out stands in critic.open.json
until its line is written. What a killed process leaves there was sent and may have been paid, so
it gets a line too, at the most that it can have taken: the budget holds across kills.
"""

import json
import os
import shlex
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import BudgetConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows, read_rows
from mlxreflect.critics.base import NANO, Call, Cost, Reply, nano

OUTCOMES = ("cached", "answered", "failed", "unknown")


def tally(replies: Sequence[Reply]) -> dict[str, Any]:
    """Returns the counts of a wave's replies, as metrics.jsonl has them; their order is no matter.

    calls = cached + answered + failed + unknown. unknown: answered, but with no verdict in it.
    tokens_in, tokens_out, usd: of the replies that were not cached; requests that failed before
    them are in critic.jsonl.
    """
    outcomes = [outcome_of(reply) for reply in replies]
    both = list(zip(replies, outcomes, strict=True))
    kinds = Counter(reply.kind or "error" for reply, outcome in both if outcome == "failed")
    seconds = [reply.seconds for reply, outcome in both if outcome != "failed" and reply.tries]
    return {
        "calls": len(replies),
        **{name: outcomes.count(name) for name in OUTCOMES},
        "kinds": dict(sorted(kinds.items())),
        "tokens_in": sum(reply.cost.tokens_in for reply in replies),
        "tokens_out": sum(reply.cost.tokens_out for reply in replies),
        "usd": sum(nano(reply.cost.usd) for reply in replies) / NANO,
        "wire": {
            "retried": sum(max(0, reply.tries - 1) for reply in replies),
            **quantiles(sorted(seconds)),
        },
    }


def outcome_of(reply: Reply) -> str:
    if reply.error is not None:
        return "unknown" if reply.kind == "unknown" else "failed"
    return "cached" if reply.cached else "answered"


def total(waves: Iterable[dict[str, Any]], requests: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns a whole run's counts, from its waves' rows and the ledger's lines.

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
    """Returns median and 95th percentile, each one of the values (the nearest rank)."""
    if not ordered:
        return {"median_s": None, "p95_s": None}
    ranks = {"median_s": 50, "p95_s": 95}  # in hundredths: no rounding of a product moves one
    return {name: ordered[-(-len(ordered) * q // 100) - 1] for name, q in ranks.items()}


LIMITS = ("max_calls", "max_tokens", "max_usd")  # of [critic.budget]
WAKE_S = 0.5  # how often a call that waits for the others looks whether it is still wanted

Amounts = tuple[int, int, int]  # calls, tokens, billionths of a dollar


class BudgetReached(UserError):
    """The next request could pass a limit of [critic.budget], and nothing is out that may ebb."""


class Ledger:
    """One a run, shared by its critics and their threads.

    path: None keeps the sums in memory only. kept: replies are cached, so a stopped wave costs
    nothing when it is done again. Raises UserError for a file that is no ledger.
    """

    def __init__(
        self, path: Path | None = None, budget: BudgetConfig | None = None, *, kept: bool = True
    ) -> None:
        self.path, self.budget, self.kept = path, budget or BudgetConfig(), kept
        self.open_path = path.with_name("critic.open.json") if path else None
        self.run = shlex.quote(str(path.parent)) if path else "RUN"  # as a command names it
        dollars = self.budget.max_usd
        self.limits = (self.budget.max_calls, self.budget.max_tokens,
                       max(nano(dollars), int(dollars > 0)))  # fmt: skip
        self.spent: Amounts = (0, 0, 0)
        self.number = 0  # of the last request
        self.out: dict[int, tuple[dict[str, Any], Cost]] = {}  # by number
        self.stopped: BudgetReached | None = None
        self.closed = False
        self.settled = threading.Condition()
        if path:
            self.read_back(path)

    # ---- a request ------------------------------------------------------------------------------

    def reserve(self, call: Call, actor: str, attempt: int, most: Cost,
                given_up: threading.Event) -> int | None:  # fmt: skip
        """Set aside the most that a request may take, and return its number.

        Waits for requests that are out where it does not fit beside them; None: given up meanwhile.
        Raises BudgetReached where it does not fit at all; from then on nothing else is let through.
        """
        with self.settled:
            while limit := self.limit_passed(most):
                if self.stopped is None and not self.out:
                    self.stopped = self.budget_reached(limit, most)
                    self.settled.notify_all()
                if self.stopped:
                    break
                self.settled.wait(WAKE_S)
                if given_up.is_set():
                    return None
            if self.stopped:
                raise BudgetReached(self.stopped.message, self.stopped.hint)
            self.number += 1
            row = {
                "schema": "critic/1", "n": self.number, "actor": actor, "role": call.role,
                "problem": call.problem.id, "epoch": call.epoch, "attempt": call.attempt,
                "try": attempt,
            }  # fmt: skip
            self.out[self.number] = row, most
            self.write_open()
            return self.number

    def settle(self, number: int, kind: str, seconds: float, cost: Cost) -> None:
        """Write a request's line and free what it did not take. kind: "ok" or the error's."""
        with self.settled:
            if self.closed:  # the next process finds it among those that were out
                return
            row, _ = self.out[number]
            if self.path:
                append_rows(self.path, [line(row, kind, seconds, cost)])
            del self.out[number]
            self.spent = add(self.spent, cost)
            self.write_open()
            self.settled.notify_all()

    def close(self) -> None:
        """After this nothing is written: another process may go on with the run."""
        with self.settled:
            self.closed = True

    # ---- the budget -----------------------------------------------------------------------------

    def limit_passed(self, most: Cost) -> str:
        """Returns the limit that a request could pass with all that is out at its most, or ""."""
        would = add(self.spent, most)
        for _, held in self.out.values():
            would = add(would, held)
        pairs = zip(LIMITS, self.limits, would, strict=True)
        return next((name for name, limit, sum_ in pairs if 0 < limit < sum_), "")

    def budget_reached(self, name: str, most: Cost) -> BudgetReached:
        index, limit = LIMITS.index(name), getattr(self.budget, name)
        calls, tokens, dollars = self.spent
        more = ("1 call", f"{most.tokens_in + most.tokens_out} tokens", f"${most.usd:.6f}")[index]
        need = 2 * add(self.spent, most)[index]
        enough = max(2 * limit, need / NANO if name == "max_usd" else need)
        enough = float(f"{enough:.2g}") if name == "max_usd" else enough
        kept = "what was answered is kept and not paid again"
        if not self.kept:
            kept = 'with critic.cache = "off" the open wave is asked and paid again'
        return BudgetReached(
            f"critic.budget.{name} = {limit} is reached: {calls} calls, {tokens} tokens and "
            f"${dollars / NANO:.6f} are spent, and the next call may take {more}",
            f"mlxreflect resume {self.run} --set critic.budget.{name}={enough} ({kept})",
        )

    # ---- files ----------------------------------------------------------------------------------

    def write_open(self) -> None:
        """Writes what is out, for when the process is killed; a power cut may lose it."""
        if (path := self.open_path) is None or self.closed:
            return
        if not self.out:
            path.unlink(missing_ok=True)
            return
        rows = [line(row, "abandoned", 0.0, most) for row, most in self.out.values()]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(rows), encoding="utf-8")
        temporary.replace(path)

    def read_back(self, path: Path) -> None:
        """Reads the sums of what was sent before, with what a killed process had out."""
        if path.is_file():  # the next line would be glued to half a line, as a kill leaves it
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        seen = {self.take(row) for row in self.rows()}
        left: list[dict[str, Any]] = []
        if (open_path := self.open_path) and open_path.is_file():
            with suppress(ValueError):  # half written when the power went
                left = json.loads(open_path.read_text(encoding="utf-8"))
        if fresh := [row for row in left if row["n"] not in seen]:
            append_rows(path, fresh)
            for row in fresh:
                self.take(row)
        self.write_open()

    def take(self, row: dict[str, Any]) -> int:
        """Add a line to the sums; returns its number."""
        try:
            took = Cost(int(row["tokens_in"]), int(row["tokens_out"]), row["usd"])
            self.spent = add(self.spent, took)
            number = int(row["n"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: a line is none of a critic's requests ({error!r})",
                "restore that file; without it the budget cannot be kept",
            ) from None
        self.number = max(self.number, number)
        return number

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the lines written so far."""
        if self.path:
            yield from read_rows(self.path)


def line(row: dict[str, Any], kind: str, seconds: float, cost: Cost) -> dict[str, Any]:
    return {
        **row, "kind": kind, "seconds": round(seconds, 3), "tokens_in": cost.tokens_in,
        "tokens_out": cost.tokens_out, "usd": cost.usd, "estimated": cost.estimated,
    }  # fmt: skip


def add(one: Amounts, cost: Cost) -> Amounts:
    """Returns amounts with those of one more request."""
    calls, tokens, dollars = one
    return calls + 1, tokens + cost.tokens_in + cost.tokens_out, dollars + nano(cost.usd)
