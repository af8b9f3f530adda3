"""The methods by name."""

from mlxreflect.strategies.r3 import R3

STRATEGIES = {"r3": R3}
