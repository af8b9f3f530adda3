"""GSM8K: how numbers and answers are read, and how the data set is split."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.graders.number import (
    extract_answer,
    last_number,
    read_gold,
    read_number,
    show_number,
)
from mlxreflect.tasks import TASKS

TASK = TASKS["gsm8k"]
DATA = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
with_data = pytest.mark.skipif(not DATA.is_dir(), reason="the GSM8K rows are not there")


def rows_of(split: str) -> list[dict[str, str]]:
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def config(source: Path | str, **keys: Any) -> TaskConfig:
    return TaskConfig(name="gsm8k", source=str(source), **keys)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


NUMBERS: list[tuple[str, Fraction | None]] = [
    ("18", Fraction(18)),
    ("0", Fraction(0)),
    ("-0", Fraction(0)),
    ("007", Fraction(7)),
    ("$18", Fraction(18)),
    ("$1,234.50", Fraction(2469, 2)),
    ("1,234.50", Fraction(2469, 2)),
    ("1,450,000", Fraction(1450000)),
    ("1{,}234", Fraction(1234)),
    ("1\\,234", Fraction(1234)),
    ("1\u202f234", Fraction(1234)),
    ("\\$18", Fraction(18)),
    ("50%", Fraction(50)),
    ("50\\%", Fraction(50)),
    ("18.", Fraction(18)),
    (".5", Fraction(1, 2)),
    ("-.5", Fraction(-1, 2)),
    ("3/4", Fraction(3, 4)),
    ("3 / 4", Fraction(3, 4)),
    ("-3/4", Fraction(-3, 4)),
    ("6/2", Fraction(3)),
    ("3 1/2", Fraction(7, 2)),
    ("-3 1/2", Fraction(-7, 2)),
    ("\\frac{3}{4}", Fraction(3, 4)),
    ("3\\frac{1}{2}", Fraction(7, 2)),
    ("\u22125", Fraction(-5)),
    ("-$5", Fraction(-5)),
    ("$-5", Fraction(-5)),
    ("- 5", Fraction(-5)),
    ("18 dollars", Fraction(18)),
    ("$18 per day", Fraction(18)),
    ("18 (eighteen)", Fraction(18)),
    ("x = 18", Fraction(18)),
    ("9 * 2 = 18", Fraction(18)),
    ("18 = x", Fraction(18)),
    ("**18**", Fraction(18)),
    ("1e3", Fraction(1000)),
    ("2.5E-1", Fraction(1, 4)),
    ("0.1", Fraction(1, 10)),
    ("17 or 18", None),
    ("5-10", None),
    ("9 * 2", None),
    ("1/0", None),
    ("1/2/3", None),
    ("12/25/2023", None),
    ("1.2.3", None),
    ("1,23", None),
    ("1_000", None),
    ("5²", None),
    ("5½", None),
    ("５", None),
    ("٣", None),
    ("1٣", None),
    ("１0", None),
    ("9" * 41, None),
    ("1e99", None),
    ("x2", None),
    ("eighteen", None),
    ("", None),
    ("NaN", None),
    ("inf", None),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_read_number(text: str, value: Fraction | None) -> None:
    assert read_number(text) == value


def test_forty_digits_are_read_exactly() -> None:
    assert read_number("9" * 40) == 10**40 - 1


@given(st.fractions(max_denominator=10**6).filter(lambda f: abs(f) < 10**20))
def test_a_shown_number_reads_back(value: Fraction) -> None:
    assert read_number(show_number(value)) == value


@given(st.integers(-(10**30), 10**30), st.sampled_from(["{:,}", "${:,}", "{:,}.", "{} eggs", "{}"]))
def test_whole_numbers_in_every_dress(value: int, dress: str) -> None:
    assert read_number(dress.format(value)) == value
    assert last_number("It took 3 days, then " + dress.format(value)) == value


@given(st.integers(-(10**12), 10**12), st.integers(0, 10**6 - 1), st.integers(1, 6))
def test_decimals_are_exact(whole: int, digits: int, places: int) -> None:
    after = str(digits % 10**places).zfill(places)
    expected = Fraction(f"{whole}.{after}")  # Python's own reading of the same digits
    assert read_number(f"{whole:,}.{after}") == expected
    assert extract_answer(f"so #### ${whole:,}.{after}.") == expected


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_ratios_are_exact(top: int, bottom: int) -> None:
    assert read_number(f"{top}/{bottom}") == Fraction(top, bottom)


@given(st.text(max_size=300))
@settings(max_examples=300)
def test_any_text_is_read_without_an_error(text: str) -> None:
    for value in (read_number(text), last_number(text), extract_answer(text)):
        assert value is None or isinstance(value, Fraction)


ANSWERS: list[tuple[str, int | None]] = [
    ("She makes 9 * 2 = 18 dollars.\n#### 18", 18),
    ("#### 1,234", 1234),
    ("#### $18 per day", 18),
    ("####18", 18),
    ("#### -5", -5),
    ("#### 18.\n- 5 eggs a day", 18),
    ("#### 17\nno wait\n#### 18", 18),
    ("#### 18\nThat answer is correct.", 18),
    ("#### Step 3: add\nThat makes 18", 18),
    ("#### 2. Add the eggs\nThat makes 18", 18),
    ("#### In 3 days\nThat makes 18", 18),
    ("the answer is" + " " * 199 + "18 of 20", 18),  # 200 characters are as far as it looks
    ("the answer is" + " " * 200 + "18 of 20", 20),
    ("\\boxed{18}", 18),
    ("\\boxed{\\text{18 eggs}} in 3 days", 18),
    ("#### 17 \\boxed{18}", 18),
    ("\\boxed{17} #### 18", 18),
    ("\\boxed{17} and then \\boxed{18", 17),
    ("<answer>18</answer>", 18),
    ("<answer>17</answer><answer> $18 </answer>", 18),
    ("<answer>The answer is 18</answer>", 18),
    ("<answer>9 * 2 = 18</answer> over 3 days", 18),
    ("<answer>17 or 18</answer>", None),
    ("<answer>I do not know</answer> 18", None),
    ("it is 18 <answer></answer>", 18),
    ("18\n<answer>", 18),
    ("The answer is 18, as 3 + 4 = 7.", 18),
    ("THE ANSWER IS: **18**!", 18),
    ("the answer is 9 eggs * $2 = $18.", 18),
    ("the answer is 16 - 3 - 4", None),
    ("Is the answer is 17? #### 18", 18),
    ("#### 17, but the answer is 18", 18),
    ("first 3, then 18.", 18),
    ("from 20-18", 18),
    ("it fell to -18", -18),
    ("nothing here", None),
    ("", None),
    ("18<|im_end|>\n20", 18),
    ("18</s>20", 18),
    ("18<|endoftext|>20", 18),
    ("18<|eot_id|>20", 18),
    ("18<end_of_turn>20", 18),
    ("The answer is 18\n\nQuestion: Tom has 5 eggs. The answer is 20", 18),
    ("Question: how many?\nAnswer: 18", 18),
    ("Question: how many?\nAnswer: 18\nQuestion: and 20?", 18),
    ("<think>Question: what is 9 * 2? 20</think><answer>18</answer>", 18),
    ("<think>#### 20</think> 18", 18),
    ("20</think>18", 18),
    ("<think>20</think> nothing", None),
    ("答案是18个", 18),
    ("the version 1.2.3", None),
]


@pytest.mark.parametrize(("text", "value"), ANSWERS)
def test_extract_answer(text: str, value: int | None) -> None:
    assert extract_answer(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 18 000", None),
        ("That makes 70 000", None),
        ("#### 18 000 apples", None),
        ("#### 18 thousand", 18000),
        ("#### 18 Thousand", 18000),
        ("<answer>18K</answer>", 18000),
        ("The answer is $1.5 million.", 1_500_000),
        ("<answer>18k</answer>", 18000),
        ("#### 18 km", 18),
        ("#### 18 kids", 18),
        ("The answer is not 17, it is 18", 18),
        ("The answer is 18. The answer is not 17", 18),
        ("The answer is nothing but 18", 18),
    ],
)
def test_magnitudes_and_what_is_denied(text: str, value: int | None) -> None:
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
    assert not TASK.grade(problem, "#### 70001", "think", "thinking").verdict.correct
    assert not TASK.grade(problem, "#### 70000.0000001", "think", "thinking").verdict.correct
    assert TASK.grade(problem, "#### 70000.000", "think", "thinking").verdict.correct


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


@pytest.mark.parametrize(
    ("raw", "gold"),
    [
        ("6706", "6706"),
        ("6,706", "6706"),
        (6706, "6706"),
        (6706.0, "6706"),
        ("6706.0", "6706"),
        (0, "0"),
        ("0", "0"),
        (-3, "-3"),
        (0.1, "0.1"),
        ("3/4", "0.75"),
        ("1/3", "1/3"),
        ("$18 per day", "18"),
        ("She sells 9.\n#### 18", "18"),
        (True, None),
        (None, None),
        ([18], None),
        (float("nan"), None),
        pytest.param(10**5000, None, id="5001 digits"),
        ("", None),
        ("####", None),
        ("three", None),
        ("she had 3 + 4 = 7", None),
        ("see what was said on page 5", None),
    ],
)
def test_read_gold(raw: object, gold: str | None) -> None:
    assert read_gold(raw) == gold


@with_data
def test_every_test_answer_is_right_about_itself_and_wrong_off_by_one() -> None:
    problems = TASK.load(config(DATA), "all", 0)
    rows = rows_of("test")
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


@with_data
def test_the_official_parts_share_no_problem() -> None:
    parts = {name: TASK.load(config(DATA), name, 0) for name in ("train", "dev", "heldout")}
    ids = {name: {p.id for p in problems} for name, problems in parts.items()}
    assert len(ids["heldout"]) == 1319
    assert len(ids["train"]) + len(ids["dev"]) == 7473
    assert 300 < len(ids["dev"]) < 450  # 5 %
    assert not ids["train"] & ids["dev"]
    assert not (ids["train"] | ids["dev"]) & ids["heldout"]
    golds = {p.fields["question"]: p.gold for p in parts["train"] + parts["dev"]}
    for row in rows_of("train"):
        gold = int(row["answer"].split("####")[1].replace(",", ""))
        assert golds[row["question"].strip()] == str(gold)


def numbered(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {i} and one?", "answer": f"{i}+1\n#### {i + 1}"}
        for i in range(count)
    ]


def test_a_single_file_is_split_by_content(tmp_path: Path) -> None:
    rows = numbered(1000)
    one = write(tmp_path / "one.jsonl", rows)
    other = write(tmp_path / "other.jsonl", rows[::-1])
    sizes = {}
    for part in ("train", "dev", "heldout"):
        problems = TASK.load(config(one), part, 0)
        assert problems == TASK.load(config(other), part, 7)
        sizes[part] = len(problems)
    assert sum(sizes.values()) == 1000
    assert 650 < sizes["train"] < 750
    assert 70 < sizes["dev"] < 130
    assert 150 < sizes["heldout"] < 250
    every = TASK.load(config(one), "all", 0)
    assert [p.gold for p in every] == [str(i + 1) for i in range(1000)]
    assert len(TASK.load(config(one, limit=5), "train", 0)) == 5


def test_the_same_question_is_never_in_two_parts(tmp_path: Path) -> None:
    rows = numbered(200)
    write(tmp_path / "test.jsonl", rows[:50])
    shouted = [{**row, "question": row["question"].upper() + "  "} for row in rows]
    write(tmp_path / "train.jsonl", rows + shouted)
    parts = [TASK.load(config(tmp_path), part, 0) for part in ("train", "dev", "heldout")]
    questions = [{p.fields["question"].casefold() for p in problems} for problems in parts]
    assert sum(len(q) for q in questions) == len(set.union(*questions)) == 200
    assert len(parts[2]) == 50
    assert sum(len(p) for p in parts) == 200


def test_bad_data_is_named_by_file_and_line(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "#### 5"}
    with pytest.raises(UserError) as caught:
        TASK.load(config(write(tmp_path / "a.jsonl", [row, {"q": "x"}])), "all", 0)
    assert "a.jsonl, line 2" in caught.value.message
    assert "question" in caught.value.message and "q" in caught.value.message
    assert "task.question" in caught.value.hint
    with pytest.raises(UserError) as caught:
        TASK.load(config(write(tmp_path / "b.jsonl", [{**row, "answer": "many"}])), "all", 0)
    assert "b.jsonl, line 1" in caught.value.message and "'answer'" in caught.value.message
    with pytest.raises(UserError, match="no such file"):
        TASK.load(config(tmp_path / "none.jsonl"), "all", 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no test\.jsonl in this folder; it holds: none"):
        TASK.load(config(tmp_path / "empty"), "heldout", 0)


def test_without_data_and_network_two_lines_say_what_to_do(monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*args: Any, **keys: Any) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError) as caught:
        TASK.load(TaskConfig(name="gsm8k"), "heldout", 0)
    assert "openai/gsm8k (main)" in caught.value.message
    assert "task.source" in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_the_hub_is_asked_for_the_official_splits(monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"train": numbered(100)[40:], "test": numbered(50)}
    asked = []

    def load_dataset(name: str, config: str, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(rows[split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(TASK.load(TaskConfig(name="gsm8k"), "heldout", 0)) == 50
    assert asked == [("openai/gsm8k", "main", "test")]
    train = TASK.load(TaskConfig(name="gsm8k"), "train", 0)
    dev = TASK.load(TaskConfig(name="gsm8k"), "dev", 0)
    assert len(train) + len(dev) == 50  # ten of the sixty are held out


def test_what_the_model_sees_holds_no_gold() -> None:
    problem = TASK.from_row({"question": "How many eggs?", "gold": 918273})
    assert TASK.show(problem) == "How many eggs?"
    assert "918273" not in TASK.instruction(problem)
    assert TASK.gold(problem) == "918273"
