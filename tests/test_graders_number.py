"""Numbers: how they and a response's answer are read, exactly; and lm-eval's scores of GSM8K."""

import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.records import Verdict, make_problem
from mlxreflect.graders.number import (
    extract_answer,
    flexible_extract,
    last_number,
    response_of,
    strict_match,
)
from mlxreflect.graders.numerals import read_gold, read_number, show_number
from mlxreflect.tasks import TASKS

TASK = TASKS["gsm8k"]
DATA = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"


def pairs_of(table: dict[Any, list[Any]]) -> list[tuple[Any, Any]]:
    """(text, value) of a table that lists the texts of each value."""
    return [(text, value) for value, texts in table.items() for text in texts]


NUMBERS: dict[Fraction | int | None, list[str]] = {
    18: ["18", "$18", "\\$18", "18.", "18 dollars", "$18 per day", "18 (eighteen)", "x = 18",
         "9 * 2 = 18", "18 = x", "**18**"],
    0: ["0", "-0"], 7: ["007"], 50: ["50%", "50\\%"], 3: ["6/2"],
    -5: ["\u22125", "-$5", "$-5", "- 5", "x: - 5", "negative 5"],
    1000: ["1e3"], 10**30: ["1e30"],
    1_450_000: ["1,450,000"], 1234: ["1{,}234", "1\\,234", "1\u202f234"],
    10**40 - 1: ["9" * 40],
    Fraction(2469, 2): ["$1,234.50", "1,234.50"], Fraction(1, 2): [".5"], Fraction(-1, 2): ["-.5"],
    Fraction(3, 4): ["3/4", "3 / 4", "\\frac{3}{4}"], Fraction(-3, 4): ["-3/4"],
    Fraction(11, 2): ["5½", "5 ½", "5 and a half"],
    Fraction(7, 2): ["3 1/2", "3\\frac{1}{2}"], Fraction(-7, 2): ["-3 1/2"],
    Fraction(1, 4): ["2.5E-1"], Fraction(1, 10): ["0.1"],
    None: ["17 or 18", "5-10", "9 * 2", "1/0", "1/2/3", "12/25/2023", "1.2.3", "1,23", "1_000",
           "1.2.3/4", "3 2/2",
           "5²", "½½", "½5", "５", "٣", "1٣", "１0", "9" * 41, "1e31", "x2", "eighteen",
           "", "NaN", "inf"],
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), pairs_of(NUMBERS))
def test_read_number(text: str, value: Fraction | None) -> None:
    assert read_number(text) == value


@given(st.fractions(max_denominator=10**6).filter(lambda f: abs(f) < 10**20))
def test_a_shown_number_reads_back(value: Fraction) -> None:
    assert read_number(show_number(value)) == value


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_ratios_are_exact(top: int, bottom: int) -> None:
    assert read_number(f"{top}/{bottom}") == Fraction(top, bottom)


@given(st.text(max_size=300))
@settings(max_examples=300)
def test_any_text_is_read_without_an_error(text: str) -> None:
    for value in (read_number(text), last_number(text), extract_answer(text)):
        assert value is None or isinstance(value, Fraction)


def judge_number(whole: int, digits: str, dress: str) -> None:
    """A number as a person would write it is read as the rational that its digits are."""
    digits = digits if whole else ""
    value = Fraction(f"{whole}.{digits}") if digits else Fraction(whole)  # Python's own reading
    written = f"{whole:,}" + (f".{digits}" if digits else "")
    text = dress.replace("@", written)
    right, wrong = (
        TASK.from_row({"gold": f"{g.numerator}/{g.denominator}"})
        for g in (value, value + Fraction(1, 10**12))
    )
    assert TASK.grade(right, text, "think", "thinking").verdict.correct, text
    assert not TASK.grade(wrong, text, "think", "thinking").verdict.correct, text


DRESSES = st.sampled_from([
    "#### @", "<think>1 + 1</think><answer>@</answer>", "So it is \\boxed{@}.", "The answer is @.",
    "<answer>$@</answer>", "<answer>**@**</answer>", "<answer>x = @</answer>", "2 + 2 gives @",
    "\\boxed{\\text{@ dollars}}", "<answer>@ eggs.</answer>", "#### $@.", "The answer is: @ a day",
])  # fmt: skip
WHOLES = st.integers(-(10**15), 10**15)
DECIMALS = st.text("0123456789", max_size=9)


@pytest.mark.parametrize("examples", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_numbers_are_exact(examples: int) -> None:
    settings(max_examples=examples)(given(WHOLES, DECIMALS, DRESSES)(judge_number))()


ANSWERS: dict[int | None, list[str]] = {
    18: [
        "She makes 9 * 2 = 18 dollars.\n#### 18", "#### $18 per day", "####18", "#### 18 km",
        "#### 18 kids", "#### 18.\n- 5 eggs a day", "#### 17\nno wait\n#### 18",
        "#### 18\nThat answer is correct.", "#### Step 3: add\nThat makes 18",
        "#### 2. Add the eggs\nThat makes 18", "#### In 3 days\nThat makes 18",
        "\\boxed{18}", "\\boxed{\\text{18 eggs}} in 3 days", "#### 17 \\boxed{18}",
        "\\boxed{17} #### 18", "<answer>18</answer>", "<answer>17</answer><answer> $18 </answer>",
        "<answer>The answer is 18</answer>", "<answer>9 * 2 = 18</answer> over 3 days",
        "it is 18 <answer></answer>", "18\n<answer>", "The answer is 18, as 3 + 4 = 7.",
        "THE ANSWER IS: **18**!", "the answer is 9 eggs * $2 = $18.",
        "the answer is" + " " * 199 + "18 of 20",  # 200 characters are as far as it looks
        "So it is 9 * 2 = $<<9*2=18>>18 a day", "9 + 9 = <<9+9=18>>18 eggs are not broken",
        "Is the answer is 17? #### 18", "#### 17, but the answer is 18",
        "The answer is not 17, it is 18", "The answer is 18. The answer is not 17",
        "The answer is nothing but 18", "first 3, then 18.", "from 20-18", "答案是18个",
        "18<|im_end|>\n20", "18</s>20", "18<|endoftext|>20", "18<|eot_id|>20", "18<end_of_turn>20",
        "The answer is 18\n\nQuestion: Tom has 5 eggs. The answer is 20",
        "Question: how many?\nAnswer: 18", "Question: how many?\nAnswer: 18\nQuestion: and 20?",
        "<think>Question: what is 9 * 2? 20</think><answer>18</answer>",
        "<think>#### 20</think> 18", "20</think>18",
    ],
    -18: ["it fell to -18", "The answer is negative 18"], -5: ["#### -5"], 1234: ["#### 1,234"],
    17: ["\\boxed{17} and then \\boxed{18"], 20: ["the answer is" + " " * 200 + "18 of 20"],
    70_000: ["That makes 70 000"],
    18_000: [
        "#### 18 000", "#### 18 000 apples", "#### 18 thousand",
        "#### 18 Thousand", "<answer>18k</answer>", "so \\boxed{18K}",
    ],
    1_500_000: ["The answer is $1.5 million."],
    None: [
        "<answer>17 or 18</answer>", "<answer>I do not know</answer> 18", "nothing here", "",
        "the answer is 16 - 3 - 4", "<think>20</think> nothing", "the version 1.2.3",
        "That makes 1_000", "That makes 1\u200b8",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), pairs_of(ANSWERS))
def test_extract_answer(text: str, value: int | None) -> None:
    assert extract_answer(text) == value


def test_the_tag_set_decides_where_a_thought_ends() -> None:
    text = "20</reasoning>#### 18</think> no number"
    assert extract_answer(text, "reasoning") == 18
    assert extract_answer(text, "think") is None


def test_no_character_moves_the_phrase() -> None:
    every = "".join(chr(c) for c in range(0x110000) if len(chr(c).lower()) != 1)
    assert extract_answer(every * 50 + "answer is 18 of 20") == 18


@pytest.mark.parametrize(
    ("text", "parsed", "correct", "fine", "reason"),
    [
        ("<think>9 * 2</think><answer>18</answer>", "18", True, True, ""),
        ("<think>x</think><answer>20</answer>", "20", False, True, "expected 18, got 20"),
        ("<think>x</think><answer>many</answer>", None, False, True, "no number found"),
        ("The answer is 18.", "18", True, False, "0 <think>…</think> blocks instead of one"),
        ("#### 18.000", "18", True, False, "0 <think>…</think> blocks instead of one"),
        ("#### 18.0000001", "18.0000001", False, False, "expected 18, got 18.0000001"),
    ],
)
def test_format_and_correctness_are_judged_apart(
    text: str, parsed: str | None, correct: bool, fine: bool, reason: str
) -> None:
    problem = TASK.from_row({"gold": "18"})
    grade = TASK.grade(problem, text, "think", "thinking")
    assert (grade.parsed, grade.verdict) == (parsed, Verdict(correct, fine, reason))
    strict = TASK.rules["strict"](problem, text, "think", "thinking")
    assert strict == replace(grade, verdict=replace(grade.verdict, correct=correct and fine))


GOLDS: dict[str | None, list[object]] = {
    "6706": ["6706", "6,706", 6706, 6706.0, "6706.0"], "0": [0, "0"], "-3": [-3], "0.1": [0.1],
    "0." + "0" * 29 + "1": [1e-30], str(10**40 - 1): [10**40 - 1], "0.75": ["3/4"], "1/3": ["1/3"],
    "-3.5": ["$-\\frac{7}{2}$"],
    "18": ["$18 per day", "18 dollars per hour", "She sells 9.\n#### 18"],
    None: [True, None, [18], float("nan"), 10**5000, "", "####", "three", "she had 3 + 4 = 7",
           "see what was said on page 5"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("question", "text", "correct"),
    [("How many dozen eggs?", "#### 7 dozen", True), ("How many eggs?", "#### 7 dozen", False),
     ("How many dozens of eggs?", "84 eggs are 7 dozens", True),
     ("How many thousand dollars?", "<answer>7 thousand</answer>", True)],
)  # fmt: skip
def test_what_a_question_counts_in_is_a_unit(question: str, text: str, correct: bool) -> None:
    problem = replace(TASK.from_row({"gold": 7}), fields={"question": question})
    assert TASK.grade(problem, text, "think", "direct").verdict.correct is correct


@pytest.mark.parametrize("gold", GOLDS)
def test_read_gold(gold: str | None) -> None:
    assert [read_gold(raw) for raw in GOLDS[gold]] == [gold] * len(GOLDS[gold])


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the GSM8K rows are not there")
def test_every_answer_of_gsm8k_is_right_about_itself_and_wrong_off_by_one() -> None:
    problems = TASK.load(TaskConfig(name="gsm8k", source=str(DATA)), "all", 0)
    lines = (DATA / "test.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert len(problems) == len(rows) == 1319
    unmarked = 0
    for problem, row in zip(problems, rows, strict=True):
        body = row["answer"].partition("####")[0]
        unmarked += TASK.grade(problem, body, "think", "thinking").verdict.correct
        gold = int(row["answer"].split("####")[1].replace(",", ""))
        assert problem.gold == str(gold)
        assert problem.fields == {"question": row["question"]}
        assert problem.meta["solution"] == row["answer"]
        thought = f"<think>{row['answer']}</think>\n"
        for text, right in (
            (row["answer"], True), (row["answer"].replace("#### ", "The answer is $"), True),
            (f"{thought}<answer>{gold:,}</answer>", True), (f"#### {gold + 1}", False),
            (f"{thought}<answer>{gold - 1}</answer>", False), (f"\\boxed{{{gold}.5}}", False),
        ):  # fmt: skip
            assert TASK.grade(problem, text, "think", "thinking").verdict.correct == right, text
    assert unmarked > 0.95 * 1319  # the last number of a worked solution, <<9*2=18>> aside


# ---- lm-eval's scores ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gold", "strict", "flexible"),
    [
        ("so 9 + 9 = 18\n#### 18", 18, True, True), ("#### 18</s> 20", 18, True, True),
        ("#### 18\nQuestion: more?\n#### 20", 18, True, True),  # generation stops there
        ("It is 18.", 18, False, True), ("It is 18 of 20.", 18, False, False),
        ("#### 17 and then #### 18", 18, False, True),  # the first one, the last one
        ("#### $18", 18, False, True), ("####18", 18, False, True), ("#### 18.", 18, True, True),
        ("#### 1,234", 1234, True, True), ("#### 18.00", 18, False, False),  # compared as texts
        ("It costs $18.", 18, False, True), ("Question: #### 18", 18, False, False),
        ("-18", 18, False, False), ("", 18, False, False),
        ("<think>20</think><answer>18</answer>", 18, False, True),
    ],
)  # fmt: skip
def test_lm_eval_scores_of_gsm8k(text: str, gold: int, strict: bool, flexible: bool) -> None:
    obeyed = "#### " in response_of(text) and "$" not in text
    for name, right in (("lm-eval-strict", strict), ("lm-eval-flexible", flexible)):
        verdict = TASK.rules[name](TASK.from_row({"gold": gold}), text, "think", "thinking").verdict
        assert (verdict.correct, verdict.format_ok) == (right, obeyed)


def test_lm_eval_compares_with_the_worked_answer_of_the_data() -> None:
    problem = make_problem("gsm8k", {"question": "?"}, "5", {"solution": "so\n#### 5.00"})
    for rules, right in (("lm-eval-strict", "5.00"), ("flexible", "5 5.00")):
        for text in ("5", "5.00"):
            verdict = TASK.rules[rules](problem, f"#### {text}", "think", "thinking").verdict
            assert verdict.correct is (text in right.split())


@pytest.mark.slow
@given(st.text("0123456789,.$-# \nx", max_size=60) | st.lists(
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
