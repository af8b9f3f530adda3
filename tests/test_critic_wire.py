"""The fake Ollama answers as a real one did, whose exchanges were recorded."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_ollama import FakeOllama

RECORDED = Path(__file__).parents[2] / "shared/cases/wire/ollama-0.32.jsonl"
pytestmark = pytest.mark.skipif(not RECORDED.is_file(), reason="needs the recording")
# What no fake needs: other servers, streams, models of its disk, processes that were killed.
OTHER = re.compile("stream|broken JSON|cannot load|is killed|SIGTERM|is down|^ps|show$")


def exchanges() -> list[Any]:
    if not RECORDED.is_file():
        return []
    rows = map(json.loads, RECORDED.read_text(encoding="utf-8").splitlines())
    return [
        pytest.param(row, id=row["label"])
        for row in rows
        if row["server"] == "ollama" and "/v1" not in row["path"] and not OTHER.search(row["label"])
    ]


def whole(request: Any) -> Any:
    """A request whose long text was cut in the recording, with as long a text as it had."""
    return json.loads(
        re.sub(
            r"…\[(\d+) chars\]…", lambda cut: "and so on " * (int(cut[1]) // 10),
            json.dumps(request, ensure_ascii=False),
        )
    )  # fmt: skip


@pytest.mark.parametrize("row", exchanges())
def test_the_fake_answers_as_ollama_does(row: dict[str, Any]) -> None:
    reply = "{}" if (row["request"] or {}).get("format") else "12 feet, and so on. " * 150
    with FakeOllama(models=["smol"], context=8192, reply=lambda body: reply) as server:
        said = httpx.request(row["method"], server.url + row["path"], json=whole(row["request"]))
    real = row["response"]
    assert said.status_code == row["status"]
    assert said.headers["content-type"].startswith(row["headers"]["Content-Type"].split(";")[0])
    if isinstance(real, str):
        assert said.text == real
        return
    fake = said.json()
    assert fake.keys() >= real.keys() - {"system_fingerprint"}
    if "error" in real:
        assert shape(fake["error"]) == shape(real["error"])
    elif "done" in real:
        assert fake["message"].keys() == real["message"].keys() if "message" in real else True
        count, window = real.get("prompt_eval_count"), row["request"].get("options", {})
        if count == 258:  # cut: half of the window and the first tokens
            assert (fake["prompt_eval_count"], window["num_ctx"]) == (258, 512)
        if row["request"].get("shift") is False:
            assert fake["prompt_eval_count"] + fake["eval_count"] == window["num_ctx"] == 512
        assert "format" in row["request"] or real["done_reason"] in (fake["done_reason"], "stop")


def shape(error: str) -> Any:
    """An error as it stays the same for other texts: the form of nested ones, without numbers."""
    if error.startswith("{"):
        inner = json.loads(error)["error"]
        return {
            **inner,
            "message": re.sub(r"\d+|(?:ref #|schema: ).*|ref \{.*", "N", inner["message"]),
            "n_prompt_tokens": None,
        }
    return error
