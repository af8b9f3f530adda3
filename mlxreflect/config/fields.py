"""Fields of a recipe's tables: kinds of values, and marks that say more of a key.

A mark stands in the key's type. `Local` is on a key that may name something on this machine;
`Idle` names the methods and objectives that do nothing with a key.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.fields import FieldInfo

from mlxreflect.config.toml import flatten, local_path, table_of, toml_value
from mlxreflect.core.errors import UserError

Positive = Annotated[int, Field(ge=1, le=2**53)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Gigabytes = Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"]
# A list of names, or as on a command line the one or several with commas between them.
WITH_COMMAS = BeforeValidator(lambda v: v.split(",") if isinstance(v, str) and v else v)
Names = Annotated[list[str], WITH_COMMAS]
# Programs that draw curves of many runs, each by the extra of its name.
Trackers = Annotated[list[Literal["tensorboard", "wandb", "trackio", "mlflow"]], WITH_COMMAS]


def split_specs(given: Any) -> Any:
    """Returns a text as the names between its commas. Raises ValueError where one is missing."""
    if not isinstance(given, str):
        return given
    names = [name.strip() for name in given.split(",")]
    if len(names) > 1 and "" in names:
        raise ValueError("no name stands before or behind a comma")
    return names


# The same, also the empty name; written back as a name where it is one.
Specs = Annotated[
    list[str],
    BeforeValidator(split_specs),
    PlainSerializer(lambda v: v[0] if len(v) == 1 else v),
    Field(min_length=1),
]
OneOrMore = BeforeValidator(lambda v: v if isinstance(v, list) else [v])  # of a list's key
# As Ollama reads one: whole seconds, also as a number, or with units.
Duration = Annotated[
    str,
    BeforeValidator(lambda v: str(v) if type(v) is int else v),
    Field(pattern=r"^(-?\d+|(\d+(\.\d+)?(ms|s|m|h))+)?$"),
]
Objective = Literal["dpo", "ipo", "exo_pair", "orpo"]  # of preference pairs


class Table(BaseModel):
    # strict: "8" is no number and 1 no boolean; infinity could not be written back as TOML.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


T = TypeVar("T")
# USER/NAME of the hub
HUB_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
HubName = Annotated[str, Field(pattern=f"^({HUB_NAME.pattern})?$")]


@dataclass(frozen=True)
class Local:
    """Marks a value, or a list of them, that may be a path on this machine.

    is_path: whether a path is meant. names: values that are none. only: other keys of the table
    with the values that they must have.
    """

    is_path: Callable[[Path], bool]
    names: tuple[str, ...] = ()
    only: Mapping[str, object] = field(default_factory=dict)


class Overrides:
    """Marks a table that holds other values for the keys of the table that it stands in."""


Over = Annotated[dict[str, Any], Overrides()]


class Idle:
    """Marks a key, or a whole table, that does nothing for these methods and objectives."""

    def __init__(self, *names: str) -> None:
        self.names = names


LocalPath = Annotated[str, Local(Path.exists)]  # a file or folder, or else a name of the hub
LocalFile = Annotated[str, Local(Path.is_file)]  # a file, or else a bundled name
# FILE.py:FUNCTION of a person's own
LocalFunction = Annotated[str, Local(lambda path: Path(str(path).rpartition(":")[0]).is_file())]
LocalModel = Annotated[str, Local(Path.exists, names=("tiny",))]
# A folder, or an address of fsspec, "s3://…", whose slashes are one in a path.
Mirror = Annotated[str, Local(lambda path: ":/" not in str(path))]
CachePath = Annotated[str, Local(lambda path: True, names=("off",))]  # made where it is not there


def mark_of(info: FieldInfo, kind: type[T]) -> T | None:
    return next((mark for mark in info.metadata if isinstance(mark, kind)), None)


def make_paths_whole(
    tree: Any, model: type[BaseModel], over: Any = None, base: Path = Path()
) -> None:
    """Replaces relative paths in a tree of `model` by whole ones, so that it holds in any folder.

    over: what the tree overrides, where it is not the whole table. base: the folder that they are
    relative to; a name that is no path there stays.
    """
    if not isinstance(tree, dict):
        return  # a fault that validation names
    values = {**(over or {}), **tree}
    for name, info in model.model_fields.items():
        if name not in tree:
            continue
        if inner := table_of(info):
            make_paths_whole(tree[name], inner, base=base)
        elif mark_of(info, Overrides):
            make_paths_whole(tree[name], model, values, base)
        elif (mark := mark_of(info, Local)) and mark.only.items() <= values.items():
            tree[name] = whole(tree[name], mark, base)


def paths_from(file: Path, tree: Any, model: type[BaseModel]) -> None:
    """Makes whole the paths in a file's tree, which are relative to the file."""
    if file.parent.resolve() != Path.cwd():
        make_paths_whole(tree, model, base=file.parent)


def whole(value: Any, mark: Local, base: Path) -> Any:
    """Returns the whole path that a name stands for, also in a list; other names stay."""
    if isinstance(value, list):
        return [whole(one, mark, base) for one in value]
    if not isinstance(value, str) or not value or value in mark.names:
        return value
    path = base / local_path(value)
    return str(path.absolute()) if mark.is_path(path) else value


def idle_keys(model: type[BaseModel], name: str, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys and tables of `model` that do nothing for a method or objective."""
    for key, info in model.model_fields.items():
        mark = mark_of(info, Idle)
        if mark and name in mark.names:
            yield prefix + key
        elif inner := table_of(info):
            yield from idle_keys(inner, name, f"{prefix}{key}.")


def refuse(path: Path, *faults: tuple[bool, str, str]) -> None:
    """Raises UserError for the first of (whether it is there, what is wrong, what mends it)."""
    for there, wrong, hint in faults:
        if there:
            raise UserError(f"{path}: {wrong}", hint)


def refuse_idle(
    table: BaseModel, usual: BaseModel, keys: Mapping[str, str], path: Path, prefix: str = ""
) -> None:
    """Raises UserError for keys at or below `keys`, each with its reason, with another value.

    All that do nothing for the same reason are named, with the settings that take them back.
    prefix: of the table's keys, such as "train.".
    """
    plain, idle = flatten(usual.model_dump()), dict[str, dict[str, Any]]()
    for key, value in flatten(table.model_dump()).items():
        for name, reason in keys.items():
            if f"{key}.".startswith(f"{name}.") and value != plain.get(key):
                idle.setdefault(reason, {})[key] = value
    for reason, given in idle.items():
        one, named = len(given) == 1, ", ".join(f"{prefix}{k} = {v!r}" for k, v in given.items())
        usuals = [f"{prefix}{k}={v if isinstance(v := plain.get(k), str) else toml_value(v)}"
                  for k in given]  # fmt: skip
        back = " ".join(f"--set {quote(setting)}" for setting in usuals)
        raise UserError(
            f"{path}: {named} {'does' if one else 'do'} nothing for {reason}",
            f"leave {'that key' if one else 'those keys'} out, or: {back}",
        )


class GrpoConfig(Table):
    clip_ratio: Rate = 0.2  # how far a probability ratio may leave 1: TRL's epsilon
    epsilon_high: Amount = 0.0  # how far above 1 (clip-higher; DAPO: 0.28); 0: as clip_ratio
    # whose ratio: each token's, or a response's, the geometric mean of its tokens' (GSPO)
    importance_sampling_level: Literal["token", "sequence"] = "token"
    kl: Amount = 0.0  # weight of the distance from the reference
    average: Literal["sequence", "token"] = "sequence"  # each response, or each token, counts alike
    scale_rewards: bool = True  # by the group's standard deviation


def check_clipping(grpo: GrpoConfig, path: Path, prefix: str) -> None:
    """Raises UserError where the upper bound of a ratio is nearer to 1 than the lower one."""
    refuse(path, (
        0 < grpo.epsilon_high < grpo.clip_ratio,
        f"{prefix}epsilon_high = {grpo.epsilon_high:g} is below {prefix}clip_ratio = "
        f"{grpo.clip_ratio:g}",
        f"raise {prefix}epsilon_high or lower {prefix}clip_ratio (TRL's epsilon); 0: both alike",
    ))  # fmt: skip


def split_name(reference: str, key: str) -> tuple[Path, str]:
    """Returns file and function of "mine.py:grade". Raises UserError for anything else."""
    file, _, function = reference.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise UserError(
            f"{key} = {reference!r} names no function of a Python file",
            f'write FILE.py:FUNCTION, such as {key} = "mine.py:grade"',
        )
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{key}: {file}: no such file", "name a file that is there")
    return path, function
