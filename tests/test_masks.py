"""Masks by character span against brute force, for tokenizers of every common kind."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer
from support.tiny_tokenizer import build_tokenizer
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from mlxreflect.config.schema import MaskConfig
from mlxreflect.models.policy import Policy
from mlxreflect.prompts.parsing import TAGS
from mlxreflect.train.encode import growing_cuts, prefix_cuts, response_mask, token_spans

CORPUS = [
    "<think>\nstep 1: 12 + 3 = 15, so the answer is 15.\n</think>\n<answer>15</answer>",
    "Él pensó: ¿cuánto es 2×3? 🎉🎉 🎊 6 — 漢字かな交じり文 </think><think>  two  spaces",
    "a > b, c < d, <x>, <|thinking|>why</|thinking|> 👩‍👩‍👧 na\u0308ive\u00a0\t\u200b",
] * 3
END = "<|end|>"


def as_policy(tokenizer: Tokenizer) -> Policy:
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, unk_token="<unk>")
    return Policy(nn.Module(), TokenizerWrapper(fast), "tokens only")


def byte_level() -> Policy:
    """GPT's kind, with merges: a token may hold half an emoji and the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return as_policy(tokenizer)


def sentence_piece() -> Policy:
    """Llama's kind: spaces are ▁, the first one is made up and taken away, rare characters bytes.

    A run of bytes that is no UTF-8 as a whole becomes a replacement character a byte.
    """
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    merges = [("t", "h"), ("▁", "t"), ("t", "e"), ("▁", "a"), ("<", "/"), ("▁", "▁"), (">", "▁")]
    letters = sorted({c for c in "▁<>/|thinkgasoer1235+=:.,\n" for c in c})
    vocabulary = ["<unk>", *bytes_, *letters, *map("".join, merges)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(dict.fromkeys(vocabulary))},
            merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return as_policy(tokenizer)


def metaspace() -> Policy:
    """T5's kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return as_policy(tokenizer)


def word_piece() -> Policy:
    """BERT's kind: a space before each token but those that go on a word."""
    words = ["[UNK]", "think", "<", ">", "/", "##ing", "step", "so", "15", "##s", ".", "|", "🎉"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return as_policy(tokenizer)


KINDS: dict[str, Callable[[], Policy]] = {
    "byte level": byte_level, "SentencePiece": sentence_piece, "metaspace": metaspace,
    "WordPiece": word_piece,
}  # fmt: skip


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    """One of each kind; and the embedded policy's: single bytes, and whole words added."""
    folder = tmp_path_factory.mktemp("tiny")
    build_tokenizer(folder)
    embedded = Policy(nn.Module(), load_tokenizer(folder), "tokens only")
    return {name: build() for name, build in KINDS.items()} | {"embedded": embedded}


@pytest.fixture(scope="module")
def tiny(policies: dict[str, Policy]) -> Policy:
    return policies["embedded"]


def encode(policy: Policy, text: str) -> list[int]:
    return list(policy.tokenizer.encode(text, add_special_tokens=False))


def brute_spans(policy: Policy, ids: list[int]) -> list[tuple[int, int]]:
    """By definition: a token ends where the text of all tokens up to it stops being right."""
    body = ids[:-1] if ids and ids[-1] in policy.eos else ids
    text, cuts = policy.decode(body), [0]
    for i in range(1, len(body) + 1):
        right = 0
        for a, b in zip(policy.decode(body[:i]), text, strict=False):
            if a != b:
                break
            right += 1
        cuts.append(max(right, cuts[-1]))
    cuts += [len(text)] * (len(ids) - len(body))
    return list(itertools.pairwise(cuts))


def brute_mask(
    policy: Policy, ids: list[int], tags: str, mask: MaskConfig, seed: int
) -> list[bool]:
    """Each character asks which tag comes before and which after it; each token its characters."""
    start, end = TAGS[tags]
    rng = random.Random(seed)
    draws = [rng.random() for _ in ids]
    ended = bool(ids) and ids[-1] in policy.eos
    text = policy.decode(ids[:-1] if ended else ids)
    found = [(i, tag) for i in range(len(text)) for tag in (start, end) if text.startswith(tag, i)]

    def is_tag(i: int) -> bool:
        return any(at <= i < at + len(tag) for at, tag in found)

    def is_thought(i: int) -> bool:
        before = [tag for at, tag in found if at < i]
        after = [tag for at, tag in found if at >= i]
        return before[-1:] == [start] or after[:1] == [end]

    def is_early(i: int) -> bool:
        return any(at >= i and tag == end for at, tag in found)

    trained = []
    for (a, b), draw in zip(brute_spans(policy, ids), draws, strict=True):
        tagged = any(map(is_tag, range(a, b))) or (a == b and is_tag(a - 1) and is_tag(a))
        if not mask.answer_only and not mask.think_fraction:
            trained.append(True)
        elif tagged:
            trained.append(mask.markers)
        elif mask.answer_only:
            trained.append(not is_thought(a) and not is_early(a))
        else:
            trained.append(not is_thought(a) or draw >= mask.think_fraction)
    if ended:
        trained[-1] = True
    return trained


def check_spans(policy: Policy, ids: list[int]) -> None:
    spans = token_spans(policy, ids)
    text = policy.decode(ids[:-1] if ids and ids[-1] in policy.eos else ids)
    assert "".join(text[a:b] for a, b in spans) == text
    assert spans == brute_spans(policy, ids)


TEXTS = st.text(
    st.sampled_from("ab1 \n<>/|é字🎉👩\u200d\u0308\u0000\ufffd▁Ġ") | st.characters(codec="utf-8"),
    max_size=12,
)
PIECES = st.one_of(
    TEXTS, st.sampled_from([tag for pair in TAGS.values() for tag in pair]),
    st.sampled_from([" </think>", "\n</think>", "<think", "think>", "<<think>>", "🎉</think>é",
                     " 17", "\nstep 1:", "<answer>", "</answer>"]),
)  # fmt: skip
RESPONSES = st.lists(PIECES, max_size=8).map("".join)
MASKS = st.builds(
    MaskConfig,
    answer_only=st.booleans(),
    think_fraction=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    markers=st.booleans(),
)


# ---- spans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "embedded"])
@given(text=RESPONSES, ended=st.booleans())
def test_spans_of_any_text(policies: dict[str, Policy], kind: str, text: str, ended: bool) -> None:
    policy = policies[kind]
    check_spans(policy, encode(policy, text) + [policy.end_of_turn] * ended)


@pytest.mark.parametrize("kind", [*KINDS, "embedded"])
@given(data=st.data())
def test_spans_of_any_tokens(policies: dict[str, Policy], kind: str, data: Any) -> None:
    """What an untrained policy writes: halves of characters, specials, ids past the vocabulary."""
    policy = policies[kind]
    ids = data.draw(st.lists(st.integers(0, len(policy.tokenizer) + 2), max_size=30))
    check_spans(policy, ids)


@pytest.mark.parametrize("kind", ["byte level", "SentencePiece", "metaspace"])
@given(text=RESPONSES)
def test_real_text_takes_the_fast_way(policies: dict[str, Policy], kind: str, text: str) -> None:
    policy = policies[kind]
    ids = encode(policy, text)
    cuts = growing_cuts(policy, ids, policy.decode(ids))
    assert cuts == prefix_cuts(policy, ids, policy.decode(ids))


def test_the_fast_way_is_linear(policies: dict[str, Policy]) -> None:
    policy = policies["byte level"]
    decoded: list[int] = []

    class Counted(Policy):
        def decode(self, token_ids: Any) -> str:
            decoded.append(len(token_ids))
            return super().decode(token_ids)

    for copies in (1, 100):
        ids = encode(policy, "<think>\nstep 1: 🎉 12 + 3 字 = 15\n</think>" * copies)
        decoded.clear()
        token_spans(Counted(nn.Module(), policy.tokenizer, ""), ids)
        assert sum(decoded) < 12 * len(ids)


def test_a_character_belongs_to_the_token_that_completes_it(tiny: Policy) -> None:
    ids = encode(tiny, "a🎉b")
    assert token_spans(tiny, ids) == [(0, 1), (1, 1), (1, 1), (1, 1), (1, 2), (2, 3)]
    assert token_spans(tiny, [*ids[:3], ids[0]]) == [(0, 1), (1, 2), (2, 2), (2, 3)]  # "a�a"


def test_what_a_decoder_takes_back(policies: dict[str, Policy]) -> None:
    """字 and the first byte of another: as a whole no UTF-8, so four replacements and no 字."""
    policy = policies["SentencePiece"]
    ids = [t for t in encode(policy, "字") if policy.decode([t]) == "\ufffd"]
    assert policy.decode(ids) == "字"
    broken = [*ids, ids[0], policy.tokenizer.convert_tokens_to_ids("a")]
    assert policy.decode(broken) == "\ufffd" * 4 + "a"
    assert growing_cuts(policy, broken, policy.decode(broken)) is None
    check_spans(policy, broken)


# ---- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "embedded"])
@given(text=RESPONSES, ended=st.booleans(), tags=st.sampled_from(sorted(TAGS)), mask=MASKS,
       seed=st.integers(0, 9), data=st.data())  # fmt: skip
def test_masks_of_any_text(
    policies: dict[str, Policy], kind: str, text: str, ended: bool, tags: str, mask: MaskConfig,
    seed: int, data: Any,
) -> None:  # fmt: skip
    """Or of any tokens, as an untrained policy writes them."""
    policy = policies[kind]
    any_ids = st.lists(st.integers(0, len(policy.tokenizer) - 1), min_size=1, max_size=30)
    ids = data.draw(st.just(encode(policy, text)) | any_ids) + [policy.end_of_turn] * ended
    found = response_mask(policy, ids, tags, mask, random.Random(seed))
    assert found == brute_mask(policy, ids, tags, mask, seed)


def trained(policy: Policy, text: str, mask: MaskConfig, tags: str = "think", seed: int = 0) -> str:
    """The trained part of a response, where nothing is half a character."""
    ids = encode(policy, text)
    spans = token_spans(policy, ids)
    mask_ = response_mask(policy, ids, tags, mask, random.Random(seed))
    return "".join(text[a:b] for (a, b), kept in zip(spans, mask_, strict=True) if kept)


ANSWER, BARE = MaskConfig(answer_only=True), MaskConfig(answer_only=True, markers=False)
THOUGHT, NO_TAGS = MaskConfig(think_fraction=1.0), MaskConfig(think_fraction=1.0, markers=False)


@pytest.mark.parametrize(
    ("text", "mask", "expected"),
    [
        ("x<think>a</think>b", MaskConfig(), "x<think>a</think>b"),
        ("x<think>a</think>b", MaskConfig(markers=False), "x<think>a</think>b"),
        ("x<think>a</think>b", ANSWER, "<think></think>b"),
        ("x<think>a</think>b", BARE, "b"),
        ("x<think>a</think>b", THOUGHT, "x<think></think>b"),
        ("x<think>a</think>b", NO_TAGS, "xb"),
        # several blocks
        ("<think>a</think>b<think>c</think>d", ANSWER, "<think></think><think></think>d"),
        ("<think>a</think>b<think>c</think>d", BARE, "d"),
        ("<think>a</think>b<think>c</think>d", NO_TAGS, "bd"),
        # the thought began in the prompt
        ("a</think>b", ANSWER, "</think>b"),
        ("a</think>b", NO_TAGS, "b"),
        ("a</think>b<think>c</think>d</think>e", NO_TAGS, "be"),
        # the thought does not end
        ("<think>a", THOUGHT, "<think>"),
        ("<think>a", BARE, ""),
        ("<think>a</think>b<think>c", BARE, "b"),
        # a tag inside a thought
        ("<think>a<think>b</think>c", NO_TAGS, "c"),
        ("<think>a<think>b</think>c", THOUGHT, "<think><think></think>c"),
        # a token across a border is the tag's: "\\n</think>" is one
        ("<think>a\n</think>b", ANSWER, "<think>\n</think>b"),
        ("<think>a\n</think>b", BARE, "b"),
        # no thought at all, and things that are no tags
        ("only an answer", BARE, "only an answer"),
        ("<think/>a< /think><THINK>", NO_TAGS, "<think/>a< /think><THINK>"),
        ("<reasoning>a</reasoning>b", NO_TAGS, "<reasoning>a</reasoning>b"),
    ],
)
def test_what_stays_in_the_loss(tiny: Policy, text: str, mask: MaskConfig, expected: str) -> None:
    assert trained(tiny, text, mask) == expected


def test_a_thought_that_ends_in_half_a_character_is_left_out(tiny: Policy) -> None:
    start, end = encode(tiny, "<think>"), encode(tiny, "</think>")
    half, one = encode(tiny, "🎉")[:2], encode(tiny, "b")
    ids = [*start, *half, *end, *half, *one]
    found = response_mask(tiny, ids, "think", BARE, random.Random(0))
    assert found == [False, False, False, False, True, True, True]


def test_the_end_of_the_turn_is_always_trained(tiny: Policy) -> None:
    for text in ("<think>a", "a</think>", ""):
        ids = [*encode(tiny, text), tiny.end_of_turn]
        for mask in (BARE, NO_TAGS):
            found = response_mask(tiny, ids, "think", mask, random.Random(0))
            assert found == [False] * (len(ids) - 1) + [True]
    assert trained(tiny, "<think>a", BARE) == ""
