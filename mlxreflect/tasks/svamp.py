"""SVAMP (Patel et al. 2021): elementary word problems in varied wording, 700 and 300 held out.

A row has Body, Question, Equation and Answer; the question asked is body and question.
"""

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.data.rows import Row, column, question_text
from mlxreflect.graders.number import NUMBER_RULES, read_gold
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.gsm8k import instruction, show
from mlxreflect.tasks.table import Benchmark, column_of, row_reader


def read(row: Row, config: TaskConfig) -> Problem:
    name = column_of(row, config, "question", ("question_concat", "Question"))
    question = question_text(row, name)
    if name == "Question" and isinstance(body := row.values.get("Body"), str):
        question = f"{body.strip()} {question}"
    answer = column_of(row, config, "answer", ("Answer",))
    raw = column(row, answer, "task.answer")
    gold = read_gold(raw)
    if gold is None:
        raise UserError(
            f"{row.where}: column {answer!r} is no number: {str(raw)[:60]!r}",
            "correct that row, or set task.answer to the column that holds the answer",
        )
    equation = row.values.get("Equation")
    meta = {"solution": f"{equation} = {gold}"} if isinstance(equation, str) else {}
    return make_problem("svamp", {"question": " ".join(question.split())}, gold, meta)


DATA = Benchmark("svamp", "ChilleD/SVAMP", read)
TASK = Task(
    name="svamp",
    load=DATA.load,
    instruction=instruction,
    show=show,
    grade=NUMBER_RULES["flexible"],
    from_row=row_reader("svamp"),
    hub=(DATA.hub,),
    rules=NUMBER_RULES,
)
