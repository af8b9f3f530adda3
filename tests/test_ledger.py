"""The ledger: a line a request, sums that survive a kill, a budget that is never passed."""

import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.critics import Scripted, child

from mlxreflect.config.schema import BudgetConfig, CriticConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import make_problem
from mlxreflect.critics.base import Call, Cost, Reply
from mlxreflect.critics.client import Client
from mlxreflect.critics.http import CallError, token_counts
from mlxreflect.critics.ledger import BudgetReached, Ledger, quantiles, tally, total

NOW = threading.Event()  # nobody gives up here
CALL = Call(
    "critique",
    make_problem("countdown", {"numbers": [1, 2, 3], "target": 6}),
    [{"role": "user", "content": "a secret of the prompt"}],
    "1+2=4",
    epoch=2,
    attempt="problems/3/0/1",
)
COST = Cost(100, 20, 0.001)


def spend(ledger: Ledger, cost: Cost = COST, most: Cost | None = None, kind: str = "ok") -> None:
    number = ledger.reserve(CALL, "ollama:m", 1, most or cost, NOW)
    assert number is not None
    ledger.settle(number, kind, 0.25, cost)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "critic.jsonl").read_text().splitlines()]


def test_a_line_says_what_was_asked_and_what_it_took(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "critic.jsonl")
    spend(ledger, replace(COST, estimated=True), kind="http_429")
    assert lines(tmp_path) == [
        {"schema": "critic/1", "n": 1, "actor": "ollama:m", "role": "critique",
         "problem": CALL.problem.id, "epoch": 2, "attempt": "problems/3/0/1", "try": 1,
         "kind": "http_429", "seconds": 0.25, "tokens_in": 100, "tokens_out": 20, "usd": 0.001,
         "estimated": True}
    ]  # fmt: skip
    assert not (tmp_path / "critic.open.json").exists()  # nothing is out


def test_sums_are_read_back(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "critic.jsonl")
    for _ in range(3):
        spend(first)
    first.close()
    again = Ledger(tmp_path / "critic.jsonl", BudgetConfig(max_calls=4))
    assert again.spent == first.spent == (3, 360, 3_000_000)
    spend(again)
    assert lines(tmp_path)[-1]["n"] == 4
    with pytest.raises(BudgetReached):
        spend(again)


@pytest.mark.parametrize("torn", [b'{"schema": "cri', b"\xff\xfe", b"{}"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    spend(Ledger(tmp_path / "critic.jsonl"))
    with (tmp_path / "critic.jsonl").open("ab") as file:
        file.write(torn)
    again = Ledger(tmp_path / "critic.jsonl")
    assert again.spent[0] == 1
    spend(again)
    assert [row["n"] for row in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("damaged", ["[]\n", '{"n": 1}\n', "nonsense\n"])
def test_a_damaged_file_is_an_error(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "critic.jsonl").write_text(damaged)
    with pytest.raises(UserError, match=r"critic\.jsonl"):
        Ledger(tmp_path / "critic.jsonl")


def test_what_a_killed_process_had_out_is_counted_at_its_most(tmp_path: Path) -> None:
    path, note = tmp_path / "critic.jsonl", tmp_path / "critic.open.json"
    killed = Ledger(path)
    assert list(tmp_path.iterdir()) == []  # a run without requests has no file
    spend(killed)
    killed.reserve(CALL, "ollama:m", 1, Cost(500, 500, 0.5), NOW)
    killed.reserve(CALL, "ollama:m", 1, Cost(700, 500, 0.7), NOW)
    out = note.read_bytes()
    # Counted once, however often the run is opened; also where the process was killed between a
    # line and the note that the request is out, or the power went in the middle of that.
    for left in (out, out, out[:20]):
        note.write_bytes(left)
        assert Ledger(path).spent == (3, 120 + 1000 + 1200, 1_201_000_000)
    assert [row["kind"] for row in lines(tmp_path)] == ["ok", "abandoned", "abandoned"]


def test_a_closed_ledger_writes_nothing(tmp_path: Path) -> None:
    """A thread that still waits for a server must not touch the run that another one resumed."""
    ledger = Ledger(tmp_path / "critic.jsonl")
    ledger.reserve(CALL, "ollama:m", 1, COST, NOW)
    ledger.close()
    Ledger(tmp_path / "critic.jsonl").close()
    ledger.settle(1, "ok", 0.1, Cost())
    assert [row["kind"] for row in lines(tmp_path)] == ["abandoned"]


def run_threads(count: int, work: Any) -> None:
    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


# ---- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "index", "limit"),
    [
        ({"max_calls": 20}, 0, 20),
        ({"max_tokens": 2500}, 1, 2500),
        ({"max_usd": 0.02}, 2, 20_000_000),
        ({"max_calls": 1000, "max_tokens": 10**6, "max_usd": 0.02}, 2, 20_000_000),
    ],
)
def test_no_limit_is_passed_by_many_threads(
    budget: dict[str, Any], index: int, limit: int, tmp_path: Path
) -> None:
    """Requests take at most what they set aside; at no moment do all together pass the limit."""
    ledger = Ledger(tmp_path / "critic.jsonl", BudgetConfig(**budget))
    refused: Counter[str] = Counter()
    lock, out, most_out = threading.Lock(), [ledger.spent[index]], [0]

    def work(name: int) -> None:
        rng = random.Random(name)
        while True:
            most = Cost(rng.randint(50, 200), 100, rng.choice([0.0005, 0.002]))
            try:
                number = ledger.reserve(CALL, "m", 1, most, NOW)
            except BudgetReached as error:
                refused[error.message] += 1
                return
            assert number is not None
            took = Cost(rng.randint(0, most.tokens_in), rng.randint(0, 100),
                        most.usd * rng.choice([0, 1]))  # fmt: skip
            held, spent = (
                (1, cost.tokens_in + cost.tokens_out, round(cost.usd * 1e9))[index]
                for cost in (most, took)
            )
            with lock:
                out[0] += held
                most_out[0] = max(most_out[0], out[0])
            time.sleep(rng.uniform(0, 0.002))
            with lock:
                out[0] += spent - held
                ledger.settle(number, "ok", 0.0, took)

    run_threads(32, work)
    assert sum(refused.values()) == 32 and len(refused) == 1  # all stopped by the same
    assert most_out[0] <= limit
    assert ledger.spent[index] <= limit
    assert ledger.spent[index] > limit / 2  # and the budget was used, not only kept
    assert not ledger.out
    rows = lines(tmp_path)  # whole ones, whatever the order
    assert sorted(row["n"] for row in rows) == list(range(1, len(rows) + 1))
    assert Ledger(tmp_path / "critic.jsonl").spent == ledger.spent


def test_what_does_not_fit_waits_for_what_is_out(tmp_path: Path) -> None:
    ledger = Ledger(None, BudgetConfig(max_tokens=1000))
    big = Cost(600, 300)
    number = ledger.reserve(CALL, "m", 1, big, NOW)
    assert number is not None
    got: list[int | None] = []
    thread = threading.Thread(target=lambda: got.append(ledger.reserve(CALL, "m", 1, big, NOW)))
    thread.start()
    time.sleep(0.05)
    assert not got
    ledger.settle(number, "ok", 0.1, Cost(50, 10))  # it took far less than it might have
    thread.join(10)
    assert got == [2]


def test_after_the_limit_nothing_is_let_through() -> None:
    """A smaller call would still fit; but the run is about to stop, and would lose its reply."""
    ledger = Ledger(None, BudgetConfig(max_tokens=1000))
    with pytest.raises(BudgetReached):
        spend(ledger, Cost(2000, 0))
    with pytest.raises(BudgetReached, match="the next call may take 2000 tokens"):
        spend(ledger, Cost(1, 0))


def test_the_message_says_what_was_spent_and_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    ledger = Ledger(run / "critic.jsonl", BudgetConfig(max_usd=0.0025))
    for _ in range(2):
        spend(ledger)
    with pytest.raises(BudgetReached) as caught:
        spend(ledger)
    assert caught.value.message == (
        "critic.budget.max_usd = 0.0025 is reached: 2 calls, 240 tokens and $0.002000 are spent, "
        "and the next call may take $0.001000"
    )
    assert caught.value.hint == (
        f"mlxreflect resume '{run}' --set critic.budget.max_usd=0.006 "
        "(what was answered is kept and not paid again)"
    )
    unkept = Ledger(run / "critic.jsonl", BudgetConfig(max_calls=2), kept=False)
    with pytest.raises(BudgetReached, match=r"max_calls = 2 is reached") as caught:
        spend(unkept)
    assert "max_calls=6" in caught.value.hint
    assert 'critic.cache = "off" the open wave is asked and paid again' in caught.value.hint


def test_dollars_add_up_without_rounding() -> None:
    ledger = Ledger(None, BudgetConfig(max_usd=0.3))
    for _ in range(3):  # 0.1 + 0.1 + 0.1 > 0.3 in floating point
        spend(ledger, Cost(1, 1, 0.1))
    with pytest.raises(BudgetReached):
        spend(ledger, Cost(0, 0, 1e-9))


# ---- the client beside it ------------------------------------------------------------------------


def client(send: Any, budget: dict[str, Any], **settings: Any) -> Client:
    defaults: dict[str, Any] = {"cache": "off", "model": "m", "max_tokens": 100, "price_in": 1.0}
    config = CriticConfig(provider="openai", **defaults | settings)
    return Client(config, "run", Scripted(send), Ledger(None, BudgetConfig(**budget)))


def calls(count: int) -> list[Call]:
    return [replace(CALL, attempt=str(n)) for n in range(count)]


@pytest.mark.parametrize(
    ("usage", "tokens", "estimated"),
    [
        ({"prompt": 7, "completion": 3}, (7, 3), False),
        ({"completion": 3}, (22 + 16 + 32, 3), True),
        ({}, (22 + 16 + 32, 100), True),
        (token_counts(-5, 3), (22 + 16 + 32, 3), True),
    ],
)
def test_tokens_that_were_not_reported_count_as_the_most_they_can_be(
    usage: dict[str, int], tokens: tuple[int, int], estimated: bool
) -> None:
    one = client(lambda call: Reply("fine", usage=usage), {})
    [reply] = one.ask([CALL])
    one.close()
    assert (reply.cost.tokens_in, reply.cost.tokens_out) == tokens
    assert reply.cost.estimated is estimated
    assert reply.cost.usd == pytest.approx(tokens[0] / 1e6)


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        (CallError("http_500", "refused before any work"), (1, 0)),
        (CallError("connect", "never arrived"), (1, 0)),
        (CallError("timeout", "perhaps it worked on it"), (1, 70 + 100)),
        (CallError("reset", "broke off"), (1, 70 + 100)),
        (CallError("empty", "and said so", usage={"prompt": 9, "completion": 1}), (1, 10)),
    ],
    ids=lambda value: value.kind if isinstance(value, CallError) else "",
)
def test_what_a_failed_request_counts(error: CallError, spent: tuple[int, int]) -> None:
    def send(call: Call) -> Reply:
        raise error

    one = client(send, {})
    assert one.ask([CALL])[0].kind == error.kind
    assert one.ledger.spent[:2] == spent
    one.close()


def test_waiting_for_the_budget_takes_nothing_from_a_calls_deadline() -> None:
    """The second call waits longer for the first than its own deadline, and is answered."""

    def send(call: Call) -> Reply:
        assert one.provider.wire.local.deadline.left > 0.2
        time.sleep(0.4)
        return Reply("fine", usage={"prompt": 1, "completion": 1})

    one = client(send, {"max_tokens": 200}, concurrency=3, deadline_s=0.5)
    assert [reply.text for reply in one.ask(calls(3))] == ["fine"] * 3
    one.close()


def test_threads_that_ask_for_the_same_send_it_once(tmp_path: Path) -> None:
    sent: list[str] = []

    def send(call: Call) -> Reply:
        sent.append(call.attempt)
        time.sleep(0.01)
        return Reply(call.attempt, usage={"prompt": 1, "completion": 1})

    one = client(send, {}, cache=str(tmp_path / "c.sqlite"), concurrency=4)
    got: list[str] = []
    run_threads(16, lambda name: got.extend(one.ask([c])[0].text for c in calls(10)))
    one.close()
    assert Counter(sent) == Counter(str(n) for n in range(10))
    assert Counter(got) == Counter({str(n): 16 for n in range(10)})


KILLED = """
import threading
from pathlib import Path
from support.critics import Scripted, call
from mlxreflect.critics.base import Reply
from mlxreflect.critics.client import Client
from mlxreflect.critics.ledger import Ledger
from mlxreflect.config.schema import CriticConfig
folder = Path(sys.argv[1])
def send(call):
    with (folder / "sent").open("a") as out:
        out.write(call.attempt + "\\n")
    if call.attempt == "4":
        print("here", flush=True)
        threading.Event().wait()
    return Reply("fine", usage={"prompt": 1, "completion": 1})
config = CriticConfig(provider="openai", model="m", cache=str(folder / "c.sqlite"), concurrency=1)
Client(config, "run", Scripted(send), Ledger(folder / "critic.jsonl")).ask(
    [call(attempt=str(n)) for n in range(9)])
"""


@pytest.mark.slow
def test_every_request_of_a_killed_process_has_its_line(tmp_path: Path) -> None:
    with subprocess.Popen(child(KILLED, tmp_path), stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    ledger = Ledger(tmp_path / "critic.jsonl")
    sent = (tmp_path / "sent").read_text().split()
    assert [row["attempt"] for row in ledger.rows()] == sent == ["0", "1", "2", "3", "4"]
    assert [row["kind"] for row in ledger.rows()] == ["ok"] * 4 + ["abandoned"]


# ---- figures -------------------------------------------------------------------------------------


def test_the_counts_add_up_and_do_not_depend_on_the_order() -> None:
    replies = [
        *(Reply("a", tries=n, seconds=n / 10, cost=Cost(10, 5, 0.1)) for n in (1, 2, 3)),
        Reply("b", cached=True),
        Reply("", error="e", kind="http_500", tries=6),
        Reply("", error="e", kind="timeout", tries=1),
        Reply("", error="e", kind="unknown", tries=1, seconds=9.0, cost=Cost(1, 1)),
        Reply("solver"),
    ]
    rows = []
    for seed in range(4):
        random.Random(seed).shuffle(replies)
        rows.append(tally(replies))
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert rows[0] == {
        "calls": 8, "cached": 1, "answered": 4, "failed": 2, "unknown": 1,
        "kinds": {"http_500": 1, "timeout": 1}, "tokens_in": 31, "tokens_out": 16, "usd": 0.3,
        "wire": {"retried": 8, "median_s": 0.2, "p95_s": 9.0},
    }  # fmt: skip
    whole = total(rows, [])
    assert (whole["calls"], whole["usd"], whole["kinds"]["timeout"]) == (32, 1.2, 4)
    assert whole["wire"]["median_s"] is None


def test_quantiles_are_among_the_values() -> None:
    assert quantiles([float(n) for n in range(1, 101)]) == {"median_s": 50.0, "p95_s": 95.0}
    assert quantiles([1.0]) == {"median_s": 1.0, "p95_s": 1.0}
    assert quantiles([1.0, 2.0, 3.0]) == {"median_s": 2.0, "p95_s": 3.0}
