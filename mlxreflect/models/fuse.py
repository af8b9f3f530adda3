"""A model and its adapter as one model folder, shown to answer as the two did.

Written are plain weights, lazily: quantised again, SmolLM2-135M gave 1 of 50 of its adapters'
answers. They are in the model's own float type where that keeps the adapter's change, else in
float32: of 8 steps with lr 1e-5 bfloat16 kept 4 %; of 16 with 1e-4 56 %.
"""

import io
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear
from mlx_lm.utils import dequantize_model, load_config, quantize_model, save_config, save_model
from rich.console import Group

from mlxreflect.config.schema import PolicyConfig, Sampling
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json
from mlxreflect.core.ui import Ui, plain, table
from mlxreflect.models import peft
from mlxreflect.models.load import (
    ADAPTER_FILES,
    GROUP_SIZE,
    dequantize,
    find_adapter,
    floating,
    load_policy,
    model_folder,
    on_cpu,
    one_line,
    put_files_on,
    read_adapter,
    to_float32,
)
from mlxreflect.models.memory import ADAPTED
from mlxreflect.models.policy import Policy

PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear, QuantizedMultiLinear)
Arrays = dict[str, mx.array]
PLAIN = PolicyConfig()  # a model by itself, as it is stored
LEAST = 0.99  # share of an adapter's change that the model's own type must keep


def unpack(model: nn.Module, name: str) -> None:
    """Plain weights in place of packed ones, in the type that the model computes in."""
    plain = []
    for path, module in model.named_modules():
        weight = module.get("weight")
        if not isinstance(weight, mx.array) or floating(weight):
            continue
        # A subclass of those does more than its weights, which `dequantize_model` would drop.
        if type(module) not in PACKED or module.get("global_scale") is not None:
            raise UserError(
                f"{name!r}: no plain weights can be made of {path} ({type(module).__name__})",
                "give a model that is not quantised, or one that `mlx_lm.convert` quantised",
            )
        if isinstance(module, QuantizedMultiLinear):
            one = mx.dequantize(weight, module.scales, module.biases, module.group_size,
                                module.bits, module.mode)  # fmt: skip
            layer = MultiLinear(*one.shape[::-1])
            layer.weight = one
            plain.append((path, layer))
    model.update_modules(tree_unflatten(plain))
    dequantize_model(model)


def merge(model: nn.Module, own: Arrays, rounded: bool) -> float:
    """Plain layers in place of those with an adapter; returns what the own type keeps of it.

    own: the arrays without the adapter. Sums are in float32 and rounded once, or not at all where
    that would lose some of the change; with `rounded` always.
    """
    layers = [(path, m) for path, m in model.named_modules() if hasattr(m, "fuse")]
    if layers:
        types = {f"{path}.weight": base_of(m).weight.dtype for path, m in layers}
        kept = share_kept((base_of(m).weight, merged(m).weight) for _, m in layers)
        model.update_modules(tree_unflatten([(path, merged(m)) for path, m in layers]))
    else:
        arrays = dict(tree_flatten(model.parameters()))
        types = {name: array.dtype for name, array in own.items() if floating(array)}
        kept = share_kept((own[name], arrays[name]) for name in types)
    if kept >= LEAST or rounded:
        arrays = dict(tree_flatten(model.parameters()))
        model.update(tree_unflatten([(n, arrays[n].astype(kind)) for n, kind in types.items()]))
    else:
        model.update(tree_map(to_float32, model.parameters()))
    return kept


def base_of(module: nn.Module) -> nn.Module:
    return module.linear if "linear" in module else module.embedding


def merged(module: nn.Module) -> nn.Module:
    """The layer and its adapter as one, in float32."""
    base = base_of(module)
    weight = base.weight
    base.weight = weight.astype(mx.float32)
    layer = module.fuse(dequantize=True)
    base.weight = weight
    return layer


def share_kept(pairs: Iterable[tuple[mx.array, mx.array]]) -> float:
    """The share of a change that is left when the new weights take the type of the old ones.

    pairs: old and new weights, the new in float32. Measured along the change: Σ r·d / Σ d·d, where
    d is the change and r what rounding leaves of it.
    """
    left = whole = 0.0
    for old, new in pairs:
        change = new - old
        rounded = new.astype(old.dtype).astype(mx.float32) - old
        left += float((rounded * change).sum())
        whole += float((change * change).sum())
    return left / whole if whole else 1.0


def pack(model: nn.Module, config: dict[str, Any], bits: int, base: dict[str, Any]) -> None:
    """Quantise, as the base was where it had as many bits, and say so in the config."""
    alike = base.get("bits") == bits and base.get("mode", "affine") == "affine"
    usual = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def predicate(path: str, module: nn.Module) -> Any:
        return base[path] if alike and path in base else usual(path, module)

    group = base["group_size"] if alike else GROUP_SIZE
    with redirect_stdout(io.StringIO()):  # it prints, and stdout may be for JSON
        config.update(quantize_model(model, config, group, bits, quant_predicate=predicate)[1])


PROMPTS = (
    "What is 17 + 25?",
    "Using the numbers 3, 5 and 8 once each, write an expression that equals 16.",
    "A baker sells 12 loaves a day for 4 dollars each. How much does he earn in a week?",
    "If all cats are animals and Tom is a cat, is Tom an animal? Explain in one sentence.",
    "Name three prime numbers that are larger than 10.",
)
TOKENS = 32  # of each answer that is compared
# Files beside the weights that a model folder needs. No code: what needs it cannot be loaded here.
KEPT = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*")
REPLACED = ("config.json", "*.index.json", "hf_quant_config.json", "adapter_config.json")
QUANTIZATION = ("quantization", "quantization_config", "quantize_activations")


class Answer(NamedTuple):
    prompt: list[int]
    tokens: list[int]
    text: str


def fuse(
    model: str, adapter: str, out: Path, quantize: int, prompts: Sequence[str], ui: Ui,
    how: PolicyConfig = PLAIN,
) -> dict[str, Any]:  # fmt: skip
    """Write the model with the adapter merged in as the folder `out`.

    adapter: a folder of type LoRA, DoRA or full, or "" for none. quantize: bits of the new weights,
    0 for plain ones. prompts: to be compared besides PROMPTS. how: a run loads it and answers.
    The folder is made beside `out` and renamed, so `out` is whole or not there. Returns what was
    written and, for each prompt, whether the new model's answer is the adapter's.
    Raises UserError where `out` holds something, and where model and adapter do not fit.
    """
    check_request(out, quantize)
    adapter = str(find_adapter(adapter, "--adapter")) if adapter else ""
    asked = [*PROMPTS, *prompts]
    before = answers_before(model, adapter, asked, ui, how)
    with whole(out) as partial:
        ui.line(f"writing {out}")
        written = write_folder(model, adapter, partial, quantize, how)
        samples = answers_after(partial, before, asked, ui, how)
    return {
        "schema": "fuse/1", "model": model, "adapter": adapter, "out": str(out),
        "quantize": quantize, **written, "tokens": TOKENS, "prompts": len(samples),
        "agree": sum(s["agrees"] for s in samples), "samples": samples,
    }  # fmt: skip


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yields the folder beside `out` that becomes `out` where the block ends well.

    Raises UserError where `out` holds something by then: another process may have made it.
    """
    partial = out.resolve().with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield partial
        check_free(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_request(out: Path, quantize: int) -> None:
    if quantize not in (0, 4, 8):
        raise UserError(
            f"--quantize {quantize}: weights of so many bits are not made",
            "give 4 or 8, or leave it out for plain weights",
        )
    check_free(out)


def check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists", "give another --out, or delete it")
    above = next(folder for folder in out.resolve().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{out}: no folder can be made in {above}", "give another --out")


# ---- the weights ---------------------------------------------------------------------------------


def load_tuned(model: str, adapter: str, how: PolicyConfig = PLAIN) -> tuple[Policy, Arrays]:
    """The model with the adapter on it, and its arrays without. Raises UserError on a misfit."""
    if adapter:
        read_adapter(adapter)
    own_weights = {"model": model, "adapter": "", "dequantize": "no"}
    policy = load_policy(how.model_copy(update=own_weights), "--model")
    own = dict(tree_flatten(policy.model.parameters()))
    if not adapter:
        return policy, own
    try:
        put_files_on(policy.model, Path(adapter))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        # mlx-lm's list of what does not fit has a line for each array, below a heading.
        lines = str(error).splitlines()
        raise misfit(model, adapter, lines[1] if len(lines) > 1 else one_line(error)) from None
    policy.model.eval()
    if peft.is_peft(Path(adapter)):  # which leaves nothing out
        return policy, own
    written = mx.load(str(Path(adapter) / "adapters.safetensors"))
    for key, _ in tree_flatten(policy.model.parameters()):
        if key.rpartition(".")[2] in ADAPTED and key not in written:
            raise misfit(model, adapter, f"{key}: not in adapters.safetensors")
    return policy, own


def misfit(model: str, adapter: str, fault: str) -> UserError:
    return UserError(
        f"--adapter {adapter!r} does not fit {model!r}: {fault.strip()}",
        "give the model that this adapter was trained on",
    )


def write_folder(
    model: str, adapter: str, folder: Path, quantize: int, how: PolicyConfig = PLAIN
) -> dict[str, Any]:
    """Write the merged model; returns its most frequent float type, its size and what was kept.

    kept: the share of what was trained that the model's own type keeps. Memory holds the model as
    it was stored, the merged layers in that type, and one shard of what is written.
    """
    policy, own = load_tuned(model, adapter, how)
    source = model_folder(model)
    assert source is not None  # it has just been loaded
    config = load_config(source)
    base = config.get("quantization") or {}
    for part in (config, config.get("text_config") or {}):
        for key in QUANTIZATION:
            part.pop(key, None)
    unpack(policy.model, model)
    kept = merge(policy.model, own, bool(quantize)) if adapter else 1.0
    if quantize:
        pack(policy.model, config, quantize, base)
    own.clear()
    sizes = Counter[str]()
    for _, array in tree_flatten(policy.model.parameters()):
        sizes[str(array.dtype).rpartition(".")[2] if floating(array) else "packed"] += array.nbytes
    # Models with a vision tower need vision_config to be loaded again.
    vision = "vision_tower" in getattr(policy.model, "model", {})
    folder.mkdir(parents=True)
    save_model(folder, policy.model, donate_model=True)
    save_config(config, folder / "config.json", keep_vision_config=vision)
    for file in {file for pattern in KEPT for file in source.glob(pattern)}:
        if file.is_file() and not any(file.match(pattern) for pattern in REPLACED):
            shutil.copyfile(file, folder / file.name)
    size = sizes.total()
    del sizes["packed"]
    return {"dtype": sizes.most_common(1)[0][0], "kept": kept, "bytes": size}


# ---- an adapter for PEFT -------------------------------------------------------------------------


def export_adapter(run: Path, out: Path, base: str) -> dict[str, Any]:
    """Writes the adapter of a run, or an adapter's folder, in PEFT's form; returns what it says.

    base: the model's name for PEFT; "" for the one that it was trained on, unless that is a path.
    The folder is whole or not there. Raises UserError where there is no adapter, and where `out`
    is something already.
    """
    adapter = find_adapter(str(run), "RUN_DIR")
    if peft.is_peft(adapter):
        raise UserError(f"{adapter} is in PEFT's form already", "use it as it is")
    check_free(out)
    model = str(read_json(adapter / ADAPTER_FILES[0]).get("model") or "")
    folder = model_folder(model) if model else None
    kind = read_json(folder / "config.json").get("model_type", "") if folder else ""
    if not base and model != "tiny" and not Path(model).exists():
        base = model
    with whole(out) as partial:
        made = peft.write(adapter, read_adapter(str(adapter)), partial, kind, base)
    return {
        "schema": "export/1", "format": "peft", "out": str(out), "base": base,
        "layers": made["target_modules"], "rank": made["r"], "alpha": made["lora_alpha"],
    }  # fmt: skip


# ---- the answers ---------------------------------------------------------------------------------


def answers_before(
    model: str, adapter: str, asked: Sequence[str], ui: Ui, how: PolicyConfig = PLAIN
) -> list[tuple[Answer, list[float]]]:
    """Returns the answers of model and adapter, computed as in a run, each with its `logps_of`."""
    policy = load_tuned(model, adapter, how)[0]
    if on_cpu():
        dequantize(policy.model)
    answers = answer(policy, asked, "answering as before", ui, how)
    return [(one, logps_of(policy.model, one)) for one in answers]


def answers_after(
    folder: Path, before: Sequence[tuple[Answer, list[float]]], asked: Sequence[str], ui: Ui,
    how: PolicyConfig = PLAIN,
) -> list[dict[str, Any]]:  # fmt: skip
    """The new model's answers beside the old; logp_difference: the largest of a token, in nats."""
    own_weights = {"model": str(folder), "adapter": "", "quantize": 0}
    policy = load_policy(how.model_copy(update=own_weights))
    after = answer(policy, asked, "answering as fused", ui, how)
    samples = []
    for question, (old, logps), new in zip(asked, before, after, strict=True):
        differences = [abs(a - b) for a, b in zip(logps_of(policy.model, old), logps, strict=True)]
        samples.append({
            "prompt": question, "agrees": new == old, "logp_difference": max(differences),
            "before": old.text, "after": new.text,
        })  # fmt: skip
    return samples


def answer(
    policy: Policy, asked: Sequence[str], label: str, ui: Ui, sampling: Sampling
) -> list[Answer]:
    """The greedy answer to each question."""
    prompts = [policy.encode([{"role": "user", "content": question}]) for question in asked]
    with ui.progress(label, len(asked)) as bar:
        done = policy.generate(
            prompts, temperature=0.0, top_p=1.0, max_new_tokens=TOKENS, batch=8, seed=("fuse",),
            sampling=sampling, advance=bar.advance,
        )  # fmt: skip
    return [Answer(p, c.token_ids, c.text) for p, c in zip(prompts, done, strict=True)]


def logps_of(model: nn.Module, one: Answer) -> list[float]:
    """The log-probability of each token of an answer, in nats, [T]."""
    logits = model(mx.array([one.prompt + one.tokens[:-1]]))[0, len(one.prompt) - 1 :]  # [T, V]
    logps = nn.log_softmax(logits.astype(mx.float32), axis=-1)
    own = mx.take_along_axis(logps, mx.array(one.tokens)[:, None], axis=-1)[:, 0]
    return [float(logp) for logp in np.array(own)]


def render_fused(result: dict[str, Any]) -> Group:
    """Returns the result of `fuse` as a table of prompts, and what follows from it."""
    rows = [
        (sample["prompt"], "yes" if sample["agrees"] else "no", f"{sample['logp_difference']:.2g}")
        for sample in result["samples"]
    ]
    kind = f"{result['quantize']} bits" if result["quantize"] else result["dtype"]
    lines = [
        f"{result['agree']} of {result['prompts']} answers (greedy, {result['tokens']} tokens) are "
        f"as before. {result['out']}: {result['bytes'] / 1e6:.0f} MB of {kind}."
    ]
    if result["dtype"] == "float32" and result["kept"] < LEAST:
        lines.append(f"The model's own type would keep {result['kept']:.0%} of what was trained.")
    if result["agree"] < result["prompts"]:
        lines.append(f"Rounding changed the others; measure with: --model {result['out']}")
    head = ("prompt", "same answer", "|log-probabilities differ by")
    return Group(table("", head, rows, wraps="*"), plain("\n".join(lines)))
