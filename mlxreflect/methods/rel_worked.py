"""People's worked solutions for REL: read and written, checked, trained on, and exported.

Markdown has blocks of `### Question` and `### Answer`, which may have a number and, after a colon,
begin the text; the answer's text ends in <answer>…</answer>. A backslash before what would read as
a heading is no part of the text. JSONL has the fields of ReasonSet (arXiv 2412.04645).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import dump_line, write_atomic
from mlxreflect.core.records import Episode, Example, Problem, Turn
from mlxreflect.data.forms import whole
from mlxreflect.data.leaks import leak
from mlxreflect.data.matching import Index, find, normal_words, whole_key
from mlxreflect.data.rows import explained, fold, local_path, read_file
from mlxreflect.graders.text import agrees, stated
from mlxreflect.methods.base import Rows, Try, passed
from mlxreflect.prompts.parsing import ANSWER, TAGS, parse_response, plain_solution, thought_of

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe
    from mlxreflect.tasks.base import Task

Row = dict[str, Any]

MARKDOWN = (".md", ".markdown")
KINDS = ("question", "answer")
HEADING = re.compile(
    r"#{1,6}[ \t]+(question|answer)(?:[ \t]+#?[0-9]+)?[ \t]*(?:[:.][ \t]*(.*))?", re.IGNORECASE
)
TYPES = {"problem": str, "ground_truth": str, "working_out": str, "final_solution": str,
         "is_correct": bool}  # fmt: skip
REASONSET = "reasonset.jsonl"
TRIES = ("attempt", "continue", "rewrite", "retry")
REVIEWS = ("critique", "reflection")
CUT = "------ >8 ------ your working stands above this line; below it is the problem ------"


@dataclass(frozen=True)
class Worked:
    """One worked solution. gold: the final answer, or None. where: its file and line.

    working: the text as it was found, with errors and their mending. tidied: a clean solution, or
    empty. right: false where the file itself says that it is wrong.
    """

    question: str
    working: str
    gold: str | None
    where: str
    tidied: str = ""
    right: bool = True


# ---- files ---------------------------------------------------------------------------------------


def read_worked(path: Path) -> list[Worked]:
    """Returns all of a file, in its order. Raises UserError naming the line that is no such."""
    if path.suffix.lower() in MARKDOWN:
        return list(read_markdown(path))
    return [from_row(row.values, row.where) for row in read_file(path)]


def from_row(values: Row, where: str) -> Worked:
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
    """Yields each question with its answer. Raises UserError where they do not take turns."""
    with explained(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    blocks: list[tuple[str, str, list[str]]] = []  # kind, place and lines
    for number, line in enumerate(lines, 1):
        if head := HEADING.fullmatch(line.strip()):
            blocks.append((head[1].lower(), f"{path}, line {number}", [head[2] or ""]))
        elif blocks:
            escaped = line.startswith("\\") and is_like_heading(line)
            blocks[-1][2].append(line[1:] if escaped else line)
    by_turns = "write one `### Question` and one `### Answer` by turns"
    for place, (kind, where, _) in enumerate(blocks):
        if kind != KINDS[place % 2]:
            raise UserError(f"{where}: a second {kind} in a row", by_turns)
    if len(blocks) % 2:
        raise UserError(f"{blocks[-1][1]}: a question without an answer", by_turns)
    if not blocks and any(map(str.strip, lines)):
        raise UserError(f"{path}: no question", by_turns)
    said = ["\n".join(held).strip() for _, _, held in blocks]
    for (kind, where, _), text in zip(blocks, said, strict=True):
        if not text:
            raise UserError(
                f"{where}: nothing stands below this {kind}",
                "write its text there, or delete the question with its answer",
            )
    for (_, where, _), question, answer in zip(blocks[::2], said[::2], said[1::2], strict=True):
        yield Worked(question, answer, stated(answer) or None, where)


def add_worked(path: Path, worked: Worked) -> None:
    """Puts one at a file's end: a line of JSONL, or a block of Markdown. Raises UserError."""
    try:
        before = path.read_bytes().decode() if path.exists() else ""
        write_atomic(path, before + appended(before, worked, path.suffix.lower() in MARKDOWN))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give another file") from None


def appended(before: str, worked: Worked, markdown: bool) -> str:
    """Returns what is written behind a file's text, whether or not that ends its last line."""
    ends = not before or before.endswith("\n")
    if not markdown:
        row = reasonset_row(worked.question, worked.gold, worked.working, worked.tidied,
                            right=worked.right, error="")  # fmt: skip
        return ("" if ends else "\n") + dump_line(row)
    body = worked.working.strip()
    if worked.gold is not None and parse_response(body, style="direct").answer is None:
        body += f"\n<answer>{worked.gold}</answer>"
    gap = "" if not before.strip("\ufeff\r\n") else "\n" if ends else "\n\n"
    question = escaped(worked.question.strip())
    return f"{gap}### Question\n{question}\n\n### Answer\n{escaped(body)}\n"


def escaped(text: str) -> str:
    """Returns a text no line of which is a heading."""
    return "\n".join(f"\\{line}" if is_like_heading(line) else line for line in text.splitlines())


def is_like_heading(line: str) -> bool:
    """Returns true for a heading, and for one behind backslashes."""
    return HEADING.fullmatch(line.lstrip("\\").strip()) is not None


# ---- training examples ---------------------------------------------------------------------------


def by_people(used: int, left_out: Mapping[str, int]) -> str:
    """Returns how many worked solutions are used, and why others are not."""
    why = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
    return f"{used} by people" + (f" ({sum(left_out.values())} left out; {why})" if why else "")


def human_examples(
    recipe: Recipe, problems: Sequence[Problem]
) -> tuple[list[Example], dict[str, int]]:
    """Returns examples of `rel.human`, prompted as an evaluation prompts, and reason → left out.

    problems: the run's, at least one. Raises UserError for a file that cannot be read.
    """
    from mlxreflect.evaluation.contamination import index_for
    from mlxreflect.methods.session import attempt_prompt
    from mlxreflect.tasks import find_task

    if not recipe.rel.human:
        return [], {}
    evaluations = index_for(recipe)
    task = find_task(recipe.task)
    known = {fold(task.show(problem)): problem for problem in problems}
    examples: dict[tuple[str, str], Example] = {}
    left_out: Counter[str] = Counter()
    for worked in read_human(recipe):
        problem = known.get(fold(worked.question))
        if worked.gold is None and problem:
            worked = replace(worked, gold=task.gold(problem))
        text = solution(worked, recipe)
        key = whole_key(normal_words(worked.question)), " ".join(text.split())
        reason = fault(worked, problem, text, recipe, task, evaluations)
        if not reason and key in examples:
            reason = "it is there twice"
        if reason:
            left_out[reason] += 1
            continue
        prompt = attempt_prompt(recipe, task, problem or problems[0])
        if problem is None:
            prompt = [*prompt[:-1], {**prompt[-1], "content": worked.question.strip()}]
        source = {"human": worked.where, "problem": problem.id if problem else None}
        examples[key] = Example(
            "sft", prompt, completion=text, weight=recipe.rel.human_weight, source=source
        )
    return list(examples.values()), dict(left_out)


def read_human(recipe: Recipe) -> list[Worked]:
    """Returns the worked solutions of `rel.human`. Raises UserError where there is none."""
    path = local_path(recipe.rel.human)
    found = read_worked(path)
    if not found:
        raise UserError(
            f"{path}: no worked solution is in it",
            "write one with `mlxreflect annotate`, or leave rel.human out",
        )
    return found


def solution(worked: Worked, recipe: Recipe) -> str:
    """Returns the text to imitate, unchanged where it has the format asked for."""
    text = (worked.tidied if recipe.rel.target == "tidied" else "") or worked.working
    text = plain_solution(text)
    if parse_response(text, recipe.prompt.tags, recipe.prompt.style).format_ok:
        return text
    start, end = ANSWER
    own = stated(text)  # right or wrong, it is what was said
    if start not in text and (own is None or agrees(own, worked.gold or "")):
        own = worked.gold
    thought = text.rpartition(start)[0] if start in text else text
    return thought_and_answer(thought, f"{start}{own or ''}{end}", recipe)


def thought_and_answer(thought: str, answer: str, recipe: Recipe) -> str:
    start, end = TAGS[recipe.prompt.tags]
    return f"{start}\n{thought.strip()}\n{end}\n{answer}"


def fault(
    worked: Worked, problem: Problem | None, text: str, recipe: Recipe, task: Task,
    evaluations: Index | None,
) -> str:  # fmt: skip
    """Returns why a worked solution is not trained on; empty where it is.

    problem: the run's with this question, whose grader decides. Where there is none, the answer
    has to be the ground truth beside it.
    """
    tags, style = recipe.prompt.tags, recipe.prompt.style
    if worked.gold is None and problem is None:
        return "it has no answer"
    if not worked.right:
        return "it says itself that it is wrong"
    parsed = parse_response(text, tags, style)
    if not parsed.format_ok:
        return "it does not fit the format"
    if reason := leak(text, parsed.spans, style, worked.question):
        return reason
    if evaluations and find(evaluations, [worked.question], [worked.question]):
        return "its question occurs in the evaluation"
    if problem:
        right = task.grade(problem, text, tags, style).verdict.passed
        return "" if right else "the grader calls it wrong"
    right = agrees(parsed.answer or "", worked.gold or "")
    return "" if right else "its answer is not its ground_truth"


# ---- annotate ------------------------------------------------------------------------------------


def annotate_problem(
    recipe: Recipe, file: Path, problem_id: str, notes_file: Path | None, *, expand: bool,
    tell: Callable[[str], None],
) -> Row:  # fmt: skip
    """Has a person work a problem out, and adds what is right to `file`; returns what came of it.

    problem_id: its first characters; empty for the next that is not worked. notes_file: holds the
    working; None opens an editor. expand: the critic writes the working out. tell: is told where
    a working is that was not added. Raises UserError.
    """
    from mlxreflect.evaluation.contamination import clean
    from mlxreflect.tasks import find_task

    task = find_task(recipe.task)
    make_place(file)
    done = {fold(worked.question) for worked in (read_worked(file) if file.exists() else [])}
    problem = choose(list(clean(recipe).problems.values()), problem_id, done, task)
    draft = None if notes_file else file.with_name(f"{file.stem}-{problem.id}.txt")
    added = False
    try:
        notes = write_notes(task.show(problem), draft) if draft else read_notes(notes_file or file)
        turn = written_out(recipe, task, problem, notes, expand)
        if passed(turn):
            thought = thought_of(turn.text, recipe.prompt.tags).strip()
            gold = task.gold(problem) or turn.parsed
            add_worked(file, Worked(task.show(problem), thought, gold, "annotate"))
            added = True
    finally:  # whatever became of it, a person wrote it
        if draft and added:
            draft.unlink(missing_ok=True)
        elif draft and draft.exists():
            tell(f"your working is in {draft}; the same command opens it again")
    reason = turn.error or (turn.verdict.reason if turn.verdict else "")
    return {"problem": problem.id, "file": str(file), "kept": added, "reason": reason,
            "text": turn.text}  # fmt: skip


def make_place(file: Path) -> None:
    """Raises UserError where the file cannot be added to, before anyone writes a line for it."""
    if file.suffix.lower() not in (*MARKDOWN, ".jsonl"):
        raise UserError(
            f"{file}: worked solutions are added to Markdown and JSONL alone",
            "give a file that ends in .md or .jsonl",
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", "give another file") from None


def choose(problems: list[Problem], problem_id: str, done: set[str], task: Task) -> Problem:
    """Returns the problem of an id, or the first that is not worked yet. done: folded questions."""
    if problem_id:
        named = [p for p in problems if p.id.startswith(problem_id)]
        if len(named) == 1:
            return named[0]
        how = "no training problem" if not named else f"{len(named)} training problems"
        raise UserError(
            f"--problem {problem_id}: {how} of this recipe with such an id",
            f"give one in full, such as {problems[0].id}, or leave it out for the next",
        )
    for problem in problems:
        if fold(task.show(problem)) not in done:
            return problem
    raise UserError(
        "every training problem of this recipe is worked already",
        "raise task.limit, or give one again by its --problem",
    )


def read_notes(path: Path) -> str:
    """Returns a file's text above the line. Raises UserError where there is none."""
    try:
        notes = above_line(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--working {path}: cannot be read ({error})", "give a file of UTF-8 text"
        ) from None
    if not notes:
        raise UserError(f"--working {path}: nothing is written in it", "write your working there")
    return notes


def above_line(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig").partition(CUT)[0].strip()


def write_notes(question: str, draft: Path) -> str:
    """Returns what a person writes in $VISUAL or $EDITOR, which stays in `draft`.

    A draft that is there is opened again. Raises UserError where nothing was written.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    blank = f"\n\n{CUT}\n{question}\n"
    try:
        if not draft.exists():
            draft.write_text(blank, encoding="utf-8")
        subprocess.run([*shlex.split(editor), str(draft)], check=True)
        notes = above_line(draft)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"the editor {editor!r} could not be used ({error})",
            "set EDITOR to one that is there, or give --working FILE",
        ) from None
    finally:
        if draft.exists() and draft.read_bytes() == blank.encode():
            draft.unlink()
    if not notes:
        draft.unlink(missing_ok=True)
        raise UserError(
            "no working was written", "write it above the line and save, or give --working FILE"
        )
    return notes


def written_out(recipe: Recipe, task: Task, problem: Problem, notes: str, expand: bool) -> Turn:
    """Returns the notes as a graded solution, by the critic or as they are."""
    from mlxreflect.critics import open_critic
    from mlxreflect.methods.session import graded, make_call, turn_of

    if expand:
        at, config = Try("basic", 0, "annotate"), recipe.critic.tier("basic")
        with closing(open_critic(config, recipe.task.name, "annotate")) as critic:
            critic.preflight()
            call = make_call(recipe, task, "expand", problem, at, notes=notes)
            (reply,) = critic.ask([call])
        turn = turn_of(call, reply, critic.actor, None)
    else:
        parsed = parse_response(notes, recipe.prompt.tags, recipe.prompt.style)
        text = notes
        if not parsed.format_ok and ANSWER[0] in notes:
            thought, opening, answer = notes.rpartition(ANSWER[0])
            text = thought_and_answer(thought, opening + answer.strip(), recipe)
        fault = "no <answer>…</answer> at its end" if parsed.answer is None else None
        turn = Turn(-1, None, "attempt", "human", [], text, error=fault)
    return graded(recipe, task, problem, turn)


# ---- ReasonSet -----------------------------------------------------------------------------------


def reasonset_rows(episode: Episode) -> Rows:
    """Yields (file, row) of an episode: a problem and its working, messy and all.

    working_out is the first text that was right, as it was written; of an unsolved problem the last
    one. final_solution is its tidied form where someone made one, else its answer. iterations are
    the texts it took. error_description is the first critique, or what a judge said was wrong.
    Nothing is yielded where not one text was written.
    """
    from mlxreflect.tasks import get_task

    written = [turn for turn in episode.turns if turn.error is None]
    tries = [turn for turn in written if turn.role in TRIES]
    if not tries:
        return
    right = next(filter(passed, tries), None)
    shown = right or tries[-1]
    tidied = next((t for t in reversed(written) if t.role == "integrate" and passed(t)), None)
    reviews = (t.text if t.role in REVIEWS else t.parsed for t in written
               if t.role in (*REVIEWS, "judge"))  # fmt: skip
    yield REASONSET, reasonset_row(
        get_task(episode.problem.task).show(episode.problem), episode.problem.gold, shown.text,
        tidied.text if tidied else shown.parsed, right=right is not None,
        tries=tries.index(shown) + 1, error=next(filter(None, reviews), None),
    )  # fmt: skip


def worked_rows(example: Example) -> Rows:
    """Yields the row of a person's worked solution, which no episode has."""
    if "human" in example.source and example.kind == "sft" and example.prompt:
        text = example.completion or ""
        gold = parse_response(text, style="direct").answer
        yield REASONSET, reasonset_row(example.prompt[-1]["content"], gold, text, None)


def reasonset_row(
    problem: str, gold: str | None, working: str, tidied: str | None, *, right: bool = True,
    tries: int = 1, error: str | None = None,
) -> Row:  # fmt: skip
    texts = {"problem": problem, "ground_truth": gold, "working_out": working,
             "final_solution": tidied}  # fmt: skip
    return {
        **{name: None if text is None else whole(text) for name, text in texts.items()},
        "is_correct": right, "iterations": tries,
        "error_description": None if error is None else whole(error),
    }  # fmt: skip
