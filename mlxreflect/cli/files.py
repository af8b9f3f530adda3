"""The commands that write files: export, fuse, init."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlxreflect.cli.options import Json, make_ui, require_mlx

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
    from mlxreflect.report.export import export as export_

    ui = make_ui(as_json)
    result = export_(run_dir, format_, out)
    ui.result(result)
    if not as_json:
        rows = {name: f"{count} rows" for name, count in result["files"].items()}
        ui.header({**rows, "written to": result["out"]})


@app.command()
def fuse(
    model: Annotated[str, typer.Option(help="Hub name, path, or tiny.")],
    out: Annotated[Path, typer.Option(help="Where to; a folder that is not there yet.")],
    adapter: Annotated[str, typer.Option(help="An adapter's folder; none: only dequantise.")] = "",
    quantize: Annotated[int, typer.Option(help="Bits: 4 or 8; 0: plain weights.")] = 0,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="One more prompt to compare.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its model, and check that the new model answers as both did."""
    require_mlx()
    from mlxreflect.models.fuse import fuse as fuse_
    from mlxreflect.models.fuse import render_fused

    ui = make_ui(as_json)
    result = fuse_(model, adapter, out, quantize, prompt or [], ui)
    ui.result(result)
    ui.table(render_fused(result))


@app.command()
def init(
    strategy: Annotated[str, typer.Option(help="The method: a bundled recipe's name.")] = "",
    task: Annotated[str, typer.Option(help="A task, or a file or hub data set of yours.")] = "",
    question: Annotated[str, typer.Option(help="Column of your data with the question.")] = "",
    answer: Annotated[str, typer.Option(help="Column of your data with the answer.")] = "",
    answer_type: Annotated[str, typer.Option(help="What a right answer of yours is.")] = "",
    model: Annotated[str, typer.Option(help="Hub name, path, or tiny.")] = "",
    critic: Annotated[
        str, typer.Option(metavar="PROVIDER:MODEL", help="As ollama:qwen2.5:7b; solver; self.")
    ] = "",
    critic_url: Annotated[str, typer.Option(help="Address of the critic's server.")] = "",
    out: Annotated[Path | None, typer.Option(help="The file; default: METHOD-TASK.toml.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is found.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a recipe of your own: asks for what is not given, and offers the critics it finds."""
    from mlxreflect.core.ui import safe_text
    from mlxreflect.setup.init import Asker, place_of, refuse_to_overwrite, settle, write_recipe

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
    result = write_recipe(choices, place)
    ui.result(result)
    name = shlex.quote(result["recipe"])
    ui.line(f"written: {result['recipe']}\nlook first: mlxreflect doctor {name}")
    ui.line(f"dry run: mlxreflect run {name} --dry-run\nthen: mlxreflect run {name}")
