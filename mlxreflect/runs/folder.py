"""The folder of a run or of a training: create, lock, journal, commit, take back, resume.

A run begins with recipe.toml and run.json, a training with job.toml and job.json. Both have
journals and `checkpoints/`: a commit `wave-NNNNN` or `step-NNNNN` holds the adapter, the
optimizers, the reference and the state. Whatever stops the work, it goes on from the last commit.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any, Generic, TextIO, TypeVar

from mlxreflect.config.recipe import (
    RESUMABLE,
    check_kept,
    check_mirror,
    check_spending,
    digest,
    dump_recipe,
    fetch_digests,
    resolved,
    with_whole_paths,
)
from mlxreflect.config.schema import Job, Recipe
from mlxreflect.config.toml import apply_settings, dump_toml, flatten, read_toml, validate
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.core.journal import (
    Commits,
    count_rows,
    digest_of,
    read_json,
    take_lock,
    write_atomic,
)
from mlxreflect.core.launched import hosts_option
from mlxreflect.core.liveness import HostGone, what_then
from mlxreflect.core.machine import machine_fault, swap_used
from mlxreflect.core.ui import Ui
from mlxreflect.data.matching import FILE
from mlxreflect.runs.mirror import Mirror, bring_back, mirrored
from mlxreflect.runs.track import Follower, tracked

C = TypeVar("C", bound=Recipe | Job)


@dataclass(frozen=True)
class Kind(Generic[C]):
    """The differences between the folder of a run and that of a training.

    word: of its folder. identity: the JSON file that says what it began with, under `key`; text:
    the same as TOML. option: that names the folder. resumable: keys that may change on resume.
    """

    word: str
    model: type[C]
    key: str
    text: str
    identity: str
    option: str
    prefix: str
    journals: tuple[str, ...]
    tree: Callable[[C], dict[str, Any]]
    dump: Callable[[C], str]
    check: Callable[[C, Path], None]
    resumable: tuple[str, ...] = ()

    @property
    def first(self) -> set[str]:
        """Files that a process killed while it began may leave: not yet a run."""
        return {".lock", self.text, f"{self.text}.tmp", f"{self.identity}.tmp"}


def check_resumed(recipe: Recipe, path: Path) -> None:
    check_mirror(recipe.mirror, path)
    check_spending(recipe, path)
    fetch_digests(resolved(recipe), path)
    check_kept(recipe.prompt.file, recipe.prompt.templates)


RUN = Kind(
    "run", Recipe, "recipe", "recipe.toml", "run.json", "--run-dir", "wave",
    ("episodes.jsonl", "examples.jsonl", "preference.jsonl", "sft.jsonl", "metrics.jsonl",
     "graph.jsonl"),
    resolved, dump_recipe, check_resumed, RESUMABLE,
)  # fmt: skip
JOB = Kind(
    "training", Job, "job", "job.toml", "job.json", "--out", "step", ("metrics.jsonl",),
    Job.model_dump, lambda job: dump_toml(job.model_dump()),
    lambda job, path: check_mirror(job.mirror, path),
    tuple(key for key in RESUMABLE if key.startswith(("mirror", "track", "train."))),
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder(Generic[C]):
    """A folder, locked by this process while it is open.

    made: the folders that were made for it, the innermost first; None: it is resumed. latest: a
    link beside it is to name it, once it has begun. swapped: `swap_used` when it was opened.
    after_epoch: is called with the number of each epoch that is over. hosts: that share its work.
    """

    path: Path
    config: C
    kind: Kind[C]
    lock: TextIO
    made: Sequence[Path] | None = None
    latest: bool = False
    swapped: float = field(default_factory=lambda: swap_used())
    trackers: list[Follower] = field(default_factory=list)
    after_epoch: list[Callable[[int], None]] = field(default_factory=list)
    mirrors: list[Mirror] = field(default_factory=list)  # one, or none
    hosts: Hosts = ALONE

    @property
    def again(self) -> str:
        """Returns the command that goes on with it, on the hosts that it was given."""
        return f"mlxreflect resume {quote(str(self.path))} {hosts_option()}".rstrip()

    @property
    def id(self) -> str:
        return str(read_json(self.path / self.kind.identity)["id"])

    def write_json(self, name: str, value: Any) -> None:
        write_atomic(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def finished(self, ui: Ui) -> dict[str, Any] | None:
        """Returns the summary of what is finished, and says so; None where there is work left."""
        file = self.path / "summary.json"
        if not file.is_file() or read_json(file).get("unjudged"):
            return None
        ui.line(f"{self.path} is already finished; this is its result")
        return read_json(file)

    def keep_data(self, digest: str, given: str) -> None:
        """Remembers what is learned from and tested on. Raises UserError where it was other data.

        given: the data and what gives them, as "rows than x.jsonl gives".
        """
        identity = read_json(self.path / self.kind.identity)
        if "data" not in identity:
            write_identity(self.path / self.kind.identity, {**identity, "data": digest})
        elif identity["data"] != digest:
            raise UserError(
                f"{self.path} began with other {given} now",
                "bring the data back as they were, for gym:NAME the version of reasoning_gym, or "
                f"begin a new {self.kind.word}",
            )

    # ---- commits --------------------------------------------------------------------------------

    @cached_property
    def commits(self) -> Commits:
        return Commits(self.path, self.kind.prefix, (*self.kind.journals, *self.asked))

    @property
    def asked(self) -> tuple[str, ...]:
        """Returns the journal of a run's probes, where its recipe has any."""
        probes = self.config.probes.prompts if isinstance(self.config, Recipe) else []
        return ("probes.jsonl",) if probes else ()

    def last_commit(self, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """Returns what `Commits.last` does. Raises UserError where commits are lost."""
        journals = [self.path / name for name in self.kind.journals]
        begun = [file for file in journals if file.is_file() and file.stat().st_size]
        if isinstance(self.config, Recipe):
            # The first rows of probes are also those of a run that was killed in its first commit.
            probes = self.path / "probes.jsonl"
            begun += [probes] if count_rows(probes) > len(self.config.probes.prompts) else []
        if begun and not self.commits.all():
            raise UserError(
                f"{begun[0]} has rows, and there is no commit to go on from",
                f"bring {self.commits.folder} back, or begin a new {self.kind.word}",
            )
        last = self.commits.last(say)
        self.follow()
        return last

    def commit(
        self, number: int, rows: Mapping[str, list[dict[str, Any]]], state: dict[str, Any],
        save: Callable[[Path], None],
    ) -> None:  # fmt: skip
        """Appends rows and commits, as `Commits.add` does; the first commit begins the run.

        Raises UserError, once it is committed, where swap has grown by more than `train.swap_gb`.
        """
        self.commits.add(number, rows, state, save)
        self.follow()
        if self.latest and not number:
            point_latest(self.path)
        limit = self.config.train.swap_gb
        if limit and (grown := swap_used() - self.swapped) > limit:
            raise UserError(
                f"the machine uses {grown:.1f} GB more swap than when this began, and "
                f"train.swap_gb = {limit:g}",
                "close other programs, lower train.part_tokens or raise train.swap_gb, then: "
                f"{self.again}",
            )

    def follow(self) -> None:
        """Lets the trackers read what is committed of metrics.jsonl, and has the commit copied.

        The first time starts the trackers.
        """
        if not self.commits.all():
            return
        file = self.path / "metrics.jsonl"
        for tracker in self.trackers:
            tracker.send(file.stat().st_size if file.is_file() else 0)
        for mirror in self.mirrors:
            mirror.send()

    # ---- the end --------------------------------------------------------------------------------

    def take_back(self) -> bool:
        """Removes a new folder whose work has not begun; False where it can be resumed."""
        if self.made is None or self.commits.folder.exists():
            return False
        own = self.kind.identity, "bad_rows.jsonl", FILE, *self.commits.journals
        for name in {*self.kind.first, *own}:
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            for folder in self.made:
                folder.rmdir()
        return True

    def close(self) -> None:
        self.lock.close()


class Stopped(KeyboardInterrupt):
    """Ctrl-C while a folder was being worked on; its text says how to go on."""


@contextmanager
def carried_out(folder: RunFolder[C]) -> Iterator[None]:
    """Work in a folder that is closed afterwards; whatever stops it, the error says how to go on.

    A new folder whose work has not begun is taken back.
    """
    again = folder.again
    try:
        folder.hosts.goes_on(again)
        yield
    except KeyboardInterrupt:
        gone = folder.take_back()
        said = " before it began; nothing is left of it" if gone else f"; go on with: {again}"
        raise Stopped(f"stopped{said}") from None
    except HostGone as gone:
        hint = what_then() if folder.take_back() else gone.hint
        raise HostGone(gone.message, hint) from None
    except UserError:
        folder.take_back()
        raise
    except (OSError, RuntimeError) as error:
        fault = machine_fault(error)
        if fault is None:
            raise
        again = "give the same command again" if folder.take_back() else again
        raise UserError(fault.message, f"{fault.hint}, then: {again}") from None
    finally:
        folder.close()


def carry_out(
    folder: RunFolder[Any], ui: Ui | None = None, *, named: bool = False, hosts: Hosts = ALONE
) -> dict[str, Any]:
    """Does what is left of a run or a training, as `carried_out` says, and returns its summary.

    ui: by default a quiet one. named: the summary has the `folder`, too. hosts: that share the
    work; this process is their first.
    """
    ui, folder = ui or Ui(quiet=True), replace(folder, hosts=hosts)
    config = folder.config
    with carried_out(folder), publishing(folder, ui), ExitStack() as stack:
        mirror = mirrored(config.mirror, folder.commits, folder.id, ui.line)
        folder.mirrors.extend(stack.enter_context(mirror))
        keys = flatten(folder.kind.tree(config))
        trackers = tracked(config.track, folder.path, folder.id, keys, ui.line)
        folder.trackers.extend(stack.enter_context(trackers))
        if folder.kind is JOB:
            from mlxreflect.runs.fit import train as work
        else:
            from mlxreflect.runs.run import execute as work  # type: ignore[assignment]
        summary = work(folder, ui)
        folder.follow()  # also a run that was finished: a tracker or a mirror may lack the end
    return {**summary, "folder": str(folder.path)} if named else summary


@contextmanager
def publishing(folder: RunFolder[Any], ui: Ui) -> Iterator[None]:
    """Pushes to the hub what is done in the block, where a recipe says so."""
    config = folder.config
    if not isinstance(config, Recipe) or not config.publish.to:
        yield
        return
    from mlxreflect.runs.publish import pushed

    with pushed(folder.path, config, ui.line) as pusher:
        if config.publish.each == "epoch":
            folder.after_epoch.append(pusher.queue.put)
        yield


# ---- a new folder --------------------------------------------------------------------------------


def create_run(recipe: Recipe, path: Path | None = None) -> RunFolder[Recipe]:
    """Makes the folder of a run; without a path below runs/, where `latest` then names it.

    Raises UserError where something already is.
    """
    recipe = with_whole_paths(recipe)
    if path:
        return create(RUN, recipe, path)
    model = recipe.policy.model.rstrip("/").rsplit("/", 1)[-1]
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{recipe.name}--{model}--{stamp}-{digest(recipe)[:4]}"
    folder = create(RUN, recipe, Path("runs") / re.sub(r"[^\w.-]+", "-", name).lstrip("."))
    return replace(folder, latest=True)


def create_job(job: Job, path: Path) -> RunFolder[Job]:
    """Makes the folder of a training. Raises UserError where something already is."""
    return create(JOB, job, path)


def create(kind: Kind[C], config: C, path: Path) -> RunFolder[C]:
    try:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        if not made and (
            not path.is_dir() or any(p.name not in kind.first for p in path.iterdir())
        ):
            begun = f"continue it with: mlxreflect resume {quote(str(path))}, or "
            hint = f"{begun if (path / kind.identity).is_file() else ''}give another {kind.option}"
            raise UserError(f"{path} already exists", hint)
        path.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", f"give another {kind.option}") from None
    write_atomic(path / kind.text, kind.dump(config))
    identity = {
        "schema": kind.identity.replace(".json", "/1"),
        "id": f"{path.name}-{time.time_ns():x}", "version": version("mlxreflect"),
        **({"digest": digest(config)} if isinstance(config, Recipe) else {}),
        kind.key: kind.tree(config),
    }  # fmt: skip
    write_identity(path / kind.identity, identity)
    return RunFolder(path, config, kind, lock, made)


def write_identity(file: Path, identity: dict[str, Any]) -> None:
    """Writes run.json or job.json with its own SHA-256, which tells a damaged or edited one."""
    told = {key: value for key, value in identity.items() if key != "sha256"}
    write_atomic(file, json.dumps({**told, "sha256": digest_of(told)}, indent=1) + "\n")


def point_latest(path: Path) -> None:
    """Makes the link `latest` beside a folder name it, where the file system has links."""
    link = path.with_name("latest")
    temporary = path.with_name(f".latest-{os.getpid()}")
    with suppress(OSError):
        if link.is_symlink() or not link.exists():
            temporary.symlink_to(path.name)
            temporary.replace(link)


# ---- one to go on with ---------------------------------------------------------------------------


def open_folder(path: Path, settings: Sequence[str] = ()) -> RunFolder[Any]:
    """Opens the folder of a run or a training that was stopped.

    settings: `key=value` of the keys that may change. Raises UserError for a changed recipe, naming
    the changed keys, and for a folder of another version.
    """
    path = path.resolve() if path.is_symlink() else path  # `latest` may name another one soon
    kinds: tuple[Kind[Any], ...] = (RUN, JOB)
    kind = next((kind for kind in kinds if (path / kind.identity).is_file()), None)
    if kind is None:
        raise UserError(
            f"{path} is not a run folder",
            "`mlxreflect runs` lists them, runs/latest is the newest",
        )
    text = path / kind.text
    old = flatten(began_with(kind, path))  # first: it says which version made the folder
    now = kind.tree(validate(kind.model, read_toml(text), text))
    new = flatten(now)
    changed = sorted(k for k in {**old, **new} if old.get(k) != new.get(k))
    if refused := [k for k in changed if k not in kind.resumable]:
        were = ", ".join(f"{k} (was {old.get(k)!r}, is {new.get(k)!r})" for k in refused)
        raise UserError(
            f"{text} was changed: {were}", f"set {refused[0]} back, or begin a new {kind.word}"
        )
    for setting in settings:
        if setting.partition("=")[0].strip() not in kind.resumable:
            some = f"only these can change: {', '.join(kind.resumable)}"
            raise UserError(
                f"--set {setting}: a {kind.word} is resumed with the keys it began with",
                f"{some if kind.resumable else 'leave --set out'}; or begin a new {kind.word}",
            )
    config = validate(kind.model, apply_settings(now, settings), text, settings)
    kind.check(config, text)
    return RunFolder(path, config, kind, take_lock(path))


def open_mirror(
    place: str, path: Path | None = None, settings: Sequence[str] = (), ui: Ui | None = None
) -> RunFolder[Any]:
    """Makes the folder of a run or a training from its mirror, and opens it.

    The mirror stays its mirror. path: of the folder, by default below runs/. Raises UserError where
    something already is.
    """
    place = place.rstrip("/") if "://" in place else str(Path(place).absolute())
    around, _, name = place.rpartition("/")
    path = path or Path("runs") / name
    bring_back(place, path, ui or Ui(quiet=True))
    return open_folder(path, [f"mirror={around}", *settings])


def began_with(kind: Kind[C], path: Path) -> dict[str, Any]:
    """Returns the keys in the identity, with this version's usual values of keys it has not.

    Raises UserError where there are none, or those of another version, or not as they were written.
    """
    file = path / kind.identity
    identity = read_json(file)
    # Folders of before there was one have no SHA-256, and no key that is not known.
    unsealed = not identity.keys() - {"schema", "id", "version", "digest", "data", kind.key}
    whole = identity.pop("sha256", "") == digest_of(identity)
    keys, made_by = identity.get(kind.key), str(identity.get("version", ""))
    if not isinstance(keys, dict):
        raise UserError(
            f"{file}: no {kind.key} in it", f"restore that file, or begin a new {kind.word}"
        )
    ours = made_by.split(".")[:2] == version("mlxreflect").split(".")[:2]
    named = made_by and not (ours and unsealed)
    maker, fault = f"version {made_by}" if named else "an older version", ""
    if ours and not unsealed:
        if not whole:
            begin = f": mlxreflect run {quote(str(path / kind.text))}"
            anew = begin if kind.model is Recipe else ""
            raise UserError(
                f"{file} is damaged or was edited: it is not as it was written",
                f"restore that file, or begin a new {kind.word}{anew}",
            )
        try:
            return kind.tree(validate(kind.model, keys, file))
        except UserError as error:
            maker, fault = "another version", f" ({error.message})"
    raise UserError(
        f"{path} was made by {maker} of mlxreflect{fault}",
        f"go on with it by that version, or begin a new {kind.word}; `mlxreflect show` reads it",
    )
