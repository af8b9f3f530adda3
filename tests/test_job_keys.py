"""Every key of `mlxreflect train` changes something: an output file, or a recorded call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support.run_outputs import outputs_in
from support.trainings import ANSWERS, GROUPS, PAIRS, Data, good, poor, question, said, user, write

from mlxreflect.config.fields import idle_keys
from mlxreflect.config.recipe import DEFAULTS, load_job
from mlxreflect.config.schema import Job
from mlxreflect.config.toml import flatten
from mlxreflect.core.errors import UserError
from mlxreflect.core.ui import Ui
from mlxreflect.data.matching import FILE
from mlxreflect.runs import fit
from mlxreflect.runs.fit import train
from mlxreflect.runs.folder import create_job
from mlxreflect.train import trainer

# Two epochs of several steps, with looks, a thought in each answer and answers of many lengths.
BASE = {"train.batch": 2, "train.epochs": 2, "train.lr": 1e-3, "data.limit": 8,
        "data.held_out": 2, "train.lora.dropout": 0.1}  # fmt: skip
# key → (objective, the new value, settings that both trainings need).
CHANGED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "seed": ("sft", 1, {}),
    "tags": ("sft", "reasoning", {"train.mask.think_fraction": 0.5}),
    "policy.quantize": ("sft", 8, {}),
    "data.turns": ("sft", "last", {"data.source": "talk.jsonl"}),
    "data.columns": ("dpo", {"chosen": "rejected", "rejected": "chosen"}, {}),
    "data.limit": ("dpo", 6, {}),
    "data.held_out": ("dpo", 0.5, {}),
    "train.lr": ("dpo", 2e-3, {}),
    "train.beta": ("dpo", 0.3, {}),
    "train.smoothing": ("dpo", 0.1, {}),
    "train.logps": ("dpo", "mean", {}),
    "train.nll": ("dpo", 0.2, {}),
    "train.dpo": ("dpo", 0.5, {}),
    "train.reference": ("dpo", "none", {}),
    "train.batch": ("dpo", 3, {}),
    "train.accumulate": ("dpo", 2, {}),
    "train.epochs": ("dpo", 3, {}),
    "train.clip": ("dpo", 0.01, {}),
    "train.warmup": ("dpo", 3, {}),
    "train.weight_decay": ("dpo", 0.5, {}),
    "train.max_length": ("sft", 40, {"data.source": "mixed.jsonl"}),
    "train.mask.answer_only": ("sft", True, {}),
    "train.mask.think_fraction": ("sft", 0.5, {}),
    "train.mask.markers": ("sft", False, {"train.mask.think_fraction": 0.5}),
    "train.tune": ("sft", "full", {"policy.model": "plain"}),
    "train.lora.rank": ("dpo", 4, {}),
    "train.lora.scale": ("dpo", 1.0, {}),
    "train.lora.alpha": ("dpo", 8.0, {}),
    "train.lora.rslora": ("dpo", True, {"train.lora.alpha": 8.0}),
    "train.lora.dora": ("dpo", True, {}),
    "train.lora.dropout": ("sft", 0.5, {}),
    "train.lora.layers": ("dpo", 1, {}),
    "train.lora.keys": ("dpo", ["mlp.up_proj"], {}),
    "train.schedule": ("dpo", "cosine", {}),
    "train.eval_every": ("dpo", 2, {}),
    "train.save_every": ("dpo", 1, {}),
    "train.best_by": ("dpo", "margin", {}),
    "train.patience": ("dpo", 1, {"data.source": "noise.jsonl", "train.lr": 0.05,
                                  "train.eval_every": 1}),
    "grpo.clip_ratio": ("grpo", 1e-4, {}),
    "grpo.epsilon_high": ("grpo", 0.1, {"grpo.clip_ratio": 1e-4}),
    "grpo.importance_sampling_level": ("grpo", "sequence", {"grpo.clip_ratio": 1e-3}),
    "grpo.kl": ("grpo", 0.5, {}),
    "grpo.average": ("grpo", "token", {}),
    "grpo.scale_rewards": ("grpo", False, {}),
}  # fmt: skip
# Keys that need other data or a look inside: a test of their own below.
APART = {
    "policy.dequantize", "policy.thinking", "policy.template", "track", "mirror",
    "objective", "policy.model", "policy.adapter", "data.source", "data.config", "data.split",
    "data.bad_row", "data.against", "data.ngram", "train.grad_checkpoint", "train.memory_gb",
    "train.part_tokens", "train.swap_gb",
    "train.reference_cache", "train.cache_limit_gb", "train.wired_limit_gb",
}  # fmt: skip
OF = {"sft": "answers.jsonl", "grpo": "groups.jsonl"}  # else pairs.jsonl


def test_no_key_is_forgotten() -> None:
    assert CHANGED.keys() | APART == flatten(Job().model_dump()).keys()
    assert not CHANGED.keys() & APART


def thought(i: int) -> str:
    """A response with both tag sets in it."""
    return f"{good(i)} <reasoning>\nso {i}\n</reasoning> {2 * i}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data files, and a model that is not quantised."""
    from conftest import write_model

    folder = tmp_path_factory.mktemp("shelf")
    answers = [{**row, "completion": thought(i)} for i, row in enumerate(ANSWERS)]
    several = [[user(question(i)), said(good(i)), user(question(i + 1)), said(good(i + 1))]
               for i in range(8)]  # fmt: skip
    files: dict[str, Data] = {
        "pairs.jsonl": PAIRS,
        "other.jsonl": PAIRS[1:],
        "answers.jsonl": answers,
        "groups.jsonl": GROUPS,
        "talk.jsonl": [{"messages": talk} for talk in several],
        "mixed.jsonl": [*answers[:4], *[{"prompt": question(i), "completion": f"{2 * i}"}
                                        for i in range(8)]],
        # Held-out rows say the opposite of those that are trained on.
        "noise.jsonl": [{"prompt": question(i), "chosen": (good, poor)[i % 2](i),
                         "rejected": (poor, good)[i % 2](i)} for i in range(8)],
        "bad.jsonl": [*PAIRS[:3], {"prompt": "?"}, *PAIRS[3:]],
        "folder/train.jsonl": PAIRS,
        "folder/valid.jsonl": PAIRS[2:],
    }  # fmt: skip
    for name, data in files.items():
        write(folder / name, data)
    write_model(folder / "plain", quantization=None)
    return folder


Outputs = Callable[..., dict[str, str]]


def settings_of(objective: str, settings: dict[str, Any], shelf: Path, model: Path) -> Job:
    given = {"data.source": OF.get(objective, "pairs.jsonl"), "policy.model": str(model),
             **BASE, **settings}  # fmt: skip
    if objective == "grpo":
        del given["data.held_out"]
    if settings.get("train.tune") == "full":
        del given["train.lora.dropout"]
    for key in ("data.source", "policy.model"):
        inside = shelf / given[key]
        given[key] = str(inside) if inside.exists() else given[key]
    columns = given.pop("data.columns", {})
    given |= {f"data.columns.{ours}": theirs for ours, theirs in columns.items()}
    flags = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return load_job(objective, "tiny", "", flags)


def outputs(job: Job, folder: Path) -> dict[str, str]:
    """Train here; every output file but the job's own, times and paths left out, as hashes."""
    place = create_job(job, folder)
    try:
        train(place, Ui(quiet=True))
    finally:
        place.lock.close()
    return outputs_in(folder)


@pytest.fixture(scope="module")
def outputs_of(
    shelf: Path, tiny_random: Path, tmp_path_factory: pytest.TempPathFactory
) -> Outputs:  # fmt: skip
    """Trainings with settings, each made once."""
    made: dict[str, dict[str, str]] = {}
    cache = tmp_path_factory.mktemp("cache")

    def get(objective: str, settings: dict[str, Any]) -> dict[str, str]:
        key = json.dumps([objective, settings], sort_keys=True)
        if key not in made:
            out = tmp_path_factory.mktemp("out") / "out"
            # A cache of each: what is kept of one training must not decide another.
            mine = {"train.reference_cache": str(cache / f"{len(made)}.sqlite"), **settings}
            made[key] = outputs(settings_of(objective, mine, shelf, tiny_random), out)
        return made[key]

    return get


@pytest.mark.slow
def test_the_same_job_twice_is_the_same(
    outputs_of: Outputs, shelf: Path, tiny_random: Path, tmp_path: Path
) -> None:
    off = {"train.reference_cache": "off"}
    for objective in ("sft", "dpo", "grpo"):
        job = settings_of(objective, off, shelf, tiny_random)
        assert outputs(job, tmp_path / objective) == outputs_of(objective, {})


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_key_changes_an_output(key: str, outputs_of: Outputs) -> None:
    objective, value, needed = CHANGED[key]
    changed, plain = outputs_of(objective, {**needed, key: value}), outputs_of(objective, needed)
    assert changed != plain
    if key not in ("train.eval_every", "train.save_every", "train.best_by", "data.held_out"):
        adapters = "last/adapters.safetensors"
        assert changed[adapters] != plain[adapters]  # more than a figure


@pytest.mark.slow
def test_the_objectives_differ(outputs_of: Outputs) -> None:
    plain: dict[str, dict[str, Any]] = {"exo_pair": {"train.smoothing": 0.01}}
    pairs = [name for name in DEFAULTS if name not in OF]
    found = [outputs_of(name, {"train.logps": "sum", **plain.get(name, {})} if name != "orpo"
                        else {})["last/adapters.safetensors"] for name in pairs]  # fmt: skip
    assert len(set(found)) == len(pairs) == 4
    assert outputs_of("sft", {}) != outputs_of("grpo", {})


def test_defaults_of_an_objective_can_be_set() -> None:
    for objective, tables in DEFAULTS.items():
        job = load_job(objective, "tiny", "x.jsonl").model_dump()
        for table, keys in tables.items():
            assert {key: job[table][key] for key in keys} == keys
    assert load_job("sft", "tiny", "x.jsonl", ["train.lr=0.5"]).train.lr == 0.5


# Values that are no objective's own.
VALUES: dict[str, Any] = {key: value for key, (_, value, _) in CHANGED.items()}
VALUES["train.logps"] = "sum"


@pytest.mark.slow
@pytest.mark.parametrize("objective", DEFAULTS)
def test_an_idle_key_is_refused_and_would_change_nothing(
    objective: str, outputs_of: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = flatten(Job().model_dump())
    idle_ones = list(idle_keys(Job, objective))
    keys = [key for key in known for idle in idle_ones if f"{key}.".startswith(f"{idle}.")]
    assert len(keys) > 1
    for key in keys:
        with pytest.raises(UserError, match=f"{key}.* does nothing for {objective}"):
            load_job(objective, "tiny", "x.jsonl", [f"{key}={json.dumps(VALUES[key])}"])
    together = {key: VALUES[key] for key in keys if key != "data.held_out"}
    monkeypatch.setattr("mlxreflect.config.recipe.check_job", lambda job: None)
    expected, found = outputs_of(objective, {}), outputs_of(objective, together)
    for name in ("adapter", "last"):
        file = f"{name}/adapters.safetensors"
        assert found[file] == expected[file]


# ---- the model and the data ----------------------------------------------------------------------


@pytest.mark.slow
def test_model_and_adapter(
    outputs_of: Outputs, shelf: Path, tiny_random: Path, tmp_path: Path
) -> None:
    assert outputs_of("dpo", {"policy.model": "plain"}) != outputs_of("dpo", {})
    outputs(settings_of("dpo", {}, shelf, tiny_random), tmp_path / "first")
    # Its dropout is that of its config: the key is refused.
    adapter = {"policy.adapter": str(tmp_path / "first" / "last"), "train.lora.dropout": 0.05}
    after = outputs_of("dpo", adapter)
    assert after != outputs_of("dpo", {})
    assert outputs_of("dpo", {**adapter, "train.reference": "base"}) != after
    with pytest.raises(UserError, match=r"train\.lora\.rank = 4 does nothing for an"):
        outputs_of("dpo", {**adapter, "train.lora.rank": 4})


@pytest.mark.slow
def test_source_and_split(outputs_of: Outputs) -> None:
    assert outputs_of("dpo", {"data.source": "other.jsonl"}) != outputs_of("dpo", {})
    folder = {"data.source": "folder", "data.held_out": 0}
    assert outputs_of("dpo", folder) == outputs_of("dpo", {"data.held_out": 0})
    assert outputs_of("dpo", {**folder, "data.split": "valid"}) != outputs_of("dpo", folder)


@pytest.mark.slow
def test_config_and_split_name_the_hub_data(
    outputs_of: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub cannot be reached from a test: what is asked of it is recorded."""
    import datasets

    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, sorted(kwargs.items())))
        return datasets.Dataset.from_list(PAIRS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for extra in ({}, {"data.config": "hard"}, {"data.split": "validation"}):
        assert outputs_of("dpo", {"data.source": "someone/pairs", **extra}) == outputs_of("dpo", {})
    assert len({str(call) for call in asked}) == 3


def test_a_bad_row_is_skipped_or_fatal(outputs_of: Outputs) -> None:
    bad = {"data.source": "bad.jsonl"}
    assert "bad_rows.jsonl" in outputs_of("dpo", bad).keys() - outputs_of("dpo", {}).keys()
    with pytest.raises(UserError, match="line 4"):
        outputs_of("dpo", {**bad, "data.bad_row": "fatal"})


@pytest.mark.slow
def test_rows_of_an_evaluation_are_left_out(outputs_of: Outputs, shelf: Path) -> None:
    """Of one question as a whole, of another four words."""
    exam = write(
        shelf / "exam.jsonl", [{"question": question(4)}, {"question": "So what is 5 plus"}]
    )
    against = {"data.against": [str(exam)]}
    plain, whole = outputs_of("dpo", {}), outputs_of("dpo", against)
    part = outputs_of("dpo", {**against, "data.ngram": 4})
    assert len({one["last/adapters.safetensors"] for one in (plain, whole, part)}) == 3
    assert FILE not in plain
    assert whole[FILE] != part[FILE]


# ---- what the numbers do not show ----------------------------------------------------------------


def watched(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[Any]:
    """What a function is given first, call by call."""
    seen: list[Any] = []
    original = getattr(place, name)

    def spy(first: Any, *rest: Any, **options: Any) -> Any:
        seen.append(first)
        return original(first, *rest, **options)

    monkeypatch.setattr(place, name, spy)
    return seen


@pytest.mark.slow
def test_grad_checkpoint_recomputes(outputs_of: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, mx, "checkpoint")

    def counts(**settings: Any) -> int:
        seen.clear()
        outputs_of("dpo", {f"train.{key}": value for key, value in settings.items()})
        return len(seen)

    plain = counts(grad_checkpoint="no")  # the head's chunks
    assert counts(grad_checkpoint="yes") > plain
    # Of very little memory nothing is left, and auto recomputes too.
    assert counts(memory_gb=1e-3) > plain


@pytest.mark.slow
def test_a_batch_is_halved(outputs_of: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = watched(monkeypatch, trainer, "collate")
    outputs_of("dpo", {"train.batch": 4, "train.memory_gb": 8.0})
    assert max(map(len, batches)) == 2  # halves, side by side
    for key, value in (("memory_gb", 1e-3), ("part_tokens", 1)):
        batches.clear()
        outputs_of("dpo", {"train.batch": 4, f"train.{key}": value})
        assert max(map(len, batches)) == 1


@pytest.mark.slow
def test_limits_of_memory_are_set_first(
    outputs_of: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(fit, "limit_memory", lambda *limits: heard.append(limits))
    outputs_of("dpo", {"train.cache_limit_gb": 0.5, "train.wired_limit_gb": 2.0})
    assert heard == [(0.5, 2.0)]


@pytest.mark.slow
def test_the_reference_cache_is_where_the_job_says(
    outputs_of: Outputs, shelf: Path, tiny_random: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLXREFLECT_CACHE", str(tmp_path / "usual"))
    mine = tmp_path / "mine.sqlite"
    for number, setting in enumerate(("off", str(mine), "")):
        job = settings_of("dpo", {"train.reference_cache": setting}, shelf, tiny_random)
        assert outputs(job, tmp_path / str(number)) == outputs_of("dpo", {})
        assert mine.exists() == (number > 0)
        assert (tmp_path / "usual" / "references.sqlite").exists() == (number > 1)
