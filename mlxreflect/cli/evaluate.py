"""The commands of evidence: eval, compare, report, grade, decontaminate. They belong to `cli`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxreflect.cli.options import Json, Set, make_ui, require_mlx
from mlxreflect.core.errors import UserError

if TYPE_CHECKING:
    from mlxreflect.config.schema import EvalSpec


app = typer.Typer()


def need_a_model(context: typer.Context, value: list[str] | None) -> list[str]:
    """What is not given is looked at last, so --server-model is known here."""
    if not value and not context.params.get("server_model") and not context.params.get("server"):
        raise typer.BadParameter("give a --model, or a --server and its --server-model")
    return value or []


def check_server(server: str, models: list[str] | None) -> None:
    if bool(server) != bool(models):
        raise UserError(
            f"{'--server' if server else '--server-model'} alone: a server needs its address and "
            "a model",
            "give both: --server http://127.0.0.1:1234/v1 --server-model NAME",
        )


def check_quick(stops: list[str], *, quick: bool, other: str) -> None:
    """stops: what --quick is to end at, as settings; other: an option that it excludes."""
    if stops and not quick:
        name = stops[0].removeprefix("quick.").partition("=")[0].replace("_", "-")
        raise UserError(
            f"--{name} is of --quick, which is not asked for", "add --quick, or leave it out"
        )
    if quick and other:
        raise UserError(f"--quick and {other} do not go together", "leave one of them out")


def check_single(option: str, spec: "EvalSpec") -> None:
    if spec.chain.rounds > 1:
        raise UserError(
            f"{option} and a spec with [chain] do not go together",
            "leave it out, or add --set chain.rounds=1",
        )


@app.command(name="eval")
def eval_(
    spec: Annotated[str, typer.Argument(help="An eval spec (file or bundled name) or a task.")],
    model: Annotated[
        list[str] | None,
        typer.Option(callback=need_a_model, help="Hub name, path, or tiny; one or several."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA folder; one or several, each for the model it was trained on."),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also the model without its one adapter.")
    ] = False,
    quantize: Annotated[
        list[int] | None, typer.Option(metavar="BITS", help="4 or 8 on load; 0: as it is.")
    ] = None,
    server: Annotated[str, typer.Option(help="Address of an OpenAI-like server, or Ollama.")] = "",
    server_model: Annotated[list[str] | None, typer.Option(help="One or several of its.")] = None,
    server_key_env: Annotated[str, typer.Option(help="Variable that holds the server's key.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 4,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Count a call that fails for good as wrong.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="Problems; 0: all of the spec's.")] = 0,
    source: Annotated[str, typer.Option(help="Other data for the task, all of it.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the samples and results.")] = None,
    cache: Annotated[str, typer.Option(help="File of answers kept for later, or off.")] = "",
    aa: Annotated[
        bool, typer.Option("--aa", help="Ask each model twice, at two batch sizes: the noise.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Base and trained side by side until it is decided.")
    ] = False,
    alpha: Annotated[
        float | None, typer.Option(help="With --quick: the level to decide at: quick.alpha.")
    ] = None,
    max_n: Annotated[
        int, typer.Option(min=0, help="With --quick: questions at most: quick.max_n.")
    ] = 0,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Evaluate models, adapters and models behind a server on the same problems, in one table.

    One --model with one --adapter is evaluated as that, with --base also without it. Of several
    models and adapters each model is evaluated, and each adapter on the model it was trained on;
    all are compared with the first.
    """
    keys = {"alpha": alpha, "max_n": max_n or None}
    stops = [f"quick.{key}={value}" for key, value in keys.items() if value is not None]
    check_server(server, server_model)
    check_quick(stops, quick=quick, other="--aa" if aa else "--cache" if cache else "")
    require_mlx()
    from mlxreflect.evaluation.evaluate import find_spec
    from mlxreflect.evaluation.generators import ServedModel
    from mlxreflect.evaluation.runner import decide, evaluate_arms, line_up
    from mlxreflect.report.scoreboard import show_arms

    ui, found = make_ui(as_json), find_spec(spec, limit, source, [*(set_ or []), *stops])
    served = [
        ServedModel(server, name, server_key_env, concurrency, keep_failed=keep_failed)
        for name in server_model or []
    ]
    entries = line_up(model or [], adapter or [], quantize or [], served, base=base or quick)
    if quick or aa:
        check_single("--quick" if quick else "--aa", found)
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


@app.command()
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
        bool, typer.Option("--all-pairs", help="Not only with the first.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="All problems gained and lost.")] = False,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="By counts alone: results, or 627/1000 674/1000.")
    ] = False,
    plan: Annotated[
        float, typer.Option(metavar="DIFFERENCE", help="How many questions show it, as 0.03.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Compare with the first on the same problems: paired difference, interval, exact test."""
    from mlxreflect.evaluation.compare import Options, compare_all
    from mlxreflect.evaluation.unpaired import compare_counts
    from mlxreflect.report.view import render_comparison

    ui = make_ui(as_json)
    options = Options(alpha, tuple(differ or ()), all_pairs, plan)
    result = (
        compare_counts(arms, options)
        if unpaired
        else compare_all([Path(arm) for arm in arms], options)
    )
    ui.result(result)
    ui.table(render_comparison(result, whole=list_))


@app.command()
def decontaminate(
    data: Annotated[str, typer.Argument(help="A file, a folder, or a hub data set.")],
    against: Annotated[
        list[str],
        typer.Option(metavar="SPEC", help="An eval spec, a task, or a file."),
    ],
    out: Annotated[Path | None, typer.Option(help="A JSONL file for the clean rows.")] = None,
    ngram: Annotated[int, typer.Option(min=0, help="Words in a row; 0: whole texts only.")] = 13,
    config: Annotated[str, typer.Option(help="Configuration of a hub data set.")] = "",
    split: Annotated[str, typer.Option(help="Split of a folder or a hub data set.")] = "train",
    as_json: Json = False,
) -> None:
    """Find the rows of training data that occur in an evaluation, and write the others."""
    require_mlx()
    from mlxreflect.config.job import DataConfig
    from mlxreflect.evaluation.contamination import decontaminate as decontaminate_
    from mlxreflect.evaluation.contamination import render_decontaminated

    ui = make_ui(as_json)
    names = [name for given in against for name in given.split(",") if name]
    asked = DataConfig(source=data, config=config, split=split, against=names, ngram=ngram)
    result = decontaminate_(asked, out, ui)
    ui.result(result)
    ui.table(render_decontaminated(result))


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="Evaluations, folders of them, or runs.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to; default: report/ in the first folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write evaluations as others read them: lm-eval, inspect_ai, plots, a Markdown table."""
    from mlxreflect.report.report import write_outputs

    ui = make_ui(as_json)
    written = write_outputs(folders, out)
    if as_json:
        ui.result(written)
        return
    ui.line(written["markdown"])
    folders_of = {name: f"{written['out']}/{name}/" for name in ("lm_eval", "inspect", "plots")}
    ui.header({"table": written["table"], **folders_of})


@app.command()
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
        from mlxreflect.evaluation.grade import grade_file

        for row in grade_file(task, file, rules):
            print(json.dumps(row, ensure_ascii=True))
        return
    from mlxreflect.evaluation.grade import rescore

    ui = make_ui(as_json)
    results = rescore(Path(task), rules, out)
    if as_json:
        ui.result(results)
        return
    from mlxreflect.report.scoreboard import figures

    ui.table(figures([results]))
    ui.line(f"rules: {results['rules']}; {results['changed']} verdicts changed: {results['out']}")
