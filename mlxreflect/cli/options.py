"""What the commands share: common options, and the machine that they need."""

from typing import TYPE_CHECKING, Annotated

import typer

from mlxreflect.core.errors import UserError

if TYPE_CHECKING:
    from mlxreflect.core.ui import Ui


Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


def make_ui(as_json: bool) -> "Ui":
    from mlxreflect.core.ui import Ui

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
