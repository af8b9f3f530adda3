"""mlxreflect: make small language models reason better on your own Mac, and prove that it did.

The functions here do what the commands do. They are quiet, return what `--json` prints, and raise
`UserError` for what you can mend; its `hint` says how. `settings` are those of `--set`. A Mac does
not sleep while one of them works.

    recipe = mlxreflect.load_recipe("quickstart", ["seed=1"])
    summary = mlxreflect.run(recipe, "runs/first")
    print(summary["comparison"]["difference"], summary["comparison"]["p_exact"])
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxreflect.core.machine import awake

if TYPE_CHECKING:
    from mlxreflect.config.recipe import load_recipe as load_recipe
    from mlxreflect.config.schema import Recipe as Recipe
    from mlxreflect.core.errors import UserError as UserError
    from mlxreflect.core.records import Problem as Problem
    from mlxreflect.models.policy import Policy
    from mlxreflect.tasks.base import Task as Task

HOMES = {"load_recipe": "config.recipe", "Recipe": "config.schema", "UserError": "core.errors",
         "Problem": "core.records", "Task": "tasks.base"}  # fmt: skip
__all__ = [*HOMES, "compare", "evaluate", "load_policy", "resume", "run", "train"]


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used (PEP 562), so that `import mlxreflect` is cheap."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


@awake()
def run(recipe: "Recipe", folder: Path | str | None = None) -> dict[str, Any]:
    """Runs a recipe; returns its summary, with its `folder`, by default a new one in runs/."""
    from mlxreflect.runs.folder import carry_out, create_run
    from mlxreflect.runs.run import check_run

    check_run(recipe)
    return carry_out(create_run(recipe, Path(folder) if folder else None), named=True)


@awake()
def resume(folder: Path | str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Goes on with a run or a training that was stopped; returns its summary, with its `folder`.

    folder: or the mirror of one.
    """
    from mlxreflect.runs.folder import carry_out, open_folder, open_mirror
    from mlxreflect.runs.mirror import is_mirror

    if is_mirror(str(folder)):
        return carry_out(open_mirror(str(folder), settings=settings), named=True)
    return carry_out(open_folder(Path(folder), settings), named=True)


@awake()
def train(
    objective: str, data: str, out: Path | str, model: str = "tiny", settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains a model on your own data; returns the summary, with its `folder` and `adapter`."""
    from mlxreflect.config.recipe import load_job
    from mlxreflect.runs.folder import carry_out, create_job

    job = load_job(objective, model, data, settings)
    return carry_out(create_job(job, Path(out)), named=True)


_train = train  # the package of that name takes the function's place once it is imported


@awake()
def evaluate(
    spec: str, models: Sequence[str], adapters: Sequence[str] = (), out: Path | str | None = None,
    *, base: bool = False, limit: int = 0, settings: Sequence[str] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Evaluates models, and adapters on them; returns the results of each arm.

    Of several, each has its `comparison` with the first. base: also the model without its adapter.
    """
    from mlxreflect.core.ui import Ui
    from mlxreflect.evaluation.evaluate import find_spec
    from mlxreflect.evaluation.runner import evaluate_arms, line_up

    entries = line_up(models, adapters, [], [], base=base)
    folder, asked = Path(out) if out else None, find_spec(spec, limit, "", settings)
    return evaluate_arms(entries, asked, folder, "", Ui(quiet=True))


def compare(*arms: Path | str, alpha: float = 0.05, judge: str = "") -> dict[str, Any]:
    """Compares evaluated arms with the first: their folders, or one that holds several.

    judge: of open questions who judges, as in "ollama:NAME", or a recipe with a critic.
    """
    from contextlib import ExitStack

    from mlxreflect.core.ui import Ui
    from mlxreflect.evaluation.compare import Options, compare_all
    from mlxreflect.evaluation.judge import Judging, find_critic

    named, budget = find_critic(judge) if judge else (None, None)
    with ExitStack() as stack:
        judging = Judging(Ui(quiet=True), stack, named=named, budget=budget)
        return compare_all([Path(arm) for arm in arms], Options(alpha=alpha, judge=judging))


def load_policy(model: str, adapter: str = "", **keys: Any) -> "Policy":
    """Loads a model, with an adapter on it. keys: others of a recipe's [policy], such as batch."""
    from mlxreflect.config.schema import PolicyConfig
    from mlxreflect.models.load import load_policy as load

    return load(PolicyConfig.model_validate({"model": model, "adapter": adapter, **keys}))
