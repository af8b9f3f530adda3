"""Plots of a run: how accuracy, loss, margin and bucket list went, and what came of it."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mlxreflect.config.fields import Objective
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.evaluation.arms import read_arms, read_results
from mlxreflect.stats import wilson

Rows = list[dict[str, Any]]
Points = list[tuple[int, float]]
AGAIN = ("bucket", "mastery")  # stages that take up problems a second time
# From Okabe and Ito's palette: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
PAIRS: tuple[str, ...] = get_args(Objective)  # objectives of preference pairs
LOSSES = {
    "dpo": "DPO loss + NLL term\nper pair", "ipo": "IPO loss\nper pair",
    "exo_pair": "EXO loss\nper pair", "orpo": "ORPO loss\nper pair",
    "grpo": "GRPO loss\nper answer", "sft": "SFT loss\nper token",
}  # fmt: skip


def draw_plots(run_dir: Path, solved: str = "solved") -> list[Path]:
    """Writes the PNGs of RUN_DIR/plots and returns their paths.

    What has not happened has no plot: loss of a run without a training step, margin without a
    preference step, bucket where nothing was ever put on the list or verified. solved: the
    method's word for what a wave solved, or "". Raises UserError when the folder has neither
    metrics.jsonl nor an evaluation.
    """
    metrics = run_dir / "metrics.jsonl"
    rows = list(read_rows(metrics)) if metrics.is_file() else []
    waves = [row for row in rows if row.get("kind") == "wave"]
    steps = [row for row in rows if row.get("kind") == "step"]
    arms = read_arms(run_dir)
    if not metrics.is_file() and not arms:
        raise UserError(f"{metrics}: no such file", "give the folder of a run")
    comparison = read_results(run_dir / "comparison.json") or {}
    sentence = comparison.get("sentence", "")
    # For each plot, whether it has something to show, and how it is drawn.
    drawings: dict[str, tuple[bool, Callable[[Figure], None]]] = {
        "accuracy": (bool(fresh(waves)), lambda figure: draw_accuracy(figure, waves, solved)),
        "loss": (bool(steps), lambda figure: draw_loss(figure, steps)),
        "margin": (bool(paired(steps)), lambda figure: draw_margin(figure, steps)),
        "bucket": (any(map(listed, waves)), lambda figure: draw_bucket(figure, waves)),
        "comparison": (bool(arms), lambda figure: draw_comparison(figure, arms, sentence)),
    }
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    return [save(draw, folder / f"{name}.png") for name, (shows, draw) in drawings.items() if shows]


def fresh(waves: Rows) -> list[tuple[int, dict[str, Any]]]:
    """Numbered from 0, over all epochs: waves of problems, but not those of the bucket list."""
    numbered = enumerate(waves)
    return [(i, w) for i, w in numbered if w.get("stage") not in AGAIN and w.get("problems")]


def listed(wave: dict[str, Any]) -> bool:
    """Whether it left something on the bucket list, or verified something."""
    return bool(wave.get("bucket") or wave.get("verifications"))


def save(draw: Callable[[Figure], None], path: Path) -> Path:
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    draw(figure)
    figure.savefig(path, metadata={"Software": None})  # the same run gives the same bytes
    return path


def panels(figure: Figure, title: str, labels: Sequence[str], x_label: str) -> list[Axes]:
    """Panels below each other with one x axis of whole numbers; labels are their y labels."""
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    axes: list[Axes] = list(figure.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0])
    for axis, label in zip(axes, labels, strict=True):
        axis.set_ylabel(label)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(x_label)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return axes


def window_of(count: int) -> int:
    """Points of a moving average: a tenth of them, from 3 to 50; 1 means none is drawn."""
    return 1 if count < 6 else max(3, min(50, round(count / 10)))


def moving(values: Sequence[float], weights: Sequence[float], window: int) -> list[float]:
    """Weighted mean of each value with those before it, `window` in all; nan without weight.

    nan too for the first fifth of a window: means of so few would only show noise.
    """
    means = [math.nan] * min(window // 5, len(values))
    for end in range(1 + len(means), len(values) + 1):
        part = slice(max(0, end - window), end)
        total = sum(weights[part])
        mass = sum(v * w for v, w in zip(values[part], weights[part], strict=True))
        means.append(mass / total if total else math.nan)
    return means


def trend(
    axis: Axes, points: Points, label: str, color: str, weights: Sequence[float] | None = None
) -> None:
    """Points, faint, and their moving average; the points alone where they are few."""
    if not points:
        return
    xs, ys = [x for x, _ in points], [y for _, y in points]
    window = window_of(len(points))
    if window == 1:
        axis.plot(xs, ys, "o-", color=color, markersize=5, label=label)
        return
    axis.plot(xs, ys, ".", color=color, alpha=0.3, markersize=4 if len(xs) > 50 else 7)
    means = moving(ys, weights or [1.0] * len(ys), window)
    axis.plot(xs, means, color=color, linewidth=1.8, label=f"{label} (mean of {window})")


def legend(axis: Axes) -> None:
    """Above the panel, where it hides no data."""
    axis.legend(
        frameon=False, fontsize=8, ncols=3, borderaxespad=0.2,
        loc="lower left", bbox_to_anchor=(0, 1),
    )  # fmt: skip


def percent(axis: Axes) -> None:
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def draw_accuracy(figure: Figure, waves: Rows, solved: str = "solved") -> None:
    """Shares of a wave's problems; over waves of fresh problems, not those of the bucket list."""
    (axis,) = panels(figure, "Accuracy on training problems", ["share of the wave"], "wave")
    shown = fresh(waves)
    for key, label, color in (
        ("first_correct", "first answer right", BLUE),
        ("format_ok", "first format kept", ORANGE),
        *([("solved", f"{solved} after the wave", GREEN)] if solved else []),
    ):
        points = [(i, w.get(key, 0) / w["problems"]) for i, w in shown]
        trend(axis, points, label, color, [w["problems"] for _, w in shown])
    axis.set_xlim(-0.9, len(waves) - 0.1)
    percent(axis)
    legend(axis)


def series(steps: Rows, key: str, objective: str) -> Points:
    """(position among all steps, value) of one objective's steps that have one."""
    return [
        (i, float(step[key]))
        for i, step in enumerate(steps, 1)
        if step.get("objective") == objective and step.get(key) is not None
    ]


def paired(steps: Rows) -> list[str]:
    """The objectives of preference pairs that there were steps of."""
    return [kind for kind in PAIRS if series(steps, "margin", kind)]


def draw_loss(figure: Figure, steps: Rows) -> None:
    kinds = [kind for kind in LOSSES if series(steps, "loss", kind)]
    axes = panels(figure, "Training loss", [LOSSES[kind] for kind in kinds], "training step")
    for axis, kind in zip(axes, kinds, strict=True):
        losses = series(steps, "loss", kind)
        trend(axis, losses, kind.upper(), BLUE if kind in PAIRS else GREEN)
        # DPO alone begins at ln 2; with an NLL term added that line would mean nothing.
        if kind == "dpo" and abs(losses[0][1] - math.log(2)) < 0.02:
            style: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": "--"}
            axis.axhline(math.log(2), label="ln 2: no preference", **style)
        legend(axis)
    axes[-1].set_xlim(0, len(steps) + 1)


def draw_margin(figure: Figure, steps: Rows) -> None:
    title, labels = "Chosen against rejected responses", ["reward margin", "pairs ranked right"]
    upper, lower = panels(figure, title, labels, "training step")
    for kind, color in zip(paired(steps), (BLUE, ORANGE, GREEN, GREY), strict=False):
        trend(upper, series(steps, "margin", kind), f"chosen − rejected, {kind}", color)
        trend(lower, series(steps, "accuracy", kind), f"margin above 0, {kind}", color)
    upper.axhline(0, color=GREY, linewidth=1, linestyle="--")
    lower.set_xlim(0, len(steps) + 1)
    percent(lower)
    legend(upper)
    legend(lower)


def draw_bucket(figure: Figure, waves: Rows) -> None:
    title = "Bucket list and verification"
    labels = ["problems on\nbucket list", "verification\nattempts"]
    upper, lower = panels(figure, title, labels, "wave")
    xs, sizes = list(range(len(waves))), [wave.get("bucket", 0) for wave in waves]
    upper.plot(xs, sizes, color=BLUE, drawstyle="steps-post", label="after the wave")
    if len(waves) < 30:  # one wave alone draws no line
        upper.plot(xs, sizes, "o", color=BLUE, markersize=4)
    passes = [i for i, wave in enumerate(waves) if wave.get("stage") in AGAIN]
    if passes:
        at = [xs[i] for i in passes], [sizes[i] for i in passes]
        upper.plot(*at, "v", color=ORANGE, label="after a pass over the bucket list")
    attempts = [float(wave.get("verifications", 0)) for wave in waves]
    lower.bar(xs, attempts, color=GREEN, alpha=0.4, width=0.8, label="in the wave")
    if (window := window_of(len(waves))) > 1:
        means = moving(attempts, [1.0] * len(xs), window)
        lower.plot(xs, means, color=GREEN, linewidth=1.8, label=f"mean of {window}")
    for axis in (upper, lower):
        axis.set_ylim(0, max(1.0, 1.1 * axis.get_ylim()[1]))
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        legend(axis)
    lower.set_xlim(-0.9, len(waves) - 0.1)


def draw_comparison(figure: Figure, arms: dict[str, dict[str, Any]], sentence: str) -> None:
    title = "Held-out problems: base and trained"
    counts = " and ".join(str(n) for n in sorted({arm["n"] for arm in arms.values()}))
    x_label = f"{counts} answers graded; whiskers: 95% Wilson intervals"
    (axis,) = panels(figure, title, ["answers right"], x_label)
    for x, (name, arm) in enumerate(arms.items()):
        right, (low, high) = arm["accuracy"], interval(arm)
        axis.bar(x, right, width=0.5, color=GREY if name == "base" else BLUE)
        axis.errorbar(x, right, [[right - low], [high - right]], color="black", capsize=6)
        axis.annotate(f"{right:.1%}", (x, high), (0, 4), textcoords="offset points", ha="center")
    axis.grid(visible=False, axis="x")
    axis.set_xlim(-0.6, len(arms) - 0.4)
    axis.set_ylim(0, 1.2 * max(interval(arm)[1] for arm in arms.values()))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xticks(range(len(arms)), list(arms))
    if sentence:
        figure.supxlabel(textwrap.fill(sentence, 105), fontsize=9, parse_math=False)


def interval(arm: dict[str, Any]) -> tuple[float, float]:
    """The interval that the evaluation wrote, else Wilson's."""
    if arm.get("ci_low") is not None and arm.get("ci_high") is not None:
        return arm["ci_low"], arm["ci_high"]
    return wilson(round(arm["accuracy"] * arm["n"]), arm["n"])
