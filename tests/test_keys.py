"""Every recipe key changes something: an output file other than the recipe, or a recorded call."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from support.fake_ollama import FakeOllama
from support.rows import write_rows
from support.run_outputs import outputs_by_settings, outputs_of_run
from support.teacher import Teacher

from mlxreflect.config.recipe import load_recipe, resolved
from mlxreflect.config.schema import Recipe
from mlxreflect.config.toml import flatten
from mlxreflect.core.cache import cache_path
from mlxreflect.core.journal import read_json, read_rows
from mlxreflect.critics.replies import FILE as CACHE
from mlxreflect.data.matching import FILE
from mlxreflect.models import load as policy_module
from mlxreflect.models.fuse import write_folder
from mlxreflect.models.policy import Policy
from mlxreflect.report import plots
from mlxreflect.runs import run as run_module
from mlxreflect.train.network import Network

# Two waves and a second epoch, with failures, bucket passes, verifications and SFT in them.
BASE = {
    "task.limit": 8, "r3.wave": 4, "r3.epochs": 1, "r3.verifications": 2, "r3.sft_mode": 1,
    "r3.bucket_every": 4, "train.batch": 2, "train.sft.scale_failed": 0.5,
    "train.lora.dropout": 0.1, "eval.limit": 6, "policy.batch": 8, "eval.max_new_tokens": 26,
}  # fmt: skip
# Keys whose effect shows in a plain solver run: the new value, and settings both runs need.
CHANGED = {
    "name": ("other", {}),
    "seed": (1, {}),
    "limits.policy_tokens": (1, {}),
    "limits.critic_calls": (1, {}),
    "limits.training_tokens": (1, {}),
    "policy.quantize": (8, {}),
    "policy.temperature": (1.5, {}),
    "policy.top_p": (0.3, {}),
    "policy.top_k": (2, {}),
    "policy.min_p": (0.5, {}),
    "policy.repetition_penalty": (1.5, {}),
    "policy.presence_penalty": (1.5, {}),
    "policy.max_new_tokens": (8, {}),
    "policy.batch": (2, {}),
    "prompt.tags": ("reasoning", {}),
    "prompt.style": ("direct", {}),
    "prompt.shots": (1, {}),
    "task.name": ("arithmetic", {}),
    "task.limit": (4, {}),
    "task.numbers": ([4], {}),
    "task.words": ([2], {"task.name": "last_letter"}),
    "task.operands": ([2], {"task.name": "arithmetic"}),
    "task.digits": ([1], {"task.name": "arithmetic"}),
    "r3.wave": (2, {}),
    "r3.epochs": (2, {}),
    "r3.pairs": ("own", {"r3.attempts": 4}),
    "r3.attempts": (2, {}),
    "r3.rewrites": (3, {"r3.rewriter": "self"}),
    "r3.verifications": (1, {}),
    "r3.verify_samples": (2, {}),
    "r3.verify_pass": (2, {"r3.verify_samples": 2, "task.limit": 24, "r3.wave": 12}),
    "r3.feedback": ("self", {}),
    "r3.rewriter": ("self", {}),
    "r3.judge": (True, {}),
    "r3.sft_mode": (2, {"task.limit": 24, "r3.wave": 12}),
    "r3.sft_correct": (True, {"task.limit": 24, "r3.wave": 12}),
    "r3.bucket_every": (0, {}),
    "r3.bucket_visits": (0, {"r3.wave": 2, "r3.bucket_every": 2, "r3.verifications": 1}),
    "r3.patience": (1, {}),
    "r3.until_mastered": (True, {}),
    "train.objective": ("ipo", {}),
    "train.cut": ("keep", {"policy.max_new_tokens": 8}),
    "train.lr": (1e-3, {}),
    "train.beta": (0.5, {}),
    "train.smoothing": (0.1, {}),
    "train.logps": ("mean", {}),
    "train.nll": (0.0, {}),
    "train.dpo": (0.0, {}),
    "train.reference": ("none", {}),
    "train.batch": (1, {}),
    "train.accumulate": (2, {"train.batch": 1}),
    "train.epochs": (2, {}),
    "train.clip": (0.01, {}),
    "train.warmup": (10, {}),
    "train.weight_decay": (0.5, {}),
    "train.max_length": (24, {}),
    "train.mask.answer_only": (True, {}),
    "train.mask.think_fraction": (0.5, {}),
    "train.mask.markers": (False, {"train.mask.think_fraction": 0.5}),
    "train.sft.lr": (1e-3, {}),
    "train.sft.scale_verified": (0.9, {"task.limit": 24, "r3.wave": 12, "r3.sft_mode": 2}),
    "train.sft.scale_failed": (0.01, {}),
    "train.lora.rank": (4, {}),
    "train.lora.scale": (1.0, {}),
    "train.lora.alpha": (16.0, {}),
    "train.lora.rslora": (True, {"train.lora.alpha": 16.0}),
    "train.lora.dora": (True, {}),
    "train.lora.dropout": (0.5, {}),
    "train.lora.layers": (1, {}),
    "train.lora.keys": (["self_attn.q_proj"], {}),
    "eval.spec": ("arithmetic", {}),
    "eval.limit": (3, {}),
    "eval.seed": (1, {}),
    "eval.max_new_tokens": (12, {}),
    "eval.direct": (True, {}),
    "eval.dev_every": (1, {}),
    "eval.dev_limit": (5, {"eval.dev_every": 1}),
    "eval.dev_stop": (0.0, {"eval.dev_every": 1, "eval.dev_limit": 40, "train.lr": 0.05}),
    "eval.trained": ("best", {"eval.dev_every": 1}),
    "probes.prompts": (["What is 2 plus 2?", "Who are you?"], {}),
}  # fmt: skip
# Keys that need data, a server or a look inside: a test of their own below, in test_job_keys.py, or
# in those of tasks and critics.
APART = {
    "allow_untrained", "track", "mirror", "publish.to", "publish.each",
    "probes.system",  # the embedded policy's template leaves system messages out
    "policy.cache_gb",  # how many are written at once, which changes no text
    "policy.dequantize", "policy.thinking", "policy.template", "critic.thinking",
    "policy.model", "policy.adapter", "task.source", "task.config", "task.split", "task.question",
    "task.answer", "task.answer_type", "task.grader", "task.grader_sha256",
    "eval.source", "critic.max_failed",
    "eval.cache", "eval.decontaminate", "eval.ngram", "eval.against", "train.grad_checkpoint",
    "train.memory_gb", "train.part_tokens", "train.swap_gb", "train.reference_cache", "train.tune",
    "train.cache_limit_gb", "train.wired_limit_gb",
    "critic.provider", "critic.model", "critic.base_url", "critic.temperature",
    "critic.max_tokens", "critic.num_ctx", "critic.concurrency", "critic.deadline_s",
    "critic.cache", "critic.advanced", "critic.judge", "prompt.file", "prompt.templates",
    "r3.shard", "critic.price_in", "critic.price_out", "critic.replay",
    "critic.key_env", "critic.region", "critic.profile", "critic.keep_alive", "critic.top_p",
    "critic.top_k", "critic.min_p", "critic.repetition_penalty", "critic.presence_penalty",
    "critic.budget.max_calls", "critic.budget.max_tokens", "critic.budget.max_usd",
}  # fmt: skip
ONE_VALUE = {"strategy"}  # the others have tables of their own


def test_no_key_is_forgotten():
    """The other methods' own keys are in the tests of these methods."""
    assert set(CHANGED) | APART | ONE_VALUE == set(flatten(resolved(Recipe())))


def outputs(settings, folder):
    return outputs_of_run("quickstart", {**BASE, **settings}, folder)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Reference log-probabilities are kept, but not where the user's are. Plots are not drawn: they
    take a third of such a short run, and show what other files hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda drawings, folder: [])
        patch.setenv("MLXREFLECT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def outputs_of(tmp_path_factory):
    """Runs of the base recipe with settings, each made once."""
    return outputs_by_settings(tmp_path_factory, "quickstart", BASE)


@pytest.mark.slow
def test_the_same_recipe_twice_is_the_same(outputs_of, tmp_path):
    assert outputs({}, tmp_path / "run") == outputs_of({})


# What these keys change shows in a run without verifications and bucket passes, too.
LIGHT = {"r3.verifications": 0, "r3.bucket_every": 0}


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_key_changes_an_output(key, outputs_of):
    value, needed = CHANGED[key]
    if not key.startswith(("r3.", "task.", "train.sft.")):
        needed = {**LIGHT, **needed}
    assert outputs_of({**needed, key: value}) != outputs_of(needed)


@pytest.mark.slow
def test_limits_of_memory_are_set_first(outputs_of, monkeypatch):
    """They change how much memory is held, and no output."""
    heard, plain = [], outputs_of({})
    monkeypatch.setattr(run_module, "limit_memory", lambda *limits: heard.append(limits))
    settings = {"train.cache_limit_gb": 0.5, "train.wired_limit_gb": 2.0}
    found = outputs_of(settings)
    assert heard == [(0.5, 2.0)]
    assert found["adapter/adapters.safetensors"] == plain["adapter/adapters.safetensors"]


@pytest.mark.slow
def test_base_reference_differs_from_stage_in_a_second_epoch(outputs_of):
    both = {"r3.epochs": 2}
    assert outputs_of({**both, "train.reference": "base"}) != outputs_of(both)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "kind", "work"),
    [("train.reference_cache", Network, "logps"), ("eval.cache", Policy, "generate")],
)
def test_what_is_computed_is_kept_where_the_recipe_says(key, kind, work, tmp_path, monkeypatch):
    """And a run that finds it there computes less, and ends with the same bytes."""
    calls = 0
    original = getattr(kind, work)

    def counted(*args, **options):
        nonlocal calls
        calls += not options.get("training")
        return original(*args, **options)

    monkeypatch.setattr(kind, work, counted)
    monkeypatch.setenv("MLXREFLECT_CACHE", str(tmp_path / "default"))
    off = {"task.limit": 5, "train.reference_cache": "off", "eval.cache": "off"}
    mine = str(tmp_path / "mine")
    results, counts = [], []
    for number, path in enumerate((mine, mine, "off", "")):
        results.append(outputs({**off, key: path}, tmp_path / str(number)))
        counts.append(calls - sum(counts))
        assert Path(mine).is_file()
        assert (tmp_path / "default").exists() == (path == "")
    assert results[0] == results[1] == results[2] == results[3]
    assert counts[1] < counts[0] == counts[2] == counts[3]
    assert counts[1] == 0 or work == "generate"  # attempts are not kept


@pytest.mark.slow
def test_all_weights_of_a_plain_model(outputs_of, tmp_path):
    write_folder("tiny", "", tmp_path / "plain", 0)
    plain = {"policy.model": str(tmp_path / "plain"), "train.reference": "none", "task.limit": 5}
    lora, full = outputs_of(plain), outputs_of({**plain, "train.tune": "full"})
    assert lora["adapter/adapters.safetensors"] != full["adapter/adapters.safetensors"]
    assert lora["adapter/adapter_config.json"] != full["adapter/adapter_config.json"]


@pytest.mark.slow
def test_model_and_adapter(outputs_of, tmp_path):
    outputs({}, tmp_path / "first")
    adapter = str(tmp_path / "first" / "adapter")
    assert outputs_of({"policy.adapter": adapter}) != outputs_of({})
    copy = tmp_path / "another"
    shutil.copytree(policy_module.TINY, copy)
    weights = mx.load(str(policy_module.TINY / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    mx.save_safetensors(str(copy / "model.safetensors"), weights, metadata={"format": "mlx"})
    assert outputs_of({"policy.model": str(copy)}) != outputs_of({})


# ---- data ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_keys_of_foreign_data(outputs_of, tmp_path):
    row = {"question": "{i} + 0?", "answer": "{i}", "q2": "{i} + 1?", "a2": "{i}5"}
    rows = [{key: text.format(i=i) for key, text in row.items()} for i in range(60)]
    with FakeOllama(reply=answering, models=["critic"]) as server:
        mine = {"task.name": "jsonl", "eval.spec": "", "critic.provider": "ollama",
                "critic.model": "critic", "critic.base_url": server.url, "critic.cache": "off",
                "task.source": str(write_rows(tmp_path / "a.jsonl", rows[:40]))}  # fmt: skip
        other = str(write_rows(tmp_path / "b.jsonl", rows[20:]))
        for key, value in (
            ("task.source", other), ("eval.source", other), ("task.answer_type", "text"),
            ("task.question", "q2"), ("task.answer", "a2"),
        ):  # fmt: skip
            assert outputs_of({**mine, key: value}) != outputs_of(mine), key


@pytest.mark.slow
def test_keys_of_what_is_left_out(outputs_of, tmp_path):
    """Some rows share five words with the evaluation's question, others are in a further one."""
    exam, further = "What is 77 plus 88?", [f"What is {i} plus {i}?" for i in range(6)]
    mine = [*further, *(f"Tell {name} what is 77 plus 88." for name in ("Ann", "Bob", "Cem", "Di"))]
    files = {}
    for name, texts in (("mine", mine), ("exam", [exam]), ("further", further)):
        rows = [{"question": text, "answer": "7"} for text in texts]
        files[name] = str(write_rows(tmp_path / f"{name}.jsonl", rows))
    base = {"task.name": "jsonl", "task.source": files["mine"], "eval.spec": "jsonl",
            "eval.source": files["exam"], "r3.feedback": "self", "r3.rewriter": "self",
            "critic.max_tokens": 12, "r3.verifications": 0, "r3.bucket_every": 0,
            "policy.max_new_tokens": 12}  # fmt: skip
    changes = ({}, {"eval.decontaminate": "off"}, {"eval.ngram": 5},
               {"eval.against": [files["further"]]},
               {"eval.ngram": 5, "eval.decontaminate": "exact"})  # fmt: skip
    found = [outputs_of({**base, **change}) for change in changes]
    assert [FILE in one for one in found] == [0, 0, 1, 1, 0]
    assert found[0]["summary.json"] != found[1]["summary.json"]  # nobody looked
    episodes = [one["episodes.jsonl"] for one in found]
    assert len(set(episodes)) == 3
    assert episodes[0] == episodes[1] == episodes[4]


# ---- the critic ---------------------------------------------------------------------------------


def answering(body):
    """A critic that finds a fault, or rewrites: shown by the last word of the prompt."""
    if body["messages"][-1]["content"].endswith("Reflect:"):
        return "step 1 is wrong"
    return "<think>\nstep 1: 1 + 1 = 2\n</think>\n<answer> 2 </answer>"


def recorded(settings, folder, reply=answering):
    """The chat requests that a run's critic got, whatever their order."""
    with FakeOllama(reply=reply, models=["critic", "other"]) as server:
        outputs({"critic.provider": "ollama", "critic.model": "critic", "critic.cache": "off",
                 "critic.base_url": server.url, **settings}, folder)  # fmt: skip
        return sorted(json.dumps(body, sort_keys=True) for body in server.chats)


@pytest.mark.slow
def test_keys_of_the_critic(tmp_path):
    plain = recorded({}, tmp_path / "plain")
    assert plain
    assert recorded({}, tmp_path / "again") == plain
    changes = {
        "critic.model": "other", "critic.temperature": 0.1, "critic.max_tokens": 77,
        "critic.num_ctx": 2048, "critic.advanced.temperature": 0.2,
    }  # fmt: skip
    for key, value in changes.items():
        assert recorded({key: value}, tmp_path / key) != plain, key


@pytest.mark.slow
def test_the_judge_is_a_critic_with_settings_of_its_own(tmp_path):
    judged = {"r3.judge": True}
    plain = recorded(judged, tmp_path / "plain", Teacher())
    other = recorded({**judged, "critic.judge.model": "other"}, tmp_path / "other", Teacher())
    asked = [[json.loads(body)["model"] for body in bodies] for bodies in (plain, other)]
    assert set(asked[0]) == {"critic"}
    assert set(asked[1]) == {"critic", "other"}


@pytest.mark.slow
def test_the_size_of_a_shard_changes_no_sample(tmp_path):
    """Only when critics are asked, as tests/test_workers.py shows."""
    sizes = {"4": {}, "8": {"r3.shard": 8}, "2": {"r3.shard": 2}}  # of a wave of 4, batch 8
    four, eight, two = (recorded(s, tmp_path / name) for name, s in sizes.items())
    assert four == eight == two


@pytest.mark.slow
def test_wording_changes_what_is_asked(outputs_of, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('attempt_thinking = "{instruction} Use {open} and {close}."\n')
    from_file = outputs_of({"prompt.file": str(file)})
    text = "{instruction} Use {open} and {close}."
    kept = ("episodes.jsonl", "examples.jsonl", "eval/base/results.json")
    inline = outputs_of({"prompt.templates.attempt_thinking": text})
    assert [from_file[name] for name in kept] == [inline[name] for name in kept]
    assert all(from_file[name] != outputs_of({})[name] for name in kept)


@pytest.mark.slow
def test_the_cache_is_where_the_recipe_says(tmp_path, monkeypatch):
    """And the solver is asked nothing over a network."""
    monkeypatch.setenv("MLXREFLECT_CACHE", str(tmp_path / "default"))
    mine = str(tmp_path / "mine.sqlite")
    assert recorded({"critic.cache": mine}, tmp_path / "a")
    assert Path(mine).is_file()
    assert recorded({"critic.cache": mine}, tmp_path / "b") == []  # everything is known
    assert recorded({"critic.provider": "solver"}, tmp_path / "c") == []
    default = cache_path("", CACHE)
    assert default is not None and not default.exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["in", "out"])
def test_prices_are_counted(way, tmp_path):
    """On each line of the ledger and in the figures of the run."""
    recorded({f"critic.price_{way}": 3.0}, tmp_path / "run")
    rows = list(read_rows(tmp_path / "run" / "critic.jsonl"))
    assert [row["usd"] for row in rows] == pytest.approx([r[f"tokens_{way}"] * 3e-6 for r in rows])
    critic = read_json(tmp_path / "run" / "summary.json")["critic"]
    assert critic["usd"] == critic["wire"]["usd"] == pytest.approx(sum(r["usd"] for r in rows))
    assert critic["usd"] > 0


@pytest.mark.parametrize(("value", "packed"), [("no", True), ("yes", False), ("auto", False)])
def test_weights_stay_packed_where_the_recipe_says_so(value: str, packed: bool) -> None:
    """It changes memory and speed, and no output: on the CPU both compute in float32."""
    recipe = load_recipe("quickstart", ["policy.quantize=8", f"policy.dequantize={value}"])
    model = policy_module.load_policy(recipe.policy).model
    kinds = {type(m).__name__ for _, m in model.named_modules()}
    assert ("QuantizedLinear" in kinds) == packed
