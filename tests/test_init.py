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
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_ollama import FakeOllama
from support.fake_server import free_port
from support.gpu import pretend_gpu
from support.shell import Shell

from mlxreflect.config.recipe import eval_spec, load_recipe
from mlxreflect.config.schema import METHODS, Critics, method_of
from mlxreflect.config.toml import apply_settings, bundled, flatten
from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.contamination import clean
from mlxreflect.evaluation.evaluate import eval_problems
from mlxreflect.setup.dry_run import dry
from mlxreflect.setup.init import KINDS_SAID, METHODS_SAID, Choices, draft, edit, find_offers
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.jsonl import GRADED

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


@pytest.mark.slow
def test_by_flags(shell: Shell) -> None:
    done = shell.works("init", *FLAGS)
    assert "mlxreflect run r3-countdown.toml" in done.out
    recipe = load_recipe("r3-countdown.toml")
    assert (recipe.policy.model, recipe.task.name, recipe.critic.provider) == (
        "tiny", "countdown", "solver")  # fmt: skip
    assert recipe.eval.spec == ["countdown"]
    assert "3 problems" in shell.works("doctor", "r3-countdown.toml", "--set", "task.limit=3",
                                       "--set", "eval.limit=3").out  # fmt: skip
    done = shell.works("init", *FLAGS, "--out", "a b/mine.toml", "--json")
    assert json.loads(done.out)["recipe"] == "a b/mine.toml"
    assert load_recipe("a b/mine.toml").r3 == recipe.r3


def test_every_comment_of_a_key_and_every_other_key_stays() -> None:
    text = bundled("recipes")["r3"].read_text(encoding="utf-8")
    body = text[text.index("strategy = ") :]
    ours = draft(Choices("r3", "org/model", "countdown", "local:m"))
    comments = [line.partition("#")[2] for line in body.splitlines() if "#" in line]
    assert comments and all(f"#{comment}" in ours for comment in comments)
    head = ours[: ours.index("strategy = ")]
    assert "bundled recipe r3" in head and "ollama pull" not in head and "GSM8K" not in head
    old, new = flatten(tomllib.loads(text)), flatten(tomllib.loads(ours))
    changed = {key for key in {**old, **new} if old.get(key) != new.get(key)}
    assert changed == {"policy.model", "task.name", "critic.provider", "critic.model", "eval.spec"}


@pytest.mark.parametrize("method", METHODS)
def test_the_embedded_policy_gets_the_quick_profiles_values(method: str, tmp_path: Path) -> None:
    """With those of a 1.5B model, and a format that it does not know, it would learn nothing."""
    path = tmp_path / "x.toml"
    critic = "self" if method == "traces" else "solver"
    path.write_text(draft(Choices(method, "tiny", "countdown", critic)), encoding="utf-8")
    ours, quick = load_recipe(str(path)), load_recipe(method, ["profile=quick"])
    unlike = {"name": "", "critic": Critics()}
    assert ours.model_copy(update=unlike) == quick.model_copy(update=unlike)
    if critic == "solver":
        assert (ours.critic.provider, ours.critic.model) == ("solver", "")
    assert "profiles" not in tomllib.loads(path.read_text(encoding="utf-8"))
    # On another task, and with a critic that gives marks.
    path.write_text(draft(Choices(method, "tiny", "gsm8k", "ollama:m")), encoding="utf-8")
    other = load_recipe(str(path))
    assert (other.task.name, other.eval.spec, other.prompt.tags) == ("gsm8k", ["gsm8k"], "think")
    assert other.critic.provider == "ollama"
    assert method != "traces" or other.traces.scorer == "critic"


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_for_a_model_of_today_is_as_its_profiles_have_it(
    method: str, shell: Shell
) -> None:
    """By the profile's name or the model's own, and whatever the method has of its own."""
    wanted = load_recipe(method, ["profile=qwen3.5-4b,critic-gpt-oss-20b"])
    for pair in (
        ("qwen3.5-4b", "critic-gpt-oss-20b"),
        (wanted.policy.model, "ollama:gpt-oss:20b"),
    ):
        flags = zip(("--strategy", "--task", "--model", "--critic"),
                    (method, "gsm8k", *pair), strict=True)  # fmt: skip
        shell.works(
            "init", *(word for flag in flags for word in flag), "--out", "x.toml", "--force"
        )
        assert load_recipe("x.toml").model_copy(update={"name": method}) == wanted
    head = Path("x.toml").read_text(encoding="utf-8").splitlines()[:2]
    assert "the profile qwen3.5-4b" in head[1]


def test_models_that_fit_the_machine_are_suggested(
    shell: Shell, typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = {11.5: ("Qwen3-1.7B", "qwen3.5:4b"), 22.9: ("Qwen3-4B", "qwen3.5:9b"),
            51.5: ("Qwen3-4B-Instruct-2507", "gpt-oss:20b"),
            103.0: ("Qwen3-4B-Instruct-2507", "gpt-oss:20b")}  # fmt: skip
    pulled = ["a:1b", "gpt-oss:20b", "qwen2.5:7b", "qwen3.5:4b", "qwen3.5:9b"]
    with FakeOllama(models=pulled) as server:
        for there, (model, critic) in fits.items():
            monkeypatch.setenv("OLLAMA_HOST", server.url)
            pretend_gpu(monkeypatch, there)
            shell.works("init", "--yes", "--force")
            recipe = load_recipe("r3-gsm8k.toml")
            assert recipe.policy.model == f"mlx-community/{model}-4bit"
            assert recipe.critic.model == critic
        done = typed("", "", "gemma-4-e2b", "", flags=("--out", "typed.toml"))
    assert "  gemma-4-e2b: mlx-community/gemma-4-e2b-it-4bit, 2.9 GB" in done.out
    assert load_recipe("typed.toml").policy.top_k == 64
    monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{free_port()}")
    _, hint = shell.mistake("init", "--yes", "--strategy", "rel", "--out", "none.toml")
    assert "ollama pull gpt-oss:20b" in hint


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
        assert "already exists" in error and "--force" in hint
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
     ({"--critic": "openai:m", "--critic-url": "http://me:pw@h"}, "user name or password"),
     ({"--critic-url": "http://h"}, "--critic-url http://h: the critic solver is no server")],
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
    both = json.dumps({"problem": "1+1?", "solution": 2, "prompt": "x"})
    (shell.folder / "both.jsonl").write_text(both + "\n")
    error, hint = shell.mistake(*flags[:4], "both.jsonl", *flags[5:])
    assert "its columns are: problem, solution, prompt; none is called question" in error
    assert "--question problem" in hint
    one = [json.dumps({"problem": f"{i}+1?", "solution": i + 1}) + "\n" for i in range(40)]
    (shell.folder / "one.jsonl").write_text("".join(one))
    told = shell.works(*flags[:4], "one.jsonl", *flags[5:]).out
    for name, column in (("question", "problem"), ("answer", "solution")):
        assert f"one.jsonl: the {name} is taken from the column {column}" in told
    error, hint = shell.mistake(*flags, "--question", "Problem")
    assert "none is called answer" in error and "--answer" in hint
    error, hint = shell.mistake(*flags, "--question", "Problems", "--answer", "Result")
    assert "line 1: no column 'Problems'" in error and "--question" in hint
    shell.works(*flags, "--question", "Problem", "--answer", "Result")
    recipe = load_recipe("r3-my sums.toml")
    assert recipe.task.model_dump(exclude_defaults=True) == {
        "name": "jsonl", "source": "my sums.jsonl", "question": "Problem", "answer": "Result",
        "limit": 40}  # fmt: skip
    assert recipe.eval.spec == [""]
    assert "+ 1?" in dry(recipe)["text"]


@pytest.mark.parametrize(("rows", "held_out"), [(30, 10), (6, 2), (300, None)])
def test_a_recipe_fits_a_small_file(shell: Shell, rows: int, held_out: int | None) -> None:
    data = [{"question": f"What is {i} + 1?", "answer": i + 1, "level": 1} for i in range(rows)]
    (shell.folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    flags = ("init", "--strategy", "r3", "--task", "d.jsonl", "--model", "tiny", "--critic", "self")
    told = shell.works(*flags, "--out", "x.toml").out
    kinds = "the question in the column question, the answer in answer (number: compared as"
    assert f"d.jsonl: {rows} questions: {kinds}" in told
    recipe = load_recipe("x.toml")
    asked = {problem.id for problem in eval_problems(TASKS["jsonl"], eval_spec(recipe))}
    learned = clean(recipe).problems
    assert f"{len(learned)} to learn from, {len(asked)} held out" in told
    assert learned and not learned.keys() & asked
    assert max(recipe.task.limit, recipe.r3.wave) <= max(len(learned), 400)
    if held_out is None:  # as a hash of each question has it
        assert recipe.eval.source == "" and len(asked) > 40
        return
    assert len(asked) == held_out and recipe.r3.wave <= len(learned) == rows - held_out
    assert "So few questions can show only large differences" in told
    assert "already exists" in shell.mistake(*flags, "--out", "x.toml")[0]
    (shell.folder / "x.toml").unlink()
    assert "x-heldout.jsonl already exists" in shell.mistake(*flags, "--out", "x.toml")[0]


def test_a_recipe_that_is_refused_leaves_no_file(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (json.dumps({"question": f"{i}?", "answer": i}) + "\n" for i in range(30))
    (shell.folder / "d.jsonl").write_text("".join(rows))

    def refuse(path: Path) -> None:
        asked = load_recipe(str(path)).eval.source
        assert Path(asked).read_text().count("\n") == 10
        raise UserError(f"{asked}: no", "mend it")

    monkeypatch.setattr("mlxreflect.setup.init.check", refuse)
    flags = ("init", "--strategy", "r3", "--task", "d.jsonl", "--model", "tiny", "--critic", "self")
    assert shell.mistake(*flags, "--out", "x.toml")[0] == "x-heldout.jsonl: no"
    assert not list(shell.folder.glob("x*"))


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


@pytest.mark.parametrize("name", ["numbers", "nums"])
def test_puzzles_without_a_question_are_countdown(shell: Shell, name: str) -> None:
    """As published: the task's own solver can be the critic, and their held-out part is asked."""
    rows = [{name: [3, 4, i], "target": 12 + i} for i in range(1, 60)]
    (shell.folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shell.works("init", "--strategy", "rel", "--task", "d.jsonl", "--critic", "solver", "--yes",
                "--model", "tiny", "--out", "x.toml")  # fmt: skip
    recipe = load_recipe("x.toml")
    assert (recipe.task.name, recipe.task.source) == ("countdown", "d.jsonl")
    asked = eval_problems(TASKS["countdown"], eval_spec(recipe))
    held_out = TASKS["countdown"].load(recipe.task, "heldout", 0)
    assert {p.id for p in asked} == {p.id for p in held_out} and len(asked) > 2
    assert {p.fields["numbers"][0] for p in asked} == {3}
    (shell.folder / "d.jsonl").write_text(json.dumps({name: [3, 4], "target": "7"}) + "\n")
    error, _ = shell.mistake("init", "--task", "d.jsonl", "--yes")
    assert "none is called question" in error


def test_no_column_is_suggested_twice(shell: Shell) -> None:
    """And it is quoted where the shell wants it."""
    (shell.folder / "d.jsonl").write_text(json.dumps({"prompt": "1?", "what it is": 1}) + "\n")
    _, hint = shell.mistake("init", "--task", "d.jsonl", "--yes", "--model", "tiny")
    assert "such as --answer 'what it is'" in hint


def test_what_is_missing_or_mistyped_is_told_at_once(shell: Shell) -> None:
    rows = (json.dumps({"frage": f"{i}?", "wert": i}) + "\n" for i in range(30))
    (shell.folder / "d.jsonl").write_text("".join(rows))
    flags = ("init", "--strategy", "r3", "--task", "d.jsonl", "--critic", "self")
    _, hint = shell.mistake(*flags, "--model", "tiny")
    assert hint.endswith("such as --question frage, and --answer with another")
    columns = ("--question", "frage", "--answer", "wert", "--model")
    assert shell.mistake(*flags, *columns, "tny") == (
        "--model tny: no such model",
        "did you mean tiny?",
    )
    assert "tiny knows Countdown only" in shell(*flags, *columns, "tiny").out


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
    for said in ("  traces: its own", "  math: LaTeX", "  tiny: in this package", "GB of memory"):
        assert said in done.out
    assert METHODS_SAID.keys() == METHODS.keys() and {*KINDS_SAID} == {*GRADED}
    assert "2  self" in done.out and "its columns are: Problem, Result" in done.out
    recipe = load_recipe("r3-sums.toml")
    assert (recipe.task.question, recipe.task.answer) == ("Problem", "Result")
    assert (recipe.critic.provider, recipe.critic.key_env) == ("openai", "OPENAI_API_KEY")
    assert recipe.critic.model == "gpt-4.1-mini" and recipe.policy.model == "tiny"
    assert "sk-secret" not in Path("r3-sums.toml").read_text()
    assert typed("", flags=FLAGS).code == 0  # nothing is left to ask
    done = typed("r3", "countdown", "tiny", "ollama:qwen2.5:7b", flags=("--out", "o.toml"))
    assert load_recipe("o.toml").critic.model == "qwen2.5:7b", done.err
    assert typed("ppo").code == 1  # and nothing more is typed


def test_a_mistyped_reply_is_asked_for_again(typed: Any, shell: Shell) -> None:
    (shell.folder / "sums.jsonl").write_text(OWN)
    done = typed(
        "ppo", "r3", "gsm9k", "nowhere.jsonl", "sums.jsonl", "Problems", "Problem", "Result",
        "numeral", "number", "./none", "tiny", "gpt", "solver", "self",
    )  # fmt: skip
    assert done.code == 0, done.err
    for said in ("--strategy ppo: no such method", "no task 'gsm9k'", "nowhere.jsonl: no such",
                 "no column 'Problems'", "--answer-type numeral", "--model = './none'",
                 "--critic gpt: no such critic", "has no exact solver"):  # fmt: skip
        assert said in done.out
    recipe = load_recipe("r3-sums.toml")
    assert (recipe.task.question, recipe.task.answer) == ("Problem", "Result")
    done = typed("r3", "countdown", "tiny", "self", flags=("--answer-type", "number"))
    assert done.code == 0, done.err
    done = typed("r3", flags=("--strategy", "ppo"))  # a flag is not asked for again
    assert done.code == 2 and "--strategy ppo" in done.err


def test_a_method_that_asks_no_critic_needs_none(shell: Shell) -> None:
    shell.works("init", "--strategy", "reflectevo", "--task", "gsm8k", "--model", "tiny",
                "--critic", "self")  # fmt: skip
    recipe = load_recipe("reflectevo-gsm8k.toml")
    assert method_of(recipe).tiers(recipe) == []
    own = {"temperature", "max_tokens"}  # which hold for the policy's own reflections
    for model, method in (("tiny", "reflectevo"), ("m", "reflectevo"), ("m", "r3")):
        tree = tomllib.loads(draft(Choices(method, model, "gsm8k", "self")))
        assert tree["critic"].keys() == own
        parts = tree.get("profiles", {}).values()
        assert all(part.get("critic", {"temperature": 0}).keys() <= own for part in parts)
    usual = load_recipe("reflectevo")
    assert [offer.critic for offer in find_offers(True, usual)] == ["self", "solver"]
    error, _ = shell.mistake("init", "--strategy", "preflexor", "--task", "gsm8k", "--model",
                             "tiny", "--critic", "self")  # fmt: skip
    assert "cannot do without a critic" in error


def test_the_solver_gives_no_marks(shell: Shell) -> None:
    shell.works("init", "--strategy", "traces", "--task", "countdown", "--yes")
    assert load_recipe("traces-countdown.toml").traces.scorer == "rules"
    error, hint = shell.mistake("init", "--strategy", "traces", "--task", "countdown", "--yes",
                                "--critic", "solver", "--force")  # fmt: skip
    assert "gives none" in error and "--critic self (marks by rules)" in hint


@pytest.mark.slow
def test_a_format_that_the_policy_does_not_know_is_said(shell: Shell) -> None:
    shell.works("init", *FLAGS)
    run = ("run", "r3-countdown.toml", "--set", "task.limit=8", "--set", "r3.epochs=1",
           "--set", "eval.limit=8")  # fmt: skip
    assert "warning" not in shell.works(*run).out
    said = shell.works(*run, "--set", "prompt.tags=reasoning").out
    assert "none of 8 attempts keeps the format <reasoning>…</reasoning>" in said
    assert "--set prompt.tags=think" in said


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


@pytest.mark.parametrize(("method", "critic"), list(product(METHODS, CRITICS)))
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
    own = Choices("r3", "m", "jsonl", "ollama:m", source="d.jsonl")
    text = draft(own)
    assert [*tomllib.loads(text)["profiles"]] == ["look"]
    assert "offline" not in text and "--set profile=look" in text
    assert "quick" in tomllib.loads(draft(Choices("r3", "m", "svamp", "ollama:m")))["profiles"]
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
