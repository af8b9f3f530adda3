"""`mlxreflect init`: what a recipe needs to know, given or asked for, and what is there to choose.

Without a terminal nothing is asked: what is not given is an error, or with --yes what is suggested.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from mlxreflect.config.methods import METHODS
from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import Recipe
from mlxreflect.config.toml import bundled, read_toml
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import write_atomic
from mlxreflect.data.rows import Row, column, good_rows, is_path, rows_of
from mlxreflect.setup.checks import find_model
from mlxreflect.setup.discovery import Offer, find_offers, key_offers
from mlxreflect.setup.recipe_template import Choices, critic_keys, draft, self_keys
from mlxreflect.tasks import TASKS, get_task
from mlxreflect.tasks.countdown import problem_of
from mlxreflect.tasks.jsonl import KINDS, build, options_of

Ask = Callable[[str, str], str]  # (what, suggestion) → reply
Say = Callable[[str], None]
T = TypeVar("T")

NEEDED = ("strategy", "task", "model", "critic")
EXAMS = ("aime", "math500")  # evaluations alone: nothing to train on
LOOKED_AT = 20  # rows of one's own data
QUESTIONS = ("question", "problem", "query", "prompt", "input", "instruction", "text")
ANSWERS = ("answer", "gold", "ground_truth", "target", "solution", "label", "output", "response",
           "completion")  # fmt: skip


@dataclass(frozen=True)
class Asker:
    """given: by flags, "" where not. ask: None without a terminal, or where --yes is given."""

    given: Mapping[str, str]
    ask: Ask | None
    yes: bool
    say: Say

    def choose(self, name: str, label: str, suggested: str, read: Callable[[str], T]) -> T:
        """What `read` makes of what is given, replied or suggested.

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
    """All choices: as given, else as replied, else as suggested. Raises UserError."""
    missing = [f"--{name}" for name in NEEDED if not asker.given[name]]
    if missing and asker.ask is None and not asker.yes:
        raise UserError(
            f"no terminal to ask in, and not given: {', '.join(missing)}",
            "give them, or --yes to take what is suggested",
        )
    methods = ", ".join(recipes())
    strategy = asker.choose("strategy", f"method ({methods})", next(iter(METHODS)), read_method)
    usual = load_recipe(strategy)
    known = ", ".join(name for name in TASKS if name not in (*EXAMS, "jsonl"))
    label = f"task ({known}), or a file of yours"
    named, rows = asker.choose("task", label, usual.task.name, read_task)
    task = settle_data(named, rows, asker) if rows else {"task": named}
    label = "model (hub name or folder)"
    model = asker.choose("model", label, usual.policy.model, read_model)
    critic = settle_critic(task["task"], usual, asker)
    if critic.critic in ("solver", "self") and asker.given["critic"] and asker.given["base_url"]:
        url = f"--critic-url {asker.given['base_url']}"
        raise UserError(f"{url}: the critic {critic.critic} is no server", "leave it out")
    return Choices(strategy, model, critic=critic.critic, base_url=critic.base_url, **task)


def read_method(name: str) -> str:
    known = recipes()
    if name not in known:
        raise UserError(f"--strategy {name}: no such method", f"choose from: {', '.join(known)}")
    return name


def read_model(name: str) -> str:
    find_model(name, "--model")
    return name


def recipes() -> list[str]:
    """The methods: bundled recipes that are called as their strategy."""
    found = bundled("recipes").items()
    return [name for name, path in found if read_toml(path).get("strategy") == name]


# ---- the task ------------------------------------------------------------------------------------


def read_task(named: str) -> tuple[str, list[Row]]:
    """A bundled task's name without rows, or the first rows of data of one's own."""
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
    """What [task] has to say about data of one's own."""
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
    label = f"answers are ({', '.join(KINDS)})"
    return {**data, "answer_type": asker.choose("answer_type", label, likely, read_kind)}


def are_puzzles(rows: list[Row]) -> bool:
    """Whether they are Countdown's numbers and targets, without a question in words."""
    if any(str(name).casefold() in QUESTIONS for row in rows for name in row.values):
        return False
    try:
        return bool([problem_of(row.values) for row in rows])
    except UserError:
        return False


def read_kind(kind: str) -> str:
    if kind not in KINDS:
        raise UserError(f"--answer-type {kind}: no such kind", f"give one of: {', '.join(KINDS)}")
    return kind


def settle_column(
    name: str, likely: Iterable[str], source: str, rows: list[Row], asker: Asker, taken: str = ""
) -> str:
    """The column that holds the question or the answer: as given, or called so, or asked for.

    taken: a column that holds something else.
    """
    names = list(dict.fromkeys(str(key) for row in rows for key in row.values))
    shown = f"{source}: its columns are: {', '.join(names)}"
    by_fold = {key.casefold(): key for key in names if key != taken}
    guess = next((by_fold[one] for one in likely if one in by_fold), "")
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
    if not asker.given[name] and not asker.ask:
        hint = f"add --{name} with one of them, such as --{name} {shlex.quote(guess or other)}"
        raise UserError(f"{shown}; none is called {name}", hint)
    label = f"{shown}\nthe column that holds the {name}"
    return asker.choose(name, label, guess or other, read)


def kind_of(rows: list[Row], answer: str) -> str:
    """The first kind of answer that all rows have."""
    kinds = ["choice"] if options_of(rows[0].values) is not None else ["number"]
    return next((kind for kind in kinds if all(fits(row, answer, kind) for row in rows)), "text")


def fits(row: Row, answer: str, kind: str) -> bool:
    raw = column(row, answer, "task.answer")
    try:
        build("jsonl", "", raw, kind, options=options_of(row.values))
    except UserError:
        return False
    return True


# ---- the critic ----------------------------------------------------------------------------------


def settle_critic(task: str, usual: Recipe, asker: Asker) -> Offer:
    """One of the critics that are here, by its number, or any other by its name."""
    solver = has_solver(task, usual.strategy)
    offers = find_offers(solver, usual) if not asker.given["critic"] else key_offers()

    def read(chosen: str) -> str:
        if chosen.isdecimal() and 0 < int(chosen) <= len(offers):
            chosen = offers[int(chosen) - 1].critic
        if not chosen:
            raise UserError(
                f"{usual.strategy} needs a critic, and none was found",
                "start one (ollama serve), or name it: --critic ollama:NAME",
            )
        if chosen == "solver" and not solver:
            raise no_solver(task, usual.strategy)
        critic_keys(Choices(usual.strategy, "", task, chosen))
        return chosen

    if asker.ask and not asker.given["critic"]:
        for number, offer in enumerate(offers, 1):
            asker.say(f"  {number}  {offer.critic}: {offer.found}")
    first = offers[0].critic if offers else ""
    chosen = asker.choose("critic", "critic (its number, or PROVIDER:MODEL)", first, read)
    address = next((offer.base_url for offer in offers if offer.critic == chosen), "")
    return Offer(chosen, "", asker.given["base_url"] or address)


def has_solver(task: str, strategy: str) -> bool:
    """Whether the task's exact solver can be the critic of a method."""
    return TASKS[task].solver is not None and not METHODS[strategy].unsolvable


def no_solver(task: str, strategy: str) -> UserError:
    if TASKS[task].solver is None:
        fault = f"the task {task} has no exact solver"
    else:
        fault = f"{strategy} {METHODS[strategy].unsolvable}"
    able = f" ({METHODS[strategy].alone})" if METHODS[strategy].alone else ""
    alone = f", or --critic self{able}" if self_keys(strategy) is not None else ""
    return UserError(f"--critic solver: {fault}", f"give another: --critic ollama:NAME{alone}")


# ---- the file ------------------------------------------------------------------------------------


def place_of(choices: Choices) -> Path:
    name = Path(choices.source).stem if choices.source else choices.task
    return Path(f"{choices.strategy}-{name}.toml")


def refuse_to_overwrite(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise UserError(f"{out} is there already", "give another --out, or --force to replace it")


def write_recipe(choices: Choices, out: Path) -> dict[str, Any]:
    """Write the recipe once it is one that can be run. Raises UserError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = draft(choices)
        with TemporaryDirectory() as folder:
            tried = Path(folder) / out.name
            write_atomic(tried, text)
            check(tried)
        write_atomic(out, text)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}", "give another --out") from None
    return {"schema": "init/1", "recipe": str(out), **vars(choices)}


def check(path: Path) -> None:
    """What `run` would refuse; data of one's own are read."""
    try:
        recipe = load_recipe(str(path))
        if recipe.task.source:
            TASKS[recipe.task.name].load(recipe.task, "train", recipe.seed)
    except UserError as error:
        raise UserError(error.message.replace(f"{path}: ", ""), error.hint) from None
