"""The model that learns: its tokens, and completions by continuous batching.

The only file that touches mlx-lm's generation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, PromptProcessingBatch
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from mlxreflect.config.schema import Sampling
from mlxreflect.core.records import Messages
from mlxreflect.core.seeds import seed_mlx
from mlxreflect.models.memory import Decoding
from mlxreflect.models.template import ChatTemplate

PLAIN = Sampling()
GB = 1e9
WHOLE = 1 << 20  # more tokens than a completion has
Processor = Callable[[mx.array, mx.array], mx.array]  # tokens so far, logits
Sampler = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Completion:
    """token_ids: as generated, with the end token, or those of the stop string, it ended with.

    text: up to that end. finish_reason: "stop", or "length" where max_new_tokens cut it off.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int


class Policy:
    """A model with its tokenizer: chat prompts to tokens, tokens to attempts.

    limit: bytes that generating may take besides the weights. say: told once where that lowers a
    batch.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, name: str, template: ChatTemplate | None = None,
        limit: int = 1 << 62,
    ) -> None:  # fmt: skip
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.eos: set[int] = set(tokenizer.eos_token_ids)
        self.template = template or ChatTemplate(tokenizer)
        self.end_of_turn = self.template.end_of_turn
        self.tokens_generated = 0
        self.limit = limit
        self.say: Callable[[str], None] = lambda text: None
        self.said: set[tuple[int, int]] = set()

    @cached_property
    def decoding(self) -> Decoding:
        self.model.eval()
        return Decoding(self.model)

    def fitting(self, batch: int, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
        """Returns the batch, lowered where it would take more memory than there is."""
        longest = max(map(len, prompts), default=0)
        return self.decoding.batch(batch, longest, max_new_tokens, self.limit)

    def tell(self, batch: int, fits: int, longest: int, new: int) -> None:
        """Says why a batch is lowered; once for answers of that length."""
        if (batch, new) in self.said:
            return
        self.said.add((batch, new))
        each, room = self.decoding.bytes(1, longest, new) / GB, max(0, self.limit) / GB
        self.say(
            f"note: batch {batch} → {fits}: a sequence of {longest + new:,} tokens takes "
            f"{each:.2f} GB, and {room:.1f} GB are there for all of them (policy.cache_gb)"
        )

    def encode(
        self, asked: Messages | str, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The chat template's tokens, up to where the answer begins; or those of a raw text to be
        completed, after the tokenizer's begin token if it has one. tools: that it shows."""
        if isinstance(asked, str):
            return list(self.tokenizer.encode(asked))
        return self.template.prompt(asked, tools)

    def encode_response(self, prompt: list[int], text: str, ended: bool = True) -> list[int]:
        """Tokens of a response that the policy did not write, with its end token if it is ended."""
        return self.template.response(prompt, text, ended)

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a whole text, from the tokenizer's begin token to its end token.

        It is the user's own: special tokens that are written out in it are tokens.
        """
        ids: list[int] = self.tokenizer.encode(text)
        begin = self.tokenizer.bos_token_id
        ids = ids if begin is None or ids[:1] == [begin] else [begin, *ids]
        return ids if ids[-1:] == [self.end_of_turn] else [*ids, self.end_of_turn]

    def opening(self, prompt: Sequence[int]) -> str:
        """Returns the opened thought that a prompt ends with; its completion's text begins so."""
        opening = self.template.shape.opening
        ends = bool(opening) and self.decode(prompt[-16:]).endswith(opening)
        return opening if ends else ""

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def generate(
        self,
        prompts: Sequence[list[int]],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch: int,
        seed: Sequence[int | str],
        samples: int = 1,
        stop: Sequence[str] = (),
        banned: Sequence[Sequence[list[int]]] = (),
        sampling: Sampling = PLAIN,
        advance: Callable[[int], None] | None = None,
        hear: Callable[[int, list[int]], None] | None = None,
    ) -> list[Completion]:
        """`samples` completions of each prompt in turn, by continuous batching.

        batch: sequences at once; fewer where they would not fit into memory. seed: names the random
        stream; the same names, prompts, weights and backend give the same tokens. stop: strings
        that end a completion where they appear in its text. banned: for each prompt, token
        sequences that its completions do not begin with. sampling: how a token is drawn besides.
        advance: told how many completions have just ended. hear: told, token by token, the number
        of a completion and its tokens so far.
        """
        reach = max((len(text.encode()) for text in stop), default=0) + 4  # tokens, and some before
        asked_for, batch = batch, self.fitting(batch, prompts, max_new_tokens)
        if batch < asked_for:
            self.tell(asked_for, batch, max(map(len, prompts)), max_new_tokens)
        asked = [prompt for prompt in prompts for _ in range(samples)]
        bans = [list(ban) for ban in banned for _ in range(samples)] or [[] for _ in asked]
        runs = [list(run) for _, run in groupby(asked)]  # equal neighbours share one prefill
        tokens: list[list[int]] = [[] for _ in asked]
        reasons: dict[int, str] = {}
        inserted = 0
        seed_mlx(*seed)
        self.model.eval()
        generator = BatchGenerator(
            self.model,
            max_tokens=max_new_tokens,
            stop_tokens=[[token] for token in sorted(self.eos)],
            sampler=sampler_of(temperature, top_p, sampling),
            completion_batch_size=batch,
            prefill_batch_size=batch,
        )
        try:
            while runs or inserted > len(reasons):
                if runs and inserted - len(reasons) < batch:  # few prefilled caches at a time
                    part = runs.pop(0)
                    while runs and len(part) < batch:
                        part += runs.pop(0)
                    these = bans[inserted : inserted + len(part)]
                    self.insert(generator, part, these, sampling)
                    inserted += len(part)
                # Not the responses themselves: the last would keep the keys and values of all.
                made = [(r.uid, r.token, r.finish_reason) for r in generator.next_generated()]
                for uid, token, reason in made:
                    tokens[uid].append(token)
                    if hear:
                        hear(uid, tokens[uid])
                    tail = self.decode(tokens[uid][-reach:]) if stop and not reason else ""
                    if any(end in tail for end in stop):
                        reason = "stop"
                        with mx.stream(generator.stream):
                            generator.remove([uid])
                    if reason is not None:
                        reasons[uid] = reason
                        if advance:
                            advance(1)
        finally:
            generator.close()
            mx.clear_cache()
        self.tokens_generated += sum(map(len, tokens))
        return [self.completion(tokens[i], reasons[i], p, stop) for i, p in enumerate(asked)]

    def insert(
        self,
        generator: BatchGenerator,
        prompts: list[list[int]],
        bans: Sequence[list[list[int]]],
        sampling: Sampling,
    ) -> None:
        """Hands prompts to the generator, what is alike among them read once."""
        with mx.stream(generator.stream):
            unread, caches = prefill(self.model, prompts)
        limits = [
            [*avoid(len(ids), ban), *penalties(len(ids), sampling)]
            for ids, ban in zip(unread, bans, strict=True)
        ]
        generator.insert(unread, caches=caches, logits_processors=limits)

    def completion(
        self, token_ids: list[int], finish_reason: str, prompt: list[int], stop: Sequence[str] = ()
    ) -> Completion:
        shown = token_ids[:-1] if token_ids and token_ids[-1] in self.eos else token_ids
        text = self.decode(shown)
        kept = cut_at(text, stop)
        reason = finish_reason if kept == text else "stop"
        return Completion(self.opening(prompt) + kept, token_ids, reason, len(prompt))


def avoid(unread: int, banned: list[list[int]]) -> list[Processor]:
    """A logits processor that keeps a completion from beginning with any of these tokens.

    unread: tokens that the generator was given to read, which stand before the completion's.
    """
    longest = max(map(len, banned), default=0)

    def limit(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.size - unread >= longest:
            return logits  # without waiting for the tokens to be known
        made = tokens[unread:].tolist()
        last = [ids[-1] for ids in banned if ids[:-1] == made]
        if last:
            logits[..., mx.array(last)] = -mx.inf
        return logits

    return [limit] if longest else []


def sampler_of(temperature: float, top_p: float, sampling: Sampling) -> Sampler:
    """mlx-lm's sampler, of the `top_k` most likely tokens alone.

    Its own order sorts the whole vocabulary for top_p, and once more for top_k.
    """
    draw = make_sampler(temp=temperature, top_p=top_p, min_p=sampling.min_p)

    def draw_few(logprobs: mx.array) -> mx.array:
        if sampling.top_k >= logprobs.shape[-1]:
            return cast(mx.array, draw(logprobs))
        ids = mx.argpartition(-logprobs, kth=sampling.top_k - 1, axis=-1)[..., : sampling.top_k]
        drawn = draw(mx.take_along_axis(logprobs, ids, axis=-1))
        return mx.take_along_axis(ids, drawn[..., None], axis=-1).squeeze(-1)

    return draw_few if sampling.top_k and temperature else draw


def penalties(unread: int, sampling: Sampling) -> list[Processor]:
    """mlx-lm's logits processors for what a completion has already, from its beginning.

    unread: as of `avoid`. How much of a prompt that is depends on what is shared: it never counts.
    """
    repetition, presence = sampling.repetition_penalty, sampling.presence_penalty
    made = make_logits_processors(
        repetition_penalty=None if repetition == 1 else repetition,
        repetition_context_size=WHOLE,
        presence_penalty=presence or None,
        presence_context_size=WHOLE,
    )
    return [partial(after, unread, penalty) for penalty in made]


def after(unread: int, penalty: Processor, tokens: mx.array, logits: mx.array) -> mx.array:
    return penalty(tokens[unread:], logits)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    found = [at for end in stop if (at := text.find(end)) >= 0]
    return text[: min(found)] if found else text


def prefill(model: nn.Module, prompts: list[list[int]]) -> tuple[list[list[int]], list[Any] | None]:
    """Returns what is left to read of each prompt, and caches of the rest: one for equal ones."""
    maskable = can_trim_prompt_cache(make_prompt_cache(model))
    groups: dict[int, list[tuple[int, ...]]] = {}
    for prompt in dict.fromkeys(map(tuple, prompts)):
        # Padding leaves its mark on a recurrent state: there, only equal lengths go together.
        groups.setdefault(0 if maskable else len(prompt), []).append(prompt)
    if maskable and len(groups[0]) == len(prompts):
        return prompts, None  # nothing to share: the generator reads as it goes
    caches: dict[tuple[int, ...], Any] = {}
    for group in groups.values():
        longer = [prompt for prompt in group if len(prompt) > 1]
        empty = [make_prompt_cache(model) for _ in longer]
        rows = PromptProcessingBatch(model, list(range(len(longer))), empty)
        rows.prompt([list(prompt[:-1]) for prompt in longer])
        for i, prompt in enumerate(longer):
            caches[prompt] = rows.extract_cache(i)
            mx.eval([cache.state for cache in caches[prompt]])
    return [prompt[-1:] for prompt in prompts], [caches.get(tuple(prompt)) for prompt in prompts]
