"""Grading other people's responses: rows in, verdicts out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxreflect.errors import UserError
from mlxreflect.tasks import find_rules, get_task
from mlxreflect.tasks.rows import Row, read_file


def grade_file(
    task_name: str, path: Path, rules: str = "", tags: str = "think", style: str = "thinking"
) -> Iterator[dict[str, Any]]:
    """Grade the rows {"id", "response", …} of a JSONL file, one at a time.

    What is expected stands in the row: "gold" (for the task jsonl with "answer_type" and
    "choices"), or "numbers" and "target" for countdown. rules: a set of the task's. Yields {"id",
    "correct", "format_ok", "parsed", "reason"}, and "score" where the rules have one. Raises
    UserError naming file and line of a row that cannot be graded.
    """
    task = get_task(task_name)
    find_rules(task, rules)
    for row in read_file(Path(path)):
        name, response = field(row, "id"), field(row, "response")
        if not isinstance(response, str):
            raise UserError(f"{row.where}: response is no text", 'write "response": "…"')
        try:
            problem = task.from_row(row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error.message}", error.hint) from None
        _, grader = find_rules(task, rules, problem.fields.get("answer_type", ""))
        grade = grader(problem, response, tags, style)
        score = {} if grade.score is None else {"score": grade.score}
        yield {
            "id": name,
            "correct": grade.verdict.correct,
            "format_ok": grade.verdict.format_ok,
            "parsed": grade.parsed,
            "reason": grade.verdict.reason,
            **score,
        }


def field(row: Row, name: str) -> Any:
    if name not in row.values:
        raise UserError(
            f"{row.where}: no {name!r}; the row has: {', '.join(row.values) or 'nothing'}",
            'each row holds "id", "response" and what is expected, such as "gold"',
        )
    return row.values[name]
