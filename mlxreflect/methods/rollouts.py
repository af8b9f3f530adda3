"""Samples of the policy as graded turns."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mlxreflect.config.schema import Recipe
from mlxreflect.core.records import Messages, Problem, Turn, Verdict
from mlxreflect.data.forms import leak
from mlxreflect.models.policy import Completion, Policy
from mlxreflect.prompts import messages as prompts
from mlxreflect.prompts import templates as texts
from mlxreflect.prompts.templates import Templates
from mlxreflect.tasks.base import Task

Seed = tuple[int | str, ...]
SampleRole = Literal["attempt", "verify", "retry"]
HELPED = ("rewrite", "continue", "integrate", "answer")  # written seeing more than the problem


class Attempts:
    """Draws and grades; turns come without an index, which the episode gives them.

    wording: which attempt_… template samples are asked with, where it is not that of the style.
    """

    def __init__(self, recipe: Recipe, task: Task, policy: Policy, wording: str = "") -> None:
        self.recipe, self.task, self.policy, self.wording = recipe, task, policy, wording
        self.templates = texts.BUNDLED.replaced(recipe.prompt.templates)

    def prompt(self, problem: Problem) -> Messages:
        """The prompt that an evaluation asks with, and every training example has as its own."""
        return attempt_prompt(self.recipe, self.task, problem, self.templates)

    def asked(self, problem: Problem) -> Messages:
        """The prompt of a sample."""
        return attempt_prompt(self.recipe, self.task, problem, self.templates, self.wording)

    def sample(
        self,
        problems: Sequence[Problem],
        role: Literal["attempt", "verify"],
        n: int,
        seed: Seed,
        actor: str,
    ) -> list[list[Turn]]:
        """n graded samples a problem, all in one batch."""
        asked = [(p, self.asked(p)) for p in problems]
        turns = self.draw([one for one in asked for _ in range(n)], role, seed, actor)
        return [turns[i : i + n] for i in range(0, len(turns), n)]

    def draw(
        self,
        asked: Sequence[tuple[Problem, Messages]],
        role: SampleRole,
        seed: Seed,
        actor: str,
        *,
        temperature: float | None = None,
    ) -> list[Turn]:
        """A graded sample of each prompt, all in one batch. temperature: None: the policy's own."""
        config = self.recipe.policy
        completions = self.policy.generate(
            [self.policy.encode(messages) for _, messages in asked],
            temperature=config.temperature if temperature is None else temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            batch=config.batch,
            seed=(*seed, role),
        )
        return [
            self.turn(problem, role, messages, completion, actor)
            for (problem, messages), completion in zip(asked, completions, strict=True)
        ]

    def turn(
        self,
        problem: Problem,
        role: SampleRole,
        messages: Messages,
        completion: Completion,
        actor: str,
    ) -> Turn:
        turn = Turn(
            index=-1,
            parent=None,
            role=role,
            actor=actor,
            messages=messages,
            text=completion.text,
            finish_reason=completion.finish_reason,
            token_ids=completion.token_ids,
            usage={"prompt": completion.prompt_tokens, "completion": len(completion.token_ids)},
        )
        return self.graded(problem, turn)

    def graded(self, problem: Problem, turn: Turn) -> Turn:
        return graded(self.recipe, self.task, problem, turn)


def graded(recipe: Recipe, task: Task, problem: Problem, turn: Turn) -> Turn:
    """The turn with its parsed answer and verdict; a helped one must not give away its help."""
    tags, style = recipe.prompt.tags, recipe.prompt.style
    grade = task.grade(problem, turn.text, tags, style)
    spans = prompts.parse_response(turn.text, tags, style).spans
    verdict = grade.verdict
    if turn.role in HELPED and verdict.passed:
        reason = leak(turn.text, spans, style)
        if reason:
            verdict = Verdict(False, verdict.format_ok, reason, "leak filter")
    return replace(turn, spans=spans, parsed=grade.parsed, verdict=verdict)


def attempt_prompt(
    recipe: Recipe, task: Task, problem: Problem, templates: Templates, wording: str = ""
) -> Messages:
    """wording: which attempt_… template, where it is not that of the style."""
    tags, style = recipe.prompt.tags, wording or recipe.prompt.style
    asked, shown = task.instruction(problem), task.show(problem)
    return prompts.attempt_messages(asked, shown, tags, style, templates)
