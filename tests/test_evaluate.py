"""Evaluations: the same bytes however they were interrupted, and figures that can be recounted."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from support.evaluations import evaluated, samples_of
from support.rows import write_rows

from mlxreflect.config.recipe import eval_spec
from mlxreflect.config.schema import EvalSpec, LoraConfig, PolicyConfig, Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Problem, Sample, flat_from_row, to_row
from mlxreflect.evaluation.arms import fingerprint, whole_chunks
from mlxreflect.evaluation.evaluate import (
    eval_problems,
    evaluate,
    find_spec,
    problem_set,
    summarise,
    warnings,
)
from mlxreflect.evaluation.generators import Answers, LocalGenerator, LocalModel
from mlxreflect.models.load import load_policy, policy_identity
from mlxreflect.models.policy import Policy
from mlxreflect.stats import wilson
from mlxreflect.tasks import TASKS
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.trainer import Trainer

SPEC = EvalSpec.model_validate(
    {"task": {"name": "countdown"}, "limit": 20, "max_new_tokens": 30, "batch": 1, "seed": 3}
)


@pytest.fixture(scope="module")
def policy():
    return load_policy(PolicyConfig())


def run(policy, out, spec=SPEC):
    return evaluated(policy, spec, out)


def test_only_whole_chunks_are_kept(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"".join(b'{"i": %d}\n' % i for i in range(7)) + b'{"i"')
    assert whole_chunks(path, 3, 100) == 6
    assert path.read_bytes().count(b"\n") == 6
    path.write_bytes(b"".join(b'{"i": %d}\n' % i for i in range(7)))
    assert whole_chunks(path, 3, 7) == 7  # the last chunk is short when all is there


def test_a_limit_of_the_task_stands_beside_the_limit_of_the_spec():
    """The task's says how many are generated, the spec's how many of those are asked."""
    tree = {"task": {"name": "countdown", "limit": 30}, "limit": 10}
    ids = {p.id for p in eval_problems(TASKS["countdown"], EvalSpec.model_validate(tree))}
    assert len(ids) == 10
    both = EvalSpec.model_validate({"task": {"name": "countdown", "limit": 30}})
    alone = eval_problems(TASKS["countdown"], both)
    assert len(alone) == 30 and ids == {p.id for p in alone[:10]}
    few = EvalSpec.model_validate({"task": {"name": "countdown"}, "limit": 10})
    assert ids != {p.id for p in eval_problems(TASKS["countdown"], few)}  # 10 were generated


def test_a_kill_loses_four_batches_at_most(policy, tmp_path):
    """What is on disk of whole chunks is not generated again."""
    spec = SPEC.model_copy(update={"limit": 9, "max_new_tokens": 12, "batch": 1})
    run(policy, tmp_path, spec)
    path = tmp_path / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6][:5])
    (tmp_path / "results.json").unlink()
    policy.tokens_generated = 0
    run(policy, tmp_path, spec)
    again = [len(json.loads(line)["token_ids"]) for line in lines[4:]]
    assert policy.tokens_generated == sum(again)


@pytest.mark.slow
def test_a_kill_with_several_samples_a_problem_skips_none(policy, tmp_path):
    changes = {"samples": 2, "temperature": 1.0, "limit": 6, "batch": 1, "max_new_tokens": 8}
    spec = SPEC.model_copy(update=changes)
    run(policy, tmp_path / "whole", spec)
    whole = (tmp_path / "whole" / "samples.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [json.loads(line)["sample"] for line in lines] == [0, 1] * 6
    assert len({json.loads(line)["text"] for line in lines[:2]}) > 1
    for rows in (2, 4, 7, 11):  # chunks hold two problems, four rows
        run(policy, tmp_path / "cut", spec)
        cut = tmp_path / "cut" / "samples.jsonl"
        cut.write_bytes(b"".join(lines[:rows]))
        (tmp_path / "cut" / "results.json").unlink()
        run(policy, tmp_path / "cut", spec)
        assert cut.read_bytes() == whole


def test_a_recipe_evaluates_the_data_it_names(tmp_path):
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(60)]
    source = write_rows(tmp_path / "mine.jsonl", rows)
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


def test_an_adapter_is_known_by_its_content(tmp_path):
    (tmp_path / "adapters.safetensors").write_bytes(b"one")
    first = fingerprint(tmp_path)
    (tmp_path / "adapters.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != first


# ---- what stands in the folder -------------------------------------------------------------------


@pytest.mark.slow
def test_problems_are_kept_as_they_were_asked(policy, tmp_path):
    run(policy, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    asked = eval_problems(TASKS["countdown"], SPEC)
    assert [flat_from_row(Problem, row) for row in rows] == asked
    assert [row["problem_id"] for row in samples_of(tmp_path)] == [p.id for p in asked]


def test_prompts_are_the_same_for_every_tokenizer(policy, load_random, tmp_path):
    """So that models can be compared; in one folder another tokenizer is refused all the same."""
    other = load_random()
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    other.tokenizer._tokenizer.chat_template = template
    few = SPEC.model_copy(update={"limit": 4, "max_new_tokens": 4, "batch": 4})
    ours, theirs = run(policy, tmp_path / "a", few), run(other, tmp_path / "b", few)
    assert ours["prompt_hash"] == theirs["prompt_hash"]
    other.name = policy.name
    with pytest.raises(UserError, match="token_hash"):
        run(other, tmp_path / "a", few)
    direct = few.model_copy(update={"prompt": SPEC.prompt.model_copy(update={"style": "direct"})})
    assert run(policy, tmp_path / "c", direct)["prompt_hash"] != ours["prompt_hash"]


def test_a_stop_string_ends_answers(policy, tmp_path):
    few = SPEC.model_copy(update={"limit": 6, "batch": 6})
    whole = run(policy, tmp_path / "whole", few)
    ended = run(policy, tmp_path / "ended", few.model_copy(update={"stop": ["= ", "\x00"]}))
    texts = [[row["text"] for row in samples_of(tmp_path / name)] for name in ("whole", "ended")]
    assert any("= " in text for text in texts[0])
    assert texts[1] == [text.partition("= ")[0] for text in texts[0]]
    assert ended["truncated"] == 0 < whole["tokens_mean"] - ended["tokens_mean"]
    assert ended["spec"]["stop"] == ["= ", "\x00"] and "stop" not in whole["spec"]


# ---- answers kept for the next evaluation --------------------------------------------------------


@pytest.fixture
def generated(monkeypatch):
    """The prompts that each call of the model's generation was given."""
    calls = []
    original = Policy.generate

    def spy(self, prompts, **options):
        calls.append(prompts)
        return original(self, prompts, **options)

    monkeypatch.setattr(Policy, "generate", spy)
    return calls


def test_a_raw_prompt_is_completed_without_a_chat_template(policy, tmp_path, generated):
    run(policy, tmp_path, SPEC.model_copy(update={"form": "completion", "limit": 2}))
    texts = [policy.decode(ids) for prompts in generated for ids in prompts]
    assert len(texts) == 2 and not any("<|im_start|>" in text for text in texts)
    problems = [json.loads(r) for r in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert all(str(p["fields"]["target"]) in t for p, t in zip(problems, texts, strict=True))


FEW = SPEC.model_copy(update={"limit": 8, "batch": 1, "max_new_tokens": 8})  # two chunks


def keep(policy, out, answers, spec=FEW):
    evaluated(policy, spec, out, answers=answers)
    return (out / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("changes", [{}, {"samples": 2, "temperature": 1.0}, {"stop": ["\n"]}])
def test_kept_answers_are_those_that_would_be_generated(policy, tmp_path, generated, changes):
    spec = FEW.model_copy(update=changes)
    (tmp_path / "kept").mkdir()  # a folder, in which one file stands
    answers = Answers(tmp_path / "kept")
    without = keep(policy, tmp_path / "a", None, spec)
    first = keep(policy, tmp_path / "b", answers, spec)
    asked = list(generated)
    again = LocalGenerator(LocalModel(policy), problem_set(TASKS["countdown"], spec), answers)
    evaluate(again, tmp_path / "c")
    assert (tmp_path / "c" / "samples.jsonl").read_bytes() == first == without
    assert generated == asked  # nothing more
    assert again.notes[0].startswith(f"{8 * spec.samples} answers were there already: this model")
    assert answers.report() == []


@pytest.mark.slow
def test_only_answers_to_the_same_are_reused(policy, load_random, tmp_path, generated):
    answers = Answers(tmp_path / "kept")
    keep(policy, tmp_path / "first", answers)
    others = [{"temperature": 0.5}, {"max_new_tokens": 7}, {"batch": 2}, {"seed": 4},
              {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.2}, {"repetition_penalty": 1.3},
              {"presence_penalty": 1.0}, {"stop": ["x"]}, {"samples": 2}]  # fmt: skip
    for i, changes in enumerate(others):
        generated.clear()
        keep(policy, tmp_path / str(i), answers, FEW.model_copy(update=changes))
        assert sum(map(len, generated)) == 8, changes
    generated.clear()
    keep(load_random(), tmp_path / "other model", answers)
    assert sum(map(len, generated)) == 8
    eos, policy.eos = policy.eos, policy.eos | {70}
    keep(policy, tmp_path / "other ends", answers)
    policy.eos = eos
    assert sum(map(len, generated)) == 16


def test_lora_that_has_not_learned_yet_changes_no_key(load_random):
    """So an evaluation of the base is one, alone or at the beginning of a run."""
    bare = load_random(dequantize="yes")
    key = policy_identity(bare)
    attach_lora(bare.model, LoraConfig(rank=2, keys=["self_attn.q_proj"]), 0)
    assert policy_identity(bare) == key
    arrays = {k: v + 0.1 for k, v in Trainer(bare.model).trainable().items() if "lora_b" in k}
    one = dict([next(iter(arrays.items()))])
    bare.model.load_weights(list(one.items()), strict=False)
    assert policy_identity(bare) != key
    assert sum("lora_b" in name for name in Trainer(bare.model).trainable()) == 2  # still there


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"[[[1], 2, 3]]", b"\xff", b'[["a", "b"]]'])
def test_a_damaged_answer_is_generated_again(policy, tmp_path, generated, damage):
    answers = Answers(tmp_path / "kept")
    expected = keep(policy, tmp_path / "a", answers)
    with sqlite3.connect(tmp_path / "kept") as file:
        ((key, whole), *_) = file.execute("SELECT key, value FROM kept").fetchall()
        file.execute("UPDATE kept SET value = ? WHERE key = ?", (damage, key))
    generated.clear()
    assert keep(policy, tmp_path / "b", answers) == expected
    assert len(generated) == 1
    assert answers.cache.get(key) == whole  # mended


def test_a_cache_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("no database, but long enough to be told from a new one")
    with pytest.raises(UserError, match="damaged"):
        Answers.open(str(tmp_path / "file"))
    assert Answers.open("off") is None


def test_a_spec_names_its_grading_rules(policy, tmp_path):
    spec = SPEC.model_copy(update={"limit": 6})
    exact = run(policy, tmp_path / "a", spec)
    strict = run(policy, tmp_path / "b", spec.model_copy(update={"rules": "strict"}))
    assert exact["rules"] == "exact" and "rules" not in exact["spec"]
    assert (strict["rules"], strict["spec"]["rules"]) == ("strict", "strict")
    assert exact["prompt_hash"] == strict["prompt_hash"]
    rows = samples_of(tmp_path / "b")
    assert all(row["format_ok"] or not row["correct"] for row in rows)
    assert "score" not in rows[0] and "f1" not in strict
    asked = [json.loads(line)["id"] for line in (tmp_path / "b" / "problems.jsonl").open()]
    assert asked == [row["problem_id"] for row in rows]
    with pytest.raises(UserError, match="no rules 'lax'"):
        run(policy, tmp_path / "c", spec.model_copy(update={"rules": "lax"}))
    assert not (tmp_path / "c" / "samples.jsonl").exists()


# ---- figures, recounted by hand or by brute force ------------------------------------------------


def row(problem: str, sample: int, parsed: str | None, correct: bool, **changes: object) -> dict:
    return {
        "schema": "sample/1", "task": "gsm8k", "problem_id": problem, "sample": sample,
        "text": "t", "token_ids": [1, 2], "finish_reason": "stop", "parsed": parsed,
        "correct": correct, "format_ok": True,
    } | changes  # fmt: skip


def figures(path: Path, rows: list[dict]) -> dict:
    path.unlink(missing_ok=True)
    append_rows(path, rows)
    return summarise(path)


def test_figures_of_one_sample_a_problem(tmp_path: Path) -> None:
    rows = [
        row("a", 0, "7", True, token_ids=[1]),
        row("b", 0, None, False, format_ok=False, finish_reason="length"),
        row("c", 0, "8", False, token_ids=[1] * 3),
        row("d", 0, "9", True, token_ids=[1] * 4, format_ok=False),
    ]
    found = figures(tmp_path / "s.jsonl", rows)
    assert (found["n"], found["accuracy"], found["strict_accuracy"]) == (4, 0.5, 0.25)
    assert (found["format_rate"], found["parse_failures"], found["truncated"]) == (0.5, 1, 1)
    assert found["tokens_mean"] == 2.5
    assert not {"pass_at", "maj_at", "failed"} & set(found)
    assert (found["ci_low"], found["ci_high"]) == wilson(2, 4)


def test_several_samples_by_hand(tmp_path: Path) -> None:
    answers = {
        "a": [("1", True), ("1", True), ("2", False), ("3", False)],  # majority right
        "b": [("5", False), ("5", False), ("6", True), (None, False)],  # majority wrong
        "c": [("7", False), ("8", True), ("8", True), ("7", False)],  # a tie: the first, wrong
        "d": [(None, False)] * 4,
    }
    found = figures(
        tmp_path / "s.jsonl",
        [row(p, j, *answer) for p, given in answers.items() for j, answer in enumerate(given)],
    )
    assert (found["n"], found["samples"]) == (4, 4)
    assert found["accuracy"] == 5 / 16
    assert found["pass_at"] == {
        "1": 5 / 16, "2": pytest.approx((5 / 6 + 1 / 2 + 5 / 6 + 0) / 4), "4": 3 / 4,
    }  # fmt: skip
    assert found["maj_at"] == {"4": 1 / 4}
    assert found["parse_failures"] == 5
    means = np.array([2 / 4, 1 / 4, 2 / 4, 0])
    half = 1.959963984540054 * means.std(ddof=1) / 2
    assert found["ci_low"] == pytest.approx(max(0, means.mean() - half))
    assert found["ci_high"] == pytest.approx(means.mean() + half)


@pytest.mark.parametrize(("samples", "ks"), [(2, "12"), (3, "123"), (5, "1245"), (6, "1246")])
def test_pass_at_powers_of_two_and_all_samples(tmp_path: Path, samples: int, ks: str) -> None:
    right = [[j < i for j in range(samples)] for i in range(samples + 1)]
    found = figures(
        tmp_path / "s.jsonl",
        [row(str(i), j, str(c), c) for i, one in enumerate(right) for j, c in enumerate(one)],
    )
    assert list(found["pass_at"]) == list(ks)
    assert found["pass_at"][str(samples)] == pytest.approx(samples / (samples + 1))


def test_calls_that_failed_and_tokens_that_are_not_known(tmp_path: Path) -> None:
    none = {"token_ids": [], "format_ok": False}
    rows = [
        row("a", 0, "1", True, **none, tokens=7),
        row("b", 0, None, False, **none, finish_reason="error"),
        row("c", 0, None, False, **none, finish_reason="length", tokens=9),
        row("d", 0, "1", False, **none),
    ]
    for each in rows:  # no row has an empty key
        assert to_row(flat_from_row(Sample, each)) == each
    found = figures(tmp_path / "s.jsonl", rows)
    assert (found["failed"], found["parse_failures"], found["truncated"]) == (1, 1, 1)
    assert (found["accuracy"], found["tokens_mean"]) == (0.25, 8)
    assert figures(tmp_path / "s.jsonl", rows[3:])["tokens_mean"] is None


def test_a_warning_names_what_cut_the_answers_off(tmp_path: Path) -> None:
    decoding = {"decoding": {"max_new_tokens": 64}}
    rows = [row(str(i), 0, "1", True) for i in range(40)]
    for cut, said in ((2, False), (3, True)):  # 5.0 % and 7.5 %
        for i in range(cut):
            rows[i]["finish_reason"] = "length"
        told = warnings(figures(tmp_path / "s.jsonl", rows) | decoding)
        assert bool(told) == said
    assert "3 of 40" in told[0] and "max_new_tokens = 64" in told[0]
