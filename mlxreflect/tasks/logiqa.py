"""LogiQA (Liu et al. 2020): multiple choice in logical reading; 7376 to learn from, 651 held out.

A row has context, query (or question), options and correct_option (an index from 0) or label (a
letter). The hub's own copy as Parquet is read: the data set itself is a script.
"""

from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.data.rows import Row, column, question_text
from mlxreflect.graders.choice import CHOICE_RULES
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.kinds import build, instruction, options_of, problem_of_row, show
from mlxreflect.tasks.table import Benchmark, column_of


def read(row: Row, config: TaskConfig) -> Problem:
    question = question_text(row, column_of(row, config, "question", ("query",)))
    if isinstance(context := row.values.get("context"), str) and context.strip():
        question = f"{context.strip()}\n{question}"
    answer = column_of(row, config, "answer", ("correct_option", "label"))
    raw = column(row, answer, "task.answer")
    if isinstance(raw, str) and raw.strip().isdecimal():
        raw = int(raw)
    try:
        return build("logiqa", question, raw, "choice", options=options_of(row.values))
    except UserError as error:
        raise UserError(f"{row.where}, column {answer!r}: {error.message}", error.hint) from None


def from_row(row: dict[str, Any]) -> Problem:
    return problem_of_row("logiqa", {**row, "answer_type": "choice"})


DATA = Benchmark("logiqa", "lucasmccabe/logiqa", read, revision="refs/convert/parquet")
TASK = Task(
    name="logiqa",
    load=DATA.load,
    instruction=instruction,
    show=show,
    grade=CHOICE_RULES["flexible"],
    from_row=from_row,
    hub=(DATA.hub,),
    rules=CHOICE_RULES,
)
