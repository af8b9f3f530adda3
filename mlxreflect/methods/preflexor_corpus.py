"""PRefLexOR's corpus: passages of a person's own texts, their retrieval, and the teacher.

A passage is a Problem whose question is its text, so that records, evaluations to keep clean of and
estimates know it like any other. From it the teacher poses a question, extracts sections of
thinking, and grounds the answer; a judge who sees the passages decides what is trained on.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, Turn, Verdict, make_problem
from mlxreflect.core.ui import composed
from mlxreflect.data.leaks import leak
from mlxreflect.data.matching import Index, find
from mlxreflect.data.rows import column, explained, fold, local_path, read_file
from mlxreflect.methods.base import LEAK_FILTER, Frame, Trajectory, Try, judged
from mlxreflect.prompts.parsing import TAGS, parse_response

if TYPE_CHECKING:
    from mlxreflect.critics.base import Call
    from mlxreflect.critics.embeddings import Embedder
    from mlxreflect.critics.verdicts import Sections

TEXTS, ROWS = (".txt", ".md", ".markdown"), (".jsonl",)
MOST_BYTES = 100 * 2**20  # of one file, which is read whole
FEWEST = 40  # characters; a shorter passage (a heading alone) says nothing to ask about
MOST_QUESTION = 2000  # characters
PARAGRAPH = re.compile(r"\n[ \t]*\n")
GRAPH_SECTIONS = ("knowledge graph", "abstracted pattern")


# ---- passages ------------------------------------------------------------------------------------


def read_corpus(source: str, size: int, text_column: str) -> list[Problem]:
    """Returns the passages of a file, or of all files in a folder and below, each once.

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


def make_question(passage: Problem, question: str) -> Problem:
    """Returns a question that was posed from a passage."""
    fields = {"question": question, "answer_type": "text"}
    return make_problem("jsonl", fields, None, {**passage.meta, "passage": passage.id})


def files_of(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(
            f"preflexor.corpus: {root}: no such folder", "give the path of a folder of texts"
        )
    found = []
    for folder, folders, names in os.walk(root):  # follows no link to a folder
        folders[:] = [name for name in folders if not name.startswith(".")]
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
    """Returns the text of UTF-8, or UTF-16 with its mark. Raises UserError for anything else."""
    with explained(path):
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: over {MOST_BYTES // 2**20} MB", "split it into several files")
        data = path.read_bytes()
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    if "\0" in text:
        raise UserError(f"{path}: no text, it holds NUL bytes", "take it out of the corpus")
    return text


def split_passages(text: str, size: int) -> list[str]:
    """Returns passages of at most `size` characters, in time linear in the text's length.

    Paragraphs stay whole where they fit, and a Markdown heading goes with what follows it.
    """
    held: list[list[str]] = [[]]
    length, bare = 0, True  # bare: headings alone are held last
    for piece in pieces_of(text, size):
        heading = piece.startswith("#")
        if held[-1] and (length + len(piece) > size or (heading and not bare)):
            held.append([])
            length, bare = 0, True
        held[-1].append(piece)
        bare = bare and heading and "\n" not in piece
        length += len(piece) + 2
    return [passage for passage in map("\n\n".join, held) if len(passage) >= FEWEST]


def pieces_of(text: str, size: int) -> Iterator[str]:
    """Yields paragraphs; one that is too long in parts, which end with a word where they can."""
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


# ---- retrieval -----------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\w+", composed(text).casefold())


def bm25() -> Any:
    """Returns the package bm25s. Raises UserError where it is not installed."""
    try:
        import bm25s  # takes half a second, which runs without a corpus are spared
    except ImportError:
        raise UserError(
            "preflexor.corpus: questions from a corpus need the package bm25s, which is missing",
            "pip install 'mlxreflect[corpus]'",
        ) from None
    return bm25s


class Library:
    """Passages that can be looked up by BM25 over their words (Robertson & Zaragoza 2009).

    Lucene's variant with k1 = 1.5, b = 0.75. Ranks do not depend on chance: of equals the first is
    first. Raises ValueError where no passage has a word.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        self.index = bm25().BM25(method="lucene", k1=1.5, b=0.75)
        spoken = [words(passage) for passage in passages]
        if not any(spoken):
            raise ValueError("no passage has a word")
        self.index.index(spoken, show_progress=False)

    def expect(self, texts: Sequence[str]) -> None:
        """Does nothing: words need no preparation."""

    def related(self, text: str, most: int | None = None) -> list[int]:
        """Returns numbers of the passages that share a word with the text, the best first."""
        asked = words(text)
        if not asked:
            return []
        scores = self.index.get_scores(asked)
        order = (-scores).argsort(kind="stable")[:most]
        return [int(i) for i in order if scores[i] > 0]


class Neighbours:
    """Passages that can be looked up by the cosine of their embedding and a text's."""

    def __init__(self, passages: Sequence[str], embedder: Embedder) -> None:
        self.embedder, self.vectors = embedder, embedder.vectors(passages)

    def expect(self, texts: Sequence[str]) -> None:
        """Embeds texts together that will be looked up one by one."""
        if texts:
            self.embedder.vectors(texts)

    def related(self, text: str, most: int | None = None) -> list[int]:
        """Returns numbers of the passages, the closest to the text first."""
        cosines = self.vectors @ self.embedder.vectors([text])[0]
        return [int(i) for i in (-cosines).argsort(kind="stable")[:most]]


# ---- the teacher ---------------------------------------------------------------------------------


class Teacher:
    """Asks the critics in lock-step, a call a question at each step.

    What fails ends its question, and its turn says why. counts: of what a wave's passages came to.
    shown: the passages that a question's calls quote. asked: what evaluations ask, which is not to
    be trained on; None where nobody looks.
    """

    def __init__(self, frame: Frame, asked: Index | None) -> None:
        self.recipe, self.session, self.asked = frame.recipe, frame.session, asked
        self.texts = [passage.fields["question"] for passage in frame.problems.values()]
        self.library: Library | Neighbours
        try:
            embedder = frame.embedder
            self.library = Neighbours(self.texts, embedder) if embedder else Library(self.texts)
        except ValueError as error:
            raise UserError(
                f"preflexor.corpus = {self.recipe.preflexor.corpus!r}: {error}",
                "set preflexor.corpus to a folder of texts",
            ) from None
        self.begin_wave()

    def begin_wave(self) -> None:
        self.counts: Counter[str] = Counter()
        self.shown: dict[Trajectory, list[str]] = {}

    def pose(self, passages: Sequence[Problem], known: list[str], at: Try) -> list[Trajectory]:
        """Returns a question of each passage. known: ids of those posed before, which is added to.

        A trajectory without a question is about its passage.
        """
        texts = [passage.fields["question"] for passage in passages]
        calls = [
            self.session.call("pose", p, replace(at, attempt=f"{at.attempt}/{i}"), passage=text)
            for i, (p, text) in enumerate(zip(passages, texts, strict=True))
        ]
        turns = self.session.ask(calls, [None] * len(calls), at)
        lessons, posed = [], set(known)
        if self.recipe.preflexor.retrieve:
            said = [" ".join(turn.text.split()) for turn in turns if not turn.error]
            self.library.expect([one for one in said if not question_fault(one, posed)])
        for passage, text, turn in zip(passages, texts, turns, strict=True):
            question = " ".join(turn.text.split())
            lesson = Trajectory(passage)
            fault = turn.error or question_fault(question, posed) or self.evaluation_of(question)
            posed.add(question_id(question))
            if not fault:
                self.counts["posed"] += 1
                known.append(question_id(question))
                lesson.problem = make_question(passage, question)
                self.shown[lesson] = [text, *self.beside(text, question)]
            lesson.add(replace(turn, error=fault or None))
            lessons.append(lesson)
        return lessons

    def evaluation_of(self, question: str) -> str:
        """Returns where an evaluation asks a question; empty where none does."""
        found = find(self.asked, [question], [question]) if self.asked else None
        self.counts["in_evaluation"] += found is not None
        return f"it occurs in the evaluation {found.spec}" if found else ""

    def beside(self, passage: str, question: str) -> list[str]:
        """Returns other passages on a question."""
        most = self.recipe.preflexor.retrieve
        found = self.library.related(question, most + 1) if most else []
        return [text for text in (self.texts[i] for i in found) if text != passage][:most]

    def call(self, role: str, lesson: Trajectory, at: Try, **data: str) -> Call:
        shown: dict[str, Any] = {"passage": self.shown[lesson], **data}
        return self.session.call(role, lesson.problem, at, **shown)

    def extract(self, lessons: Sequence[Trajectory], at: Try) -> None:
        """Adds the sections of each question's thought, as one text; a graph comes first."""
        graph = GRAPH_SECTIONS if self.recipe.prompt.style == "graph" else ()
        names = [*graph, *self.recipe.preflexor.sections]
        calls = [self.call("extract", one, at, sections="; ".join(names)) for one in lessons]
        replies = self.session.structured(calls, [s.turns[0] for s in lessons], at)
        for lesson, (sections, turn) in zip(lessons, replies, strict=True):
            if sections:
                found = chosen_sections(sections, names)
                self.counts["empty_sections"] += len(names) - len(found)
                thought = "\n\n".join(f"{name.capitalize()}:\n{found[name]}" for name in found)
                turn = replace(turn, text=thought or turn.text)
                turn = turn if found else replace(turn, error="no section has any text")
            lesson.add(turn)

    def ground(self, lessons: Sequence[Trajectory], at: Try) -> None:
        """Adds the answer to each question; with the sections before it, a whole solution."""
        thoughts = [lesson.turns[-1] for lesson in lessons]
        calls = [self.call("ground", s, at, sections=s.turns[-1].text) for s in lessons]
        turns = self.session.ask(calls, thoughts, at)
        for lesson, thought, turn in zip(lessons, thoughts, turns, strict=True):
            turn = lesson.add(turn if turn.error else self.solution(lesson, thought.text, turn))
            self.counts["grounded"] += turn.error is None
            if turn.parsed:
                posed = lesson.problem
                lesson.problem = make_problem("jsonl", posed.fields, turn.parsed, posed.meta)

    def solution(self, lesson: Trajectory, thought: str, turn: Turn) -> Turn:
        """Returns a reply that holds an answer, as the answer to a thought."""
        tags, style = self.recipe.prompt.tags, self.recipe.prompt.style
        answer = parse_response(turn.text, tags, "direct").answer
        if not answer:
            return replace(turn, error="no answer in an <answer> block")
        start, end = TAGS[tags]
        text = f"{start}\n{thought}\n{end}\n<answer>{answer}</answer>"
        parsed = parse_response(text, tags, style)
        leaks = leak(text, parsed.spans, style, lesson.problem.fields["question"])
        reason = parsed.reason or leaks
        by = "format" if parsed.reason or not leaks else LEAK_FILTER
        return replace(
            turn, text=text, parsed=parsed.answer, spans=parsed.spans,
            verdict=Verdict(False, not reason, reason or "not judged yet", by),
        )  # fmt: skip

    def judge(self, lessons: Sequence[Trajectory], at: Try) -> None:
        """Adds the judge's word on each last turn, whose verdict becomes the judge's.

        Where no verdict comes, a taught solution has not passed, and of an attempt none is known.
        """
        texts = [lesson.turns[-1] for lesson in lessons]
        asked = [replace(at, attempt=f"{at.attempt}/{turn.role}") for turn in texts]
        calls = [
            self.call("support", lesson, key, attempt=turn.text)
            for lesson, key, turn in zip(lessons, asked, texts, strict=True)
        ]
        replies = self.session.structured(calls, texts, at)
        for lesson, turn, (judgement, said) in zip(lessons, texts, replies, strict=True):
            word, why = judged(judgement)
            form = bool(turn.verdict and turn.verdict.format_ok)
            reason = turn.verdict.reason if turn.verdict and not form else f"{word}: {why}"
            by = LEAK_FILTER if turn.verdict and turn.verdict.source == LEAK_FILTER else said.actor
            unknown = word == "unknown" and turn.role == "attempt"
            verdict = None if unknown else Verdict(word == "right", form, reason, by)
            lesson.turns[-1] = replace(turn, verdict=verdict)
            lesson.add(said)


def came_about(lessons: Sequence[Trajectory]) -> list[Trajectory]:
    """Returns those whose last turn has no error."""
    return [lesson for lesson in lessons if lesson.turns[-1].error is None]


def question_fault(question: str, known: set[str]) -> str:
    """Returns why a reply is no question to go on with; empty where it is one."""
    if not question:
        return "no question"
    if len(question) > MOST_QUESTION:
        return f"a question of over {MOST_QUESTION} characters"
    return "this question was posed before" if question_id(question) in known else ""


def question_id(question: str) -> str:
    return make_question(Problem("", "jsonl", {}), fold(question)).id


def chosen_sections(reply: Sections, names: Sequence[str]) -> dict[str, str]:
    """Returns the sections asked for that have a text, each once and in their order."""
    texts: dict[str, str] = {}
    for section in reply.sections:
        if section.text.strip():
            texts.setdefault(fold(section.name), section.text.strip())
    return {name: texts[fold(name)] for name in names if fold(name) in texts}
