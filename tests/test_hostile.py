"""No text makes a grader raise, hang or pass: a megabyte of anything, in any thread."""

import threading
import time
from typing import Any

import pytest

from mlxreflect.graders.base import Grade
from mlxreflect.tasks import TASKS

SIZE = 1_000_000
SMALLER = {"arithmetic": 50_000, "number": 50_000, "letter": 50_000}  # share code with others
HANG_S = 20.0  # a guard against hanging only; one grade takes hundredths of a second
PIECES = """
\\boxed{ | \\boxed{} | \\boxed{1 | <answer> | </answer> | <answer></answer> | <answer>? | 9 | 0
1, | 1,234, | , | - | -- | -1 | - 1 | + | . | .. | 1. | 1.1. | / | // | 1/ | 1/0 | 1 / | % | $
$- | answer is | ANSWER IS | answer is - | answer is answer | final answer is $ | # | ####
#### - | ####x | Question: | Question: a | Question:</think> | <think> | </think>
<think></think> | <|im_end| | </s | { | } | {} | {{}} | {,} | 1{,} | \\frac{ | \\frac{1}{
\\frac{1}{2} | \\, | 1\\, | \\text{ | ( | ) | (1 | 1e | 1e9 | e9 | 1E+ | _1 | 1_ | = | 1= | 1+1=
1 + | * | ** | 9**9 | 9**9**9**9 | A) | (A | A or | A, B | step 1: | step 1: 1 + 1 = | x | nan
inf | None | __import__('os') | &lt; | <| | <script>
""".replace("\n", " | ").split(" | ")
ODD = [
    *("\x00", "\x01", "\n", "\r", " ", "\t", "\x1c", "\u2028", "\u2009", "1\u2009", "\u200b"),
    *("\ud800", "\udfff", "\u202e", "\u0301", "a\u0301", "\uffff", "\u2212", "😀"),
    *("٣", "５", "५", "²", "½", "五", "İ", "ß", "ſ"),
]
UNITS = [piece for piece in PIECES if piece] + ODD
WRAPS = {"bare": ("", ""), "answered": ("<think>a</think><answer>", "</answer>")}
GRADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gsm8k": ("gsm8k", {"gold": 4242}),
    "arithmetic": ("arithmetic", {"gold": -4242, "expression": "1 - 4243"}),
    "number": ("jsonl", {"gold": "42.42", "answer_type": "number"}),
    "text": ("jsonl", {"gold": "forty-two", "answer_type": "text"}),
    "choice": ("jsonl", {"gold": "D", "answer_type": "choice", "choices": ["k", "l", "m", "n"]}),
    "letter": ("jsonl", {"gold": "D", "answer_type": "choice"}),
    "countdown": ("countdown", {"numbers": [3, 4, 5], "target": 35}),
}
MIXED = [
    "<answer>" * 3 + "1" + "</answer>",
    "<answer></think></answer>",
    "</answer><answer>",
    "<answer>" + "{" * 1000 + "}" * 1000 + "</answer>",
    "\\boxed{" * 500 + "7" + "}" * 500,
    "#### " + "9" * 5000,
    "answer is " + "9" * 5000,
    "<answer>" + "9" * 41 + "</answer>",
    "<answer>1" + ",000" * 5000 + "</answer>",
    "<answer>1e999999999</answer>",
    "<answer>1/" + "0" * 40 + "</answer>",
    "<answer>0x1092</answer>",
    "<answer>\u202e24.24\u202c</answer>",
    "<answer>４２４２</answer>",
    "<answer>\ud800\udc00</answer>",
    "<answer>9**9**9**9</answer>",
    "<answer>(lambda: 0)()</answer>",
    "<answer>" + "(" * 5000 + "3" + ")" * 5000 + "</answer>",
]


def test_there_are_enough_hostile_texts() -> None:
    assert len({*UNITS}) >= 90


def megabyte(unit: str, size: int = SIZE) -> str:
    return (unit * (size // len(unit) + 1))[:size]


def grade(name: str, text: str, tags: str = "think") -> Grade:
    task, row = GRADERS[name]
    return TASKS[task].grade(TASKS[task].from_row(row), text, tags, "thinking")


def in_thread(work: Any) -> list[str]:
    """What went wrong in a worker thread, where neither signals nor alarms are at hand."""
    problems: list[str] = []
    thread = threading.Thread(target=work, args=(problems,), daemon=True)
    thread.start()
    thread.join(HANG_S)
    return ["it hangs"] if thread.is_alive() else problems


@pytest.mark.slow
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", GRADERS)
def test_a_megabyte_of_anything_is_wrong(name: str, wrap: str) -> None:
    before, after = WRAPS[wrap]
    slowest = (0.0, "")

    def work(problems: list[str]) -> None:
        nonlocal slowest
        for unit in UNITS:
            text = before + megabyte(unit, SMALLER.get(name, SIZE)) + after
            start = time.perf_counter()
            found = grade(name, text)
            slowest = max(slowest, (time.perf_counter() - start, unit))
            if found.verdict.correct or len(found.parsed or "") > 5000:
                problems.append(f"{unit!r}: {found}"[:200])

    assert in_thread(work) == []
    print(f"{name} {wrap}: slowest {slowest[0] * 1000:.0f} ms on {slowest[1]!r}")


@pytest.mark.parametrize("name", GRADERS)
@pytest.mark.parametrize("text", MIXED + UNITS, ids=lambda text: repr(text)[:40])
def test_short_hostile_texts_are_wrong(name: str, text: str) -> None:
    for tags in ("think", "reasoning", "preflexor"):
        found = grade(name, text, tags)
        assert not found.verdict.correct
        assert isinstance(found.verdict.reason, str) and found.verdict.reason


@pytest.mark.parametrize("name", ["gsm8k", "countdown"])
def test_the_answer_is_found_after_a_megabyte(name: str) -> None:
    right = {"gsm8k": "4242", "countdown": "(3 + 4) * 5"}[name]
    for unit in ("9", "(", "<answer>", "\\boxed{", "answer is ", "#### ", "Question:"):
        text = f"<think>{megabyte(unit)}</think>\n<answer>{right}</answer>"
        assert grade(name, text).verdict.correct, unit


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_a_megabyte_of_thought_is_reviewed(unit: str) -> None:
    solver = TASKS["arithmetic"].solver
    assert solver
    problem = TASKS["arithmetic"].from_row({"gold": 7, "expression": "1 + 2 * 3"})
    review = solver.review(problem, megabyte(unit), True)
    assert review.fault and len(review.fault) < 1000
    assert all("<" not in line for line in review.kept)
