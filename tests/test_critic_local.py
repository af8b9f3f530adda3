"""Critics in this process: another model beside the policy, and the policy itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.methods import attempt_messages

from mlxreflect.config.schema import CriticConfig, PolicyConfig, TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import Hosts
from mlxreflect.core.records import Problem
from mlxreflect.critics import open_critic
from mlxreflect.critics.base import Call
from mlxreflect.critics.local import LocalCritic, SelfCritic
from mlxreflect.models.load import load_policy
from mlxreflect.models.policy import Policy
from mlxreflect.tasks import TASKS, countdown

PROBLEMS = TASKS["countdown"].load(TaskConfig(limit=5), "dev", 0)


def ask_about(problem: Problem, **changes: Any) -> Call:
    question = countdown.instruction(problem), countdown.show(problem)
    messages = attempt_messages(*question, "think", "thinking")
    return replace(Call("rewrite", problem, messages, "1+2=4"), **changes)


def local(**settings: Any) -> LocalCritic:
    defaults: dict[str, Any] = {"model": "tiny", "max_tokens": 60, "temperature": 0.0}
    config = CriticConfig(provider="local", **defaults | settings)
    critic = open_critic(config, "", "run")
    assert isinstance(critic, LocalCritic)
    return critic


def test_it_answers_as_the_same_model_does_and_in_order() -> None:
    calls = [ask_about(problem) for problem in PROBLEMS]
    critic = local(concurrency=2)
    replies = critic.ask(calls)
    own = SelfCritic(load_policy(PolicyConfig()), critic.config, 2).ask(calls)
    assert [reply.text for reply in replies] == [reply.text for reply in own]
    assert len({reply.text for reply in replies}) == 5
    assert [reply.usage for reply in replies] == [reply.usage for reply in own]
    assert {reply.finish_reason for reply in replies} == {"stop"}
    # Tokens are those of another tokenizer, and of no use to the policy.
    assert all(reply.token_ids is None for reply in replies)
    assert all(reply.token_ids for reply in own)
    assert critic.actor == "local:tiny"


def test_its_chat_template_has_the_switch_of_the_key(opening: Path) -> None:
    """A template that opens the thought by itself, unless it is off."""
    for thinking, ends in (("auto", True), ("off", False)):
        critic = local(model=str(opening), thinking=thinking)
        critic.preflight()
        assert critic.model
        asked = critic.model.encode(ask_about(PROBLEMS[0]).messages)
        assert critic.model.decode(asked).endswith("<think>") == ends
    critic = local(thinking="low")
    critic.preflight()
    assert critic.model and critic.model.template.options == {"reasoning_effort": "low"}


def test_its_own_thought_is_left_out_of_a_critique() -> None:
    [rewrite, critique] = local().ask(
        [ask_about(PROBLEMS[0]), ask_about(PROBLEMS[0], role="critique")]
    )
    assert rewrite.text.startswith("<think>")
    assert critique.text and rewrite.text.endswith(critique.text)
    assert "</think>" not in critique.text


def test_a_seed_names_its_replies() -> None:
    critic = local(temperature=1.5, max_tokens=9)
    first, again, other = (critic.ask([ask_about(PROBLEMS[0], seed=s)])[0] for s in (1, 1, 2))
    assert first == again != other
    assert (first.finish_reason, first.usage["completion"]) == ("length", 9)


def test_it_is_loaded_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def counted(config: PolicyConfig, table: str, hosts: Hosts) -> Policy:
        loaded.append(config.model)
        return load_policy(config, table, hosts)

    monkeypatch.setattr("mlxreflect.critics.local.load_policy", counted)
    critic = local()
    assert critic.ask([]) == []
    assert loaded == []
    critic.preflight()
    critic.ask([ask_about(PROBLEMS[0])])
    critic.ask([ask_about(PROBLEMS[1])])
    assert loaded == ["tiny"]
    critic.close()
    assert critic.model is None


def test_another_model_than_the_policy(tiny_random: Path) -> None:
    call = ask_about(PROBLEMS[0], role="critique")
    [other], [own] = local(model=str(tiny_random)).ask([call]), local().ask([call])
    assert other.text != own.text


@pytest.mark.parametrize("make", [lambda folder: "/none/such", lambda folder: str(folder)])
def test_a_model_that_cannot_be_loaded(make: Callable[[Path], str], tmp_path: Path) -> None:
    model = make(tmp_path)
    with pytest.raises(UserError) as caught:
        local(model=model).preflight()
    assert caught.value.message.startswith(f"critic.model = {model!r}")
    assert caught.value.hint
