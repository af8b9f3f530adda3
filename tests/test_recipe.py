"""Recipes: what loads, what is refused and in which words, and what makes two of them the same."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxreflect.config.fields import Table
from mlxreflect.config.recipe import (
    RESUMABLE,
    digest,
    dump_recipe,
    eval_spec,
    load_recipe,
    resolved,
)
from mlxreflect.config.schema import METHODS, CriticConfig, EvalSpec, Recipe
from mlxreflect.config.toml import bundled, flatten, read_toml, validate
from mlxreflect.core.errors import UserError

DEFAULTS = flatten(Recipe().model_dump())
LEAVES = sorted(set(DEFAULTS) - {"critic.advanced", "critic.judge"})
# Lists that one text may stand for.
NAMES = ("eval.against", "preflexor.topics", "preflexor.sections", "reflectevo.instructions",
         "train.lora.keys")  # fmt: skip
ONE_OR_MORE = ("task.numbers", "task.words", "task.operands", "task.digits", "track")
OTHERS = [method for method in METHODS if method != Recipe().strategy]


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(name: str, *settings: str) -> UserError:
    """The error, each part of it one line that a terminal shows whole."""
    with pytest.raises(UserError) as caught:
        load_recipe(name, settings)
    error = caught.value
    assert error.message and error.hint
    assert "\n" not in error.message + error.hint
    return error


# ---- what loads ----------------------------------------------------------------------------------


def test_the_bundled_files_are_those_of_the_checkout() -> None:
    root = Path(__file__).parent.parent
    recipes = {p.stem for p in (root / "recipes").glob("*.toml")}
    assert set(bundled("recipes")) == recipes - {"models"}  # profiles of every recipe
    assert set(bundled("evals")) == {p.stem for p in (root / "evals").glob("*.toml")}
    assert "quickstart" in bundled("recipes")
    assert {"arithmetic", "countdown", "gsm8k", "jsonl"} <= set(bundled("evals"))


@pytest.mark.parametrize("name", bundled("recipes"))
def test_bundled_recipe_loads_and_survives_its_dump(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe
    assert digest(again) == digest(recipe)
    for profile in read_toml(bundled("recipes")[name]).get("profiles", {}):
        assert load_recipe(name, [f"profile={profile}"]).strategy == recipe.strategy


@pytest.mark.parametrize("name", bundled("evals"))
def test_bundled_eval_spec_loads(name: str) -> None:
    spec = eval_spec(load_recipe("quickstart", [f"eval.spec={name}", "eval.limit=0"]))
    written = read_toml(bundled("evals")[name])
    assert spec.task.name == written["task"]["name"]
    assert spec.part == written["part"]
    assert spec.limit == written.get("limit", 0)


@pytest.mark.parametrize("name", ["recipes/quickstart.toml", "quickstart.toml", "quickstart"])
def test_a_bundled_recipe_by_any_of_its_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder that happens to be called so is not meant
    assert load_recipe(name) == load_recipe(str(bundled("recipes")["quickstart"]))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "quickstart").rmdir()
    (tmp_path / name).write_text("seed = 41\n")  # a file is
    assert load_recipe(name).seed == 41


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "")) == Recipe(name="mine")


@pytest.mark.parametrize("method", METHODS)
def test_the_dump_keeps_every_changed_key(method: str, tmp_path: Path) -> None:
    tree = resolved(Recipe.model_validate({"strategy": method}))
    for key in set(LEAVES) & set(flatten(tree)) - {"strategy"}:
        put(tree, key, other(key))
    tree["prompt"]["templates"] = {"critique": "„Mind“ {open}…{close},\n{{so}}\\"}
    tree["critic"]["advanced"] = {"model": "größer", "temperature": 0.5, "num_ctx": 4096}
    recipe = Recipe.model_validate(tree)
    path = Path(write(tmp_path, dump_recipe(recipe)))
    again = validate(Recipe, read_toml(path), path)
    assert again == recipe and digest(again) == digest(recipe)
    assert not {*METHODS} - {method} & set(read_toml(path))


@pytest.mark.parametrize("method", OTHERS)
def test_a_table_of_another_method_is_refused(method: str, tmp_path: Path) -> None:
    error = refused(write(tmp_path, f"[{method}]\n"))
    assert f"[{method}] does nothing while strategy = 'r3'" in error.message
    assert f"strategy = {method!r}" in error.hint


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(1e-300, 1e300))
def test_any_text_and_number_survives_the_dump(
    tmp_path_factory: pytest.TempPathFactory, text: str, lr: float
) -> None:
    """In a key that is no path: "~" as policy.model is a folder, which is read as a whole path."""
    recipe = Recipe.model_validate({"name": "n", "task": {"question": text}, "train": {"lr": lr}})
    path = write(tmp_path_factory.getbasetemp(), dump_recipe(recipe))
    assert load_recipe(path) == recipe


# ---- unknown keys --------------------------------------------------------------------------------


def tables_in(path: str, table: Table) -> Iterator[tuple[str, type[Table]]]:
    yield path, type(table)
    for name, value in table:
        if isinstance(value, Table):
            yield from tables_in(f"{path}.{name}".lstrip("."), value)


def tables() -> Iterator[tuple[str, type[Table]]]:
    yield from tables_in("", Recipe())
    yield "critic.advanced", CriticConfig
    yield "critic.judge", CriticConfig


PLACES = [(table, name) for table, model in tables() for name in model.model_fields]


def test_every_key_of_a_recipe_is_among_the_places() -> None:
    known = {f"{table}.{name}".lstrip(".") for table, name in PLACES}
    assert set(DEFAULTS) <= known


@pytest.mark.parametrize(("table", "name"), PLACES)
def test_unknown_key_is_refused_with_line_and_nearest_name(
    table: str, name: str, tmp_path: Path
) -> None:
    wrong, right = f"{table}.{name}x".lstrip("."), f"{table}.{name}".lstrip(".")
    header = f"[{table}]\n" if table else ""
    path = write(tmp_path, f"# a comment\n\n{header}{name}x = 1\n")
    error = refused(path)
    line = 4 if table else 3
    assert error.message == f"{path}, line {line}: unknown key {wrong}"
    assert error.hint == f"did you mean {right}?"

    dotted = refused(write(tmp_path, f"\n{wrong} = 1\n"))
    assert dotted.message == f"{path}, line 2: unknown key {wrong}"
    if table:
        inline = refused(write(tmp_path, f"seed = 1\n\n{table} = {{ {name}x = 1 }}\n"))
        assert inline.message == f"{path}, line 3: unknown key {wrong}"
        assert inline.hint == f"did you mean {right}?"
    given = refused(write(tmp_path, ""), f"{wrong}=1")
    assert given.message == f"--set {wrong}=1: unknown key {wrong}"
    assert given.hint == f"did you mean {right}?"

    profile = refused(write(tmp_path, f"[profiles.quick]\nseed = 1\n{wrong} = 1\n"))
    assert profile.message == f"{path}, line 3: unknown key profiles.quick.{wrong}"
    assert profile.hint == f"did you mean profiles.quick.{right}?"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("seed = 1\n\n[polcy]\nmodel = 'x'\n", ", line 3: unknown key polcy", "did you mean pol"),
        (
            "[train.lora]\nqqqq = 1\n", ", line 2: unknown key train.lora.qqqq",
            "known keys here: rank, scale, alpha, rslora, dora, dropout, layers, keys",
        ),
        (
            "[critic.advanced.advanced]\nmodel = 'x'\n",
            ", line 1: unknown key critic.advanced.advanced", "known keys here: top_k",
        ),
        ("[task]\nname = 'countdown'\nnumbers = [3, 9]\n", ", line 3: task.numbers.1 = 9: ", ""),
        (
            "[critic]\nmodel = 'x'\n[critic.advanced]\nnum_ctx = 0\n",
            ", line 4: critic.advanced.num_ctx = 0: ", "",
        ),
        (
            'strategy = "traces"\n[traces.grpo]\nepsilon = 0.2\n',  # TRL's name
            ", line 3: unknown key traces.grpo.epsilon", "did you mean traces.grpo.clip_ratio?",
        ),
        ("seed = 1\n[train\nlr = 2\n", ": not TOML: ", "correct that line"),
        ("lr = 1e\n", ": not TOML: ", "correct that line"),
        ("seed = 1\nseed = 2\n", ": not TOML: ", "correct that line"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_named_with_its_line(
    text: str, said: str, hint: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    error = refused(path)
    assert error.message.startswith(f"{path}{said}")
    assert error.hint.startswith(hint)


def test_a_setting_is_blamed_where_the_file_also_has_the_table(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nlr = 1e-4\n[critic.advanced]\nmodel = 'x'\n")
    assert refused(path, "train.lrr=1").message == "--set train.lrr=1: unknown key train.lrr"
    assert refused(path, "train.lr=fast").message == (
        "--set train.lr=fast: train.lr = 'fast': input should be a valid number"
    )
    assert refused(path, "critic.advanced.modl=x").message == (
        "--set critic.advanced.modl=x: unknown key critic.advanced.modl"
    )
    # The file's own mistake stays the file's, whatever else is set.
    broken = write(tmp_path, "[train]\nlrr = 1e-4\n")
    assert refused(broken, "train.lr=1e-4").message == f"{path}, line 2: unknown key train.lrr"


# ---- wrong values --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", LEAVES)
def test_wrong_type_is_named_with_key_value_and_line(key: str, tmp_path: Path) -> None:
    default = DEFAULTS[key]
    # "auto" of so many gigabytes stands in the place of a number.
    texts = (isinstance(default, str) and not key.endswith("_gb")) or key in NAMES
    wrong, shown = ("7", "7") if texts else ('"7"', "'7'")
    if key in ("critic.keep_alive", "preflexor.topics"):  # in seconds, and how many
        wrong, shown = "true", "True"
    *tables_, leaf = key.split(".")
    header = f"[{'.'.join(tables_)}]" if tables_ else "# top"
    path = write(tmp_path, f"{header}\n\n{leaf} = {wrong}\n")
    error = refused(path)
    at = key + ".0" if key in ONE_OR_MORE else key
    assert error.message.startswith(f"{path}, line 3: {at} = {shown}: input should be ")
    assert error.hint.startswith(f"correct {at}")
    if not key.endswith("_sha256") and "it takes" not in error.hint:  # those a run finds itself
        example = error.hint.partition(", for example ")[2]
        assert example.startswith(f"{key}=") and not example.endswith(('""', "[]", "{}"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("strategy", "'ppo'", "'ppo': input should be 'r3'"),
        ("policy.temperature", "-0.1", "-0.1: input should be greater than or equal to 0"),
        ("policy.temperature", "true", "True: input should be a valid number"),
        ("policy.top_p", "1.01", "1.01: input should be less than or equal to 1"),
        ("policy.batch", "0", "0: input should be greater than or equal to 1"),
        ("policy.batch", "true", "True: input should be a valid integer"),
        ("policy.quantize", "3", "3: input should be 0, 4 or 8"),
        ("policy.max_new_tokens", "40.0", "40.0: input should be a valid integer"),
        (
            "prompt.tags",
            "'xml'",
            "'xml': input should be 'think', 'reasoning', 'preflexor', 'mistral', "
            "'gemma', 'harmony' or 'native'",
        ),
        ("task.limit", "-1", "-1: input should be greater than or equal to 0"),
        ("critic.provider", "'gpt'", "'gpt': input should be 'solver', 'local', 'ollama', "),
        ("critic.deadline_s", "0", "0: input should be greater than 0"),
        ("r3.sft_mode", "4", "4: input should be 0, 1, 2 or 3"),
        ("r3.sft_correct", "1", "1: input should be a valid boolean"),
        ("r3.wave", "1.5", "1.5: input should be a valid integer"),
        ("train.lr", "inf", "inf: input should be a finite number"),
        ("train.lr", "nan", "nan: input should be "),
        ("train.lr", "1979-05-27", "datetime.date(1979, 5, 27): input should be a valid number"),
        ("train.objective", "'kto'", "'kto': input should be 'dpo', 'ipo', 'exo_pair' or 'orpo'"),
        ("train.smoothing", "0.5", "0.5: input should be less than 0.5"),
        ("train.smoothing", "-0.1", "-0.1: input should be greater than or equal to 0"),
        ("train.grad_checkpoint", "true", "True: input should be 'auto', 'yes' or 'no'"),
        ("train.memory_gb", "-1", "-1: input should be greater than or equal to 0"),
        ("train.memory_gb", "1e300", "1e+300: input should be less than or equal to 1000000"),
        ("policy.batch", "9007199254740993", "9007199254740993: input should be less than or "),
        ("train.mask.think_fraction", "1.1", "1.1: input should be less than or equal to 1"),
        ("train.tune", "'all'", "'all': input should be 'lora' or 'full'"),
        ("train.lora.alpha", "-1", "-1: input should be greater than or equal to 0"),
        ("train.lora.dropout", "1", "1: input should be less than 1"),
        ("train.lora.layers", "-2", "-2: input should be greater than or equal to -1"),
        ("train", "3", "3: it is a table"),
    ],
)
def test_wrong_value_is_named(key: str, value: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"seed = 3\n{key} = {value}\n")
    assert refused(path).message.startswith(f"{path}, line 2: {key} = {said}")
    empty = write(tmp_path, "")
    assert refused(empty, f"{key}={value}").message.startswith(
        f"--set {key}={value}: {key} = {said}"
    )


def test_a_whole_number_is_a_float_too(tmp_path: Path) -> None:
    whole, real = (load_recipe(write(tmp_path, f"train.lr = {one}\n")) for one in ("1", "1.0"))
    assert whole == real and digest(whole) == digest(real)


# ---- --set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("policy.model=qwen", "qwen"),
        ('policy.model="qwen"', "qwen"),
        ("policy.model='a b'", "a b"),
        ("policy.model=mlx-community/Qwen2.5-0.5B", "mlx-community/Qwen2.5-0.5B"),
        ("policy.model=~/models/a=b", "~/models/a=b"),
        ("policy.model=", ""),
        ('policy.model="true"', "true"),
        ("critic.model=qwen2.5:7b", "qwen2.5:7b"),
        ("task.numbers=[3, 4]", [3, 4]),
        ("task.numbers=4", [4]),
        ("train.lora.keys=mlp.x,q_proj", ["mlp.x", "q_proj"]),
        ('train.lora.keys=["self_attn.q_proj", "mlp.x"]', ["self_attn.q_proj", "mlp.x"]),
        ("r3.sft_correct=true", True),
        ("r3.until_mastered=false", False),
        ("train.lr=2e-4", 2e-4),
        ("train.lr=1", 1.0),
        (" train.lr = 3e-4 ", 3e-4),
        ("train.lora.rank=4", 4),
        ("seed=7", 7),
        ("train.lora.layers=-1", -1),
        ('critic.advanced={model = "big"}', {"model": "big"}),
    ],
)
def test_setting(setting: str, value: Any, tmp_path: Path) -> None:
    recipe: Any = load_recipe(write(tmp_path, "[policy]\ntop_p = 0.5\n"), [setting])
    node = recipe
    for part in setting.partition("=")[0].strip().split("."):
        node = getattr(node, part)
    assert (node, type(node)) == (value, type(value))
    assert recipe.policy.top_p == 0.5


def test_a_setting_of_the_advanced_critic(tmp_path: Path) -> None:
    settings = ["critic.provider=ollama", "critic.model=small", "critic.advanced.model=big"]
    recipe = load_recipe(write(tmp_path, ""), settings)
    assert recipe.critic.tier("basic").model == "small"
    assert recipe.critic.tier("advanced").model == "big"
    assert recipe.critic.tier("advanced").provider == "ollama"
    assert load_recipe(write(tmp_path, "seed = 1\n"), ["seed=2", "seed=3"]).seed == 3  # the last


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.lr", "--set train.lr: no key=value"),
        ("=3", "--set =3: no key=value"),
        ("", "--set : no key=value"),
        ("seed.x=1", "--set seed.x=1: seed is no table"),
        ("train.lr.x=1", "--set train.lr.x=1: train.lr = {'x': 1}: "),
        ("task.numbers=[]", "--set task.numbers=[]: task.numbers = []: "),
        ("task.words=0", "--set task.words=0: task.words.0 = 0: "),
        (
            "critic.concurrency=100000",
            "--set critic.concurrency=100000: critic.concurrency = 100000: ",
        ),
        (
            "train.lora.rank=100000000",
            "--set train.lora.rank=100000000: train.lora.rank = 100000000: ",
        ),
        ("train.lora.keys=[1]", "--set train.lora.keys=[1]: train.lora.keys.0 = 1: "),
        ("train.lora.keys=[a", "--set train.lora.keys=[a: not TOML: "),
        ("r3.sft_correct=yes", "--set r3.sft_correct=yes: r3.sft_correct = 'yes': "),
        ("r3.sft_correct=True", "--set r3.sft_correct=True: r3.sft_correct = 'True': "),
        ("policy.model=7", "--set policy.model=7: policy.model = 7: "),
        ("seed=1.0", "--set seed=1.0: seed = 1.0: "),
        ("train={lrr = 1}", "--set train={lrr = 1}: unknown key train.lrr"),
        (".=1", "--set .=1: unknown key "),
        ("profiles.x.seed=1", "--set profiles.x.seed=1: unknown key profiles"),
    ],
)
def test_bad_setting(setting: str, said: str, tmp_path: Path) -> None:
    assert refused(write(tmp_path, "seed = 1\n"), setting).message.startswith(said)


# ---- profiles ------------------------------------------------------------------------------------

PROFILES = """
seed = 1
[train]
lr = 1e-4
beta = 0.3
[profiles.quick]
seed = 2
[profiles.quick.train]
lr = 2e-4
[profiles.quick.train.lora]
rank = 2
[profiles.slow]
train.lr = 5e-5
"""


def test_a_profile_is_merged_key_by_key_and_before_the_settings(tmp_path: Path) -> None:
    path = write(tmp_path, PROFILES)
    plain, quick = load_recipe(path), load_recipe(path, ["profile=quick"])
    assert (plain.seed, plain.train.lr, plain.train.lora.rank) == (1, 1e-4, 16)
    assert (quick.seed, quick.train.lr, quick.train.lora.rank) == (2, 2e-4, 2)
    assert quick.train.beta == 0.3
    for settings in (["profile=quick", "train.lr=1"], ["train.lr=1", "profile=quick"]):
        both = load_recipe(path, settings)
        assert (both.seed, both.train.lr, both.train.lora.rank) == (2, 1.0, 2)
    assert load_recipe(path, ["profile=quick", "profile=slow"]).train.lr == 5e-5
    assert "profiles" not in dump_recipe(quick)
    assert digest(quick) != digest(plain)


def test_unknown_profile_lists_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path, PROFILES)
    error = refused(path, "profile=quik")
    assert error.message == f"{path}: no profile 'quik'"
    known = "its profiles are: quick, slow; these go with every recipe: qwen2.5-1.5"
    assert error.hint.startswith(f"did you mean profile=quick? {known}")
    none = refused(write(tmp_path, ""), "profile=x,quick").hint
    assert none.startswith("it has no profiles of its own; these go with every recipe: qwen")


def test_a_value_that_is_no_choice_is_answered_by_the_choices(tmp_path: Path) -> None:
    hint = refused(write(tmp_path, ""), "train.objective=zzz").hint
    assert hint.startswith("correct train.objective: it takes ") and '"dpo"' in hint


def test_profiles_of_models_are_merged_before_the_recipes_own(tmp_path: Path) -> None:
    """Whatever the order; what the recipe says over all of them holds, too."""
    own = "[policy]\nbatch = 3\n[profiles.look]\npolicy.max_new_tokens = 9\n"
    over = "[profiles.models]\npolicy.top_p = 0.5\n"
    both = ["profile=look", "profile=qwen3-4b,critic-gpt-oss-20b", "policy.top_k=7"]
    listed = ["profile=qwen3-4b, look", "policy.top_k=7"]
    cases = (own, both, 0.8), (over + own, both, 0.5), (over + own, listed, 0.5)
    for text, settings, top_p in cases:
        recipe = load_recipe(write(tmp_path, text), settings)
        policy = recipe.policy
        assert (policy.model, policy.thinking) == ("mlx-community/Qwen3-4B-4bit", "off")
        assert (policy.max_new_tokens, policy.top_p, policy.top_k, policy.batch) == (
            9,
            top_p,
            7,
            16,
        )
        asked = ("gpt-oss:20b", "low") if settings is both else ("", "auto")
        assert (recipe.critic.model, recipe.critic.thinking) == asked
    named = "[profiles.qwen3-4b]\nseed = 4\n"  # one of the recipe's own goes by its name
    mine = load_recipe(write(tmp_path, over + named), ["profile=qwen3-4b"])
    assert (mine.seed, mine.policy.model, mine.policy.top_p) == (4, "tiny", 0.9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[profiles.q]\nseed = 'x'\n", ", line 2: profiles.q.seed = 'x': "),
        ("[profiles.q.critic.advanced]\nmodl = 'x'\n", ", line 2: unknown key profiles.q.critic."),
        ("[profiles.q.critic.advanced]\nnum_ctx = 0\n", ", line 2: profiles.q.critic.advanced.num"),
        ("[profiles]\nq = 3\n", ", line 2: profiles.q = 3: "),
        ("profiles = 3\n", ": profiles = 3 is no table"),
        ("profiles = [1]\n", ": profiles = [1] is no table"),
    ],
)
def test_a_faulty_profile_is_refused_though_it_is_not_chosen(
    text: str, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    for settings in ([], ["profile=q"]):
        assert refused(path, *settings).message.startswith(f"{path}{said}")


# ---- digest --------------------------------------------------------------------------------------

CANDIDATES: list[Any] = [
    True, False, 2, 4, 0.25, "other", "ollama", "yes", "base", "self", "direct", "reasoning",
    "text", "sum", "orpo", "full", "exact", [2], ["x"], ["wandb"], {"model": "m"}, 100, "me/mine",
]  # fmt: skip


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    *tables_, leaf = key.split(".")
    for table in tables_:
        tree = tree[table]
    tree[leaf] = value


@cache
def other(key: str) -> Any:
    """Another valid value of a key."""
    table, _, name = key.rpartition(".")
    annotation = dict(tables())[table].model_fields[name].annotation
    for candidate in [*CANDIDATES, *get_args(annotation)]:
        tree = Recipe().model_dump()
        put(tree, key, candidate)
        try:
            changed = flatten(validate(Recipe, tree, Path("recipe")).model_dump())
        except UserError:
            continue
        if changed.get(key) != DEFAULTS[key]:
            return candidate
    raise AssertionError(f"{key} has one value only")


def test_the_digest_ignores_what_may_change_on_resume_and_no_other() -> None:
    ignored = set()
    for key in DEFAULTS:
        table = key.split(".")[0]
        plain = Recipe.model_validate({"strategy": table} if table in OTHERS else {})
        tree = plain.model_dump()
        put(tree, key, other(key))
        if digest(Recipe.model_validate(tree)) == digest(plain):
            ignored.add(key)
    spending = {f"critic.budget.max_{what}" for what in ("calls", "tokens", "usd")}
    others = {"critic.concurrency", "critic.deadline_s", "critic.replay", "train.part_tokens",
              "train.swap_gb", "allow_untrained", "track", "mirror",
              "publish.to", "publish.each"}  # fmt: skip
    assert ignored == set(RESUMABLE) == spending | others


def test_the_digest_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    one = load_recipe(write(tmp_path, "[train]\nlr = 1\nbeta = 2\n[r3]\nwave = 3\n"))
    two = load_recipe(write(tmp_path, "r3.wave = 3\ntrain = { beta = 2.0, lr = 1.0 }\n"))
    assert digest(one) == digest(two)
    assert len(digest(one)) == 8


# ---- contradictions ------------------------------------------------------------------------------


OLLAMA = ["critic.provider=ollama", "critic.model=m"]


@pytest.mark.parametrize(
    ("settings", "said", "hint"),
    [
        (["r3.verify_samples=2", "r3.verify_pass=3"], "r3.verify_pass = 3 can never", "r3.verify"),
        (["r3.verify_pass=2"], "r3.verify_pass = 2 can never be reached", "raise r3.verify_samp"),
        (["strategy=preflexor", "prompt.style=direct"], "and preflexor teaches", "eval.direct"),
        (["strategy=rel", "prompt.style=direct"], "and rel teaches thoughts", "eval.direct"),
        (["train.dpo=0", "train.nll=0"], "train.dpo and train.nll are both 0", "above 0"),
        (["train.objective=exo_pair"], "exo_pair needs train.smoothing above 0", "0.005"),
        (["train.objective=ipo", "train.smoothing=0.1"], "does nothing for ipo", "leave it out"),
        (["train.objective=orpo", "train.smoothing=0.1"], "does nothing for orpo", "leave it out"),
        (["train.tune=full"], "train.tune = 'full'", 'train.reference = "none"'),
        (["train.objective=orpo", "train.nll=1"], "train.nll does nothing", "train.nll at 0"),
        (["train.tune=full", "policy.quantize=4"], "'full' needs weights", "policy.quantize at 0"),
        (["train.tune=full", "train.reference=base"], "train.tune = 'full'", "train LoRA"),
        (["train.lora.rslora=true"], "train.lora.rslora does nothing without", "train.lora.alpha"),
        (["train.tune=full", "train.lora.dora=true"], "train.lora.dora does nothing with", "out"),
        (["critic.provider=ollama"], "critic.provider = 'ollama' needs a model", "critic.model"),
        (["critic.advanced.provider=ollama"], "'ollama' needs a model", "critic.model"),
        (["critic.provider=openai"], "'openai' needs a model", "gpt-"),
        (["critic.judge.provider=local"], "'local' needs a model", "mlx-community/"),
        (["critic.provider=bedrock"], "'bedrock' needs a model", "us.amazon."),
        (["critic.provider=bedrock", "critic.model=m", "critic.temperature=1.5"],
         "critic.temperature = 1.5, and Bedrock takes 0 to 1", "1 or less"),
        (["critic.provider=bedrock", "critic.model=m", "critic.thinking=low"],
         "critic.thinking = 'low' does nothing for bedrock", "leave that key out"),
        (["critic.provider=bedrock", "critic.model=m", "critic.min_p=0.1"],
         "critic.min_p does nothing for bedrock", "takes critic.temperature and critic.top_p"),
        ([*OLLAMA, "critic.keep_alive=long"], "critic.keep_alive", ""),
        (["critic.advanced.key_env=no-name"], "critic.key_env is no name", "OPENAI_API_KEY"),
        (["critic.replay=true", "critic.cache=off"], 'critic.cache = "off"', "critic.cache"),
        ([*OLLAMA, "critic.budget.max_usd=1"], "max_usd limits nothing while ollama", "prices"),
        (["critic.price_in=1", "critic.budget.max_usd=1", "critic.advanced.provider=ollama",
          "critic.advanced.model=m", "critic.advanced.price_in=0"], "(advanced critic)", "prices"),
        ([*OLLAMA, "critic.base_url=http://me:pw@host:1"], "holds a user name", "OLLAMA_HOST"),
        (["eval.dev_limit=5", "eval.dev_stop=0"], "eval.dev_limit = 5, eval.dev_stop = 0.0 do",
         "--set eval.dev_limit=100 --set eval.dev_stop=0.05"),
        (["task.operands=2"], "task.operands = [2] does nothing for the task countdown",
         "leave that key out, or: --set 'task.operands=[3, 4, 5]'"),
        (["task.name=gsm8k", "task.numbers=4"], "nothing for the task gsm8k", "task.numbers=[3]"),
        (["task.grader_sha256=ab"], "does nothing without task.grader", "mine.py:grader"),
    ],
)  # fmt: skip
def test_contradiction(settings: list[str], said: str, hint: str, tmp_path: Path) -> None:
    error = refused(write(tmp_path, ""), *settings)
    assert said in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("preflexor", ["preflexor.rounds=0", "preflexor.two.rounds=0"], "are both 0"),
        ("preflexor", ["preflexor.topics=bees"], "topics are looked for in a corpus"),
        ("preflexor", ["preflexor.corpus=c"], "are no problems of the task gsm8k"),
        ("preflexor", ["preflexor.corpus=c", "task.name=jsonl", "critic.provider=solver"],
         "cannot pose"),
        ("preflexor", ["preflexor.two.smoothing=0"], "exo_pair needs"),
        ("preflexor", ["preflexor.two.objective=ipo"], "does nothing for ipo"),
        ("preflexor", ["train.tune=full"], "preflexor would need the weights"),
        ("preflexor", ["preflexor.sections=[]"], "preflexor.sections"),
        ("preflexor", ["preflexor.chunk=39"], "greater than or equal to 40"),
        ("preflexor", ["r3.wave=2"], "[r3] does nothing while strategy = 'preflexor'"),
        ("rel", ["rel.target=tidied"], "rel.review = false, which tidies nothing"),
        ("reflectevo", ["reflectevo.stored=a.jsonl", "reflectevo.reflector=critic"],
         "reflector = 'critic' does"),
        ("reflectevo", ["reflectevo.instructions=no-such"], "instructions has no 'no-such'"),
        ("reflectevo", ["reflectevo.training=IV", "critic.judge.provider=solver"],
         "training = 'IV' asks"),
        ("reflectevo", ["train.tune=full"], "trains two adapters"),
        ("r3", ["r3.pairs=own", "r3.attempts=1"], "r3.pairs = 'own' compares samples of a problem"),
        ("r3", ["r3.attempts=1", "r3.verify_samples=2", "r3.verifications=0"], "compares samples"),
        ("r3", ["r3.pairs=both", "r3.attempts=4", "policy.temperature=0"], "all are the same"),
        ("r3", ["r3.rewrites=0", "r3.pairs=rewrite"], "r3.rewrites = 0 leaves nothing to train on"),
        ("r3", ["r3.pairs=own", "r3.attempts=4", "r3.rewrites=0", "r3.judge=true", "r3.patience=9"],
         "r3.judge = True, r3.patience = 9 do nothing for r3.rewrites = 0"),
        ("traces", ["traces.rounds=0", "traces.warm_up=0"], "nothing would be trained"),
        ("traces", ["traces.rounds=0"], "traces.problems = 256, traces.grpo.kl = 0.02 do nothing"),
        ("traces", ["traces.objective=dpo"], "grpo.kl = 0.02 does nothing for traces.objective"),
        ("traces", ["traces.grpo.epsilon_high=0.1"], "epsilon_high = 0.1 is below traces.grpo"),
        ("traces", ["traces.reward_sha256=ab"], "reward_sha256 does nothing without traces.reward"),
        ("traces", ["traces.reward_answer=0", "traces.reward_format=0"], "no reward"),
        ("traces", ["critic.judge.provider=solver"], "gives no marks"),
        ("traces", ["train.beta=0.5"], "train.beta = 0.5 does nothing for traces"),
        ("traces", ["train.sft.scale_failed=0.5"], "does nothing"),
        ("traces", ["r3.wave=3"], "[r3] does nothing"),
        ("traces", ["traces.group=1"], "group"),
        ("traces", ["traces.grpo.clip_ratio=0"], "clip_ratio"),
        ("traces", ["policy.temperature=0"], "policy.temperature = 0: a group of samples"),
        ("rel", ["train.lr=0.5"], "train.lr = 0.5 does nothing for rel"),
        ("rel", ["train.reference=none"], "train.reference = 'none' does nothing for rel"),
        ("preflexor", ["train.sft.lr=0.5"], "train.sft.lr = 0.5 does nothing for preflexor"),
        ("reflectevo", ["train.sft.scale_verified=0.5"], "does nothing for reflectevo"),
    ],
)  # fmt: skip
def test_contradiction_within_a_method(method: str, settings: list[str], said: str) -> None:
    error = refused(method, *settings)
    assert said in error.message and error.hint


@pytest.mark.parametrize("key", ["sk-proj-abc123", "gsk_abc123", "AIzaSyA1", "ABC 1", "1A"])
def test_a_key_in_place_of_its_name_is_not_shown(key: str, tmp_path: Path) -> None:
    error = refused(write(tmp_path, ""), f"critic.key_env='{key}'")
    assert key not in error.message + error.hint


@pytest.mark.parametrize(
    "settings",
    [
        ["r3.verify_samples=2", "r3.verify_pass=2"],
        # These learn from what the style asks for.
        *(
            [f"strategy={method}", "prompt.style=direct"]
            for method in ("r3", "traces", "reflectevo")
        ),
        ["eval.dev_every=1", "eval.dev_limit=5"],
        ['probes.prompts=["Why, then?"]', "probes.system=Be brief."],
        ["task.name=arithmetic", "task.operands=2", "task.digits=1"],
        ["strategy=traces", "traces.grpo.clip_ratio=3e-4", "traces.grpo.epsilon_high=4e-4"],
        ["train.dpo=0", "train.nll=1"],
        ["train.dpo=1", "train.nll=0"],
        ["train.objective=ipo", "train.nll=1"],
        ["train.objective=exo_pair", "train.smoothing=0.005"],
        ["train.objective=dpo", "train.smoothing=0.1"],
        *([f"train.objective={name}", "train.smoothing=0"] for name in ("ipo", "orpo")),
        ["train.tune=full", "train.reference=none"],
        ["train.tune=full", "train.objective=orpo"],
        ["train.tune=full", "train.dpo=0", "train.nll=1"],
        ["critic.budget.max_usd=1"],
        [*OLLAMA, "critic.budget.max_usd=1", "critic.price_out=0.5"],
        ["critic.advanced.provider=ollama", "critic.advanced.model=m"],
    ],
)
def test_what_only_looks_like_a_contradiction(settings: list[str], tmp_path: Path) -> None:
    load_recipe(write(tmp_path, ""), settings)


# ---- files ---------------------------------------------------------------------------------------


def test_what_is_no_file_lists_the_bundled_names(tmp_path: Path) -> None:
    for name, said in (("/none/such.toml", "no recipe '/none/such.toml'"),
                       (str(tmp_path), f"{tmp_path} is a folder, no recipe file")):  # fmt: skip
        error = refused(name)
        assert error.message == said
        assert error.hint == f"give a file, or one of: {', '.join(bundled('recipes'))}"
    with pytest.raises(UserError, match="no eval 'none'") as caught:
        eval_spec(load_recipe("quickstart", ["eval.spec=none"]))
    assert caught.value.hint == f"give a file, or one of: {', '.join(bundled('evals'))}"


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "Größe"\n'.encode("latin-1"))
    error = refused(str(path))
    assert error.message.startswith(f"{path}: not UTF-8")
    assert error.hint == "save it as UTF-8"


# ---- evaluation specs ----------------------------------------------------------------------------


def with_spec(folder: Path, text: str, *settings: str) -> EvalSpec:
    path = folder / "spec.toml"
    path.write_text(text)
    return eval_spec(load_recipe("quickstart", [f"eval.spec={path}", *settings]))


def test_the_run_decides_seed_batch_and_what_the_spec_leaves_open(tmp_path: Path) -> None:
    text = "limit = 7\nseed = 5\nbatch = 3\n[task]\nname = 'arithmetic'\n"
    spec = with_spec(tmp_path, text, "eval.limit=0", "eval.seed=9", "policy.batch=4")
    assert (spec.limit, spec.seed, spec.batch, spec.part) == (7, 9, 4, "heldout")
    assert with_spec(tmp_path, text, "eval.limit=2").limit == 2
    assert with_spec(tmp_path, text, "prompt.style=graph").prompt.style == "graph"
    source = with_spec(tmp_path, "[task]\nname = 'jsonl'\n", "eval.source=a.jsonl")
    assert (source.task.source, source.part) == ("a.jsonl", "all")


def test_without_a_spec_the_task_itself_is_evaluated_on_its_heldout_part() -> None:
    recipe = load_recipe("quickstart", ["eval.spec=", "eval.limit=0", "eval.max_new_tokens=0"])
    spec = eval_spec(recipe)
    assert spec.task == recipe.task.model_copy(update={"limit": 0})
    assert (spec.part, spec.limit) == ("heldout", 0)
    assert spec.max_new_tokens == recipe.policy.max_new_tokens


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[task]\nname = 'countdown'\nnumber = [3]\n", "spec.toml, line 3: unknown key task.numb"),
        ("[task]\nname = 'countdown'\n[promt]\n", "spec.toml, line 3: unknown key promt"),
        ("samples = 0\n[task]\nname = 'gsm8k'\n", "spec.toml, line 1: samples = 0: input should"),
        ("limit = 3\n", "spec.toml: no task"),
        ("limit = 3\ntask = 3\n", "spec.toml, line 2: task = 3: it is a table"),
        ("limit = \n", "spec.toml: not TOML: "),
    ],
)
def test_bad_spec(text: str, said: str, tmp_path: Path) -> None:
    for settings in ([], ["eval.source=x.jsonl"]):
        with pytest.raises(UserError) as caught:
            with_spec(tmp_path, text, *settings)
        assert caught.value.message.startswith(f"{tmp_path}/{said}")
    assert "\n" not in caught.value.message + caught.value.hint


def test_loading_leaves_no_trace_in_the_next_load(tmp_path: Path) -> None:
    path = write(tmp_path, PROFILES)
    before = copy.deepcopy(load_recipe(path))
    load_recipe(path, ["profile=quick", "train.lora.rank=3", "critic.advanced.model=x"])
    assert load_recipe(path) == before
    assert Recipe().critic.advanced == {}
