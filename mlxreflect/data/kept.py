"""What a foreign form has no field for: a column `mlxreflect` of ours, which other readers ignore.

It is a JSON text, so that it has one type in every row, and half a character survives in it. It
holds what the row's own columns do not give back: weight, mask, source, exact tokens.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from mlxreflect.core.records import Example
from mlxreflect.data.forms import plain_form
from mlxreflect.data.messages import Fault, Values

COLUMN = "mlxreflect"
EMPTY = Example("sft", [])  # stands for a row that nothing can be read from


def keep(example: Example, row: dict[str, Any], also: Sequence[Example] = ()) -> dict[str, Any]:
    """The row with our column, from which `restored` makes exactly the example again.

    also: others that the run made of the same texts, of which the row's form can tell but one.
    """
    bare = bare_example(row)
    given = asdict(bare or EMPTY)
    rest = {k: v for k, v in asdict(example).items() if given[k] != v}
    more = {"also": [asdict(other) for other in also]} if also else {}
    return {**row, COLUMN: json.dumps({"texts": digest(bare), **rest, **more})}


def restored(values: Values) -> list[Values]:
    """The rows of our examples.jsonl that a row with our column was written from; one at least.

    Raises Fault where the column is damaged, or where the row's texts were changed since: token
    ids would no longer be theirs.
    """
    try:
        held = json.loads(values[COLUMN])
    except (TypeError, ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise Fault(f"{COLUMN} is no JSON object; leave that column out")
    bare = bare_example(values)
    if held.pop("texts", None) != digest(bare):
        raise Fault(f"its texts were changed since the export; leave its column {COLUMN} out")
    also = held.pop("also", [])
    if not isinstance(also, list) or not all(isinstance(other, dict) for other in also):
        raise Fault(f"{COLUMN} holds no examples; leave that column out")
    mine = {} if values.get("weight") is None else {"weight": values["weight"]}
    found = [{**asdict(bare or EMPTY), **held, **mine}, *also]
    return [{**one, "schema": Example.SCHEMA} for one in found]


def bare_example(values: Values) -> Example | None:
    """What the row's own columns say; None where nothing can be trained on."""
    try:
        return replace(plain_form(values).make(values, "last")[-1], source={})
    except Fault:
        return None


def digest(bare: Example | None) -> str:
    texts = bare and [bare.prompt, bare.chosen, bare.rejected, bare.completion, bare.completions]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
