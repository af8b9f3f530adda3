"""Rows of anyone's data: files, folders and hub data sets; and the parts they are split into."""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from itertools import chain, pairwise
from pathlib import Path
from shlex import quote
from typing import IO, Any

from mlxreflect.config.toml import local_path as local_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import in_line
from mlxreflect.core.records import SURROGATE
from mlxreflect.core.ui import composed

TABLES = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".jsonl", ".json", *TABLES, ".parquet")  # of files that hold rows
GZIP = b"\x1f\x8b"
MOST_UNPACKED = 2**30  # bytes; a small file may unpack to any size
TORN = "cut off in the middle, as by a crash"
MAX_CELL = 2**31 - 1  # characters of a CSV cell; Python's own limit is below a long text
HINT = "check the name, or connect to the internet once so that `datasets` can cache it"
QUOTES = "put cells that hold commas, quotes or line breaks in double quotes"


@dataclass(frozen=True)
class Row:
    """One row and where it stands, as in "problems.jsonl, line 3"."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands, as in "pairs.jsonl, line 7", and why."""

    where: str
    reason: str
    hint: str = field(default="correct or delete that row", compare=False)


Rows = Iterator[Row | BadRow]


# ---- sources -------------------------------------------------------------------------------------


def is_path(source: str) -> bool:
    """Tells a file or folder from a hub data set (owner/name)."""
    path = local_path(source)
    hub_like = source.count("/") <= 1 and not source.startswith((".", "/", "~"))
    return path.exists() or path.suffix.lower() in (".txt", ".gz", *ENDINGS) or not hub_like


def rows_of(
    source: str,
    config: str = "",
    split: str = "train",
    hint: str = HINT,
    revision: str = "",
    empty: str | None = None,
) -> Rows:
    """Yields the rows of a file, of a folder's file for the split, or of a hub data set.

    A bad row is a BadRow; after it, reading goes on.
    config, revision, hint: of a hub data set, and what to do where it cannot be had.
    empty: the value of an empty cell of a table. Raises UserError for what cannot be read at all.
    """
    if not is_path(source):
        yield from hub_rows(source, config, split, hint, revision)
        return
    path = local_path(source)
    yield from file_rows(file_of_split(path, split) if path.is_dir() else path, empty)


def good_rows(rows: Iterable[Row | BadRow]) -> Iterator[Row]:
    """Yields the rows; raises UserError for the first bad one."""
    for row in rows:
        if isinstance(row, BadRow):
            raise UserError(f"{row.where}: {row.reason}", row.hint)
        yield row


def read_file(path: Path) -> Iterator[Row]:
    """Yields the rows of a file. Raises UserError naming the first bad one."""
    return good_rows(file_rows(path, empty=""))


def file_of_split(folder: Path, split: str) -> Path:
    """Returns train.jsonl of a folder, or that name with another known ending."""
    if found := find_split(folder, split):
        return found
    with explained(folder):
        held = sorted(folder.iterdir())
    files = [path for path in held if path.suffix in ENDINGS and path.name.isprintable()]
    such = f", such as {' or '.join(map(str, files[:3]))}" if files else ""
    raise UserError(
        f"{folder}: no {split}.jsonl in this folder; "
        f"it holds: {listed(path.name for path in held)}",
        f"give the path of a data file{such}, or a split that has one",
    )


def find_split(folder: Path, split: str) -> Path | None:
    paths = (folder / f"{split}{ending}{gz}" for ending in ENDINGS for gz in ("", ".gz"))
    return next(filter(Path.is_file, paths), None)


def valid_beside(source: str, split: str) -> Path | None:
    """The file of rows to hold out, valid.jsonl or validation.jsonl beside train.jsonl, if any."""
    path = local_path(source)
    named = path.is_dir() and split == "train"
    if not named and not (path.is_file() and path.name.partition(".")[0] == "train"):
        return None
    folder = path if named else path.parent
    return find_split(folder, "valid") or find_split(folder, "validation")


def listed(names: Iterable[str]) -> str:
    """Returns names on one line for a person, whatever they hold, the first 20 of them."""
    shown = [name[:40] if name.isprintable() else ascii(name[:40]) for name in names]
    return ", ".join([*shown[:20], *["…"][: len(shown) > 20]]) or "none"


# ---- files ---------------------------------------------------------------------------------------


def file_rows(path: Path, empty: str | None) -> Rows:
    """Yields the rows of a JSONL, JSON, CSV, TSV or Parquet file, as `rows_of` does."""
    ending = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    with explained(path):
        if ending == ".parquet":
            yield from parquet_rows(path)
            return
        with opened(path) as data:
            if ending in TABLES:
                yield from table_rows(path, data, TABLES[ending], empty)
            elif ending == ".json":
                yield from json_rows(path, data.read())
            else:
                yield from line_rows(path, data)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a text of UTF-8, unpacked where it is gzip. Raises UserError for UTF-16."""
    with path.open("rb") as file:
        data: IO[bytes] = file
        head = file.peek(4)[:4]
        if head.startswith(GZIP):
            unpacked = gzip.GzipFile(fileobj=file).read(MOST_UNPACKED + 1)
            if len(unpacked) > MOST_UNPACKED:
                raise UserError(
                    f"{path}: it unpacks to more than {MOST_UNPACKED} bytes",
                    f"unpack it: gunzip -k {quote(str(path))}",
                )
            data, head = io.BytesIO(unpacked), unpacked[:4]
            if head.startswith(GZIP):
                raise UserError(
                    f"{path}: it is packed twice with gzip",
                    f"unpack it once: gunzip -c {quote(str(path))} > ONCE{path.suffix}",
                )
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
            raise UserError(
                f"{path}: it is UTF-16, not UTF-8",
                f"convert it: iconv -f UTF-16 -t UTF-8 {quote(str(path))} > NEW{path.suffix}",
            )
        yield data


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raises UserError for what keeps a file from being read."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "give the path of your data file") from None
    except OSError as error:
        reason = error.strerror or brief(error)
        raise UserError(f"{path}: {reason}", "give a readable data file") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip ({brief(error)})", "pack it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})", "save it as UTF-8") from None


def line_rows(path: Path, lines: Iterable[bytes]) -> Rows:
    """Yields one object a line, blank lines left out; an old Mac's lines end in CR alone."""
    for number, line in enumerate((part for long in lines for part in long.splitlines(True)), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
            reason = f"not JSON ({in_line(error)[:160]})" if line.endswith((b"\n", b"\r")) else TORN
            yield BadRow(where, reason, "each line holds one JSON object in braces")
        else:
            yield object_row(values, where)


def object_row(values: Any, where: str) -> Row | BadRow:
    if isinstance(values, dict):
        return Row(values, where)
    hint = "write one object in braces a line; a file that is one list is named .json"
    return BadRow(where, "no JSON object", hint)


def json_rows(path: Path, data: bytes) -> Rows:
    """Yields a list of objects, an object that holds one such list, a single row, or lines."""
    try:
        tree = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
            raise UserError(
                f"{path}: not JSON ({brief(error)})", "write a list of objects, or use JSONL"
            ) from None
        yield from line_rows(path, data.splitlines(keepends=True))  # as Dataset.to_json writes it
        return
    items = tree if isinstance(tree, list) else held_rows(tree)
    yield from (object_row(item, f"{path}, item {i}") for i, item in enumerate(items, 1))


def held_rows(tree: Any) -> list[Any]:
    """Returns the one list of rows that an object holds; else the object is a row itself."""
    named = tree if isinstance(tree, dict) else {}
    lists = {name: value for name, value in named.items()
             if isinstance(value, list) and value and isinstance(value[0], dict)}  # fmt: skip
    ((name, rows),) = lists.items() if len(lists) == 1 else [("", [])]
    # A list of messages, or of tools, is part of a row.
    part = name in ("", "tools", "functions") or bool(rows[0].keys() & {"role", "from"})
    return [tree] if part else rows


def table_rows(path: Path, data: IO[bytes], delimiter: str, empty: str | None) -> Rows:
    """Yields the rows of CSV or TSV below a header, each by its first line.

    A header without a comma tells semicolons or tabs; one with a space behind the comma is of a
    table that has it everywhere. Raises UserError for broken quotes, after which no row's beginning
    can be trusted.
    """
    lines = io.TextIOWrapper(data, encoding="utf-8-sig", newline="")
    first = lines.readline()
    if delimiter not in first:
        delimiter = next((other for other in ";\t" if other in first), delimiter)
    limit = csv.field_size_limit(MAX_CELL)
    try:  # all at once: the limit is one for the whole process
        reader = csv.reader(
            chain([first], lines), delimiter=delimiter, strict=True,
            skipinitialspace=f"{delimiter} " in first,
        )  # fmt: skip
        ends = [(cells, reader.line_num) for cells in reader]
    except csv.Error as error:
        where = f"{path}, line {reader.line_num}"
        raise UserError(f"{where}: not CSV ({brief(error)})", QUOTES) from None
    finally:
        csv.field_size_limit(limit)
    header = column_names(ends[0][0] if ends else [])
    for (_, before), (cells, _) in pairwise(ends):
        where = f"{path}, line {before + 1}"
        if cells and len(cells) != len(header):
            yield BadRow(where, f"{len(cells)} cells under {len(header)} columns", QUOTES)
        elif cells:
            yield Row({k: v or empty for k, v in zip(header, cells, strict=True)}, where)


def column_names(cells: Iterable[str]) -> list[str]:
    """Returns the names in a header; a second one of a name is "name.1", as pandas has it."""
    seen: Counter[str] = Counter()
    names = []
    for name in map(str.strip, cells):
        names.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def parquet_rows(path: Path) -> Rows:
    from datasets import load_dataset

    path.open("rb").close()  # a missing file is told as any other
    try:  # streamed: no second copy in the cache of `datasets`
        data = load_dataset("parquet", data_files=escape(str(path)), split="train", streaming=True)
        yield from (Row(dict(row), f"{path}, row {i}") for i, row in enumerate(data, 1))
    except ValueError as error:
        raise UserError(f"{path}: not Parquet ({brief(error)})", "write that file anew") from None


def hub_rows(name: str, config: str, split: str, hint: str, revision: str = "") -> Iterator[Row]:
    """Yields the rows of a hub data set. Raises UserError with `hint` where it cannot be had."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are the error of the HTTP client, which differs between versions, and OSError.
    network = HfHubHTTPError.__bases__
    version = {"revision": revision} if revision else {}
    try:
        data = load_dataset(name, config or None, split=split, **version)
    except (DatasetsError, OSError, ValueError, RuntimeError, *network) as error:
        title = f"{name} ({config})" if config else name
        raise UserError(
            f"the data set {title}, split {split}, could not be loaded: {brief(error)}", hint
        ) from None
    yield from (Row(dict(row), f"{name} ({split}), row {i}") for i, row in enumerate(data, 1))


def brief(error: BaseException) -> str:
    """Returns an error's text on one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


# ---- columns -------------------------------------------------------------------------------------


def column(row: Row, name: str, key: str) -> Any:
    """Returns a row's value by column name; "a.b" looks inside nested objects.

    key: the recipe key that names the column, for the hint of the UserError.
    """
    if name in row.values:
        return row.values[name]
    value: Any = row.values
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            names = [str(column) for column in row.values]
            near = difflib.get_close_matches(name, names, 1, cutoff=0.4)
            such = f", for example --set {key}={near[0]}" if near else ""
            raise UserError(
                f"{row.where}: no column {name!r}; the columns are: {listed(names)}",
                f"correct that row, or set {key} to the right column{such}",
            )
        value = value[part]
    return value


def question_text(row: Row, name: str) -> str:
    """Returns the question of a row. Raises UserError where it is empty or no text."""
    value = column(row, name, "task.question")
    half = isinstance(value, str) and SURROGATE.search(value)
    if isinstance(value, str) and value.strip() and not half:
        return value.strip()
    fault = "is empty" if value is None or isinstance(value, str) else "is no text"
    fault = "has half a surrogate pair, which no tokenizer takes" if half else fault
    raise UserError(
        f"{row.where}: column {name!r} {fault}",
        "correct that row, or set task.question to the column that holds the question",
    )


def fold(text: str) -> str:
    """Returns a text without differences of case and spacing, as two of the same problem have."""
    return " ".join(composed(text).casefold().split())
