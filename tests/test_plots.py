"""Plots of runs of every shape and of evaluations; what is drawn is read back from the figure."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.arm_folders import RIGHT, gsm8k, write_arm
from support.marks import slow_but

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.evaluation.arms import Arm, by_task, load_arms
from mlxreflect.evaluation.compare import compare_report
from mlxreflect.report import plots
from mlxreflect.stats import wilson

NAMES = ["accuracy", "loss", "margin", "reward", "bucket", "comparison"]


def wave(number: int, **over: Any) -> dict[str, Any]:
    return {
        "schema": "metrics/1", "kind": "wave", "epoch": 1, "wave": number, "stage": "problems",
        "tier": "basic", "problems": 8, "first_correct": 2, "format_ok": 6, "solved": 5,
        "bucket": number, "pairs": 3, "rewrites": 4, "verifications": 5, "failures": {},
        "tokens_generated": 10, "tokens_trained": 20, "seconds": 1.5, **over,
    }  # fmt: skip


def unlisted(number: int, **over: Any) -> dict[str, Any]:
    """A wave of a method without a bucket list."""
    row = wave(number, verifications=0, **over)
    del row["bucket"]
    return row


def step(number: int, objective: str = "dpo", **over: Any) -> dict[str, Any]:
    dpo = objective == "dpo"
    return {
        "schema": "metrics/1", "kind": "step", "objective": objective, "epoch": 1, "wave": 0,
        "step": number, "loss": 0.7 - number / 100, "margin": number / 10 if dpo else None,
        "accuracy": 0.5 if dpo else None, "lr": 1e-5, "grad_norm": 1.0, "tokens": 9, "seconds": 0.1,
        **over,
    }  # fmt: skip


def run_dir(path: Path, rows: list[dict[str, Any]], arms: dict[str, Any] | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    append_rows(path / "metrics.jsonl", rows)
    for name, results in (arms or {}).items():
        (path / "eval" / name).mkdir(parents=True)
        (path / "eval" / name / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return path


def figure_of(draw: Any, *data: Any) -> Figure:
    figure = Figure()
    draw(figure, *data)
    return figure


ARMS = {
    "base": {"n": 200, "accuracy": 0.4, "ci_low": 0.335, "ci_high": 0.469},
    "trained": {"n": 200, "accuracy": 0.55, "ci_low": 0.481, "ci_high": 0.617},
}
SHAPES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "whole": ([*(step(i) for i in range(40)), *(step(i, "sft") for i in range(9)),
               *(wave(i) for i in range(20)), wave(20, stage="bucket", tier="advanced")], ARMS),
    "one wave, one step": ([step(1), unlisted(0)], ARMS),
    "no step": ([unlisted(0), unlisted(1)], ARMS),
    "phases of pairs": ([step(1, "orpo", margin=0.1, accuracy=0.5),
                         step(2, "exo_pair", margin=0.2, accuracy=1.0), unlisted(0)], ARMS),
    "no wave": ([step(1), step(2, "sft")], {}),
    "sft alone": ([step(1, "sft"), unlisted(0)], {"base": ARMS["base"]}),
    "nothing": ([{"kind": "another"}], {}),
    "not a number": ([step(1, loss=math.nan), step(2), unlisted(0, problems=0)], {}),
    "only the bucket": ([wave(0, stage="bucket")], {}),
    "all wrong": ([wave(0, first_correct=0, format_ok=0, solved=0, bucket=8)],
                  {"base": {"n": 3, "accuracy": 0.0, "ci_low": 0.0, "ci_high": 0.56}}),
}  # fmt: skip


LACKING = {
    "whole": {"reward"}, "one wave, one step": {"reward", "bucket"},
    "no step": {"reward", "loss", "margin", "bucket"},
    "phases of pairs": {"reward", "bucket"},
    "no wave": {"reward", "accuracy", "bucket", "comparison"},
    "sft alone": {"reward", "margin", "bucket"}, "nothing": set(NAMES),
    "not a number": {"reward", "accuracy", "bucket", "comparison"},
    "only the bucket": {"reward", "accuracy", "loss", "margin", "comparison"},
    "all wrong": {"reward", "loss", "margin"},
}  # fmt: skip


@pytest.mark.parametrize("shape", slow_but(SHAPES, "whole", "all wrong"))
def test_a_run_gets_the_pictures_that_show_something(tmp_path: Path, shape: str) -> None:
    rows, arms = SHAPES[shape]
    folder = run_dir(tmp_path, rows, arms)
    paths = plots.draw_plots(folder)
    wanted = [name for name in NAMES if name not in LACKING[shape]]
    assert paths == [folder / "plots" / f"{n}.{kind}" for n in wanted for kind in ("png", "svg")]
    assert sorted(paths) == sorted((folder / "plots").iterdir())
    for path in paths[::2]:
        image = imread(path)
        assert image.shape[1] == 960 and (image.shape[0] == 540) == (path.stem != "comparison")
        assert image[..., :3].min() < 0.6  # there is ink on it
    for path in paths[1::2]:
        drawn = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}path")
        assert sum(one.get("d", "").count("L") for one in drawn) > 100


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    rows, arms = SHAPES["whole"]
    first = [p.read_bytes() for p in plots.draw_plots(run_dir(tmp_path / "a", rows, arms))]
    again = [p.read_bytes() for p in plots.draw_plots(tmp_path / "a")]
    assert first == again
    assert not any(b"dc:date" in one or b"Matplotlib" in one for one in first)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        plots.draw_plots(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pyplot_and_its_global_figures_are_not_used() -> None:
    code = "import mlxreflect.report.plots, sys; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_moving_average_is_weighted_and_trails() -> None:
    assert plots.moving([1, 0, 0, 1], [1, 1, 2, 4], 2) == [1.0, 0.5, 0.0, 4 / 6]
    means = plots.moving([3.0] * 12, [1.0] * 12, 10)
    assert [math.isnan(m) for m in means] == [True] * 2 + [False] * 10
    assert math.isnan(plots.moving([1.0], [0.0], 3)[0])
    assert [plots.window_of(count) for count in (1, 5, 6, 100, 5000)] == [1, 1, 3, 10, 50]


def test_accuracy_is_of_fresh_problems_by_wave() -> None:
    waves = [wave(0), wave(1, stage="bucket", problems=3), wave(2, first_correct=4, problems=16)]
    (axis,) = figure_of(plots.draw_accuracy, plots.RunData(waves)).axes
    drawn = {line.get_label(): line for line in axis.lines}
    assert list(drawn) == ["first answer right", "first format kept", "solved after the wave"]
    assert list(drawn["first answer right"].get_xdata()) == [0, 2]
    assert list(drawn["first answer right"].get_ydata()) == [0.25, 0.25]
    assert list(drawn["solved after the wave"].get_ydata()) == [5 / 8, 5 / 16]

    for word, last in (("accepted", "accepted after the wave"), ("", "first format kept")):
        (axis,) = figure_of(plots.draw_accuracy, plots.RunData(waves), word).axes
        assert axis.lines[-1].get_label() == last


def test_accuracy_average_counts_problems_not_waves() -> None:
    waves = [wave(i, problems=1 + i % 2 * 9, first_correct=i % 2 * 9) for i in range(6)]
    (axis,) = figure_of(plots.draw_accuracy, plots.RunData(waves)).axes
    (average,) = (x for x in axis.lines if x.get_label() == "first answer right (mean of 3)")
    assert average.get_ydata()[-1] == pytest.approx(18 / 21)


def test_loss_has_a_panel_for_each_objective_there_was() -> None:
    steps = [step(1), step(1, "sft"), step(2), step(2, "sft")]
    upper, lower = figure_of(plots.draw_loss, plots.RunData(steps)).axes
    assert list(upper.lines[0].get_xdata()) == [1, 3]
    assert list(upper.lines[0].get_ydata()) == pytest.approx([0.69, 0.68])
    assert list(upper.lines[1].get_ydata()) == [math.log(2)] * 2
    assert list(lower.lines[0].get_xdata()) == [2, 4]
    assert (upper.get_ylabel(), lower.get_ylabel()) == (
        "DPO loss + NLL term\nper pair",
        "SFT loss\nper token",
    )
    upper, _ = figure_of(plots.draw_loss, plots.RunData([step(1, loss=2.1), step(2, "sft")])).axes
    assert len(upper.lines) == 1  # with a loss that does not begin at ln 2, no line there
    (only,) = figure_of(plots.draw_loss, plots.RunData([step(1, "sft")])).axes
    assert only.get_ylabel() == "SFT loss\nper token"


def test_margin_leaves_sft_steps_out() -> None:
    steps = [step(1, "sft"), step(2), step(3, accuracy=1.0)]
    upper, lower = figure_of(plots.draw_margin, plots.RunData(steps)).axes
    assert list(upper.lines[0].get_xdata()) == [2, 3]
    assert list(upper.lines[0].get_ydata()) == [0.2, 0.3]
    assert list(lower.lines[0].get_ydata()) == [0.5, 1.0]
    phases = [step(1, "orpo", margin=0.5, accuracy=1.0),
              step(2, "exo_pair", margin=0.7, accuracy=1.0)]  # fmt: skip
    upper, _ = figure_of(plots.draw_margin, plots.RunData(phases)).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in upper.lines[:2]}
    assert drawn == {"chosen − rejected, exo_pair": [0.7], "chosen − rejected, orpo": [0.5]}


def test_bucket_shows_size_passes_and_verifications() -> None:
    waves = [wave(0, bucket=4), wave(1, bucket=1, stage="mastery", verifications=2)]
    upper, lower = figure_of(plots.draw_bucket, plots.RunData(waves)).axes
    drawn = {line.get_label(): line for line in upper.lines}
    assert list(drawn["after the wave"].get_ydata()) == [4, 1]
    passes = drawn["after a pass over the bucket list"]
    assert (list(passes.get_xdata()), list(passes.get_ydata())) == ([1], [1])
    assert [bar.get_height() for bar in lower.patches] == [5, 2]


# ---- evaluations beside each other ---------------------------------------------------------------


def arms_of(root: Path, names: dict[str, int], **more: Any) -> list[Arm]:
    """Arms by name, with the first so many of forty questions right."""
    problems = gsm8k(40)
    for name, right in names.items():
        texts = [[RIGHT.format(p.gold if i < right else -1)] for i, p in enumerate(problems)]
        write_arm(root / name, problems, texts, **more)
    return load_arms([root])


def ticks(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_yticklabels()]


def test_accuracy_has_a_row_an_arm_with_its_interval(tmp_path: Path) -> None:
    """In a report and, from the results alone, in a run's plots."""
    arms = arms_of(tmp_path, {"base": 10, "trained": 30})
    results = {arm.name: {**arm.results, "ci_low": 0.1, "ci_high": 0.9} for arm in arms}
    compared = figure_of(plots.draw_comparison, {"": results}, [], "r3, $tiny$")
    assert compared.get_suptitle().endswith("\nr3, $tiny$")
    report = figure_of(plots.draw_accuracies, by_task(arms))
    for figure, ends in ((report, [wilson(10, 40), wilson(30, 40)]), (compared, [(0.1, 0.9)] * 2)):
        (axis,) = figure.axes
        assert ticks(axis) == ["base", "trained"]
        drawn = [(c.lines[0].get_xdata()[0], c.lines[2][0].get_segments()[0][:, 0])
                 for c in axis.containers]  # fmt: skip
        assert [right for right, _ in drawn] == [0.25, 0.75]
        assert [list(whisker) for _, whisker in drawn] == [pytest.approx(end) for end in ends]
        assert [text.get_text() for text in axis.texts] == ["25.0%", "75.0%"]
        assert axis.get_title(loc="left").endswith("40 questions")


def test_a_runs_comparison_has_the_paired_differences(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, {"base": 10, "trained": 30})
    results = {arm.name: {**arm.results, "ci_low": 0.1, "ci_high": 0.9} for arm in arms}
    found = {"a": "base", "b": "trained", "difference": 0.125, "ci_low": -0.03, "ci_high": 0.28,
             "alpha": 0.05, "sentence": "is $better$", "task": "countdown"}  # fmt: skip
    figure = figure_of(plots.draw_comparison, {"": results}, [found])
    assert "$better$" in figure.subfigs[1].get_supxlabel()
    below, above = figure.axes
    assert ticks(above) == ["base", "trained"] and ticks(below) == ["+12.5"]
    (bar,) = below.containers
    assert list(bar.lines[2][0].get_segments()[0][:, 0]) == pytest.approx([-3.0, 28.0])
    both = [{**found, "task": "sums"}, {**found, "task": "words", "difference": -0.02}]
    figure = figure_of(plots.draw_comparison, {"sums": results, "words": results}, both)
    below, *above = figure.axes
    assert ticks(below) == ["sums  +12.5", "words  −2.0"] and len(below.containers) == 2
    assert [axis.get_title(loc="left") for axis in above] == [
        "sums: 40 questions", "words: 40 questions"]  # fmt: skip


def test_what_begins_anew_is_marked_and_held_out_points_are_drawn() -> None:
    """The first beginning is none; a second reference stands between its neighbours' steps."""
    rows = [step(1), step(2), wave(0, anew=["reference"]), step(3), wave(1, arm="round-1"),
            step(4), wave(2, anew=["reference", "adapter"], reward=0.5)]  # fmt: skip
    held = [{"kind": "held_out", "step": n, "loss": 0.5 - n / 10, "margin": n, "accuracy": 1.0}
            for n in (0, 4)]  # fmt: skip
    dev = [{"kind": "dev", "wave": n, "base": 0.2, "accuracy": n / 4} for n in (0, 2)]
    arms = {name: {"accuracy": value} for name, value in
            {"base": 0.3, "round-1": 0.4, "trained": 0.5}.items()}  # fmt: skip
    told = plots.RunData([*rows, *held, *dev], arms, "a run, tiny")
    assert told.anew() == [(2, 3, "reference"), (2, 3, "adapter")]

    def lines(axis: Any, label: str) -> list[tuple[Any, Any]]:
        found = [line for line in axis.lines if line.get_label() == label]
        return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]

    (axis,) = figure_of(plots.draw_accuracy, told).axes
    assert lines(axis, "held-out problems") == [([-0.5, 1, 2.5], [0.3, 0.4, 0.5])]
    assert lines(axis, "dev problems") == [([-0.5, 0, 2], [0.2, 0.0, 0.5])]
    assert lines(axis, "from here on a new adapter")[0][0] == [1.5, 1.5]
    figure = figure_of(plots.draw_margin, told)
    assert figure.get_suptitle().endswith("\na run, tiny")
    assert lines(figure.axes[0], "held-out rows") == [([0, 4], [0, 4])]
    assert lines(figure.axes[1], "from here on a new reference")[0][0] == [3.5, 3.5]
    (axis,) = figure_of(plots.draw_loss, told).axes
    assert lines(axis, "held-out rows") == [([0, 4], [0.5, pytest.approx(0.1)])]
    (axis,) = figure_of(plots.draw_reward, told).axes
    assert lines(axis, "GRPO's rewards") == [([2], [0.5])]


def test_changes_are_gains_to_the_right_and_losses_to_the_left(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, {"base": 10, "more": 30, "none": 4})
    figure = figure_of(plots.draw_changes, compare_report(arms))
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [20, 0, 0, -6]
    assert ticks(axis) == ["more\nagainst base", "none\nagainst base"]
    said = " ".join(text.get_text() for text in axis.texts)
    assert "+50.0 points\np = 1.9e-06" in said and "−15.0 points\np = 0.031" in said


def test_difficulty_has_accuracy_at_each_level(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, {"base": 10, "trained": 30})
    (axis,) = figure_of(plots.draw_difficulty, by_task(arms)).axes
    # Question i takes 1 + i % 4 steps: of the first ten right, three each take 1 and 2 of them.
    drawn = {c.get_label(): list(c.lines[0].get_ydata()) for c in axis.containers}
    assert drawn == {"base": [0.3, 0.3, 0.2, 0.2], "trained": [0.8, 0.8, 0.7, 0.7]}
    assert axis.get_xlabel() == "steps of the worked solution"
    named = [text.get_text() for text in axis.get_xticklabels()]
    assert named == [f"{level}\n(n = 10)" for level in (1, 2, 3, 4)]


def test_a_folder_without_problems_says_so(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, {"base": 10}, keep_problems=False)
    (axis,) = figure_of(plots.draw_difficulty, by_task(arms)).axes
    assert "no problems" in axis.texts[0].get_text()


def test_each_name_looks_like_no_other() -> None:
    looks = plots.styles([*(f"m{i}" for i in range(30)), "m7", "new"])
    assert len(looks) == len({tuple(look.values()) for look in looks.values()}) == 31


def test_plots_of_arms_of_any_name_are_pictures(tmp_path: Path) -> None:
    """That they are the same bytes again is tested with whole reports."""
    names = {"$x_{$": 9, "日本語 \U0001f600": 10, "b\x1b[31m\n\\frac{": 11, "n" * 200: 12}
    arms = arms_of(tmp_path / "arms", names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plots.draw_report(arms, compare_report(arms), tmp_path)
    assert {path.stem for path in drawn} == {"accuracy", "changes", "difficulty"}
    for path in drawn[::2]:
        height, width, _ = imread(path).shape
        assert width == 960 and height > 200 and path.stat().st_size > 5000
    drawn = plots.draw_report(arms[:1], [], tmp_path / "one")  # with nothing to compare it with
    assert {path.name for path in drawn[::2]} == {"accuracy.png", "difficulty.png"}
