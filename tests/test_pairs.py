"""Episodes to training data: which pairs, from which turns, and nothing a critic was shown."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mlxreflect.core.records import Episode, Outcome, Turn, Verdict, make_problem
from mlxreflect.data.forms import LEAKS, leak, trl_row
from mlxreflect.methods.base import completion, preference
from mlxreflect.prompts.parsing import parse_response
from mlxreflect.prompts.roles import quote, role_messages

QUESTION, GOLD = "What is six times seven?", "GOLD-42"
DATA = {"instruction": "Multiply.", "question": QUESTION, "attempt": "x", "expected": GOLD}
PROMPT = role_messages("attempt_thinking", "think", **DATA)
SHOWN = role_messages("critique", "think", **DATA)
REWRITING = role_messages("rewrite", "think", **DATA, feedback="feedback: SECRET")
RIGHT, WRONG = Verdict(True, True, ""), Verdict(False, True, "the answer is 36")


def turn(index: int, parent: int | None, role: Any, verdict: Verdict | None, **more: Any) -> Turn:
    by_policy = role in ("attempt", "verify")
    messages = PROMPT if by_policy else SHOWN if role == "critique" else REWRITING
    text = f"text {index}"
    ids = [index, 9] if by_policy else None
    return Turn(index, parent, role, "someone", messages, text, verdict=verdict, token_ids=ids,
                visibility="none" if by_policy else "gold_answer", **more)  # fmt: skip


def episode(*turns: Turn) -> Episode:
    problem = make_problem("jsonl", {"question": QUESTION}, GOLD)
    return Episode("r3", 2, 5, problem, list(turns), Outcome(False, None, "bucket"))


# Attempt, two rewrites (the second on feedback to the first), a failed verification, a rewrite of
# that, and another verification: the whole course of an R³ problem.
WHOLE = episode(*(turn(i, i - 1 if i else None, role, verdict) for i, (role, verdict) in enumerate([
    ("attempt", WRONG), ("critique", None), ("rewrite", WRONG), ("critique", None),
    ("rewrite", RIGHT), ("verify", WRONG), ("critique", None), ("rewrite", RIGHT),
    ("verify", RIGHT),
])))  # fmt: skip


def test_tokens_of_the_policy_are_kept_and_a_critics_are_not_invented() -> None:
    first = preference(WHOLE, WHOLE.turns[4], WHOLE.turns[0])
    assert (first.chosen_ids, first.rejected_ids) == (None, [0, 9])
    own = replace(WHOLE.turns[4], token_ids=[4, 4, 9])  # the policy was its own critic
    pair = preference(WHOLE, own, WHOLE.turns[0])
    assert pair.chosen_ids == [4, 4, 9]
    assert completion(WHOLE, WHOLE.turns[8]).completion_ids == [8, 9]
    assert completion(WHOLE, WHOLE.turns[4]).completion_ids is None
    found = completion(WHOLE, WHOLE.turns[8], 0.25)
    assert (found.kind, found.completion, found.weight) == ("sft", "text 8", 0.25)
    assert found.source["turns"] == [8]
    assert (found.chosen, found.rejected) == (None, None)


def test_a_training_prompt_is_the_attempts_own() -> None:
    """Never a rewrite's: that one shows the attempt, the feedback and the gold answer."""
    examples = [
        preference(WHOLE, WHOLE.turns[7], WHOLE.turns[5]),
        completion(WHOLE, WHOLE.turns[4]),
        completion(WHOLE, WHOLE.turns[8]),
    ]
    for example in examples:
        assert example.prompt == PROMPT
        text = json.dumps([example.prompt, trl_row(example)])
        assert GOLD not in text
        assert "SECRET" not in text
    assert GOLD in json.dumps([SHOWN, REWRITING])  # it was there to be leaked
    assert quote("expected", GOLD) in REWRITING[1]["content"]


def test_trls_forms() -> None:
    first = preference(WHOLE, WHOLE.turns[4], WHOLE.turns[0])
    assert trl_row(first) == {
        "prompt": PROMPT,
        "chosen": [{"role": "assistant", "content": "text 4"}],
        "rejected": [{"role": "assistant", "content": "text 0"}],
    }
    assert trl_row(completion(WHOLE, WHOLE.turns[4])) == {
        "prompt": PROMPT,
        "completion": [{"role": "assistant", "content": "text 4"}],
    }


def leaked(text: str, style: str = "thinking") -> str:
    return leak(text, parse_response(text, "think", style).spans, style)


@pytest.mark.parametrize("phrase", LEAKS)
def test_a_rewrite_that_says_it_was_helped(phrase: str) -> None:
    broken = phrase.replace(" ", "\n ")  # where a line breaks
    for said in (phrase, phrase.capitalize(), phrase.upper(), broken):
        assert repr(phrase) in leaked(f"<think>6 * 7, {said}, is 42</think><answer>42</answer>")
        assert leaked(f"<think>6 * 7 is 42</think><answer>42</answer> {said}")


def test_a_rewrite_without_working() -> None:
    for thought in ("<think></think>", "<think> </think>", "<think>\n \n</think>",
                    "<think>7</think>", ""):  # fmt: skip
        text = f"{thought}<answer>42</answer>"
        assert "restates" in leaked(text)
        assert leaked(text, "direct") == ""


@pytest.mark.parametrize(
    "text",
    [
        "<think>6 * 7 = 42</think><answer>42</answer>",
        "6 * 7 = 42</think><answer>42</answer>",
        "<think>The problem has provided two numbers: 6 * 7 = 42</think><answer>42</answer>",
        "<think>Of the given answer choices,\nB is 42</think><answer>B</answer>",
        "<think>\nWait, 6 * 6 is 36. The answer must be 42.\n</think>\n<answer>42</answer>",
    ],
)
def test_honest_working_is_no_leak(text: str) -> None:
    assert leaked(text) == ""
