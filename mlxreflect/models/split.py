"""A model that no host has the memory for, split over all of them as mlx-lm splits it.

All hosts compute each of its layers, or each some of its layers, so they write the same sequences
in step. It answers; nothing trains it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_lm.utils import sharded_load

from mlxreflect.config.schema import PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import Hosts

ROOM = 0.9  # of a device's memory: weights that take more leave none to answer with


def is_too_large(hosts: Hosts, folder: Path | None, memory: int) -> bool:
    """Tells, alike on all hosts, whether a model's weights do not fit one of them.

    folder: of the model; None: it is not here yet. memory: bytes that the device has.
    """
    files = folder.glob("model*.safetensors") if folder else ()
    told = hosts.meet([sum(file.stat().st_size for file in files), ROOM * memory])
    return bool(max(size for size, _ in told) > min(room for _, room in told))


def load_split(config: PolicyConfig, path: str) -> tuple[Any, Any]:
    """Returns a split model, with this host's part of its weights, and its tokenizer.

    Raises UserError for what a split model cannot have, ValueError where mlx-lm cannot split it.
    """
    refused = {"policy.adapter": config.adapter, "policy.quantize": config.quantize}
    for key, value in refused.items():
        if value:
            raise UserError(
                f"{config.model} is split over the hosts, since one has not the memory for it, and "
                f"takes no {key} (--{key.partition('.')[2]})",
                "leave that out, or take a model that fits one host",
            )
    model, tokenizer = sharded_load(path, tokenizer_config={"trust_remote_code": False})
    return model, tokenizer


@contextmanager
def in_step(hosts: Hosts) -> Iterator[Callable[[], None]]:
    """Yields what is to be called at each step of the hosts, so that one that hangs is noticed.

    Raises UserError where a host is gone.
    """
    liveness = hosts.liveness
    assert liveness is not None
    try:
        with liveness.waiting(computes=True):
            yield liveness.step
    except RuntimeError as error:
        if "peer" not in str(error) and "[ring]" not in str(error):
            raise
        raise liveness.lost(str(error)) from None


def refuse_training(name: str) -> UserError:
    """Returns what to say to whoever would train a split model."""
    return UserError(
        f"policy.model = {name!r} takes more memory than a host has, so it is split over them; a "
        "split model answers, and cannot be trained",
        "take a smaller model, or one of 4 bits: mlx_lm.convert --hf-path NAME --mlx-path DIR -q",
    )
