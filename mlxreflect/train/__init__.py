"""Training: one trainer, the losses, batches, references and memory.

The package can be called: it stands in the place of the API's function `mlxreflect.train`.
"""

import sys
from types import ModuleType
from typing import Any


class Room(ModuleType):
    def __call__(self, *given: Any, **keys: Any) -> Any:
        """Does what `mlxreflect.train` does, whose name an import of this package takes."""
        return sys.modules["mlxreflect"]._train(*given, **keys)


sys.modules[__name__].__class__ = Room
