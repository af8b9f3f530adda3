"""Wording of one's own: what is refused, what it changes, and that a run keeps it."""

import json
from contextlib import closing

import pytest
from support.methods import attempt_messages, call_of

from mlxreflect.config.recipe import digest, eval_spec, load_recipe
from mlxreflect.core.errors import UserError
from mlxreflect.evaluation.evaluate import find_spec
from mlxreflect.methods.base import Try
from mlxreflect.methods.session import attempt_prompt
from mlxreflect.prompts.roles import BUNDLED
from mlxreflect.runs.folder import create_run, open_folder
from mlxreflect.tasks import TASKS

MINE = {"critique": "Find the fault. {open} {close} {{json}}",
        "attempt_thinking": "{instruction} Think in {open}{close}."}  # fmt: skip


def write(path, wording):
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in wording.items()))
    return str(path)


def load(file, *settings, name="quickstart"):
    return load_recipe(name, [f"prompt.file={json.dumps(file)}", *settings])


@pytest.mark.parametrize(
    "name,text,fault,hint",
    [
        ("critic", "Say.", "there is no template 'critic'", "known are: attempt_thinking"),
        ("judge", 3, "judge = 3 is no text", 'write judge = """…"""'),
        ("judge", "{answer}", "judge has an unknown place {answer}", "its places: none"),
        ("critique", "{open} only", "critique has no {close}", "all of its places in: {close}"),
        ("critique", "{open}{close}{}", "critique has an unknown place {}", "write {{ and }}"),
        ("critique", "{open}{close}{0}", "critique has an unknown place {0}", "write {{ and }}"),
        ("critique", '{open}{close}{"a": 1}', "with a format", "write {{ and }}"),
        ("critique", "{open.__class__}{open}{close}", "unknown place {open.__class__}", "its pl"),
        ("critique", "{open!r}{open}{close}", "with a format or conversion", "write {{ and }}"),
        ("critique", "{open}{close} }", "critique: ", "write {{ and }}"),
        ("critique", "{open}{close", "critique: ", "write {{ and }}"),
        ("rewrite", "{open} {close}", "rewrite has no {instruction}", "{close}, {instruction}"),
    ],
)
def test_a_template_that_is_none_is_named(tmp_path, name, text, fault, hint):
    file = write(tmp_path / "mine.toml", {name: text})
    inline = f"prompt.templates.{name}={json.dumps(text)}"
    for setting, where in ((f"prompt.file={file}", file), (inline, "prompt.templates")):
        with pytest.raises(UserError) as caught:
            load_recipe("quickstart", [setting])
        assert fault in caught.value.message and where in caught.value.message
        assert hint in caught.value.hint
        assert "\n" not in caught.value.message + caught.value.hint


def test_a_file_that_is_none(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("critique = ")
    for name, said in (("no/such.toml", r"no/such\.toml"), (str(bad), "not TOML")):
        with pytest.raises(UserError, match=said):
            load(name)


@pytest.mark.parametrize("name", BUNDLED.wording)
def test_every_bundled_template_is_one(name):
    text = BUNDLED.wording[name]
    assert BUNDLED.check({name: text}, "here") == {name: text}
    assert BUNDLED.version(name) != BUNDLED.replaced({name: text + "!"}).version(name)
    assert len({BUNDLED.version(n) for n in BUNDLED.wording}) == len(BUNDLED.wording)


def test_it_is_what_attempts_and_critics_are_told(tmp_path):
    recipe = load(write(tmp_path / "mine.toml", MINE))
    task = TASKS["countdown"]
    (problem,) = task.load(recipe.task.model_copy(update={"limit": 1}), "train", 0)
    said = attempt_prompt(recipe, task, problem)[0]["content"]
    assert said == f"{task.instruction(problem)} Think in <think></think>."
    at = Try("basic", 1, "x")
    critique = call_of("critique", problem, at, recipe, attempt="a")
    assert critique.messages[0]["content"] == "Find the fault. <think> </think> {json}"
    assert critique.template == BUNDLED.replaced(MINE).version("critique")
    # What was not replaced stays as it is.
    both = [call_of("rewrite", problem, at, r, attempt="a", feedback="b") for r in (recipe, None)]
    assert both[0] == both[1]
    # And it counts in the digest.
    other = write(tmp_path / "other.toml", {**MINE, "critique": "Other. {open} {close}"})
    assert len({digest(recipe), digest(load(other)), digest(load_recipe("quickstart"))}) == 3


def test_the_evaluation_words_attempts_as_training_does(tmp_path):
    file = write(tmp_path / "mine.toml", MINE)
    for settings in ([], ["eval.spec=arithmetic"], ["eval.spec="]):
        spec = eval_spec(load(file, *settings))
        assert spec.prompt.templates == {"attempt_thinking": MINE["attempt_thinking"]}
    own = tmp_path / "own.toml"
    own.write_text('prompt.tags = "reasoning"\n[task]\nname = "countdown"\n')
    spec = eval_spec(load(file, f"eval.spec={own}"))
    assert (spec.prompt.tags, list(spec.prompt.templates)) == ("reasoning", ["attempt_thinking"])
    plain = eval_spec(load_recipe("quickstart"))
    assert plain.prompt.templates == {}


def test_an_eval_spec_may_have_wording_too(tmp_path):
    file = write(tmp_path / "mine.toml", {"attempt_direct": "{instruction} Go."})
    spec = find_spec("countdown", 0, "", [f"prompt.file={file}", "prompt.style=direct"])
    said = attempt_messages(
        "Do.", "q", "think", spec.prompt.style, BUNDLED.replaced(spec.prompt.templates)
    )
    assert said[0]["content"] == "Do. Go."
    with pytest.raises(UserError, match="no template"):
        find_spec("countdown", 0, "", ["prompt.templates.attempt=x"])


def test_a_run_keeps_its_wording_and_notices_another(tmp_path):
    file = write(tmp_path / "mine.toml", MINE)
    create_run(load(file), tmp_path / "run").close()
    with closing(open_folder(tmp_path / "run")) as again:
        assert again.config.prompt.templates == MINE
    kept = str(tmp_path / "run" / "recipe.toml")  # it has both, and they have to agree
    assert load_recipe(kept).prompt.templates == MINE
    with pytest.raises(UserError, match="critique is not as in"):
        load_recipe(kept, ["prompt.templates.critique=My {open} {close}"])
    write(tmp_path / "mine.toml", {**MINE, "critique": "Other. {open} {close}"})
    with pytest.raises(UserError, match=r"mine\.toml was changed: critique") as caught:
        open_folder(tmp_path / "run")
    assert caught.value.hint == "change it back, or begin a new run"
    (tmp_path / "mine.toml").unlink()  # the run has its own copy
    open_folder(tmp_path / "run").close()
