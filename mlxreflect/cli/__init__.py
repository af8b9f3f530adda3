"""Commands of `mlxreflect`, one file a group; here what they share: options, completion."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from typer import Argument, Option

from mlxreflect.core.errors import UserError

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe
    from mlxreflect.core.ui import Ui

# The groups of commands in --help.
LEARN, EVALUATE, PREPARE, USE = "Learn", "Evaluate", "Prepare", "Use the result"


# ---- completion ----------------------------------------------------------------------------------


def matching(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def below(incomplete: str) -> list[Path]:
    """Returns what stands in the folder that is being typed."""
    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []


def toml_names(kind: Literal["recipes", "evals"]) -> Callable[[str], list[str]]:
    """Returns the completion of the bundled `recipes` or `evals`, of files and folders."""

    def complete(incomplete: str) -> list[str]:
        from mlxreflect.config.toml import bundled

        found = below(incomplete)
        folders = [f"{path}/" for path in found if path.is_dir()]
        files = [str(path) for path in found if path.suffix == ".toml"]
        return matching([*bundled(kind), *folders, *files], incomplete)

    return complete


def run_folders(incomplete: str) -> list[str]:
    """Returns the runs below runs/, `runs/latest` among them, and any other folder."""
    runs = [str(path) for path in below("runs/") if path.is_dir()]
    others = [f"{path}/" for path in below(incomplete) if path.is_dir()]
    return matching([*runs, *others], incomplete)


def keys_of(table: str) -> Callable[[str], list[str]]:
    """Returns the completion of `--set` for a recipe, an eval spec or a training."""

    def complete(incomplete: str) -> list[str]:
        from mlxreflect.config import schema
        from mlxreflect.config.toml import all_keys

        models: Any = {"recipe": schema.Recipe, "spec": schema.EvalSpec, "training": schema.Job}
        known = all_keys(models[table]).items()
        return matching((f"{key}=" for key, usual in known if usual is not None), incomplete)

    return complete


# ---- options -------------------------------------------------------------------------------------


def setting(table: str) -> Any:
    said = f"Override a key of the {table}; repeatable."
    return Option("--set", metavar="KEY=VALUE", help=said, autocompletion=keys_of(table))


def recipe_argument(said: str) -> Any:
    return Argument(help=said, autocompletion=toml_names("recipes"))


def folder(path: Path | None) -> Path | None:
    """Returns the run that `runs/latest` names now: it may soon name another one."""
    return path.parent / path.readlink() if path and path.is_symlink() else path


Set = Annotated[list[str] | None, setting("recipe")]
SetSpec = Annotated[list[str] | None, setting("spec")]
SetTraining = Annotated[list[str] | None, setting("training")]
Json = Annotated[bool, Option("--json", help="Print one JSON object on stdout.")]
RUN_DIR = "The folder of a run, such as runs/latest."
RunFolder = Annotated[
    Path, Argument(metavar="RUN_DIR", help=RUN_DIR, callback=folder, autocompletion=run_folders)
]
SPEC = "An eval spec (file or bundled name) or a task."
Spec = Annotated[str, Argument(help=SPEC, autocompletion=toml_names("evals"))]
Model = Annotated[str, Option(help="Hub name, local folder, or tiny.")]


# ---- what they do --------------------------------------------------------------------------------


def make_ui(as_json: bool) -> "Ui":
    from mlxreflect.core.ui import Ui

    return Ui(json=as_json)


def require_mlx() -> None:
    """Raises UserError where mlx has no backend: on Linux an extra has to name one."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"mlx has no backend here ({str(error).splitlines()[0]})",
            "install one: pip install 'mlxreflect[cpu]', or 'mlxreflect[cuda]' on an NVIDIA GPU",
        ) from None


def checked_recipe(name: str, set_: list[str] | None) -> "Recipe":
    """Returns a recipe whose task and evaluation are there, and fit it."""
    from mlxreflect.config.recipe import load_recipe

    recipe = load_recipe(name, set_ or [])
    require_mlx()
    from mlxreflect.runs.run import check_run

    check_run(recipe)
    return recipe


def fail(message: str, hint: str) -> NoReturn:
    """Prints what is wrong and what mends it, and ends with code 2."""
    from mlxreflect.core.ui import say_error

    say_error(message, hint)
    sys.exit(2)
