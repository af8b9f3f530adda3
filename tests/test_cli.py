"""The command line as a person meets it: real processes, exit codes, stdout and stderr."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from support.shell import (
    TIMEOUT,
    Done,
    Shell,
    answered,
    last_two_lines,
    listing,
    rows,
    sets,
    snapshot,
    two_lines,
)

from mlxreflect.cli.main import app
from mlxreflect.config.recipe import load_recipe, resolved
from mlxreflect.core import ui
from mlxreflect.runs.folder import open_folder

# ---- a Mac ---------------------------------------------------------------------------------------

# A Mac, as far as it can be asked to stay awake; the command waits for who is asked.
ON_A_MAC = """
import os, sys, time
from mlxreflect.cli import main
from mlxreflect.evaluation import compare
counts, log = compare.compare_counts, os.environ["LOG"]

def compare_counts(*given):
    while log and not (os.path.exists(log) and os.path.getsize(log)):
        time.sleep(0.01)
    return counts(*given)

compare.compare_counts, sys.platform = compare_counts, "darwin"
main.main()
"""


@pytest.mark.parametrize("there", [True, False])
def test_a_mac_stays_awake_while_a_command_runs(tmp_path: Path, there: bool) -> None:
    log, program = tmp_path / "log", tmp_path / "bin" / "caffeinate"
    program.parent.mkdir()
    if there:
        program.write_text(f'#!/bin/sh\necho "$$ $PPID $*" >> {log}\nexec sleep 60\n')
        program.chmod(0o755)
    call = [sys.executable, "-c", ON_A_MAC, "compare", "--unpaired", "627/1000", "674/1000"]
    env = {**os.environ, "PATH": f"{program.parent}:/usr/bin:/bin", "LOG": str(log) * there}
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")
    if not there:
        return
    (line,) = log.read_text().splitlines()
    own, parent, *given = line.split()
    assert given == ["-i", "-w", parent]
    with pytest.raises(ProcessLookupError):  # it has ended with the command
        os.kill(int(own), 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_random: Path) -> tuple[Path, Done]:
    """A finished run, made with --json, and what the command said.

    At first the command holds a mistake: the same run directory must do for the mended one.
    """
    shell = Shell(tmp_path_factory.mktemp("finished"), tiny_random)
    path = shell.folder / "a run"
    command = ["run", "quickstart", *shell.small, "--run-dir", path, "--json"]
    error, _ = shell.mistake(*command, *sets("policy.adapter=/none/such"))
    assert "policy.adapter = '/none/such' is not an adapter folder" in error
    return path, shell.works(*command)


@pytest.fixture
def run_dir(finished: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_random: Path) -> tuple[Path, Done]:
    """An evaluation of 16 problems in chunks of 8, made with --json."""
    shell = Shell(tmp_path_factory.mktemp("evaluated"), tiny_random)
    done = shell.works("eval", *EVAL, "--model", tiny_random, "--out", "out", "--json")
    return shell.folder / "out", done


EVAL = ["countdown", "--limit", "16", *sets("max_new_tokens=8", "batch=1", "temperature=1")]


# ---- help and usage ------------------------------------------------------------------------------


COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(process: Shell, option: str) -> None:
    done = process.works(option)
    assert done.err == ""
    places = [done.out.index(f" {group} ─") for group in ("Prepare", "Learn", "Evaluate")]
    assert places == sorted(places)
    assert all(f"│ {command} " in done.out for command in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_takes(name: str) -> None:
    """Its options are there and its values are of their kind; nothing is done."""
    program, called, *rest = shlex.split(COMMANDS[name].epilog.removeprefix("Example: "))
    assert (program, called) == ("mlxreflect", name)
    COMMANDS[name].make_context(name, rest)


def test_version(shell: Shell) -> None:
    assert shell.works("--version").out == f"mlxreflect {version('mlxreflect')}\n"


def completed(process: Shell, *words: str) -> tuple[list[str], float]:
    """What a shell is offered for the last word, and the seconds it waited."""
    process.env |= {
        "_MLXREFLECT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("mlxreflect", *words)),
        "COMP_CWORD": str(len(words)),
    }  # fmt: skip
    begun = time.monotonic()
    done = process.works()
    return done.out.split(), time.monotonic() - begun


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["re"], ["resume", "report"]),
        (["run", "q"], ["quickstart"]),
        (["doctor", "mi"], ["mine.toml"]),
        (["run", "my/"], ["my/other.toml"]),
        (["eval", "countdown_c"], ["countdown_chain"]),
        (["run", "r3", "--set", "train.lr"], ["train.lr="]),
        (["eval", "gsm8k", "--set", "prompt.ta"], ["prompt.tags="]),
        (["train", "sft", "--set", "data.so"], ["data.source="]),
        (["show", "runs/l"], ["runs/latest", "runs/latest/"]),
        (["resume", "nothing/like/it"], []),
    ],
    ids=" ".join,
)  # fmt: skip
def test_completion(process: Shell, words: list[str], offered: list[str]) -> None:
    folder = process.folder
    (folder / "my").mkdir()
    for path in ("mine.toml", "my/other.toml", "mine.txt", "my/.hidden.toml"):
        (folder / path).write_text("")
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs" / "latest").symlink_to("first")
    found, seconds = completed(process, *words)
    assert sorted(found) == sorted(offered)
    assert seconds < 10  # a second at most on a machine with nothing else to do


def test_the_latest_run_is_one_by_its_own_name(shell: Shell, run_dir: Path) -> None:
    """`runs/latest` may soon name another one."""
    (shell.folder / "latest").symlink_to(run_dir.name)
    problem = rows(run_dir / "episodes.jsonl")[0]["problem"]["id"]
    assert problem in shell.works("show", "latest").out
    done = shell.works("resume", "latest")
    assert done.out.startswith(f"{run_dir.name} is already finished")


WRONG_USAGE = [
    ("evl countdown", "no command 'evl'", "did you mean mlxreflect eval?"),
    ("xyzzy", "no command 'xyzzy'", "the commands are: init, doctor"),
    ("--nope", "mlxreflect: no option --nope", "the options are: --version"),
    ("run", "mlxreflect run: RECIPE is missing", "Example: mlxreflect run r3"),
    ("run quickstart --nope", "mlxreflect run: no option --nope", "the options are: --set, "),
    ("run quickstart --run_dir x", "no option --run_dir", "did you mean --run-dir?"),
    ("run quickstart --set", "mlxreflect run: --set requires a value", "Example: mlxreflect run"),
    ("run quickstart --json=yes", "--json does not take a value", "--json: Print one JSON object"),
    ("train sft --out x", "mlxreflect train: --data is missing", "--data mine.jsonl --out adapter"),
    ("grade gsm8k a b", "unexpected extra arguments (b)", "Example: mlxreflect grade gsm8k"),
    ("run r3 --set a=1 b=2", "unexpected extra arguments (b=2)", "write --set before each"),
    ("eval countdown", "nothing to evaluate", "mlxreflect eval countdown --model tiny"),
    ("eval countdown --limit many", "--limit many: input should be a valid", "--limit 8"),
    ("eval countdown --limit -1", "--limit -1: input should be greater", "For example: --limit 8"),
    ("eval countdown --alpha \x1b[2Jx", "--alpha \\x1b[2Jx: input should be", "such as 0.05"),
    ("eval countdown --server x --concurrency 0", "--concurrency 0: input", "--concurrency 4"),
]


@pytest.mark.parametrize(("words", "said", "hinted"), WRONG_USAGE, ids=[w[0] for w in WRONG_USAGE])
def test_wrong_usage(shell: Shell, words: str, said: str, hinted: str) -> None:
    error, hint = shell.mistake(*words.split(" "))
    assert said in error
    assert hinted in hint


def test_no_command_at_all_is_a_question_for_help(shell: Shell) -> None:
    assert shell.works().out == shell.works("--help").out


def test_mlx_without_a_backend_says_what_to_install(process: Shell) -> None:
    """On Linux without an extra, `import mlx.core` fails like this."""
    package = process.folder / ".cache" / "mlx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "core.py").write_text(
        "raise ImportError('libmlx.so: cannot open shared object file: No such file')\n"
    )
    process.env["PYTHONPATH"] = str(package.parent)
    for arguments in (["run", "quickstart"], ["run", "quickstart", "--dry-run"],
                      ["resume", "x"], ["eval", "countdown", "--model", "tiny"]):  # fmt: skip
        error, hint = process.mistake(*arguments)
        assert "libmlx.so" in error
        assert "pip install 'mlxreflect[cpu]'" in hint


# ---- mistakes ------------------------------------------------------------------------------------

LIGHT: dict[str, tuple[list[str], str, str]] = {
    "no such recipe": (["run", "nope"], "no recipe 'nope'", "one of: preflexor, quickstart, r3"),
    "a mistyped recipe": (["run", "quikstart"], "no recipe 'quikstart'", "mean quickstart?"),
    "a mistyped file": (["run", "mine.tml"], "no recipe 'mine.tml'", "did you mean mine.toml?"),
    "data as a recipe": (
        ["run", "qa.jsonl"], "qa.jsonl is data, no recipe", "mlxreflect init --task qa.jsonl",
    ),
    "grade the other way round": (
        ["grade", "qa.jsonl", "countdown"], "qa.jsonl is a file", "grade countdown qa.jsonl",
    ),
    "show a file": (["show", "mine.toml"], "mine.toml is a file", "runs/latest"),
    "no such method": (["init", "--strategy", "r4"], "--strategy r4: no such method", "r3"),
    "unknown key": (
        ["run", "quickstart", "--set", "train.lrr=1"],
        "--set train.lrr=1: unknown key train.lrr", "did you mean train.lr?",
    ),
    "more problems than are made": (
        ["run", "quickstart", "--set", "eval.limit=100000000"],
        "limit = 100000000: countdown makes at most 100000", "eval.limit",
    ),
    "a key without its table": (
        ["run", "quickstart", "--set", "wave=4"],
        "--set wave=4: unknown key wave", "did you mean r3.wave",
    ),
    "line breaks in a value": (
        ["run", "quickstart", "--set", "r3.wave=\n\n\x1b[2J"],
        "r3.wave = '\\n\\n\\x1b[2J'", "correct r3.wave",
    ),
    "unknown eval spec": (
        ["run", "quickstart", "--set", "eval.spec=xyz"], "no eval 'xyz'", "one of: aime, aime24",
    ),
    "run directory under a file": (
        ["run", "quickstart", "--run-dir", "/dev/null/x"], "/dev/null/x: Not a", "--run-dir",
    ),
    "resume of nothing": (["resume", "nope"], "nope is not a run folder", "runs/latest"),
    "no such model": (
        ["run", "quickstart", "--set", "policy.model=/none", "--run-dir", "new"],
        "policy.model = '/none': no such folder", "give a folder",
    ),
    "evaluate no such model": (
        ["eval", "countdown", "--model", "./none"], "--model ./none: no such folder", "give a fold",
    ),
    "evaluate data": (
        ["eval", "qa.jsonl", "--model", "tiny"], "qa.jsonl is data, no eval",
        "mlxreflect eval jsonl --source qa.jsonl, or eval.spec",
    ),
    "a profile without a name": (
        ["run", "quickstart", "--set", "profile=smollm,"], "--set profile=smollm,: a name is miss",
        "give some of: ",
    ),
    "show nothing": (["show", "nope"], "nope: no such folder", "runs/latest"),
    "compare nothing": (["compare", "a", "b"], "a: no such file", "an evaluation's folder"),
    "compare at no level": (["compare", "a", "b", "--alpha", "2"], "--alpha 2: not", "0.05"),
    "quick alone": (
        ["eval", "countdown", "--model", "tiny", "--quick"], "--quick sets two models", "--adapter",
    ),
    "a level without a test": (
        ["eval", "countdown", "--model", "tiny", "--alpha", "0.1"], "--alpha is of --quick", "add",
    ),
    "a level that is none": (
        ["eval", "countdown", "--model", "x", "--adapter", "y", "--quick", "--alpha", "1"],
        "--set quick.alpha=1.0: quick.alpha = 1.0: input should be less", "correct quick.alpha",
    ),
    "grade nothing": (["grade", "gsm8k", "no.jsonl"], "no.jsonl: no such file", "your data file"),
    "grade by unknown rules": (
        ["grade", "countdown", "x", "--rules", "subsets"],
        "no rules 'subsets'; the task countdown has: exact, strict, subset, tinyzero",
        "did you mean subset?",
    ),
    "grade a file into a folder": (
        ["grade", "countdown", "x", "--out", "y"], "--out y: the rows of a file", "leave --out out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIGHT)
def test_mistake(shell: Shell, name: str) -> None:
    arguments, said, hinted = LIGHT[name]
    (shell.folder / "mine.toml").touch()
    (shell.folder / "qa.jsonl").touch()
    error, hint = shell.mistake(*arguments)
    assert said in error
    assert hinted in hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "1+1?", "answer": 2}\n{"question": "2', "line 2: cut off in the middle"),
        ('{"question": "a", "\\u001b[2J\\nerror: x": 1}\n', "line 1: no column 'answer'"),
    ],
    ids=["torn", "hostile"],
)
def test_data_that_cannot_be_read(shell: Shell, text: str, said: str) -> None:
    path = shell.folder / "data.jsonl"
    path.write_text(text)
    jsonl = sets("task.name=jsonl", "eval.spec=", f"task.source={path}", "critic.provider=ollama",
                 "critic.model=x")  # fmt: skip
    error, _ = shell.mistake("run", "quickstart", *shell.small, *jsonl, "--run-dir", "new")
    assert error.startswith(str(path))
    assert said in error and ", line " in error


def test_a_solver_that_the_task_has_not(shell: Shell) -> None:
    sums = "".join(f'{{"question": "{n} + 1?", "answer": {n + 1}}}\n' for n in range(40))
    (shell.folder / "data.jsonl").write_text(sums)
    own = sets("task.name=jsonl", "task.source=data.jsonl", "eval.spec=", "eval.limit=0")
    error, hint = shell.mistake("run", "quickstart", *own, "--run-dir", "new")
    assert 'critic.provider = "solver": the task jsonl has no exact solver' in error
    assert "ollama" in hint and "last_letter" in hint


def test_ollama_that_does_not_answer(shell: Shell) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    ollama = sets("critic.provider=ollama", "critic.model=x", f"critic.base_url={url}")
    error, hint = shell.mistake("run", "quickstart", *shell.small, *ollama, "--run-dir", "new")
    assert error == f"Ollama does not answer at {url}"
    assert "ollama serve" in hint


# ---- a finished run ------------------------------------------------------------------------------


def test_json_owns_stdout(finished: tuple[Path, Done]) -> None:
    path, done = finished
    assert done.out.count("\n") == 1
    summary = json.loads(done.out)
    assert summary == json.loads((path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["problems"], summary["base"]["n"], summary["trained"]["n"]) == (4, 6, 6)
    for said in ("evaluating base", "epoch 1, wave 1", "learning", "device"):
        assert said in done.err


def test_a_run_directory_is_never_written_over(shell: Shell, run_dir: Path) -> None:
    error, hint = shell.mistake("run", "quickstart", *shell.small, "--run-dir", run_dir)
    assert error == f"{run_dir} already exists"
    assert f"mlxreflect resume {run_dir}" in hint


def test_resume_refuses_a_changed_recipe(shell: Shell, run_dir: Path) -> None:
    recipe = run_dir / "recipe.toml"
    text = recipe.read_text()
    assert "train.lr = 0.0002\n" in text and "task.numbers = [3]\n" in text
    changed = text.replace("train.lr = 0.0002\n", "train.lr = 0.001\n")
    recipe.write_text(changed.replace("task.numbers = [3]\n", "task.numbers = [3, 4]\n"))
    error, hint = shell.mistake("resume", run_dir)
    assert "task.numbers (was [3], is [3, 4])" in error
    assert "train.lr (was 0.0002, is 0.001)" in error
    assert "task.numbers" in hint
    recipe.write_text(text.replace("train.lr = 0.0002\n", ""))  # back to the default
    error, _ = shell.mistake("resume", run_dir)
    assert "train.lr (was 0.0002, is 1e-05)" in error


def test_resume_refuses_a_recipe_that_is_gone(shell: Shell, run_dir: Path) -> None:
    path = run_dir / "recipe.toml"
    path.unlink()
    error, _ = shell.mistake("resume", run_dir)
    assert error == f"{path}: No such file or directory"


def test_resume_sets_two_keys_only(shell: Shell, run_dir: Path) -> None:
    for setting in ("train.lr=1", "profile=quick", "nope=1", "critic.concurrenc=1", "seed"):
        error, hint = shell.mistake("resume", run_dir, "--set", setting)
        assert error.startswith(f"--set {setting}: a run is resumed with the keys it began with")
        assert "critic.concurrency, critic.deadline_s" in hint
    for setting in ("critic.concurrency=many", "critic.concurrency=0", "critic.deadline_s="):
        error, _ = shell.mistake("resume", run_dir, "--set", setting)
        key, _, _ = setting.partition("=")
        assert error.startswith(f"--set {setting}: {key} = ")


def test_resume_while_another_process_is_at_it_and_after(shell: Shell, run_dir: Path) -> None:
    before = snapshot(run_dir)
    holder = open_folder(run_dir)  # this process
    try:
        error, hint = shell.mistake("resume", run_dir)
    finally:
        holder.close()
    assert error == f"{run_dir} is in use by process {os.getpid()}"
    assert "stop it: kill " in hint
    done = shell.works("resume", run_dir, "--set", "critic.concurrency=9")
    assert done.out.startswith(f"{run_dir} is already finished; this is its result\n")
    assert "not significant" in done.out
    assert snapshot(run_dir) == before


def test_show(shell: Shell, run_dir: Path) -> None:
    roles = {
        row["problem"]["id"]: {turn["role"] for turn in row["turns"]}
        for row in rows(run_dir / "episodes.jsonl")
    }
    whole = shell.works("show", run_dir)
    assert all(problem in whole.out for problem in roles)
    longest = max(roles, key=lambda problem: len(roles[problem]))
    assert roles[longest] == {"attempt", "critique", "rewrite", "verify"}
    one = shell.works("show", run_dir, "--problem", longest[:6])
    assert all(role in one.out for role in roles[longest])
    bucket = shell.works("show", run_dir, "--status", "bucket")
    assert bucket.out.count("bucket") > 1
    assert whole.err == one.err == bucket.err == ""
    assert "no problem in this run" in shell.mistake("show", run_dir, "--problem", "zz")[0]


def test_runs(shell: Shell, run_dir: Path) -> None:
    """Whole and damaged ones, the newest first; of a link, a foreign folder and its inside none."""

    def copy(name: str, *changes: tuple[str, str | None]) -> None:
        folder = Path(shutil.copytree(run_dir, f"more/deep/{name}"))
        for file, text in changes:
            (folder / file).unlink() if text is None else (folder / file).write_text(text)
        os.utime(folder / ("run.json" if (folder / "run.json").is_file() else "."), (0, 0))

    identity = (run_dir / "run.json").read_text()
    copy("stopped", ("summary.json", None), (".lock", ""))
    copy("working", ("summary.json", None), (".lock", str(os.getpid())))
    copy("lost", ("run.json", None))
    copy("cut", ("run.json", identity[:40]))
    copy("edited", ("run.json", identity.replace('"seed": 0', '"seed": 1')))
    copy("odd", ("run.json", '{"recipe": [1]}'))
    copy("odd summary", ("summary.json", '{"comparison": {"difference": "x"}}'))
    copy("unjudged", ("summary.json", '{"unjudged": {"why": "x"}}'))
    copy("untrained", ("summary.json", '{"untrained": {"why": "x"}}'))
    Path("more/foreign/checkpoints").mkdir(parents=True)
    Path("more/link").symlink_to(run_dir)
    listed = json.loads(shell.works("runs", "run", "more", "none", "--json").out)
    assert listed[0] == {
        "folder": "run", "method": "r3", "name": "quickstart", "model": str(shell.model),
        "state": "finished", "began": listed[0]["began"], "verdict": listed[0]["verdict"],
        **{key: json.loads((run_dir / "comparison.json").read_text())[key]
           for key in ("difference", "ci_low", "ci_high")},
    }  # fmt: skip
    found = {Path(row["folder"]).name: (row["state"], row["verdict"][:22]) for row in listed[1:]}
    assert found == {
        "stopped": ("stopped", "not finished: resume i"), "working": ("working", "under way"),
        "lost": ("damaged", "run.json: no such file"), "cut": ("damaged", "run.json: not JSON (Un"),
        "edited": ("damaged", "run.json is damaged or"),
        "odd": ("damaged", "one of its JSON files "),
        "odd summary": ("damaged", "one of its JSON files "),
        "unjudged": ("stopped", "not judged: resume it"),
        "untrained": ("finished", "trained on nothing"),
    }  # fmt: skip
    assert "go on with one: mlxreflect resume " in shell.works("runs", "more").out.splitlines()[-1]


# ---- stopped in the middle -----------------------------------------------------------------------


def start(shell: Shell, *arguments: object) -> subprocess.Popen[str]:
    """A process that takes Ctrl-C, even where the tests run in the background of a shell."""
    return subprocess.Popen(
        shell.command(*arguments), cwd=shell.folder, env=shell.env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def interrupted(running: subprocess.Popen[str], ready: Callable[[], bool]) -> tuple[str, str]:
    """What a process says that gets Ctrl-C once it is ready; it ends with 130."""
    try:
        until = time.monotonic() + TIMEOUT
        while not ready():
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < until
            time.sleep(0.005)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=TIMEOUT)
    finally:
        running.kill()
    assert running.returncode == 130
    return out, err


@pytest.mark.slow
def test_ctrl_c_in_an_evaluation(shell: Shell, tiny_random: Path) -> None:
    """The hint holds: the same command again keeps what was answered and asks the rest."""
    command = ["eval", "countdown", "--limit", "64", "--model", tiny_random, "--out", "out",
               *sets("max_new_tokens=8", "batch=1", "temperature=1")]  # fmt: skip
    samples, total = shell.folder / "out" / "samples.jsonl", 64
    running = start(shell, *command)
    _, err = interrupted(running, lambda: samples.is_file() and samples.stat().st_size > 0)
    assert err.splitlines()[-1] == "stopped; the same command goes on from there"
    kept = samples.read_bytes()
    assert 0 < kept.count(b"\n") < total
    shell.works(*command)
    whole = samples.read_bytes()
    assert whole.startswith(kept) and whole.count(b"\n") == total


@pytest.mark.slow
def test_ctrl_c_and_resume(process: Shell, shell: Shell) -> None:
    """The process that is stopped is one of its own."""
    path, total = process.folder / "run", 8
    long = [*process.small, *sets(f"task.limit={total}", "r3.wave=1")]
    running = start(process, "run", "quickstart", *long, "--run-dir", path, "--json")
    out, err = interrupted(running, (path / "checkpoints" / "wave-00002").exists)
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"stopped; go on with: mlxreflect resume {path}"
    assert not (path / "summary.json").exists()

    commits = sorted((path / "checkpoints").glob("wave-?????"))
    commit = json.loads((commits[-1] / "commit.json").read_text())
    kept = (path / "episodes.jsonl").read_bytes()[: commit["journals"]["episodes.jsonl"][0]]
    assert 2 <= kept.count(b"\n") < total
    unfinished = shell.works("show", path)
    assert "mlxreflect resume" in unfinished.out

    summary = json.loads(shell.works("resume", path, "--json").out)
    assert (summary["status"], summary["problems"]) == ("finished", total)
    assert (path / "episodes.jsonl").read_bytes().startswith(kept)
    waves = [row["wave"] for row in rows(path / "metrics.jsonl") if row["kind"] == "wave"]
    assert waves == list(range(total))
    assert (path / "adapter" / "adapters.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_while_evaluating(process: Shell, evaluated: tuple[Path, Done]) -> None:
    out = process.folder / "out"
    out.mkdir()
    (out / "samples.jsonl").symlink_to("/dev/full")
    done = process("eval", *EVAL, "--model", process.model, "--out", out)
    assert done.code == 2
    error, hint = last_two_lines(done.err)
    assert error == "the disk: no space left"
    assert "same command" in hint
    (out / "samples.jsonl").unlink()
    process.works("eval", *EVAL, "--model", process.model, "--out", out)
    whole = (evaluated[0] / "samples.jsonl").read_bytes()
    assert (out / "samples.jsonl").read_bytes() == whole


FULL_DISK = """
mount -t tmpfs -o size=900k none disk || exit 77
"$@" --run-dir disk/run
echo "code $?" >&2
mount -o remount,size=64m disk
"$0" -m mlxreflect resume disk/run && cp -r disk/run kept
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="this system has no unshare")
def test_a_full_disk_while_learning(process: Shell, run_dir: Path) -> None:
    """On a small disk of its own: stops inside the second wave, and goes on once there is room."""
    (process.folder / "disk").mkdir()
    run = process.command("run", "quickstart", *process.small)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL_DISK, sys.executable, *run],
        cwd=process.folder, env=process.env, capture_output=True, text=True, timeout=TIMEOUT,
        check=False,
    )  # fmt: skip
    if done.returncode == 77 or done.stderr.startswith("unshare: "):
        pytest.skip(f"no mount of a file system of our own: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    stopped, _, _ = done.stderr.partition("code 2\n")
    assert "learning: 2/4" in stopped
    error, hint = last_two_lines(stopped)
    assert error.endswith(": no space left")
    assert hint == "free some, then: mlxreflect resume disk/run"
    kept, whole = snapshot(process.folder / "kept"), snapshot(run_dir)
    same = ("episodes.jsonl", "preference.jsonl", "adapter/adapters.safetensors",
            "eval/base/samples.jsonl", "eval/trained/samples.jsonl")  # fmt: skip
    assert all(kept[name] == whole[name] for name in same)


# ---- a run from its first line to its last -------------------------------------------------------


def test_a_run_says_what_it_can_show_and_what_to_do_next(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands that it ends with are given as they stand, and work; `runs` lists the run."""
    assert "no runs in" in shell.mistake("runs")[0]
    monkeypatch.setattr(ui, "EVERY_S", 0.0)  # every line
    monkeypatch.setattr(ui, "RARER", 0.0)
    done = shell.works("run", "quickstart", *shell.small)
    (run,) = (path for path in (shell.folder / "runs").iterdir() if path.name != "latest")
    assert re.search(
        r"^power +With \d+ questions, a gain below \d|^power +So few questions",
        done.out,
        re.MULTILINE,
    )
    counted = r"so far \d+ attempts, \d+ critic calls, \d+ steps, ends about .*\d\d:\d\d$"
    assert re.search(f"^learning: .*{counted}", done.err, re.MULTILINE)
    assert not re.search("^learning:.* ends .* left", done.err, re.MULTILINE)  # one of the two
    looked, used, talked, compared = (
        shlex.split(line.split("  ", 1)[1]) for line in done.out.splitlines()[-4:]
    )
    assert talked == ["mlxreflect", "chat", f"runs/{run.name}"]
    assert looked == ["mlxreflect", "show", f"runs/{run.name}"]
    assert "Waves" in shell.works(*looked[1:]).out
    assert used[:2] == ["mlx_lm.generate", "--model"]
    assert used[-1] == "…" or re.fullmatch(r"numbers [\d ]+, target \d+", used[-1])
    assert (shell.folder / used[used.index("--adapter-path") + 1]).is_dir()
    assert "difference" in shell.works(*compared[1:]).out
    listed = shell.works("runs").out
    assert re.search(rf"^runs/{run.name} +r3 .* finished .* points \(.* to .*\)$", listed, re.M)


# ---- dry run -------------------------------------------------------------------------------------


def test_dry_run_loads_nothing_and_writes_nothing(process: Shell, shell: Shell) -> None:
    none = sets("policy.model=/none/such", "task.limit=5", "r3.epochs=2", "r3.rewrites=3",
                "eval.limit=5")  # fmt: skip
    done = shell.works("run", "quickstart", *none, "--dry-run")
    assert done.err == ""
    assert done.out.startswith("--- 10 attempts")
    for role in ("attempt", "critique", "rewrite"):
        assert f"--- {role}\n[system]\n" in done.out
    assert "Numbers: " in done.out and "Target: " in done.out
    assert 'policy.model = "/none/such"' in done.out
    assert "all of them: --json" in done.out and "policy.cache_gb" not in done.out
    assert "tokens in" not in done.out  # the solver reads none
    assert "10 attempts, at most 60 critic calls" in done.out

    as_json = process.works("run", "quickstart", *none, "--dry-run", "--json")
    assert as_json.out.count("\n") == 1
    told = json.loads(as_json.out)
    assert told["recipe"] == resolved(load_recipe("quickstart", none[1::2]))
    assert told["estimate"]["attempts"] == 10
    assert told["estimate"]["critic_calls_at_most"] == 60
    assert set(told["prompts"]) == {"attempt", "critique", "rewrite"}
    for messages in told["prompts"].values():
        assert [m["role"] for m in messages] == ["system", "user"]
        assert "Numbers: " in messages[1]["content"]
    assert listing(process.folder) == set()


def test_dry_run_shows_the_recipe_where_the_data_are_not_there(shell: Shell) -> None:
    none = sets("task.name=jsonl", "task.source=none.jsonl", "eval.spec=", "r3.wave=17")
    done = shell("run", "quickstart", *none, "--dry-run")
    assert done.code == 2 and "none.jsonl" in done.err
    assert "r3.wave = 17" in done.out


# ---- grade ---------------------------------------------------------------------------------------


def test_grade(shell: Shell) -> None:
    path = shell.folder / "rows.jsonl"
    asked = {"numbers": [3, 4, 5], "target": 35}
    given = [{"id": i, "response": text, **asked} for i, text in enumerate((
        "<think>a</think><answer>(3+4)*5</answer>", "<answer>7*5</answer>"))]  # fmt: skip
    given.append(
        {"id": 2, "response": "<answer>2.5*8</answer>", "numbers": [2, 5, 8], "target": 20}
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    done = shell.works("grade", "countdown", path)
    assert done.err == ""
    got = [json.loads(line) for line in done.out.splitlines()]
    assert all(list(row) == ["id", "correct", "format_ok", "parsed", "reason"] for row in got)
    assert [[row["id"], row["correct"], row["format_ok"], row["parsed"]] for row in got] == [
        [0, True, True, "(3+4)*5"], [1, False, False, "7*5"], [2, False, False, "2.5*8"],
    ]  # fmt: skip
    assert shell.works("grade", "countdown", path, "--json").out == done.out
    by_others = shell.works("grade", "countdown", path, "--rules", "tinyzero").out
    assert json.loads(by_others.splitlines()[2])["correct"]


def test_grade_bad_row(shell: Shell) -> None:
    good = '{"id": 1, "response": "<answer>3</answer>", "numbers": [3], "target": 3}'
    path = shell.folder / "rows.jsonl"
    path.write_text(f'{good}\n{{"id": 2,\n')
    done = shell("grade", "countdown", path)
    assert done.code == 2
    assert json.loads(done.out)["id"] == 1  # what was graded before it
    error, _ = two_lines(done.err)
    assert error.startswith(f"{path}, line 2: not JSON")


# ---- eval and compare ----------------------------------------------------------------------------


def test_eval_with_json(evaluated: tuple[Path, Done]) -> None:
    out, done = evaluated
    assert done.out.count("\n") == 1
    results = json.loads(done.out)
    assert results == json.loads((out / "results.json").read_text())
    assert (results["n"], results["task"], results["adapter"]) == (16, "countdown", "")
    assert "evaluating: 16/16" in done.err
    assert len(rows(out / "samples.jsonl")) == 16


def test_eval_is_continued_and_ends_with_the_same_bytes(
    shell: Shell, evaluated: tuple[Path, Done]
) -> None:
    out = Path(shutil.copytree(evaluated[0], shell.folder / "out"))
    whole, answers = snapshot(out), answered(out)
    again = ["eval", *EVAL, "--model", shell.model, "--out", out]
    done = shell.works(*again)
    assert "Evaluation: countdown" in done.out
    assert snapshot(out) == whole  # nothing left to do

    lines = answers["samples.jsonl"].splitlines(keepends=True)
    torn = b"".join(lines[:11]) + lines[11][:20]  # killed inside the second chunk
    (out / "samples.jsonl").write_bytes(torn)
    (out / "results.json").unlink()
    shell.works(*again)
    assert answered(out) == answers
    assert not (out / "report").exists()  # `mlxreflect report` writes that


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        (sets("max_new_tokens=9"), "its decoding.max_new_tokens is 8, not 9"),
        (sets("prompt.style=direct"), "its spec.prompt.style is 'thinking', not 'direct'"),
    ],
)
def test_eval_refuses_a_folder_of_another_evaluation(
    shell: Shell, evaluated: tuple[Path, Done], extra: list[str], key: str
) -> None:
    before = snapshot(evaluated[0])
    done = shell("eval", *EVAL, *extra, "--model", shell.model, "--out", evaluated[0], "--json")
    assert done.code == 2
    assert done.out == ""
    error, hint = last_two_lines(done.err)
    assert error == f"{evaluated[0]} holds another evaluation: {key}"
    assert "--out" in hint
    assert snapshot(evaluated[0]) == before


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_stops_nothing(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shell.folder / "file").write_text("")
    shell.env["MLXREFLECT_CACHE"] = str(shell.folder / "file" / "below")
    monkeypatch.setenv("MLXREFLECT_CACHE", shell.env["MLXREFLECT_CACHE"])
    said = shell.works("run", "quickstart", *shell.small, "--run-dir", "run").err
    for name in ("answers", "references"):
        assert f"warning: {shell.folder / 'file' / 'below' / name}.sqlite: Not a directory" in said


def test_eval_into_a_file(shell: Shell) -> None:
    (shell.folder / "file").write_text("")
    done = shell("eval", *EVAL, "--model", shell.model, "--out", "file")
    assert done.code == 2
    assert last_two_lines(done.err) == ("file: File exists", "give another --out")


def test_compare(shell: Shell, evaluated: tuple[Path, Done]) -> None:
    out = evaluated[0]
    done = shell.works("compare", out, out, "--json")
    assert done.err == ""
    result = json.loads(done.out)
    assert (result["n"], result["difference"], result["p_exact"]) == (16, 0, 1)
    table = shell.works("compare", out, out)
    assert "not significant" in table.out and table.err == ""
    three = json.loads(shell.works("compare", out, out, out, "--json").out)
    assert (three["tests"], len(three["comparisons"])) == (2, 2)
    assert "Holm" in shell.works("compare", out, out, out, "--all-pairs", "--list").out
    of_folders = shell.works("compare", "--unpaired", out, out, "--alpha", "0.1", "--json").out
    assert json.loads(of_folders)["n_a"] == 16


def test_compare_what_is_not_alike(
    shell: Shell, evaluated: tuple[Path, Done], finished: tuple[Path, Done]
) -> None:
    assert shell.mistake("compare", "one")[0] == "one: no such folder"
    (shell.folder / "begun").mkdir()
    (shell.folder / "begun" / "run.json").write_text("{}")
    error, hint = shell.mistake("compare", "begun")
    assert "the run is not finished" in error and "mlxreflect resume begun" in hint
    base = finished[0] / "eval" / "base"
    error, hint = shell.mistake("compare", base, evaluated[0])
    assert f"not the same questions: 0 only in {base}, 10 only in {evaluated[0]}" in error
    assert "same spec, limit and seed" in hint
