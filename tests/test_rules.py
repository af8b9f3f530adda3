"""Sets of grading rules: named in every task, the headline first, lm-eval's as lm-eval has them."""

from pathlib import Path

import pytest

from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.grade import grade_file
from mlxreflect.graders.text import token_f1
from mlxreflect.tasks import TASKS, find_rules
from mlxreflect.tasks.jsonl import KINDS


@pytest.mark.parametrize("name", TASKS)
def test_the_first_rules_are_the_headline(name: str) -> None:
    task = TASKS[name]
    assert next(iter(task.rules.values())) is task.grade
    assert find_rules(task, "") == (next(iter(task.rules)), task.grade)
    for rules in task.rules:
        assert find_rules(task, rules) == (rules, task.rules[rules])
    with pytest.raises(UserError) as caught:
        find_rules(task, "flexibel")
    assert all(rules in caught.value.message for rules in task.rules)


def test_rules_of_another_kind_of_answer_are_refused() -> None:
    assert find_rules(TASKS["jsonl"], "lm-eval-strict", "number")[0] == "lm-eval-strict"
    with pytest.raises(UserError, match="no rules 'lm-eval-strict'; the task jsonl with answers"):
        find_rules(TASKS["jsonl"], "lm-eval-strict", "choice")
    with pytest.raises(UserError, match="exact, strict, subset, tinyzero") as caught:
        find_rules(TASKS["countdown"], "tinyzer")
    assert caught.value.hint == "did you mean tinyzero?"
    for kind, rules in KINDS.items():
        assert next(iter(rules.rules)) == "flexible", kind


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
    [row] = grade_file("jsonl", path, style="direct")
    assert (row["correct"], row["score"]) == (False, 2 / 3)  # "a" is an article


def test_a_text_can_be_scored_by_tokens_too() -> None:
    problem = TASKS["jsonl"].from_row({"gold": "The Denver Broncos", "answer_type": "text"})
    text = "<answer>Denver Broncos</answer>"
    assert not TASKS["jsonl"].grade(problem, text, "think", "direct").verdict.correct
    found = TASKS["jsonl"].rules["f1"](problem, text, "think", "direct")
    assert (found.verdict.correct, found.score) == (True, 1.0)
