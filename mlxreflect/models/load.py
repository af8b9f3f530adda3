"""Loading a model and its adapter: quantised or not, put on and taken off, faults in words."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import dequantize_model, load, load_model

from mlxreflect.config.schema import PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.core.journal import read_json
from mlxreflect.models import peft
from mlxreflect.models.memory import weights_of
from mlxreflect.models.policy import Policy
from mlxreflect.models.split import is_too_large, load_split
from mlxreflect.models.template import ChatTemplate, TemplateFault

TINY = Path(__file__).parent / "tiny"  # the embedded model
GROUP_SIZE = 64
CACHE_SHARE = 0.1  # of the GPU's working set
# Of the device's memory, for weights and what generates; the rest is for a critic, freed buffers
# and the system.
SHARE = 2 / 3
ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")
CONFIGS = ("config.json", "generation_config.json")
# What loading raises for files that are not there, or are not as they should be.
LOAD_ERRORS = (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError,
               KeyError, TypeError, AttributeError, RuntimeError)  # fmt: skip


def load_policy(config: PolicyConfig, table: str = "policy", hosts: Hosts = ALONE) -> Policy:
    """Loads a model by hub name, path or "tiny", on every host.

    table: of the recipe, or "--model", to name in a UserError.
    """
    if hosts.alone:
        return load_here(config, table)
    number, held = next(hosts.numbers), sorted(hosts.held)
    hosts.lead("load", number=number, policy=config.model_dump(mode="json"), table=table, keep=held)
    share_adapter(hosts, config)
    hosts.held[number] = policy = load_together(config, table, hosts, number)
    return policy


def load_together(config: PolicyConfig, table: str, hosts: Hosts, number: int) -> Policy:
    """Loads a model on this host, as all others do; where it fits none of them, a part of it."""
    path = str(TINY) if config.model == "tiny" else config.model
    if is_too_large(hosts, model_folder(config.model), device_memory()):
        try:
            model, tokenizer = load_split(config, path)
        except LOAD_ERRORS as error:
            raise load_fault(config, error, table) from None
        policy = made_policy(model, tokenizer, config, table)
        policy.split = True
    else:
        policy = load_here(config, table)
    policy.hosts, policy.number = hosts, number
    return policy


def share_adapter(hosts: Hosts, config: PolicyConfig) -> dict[str, bytes]:
    """Returns the files of rank 0's adapter; none where there is none."""
    folder = find_adapter(config.adapter) if config.adapter and hosts.rank == 0 else None
    names = peft.FILES if folder and peft.is_peft(folder) else ADAPTER_FILES
    return hosts.share_files({name: folder / name for name in names} if folder else {})


def load_here(config: PolicyConfig, table: str = "policy") -> Policy:
    path = str(TINY) if config.model == "tiny" else config.model
    if config.adapter:
        find_adapter(config.adapter)
    try:
        model, tokenizer = load(path, tokenizer_config={"trust_remote_code": False})
    except LOAD_ERRORS as error:
        raise load_fault(config, error, table) from None
    if config.adapter:
        load_adapter(model, config)
    as_recipe_says(model, config)
    mx.eval(model.parameters())
    return made_policy(model, tokenizer, config, table)


def made_policy(model: nn.Module, tokenizer: Any, config: PolicyConfig, table: str) -> Policy:
    template = ask_template(tokenizer, config, model_folder(config.model), table)
    limit = cache_limit(config.cache_gb, weights_of(model))
    return Policy(model, tokenizer, config.model, template, limit)


def load_shapes(folder: Path, config: PolicyConfig, table: str = "policy") -> nn.Module:
    """Returns a model of which no weight is read, only what it says of itself. Raises UserError."""
    try:
        model, _ = load_model(folder, lazy=True)
    except LOAD_ERRORS as error:
        raise load_fault(config, error, table) from None
    as_recipe_says(model, config)
    return model


def as_recipe_says(model: nn.Module, config: PolicyConfig) -> None:
    if config.quantize:
        quantize(model, config.quantize)
    if is_dequantized(config):
        dequantize(model)
    model.eval()


def load_template(folder: Path, config: PolicyConfig) -> ChatTemplate:
    """Loads a model's chat template without its weights. Raises UserError."""
    try:
        tokenizer = load_tokenizer(folder, {"trust_remote_code": False})
    except LOAD_ERRORS as error:
        raise load_fault(config, error, "policy") from None
    return ask_template(tokenizer, config, folder, "policy")


def ask_template(
    tokenizer: Any, config: PolicyConfig, folder: Path | None, table: str
) -> ChatTemplate:
    tokenizer.eos_token_ids = end_tokens(tokenizer, folder)
    try:
        return ChatTemplate(tokenizer, config.thinking, config.template)
    except TemplateFault as fault:
        raise UserError(
            f"{named(config, table)}: its chat template fails: {fault.reason}", fault.hint
        ) from None


@contextmanager
def adapted(policy: Policy, config: PolicyConfig) -> Iterator[None]:
    """A policy with the LoRA folder `config.adapter` on it while the block runs.

    config: what the policy was loaded with, but for the adapter. It computes what a policy does
    that was loaded with the adapter. Not for adapters of all weights, which replace the model's.
    Raises UserError for an adapter that is none, or not of this model.
    """
    plain = dict(policy.model.named_modules())
    if not policy.hosts.alone and policy.hosts.rank == 0:
        policy.puts_on = next(policy.hosts.numbers)
        asked = config.model_dump(mode="json")
        policy.hosts.lead("put_on", policy=policy.number, number=policy.puts_on, config=asked)
        share_adapter(policy.hosts, config)
    try:
        put_on(policy.model, config)
        yield
    finally:
        policy.puts_on = 0
        names = [name for name, module in policy.model.named_modules() if "lora_a" in module]
        policy.model.update_modules(tree_unflatten([(name, plain[name]) for name in names]))


def adapter_layers(policy: Policy, config: PolicyConfig) -> tuple[Any, Any]:
    """Returns the layers that `adapted` puts on, and those in their place, for `update_modules`."""
    plain = dict(policy.model.named_modules())
    with adapted(policy, config):
        lora = [(n, module) for n, module in policy.model.named_modules() if "lora_a" in module]
    return tree_unflatten(lora), tree_unflatten([(name, plain[name]) for name, _ in lora])


def put_on(model: nn.Module, config: PolicyConfig) -> None:
    load_adapter(model, config)
    if is_dequantized(config):
        model.update(tree_map(to_float32, model.parameters()))
    model.eval()
    mx.eval(model.parameters())


def load_adapter(model: nn.Module, config: PolicyConfig) -> None:
    folder = find_adapter(config.adapter)
    try:
        put_files_on(model, folder)
    except LOAD_ERRORS as error:
        own = model_of(read_json(folder / ADAPTER_FILES[0]))
        raise UserError(
            f"policy.adapter = {config.adapter!r} does not fit {config.model!r}: {one_line(error)}",
            f"give the model that it was trained on{f', {own}' if own else ''}",
        ) from None


def put_files_on(model: nn.Module, folder: Path) -> None:
    """Puts an adapter of mlx-lm or of PEFT on a model. Raises one of LOAD_ERRORS on a misfit."""
    if peft.is_peft(folder):
        peft.put_on(model, folder)
        return
    config = own_config(folder)
    with TemporaryDirectory() as place:  # mlx-lm reads a config from nowhere but its file
        (Path(place) / ADAPTER_FILES[0]).write_text(json.dumps(config), encoding="utf-8")
        (Path(place) / ADAPTER_FILES[1]).symlink_to(folder.resolve() / ADAPTER_FILES[1])
        load_adapters(model, place)


def own_config(folder: Path) -> dict[str, Any]:
    """Returns an adapter's config as mlx-lm has it; mlx-lm-lora names DoRA in another place."""
    config = read_json(folder / ADAPTER_FILES[0])
    parameters = config.get("lora_parameters")
    dora = isinstance(parameters, dict) and parameters.get("use_dora")
    return {"fine_tune_type": "dora", **config} if dora else config


def find_adapter(name: str, said: str = "policy.adapter =") -> Path:
    """Returns an adapter's folder: the one that is named, or adapter/ of the run that is named.

    It is in mlx-lm's form or in PEFT's. said: how an error calls it. Raises UserError where there
    is none.
    """
    for folder in (Path(name), Path(name) / "adapter"):
        if all((folder / file).is_file() for file in ADAPTER_FILES) or peft.is_peft(folder):
            return folder
    if any(Path(name).glob("adapter_model.*")):
        raise UserError(
            f"{said} {name!r} is an adapter of PEFT without {' or '.join(peft.FILES)}",
            "save it with PEFT again (save_pretrained): a .bin file can run code when it is read",
        )
    raise UserError(
        f"{said} {name!r} is not an adapter folder",
        f"give a folder with {' and '.join(ADAPTER_FILES)}, or that of a finished run",
    )


def read_adapter(name: str, *kinds: str) -> dict[str, Any]:
    """An adapter's config, as mlx-lm has it. kinds: the types it may be of; none: any.

    Raises UserError where there is none, or one of another type.
    """
    folder = find_adapter(name)
    config = peft.read(folder)[0] if peft.is_peft(folder) else own_config(folder)
    found = config.get("fine_tune_type", "lora")
    if kinds and found not in kinds:
        tune = {"lora": "lora", "dora": "lora", "full": "full"}.get(found)
        go_on = f'set train.tune = "{tune}", or ' if tune else ""
        raise UserError(
            f"policy.adapter = {name!r} is of type {found!r}, and train.tune is {kinds[0]!r}",
            f"{go_on}give a model that holds it: "
            f"mlxreflect fuse --model MODEL --adapter {name} --out DIR",
        )
    return config


def model_of(config: Mapping[str, Any]) -> str:
    """Returns the model that an adapter's config names; of one that bitsandbytes packed, the plain.

    "" where it names none.
    """
    name = config.get("model") or config.get("base_model_name_or_path")
    return re.sub("(-unsloth)?-bnb-4bit$", "", name) if isinstance(name, str) else ""


def model_folder(name: str) -> Path | None:
    """Returns where a model's files are, its folder or the hub's cache; None where they are not."""
    folder = TINY if name == "tiny" else Path(name)
    if folder.is_dir():
        return folder
    found = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
    return Path(found).parent if isinstance(found, str) else None


def find_model(name: str, key: str) -> Path | None:
    """Returns the folder of a model that is here, or None where the hub would be asked for it.

    Raises UserError for what is neither.
    """
    if name == "tiny":
        return TINY
    path = Path(name)
    if path.exists():
        if not (path / "config.json").is_file() or not is_complete(path):
            hint = "make one with: mlx_lm.convert --hf-path NAME --mlx-path DIR -q"
            raise UserError(f"{key} = {name!r} is not an mlx-lm model folder", hint)
        return path
    try:
        patterns = ["*.json", "*.safetensors"]
        path = Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
    except HFValidationError:
        raise UserError(
            f"{key} = {name!r}: no such folder", "give a folder or a hub name"
        ) from None
    except OSError:
        return None
    return path if is_complete(path) else None


def is_complete(folder: Path) -> bool:
    """Tells if all weights are there: a download may have been broken off."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("model*.safetensors"))
    shards = set(read_json(index).get("weight_map", {}).values())
    return all((folder / shard).is_file() for shard in shards)


def end_tokens(tokenizer: Any, folder: Path | None) -> set[int]:
    """Every token that ends an answer, by the tokenizer and by both of the model's config files.

    mlx-lm takes generation_config.json's in place of config.json's, and models are published with
    an end token in one of the two only. folder: the model's; None where it is not at hand.
    """
    found: list[Any] = [*tokenizer.eos_token_ids]
    for file in (folder / name for name in CONFIGS) if folder else ():
        try:
            tree = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        # A model of several parts has them with its text part.
        tables = [tree, tree.get("text_config")] if isinstance(tree, dict) else []
        for told in (table.get("eos_token_id") for table in tables if isinstance(table, dict)):
            found += told if isinstance(told, list) else [told]
    return {i for i in found if type(i) is int and i >= 0}  # a file may say "x"


# ---- weights -------------------------------------------------------------------------------------


def quantize(model: nn.Module, bits: int) -> None:
    """Quantise on load. A model that already is quantised is brought to `bits` by way of floats."""
    if any(name.endswith("scales") for name, _ in tree_flatten(model.parameters())):
        dequantize(model)

    def fits(path: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % GROUP_SIZE == 0

    nn.quantize(model, GROUP_SIZE, bits, class_predicate=fits)


def dequantize(model: nn.Module) -> None:
    """Plain float32 weights in place of packed ones: several times faster on the CPU."""
    dequantize_model(model)
    model.update(tree_map(to_float32, model.parameters()))
    if on_cpu():
        lay_out_for_blas(model)


def lay_out_for_blas(model: nn.Module) -> None:
    """Store linear weights column by column; their values and shapes stay.

    The reference BLAS in mlx's Linux wheel does x @ W.T twice as fast then (measured: 5.9 against
    3.1 GFLOP/s), and other libraries do not mind.
    """
    for _, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.weight = mx.contiguous(module.weight.T).T


def is_dequantized(config: PolicyConfig) -> bool:
    return config.dequantize == "yes" or (config.dequantize == "auto" and on_cpu())


def on_cpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def on_mac_gpu() -> bool:
    """Returns whether MLX computes on a GPU that also draws the display."""
    return not on_cpu() and bool(mx.metal.is_available())


def device_name() -> str:
    """Returns the name of the device that MLX computes on."""
    return f"{'CPU' if on_cpu() else 'GPU'}, {mx.device_info().get('device_name', 'unnamed')}"


def device_memory() -> int:
    """Returns the bytes that models can have: what the GPU recommends, or all of the machine's."""
    found = {} if on_cpu() else mx.device_info()
    whole = found.get("max_recommended_working_set_size") or found.get("memory_size")
    return int(whole) if whole else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def limit_memory(cache: float | str = "auto", wired: float | str = "auto") -> None:
    """Limits the freed memory that MLX keeps, and what macOS leaves in place for the GPU.

    Both in gigabytes, or "auto". MLX alone keeps buffers of every shape seen, up to nearly all of a
    Mac's memory, and the system moves away what is not wired.
    """
    whole = 0 if on_cpu() else device_memory()
    if cache != "auto" or whole:
        mx.set_cache_limit(int(CACHE_SHARE * whole if cache == "auto" else float(cache) * 1e9))
    if on_mac_gpu():
        asked = whole if wired == "auto" else int(float(wired) * 1e9)
        mx.set_wired_limit(min(asked, whole))  # MLX refuses more


def cache_limit(gigabytes: float | str, weights: int) -> int:
    """Returns the bytes that keys and values may take: as asked for, or what the device has.

    It depends on sizes alone, not on what is free at the moment: a resumed run has the same.
    """
    if gigabytes == "auto":
        return int(SHARE * device_memory()) - weights
    return int(float(gigabytes) * 1e9)


def floating(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))


def to_float32(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if floating(array) else array


def weights_hash(arrays: dict[str, mx.array]) -> str:
    """Eight hex digits over names, shapes and bytes: which adapter wrote a text."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(memoryview(arrays[name].astype(mx.float32)).tobytes())  # type: ignore[arg-type]
    return digest.hexdigest()[:8]


# ---- hashes --------------------------------------------------------------------------------------

# Another BLAS, or another number of its threads, rounds otherwise.
BLAS = ("LD_PRELOAD", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def model_key(model: nn.Module, adapter: Mapping[str, mx.array]) -> str:
    """Returns the SHA-256, 64 hex digits, of every parameter's bytes and every layer's settings.

    adapter: arrays that count in place of the model's own of the same name. The layers' settings
    (LoRA's scale, RoPE's base, the bits) are in no array and change the numbers as weights do.
    """
    digest = hashlib.sha256()
    arrays = dict(tree_flatten(model.parameters())) | dict(adapter)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        # One array at a time: at most one is copied, where its layout is not that of its shape.
        digest.update(memoryview(array.reshape(-1).view(mx.uint8)))
    for name, layer in sorted(model.named_modules(), key=lambda item: item[0]):
        settings = sorted(
            (key, value) for key, value in vars(layer).items()
            if not key.startswith("_")
            and (isinstance(value, (bool, int, float, str)) or is_dataclass(value))
        )  # fmt: skip
        digest.update(f"{name} {type(layer).__qualname__} {settings}\n".encode())
    return digest.hexdigest()


def policy_identity(policy: Policy) -> str:
    """Returns a hash, 64 hex digits, of what of a policy and of this machine decides its tokens."""
    # LoRA layers that add nothing, as a run attaches them before it trains, do not count: with a
    # second factor of zero every number is the same to the last bit.
    idle = [
        (name, layer)
        for name, layer in policy.model.named_modules()
        if "lora_b" in layer and "linear" in layer and "m" not in layer  # m: DoRA's
        and not mx.any(layer.lora_b).item()
    ]  # fmt: skip
    policy.model.update_modules(tree_unflatten([(name, layer.linear) for name, layer in idle]))
    try:
        weights = model_key(policy.model, {})
    finally:
        policy.model.update_modules(tree_unflatten(idle))
    libraries = {name: version(name) for name in ("mlx", "mlx-lm")}
    blas = [os.environ.get(name, "") for name in BLAS]
    parts = [weights, sorted(policy.eos), libraries, device_name(), platform.platform(), blas]
    return hashlib.sha256(json.dumps([1, parts], sort_keys=True).encode()).hexdigest()


# ---- faults --------------------------------------------------------------------------------------


def load_fault(config: PolicyConfig, error: Exception, table: str) -> UserError:
    """Says why a model or its adapter could not be loaded, and what mends that."""
    if isinstance(error, (HFValidationError, OSError)):  # the hub's errors are among the second
        return missing_model(config, error, table)
    return UserError(
        f"{named(config, table)} cannot be loaded: {one_line(error)}",
        "give a model that mlx-lm supports",
    )


def named(config: PolicyConfig, table: str) -> str:
    """Returns a model as a person gave it: by a key of a table, or by the option --model."""
    key = f"{table}.model = {config.model!r}"
    return f"--model {config.model}" if table == "--model" else key


def missing_model(config: PolicyConfig, error: Exception, table: str) -> UserError:
    if Path(config.model).is_dir():
        name = error.filename if isinstance(error, FileNotFoundError) else None
        reason = f"no {Path(name).name} in it" if name else one_line(error)
        return UserError(
            f"{named(config, table)} is not an mlx-lm model folder: {reason}",
            "make one with: mlx_lm.convert --hf-path NAME --mlx-path DIR -q",
        )
    if config.model.startswith(("/", ".", "~")):
        return UserError(f"{named(config, table)}: no such folder", "give a folder, or a hub name")
    return UserError(
        f"{named(config, table)}: no such folder, and the hub gave none ({type(error).__name__})",
        f"check the name and the connection, or run: hf download {config.model}",
    )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
