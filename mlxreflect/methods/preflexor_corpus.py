"""Passages of a person's own texts: what questions are posed from.

A passage is a Problem whose question is its text, so that records, evaluations to keep clean of and
estimates know it like any other.

Which passages a text is about: BM25 over their words (Robertson & Zaragoza 2009, by bm25s).

PRefLexOR's teacher: from a passage to a question, its sections of thinking and its answer.

Everything is asked in lock-step, a call a question at each step; what fails ends its question, and
its turn says why.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, Turn, Verdict, make_problem
from mlxreflect.core.text import composed
from mlxreflect.data.contamination import Index, find
from mlxreflect.data.forms import leak
from mlxreflect.data.rows import column, fold, local_path, read_file
from mlxreflect.methods.base import Trajectory, Try, judged
from mlxreflect.prompts.parsing import TAGS, parse_response

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe
    from mlxreflect.critics.verdicts import Sections
    from mlxreflect.methods.session import Session

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
        yield from split_passages(read_text(path), size)
        return
    for row in read_file(path):
        text = column(row, text_column, "preflexor.column")
        if not isinstance(text, str):
            raise UserError(
                f"{row.where}: column {text_column!r} is no text",
                "correct that row, or set preflexor.column to the column that holds the text",
            )
        yield from split_passages(text, size)


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


def split_passages(text: str, size: int) -> Iterator[str]:
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


WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    return WORD.findall(composed(text).casefold())


class Library:
    """Passages that can be looked up. Ranks do not depend on chance: of equals the first is first.

    Lucene's BM25 with k1 = 1.5, b = 0.75. Raises ValueError where no passage has a word.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        import bm25s  # takes half a second, which runs without a corpus are spared

        self.index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        spoken = [words(passage) for passage in passages]
        if not any(spoken):
            raise ValueError("no passage has a word")
        self.index.index(spoken, show_progress=False)

    def related(self, text: str, most: int | None = None) -> list[int]:
        """Numbers of the passages that share a word with the text, the most telling ones first."""
        import numpy as np

        asked = words(text)
        if not asked:
            return []
        scores = self.index.get_scores(asked)
        order = np.argsort(-scores, kind="stable")[:most]
        return [int(i) for i in order if scores[i] > 0]


MOST_QUESTION = 2000  # characters
GRAPH_SECTIONS = ("knowledge graph", "abstracted pattern")


@dataclass(eq=False, kw_only=True)
class Lesson(Trajectory):
    """A trajectory that begins with a passage (source). passages: shown to the teacher."""

    source: Problem
    passages: list[str]


class Teacher:
    """Asks the critics. counts: of what a wave's passages came to.

    exams: what evaluations ask, which is not to be trained on; None: nobody looks.
    """

    def __init__(
        self,
        recipe: Recipe,
        session: Session,
        passages: Sequence[Problem],
        exams: Index | None = None,
    ) -> None:
        self.recipe, self.session, self.exams = recipe, session, exams
        self.texts = [passage.fields["question"] for passage in passages]
        try:
            self.library = Library(self.texts)
        except ValueError as error:
            raise UserError(
                f"preflexor.corpus = {recipe.preflexor.corpus!r}: {error}",
                "set preflexor.corpus to a folder of texts",
            ) from None
        self.counts: Counter[str] = Counter()

    def sections(self) -> list[str]:
        """The names asked for, in their order in a thought; a graph comes first."""
        graph = GRAPH_SECTIONS if self.recipe.prompt.style == "graph" else ()
        return [*graph, *self.recipe.preflexor.sections]

    # ---- the steps ------------------------------------------------------------------------------

    def pose(self, passages: Sequence[Problem], known: Sequence[str], at: Try) -> list[Lesson]:
        """A question from each passage. known: ids of what was asked before, not to be again."""
        calls = [
            self.session.call(
                "pose", p, replace(at, attempt=f"{at.attempt}/{i}"), passage=p.fields["question"]
            )
            for i, p in enumerate(passages)
        ]
        turns = self.session.ask(calls, [None] * len(calls), at)
        asked, lessons = set(known), []
        for passage, turn in zip(passages, turns, strict=True):
            question = " ".join(turn.text.split())
            fault = turn.error or question_fault(question, asked) or self.examined(question)
            asked.add(question_id(question))
            lesson = Lesson(
                problem=passage if fault else make_question(passage, question),
                source=passage,
                passages=[passage.fields["question"], *self.beside(passage, question)],
            )
            lesson.add(turn if turn.error else replace(turn, error=fault or None))
            lessons.append(lesson)
        self.counts["posed"] = sum(map(fine, lessons))
        return lessons

    def examined(self, question: str) -> str:
        """Where an evaluation asks a question; empty where none does."""
        found = find(self.exams, [question], [question]) if self.exams else None
        self.counts["in_evaluation"] += found is not None
        return f"it occurs in the evaluation {found.spec}" if found else ""

    def beside(self, passage: Problem, question: str) -> list[str]:
        """What else the corpus has to say on a question."""
        most = self.recipe.preflexor.retrieve
        found = self.library.related(question, most + 1) if most else []
        texts = [self.texts[i] for i in found]
        return [text for text in texts if text != passage.fields["question"]][:most]

    def extract(self, lessons: Sequence[Lesson], at: Try) -> None:
        """The sections of each question's thought, as one text."""
        names = self.sections()
        calls = [
            self.session.call(
                "extract", s.problem, at, passage=s.passages, sections="; ".join(names)
            )
            for s in lessons
        ]
        answers = self.session.structured(calls, [lesson.turns[0] for lesson in lessons], at)
        for lesson, (value, turn) in zip(lessons, answers, strict=True):
            if value:
                said = chosen_sections(value, names)
                self.counts["empty_sections"] += len(names) - len(said)
                if said:
                    turn = replace(turn, text=thought_of(said))
                else:
                    turn = replace(turn, error="no section has any text")
            lesson.add(turn)

    def ground(self, lessons: Sequence[Lesson], at: Try) -> None:
        """The answer to each question; with the sections before it, a whole solution."""
        thoughts = [lesson.turns[-1] for lesson in lessons]
        calls = [
            self.session.call(
                "ground", lesson.problem, at, passage=lesson.passages, sections=thought.text
            )
            for lesson, thought in zip(lessons, thoughts, strict=True)
        ]
        for lesson, thought, turn in zip(
            lessons, thoughts, self.session.ask(calls, thoughts, at), strict=True
        ):
            turn = turn if turn.error else self.solution(thought.text, turn)
            turn = lesson.add(turn)
            if turn.parsed:
                question = lesson.problem.fields["question"]
                lesson.problem = make_question(lesson.source, question, turn.parsed)
        self.counts["grounded"] = sum(map(fine, lessons))

    def solution(self, thought: str, turn: Turn) -> Turn:
        """A reply that holds an answer, as the answer to a thought."""
        prompt = self.recipe.prompt
        answer = parse_response(turn.text, prompt.tags, "direct").answer
        if not answer:
            return replace(turn, error="no answer in an <answer> block")
        start, end = TAGS[prompt.tags]
        text = f"{start}\n{thought}\n{end}\n<answer>{answer}</answer>"
        parsed = parse_response(text, prompt.tags, prompt.style)
        reason = parsed.reason or leak(text, parsed.spans, prompt.style)
        return replace(
            turn, text=text, parsed=parsed.answer, spans=parsed.spans,
            verdict=Verdict(False, not reason, reason or "not judged yet", "format"),
        )  # fmt: skip

    def judge(self, lessons: Sequence[Lesson], at: Try) -> None:
        """Whether the passages support each lesson's last turn; its verdict becomes the judge's.

        Where no verdict comes, a taught solution has not passed, and of an attempt none is known.
        """
        shown = [lesson.turns[-1] for lesson in lessons]
        calls = [
            self.session.call(
                "support", lesson.problem, replace(at, attempt=f"{at.attempt}/{turn.role}"),
                passage=lesson.passages, attempt=turn.text,
            )
            for lesson, turn in zip(lessons, shown, strict=True)
        ]  # fmt: skip
        answers = self.session.structured(calls, shown, at)
        for lesson, turn, (value, said_turn) in zip(lessons, shown, answers, strict=True):
            said, why = judged(value)
            form = bool(turn.verdict and turn.verdict.format_ok)
            reason = turn.verdict.reason if turn.verdict and not form else f"{said}: {why}"
            verdict: Verdict | None = Verdict(said == "right", form, reason, said_turn.actor)
            if said == "unknown" and turn.role == "attempt":
                verdict = None
            lesson.turns[-1] = replace(turn, verdict=verdict)
            lesson.add(said_turn)


def fine(lesson: Lesson) -> bool:
    """Whether its last turn came about."""
    return lesson.turns[-1].error is None


# ---- questions and sections ----------------------------------------------------------------------


def question_fault(question: str, known: set[str]) -> str:
    """Why a reply is no question to go on with; empty where it is one."""
    if not question:
        return "no question"
    if len(question) > MOST_QUESTION:
        return f"a question of over {MOST_QUESTION} characters"
    return "this question was posed before" if question_id(question) in known else ""


def question_id(question: str) -> str:
    return make_question(Problem("", "jsonl", {}), fold(question)).id


def chosen_sections(said: Sections, names: Sequence[str]) -> dict[str, str]:
    """The sections asked for that have a text, each once and in their order."""
    texts: dict[str, str] = {}
    for section in said.sections:
        if section.text.strip():
            texts.setdefault(fold(section.name), section.text.strip())
    return {name: texts[fold(name)] for name in names if fold(name) in texts}


def thought_of(sections: dict[str, str]) -> str:
    return "\n\n".join(f"{name.capitalize()}:\n{text}" for name, text in sections.items())
