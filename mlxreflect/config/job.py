"""A job of `mlxreflect train`: an objective, a model, a data set, and keys for the rest."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mlxreflect.config.fields import (
    Count,
    GrpoConfig,
    Idle,
    Local,
    LocalPath,
    Names,
    Positive,
    Table,
    idle_keys,
    make_paths_whole,
    refuse_idle,
)
from mlxreflect.config.recipe import check_objective, refuse
from mlxreflect.config.schema import Fitting, ModelConfig, TagSet
from mlxreflect.config.toml import apply_settings, dump_toml, merge, validate
from mlxreflect.core.errors import UserError

# Where an objective wants another value than the tables say; --set comes after.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {"train": {"lr": 1e-4}},
    "dpo": {"train": {"logps": "sum"}},
    "ipo": {"train": {"logps": "mean"}},
    "exo_pair": {"train": {"logps": "sum", "smoothing": 5e-3}},
    "orpo": {"train": {"lr": 2e-5}},
    "grpo": {"data": {"held_out": 0.0}},
}
PAIRED = ("dpo", "ipo", "exo_pair", "orpo")


class DataConfig(Table):
    source: LocalPath = ""  # file, folder with train.jsonl, or hub data set
    config: str = ""  # of a hub data set
    split: str = "train"  # split of a hub data set
    columns: dict[str, str] = Field(default_factory=dict)  # our name of a column = theirs
    # Of a conversation: which of the assistant's turns are trained.
    turns: Annotated[Literal["all", "last"], Idle(*PAIRED, "grpo")] = "all"
    bad_row: Literal["skip", "fatal"] = "skip"  # skip and name a row that cannot be used, or stop
    limit: Count = 0  # examples; 0: all
    # A share below 1, or how many; 0: none.
    held_out: Annotated[float, Field(ge=0), Idle("grpo")] = 0.05
    # Evaluations, tasks, files: rows that occur in them are left out.
    against: Annotated[Names, Local(Path.is_file)] = Field(default_factory=list)
    ngram: Count = 13  # words in a row that such a row shares; 0: only whole questions count


class JobTrain(Fitting):
    """[train] of a job: a training whose number of steps is known, watched on held-out examples."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    # Steps between looks at the held-out examples; 0: each epoch.
    eval_every: Annotated[Count, Idle("grpo")] = 0
    save_every: Positive = 100  # steps between checkpoints
    # Which checkpoint becomes the adapter.
    best_by: Annotated[Literal["loss", "margin"], Idle("grpo")] = "loss"
    # Looks without a better one before training stops; 0: never.
    patience: Annotated[Count, Idle("grpo")] = 0


class Job(Table):
    # what is trained; the command says it
    objective: Literal["sft", "dpo", "ipo", "exo_pair", "orpo", "grpo"] = "sft"
    seed: Count = 0  # of the order of rows and LoRA weights
    tags: TagSet = "think"  # what train.mask goes by
    policy: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: JobTrain = JobTrain()
    grpo: Annotated[GrpoConfig, Idle("sft", *PAIRED)] = GrpoConfig()


COMMAND = Path("mlxreflect train")  # where a key stands that no file holds


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
    tree = job.model_dump()  # it may be resumed from any folder
    make_paths_whole(tree, Job)
    return Job.model_validate(tree)


def plain(objective: str) -> dict[str, Any]:
    """An objective's keys where they differ from the tables."""
    return {"objective": objective, **deepcopy(DEFAULTS[objective])}


def check_job(job: Job) -> None:
    """Refuses keys that contradict each other, or do nothing. Raises UserError."""
    usual = Job.model_validate(plain(job.objective))
    train, data = job.train, job.data
    idle: dict[str, str] = dict.fromkeys(idle_keys(Job, job.objective), job.objective)
    if train.tune == "full":
        idle["train.lora"] = "full fine-tuning"
    elif job.policy.adapter:
        idle["train.lora"] = "an adapter that brings its own layers"
    refuse_idle(job, usual, idle, f"{COMMAND}: ")
    check_objective(job.objective, train, job.policy.quantize, COMMAND)
    refuse(
        COMMAND,
        (train.best_by == "margin" and job.objective == "sft",
         "train.best_by = 'margin': sft has no margin", "leave it at loss"),
        (train.tune == "full" and train.reference == "base",
         "train.reference = 'base' needs LoRA: with all weights trained, the base is gone",
         "set train.reference to stage or none"),
        (not data.against and data.ngram != usual.data.ngram,
         f"data.ngram = {data.ngram} does nothing without data.against",
         "name what to keep clean of, for example --set data.against=gsm8k"),
        (train.patience > 0 and data.held_out == 0,
         "train.patience counts looks at held-out examples, and data.held_out is 0",
         "hold some out, for example --set data.held_out=0.05"),
    )  # fmt: skip


def dump_job(job: Job) -> str:
    """Returns the resolved job as TOML, one `table.key = value` a line."""
    return dump_toml(job.model_dump())
