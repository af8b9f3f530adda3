"""Rows of other people's data: files and hub data sets, and how they are split into parts."""

import csv
import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from mlxreflect.config.toml import local_path as local_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.core.text import composed

TABLES = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".jsonl", ".json", *TABLES, ".parquet")  # of files that hold rows


@dataclass(frozen=True)
class Row:
    """One row and where it stands, as in "problems.jsonl, line 3"."""

    values: dict[str, Any]
    where: str


def is_path(source: str) -> bool:
    """Whether a source names a file or folder rather than a hub data set (owner/name)."""
    path = local_path(source)
    hub_like = source.count("/") <= 1 and not source.startswith((".", "/", "~"))
    return path.exists() or path.suffix in (".txt", *ENDINGS) or not hub_like


def rows_of_source(
    source: str, config: str, split: str, hint: str, revision: str = ""
) -> Iterable[Row]:
    """The rows of a file, of a folder's file for the split, or of a hub data set, as they come."""
    if is_path(source):
        path = local_path(source)
        return read_file(file_of_split(path, split) if path.is_dir() else path)
    return hub_rows(source, config, split, hint, revision)


def file_of_split(folder: Path, split: str) -> Path:
    """test.jsonl of a folder, or that name with another known ending."""
    paths = [folder / f"{split}{ending}" for ending in ENDINGS]
    return next((path for path in paths if path.is_file()), paths[0])


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a JSONL, JSON, CSV, TSV or Parquet file. Raises UserError naming the row."""
    with explained(path):
        if path.suffix.lower() in TABLES:
            yield from read_table(path, TABLES[path.suffix.lower()])
        elif path.suffix.lower() == ".json":
            yield from read_json(path)
        elif path.suffix.lower() == ".parquet":
            yield from read_parquet(path)
        else:
            with path.open("rb") as lines:
                yield from read_lines(path, lines)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What keeps a file from being read, as a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "give the path of your data file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give a readable data file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})", "save it as UTF-8") from None


def read_lines(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    """JSONL: one object a line, blank lines left out."""
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
            raise UserError(
                f"{where}: not JSON ({brief(error)})", "each line holds one JSON object in braces"
            ) from None
        if not isinstance(values, dict):
            kind = "a JSON list" if isinstance(values, list) else repr(values)[:40]
            raise UserError(
                f"{where}: a JSON object was expected, not {kind}",
                "write one object in braces a line; a file that is one list is named .json",
            )
        yield Row(values, where)


def read_json(path: Path) -> Iterator[Row]:
    """A list of objects, or one object that holds one such list; else lines, as in JSONL."""
    data = path.read_bytes()
    try:
        tree = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        first = data.lstrip()[:1]
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and first == b"{":
            yield from read_lines(path, data.splitlines())
            return
        raise UserError(
            f"{path}: not JSON ({brief(error)})", "write a list of objects, or use JSONL"
        ) from None
    if isinstance(tree, dict):
        lists = [value for value in tree.values() if isinstance(value, list)]
        tree = lists[0] if len(lists) == 1 else None
    if not isinstance(tree, list):
        raise UserError(
            f"{path}: neither a list of objects nor an object with one list",
            "write [{...}, {...}], or one object a line in a .jsonl file",
        )
    for number, values in enumerate(tree, 1):
        where = f"{path}, item {number}"
        if not isinstance(values, dict):
            raise UserError(f"{where}: a JSON object was expected", "write each item in braces")
        yield Row(values, where)


def read_table(path: Path, delimiter: str) -> Iterator[Row]:
    """CSV or TSV with a header; a row must have as many cells as the header."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            for values in reader:
                where = f"{path}, line {reader.line_num}"
                if None in values or None in values.values():
                    raise UserError(
                        f"{where}: not as many cells as the header has columns",
                        "put cells that hold commas, quotes or line breaks in double quotes",
                    )
                yield Row(dict(values), where)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: not CSV ({brief(error)})", "correct that line"
            ) from None


def read_parquet(path: Path) -> Iterator[Row]:
    from datasets import load_dataset

    path.open("rb").close()  # a missing file is told as any other
    try:  # streamed: no second copy in the cache of `datasets`
        data = load_dataset("parquet", data_files=escape(str(path)), split="train", streaming=True)
        yield from (Row(dict(row), f"{path}, row {i}") for i, row in enumerate(data, 1))
    except ValueError as error:
        raise UserError(f"{path}: not Parquet ({brief(error)})", "write that file anew") from None


def read_hub(name: str, config: str, split: str, hint: str) -> list[Row]:
    """All rows of a hub data set, from the network or the cache of `datasets`.

    Raises UserError with `hint` where it cannot be had.
    """
    return list(hub_rows(name, config, split, hint))


def hub_rows(name: str, config: str, split: str, hint: str, revision: str = "") -> Iterator[Row]:
    """The rows of a hub data set one at a time; nothing is asked for before the first one."""
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
    """An error's text on one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def column(row: Row, name: str, key: str) -> Any:
    """A row's value by column name; "a.b" looks inside nested objects.

    key: the recipe key that names the column, for the hint of the UserError.
    """
    if name in row.values:
        return row.values[name]
    value: Any = row.values
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            names = [str(column) for column in row.values]
            near = difflib.get_close_matches(name, names, 1, cutoff=0.4) or names[:1] or ["NAME"]
            raise UserError(
                f"{row.where}: no column {name!r}; the columns are: {', '.join(names) or 'none'}",
                f"set {key} to the right one, for example --set {key}={near[0]}",
            )
        value = value[part]
    return value


def question_text(row: Row, name: str) -> str:
    """The question of a row. Raises UserError where it is empty or no text."""
    value = column(row, name, "task.question")
    if isinstance(value, str) and value.strip():
        return value.strip()
    fault = "is empty" if value is None or isinstance(value, str) else "is no text"
    raise UserError(
        f"{row.where}: column {name!r} {fault}",
        "correct that row, or set task.question to the column that holds the question",
    )


def fold(text: str) -> str:
    """A text without differences of case and spacing: what makes two questions the same."""
    return " ".join(composed(text).casefold().split())


def share(key: str) -> int:
    """0 to 99, a hash of the content alone: the same in every file, order and run."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % 100


def unique(items: Iterable[tuple[str, Problem]]) -> dict[str, Problem]:
    """One problem a key, in the order of first appearance.

    Of different problems with one key the smallest id stays, whatever the order of the rows.
    """
    kept: dict[str, Problem] = {}
    for key, problem in items:
        if key not in kept or problem.id < kept[key].id:
            kept[key] = problem
    return kept


def part_of(key: str) -> str:
    """70 % train, 10 % dev, 20 % heldout."""
    at = share(key)
    return "train" if at < 70 else "dev" if at < 80 else "heldout"


def choose_part(problems: dict[str, Problem], part: str, source: str) -> list[Problem]:
    """The problems of a part: "all" in the order of the file, else in an order of their hashes."""
    if not problems:
        raise UserError(f"{source}: no rows", "give a data file that holds problems")
    if part == "all":
        return list(problems.values())
    keys = [key for key in problems if part_of(key) == part]
    if not keys:
        rows = "row leaves" if len(problems) == 1 else "rows leave"
        raise UserError(
            f"{source}: its {len(problems)} {rows} none for the part {part!r} "
            "(70 % train, 10 % dev, 20 % heldout, by a hash of the question)",
            "add rows, or keep an evaluation file of your own and set eval.source to it",
        )
    keys.sort(key=lambda key: hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())
    return [problems[key] for key in keys]
