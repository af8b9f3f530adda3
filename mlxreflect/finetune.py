"""`mlxreflect train`: anyone's data → rows → steps, watched on held-out rows, in one folder.

The folder holds job.toml, metrics.jsonl, bad_rows.jsonl, decontamination.jsonl, checkpoints/,
adapter/ (the best by what was held out, or the last), last/ and summary.json. It is resumed from
its last checkpoint and ends with the same bytes as one that was never stopped.
"""

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxreflect.commits import take_lock
from mlxreflect.course import FIRST, Course, Data, Place
from mlxreflect.decontaminate import told
from mlxreflect.errors import UserError
from mlxreflect.exams import clean_examples, keep_rows
from mlxreflect.job import Job, dump_job
from mlxreflect.policy import Policy, device_name, load_policy
from mlxreflect.records import Example, append_rows, read_json, write_atomic
from mlxreflect.settings import validate
from mlxreflect.tables import PolicyConfig
from mlxreflect.train.batches import Group, Pair, Row
from mlxreflect.train.encode import Dropped, Encoder, NothingTrained
from mlxreflect.train.formats import read_examples, split_examples
from mlxreflect.train.lora import attach
from mlxreflect.train.masks import Mask
from mlxreflect.train.references import References
from mlxreflect.train.sources import BadRow
from mlxreflect.train.trainer import Trainer
from mlxreflect.ui import Ui

NAMED = 5  # bad rows that are shown; all of them stand in bad_rows.jsonl


def create(path: Path, job: Job) -> Place:
    """A new folder. Raises UserError where something already is."""
    try:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        if not made and (not path.is_dir() or any(p.name not in FIRST for p in path.iterdir())):
            begun = f"go on with it by: mlxreflect resume {shlex.quote(str(path))}, or "
            hint = f"{begun if (path / 'job.json').is_file() else ''}give another --out"
            raise UserError(f"{path} is there already", hint)
        path.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give another --out") from None
    write_atomic(path / "job.toml", dump_job(job))
    text = json.dumps({"schema": "job/1", "job": job.model_dump()}, indent=1)
    write_atomic(path / "job.json", text + "\n")
    return Place(path, job, lock, made)


def reopen(path: Path) -> Place:
    """The folder of a job that was stopped."""
    file = path / "job.json"
    job = validate(Job, read_json(file).get("job", {}), file)
    return Place(path, job, take_lock(path))


def read_data(job: Job) -> tuple[list[Example], list[BadRow]]:
    data = job.data
    return read_examples(
        data.source, job.objective, config=data.config, split=data.split, columns=data.columns,
        turns=data.turns, bad_row=data.bad_row, limit=data.limit,
    )  # fmt: skip


def encode_data(job: Job, policy: Policy, examples: Sequence[Example], bad: list[BadRow]) -> Data:
    """The examples as rows, some of them held out; those that give none join the bad rows."""
    mask = Mask(**job.train.mask.model_dump())
    encoder = Encoder(policy, job.train.max_length, mask, job.tags, job.seed)
    rows = {id(example): encode(encoder, example, job.data.bad_row, bad) for example in examples}
    used = [example for example in examples if rows[id(example)]]
    if not used:
        raise UserError(
            f"nothing to train on: all {len(bad)} rows are bad, the first is {bad[0].where}: "
            f"{bad[0].reason}",
            "correct the data, or raise train.max_length where rows are too long",
        )
    part = job.data.held_out if len(used) > 1 else 0
    sides = split_examples(used, part, job.seed)
    train, held_out = ([row for e in side if (row := rows[id(e)])] for side in sides)
    return Data(train, held_out, bad)


def encode(
    encoder: Encoder, example: Example, bad_row: str, bad: list[BadRow]
) -> Row | Pair | Group | None:
    """An example's row; one that has none joins the bad rows, or is fatal."""
    try:
        row = encoder.encode(example)
        if not isinstance(row, Dropped):
            return row
        reason = row.reason
    except NothingTrained as error:
        reason = error.message
    where = str(example.source.get("row") or example.source or "a row")
    if bad_row == "fatal":
        raise UserError(
            f"{where}: {reason}", "correct or delete that row, or set data.bad_row=skip"
        )
    bad.append(BadRow(where, reason))
    return None


def train(place: Place, ui: Ui) -> dict[str, Any]:
    """Do what is left of a job, and return its summary."""
    if (place.path / "summary.json").is_file():
        ui.line(f"{place.path} was finished already; this is what it came to")
        return read_json(place.path / "summary.json")
    job = place.job
    with ExitStack() as stack:
        examples, bad = read_data(job)  # first: a mistake in it is told at once
        examples, left_out, counts = clean_examples(examples, job.data)
        policy = load_policy(PolicyConfig(**job.policy.model_dump()))
        data = replace(encode_data(job, policy, examples, bad), decontaminated=counts)
        adapter = attach(policy.model, job.train, job.seed, job.policy.model, job.policy.adapter)
        references = References.open(job.train.reference_cache)
        if references:
            stack.callback(references.close)
        trainer = Trainer(policy.model, references, ui.line)
        describe(place, data, trainer, ui)
        keep_rows(place.path, left_out)
        course = Course(place, trainer, adapter, data)
        course.run(ui)
        return course.finish()


def describe(place: Place, data: Data, trainer: Trainer, ui: Ui) -> None:
    job = place.job
    bad = [{"schema": "bad_row/1", "where": b.where, "reason": b.reason} for b in data.bad]
    (place.path / "bad_rows.jsonl").unlink(missing_ok=True)
    append_rows(place.path / "bad_rows.jsonl", bad)
    trained = sum(array.size for array in trainer.trainable().values())
    ui.header(
        {"objective": job.objective, "model": job.policy.model, "data": job.data.source,
         "rows": f"{len(data.train)} to train on, {len(data.held_out)} held out, "
                 f"{len(data.bad)} skipped",
         "trained": f"{trained / 1e6:.2f} million parameters ({job.train.tune})",
         "device": device_name(), "out": str(place.path)}
    )  # fmt: skip
    if data.cut_prompts:
        ui.line(
            f"warning: {data.cut_prompts} prompts lose their beginning to fit "
            f"train.max_length = {job.train.max_length}: raise it, where memory allows"
        )
    if data.decontaminated:
        ui.line(told(data.decontaminated, "row"))
    for row in data.bad[:NAMED]:
        ui.line(f"skipped {row.where}: {row.reason}")
    if len(data.bad) > NAMED:
        ui.line(f"skipped {len(data.bad) - NAMED} more, see {place.path / 'bad_rows.jsonl'}")
