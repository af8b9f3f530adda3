"""The course of one training: steps, looks at held-out rows, checkpoints, the best adapter."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import mlx.core as mx

from mlxreflect.commits import Commits, replace_folder
from mlxreflect.decontaminate import FILE
from mlxreflect.errors import UserError
from mlxreflect.job import Job
from mlxreflect.records import read_rows, write_atomic
from mlxreflect.train.batches import Group, Pair, Row
from mlxreflect.train.checkpoint import load_parameters, load_trainer, save_trainer
from mlxreflect.train.lora import base_reference, save_adapter
from mlxreflect.train.network import Arrays
from mlxreflect.train.objectives import Objective, Settings, imitation
from mlxreflect.train.sources import BadRow
from mlxreflect.train.steps import Step
from mlxreflect.train.trainer import Trainer
from mlxreflect.ui import Ui

JOURNALS = ("metrics.jsonl",)
# What a process killed while it began may leave: not yet a job.
FIRST = {".lock", "job.toml", "job.toml.tmp", "job.json.tmp"}
ADAPTER, BEST, CONFIG = "adapters.safetensors", "best.safetensors", "adapter_config.json"
MEASURED = ("loss", "margin", "accuracy")
SHOWN = 20  # steps that the live figures are means of
Rows = list[Row | Pair | Group]


@dataclass(frozen=True)
class Place:
    """A job's folder, locked by this process.

    made: the folders that were made for it, the innermost first; None: it was there before.
    """

    path: Path
    job: Job
    lock: TextIO
    made: Sequence[Path] | None = None

    @property
    def commits(self) -> Commits:
        return Commits(self.path, "step", JOURNALS)

    def take_back(self) -> bool:
        """Remove a new job whose training has not begun; False where it can be resumed."""
        if self.made is None or (self.path / "checkpoints").exists():
            return False
        for name in (*FIRST, "job.json", "bad_rows.jsonl", FILE, *JOURNALS):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            for folder in self.made:
                folder.rmdir()
        return True


@dataclass(frozen=True)
class Data:
    """Rows to train on, rows held out, and what could not be used, by name.

    decontaminated: counts of rows that occur in an evaluation; None where none was named.
    """

    train: Rows
    held_out: Rows
    bad: list[BadRow]
    decontaminated: dict[str, Any] | None = None

    @property
    def cut_prompts(self) -> int:
        """Rows whose prompt lost its beginning, to fit."""
        return sum(row.cut > 0 for row in (*self.train, *self.held_out))

    @property
    def digest(self) -> str:
        """Of all rows, in their order: a job goes on with the rows that it began with."""
        digest = hashlib.sha256()
        for row in (*self.train, None, *self.held_out):
            digest.update(repr(row).encode())
        return digest.hexdigest()


def settings_of(job: Job) -> Settings:
    train, grpo = job.train, job.grpo
    return Settings(
        objective=job.objective, lr=train.lr, batch=train.batch, accumulate=train.accumulate,
        epochs=train.epochs, beta=train.beta, smoothing=train.smoothing, logps=train.logps,
        nll=train.nll, dpo=train.dpo, clip=train.clip, warmup=train.warmup,
        schedule=train.schedule, weight_decay=train.weight_decay,
        grad_checkpoint=train.grad_checkpoint, memory_gb=train.memory_gb,
        clip_ratio=grpo.clip_ratio, kl=grpo.kl, average=grpo.average,
        scale_rewards=grpo.scale_rewards,
    )  # fmt: skip


class Course:
    """Trains a job's model from its last checkpoint on.

    done: steps made, of `total`. best: {"step": n, "value": held-out figure}. waited: looks since
    the best.
    """

    def __init__(self, place: Place, trainer: Trainer, adapter: dict[str, Any], data: Data) -> None:
        self.place, self.trainer, self.adapter, self.data = place, trainer, adapter, data
        self.job, self.settings = place.job, settings_of(place.job)
        self.per_step = self.settings.batch * self.settings.accumulate
        self.began = time.monotonic()
        self.done, self.total, self.waited = 0, 0, 0
        self.best: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []  # of metrics.jsonl, not yet committed

    def run(self, ui: Ui) -> None:
        """Train to the end, or to where patience ends."""
        last = self.place.commits.last()
        if last and last[1]["data"] != self.data.digest:
            raise UserError(
                f"{self.job.data.source} gives other rows than those this training began with",
                "bring the data (and the model's tokenizer) back, or begin anew with another --out",
            )
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
        steps = self.trainer.train(objective, self.settings, (self.job.seed,), self.done)
        with ui.progress("training", self.total) as bar:
            bar.advance(self.done)
            while self.done < self.total and not self.impatient():
                step = next(steps)
                self.done += 1
                check_finite(step, self.done)
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
        """Those of the rows to train on and of the held-out ones, on the same reference.

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
            return self.trainer.group_objective(groups, reference, self.settings)
        pairs = [row for row in rows if isinstance(row, Pair)]
        return self.trainer.pair_objective(pairs, reference, self.settings)

    # ---- held-out rows --------------------------------------------------------------------------

    def look(self, held_out: Objective | None) -> None:
        """Measure the held-out rows, and remember whether this is the best yet."""
        if held_out is None:
            return
        found = self.trainer.measure(held_out, self.settings)
        self.rows.append({"schema": "metrics/1", "kind": "held_out", "step": self.done, **found})
        value = found[self.job.train.best_by]
        assert value is not None  # `check_job` refuses a margin where there is none
        better = self.best is None or (
            value < self.best["value"] if self.job.train.best_by == "loss"
            else value > self.best["value"]
        )  # fmt: skip
        self.best = {"step": self.done, "value": value} if better else self.best
        self.waited = 0 if better else self.waited + 1

    def impatient(self) -> bool:
        return 0 < self.job.train.patience <= self.waited

    # ---- checkpoints ----------------------------------------------------------------------------

    def restore(self, folder: Path, saved: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        load_parameters(folder / ADAPTER, self.trainer)
        load_trainer(folder, self.trainer, saved["trainer"])
        self.done, self.best, self.waited = saved["step"], saved["best"], saved["waited"]
        self.began -= saved["seconds"]

    def commit(self) -> None:
        """Adapter, optimizer, cursor and the best adapter so far, at once."""
        before = self.place.commits.all()
        state: dict[str, Any] = {
            "step": self.done, "best": self.best, "waited": self.waited, "data": self.data.digest,
            "seconds": time.monotonic() - self.began,
        }  # fmt: skip

        def save(folder: Path) -> None:
            save_adapter(folder, self.trainer.trainable(), self.adapter, self.job.policy.model)
            state["trainer"] = save_trainer(folder, self.trainer)
            if self.best and self.best["step"] == self.done:
                shutil.copyfile(folder / ADAPTER, folder / BEST)
            elif self.best:
                shutil.copyfile(before[-1] / BEST, folder / BEST)

        self.place.commits.add(self.done, {"metrics.jsonl": self.rows}, state, save)
        self.rows = []

    def finish(self) -> dict[str, Any]:
        """adapter/, last/ and summary.json, of what is committed."""
        folder = self.place.commits.all()[-1]
        for name, file in (("last", ADAPTER), ("adapter", BEST if self.best else ADAPTER)):

            def fill(into: Path, file: str = file) -> None:
                shutil.copyfile(folder / file, into / ADAPTER)
                shutil.copyfile(folder / CONFIG, into / CONFIG)

            replace_folder(self.place.path / name, fill)
        summary = self.summary()
        write_atomic(self.place.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def summary(self) -> dict[str, Any]:
        rows = list(read_rows(self.place.path / "metrics.jsonl"))
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
            "adapter": str(self.place.path / "adapter"),
        }


def check_finite(step: Step, number: int) -> None:
    """Raises UserError where training has come to nothing: all that follows would be nan."""
    if not (math.isfinite(step.loss) and math.isfinite(step.grad_norm)):
        raise UserError(
            f"step {number}: the loss is {step.loss}, its gradient's norm {step.grad_norm}",
            "begin anew with another --out and a lower train.lr, or a train.warmup",
        )


def live(steps: Sequence[Step]) -> str:
    """Means over the latest steps, for the line beside the bar."""
    n = len(steps)
    parts = [f"loss {sum(step.loss for step in steps) / n:.4f}"]
    margins = [step.margin for step in steps if step.margin is not None]
    right = [step.accuracy for step in steps if step.accuracy is not None]
    if margins and right:
        parts.append(f"margin {sum(margins) / n:+.3f}, {sum(right) / n:.0%} ranked right")
    rate = sum(step.tokens for step in steps) / sum(step.seconds for step in steps)
    return ", ".join([*parts, f"{rate:.0f} tokens/s", f"{mx.get_peak_memory() / 1e9:.2f} GB"])
