"""PRefLexOR's teacher: from a passage to a question, its sections of thinking and its answer.

Everything is asked in lock-step, a call a question at each step; what fails ends its question, and
its turn says why.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, Turn, Verdict
from mlxreflect.critics.verdicts import Judgement, Sections
from mlxreflect.data.contamination import Index, find
from mlxreflect.data.rows import fold
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.corpus import make_question
from mlxreflect.methods.retrieval import Library
from mlxreflect.methods.roles import Round, judged
from mlxreflect.methods.session import Exchange, turn_of
from mlxreflect.methods.trajectories import Story
from mlxreflect.prompts import messages as prompts

MOST_QUESTION = 2000  # characters
GRAPH_SECTIONS = ("knowledge graph", "abstracted pattern")


@dataclass(eq=False, kw_only=True)
class Lesson(Story):
    """A story that begins with a passage, source. passages: texts that the teacher is shown."""

    source: Problem
    passages: list[str]


class Teacher:
    """Asks the critics. counts: of what a wave's passages came to.

    exams: what evaluations ask, which is not to be trained on; None: nobody looks.
    """

    def __init__(
        self,
        recipe: Recipe,
        exchange: Exchange,
        passages: Sequence[Problem],
        exams: Index | None = None,
    ) -> None:
        self.recipe, self.exchange, self.exams = recipe, exchange, exams
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

    def pose(self, passages: Sequence[Problem], known: Sequence[str], at: Round) -> list[Lesson]:
        """A question from each passage. known: ids of what was asked before, not to be again."""
        calls = [
            self.exchange.moves.pose(
                p, p.fields["question"], replace(at, attempt=f"{at.attempt}/{i}")
            )
            for i, p in enumerate(passages)
        ]
        turns = self.exchange.ask(calls, [None] * len(calls), at)
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

    def extract(self, lessons: Sequence[Lesson], at: Round) -> None:
        """The sections of each question's thought, as one text."""
        names = self.sections()
        calls = [self.exchange.moves.extract(s.problem, s.passages, names, at) for s in lessons]
        answers = self.exchange.structured(calls, Sections, at)
        actor = self.exchange.critics[at.tier].actor
        for lesson, call, answer in zip(lessons, calls, answers, strict=True):
            turn = turn_of(call, answer.replies[-1], actor, 0)
            if answer.value:
                said = chosen_sections(answer.value, names)
                self.counts["empty_sections"] += len(names) - len(said)
                if said:
                    turn = replace(turn, text=thought_of(said))
                else:
                    turn = replace(turn, error="no section has any text")
            lesson.add(turn)

    def ground(self, lessons: Sequence[Lesson], at: Round) -> None:
        """The answer to each question; with the sections before it, a whole solution."""
        thoughts = [lesson.turns[-1] for lesson in lessons]
        calls = [
            self.exchange.moves.ground(lesson.problem, lesson.passages, thought.text, at)
            for lesson, thought in zip(lessons, thoughts, strict=True)
        ]
        for lesson, thought, turn in zip(
            lessons, thoughts, self.exchange.ask(calls, thoughts, at), strict=True
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
        answer = prompts.parse_response(turn.text, prompt.tags, "direct").answer
        if not answer:
            return replace(turn, error="no answer in an <answer> block")
        start, end = prompts.TAGS[prompt.tags]
        text = f"{start}\n{thought}\n{end}\n<answer>{answer}</answer>"
        parsed = prompts.parse_response(text, prompt.tags, prompt.style)
        reason = parsed.reason or pairs.leak(text, parsed.spans, prompt.style)
        return replace(
            turn, text=text, parsed=parsed.answer, spans=parsed.spans,
            verdict=Verdict(False, not reason, reason or "not judged yet", "format"),
        )  # fmt: skip

    def judge(self, lessons: Sequence[Lesson], at: Round) -> None:
        """Whether the passages support each lesson's last turn; its verdict becomes the judge's.

        Where no verdict comes, a taught solution has not passed, and of an attempt none is known.
        """
        shown = [lesson.turns[-1] for lesson in lessons]
        calls = [
            self.exchange.moves.support(
                lesson.problem, lesson.passages, turn.text,
                replace(at, attempt=f"{at.attempt}/{turn.role}"),
            )
            for lesson, turn in zip(lessons, shown, strict=True)
        ]  # fmt: skip
        critic = self.exchange.critics[at.tier]
        answers = self.exchange.structured(calls, Judgement, at)
        for lesson, turn, call, answer in zip(lessons, shown, calls, answers, strict=True):
            said, why = judged(answer.value)
            form = bool(turn.verdict and turn.verdict.format_ok)
            reason = turn.verdict.reason if turn.verdict and not form else f"{said}: {why}"
            verdict: Verdict | None = Verdict(said == "right", form, reason, critic.actor)
            if said == "unknown" and turn.role == "attempt":
                verdict = None
            lesson.turns[-1] = replace(turn, verdict=verdict)
            lesson.add(turn_of(call, answer.replies[-1], critic.actor, turn.index))


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
