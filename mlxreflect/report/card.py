"""The cards of a published run, for its model and its data: Markdown with the hub's metadata.

A card says what was trained on what, and whether that helped, in the words of the run's verdict.
All text of a run is data here: escaped in Markdown, dumped as YAML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData, hf_hub_download
from huggingface_hub.repocard import metadata_load
from jinja2 import Environment, FileSystemLoader

from mlxreflect.config.fields import HUB_NAME
from mlxreflect.config.recipe import dump_changed
from mlxreflect.config.schema import Recipe, method_of
from mlxreflect.core.journal import read_json
from mlxreflect.core.ui import plural, safe_text
from mlxreflect.data.matching import clause
from mlxreflect.evaluation.arms import load_arms, read_arms, read_results
from mlxreflect.methods.base import status_words
from mlxreflect.models.load import model_folder
from mlxreflect.report.plots import compared_in
from mlxreflect.report.report import prompt_of, prose
from mlxreflect.tasks import get_task

MOST = 3_000  # characters of a text that is quoted
LEARNS = {
    "r3": "its wrong attempts were criticised and rewritten, and it learned to prefer the rewrite "
    "(R³: Reflect, Rewrite, Repeat)",
    "rel": "it learned to imitate workings that found and mended their own mistake (REL, "
    "arXiv 2412.04645)",
    "preflexor": "it learned to prefer structured, grounded answers to its own (PRefLexOR, "
    "arXiv 2410.12375)",
    "reflectevo": "it learned from its own reflections on wrong answers (ReflectEvo, "
    "arXiv 2505.16475)",
    "traces": "it learned to imitate its own best traces, then from rewards (ThinkingTraces)",
}
ANSWERS = {
    ("significant", True): "Yes, on these questions.",
    ("significant", False): "No. On these questions it is worse.",
    ("borderline", True): "Not shown: the interval says yes, the test does not.",
    ("borderline", False): "Not shown; it may be worse.",
}
ROWS = {"preference": "preference pairs", "sft": "texts to imitate",
        "group": "groups of answers with rewards", "text": "raw texts"}  # fmt: skip
COLUMNS = {"preference.jsonl": "prompt, chosen, rejected", "sft.jsonl": "prompt, completion",
           "group.jsonl": "prompt, completions, rewards", "text.jsonl": "text"}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A run that cards are of.

    run: its folder, of which nothing is private. to: USER/NAME on the hub. rows: of each file of
    data. tune: lora, dora or full. licence: as of `licence_of`. epoch: after which it is, of a run
    that goes on; None: at its end.
    """

    run: Path
    to: str
    recipe: Recipe
    rows: Mapping[str, int]
    tune: str
    licence: Mapping[str, str]
    fused: bool = False
    epoch: int | None = None

    @property
    def name(self) -> str:
        return self.to.partition("/")[2]

    @property
    def base(self) -> str:
        return self.recipe.policy.model

    @property
    def on_hub(self) -> bool:
        """Tells a base model of the hub from a folder, whose name alone is left."""
        return HUB_NAME.fullmatch(self.base) is not None


def render(template: str, **facts: Any) -> str:
    environment = Environment(
        autoescape=False, loader=FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True
    )
    text: str = environment.get_template(template).render(**facts)
    return text


def card(data: Any, text: str) -> str:
    metadata: str = data.to_yaml()
    return f"---\n{metadata}\n---\n{text}"


# ---- the model's ---------------------------------------------------------------------------------


def model_card(subject: Subject) -> str:
    ended = subject.epoch is None
    arms, compared = (read_arms(subject.run), compared_in(subject.run)) if ended else ({}, [])
    table = subject.run / "report" / "table.md"
    lines = table.read_text(encoding="utf-8").partition("\n\n")[0] if table.is_file() else ""
    text = render(
        "model_card.md.j2", name=prose(subject.name), what=describe(subject),
        learns=LEARNS[subject.recipe.strategy], answer=verdict(subject, compared),
        sentences=[prose(one["sentence"]) for one in compared],
        table=lines if compared else "", how_asked=how_asked(arms),
        base=prose(subject.base), local=not subject.on_hub and subject.base != "tiny",
        use=use(subject), example=example_of(subject) if ended else None,
        training=training(subject), page=ended, licence=licence_text(subject.licence),
        keys=fenced(dump_changed(subject.recipe), "toml"),
    )  # fmt: skip
    return card(model_data(subject, arms, compared), text)


def model_data(subject: Subject, arms: Mapping[str, Any], compared: Sequence[Any]) -> ModelCardData:
    results, found = eval_results(arms, compared), subject.licence
    base = subject.base if subject.on_hub else found.get("base_model")
    tags = ["mlx", "mlxreflect", subject.recipe.strategy]
    tags += [] if subject.fused else [subject.tune]
    return ModelCardData(
        base_model=base,
        base_model_relation=("finetune" if subject.fused else "adapter") if base else None,
        library_name="mlx", pipeline_tag="text-generation", tags=tags,
        datasets=[subject.to] if subject.rows else None,
        metrics=list(dict.fromkeys(one.metric_type for one in results)) or None,
        model_name=subject.name, eval_results=results or None,
        **{key: found[key] for key in ("license", "license_name", "license_link") if key in found},
    )  # fmt: skip


def eval_results(arms: Mapping[str, Any], compared: Sequence[Any]) -> list[EvalResult]:
    """Returns a figure of each evaluation, its sample size and interval in the figure's name."""
    found, won = [], {one["task"]: one for one in compared if "win_rate" in one}
    for name, evaluated in arms.items():
        one, base = evaluated.get("trained"), evaluated.get("base")
        if not one or not base:
            continue
        task, spec = name or str(one.get("eval") or one["task"]), one.get("spec", {})
        source = str(
            spec.get("task", {}).get("source") or next(iter(get_task(one["task"]).hub), "")
        )
        metric, value, low, high = "accuracy", one["accuracy"], one["ci_low"], one["ci_high"]
        said = f"base model {base['accuracy']:.1%}" if value is not None else "against its base"
        if value is None:
            if task not in won:
                continue
            metric, value = "win_rate", won[task]["win_rate"]
            low, high = won[task]["win_low"], won[task]["win_high"]
        found.append(EvalResult(
            task_type="text-generation", dataset_name=safe_text(task),
            dataset_type=source if HUB_NAME.fullmatch(source) else safe_text(task),
            dataset_split=safe_text(str(spec.get("part", "heldout"))), metric_type=metric,
            metric_value=round(value, 4),
            metric_name=f"{metric.replace('_', ' ')} on {one['n']} questions (95% interval "
                        f"{low:.1%} to {high:.1%}; {said})",
        ))  # fmt: skip
    return found


def describe(subject: Subject) -> str:
    base = prose(subject.base)
    if subject.on_hub:
        base = f"[{base}](https://huggingface.co/{subject.base})"
    elif subject.base == "tiny":
        base = "the policy of 0.9 million parameters that is part of mlxreflect"
    if subject.fused:
        return f"{base[:1].upper()}{base[1:]}, with what it learned in its weights, as plain ones"
    bits = f", quantised to {n} bits" if (n := subject.recipe.policy.quantize) else ""
    names = {"lora": "A LoRA adapter for", "dora": "A DoRA adapter for"}
    return f"{names.get(subject.tune, 'All weights of')} {base}{bits}, in the form of mlx-lm"


def verdict(subject: Subject, compared: Sequence[Any]) -> str:
    if subject.epoch is not None:
        return (
            f"Not known yet. This is the state after epoch {subject.epoch} of a run that goes on."
        )
    if not compared:
        return "Not known: it was not compared with it."
    first = compared[0]
    key = str(first["verdict"]), first["gains"] > first["losses"]
    return ANSWERS.get(key, "Not shown: the difference may be chance.")


def how_asked(arms: Mapping[str, Any]) -> list[str]:
    """Returns a paragraph on each evaluation: how it was asked, and answers without use."""
    found = []
    for name, evaluated in arms.items():
        one = evaluated.get("trained")
        if not one or "base" not in evaluated:
            continue
        decoding, shots = one.get("decoding", {}), one.get("spec", {}).get("shots", 0)
        heat = decoding.get("temperature", 0.0)
        asked = [
            "greedily" if not heat else f"at temperature {heat:g}",
            f"at most {plural(decoding.get('max_new_tokens', 0), 'token')} an answer",
            *([plural(decoding["samples"], "sample")] if decoding.get("samples", 1) > 1 else []),
            *([f"after {plural(shots, 'worked example')}"] if shots else []),
        ]
        task = f" ({name})" if name else ""
        said, cut = (
            f"{one[key]} (base: {evaluated['base'][key]})"
            for key in ("parse_failures", "truncated")
        )
        found.append(prose(
            f"Both models answered the same {plural(one['n'], 'held-out question')}{task}, with "
            f"the same prompts, {', '.join(asked)}. Of the answers {said} could not be read, {cut} "
            "were cut off."
        ))  # fmt: skip
    return found


def use(subject: Subject) -> str:
    """Returns the commands that ask the model something."""
    name = subject.name
    if subject.base == "tiny" and not subject.fused:
        task = f" --task {subject.recipe.task.name}"
        ask = f"mlxreflect solve 'numbers 3 4 5, target 35' --model tiny --adapter {name}{task}"
        return f"hf download {subject.to} --local-dir {name}\n{ask}"
    if subject.fused:
        return f'pip install mlx-lm\nmlx_lm.generate --model {subject.to} --prompt "…"'
    model = subject.base if subject.on_hub else "PATH/TO/BASE"
    return (
        f"pip install mlx-lm\nhf download {subject.to} --local-dir {name}\n"
        f'mlx_lm.generate --model {model} --adapter-path {name} --prompt "…"'
    )


def example_of(subject: Subject) -> dict[str, Any] | None:
    """Returns the first question of the headline, as it was asked, and the trained answer to it."""
    headline, trained = compared_in(subject.run), subject.run / "eval" / "trained"
    if not trained.is_dir():
        return None
    arms = load_arms([trained])
    arm = next((a for a in arms if headline and a.part == headline[0]["task"]), arms[0])
    first = next(iter(arm.problems.values()))
    if not first.problem:
        return None
    asked = prompt_of(arm, first.problem)
    text = asked if isinstance(asked, str) else "\n\n".join(
        f"[{message['role']}]\n{message['content']}" for message in asked
    )  # fmt: skip
    return {
        "prompt": fenced(text),
        "answer": fenced(first.samples[0].text),
        "right": None if arm.open else first.samples[0].correct,
    }  # fmt: skip


def training(subject: Subject) -> dict[str, str]:
    """Returns what a run trained on and with what help, label by label, as Markdown."""
    recipe, summary = subject.recipe, read_results(subject.run / "summary.json") or {}
    method, task = method_of(recipe), recipe.task
    critic = method.critic_names(recipe)
    source = task.source or next(iter(get_task(task.name).hub), "")
    on_hub = f"[{source}](https://huggingface.co/datasets/{source})"
    source = on_hub if HUB_NAME.fullmatch(source) else prose(source)
    told = {
        "problems": prose(f"of the task {task.name}") + (f", from {source}" if source else ""),
        "critic": prose("the task's exact solver" if critic == "solver" else critic),
    }
    if summary:
        own = {"bucket": "never solved", **method.words}
        words = status_words(summary.get("statuses", {}), own)
        ended = ", ".join(f"{count.split()[0]} {word}" for word, count in words.items())
        told["problems"] = f"{summary.get('problems', 0)} {told['problems']}: {prose(ended)}"
    if subject.rows:
        data = f"[{listed(subject)}](https://huggingface.co/datasets/{subject.to})"
        tokens = f", {n:,} tokens" if (n := summary.get("tokens_trained")) else ""
        told["trained on"] = data + tokens
    if "decontaminated" in summary:
        counts = summary["decontaminated"]
        said = clause(counts) if counts else "not looked for"
        left_out = ", and was left out" if counts and counts["dropped"] else ""
        told["overlap with the evaluation"] = said + left_out
    if summary:
        told["cost"] = cost(summary)
    made = read_json(subject.run / "run.json").get("version", "unknown")
    told["versions"] = f"trained with mlxreflect {prose(str(made))}; published with " + ", ".join(
        f"{name} {version(name)}" for name in ("mlx", "mlx-lm")
    )
    return told


def cost(summary: Mapping[str, Any]) -> str:
    wire, minutes = summary.get("critic", {}).get("wire", {}), summary.get("wall_seconds", 0) / 60
    tokens = wire.get("tokens_in", 0) + wire.get("tokens_out", 0)
    asked = f", {tokens:,} tokens of critics" if tokens else ""
    paid = f" for ${usd:.2f}" if (usd := wire.get("usd")) else ""
    return f"{minutes:.1f} minutes{asked}{paid}"


def listed(subject: Subject) -> str:
    return ", ".join(f"{n} {ROWS[Path(file).stem]}" for file, n in subject.rows.items())


def fenced(text: str, language: str = "text") -> str:
    """Returns a block of code that nothing in the text ends."""
    text = text if len(text) <= MOST else f"{text[:MOST]}…"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{safe_text(text).strip()}\n{fence}"


# ---- licences ------------------------------------------------------------------------------------


@cache
def licence_of(model: str) -> dict[str, str]:
    """Returns licence and base model as a model's own card gives them; {} where there is none."""
    if model == "tiny":
        return {"license": "mit"}
    folder = model_folder(model)
    try:
        file = folder / "README.md" if folder else None
        if file is None or not file.is_file():
            if not HUB_NAME.fullmatch(model):
                return {}
            file = Path(hf_hub_download(model, "README.md"))
        found = metadata_load(file) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    keys = ("license", "license_name", "license_link", "base_model")
    told = {key: safe_text(found[key]) for key in keys if isinstance(found.get(key), str)}
    if "://" not in told.get("license_link", "://"):  # a file beside that card
        del told["license_link"]
    return told


def licence_text(found: Mapping[str, str]) -> str:
    if "license" not in found:
        return "That of the base model, which is not known here."
    name = prose(found.get("license_name", found["license"]))
    return f"That of the base model: {name}."


# ---- the data's ----------------------------------------------------------------------------------


def dataset_card(subject: Subject) -> str:
    names = [Path(file).stem for file in subject.rows]
    learns = LEARNS[subject.recipe.strategy]
    data = DatasetCardData(
        task_categories=["text-generation"], tags=["mlxreflect", "trl", subject.recipe.strategy],
        configs=[{"config_name": name, "data_files": f"{name}.jsonl"} for name in names],
    )  # fmt: skip
    told = {label: text for label, text in training(subject).items() if label != "trained on"}
    text = render(
        "dataset_card.md.j2", name=prose(subject.name), to=subject.to,
        rows=listed(subject), learns=f"{learns[:1].upper()}{learns[1:]}", files=subject.rows,
        columns=COLUMNS, first=names[0], training=told,
    )  # fmt: skip
    return card(data, text)
