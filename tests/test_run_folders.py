"""Run folders that were moved, copied, damaged, or made by another version; data that changed."""

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.marks import slow_but

from mlxreflect.config.recipe import (
    eval_spec,
    load_job,
    load_recipe,
    resolved,
    with_whole_paths,
)
from mlxreflect.config.schema import Recipe
from mlxreflect.core import machine
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import Commits
from mlxreflect.core.machine import swap_used
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.evaluate import find_spec
from mlxreflect.report.show import show_header
from mlxreflect.runs import folder as folder_module
from mlxreflect.runs.folder import (
    RunFolder,
    carried_out,
    carry_out,
    create_job,
    create_run,
    open_folder,
    write_identity,
)

SMALL = (
    "task.source=rows.jsonl", "r3.wave=6", "r3.epochs=1", "eval.limit=4", "eval.spec=",
    "eval.max_new_tokens=26", "policy.max_new_tokens=26", "policy.batch=12",
)  # fmt: skip
ROWS = [{"nums": [a, a + 3, 7], "target": 2 * a - 4} for a in range(10, 40)]
OUTPUTS = ("episodes.jsonl", "examples.jsonl", "adapter/adapters.safetensors",
           "eval/base/samples.jsonl", "eval/trained/samples.jsonl")  # fmt: skip


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flip(path: Path, at: int | None = None) -> None:
    """The last bit of a byte, as a disk does it, by default in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


def finish(folder: Path) -> None:
    carry_out(open_folder(folder))


def refused(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        finish(folder)
    return caught.value


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows.jsonl and a run on it, begun from there by a relative name."""
    place = tmp_path_factory.mktemp("made")
    write(place / "rows.jsonl", list(ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        carry_out(create_run(load_recipe("quickstart", SMALL), Path("run")))
    return place


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    """A copy of that run as a kill after its last wave leaves it, in another folder."""
    folder = tmp_path / "my run"
    shutil.copytree(made / "run", folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "eval" / "trained")
    return folder


@pytest.mark.slow
def test_a_copied_run_is_resumed_from_another_folder(
    made: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stopped)
    last = max((stopped / "checkpoints").glob("wave-*"))
    shutil.rmtree(last)  # the last wave is done again, too
    shutil.copytree(stopped / "checkpoints" / "epoch-1", stopped / "checkpoints" / "wave-00009 2")
    finish(stopped)
    for name in OUTPUTS:
        assert (stopped / name).read_bytes() == (made / "run" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("file", ["episodes.jsonl", "eval/base/problems.jsonl"])
def test_other_problems_than_it_began_with(made: Path, stopped: Path, file: str) -> None:
    """One less to learn, or one less held out: a run would look for what is gone, or mix both."""
    before = (made / "rows.jsonl").read_bytes()
    first = json.loads((stopped / file).read_text().partition("\n")[0])
    fields = first.get("problem", first)["fields"]
    gone = {"nums": fields["numbers"], "target": fields["target"]}
    assert gone in ROWS
    write(made / "rows.jsonl", [row for row in ROWS if row != gone])
    try:
        error = refused(stopped)
    finally:
        (made / "rows.jsonl").write_bytes(before)
    assert error.message == (
        f"{stopped} began with other problems than its task and its evaluation give now"
    )
    assert "bring the data back" in error.hint
    finish(stopped)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


DAMAGED: dict[str, Callable[[Path, Path], object]] = {  # to the run and its newest commit
    "adapters.safetensors is damaged": lambda run, commit: [
        flip(each / "adapters.safetensors") for each in commit.parent.glob("wave-*")],
    "examples.jsonl is damaged": lambda run, commit: flip(run / "examples.jsonl", 9),
    "base/samples.jsonl is damaged": lambda run, commit: (
        flip(run / "eval" / "base" / "samples.jsonl")),
    "has rows, and there is no commit to go on from": lambda run, commit: (
        shutil.rmtree(commit.parent)),
    "no recipe in it": lambda run, commit: (run / "run.json").write_text("{}"),
    "run.json is damaged or was edited": lambda run, commit: edit(
        run / "run.json", '"wave": ', '"wave": 1'),
    "run.json is damaged or was edited: it": lambda run, commit: edit(
        run / "run.json", '"sha256"', '"sha257"'),
    "summary.json: not JSON": lambda run, commit: (run / "summary.json").write_text("{"),
}  # fmt: skip


@pytest.mark.parametrize("said", DAMAGED)
def test_a_damaged_run_is_refused_and_left_as_it_is(stopped: Path, said: str) -> None:
    rows = (stopped / "episodes.jsonl").read_bytes()
    DAMAGED[said](stopped, max((stopped / "checkpoints").glob("wave-*")))
    assert said in refused(stopped).message
    assert (stopped / "episodes.jsonl").read_bytes() == rows


def test_answers_to_probes_are_not_thrown_away(tmp_path: Path) -> None:
    """Those before training may be of a run killed in its first commit; later ones are not."""
    recipe = load_recipe("quickstart", ['probes.prompts=["Why?"]'])
    run = create_run(recipe, tmp_path / "run")
    write(run.path / "probes.jsonl", [{"wave": None}])
    assert run.last_commit(print) is None
    write(run.path / "probes.jsonl", [{"wave": None}, {"wave": 0}])
    with pytest.raises(UserError, match=r"probes\.jsonl has rows, and there is no commit"):
        run.last_commit(print)
    run.close()


COMMITTED = ("adapter_config.json", "adapters.safetensors", "commit.json",
             "optimizer-dpo.safetensors", "reference.safetensors", "../../episodes.jsonl",
             "../../metrics.jsonl")  # fmt: skip


@pytest.mark.parametrize("name", slow_but(COMMITTED))
def test_a_bit_that_a_disk_flips_changes_nothing(
    made: Path, stopped: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commit before goes on, and says so."""
    newest = max((stopped / "checkpoints").glob("wave-*"))
    flip(newest / name, -9 if name.endswith(".jsonl") else None)  # in its last row
    carry_out(open_folder(stopped), Ui())
    assert f"{Path(name).name} is damaged" in capsys.readouterr().out.replace("\n", "")
    for output in OUTPUTS:
        assert (stopped / output).read_bytes() == (made / "run" / output).read_bytes(), output


def test_every_file_of_a_commit_is_flipped(stopped: Path) -> None:
    held = {path.name for path in max((stopped / "checkpoints").glob("wave-*")).iterdir()}
    assert held <= {*COMMITTED}


def test_a_file_among_the_commits_is_left_alone(tmp_path: Path) -> None:
    commits = Commits(tmp_path, "wave", ())
    commits.add(0, {}, {}, lambda folder: None)
    (commits.folder / "notes.tmp").write_text("mine")
    assert commits.last() is not None
    assert (commits.folder / "notes.tmp").read_text() == "mine"


# ---- another version -----------------------------------------------------------------------------


def test_a_key_that_an_earlier_version_did_not_have_takes_its_usual_value(stopped: Path) -> None:
    identity = json.loads((stopped / "run.json").read_text())
    del identity["recipe"]["limits"]
    write_identity(stopped / "run.json", identity)
    lines = (stopped / "recipe.toml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("limits.")]
    assert len(kept) == len(lines) - 3
    (stopped / "recipe.toml").write_text("".join(kept))
    finish(stopped)


def test_a_folder_of_before_checksums_is_of_an_older_version(stopped: Path) -> None:
    identity = json.loads((stopped / "run.json").read_text())
    del identity["sha256"]
    (stopped / "run.json").write_text(json.dumps(identity))
    error = refused(stopped)
    assert error.message == f"{stopped} was made by an older version of mlxreflect"
    assert error.hint.startswith("go on with it by that version, or begin a new run")


def test_a_key_that_only_an_earlier_version_had_is_named(stopped: Path) -> None:
    identity = json.loads((stopped / "run.json").read_text())
    identity["recipe"]["patience"] = 1
    write_identity(stopped / "run.json", identity)
    with (stopped / "recipe.toml").open("a") as recipe:
        recipe.write("patience = 1\n")
    error = refused(stopped)
    assert error.message.startswith(f"{stopped} was made by another version of mlxreflect (")
    assert "unknown key patience" in error.message
    assert "begin a new run" in error.hint


def test_how_to_go_on_is_a_command_also_where_the_path_has_a_space(stopped: Path) -> None:
    status = str(list(show_header(stopped).columns[1].cells)[-1])
    assert status.endswith(f"mlxreflect resume '{stopped}'")
    with pytest.raises(UserError, match="already exists") as caught:
        create_run(load_recipe("quickstart"), stopped)
    assert f"mlxreflect resume '{stopped}'," in caught.value.hint


def test_show_names_what_a_run_of_another_version_was(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    with (tmp_path / "run" / "recipe.toml").open("a") as recipe:
        recipe.write("patience = 1\n")
    cells = [list(column.cells) for column in show_header(tmp_path / "run").columns]
    told = dict(zip(map(str, cells[0]), map(str, cells[1]), strict=True))
    assert (told["recipe"], told["policy"]) == ("quickstart", "tiny")


# ---- names in a recipe ---------------------------------------------------------------------------


def test_names_of_files_become_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "exam.jsonl", "mine.toml"):
        (tmp_path / name).write_text("")
    for name in ("gsm8k", "tiny", "critic"):  # folders that happen to be called so
        (tmp_path / name).mkdir()
    (tmp_path / "mine.toml").write_text('task = { name = "countdown" }\n')
    recipe = with_whole_paths(load_recipe("quickstart", (
        "task.source=rows.jsonl", 'eval.against=["exam.jsonl", "gsm8k"]', "eval.spec=mine.toml",
        "critic.cache=new.sqlite", "eval.cache=off", "critic.advanced.provider=local",
        "critic.advanced.model=critic", 'critic.judge={ provider = "local", model = "org/name" }',
    )))  # fmt: skip
    assert recipe.task.source == str(tmp_path / "rows.jsonl")
    assert recipe.eval.against == [str(tmp_path / "exam.jsonl"), "gsm8k"]
    assert recipe.eval.spec == [str(tmp_path / "mine.toml")]
    assert (recipe.critic.cache, recipe.eval.cache) == (str(tmp_path / "new.sqlite"), "off")
    assert recipe.critic.advanced["model"] == str(tmp_path / "critic")
    assert recipe.critic.judge["model"] == "org/name"
    assert (recipe.policy.model, recipe.train.reference_cache) == ("tiny", "")
    assert resolved(with_whole_paths(recipe)) == resolved(recipe)


def test_paths_in_a_file_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of --set are relative to the working folder, as are names that are no paths there."""
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
        (folder / "rows.jsonl").write_text("")
    (here / "other.jsonl").write_text("")
    (there / "spec.toml").write_text('task = { name = "jsonl", source = "rows.jsonl" }\n')
    recipe = ('[task]\nname = "countdown"\nsource = "rows.jsonl"\n'
              '[eval]\nagainst = ["other.jsonl", "rows.jsonl"]\n[critic]\ncache = "c.sqlite"\n'
              '[profiles.mine.eval]\nspec = "spec.toml"\n')  # fmt: skip
    (there / "mine.toml").write_text(recipe)
    monkeypatch.chdir(here)
    loaded = with_whole_paths(load_recipe("../there/mine.toml", ["profile=mine"]))
    found = [loaded.task.source, *loaded.eval.against, loaded.critic.cache,
             eval_spec(loaded).task.source, find_spec("../there/spec.toml", 0, "", []).task.source,
             load_recipe("../there/mine.toml", ["task.source=rows.jsonl"]).task.source]  # fmt: skip
    mine = there / "rows.jsonl"
    assert [Path(path).resolve() for path in found] == [
        mine, here / "other.jsonl", mine, there / "c.sqlite", mine, mine, here / "rows.jsonl"
    ]  # fmt: skip


def test_a_folder_made_by_an_older_version_is_named(stopped: Path) -> None:
    identity = json.loads((stopped / "run.json").read_text())
    del identity["version"]
    for maker, said in (({}, "an older version of"), ({"version": "99.1.0"}, "version 99.1.0 of")):
        (stopped / "run.json").write_text(json.dumps({**identity, **maker}))
        error = refused(stopped)
        assert error.message.startswith(f"{stopped} was made by {said}")
        assert "mlxreflect show" in error.hint


# ---- the newest ----------------------------------------------------------------------------------


def begun(folder: RunFolder[Recipe]) -> RunFolder[Recipe]:
    folder.commit(0, {}, {}, lambda path: None)
    folder.close()
    return folder


def test_latest_names_the_newest_run_that_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "runs" / "latest"
    first = begun(create_run(load_recipe("quickstart")))
    assert link.readlink() == Path(first.path.name)
    other = create_run(load_recipe("quickstart", ["name=other"]))
    assert link.resolve() == first.path.resolve()  # it has no commit yet
    begun(create_run(load_recipe("quickstart"), tmp_path / "runs" / "mine"))
    assert link.resolve() == first.path.resolve()  # a folder of one's own choice
    begun(other)
    assert link.readlink() == Path(other.path.name)
    opened = open_folder(link)
    assert opened.path == other.path.resolve()  # also when the link names another one later
    opened.close()
    link.unlink()
    link.mkdir()  # somebody's own: left alone
    begun(create_run(load_recipe("quickstart", ["name=third"])))
    assert link.is_dir() and not link.is_symlink() and not list(link.iterdir())
    assert not list((tmp_path / "runs").glob(".latest*"))


# ---- what stops it -------------------------------------------------------------------------------

WATCHDOG = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
)
STOPS = {
    "Ctrl-C": (KeyboardInterrupt(), "stopped before it began", "go on with: mlxreflect resume"),
    "a full disk": (OSError(errno.ENOSPC, "No space left"), "give the same command", "then: mlxr"),
    "macOS": (
        RuntimeError(WATCHDOG),
        "same command",
        "train.part_tokens=1024; of an evaluation: batch), then: mlxreflect resume",
    ),
    "no memory": (
        RuntimeError(
            "[METAL] Command buffer execution failed: Insufficient Memory (00000008:"
            "kIOGPUCommandBufferCallbackErrorOutOfMemory)."
        ),
        "close other programs",
        "close other programs",
    ),
    "a mistake": (UserError("wrong", "mend it"), "mend it", "mend it"),
    "a fault of ours": (ValueError("bug"), None, None),
    "a fault of MLX": (RuntimeError("[matmul] shapes"), None, None),
}


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("has_begun", [False, True])
def test_whatever_stops_a_run_says_how_to_go_on(tmp_path: Path, name: str, has_begun: bool) -> None:
    error, before, after = STOPS[name]
    folder = create_run(load_recipe("quickstart"), tmp_path / "new" / "run")
    with pytest.raises(BaseException) as caught, carried_out(folder):
        if has_begun:
            folder.commit(0, {}, {}, lambda path: None)
        raise error
    said = caught.value.hint if isinstance(caught.value, UserError) else str(caught.value)
    if before is None:
        assert caught.value is error
        assert folder.path.is_dir()
    else:
        assert (after if has_begun else before) in said
        assert folder.path.parent.exists() is has_begun
    assert isinstance(caught.value, (type(error), UserError))
    assert folder.lock.closed


def commit_once(folder: RunFolder[Any], number: int) -> None:
    with carried_out(folder):
        folder.commit(number, {}, {}, lambda path: None)


@pytest.mark.parametrize("kind", ["run", "training"])
def test_it_stops_at_a_commit_where_swap_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    used, place, key = [2.0], tmp_path / "new", ["train.swap_gb=1"]
    monkeypatch.setattr(folder_module, "swap_used", lambda: used[0])
    if kind == "run":
        folder: RunFolder[Any] = create_run(load_recipe("quickstart", key), place)
    else:
        folder = create_job(load_job("sft", "tiny", "mine.jsonl", key), place)
    with pytest.raises(UserError) as caught, carried_out(folder):
        for number, used[0] in enumerate((2.0, 2.9, 3.1, 3.0)):
            folder.commit(number, {}, {}, lambda path: None)
    assert caught.value.message.startswith("the machine uses 1.1 GB more swap")
    assert caught.value.hint.endswith(f"then: mlxreflect resume {place}")
    resumed = open_folder(place)  # it counts from here
    assert [path.name[-2:] for path in resumed.commits.all()] == ["01", "02"]
    commit_once(resumed, 3)
    without = open_folder(place, ["train.swap_gb=0"])
    used[0] = 99.0
    commit_once(without, 4)


def test_swap_is_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, sysctl = tmp_path / "meminfo", tmp_path / "sysctl"
    meminfo.write_text("SwapCached: 5 kB\nSwapTotal:  3000000 kB\nSwapFree:    1000000 kB\n")
    monkeypatch.setattr(machine, "MEMINFO", meminfo)
    assert swap_used() == pytest.approx(2.048)
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "none")
    assert swap_used() == 0
    monkeypatch.setattr(machine, "SYSCTL", str(sysctl))
    for used, size in (("1024.50M", 1.07427), ("1024,50M", 1.07427), ("?", 0)):
        said = f"total = 2048.00M  used = {used}  free = 1023.50M  (encrypted)"
        sysctl.write_text(f"#!/bin/sh\necho '{said}'\n")
        sysctl.chmod(0o755)
        with monkeypatch.context() as mac:
            mac.setattr(sys, "platform", "darwin")
            assert swap_used() == pytest.approx(size, rel=1e-5)
