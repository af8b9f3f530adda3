"""Cases of a test of which a few are fast."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *fast: str) -> list[Any]:
    """The cases, of which all but those with these names are slow."""
    marked = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        slow = () if fast and str(values[0]) in fast else (pytest.mark.slow,)
        marked.append(pytest.param(*values, marks=slow))
    return marked
