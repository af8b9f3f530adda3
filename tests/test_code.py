"""What no module does, and what a start of the command line loads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mlxreflect.cli.main import app

PACKAGE = Path(__file__).parent.parent / "mlxreflect"
HEAVY = {"mlx", "mlx_lm", "transformers", "pydantic", "matplotlib", "numpy", "scipy", "datasets",
         "huggingface_hub", "httpx", "tenacity", "boto3", "botocore",
         "bm25s", "networkx"}  # fmt: skip
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# ---- what a start loads --------------------------------------------------------------------------

LOADED = """
import json, sys
sys.argv = ["mlxreflect", *sys.argv[1:]]
from mlxreflect.cli.main import main
if len(sys.argv) > 1:
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EACH = [pytest.param((c, "--help"), id=c, marks=pytest.mark.slow) for c in COMMANDS]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), *EACH])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stderr))
    assert "typer" in loaded and "mlxreflect" in loaded
    # Typer imports pydantic by itself, for the types of a command's arguments.
    assert not loaded & (HEAVY - {"pydantic"} if len(arguments) > 1 else HEAVY)
    assert ("--help" in arguments) == ("Usage" in done.stdout)


def test_the_heavy_ones_are_those_that_the_project_uses() -> None:
    used = {d.partition(".")[0] for name in SOURCES for d in imports(SOURCES[name])}
    assert used >= HEAVY - {"numpy", "scipy", "transformers"}  # which mlx-lm imports


# ---- what no module does -------------------------------------------------------------------------

RUNNERS = {"eval", "exec", "compile", "__import__", "execfile", "breakpoint"}
LOADERS = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle", "sympy",
           "torch"}  # fmt: skip
SHELLS = {"system", "popen", "getoutput", "getstatusoutput"}


def faults(tree: ast.AST) -> list[str]:
    """Where a module runs text as code, unpickles, starts a shell or swallows every exception."""
    found = []
    for node in ast.walk(tree):
        at = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in RUNNERS:
                found.append(f"{at}: {node.func.id}()")
            if isinstance(node.func, ast.Attribute) and node.func.attr in SHELLS:
                found.append(f"{at}: .{node.func.attr}()")
            for keyword in node.keywords:
                on = not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and on:
                    found.append(f"{at}: {keyword.arg}")
            named = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if named == "suppress" and any(is_blanket(argument) for argument in node.args):
                found.append(f"{at}: suppresses everything")
        if isinstance(node, ast.ExceptHandler) and (node.type is None or is_blanket(node.type)):
            found.append(f"{at}: a blanket except")
    found += [f"imports {d}" for d in imports(tree) if d.partition(".")[0] in LOADERS]
    return found


def is_blanket(node: ast.expr) -> bool:
    if isinstance(node, ast.Tuple):
        return any(is_blanket(element) for element in node.elts)
    return isinstance(node, ast.Name) and node.id in ("Exception", "BaseException")


@pytest.mark.parametrize("name", list(SOURCES))
def test_no_module_runs_text_or_swallows_everything(name: str) -> None:
    found = faults(SOURCES[name])
    if name == "graders/own.py":  # runs a grader that its user wrote, which raises anything
        assert len(found) == 1 and found.pop().endswith("a blanket except")
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec(a)", "import pickle", "from pickle import loads", "os.system('ls')",
        "try:\n    a\nexcept:\n    b", "try:\n    a\nexcept Exception:\n    b",
        "try:\n    a\nexcept (ValueError, BaseException) as e:\n    b",
        "run('ls', shell=True)", "np.load(p, allow_pickle=flag)", "suppress(Exception)",
        "def f():\n    import sympy",
    ],
)  # fmt: skip
def test_the_search_for_faults_finds_them(code: str) -> None:
    assert len(faults(ast.parse(code))) == 1


def test_the_search_for_faults_finds_no_others() -> None:
    fine = "mx.eval(a)\nmodel.eval()\nrun(a, shell=False)\ntry:\n    a\nexcept OSError:\n    b"
    assert not faults(ast.parse(fine))


def test_one_file_loads_models_and_generates() -> None:
    parts = ("mlx_lm.generate", "mlx_lm.sample_utils", "mlx_lm.load")
    loaders = {f"mlx_lm.utils.{name}" for name in ("load", "load_model", "sharded_load")}

    def loads(dotted: str) -> bool:
        return dotted.startswith(parts) or dotted in loaders

    folders = {n.partition("/")[0] for n, tree in SOURCES.items() if any(map(loads, imports(tree)))}
    assert folders == {"models"}


def test_there_is_no_module_of_leftovers() -> None:
    names = {Path(part).stem for name in SOURCES for part in name.split("/")}
    assert not names & {"util", "utils", "helpers", "common", "misc"}
