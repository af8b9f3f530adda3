"""The commands that evaluate: eval, compare, report, grade."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlxreflect.cli.options import EVALUATE, Json, SetSpec, Spec, make_ui, require_mlx
from mlxreflect.core.errors import UserError

app = typer.Typer()


def need_a_model(context: typer.Context, value: list[str] | None) -> list[str]:
    """Typer calls this last for an option that is not given, so --server-model is known here."""
    if not value and not context.params.get("server_model") and not context.params.get("server"):
        raise typer.BadParameter("give a --model, or a --server and its --server-model")
    return value or []


def refuse(wrong: object, message: str, hint: str) -> None:
    if wrong:
        raise UserError(message, hint)


@app.command(
    name="eval",
    rich_help_panel=EVALUATE,
    epilog="Example: mlxreflect eval countdown --model tiny --adapter runs/latest/adapter --base",
)
def eval_(
    spec: Spec,
    model: Annotated[
        list[str] | None,
        typer.Option(callback=need_a_model, help="Hub name, folder, or tiny; repeatable."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA folder, evaluated on the model it was trained on; repeatable."),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also evaluate the model without its adapter.")
    ] = False,
    quantize: Annotated[
        list[int] | None,
        typer.Option(metavar="BITS", help="4 or 8, on load; 0: as it is."),
    ] = None,
    server: Annotated[str, typer.Option(help="An OpenAI-like server, or Ollama.")] = "",
    server_model: Annotated[list[str] | None, typer.Option(help="Its model; repeatable.")] = None,
    server_key_env: Annotated[str, typer.Option(help="Variable that holds its key.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 4,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Count a call that fails for good as wrong.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="How many problems; 0: all of the spec's.")] = 0,
    source: Annotated[str, typer.Option(help="Other data for the task; all of it is used.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for samples and results.")] = None,
    cache: Annotated[str, typer.Option(help="File that keeps answers for later, or off.")] = "",
    aa: Annotated[
        bool,
        typer.Option("--aa", help="Ask each model twice, to measure the noise."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Ask base and trained side by side until it is decided.")
    ] = False,
    alpha: Annotated[
        float | None, typer.Option(help="With --quick: the level to decide at (quick.alpha).")
    ] = None,
    max_n: Annotated[
        int, typer.Option(min=0, help="With --quick: the most problems (quick.max_n).")
    ] = 0,
    set_: SetSpec = None,
    as_json: Json = False,
) -> None:
    """Evaluate models, adapters and models behind a server on the same problems, in one table.

    One --model with one --adapter is one arm; --base adds the model alone. With several models and
    adapters, each model is evaluated, and each adapter on the model it was trained on. All are
    compared with the first.
    """
    keys = {"alpha": alpha, "max_n": max_n or None}
    stops = [f"quick.{key}={value}" for key, value in keys.items() if value is not None]
    refuse(
        bool(server) != bool(server_model),
        f"{'--server' if server else '--server-model'} alone: a server needs its address and a "
        "model",
        "give both: --server http://127.0.0.1:1234/v1 --server-model NAME",
    )
    alone = "--alpha" if alpha is not None else "--max-n"
    refuse(stops and not quick, f"{alone} is of --quick", "add --quick, or leave it out")
    other = "--aa" if aa else "--cache"
    refuse(
        quick and (aa or cache), f"--quick and {other} do not go together", "leave one of them out"
    )
    require_mlx()
    from mlxreflect.evaluation.evaluate import find_spec
    from mlxreflect.evaluation.generators import ServedModel
    from mlxreflect.evaluation.runner import decide, evaluate_arms, line_up
    from mlxreflect.report.tables import show_arms

    ui, found = make_ui(as_json), find_spec(spec, limit, source, [*(set_ or []), *stops])
    served = [
        ServedModel(server, name, server_key_env, concurrency, keep_failed=keep_failed)
        for name in server_model or []
    ]
    entries = line_up(model or [], adapter or [], quantize or [], served, base=base or quick)
    refuse(
        (quick or aa) and found.chain.rounds > 1,
        f"{'--quick' if quick else '--aa'} and a spec with [chain] do not go together",
        "leave it out, or add --set chain.rounds=1",
    )
    try:
        if quick:
            decided = decide(found, entries, out, ui)
            ui.result(decided) if as_json else ui.line(decided["sentence"])
            return
        arms = evaluate_arms(entries, found, out, cache, ui, twice=aa)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    ui.result(arms if len(entries) > 1 else arms[0])
    for part in show_arms(arms):
        ui.table(part)


def enough_arms(arms: list[str]) -> list[str]:
    """One argument is a folder of several evaluations."""
    if len(arms) == 1 and not Path(arms[0]).is_dir():
        raise typer.BadParameter("give two or more, or a folder of several evaluations")
    return arms


@app.command(
    rich_help_panel=EVALUATE,
    epilog="Example: mlxreflect compare runs/latest/eval/base runs/latest/eval/trained",
)
def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE OTHER…",
            callback=enough_arms,
            help="Evaluation folders or samples files, or one folder of several.",
        ),
    ],
    alpha: Annotated[float, typer.Option(help="Level of the tests and intervals.")] = 0.05,
    differ: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A key that is meant to differ: spec.prompt.style."),
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Compare all with all, not only with the first.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="All problems gained and lost.")] = False,
    unpaired: Annotated[
        bool,
        typer.Option("--unpaired", help="By counts: results, or 627/1000 674/1000."),
    ] = False,
    plan: Annotated[
        float,
        typer.Option(metavar="DIFFERENCE", help="How many problems would show it."),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Compare with the first on the same problems: paired difference, interval, exact test."""
    from mlxreflect.evaluation.compare import Options, compare_all, compare_counts
    from mlxreflect.report.tables import render_comparison

    ui = make_ui(as_json)
    options = Options(alpha, tuple(differ or ()), all_pairs, plan)
    result = (
        compare_counts(arms, options)
        if unpaired
        else compare_all([Path(arm) for arm in arms], options)
    )
    ui.result(result)
    ui.table(render_comparison(result, whole=list_))


@app.command(rich_help_panel=EVALUATE, epilog="Example: mlxreflect report runs/latest --out report")
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="Evaluations, folders of them, or runs.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to; default: report/ in the first folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write evaluations as others read them: a Markdown table, plots, logs of inspect_ai."""
    from mlxreflect.report.report import write_outputs

    ui = make_ui(as_json)
    written = write_outputs(folders, out)
    if as_json:
        ui.result(written)
        return
    ui.line(written["markdown"])
    made = {n: f"{written['out']}/{n}/" for n in ("inspect", "plots") if written[n]}
    ui.header({"table": written["table"], **made})
    for note in written["notes"]:
        ui.line(note)


@app.command(rich_help_panel=EVALUATE, epilog="Example: mlxreflect grade gsm8k answers.jsonl")
def grade(
    task: Annotated[
        str, typer.Argument(metavar="TASK|FOLDER", help="A task, or an evaluation to grade anew.")
    ],
    file: Annotated[
        Path | None, typer.Argument(help="JSONL rows with id, response and the gold.")
    ] = None,
    rules: Annotated[str, typer.Option(help="A set of grading rules; default: the headline.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Of a folder: where to; default: FOLDER/graded/RULES.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Grade responses, a JSON object a row; or all that an evaluation generated, by other rules."""
    if file is not None:
        if out:
            raise UserError(
                f"--out {out}: the rows of a file are graded to stdout",
                "leave --out out, or name an evaluation's folder alone: mlxreflect grade FOLDER",
            )
        from mlxreflect.evaluation.evaluate import grade_file

        for row in grade_file(task, file, rules):
            print(json.dumps(row, ensure_ascii=True))
        return
    from mlxreflect.evaluation.evaluate import rescore

    ui = make_ui(as_json)
    results = rescore(Path(task), rules, out)
    if as_json:
        ui.result(results)
        return
    from mlxreflect.report.tables import figures

    ui.table(figures([results]))
    ui.line(f"rules: {results['rules']}; {results['changed']} verdicts changed: {results['out']}")
