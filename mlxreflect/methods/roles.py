"""What each move asks a critic, as calls, and what structured replies mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlxreflect.config.schema import Recipe
from mlxreflect.core.records import Messages, Problem, Visibility
from mlxreflect.core.seeds import seed_for
from mlxreflect.critics.base import Call, Move
from mlxreflect.critics.verdicts import Judgement, Marks, Preference
from mlxreflect.methods.quality import Quality
from mlxreflect.prompts import messages as prompts
from mlxreflect.prompts import templates as texts
from mlxreflect.tasks.base import Task


@dataclass(frozen=True)
class Round:
    """Which try this is. tier: the critic that answers; "self" is the policy.

    attempt: together with problem, epoch and role it tells this call from every other.
    """

    tier: Literal["basic", "advanced", "judge", "self"]
    epoch: int
    attempt: str


class Moves:
    """Calls in the wording of a recipe. Every text of a model or a critic is quoted in them."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self.task, self.seed, self.tags = task, recipe.seed, recipe.prompt.tags
        self.style = recipe.prompt.style
        self.templates = texts.BUNDLED.replaced(recipe.prompt.templates)

    def critique(self, problem: Problem, text: str, at: Round, example: str | None = None) -> Call:
        """What is wrong with a text? example: the last winning rewrite, for self-feedback."""
        messages = prompts.critique_messages(
            self.task.show(problem), text, self.tags, self.task.gold(problem), example,
            self.templates,
        )  # fmt: skip
        return self.call("critique", problem, messages, at, text=text)

    def reflection(
        self, problem: Problem, text: str, instruction: str, words: int, at: Round
    ) -> Call:
        """What went wrong in a wrong text, and what to do? instruction: how; no answer shown."""
        messages = prompts.reflection_messages(
            self.task.show(problem), text, instruction, words, self.templates
        )
        call = self.call("reflection", problem, messages, at, text=text)
        return replace(call, visibility="verdict")

    def rewrite(
        self, problem: Problem, text: str, feedback: str, at: Round, *, solution: str | None = None
    ) -> Call:
        """The text again, mended as the feedback says. solution: shown in place of the answer."""
        messages = prompts.rewrite_messages(
            self.instruction(problem), self.task.show(problem), text, feedback, self.tags,
            solution or self.task.gold(problem), self.templates,
        )  # fmt: skip
        call = self.call("rewrite", problem, messages, at, text=text, feedback=feedback)
        return replace(call, visibility="gold_solution") if solution else call

    def go_on(self, problem: Problem, working: str, hint: str, at: Round) -> Call:
        """What follows a working, with a hint at what is wrong in it; no answer shown."""
        messages = prompts.continue_messages(
            self.instruction(problem), self.task.show(problem), working, hint, self.tags,
            self.templates,
        )  # fmt: skip
        call = self.call("continue", problem, messages, at, text=working, feedback=hint)
        return replace(call, visibility="verdict")

    def judge(self, problem: Problem, text: str, at: Round) -> Call:
        """Is a text right from its first step to its answer? To be asked as a Judgement."""
        messages = prompts.judge_messages(
            self.task.show(problem), text, self.task.gold(problem), self.templates
        )
        return self.call("judge", problem, messages, at, text=text)

    def prefer(self, problem: Problem, one: str, other: str, at: Round) -> tuple[Call, Call]:
        """Which of two is better? Asked in both orders, each as a Preference."""
        return (
            self.one_order(problem, one, other, replace(at, attempt=f"{at.attempt}/AB")),
            self.one_order(problem, other, one, replace(at, attempt=f"{at.attempt}/BA")),
        )

    def one_order(self, problem: Problem, a: str, b: str, at: Round) -> Call:
        messages = prompts.prefer_messages(self.task.show(problem), a, b, self.templates)
        call = self.call("prefer", problem, messages, at, text=a, feedback=b)
        return replace(call, visibility="none")

    def score(self, problem: Problem, text: str, at: Round) -> Call:
        """How good is the reasoning of a text? To be asked as Marks; no answer shown."""
        messages = prompts.score_messages(self.task.show(problem), text, self.templates)
        return replace(self.call("score", problem, messages, at, text=text), visibility="none")

    def pose(self, source: Problem, passage: str, at: Round) -> Call:
        """A question from a passage. source: what stands for the passage in records."""
        messages = prompts.pose_messages(passage, self.templates)
        return replace(self.call("pose", source, messages, at, text=passage), visibility="none")

    def integrate(self, problem: Problem, texts: Sequence[str], at: Round) -> Call:
        """One solution of several attempts and reflections; no answer shown."""
        messages = prompts.integrate_messages(
            self.instruction(problem), self.task.show(problem), texts, self.tags,
            self.templates,
        )  # fmt: skip
        call = self.call("integrate", problem, messages, at, text="\n\n".join(texts))
        return replace(call, visibility="none")

    def expand(self, problem: Problem, notes: str, at: Round) -> Call:
        """A person's notes written out as a whole working; no answer shown."""
        messages = prompts.expand_messages(
            self.task.instruction(problem), self.task.show(problem), notes, self.tags,
            self.templates,
        )  # fmt: skip
        call = self.call("integrate", problem, messages, at, text=notes)
        return replace(call, visibility="none", template=self.templates.version("expand"))

    def answer(self, problem: Problem, at: Round) -> Call:
        """A whole solution, from who is told the answer."""
        messages = prompts.answer_messages(
            self.instruction(problem), self.task.show(problem), self.tags, self.task.gold(problem),
            self.templates,
        )  # fmt: skip
        return self.call("answer", problem, messages, at, text="")

    # Passages hold the answer and how it comes about: who is shown them has seen the solution.

    def extract(
        self, problem: Problem, passages: Sequence[str], sections: Sequence[str], at: Round
    ) -> Call:
        """Named sections of thinking, from passages. To be asked as Sections."""
        messages = prompts.extract_messages(
            self.task.show(problem), passages, sections, self.templates
        )
        call = self.call("extract", problem, messages, at, text="\n\n".join(passages))
        return replace(call, visibility="gold_solution")

    def ground(self, problem: Problem, passages: Sequence[str], thought: str, at: Round) -> Call:
        """The answer that passages, and a thought drawn from them, support."""
        messages = prompts.ground_messages(
            self.task.instruction(problem), self.task.show(problem), passages, thought,
            self.templates,
        )  # fmt: skip
        call = self.call("ground", problem, messages, at, text=thought)
        return replace(call, visibility="gold_solution")

    def support(self, problem: Problem, passages: Sequence[str], text: str, at: Round) -> Call:
        """Do passages support a solution? To be asked as a Judgement."""
        messages = prompts.support_messages(self.task.show(problem), passages, text, self.templates)
        call = self.call("support", problem, messages, at, text=text)
        return replace(call, visibility="gold_solution")

    def instruction(self, problem: Problem) -> str:
        """What a whole solution is asked for: in the style "graph" its thought begins with one."""
        asked = self.task.instruction(problem)
        return f"{asked}\n{texts.GRAPH}" if self.style == "graph" else asked

    def example(self, role: str, problem: Problem, text: str = "", feedback: str = "") -> Call:
        """A call of a role, for those who look at prompts and ask nobody."""
        at = Round("basic", 0, "")
        made: dict[str, Callable[[], Call]] = {
            "critique": lambda: self.critique(problem, text, at),
            "reflection": lambda: self.reflection(problem, text, "(an instruction)", 100, at),
            "rewrite": lambda: self.rewrite(problem, text, feedback, at),
            "continue": lambda: self.go_on(problem, text, feedback, at),
            "judge": lambda: self.judge(problem, text, at),
            "prefer": lambda: self.one_order(problem, text, feedback, at),
            "score": lambda: self.score(problem, text, at),
            "pose": lambda: self.pose(problem, "(a passage)", at),
            "integrate": lambda: self.integrate(problem, [text], at),
            "answer": lambda: self.answer(problem, at),
            "extract": lambda: self.extract(problem, ["(a passage)"], ["(a section)"], at),
            "ground": lambda: self.ground(problem, ["(a passage)"], "(sections)", at),
            "support": lambda: self.support(problem, ["(a passage)"], text, at),
        }
        return made[role]()

    def call(
        self,
        role: Move,
        problem: Problem,
        messages: Messages,
        at: Round,
        *,
        text: str,
        feedback: str = "",
    ) -> Call:
        seen: Visibility = "verdict" if self.task.gold(problem) is None else "gold_answer"
        return Call(
            role=role,
            problem=problem,
            messages=messages,
            text=text,
            feedback=feedback,
            visibility=seen,
            template=self.templates.version(role),
            tags=self.tags,
            epoch=at.epoch,
            attempt=at.attempt,
            seed=seed_for(self.seed, at.epoch, at.attempt, role, problem.id),
        )


def judged(judgement: Judgement | None) -> tuple[Literal["right", "wrong", "unknown"], str]:
    """A verdict and why, in one line. No verdict is unknown, and never a pass."""
    if judgement is None:
        return "unknown", "the judge gave no verdict"
    said = ": ".join(filter(None, (judgement.step.strip(), judgement.why.strip())))
    return judgement.verdict, " ".join(said.split())[:300] or f"the judge says {judgement.verdict}"


def marked(marks: Marks | None) -> Quality | None:
    """A critic's marks from 0 to 1; no marks stay none, and never pass."""
    if marks is None:
        return None
    given = (marks.depth, marks.coherence, marks.verification, marks.completeness)
    return Quality(*((mark - 1) / 4 for mark in given))


def preferred(one_first: Preference | None, other_first: Preference | None) -> int | None:
    """1: the one is better, 0: the other; None: a tie, which disagreement and no reply are too."""
    first = {"A": 1, "B": 0}.get(one_first.better) if one_first else None
    second = {"A": 0, "B": 1}.get(other_first.better) if other_first else None
    return first if first == second else None
