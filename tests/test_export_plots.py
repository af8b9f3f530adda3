"""Plots of evaluations; what is drawn is read back from the figure."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.arm_folders import RIGHT, gsm8k, write_arm

from mlxreflect.evaluation.export_arms import Arm, load_arms
from mlxreflect.report import report_plots as plots
from mlxreflect.report.pairs import by_task, pair_up
from mlxreflect.stats import wilson


def figure_of(draw: Any, *data: Any) -> Figure:
    figure = Figure()
    draw(figure, *data)
    return figure


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
    arms = arms_of(tmp_path, {"base": 10, "trained": 30})
    (axis,) = figure_of(plots.draw_accuracies, by_task(arms)).axes
    assert ticks(axis) == ["base", "trained"]
    drawn = [(c.lines[0].get_xdata()[0], c.lines[2][0].get_segments()[0][:, 0])
             for c in axis.containers]  # fmt: skip
    for (right, whisker), k in zip(drawn, (10, 30), strict=True):
        assert right == k / 40
        assert list(whisker) == pytest.approx(wilson(k, 40))
    assert [text.get_text() for text in axis.texts] == ["25.0%", "75.0%"]
    assert axis.get_title(loc="left") == "gsm8k: 40 questions"


def test_changes_are_gains_to_the_right_and_losses_to_the_left(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, {"base": 10, "more": 30, "none": 4})
    figure = figure_of(plots.draw_changes, pair_up(arms))
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


def test_a_name_looks_the_same_in_every_panel_and_like_no_other() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    many: Any = {"a": [Named(f"m{i}") for i in range(30)], "b": [Named("m7"), Named("new")]}
    looks = plots.styles(many)
    assert len(looks) == 31
    assert len({tuple(look.values()) for look in looks.values()}) == 31


def test_plots_are_pictures(tmp_path: Path) -> None:
    """That they are the same bytes again is tested with whole reports."""
    arms = arms_of(tmp_path / "arms", {"base": 20, "trained": 40, "worse": 0})
    drawn = plots.draw_report(arms, pair_up(arms), tmp_path)
    assert {path.name for path in drawn} == {"accuracy.png", "changes.png", "difficulty.png"}
    for path in drawn:
        height, width, _ = imread(path).shape
        assert width == 960 and height > 200


def test_one_arm_has_no_changes(tmp_path: Path) -> None:
    arms = arms_of(tmp_path / "arms", {"base": 20})
    drawn = plots.draw_report(arms, [], tmp_path)
    assert {path.name for path in drawn} == {"accuracy.png", "difficulty.png"}


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    names = {"$x_{$": 9, "日本語 \U0001f600": 10, "b\x1b[31m\n\\frac{": 11, "n" * 200: 12}
    arms = arms_of(tmp_path / "arms", names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plots.draw_report(arms, pair_up(arms), tmp_path)
    assert all(path.stat().st_size > 5000 for path in drawn)
