"""The model's chat template, asked by rendering conversations and not guessed from its name.

Some templates open a thought at the prompt's end, drop the system message, or put words between
the role and the answer. How a response has to look after a prompt is read off the template's own
rendering of whole conversations, when a model is loaded.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

from jinja2 import TemplateError
from pydantic import BaseModel

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import SURROGATE, Messages
from mlxreflect.models.sandbox import sandboxed
from mlxreflect.prompts.parsing import TAGS
from mlxreflect.prompts.roles import BUNDLED

Config = TypeVar("Config", bound=BaseModel)
Turns = Sequence[Mapping[str, Any]]

USER, ANSWER, THOUGHT = "Uquestion", "Canswer", "Tthought"
ASK: dict[str, Any] = {"role": "user", "content": USER}
REPLY: dict[str, Any] = {"role": "assistant", "content": ANSWER}
# Templates look for a thought under one of these names.
THINKING: dict[str, Any] = dict.fromkeys(("reasoning_content", "thinking", "reasoning"), THOUGHT)
NONE: Mapping[str, Any] = {}
RENDER_S = 5.0  # far more than a conversation takes
LONGEST = 1_000_000  # characters of a template; the longest that are known have some 20,000
# What a template's code raises: it is anyone's program, in a sandbox.
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
          TypeError, ValueError)  # fmt: skip
PLACE = "\ue000"  # encloses the name of a special token in somebody's text, while it is rendered


class TemplateFault(UserError):
    """A chat template that fails, takes too long, or shows no question in plain text."""

    def __init__(self, reason: str, *, endless: bool = False) -> None:
        super().__init__(
            f"the model's chat template fails: {reason}",
            "give a model that is asked in plain text, or mend policy.template",
        )
        self.reason, self.endless = reason, endless


@dataclass(frozen=True)
class Shape:
    """The text that a template writes around a response.

    opening: the opened thought that the prompt ends with, such as "<think>\\n"; "" for none.
    tags: the model's own tags of a thought, None where none were found. thought: what stands
    between the prompt and a thought, and between the thought and the answer; None where the
    template's conversations show no thought. plain: what stands before an answer without a
    thought. after: what stands between the answer and the end of the turn. trims: the template
    strips an answer. system: it shows the model a system message.
    """

    system: bool = True
    opening: str = ""
    tags: tuple[str, str] | None = None
    thought: tuple[str, str] | None = None
    plain: str = ""
    after: str = ""
    trims: bool = False

    def response(self, text: str, ended: bool = True) -> str:
        """Returns what follows the prompt, up to the end of the turn, for a response's text.

        ended: False for the beginning of a response, which goes on where the text ends.
        """
        thought, answer = self.split(text)
        if answer is None:  # a thought that is never closed
            return (self.thought[0] if self.thought else "") + (thought or "")
        if self.trims:
            answer = answer.strip() if ended else answer.lstrip()
        after = self.after if ended else ""
        if thought is None:
            return self.plain + answer + after
        if not self.thought:
            return thought + answer + after
        before, between = self.thought
        return before + thought.strip() + between + answer.lstrip() + after

    def split(self, text: str) -> tuple[str | None, str | None]:
        """Returns the thought in the model's own tags, and the answer that follows it.

        The thought is None where there is none, the answer where the thought is never closed.
        Where the template shows no thoughts, the closing tag stays with the answer.
        """
        if not self.tags or not (self.opening or self.thought):
            return None, text
        start, end = self.tags
        inner, opens = text, text.lstrip().startswith(start)
        if opens:
            inner = text.lstrip().removeprefix(self.opening)
            inner = inner.removeprefix(start).lstrip() if inner.startswith(start) else inner
        elif end not in text or not self.opening:
            return None, text
        thought, closing, answer = inner.partition(end)
        if not closing:
            return thought, None
        return thought, answer if self.thought else closing + answer


class ChatTemplate:
    """Prompts and responses as a model's chat template writes them.

    thinking: "auto" leaves the template's switch as mlx-lm sets it, "on" and "off" set it; "off"
    leaves out an opened thought where there is no switch. options: keyword arguments of the
    template. notes: a line for each thing that this project cannot write as the template does.

    Raises TemplateFault.
    """

    def __init__(
        self,
        tokenizer: Any,
        thinking: str = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.eos: set[int] = set(tokenizer.eos_token_ids)
        self.thinking = thinking
        self.options = dict(options or {})
        added = tokenizer.added_tokens_decoder.values()
        names = sorted({t.content for t in added if t.special}, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        # The character of the places gets one itself, so that no text can hold a place of its own.
        marks = [*names, PLACE]
        self.marks = re.compile("|".join(map(re.escape, marks)))
        self.places = re.compile(f"{PLACE}({'|'.join(m.encode().hex() for m in marks)}){PLACE}")
        self.left_out = ""
        self.end_of_turn = int(tokenizer.eos_token_id)
        self.shape = Shape(tags=self.known_tags())
        self.notes = ["the model has no chat template: messages are set one below the other"]
        if tokenizer.has_chat_template:
            if len(str(tokenizer.chat_template or "")) > LONGEST:  # slow to compile
                raise TemplateFault(f"it is longer than {LONGEST:,} characters")
            if thinking == "off":
                self.left_out = opened(self.render([ASK], add_generation_prompt=True))
            if USER not in self.prompt_text([ASK]):
                raise TemplateFault("it does not show a question that is plain text")
            self.shape = self.learn()
            self.notes = self.differences()

    # ---- prompts and responses -------------------------------------------------------------------

    def prompt(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Returns the tokens up to where the response begins.

        Special tokens that are written out in the messages are characters. tools: that the template
        shows. Raises TemplateFault where it refuses the messages.
        """
        if not self.tokenizer.has_chat_template:
            text = SURROGATE.sub("\ufffd", "\n\n".join(m["content"] for m in messages) + "\n")
            ids: list[int] = self.tokenizer.encode(text, split_special_tokens=True)
            return ids
        return self.tokens(self.prompt_text(*self.hidden(messages, tools)))

    def longest(self, prompts: Sequence[Messages | str]) -> int:
        """Returns the tokens of the prompt that has the most characters; a text is raw."""
        prompt = max(prompts, key=lambda prompt: len(json.dumps(prompt)))
        return len(
            self.tokenizer.encode(prompt) if isinstance(prompt, str) else self.prompt(prompt)
        )

    def hidden(
        self, messages: Turns, tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[Turns, dict[str, Any]]:
        """Returns messages and, as an option of the template, tools, with places for tokens.

        A thought beside its answer has all the names that templates look for. Raises TemplateFault
        for tools or arguments that are nested some hundred levels deep.
        """

        def hide(value: Any) -> Any:
            if isinstance(value, str):
                return self.hide(value)
            if isinstance(value, Mapping):
                return {hide(key): hide(inner) for key, inner in value.items()}
            return [hide(inner) for inner in value] if isinstance(value, list) else value

        names = [dict.fromkeys(THINKING, m["reasoning_content"]) if "reasoning_content" in m else {}
                 for m in messages]  # fmt: skip
        try:
            told = [hide({**m, **own}) for m, own in zip(messages, names, strict=True)]
            return told, {"tools": hide(list(tools))} if tools else {}
        except RecursionError:
            raise TemplateFault("a tool or its arguments are nested too deep") from None

    def prompt_text(self, messages: Turns, options: Mapping[str, Any] = NONE) -> str:
        text = self.render(self.folded(messages), add_generation_prompt=True, **options)
        return text.removesuffix(self.left_out)

    def folded(self, messages: Turns) -> Turns:
        """Puts the system message before the next one where the template would drop it."""
        first, *others = messages
        if first["role"] != "system" or not others or self.shape.system:
            return messages
        joined = f"{first['content']}\n\n{others[0]['content']}"
        return [{**others[0], "content": joined}, *others[1:]]

    def calling(
        self, messages: Messages, reply: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> list[int]:  # fmt: skip
        """Returns the tokens of a reply that calls tools, as the template itself writes it.

        Raises TemplateFault where it shows no calls after this prompt.
        """
        (*asked, last), options = self.hidden([*messages, reply], tools)
        prompt = self.prompt_text(asked, options)
        told, before = self.render([*self.folded(asked), last], **options), ""
        if not told.startswith(prompt):  # the thought that the prompt opens is closed
            prompt, before = prompt.removesuffix(self.shape.opening), self.shape.plain
        written = told.removeprefix(prompt)
        name = last["tool_calls"][0]["function"]["name"]
        if not told.startswith(prompt) or name not in written:
            raise TemplateFault("it shows no tool calls after this prompt")
        at, end = self.first_end(written)
        return [*self.tokens(before + written[:at]), end]

    def first_end(self, text: str) -> tuple[int, int]:
        """Returns where a token in a text ends the turn, and which; else its end, and the usual."""
        ends = {self.tokenizer.convert_ids_to_tokens(token): token for token in self.eos}
        at, name = min(((text.find(n), n) for n in ends if n and n in text), default=(0, ""))
        return (at, ends[name]) if name else (len(text), self.end_of_turn)

    def response(self, prompt: list[int], text: str, ended: bool = True) -> list[int]:
        """Returns the tokens of a response that the policy did not write, its end included.

        They are what follows the prompt's tokens where both are encoded together, if the prompt's
        tokens are an exact prefix of that; else the response's own. Special tokens in the text are
        characters, but for the model's own tags of a thought. ended: False for the beginning of a
        response: no end is added.
        """
        plain = self.shape.plain.strip()
        if plain and text.lstrip().startswith(plain):  # as the policy itself wrote it
            text = text.lstrip().removeprefix(plain)
        written = self.shape.response(self.hide(text, self.shape.tags), ended)
        end = [self.end_of_turn] if ended else []
        if self.places.search(written):
            return [*self.tokens(written), *end]
        head = self.tokenizer.decode(prompt, skip_special_tokens=False)
        whole = self.tokenizer.encode(head + written, add_special_tokens=False)
        if whole[: len(prompt)] != prompt:
            return [*self.tokens(written), *end]
        return [*whole[len(prompt) :], *end]

    def render(self, messages: Turns, **options: Any) -> str:
        switch = {} if self.thinking == "auto" else {"enable_thinking": self.thinking == "on"}
        try:
            with sandboxed(RENDER_S, lambda reason: TemplateFault(reason, endless=True)):
                text: str = self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, **{**switch, **self.options, **options}
                )
        except FAULTS as error:
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise TemplateFault(f"{kind}{' '.join(str(error).split())[:200]}") from None
        if SURROGATE.search(text):  # no tokenizer takes it
            raise TemplateFault("it writes half a surrogate pair")
        return text

    def hide(self, text: str, tags: Sequence[str] | None = None) -> str:
        """Puts a place for each special token in somebody's text, so that it stays characters.

        tags: what is left as it is. Half a surrogate pair, as a critic may send it, becomes U+FFFD.
        """
        text = SURROGATE.sub("\ufffd", text)
        parts = re.split(f"({'|'.join(map(re.escape, tags))})", text) if tags else [text]
        parts[::2] = [self.marks.sub(place, part) for part in parts[::2]]
        return "".join(parts)

    def tokens(self, text: str) -> list[int]:
        """Returns the tokens of a rendered text, in which `hide` may have put places."""
        if not self.places.search(text):
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
            return ids
        found: list[int] = []
        for piece in filter(None, re.split(f"({self.special.pattern})", text)):
            if self.special.fullmatch(piece):
                found.append(self.tokenizer.convert_tokens_to_ids(piece))
                continue
            shown = self.places.sub(lambda place: bytes.fromhex(place[1]).decode(), piece)
            found += self.tokenizer.encode(
                shown, add_special_tokens=False, split_special_tokens=True
            )
        return found

    # ---- asking the template ---------------------------------------------------------------------

    def learn(self) -> Shape:
        """Reads the shape of a turn off conversations with and without a thought."""
        prompt = self.prompt_text([ASK])
        told = self.try_render([ASK, REPLY])
        padded = self.try_render([ASK, {**REPLY, "content": f"\n {ANSWER} \n"}])
        before, _, after = told.partition(ANSWER)
        thought = self.learn_thought(prompt)
        opening = opened(prompt)
        tags = self.known_tags(opening, thought)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, before, strict=False))
        plain = before[sum(1 for _ in same) :]
        if opening and tags and tags[1] not in plain:
            plain = f"\n{tags[1]}\n\n"  # the template's answers do not close what it opens
        return Shape(
            system=self.hears_system(),
            opening=opening,
            tags=tags,
            thought=thought,
            plain=plain,
            after=self.learn_end(after),
            trims=bool(told) and padded == told,
        )

    def hears_system(self) -> bool:
        """Tells if a system message changes the prompt: any text, or an instruction of ours.

        The first Phi-3's template drops the role without an error, Gemma's raises.
        """
        alone = self.try_render([ASK])
        instructions = [
            text for name, text in BUNDLED.wording.items() if name.startswith("attempt")
        ]
        told = [self.try_render([{"role": "system", "content": t}, ASK]) for t in instructions]
        return any(text and text != alone for text in told)

    def learn_thought(self, prompt: str) -> tuple[str, str] | None:
        """Returns what stands before a thought, and between it and the answer, if it is shown."""
        text = self.try_render([ASK, {**REPLY, **THINKING}])
        if not text.startswith(prompt) or THOUGHT not in text:
            return None
        before, _, rest = text[len(prompt) :].partition(THOUGHT)
        return before, rest.partition(ANSWER)[0]

    def learn_end(self, after: str) -> str:
        """Sets the token that ends a turn; returns what stands between an answer and it."""
        at, self.end_of_turn = self.first_end(after)
        return after[:at] if at < len(after) else ""

    def known_tags(
        self, opening: str = "", thought: tuple[str, str] | None = None
    ) -> tuple[str, str] | None:
        """Returns the model's own tags: of the prompt or a conversation, else of the vocabulary."""
        if thought and thought[0].strip() and not opening:
            return thought[0].strip(), thought[1].strip()
        vocabulary = self.tokenizer.get_vocab()
        for start, end in TAGS.values():
            if opening.strip() == start or (not opening and {start, end} <= vocabulary.keys()):
                return start, end
        return None

    def shows_tools(self) -> bool:
        """Tells if the template shows the model tools."""
        tool = {"type": "function", "function": {"name": THOUGHT, "parameters": {}}}
        return THOUGHT in self.try_render([ASK], tools=[tool])

    def try_render(self, messages: Turns, **options: Any) -> str:
        """Returns a conversation as rendered; "" where the template refuses it."""
        try:
            return self.render(messages, **options)
        except TemplateFault as fault:
            if fault.endless:  # it would be so with all that it is asked
                raise
            return ""

    def differences(self) -> list[str]:
        """Says in a line each what is not written as the template's own conversations have it."""
        shape, notes = self.shape, []
        if not shape.system:
            notes.append("it drops system messages; instructions are put before the first question")
        if self.thinking != "auto" and not (self.left_out or self.switches()):
            notes.append(f'policy.thinking = "{self.thinking}" does nothing: it has no such switch')
        again = [ASK, REPLY, ASK]
        if not self.same([ASK], {}, ANSWER):
            notes.append(
                "it has no form for an answer without a thought after this prompt; such answers "
                f"begin with {shape.plain!r}"
            )
        elif not self.same(again, {}, ANSWER):
            notes.append("it writes a second turn differently from the first")
        if shape.tags and (shape.opening or shape.thought or self.closes()):
            start, end = shape.tags
            if not shape.thought and shape.opening:
                notes.append("it leaves thoughts out of conversations; responses keep theirs")
            elif not self.closes() and not self.same(
                [ASK], THINKING, f"{start}\n{THOUGHT}\n{end}\n\n{ANSWER}"
            ):
                notes.append("it writes thoughts differently from mlxreflect")
        return [f"chat template: {note}" for note in notes]

    def notes_for(self, tags: str) -> list[str]:
        """Returns the notes for responses whose thoughts have such tags, by their name."""
        if TAGS[tags] != self.shape.tags or not self.tokenizer.has_chat_template:
            return self.notes
        start, end = TAGS[tags]
        second = (
            f"chat template: its prompt ends in a closed thought, so {start}…{end} in a response "
            'is a second one: set prompt.tags = "reasoning" for other tags'
        )
        return [*self.notes, *([second] if self.closes() else [])]

    def same(self, messages: Turns, thinking: Mapping[str, Any], text: str) -> bool:
        """Tells if prompt and response are, token by token, the template's own conversation."""
        told = self.try_render([*messages, {**REPLY, **thinking}])
        prompt = self.tokens(self.prompt_text(messages))
        ours = [*prompt, *self.response(prompt, text)[:-1]]
        return not told or self.tokens(told)[: len(ours)] == ours

    def closes(self) -> bool:
        """Tells if the prompt ends in a thought that is closed already."""
        _, end = self.shape.tags or ("", "")
        return bool(end) and self.prompt_text([ASK]).rstrip().endswith(end)

    def switches(self) -> bool:
        """Tells if the template's switch changes the prompt."""
        on, off = (
            self.render([ASK], add_generation_prompt=True, enable_thinking=on)
            for on in (True, False)
        )
        return on != off


def place(token: re.Match[str]) -> str:
    return f"{PLACE}{token[0].encode().hex()}{PLACE}"


def opened(prompt: str) -> str:
    """Returns the opened thought at the end of a rendered prompt, white space included."""
    for start, _ in TAGS.values():
        at = prompt.rfind(start)
        if at >= 0 and not prompt[at + len(start) :].strip():
            return prompt[at:]
    return ""


def with_tags(config: Config, template: ChatTemplate) -> Config:
    """Returns a recipe, spec or job with the model's own tags, where it asks for native ones.

    Raises UserError for a chat template without any that are known.
    """
    prompt = getattr(config, "prompt", None)  # a job has its tags at the top
    if (prompt.tags if prompt else getattr(config, "tags", "")) != "native":
        return config
    key = "prompt.tags" if prompt else "tags"
    own = template.shape.tags
    name = next((name for name, pair in TAGS.items() if pair == own and name != "native"), None)
    if name is None:
        raise UserError(
            f'{key} = "native": the chat template of the model has no tags of a thought',
            f'set {key} = "think"',
        )
    if prompt is None:
        return config.model_copy(update={"tags": name})
    return config.model_copy(update={"prompt": prompt.model_copy(update={"tags": name})})
