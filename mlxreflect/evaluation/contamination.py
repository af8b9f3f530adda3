"""Contamination: training data that an evaluation asks is left out, listed and counted.

Evaluations are named by their spec, by a task, or by a file whose rows have a question each. The
matching itself is data/matching.py.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from mlxreflect.config.recipe import dev_spec, eval_specs
from mlxreflect.config.schema import DataConfig, EvalSpec, Recipe, method_of
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import dump_line, write_atomic
from mlxreflect.core.records import Example, Problem
from mlxreflect.core.ui import Ui, plain, table
from mlxreflect.data.examples import texts_of
from mlxreflect.data.matching import (
    FILE,
    Index,
    Match,
    Question,
    build_index,
    clause,
    count,
    find,
    sentence,
)
from mlxreflect.data.rows import ENDINGS, BadRow, good_rows, listed, local_path, rows_of
from mlxreflect.evaluation.evaluate import eval_problems, find_spec
from mlxreflect.tasks import get_task

if TYPE_CHECKING:
    from rich.console import Group

QUESTIONS = ("question", "problem", "prompt")  # columns of a file that is named as an evaluation
SHOWN = 20  # rows of a table
MOST_TEXT = 200  # characters of a cell


# ---- what evaluations ask ------------------------------------------------------------------------


def question_of(problem: Problem, spec: str = "") -> Question:
    """Returns a problem's question, to be looked for in other texts.

    The order of numbers and of options makes no other question. Generated problems differ in a few
    words among many that are the same, so they are compared as a whole only.
    """
    task, fields = get_task(problem.task), dict(problem.fields)
    if isinstance(fields.get("numbers"), list):
        fields["numbers"] = sorted(fields["numbers"])
    options = fields.get("choices") or {}
    body = task.show(replace(problem, fields={**fields, "choices": {}} if options else fields))
    wholes = [task.show(problem), "\n".join([body, *sorted(map(str, options.values()))])]
    return Question(spec, problem.id, wholes, "" if task.generated else body)


def questions_of_spec(
    name: str, spec: EvalSpec, asked: Sequence[Problem] | None = None
) -> list[Question]:
    """All that a spec may ask: its limit may be another the next time.

    asked: what it asks this time, which is all there is of a task that makes its problems.
    """
    task = get_task(spec.task.name)
    if not task.generated:
        asked = eval_problems(task, spec.model_copy(update={"limit": 0}))
    elif asked is None:
        asked = eval_problems(task, spec)
    return [question_of(problem, name) for problem in asked]


def is_file(name: str) -> bool:
    """Returns true where an evaluation is named by a data file, not by a spec or a task."""
    return local_path(name).suffix.lower() in ENDINGS


def further_specs(recipe: Recipe) -> list[EvalSpec]:
    """Those that a recipe keeps clean of beside its own evaluation, data files left out."""
    return [find_spec(name, 0, "", []) for name in recipe.eval.against if not is_file(name)]


def questions_of_file(name: str) -> Iterator[Question]:
    """The questions of a file's rows, whose ids are their own or where they stand."""
    for row in good_rows(rows_of(name)):
        found = [row.values[key] for key in QUESTIONS if isinstance(row.values.get(key), str)]
        if not found:
            raise UserError(
                f"{row.where}: no {', '.join(QUESTIONS)}; its columns are: {listed(row.values)}",
                "name the column question, or give an eval spec that maps it",
            )
        at = str(row.values.get("id") or row.where.rpartition(", ")[2])
        yield Question(name, at, found[:1], found[0])


def index_of(names: Iterable[str], n: int, first: Sequence[Question] = ()) -> Index:
    """Evaluations by name, to be looked up in; n: words in a row that count, 0: none."""
    asked = list(first)
    for name in names:
        found = (
            list(questions_of_file(name)) if is_file(name)
            else questions_of_spec(name, find_spec(name, 0, "", []))
        )  # fmt: skip
        if not found:
            raise UserError(f"{name}: no questions in it", "give an evaluation that has some")
        asked += found
    return build_index(asked, n)


# ---- a recipe's problems -------------------------------------------------------------------------


@dataclass(frozen=True)
class Cleaned:
    """The problems left to train on, a row for each other one, their counts (None: not looked).

    dev: the problems that the run is watched by, as `dev_problems` gives them.
    """

    problems: dict[str, Problem]
    rows: list[dict[str, Any]]
    counts: dict[str, Any] | None
    dev: list[Problem]

    def sentence(self) -> str:
        return sentence(self.counts) if self.counts else "off"


Asked = Mapping[str, Sequence[Problem]]  # evaluation → its problems


def clean(recipe: Recipe, held_out: Asked | None = None) -> Cleaned:
    """The problems a recipe learns from, without those that its evaluations ask.

    held_out: what its own evaluations ask, where that is known already.
    """
    dev = dev_problems(recipe, held_out)
    index = index_for(recipe, held_out, dev)
    problems, left_out = clean_problems(recipe, index)
    rows = [record(problem.id, match) for problem, match in left_out]
    counts = count([m for _, m in left_out], index) if index else None
    return Cleaned(problems, rows, counts, dev)


def index_for(
    recipe: Recipe, held_out: Asked | None = None, dev: Sequence[Problem] | None = None
) -> Index | None:
    """The evaluations that a recipe's training data are kept clean of; None where of none.

    held_out, dev: what its evaluations ask and it is watched by, where that is known already.
    """
    config = recipe.eval
    if config.decontaminate == "off":
        return None
    own = own_questions(recipe, held_out)
    dev = dev_problems(recipe, held_out) if dev is None else dev
    own += [question_of(problem, "dev") for problem in dev]
    return index_of(config.against, words_in_a_row(recipe), own)


def own_questions(recipe: Recipe, held_out: Asked | None) -> list[Question]:
    """The questions of all evaluations that a recipe ends in. held_out: as of `clean`."""
    specs, given = eval_specs(recipe), [name or recipe.task.name for name in recipe.eval.spec]
    return [
        question for label, (name, spec) in zip(given, specs.items(), strict=True)
        for question in questions_of_spec(label, spec, held_out[name] if held_out else None)
    ]  # fmt: skip


def words_in_a_row(recipe: Recipe) -> int:
    """Returns how many words in a row make an overlap; 0: only whole questions count."""
    return recipe.eval.ngram if recipe.eval.decontaminate == "overlap" else 0


def dev_problems(recipe: Recipe, held_out: Asked | None = None) -> list[Problem]:
    """The problems that a run is watched by, none that its evaluations ask; [] where it is not.

    held_out: as of `clean`. Raises UserError where there are none.
    """
    config, task, spec = recipe.eval, get_task(recipe.task.name), dev_spec(recipe)
    if not config.dev_every:
        return []
    if not task.generated:  # else it makes as many as are asked for
        spec = spec.model_copy(update={"limit": 0})
    index = build_index(own_questions(recipe, held_out), words_in_a_row(recipe))
    asked = ((problem, question_of(problem)) for problem in eval_problems(task, spec))
    found = [one for one, question in asked if not find(index, question.wholes, [question.body])]
    if not found:
        raise UserError(
            f"task {task.name}: eval.dev_every = {config.dev_every}, and no problem is in its part "
            "dev that no evaluation asks",
            "give more problems, or set eval.dev_every = 0",
        )
    return found[: config.dev_limit]


def clean_problems(
    recipe: Recipe, index: Index | None
) -> tuple[dict[str, Problem], list[tuple[Problem, Match]]]:
    """The recipe's training problems by id, and those left out, for they occur in the index."""
    sources = method_of(recipe).sources(recipe)
    if sources is None:
        sources = get_task(recipe.task.name).load(recipe.task, "train", recipe.seed)
    problems = {problem.id: problem for problem in sources}
    left_out: list[tuple[Problem, Match]] = []
    for problem in list(problems.values()) if index else ():
        question = question_of(problem)
        if index and (match := find(index, question.wholes, [question.body])):
            left_out.append((problems.pop(problem.id), match))
    if recipe.task.limit:
        problems = dict(islice(problems.items(), recipe.task.limit))
    if not problems:
        why = f": all {len(left_out)} occur in the evaluation" if left_out else ""
        raise UserError(
            f"task {recipe.task.name}: no problem is left to train on{why}",
            "give more problems, or an evaluation with other ones"
            + ('; or set eval.decontaminate = "exact" where they only share words' if why else ""),
        )
    return problems, left_out


def record(name: str, match: Match) -> dict[str, Any]:
    """A line of decontamination.jsonl: what was left out, and where it occurs."""
    return {
        "schema": "collision/1", "id": name, "question": match.text, "spec": match.spec,
        "eval_id": match.id, "how": match.how, "shared": match.shared,
    }  # fmt: skip


def keep_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a file, whole or as it was."""
    write_atomic(folder / FILE, "".join(map(dump_line, rows)))


# ---- anyone's training data ----------------------------------------------------------------------


def clean_examples(
    examples: Sequence[Example], data: DataConfig
) -> tuple[list[Example], list[dict[str, Any]], dict[str, Any]]:
    """Examples whose row occurs in no evaluation, a record for each row that does, and the counts.

    Everything in a row is looked at, also what is only shown: prompts, answers, earlier turns.
    Raises UserError where nothing is left.
    """
    index = index_of(data.against, data.ngram)
    found: dict[str, Match] = {}
    names = [str(e.source.get("row") or f"example {i}") for i, e in enumerate(examples, 1)]
    for name, example in zip(names, examples, strict=True):
        texts = [*texts_of(example), *filter(None, example.completions or [])]
        if name not in found and (match := find(index, texts, texts)):
            found[name] = match
    if len(found) == len(set(names)):
        raise UserError(
            f"nothing to train on: all {len(found)} rows occur in {', '.join(data.against)}",
            "give other data, or set data.ngram=0 where they only share words",
        )
    kept = [e for name, e in zip(names, examples, strict=True) if name not in found]
    rows = [record(name, match) for name, match in found.items()]
    return kept, rows, count(list(found.values()), index)


# ---- the command ---------------------------------------------------------------------------------


def decontaminate(data: DataConfig, out: Path | None, ui: Ui) -> dict[str, Any]:
    """`mlxreflect decontaminate`: finds rows that evaluations ask; the others go to `out`.

    All texts of a row are looked at. Raises UserError where `out` is there or cannot be written.
    """
    check_out(out)
    index = index_of(data.against, data.ngram)
    bad: list[BadRow] = []
    found: list[tuple[str, Match]] = []
    clean_rows: list[str] = []
    rows = rows_of(data.source, data.config, data.split)
    first = list(islice(rows, 1))  # what cannot be read is told before the bar begins
    with ui.progress("reading") as bar:
        for row in chain(first, rows):
            bar.advance(1)
            if isinstance(row, BadRow):
                bad.append(row)
                continue
            texts = strings(row.values)
            if match := find(index, texts, texts):
                found.append((row.where, match))
            else:
                clean_rows.append(json.dumps(row.values, default=str) + "\n" if out else "")
    if out:
        try:
            write_atomic(out, "".join(clean_rows))
        except OSError as error:
            raise UserError(f"{out}: {error.strerror}", "give another --out") from None
    return {
        "data": data.source, "against": data.against, "rows": len(found) + len(clean_rows),
        "clean": len(clean_rows), **count([match for _, match in found], index),
        "unreadable": [{"where": row.where, "reason": row.reason} for row in bad],
        "out": str(out) if out else None,
        "collisions": [record(where, match) for where, match in found],
    }  # fmt: skip


def check_out(out: Path | None) -> None:
    if out and out.suffix.lower() not in ("", ".jsonl"):
        raise UserError(
            f"{out}: rows are written as JSON lines",
            f"give --out {quote(str(out.with_suffix('.jsonl')))}",
        )
    if out and out.exists():
        raise UserError(f"{out} already exists", "give another --out")
    if out and not out.absolute().parent.is_dir():
        raise UserError(f"{out}: No such file or directory", "give another --out")


def strings(value: Any) -> list[str]:
    """All texts in a row of data, however deep, in their order."""
    found: list[str] = []
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, (dict, list)):
            left += reversed(list(one.values()) if isinstance(one, dict) else one)
    return found


def render_decontaminated(result: dict[str, Any]) -> "Group":
    """A sentence, and the first rows as a table."""
    from rich.console import Group

    parts: list[Any] = []
    if shown := result["collisions"][:SHOWN]:
        cells = [
            [text[:MOST_TEXT] for text in
             (row["id"], f"{row['spec']} {row['eval_id']}", row["how"], row["shared"])]
            for row in shown
        ]  # fmt: skip
        title = "" if len(shown) == result["dropped"] else f"The first {len(shown)}"
        columns = ["row", "occurs in", "as", "what they share"]
        parts = [plain(""), table(title, columns, cells, wraps="*")]
    said = [clause(result, "row"), f"{result['clean']} of {result['rows']} rows are clean"]
    if result["unreadable"]:
        said.append(f"{len(result['unreadable'])} could not be read")
    if result["out"]:
        said.append(f"the clean ones are in {result['out']}")
    return Group(plain("; ".join(said), "bold"), *parts)
