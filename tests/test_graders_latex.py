"""LaTeX answers: one spelling for many, exact where possible, and a worker that can be killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.graders import latex
from mlxreflect.graders.latex import WORKER, decided, equal, harmless, normal, rational
from mlxreflect.tasks import TASKS

TASK = TASKS["math500"]
pytestmark = pytest.mark.skipif(
    find_spec("math_verify") is None, reason="the extra math is not installed"
)


def correct(gold: str, answer: str, rules: str = "flexible") -> bool:
    text = f"<think>x</think>\n<answer>{answer}</answer>"
    problem = TASK.from_row({"gold": gold})
    return TASK.rules[rules](problem, text, "think", "thinking").verdict.correct


SAME = [
    ("\\frac{1}{2}", "1/2"), ("\\frac{1}{2}", "0.5"), ("\\frac{1}{2}", "\\dfrac12"),
    ("\\frac{1}{2}", "\\boxed{\\frac{1}{2}}"), ("3\\sqrt{13}", "3 \\sqrt{13}"),
    ("\\text{Evelyn}", "evelyn."), ("(3,4]", "(3, 4]"), ("90^\\circ", "90"), ("90", "90^{\\circ}"),
    ("\\$36", "36"), ("5.4 \\text{ cents}", "5.4"), ("5.4", "5.4\\text{ cents}"),
    ("11,\\! 111,\\! 111,\\! 100", "11111111100"), ("10080", "10,080"), ("\\text{(C)}", "C"),
    ("6 - 5i", "6-5i"), ("18.90", "18.9"), ("5", "x=5"), ("10\\%", "10"),
    ("x \\in [-2,7]", "[-2,7]"),
    ("-\\frac{35}{9}", "-35/9"), ("-\\frac{35}{9}", "\\frac{-35}{9}"), ("3 1/2", "3\\frac{1}{2}"),
    ("3.5", "3\\tfrac12"), ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
]  # fmt: skip
OTHER = [
    ("\\frac{1}{3}", "0.333333"), ("3", "3.0000000000001"), ("12", "1 2"), ("2", "-2"),
    ("\\text{Evelyn}", "Evelyn or Tom"), ("90", "9 0"), ("(3,4]", "[3,4]"), ("(1,2)", "(2,1)"),
    ("5", "5, 6"), ("5", "2x=5"), ("\\frac{1}{2}", "\\frac{2}{1}"), ("10080", "10.080"),
    ("4", "x = 2x = 4"), ("x", "X"), ("x", "y"), ("\\text{even}", "odd"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), SAME)
@pytest.mark.parametrize("rules", ["flexible", "exact"])
def test_one_value_in_many_spellings(gold: str, answer: str, rules: str) -> None:
    assert correct(gold, answer, rules)


@pytest.mark.parametrize(("gold", "answer"), OTHER)
def test_other_values(gold: str, answer: str) -> None:
    assert not correct(gold, answer)


@given(st.integers(-9999, 9999), st.integers(1, 9999))
def test_rational_numbers_are_exact(top: int, bottom: int) -> None:
    for text in (f"{top}/{bottom}", f"$\\dfrac{{{top}}}{{{bottom}}}$"):
        assert rational(normal(text)) == Fraction(top, bottom)
    other = f"\\frac{{{top * bottom * 7 + 1}}}{{{bottom * bottom * 7}}}"  # 1/(7b²) more
    assert decided(normal(f"{top}/{bottom}"), normal(other)) is False


@given(st.text(alphabet="0123456789\\frac{}{}sqrt^_()[],.+-*/ xpi$&\ud800é", max_size=80))
def test_any_text_is_normalised_and_judged_without_an_error(text: str) -> None:
    normal(normal(text))
    rational(text)
    assert isinstance(harmless(text), str)
    assert decided(normal(text), normal(text)) is True


WORKED = [
    ("3\\sqrt{13}", "\\sqrt{117}", True), ("x^3+3x-6", "3x - 6 + x^3", True),
    ("p - q", "-q+p", True),
    ("2k+2", "2(k+1)", True), ("1,-2", "-2, 1", True), ("\\sqrt{2}", "1.41421356", False),
    ("x+1", "x-1", False), ("\\frac{\\pi}{2}", "\\pi/2", True), ("2\\sqrt{3}", "\\sqrt{13}", False),
]  # fmt: skip


@pytest.mark.slow
def test_what_is_open_is_compared_by_math_verify() -> None:
    for gold, answer, same in WORKED:
        assert correct(gold, answer) is same, (gold, answer)
        assert correct(gold, answer, "exact") is False


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced() -> None:
    equal.cache_clear()
    assert equal("x+1", "1+x") == (True, "")
    assert WORKER.process
    os.kill(WORKER.process.pid, signal.SIGKILL)
    WORKER.process.wait()
    assert equal("x+2", "2+x") == (True, "")  # by another one


def hang() -> None:
    """Stops a worker that has started, so that it answers nothing until it is killed."""
    assert WORKER.exchange(["1", "1"], latex.START_S)
    assert WORKER.process
    os.kill(WORKER.process.pid, signal.SIGSTOP)


@pytest.mark.slow
def test_a_question_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own limit on processor time ends it; the grade says that it was not decided."""
    hard = "(1+x)^{99999999}"
    assert harmless(hard)  # no answer like this gets there; here it is handed over regardless
    start = time.monotonic()
    found, undecided = equal("x", hard)
    assert not found
    if undecided:
        assert time.monotonic() - start < latex.WALL_S
    monkeypatch.setattr(latex, "WALL_S", 0.1)  # the other limit: whoever asks waits no longer
    hang()
    assert equal("x+4", "4+x")[1].startswith("the comparison took more than")
    hang()
    problem = TASK.from_row({"gold": "x+5"})
    text = "<think>x</think><answer>5+x</answer>"
    grade = TASK.grade(problem, text, "think", "thinking")
    assert not grade.verdict.correct and grade.parsed == "5+x"
    assert grade.verdict.reason.startswith("not decided: ")
    monkeypatch.undo()
    assert equal("x+6", "6+x") == (True, "")


@pytest.mark.slow
def test_it_works_from_any_thread() -> None:
    verdicts: list[bool] = []

    def work(number: int) -> None:
        verdicts.append(correct(f"x+{number}", f"{number}+x"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(100, 106)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert verdicts == [True] * 6


@pytest.mark.slow
def test_the_worker_ends_with_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "from mlxreflect.graders.latex import WORKER, equal\n"
        "print(equal('x+1', '1+x'), WORKER.process.pid, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.startswith("(True, '')"), done.stderr
    pid = int(done.stdout.split()[-1])
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the worker lives on")


def test_without_the_extra_two_lines_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for ask in (
        lambda: TASK.load(TaskConfig(name="math500"), "heldout", 0),
        lambda: TASK.from_row({"gold": "1"}),
        lambda: TASKS["jsonl"].from_row({"gold": "1", "answer_type": "math"}),
    ):
        with pytest.raises(UserError, match="Math-Verify") as caught:
            ask()
        assert caught.value.hint == "pip install 'mlxreflect[math]'"
