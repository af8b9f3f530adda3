"""Every shipped recipe: its quick profile is offline and runs, in small, from base to verdict."""

import importlib
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.expressions import ast_value as evaluated
from support.run_outputs import outputs_in, outputs_of_run, run_process

import mlxreflect
from mlxreflect.config.recipe import eval_spec, eval_specs, load_recipe, read_shared
from mlxreflect.config.schema import METHODS, PolicyConfig, method_of
from mlxreflect.config.toml import bundled
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json, read_rows
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.evaluate import find_spec
from mlxreflect.models.load import load_policy
from mlxreflect.models.memory import Decoding
from mlxreflect.report.show import totals
from mlxreflect.runs.folder import create_run
from mlxreflect.runs.run import execute
from mlxreflect.setup.dry_run import estimate
from mlxreflect.tasks import TASKS

# What makes each small: two waves, or as few as the method has.
SMALL = {
    "quickstart": {"r3.wave": 8, "r3.epochs": 2},
    "r3": {"r3.wave": 8, "r3.epochs": 2},
    "r3_arithmetic": {"r3.wave": 8, "r3.epochs": 2, "eval.dev_limit": 6},
    "rel": {"rel.wave": 8, "rel.rounds": 1},
    "preflexor": {"preflexor.questions": 8, "preflexor.rounds": 1},
    "reflectevo": {"reflectevo.wave": 4},
    "traces": {"traces.wave": 8, "traces.warm_up": 8, "traces.problems": 8, "traces.rounds": 1},
}


def test_every_method_has_a_recipe_of_its_name() -> None:
    assert set(SMALL) == set(bundled("recipes")) == {"quickstart", "r3_arithmetic", *METHODS}
    assert all(method.name == name for name, method in METHODS.items())
    for name in METHODS:
        assert load_recipe(name).strategy == name


@pytest.mark.parametrize("name", SMALL)
def test_quick_profiles_need_nothing_but_this_package(name: str) -> None:
    recipe = load_recipe(name, [] if name == "quickstart" else ["profile=quick"])
    assert recipe.policy.model == "tiny"
    assert {recipe.critic.tier(tier).provider for tier in method_of(recipe).tiers(recipe)} <= {
        "solver"
    }
    assert recipe.task.name == "countdown" and not recipe.task.source
    spec = eval_spec(recipe)
    assert spec.part == "heldout" and spec.limit >= 500


@pytest.mark.parametrize("name", METHODS)
def test_full_settings_ask_a_model_of_ollama(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.policy.model.startswith("mlx-community/")
    asked = method_of(recipe).tiers(recipe)
    assert {recipe.critic.tier(tier).provider for tier in asked} <= {"ollama"}
    task = TASKS["countdown"]
    problems = task.load(recipe.task.model_copy(update={"limit": 4, "source": ""}), "train", 0)
    found = estimate(recipe, task, problems)
    assert set(found["critics"]) == set(asked)
    assert bool(asked) == (found["at_most"]["calls"] > 0)
    assert found["expected"]["calls"] <= found["at_most"]["calls"]


def test_r3_arithmetic_asks_no_server_and_ends_in_four_evaluations() -> None:
    recipe = load_recipe("r3_arithmetic")
    tiers = method_of(recipe).tiers(recipe)
    assert {recipe.critic.tier(tier).provider for tier in tiers} == {"solver"}
    assert (recipe.task.name, recipe.task.limit) == ("arithmetic", 700)
    specs = eval_specs(recipe)
    assert list(specs) == ["arithmetic", "gsm8k", "aime25_10", "last_letter"]
    assert [spec.samples for spec in specs.values()] == [1, 1, 10, 1]
    assert {spec.part for spec in specs.values()} == {"heldout"}
    eight, ten = (find_spec(name, 0, "", []) for name in ("aime25", "aime25_10"))
    assert ten == eight.model_copy(update={"name": "aime25_10", "samples": 10})


@pytest.mark.slow
def test_the_solver_teaches_arithmetic(tmp_path: Path) -> None:
    """Every wrong attempt gets a rewrite whose steps and answer are right, computed here."""
    settings = {
        "policy.model": "tiny", "prompt.tags": "think", "task.limit": 24, "r3.wave": 12,
        "policy.batch": 24, "policy.max_new_tokens": 60, "eval.max_new_tokens": 60,
        "eval.spec": ["arithmetic", "last_letter"], "eval.limit": 8, "eval.dev_every": 1,
        "eval.dev_limit": 8, "r3.patience": 0,
    }  # fmt: skip
    outputs_of_run("r3_arithmetic", settings, tmp_path)
    pairs = list(read_rows(tmp_path / "examples.jsonl"))
    values = {row["problem"]["id"]: evaluated(row["problem"]["fields"]["expression"])
              for row in read_rows(tmp_path / "episodes.jsonl")}  # fmt: skip
    assert len(values) == 24 and len({row["source"]["problem"] for row in pairs}) >= 20
    for row in pairs:
        text = row["chosen"] or row["completion"]
        for left, result in re.findall(r"step \d+: (.*?) = (-?\d+)$", text, re.MULTILINE):
            assert evaluated(left) == int(result)
        answer = re.findall(r"<answer> (-?\d+) </answer>", text)[-1]
        assert int(answer) == values[row["source"]["problem"]]
    summary = read_json(tmp_path / "summary.json")
    assert list(summary["evaluations"]) == ["arithmetic", "last_letter"]
    assert summary["dev"]["looks"] == 2


# ---- profiles of models --------------------------------------------------------------------------

SHARED = read_shared()
QWEN3 = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936, "rms_norm_eps": 1e-6,
         "rope_theta": 1e6, "max_position_embeddings": 40960,
         "tie_word_embeddings": True}  # fmt: skip
DELTA = {"head_dim": 256, "vocab_size": 248320, "linear_num_key_heads": 16,
         "linear_key_head_dim": 128, "linear_value_head_dim": 128,
         "tie_word_embeddings": True}  # fmt: skip
# mlx-lm's name of the architecture, and what the model's config.json says.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-1.5b": ("qwen2", {
        **QWEN3, "hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960,
        "num_attention_heads": 12, "num_key_value_heads": 2}),
    "llama-3.2-3b": ("llama", {
        **QWEN3, "hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192,
        "num_attention_heads": 24, "vocab_size": 128256}),
    "qwen3-1.7b": ("qwen3", {
        **QWEN3, "hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144,
        "num_attention_heads": 16}),
    "qwen3-4b": ("qwen3", {
        **QWEN3, "hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728,
        "num_attention_heads": 32}),
    "qwen3.5-2b": ("qwen3_5", {"text_config": {
        **DELTA, "hidden_size": 2048, "num_hidden_layers": 24, "intermediate_size": 6144,
        "num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_value_heads": 16}}),
    "qwen3.5-4b": ("qwen3_5", {"text_config": {
        **DELTA, "hidden_size": 2560, "num_hidden_layers": 32, "intermediate_size": 9216,
        "num_attention_heads": 16, "num_key_value_heads": 4, "linear_num_value_heads": 32}}),
    "gemma-4-e2b": ("gemma4_text", {}),
    "gemma-4-e4b": ("gemma4_text", {
        "hidden_size": 2560, "num_hidden_layers": 42, "intermediate_size": 10240,
        "num_key_value_heads": 2, "num_kv_shared_layers": 18, "use_double_wide_mlp": False,
        "sliding_window_pattern": 6}),
}  # fmt: skip
ARCHITECTURES["qwen3-4b-2507"] = ARCHITECTURES["qwen3-4b"]
PROMPT = 500  # tokens of a question with its instructions
# Bytes of keys and values: of each token, and of a sequence however long it is.
KEPT = {
    "qwen2.5-1.5b": (28 * 2 * 128 * 4, 0), "llama-3.2-3b": (28 * 8 * 128 * 4, 0),
    "qwen3-1.7b": (28 * 8 * 128 * 4, 0), "qwen3-4b": (36 * 8 * 128 * 4, 0),
    "qwen3-4b-2507": (36 * 8 * 128 * 4, 0),
    "qwen3.5-2b": (6 * 2 * 256 * 4, 18 * 16 * 128 * 128 * 4),
    "qwen3.5-4b": (8 * 4 * 256 * 4, 24 * 32 * 128 * 128 * 4),
    "gemma-4-e2b": (3 * 512 * 4, 12 * 512 * 256 * 4),
    "gemma-4-e4b": (4 * 2 * 512 * 4, 20 * 512 * 2 * 256 * 4),
}  # fmt: skip
# Gigabytes to download, as Ollama's library says.
FILES = {"qwen2.5:7b": 4.7, "qwen3.5:4b": 3.4, "qwen3.5:9b": 6.6, "gemma4:12b": 7.6,
         "gpt-oss:20b": 14.0}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SHARED.profiles)
def test_every_recipe_has_the_profiles_of_models(name: str, method: str) -> None:
    usual, recipe = load_recipe(method), load_recipe(method, [f"profile={name}"])
    if name.startswith("critic-"):
        tiers = {recipe.critic.tier(tier).model for tier in method_of(recipe).tiers(recipe)}
        assert tiers <= {SHARED.models("critic")[name]}
        assert (recipe.policy, recipe.prompt) == (usual.policy, usual.prompt)
        return
    policy, own = recipe.policy, method in ("preflexor", "traces")
    assert policy.model == SHARED.models("policy")[name] and recipe.critic == usual.critic
    assert name == "qwen2.5-1.5b" or eval_spec(recipe).max_new_tokens == policy.max_new_tokens
    assert name == "qwen2.5-1.5b" or own or recipe.prompt.tags == "reasoning"
    assert method != "preflexor" or recipe.prompt.tags == "preflexor"
    if method == "traces":
        cut = (policy.temperature, policy.top_p, policy.top_k, policy.presence_penalty)
        assert cut == (1.0, 1.0, 0, 0.0)
    quick = load_recipe(method, [f"profile={name},quick"])
    assert (quick.policy.model, quick.policy.max_new_tokens) == ("tiny", 40)


@pytest.mark.parametrize("name", SHARED.models("policy"))
def test_the_memory_of_a_policy_is_its_weights_and_its_batch(name: str) -> None:
    kind, config = ARCHITECTURES[name]
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    model = module.Model(module.ModelArgs.from_dict({"model_type": kind, **config}))
    numbers = sum(array.size for _, array in tree_flatten(model.parameters()))
    policy = load_recipe("r3", [f"profile={name}"]).policy
    token, sequence = KEPT[name]
    model.set_dtype(mx.bfloat16)
    decoding = Decoding(model)
    grown = decoding.sequence(8448) - decoding.sequence(4352)  # past every window
    assert grown == 4096 * token
    assert 0.99 * sequence <= decoding.sequence(4352) - 4352 * token <= 1.06 * sequence
    batch = policy.batch * (sequence + token * (PROMPT + policy.max_new_tokens))
    # In 4 bits, with a scale and a bias of two bytes for each 64 weights.
    assert SHARED.memory_gb[name] == pytest.approx((numbers * 4.5 / 8 + batch) / 1e9, abs=0.06)


def test_the_memory_of_a_critic_is_its_file_and_its_window() -> None:
    for name, model in SHARED.models("critic").items():
        assert SHARED.memory_gb[name] == pytest.approx(FILES[model] + 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_runs_in_small(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_process(name, {
        **({} if name == "quickstart" else {"profile": "quick"}),
        "task.limit": 8, "policy.batch": 8, "eval.limit": 6, "train.batch": 4, "eval.cache": "off",
        "train.reference_cache": "off", **SMALL[name],
    }, folder)  # fmt: skip
    summary = read_json(folder / "summary.json")
    assert summary["status"] == "finished" and summary["base"]["n"] == 6
    assert summary["comparison"]["n"] == 6
    rows = list(read_rows(folder / "metrics.jsonl"))
    assert sum(row["kind"] == "wave" for row in rows) >= 2
    assert any(row["kind"] == "step" for row in rows)
    assert {"base", "trained"} <= {path.name for path in (folder / "eval").iterdir()}
    assert "McNemar" in read_json(folder / "comparison.json")["sentence"]


# What is played once a limit has been reached in the first wave.
PLAYED = {
    "r3": ["problems"],
    "rel": ["problems", "train"],
    "preflexor": ["phase-1"],
    "reflectevo": ["problems", "training", "training"],
    "traces": ["warm-up"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_limit_lets_what_was_collected_be_trained_on(name: str, tmp_path: Path) -> None:
    """And a run that is resumed then neither plays nor trains again."""
    settings = {
        "profile": "quick", "task.limit": 16, "policy.batch": 8, "eval.limit": 6,
        "eval.cache": "off", **SMALL[name], "limits.policy_tokens": 1,
    }  # fmt: skip
    before = outputs_of_run(name, settings, tmp_path)
    waves = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "wave"]
    assert [wave["stage"] for wave in waves] == PLAYED[name]
    if name == "rel":
        assert waves[-1]["tokens_trained"] > 0
    (tmp_path / "summary.json").unlink()
    mlxreflect.resume(tmp_path)
    assert outputs_in(tmp_path) == before


@pytest.mark.slow
def test_a_run_may_be_evaluated_by_recursive_inference(tmp_path: Path) -> None:
    """Base and trained each answer in chains, and are compared as chains."""
    settings = {
        "task.limit": 8, "policy.batch": 8, "eval.limit": 12, "r3.wave": 8, "r3.epochs": 1,
        "eval.spec": "countdown_chain",
    }  # fmt: skip
    outputs_of_run("quickstart", settings, tmp_path)
    for arm in ("base", "trained"):
        chains = list(read_rows(tmp_path / "eval" / arm / "chains.jsonl"))
        assert len(chains) == 12 and any(len(chain["turns"]) > 2 for chain in chains)
        samples = list(read_rows(tmp_path / "eval" / arm / "samples.jsonl"))
        right = [any(t["role"] in ("attempt", "continue") and t["verdict"]["correct"]
                     for t in chain["turns"]) for chain in chains]  # fmt: skip
        assert [sample["correct"] for sample in samples] == right  # the grader stopped them
    assert read_json(tmp_path / "comparison.json")["n"] == 12


def test_a_chain_that_cannot_be_played_is_refused_before_anything_is_learned(tmp_path) -> None:
    settings = {"eval.spec": "countdown_chain", "eval.direct": True, "task.limit": 4}
    with pytest.raises(UserError, match=r"prompt\.style = .direct."):
        outputs_of_run("quickstart", settings, tmp_path)
    assert not (tmp_path / "eval").exists()


@pytest.mark.slow
def test_what_train_max_length_cuts_and_drops_is_counted(tmp_path: Path) -> None:
    """Against lengths computed here, of the pairs of a run in which all fit."""

    def run(length: int) -> Path:
        given = ["task.limit=40", "r3.wave=40", "r3.epochs=1", "eval.limit=4"]
        given += ["task.numbers=[3, 4]", "r3.verifications=0"]  # responses of several lengths
        recipe = load_recipe("quickstart", [*given, f"train.max_length={length}"])
        path = tmp_path / str(length)
        execute(create_run(recipe, path), Ui())
        return path

    policy = load_policy(PolicyConfig(model="tiny"))
    lengths = []  # of each pair: its prompt, its longest response
    for row in read_rows(run(500) / "examples.jsonl"):
        prompt = policy.encode(row["prompt"])
        texts, ids = (row["chosen"], row["rejected"]), (row["chosen_ids"], row["rejected_ids"])
        both = [i or policy.encode_response(prompt, t) for t, i in zip(texts, ids, strict=True)]
        lengths.append((len(prompt), max(map(len, both))))
    room = min(response for _, response in lengths) + 1
    dropped = sum(response >= room for _, response in lengths)
    cut = sum(response < room < prompt + response for prompt, response in lengths)
    assert dropped and cut
    found = run(room)
    summary = read_json(found / "summary.json")
    assert summary["dropped"] == {f"a response is over {room} tokens": dropped}
    assert (summary["cut_prompts"], summary["examples"]["preference"]) == (cut, cut)
    shown = totals(found, summary, None)
    assert shown["not trained on"] == f"{dropped} (a response is over {room} tokens)"
    assert shown["prompts cut to fit"] == cut
