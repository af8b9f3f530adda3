"""The methods by name."""

from collections.abc import Callable

from mlxreflect.strategies.base import Hands, Strategy
from mlxreflect.strategies.preflexor import Preflexor
from mlxreflect.strategies.r3 import R3
from mlxreflect.strategies.reflectevo import ReflectEvo
from mlxreflect.strategies.rel import Rel
from mlxreflect.strategies.traces import Traces

STRATEGIES: dict[str, Callable[[Hands], Strategy]] = {
    "r3": R3, "rel": Rel, "preflexor": Preflexor, "reflectevo": ReflectEvo, "traces": Traces,
}  # fmt: skip
