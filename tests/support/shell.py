"""The command line as a person meets it: its processes, exit codes, stdout and stderr."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from mlxreflect.cli import main as cli

TIMEOUT = 120.0  # a guard against hanging only


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """Runs the command line in a folder of its own, without a network or a cache of the user's.

    inside: does it in the tests' own process, where the models' libraries are loaded already.
    typed: what comes from stdin.
    """

    def __init__(
        self, folder: Path, model: Path, inside: Callable[..., Done] | None = None
    ) -> None:
        self.folder, self.model, self.inside = folder, model, inside
        self.env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "OLLAMA_HOST")}
        self.env |= {"HF_HUB_OFFLINE": "1", "MLXREFLECT_CACHE": str(folder / ".cache")}
        # 4 problems, 2 waves, 6 held-out problems.
        self.small = sets(
            "task.limit=4", "r3.wave=2", "r3.epochs=1", "eval.limit=6", "policy.batch=8",
            "policy.max_new_tokens=12", "train.cut=keep", "eval.max_new_tokens=12",
            f"policy.model={model}",
        )  # fmt: skip

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "mlxreflect", *map(str, arguments)]

    def __call__(self, *arguments: object, typed: str = "") -> Done:
        if self.inside:
            return self.inside(*arguments, typed=typed)
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.env, capture_output=True,
            input=typed or None, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def works(self, *arguments: object, typed: str = "") -> Done:
        done = self(*arguments, typed=typed)
        assert done.code == 0, done.err
        return done

    def mistake(self, *arguments: object, typed: str = "") -> tuple[str, str]:
        """The error and the hint: two lines on stderr, nothing else anywhere, exit code 2."""
        before = listing(self.folder)
        done = self(*arguments, typed=typed)
        assert done.code == 2, done.err
        assert done.out == ""
        assert listing(self.folder) == before
        return two_lines(done.err)


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def two_lines(text: str) -> tuple[str, str]:
    error, hint = text.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert error.isprintable() and hint.isprintable()
    assert len(hint) > len("hint: ")
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


def last_two_lines(text: str) -> tuple[str, str]:
    """The error and the hint below lines of progress."""
    assert "Traceback" not in text
    return two_lines("\n".join(text.splitlines()[-2:]))


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if ".cache" not in p.parts}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Path → bytes of every file but the lock, which names its last holder."""
    files = [n for n in listing(folder) if n != ".lock" and (folder / n).is_file()]
    return {n: (folder / n).read_bytes() for n in files}


def answered(folder: Path) -> dict[str, bytes]:
    """The snapshot of an evaluation, without its report, which holds times and names of folders."""
    return {name: data for name, data in snapshot(folder).items() if "report/" not in name}


S = TypeVar("S", bound=Shell)


def shell_inside(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    kind: type[S] = Shell,  # type: ignore[assignment]
) -> S:  # fmt: skip
    """Returns a command line that runs in the tests' own process, in `folder`."""

    def inside(*arguments: object, typed: str) -> Done:
        if typed:
            monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        monkeypatch.setattr(sys, "argv", ["mlxreflect", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    shell = kind(folder, model, inside)
    monkeypatch.setattr("mlxreflect.setup.pace.SECONDS", 0.3)  # no figure is looked at
    monkeypatch.chdir(folder)
    for name in ("COLUMNS", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLXREFLECT_CACHE", shell.env["MLXREFLECT_CACHE"])
    return shell
