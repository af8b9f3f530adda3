"""Examples as tokens: what the policy wrote as it is, one end token, nothing cut silently."""

import numpy as np
import pytest

from mlxreflect.policy import Policy
from mlxreflect.prompts import attempt_messages
from mlxreflect.records import Example
from mlxreflect.train.batches import PAD_TO, Dropped, Pair, Row, collate, encode_example

MESSAGES = attempt_messages("Do it.", "Numbers: 3 4 5\nTarget: 35", "think", "thinking")
TEXT = "<think>\nstep 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35\n</think>\n<answer> ( 3 + 4 ) * 5 </answer>"
OTHER = "<think>\nstep 1: 3 + 5 = 8\n</think>\n<answer> 3 + 5 </answer>"


@pytest.fixture(scope="module")
def policy(tiny_random: object) -> Policy:
    from mlxreflect.policy import load_policy
    from mlxreflect.recipe import PolicyConfig

    return load_policy(PolicyConfig(model=str(tiny_random)))


def sft(text: str | None, ids: list[int] | None = None, weight: float = 1.0) -> Example:
    return Example("sft", MESSAGES, completion=text, completion_ids=ids, weight=weight)


def preference(
    chosen: str, rejected: str, ids: list[int] | None = None, others: list[int] | None = None
) -> Example:
    return Example("preference", MESSAGES, chosen, rejected, chosen_ids=ids, rejected_ids=others)


def row(policy: Policy, example: Example, max_length: int = 500) -> Row:
    encoded = encode_example(policy, example, max_length)
    assert isinstance(encoded, Row)
    return encoded


def pair(policy: Policy, example: Example, max_length: int = 500) -> Pair:
    encoded = encode_example(policy, example, max_length)
    assert isinstance(encoded, Pair)
    return encoded


@pytest.mark.parametrize("text", [TEXT, OTHER, "", "x", " 7", "\n</think>", "naïve ✓ 😀 ５²"])
def test_a_text_gets_exactly_one_end_token(policy: Policy, text: str) -> None:
    found = row(policy, sft(text))
    end = policy.end_of_turn
    assert found.prompt == policy.encode(MESSAGES)
    assert found.response[-1] == end
    assert found.response.count(end) == 1
    assert policy.decode(found.response[:-1]) == text
    whole = policy.tokenizer.encode(policy.decode(found.prompt) + text, add_special_tokens=False)
    assert found.prompt + found.response == [*whole, end]


def test_what_the_policy_generated_is_used_as_it_is(policy: Policy) -> None:
    """Even where its tokens are not how the tokenizer would write the same text."""
    bytes_of_35 = [policy.tokenizer.encode(c, add_special_tokens=False)[0] for c in " 35"]
    assert policy.decode(bytes_of_35) == " 35"
    assert policy.tokenizer.encode(" 35", add_special_tokens=False) != bytes_of_35
    stopped = [*bytes_of_35, policy.end_of_turn]
    assert row(policy, sft(" 35", stopped)).response == stopped
    assert row(policy, sft("words that the ids are not", stopped)).response == stopped
    found = pair(policy, preference(TEXT, " 35", None, stopped))
    assert found.rejected.response == stopped
    assert found.chosen.response[-1] == policy.end_of_turn


def test_a_response_cut_by_length_gets_no_end_token(policy: Policy) -> None:
    (completion,) = policy.generate(
        [policy.encode(MESSAGES)],
        temperature=0, top_p=1, max_new_tokens=5, batch=1, seed=(0,),
    )  # fmt: skip
    assert completion.finish_reason == "length"
    found = row(policy, sft(completion.text, completion.token_ids))
    assert found.response == completion.token_ids
    assert len(found.response) == 5
    assert policy.end_of_turn not in found.response


def test_long_prompts_are_cut_from_the_left(policy: Policy) -> None:
    prompt = policy.encode(MESSAGES)
    whole = row(policy, sft(TEXT))
    for short in (1, len(prompt) - 1):
        found = row(policy, sft(TEXT), whole.length - short)
        assert found.response == whole.response
        assert found.prompt == prompt[short:]
    assert row(policy, sft(TEXT), whole.length) == whole


def test_both_responses_of_a_pair_answer_the_same_prompt(policy: Policy) -> None:
    prompt = policy.encode(MESSAGES)
    whole = pair(policy, preference(TEXT, OTHER))
    assert len(whole.chosen.response) != len(whole.rejected.response)
    longest = max(whole.chosen.length, whole.rejected.length)
    for example in (preference(TEXT, OTHER), preference(OTHER, TEXT)):
        cut = pair(policy, example, longest - 4)
        assert (cut.chosen.prompt, cut.rejected.prompt) == (prompt[4:], prompt[4:])


def test_long_responses_are_dropped_and_named(policy: Policy) -> None:
    tokens = len(row(policy, sft(TEXT)).response)
    for limit in (1, tokens - 1, tokens):  # at least one token of the prompt is needed
        example = sft(TEXT)
        dropped = encode_example(policy, example, limit)
        assert isinstance(dropped, Dropped)
        assert dropped.example is example
        assert str(limit) in dropped.reason
    assert isinstance(encode_example(policy, sft(TEXT), tokens + 1), Row)
    for example in (preference(TEXT, OTHER), preference(OTHER, TEXT)):
        dropped = encode_example(policy, example, tokens)
        assert isinstance(dropped, Dropped)
        assert dropped.example is example
        assert str(tokens) in dropped.reason
        assert isinstance(encode_example(policy, example, tokens + 1), Pair)


def test_a_pair_without_a_difference_is_dropped(policy: Policy) -> None:
    dropped = encode_example(policy, preference(TEXT, TEXT), 500)
    assert isinstance(dropped, Dropped)
    assert "same" in dropped.reason
    ids = row(policy, sft(TEXT)).response
    assert isinstance(encode_example(policy, preference(TEXT, "x", None, ids), 500), Dropped)
    # The same words, one cut by length and one ended: to end there is the difference.
    assert isinstance(encode_example(policy, preference(TEXT, TEXT, ids[:-1]), 500), Pair)


def test_weights_are_carried(policy: Policy) -> None:
    assert row(policy, sft(TEXT, weight=0.25)).weight == 0.25
    example = Example("preference", MESSAGES, TEXT, OTHER, weight=3.0)
    assert pair(policy, example).chosen.weight == 3.0


def test_a_batch_is_shifted_masked_and_padded() -> None:
    rows = [Row([5, 6, 7], [8, 9], 2.0), Row([1], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11])]
    batch = collate(rows)
    width = batch.inputs.shape[1]
    assert width % PAD_TO == 0
    assert width >= 10
    for name in ("inputs", "targets", "mask"):
        assert getattr(batch, name).shape == (2, width)
    inputs, targets, mask = (np.array(a) for a in (batch.inputs, batch.targets, batch.mask))
    assert inputs[0, :4].tolist() == [5, 6, 7, 8]
    assert targets[0, :4].tolist() == [6, 7, 8, 9]
    assert batch.lengths.tolist() == [2, 10]
    assert batch.weights.tolist() == [2, 1]
    assert mask.sum(1).tolist() == [2, 10]
    for i, r in enumerate(rows):  # the loss sees the response, all of it and nothing else
        assert targets[i][mask[i] == 1].tolist() == r.response
        before = inputs[i][mask[i] == 1]
        assert before.tolist() == (r.prompt + r.response)[len(r.prompt) - 1 : -1]


def test_lengths_come_in_few_shapes() -> None:
    widths = {collate([Row([1], [2] * n)]).inputs.shape[1] for n in range(1, 81)}
    assert widths == set(range(PAD_TO, 81, PAD_TO))
