"""The commands that make a run or a training, and those that use what it made."""

import shlex
import sys
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mlxreflect.cli import (
    LEARN,
    USE,
    Json,
    Model,
    RunFolder,
    Set,
    SetSpec,
    SetTraining,
    checked_recipe,
    folder,
    make_ui,
    recipe_argument,
    require_mlx,
    run_folders,
)
from mlxreflect.cli.hosts import HostsFile, shared
from mlxreflect.core.errors import UserError

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe
    from mlxreflect.core.hosts import Hosts
    from mlxreflect.core.ui import Ui
    from mlxreflect.runs.folder import RunFolder as Folder


app = typer.Typer()
# Forms of a run's model, and the options that each of them heeds.
MODELS = {
    "ollama": ("base", "name", "quantize", "prompt"), "lmstudio": ("base", "name", "quantize",
    "prompt"), "mlx": ("base", "quantize", "prompt"), "gguf": ("base", "quantize"),
    "modelfile": ("base",), "peft": ("base",),
}  # fmt: skip
RECIPE = "A TOML file, or the name of a bundled recipe, such as quickstart."


# ---- learn ---------------------------------------------------------------------------------------


@app.command(
    rich_help_panel=LEARN, epilog="Example: mlxreflect run r3 --set task.limit=64 --dry-run"
)
def run(
    recipe: Annotated[str, recipe_argument(RECIPE)],
    set_: Set = None,
    run_dir: Annotated[
        Path | None, Option(help="The folder to make; default: one under runs/.")
    ] = None,
    dry_run: Annotated[
        bool, Option(help="Show recipe, prompts, costs and time; train nothing.")
    ] = False,
    hosts: HostsFile = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: learn from its problems, then compare base and trained."""
    from mlxreflect.config.recipe import load_recipe

    with shared(None if dry_run else hosts, partial(load_recipe, recipe, set_ or [])) as team:
        loaded, ui = checked_recipe(recipe, set_), make_ui(as_json)
        if dry_run:
            show_dry(loaded, ui)
            return
        from mlxreflect.runs.folder import create_run

        finish(create_run(loaded, run_dir), ui, team)


def show_dry(recipe: "Recipe", ui: "Ui") -> None:
    """Shows what a run would do, and its recipe."""
    from mlxreflect.config.recipe import dump_changed
    from mlxreflect.setup.dry_run import dry

    told, last = "", list[str]()
    try:
        found = dry(recipe, ui)
        ui.result(found)
        told, last = f"{found['text']}\n", found["time"]["lines"]
    finally:  # also where the data cannot be loaded
        if not ui.json:
            head = "--- keys that are not at their defaults (all of them: --json)"
            ui.line("\n".join([f"{told}{head}\n{dump_changed(recipe)}", *last]))


@app.command(
    rich_help_panel=LEARN,
    epilog="Example: mlxreflect train sft --data mine.jsonl --out adapter --model tiny",
)
def train(
    objective: Annotated[str, Argument(help="sft, dpo, ipo, exo_pair, orpo or grpo.")],
    data: Annotated[str, Option(help="A file, a folder with train.jsonl, a hub data set.")],
    out: Annotated[Path, Option(help="The folder to make.")],
    model: Model = "tiny",
    set_: SetTraining = None,
    hosts: HostsFile = None,
    as_json: Json = False,
) -> None:
    """Train a model on data of your own: LoRA or all weights, preferences, responses or groups."""
    from mlxreflect.config.recipe import load_job

    load = partial(load_job, objective, model, data, set_ or [])
    with shared(hosts, load) as team:
        job = load()
        require_mlx()
        from mlxreflect.runs.folder import create_job

        finish(create_job(job, out), make_ui(as_json), team)


@app.command(rich_help_panel=LEARN, epilog="Example: mlxreflect resume runs/latest")
def resume(
    place: Annotated[
        str,
        Argument(
            metavar="RUN_DIR",
            help="The folder of a run, such as runs/latest, or its mirror: s3://bucket/runs/RUN.",
            autocompletion=run_folders,
        ),
    ],
    set_: Set = None,
    run_dir: Annotated[
        Path | None, Option(help="Of a mirror: the folder to make; default: one under runs/.")
    ] = None,
    hosts: HostsFile = None,
    as_json: Json = False,
) -> None:
    """Continue a run or a training that was stopped, from its last commit.

    From a mirror its folder is made anew, also on another machine, and goes on to the same bytes.
    """
    with shared(hosts) as team:
        require_mlx()
        from mlxreflect.runs.folder import open_folder, open_mirror
        from mlxreflect.runs.mirror import is_mirror

        ui = make_ui(as_json)
        if is_mirror(place):
            finish(open_mirror(place, run_dir, set_ or [], ui), ui, team)
            return
        if run_dir:
            raise UserError(
                f"--run-dir is for a mirror, and {place} is none", "leave it out, or name a mirror"
            )
        finish(open_folder(folder(Path(place)) or Path(place), set_ or []), ui, team)


def finish(work: "Folder[Any]", ui: "Ui", hosts: "Hosts | None") -> None:
    """Does what is left of a run or a training, and shows what it came to."""
    from mlxreflect.core.hosts import ALONE
    from mlxreflect.runs.folder import Stopped, carry_out

    try:
        summary = carry_out(work, ui, hosts=hosts or ALONE)
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        raise typer.Exit(130) from None
    if ui.json:
        ui.result(summary)
    else:
        show_end(work, summary, ui)
    nothing, unjudged = summary.get("untrained"), summary.get("unjudged")
    if nothing and not work.config.allow_untrained:
        raise UserError(nothing["why"], nothing["hint"])
    if unjudged:
        raise UserError(f"the answers are not judged yet: {unjudged['why']}", unjudged["hint"])


def show_end(work: "Folder[Any]", summary: dict[str, Any], ui: "Ui") -> None:
    """Shows what a run or a training came to, and what can be done with it."""
    from mlxreflect.runs.folder import JOB

    model, path = work.config.policy.model, shlex.quote(str(work.path))
    if work.kind is JOB:
        from mlxreflect.runs.fit import show_training

        ui.table(show_training(summary))
        asked, task = summary.get("asked", ""), ""
        against = work.config.data.against
        spec = shlex.quote(str(against[0])) if against else "TASK"
        comparing = f"eval {spec} --model {shlex.quote(model)} --adapter {path}/adapter --base"
    else:
        from mlxreflect.report.show import answered_question, show_summary

        for part in show_summary(work.path):
            ui.table(part)
        asked, task = answered_question(work.path)
        comparing = f"compare {path}"
    told = {"look at it": f"mlxreflect show {path}"}
    if not summary.get("untrained"):
        question, adapter = shlex.quote(asked or "…"), f"{path}/adapter"
        told["use it"] = (
            f"mlx_lm.generate --model {shlex.quote(model)} --adapter-path {adapter} "
            f"--prompt {question}"
        )
        if model == "tiny":  # which mlx-lm does not know by that name
            rules = f" --task {task} --set temperature=0" if task else ""
            told["use it"] = f"mlxreflect solve {question}{rules} --model tiny --adapter {adapter}"
        told["talk to it"] = f"mlxreflect chat {path}"
    told["compare it"] = f"mlxreflect {comparing}"
    ui.header(told)


@app.command(rich_help_panel=LEARN, epilog="Example: mlxreflect runs")
def runs(
    places: Annotated[
        list[Path] | None,
        Argument(metavar="[DIR]…", help="Folders that hold runs or are some; default: runs/."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs and trainings, the newest first: method, model, state and verdict."""
    from mlxreflect.report.show import list_runs, show_runs

    ui, rows = make_ui(as_json), list_runs(places or [Path("runs")])
    ui.result(rows)
    for part in show_runs(rows):
        ui.table(part)


@app.command(rich_help_panel=LEARN, epilog="Example: mlxreflect show runs/latest --status bucket")
def show(
    run_dir: RunFolder,
    problem: Annotated[str, Option(help="A problem's id, or its first digits.")] = "",
    status: Annotated[str, Option(help="Only problems with this status.")] = "",
) -> None:
    """Show a run, or the whole story of one problem.

    Of a wave, size is its problems, first those right at the first try, format those answered in
    the format asked for, verify the answers asked again after training, secs its seconds.
    """
    from mlxreflect.report.show import show_problem, show_run

    ui = make_ui(False)
    if run_dir.is_file():
        raise UserError(
            f"{run_dir} is a file, and not the folder of a run",
            "give a folder, such as runs/latest; `mlxreflect runs` lists them",
        )
    if (run_dir / "job.json").is_file():
        from mlxreflect.core.journal import read_json
        from mlxreflect.runs.fit import show_training

        if not (run_dir / "summary.json").is_file():
            raise UserError(
                f"{run_dir} is not finished",
                f"continue it: mlxreflect resume {shlex.quote(str(run_dir))}",
            )
        ui.table(show_training(read_json(run_dir / "summary.json")))
        return
    parts = show_problem(run_dir, problem) if problem else show_run(run_dir, status or None)
    for part in parts:
        ui.table(part)


@app.command(rich_help_panel=LEARN, epilog="Example: mlxreflect view runs/latest --out page.html")
def view(
    folders: Annotated[
        list[Path],
        Argument(
            metavar="RUN_DIR…",
            help="Runs, trainings or evaluations; several are compared.",
            autocompletion=run_folders,
        ),
    ],
    out: Annotated[
        Path | None, Option(help="A file to write; default: served live on this machine.")
    ] = None,
) -> None:
    """Look at runs in a browser: verdict, curves, every attempt, critique and rewrite.

    Without --out a page that only this machine can open follows a run while it works.
    """
    require_mlx()
    from mlxreflect.view.page import write_page
    from mlxreflect.view.server import serve

    ui, paths = make_ui(False), [folder(path) or path for path in folders]
    if out is None:
        serve(paths, ui.line)
        return
    size = write_page(paths, out)
    ui.line(f"{out}: {size / 1e6:.1f} MB, one file to open or to send; it asks no server")


# ---- use the result ------------------------------------------------------------------------------


@app.command(
    rich_help_panel=USE,
    epilog="Example: mlxreflect solve 'numbers 3 4 5, target 35' --model tiny --task countdown",
)
def solve(
    question: Annotated[
        str, Argument(help="In words, or a task's JSON; countdown: numbers 3 4 5, target 35.")
    ],
    model: Model,
    adapter: Annotated[str, Option(help="A LoRA folder to put on it.")] = "",
    critic: Annotated[
        str, Option(help="none, self, solver, another provider, or the critic of a recipe.")
    ] = "self",
    rounds: Annotated[int, Option(min=2, help="The most answers.")] = 4,
    integrate: Annotated[
        bool, Option("--integrate", help="At the end, write one answer from them all.")
    ] = False,
    task: Annotated[str, Option(help="A task, such as countdown; default: none.")] = "",
    set_: SetSpec = None,
    as_json: Json = False,
) -> None:
    """Answer one question in rounds: think, criticise, think better, answer again."""
    require_mlx()
    from mlxreflect.config.schema import PolicyConfig
    from mlxreflect.evaluation import solve as solving
    from mlxreflect.models.load import load_policy
    from mlxreflect.models.template import with_tags

    chosen = solving.find_task(task)
    spec = solving.solve_spec(chosen, critic, rounds, integrate, set_ or [])
    problem, ui = solving.read_question(question, chosen), make_ui(as_json)
    if model == "tiny" and not adapter and chosen.name != "countdown":
        ui.line("warning: tiny knows only Countdown, and nothing else: add --task countdown, or "
                "give another --model")  # fmt: skip
    policy = load_policy(
        PolicyConfig(model=model, adapter=adapter, thinking=spec.thinking, template=spec.template),
        "--model",
    )
    policy.say = ui.line
    spec = with_tags(spec, policy.template)
    with ui.progress("solving", 1) as bar:
        result = solving.solve(policy, chosen, problem, spec, bar.update_text)
        bar.advance()
        given = result["took"]["samples"]
        bar.update_text(f"answers given: {given:.0f}, rounds at most: {spec.chain.rounds}")
    ui.result(result)
    if not as_json:
        for part in solving.render_solved(result):
            ui.table(part)


@app.command(
    rich_help_panel=USE,
    epilog="Example: mlxreflect fuse --model tiny --adapter runs/latest/adapter --out fused",
)
def fuse(
    model: Model,
    out: Annotated[Path, Option(help="The folder to make.")],
    adapter: Annotated[str, Option(help="An adapter's folder; none: only dequantise.")] = "",
    quantize: Annotated[int, Option(help="Bits: 4 or 8; 0: plain weights.")] = 0,
    prompt: Annotated[
        list[str] | None, Option(metavar="TEXT", help="One more prompt to compare.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its model, and check that the new model answers the same."""
    require_mlx()
    from mlxreflect.models.fuse import fuse as fuse_
    from mlxreflect.models.fuse import render_fused

    ui = make_ui(as_json)
    result = fuse_(model, adapter, out, quantize, prompt or [], ui)
    ui.result(result)
    ui.table(render_fused(result))


@app.command(rich_help_panel=USE, epilog="Example: mlxreflect export runs/latest --format trl")
def export(
    run_dir: RunFolder,
    format_: Annotated[
        str, Option("--format", help="trl, sharegpt, mlx-chat, graphml, or a form of the method.")
    ] = "",
    to: Annotated[str, Option(help=f"The model instead: {', '.join(MODELS)}.")] = "",
    base: Annotated[
        str, Option(metavar="NAME", help="The model, where it is not the one it was trained on.")
    ] = "",
    name: Annotated[str, Option(help="With --to: what it is called there.")] = "",
    quantize: Annotated[str, Option(help="With --to: 4 or 8 bits; for Ollama, q4_K_M.")] = "",
    prompt: Annotated[
        list[str] | None, Option(metavar="TEXT", help="With --to: one more prompt to compare.")
    ] = None,
    out: Annotated[
        Path | None, Option(help="A folder, or a .jsonl file; default: in the run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's training data, or its model, in a form that others read."""
    if bool(to) == bool(format_) or (to and to not in MODELS):
        near = get_close_matches(to, MODELS, 1)
        all_ = f"give --format trl for the data, or for the model --to {' or '.join(MODELS)}"
        raise UserError(
            f"--to {to}: no such form" if to and not format_ else "give one of --format and --to",
            f"did you mean --to {near[0]}?" if near and not format_ else all_,
        )
    given = {"base": base, "name": name, "quantize": quantize, "prompt": prompt}
    for option, value in given.items():
        if value and option not in MODELS.get(to, ()):
            form = f"--to {to}" if to else f"--format {format_}"
            raise UserError(f"--{option} does nothing with {form}", "leave it out")
    ui = make_ui(as_json)
    if to:
        require_mlx()
        from mlxreflect.report.share import render, share

        result = share(run_dir, to, out, base, name, quantize, prompt or [], ui)
        ui.result(result)
        ui.table(render(result))
        return
    from mlxreflect.report.export import export as export_

    result = export_(run_dir, format_, out)
    ui.result(result)
    if not as_json:
        unit = "edges" if format_ == "graphml" else "rows"
        rows = {name: f"{count} {unit}" for name, count in result["files"].items()}
        ui.header({**rows, "written to": result["out"]})


@app.command(
    rich_help_panel=USE,
    epilog="Example: mlxreflect publish runs/latest --to USER/NAME --dry-run",
)
def publish(
    run_dir: RunFolder,
    to: Annotated[str, Option(metavar="USER/NAME", help="The repository on the hub.")],
    fused: Annotated[
        bool, Option("--fused", help="The model with the adapter merged in, not the adapter.")
    ] = False,
    public: Annotated[
        bool, Option("--public", help="For everybody; default: private, for you.")
    ] = False,
    dry_run: Annotated[bool, Option(help="Show every file and the card; send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Publish a run on the Hugging Face hub: adapter, training data and a card with its verdict."""
    require_mlx()
    from mlxreflect.runs.publish import publish as publish_
    from mlxreflect.runs.publish import render_published

    ui = make_ui(as_json)
    told = publish_(run_dir, to, ui, fused=fused, public=public, dry_run=dry_run)
    ui.result(told)
    ui.table(render_published(told))
