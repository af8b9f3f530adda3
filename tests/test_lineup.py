"""One command, several arms: who is asked, in which folder, and one table of all."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support.adapters import write_adapter
from support.shell import Shell, answered, rows, sets, snapshot

from mlxreflect.config.schema import PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.compare import compare_all
from mlxreflect.evaluation.generators import ServedModel
from mlxreflect.evaluation.runner import line_up, pair, slug
from mlxreflect.models.load import load_policy
from mlxreflect.stats import holm

SHORT = ["countdown", "--limit", "8", *sets("max_new_tokens=8", "batch=8")]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_random: Path) -> list[Path]:
    """Of two runs, both in a folder called adapter."""
    folder = tmp_path_factory.mktemp("runs")
    return [write_adapter(folder / f"run {i}" / "adapter", tiny_random, i) for i in (0, 1)]


def names(*arguments: Any, **options: Any) -> list[str]:
    return [entry.name for entry in line_up(*arguments, **options)]


# ---- who is asked --------------------------------------------------------------------------------


def test_pairs() -> None:
    assert pair(["m"], [], False) == [("m", "")]
    assert pair(["m", "m"], [], False) == [("m", "")]
    assert pair(["m", "n"], [], False) == [("m", ""), ("n", "")]


def test_adapters_on_one_model(adapters: list[Path], tiny_random: Path) -> None:
    model, (a, b) = str(tiny_random), map(str, adapters)
    assert pair([model], [a], False) == [(model, a)]
    assert pair([model], [a], True) == [(model, ""), (model, a)]
    assert pair([model], [a, b], False) == [(model, ""), (model, a), (model, b)]
    base = slug(tiny_random.name)
    assert names([model], [a, b], [], []) == [base, f"{base}+run-0", f"{base}+run-1"]


def test_an_adapter_alone_knows_its_model(adapters: list[Path], tiny_random: Path) -> None:
    (entry,) = line_up([], [str(adapters[0].parent)], [], [])  # the run that it is the adapter of
    assert isinstance(entry.model, PolicyConfig)
    assert (Path(entry.model.model), Path(entry.model.adapter)) == (tiny_random, adapters[0])
    base = slug(tiny_random.name)
    assert names([], list(map(str, adapters)), [], []) == [base, f"{base}+run-0", f"{base}+run-1"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json"], "is not an adapter folder"),
        (["adapter_config.json", "adapter_model.bin"], "is an adapter of PEFT without"),
    ],
)
def test_what_is_no_adapter_is_named(tmp_path: Path, files: list[str], said: str) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    for name in (str(tmp_path), str(tmp_path.parent / "none")):
        with pytest.raises(UserError, match=r"^--adapter "):
            line_up(["tiny"], [name], [], [])
    with pytest.raises(UserError, match=said) as caught:
        load_policy(PolicyConfig(model="tiny", adapter=str(tmp_path)))
    assert str(tmp_path) in caught.value.message


def test_a_fault_of_an_adapter_is_not_the_models(tmp_path: Path, tiny_random: Path) -> None:
    other = write_adapter(tmp_path / "other", tiny_random, told="org/other")
    arrays = {
        name: array[:1] for name, array in mx.load(str(other / "adapters.safetensors")).items()
    }
    mx.save_safetensors(str(other / "adapters.safetensors"), arrays)
    with pytest.raises(UserError) as caught:
        load_policy(PolicyConfig(model=str(tiny_random), adapter=str(other)))
    assert caught.value.message.startswith(f"policy.adapter = {str(other)!r} does not fit ")
    assert "org/other" in caught.value.hint


def test_an_adapter_goes_with_the_model_it_was_trained_on(
    adapters: list[Path], tiny_random: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_random.parent)
    a, name = str(adapters[0]), tiny_random.name
    assert pair(["tiny", name], [a], False) == [("tiny", ""), (name, ""), (name, a)]
    silent = str(write_adapter(tmp_path / "silent", tiny_random, told=""))
    assert pair([name, "tiny"], [silent], False) == [(name, ""), (name, silent), ("tiny", "")]
    foreign = str(write_adapter(tmp_path / "foreign", tiny_random, told="org/other"))
    with pytest.raises(UserError, match="trained on org/other, which is none of the models"):
        pair(["tiny", name], [foreign], False)
    assert pair([name], [foreign], False) == [(name, foreign)]


def test_bits_are_arms_and_weights_are_loaded_once() -> None:
    assert names(["tiny"], [], [4, 8], []) == ["tiny-4bit", "tiny-8bit"]
    assert names(["tiny"], [], [0, 8, 8], []) == ["tiny", "tiny-8bit"]
    with pytest.raises(UserError, match="--quantize 5"):
        line_up(["tiny"], [], [5], [])


def test_names_of_folders_are_safe_and_their_own(tmp_path: Path) -> None:
    for name in ("a b", "..", ".hidden", "x\n\x1b[2J", "é/ü", "", "n" * 200, "~", "a:b", "a\\b"):
        made = slug(name)
        assert made and len(made) <= 60 and not made.startswith(".")
        assert Path(made).name == made and made.isascii() and made.isprintable()
    served = [ServedModel("http://x", name) for name in ("org/Model", "other/model", "../../etc")]
    assert names([], [], [], served) == ["org-Model", "other-model", "etc"]
    for folder in ("one/Model", "two/model", "three/MODEL"):
        (tmp_path / folder).mkdir(parents=True)
    models = [str(tmp_path / p) for p in ("one/Model", "two/model", "three/MODEL")]
    assert names(models, [], [], []) == ["Model", "model-2", "MODEL-3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--model", "/none/such"], "--model /none/such: no such folder"),
     (["--adapter", "none", "--base"], "'none' is not an adapter folder"),
     (["--base"], "--base is the model without its adapter, and there is no --adapter"),
     (["--server", "http://127.0.0.1:9"], "--server alone"),
     (["--server-model", "x"], "--server-model alone"),
     (["--quantize", "3"], "--quantize 3"), (["--set", "rules=nope"], "no rules 'nope'"),
     (["--server", "http://127.0.0.1:9", "--server-model", "m", "--set", "chain.rounds=2"],
      "m: a spec with [chain] continues answers")],
)  # fmt: skip
def test_what_is_not_there_is_said_before_anything_is_asked(
    shell: Shell, arguments: list[str], said: str
) -> None:
    error, _ = shell.mistake("eval", *SHORT, "--model", "tiny", *arguments, "--out", "out")
    assert said in error


# ---- one table -----------------------------------------------------------------------------------


def test_one_command_one_table(shell: Shell, adapters: list[Path], tiny_random: Path) -> None:
    arms = ["--model", tiny_random, "--adapter", adapters[0], "--adapter", adapters[1]]
    done = shell.works("eval", *SHORT, *arms, "--out", "out", "--json")
    found = json.loads(done.out)
    base = slug(tiny_random.name)
    assert [arm["name"] for arm in found] == [base, f"{base}+run-0", f"{base}+run-1"]
    places = [shell.folder / arm["folder"] for arm in found]
    assert [p.parent for p in places] == [shell.folder / "out"] * 3
    for arm, place in zip(found, places, strict=True):
        assert {p.name for p in place.iterdir()} == {
            "setup.json", "problems.jsonl", "samples.jsonl", "results.json"
        }  # fmt: skip
        kept = json.loads((place / "results.json").read_text())
        assert {k: arm[k] for k in kept} == kept
    texts = [[row["text"] for row in rows(place / "samples.jsonl")] for place in places]
    assert texts[0] != texts[1] != texts[2] != texts[0]

    assert found[0]["comparison"] is None
    against = compare_all(places)["comparisons"]
    assert [arm["comparison"] for arm in found[1:]] == json.loads(json.dumps(against))
    assert [arm["comparison"]["p_holm"] for arm in found[1:]] == holm(
        [c["p_exact"] for c in against]
    )

    before = snapshot(shell.folder / "out")
    table = shell.works("eval", *SHORT, *arms, "--out", "out")
    assert snapshot(shell.folder / "out") == before
    for said in ("95% interval", "strict", "tokens", f"Against {base}", "p (Holm)", "+run-1"):
        assert said in table.out

    # Each arm by itself, from nothing, has the same bytes.
    alone = ["--model", tiny_random, "--adapter", adapters[1], "--out", "alone", "--cache", "off"]
    single = json.loads(shell.works("eval", *SHORT, *alone, "--json").out)
    for name in ("samples.jsonl", "problems.jsonl", "results.json"):
        assert (shell.folder / "alone" / name).read_bytes() == (places[2] / name).read_bytes()
    assert single["adapter"].startswith(str(adapters[1]))


def test_bits_in_one_table(shell: Shell, tiny_random: Path) -> None:
    bits = ["--model", tiny_random, "--quantize", "4", "--quantize", "8", "--out", "out", "--json"]
    found = json.loads(shell.works("eval", *SHORT, *bits).out)
    assert [arm["quantize"] for arm in found] == [4, 8]
    done = shell("eval", *SHORT, "--model", tiny_random, "--out", found[0]["folder"], "--json")
    assert done.code == 2 and "its quantize is 4, not None" in done.err


def test_what_was_answered_before_is_reused_and_said(shell: Shell, tiny_random: Path) -> None:
    ask = ["eval", *SHORT, "--model", tiny_random, "--json", "--out"]
    assert "already" not in shell.works(*ask, "a").err
    assert "8 answers were there already" in shell.works(*ask, "b").err
    assert "already" not in shell.works(*ask, "c", "--cache", "off").err
    first, *others = (answered(shell.folder / name) for name in "abc")
    assert others == [first, first]


@pytest.mark.slow
def test_a_run_reuses_its_base(shell: Shell) -> None:
    run = ["run", "quickstart", *shell.small, "--json", "--run-dir"]
    assert "reused" not in shell.works(*run, "first").err
    done = shell.works(*run, "second", *sets("train.lr=1e-3"))
    assert "base: 6 answers were there already" in done.err and "trained: 6 answers" not in done.err
    one, other = (snapshot(shell.folder / name / "eval" / "base") for name in ("first", "second"))
    assert one == other


def test_the_noise_of_two_batch_sizes(shell: Shell, tiny_random: Path) -> None:
    ask = ["eval", *SHORT, "--model", tiny_random, "--out", "out", "--aa"]
    noise = json.loads(shell.works(*ask, "--json").out)["noise"]
    one, other = (rows(shell.folder / "out" / name / "samples.jsonl") for name in (".", "noise"))
    pairs = list(zip(one, other, strict=True))
    assert noise == {
        "batch": 4, "answers": 8,
        "gains": sum(b["correct"] and not a["correct"] for a, b in pairs),
        "losses": sum(a["correct"] and not b["correct"] for a, b in pairs),
        "same_text": sum(a["text"] == b["text"] for a, b in pairs) / 8,
    }  # fmt: skip
    assert json.loads((shell.folder / "out" / "noise" / "setup.json").read_text())["decoding"][
        "batch"
    ] == 4  # fmt: skip
    assert "A/A check" in shell.works(*ask).out
