"""`mlxreflect train` as a person uses it: data in, an adapter out, whatever happens between."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.kill_driver import DRIVER, TRAINING
from support.run_outputs import outputs_in
from support.shell import Shell, last_two_lines, rows, sets, shell_inside
from support.trainings import (
    ANSWERS,
    COUNT,
    GROUPS,
    OF,
    PAIRS,
    Command,
    Data,
    good,
    poor,
    question,
    said,
    user,
    write,
)

from mlxreflect.config.recipe import DEFAULTS
from mlxreflect.core import journal as commits
from mlxreflect.core import ui
from mlxreflect.core.journal import take_lock
from mlxreflect.models.load import TINY
from mlxreflect.runs import fit


@pytest.fixture
def command(
    tmp_path: Path, tiny_random: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:  # fmt: skip
    return shell_inside(tmp_path, tiny_random, monkeypatch, capsys, Command)


# ---- every objective -----------------------------------------------------------------------------


def log_prob(model: Any, tokenizer: Any, prompt: str, text: str) -> float:
    """Of a response, by mlx-lm alone."""
    asked = tokenizer.apply_chat_template([user(prompt)], add_generation_prompt=True)
    ids = [*asked, *tokenizer.encode(text, add_special_tokens=False)]
    logits = model(mx.array([ids[:-1]]))[0].astype(mx.float32)
    found = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    targets = mx.array(ids[1:])[:, None]
    return float(mx.take_along_axis(found, targets, axis=-1)[len(asked) - 1 :].sum().item())


# All weights, and DoRA, are trained in the fast tests, too.
TRAINED = [
    *(pytest.param(kind, name, marks=pytest.mark.slow) for kind in ("tiny", "random")
      for name in DEFAULTS),
    ("full", "sft"), ("full", "dpo"), ("dora", "dpo"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "objective"), TRAINED)
def test_an_objective_trains_and_its_adapter_loads_in_mlx_lm(
    command: Command, make_model: Callable[..., Path], kind: str, objective: str
) -> None:
    own = {"tiny": "tiny", "full": str(make_model(quantization=None))}
    model = own.get(kind, str(command.model))
    settings = ["train.lr=1e-3", "train.epochs=3", "data.limit=20"]
    settings += {"full": ["train.tune=full"], "dora": ["train.lora.dora=true"]}.get(kind, [])
    summary = command.train(objective, "out", *settings, model=model)
    assert summary["objective"] == objective
    assert summary["steps"] == 9
    assert summary["skipped"] == 0
    path = str(TINY) if kind == "tiny" else model
    base, tokenizer = mlx_lm.load(path)
    trained, _ = mlx_lm.load(path, adapter_path=summary["adapter"])
    if kind == "full":
        old, new = dict(tree_flatten(base.parameters())), dict(tree_flatten(trained.parameters()))
        assert old.keys() == new.keys()
        assert all(not np.array_equal(np.array(old[k]), np.array(new[k])) for k in old)

    def worth(model: Any) -> float:
        unseen = (2, 29, 31)
        liked = sum(log_prob(model, tokenizer, question(i), good(i)) for i in unseen)
        other = sum(log_prob(model, tokenizer, question(i), poor(i)) for i in unseen)
        return liked if objective == "sft" else liked - other

    assert worth(trained) > worth(base)
    if objective == "grpo":
        assert summary["held_out"] == 0
        return
    assert (summary["rows"], summary["held_out"]) == (19, 1)
    before, after = summary["held_out_before"], summary["held_out_after"]
    assert after["loss"] < before["loss"]
    if objective == "sft":
        assert after["margin"] is None
    else:
        assert after["margin"] > before["margin"]
        assert after["accuracy"] == 1.0


# ---- every form of data --------------------------------------------------------------------------

# form → (objective, rows, file). Those of a kind hold the same, and must give the same bytes; what
# else a row may look like is in test_formats.
TURNS = [{"prompt": [user(r["prompt"])], "chosen": [said(r["chosen"])],
          "rejected": [said(r["rejected"])]} for r in PAIRS]  # fmt: skip
MESSAGES = [{"messages": [user(r["prompt"]), said(r["completion"])]} for r in ANSWERS]
SAME: dict[str, tuple[str, Data, str]] = {
    "conversational preference in a JSON list": ("dpo", TURNS, "data.json"),
    "preference in a folder": ("dpo", PAIRS, "data/train.jsonl"),
    "messages in a folder of parquet": ("sft", MESSAGES, "data/train.parquet"),
    "groups in parquet": ("grpo", GROUPS, "data.parquet"),
}
BRIEF = ("data.limit=8", "data.held_out=0", "train.batch=8")


@pytest.mark.slow
@pytest.mark.parametrize("form", SAME)
def test_the_same_rows_in_another_form_give_the_same_adapter(command: Command, form: str) -> None:
    objective, data, name = SAME[form]
    path = write(command.folder / "in" / name, data)
    source = path.parent if path.parent.name == "data" else path
    assert command.train(objective, "out", *BRIEF, data=source)["rows"] == 8
    command.train(objective, "usual", *BRIEF)
    assert command.weights("out") == command.weights("usual")


def test_raw_text_is_trained(command: Command) -> None:
    data = write(command.folder / "d" / "train.jsonl", [{"text": good(i)} for i in COUNT])
    summary = command.train("sft", "out", "train.epochs=4", "train.lr=1e-3", data=data.parent)
    assert summary["held_out_after"]["loss"] < summary["held_out_before"]["loss"]


# ---- mistakes ------------------------------------------------------------------------------------

FATAL, ALONE = "data.bad_row=fatal", "train.mask.answer_only=true train.mask.markers=false"
# The command with its settings, what is wrong, what mends it.
MISTAKES = [
    ("dpoo", "no objective 'dpoo'", "did you mean dpo? choose from: sft, dpo, ipo"),
    ("dpo train.lrr=1", "--set train.lrr=1: unknown key train.lrr", "did you mean train.lr?"),
    ("dpo train.batch=0", "train.batch = 0: input should", "correct"),
    ("dpo objective=ipo", "--set objective=ipo: the command says dpo", "mlxreflect train ipo"),
    ("dpo --data nope.jsonl --model ./no", "nope.jsonl: no such file", "data file"),
    ("dpo --data ./nope", "nope: no such file", "data file"),
    ("dpo --data empty", "empty: no train.jsonl", "give the path"),
    ("dpo --data sft.jsonl", "nothing here fits dpo; rows with prompt, c", "chosen, rejected"),
    ("grpo --data dpo.jsonl", "nothing here fits grpo", "prompt, completions, rewards"),
    ("dpo --data bad.jsonl", "bad.jsonl: no row can be used; the first of 3 is", "correct"),
    ("dpo train.max_length=5", "all 24 rows are bad, the first is dpo.jsonl, line", "max_length"),
    (f"dpo --data mixed.jsonl {FATAL}", "mixed.jsonl, line 3: chosen is empty", "delete that row"),
    (f"dpo --data torn.jsonl {FATAL}", "torn.jsonl, line 2: not JSON", "or delete that row"),
    (f"dpo --data long.jsonl {FATAL} train.max_length=60",
     "long.jsonl, line 2: a response is over 60 tokens", "correct or delete that row"),
    (f"sft --data own.jsonl {FATAL}", "own.jsonl, example 2: a token's id is outside",
     "correct or delete that row"),
    (f"sft --data thoughts.jsonl {FATAL} {ALONE}",
     "thoughts.jsonl, line 2: the mask leaves nothing to train", "correct or delete that row"),
    (f"sft --data only.jsonl {ALONE}",
     "all 2 rows are bad, the first is only.jsonl, line 1: the mask leaves nothing", "correct"),
    ("dpo --model ./nope", "policy.model = './nope': no such folder", "give a folder"),
    ("dpo --model empty", "is not an mlx-lm model folder: no config.json in it", "mlx_lm.convert"),
    ("dpo policy.adapter=nope", "policy.adapter = 'nope' is not an adapter folder",
     "give a folder with adapter_config.json"),
    ("exo_pair train.smoothing=0", "exo_pair needs train.smoothing above 0", "0.005"),
    ("ipo train.smoothing=0.1", "train.smoothing does nothing for ipo", "leave"),
    ("dpo train.patience=2 data.held_out=0", "train.patience counts looks at held-out examples",
     "--set data.held_out=0.05"),
    ("sft train.best_by=margin", "sft has no margin", "leave it at loss"),
    ("dpo train.dpo=0", "train.dpo and train.nll are both 0", "a weight above 0"),
    ("dpo grpo.kl=0.1", "grpo.kl = 0.1 does nothing", "leave"),
    ("grpo grpo.epsilon_high=0.1", "grpo.epsilon_high = 0.1 is below grpo.clip_ratio = 0.2", "0:"),
    ("grpo grpo.epsilon=0.1", "unknown key grpo.epsilon", "did you mean grpo.clip_ratio?"),
    ("sft train.tune=full train.lora.rank=4",
     "train.lora.rank = 4 does nothing for full fine-tuning", "leave that key out"),
    ("sft train.tune=full", "needs weights that are not quantised", "mlxreflect fuse --model"),
    ("sft train.lora.rslora=true", "does nothing without train.lora.alpha", "for example 16"),
    ("sft 'train.lora.keys=[\"nope\"]'", "the model has no layer 'nope'", "q_proj"),
    ("dpo --model plain train.tune=full train.reference=base",
     "train.reference = 'base' needs LoRA", "train.reference to stage"),
    ("dpo data.held_out=24", "24 of 24 examples", "data.held_out=0 holds out none"),
    ("dpo train.reference_cache=dpo.jsonl", "dpo.jsonl: the reference cache is", "delete"),
    ("dpo --out full", "full already exists", "give another --out"),
    ("dpo --out dpo.jsonl", "dpo.jsonl already exists", "another --out"),
    ("dpo --out dpo.jsonl/x", "dpo.jsonl/x: Not a directory", "--out"),
    ("dpo --out /proc/x", "/proc/x: ", "--out"),
    (f"dpo --out {'x' * 300}", "x: File name too long", "--out"),
]  # fmt: skip


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that mistakes are made with."""
    from conftest import write_model

    folder = tmp_path_factory.mktemp("shelf")
    for objective in ("sft", "dpo", "grpo"):
        write(folder / f"{objective}.jsonl", OF.get(objective, PAIRS))
    empty = {**PAIRS[0], "chosen": " "}
    write(folder / "bad.jsonl", [empty] * 3)
    write(folder / "mixed.jsonl", [*PAIRS[:2], empty, *PAIRS[3:]])
    write(folder / "long.jsonl", [PAIRS[0], {**PAIRS[1], "chosen": good(9) * 20}, *PAIRS[2:]])
    thought = {"prompt": "Why?", "completion": "<think>\nno end"}
    own = {"schema": "example/1", "kind": "sft", "prompt": [user("Why?")], "completion": "So.",
           "source": {"problem": "0f"}}  # fmt: skip
    write(folder / "own.jsonl", [own, {**own, "completion_ids": [10**8]}])
    write(folder / "thoughts.jsonl", [ANSWERS[0], thought, *ANSWERS[2:]])
    write(folder / "only.jsonl", [thought, {**thought, "prompt": "How?"}])
    write(folder / "torn.jsonl", PAIRS)
    lines = (folder / "torn.jsonl").read_text().splitlines()
    (folder / "torn.jsonl").write_text("\n".join([lines[0], lines[1][:30], *lines[2:]]) + "\n")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    write_model(folder / "plain", quantization=None)
    return folder


@pytest.mark.parametrize(("line", "error", "hint"), MISTAKES, ids=[m[0][:50] for m in MISTAKES])
def test_a_mistake_is_two_lines_and_leaves_nothing(
    line: str, error: str, hint: str, command: Command, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, *more = shlex.split(line)
    arguments = [part for word in more for part in (["--set", word] if "=" in word else [word])]
    monkeypatch.chdir(shelf)
    command.folder = shelf
    data = f"{objective if objective in OF else 'dpo'}.jsonl"
    usual = {"--model": str(command.model), "--data": data, "--out": "new/deep/out"}
    given = [part for k, v in usual.items() if k not in arguments for part in (k, v)]
    said, advice = command.mistake("train", objective, *arguments, *given)
    assert error in said.replace(f"{shelf}/", "")
    assert hint in advice


@pytest.mark.slow
def test_names_that_only_the_hub_could_know(process: Shell) -> None:
    data = write(process.folder / "dpo.jsonl", PAIRS)
    error, hint = process.mistake("train", "dpo", "--data", "someone/pairs", "--out", "new/out")
    assert "the data set someone/pairs, split train, could not be loaded" in error
    assert "check the name, or connect to the internet" in hint
    known = ("--data", data, "--out", "new/out")
    error, hint = process.mistake("train", "dpo", *known, "--model", "no/body")
    assert "policy.model = 'no/body': no such folder, and the hub gave none" in error
    assert "hf download no/body" in hint


def test_an_empty_folder_of_the_users_stays(command: Command) -> None:
    (command.folder / "mine").mkdir()
    command.mistake(*command.arguments("dpo", "mine", data="nope.jsonl"))
    assert (command.folder / "mine").is_dir()
    command.train("dpo", "mine", *BRIEF)


def test_bad_rows_are_skipped_and_named(command: Command) -> None:
    thought = {"prompt": "Why?", "completion": "<think>\nno end"}
    empty, long = ({"prompt": "?", "completion": text} for text in ("", good(9) * 20))
    mixed = [ANSWERS[0], empty, thought, long, {"prompt": "What?"}, *ANSWERS[1:]]
    data = write(command.folder / "mixed.jsonl", mixed)
    masked = ("train.mask.answer_only=true", "train.mask.markers=false", "train.max_length=90")
    done = command.works(*command.arguments("sft", "out", *masked, data=data))
    bad = rows(command.folder / "out" / "bad_rows.jsonl")
    found = {row["where"].rpartition("line ")[2]: row["reason"] for row in bad}
    assert sorted(found) == ["2", "3", "4", "5"]
    assert found["2"] == "completion is empty"
    assert found["3"].startswith("the mask leaves nothing to train of '<think>\\nno end")
    assert found["4"] == "a response is over 90 tokens"
    assert found["5"].startswith("its columns are: prompt; it should have prompt, completion or")
    assert "4 skipped" in done.out
    for row in bad:
        assert f"skipped {row['where']}: {row['reason']}" in done.out
    summary = json.loads((command.folder / "out" / "summary.json").read_text())
    assert summary["rows"] + summary["held_out"] == len(ANSWERS)
    assert summary["skipped"] == 4
    many = write(command.folder / "many.jsonl", [*PAIRS, *[{"prompt": "?"}] * 9])
    done = command.works(*command.arguments("dpo", "many", data=many))
    assert done.out.count("\nskipped ") == fit.NAMED + 1
    assert f"skipped 4 more, see {Path('many', 'bad_rows.jsonl')}" in done.out
    assert len(rows(command.folder / "many" / "bad_rows.jsonl")) == 9


def test_prompts_that_lose_their_beginning_are_counted_and_told(command: Command) -> None:
    long = [{"prompt": "Why, " * 40, "completion": "So."}] * 3
    data = write(command.folder / "long.jsonl", [*ANSWERS, *long])
    out = command.folder / "out"
    done = command.works(*command.arguments("sft", "out", "train.max_length=90", data=data))
    assert "warning: 3 prompts lose their beginning to fit train.max_length = 90" in done.out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["cut_prompts"], summary["skipped"]) == (3, 0)
    assert "prompts cut to fit 3" in " ".join(command.works("show", "out").out.split())
    # Where they fit, nothing is said.
    done = command.works(*command.arguments("sft", "whole", data=data))
    assert "lose their beginning" not in done.out


def test_ids_that_the_model_does_not_have_are_bad_rows(command: Command) -> None:
    """MLX would read past the embedding: another result, or the end of the process."""
    rows = [{"prompt": f"Say {i}", "completion": "so"} for i in range(3)]
    whole = [{"schema": "example/1", "kind": "sft", "prompt": [{"role": "user", "content": "q"}],
              "completion": "a", "completion_ids": [number]}
             for number in (5000, 99_999_999, 2**40)]  # fmt: skip
    data = command.folder / "ids.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *whole)))
    summary = command.train("sft", "out", data=data)
    assert (summary["skipped"], summary["rows"] + summary["held_out"]) == (3, 3)
    bad = (command.folder / "out" / "bad_rows.jsonl").read_text()
    assert bad.count("outside the model's vocabulary") == 3


def test_a_loss_that_is_no_number_stops_the_training(command: Command) -> None:
    done = command(*command.arguments("sft", "out", "train.lr=1e30", "train.epochs=9"))
    assert done.code == 2
    error, hint = last_two_lines(done.err)
    assert error.startswith("step 2: the loss is nan")
    assert "lower train.lr" in hint


def test_weights_ruined_by_the_only_step_stop_the_training(command: Command) -> None:
    """That step's loss is of before its update, and no other step follows to see it."""
    done = command(*command.arguments("sft", "out", "train.lr=1e300", "train.batch=999"))
    assert done.code == 2
    error, hint = last_two_lines(done.err)
    assert error.startswith("step 1: weights") and "lower train.lr" in hint
    assert not (command.folder / "out" / "adapter").exists()


# ---- what is shown -------------------------------------------------------------------------------


def test_plain_output(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "EVERY_S", 0.0)  # a line for every step
    done = command.works(*command.arguments("dpo", "out", "train.epochs=2", "train.batch=4"))
    for fact in ("objective  dpo", "rows       23 to train on, 1 held out, 0 skipped",
                 f"model      {command.model}", "out        out", "device     CPU"):  # fmt: skip
        assert f"{fact}" in done.out
    lines = [line for line in done.err.splitlines() if line.startswith("training: ")]
    lines = [line for line in lines if not line.startswith("training: 0/")]
    assert len(lines) == 12
    shown = r"training: \d+/12, loss \d\.\d{4}, margin [+-]\d\.\d{3}, \d+% ranked right, \d+ tokens"
    for line in lines:
        assert re.match(rf"{shown}/s, \d\.\d\d GB, ", line), line
    assert re.search(r", \d:\d\d:\d\d left$", lines[1])
    assert re.search(r", took \d:\d\d:\d\d$", lines[-1])
    assert "reference: 24/24, took" in done.err
    for fact in ("held-out loss", "held-out margin", "ranked right", "tokens/s", "peak memory"):
        assert fact in done.out.partition("\nsteps")[2]
    shown = command.works("show", "out").out
    assert shown == done.out[done.out.index("steps") : done.out.index("look at it")]
    (used,) = (line for line in done.out.splitlines() if line.startswith("use it"))
    asked = json.loads((command.folder / "out" / "summary.json").read_text())["asked"]
    assert "countdown" not in used and shlex.quote(asked or "…") in used
    before = outputs_in(command.folder / "out")
    again = command.works("resume", "out")
    assert again.out.startswith(f"out is already finished; this is its result\n{shown}")
    assert again.err == ""
    assert outputs_in(command.folder / "out") == before


@pytest.mark.slow
def test_json_is_one_object_of_a_real_process(process: Shell, command: Command) -> None:
    data = write(process.folder / "dpo.jsonl", PAIRS)
    made = ("train", "dpo", "--model", process.model, "--data", data, "--out", "a folder", "--json")
    done = process.works(*made)
    summary = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert "Traceback" not in done.err and "training: 3/3, loss" in done.err
    assert summary["adapter"] == "a folder/adapter"
    again = command.works("resume", "a folder", "--json")
    told = "a folder is already finished; this is its result\n"
    assert (again.out, again.err) == (done.out, told)
    error, hint = command.mistake(*made)
    assert error == "a folder already exists"
    assert hint == "continue it with: mlxreflect resume 'a folder', or give another --out"


# ---- the best, the last, and patience ------------------------------------------------------------

# Noise: what is learned of its manner helps the held-out rows, what is learned by heart harms them.
DRAWN = random.Random(0)
NAMES = ("prompt", "completion", "chosen", "rejected")
NOISE = [
    {name: " ".join(str(DRAWN.randrange(10)) for _ in range(12)) for name in NAMES}
    for _ in range(12)
]
OVERFITTED = ("train.lr=1e-2", "data.held_out=4", "train.batch=4", "train.epochs=12",
              "train.eval_every=2")  # fmt: skip


@pytest.fixture
def noise(command: Command) -> Path:
    return write(command.folder / "noise.jsonl", NOISE)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint stays."""
    monkeypatch.setattr(commits, "KEEP", 1000)


def held_out(folder: Path) -> dict[int, dict[str, float]]:
    return {r["step"]: r for r in rows(folder / "metrics.jsonl") if r["kind"] == "held_out"}


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("key", ["loss", "margin"])
def test_the_adapter_is_that_of_the_best_look(command: Command, noise: Path, key: str) -> None:
    objective = "sft" if key == "loss" else "dpo"
    settings = (*OVERFITTED, f"train.best_by={key}")
    summary = command.train(objective, "out", *settings, data=noise)
    looks = held_out(command.folder / "out")
    assert list(looks) == list(range(0, 25, 2))
    best = (max if key == "margin" else min)(looks, key=lambda step: looks[step][key])
    assert best < 24  # else best and last would be the same
    assert best > 0 or objective == "dpo"
    assert summary["best"] == {"step": best, "value": looks[best][key]}
    assert summary["held_out_before"]["loss"] == looks[0]["loss"]
    assert summary["held_out_after"]["loss"] == looks[24]["loss"]
    for folder, step in (("adapter", best), ("last", 24)):
        checkpoint = command.folder / "out" / "checkpoints" / f"step-{step:05d}"
        assert command.weights("out", folder) == (checkpoint / "adapters.safetensors").read_bytes()
        config = (command.folder / "out" / folder / "adapter_config.json").read_bytes()
        assert config == (checkpoint / "adapter_config.json").read_bytes()
    assert command.weights("out") != command.weights("out", "last")


@pytest.mark.slow
def test_patience_stops(command: Command, noise: Path) -> None:
    summary = command.train("sft", "out", *OVERFITTED, "train.patience=2", data=noise)
    looks = held_out(command.folder / "out")
    best = min(looks, key=lambda step: looks[step]["loss"])
    assert summary["stopped_early"] is True
    assert summary["steps"] == best + 4 < 24
    whole = command.train("sft", "whole", *OVERFITTED, data=noise)
    assert whole["stopped_early"] is False
    assert command.weights("out") == command.weights("whole")  # the best came before
    assert "patience ended" in command.works("show", "out").out
    # That which ends with the last step stopped nothing.
    few = 'train.lora.keys=["self_attn.q_proj", "self_attn.v_proj"]'  # which learn less
    last = command.train("dpo", "last", *OVERFITTED, few, "train.patience=12", data=noise)
    assert (last["best"]["step"], last["steps"], last["stopped_early"]) == (0, 24, False)
    assert command.train("dpo", "one", *OVERFITTED, "train.patience=1", data=noise)["steps"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_checkpoints_and_looks_are_made_when_asked(command: Command) -> None:
    command.train("dpo", "out", "train.batch=2", "train.eval_every=5", "train.save_every=4")
    folder = command.folder / "out"
    steps = sorted(int(p.name[5:]) for p in (folder / "checkpoints").iterdir())
    assert steps == [0, 4, 5, 8, 10, 12]
    assert list(held_out(folder)) == [0, 5, 10, 12]
    command.train("dpo", "usual", "train.batch=2", "train.epochs=2")
    assert list(held_out(command.folder / "usual")) == [0, 12, 24]  # after each epoch


@pytest.mark.parametrize("given", ["set", "set/train.jsonl"])
def test_valid_beside_train_is_what_is_held_out(command: Command, given: str) -> None:
    write(command.folder / "set" / "train.jsonl", ANSWERS)
    write(command.folder / "set" / "valid.jsonl", [*ANSWERS[:5], {"prompt": "q"}])
    quick = ("train.batch=12", "train.lora.rank=2")
    summary = command.train("sft", "out", *quick, data=given)
    assert (summary["rows"], summary["held_out"], summary["skipped"]) == (len(ANSWERS), 5, 1)
    none = command.train("sft", "none", *quick, "data.held_out=0", data=given)
    assert (none["rows"], none["held_out"]) == (len(ANSWERS), 0)


RENDERED = "<|im_start|>user\nA colour?<|im_end|>\n<|im_start|>assistant\n"
SAID: list[tuple[dict[str, Any], str]] = [
    ({"prompt": RENDERED, "completion": "Blue."}, "1 of 1 prompts have special tokens of a chat"),
    ({"prompt": "q<|end|>", "completion": "Blue."}, "1 of 1 prompts have special tokens of a chat"),
    ({"text": f"{RENDERED}Blue.<|im_end|>"}, "1 of 1 texts have special tokens of another model"),
    ({"text": "<|user|>q<|end|>"}, "1 of 1 texts have the model's special tokens written out"),
    ({"messages": [user("q"), said("a")], "tools": [{"name": "t"}]},
     "1 of 1 examples have tools, which the model's chat template does not show"),
    ({"prompt": "q", "completion": "a", "more": 1}, "columns that nothing reads: more"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "line"), SAID)
def test_what_may_not_be_meant_so_is_said(command: Command, row: dict[str, Any], line: str) -> None:
    write(command.folder / "d.jsonl", [row])
    done = command.works(
        *command.arguments("sft", "out", "train.lora.rank=2", data="d.jsonl", model="tiny")
    )
    assert done.out.count(line) == 1


def test_nothing_held_out(command: Command) -> None:
    summary = command.train("dpo", "out", "data.held_out=0", "train.batch=4", "train.save_every=2")
    kept = sorted(p.name for p in (command.folder / "out" / "checkpoints").iterdir())
    assert kept == ["step-00004", "step-00006"]  # two of them
    assert summary["held_out"] == 0
    assert summary["rows"] == len(PAIRS)
    assert summary["best"] is summary["held_out_before"] is summary["held_out_after"] is None
    assert command.weights("out") == command.weights("out", "last")
    assert "step's margin" in command.works("show", "out").out


# ---- all weights ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_reference_of_all_weights_is_no_second_copy(
    command: Command, make_model: Callable[..., Path]
) -> None:
    plain = make_model(quantization=None, hidden_size=512, intermediate_size=1024, head_dim=32)
    size = (plain / "model.safetensors").stat().st_size
    assert size > 15e6
    peaks = {}
    for reference in ("none", "stage"):
        mx.clear_cache()
        mx.reset_peak_memory()
        settings = ("train.tune=full", f"train.reference={reference}", "train.batch=2", *BRIEF[:2])
        summary = command.train("dpo", reference, *settings, model=plain)
        peaks[reference] = summary["peak_memory_bytes"]
    assert command.weights("none") != command.weights("stage")
    assert peaks["stage"] - peaks["none"] < 0.2 * size


# ---- stopped and resumed -------------------------------------------------------------------------

KILLED: dict[str, tuple[str, tuple[str, ...]]] = {
    "sft": ("sft", (
        "train.eval_every=3",
        "train.lora.dropout=0.3", "train.schedule=cosine", "train.warmup=2",
        "train.weight_decay=0.1", "train.mask.think_fraction=0.3", "train.accumulate=2",
    )),
    "dpo": ("dpo", (
        "train.eval_every=3", "train.nll=0.1", "train.grad_checkpoint=yes", "data.held_out=0.2",
    )),
    "grpo": ("grpo", ("grpo.kl=0.1", "train.schedule=linear")),
    "full": ("dpo", ("train.eval_every=3", "train.tune=full", "train.weight_decay=0.1")),
    "dora": ("sft", ("train.lora.dora=true", "train.lora.rslora=true", "train.lora.alpha=8",
                     "train.lora.dropout=0.3", "train.grad_checkpoint=yes")),
}  # fmt: skip
# The call of a point that falls into the middle of the training.
NTH = {"scored some of the reference": 1, "took a training step": 5, "appended half a journal": 3,
       "appended a journal": 4, "wrote half a checkpoint": 3, "before a commit's rename": 3,
       "after a commit's rename": 3}  # fmt: skip

# Every point of one kind; of the others, where they differ: what a commit holds of them.
POINTS = [("dpo", point) for point in TRAINING] + [
    (kind, point) for kind in KILLED if kind != "dpo"
    for point in ("took a training step", "before a commit's rename")
] + [("grpo", "scored some of the reference"), ("full", "while finishing")]  # fmt: skip


class Job:
    """A training in processes of its own, with a cache of its own."""

    def __init__(self, kind: str, folder: Path, data: Path, model: Path, *more: str) -> None:
        objective, settings = KILLED[kind]
        self.out = folder / "out"
        self.env = {**os.environ, "MLXREFLECT_CACHE": str(folder / "cache")}
        self.begin = [
            "train", objective, "--model", str(model), "--data", str(data),
            "--out", str(self.out), "--json",
            *sets("train.batch=2", "train.epochs=2", "train.lr=1e-3", "data.limit=16",
                  "train.save_every=2", *settings, *more),
        ]  # fmt: skip
        self.go_on = ["resume", str(self.out), "--json"]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], env=self.env, capture_output=True, text=True, check=False
        )

    def finish(self, arguments: list[str]) -> dict[str, Any]:
        done = self.run("-m", "mlxreflect", *arguments)
        assert done.returncode == 0, done.stderr
        self.summary = json.loads((self.out / "summary.json").read_text())
        assert json.loads(done.stdout) == self.summary
        return outputs_in(self.out)


@pytest.fixture(scope="module")
def make_job(tmp_path_factory: pytest.TempPathFactory, tiny_random: Path) -> Callable[..., Job]:
    from conftest import write_model

    folder = tmp_path_factory.mktemp("killed")
    plain = write_model(folder / "plain", quantization=None)

    def make(kind: str, *more: str) -> Job:
        bad = [{"prompt": "?", "nothing": None}]
        data = write(folder / f"{kind}.jsonl", [*bad, *OF.get(KILLED[kind][0], PAIRS)])
        model = plain if kind == "full" else tiny_random
        return Job(kind, tmp_path_factory.mktemp(kind), data, model, *more)

    return make


@pytest.fixture(scope="module")
def uninterrupted(make_job: Callable[..., Job]) -> Callable[..., dict[str, Any]]:
    """What a job ends with when nothing stops it; made once."""

    @cache
    def get(kind: str, *more: str) -> dict[str, Any]:
        job = make_job(kind, *more)
        made = job.finish(job.begin)
        assert job.summary["skipped"] == 1
        assert job.summary["steps"] > 6
        return made

    return get


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "point"), POINTS)
def test_killed_at_a_point(
    kind: str, point: str, make_job: Callable[..., Job], uninterrupted: Callable[..., Any]
) -> None:
    job = make_job(kind)
    done = job.run(DRIVER, point, str(NTH.get(point, 1)), *job.begin)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (job.out / "summary.json").exists()
    # A folder that is no job yet does for the same command.
    again = job.begin if point == "before it is a job" else job.go_on
    assert job.finish(again) == uninterrupted(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_killed_at_random_moments(
    kind: str, make_job: Callable[..., Job], uninterrupted: Callable[..., Any]
) -> None:
    """Wherever it happens to be, a random time after it has come to one more step or several."""
    longer = ("train.epochs=12", "train.save_every=1")
    job = make_job(kind, *longer)
    rng = random.Random(kind)
    died_at = []
    for _ in range(4):
        arguments = job.go_on if (job.out / "job.json").exists() else job.begin
        target = last_step(job.out) + rng.randint(1, 4)
        process = subprocess.Popen(
            [sys.executable, "-m", "mlxreflect", *arguments],
            env=job.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and last_step(job.out) < target:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
        died_at.append(last_step(job.out))
    assert not (job.out / "summary.json").exists()  # so each of the kills was one
    assert died_at == sorted(set(died_at)), died_at
    assert job.finish(job.go_on) == uninterrupted(kind, *longer)


def last_step(out: Path) -> int:
    """Of the last checkpoint that was committed; 0 before the first."""
    found = [int(p.name.removeprefix("step-")) for p in out.glob("checkpoints/step-?????")]
    return max(found, default=0)


def test_a_training_is_resumed_from_another_folder(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative names on the command line are of the folder that it was given in."""
    data = write(command.folder / "rel.jsonl", PAIRS).relative_to(command.folder)
    model = os.path.relpath(command.model, command.folder)
    command.train("dpo", "out", *BRIEF, data=data, model=model)
    before = outputs_in(command.folder / "out")
    (command.folder / "out" / "summary.json").unlink()
    shutil.rmtree(command.folder / "out" / "adapter")
    elsewhere = command.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    command.works("resume", "../out")
    assert outputs_in(command.folder / "out") == before


def test_what_cannot_be_resumed_is_refused(command: Command) -> None:
    data, out = command.data("dpo"), command.folder / "out"
    command.train("dpo", "out", *BRIEF, data=data)
    error, hint = command.mistake("resume", "out", *sets("train.lr=1e-3"))
    assert error.startswith("--set train.lr=1e-3: a training is resumed with the keys it began")
    assert "only these can change: mirror, track, train." in hint
    assert command.mistake("resume", "nope")[0] == "nope is not a run folder"
    with take_lock(out):
        error, hint = command.mistake("resume", "out")
    assert error == f"out is in use by process {os.getpid()}"
    assert "wait for it" in hint
    (out / "summary.json").unlink()
    error, hint = command.mistake("show", "out")
    assert (error, hint) == ("out is not finished", "continue it: mlxreflect resume out")
    write(data, PAIRS[1:])
    done = command("resume", "out")
    error, hint = last_two_lines(done.err)
    assert (done.code, error) == (2, f"out began with other rows than {data} gives now")
    assert "bring the data" in hint
    write(data, PAIRS)
    command.works("resume", "out")
