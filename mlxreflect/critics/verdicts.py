"""Verdicts: structured replies, taken only where they are without doubt the critic's own.

An attempt is untrusted text and may hold a verdict of its own making. So exactly one object of the
schema must be left of a reply once quotes are skipped, it may stand inside no other braces, and it
must be none that the critic was shown, however it is set anew.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mlxreflect.critics.base import Call, Critic, Reply

# Texts of a reply. A server that holds a small model to a schema would let it write on and on;
# llama.cpp takes no bound of 2000 or more. What is longer is read all the same.
Words = Annotated[str, Field(json_schema_extra={"maxLength": 1000})]


class Structured(BaseModel):
    """A reply's shape. All keys are required: some servers hold a model only to such schemas.

    placed: its verdict names a place, and is asked for in both orders: repeated, it wins nothing.
    """

    placed: ClassVar[bool] = False
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Judgement(Structured):
    """One attempt judged. step: the first wrong one, or empty.

    The verdict comes last: a model that is held to the schema decides after it has looked.
    """

    step: Words
    why: Words
    verdict: Literal["right", "wrong"]


class Preference(Structured):
    """Two attempts compared."""

    why: Words
    better: Literal["A", "B", "tie"]


def as_number(value: object) -> object:
    """1 and "Answer 1" are "1", as models write that no server holds to the schema."""
    said = str(value).strip().casefold().removeprefix("answer ")
    return said if said in ("1", "2", "tie") else value


class Choice(Structured):
    """Two answers compared, called by the place in which they were shown."""

    placed = True
    why: Words
    better: Annotated[Literal["1", "2", "tie"], BeforeValidator(as_number)]


def as_mark(value: object) -> object:
    """4.0 and "4" are 4, as models write that no server holds to the schema; true is no mark."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value in ("1", "2", "3", "4", "5") else value


# not at all … throughout
Mark = Annotated[Literal[1, 2, 3, 4, 5], BeforeValidator(as_mark)]


class Marks(Structured):
    """Marks of one solution's reasoning. The prompt says which there are."""

    why: Words
    depth: Mark
    coherence: Mark
    verification: Mark
    completeness: Mark


class Section(Structured):
    """A named part of the thinking behind an answer."""

    name: Words
    text: Annotated[str, Field(json_schema_extra={"maxLength": 1900})]


class Sections(Structured):
    """Notes drawn from passages."""

    sections: list[Section]


M = TypeVar("M", bound=Structured)
# Blocks of somebody else's text, and thoughts, which are no conclusion; one that is never closed
# goes on to the end. And the lines of a Markdown quote.
QUOTED = r"attempt[\w-]*|answer-\d|feedback|expected|example|question|passage|sections|think"
TOKEN = re.compile(rf"{{+|}}+|<(?P<tag>{QUOTED})>|^[ \t]*>[^\n]*", re.I | re.M)
FENCE = re.compile(r"```(?:json)?|\s+")  # may stand around an object
OBJECT = re.compile(r'{\s*"')
# What a text gives to a name: in quotes, escaped however often, or a single word.
VALUE = r"""\b{key}\b[\\"'*` ]*[:=]\s*(?:(\\*["'])(.{{0,2000}}?)(?<!\\)\1|([^\s,}}]+))"""
MOST = 200  # values of a name that a field is compared with, but for equal ones


def parse(text: str, model: type[M], shown: str = "") -> M | None:
    """Returns the verdict in a reply; None where there is none, more than one, or some doubt.

    shown: what the critic was given to read; a verdict that stands in it is not taken, nor one
    whose fields all have values that it gives to fields of the same names, but for a letter or two:
    keys in another order, a full stop more, and an object mended or put together from two are still
    a quote. But where the verdict names a place, a reply that is the object and nothing else quotes
    nobody: no answer can have it thrown away by saying the same. Linear in the length of both.
    """
    theirs = compact(shown)

    @cache
    def given(key: str) -> dict[str, None]:
        found = re.finditer(VALUE.format(key=re.escape(key)), shown, re.I | re.DOTALL)
        return dict.fromkeys(letters(value[2] if value[1] else value[3]) for value in found)

    def is_given(key: str, value: str) -> bool:
        theirs = given(key)
        return value in theirs or any(near(value, other) for other in islice(theirs, MOST))

    def quoted(raw: str, one: M) -> bool:
        said = [(key, value) for key, value in fields(one.model_dump()) if value]
        repeats = bool(said) and all(is_given(key, value) for key, value in said)
        return repeats or compact(raw) in theirs

    every = list(verdicts(text, model))
    if model.placed and len(every) == 1 and not FENCE.sub("", text.replace(every[0][0], "")):
        return every[0][1]
    found = [one for raw, one in every if not quoted(raw, one)]
    return found[0] if len(found) == 1 else None


def verdicts(text: str, model: type[M]) -> Iterator[tuple[str, M]]:
    """Yields the outermost objects of a schema, each as it is written and as it was read.

    What looks like an object and is none (a set, a cut-off object) hides what stands inside it.
    """
    decoder = json.JSONDecoder(object_pairs_hook=no_key_twice)
    position = depth = 0
    while token := TOKEN.search(text, position):
        begin, position = token.span()
        if tag := token["tag"]:
            closing = re.compile(f"</{tag}>", re.I).search(text, position)
            position = closing.end() if closing else len(text)
        elif token[0][0] == "}":
            depth = max(0, depth - len(token[0]))
        elif token[0][0] == "{" and (depth or not OBJECT.match(text, begin)):
            depth += len(token[0])
        elif token[0][0] == "{":
            try:
                value, position = decoder.raw_decode(text, begin)
            except (ValueError, RecursionError):
                depth = 1
                continue
            with suppress(ValidationError):
                yield text[begin:position], model.model_validate(value)


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON leaves open which of two equal keys counts; here neither does."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands there twice")
    return made


def compact(text: str) -> str:
    """Returns a text without space and backslashes: a quoted object is escaped and set anew."""
    return re.sub(r"[\s\\]+", "", text)


def fields(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the names and values of an object and of those inside it, as letters."""
    for key, inner in value.items():
        if isinstance(inner, list):
            for one in inner:
                yield from fields(one)
        else:
            yield key, letters(str(inner))


def letters(text: str) -> str:
    """Returns a text's letters and digits in lower case, without the escapes of JSON."""
    text = re.sub(r"\\+u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text, flags=re.I)
    return re.sub(r"\.0+\b|\\+[bfnrt]?|[\W_]+", "", text).casefold()


def near(one: str, other: str) -> bool:
    """Tells if two texts have the same letters, but for one and every tenth."""
    spare = 1 + max(len(one), len(other)) // 10
    if abs(len(one) - len(other)) > spare:
        return False
    counts = Counter(one)
    counts.subtract(other)
    return sum(map(abs, counts.values())) <= spare


@dataclass(frozen=True)
class Answer(Generic[M]):
    """A verdict, or None as its value where none came.

    replies: all there were, to be counted; the last one counts. calls: theirs, in the same order.
    """

    value: M | None
    replies: list[Reply]
    calls: list[Call]

    def unread(self) -> list[Call]:
        """Calls that were answered, but with no verdict."""
        both = zip(self.calls, self.replies, strict=True)
        return [call for call, reply in both if reply.kind == "unknown"]


def ask_structured(critic: Critic, calls: Sequence[Call], model: type[M]) -> list[Answer[M]]:
    """Returns a verdict a call. A reply without one is asked again once, as another call.

    One that has none then either is unknown: an error, and never a pass.
    """
    schema = model.model_json_schema()
    first = [replace(call, schema=schema) for call in calls]
    # Another seed and the critic's own temperature too: it would only say the same.
    again = [
        replace(c, attempt=f"{c.attempt}/again", seed=c.seed + 1, temperature=None) for c in first
    ]
    answers = [read(call, r, model) for call, r in zip(first, critic.ask(first), strict=True)]
    doubtful = [i for i, answer in enumerate(answers) if answer.replies[0].kind == "unknown"]
    if doubtful:
        retold = critic.ask([again[i] for i in doubtful])
        for i, reply in zip(doubtful, retold, strict=True):
            one, second = answers[i], read(again[i], reply, model)
            answers[i] = Answer(
                second.value, one.replies + second.replies, one.calls + second.calls
            )
    return answers


def read(call: Call, reply: Reply, model: type[M]) -> Answer[M]:
    if reply.error is not None:
        return Answer(None, [reply], [call])
    shown = "\n".join(m["content"] for m in call.messages)  # the example of the prompt, too
    value = parse(reply.text, model, f"{call.text}\n{shown}")
    if value is None:
        said = f"no verdict in the reply: {' '.join(reply.text[:400].split())[:100]!r}"
        said += " (cut off: raise critic.max_tokens)" if reply.finish_reason == "length" else ""
        reply = replace(reply, text="", error=said, kind="unknown")
    return Answer(value, [reply], [call])
