"""Writes the table of every key into recipes/README.md, from the schema and its comments.

Usage: python tests/support/key_table.py
"""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from mlxreflect.config.schema import Job, Recipe
from mlxreflect.config.toml import table_of, toml_value

README = Path(__file__).parents[2] / "recipes" / "README.md"
PLACE = re.compile(r"(?<=<!-- keys -->\n).*?(?=<!-- end -->)", re.DOTALL)


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Returns the meaning of each field: the comment on its lines, or the lines above it."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        source = textwrap.dedent(inspect.getsource(base))
        said = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and not token.string.startswith("# fmt")
        }
        lines = source.splitlines()
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            above, line = [], node.lineno - 1
            while line in said and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, said[line])
                line -= 1
            inside = [said[n] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in said]
            meaning = " ".join([*above, *inside])
            found[node.target.id] = meaning.removesuffix("# fmt: skip").rstrip()
    return found


def kind(annotation: Any) -> str:
    """Returns a type as a person reads it: values of a choice, or number, text, list."""
    if get_origin(annotation) is Union:
        return " or ".join(kind(one) for one in get_args(annotation))
    text = str(annotation)
    if values := re.search(r"Literal\[(.*?)\]", text):
        number = "number or " if "float" in text else ""
        choice = values[1].replace("'", '"').split(",")
        return number + " ".join(f"`{value.strip()}`" for value in choice)
    names = {"bool": "true or false", "int": "whole number", "float": "number", "list": "list",
             "dict": "table"}  # fmt: skip
    return next((names[n] for n in ("list", "dict", "bool", "int", "float") if n in text), "text")


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yields (key, kind, default, meaning) of a table and of the tables in it."""
    meaning = comments(model)
    for name, field in model.model_fields.items():
        if inner := table_of(field):
            yield from rows(inner, f"{prefix}{name}.")
            continue
        usual = field.get_default(call_default_factory=True)
        yield f"{prefix}{name}", kind(field.annotation), toml_value(usual), meaning.get(name, "")


def table(found: list[tuple[str, str, str, str]]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, sort, usual, meaning in found:
        cells = (f"`{key}`", sort, f"`{usual}`", meaning.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def key_tables() -> str:
    """Returns the Markdown between the two marks."""
    groups: dict[str, list[tuple[str, str, str, str]]] = {}
    for row in rows(Recipe):
        head = row[0].partition(".")[0]
        groups.setdefault(head if "." in row[0] else "", []).append(row)
    known = {row[0] for row in rows(Recipe)}
    only = [row for row in rows(Job) if row[0] not in known and not row[0].startswith("grpo.")]
    parts = [f"### `[{name}]`\n\n{table(found)}" if name else table(found)
             for name, found in groups.items()]  # fmt: skip
    parts.append(f"### Only of `mlxreflect train`\n\n{table(only)}")
    return "\n" + "\n\n".join(parts) + "\n\n"


if __name__ == "__main__":
    README.write_text(PLACE.sub(lambda _: key_tables(), README.read_text("utf-8")), "utf-8")
