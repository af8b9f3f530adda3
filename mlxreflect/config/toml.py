"""TOML in: find a file, read it, put `a.b=value` into it, check it against a schema.

Every fault is a UserError that names file, line, key and value.
"""

import difflib
import errno
import re
import shlex
import tomllib
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomlkit
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, InlineTable, Table

from mlxreflect.core.errors import UserError

PACKAGE = Path(__file__).parent.parent
DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # no TOML, but what `init` looks at
SHARED = "models"  # recipes/models.toml: profiles that every recipe has
MARK = "\u2063"  # stands in no TOML file of a person
ELSEWHERE = {"epsilon": "clip_ratio"}  # names that TRL has for keys
# Values of keys that are empty by default, to be shown as examples.
EXAMPLES: dict[str, Any] = {
    "adapter": "runs/latest/adapter", "advanced": {"model": "qwen2.5:14b"}, "against": ["gsm8k"],
    "base_url": "http://127.0.0.1:1234/v1", "cache": "off", "columns": {"prompt": "question"},
    "config": "main", "corpus": "texts", "file": "wording.toml", "grader": "mine.py:grade",
    "human": "worked.jsonl", "instructions": ["trace-arithmetic-steps"],
    "judge": {"model": "qwen2.5:14b"}, "keep_alive": "1h",
    "key_env": "OPENAI_API_KEY", "keys": ["self_attn.q_proj"],
    "mirror": "s3://bucket/runs",
    "model": "qwen2.5:7b", "name": "mine", "profile": "default", "reference_cache": "off",
    "region": "us-east-1", "reward": "mine.py:reward", "rules": "strict", "source": "mine.jsonl",
    "spec": ["gsm8k", "svamp"], "stop": ["Question:"], "stored": "reflections.jsonl",
    "template": {"enable_thinking": False}, "templates": {"critique": "What is wrong?"},
    "to": "me/mine",
    "prompts": ["Who are you?"], "system": "Be brief.", "topics": ["bees"],
}  # fmt: skip
T = TypeVar("T", bound=BaseModel)


def local_path(source: str) -> Path:
    """Returns a source as a path, ~ replaced by the home folder where there is one.

    Raises UserError for a name that is longer than the system takes.
    """
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        path = Path(source)
    try:
        path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            fault = f"{source[:60]}…: no file has a name of {len(source)} characters"
            raise UserError(fault, "give a path or a name") from None
    return path


def bundled(folder: Literal["recipes", "evals"]) -> dict[str, Path]:
    """Name → path of the recipes, or eval specs, that come with the package."""
    return {p.stem: p for p in sorted(shipped(folder).glob("*.toml")) if p.stem != SHARED}


def shipped(folder: Literal["recipes", "evals"]) -> Path:
    """Returns the folder in the wheel, or in the checkout."""
    inside, beside = PACKAGE / folder, PACKAGE.parent / folder
    return inside if inside.is_dir() else beside


def find_toml(name: str, folder: Literal["recipes", "evals"]) -> Path:
    """A path as given, else a bundled name. Raises UserError with the nearest names."""
    path = local_path(name)
    if path.is_file():
        if path.suffix.lower() in DATA:
            make = f"make a recipe for it: mlxreflect init --task {shlex.quote(name)}"
            if folder == "evals":
                make = (
                    "problems of your own are the source of a task: mlxreflect eval jsonl --source "
                    f'{shlex.quote(name)}, or eval.spec = "jsonl" and eval.source in a recipe'
                )
            raise UserError(f"{name} is data, no {folder[:-1]}", make)
        return path
    known = bundled(folder)
    stem = path.stem if path.suffix == ".toml" else name
    if stem in known and (name == stem or path.parent.name in ("", folder)):
        return known[stem]
    kind = folder[:-1]
    fault = f"{name} is a folder, no {kind} file" if path.is_dir() else f"no {kind} {name!r}"
    here = [str(file) for file in path.parent.glob("*.toml")] if not path.is_dir() else []
    near = difflib.get_close_matches(name, [*known, *here], 1, cutoff=0.7)
    all_ = f"give a file, or one of: {', '.join(known)}"
    raise UserError(fault, f"did you mean {near[0]}?" if near else all_)


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give a readable TOML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})", "save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: not TOML: {error}", "correct that line") from None


def parsed(text: str) -> dict[str, Any]:
    """Returns what TOML says. Raises ValueError for what is none, too deep or too long a number."""
    try:
        tree = tomllib.loads(text)
        str(tree)  # no error may fail on a number of 0xfff…
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        raise ValueError("a number has thousands of digits") from None
    except RecursionError:
        raise ValueError("too many brackets stand inside of each other") from None
    return tree


def merge(tree: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value


def apply_settings(tree: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Put `a.b=value` into the tree; values are TOML, and bare words are strings."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting}: no key=value", "write --set train.lr=2e-4")
        try:
            value = parsed(f"value = {text}")["value"]
        except ValueError as error:
            if text.lstrip()[:1] in ("[", "{", '"', "'"):  # no bare words
                fault = f"--set {setting}: not TOML: {error}"
                raise UserError(
                    fault, "close what is opened, and quote all for your shell"
                ) from None
            value = text
        *tables, leaf = key.strip().split(".")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {setting}: {table} is no table", "check the key's name")
        node[leaf] = value
    return tree


def validate(
    model: type[T], tree: dict[str, Any], path: Path, settings: Sequence[str] = (), prefix: str = ""
) -> T:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise explain(error, model, path, settings, prefix) from None


def explain(
    error: ValidationError, model: type[BaseModel], path: Path, settings: Sequence[str], prefix: str
) -> UserError:
    """The first fault of a validation, with its line or --set, and the nearest known key."""
    fault = error.errors()[0]
    # Without branches, which are no keys: of "a number, or auto", of "a list, or a number".
    branch = ("constrained-", "function-")
    parts = [str(p) for p in fault["loc"] if not str(p).startswith(branch)]
    key = ".".join(filter(None, [prefix, *parts]))
    given = [s for s in settings if overlap(s.partition("=")[0].strip(), key)]
    line = line_of(path, key)
    where = f"{path}, line {line}" if line else str(path)
    if given:
        where = f"--set {given[-1]}"
    if fault["type"] == "extra_forbidden":
        table: Any = model
        for part in parts[:-1]:
            table = table.model_fields[part].annotation
        leaf = ELSEWHERE.get(parts[-1], parts[-1])
        if homes := [name for name in all_keys(model) if name.rpartition(".")[2] == leaf]:
            known = " or ".join(f"{prefix}.{name}".lstrip(".") for name in homes)
            return UserError(f"{where}: unknown key {key}", f"did you mean {known}?")
        names = list(table.model_fields)
        near = difflib.get_close_matches(parts[-1], names, 1, cutoff=0.5)
        full = ".".join(filter(None, [prefix, *parts[:-1], *near]))
        hint = f"did you mean {full}?" if near else f"known keys here: {', '.join(names)}"
        return UserError(f"{where}: unknown key {key}", hint)
    if fault["type"] == "missing":
        return UserError(f"{where}: no {key}", f"give {key}")
    if fault["type"] == "model_type":  # pydantic names a class of ours
        return UserError(f"{where}: {key} = {repr(fault['input'])[:80]}: it is a table",
                         f"set one of its keys: {key}.KEY")  # fmt: skip
    reason = fault["msg"].removeprefix("Value error, ")
    reason = reason[0].lower() + reason[1:]
    hint = value_hint(key, parts, model, fault)
    return UserError(f"{where}: {key} = {repr(fault['input'])[:80]}: {reason}", hint)


def value_hint(key: str, parts: Sequence[str], model: type[BaseModel], fault: Any) -> str:
    """The nearest of the values there are, or the usual value as an example."""
    if fault["type"] == "literal_error":
        values = re.findall("'([^']*)'", fault["ctx"]["expected"])
        near = difflib.get_close_matches(str(fault["input"]), values, 1, cutoff=0.5)
        allowed = ", ".join(map(toml_value, values)) or fault["ctx"]["expected"]
        return (
            f'did you mean {key} = "{near[0]}"?' if near else f"correct {key}: it takes {allowed}"
        )
    whole = [part for part in parts if not part.isdecimal()]  # of a list's items the list
    usual = all_keys(model).get(".".join(whole))
    if usual in ("", [], [""], {}):
        usual = EXAMPLES.get(whole[-1])
    if usual is None:
        return f"correct {key}"
    named = ".".join(part for part in key.split(".") if not part.isdecimal())
    return f"correct {key}, for example {named}={toml_value(usual)}"


def table_of(info: FieldInfo) -> type[BaseModel] | None:
    """Returns the model of a key that is itself a table."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def all_keys(model: type[BaseModel]) -> dict[str, Any]:
    """Each key of a table and of the tables in it, dotted, with its usual value; None: a table."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if inner := table_of(field):
            keys |= {name: None} | {f"{name}.{key}": v for key, v in all_keys(inner).items()}
        else:
            keys[name] = (
                None if field.is_required() else field.get_default(call_default_factory=True)
            )
    return keys


def overlap(one: str, other: str) -> bool:
    """Returns true where one of two dotted keys is the other, or a table that holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def line_of(path: Path, key: str) -> int | None:
    """Returns the line where a dotted key, or the innermost table or list around it, stands.

    It is the first line that differs once another value, or a table's comment, is written there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document: Any = tomlkit.parse(text)
        leaf: Any = ""
        holder: Any = None
        node: Any = document
        for name in key.split("."):
            if not isinstance(node, dict) or name not in node:
                break
            holder, node, leaf = node, node[name], name
        if holder is None:
            return None
        while isinstance(node, (AoT, dict)) and node and not stands_alone(node):
            holder, leaf = node, 0 if isinstance(node, AoT) else next(iter(node))
            node = holder[leaf]
        if isinstance(node, Table):
            node.comment(MARK)
        else:
            holder[leaf] = MARK
        marked = document.as_string()
    except (OSError, ValueError, TOMLKitError):
        return None
    pairs = enumerate(zip_longest(text.splitlines(), marked.splitlines()), 1)
    return next((number for number, (old, new) in pairs if old != new), None)


def stands_alone(node: Any) -> bool:
    """Tells a table with a line of its own from one that only other tables' names mention."""
    return isinstance(node, InlineTable) or (isinstance(node, Table) and not node.is_super_table())


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}; an empty table is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def toml_value(value: Any) -> str:
    """Returns a value as TOML, a table in braces."""
    item: Any = tomlkit.inline_table() if isinstance(value, dict) else tomlkit.item(value)
    if isinstance(value, dict):
        item.update(value)
    return str(item.as_string())


def dump_toml(tree: dict[str, Any]) -> str:
    """Returns a tree as TOML, one `table.key = value` a line."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in flatten(tree).items())
