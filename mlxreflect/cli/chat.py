"""`mlxreflect chat`: answers side by side as their tokens come, and what a person may type."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mlxreflect.core.errors import UserError
from mlxreflect.core.ui import Ui, console, plain, safe_text
from mlxreflect.evaluation.generators import ServedModel
from mlxreflect.evaluation.runner import Entry
from mlxreflect.runs.chat import Answer, Chat, Question, Subject

LEAST = 36  # columns of an answer beside another one
HELP = """\
/problem [N]  ask a held-out problem of the run (the next one, or number N), and grade the answers
/answer X     X is right for the last question: grade its answers
/new          begin a new conversation
/save [FILE]  keep all questions and answers as JSON lines
/quit         end, as Ctrl-D does; Ctrl-C stops an answer, twice it ends"""


def side_by_side(answers: Sequence[Answer], out: Console, lines: int = 0) -> Table:
    """Returns a column for each answer. lines: only so many of each, the last; 0: all."""
    width = (out.width - 2 * (len(answers) - 1)) // len(answers)
    grid, texts = Table.grid(padding=(0, 2, 0, 0)), list[Text]()
    for answer in answers:
        grid.add_column(width=width, overflow="fold")
        text = plain(answer.text.strip().rstrip("\ufffd"))  # half a character, while it grows
        if lines:
            end = Text(text.plain[-width * lines :]).wrap(out, width, overflow="fold")
            text = Text("\n").join(end[-lines:])
        texts.append(text)
    grid.add_row(*(plain(answer.name, "bold") for answer in answers))
    grid.add_row(*texts)
    grid.add_row(*map(verdict_line, answers))
    return grid


def verdict_line(answer: Answer) -> Text:
    style = "" if not answer.grade else "green" if answer.grade.verdict.correct else "yellow"
    return plain(answer.verdict(), style)


def stream(chat: Chat, question: Question, out: Console) -> list[Answer]:
    """Shows the answers as they come, beside each other where there is room."""
    answers: list[Answer] = []
    wide = out.width >= LEAST * len(chat.arms)
    for group in [chat.arms] if wide else [[entry] for entry in chat.arms]:
        if not any(map(Answer.stopped, answers)):
            answers += stream_group(chat, question, group, out)
    return answers


def stream_group(
    chat: Chat, question: Question, group: Sequence[Entry], out: Console
) -> list[Answer]:
    cells = {entry.name: Answer(entry.name, "…") for entry in group}
    with Live(console=out, auto_refresh=False, transient=True) as live:

        def show(answer: Answer) -> None:
            cells[answer.name] = answer
            live.update(side_by_side([*cells.values()], out, out.height - 4), refresh=True)

        answers = chat.answers(group, question, show)
    out.print(side_by_side(answers, out), "")
    return answers


class ChatLoop:
    """Takes lines, asks what they ask and does what they say.

    out: the terminal; None for a pipe, whose lines are questions that know nothing of each other.
    """

    def __init__(self, chat: Chat, ui: Ui, out: Console | None) -> None:
        self.chat, self.ui, self.out = chat, ui, out

    def take(self, line: str) -> bool:
        """Does what a line says; returns false where that is to end. Raises UserError."""
        chat, (word, _, rest) = self.chat, line.strip().partition(" ")
        rest = rest.strip()
        if not word.startswith("/"):
            if word:
                self.ask(chat.read(line.strip()))
        elif word == "/problem":
            question = chat.draw(rest)
            chat.forget()
            if self.out:
                self.ui.line(question.text)
            self.ask(question)
        elif word == "/answer":
            question, answers = chat.told(rest)
            if self.out:
                self.ui.line("\n".join(f"{one.name}: {one.verdict()}" for one in answers))
            self.keep(question, answers)
        elif word == "/new":
            chat.forget()
        elif word == "/save":
            self.say(f"kept in {chat.save(rest)}")
        elif word == "/help":
            self.say(HELP)
        elif word != "/quit":
            raise UserError(f"{word}: no such command", "/help says which there are")
        return word != "/quit"

    def say(self, text: str) -> None:
        """Says something that is no answer, which of a pipe's output are all."""
        if self.out:
            self.ui.line(text)
        else:
            print(safe_text(text), file=sys.stderr)

    def ask(self, question: Question) -> None:
        """Asks all, shows and keeps. Raises KeyboardInterrupt after an answer that was stopped."""
        if self.out:
            answers = stream(self.chat, question, self.out)
        else:
            self.chat.forget()
            answers = self.chat.answers(self.chat.arms, question, lambda answer: None)
        self.keep(question, answers)
        if any(map(Answer.stopped, answers)):
            raise KeyboardInterrupt
        self.chat.go_on(question, answers)

    def keep(self, question: Question, answers: list[Answer]) -> None:
        row = self.chat.keep(question, answers)
        self.ui.result(row)
        if not self.out and not self.ui.json:
            heads = [f"{one.name}: {one.verdict()}".strip() for one in answers]
            texts = [
                f"{head}\n{one.text.strip()}" for head, one in zip(heads, answers, strict=True)
            ]
            self.ui.line("\n\n".join([f"> {row['question']}", *texts, ""]))
        if row["gold"] and self.out:
            self.ui.line(f"the right answer: {row['gold']}")

    def talk(self) -> None:
        """Takes lines from a person until one says to end, or Ctrl-C is pressed twice."""
        with suppress(ImportError):
            import readline  # noqa: F401 -- `input` has a history then
        pressed, goes_on = False, True
        while goes_on:
            try:
                line = input("> ")
                pressed = False
                goes_on = self.take(line)
            except EOFError:
                self.ui.line("")
                return
            except KeyboardInterrupt:
                self.ui.line("" if pressed else "\nCtrl-C again, or /quit, ends the chat")
                goes_on, pressed = not pressed, True
            except UserError as error:
                self.ui.line(f"{error.message}\n{error.hint}")


def open_chat(
    subject: Subject, served: Sequence[ServedModel], settings: dict[str, Any], ui: Ui
) -> None:
    """Talks about a subject: with a person on a terminal, else a line of stdin at a time.

    settings: keys of the evaluation that are other than its own.
    """
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    person = sys.stdin.isatty() and sys.stdout.isatty() and not ui.json
    notes = ui if person else Ui(json=True)  # which go to stderr
    if subject.note:
        notes.line(subject.note)
    spec = subject.spec.model_copy(update=settings)
    chat = Chat(replace(subject, spec=spec), served, notes.line)
    loop = ChatLoop(chat, ui, console(sys.stdout) if person else None)
    if person:
        ui.header({"model": subject.base.model, "adapter": subject.adapter,
                   "asked": f"as in {spec.name or spec.task.name}" if subject.task else "as typed",
                   "sampling": f"temperature {spec.temperature:g}, seed {spec.seed}, at most "
                               f"{spec.max_new_tokens} tokens", "commands": "/help"})  # fmt: skip
        loop.talk()
        return
    for line in sys.stdin:
        if not loop.take(line):
            return
