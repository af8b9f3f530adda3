"""The model that learns: its tokens, and completions by continuous batching.

The only file that touches mlx-lm's generation.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from itertools import groupby
from typing import Any, ParamSpec, Protocol, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import (
    GenerationBatch,
    PromptProcessingBatch,
    StopSequences,
    generation_stream,
)
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.utils import maybe_set_recommended_wired_limit

from mlxreflect.config.schema import Sampling
from mlxreflect.core.hosts import ALONE
from mlxreflect.core.records import Messages
from mlxreflect.models.memory import CHUNK, Decoding
from mlxreflect.models.sampling import Draw, Processor, avoid, penalties
from mlxreflect.models.sharing import SharedQueue, agree_on_weights, gathered
from mlxreflect.models.split import in_step
from mlxreflect.models.template import ChatTemplate

PLAIN = Sampling()
GB = 1e9
TIDY = 512  # steps after which freed memory goes back, as in mlx-lm's BatchGenerator
IDLE_S = 0.01  # before a queue that had nothing for an empty batch is asked again
P = ParamSpec("P")


@dataclass(frozen=True)
class Completion:
    """token_ids: as generated, with the end token, or those of the stop string, it ended with.

    text: up to that end. finish_reason: "stop", or "length" where max_new_tokens cut it off.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int


Steps = Generator[tuple[int, list[int]], None, list[Completion]]


def to_the_end(steps: Callable[P, Steps]) -> Callable[P, list[Completion]]:
    """Returns a function that takes all steps at once."""

    @wraps(steps)
    def run(*args: P.args, **kwargs: P.kwargs) -> list[Completion]:
        taken = steps(*args, **kwargs)
        while True:
            try:
                next(taken)
            except StopIteration as end:
                return cast(list[Completion], end.value)

    return run


def told(steps: Steps, tell: Callable[[], None]) -> Steps:
    """Takes steps, and calls `tell` before each."""
    while True:
        tell()
        try:
            yield next(steps)
        except StopIteration as end:
            return cast(list[Completion], end.value)


def on_all_hosts(alone: Callable[P, list[Completion]]) -> Callable[P, list[Completion]]:
    """Returns a function that shares its sequences among the hosts that have the policy."""

    @wraps(alone)
    def run(*args: P.args, **kwargs: P.kwargs) -> list[Completion]:
        policy, prompts = cast(tuple[Policy, Sequence[list[int]]], args)
        if policy.hosts.alone or not prompts:
            return alone(*args, **kwargs)
        policy.lead_generate(prompts, **cast(Any, kwargs))
        return policy.generate_shared(prompts, **cast(Any, kwargs))

    return run


class Queue(Protocol):
    """The sequences of a call that nobody has begun, by their numbers.

    What becomes of a sequence does not depend on when, where and beside which others it is written.
    """

    @property
    def more(self) -> bool:
        """Returns whether anything may still be handed out here."""

    def take(self, room: int) -> list[int]:
        """Returns sequences to begin now, as many as there is room for; maybe none for a while.

        Neighbours with the same prompt come together, also where some must wait for room: they
        share one prefill. It is asked at every step, also without room.
        """


class Waiting:
    """A queue that hands out in order."""

    def __init__(self, asked: Sequence[list[int]]) -> None:
        runs = groupby(range(len(asked)), asked.__getitem__)
        self.runs = deque(list(run) for _, run in runs)

    @property
    def more(self) -> bool:
        return bool(self.runs)

    def take(self, room: int) -> list[int]:
        taken: list[int] = []
        while self.runs and len(taken) < room:
            taken += self.runs.popleft()
        return taken


class Policy:
    """A model with its tokenizer: chat prompts to tokens, tokens to attempts.

    limit: bytes that generating may take besides the weights. say: told once where that lowers a
    batch. hosts: that have it too, by its number. puts_on: the number of the adapter that it wears;
    0: none. learns: its trainable parameters may change. split: each host has a part of it.
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
        self.hosts, self.number, self.puts_on = ALONE, 0, 0
        self.learns = self.split = False

    @cached_property
    def decoding(self) -> Decoding:
        self.model.eval()
        return Decoding(self.model)

    def fitting(self, batch: int, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
        """Returns the batch, lowered where it would take more memory than there is."""
        longest = max(map(len, prompts), default=0)
        return self.decoding.batch(batch, longest, max_new_tokens, self.limit)

    def lowered(self, batch: int, prompts: Sequence[list[int]], max_new_tokens: int) -> int:
        """Returns the batch that fits, and says so where it is a lower one."""
        fits = self.fitting(batch, prompts, max_new_tokens)
        if fits < batch:
            self.tell(batch, fits, max(map(len, prompts)), max_new_tokens)
        return fits

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

    def steps(
        self,
        prompts: Sequence[list[int]],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch: int,
        seed: Sequence[int | str],
        first: int = 0,
        samples: int = 1,
        stop: Sequence[str] = (),
        banned: Sequence[Sequence[list[int]]] = (),
        sampling: Sampling = PLAIN,
        queue: Queue | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> Steps:
        """`samples` completions of each prompt in turn, by continuous batching.

        Sequence i of the call (all samples of the first prompt, then of the next) draws its tokens
        from a stream that `seed` and first + i name: the same names, prompt, weights and backend
        give the same tokens, whatever is in its batch, and however large that is (but for
        rounding). first: the sequences before it, where a call is one of several.

        Yields, token by token, the number of a sequence and its tokens so far; what is generated
        until the next one is by the weights of then. Returns the completions in order: of those
        that `queue` handed out here, where it is one that others share.

        batch: sequences at once; fewer where they would not fit into memory. stop: strings that end
        a completion where they appear in its text. banned: for each prompt, token sequences that
        its completions do not begin with. sampling: how a token is drawn besides. advance: told how
        many completions have just ended.
        """
        asked = [prompt for prompt in prompts for _ in range(samples)]
        bans = [list(ban) for ban in banned for _ in range(samples)] or [[] for _ in asked]
        batch = self.lowered(batch, prompts, max_new_tokens)
        rows = SeededBatch(
            self.model.eval(),
            Draw(seed, temperature, top_p, sampling, first),
            self.eos,
            max_new_tokens,
            lambda i, unread: [*avoid(unread, bans[i]), *penalties(unread, sampling)],
        )
        writing = write(rows, asked, queue or Waiting(asked), batch, Ends(self, stop), advance)
        try:
            written = yield from writing
        finally:
            rows.close()
        self.tokens_generated += sum(len(tokens) for tokens, _ in written.values())
        return [self.completion(*written[i], asked[i], stop) for i in sorted(written)]

    generate = on_all_hosts(to_the_end(steps))

    def lead_generate(
        self, prompts: Sequence[list[int]], *, sampling: Sampling = PLAIN,
        advance: Callable[[int], None] | None = None, **how: Any,
    ) -> None:  # fmt: skip
        """Orders the other hosts to do the same call of `generate_shared`."""
        drawn = sampling.model_dump(include=set(Sampling.model_fields))
        self.hosts.lead(
            "generate", policy=self.number, puts_on=self.puts_on, prompts=prompts, sampling=drawn,
            **how,
        )  # fmt: skip

    def generate_shared(
        self,
        prompts: Sequence[list[int]],
        *,
        samples: int = 1,
        stop: Sequence[str] = (),
        advance: Callable[[int], None] | None = None,
        **how: Any,
    ) -> list[Completion]:
        """Does a call of `generate` together with the other hosts; each gets all completions."""
        if self.split:
            fits = self.fitting(how["batch"], prompts, how["max_new_tokens"])
            how["batch"] = int(min(self.hosts.meet(fits)))
            with in_step(self.hosts) as step:
                steps = self.steps(prompts, samples=samples, stop=stop, advance=advance, **how)
                return to_the_end(told)(steps, step)
        if self.learns:
            agree_on_weights(self.hosts, self.model)
        asked = [prompt for prompt in prompts for _ in range(samples)]
        queue = SharedQueue(self.hosts, asked, advance)
        steps = self.steps(
            prompts, samples=samples, stop=stop, queue=queue, advance=queue.end, **how
        )
        mine = to_the_end(told)(steps, queue.count_token)
        written = {i: [one.token_ids, one.finish_reason]
                   for i, one in zip(sorted(queue.mine), mine, strict=True)}  # fmt: skip
        found = gathered(self.hosts, written)
        queue.tell(len(asked))
        self.tokens_generated += sum(len(found[i][0]) for i in found.keys() - written.keys())
        both = ((*found[i], prompt) for i, prompt in enumerate(asked))
        return [self.completion(ids, reason, prompt, stop) for ids, reason, prompt in both]

    def completion(
        self, token_ids: list[int], finish_reason: str, prompt: list[int], stop: Sequence[str] = ()
    ) -> Completion:
        shown = token_ids[:-1] if token_ids and token_ids[-1] in self.eos else token_ids
        text = self.decode(shown)
        kept = cut_at(text, stop)
        reason = finish_reason if kept == text else "stop"
        return Completion(self.opening(prompt) + kept, token_ids, reason, len(prompt))


class Ends:
    """Finds out where a stop string ends a completion."""

    def __init__(self, policy: Policy, stop: Sequence[str]) -> None:
        self.policy, self.stop = policy, stop
        longest = max((len(text.encode()) for text in stop), default=0)
        self.reach = longest + 4  # tokens that one may be in, and some before

    def met(self, tokens: Sequence[int]) -> bool:
        """Returns whether the last of the tokens completes one."""
        if not self.stop:
            return False
        tail = self.policy.decode(tokens[-self.reach :])
        return any(text in tail for text in self.stop)


Written = dict[int, tuple[list[int], str]]  # tokens and finish reason, by number


def write(
    rows: "SeededBatch", asked: Sequence[list[int]], queue: Queue, batch: int, ends: Ends,
    advance: Callable[[int], None] | None,
) -> Generator[tuple[int, list[int]], None, Written]:  # fmt: skip
    """Writes what a queue hands out, at most `batch` sequences at once; yields as `steps` does."""
    tokens: dict[int, list[int]] = {}
    written: Written = {}
    while queue.more or rows.ready or rows.size:
        room = batch - rows.size
        if queue.more:  # few prefilled caches at a time: while some wait, none is added
            taken = queue.take(0 if rows.ready else room)
            rows.read({number: asked[number] for number in taken})
        rows.begin(room)
        if not rows.size:
            time.sleep(IDLE_S)
        for number, token, reason in rows.following():
            mine = tokens.setdefault(number, [])
            mine.append(token)
            yield number, mine
            if not reason and ends.met(mine):
                reason = "stop"
                rows.remove(number)
            if reason:
                written[number] = (mine, reason)
                if advance:
                    advance(1)
    return written


class SeededBatch:
    """Sequences that are generated together, a token in turn, each from its own random stream.

    It drives the two halves of mlx-lm's BatchGenerator, which itself calls a sampler without saying
    whose rows those are. model: in evaluation mode. limits: the logits processors of a sequence,
    given its number and how many tokens it had left to read. ready: those with their prompts read,
    for which there was no room yet.
    """

    def __init__(
        self, model: nn.Module, draw: Draw, eos: set[int], max_new_tokens: int,
        limits: Callable[[int, int], list[Processor]],
    ) -> None:  # fmt: skip
        self.model, self.draw, self.limits = model, draw, limits
        self.end = StopSequences([[token] for token in sorted(eos)])
        self.max_new_tokens = max_new_tokens
        self.ready: deque[tuple[int, list[int], Any]] = deque()
        self.batch = GenerationBatch.empty(model, draw)
        self.steps = 0
        self.old_limit = maybe_set_recommended_wired_limit()

    @property
    def size(self) -> int:
        return len(self.batch)

    def read(self, prompts: Mapping[int, list[int]]) -> None:
        """Makes sequences ready, by their numbers; what is alike among them is read once."""
        if prompts:
            with mx.stream(generation_stream):
                unread, caches = prefill(self.model, list(prompts.values()))
            self.ready += zip(prompts, unread, caches, strict=True)

    def begin(self, room: int) -> None:
        """Lets the ones that were ready first join, with their first tokens drawn."""
        if self.ready and room > 0:
            with mx.stream(generation_stream):
                rows, unread = self.joining(min(room, len(self.ready)))
                self.draw.rows = list(rows.uids)
                self.batch.extend(rows.generate(unread))

    def joining(self, count: int) -> tuple[PromptProcessingBatch, list[list[int]]]:
        """Returns a batch of those that were ready first, and what each has left to read."""
        taken = [self.ready.popleft() for _ in range(count)]
        unread = [ids for _, ids, _ in taken]
        rows = PromptProcessingBatch(
            self.model,
            uids=[number for number, _, _ in taken],
            caches=[cache or make_prompt_cache(self.model) for _, _, cache in taken],
            prefill_step_size=CHUNK,
            samplers=[self.draw] * count,
            logits_processors=[self.limits(number, len(ids)) for number, ids, _ in taken],
            stop_sequences=[self.end] * count,
            max_tokens=[self.max_new_tokens] * count,
        )
        return rows, unread

    def following(self) -> list[tuple[int, int, str | None]]:
        """Returns each one's number, next token and, if that is its last, why it has ended."""
        self.draw.rows = list(self.batch.uids)
        self.steps += 1
        with mx.stream(generation_stream):
            responses = self.batch.next()
        if self.steps % TIDY == 0:
            mx.clear_cache()
        # Not the responses themselves: the last would keep the keys and values of all.
        return [(one.uid, one.token, one.finish_reason) for one in responses]

    def remove(self, number: int) -> None:
        others = [i for i, uid in enumerate(self.batch.uids) if uid != number]
        with mx.stream(generation_stream):
            self.batch.filter(others)

    def close(self) -> None:
        """Gives memory back, and the wired limit of before, once nothing is computed any more."""
        if self.old_limit is not None:
            mx.synchronize(generation_stream)
            mx.set_wired_limit(self.old_limit)
        mx.clear_cache()


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    found = [at for end in stop if (at := text.find(end)) >= 0]
    return text[: min(found)] if found else text


def prefill(model: nn.Module, prompts: list[list[int]]) -> tuple[list[list[int]], list[Any]]:
    """Returns what is left to read of each prompt, and caches of the rest: one for equal ones.

    A cache is None where nothing was read yet.
    """
    maskable = can_trim_prompt_cache(make_prompt_cache(model))
    groups: dict[int, list[tuple[int, ...]]] = {}
    for prompt in dict.fromkeys(map(tuple, prompts)):
        # Short ones do not wait for the padding of long ones; and padding leaves its mark on a
        # recurrent state: there, only equal lengths go together.
        groups.setdefault(len(prompt) // (CHUNK if maskable else 1), []).append(prompt)
    if maskable and len(groups) == 1 and sum(map(len, groups.values())) == len(prompts):
        return prompts, [None] * len(prompts)  # nothing to share: each is read with its batch
    caches: dict[tuple[int, ...], Any] = {}
    for group in groups.values():
        longer = [prompt for prompt in group if len(prompt) > 1]
        empty = [make_prompt_cache(model) for _ in longer]
        uids = list(range(len(longer)))
        rows = PromptProcessingBatch(model, uids, empty, prefill_step_size=CHUNK)
        rows.prompt([list(prompt[:-1]) for prompt in longer])
        for i, prompt in enumerate(longer):
            caches[prompt] = rows.extract_cache(i)
            mx.eval([cache.state for cache in caches[prompt]])
    return [prompt[-1:] for prompt in prompts], [caches.get(tuple(prompt)) for prompt in prompts]
