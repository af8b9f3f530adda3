"""The report's table in Markdown, as it goes into a model card. Names in it are only ever text."""

import re
from collections.abc import Sequence

from mlxreflect.core.ui import safe_text
from mlxreflect.evaluation.export_arms import Arm, arm_interval
from mlxreflect.report.pairs import Pair
from mlxreflect.stats.sentences import points

LONGEST = 80  # characters of a name
# What Markdown, or HTML in it, takes for markup; an underscore inside a word is none.
MARKUP = re.compile(
    r"[\\`*\[\]<>#|~$&@]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/|(?<=www)\.", re.IGNORECASE
)


def cell(text: str) -> str:
    """One line of text that stays text in a table of Markdown, however it is rendered."""
    line = safe_text(" ".join(text.split()))
    line = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return prose(line)


def prose(text: str) -> str:
    """The same for a whole sentence."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", safe_text(" ".join(text.split())))


def markdown(arms: Sequence[Arm], pairs: Sequence[Pair]) -> str:
    """A row an arm and task, the sentences of the comparisons, and what could not be compared."""
    head = ["task", "model", "questions", "right", "95 % interval", "right in the format"]
    align = [":--", ":--", "--:", "--:", ":-:", "--:"]
    if pairs:
        head += ["difference", "95 % interval", "gained, lost", "p"]
        align += ["--:", ":-:", "--:", "--:"]
    adjusted = sum(pair.p is not None for pair in pairs) > 1
    if adjusted:
        head, align = [*head, "p (Holm)"], [*align, "--:"]
    against = {(pair.task, pair.b): pair for pair in pairs}
    lines = [row(head), row(align)]
    for arm in arms:
        compared = difference(against.get((arm.task, arm.name)), adjusted) if pairs else []
        lines.append(row([*measured(arm), *compared]))
    notes = [note(pair) for pair in pairs]
    return "\n".join(lines) + "\n" + "".join(f"\n{text}\n" for text in notes)


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def measured(arm: Arm) -> list[str]:
    accuracy, low, high = arm_interval(arm)
    strict = sum(question.strict for question in arm.questions) / len(arm.questions)
    right = f"{accuracy:.1%}" + (f" (avg@{arm.samples})" if arm.samples > 1 else "")
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    name = cell(arm.name)
    return [cell(arm.task), name, str(len(arm.questions)), right, interval, f"{strict:.1%}"]


def difference(pair: Pair | None, adjusted: bool) -> list[str]:
    """The cells of a comparison; empty in the row that others are compared with."""
    if pair is None or pair.result is None:
        return ["" if pair is None else "–"] * (5 if adjusted else 4)
    found = pair.result
    cells = [
        points(found["difference"]),
        f"{points(found['ci_low'])} to {points(found['ci_high'])}",
        f"{found['gains']}, {found['losses']}",
        p_value(pair.p),
    ]
    return [*cells, p_value(pair.p_holm)] if adjusted else cells


def p_value(p: float | None) -> str:
    return "–" if p is None else f"{p:.2g}"


def note(pair: Pair) -> str:
    said = f"{pair.b} is not compared with {pair.a}: {pair.fault}."
    return prose(f"{pair.task}: {said if pair.result is None else pair.result['sentence']}")
