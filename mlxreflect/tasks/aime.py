"""AIME 2024 and 2025: 60 competition problems, each answered by a whole number from 0 to 999.

task.config = "2024" or "2025" takes one year; both together are the default. There is nothing to
learn from here: the problems are an evaluation alone. With so few of them, draw several samples.
"""

from dataclasses import replace

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.data.rows import Row, column, is_path, question_text
from mlxreflect.graders.number import NUMBER_RULES, read_gold
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.gsm8k import show
from mlxreflect.tasks.table import Benchmark, column_of, row_reader

LARGEST = 999
META = ("ID", "id", "year", "url")


def read(row: Row, config: TaskConfig) -> Problem:
    question = question_text(row, column_of(row, config, "question", ("Problem", "problem")))
    answer = column_of(row, config, "answer", ("Answer",))
    raw = column(row, answer, "task.answer")
    gold = read_gold(raw)
    if gold is None or not gold.isdigit() or int(gold) > LARGEST:
        raise UserError(
            f"{row.where}: column {answer!r} is no whole number from 0 to 999: {str(raw)[:60]!r}",
            "correct that row, or set task.answer to the column that holds the answer",
        )
    meta = {name.lower(): str(row.values[name]) for name in META if name in row.values}
    return make_problem("aime", {"question": question}, gold, meta)


def instruction(problem: Problem) -> str:
    return "Solve the problem. The final answer is a whole number from 0 to 999."


# The two that lm-evaluation-harness reads; 2024's is the one in which wrong problems were mended.
YEARS = {
    "2024": Benchmark("aime", "Maxwell-Jia/AIME_2024", read, train="", test="train"),
    "2025": Benchmark("aime", "math-ai/aime25", read, train="", test="test"),
}


def load(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """The problems of one year or, of the hub, of both; `config.source` names a file instead."""
    if config.source:
        split = "test" if is_path(config.source) else config.split
        return replace(YEARS["2025"], test=split).load(config, part, seed)
    years = [config.config] if config.config else list(YEARS)
    if not set(years) <= set(YEARS):
        raise UserError(
            f"task.config = {config.config!r}: no year of the task aime",
            f"set task.config to one of: {', '.join(YEARS)}; or leave it out for both",
        )
    plain = config.model_copy(update={"config": "", "limit": 0})
    found = [problem for year in years for problem in YEARS[year].load(plain, part, seed)]
    return found[: config.limit or None]


TASK = Task(
    name="aime",
    load=load,
    instruction=instruction,
    show=show,
    grade=NUMBER_RULES["flexible"],
    from_row=row_reader("aime"),
    hub=tuple(year.hub for year in YEARS.values()),
    rules=NUMBER_RULES,
)
