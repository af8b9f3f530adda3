"""Plots: a run's accuracy, loss, margin and bucket list; arms beside each other; difficulty."""

import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from statistics import quantiles
from typing import Any, get_args

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mlxreflect.config.fields import Objective
from mlxreflect.config.toml import flatten, read_toml
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Problem
from mlxreflect.core.ui import safe_text
from mlxreflect.evaluation.arms import Arm, by_task, interval, read_arms, read_results
from mlxreflect.evaluation.compare import deciding_p
from mlxreflect.stats import level, points
from mlxreflect.tasks import get_task

Rows = list[dict[str, Any]]
Comparisons = Sequence[Mapping[str, Any]]
Points = list[tuple[int, float]]
# The height in inches of each plot, 0 where it has nothing to show, and how it is drawn.
Drawings = Mapping[str, tuple[float, Callable[[Figure], None]]]
# Heading of a panel → name of an arm → its share of right answers, and the interval's ends.
Figures = Mapping[str, Mapping[str, tuple[float, float, float]]]
AGAIN = ("bucket", "mastery")  # stages that take up problems a second time
PAIRS: tuple[str, ...] = get_args(Objective)  # objectives of preference pairs
LOSSES = {
    "dpo": "DPO loss + NLL term\nper pair", "ipo": "IPO loss\nper pair",
    "exo_pair": "EXO loss\nper pair", "orpo": "ORPO loss\nper pair",
    "grpo": "GRPO loss\nper answer", "sft": "SFT loss\nper token",
}  # fmt: skip
# Okabe and Ito's palette, told apart with every kind of colour vision; with as many markers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
COLORS = (GREY, BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
ROW = 0.34  # inches of an arm's row
LONGEST = 34  # characters of a name
MOST_NUMBERS = 6  # whose signs are tried, 2^n of them
MOST_LEVELS = 8  # levels beyond are drawn as one, "8 or more"


# ---- a run ---------------------------------------------------------------------------------------


def draw_plots(run_dir: Path, solved: str = "solved") -> list[Path]:
    """Writes the plots of RUN_DIR/plots, PNG and SVG, and returns their paths.

    What has not happened has no plot: loss of a run without a training step, margin without a
    preference step, reward without GRPO, bucket where nothing was ever put on the list or verified.
    solved: the method's word for what a wave solved, or "". Raises UserError when the folder has
    neither metrics.jsonl nor an evaluation.
    """
    metrics = run_dir / "metrics.jsonl"
    evaluations = read_arms(run_dir)
    arms = next(iter(evaluations.values()), {})
    graded = {name: of for name, of in evaluations.items() if is_graded(of.values())}
    data = RunData(list(read_rows(metrics)), arms, name_of(run_dir))
    waves, steps = data.kind("wave"), data.kind("step")
    if not metrics.is_file() and not arms:
        raise UserError(f"{metrics}: no such file", "give the folder of a run")
    found, rows = compared_in(run_dir), [arm for of in graded.values() for arm in of]
    listed = (wave.get("bucket") or wave.get("verifications") for wave in waves)
    drawings: Drawings = {
        "accuracy": (4.5 * bool(fresh(waves)), lambda figure: draw_accuracy(figure, data, solved)),
        "loss": (4.5 * bool(steps), lambda figure: draw_loss(figure, data)),
        "margin": (4.5 * bool(paired(steps)), lambda figure: draw_margin(figure, data)),
        "reward": (4.5 * bool(rewarded(waves)), lambda figure: draw_reward(figure, data)),
        "bucket": (4.5 * any(listed), lambda figure: draw_bucket(figure, data)),
        "comparison": (
            bool(arms and (graded or found))
            * (1.9 + 0.7 * len(graded) + ROW * len(rows) + bool(found) * (0.96 + ROW * len(found))),
            lambda figure: draw_comparison(figure, graded, found, data.of),
        ),
    }
    return save(drawings, run_dir / "plots")


def is_graded(arms: Iterable[Mapping[str, Any]]) -> bool:
    """Tells if arms have an accuracy; of open questions there is none."""
    return all(arm["accuracy"] is not None for arm in arms)


@dataclass(frozen=True)
class RunData:
    """Rows of metrics.jsonl, and results.json of the headline's arms.

    of: names run, model and task.
    """

    rows: Rows
    arms: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    of: str = ""

    def kind(self, name: str) -> Rows:
        return [row for row in self.rows if row.get("kind") == name]

    def anew(self) -> list[tuple[int, int, str]]:
        """Returns what began anew after training had begun: (waves before, steps before, what)."""
        found, waves, steps, before = [], 0, 0, 0
        for row in self.rows:
            steps += row.get("kind") == "step"
            if row.get("kind") == "wave":
                found += [(waves, before, what) for what in row.get("anew", ()) if before]
                waves, before = waves + 1, steps
        return found


def name_of(run_dir: Path) -> str:
    """Returns the names of a run or a training, its model, and its task or data."""
    files = (run_dir / name for name in ("recipe.toml", "job.toml"))
    keys = next((flatten(read_toml(file)) for file in files if file.is_file()), {})
    named = [keys.get("policy.model"), keys.get("data.source") or keys.get("task.name")]
    return ", ".join(short(str(one)) for one in (run_dir.resolve().name, *named) if one)


def mark_anew(axis: Axes, data: RunData, *, steps: bool) -> None:
    """Draws a line where the reference or the adapter begins anew. steps: of the x axis."""
    looks = {"reference": ":", "adapter": "-."}
    known = set[str]()
    for waves, before, what in data.anew():
        label = "" if what in known else f"from here on a new {what}"
        x = before + 0.5 if steps else waves - 0.5
        axis.axvline(x, color=GREY, linewidth=1, linestyle=looks[what], label=label)
        known.add(what)


def rewarded(waves: Rows) -> Points:
    """Returns waves by number, and the mean reward of their answers, where there was one."""
    return [(i, float(w["reward"])) for i, w in enumerate(waves) if w.get("reward") is not None]


def fresh(waves: Rows) -> list[tuple[int, dict[str, Any]]]:
    """Numbered from 0, over all epochs: waves of problems, but not those of the bucket list."""
    numbered = enumerate(waves)
    return [(i, w) for i, w in numbered if w.get("stage") not in AGAIN and w.get("problems")]


def panels(figure: Figure, title: str, labels: Sequence[str], x_label: str, of: str) -> list[Axes]:
    """Panels below each other with one x axis of whole numbers; labels are their y labels."""
    headline(figure, title, of)
    axes: list[Axes] = list(figure.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0])
    for axis, label in zip(axes, labels, strict=True):
        axis.set_ylabel(label)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(x_label)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if x_label == "wave":  # records count them from 0, people from 1
        axes[-1].xaxis.set_major_formatter(lambda x, _: f"{x + 1:.0f}")
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


def draw_accuracy(figure: Figure, data: RunData, solved: str = "solved") -> None:
    """Shares of a wave's problems; over waves of fresh problems, not those of the bucket list.

    Held-out problems stand where the policy was asked them: before, after a wave, at the end; so do
    the dev problems of a run that was watched.
    """
    title = "Accuracy on training problems"
    (axis,) = panels(figure, title, ["share of the wave"], "wave", data.of)
    waves = data.kind("wave")
    shown = fresh(waves)
    for key, label, color in (
        ("first_correct", "first answer right", BLUE),
        ("format_ok", "first format kept", ORANGE),
        *([("solved", f"{solved} after the wave", GREEN)] if solved else []),
    ):
        points = [(i, w.get(key, 0) / w["problems"]) for i, w in shown]
        trend(axis, points, label, color, [w["problems"] for _, w in shown])
    at = {"base": -0.5, **{wave["arm"]: i for i, wave in enumerate(waves) if "arm" in wave},
          "trained": len(waves) - 0.5}  # fmt: skip
    held_out = [(x, data.arms[arm]["accuracy"]) for arm, x in at.items() if arm in data.arms]
    if None not in (right for _, right in held_out):  # as of open questions
        draw_held_out(axis, held_out, "held-out problems")
    if looks := data.kind("dev"):
        seen = [(-0.5, looks[0]["base"]), *((look["wave"], look["accuracy"]) for look in looks)]
        draw_held_out(axis, seen, "dev problems", "s:")
    mark_anew(axis, data, steps=False)
    axis.set_xlim(-0.9, len(waves) - 0.1)
    percent(axis)
    legend(axis)


def draw_held_out(
    axis: Axes, found: Sequence[tuple[float, float]], label: str, marks: str = "D--"
) -> None:
    if found:
        look: dict[str, Any] = {"color": "black", "markersize": 6, "linewidth": 1, "label": label}
        axis.plot(*zip(*found, strict=True), marks, **look)


def draw_reward(figure: Figure, data: RunData) -> None:
    title, labels = "Rewards of the policy's answers", ["mean reward"]
    (axis,) = panels(figure, title, labels, "wave", data.of)
    trend(axis, rewarded(data.kind("wave")), "GRPO's rewards", BLUE)
    mark_anew(axis, data, steps=False)
    axis.set_xlim(-0.9, len(data.kind("wave")) - 0.1)
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


def held_out_figures(data: RunData, key: str) -> list[tuple[float, float]]:
    """Returns what a training measured on its held-out rows, by step."""
    rows = data.kind("held_out")
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def draw_loss(figure: Figure, data: RunData) -> None:
    steps = data.kind("step")
    kinds = [kind for kind in LOSSES if series(steps, "loss", kind)]
    labels = [LOSSES[kind] for kind in kinds]
    axes = panels(figure, "Training loss", labels, "training step", data.of)
    for axis, kind in zip(axes, kinds, strict=True):
        losses = series(steps, "loss", kind)
        trend(axis, losses, kind.upper(), BLUE if kind in PAIRS else GREEN)
        # DPO alone begins at ln 2; with an NLL term added that line would mean nothing.
        if kind == "dpo" and abs(losses[0][1] - math.log(2)) < 0.02:
            style: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": "--"}
            axis.axhline(math.log(2), label="ln 2: no preference", **style)
        draw_held_out(axis, held_out_figures(data, "loss"), "held-out rows")
        mark_anew(axis, data, steps=True)
        legend(axis)
    axes[-1].set_xlim(-0.5, len(steps) + 1)


def draw_margin(figure: Figure, data: RunData) -> None:
    title, labels = "Chosen against rejected responses", ["reward margin", "pairs ranked right"]
    upper, lower = panels(figure, title, labels, "training step", data.of)
    steps = data.kind("step")
    for kind, color in zip(paired(steps), (BLUE, ORANGE, GREEN, GREY), strict=False):
        trend(upper, series(steps, "margin", kind), f"chosen − rejected, {kind}", color)
        trend(lower, series(steps, "accuracy", kind), f"margin above 0, {kind}", color)
    for axis, key in ((upper, "margin"), (lower, "accuracy")):
        draw_held_out(axis, held_out_figures(data, key), "held-out rows")
        mark_anew(axis, data, steps=True)
    upper.axhline(0, color=GREY, linewidth=1, linestyle="--")
    lower.set_xlim(-0.5, len(steps) + 1)
    percent(lower)
    legend(upper)
    legend(lower)


def draw_bucket(figure: Figure, data: RunData) -> None:
    title, waves = "Bucket list and verification", data.kind("wave")
    labels = ["problems on\nbucket list", "verification\nattempts"]
    upper, lower = panels(figure, title, labels, "wave", data.of)
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


def compared_in(run_dir: Path) -> Comparisons:
    """Returns trained against base on each evaluation, the headline first, as far as it is there.

    Where there are several, of comparisons.json, which holds other arms too.
    """
    first = read_results(run_dir / "comparison.json") or {}
    further = read_results(run_dir / "comparisons.json") or {}
    others = [one for one in further.get("comparisons", [])
              if one["b"] == first.get("b") and one["task"] != first.get("task")]  # fmt: skip
    return [first, *others] if "ci_low" in first else []


def draw_comparison(
    figure: Figure, evaluations: Mapping[str, Mapping[str, Any]], found: Comparisons, of: str = ""
) -> None:
    """Draws a run's arms as a report's, and below them their paired differences.

    evaluations: each one's arms. found: as `compared_in` gives it. of: names the run.
    """
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, arms in evaluations.items():
        counts = " and ".join(map(str, sorted({arm["n"] for arm in arms.values()})))
        rows[f"{name and safe_text(name) + ': '}{counts} questions"] = {
            arm: (one["accuracy"], one["ci_low"], one["ci_high"]) for arm, one in arms.items()
        }
    upper: Any = figure
    lower: Any = figure
    if found and not rows:
        draw_differences(figure.subplots(), found)
        headline(figure, "Answers preferred on held-out questions", of)
    elif found:
        drawn = sum(map(len, rows.values()))
        heights = [1.2 + 0.7 * len(rows) + ROW * drawn, 1.66 + ROW * len(found)]
        parts: Any = figure.subfigures(2, 1, height_ratios=heights)
        upper, lower = parts
        draw_differences(lower.subplots(), found)
    if rows:
        draw_rows(upper, "Answers right on held-out problems", rows, of)
    sentence = textwrap.fill(found[0].get("sentence", "") if found else "", 105)
    lower.supxlabel(sentence, fontsize=9, parse_math=False)


def draw_differences(axis: Axes, found: Comparisons) -> None:
    """Draws paired differences in points, with their intervals, a row each."""
    for y, one in enumerate(found):
        middle, low, high = (100 * one[key] for key in ("difference", "ci_low", "ci_high"))
        ends = [[middle - low], [high - middle]]
        axis.errorbar(middle, y, xerr=ends, capsize=4, color=BLUE, marker="s", markersize=6)
    axis.axvline(0, color=GREY, linewidth=1, linestyle="--")
    first = found[0]
    heading(
        axis, f"{first['b']} − {first['a']}, in points, with its {level(first['alpha'])} interval"
    )
    several = len(found) > 1
    name_rows(axis, [f"{short(one['task'])}  " * several + points(one["difference"])
                     for one in found])  # fmt: skip
    axis.grid(axis="x", alpha=0.25, linewidth=0.6)


# ---- arms beside each other ----------------------------------------------------------------------


def draw_report(arms: Sequence[Arm], found: Comparisons, folder: Path) -> list[Path]:
    """Writes PNGs and SVGs, and returns their paths. found: as `compare_report` gives it."""
    tasks = {task: of for task, of in by_task(arms).items() if not of[0].open}
    compared = [one for one in found if "fault" not in one]
    drawings: Drawings = {
        "accuracy": (
            bool(tasks) * (1.1 + 0.75 * len(tasks) + ROW * len(arms)),
            lambda figure: draw_accuracies(figure, tasks),
        ),
        "difficulty": (
            bool(tasks) * (1.4 + 3.0 * len(tasks)),
            lambda figure: draw_difficulty(figure, tasks),
        ),
        "changes": (
            bool(compared) * (1.7 + 1.6 * ROW * len(compared)),
            lambda figure: draw_changes(figure, compared),
        ),
    }
    return save(drawings, folder)


def save(drawings: Drawings, folder: Path) -> list[Path]:
    """Writes the plots that have a height, as PNG and as SVG, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (height, draw) in drawings.items():
        if not height:
            continue
        figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
        draw(figure)
        # Same data, same bytes: no version, no date, and ids that are no random ones.
        about = {"png": {"Software": None}, "svg": {"Creator": None, "Date": None}}
        with warnings.catch_warnings(), rc_context({"svg.hashsalt": name}):
            # A name in a script that the font lacks is shown as boxes.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            for kind, said in about.items():
                paths.append(folder / f"{name}.{kind}")
                figure.savefig(paths[-1], metadata=said)
                figure.set_layout_engine("none")  # the layout stays as the first one found it
    return paths


def short(name: str) -> str:
    """A name in one line, its end kept: there model names differ."""
    line = safe_text(" ".join(name.split()))
    return line if len(line) <= LONGEST else f"{line[:10]}…{line[-(LONGEST - 11) :]}"


def headline(figure: Figure, text: str, of: str = "") -> None:
    """Sets the title. of: a second line, which names what is shown."""
    said = f"{text}\n{of}" if of else text
    figure.suptitle(said, fontsize=11 if of else 12, x=0.01, ha="left", parse_math=False)


def heading(axis: Axes, text: str) -> None:
    axis.set_title(text, fontsize=10, loc="left", parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns a colour and a marker for each name; no two are alike up to 64 names."""
    many = len(COLORS)
    return {
        name: {"color": COLORS[i % many], "marker": MARKERS[(i + i // many) % many]}
        for i, name in enumerate(dict.fromkeys(names))
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
    panels = {
        f"{safe_text(task)}: {counted(arms)}": {arm.name: arm.accuracy for arm in arms}
        for task, arms in tasks.items()
    }
    draw_rows(figure, "Answers right", panels)


def draw_rows(figure: Figure, title: str, panels: Figures, of: str = "") -> None:
    """Draws a panel a task, a row an arm: the share right with its interval."""
    headline(figure, f"{title}, with 95% intervals", of)
    sizes = [len(rows) + 0.6 for rows in panels.values()]
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    looks = styles(chain.from_iterable(panels.values()))
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        for y, (arm, (right, low, high)) in enumerate(rows.items()):
            errors = [[max(0.0, right - low)], [max(0.0, high - right)]]
            axis.errorbar(right, y, xerr=errors, capsize=4, markersize=6, **looks[arm])
            axis.annotate(
                f"{right:.1%}", (high, y), (6, 0), textcoords="offset points", va="center",
                fontsize=9,
            )  # fmt: skip
        heading(axis, name)
        name_rows(axis, [short(arm) for arm in rows])
        axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    top = max(high for rows in panels.values() for _, _, high in rows.values())
    axes[-1].set_xlim(0, min(1.12, 1.15 * top + 0.03))
    axes[-1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.1 else 1))


def counted(arms: Sequence[Arm]) -> str:
    counts = sorted({len(arm.problems) for arm in arms})
    samples = sorted({arm.samples for arm in arms})
    many = f", {' or '.join(map(str, samples))} samples each" if samples != [1] else ""
    return f"{' or '.join(map(str, counts))} questions{many}"


# ---- gains and losses ----------------------------------------------------------------------------


def draw_changes(figure: Figure, found: Comparisons) -> None:
    """Problems that B got right and A wrong, to the right; the reverse, to the left."""
    headline(figure, "Questions gained and lost")
    axis = figure.subplots()
    most = max(1, *(one[key] for one in found for key in ("gains", "losses")))
    draw_bars(axis, [one["gains"] for one in found], most, BLUE, "gained")
    draw_bars(axis, [-one["losses"] for one in found], most, ORANGE, "lost")
    several = len({one["task"] for one in found}) > 1
    names = [f"{short(one['b'])}\nagainst {short(one['a'])}" for one in found]
    tasks = [f" ({safe_text(one['task'])})" if several else "" for one in found]
    name_rows(axis, [name + task for name, task in zip(names, tasks, strict=True)])
    for y, one in enumerate(found):
        text = f"{points(one['difference'])} points\np = {deciding_p(one):.2g}"
        axis.text(1.02, y, text, va="center", fontsize=9, transform=axis.get_yaxis_transform())
    heading(axis, "")
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
    headline(figure, "Answers right by difficulty, with 95% intervals")
    axes = figure.subplots(len(tasks), 1, squeeze=False)[:, 0]
    looks = styles(arm.name for arms in tasks.values() for arm in arms)
    for axis, (task, arms) in zip(axes, tasks.items(), strict=True):
        heading(axis, safe_text(task))
        problems = {
            id_: one.problem for arm in arms for id_, one in arm.problems.items() if one.problem
        }
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
    """Returns the number of questions of a level that the arms were asked, or its range."""
    numbers = {sum(levels.get(id_) == at for id_ in arm.problems) for arm in arms}
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))


def draw_levels(
    axis: Axes, arms: Sequence[Arm], name: str, levels: dict[str, str],
    looks: dict[str, dict[str, Any]],
) -> None:  # fmt: skip
    """levels: problem id → level, in the order of the axis; name: what they are."""
    counts = Counter(levels.values())
    for i, arm in enumerate(arms):
        groups = {
            at: [one for id_, one in arm.problems.items() if levels.get(id_) == at] for at in counts
        }
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
    percent(axis)
    axis.set_ylabel("answers right")
    axis.grid(axis="y", alpha=0.25, linewidth=0.6)


def difficulty(problems: Sequence[Problem]) -> tuple[str, dict[str, str]]:
    """(what the levels are, problem id → level) of one task's problems.

    Levels sort as they are in the dict. Countdown: how many numbers, and where all have as many,
    whether + and − suffice. Arithmetic: operations. GSM8K and other worked solutions: their steps.
    Anything else: the question's length, in quarters.
    """
    for name, levels in (
        ("numbers given", {p.id: count(p, "numbers") for p in problems}),
        ("operations in the expression", {p.id: operations(p) for p in problems}),
        ("steps of the worked solution", {p.id: steps(p) for p in problems}),
    ):
        known = {id_: level for id_, level in levels.items() if level is not None}
        if len(known) == len(problems) and len(set(known.values())) > 1:
            return name, in_order(known)
    if problems and all(0 < (count(p, "numbers") or 0) <= MOST_NUMBERS for p in problems):
        signs = {p.id: reached_by_signs(p) for p in problems}
        if len(set(signs.values())) > 1:
            named = {True: "+ and − suffice", False: "needs × or ÷"}
            return "what a solution takes", {
                id_: named[plain] for plain in (True, False) for id_ in signs if signs[id_] == plain
            }
    return "length of the question, in quarters", quarters(problems)


def in_order(levels: dict[str, int]) -> dict[str, str]:
    named = {
        level: f"{level}" if level < MOST_LEVELS else f"{MOST_LEVELS} or more"
        for level in sorted(set(levels.values()))
    }
    return {id_: named[levels[id_]] for id_ in sorted(levels, key=lambda id_: levels[id_])}


def count(problem: Problem, field: str) -> int | None:
    value = problem.fields.get(field)
    return len(value) if isinstance(value, list) else None


def operations(problem: Problem) -> int | None:
    """Operations between the numbers of an expression; a leading sign is none."""
    text = problem.fields.get("expression")
    return sum(text[1:].count(f" {sign} ") for sign in "+-*/") if isinstance(text, str) else None


def steps(problem: Problem) -> int | None:
    """Calculations noted as <<…>> in the worked solution, else its lines before the answer."""
    solution = problem.meta.get("solution")
    if not isinstance(solution, str):
        return None
    lines = [line for line in solution.splitlines() if line.strip() and "####" not in line]
    return max(1, solution.count("<<") or len(lines))


def reached_by_signs(problem: Problem) -> bool:
    numbers, target = problem.fields["numbers"], problem.fields.get("target")
    return any(
        sum(sign * n for sign, n in zip(signs, numbers, strict=True)) == target
        for signs in product((1, -1), repeat=len(numbers))
    )


def quarters(problems: Sequence[Problem]) -> dict[str, str]:
    """Shortest to longest questions, by characters."""
    lengths = {p.id: len(get_task(p.task).show(p)) for p in problems}
    if len(lengths) < 2:
        return dict.fromkeys(lengths, "all")
    cuts = quantiles(lengths.values(), n=4, method="inclusive")
    quarter = {id_: sum(length > cut for cut in cuts) for id_, length in lengths.items()}
    ends = {q: [lengths[id_] for id_ in quarter if quarter[id_] == q] for q in range(4)}
    return {
        id_: f"{min(ends[q])}–{max(ends[q])}\ncharacters"
        for q in range(4) for id_ in quarter if quarter[id_] == q
    }  # fmt: skip
