"""People's worked solutions as training examples, and what of them is left out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxreflect import prompts, texts
from mlxreflect.decontaminate import Index, find
from mlxreflect.exams import exam_index
from mlxreflect.records import Example, Problem
from mlxreflect.strategies.attempts import attempt_prompt
from mlxreflect.tables import Recipe
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.rows import local_path
from mlxreflect.worked import Worked, read_worked


@dataclass(frozen=True)
class Human:
    """left_out: why → how many."""

    examples: list[Example]
    left_out: dict[str, int]


def human_examples(recipe: Recipe, task: Task, problems: Sequence[Problem]) -> Human:
    """What `rel.human` holds, asked as an evaluation asks. problems: the run's, at least one.

    Raises UserError for a file that cannot be read.
    """
    if not recipe.rel.human:
        return Human([], {})
    exams = exam_index(recipe) if recipe.eval.decontaminate != "off" else None
    known = {task.show(problem).strip(): problem for problem in problems}
    templates = texts.BUNDLED.replaced(recipe.prompt.templates)
    examples: dict[tuple[str, str], Example] = {}
    left_out: Counter[str] = Counter()
    for worked in read_worked(local_path(recipe.rel.human)):
        problem = known.get(worked.question.strip())
        if worked.gold is None and problem:
            worked = replace(worked, gold=task.gold(problem))
        text = solution(worked, recipe)
        reason = "" if worked.gold or problem else "it has no answer"
        reason = reason or fault(worked, text, recipe, exams)
        if not reason and problem:
            tags, style = recipe.prompt.tags, recipe.prompt.style
            verdict = task.grade(problem, text, tags, style).verdict
            reason = "" if verdict.passed else "the grader calls it wrong"
        if not reason and (worked.question, text) in examples:
            reason = "it is there twice"
        if reason:
            left_out[reason] += 1
            continue
        asked = attempt_prompt(recipe, task, problem or problems[0], templates)
        prompt = [*asked[:-1], {**asked[-1], "content": worked.question.strip()}]
        examples[worked.question, text] = Example(
            kind="sft",
            prompt=prompt,
            completion=text,
            weight=recipe.rel.human_weight,
            source={"human": worked.where, "problem": problem.id if problem else None},
        )
    return Human(list(examples.values()), dict(left_out))


def solution(worked: Worked, recipe: Recipe) -> str:
    """The text to imitate in the format asked for, as it is where it has that format."""
    tags, style, config = recipe.prompt.tags, recipe.prompt.style, recipe.rel
    text = (worked.tidied if config.target == "tidied" else "") or worked.working
    if prompts.parse_response(text, tags, style).format_ok:
        return text
    (start, end), (opening, _) = prompts.TAGS[tags], prompts.ANSWER
    thought = text.rpartition(opening)[0] if opening in text else text
    answer = worked.gold or ""
    return f"{start}\n{thought.strip()}\n{end}\n{opening}{answer}{prompts.ANSWER[1]}"


def fault(worked: Worked, text: str, recipe: Recipe, exams: Index | None) -> str:
    """Why a worked solution is not trained on; empty where it is."""
    if not worked.right:
        return "it says itself that it is wrong"
    parsed = prompts.parse_response(text, recipe.prompt.tags, recipe.prompt.style)
    if not parsed.format_ok:
        return "it does not fit the format"
    if exams and find(exams, [worked.question], [worked.question]):
        return "its question occurs in the evaluation"
    return ""
