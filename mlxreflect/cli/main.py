"""The command line: parse, call, exit code. Heavy imports stand inside the commands."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxreflect.cli import annotate
from mlxreflect.cli import evaluate as cli_evidence
from mlxreflect.cli import files as cli_files
from mlxreflect.cli.options import Json, Set, make_ui, require_mlx
from mlxreflect.core.errors import UserError, is_full, no_space

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe
    from mlxreflect.core.ui import Ui
    from mlxreflect.runs.folder import RunFolder


app = typer.Typer(
    help="Make small language models reason better on your own machine, and prove that they did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RECIPES = "A TOML file, or quickstart, r3, rel, preflexor, reflectevo, traces."


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help=RECIPES)],
    set_: Set = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where to; default: under runs/.")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Show recipe, prompts and costs; train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: learn from its problems, then compare base and trained."""
    loaded, ui = checked_recipe(recipe, set_), make_ui(as_json)
    if dry_run:
        from mlxreflect.config.recipe import dump_recipe
        from mlxreflect.setup.dry_run import dry

        if as_json:
            ui.result(dry(loaded))
        else:
            ui.line(dump_recipe(loaded))  # also where the data cannot be loaded
            ui.line(dry(loaded)["text"])
        return
    from mlxreflect.runs.folder import create_run

    carry_out(create_run(loaded, run_dir), ui)


def checked_recipe(name: str, set_: list[str] | None) -> "Recipe":
    """A recipe whose task and evaluation are there, and fit it."""
    from mlxreflect.config.recipe import eval_spec, load_recipe
    from mlxreflect.tasks import check_exam, get_task

    recipe = load_recipe(name, set_ or [])
    get_task(recipe.task.name)
    spec = eval_spec(recipe)
    check_exam(spec)
    require_mlx()
    from mlxreflect.runs.measuring import check_measured

    check_measured(recipe, spec)
    return recipe


@app.command()
def train(
    objective: Annotated[str, typer.Argument(help="sft, dpo, ipo, exo_pair, orpo or grpo.")],
    data: Annotated[str, typer.Option(help="A file, a folder with train.jsonl, a hub data set.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    model: Annotated[str, typer.Option(help="Hub name, path, or tiny.")] = "tiny",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train a model on data of your own: LoRA or all weights, preferences, responses or groups."""
    from mlxreflect.config.job import load_job

    job = load_job(objective, model, data, set_ or [])
    require_mlx()
    from mlxreflect.runs.folder import create_job

    carry_out(create_job(job, out), make_ui(as_json))


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="The folder that `run` or `train` made.")],
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Go on with a run or a training that was stopped, from its last commit."""
    require_mlx()
    from mlxreflect.runs.folder import open_folder

    carry_out(open_folder(run_dir, set_ or []), make_ui(as_json))


def carry_out(folder: "RunFolder[Any]", ui: "Ui") -> None:
    """Does what is left of a run or a training, and shows what it came to."""
    from mlxreflect.runs.folder import JOB, Stopped, carried_out

    is_training = folder.kind is JOB
    try:
        with carried_out(folder):
            if is_training:
                from mlxreflect.runs.fit import train as fit

                summary = fit(folder, ui)
            else:
                from mlxreflect.runs.run import execute

                summary = execute(folder, ui)
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        raise typer.Exit(130) from None
    if ui.json:
        ui.result(summary)
        return
    from mlxreflect.report.show import show_summary, show_training

    for part in [show_training(summary)] if is_training else show_summary(folder.path):
        ui.table(part)


@app.command()
def show(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    problem: Annotated[str, typer.Option(help="A problem's id, or its first digits.")] = "",
    status: Annotated[str, typer.Option(help="Only problems with this status.")] = "",
) -> None:
    """Show a run, or one problem's whole story."""
    from mlxreflect.report.show import show_problem, show_run

    ui = make_ui(False)
    if (run_dir / "job.json").is_file():
        from mlxreflect.core.journal import read_json
        from mlxreflect.report.show import show_training

        if not (run_dir / "summary.json").is_file():
            raise UserError(
                f"{run_dir} is not finished",
                f"go on with it by: mlxreflect resume {shlex.quote(str(run_dir))}",
            )
        ui.table(show_training(read_json(run_dir / "summary.json")))
        return
    parts = show_problem(run_dir, problem) if problem else show_run(run_dir, status or None)
    for part in parts:
        ui.table(part)


@app.command()
def solve(
    question: Annotated[
        str, typer.Argument(help="In words, or a task's JSON; countdown: numbers 3 4 5, target 35.")
    ],
    model: Annotated[str, typer.Option(help="Hub name, path, or tiny.")],
    adapter: Annotated[str, typer.Option(help="A LoRA folder to put on it.")] = "",
    critic: Annotated[
        str, typer.Option(help="none, self, solver, another provider, or a recipe's.")
    ] = "self",
    rounds: Annotated[int, typer.Option(min=2, help="Answers at most.")] = 4,
    integrate: Annotated[
        bool, typer.Option("--integrate", help="At the end, one answer of them all.")
    ] = False,
    task: Annotated[str, typer.Option(help="A task, such as countdown; default: none.")] = "",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Answer one question in rounds: think, criticise, think better, answer again."""
    require_mlx()
    from mlxreflect.config.schema import PolicyConfig
    from mlxreflect.evaluation import solve as solving
    from mlxreflect.models.load import load_policy

    chosen = solving.find_task(task)
    spec = solving.solve_spec(chosen, critic, rounds, integrate, set_ or [])
    problem, ui = solving.read_question(question, chosen), make_ui(as_json)
    policy = load_policy(PolicyConfig(model=model, adapter=adapter))
    with ui.progress("solving", 1) as bar:
        result = solving.solve(policy, chosen, problem, spec, bar.update_text)
        bar.advance()
        given = result["took"]["samples"]
        bar.update_text(f"answers given: {given:.0f}, rounds at most: {spec.chain.rounds}")
    ui.result(result)
    if not as_json:
        for part in solving.render_solved(result):
            ui.table(part)


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="A TOML file or a bundled name.")] = "",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check that a run has what it needs: memory, disk, model, data, and a token of each critic."""
    if set_ and not recipe:
        raise UserError(
            f"--set {set_[0]}: no recipe to set it in", "give one: mlxreflect doctor r3"
        )
    loaded = checked_recipe(recipe, set_) if recipe else None
    require_mlx()
    from mlxreflect.setup.doctor import doctor as doctor_
    from mlxreflect.setup.doctor import render_doctor

    ui = make_ui(as_json)
    result = doctor_(loaded, ui)
    ui.result(result)
    ui.table(render_doctor(result))
    if not result["ok"]:
        raise typer.Exit(1)


app.add_typer(cli_evidence.app)  # eval, compare, report, grade, decontaminate
app.add_typer(cli_files.app)  # export, fuse, init
app.add_typer(annotate.app)


def main() -> None:
    """A person's mistake is two lines and exit code 2; anything else keeps its traceback."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        app()
    except UserError as error:
        fail(error.message, error.hint)
    except PermissionError as error:
        fail(f"{error.filename}: permission denied", "give a folder that you may write to")
    except (OSError, RuntimeError) as error:
        if not is_full(error):
            raise
        full = no_space(error, "free some, then give the same command again")
        fail(full.message, full.hint)


def fail(message: str, hint: str) -> None:
    """Exactly two lines, whatever the data quoted in them holds."""
    from mlxreflect.core.ui import safe_text

    for label, text in (("error", message), ("hint", hint)):
        print(f"{label}: {safe_text(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(2)
