"""The methods: the one place, beside the tables of a recipe, where all of them are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mlxreflect.methods import preflexor, r3, reflectevo, rel, traces
from mlxreflect.methods.base import Method
from mlxreflect.methods.preflexor import PreflexorConfig
from mlxreflect.methods.r3 import R3Config
from mlxreflect.methods.reflectevo import ReflectEvoConfig
from mlxreflect.methods.rel import RelConfig
from mlxreflect.methods.traces import TracesConfig

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe

__all__ = [
    "METHODS", "MethodName", "PreflexorConfig", "R3Config", "ReflectEvoConfig", "RelConfig",
    "TracesConfig", "method_of",
]  # fmt: skip

MethodName = Literal["r3", "rel", "preflexor", "reflectevo", "traces"]
METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (r3, rel, preflexor, reflectevo, traces)
}


def method_of(recipe: Recipe) -> Method:
    """Returns the method that a recipe names."""
    return METHODS[recipe.strategy]
