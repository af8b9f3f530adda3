"""Training over several hosts: how a step's work is divided, and what goes between them as JSON."""

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import TypeAdapter

from mlxreflect.config.schema import Fitting
from mlxreflect.core.hosts import Hosts
from mlxreflect.train.batches import Item
from mlxreflect.train.network import Arrays, Network, parameters
from mlxreflect.train.references import What, computed

Batches = Sequence[Sequence[Item]]

FITTING, BATCHES = TypeAdapter(Fitting), TypeAdapter(list[list[Item]])


def divided(costs: Sequence[int], size: int) -> list[list[int]]:
    """Returns the pieces of each rank, by index: the costliest first, to whoever has least.

    It follows from its arguments alone, so all ranks find the same.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(i)
        loads[rank] += costs[i]
    return [sorted(share) for share in shares]


def tokens_of(items: Sequence[Item], shares: bool) -> int:
    """Returns the tokens that a model runs. shares: the rows of an item run their prompt once."""
    return sum(
        len(item[0].prompt) * (1 if shares else len(item)) + sum(len(r.response) for r in item)
        for item in items
    )


# ---- scoring -------------------------------------------------------------------------------------


def spread(
    hosts: Hosts, number: int, network: Network, arrays: Arrays, what: What, keep_shared: bool,
    batches: Batches,
) -> Iterator[tuple[int, list[np.ndarray]]]:  # fmt: skip
    """Yields each batch's index with what `computed` says of it; the others compute their part.

    By rank 0, whose model has `arrays` in it. number: the trainer's.
    """
    if len(batches) < 2:
        yield from computed(network, what, keep_shared, batches)
        return
    sent = BATCHES.dump_python([list(batch) for batch in batches], mode="json")
    hosts.lead("score", number=number, batches=sent, what=what, keep_shared=keep_shared)
    hosts.agree(arrays)
    mine = own_batches(hosts, network, batches)
    for at, found in computed(network, what, keep_shared, [batches[i] for i in mine]):
        yield mine[at], found
    for theirs in hosts.meet()[1:]:
        for i, rows in theirs:
            yield i, [np.array(values, dtype=np.float32) for values in rows]


def help_score(
    hosts: Hosts, network: Network, own: Arrays, what: What, keep_shared: bool, batches: Batches
) -> None:
    """Does another rank's part of `spread`. own: trainable parameters, if rank 0 has the same."""
    arrays = hosts.agree(own)
    mine = own_batches(hosts, network, batches)
    with parameters(network.model, arrays):
        found = [
            [mine[at], [values.tolist() for values in rows]]
            for at, rows in computed(network, what, keep_shared, [batches[i] for i in mine])
        ]
    hosts.meet(found)


def own_batches(hosts: Hosts, network: Network, batches: Batches) -> list[int]:
    costs = [tokens_of(batch, network.shares) for batch in batches]
    return divided(costs, hosts.size)[hosts.rank]
