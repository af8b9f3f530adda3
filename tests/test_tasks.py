"""The tasks of tables and generators: where rows come from, how they are split, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxreflect.config.schema import Recipe, TaskConfig
from mlxreflect.config.toml import bundled
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem
from mlxreflect.evaluation.evaluate import eval_problems, find_spec
from mlxreflect.tasks import TASKS, question_of, training_problems

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
ROWS: dict[str, list[dict[str, Any]]] = {
    "svamp": SVAMP,
    "logiqa": LOGIQA,
    "aime": AIME,
    "math500": MATH,
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(name: str, part: str = "heldout", seed: int = 0, **keys: Any) -> list[Problem]:
    return TASKS[name].load(TaskConfig(name=name, **keys), part, seed)


@pytest.fixture(autouse=True)
def with_math(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and showing MATH-500 does not depend on what compares its answers."""
    monkeypatch.setattr("mlxreflect.tasks.jsonl.need_math", lambda: None)
    monkeypatch.setattr("mlxreflect.tasks.benchmarks.need_math", lambda: None)


# ---- benchmarks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["svamp", "logiqa"])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".json"])
def test_official_splits_of_a_folder(tmp_path: Path, name: str, ending: str) -> None:
    for split, rows in (("train", ROWS[name]), ("test", ROWS[name][:20])):
        path = tmp_path / f"{split}{ending}"
        if ending == ".parquet":
            datasets = pytest.importorskip("datasets")
            datasets.Dataset.from_list(rows).to_parquet(str(path))
        elif ending == ".json":
            path.write_text(json.dumps(rows))
        else:
            write(path, rows)
    parts = {p: load(name, p, source=str(tmp_path)) for p in ("train", "dev", "heldout")}
    keys = {part: {question_of(p).wholes[0] for p in problems} for part, problems in parts.items()}
    assert len(keys["heldout"]) == 20
    assert not keys["train"] & keys["heldout"] and not keys["train"] & keys["dev"]
    assert len(keys["train"] | keys["dev"] | keys["heldout"]) == 60


@pytest.mark.parametrize("name", ROWS)
def test_a_file_of_the_same_columns(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "mine.jsonl", ROWS[name])
    problems = load(name, "all", source=str(path))
    assert len(problems) == len(ROWS[name])
    assert load(name, "all", source=str(path), limit=3) == problems[:3]
    first = problems[1]
    task = TASKS[name]
    answer = {"svamp": "2", "logiqa": "B", "aime": "1", "math500": "\\frac{1}{2}"}[name]
    assert first.gold == answer
    text = f"<think>x</think><answer>{answer}</answer>"
    assert task.grade(first, text, "think", "thinking").verdict.passed
    wrong = text.replace(answer, "C" if name == "logiqa" else "99")
    assert not task.grade(first, wrong, "think", "thinking").verdict.correct
    assert task.instruction(first) and task.show(first)


def test_what_is_shown(tmp_path: Path) -> None:
    [svamp, *_] = load("svamp", "all", source=str(write(tmp_path / "s.jsonl", SVAMP)))
    assert TASKS["svamp"].show(svamp) == "Ann has 0 eggs How many eggs and one more?"
    [logiqa, *_] = load("logiqa", "all", source=str(write(tmp_path / "l.jsonl", LOGIQA)))
    assert TASKS["logiqa"].show(logiqa) == (
        "All 0 are even.\nWhich follows?\nA. 0 is odd\nB. 0 is even\nC. neither\nD. both of 0"
    )
    [math, *_] = load("math500", "all", source=str(write(tmp_path / "m.jsonl", MATH)))
    assert math.meta == {"subject": "Algebra", "level": 1, "unique_id": "0"}
    assert "frac" not in TASKS["math500"].show(math)


def test_other_columns_are_named_by_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"q": "1 and 1?", "a": 2, "Question": "no", "Answer": 7}])
    [problem] = load("svamp", "all", source=str(path), question="q", answer="a")
    assert (problem.fields["question"], problem.gold) == ("1 and 1?", "2")
    with pytest.raises(UserError, match="no column 'nope'"):
        load("svamp", "all", source=str(path), question="nope")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("svamp", {"Body": "a", "Question": "b", "Answer": "many"}, "is no number"),
        ("svamp", {"Body": "a", "Question": "", "Answer": "1"}, "is empty"),
        ("svamp", {"Body": "a", "Answer": "1"}, "no column 'question'"),
        ("aime", {"Problem": "a", "Answer": "1000"}, "no whole number from 0 to 999"),
        ("aime", {"Problem": "a", "Answer": "-1"}, "no whole number from 0 to 999"),
        ("aime", {"Problem": "a", "Answer": "1/2"}, "no whole number from 0 to 999"),
        ("logiqa", {"query": "a", "options": ["x", "y"], "correct_option": 2}, "names no choice"),
        ("logiqa", {"query": "a", "options": "x", "correct_option": 0}, "not a list of"),
        ("math500", {"problem": "a", "answer": ""}, "is no short text"),
        ("math500", {"problem": "a", "answer": "x" * 301}, "is no short text"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, row: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "bad.jsonl", [ROWS[name][0], row])
    with pytest.raises(UserError) as caught:
        load(name, "all", source=str(path))
    assert "bad.jsonl, line 2" in caught.value.message and said in caught.value.message
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("name", ["aime", "math500"])
@pytest.mark.parametrize("part", ["train", "dev"])
def test_an_evaluation_alone_is_not_trained_on(tmp_path: Path, name: str, part: str) -> None:
    for source in ("", str(write(tmp_path / "mine.jsonl", ROWS[name]))):
        with pytest.raises(UserError, match=f"the task {name} is an evaluation alone") as caught:
            load(name, part, source=source)
        assert "eval.spec" in caught.value.hint
    recipe = Recipe.model_validate({"task": {"name": name}})
    with pytest.raises(UserError, match="evaluation alone"):
        training_problems(recipe, [])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("svamp", [("ChilleD/SVAMP", None, "test", None)]),
        ("logiqa", [("lucasmccabe/logiqa", None, "test", "refs/convert/parquet")]),
        ("math500", [("HuggingFaceH4/MATH-500", None, "test", None)]),
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


@pytest.mark.parametrize("name", [*ROWS, "gsm8k", "countdown"])
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


def test_a_year_of_aime(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no year of the task aime") as caught:
        load("aime", config="2023")
    assert "2024, 2025" in caught.value.hint


# ---- last letters --------------------------------------------------------------------------------


def test_last_letters_of_as_many_words_as_asked() -> None:
    for count in (1, 2, 6):
        for problem in load("last_letter", "train", words=[count], limit=20):
            words = problem.fields["words"]
            assert len(words) == count
            assert problem.gold == "".join(word[-1] for word in words)
            assert TASKS["last_letter"].show(problem) == f"Words: {' '.join(words)}"
    mixed = load("last_letter", "train", words=[2, 5], limit=50)
    assert {len(p.fields["words"]) for p in mixed} == {2, 5}


def test_last_letter_parts_share_nothing_whatever_made_them() -> None:
    parts: dict[str, set[Any]] = {"train": set(), "dev": set(), "heldout": set()}
    for part, seen in parts.items():
        for seed in (0, 1, 2):
            for problem in load("last_letter", part, seed, words=[1, 2, 3], limit=300):
                seen.add(tuple(sorted(problem.fields["words"])))
    assert not parts["train"] & parts["heldout"]
    assert not parts["train"] & parts["dev"] and not parts["dev"] & parts["heldout"]
    assert load("last_letter", "heldout", 0) == load("last_letter", "heldout", 5)
    assert load("last_letter", "train", 0) != load("last_letter", "train", 5)
    assert len({p.id for p in load("last_letter", "train", 0)}) == 1000
    assert 0 < len(load("last_letter", "heldout", words=[1], limit=900)) < 100  # all there are


def test_last_letter_rows() -> None:
    from_row = TASKS["last_letter"].from_row
    assert from_row({"words": ["Sun", "Apple"]}).gold == "ne"
    assert from_row({"gold": "NE"}).gold == "ne"
    for row in ({}, {"gold": 5}, {"gold": "n e"}, {"words": ["a1"]}, {"words": []}):
        with pytest.raises(UserError, match="no letters"):
            from_row(row)
    with pytest.raises(UserError, match="makes its own"):
        load("last_letter", source="x.jsonl")


# ---- kinds of answers ----------------------------------------------------------------------------


def test_countdown_problems_in_a_file_of_ones_own(tmp_path: Path) -> None:
    row = {"question": "Make 35 of 3, 4 and 5.", "numbers": [3, 4, 5], "target": 35}
    [problem] = load("jsonl", "all", source=str(write(tmp_path / "c.jsonl", [row])),
                     answer_type="countdown")  # fmt: skip
    task = TASKS["jsonl"]
    text = "<think>x</think><answer>(3 + 4) * 5</answer>"
    assert task.grade(problem, text, "think", "thinking").verdict.passed
    assert not task.grade(problem, text.replace("5<", "4<"), "think", "thinking").verdict.correct
    assert task.rules["subset"](problem, text, "think", "thinking").verdict.correct
    assert task.show(problem) == row["question"] and "35" not in task.instruction(problem)
    with pytest.raises(UserError, match=r"c\.jsonl, line 1: target"):
        bad = write(tmp_path / "c.jsonl", [{**row, "target": "35"}])
        load("jsonl", "all", source=str(bad), answer_type="countdown")


def test_every_spec_of_the_issue_is_bundled() -> None:
    wanted = {"countdown", "countdown4", "countdown_mixed", "countdown_3to4", "gsm8k",
              "gsm8k_5shot", "arithmetic", "last_letter", "svamp", "aime", "aime24", "aime25",
              "math500", "logiqa", "text_f1", "jsonl"}  # fmt: skip
    assert wanted <= set(bundled("evals"))
    numbers = {n: find_spec(n, 0, "", []).task.numbers for n in wanted if n.startswith("countdown")}
    assert numbers["countdown4"] == [4] and numbers["countdown_mixed"] == [3, 4]
    for name in wanted:
        path = bundled("evals")[name]
        assert path.read_text(encoding="utf-8").startswith("# "), f"{name} says nothing of its data"


@pytest.mark.parametrize("name", ["countdown4", "countdown_mixed", "last_letter"])
def test_generated_specs_hold_as_many_problems_as_they_say(name: str) -> None:
    spec = find_spec(name, 50, "", [])
    problems = eval_problems(TASKS[spec.task.name], spec)
    assert len({p.id for p in problems}) == 50
