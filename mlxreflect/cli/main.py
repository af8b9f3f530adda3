"""The command line: one program of all commands, and errors in two lines."""

import os
import sys
from typing import Annotated

import typer

from mlxreflect.cli import evaluate, run, setup
from mlxreflect.core.errors import UserError
from mlxreflect.core.machine import awake, machine_fault
from mlxreflect.core.ui import safe_text

app = typer.Typer(
    help="Make small language models reason better on your own machine, and prove that they did.",
    no_args_is_help=True,
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
    context.with_resource(awake())


def main() -> None:
    """Runs a command. A person's mistake is two lines and exit code 2; a bug is a traceback."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        app(prog_name="mlxreflect")
    except UserError as error:
        fail(error.message, error.hint)
    except PermissionError as error:
        fail(f"{error.filename}: permission denied", "give a folder that you may write to")
    except (OSError, RuntimeError) as error:
        fault = machine_fault(error)
        if fault is None:
            raise
        fail(fault.message, f"{fault.hint}, then give the same command again")


def fail(message: str, hint: str) -> None:
    """Prints exactly two lines, whatever the data quoted in them holds."""
    for label, text in (("error", message), ("hint", hint)):
        print(f"{label}: {safe_text(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(2)
