"""Evaluations: the same bytes however they were interrupted, and figures that can be recounted."""

import json

import pytest

from mlxreflect.errors import UserError
from mlxreflect.evaluate import (
    eval_problems,
    evaluate,
    find_spec,
    fingerprint,
    summarise,
    whole_chunks,
)
from mlxreflect.policy import load_policy
from mlxreflect.recipe import eval_spec
from mlxreflect.tables import EvalSpec, PolicyConfig, Recipe
from mlxreflect.tasks import TASKS, training_problems

SPEC = EvalSpec.model_validate(
    {"task": {"name": "countdown"}, "limit": 20, "max_new_tokens": 30, "batch": 1, "seed": 3}
)


@pytest.fixture(scope="module")
def policy():
    return load_policy(PolicyConfig())


def run(policy, out, spec=SPEC):
    task = TASKS[spec.task.name]
    return evaluate(policy, task, eval_problems(task, spec), spec, out)


@pytest.mark.parametrize("cut", [0.1, 0.999])
def test_a_cut_samples_file_is_completed_to_the_same_bytes(policy, tmp_path, cut):
    whole = run(policy, tmp_path / "whole")
    run(policy, tmp_path / "cut")
    path = tmp_path / "cut" / "samples.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    assert run(policy, tmp_path / "cut") == whole
    assert path.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes() == data


def test_another_evaluation_in_the_same_folder_is_refused_by_the_key(policy, tmp_path):
    run(policy, tmp_path)
    with pytest.raises(UserError, match="decoding"):
        run(policy, tmp_path, SPEC.model_copy(update={"temperature": 0.5}))
    with pytest.raises(UserError, match="limit"):
        run(policy, tmp_path, SPEC.model_copy(update={"limit": 10}))


def test_only_whole_chunks_are_kept(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"".join(b'{"i": %d}\n' % i for i in range(7)) + b'{"i"')
    assert whole_chunks(path, 3, 100) == 6
    assert path.read_bytes().count(b"\n") == 6
    path.write_bytes(b"".join(b'{"i": %d}\n' % i for i in range(7)))
    assert whole_chunks(path, 3, 7) == 7  # the last chunk is short when all is there


def test_figures_are_counted_from_the_samples(tmp_path):
    rows = [("7", True, True, "stop"), (None, False, False, "length"), ("8", False, True, "stop"),
            ("9", True, False, "stop")]  # fmt: skip
    lines = [
        {"schema": "sample/1", "task": "gsm8k", "problem_id": str(i), "sample": 0, "text": "",
         "token_ids": [1] * (i + 1), "finish_reason": reason, "parsed": parsed,
         "correct": correct, "format_ok": format_ok}
        for i, (parsed, correct, format_ok, reason) in enumerate(rows)
    ]  # fmt: skip
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = summarise(path)
    assert (found["n"], found["accuracy"], found["strict_accuracy"]) == (4, 0.5, 0.25)
    assert (found["format_rate"], found["parse_failures"], found["truncated"]) == (0.5, 1, 1)
    assert found["tokens_mean"] == 2.5


def test_problems_do_not_depend_on_the_limit_beyond_their_number():
    few = eval_problems(TASKS["countdown"], SPEC)
    assert len(few) == 20
    assert len({p.id for p in few}) == 20


def test_no_held_out_problem_is_trained_on():
    """For every generated task and any training seed, by content and not by luck."""
    for name in ("countdown", "arithmetic"):
        task = TASKS[name]
        recipe = Recipe.model_validate({"task": {"name": name, "limit": 3000}})
        held_out = {p.id for p in task.load(recipe.task, "heldout", 0)}
        for seed in (0, 1):
            assert not held_out & {p.id for p in task.load(recipe.task, "train", seed)}


def test_several_samples_a_question(policy, tmp_path):
    spec = SPEC.model_copy(update={"samples": 3, "temperature": 1.0, "limit": 4, "batch": 2})
    results = run(policy, tmp_path, spec)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in rows] == [0, 1, 2] * 4
    assert results["samples"] == 3
    assert len({row["text"] for row in rows[:3]}) > 1


def test_a_recipe_evaluates_the_data_it_names(tmp_path):
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(60)]
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate({"task": {"name": "gsm8k", "source": str(source)},
                                    "eval": {"spec": "gsm8k"}})  # fmt: skip
    spec = eval_spec(recipe)
    assert (spec.task.source, spec.part) == (str(source), "heldout")
    held_out = eval_problems(TASKS["gsm8k"], spec)
    trained = TASKS["gsm8k"].load(recipe.task, "train", 0)
    assert held_out
    assert not {p.id for p in held_out} & {p.id for p in trained}
    other = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"source": "x.jsonl"})})
    assert (eval_spec(other).task.source, eval_spec(other).part) == ("x.jsonl", "all")


def test_specs_by_name_task_and_setting():
    spec = find_spec("countdown", 50, "", ["temperature=0.7", "samples=4"])
    assert (spec.limit, spec.temperature, spec.samples) == (50, 0.7, 4)
    assert find_spec("jsonl", 0, "mine.jsonl", []).part == "all"
    with pytest.raises(UserError, match="no eval 'nothing'"):
        find_spec("nothing", 0, "", [])
    with pytest.raises(UserError, match="unknown key temprature"):
        find_spec("countdown", 0, "", ["temprature=1"])


def test_a_training_question_in_other_spelling_is_not_trained_on(tmp_path):
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(60)]
    mine, exam = tmp_path / "mine.jsonl", tmp_path / "exam.jsonl"
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = [{**row, "question": row["question"].replace("What is", "what  IS")} for row in rows]
    exam.write_text("".join(json.dumps(row) + "\n" for row in other[:30]))
    recipe = Recipe.model_validate({"task": {"name": "jsonl", "source": str(mine)},
                                    "eval": {"spec": "gsm8k", "source": str(exam)}})  # fmt: skip
    spec = eval_spec(recipe)
    held_out = eval_problems(TASKS[spec.task.name], spec)
    kept = training_problems(recipe, held_out)
    numbers = {int(p.fields["question"].split()[2]) for p in kept.values()}
    assert numbers
    assert min(numbers) >= 30


def test_an_adapter_is_known_by_its_content(tmp_path):
    (tmp_path / "adapters.safetensors").write_bytes(b"one")
    first = fingerprint(tmp_path)
    (tmp_path / "adapters.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != first


def test_a_spec_names_its_grading_rules(policy, tmp_path):
    spec = SPEC.model_copy(update={"limit": 6})
    exact = run(policy, tmp_path / "a", spec)
    strict = run(policy, tmp_path / "b", spec.model_copy(update={"rules": "strict"}))
    assert (exact["rules"], exact["spec"]["rules"]) == ("exact", "")
    assert (strict["rules"], strict["spec"]["rules"]) == ("strict", "strict")
    assert exact["prompt_hash"] == strict["prompt_hash"]
    rows = [json.loads(line) for line in (tmp_path / "b" / "samples.jsonl").open()]
    assert all(row["format_ok"] or not row["correct"] for row in rows)
    assert "score" not in rows[0] and "f1" not in strict
    asked = [json.loads(line)["id"] for line in (tmp_path / "b" / "problems.jsonl").open()]
    assert asked == [row["problem_id"] for row in rows]
    with pytest.raises(UserError, match="no rules 'lax'"):
        run(policy, tmp_path / "c", spec.model_copy(update={"rules": "lax"}))
    assert not (tmp_path / "c" / "samples.jsonl").exists()
