"""`mlxreflect report`: what others read, out of evaluation folders."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import write_atomic
from mlxreflect.evaluation.export_arms import Arm, arm_interval, load_arms
from mlxreflect.report.inspect_log import write_inspect
from mlxreflect.report.lm_eval import write_lm_eval
from mlxreflect.report.markdown import markdown
from mlxreflect.report.pairs import Pair, pair_up


def write_outputs(
    folders: Sequence[Path], out: Path | None = None, *, plots: bool = True
) -> dict[str, Any]:
    """Write `lm_eval/<arm>/`, `inspect/`, `plots/` and `table.md` into `out`.

    plots: whether to draw them, which takes longer than all else.
    folders: arm folders, folders of arms, or run directories. out: default `report` in the first.
    Returns where everything is, and the figures of each arm and comparison. The same folders give
    the same files. Raises UserError for a folder without a finished evaluation.
    """
    arms = load_arms(folders)
    pairs = pair_up(arms)
    place = out or folders[0] / "report"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}", "give another --out") from None
    table = markdown(arms, pairs)
    write_atomic(place / "table.md", table)
    names = file_names(arms)
    lm_eval = [write_lm_eval(arm, place / "lm_eval" / names[i]) for i, arm in enumerate(arms)]
    logs = [write_inspect(arm, place / "inspect") for arm in arms]
    return {
        "out": str(place),
        "table": str(place / "table.md"),
        "lm_eval": [str(path) for written in lm_eval for path in written],
        "inspect": list(map(str, logs)),
        "plots": list(map(str, draw(arms, pairs, place / "plots") if plots else [])),
        "arms": [describe_arm(arm) for arm in arms],
        "comparisons": [describe_pair(pair) for pair in pairs],
        "markdown": table,
    }


def draw(arms: Sequence[Arm], pairs: Sequence[Pair], folder: Path) -> list[Path]:
    from mlxreflect.report.report_plots import draw_report

    return draw_report(arms, pairs, folder)


def file_names(arms: Sequence[Arm]) -> list[str]:
    """A folder's name for each arm: letters, digits and -._, no two alike, also on a Mac's disk."""
    several = len({arm.task for arm in arms}) > 1
    names: list[str] = []
    for arm in arms:
        whole = f"{arm.task}-{arm.name}" if several else arm.name
        name = re.sub(r"[^\w.-]+", "_", whole).strip("._")[:80] or "arm"
        taken = name.casefold() in {other.casefold() for other in names}
        names.append(f"{name}-{len(names) + 1}" if taken else name)
    return names


def describe_arm(arm: Arm) -> dict[str, Any]:
    accuracy, low, high = arm_interval(arm)
    return {
        "name": arm.name, "folder": str(arm.path), "task": arm.task, "model": arm.model,
        "adapter": arm.adapter, "n": len(arm.questions), "samples": arm.samples,
        "accuracy": accuracy, "ci_low": low, "ci_high": high,
    }  # fmt: skip


def describe_pair(pair: Pair) -> dict[str, Any]:
    """The comparison, or why there is none."""
    found = {"fault": pair.fault} if pair.result is None else pair.result
    return {**found, "task": pair.task, "a": pair.a, "b": pair.b, "p_holm": pair.p_holm}
