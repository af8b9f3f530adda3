"""LoRA folders with random weights, as training would have left them."""

import json
from pathlib import Path

import mlx.core as mx

from mlxreflect.config.schema import LoraConfig, PolicyConfig
from mlxreflect.models.load import load_policy
from mlxreflect.train.lora import attach_lora, save_adapter
from mlxreflect.train.trainer import Trainer


def write_adapter(
    folder: Path, model: Path | str, seed: int = 0, told: str | None = None, *, dora: bool = False
) -> Path:
    """An adapter that changes what the model says. told: the model its config names, if another."""
    policy = load_policy(PolicyConfig(model=str(model)))
    config = attach_lora(policy.model, LoraConfig(rank=4, dora=dora), seed)
    mx.random.seed(seed)
    arrays = {name: array + 0.2 * mx.random.normal(array.shape)
              for name, array in Trainer(policy.model).trainable().items()}  # fmt: skip
    save_adapter(folder, arrays, config, str(model) if told is None else told)
    if told == "":
        path = folder / "adapter_config.json"
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k != "model"}
        path.write_text(json.dumps(kept))
    return folder
