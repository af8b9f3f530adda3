"""Examples as tokens: what the policy wrote as it is, one end token, nothing cut silently."""

from dataclasses import replace
from typing import Any

import pytest
from support.methods import attempt_messages

from mlxreflect.config.schema import MaskConfig
from mlxreflect.core.records import Example
from mlxreflect.models.policy import Policy
from mlxreflect.models.template import TemplateFault
from mlxreflect.train.batches import Group, Pair, Row
from mlxreflect.train.encode import Dropped, Encoder

MESSAGES = attempt_messages("Do it.", "Numbers: 3 4 5\nTarget: 35", "think", "thinking")
TEXT = "<think>\nstep 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35\n</think>\n<answer> ( 3 + 4 ) * 5 </answer>"
OTHER = "<think>\nstep 1: 3 + 5 = 8\n</think>\n<answer> 3 + 5 </answer>"


@pytest.fixture(scope="module")
def policy(tiny_random: object) -> Policy:
    from mlxreflect.config.schema import PolicyConfig
    from mlxreflect.models.load import load_policy

    return load_policy(PolicyConfig(model=str(tiny_random)))


def sft(text: str | None, ids: list[int] | None = None, weight: float = 1.0) -> Example:
    return Example("sft", MESSAGES, completion=text, completion_ids=ids, weight=weight)


def preference(
    chosen: str, rejected: str, ids: list[int] | None = None, others: list[int] | None = None
) -> Example:
    return Example("preference", MESSAGES, chosen, rejected, chosen_ids=ids, rejected_ids=others)


def row(policy: Policy, example: Example, max_length: int = 500, *more: Any) -> Row:
    encoded = Encoder(policy, max_length, *more).encode(example)
    assert isinstance(encoded, Row)
    return encoded


def pair(policy: Policy, example: Example, max_length: int = 500, *more: Any) -> Pair:
    encoded = Encoder(policy, max_length, *more).encode(example)
    assert isinstance(encoded, Pair)
    return encoded


def dropped(policy: Policy, example: Example, max_length: int = 500, *more: Any) -> str:
    """Why it is."""
    encoded = Encoder(policy, max_length, *more).encode(example)
    assert isinstance(encoded, Dropped)
    return encoded.reason + encoded.detail


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
    assert row(policy, sft(" 35", bytes_of_35)).response == bytes_of_35  # cut off: has no end
    assert row(policy, sft("words that the ids are not", stopped)).response == stopped
    found = pair(policy, preference(TEXT, " 35", None, stopped))
    assert found.rejected.response == stopped
    assert found.chosen.response[-1] == policy.end_of_turn


def test_long_prompts_are_cut_from_the_left(policy: Policy) -> None:
    prompt = policy.encode(MESSAGES)
    whole = row(policy, sft(TEXT))
    for short in (1, len(prompt) - 1):
        found = row(policy, sft(TEXT), whole.length - short)
        assert found.response == whole.response
        assert (found.prompt, found.cut) == (prompt[short:], short)
    assert row(policy, sft(TEXT), whole.length) == whole
    assert whole.cut == 0


def test_both_responses_of_a_pair_answer_the_same_prompt(policy: Policy) -> None:
    prompt = policy.encode(MESSAGES)
    whole = pair(policy, preference(TEXT, OTHER))
    assert len(whole.chosen.response) != len(whole.rejected.response)
    longest = max(whole.chosen.length, whole.rejected.length)
    for example in (preference(TEXT, OTHER), preference(OTHER, TEXT)):
        cut = pair(policy, example, longest - 4)
        assert (cut.chosen.prompt, cut.rejected.prompt) == (prompt[4:], prompt[4:])
        assert cut.cut == 4


def test_long_responses_are_dropped_and_named(policy: Policy) -> None:
    tokens = len(row(policy, sft(TEXT)).response)
    for limit in (1, tokens - 1, tokens):  # at least one token of the prompt is needed
        assert f"over {limit} tokens" in dropped(policy, sft(TEXT), limit)
    assert row(policy, sft(TEXT), tokens + 1).cut
    for example in (preference(TEXT, OTHER), preference(OTHER, TEXT)):
        assert f"over {tokens} tokens" in dropped(policy, example, tokens)
        assert pair(policy, example, tokens + 1).cut


def test_a_pair_without_a_difference_is_dropped(policy: Policy) -> None:
    assert "same" in dropped(policy, preference(TEXT, TEXT))
    ids = row(policy, sft(TEXT)).response
    assert "same" in dropped(policy, preference(TEXT, "x", None, ids))
    # The same words, one cut by length and one ended: to end there is the difference.
    assert pair(policy, preference(TEXT, TEXT, ids[:-1]))


def test_weights_are_carried(policy: Policy) -> None:
    assert row(policy, sft(TEXT, weight=0.25)).weight == 0.25
    assert pair(policy, replace(preference(TEXT, OTHER), weight=3.0)).chosen.weight == 3.0


# ---- groups, raw text, what cannot be trained ---------------------------------------------------


def group(*texts: str) -> Example:
    return Example(
        "group", MESSAGES, completions=list(texts), rewards=[1.0, 0.0, 0.5][: len(texts)]
    )


def test_a_group_has_one_prompt_and_its_rewards(policy: Policy) -> None:
    texts = (TEXT, OTHER, TEXT)
    found = Encoder(policy, 500).encode(group(*texts))
    assert isinstance(found, Group)
    assert found.rewards == (1.0, 0.0, 0.5)
    assert found.rows == tuple(row(policy, sft(text)) for text in texts)  # two alike: both stay
    cut = Encoder(policy, max(r.length for r in found.rows) - 4).encode(group(*texts))
    assert isinstance(cut, Group)
    assert [r.response for r in cut.rows] == [r.response for r in found.rows]
    assert [r.prompt for r in cut.rows] == [policy.encode(MESSAGES)[4:]] * 3
    assert dropped(policy, group(*texts), len(found.rows[0].response))


def test_raw_text_is_trained_but_its_first_token(policy: Policy) -> None:
    example = Example("sft", [], completion=TEXT)
    whole = policy.encode_text(TEXT)
    assert whole[-1] == policy.end_of_turn and whole.count(policy.end_of_turn) == 1
    assert row(policy, example) == Row(whole[:1], whole[1:])
    assert row(policy, example, len(whole)) == Row(whole[:1], whole[1:])
    assert dropped(policy, example, len(whole) - 1)


def test_a_text_of_nothing_is_dropped(policy: Policy) -> None:
    """There is no begin token that its end could be predicted from."""
    assert dropped(policy, Example("sft", [], completion=""))


def test_a_prompt_that_the_template_refuses_is_dropped(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Policy, messages: object, tools: object) -> list[int]:
        raise TemplateFault("roles must alternate")

    monkeypatch.setattr(Policy, "encode", refuse)
    assert "roles must alternate" in dropped(policy, sft(TEXT))


# ---- masks --------------------------------------------------------------------------------------

ANSWERS = MaskConfig(answer_only=True, markers=False)


def seen(policy: Policy, found: Row) -> str:
    """The text that the loss sees."""
    flags = found.mask or (True,) * len(found.response)
    return policy.decode([t for t, f in zip(found.response, flags, strict=True) if f])


def test_a_mask_leaves_the_tokens_and_says_which_count(policy: Policy) -> None:
    plain = row(policy, sft(TEXT))
    assert plain.mask is None
    found = row(policy, sft(TEXT), 500, ANSWERS)
    assert (found.prompt, found.response) == (plain.prompt, plain.response)
    assert found.mask is not None and len(found.mask) == len(found.response)
    end = policy.decode([policy.end_of_turn])
    assert seen(policy, found) == "\n<answer> ( 3 + 4 ) * 5 </answer>" + end
    both = pair(policy, preference(TEXT, OTHER), 500, ANSWERS)
    assert both.chosen == found
    assert seen(policy, both.rejected) == "\n<answer> 3 + 5 </answer>" + end


def test_the_mask_goes_by_the_tags_asked_for(policy: Policy) -> None:
    text = TEXT.replace("think>", "reasoning>")
    for tags, whole in (("reasoning", False), ("think", True)):
        found = row(policy, sft(text), 500, ANSWERS, tags)
        assert (found.trained == len(found.response)) == whole


def test_rows_of_one_prompt_lose_the_same_tokens_of_what_they_share(policy: Policy) -> None:
    """Else the tokens that chosen and rejected share would not cancel."""
    mask = MaskConfig(think_fraction=0.5)
    other = TEXT.replace("7 * 5 = 35", "7 - 5 = 2")
    masks = []
    for seed in (0, 0, 1):
        found = pair(policy, preference(TEXT, other), 500, mask, "think", seed)
        assert found.chosen.mask is not None and found.rejected.mask is not None
        shared = next(i for i, (a, b) in enumerate(zip(found.chosen.response,
                      found.rejected.response, strict=False)) if a != b)  # fmt: skip
        assert shared > 5
        assert found.chosen.mask[:shared] == found.rejected.mask[:shared]
        masks.append(found.chosen.mask)
    assert masks[0] == masks[1] != masks[2]
    question = attempt_messages("Do it.", "Numbers: 1 2 3\nTarget: 6", "think", "thinking")
    elsewhere = row(policy, Example("sft", question, completion=TEXT), 500, mask)
    assert elsewhere.mask != masks[0]  # another prompt, another draw


def test_a_mask_that_leaves_nothing_is_refused_and_names_the_answer(policy: Policy) -> None:
    """The end of the turn alone is nothing: it would be all that the policy learns."""
    thought = "<think>\nstep 1: 3 + 4 = 7\n"
    for example in (sft(thought), preference(TEXT, thought), preference(thought, TEXT),
                    group(TEXT, thought)):  # fmt: skip
        found = dropped(policy, example, 500, ANSWERS)
        assert found.startswith("the mask leaves nothing to train of ")
        assert "step 1: 3 + 4 = 7" in found and "Target: 35" in found
        assert not isinstance(Encoder(policy, 500).encode(example), Dropped)


def test_an_examples_own_mask_joins_that_of_the_recipe(policy: Policy) -> None:
    """Trained is what both leave in: neither what the example only shows, nor the thought."""
    end = policy.decode([policy.end_of_turn])
    answer, inside = TEXT.index("\n<answer>"), TEXT.index(" ( 3 + 4 ) *")
    for mask, start, first in (
        (ANSWERS, 8, answer), (ANSWERS, inside, inside), (MaskConfig(), answer, answer),
    ):  # fmt: skip
        found = row(policy, replace(sft(TEXT), mask=f"from {start}"), 500, mask)
        assert seen(policy, found) == TEXT[first:] + end
