"""`mlxreflect doctor`: what it finds, whom it asks, and what it never shows."""

import gc
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from support import fake_server as wire
from support.fake_bedrock import SECRET, FakeBedrock, aws, credentials
from support.fake_ollama import FakeOllama
from support.fake_openai import FakeOpenAI, refusal
from support.fake_server import Fault, free_port, http
from support.gpu import pretend_gpu
from support.shell import Shell, sets, two_lines

from mlxreflect.config.recipe import SHARED, load_recipe, read_shared
from mlxreflect.config.toml import bundled, read_toml
from mlxreflect.core.ui import Ui, console
from mlxreflect.critics.local import LocalCritic
from mlxreflect.critics.ollama import is_ollama
from mlxreflect.methods.session import attempt_prompt, example_call
from mlxreflect.models.load import TINY, load_policy
from mlxreflect.setup import doctor as module
from mlxreflect.setup import memory as phases_module
from mlxreflect.setup.doctor import Check, advice, doctor, fitting, in_words, render_doctor
from mlxreflect.tasks import TASKS
from mlxreflect.train.batches import Pair, Row
from mlxreflect.train.lora import attach_lora
from mlxreflect.train.objectives import imitation, preference
from mlxreflect.train.trainer import Trainer

KEY = "sk-very-secret"


class Found(NamedTuple):
    checks: list[Check]
    ok: bool
    memory: dict[str, Any]

    def takes(self, what: str) -> int | None:
        """Bytes of the row that is called so."""
        [row] = [row for row in self.memory["rows"] if row["what"].partition(":")[0] == what]
        size: int | None = row["bytes"]
        return size

    def __getitem__(self, name: Any) -> Check:
        [check] = [check for check in self.checks if check.name == name]
        return check

    @property
    def names(self) -> list[str]:
        return [check.name for check in self.checks]


FEW = ("task.limit=4", "eval.limit=4")  # problems: to make a thousand takes a second


def checked(*settings: str, recipe: str = "quickstart") -> dict[str, Any]:
    return doctor(load_recipe(recipe, [*FEW, *settings]), Ui(quiet=True))


def look(*settings: str, recipe: str = "quickstart") -> Found:
    result = checked(*settings, recipe=recipe)
    assert json.loads(json.dumps(result)) == result
    return Found([Check(**check) for check in result["checks"]], result["ok"], result["memory"])


def served(provider: str, url: str, **more: str) -> list[str]:
    keys = {"provider": provider, "model": "critic", "base_url": url, **more}
    return [f"critic.{key}={value}" for key, value in keys.items()]


# ---- as a command --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_with_all_it_needs(tmp_path: Path, tiny_random: Path) -> None:
    """In a process of its own; the others are in this one."""
    shell = Shell(tmp_path, tiny_random)
    done = shell.works("doctor", "quickstart", *sets(*FEW), "--json")
    result = json.loads(done.out)
    assert (result["schema"], result["recipe"], result["ok"]) == ("doctor/1", "quickstart", True)
    names = [check["name"] for check in result["checks"]]
    assert names == ["device", "policy", "data", "data", "critic", "memory", "disk", "time"]
    assert result["time"]["seconds"] > 0
    assert not (shell.folder / "runs").exists()


def test_something_is_missing(shell: Shell) -> None:
    settings = sets(*served("ollama", f"http://127.0.0.1:{free_port()}"))
    done = shell("doctor", "quickstart", *sets(*FEW), *settings)
    assert done.code == 1
    assert "fail" in done.out and "Ollama does not answer" in done.out
    assert "critic: start it with `ollama serve`" in done.out
    assert done.out.rstrip().endswith("something is missing")


def test_a_users_mistake(shell: Shell) -> None:
    for arguments in (["none"], ["r3", "--set", "task.name=none"], ["--set", "seed=1"]):
        assert shell("doctor", *arguments).code == 2
    assert "no recipe 'none'" in two_lines(shell("doctor", "none").err)[0]


def test_without_a_recipe() -> None:
    result = doctor(None, Ui(quiet=True))
    assert [check["name"] for check in result["checks"]] == [
        "device", "cache", "cache", "ollama", "memory", "disk",
    ]  # fmt: skip
    assert result["ok"]


@pytest.mark.parametrize("models", [["a", "b:7b"], []])
def test_ollama_is_mentioned_where_it_runs(
    models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeOllama(models=models) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        result = doctor(None, Ui(quiet=True))
    [ollama] = [check for check in result["checks"] if check["name"] == "ollama"]
    assert ollama["status"] == "ok"
    assert ("a:latest, b:7b" if models else "`ollama pull NAME`") in ollama["detail"]


# ---- critics -------------------------------------------------------------------------------------


def test_the_critics_that_a_run_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge with the keys of [critic] is asked by the run too; an unused one by nobody."""
    with FakeOpenAI() as server:
        unused = look("critic.judge.provider=openai", "critic.judge.model=critic",
                      f"critic.judge.base_url={server.url}")  # fmt: skip
        assert not server.chats and "judge critic" not in unused.names
        asked = look("r3.judge=true", "critic.judge.provider=openai", "critic.judge.model=critic",
                     f"critic.judge.base_url={server.url}")  # fmt: skip
        assert len(server.chats) == 1 and asked["judge critic"].status == "ok"


def test_one_token_of_an_openai_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRITIC_KEY", KEY)
    with FakeOpenAI(key=KEY, refuses=["seed"]) as server:
        found = look(*served("openai", server.url, key_env="CRITIC_KEY"))
        assert [body["max_tokens"] for body in server.chats] == [1, 1]  # the first had a seed
    assert found.ok
    assert found["key CRITIC_KEY"] == Check("key CRITIC_KEY", "ok", "set")
    assert found["critic"].detail.startswith("openai:critic answers, after ")
    assert found["critic"].detail.endswith("; it takes no seed")
    assert KEY not in repr(found)


def test_a_key_that_is_not_set_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRITIC_KEY", raising=False)
    found = look(*served("openai", "http://127.0.0.1:1", key_env="CRITIC_KEY"))
    assert found["key CRITIC_KEY"] == Check(
        "key CRITIC_KEY", "fail", "not set", "export CRITIC_KEY=KEY"
    )
    assert found["critic"].status == "fail"
    monkeypatch.setenv("CRITIC_KEY", KEY)
    with FakeOpenAI(key="another") as server:  # it repeats the key it refuses
        found = look(*served("openai", server.url, key_env="CRITIC_KEY"))
    assert "does not accept the key in CRITIC_KEY" in found["critic"].detail
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (http(503), "fail"), (wire.RESET, "fail"), (refusal(402, "no credit left"), "fail"),
        (wire.ok({"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}), "ok"),
        (refusal(400, "Could not finish the message because max_tokens or model output limit was "
                 "reached."), "ok"),
    ],
    ids=lambda value: value.label if isinstance(value, Fault) else value,
)  # fmt: skip
def test_one_request_is_enough(fault: Fault, status: str) -> None:
    with FakeOpenAI(faults=[fault] * 2) as server:
        found = look(*served("openai", server.url))
        assert len(server.chats) <= 2
    assert found["critic"].status == status
    assert bool(found["critic"].hint) == (status == "fail")


def test_an_openai_address_that_is_ollamas() -> None:
    with FakeOllama() as server:
        found = look(*served("openai", f"{server.url}/v1"))
    note, failure = [check for check in found.checks if check.name == "critic"]
    assert (note.status, failure.status) == ("note", "fail")  # this fake has no /v1
    assert "ignores critic.num_ctx" in note.detail
    assert note.hint == 'set critic.provider = "ollama" and leave /v1 out'


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://127.0.0.1:11434/v1", True), ("localhost:11434", True), ("", False),
     ("http://[half", False), ("http://h:port", False), ("http://127.0.0.1:1/v1", False)],
)  # fmt: skip
def test_what_is_ollama(url: str, expected: bool) -> None:
    assert is_ollama(url) == expected


def test_one_token_of_ollama_and_its_memory() -> None:
    with FakeOllama(models=["critic"]) as server:
        for url in (server.url, server.url.removeprefix("http://")):  # as people write OLLAMA_HOST
            found = look(*served("ollama", url))
            assert found.ok and found.takes("critic") == 1
        assert [body["options"]["num_predict"] for body in server.chats] == [1, 1]
        found = look(*served("ollama", server.url, model="other"))
    assert found["critic"].hint == "run: ollama pull other"


def test_bedrock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credentials(monkeypatch, tmp_path)
    with FakeBedrock(faults=[None, aws("AccessDeniedException")]) as server:
        settings = served("bedrock", server.url, region="us-east-1")
        assert look(*settings)["critic"].status == "ok"
        failure = look(*settings)["critic"]
        assert [body["inferenceConfig"]["maxTokens"] for body in server.chats] == [1, 1]
    assert "no access to critic in us-east-1" in failure.detail
    assert SECRET not in repr(failure)


def test_each_tier_is_asked_once() -> None:
    with FakeOpenAI(models=["critic", "big"]) as server:
        settings = served("openai", server.url)
        bucket = "r3.bucket_every=10"  # else nobody asks the advanced critic
        found = look(*settings, bucket, "critic.advanced.model=big", "critic.judge.model=big")
        assert [body["model"] for body in server.chats] == ["critic", "big"]
        assert found.names[-4:-2] == ["critic", "advanced critic"]
        judged = look(*settings, "r3.judge=true", "critic.judge.temperature=0.0")
        assert judged.names[-4:-2] == ["critic", "judge critic"]
        server.requests.clear()
        found = look(*settings, "r3.feedback=self", "r3.rewriter=self")
        assert server.requests == []
        assert "critic" not in found.names


def test_a_replay_asks_nobody(tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    settings = served("openai", "http://127.0.0.1:1", cache=str(cache), replay="true")
    assert look(*settings)["critic"].status == "fail"
    cache.write_bytes(b"")
    assert look(*settings)["critic"] == Check("critic", "ok", f"replays what is in {cache}")


def test_a_local_critic(tiny_random: Path) -> None:
    settings = ["critic.provider=local", f"critic.model={tiny_random}"]
    found = look(*settings)
    assert found["critic"].detail.startswith(f"local:{tiny_random} answers")
    assert found.takes("critic") == 4 * random_parameters(tiny_random)
    assert list(found.memory["phases"]) == ["attempts", "critics", "training", "evaluation"]
    assert look("critic.provider=local", "critic.model=/none")["critic"].status == "fail"


# ---- models --------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the folder of a model in a hub cache of this test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def make(name: str) -> Path:
        root = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        folder = root / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
        folder.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(folder.name)
        shutil.copytree(TINY, folder, dirs_exist_ok=True)
        return folder

    return make


def test_a_policy_in_the_hubs_cache(hub: Callable[[str], Path]) -> None:
    folder = hub("someone/model")
    assert look("policy.model=someone/model")["policy"].status == "ok"
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "more"}}))
    assert look("policy.model=someone/model")["policy"].status == "note"  # broken off
    (folder / "more").write_bytes(b"")
    assert look("policy.model=someone/model")["policy"].status == "ok"


@pytest.mark.parametrize(("size", "said"), [
    (0, "0 MB"), (3.6e6, "4 MB"), (99e6, "99 MB"), (0.1e9, "0.10 GB"), (3.456e9, "3.46 GB"),
])  # fmt: skip
def test_sizes_in_words(size: float, said: str) -> None:
    assert in_words(size) == said


def test_a_policy_to_be_downloaded(
    hub: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look("policy.model=someone/model")
    assert (found.ok, found["policy"].status, found["memory"].status) == (True, "note", "note")
    assert found.takes("policy and its answers") is None
    assert found["memory"].detail.startswith("the most is needed for training: at least 1.0 GB of ")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    failure = look("policy.model=someone/model")["policy"]
    assert failure.status == "fail"
    assert "hf download someone/model" in failure.hint


@pytest.mark.parametrize("name", ["/none/such", "./none", "folder", "a b"])
def test_a_policy_that_is_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert look(f"policy.adapter={tmp_path}")["adapter"].status == "fail"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    found = look(f"policy.model={name}")
    assert found["policy"].status == "fail"
    assert found["policy"].detail.startswith(f"policy.model = {name!r}")


@pytest.mark.parametrize("task", ["countdown", "arithmetic"])
def test_the_embedded_policy_knows_countdown_only(task: str) -> None:
    settings = [f"task.name={task}", f"eval.spec={task}", "r3.feedback=self", "r3.rewriter=self"]
    notes = [check.detail for check in look(*settings).checks if check.status == "note"]
    known = task == "countdown"
    assert notes == [] if known else notes == [f"tiny knows Countdown only, and is asked {task}"]


def random_parameters(folder: Path) -> int:
    """How many numbers a model of 4 bits has."""
    config = json.loads((folder / "config.json").read_text())
    del config["quantization"]
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    return sum(int(array.size) for _, array in tree_flatten(model.parameters()))


def test_the_memory_of_a_model(tiny_random: Path) -> None:
    """On the CPU in float32; else as in the file, or as many bits as asked for."""
    size = (tiny_random / "model.safetensors").stat().st_size
    model = f"policy.model={tiny_random}"
    assert look(model).takes("policy") == 4 * random_parameters(tiny_random)
    packed = look(model, "policy.dequantize=no").takes("policy")
    assert packed and 0.9 * size < packed < size  # which has a header
    eight = look(model, "policy.dequantize=no", "policy.quantize=8").takes("policy")
    assert eight and 1.4 * packed < eight < 2 * packed
    full = look("profile=quick", model, "train.tune=full", recipe="rel")
    assert full.takes("policy") == 4 * random_parameters(tiny_random)
    assert full.takes("moments") == 16 * random_parameters(tiny_random)


@pytest.mark.parametrize(
    ("settings", "phase", "lower"),
    [
        (["policy.max_new_tokens=4000", "policy.cache_gb=1.0", "policy.batch=200",
          "eval.max_new_tokens=100", "train.max_length=200"], "attempts", "policy.batch"),
        (["eval.max_new_tokens=4000", "policy.cache_gb=1.0"], "evaluation", "eval.max_new_tokens"),
        (["policy.max_new_tokens=900", "policy.batch=1", "train.grad_checkpoint=no"],
         "training", "train.max_length"),
    ],
    ids=["attempts", "evaluation", "training"],
)  # fmt: skip
def test_too_little_memory(
    settings: list[str], phase: str, lower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = look(*settings).memory["phases"][phase]
    for share, status in ((2, "ok"), (1.1, "note"), (0.9, "fail")):
        monkeypatch.setattr(module, "device_memory", lambda share=share: int(share * most))
        found = look(*settings)
        assert found["memory"].status == status
        assert found.ok == (status != "fail")
        assert found["memory"].detail.startswith(f"the most is needed for {phase}: about ")
        assert (lower in found["memory"].hint) == (status == "fail")


# By a Mac's memory: the gigabytes that macOS recommends to its GPU, and what goes into 3/4 of it.
MACS = {8: (5.7, "qwen2.5-1.5b"), 16: (11.5, "qwen3-1.7b,critic-qwen3.5-4b"),
        24: (17.2, "qwen3-1.7b,critic-qwen3.5-9b"), 32: (22.9, "qwen3-4b,critic-qwen3.5-9b"),
        64: (51.5, "qwen3-4b-2507,critic-gpt-oss-20b"),
        128: (103.0, "qwen3-4b-2507,critic-gpt-oss-20b")}  # fmt: skip


@pytest.mark.parametrize("mac", MACS)
def test_it_says_which_profiles_fit(mac: int, monkeypatch: pytest.MonkeyPatch) -> None:
    there, profiles = MACS[mac]
    pretend_gpu(monkeypatch, there)
    found = [c for c in doctor(None, Ui(True))["checks"] if c["name"] == "memory"]
    assert f"{there:.1f} GB; " in found[0]["detail"]
    assert found[0]["detail"].endswith(f"fits: --set profile={profiles}")
    assert ("without a critic" in found[0]["detail"]) == (mac == 8)
    sizes = read_shared().memory_gb
    assert sum(sizes[name] for name in profiles.split(",")) <= 0.75 * there
    monkeypatch.setattr(phases_module, "weights_of", lambda model: int(there * 1e9))  # too large
    assert f"--set profile={profiles}; or lower policy.model, " in look()["memory"].hint


def test_nothing_is_suggested_where_nothing_fits_or_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert fitting(1000) == []
    pretend_gpu(monkeypatch, 2.0)
    assert (fitting(1.5), advice(1.5)) == ([], "")


def test_the_gpu_of_a_mac_draws_the_display_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [check for check in look().checks if check.name == "display"]
    monkeypatch.setattr(module, "on_mac_gpu", lambda: True)
    found = look("train.part_tokens=512")
    assert (found["display"].status, found.ok) == ("note", True)
    assert "512 tokens" in found["display"].detail
    assert "Impacting Interactivity" in found["display"].hint


def test_a_batch_that_the_run_lowers_is_shown() -> None:
    whole = [row["what"] for row in look("policy.batch=32").memory["rows"]]
    small = [row["what"] for row in look("policy.batch=32", "policy.cache_gb=0.02").memory["rows"]]
    [attempts] = [what for what in whole if what.startswith("attempts: 32 × ")]
    [lowered] = [what for what in small if what.startswith("attempts: 32 → ")]
    assert attempts.split(" × ")[1] == lowered.split(" × ")[1]


def test_layers_that_the_model_does_not_have() -> None:
    failure = look("train.lora.layers=99")["memory"]
    assert failure.status == "fail" and "train.lora.layers = 99" in failure.detail


def profiles() -> list[tuple[str, str]]:
    """A recipe's own with that recipe, those that every recipe has with one of them."""
    own = {name: read_toml(path).get("profiles", {}) for name, path in bundled("recipes").items()}
    return [
        *((name, profile) for name, found in own.items() for profile in ("", *found)
          if profile != SHARED),
        *(("quickstart", profile) for profile in read_shared().profiles),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "profile"), profiles())
def test_every_profile_of_every_recipe_has_a_table(
    name: str, profile: str, hub: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Models and servers are not here: that is said, and what is known of them is added up."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    settings = [f"profile={profile}"] if profile else []
    result = doctor(load_recipe(name, [*settings, *FEW]), Ui(quiet=True))
    rows = {row["what"]: row["bytes"] for row in result["memory"]["rows"]}
    model, shared = load_recipe(name, settings).policy.model, read_shared()
    sizes = {model: shared.memory_gb[name] for name, model in shared.models("policy").items()}
    if model != "tiny":  # what models.toml says of it
        assert rows["policy and its answers"] == int(1e9 * sizes[model])
    assert set(result["memory"]["phases"]) >= {"attempts", "training", "evaluation"}
    console(sys.stdout).print(render_doctor(result))
    shown = capsys.readouterr().out
    assert "together" in shown and " GB" in shown and "unknown" not in shown


@pytest.mark.real_model
def test_the_table_of_memory_is_right_within_a_fifth(smollm2: Path) -> None:
    """Each phase measured, the policy's optimizers and a critic beside it."""
    settings = [
        f"policy.model={smollm2}", "policy.batch=4", "policy.max_new_tokens=60", "train.batch=2",
        "eval.max_new_tokens=80", "critic.provider=local", f"critic.model={smollm2}",
        "critic.concurrency=2", "critic.max_tokens=40", "task.limit=4", "eval.limit=4",
    ]  # fmt: skip
    recipe = load_recipe("quickstart", settings)
    phases = doctor(recipe, Ui(quiet=True))["memory"]["phases"]
    gc.collect()
    before = mx.get_active_memory()
    critic, policy = LocalCritic(recipe.critic.tier("basic")), load_policy(recipe.policy)
    critic.preflight()
    assert critic.model is not None
    critic.model.eos = policy.eos = set()  # every text is as long as it may be
    attach_lora(policy.model, recipe.train.lora, 1)
    trainer, task = Trainer(policy.model), TASKS["countdown"]
    problems = task.load(recipe.task, "train", 0)
    prompts = [policy.encode(attempt_prompt(recipe, task, problem)) for problem in problems]
    texts = [[i] * 60 for i in range(4)]

    def train() -> None:
        pairs = [Pair(Row(prompts[i], texts[i]), Row(prompts[i], texts[i + 2])) for i in range(2)]
        rows = [pair.chosen for pair in pairs]
        for objective in (preference(pairs, None, recipe.train, "dpo"), imitation(rows)):
            list(trainer.train(objective, recipe.train, (1,)))

    def write(tokens: int) -> None:
        policy.generate(prompts, temperature=0.7, top_p=0.9, max_new_tokens=tokens, batch=4,
                        seed=(1,))  # fmt: skip

    def ask() -> None:
        review = example_call(recipe, task, "critique", problems[0], "word " * 60, "")
        critic.ask([review] * 2)

    work = {"training": train, "attempts": partial(write, 60), "evaluation": partial(write, 80),
            "critics": ask}  # fmt: skip
    assert set(work) == set(phases)
    for phase, go in work.items():
        mx.clear_cache()
        mx.reset_peak_memory()
        go()
        measured = mx.get_peak_memory() - before
        assert 0.8 * measured < phases[phase] < 1.2 * measured, phase


# ---- data and disk -------------------------------------------------------------------------------


def test_data_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    settings = ["task.name=jsonl", f"task.source={path}", "eval.spec="]
    settings += ["r3.feedback=self", "r3.rewriter=self", "task.limit=0", "eval.limit=0"]
    assert look(*settings)["data"].detail == f"{path}: no such file"
    path.write_text("".join(f'{{"question": "{i}?", "answer": {i}}}\n' for i in range(100)))
    held_out, training = [check for check in look(*settings).checks if check.name == "data"]
    assert (held_out.status, training.status) == ("ok", "ok")
    numbers = [int(check.detail.split()[0]) for check in (held_out, training)]
    assert 5 < numbers[0] < 40 and 50 < numbers[1] < 90
    path.write_text('{"question": "a?"}\n')
    failure = look(*settings)["data"]
    assert "no column 'answer'" in failure.detail and "task.answer" in failure.hint


def test_puzzles_without_a_solution_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "cd.jsonl"
    rows = [[1, 1, i] for i in range(60)]  # 1 + 1 + i is i + 2; and 1, 1, i never make 999
    lines = [{"nums": row, "target": row[2] + 2 if row[2] < 20 else 999} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [f"task.source={path}", "task.limit=0", "eval.spec=", "eval.limit=0"]
    data = [check for check in look(*settings).checks if check.name == "data"]
    assert ("note", "40 of the first 60 rows have no solution and are left out") in [
        (check.status, check.detail) for check in data
    ]
    assert data[0].status == "note" and "cannot show any difference" in data[0].detail


def test_worked_solutions_by_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.md"
    path.write_text("### Question\nQ?\n### Answer\n<answer>1</answer>\n### Question\nR?\n"
                    "### Answer\nIt is 1.\n<answer>1</answer>\n")  # fmt: skip
    human = f"rel.human={path}"
    assert "worked solutions: 1 by people (1 left out; it only restates the answer: 1)" in [
        check.detail for check in look("profile=quick", human, recipe="rel").checks
    ]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path.write_text(path.read_text() + "### Question\nAnd?\n")
    assert any("a question without an answer" in check.detail
               for check in look("critic.provider=solver", human, recipe="rel").checks
               if check.status == "fail")  # fmt: skip


def test_data_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    settings = ["task.name=gsm8k", "eval.spec=gsm8k", "r3.feedback=self", "r3.rewriter=self"]
    assert look(*settings)["data"] == Check(
        "data", "note", "the data set openai/gsm8k is to be downloaded"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert look(*settings)["data"].status == "fail"
    (tmp_path / "openai___gsm8k" / "main").mkdir(parents=True)
    assert look(*settings)["data"].status == "ok"
    # Of several evaluations some are here; the others are not loaded, also not to keep dev clean.
    both = ["eval.spec=arithmetic,gsm8k", "task.name=arithmetic", "eval.dev_every=1"]
    told = [check.detail for check in look(*both).checks if check.name == "data"]
    assert told[0] == "the data set openai/gsm8k is in the cache"
    assert told[1].startswith("4 problems held out (arithmetic). With 4 questions")
    assert told[2].endswith("problems to learn from") and len(told) == 3
    last = look("eval.spec=countdown,arithmetic", "eval.dev_every=1", "eval.dev_limit=7").checks
    assert "7 dev problems to look at while it learns" in [check.detail for check in last]


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    usage = shutil._ntuple_diskusage(10**12, 10**12, 5 * 10**8)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = look()
    assert found["disk"].detail == f"0.5 GB free in {tmp_path}"
    assert found["disk"].status == "fail"


def test_what_is_to_be_downloaded_is_not_said_to_be_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for detail, said in (("m is to be downloaded", "everything but the downloads is there"),
                         ("m is here", "everything is there")):  # fmt: skip
        check = {"name": "policy", "status": "note", "detail": detail, "hint": ""}
        console(sys.stdout).print(render_doctor({"ok": True, "checks": [check]}))
        assert capsys.readouterr().out.rstrip().endswith(f"\n{said}")


def test_what_a_server_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeOpenAI(models=["\x1b[2Jevil\u202e", "[bold]b"]) as server:
        result = checked(*served("openai", server.url))
    console(sys.stdout).print(render_doctor(result))
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and "\u202e" not in shown
    assert "[bold]b" in shown
