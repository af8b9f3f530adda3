"""The mirror of a run: its commits, copied to a folder, a bucket or any other address of fsspec.

At MIRROR/RUN files are kept in parts, `part-SHA256`, so nothing is sent twice and a journal that
has grown sends its last part only. A manifest says which parts make up which file of a commit. It
is written last and never again, and names that nothing names any more are removed after it: a
mirror whose writer was killed at any instant has a whole commit. No store needs to rename.

A thread copies, in order, the newest commit that waits. Nothing of it is in the run's way: what a
store raises is one warning, and is tried again. One process writes a mirror, the last that began.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from shlex import quote
from tempfile import TemporaryDirectory
from threading import Event, Lock, Thread
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import AfterValidator, Field
from tenacity import (
    RetryCallState,
    Retrying,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
)
from tenacity.nap import sleep_using_event

from mlxreflect.config.fields import Table
from mlxreflect.config.recipe import check_mirror
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import Commits, digest_of, read_json, sync
from mlxreflect.core.ui import Ui

T = TypeVar("T")
PATIENCE_S = 120.0  # for what waits when a run ends
BACKOFF = wait_exponential(max=60)  # seconds: 1, 2, 4 …
TRIES = 4  # before what fails is told, or given up where nothing else waits for it
PART, GROWING = 1 << 24, 1 << 20  # bytes of a part; of a journal's, most of which are there already
LARGEST = 1 << 26  # bytes of a manifest
KEEP = 2  # manifests, the newest
WRITER = "writer.json"  # who writes here
# Files that a run makes: none in a folder of somebody else's, no code, nothing hidden.
FOLDER = re.compile("adapter[^/.]*|checkpoints|dev|eval|last|plots|report|retries")
NAME = re.compile(
    rf"(({FOLDER.pattern})/([^/.][^/]*/)*)?"
    r"[^/.][^/]*\.(eval|html|json|jsonl|md|png|safetensors|svg|toml)"
)
NUMBERED = re.compile(r"manifest-(\d{5,12})\.json")


def check_name(name: str) -> str:
    """Returns the name of a run's file in its folder. Raises ValueError for any other."""
    odd = not name.isprintable() or ".tmp" in name or "\\" in name
    if odd or len(name.encode()) > 255 or not NAME.fullmatch(name):
        raise ValueError("no run has such a file")
    return name


class Manifest(Table):
    """A commit of a run. files: by their names in its folder, the digests of their parts."""

    run: str  # its id
    commit: Annotated[str, Field(pattern=r"^(wave|step)-\d{5,12}$")]
    files: dict[Annotated[str, AfterValidator(check_name)],
                list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]]  # fmt: skip

    @property
    def number(self) -> int:
        return int(self.commit.rpartition("-")[2])

    @property
    def parts(self) -> set[str]:
        return {f"part-{digest}" for digests in self.files.values() for digest in digests}

    def write(self) -> bytes:
        tree = {"schema": "mirror/1", **self.model_dump()}
        return json.dumps({**tree, "sha256": digest_of(tree)}).encode()

    @staticmethod
    def read(text: bytes) -> "Manifest | None":
        """Returns what `write` wrote; None for anything else, such as a half of it."""
        try:
            tree = json.loads(text)
            whole = tree.pop("sha256") == digest_of(tree) and tree.pop("schema") == "mirror/1"
            return Manifest.model_validate(tree) if whole else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


# ---- the place -----------------------------------------------------------------------------------


class Store:
    """The files of one folder at an address of fsspec.

    tries: of whatever it is asked, with growing pauses. way_out: ends the hint of its errors.
    Every method raises UserError for whatever a store raises.
    """

    def __init__(self, address: str, tries: int = 1, way_out: str = "") -> None:
        self.address, self.way_out = address.rstrip("/"), way_out
        self.tries = Retrying(
            stop=stop_after_attempt(tries), wait=BACKOFF, retry_error_callback=self.refuse
        )
        self.fs, self.place = self.tries(lambda: url_to_fs(self.address))

    def insist(self, newer: Event, warn: Callable[[UserError], None]) -> None:
        """From now on tries until `newer` is set; warn: is told of what fails again and again."""

        def tell(state: RetryCallState) -> None:
            if state.attempt_number == TRIES:
                warn(self.fault(state))

        self.tries = self.tries.copy(
            stop=stop_when_event_set(newer), sleep=sleep_using_event(newer), before_sleep=tell
        )

    def fault(self, state: RetryCallState) -> UserError:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ImportError) and self.address.startswith("s3"):
            return UserError(f"{self.address}: s3fs is missing", "pip install 'mlxreflect[s3]'")
        return UserError(
            f"{self.address}: {type(error).__name__}: {' '.join(str(error).split()):.300}",
            "see that its folder or bucket is there, that you may write to it and that its "
            f"library and your credentials are here{self.way_out}",
        )

    def refuse(self, state: RetryCallState) -> Any:
        raise self.fault(state)

    def make(self) -> None:
        """Makes the folder, where the one around it is there."""

        def made() -> None:
            if not self.fs.exists(self.place):
                self.fs.mkdir(self.place, create_parents=False)

        self.tries(made)

    def names(self) -> set[str]:
        def listed() -> set[str]:
            self.fs.invalidate_cache()
            with suppress(FileNotFoundError):
                found = self.fs.ls(self.place, detail=False)
                return {PurePosixPath(path).name for path in found}
            return set()

        return self.tries(listed)

    def read(self, name: str, limit: int) -> bytes:
        """Returns a file's first bytes; none where there is no such file."""

        def data() -> bytes:
            with suppress(FileNotFoundError):
                return bytes(self.fs.cat_file(f"{self.place}/{name}", start=0, end=limit))
            return b""

        return self.tries(data)

    def write(self, name: str, data: bytes) -> None:
        self.tries(lambda: self.fs.pipe_file(f"{self.place}/{name}", data))

    def remove(self, name: str) -> None:
        def gone() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.place}/{name}")

        self.tries(gone)

    def manifests(self) -> dict[int, Manifest]:
        """Returns the newest whole ones by their numbers, the newest last."""
        numbers = sorted(int(n[1]) for n in map(NUMBERED.fullmatch, self.names()) if n)
        texts = ((n, self.read(manifest_name(n), LARGEST)) for n in numbers[-KEEP:])
        return {n: found for n, text in texts if (found := Manifest.read(text))}


def manifest_name(number: int) -> str:
    return f"manifest-{number:05d}.json"


# ---- a commit, as it is when it is made ----------------------------------------------------------


class File(NamedTuple):
    """A file that may grow, or be replaced. held: it is open, for it may soon be removed."""

    path: Path
    length: int
    status: os.stat_result
    held: BinaryIO | None

    @property
    def signature(self) -> tuple[int, int, int]:
        return self.status.st_ino, self.status.st_mtime_ns, self.length

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yields the bytes that it had. Raises FileNotFoundError where it is another one now."""
        left = self.length
        with self.held or self.path.open("rb") as data:
            if os.fstat(data.fileno()).st_ino != self.status.st_ino:
                raise FileNotFoundError(self.path)
            while block := data.read(min(size, left)):
                left -= len(block)
                yield block
        if left:
            raise FileNotFoundError(self.path)


class Snapshot:
    """The files of the newest commit. name: of it, or of the end."""

    def __init__(self, commits: Commits) -> None:
        *old, commit = commits.all()
        self.commit, self.files, self.open = commit.name, dict[str, File](), ExitStack()
        self.name = "the end" if (commits.root / "summary.json").is_file() else commit.name
        journals: Mapping[str, tuple[int, str]] = read_json(commit / "commit.json")["journals"]
        top = sorted(commits.root.iterdir())
        below = (path for one in top if FOLDER.fullmatch(one.name) for path in one.rglob("*"))
        for path in (*top, *below):
            name = path.relative_to(commits.root).as_posix()
            if path.parent not in old and path.is_file() and not path.is_symlink():
                with suppress(ValueError):
                    self.add(check_name(name), path, journals.get(name))

    def add(self, name: str, path: Path, committed: tuple[int, str] | None) -> None:
        status, held = path.stat(), None
        if name.startswith((f"checkpoints/{self.commit}/", "adapter")):
            held = self.open.enter_context(path.open("rb"))
        length = committed[0] if committed else status.st_size
        if length:
            self.files[name] = File(path, length, status, held)


# ---- the mirror ----------------------------------------------------------------------------------


class Mirror:
    """Copies the commits of a run. Raises UserError where that cannot be done.

    manifests: the newest, by their numbers. parts: those that are whole in the store. digests: by
    the name of a file, its signature and those of its parts. newest: commit that the mirror has;
    last: that the run has made. say: is told what goes wrong, and when it is mended.
    """

    def __init__(self, address: str, commits: Commits, run: str, say: Callable[[str], None]):
        self.commits, self.run, self.say, self.address = commits, run, say, address
        self.claim = json.dumps({"run": run, "writer": secrets.token_hex(16)}).encode()
        self.store = Store(address, way_out="; or do without: --set mirror=")
        self.manifests = self.begin(self.store)
        self.parts = {part for one in self.manifests.values() for part in one.parts}
        self.digests: dict[str, tuple[tuple[int, int, int], list[str]]] = {}
        self.waiting: Snapshot | None = None
        self.newest = ["nothing", *(one.commit for one in self.manifests.values())][-1]
        self.last, self.failing, self.lost = "", "", False
        self.lock, self.newer, self.idle = Lock(), Event(), Event()
        self.store.insist(self.newer, self.warn)
        self.thread = Thread(target=self.work, name="mirror", daemon=True)
        self.idle.set()
        self.thread.start()

    def begin(self, store: Store) -> dict[int, Manifest]:
        """Sees that this is the run's own place and writes to it, before the run begins."""
        place, root = Path(store.place).resolve(), self.commits.root.resolve()
        if isinstance(store.fs, LocalFileSystem) and (
            place.is_relative_to(root) or root.is_relative_to(place)
        ):
            raise UserError(
                f"{self.address} would be a mirror in the run itself", "give mirror another folder"
            )
        manifests, commits = store.manifests(), self.commits.all()
        newest = [None, *manifests.values()][-1]
        if newest and newest.run != self.run:
            raise UserError(
                f"{self.address} is the mirror of another run", "give another mirror or --run-dir"
            )
        if newest and (not commits or newest.number > self.commits.number(commits[-1])):
            raise UserError(
                f"{self.address} has {newest.commit}, which is further than {self.commits.root}",
                f"go on from there, in another folder: mlxreflect resume {quote(self.address)} "
                "--run-dir DIR; or without a mirror: --set mirror=",
            )
        store.make()
        store.write(WRITER, self.claim)
        if store.read(WRITER, LARGEST) != self.claim:
            raise UserError(f"{self.address} does not keep what is written", "give another mirror")
        return manifests

    def send(self) -> None:
        """Hands on the newest commit; one that still waits is left out for it."""
        if self.lost:
            return
        snapshot = Snapshot(self.commits)
        with self.lock:
            older, self.waiting, self.last = self.waiting, snapshot, snapshot.name
            self.idle.clear()
            self.newer.set()
        if older:
            older.open.close()

    def work(self) -> None:
        while not self.lost:
            self.newer.wait()
            with self.lock:
                snapshot, self.waiting = self.waiting, None
                self.newer.clear()
            if snapshot is None:  # closed
                return
            with snapshot.open:
                try:
                    self.copy(snapshot)
                except UserError as fault:
                    self.warn(fault)
            with self.lock:
                if self.waiting is None or self.lost:
                    self.idle.set()

    def warn(self, fault: UserError) -> None:
        if not self.failing:
            self.say(f"warning: the run goes on without its mirror, which is tried again: "
                     f"{fault.message}")  # fmt: skip
        self.failing = fault.message

    def copy(self, snapshot: Snapshot) -> None:
        """Sends what is not there yet, then the manifest; then removes what is no longer named."""
        listed = self.store.names()
        self.parts &= listed
        files = {name: parts for name, file in snapshot.files.items()
                 if (parts := self.send_parts(name, file)) is not None}  # fmt: skip
        if self.store.read(WRITER, LARGEST) != self.claim:
            self.lost = True
            self.say(f"warning: the run goes on without its mirror {self.address}, which another "
                     "process writes now: it has resumed the same run")  # fmt: skip
            return
        manifest = Manifest(run=self.run, commit=snapshot.commit, files=files)
        if manifest not in [*self.manifests.values()][-1:]:
            number = max([0, *(int(n[1]) for n in map(NUMBERED.fullmatch, listed) if n)]) + 1
            self.store.write(manifest_name(number), manifest.write())
            self.manifests = dict([*self.manifests.items(), (number, manifest)][-KEEP:])
        named = {part for one in self.manifests.values() for part in one.parts}
        for name in (listed | self.parts) - named - {WRITER, *map(manifest_name, self.manifests)}:
            if name.startswith("part-") or NUMBERED.fullmatch(name):
                self.store.remove(name)
        self.parts &= named
        if self.failing:
            self.say(f"the mirror has {snapshot.name} now: {self.address}")
        self.newest, self.failing = snapshot.name, ""

    def send_parts(self, name: str, file: File) -> list[str] | None:
        """Returns the digests of a file's parts, once they are there; None: it was replaced."""
        signature, parts = self.digests.get(name, (None, []))
        if signature == file.signature and self.parts.issuperset(f"part-{p}" for p in parts):
            return parts
        parts = []
        with suppress(FileNotFoundError):
            for block in file.blocks(GROWING if name.endswith(".jsonl") else PART):
                parts.append(hashlib.sha256(block).hexdigest())
                if (part := f"part-{parts[-1]}") not in self.parts:
                    self.store.write(part, block)
                    self.parts.add(part)
            self.digests[name] = file.signature, parts
            return parts
        return None

    def close(self) -> None:
        """Waits for what is under way, and says what the mirror lacks."""
        if not self.idle.wait(1):
            self.say(f"waiting for the mirror {self.address}, {PATIENCE_S:.0f} seconds at most")
        if not self.idle.wait(PATIENCE_S):
            self.failing = self.failing or "it did not finish in time"
        self.newer.set()  # which ends the thread
        if self.failing and not self.lost:
            self.say(
                f"warning: the mirror has {self.newest} and lacks {self.last} ({self.failing}); it "
                f"gets the rest with: mlxreflect resume {quote(str(self.commits.root))}"
            )
        elif not self.manifests:  # there is no run
            with suppress(UserError):
                self.store.remove(WRITER)


@contextmanager
def mirrored(
    mirror: str, commits: Commits, run: str, say: Callable[[str], None]
) -> Iterator[list[Mirror]]:
    """Yields the mirror of a run, where it has one. run: its id, which begins with its name."""
    if not mirror:
        yield []
        return
    name = re.sub(r"[^\w.-]+", "-", run.rpartition("-")[0]).lstrip(".") or "run"
    one = Mirror(f"{mirror.rstrip('/')}/{name}", commits, run, say)
    say(f"mirror: {one.address}; elsewhere it goes on with: mlxreflect resume {quote(one.address)}")
    try:
        yield [one]
    finally:
        one.close()


# ---- back from there -----------------------------------------------------------------------------


def is_mirror(place: str) -> bool:
    """Tells addresses of mirrors, and folders of mirrors or with some in them."""
    path, manifests = Path(place), "manifest-*.json"
    return "://" in place or any(path.glob(manifests)) or any(path.glob(f"*/{manifests}"))


def bring_back(address: str, path: Path, ui: Ui) -> None:
    """Makes the folder of a run from its mirror. Raises UserError where there is no whole one."""
    check_mirror(address, Path("mlxreflect resume"))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            f"{path} already exists",
            f"continue it: mlxreflect resume {quote(str(path))}; or give another --run-dir",
        )
    store = Store(address, TRIES)
    manifests = store.manifests()
    if manifests:
        path.parent.mkdir(parents=True, exist_ok=True)
    for manifest in reversed(manifests.values()):
        with TemporaryDirectory(dir=path.parent, prefix=".mirror-") as temporary:
            made = Path(temporary) / "run"
            if fault := download(store, manifest, made, ui):
                ui.line(f"warning: {manifest.commit} is left out: {fault}")
                continue
            made.rename(path)
        sync(path.parent)
        ui.line(f"{path}: {manifest.commit} is back from {store.address}")
        return
    names: Sequence[str] = sorted(store.names())
    if any(map(NUMBERED.fullmatch, names)):
        raise UserError(f"{address} is damaged", "bring its files back, or begin a new run")
    below = f", such as {store.address}/{names[0]}" if names else ""
    raise UserError(f"{address} has no commit of a run", f"give the address of a mirror{below}")


def download(store: Store, manifest: Manifest, folder: Path, ui: Ui) -> str:
    """Writes the files of a commit below a new folder; returns what is wrong with one, or ""."""
    with ui.progress("bringing back", len(manifest.files)) as bar:
        for name, digests in manifest.files.items():
            file = folder / name
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("xb") as out:
                    for digest in digests:
                        block = store.read(f"part-{digest}", PART)
                        if hashlib.sha256(block).hexdigest() != digest:
                            return f"{name} is not as it was sent"
                        out.write(block)
            except (FileExistsError, NotADirectoryError):  # no two files of a run are one
                return f"{name} is there twice"
            sync(file)
            bar.advance()
    return ""
