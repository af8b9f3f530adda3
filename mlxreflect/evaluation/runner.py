"""The arms of one `mlxreflect eval`: models, adapters on them, models behind a server.

With one model and one adapter the arm is the model with the adapter. With more of either every
model is also asked without, and an adapter goes with the model that it was trained on.

The arms of one `mlxreflect eval` answer, one after another; then they are compared.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxreflect.config.schema import EvalSpec, PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json, read_rows
from mlxreflect.core.records import Problem
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.answers import Answers
from mlxreflect.evaluation.arms import fingerprint
from mlxreflect.evaluation.chains_eval import check_chain, evaluate_chains
from mlxreflect.evaluation.compare import compare_all
from mlxreflect.evaluation.evaluate import eval_problems, evaluate
from mlxreflect.evaluation.results import warnings
from mlxreflect.evaluation.served import ServedModel, evaluate_served
from mlxreflect.models.load import adapted, load_policy, missing_model
from mlxreflect.models.policy import Policy
from mlxreflect.report.report import write_outputs
from mlxreflect.tasks import TASKS, check_exam
from mlxreflect.tasks.base import Task

ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")
LONGEST_NAME = 60


@dataclass(frozen=True)
class Entry:
    """One arm. name: of its row in the table and, with several arms, of its folder."""

    name: str
    model: PolicyConfig | ServedModel


def line_up(
    models: Sequence[str],
    adapters: Sequence[str],
    bits: Sequence[int],
    served: Sequence[ServedModel],
    *,
    base: bool = False,
) -> list[Entry]:
    """The arms in the order of the table; the first is what the others are compared with.

    bits: of each quantisation on load, 0 for none. base: also a single adapter's model without it.
    Raises UserError for a model or adapter that is not there.
    """
    if wrong := set(bits) - {0, 4, 8}:
        raise UserError(f"--quantize {min(wrong)}: no such number of bits", "give 4, 8 or 0")
    configs = [
        PolicyConfig.model_validate({"model": model, "adapter": adapter, "quantize": each})
        for model, adapter in pair(models, adapters, base)
        for each in dict.fromkeys(bits or [0])
    ]
    for config in configs:
        check_files(config)
    # What shares its weights stands together, so that they are loaded once.
    order = {key: i for i, key in enumerate(dict.fromkeys((c.model, c.quantize) for c in configs))}
    configs.sort(key=lambda config: order[config.model, config.quantize])
    return unique([*(Entry(arm_name(c), c) for c in configs),
                   *(Entry(slug(model.name), model) for model in served)])  # fmt: skip


def pair(models: Sequence[str], adapters: Sequence[str], base: bool) -> list[tuple[str, str]]:
    """Model and adapter ("" for none) of each arm."""
    models, adapters = list(dict.fromkeys(models)), list(dict.fromkeys(adapters))
    if adapters and not models:
        raise UserError(f"--adapter {adapters[0]}: no --model to put it on", "give its --model")
    if len(models) == len(adapters) == 1 and not base:
        return [(models[0], adapters[0])]
    owners = {adapter: owner(adapter, models) for adapter in adapters}
    return [(m, a) for m in models for a in ("", *(a for a in adapters if owners[a] == m))]


def owner(adapter: str, models: Sequence[str]) -> str:
    """The one of the models that an adapter was trained on; the first, where it does not say."""
    check_adapter(adapter)
    told = read_json(Path(adapter) / ADAPTER_FILES[0]).get("model")
    if len(models) == 1 or not isinstance(told, str) or not told:
        return models[0]
    for model in models:
        if model == told or Path(model).resolve() == Path(told).resolve():
            return model
    raise UserError(
        f"--adapter {adapter}: it was trained on {told}, which is none of the models",
        f"evaluate it by itself, with the one --model it belongs to, or add --model {told}",
    )


def check_adapter(adapter: str) -> None:
    if not all((Path(adapter) / name).is_file() for name in ADAPTER_FILES):
        raise UserError(
            f"--adapter {adapter!r} is no adapter folder",
            "give a folder with adapter_config.json and adapters.safetensors",
        )


def check_files(config: PolicyConfig) -> None:
    """Raise for what is plainly not there, before the first arm has taken its time."""
    if config.adapter:
        check_adapter(config.adapter)
    if config.model.startswith(("/", ".", "~")) and not Path(config.model).is_dir():
        raise missing_model(
            config.model_copy(update={"adapter": ""}), FileNotFoundError(), "policy"
        )


def arm_name(config: PolicyConfig) -> str:
    name = slug(Path(config.model).name)
    if config.quantize:
        name += f"-{config.quantize}bit"
    if config.adapter:
        place = Path(config.adapter).resolve()
        usual = place.name in ("adapter", "adapters")  # says nothing: the run's name does
        name += "+" + slug(place.parent.name if usual else place.name)
    return name


def slug(text: str) -> str:
    """A name as a folder's: no separators, no dot in front."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:LONGEST_NAME] or "arm"


def unique(entries: Sequence[Entry]) -> list[Entry]:
    """Numbered where names are the same, also on a disk that ignores case."""
    seen: set[str] = set()
    found = []
    for entry in entries:
        name, number = entry.name, 1
        while name.lower() in seen:
            number += 1
            name = f"{entry.name}-{number}"
        seen.add(name.lower())
        found.append(Entry(name, entry.model))
    return found


def replaces_weights(config: PolicyConfig) -> bool:
    """Whether an adapter holds all weights, so that the model cannot be had back from under it."""
    if not config.adapter:
        return False
    return read_json(Path(config.adapter) / ADAPTER_FILES[0]).get("fine_tune_type") == "full"


@dataclass(frozen=True)
class Exam:
    """What every arm answers."""

    task: Task
    spec: EvalSpec
    problems: list[Problem]


def answer_all(
    entries: Sequence[Entry],
    spec: EvalSpec,
    out: Path | None,
    cache: str,
    ui: Ui,
    *,
    twice: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate the arms one after another; each one's results, by name and with its comparison.

    What others read of them (see `exports.report`) is written into the folder's report/.

    out: the folder of a single arm, of several the folder of theirs; None: one under runs/. cache:
    as of `answers.Answers.open`. twice: the A/A check. Raises UserError.
    """
    check_exam(spec)
    check_chain(spec)
    check_served(entries, spec)
    exam = Exam(task := TASKS[spec.task.name], spec, eval_problems(task, spec))
    root = out or default_folder(spec, entries)
    folders = [root if len(entries) == 1 else root / entry.name for entry in entries]
    host = Host(Answers.open(cache), ui)
    ui_facts = {"evaluating": spec.name or spec.task.name,
                "arms": ", ".join(entry.name for entry in entries),
                "problems": len(exam.problems), "out": str(root)}  # fmt: skip
    found: list[dict[str, Any]] = []
    for entry, folder in zip(entries, folders, strict=True):
        host.prepare(entry)
        if not found:
            ui.header(ui_facts)
        label = f" {entry.name}" if len(entries) > 1 else ""
        results = host.measure(entry, exam, folder, f"evaluating{label}")
        for said in warnings(results):
            ui.line(f"{entry.name}: {said}" if label else said)
        if twice:
            results["noise"] = check_noise(host, entry, exam, folder, label)
        found.append(results if len(entries) == 1 else
                     {"name": entry.name, "folder": str(folder), **results})  # fmt: skip
    write_outputs(folders, root / "report", plots=len(entries) > 1)
    return found if len(entries) == 1 else compared(found, folders)


def check_served(entries: Sequence[Entry], spec: EvalSpec) -> None:
    """Raises UserError for a server that is to play chains, before any arm has been evaluated."""
    served = [entry.name for entry in entries if isinstance(entry.model, ServedModel)]
    if served and spec.chain.rounds > 1:
        raise UserError(
            f"{served[0]}: a spec with [chain] continues answers, which a server does not",
            "give a --model in its place, or add --set chain.rounds=1",
        )


class Host:
    """Holds the weights of one arm at a time; arms that share them follow each other."""

    def __init__(self, answers: Answers | None, ui: Ui) -> None:
        self.answers, self.ui = answers, ui
        self.loaded: PolicyConfig | None = None
        self.policy: Policy | None = None

    def prepare(self, entry: Entry) -> None:
        """Load what an arm needs and let go of what it does not."""
        config = entry.model
        if isinstance(config, PolicyConfig) and not replaces_weights(config):
            config = config.model_copy(update={"adapter": ""})
        if config == self.loaded:
            return
        self.loaded = self.policy = None
        mx.clear_cache()
        if isinstance(config, PolicyConfig):
            self.policy, self.loaded = load_policy(config), config

    def measure(self, entry: Entry, exam: Exam, folder: Path, label: str) -> dict[str, Any]:
        """An arm's results. Says how many answers were kept from before."""
        given = (exam.task, exam.problems, exam.spec, folder)
        if exam.spec.chain.rounds > 1:
            return self.chain(entry, exam, folder, label)
        with self.ui.progress(label, len(exam.problems) * exam.spec.samples) as bar:
            if isinstance(entry.model, ServedModel):
                return evaluate_served(entry.model, *given, advance=bar.advance, note=self.ui.line)
            with self.weights(entry.model) as policy:
                results = evaluate(
                    policy, *given, **recorded(entry.model), answers=self.answers,
                    advance=bar.advance,
                )  # fmt: skip
        for said in self.answers.report() if self.answers else []:
            self.ui.line(said)
        return results

    def chain(self, entry: Entry, exam: Exam, folder: Path, label: str) -> dict[str, Any]:
        """An arm's results where each question is a chain of answers."""
        assert not isinstance(entry.model, ServedModel)  # check_served
        given = (exam.task, exam.problems, exam.spec, folder)
        with (
            self.ui.progress(label, len(exam.problems)) as bar,
            self.weights(entry.model) as policy,
        ):
            return evaluate_chains(
                policy, *given, **recorded(entry.model), advance=bar.advance, told=bar.update_text
            )

    @contextmanager
    def weights(self, config: PolicyConfig) -> Iterator[Policy]:
        """The policy that `prepare` has loaded, with the arm's adapter on it."""
        assert self.policy is not None
        bare = config.adapter == (self.loaded or config).adapter
        with nullcontext() if bare else adapted(self.policy, config):
            yield self.policy


def recorded(config: PolicyConfig) -> dict[str, Any]:
    """What of an arm's model an evaluation writes down."""
    adapter = fingerprint(Path(config.adapter)) if config.adapter else ""
    return {"adapter": adapter, "quantize": config.quantize}


def check_noise(host: Host, entry: Entry, exam: Exam, folder: Path, label: str) -> dict[str, Any]:
    """The A/A check: the same model again, at half the batch (a server: asked again).

    gains, losses: answers that became right or wrong by rounding alone. A difference of two models
    that is no larger is no difference.
    """
    batch = exam.spec.batch // 2 or 2
    spec = exam.spec.model_copy(update={"batch": batch})
    again = Exam(exam.task, spec, exam.problems)
    host.measure(entry, again, folder / "noise", f"evaluating{label} again, batch {batch}")
    rows = [list(read_rows(place / "samples.jsonl")) for place in (folder, folder / "noise")]
    both = list(zip(*rows, strict=True))
    return {
        "batch": batch,
        "answers": len(both),
        "gains": sum(b["correct"] > a["correct"] for a, b in both),
        "losses": sum(b["correct"] < a["correct"] for a, b in both),
        "same_text": sum(a["text"] == b["text"] for a, b in both) / len(both),
    }


def compared(found: list[dict[str, Any]], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Each arm with its comparison with the first, Holm's adjustment being over all of them."""
    result = compare_all(folders)
    against = result.get("comparisons", [result])
    return [{**arm, "comparison": c} for arm, c in zip(found, [None, *against], strict=True)]


def default_folder(spec: EvalSpec, entries: Sequence[Entry]) -> Path:
    """One folder for each evaluation, so that the same command again goes on with it."""
    asked = [
        [e.model.url, e.model.name] if isinstance(e.model, ServedModel)
        else [e.model.model, e.model.adapter, *([e.model.quantize] if e.model.quantize else [])]
        for e in entries
    ]  # fmt: skip
    told = spec.model_dump(exclude={"quick"})
    what = json.dumps([told, *(asked if len(asked) > 1 else asked[0])], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    name = entries[0].name if len(entries) == 1 else f"{len(entries)}-arms"
    return Path("runs") / "eval" / f"{spec.task.name}--{name}--{digest}"
