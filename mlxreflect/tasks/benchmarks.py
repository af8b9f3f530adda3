"""Benchmarks: tables of problems with their official splits, or a file of the same columns.

Of the hub and of a folder "heldout" and "all" are the test split, "dev" is 5 % of the training
split by a hash of the problem, "train" the rest; a single file is split by that hash alone. A
benchmark without a training split has no other part than its problems.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from mlxreflect.config.schema import TaskConfig
from mlxreflect.config.toml import local_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.core.seeds import part_of
from mlxreflect.data.rows import Row, column, good_rows, is_path, question_text, read_file, rows_of
from mlxreflect.graders import box
from mlxreflect.graders.numerals import read_gold, row_gold
from mlxreflect.tasks.base import Task
from mlxreflect.tasks.jsonl import (
    KINDS,
    build,
    choose_part,
    key_of,
    need_math,
    options_of,
    problem_of_row,
    show,
    unique,
)

TRAINING_PARTS = {"dev": 5, "train": 95}  # of an official training split
DEFAULTS = TaskConfig()
Meta = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: where its rows are, and how one is read.

    kind: of its answers, one of KINDS. config, revision: of the hub data set. train: the split to
    learn from, "" where there is none. questions, answers: names that its columns have; a recipe
    may give others. text(row, column): the problem's text. gold(cell): the answer in the answer's
    column. choices: the column of the options, where it has a name of its own. meta(row, answer):
    what is kept beside it. most: the largest number that is an answer, 0 for any.
    """

    name: str
    hub: str
    kind: str
    config: str = ""
    revision: str = ""
    train: str = "train"
    test: str = "test"
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    text: Callable[[Row, str], str] = question_text
    gold: Callable[[Any], Any] = lambda raw: raw
    choices: str = ""
    meta: Callable[[Row, Any], Meta] = lambda row, raw: {}
    most: int = 0

    def load(self, config: TaskConfig, part: str, seed: int) -> list[Problem]:
        """Returns the problems of a part, at most `config.limit`; the seed changes nothing."""
        if self.kind == "math":
            need_math()
        return self.part(config, part)[: config.limit or None]

    def part(self, config: TaskConfig, part: str) -> list[Problem]:
        if not self.train and part in ("train", "dev"):
            raise UserError(
                f"the task {self.name} is an evaluation alone: it has no part {part!r}",
                "train on another task, and name this one in eval.spec",
            )
        path = local_path(config.source)
        if config.source and is_path(config.source) and not path.is_dir():
            found = self.problems(read_file(path), config)
            return choose_part(found, part if self.train else "all", config.source)
        test = self.official(config, self.test)
        if part in ("heldout", "all"):
            return list(test.values())
        return [
            problem
            for key, problem in self.official(config, self.train).items()
            if key not in test and part_of(key, TRAINING_PARTS) == part
        ]

    def official(self, config: TaskConfig, split: str) -> dict[str, Problem]:
        """Returns the problems of an official split, of a folder or the hub."""
        files = " and ".join(f"{name}.jsonl" for name in (self.train, self.test) if name)
        hint = (
            "connect to the internet once so that it is cached, or set task.source to a folder "
            f"that holds {files}"
        )
        rows = rows_of(
            config.source or self.hub, config.config or self.config, split, hint,
            revision="" if config.source else self.revision, empty="",
        )  # fmt: skip
        return self.problems(good_rows(rows), config)

    def problems(self, rows: Iterable[Row], config: TaskConfig) -> dict[str, Problem]:
        """Returns the problems of rows by normalised text, duplicates dropped."""
        return unique((self.read(row, config) for row in rows), key_of)

    def read(self, row: Row, config: TaskConfig) -> Problem:
        """Returns the problem of a row. Raises UserError naming the row."""
        question = self.text(row, column_of(row, config, "question", self.questions))
        answer = column_of(row, config, "answer", self.answers)
        cell = column(row, answer, "task.answer")
        try:
            raw = self.gold(cell)
            gold = (read_gold(raw) or "") if self.most else ""
            if self.most and not (gold.isdigit() and int(gold) <= self.most):
                fault = f"the answer {str(raw)[:60]!r} is no whole number from 0 to {self.most}"
                raise UserError(fault, "")
            if self.kind == "choice" and isinstance(raw, str) and raw.strip().isdecimal():
                raw = int(raw)
            options = row.values.get(self.choices) or options_of(row.values)
            meta = self.meta(row, cell)
            return build(self.name, question, raw, self.kind, options=options, meta=meta)
        except UserError as error:
            raise UserError(
                f"{row.where}, column {answer!r}: {error.message}",
                "correct that row, or set task.answer to the column that holds the answer",
            ) from None

    def from_row(self, row: dict[str, Any]) -> Problem:
        """Returns a problem of a row of `mlxreflect grade`. Raises UserError."""
        if self.kind == "number":
            return make_problem(
                self.name, {"question": str(row.get("question", ""))}, row_gold(row)
            )
        return problem_of_row(self.name, {**row, "answer_type": self.kind})


def column_of(row: Row, config: TaskConfig, key: str, names: Iterable[str]) -> str:
    """Returns the column of the "question" or "answer": the recipe's, else a known one."""
    wanted: str = getattr(config, key)
    if wanted != getattr(DEFAULTS, key):
        return wanted
    return next((name for name in names if name in row.values), wanted)


# ---- the benchmarks ------------------------------------------------------------------------------


def gsm8k_meta(row: Row, raw: Any) -> Meta:
    return {"solution": str(raw)}


def svamp_text(row: Row, name: str) -> str:
    text = question_text(row, name)
    if name == "Question" and isinstance(body := row.values.get("Body"), str):
        text = f"{body.strip()} {text}"
    return " ".join(text.split())


def svamp_meta(row: Row, raw: Any) -> Meta:
    equation = row.values.get("Equation")
    return {"solution": f"{equation} = {read_gold(raw)}"} if isinstance(equation, str) else {}


def logiqa_text(row: Row, name: str) -> str:
    text = question_text(row, name)
    if isinstance(context := row.values.get("context"), str) and context.strip():
        return f"{context.strip()}\n{text}"
    return text


def aime_meta(row: Row, raw: Any) -> Meta:
    names = [name for name in ("ID", "id", "year", "url") if name in row.values]
    return {name.lower(): str(row.values[name]) for name in names}


def math_meta(row: Row, raw: Any) -> Meta:
    names = ("subject", "type", "level", "unique_id")
    return {name: row.values[name] for name in names if name in row.values}


def boxed(raw: Any) -> Any:
    """Returns the last box of a worked solution; an answer that has none is one itself."""
    found = box(raw.replace("\\fbox", "\\boxed")) if isinstance(raw, str) else None
    return found.text if found else raw


def math_solution(row: Row, raw: Any) -> Meta:
    solution = row.values.get("solution")
    kept = {"solution": solution} if isinstance(solution, str) else {}
    return {**math_meta(row, raw), **kept}


def bigbench_text(row: Row, name: str) -> str:
    """Returns a question without the options in it, which are shown as every benchmark's are."""
    text = question_text(row, name)
    lines = text.strip().removeprefix("Q: ").split("\n")
    lines = [line for line in lines if not line.lstrip().startswith("choice: ")]
    if lines and lines[-1].strip() == "A:":
        del lines[-1]
    return "\n".join(lines).strip() or text


def only_right(raw: Any) -> Any:
    """Returns the index of the one option with a score. Raises UserError for none or several."""
    if not isinstance(raw, list):
        return raw
    right = [i for i, score in enumerate(raw) if score]
    if len(right) != 1:
        raise UserError(f"{len(right)} options are right instead of one", "")
    return right[0]


WORD_PROBLEM = (
    "Solve the math word problem. The final answer is a number only, without units and without "
    "commas."
)
# Cobbe et al. 2021: grade-school word problems, 7473 to learn from and 1319 held out.
GSM8K = Benchmark("gsm8k", "openai/gsm8k", "number", config="main", meta=gsm8k_meta)
# Patel et al. 2021: elementary word problems in varied wording, 700 and 300 held out.
SVAMP = Benchmark(
    "svamp", "ChilleD/SVAMP", "number", questions=("question_concat", "Question"),
    answers=("Answer",), text=svamp_text, meta=svamp_meta,
)  # fmt: skip
# Competition problems, 30 a year; with so few of them, draw several samples. These two are the data
# sets that lm-evaluation-harness reads; in 2024's, wrong problems were mended.
AIME24 = Benchmark(
    "aime", "Maxwell-Jia/AIME_2024", "number", train="", test="train",
    questions=("Problem", "problem"), answers=("Answer",), meta=aime_meta, most=999,
)  # fmt: skip
YEARS = {"2024": AIME24, "2025": replace(AIME24, hub="math-ai/aime25", test="test")}
# Hendrycks et al. 2021, Lightman et al. 2023: competition problems with answers in LaTeX.
MATH500 = Benchmark(
    "math500", "HuggingFaceH4/MATH-500", "math", train="", questions=("problem",), meta=math_meta
)
# The same competition: 7500 problems to learn from and 5000 held out, of which MATH-500 are some.
# The answer is the last box of the solution.
MATH = Benchmark(
    "math", "DigitalLearningGmbH/MATH-lighteval", "math", questions=("problem",),
    answers=("answer", "solution"), gold=boxed, meta=math_solution,
)  # fmt: skip
# Srivastava et al. 2022: task.config names one of its tasks, which has options.
BIGBENCH = Benchmark(
    "bigbench", "tasksource/bigbench", "choice", config="logical_deduction", test="validation",
    questions=("inputs",), answers=("multiple_choice_scores",), text=bigbench_text,
    gold=only_right, choices="multiple_choice_targets",
)  # fmt: skip
# Liu et al. 2020: logical reading, 7376 to learn from and 651 held out. correct_option is an index
# from 0, label a letter. The data set itself is a script, so the hub's copy as Parquet is read.
LOGIQA = Benchmark(
    "logiqa", "lucasmccabe/logiqa", "choice", revision="refs/convert/parquet",
    questions=("query",), answers=("correct_option", "label"), text=logiqa_text,
)  # fmt: skip


def load_aime(config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """Returns the problems of one year or, of the hub, of both; `config.source` names a file."""
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


def task_of(benchmark: Benchmark, instruction: str = "") -> Task:
    """Returns the task of a benchmark. instruction: that of its kind of answer where empty."""
    kind = KINDS[benchmark.kind]
    return Task(
        name=benchmark.name,
        load=benchmark.load,
        instruction=lambda problem: instruction or kind.instruction,
        show=show,
        from_row=benchmark.from_row,
        rules=kind.rules,
        hub=(benchmark.hub,),
        teaches=bool(benchmark.train),
    )


AIME_ASKED = "Solve the problem. The final answer is a whole number from 0 to 999."
BENCHMARKS = {
    "gsm8k": task_of(GSM8K, WORD_PROBLEM),
    "svamp": task_of(SVAMP, WORD_PROBLEM),
    "aime": replace(
        task_of(AIME24, AIME_ASKED), load=load_aime, hub=tuple(year.hub for year in YEARS.values())
    ),
    "math": task_of(MATH),
    "math500": task_of(MATH500),
    "logiqa": task_of(LOGIQA),
    "bigbench": task_of(BIGBENCH),
}
