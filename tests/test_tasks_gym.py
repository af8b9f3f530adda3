"""Tasks of reasoning_gym: made alike everywhere, scored by the package, refused where unsafe."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any

import pytest
from support.rows import write_rows
from support.run_outputs import outputs_in, run_process

from mlxreflect.config.recipe import eval_specs, load_recipe
from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, to_row
from mlxreflect.critics.base import Call
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.data.leaks import leak
from mlxreflect.data.rows import fold
from mlxreflect.evaluation.contamination import clean, dev_problems
from mlxreflect.evaluation.evaluate import eval_problems, find_spec, grade_file
from mlxreflect.runs.folder import carry_out, open_folder
from mlxreflect.tasks import get_task, gym
from mlxreflect.tasks.base import ask

needs_it = pytest.mark.skipif(
    find_module("reasoning_gym") is None, reason="pip install 'mlxreflect[gym]'"
)
FEW = ("leg_counting", "coin_flip", "prime_factorization", "word_sorting", "tower_of_hanoi")
PARTS = ("train", "dev", "heldout")


def load(name: str, part: str = "heldout", limit: int = 4, seed: int = 0) -> list[Problem]:
    return get_task(f"gym:{name}").load(TaskConfig(limit=limit), part, seed)


def graded(problem: Problem, answer: str, text: str = "hm") -> Any:
    said = f"<think>{text}</think><answer>{answer}</answer>"
    return get_task(problem.task).grade(problem, said, "think", "thinking")


def made_elsewhere(names: list[str], limit: int) -> dict[str, Any]:
    """The problems of all parts as another process makes them, whose hashes have another seed."""
    script = (
        "import json, sys\n"
        "from mlxreflect.core.records import to_row\n"
        "from test_tasks_gym import PARTS, load\n"
        "names, limit = json.loads(sys.argv[1])\n"
        "print(json.dumps({n: [[to_row(p) for p in load(n, part, limit)] for part in PARTS]"
        " for n in names}))\n"
    )
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps([names, limit])], text=True, check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONHASHSEED": "5", "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(names: list[str], limit: int) -> None:
    """The same everywhere, no question in two parts, the gold answer right and nonsense wrong."""
    elsewhere = made_elsewhere(names, limit)
    for name in names:
        parts = [load(name, part, limit) for part in PARTS]
        assert (
            json.loads(json.dumps([[to_row(p) for p in part] for part in parts]))
            == (elsewhere[name])
        ), name
        asked = [fold(p.fields["question"]) for part in parts for p in part]
        assert len(set(asked)) == len(asked) and all(parts), name
        for problem in parts[2]:
            gold = graded(problem, str(problem.gold))
            assert gold.verdict.passed, (name, gold)
            assert not graded(problem, "nonsense").verdict.correct, name


@needs_it
def test_a_few_tasks_are_made_alike_and_judged() -> None:
    check(list(FEW), 4)


@needs_it
@pytest.mark.slow
@pytest.mark.parametrize("first", range(8))
def test_every_task_is_made_alike_and_judged(first: int) -> None:
    check(gym.accepted()[first::8], 2)


@needs_it
def test_training_has_the_recipes_seed_and_parts_do_not_meet() -> None:
    one, other = load("coin_flip", "train", 60), load("coin_flip", "train", 60, seed=1)
    assert one == load("coin_flip", "train", 60) and one != other
    assert load("coin_flip", seed=1) == load("coin_flip")
    held = {p.fields["question"] for p in load("coin_flip", limit=60)}
    assert not held & {p.fields["question"] for p in one + other}  # there are few questions


# ---- answers -------------------------------------------------------------------------------------


@needs_it
def test_nearly_right_is_wrong() -> None:
    [problem] = load("leg_counting", limit=1)
    grade = graded(problem, f"{problem.gold} legs")
    assert not grade.verdict.correct and "(a score of 0." in grade.verdict.reason
    assert graded(problem, "").parsed is None


@needs_it
def test_hostile_answers_do_no_harm(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    touch = f"__import__('os').system('touch {mark}')"
    answers = [touch, f"[{touch}]", "9" * 10**6, "\x00\x1b[2J\r\n\u202e", "[" * 5000, "\ud800"]
    for name in FEW:
        [problem] = load(name, limit=1)
        assert not any(graded(problem, answer).verdict.correct for answer in answers)
        assert graded(problem, str(problem.gold)).verdict.correct
    assert not mark.exists()


@needs_it
def test_an_answer_that_takes_for_ever_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    [problem] = load("coin_flip", limit=1)
    assert graded(problem, str(problem.gold)).verdict.correct
    with monkeypatch.context() as patch:
        patch.setattr(gym, "WALL_S", 1.0)
        assert "took more than" in graded(problem, "1e999999999").verdict.reason
    assert graded(problem, str(problem.gold)).verdict.correct


@needs_it
def test_what_is_in_a_file_is_not_compared_with(tmp_path: Path) -> None:
    """The question is made again: a gold answer of a stranger's file changes nothing."""
    [problem] = load("leg_counting", limit=1)
    changed = dataclasses.replace(problem, gold="7")
    assert not graded(changed, "7").verdict.correct
    assert graded(changed, str(problem.gold)).verdict.correct
    other = dataclasses.replace(problem, fields={**problem.fields, "question": "1 + 1?"})
    assert "is another question now" in graded(other, str(problem.gold)).verdict.reason
    row = {"id": 1, **problem.meta, "response": f"<think>-</think><answer>{problem.gold}</answer>"}
    assert next(grade_file("gym:leg_counting", write_rows(tmp_path / "r", [row])))["correct"]
    with pytest.raises(UserError, match="line 1: no seed and index"):
        next(grade_file("gym:leg_counting", write_rows(tmp_path / "r", [row | {"seed": "1"}])))


@needs_it
def test_another_version_is_not_judged_by() -> None:
    [problem] = load("leg_counting", limit=1)
    old = dataclasses.replace(problem, fields={**problem.fields, "reasoning_gym": "0.1.20"})
    with pytest.raises(UserError, match=r"reasoning_gym 0\.1\.20 made the question") as caught:
        graded(old, "7")
    assert caught.value.hint == "pip install reasoning_gym==0.1.20"


@needs_it
@pytest.mark.parametrize("name", ["leg_counting", "tower_of_hanoi"])
def test_the_solver_knows_the_answer(name: str) -> None:
    [problem] = load(name, limit=1)
    critic = SolverCritic(problem.task)
    critic.preflight()
    wrong = "<think>2 + 2 = 5</think><answer>nonsense</answer>"
    calls = [Call(role, problem, [], wrong, visibility="gold_answer") for role in
             ("critique", "rewrite")]  # type: ignore[arg-type]  # fmt: skip
    critique, rewrite = critic.ask(calls)
    assert critique.text.startswith("expected")
    grade = get_task(problem.task).grade(problem, rewrite.text, "think", "thinking")
    assert grade.verdict.passed
    spans = {"think": [rewrite.text.index(">") + 1, rewrite.text.index("</think>")]}
    assert not leak(rewrite.text, spans, "thinking")


# ---- which tasks there are -----------------------------------------------------------------------

EVALUATING = {
    "binary_matrix", "bitwise_arithmetic", "countdown", "intermediate_integration", "n_queens",
    "number_sorting", "polynomial_multiplication", "puzzle24", "simple_integration",
    "spiral_matrix", "string_insertion",
}  # fmt: skip


@needs_it
def test_refused_tasks_say_why() -> None:
    made = gym.data_sets()
    assert {name for name in made if gym.evaluates(made[name])} == EVALUATING
    assert set(gym.REFUSED) <= set(made)  # none of these names is out of date
    assert len(gym.accepted()) + len(EVALUATING | set(gym.REFUSED)) == len(made)
    listed = (Path(__file__).parent.parent / "recipes/README.md").read_text()
    assert all(f"`{name}`" in listed for name in made)
    for name in ("countdown", "rush_hour", "word_ladder", "game_of_life_halting"):
        with pytest.raises(UserError, match=f"gym:{name} is refused: ") as caught:
            load(name)
        assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("name", ["gym:", "gym:../x", "gym:a b", "gym:" + "a" * 99])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UserError, match="no task"):
        get_task(name)


@needs_it
def test_an_unknown_name_is_answered_by_the_nearest() -> None:
    with pytest.raises(UserError, match="no task 'leg_countin' in reasoning_gym") as caught:
        load("leg_countin")
    assert caught.value.hint == "did you mean gym:leg_counting?"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.importlib.util, "find_spec", lambda name: None)
    problem = Problem("a", "gym:gcd", {"question": "1?"})
    assert get_task("gym:gcd").show(problem) == "1?"  # a folder is shown without it
    with pytest.raises(UserError, match="reasoning_gym, which is not installed") as caught:
        load("gcd", limit=3)
    assert caught.value.hint == "pip install 'mlxreflect[gym]'"


# ---- in runs -------------------------------------------------------------------------------------

SHORT = {
    "task.name": "gym:coin_flip", "task.limit": 12, "eval.spec": "", "eval.limit": 8,
    "r3.wave": 6, "r3.epochs": 1, "eval.dev_every": 1, "eval.dev_limit": 4, "eval.cache": "off",
    "policy.max_new_tokens": 20, "eval.max_new_tokens": 20, "train.reference_cache": "off",
}  # fmt: skip


@needs_it
def test_a_recipe_asks_them_and_a_command_does() -> None:
    recipe = load_recipe("quickstart", [f"{key}={value}" for key, value in SHORT.items()])
    specs = 'eval.spec=["", "gym:gcd", "countdown"]'
    several = load_recipe("quickstart", ["task.name=gym:coin_flip", specs])
    assert list(eval_specs(several)) == ["gym-coin_flip", "gym-gcd", "countdown"]
    spec = eval_specs(recipe)["gym-coin_flip"]
    task = get_task(spec.task.name)
    held_out = {"gym-coin_flip": eval_problems(task, spec)}
    dev = dev_problems(recipe, held_out)
    assert len(dev) == 4 and clean(recipe, held_out).counts["dropped"] == 0
    asked = ask(task, dev[0], find_spec("gym:coin_flip", 5, "", []), [])
    assert asked[-1]["content"] == dev[0].fields["question"]
    with pytest.raises(UserError, match="makes its own problems"):
        eval_problems(task, find_spec("gym:coin_flip", 5, "x.jsonl", []))


@needs_it
@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_process("quickstart", SHORT, tmp_path / "whole")
    run_process("quickstart", SHORT, tmp_path / "run", "verified", 2)
    with monkeypatch.context() as patch:
        patch.setattr(gym, "installed", lambda: "0.1.99")
        with pytest.raises(UserError, match="began with other problems") as caught:
            carry_out(open_folder(tmp_path / "run"))
        assert "the version of reasoning_gym" in caught.value.hint
    gym.problems_of.cache_clear()
    carry_out(open_folder(tmp_path / "run"))
    assert outputs_in(tmp_path / "run") == outputs_in(tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "run/examples.jsonl").open()]
    assert any("The answer is" in str(row["chosen"]) for row in rows)
