"""The commands that write files: export."""

from pathlib import Path
from typing import Annotated

import typer

from mlxreflect.cli_parts import Json, make_ui

app = typer.Typer()


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    format_: Annotated[
        str, typer.Option("--format", help="trl, sharegpt, mlx-chat, reasonset or reflectevo.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="A folder, or a .jsonl file; default: in the run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's training data in a form that others read; `train` reads it back."""
    from mlxreflect.exports.interchange import export as export_

    ui = make_ui(as_json)
    result = export_(run_dir, format_, out)
    ui.result(result)
    if not as_json:
        rows = {name: f"{count} rows" for name, count in result["files"].items()}
        ui.header({**rows, "written to": result["out"]})
