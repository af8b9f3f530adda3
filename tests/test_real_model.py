"""R³ on a real 4-bit instruct model, real GSM8K rows and a critic over loopback HTTP."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.corpus import TEXTS, teacher, write_corpus
from support.fake_ollama import FakeOllama
from support.mlx_server import serving

SHARED = Path(__file__).parents[2] / "shared"
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the model's converter is not here"),
]


def critic(body):
    """Reads what a real critic reads: the attempt, the feedback, the expected answer."""
    asked = body["messages"][-1]["content"]
    expected = asked.split("<expected>\n")[1].split("\n</expected>")[0]
    if asked.endswith("Reflect:"):
        return "The second step multiplies where the problem says to add."
    return (
        "<reasoning>\nThe parts are counted one after the other, and their sum is "
        f"{expected}.\n</reasoning>\n<answer>{expected}</answer>"
    )


# So small a limit cuts most answers off; what the model wrote is trained on all the same.
SHORT = {"train.cut": "keep", "allow_untrained": "true"}


@pytest.fixture(scope="module")
def finished(smollm2, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("real") / "run"
    with FakeOllama(reply=critic, models=["critic"]) as server:
        settings = {
            "policy.model": smollm2, "policy.max_new_tokens": 32, "policy.batch": 4,
            "task.source": SHARED / "data" / "gsm8k" / "train.jsonl", "task.limit": 2,
            "eval.source": SHARED / "data" / "gsm8k" / "test.jsonl", "eval.limit": 2,
            "eval.max_new_tokens": 32, "critic.model": "critic", "critic.base_url": server.url,
            "critic.cache": "off", "r3.wave": 1, "r3.verifications": 1, "train.batch": 1,
        }  # fmt: skip
        flags = [f"--set={key}={value}" for key, value in {**settings, **SHORT}.items()]
        call = [sys.executable, "-m", "mlxreflect", "run", "r3", "--run-dir", str(run_dir)]
        done = subprocess.run([*call, "--json", *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        chats = list(server.chats)
    return run_dir, json.loads(done.stdout), chats


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_part_ran(finished):
    run_dir, summary, chats = finished
    assert summary["status"] == "finished"
    assert summary["problems"] == 2
    assert summary["critic"]["calls"] == len(chats) > 0
    assert summary["critic"]["failed"] == 0
    assert summary["examples"]["preference"] > 0
    assert summary["base"]["n"] == summary["trained"]["n"] == 2
    roles = {turn["role"] for row in rows(run_dir / "episodes.jsonl") for turn in row["turns"]}
    assert roles == {"attempt", "critique", "rewrite", "verify"}
    kinds = {row["kind"] for row in rows(run_dir / "metrics.jsonl")}
    assert kinds == {"wave", "step"}


def test_no_training_prompt_holds_the_answer(finished):
    run_dir, _, _ = finished
    for row in rows(run_dir / "examples.jsonl"):
        assert "<expected>" not in json.dumps(row["prompt"])
        assert "<feedback>" not in json.dumps(row["prompt"])


def test_the_chat_templates_tokens(finished, smollm2):
    """Prompts and responses, token by token, as the model's own template has them."""
    from mlxreflect.config.schema import PolicyConfig
    from mlxreflect.core.records import Example, flat_from_row
    from mlxreflect.models.load import load_policy
    from mlxreflect.train.batches import Pair
    from mlxreflect.train.encode import Encoder

    run_dir, _, _ = finished
    policy = load_policy(PolicyConfig(model=str(smollm2)))
    end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert policy.end_of_turn == end
    encoder = Encoder(policy, 4096)
    pairs = [r for r in rows(run_dir / "examples.jsonl") if r["kind"] == "preference"]
    for row in pairs:
        example = flat_from_row(Example, row)
        pair = encoder.encode(example)
        assert isinstance(pair, Pair)
        system, user = (m["content"] for m in example.prompt)
        expected = (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert policy.decode(pair.chosen.prompt) == expected
        whole = policy.tokenizer.encode(expected + example.chosen, add_special_tokens=False)
        assert pair.chosen.prompt + pair.chosen.response == [*whole, end]
        # What the policy wrote is trained on as it was generated.
        assert pair.rejected.response == row["rejected_ids"]
        assert pair.rejected.response.count(end) == (row["rejected_ids"][-1] == end)


def test_the_adapter_loads_in_mlx_lm(finished, smollm2):
    run_dir, _, _ = finished
    call = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(smollm2)]
    call += ["--adapter-path", str(run_dir / "adapter"), "--prompt", "2 + 2 =", "-m", "5"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Generation: 5 tokens" in done.stdout


def test_mlx_lms_server_is_the_critic(smollm2, tmp_path):
    """The same model reviews and rewrites, through the provider `openai`."""
    plain = tmp_path / "plain"
    write_plain(smollm2, plain)  # packed bfloat16 weights take a second a token on the CPU
    settings = {
        "policy.model": smollm2, "policy.max_new_tokens": 32, "policy.batch": 2,
        "task.source": SHARED / "data" / "gsm8k" / "train.jsonl", "task.limit": 2,
        "eval.source": SHARED / "data" / "gsm8k" / "test.jsonl", "eval.limit": 2,
        "eval.max_new_tokens": 32, "critic.provider": "openai", "critic.model": plain,
        "critic.max_tokens": 24, "critic.cache": "off", "critic.concurrency": 2, "r3.wave": 2,
        "r3.rewrites": 1, "r3.verifications": 0, "r3.bucket_every": 0,
    }  # fmt: skip
    with serving(plain, tmp_path) as url:
        flags = [f"--set={key}={value}" for key, value in {**settings, **SHORT}.items()]
        call = [sys.executable, "-m", "mlxreflect", "run", "r3", "--run-dir", str(tmp_path / "run")]
        call += ["--json", f"--set=critic.base_url={url}", *flags]
        done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    critic = json.loads(done.stdout)["critic"]
    assert critic["failed"] == 0
    assert critic["calls"] == critic["answered"] >= 2
    turns = [turn for row in rows(tmp_path / "run" / "episodes.jsonl") for turn in row["turns"]]
    said = [turn for turn in turns if turn["role"] == "critique"]
    assert said and all(turn["text"].strip() and turn["usage"]["completion"] for turn in said)


def write_plain(model: Path, folder: Path) -> None:
    """A copy of a model folder with float32 weights."""
    from mlx_lm.utils import load_config, load_model, save_config, save_model

    from mlxreflect.models.load import dequantize

    loaded, _ = load_model(model)
    dequantize(loaded)
    folder.mkdir()
    save_model(folder, loaded)
    config = load_config(model)
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    save_config(config, folder / "config.json")
    for file in model.iterdir():
        if file.name not in ("config.json", "model.safetensors", "model.safetensors.index.json"):
            (folder / file.name).write_bytes(file.read_bytes())


def test_preferences_of_a_four_bit_model_fit_into_little_memory(smollm2):
    """Weights stay packed; prompts of 512 and responses of 256 tokens, two pairs a step."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten

    from mlxreflect.config.schema import LoraConfig, PolicyConfig, TrainConfig
    from mlxreflect.models.load import load_policy
    from mlxreflect.train.batches import Pair, Row
    from mlxreflect.train.lora import attach_lora, base_reference
    from mlxreflect.train.trainer import Trainer

    rng = np.random.default_rng(0)

    def draw(length: int) -> list[int]:
        return [int(token) for token in rng.integers(100, 40000, length)]

    gc.collect()
    others = mx.get_active_memory()  # what tests before this one still hold
    prompts = [draw(512) for _ in range(2)]
    pairs = [Pair(Row(p, draw(256)), Row(p, draw(256))) for p in prompts]
    model = load_policy(PolicyConfig(model=str(smollm2), dequantize="no")).model
    attach_lora(model, LoraConfig(rank=16), 0)
    mx.eval(model.parameters())
    mx.clear_cache()
    mx.reset_peak_memory()
    weights = mx.get_active_memory() - others
    trainer, config = Trainer(model), TrainConfig(lr=1e-3, batch=2)
    objective = trainer.pair_objective(pairs, base_reference(model), config, "dpo")
    steps = list(trainer.train(objective, config, (0,)))
    peak = mx.get_peak_memory() - others
    print(f"weights {weights / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB; of others {others / 1e6:.0f}")
    assert len(steps) == 1
    assert steps[0].loss == pytest.approx(np.log(2), abs=1e-3)  # LoRA has changed nothing yet
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert all(mx.abs(a).max() > 0 for name, a in trained.items() if name.endswith("lora_b"))
    assert peak < 1.5e9


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_beginnings_are_shared_in_half_precision(smollm2, dtype):
    """On text, with gradients as near to float32's as those of rows run whole."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map
    from support.architectures import apart

    from mlxreflect.config.schema import LoraConfig, PolicyConfig, TrainConfig
    from mlxreflect.models.load import load_policy
    from mlxreflect.train.batches import Pair, Row
    from mlxreflect.train.lora import attach_lora
    from mlxreflect.train.trainer import Trainer

    policy = load_policy(PolicyConfig(model=str(smollm2), dequantize="yes"))
    source = rows(SHARED / "data" / "gsm8k" / "train.jsonl")[:2]
    pairs = []
    for mine, other in (source, source[::-1]):
        prompt = policy.encode([{"role": "user", "content": mine["question"]}])[-24:]
        right, wrong = (policy.encode_response(prompt, row["answer"]) for row in (mine, other))
        pairs.append(Pair(Row(prompt, right[:20]), Row(prompt, right[:12] + wrong[:12])))
    policy.model.model.layers = policy.model.model.layers[:8]  # of 30: the CPU emulates halves
    policy.model.set_dtype(getattr(mx, dtype))
    attach_lora(policy.model, LoraConfig(rank=4, dropout=0.0), 0)
    mx.random.seed(2)
    for _, module in policy.model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.01 * mx.random.normal(module.lora_b.shape)
    trainer, config = Trainer(policy.model), TrainConfig(batch=2)
    objective = trainer.pair_objective(pairs, None, config, "dpo")
    network = trainer.understood(objective.items)
    assert network.shares

    def gradients():
        return dict(tree_flatten(trainer.gradients(network, objective, [0, 1], config, (1,))[1]))

    shared = gradients()
    network.shares = False
    whole = gradients()
    policy.model.update(tree_map(lambda a: a.astype(mx.float32), policy.model.parameters()))
    network.precision = mx.float32
    exact = gradients()
    print(f"{dtype}: shared {apart(shared, exact):.4f}, whole {apart(whole, exact):.4f}")
    assert apart(shared, exact) < 1.2 * apart(whole, exact)
    assert apart(shared, exact) < {"bfloat16": 0.1, "float16": 0.01}[dtype]


def mending(body):
    """Finds fault, and mends the thinking of the attempt that it is shown."""
    if body["messages"][-1]["content"].endswith("Retry:"):
        return "<think>\n3 boxes of 4 are 12 apples. 12 - 2 = 10.\n</think>\n<answer>10</answer>"
    return "The boxes are not counted."


@pytest.mark.parametrize("critic", ["ollama", "self"])
def test_a_question_is_thought_over(smollm2, critic):
    with FakeOllama(reply=mending, models=["critic"]) as server:
        settings = {"max_new_tokens": 32, "temperature": 0, "chain.max_tokens": 32}
        if critic == "ollama":
            settings |= {"chain.critic.model": "critic", "chain.critic.base_url": server.url,
                         "chain.critic.cache": "off"}  # fmt: skip
        flags = [f"--set={key}={value}" for key, value in settings.items()]
        question = "Tom has 3 boxes with 4 apples each and eats 2. How many are left?"
        call = [sys.executable, "-m", "mlxreflect", "solve", question, "--model", str(smollm2)]
        done = subprocess.run(
            [*call, "--critic", critic, "--rounds", "2", "--json", *flags],
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    roles = [turn["role"] for turn in result["turns"]]
    assert roles[0] == "attempt" and roles[1] == ("reflection" if critic == "self" else "critique")
    assert {turn["visibility"] for turn in result["turns"]} == {"none"}
    if critic == "ollama":
        last = result["turns"][-1]
        assert last["role"] == "continue"
        thinking = mending({"messages": [{"content": "Retry:"}]}).partition("10</")[0]
        assert last["text"].startswith(thinking) and "10" in last["text"].removeprefix(thinking)


def rater(body):
    """Marks of a trace, as the schema asks for them."""
    assert set(body["format"]["required"]) == {
        "why", "depth", "coherence", "verification", "completeness",
    }  # fmt: skip
    assert "<expected>" not in body["messages"][-1]["content"]
    return json.dumps(
        {"why": "it goes on", "depth": 4, "coherence": 4, "verification": 3, "completeness": 5}
    )


def test_traces_at_its_full_settings(smollm2, tmp_path):
    """Two waves, a warm-up and a round, of the recipe for a Mac with the smallest sizes.

    The problems tell the answer, so that some traces of so small a model are right.
    """
    asked = [(f"The answer is {i}. Repeat the answer: {i}", str(i)) for i in range(10, 50)]
    lines = [json.dumps({"question": text, "answer": gold}) + "\n" for text, gold in asked]
    (tmp_path / "mine.jsonl").write_text("".join(lines))
    run_dir = tmp_path / "run"
    with FakeOllama(reply=rater, models=["critic"]) as server:
        settings = {
            "policy.model": smollm2, "policy.max_new_tokens": 16, "policy.batch": 16,
            "task.name": "jsonl", "task.source": tmp_path / "mine.jsonl",
            "task.limit": 2, "eval.spec": "", "eval.limit": 2, "eval.max_new_tokens": 8,
            "critic.model": "critic", "critic.base_url": server.url, "critic.cache": "off",
            "traces.wave": 2, "traces.warm_up": 2, "traces.problems": 2, "traces.rounds": 1,
            "traces.filter": "lenient", "traces.group": 16, "traces.samples": 32, "train.batch": 2,
        }  # fmt: skip
        flags = [f"--set={key}={value}" for key, value in {**settings, **SHORT}.items()]
        call = [sys.executable, "-m", "mlxreflect", "run", "traces", "--run-dir", str(run_dir)]
        done = subprocess.run([*call, "--json", *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        chats = list(server.chats)
    summary = json.loads(done.stdout)
    assert summary["waves"] == 2
    assert summary["critic"]["calls"] == summary["critic"]["answered"] == len(chats)
    metrics = [row for row in rows(run_dir / "metrics.jsonl") if row["kind"] == "wave"]
    assert [row["stage"] for row in metrics] == ["warm-up", "round"]
    print(metrics[0]["told"], metrics[1]["told"])
    assert metrics[0]["kept"] > 0 and metrics[1]["flat"] < 2
    steps = [row["objective"] for row in rows(run_dir / "metrics.jsonl") if row["kind"] == "step"]
    assert set(steps) == {"sft", "grpo"}
    arms = {path.name for path in (run_dir / "eval").iterdir()}
    assert arms == {"base", "base-direct", "warm-up", "trained", "trained-direct"}


def test_preflexor_from_a_corpus(smollm2, tmp_path):
    """A round of each phase at the recipe's own settings, but small; a teacher over HTTP."""
    run_dir, corpus = tmp_path / "run", write_corpus(tmp_path / "corpus")
    with FakeOllama(reply=teacher, models=["critic"]) as server:
        settings = {
            "policy.model": smollm2, "policy.max_new_tokens": 32, "policy.batch": 4,
            "task.name": "jsonl", "preflexor.corpus": corpus, "preflexor.questions": 2,
            "preflexor.rounds": 1, "preflexor.two.rounds": 1, "eval.limit": 2,
            "eval.source": SHARED / "data" / "gsm8k" / "test.jsonl", "eval.max_new_tokens": 16,
            "critic.model": "critic", "critic.base_url": server.url, "critic.cache": "off",
        }  # fmt: skip
        flags = [f"--set={key}={value}" for key, value in {**settings, **SHORT}.items()]
        call = [sys.executable, "-m", "mlxreflect", "run", "preflexor", "--run-dir", str(run_dir)]
        done = subprocess.run([*call, "--json", *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        chats = list(server.chats)
    summary = json.loads(done.stdout)
    assert summary["status"] == "finished" and summary["waves"] == 2
    assert summary["critic"]["calls"] == summary["critic"]["answered"] == len(chats)
    assert summary["base"]["n"] == summary["trained"]["n"] == 2
    assert (run_dir / "eval" / "phase-1" / "results.json").is_file()
    examples = rows(run_dir / "examples.jsonl")
    assert len(examples) == sum(summary["examples"].values()) == 4
    for row in examples:
        assert row["chosen"].startswith("<|thinking|>\nReasoning steps:\n")
        assert row["rejected_ids"]
        assert not any(text[-40:] in json.dumps(row["prompt"]) for text in TEXTS.values())
    steps = [row for row in rows(run_dir / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["objective"] for row in steps] == ["orpo", "exo_pair"]  # 2 pairs a step
    assert all(row["grad_norm"] > 0 for row in steps)


def test_reflectevo_on_a_real_model(smollm2, tmp_path):
    """Two waves whose reflections a critic writes, both trainings, and second answers."""
    run_dir = tmp_path / "run"
    said = "The steps multiply where the question adds. Next time add the parts one by one."
    with FakeOllama(reply=lambda body: said, models=["critic"]) as server:
        settings = {
            "policy.model": smollm2, "policy.max_new_tokens": 32, "policy.batch": 4,
            "task.source": SHARED / "data" / "gsm8k" / "train.jsonl", "task.limit": 2,
            "eval.source": SHARED / "data" / "gsm8k" / "test.jsonl", "eval.limit": 2,
            "eval.max_new_tokens": 24, "critic.model": "critic", "critic.base_url": server.url,
            "critic.cache": "off", "critic.max_tokens": 24, "reflectevo.reflector": "critic",
            "reflectevo.wave": 1, "train.batch": 1, "train.epochs": 1,
        }  # fmt: skip
        flags = [f"--set={key}={value}" for key, value in {**settings, **SHORT}.items()]
        call = [sys.executable, "-m", "mlxreflect", "run", "reflectevo", "--run-dir", str(run_dir)]
        done = subprocess.run([*call, "--json", *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(server.chats) == json.loads(done.stdout)["critic"]["calls"] == 4
    waves = [row for row in rows(run_dir / "metrics.jsonl") if row["kind"] == "wave"]
    assert [wave["stage"] for wave in waves] == ["problems", "problems", "training", "training"]
    for row in rows(run_dir / "episodes.jsonl"):
        assert [t["role"] for t in row["turns"]] == ["attempt", *["reflection"] * 2, *["retry"] * 2]
        assert all(said in turn["messages"][-1]["content"] for turn in row["turns"][3:])
        assert len({turn["messages"][0]["content"] for turn in row["turns"][1:3]}) == 2
    assert (run_dir / "adapter-reflection" / "adapters.safetensors").is_file()
    second = json.loads((run_dir / "retries.json").read_text())
    assert {(row["arm"], row["n"]) for row in second["arms"]} == {("base", 2), ("trained", 2)}
