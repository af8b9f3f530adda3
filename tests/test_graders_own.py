"""Graders of a person's own: what they get and may return, what they do wrong, and their digest."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.rows import write_rows

from mlxreflect.config.recipe import fetch_digests, load_recipe
from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows, sha256
from mlxreflect.core.records import make_problem
from mlxreflect.evaluation.evaluate import find_spec, grade_file
from mlxreflect.graders import own
from mlxreflect.graders.own import Own
from mlxreflect.tasks import find_task

README = Path(__file__).parents[1] / "recipes" / "README.md"
PROBLEM = {"id": "x", "question": "Name a colour.", "gold": None}


def written(folder: Path, body: str, name: str = "mine.py") -> str:
    (folder / name).write_text(body, encoding="utf-8")
    return f"{folder / name}:grade"


def ask(folder: Path, body: str, text: str = "t", kind: own.Kind = "grade") -> dict[str, Any]:
    return Own(written(folder, f"def grade(problem, response):\n    {body}\n"), "", kind).call(
        PROBLEM, text
    )


@pytest.mark.parametrize(
    ("body", "correct", "reason"),
    [
        ("return response == 't'", True, ""),
        ("return 0.25", False, "a score of 0.25"),
        ("return 1", True, "a score of 1"),
        ("return {'correct': problem['gold'] is None, 'reason': 'a\\nb'}", True, "a b"),
        ("import numpy; return numpy.bool_(True)", True, ""),
        ("print('noise'); return True", True, ""),
    ],
)
def test_what_a_grader_may_return(tmp_path: Path, body: str, correct: bool, reason: str) -> None:
    reply = ask(tmp_path, body)
    assert reply == {"value": {"correct": correct, "reason": reason}, "fault": ""}


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("return [][0]", "grade", "mine.py:2: IndexError: list index out of range"),
        ("import sys; sys.exit(3)", "grade", "mine.py:2: SystemExit: 3"),
        ("return 'yes'", "grade", "mine.py:1: a grade is a bool"),
        ("return 2.0", "grade", "mine.py:1: a grade is a bool"),
        ("return None", "reward", "mine.py:1: a reward is a finite number, not None"),
        ("return float('nan')", "reward", "mine.py:1: a reward is a finite number, not nan"),
        ("import os; os._exit(1)", "grade", "mine.py:grade took more than 30 s, or ended"),
    ],
)
def test_what_it_does_wrong_is_one_verdict(
    tmp_path: Path, capsys: Any, body: str, kind: own.Kind, said: str
) -> None:
    assert ask(tmp_path, body, kind=kind)["fault"].startswith(said)
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_one_that_hangs_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "import pathlib, subprocess\n"
        "def grade(problem, response):\n"
        "    if response == 'hang':\n"
        "        child = subprocess.Popen(['sleep', '600'])\n"
        "        pathlib.Path(problem['file']).write_text(str(child.pid))\n"
        "        while True: pass\n"
        "    return True\n"
    )
    function = Own(written(tmp_path, body), "", "grade")
    monkeypatch.setattr(own, "CALL_S", 1.0)
    pid = tmp_path / "pid"
    assert "took more than 1 s" in function.call({"file": str(pid)}, "hang")["fault"]
    for _ in range(200):
        state = Path(f"/proc/{pid.read_text()}/stat")
        if not state.exists() or ") Z " in state.read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")
    assert function.call({}, "fine")["value"]["correct"]  # another process took its place


def test_a_call_that_is_interrupted_leaves_no_reply_behind(tmp_path: Path) -> None:
    """After Ctrl-C in a notebook, the next response gets its own verdict."""
    body = (
        "import time\n"
        "def grade(problem, response):\n"
        "    time.sleep(response == 'slow')\n"
        "    return response != 'bad'\n"
    )
    function = Own(written(tmp_path, body), "", "grade")

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        function.call({}, "slow")
    signal.signal(signal.SIGALRM, before)
    said = [function.call({}, text)["value"]["correct"] for text in ("bad", "good")]
    assert said == [False, True]


def test_one_that_only_fails_stops_the_run(tmp_path: Path) -> None:
    function = Own(written(tmp_path, "def grade(p, r):\n    return int(r)\n"), "", "grade")
    for _ in range(own.MOST_FAILURES - 1):
        assert function.call({}, "x")["fault"]
    assert function.call({}, "1")["value"][
        "correct"
    ]  # one that it can grade: the count begins anew
    for _ in range(own.MOST_FAILURES - 1):
        function.call({}, "x")
    with pytest.raises(UserError, match=r"mine\.py:2: ValueError") as caught:
        function.call({}, "x")
    assert "mlxreflect grade" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x = 1", "mine.py: no function grade in it"),
        ("def grade(:\n", "mine.py:1: SyntaxError"),
        ("\nimport nothing_of_that_name\n", "mine.py:2: ModuleNotFoundError"),
        ("raise SystemExit", "mine.py:1: SystemExit"),
    ],
)
def test_a_file_that_cannot_be_loaded(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        Own(written(tmp_path, body), "", "grade")
    assert caught.value.message.startswith(said)
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("name", ["mine.py", "mine.txt:grade", "mine.py:1x", "none.py:grade"])
def test_a_name_of_no_function(tmp_path: Path, name: str) -> None:
    written(tmp_path, "")
    with pytest.raises(UserError, match=r"task\.grader"):
        load_recipe("quickstart", [f"task.grader={tmp_path / name}"])


# ---- in a run ------------------------------------------------------------------------------------


def recipe_of(folder: Path) -> Path:
    """Writes a recipe with a grader beside it, whose rows have no answer."""
    written(folder, "def grade(problem, response):\n    return problem['hue'] in response\n")
    write_rows(folder / "rows.jsonl", [{"question": f"Colour {i}?", "hue": "a"} for i in range(40)])
    path = folder / "own.toml"
    path.write_text(
        'strategy = "traces"\n[task]\nname = "jsonl"\nsource = "rows.jsonl"\n'
        'answer_type = "text"\ngrader = "mine.py:grade"\n'
        "[policy]\nmax_new_tokens = 8\n"
        "[traces]\nwave = 2\nrounds = 1\nproblems = 2\ngroup = 2\n[eval]\nlimit = 2\n",
        encoding="utf-8",
    )
    return path


def test_the_digest_is_kept_and_the_rows_own_columns_are_given(tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_of(tmp_path)))
    assert recipe.task.grader == str(tmp_path / "mine.py:grade")
    assert recipe.task.grader_sha256 == sha256(tmp_path / "mine.py")
    task = find_task(recipe.task)
    problem = task.load(recipe.task, "all", 0)[0]
    assert problem.gold is None and problem.meta["row"]["hue"] == "a"
    assert task.show(problem) == "Colour 0?"
    for text, right in (("a", True), ("b", False)):
        assert task.grade(problem, text, "think", "thinking").verdict.correct is right


def test_a_changed_file_refuses(tmp_path: Path) -> None:
    tree = {"task": {"grader": written(tmp_path, "def grade(p, r): return True\n")}}
    fetch_digests(tree, Path("r.toml"))
    fetch_digests(tree, Path("r.toml"))
    written(tmp_path, "def grade(p, r): return False\n")
    with pytest.raises(UserError, match=r"mine\.py was changed") as caught:
        fetch_digests(tree, Path("r.toml"))
    assert "begin a new run" in caught.value.hint
    with pytest.raises(UserError, match="was changed in the meantime"):
        Own(tree["task"]["grader"], tree["task"]["grader_sha256"], "grade")


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlxreflect", *arguments],
        capture_output=True, text=True, cwd=folder, env=os.environ,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_and_its_resume(tmp_path: Path) -> None:
    recipe_of(tmp_path)
    done = command(
        "run", "own.toml", "--run-dir", "R", "--set", "allow_untrained=true", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    turns = [t for row in read_rows(tmp_path / "R" / "episodes.jsonl") for t in row["turns"]]
    assert turns and all(t["verdict"]["correct"] is ("a" in t["text"]) for t in turns)
    setup = json.loads((tmp_path / "R" / "eval" / "base" / "setup.json").read_text())
    assert setup["spec"]["task"]["grader"] == "mine.py:grade"
    assert setup["spec"]["task"]["grader_sha256"] == sha256(tmp_path / "mine.py")
    (tmp_path / "R" / "summary.json").unlink()
    written(tmp_path, "def grade(problem, response):\n    return True\n")
    refused = command("resume", "R", folder=tmp_path)
    assert refused.returncode == 2 and "mine.py was changed" in refused.stderr
    assert "Traceback" not in refused.stderr


# ---- the example of the README -------------------------------------------------------------------


def test_the_example_is_what_it_says(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    code = text.partition("# mine.py\n")[2].partition("```")[0]
    reference = written(tmp_path, code)
    rows = [
        {"id": 1, "question": "A word in a?", "response": "<answer>banana</answer>", "letter": "a"},
        {"id": 2, "question": "A word in a?", "response": "<answer>kiwi</answer>", "letter": "a"},
        {"id": 3, "question": "A word in a?", "response": "none", "letter": "a"},
    ]
    graded = list(grade_file("jsonl", write_rows(tmp_path / "r.jsonl", rows), reference))
    assert [row["correct"] for row in graded] == [True, False, False]
    assert graded[1]["reason"] == "no a in kiwi" and graded[2]["reason"] == "no answer"
    spec = find_spec("gsm8k", 0, "", [f"task.grader={reference}"])
    assert find_task(spec.task).rules.keys() == {"mine.py:grade", "strict"}
    assert find_task(TaskConfig(name="gsm8k")).rules.keys() != {"mine.py:grade", "strict"}
    assert make_problem("jsonl", {"question": "x"}).gold is None


# ---- a reward ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reward_is_added_and_a_sample_without_one_is_left_out(tmp_path: Path) -> None:
    written(tmp_path, "def grade(p, r):\n    return float(len(r)) if len(r) % 5 else 1 / 0\n")
    keys = [
        "profile=quick", "allow_untrained=true", "eval.limit=2", "traces.reward=mine.py:grade",
        f"traces.reward_sha256={sha256(tmp_path / 'mine.py')}", "traces.reward_answer=0.0",
        "traces.reward_format=0.0", "traces.warm_up=0", "traces.rounds=1", "traces.problems=4",
        "traces.group=8",
    ]  # fmt: skip
    settings = [word for key in keys for word in ("--set", key)]
    done = command("run", "traces", "--run-dir", "R", *settings, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    texts = [turn["text"] for row in read_rows(tmp_path / "R" / "episodes.jsonl")
             for turn in row["turns"]]  # fmt: skip
    known = [len(text) for text in texts if len(text) % 5]
    (wave,) = (row for row in read_rows(tmp_path / "R" / "metrics.jsonl") if row["kind"] == "wave")
    assert wave["reward"] == pytest.approx(sum(known) / len(known))
    assert wave["unrewarded"] == len(texts) - len(known) > 0
    groups = [row for row in read_rows(tmp_path / "R" / "examples.jsonl") if row["kind"] == "group"]
    assert groups
    for group in groups:
        assert group["rewards"] == [float(len(text)) for text in group["completions"]]
        assert all(reward % 5 for reward in group["rewards"])
