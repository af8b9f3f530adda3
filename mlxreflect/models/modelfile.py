"""A model's chat template and settings as Ollama has them: a Modelfile, and /api/create's fields.

Ollama does not run a model's own template (Jinja): it takes one in Go's language, or guesses which
of its own is meant and then leaves out what the model's own template says by itself. So the text
around each turn is read off the template's rendering, and written as Go's language has it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxreflect.config.schema import PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Messages
from mlxreflect.models.template import (
    ANSWER,
    ASK,
    REPLY,
    USER,
    ChatTemplate,
    Turns,
)

SYSTEM: dict[str, Any] = {"role": "system", "content": "Sinstruction"}
AGAIN: dict[str, Any] = {"role": "user", "content": "Aquestion"}
# What the template is compared on with the model's own.
TALKS: tuple[list[dict[str, Any]], ...] = (
    [ASK], [SYSTEM, ASK], [ASK, REPLY, AGAIN], [SYSTEM, ASK, REPLY, AGAIN],
    [ASK, REPLY, AGAIN, REPLY, ASK],
)  # fmt: skip
FENCE = '"""'  # around a text in a Modelfile, which can have no such marks in it
GO = """\
{{ $first := true }}{{ $role := "" }}{{ range .Messages }}{{ $role = .Role }}\
{{ if eq .Role "user" }}\
{{ if not $first }}[again]{{ else if $.System }}[head]{{ $.System }}[system]\
{{ else }}[start]{{ end }}{{ $first = false }}{{ .Content }}\
{{ else if eq .Role "assistant" }}[reply][thought]{{ .Content }}{{ end }}{{ end }}\
{{ if ne $role "assistant" }}[end]{{ end }}"""

# By the texts around .Thinking, Ollama tells a thought from the answer. The condition never holds:
# templates leave the thoughts of earlier answers out.
THOUGHTS = '{{{{ if and .Thinking (eq .Role "user") }}}}{}\n{{{{ .Thinking }}}}\n{}{{{{ end }}}}'


@dataclass(frozen=True)
class Turn:
    """The text around the messages of a conversation.

    start: before the first question where there is no system message; else head stands before
    that message, and system between it and the question. reply: before an answer. again: before
    a later question. end: after the last question, up to where the answer begins.
    tags: around a thought that the model writes by itself; None where it writes none.
    """

    start: str
    head: str
    system: str
    reply: str
    again: str
    end: str
    tags: tuple[str, str] | None = None

    def prompt(self, messages: Messages) -> str:
        """Returns a conversation as Ollama renders the template that `go` returns."""
        text, first = "", True
        system = "".join(m["content"] for m in messages if m["role"] == "system")
        for message in messages:
            if message["role"] == "user":
                begins = f"{self.head}{system}{self.system}" if system else self.start
                text += (begins if first else self.again) + message["content"]
                first = False
            elif message["role"] == "assistant":
                text += self.reply + message["content"]
        return text + self.end

    def go(self) -> str:
        """Returns the template in Go's language."""
        names = ("start", "head", "system", "reply", "again", "end")
        parts = {name: literal(getattr(self, name)) for name in names}
        parts["thought"] = THOUGHTS.format(*self.tags) if self.tags else ""
        return re.sub(r"\[(\w+)\]", lambda part: parts[part[1]], GO)

    def default(self) -> str:
        """Returns the system message that the template adds by itself; "" for none."""
        told = self.start.removeprefix(self.head).removesuffix(self.system)
        whole = self.start == f"{self.head}{told}{self.system}"
        return told if whole else ""


@dataclass(frozen=True)
class Modelfile:
    """template: in Go's language; "" leaves it to Ollama. parameters: by Ollama's names.

    tags: of a thought, by which Ollama takes it out of the answer.
    """

    template: str = ""
    system: str = ""
    parameters: dict[str, float | list[str]] = field(default_factory=dict)
    tags: tuple[str, str] | None = None

    def request(self) -> dict[str, Any]:
        """Returns the fields of /api/create that say the same."""
        said = {"template": self.template, "system": self.system, "parameters": self.parameters}
        return {key: value for key, value in said.items() if value}

    def text(self, source: str = ".") -> str:
        """Returns the file. source: the model's folder or GGUF file, as seen from it."""
        lines = ["# ollama create NAME -f Modelfile", f"FROM {source}"]
        for name, value in (("TEMPLATE", self.template), ("SYSTEM", self.system)):
            lines += [f"{name} {quoted(value)}"] if value else []
        for name, setting in self.parameters.items():
            told = map(quoted, setting) if isinstance(setting, list) else [number(setting)]
            lines += [f"PARAMETER {name} {value}" for value in told]
        return "\n".join(lines) + "\n"


def modelfile(
    template: ChatTemplate, how: PolicyConfig, stop: Sequence[str] = (), context: int = 0
) -> Modelfile:
    """Returns the Modelfile of a model that is to answer as `how` has it.

    stop: what an answer ends before. context: tokens of prompt and answer together; 0: what Ollama
    has by default. Raises UserError for a chat template that is more than text around each turn.
    """
    ends = [*template.tokenizer.convert_ids_to_tokens(sorted(template.eos)), *stop]
    parameters: dict[str, float | list[str]] = {
        # All of them: Ollama's own are others, such as a top_k of 40.
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k,
        "min_p": how.min_p,
        "repeat_penalty": how.repetition_penalty,
        "presence_penalty": how.presence_penalty,
        "stop": [end for end in ends if isinstance(end, str) and writable(end)],
    }
    if context:
        parameters["num_ctx"] = context
    if how.repetition_penalty != 1.0:
        parameters["repeat_last_n"] = -1  # the whole answer, as here; Ollama looks at 64 tokens
    if not template.tokenizer.has_chat_template:
        return Modelfile(parameters=parameters)
    turn = turn_of(template)
    system = turn.default()
    return Modelfile(turn.go(), system if writable(system) else "", parameters, turn.tags)


def turn_of(template: ChatTemplate) -> Turn:
    """Reads the text around turns off the rendering of conversations. Raises UserError."""

    def parts(talk: Turns, *said: str) -> list[str]:
        texts, rest = [], template.prompt_text(talk)
        for text in said:
            before, _, rest = rest.partition(text)
            texts.append(before)
        return [*texts, rest]

    start, end = parts([ASK], USER)
    head, system, _ = parts([SYSTEM, ASK], SYSTEM["content"], USER)
    _, reply, again, _ = parts([ASK, REPLY, AGAIN], USER, ANSWER, AGAIN["content"])
    turn = Turn(start, head, system, reply, again, end, tags_of(template))
    for talk in TALKS:
        if turn.prompt(talk) != template.prompt_text(talk):
            raise UserError(
                "the model's chat template does not write turns one after the other, so Ollama "
                "can have none like it",
                "export it --to mlx or --to lmstudio, which run the model's own",
            )
    return turn


def tags_of(template: ChatTemplate) -> tuple[str, str] | None:
    """Returns the tags of the model's own thoughts, where a reply of Ollama's can show them."""
    tags = template.shape.tags
    text = "".join(tags or ())
    # Special tokens are in no reply, and after a closed thought there is none.
    hidden = bool(template.special.search(text)) or literal(text) != text
    return None if hidden or template.closes() else tags


# ---- text ----------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """Returns text as a Go template in a Modelfile says it.

    Ollama's reader drops characters that cannot be printed, and ends the text at three quotes;
    braces begin what Go computes. Each of these is a string of Go's.
    """
    return "".join(
        c if c == "\n" or (c.isprintable() and c not in '{"') else f'{{{{ "\\U{ord(c):08x}" }}}}'
        for c in text
    )


def writable(text: str) -> bool:
    """Tells if a Modelfile can hold a text as it is."""
    return FENCE not in text and all(c == "\n" or c.isprintable() for c in text)


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def quoted(text: str) -> str:
    """Returns a writable text, or a template, in a Modelfile's quotes."""
    fence = FENCE if '"' in text else '"'
    return f"{fence}{text}{fence}"
