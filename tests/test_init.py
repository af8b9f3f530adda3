"""`mlxreflect init`: a recipe of one's own that runs, whoever answers the questions."""

import io
import json
import os
import pty
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fake_ollama import FakeOllama
from fake_server import free_port
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import Shell
from test_cli import shell as shell

from mlxreflect.draft import Choices, draft, edit
from mlxreflect.dry import dry
from mlxreflect.recipe import load_recipe
from mlxreflect.settings import apply_settings, bundled, flatten
from mlxreflect.wizard import find_offers, recipes

FLAGS = ("--strategy", "r3", "--task", "countdown", "--model", "tiny", "--critic", "solver")
OWN = "".join(json.dumps({"Problem": f"{i} + 1?", "Result": i + 1}) + "\n" for i in range(40))
NAMES = ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID",
         "AWS_PROFILE")  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no AWS, no Ollama."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def no_ollama(nothing_here: None, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{free_port()}")  # after `shell` forgot it


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs init with lines typed at a terminal."""

    def run(*lines: str, flags: tuple[str, ...] = ()) -> Any:
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
        return shell("init", *flags)

    return run


# ---- by flags ------------------------------------------------------------------------------------


def test_by_flags(shell: Shell) -> None:
    done = shell.works("init", *FLAGS)
    assert "mlxreflect run r3-countdown.toml" in done.out
    recipe = load_recipe("r3-countdown.toml")
    assert (recipe.policy.model, recipe.task.name, recipe.critic.provider) == (
        "tiny", "countdown", "solver")  # fmt: skip
    assert recipe.eval.spec == "countdown"
    assert "3 problems" in shell.works("doctor", "r3-countdown.toml", "--set", "task.limit=3",
                                       "--set", "eval.limit=3").out  # fmt: skip
    done = shell.works("init", *FLAGS, "--out", "a b/mine.toml", "--json")
    assert json.loads(done.out)["recipe"] == "a b/mine.toml"
    assert load_recipe("a b/mine.toml").r3 == recipe.r3


def test_every_comment_and_every_other_key_stays(shell: Shell) -> None:
    shell.works("init", *FLAGS)
    ours = Path("r3-countdown.toml").read_text(encoding="utf-8")
    text = bundled("recipes")["r3"].read_text(encoding="utf-8")
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert comments and all(f"#{comment}" in ours for comment in comments)
    old, new = flatten(tomllib.loads(text)), flatten(tomllib.loads(ours))
    changed = {key for key in {**old, **new} if old.get(key) != new.get(key)}
    assert changed == {"policy.model", "task.name", "critic.provider", "critic.model", "eval.spec"}


def test_without_a_terminal_what_is_missing_is_named(shell: Shell) -> None:
    error, hint = shell.mistake("init", "--task", "countdown")
    assert "--strategy, --model, --critic" in error and "--yes" in hint
    assert "--task" not in error
    shell.works("init", "--yes")
    recipe = load_recipe("r3-gsm8k.toml")
    assert recipe.task == load_recipe("r3").task
    assert (recipe.r3.feedback, recipe.r3.rewriter) == ("self", "self")


def test_nothing_is_replaced_unasked(shell: Shell) -> None:
    mine = shell.folder / "r3-countdown.toml"
    mine.write_text("seed = 3\n")
    for flags in (FLAGS, (*FLAGS, "--out", str(mine))):
        error, hint = shell.mistake("init", *flags)
        assert "is there already" in error and "--force" in hint
        assert mine.read_text() == "seed = 3\n"
    shell.works("init", *FLAGS, "--force")
    assert load_recipe(str(mine)).policy.model == "tiny"
    error, _ = shell.mistake("init", *FLAGS, "--out", mine / "x.toml")
    assert "r3-countdown.toml" in error


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"--strategy": "ppo"}, "--strategy ppo"), ({"--task": "countdwn"}, "no task 'countdwn'"),
     ({"--task": "aime"}, "an evaluation alone"), ({"--task": "none.jsonl"}, "no such file"),
     ({"--task": "jsonl"}, "no data"), ({"--critic": "gpt"}, "--critic gpt: no such critic"),
     ({"--task": "gsm8k"}, "has no exact solver"), ({"--model": "./none"}, "--model = './none'"),
     ({"--critic": "openai:m", "--critic-url": "http://me:pw@h"}, "user name or password")],
)  # fmt: skip
def test_mistakes(shell: Shell, changes: dict[str, str], said: str) -> None:
    flags = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True)) | changes
    error, _ = shell.mistake("init", *(part for pair in flags.items() for part in pair))
    assert said in error


# ---- one's own data ------------------------------------------------------------------------------


def test_columns_of_other_names(shell: Shell) -> None:
    (shell.folder / "my sums.jsonl").write_text(OWN)
    flags = ("init", "--strategy", "r3", "--task", "my sums.jsonl", "--model", "tiny",
             "--critic", "self")  # fmt: skip
    error, hint = shell.mistake(*flags)
    assert "its columns are: Problem, Result; none is called question" in error
    assert "--question Problem" in hint
    error, hint = shell.mistake(*flags, "--question", "Problem")
    assert "none is called answer" in error and "--answer" in hint
    error, hint = shell.mistake(*flags, "--question", "Problems", "--answer", "Result")
    assert "line 1: no column 'Problems'" in error and "--question" in hint
    shell.works(*flags, "--question", "Problem", "--answer", "Result")
    recipe = load_recipe("r3-my sums.toml")
    assert recipe.task.model_dump(exclude_defaults=True) == {
        "name": "jsonl", "source": "my sums.jsonl", "question": "Problem", "answer": "Result",
        "limit": 700}  # fmt: skip
    assert recipe.eval.spec == ""
    assert "+ 1?" in dry(recipe)["text"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [({"answer": "1,234.5"}, "number"), ({"answer": "Paris"}, "text"),
     ({"answer": "b", "choices": ["x", "y"]}, "choice"),
     ({"numbers": [3, 4], "target": 7}, "countdown")],
)  # fmt: skip
def test_the_kind_of_answer_is_seen(shell: Shell, row: dict[str, Any], kind: str) -> None:
    data = "".join(json.dumps({"question": f"{i}?", **row}) + "\n" for i in range(40))
    (shell.folder / "d.jsonl").write_text(data)
    shell.works("init", "--task", "d.jsonl", "--model", "tiny", "--yes", "--out", "x.toml")
    recipe = load_recipe("x.toml")
    assert recipe.task.answer_type == kind
    shell.works("init", "--task", "d.jsonl", "--answer-type", "f1", "--answer", "question",
                "--yes", "--out", "y.toml")  # fmt: skip
    assert load_recipe("y.toml").task.answer_type == "f1"


def test_a_bad_row_is_told_before_anything_is_written(shell: Shell) -> None:
    (shell.folder / "d.jsonl").write_text(OWN + '{"Problem": "x", "Result": "many"}\n')
    error, _ = shell.mistake("init", "--task", "d.jsonl", "--yes", "--answer", "Result")
    assert "d.jsonl, line 41" in error and "is no number" in error


# ---- what is there -------------------------------------------------------------------------------


def test_what_is_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual = load_recipe("r3")
    assert [offer.critic for offer in find_offers(True, usual)] == ["solver", "self"]
    assert [offer.critic for offer in find_offers(False, usual)] == ["self"]
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-secret")
    (tmp_path / "none").write_text("[default]")
    with FakeOllama(models=["a:1b", usual.critic.model]) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        found = find_offers(False, usual)
    assert [offer.critic.partition(":")[0] for offer in found] == [
        "ollama", "ollama", "openai", "bedrock", "self"]  # fmt: skip
    assert found[0].critic == f"ollama:{usual.critic.model}"
    assert found[2].base_url.startswith("https://openrouter.ai")
    assert "sk-secret" not in repr(found)


def test_typed_replies(typed: Any, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.folder / "sums.jsonl").write_text(OWN)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    done = typed("", "sums.jsonl", "", "Result", "", "tiny", "1")
    assert done.code == 0, done.err
    assert "1  openai:gpt-4.1-mini: OPENAI_API_KEY is set" in done.out
    assert "2  self" in done.out and "its columns are: Problem, Result" in done.out
    recipe = load_recipe("r3-sums.toml")
    assert (recipe.task.question, recipe.task.answer) == ("Problem", "Result")
    assert (recipe.critic.provider, recipe.critic.key_env) == ("openai", "OPENAI_API_KEY")
    assert recipe.critic.model == "gpt-4.1-mini" and recipe.policy.model == "tiny"
    assert "sk-secret" not in Path("r3-sums.toml").read_text()
    assert typed("", flags=FLAGS).code == 0  # nothing is left to ask
    done = typed("r3", "countdown", "tiny", "ollama:qwen2.5:7b", flags=("--out", "o.toml"))
    assert load_recipe("o.toml").critic.model == "qwen2.5:7b", done.err
    assert typed("ppo").code == 2


@pytest.mark.slow
def test_at_a_real_terminal(tmp_path: Path) -> None:
    shell = Shell(tmp_path, tmp_path)
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        shell.command("init", "--strategy", "r3", "--task", "countdown", "--model", "tiny"),
        cwd=tmp_path, env={**shell.env, "OLLAMA_HOST": f"127.0.0.1:{free_port()}"}, stdin=theirs,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    os.write(ours, b"solver\n")
    out, _ = running.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert running.returncode == 0, out
    assert "solver: the task's exact solver" in out
    assert load_recipe(str(tmp_path / "r3-countdown.toml")).critic.provider == "solver"


# ---- every bundled recipe ------------------------------------------------------------------------


CRITICS = ("ollama:qwen2.5:7b", "openai:gpt-4.1-mini", "bedrock:m", "local:m")


@pytest.mark.parametrize(("method", "critic"), list(product(recipes(), CRITICS)))
def test_a_recipe_of_every_method_validates(method: str, critic: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    data = {"source": "d.jsonl", "question": "q", "answer": "a", "answer_type": "text"}
    for task in ({"task": "gsm8k"}, {"task": "countdown"}, {"task": "jsonl", **data}):
        path.write_text(draft(Choices(method, 'a "b"\\', critic=critic, **task)), encoding="utf-8")
        recipe, usual = load_recipe(str(path)), load_recipe(method)
        assert recipe.policy.model == 'a "b"\\' and recipe.task.name == task["task"]
        assert f"{recipe.critic.provider}:{recipe.critic.model}" == critic
        assert recipe.train == usual.train and recipe.strategy == method


def test_a_profile_on_another_task_goes_where_the_data_are_ones_own(tmp_path: Path) -> None:
    """It would read those data as its own; a judge's temperature stays, its model goes."""
    own = Choices("r3", "tiny", "jsonl", "ollama:m", source="d.jsonl")
    text = draft(own)
    assert [*tomllib.loads(text)["profiles"]] == ["look"]
    assert "offline" not in text and "--set profile=look" in text
    assert "quick" in tomllib.loads(draft(Choices("r3", "tiny", "svamp", "ollama:m")))["profiles"]
    judge = '[critic.judge]\ntemperature = 0.0\nmodel = "other"\n'
    assert edit(judge, {"critic.judge.model": None}) == "[critic.judge]\ntemperature = 0.0\n"


# ---- TOML with its comments ----------------------------------------------------------------------

TEXT = """# head
seed = 0 # of all

[task] # which
name = "a # b" # no "comment"
words = [
    1, # one
    2,
]

# between
[critic.advanced]
model = "m"
[train]
"""


def test_values_are_replaced_where_they_stand() -> None:
    keys = {"seed": 1, "task.name": 'x"\\#', "task.words": [3], "critic.advanced.model": None,
            "task.limit": 5, "new.key": True, "train.lr": 0.5}  # fmt: skip
    assert (
        edit(TEXT, keys)
        == """# head
seed = 1 # of all

[task] # which
name = "x\\"\\\\#" # no "comment"
words = [3]
limit = 5

# between
[critic.advanced]
[train]
lr = 0.5

[new]
key = true
"""
    )
    assert edit(TEXT, {}) == TEXT


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from(["policy.model", "task.name", "r3.wave", "eval.source",
                                        "train.lora.keys", "seed", "profiles.quick.x"]),
                       st.text(st.characters(exclude_categories=["Cs"])) | st.integers() |
                       st.lists(st.text(st.characters(exclude_categories=["Cs"])))))  # fmt: skip
def test_any_value_stands_in_the_edited_text(keys: dict[str, Any]) -> None:
    text = bundled("recipes")["r3"].read_text(encoding="utf-8")
    expected = tomllib.loads(text)
    for key, value in keys.items():
        apply_settings(expected, [f"{key}=0"])
        *tables, leaf = key.split(".")
        node = expected
        for table in tables:
            node = node[table]
        node[leaf] = value
    assert tomllib.loads(edit(text, keys)) == expected
