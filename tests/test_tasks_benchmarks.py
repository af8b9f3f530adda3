"""Benchmarks: where their rows come from, how they are read and split, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.rows import write_rows

from mlxreflect.config.schema import Recipe, TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.evaluation.contamination import clean_problems, question_of
from mlxreflect.tasks import TASKS

SHARED = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
PARTS = ("train", "dev", "heldout")
SVAMP = [
    {"ID": f"chal-{i}", "Body": f"Ann has {i} eggs ", "Question": "How many eggs and one more?",
     "Equation": f"( {i}.0 + 1.0 )", "Answer": f"{i + 1}.0", "Type": "Addition"}
    for i in range(60)
]  # fmt: skip
LOGIQA = [
    {"context": f"All {i} are even.", "query": "Which follows?", "correct_option": i % 4,
     "options": [f"{i} is odd", f"{i} is even", "neither", f"both of {i}"]}
    for i in range(60)
]  # fmt: skip
AIME = [{"ID": f"2024-I-{i}", "Problem": f"Find {i}.", "Answer": i} for i in range(30)]
MATH = [
    {"problem": f"Halve {i}.", "solution": "…", "answer": f"\\frac{{{i}}}{{2}}", "level": 1 + i % 5,
     "subject": "Algebra", "unique_id": str(i)}
    for i in range(40)
]  # fmt: skip
SOLVED = [
    {"problem": f"Halve {i} and one.", "level": f"Level {1 + i % 5}", "type": "Algebra",
     "solution": f"Not $\\boxed{{7}}$: half of it is $\\{'fbox' if i % 2 else 'boxed'}"
                 f"{{\\frac{{{i + 1}}}{{2}}}}$."}
    for i in range(60)
]  # fmt: skip
BIGBENCH = [
    {"idx": i, "inputs": f"Q: {i} books stand here.\n\n  choice: first\n  choice: last {i}\nA:",
     "targets": [f"last {i}"], "multiple_choice_targets": ["first", f"last {i}"],
     "multiple_choice_scores": [0, 1]}
    for i in range(60)
]  # fmt: skip
GSM8K = [
    {"question": f"What is {i} and one?", "answer": f"{i}+1\n#### {i + 1}"} for i in range(1000)
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "svamp": SVAMP, "logiqa": LOGIQA, "aime": AIME, "math500": MATH, "gsm8k": GSM8K,
    "math": SOLVED, "bigbench": BIGBENCH,
}  # fmt: skip


def load(name: str, part: str = "heldout", seed: int = 0, **keys: Any) -> list[Problem]:
    return TASKS[name].load(TaskConfig(name=name, **keys), part, seed)


@pytest.fixture(autouse=True)
def with_math(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and showing MATH-500 does not depend on what compares its answers."""
    monkeypatch.setattr("mlxreflect.tasks.jsonl.need_math", lambda: None)
    monkeypatch.setattr("mlxreflect.tasks.benchmarks.need_math", lambda: None)


# ---- parts ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the GSM8K rows are not there")
def test_the_official_parts_of_gsm8k_share_no_problem() -> None:
    parts = {part: load("gsm8k", part, source=str(SHARED)) for part in PARTS}
    ids = {name: {p.id for p in problems} for name, problems in parts.items()}
    assert len(ids["heldout"]) == 1319
    assert len(ids["train"]) + len(ids["dev"]) == 7473
    assert 300 < len(ids["dev"]) < 450  # 5 %
    assert not ids["train"] & ids["dev"]
    assert not (ids["train"] | ids["dev"]) & ids["heldout"]
    golds = {p.fields["question"]: p.gold for p in parts["train"] + parts["dev"]}
    for line in filter(None, (SHARED / "train.jsonl").read_text(encoding="utf-8").split("\n")):
        row = json.loads(line)
        gold = int(row["answer"].split("####")[1].replace(",", ""))
        assert golds[row["question"].strip()] == str(gold)


@pytest.mark.parametrize("name", ["gsm8k", "jsonl"])
def test_a_single_file_is_split_by_content(tmp_path: Path, name: str) -> None:
    one = str(write_rows(tmp_path / "one.jsonl", GSM8K))
    other = str(write_rows(tmp_path / "other.jsonl", GSM8K[::-1] + GSM8K[:7]))
    found: list[str] = []
    for part, low, high in (("train", 650, 750), ("dev", 70, 130), ("heldout", 150, 250)):
        problems = load(name, part, source=one)
        assert problems == load(name, part, 7, source=other)
        assert load(name, part, source=one, limit=3) == problems[:3]
        assert low < len(problems) < high
        found += [p.id for p in problems]
    every = load(name, "all", source=one)
    assert [p.gold for p in every] == [str(i + 1) for i in range(1000)]
    assert sorted(found) == sorted(p.id for p in every)


def test_the_same_problem_is_never_in_two_parts(tmp_path: Path) -> None:
    rows = GSM8K[:200]
    write_rows(tmp_path / "test.jsonl", rows[:50])
    shouted = [{**row, "question": row["question"].upper() + "  "} for row in rows]
    write_rows(tmp_path / "train.jsonl", rows + shouted)
    parts = [load("gsm8k", part, source=str(tmp_path)) for part in PARTS]
    texts = [{p.fields["question"].casefold() for p in problems} for problems in parts]
    assert sum(len(t) for t in texts) == len(set.union(*texts)) == 200
    assert len(parts[2]) == 50
    assert sum(len(p) for p in parts) == 200


def test_the_hub_is_asked_for_the_official_splits(monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"train": GSM8K[40:100], "test": GSM8K[:50]}

    def load_dataset(name: str, config: str, split: str) -> Any:
        return datasets.Dataset.from_list(rows[split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("gsm8k")) == 50
    assert len(load("gsm8k", "train")) + len(load("gsm8k", "dev")) == 50  # ten are held out


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load("gsm8k", "all", source=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"no test\.jsonl in this folder; it holds: none"):
        load("gsm8k", source=str(tmp_path))


# ---- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["svamp", "logiqa", "math", "bigbench"])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".json"])
def test_official_splits_of_a_folder(tmp_path: Path, name: str, ending: str) -> None:
    test = "validation" if name == "bigbench" else "test"
    for split, rows in (("train", ROWS[name]), (test, ROWS[name][:20])):
        path = tmp_path / f"{split}{ending}"
        if ending == ".parquet":
            datasets = pytest.importorskip("datasets")
            datasets.Dataset.from_list(rows).to_parquet(str(path))
        elif ending == ".json":
            path.write_text(json.dumps(rows))
        else:
            write_rows(path, rows)
    parts = {p: load(name, p, source=str(tmp_path)) for p in ("train", "dev", "heldout")}
    keys = {part: {question_of(p).wholes[0] for p in problems} for part, problems in parts.items()}
    assert len(keys["heldout"]) == 20
    assert not keys["train"] & keys["heldout"] and not keys["train"] & keys["dev"]
    assert len(keys["train"] | keys["dev"] | keys["heldout"]) == 60


RIGHT = {
    "svamp": "2", "logiqa": "B", "aime": "1", "math500": "\\frac{1}{2}", "gsm8k": "2",
    "math": "\\frac{2}{2}", "bigbench": "B",
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_file_of_the_same_columns(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / "mine.jsonl", ROWS[name])
    problems = load(name, "all", source=str(path))
    assert len(problems) == len(ROWS[name])
    assert load(name, "all", source=str(path), limit=3) == problems[:3]
    first = problems[1]
    task = TASKS[name]
    answer = RIGHT[name]
    assert first.gold == answer
    text = f"<think>x</think><answer>{answer}</answer>"
    assert task.grade(first, text, "think", "thinking").verdict.passed
    wrong = text.replace(answer, "A" if answer == "B" else "99")
    assert not task.grade(first, wrong, "think", "thinking").verdict.correct
    assert task.instruction(first) and task.show(first)


def test_what_the_model_sees_holds_no_gold() -> None:
    task = TASKS["gsm8k"]
    problem = task.from_row({"question": "How many eggs?", "gold": 918273})
    assert task.show(problem) == "How many eggs?" and "918273" not in task.instruction(problem)
    assert task.gold(problem) == "918273"


def test_what_is_shown(tmp_path: Path) -> None:
    [svamp, *_] = load("svamp", "all", source=str(write_rows(tmp_path / "s.jsonl", SVAMP)))
    assert TASKS["svamp"].show(svamp) == "Ann has 0 eggs How many eggs and one more?"
    [logiqa, *_] = load("logiqa", "all", source=str(write_rows(tmp_path / "l.jsonl", LOGIQA)))
    assert TASKS["logiqa"].show(logiqa) == (
        "All 0 are even.\nWhich follows?\nA. 0 is odd\nB. 0 is even\nC. neither\nD. both of 0"
    )
    [math, *_] = load("math500", "all", source=str(write_rows(tmp_path / "m.jsonl", MATH)))
    assert math.meta == {"subject": "Algebra", "level": 1, "unique_id": "0"}
    assert "frac" not in TASKS["math500"].show(math)
    [book, *_] = load("bigbench", "all", source=str(write_rows(tmp_path / "b.jsonl", BIGBENCH)))
    assert TASKS["bigbench"].show(book) == "0 books stand here.\nA. first\nB. last 0"
    [solved, *_] = load("math", "all", source=str(write_rows(tmp_path / "h.jsonl", SOLVED)))
    assert solved.meta == {key: SOLVED[0][key] for key in ("type", "level", "solution")}
    assert "frac" not in TASKS["math"].show(solved)


def test_other_columns_are_named_by_the_recipe(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "x.jsonl", [{"q": "1 and 1?", "a": 2, "Question": "no", "Answer": 7}]
    )
    [problem] = load("svamp", "all", source=str(path), question="q", answer="a")
    assert (problem.fields["question"], problem.gold) == ("1 and 1?", "2")
    with pytest.raises(UserError, match="no column 'nope'"):
        load("svamp", "all", source=str(path), question="nope")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("gsm8k", {"question": "a", "answer": "many"}, "column 'answer': the answer 'many' is no"),
        ("gsm8k", {"q": "a"}, "no column 'question'; the columns are: q"),
        ("svamp", {"Body": "a", "Question": "b", "Answer": "many"}, "is no number"),
        ("svamp", {"Body": "a", "Question": "", "Answer": "1"}, "is empty"),
        ("svamp", {"Body": "a", "Answer": "1"}, "no column 'question'"),
        ("aime", {"Problem": "a", "Answer": "1000"}, "no whole number from 0 to 999"),
        ("aime", {"Problem": "a", "Answer": "-1"}, "no whole number from 0 to 999"),
        ("aime", {"Problem": "a", "Answer": "1/2"}, "no whole number from 0 to 999"),
        ("logiqa", {"query": "a", "options": ["x", "y"], "correct_option": 2}, "names no choice"),
        ("logiqa", {"query": "a", "options": "x", "correct_option": 0}, "not a list of"),
        ("math500", {"problem": "a", "answer": ""}, "is no short text"),
        ("math", {"problem": "a", "solution": "so " * 200}, "is no short text"),
        ("bigbench", {**BIGBENCH[0], "multiple_choice_scores": [1, 1]}, "2 options are right"),
        ("bigbench", {**BIGBENCH[0], "multiple_choice_scores": [0, 0]}, "0 options are right"),
        ("math500", {"problem": "a", "answer": "x" * 301}, "is no short text"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, row: dict[str, Any], said: str) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [ROWS[name][0], row])
    with pytest.raises(UserError) as caught:
        load(name, "all", source=str(path))
    assert "bad.jsonl, line 2" in caught.value.message and said in caught.value.message
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("name", ["aime", "math500"])
@pytest.mark.parametrize("part", ["train", "dev"])
def test_an_evaluation_alone_is_not_trained_on(tmp_path: Path, name: str, part: str) -> None:
    for source in ("", str(write_rows(tmp_path / "mine.jsonl", ROWS[name]))):
        with pytest.raises(UserError, match=f"the task {name} is an evaluation alone") as caught:
            load(name, part, source=source)
        assert "eval.spec" in caught.value.hint
    recipe = Recipe.model_validate({"task": {"name": name}})
    with pytest.raises(UserError, match="evaluation alone"):
        clean_problems(recipe, None)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("gsm8k", [("openai/gsm8k", "main", "test", None)]),
        ("svamp", [("ChilleD/SVAMP", None, "test", None)]),
        ("logiqa", [("lucasmccabe/logiqa", None, "test", "refs/convert/parquet")]),
        ("math500", [("HuggingFaceH4/MATH-500", None, "test", None)]),
        ("math", [("DigitalLearningGmbH/MATH-lighteval", None, "test", None)]),
        ("bigbench", [("tasksource/bigbench", "logical_deduction", "validation", None)]),
        ("aime", [("Maxwell-Jia/AIME_2024", None, "train", None),
                  ("math-ai/aime25", None, "test", None)]),
    ],
)  # fmt: skip
def test_what_the_hub_is_asked_for(monkeypatch: Any, name: str, asked: list[Any]) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name_: str, config: str | None, split: str, revision: Any = None) -> Any:
        calls.append((name_, config, split, revision))
        return datasets.Dataset.from_list(ROWS[name][: 10 + len(calls)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load(name)
    assert calls == asked
    assert TASKS[name].hub == tuple(call[0] for call in asked)


@pytest.mark.parametrize("name", [*ROWS, "countdown"])
def test_without_data_two_lines_say_how_to_get_it(monkeypatch: Any, name: str) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*args: Any, **keys: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    source = "Jiayi-Pan/Countdown-Tasks-3to4" if name == "countdown" else ""
    with pytest.raises(UserError, match="could not be loaded") as caught:
        load(name, source=source)
    assert "task.source" in caught.value.hint and "internet" in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_year_of_aime() -> None:
    with pytest.raises(UserError, match="no year of the task aime") as caught:
        load("aime", config="2023")
    assert "2024, 2025" in caught.value.hint
