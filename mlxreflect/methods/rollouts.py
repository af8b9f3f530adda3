"""Samples of the policy as graded turns."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mlxreflect.config.schema import Recipe
from mlxreflect.core.records import Messages, Problem, Turn, Verdict
from mlxreflect.data.forms import leak
from mlxreflect.methods.base import Seed
from mlxreflect.models.policy import Completion, Policy
from mlxreflect.prompts.parsing import parse_response
from mlxreflect.prompts.roles import BUNDLED, role_messages
from mlxreflect.tasks.base import Task

SampleRole = Literal["attempt", "verify", "retry"]
HELPED = ("rewrite", "continue", "integrate", "answer")  # written seeing more than the problem


class Rollouts:
    """Draws and grades; turns come without an index, which the episode gives them.

    wording: the attempt_… template that samples are asked with, where it is not that of the style.
    """

    def __init__(self, recipe: Recipe, task: Task, policy: Policy, wording: str = "") -> None:
        self.recipe, self.task, self.policy, self.wording = recipe, task, policy, wording

    def prompt(self, problem: Problem) -> Messages:
        """Returns the prompt that an evaluation asks with; every training example has it."""
        return attempt_prompt(self.recipe, self.task, problem)

    def sample(
        self, problems: Sequence[Problem], role: SampleRole, n: int, seed: Seed, actor: str
    ) -> list[list[Turn]]:
        """Returns n graded samples a problem, all drawn in one batch."""
        prompts = [(p, attempt_prompt(self.recipe, self.task, p, self.wording)) for p in problems]
        turns = self.draw([one for one in prompts for _ in range(n)], role, seed, actor)
        return [turns[i : i + n] for i in range(0, len(turns), n)]

    def draw(
        self,
        prompts: Sequence[tuple[Problem, Messages]],
        role: SampleRole,
        seed: Seed,
        actor: str,
        *,
        temperature: float | None = None,
    ) -> list[Turn]:
        """Returns a graded sample of each prompt. temperature: None for the policy's own."""
        config = self.recipe.policy
        completions = self.policy.generate(
            [self.policy.encode(messages) for _, messages in prompts],
            temperature=config.temperature if temperature is None else temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            batch=config.batch,
            seed=(*seed, role),
        )
        return [
            self.graded(problem, turn_of(role, messages, completion, actor))
            for (problem, messages), completion in zip(prompts, completions, strict=True)
        ]

    def graded(self, problem: Problem, turn: Turn) -> Turn:
        return graded(self.recipe, self.task, problem, turn)


def turn_of(role: SampleRole, messages: Messages, completion: Completion, actor: str) -> Turn:
    return Turn(
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


def graded(recipe: Recipe, task: Task, problem: Problem, turn: Turn) -> Turn:
    """Returns the turn with its parsed answer and verdict; a helped one may not give that away."""
    tags, style = recipe.prompt.tags, recipe.prompt.style
    grade = task.grade(problem, turn.text, tags, style)
    spans = parse_response(turn.text, tags, style).spans
    verdict = grade.verdict
    if turn.role in HELPED and verdict.passed and (reason := leak(turn.text, spans, style)):
        verdict = Verdict(False, verdict.format_ok, reason, "leak filter")
    return replace(turn, spans=spans, parsed=grade.parsed, verdict=verdict)


def attempt_prompt(recipe: Recipe, task: Task, problem: Problem, wording: str = "") -> Messages:
    """Returns the prompt of an attempt. wording: its template, where it is not the style's."""
    return role_messages(
        f"attempt_{wording or recipe.prompt.style}",
        recipe.prompt.tags,
        BUNDLED.replaced(recipe.prompt.templates),
        instruction=task.instruction(problem),
        question=task.show(problem),
    )
