"""What goes to stdout, what to stderr, and that nothing a model wrote steers the terminal."""

import io
import json
import re
import subprocess
import sys
import threading

import pytest
from rich.table import Table
from rich.text import Text

from mlxreflect.core import ui as ui_module
from mlxreflect.core.ui import PlainBar, Ui, facts, plural, safe_text, table
from mlxreflect.evaluation.compare import Options, compare_counts
from mlxreflect.report.tables import render_comparison

HOSTILE = "\x1b[31mred\x1b[0m \x9b2J \x07 \r \u202eback \u200bwidth \ud83d [bold]b[/bold]"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_importing_it_does_not_import_rich() -> None:
    found = "[m for m in sys.modules if m.split('.')[0] == 'rich']"
    code = f"import mlxreflect.core.ui, sys; print({found})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_safe_text_shows_what_it_takes_out() -> None:
    safe = safe_text(HOSTILE)
    assert safe == (
        "\\x1b[31mred\\x1b[0m \\x9b2J \\x07 \\r \\u202eback \\u200bwidth \\ud83d [bold]b[/bold]"
    )
    assert safe_text("tab\tline\nέ→ 🙂 日本") == "tab\tline\nέ→ 🙂 日本"
    safe.encode("utf-8")


def test_json_leaves_stdout_to_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    ui = Ui(json=True)
    ui.header({"recipe": "r3", "policy": "tiny"})
    ui.line("working")
    ui.table(Table(title="no table"))
    with ui.progress("attempts", 2) as bar:
        bar.advance(2)
    ui.result({"loss": float("nan"), "all": [float("inf"), 1.5], "text": "→ \u009b"})
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == {"loss": None, "all": [None, 1.5], "text": "→ \u009b"}
    assert out.isascii()
    for part in ("recipe  r3\n", "policy  tiny\n", "working\n", "attempts: 2/2"):
        assert part in err


def test_without_json_people_read_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    ui = Ui()
    ui.header({"a": 1, "long name": HOSTILE})
    ui.result({"a": 1})
    ui.table(table("", ["x" * 90, "y" * 30]))
    ui.table(Text("a sentence " * 40))
    out, err = capsys.readouterr()
    assert out.startswith("a          1\nlong name  \\x1b[31mred")
    assert "{" not in out
    assert "x" * 90 in out  # the two are wider than a table in a pipe has to be
    assert "y" * 30 in out
    assert ("a sentence " * 40).rstrip() in out
    assert not any(line.endswith(" ") for line in out.splitlines())
    assert err == ""


def test_a_terminal_wraps_sentences_at_words(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "30")
    sentence = "extraordinary circumstances [bold] need words " * 4
    Ui().line(sentence)
    Ui().table(Text(sentence))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 30
    assert " ".join(lines).split() == 2 * sentence.split()


RUN = "runs/20261129-101500-a-recipe-with-a-long-name-and-a-suffix"
ROW = ["policy+adapter", 200, "33.5%", "26.9% to 39.9%", "numbers [67, 80, 4], target 35"]


@pytest.mark.parametrize("width", [20, 60, 200])
def test_nothing_is_cut_on_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ui = Terminal(), Ui()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", f"{width}")
    ui.table(table("", ["", "|n", "|right", "|interval", "problem"], [ROW], wraps="problem"))
    ui.table(table("", ["run", "of"], [[RUN, "r3"]]))
    ui.table(facts({"run": RUN, "status": "words " * 30}))
    command = f"mlxreflect eval countdown --model tiny --adapter {RUN}/adapter"
    ui.header({"use it": command})
    ui.table(Text(f"no problem is done yet: {command}"))
    drawn = out.getvalue()
    assert "…" not in drawn and drawn.count(command) == 2
    assert drawn.count(RUN) == 4
    for cell in ("policy+adapter", "200", "33.5%", "[67,", "r3"):
        assert cell in drawn
    assert "words words" in drawn and "wor\nds" not in drawn


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_single_comparison_becomes_paragraphs_too(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", f"{width}")
    arms = [f"{right}/1000" for right in (627, 674)]
    options = Options(names=("a-base-with-a-long-name", "a-trained-one-with-a-long-name"))
    Ui().table(render_comparison(compare_counts(arms, options)))
    drawn = re.sub("\x1b\\[[0-9]*m", "", out.getvalue())
    first, value = "accuracy of a-base-with-a-long-name", "62.7% (59.7 to 65.6)"
    assert (f"{first}\n  {value}\n" in drawn) == (width < 80)
    assert value in drawn and "…" not in drawn
    assert max(map(len, drawn.splitlines()[1:])) <= width  # below the title


@pytest.mark.parametrize("quiet", [False, True])
def test_plain_lines_are_few_and_the_last_one_is_said(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(ui_module.time, "monotonic", lambda: clock[0])
    ui = Ui(json=quiet, quiet=quiet)
    with ui.progress("attempts", 60) as bar:
        for i in range(30):
            clock[0] += 1
            bar.update_text(f"wave {i}")
            bar.advance()
    if quiet:  # results alone
        ui.header({"recipe": "r3"})
        ui.result([])
        assert capsys.readouterr() == ("[]\n", "")
        return
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "attempts: 4/60, wave 4, 0:01:10 left"
    assert len(lines) == 30 / 5 + 1
    assert lines[-1] == "attempts: 30/60, wave 29, took 0:00:30"


def test_plain_lines_get_rarer_and_need_no_step_of_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wave of hours moves the bar once; a night is not thousands of lines."""
    clock = [0.0]
    monkeypatch.setattr(ui_module.time, "monotonic", lambda: clock[0])
    with Ui().progress("learning", 10) as bar:
        for second in range(30_000):
            clock[0] = second
            bar.update_text(f"{second} attempts")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("learning: 0/10, 5 attempts")
    # Each 5 s up to 500 s, then each hundredth of the time so far: ln(60) / ln(1.01) of them.
    assert 100 + 350 < len(lines) < 100 + 450


def test_what_goes_on_after_all_is_counted_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training follows the last problem of a wave, and may take longer than all before it."""
    clock = [0.0]
    monkeypatch.setattr(ui_module.time, "monotonic", lambda: clock[0])
    with Ui().progress("learning", 10) as bar:
        clock[0] = 6.0
        bar.advance(10)
        clock[0] = 60.0
        bar.update_text("training, 3 steps")
    first, last = capsys.readouterr().err.splitlines()
    assert first == "learning: 10/10, training, 3 steps, 0:01:00 so far"
    assert last == "learning: 10/10, training, 3 steps, took 0:01:00"


def test_progress_without_a_total_and_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for stop in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(stop), Ui().progress("reading [x]") as bar:
            bar.advance(7)
            raise stop
        assert capsys.readouterr().err == "reading [x]: 7, stopped after 0:00:00\n"
    with Ui().progress("reading") as bar:
        bar.advance()
    assert capsys.readouterr().err == "reading: 1, took 0:00:00\n"


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "160")
    ui = Ui()
    with ui.progress("outer [b]", 4) as bar:
        bar.advance(3)
        bar.update_end("ends about 23:14")
        bar.update_text(HOSTILE)
        with ui.progress("inner", 2) as inner:
            inner.advance(2)
            ui.line("said in between")
        bar.advance()
    assert out.getvalue() == "said in between\n"
    drawn = err.getvalue()
    for part in ("outer [b]", "inner", "4/4", "ends about 23:14", "\\x1b[31mred", "[bold]b[/bold]"):
        assert part in drawn
    for part in ("\x1b[31mred", "\x9b", "\x07", "\u202e"):
        assert part not in drawn
    assert ui.live is None


def test_lines_go_above_the_bars_where_both_are_on_one_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    ui = Ui()
    with ui.progress("attempts", 1):
        ui.line("while [it] runs")
    ui.line("after")
    assert out.getvalue() == "after\n"
    assert "while [it] runs" in err.getvalue()


@pytest.mark.parametrize(("done", "told"), [(2, "0:01:40 so far"), (30, "0:03:53 left")])
def test_no_time_is_foretold_before_some_of_the_work_is_done(
    done: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(ui_module.time, "monotonic", lambda: clock[0])
    with Ui().progress("evaluating", 100) as bar:
        clock[0] = 100.0
        bar.advance(done)
    assert told in capsys.readouterr().err.splitlines()[0]


def test_threads_may_advance_together() -> None:
    bar = PlainBar("calls", None, None)
    threads = [
        threading.Thread(target=lambda: [bar.advance() for _ in range(2000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bar.done == 8000


def test_a_terminal_that_knows_only_ascii_is_no_crash() -> None:
    code = "from mlxreflect.core.ui import Ui; Ui().line('a → b'); Ui(json=True).line('é')"
    env = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert (done.stdout, done.stderr) == ("a ? b\n", "?\n")


def test_a_table_sets_numbers_to_the_right_and_wraps_where_it_may(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [["first", 7, "two [bold]words[/bold]"], ["\x1b[1m", 12345, Text("and more " * 4)]]
    Ui().table(table("Title \x07", ["", "|count", "problem"], rows, wraps="problem"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Title \\x07"
    assert "7" in lines[3] and lines[3].index("7") == lines[1].index("count") + 4
    shown = " ".join(" ".join(lines).split())
    assert "\\x1b[1m" in shown and "[bold]words[/bold]" in shown and "12345" in shown
    assert max(map(len, lines)) <= 40
    Ui().table(facts({"name": "value", "long \x07": Text("x", "red")}))
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["name", "value"], ["long", "\\x07", "x"]
    ]  # fmt: skip


@pytest.mark.parametrize(("n", "said"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps")])
def test_one_of_a_thing_is_no_plural(n: int, said: str) -> None:
    assert plural(n, "step") == said
