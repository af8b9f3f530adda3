"""The commands that evaluate: eval, compare, report, grade; and chat, for a look of one's own."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from mlxreflect.cli import (
    EVALUATE,
    USE,
    Json,
    SetSpec,
    Spec,
    folder,
    make_ui,
    require_mlx,
    run_folders,
    toml_names,
)
from mlxreflect.cli.hosts import HostsFile, shared
from mlxreflect.core.errors import UserError

if TYPE_CHECKING:
    from mlxreflect.config.schema import EvalSpec
    from mlxreflect.core.hosts import Hosts
    from mlxreflect.core.ui import Ui
    from mlxreflect.evaluation.runner import Entry

app = typer.Typer()
Many = list[str] | None
Server = Annotated[str, Option(help="An OpenAI-like server, or Ollama.")]
ServerModel = Annotated[Many, Option(help="Its model; repeatable.")]
ServerKey = Annotated[str, Option(help="Variable that holds its key.")]
ADAPTERS = "A LoRA folder, or a run; evaluated on the model it was trained on; repeatable."
KEEP_FAILED = "Count a call that fails for good as wrong."
QUICK = "Ask base and trained side by side until it is decided."
ALPHA = "With --quick: the level to decide at, such as 0.05 (quick.alpha)."
MAX_N = "With --quick: the most problems (quick.max_n)."


def need_a_model(context: typer.Context, value: Many) -> list[str]:
    """Typer calls this last for an option that is not given, so --server-model is known here."""
    if not value and not any(map(context.params.get, ("server_model", "server", "adapter"))):
        example = "mlxreflect eval countdown --model tiny"
        raise UserError(
            "nothing to evaluate",
            f"give a --model, an --adapter, or a --server and --server-model: {example}",
        )
    return value or []


def refuse(wrong: object, message: str, hint: str) -> None:
    if wrong:
        raise UserError(message, hint)


def refuse_half_a_server(server: str, models: Many) -> None:
    lacks = f"{'--server' if server else '--server-model'} alone: a server needs its address and a "
    give = "give both: --server http://127.0.0.1:1234/v1 --server-model NAME"
    refuse(bool(server) != bool(models), f"{lacks}model", give)


def refuse_clashes(quick: bool, aa: bool, cache: str, alpha: float | None, max_n: int) -> None:
    alone = "--alpha" if alpha is not None else "--max-n"
    of_quick = not quick and (alpha is not None or max_n)
    refuse(of_quick, f"{alone} is of --quick", "add --quick, or leave it out")
    both = f"--quick and {'--aa' if aa else '--cache'} do not go together"
    refuse(quick and (aa or cache), both, "leave one of them out")


@app.command(
    name="eval",
    rich_help_panel=EVALUATE,
    epilog="Example: mlxreflect eval countdown --model tiny --adapter runs/latest/adapter --base",
)
def eval_(
    spec: Spec,
    model: Annotated[
        Many, Option(callback=need_a_model, help="Hub name, folder, or tiny; repeatable.")
    ] = None,
    adapter: Annotated[Many, Option(help=ADAPTERS)] = None,
    base: Annotated[
        bool, Option("--base", help="Also evaluate the model without its adapter.")
    ] = False,
    quantize: Annotated[
        list[int] | None, Option(metavar="BITS", help="4 or 8, on load; 0: as it is.")
    ] = None,
    server: Server = "",
    server_model: ServerModel = None,
    server_key_env: ServerKey = "",
    concurrency: Annotated[
        int, Option(min=1, max=1024, help="Requests to the server at once.")
    ] = 4,
    keep_failed: Annotated[bool, Option("--keep-failed", help=KEEP_FAILED)] = False,
    limit: Annotated[int, Option(min=0, help="How many problems; 0: all of the spec's.")] = 0,
    source: Annotated[str, Option(help="Other data for the task; all of it is used.")] = "",
    out: Annotated[Path | None, Option(help="Folder for samples and results.")] = None,
    cache: Annotated[str, Option(help="File that keeps answers for later, or off.")] = "",
    aa: Annotated[bool, Option("--aa", help="Ask each model twice, to measure the noise.")] = False,
    quick: Annotated[bool, Option("--quick", help=QUICK)] = False,
    alpha: Annotated[float | None, Option(help=ALPHA)] = None,
    max_n: Annotated[int, Option(min=0, help=MAX_N)] = 0,
    set_: SetSpec = None,
    hosts: HostsFile = None,
    as_json: Json = False,
) -> None:
    """Evaluate models, adapters and models behind a server on the same problems, in one table.

    One --model with one --adapter is one arm; --base adds the model alone. With several models and
    adapters, each model is evaluated, and each adapter on the model it was trained on. All are
    compared with the first.
    """
    refuse_half_a_server(server, server_model)
    refuse_clashes(quick, aa, cache, alpha, max_n)
    alone = "--base is the model without its adapter, and there is no --adapter"
    refuse(base and not adapter, alone, "add --adapter RUN_DIR/adapter, or leave --base out")
    with shared(hosts) as team:
        require_mlx()
        from mlxreflect.evaluation.evaluate import find_spec
        from mlxreflect.evaluation.generators import ServedModel
        from mlxreflect.evaluation.runner import line_up

        keys = {"quick.alpha": alpha, "quick.max_n": max_n or None}
        stops = [f"{key}={value}" for key, value in keys.items() if value is not None]
        found = find_spec(spec, limit, source, [*(set_ or []), *stops])
        served = [
            ServedModel(server, name, server_key_env, concurrency, keep_failed=keep_failed)
            for name in server_model or []
        ]
        entries = line_up(model or [], adapter or [], quantize or [], served, base=base or quick)
        chained = f"{'--quick' if quick else '--aa'} and a spec with [chain] do not go together"
        mend = "leave it out, or add --set chain.rounds=1"
        refuse((quick or aa) and found.chain.rounds > 1, chained, mend)
        graded = f"{'--quick' if quick else '--aa'} is of graded answers, and open ones are judged"
        refuse((quick or aa) and found.task.answer_type == "open", graded, "leave it out")
        show_evaluated(found, entries, out, cache, make_ui(as_json), team,
                       quick=quick, twice=aa)  # fmt: skip


def show_evaluated(
    spec: "EvalSpec", entries: "list[Entry]", out: Path | None, cache: str, ui: "Ui",
    hosts: "Hosts | None", *, quick: bool, twice: bool,
) -> None:  # fmt: skip
    """Evaluates, and shows a table of the arms; of --quick, the decision."""
    from mlxreflect.core.hosts import ALONE
    from mlxreflect.evaluation.runner import decide, evaluate_arms
    from mlxreflect.report.tables import show_arms

    try:
        if quick:
            decided = decide(spec, entries, out, ui, hosts=hosts or ALONE)
            ui.result(decided) if ui.json else ui.line(decided["sentence"])
            return
        arms = evaluate_arms(entries, spec, out, cache, ui, twice=twice, hosts=hosts or ALONE)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    ui.result(arms if len(entries) > 1 else arms[0])
    for part in show_arms(arms):
        ui.table(part)


ARMS = "Evaluations, their samples files, or runs; or one folder of several evaluations."
NAME = "What to call each, in their order; repeatable."
JUDGE = "Of open questions: who judges, as ollama:NAME, or a recipe with a critic."
RUBRIC = "Of open questions: what makes an answer better, in place of the spec's."


@app.command(
    rich_help_panel=EVALUATE,
    epilog="Example: mlxreflect compare runs/latest/eval/base runs/latest/eval/trained",
)
def compare(
    arms: Annotated[list[str], Argument(metavar="BASE OTHER…", help=ARMS)],
    alpha: Annotated[float, Option(help="Level of the tests and intervals.")] = 0.05,
    differ: Annotated[
        Many, Option(metavar="KEY", help="A key that is meant to differ: spec.prompt.style.")
    ] = None,
    all_pairs: Annotated[
        bool, Option("--all-pairs", help="Compare all with all, not only with the first.")
    ] = False,
    list_: Annotated[bool, Option("--list", help="All problems gained and lost.")] = False,
    unpaired: Annotated[
        bool, Option("--unpaired", help="By counts: results, or 627/1000 674/1000.")
    ] = False,
    plan: Annotated[
        float, Option(metavar="DIFFERENCE", help="How many problems would show it.")
    ] = 0.0,
    name: Annotated[Many, Option(help=NAME)] = None,
    judge: Annotated[str, Option(metavar="WHO", help=JUDGE)] = "",
    rubric: Annotated[str, Option(help=RUBRIC)] = "",
    as_json: Json = False,
) -> None:
    """Compare with the first on the same problems: paired difference, interval, exact test."""
    from contextlib import ExitStack

    from mlxreflect.evaluation.compare import Options, compare_all, compare_counts
    from mlxreflect.evaluation.judge import Judging, find_critic
    from mlxreflect.report.tables import render_comparison

    if len(arms) == 1 and not Path(arms[0]).is_dir():
        fault = "not a folder" if Path(arms[0]).exists() else "no such folder"
        raise UserError(
            f"{arms[0]}: {fault}", "give two or more evaluations, or a folder of several"
        )
    ui = make_ui(as_json)
    refuse(unpaired and (judge or rubric), "--unpaired takes counts, and nobody judges those",
           "leave one of both out")  # fmt: skip
    named, budget = find_critic(judge) if judge else (None, None)
    with ExitStack() as stack:
        judging = Judging(ui, stack, named=named, rubric=rubric, budget=budget)
        options = Options(alpha, tuple(differ or ()), all_pairs, plan, tuple(name or ()), judging)
        paths = [Path(arm) for arm in arms]
        result = compare_counts(arms, options) if unpaired else compare_all(paths, options)
    ui.result(result)
    ui.table(render_comparison(result, whole=list_))


@app.command(rich_help_panel=EVALUATE, epilog="Example: mlxreflect report runs/latest --out report")
def report(
    folders: Annotated[
        list[Path], Argument(metavar="FOLDER…", help="Evaluations, folders of them, or runs.")
    ],
    out: Annotated[
        Path | None, Option(help="Where to; default: report/ in the first folder.")
    ] = None,
    name: Annotated[Many, Option(help=NAME)] = None,
    as_json: Json = False,
) -> None:
    """Write evaluations as others read them: a Markdown table, plots, logs of inspect_ai."""
    from mlxreflect.report.report import write_outputs

    ui = make_ui(as_json)
    written = write_outputs(folders, out, name or [])
    ui.result(written)
    if as_json:
        return
    ui.line(written["markdown"])
    made = {n: f"{written['out']}/{n}/" for n in ("inspect", "plots") if written[n]}
    ui.header({"table": written["table"], **made})
    for note in written["notes"]:
        ui.line(note)


@app.command(rich_help_panel=EVALUATE, epilog="Example: mlxreflect grade gsm8k answers.jsonl")
def grade(
    task: Annotated[
        str, Argument(metavar="TASK|FOLDER", help="A task, or an evaluation to grade anew.")
    ],
    file: Annotated[
        Path | None, Argument(help="JSONL rows with id, response and the gold.")
    ] = None,
    rules: Annotated[str, Option(help="Grading rules, or FILE.py:FUNCTION of yours.")] = "",
    out: Annotated[
        Path | None, Option(help="Of a folder: where to; default: FOLDER/graded/RULES.")
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
        if Path(task).is_file() and not file.exists():
            raise UserError(
                f"{task} is a file, where the task is wanted",
                f"the task comes first: mlxreflect grade {file} {shlex.quote(task)}",
            )
        from mlxreflect.evaluation.evaluate import grade_file

        for row in grade_file(task, file, rules):
            print(json.dumps(row, ensure_ascii=True))
        return
    from mlxreflect.evaluation.evaluate import rescore

    ui = make_ui(as_json)
    results = rescore(Path(task), rules, out)
    ui.result(results)
    if as_json:
        return
    from mlxreflect.report.tables import figures

    ui.table(figures([results]))
    ui.line(f"rules: {results['rules']}; {results['changed']} verdicts changed: {results['out']}")


CHAT = "A run, a training, or an adapter's folder."
ASK_AS = "An eval spec or a task, to ask and grade as it does; default: the run's."


@app.command(rich_help_panel=USE, epilog="Example: mlxreflect chat runs/latest --temperature 0.7")
def chat(
    run_dir: Annotated[
        Path,
        Argument(metavar="RUN_DIR", help=CHAT, callback=folder, autocompletion=run_folders),
    ],
    model: Annotated[str, Option(help="In place of the one that was trained.")] = "",
    spec: Annotated[str, Option(help=ASK_AS, autocompletion=toml_names("evals"))] = "",
    server: Server = "",
    server_model: ServerModel = None,
    server_key_env: ServerKey = "",
    max_new_tokens: Annotated[int | None, Option(min=1, help="Of an answer.")] = None,
    temperature: Annotated[
        float | None, Option(min=0, max=100, help="0: the likeliest words.")
    ] = None,
    seed: Annotated[int | None, Option(min=0, help="Of the draw, above temperature 0.")] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print a JSON object for each question.")
    ] = False,
) -> None:
    """Ask base and trained the same, and read both answers side by side as they come.

    They are asked as in the run's evaluation, with its settings, and graded where the right answer
    is known. Type /help for what else can be said. From a pipe, each line is a question of its own.
    """
    refuse_half_a_server(server, server_model)
    require_mlx()
    from mlxreflect.cli.chat import open_chat
    from mlxreflect.evaluation.generators import ServedModel
    from mlxreflect.runs.chat import find_subject

    keys = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    served = [ServedModel(server, name, server_key_env) for name in server_model or []]
    settings = {key: value for key, value in keys.items() if value is not None}
    try:
        open_chat(find_subject(run_dir, model, spec), served, settings, make_ui(as_json))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
