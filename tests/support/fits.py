"""Fits of the embedded policy that one process or several make alike: what each of them runs."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.config.schema import PolicyConfig, TrainConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import ALONE, Hosts, joined
from mlxreflect.models.load import load_policy
from mlxreflect.runs.follow import Follower
from mlxreflect.train.batches import Group, Pair, Row
from mlxreflect.train.lora import attach
from mlxreflect.train.objectives import Objective, imitation
from mlxreflect.train.references import References
from mlxreflect.train.trainer import Trainer, load_parameters, load_trainer, save_trainer

Seed = tuple[int | str, ...]
TOKENS = 250


def row(rng: np.random.Generator, prompt: int, response: int) -> Row:
    first, then = (rng.integers(5, TOKENS, n).tolist() for n in (prompt, response))
    return Row(first, then)


def rows(count: int, seed: int = 0, longest: int = 24) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [row(rng, int(p), int(r)) for p, r in rng.integers(3, longest, (count, 2))]


def pairs(count: int, seed: int = 1, longest: int = 24) -> list[Pair]:
    rng, chosen = np.random.default_rng(seed + 1), rows(count, seed, longest)
    other = [rng.integers(5, TOKENS, n).tolist() for n in rng.integers(3, longest, count)]
    return [Pair(one, Row(one.prompt, end)) for one, end in zip(chosen, other, strict=True)]


def groups(count: int, seed: int = 2) -> list[Group]:
    rng, found = np.random.default_rng(seed), []
    for one in rows(count, seed):
        ends = [rng.integers(5, TOKENS, n).tolist() for n in rng.integers(3, 16, 4)]
        answers = tuple(Row(one.prompt, end) for end in ends)
        found.append(Group(answers, tuple(rng.random(4).round(2).tolist())))
    return found


def settings(**keys: Any) -> TrainConfig:
    """[train] of 48 rows: four steps an epoch, without dropout unless the keys say otherwise."""
    lora = {"rank": 8, "dropout": 0.0, **keys.pop("lora", {})}
    return TrainConfig.model_validate({"lr": 1e-3, "batch": 8, "lora": lora, **keys})


def trainer_on(hosts: Hosts, number: int, train: TrainConfig, cache: str = "") -> Trainer:
    policy = load_policy(PolicyConfig())
    attach(policy.model, train, 0, "", "")
    references = References(Path(cache)) if cache and hosts.rank == 0 else None
    return Trainer(policy.model, references, partial(print, "said:"), hosts, number)


def weights(trainer: Trainer) -> dict[str, Any]:
    return {name: np.array(array).tolist() for name, array in trainer.trainable().items()}


def objective(trainer: Trainer, kind: str, train: TrainConfig, count: int) -> Objective:
    reference = trainer.trainable()
    if kind == "sft":
        return imitation(rows(count))
    if kind == "grpo":
        return trainer.group_objective(groups(count), reference, train, GrpoConfig(kl=0.1))
    return trainer.pair_objective(pairs(count), reference, train, kind)


# ---- what rank 0 does with a trainer, or with two ------------------------------------------------


def whole(kind: str, count: int, train: TrainConfig, *trainers: Trainer) -> dict[str, Any]:
    """A fit to its end."""
    (trainer,) = trainers
    made = objective(trainer, kind, train, count)
    steps = [asdict(step) for step in trainer.train(made, train, (3, "fit"))]
    return {"steps": steps, "weights": weights(trainer)}


def left(kind: str, count: int, train: TrainConfig, *trainers: Trainer) -> dict[str, Any]:
    """A fit that is left after three steps, with a look at other rows on the way; then another."""
    (trainer,), steps = trainers, []
    made, apart = objective(trainer, kind, train, count), imitation(rows(7, 9))
    looks = [trainer.measure(apart, train)]
    training = trainer.train(made, train, (3, "fit"))
    for _ in range(3):
        steps.append(asdict(next(training)))
        looks.append(trainer.measure(apart, train))
    training.close()
    steps += [asdict(step) for step in trainer.train(made, train, (4, "fit"))]
    return {"steps": steps, "looks": looks, "weights": weights(trainer)}


def resumed(kind: str, count: int, train: TrainConfig, *trainers: Trainer) -> dict[str, Any]:
    """A fit that is stopped after five steps and goes on in a trainer that was loaded."""
    first, second = trainers
    made, folder = objective(first, kind, train, count), Path(sys.argv[1])
    training = first.train(made, train, (3, "fit"))
    steps = [asdict(next(training)) for _ in range(5)]
    saved = save_trainer(folder, first)
    mx.save_safetensors(str(folder / "adapter.safetensors"), first.trainable())
    training.close()
    load_trainer(folder, second, saved)
    load_parameters(folder / "adapter.safetensors", second)
    going = second.train(made, train, (3, "fit"), start=5)
    steps += [asdict(step) for step in going]
    return {"steps": steps, "weights": weights(second)}


def scored(kind: str, count: int, train: TrainConfig, *trainers: Trainer) -> dict[str, Any]:
    """Log-probabilities under the weights as they are, and under others, kept or not."""
    (trainer,) = trainers
    own = trainer.trainable()
    moved = {name: array + 0.05 for name, array in own.items()}
    items = [(pair.chosen, pair.rejected) for pair in pairs(count, longest=60)]
    found = [
        trainer.score(items, arrays, what)
        for arrays in (own, moved, moved) for what in ("sums", "tokens")
    ]  # fmt: skip
    return {"scores": [[values.tolist() for values in one] for one in found]}


def endless(kind: str, count: int, train: TrainConfig, *trainers: Trainer) -> dict[str, Any]:
    """A fit that says each step, for a test to stop it."""
    (trainer,) = trainers
    for step in trainer.train(objective(trainer, kind, train, count), train, (3, "fit")):
        print(f"step {step.step}", flush=True)
    return {}


Work = Callable[..., dict[str, Any]]
# By name: what is done, the objective, how many rows, and [train].
CASES: dict[str, tuple[Work, str, int, TrainConfig]] = {
    **{kind: (whole, kind, 48, settings(objective=kind, epochs=epochs, smoothing=smoothing))
       for kind, epochs, smoothing in (("dpo", 9, 0.1), ("ipo", 3, 0.0), ("exo_pair", 3, 0.1))},
    "sft": (whole, "sft", 48, settings(epochs=9)),
    "orpo": (whole, "orpo", 48, settings(epochs=3)),
    "grpo": (whole, "grpo", 24, settings(epochs=17)),
    "dropout": (whole, "sft", 48, settings(epochs=9, lora={"dropout": 0.1})),
    "recomputed": (whole, "sft", 24, settings(grad_checkpoint="yes", lora={"dropout": 0.1})),
    "accumulate": (whole, "dpo", 48, settings(batch=3, accumulate=4, epochs=3)),
    "single": (whole, "dpo", 5, settings(batch=1, epochs=2)),
    "left": (left, "dpo", 24, settings(epochs=2)),
    "resumed": (resumed, "dpo", 24, settings(epochs=3, weight_decay=0.01, warmup=4)),
    "full": (whole, "sft", 24, settings(tune="full", lr=1e-4, epochs=3)),
    "wrecked": (whole, "sft", 16, settings()),
    "scored": (scored, "dpo", 40, settings()),
    "endless": (endless, "sft", 8, settings(epochs=10**6)),
}  # fmt: skip


def results(names: list[str], hosts: Hosts = ALONE, cache: str = "") -> dict[str, Any] | None:
    """Returns what each case gives, by rank 0; the other ranks follow, and return None."""
    made = {}
    for place, name in enumerate(names):
        work, _, _, train = CASES[name]
        count = 2 if work is resumed else 1
        made[name] = [trainer_on(hosts, 2 * place + k, train, cache) for k in range(count)]
    if hosts.rank == 0:
        return {name: CASES[name][0](*CASES[name][1:], *made[name]) for name in names}
    with ExitStack() as stack:
        follower = Follower(hosts, stack)
        for trainers in made.values():
            follower.trainers |= {trainer.number: trainer for trainer in trainers}
        for trainer in made.get("wrecked", []):  # weights that are not rank 0's
            moved = tree_map(lambda array: array + 1, trainer.model.trainable_parameters())
            trainer.model.update(moved)
        follower.follow()
    return None


def main() -> None:
    """arguments: a folder, and names of cases. Rank 0 writes what they give into the folder."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    try:
        with joined() as hosts:
            print(f"pid {hosts.rank} {os.getpid()}", flush=True)
            found = results(names, hosts, str(folder / f"references-{hosts.size}.sqlite"))
            if found is not None:
                (folder / "found.json").write_text(json.dumps(found))
    except UserError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")


if __name__ == "__main__":
    main()
