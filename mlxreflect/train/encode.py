"""Examples → rows of tokens. What the policy wrote keeps the tokens it generated."""

import hashlib
import json
import re
from dataclasses import dataclass

from jinja2 import TemplateError

from mlxreflect.errors import UserError
from mlxreflect.policy import Policy
from mlxreflect.records import Example
from mlxreflect.seeds import rng_for
from mlxreflect.train.batches import Group, Pair, Row
from mlxreflect.train.masks import Mask, response_mask, token_spans

NO_MASK = Mask()


@dataclass(frozen=True)
class Dropped:
    """An example that is not trained on, and why."""

    example: Example
    reason: str


class NothingTrained(UserError):
    """A mask that leaves a response without a token for the loss."""


@dataclass(frozen=True)
class Encoder:
    """How examples become rows.

    max_length: tokens of prompt and response; a prompt too long is cut from the left, a response
    never. tags: the tag set that masks go by. seed: of masks drawn at random.
    """

    policy: Policy
    max_length: int
    mask: Mask = NO_MASK
    tags: str = "think"
    seed: int = 0

    def encode(self, example: Example) -> Row | Pair | Group | Dropped:
        """Tokens of an example. Raises NothingTrained where the mask leaves none to train."""
        try:
            prompt, *responses = self.tokens(example)
        except TemplateError as error:
            return Dropped(example, f"the model's chat template refuses it: {error}")
        if not all(responses) or not prompt:
            return Dropped(example, "nothing to train")
        room = self.max_length - max(map(len, responses))
        if room < 1:
            return Dropped(example, f"a response is over {self.max_length} tokens")
        cut = max(0, len(prompt) - room)
        prompt = prompt[cut:]  # for all to what the longest response leaves
        rows = [Row(prompt, r, example.weight, self.flags(example, r), cut) for r in responses]
        if example.kind == "sft":
            return rows[0]
        if example.kind == "group":
            return Group(tuple(rows), tuple(example.rewards or ()))
        if responses[0] == responses[1]:
            return Dropped(example, "chosen and rejected are the same")
        return Pair(rows[0], rows[1])

    def tokens(self, example: Example) -> list[list[int]]:
        """Those of the prompt, then of each response."""
        known: list[tuple[str | None, list[int] | None]]
        if example.kind == "sft":
            known = [(example.completion, example.completion_ids)]
        elif example.kind == "group":
            texts = example.completions or []
            ids = example.completions_ids
            known = [(text, ids[i] if ids else None) for i, text in enumerate(texts)]
        else:
            known = [(example.chosen, example.chosen_ids), (example.rejected, example.rejected_ids)]
        if not example.prompt:  # raw text: all of it is trained but its first token
            whole = self.policy.encode_text(example.completion or "")
            return [whole[:1], whole[1:]]
        prompt = self.policy.encode(example.prompt)
        return [prompt, *(i or self.policy.encode_response(prompt, t or "") for t, i in known)]

    def flags(self, example: Example, response: list[int]) -> tuple[bool, ...] | None:
        """The mask of a response. Responses of one prompt draw alike where they begin alike."""
        begin = first_trained(example.mask)
        if self.mask == NO_MASK and not begin:
            return None
        digest = hashlib.sha256(json.dumps(example.prompt).encode()).hexdigest()
        rng = rng_for(self.seed, "mask", digest)
        flags = response_mask(self.policy, response, self.tags, self.mask, rng)
        if begin:
            spans = token_spans(self.policy, response)
            flags = [f and span[0] >= begin for f, span in zip(flags, spans, strict=True)]
        end = self.policy.eos
        if not any(f for f, token in zip(flags, response, strict=True) if token not in end):
            raise NothingTrained(
                f"the mask leaves nothing to train of {self.policy.decode(response)[:60]!r} "
                f"(an answer to {last_words(example)!r})",
                "give that example an answer after its thought, or change train.mask",
            )
        return tuple(flags)


def first_trained(rule: str) -> int:
    """The character of a response at which an example's own mask rule lets the loss begin."""
    found = re.fullmatch(r"from ([0-9]{1,9})", rule)
    return int(found[1]) if found else 0


def last_words(example: Example) -> str:
    return example.prompt[-1]["content"][-60:] if example.prompt else ""
