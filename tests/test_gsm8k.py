"""GSM8K: how numbers and answers are read, and how the data set is split."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
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
