"""One run from its first problem to its verdict: evaluate, strategy wave by wave, evaluate."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxreflect.config.methods import method_of
from mlxreflect.config.recipe import eval_spec
from mlxreflect.config.schema import Limits, Recipe
from mlxreflect.core.journal import read_rows, replace_folder
from mlxreflect.core.records import to_row
from mlxreflect.core.ui import Ui
from mlxreflect.critics import open_critics
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.local import SelfCritic
from mlxreflect.data.forms import trl_row
from mlxreflect.evaluation.arms import short_hash
from mlxreflect.evaluation.contamination import clean, keep_rows
from mlxreflect.evaluation.evaluate import eval_problems
from mlxreflect.methods.base import Frame, Played, Wave
from mlxreflect.methods.learning import ADAPTER, REFLECTOR, Learning
from mlxreflect.models.load import device_name, load_policy, weights_hash
from mlxreflect.prompts.parsing import TAGS
from mlxreflect.runs.folder import RunFolder
from mlxreflect.runs.measuring import Measuring, check_measured
from mlxreflect.runs.summary import conclude
from mlxreflect.tasks import TASKS, check_eval, get_task
from mlxreflect.train.lora import attach, save_adapter
from mlxreflect.train.network import parameters
from mlxreflect.train.references import References
from mlxreflect.train.trainer import (
    Trainer,
    load_arrays,
    load_parameters,
    load_trainer,
    save_trainer,
)

FEW = 4  # fewer attempts say nothing of whether the policy knows the format


def execute(run: RunFolder[Recipe], ui: Ui) -> dict[str, Any]:
    """Do what is left of a run, and return its summary."""
    if done := run.finished(ui):
        return done
    started = time.monotonic()
    recipe, spec = run.config, eval_spec(run.config)
    method = method_of(recipe)
    exam = TASKS[spec.task.name]
    held_out = eval_problems(exam, spec)
    cleaned = clean(recipe, held_out)
    run.keep_data(
        short_hash([list(cleaned.problems), [problem.id for problem in held_out]]),
        "problems than its task and its evaluation give",
    )
    with ExitStack() as stack:
        ledger = open_ledger(run)
        stack.callback(ledger.close)
        critics = open_critics(recipe, method.tiers(recipe), run.id, ledger, stack)
        policy = load_policy(recipe.policy)
        critics["self"] = SelfCritic(policy, recipe.critic.tier("basic"), recipe.policy.batch)
        adapter = attach(
            policy.model, recipe.train, recipe.seed, recipe.policy.model, recipe.policy.adapter
        )
        references = References.open(recipe.train.reference_cache)
        if references:
            stack.callback(references.close)
        trainer = Trainer(policy.model, references, ui.line)
        initial = trainer.trainable()
        task, problems = TASKS[recipe.task.name], cleaned.problems
        frame = Frame(method, recipe, task, policy, trainer, critics, problems)
        before = restore(run, frame, trainer, adapter)
        keep_rows(run.path, cleaned.rows)
        of = "" if exam is task else f" of the task {exam.name}"
        ui.header(
            {"recipe": recipe.name, "policy": recipe.policy.model,
             "critic": method.critic_names(recipe),
             "problems": len(problems), "held out": f"{len(held_out)}{of}", "device": device_name(),
             "decontaminated": cleaned.sentence(), "run": str(run.path)}
        )  # fmt: skip
        measuring = Measuring(run, (policy, exam, held_out), spec, ui)
        with parameters(policy.model, initial):  # also when a resumed run has to do it again
            base = measuring.whole("base", "")
        del initial  # where all weights are trained it would be a second copy
        play_waves(
            run, frame, trainer, adapter, ui, before + time.monotonic() - started,
            lambda arm: measuring.arm(arm, weights_hash(trainer.trainable())),
        )  # fmt: skip
        finish_adapter(run, frame.learning, adapter)
        reflector = frame.learning.held.get(REFLECTOR)
        trained = measuring.whole("trained", weights_hash(trainer.trainable()), reflector)
        asked = list(ledger.rows())
    measuring.second_answers()
    summary = conclude(run, base, trained, asked)
    summary["decontaminated"] = cleaned.counts
    summary["wall_seconds"] = round(before + time.monotonic() - started, 1)
    run.write_json("summary.json", summary)  # last: a run that has it is finished
    return summary


def check_run(recipe: Recipe) -> None:
    """Raises UserError for a task or an evaluation that is not there, or that cannot be."""
    get_task(recipe.task.name)
    spec = eval_spec(recipe)
    check_eval(spec)
    check_measured(recipe, spec)


def open_ledger(run: RunFolder[Recipe]) -> Ledger:
    """What the critics of a run were asked and what it took, also before it was stopped."""
    critic = run.config.critic
    return Ledger(run.path / "critic.jsonl", critic.budget, kept=critic.cache != "off")


def restore(
    run: RunFolder[Recipe], frame: Frame, trainer: Trainer, adapter: dict[str, Any]
) -> float:
    """Go back to the last commit, or make the first; returns the seconds spent until it."""
    last = run.last_commit()
    if last is None:
        commit(run, 0, frame, trainer, adapter, {}, 0.0)
        return 0.0
    folder, saved = last
    load_parameters(folder / "adapters.safetensors", trainer)
    load_trainer(folder, trainer, saved["trainer"])
    frame.restore(saved["strategy"])
    for name in saved["held"]:
        frame.learning.held[name] = load_arrays(folder / f"{name}.safetensors")
    seconds: float = saved["seconds"]
    return seconds


def commit(
    run: RunFolder[Recipe],
    number: int,
    frame: Frame,
    trainer: Trainer,
    adapter: dict[str, Any],
    rows: dict[str, list[dict[str, Any]]],
    seconds: float,
) -> None:
    """Commit a wave: rows, adapter, optimizers, reference and the strategy's state at once.

    Names in `held` are the method's own, and files of the commit.
    """
    held = frame.learning.held
    state: dict[str, Any] = {
        "strategy": frame.saved(), "held": list(held), "seconds": seconds,
    }  # fmt: skip

    def save(folder: Path) -> None:
        save_adapter(folder, trainer.trainable(), adapter, run.config.policy.model)
        state["trainer"] = save_trainer(folder, trainer)
        for name, arrays in held.items():
            mx.save_safetensors(str(folder / f"{name}.safetensors"), arrays)

    run.commit(number, rows, state, save)


def play_waves(
    run: RunFolder[Recipe],
    frame: Frame,
    trainer: Trainer,
    adapter: dict[str, Any],
    ui: Ui,
    seconds: float,
    measure: Callable[[str], Any],
) -> None:
    """Wave after wave, each committed. measure: evaluates the policy as it is, as an arm."""
    started = time.monotonic() - seconds
    spent = spent_so_far(run)
    done, total = frame.progress()
    with ui.progress("learning", total) as bar:
        bar.advance(done)
        frame.status = bar.update_text
        ending = reached(spent, run.config.limits, ui)
        while (wave := frame.next_wave(ending=ending)) is not None:
            if wave.new_epoch and wave.number:
                keep_epoch(run, wave.epoch - 1)
            begun = time.monotonic()
            played = frame.play(wave)
            figures = {**played.figures, "seconds": round(time.monotonic() - begun, 3)}
            ui.line(describe_wave(figures, method_of(run.config).solved))
            if fault := no_format(figures, run.config.prompt.tags):
                ui.line(fault)
            if played.arm:  # before the commit: a run stopped in it does the wave again
                measure(played.arm)
            commit(
                run, wave.number + 1, frame, trainer, adapter,
                journal_rows(wave, played, figures), time.monotonic() - started,
            )  # fmt: skip
            spent += spending(figures)
            before, (done, _) = done, frame.progress()
            bar.advance(done - before)
            ending = ending or reached(spent, run.config.limits, ui)
        keep_epoch(run, frame.state.epoch)
        bar.update_text("")  # not of its last step alone


def spent_so_far(run: RunFolder[Recipe]) -> Counter[str]:
    rows = read_rows(run.path / "metrics.jsonl")
    return sum((spending(row) for row in rows if row["kind"] == "wave"), Counter[str]())


def spending(figures: dict[str, Any]) -> Counter[str]:
    """What a wave took, under the names of [limits]."""
    return Counter(
        policy_tokens=figures["tokens_generated"],
        critic_calls=figures["critic"].get("calls", 0),
        training_tokens=figures["tokens_trained"],
    )


def reached(spent: Counter[str], limits: Limits, ui: Ui) -> bool:
    """Whether a limit is, which is said."""
    for name, limit in limits:
        if limit and spent[name] >= limit:
            ui.line(f"no more problems: {spent[name]} {name} reach limits.{name} = {limit}")
            return True
    return False


def journal_rows(wave: Wave, played: Played, figures: dict[str, Any]) -> dict[str, Any]:
    at = {"schema": "metrics/1", "epoch": wave.epoch, "wave": wave.number}
    metrics = [{**at, "kind": "step", **step.row()} for step in played.steps]
    preference = [e for e in played.examples or () if e.kind == "preference"]
    imitation = [e for e in played.examples or () if e.kind == "sft"]
    return {
        "episodes.jsonl": [to_row(episode) for episode in played.episodes],
        "examples.jsonl": [to_row(example) for example in played.examples or ()],
        "preference.jsonl": [trl_row(example) for example in preference],
        "sft.jsonl": [trl_row(example) for example in imitation],
        "metrics.jsonl": [*metrics, {**at, "kind": "wave", **figures}],
    }


def describe_wave(figures: dict[str, Any], solved: str) -> str:
    """In one line. told: what a method has to say of its own. solved: its word for it, or ""."""
    parts = []
    if n := figures["problems"]:  # some waves are training alone
        right = f"{figures['passed'] / n:.1%} right at once"
        parts += [f"{n} problems", right, *([f"{figures['solved']} {solved}"] if solved else [])]
    parts += [f"{figures['pairs']} pairs"] if figures["pairs"] else []
    parts += [f"bucket {figures['bucket']}"] if "bucket" in figures else []
    parts += [figures["told"]] if figures.get("told") else []
    parts += [f"{figures['seconds']:.1f} s"]
    at = f"epoch {figures['epoch']}, wave {figures['number']} ({figures['stage']})"
    return f"{at}: {', '.join(parts)}"


def no_format(figures: dict[str, Any], tags: str) -> str:
    """What to do where no attempt of the first wave keeps the format; empty where one does."""
    attempts = sum(figures["failures"].values())  # all of them, where none keeps it
    if figures["number"] or figures["format_ok"] or attempts < FEW:
        return ""
    start, end = TAGS[tags]
    other = next(name for name in TAGS if name != tags)
    return (
        f"warning: none of {attempts} attempts keeps the format {start}…{end}, and so the policy "
        f"can hardly learn: try --set prompt.tags={other}, or a larger policy.max_new_tokens"
    )


def keep_epoch(run: RunFolder[Recipe], epoch: int) -> None:
    """A copy of the last commit's adapter, as it is at an epoch's end, for good."""
    last = run.commits.last()
    assert last is not None  # a run has at least its first commit
    final = run.path / "checkpoints" / f"epoch-{epoch}"

    def copy(folder: Path) -> None:
        for name in ("adapters.safetensors", "adapter_config.json"):
            shutil.copyfile(last[0] / name, folder / name)

    replace_folder(final, copy)


def finish_adapter(run: RunFolder[Recipe], learning: Learning, adapter: dict[str, Any]) -> None:
    """The policy's adapter, and those that the method holds beside it."""
    held = {name: arrays for name, arrays in learning.held.items() if name.startswith(ADAPTER)}
    for name, found in {"adapter": learning.trainer.trainable(), **held}.items():
        arrays = dict(sorted(found.items()))  # in one order, also where they were read from a file
        save = partial(
            save_adapter, arrays=arrays, config=adapter, model=run.config.policy.model
        )  # fmt: skip
        replace_folder(run.path / name, save)
