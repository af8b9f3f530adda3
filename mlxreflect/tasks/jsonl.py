"""A person's own problems: a file or any hub data set, with a question and an answer.

answer_type: "number" compares exact rationals, "text" the words of the <answer> block, "f1" its
tokens, "choice" the letter, "math" LaTeX, "countdown" an expression of the row's numbers. "open" is
a question alone: which of two answers is better a critic judges. Parts are 70 % train, 10 % dev and
20 % heldout, by a hash of what is asked.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import SURROGATE, Problem, Verdict, make_problem
from mlxreflect.core.seeds import hash_of, part_of
from mlxreflect.data.rows import Row, column, fold, good_rows, question_text, rows_of
from mlxreflect.graders import MAX_TEXT, Grade, Grader
from mlxreflect.graders.choice import CHOICE_COLUMNS, CHOICE_RULES, gold_letter, read_choices
from mlxreflect.graders.countdown import COUNTDOWN_RULES
from mlxreflect.graders.latex import MATH_RULES, MAX_LATEX
from mlxreflect.graders.number import NUMBER_RULES
from mlxreflect.graders.numerals import MAX_DIGITS, read_gold
from mlxreflect.graders.text import F1_RULES, OPEN, OPEN_RULES, TEXT_RULES
from mlxreflect.prompts.parsing import parse_response
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.countdown import problem_of

# ---- the kinds of answer that a row can have ----------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One kind of answer.

    instruction: what the system prompt asks for. fault: what is wrong with a gold of another kind.
    example: how a row of `mlxreflect grade` may write its gold. rules: by name, the first one
    the headline, called "flexible" for every kind that has right answers.
    """

    instruction: str
    fault: str
    example: str
    rules: dict[str, Grader]


KINDS = {
    "number": Kind(
        "Answer the question. The final answer is a number only, without units or commas.",
        "is no number", '"gold": 42', NUMBER_RULES,
    ),
    "text": Kind(
        "Answer the question. The final answer is as short as it can be, without explanation.",
        "is no text", '"gold": "Paris"', TEXT_RULES,
    ),
    "f1": Kind(
        "Answer the question. The final answer is as short as it can be, without explanation.",
        "is no text", '"gold": "Paris"', F1_RULES,
    ),
    "choice": Kind(
        "Choose the right option. The final answer is its letter only.",
        "names no choice", '"gold": "B"', CHOICE_RULES,
    ),
    "math": Kind(
        "Solve the problem. The final answer is a number or an expression in LaTeX.",
        "is no short text", '"gold": "\\\\frac{1}{2}"', MATH_RULES,
    ),
    "countdown": Kind(
        "Combine the given numbers, each exactly once, with + - * / and parentheses so that the "
        "result is the target. The final answer is the expression alone.",
        "is no target", '"numbers": [3, 4, 5], "target": 35',
        {"flexible": COUNTDOWN_RULES["exact"], **COUNTDOWN_RULES},
    ),
    OPEN: Kind(
        "Answer the question. The final answer is all that whoever asked will read.",
        "is not graded", "no gold", OPEN_RULES,
    ),
}  # fmt: skip
GRADED = tuple(kind for kind in KINDS if kind != OPEN)


def golds_of(kind: str, raw: Any, options: Any) -> list[str]:
    """Returns a row's right answers, normalised; none where one of them is not of its kind."""
    found: list[str | None]
    if kind == "number":
        found = [read_gold(raw)]
    elif kind == "choice":
        found = [gold_letter(raw, options)]
    elif kind == "math":
        found = [short_text(raw, MAX_LATEX)]
    else:
        if isinstance(raw, dict) and isinstance(raw.get("text"), list):  # as in SQuAD
            raw = raw["text"]
        found = [short_text(one, MAX_TEXT) for one in (raw if isinstance(raw, list) else [raw])]
    golds = [gold for gold in found if gold is not None]
    return golds if len(golds) == len(found) else []


def short_text(raw: Any, most: int) -> str | None:
    fine = isinstance(raw, (str, int, float)) and not isinstance(raw, bool)
    return (str(raw).strip() or None) if fine and len(str(raw)) <= most else None


def build(
    task: str,
    question: str,
    raw: Any,
    kind: str,
    *,
    options: Any = None,
    meta: dict[str, Any] | None = None,
) -> Problem:
    """Returns a problem of its parts. Raises UserError, without file and line, for a bad answer."""
    if kind == "math":
        need_math()
    fields: dict[str, Any] = {"question": question}
    meta = dict(meta or {})
    if task == "jsonl":
        fields["answer_type"] = kind
    golds = golds_of(kind, raw, options)
    if len(golds) > 1:
        meta["golds"] = golds
    if kind == "choice" and (choices := read_choices(options)):
        fields["choices"] = choices
    if not golds:
        fault, mend = KINDS[kind].fault, "correct that row"
        if kind == "number" and sum(map(str.isdigit, str(raw)[:MAX_TEXT])) > MAX_DIGITS:
            fault = f"has more than {MAX_DIGITS} digits"
        elif kind == "number" and re.fullmatch(r"\s*[+-]?[0-9]+,[0-9]+\s*", str(raw)[:99]):
            mend = f"write it with a point, {str(raw).strip().replace(',', '.')}"
        raise UserError(
            f"the answer {str(raw)[:60]!r} {fault}",
            f"{mend}, or set task.answer to the column that holds the answer, or "
            f"task.answer_type to another kind than {kind!r}",
        )
    if isinstance(raw, str) and kind == "number" and "####" in raw:
        meta["solution"] = raw
    if SURROGATE.search(json.dumps([fields, golds, meta], ensure_ascii=False, default=str)):
        raise UserError("half a surrogate pair, which no tokenizer takes", "correct that row")
    return make_problem(task, fields, golds[0], meta)


def ungraded(task: str, row: dict[str, Any], question: str = "") -> Problem:
    """Returns the problem of a row without an answer, which a grader of one's own, or a critic,
    judges."""
    kind = row.get("answer_type", "text")
    fields = {"question": question or str(row.get("question", "")), "answer_type": kind}
    return make_problem(task, fields)


def with_row(problem: Problem, row: dict[str, Any]) -> Problem:
    """Returns the problem with all columns of its row, for a grader of one's own."""
    plain = json.loads(json.dumps(row, default=str))
    return replace(problem, meta={**problem.meta, "row": plain})


def build_countdown(question: str, row: dict[str, Any]) -> Problem:
    """Returns a Countdown problem in the words of a row. Raises UserError."""
    fields = problem_of(row).fields
    return make_problem("jsonl", {"question": question, "answer_type": "countdown", **fields})


def options_of(values: dict[str, Any]) -> Any:
    return next((values[name] for name in CHOICE_COLUMNS if name in values), None)


def problem_of_row(task: str, row: dict[str, Any]) -> Problem:
    """Returns a problem of a row of `mlxreflect grade`. Raises UserError."""
    kind = row.get("answer_type", "number")
    if not isinstance(kind, str) or kind not in GRADED:
        raise UserError(f"answer_type = {kind!r}", f"write one of: {', '.join(GRADED)}")
    question = str(row.get("question", ""))
    if kind == "countdown":
        return build_countdown(question, row)
    if kind == "math":
        need_math()
    try:
        return build(task, question, row.get("gold"), kind, options=options_of(row))
    except UserError as error:
        raise UserError(f"gold: {error.message}", f"write {KINDS[kind].example}") from None


def need_math() -> None:
    """Raises UserError without the extra that compares LaTeX."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "answers in LaTeX are compared by Math-Verify, which is not installed",
            "pip install 'mlxreflect[math]'",
        )


def by_kind(name: str) -> Grader:
    """Returns the rules of a name for whatever kind of answer the problem has."""

    def grade(problem: Problem, text: str, tags: str, style: str) -> Grade:
        kind = problem.fields["answer_type"]
        rules = KINDS[kind].rules.get(name)
        if rules is not None:
            return rules(problem, text, tags, style)
        form = parse_response(text, tags, style)
        return Grade(None, Verdict(False, form.format_ok, f"no rules {name!r} for a {kind}"))

    return grade


# ---- parts ---------------------------------------------------------------------------------------


def unique(problems: Iterable[Problem], key_of: Callable[[Problem], str]) -> dict[str, Problem]:
    """Returns one problem a key, in the order of first appearance.

    Of different problems with one key the smallest id stays, whatever the order of the rows.
    """
    kept: dict[str, Problem] = {}
    for problem in problems:
        key = key_of(problem)
        if key not in kept or problem.id < kept[key].id:
            kept[key] = problem
    return kept


def choose_part(problems: dict[str, Problem], part: str, source: str) -> list[Problem]:
    """Returns a part of the problems: "all" in the file's order, else in that of their hashes."""
    if not problems:
        raise UserError(f"{source}: no rows", "give a data file that holds problems")
    if part == "all":
        return list(problems.values())
    keys = [key for key in problems if part_of(key) == part]
    if not keys:
        rows = "row leaves" if len(problems) == 1 else "rows leave"
        raise UserError(
            f"{source}: its {len(problems)} {rows} none for the part {part!r} "
            "(70 % train, 10 % dev, 20 % heldout, by a hash of the question)",
            "add rows, or keep an evaluation file of your own and set eval.source to it",
        )
    return [problems[key] for key in sorted(keys, key=hash_of)]


# ---- the task ------------------------------------------------------------------------------------


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """Returns the problems of a part, at most `config.limit`; the seed changes nothing."""
    if not config.source:
        raise UserError(
            'task.name = "jsonl" needs data', "set task.source to a file or a hub data set"
        )
    rows = good_rows(rows_of(config.source, config.config, config.split, empty=""))
    problems = unique((read(row, config) for row in rows), key_of)
    return choose_part(problems, part, config.source)[: config.limit or None]


def read(row: Row, config: TaskConfig) -> Problem:
    """Returns the problem of a row. Raises UserError naming the row."""
    if not config.grader:
        return read_graded(row, config)
    kind, question = config.answer_type, question_text(row, config.question)
    if kind != "countdown" and config.answer not in row.values:
        found = ungraded("jsonl", {"answer_type": kind}, question)
    else:
        found = read_graded(row, config)
    return with_row(found, row.values)


def read_graded(row: Row, config: TaskConfig) -> Problem:
    question, kind = question_text(row, config.question), config.answer_type
    raw, where = None, row.where
    if kind == OPEN:
        return ungraded("jsonl", {"answer_type": kind}, question)
    if kind != "countdown":
        raw = column(row, config.answer, "task.answer")
        where = f"{row.where}, column {config.answer!r}"
    try:
        if kind == "countdown":
            return build_countdown(question, row.values)
        return build("jsonl", question, raw, kind, options=options_of(row.values))
    except UserError as error:
        raise UserError(f"{where}: {error.message}", error.hint) from None


def key_of(problem: Problem) -> str:
    """Returns what is asked, without differences of case, spacing and the order of options."""
    choices = sorted(fold(text) for text in problem.fields.get("choices", {}).values())
    return "\n".join([fold(problem.fields["question"]), *choices])


def instruction(problem: Problem) -> str:
    return KINDS[problem.fields["answer_type"]].instruction


def show(problem: Problem) -> str:
    choices = problem.fields.get("choices", {})
    lines = [f"{letter}. {text}" for letter, text in choices.items()]
    return "\n".join([problem.fields["question"], *lines])


# Every name that some kind of answer has; "flexible", the headline of what is graded, is the first.
NAMES = dict.fromkeys(name for kind in KINDS.values() for name in kind.rules)
TASK = Task(
    name="jsonl",
    load=load,
    instruction=instruction,
    show=show,
    from_row=partial(problem_of_row, "jsonl"),
    rules={name: by_kind(name) for name in NAMES},
)
