"""Tasks of reasoning_gym (Stojanovski et al. 2025), by the extra `gym`: `task.name = "gym:NAME"`.

The package makes the questions and scores the answers. A question is known by its data set's seed
and its index there. It is made again where an answer to it is scored, in a process that can be
killed: nothing that stands in a file is what an answer is compared with. A hash of the question
says which part it is in, whatever seed made it. Tasks are refused whose scorer evaluates text as
Python or SymPy does.
"""

import difflib
import importlib.util
import io
import itertools
import re
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import lru_cache, partial
from importlib.metadata import version
from inspect import getfile, isclass, isfunction
from math import inf
from pathlib import Path
from types import CodeType
from typing import Any

from mlxreflect.config.schema import GYM, TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, make_problem
from mlxreflect.core.seeds import part_of, seed_for
from mlxreflect.data.rows import fold
from mlxreflect.graders import MAX_TEXT, Judged, rules_of
from mlxreflect.graders.own import guarded, one_line
from mlxreflect.graders.text import MISSING, answer_of
from mlxreflect.graders.worker import Worker, serve
from mlxreflect.prompts.parsing import Parsed
from mlxreflect.tasks.base import Review, Solver, Task, generate

PACKAGE = "reasoning_gym"
SIZE = 1000  # questions of a seed, after which comes the next; one task makes all of them at once
SLOW_S = 10.0  # after which a line says how slow it is
MISSES = 2000  # draws without a new problem after which there is none left
# Of four questions one is held out, not of ten: some take 0.4 s to make.
PARTS = {"heldout": 1, "dev": 1, "train": 2}
MAX_ANSWER = 20_000  # characters; a longer answer is wrong

# ---- which tasks there are -----------------------------------------------------------------------

REFUSED = {
    **dict.fromkeys(
        ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"),
        "there are no answers to learn from",
    ),
    **dict.fromkeys(
        ("isomorphic_strings", "knight_swap", "list_functions", "ransom_note", "word_ladder"),
        "the same seed gives other questions in another process",
    ),
    "game_of_life_halting": "its scorer takes any text for right",
    "codeio": "programs from the web are run to make its questions",
    "composite": "it is a mixture of other tasks",
}
ANOTHER = f"set task.name to another, such as {GYM}leg_counting; recipes/README.md lists them"
EVALUATES = ("eval", "exec", "parse_expr", "sympify")


def data_sets() -> dict[str, Any]:
    """Returns the package's data sets by name. Raises UserError without the extra."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"tasks called {GYM}NAME are made by {PACKAGE}, which is not installed",
            "pip install 'mlxreflect[gym]'",
        )
    from reasoning_gym.factory import DATASETS

    return {name: made for name, (made, _) in DATASETS.items()}


@lru_cache
def installed() -> str:
    """Returns the package's version. Raises UserError without the extra."""
    data_sets()
    return version(PACKAGE)


def accepted() -> list[str]:
    return [name for name, made in data_sets().items() if not refusal(name, made)]


def refusal(name: str, made: type[Any]) -> str:
    """Returns why a task is refused; "" where it is not."""
    if evaluates(made):
        return "its scorer evaluates text as code, and no answer of a model is ever run"
    return REFUSED.get(name, "")


def evaluates(made: type[Any]) -> bool:
    """Tells whether a data set's scorer, or what of the package it calls, evaluates text."""
    todo, seen = [made.score_answer], set[Any]()
    while todo:
        function = todo.pop()
        seen.add(function)
        for name in names_in(function.__code__):
            for found in (getattr(made, name, None), function.__globals__.get(name)):
                home = getattr(found, "__module__", None) or getattr(found, "__name__", "")
                home = str(home).partition(".")[0]
                if name in EVALUATES or home == "sympy":  # whose functions take texts for code
                    return True
                inside = vars(found).values() if isclass(found) else [found]
                todo += [f for f in inside if home == PACKAGE and isfunction(f) and f not in seen]
    return False


def names_in(code: CodeType) -> Iterator[str]:
    """Yields the names of globals and attributes in a function, those inside of it included."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_in(inner)


@lru_cache(maxsize=64)
def data_set(name: str, seed: int) -> Any:
    """Returns the data set of a seed. Raises UserError for a task that is not there, or refused."""
    made = data_sets()
    if name not in made:
        near = difflib.get_close_matches(name, accepted(), 1, cutoff=0.5)
        raise UserError(
            f"no task {name!r} in {PACKAGE} {installed()}",
            f"did you mean {GYM}{near[0]}?" if near else ANOTHER,
        )
    if why := refusal(name, made[name]):
        raise UserError(f"the task {GYM}{name} is refused: {why}", ANOTHER)
    from reasoning_gym import create_dataset

    return create_dataset(name, seed=seed, size=SIZE)


def make_entry(name: str, seed: int, index: int) -> dict[str, Any] | None:
    """Returns a question with its answer and metadata; None where its generator finds none."""
    made = data_set(name, seed)
    with redirect_stdout(io.StringIO()):  # some generators print
        entry, _ = guarded(lambda: made[index], Path(getfile(type(made))))
    return entry  # type: ignore[no-any-return]


# ---- problems ------------------------------------------------------------------------------------


def load(name: str, config: TaskConfig, part: str, seed: int) -> list[Problem]:
    """Returns `config.limit` different problems (1000 when 0); only training uses the seed."""
    return list(
        problems_of(name, config.source, config.limit, part, seed if part == "train" else 0)
    )


@lru_cache(maxsize=16)
def problems_of(name: str, source: str, limit: int, part: str, seed: int) -> tuple[Problem, ...]:
    """Makes the problems of a part, once in a process: a run asks for them several times."""
    numbers, began, slow = itertools.count(), time.monotonic(), SLOW_S

    def draw() -> Problem | None:
        nonlocal slow
        number = next(numbers)
        if (took := time.monotonic() - began) > slow and number:
            slow = inf
            said = f"{GYM}{name} takes {took / number:.2f} s to make a question"
            print(f"{said}; fewer are made with task.limit, eval.limit or --limit", file=sys.stderr)
        block, index = divmod(number, SIZE)
        return problem_at(name, seed_for("gym", name, part, seed, block) % 2**31, index)

    def key(problem: Problem) -> str:
        return fold(problem.fields["question"])

    config = TaskConfig(source=source, limit=limit)
    drawn = generate(
        GYM + name, config, part, draw, lambda one: part_of(key(one), PARTS), key, MISSES
    )
    return tuple(drawn)


def problem_at(name: str, seed: int, index: int) -> Problem | None:
    """Returns a question as a problem; the version is part of it, for another scores otherwise."""
    entry = make_entry(name, seed, index)
    if entry is None:
        return None
    fields = {"question": entry["question"], PACKAGE: installed()}
    return make_problem(GYM + name, fields, entry["answer"], {"seed": seed, "index": index})


def from_row(name: str, row: dict[str, Any]) -> Problem:
    seed, index = row.get("seed"), row.get("index")
    problem = None
    if isinstance(seed, int) and isinstance(index, int) and 0 <= index < SIZE:
        problem = problem_at(name, seed, index)
    if problem is None:
        raise UserError(
            f"no seed and index of a question of {GYM}{name}",
            'write them as "meta" of problems.jsonl has them: "seed": 1, "index": 0',
        )
    return problem


# ---- answers -------------------------------------------------------------------------------------


CPU_S = 10.0  # processor time of one answer, in the process that scores
WALL_S = 60.0  # until the process is killed, whatever it does
START_S = 120.0  # to import the package, on a machine with much to do
MEMORY = 16 << 30  # bytes of address space
WORKER = Worker("mlxreflect.tasks.gym", quiet=True)


def judge(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
    """Judges the last answer block. Raises UserError where another version made the question."""
    answer, made_by = answer_of(text, tags), problem.fields.get(PACKAGE)
    if answer is None:
        return Judged(None, False, MISSING)
    if len(answer) > MAX_ANSWER:
        return Judged(answer[:MAX_TEXT], False, f"an answer of {len(answer)} characters")
    if made_by is None:  # typed by a person
        return Judged(answer[:MAX_TEXT], False, f"no question that {PACKAGE} made")
    if made_by != installed():
        raise UserError(
            f"{PACKAGE} {made_by} made the question {problem.id}, not {installed()}",
            f"pip install {PACKAGE}=={made_by}",
        )
    correct, reason = ask(problem, answer)
    said = f"expected {str(problem.gold)[:80]}, got {answer[:80]} ({reason})"
    return Judged(answer[:MAX_TEXT], correct, one_line(said))


def ask(problem: Problem, answer: str) -> tuple[bool, str]:
    """Returns (whether an answer is right, why not), of the process that scores."""
    name, place = problem.task.removeprefix(GYM), problem.meta
    question = [name, place["seed"], place["index"], problem.fields["question"], answer]
    reply = WORKER.ask(question, WALL_S, None, START_S)
    return tuple(reply) if reply else (False, f"scoring it took more than {CPU_S:g} s")


def score(name: str, seed: int, index: int, question: str, answer: str) -> tuple[bool, str]:
    """Scores an answer, in the process: right at 1, wrong where the scorer fails on it."""
    entry = make_entry(name, seed, index)
    if entry is None or entry["question"] != question:
        return False, f"seed {seed}, index {index} of {GYM}{name} is another question now"
    scorer = data_set(name, seed).score_answer
    value, fault = guarded(partial(scorer, answer, entry), Path(getfile(scorer)))
    return (False, fault) if fault else (bool(value >= 1), f"a score of {value:g}")


def main() -> None:
    """Answers questions, in the process, until its standard input ends."""
    data_sets()
    serve(lambda question: not question or score(*question), CPU_S, MEMORY)


# ---- the solver, which knows the answer and no way to it -----------------------------------------


def review(problem: Problem, thought: str, search: bool) -> Review:
    """Keeps nothing and finds no fault: the steps of such a thought cannot be checked."""
    return Review([], "")


def finish(problem: Problem, kept: list[str], seed: int) -> tuple[str, str] | None:
    """Says the answer; None for a question that came without one."""
    if problem.gold is None:
        return None
    return "\n".join([*kept, f"The answer is {problem.gold}."]), problem.gold


# ---- the task ------------------------------------------------------------------------------------


def instruction(problem: Problem) -> str:
    return (
        "Answer the question. The final answer has the form that the question asks for, without "
        "explanation."
    )


def show(problem: Problem) -> str:
    return str(problem.fields["question"])


@lru_cache
def task_of(full: str) -> Task:
    """Returns the task "gym:NAME". Whether the package has it is seen where questions are made.

    Raises UserError for what is no name.
    """
    name = full.removeprefix(GYM)
    if not re.fullmatch("[a-z0-9_]{1,60}", name):
        raise UserError(f"no task {full!r}", f'write "{GYM}NAME", such as {GYM}leg_counting')
    return Task(
        name=full,
        load=partial(load, name),
        instruction=instruction,
        show=show,
        from_row=partial(from_row, name),
        rules=rules_of(judge),
        solver=Solver(review, finish),
        generated=True,
    )


if __name__ == "__main__":
    main()
