"""The command line: parse, call, exit code. Heavy imports stand inside the commands."""

import errno
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxreflect.errors import UserError

if TYPE_CHECKING:
    from mlxreflect.ui import Ui

app = typer.Typer(
    help="Make small language models reason better on your own machine, and prove that they did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A TOML file or a bundled name: quickstart, r3.")],
    set_: Set = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where to; default: under runs/.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the recipe and prompts, do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: learn from its problems, then compare base and trained."""
    from mlxreflect.recipe import eval_spec, load_recipe
    from mlxreflect.tasks import check_exam, get_task

    loaded = load_recipe(recipe, set_ or [])
    get_task(loaded.task.name)
    check_exam(eval_spec(loaded))
    ui = make_ui(as_json)
    require_mlx()
    if dry_run:
        from mlxreflect.dry import dry

        ui.result(dry(loaded)) if as_json else ui.line(dry(loaded)["text"])
        return
    from mlxreflect.run import Run

    begun = Run.create(loaded, run_dir)
    try:
        carry_out(begun, ui)
    except UserError:
        begun.take_back()
        raise


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
    from mlxreflect.job import load_job

    job = load_job(objective, model, data, set_ or [])
    require_mlx()
    from mlxreflect.finetune import create

    carry_out_training(create(out, job), make_ui(as_json))


def carry_out_training(place: Any, ui: "Ui") -> None:
    """Do a job; whatever stops it, say how to go on."""
    from mlxreflect.finetune import train as train_

    again = f"mlxreflect resume {shlex.quote(str(place.path))}"
    try:
        summary = train_(place, ui)
    except KeyboardInterrupt:
        gone = place.take_back()
        said = "before its first step; nothing is left of it" if gone else f"go on with: {again}"
        print(f"\nstopped{' ' if gone else '; '}{said}", file=sys.stderr)
        raise typer.Exit(130) from None
    except UserError:
        place.take_back()
        raise
    except (OSError, RuntimeError) as error:
        if is_full(error):
            again = "give the same command again" if place.take_back() else again
            raise no_space(error, f"free some, then: {again}") from None
        raise
    finally:
        place.lock.close()
    if ui.json:
        ui.result(summary)
    else:
        from mlxreflect.show import show_training

        ui.table(show_training(summary))


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="The folder that `run` or `train` made.")],
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Go on with a run or a training that was stopped, from its last commit."""
    require_mlx()
    if (run_dir / "job.json").is_file():
        from mlxreflect.finetune import reopen

        if set_:
            raise UserError(
                f"--set {set_[0]}: a training is resumed with the keys it began with",
                "leave --set out, or begin anew with another --out",
            )
        carry_out_training(reopen(run_dir), make_ui(as_json))
        return
    from mlxreflect.run import Run

    carry_out(Run.open(run_dir, set_ or []), make_ui(as_json))


def carry_out(run: Any, ui: "Ui") -> None:
    """Execute a run; whatever stops it, say how to go on."""
    try:
        from mlxreflect.loop import execute

        summary = execute(run, ui)
    except KeyboardInterrupt:
        if (run.path / "checkpoints").exists():
            print(f"\nstopped; go on with: mlxreflect resume {run.path}", file=sys.stderr)
        else:
            run.take_back()
            print("\nstopped before it began; nothing is left of it", file=sys.stderr)
        raise typer.Exit(130) from None
    except (OSError, RuntimeError) as error:
        if is_full(error):
            raise no_space(error, f"free some, then: mlxreflect resume {run.path}") from None
        raise
    finally:
        run.close()
    if ui.json:
        ui.result(summary)
    else:
        from mlxreflect.show import show_summary

        for part in show_summary(run.path):
            ui.table(part)


@app.command()
def show(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    problem: Annotated[str, typer.Option(help="A problem's id, or its first digits.")] = "",
    status: Annotated[str, typer.Option(help="Only problems with this status.")] = "",
) -> None:
    """Show a run, or one problem's whole story."""
    from mlxreflect.show import show_problem, show_run

    ui = make_ui(False)
    if (run_dir / "job.json").is_file():
        from mlxreflect.records import read_json
        from mlxreflect.show import show_training

        if not (run_dir / "summary.json").is_file():
            raise UserError(
                f"{run_dir} is not finished", f"go on with it by: mlxreflect resume {run_dir}"
            )
        ui.table(show_training(read_json(run_dir / "summary.json")))
        return
    parts = show_problem(run_dir, problem) if problem else show_run(run_dir, status or None)
    for part in parts:
        ui.table(part)


def need_a_model(context: typer.Context, value: list[str] | None) -> list[str]:
    """What is not given is looked at last, so --server-model is known here."""
    if not value and not context.params.get("server_model"):
        raise typer.BadParameter("give a --model, or a --server and its --server-model")
    return value or []


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
    cache: Annotated[str, typer.Option(help="Folder of answers kept for later, or off.")] = "",
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
    if bool(server) != bool(server_model):
        given = "--server" if server else "--server-model"
        raise UserError(
            f"{given} alone: a server needs its address and a model",
            "give both: --server http://127.0.0.1:1234/v1 --server-model NAME",
        )
    if not quick and (alpha is not None or max_n):
        raise UserError(
            f"--{'max-n' if alpha is None else 'alpha'} is of --quick, which is not asked for",
            "add --quick, or leave it out",
        )
    require_mlx()
    from mlxreflect.evaluate import find_spec
    from mlxreflect.lineup import answer_all, line_up
    from mlxreflect.scoreboard import show_arms
    from mlxreflect.served import ServedModel

    keys = {"alpha": alpha, "max_n": max_n or None}
    stops = [f"quick.{key}={value}" for key, value in keys.items() if value is not None]
    ui, found = make_ui(as_json), find_spec(spec, limit, source, [*(set_ or []), *stops])
    served = [
        ServedModel(server, name, server_key_env, concurrency, keep_failed=keep_failed)
        for name in server_model or []
    ]
    entries = line_up(model or [], adapter or [], quantize or [], served, base=base or quick)
    if quick:
        from mlxreflect.quick import quick_eval

        decided = quick_eval(found, entries, out, ui)
        ui.result(decided) if as_json else ui.line(decided["sentence"])
        return
    arms = answer_all(entries, found, out, cache, ui, twice=aa)
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
    from mlxreflect.compare import Options, compare_all
    from mlxreflect.comparison_view import render_comparison
    from mlxreflect.unpaired import compare_counts

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
    from mlxreflect.exams import decontaminate as decontaminate_
    from mlxreflect.exams import render_decontaminated
    from mlxreflect.job import DataConfig

    ui = make_ui(as_json)
    asked = DataConfig(source=data, config=config, split=split, against=against, ngram=ngram)
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
    from mlxreflect.exports.report import write_outputs

    ui = make_ui(as_json)
    written = write_outputs(folders, out)
    if as_json:
        ui.result(written)
        return
    ui.line(written["markdown"])
    folders_of = {name: f"{written['out']}/{name}/" for name in ("lm_eval", "inspect", "plots")}
    ui.header({"table": written["table"], **folders_of})


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
    from mlxreflect.fuse import fuse as fuse_
    from mlxreflect.fuse import render_fused

    ui = make_ui(as_json)
    result = fuse_(model, adapter, out, quantize, prompt or [], ui)
    ui.result(result)
    ui.table(render_fused(result))


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="A TOML file or a bundled name.")] = "",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check that a run has what it needs: memory, disk, model, data, and a token of each critic."""
    from mlxreflect.recipe import eval_spec, load_recipe
    from mlxreflect.tasks import check_exam, get_task

    if set_ and not recipe:
        raise UserError(
            f"--set {set_[0]}: no recipe to set it in", "give one: mlxreflect doctor r3"
        )
    loaded = load_recipe(recipe, set_ or []) if recipe else None
    if loaded:
        get_task(loaded.task.name)
        check_exam(eval_spec(loaded))
    require_mlx()
    from mlxreflect.doctor import doctor as doctor_
    from mlxreflect.doctor import render_doctor

    ui = make_ui(as_json)
    result = doctor_(loaded, ui)
    ui.result(result)
    ui.table(render_doctor(result))
    if not result["ok"]:
        raise typer.Exit(1)


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
        from mlxreflect.tasks.grade import grade_file

        for row in grade_file(task, file, rules):
            print(json.dumps(row, ensure_ascii=True))
        return
    from mlxreflect.rescore import rescore

    ui = make_ui(as_json)
    results = rescore(Path(task), rules, out)
    if as_json:
        ui.result(results)
        return
    from mlxreflect.show import show_results

    ui.table(show_results(results))
    ui.line(f"rules: {results['rules']}; {results['changed']} verdicts changed: {results['out']}")


def make_ui(as_json: bool) -> "Ui":
    from mlxreflect.ui import Ui

    return Ui(json=as_json)


def require_mlx() -> None:
    """On Linux mlx comes without a backend unless an extra names one."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"mlx has no backend here ({str(error).splitlines()[0]})",
            "install one: pip install 'mlxreflect[cpu]', or 'mlxreflect[cuda]' on an NVIDIA GPU",
        ) from None


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


def is_full(error: Exception) -> bool:
    """Whether the disk is full: as the system says it, or mlx where it saves arrays."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "Unable to write" in str(error)


def no_space(error: Exception, hint: str) -> UserError:
    return UserError(f"{getattr(error, 'filename', None) or 'the disk'}: no space left", hint)


def fail(message: str, hint: str) -> None:
    """Exactly two lines, whatever the data quoted in them holds."""
    from mlxreflect.ui import safe_text

    for label, text in (("error", message), ("hint", hint)):
        print(f"{label}: {safe_text(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(2)
