"""The commands that prepare a run: init, doctor, annotate, decontaminate."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mlxreflect.cli import (
    PREPARE,
    Json,
    Set,
    checked_recipe,
    make_ui,
    recipe_argument,
    require_mlx,
)
from mlxreflect.core.errors import UserError

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe
    from mlxreflect.core.ui import Ui

app = typer.Typer()
ON_HOSTS = "Hosts that are to share the work: a file of mlx.launch. They are checked instead."


@app.command(
    rich_help_panel=PREPARE,
    epilog="Example: mlxreflect init --task mine.jsonl --critic ollama:qwen2.5:7b",
)
def init(
    strategy: Annotated[str, Option(help="The method: a bundled recipe's name.")] = "",
    task: Annotated[str, Option(help="A task, or your own file or hub data set.")] = "",
    question: Annotated[str, Option(help="Column of your data with the question.")] = "",
    answer: Annotated[str, Option(help="Column of your data with the answer.")] = "",
    answer_type: Annotated[str, Option(help="The kind of answer your data has.")] = "",
    model: Annotated[str, Option(help="Hub name, folder, tiny, or a profile: qwen3-4b.")] = "",
    critic: Annotated[
        str, Option(metavar="PROVIDER:MODEL", help="As ollama:qwen2.5:7b; solver; self.")
    ] = "",
    critic_url: Annotated[str, Option(help="Address of the critic's server.")] = "",
    out: Annotated[
        Path | None, Option(help="The file to write; default: METHOD-TASK.toml.")
    ] = None,
    yes: Annotated[bool, Option("--yes", help="Ask nothing: take what is found.")] = False,
    force: Annotated[bool, Option("--force", help="Replace a file that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write your own recipe. It asks for what you do not give, and offers the critics it finds."""
    from mlxreflect.core.ui import safe_text
    from mlxreflect.setup.init import (
        Asker,
        describe_data,
        place_of,
        refuse_to_overwrite,
        settle,
        write_recipe,
    )

    ui = make_ui(as_json)
    if out:
        refuse_to_overwrite(out, force)
    given = {
        "strategy": strategy, "task": task, "question": question, "answer": answer,
        "answer_type": answer_type, "model": model, "critic": critic, "base_url": critic_url,
    }  # fmt: skip
    asks = sys.stdin.isatty() and not yes and not as_json

    def ask(label: str, suggested: str) -> str:
        reply: str = typer.prompt(safe_text(label), default=suggested)
        return reply.strip()

    choices = settle(Asker(given, ask if asks else None, yes, ui.line))
    place = out or place_of(choices)
    refuse_to_overwrite(place, force)
    result = write_recipe(choices, place, force)
    ui.result(result)
    name = shlex.quote(result["recipe"])
    ui.line(f"written: {result['recipe']}")
    for line in describe_data(result):
        ui.line(line)
    ui.line(f"look first: mlxreflect doctor {name}")
    ui.line(f"dry run: mlxreflect run {name} --dry-run\nthen: mlxreflect run {name}")


@app.command(rich_help_panel=PREPARE, epilog="Example: mlxreflect doctor quickstart")
def doctor(
    recipe: Annotated[
        str, recipe_argument("A TOML file or a bundled name; none: only this machine.")
    ] = "",
    set_: Set = None,
    hosts: Annotated[Path | None, Option(metavar="FILE", help=ON_HOSTS)] = None,
    as_json: Json = False,
) -> None:
    """Check what a run needs: model, data, critics, memory, disk; and how long it takes.

    With --hosts: whether each of several hosts can share the work, and how fast they exchange.
    """
    if set_ and not recipe:
        raise UserError(
            f"--set {set_[0]}: no recipe to set it in",
            f"give one: mlxreflect doctor r3 --set {shlex.quote(set_[0])}",
        )
    loaded = checked_recipe(recipe, set_) if recipe else None
    require_mlx()
    if hosts:
        look_at_hosts(hosts, loaded, make_ui(as_json))
        return
    from mlxreflect.setup.doctor import doctor as doctor_
    from mlxreflect.setup.doctor import render_doctor

    ui = make_ui(as_json)
    result = doctor_(loaded, ui, timed=True)
    ui.result(result)
    ui.table(render_doctor(result))
    if not result["ok"]:
        raise typer.Exit(1)


def look_at_hosts(file: Path, recipe: "Recipe | None", ui: "Ui") -> None:
    """Shows what several hosts have, and what goes between them; code 2 where one lacks a thing."""
    from mlxreflect.setup.hosts import check_hosts, render_hosts
    from mlxreflect.setup.launch import read_hosts

    result = check_hosts(read_hosts(file), recipe, ui)
    ui.result(result)
    ui.table(render_hosts(result))
    if not result["ok"]:
        raise typer.Exit(2)


@app.command(rich_help_panel=PREPARE, epilog="Example: mlxreflect annotate mine.toml worked.md")
def annotate(
    recipe: Annotated[str, recipe_argument("A TOML file, or the name of a bundled recipe.")],
    file: Annotated[Path, Argument(help="The .md or .jsonl of your worked solutions.")],
    problem: Annotated[str, Option(help="Its id, or first digits; default: the next.")] = "",
    working: Annotated[
        Path | None, Option(help="A file with your working; default: your editor.")
    ] = None,
    no_expand: Annotated[
        bool, Option("--no-expand", help="Keep your words; ask no critic.")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Solve a training problem in your editor; a right solution is added to your worked ones.

    Write your working as it comes, with its wrong turns, and the final answer as
    <answer>…</answer> at its end. The critic writes it out, or with --no-expand it stays in your
    own words; the task's grader checks the answer.
    """
    from mlxreflect.config.recipe import load_recipe
    from mlxreflect.methods.rel_worked import annotate_problem

    ui = make_ui(as_json)
    loaded = load_recipe(recipe, set_ or [])
    found = annotate_problem(loaded, file, problem, working, expand=not no_expand, tell=ui.line)
    ui.result(found)
    ui.line(found["text"])
    said = f"added to {file}" if found["kept"] else f"not kept: {found['reason']}"
    ui.line(f"problem {found['problem']}: {said}")
    if not found["kept"]:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=PREPARE,
    epilog="Example: mlxreflect decontaminate mine.jsonl --against gsm8k --out clean.jsonl",
)
def decontaminate(
    data: Annotated[str, Argument(help="A file, a folder, or a hub data set.")],
    against: Annotated[list[str], Option(metavar="SPEC", help="An eval spec, a task, or a file.")],
    out: Annotated[Path | None, Option(help="A JSONL file for the clean rows.")] = None,
    ngram: Annotated[int, Option(min=0, help="Words in a row; 0: whole texts only.")] = 13,
    config: Annotated[str, Option(help="Configuration of a hub data set.")] = "",
    split: Annotated[str, Option(help="Split of a folder or a hub data set.")] = "train",
    as_json: Json = False,
) -> None:
    """Find the rows of training data that occur in an evaluation, and write the others."""
    require_mlx()
    from mlxreflect.config.schema import DataConfig
    from mlxreflect.evaluation.contamination import decontaminate as decontaminate_
    from mlxreflect.evaluation.contamination import render_decontaminated

    ui = make_ui(as_json)
    names = [name for given in against for name in given.split(",") if name]
    asked = DataConfig(source=data, config=config, split=split, against=names, ngram=ngram)
    result = decontaminate_(asked, out, ui)
    ui.result(result)
    ui.table(render_decontaminated(result))
