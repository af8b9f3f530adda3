"""The commands whose work several hosts can share, and how each host takes its part."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from mlxreflect.cli import fail, require_mlx
from mlxreflect.core.errors import UserError
from mlxreflect.core.launched import is_launched, launched_rank

if TYPE_CHECKING:
    from mlxreflect.core.hosts import Hosts

SHARED = ("run", "train", "resume", "eval")
HostsFile = Annotated[
    Path | None,
    Option("--hosts", metavar="FILE", help="Hosts that share the work: a file of mlx.launch."),
]


@contextmanager
def shared(
    file: Path | None = None, check: Callable[[], object] = lambda: None
) -> Iterator["Hosts | None"]:
    """Hands the hosts that share a command's work to the first of them, which does the command.

    The others follow it to its end, and do nothing else. None where there is but this process.
    Where a file of hosts is given, the command is started on each of them, and ends here with the
    exit code of the first. check: of what was typed, before anything is started.
    """
    if file:
        check()
        raise Exit(start_on(file))
    if not is_launched():
        yield None
        return
    require_mlx()
    if launched_rank():
        follow_first()
        raise Exit
    from mlxreflect.core.hosts import joined

    with joined() as hosts:
        yield hosts


def start_on(file: Path) -> int:
    """Starts this process's command on the hosts of a file; returns the first one's exit code."""
    if is_launched():
        raise UserError(
            f"--hosts {file}: mlx.launch has started this process on its hosts already",
            "leave --hosts out, or mlx.launch",
        )
    from mlxreflect.setup.launch import check_reachable, launch, read_hosts

    hosts = read_hosts(file)
    check_reachable(hosts)
    return launch(hosts, ["-m", "mlxreflect", *without_hosts(sys.argv[1:])])


def without_hosts(arguments: list[str]) -> list[str]:
    """Returns the arguments without --hosts and its file."""
    found, given = list[str](), iter(arguments)
    for argument in given:
        if argument == "--hosts":
            next(given, None)
        elif not argument.startswith("--hosts="):
            found.append(argument)
    return found


def follow_first() -> None:
    """Does what the first host orders, until it has ended. Tells a person what it no longer can."""
    from mlxreflect.core.hosts import joined
    from mlxreflect.runs.follow import follow

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first, which ends all
    try:
        with joined() as hosts:
            follow(hosts)
    except UserError as error:
        fail(error.message, error.hint)
    except KeyboardInterrupt:  # mlx.launch ends all where one has ended
        raise SystemExit(130) from None
