"""Chat templates and end tokens: what stands between messages and a model's tokens."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlxreflect.core.records import Messages


def encode_chat(tokenizer: Any, messages: Messages) -> list[int]:
    """Messages as prompt tokens; a system part is folded into the user's for models without one."""
    if not tokenizer.has_chat_template:
        text = "\n\n".join(m["content"] for m in messages) + "\n"
        ids: list[int] = tokenizer.encode(text)
        return ids
    options = {"add_generation_prompt": True, "tokenize": True}
    if messages[0]["role"] == "system" and not knows_system(tokenizer):
        messages = [
            {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"},
            *messages[2:],
        ]
    return list(tokenizer.apply_chat_template(messages, **options))


def knows_system(tokenizer: Any) -> bool:
    """Returns whether the chat template takes a system message (Gemma's, for one, raises)."""
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template(
            [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], tokenize=False
        )
    except TemplateError:
        return False
    return True


def find_end_of_turn(tokenizer: Any, eos: set[int]) -> int:
    """The token with which the chat template ends an assistant's turn, if it ends generation."""
    if tokenizer.has_chat_template:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        closed = tokenizer.apply_chat_template(turn, tokenize=True)
        opened = tokenizer.apply_chat_template(turn[:1], add_generation_prompt=True, tokenize=True)
        for token in closed[len(opened) :]:
            if token in eos:
                return int(token)
    return int(tokenizer.eos_token_id)


def end_tokens(tokenizer: Any, folder: Path | None) -> set[int]:
    """Every token that ends an answer, by the tokenizer and by both of the model's config files.

    mlx-lm takes generation_config.json's in place of config.json's, and models are published with
    an end token in one of the two only. folder: the model's; None where it is not at hand.
    """
    found = {i for i in tokenizer.eos_token_ids if type(i) is int}  # a file may say "x"
    for name in ("config.json", "generation_config.json"):
        if folder and (folder / name).is_file():
            found |= config_ends((folder / name).read_bytes())
    return found


def config_ends(config: bytes) -> set[int]:
    """The end tokens a config file names, also for the text part of a model of several parts."""
    try:
        tree = json.loads(config)
    except (ValueError, RecursionError):
        return set()
    tables = [tree, tree.get("text_config")] if isinstance(tree, dict) else []
    told = [table.get("eos_token_id") for table in tables if isinstance(table, dict)]
    ids: Iterable[Any] = [i for one in told for i in (one if isinstance(one, list) else [one])]
    return {i for i in ids if type(i) is int and i >= 0}
