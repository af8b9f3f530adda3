"""A call as the tests of critics make it."""

from dataclasses import replace
from typing import Any

from mlxreflect.core.records import make_problem
from mlxreflect.critics.base import Call
from mlxreflect.critics.client import RETRIES

TRIES = RETRIES + 1
PROBLEM = make_problem("countdown", {"numbers": [1, 2, 3], "target": 6})


def call(content: str = "hello", **changes: Any) -> Call:
    messages = [{"role": "system", "content": "Review."}, {"role": "user", "content": content}]
    return replace(Call("critique", PROBLEM, messages, "1+2=4"), **changes)
