"""Fusing: a model with its adapter as one folder that mlx-lm loads and that answers alike."""

import io
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import deepseek_v3, qwen3_moe
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import dequantize_model
from rich.console import Console
from support.shell import Shell
from test_lora import logits_of, store, train

import mlxreflect.models.fuse as module
from mlxreflect.config.schema import LoraConfig, PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.ui import Ui
from mlxreflect.models.fuse import PROMPTS, fuse
from mlxreflect.models.load import load_policy
from mlxreflect.models.policy import Policy
from mlxreflect.train.lora import attach_full, attach_lora, linear_keys, save_adapter

Make = Callable[..., Path]
MOE: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4,
    "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "moe_intermediate_size": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "max_position_embeddings": 512, "norm_topk_prob": True,
}  # fmt: skip


@pytest.fixture
def ui() -> Ui:
    return Ui(quiet=True)


def load_one(folder: Path, **changes: str) -> Policy:
    return load_policy(PolicyConfig(model=str(folder), **changes))


def write_other(base: Path, folder: Path, kind: Any, config: dict[str, Any]) -> Path:
    """A random model of another kind beside the tokenizer of `base`; 4 bits in groups of 32."""
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((base / file).read_bytes())
    known = json.loads((base / "config.json").read_text())
    config = config | {k: known[k] for k in ("vocab_size", "eos_token_id", "quantization")}
    mx.random.seed(7)
    model = kind.Model(kind.ModelArgs.from_dict(config))
    nn.quantize(model, **config["quantization"])
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def adapt(model: Path, folder: Path, steps: int = 6, lr: float = 1e-2, **lora: Any) -> Path:
    """A LoRA adapter that was trained a little on a model."""
    policy = load_one(model, dequantize="no")
    config = attach_lora(policy.model, LoraConfig(**{"rank": 4, "keys": []} | lora), 0)
    save_adapter(folder, train(policy.model, steps, lr), config, str(model))
    return folder


def header(path: Path) -> dict[str, Any]:
    """Names, types and shapes of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found: dict[str, Any] = json.loads(data[8 : 8 + length])
    found.pop("__metadata__", None)
    return found


def same_answers(result: dict[str, Any], within: float = 1e-3) -> bool:
    return result["agree"] == result["prompts"] and all(
        sample["agrees"] and sample["before"] == sample["after"]
        and sample["logp_difference"] < within for sample in result["samples"]
    )  # fmt: skip


def text_of(result: dict[str, Any]) -> str:
    for width in (80, 100):  # headings are whole on a narrow terminal too
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(module.render_fused(result))
        text = console.export_text()
        assert "…" not in text and all(word in text for word in ("same answer", "differ by"))
    return text


def test_a_quantised_model_with_lora_becomes_a_plain_one(
    tiny_random: Path, tmp_path: Path, ui: Ui
) -> None:
    adapter, out = adapt(tiny_random, tmp_path / "a"), tmp_path / "deep" / "out"
    result = fuse(str(tiny_random), str(adapter), out, 0, [], ui)
    assert same_answers(result)
    assert [sample["prompt"] for sample in result["samples"]] == list(PROMPTS)
    samples = result.pop("samples")
    assert result == {
        "schema": "fuse/1", "model": str(tiny_random), "adapter": str(adapter), "out": str(out),
        "quantize": 0, "dtype": "float32", "kept": pytest.approx(1, abs=1e-4), "tokens": 32,
        "prompts": 5, "agree": 5,
        "bytes": sum(t["data_offsets"][1] - t["data_offsets"][0]
                     for t in header(out / "model.safetensors").values()),
    }  # fmt: skip
    base, tuned = load_one(tiny_random), load_one(tiny_random, adapter=str(adapter))
    loaded, tokenizer = mlx_lm.load(str(out))
    np.testing.assert_allclose(logits_of(loaded), logits_of(tuned.model), atol=2e-4)
    assert np.abs(logits_of(loaded) - logits_of(base.model)).max() > 0.1
    text = mlx_lm.generate(loaded, tokenizer, tuned.encode(
        [{"role": "user", "content": PROMPTS[0]}]), max_tokens=32)  # fmt: skip
    assert text == samples[0]["before"]


def test_the_folder_is_whole(tiny_random: Path, tmp_path: Path, ui: Ui) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    for file in tiny_random.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "generation_config.json").write_text('{"eos_token_id": [256, 7], "top_k": 3}')
    (model / "LICENSE").write_text("free")
    (model / "custom.py").write_text("raise SystemExit")
    (model / "hf_quant_config.json").write_text("{}")
    out.mkdir()  # an empty folder is no obstacle
    fuse(str(model), "", out, 0, [], ui)
    kept = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE",
            "generation_config.json")  # fmt: skip
    for name in kept:
        assert (out / name).read_bytes() == (model / name).read_bytes()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = header(out / "model.safetensors")
    assert index["weight_map"] == dict.fromkeys(tensors, "model.safetensors")
    assert not any(name.endswith(("scales", "biases", "lora_a")) for name in tensors)
    config = json.loads((out / "config.json").read_text())
    before = json.loads((model / "config.json").read_text())
    del before["quantization"]
    assert config == {**before, "eos_token_id": [256, 7]}
    assert {p.name for p in out.iterdir()} == {
        *kept, "config.json", "model.safetensors", "model.safetensors.index.json"
    }  # fmt: skip
    assert load_one(out).eos == {256, 7}
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out"}


def test_without_an_adapter_it_is_a_plain_copy(tiny_random: Path, tmp_path: Path, ui: Ui) -> None:
    fuse(str(tiny_random), "", tmp_path / "out", 0, [], ui)
    expected, _ = mlx_lm.load(str(tiny_random))
    dequantize_model(expected)
    found = mx.load(str(tmp_path / "out" / "model.safetensors"))
    arrays = dict(tree_flatten(expected.parameters()))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.array(found[name]), np.array(array))


def test_a_model_that_is_not_quantised(make_model: Make, tmp_path: Path, ui: Ui) -> None:
    model = make_model(quantization=None, tie_word_embeddings=True)
    adapter, out = adapt(model, tmp_path / "a"), tmp_path / "out"
    assert same_answers(fuse(str(model), str(adapter), out, 0, [], ui))
    before, after = (mx.load(str(f / "model.safetensors")) for f in (model, out))
    assert before.keys() == after.keys()
    changed = {k for k in before if not mx.array_equal(before[k], after[k])}
    keys = linear_keys(load_one(model).model)
    assert changed == {f"model.layers.{n}.{key}.weight" for n in (0, 1) for key in keys}


def test_sums_are_rounded_once_to_the_models_type(make_model: Make, tmp_path: Path, ui: Ui) -> None:
    model = store(make_model(), mx.bfloat16)
    adapter, out = adapt(model, tmp_path / "a", keys=["self_attn.q_proj"]), tmp_path / "out"
    result = fuse(str(model), str(adapter), out, 0, [], ui)
    assert result["dtype"] == "bfloat16" and result["kept"] > 0.99
    assert {t["dtype"] for t in header(out / "model.safetensors").values()} == {"BF16"}
    tuned = mlx_lm.load(str(model), adapter_path=str(adapter))[0]
    dequantize_model(tuned)
    after = mx.load(str(out / "model.safetensors"))
    for number, layer in enumerate(tuned.layers):
        lora = layer.self_attn.q_proj
        delta = lora.scale * lora.lora_b.T @ lora.lora_a.T
        exact = lora.linear.weight.astype(mx.float32) + delta
        found = after[f"model.layers.{number}.self_attn.q_proj.weight"]
        # The order of the products may move a sum across the middle between two values.
        assert (found == exact.astype(mx.bfloat16)).mean().item() > 0.999
        assert mx.abs(found.astype(mx.float32) / exact - 1).max().item() < 2**-8
    assert same_answers(result, within=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_change_that_rounding_would_lose_is_kept_in_float32(
    make_model: Make, tmp_path: Path, ui: Ui, kind: str
) -> None:
    model = store(make_model(**{"quantization": None} if kind == "full" else {}), mx.bfloat16)
    out = tmp_path / "out"
    if kind == "lora":
        adapter = adapt(model, tmp_path / "a", lr=1e-5)
    else:
        adapter, tuned = tmp_path / "a", load_one(model).model
        config = attach_full(tuned, str(model))
        save_adapter(adapter, train(tuned, lr=1e-5), config, str(model))
    result = fuse(str(model), str(adapter), out, 0, [], ui)
    assert result["dtype"] == "float32" and 0 < result["kept"] < 0.9
    assert {t["dtype"] for t in header(out / "model.safetensors").values()} == {"F32"}
    assert same_answers(result, within=1e-4)
    tuned = load_one(model, adapter=str(adapter)).model
    np.testing.assert_allclose(logits_of(load_one(out).model), logits_of(tuned), atol=1e-4)
    assert "own type would keep" in text_of(result)
    packed = fuse(str(model), str(adapter), tmp_path / "packed", 4, [], ui)
    assert packed["dtype"] == "bfloat16"  # of the scales


def test_the_share_that_rounding_keeps() -> None:
    old = mx.array([1.0, 1.0, 2.0], dtype=mx.bfloat16)
    ulp = 2**-7  # of bfloat16 at 1
    assert module.share_kept([(old, old.astype(mx.float32))]) == 1
    new = old.astype(mx.float32) + mx.array([0.4 * ulp, ulp, 0.0])
    assert module.share_kept([(old, new)]) == pytest.approx(1 / (1 + 0.4**2), rel=1e-5)
    assert module.share_kept([(old.astype(mx.float32), new)]) == 1


@pytest.mark.parametrize("plain", [False, True])
def test_a_mixture_of_experts(tiny_random: Path, tmp_path: Path, ui: Ui, plain: bool) -> None:
    model = write_other(tiny_random, tmp_path / "moe", qwen3_moe, MOE)
    if plain:
        fuse(str(model), "", tmp_path / "plain", 0, [], ui)
        model = tmp_path / "plain"
    assert "mlp.switch_mlp.up_proj" in linear_keys(load_one(model).model)
    adapter, out = adapt(model, tmp_path / "a"), tmp_path / "out"
    written = mx.load(str(adapter / "adapters.safetensors"))
    assert mx.abs(written["model.layers.1.mlp.switch_mlp.up_proj.lora_b"]).max().item() > 0
    assert same_answers(fuse(str(model), str(adapter), out, 0, [], ui))
    tuned, loaded = load_one(model, adapter=str(adapter)).model, mlx_lm.load(str(out))[0]
    np.testing.assert_allclose(logits_of(loaded), logits_of(tuned), atol=2e-4)


def test_latent_attention(tiny_random: Path, tmp_path: Path, ui: Ui) -> None:
    """Its packed heads are of a kind that mlx-lm does not unpack by itself."""
    config = {
        "model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 128,
        "moe_intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_routed_experts": 4, "kv_lora_rank": 32, "q_lora_rank": 32,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
        "max_position_embeddings": 512, "first_k_dense_replace": 2,
    }  # fmt: skip
    model = write_other(tiny_random, tmp_path / "mla", deepseek_v3, config)
    assert "model.layers.0.self_attn.embed_q.scales" in header(model / "model.safetensors")
    out = tmp_path / "out"
    assert same_answers(fuse(str(model), "", out, 0, [], ui))
    assert {t["dtype"] for t in header(out / "model.safetensors").values()} == {"F32"}


@pytest.mark.parametrize(
    ("changes", "keys", "dora"),
    [({"tie_word_embeddings": True}, ["model.embed_tokens", "mlp.up_proj"], False),
     ({"tie_word_embeddings": True, "quantization": None}, ["model.embed_tokens"], False),
     ({}, ["mlp.up_proj"], True)],
    ids=["tied embeddings", "the same, not quantised", "DoRA"],
)  # fmt: skip
def test_other_adapters(
    make_model: Make, tmp_path: Path, ui: Ui, changes: dict[str, Any], keys: list[str], dora: bool
) -> None:
    model = make_model(**changes)
    tuned = load_one(model, dequantize="no").model
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    tuned.freeze()
    linear_to_lora_layers(tuned, 2, dict(parameters), use_dora=dora)
    tuned.eval()
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 2,
              "lora_parameters": parameters}  # fmt: skip
    save_adapter(tmp_path / "a", train(tuned), config, str(model))
    out = tmp_path / "out"
    assert same_answers(fuse(str(model), str(tmp_path / "a"), out, 0, [], ui))
    np.testing.assert_allclose(logits_of(mlx_lm.load(str(out))[0]), logits_of(tuned), atol=2e-4)
    assert ("lm_head.weight" in header(out / "model.safetensors")) == (not changes)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_full_adapter(make_model: Make, tmp_path: Path, ui: Ui, dtype: mx.Dtype) -> None:
    """Trained in float32, written in the model's own type."""
    model, out = store(make_model(quantization=None), dtype), tmp_path / "out"
    tuned = load_one(model).model
    config = attach_full(tuned, str(model))
    save_adapter(tmp_path / "a", train(tuned), config, str(model))
    result = fuse(str(model), str(tmp_path / "a"), out, 0, [], ui)
    after = mx.load(str(out / "model.safetensors"))
    for name, array in tree_flatten(tuned.parameters()):
        assert after[name].dtype == dtype
        np.testing.assert_array_equal(
            np.array(after[name].astype(mx.float32)),
            np.array(array.astype(dtype).astype(mx.float32)),
        )
    assert same_answers(result, within=1e-3 if dtype == mx.float32 else 0.1)


# ---- quantised again -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_quantising_is_asked_for_and_counted(
    tiny_random: Path, tmp_path: Path, ui: Ui, bits: int
) -> None:
    adapter, out = adapt(tiny_random, tmp_path / "a"), tmp_path / "out"
    result = fuse(str(tiny_random), str(adapter), out, bits, ["One more"], ui)
    config = json.loads((out / "config.json").read_text())
    group = 32 if bits == 4 else 64  # as the base, where it has as many bits
    assert config["quantization"] == {"group_size": group, "bits": bits, "mode": "affine"}
    assert load_one(out, dequantize="no").model.layers[0].mlp.up_proj.bits == bits
    assert result["quantize"] == bits and result["prompts"] == 6
    assert result["samples"][-1]["prompt"] == "One more"
    assert result["agree"] == sum(s["before"] == s["after"] for s in result["samples"])
    worst = max(sample["logp_difference"] for sample in result["samples"])
    assert worst > 1e-3  # what quantising costs is seen


def test_layers_keep_the_bits_of_the_base(tiny_random: Path, tmp_path: Path, ui: Ui) -> None:
    special = {"group_size": 32, "bits": 8}
    model = tmp_path / "model"
    fuse(str(tiny_random), "", model, 0, [], ui)
    config = json.loads((model / "config.json").read_text())
    config["quantization"] = {"group_size": 32, "bits": 4, "model.embed_tokens": special,
                              "lm_head": False}  # fmt: skip
    mixed = load_one(model, dequantize="no").model
    nn.quantize(mixed, 32, 4, class_predicate=lambda path, m: hasattr(m, "to_quantized") and (
        config["quantization"].get(path, True)))  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(model / "model.safetensors"), dict(tree_flatten(mixed.parameters())))
    fuse(str(model), "", tmp_path / "out", 4, [], ui)
    found = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert found["model.embed_tokens"] == special
    tensors = header(tmp_path / "out" / "model.safetensors")
    assert tensors["lm_head.weight"]["dtype"] == "F32"
    assert tensors["model.embed_tokens.weight"]["shape"][1] == 64 * 8 // 32
    assert tensors["model.layers.0.mlp.up_proj.weight"]["shape"][1] == 64 * 4 // 32


# ---- mistakes ------------------------------------------------------------------------------------


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def refused(tmp_path: Path, model: object, adapter: object, out: Path, quantize: int = 0) -> str:
    """What the error says; nothing may be left behind."""
    before = listing(tmp_path)
    with pytest.raises(UserError) as caught:
        fuse(str(model), str(adapter), out, quantize, [], Ui(quiet=True))
    assert listing(tmp_path) == before
    assert caught.value.hint
    return caught.value.message


def test_what_cannot_be_asked_for(tiny_random: Path, tmp_path: Path) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "x").touch()
    file.touch()
    for out in (full, file):
        assert "already exists" in refused(tmp_path, tiny_random, "", out)
    assert "no folder can be made" in refused(tmp_path, tiny_random, "", file / "out")
    assert "--quantize 5" in refused(tmp_path, tiny_random, "", tmp_path / "out", 5)
    assert "no such folder" in refused(tmp_path, "./none", "", tmp_path / "out")
    assert "not an adapter folder" in refused(tmp_path, tiny_random, full, tmp_path / "out")


def test_an_adapter_that_does_not_fit_names_the_first_array(
    tiny_random: Path, make_model: Make, tmp_path: Path
) -> None:
    out, wide = tmp_path / "out", make_model(intermediate_size=192)
    adapter = adapt(wide, tmp_path / "a", keys=["mlp.down_proj"], layers=1)
    message = refused(tmp_path, tiny_random, adapter, out)
    assert "model.layers.1.mlp.down_proj.lora_a" in message and "(192, 4)" in message

    path = adapter / "adapters.safetensors"
    arrays = dict(mx.load(str(path)))
    mx.eval(arrays)
    mx.save_safetensors(str(path), {"model.layers.7.lora_a": arrays.popitem()[1]})
    assert "model.layers.7.lora_a" in refused(tmp_path, wide, adapter, out)
    mx.save_safetensors(str(path), arrays)
    assert re.search(r"down_proj.lora_\w: not in adapters", refused(tmp_path, wide, adapter, out))
    path = adapt(wide, tmp_path / "dora", dora=True) / "adapters.safetensors"
    arrays = {name: array for name, array in mx.load(str(path)).items() if name[-2:] != ".m"}
    mx.eval(arrays)
    mx.save_safetensors(str(path), arrays)
    assert "_proj.m: not in adapters" in refused(tmp_path, wide, path.parent, out)
    path = adapter / "adapters.safetensors"
    path.write_bytes(b"damaged")
    assert "does not fit" in refused(tmp_path, wide, adapter, out)
    (adapter / "adapter_config.json").write_text("{}")
    assert "does not fit" in refused(tmp_path, wide, adapter, out)
    (adapter / "adapter_config.json").write_text("{")
    assert "not JSON" in refused(tmp_path, wide, adapter, out)

    plain = make_model(quantization=None)
    tuned = load_one(plain).model
    config = attach_full(tuned, str(plain))
    save_adapter(tmp_path / "full", train(tuned, steps=1), config, str(plain))
    assert "weight: adapter shape" in refused(tmp_path, tiny_random, tmp_path / "full", out)


def test_layers_that_cannot_be_unpacked_are_refused(
    tiny_random: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACKED", (nn.QuantizedLinear,))
    message = refused(tmp_path, tiny_random, "", tmp_path / "out")
    assert "model.embed_tokens (QuantizedEmbedding)" in message


@pytest.mark.parametrize("stage", ["save_config", "answers_after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_is_left_of_what_was_stopped(
    tiny_random: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ui: Ui, stage: str,
    error: BaseException,
) -> None:  # fmt: skip
    def stop(*_: object, **__: object) -> None:
        assert any(p.suffix == ".tmp" for p in tmp_path.iterdir())
        raise error

    monkeypatch.setattr(module, stage, stop)
    with pytest.raises((KeyboardInterrupt, OSError)):
        fuse(str(tiny_random), "", tmp_path / "out", 0, [], ui)
    assert not listing(tmp_path)


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(tiny_random: Path, tmp_path: Path) -> None:
    shell, adapter = Shell(tmp_path, tiny_random), adapt(tiny_random, tmp_path / "a")
    call = ["fuse", "--model", tiny_random, "--adapter", adapter]
    done = shell.works(*call, "--out", "new", "--prompt", "Hello?", "--prompt", "Bye\x1b[2J?")
    assert "Hello?" in done.out and "\x1b" not in done.out
    assert "7 of 7 answers" in done.out and "new: 1 MB of float32" in done.out
    shell.works("eval", "countdown", "--model", "new", "--limit", "2", "--set", "max_new_tokens=4")

    done = shell.works(*call, "--out", "packed", "--quantize", "4", "--json")
    result = json.loads(done.out)
    assert len(done.out.splitlines()) == 1
    assert result["quantize"] == 4 and 0 <= result["agree"] <= result["prompts"] == len(PROMPTS)
    error, hint = shell.mistake(*call, "--out", "new")
    assert "new already exists" in error and "--out" in hint


@pytest.mark.slow
def test_a_model_of_the_hub(tiny_random: Path, tmp_path: Path) -> None:
    """From the hub's cache, where files are links, and without a network."""
    shell = Shell(tmp_path, tiny_random)
    cache = tmp_path / ".cache" / "hub" / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for file in tiny_random.iterdir():
        (cache / "snapshots" / "abc" / file.name).symlink_to(file)
    shell.env["HF_HOME"] = str(tmp_path / ".cache")
    result = json.loads(shell.works("fuse", "--model", "some/model", "--out", "new", "--json").out)
    assert result["agree"] == 5
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())
    assert "gave none" in shell.mistake("fuse", "--model", "some/other", "--out", "newer")[0]
    code = "from mlxreflect.train.lora import stored_packed; print(stored_packed('some/model'))"
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, env=shell.env, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_disagreement_is_said_plainly() -> None:
    samples = [{"prompt": prompt, "agrees": n > 1, "logp_difference": 0.1}
               for n, prompt in enumerate(PROMPTS)]  # fmt: skip
    text = text_of(
        {"out": "some/out", "quantize": 4, "dtype": "float32", "kept": 1.0, "bytes": 10**6,
         "tokens": 32, "prompts": 5, "agree": 3, "samples": samples}
    )  # fmt: skip
    assert "3 of 5 answers" in text and "1 MB of 4 bits" in text
    assert re.search(r"write an.* no ", text) and re.search(r"three prime.* yes ", text)
    assert "--model some/out" in text.replace("\n", " ")
