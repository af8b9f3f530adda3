"""Sets of grading rules: named in every task, the headline first, lm-eval's as lm-eval has them."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import make_problem
from mlxreflect.evaluation.grade import grade_file
from mlxreflect.graders.number import flexible_extract, response_of, strict_match
from mlxreflect.graders.text import token_f1
from mlxreflect.tasks import TASKS, find_rules
from mlxreflect.tasks.jsonl import KINDS

GSM8K = TASKS["gsm8k"]


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


def verdict(name: str, text: str, gold: Any = 18, style: str = "thinking") -> tuple[bool, bool]:
    problem = GSM8K.from_row({"gold": gold})
    found = GSM8K.rules[name](problem, text, "think", style).verdict
    return found.correct, found.format_ok


def test_strict_is_flexible_in_the_right_format() -> None:
    kept, loose = "<think>x</think><answer>18</answer>", "The answer is 18."
    assert verdict("flexible", kept) == verdict("strict", kept) == (True, True)
    assert verdict("flexible", loose) == (True, False)
    assert verdict("strict", loose) == (False, False)
    assert verdict("strict", "<think>x</think><answer>17</answer>") == (False, True)


@pytest.mark.parametrize(
    ("text", "gold", "strict", "flexible"),
    [
        ("so 9 + 9 = 18\n#### 18", 18, True, True),
        ("#### 18\nQuestion: more?\n#### 20", 18, True, True),  # generation stops there
        ("#### 18</s> 20", 18, True, True),
        ("It is 18.", 18, False, True),
        ("It is 18 of 20.", 18, False, False),
        ("#### 17 and then #### 18", 18, False, True),  # the first one, the last one
        ("#### $18", 18, False, True),
        ("####18", 18, False, True),
        ("#### 1,234", 1234, True, True),
        ("#### 18.00", 18, False, False),  # compared as texts
        ("#### 18.", 18, True, True),
        ("It costs $18.", 18, False, True),
        ("Question: #### 18", 18, False, False),
        ("-18", 18, False, False),
        ("", 18, False, False),
        ("<think>20</think><answer>18</answer>", 18, False, True),
    ],
)
def test_lm_eval_scores_of_gsm8k(text: str, gold: int, strict: bool, flexible: bool) -> None:
    assert verdict("lm-eval-strict", text, gold)[0] is strict
    assert verdict("lm-eval-flexible", text, gold)[0] is flexible
    assert verdict("lm-eval-flexible", text, gold)[1] is ("#### " in response_of(text) and
                                                          "$" not in text)  # fmt: skip


def test_lm_eval_compares_with_the_worked_answer_of_the_data() -> None:
    problem = make_problem("gsm8k", {"question": "?"}, "5", {"solution": "so\n#### 5.00"})
    grade = GSM8K.rules["lm-eval-strict"]
    assert grade(problem, "#### 5.00", "think", "thinking").verdict.correct
    assert not grade(problem, "#### 5", "think", "thinking").verdict.correct  # as lm-eval says
    assert GSM8K.grade(problem, "#### 5", "think", "thinking").verdict.correct


ALPHABET = "0123456789,.$-# \nx"


@pytest.mark.slow
@given(st.text(ALPHABET, max_size=60) | st.lists(
    st.sampled_from(["#### ", "18", "-", "$", "1,234", ".5", ". ", "5.", "\n", "####", "--", "$$"])
).map("".join))  # fmt: skip
@settings(max_examples=500)
def test_the_filters_are_those_of_lm_eval(text: str) -> None:
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    theirs = extraction.RegexFilter(r"#### (\-?[0-9\.\,]+)")
    assert [[strict_match(text)]] == list(theirs.apply([[text]], [{}]))
    last = extraction.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    assert [[flexible_extract(text)]] == list(last.apply([[text]], [{}]))


@pytest.mark.slow
def test_the_patterns_are_those_of_the_installed_task() -> None:
    lm_eval = pytest.importorskip("lm_eval")
    spec = (Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text()
    patterns = re.findall(r'regex_pattern: "(.+)"', spec)
    assert patterns == [r"#### (\\-?[0-9\\.\\,]+)", "(-?[$0-9.,]{2,})|(-?[0-9]+)"]
    assert re.findall(r'^    - "(.+)"', spec, re.M)[:3] == ["Question:", "</s>", "<|im_end|>"]
    ignored = re.findall(r'^      - "(.+)"', spec, re.M)
    assert ignored == [",", r"\\$", "(?s).*#### ", r"\\.$"]


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
