"""Writes the page: what was gathered, our own script and style, in one file that asks for nothing.

Everything gathered is data: it goes into the page as JSON, and texts as blocks of packed JSON,
which the script opens one at a time. A policy in the page lets no script run but ours, by its hash.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import write_atomic
from mlxreflect.core.ui import Ui, safe_text
from mlxreflect.view.gather import Gathered, Tree, gather

HERE = Path(__file__).parent
BLOCK = 1 << 19  # characters of JSON in a block of stories
ROOM = 3 << 20  # bytes of all blocks, for up to a thousand stories
LIMITS = (200_000, 20_000, 5_000, 1_500, 500)  # characters of a text, if there is not enough room
PROMPTS = 2_000  # characters of a prompt, once texts are shortened
# What would end the script element it stands in, or a line of JavaScript.
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_page(folders: Sequence[Path], out: Path) -> int:
    """Writes the page of runs, trainings or evaluations into a file; returns its bytes."""
    text = render(gather(folders))
    write_atomic(out, text)
    return len(text.encode())


def keep_page(folder: Path, ui: Ui) -> None:
    """Writes report/page.html of a run or a training; what fails is said and stops nothing."""
    out = folder / "report" / "page.html"
    try:
        out.parent.mkdir(exist_ok=True)
        write_page([folder], out)
    except (UserError, OSError, ValueError, MemoryError) as error:
        ui.line(f"warning: no page of this run: {error}")


def render(gathered: Gathered) -> str:
    """Returns the HTML of a page that holds all of its data.

    Of a run that is working it says when that was: the file does not follow it.
    """
    starts, blocks = pack(gathered.stories)
    written = {"as_of": f"{datetime.now():%Y-%m-%d %H:%M}"}
    runs = [{**run, **written} if run["state"] == "working" else run
            for run in gathered.tree["runs"]]  # fmt: skip
    return html({**gathered.tree, "runs": runs, "blocks": starts}, blocks)


def html(tree: Tree | None, blocks: Sequence[str] = ()) -> str:
    """tree: what is shown at once; None: the page asks its server for it."""
    script, style = asset("page.js"), asset("page.css")
    connect = "'none'" if tree else "'self'"
    policy = (
        f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; "
        f"img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    runs = (tree or {}).get("runs", [])
    environment = Environment(autoescape=True, loader=FileSystemLoader(HERE))
    text: str = environment.get_template("page.html.j2").render(
        policy=policy, script=Markup(script), style=Markup(style), version=version("mlxreflect"),
        title=safe_text(", ".join(run["name"] for run in runs)), tree=Markup(embed(tree)),
        blocks=blocks,
    )  # fmt: skip
    return text


@cache
def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """The source expression of a Content-Security-Policy that allows exactly this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def embed(value: Any) -> str:
    """Returns JSON, in ASCII, that cannot end the script element it stands in."""
    return compact(value).translate(ESCAPES)


def compact(value: Any) -> str:
    """Returns JSON in few characters; infinity and nan, which no browser parses, are null."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        clean = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(clean, separators=(",", ":"))


# ---- stories -------------------------------------------------------------------------------------


def pack(stories: Sequence[Tree]) -> tuple[list[int], list[str]]:
    """Returns the number of each block's first story, and the blocks: base64 of gzip of JSON.

    Where they would not fit into ROOM (more for more than a thousand stories), long texts lose
    their middle: first those of more than 200,000 characters, in the end those of more than 500.
    """
    room = ROOM * max(1.0, len(stories) / 1000)
    for limit in LIMITS:
        starts, blocks, size = list[int](), list[str](), 0
        for first, block in in_blocks(stories, limit):
            packed = gzip.compress(block.encode(), 6, mtime=0)
            starts.append(first)
            blocks.append(base64.b64encode(packed).decode())
            size += len(blocks[-1])
            if size > room and limit != LIMITS[-1]:
                break
        else:
            break
    return starts, blocks


def in_blocks(stories: Sequence[Tree], limit: int) -> Iterator[tuple[int, str]]:
    """Yields (number of the first story, JSON of a list of stories)."""
    held, first, size = list[str](), 0, 0
    for number, story in enumerate(stories):
        text = compact(shorten_texts(story, limit))
        if held and size + len(text) > BLOCK:
            yield first, f"[{','.join(held)}]"
            held, first, size = [], number, 0
        held.append(text)
        size += len(text)
    if held:
        yield first, f"[{','.join(held)}]"


def shorten_texts(value: Any, limit: int, key: str = "") -> Any:
    """Returns a story whose texts have at most about `limit` characters, their middle left out."""
    if isinstance(value, dict):
        return {name: shorten_texts(one, limit, name) for name, one in value.items()}
    if isinstance(value, list):
        return [shorten_texts(one, limit, key) for one in value]
    most = min(limit, PROMPTS) if key == "content" and limit != LIMITS[0] else limit
    if not isinstance(value, str) or len(value) <= most:
        return value
    half = most // 2
    left_out = f"\n[… {len(value) - 2 * half:,} characters are left out here …]\n"
    return value[:half] + left_out + value[-half:]
