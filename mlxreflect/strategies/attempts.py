"""Samples of the policy as graded turns."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mlxreflect import pairs, prompts
from mlxreflect.policy import Completion, Policy
from mlxreflect.records import Messages, Problem, Turn, Verdict
from mlxreflect.tables import Recipe
from mlxreflect.tasks.base import Task
from mlxreflect.templates import Templates

Seed = tuple[int | str, ...]


class Attempts:
    """Draws and grades; turns come without an index, which the episode gives them."""

    def __init__(self, recipe: Recipe, task: Task, policy: Policy) -> None:
        self.recipe, self.task, self.policy = recipe, task, policy
        self.templates = prompts.BUNDLED.replaced(recipe.prompt.templates)

    def prompt(self, problem: Problem) -> Messages:
        """The prompt of an attempt: what every training example of the problem has as its own."""
        return attempt_prompt(self.recipe, self.task, problem, self.templates)

    def sample(
        self,
        problems: Sequence[Problem],
        role: Literal["attempt", "verify"],
        n: int,
        seed: Seed,
        actor: str,
    ) -> list[list[Turn]]:
        """n graded samples a problem, all in one batch."""
        config = self.recipe.policy
        messages = [self.prompt(problem) for problem in problems]
        encoded = [self.policy.encode(m) for m in messages]
        completions = self.policy.generate(
            [ids for ids in encoded for _ in range(n)],
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            batch=config.batch,
            seed=(*seed, role),
        )
        turns = [
            self.turn(problems[i // n], role, messages[i // n], completion, actor)
            for i, completion in enumerate(completions)
        ]
        return [turns[i : i + n] for i in range(0, len(turns), n)]

    def turn(
        self,
        problem: Problem,
        role: Literal["attempt", "verify"],
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
        """The turn with its answer and verdict; what a critic wrote must not give away its help."""
        tags, style = self.recipe.prompt.tags, self.recipe.prompt.style
        grade = self.task.grade(problem, turn.text, tags, style)
        spans = prompts.parse_response(turn.text, tags, style).spans
        verdict = grade.verdict
        if turn.role in ("rewrite", "answer") and verdict.passed:
            reason = pairs.leak(turn.text, spans, style)
            if reason:
                verdict = Verdict(False, verdict.format_ok, reason, "leak filter")
        return replace(turn, spans=spans, parsed=grade.parsed, verdict=verdict)


def attempt_prompt(recipe: Recipe, task: Task, problem: Problem, templates: Templates) -> Messages:
    tags, style = recipe.prompt.tags, recipe.prompt.style
    asked, shown = task.instruction(problem), task.show(problem)
    return prompts.attempt_messages(asked, shown, tags, style, templates)
