"""Rules that count an answer only where the format asked for was kept."""

from dataclasses import replace

from mlxreflect.records import Problem
from mlxreflect.tasks.base import Grade, Grader


def strict(grade: Grader) -> Grader:
    """The same rules, with an answer outside of the format being wrong."""

    def graded(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
        found = grade(problem, text, tags, style)
        if found.verdict.format_ok:
            return found
        score = None if found.score is None else 0.0
        return replace(found, verdict=replace(found.verdict, correct=False), score=score)

    return graded
