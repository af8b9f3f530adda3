"""Checks of what a run asks: is a model on this machine, can a critic be asked?

Nothing is downloaded, and each critic is asked for one token.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import httpx
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError

from mlxreflect.config.methods import method_of
from mlxreflect.config.schema import REMOTE, CriticConfig, Recipe
from mlxreflect.core.cache import cache_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_json
from mlxreflect.core.records import make_problem
from mlxreflect.critics import open_critic
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.client import FILE, Client, failed
from mlxreflect.critics.http import CallError
from mlxreflect.critics.ollama import Ollama
from mlxreflect.models.load import TINY, on_cpu

CALL_S = 120.0  # a server may have to load its model first
LOOK_S = 5.0  # for a server that is there or not
LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
OLLAMA_PORT = 11434
ASK = Call("critique", make_problem("doctor", {}), [{"role": "user", "content": "Say ok."}], "")


@dataclass(frozen=True)
class Check:
    """note: no fault, but worth knowing. hint: what mends a failure."""

    name: str
    status: Literal["ok", "note", "fail"]
    detail: str
    hint: str = ""


Sizes = dict[str, int | None]  # what will lie in this machine's memory → bytes; None: not known


# ---- models --------------------------------------------------------------------------------------


def find_model(name: str, key: str) -> Path | None:
    """The folder of a model that is here; None where the hub would be asked for it.

    Raises UserError for what is neither.
    """
    if name == "tiny":
        return TINY
    path = Path(name)
    if path.exists():
        if not (path / "config.json").is_file() or not is_complete(path):
            hint = "make one with: mlx_lm.convert --hf-path NAME --mlx-path DIR -q"
            raise UserError(f"{key} = {name!r} is no mlx-lm model folder", hint)
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
    """Whether all weights are there: a download may have been broken off."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("model*.safetensors"))
    shards = set(read_json(index).get("weight_map", {}).values())
    return all((folder / shard).is_file() for shard in shards)


def memory_of(folder: Path, quantize: int = 0, dequantize: str = "auto") -> int:
    """Bytes of a model's weights once they are loaded, estimated from its files."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    config = read_json(folder / "config.json")
    plain = 32 if "float32" in (config.get("dtype"), config.get("torch_dtype")) else 16
    bits = (config.get("quantization") or {}).get("bits", plain)
    whole = dequantize == "yes" or (dequantize == "auto" and on_cpu())
    return int(size * (32 if whole else quantize or bits) // bits)


def to_download(name: str, model: str) -> Check:
    if constants.HF_HUB_OFFLINE:
        hint = f"without HF_HUB_OFFLINE, run: hf download {model}"
        return Check(name, "fail", f"{model} is not here, and HF_HUB_OFFLINE is set", hint)
    return Check(name, "note", f"{model} is to be downloaded; its size is not known")


# ---- critics -------------------------------------------------------------------------------------


def tiers(recipe: Recipe) -> dict[str, CriticConfig]:
    """The critics that a run asks, each once."""
    found: dict[CriticConfig, str] = {}
    for name in method_of(recipe).tiers(recipe):
        found.setdefault(
            recipe.critic.tier(name), "critic" if name == "basic" else f"{name} critic"
        )
    return {name: config for config, name in found.items()}


def check_critic(name: str, config: CriticConfig, task: str, sizes: Sizes) -> Iterator[Check]:
    """Its key, its server, its model, and one token of it."""
    if config.provider in REMOTE and config.replay:
        path = cache_path(config.cache, FILE)
        there = path is not None and path.is_file()
        hint = "" if there else "set critic.cache to the file of the run to repeat"
        found = f"replays what is in {path}" if there else f"{path}, to be replayed, is not there"
        yield Check(name, "ok" if there else "fail", found, hint)
        return
    if config.provider == "openai" and config.key_env:
        there = bool(os.environ.get(config.key_env, "").strip())
        hint = "" if there else f"export {config.key_env}=KEY"
        found = "set" if there else "not set"
        yield Check(f"key {config.key_env}", "ok" if there else "fail", found, hint)
    if config.provider == "openai" and is_ollama(config.base_url):
        found = f"{config.base_url} is Ollama, whose /v1 ignores critic.num_ctx and cuts prompts"
        yield Check(name, "note", found, 'set critic.provider = "ollama" and leave /v1 out')
    if config.provider == "local":
        folder = find_model(config.model, "critic.model")
        sizes[name] = memory_of(folder) if folder else None
        if folder is None:
            yield to_download(name, config.model)
            return
    yield from ask_critic(name, config, task, sizes)


def ask_critic(name: str, config: CriticConfig, task: str, sizes: Sizes) -> Iterator[Check]:
    tried = config.model_copy(update={"max_tokens": 1, "cache": "off", "replay": False})
    critic = open_critic(tried, task, "doctor")
    try:
        critic.preflight()
        if config.provider == "solver":
            yield Check(name, "ok", "the exact solver, in this process")
            return
        begun = time.monotonic()
        reply = one_token(critic)
        seconds = time.monotonic() - begun
        if isinstance(critic, Client) and isinstance(critic.provider, Ollama):
            sizes |= ollama_size(name, critic.provider)
    finally:
        critic.close()
    if reply.error is None or reply.kind == "empty":
        lacking = ", ".join(sorted(getattr(critic, "refused", ())))
        without = f"; it takes no {lacking}" if lacking else ""
        yield Check(name, "ok", f"{critic.actor} answers, after {seconds:.1f} s{without}")
    else:
        hint = "correct the keys of [critic] that it names, or look at the server's own messages"
        yield Check(name, "fail", f"{critic.actor}: {reply.error}", hint)


def one_token(critic: Critic) -> Reply:
    """One request, without retries. Some models cannot say a word in it: they are there."""
    if not isinstance(critic, Client):
        return critic.ask([ASK])[0]
    try:
        return critic.send(ASK, CALL_S)
    except CallError as error:
        short = error.kind == "http_400" and "output limit" in str(error)
        return Reply("", kind="empty") if short else failed(error, 1)


def ollama_size(name: str, critic: Ollama) -> Sizes:
    """What Ollama's model takes of this machine's memory, where Ollama is on this machine."""
    if split_address(critic.wire.shown).hostname not in LOOPBACK:
        return {}
    wanted = (critic.config.model, f"{critic.config.model}:latest")
    try:
        with critic.wire.within(LOOK_S):
            rows = critic.server.list().models
    except CallError:
        rows = []
    return {name: next((row.size for row in rows if row.model in wanted), None)}


def split_address(address: str) -> SplitResult:
    """Raises ValueError for what is no address."""
    return urlsplit(address if "://" in address else f"http://{address}")


def is_ollama(base_url: str) -> bool:
    """Whether an OpenAI-compatible address is really Ollama's."""
    try:
        place = split_address(base_url)
        if not place.hostname or place.port == OLLAMA_PORT:
            return place.port == OLLAMA_PORT
        found = httpx.get(f"{place.scheme}://{place.netloc}/api/version", timeout=LOOK_S).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("version"), str)


def ollama_models() -> tuple[str, list[str] | None]:
    """Ollama's address and its models; None where it does not answer. Raises UserError for an
    address that is none."""
    critic = Ollama(CriticConfig(provider="ollama", model=""))
    try:
        with critic.wire.within(LOOK_S):
            return critic.wire.shown, sorted(row.model or "" for row in critic.server.list().models)
    except CallError:
        return critic.wire.shown, None
    finally:
        critic.close()


def check_ollama() -> Iterator[Check]:
    url, models = ollama_models()
    if models is None:
        yield Check("ollama", "note", f"none at {url}; only a critic served by it needs it")
    else:
        names = ", ".join(models) or "none; `ollama pull NAME`"
        yield Check("ollama", "ok", f"answers at {url}; its models: {names}")
