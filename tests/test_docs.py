"""Everything the documentation says to type exists, and what can be tried here is tried."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from support.key_table import PLACE, key_tables
from support.key_table import rows as key_rows
from support.shell import Done, Shell, sets

from mlxreflect.cli.main import app
from mlxreflect.config.recipe import eval_spec, eval_specs, load_job, load_recipe
from mlxreflect.config.schema import EvalSpec, Job, Recipe
from mlxreflect.config.toml import apply_settings, bundled, find_toml, shipped, validate
from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.evaluate import find_spec
from mlxreflect.tasks import TASKS, find_rules, get_task

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(
    f"{folder}/README.md" for folder in ("recipes", "evals", "mlxreflect", "tests", "tests/bench")
))  # fmt: skip
DOCS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
SHELLS = ("bash", "console", "sh", "shell", "zsh")
GROUP: Any = typer.main.get_command(app)
UsageError = typer.BadParameter.__mro__[1]  # click's, or the copy inside typer

# How a command is tried, by its subcommand. A new subcommand needs a line here.
#   run: really run, with files of this test in place of RUN_DIR and the user's own files
#   dry: with --dry-run added, where the problems need no network; else its recipe is only loaded
HOW = {"run": "dry", "resume": "run", "runs": "run", "show": "run", "compare": "run",
       "grade": "run", "eval": "run", "train": "run", "fuse": "run", "doctor": "run",
       "decontaminate": "run", "report": "run", "export": "run",
       "init": "run", "solve": "run", "annotate": "run", "view": "run", "chat": "run",
       "publish": "run"}  # fmt: skip
OWN_FILES = {
    "notes.txt": "I do not know. <answer> 0 </answer>",
    "problems.jsonl": "".join(f'{{"question": "{i} + 1?", "answer": {i}}}\n' for i in range(30)),
    "preferences.jsonl": "".join(
        f'{{"prompt": "{i} + 1?", "chosen": "{i + 1}", "rejected": "{i}"}}\n' for i in range(30)
    ),
    "chats.jsonl": "".join(
        f'{{"messages": [{{"role": "user", "content": "{i} + 1?"}}, '
        f'{{"role": "assistant", "content": "{i + 1}"}}]}}\n'
        for i in range(30)
    ),
    "NOTES/bees.md": "# Bees\n\nBees gather nectar from flowers and make honey of it in summer.\n",
    "exam.jsonl": '{"question": "5 + 1?"}\n{"question": "6 + 1 ?"}\n',
    "questions.jsonl": '{"prompt": "Why is the sky blue?"}\n{"prompt": "Why do bees dance?"}\n',
    "responses.jsonl": '{"id": 1, "response": "a", "numbers": [3, 4], "target": 7, "gold": 7}\n',
}


MINE = "mine.toml"  # the recipe that the README writes with `init`

HAS_GYM = importlib.util.find_spec("reasoning_gym") is not None


class Block(NamedTuple):
    language: str
    text: str


class Command(NamedTuple):
    """What follows the word mlxreflect on a line."""

    name: str
    arguments: list[str]

    @property
    def parsed(self) -> dict[str, Any]:
        """Parameter → value, by the real parser. Raises UsageError."""
        context = GROUP.commands[self.name].make_context(self.name, list(self.arguments))
        found: dict[str, Any] = context.params
        return found


# ---- reading Markdown ----------------------------------------------------------------------------


def blocks(markdown: str) -> list[Block]:
    """The fenced code blocks."""
    found = re.findall(r"^(```+|~~~+) *(\w*)[^\n]*\n(.*?)^\1 *$", markdown, re.M | re.S)
    return [Block(language, text) for _, language, text in found]


def lines(block: Block) -> Iterator[str]:
    """The command lines of a block: continued lines joined, prompts and output left out."""
    whole = block.text.replace("\\\n", " ").splitlines()
    prompted = [line for line in whole if re.match(r"\s*[$%] ", line)]
    for line in prompted or whole:
        yield re.sub(r"^\s*[$%] ", "", line)


def commands(line: str) -> Iterator[Command]:
    """The mlxreflect commands of a shell line, which may chain several."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    part: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set(";&|"):
            yield from command(part)
            part = []
        else:
            part.append(token)


def command(words: list[str]) -> Iterator[Command]:
    while words and re.match(r"\w+=", words[0]):  # LD_PRELOAD=… mlxreflect
        words = words[1:]
    if len(words) > 2 and words[1:3] == ["-m", "mlxreflect"]:
        words = words[2:]
    if words and Path(words[0]).name == "mlxreflect":
        assert len(words) > 1, "mlxreflect without a subcommand"
        yield Command(words[1], words[2:])


def found_commands(markdown: str) -> list[Command]:
    shells = [block for block in blocks(markdown) if block.language in SHELLS]
    return [c for block in shells for line in lines(block) for c in commands(line)]


def spans(markdown: str) -> list[str]:
    """Inline code outside of code blocks."""
    prose = re.sub(r"^(```+|~~~+).*?^\1 *$", "", markdown, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


SAMPLE = """
Type `mlxreflect show RUN_DIR` or `train.lr = 1`:

```console
$ mlxreflect run quickstart --set seed=1 \\
    --set train.lr=2e-4   # a comment
seed: mlxreflect is not a command here
$ A=1 .venv/bin/mlxreflect show x && python -m mlxreflect grade gsm8k a.jsonl | head
```

```python
mlxreflect.run()
```
~~~sh
cd here; mlxreflect resume 'a dir'
~~~
"""


def test_commands_are_found() -> None:
    assert found_commands(SAMPLE) == [
        ("run", ["quickstart", "--set", "seed=1", "--set", "train.lr=2e-4"]),
        ("show", ["x"]),
        ("grade", ["gsm8k", "a.jsonl"]),
        ("resume", ["a dir"]),
    ]
    assert spans(SAMPLE) == ["mlxreflect show RUN_DIR", "train.lr = 1"]
    assert [block.language for block in blocks(SAMPLE)] == ["console", "python", "sh"]


@pytest.mark.parametrize(
    "line",
    ["mlxreflect run", "mlxreflect run r --nope", "mlxreflect eval countdown", "mlxreflect resume",
     "mlxreflect eval countdown --model m --limit x"],
)  # fmt: skip
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    (wrong,) = commands(line)
    with pytest.raises((UsageError, UserError)):
        _ = wrong.parsed


# ---- what the README says ------------------------------------------------------------------------

COMMANDS = [one for text in DOCS.values() for one in found_commands(text)]
SPANS = list(dict.fromkeys(span for text in DOCS.values() for span in spans(text)))


def shown(one: Command) -> str:
    return shlex.join([one.name, *one.arguments])[:60]


def test_every_subcommand_is_shown() -> None:
    assert {one.name for one in COMMANDS} == set(GROUP.commands) == set(HOW)
    assert set(re.findall(r"`mlxreflect (\w+)`", README)) == set(GROUP.commands)


def test_the_table_of_all_commands_has_the_groups_of_the_help() -> None:
    lines = README.partition("## All commands\n\n")[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = {group: [re.sub("`(mlxreflect )?", "", name) for name in names if name]
             for group, _, *names in zip(*cells, strict=True)}  # fmt: skip
    groups: dict[str, list[str]] = {}
    for name, command in GROUP.commands.items():
        groups.setdefault(str(command.rich_help_panel), []).append(name)
    assert table == groups


@pytest.mark.parametrize("one", COMMANDS, ids=shown)
def test_command_is_what_the_parser_takes(
    one: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert one.name in GROUP.commands
    parameters = one.parsed
    settings = parameters.get("set_") or []
    if one.name == "run" and parameters["recipe"] != MINE:
        file = find_toml(str(parameters["recipe"]), "recipes")
        assert file.resolve() in bundled("recipes").values()
        recipe = load_recipe(parameters["recipe"], settings)
        get_task(recipe.task.name)
        eval_spec(recipe)
    if one.name == "eval":
        limit, source = parameters["limit"], parameters["source"]
        get_task(find_spec(parameters["spec"], limit, source, settings).task.name)
        assert parameters["spec"] in {*bundled("evals"), *TASKS}
    if one.name == "grade":
        if parameters["file"]:
            find_rules(get_task(parameters["task"]), parameters["rules"])
        else:
            assert parameters["task"].startswith("RUN_DIR/")
    if one.name == "train":
        load_job(parameters["objective"], parameters["model"], parameters["data"], settings)


def test_commands_in_sentences_exist() -> None:
    """Their arguments may be left out there, their subcommands and options must exist."""
    named = [s for s in SPANS if re.match(r"(\S*/)?mlxreflect \w", s)]
    for one in [one for span in named for one in commands(span.replace("…", ""))]:
        assert one.name in GROUP.commands
        options = {o for parameter in GROUP.commands[one.name].params for o in parameter.opts}
        assert {a.partition("=")[0] for a in one.arguments if a.startswith("-")} <= options


@pytest.mark.parametrize("span", [s for s in SPANS if s.startswith("--")])
def test_option_in_a_sentence_exists(span: str) -> None:
    option, _, value = span.partition(" ")
    everywhere = [*GROUP.params, *(p for c in GROUP.commands.values() for p in c.params)]
    assert option in {o for p in everywhere for o in p.opts} | {"--help"}
    if option == "--set" and value not in ("", "KEY=VALUE") and "profile=" not in value:
        schema = schema_of(value.partition("=")[0])
        tree: dict[str, Any] = {"task": {}} if schema is EvalSpec else {}
        validate(schema, apply_settings(tree, [value]), Path("README.md"), [value])


def schema_of(key: str) -> type[Recipe] | type[Job] | type[EvalSpec]:
    """Whose key it is: a recipe's where several have it."""
    return next((s for s in (Recipe, Job, EvalSpec) if holds(s, key)), Recipe)


def holds(schema: Any, key: str) -> bool:
    for part in key.split("."):
        fields = getattr(schema, "model_fields", {})
        if part not in fields:
            return False
        schema = fields[part].annotation
    return True


def is_key(span: str) -> bool:
    file = span.endswith((".json", ".jsonl", ".py"))
    return bool(re.match(r"[a-z_0-9]+\.[a-z_0-9.]+( = .+)?$", span)) and (
        not file and span.partition(".")[0] in {**Recipe.model_fields, **Job.model_fields}
    )


@pytest.mark.parametrize("span", [s for s in SPANS if is_key(s)])
def test_key_in_a_sentence_exists(span: str) -> None:
    key, equals, value = span.partition(" = ")
    schema = schema_of(key)
    assert holds(schema, key), f"{key} is no key of a recipe, a training or a spec"
    if equals:
        settings = [f"{key}={value}"]
        validate(schema, apply_settings({}, settings), Path("README.md"), settings)


def test_every_bundled_file_that_is_named_exists() -> None:
    named = re.findall(r"\b(recipes|evals)/([\w-]+)\.toml", "\n".join(DOCS.values()))
    assert ("recipes", "quickstart") in named
    for folder, name in named:
        assert (shipped("recipes" if folder == "recipes" else "evals") / f"{name}.toml").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_the_repository_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)", DOCS[page]):
        file, _, place = target.partition("#")
        there = (ROOT / page).parent / file if file else ROOT / page
        assert there.exists(), target
        if place:
            assert place in places(there.read_text(encoding="utf-8")), target


def places(markdown: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_table_of_keys_is_what_the_schema_says() -> None:
    (shown,) = PLACE.findall(DOCS["recipes/README.md"])
    assert shown == key_tables(), "run: python tests/support/key_table.py"


def test_every_key_has_a_meaning() -> None:
    for schema in (Recipe, Job):
        for key, _, _, meaning in key_rows(schema):
            assert meaning, f"{key}: say in a comment what it means"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


def test_toml_is_of_a_recipe() -> None:
    for block in (block for text in DOCS.values() for block in blocks(text)):
        if block.language == "toml":
            validate(Recipe, tomllib.loads(block.text), Path("README.md"))


# ---- the two commands that others run ------------------------------------------------------------


def marked(marker: str) -> str:
    """The one command line between two comments, in a fence of its own."""
    found = re.findall(rf"^<!-- {marker} -->\n(.*?)^<!-- end -->$", README, re.M | re.S)
    assert len(found) == 1
    (block,) = blocks(found[0])
    assert found[0] == f"```{block.language}\n{block.text}```\n"
    assert block.language in SHELLS
    (line,) = block.text.splitlines()
    assert line == line.strip() and not line.startswith("$")
    return str(line)


def test_the_run_command_is_one_line_and_runs_offline() -> None:
    (one,) = commands(marked("run"))
    assert one.name == "run"
    recipe = load_recipe(one.parsed["recipe"], one.parsed["set_"] or [])
    assert recipe.policy.model == "tiny"
    assert recipe.critic.tier("basic").provider == recipe.critic.tier("advanced").provider
    assert recipe.critic.provider == "solver"
    assert TASKS[recipe.task.name].solver is not None


def test_the_test_command_is_one_line_and_holds_the_pinned_versions() -> None:
    line = marked("tests")
    words = shlex.split(line)
    constraints = words[words.index("install") + 3]
    assert words[words.index("install") + 2] == "-c"
    assert (ROOT / constraints).is_file()
    assert "pytest" in " ".join(words[-3:])


@pytest.mark.parametrize("marker", ["run", "tests"])
def test_installs_with_extras_that_exist(marker: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"\.\[([\w,]+)\]", marked(marker))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("marker", ["run", "tests"])
def test_ci_finds_the_same_line(marker: str) -> None:
    """.ci/run and whoever tries the quickstart cut it out with sed."""
    script = rf"sed -n '/<!-- {marker} -->/,/<!-- end -->/p' README.md | sed '/^<!--/d; /^```/d'"
    done = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == marked(marker) + "\n"


# ---- trying them ---------------------------------------------------------------------------------


@pytest.fixture
def furnished(shell: Shell) -> Shell:
    """A folder with a finished run in it as RUN_DIR, and the files that a user would have."""
    shell.works("run", "quickstart", *shell.small, "--run-dir", "RUN_DIR")
    (shell.folder / "runs").mkdir(exist_ok=True)
    latest = shell.folder / "runs" / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(shell.folder / "RUN_DIR")
    for name, text in OWN_FILES.items():
        (shell.folder / name).parent.mkdir(exist_ok=True)
        (shell.folder / name).write_text(text)
    return shell


def try_out(shell: Shell, one: Command) -> Done | None:
    """Run a command with the placeholders filled in; None where it needs the network."""
    parameters, arguments = one.parsed, list(one.arguments)
    if one.name == "run":
        name = parameters["recipe"]
        recipe = load_recipe(
            str(shell.folder / MINE) if name == MINE else name, parameters["set_"] or []
        )
        asked = [recipe.task, *(spec.task for spec in eval_specs(recipe).values())]
        if any(get_task(task.name).hub and not task.source for task in asked):
            return None
        if any(task.name.startswith("gym:") for task in asked) and not HAS_GYM:
            return None
        return shell.works("run", *arguments, *([] if "--dry-run" in arguments else ["--dry-run"]))
    if one.name == "eval":
        if set(parameters["model"]) != {"tiny"} or parameters["spec"] == "gsm8k":
            return None
        arguments = [str(shell.model) if a == "tiny" else a for a in arguments]
        short = [
            "--limit",
            "4",
            *sets("max_new_tokens=8"),
            "--out",
            f"out-{len(list(shell.folder.glob('out-*')))}",
        ]
        return shell.works("eval", *arguments, *short)
    if one.name == "resume" and ("://" in parameters["place"] or "mirror=/" in str(arguments)):
        return None  # another machine's disks
    if one.name == "doctor":
        done = shell(one.name, *arguments)
        assert done.code == 0 or (done.code == 1 and "something is missing" in done.out), done.err
        return done
    if one.name == "annotate":
        if not parameters["working"]:
            return None  # an editor
        quick = sets("profile=quick", "eval.decontaminate=off")
        done = shell(one.name, *arguments, *quick)
        assert done.code == 1 and "not kept" in done.err + done.out
        return done
    if one.name == "init":
        arguments += ["--yes", "--force"]
    if one.name == "runs":
        arguments.append(".")  # RUN_DIR is not below runs/
    if one.name == "fuse":
        arguments += ["--out", "FUSED"]  # the last one counts
    if one.name == "solve" and parameters["model"] != "tiny":
        return None
    if one.name == "chat":
        return None if parameters["server"] else shell.works("chat", *arguments, typed="Hello\n")
    if one.name == "publish" and not parameters["dry_run"]:
        return None  # the hub
    if one.name == "view" and parameters["out"] is None:
        return None  # it serves until somebody ends it
    if one.name == "compare" and parameters["judge"]:
        return None  # a critic's server
    if one.name == "train":
        if parameters["model"] != "tiny":
            arguments[arguments.index("--model") + 1] = "tiny"
        return shell.works("train", *arguments)
    if parameters.get("problem"):
        episode = (shell.folder / "RUN_DIR" / "episodes.jsonl").read_text().splitlines()[0]
        (problem,) = re.findall(r'"problem": \{[^}]*"id": "(\w+)"', episode)
        arguments = [problem[:4] if a == parameters["problem"] else a for a in arguments]
    return shell.works(one.name, *arguments)


@pytest.mark.slow
def test_commands_of_the_documentation_work(furnished: Shell) -> None:
    tried = {}
    for one in COMMANDS:
        assert one.name in HOW, f"say in HOW how to try: mlxreflect {one.name}"
        done = try_out(furnished, one)
        if done:
            assert done.out.strip(), one
            tried.setdefault(one.name, 0)
            tried[one.name] += 1
    assert set(tried) == set(HOW), "of each subcommand one command can be tried here"


@pytest.mark.slow
def test_the_command_is_installed() -> None:
    """`mlxreflect` itself stands beside this Python."""
    script = shutil.which("mlxreflect", path=str(Path(sys.executable).parent))
    assert script
    done = subprocess.run([script, "-h"], capture_output=True, text=True, check=True)
    assert "Usage: mlxreflect" in done.stdout
