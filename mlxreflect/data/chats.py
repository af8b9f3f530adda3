"""Examples as the rows of TRL, of ShareGPT (as LLaMA-Factory reads it) and of mlx-lm's chats.

A text to imitate, a preference pair and a group of answers each have a row in every form; what the
form has no field for is in our own column (see train/kept.py). A group has TRL's row everywhere.
"""

from typing import Any

from mlxreflect.core.records import Example, Messages
from mlxreflect.data.kept import keep
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.examples import whole

Row = dict[str, Any]

NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
FILES = {"sft": "sft.jsonl", "preference": "preference.jsonl", "group": "group.jsonl"}
# What LLaMA-Factory wants to be told of the two files.
SHAREGPT: Row = {
    "sft": {"file_name": FILES["sft"], "formatting": "sharegpt",
            "columns": {"messages": "conversations"}},
    "preference": {"file_name": FILES["preference"], "formatting": "sharegpt", "ranking": True,
                   "columns": {"messages": "conversations", "chosen": "chosen",
                               "rejected": "rejected"}},
}  # fmt: skip


def trl_row(example: Example) -> Row:
    """TRL's conversational forms: preference, prompt-completion; raw text is its `text`."""
    if example.kind == "group":
        return group_row(example)
    if example.kind == "preference":
        row = pairs.trl_preference(example)
    elif example.prompt:
        row = pairs.trl_sft(example)
    else:
        return keep(example, {"text": whole(example.completion or "")})
    return keep(example, {**row, "prompt": clean(example.prompt)})


def sharegpt_row(example: Example) -> Row:
    """conversations of {from, value}; a pair's answers are one such message each."""
    if example.kind == "group":
        return group_row(example)
    said = [{"from": NAMES.get(m["role"], m["role"]), "value": whole(m["content"])}
            for m in example.prompt]  # fmt: skip
    if example.kind == "sft":
        return keep(example, {"conversations": [*said, gpt(example.completion)]})
    answers = {"chosen": gpt(example.chosen), "rejected": gpt(example.rejected)}
    return keep(example, {"conversations": said, **answers})


def mlx_row(example: Example) -> Row:
    """mlx-lm's messages, all it trains on: of a pair, the chosen answer."""
    if example.kind == "group":
        return group_row(example)
    text = example.chosen if example.kind == "preference" else example.completion
    return keep(example, {"messages": [*clean(example.prompt), *pairs.answer(text)]})


def group_row(example: Example) -> Row:
    row = {
        "prompt": clean(example.prompt),
        "completions": [pairs.answer(text) for text in example.completions or []],
        "rewards": example.rewards or [],
    }
    return keep(example, row)


def clean(messages: Messages) -> Messages:
    return [{"role": m["role"], "content": whole(m["content"])} for m in messages]


def gpt(text: str | None) -> dict[str, str]:
    return {"from": "gpt", "value": whole(text or "")}
