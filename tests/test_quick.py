"""`eval --quick`: stops when the evidence decides, goes on after a kill, and claims no more.

The trained side is the embedded policy with a random adapter, which answers nothing right.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.evaluations import evaluated

from mlxreflect.cli import evaluate as cli_evidence
from mlxreflect.config.schema import EvalSpec, LoraConfig, PolicyConfig, QuickConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.evaluate import SILENT, eval_problems, problem_set
from mlxreflect.evaluation.generators import LocalGenerator, LocalModel
from mlxreflect.evaluation.quick import ask_until_decided
from mlxreflect.evaluation.runner import decide, line_up, load_pair
from mlxreflect.models.load import load_policy
from mlxreflect.stats import anytime_interval, e_value, evidence
from mlxreflect.tasks import TASKS
from mlxreflect.train.lora import attach_lora, save_adapter

SPEC = EvalSpec.model_validate(
    {"task": {"name": "countdown"}, "limit": 60, "max_new_tokens": 26, "batch": 8}
)
TASK = TASKS["countdown"]
TRAINED = "tiny+spoilt"
PROBLEMS = eval_problems(TASK, SPEC)
Pair = dict[str, LocalModel]  # by the names of the arms


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that spoils the embedded policy."""
    folder = tmp_path_factory.mktemp("made") / "spoilt"
    policy = load_policy(PolicyConfig())
    config = attach_lora(policy.model, LoraConfig(rank=4), 0)
    mx.random.seed(1)
    arrays = {
        name: 0.3 * mx.random.normal(array.shape) if name.endswith("lora_b") else array
        for name, array in tree_flatten(policy.model.trainable_parameters())
    }
    save_adapter(folder, arrays, config, "tiny")
    return folder


@pytest.fixture(scope="module")
def pair(adapter: Path) -> Pair:
    return load_pair(line_up(["tiny"], [str(adapter)], [], [], base=True))


def ask(
    pair: Pair, out: Path, spec: EvalSpec = SPEC, ui: Ui | None = None, **quick: Any
) -> dict[str, Any]:
    spec = spec.model_copy(update={"quick": QuickConfig(**quick)})
    return ask_until_decided(pair, problem_set(TASK, spec, PROBLEMS), out, ui or Ui(quiet=True))


@pytest.fixture(scope="module")
def decided(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick") / "out"
    ask(pair, out)
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "quick.jsonl").read_text().splitlines()]


def files(out: Path) -> tuple[bytes, bytes]:
    return (out / "quick.jsonl").read_bytes(), (out / "quick.json").read_bytes()


# ---- the decision --------------------------------------------------------------------------------


def test_it_stops_at_the_first_look_that_decides(decided: Path) -> None:
    found = json.loads((decided / "quick.json").read_text())
    right = {(row["index"], row["arm"]): row["correct"] for row in rows(decided)}
    assert found["schema"] == "quick/1" and (found["a"], found["b"]) == ("tiny", TRAINED)
    assert len(right) == 2 * found["n"] == len(rows(decided))
    looks = []
    for n in range(SPEC.batch, found["n"] + 1, SPEC.batch):
        gains = sum(right[i, TRAINED] > right[i, "tiny"] for i in range(n))
        losses = sum(right[i, TRAINED] < right[i, "tiny"] for i in range(n))
        looks.append(e_value(gains, losses))
    assert all(e < 20 for e in looks[:-1]) and looks[-1] >= 20
    assert found["e_value"] == looks[-1] and found["threshold"] == 20
    assert (found["gains"], found["losses"]) == (gains, losses)
    assert found["saved"] == 60 - found["n"] > 0
    assert found["decision"] == "worse"
    counts = {1.0: gains, -1.0: losses, 0.0: found["n"] - gains - losses}
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(anytime_interval(counts))
    assert found["ci_high"] < 0
    asked = [row["problem_id"] for row in rows(decided) if row["arm"] == "tiny"]
    assert asked == [problem.id for problem in PROBLEMS[: len(asked)]]
    text = found["sentence"]
    assert text.startswith(f"{TRAINED} is worse than tiny. {TRAINED} answers ")
    for part in ("E = ", "20 decides; 95% interval", "points, valid at every look.",
                 "of 60 questions saved", "overstates the difference"):  # fmt: skip
        assert part in text
    assert "p =" not in text and "significant" not in text


@pytest.mark.slow
def test_it_decides_for_the_better_side_too(pair: Pair, tmp_path: Path) -> None:
    found = ask(dict(reversed(pair.items())), tmp_path / "out")
    assert found["decision"] == "better" and found["ci_low"] > 0
    assert f"tiny is better than {TRAINED}" in found["sentence"]


def test_equals_are_asked_everything_and_looks_show_no_p_value(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask({"tiny": pair["tiny"], "twin": pair["tiny"]}, tmp_path, max_n=8, ui=Ui())
    assert (found["decision"], found["n"], found["saved"]) == ("undecided", 8, 0)
    assert found["e_value"] == 1.0
    assert "A larger --max-n goes on from here" in found["sentence"]
    few, twins = problem_set(TASK, SPEC, PROBLEMS[:8]), {"tiny": pair["tiny"], "b": pair["tiny"]}
    all_asked = ask_until_decided(twins, few, tmp_path / "few", Ui(quiet=True))
    assert "All questions were asked." in all_asked["sentence"]
    said = capsys.readouterr().err
    assert "so far" in said and "points" in said and "E = " in said
    assert "p =" not in said


@pytest.mark.slow
def test_several_samples_a_question(pair: Pair, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"samples": 4, "temperature": 1.0})
    found = ask(pair, tmp_path / "out", spec, max_n=6)
    shares: dict[str, Counter[int]] = {"tiny": Counter(), TRAINED: Counter()}
    for row in rows(tmp_path / "out"):
        shares[row["arm"]][row["index"]] += row["correct"]
    moved = Counter((shares[TRAINED][i] - shares["tiny"][i]) / 4 for i in range(found["n"]))
    assert found["n"] == 6 and len(rows(tmp_path / "out")) == 6 * 2 * 4
    assert found["e_value"] == evidence(moved)
    assert found["losses"] == sum(times for d, times in moved.items() if d < 0) > 0


# ---- one model in memory -------------------------------------------------------------------------


def test_both_sides_answer_as_if_loaded_alone(pair: Pair, decided: Path, adapter: Path) -> None:
    """The base that an adapter is put on and taken off is the base, token by token."""
    assert pair["tiny"].policy is pair[TRAINED].policy  # in memory once
    for name, config in (("tiny", PolicyConfig()), (TRAINED, PolicyConfig(adapter=str(adapter)))):
        policy = load_policy(config)
        asked = problem_set(TASK, SPEC, PROBLEMS[:8])
        one = LocalGenerator(LocalModel(policy), asked, purpose="quick")
        alone = [completion.token_ids for completion in one.complete(0, 8, SILENT)]
        assert alone == [row["token_ids"] for row in rows(decided)[:16] if row["arm"] == name]


@pytest.mark.slow
def test_two_models(tiny_random: Path, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"batch": 16})
    entries = line_up([str(tiny_random), "tiny"], [], [], [])
    found = decide(spec, entries, tmp_path, Ui(quiet=True))
    assert (found["a"], found["b"]) == (tiny_random.name, "tiny")
    assert found["decision"] == "better" and found["accuracy_a"] == 0
    assert found["setup"]["a"]["model"] == str(tiny_random)


@pytest.mark.parametrize("models", [["m"], ["m", "n", "o"]])
def test_what_is_not_two_sides_is_refused(models: list[str]) -> None:
    with pytest.raises(UserError, match=f"--quick sets two models side by side, not {len(models)}"):
        load_pair(line_up(models, [], [], []))


# ---- stopped and continued -----------------------------------------------------------------------


def test_a_cut_file_is_completed_to_the_same_bytes(
    pair: Pair, decided: Path, tmp_path: Path
) -> None:
    whole = files(decided)
    (tmp_path / "quick.jsonl").write_bytes(whole[0][: int(len(whole[0]) * 0.4)])
    (tmp_path / "setup.json").write_bytes((decided / "setup.json").read_bytes())
    ask(pair, tmp_path)
    assert files(tmp_path) == whole


def test_a_larger_maximum_goes_on_and_ends_the_same(
    pair: Pair, decided: Path, tmp_path: Path
) -> None:
    first = ask(pair, tmp_path, max_n=10)  # the second chunk is cut short
    assert (first["n"], first["decision"]) == (10, "undecided")
    ask(pair, tmp_path)
    assert files(tmp_path) == files(decided)
    again = ask(pair, tmp_path, max_n=10)  # what already exists is not asked again
    assert (again["n"], again["e_value"]) == (10, first["e_value"])


def test_a_folder_holds_one_evaluation(pair: Pair, decided: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its quick.alpha is 0.05, not 0.01"):
        ask(pair, decided, alpha=0.01)
    with pytest.raises(UserError, match="holds another evaluation"):
        evaluated(pair["tiny"], SPEC, decided, PROBLEMS[:2])
    evaluated(pair["tiny"], SPEC, tmp_path, PROBLEMS[:2])
    with pytest.raises(UserError, match="holds another evaluation"):
        ask(pair, tmp_path)


def command(adapter: Path, out: Path) -> list[str]:
    settings = ["max_new_tokens=26", "batch=4"]
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "mlxreflect", "eval", "countdown", "--model", "tiny",
            "--adapter", str(adapter), "--quick", "--max-n", "100", "--json", "--out", str(out),
            *sets]  # fmt: skip


@pytest.mark.slow
def test_killed_at_random_moments_it_comes_to_the_same_end(adapter: Path, tmp_path: Path) -> None:
    whole = subprocess.run(command(adapter, tmp_path / "whole"), capture_output=True, check=True)
    rng, kills, cut = random.Random(2), 0, tmp_path / "cut"
    while True:
        running = subprocess.Popen(command(adapter, cut), stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        samples = cut / "quick.jsonl"
        size = samples.stat().st_size if samples.exists() else 0
        while kills < 4 and running.poll() is None:
            if samples.exists() and samples.stat().st_size > size:
                time.sleep(rng.random() / 10)
                running.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        out, _ = running.communicate()
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL
        kills += 1
    assert kills >= 2
    assert out == whole.stdout
    assert files(cut) == files(tmp_path / "whole")


def test_quick_does_not_take_aa() -> None:
    with pytest.raises(UserError, match="do not go together"):
        cli_evidence.eval_("countdown", ["tiny"], quick=True, aa=True)
