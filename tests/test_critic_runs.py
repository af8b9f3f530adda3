"""Runs with a remote critic that are killed, stopped by their budget, or replayed without it."""

import base64
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.critic_runs import (
    arguments,
    do,
    figures,
    flags,
    resume,
    run,
    same,
    solving,
    words,
    written,
)
from support.fake_ollama import FakeOllama
from support.fake_server import Body, Fault, http
from support.kill_driver import DRIVER

from mlxreflect.cli import main as cli
from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import method_of
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.critics import client, open_critics
from mlxreflect.critics.ledger import BudgetReached, Ledger
from mlxreflect.report import show
from mlxreflect.runs.figures import lost_texts, ruined, untrained
from mlxreflect.runs.folder import create_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was never stopped, its replies in cache.sqlite beside it."""
    folder = tmp_path_factory.mktemp("whole")
    with FakeOllama(reply=solving) as server:
        run(folder / "run", server.url, cache=str(folder / "cache.sqlite"), **PRICED)
    yield folder / "run"


PRICED = {"price_in": 3.0, "price_out": 15.0, "max_tokens": 40}


def sent(server: FakeOllama) -> Counter[str]:
    """How often each call was sent."""
    return Counter(words(body) for body in server.chats)


# ---- budget --------------------------------------------------------------------------------------


def taken(folder: Path, server: FakeOllama) -> dict[str, float]:
    """What a run has taken of each limit, by its ledger, which has what the server was sent."""
    lines = list(read_rows(folder / "critic.jsonl"))
    assert len(lines) == len(server.chats)
    return {
        "budget_max_usd": sum(row["usd"] for row in lines),
        "budget_max_calls": len(lines),
        "budget_max_tokens": sum(row["tokens_in"] + row["tokens_out"] for row in lines),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [{"budget_max_usd": 0.026}, {"budget_max_calls": 25}, {"budget_max_tokens": 6000}],
    ids=lambda limits: next(iter(limits)),
)
def test_a_run_stops_at_its_budget_and_goes_on_with_a_higher_one(
    limits: dict[str, float], whole: Path, tmp_path: Path
) -> None:
    [(name, limit)] = limits.items()
    cache = str(tmp_path / "c.sqlite")
    with FakeOllama(reply=solving) as server:
        with pytest.raises(BudgetReached, match="is reached"):
            run(tmp_path / "run", server.url, cache=cache, **PRICED, **limits)
        first = taken(tmp_path / "run", server)[name]
        assert limit / 2 < first <= limit
        assert list((tmp_path / "run" / "checkpoints").glob("wave-*"))
        with pytest.raises(BudgetReached):  # the same limit again: a shorter call may still fit
            resume(tmp_path / "run")
        assert first <= taken(tmp_path / "run", server)[name] <= limit
        resume(tmp_path / "run", **{name: limit * 100})
        assert set(sent(server).values()) == {1}
    same(tmp_path / "run", whole)
    counts = figures(tmp_path / "run")
    assert counts["wire"]["requests"] == counts["answered"]
    assert counts["wire"]["usd"] == pytest.approx(counts["usd"])


def test_the_command_line_says_it_in_two_lines_and_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with FakeOllama(reply=solving) as server:
        asked = arguments(folder, server.url, cache="off", budget_max_usd=0.005, **PRICED)
        monkeypatch.setattr(sys, "argv", ["mlxreflect", *asked])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: critic.budget.max_usd = 0.005 is reached: ")
    assert hint.startswith(f"hint: mlxreflect resume {folder} --set critic.budget.max_usd=0.0")
    assert 'with critic.cache = "off" the open wave is asked and paid again' in hint
    [requests] = [line for line in shown(folder).splitlines() if "requests to it" in line]
    assert f"{len(list(read_rows(folder / 'critic.jsonl')))}, 0 of them retries" in requests


def shown(folder: Path) -> str:
    from rich.console import Console

    out = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    for part in show.show_summary(folder):
        out.print(part)
    return out.export_text()


@pytest.mark.slow
def test_show_has_the_figures_of_a_finished_run(whole: Path) -> None:
    counts = figures(whole)
    text = " ".join(shown(whole).split())
    assert f"{counts['calls']} calls, 0 failed, 0 unknown" in text
    assert f"{counts['tokens_in']} tokens in, {counts['tokens_out']} out, $" in text


# ---- runs that train on nothing ------------------------------------------------------------------

REFUSED = "1 + 1 = 3, as anyone can see."  # a rewrite that no grader takes


@pytest.mark.parametrize(
    ("reply", "why", "mends"),
    [
        (lambda body: http(401, "the key is old"),
         r"none of \d+ critic calls gave a text; the last: HTTP 401: the key is old",
         "mlxreflect doctor"),
        (lambda body: http(400, "too long") if "Retry:" in str(body) else "Step 1 is wrong.",
         r"none of \d+ calls for a rewrite gave a text; the last: HTTP 400: too long",
         "mlxreflect doctor"),
        (lambda body: REFUSED,
         r"none of \d+ rewrites was taken; the last: 0 <think>…</think> blocks", "mlxreflect show"),
    ],
    ids=["all calls fail", "all calls for rewrites fail", "all rewrites are refused"],
)  # fmt: skip
@pytest.mark.slow
def test_a_run_that_trained_on_nothing_says_why_and_is_an_error(
    reply: Any, why: str, mends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """However few there were; below ten failures nothing stops it before its end."""
    few = {"task_limit": 3, "r3_wave": 3, "r3_bucket_every": 0, "r3_rewrites": 1}
    with FakeOllama(reply=reply) as server:
        asked = arguments(tmp_path / "run", server.url, cache="off", **few)
        monkeypatch.setattr(sys, "argv", ["mlxreflect", *asked, "--set=eval.limit=2"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 2
    said = capsys.readouterr()
    error, hint = said.err.splitlines()[-2:]
    assert "look at it" in said.out and "use it" not in said.out
    assert re.search(f"^error: the run trained on nothing: {why}", error)
    assert mends in hint and "allow_untrained = true" in hint
    assert re.search(why, " ".join(shown(tmp_path / "run").split()))
    again = ["resume", str(tmp_path / "run"), "--set=allow_untrained=true"]
    monkeypatch.setattr(sys, "argv", ["mlxreflect", *again])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code


@pytest.mark.parametrize(
    ("passed", "dropped", "why", "mends"),
    [(4, {}, "all 4 attempts were right", "harder"),
     (0, {}, "none of 4 attempts was right", "easier"),
     (2, {"too long": 3}, "no example could be trained on: too long", "train.max_length"),
     (0, {"cut": 6}, "all 6 answers were cut off", "raise policy.max_new_tokens"),
     (2, {}, "no attempt and nothing else made an example", "mlxreflect show")],
)  # fmt: skip
def test_what_a_run_says_that_trained_on_nothing_without_a_failed_call(
    passed: int, dropped: dict[str, int], why: str, mends: str, tmp_path: Path
) -> None:
    cut = dropped.pop("cut", 0)
    row = {"kind": "wave", "problems": 4, "passed": passed, "cut": cut, "answers": 6}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    found = untrained(tmp_path, {"dropped": dropped}, lost_texts(tmp_path))
    assert why in found["why"] and mends in found["hint"]


# ---- replies without a verdict -------------------------------------------------------------------


@pytest.mark.slow
def test_a_critic_that_was_mended_is_heard(tmp_path: Path) -> None:
    """What it said before stopped the run, and is not held against it for ever."""
    mended: list[bool] = []
    marks = json.dumps({"why": "", "depth": 5, "coherence": 5, "verification": 5,
                        "completeness": 5})  # fmt: skip
    settings = {
        "traces.scorer": "critic", "traces.warm_up": 12, "traces.wave": 12, "traces.rounds": 0,
            "traces.problems": 0, "traces.grpo.kl": 0.0,
        "task.limit": 12, "eval.limit": 4, "eval.direct": False, "critic.provider": "ollama",
        "critic.model": "critic", "critic.cache": str(tmp_path / "cache.sqlite"),
    }  # fmt: skip
    with FakeOllama(reply=lambda body: marks if mended else "I cannot say.") as server:
        chosen = ["profile=quick", *flags(settings | {"critic.base_url": server.url})]
        for _ in range(2):  # also the second time: its last words are forgotten, not asked less
            before = len(server.chats)
            with pytest.raises(UserError, match="no verdict in the reply: 'I cannot say") as stop:
                if before:
                    resume(tmp_path / "run")
                else:
                    do(create_run(load_recipe("traces", chosen), tmp_path / "run"))
            assert "then resume the run" in stop.value.hint
            assert len(server.chats) - before > 10
        mended.append(True)
        summary = resume(tmp_path / "run")
        assert summary["examples"]["sft"] > 0
        calls = summary["critic"]["calls"]
        assert (summary["critic"]["answered"], summary["critic"]["unknown"]) == (calls, 0)
        asked = len(server.chats)
        again = do(create_run(load_recipe("traces", chosen), tmp_path / "again"))
        assert again["critic"]["cached"] == calls
        assert len(server.chats) == asked


# ---- kills ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("point", "nth"), [("critiqued", 2), ("took a training step", 3)])
def test_a_killed_run_asks_nothing_again_that_was_answered(
    point: str, nth: int, whole: Path, tmp_path: Path
) -> None:
    with FakeOllama(reply=solving) as server:
        asked = arguments(tmp_path / "run", server.url, cache=str(tmp_path / "c"), **PRICED)
        killed = subprocess.run(
            [sys.executable, DRIVER, point, str(nth), *asked], capture_output=True, timeout=200
        )
        assert killed.returncode == -9, killed.stderr
        assert server.chats
        resume(tmp_path / "run")
        again = [call for call, times in sent(server).items() if times > 1]
        out = [row for row in read_rows(tmp_path / "run" / "critic.jsonl")
               if row["kind"] == "abandoned"]  # fmt: skip
        assert len(again) <= len(out)
        assert len(list(read_rows(tmp_path / "run" / "critic.jsonl"))) >= len(server.chats)
    same(tmp_path / "run", whole)
    figures(tmp_path / "run")


# ---- replay --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_replay_needs_no_server_and_ends_with_the_same(whole: Path, tmp_path: Path) -> None:
    cache = str(whole.parent / "cache.sqlite")
    run(tmp_path / "run", "http://127.0.0.1:9", cache=cache, replay=True, **PRICED)
    for name in ("episodes.jsonl", "examples.jsonl", "adapter/adapters.safetensors",
                 "eval/trained/samples.jsonl"):  # fmt: skip
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    counts = json.loads((tmp_path / "run" / "summary.json").read_text())["critic"]
    assert counts["calls"] == counts["cached"] == figures(whole)["calls"]
    assert (counts["usd"], counts["tokens_in"], counts["wire"]["requests"]) == (0, 0, 0)
    assert not (tmp_path / "run" / "critic.jsonl").exists()


@pytest.mark.slow
def test_what_a_replay_lacks_is_named_and_can_be_asked_for(whole: Path, tmp_path: Path) -> None:
    cache = tmp_path / "some.sqlite"
    with FakeOllama(reply=solving) as server:
        with pytest.raises(BudgetReached):
            run(tmp_path / "first", server.url, cache=str(cache), budget_max_calls=9, **PRICED)
        with pytest.raises(UserError, match=r"critic\.replay: no reply on disk") as caught:
            run(tmp_path / "run", server.url, cache=str(cache), replay=True, **PRICED)
        assert len(server.chats) == 9
        problems = {row["problem"]["id"] for row in read_rows(whole / "episodes.jsonl")}
        assert any(f"problem {pid}, " in caught.value.message for pid in problems)
        assert f"resume {tmp_path / 'run'} --set critic.replay=false" in caught.value.hint
        resume(tmp_path / "run", replay=False)
        assert set(sent(server).values()) == {1}
    for name in ("episodes.jsonl", "adapter/adapters.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


# ---- who is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "bucket", "tiers"),
    [(False, 0, {"basic"}), (False, 6, {"basic", "advanced"}),
     (True, 6, {"basic", "advanced", "judge"})],
)  # fmt: skip
def test_a_critic_is_opened_only_where_something_asks_it(
    judge: bool, bucket: int, tiers: set[str]
) -> None:
    recipe = load_recipe("quickstart", [f"critic.judge={JUDGE}"])
    asking = {"judge": judge, "bucket_every": bucket}
    recipe = recipe.model_copy(update={"r3": recipe.r3.model_copy(update=asking)})
    with FakeOllama() as server, ExitStack() as stack:
        judged = recipe.critic.judge | {"base_url": server.url}
        critic = recipe.critic.model_copy(update={"judge": judged})
        recipe = recipe.model_copy(update={"critic": critic})
        critics = open_critics(recipe, method_of(recipe).tiers(recipe), "run", Ledger(), stack)
        assert bool(server.requests) is judge  # looked for before the run begins
    assert set(critics) == tiers
    assert critics.get("advanced", critics["basic"]) is critics["basic"]
    if judge:
        assert critics["judge"].actor == "ollama:critic"


JUDGE = '{provider = "ollama", model = "critic", cache = "off"}'

# ---- secrets -------------------------------------------------------------------------------------

PASSWORD, KEY = "hidden-pw-5up3r", "sk-planted-0123456789"


@pytest.mark.slow
@pytest.mark.parametrize("secret", [PASSWORD, KEY])
def test_a_secret_reaches_no_file_and_no_screen(
    secret: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The address's password or a key, which the server repeats in each of its refusals."""
    monkeypatch.setattr(client, "BACKOFF_S", 0.005)
    signed: list[str] = []  # each request, in plain

    def reply(body: Body) -> str | Fault:
        scheme, _, token = server.requests[-1].headers["authorization"].partition(" ")
        plain = base64.b64decode(token).decode() if scheme == "Basic" else ""
        signed.append(f"{token} {plain}")
        status = (None, 401, 503)[len(signed) % 3]
        return http(status, f"who is {signed[-1]}?") if status else solving(body)

    with FakeOllama(reply=reply) as server:
        login = f"//me:{PASSWORD}@" if secret == PASSWORD else "//"
        monkeypatch.setenv("OLLAMA_HOST", server.url.replace("//", login))
        monkeypatch.setenv("OLLAMA_API_KEY", KEY)
        asked = arguments(
            tmp_path / "run", "", cache=str(tmp_path / "c.sqlite"), max_failed=1.0,
            r3_wave=12, r3_bucket_every=0,
        )  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["mlxreflect", *asked])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert not caught.value.code
    assert signed and all(secret in one for one in signed)  # it was sent
    assert figures(tmp_path / "run")["kinds"]["http_401"] > 0
    text = written(tmp_path) + "".join(capfd.readouterr()).encode()
    assert b"who is" in text
    for part in (PASSWORD, KEY, *signed[0].split()):
        assert part.encode() not in text


@pytest.mark.parametrize(
    ("base", "trained", "lost"),
    [((0.25, 0.9), (0.0, 0.1), True), ((0.25, 0.9), (0.0, 0.8), False),
     ((0.25, 0.9), (0.2, 0.1), False), ((0.0, 0.9), (0.0, 0.0), False)],
)  # fmt: skip
def test_a_policy_that_learning_ruined_is_said(
    base: tuple[float, float], trained: tuple[float, float], lost: bool
) -> None:
    arms = {"base": base, "trained": trained}
    told = {name: dict(zip(("accuracy", "format_rate"), arm, strict=True))
            for name, arm in arms.items()}  # fmt: skip
    assert ("lower train.lr" in ruined(told)) == lost
