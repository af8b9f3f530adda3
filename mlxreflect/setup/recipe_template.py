"""A recipe of one's own, made from the bundled one of a method: other values, the same comments."""

import tomllib
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any, get_args

import tomlkit
from tomlkit.items import Comment, Item, Key, Table, Whitespace

from mlxreflect.config.checks import MODELS
from mlxreflect.config.methods import method_of
from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.toml import bundled, flatten
from mlxreflect.core.errors import UserError

Body = list[tuple[Key | None, Item]]
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
    if method_of(alone).tiers(alone):
        return None
    return {f"{strategy}.{name}": keys[name] for name in keys}


# ---- TOML with its comments ----------------------------------------------------------------------


def edit(text: str, keys: Keys) -> str:
    """Returns TOML with other values; comments stay. New keys follow the last one of their table.

    What stands right above a table goes with it.
    """
    document = tomlkit.parse(text)
    above = cut_comments(document)
    for key, value in keys.items():
        *tables, leaf = key.split(".")
        node: Any = document
        for name in tables:
            if name not in node and value is not None:
                node[name] = tomlkit.table()
                above.append((node[name], "\n"))
            node = node.get(name, {})
        if value is not None:
            node[leaf] = value
        elif leaf in node:
            del node[leaf]
    for table, said in above:
        table.trivia.indent = said
    return tomlkit.dumps(document).rstrip() + "\n"


def cut_comments(document: tomlkit.TOMLDocument) -> list[tuple[Table, str]]:
    """Takes out what stands above each table: the parser leaves it at the end of the one before."""
    above: list[tuple[Table, str]] = []
    before: Body = document.body

    def walk(body: Body) -> None:
        nonlocal before
        for at, (key, item) in enumerate(body):
            if isinstance(item, Table) and key and not key.is_dotted():
                if not item.is_super_table():
                    end = at if before is body else len(before)
                    above.append((item, cut_last(before, end)))
                    before = item.value.body
                walk(item.value.body)

    walk(document.body)
    return above


def cut_last(body: Body, end: int) -> str:
    """Cuts the comments that end a table's body, and the blank line above them."""
    said = ""
    for at in reversed(range(end)):
        item = body[at][1]
        if not isinstance(item, (Comment, Whitespace)):
            break
        said = item.as_string() + said
        body[at] = (None, Whitespace(""))
        if isinstance(item, Whitespace):
            break
    return said
