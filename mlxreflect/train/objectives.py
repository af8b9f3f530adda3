"""An objective of one fit: items of rows, and their loss from log-probabilities.

Losses are sums over items; the trainer divides once, by the sizes of a step's items, so neither
batch size nor accumulation changes a loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Annotated, Any

import mlx.core as mx
import numpy as np
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.config.schema import Fitting
from mlxreflect.train.batches import Batch, Group, Item, Pair, Part, Row
from mlxreflect.train.losses import PREFERENCE, group_advantages, grpo_loss, log_ratio, orpo_loss

Metrics = dict[str, mx.array]  # one value an item; of a few of its rows, their share of it
Loss = Callable[[mx.array, Batch, Part], tuple[mx.array, Metrics]]
Known = list[list[np.ndarray]]  # token log-probabilities, by group and row


@dataclass(frozen=True)
class Objective:
    """items: rows that share a prompt. sizes: what a step's summed loss is divided by, an item.

    loss: logps [R, T], their batch and what they are of → summed loss and metrics an item.
    keep_shared: response tokens that all rows of an item share are scored too. splits: the loss is
    a sum over rows, so an item's rows need not be computed at once. metrics: names of those that
    the loss returns. given: what its constructor was given, to build it again on another host.
    """

    name: str
    items: list[Item]
    sizes: list[float]
    loss: Loss = field(repr=False)
    keep_shared: bool = True
    splits: bool = False
    dropout: bool = False
    metrics: tuple[str, ...] = ()
    given: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for number, item in enumerate(self.items):
            if not all(row.trained for row in item):
                raise ValueError(f"{self.name}, item {number}: a row has no token for the loss")


def imitation(rows: Sequence[Row], *, dropout: bool = True) -> Objective:
    """SFT: negative log-likelihood of the responses, averaged over a step's tokens."""

    def loss(logps: mx.array, batch: Batch, part: Part) -> tuple[mx.array, Metrics]:
        return (-logps.sum(axis=-1) * batch.weights).sum(), {}

    sizes = [row.weight * row.trained for row in rows]
    given = {"rows": rows, "dropout": dropout}
    return Objective("sft", [(row,) for row in rows], sizes, loss, dropout=dropout, given=given)


def preference(
    pairs: Sequence[Pair], references: Sequence[np.ndarray] | None, config: Fitting, name: str
) -> Objective:
    """Chosen over rejected, averaged over a step's pairs.

    name: "dpo", "ipo" or "exo_pair". references: summed log-probabilities [2] of each pair under
    the reference policy; None: zeros.
    """
    items: list[Item] = [(pair.chosen, pair.rejected) for pair in pairs]
    known = np.stack(references) if references else np.zeros((len(pairs), 2))
    mean = config.logps == "mean"

    def loss(logps: mx.array, batch: Batch, part: Part) -> tuple[mx.array, Metrics]:
        sums = logps.sum(axis=-1)
        lengths = batch.lengths if mean else mx.ones_like(batch.lengths)
        reference = mx.array(known[list(part)].reshape(-1).astype(np.float32))
        policy, reference = sums / lengths, reference / lengths
        ratio = log_ratio(policy[0::2], policy[1::2], reference[0::2], reference[1::2])
        each, margin = PREFERENCE[name](ratio, config.beta, config.smoothing)
        each = config.dpo * each
        if config.nll:
            each = each - config.nll * (sums[0::2] / batch.lengths[0::2])
        return (each * batch.weights[0::2]).sum(), {"margin": margin}

    given = {"pairs": pairs, "references": references, "config": config, "name": name}
    return Objective(
        name, items, [1.0] * len(items), loss, keep_shared=mean or config.nll > 0,
        metrics=("margin",), given=given,
    )  # fmt: skip


def odds_ratio(pairs: Sequence[Pair], beta: float) -> Objective:
    """ORPO: NLL of the chosen response and the odds ratio of mean log-probabilities."""

    def loss(logps: mx.array, batch: Batch, part: Part) -> tuple[mx.array, Metrics]:
        means = logps.sum(axis=-1) / batch.lengths
        ratio, log_odds = orpo_loss(means[0::2], means[1::2], beta)
        each = ratio - means[0::2]
        return (each * batch.weights[0::2]).sum(), {"margin": beta * log_odds}

    items: list[Item] = [(pair.chosen, pair.rejected) for pair in pairs]
    given = {"pairs": pairs, "beta": beta}
    return Objective("orpo", items, [1.0] * len(items), loss, metrics=("margin",), given=given)


def reinforcement(
    groups: Sequence[Group],
    old: Sequence[np.ndarray] | None,
    references: Sequence[np.ndarray] | None,
    config: GrpoConfig,
) -> Objective:
    """GRPO: clipped ratios weighted by advantages within the group, and a KL term.

    old, references: token log-probabilities of each group's rows, one after the other, under the
    policy that wrote them and the reference; old None: the policy as it is in each step.
    """
    advantages = [group_advantages(group.rewards, config.scale_rewards) for group in groups]
    by_token = config.average == "token"
    sampled, reference = by_row(old, groups), by_row(references, groups)

    def loss(logps: mx.array, batch: Batch, part: Part) -> tuple[mx.array, Metrics]:
        before = mx.stop_gradient(logps) if sampled is None else in_slots(sampled, part, batch)
        fixed = None if reference is None else in_slots(reference, part, batch)
        mine = mx.array([a for i, rows in part.items() for a in advantages[i][rows]])
        each, metrics = grpo_loss(
            logps, before, fixed, mine, config.clip_ratio, config.kl, config.epsilon_high,
            batch.lengths if config.importance_sampling_level == "sequence" else None,
        )  # fmt: skip
        share = batch.mask if by_token else batch.mask / batch.lengths[:, None]
        counts = {i: rows.stop - rows.start for i, rows in part.items()}
        ends = accumulate(counts.values())
        own = {i: slice(end - counts[i], end) for i, end in zip(part, ends, strict=True)}
        found = {}
        for name, array in metrics.items():
            values = (array * batch.mask).sum(axis=-1) / batch.lengths
            means = [values[at].mean() * (counts[i] / len(groups[i].rows)) for i, at in own.items()]
            found[name] = mx.stack(means)
        return (each * share * batch.weights[:, None]).sum(), found

    items = [group.rows for group in groups]
    sizes = [float(sum(r.trained for r in item) if by_token else len(item)) for item in items]
    given = {"groups": groups, "old": old, "references": references,
             "config": config}  # fmt: skip
    return Objective(
        "grpo", items, sizes, loss, splits=True, metrics=("kl", "clipped"), given=given
    )


def by_row(known: Sequence[np.ndarray] | None, groups: Sequence[Group]) -> Known | None:
    """Returns the groups' token log-probabilities, of which rows follow one another, by row."""
    if known is None:
        return None
    ends = [np.cumsum([row.trained for row in group.rows])[:-1] for group in groups]
    return [np.split(values, at) for values, at in zip(known, ends, strict=True)]


def in_slots(known: Known, part: Part, batch: Batch) -> mx.array:
    """Token log-probabilities of the part's rows as [R, T], 0 where there is none."""
    mask = np.array(batch.mask) > 0
    out = np.zeros(mask.shape, dtype=np.float32)
    out[mask] = np.concatenate([row for i, rows in part.items() for row in known[i][rows]])
    return mx.array(out)


# ---- as JSON -------------------------------------------------------------------------------------


def float32(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# JSON's doubles hold float32 exactly.
Numbers = Annotated[np.ndarray, PlainValidator(float32), PlainSerializer(np.ndarray.tolist)]
GIVEN: dict[str, Any] = {
    "rows": Sequence[Row], "pairs": Sequence[Pair], "groups": Sequence[Group], "name": str,
    "references": Sequence[Numbers] | None, "old": Sequence[Numbers] | None, "beta": float,
    "dropout": bool,
}  # fmt: skip
# The constructors, by the objective's name; those of preferences have one.
MADE_BY: dict[str, Callable[..., Objective]] = {
    "sft": imitation, "orpo": odds_ratio, "grpo": reinforcement,
}  # fmt: skip


@cache
def form(name: str, key: str) -> TypeAdapter[Any]:
    """Returns how what a constructor is given under this key is written as JSON."""
    config = GrpoConfig if name == "grpo" else Fitting
    return TypeAdapter(config if key == "config" else GIVEN[key])


def to_json(objective: Objective) -> dict[str, Any]:
    """Returns an objective as JSON, for `from_json`."""
    name = objective.name
    given = {key: form(name, key).dump_python(value, mode="json")
             for key, value in objective.given.items()}  # fmt: skip
    return {"name": name, "given": given}


def from_json(data: dict[str, Any]) -> Objective:
    """Builds an objective again by its own constructor."""
    name: str = data["name"]
    given = {key: form(name, key).validate_python(value) for key, value in data["given"].items()}
    made_by: Callable[..., Objective] = MADE_BY.get(name, preference)
    return made_by(**given)
