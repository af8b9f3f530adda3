"""One run from its first problem to its verdict.

Problems are loaded, the base is evaluated, the method plays its waves, each is committed, the
trained policy is evaluated, and both are compared. Stopped anywhere, a run goes on from its last
commit and ends with the same bytes.
"""

import shutil
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxreflect.config.recipe import eval_specs
from mlxreflect.config.schema import Recipe, method_of
from mlxreflect.core.journal import read_rows, replace_folder
from mlxreflect.core.ui import Ui
from mlxreflect.critics import open_critics, open_embedder
from mlxreflect.critics.base import Critic
from mlxreflect.critics.embeddings import Embedder
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.local import SelfCritic
from mlxreflect.evaluation.arms import read_results, short_hash
from mlxreflect.evaluation.contamination import clean, keep_rows
from mlxreflect.evaluation.evaluate import eval_problems
from mlxreflect.evaluation.judge import Judging
from mlxreflect.methods.base import Frame
from mlxreflect.methods.learning import ADAPTER, REFLECTOR, Learning
from mlxreflect.models.load import limit_memory, load_policy, weights_hash
from mlxreflect.models.template import with_tags
from mlxreflect.runs.arms import (
    RunArms,
    Watch,
    ask_probes,
    check_arms,
    describe_run,
    write_adapter,
)
from mlxreflect.runs.figures import (
    conclude,
    describe_wave,
    ends_at,
    journal_rows,
    no_format,
    reached,
    spending,
    too_short,
)
from mlxreflect.runs.folder import RunFolder
from mlxreflect.tasks import check_eval, find_task
from mlxreflect.train.lora import attach_everywhere, save_adapter
from mlxreflect.train.network import parameters
from mlxreflect.train.references import References
from mlxreflect.train.trainer import (
    Trainer,
    load_arrays,
    load_parameters,
    load_trainer,
    save_trainer,
)


def execute(run: RunFolder[Recipe], ui: Ui) -> dict[str, Any]:
    """Does what is left of a run, and returns its summary."""
    if done := run.finished(ui):
        return done
    started = time.monotonic()
    recipe, specs = run.config, eval_specs(run.config)
    task, method = find_task(recipe.task), method_of(recipe)
    held_out = {name: eval_problems(find_task(s.task), s) for name, s in specs.items()}
    cleaned = clean(recipe, held_out)
    dev = cleaned.dev
    asked = [one.id for problems in held_out.values() for one in problems]
    watched = [[problem.id for problem in dev]] if dev else []
    run.keep_data(
        short_hash([list(cleaned.problems), asked, *watched]),
        "problems than its task and its evaluation give",
    )
    limit_memory(recipe.train.cache_limit_gb, recipe.train.wired_limit_gb)
    with ExitStack() as stack:
        ledger, critics, embedder = open_helpers(run, stack, ui)
        policy = load_policy(recipe.policy, hosts=run.hosts)
        policy.say = ui.line
        recipe = with_tags(recipe, policy.template)
        specs = {name: with_tags(spec, policy.template) for name, spec in specs.items()}
        if method.asks_itself(recipe):
            critics["self"] = SelfCritic(policy, recipe.critic.tier("basic"), recipe.policy.batch)
        adapter = attach_everywhere(policy, recipe.train, recipe.seed, recipe.policy)
        references = References.open(recipe.train.reference_cache)
        if references:
            stack.callback(references.close)
        trainer = Trainer(policy.model, references, ui.line, policy.hosts, policy.number)
        initial = trainer.trainable()
        frame = Frame(
            method, recipe, task, policy, trainer, critics, cleaned.problems, embedder
        )  # fmt: skip
        loop = RunLoop(run, frame, trainer, adapter, ui, started)
        loop.restore()
        if cleaned.rows:
            keep_rows(run.path, cleaned.rows)
        ui.header(describe_run(run, specs, held_out, len(dev), cleaned))
        for note in policy.template.notes_for(recipe.prompt.tags):
            ui.line(note)
        judging = Judging(ui, stack, usual=recipe.critic.tier("judge"), ledger=ledger)
        arms = RunArms(run, policy, specs, held_out, ui, judging)
        watch = Watch(run, policy, trainer, dev, arms.answers, ui)
        with parameters(policy.model, initial):  # also when a resumed run has to do it again
            base = arms.evaluate_all("base", "")
            watch.begin(adapter)
        del initial  # where all weights are trained it would be a second copy
        loop.play(arms, watch)
        watch.choose(frame.learning.held)
        finish_adapter(run, frame.learning, adapter)
        reflector = frame.learning.held.get(REFLECTOR)
        trained = arms.evaluate_all("trained", weights_hash(trainer.trainable()), reflector)
        unjudged = arms.judge()
        calls = list(ledger.rows())
    if arms.retries:
        run.write_json("retries.json", arms.retries.results())
    summary = conclude(run, base, trained, calls, ui, unjudged)
    summary["decontaminated"] = cleaned.counts
    summary["wall_seconds"] = round(loop.seconds(), 1)
    run.write_json("summary.json", summary)  # last: a run that has it is finished, if it is judged
    from mlxreflect.view.page import keep_page

    keep_page(run.path, ui)
    return summary


def open_helpers(
    run: RunFolder[Recipe], stack: ExitStack, ui: Ui
) -> tuple[Ledger, dict[str, Critic], Embedder | None]:
    """Opens the ledger, which knows what was spent before a stop, the critics and the embedder."""
    recipe, method = run.config, method_of(run.config)
    kept = recipe.critic.cache != "off"
    ledger = Ledger(run.path / "critic.jsonl", recipe.critic.budget, kept=kept)
    stack.callback(ledger.close)
    critics = open_critics(recipe, method.tiers(recipe), run.id, ledger, stack, run.hosts)
    for critic in critics.values():
        critic.say = ui.line
    embeds = method.embedder(recipe)
    embedder = open_embedder(embeds, run.id, stack, ledger) if embeds else None
    if embedder:
        embedder.say = ui.line
    return ledger, critics, embedder


def check_run(recipe: Recipe) -> None:
    """Raises UserError for a task or an evaluation that is not there, or that cannot be."""
    find_task(recipe.task)
    specs = eval_specs(recipe)
    for spec in specs.values():
        check_eval(spec)
    check_arms(recipe, specs)


class RunLoop:
    """Plays the waves of a run from its last commit on, and commits each.

    adapter: the settings of the adapter that is saved. began: the time at which a run that was
    never stopped would have begun.
    """

    def __init__(
        self, run: RunFolder[Recipe], frame: Frame, trainer: Trainer, adapter: dict[str, Any],
        ui: Ui, began: float,
    ) -> None:  # fmt: skip
        self.run, self.frame, self.trainer, self.adapter = run, frame, trainer, adapter
        self.ui, self.began = ui, began

    def seconds(self) -> float:
        """Returns the seconds that the run has taken, also before it was stopped."""
        return time.monotonic() - self.began

    def restore(self) -> None:
        """Goes back to the last commit, or makes the first."""
        last = self.run.last_commit(self.ui.line)
        if last is None:
            self.commit(0, {"probes.jsonl": self.ask_probes(0, None)}, 0.0)
            return
        folder, saved = last
        load_parameters(folder / "adapters.safetensors", self.trainer)
        load_trainer(folder, self.trainer, saved["trainer"])
        running = self.frame.running
        running.state = type(running.state)(**saved["strategy"])
        for name in saved["held"]:
            self.frame.learning.held[name] = load_arrays(folder / f"{name}.safetensors")
        unjudged = read_results(self.run.path / "summary.json") or {}
        self.began -= unjudged.get("wall_seconds", saved["seconds"])

    def commit(self, number: int, rows: dict[str, list[dict[str, Any]]], seconds: float) -> None:
        """Commits a wave: rows, adapter, optimizers, reference and the method's state at once.

        Names in `held` are the method's own, and files of the commit.
        """
        held = self.frame.learning.held
        state = {"strategy": asdict(self.frame.state), "held": list(held), "seconds": seconds}

        def save(folder: Path) -> None:
            model = self.run.config.policy.model
            save_adapter(folder, self.trainer.trainable(), self.adapter, model)
            state["trainer"] = save_trainer(folder, self.trainer)
            for name, arrays in held.items():
                mx.save_safetensors(str(folder / f"{name}.safetensors"), arrays)

        self.run.commit(number, rows, state, save)

    def ask_probes(self, epoch: int, wave: int | None) -> list[dict[str, Any]]:
        return ask_probes(self.frame.rollouts.policy, self.frame.recipe, epoch, wave)

    def play(self, arms: RunArms, watch: Watch) -> None:
        """Plays wave after wave, and evaluates the policy where the method or the recipe says."""
        run, frame, ui, after = self.run, self.frame, self.ui, arms.seconds
        watch.keep(self.adapter)
        rows = read_rows(run.path / "metrics.jsonl")
        waves = [row for row in rows if row["kind"] == "wave"]
        spent = sum(map(spending, waves), Counter[str]())
        warned = bool(too_short(spent, run.config))
        seconds = sum(row["seconds"] for row in waves)
        done, total = frame.progress()
        with ui.progress("learning", total) as bar:
            bar.advance(done)
            bar.update_end(ends_at(seconds, done, total, after))
            frame.tell = bar.update_text
            ending = reached(spent, run.config.limits, ui) or watch.stops()
            while (wave := frame.next_wave(ending=ending)) is not None:
                if wave.new_epoch and wave.number:
                    keep_epoch(run, wave.epoch - 1)
                begun = time.monotonic()
                played = frame.play(wave)
                figures = {**played.figures, "seconds": round(time.monotonic() - begun, 3)}
                figures |= {"arm": played.arm} if played.arm else {}
                ui.line(describe_wave(figures, method_of(run.config).solved))
                if fault := no_format(figures, run.config):
                    ui.line(fault)
                # Before the commit: a run stopped in an evaluation does the wave again.
                if played.arm:
                    arms.evaluate(played.arm, weights_hash(self.trainer.trainable()))
                added = journal_rows(wave, played, figures, run.config.prompt.style)
                added["metrics.jsonl"] += (looked := watch.look(wave.epoch, wave.number))
                if played.steps:
                    added["probes.jsonl"] = self.ask_probes(wave.epoch, wave.number)
                self.commit(wave.number + 1, added, self.seconds())
                if looked:
                    watch.keep(self.adapter)
                spent += spending(figures)
                if not warned and (fault := too_short(spent, run.config)):
                    ui.line(fault)
                    warned = True
                seconds += figures["seconds"]
                before, (done, _) = done, frame.progress()
                bar.advance(done - before)
                bar.update_end(ends_at(seconds, done, total, after))
                ending = ending or reached(spent, run.config.limits, ui) or watch.stops()
            played = frame.state.wave
            if looked := watch.look(frame.state.epoch, played - 1, last=True):
                self.commit(played + 1, {"metrics.jsonl": looked}, self.seconds())
                watch.keep(self.adapter)
            keep_epoch(run, frame.state.epoch)
            bar.update_text("")  # not of its last step alone


def keep_epoch(run: RunFolder[Recipe], epoch: int) -> None:
    """Copies the last commit's adapter, as it is at an epoch's end, for good."""
    last = run.commits.all()[-1]
    final = run.path / "checkpoints" / f"epoch-{epoch}"

    def copy(folder: Path) -> None:
        for name in ("adapters.safetensors", "adapter_config.json"):
            shutil.copyfile(last / name, folder / name)

    replace_folder(final, copy)
    for tell in run.after_epoch:
        tell(epoch)


def finish_adapter(run: RunFolder[Recipe], learning: Learning, adapter: dict[str, Any]) -> None:
    """Writes the policy's adapter, and those that the method holds beside it."""
    held = {name: arrays for name, arrays in learning.held.items() if name.startswith(ADAPTER)}
    for name, found in {"adapter": learning.trainer.trainable(), **held}.items():
        write_adapter(run, name, found, adapter)
