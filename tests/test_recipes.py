"""Every shipped recipe: its quick profile is offline and runs, in small, from base to verdict."""

from pathlib import Path

import pytest
from support.run_outputs import outputs_in, outputs_of_run, run_process

import mlxreflect
from mlxreflect.config.recipe import eval_spec, load_recipe
from mlxreflect.config.schema import METHODS, PolicyConfig, method_of
from mlxreflect.config.toml import bundled
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json, read_rows
from mlxreflect.core.ui import Ui
from mlxreflect.models.load import load_policy
from mlxreflect.report.show import totals
from mlxreflect.runs.folder import create_run
from mlxreflect.runs.run import execute
from mlxreflect.setup.dry_run import estimate
from mlxreflect.tasks import TASKS

# What makes each small: two waves, or as few as the method has.
SMALL = {
    "quickstart": {"r3.wave": 8, "r3.epochs": 2},
    "r3": {"r3.wave": 8, "r3.epochs": 2},
    "rel": {"rel.wave": 8, "rel.rounds": 1},
    "preflexor": {"preflexor.questions": 8, "preflexor.rounds": 1},
    "reflectevo": {"reflectevo.wave": 4},
    "traces": {"traces.wave": 8, "traces.warm_up": 8, "traces.problems": 8, "traces.rounds": 1},
}


def test_every_method_has_a_recipe_of_its_name() -> None:
    assert set(SMALL) == set(bundled("recipes")) == {"quickstart", *METHODS}
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
        given = ["task.limit=60", "r3.wave=60", "r3.epochs=1", "eval.limit=4"]
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
    room = sorted(response for _, response in lengths)[len(lengths) // 2] + 1
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
