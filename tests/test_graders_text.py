"""Choices and free text: which answers are right, by letter, by text and by tokens."""

import string
import time
from pathlib import Path
from typing import Any

import pytest

from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.evaluate import grade_file
from mlxreflect.graders.text import agrees, stated, token_f1, withheld
from mlxreflect.tasks import TASKS

TASK = TASKS["jsonl"]
CHOICES = ["London", "Paris", "Rome, the old one"]


def correct(row: dict[str, Any], answer: str) -> bool:
    text = f"<think>x</think>\n<answer>{answer}</answer>"
    return TASK.grade(TASK.from_row(row), text, "think", "thinking").verdict.correct


# gold: what is right, what is wrong
NUMBERS: list[tuple[Any, list[str], list[str]]] = [
    (0, ["0", "-0.0"], []), ("0", [], ["1"]), (1234, ["$1,234.00"], []), ("1,234", ["1234"], []),
    (0.1, ["1/10"], ["0.1000001"]), ("3/4", ["0.75"], []), ("worked out: #### 18", ["18 eggs"], []),
    (70000, [], ["70001"]),
]  # fmt: skip
TEXTS: list[tuple[Any, list[str], list[str]]] = [
    ("Paris", ["paris", " PARIS. ", '"Paris"'], ["Paris or London", "Pari"]),
    ("New York", ["new\n  york"], []), ("Paris, France", ["Paris , France!"], []),
    ("it’s", ["it's"], []), ("café", ["cafe\u0301"], ["cafe"]), ("Straße", ["STRASSE"], []),
    ("C++", [], ["C"]), ("-5", [], ["5"]), ("3.5", [], ["35"]), (7, ["7"], []),
    ("?", ["?"], ["!"]), ("yes", [], [""]),
]  # fmt: skip
LETTERS: list[tuple[Any, list[str], list[str]]] = [
    ("B",
     ["B", "b", "(B)", "B.", "B)", "B:", "**B**", "\\boxed{B}", "\\boxed{\\text{B}}", "B) Paris",
      "(b) paris.", "B. the capital of France", "Paris", "paris.", "The answer is B", "Option B"],
     ["A", "A) Paris", "B) London", "A or B", "A) or B)", "A) B) C)", "B, C", "B) C)", "D",
      "Berlin", "Bees", "Ｂ", "Paris or London", ""]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "right"),
    [(kind, gold, answer, right)
     for kind, table in (("number", NUMBERS), ("text", TEXTS), ("choice", LETTERS))
     for gold, *sides in table
     for right, answers in zip((True, False), sides, strict=True) for answer in answers],
)  # fmt: skip
def test_answers(kind: str, gold: Any, answer: str, right: bool) -> None:
    options = {"choices": CHOICES} if kind == "choice" else {}
    assert correct({"gold": gold, "answer_type": kind, **options}, answer) is right
    if kind == "number":  # the default
        assert correct({"gold": gold}, answer) is right


LABELS = {"label": ["1", "2"], "text": ["London", "Paris"]}  # ARC's odd rows


@pytest.mark.parametrize(
    ("gold", "options"),
    [
        *((gold, CHOICES) for gold in ("B", "b", "(B)", "B) Paris", "Paris", 1)),  # MMLU's index
        *((gold, {"A": "London", "B": "Paris"}) for gold in ("B", "Paris")),
        *((gold, LABELS) for gold in ("2", 2)),
        ("B", {"text": ["London", "Paris"], "label": ["A", "B"]}),
        ("B", [{"label": "A", "text": "London"}, {"label": "B", "text": "Paris"}]),
        ("B", [{"key": "A", "value": "London"}, {"key": "B", "value": "Paris"}]),
        (7, [3, 7]), (1, ["0", "7"]), ("B", ["B", "A"]), ("B", None), ("(b)", []),
    ],
)  # fmt: skip
def test_every_way_of_writing_choices_and_their_answer(gold: Any, options: Any) -> None:
    row = {"question": "?", "gold": gold, "answer_type": "choice", "options": options}
    assert TASK.from_row(row).gold == "B"


@pytest.mark.parametrize(
    ("gold", "options"),
    [
        *((gold, CHOICES) for gold in ("D", 3, -1, "Berlin", True, None)),
        *(("A", options) for options in (["only one"], "London, Paris", ["", "b"], [None, "b"])),
        ("A", [str(i) for i in range(27)]), ("Paris", None),
    ],
)  # fmt: skip
def test_an_answer_that_names_no_choice(gold: Any, options: Any) -> None:
    with pytest.raises(UserError):
        TASK.from_row({"gold": gold, "answer_type": "choice", "choices": options})


def test_the_block_counts_not_what_stands_elsewhere() -> None:
    problem = TASK.from_row({"gold": "Paris", "answer_type": "text"})
    for text in ("Paris", "<think>Paris</think>", "<think><answer>Paris</answer></think>"):
        assert not TASK.grade(problem, text, "think", "thinking").verdict.correct
    last = "<think>x</think><answer>Rome</answer><answer>Paris</answer>"
    verdict = TASK.grade(problem, last, "think", "thinking").verdict
    assert verdict.correct and not verdict.format_ok
    ended = "<think>x</think><answer>Paris</answer><|im_end|><answer>Rome</answer>"
    assert TASK.grade(problem, ended, "think", "thinking").verdict.correct
    wrong = TASK.grade(problem, "<think>x</think><answer>Rome</answer>", "think", "thinking")
    assert wrong.verdict.reason == "expected Paris, got Rome"
    assert TASK.grade(problem, "<answer>paris</answer>", "think", "direct").verdict.passed


def test_marks_that_would_be_sorted_for_seconds() -> None:
    options = {letter: f"option {letter}" for letter in string.ascii_uppercase}
    row = {"answer_type": "choice", "gold": "B", "choices": options}
    problem = TASK.from_row(row)
    text = f"<answer>{1900 * chr(0x345)}{1900 * chr(0x334)}</answer>"
    start = time.thread_time()
    assert TASK.grade(problem, text, "think", "direct").parsed is None
    assert time.thread_time() - start < 0.5  # 1.6 s where each option had the marks sorted anew
    assert TASK.grade(problem, "The answer is B!", "think", "direct").parsed == "B"


# ---- free text by tokens -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("Denver Broncos", "the Denver Broncos", 1.0),
        ("broncos", "Denver Broncos", 2 / 3),
        ("the cat sat", "a cat sat down", 0.8),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("the", "", 1.0),
        ("the", "cat", 0.0),
        ("U.S.A.", "usa", 1.0),
    ],
)
def test_token_f1(answer: str, gold: str, f1: float) -> None:
    assert token_f1(answer, gold) == pytest.approx(f1)
    assert token_f1(gold, answer) == pytest.approx(f1)


def test_the_best_of_several_golds_counts(tmp_path: Path) -> None:
    problem = TASKS["jsonl"].from_row(
        {"question": "Who won?", "gold": ["Denver Broncos", "Broncos"], "answer_type": "f1"}
    )
    grade = TASKS["jsonl"].grade(problem, "<answer>the Broncos</answer>", "think", "direct")
    assert (grade.verdict.correct, grade.score) == (True, 1.0)
    part = TASKS["jsonl"].grade(problem, "<answer>Denver team</answer>", "think", "direct")
    assert (part.verdict.correct, part.score) == (False, 0.5)
    none = TASKS["jsonl"].grade(problem, "Broncos", "think", "direct")
    assert (none.verdict.correct, none.score, none.parsed) == (False, 0.0, None)
    assert "Broncos" not in TASKS["jsonl"].show(problem) + str(problem.fields)
    strict = TASKS["jsonl"].rules["strict"]
    out_of_format = "<answer>Rome</answer><answer>Broncos</answer>"
    assert TASKS["jsonl"].grade(problem, out_of_format, "think", "direct").verdict.correct
    scored = strict(problem, out_of_format, "think", "direct")
    assert (scored.verdict.correct, scored.score) == (False, 0.0)
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": 1, "gold": {"text": ["a b", "c"]}, "answer_type": "f1", '
                    '"response": "<answer>b d</answer>"}\n')  # fmt: skip
    [row] = grade_file("jsonl", path)
    assert (row["correct"], row["score"]) == (False, 2 / 3)  # "a" is an article


def test_a_text_can_be_scored_by_tokens_too() -> None:
    problem = TASKS["jsonl"].from_row({"gold": "The Denver Broncos", "answer_type": "text"})
    text = "<answer>Denver Broncos</answer>"
    assert not TASKS["jsonl"].grade(problem, text, "think", "direct").verdict.correct
    found = TASKS["jsonl"].rules["f1"](problem, text, "think", "direct")
    assert (found.verdict.correct, found.score) == (True, 1.0)


# ---- worked solutions and hints ------------------------------------------------------------------


def test_the_expected_answer_is_taken_out_of_hints() -> None:
    assert withheld("it is 42, not 36", "42") == "it is …, not 36"
    assert withheld("142 and 4.42 and 42.5 and 42,000 and x42", "42") == (
        "142 and 4.42 and 42.5 and 42,000 and x42"
    )
    assert withheld("so 42. And 42", "42") == "so …. And …"
    assert withheld("a (b+ c", "(b+") == "a … c"
    assert withheld("nothing is known", None) == withheld("nothing is known", " ")
    assert withheld("it is B, not a lion", "B", "a lion") == "it is …, not …"


@pytest.mark.parametrize(
    ("gold", "text"),
    [("72", "72.0"), ("72", "72.00"), ("1234", "1,234"), ("1,234", "1234"), ("72", "072"),
     ("Paris", "PARIS"), ("paris", "Paris"), ("New York", "new  york"), ("1/2", "0.5"),
     ("1/2", r"\frac{1}{2}"), ("0.5", "1/2"), ("-5", "\u22125"), ("72", "\uff17\uff12")],
)  # fmt: skip
def test_the_expected_answer_is_taken_out_however_it_is_written(gold: str, text: str) -> None:
    said = withheld(f"it should be {text} in the end", gold)
    assert text not in said and "…" in said and said.endswith("in the end")
    assert not any(character.isdigit() for character in said)


def test_the_answer_that_a_worked_solution_gives() -> None:
    assert stated(r"no \boxed{1}, \boxed{\text{Ann}}") == "Ann"
    assert stated(r"<answer> 2 </answer> not \boxed{1}") == "2"
    assert stated("the answer is 7") is None


def test_answers_that_agree() -> None:
    same = [
        ("(1,2)", "(1, 2)"),
        ("1,234", "1234"),
        ("0.5", "1/2"),
        ("Paris.", "paris"),
        (" 42 ", "42.0"),
    ]
    assert all(agrees(*both) for both in same)
    other = [("45", "44"), ("Rome", "Paris"), ("", "42"), ("17 or 18", "18"), ("x", "y" * 10**6)]
    assert not any(agrees(*both) for both in other)
