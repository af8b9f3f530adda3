"""`mlxreflect annotate`: a person's worked solution of a problem, written out, graded and kept."""

from pathlib import Path
from typing import Annotated

import typer

from mlxreflect.cli.options import Json, Set, make_ui

app = typer.Typer()


@app.command()
def annotate(
    recipe: Annotated[str, typer.Argument(help="A TOML file or a bundled name, such as rel.")],
    file: Annotated[Path, typer.Argument(help="The .md or .jsonl that rel.human is to name.")],
    problem: Annotated[str, typer.Option(help="Its id, or first digits; default: the next.")] = "",
    working: Annotated[
        Path | None, typer.Option(help="A file with your working; default: your editor.")
    ] = None,
    no_expand: Annotated[
        bool, typer.Option("--no-expand", help="Keep it as it is, unseen by the critic.")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Solve a training problem in your editor; what is right is added to your worked solutions.

    Write your working as it comes, with its wrong turns, and the final answer as
    <answer>…</answer> at its end. The critic writes it out, or with --no-expand it is kept in your
    own words; the task's grader looks at the answer.
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
