"""The methods by name."""

from collections.abc import Callable
from typing import Any

from mlxreflect.strategies.preflexor import Preflexor
from mlxreflect.strategies.r3 import R3

STRATEGIES: dict[str, Callable[..., Any]] = {"r3": R3, "preflexor": Preflexor}
