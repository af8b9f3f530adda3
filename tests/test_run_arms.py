"""A run's evaluations: several of them, and looks at dev problems on the way."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from support.rows import write_rows
from support.run_outputs import outputs_in, outputs_of_run, run_process

import mlxreflect
from mlxreflect.config.recipe import dump_recipe, eval_specs, load_recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json, read_rows
from mlxreflect.evaluation.arms import load_arms, read_arms
from mlxreflect.evaluation.compare import Options, compare_all
from mlxreflect.evaluation.contamination import clean, dev_problems
from mlxreflect.models.load import TINY, load_policy, weights_hash
from mlxreflect.runs.arms import ask_probes
from mlxreflect.tasks import TASKS
from mlxreflect.train.trainer import load_arrays

SHORT = {"task.limit": 60, "r3.wave": 30, "r3.epochs": 1, "eval.limit": 60, "eval.cache": "off",
         "train.reference_cache": "off"}  # fmt: skip


# ---- several evaluations -------------------------------------------------------------------------

# Not in the order of their names; two ask the same task, two the same problems.
SPECS = ["countdown_mixed", "arithmetic", "countdown", "countdown_chain"]
SEVERAL = {**SHORT, "eval.spec": SPECS, "eval.direct": False}


@pytest.mark.parametrize(
    ("given", "names"),
    [("countdown", ["countdown"]), ("", ["countdown"]), (SPECS, SPECS),
     ('["", "gsm8k"]', ["countdown", "gsm8k"]), ("countdown,Countdown.toml", None),
     ("[]", None), ("gsm8k,nope", None)],
)  # fmt: skip
def test_a_recipe_names_one_evaluation_or_several(given: Any, names: list[str] | None) -> None:
    """The first is the headline; each has a name of its own, also on a disk that ignores case."""
    said = f"eval.spec={given if isinstance(given, str) else ','.join(given)}"
    if names is None:
        with pytest.raises(UserError, match=r"eval\.spec|no eval"):
            eval_specs(load_recipe("quickstart", [said]))
        return
    recipe = load_recipe("quickstart", [said])
    assert list(eval_specs(recipe)) == names
    written = dump_recipe(recipe)
    assert ('eval.spec = "' in written) == (len(recipe.eval.spec) == 1)
    with pytest.raises(UserError, match=r"eval\.source is of one evaluation"):
        load_recipe("quickstart", ["eval.spec=countdown,gsm8k", "eval.source=x.jsonl"])


@pytest.mark.parametrize("given", ["gsm8k,", ",gsm8k", "gsm8k,,svamp", ","])
def test_a_comma_without_a_name_beside_it_is_refused(given: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("quickstart", [f"eval.spec={given}"])
    assert caught.value.message == (
        f"--set eval.spec={given}: eval.spec = {given!r}: no name stands before or behind a comma"
    )
    assert caught.value.hint == 'correct eval.spec, for example eval.spec=["gsm8k", "svamp"]'


def number(text: str) -> int:
    return int(re.findall("[0-9]+", text)[0])


def test_training_problems_are_kept_clean_of_every_evaluation(tmp_path: Path) -> None:
    def rows(first: int, last: int) -> list[dict[str, str]]:
        return [{"question": f"How much is {i} plus one?", "answer": str(i + 1)}
                for i in range(first, last)]  # fmt: skip

    specs = []
    for name, asked in (("a", rows(0, 9)), ("b", rows(20, 29))):
        write_rows(tmp_path / f"{name}.jsonl", asked)
        (tmp_path / f"{name}.toml").write_text(
            f'part = "all"\ntask = {{ name = "jsonl", source = "{name}.jsonl" }}\n'
        )
        specs.append(str(tmp_path / f"{name}.toml"))
    mine = str(write_rows(tmp_path / "mine.jsonl", rows(0, 80)))
    recipe = load_recipe(
        "quickstart", ["task.name=jsonl", f"task.source={mine}", f"eval.spec={','.join(specs)}"]
    )
    cleaned = clean(recipe)
    left_out = {row["question"]: row["spec"] for row in cleaned.rows}
    numbers = {number(text): Path(spec).stem for text, spec in left_out.items()}
    assert set(numbers.values()) == {"a", "b"}
    assert all(of == ("a" if n < 9 else "b") for n, of in numbers.items())
    kept = {number(one.fields["question"]) for one in cleaned.problems.values()}
    assert not kept & {*range(9), *range(20, 29)}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, str]]:
    folder = tmp_path_factory.mktemp("several") / "run"
    return folder, outputs_of_run("quickstart", SEVERAL, folder)


def by_hand(folder: Path) -> dict[str, tuple[int, int, float]]:
    """Gains, losses and Holm's p of each evaluation, from the samples alone."""
    counts = {}
    for name in SPECS:
        base, trained = (
            {r["problem_id"]: r["correct"] for r in
             read_rows(folder / "eval" / arm / name / "samples.jsonl")}
            for arm in ("base", "trained")
        )  # fmt: skip
        assert len(base) == 60 and base.keys() == trained.keys()
        counts[name] = (sum(trained[i] > base[i] for i in base),
                        sum(trained[i] < base[i] for i in base))  # fmt: skip
    plain = {
        n: binomtest(g, g + lost).pvalue if g + lost else 1.0 for n, (g, lost) in counts.items()
    }
    ranked, adjusted, least = sorted(plain, key=lambda name: plain[name]), {}, 0.0
    for place, name in enumerate(ranked):
        least = max(least, min(1.0, plain[name] * (len(ranked) - place)))
        adjusted[name] = least
    return {name: (*counts[name], adjusted[name]) for name in SPECS}


@pytest.mark.slow
def test_base_and_trained_answer_every_evaluation(several: tuple[Path, Any]) -> None:
    """The first is the headline; Holm adjusts the p-values of all."""
    folder, _ = several
    expected, summary = by_hand(folder), read_json(folder / "summary.json")
    assert any(gains + losses for gains, losses, _ in expected.values())
    assert list(summary["evaluations"]) == SPECS == list(read_arms(folder))
    for name, (gains, losses, p) in expected.items():
        one = summary["evaluations"][name]
        found = one["comparison"]
        assert (found["gains"], found["losses"]) == (gains, losses)
        assert found["p_holm"] == pytest.approx(p)
        assert one["base"]["n"] == one["trained"]["n"] == 60
    headline = read_json(folder / "comparison.json")
    assert headline["task"] == SPECS[0] and headline["tests"] == 4
    assert headline["sentence"].startswith("countdown_mixed: trained answers")
    assert summary["base"] == summary["evaluations"][SPECS[0]]["base"]
    found = compare_all([folder])["comparisons"]
    assert {one["task"]: one["p_holm"] for one in found} == {
        name: pytest.approx(p) for name, (_, _, p) in expected.items()
    }
    arms = load_arms([folder])
    assert [(arm.part, arm.name) for arm in arms] == [
        (name, arm) for arm in ("base", "trained") for name in sorted(SPECS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "nth"), [("evaluated half a chunk", 3), ("evaluated a chunk", 7)]
)
def test_a_run_killed_in_an_evaluation_ends_the_same(
    point: str, nth: int, several: tuple[Path, Any], tmp_path: Path
) -> None:
    run_process("quickstart", SEVERAL, tmp_path / "run", point, nth)
    mlxreflect.resume(tmp_path / "run")
    assert outputs_in(tmp_path / "run") == several[1]


@pytest.mark.slow
def test_arms_on_the_way_answer_the_headline_alone(tmp_path: Path) -> None:
    settings = {"profile": "quick", "task.limit": 8, "policy.batch": 8, "eval.limit": 6,
                "traces.wave": 8, "traces.warm_up": 8, "traces.problems": 8, "traces.rounds": 1,
                "eval.spec": ["countdown", "arithmetic"], "eval.direct": True}  # fmt: skip
    outputs_of_run("traces", settings, tmp_path)
    found = {name: list(arms) for name, arms in read_arms(tmp_path).items()}
    assert found == {
        "countdown": ["base", "base-direct", "warm-up", "trained", "trained-direct"],
        "arithmetic": ["base", "trained"],
    }
    rows = read_json(tmp_path / "comparisons.json")["comparisons"]
    headline, summary = (read_json(tmp_path / f"{n}.json") for n in ("comparison", "summary"))
    of_trained = {row["task"]: row for row in rows if row["b"] == "trained"}
    assert headline == of_trained["countdown"] and headline["tests"] == len(rows) == 5
    for name, row in of_trained.items():  # one family of tests, wherever it is told
        assert summary["evaluations"][name]["comparison"]["p_holm"] == row["p_holm"]
    again = compare_all([tmp_path], Options(differ=("prompt.style",)))["comparisons"]
    assert {(row["task"], row["b"], row["p_holm"]) for row in again} == {
        (row["task"], row["b"], row["p_holm"]) for row in rows
    }
    assert [(row["task"], row["b"]) for row in rows] == [
        *(("countdown", name) for name in found["countdown"][1:]), ("arithmetic", "trained"),
    ]  # fmt: skip


# ---- looks at dev problems -----------------------------------------------------------------------

# Six looks, of which the best is not the last.
WATCHED = {**SHORT, "task.limit": 90, "r3.wave": 15, "eval.dev_every": 1, "eval.dev_limit": 60,
           "eval.trained": "best", "train.lr": 1e-3, "seed": 3}  # fmt: skip


def looks(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "dev"]


def right_in(folder: Path) -> dict[str, bool]:
    return {row["problem_id"]: row["correct"] for row in read_rows(folder / "samples.jsonl")}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, str]]:
    folder = tmp_path_factory.mktemp("watched") / "run"
    return folder, outputs_of_run("quickstart", WATCHED, folder)


@pytest.mark.slow
def test_looks_are_at_problems_neither_learned_nor_asked(
    watched: tuple[Path, Any],
) -> None:
    folder, _ = watched
    dev, asked = (
        {row["id"] for row in read_rows(folder / name / "problems.jsonl")}
        for name in ("dev/base", "eval/base")
    )
    learned = {row["problem"]["id"] for row in read_rows(folder / "episodes.jsonl")}
    assert len(dev) == 60 and len(learned) == 90
    assert not dev & asked and not dev & learned and not asked & learned
    assert {path.name for path in (folder / "eval").iterdir()} == {"base", "trained"}


@pytest.mark.slow
def test_a_look_is_counted_against_base_and_the_best_is_trained(watched: tuple[Path, Any]) -> None:
    folder, _ = watched
    found, base = looks(folder), right_in(folder / "dev" / "base")
    highest = sum(base.values()) / 60
    assert [row["wave"] for row in found] == [0, 1, 2, 3, 4, 5]
    for row in found:
        mine = right_in(folder / "dev" / f"wave-{row['wave']:05d}")
        gains = sum(mine[i] and not base[i] for i in mine)
        losses = sum(base[i] and not mine[i] for i in mine)
        assert (row["n"], row["gains"], row["losses"]) == (60, gains, losses)
        assert row["accuracy"] == pytest.approx(sum(mine.values()) / 60)
        assert row["base"] == pytest.approx(sum(base.values()) / 60)
        assert row["best"] == (row["accuracy"] > highest)
        highest = max(highest, row["accuracy"])
    best = [row for row in found if row["best"]][-1]
    assert best is not found[-1]  # else nothing is shown
    weights = {
        name: weights_hash(load_arrays(folder / name / "adapters.safetensors"))
        for name in ("adapter", "adapter-best", "adapter-last")
    }
    assert weights["adapter"] == weights["adapter-best"] == best["adapter"]
    assert weights["adapter-last"] == found[-1]["adapter"]
    assert read_json(folder / "eval" / "trained" / "results.json")["adapter"] == best["adapter"]
    told = read_json(folder / "summary.json")["dev"]
    assert (told["best"]["wave"], told["last"]["wave"]) == (best["wave"], 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "nth"),
    [("evaluated half a chunk of dev problems", 7), ("looked", 1), ("before the best is kept", 2),
     ("chose the best", 1)],
)  # fmt: skip
def test_a_watched_run_that_is_killed_ends_the_same(
    point: str, nth: int, watched: tuple[Path, Any], tmp_path: Path
) -> None:
    run_process("quickstart", WATCHED, tmp_path / "run", point, nth)
    mlxreflect.resume(tmp_path / "run")
    assert outputs_in(tmp_path / "run") == watched[1]


@pytest.mark.slow
def test_a_policy_that_is_worse_than_base_ends_learning(tmp_path: Path) -> None:
    """At the first look whose evidence suffices, counted by hand, and before all are asked."""
    ruined = {**WATCHED, "train.lr": 0.05, "eval.dev_limit": 200, "policy.batch": 16,
              "eval.trained": "last"}  # fmt: skip
    outputs_of_run("quickstart", ruined, tmp_path / "run")
    (row,) = looks(tmp_path / "run")
    n = row["gains"] + row["losses"]
    # E = 2^n B(1 + gains, 1 + losses); the first look needs 1 · 2 / 0.05.
    evidence = 2**n / ((n + 1) * comb(n, row["gains"]))
    assert row["worse"] and row["e_value"] == pytest.approx(evidence) and evidence >= 40
    assert row["n"] < 200 and row["n"] % 16 == 0
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["waves"] == 1 and summary["dev"]["stopped"]
    assert summary["comparison"]["difference"] < 0  # the run ends with its verdict


@pytest.mark.slow
def test_base_is_trained_where_no_look_was_better(tmp_path: Path) -> None:
    ruined = {**WATCHED, "train.lr": 0.05, "eval.dev_limit": 200, "policy.batch": 16}
    outputs_of_run("quickstart", ruined, tmp_path / "run")
    assert not any(row["best"] for row in looks(tmp_path / "run"))
    base, trained = (right_in(tmp_path / "run" / "eval" / arm) for arm in ("base", "trained"))
    assert base == trained
    summary, verdict = (read_json(tmp_path / "run" / f"{n}.json")
                        for n in ("summary", "comparison"))  # fmt: skip
    assert summary["dev"]["best"] is None and summary["dev"]["trained"] == "base"
    assert verdict["sentence"].endswith("Trained is base: no look at dev problems was better.")
    first, last = (weights_hash(load_arrays(tmp_path / "run" / n / "adapters.safetensors"))
                   for n in ("adapter", "adapter-last"))  # fmt: skip
    assert first != last == looks(tmp_path / "run")[-1]["adapter"]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["evaluated half a chunk of dev problems", "looked"])
def test_a_look_at_another_policy_is_made_anew(point: str, tmp_path: Path) -> None:
    """The wave that a resumed run does again ends with other weights by other roundings."""
    folder = tmp_path / "run"
    run_process("quickstart", WATCHED, folder, point, 3 if point.startswith("eval") else 1)
    setup = folder / "dev" / "wave-00000" / "setup.json"
    before = read_json(setup)["adapter"]
    mlxreflect.resume(folder, ["train.part_tokens=16"])
    first = looks(folder)[0]
    assert before != read_json(setup)["adapter"] == first["adapter"]
    assert len(right_in(setup.parent)) == first["n"] == 60


@pytest.mark.slow
def test_methods_that_train_at_their_end_are_looked_at_then(tmp_path: Path) -> None:
    """Waves that learn nothing are not; the last policy always is."""
    settings = {"profile": "quick", "task.limit": 12, "policy.batch": 8, "eval.limit": 6,
                "reflectevo.wave": 4, "reflectevo.retries": False, "eval.dev_every": 2,
                "eval.dev_limit": 20}  # fmt: skip
    before = outputs_of_run("reflectevo", settings, tmp_path / "run")
    waves = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "wave"]
    assert [wave["stage"] for wave in waves] == ["problems"] * 3 + ["training"] * 2
    assert [row["wave"] for row in looks(tmp_path / "run")] == [3, 4]
    (tmp_path / "run" / "summary.json").unlink()
    mlxreflect.resume(tmp_path / "run")
    assert outputs_in(tmp_path / "run") == before


def test_dev_problems_are_kept_apart_from_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an evaluation that asks the same file too, and from training problems like them."""
    texts = [f"Ann has {i} pears and Bob has {i + 3}. How many have both?" for i in range(120)]
    rows = [{"question": text, "answer": "1"} for text in texts]
    mine = str(write_rows(tmp_path / "mine.jsonl", rows))
    write_rows(tmp_path / "exam.jsonl", rows[:40])
    (tmp_path / "exam.toml").write_text(
        'part = "all"\ntask = { name = "jsonl", source = "exam.jsonl" }\n'
    )
    given = ["task.name=jsonl", f"task.source={mine}", f"eval.spec={tmp_path / 'exam.toml'}",
             "eval.dev_every=1"]  # fmt: skip
    recipe = load_recipe("quickstart", given)
    dev = {one.fields["question"] for one in dev_problems(recipe)}
    assert dev and not dev & set(texts[:40])
    loads, task = list[str](), TASKS["jsonl"]
    counting = replace(task, load=lambda *given: loads.append(given[1]) or task.load(*given))
    monkeypatch.setitem(TASKS, "jsonl", counting)
    cleaned = clean(recipe)
    assert loads.count("dev") == 1  # a run builds them once
    assert {one.fields["question"] for one in cleaned.dev} == dev
    learned = {one.fields["question"] for one in cleaned.problems.values()}
    assert not learned & (dev | set(texts[:40]))
    everything = load_recipe("quickstart", [*given, "task.limit=0", "eval.decontaminate=off"])
    assert not {one.fields["question"] for one in dev_problems(everything)} & set(texts[:40])
    with pytest.raises(UserError, match="no problem is in its part dev"):
        write_rows(tmp_path / "exam.jsonl", rows)
        dev_problems(recipe)
    with pytest.raises(UserError, match=r"eval\.dev_every is 0"):
        load_recipe("quickstart", ["eval.trained=best"])
    with pytest.raises(UserError, match=r"probes\.system .* there are none"):
        load_recipe("quickstart", ["probes.system=Be brief."])


def test_probes_are_asked_behind_their_system_message(tmp_path: Path) -> None:
    """The embedded policy's template leaves that out; this one shows it."""
    folder = shutil.copytree(TINY, tmp_path / "talker")
    file = folder / "chat_template.jinja"
    hidden = "{%- if 'and nothing else'"
    usual = file.read_text()
    assert usual.count(hidden) == 1
    file.write_text(usual.replace(hidden, "{{- '<|user|>' + m['content'] + '<|end|>' -}}" + hidden))
    asked = ['probes.prompts=["Numbers: 3 4 5\\nTarget: 35"]', f"policy.model={folder}"]
    texts = dict[str, str]()
    for said in ("", "Numbers: 8 9 2 Target: 19"):
        recipe = load_recipe("quickstart", [*asked, f"probes.system={said}"])
        (row,) = ask_probes(load_policy(recipe.policy), recipe, 0, None)
        texts[said] = row["text"]
    assert len({*texts.values()}) == 2
