"""The floors of the package: imports point down. See mlxreflect/README.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mlxreflect"
# A package imports from the floors below its own, and from what stands right of it on its own.
FLOORS = """
cli setup
runs
view report methods
evaluation critics train
tasks data graders models stats
config prompts
core
"""
ORDER = FLOORS.split()
# The one place where a lower floor names the methods: the schema has their tables and records.
REGISTRY = ("config/schema.py", "methods")


def imported_packages(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    modules = {f"{node.module}.{name.name}" for node in found for name in node.names}
    return {m.split(".")[1] for m in modules if m.startswith("mlxreflect.")}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("*/**/*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    own = name.split("/")[0]
    above = ORDER[: ORDER.index(own)]
    assert not [p for p in imported_packages(path) if p in above and (name, p) != REGISTRY]


def test_no_module_stands_outside_of_a_package() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
