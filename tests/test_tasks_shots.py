"""How an evaluation asks: chat or raw text, with worked examples, and what contradicts itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.methods import attempt_messages
from support.rows import write_rows

from mlxreflect.config.recipe import load_recipe, read_spec
from mlxreflect.config.schema import EvalSpec, Recipe, TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.evaluate import eval_problems, find_spec
from mlxreflect.methods.session import attempt_prompt
from mlxreflect.runs.run import check_run
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.base import ask, load_shots

DATA = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
with_data = pytest.mark.skipif(not DATA.is_dir(), reason="the GSM8K rows are not there")


def rows(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {i} and one?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n"
             f"#### {i + 1}"} for i in range(count)]  # fmt: skip


def spec_of(name: str, source: str = "", **keys: Any) -> EvalSpec:
    task = {"name": name} | ({"source": source} if source else {})
    return EvalSpec.model_validate({"task": task | keys.pop("task", {}), **keys})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write_rows(tmp_path / "train.jsonl", rows(40))
    write_rows(tmp_path / "test.jsonl", rows(60)[40:])
    return str(tmp_path)


def test_completion_form_is_lm_evals(folder: str) -> None:
    spec = spec_of("gsm8k", folder, form="completion", shots=2, stop=["Question:"])
    task = TASKS["gsm8k"]
    shots = load_shots(task, spec)
    problem = eval_problems(task, spec)[0]
    first, second = (shot.fields["question"] for shot in shots)
    assert ask(task, problem, spec, shots) == (
        f"Question: {first}\nAnswer: {shots[0].meta['solution']}\n\n"
        f"Question: {second}\nAnswer: {shots[1].meta['solution']}\n\n"
        f"Question: {problem.fields['question']}\nAnswer:"
    )
    assert "<<" in shots[0].meta["solution"] and "#### " in shots[0].meta["solution"]
    plain = spec_of("gsm8k", folder, form="completion")
    assert load_shots(task, plain) == []
    assert ask(task, problem, plain, []) == f"Question: {problem.fields['question']}\nAnswer:"


@with_data
def test_the_five_shots_of_gsm8k() -> None:
    spec = find_spec("gsm8k_5shot", 10, "", [f"task.source={DATA}"])
    task = TASKS["gsm8k"]
    assert (spec.form, spec.shots, spec.rules) == ("completion", 5, "lm-eval-flexible")
    assert spec.stop == ["Question:", "</s>", "<|im_end|>"]
    shots = load_shots(task, spec)
    text = ask(task, eval_problems(task, spec)[0], spec, shots)
    assert isinstance(text, str)
    assert (text.count("Question: "), text.count("\n#### "), text[-7:]) == (6, 5, "Answer:")
    trained = [json.loads(line) for line in (DATA / "train.jsonl").open(encoding="utf-8")]
    assert all(shot.fields["question"] in [r["question"] for r in trained[:8]] for shot in shots)
    held_out = {p.id for p in task.load(spec.task, "heldout", 0)}
    assert not held_out & {shot.id for shot in shots}
    # Each example, as an answer, is right under the rules that the spec names.
    for shot in shots:
        verdict = task.rules[spec.rules](shot, shot.meta["solution"], "think", "thinking").verdict
        assert verdict.passed


def test_a_chat_without_examples_is_the_attempt(folder: str) -> None:
    spec, task = spec_of("gsm8k", folder), TASKS["gsm8k"]
    problem = eval_problems(task, spec)[0]
    expected = attempt_messages(task.instruction(problem), task.show(problem), "think", "thinking")
    assert ask(task, problem, spec, []) == expected


@pytest.mark.parametrize("tags", ["think", "preflexor"])
@pytest.mark.parametrize("style", ["thinking", "direct"])
@pytest.mark.parametrize("name", ["gsm8k", "countdown", "arithmetic", "last_letter"])
def test_examples_of_a_chat_are_in_the_format_it_asks_for(
    folder: str, name: str, style: str, tags: str
) -> None:
    source = folder if name == "gsm8k" else ""
    spec = spec_of(name, source, shots=3, limit=4, prompt={"style": style, "tags": tags})
    task = TASKS[name]
    shots = load_shots(task, spec)
    problem = eval_problems(task, spec)[0]
    messages = ask(task, problem, spec, shots)
    assert isinstance(messages, list)
    roles = [message["role"] for message in messages]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]
    assert messages[-1]["content"] == task.show(problem)
    for shot, reply in zip(shots, messages[2::2], strict=True):
        verdict = task.grade(shot, reply["content"], tags, style).verdict
        assert verdict.passed, verdict.reason
        assert "<<" not in reply["content"]


@pytest.mark.parametrize("name", ["countdown", "arithmetic", "last_letter"])
def test_completions_of_other_tasks_are_right_by_their_own_rules(name: str) -> None:
    spec, task = spec_of(name, form="completion", shots=2, limit=4), TASKS[name]
    shots = load_shots(task, spec)
    text = ask(task, eval_problems(task, spec)[0], spec, shots)
    assert isinstance(text, str)
    answers = [part.partition("\nAnswer: ")[2] for part in text.split("\n\n")]
    for shot, answer in zip(shots, answers, strict=False):
        assert task.grade(shot, answer, "think", "thinking").verdict.correct


def test_a_problem_is_never_its_own_example(folder: str) -> None:
    spec = spec_of("gsm8k", folder, form="completion", shots=3, part="train")
    task = TASKS["gsm8k"]
    shots = load_shots(task, spec)
    assert len(shots) == 4
    for problem in shots:
        text = ask(task, problem, spec, shots)
        assert isinstance(text, str)
        assert text.count("Question: ") == 4
        assert text.count(problem.fields["question"]) == 1


def test_the_examples_are_the_same_for_every_question(folder: str) -> None:
    spec = spec_of("gsm8k", folder, form="completion", shots=3)
    task = TASKS["gsm8k"]
    shots = load_shots(task, spec)
    prompts = [ask(task, p, spec, shots) for p in eval_problems(task, spec)]
    assert len({str(prompt).rpartition("Question: ")[0] for prompt in prompts}) == 1
    other = spec.model_copy(update={"seed": 5})
    assert load_shots(task, other) == shots


def fault(name: str, source: str = "", **keys: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_shots(TASKS[name], spec_of(name, source, **keys))
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_what_contradicts_itself_is_refused(folder: str, tmp_path: Path) -> None:
    assert "evaluation alone" in fault("aime", shots=1).message
    error = fault("gsm8k", folder, shots=500)
    there = len(TASKS["gsm8k"].load(TaskConfig(source=folder), "train", 0))
    assert error.message == f"shots = 500: the training part of gsm8k has {there}"
    rows_ = [{"question": f"{i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(40)]
    source = str(write_rows(tmp_path / "c.jsonl", rows_))
    choice = {"task": {"answer_type": "choice"}, "shots": 2}
    assert "without worked solutions" in fault("jsonl", source, **choice).message
    spec = spec_of("jsonl", source, **choice, prompt={"style": "direct"})
    assert len(load_shots(TASKS["jsonl"], spec)) == 2


@pytest.mark.parametrize(
    ("keys", "stop"),
    [
        ({"form": "completion", "shots": 2}, "####"),
        ({"form": "completion", "shots": 2}, "\n"),
        ({}, "</answer>"),
        ({}, "</think>"),
        ({"prompt": {"tags": "preflexor"}}, "<|/thinking|>"),
        ({"shots": 2}, " + 1"),
    ],
)
def test_a_stop_that_cuts_right_answers_is_refused(folder: str, keys: Any, stop: str) -> None:
    assert f"stop = {stop!r}" in fault("gsm8k", folder, **keys, stop=["Question:", stop]).message


@pytest.mark.parametrize("name", ["aime", "math500"])
def test_a_task_without_a_training_part_has_no_examples(name: str) -> None:
    """The recipe is refused before a run begins, and without the data."""
    recipe = load_recipe("quickstart", ["prompt.shots=2", f"eval.spec=countdown,{name}"])
    with pytest.raises(UserError, match=f"shots = 2: the task {name} is an evaluation alone") as e:
        check_run(recipe)
    assert e.value.hint.startswith("set prompt.shots = 0")
    check_run(load_recipe("quickstart", [f"eval.spec=countdown,{name}"]))


def test_keys_of_the_wrong_type_are_named() -> None:
    for setting, said in (("stop=['']", "stop"), ("form=raw", "form"), ("shots=-1", "shots")):
        with pytest.raises(UserError) as caught:
            find_spec("gsm8k", 0, "", [setting])
        assert said in caught.value.message


@pytest.mark.parametrize("style", ["thinking", "direct"])
def test_attempts_of_a_run_see_the_examples_that_its_evaluation_shows(style: str) -> None:
    prompt = {"style": style, "shots": 2, "tags": "reasoning"}
    recipe = Recipe.model_validate({"strategy": "r3", "prompt": prompt, "task": {"limit": 9}})
    task, spec = TASKS["countdown"], read_spec(recipe, "")
    assert (spec.shots, spec.prompt.shots) == (2, 0)
    asked, shots = eval_problems(task, spec)[0], load_shots(task, spec)
    assert attempt_prompt(recipe, task, asked) == ask(task, asked, spec, shots)
    trained = task.load(recipe.task, "train", 0)
    for problem in (*trained[:3], asked):  # also the examples themselves are asked
        messages = attempt_prompt(recipe, task, problem)
        questions = [m["content"] for m in messages if m["role"] == "user"]
        assert len(set(questions)) == 3 and questions[-1] == task.show(problem)
    known = {task.show(one) for one in trained}
    assert known >= {*questions[:-1]} and not known & {task.show(one) for one in
                                                       eval_problems(task, spec)}  # fmt: skip


def test_a_specs_own_shots_go_before_those_of_its_prompt() -> None:
    both = {"task": {}, "shots": 1, "prompt": {"shots": 3}}
    assert EvalSpec.model_validate(both).shots == 1
    assert EvalSpec.model_validate({"task": {}, "prompt": {"shots": 3}}).shots == 3
