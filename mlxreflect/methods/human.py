"""People's worked solutions as training examples, and what of them is left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Example, Problem
from mlxreflect.data.contamination import Index, find, normal_words, whole_key
from mlxreflect.data.rows import fold, local_path
from mlxreflect.evaluation.contamination import exam_index
from mlxreflect.graders.stated import agrees, stated
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.rollouts import attempt_prompt
from mlxreflect.methods.worked import Worked, read_worked
from mlxreflect.prompts import messages as prompts
from mlxreflect.prompts import templates as texts
from mlxreflect.tasks.base import Task


@dataclass(frozen=True)
class Human:
    """left_out: why → how many."""

    examples: list[Example]
    left_out: dict[str, int]

    def sentence(self) -> str:
        return f"worked solutions: {by_people(len(self.examples), self.left_out)}"


def by_people(kept: int, left_out: Mapping[str, int]) -> str:
    """So many worked solutions, and why others are none of them."""
    why = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
    return f"{kept} by people" + (f" ({sum(left_out.values())} left out; {why})" if why else "")


def human_examples(recipe: Recipe, task: Task, problems: Sequence[Problem]) -> Human:
    """What `rel.human` holds, asked as an evaluation asks. problems: the run's, at least one.

    Raises UserError for a file that cannot be read.
    """
    if not recipe.rel.human:
        return Human([], {})
    exams = exam_index(recipe) if recipe.eval.decontaminate != "off" else None
    known = {fold(task.show(problem)): problem for problem in problems}
    templates = texts.BUNDLED.replaced(recipe.prompt.templates)
    examples: dict[tuple[str, str], Example] = {}
    left_out: Counter[str] = Counter()
    for worked in read_some(local_path(recipe.rel.human)):
        problem = known.get(fold(worked.question))
        if worked.gold is None and problem:
            worked = replace(worked, gold=task.gold(problem))
        text = solution(worked, recipe)
        reason = "" if worked.gold or problem else "it has no answer"
        reason = reason or fault(worked, text, recipe, exams)
        reason = reason or wrong(worked, text, task, problem, recipe)
        key = whole_key(normal_words(worked.question)), " ".join(text.split())
        if not reason and key in examples:
            reason = "it is there twice"
        if reason:
            left_out[reason] += 1
            continue
        prompt = attempt_prompt(recipe, task, problem or problems[0], templates)
        if problem is None:
            prompt = [*prompt[:-1], {**prompt[-1], "content": worked.question.strip()}]
        examples[key] = Example(
            kind="sft",
            prompt=prompt,
            completion=text,
            weight=recipe.rel.human_weight,
            source={"human": worked.where, "problem": problem.id if problem else None},
        )
    return Human(list(examples.values()), dict(left_out))


def read_some(path: Path) -> list[Worked]:
    """The worked solutions of a file. Raises UserError where there is none."""
    found = read_worked(path)
    if not found:
        raise UserError(
            f"{path}: no worked solution is in it",
            "write one with `mlxreflect annotate`, or leave rel.human out",
        )
    return found


def solution(worked: Worked, recipe: Recipe) -> str:
    """The text to imitate in the format asked for, as it is where it has that format."""
    tags, style, config = recipe.prompt.tags, recipe.prompt.style, recipe.rel
    text = (worked.tidied if config.target == "tidied" else "") or worked.working
    if prompts.parse_response(text, tags, style).format_ok:
        return text
    (start, end), (opening, closing) = prompts.TAGS[tags], prompts.ANSWER
    thought = text.rpartition(opening)[0] if opening in text else text
    own = stated(text)  # right or wrong, it is what was said
    if opening not in text and (own is None or agrees(own, worked.gold or "")):
        own = worked.gold
    return f"{start}\n{thought.strip()}\n{end}\n{opening}{own or ''}{closing}"


def fault(worked: Worked, text: str, recipe: Recipe, exams: Index | None) -> str:
    """Why a worked solution is not trained on; empty where it is."""
    if not worked.right:
        return "it says itself that it is wrong"
    parsed = prompts.parse_response(text, recipe.prompt.tags, recipe.prompt.style)
    if not parsed.format_ok:
        return "it does not fit the format"
    if reason := pairs.leak(text, parsed.spans, recipe.prompt.style):
        return reason
    if exams and find(exams, [worked.question], [worked.question]):
        return "its question occurs in the evaluation"
    return ""


def wrong(worked: Worked, text: str, task: Task, problem: Problem | None, recipe: Recipe) -> str:
    """Why its answer does not count: by the grader, or of a problem that only it has, by its own
    ground truth. Empty where it does."""
    tags, style = recipe.prompt.tags, recipe.prompt.style
    if problem:
        verdict = task.grade(problem, text, tags, style).verdict
        return "" if verdict.passed else "the grader calls it wrong"
    answer = prompts.parse_response(text, tags, style).answer or ""
    return "" if agrees(answer, worked.gold or "") else "its answer is not its ground_truth"
