"""GSM8K (Cobbe et al. 2021): grade-school math word problems whose answer is a number.

The data set comes from the hub, from a folder with train.jsonl and test.jsonl, or from one file.
"""

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.data.rows import Row, column, question_text
from mlxreflect.graders.number import NUMBER_RULES, read_gold
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.table import Benchmark, row_reader


def read(row: Row, config: TaskConfig) -> Problem:
    question = question_text(row, config.question)
    raw = column(row, config.answer, "task.answer")
    gold = read_gold(raw)
    if gold is None:
        raise UserError(
            f"{row.where}: column {config.answer!r} ends in no number: {str(raw)[-60:]!r}",
            'end the answer with "#### 42", or set task.answer to the right column',
        )
    return make_problem("gsm8k", {"question": question}, gold, {"solution": str(raw)})


def instruction(problem: Problem) -> str:
    return (
        "Solve the math word problem. The final answer is a number only, without units and without "
        "commas."
    )


def show(problem: Problem) -> str:
    return str(problem.fields["question"])


DATA = Benchmark("gsm8k", "openai/gsm8k", read, config="main")
TASK = Task(
    name="gsm8k",
    load=DATA.load,
    instruction=instruction,
    show=show,
    grade=NUMBER_RULES["flexible"],
    from_row=row_reader("gsm8k"),
    hub=(DATA.hub,),
    rules=NUMBER_RULES,
)
