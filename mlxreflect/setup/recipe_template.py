"""A recipe of one's own, made from the bundled one of a method: other values, the same comments."""

import re
import tomllib
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any, get_args

from mlxreflect.config.checks import MODELS
from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.toml import bundled, flatten, toml_value
from mlxreflect.core.errors import UserError
from mlxreflect.methods.asked import asked_tiers

Keys = dict[str, Any]  # dotted key → value; None takes the key out, and a table's keys with it

# Of [task] and [critic], what belongs to the task or the model that the bundled recipe has.
COLUMNS = ("question", "answer", "answer_type")
OF_TASK = ("source", "config", "split", *COLUMNS, "numbers", "words")
OF_CRITIC = ("provider", "model", "base_url", "key_env", "region", "profile", "price_in",
             "price_out")  # fmt: skip
OF_SERVER = ("num_ctx", "concurrency")  # of [critic], what the solver has no use for
# Of a quick profile, what a person chooses.
CHOSEN = ("policy.model", "task.name", "task.numbers", "critic.provider", "critic.model",
          "eval.spec")  # fmt: skip
# Addresses that take OpenAI's requests ("": its own), by the variable that holds a key for them.
HOSTS = {"OPENAI_API_KEY": "", "OPENROUTER_API_KEY": "https://openrouter.ai/api/v1"}
HEADER = re.compile(r"\s*\[+([^\[\]]+)\]")
KEY = re.compile(r"\s*([\w.-]+)\s*=")


@dataclass(frozen=True)
class Choices:
    """What a person chose. critic: "solver", "self", or "PROVIDER:MODEL".

    task: a bundled one, or "jsonl" with the data in `source` and its columns; "countdown" has them
    too.
    """

    strategy: str
    model: str
    task: str
    critic: str
    source: str = ""
    question: str = ""
    answer: str = ""
    answer_type: str = ""
    base_url: str = ""


def draft(choices: Choices) -> str:
    """The text of the recipe. Raises UserError where the method has no such critic."""
    text = bundled("recipes")[choices.strategy].read_text(encoding="utf-8")
    tree = tomllib.loads(text)
    keys = {
        **quick_keys(choices, tree), "policy.model": choices.model, **task_keys(choices, tree),
        **critic_keys(choices),
    }  # fmt: skip
    return heading(choices, tree) + edit(without_heading(text), keys)


def heading(choices: Choices, tree: dict[str, Any]) -> str:
    """Where the recipe is from. What the bundled one says of itself holds for its choices alone."""
    said = f"# Written by `mlxreflect init` from the bundled recipe {choices.strategy}"
    if choices.model == "tiny":
        return f"{said}, with the values of its\n# quick profile. The comments are that one's.\n"
    return f"{said}. The comments are that\n# one's; constants are for {tree['policy']['model']}.\n"


def without_heading(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(dropwhile(lambda line: line.startswith("#"), lines))


def quick_keys(choices: Choices, tree: dict[str, Any]) -> Keys:
    """What the embedded policy wants: the quick profile's values, and then no profile is left."""
    if choices.model != "tiny":
        return {}
    usual = flatten(tree)
    quick = {
        key: value
        for key, value in flatten(tree["profiles"]["quick"]).items()
        if key not in CHOSEN and (choices.critic == "self" or usual.get(key) != "critic")
    }
    return {**quick, **{f"profiles.{name}": None for name in tree["profiles"]}}


def task_keys(choices: Choices, tree: dict[str, Any]) -> Keys:
    """[task] and the evaluation: the task's own spec, or what is held out of the person's data."""
    if choices.task == tree.get("task", {}).get("name") and not choices.source:
        return {}
    keys: Keys = {f"task.{name}": None for name in OF_TASK}
    keys |= {"task.name": choices.task, "eval.source": None}
    spec = choices.task if choices.task in bundled("evals") and choices.task != "jsonl" else ""
    keys["eval.spec"] = spec  # asks the held-out part of the person's own data where it can
    if not choices.source:
        return keys
    for name, part in tree.get("profiles", {}).items():
        if "name" in part.get("task", {}):  # on another task, which would read these data
            keys[f"profiles.{name}"] = None
    given = {name: getattr(choices, name) for name in ("source", *COLUMNS)}
    return keys | {f"task.{k}": value for k, value in given.items() if value}


def critic_keys(choices: Choices) -> Keys:
    keys: Keys
    provider, _, model = choices.critic.partition(":")
    if provider == "self":
        alone = self_keys(choices.strategy)
        if alone is None:
            raise UserError(
                f"--critic self: {choices.strategy} cannot do without a critic",
                "give one: --critic ollama:NAME",
            )
        return alone
    if provider not in ("solver", *MODELS):
        raise UserError(
            f"--critic {choices.critic}: no such critic",
            f"give solver, self, or one of {', '.join(MODELS)} with a model: ollama:qwen2.5:7b",
        )
    keys = {f"critic{t}.{k}": None for t in ("", ".advanced", ".judge") for k in OF_CRITIC}
    keys["critic.provider"] = provider
    if provider == "solver":
        return keys | {f"critic.{name}": None for name in OF_SERVER}
    keys["critic.model"] = model or MODELS[provider]
    if choices.base_url:
        keys["critic.base_url"] = choices.base_url
    if provider == "openai":
        hosts = (name for name, address in HOSTS.items() if address == choices.base_url)
        keys["critic.key_env"] = next(hosts, None)
    return keys


def self_keys(strategy: str) -> Keys | None:
    """What makes a method do without a critic: {} where it asks none, None where it cannot."""
    usual = load_recipe(strategy)
    table = getattr(usual, strategy)
    keys = {}
    for name, field in type(table).model_fields.items():
        others = [value for value in get_args(field.annotation) if value != "critic"]
        if getattr(table, name) == "critic" and others:
            keys[name] = others[0]
    alone = usual.model_copy(update={strategy: table.model_copy(update=keys)})
    return None if asked_tiers(alone) else {f"{strategy}.{name}": keys[name] for name in keys}


# ---- TOML with its comments ----------------------------------------------------------------------


def edit(text: str, keys: Keys) -> str:
    """TOML with other values; comments stay. New keys follow the last one of their table."""
    lines = text.splitlines()
    left = {key: value for key, value in keys.items() if value is not None}
    gone = tuple(f"{key}." for key, value in keys.items() if value is None)
    out: list[str] = []
    ends = {"": 0}  # table → where its last key ends in `out`
    table, at, size = "", 0, 1
    while at < len(lines):
        line, size = lines[at], 1
        header, found = HEADER.match(line), KEY.match(line)
        if header:
            table = header[1].strip()
        if found:
            size = value_lines(lines[at:])
            key = f"{table}.{found[1]}".lstrip(".")
            if key in left:
                comment = comment_of(line) if size == 1 else ""
                out.append(f"{found[1]} = {toml_value(left.pop(key))} {comment}".rstrip())
            elif not f"{key}.".startswith(gone):
                out += lines[at : at + size]
        elif not (header and f"{table}.".startswith(gone)):
            out.append(line)
        else:  # with what was said above it
            while out and out[-1].startswith("#"):
                out.pop()
        if header or found:
            ends[table] = len(out)
        at += size
    return "\n".join(inserted(out, ends, left)).rstrip() + "\n"


def inserted(lines: list[str], ends: dict[str, int], keys: Keys) -> list[str]:
    """The lines with further keys in their tables, made where they are not there."""
    tables: dict[str, list[str]] = {}
    for key, value in keys.items():
        table, _, leaf = key.rpartition(".")
        tables.setdefault(table, []).append(f"{leaf} = {toml_value(value)}")
    lines = list(lines)
    for table in sorted(tables.keys() & ends.keys(), key=lambda name: -ends[name]):
        lines[ends[table] : ends[table]] = tables[table]
    for table in tables.keys() - ends.keys():
        lines += ["", f"[{table}]", *tables[table]]
    return lines


def value_lines(lines: list[str]) -> int:
    """How many lines a key and its value take."""
    return next((n for n in range(1, len(lines)) if is_toml("\n".join(lines[:n]))), len(lines))


def comment_of(line: str) -> str:
    """What follows a value on its line."""
    starts = (i for i, character in enumerate(line) if character == "#" and is_toml(line[:i]))
    return line[start:] if (start := next(starts, 0)) else ""


def is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True
