"""What a trainer must remember between two processes: parameters, moments, step counts."""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlxreflect.errors import UserError
from mlxreflect.train.network import Arrays
from mlxreflect.train.trainer import Trainer


def save_trainer(folder: Path, trainer: Trainer) -> dict[str, Any]:
    """Optimizer states as safetensors; returns what goes into the commit's JSON."""
    for name, optimizer in trainer.optimizers.items():
        arrays = dict(tree_flatten(optimizer.state))
        mx.save_safetensors(str(folder / f"optimizer-{name}.safetensors"), arrays)
    decay = {name: one.weight_decay for name, one in trainer.optimizers.items()}
    return {"steps": dict(trainer.steps), "weight_decay": decay}


def load_trainer(folder: Path, trainer: Trainer, saved: dict[str, Any]) -> None:
    for name, decay in saved["weight_decay"].items():
        optimizer = trainer.optimizer(name, decay)
        arrays = load_arrays(folder / f"optimizer-{name}.safetensors")
        optimizer.state = tree_unflatten(list(arrays.items()))
        trainer.steps[name] = saved["steps"][name]


def load_parameters(path: Path, trainer: Trainer) -> None:
    trainer.model.update(tree_unflatten(list(load_arrays(path).items())))
    mx.eval(trainer.model.trainable_parameters())


def load_arrays(path: Path) -> Arrays:
    """The arrays of a file. Raises UserError where it is damaged or not there."""
    try:
        arrays = mx.load(str(path))
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be read: {str(error).removeprefix('[load_safetensors] ')}",
            "restore that file; or delete the folder that it is in, to go on from the commit "
            "before it, where there is one",
        ) from None
    assert isinstance(arrays, dict)  # a safetensors file always is one
    return arrays
