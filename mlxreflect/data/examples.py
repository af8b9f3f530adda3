"""Anyone's training data → Examples: what fits an objective, and what is held out of training.

A row's form is told by its columns; of several, the one that the objective trains is taken.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Literal

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Example
from mlxreflect.data.forms import (
    ALSO,
    COMMON,
    FILES,
    PUBLISHED,
    Fault,
    Misfit,
    Turns,
    Unknown,
    form_of,
    native,
    number,
    tools_of,
)
from mlxreflect.data.rows import (
    TORN,
    BadRow,
    Row,
    find_split,
    fold,
    listed,
    local_path,
    rows_of,
)

OBJECTIVES = {
    "sft": "sft", "dpo": "preference", "ipo": "preference", "exo_pair": "preference",
    "orpo": "preference", "grpo": "group",
}  # fmt: skip
# A kind's columns as somebody else might call them, for hints.
EXAMPLES = {
    "sft": 'prompt="question", completion="answer"',
    "preference": 'prompt="question", chosen="better", rejected="worse"',
    "group": 'prompt="question", completions="answers", rewards="scores"',
}
NAMES = (
    "prompt", "chosen", "rejected", "completion", "completions", "rewards", "messages",
    "conversations", "text", "system", "weight", "label",
)  # fmt: skip


def read_examples(
    source: str,
    objective: str,
    *,
    config: str = "",
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    turns: Turns = "all",
    bad_row: Literal["skip", "fatal"] = "skip",
    limit: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Example], list[BadRow]]:
    """The examples of a data set for an objective, and the rows that give none, in their order.

    source: a .jsonl, .json, .csv, .tsv or .parquet file, a folder with one a split (train.jsonl) or
        the folder of a run, whose pairs or texts are read, or the name of a hub data set, of which
        `config` is taken.
    columns: our name of a column → theirs; "weight" is read only where it is named. limit: at most
        so many examples; 0: all. say: is told of columns that nothing reads.
    turns: what is trained of a conversation, "all" of the assistant's turns or the "last".
    bad_row: "fatal" stops at the first; a torn last line of JSONL never does.

    Raises UserError where the source cannot be read, nothing in it can be trained on, or a bad
    row is fatal.
    """
    columns = dict(columns or {})
    check_names(columns)
    found: list[Example] = []
    bad: list[BadRow] = []
    causes: list[Fault] = []
    seen: dict[str, None] = {}
    known: set[str] = set()
    used = set(columns.values())
    own = local_path(source) / FILES[OBJECTIVES[objective]]  # of a run's folder, or an export's
    if own.is_file() and not find_split(own.parent, split):
        source = str(own)
    for row in rows_of(source, config, split):
        try:
            if isinstance(row, BadRow):
                raise Fault(row.reason)
            seen |= dict.fromkeys(row.values)
            found += examples_of(row, OBJECTIVES[objective], columns, turns, known, used)
        except Fault as fault:
            if bad_row == "fatal" and str(fault) != TORN:
                hint = "correct or delete that row, or set data.bad_row=skip"
                raise UserError(f"{row.where}: {fault}", hint) from None
            bad.append(BadRow(row.where, str(fault)))
            causes.append(fault)
        if 0 < limit <= len(found):
            break
    check_columns(source, columns, seen)
    if not found:
        raise nothing_left(source, objective, bad, causes)
    if unread := [name for name in seen if name.strip() and name not in used]:
        weigh = "; data.columns.weight=weight takes weight as a row's weight"
        say(f"{source}: columns that nothing reads: {listed(unread)}"
            + weigh * ("weight" in unread))  # fmt: skip
    return found[: limit if limit > 0 else None], bad


def check_names(columns: Mapping[str, str]) -> None:
    """Raises UserError for a column of ours that there is not."""
    for name in columns:
        if name not in NAMES:
            raise UserError(
                f"columns: {name!r} is no column that is read",
                f"name theirs for one of ours: {', '.join(NAMES)}",
            )


def check_columns(source: str, columns: Mapping[str, str], seen: Mapping[str, None]) -> None:
    """Raises UserError for a column that is asked for and in no row."""
    for ours, its in columns.items():
        if seen and its not in seen:
            near = get_close_matches(its, seen, 1, cutoff=0.4) or [*seen][:1]
            raise UserError(
                f"{source}: no column {its!r} to take as {ours}; the columns are: {listed(seen)}",
                f"name the column that holds {ours}, for example {listed(near)}",
            )


def nothing_left(
    source: str, objective: str, bad: Sequence[BadRow], causes: Sequence[Fault]
) -> UserError:
    """Returns why there is nothing to train on: what is wrong with most rows."""
    if not bad:
        return UserError(f"{source}: no rows", "give a data file that holds examples")
    worst = Counter(type(cause) for cause in causes).most_common(1)[0][0]
    first = next(row for row, cause in zip(bad, causes, strict=True) if type(cause) is worst)
    kind = OBJECTIVES[objective]
    fit = "; ".join(", ".join(form.columns) for form in COMMON if form.kind == kind)
    if worst is Unknown:
        return UserError(
            f"{source}: {first.reason}",
            f"rename columns, or say which they are, for example --set 'data.columns="
            f"{{{EXAMPLES[kind]}}}'; the forms for {objective} are: {fit}",
        )
    if worst is Misfit:
        return UserError(
            f"{source}: nothing here fits {objective}; {first.reason}",
            f"train one of these, or give rows for {objective}: {fit}",
        )
    return UserError(
        f"{source}: no row can be used; the first of {len(bad)} is {bad[0].where}: {bad[0].reason}",
        f"correct the rows; {objective} trains on the columns: {fit}",
    )


# ---- one row -------------------------------------------------------------------------------------


def examples_of(
    row: Row, kind: str, columns: Mapping[str, str], turns: Turns, known: set[str], used: set[str]
) -> list[Example]:
    """The examples of a row, whose source names it. Raises Fault.

    known: published rows seen; used: columns read. Both are added to.
    """
    values = {name: value for name, value in row.values.items() if name not in columns.values()}
    values |= {ours: row.values[its] for ours, its in columns.items() if its in row.values}
    own = values.get("schema") == Example.SCHEMA
    given = values.get("weight") if own or "weight" in columns else None
    weight = number(1 if given is None else given, "weight")
    if weight <= 0:
        raise Fault("weight is not above 0")
    if own:
        used.update(row.values)
        return [replace(native(values, kind), weight=weight)]
    form = form_of(values, kind)
    made = form.make(values, turns)
    used.update(row.values if form in PUBLISHED else (*form.columns, *ALSO))
    if form in PUBLISHED:
        said = digest(json.dumps([[" ".join(t.split()) for t in texts_of(e)] for e in made]))
        if said in known:
            raise Fault("it is there twice")
        known.add(said)
    tools = tools_of(values)
    return [replace(e, weight=weight * e.weight, tools=tools,
                    source={"row": row.where, **e.source}) for e in made]  # fmt: skip


def texts_of(example: Example) -> list[str]:
    """Returns the texts of the prompt and of the answers, with thoughts of their own."""
    thoughts = [parts.get("reasoning_content") for parts in (example.parts or {}).values()]
    texts = [example.completion, example.chosen, example.rejected, *thoughts]
    return [*(message["content"] for message in example.prompt), *filter(None, texts)]


# ---- held out ------------------------------------------------------------------------------------


def split_examples(
    examples: Sequence[Example], fraction_or_count: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Examples to train on and examples held out, both in their order.

    fraction_or_count: below 1 a share of the examples, else how many; never more are held out, and
        fewer where prompts have several rows. Which ones depends on the prompts and the seed only.
    Rows with one prompt, and the turns of one conversation, are all on one side.

    Raises UserError where so many cannot be held out.
    """
    part = fraction_or_count
    wanted = max(1, round(len(examples) * part)) if 0 < part < 1 else int(part)
    if wanted == 0:
        return list(examples), []
    keys = group_keys(examples)
    sizes = Counter(keys)
    held: set[str] = set()
    count = 0
    for key in sorted(sizes, key=lambda key: digest(f"{seed} {key}")):
        if count + sizes[key] <= wanted:
            held.add(key)
            count += sizes[key]
    if not 0 < count < len(examples):
        raise UserError(
            f"{wanted} of {len(examples)} examples, with {len(sizes)} different prompts, "
            "cannot be held out",
            "add rows, or set data.held_out to another number; data.held_out=0 holds out none",
        )
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example, key in zip(examples, keys, strict=True):
        sides[key in held].append(example)
    return sides


def group_keys(examples: Sequence[Example]) -> list[str]:
    """Returns a key for each, equal for those that stay together: their prompts' least digest."""
    above: dict[str, str] = {}

    def top(key: str) -> str:
        while above.setdefault(key, key) != key:
            above[key] = key = above[above[key]]
        return key

    keys = [prompt_key(example) for example in examples]
    for example, key in zip(examples, keys, strict=True):
        # "row …" comes after every hexadecimal digest, so where a row stands does not matter.
        least, other = sorted((top(key), top(f"row {example.source.get('row', key)}")))
        above[other] = least
    return [top(key) for key in keys]


def prompt_key(example: Example) -> str:
    """A digest of the prompt without differences of case and spacing; of raw text, of the text."""
    shown = [[m["role"], fold(m["content"])] for m in example.prompt]
    return digest(json.dumps(shown or fold(example.completion or "")))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
