"""The user's own problems: JSONL, JSON, CSV or any hub data set, with a question and an answer.

answer_type: "number" compares exact rationals, "text" the words of the <answer> block, "choice"
the letter. Parts are 70 % train, 10 % dev and 20 % heldout, by a hash of what is asked.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from mlxreflect.errors import UserError
from mlxreflect.prompts import parse_response
from mlxreflect.records import Problem, Verdict, make_problem
from mlxreflect.tables import TaskConfig
from mlxreflect.tasks.base import Grade, Task
from mlxreflect.tasks.choices import CHOICE_COLUMNS, gold_letter, read_choices, read_letter
from mlxreflect.tasks.numbers import grade_number, read_gold
from mlxreflect.tasks.rows import (
    Row,
    choose_part,
    column,
    fold,
    is_path,
    local_path,
    question_text,
    read_file,
    read_hub,
    unique,
)
from mlxreflect.tasks.text import MAX_TEXT, final_part, same_text

KINDS = {
    "number": "Answer the question. The final answer is a number only, without units or commas.",
    "text": "Answer the question. The final answer is as short as it can be, without explanation.",
    "choice": "Choose the right option. The final answer is its letter only.",
}
HINT = "check the name, or connect to the internet once so that `datasets` can cache it"


def build(question: str, raw: Any, kind: str, options: Any) -> Problem:
    """A problem from its parts. Raises UserError, without file and line, for a bad answer."""
    fields: dict[str, Any] = {"question": question, "answer_type": kind}
    if kind == "number":
        gold = read_gold(raw)
    elif kind == "text":
        fine = isinstance(raw, (str, int, float)) and len(str(raw)) <= MAX_TEXT
        gold = str(raw).strip() or None if fine else None
    else:
        gold = gold_letter(raw, options)
        if choices := read_choices(options):
            fields["choices"] = choices
    if gold is None:
        fault = {
            "number": "is no number",
            "text": "is no text",
            "choice": "names no choice",
        }[kind]
        raise UserError(
            f"the answer {str(raw)[:60]!r} {fault}",
            "correct that row, or set task.answer to the column that holds the answer, or "
            f"task.answer_type to another kind than {kind!r}",
        )
    worked = isinstance(raw, str) and kind == "number" and "####" in raw
    return make_problem("jsonl", fields, gold, {"solution": raw} if worked else {})


def key_of(problem: Problem) -> str:
    """What is asked, without differences of case, spacing and the order of options."""
    choices = sorted(fold(text) for text in problem.fields.get("choices", {}).values())
    return "\n".join([fold(problem.fields["question"]), *choices])


def problems_of(rows: Iterable[Row], config: TaskConfig) -> Iterator[tuple[str, Problem]]:
    for row in rows:
        question = question_text(row, config.question)
        raw = column(row, config.answer, "task.answer")
        try:
            problem = build(question, raw, config.answer_type, options_of(row.values))
        except UserError as error:
            where = f"{row.where}, column {config.answer!r}"
            raise UserError(f"{where}: {error.message}", error.hint) from None
        yield key_of(problem), problem


def options_of(values: dict[str, Any]) -> Any:
    return next((values[name] for name in CHOICE_COLUMNS if name in values), None)


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """The problems of a part, at most `config.limit`; the seed changes nothing."""
    if not config.source:
        raise UserError(
            'task.name = "jsonl" needs data', "set task.source to a file or a hub data set"
        )
    if is_path(config.source):
        rows: Iterable[Row] = read_file(local_path(config.source))
    else:
        rows = read_hub(config.source, config.config, config.split, HINT)
    found = choose_part(unique(problems_of(rows, config)), part, config.source)
    return found[: config.limit or None]


def instruction(problem: Problem) -> str:
    return KINDS[problem.fields["answer_type"]]


def show(problem: Problem) -> str:
    choices = problem.fields.get("choices", {})
    lines = [f"{letter}. {text}" for letter, text in choices.items()]
    return "\n".join([problem.fields["question"], *lines])


def gold(problem: Problem) -> str | None:
    return problem.gold


def grade(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
    kind = problem.fields["answer_type"]
    if kind == "number":
        return grade_number(problem.gold, text, tags, style)
    form = parse_response(text, tags, style)
    # final_part has left the thought behind, so no think tag is due there any more.
    answer = parse_response(final_part(text, tags), tags, "direct").answer
    if not answer:
        return Grade(None, Verdict(False, form.format_ok, "no answer in an <answer> block"))
    if kind == "choice":
        parsed = read_letter(answer, problem.fields.get("choices", {}))
        if parsed is None:
            reason = f"no single choice in {answer[:80]!r}"
            return Grade(None, Verdict(False, form.format_ok, reason))
        correct = parsed == problem.gold
    else:
        parsed = answer[:MAX_TEXT]
        correct = same_text(answer, problem.gold or "")
    expected = (problem.gold or "")[:80]
    reason = form.reason if correct else f"expected {expected}, got {parsed[:80]}"
    return Grade(parsed, Verdict(correct, form.format_ok, reason))


def from_row(row: dict[str, Any]) -> Problem:
    kind = row.get("answer_type", "number")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"answer_type = {kind!r}", f"write one of: {', '.join(KINDS)}")
    try:
        return build(str(row.get("question", "")), row.get("gold"), kind, options_of(row))
    except UserError as error:
        hint = {"number": '"gold": 42', "text": '"gold": "Paris"', "choice": '"gold": "B"'}[kind]
        raise UserError(f"gold: {error.message}", f"write {hint}") from None


TASK = Task(
    name="jsonl",
    load=load,
    instruction=instruction,
    show=show,
    gold=gold,
    grade=grade,
    from_row=from_row,
)
