"""Where a model's files are, and why one could not be loaded, in words."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mlxreflect.errors import UserError
from mlxreflect.tables import PolicyConfig

# What loading raises for files that are not there, or are not as they should be.
LOAD_ERRORS = (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError,
               KeyError, TypeError, AttributeError, RuntimeError)  # fmt: skip


def model_folder(path: str) -> Path | None:
    """Where the files of a loaded model are: its folder, or the hub's cache."""
    if Path(path).is_dir():
        return Path(path)
    found = try_to_load_from_cache(path, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def load_fault(config: PolicyConfig, error: Exception, table: str) -> UserError:
    """Why a model or its adapter could not be loaded, and what mends that."""
    if isinstance(error, (HFValidationError, OSError)):  # the hub's errors are among the second
        return missing_model(config, error, table)
    return UserError(
        f"{table}.model = {config.model!r} cannot be loaded: {one_line(error)}",
        "give a model that mlx-lm supports (and an adapter made for it)",
    )


def missing_model(config: PolicyConfig, error: Exception, table: str) -> UserError:
    if config.adapter and not (Path(config.adapter) / "adapter_config.json").is_file():
        return UserError(
            f"policy.adapter = {config.adapter!r} is no adapter folder",
            "give a folder with adapter_config.json and adapters.safetensors",
        )
    if Path(config.model).is_dir():
        return UserError(
            f"{table}.model = {config.model!r} is no mlx-lm model folder: {one_line(error)}",
            "make one with: mlx_lm.convert --hf-path NAME --mlx-path DIR -q",
        )
    if config.model.startswith(("/", ".", "~")):
        return UserError(
            f"{table}.model = {config.model!r}: no such folder", "give a folder, or a hub name"
        )
    return UserError(
        f"{table}.model = {config.model!r}: no such folder, and the hub gave none "
        f"({type(error).__name__})",
        f"check the name and the connection, or run: hf download {config.model}",
    )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
