"""The user's own problems: every file form, every answer type, and what is said of bad rows."""

import json
import string
import time
from pathlib import Path
from typing import Any

import pytest

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.tasks.jsonl import TASK

ROWS = [{"question": f"Question number {i}", "answer": str(i)} for i in range(300)]


def save(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path | str, part: str = "all", **keys: Any) -> list[Problem]:
    return TASK.load(TaskConfig(name="jsonl", source=str(path), **keys), part, 0)


def correct(row: dict[str, Any], answer: str) -> bool:
    text = f"<think>x</think>\n<answer>{answer}</answer>"
    return TASK.grade(TASK.from_row(row), text, "think", "thinking").verdict.correct


def fault(path: Path | str, part: str = "all", **keys: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load(path, part, **keys)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_the_same_rows_in_every_form(tmp_path: Path) -> None:
    lines = save(tmp_path / "p.jsonl", ROWS)
    plain = tmp_path / "p.json"
    plain.write_text(json.dumps(ROWS))
    nested = tmp_path / "n.json"
    nested.write_text(json.dumps({"version": 1, "data": ROWS}))
    misnamed = tmp_path / "lines.json"
    misnamed.write_text(lines.read_text())
    comma = tmp_path / "p.csv"
    comma.write_text(
        "question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in ROWS)
    )
    tab = tmp_path / "p.tsv"
    tab.write_text(
        "question\tanswer\n" + "".join(f"{r['question']}\t{r['answer']}\n" for r in ROWS)
    )
    marked = tmp_path / "bom.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    expected = [p.id for p in load(lines)]
    assert len(set(expected)) == 300
    for path in (plain, nested, misnamed, comma, tab, marked):
        assert [p.id for p in load(path)] == expected, path.name


def test_quoted_cells_and_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('question,answer\n"One,\ntwo","1,234"\nThree,many\n', encoding="utf-8")
    assert "q.csv, line 4" in fault(path).message
    path.write_text('question,answer\n"One,\ntwo","1,234"\n', encoding="utf-8")
    [problem] = load(path)
    assert problem.fields["question"] == "One,\ntwo" and problem.gold == "1234"


def test_parts_are_disjoint_and_independent_of_order(tmp_path: Path) -> None:
    one = save(tmp_path / "one.jsonl", ROWS)
    other = save(tmp_path / "other.jsonl", ROWS[::-1] + ROWS[:7])
    found: list[str] = []
    for part, low, high in (("train", 180, 240), ("dev", 15, 45), ("heldout", 40, 80)):
        problems = load(one, part)
        assert low < len(problems) < high
        assert problems == load(other, part)
        assert load(one, part, limit=3) == problems[:3]
        found += [p.id for p in problems]
    assert sorted(found) == sorted(p.id for p in load(one))


def test_of_two_answers_to_one_question_the_order_does_not_decide(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": "1"}, {"question": "q? ", "answer": "2"}]
    one, other = save(tmp_path / "a.jsonl", rows), save(tmp_path / "b.jsonl", rows[::-1])
    assert len(load(one)) == 1
    assert load(one) == load(other)


def test_columns_are_mapped_also_nested_ones(tmp_path: Path) -> None:
    rows = [{"input": {"prompt": "How many?"}, "out.label": "7 eggs"}]
    [problem] = load(save(tmp_path / "x.jsonl", rows), question="input.prompt", answer="out.label")
    assert problem.fields["question"] == "How many?" and problem.gold == "7"


def test_a_missing_column_names_line_columns_and_key(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jsonl", [ROWS[0], {"prompt": "a", "label": "1"}])
    error = fault(path)
    for word in ("x.jsonl, line 2", "'question'", "prompt, label"):
        assert word in error.message
    assert "task.question" in error.hint
    error = fault(save(tmp_path / "y.jsonl", [{"question": "a", "solution": "1"}]))
    assert "'answer'" in error.message and "question, solution" in error.message
    assert "task.answer" in error.hint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "a", "answer": "1"', "not JSON"),
        ("[1, 2]", "no JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"question": "", "answer": "1"}', "is empty"),
        ('{"question": "  ", "answer": "1"}', "is empty"),
        ('{"question": null, "answer": "1"}', "is empty"),
        ('{"question": ["a"], "answer": "1"}', "is no text"),
        ('{"question": "a", "answer": "many"}', "is no number"),
        ('{"question": "a", "answer": null}', "is no number"),
        ('{"question": "a", "answer": true}', "is no number"),
        ('{"question": "a", "answer": NaN}', "is no number"),
        ('{"question": "a", "answer": {"x": 1}}', "is no number"),
        ('{"question": "a", "answer": "17 or 18"}', "is no number"),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", "not JSON"),
        ('{"question": "a", "answer": "\udc80"}', "not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    text = json.dumps(ROWS[0]) + "\n\n" + line + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    error = fault(path)
    assert "bad.jsonl, line 3" in error.message and said in error.message
    assert error.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in fault(tmp_path / "none.jsonl").message
    assert "directory" in fault(tmp_path).message
    (tmp_path / "empty.jsonl").write_text("")
    assert "no rows" in fault(tmp_path / "empty.jsonl").message
    (tmp_path / "two.json").write_text('{"a": [], "b": []}')
    assert "no column 'question'; the columns are: a, b" in fault(tmp_path / "two.json").message
    (tmp_path / "latin.csv").write_bytes("question,answer\ncafé,1\n".encode("latin-1"))
    assert "UTF-8" in fault(tmp_path / "latin.csv").message
    (tmp_path / "short.csv").write_text("question,answer\na\n")
    assert "short.csv, line 2" in fault(tmp_path / "short.csv").message
    (tmp_path / "long.csv").write_text("question,answer\na,1,2\n")
    assert "long.csv, line 2" in fault(tmp_path / "long.csv").message
    with pytest.raises(UserError) as caught:
        TASK.load(TaskConfig(name="jsonl"), "all", 0)
    assert "task.source" in caught.value.hint


def test_a_part_without_rows_says_how_many_there_are(tmp_path: Path) -> None:
    path = save(tmp_path / "few.jsonl", ROWS[:2])
    empty = [part for part in ("train", "dev", "heldout") if not holds(path, part)]
    assert empty  # two rows cannot fill three parts
    error = fault(path, empty[0])
    assert "2 rows" in error.message and repr(empty[0]) in error.message
    assert "eval.source" in error.hint


def holds(path: Path, part: str) -> bool:
    try:
        return bool(load(path, part))
    except UserError:
        return False


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (0, "0", True),
        (0, "-0.0", True),
        ("0", "1", False),
        (1234, "$1,234.00", True),
        ("1,234", "1234", True),
        (0.1, "1/10", True),
        (0.1, "0.1000001", False),
        ("3/4", "0.75", True),
        ("worked out: #### 18", "18 eggs", True),
        (70000, "70001", False),
    ],
)
def test_numbers(gold: Any, answer: str, right: bool) -> None:
    assert correct({"gold": gold, "answer_type": "number"}, answer) is right
    assert correct({"gold": gold}, answer) is right


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("Paris", "paris", True),
        ("Paris", " PARIS. ", True),
        ("Paris", '"Paris"', True),
        ("New York", "new\n  york", True),
        ("Paris, France", "Paris , France!", True),
        ("it’s", "it's", True),
        ("café", "cafe\u0301", True),
        ("café", "cafe", False),
        ("Straße", "STRASSE", True),
        ("Paris", "Paris or London", False),
        ("Paris", "Pari", False),
        ("C++", "C", False),
        ("-5", "5", False),
        ("3.5", "35", False),
        (7, "7", True),
        ("?", "!", False),
        ("?", "?", True),
        ("yes", "", False),
    ],
)
def test_texts(gold: Any, answer: str, right: bool) -> None:
    assert correct({"gold": gold, "answer_type": "text"}, answer) is right


CHOICES = ["London", "Paris", "Rome, the old one"]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        ("b", True),
        ("(B)", True),
        ("B.", True),
        ("B)", True),
        ("B:", True),
        ("**B**", True),
        ("\\boxed{B}", True),
        ("\\boxed{\\text{B}}", True),
        ("B) Paris", True),
        ("(b) paris.", True),
        ("B. the capital of France", True),
        ("Paris", True),
        ("paris.", True),
        ("The answer is B", True),
        ("Option B", True),
        ("A", False),
        ("A) Paris", False),
        ("B) London", False),
        ("A or B", False),
        ("A) or B)", False),
        ("A) B) C)", False),
        ("B, C", False),
        ("B) C)", False),
        ("D", False),
        ("Berlin", False),
        ("Bees", False),
        ("Ｂ", False),
        ("Paris or London", False),
        ("", False),
    ],
)
def test_choices(answer: str, right: bool) -> None:
    row = {"gold": "B", "answer_type": "choice", "choices": CHOICES}
    assert correct(row, answer) is right


@pytest.mark.parametrize(
    ("gold", "options"),
    [
        ("B", CHOICES),
        ("b", CHOICES),
        ("(B)", CHOICES),
        ("B) Paris", CHOICES),
        ("Paris", CHOICES),
        (1, CHOICES),  # MMLU's index
        ("B", {"A": "London", "B": "Paris"}),
        ("Paris", {"A": "London", "B": "Paris"}),
        ("2", {"label": ["1", "2"], "text": ["London", "Paris"]}),  # ARC's odd rows
        (2, {"label": ["1", "2"], "text": ["London", "Paris"]}),
        ("B", {"text": ["London", "Paris"], "label": ["A", "B"]}),
        ("B", [{"label": "A", "text": "London"}, {"label": "B", "text": "Paris"}]),
        ("B", [{"key": "A", "value": "London"}, {"key": "B", "value": "Paris"}]),
        (7, [3, 7]),
        (1, ["0", "7"]),
        ("B", ["B", "A"]),
        ("B", None),
        ("(b)", []),
    ],
)
def test_every_way_of_writing_choices_and_their_answer(gold: Any, options: Any) -> None:
    row = {"question": "?", "gold": gold, "answer_type": "choice", "options": options}
    assert TASK.from_row(row).gold == "B"


@pytest.mark.parametrize(
    ("gold", "options"),
    [
        ("D", CHOICES),
        (3, CHOICES),
        (-1, CHOICES),
        ("Berlin", CHOICES),
        (True, CHOICES),
        (None, CHOICES),
        ("A", ["only one"]),
        ("A", "London, Paris"),
        ("A", ["", "b"]),
        ("A", [None, "b"]),
        ("A", [str(i) for i in range(27)]),
        ("Paris", None),
    ],
)
def test_an_answer_that_names_no_choice(gold: Any, options: Any) -> None:
    with pytest.raises(UserError):
        TASK.from_row({"gold": gold, "answer_type": "choice", "choices": options})


def test_choices_are_shown_with_their_letters(tmp_path: Path) -> None:
    rows = [
        {"question": "Capital of France?", "choices": CHOICES, "answer": "B"},
        {"question": "Capital of France?", "choices": ["Lyon", "Paris"], "answer": 1},
    ]
    first, second = load(save(tmp_path / "c.jsonl", rows), answer_type="choice")
    assert TASK.show(first) == "Capital of France?\nA. London\nB. Paris\nC. Rome, the old one"
    assert TASK.show(second) == "Capital of France?\nA. Lyon\nB. Paris"
    assert "letter" in TASK.instruction(first)


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


def test_a_hub_data_set_with_its_config_and_split(monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("ChilleD/SVAMP", config="plain", split="test")) == 300
    assert asked == [("ChilleD/SVAMP", "plain", "test")]
    error = fault("ChilleD/SVAMP", question="Body")
    assert "ChilleD/SVAMP (train), row 1" in error.message and "question, answer" in error.message
    assert asked[-1] == ("ChilleD/SVAMP", None, "train")


def test_a_hub_data_set_that_cannot_be_had(monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "doesn't exist" in fault("nobody/nothing").message


def test_marks_that_would_be_sorted_for_seconds() -> None:
    options = {letter: f"option {letter}" for letter in string.ascii_uppercase}
    row = {"answer_type": "choice", "gold": "B", "choices": options}
    problem = TASK.from_row(row)
    text = f"<answer>{1900 * chr(0x345)}{1900 * chr(0x334)}</answer>"
    start = time.thread_time()
    assert TASK.grade(problem, text, "think", "direct").parsed is None
    assert time.thread_time() - start < 0.5  # 1.6 s where each option had the marks sorted anew
    assert TASK.grade(problem, "The answer is B!", "think", "direct").parsed == "B"
