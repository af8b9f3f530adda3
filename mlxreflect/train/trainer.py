"""The one training loop: preferences, responses or groups, on LoRA or on all weights.

A step is `batch × accumulate` items. Its gradient is that of the sum of their losses, divided once
by its number of pairs, response tokens or rows, so neither the batch size nor the accumulation
changes the loss. `config` is [train] of a recipe or a job; see `config.schema.Fitting`.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_unflatten

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.config.schema import Fitting
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.core.seeds import rng_for
from mlxreflect.models.load import weights_hash
from mlxreflect.models.sharing import agree_on_weights
from mlxreflect.train.batches import Group, Item, Pair, Part, collate
from mlxreflect.train.cpu import faster_on_cpu, in_parts
from mlxreflect.train.dropout import layer_keys, masked
from mlxreflect.train.hosts import FITTING, divided, spread, tokens_of
from mlxreflect.train.memory import Footprint, most_tokens, plan, recomputed_layers
from mlxreflect.train.network import Arrays, Network, parameters
from mlxreflect.train.objectives import (
    Metrics,
    Objective,
    odds_ratio,
    preference,
    reinforcement,
    to_json,
)
from mlxreflect.train.recurrent import differentiable, forget
from mlxreflect.train.references import References, What, score

TIE = 1e-5  # margins below it are rounding
Seed = tuple[int | str, ...]
Found = defaultdict[str, dict[int, float]]  # metrics by name, of each item by its index


@dataclass(frozen=True)
class LRSchedule:
    """The course of the learning rate over the steps of one fit.

    shape: "constant", "linear" or "cosine" (both fall to 0), after the warm-up. warmup: share of
    the fit's steps; `train.warmup` counts where that is more of them.
    """

    shape: str = "constant"
    warmup: float = 0.0

    def rate(self, lr: float, number: int, total: int, made: int, warmup: int) -> float:
        """Returns the learning rate of step `number` (from 0) of a fit's `total`.

        lr: the highest. made: steps that the objective's optimizer has made with this one, over
        which the rate rises. warmup: the least number of steps that it takes.
        """
        warmup = max(warmup, math.ceil(self.warmup * total))
        begun = max(0, number - warmup) / max(1, total - warmup)
        share = {"linear": 1 - begun, "cosine": 0.5 * (1 + math.cos(math.pi * begun))}
        return lr * share.get(self.shape, 1.0) * min(1.0, made / max(1, warmup))


CONSTANT = LRSchedule()


@dataclass(frozen=True)
class Step:
    """Metrics of one optimizer step.

    loss: mean of an item (of a token: sft). margin, accuracy: over its pairs, None without.
    tokens: response tokens trained. seconds: wall time. kl, clipped: of grpo, mean of a token.
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
        kept = ("margin", "accuracy")  # also where they are None
        return {k: v for k, v in asdict(self).items() if v is not None or k in kept}


Given = tuple[Objective, Fitting, Seed, float | None, LRSchedule, int]  # to `Trainer.train`


class Trainer:
    """Trains the model's trainable parameters; one AdamW an objective, whose state stays.

    Two optimizers, because the moments of one loss are no estimate of the other's gradients.
    references: keeps log-probabilities of the reference on disk; None: nothing is kept. say: is
    called once with what a person should know about the model. hosts: who share the work, each with
    a trainer of this number: rank 0's is used, and orders what those of the others do.
    """

    def __init__(
        self,
        model: nn.Module,
        references: References | None = None,
        say: Callable[[str], None] = lambda text: None,
        hosts: Hosts = ALONE,
        number: int = 0,
    ) -> None:
        self.model, self.references, self.say = model, references, say
        self.hosts, self.number = hosts, number
        self.measured: Objective | None = None  # the last one, which the other hosts keep too
        self.network: Network | None = None
        self.noted = False
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

    # ---- the loop -------------------------------------------------------------------------------

    def train(
        self,
        objective: Objective,
        config: Fitting,
        seed: Seed,
        lr: float | None = None,
        schedule: LRSchedule = CONSTANT,
        start: int = 0,
    ) -> Generator[Step, None, None]:
        """Makes one optimizer step after another: all items in a seeded order, `epochs` times.

        lr: the highest learning rate; None: `config.lr`. start: steps already made. Each step's
        order, dropout and learning rate follow from seed and number alone, so a trainer restored
        after step n and started at n goes on as if it had never stopped. Over several hosts, the
        others go through the same generator, step by step, as this one does.
        """
        items, name = objective.items, objective.name
        if not items:
            return
        network = self.understood(items)
        optimizer = self.optimizer(name, config.weight_decay)
        per_step = config.batch * config.accumulate
        per_epoch = -(-len(items) // per_step)
        total = config.epochs * per_epoch
        try:
            for number in range(start, total):
                started = time.perf_counter()
                if not self.hosts.alone:
                    given = objective, config, seed, lr, schedule, start
                    self.begin_step(name, given if number == start else None)
                epoch, at = divmod(number, per_epoch)
                order = list(range(len(items)))
                rng_for(*seed, name, "order", epoch).shuffle(order)
                members = order[at * per_step : (at + 1) * per_step]

                stream = (*seed, name, "dropout", number)
                loss, grads, metrics = self.gradients(network, objective, members, config, stream)
                grads, norm = optim.clip_grad_norm(grads, config.clip or math.inf)

                self.steps[name] += 1
                optimizer.learning_rate = schedule.rate(
                    config.lr if lr is None else lr, number, total, self.steps[name], config.warmup
                )
                optimizer.update(self.model, grads)
                mx.eval(self.model.trainable_parameters(), optimizer.state, norm)
                mx.clear_cache()  # buffers of this step's shapes, which may not come again
                if not self.hosts.alone and number == total - 1:
                    self.compare(name)
                if self.hosts.rank == 0:
                    check_finite(self.steps[name], loss, norm.item(), self.trainable())
                yield Step(
                    name,
                    self.steps[name],
                    loss,
                    float(optimizer.learning_rate.item()),
                    norm.item(),
                    sum(row.trained for i in members for row in items[i]),
                    time.perf_counter() - started,
                    **ranking(metrics),
                    kl=mean(metrics["kl"].values()),
                    clipped=mean(metrics["clipped"].values()),
                )
        finally:
            mx.clear_cache()

    def gradients(
        self, network: Network, objective: Objective, members: list[int], config: Fitting,
        stream: Seed,
    ) -> tuple[float, Any, Found]:  # fmt: skip
        """Returns a step's loss, its gradients and each item's metrics; one part at a time."""
        own = self.own_members(network, objective, members)
        parts, recompute = self.plan(network, objective, own, config)
        arrays = self.trainable()
        layers = layer_keys(self.model) if objective.dropout else {}

        def slope(part: Part) -> tuple[mx.array, Metrics, Any]:
            powers, rows = list[mx.array](), {i: objective.items[i][0] for i in part}
            loss = partial(loss_of, network, objective, training=True, powers=powers)
            # value_and_grad leaves its own tracers in the model.
            with (
                masked(layers, stream, rows),
                recomputed_layers(self.model, recompute),
                parameters(self.model, arrays),
            ):
                (value, found), gradient = nn.value_and_grad(self.model, loss)(part)
            for power in powers:
                gradient = tree_map(lambda g, by=power: (g / by).astype(g.dtype), gradient)
            return value, found, gradient

        total, grads = 0.0, None
        metrics: Found = defaultdict(dict)
        with differentiable(self.model, objective.dropout):
            for part, (value, found, gradient) in in_parts(self.model, slope, parts):
                grads = gradient if grads is None else tree_map(mx.add, grads, gradient)
                mx.eval(grads)
                total += gather(value, found, part, metrics)
        if not self.hosts.alone:
            if grads is None:
                grads = tree_map(mx.zeros_like, self.model.trainable_parameters())
            total, grads, metrics = self.summed(objective, members, total, grads, metrics)
        scale = 1 / sum(objective.sizes[i] for i in members)
        return total * scale, tree_map(lambda g: g * scale, grads), metrics

    def measure(self, objective: Objective, config: Fitting) -> dict[str, float | None]:
        """Returns loss, margin and accuracy over all items, without training on them."""
        network = self.understood(objective.items)
        total = 0.0
        metrics: Found = defaultdict(dict)
        members = list(range(len(objective.items)))
        if not self.hosts.alone:
            self.lead("measure", lambda: self.measure_order(objective, config))
            self.measured = objective
            agree_on_weights(self.hosts, self.model)
        own = self.own_members(network, objective, members)
        parts, _ = self.plan(network, objective, own, config)
        self.model.eval()
        loss = partial(loss_of, network, objective)
        for part, (value, found) in in_parts(self.model, loss, parts):
            total += gather(value, found, part, metrics)
        if not self.hosts.alone:
            total, _, metrics = self.summed(objective, members, total, {}, metrics)
        return {"loss": total / sum(objective.sizes), **ranking(metrics)}

    def plan(
        self, network: Network, objective: Objective, members: list[int], config: Fitting
    ) -> tuple[list[Part], int]:
        """Returns the members in parts, and how many layers are recomputed; see `memory.plan`."""
        items = {i: objective.items[i] for i in members}
        if not items:
            return [], 0
        footprint = Footprint(self.model, network.vocabulary)
        return plan(items, network.shares, objective.splits, footprint, config)

    # ---- several hosts --------------------------------------------------------------------------

    def lead(self, order: str, data: Callable[[], dict[str, Any]] = dict) -> None:
        """Gives the others an order, where this is rank 0, which does the same itself."""
        if self.hosts.rank == 0:
            self.hosts.lead(order, number=self.number, **data())

    def begin_step(self, name: str, fit: Given | None) -> None:
        """Orders the next step of a fit; before its first one, all take rank 0's state.

        Rank 0 may leave a fit at any step: the others stay where it left, until the next order.
        """
        if fit:
            self.lead("fit", lambda: fit_order(*fit))
        self.lead("step")
        if fit:
            self.agree(name)

    def own_members(self, network: Network, objective: Objective, members: list[int]) -> list[int]:
        """Returns those of the members that this rank computes."""
        if self.hosts.alone:
            return members
        costs = [tokens_of([objective.items[i]], network.shares) for i in members]
        return [members[j] for j in divided(costs, self.hosts.size)[self.hosts.rank]]

    def summed(
        self, objective: Objective, members: list[int], total: float, grads: Any, metrics: Found
    ) -> tuple[float, Any, Found]:
        """Returns loss, gradients and metrics of all ranks together, in one collective."""
        gradients, names = dict(tree_flatten(grads)), objective.metrics
        paths = sorted(gradients)
        figures = [total, *(metrics[name].get(i, 0.0) for name in names for i in members)]
        *arrays, brought = self.hosts.sum([*(gradients[p] for p in paths), mx.array(figures)])
        by_path = dict(zip(paths, arrays, strict=True))
        loss, *values = np.array(brought).tolist()
        found: Found = defaultdict(dict)
        for k, name in enumerate(names):
            own = values[k * len(members) : (k + 1) * len(members)]
            found[name] = dict(zip(members, own, strict=True))
        return loss, tree_map_with_path(lambda path, _: by_path[path], grads), found

    def agree(self, name: str) -> list[str]:
        """Takes rank 0's weights and optimizer, bit for bit; returns the hosts that had others."""
        optimizer = self.optimizer(name, 0.0)
        state = {"model": self.model.trainable_parameters(), "optimizer": optimizer.state}
        arrays = dict(tree_flatten(state))
        own = [weights_hash(arrays), self.steps[name], optimizer.weight_decay]
        said = self.hosts.meet(own)
        others = [who for who, one in zip(self.hosts.names, said, strict=True) if one != said[0]]
        if others:
            taken = tree_unflatten(list(self.hosts.share(arrays).items()))
            if self.hosts.rank:
                self.model.update(taken["model"])
                forget(self.model)
                optimizer.state = taken["optimizer"]
                _, self.steps[name], optimizer.weight_decay = said[0]
        return others

    def compare_all(self) -> None:
        """Has all hosts compare their weights and optimizers with rank 0's; at each commit."""
        for name in [] if self.hosts.alone else list(self.optimizers):
            self.hosts.lead("compare", number=self.number, name=name)
            self.compare(name)

    def compare(self, name: str) -> None:
        """Says whose chips computed otherwise than rank 0's, whose state goes on."""
        first, others = self.hosts.names[0], self.agree(name)
        if others and self.hosts.rank == 0:
            self.say(
                f"note: {', '.join(others)} rounded otherwise than {first} in training; the "
                f"weights of {first} count"
            )

    def measure_order(self, objective: Objective, config: Fitting) -> dict[str, Any]:
        """Returns the order to measure; the objective is left out where it was the last one too."""
        sent = None if objective is self.measured else to_json(objective)
        return {"objective": sent, "config": FITTING.dump_python(config, mode="json")}

    # ---- objectives -----------------------------------------------------------------------------

    def pair_objective(
        self, pairs: Sequence[Pair], reference: Arrays | None, config: Fitting, name: str
    ) -> Objective:
        """Returns the objective `name` on pairs, with the reference's log-probabilities.

        reference: trainable parameters of the reference policy; None: no reference (zeros).
        """
        if name == "orpo":
            return odds_ratio(pairs, config.beta)
        plain = preference(pairs, None, config, name)
        if reference is None or not config.dpo:  # the NLL alone needs no reference
            return plain
        most = config.part_tokens
        known = self.score(plain.items, reference, "sums", plain.keep_shared, part_tokens=most)
        return preference(pairs, known, config, name)

    def group_objective(
        self, groups: Sequence[Group], reference: Arrays | None, config: Fitting, grpo: GrpoConfig
    ) -> Objective:
        """Returns GRPO on groups that the policy as it is has written."""
        old = fixed = None
        if config.epochs > 1 or len(groups) > config.batch * config.accumulate:  # several steps
            old = self.score_groups(groups, self.trainable(), config, keep=False)
        if reference is not None and grpo.kl:
            fixed = self.score_groups(groups, reference, config)
        return reinforcement(groups, old, fixed, grpo)

    def score_groups(
        self, groups: Sequence[Group], arrays: Arrays, config: Fitting, *, keep: bool = True
    ) -> list[np.ndarray]:
        """Returns the token log-probabilities of each group, of as many rows at once as may be."""
        most = most_tokens(config.part_tokens)
        longest = [max(len(row.response) for row in group.rows) for group in groups]
        steps = [max(2, int(min(most / length, len(group.rows))))  # one would share no prompt
                 for group, length in zip(groups, longest, strict=True)]  # fmt: skip
        items = [[group.rows[at : at + step] for at in range(0, len(group.rows), step)]
                 for group, step in zip(groups, steps, strict=True)]  # fmt: skip
        found = iter(self.score([one for pieces in items for one in pieces], arrays, "tokens",
                                keep=keep, part_tokens=config.part_tokens))  # fmt: skip
        return [np.concatenate([next(found) for _ in pieces]) for pieces in items]

    def score(
        self,
        items: Sequence[Item],
        arrays: Arrays,
        what: What,
        keep_shared: bool = True,
        *,
        keep: bool = True,
        part_tokens: int = 0,
    ) -> list[np.ndarray]:
        """Returns `references.score` under other parameters. keep: on disk, to be asked again."""
        network, references = self.understood(items), self.references if keep else None
        key = references.key_of(self.model, arrays) if references else ""
        compute = partial(spread, self.hosts, self.number, network, arrays, what, keep_shared)
        with parameters(self.model, arrays):
            return score(
                network, items, what, keep_shared, references, key, part_tokens,
                None if self.hosts.alone else compute,
            )  # fmt: skip

    def understood(self, items: Sequence[Item]) -> Network:
        """Returns the network, tried once; what a person should know of it is said once."""
        if self.network is None:
            with faster_on_cpu(self.model):
                self.network = Network(self.model)
        if not self.network.shares and not self.noted and any(len(item) > 1 for item in items):
            self.noted = True
            self.say(
                "note: this model cannot run the shared beginning of chosen and rejected once; "
                "each is run whole, which takes longer"
            )
        return self.network


def fit_order(
    objective: Objective, config: Fitting, seed: Seed, lr: float | None, schedule: LRSchedule,
    start: int,
) -> dict[str, Any]:  # fmt: skip
    """Returns what `Trainer.train` is given, as JSON."""
    return {
        "objective": to_json(objective), "config": FITTING.dump_python(config, mode="json"),
        "seed": list(seed), "lr": lr, "schedule": asdict(schedule), "start": start,
    }  # fmt: skip


def check_finite(number: int, loss: float, norm: float, weights: Arrays) -> None:
    """Raises UserError where training has come to nothing: all that follows would be nan.

    Loss and norm are of before the update: only weights tell what the last step has made.
    """
    hint = (
        "begin anew in another folder with a lower train.lr (train.sft.lr where a run imitates), "
        "or a train.warmup"
    )
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(f"step {number}: the loss is {loss}, its gradient's norm {norm}", hint)
    if not mx.stack([mx.isfinite(array).all() for array in weights.values()]).all().item():
        raise UserError(f"step {number}: weights that it trained are no finite numbers", hint)


def loss_of(
    network: Network, objective: Objective, part: Part, *, training: bool = False,
    powers: list[mx.array] | None = None,
) -> tuple[mx.array, Metrics]:  # fmt: skip
    """Returns summed loss and metrics of a part. powers: as of `enlarged`, for float16."""
    rows = [objective.items[i][at] for i, at in part.items()]
    batch = collate(rows, share=network.shares, keep_shared=objective.keep_shared)
    logps = network.logps(batch, training=training)
    if powers is not None and network.precision == mx.float16:
        logps = enlarged(logps, powers)
    return objective.loss(logps, batch, part)


def enlarged(logps: mx.array, powers: list[mx.array]) -> mx.array:
    """logps, whose gradient is times a power of two, so that the largest is between 1/2 and 1.

    A mean over a long response has gradients of which float16 would lose the last digits, or all.
    powers: gets that power during the backward pass; what comes of it is to be divided by it.
    """

    @mx.custom_function
    def same(logps: mx.array) -> mx.array:
        return logps

    @same.vjp
    def backward(primal: Any, cotangent: Any, output: Any) -> mx.array:
        largest = mx.abs(cotangent).max()
        powers.append(mx.where(largest > 0, mx.power(2.0, mx.floor(-mx.log2(largest))), 1.0))
        return cast(mx.array, cotangent * powers[-1])

    return cast(mx.array, same(logps))


def gather(value: mx.array, found: Metrics, part: Part, metrics: Found) -> float:
    """Returns a part's loss; its items' metrics join those of the parts before."""
    for name, values in found.items():
        of, known = dict(zip(part, np.array(values).tolist(), strict=True)), metrics[name]
        known |= {i: known.get(i, 0.0) + value for i, value in of.items()}
    return float(np.array(value))


def mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


def ranking(metrics: Found) -> dict[str, float | None]:
    """Returns the mean margin and the share of pairs ranked right, of a tie half; None without."""
    margins = metrics["margin"].values()
    right = [0.5 if abs(margin) < TIE else float(margin > 0) for margin in margins]
    return {"margin": mean(margins), "accuracy": mean(right)}


# ---- what a trainer keeps between two processes ------------------------------------------------


def save_trainer(folder: Path, trainer: Trainer) -> dict[str, Any]:
    """Optimizer states as safetensors; returns what goes into the commit's JSON.

    They are those of all hosts.
    """
    trainer.compare_all()
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
    """The arrays of a commit's file, whose bytes are known to be whole."""
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)  # a safetensors file always is one
    return arrays
