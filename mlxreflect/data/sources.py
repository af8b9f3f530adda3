"""Rows of training data: files, data folders and hub data sets, whose bad rows are named."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxreflect.core.errors import UserError
from mlxreflect.data.rows import TABLES, Row, brief, is_path, local_path, read_hub, read_parquet

TORN = "cut off in the middle, as by a crash"
MAX_CELL = 2**31 - 1  # characters of a CSV cell; Python's own limit is below a long text
HINT = "check the name, or connect to the internet once so that `datasets` can cache it"


@dataclass(frozen=True)
class BadRow:
    """A row that is not trained on: where it stands, as in "pairs.jsonl, line 7", and why."""

    where: str
    reason: str


def rows_of(source: str, config: str, split: str) -> Iterator[Row | BadRow]:
    """The rows of a file, of a folder's file for the split, or of a hub data set.

    Raises UserError where they cannot be read at all.
    """
    path = local_path(source)
    if not is_path(source) and path.suffix.lower() not in READERS:
        yield from read_hub(source, config, split, HINT)
        return
    try:
        if path.is_dir():
            path = file_of_split(path, split)
        yield from READERS.get(path.suffix.lower(), read_jsonl)(path)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or brief(error)}", "give a readable data file"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})", "save it as UTF-8") from None


def file_of_split(folder: Path, split: str) -> Path:
    """train.jsonl of a data folder as mlx-lm has it, or that name with another known ending."""
    for ending in READERS:
        if (path := folder / f"{split}{ending}").is_file():
            return path
    held = sorted(folder.iterdir())
    files = [path for path in held if path.suffix in READERS and path.name.isprintable()]
    such = f", such as {' or '.join(map(str, files[:3]))}" if files else ""
    raise UserError(
        f"{folder}: no {split}.jsonl in this folder; "
        f"it holds: {listed(path.name for path in held)}",
        f"give the path of a data file{such}, or a split that has one",
    )


def listed(names: Iterable[str]) -> str:
    """Names on one line for a person, whatever they hold, the first 20 of them."""
    shown = [name[:40] if name.isprintable() else ascii(name[:40]) for name in names]
    return ", ".join([*shown[:20], *["…"][: len(shown) > 20]]) or "none"


def read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    with path.open("rb") as lines:
        yield from json_lines(path, lines)


def json_lines(path: Path, lines: Iterable[bytes]) -> Iterator[Row | BadRow]:
    """One object a line; after a line that is none, reading goes on."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
            whole = line.endswith(b"\n")
            yield BadRow(where, f"not JSON ({brief(error)})" if whole else TORN)
        else:
            yield json_row(values, where)


def json_row(values: Any, where: str) -> Row | BadRow:
    return Row(values, where) if isinstance(values, dict) else BadRow(where, "no JSON object")


def read_json(path: Path) -> Iterator[Row | BadRow]:
    """A list of objects, an object that holds one such list, a single row, or lines."""
    data = path.read_bytes()
    try:
        tree = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
            raise UserError(
                f"{path}: not JSON ({brief(error)})", "write a list of objects, or use JSONL"
            ) from None
        yield from json_lines(path, data.splitlines(keepends=True))  # as Dataset.to_json writes it
        return
    items = tree if isinstance(tree, list) else held_rows(tree)
    yield from (json_row(item, f"{path}, item {i}") for i, item in enumerate(items, 1))


def held_rows(tree: Any) -> list[Any]:
    """The one list of rows that an object holds; else the object is a row itself."""
    lists = [v for v in tree.values() if isinstance(v, list)] if isinstance(tree, dict) else []
    rows = lists[0] if len(lists) == 1 else []
    # A list of messages is no list of rows.
    is_rows = bool(rows) and isinstance(rows[0], dict) and not rows[0].keys() & {"role", "from"}
    return rows if is_rows else [tree]


def read_table(path: Path) -> Iterator[Row | BadRow]:
    """CSV or TSV with a header; an empty cell has no value."""
    limit = csv.field_size_limit(MAX_CELL)
    try:  # all at once: the limit is one for the whole process
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(table_rows(path, lines))
    finally:
        csv.field_size_limit(limit)
    yield from rows


def table_rows(path: Path, lines: Iterable[str]) -> Iterator[Row | BadRow]:
    """Rows by their first line. After broken quotes no row's beginning could be trusted."""
    reader = csv.reader(lines, delimiter=TABLES[path.suffix.lower()], strict=True)
    try:
        header = next(reader, [])
        begin = reader.line_num + 1
        for cells in reader:
            where, begin = f"{path}, line {begin}", reader.line_num + 1
            if cells and len(cells) != len(header):
                yield BadRow(where, f"{len(cells)} cells under {len(header)} columns")
            elif cells:
                yield Row({k: v or None for k, v in zip(header, cells, strict=True)}, where)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: not CSV ({brief(error)})",
            "put cells that hold commas, quotes or line breaks in double quotes",
        ) from None


READERS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
}
