"""A run's mirror has a whole commit at any instant, and is never in the run's way."""

import json
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from support.shell import Shell
from support.view import HOSTILE_YAML
from tenacity import wait_fixed

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import Commits, digest_of
from mlxreflect.core.ui import Ui
from mlxreflect.runs import mirror
from mlxreflect.runs.mirror import Manifest, Mirror, bring_back, mirrored

GUARD = 60.0  # against hanging only


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "BACKOFF", wait_fixed(0.01))


class Run:
    """The folder of a run as it grows, without a model."""

    def __init__(self, root: Path, id_: str = "run-1") -> None:
        self.root, self.id = root, id_
        root.mkdir(exist_ok=True)
        (root / "run.json").write_text(f'{{"id": "{id_}"}}')
        (root / "recipe.toml").write_text("seed = 0\n")
        self.commits = Commits(root, "wave", ("episodes.jsonl", "metrics.jsonl"))

    def commit(self, number: int, size: int = 100) -> None:
        def save(folder: Path) -> None:
            (folder / "adapters.safetensors").write_bytes(bytes([number]) * 1000)
            (folder / "optimizer.safetensors").write_bytes(bytes([number + 100]) * 1000)

        row = {"wave": number, "text": f"{number:03d}" * (size // 3)}
        self.commits.add(number, {"episodes.jsonl": [row]}, {}, save)

    def mirrored(self, place: object, said: list[str] | None = None) -> Any:
        say = [].append if said is None else said.append
        return mirrored(str(place), self.commits, self.id, say)

    def copy(self, one: Mirror, number: int, size: int = 100) -> None:
        """Makes a commit, and waits until the mirror has it."""
        self.commit(number, size)
        one.send()
        assert one.idle.wait(GUARD)

    def files(self, commit: int) -> dict[str, bytes]:
        """Name → bytes of a run that is brought back from its mirror, as they should be."""
        inside = (p for p in self.root.rglob("*") if p.is_file())
        names = {p.relative_to(self.root).as_posix(): p.read_bytes() for p in inside}
        newest = f"checkpoints/wave-{commit:05d}/"
        return {n: b for n, b in names.items()
                if n.startswith(newest) or not n.startswith("checkpoints/wave-")}  # fmt: skip


def back(place: object, path: Path) -> dict[str, bytes]:
    bring_back(str(place), path, Ui(quiet=True))
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        (tmp_path / "mirrors").mkdir()
        yield str(tmp_path / "mirrors")
    else:
        MemoryFileSystem().mkdir("/mirrors")
        yield "memory://mirrors"
        MemoryFileSystem().rm("/mirrors", recursive=True)


# ---- what is copied ------------------------------------------------------------------------------


def test_a_mirror_gets_what_is_new_and_comes_back(place: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    fs, at = fsspec.core.url_to_fs(f"{place}/run")
    (run.root / "eval" / "base").mkdir(parents=True)
    (run.root / "eval" / "base" / "samples.jsonl").write_text('{"id": 1}\n')
    (run.root / "track").mkdir()
    with run.mirrored(place) as (one,):
        run.copy(one, 0)
        run.copy(one, 1, size=5 * mirror.GROWING // 2)
        before = set(fs.ls(at, detail=False))
        for name in ("track/wandb.json", "mine.py", ".secret.json", "fused.tmp", "notes.txt"):
            (run.root / name).write_text("nobody's")
        (run.root / "link.json").symlink_to(tmp_path)
        (run.root / "adapter").mkdir()
        same = (run.root / "checkpoints" / "wave-00001" / "adapters.safetensors").read_bytes()
        (run.root / "adapter" / "adapters.safetensors").write_bytes(same)
        run.commit(2)
        journal = (run.root / "episodes.jsonl").read_bytes()
        # The next commit is being made: its rows are there, and it is not.
        with (run.root / "episodes.jsonl").open("ab") as out:
            out.write(b'{"wave": 3}\n{"wav')
        one.send()
        assert one.idle.wait(GUARD)
        added = set(fs.ls(at, detail=False)) - before
    # The journal's end, commit.json and two files of arrays; of the adapter not even that.
    assert sorted(Path(p).name.split("-")[0] for p in added) == ["manifest"] + ["part"] * 4
    found = back(f"{place}/run", tmp_path / "back")
    assert found.pop("episodes.jsonl") == journal
    wanted = run.files(2)
    for name in ("episodes.jsonl", "track/wandb.json", "mine.py", ".secret.json", "fused.tmp",
                 "notes.txt"):  # fmt: skip
        del wanted[name]
    assert found == wanted
    assert {"adapter/adapters.safetensors", "eval/base/samples.jsonl"} < found.keys()
    last = Commits(tmp_path / "back", "wave", ("episodes.jsonl", "metrics.jsonl")).last()
    assert last and last[0].name == "wave-00002"


def test_what_no_commit_names_is_removed(place: str, tmp_path: Path) -> None:
    run, sizes = Run(tmp_path / "run"), []
    fs, at = fsspec.core.url_to_fs(f"{place}/run")
    with run.mirrored(place) as (one,):
        for number in range(8):
            run.copy(one, number)
            sizes.append(len(fs.ls(at)))
        one.send()  # nothing is new
        assert one.idle.wait(GUARD)
        assert [p for p in fs.ls(at, detail=False) if "manifest" in p][-1].endswith("-00008.json")
    assert sizes[2:] == sizes[2:3] * 6
    fs.pipe_file(f"{at}/part-{'0' * 64}", b"of a process that was killed")
    fs.pipe_file(f"{at}/mine.txt", b"somebody's own")
    with run.mirrored(place) as (one,):
        run.copy(one, 8)
    assert len(fs.ls(at)) == sizes[-1] + 1
    assert back(f"{place}/run", tmp_path / "back") == run.files(8)


def test_parts_that_somebody_removed_are_sent_again(place: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    fs, at = fsspec.core.url_to_fs(f"{place}/run")
    with run.mirrored(place) as (one,):
        run.copy(one, 0)
        for path in fs.ls(at, detail=False):
            if "part-" in path:
                fs.rm_file(path)
        run.copy(one, 1)
    assert back(f"{place}/run", tmp_path / "back") == run.files(1)


class Killed(BaseException):
    """The end of a process, in the middle of what it does to its store."""


class Torn(LocalFileSystem):
    """A folder that is written to by a process that is killed at call number `fatal`."""

    protocol = "torn"
    calls, fatal = 0, -1

    def dies(self) -> bool:
        Torn.calls += 1
        return Torn.calls > Torn.fatal

    def pipe_file(self, path: str, value: bytes, *args: Any, **kwargs: Any) -> None:
        whole = not self.dies()
        super().pipe_file(path, value if whole else value[: len(value) // 2], *args, **kwargs)
        if not whole:
            raise Killed

    def rm_file(self, path: str) -> None:
        if self.dies():
            raise Killed
        super().rm_file(path)


def test_killed_anywhere_a_mirror_has_a_whole_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what it wrote last is there. The next process goes on with it."""
    fsspec.register_implementation("torn", Torn, clobber=True)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    seen = set[str]()
    for fatal in range(100):
        here = tmp_path / f"{fatal}"
        address, place = f"torn://{here}/mirrors/run", here / "mirrors" / "run"
        place.parent.mkdir(parents=True)
        run, Torn.fatal = Run(here / "run"), 10**6
        one = Mirror(address, run.commits, run.id, print)
        run.copy(one, 0)
        run.copy(one, 1)
        states = {"wave-00001": run.files(1)}
        run.commit(2)
        states["wave-00002"] = run.files(2)
        Torn.calls, Torn.fatal = 0, fatal
        one.send()
        while one.thread.is_alive() and not one.idle.is_set():
            one.thread.join(0.01)
        killed, Torn.fatal = not one.thread.is_alive(), 10**6
        found = back(place, here / "back")
        (newest,) = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
        assert found == states[newest]
        seen.add(newest)
        with run.mirrored(f"torn://{here}/mirrors") as (again,):
            run.copy(again, 3)
        assert back(place, here / "after") == run.files(3)
        if not killed:
            break
    assert seen == {"wave-00001", "wave-00002"}
    assert fatal == 4 + 1 + 5  # parts, the manifest, and what it replaces


# ---- never in the run's way ----------------------------------------------------------------------


class Gated(MemoryFileSystem):
    """A store that takes nothing in until it is let."""

    protocol, store, pseudo_dirs = "gated", {}, [""]
    gate, began = threading.Event(), threading.Event()

    def pipe_file(self, path: str, value: bytes, *args: Any, **kwargs: Any) -> None:
        if "/writer" not in path:
            Gated.began.set()
            assert Gated.gate.wait(GUARD)
        super().pipe_file(path, value, *args, **kwargs)


@pytest.fixture
def gated() -> Iterator[str]:
    fsspec.register_implementation("gated", Gated, clobber=True)
    Gated.gate.clear()
    Gated.began.clear()
    Gated.store.clear()
    yield "gated://gated"
    Gated.gate.set()


def test_a_run_does_not_wait_for_a_slow_mirror(gated: str, tmp_path: Path) -> None:
    """It commits on while the first commit is under way; of those that wait the newest is sent."""
    run = Run(tmp_path / "run")
    with run.mirrored(gated) as (one,):
        run.commit(0)
        one.send()
        assert Gated.began.wait(GUARD)
        for number in range(1, 6):  # removes the one that is under way, too
            run.commit(number)
            one.send()
        assert not [p for p in one.store.fs.ls(one.store.place) if "manifest" in p["name"]]
        Gated.gate.set()
        assert one.idle.wait(GUARD)
        found = one.store.manifests()
        assert {n: manifest.commit for n, manifest in found.items()} == {
            1: "wave-00000", 2: "wave-00005"
        }  # fmt: skip
    assert back(f"{gated}/run", tmp_path / "back") == run.files(5)


@pytest.mark.slow
def test_a_mirror_that_hangs_at_the_end(
    gated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PATIENCE_S", 0.1)
    run, said = Run(tmp_path / "run"), list[str]()
    with run.mirrored(gated, said) as (one,):
        run.commit(7)
        one.send()
    assert said[2:] == [
        "warning: the mirror has nothing and lacks wave-00007 (it did not finish in time); it gets "
        f"the rest with: mlxreflect resume {run.root}"
    ]


def test_a_mirror_that_fails_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one warning, also over many commits, and one line when it is there again."""
    monkeypatch.setattr(mirror, "TRIES", 2)
    place, run, said = tmp_path / "mirrors" / "run", Run(tmp_path / "run"), list[str]()
    place.parent.mkdir()
    with run.mirrored(place.parent, said) as (one,):
        run.copy(one, 0)
        place.rename(tmp_path / "away")
        place.write_text("a disk that is not mounted")
        for number in (1, 2, 3):
            run.commit(number)
            one.send()
            while one.waiting or len(said) < 2:  # until it is tried, and told
                one.thread.join(0.01)
        place.unlink()
        (tmp_path / "away").rename(place)
        assert one.idle.wait(GUARD)  # without another commit
        run.copy(one, 4)
    warning, again = said[1:]
    assert warning.startswith("warning: the run goes on without its mirror, which is tried again: ")
    assert f"{place}: NotADirectoryError: " in warning
    assert again == f"the mirror has wave-00003 now: {place}"
    assert back(place, tmp_path / "back") == run.files(4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_mirror_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the commit before, and the end of the run says what it lacks."""
    monkeypatch.setattr(mirror, "PATIENCE_S", 0.5)
    place, run, said = tmp_path / "mirrors" / "run", Run(tmp_path / "run"), list[str]()
    place.parent.mkdir()
    with run.mirrored(place.parent, said) as (one,):
        run.copy(one, 0)
        wanted = run.files(0)
        arrays = bytes([1]) * 1000
        (place / f"part-{sha256(arrays).hexdigest()}").symlink_to("/dev/full")
        run.commit(1)
        one.send()
    *_, last = said
    assert "the mirror has wave-00000 and lacks wave-00001 " in last
    assert "No space left on device" in last
    assert back(place, tmp_path / "back") == wanted


# ---- one writer ----------------------------------------------------------------------------------


def test_another_run_is_refused(place: str, tmp_path: Path) -> None:
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other", "run-2")
    with run.mirrored(place) as (one,):
        run.copy(one, 0)
    with pytest.raises(UserError, match="is the mirror of another run"), other.mirrored(place):
        pass
    assert back(f"{place}/run", tmp_path / "back") == run.files(0)


def test_a_run_that_did_not_begin_leaves_its_name_to_others(place: str, tmp_path: Path) -> None:
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other", "run-2")
    with run.mirrored(place):
        pass
    with other.mirrored(place) as (one,):
        assert one.store.names() == {"writer.json"}
        other.copy(one, 0)


def test_who_resumes_a_run_elsewhere_has_its_mirror(place: str, tmp_path: Path) -> None:
    """The process before gives it up, and a folder that stayed behind is no more mirrored."""
    run, said = Run(tmp_path / "run"), list[str]()
    with run.mirrored(place, said) as (one,):
        run.copy(one, 0)
        back(f"{place}/run", tmp_path / "elsewhere")
        other = Run(tmp_path / "elsewhere")
        with other.mirrored(place) as (two,):
            other.copy(two, 1)
            for number in (1, 2):
                run.copy(one, number)
            other.copy(two, 2)
    assert len(said) == 2 and "another process writes now" in said[1]
    assert back(f"{place}/run", tmp_path / "back") == other.files(2)
    behind = Run(tmp_path / "behind")
    behind.commit(1)
    with pytest.raises(UserError, match="has wave-00002, which is further than") as caught:
        behind.mirrored(place).__enter__()
    assert f"mlxreflect resume {place}/run --run-dir DIR" in caught.value.hint


# ---- back from a place that is not to be trusted -------------------------------------------------


def plant(place: Path, files: dict[str, list[str]], **changes: Any) -> None:
    """A mirror whose manifest is sealed as it should be."""
    tree = {"schema": "mirror/1", "run": "run-1", "commit": "wave-00001", "files": files, **changes}
    place.mkdir(parents=True, exist_ok=True)
    (place / "manifest-00001.json").write_text(json.dumps({**tree, "sha256": digest_of(tree)}))


EVIL = b"evil"
NAMES = (
    "../evil.json", "/tmp/evil.json", "eval/../../evil.json", "./evil.json", "eval//evil.json",
    ".ssh/evil.json", "eval/.hidden/evil.json", "evil.py", "eval/evil.py", "evil", "eval", "",
    "home/evil.json", "eval\\..\\evil.json", "eval/\n.json", "eval/\x1b[2J.json", "\x00.json",
    "eval/\u202e.json", "eval/\ud800.json", "adapter../evil.json", "eval/" + "x" * 300 + ".json",
    "~/evil.json", "C:/evil.json", "latest/evil.json",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    part = sha256(EVIL).hexdigest()
    plant(tmp_path / "mirror", {"run.json": [part], name: [part]})
    (tmp_path / "mirror" / f"part-{part}").write_bytes(EVIL)
    with pytest.raises(UserError, match="is damaged"):
        back(tmp_path / "mirror", tmp_path / "runs" / "back")
    assert {p.name for p in tmp_path.rglob("*")} == {
        "mirror", "manifest-00001.json", f"part-{part}"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "changes"),
    [
        ({"run.json": ["../../etc/passwd"]}, {}),
        ({"run.json": ["0" * 64 + "\n"]}, {}),
        ({"run.json": "0" * 64}, {}),
        ({"run.json": ["0" * 64]}, {}),
        ({"run.json": [sha256(EVIL).hexdigest()] * 2 + ["1" * 64]}, {}),
        ({"eval.json": [], "eval.json/x.json": []}, {}),
        ({"eval/a.json": [], "eval/a.json/x.json": []}, {}),
        ({}, {"commit": "../wave-00001"}),
        ({}, {"commit": "wave-" + "1" * 5000}),
        ({}, {"schema": "mirror/2"}),
        ({}, {"more": 1}),
    ],
)  # fmt: skip
def test_manifests_of_no_run(
    files: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    plant(tmp_path / "mirror", files, **changes)
    (tmp_path / "mirror" / f"part-{sha256(EVIL).hexdigest()}").write_bytes(EVIL)
    (tmp_path / "mirror" / f"part-{'0' * 64}").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="is damaged"):
        back(tmp_path / "mirror", tmp_path / "runs" / "back")
    assert not [*(tmp_path / "runs").glob("*")]


@pytest.mark.parametrize("text", ["", "[]", '"a"', "{", "[" * 10**5, '{"sha256": 1}', "\ud800"])
def test_manifests_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest-00001.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="is damaged"):
        back(tmp_path, tmp_path / "runs" / "back")


def test_hostile_names_of_runs(tmp_path: Path) -> None:
    """A manifest has the name as it is; the mirror's folder is one, directly below its address."""
    commits, place = Run(tmp_path / "run").commits, tmp_path / "mirrors"
    place.mkdir()
    for text in (*HOSTILE_YAML, "..", "../..", "/etc", "a/../../b", "~", ".ssh"):
        manifest = Manifest(run=text, commit="wave-00001", files={})
        assert Manifest.read(manifest.write()) == manifest
        with mirrored(str(place), commits, f"{text[:60]}-1", [].append) as (one,):
            assert Path(one.store.place).parent == place
            assert {p.parent.parent for p in place.rglob("writer.json")} == {place}
    assert {p.name for p in tmp_path.iterdir()} == {"run", "mirrors"}


def test_a_damaged_commit_is_left_out_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    (tmp_path / "mirrors").mkdir()
    with run.mirrored(tmp_path / "mirrors") as (one,):
        run.copy(one, 0)
        wanted = run.files(0)
        before = one.store.names()
        run.copy(one, 1)
        for name in one.store.names() - before:
            if name.startswith("part-"):
                (tmp_path / "mirrors" / "run" / name).write_bytes(b"a bit fell over")
    bring_back(str(tmp_path / "mirrors" / "run"), tmp_path / "back", Ui())
    assert "warning: wave-00001 is left out: " in capsys.readouterr().out
    assert {n: (tmp_path / "back" / n).read_bytes() for n in wanted} == wanted


# ---- what a person is told -----------------------------------------------------------------------

ADDRESSES = {
    "s3://key:sec/ret@bucket/runs": "with a user, a password or a query",
    "https://host/runs?sig=sec/ret": "with a user, a password or a query",
    "zip://a.zip::s3://bucket": "or a chain of them",
    "no-such://place": "Protocol not known: no-such",
    "http://127.0.0.1:1/runs": "http://127.0.0.1:1/runs/RUN: ",
    "nowhere/mirrors": "FileNotFoundError: ",
    "s3:/bucket/runs": "mirror = s3:/bucket/runs is neither a folder nor a whole address",
    "s3://": "mirror = s3:// is neither a folder nor a whole address",
    "://runs": "mirror = ://runs is neither a folder nor a whole address",
    ".": "would be a mirror in the run itself",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_refused_before_the_run(address: str, shell: Shell) -> None:
    run = ("run", "quickstart", *shell.small, "--run-dir", "RUN", "--set", f"mirror={address}")
    error, hint = shell.mistake(*run)
    assert ADDRESSES[address] in error
    assert "sec/ret" not in error + hint
    rows = '{"prompt": "1 + 1?", "completion": "2"}\n' * 4
    (shell.folder / "mine.jsonl").write_text(rows)
    train = ("train", "sft", "--data", "mine.jsonl", "--out", "RUN", "--model", shell.model)
    assert ADDRESSES[address] in shell.mistake(*train, "--set", f"mirror={address}")[0]


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match="s3://bucket/run: s3fs is missing") as caught:
        Run(tmp_path / "run").mirrored("s3://bucket").__enter__()
    assert caught.value.hint == "pip install 'mlxreflect[s3]'"


def test_what_resume_refuses(shell: Shell) -> None:
    (shell.folder / "mirrors" / "RUN").mkdir(parents=True)
    error, hint = shell.mistake("resume", f"file://{shell.folder}/mirrors")
    assert "has no commit of a run" in error and hint.endswith(f"{shell.folder}/mirrors/RUN")
    assert "is for a mirror" in shell.mistake("resume", "mirrors", "--run-dir", "x")[0]
    assert "a password" in shell.mistake("resume", "s3://key:sec/ret@bucket/runs/RUN")[0]
    plant(shell.folder / "mirrors" / "RUN", {})
    error, hint = shell.mistake("resume", "mirrors")
    assert "has no commit of a run" in error and hint.endswith(f"{shell.folder}/mirrors/RUN")
    error, hint = shell.mistake("resume", "mirrors/RUN", "--run-dir", "mirrors")
    assert error == "mirrors already exists" and hint.startswith("continue it: mlxreflect resume")
