"""`import mlxreflect` in a script: what it costs, and that it does what the commands do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.trainings import PAIRS, write

import mlxreflect

SMALL = ["task.limit=6", "r3.wave=3", "r3.epochs=1", "eval.limit=8", "eval.max_new_tokens=32",
         "policy.max_new_tokens=32"]  # fmt: skip


def test_importing_it_is_cheap_and_every_name_is_there() -> None:
    code = """
import sys, mlxreflect
heavy = [m for m in ("mlx", "numpy", "pydantic", "rich", "typer", "scipy") if m in sys.modules]
print(heavy, mlxreflect.UserError.__name__, mlxreflect.Recipe.__name__, "mlx.core" in sys.modules)
print(sorted(n for n in mlxreflect.__all__ if not callable(getattr(mlxreflect, n))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[] UserError Recipe False", "[]"]
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = mlxreflect.nope


def test_a_run_from_recipe_to_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = mlxreflect.load_recipe("quickstart", SMALL)
    assert isinstance(recipe, mlxreflect.Recipe) and recipe.r3.wave == 3
    summary = mlxreflect.run(recipe)
    folder = Path(summary["folder"])
    assert folder.parent == Path("runs") and folder.name == Path("runs/latest").readlink().name
    written = json.loads((folder / "summary.json").read_text())
    assert summary == {**written, "folder": str(folder)}
    assert mlxreflect.resume("runs/latest") == {**written, "folder": str(folder.resolve())}
    found = mlxreflect.compare(folder / "eval" / "base", folder / "eval" / "trained")
    assert found["n"] == 8 and found["p_exact"] == summary["comparison"]["p_exact"]
    with pytest.raises(mlxreflect.UserError, match="already exists"):
        mlxreflect.run(recipe, folder)
    with pytest.raises(mlxreflect.UserError, match="nope"):
        mlxreflect.run(
            recipe.model_copy(update={"task": recipe.task.model_copy(update={"name": "nope"})})
        )
    assert capfd.readouterr() == ("", "")


def test_train_evaluate_and_load(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "pairs.jsonl", PAIRS)
    summary = mlxreflect.train("dpo", str(data), tmp_path / "out", settings=["data.limit=8"])
    assert summary["steps"] == 1 and Path(summary["adapter"], "adapters.safetensors").is_file()
    arms = mlxreflect.evaluate(
        "countdown", ["tiny"], [summary["adapter"]], tmp_path / "eval", base=True, limit=6,
        settings=["max_new_tokens=24"],
    )  # fmt: skip
    assert [arm["n"] for arm in arms] == [6, 6]
    assert arms[0]["comparison"] is None and arms[1]["comparison"]["n"] == 6
    assert mlxreflect.compare(tmp_path / "eval")["p_exact"] == arms[1]["comparison"]["p_exact"]
    policy = mlxreflect.load_policy("tiny", summary["adapter"], batch=2)
    prompt = policy.encode([{"role": "user", "content": "1 + 1"}])
    [one] = policy.generate(
        [prompt], temperature=0.0, top_p=1.0, max_new_tokens=4, batch=1, seed=[0]
    )
    assert 0 < len(one.token_ids) <= 4
    with pytest.raises(mlxreflect.UserError, match="nope"):
        mlxreflect.train("nope", str(data), tmp_path / "other")
    assert capfd.readouterr() == ("", "")
