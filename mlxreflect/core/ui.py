"""The terminal: a header, progress with ETA, lines, tables, or one JSON object.

Progress goes to stderr: bars on a terminal, else a plain line every few seconds and a final one.
With json the only thing on stdout is the result. Untrusted text comes in one safe form.
"""

import io
import json
import os
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from rich.text import Text

MAX_MARKS = 30  # combining marks in a row, as in Unicode's stream-safe format (UAX 15)
EVERY_S, RARER = 5.0, 0.01  # seconds between plain progress lines: at least, and of those so far
PLAIN_WIDTH = 100  # columns of a table in a file or pipe; wider where its cells are
EARLY = 0.03  # share of the work before which the time left is not told: the first steps mislead
LONG = 24  # characters of a word that is broken in a column that gives way
# A line with a command in it is to be copied, so it is never broken.
COPIED = re.compile(r"\bmlxreflect [a-z]|\bmlx_lm\b|(^|\s)--[a-z]")
# Control characters but tab and newline, what reorders or hides text, and lone surrogates.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def safe_text(text: str) -> str:
    """Text of a model or a critic made fit for a terminal: what could steer it becomes visible."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say_error(message: str, hint: str) -> None:
    """Prints exactly two lines on stderr, whatever the data quoted in them holds.

    In one write: a process of several may be ended after its first line.
    """
    error, mend = (safe_text(" ".join(text.split())) for text in (message, hint))
    sys.stderr.write(f"error: {error}\nhint: {mend}\n")
    sys.stderr.flush()


def composed(text: str) -> str:
    """NFC; a text with more marks in a row than any language has is left as it is.

    NFC sorts such a run in time quadratic in its length.
    """
    run = 0
    for character in "" if text.isascii() else text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run > MAX_MARKS:
            return text
    return unicodedata.normalize("NFC", text)


class LiveBar(NamedTuple):
    """A bar on a terminal. Its methods may be called from any thread."""

    live: "Progress"
    task: "TaskID"

    def advance(self, n: int = 1) -> None:
        self.live.advance(self.task, n)

    def update_text(self, text: str) -> None:
        self.live.update(self.task, text=safe_text(text))

    def update_end(self, text: str) -> None:
        """Shows when the work ends, where its owner knows more than the time so far tells."""
        self.live.update(self.task, ends=text)


class PlainBar:
    """Lines in a log, fewer as time goes on, and one at the end; out None: none."""

    def __init__(self, label: str, total: int | None, out: TextIO | None) -> None:
        self.label, self.total, self.out, self.done = label, total, out, 0
        self.text = self.ends = ""
        self.began = self.said = time.monotonic()
        self.lock = threading.Lock()

    def advance(self, n: int = 1) -> None:
        with self.lock:
            self.done += n
            if self.done != self.total:  # the last line says so
                self.say_sometimes()

    def update_text(self, text: str) -> None:
        """Tells what is done; work may go on when all is counted, as training does."""
        with self.lock:
            self.text = safe_text(text)
            self.say_sometimes()

    def update_end(self, text: str) -> None:
        """As of `LiveBar`."""
        self.ends = text

    def say_sometimes(self) -> None:
        now = time.monotonic()
        due = max(EVERY_S, RARER * (self.said - self.began))
        if now - self.said >= due:
            self.say()

    def say(self, ended: str = "") -> None:
        self.said = time.monotonic()
        spent, total = timedelta(seconds=round(self.said - self.began)), self.total or 0
        parts = [f"{self.label}: {self.done}" + (f"/{total}" if total else ""), self.text]
        if self.ends and not ended:
            parts.append(self.ends)
        elif ended or not self.done or not EARLY * total <= self.done < total:
            parts.append(f"{ended} {spent}" if ended else f"{spent} so far")
        else:
            left = spent.total_seconds() * max(0, total - self.done) / self.done
            parts.append(f"{timedelta(seconds=round(left))} left")
        if self.out:
            print(", ".join(part for part in parts if part), file=self.out, flush=True)


class Ui:
    """The output of a command.

    json: stdout is for `result` alone. quiet: results and tables only.
    """

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.live: Progress | None = None
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal in ASCII shows ? for →
                stream.reconfigure(errors="replace")

    def header(self, facts: Mapping[str, object]) -> None:
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            self.line(f"{name:<{width}}  {value}")

    def line(self, text: str) -> None:
        out = sys.stderr if self.json else sys.stdout
        if self.quiet:
            return
        if not out.isatty():
            print(safe_text(text), file=out, flush=True)
            return
        # Above the bars, not through them.
        print_text(self.live.console if self.live else console(out), plain(text))

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> "Iterator[LiveBar | PlainBar]":
        """Shows the label until the block ends; progress inside progress adds a bar."""
        label = safe_text(label)
        if self.quiet or not sys.stderr.isatty():
            plain = PlainBar(label, total, None if self.quiet else sys.stderr)
            ended = "stopped after"
            try:
                yield plain
                ended = "took"
            finally:
                plain.say(ended)
            return
        outer, live = self.live, self.live or bars()
        self.live, task = live, live.add_task(label, total=total, text="", ends="")
        try:
            live.start()
            yield LiveBar(live, task)
        finally:
            self.live = outer
            live.remove_task(task) if outer else live.stop()

    def result(self, value: object) -> None:
        """The command's result as one line of JSON, nan as null; without json nothing."""
        if self.json:
            clean = json.loads(json.dumps(value), parse_constant=lambda _: None)
            print(json.dumps(clean), flush=True)

    def table(self, renderable: "RenderableType") -> None:
        """A table, or anything else that rich draws; with json nothing.

        A table that is too wide for a terminal becomes a paragraph a row. A file or pipe gets
        running text in whole lines, and no line is filled up with blanks.
        """
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        out, shows = console(sys.stdout), sys.stdout.isatty()
        if self.json:
            return
        for part in renderable.renderables if isinstance(renderable, Group) else [renderable]:
            with nullcontext() if shows else out.capture() as drawn:
                if isinstance(part, Text):
                    print_text(out, part) if shows else out.print(part, soft_wrap=True)
                elif isinstance(part, Table) and part.box is None:
                    print_facts(out, part)
                elif isinstance(part, Table) and (width := width_of(part)) > out.width:
                    if shows or "COLUMNS" in os.environ:
                        print_rows(out, part)
                    else:
                        out.width = width  # what `print` is given cannot be wider than this
                        out.print(part)
                else:
                    out.print(part)
            if drawn:
                print(*(line.rstrip() for line in drawn.get().splitlines()), sep="\n", flush=True)


def console(file: TextIO) -> "Console":
    from rich.console import Console

    wide = file.isatty() or "COLUMNS" in os.environ
    return Console(file=file, width=None if wide else PLAIN_WIDTH, highlight=False)


def print_text(out: "Console", text: "Text", indent: str = "") -> None:
    """Wraps at words. Commands and long words, such as paths, overflow: they can be copied."""
    from rich.text import Text

    room = out.width - len(indent)
    lines = [
        part
        for i, line in enumerate(text.split("\n", allow_blank=True))
        for part in line.divide(breaks(line.plain, room, 0 if i else -len(indent)))
    ]
    for line in lines:
        line.rstrip()
    out.print(Text(f"\n{indent}").join(lines), soft_wrap=True)


def breaks(line: str, room: int, used: int = 0) -> list[int]:
    """Returns where a line breaks, at words, to fit into `room` columns. used: columns of it."""
    from rich.cells import cell_len

    at = list[int]()
    for word in re.finditer(r"^\s*\S*\s*|\S+\s*", "" if COPIED.search(line) else line):
        if used > 0 and used + cell_len(word[0].rstrip()) > room:
            at.append(word.start())
            used = 0
        used += cell_len(word[0])
    return at


def print_facts(out: "Console", grid: "Table") -> None:
    """Prints names and values; a value's further lines stand below its first."""
    from rich.text import Text

    rows = list(zip(*(column.cells for column in grid.columns), strict=True))
    width = max((len(str(name)) for name, _ in rows), default=0) + 2
    for name, value in rows:
        blank = " " * (width - len(str(name)))
        print_text(out, Text.assemble(cast("Text", name), blank, cast("Text", value)), " " * width)


def width_of(made: "Table") -> int:
    """Returns the columns that a table needs to show all that must not be cut."""
    from rich.cells import cell_len

    needed = len(made.columns) - 1
    for column in made.columns:
        texts = [str(column.header), *map(str, column.cells)]
        words = [min(cell_len(word), LONG) for text in texts for word in text.split()]
        needed += max([0, *(map(cell_len, texts) if column.no_wrap else words)])
    return needed


def print_rows(out: "Console", made: "Table") -> None:
    """Prints a paragraph a row: its first cell, then the names and values of the others."""
    from rich.text import Text

    if made.title:
        out.print(made.title, soft_wrap=True)
    first, *others = made.columns
    for cell, *cells in zip(*(column.cells for column in made.columns), strict=True):
        named = f"{first.header} " if first.justify == "right" else ""
        values = [
            Text.assemble(f"{column.header} ".lstrip(), cast("Text", value))
            for column, value in zip(others, cells, strict=True) if str(value)
        ]  # fmt: skip
        head = Text(f"{named}{cell}", style="bold")
        print_text(out, Text("\n").join([head, Text(", ").join(values)]), "  ")


def bars() -> "Progress":
    from rich import progress as p
    from rich.table import Column
    from rich.text import Text

    class Left(p.TimeRemainingColumn):
        """The end, where it is known; else the time left; early on, the time so far."""

        def render(self, task: p.Task) -> Text:
            if task.fields["ends"]:
                return Text(task.fields["ends"])
            if task.total and task.completed < EARLY * task.total:
                return Text(f"{timedelta(seconds=round(task.elapsed or 0))} so far")
            return super().render(task)

    # The text alone gives way on a narrow terminal.
    gives_way = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    label = p.TextColumn("{task.description}", markup=False)
    text = p.TextColumn("{task.fields[text]}", markup=False, table_column=gives_way)
    columns = label, p.BarColumn(12), p.MofNCompleteColumn(), Left(), text
    return p.Progress(
        *columns, console=console(sys.stderr), expand=True,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip


def plain(text: object, style: str = "") -> "Text":
    """Returns text that rich shows as it is, without markup, made safe for a terminal."""
    from rich.text import Text

    return text if isinstance(text, Text) else Text(safe_text(str(text)), style=style)


def table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[object]] = (), *, wraps: str = ""
) -> "Table":
    """Returns a table; a column named `|name` holds numbers and is set to the right.

    rows: cells as text, or as `Text`. wraps: the columns that give way on a narrow terminal:
    "problem reason" is two of them, "*" all.
    """
    from rich import box
    from rich.table import Table

    made = Table(
        title=plain(title, "bold") if title else None, title_justify="left", header_style="bold",
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0),
    )  # fmt: skip
    for column in columns:
        name, right = column.lstrip("|"), column.startswith("|")
        gives_way = wraps == "*" or name in wraps.split()
        made.add_column(
            plain(name), justify="right" if right else "left", no_wrap=not gives_way,
            overflow="fold" if gives_way else "ellipsis",
        )  # fmt: skip
    for row in rows:
        made.add_row(*map(plain, row))
    return made


def facts(pairs: Mapping[str, object]) -> "Table":
    """Returns a table without a head: names in bold, and their values beside them."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        grid.add_row(plain(name, "bold"), plain(value))
    return grid


def plural(n: int, word: str) -> str:
    """Returns a number and what it counts: 1 step, 2 steps."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
