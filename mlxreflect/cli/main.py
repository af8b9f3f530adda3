"""The command line: one program of all commands, and errors in two lines."""

import os
import sys
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from mlxreflect.cli import evaluate, fail, run, setup
from mlxreflect.cli.hosts import SHARED
from mlxreflect.core.errors import UserError
from mlxreflect.core.launched import is_launched, launched_rank, leave_word
from mlxreflect.core.machine import awake, machine_fault

# click's, or that of the copy of it in typer
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
app = typer.Typer(
    help="Make small language models reason better on your own machine, and prove that they did.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with: mlxreflect run quickstart",
)
for commands in (setup, run, evaluate):
    app.add_typer(commands.app)


def say_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"mlxreflect {version('mlxreflect')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=say_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Holds the options of the program itself; a Mac stays awake while a command runs."""
    command = context.invoked_subcommand
    if command is None:
        print(context.get_help())
    elif is_launched() and command not in SHARED:
        raise UserError(
            f"mlxreflect {command}: mlx.launch starts it on several hosts, and it is of one",
            f"give it without mlx.launch; {', '.join(SHARED)} can be launched",
        )
    context.with_resource(awake())


def main() -> None:
    """Runs the command line. Of several hosts, the first leaves word of how it ended."""
    code: object = 1  # of a traceback
    leave_word("pid", os.getpid())
    try:
        run_command()
    except SystemExit as end:
        code = end.code or 0
        raise
    finally:
        leave_word("code", code)


def run_command() -> None:
    """Runs a command. A person's mistake is two lines and exit code 2; a bug is a traceback."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        sys.exit(app(prog_name="mlxreflect", standalone_mode=False))
    except UsageError as error:
        leave_to_first()
        fail(*usage(error, sys.argv[1:2]))
    except typer.Abort:  # the input ended, or Ctrl-C, where something was asked
        print("\nstopped; nothing is written", file=sys.stderr)
        sys.exit(1)
    except UserError as error:
        leave_to_first()
        fail(error.message, error.hint)
    except PermissionError as error:
        fail(f"{error.filename}: permission denied", "give a folder that you may write to")
    except (OSError, RuntimeError) as error:
        fault = machine_fault(error)
        if fault is None:
            raise
        fail(fault.message, f"{fault.hint}, then give the same command again")


def leave_to_first() -> None:
    """Ends a process of several that is not the first: each of them finds the same mistake.

    As if all were well: mlx.launch ends all where one fails, and the first is still to speak.
    """
    if launched_rank():
        sys.exit(0)


def usage(error: Any, begun: list[str]) -> tuple[str, str]:
    """Returns what is wrong with a command line that begins like this, and what mends it."""
    program: Any = typer.main.get_command(app)
    commands = program.commands
    command = next((commands[name] for name in begun if name in commands), program)
    path = " ".join(["mlxreflect", *(name for name in begun if command is not program)])
    named = {option: param for param in command.params for option in param.opts}
    options = [option for option in named if option.startswith("-")]
    wrong, said = getattr(error, "option_name", ""), error.message.rstrip(".")
    if param := getattr(error, "param", None) or named.get(wrong):
        return f"{path}: {misgiven(error, param)}", meaning(param, command.epilog)
    if wrong:
        near = get_close_matches(f"--{wrong.lstrip('-')}", options, 1)
        all_ = f"the options are: {', '.join(options)}"
        return f"{path}: no option {wrong}", f"did you mean {near[0]}?" if near else all_
    if command is program:
        near = get_close_matches(begun[0], commands, 1)
        all_ = f"the commands are: {', '.join(commands)}"
        hint = f"did you mean mlxreflect {near[0]}?" if near else all_
        return f"no command {begun[0]!r}", hint
    fault = said.replace("Got", "got").replace("argument(s)", "arguments")
    if "--set" in options and "=" in fault:
        hint = "write --set before each of them: --set task.limit=100 --set eval.limit=100"
        return f"{path}: {fault}", hint
    return f"{path}: {fault}", f"leave them out, or quote what holds blanks. {command.epilog}"


def misgiven(error: Any, param: Any) -> str:
    """Returns what is wrong with an option or an argument that is known."""
    from pydantic import ValidationError  # heavy

    name, said = name_of(param), error.message.rstrip(".")
    if hasattr(error, "param_type"):
        return f"{name} is missing"
    if hasattr(error, "option_name"):  # "Option '--set' requires an argument"
        told = said.rpartition("' ")[2].replace("an argument", "a value")
        return f"{name} {told}"
    if isinstance(error.__cause__, ValidationError):  # which does not show what was given
        fault = error.__cause__.errors()[0]
        name, said = f"{name} {fault['input']}", fault["msg"].partition(",")[0]
    return f"{name}: {said[:1].lower()}{said[1:]}"


def name_of(param: Any) -> str:
    is_option = param.param_type_name == "option"
    return str(param.opts[0] if is_option else param.metavar or param.name.upper())


def meaning(param: Any, example: str) -> str:
    """Returns what an option or an argument is, with a number as an example, or a command."""
    usual = getattr(param, "default", None)
    if type(usual) in (int, float):
        example = f"For example: {param.opts[0]} {usual or (8 if type(usual) is int else 0.05)}"
    return f"{name_of(param)}: {param.help} {example}"
