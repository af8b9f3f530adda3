"""Kept replies: what makes a call new, and how a file is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from mlxreflect.config.schema import CriticConfig
from mlxreflect.core.cache import cache_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import make_problem
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.replies import FILE, Replies, cache_key

CALL = Call(
    role="critique",
    problem=make_problem("countdown", {"numbers": [1, 2, 3], "target": 6}),
    messages=[{"role": "system", "content": "Review."}, {"role": "user", "content": "1+2=4"}],
    text="1+2=4",
    template="abcd",
    attempt="1",
    seed=7,
)
CONFIG = CriticConfig(provider="ollama", model="critic")


@pytest.mark.parametrize(
    ("call", "settings", "same"),
    [
        *(({name: value}, {}, False) for name, value in {
            "epoch": 1, "attempt": "2", "role": "rewrite", "template": "efgh", "seed": 8,
            "messages": [{"role": "user", "content": "other"}],
            "problem": make_problem("countdown", {"numbers": [1, 2, 4], "target": 6}),
        }.items()),
        *(({}, {name: value}, False) for name, value in {
            "model": "other", "provider": "solver", "temperature": 0.5, "max_tokens": 100,
            "num_ctx": 4096, "thinking": "low", "top_p": 0.9, "top_k": 5,
        }.items()),
        ({}, {"concurrency": 9, "deadline_s": 9.0, "keep_alive": "0",
              "base_url": "http://elsewhere"}, True),
    ],
    ids=lambda change: "-".join(change) if isinstance(change, dict) else str(change),
)  # fmt: skip
def test_what_makes_another_key(call: dict[str, Any], settings: dict[str, Any], same: bool) -> None:
    changed = cache_key(CONFIG.model_copy(update=settings), replace(CALL, **call))
    assert (changed == cache_key(CONFIG, CALL)) is same


def test_the_settings_say_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLXREFLECT_CACHE", raising=False)
    assert cache_path("off", FILE) is None
    assert cache_path("", FILE) == Path(platformdirs.user_cache_dir("mlxreflect")) / "critic.sqlite"
    assert cache_path("~/c.sqlite", FILE) == Path.home() / "c.sqlite"
    monkeypatch.setenv("MLXREFLECT_CACHE", str(tmp_path))
    assert cache_path("", FILE) == tmp_path / "critic.sqlite"
    assert cache_path("here.sqlite", FILE) == Path("here.sqlite")


def test_a_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    reply = Reply("a \ud83d \x00 ü", finish_reason="stop", usage={"prompt": 3, "completion": 4})
    kept = Replies(tmp_path / "new" / "folder" / "c.sqlite", "run")
    assert kept.get("k") is None
    assert kept.put("k", reply) == kept.get("k") == reply
    other = Replies(tmp_path / "new" / "folder" / "c.sqlite", "another")
    first = replace(reply, cached=True)
    assert other.put("k", Reply("later")) == other.get("k") == first  # the first writer's
    other.close()
    kept.close()
    assert kept.get("k") is None
    assert kept.put("k", reply) == reply


@pytest.mark.parametrize("value", [b"{", b"[]", b'{"body": 1}', b'{"run": "a", "reply": []}'])
def test_an_unreadable_row_is_damage(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "c.sqlite"
    kept = Replies(path, "run")
    kept.cache.put(cache_key(CONFIG, CALL), value)
    kept.close()
    again = Replies(path, "run")
    with pytest.raises(UserError, match="critic cache is damaged") as caught:
        again.get(cache_key(CONFIG, CALL))
    assert str(path) in caught.value.message and str(path) in caught.value.hint
    again.close()
