"""Examples → rows of tokens, and which of a response's tokens are trained.

What the policy wrote keeps the tokens it generated. Masks go by character span, for a plain-text
tag is many tokens; what they hide follows Buehler (2024, arXiv 2410.12375).
"""

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlxreflect.config.schema import MaskConfig
from mlxreflect.core.records import Example
from mlxreflect.core.seeds import rng_for
from mlxreflect.models.policy import Policy
from mlxreflect.models.template import TemplateFault
from mlxreflect.prompts.parsing import TAGS
from mlxreflect.train.batches import Group, Pair, Row

OUTSIDE, THINK, MARKER = 0, 1, 2  # what a character is part of
NO_MASK = MaskConfig()


@dataclass(frozen=True)
class Dropped:
    """The reason why an example is not trained on. detail: what the reason is about."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Encoder:
    """Makes rows of examples.

    max_length: tokens of prompt and response; a prompt too long is cut from the left, a response
    never. tags: the tag set that masks go by. seed: of masks drawn at random.
    """

    policy: Policy
    max_length: int
    mask: MaskConfig = NO_MASK
    tags: str = "think"
    seed: int = 0

    def encode(self, example: Example) -> Row | Pair | Group | Dropped:
        """Tokens of an example, or why it has none to train."""
        try:
            prompt, *responses = self.tokens(example)
        except TemplateFault as fault:
            return Dropped(f"the model's chat template refuses it: {fault.reason}")
        if not all(responses) or not prompt:
            return Dropped("nothing to train")
        if any(self.unknown(ids) for ids in responses):  # MLX would read past the embedding
            return Dropped("a token's id is outside the model's vocabulary")
        room = self.max_length - max(map(len, responses))
        if room < 1:
            return Dropped(f"a response is over {self.max_length} tokens")
        cut = max(0, len(prompt) - room)
        prompt = prompt[cut:]  # for all to what the longest response leaves
        opening = len(self.policy.opening(prompt)) if example.prompt else 0
        rows = [
            Row(prompt, r, example.weight, self.flags(example, r, opening), cut) for r in responses
        ]
        for row in rows:
            # The end of the turn alone is nothing: it would be all that the policy learns.
            if row.mask and not any(
                f for f, token in zip(row.mask, row.response, strict=True)
                if token not in self.policy.eos
            ):  # fmt: skip
                asked = example.prompt[-1]["content"][-60:] if example.prompt else ""
                written = self.policy.decode(row.response)[:60]
                detail = f" of {written!r} (an answer to {asked!r})"
                return Dropped("the mask leaves nothing to train", detail)
        if example.kind == "sft":
            return rows[0]
        if example.kind == "group":
            return Group(tuple(rows), tuple(example.rewards or ()))
        if responses[0] == responses[1]:
            return Dropped("chosen and rejected are the same")
        return Pair(rows[0], rows[1])

    def unknown(self, ids: list[int]) -> bool:
        """Tells if the model has no such token, whatever its tokenizer has."""
        return max(ids) >= int(self.policy.decoding.vocabulary)

    def tokens(self, example: Example) -> list[list[int]]:
        """Those of the prompt, then of each response."""
        if not example.prompt:  # raw text: all of it is trained but its first token
            whole = self.policy.encode_text(example.completion or "")
            return [whole[:1], whole[1:]]
        prompt = self.policy.encode(example.prompt, example.tools)
        if example.kind == "group":
            texts = example.completions or []
            known: Sequence[list[int] | None] = example.completions_ids or [None] * len(texts)
            return [prompt, *(ids or self.policy.encode_response(prompt, text)
                              for text, ids in zip(texts, known, strict=True))]  # fmt: skip
        names = ("completion",) if example.kind == "sft" else ("chosen", "rejected")
        return [prompt, *(getattr(example, f"{name}_ids") or self.response(example, prompt, name)
                          for name in names)]  # fmt: skip

    def response(self, example: Example, prompt: list[int], name: str) -> list[int]:
        """Tokens of a text that the policy did not write, with the thought and the tool calls that
        its message has besides."""
        text, parts = getattr(example, name) or "", (example.parts or {}).get(name, {})
        if "tool_calls" in parts:
            reply = {"role": "assistant", "content": text, **parts}
            return self.policy.template.calling(example.prompt, reply, example.tools)
        if thought := parts.get("reasoning_content"):
            start, end = self.policy.template.shape.tags or TAGS[self.tags]
            text = f"{start}\n{thought.strip()}\n{end}\n\n{text}"
        return self.policy.encode_response(prompt, text)

    def flags(
        self, example: Example, response: list[int], opening: int = 0
    ) -> tuple[bool, ...] | None:
        """The mask of a response. Responses of one prompt draw alike where they begin alike.

        opening: characters of the response's text that stand in the prompt already.
        """
        rule = re.fullmatch(r"from ([0-9]{1,9})", example.mask)
        # The character at which its own rule lets it begin.
        begin = max(0, int(rule[1]) - opening) if rule else 0
        if self.mask == NO_MASK and not begin:
            return None
        digest = hashlib.sha256(json.dumps(example.prompt).encode()).hexdigest()
        rng = rng_for(self.seed, "mask", digest)
        flags = response_mask(self.policy, response, self.tags, self.mask, rng)
        if begin:
            spans = token_spans(self.policy, response)
            flags = [f and span[0] >= begin for f, span in zip(flags, spans, strict=True)]
        return tuple(flags)


# ---- masks ---------------------------------------------------------------------------------------


def response_mask(
    policy: Policy, token_ids: Sequence[int], tags: str, mask: MaskConfig, rng: random.Random
) -> list[bool]:
    """Returns whether each token of a response is trained; the end of the turn always is.

    tags: a name in TAGS. rng: seeded afresh for each example; one number is drawn a token, in
    order, so that two responses with the same opening and seed lose the same tokens of it. A token
    that overlaps a tag at all counts as the tag's. Nothing trained is an answer too: a list that
    is False throughout.
    """
    draws = [rng.random() for _ in token_ids]
    if not (mask.answer_only or mask.think_fraction > 0):
        return [True] * len(token_ids)
    ids = without_end(policy, token_ids)
    text = policy.decode(ids)
    end = TAGS[tags][1]
    kinds = character_kinds(text, *TAGS[tags])
    answer = text.rfind(end) + len(end) if mask.answer_only and end in text else 0
    share = 1.0 if mask.answer_only else mask.think_fraction

    def trained(span: tuple[int, int], draw: float) -> bool:
        kind = token_kind(kinds, span)
        if kind == MARKER:
            return mask.markers
        return draw >= share if kind == THINK else span[0] >= answer

    body = list(map(trained, token_spans(policy, token_ids), draws))[: len(ids)]
    return body + [True] * (len(token_ids) - len(ids))


def character_kinds(text: str, start: str, end: str) -> bytearray:
    """OUTSIDE, THINK or MARKER: for what comes before the text, each character, what comes after.

    start, end: the think tags. A thought runs from an opening tag to the next closing one. A
    closing tag that finds none open ends a thought that began in the prompt, or at the closing tag
    before it; an unclosed thought runs to the end of the text.
    """
    kinds = bytearray(len(text) + 2)
    since, thinking = 0, False
    for tag in re.finditer(f"{re.escape(start)}|{re.escape(end)}", text):
        at = tag.start() + 1
        if thinking or tag[0] == end:
            kinds[since:at] = bytes([THINK]) * (at - since)
        since, thinking = at + len(tag[0]), tag[0] == start
        kinds[at:since] = bytes([MARKER]) * (since - at)
    if thinking:
        kinds[since:] = bytes([THINK]) * (len(kinds) - since)
    return kinds


def token_kind(kinds: bytearray, span: tuple[int, int]) -> int:
    """Returns the kind of a token: any overlap with a tag makes it the tag's."""
    start, end = span
    if start < end:
        return MARKER if MARKER in kinds[start + 1 : end + 1] else kinds[start + 1]
    # A token of no character (the first bytes of an emoji) is what it touches, a tag last of all.
    around = kinds[start : start + 2]
    return next((kind for kind in (THINK, OUTSIDE) if kind in around), MARKER)


# ---- where tokens lie in the text ----------------------------------------------------------------


def token_spans(policy: Policy, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """The characters [start, end) of each token in `policy.decode(token_ids)`, one after another.

    A character of several tokens is the span of the token that completes it; the others are empty.
    A last token that ends the turn is empty at the end: the text is that of the tokens before it.
    Time linear in the tokens, but for runs of bytes that are no characters. mlx-lm's streaming
    detokenizers are not used: they drop leading spaces, and NUL.
    """
    ids = list(without_end(policy, token_ids))
    text = policy.decode(ids)
    cuts = growing_cuts(policy, ids, text)
    if cuts is None:
        cuts = prefix_cuts(policy, ids, text)
    cuts += [len(text)] * (len(token_ids) - len(ids))
    return list(zip([0, *cuts], cuts, strict=False))


def without_end(policy: Policy, token_ids: Sequence[int]) -> Sequence[int]:
    return token_ids[:-1] if token_ids and token_ids[-1] in policy.eos else token_ids


def growing_cuts(policy: Policy, ids: list[int], text: str) -> list[int] | None:
    """Returns the end of each token, from the text of a few tokens at a time.

    None where the pieces do not make up the text (a decoder that takes back what it has given).
    The tokens before the new ones are decoded with them: some decoders strip a leading space.
    """
    cuts: list[int] = []
    before = begin = at = 0  # ids[before:begin] are the context, text[:at] is settled
    head = ""
    for i in range(len(ids)):
        piece = policy.decode(ids[before : i + 1])[len(head) :]
        same = common(piece, text, at)
        cuts.append(max(at + same, cuts[-1] if cuts else 0))
        if piece and not piece.endswith("\ufffd"):  # else perhaps half a character
            if same < len(piece):
                return None
            at += same
            before, begin = begin, i + 1
            head = policy.decode(ids[before:begin])
    return cuts if not cuts or cuts[-1] == len(text) else None


def prefix_cuts(policy: Policy, ids: list[int], text: str) -> list[int]:
    """The same from the text of every prefix: right for any decoder, in quadratic time."""
    cuts: list[int] = []
    for i in range(1, len(ids) + 1):
        same = common(policy.decode(ids[:i]), text, 0)
        cuts.append(max(same, cuts[-1] if cuts else 0))
    return cuts


def common(piece: str, text: str, at: int) -> int:
    """Returns how many characters a piece shares with the text from `at` on."""
    if text.startswith(piece, at):
        return len(piece)
    pairs = zip(piece, text[at : at + len(piece)], strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(piece), len(text) - at))
