"""Build the embedded policy from random weights.

Usage: python -m mlxreflect.models.tiny.build OUT [STEPS].

Full fine-tuning with the project's own SFT trainer from a fixed seed, then 4 bits.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlxreflect.config.schema import Fitting
from mlxreflect.core.seeds import rng_for, seed_mlx
from mlxreflect.models.policy import GROUP_SIZE, Policy
from mlxreflect.models.tiny.data import example
from mlxreflect.models.tiny.tokenizer import build_tokenizer
from mlxreflect.train.batches import Row
from mlxreflect.train.objectives import imitation
from mlxreflect.train.trainer import Trainer

SEED = 0
STEPS = 700
BATCH = 128
MICRO_BATCH = 32  # alike lengths together
LR = 3e-3  # constant after the warm-up: a policy that is not annealed has more to learn
WARMUP = 50  # steps


def config(vocabulary: int, end: int) -> dict[str, object]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "eos_token_id": end,
    }


def train(policy: Policy, steps: int) -> None:
    trainer = Trainer(policy.model)
    rng = rng_for("tiny", SEED, "data")
    settings = Fitting(batch=MICRO_BATCH, accumulate=BATCH // MICRO_BATCH, weight_decay=0.01)
    seconds = loss = 0.0
    for number in range(1, steps + 1):
        rows = []
        for _ in range(BATCH):
            messages, text = example(rng)
            prompt = policy.encode(messages)
            rows.append(Row(prompt, policy.encode_response(prompt, text)))
        lr = LR * min(1.0, number / WARMUP)
        (step,) = trainer.fit(imitation(rows), settings, ("tiny", SEED, number), lr)
        seconds += step.seconds
        loss += step.loss
        if number % 50 == 0:
            print(f"step {number}/{steps}  loss {loss / 50:.4f}  {seconds:.0f} s", flush=True)
            loss = 0.0


def main(out: Path, steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(out)
    settings = config(len(tokenizer), tokenizer.eos_token_id)
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    seed_mlx("tiny", SEED, "weights")
    model = qwen2.Model(qwen2.ModelArgs.from_dict(settings))
    policy = Policy(model, load_tokenizer(out), "tiny")
    train(policy, steps)
    nn.quantize(model, GROUP_SIZE, 4)
    arrays = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(out / "model.safetensors"), arrays, metadata={"format": "mlx"})
    settings["quantization"] = {"group_size": GROUP_SIZE, "bits": 4}
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)
