"""MATH-500 (Hendrycks et al. 2021; Lightman et al. 2023): competition problems, LaTeX answers.

The equality of two answers is Math-Verify's, of the extra `math`; see latex.py. There is nothing to
learn from here: the problems are an evaluation alone.
"""

from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.data.rows import Row, column, question_text
from mlxreflect.graders.latex import MATH_RULES
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.kinds import build, instruction, need_math, problem_of_row, show
from mlxreflect.tasks.table import Benchmark, column_of

META = ("subject", "level", "unique_id")


def read(row: Row, config: TaskConfig) -> Problem:
    question = question_text(row, column_of(row, config, "question", ("problem",)))
    meta = {name: row.values[name] for name in META if name in row.values}
    raw = column(row, config.answer, "task.answer")
    try:
        return build("math500", question, raw, "math", meta=meta)
    except UserError as error:
        raise UserError(f"{row.where}: {error.message}", error.hint) from None


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    need_math()
    return DATA.load(config, part, seed)


def from_row(row: dict[str, Any]) -> Problem:
    return problem_of_row("math500", {**row, "answer_type": "math"})


DATA = Benchmark("math500", "HuggingFaceH4/MATH-500", read, train="", test="test")
TASK = Task(
    name="math500",
    load=load,
    instruction=instruction,
    show=show,
    grade=MATH_RULES["flexible"],
    from_row=from_row,
    hub=(DATA.hub,),
    rules=MATH_RULES,
)
