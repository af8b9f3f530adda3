"""`mlxreflect init`: asks for what a recipe needs, finds critics to choose from, writes the recipe.

Without a terminal nothing is asked: a missing choice is an error, or with --yes the suggestion. The
recipe is the bundled one of its method with other values; its comments stay.
"""

import json
import os
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import dropwhile, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar, get_args

import tomlkit
from tomlkit.items import Comment, Item, Key, Table, Whitespace

from mlxreflect.config.recipe import MODELS, eval_spec, load_recipe, read_shared
from mlxreflect.config.schema import METHODS, Recipe, TaskConfig, method_of
from mlxreflect.config.toml import SHARED, bundled, flatten
from mlxreflect.core.errors import UserError, reworded
from mlxreflect.core.journal import write_atomic
from mlxreflect.core.seeds import hash_of, part_of
from mlxreflect.core.ui import plural
from mlxreflect.data.rows import Row, column, good_rows, is_path, rows_of
from mlxreflect.evaluation.contamination import clean
from mlxreflect.evaluation.evaluate import eval_problems
from mlxreflect.models.load import device_memory, find_model
from mlxreflect.setup.doctor import fitting, hub_data, ollama_models
from mlxreflect.setup.memory import GB
from mlxreflect.stats import power_sentence
from mlxreflect.tasks import TASKS, get_task
from mlxreflect.tasks.countdown import problem_of
from mlxreflect.tasks.jsonl import GRADED, build, key_of, options_of, read
from mlxreflect.train.memory import memory_limit

Ask = Callable[[str, str], str]  # (what, suggestion) → reply
Say = Callable[[str], None]
T = TypeVar("T")

EXAMS = ("aime", "math500")  # evaluations alone: nothing to train on
LOOKED_AT = 20  # rows of one's own data
ENOUGH = 100  # held-out questions that show more than a large difference
FEW = 20  # fewer held-out questions are hardly an evaluation
QUESTIONS = ("question", "problem", "query", "prompt", "input", "instruction", "text")
ANSWERS = ("answer", "gold", "ground_truth", "target", "solution", "label", "output", "response",
           "completion")  # fmt: skip
METHODS_SAID = {
    "r3": "pairs of its wrong attempts and their rewrites; needs a critic",
    "rel": "workings that mended their own mistake, and solutions of yours; needs a critic",
    "preflexor": "structured thinking, from your texts or a task; needs a critic that teaches",
    "reflectevo": "its own reflections that led to right answers; needs nothing else",
    "traces": "its own best traces, then rewards; needs nothing else",
}
KINDS_SAID = {
    "number": "compared as numbers",
    "text": "the same words, whatever their case",
    "f1": "words in common, as a share",
    "choice": "the letter of one of the row's options",
    "math": "LaTeX, compared as mathematics",
    "countdown": "an expression of the given numbers that makes the target",
}
Body = list[tuple[Key | None, Item]]
Keys = dict[str, Any]  # dotted key → value; None takes the key out, and a table's keys with it

# Of [task] and [critic], what belongs to the task or the model that the bundled recipe has.
COLUMNS = ("question", "answer", "answer_type")
OF_TASK = ("source", "config", "split", *COLUMNS, "numbers", "words")
OF_CRITIC = ("provider", "model", "base_url", "key_env", "region", "profile", "price_in",
             "price_out")  # fmt: skip
TIERS = ("", ".advanced", ".judge")
OF_SERVER = ("num_ctx", "concurrency")  # of [critic], what the solver has no use for
# Of a quick profile, what a person chooses.
CHOSEN = ("policy.model", "task.name", "task.numbers", "critic.provider", "critic.model",
          "eval.spec")  # fmt: skip
# Addresses that take OpenAI's requests ("": its own), by the variable that holds a key for them.
HOSTS = {"OPENAI_API_KEY": "", "OPENROUTER_API_KEY": "https://openrouter.ai/api/v1"}


@dataclass(frozen=True)
class Choices:
    """The choices of a person. critic: "solver", "self", or "PROVIDER:MODEL".

    task: a bundled one, or "jsonl" with the data in `source` and its columns; "countdown" has them
    too.
    """

    strategy: str
    model: str
    task: str
    critic: str
    source: str = ""
    question: str = ""
    answer: str = ""
    answer_type: str = ""
    base_url: str = ""


@dataclass(frozen=True)
class Asker:
    """given: by flags, "" where not. ask: None without a terminal, or where --yes is given."""

    given: Mapping[str, str]
    ask: Ask | None
    yes: bool
    say: Say

    def explain(self, name: str, choices: Mapping[str, str]) -> None:
        """Says a line about each choice, where it will be asked for."""
        if self.ask and not self.given[name]:
            for choice, said in choices.items():
                self.say(f"  {choice}: {said}")

    def choose(self, name: str, label: str, suggested: str, read: Callable[[str], T]) -> T:
        """Returns what `read` makes of what is given, replied or suggested.

        A reply that it refuses is asked for again. Raises UserError for a flag that it refuses.
        """
        if self.given[name] or not self.ask:
            return read(self.given[name] or suggested)
        while True:
            try:
                return read(self.ask(label, suggested))
            except UserError as error:
                self.say(f"{error.message} ({error.hint})")


def settle(asker: Asker) -> Choices:
    """Returns all choices: as given, else as replied, else as suggested. Raises UserError."""
    if asker.given["strategy"]:
        read_method(asker.given["strategy"])
    needed = ("strategy", "task", "model", "critic")
    missing = [f"--{name}" for name in needed if not asker.given[name]]
    if missing and asker.ask is None and not asker.yes:
        raise UserError(
            f"no terminal to ask in, and not given: {', '.join(missing)}",
            "give them, or --yes to take what is suggested",
        )
    asker.explain("strategy", METHODS_SAID)
    label = "method (one of these: what it learns from)"
    strategy = asker.choose("strategy", label, next(iter(METHODS)), read_method)
    usual = load_recipe(strategy)
    known = ", ".join(name for name in TASKS if name not in (*EXAMS, "jsonl"))
    label = f"task ({known}), or a file of yours"
    named, rows = asker.choose("task", label, usual.task.name, read_task)
    task = settle_data(named, rows, asker) if rows else {"task": named}
    fit = fitting((device_memory() - memory_limit(0)) / GB)
    model = settle_model(fit, usual, asker)
    critic = settle_critic(task["task"], fit, usual, asker)
    if critic.critic in ("solver", "self") and asker.given["critic"] and asker.given["base_url"]:
        url = f"--critic-url {asker.given['base_url']}"
        raise UserError(f"{url}: the critic {critic.critic} is no server", "leave it out")
    return Choices(strategy, model, critic=critic.critic, base_url=critic.base_url, **task)


def read_method(name: str) -> str:
    if name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise UserError(f"--strategy {name}: no such method", f"choose from: {known}")
    return name


def settle_model(fit: list[str], usual: Recipe, asker: Asker) -> str:
    """Returns a model's name or folder; a profile of models.toml stands for its model.

    fit: the profiles that are suggested for this machine's memory.
    """
    shared = read_shared()
    models = shared.models("policy")
    said = {
        name: f"{model}, {shared.memory_gb[name]:.1f} GB of memory for its weights and a batch"
        for name, model in models.items()
    }
    asker.explain("model", {**said, "tiny": "in this package, works offline; knows only Countdown"})

    def read(chosen: str) -> str:
        model = models.get(chosen, chosen)
        near = get_close_matches(model, [*models, "tiny"], 1)
        if find_model(model, "--model") is None and "/" not in model and near:
            raise UserError(f"--model {model}: no such model", f"did you mean {near[0]}?")
        return model

    first = next((name for name in fit if name in models), usual.policy.model)
    return asker.choose("model", "model (one of these, a hub name, or a folder)", first, read)


# ---- the task ------------------------------------------------------------------------------------


def read_task(named: str) -> tuple[str, list[Row]]:
    """Returns a bundled task's name without rows, or your own file with its first rows."""
    if named in EXAMS:
        raise UserError(f"--task {named} is an evaluation alone", "give another task, or a file")
    if named in TASKS or not (is_path(named) or "/" in named):
        get_task(named)
        if named == "jsonl":
            raise UserError("--task jsonl: no data", "give the file itself: --task FILE")
        return named, []
    rows = list(islice(good_rows(rows_of(named, empty="")), LOOKED_AT))
    if not rows:
        raise UserError(f"{named}: no rows", "give a data file that holds problems")
    return named, rows


def settle_data(source: str, rows: list[Row], asker: Asker) -> dict[str, str]:
    """Returns the keys of [task] for your own data."""
    if not asker.given["question"] and are_puzzles(rows):
        return {"task": "countdown", "source": source}
    data = {"task": "jsonl", "source": source}
    data["question"] = settle_column("question", QUESTIONS, source, rows, asker)
    puzzles = all({"numbers", "target"} <= row.values.keys() for row in rows)
    if puzzles and not asker.given["answer"]:
        likely = "countdown"
    else:
        data["answer"] = settle_column(
            "answer", ANSWERS, source, rows, asker, taken=data["question"]
        )
        likely = kind_of(rows, data["answer"])
    asker.explain("answer_type", KINDS_SAID)
    label = "answers are (one of these)"
    return {**data, "answer_type": asker.choose("answer_type", label, likely, read_kind)}


def are_puzzles(rows: list[Row]) -> bool:
    """Tells if they are Countdown's numbers and targets, without a question in words."""
    if any(str(name).casefold() in QUESTIONS for row in rows for name in row.values):
        return False
    try:
        return bool([problem_of(row.values) for row in rows])
    except UserError:
        return False


def read_kind(kind: str) -> str:
    if kind not in GRADED:
        raise UserError(f"--answer-type {kind}: no such kind", f"give one of: {', '.join(GRADED)}")
    return kind


def settle_column(
    name: str, likely: Iterable[str], source: str, rows: list[Row], asker: Asker, taken: str = ""
) -> str:
    """Returns the column of the question or the answer: as given, or called so, or asked for.

    taken: a column that holds something else.
    """
    names = list(dict.fromkeys(str(key) for row in rows for key in row.values))
    shown = f"{source}: its columns are: {', '.join(names)}"
    by_fold = {key.casefold(): key for key in names if key != taken}
    guesses = [by_fold[one] for one in likely if one in by_fold]
    guess = guesses[0] if guesses else ""
    other = next((key for key in names if key != taken), names[0])

    def read(chosen: str) -> str:
        for row in rows:
            try:
                column(row, chosen, f"task.{name}")
            except UserError as error:
                raise UserError(error.message, f"add --{name} with one of them") from None
        return chosen

    if guess and (guess == name or asker.yes) and not asker.given[name]:
        return read(guess)
    if len(guesses) == 1 and not asker.ask and not asker.given[name]:
        asker.say(f"{source}: the {name} is taken from the column {guess}")
        return read(guess)
    if not asker.given[name] and not asker.ask:
        hint = f"add --{name} with one of them, such as --{name} {shlex.quote(guess or other)}"
        if name == "question" and not asker.given["answer"] and not by_fold.keys() & {*ANSWERS}:
            hint += ", and --answer with another"
        raise UserError(f"{shown}; none is called {name}", hint)
    label = f"{shown}\nthe column that holds the {name}"
    return asker.choose(name, label, guess or other, read)


def kind_of(rows: list[Row], answer: str) -> str:
    """Returns the kind of answer that all rows have."""
    likely = "number" if options_of(rows[0].values) is None else "choice"
    try:
        for row in rows:
            raw = column(row, answer, "task.answer")
            build("jsonl", "", raw, likely, options=options_of(row.values))
    except UserError:
        return "text"
    return likely


# ---- the critic ----------------------------------------------------------------------------------


class Offer(NamedTuple):
    critic: str
    found: str
    base_url: str = ""


def find_offers(solver: bool, usual: Recipe, suited: str = "") -> list[Offer]:
    """Returns the critics that are here, the most likely first; the last of them need nothing.

    suited: the model of Ollama that suits this machine's memory.
    """
    url, models = ollama_models()
    likely = [suited, usual.critic.model]
    ordered = sorted(models or [], key=lambda name: likely.index(name) if name in likely else 2)
    offers = [Offer(f"ollama:{name}", f"Ollama has it at {url}") for name in ordered if name]
    offers += key_offers()
    names = ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
    if any(os.environ.get(name) for name in names) or file.expanduser().is_file():
        offers.append(Offer(f"bedrock:{MODELS['bedrock']}", "AWS credentials are here"))
    if solver:
        offers.append(Offer("solver", "the task's exact solver, in this process"))
    alone = self_keys(usual.strategy)
    if alone == {}:
        return [Offer("self", "this method asks no critic"), *offers]
    if alone:
        offers.append(Offer("self", f"no critic: {', '.join(f'{k} = {alone[k]}' for k in alone)}"))
    return offers


def key_offers() -> list[Offer]:
    return [
        Offer(f"openai:{'openai/' if address else ''}{MODELS['openai']}", f"{name} is set", address)
        for name, address in HOSTS.items()
        if os.environ.get(name, "").strip()
    ]


def settle_critic(task: str, fit: list[str], usual: Recipe, asker: Asker) -> Offer:
    """Returns one of the critics that are here, by its number, or any other by its name.

    fit: the profiles that are suggested for this machine's memory.
    """
    solver = get_task(task).solver is not None and not METHODS[usual.strategy].unsolvable
    critics = read_shared().models("critic")
    suited = next((critics[name] for name in fit if name in critics), usual.critic.model)
    offers = find_offers(solver, usual, suited) if not asker.given["critic"] else key_offers()

    def read(chosen: str) -> str:
        if chosen.isdecimal() and 0 < int(chosen) <= len(offers):
            chosen = offers[int(chosen) - 1].critic
        chosen = f"ollama:{critics[chosen]}" if chosen in critics else chosen
        if not chosen:
            raise UserError(
                f"{usual.strategy} needs a critic, and none was found",
                f"start one (ollama serve, ollama pull {suited}), or name it: --critic ollama:NAME",
            )
        if chosen == "solver" and not solver:
            raise no_solver(task, usual.strategy)
        critic_keys(Choices(usual.strategy, "", task, chosen), {})
        return chosen

    if asker.ask and not asker.given["critic"]:
        for number, offer in enumerate(offers, 1):
            asker.say(f"  {number}  {offer.critic}: {offer.found}")
    first = offers[0].critic if offers else ""
    chosen = asker.choose("critic", "critic (its number, or PROVIDER:MODEL)", first, read)
    address = next((offer.base_url for offer in offers if offer.critic == chosen), "")
    return Offer(chosen, "", asker.given["base_url"] or address)


def no_solver(task: str, strategy: str) -> UserError:
    if get_task(task).solver is None:
        fault = f"the task {task} has no exact solver"
    else:
        fault = f"{strategy} {METHODS[strategy].unsolvable}"
    able = f" ({METHODS[strategy].alone})" if METHODS[strategy].alone else ""
    alone = f", or --critic self{able}" if self_keys(strategy) is not None else ""
    return UserError(f"--critic solver: {fault}", f"give another: --critic ollama:NAME{alone}")


# ---- the file ------------------------------------------------------------------------------------


def place_of(choices: Choices) -> Path:
    return Path(f"{choices.strategy}-{Path(choices.source or choices.task).stem}.toml")


def refuse_to_overwrite(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise UserError(f"{out} already exists", "give another --out, or --force to replace it")


def write_recipe(choices: Choices, out: Path, force: bool = False) -> dict[str, Any]:
    """Write the recipe once it is one that can be run. Raises UserError.

    Of a small file hardly a question is held out by its hash: then a third of it is written beside
    the recipe, and evaluated instead.
    """
    exam = asked = ""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = draft(choices)
        with TemporaryDirectory() as folder:
            tried = Path(folder) / out.name
            write_atomic(tried, text)
            if kept := hold_out(choices):
                exam = str(out.with_name(f"{out.stem}-heldout.jsonl"))
                refuse_to_overwrite(Path(exam), force)
                asked = str(Path(folder) / Path(exam).name)
                write_atomic(Path(asked), kept)
                write_atomic(tried, edit(text, {"eval.source": asked}))
                text = edit(text, {"eval.source": exam})
            with reworded({asked: exam} if kept else {}):
                found = check(tried)
            text = edit(text, fitting_keys(choices, found, tomllib.loads(text)))
        if kept:
            write_atomic(Path(exam), kept)
        write_atomic(out, text)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}", "give another --out") from None
    return {"schema": "init/1", "recipe": str(out), "exam": exam, **found._asdict(),
            **vars(choices)}  # fmt: skip


class Found(NamedTuple):
    """Counts the problems: all, to learn from, and held out; 0 where only the hub tells.

    of, learned: of your own data alone.
    """

    of: int
    learned: int
    held_out: int


def check(path: Path) -> Found:
    """Returns what a recipe has. Raises UserError for one that `run` would refuse."""
    try:
        recipe = load_recipe(str(path))
        spec, task = eval_spec(recipe), get_task(recipe.task.name)
        asked = [] if hub_data(spec.task) else eval_problems(get_task(spec.task.name), spec)
        if not recipe.task.source:
            return Found(0, 0, len(asked) or spec.limit)
        learned, every = task.load(recipe.task, "train", recipe.seed), len(asked)
        if is_path(recipe.task.source):
            whole = recipe.task.model_copy(update={"limit": 0})
            every = len(task.load(whole, "all", recipe.seed))
            if not hub_data(spec.task):
                learned = list(clean(recipe).problems.values())
        return Found(every, len(learned), len(asked) or spec.limit)
    except UserError as error:
        raise UserError(error.message.replace(f"{path}: ", ""), error.hint) from None


def fitting_keys(choices: Choices, found: Found, tree: dict[str, Any]) -> Keys:
    """Returns the limits and the wave that are larger than your own data, as large as these."""
    most = {"task.limit": found.of, "eval.limit": found.held_out,
            f"{choices.strategy}.wave": found.learned} if found.of else {}  # fmt: skip
    return {key: n for key, n in most.items() if flatten(tree).get(key, 0) > n}


def hold_out(choices: Choices) -> str:
    """Returns a third of a small file's rows as JSONL; "" for other data.

    Of it a hash of the question would hold out hardly any. Those that are not trained on by their
    hash are the first that are taken.
    """
    if choices.task != "jsonl" or not Path(choices.source).is_file():
        return ""
    given = {name: getattr(choices, name) for name in ("source", *COLUMNS)}
    config = TaskConfig(name="jsonl", **{key: value for key, value in given.items() if value})
    asked = {key_of(read(row, config)): row.values
             for row in good_rows(rows_of(config.source, empty=""))}  # fmt: skip
    parts = {key: ("heldout", "dev", "train").index(part_of(key)) for key in asked}
    if not 6 <= len(asked) < ENOUGH or sum(part == 0 for part in parts.values()) >= FEW:
        return ""
    chosen = sorted(asked, key=lambda key: (parts[key], hash_of(key)))[: len(asked) // 3]
    rows = (json.dumps(asked[key], ensure_ascii=False, default=str) for key in chosen)
    return "".join(f"{row}\n" for row in rows)


def describe_data(written: Mapping[str, Any]) -> Iterator[str]:
    """Yields what was found in your data, and what its held-out questions can show."""
    if written["of"]:
        columns = f"the question in the column {written['question']}"
        if written["answer"]:
            columns += f", the answer in {written['answer']}"
        if kind := KINDS_SAID.get(written["answer_type"]):
            columns += f" ({written['answer_type']}: {kind})"
        said = columns if written["question"] else "puzzles of numbers and a target"
        yield f"{written['source']}: {plural(written['of'], 'question')}: {said}"
        where = f" in {written['exam']}" if written["exam"] else ""
        yield f"{written['learned']} to learn from, {written['held_out']} held out{where}"
        if written["exam"]:
            yield f"{written['source']} has these, too: a run leaves them out, and says how many"
    if written["model"] == "tiny" and written["task"] != "countdown":
        yield "note: tiny knows Countdown only, and learns nothing else: try commands with it"
    if written["held_out"]:
        yield power_sentence(written["held_out"])
    if written["of"] and written["held_out"] < ENOUGH:
        yield (
            "So few questions can show only large differences. More rows, or an evaluation file of "
            "your own (eval.source), show smaller ones."
        )


# ---- its text ------------------------------------------------------------------------------------


def draft(choices: Choices) -> str:
    """Returns the text of the recipe. Raises UserError where the method has no such critic."""
    text = bundled("recipes")[choices.strategy].read_text(encoding="utf-8")
    tree = tomllib.loads(text)
    keys = {
        **quick_keys(choices, tree), "policy.model": choices.model, **task_keys(choices, tree),
        **critic_keys(choices, tree), **profile_keys(choices, tree),
    }  # fmt: skip
    body = dropwhile(lambda line: line.startswith("#"), text.splitlines(keepends=True))
    return heading(choices, tree) + edit("".join(body), keys)


def heading(choices: Choices, tree: dict[str, Any]) -> str:
    """Says where the recipe is from: the bundled one's own heading holds for its choices alone."""
    said = f"# Written by `mlxreflect init` from the bundled recipe {choices.strategy}"
    if choices.model == "tiny":
        return f"{said}, with the values of its\n# quick profile. Its comments are kept.\n"
    for name, model in read_shared().models("policy").items():
        if model == choices.model != tree["policy"]["model"]:
            return f"{said}, with the values of\n# the profile {name}. Its comments are kept.\n"
    return f"{said}. Its comments are\n# kept; constants are for {tree['policy']['model']}.\n"


def quick_keys(choices: Choices, tree: dict[str, Any]) -> Keys:
    """Returns the values of the quick profile, as the embedded policy wants them."""
    if choices.model != "tiny":
        return {}
    usual = flatten(tree)
    quick = {
        key: value
        for key, value in flatten(tree["profiles"]["quick"]).items()
        if key not in CHOSEN and (choices.critic == "self" or usual.get(key) != "critic")
    }
    return {**quick, **{f"profiles.{name}": None for name in tree["profiles"]}}


def profile_keys(choices: Choices, tree: dict[str, Any]) -> Keys:
    """Returns what models.toml says of the policy and the critic; the method's own values hold."""
    shared = read_shared()
    policies, critics = shared.models("policy"), shared.models("critic")
    critic = choices.critic.removeprefix("ollama:")
    named = [name for name, model in policies.items() if model == choices.model]
    named += [name for name, model in critics.items() if model == critic]
    keys: Keys = {k: v for name in named for k, v in flatten(shared.profiles[name]).items()}
    own = flatten(tree.get("profiles", {}).get(SHARED, {}))
    return {key: own.get(key, value) for key, value in keys.items()}


def task_keys(choices: Choices, tree: dict[str, Any]) -> Keys:
    """Returns the keys of [task] and [eval]: the task's spec, or what is held out of your data."""
    if choices.task == tree.get("task", {}).get("name") and not choices.source:
        return {}
    keys: Keys = {f"task.{name}": None for name in OF_TASK}
    keys |= {"task.name": choices.task, "eval.source": None}
    spec = choices.task if choices.task in bundled("evals") and choices.task != "jsonl" else ""
    keys["eval.spec"] = spec  # asks the held-out part of the person's own data where it can
    if not choices.source:
        return keys
    for name, part in tree.get("profiles", {}).items():
        if "name" in part.get("task", {}):  # on another task, which would read these data
            keys[f"profiles.{name}"] = None
    given = {name: getattr(choices, name) for name in ("source", *COLUMNS)}
    return keys | {f"task.{k}": value for k, value in given.items() if value}


def critic_keys(choices: Choices, tree: dict[str, Any]) -> Keys:
    provider, _, model = choices.critic.partition(":")
    if provider == "self":
        alone = self_keys(choices.strategy)
        if alone is None:
            fault = f"--critic self: {choices.strategy} cannot do without a critic"
            raise UserError(fault, "give one: --critic ollama:NAME")
        # Its temperature and max_tokens stay: they also hold for what the policy says itself.
        return alone | no_critic(tree)
    if provider not in ("solver", *MODELS):
        raise UserError(
            f"--critic {choices.critic}: no such critic",
            f"give solver, self, or one of {', '.join(MODELS)} with a model: ollama:qwen2.5:7b",
        )
    keys: Keys = {f"critic{t}.{k}": None for t in TIERS for k in OF_CRITIC}
    keys["critic.provider"] = provider
    if provider == "solver":
        return keys | {f"critic.{name}": None for name in OF_SERVER}
    keys["critic.model"] = model or MODELS[provider]
    if choices.base_url:
        keys["critic.base_url"] = choices.base_url
    if provider == "openai":
        names = {address: name for name, address in HOSTS.items()}
        keys["critic.key_env"] = names.get(choices.base_url)
    return keys


def no_critic(tree: dict[str, Any]) -> Keys:
    """Takes out who is asked; of a table that holds nothing else, the table."""
    asked = {*OF_CRITIC, *OF_SERVER}
    keys: Keys = {}
    parts = {f"profiles.{name}.": part for name, part in tree.get("profiles", {}).items()}
    for prefix, part in {"": tree, **parts}.items():
        if asked >= part.get("critic", {}).keys():
            keys[f"{prefix}critic"] = None
        else:
            keys |= {f"{prefix}critic{t}.{name}": None for t in TIERS for name in asked}
    return keys


def self_keys(strategy: str) -> Keys | None:
    """Returns the keys that make a method do without a critic; None: it cannot."""
    usual = load_recipe(strategy)
    table = getattr(usual, strategy)
    keys = {}
    for name, field in type(table).model_fields.items():
        others = [value for value in get_args(field.annotation) if value != "critic"]
        if getattr(table, name) == "critic" and others:
            keys[name] = others[0]
    alone = usual.model_copy(update={strategy: table.model_copy(update=keys)})
    if method_of(alone).tiers(alone):
        return None
    return {f"{strategy}.{name}": keys[name] for name in keys}


# ---- TOML with its comments ----------------------------------------------------------------------


def edit(text: str, keys: Keys) -> str:
    """Returns TOML with other values; comments stay. New keys follow the last one of their table.

    What stands right above a table goes with it.
    """
    document = tomlkit.parse(text)
    above = cut_comments(document)
    for key, value in keys.items():
        *tables, leaf = key.split(".")
        node: Any = document
        for name in tables:
            if name not in node and value is not None:
                node[name] = tomlkit.table()
                above.append((node[name], "\n"))
            node = node.get(name, {})
        if value is not None:
            node[leaf] = value
        elif leaf in node:
            del node[leaf]
    for table, said in above:
        table.trivia.indent = said
    return tomlkit.dumps(document).rstrip() + "\n"


def cut_comments(document: tomlkit.TOMLDocument) -> list[tuple[Table, str]]:
    """Takes out what stands above each table: the parser leaves it at the end of the one before."""
    above: list[tuple[Table, str]] = []
    before: Body = document.body

    def walk(body: Body) -> None:
        nonlocal before
        for at, (key, item) in enumerate(body):
            if isinstance(item, Table) and key and not key.is_dotted():
                if not item.is_super_table():
                    end = at if before is body else len(before)
                    above.append((item, cut_last(before, end)))
                    before = item.value.body
                walk(item.value.body)

    walk(document.body)
    return above


def cut_last(body: Body, end: int) -> str:
    """Cuts the comments that end a table's body, and the blank line above them."""
    said = ""
    for at in reversed(range(end)):
        item = body[at][1]
        if not isinstance(item, (Comment, Whitespace)):
            break
        said = item.as_string() + said
        body[at] = (None, Whitespace(""))
        if isinstance(item, Whitespace):
            break
    return said
