"""One optimizer step as figures, and the learning rate's course over steps.

The one training loop: preferences, responses or groups, on LoRA or on all weights.

A step is `batch × accumulate` items. Gradients are of the sum of the items' losses, divided once by
the step's number of pairs, response tokens or rows, so neither the batch size nor the accumulation
changes the loss. A batch that would not fit into memory is taken in parts.

What a trainer must remember between two processes: parameters, moments, step counts.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlxreflect.core.errors import UserError
from mlxreflect.core.seeds import rng_for, seed_mlx
from mlxreflect.train.batches import Group, Item, Pair, Row, collate
from mlxreflect.train.cpu import faster_on_cpu, side_by_side
from mlxreflect.train.memory import Footprint, plan, recomputed_layers
from mlxreflect.train.network import Arrays, Network, parameters
from mlxreflect.train.objectives import (
    Metrics,
    Objective,
    Settings,
    imitation,
    odds_ratio,
    preference,
    reinforcement,
)
from mlxreflect.train.references import Kept, References, What, score

TIE = 1e-5  # margins below it are rounding


@dataclass(frozen=True)
class Step:
    """Metrics of one optimizer step.

    loss: mean an item (or a token: sft). margin, accuracy: over its pairs, None without.
    tokens: response tokens trained. seconds: wall time. kl, clipped: grpo's, a token.
    """

    objective: str
    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    margin: float | None = None
    accuracy: float | None = None
    kl: float | None = None
    clipped: float | None = None

    def row(self) -> dict[str, Any]:
        return {
            k: v for k, v in asdict(self).items() if v is not None or k in ("margin", "accuracy")
        }


def schedule(settings: Settings, number: int, total: int) -> float:
    """Share of the learning rate in step `number` (from 0) of `total`, warm-up aside."""
    begun = max(0, number - settings.warmup) / max(1, total - settings.warmup)
    if settings.schedule == "linear":
        return 1 - begun
    return 0.5 * (1 + math.cos(math.pi * begun)) if settings.schedule == "cosine" else 1.0


def gather(value: mx.array, found: Metrics, metrics: dict[str, list[float]]) -> float:
    """A part's loss; its items' metrics join those of the parts before."""
    for name, values in found.items():
        metrics[name] += np.array(values).tolist()
    return float(np.array(value))


def mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def ranking(metrics: dict[str, list[float]]) -> dict[str, float | None]:
    """Mean margin, and the share of pairs ranked right; None where there are no pairs.

    A tie, as of a policy that still is its reference, is right by half.
    """
    margins = metrics.get("margin", [])
    right = [0.5 if abs(margin) < TIE else float(margin > 0) for margin in margins]
    return {"margin": mean(margins), "accuracy": mean(right)}


Seed = tuple[int | str, ...]
OnStep = Callable[["Step"], None]


class Trainer:
    """Trains the model's trainable parameters; one AdamW an objective, whose state is kept.

    Two optimizers, because the moments of one loss are no estimate of the other's gradients.
    references: where log-probabilities of the reference are kept, if they are. say: told once what
    a person should know about the model.
    """

    def __init__(
        self,
        model: nn.Module,
        references: References | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.references, self.say = model, references, say
        self.network: Network | None = None
        self.told = False
        self.optimizers: dict[str, optim.AdamW] = {}
        self.steps: dict[str, int] = {}

    def trainable(self) -> Arrays:
        return dict(tree_flatten(self.model.trainable_parameters()))

    def optimizer(self, name: str, weight_decay: float) -> optim.AdamW:
        if name not in self.optimizers:
            optimizer = optim.AdamW(0.0, weight_decay=weight_decay, bias_correction=True)
            optimizer.init(self.model.trainable_parameters())
            self.optimizers[name], self.steps[name] = optimizer, 0
        return self.optimizers[name]

    # ---- objectives -----------------------------------------------------------------------------

    def fit_pairs(
        self,
        pairs: Sequence[Pair],
        reference: Arrays | None,
        settings: Settings,
        seed: Seed,
        on_step: OnStep | None = None,
    ) -> list[Step]:
        """Preference training over all pairs, `epochs` times in a seeded order.

        reference: trainable parameters of the reference policy; None: no reference (zeros).
        """
        return self.fit(self.pair_objective(pairs, reference, settings), settings, seed, on_step)

    def fit_rows(
        self,
        rows: Sequence[Row],
        settings: Settings,
        seed: Seed,
        on_step: OnStep | None = None,
        *,
        dropout: bool = True,
    ) -> list[Step]:
        """SFT on responses: mean NLL a token over each step."""
        return self.fit(imitation(rows, dropout=dropout), settings, seed, on_step)

    def fit_groups(
        self,
        groups: Sequence[Group],
        reference: Arrays | None,
        settings: Settings,
        seed: Seed,
        on_step: OnStep | None = None,
    ) -> list[Step]:
        """GRPO on groups that the policy as it is has written; `epochs` updates of each group."""
        return self.fit(self.group_objective(groups, reference, settings), settings, seed, on_step)

    def pair_objective(
        self, pairs: Sequence[Pair], reference: Arrays | None, settings: Settings
    ) -> Objective:
        """The objective on pairs, the reference's log-probabilities computed."""
        if settings.objective == "orpo":
            return odds_ratio(pairs, settings)
        plain = preference(pairs, None, settings)
        if reference is None or not settings.dpo:  # the NLL alone needs no reference
            return plain
        known = self.score(plain.items, reference, settings, "sums", plain.keep_shared)
        return preference(pairs, known, settings)

    def group_objective(
        self, groups: Sequence[Group], reference: Arrays | None, settings: Settings
    ) -> Objective:
        items: list[Item] = [group.rows for group in groups]
        alone = settings.epochs == 1 and len(items) <= settings.batch * settings.accumulate
        old = None if alone else self.score(items, self.trainable(), settings, "tokens", keep=False)
        fixed = None
        if reference is not None and settings.kl:
            fixed = self.score(items, reference, settings, "tokens")
        return reinforcement(groups, old, fixed, settings)

    def score(
        self,
        items: Sequence[Item],
        arrays: Arrays,
        settings: Settings,
        what: What,
        keep_shared: bool = True,
        *,
        keep: bool = True,
    ) -> list[np.ndarray]:
        """Log-probabilities of items under other trainable parameters; see `scoring.score`.

        keep: on disk, for a policy that will be asked again.
        """
        network, kept = self.understood(items), None
        if self.references and keep:
            kept = Kept(self.references, self.references.key_of(self.model, arrays))
        with parameters(self.model, arrays):
            return score(network, items, what, keep_shared, kept)

    def understood(self, items: Sequence[Item]) -> Network:
        """The network, found out once, and what a person should know of it, said once."""
        if self.network is None:
            with faster_on_cpu(self.model):
                self.network = Network(self.model)
        if not self.network.shares and not self.told and any(len(item) > 1 for item in items):
            self.told = True
            self.say(
                "note: this model cannot run the shared beginning of chosen and rejected once; "
                "each is run whole, which takes longer"
            )
        return self.network

    # ---- the loop -------------------------------------------------------------------------------

    def fit(
        self, objective: Objective, settings: Settings, seed: Seed, on_step: OnStep | None = None
    ) -> list[Step]:
        steps = []
        for step in self.train(objective, settings, seed):
            steps.append(step)
            if on_step:
                on_step(step)
        return steps

    def train(
        self, objective: Objective, settings: Settings, seed: Seed, start: int = 0
    ) -> Generator[Step, None, None]:
        """One optimizer step after another, from step `start` on of those that the data give.

        Each step's order, dropout and learning rate follow from seed and number alone, so a
        trainer restored after step n and started at n goes on as if it had never stopped.
        """
        items = objective.items
        if not items:
            return
        network = self.understood(items)
        self.optimizer(objective.name, settings.weight_decay)
        per_step = settings.batch * settings.accumulate
        per_epoch = -(-len(items) // per_step)
        try:
            for number in range(start, settings.epochs * per_epoch):
                epoch, at = divmod(number, per_epoch)
                order = list(range(len(items)))
                rng_for(*seed, objective.name, "order", epoch).shuffle(order)
                group = order[at * per_step : (at + 1) * per_step]
                rate = settings.lr * schedule(settings, number, settings.epochs * per_epoch)
                # Dropout would make policy and reference differ from themselves.
                self.model.train(objective.dropout)
                stream = (*seed, objective.name, "dropout", number)
                yield self.step(network, objective, group, settings, rate, stream)
        finally:
            self.model.eval()
            mx.clear_cache()

    def step(
        self,
        network: Network,
        objective: Objective,
        group: list[int],
        settings: Settings,
        rate: float,
        stream: Seed,
    ) -> Step:
        """One update, on the items of a group."""
        started = time.perf_counter()
        loss, grads, metrics = self.gradients(network, objective, group, settings, stream)
        scale = 1 / sum(objective.sizes[i] for i in group)
        grads = tree_map(lambda g: g * scale, grads)
        grads, norm = optim.clip_grad_norm(grads, settings.clip or math.inf)
        optimizer = self.optimizer(objective.name, settings.weight_decay)
        self.steps[objective.name] += 1
        warm = self.steps[objective.name] / max(1, settings.warmup)
        optimizer.learning_rate = rate * min(1.0, warm)
        optimizer.update(self.model, grads)
        mx.eval(self.model.trainable_parameters(), optimizer.state, norm)
        return Step(
            objective.name,
            self.steps[objective.name],
            loss * scale,
            float(optimizer.learning_rate.item()),
            norm.item(),
            sum(row.trained for i in group for row in objective.items[i]),
            time.perf_counter() - started,
            **ranking(metrics),
            kl=mean(metrics.get("kl")),
            clipped=mean(metrics.get("clipped")),
        )

    def gradients(
        self,
        network: Network,
        objective: Objective,
        group: list[int],
        settings: Settings,
        stream: Seed,
    ) -> tuple[float, Any, dict[str, list[float]]]:
        """Summed loss, its gradients and each item's metrics; one part of the group at a time."""
        loss = partial(loss_of, network, objective, training=True)
        parts, recompute = self.plan(network, objective, group, settings)
        arrays = self.trainable()
        mx.eval(self.model.parameters())  # here, where they were made

        def part(members: list[int]) -> tuple[mx.array, Metrics, Any]:
            drawn = (*stream, members[0])
            seed_mlx(*drawn)
            # value_and_grad leaves its own tracers in the model.
            with recomputed_layers(self.model, recompute, drawn), parameters(self.model, arrays):
                (value, found), gradient = nn.value_and_grad(self.model, loss)(members)
            return value, found, gradient

        total, grads = 0.0, None
        metrics: dict[str, list[float]] = defaultdict(list)
        with faster_on_cpu(self.model):
            for _, (value, found, gradient) in side_by_side(part, parts):
                grads = gradient if grads is None else tree_map(mx.add, grads, gradient)
                mx.eval(grads)
                total += gather(value, found, metrics)
        return total, grads, metrics

    def measure(self, objective: Objective, settings: Settings) -> dict[str, float | None]:
        """Loss, margin and accuracy over all items, without training on them."""
        network = self.understood(objective.items)
        total = 0.0
        metrics: dict[str, list[float]] = defaultdict(list)
        parts, _ = self.plan(network, objective, list(range(len(objective.items))), settings)
        self.model.eval()
        loss = partial(loss_of, network, objective)
        with faster_on_cpu(self.model):
            for _, (value, found) in side_by_side(loss, parts):
                total += gather(value, found, metrics)
        return {"loss": total / sum(objective.sizes), **ranking(metrics)}

    def plan(
        self, network: Network, objective: Objective, group: list[int], settings: Settings
    ) -> tuple[list[list[int]], int]:
        """The group in parts, and how many layers are recomputed; see `memory.plan`."""
        items = {i: objective.items[i] for i in group}
        return plan(items, network.shares, Footprint(self.model, network.vocabulary), settings)


def loss_of(
    network: Network, objective: Objective, members: list[int], *, training: bool = False
) -> tuple[mx.array, Metrics]:
    """Summed loss and metrics of some items."""
    rows = [objective.items[i] for i in members]
    batch = collate(rows, share=network.shares, keep_shared=objective.keep_shared)
    return objective.loss(network.logps(batch, training=training), batch, members)


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
