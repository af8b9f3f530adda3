"""`mlxreflect doctor`: looks at what a run needs before the night it is meant for.

Nothing is downloaded. Each critic is asked for one token, and where the pace is measured those that
cost nothing for a few replies.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from huggingface_hub import constants

from mlxreflect.config.recipe import eval_specs, read_shared
from mlxreflect.config.schema import (
    REMOTE,
    CriticConfig,
    PolicyConfig,
    Recipe,
    TaskConfig,
    method_of,
)
from mlxreflect.core.cache import cache_path
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import make_problem
from mlxreflect.core.ui import Ui, plain, plural, table
from mlxreflect.critics import open_critic, open_embedder
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.client import Client, failed_reply
from mlxreflect.critics.embeddings import embed_call
from mlxreflect.critics.http import LOOPBACK, CallError
from mlxreflect.critics.ollama import LOOK_S, Ollama, is_ollama, root_of
from mlxreflect.critics.replies import FILE
from mlxreflect.data.matching import build_index, clause
from mlxreflect.data.rows import is_path
from mlxreflect.evaluation.contamination import (
    clean,
    clean_problems,
    further_specs,
    question_of,
)
from mlxreflect.evaluation.evaluate import eval_problems
from mlxreflect.evaluation.judge import find_judge
from mlxreflect.models.load import (
    device_memory,
    device_name,
    find_adapter,
    find_model,
    load_shapes,
    load_template,
    on_cpu,
    on_mac_gpu,
)
from mlxreflect.models.memory import weights_of
from mlxreflect.models.template import with_tags
from mlxreflect.setup.memory import GB, Known, memory_rows, totals
from mlxreflect.setup.pace import foresee
from mlxreflect.stats import TOO_FEW, power_sentence
from mlxreflect.tasks import get_task, is_open
from mlxreflect.tasks.countdown import count_unsolvable
from mlxreflect.train.memory import memory_limit, most_tokens

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

CALL_S = 120.0  # a server may have to load its model first
ASK = Call("critique", make_problem("doctor", {}), [{"role": "user", "content": "Say ok."}], "")
LOOKED_AT = 200  # rows of one's own puzzles: six numbers take a while to be solved
LATER = "is to be downloaded"
DISK_GB = 1.0  # less than this is no place for a run


@dataclass(frozen=True)
class Check:
    """note: no fault, but worth knowing. hint: what mends a failure."""

    name: str
    status: Literal["ok", "note", "fail"]
    detail: str
    hint: str = ""


def doctor(recipe: Recipe | None, ui: Ui, *, timed: bool = False) -> dict[str, Any]:
    """Carries out all checks, in the order of a run. ok: none of them fails.

    timed: where all is there, the pace is measured, too; time: as of `pace.foresee`.
    """
    known, memory, timing = Known(), dict[str, Any](), dict[str, Any]()
    steps: list[tuple[str, Callable[[], Iterable[Check]]]] = []
    steps.append(("device", partial(check_machine, recipe)))
    if recipe is None:
        steps.append(("ollama", check_ollama))
    else:
        steps.append(("policy", partial(check_policy, recipe, known)))
        steps.append(("data", partial(check_data, recipe, known)))
        for name, config in tiers(recipe).items():
            steps.append((name, partial(check_critic, name, config, recipe.task.name, known)))
        if embeds := method_of(recipe).embedder(recipe):
            steps.append(("embedder", partial(check_embedder, embeds, known)))
    steps += [("memory", partial(check_memory, recipe, known, memory)), ("disk", check_disk)]
    checks: list[Check] = []
    with ui.progress("checking", len(steps)) as bar:
        for name, step in steps:
            bar.update_text(name)
            try:
                checks.extend(step())
            except UserError as error:  # what it found before it stays
                checks.append(Check(name, "fail", error.message, error.hint))
            bar.advance(1)
    if recipe and timed:
        lacks = any(check.status == "fail" or LATER in check.detail for check in checks)
        checks += check_time(recipe, known, timing, ui, lacks=lacks)
    return {
        "schema": "doctor/1",
        "recipe": recipe.name if recipe else None,
        "ok": all(check.status != "fail" for check in checks),
        "checks": [asdict(check) for check in checks],
        "memory": memory,
        "time": timing,
    }


# ---- this machine --------------------------------------------------------------------------------


def check_machine(recipe: Recipe | None) -> Iterator[Check]:
    yield Check("device", "ok", device_name())
    if on_mac_gpu():
        most = most_tokens(recipe.train.part_tokens if recipe else 0)
        found = f"drawn by this GPU too, so {most} tokens are trained on at once"
        hint = (
            'should macOS stop the GPU ("Impacting Interactivity"), turn the display off, lower '
            "train.part_tokens, or set AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment; "
            "nothing is lost, and `mlxreflect resume` goes on"
        )
        yield Check("display", "note", found, hint)
    if recipe is None:
        yield Check("cache", "ok", f"models in {constants.HF_HUB_CACHE}")
        yield Check("cache", "ok", f"replies of critics in {cache_path('', FILE)}")


def check_disk() -> Iterator[Check]:
    """Looks at the place where `run` puts its folders: runs/ in the folder it is started in."""
    place = next(p for p in (Path("runs").resolve(), *Path("runs").resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free / GB
    if not os.access(place, os.W_OK):
        yield Check(
            "disk",
            "fail",
            f"{place} cannot be written to",
            "change to a folder of yours: cd FOLDER",
        )
    elif free < DISK_GB:
        hint = "free some, or start it in a folder on another disk"
        yield Check("disk", "fail", f"{free:.1f} GB free in {place}", hint)
    else:
        yield Check("disk", "ok", f"{free:.1f} GB free in {place}")


def check_memory(recipe: Recipe | None, known: Known, memory: dict[str, Any]) -> Iterator[Check]:
    """Compares the phase that takes the most memory with what there is; fills the table of all."""
    there = device_memory()
    if recipe is None:
        fit = advice((there - memory_limit(0)) / GB)
        yield Check("memory", "ok", f"{there / GB:.1f} GB{fit and f'; {fit}'}")
        return
    rows = memory_rows(recipe, known)
    phases = totals(rows)
    memory |= {"device": there, "rows": [row._asdict() for row in rows], "phases": phases}
    most = max(phases, key=lambda phase: phases[phase])
    unknown = any(row.bytes is None for row in rows)
    needed = (
        f"{'at least' if unknown else 'about'} {in_words(phases[most], 1)} of {in_words(there, 1)}"
    )
    detail = f"the most is needed for {most}: {needed}"
    if phases[most] > there:
        mine = max((row for row in rows if most in row.phases), key=lambda row: row.bytes or 0)
        hint = f"lower {mine.lower}, or take a smaller policy or critic, or more bits off them"
        fit = advice((there - memory_limit(recipe.train.memory_gb)) / GB)
        hint = f"{fit}; or {hint}" if fit else hint
        yield Check("memory", "fail", detail, hint)
    else:
        close = phases[most] > 0.8 * there
        yield Check("memory", "note" if close or unknown else "ok", detail)


def check_time(
    recipe: Recipe, known: Known, timing: dict[str, Any], ui: Ui, *, lacks: bool
) -> Iterator[Check]:
    """Measures how long the run will take, and whether it can learn; fills in what came of it."""
    if lacks:
        yield Check("time", "note", "is measured once everything is there")
        return
    problems = {one.id: one for one in known.problems} or clean(recipe).problems
    timing |= foresee(recipe, problems, ui)
    yield Check("time", "note" if timing["unknown"] else "ok", timing["text"])
    if warning := timing.get("warning"):
        yield Check("learning", "note", *warning)


def fitting(room: float) -> list[str]:
    """Returns the first profiles that models.toml suggests and that fit together, or none.

    room: gigabytes beside training. On the CPU, where weights are larger, nothing is suggested.
    """
    shared = read_shared()
    sizes = [sum(shared.memory_gb[name] for name in names) for names in shared.suggested]
    fits = [names for names, size in zip(shared.suggested, sizes, strict=True) if size <= room]
    return fits[0] if fits and not on_cpu() else []


def advice(room: float) -> str:
    """Says what fits into so many gigabytes, and how to have it."""
    names = fitting(room)
    models = " with ".join(name.removeprefix("critic-") for name in names)
    alone = "" if len(names) > 1 else " without a critic beside it"
    return f"{models}{alone} fits: --set profile={','.join(names)}" if names else ""


# ---- the policy and the data ---------------------------------------------------------------------


def check_policy(recipe: Recipe, known: Known) -> Iterator[Check]:
    config = recipe.policy
    folder = find_model(config.model, "policy.model")
    if folder is None:
        yield to_download("policy", config.model)
    else:
        known.policy = load_shapes(folder, config)
        size = in_words(weights_of(known.policy))
        yield Check("policy", "ok", f"{config.model} is here, {size} once loaded")
        yield from check_template(recipe, folder, known)
    asked = (spec.task.name for spec in eval_specs(recipe).values())
    tasks = dict.fromkeys((recipe.task.name, *asked))
    if config.model == "tiny" and (others := [name for name in tasks if name != "countdown"]):
        found = f"tiny knows Countdown only, and is asked {' and '.join(others)}"
        yield Check("policy", "note", found, "set policy.model to a model of the hub")
    if config.adapter:
        try:
            find_adapter(config.adapter)
        except UserError as error:
            yield Check("adapter", "fail", error.message, error.hint)


def check_template(recipe: Recipe, folder: Path, known: Known) -> Iterator[Check]:
    """Asks the model's chat template, without its weights, how it has to be written."""
    try:
        template = known.template = load_template(folder, recipe.policy)
        tags = with_tags(recipe, template).prompt.tags
    except UserError as error:
        yield Check("template", "fail", error.message, error.hint)
        return
    for note in template.notes_for(tags):
        yield Check("template", "note", note)


def check_data(recipe: Recipe, known: Known) -> Iterator[Check]:
    """Reads the problems of this machine; looks for those of the hub in the cache only."""
    specs = eval_specs(recipe)
    others = [hub_data(other.task) for other in further_specs(recipe)]
    sources = [hub_data(recipe.task), *(hub_data(spec.task) for spec in specs.values()), *others]
    for name in dict.fromkeys(name for names in sources for name in names):
        yield check_hub_data(name)
    here = {name: spec for name, spec in specs.items() if not hub_data(spec.task)}
    known.held_out = held_out = {
        n: eval_problems(get_task(s.task.name), s) for n, s in here.items()
    }
    for name, asked in held_out.items():
        whose = f" ({name})" if len(specs) > 1 else ""
        told = f"{plural(len(asked), 'problem')} held out{whose}. {power_sentence(len(asked))}"
        yield Check("data", "note" if told.endswith(TOO_FEW) else "ok", told)
    if not any(sources):
        cleaned = clean(recipe, held_out)
        if cleaned.dev:
            told = f"{plural(len(cleaned.dev), 'dev problem')} to look at while it learns"
            yield Check("data", "ok", told)
        known.problems = list(cleaned.problems.values())
        left_out = f"; {clause(cleaned.counts)}" if cleaned.counts else ""
        yield Check(
            "data", "ok", f"{plural(len(cleaned.problems), 'problem')} to learn from{left_out}"
        )
    elif not sources[0]:
        questions = [question_of(one) for asked in held_out.values() for one in asked]
        index = build_index(questions, recipe.eval.ngram)
        count = len(clean_problems(recipe, index)[0])
        yield Check("data", "ok", f"{plural(count, 'problem')} to learn from")
    if recipe.task.name == "countdown" and recipe.task.source and not sources[0]:
        none, rows = count_unsolvable(recipe.task, LOOKED_AT)
        if none:
            told = f"{none} of the first {rows} rows have no solution and are left out"
            yield Check("data", "note", told)
    for note in method_of(recipe).notes(recipe, list(known.problems)):
        yield Check("data", "ok" if note.fine else "note", note.text)


def check_hub_data(name: str) -> Check:
    from datasets import config

    kept = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if kept.is_dir() and any(kept.iterdir()):
        return Check("data", "ok", f"the data set {name} is in the cache")
    if not constants.HF_HUB_OFFLINE:
        return Check("data", "note", f"the data set {name} {LATER}")
    hint = "run it once without HF_HUB_OFFLINE, or set task.source to a file"
    found = f"the data set {name} is not in the cache, and HF_HUB_OFFLINE is set"
    return Check("data", "fail", found, hint)


def hub_data(config: TaskConfig) -> tuple[str, ...]:
    """Returns the hub data sets that a task reads."""
    own = () if is_path(config.source) else (config.source,)
    return own if config.source else get_task(config.name).hub


# ---- models --------------------------------------------------------------------------------------


def to_download(name: str, model: str) -> Check:
    if constants.HF_HUB_OFFLINE:
        hint = f"without HF_HUB_OFFLINE, run: hf download {model}"
        return Check(name, "fail", f"{model} is not here, and HF_HUB_OFFLINE is set", hint)
    return Check(name, "note", f"{model} {LATER}")


# ---- critics -------------------------------------------------------------------------------------


def tiers(recipe: Recipe) -> dict[str, CriticConfig]:
    """Returns the critics that a run asks, each once."""
    found: dict[CriticConfig, str] = {}
    for name in method_of(recipe).tiers(recipe):
        found.setdefault(
            recipe.critic.tier(name), "critic" if name == "basic" else f"{name} critic"
        )
    for spec in eval_specs(recipe).values():
        if is_open(spec.task) and (judge := find_judge(spec, usual=recipe.critic.tier("judge"))):
            found.setdefault(judge, "judge critic")
    return {name: config for config, name in found.items()}


def check_replay(name: str, config: CriticConfig) -> Check:
    path = cache_path(config.cache, FILE)
    there = path is not None and path.is_file()
    hint = "" if there else "set critic.cache to the file of the run to repeat"
    found = f"replays what is in {path}" if there else f"{path}, to be replayed, is not there"
    return Check(name, "ok" if there else "fail", found, hint)


def check_critic(name: str, config: CriticConfig, task: str, known: Known) -> Iterator[Check]:
    """Checks a critic's key, its server and its model, and asks for one token."""
    if config.provider in REMOTE and config.replay:
        yield check_replay(name, config)
        return
    if config.provider == "openai" and config.key_env:
        there = bool(os.environ.get(config.key_env, "").strip())
        hint = "" if there else f"export {config.key_env}=KEY"
        found = "set" if there else "not set"
        yield Check(f"key {config.key_env}", "ok" if there else "fail", found, hint)
    if config.provider == "openai" and is_ollama(config.base_url):
        found = f"{config.base_url} is Ollama, whose /v1 ignores critic.num_ctx and cuts prompts"
        yield Check(name, "note", found, 'set critic.provider = "ollama" and leave /v1 out')
    if config.provider == "local":
        folder = find_model(config.model, "critic.model")
        known.critics[name] = None
        if folder is None:
            yield to_download(name, config.model)
            return
        model = load_shapes(folder, PolicyConfig(model=config.model), "critic")
        known.critics[name], known.local[name] = weights_of(model), (model, config)
    yield from ask_critic(name, config, task, known)


def ask_critic(name: str, config: CriticConfig, task: str, known: Known) -> Iterator[Check]:
    tried = config.model_copy(update={"max_tokens": 1, "cache": "off", "replay": False})
    critic = open_critic(tried, task, "doctor")
    try:
        critic.preflight()
        if config.provider == "solver":
            yield Check(name, "ok", "the exact solver, in this process")
            return
        begun = time.monotonic()
        reply = one_token(critic)
        seconds = time.monotonic() - begun
        if isinstance(critic, Client) and isinstance(critic.provider, Ollama):
            known.critics |= ollama_size(name, critic.provider)
    finally:
        critic.close()
    if reply.error is None or reply.kind == "empty":
        lacking = ", ".join(sorted(getattr(critic, "refused", ())))
        without = f"; it takes no {lacking}" if lacking else ""
        yield Check(name, "ok", f"{critic.actor} answers, after {seconds:.1f} s{without}")
    else:
        hint = "correct the keys of [critic] that it names, or look at the server's own messages"
        yield Check(name, "fail", f"{critic.actor}: {reply.error}", hint)


def check_embedder(config: CriticConfig, known: Known) -> Iterator[Check]:
    """Has a text embedded, without retries."""
    if config.replay:
        yield check_replay("embedder", config)
        return
    with ExitStack() as stack:
        tried = config.model_copy(update={"cache": "off"})
        embedder = open_embedder(tried, "doctor", stack)
        actor, begun = embedder.client.actor, time.monotonic()
        try:
            embedder.client.send(embed_call(["Bees make honey."]), CALL_S)
        except CallError as error:
            hint = "name a model that embeds in preflexor.retriever, or look at the server's words"
            yield Check("embedder", "fail", f"{actor}: {error}", hint)
            return
        after = f"after {time.monotonic() - begun:.1f} s"
        yield Check("embedder", "ok", f"{actor} embeds in {embedder.size} numbers, {after}")
        if isinstance(embedder.provider, Ollama):
            known.critics |= ollama_size("embedder", embedder.provider)


def one_token(critic: Critic) -> Reply:
    """Sends one request, without retries. A model that cannot say a word in it is there, too."""
    if not isinstance(critic, Client):
        return critic.ask([ASK])[0]
    try:
        return critic.send(ASK, CALL_S)
    except CallError as error:
        short = error.kind == "http_400" and "output limit" in str(error)
        return Reply("", kind="empty") if short else failed_reply(error, 1)


def ollama_size(name: str, critic: Ollama) -> dict[str, int | None]:
    """Returns the memory that Ollama's model takes, where Ollama is on this machine."""
    if urlsplit(root_of(critic.wire.shown)).hostname not in LOOPBACK:
        return {}
    wanted = (critic.config.model, f"{critic.config.model}:latest")
    models = pulled_models(critic) or {}
    return {name: next((models[one] for one in wanted if one in models), None)}


def ollama_models() -> tuple[str, list[str] | None]:
    """Returns Ollama's address (UserError where it is none) and its models, if it answers."""
    critic = Ollama(CriticConfig(provider="ollama", model=""))
    models = pulled_models(critic)
    critic.close()
    return critic.wire.shown, None if models is None else sorted(models)


def pulled_models(critic: Ollama) -> dict[str, int | None] | None:
    """Returns the sizes of Ollama's models by name, or None where it does not answer."""
    try:
        with critic.wire.within(LOOK_S):
            return critic.pulled()
    except CallError:
        return None


def check_ollama() -> Iterator[Check]:
    url, models = ollama_models()
    if models is None:
        yield Check("ollama", "note", f"none at {url}; only a critic served by it needs it")
    else:
        names = ", ".join(models) or "none; `ollama pull NAME`"
        yield Check("ollama", "ok", f"answers at {url}; its models: {names}")


def in_words(size: float, digits: int = 2) -> str:
    """Returns so many bytes in gigabytes, small ones in megabytes."""
    return f"{size / GB:.{digits}f} GB" if size >= GB / 10 else f"{size / GB * 1000:.0f} MB"


def memory_table(found: dict[str, Any]) -> "Table":
    """Returns the memory of each phase, and of what takes it."""
    phases, rows = found["phases"], found["rows"]

    def cell(row: dict[str, Any], phase: str) -> str:
        if phase not in row["phases"]:
            return ""
        return "unknown" if row["bytes"] is None else in_words(row["bytes"])

    cells = [(row["what"], *(cell(row, phase) for phase in phases)) for row in rows]
    sums = ("together", *(in_words(size) for size in phases.values()))
    head = ("memory", *(f"|  {phase}" for phase in phases))
    return table(
        f"\n{found['device'] / GB:.1f} GB for models on this machine", head, [*cells, sums]
    )


def render_doctor(result: dict[str, Any]) -> "Group":
    """Returns the checks as a table, and below it what mends those that fail."""
    from rich.console import Group

    style, checks = {"ok": "green", "note": "yellow", "fail": "bold red"}, result["checks"]
    rows = [(plain(c["status"], style[c["status"]]), c["name"], c["detail"]) for c in checks]
    hints = [plain(f"{check['name']}: {check['hint']}") for check in checks if check["hint"]]
    later = any(LATER in check["detail"] for check in checks)
    there = "everything but the downloads is there" if later else "everything is there"
    doubts = [check["detail"] for check in checks if check["name"] == "learning"]
    there = f"{there}, but {doubts[0]}" if doubts else there
    verdict = plain(there if result["ok"] else "something is missing", "bold")
    checked = table("", ("", "what", "found"), rows, wraps="*")
    memory = [memory_table(result["memory"])] if result.get("memory") else []
    time = [plain(line) for line in ("", *result.get("time", {}).get("lines", ()))]
    return Group(checked, *memory, *time, plain(""), *hints, verdict)
