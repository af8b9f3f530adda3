"""Where what is worth keeping between runs is kept."""

import os
from pathlib import Path

import platformdirs


def cache_path(setting: str, name: str) -> Path | None:
    """setting: of a recipe; "" is `name` in the user's cache folder, "off" None, else a path.

    The environment variable MLXREFLECT_CACHE replaces the user's cache folder.
    """
    if setting == "off":
        return None
    if setting:
        return Path(setting).expanduser()
    folder = os.environ.get("MLXREFLECT_CACHE") or platformdirs.user_cache_dir("mlxreflect")
    return Path(folder).expanduser() / name
