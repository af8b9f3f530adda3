"""Numbers: how they and a response's answer are read, exactly; and lm-eval's scores of GSM8K."""

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.records import make_problem
from mlxreflect.graders.number import (
    extract_answer,
    flexible_extract,
    last_number,
    read_gold,
    read_number,
    response_of,
    show_number,
    strict_match,
)
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
    -5: ["\u22125", "-$5", "$-5", "- 5"],
    1000: ["1e3"], 1_450_000: ["1,450,000"], 1234: ["1{,}234", "1\\,234", "1\u202f234"],
    10**40 - 1: ["9" * 40],
    Fraction(2469, 2): ["$1,234.50", "1,234.50"], Fraction(1, 2): [".5"], Fraction(-1, 2): ["-.5"],
    Fraction(3, 4): ["3/4", "3 / 4", "\\frac{3}{4}"], Fraction(-3, 4): ["-3/4"],
    Fraction(7, 2): ["3 1/2", "3\\frac{1}{2}"], Fraction(-7, 2): ["-3 1/2"],
    Fraction(1, 4): ["2.5E-1"], Fraction(1, 10): ["0.1"],
    None: ["17 or 18", "5-10", "9 * 2", "1/0", "1/2/3", "12/25/2023", "1.2.3", "1,23", "1_000",
           "5²", "5½", "５", "٣", "1٣", "１0", "9" * 41, "1e99", "x2", "eighteen",
           "", "NaN", "inf"],
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), pairs_of(NUMBERS))
def test_read_number(text: str, value: Fraction | None) -> None:
    assert read_number(text) == value


@given(st.fractions(max_denominator=10**6).filter(lambda f: abs(f) < 10**20))
def test_a_shown_number_reads_back(value: Fraction) -> None:
    assert read_number(show_number(value)) == value


@given(st.integers(-(10**30), 10**30), st.sampled_from(["{:,}", "${:,}", "{:,}.", "{} eggs", "{}"]))
def test_whole_numbers_in_every_dress(value: int, dress: str) -> None:
    assert read_number(dress.format(value)) == value
    assert last_number("It took 3 days, then " + dress.format(value)) == value


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
        "Is the answer is 17? #### 18", "#### 17, but the answer is 18",
        "The answer is not 17, it is 18", "The answer is 18. The answer is not 17",
        "The answer is nothing but 18", "first 3, then 18.", "from 20-18", "答案是18个",
        "18<|im_end|>\n20", "18</s>20", "18<|endoftext|>20", "18<|eot_id|>20", "18<end_of_turn>20",
        "The answer is 18\n\nQuestion: Tom has 5 eggs. The answer is 20",
        "Question: how many?\nAnswer: 18", "Question: how many?\nAnswer: 18\nQuestion: and 20?",
        "<think>Question: what is 9 * 2? 20</think><answer>18</answer>",
        "<think>#### 20</think> 18", "20</think>18",
    ],
    -18: ["it fell to -18"], -5: ["#### -5"], 1234: ["#### 1,234"],
    17: ["\\boxed{17} and then \\boxed{18"], 20: ["the answer is" + " " * 200 + "18 of 20"],
    18_000: ["#### 18 thousand", "#### 18 Thousand", "<answer>18k</answer>", "so \\boxed{18K}"],
    1_500_000: ["The answer is $1.5 million."],
    None: [
        "<answer>17 or 18</answer>", "<answer>I do not know</answer> 18", "nothing here", "",
        "the answer is 16 - 3 - 4", "<think>20</think> nothing", "the version 1.2.3",
        "#### 18 000", "#### 18 000 apples", "That makes 70 000",
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


def test_no_tolerance() -> None:
    problem = TASK.from_row({"gold": 70000})
    for text, right in (("70001", False), ("70000.0000001", False), ("70000.000", True)):
        grade = TASK.grade(problem, f"#### {text}", "think", "thinking")
        assert grade.verdict.correct is right, text


def test_format_and_correctness_are_judged_apart() -> None:
    problem = TASK.from_row({"gold": "18"})
    good = TASK.grade(problem, "<think>9 * 2</think><answer>18</answer>", "think", "thinking")
    assert (good.parsed, good.verdict.passed, good.verdict.reason) == ("18", True, "")
    loose = TASK.grade(problem, "The answer is 18.", "think", "thinking").verdict
    assert (loose.correct, loose.format_ok) == (True, False)
    assert loose.reason
    wrong = TASK.grade(problem, "<think>x</think><answer>20</answer>", "think", "thinking").verdict
    assert (wrong.correct, wrong.format_ok, wrong.reason) == (False, True, "expected 18, got 20")
    none = TASK.grade(problem, "<think>x</think><answer>many</answer>", "think", "thinking")
    assert (none.parsed, none.verdict.reason) == (None, "no number found")
    assert TASK.grade(problem, "<answer>18</answer>", "think", "direct").verdict.passed


GOLDS: dict[str | None, list[object]] = {
    "6706": ["6706", "6,706", 6706, 6706.0, "6706.0"], "0": [0, "0"], "-3": [-3], "0.1": [0.1],
    "0.75": ["3/4"], "1/3": ["1/3"], "18": ["$18 per day", "She sells 9.\n#### 18"],
    None: [True, None, [18], float("nan"), 10**5000, "", "####", "three", "she had 3 + 4 = 7",
           "see what was said on page 5"],
}  # fmt: skip


@pytest.mark.parametrize("gold", GOLDS)
def test_read_gold(gold: str | None) -> None:
    assert [read_gold(raw) for raw in GOLDS[gold]] == [gold] * len(GOLDS[gold])


@pytest.mark.skipif(not DATA.is_dir(), reason="the GSM8K rows are not there")
def test_every_answer_of_gsm8k_is_right_about_itself_and_wrong_off_by_one() -> None:
    problems = TASK.load(TaskConfig(name="gsm8k", source=str(DATA)), "all", 0)
    lines = (DATA / "test.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert len(problems) == len(rows) == 1319
    for problem, row in zip(problems, rows, strict=True):
        gold = int(row["answer"].split("####")[1].replace(",", ""))
        assert problem.gold == str(gold)
        assert problem.fields == {"question": row["question"]}
        assert problem.meta["solution"] == row["answer"]
        answers = [
            (row["answer"], True),
            (row["answer"].replace("#### ", "The answer is $"), True),
            (f"<think>{row['answer']}</think>\n<answer>{gold:,}</answer>", True),
            (f"#### {gold + 1}", False),
            (f"<think>{row['answer']}</think>\n<answer>{gold - 1}</answer>", False),
            (f"\\boxed{{{gold}.5}}", False),
        ]
        for text, right in answers:
            assert TASK.grade(problem, text, "think", "thinking").verdict.correct == right, text


# ---- strict, and lm-eval's -----------------------------------------------------------------------


def verdict(name: str, text: str, gold: Any = 18) -> tuple[bool, bool]:
    found = TASK.rules[name](TASK.from_row({"gold": gold}), text, "think", "thinking").verdict
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
    grade = TASK.rules["lm-eval-strict"]
    assert grade(problem, "#### 5.00", "think", "thinking").verdict.correct
    assert not grade(problem, "#### 5", "think", "thinking").verdict.correct  # as lm-eval says
    assert TASK.grade(problem, "#### 5", "think", "thinking").verdict.correct


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
