"""Graders and rewards of a person's own: a function in a file, run in a process that can be killed.

`grade(problem, response)` returns a bool, a number from 0 to 1 (right at 1), or a dict with
"correct" and perhaps "reason"; `reward(problem, response)` returns a number. What the function does
wrong on one response is that response's verdict, with the line at fault; a function that does
nothing but fail stops the run. What it prints goes to stderr.
"""

import importlib.util
import inspect
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from mlxreflect.config.fields import split_name
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import sha256
from mlxreflect.core.records import Problem
from mlxreflect.core.ui import safe_text
from mlxreflect.graders import Grader, Judged, grader_of, strict
from mlxreflect.graders.worker import Worker
from mlxreflect.prompts.parsing import Parsed

Kind = Literal["grade", "reward"]
CALL_S = 30.0  # of one call, until the process is killed
START_S = 120.0  # until the file is loaded, with whatever it imports
MOST_FAILURES = 32  # in a row, after which the run stops
HANG = 8  # what a call that had to be killed counts as
MAX_REASON = 300  # characters


class Own:
    """One function of a person's own, and its process; for any thread.

    name: as a person knows it, "mine.py:grade". Raises UserError, when it is made, for a file that
    cannot be loaded, one with other bytes than `digest` says, or without that function.
    """

    def __init__(self, reference: str, digest: str, kind: Kind) -> None:
        path, function = split_name(reference, f"the {kind} function")
        self.name, self.kind = f"{path.name}:{function}", kind
        self.arguments = [str(path.absolute()), function, digest or sha256(path), kind]
        self.worker = Worker("mlxreflect.graders.own")
        self.in_a_row = self.failed = 0
        with self.worker.lock:
            self.start()

    def start(self) -> None:
        """Starts the process, which loads the file. Raises UserError where that fails or hangs."""
        said = self.worker.exchange(self.arguments, START_S)
        fault = f"{self.name} cannot be loaded in {START_S:g} s" if said is None else said["fault"]
        if fault:
            self.worker.kill()
            raise UserError(
                fault, f"correct that file; it is to hold {self.arguments[1]}(problem, response)"
            )

    def call(self, problem: dict[str, Any], text: str) -> dict[str, Any]:
        """Returns {"value": …} or {"fault": why there is none}.

        Raises UserError once it has failed on MOST_FAILURES responses in a row.
        """
        with self.worker.lock:
            if not self.worker.alive():
                self.start()
            reply: dict[str, Any] | None = self.worker.exchange([problem, text], CALL_S)
            if reply is None:
                fault = f"{self.name} took more than {CALL_S:g} s, or ended its process"
                reply = {"fault": fault}
                self.in_a_row += HANG - 1
            fault = reply["fault"]
            self.in_a_row = self.in_a_row + 1 if fault else 0
            self.failed += bool(fault)
            if fault and self.failed in (1, 10, 100, 1000, 10_000):
                counts = "counts as wrong" if self.kind == "grade" else "has no reward"
                said = f"{safe_text(fault)}: that response {counts}; {self.failed} so far"
                print(said, file=sys.stderr)
            if self.in_a_row >= MOST_FAILURES:
                self.in_a_row = 0  # of this run alone
                raise UserError(
                    f"{self.name} failed on one response after another; the last: {fault}",
                    "correct it and begin anew; try it on a file of responses first: "
                    f"mlxreflect grade TASK FILE --rules {':'.join(self.arguments[:2])}",
                )
        return reply


@lru_cache(maxsize=64)
def open_own(reference: str, digest: str, kind: Kind) -> Own:
    """Returns the function, whose process is started once."""
    return Own(reference, digest, kind)


def described(problem: Problem, shown: str) -> dict[str, Any]:
    """Returns what a function gets of a problem: the row's own columns, id, question and gold."""
    meta = {key: value for key, value in problem.meta.items() if key != "row"}
    row = problem.meta.get("row", {})
    return {**row, **problem.fields, **meta, "id": problem.id, "question": shown,
            "gold": problem.gold}  # fmt: skip


def own_rules(own: Own, show: Callable[[Problem], str]) -> dict[str, Grader]:
    """Returns the grading rules of a function: its own name, and "strict"."""

    def judge(problem: Problem, text: str, tags: str, form: Parsed) -> Judged:
        reply = own.call(described(problem, show(problem)), text)
        if reply["fault"]:
            return Judged(form.answer, False, reply["fault"])
        return Judged(form.answer, reply["value"]["correct"], reply["value"]["reason"])

    grade = grader_of(judge)
    return {own.name: grade, "strict": strict(grade)}


# ---- the process ---------------------------------------------------------------------------------


def one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_REASON]


def explained(error: BaseException, path: Path) -> str:
    """Returns "mine.py:12: ValueError: …": the file's last line that the error went through."""
    said = "".join(traceback.format_exception_only(error)).strip().split("\n")[-1]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return one_line(f"{path.name}:{error.lineno}: {said}")
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if step.filename == str(path)]
    return one_line(f"{path.name}:{lines[-1] if lines else 1}: {said}")


def guarded(work: Callable[[], Any], path: Path) -> tuple[Any, str]:
    """Runs a person's code, which raises anything: (its value, "") or (None, its fault)."""
    try:
        return work(), ""
    except UserError as error:
        return None, error.message
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the one place
        return None, explained(error, path)


def load(path: Path, function: str, digest: str) -> Callable[..., Any]:
    """Returns the function of a file. Raises UserError for other bytes than the run began with."""
    if sha256(path) != digest:
        raise UserError(f"{path.name} was changed in the meantime", "")
    sys.path.insert(0, str(path.parent))  # as `python mine.py` has it
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{path.name}: no function {function} in it", "")
    return found  # type: ignore[no-any-return]


def checked(value: Any, kind: Kind) -> Any:
    """Returns the value of a function as it is passed on. Raises TypeError for one of no use."""
    value = value.item() if hasattr(value, "item") else value  # a number of numpy, mlx or torch
    if kind == "reward":
        if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
            raise TypeError(f"a reward is a finite number, not {value!r}")
        return float(value)
    if isinstance(value, dict) and "correct" in value:
        return {"correct": bool(value["correct"]), "reason": one_line(str(value.get("reason", "")))}
    if isinstance(value, bool):
        return {"correct": value, "reason": "" if value else "wrong"}
    if isinstance(value, (int, float)) and 0 <= value <= 1:
        return {"correct": value >= 1, "reason": f"a score of {value:g}"}
    raise TypeError(f'a grade is a bool, a number from 0 to 1 or {{"correct": …}}, not {value!r}')


def replied(
    function: Callable[..., Any], path: Path, kind: Kind, question: list[Any]
) -> dict[str, Any]:
    """Calls the function; whatever it raises is that response's fault."""
    value, fault = guarded(partial(function, *question), path)
    if fault:
        return {"fault": fault}
    try:
        return {"value": checked(value, kind), "fault": ""}
    except (TypeError, ValueError) as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        line = code.co_firstlineno if code else 1
        return {"fault": one_line(f"{path.name}:{line}: {error}")}


def main() -> None:
    """Loads the function of the first line, then answers each line, until there are no more."""
    # What the function prints must not get between the replies, nor may it read the questions.
    replies, questions = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def reply(value: dict[str, Any]) -> None:
        sys.stdout.flush()
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    file, name, digest, kind = json.loads(questions.readline())
    path = Path(file)
    function, fault = guarded(partial(load, path, name, digest), path)
    reply({"fault": fault})
    if fault:
        return
    for line in questions:
        signal.alarm(int(CALL_S) + 5)  # also where whoever asked is gone
        answer = replied(
            function, path, "reward" if kind == "reward" else "grade", json.loads(line)
        )
        signal.alarm(0)
        reply(answer)


if __name__ == "__main__":
    main()
