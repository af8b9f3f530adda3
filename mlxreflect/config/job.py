"""What `mlxreflect train` is told: an objective, a model, a data set, and keys for the rest."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mlxreflect.config.checks import check_objective
from mlxreflect.config.fields import Count, Names, Positive, Table
from mlxreflect.config.methods import GrpoConfig
from mlxreflect.config.schema import Fitting
from mlxreflect.config.toml import apply_settings, flatten, merge, toml_value, validate
from mlxreflect.core.errors import UserError
from mlxreflect.data.rows import local_path

# Where an objective wants another value than the tables say; --set comes after.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {"train": {"lr": 1e-4}},
    "dpo": {"train": {"logps": "sum"}},
    "ipo": {"train": {"logps": "mean"}},
    "exo_pair": {"train": {"logps": "sum", "smoothing": 5e-3}},
    "orpo": {"train": {"lr": 2e-5}},
    "grpo": {"data": {"held_out": 0.0}},
}
# Keys, or whole tables, that do nothing for an objective; another value of one is refused.
PAIRED = ("train.logps", "train.nll", "train.dpo")
IDLE: dict[str, tuple[str, ...]] = {
    "sft": ("train.beta", *PAIRED, "train.reference", "grpo"),
    "dpo": ("data.turns", "grpo"),
    "ipo": ("data.turns", "grpo"),
    "exo_pair": ("data.turns", "grpo"),
    "orpo": (*PAIRED, "train.reference", "data.turns", "grpo"),
    "grpo": ("train.beta", *PAIRED, "train.eval_every", "train.patience", "train.best_by",
             "data.held_out", "data.turns"),
}  # fmt: skip


class ModelConfig(Table):
    """The model to train; the keys are those of a recipe's [policy]."""

    model: str = "tiny"
    adapter: str = ""
    quantize: Literal[0, 4, 8] = 0
    dequantize: Literal["auto", "yes", "no"] = "auto"


class DataConfig(Table):
    source: str = ""  # file, folder with train.jsonl, or hub data set
    config: str = ""  # of a hub data set
    split: str = "train"
    columns: dict[str, str] = Field(default_factory=dict)  # our name of a column = theirs
    turns: Literal["all", "last"] = "all"  # of a conversation: which of the assistant's are trained
    bad_row: Literal["skip", "fatal"] = "skip"
    limit: Count = 0  # examples; 0: all
    held_out: Annotated[float, Field(ge=0)] = 0.05  # a share below 1, or how many; 0: none
    against: Names = Field(default_factory=list)  # evals, tasks, files: rows in them are left out
    ngram: Count = 13  # words in a row that such a row shares; 0: only whole questions count


class JobTrain(Fitting):
    """[train] of a job: a training whose number of steps is known, watched on held-out examples."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    eval_every: Count = 0  # steps between looks at the held-out examples; 0: each epoch
    save_every: Positive = 100  # steps between checkpoints
    best_by: Literal["loss", "margin"] = "loss"  # which checkpoint becomes the adapter
    patience: Count = 0  # looks without a better one before training stops; 0: never


class Job(Table):
    objective: Literal["sft", "dpo", "ipo", "exo_pair", "orpo", "grpo"] = "sft"
    seed: Count = 0
    tags: Literal["think", "reasoning", "preflexor"] = "think"  # what train.mask goes by
    policy: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: JobTrain = JobTrain()
    grpo: GrpoConfig = GrpoConfig()


COMMAND = Path("mlxreflect train")  # where a key stands that no file holds
PATHS = (("policy", "model"), ("policy", "adapter"), ("data", "source"))


def load_job(objective: str, model: str, data: str, settings: Sequence[str] = ()) -> Job:
    """The job of a command line. Raises UserError for keys it does not know or that clash."""
    if objective not in DEFAULTS:
        raise UserError(f"no objective {objective!r}", f"choose from: {', '.join(DEFAULTS)}")
    tree = plain(objective)
    merge(tree, {"policy": {"model": model}, "data": {"source": data}})
    job = validate(Job, apply_settings(tree, settings), COMMAND, settings)
    if job.objective != objective:
        raise UserError(
            f"--set objective={job.objective}: the command says {objective}",
            f"give one of them: mlxreflect train {job.objective} …",
        )
    check_job(job)
    return anchored(job)


def plain(objective: str) -> dict[str, Any]:
    """An objective's keys where they differ from the tables."""
    return {"objective": objective, **deepcopy(DEFAULTS[objective])}


def anchored(job: Job) -> Job:
    """The job with whole paths in place of relative ones: it may be resumed from anywhere."""
    tree = job.model_dump()
    for table, key in PATHS:
        name = tree[table][key]
        if name and (key, name) != ("model", "tiny") and (path := local_path(name)).exists():
            tree[table][key] = str(path.absolute())
    tree["data"]["against"] = [
        str(path.absolute()) if (path := local_path(name)).is_file() else name
        for name in job.data.against
    ]
    return Job.model_validate(tree)


def check_job(job: Job) -> None:
    """What the types cannot say: keys that contradict each other, or do nothing."""
    check_objective(job.objective, job.train, job.policy.quantize, COMMAND)
    usual = flatten(Job.model_validate(plain(job.objective)).model_dump())
    idle: dict[str, str] = dict.fromkeys(IDLE[job.objective], job.objective)
    if job.train.tune == "full":
        idle["train.lora"] = "full fine-tuning"
    elif job.policy.adapter:
        idle["train.lora"] = "an adapter that brings its own layers"
    for key, value in flatten(job.model_dump()).items():
        for name, what in idle.items():
            if f"{key}.".startswith(f"{name}.") and value != usual[key]:
                raise UserError(f"{key} = {value!r} does nothing for {what}", "leave that key out")
    if job.train.best_by == "margin" and job.objective == "sft":
        raise UserError("train.best_by = 'margin': sft has no margin", "leave it at loss")
    if job.train.tune == "full" and job.train.reference == "base":
        raise UserError(
            "train.reference = 'base' needs LoRA: with all weights trained, the base is gone",
            "set train.reference to stage or none",
        )
    if job.train.dpo == 0 and job.train.nll == 0:
        raise UserError(
            "train.dpo and train.nll are both 0, nothing would be trained",
            "give one of them a weight above 0",
        )
    if not job.data.against and job.data.ngram != usual["data.ngram"]:
        raise UserError(
            f"data.ngram = {job.data.ngram} does nothing without data.against",
            "name what to keep clean of, for example --set data.against=gsm8k",
        )
    if job.train.patience and not job.data.held_out:
        raise UserError(
            "train.patience counts looks at held-out examples, and data.held_out is 0",
            "hold some out, for example --set data.held_out=0.05",
        )


def dump_job(job: Job) -> str:
    """The resolved job as TOML, one `table.key = value` a line."""
    lines = [f"{key} = {toml_value(value)}" for key, value in flatten(job.model_dump()).items()]
    return "\n".join(lines) + "\n"
