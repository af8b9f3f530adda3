"""The arms of one `mlxreflect eval`: models, adapters on them, models behind a server.

With one model and one adapter the arm is the model with the adapter. With more of either every
model is also asked without, and an adapter goes with the model that it was trained on. The arms
answer one after another; then they are compared.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import mlx.core as mx

from mlxreflect.config.schema import EvalSpec, PolicyConfig, Sampling
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.core.journal import read_json
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.arms import fingerprint, slug, unique_rows
from mlxreflect.evaluation.chains import check_chain
from mlxreflect.evaluation.evaluate import (
    Enough,
    Generator,
    ProblemSet,
    evaluate,
    is_usual,
    problem_set,
    warnings,
)
from mlxreflect.evaluation.generators import (
    Answers,
    ChainGenerator,
    LocalGenerator,
    LocalModel,
    ServedModel,
    ServerGenerator,
)
from mlxreflect.evaluation.judge import Judging
from mlxreflect.evaluation.quick import ask_until_decided
from mlxreflect.models.load import (
    ADAPTER_FILES,
    find_adapter,
    limit_memory,
    load_policy,
    missing_model,
)
from mlxreflect.models.policy import Policy
from mlxreflect.models.template import with_tags
from mlxreflect.tasks import check_eval, find_task, is_open


@dataclass(frozen=True)
class Entry:
    """An arm to be. name: of its row in the table and, with several arms, of its folder."""

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
    """Returns the arms in the order of the table; the others are compared with the first.

    bits: of each quantisation on load, 0 for none. base: also a single adapter's model without it.
    Raises UserError for a model or adapter that is not there.
    """
    if wrong := set(bits) - {0, 4, 8}:
        raise UserError(f"--quantize {min(wrong)}: no such number of bits", "give 4, 8 or 0")
    adapters = [str(find_adapter(adapter, "--adapter")) for adapter in adapters]
    models = models or list(map(trained_on, adapters))
    configs = [
        PolicyConfig.model_validate({"model": model, "adapter": adapter, "quantize": each})
        for model, adapter in pair(models, adapters, base)
        for each in dict.fromkeys(bits or [0])
    ]
    for config in configs:  # before the first arm has taken its time
        if config.model.startswith(("/", ".", "~")) and not Path(config.model).is_dir():
            bare = config.model_copy(update={"adapter": ""})
            raise missing_model(bare, FileNotFoundError(), "--model")
    # What shares its weights stands together, so that they are loaded once.
    order = {key: i for i, key in enumerate(dict.fromkeys((c.model, c.quantize) for c in configs))}
    configs.sort(key=lambda config: order[config.model, config.quantize])
    return unique([*(Entry(arm_name(c), c) for c in configs),
                   *(Entry(slug(model.name), model) for model in served)])  # fmt: skip


def pair(models: Sequence[str], adapters: Sequence[str], base: bool) -> list[tuple[str, str]]:
    """Returns model and adapter ("" for none) of each arm."""
    models, adapters = list(dict.fromkeys(models)), list(dict.fromkeys(adapters))
    if len(models) == len(adapters) == 1 and not base:
        return [(models[0], adapters[0])]
    owners = {adapter: owner(adapter, models) for adapter in adapters}
    return [(m, a) for m in models for a in ("", *(a for a in adapters if owners[a] == m))]


def trained_on(adapter: str) -> str:
    """Returns the model of an adapter. Raises UserError where it does not say."""
    model = read_json(Path(adapter) / ADAPTER_FILES[0]).get("model")
    if not isinstance(model, str) or not model:
        raise UserError(f"--adapter {adapter}: it does not name its model", "give its --model")
    return model


def owner(adapter: str, models: Sequence[str]) -> str:
    """Returns the model that an adapter was trained on; the first, where it does not say."""
    base = read_json(Path(adapter) / ADAPTER_FILES[0]).get("model")
    if len(models) == 1 or not isinstance(base, str) or not base:
        return models[0]
    for model in models:
        if model == base or Path(model).resolve() == Path(base).resolve():
            return model
    raise UserError(
        f"--adapter {adapter}: it was trained on {base}, which is none of the models",
        f"evaluate it by itself, with the one --model it belongs to, or add --model {base}",
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


def unique(entries: Sequence[Entry]) -> list[Entry]:
    """Numbers names that are the same, also on a disk that ignores case."""
    found: dict[str, Entry] = {}
    for entry in entries:
        name, number = entry.name, 1
        while name.lower() in found:
            number += 1
            name = f"{entry.name}-{number}"
        found[name.lower()] = Entry(name, entry.model)
    return list(found.values())


# ---- answering -----------------------------------------------------------------------------------


def measure(
    generator: Generator, out: Path, ui: Ui, name: str = "", enough: Enough = lambda rows: False
) -> dict[str, Any]:
    """Evaluates one arm with progress, and says what to know of its results; returns those.

    name: of the arm, where there are several. enough: as of `evaluate`.
    """
    with ui.progress(f"evaluating {name}".rstrip(), generator.total) as bar:
        results = evaluate(generator, out, bar, enough)
    for line in [*generator.notes, *warnings(results)]:
        ui.line(f"{name}: {line}" if name else line)
    return results


def generator_of(
    model: LocalModel | ServedModel, asked: ProblemSet, answers: Answers | None = None
) -> Generator:
    """Returns what answers the problems: `model`, in chains where the spec has [chain]."""
    if isinstance(model, ServedModel):
        return ServerGenerator(model, asked)
    if asked.spec.chain.rounds > 1:
        return ChainGenerator(model, asked)
    return LocalGenerator(model, asked, answers)


def evaluate_arms(
    entries: Sequence[Entry],
    spec: EvalSpec,
    out: Path | None,
    cache: str,
    ui: Ui,
    *,
    twice: bool = False,
    hosts: Hosts = ALONE,
) -> list[dict[str, Any]]:
    """Evaluates the arms one after another; returns their results, and how they compare.

    out: the folder of a single arm, of several the folder of theirs; None: one under runs/. cache:
    as of `Answers.open`. twice: the A/A check. hosts: that share the work. Raises UserError.
    """
    check_spec(entries, spec)
    limit_memory()
    task = find_task(spec.task)
    entries, asked = asked_by(entries, spec), problem_set(task, spec)
    root = out or default_folder(spec, entries)
    several = len(entries) > 1
    folders = [root / entry.name if several else root for entry in entries]
    weights, answers = Weights(hosts), Answers.open(cache)
    arms: list[dict[str, Any]] = []
    for entry, folder in zip(entries, folders, strict=True):
        model = weights.model_of(entry)
        if spec.prompt.tags == "native" and isinstance(model, LocalModel):
            asked = problem_set(task, with_tags(spec, model.policy.template))
        if not arms:
            ui.header({"evaluating": spec.name or spec.task.name,
                       "arms": ", ".join(entry.name for entry in entries),
                       "problems": len(asked.problems), **hosts.shown(),
                       "out": str(root)})  # fmt: skip
        name = entry.name if several else ""
        if isinstance(model, LocalModel):
            model.policy.say = ui.line
            for note in model.policy.template.notes_for(asked.spec.prompt.tags):
                ui.line(f"{name}: {note}" if name else note)
        results = measure(generator_of(model, asked, answers), folder, ui, name)
        if twice:
            results["noise"] = check_noise(model, asked, answers, folder, ui, name)
        del model  # else its weights would stay while the next ones are loaded
        arms.append({"name": entry.name, "folder": str(folder), **results} if several else results)
    open_ = is_open(spec.task) and spec.judge.critic.provider == "solver"
    if not several:
        if open_:
            ui.line(
                "open answers are judged against another model's: evaluate that on the same "
                f"questions, then: mlxreflect compare {quote(str(root))} OTHER --judge ollama:NAME"
            )
        return arms
    from mlxreflect.evaluation.compare import Options, compare_all

    if open_:
        judge = f"mlxreflect compare {quote(str(root))} --judge ollama:NAME"
        ui.line(f"nobody has judged them yet: {judge}")
        return arms
    with ExitStack() as stack:
        result = compare_all(folders, Options(judge=Judging(ui, stack)))
    against = result.get("comparisons", [result])
    return [{**arm, "comparison": c} for arm, c in zip(arms, [None, *against], strict=True)]


def decide(
    spec: EvalSpec, entries: Sequence[Entry], out: Path | None, ui: Ui, *, hosts: Hosts = ALONE
) -> dict[str, Any]:
    """Runs `mlxreflect eval --quick`: asks both arms side by side until it is decided.

    entries: the baseline first. hosts: that share the work. Returns quick.json. Raises UserError.
    """
    check_spec(entries, spec)
    limit_memory()
    models = load_pair(asked_by(entries, spec), hosts)
    for model in models.values():
        model.policy.say = ui.line
    spec = with_tags(spec, next(iter(models.values())).policy.template)
    asked = problem_set(find_task(spec.task), spec)
    folder = out or default_folder(spec, entries, "quick")
    most = min(spec.quick.max_n or len(asked.problems), len(asked.problems))
    base, trained = models
    ui.header({"evaluating": spec.name or spec.task.name, "base": base, "trained": trained,
               "questions": f"at most {most}", "out": str(folder)})  # fmt: skip
    return ask_until_decided(models, asked, folder, ui)


def asked_by(entries: Sequence[Entry], spec: EvalSpec) -> list[Entry]:
    """Returns the arms, their chat templates set as the spec has it."""
    asked = {"thinking": spec.thinking, "template": spec.template}
    return [
        e if isinstance(e.model, ServedModel) else Entry(e.name, e.model.model_copy(update=asked))
        for e in entries
    ]


def check_spec(entries: Sequence[Entry], spec: EvalSpec) -> None:
    """Raises UserError for a spec that the arms cannot answer, before any has been evaluated."""
    check_eval(spec)
    if spec.chain.rounds > 1:
        check_chain(spec)
    served = [entry.name for entry in entries if isinstance(entry.model, ServedModel)]
    if served and (spec.thinking != "auto" or spec.template or spec.prompt.tags == "native"):
        raise UserError(
            f"{served[0]}: thinking, template and native tags are for a --model: a server renders "
            "its own chat template",
            "leave them out, and start the server with them",
        )
    if served and spec.chain.rounds > 1:
        raise UserError(
            f"{served[0]}: a spec with [chain] continues answers, which a server does not",
            "give a --model in its place, or add --set chain.rounds=1",
        )


class Weights:
    """Holds the weights of one arm at a time; arms that share them follow each other."""

    def __init__(self, hosts: Hosts = ALONE) -> None:
        self.hosts = hosts
        self.loaded: PolicyConfig | None = None
        self.policy: Policy | None = None

    def model_of(self, entry: Entry) -> LocalModel | ServedModel:
        """Loads what an arm needs and lets go of what it does not."""
        config = entry.model
        wanted = None if isinstance(config, ServedModel) else loaded_with(config)
        if wanted != self.loaded:
            self.loaded = self.policy = None
            mx.clear_cache()
        if isinstance(config, ServedModel):
            return config
        if self.policy is None:
            self.policy = load_policy(loaded_with(config), "--model", self.hosts)
            self.loaded = wanted
        puts_on = None if config == wanted else config
        return LocalModel(self.policy, known_by(config), config.quantize, puts_on)


def loaded_with(config: PolicyConfig) -> PolicyConfig:
    """Returns what the weights are loaded with: all but a LoRA adapter, which is put on later.

    An adapter that holds all weights replaces the model's, which could not be had back.
    """
    if config.adapter:
        kind = read_json(Path(config.adapter) / ADAPTER_FILES[0]).get("fine_tune_type")
        return config if kind == "full" else config.model_copy(update={"adapter": ""})
    return config


def load_pair(entries: Sequence[Entry], hosts: Hosts = ALONE) -> dict[str, LocalModel]:
    """Loads both sides of --quick; what differs by a LoRA adapter alone is in memory once."""
    configs = [e.model for e in entries if isinstance(e.model, PolicyConfig)]
    if len(configs) != 2 or len(entries) != 2:
        raise UserError(
            f"--quick sets two models side by side, not {len(entries)}, and none behind a server",
            "give one --model and its --adapter, or two models",
        )
    bare = [loaded_with(config) for config in configs]
    policies: dict[str, Policy] = {}
    for config in bare:
        key = config.model_dump_json()
        policies[key] = policies.get(key) or load_policy(config, "--model", hosts)
    # A quick evaluation has the bits in the adapter's name.
    bits = [f"{config.quantize} bit" if config.quantize else "" for config in configs]
    return {
        entry.name: LocalModel(
            policies[loaded.model_dump_json()],
            f"{known_by(config)} {each}".strip(),
            puts_on=None if config == loaded else config,
        )
        for entry, config, loaded, each in zip(entries, configs, bare, bits, strict=True)
    }


def known_by(config: PolicyConfig) -> str:
    return fingerprint(Path(config.adapter)) if config.adapter else ""


def check_noise(
    model: LocalModel | ServedModel,
    asked: ProblemSet,
    answers: Answers | None,
    folder: Path,
    ui: Ui,
    name: str = "",
) -> dict[str, Any]:
    """Evaluates the same model again, at half the batch (a server: asked again): the A/A check.

    gains, losses: answers that became right or wrong by rounding alone. A difference of two models
    that is no larger is no difference.
    """
    whole = asked.spec.batch
    if isinstance(model, LocalModel):
        prompts = [model.policy.encode(prompt) for prompt in asked.prompts]
        whole = model.policy.fitting(whole, prompts, asked.spec.max_new_tokens)
    batch = whole // 2 or 2
    again = replace(asked, spec=asked.spec.model_copy(update={"batch": batch}))
    generator = generator_of(model, again, answers)
    label = f"evaluating {name}".rstrip()
    with ui.progress(f"{label} again, batch {batch}", generator.total) as bar:
        evaluate(generator, folder / "noise", bar)
    rows = [list(unique_rows(place / "samples.jsonl")) for place in (folder, folder / "noise")]
    both = list(zip(*rows, strict=True))
    return {
        "batch": batch,
        "answers": len(both),
        "gains": sum(b["correct"] > a["correct"] for a, b in both),
        "losses": sum(b["correct"] < a["correct"] for a, b in both),
        "same_text": sum(a["text"] == b["text"] for a, b in both) / len(both),
    }


def default_folder(spec: EvalSpec, entries: Sequence[Entry], kind: str = "eval") -> Path:
    """Returns a folder of its own for each evaluation: the same command again goes on with it."""
    models = [
        [e.model.url, e.model.name] if isinstance(e.model, ServedModel)
        else [e.model.model, e.model.adapter, *([e.model.quantize] if e.model.quantize else [])]
        for e in entries
    ]  # fmt: skip
    # Keys that older folders do not know.
    later = [*Sampling.model_fields, "thinking", "template", "judge"]
    usual = dict.fromkeys((key for key in later if is_usual(spec, key)), True)
    quick = {"max_n"} if kind == "quick" else True
    keys = spec.model_dump(exclude={"quick": quick, **usual})
    what = json.dumps([keys, *(models if len(models) > 1 else models[0])], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    name = entries[0].name if len(entries) == 1 else f"{len(entries)}-arms"
    task = spec.task.name.replace(":", "-")
    return Path("runs") / kind / f"{task}--{name}--{digest}"
