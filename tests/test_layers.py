"""Imports point one way, the command line starts light, and no code runs what it has read."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mlxreflect"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module may import from layers above its own line, and inside its own folder; never from below.
LAYERS: list[set[str]] = [
    {"errors"},
    {"records", "settings", "seeds", "templates", "cachedir", "cachefile"},
    {"texts", "fields", "standing"},
    {"prompts", "methods"},
    {"reflections"},
    {"tables", "wording"},
    {"quality"},
    {"asked"},
    {"consistency"},
    {"recipe"},
    {"plans", "draft"},
    {"train.lanes"},
    {"train.cpu"},
    {"stats", "characters"},
    {"banned"},
    {"pairs", "ui", "chat", "loading", "decontaminate", "mathworker"},
    {"evidence", "reflected", "train.losses", "train.batches", "train.prefix"},
    {"tasks", "train.objectives", "results"},
    {"job", "anchor", "commits", "train.sources", "train.steps", "worked"},
    {"train.messages"},
    {"train.methods"},
    {"train.forms"},
    {"train.kept"},
    {"train.formats"},
    {"critics.base", "critics.cache", "critics.faults", "critics.ledger"},
    {"policy", "critics.client", "run", "train.references"},
    {"train.masks", "train.lora", "train.network"},
    {"train.encode", "train.merge", "train.memory", "train.scoring"},
    {"train.trainer", "answers"},
    {"critics", "train"},
    {"recursion"},
    {"rounds"},
    {"evaluate"},
    {"exams"},
    {"strategies", "tiny", "fuse"},
    {"served", "chains_eval"},
    {"plots", "story", "totals", "rescore"},
    {"exports"},
    {"lineup", "retries"},
    {"answering"},
    {"quick", "solve", "summary", "measuring"},
    {"loop", "show", "course", "checks", "estimate"},
    {"offers"},
    {"dry", "finetune", "doctor", "wizard"},
    {"cli_parts"},
    {"cli_evidence", "cli_files", "annotate"},
    {"cli"},
    {"__main__"},
]
# Nothing but data in, data out: no model, no network; and evidence, which only reads folders.
PURE = ("records", "settings", "tables", "recipe", "plans", "seeds", "prompts", "templates",
        "wording", "pairs", "reflected", "quality", "stats", "evidence", "tasks", "errors",
        "job", "decontaminate", "reflections", "standing")  # fmt: skip
HEAVY = {"mlx", "mlx_lm", "transformers", "pydantic", "matplotlib", "numpy", "scipy", "datasets",
         "huggingface_hub", "ollama", "httpx", "tenacity", "boto3", "botocore",
         "bm25s"}  # fmt: skip


def module_name(path: Path) -> str:
    """tasks/rows.py → tasks.rows, tasks/__init__.py → tasks, __init__.py → ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def internal(name: str) -> set[str]:
    """The project's own modules that a module imports: `from mlxreflect.tasks import rows` too."""
    found = set()
    for dotted in imports(SOURCES[name]):
        package, _, rest = dotted.partition(".")
        if package != "mlxreflect":
            continue
        while rest and rest not in SOURCES:  # what remains is a name inside the module
            rest = rest.rpartition(".")[0]
        found.add(rest)
    return found - {name}


def layer(name: str) -> int:
    """The layer that names the module, else the one that names its folder."""
    while name:
        for number, members in enumerate(LAYERS):
            if name in members:
                return number
        name = name.rpartition(".")[0]
    return -1


MODULES = sorted(set(SOURCES) - {""})


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    mine = layer(name)
    assert mine >= 0, f"{name} has no place in LAYERS"
    folder = name.partition(".")[0]
    for imported in internal(name):
        same_folder = "." in imported + name and imported.partition(".")[0] == folder
        allowed = layer(imported) < mine or (same_folder and layer(imported) <= mine)
        assert allowed, f"{name} imports {imported}, which is not below it"


def test_every_layer_is_there() -> None:
    for member in set().union(*LAYERS):
        assert member in SOURCES, f"{member} in LAYERS is no module"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: internal(name) - {""} for name in MODULES}
    assert sum(map(len, graph.values())) > 100  # the imports were found
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def test_the_package_itself_imports_nothing() -> None:
    assert not list(imports(SOURCES[""]))


@pytest.mark.parametrize("name", [m for m in MODULES if m.partition(".")[0] in PURE])
def test_pure_modules_touch_no_model_and_no_process(name: str) -> None:
    roots = {dotted.partition(".")[0] for dotted in imports(SOURCES[name])}
    if name != "seeds":  # hands mlx its seed
        assert not roots & {"mlx", "mlx_lm"}
    assert not roots & {"subprocess", "socket", "httpx", "ollama", "urllib", "requests", "sympy"}


def test_one_file_loads_models_and_generates() -> None:
    parts = ("mlx_lm.generate", "mlx_lm.sample_utils", "mlx_lm.load")
    loaders = {f"mlx_lm.utils.{name}" for name in ("load", "load_model", "sharded_load")}

    def loads(dotted: str) -> bool:
        return dotted.startswith(parts) or dotted in loaders

    assert {n for n in MODULES if any(map(loads, imports(SOURCES[n])))} == {"policy"}
    # Files and packed weights are for those who write models; nobody takes the module as a whole.
    users = {n: {d for d in imports(SOURCES[n]) if d.startswith("mlx_lm.utils")} for n in MODULES}
    assert {n for n, names in users.items() if names} == {"policy", "fuse", "train.merge"}
    assert all(d.count(".") == 2 for names in users.values() for d in names)


def test_only_the_command_line_shows_runs() -> None:
    assert {n for n in MODULES if "show" in internal(n)} == {"cli"}
    assert {n for n in MODULES if "story" in internal(n)} == {"show"}


def test_there_is_no_module_of_leftovers() -> None:
    names = {part for name in MODULES for part in name.split(".")}
    assert not names & {"util", "utils", "helpers", "common", "misc"}


# ---- what a start loads --------------------------------------------------------------------------

LOADED = """
import json, sys
sys.argv = ["mlxreflect", *sys.argv[1:]]
from mlxreflect.cli import main
if len(sys.argv) > 1:
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""
COMMANDS = ("run", "resume", "show", "eval", "compare", "report", "grade", "train", "fuse",
            "doctor", "decontaminate", "solve", "export", "init", "annotate")  # fmt: skip
EACH = [pytest.param((c, "--help"), id=c, marks=pytest.mark.slow) for c in COMMANDS]


@pytest.mark.parametrize("arguments", [(), ("--help",), *EACH])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stderr))
    assert "typer" in loaded and "mlxreflect" in loaded
    # Typer imports pydantic by itself, for the types of a command's arguments.
    assert not loaded & (HEAVY - {"pydantic"} if len(arguments) > 1 else HEAVY)
    assert bool(arguments) == ("Usage" in done.stdout)


def test_the_heavy_ones_are_those_that_the_project_uses() -> None:
    used = {d.partition(".")[0] for name in MODULES for d in imports(SOURCES[name])}
    assert used >= HEAVY - {"numpy", "scipy"}


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


@pytest.mark.parametrize("name", ["", *MODULES])
def test_no_module_runs_text_or_swallows_everything(name: str) -> None:
    assert not faults(SOURCES[name])


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
