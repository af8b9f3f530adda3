"""`mlxreflect train`: a run without a method.

Anyone's data → rows → steps, watched on held-out rows → the best adapter, in one folder.

The folder holds what `folder.py` says, adapter/ (the best by what was held out, or the last),
last/, bad_rows.jsonl and summary.json. It is resumed from its last checkpoint, to the same bytes.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlxreflect.config.schema import Job, PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows, read_rows, replace_folder
from mlxreflect.core.records import Example
from mlxreflect.core.ui import Ui, facts, percent
from mlxreflect.data.examples import read_examples, split_examples
from mlxreflect.data.matching import sentence
from mlxreflect.data.rows import BadRow, valid_beside
from mlxreflect.evaluation.contamination import clean_examples, keep_rows
from mlxreflect.models.load import device_name, limit_memory, load_policy
from mlxreflect.models.policy import Policy
from mlxreflect.models.template import ChatTemplate, with_tags
from mlxreflect.runs.folder import RunFolder
from mlxreflect.train.batches import Group, Pair, Row
from mlxreflect.train.encode import Dropped, Encoder
from mlxreflect.train.lora import attach_everywhere, base_reference, save_adapter
from mlxreflect.train.network import Arrays
from mlxreflect.train.objectives import Objective, imitation
from mlxreflect.train.references import References
from mlxreflect.train.trainer import (
    LRSchedule,
    Step,
    Trainer,
    load_parameters,
    load_trainer,
    save_trainer,
)

if TYPE_CHECKING:
    from rich.table import Table

ADAPTER, BEST, CONFIG = "adapters.safetensors", "best.safetensors", "adapter_config.json"
MEASURED = ("loss", "margin", "accuracy")
SHOWN = 20  # steps that the live figures are means of
Rows = list[Row | Pair | Group]
# Of chats, as many models' templates write them.
MARKS = re.compile(r"<\|(im_start|start_header_id|start|user|assistant|turn)\||<start_of_turn>"
                   r"|<\|turn>|\[INST\]")  # fmt: skip
MOST_ASKED = 160  # characters of a prompt that is shown
NAMED = 5  # bad rows that are shown; all of them stand in bad_rows.jsonl


@dataclass(frozen=True)
class Data:
    """Rows to train on, rows held out, and what could not be used, by name.

    decontaminated: counts of rows that occur in an evaluation; None where none was named. notes: a
    line each on how the chat template and the rows' texts are read. asked: a short prompt of them.
    """

    train: Rows
    held_out: Rows
    bad: list[BadRow]
    notes: list[str]
    asked: str = ""
    decontaminated: dict[str, Any] | None = None

    @property
    def cut_prompts(self) -> int:
        """Rows whose prompt lost its beginning, to fit."""
        return sum(row.cut > 0 for row in (*self.train, *self.held_out))


def train(folder: RunFolder[Job], ui: Ui) -> dict[str, Any]:
    """Does what is left of a training, and returns its summary."""
    if done := folder.finished(ui):
        return done
    job = folder.config
    limit_memory(job.train.cache_limit_gb, job.train.wired_limit_gb)
    with ExitStack() as stack:
        asked, notes = job.data, list[str]()
        read = partial(
            read_examples, objective=job.objective, columns=asked.columns, turns=asked.turns,
            bad_row=asked.bad_row, say=notes.append,
        )  # fmt: skip
        examples, bad = read(  # first: a mistake in it is told at once
            asked.source, config=asked.config, split=asked.split, limit=asked.limit
        )
        valid = valid_beside(asked.source, asked.split) if asked.held_out else None
        apart, poor = read(str(valid)) if valid else ([], [])
        if valid:
            notes.append(f"held out are the rows of {valid}; data.held_out=0 holds out none")
        left_out, counts = list[dict[str, Any]](), None
        if asked.against:
            examples, left_out, counts = clean_examples(examples, asked)
        config = PolicyConfig(**job.policy.model_dump())
        policy = load_policy(config, hosts=folder.hosts)
        job = with_tags(job, policy.template)
        data = encode_data(job, policy, examples, [*bad, *poor], apart)
        data = replace(data, notes=[*notes, *data.notes], decontaminated=counts)
        adapter = attach_everywhere(policy, job.train, job.seed, config)
        references = References.open(job.train.reference_cache)
        if references:
            stack.callback(references.close)
        trainer = Trainer(policy.model, references, ui.line, policy.hosts, policy.number)
        describe(folder, data, trainer, ui)
        if left_out:
            keep_rows(folder.path, left_out)
        loop = FitLoop(folder, trainer, adapter, data)
        loop.run(ui)
        return loop.finish(ui)


def describe(folder: RunFolder[Job], data: Data, trainer: Trainer, ui: Ui) -> None:
    """Says what is trained on what, and writes down the bad rows."""
    job = folder.config
    bad = [{"schema": "bad_row/1", "where": b.where, "reason": b.reason} for b in data.bad]
    (folder.path / "bad_rows.jsonl").unlink(missing_ok=True)
    append_rows(folder.path / "bad_rows.jsonl", bad)
    trained = sum(array.size for array in trainer.trainable().values())
    ui.header(
        {"objective": job.objective, "model": job.policy.model, "data": job.data.source,
         "rows": f"{len(data.train)} to train on, {len(data.held_out)} held out, "
                 f"{len(data.bad)} skipped",
         "trained": f"{trained / 1e6:.2f} million parameters ({job.train.tune})",
         "device": device_name(), **folder.hosts.shown(), "out": str(folder.path)}
    )  # fmt: skip
    for note in data.notes:
        ui.line(note)
    if data.cut_prompts:
        ui.line(
            f"warning: {data.cut_prompts} prompts lose their beginning to fit "
            f"train.max_length = {job.train.max_length}: raise it, where memory allows"
        )
    if data.decontaminated:
        ui.line(sentence(data.decontaminated, "row"))
    for row in data.bad[:NAMED]:
        ui.line(f"skipped {row.where}: {row.reason}")
    if len(data.bad) > NAMED:
        ui.line(f"skipped {len(data.bad) - NAMED} more, see {folder.path / 'bad_rows.jsonl'}")


# ---- data ----------------------------------------------------------------------------------------


def encode_data(
    job: Job, policy: Policy, examples: Sequence[Example], bad: list[BadRow],
    apart: Sequence[Example] = (),
) -> Data:  # fmt: skip
    """Returns the examples as rows, some of them held out; the others are bad, or fatal.

    apart: examples to hold out; without, they are taken of `examples`.
    """
    encoder = Encoder(policy, job.train.max_length, job.train.mask, job.tags, job.seed)
    rows: dict[int, Row | Pair | Group] = {}  # by the identity of their example
    for number, example in enumerate((*examples, *apart), 1):
        row = encoder.encode(example)
        if not isinstance(row, Dropped):
            rows[id(example)] = row
            continue
        where = str(example.source.get("row") or f"{job.data.source}, example {number}")
        reason = row.reason + row.detail
        if job.data.bad_row == "fatal":
            hint = "correct or delete that row, or set data.bad_row=skip"
            raise UserError(f"{where}: {reason}", hint)
        bad.append(BadRow(where, reason))
    used = [example for example in examples if id(example) in rows]
    if not used:
        raise UserError(
            f"nothing to train on: all {len(bad)} rows are bad, the first is {bad[0].where}: "
            f"{bad[0].reason}",
            "correct the data, or raise train.max_length where rows are too long",
        )
    part = job.data.held_out if len(used) > 1 and not apart else 0
    sides = list(split_examples(used, part, job.seed))
    if apart:
        sides[1] = [example for example in apart if id(example) in rows]
    train, held_out = ([rows[id(example)] for example in side] for side in sides)
    return Data(
        train,
        held_out,
        bad,
        [*policy.template.notes_for(job.tags), *notes_on(used, policy.template)],
        short_prompt(used),
    )


def short_prompt(used: Sequence[Example]) -> str:
    """Returns the shortest prompt of one question, in a line, or ""; no one that is an option."""
    asked = (e.prompt[0]["content"] for e in used if len(e.prompt) == 1)
    texts = (" ".join(str(text).split()) for text in asked)
    shortest = min((t for t in texts if t and t[0] != "-"), key=len, default="")
    return shortest if len(shortest) <= MOST_ASKED else f"{shortest[:MOST_ASKED]}…"


def notes_on(used: Sequence[Example], template: ChatTemplate) -> list[str]:
    """Returns a line for each thing in the texts that may not be read as it was meant."""
    notes = []
    texts = [example.completion or "" for example in used if not example.prompt]
    if marked := sum(1 for text in texts if template.special.search(text)):
        notes.append(
            f"{marked} of {len(texts)} texts have the model's special tokens written out; there "
            "they are trained as tokens"
        )
    if foreign := sum(1 for t in texts if MARKS.search(t) and not template.special.search(t)):
        notes.append(
            f"{foreign} of {len(texts)} texts have special tokens of another model written out; "
            "there they are characters"
        )
    asked = [example.prompt[-1]["content"] for example in used if example.prompt]
    if rendered := sum(1 for t in asked if MARKS.search(t) or template.special.search(t)):
        notes.append(
            f"{rendered} of {len(asked)} prompts have special tokens of a chat written out, as if "
            "they were rendered already; there they are characters, and the chat template comes "
            "around them: give prompts without, or whole chats as the column text"
        )
    tools = sum(1 for example in used if example.tools)
    if tools and not template.shows_tools():
        notes.append(
            f"{tools} of {len(used)} examples have tools, which the model's chat template does not "
            "show"
        )
    return notes


# ---- steps ---------------------------------------------------------------------------------------


class FitLoop:
    """Trains a job's model from its last checkpoint on, and keeps the best adapter.

    done: steps made, of `total`. best: {"step": n, "value": held-out figure}. waited: looks since
    the best.
    """

    def __init__(
        self, folder: RunFolder[Job], trainer: Trainer, adapter: dict[str, Any], data: Data
    ) -> None:
        self.folder, self.trainer, self.adapter, self.data = folder, trainer, adapter, data
        self.job = folder.config
        self.per_step = self.job.train.batch * self.job.train.accumulate
        self.began = time.monotonic()
        self.done, self.total, self.waited = 0, 0, 0
        self.best: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []  # of metrics.jsonl, not yet committed

    def run(self, ui: Ui) -> None:
        """Trains to the end, or to where patience ends."""
        last = self.folder.last_commit(ui.line)
        digest = hashlib.sha256()
        for row in (*self.data.train, None, *self.data.held_out):
            digest.update(repr(row).encode())
        self.folder.keep_data(digest.hexdigest(), f"rows than {self.job.data.source} gives")
        objective, held_out = self.objectives(ui)
        an_epoch = -(-len(objective.items) // self.per_step)
        self.total = an_epoch * self.job.train.epochs
        looks = self.job.train.eval_every or an_epoch
        if last:
            self.restore(*last)
        else:
            self.look(held_out)
            self.commit()
        latest: list[Step] = []
        steps = self.trainer.train(
            objective, self.job.train, (self.job.seed,),
            schedule=LRSchedule(self.job.train.schedule), start=self.done,
        )  # fmt: skip
        with ui.progress("training", self.total) as bar:
            bar.advance(self.done)
            patience = self.job.train.patience
            while self.done < self.total and not 0 < patience <= self.waited:
                step = next(steps)
                self.done += 1
                latest = [*latest[1 - SHOWN :], step]
                self.rows.append({"schema": "metrics/1", "kind": "step", **step.row()})
                bar.update_text(live(latest))
                bar.advance(1)
                look = self.done % looks == 0 or self.done == self.total
                if look:
                    self.look(held_out)
                if look or self.done % self.job.train.save_every == 0:
                    self.commit()
        steps.close()

    def objectives(self, ui: Ui) -> tuple[Objective, Objective | None]:
        """Returns those of the rows to train on and of the held-out ones, on one reference.

        The reference is the policy as it begins, so this comes before any checkpoint is loaded.
        """
        kind, reference = self.job.train.reference, None
        if kind != "none":
            policy = self.trainer.model
            reference = base_reference(policy) if kind == "base" else self.trainer.trainable()
        rows, apart = self.data.train, self.data.held_out
        if self.job.objective in ("sft", "orpo"):
            return self.objective(rows, None), self.objective(apart, None) if apart else None
        with ui.progress("reference", len(rows) + len(apart)) as bar:
            objective = self.objective(rows, reference)
            bar.advance(len(rows))
            held_out = self.objective(apart, reference) if apart else None
            bar.advance(len(apart))
        return objective, held_out

    def objective(self, rows: Rows, reference: Arrays | None) -> Objective:
        if self.job.objective == "sft":
            return imitation([row for row in rows if isinstance(row, Row)])
        if self.job.objective == "grpo":
            groups = [row for row in rows if isinstance(row, Group)]
            return self.trainer.group_objective(groups, reference, self.job.train, self.job.grpo)
        pairs = [row for row in rows if isinstance(row, Pair)]
        return self.trainer.pair_objective(pairs, reference, self.job.train, self.job.objective)

    # ---- held-out rows --------------------------------------------------------------------------

    def look(self, held_out: Objective | None) -> None:
        """Measures the held-out rows, and remembers whether this is the best yet."""
        if held_out is None:
            return
        found = self.trainer.measure(held_out, self.job.train)
        self.rows.append({"schema": "metrics/1", "kind": "held_out", "step": self.done, **found})
        value = found[self.job.train.best_by]
        assert value is not None  # `check_job` refuses a margin where there is none
        sign = 1 if self.job.train.best_by == "loss" else -1
        better = self.best is None or sign * value < sign * self.best["value"]
        self.best = {"step": self.done, "value": value} if better else self.best
        self.waited = 0 if better else self.waited + 1

    # ---- checkpoints ----------------------------------------------------------------------------

    def restore(self, folder: Path, saved: dict[str, Any]) -> None:
        """Goes back to a checkpoint."""
        load_parameters(folder / ADAPTER, self.trainer)
        load_trainer(folder, self.trainer, saved["trainer"])
        self.done, self.best, self.waited = saved["step"], saved["best"], saved["waited"]
        self.began -= saved["seconds"]

    def commit(self) -> None:
        """Commits adapter, optimizer, cursor and the best adapter so far, at once."""
        before = self.folder.commits.all()
        seconds = time.monotonic() - self.began
        state = {"step": self.done, "best": self.best, "waited": self.waited, "seconds": seconds}

        def save(folder: Path) -> None:
            save_adapter(folder, self.trainer.trainable(), self.adapter, self.job.policy.model)
            state["trainer"] = save_trainer(folder, self.trainer)
            if self.best and self.best["step"] == self.done:
                shutil.copyfile(folder / ADAPTER, folder / BEST)
            elif self.best:
                shutil.copyfile(before[-1] / BEST, folder / BEST)

        self.folder.commit(self.done, {"metrics.jsonl": self.rows}, state, save)
        self.rows = []

    def finish(self, ui: Ui) -> dict[str, Any]:
        """Writes adapter/, last/, summary.json and the page; returns the summary."""
        folder = self.folder.commits.all()[-1]
        for name, file in (("last", ADAPTER), ("adapter", BEST if self.best else ADAPTER)):

            def fill(into: Path, file: str = file) -> None:
                shutil.copyfile(folder / file, into / ADAPTER)
                shutil.copyfile(folder / CONFIG, into / CONFIG)

            replace_folder(self.folder.path / name, fill)
        from mlxreflect.report.plots import draw_plots

        draw_plots(self.folder.path)
        summary = self.summary()
        self.folder.write_json("summary.json", summary)
        from mlxreflect.view.page import keep_page

        keep_page(self.folder.path, ui)
        return summary

    def summary(self) -> dict[str, Any]:
        rows = list(read_rows(self.folder.path / "metrics.jsonl"))
        steps = [row for row in rows if row["kind"] == "step"]
        looks = [row for row in rows if row["kind"] == "held_out"]
        figures = [{key: look[key] for key in MEASURED} for look in looks]
        tokens = sum(step["tokens"] for step in steps)
        return {
            "schema": "training/1",
            "objective": self.job.objective,
            "model": self.job.policy.model,
            "rows": len(self.data.train),
            "held_out": len(self.data.held_out),
            "skipped": len(self.data.bad),
            "cut_prompts": self.data.cut_prompts,
            "decontaminated": self.data.decontaminated,
            "asked": self.data.asked,
            "steps": len(steps),
            "stopped_early": self.done < self.total,
            "first": {key: steps[0][key] for key in MEASURED},
            "last": {key: steps[-1][key] for key in MEASURED},
            "held_out_before": figures[0] if figures else None,
            "held_out_after": figures[-1] if figures else None,
            "best": self.best,
            "tokens_trained": tokens,
            "tokens_per_second": round(tokens / sum(step["seconds"] for step in steps), 1),
            "wall_seconds": round(time.monotonic() - self.began, 1),
            "peak_memory_bytes": mx.get_peak_memory(),
            "adapter": str(self.folder.path / "adapter"),
        }


def live(steps: Sequence[Step]) -> str:
    """Returns means over the latest steps, for the line beside the bar."""
    n = len(steps)
    parts = [f"loss {sum(step.loss for step in steps) / n:.4f}"]
    margins = [step.margin for step in steps if step.margin is not None]
    right = [step.accuracy for step in steps if step.accuracy is not None]
    if margins and right:
        parts.append(f"margin {sum(margins) / n:+.3f}, {sum(right) / n:.0%} ranked right")
    rate = sum(step.tokens for step in steps) / sum(step.seconds for step in steps)
    return ", ".join([*parts, f"{rate:.0f} tokens/s", f"{mx.get_peak_memory() / 1e9:.2f} GB"])


def show_training(summary: dict[str, Any]) -> "Table":
    """Returns the table of a training: held-out figures before and after, speed, the adapter."""
    shown: dict[str, object] = {
        "steps": f"{summary['steps']}" + (" (patience ended)" if summary["stopped_early"] else ""),
        "rows": f"{summary['rows']} trained on, {summary['held_out']} held out, "
        f"{summary['skipped']} skipped",
    }
    if summary.get("cut_prompts"):
        shown["prompts cut to fit"] = summary["cut_prompts"]
    if summary.get("decontaminated"):
        shown["decontaminated"] = sentence(summary["decontaminated"], "row")
    before, after = summary["held_out_before"], summary["held_out_after"]
    of = "held-out" if before else "step's"
    first, last = (before, after) if before else (summary["first"], summary["last"])
    for key in ("loss", "margin"):
        if first[key] is not None:
            shown[f"{of} {key}"] = f"{first[key]:.4f} → {last[key]:.4f}"
    if last["accuracy"] is not None:
        shown["ranked right"] = f"{percent(first['accuracy'])} → {percent(last['accuracy'])}"
    if best := summary["best"]:
        unchanged = "before the first step; what is kept is as it began"
        when = f"after step {best['step']}" if best["step"] else unchanged
        shown["best"] = f"{best['value']:.4f}, {when}"
    shown |= {
        "speed": f"{summary['tokens_per_second']:.0f} trained tokens/s",
        "took": str(timedelta(seconds=round(summary["wall_seconds"]))),
        "peak memory": f"{summary['peak_memory_bytes'] / 1e9:.2f} GB",
        "adapter": summary["adapter"],
        "plots": Path(summary["adapter"]).parent / "plots",
    }
    return facts(shown)
