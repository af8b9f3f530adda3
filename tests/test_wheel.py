"""The wheel: what is in it, and that it runs alone, away from the checkout."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LIMIT = 2_000_000  # bytes
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
         "chat_template.jinja")  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # pip fetches hatchling into an environment of its own, unless it already exists.
    alone = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", *alone, "--outdir", str(out), str(ROOT)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--target", str(target), str(wheel)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return target


def test_the_wheel_holds_what_a_user_needs(wheel: Path) -> None:
    assert wheel.stat().st_size < LIMIT
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "evals"):
        beside = {f"mlxreflect/{folder}/{p.name}" for p in (ROOT / folder).iterdir()}
        assert beside
        assert {n for n in names if n.startswith(f"mlxreflect/{folder}/")} == beside
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "mlxreflect").rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == modules
    assert names >= {f"mlxreflect/models/tiny/{name}" for name in MODEL}
    assert "mlxreflect/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    kinds = (".py", ".toml", ".json", ".safetensors", ".jinja", ".j2", ".js", ".css", ".md",
             "/py.typed")  # fmt: skip
    for name in zipfile.ZipFile(wheel).namelist():
        top = name.partition("/")[0]
        assert top == "mlxreflect" or top.endswith(".dist-info"), name
        assert "test" not in name.lower() and "__pycache__" not in name
        if top == "mlxreflect":
            assert name.endswith(kinds), name


def test_every_file_is_as_it_is_in_the_checkout(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if name.startswith("mlxreflect/"):
            inside = ROOT / name
            beside = ROOT / name.removeprefix("mlxreflect/")
            same = inside if inside.is_file() else beside
            assert archive.read(name) == same.read_bytes(), name


# Runs the command line with the checkout taken off the path, and tells where things came from.
ALONE = """
import json, sys
root, site = sys.argv[1:3]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.path = [site, *(p for p in sys.path if p not in ("", root))]
sys.argv = ["mlxreflect", *sys.argv[3:]]
import mlxreflect
from mlxreflect.cli.main import main
from mlxreflect.config.toml import (bundled)
came = [mlxreflect.__file__, *map(str, [*bundled("recipes").values(), *bundled("evals").values()])]
if "--which" in sys.argv:
    print(json.dumps(came))
else:
    main()
"""


def alone(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-c", ALONE, str(ROOT), str(installed), *arguments],
        cwd=folder, env=env, check=True, capture_output=True, text=True,
    )  # fmt: skip


def test_the_installed_wheel_uses_its_own_files(installed: Path, tmp_path: Path) -> None:
    came = json.loads(alone(installed, tmp_path, "--which").stdout)
    assert len(came) >= 6
    for path in came:
        assert Path(path).is_relative_to(installed), path
        assert not Path(path).is_relative_to(ROOT), path


def test_the_installed_wheel_runs_the_quickstart(installed: Path, tmp_path: Path) -> None:
    settings = ["task.limit=8", "r3.wave=8", "r3.epochs=1", "eval.limit=8"]
    flags = [f"--set={setting}" for setting in settings]
    done = alone(installed, tmp_path, "run", "quickstart", *flags, "--json")
    summary = json.loads(done.stdout)
    assert (summary["policy"], summary["recipe"]) == ("tiny", "quickstart")
    assert (summary["problems"], summary["trained"]["n"]) == (8, 8)
    (run_dir,) = [p for p in (tmp_path / "runs").iterdir() if not p.is_symlink()]
    assert (run_dir / "adapter" / "adapters.safetensors").is_file()
    assert all((run_dir / "plots" / f"accuracy.{kind}").is_file() for kind in ("png", "svg"))
    shown = alone(installed, tmp_path, "show", str(run_dir))
    assert "not finished" not in shown.stdout


def test_the_wheel_declares_its_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
    assert "mlxreflect = mlxreflect.cli.main:main" in archive.read(entry).decode()
