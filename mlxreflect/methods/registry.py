"""The methods by name."""

from collections.abc import Callable

from mlxreflect.methods.base import Hands, Strategy
from mlxreflect.methods.preflexor import Preflexor
from mlxreflect.methods.r3 import R3
from mlxreflect.methods.reflectevo import ReflectEvo
from mlxreflect.methods.rel import Rel
from mlxreflect.methods.traces import Traces

STRATEGIES: dict[str, Callable[[Hands], Strategy]] = {
    "r3": R3, "rel": Rel, "preflexor": Preflexor, "reflectevo": ReflectEvo, "traces": Traces,
}  # fmt: skip
