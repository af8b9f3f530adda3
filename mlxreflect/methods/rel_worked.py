"""Worked solutions by people: files of them, read and added to.

Markdown has blocks of `### Question` and `### Answer`, which may have a number and, after a colon,
begin the text; the final answer is <answer>…</answer> at the end of the latter. A line of a text
that reads like such a heading begins with a backslash, which is no part of it. JSONL has
ReasonSet's fields: problem, ground_truth, working_out and others.

People's worked solutions as training examples, and what of them is left out.

Episodes as rows of REL's ReasonSet (arXiv 2412.04645): a problem and its working, messy and all.

working_out: the first text that was right, as it was written; of an unsolved problem the last one.
final_solution: its tidied form where someone made one, else its answer. iterations: texts it took.
error_description: the first critique, or what a judge said was wrong.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import dump_line, write_atomic
from mlxreflect.core.records import Episode, Example, Problem, Turn
from mlxreflect.data.contamination import Index, find, normal_words, whole_key
from mlxreflect.data.kept import keep
from mlxreflect.data.rows import explained, fold, local_path, read_file
from mlxreflect.evaluation.contamination import exam_index
from mlxreflect.graders.text import agrees, stated
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.examples import passed, whole
from mlxreflect.methods.rollouts import attempt_prompt
from mlxreflect.prompts import messages as prompts
from mlxreflect.prompts import templates as texts
from mlxreflect.prompts.messages import parse_response
from mlxreflect.tasks import get_task
from mlxreflect.tasks.base import Task

MARKDOWN = (".md", ".markdown")
ADDED_TO = (*MARKDOWN, ".jsonl")  # endings; of tables and lists nothing can be put at the end
HEADING = re.compile(
    r"#{1,6}[ \t]+(question|answer)(?:[ \t]+#?[0-9]+)?[ \t]*(?:[:.][ \t]*(.*))?", re.IGNORECASE
)
TYPES = {"problem": str, "ground_truth": str, "working_out": str, "final_solution": str,
         "is_correct": bool}  # fmt: skip


@dataclass(frozen=True)
class Worked:
    """One worked solution. gold: the final answer, None where there is none; where: it stands.

    working: as it was found, with errors and their mending. tidied: a clean solution, or empty.
    right: whether it leads to the answer, as far as the file says.
    """

    question: str
    working: str
    gold: str | None
    where: str
    tidied: str = ""
    right: bool = True


def read_worked(path: Path) -> list[Worked]:
    """All of a file, in its order. Raises UserError naming the line that cannot be read."""
    if path.suffix.lower() in MARKDOWN:
        return list(read_markdown(path))
    return [worked_of(row.values, row.where) for row in read_file(path)]


def worked_of(values: dict[str, Any], where: str) -> Worked:
    given = {name: value for name, value in values.items() if value is not None}
    if isinstance(given.get("ground_truth"), (int, float)):
        given["ground_truth"] = str(given["ground_truth"])
    for name, kind in TYPES.items():
        if name in given and not isinstance(given[name], kind):
            raise UserError(f"{where}: {name} is no {kind.__name__}", "correct that row")
    if not given.get("problem", "").strip() or not given.get("working_out", "").strip():
        raise UserError(
            f"{where}: no problem or no working_out; the row has: {', '.join(values) or 'nothing'}",
            'each row holds "problem", "ground_truth" and "working_out"',
        )
    return Worked(
        given["problem"], given["working_out"], given.get("ground_truth", "").strip() or None,
        where, given.get("final_solution", ""), given.get("is_correct", True),
    )  # fmt: skip


def read_markdown(path: Path) -> Iterator[Worked]:
    with explained(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    if not any(map(str.strip, lines)):
        return
    heads = [(n, found[1].lower(), found[2] or "") for n, line in enumerate(lines)
             if (found := HEADING.fullmatch(line.strip()))]  # fmt: skip
    check_turns(path, [(n, kind) for n, kind, _ in heads])
    ends = [number for number, _, _ in heads[1:]] + [len(lines)]
    texts = ["\n".join([begun, *map(unescaped, lines[number + 1 : end])]).strip()
             for (number, _, begun), end in zip(heads, ends, strict=True)]  # fmt: skip
    for (number, kind, _), text in zip(heads, texts, strict=True):
        if not text:
            raise UserError(
                f"{path}, line {number + 1}: nothing stands below this {kind}",
                "write its text there, or delete the question with its answer",
            )
    for (number, _, _), question, answer in zip(heads[::2], texts[::2], texts[1::2], strict=True):
        yield Worked(
            question, answer, stated(answer) or None,
            f"{path}, line {number + 1}",
        )  # fmt: skip


def check_turns(path: Path, heads: list[tuple[int, str]]) -> None:
    """Raises UserError where headings are not questions and answers by turns. heads: line, kind."""
    kinds = [kind for _, kind in heads]
    for place, (number, kind) in enumerate(heads):
        if kind != ("question", "answer")[place % 2]:
            raise UserError(
                f"{path}, line {number + 1}: a second {kind} in a row",
                "write one `### Question` and one `### Answer` by turns",
            )
    if not kinds or len(kinds) % 2:
        at = (
            f", line {heads[-1][0] + 1}: a question without an answer" if kinds else ": no question"
        )
        raise UserError(f"{path}{at}", "write `### Question` and `### Answer` above the two texts")


def add_worked(path: Path, worked: Worked) -> None:
    """Put one at a file's end: a line of JSONL, or a block of Markdown. Raises UserError."""
    try:
        before = path.read_bytes().decode() if path.exists() else ""
        write_atomic(path, before + appended(before, worked, path.suffix.lower() in MARKDOWN))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give another file") from None


def appended(before: str, worked: Worked, markdown: bool) -> str:
    """What is written behind a file's text, whether or not that ends its last line."""
    ends = not before or before.endswith("\n")
    if not markdown:
        return ("" if ends else "\n") + dump_line(reasonset_row(worked))
    body = worked.working.strip()
    if worked.gold is not None and parse_response(body, style="direct").answer is None:
        body += f"\n<answer>{worked.gold}</answer>"
    gap = "" if not before.strip("\ufeff\r\n") else "\n" if ends else "\n\n"
    question = escaped(worked.question.strip())
    return f"{gap}### Question\n{question}\n\n### Answer\n{escaped(body)}\n"


def escaped(text: str) -> str:
    """A text no line of which is a heading."""
    return "\n".join(f"\\{line}" if is_like_heading(line) else line for line in text.splitlines())


def unescaped(line: str) -> str:
    return line[1:] if line.startswith("\\") and is_like_heading(line) else line


def is_like_heading(line: str) -> bool:
    """Whether it is a heading, or would be one without the backslashes that it begins with."""
    return HEADING.fullmatch(line.lstrip("\\").strip()) is not None


def reasonset_row(worked: Worked) -> dict[str, Any]:
    return {
        "problem": worked.question, "ground_truth": worked.gold, "working_out": worked.working,
        "final_solution": worked.tidied, "is_correct": worked.right, "iterations": 1,
        "error_description": "",
    }  # fmt: skip


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


REASONSET = "reasonset.jsonl"
TRIES = ("attempt", "continue", "rewrite", "retry")
REVIEWS = ("critique", "reflection")


def reasonset_rows(
    episode: Episode, examples: Sequence[Example]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, row), none where not one text was written. examples: made of this episode."""
    written = [turn for turn in episode.turns if turn.error is None]
    tries = [turn for turn in written if turn.role in TRIES]
    if not tries:
        return
    right = next((turn for turn in tries if passed(turn)), None)
    shown = right or tries[-1]
    tidied = next((t for t in reversed(written) if t.role == "integrate" and passed(t)), None)
    reviews = (t.text if t.role in REVIEWS else t.parsed for t in written
               if t.role in (*REVIEWS, "judge"))  # fmt: skip
    row = {
        "problem": whole(get_task(episode.problem.task).show(episode.problem)),
        "ground_truth": optional(episode.problem.gold),
        "working_out": whole(shown.text),
        "final_solution": whole(tidied.text) if tidied else optional(shown.parsed),
        "is_correct": right is not None,
        "iterations": tries.index(shown) + 1,
        "error_description": optional(next(filter(None, reviews), None)),
    }
    own = example_of(episode, examples, right)
    if own is not None:
        row = keep(own, row, [example for example in examples if example is not own])
    yield REASONSET, row


def example_of(episode: Episode, examples: Sequence[Example], right: Turn | None) -> Example | None:
    """What the row's working is to a trainer: the run's own example of it, or one made of it."""
    texts = [example for example in examples if example.kind == "sft"]
    if right is not None and (own := made_of(texts, "sft", right)):
        return own
    if texts:  # of another turn, such as the tidied one
        return texts[0]
    # REL explores under another prompt than its evaluation's.
    if right is not None and episode.recipe != "rel":
        return pairs.completion(episode, right)
    return next(iter(examples), None)


def worked_row(example: Example) -> dict[str, Any] | None:
    """The row of an example that no episode has: a person's worked solution."""
    if example.kind != "sft" or not example.prompt:
        return None
    text = example.completion or ""
    row = {
        "problem": whole(example.prompt[-1]["content"]),
        "ground_truth": optional(parse_response(text, style="direct").answer),
        "working_out": whole(text), "final_solution": None, "is_correct": True, "iterations": 1,
        "error_description": None,
    }  # fmt: skip
    return keep(example, row)


def made_of(examples: Sequence[Example], kind: str, *turns: Turn) -> Example | None:
    """The run's own example of some turns: as it was asked, masked and weighted there."""
    indices = [turn.index for turn in turns]
    found = (e for e in examples if e.kind == kind and e.source.get("turns") == indices)
    return next(found, None)


def optional(text: str | None) -> str | None:
    return None if text is None else whole(text)
