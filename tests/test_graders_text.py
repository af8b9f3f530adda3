"""Choices and free text: which answers are right, by letter, by text and by tokens."""

import string
import time
from pathlib import Path
from typing import Any

import pytest
from support.rows import write_rows

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


@pytest.mark.parametrize(
    ("text", "correct", "fine"),
    [
        ("Paris", False, False),
        ("<think>Paris</think>", False, False),
        ("<think><answer>Paris</answer></think>", False, False),
        ("<think>x</think><answer>Rome</answer><answer>Paris</answer>", True, False),
        ("<think>x</think><answer>Paris</answer><|im_end|><answer>Rome</answer>", True, False),
        ("<think>x</think><answer>Rome</answer>", False, True),
    ],
)
def test_the_block_counts_not_what_stands_elsewhere(text: str, correct: bool, fine: bool) -> None:
    problem = TASK.from_row({"gold": "Paris", "answer_type": "text"})
    verdict = TASK.grade(problem, text, "think", "thinking").verdict
    assert (verdict.correct, verdict.format_ok) == (correct, fine)
    assert not fine or verdict.reason == "expected Paris, got Rome"


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
        ("Denver Broncos", "the Denver Broncos", 1.0), ("broncos", "Denver Broncos", 2 / 3),
        ("the cat sat", "a cat sat down", 0.8), ("cat cat", "cat", 2 / 3), ("dog", "cat", 0.0),
        ("", "", 1.0), ("the", "", 1.0), ("the", "cat", 0.0), ("U.S.A.", "usa", 1.0),
    ],
)  # fmt: skip
def test_token_f1(answer: str, gold: str, f1: float) -> None:
    assert token_f1(answer, gold) == pytest.approx(f1)
    assert token_f1(gold, answer) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("kind", "text", "correct", "score"),
    [
        ("f1", "<answer>the Broncos</answer>", True, 1.0),
        ("f1", "Broncos", False, 0.0),
        ("f1", "<answer>Denver team</answer>", False, 0.5),
        ("f1", f"<answer>{'Broncos ' * 600}</answer>", False, 0.0),
        ("strict", "<answer>Rome</answer><answer>Broncos</answer>", False, 0.0),
        ("f1", "<answer>Rome</answer><answer>Broncos</answer>", True, 1.0),
        ("text", "<answer>Denver Broncos</answer>", True, None),
        ("text", "<answer>Denver</answer>", False, None),
    ],
)
def test_the_best_of_several_golds_counts(
    kind: str, text: str, correct: bool, score: float | None
) -> None:
    row = {"question": "Who won?", "gold": ["Denver Broncos", "Broncos"], "answer_type": "f1"}
    problem = TASK.from_row(row | ({"answer_type": "text"} if kind == "text" else {}))
    rules = TASK.rules["strict" if kind == "strict" else "flexible"]
    grade = rules(problem, text, "think", "direct")
    assert (grade.verdict.correct, grade.score) == (correct, score)
    assert "Broncos" not in TASK.show(problem) + str(problem.fields)


def test_a_file_of_answers_is_scored_by_tokens(tmp_path: Path) -> None:
    row = {"id": 1, "gold": {"text": ["a b", "c"]}, "response": "<answer>b d</answer>"}
    path = write_rows(tmp_path / "r.jsonl", [{**row, "answer_type": "f1"}])
    [graded] = grade_file("jsonl", path)
    assert (graded["correct"], graded["score"]) == (False, 2 / 3)  # "a" is an article
    path = write_rows(tmp_path / "r.jsonl", [{**row, "answer_type": "text"}])
    [graded] = grade_file("jsonl", path, "f1")
    assert (graded["correct"], graded["score"]) == (False, 2 / 3)


# ---- worked solutions and hints ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "golds", "left"),
    [
        ("it is 42, not 36", ["42"], "it is …, not 36"), ("so 42. And 42", ["42"], "so …. And …"),
        *((said, ["42"], said) for said in ("142", "4.42", "42.5", "42,000", "x42")),
        ("a (b+ c", ["(b+"], "a … c"), ("nothing", [None, " "], "nothing"),
        ("it is B, not a lion", ["B", "a lion"], "it is …, not …"),
    ],
)  # fmt: skip
def test_the_expected_answer_is_taken_out_of_hints(said: str, golds: Any, left: str) -> None:
    assert withheld(said, *golds) == left


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


@pytest.mark.parametrize(
    ("same", "pairs"),
    [
        (True, [("(1,2)", "(1, 2)"), ("1,234", "1234"), ("0.5", "1/2"), ("Paris.", "paris"),
                (" 42 ", "42.0")]),
        (False, [("45", "44"), ("Rome", "Paris"), ("", "42"), ("17 or 18", "18"),
                 ("x", "y" * 10**6)]),
    ],
)  # fmt: skip
def test_answers_that_agree(same: bool, pairs: list[tuple[str, str]]) -> None:
    assert [agrees(*both) for both in pairs] == [same] * len(pairs)
