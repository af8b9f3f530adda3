"""Worked solutions by people: files of them, read and added to.

Markdown has blocks of `### Question` and `### Answer`, which may have a number and, after a colon,
begin the text; the final answer is <answer>…</answer> at the end of the latter. A line of a text
that reads like such a heading begins with a backslash, which is no part of it. JSONL has
ReasonSet's fields: problem, ground_truth, working_out and others.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import dump_line, write_atomic
from mlxreflect.data.rows import explained, read_file
from mlxreflect.graders.stated import stated
from mlxreflect.prompts.messages import parse_response

MARKDOWN = (".md", ".markdown")
ADDED_TO = (*MARKDOWN, ".jsonl")  # endings; of tables and lists nothing can be put at the end
HEADING = re.compile(
    r"#{1,6}[ \t]+(question|answer)(?:[ \t]+#?[0-9]+)?[ \t]*(?:[:.][ \t]*(.*))?", re.IGNORECASE
)
TYPES = {"problem": str, "ground_truth": str, "working_out": str, "final_solution": str,
         "is_correct": bool}  # fmt: skip


@dataclass(frozen=True)
class Worked:
    """One worked solution. gold: the final answer, None where there is none; where: it stands.

    working: as it was found, with errors and their mending. tidied: a clean solution, or empty.
    right: whether it leads to the answer, as far as the file says.
    """

    question: str
    working: str
    gold: str | None
    where: str
    tidied: str = ""
    right: bool = True


def read_worked(path: Path) -> list[Worked]:
    """All of a file, in its order. Raises UserError naming the line that cannot be read."""
    if path.suffix.lower() in MARKDOWN:
        return list(read_markdown(path))
    return [worked_of(row.values, row.where) for row in read_file(path)]


def worked_of(values: dict[str, Any], where: str) -> Worked:
    given = {name: value for name, value in values.items() if value is not None}
    if isinstance(given.get("ground_truth"), (int, float)):
        given["ground_truth"] = str(given["ground_truth"])
    for name, kind in TYPES.items():
        if name in given and not isinstance(given[name], kind):
            raise UserError(f"{where}: {name} is no {kind.__name__}", "correct that row")
    if not given.get("problem", "").strip() or not given.get("working_out", "").strip():
        raise UserError(
            f"{where}: no problem or no working_out; the row has: {', '.join(values) or 'nothing'}",
            'each row holds "problem", "ground_truth" and "working_out"',
        )
    return Worked(
        given["problem"], given["working_out"], given.get("ground_truth", "").strip() or None,
        where, given.get("final_solution", ""), given.get("is_correct", True),
    )  # fmt: skip


def read_markdown(path: Path) -> Iterator[Worked]:
    with explained(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    if not any(map(str.strip, lines)):
        return
    heads = [(n, found[1].lower(), found[2] or "") for n, line in enumerate(lines)
             if (found := HEADING.fullmatch(line.strip()))]  # fmt: skip
    check_turns(path, [(n, kind) for n, kind, _ in heads])
    ends = [number for number, _, _ in heads[1:]] + [len(lines)]
    texts = ["\n".join([begun, *map(unescaped, lines[number + 1 : end])]).strip()
             for (number, _, begun), end in zip(heads, ends, strict=True)]  # fmt: skip
    for (number, kind, _), text in zip(heads, texts, strict=True):
        if not text:
            raise UserError(
                f"{path}, line {number + 1}: nothing stands below this {kind}",
                "write its text there, or delete the question with its answer",
            )
    for (number, _, _), question, answer in zip(heads[::2], texts[::2], texts[1::2], strict=True):
        yield Worked(
            question, answer, stated(answer) or None,
            f"{path}, line {number + 1}",
        )  # fmt: skip


def check_turns(path: Path, heads: list[tuple[int, str]]) -> None:
    """Raises UserError where headings are not questions and answers by turns. heads: line, kind."""
    kinds = [kind for _, kind in heads]
    for place, (number, kind) in enumerate(heads):
        if kind != ("question", "answer")[place % 2]:
            raise UserError(
                f"{path}, line {number + 1}: a second {kind} in a row",
                "write one `### Question` and one `### Answer` by turns",
            )
    if not kinds or len(kinds) % 2:
        at = (
            f", line {heads[-1][0] + 1}: a question without an answer" if kinds else ": no question"
        )
        raise UserError(f"{path}{at}", "write `### Question` and `### Answer` above the two texts")


def add_worked(path: Path, worked: Worked) -> None:
    """Put one at a file's end: a line of JSONL, or a block of Markdown. Raises UserError."""
    try:
        before = path.read_bytes().decode() if path.exists() else ""
        write_atomic(path, before + added(before, worked, path.suffix.lower() in MARKDOWN))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give another file") from None


def added(before: str, worked: Worked, markdown: bool) -> str:
    """What is written behind a file's text, whether or not that ends its last line."""
    ends = not before or before.endswith("\n")
    if not markdown:
        return ("" if ends else "\n") + dump_line(reasonset_row(worked))
    body = worked.working.strip()
    if worked.gold is not None and parse_response(body, style="direct").answer is None:
        body += f"\n<answer>{worked.gold}</answer>"
    gap = "" if not before.strip("\ufeff\r\n") else "\n" if ends else "\n\n"
    question = escaped(worked.question.strip())
    return f"{gap}### Question\n{question}\n\n### Answer\n{escaped(body)}\n"


def escaped(text: str) -> str:
    """A text no line of which is a heading."""
    return "\n".join(f"\\{line}" if is_like_heading(line) else line for line in text.splitlines())


def unescaped(line: str) -> str:
    return line[1:] if line.startswith("\\") and is_like_heading(line) else line


def is_like_heading(line: str) -> bool:
    """Whether it is a heading, or would be one without the backslashes that it begins with."""
    return HEADING.fullmatch(line.lstrip("\\").strip()) is not None


def reasonset_row(worked: Worked) -> dict[str, Any]:
    return {
        "problem": worked.question, "ground_truth": worked.gold, "working_out": worked.working,
        "final_solution": worked.tidied, "is_correct": worked.right, "iterations": 1,
        "error_description": "",
    }  # fmt: skip
