"""The arms of a report beside each other: those of a task against its first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.compare import compare
from mlxreflect.evaluation.export_arms import Arm
from mlxreflect.stats import holm


@dataclass(frozen=True)
class Pair:
    """B against A. result: of `compare`, None where it refused, and then why is in `fault`.

    p: McNemar's exact one, or the sign-flip one; p_holm: adjusted for all pairs of the report.
    """

    task: str
    a: str
    b: str
    result: dict[str, Any] | None
    fault: str
    p: float | None = None
    p_holm: float | None = None


def by_task(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    grouped: dict[str, list[Arm]] = {}
    for arm in arms:
        grouped.setdefault(arm.task, []).append(arm)
    return grouped


def pair_up(arms: Sequence[Arm]) -> list[Pair]:
    """Each arm against the first of its task. What cannot be compared says so, and stops nothing.

    Holm's adjustment (1979) is over all that could be compared, over tasks and arms alike.
    """
    found = [compared(others[0], arm) for others in by_task(arms).values() for arm in others[1:]]
    adjusted = iter(holm([pair.p for pair in found if pair.p is not None]))
    return [
        pair if pair.p is None else Pair(**{**vars(pair), "p_holm": next(adjusted)})
        for pair in found
    ]


def compared(a: Arm, b: Arm) -> Pair:
    try:
        result = compare(a.path, b.path)
    except UserError as error:
        return Pair(a.task, a.name, b.name, None, error.message)
    p = result["p_perm"] if result["p_exact"] is None else result["p_exact"]
    return Pair(a.task, a.name, b.name, result, "", p)
