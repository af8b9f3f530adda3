"""Passages of a person's own texts: what questions are posed from.

A passage is a Problem whose question is its text, so that records, evaluations to keep clean of and
estimates know it like any other.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.data.rows import column, local_path, read_file

TEXTS, ROWS = (".txt", ".md", ".markdown"), (".jsonl",)
MOST_BYTES = 100 * 2**20  # of one file, which is read whole
FEWEST = 40  # characters; a shorter passage (a heading alone) says nothing to ask about
PARAGRAPH = re.compile(r"\n[ \t]*\n")


def read_corpus(source: str, size: int, text_column: str) -> list[Problem]:
    """The passages of a file, or of all files of a folder and those in it, each once.

    size: characters of a passage at most. In the order of the files' names; hidden files and other
    kinds than text, Markdown and JSONL are passed over. Raises UserError for what cannot be read,
    and where nothing is left.
    """
    root = local_path(source)
    found: dict[str, Problem] = {}
    for path in files_of(root):
        name = path.name if path == root else path.relative_to(root).as_posix()
        for part, text in enumerate(passages_of(path, size, text_column)):
            passage = make_passage(text, {"file": name, "part": part})
            found.setdefault(passage.id, passage)
    if not found:
        raise UserError(
            f"{root}: no text in it", f"give a folder with {', '.join(TEXTS + ROWS)} files"
        )
    return list(found.values())


def make_passage(text: str, meta: dict[str, str | int]) -> Problem:
    return make_problem("jsonl", {"question": text, "answer_type": "text"}, meta=meta)


def make_question(passage: Problem, question: str, gold: str | None = None) -> Problem:
    """A question that was posed from a passage."""
    fields = {"question": question, "answer_type": "text"}
    return make_problem("jsonl", fields, gold, {**passage.meta, "passage": passage.id})


def files_of(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(
            f"preflexor.corpus: {root}: no such folder", "give the path of a folder of texts"
        )
    found = []
    for folder, folders, names in os.walk(root):  # follows no link to a folder
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        # No device and no pipe, which would never end.
        found += [p for p in paths if p.suffix.lower() in TEXTS + ROWS and p.is_file()]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def passages_of(path: Path, size: int, text_column: str) -> Iterator[str]:
    if path.suffix.lower() not in ROWS:
        yield from split(read_text(path), size)
        return
    for row in read_file(path):
        text = column(row, text_column, "preflexor.column")
        if not isinstance(text, str):
            raise UserError(
                f"{row.where}: column {text_column!r} is no text",
                "correct that row, or set preflexor.column to the column that holds the text",
            )
        yield from split(text, size)


def read_text(path: Path) -> str:
    """UTF-8, or UTF-16 with its mark. Raises UserError for anything else."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: over {MOST_BYTES // 2**20} MB", "split it into several files")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "make it readable, or take it out") from None
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason})", "save it as UTF-8, or take it out"
        ) from None
    if "\0" in text:
        raise UserError(f"{path}: no text, it holds NUL bytes", "take it out of the corpus")
    return text


# ---- passages ------------------------------------------------------------------------------------


def split(text: str, size: int) -> Iterator[str]:
    """Passages of at most `size` characters: whole paragraphs where they fit, a Markdown heading
    with what follows it. Linear in the text's length."""
    held: list[str] = []
    length, bare = 0, True  # bare: headings alone are held
    for piece in pieces_of(text, size):
        heading = piece.startswith("#")
        if held and (length + len(piece) > size or (heading and not bare)):
            yield from worth_it(held)
            held, length, bare = [], 0, True
        held.append(piece)
        bare = bare and heading and "\n" not in piece
        length += len(piece) + 2
    yield from worth_it(held)


def worth_it(held: list[str]) -> Iterator[str]:
    text = "\n\n".join(held)
    if len(text) >= FEWEST:
        yield text


def pieces_of(text: str, size: int) -> Iterator[str]:
    """Paragraphs; one that is too long, in parts that end with a word where there is one."""
    for paragraph in PARAGRAPH.split(text.replace("\r\n", "\n").replace("\r", "\n")):
        rest = paragraph.strip()
        begin = 0
        while len(rest) - begin > size:
            cut = rest.rfind(" ", begin, begin + size + 1)
            end = cut if cut > begin else begin + size
            yield rest[begin:end].strip()
            begin = end + (cut > begin)
        if rest[begin:].strip():
            yield rest[begin:].strip()
