"""Decides what of a run may leave the machine: no path, no address, no secret, no user's name.

`publish` reads nothing but a copy of the run that was cleaned here, and weights. Texts are cleaned
before anybody shortens them: half a path would not be known again.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import get_token

from mlxreflect.config.recipe import RESUMABLE, resolved
from mlxreflect.config.schema import Recipe
from mlxreflect.config.toml import dump_toml, flatten
from mlxreflect.core.journal import dump_line, read_json, read_rows
from mlxreflect.runs.track import PRIVATE

# What cards, data and the page are made of, besides the recipe; the last are of the page alone.
DATA = ("examples.jsonl",)
FILES = (*DATA, "summary.json", "comparison.json", "comparisons.json", "retries.json",
         "metrics.jsonl", "episodes.jsonl", "graph.jsonl", "probes.jsonl", "report/table.md",
         "eval/**/*.json", "eval/**/*.jsonl")  # fmt: skip
GONE = "…"
# Names of environment variables whose values are secrets, unless they are short.
SECRET = re.compile(r"((^|_)(API)?KEY|TOKEN)(_|$)|SECRET|PASSW|PASSPHRASE|CREDENTIAL", re.I)
LEAST = 8  # characters of a secret
HOMES = re.compile(r"/(?:Users|home)/[^/\s\"'`<>|:,;)\]}]+")
USERINFO = re.compile(r"(?<=://)[^/\s\"'<>@]+@")


def is_private(key: str) -> bool:
    """Tells keys of a recipe that are nobody else's business, or that change no result."""
    return key in RESUMABLE or key.rpartition(".")[2] in PRIVATE


def write_copy(run: Path, copy: Path, recipe: Recipe, names: Sequence[str]) -> "Outgoing":
    """Writes what may leave of a run as a folder that looks like one; returns what cleaned it.

    names: of its files, or patterns of them. Raises UserError where they are damaged.
    """
    keys, made_by = flatten(resolved(recipe)), read_json(run / "run.json").get("version")
    outgoing = Outgoing(run, keys)
    public = {key: value for key, value in keys.items() if not is_private(key)}
    copy.mkdir()
    (copy / "recipe.toml").write_text(dump_toml(outgoing.tree(public)), encoding="utf-8")
    (copy / "run.json").write_text(json.dumps({"version": made_by}), encoding="utf-8")
    for file in sorted({file for name in names for file in run.glob(name)}):
        target = copy / file.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8") as out:
            if file.suffix == ".jsonl":
                out.writelines(dump_line(outgoing.tree(row)) for row in read_rows(file))
            elif file.suffix == ".json":
                # Without the digests of rows, which are other ones now.
                row = {key: value for key, value in read_json(file).items() if key != "sha256"}
                out.write(json.dumps(outgoing.tree(row)))
            else:
                out.write(outgoing.text(file.read_text(encoding="utf-8")))
    return outgoing


class Outgoing:
    """Cleans texts of a run. keys: of its recipe, dotted."""

    def __init__(self, run: Path, keys: Mapping[str, Any]) -> None:
        home, here = Path.home(), Path.cwd()
        words = {str(run.absolute()): run.resolve().name, str(run.resolve()): run.resolve().name,
                 str(here): ".", str(home): "~", str(home.resolve()): "~"}  # fmt: skip
        # Of a path in the recipe its last part is enough to tell what it was.
        words |= {text: Path(text).name for value in keys.values() for text in strings(value)
                  if text.startswith(("/", "~/"))}  # fmt: skip
        urls, names = ([value for key, value in keys.items() if key.endswith(end)]
                       for end in ("base_url", "key_env"))  # fmt: skip
        secrets = [get_token(), *map(os.environ.get, names)]
        secrets += [value for name, value in os.environ.items() if SECRET.search(name)]
        hidden = [*names, *(one for one in secrets if one and len(one) >= LEAST)]
        for url in filter(None, [os.environ.get("OLLAMA_HOST"), *urls]):
            hidden += [url, urlsplit(url).netloc.rpartition("@")[2]]
        words |= dict.fromkeys(filter(None, hidden), GONE)
        self.words = {text: word for text, word in words.items() if text != "/"}
        longest = sorted(self.words, key=len, reverse=True)
        # A path ends where its name does: /home/ann is no part of /home/anna.
        found = (re.escape(text) + r"(?![\w-])" * text.startswith("/") for text in longest)
        self.known = re.compile("|".join(found))

    def text(self, text: str) -> str:
        known = self.known.sub(lambda found: self.words[found[0]], text)
        return HOMES.sub("~", USERINFO.sub("", known))

    def tree(self, value: Any) -> Any:
        """Returns plain JSON with every text in it cleaned."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.tree(key): self.tree(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(one) for one in value]
        return value


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from filter(lambda one: isinstance(one, str), value)
