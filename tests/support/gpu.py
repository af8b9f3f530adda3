"""A GPU that is not there, for what only asks how much memory it has."""

import pytest

from mlxreflect.models import load
from mlxreflect.setup import doctor, init
from mlxreflect.train import memory


def pretend_gpu(patch: pytest.MonkeyPatch, gigabytes: float) -> None:
    for module in (doctor, init, load, memory):
        for name, value in (("device_memory", int(gigabytes * 1e9)), ("on_cpu", False)):
            if hasattr(module, name):
                patch.setattr(module, name, lambda value=value: value)
