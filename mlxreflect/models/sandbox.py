"""The sandbox that a chat template runs in: that of transformers, with bounds on time and memory.

A template is anyone's program. What it makes grows step by step, so a clock looks at it now and
then; but a single step, such as 'a' * 10**10, can take all memory there is. So the steps that make
more than they are given are measured before they are taken. That is the same on all systems; macOS
does not keep to the limits that a process sets itself.
"""

import re
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Environment
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from transformers.utils import chat_template_utils

MOST = 2**21  # characters of a text, or items of a list, that one step may make
MEMORY = 2**26  # bytes that a rendering may hold
TICK_S = 0.02  # between two looks at its time and memory; most renderings end before the first
# Widths in the text of a format, by % and by str.format.
WIDTHS = re.compile(r"%(?:\(.*?\))?[^%A-Za-z]*|:[^}]*")
# Filters that leave lists and dicts what they are. The others write them out, or add them up.
PASSING = {"attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items",
           "last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr",
           "reverse", "select", "selectattr", "slice", "sort", "unique"}  # fmt: skip
LOCK = threading.RLock()


# ---- the size of a step --------------------------------------------------------------------------


def bounded(size: int) -> None:
    """Raises SecurityError for more than a step may make."""
    if size > MOST:
        raise SecurityError(f"a step of it makes more than {MOST:,} characters or items")


def size(value: Any) -> int:
    """Returns the characters or items of a value by itself; of a number, its bits."""
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, str | bytes | list | tuple | Mapping) else 1


def weight(value: Any) -> int:
    """Returns the characters and items of a value in all; counts to MOST and little more."""
    total, left = 0, [value]
    while left and total <= MOST:
        one = left.pop()
        total += size(one) + 1
        if isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            left += one
    return total


def made_by(step: str, subject: Any, given: list[Any]) -> int:
    """Returns how much an operator, a method or a filter makes at most, in characters or items.

    given: the other operand, or the arguments.
    """
    other = given[0] if given else ""
    numbers = sum(abs(value) for value in given if isinstance(value, int))
    match step:
        case "+":
            return size(subject) + size(other)
        case "*" if isinstance(subject, int) and isinstance(other, int):
            return size(subject) + size(other)
        case "*":
            return amount(subject) * amount(other)
        case "**":
            return size(subject) * amount(other)
        case "%" | "format" | "format_map" if isinstance(subject, str):
            wide = WIDTHS.findall(subject)
            widths = sum(int(n) for text in wide for n in re.findall(r"\d{1,9}", text))
            if any("*" in text or "{" in text for text in wide):  # they stand among the values
                widths += sum(map(amount, values_of(given)))
            return (
                len(subject) + widths + (subject.count("%") + subject.count("{")) * heaviest(given)
            )
        case "replace" if isinstance(subject, str) and len(given) > 1:
            return len(subject) + subject.count(other) * size(given[1])
        case "join":
            parts, mark = (other, subject) if isinstance(subject, str | bytes) else (subject, other)
            return weight(parts) + size(parts) * size(mark)
        case "expandtabs" | "indent" if isinstance(subject, str):
            breaks = subject.count("\n") + subject.count("\t") + 1
            return len(subject) + breaks * (8 + numbers + heaviest(given))
        case "translate" | "urlize" | "wordwrap" | "xmlattr":
            return weight(subject) * (1 + numbers + heaviest(given))
        case "tojson":  # an indent, once for each level
            return 1000 * (numbers + heaviest(given))
    return numbers


def amount(value: Any) -> int:
    return abs(value) if isinstance(value, int) else size(value)


def heaviest(given: list[Any]) -> int:
    return max(map(weight, given), default=0)


def values_of(given: list[Any]) -> Iterator[Any]:
    for value in given:
        inner = list(value.values()) if isinstance(value, Mapping) else value
        yield from inner if isinstance(inner, list | tuple) else [inner]


# ---- the environment -----------------------------------------------------------------------------


class Sandbox(ImmutableSandboxedEnvironment):  # type: ignore[misc]
    """Measures operators, methods, filters and what is written."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, finalize=self.written)
        self.filters: Filters = Filters(self.filters)
        self.code_generator_class = Joining

    @staticmethod
    def written(value: Any) -> Any:
        if not isinstance(value, str):
            bounded(weight(value))
        return value

    @staticmethod
    def concat(texts: Iterable[str]) -> str:  # jinja's own is "".join
        parts, total = [], 0
        for text in texts:
            parts.append(text)
            total += len(text)
            bounded(total)
        return "".join(parts)

    def joined(self, values: Iterable[Any]) -> str:
        return self.concat(str(self.written(value)) for value in values)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        bounded(made_by(operator, left, [right]))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **named: Any) -> Any:
        """Calls what a template calls; jinja hides the formats of texts behind a function."""
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | int):
            args = (list(args[0]), *args[1:]) if name == "join" and args else args
            bounded(made_by(name, owner, [*args, *named.values()]))
        return super().call(context, obj, *args, **named)


class Joining(CodeGenerator):  # type: ignore[misc]
    """Writes the operator ~ as a call of the sandbox."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Filters(dict[str, Callable[..., Any]]):
    """Filters by their names, each measured; transformers sets some of its own."""

    def __init__(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        for name, one in filters.items():
            self[name] = one

    def __setitem__(self, name: str, one: Callable[..., Any]) -> None:
        @wraps(one)  # also jinja's marks of what it wants to be given first
        def measured(*args: Any, **named: Any) -> Any:
            at = int(isinstance(args[0], Environment | EvalContext | Context))
            subject, *given = args[at:]
            if name == "join":
                subject = list(subject)
            bounded(made_by(name, subject, [*given, *named.values()]))
            if name not in PASSING:
                bounded(weight(subject))
            return one(*args[:at], subject, *given, **named)

        super().__setitem__(name, measured)


@contextmanager
def sandboxed(seconds: float, fault: Callable[[str], Exception]) -> Iterator[None]:
    """Lets transformers render chat templates in this sandbox, for a block.

    Raises fault(reason) where the block takes longer or more memory; only the main thread can be
    stopped. A single step that makes too much raises SecurityError, in any thread.
    """
    with LOCK, clock(seconds, fault):
        chat_template_utils.ImmutableSandboxedEnvironment = Sandbox
        try:
            yield
        finally:
            chat_template_utils.ImmutableSandboxedEnvironment = ImmutableSandboxedEnvironment


@contextmanager
def clock(seconds: float, fault: Callable[[str], Exception]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end, traced = time.monotonic() + seconds, tracemalloc.is_tracing()
    begun: list[int] = []  # bytes at the first look

    def look(number: int, frame: Any) -> None:
        if not begun and not traced:
            tracemalloc.start()
        held, _ = tracemalloc.get_traced_memory()
        begun.append(held)
        if held - begun[0] > MEMORY:
            raise fault(f"a prompt takes it more than {MEMORY >> 20} MB of memory")
        if time.monotonic() > end:
            raise fault(f"a prompt takes it longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, look)
    timer = signal.setitimer(signal.ITIMER_REAL, min(TICK_S, seconds), TICK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
        if begun and not traced:
            tracemalloc.stop()
