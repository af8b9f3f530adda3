"""One row → Examples, by its columns: the forms of TRL and mlx-lm, ShareGPT, groups, our own.

A row that cannot be trained on is a Fault with its reason, never mended by a guess.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from mlxreflect.records import Example, Messages
from mlxreflect.train.sources import listed

Turns = Literal["all", "last"]
Values = dict[str, Any]

KINDS = {
    "sft": "texts to imitate: train sft",
    "preference": "preference pairs: train dpo, ipo, exo_pair or orpo",
    "group": "groups of answers with rewards: train grpo",
}
ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant",
}  # fmt: skip
WRITTEN_OUT = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")
SURROGATE = re.compile("[\ud800-\udfff]")


class Fault(ValueError):
    """Why a row is bad."""


class Misfit(Fault):
    """A row of a kind that the objective does not train."""


class Unknown(Fault):
    """A row without the columns of any form."""


# ---- values --------------------------------------------------------------------------------------


def text_of(value: Any, at: str) -> str:
    """A content: a string, or text parts, joined. `at` names it in a Fault."""
    if isinstance(value, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" for p in value):
            raise Fault(f"{at} has content other than text")
        texts = [part.get("text") for part in value]
        value = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(value, str):
        raise Fault(f"{at} is no text")
    if SURROGATE.search(value):
        raise Fault(f"{at} has half a surrogate pair, which no tokenizer takes")
    return value


def messages_of(value: Any, at: str, role: str = "") -> Messages:
    """Messages as TRL or ShareGPT write them; where `role` is given, a string is one of it."""
    if isinstance(value, str) and role:
        if WRITTEN_OUT.match(value):
            raise Fault(f"{at} is a list of messages written out as text; save the data as JSONL")
        return [{"role": role, "content": text_of(value, at)}]
    if not isinstance(value, list) or not value:
        raise Fault(f"{at} is no list of messages")
    return [message_of(message, f"{at}, message {i},") for i, message in enumerate(value, 1)]


def message_of(value: Any, at: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Fault(f"{at} is no object with role and content")
    if value.get("tool_calls") or value.get("function_call"):
        raise Fault(f"{at} calls a tool, which is not supported")
    role = value.get("role") or value.get("from")
    if not isinstance(role, str) or role not in ROLES:
        raise Fault(f"{at} has no role out of {', '.join(ROLES)}")
    content = value.get("value") if value.get("content") is None else value["content"]
    return {"role": ROLES[role], "content": text_of(content, at)}


def spoken(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def asked(values: Values, prompt: Messages) -> Messages:
    """A prompt that an answer can follow, the row's system text before it."""
    if isinstance(system := values.get("system"), str) and system.strip():
        first = {"role": "system", "content": text_of(system, "system")}
        prompt = prompt if prompt[:1] == [first] else [first, *prompt]
    if any(message["role"] == "system" for message in prompt[1:]):
        raise Fault("a system message stands behind another message")
    if not prompt:
        raise Fault("there is no prompt")
    if prompt[-1]["role"] != "user":
        raise Fault("the prompt does not end in a user's message")
    if not prompt[-1]["content"].strip():
        raise Fault("the prompt is empty")
    return prompt


def answer(messages: Messages, at: str) -> str:
    """The text of the one message that is left after the prompt."""
    if not messages or messages[-1]["role"] != "assistant":
        raise Fault(f"the last message of {at} is not the assistant's")
    if len(messages) > 1:
        raise Fault(f"{at} goes on for {len(messages)} messages; only one answer can be trained")
    if not messages[0]["content"].strip():
        raise Fault(f"{at} is empty")
    return messages[0]["content"]


def number(value: Any, at: str) -> float:
    """A finite number; a numeral, as a table has it, is one too."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Fault(f"{at} is no finite number")
    return found


# ---- forms ---------------------------------------------------------------------------------------


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """With how many characters or messages both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def shared_words(chosen: str, rejected: str) -> int:
    """Where two texts part, cut back to the end of a word; what follows keeps its space."""
    at = shared(chosen, rejected)
    if any(at < len(text) and not text[at].isspace() for text in (chosen, rejected)):
        while at and not chosen[at - 1].isspace():
            at -= 1
    return len(chosen[:at].rstrip())


def joined(prompt: Messages, begun: Messages) -> Messages:
    """A prompt and the messages that stand before the answer, which may repeat it."""
    if not begun or prompt[-len(begun) :] == begun:
        return prompt
    if prompt in (begun[: len(prompt)], begun[-len(prompt) :]):
        return begun
    if begun[0]["role"] != "assistant":
        raise Fault("before the answer stand other messages than the prompt's")
    return prompt + begun


def preference(values: Values, turns: Turns) -> list[Example]:
    """TRL's preference forms: standard, conversational, and with an implicit prompt."""
    prompt, chosen, rejected = (values.get(name) for name in ("prompt", "chosen", "rejected"))
    if "prompt" not in values and isinstance(chosen, str) and isinstance(rejected, str):
        size = shared_words(chosen, rejected)
        if not size:
            raise Fault("there is no prompt, and chosen and rejected do not begin alike")
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
    asking = [] if prompt is None else messages_of(prompt, "prompt", "user")
    good = messages_of(chosen, "chosen", "assistant")
    poor = messages_of(rejected, "rejected", "assistant")
    if good == poor:
        raise Fault("chosen and rejected are the same")
    size = shared(good, poor)
    asking = asked(values, joined(asking, good[:size]))
    chosen, rejected = answer(good[size:], "chosen"), answer(poor[size:], "rejected")
    return [Example("preference", asking, chosen=chosen, rejected=rejected)]


def completion(values: Values, turns: Turns) -> list[Example]:
    """TRL's prompt-completion forms and mlx-lm's completions; the last message is trained."""
    label = values.get("label")
    if isinstance(label, bool) or label in ("True", "False", "true", "false"):
        raise Fault("prompt, completion and label are unpaired preferences, which nothing trains")
    said = messages_of(values["completion"], "completion", "assistant")
    prompt = joined(messages_of(values["prompt"], "prompt", "user"), said[:-1])
    return [Example("sft", asked(values, prompt), completion=answer(said[-1:], "completion"))]


def chat(values: Values, turns: Turns) -> list[Example]:
    """TRL's and mlx-lm's messages, ShareGPT's conversations: an example for each turn trained."""
    name = "messages" if values.get("messages") is not None else "conversations"
    talk = messages_of(values[name], name)
    if talk[-1]["role"] != "assistant":
        raise Fault("the last message is not the assistant's")
    roles = [message["role"] for message in talk]
    first = roles.index("user") if "user" in roles else len(roles)
    # A greeting before any user's message answers nothing: it is context, and not trained.
    ends = [i for i in range(first, len(roles)) if roles[i] == "assistant"]
    if not ends:
        raise Fault("no user's message stands before the assistant's")
    return [
        Example(
            "sft",
            asked(values, talk[:end]),
            completion=answer([talk[end]], f"{name}, message {end + 1},"),
            source={"message": end + 1},
        )
        for end in (ends if turns == "all" else ends[-1:])
    ]


def raw_text(values: Values, turns: Turns) -> list[Example]:
    """TRL's and mlx-lm's text: no prompt, everything is trained."""
    text = text_of(values["text"], "text")
    if not text.strip():
        raise Fault("text is empty")
    return [Example("sft", [], completion=text)]


def group(values: Values, turns: Turns) -> list[Example]:
    """Several answers to one prompt and what each was worth. An answer may be empty."""
    answers, rewards = values.get("completions"), values.get("rewards")
    if not isinstance(answers, list) or not isinstance(rewards, list):
        raise Fault("completions and rewards are not two lists")
    if len(answers) != len(rewards) or len(answers) < 2:
        raise Fault(f"{len(answers)} completions with {len(rewards)} rewards: two of each at least")
    said = [messages_of(a, f"completion {i}", "assistant") for i, a in enumerate(answers, 1)]
    if any([message["role"] for message in messages] != ["assistant"] for messages in said):
        raise Fault("each completion must be one message of the assistant")
    prompt = asked(values, messages_of(values["prompt"], "prompt", "user"))
    worth = [number(reward, f"reward {i}") for i, reward in enumerate(rewards, 1)]
    texts = [messages[0]["content"] for messages in said]
    return [Example("group", prompt, completions=texts, rewards=worth)]


class Form(NamedTuple):
    """Columns that a row must have, the kind of its examples, and what makes them."""

    columns: tuple[str, ...]
    kind: str
    make: Callable[[Values, Turns], list[Example]]


FORMS = (
    Form(("chosen", "rejected"), "preference", preference),
    Form(("prompt", "completions", "rewards"), "group", group),
    Form(("prompt", "completion"), "sft", completion),
    Form(("messages",), "sft", chat),
    Form(("conversations",), "sft", chat),
    Form(("text",), "sft", raw_text),
)


def form_of(values: Values, kind: str) -> Form:
    """The form of a row's columns, one of `kind` where there are several. Raises Fault."""
    given = {name for name, value in values.items() if value is not None}
    whole = [form for form in FORMS if given.issuperset(form.columns)]
    for form in whole:
        if form.kind == kind:
            return form
    if whole:
        names = dict.fromkeys((*["prompt"][: "prompt" in given], *whole[0].columns))
        raise Misfit(f"rows with {', '.join(names)} are {KINDS[whole[0].kind]}")
    for form in FORMS:
        if values.keys() >= {*form.columns}:
            raise Fault(f"{next(n for n in form.columns if n not in given)} has no value")
    wanted = " or ".join(", ".join(form.columns) for form in FORMS if form.kind == kind)
    raise Unknown(f"its columns are: {listed(values)}; it should have {wanted}")
