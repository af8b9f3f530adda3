"""Values of foreign rows: texts, messages, prompts, numbers; what is none of them is a Fault."""

import math
import re
from typing import Any

from mlxreflect.core.records import Messages

Values = dict[str, Any]

ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant",
}  # fmt: skip
WRITTEN_OUT = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")
SURROGATE = re.compile("[\ud800-\udfff]")


class Fault(ValueError):
    """Why a row is bad."""


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
