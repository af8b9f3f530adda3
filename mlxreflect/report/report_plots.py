"""Plots of evaluations beside each other: accuracy, gains and losses, accuracy by difficulty."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mlxreflect.core.ui import safe_text
from mlxreflect.evaluation.export_arms import Arm, arm_interval, interval
from mlxreflect.report.difficulty import difficulty
from mlxreflect.report.pairs import Pair, by_task
from mlxreflect.report.plots import BLUE, GREY, ORANGE
from mlxreflect.stats.sentences import points

# Okabe and Ito's palette; with as many markers, so that nobody needs the colours.
COLORS = (GREY, BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
ROW = 0.34  # inches of an arm's row
LONGEST = 34  # characters of a name


def draw_report(arms: Sequence[Arm], pairs: Sequence[Pair], folder: Path) -> list[Path]:
    """Writes the PNGs and returns their paths; the same arms give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = by_task(arms)
    compared = [pair for pair in pairs if pair.result]
    drawings: dict[str, tuple[float, Callable[[Figure], None]]] = {
        "accuracy": (
            1.1 + 0.75 * len(tasks) + ROW * len(arms),
            lambda figure: draw_accuracies(figure, tasks),
        ),
        "difficulty": (1.4 + 3.0 * len(tasks), lambda figure: draw_difficulty(figure, tasks)),
    }
    if compared:
        height = 1.7 + 1.6 * ROW * len(compared)
        drawings["changes"] = height, lambda figure: draw_changes(figure, compared)
    return [
        save_sized(draw, folder / f"{name}.png", height)
        for name, (height, draw) in drawings.items()
    ]


def save_sized(draw: Callable[[Figure], None], path: Path, height: float) -> Path:
    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    draw(figure)
    with warnings.catch_warnings():  # a name in a script that the font lacks is shown as boxes
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(path, metadata={"Software": None})
    return path


def short(name: str) -> str:
    """A name in one line, its end kept: there model names differ."""
    line = safe_text(" ".join(name.split()))
    return line if len(line) <= LONGEST else f"{line[:10]}…{line[-(LONGEST - 11) :]}"


def title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=12, x=0.01, ha="left", parse_math=False)


def headline(axis: Axes, text: str) -> None:
    axis.set_title(text, fontsize=10, loc="left", parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)


def styles(tasks: dict[str, list[Arm]]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each name, the same in every panel; no two alike up to 64 names."""
    names = dict.fromkeys(arm.name for arms in tasks.values() for arm in arms)
    many = len(COLORS)
    return {
        name: {"color": COLORS[i % many], "marker": MARKERS[(i + i // many) % many]}
        for i, name in enumerate(names)
    }


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """One row a name, the first at the top."""
    axis.set_yticks(range(len(names)), names)
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)


# ---- accuracy ------------------------------------------------------------------------------------


def draw_accuracies(figure: Figure, tasks: dict[str, list[Arm]]) -> None:
    """A panel a task, a row an arm: the share right with its interval."""
    title(figure, "Answers right, with 95% intervals")
    sizes = [len(arms) + 0.6 for arms in tasks.values()]
    axes = figure.subplots(len(tasks), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    looks = styles(tasks)
    measured = {arm: arm_interval(arm) for group in tasks.values() for arm in group}
    for axis, (task, arms) in zip(axes, tasks.items(), strict=True):
        for y, arm in enumerate(arms):
            right, low, high = measured[arm]
            errors = [[max(0.0, right - low)], [max(0.0, high - right)]]
            axis.errorbar(right, y, xerr=errors, capsize=4, markersize=6, **looks[arm.name])
            axis.annotate(
                f"{right:.1%}", (high, y), (6, 0), textcoords="offset points", va="center",
                fontsize=9,
            )  # fmt: skip
        headline(axis, f"{safe_text(task)}: {questions(arms)}")
        name_rows(axis, [short(arm.name) for arm in arms])
        axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    top = max(high for _, _, high in measured.values())
    axes[-1].set_xlim(0, min(1.12, 1.15 * top + 0.03))
    axes[-1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.1 else 1))


def questions(arms: Sequence[Arm]) -> str:
    counts = sorted({len(arm.questions) for arm in arms})
    samples = sorted({arm.samples for arm in arms})
    many = f", {' or '.join(map(str, samples))} samples each" if samples != [1] else ""
    return f"{' or '.join(map(str, counts))} questions{many}"


# ---- gains and losses ----------------------------------------------------------------------------


def draw_changes(figure: Figure, pairs: Sequence[Pair]) -> None:
    """Questions that B got right and A wrong, to the right; the reverse, to the left."""
    title(figure, "Questions gained and lost")
    axis = figure.subplots()
    found = [pair.result for pair in pairs if pair.result]
    most = max(1, *(result[key] for result in found for key in ("gains", "losses")))
    draw_bars(axis, [result["gains"] for result in found], most, BLUE, "gained")
    draw_bars(axis, [-result["losses"] for result in found], most, ORANGE, "lost")
    several = len({pair.task for pair in pairs}) > 1
    names = [f"{short(pair.b)}\nagainst {short(pair.a)}" for pair in pairs]
    tasks = [f" ({safe_text(pair.task)})" if several else "" for pair in pairs]
    name_rows(axis, [name + task for name, task in zip(names, tasks, strict=True)])
    for y, (pair, result) in enumerate(zip(pairs, found, strict=True)):
        p = "" if pair.p is None else f"\np = {pair.p:.2g}"
        text = f"{points(result['difference'])} points{p}"
        axis.text(1.02, y, text, va="center", fontsize=9, transform=axis.get_yaxis_transform())
    headline(axis, "")
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlim(-1.12 * most, 1.12 * most)
    axis.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axis.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axis.set_xlabel("questions answered better, and worse")
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=2)


def draw_bars(axis: Axes, values: Sequence[int], most: int, color: str, label: str) -> None:
    """Bars from the middle outwards with their numbers: inside where there is room for them."""
    axis.barh(range(len(values)), values, 0.6, color=color, label=label)
    for y, value in enumerate(values):
        inside = abs(value) > most / 10
        outwards = 1 if label == "gained" else -1
        x = value + outwards * (-most if inside else most) / 50
        side = "right" if (outwards > 0) == inside else "left"
        shade = "white" if inside else "black"
        axis.text(x, y, f"{abs(value)}", ha=side, va="center", color=shade, fontsize=9)


# ---- difficulty ----------------------------------------------------------------------------------


def draw_difficulty(figure: Figure, tasks: dict[str, list[Arm]]) -> None:
    """A panel a task: accuracy over what makes its questions harder."""
    title(figure, "Answers right by difficulty, with 95% intervals")
    axes = figure.subplots(len(tasks), 1, squeeze=False)[:, 0]
    looks = styles(tasks)
    for axis, (task, arms) in zip(axes, tasks.items(), strict=True):
        headline(axis, safe_text(task))
        problems = {q.id: q.problem for arm in arms for q in arm.questions if q.problem}
        if problems:
            draw_levels(axis, arms, *difficulty(list(problems.values())), looks)
        else:
            axis.set_axis_off()
            reason = "the evaluation kept no problems (problems.jsonl)"
            axis.text(0.5, 0.5, reason, ha="center", transform=axis.transAxes, color=GREY)
    drawn = {c.get_label(): c for axis in axes for c in axis.containers}
    made = figure.legend(
        list(drawn.values()), list(drawn), loc="outside lower center", frameon=False, fontsize=9,
        ncols=3 if max(map(len, drawn), default=0) < 20 else 2,
    )  # fmt: skip
    for text in made.get_texts():
        text.set_parse_math(False)


def asked_at(arms: Sequence[Arm], levels: dict[str, str], at: str) -> str:
    """How many questions of a level the arms were asked: one number, or from which to which."""
    numbers = {sum(levels.get(q.id) == at for q in arm.questions) for arm in arms}
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))


def draw_levels(
    axis: Axes,
    arms: Sequence[Arm],
    name: str,
    levels: dict[str, str],
    looks: dict[str, dict[str, Any]],
) -> None:
    """levels: problem id → level, in the order of the axis; name: what they are."""
    counts = Counter(levels.values())
    for i, arm in enumerate(arms):
        asked = [question for question in arm.questions if question.id in levels]
        groups = {at: [q for q in asked if levels[q.id] == at] for at in counts}
        found = {at: interval(group) for at, group in groups.items() if group}
        shift = 0.5 * ((i + 0.5) / len(arms) - 0.5)
        xs = [x + shift for x, at in enumerate(counts) if at in found]
        below = [max(0.0, right - low) for right, low, _ in found.values()]
        above = [max(0.0, high - right) for right, _, high in found.values()]
        axis.errorbar(
            xs, [right for right, _, _ in found.values()], [below, above], capsize=3,
            markersize=6, linestyle="none", label=short(arm.name), **looks[arm.name],
        )  # fmt: skip
    axis.set_xticks(
        range(len(counts)), [f"{at}\n(n = {asked_at(arms, levels, at)})" for at in counts]
    )
    axis.set_xlim(-0.6, len(counts) - 0.4)
    axis.set_xlabel(name)
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel("answers right")
    axis.grid(axis="y", alpha=0.25, linewidth=0.6)
