"""Adapters of PEFT: read as its documented formulas say, and written as they are read."""

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model
from safetensors.numpy import load_file, save_file
from support.adapters import write_adapter
from support.architectures import GEMMA, GPT2, build
from support.shell import Shell

from mlxreflect.config.schema import LoraConfig, PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.models import peft
from mlxreflect.models.load import load_policy, read_adapter
from mlxreflect.train.lora import attach_lora, linear_keys, save_adapter
from mlxreflect.train.trainer import Trainer

FAMILIES: dict[str, tuple[dict[str, Any], str]] = {  # and what transformers calls its blocks
    "llama": ({}, "model.layers"),
    "qwen3": ({}, "model.layers"),
    "gemma3_text": (GEMMA, "model.layers"),
    "phi3": ({"pad_token_id": 0}, "model.layers"),  # fused: qkv_proj, gate_up_proj
    "gpt2": (GPT2, "transformer.h"),
    "gpt_neox": ({"num_key_value_heads": 4, "layer_norm_eps": 1e-5, "use_parallel_residual": True,
                  "rotary_emb_base": 10000, "rotary_pct": 0.5}, "gpt_neox.layers"),
}  # fmt: skip
Numbers = dict[str, np.ndarray[Any, Any]]
TOKENS = mx.array([[3, 17, 5, 9, 30, 2, 8]])


def logits(model: nn.Module) -> np.ndarray[Any, Any]:
    return np.array(model(TOKENS).astype(mx.float32))


def linears(model: nn.Module) -> dict[tuple[int, str], nn.Linear]:
    """Every linear layer of a block, by the block's number and its name inside."""
    return {
        (number, name): module
        for number, block in enumerate(model.layers)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }


def written(
    folder: Path, model: nn.Module, blocks: str, *, dora: bool = False, **more: Any
) -> tuple[dict[str, Any], Numbers]:
    """A random adapter as PEFT would have written it for every linear layer."""
    random = np.random.default_rng(5)
    tensors: Numbers = {}
    for (number, name), module in linears(model).items():
        out, inner = module.weight.shape
        place = f"base_model.model.{blocks}.{number}.{name}"
        rank = 3 if name in more.get("rank_pattern", {}) else 4
        tensors[f"{place}.lora_A.weight"] = random.normal(0, 0.3, (rank, inner))
        tensors[f"{place}.lora_B.weight"] = random.normal(0, 0.3, (out, rank))
        if dora:
            tensors[f"{place}.lora_magnitude_vector"] = random.uniform(0.5, 2.0, out)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": False, "use_dora": dora,
              "base_model_name_or_path": "org/base", "bias": "none", **more}  # fmt: skip
    folder.mkdir()
    save_file({k: v.astype(np.float32) for k, v in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return config, tensors


def merged(model: nn.Module, blocks: str, config: dict[str, Any], tensors: Numbers) -> nn.Module:
    """The model with PEFT's formulas computed into its weights: W + s·BA, DoRA m·W′/‖W′‖."""
    for (number, name), module in linears(model).items():
        place = f"base_model.model.{blocks}.{number}.{name}"
        a, b = (tensors[f"{place}.lora_{side}.weight"] for side in "AB")
        alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
        scale = alpha / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
        weight = np.array(module.weight, np.float64) + scale * b @ a
        if (magnitude := tensors.get(f"{place}.lora_magnitude_vector")) is not None:
            weight *= (magnitude / np.linalg.norm(weight, axis=1))[:, None]
        module.weight = mx.array(weight.astype(np.float32))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_an_adapter_of_peft_computes_its_formulas(family: str, kind: str, tmp_path: Path) -> None:
    changes, blocks = FAMILIES[family]
    model = build(family, changes)
    plain = logits(model)
    config, tensors = written(
        tmp_path / "peft", model, blocks, dora=kind == "dora", use_rslora=kind == "rslora"
    )
    expected = logits(merged(build(family, changes), blocks, config, tensors))
    peft.put_on(model, tmp_path / "peft")
    assert np.abs(expected - plain).max() > 0.1
    assert np.abs(logits(model) - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


def test_ranks_and_alphas_of_single_layers(tmp_path: Path) -> None:
    model = build("llama", {})
    own = {"alpha_pattern": {"mlp.up_proj": 20}, "rank_pattern": {"self_attn.q_proj": 3}}
    config, tensors = written(tmp_path / "peft", model, "model.layers", **own)
    # PEFT's rule: a regex for the end of a layer's path, and the first that fits.
    told = {r"layers\.\d+\.mlp\.up_proj": 20, "up_proj": 1}
    file = tmp_path / "peft" / "adapter_config.json"
    file.write_text(json.dumps(config | {"alpha_pattern": told}))
    expected = logits(merged(build("llama", {}), "model.layers", config, tensors))
    peft.put_on(model, tmp_path / "peft")
    assert np.abs(logits(model) - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_is_written_is_read_the_same(family: str, kind: str, tmp_path: Path) -> None:
    changes, blocks = FAMILIES[family]
    trained = build(family, changes)
    parameters = {"rank": 4, "scale": 1.5, "dropout": 0.0, "keys": linear_keys(trained)}
    linear_to_lora_layers(trained, 1, parameters, use_dora=kind == "dora")  # the last block alone
    names = {f"{name}.{part}": module[part] for name, module in trained.named_modules()
             if "lora_a" in module
             for part in ("lora_a", "lora_b", "m") if part in module}  # fmt: skip
    arrays = {name: array + 0.2 * mx.random.normal(array.shape) for name, array in names.items()}
    trained.update(tree_unflatten(list(arrays.items())))
    ours = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": parameters}
    save_adapter(tmp_path / "ours", arrays, ours, "org/base")
    again = build(family, changes)
    load_adapters(again, str(tmp_path / "ours"))
    config = peft.write(tmp_path / "ours", ours, tmp_path / "peft", family, "org/base")
    assert config["layers_to_transform"] == [1] and config["use_dora"] == (kind == "dora")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert all(name.startswith(f"base_model.model.{blocks}.1.") for name in tensors)
    assert {len(array) for name, array in tensors.items() if "lora_A" in name} == {4}
    read = build(family, changes)
    peft.put_on(read, tmp_path / "peft")
    assert np.abs(logits(read) - logits(again)).max() < 1e-5


def test_a_layer_that_two_parts_of_a_model_have_is_refused(tmp_path: Path) -> None:
    model = build("llama", {})
    _, tensors = written(tmp_path / "peft", model, "model.layers")
    more = {name.replace("model.layers", "encoder.layers"): a for name, a in tensors.items()}
    save_file({k: v.astype(np.float32) for k, v in (tensors | more).items()},
              tmp_path / "peft" / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match="two parts of its model"):
        peft.put_on(model, tmp_path / "peft")


# As unsloth 2026 writes it, with PEFT 0.19.1; target_modules is its default for models that see.
UNSLOTH = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None,
    "auto_mapping": {"base_model_class": "Qwen3_5ForConditionalGeneration", "unsloth_fixed": True,
                     "parent_library": "transformers.models.qwen3_5.modeling_qwen3_5"},
    "base_model_name_or_path": "unsloth/Qwen3.5-4B-unsloth-bnb-4bit", "bias": "none",
    "corda_config": None, "ensure_weight_tying": False, "eva_config": None,
    "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_bias": False, "lora_dropout": 0,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core",
    "modules_to_save": None, "peft_version": "0.19.1", "qalora_group_size": 16,
    "rank_pattern": {}, "revision": None, "target_parameters": None, "task_type": "CAUSAL_LM",
    "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|"
                      r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj)))",
    "trainable_token_indices": None, "use_bdlora": None, "use_qalora": False,
}  # fmt: skip
SEES = (
    "model.visual.blocks.0.attn.qkv", "model.vision_tower.encoder.layers.0.self_attn.q_proj",
    "model.audio_tower.layers.1.mlp.up_proj", "model.multi_modal_projector.linear_1",
)  # fmt: skip


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_unsloths(tmp_path: Path, rslora: bool) -> None:
    """Of a model that sees, too: what no text goes through is left out."""
    model, blocks = build("llama", {}), "model.language_model.layers"
    config, tensors = written(tmp_path / "peft", model, blocks, **UNSLOTH, use_rslora=rslora)
    more = {f"base_model.model.{name}.lora_{side}.weight": np.ones((4, 4))
            for name in SEES for side in "AB"}  # fmt: skip
    save_file({k: v.astype(np.float32) for k, v in (tensors | more).items()},
              tmp_path / "peft" / "adapter_model.safetensors")  # fmt: skip
    expected = logits(merged(build("llama", {}), blocks, config, tensors))
    peft.put_on(model, tmp_path / "peft")
    assert np.abs(logits(model) - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
    with pytest.raises(UserError, match="does not fit 'tiny'") as caught:
        load_policy(PolicyConfig(model="tiny", adapter=str(tmp_path / "peft")))
    # MLX reads nothing of bitsandbytes.
    assert caught.value.hint == "give the model that it was trained on, unsloth/Qwen3.5-4B"


def test_dora_of_mlx_lm_loras(shell: Shell, tiny_random: Path, tmp_path: Path) -> None:
    """Its command line (5.10.2) names DoRA where mlx-lm does not look, and no layers."""
    config = PolicyConfig(model=str(tiny_random))
    tuned = load_policy(config).model
    keys = sorted(set(linear_keys(tuned)))  # as where mlx-lm is told no keys
    attach_lora(tuned, LoraConfig(rank=8, scale=10.0, dropout=0.0, dora=True, keys=keys), 0)
    mx.random.seed(1)
    arrays = {name: array + 0.2 * mx.random.normal(array.shape)
              for name, array in Trainer(tuned).trainable().items()}  # fmt: skip
    tuned.update(tree_unflatten(list(arrays.items())))
    told = {"lora_parameters": {"rank": 8, "dropout": 0.0, "scale": 10.0, "use_dora": True,
                                "num_layers": 16}, "num_layers": 16}  # fmt: skip
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), arrays)
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    policy = load_policy(config.model_copy(update={"adapter": str(tmp_path)}))
    assert np.array_equal(logits(policy.model), logits(tuned))
    assert attach_lora(policy.model, LoraConfig(), 0, str(tmp_path))["fine_tune_type"] == "dora"
    assert Trainer(policy.model).trainable().keys() == arrays.keys()
    out = tmp_path / "fused"
    shell.works("fuse", "--model", tiny_random, "--adapter", tmp_path, "--out", out)
    fused = load_policy(PolicyConfig(model=str(out)))
    assert np.abs(logits(fused.model) - logits(tuned)).max() < 1e-4
    shell.works("export", tmp_path, "--to", "peft", "--out", tmp_path / "peft")
    again = load_policy(config.model_copy(update={"adapter": str(tmp_path / "peft")}))
    assert np.abs(logits(again.model) - logits(tuned)).max() < 1e-5


# What peft and transformers themselves compute, where both and torch are installed.

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
    "both": {"use_dora": True, "use_rslora": True},
    "of single layers": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3},
        "alpha_pattern": {r"layers\.\d+\.mlp\.up_proj": 20, "up_proj": 1, "q_proj": 3},
        "layers_to_transform": [1],
    },
    "by a regex": {"target_modules": r".*layers\.\d+\.(?:self_attn|mlp)\.(?:q|up)_proj",
                   "init_lora_weights": "orthogonal"},
}  # fmt: skip


def of_transformers(folder: Path) -> Any:
    """A small random Llama of transformers, also written as a folder that mlx-lm loads."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=40, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def their_logits(model: Any) -> np.ndarray[Any, Any]:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.tensor(TOKENS.tolist())).logits.numpy()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
def test_peft_itself_computes_the_same(kind: str, tmp_path: Path) -> None:
    plain = of_transformers(tmp_path / "model")
    before = their_logits(plain)
    import peft as theirs
    import torch

    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    options = {"r": 4, "lora_alpha": 6, "target_modules": targets, **OPTIONS[kind]}
    tuned = theirs.get_peft_model(plain, theirs.LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, array in tuned.named_parameters():
            if "lora_" in name:
                array += 0.1 * torch.randn(array.shape)
    tuned.eval().save_pretrained(tmp_path / "peft")
    expected = their_logits(tuned)
    assert np.abs(expected - before).max() > 0.1
    model, _ = load_model(tmp_path / "model")
    peft.put_on(model, tmp_path / "peft")
    assert np.abs(logits(model) - expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, {"alpha": 6.0, "rslora": True}, {"dora": True}], ids=str)
def test_peft_itself_loads_what_is_written(lora: dict[str, Any], tmp_path: Path) -> None:
    plain = of_transformers(tmp_path / "model")
    import peft as theirs

    model, _ = load_model(tmp_path / "model")
    before = logits(model)
    config = attach_lora(model, LoraConfig(rank=4, layers=1, **lora), 0)
    mx.random.seed(1)
    arrays = {name: array + 0.1 * mx.random.normal(array.shape)
              for name, array in Trainer(model).trainable().items()}  # fmt: skip
    model.update(tree_unflatten(list(arrays.items())))
    save_adapter(tmp_path / "ours", arrays, config, "org/base")
    peft.write(tmp_path / "ours", config, tmp_path / "peft", "llama", "org/base")
    tuned = theirs.PeftModel.from_pretrained(plain, str(tmp_path / "peft")).eval()
    assert np.abs(their_logits(tuned) - logits(model)).max() < 1e-4
    assert np.abs(logits(model) - before).max() > 0.1


def test_training_goes_on_from_it(tmp_path: Path, tiny_random: Path) -> None:
    """As policy.adapter: what is trained further starts from it, and layers it lacks stay so."""
    config = PolicyConfig(model=str(tiny_random))
    model = load_policy(config).model
    written(tmp_path / "peft", model, "model.layers")
    kept = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    less = {name: array for name, array in kept.items() if ".0.mlp.up_proj" not in name}
    save_file(less, tmp_path / "peft" / "adapter_model.safetensors")
    adapter = str(tmp_path / "peft")
    policy = load_policy(config.model_copy(update={"adapter": adapter}))
    before = logits(policy.model)
    existing = attach_lora(policy.model, LoraConfig(), 0, adapter)
    assert existing == read_adapter(adapter, "lora")
    assert existing["lora_parameters"]["rank"] == 4
    arrays = Trainer(policy.model).trainable()
    idle = [array for name, array in arrays.items() if ".0.mlp.up_proj" in name]
    assert len(idle) == 2 and not any(mx.any(array).item() for array in idle)
    save_adapter(tmp_path / "on", arrays, existing, str(tiny_random))
    again = load_policy(config.model_copy(update={"adapter": str(tmp_path / "on")}))
    assert np.array_equal(logits(again.model), before)


@pytest.mark.parametrize(
    ("config", "name", "said"),
    [
        ({"peft_type": "LOHA"}, "", "of type 'LOHA'"),
        ({}, "base_model.model.lm_head.lora_A.weight", "lm_head.* is no LoRA of a linear layer"),
        ({}, "base_model.model.model.layers.0.self_attn.q_proj.bias", "is no LoRA"),
        ({}, "base_model.model.model.embed_tokens.lora_embedding_A", "is no LoRA"),
        ({}, "base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight", "has not both"),
        ({}, "base_model.model.model.layers.0.x.lora_magnitude_vector", "has the shape"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "", "is not read"),
        ({"alpha_pattern": [3]}, "", "its alphas are damaged"),
        ({"lora_alpha": "8"}, "", "its alphas are damaged"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "",
            "'pissa_niter_4', so it is no adapter for its",
        ),
        ({"init_lora_weights": "lora_ga"}, "", "init_lora_weights = 'lora_ga'"),
        (
            {"modules_to_save": ["lm_head", "embed_tokens"]},
            "",
            "it has modules_to_save = .*lm_head",
        ),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "", "it has target_parameters ="),
        ({"trainable_token_indices": [1, 2]}, "", "it has trainable_token_indices ="),
        ({"layer_replication": [[0, 4], [2, 5]]}, "", "it has layer_replication ="),
        ({"lora_bias": True}, "", "it has lora_bias = True"),
        ({"bias": "lora_only"}, "", "it has bias = lora_only"),
        ({"use_qalora": True}, "", "it has use_qalora = True"),
        (
            {},
            "base_model.model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
            "has not both",
        ),
    ],
)
def test_what_is_not_read_is_named(
    config: dict[str, Any], name: str, said: str, tmp_path: Path, tiny_random: Path
) -> None:
    model = load_policy(PolicyConfig(model=str(tiny_random))).model
    told, tensors = written(tmp_path / "peft", model, "model.layers")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(told | config))
    more = {name: np.ones((4, 4), np.float32)} if name else {}
    save_file({k: v.astype(np.float32) for k, v in tensors.items()} | more,
              tmp_path / "peft" / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=said):
        load_policy(PolicyConfig(model=str(tiny_random), adapter=str(tmp_path / "peft")))


def test_one_of_another_model_does_not_fit(tmp_path: Path, tiny_random: Path) -> None:
    written(tmp_path / "peft", build("llama", {}), "model.layers")
    with pytest.raises(UserError, match=r"does not fit .*its shape is") as caught:
        load_policy(PolicyConfig(model=str(tiny_random), adapter=str(tmp_path / "peft")))
    assert "org/base" in caught.value.hint


def test_an_adapter_goes_out_and_comes_back(
    shell: Shell, tiny_random: Path, tmp_path: Path
) -> None:
    adapter, out = write_adapter(tmp_path / "run" / "adapter", tiny_random), tmp_path / "peft"
    run = adapter.parent
    said = json.loads(shell.works("export", run, "--to", "peft", "--out", out, "--json").out)
    assert (said["out"], said["base"]) == (str(out), "")  # a folder's name tells nobody else
    read, own = (
        load_policy(PolicyConfig(model=str(tiny_random), adapter=str(folder)))
        for folder in (out, run)
    )
    assert np.abs(logits(read.model) - logits(own.model)).max() < 1e-5
    said = json.loads(shell.works("export", run, "--to", "peft", "--base", "org/it", "--json").out)
    assert (said["out"], said["base"]) == (str(run / "export" / "peft"), "org/it")
    for words, fault in (
        (("export", run, "--to", "peft", "--out", out), "already exists"),
        (("export", out, "--to", "peft"), "is in PEFT's form already"),
        (("export", run, "--to", "x"), "--to x: no such form"),
        (("export", run), "give one of --format and --to"),
        (("export", run, "--to", "peft", "--name", "x"), "--name does nothing with --to peft"),
        (("export", run, "--format", "trl", "--base", "x"), "--base does nothing with"),
        (("export", shell.folder, "--to", "peft"), "is not an adapter folder"),
    ):
        assert fault in shell.mistake(*words)[0]
    fused = tmp_path / "fused"
    shell.works("fuse", "--model", tiny_random, "--adapter", out, "--out", fused)
    both = load_policy(PolicyConfig(model=str(fused)))
    assert np.abs(logits(both.model) - logits(own.model)).max() < 1e-4


@pytest.mark.parametrize(
    ("config", "said"),
    [({}, "no lora_parameters"), ({"lora_parameters": []}, "no lora_parameters"),
     ({"lora_parameters": {"rank": "4", "scale": 2.0}}, "no lora_parameters"),
     ({"lora_parameters": {"rank": 4, "scale": 2.0}}, "cannot be read")],
)  # fmt: skip
def test_a_damaged_adapter_does_not_go_out(
    config: dict[str, Any], said: str, tmp_path: Path, shell: Shell
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"model": 5, **config}))
    (tmp_path / "adapters.safetensors").write_bytes(b"no tensors at all")
    assert said in shell.mistake("export", tmp_path, "--to", "peft")[0]
