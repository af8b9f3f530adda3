"""`mlxreflect annotate`: a person's worked solution of a problem, written out, graded and kept."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxreflect.cli.options import Json, Set, make_ui
from mlxreflect.core.errors import UserError

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe
    from mlxreflect.core.records import Problem, Turn


app = typer.Typer()
CUT = "------ >8 ------ your working stands above this line; below it is the problem ------"


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
    from mlxreflect.data.rows import fold
    from mlxreflect.evaluation.contamination import clean
    from mlxreflect.methods.rel_worked import add_worked, read_worked
    from mlxreflect.tasks import get_task

    ui = make_ui(as_json)
    loaded = load_recipe(recipe, set_ or [])
    task = get_task(loaded.task.name)
    make_place(file)
    known = read_worked(file) if file.exists() else []
    done = {fold(worked.question) for worked in known}
    found = choose(list(clean(loaded).problems.values()), problem, done, task.show)
    draft = None if working else file.with_name(f"{file.stem}-{found.id}.txt")
    kept = False
    try:
        notes = write_notes(task.show(found), draft) if draft else read_notes(working or file)
        turn = written_out(loaded, found, notes, not no_expand)
        if turn.verdict and turn.verdict.passed:
            add_worked(file, worked_of(turn, loaded, task.show(found), task.gold(found)))
            kept = True
    finally:  # whatever became of it, a person wrote it
        if draft and kept:
            draft.unlink(missing_ok=True)
        elif draft and draft.exists():
            ui.line(f"your working is in {draft}; the same command opens it again")
    reason = turn.error or (turn.verdict.reason if turn.verdict else "")
    ui.result({"problem": found.id, "file": str(file), "kept": kept, "reason": reason,
               "text": turn.text})  # fmt: skip
    ui.line(turn.text)
    said = f"added to {file}" if kept else f"not kept: {reason}"
    ui.line(f"problem {found.id}: {said}")
    if not kept:
        raise typer.Exit(1)


def make_place(file: Path) -> None:
    """See that the file can be added to, before anyone writes a line for it. Raises UserError."""
    from mlxreflect.methods.rel_worked import ADDED_TO

    if file.suffix.lower() not in ADDED_TO:
        raise UserError(
            f"{file}: worked solutions are added to Markdown and JSONL alone",
            "give a file that ends in .md or .jsonl",
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", "give another file") from None


def choose(problems: list["Problem"], asked: str, done: set[str], show: Any) -> "Problem":
    """The problem of an id, or the first that is not worked yet. done: folded questions."""
    from mlxreflect.data.rows import fold

    if asked:
        named = [p for p in problems if p.id.startswith(asked)]
        if len(named) == 1:
            return named[0]
        how = "no training problem" if not named else f"{len(named)} training problems"
        raise UserError(
            f"--problem {asked}: {how} of this recipe with such an id",
            f"give one in full, such as {problems[0].id}, or leave it out for the next",
        )
    for problem in problems:
        if fold(show(problem)) not in done:
            return problem
    raise UserError(
        "every training problem of this recipe is worked already",
        "raise task.limit, or give one again by its --problem",
    )


def read_notes(path: Path) -> str:
    """What a file says, or what stands in it above the line. Raises UserError for nothing."""
    try:
        notes = path.read_text(encoding="utf-8-sig").partition(CUT)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--working {path}: cannot be read ({error})", "give a file of UTF-8 text"
        ) from None
    if not notes:
        raise UserError(f"--working {path}: nothing is written in it", "write your working there")
    return notes


def write_notes(question: str, draft: Path) -> str:
    """What a person writes in $VISUAL or $EDITOR, which stays in `draft`.

    A draft that is there is opened again. Raises UserError where nothing was written.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    blank = f"\n\n{CUT}\n{question}\n"
    try:
        if not draft.exists():
            draft.write_text(blank, encoding="utf-8")
        subprocess.run([*shlex.split(editor), str(draft)], check=True)
        notes = draft.read_text(encoding="utf-8-sig").partition(CUT)[0].strip()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"the editor {editor!r} could not be used ({error})",
            "set EDITOR to one that is there, or give --working FILE",
        ) from None
    finally:
        if draft.exists() and draft.read_bytes() == blank.encode():
            draft.unlink()
    if not notes:
        draft.unlink(missing_ok=True)
        raise UserError(
            "no working was written", "write it above the line and save, or give --working FILE"
        )
    return notes


def written_out(recipe: "Recipe", problem: "Problem", notes: str, expand: bool) -> "Turn":
    """The notes as a solution, by the critic or as they are, with the grader's verdict."""
    from mlxreflect.core.records import Turn
    from mlxreflect.methods.rollouts import graded
    from mlxreflect.tasks import get_task

    if expand:
        turn = expanded(recipe, problem, notes)
    else:
        fault = None if has_answer(notes, recipe) else "no <answer>…</answer> at its end"
        turn = Turn(-1, None, "attempt", "human", [], solution_of(notes, recipe), error=fault)
    return turn if turn.error else graded(recipe, get_task(recipe.task.name), problem, turn)


def expanded(recipe: "Recipe", problem: "Problem", notes: str) -> "Turn":
    """What the critic makes of the notes."""
    from mlxreflect.critics import CRITICS
    from mlxreflect.critics.ledger import Ledger
    from mlxreflect.methods.roles import Moves, Round
    from mlxreflect.methods.session import turn_of
    from mlxreflect.tasks import get_task

    config = recipe.critic.tier("basic")
    critic = CRITICS[config.provider](config, recipe.task.name, "annotate", Ledger())
    try:
        critic.preflight()
        moves = Moves(recipe, get_task(recipe.task.name))
        call = moves.expand(problem, notes, Round("basic", 0, "annotate"))
        (reply,) = critic.ask([call])
    finally:
        critic.close()
    return turn_of(call, reply, critic.actor, None)


def solution_of(notes: str, recipe: "Recipe") -> str:
    """Notes in the format asked for: what stands before the answer is the thought."""
    from mlxreflect.prompts.messages import ANSWER, TAGS, parse_response

    if parse_response(notes, recipe.prompt.tags, recipe.prompt.style).format_ok:
        return notes
    start, end = TAGS[recipe.prompt.tags]
    thought, opening, answer = notes.rpartition(ANSWER[0])
    return f"{start}\n{thought.strip()}\n{end}\n{opening}{answer.strip()}" if opening else notes


def has_answer(notes: str, recipe: "Recipe") -> bool:
    from mlxreflect.prompts.messages import parse_response

    return parse_response(notes, recipe.prompt.tags, recipe.prompt.style).answer is not None


def worked_of(turn: "Turn", recipe: "Recipe", question: str, gold: str | None) -> Any:
    from mlxreflect.methods.rel_worked import Worked
    from mlxreflect.prompts.messages import thought_of

    thought = thought_of(turn.text, recipe.prompt.tags).strip()
    return Worked(question, thought, gold or turn.parsed, "annotate")
