"""A run on the hub: `mlxreflect publish`, and the pushes of a run that goes on.

The adapter (or the model with it merged in), a card, the recipe and the page go into a model's
repository, the data into a data set's of the same name. All is made of a copy of the run that holds
what may leave, and each push is one commit that holds all of it: what one misses, the next has.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from rich.console import Group

from mlxreflect.config.fields import HUB_NAME
from mlxreflect.config.schema import Recipe
from mlxreflect.core import journal
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import dump_line, read_json, write_atomic
from mlxreflect.core.ui import Ui, plain, table
from mlxreflect.models import fuse
from mlxreflect.models.load import ADAPTER_FILES, find_adapter
from mlxreflect.report.card import Subject, dataset_card, licence_of, model_card
from mlxreflect.report.export import trl
from mlxreflect.report.share import as_evaluated
from mlxreflect.report.show import recipe_of
from mlxreflect.runs.outgoing import DATA, FILES, Outgoing, write_copy
from mlxreflect.view.gather import gather
from mlxreflect.view.page import render

PATIENCE_S = 900.0  # for the last push, when a run has ended
RECORD = "published.json"  # what a run pushed last
LOG_IN = "log in to the hub: hf auth login"
Files = dict[str, bytes | Path]  # by their path in a repository
NETWORK = (HTTPError, OSError)
# What pushing raises besides HfHubHTTPError: also where a server answers nonsense, and hf_xet.
FAULTS = (*NETWORK, ValueError, KeyError, RuntimeError)


@dataclass(frozen=True)
class Package:
    """Holds what one push sends: the files of the model's repository and of the data set's.

    what: is pushed, in words.
    """

    to: str
    what: str
    model: Files
    dataset: Files

    def repositories(self) -> dict[str, Files]:
        """Returns them by their kind; the data first, which the model's card names."""
        found = {"dataset": self.dataset, "model": self.model}
        return {kind: files for kind, files in found.items() if files}

    def digest(self) -> str:
        """Returns the SHA-256 of where it goes and of all that is in it."""
        told = [[kind, name, sha256(one).hexdigest() if isinstance(one, bytes)
                 else journal.sha256(one)]
                for kind, files in self.repositories().items()
                for name, one in sorted(files.items())]  # fmt: skip
        return sha256(json.dumps([self.to, told]).encode()).hexdigest()


# ---- what is sent --------------------------------------------------------------------------------


def check_run(run: Path) -> Recipe:
    """Returns the recipe of a run that is finished and has learned. Raises UserError."""
    if (run / "job.json").is_file():
        raise UserError(
            f"{run} is a training: it has no verdict that a card could give",
            f"send its adapter alone: hf upload USER/NAME {quote(str(run / 'adapter'))}",
        )
    if not (run / "run.json").is_file():
        raise UserError(f"{run} is not a run folder", "give the folder that `mlxreflect run` made")
    if not (run / "summary.json").is_file():
        raise UserError(
            f"{run} is not finished: there is no verdict to publish yet",
            f"finish it: mlxreflect resume {quote(str(run))}",
        )
    summary = read_json(run / "summary.json")
    for key, what in (("unjudged", "is not judged yet"), ("untrained", "learned nothing")):
        if fault := summary.get(key):
            raise UserError(f"{run} {what}: {fault['why']}", fault["hint"])
    return known_recipe(run)


def known_recipe(run: Path) -> Recipe:
    if recipe := recipe_of(run):
        return recipe
    raise UserError(
        f"{run}: its recipe.toml is of another version of mlxreflect, or damaged",
        "publish it with the version that made it, or restore that file",
    )


def pack(run: Path, to: str, fused: Path | None = None, epoch: int | None = None) -> Package:
    """Reads what a push sends. fused: the folder of the whole model, in the adapter's place.

    epoch: the last one that is over, of a run that goes on: its adapter, and no page. Raises
    UserError.
    """
    ended = epoch is None
    recipe = check_run(run) if ended else known_recipe(run)
    adapter = run / "adapter" if ended else run / "checkpoints" / f"epoch-{epoch}"
    if not fused:
        find_adapter(str(adapter), "the run's adapter")
    model: Files = {}
    dataset: Files = {}
    with TemporaryDirectory() as folder:
        copy = Path(folder) / run.resolve().name
        outgoing = write_copy(run, copy, recipe, FILES if ended else DATA)
        rows: dict[str, list[str]] = {}
        for name, row in trl(copy):
            rows.setdefault(name, []).append(dump_line(row))
        counts = {name: len(lines) for name, lines in rows.items()}
        licence = licence_of(recipe.policy.model)
        tune = str(read_json(adapter / ADAPTER_FILES[0]).get("fine_tune_type", "lora"))
        subject = Subject(
            copy, to, known_recipe(copy), counts, tune, licence, fused is not None, epoch
        )
        for file in sorted(fused.iterdir()) if fused else (adapter / n for n in ADAPTER_FILES):
            model[file.name] = cleaned(file, outgoing)
        model["README.md"] = encoded(model_card(subject))
        model["recipe.toml"] = (copy / "recipe.toml").read_bytes()
        if ended:
            model["page.html"] = encoded(page(copy))
        dataset |= {name: encoded("".join(lines)) for name, lines in rows.items()}
        if dataset:
            dataset["README.md"] = encoded(dataset_card(subject))
    return Package(to, "the trained model" if ended else f"epoch {epoch}", model, dataset)


def cleaned(file: Path, outgoing: Outgoing) -> bytes | Path:
    """Returns a file as it goes out: settings name models, weights and tokenizers name nothing."""
    if not file.name.endswith("config.json"):
        return file
    return encoded(json.dumps(outgoing.tree(read_json(file)), indent=2) + "\n")


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def page(copy: Path) -> str:
    found = gather([copy])
    for one in found.tree["runs"]:
        one["folder"] = copy.name
    return render(found)


# ---- the hub -------------------------------------------------------------------------------------


def push(package: Package, public: bool, again: str) -> dict[str, str]:
    """Sends a package; returns the address of each repository, and whether they are private.

    public: for repositories that are made; others stay as they are, and one that is public is
    refused unless this says so. again: the command to try later. Raises UserError.
    """
    if not get_token():
        raise UserError("you are not logged in to the hub", LOG_IN)
    api, to, found = HfApi(), package.to, dict[str, str]()
    with speaking_to_hub(to, again):
        for kind in package.repositories():
            api.create_repo(to, repo_type=kind, private=not public, exist_ok=True)
            private = bool(api.repo_info(to, repo_type=kind).private)
            if not private and not public:
                raise UserError(
                    f"the {kind} {to} is public on the hub, and you did not say that this may be",
                    f"add --public to: {again}; or give another --to",
                )
            found[f"{kind}_visibility"] = "private" if private else "public"
        for kind, files in package.repositories().items():
            operations = [CommitOperationAdd(name, one) for name, one in files.items()]
            api.create_commit(to, operations, commit_message=package.what, repo_type=kind)
            place = "datasets/" if kind == "dataset" else ""
            found[kind] = f"{api.endpoint}/{place}{to}"
    return found


@contextmanager
def speaking_to_hub(to: str, again: str) -> Iterator[None]:
    """Turns what the hub says no with, and no answer of it, into a UserError."""
    try:
        yield
    except HfHubHTTPError as error:
        status, said = error.response.status_code, one_line(error.server_message or str(error))
        if status == 401:
            raise UserError(f"the hub does not know you: {said}", LOG_IN) from None
        if status == 403:
            hint = f"give a --to that is yours, or a token that may write there ({LOG_IN})"
            raise UserError(f"the hub refuses {to}: {said}", hint) from None
        raise UserError(f"the hub refuses it ({status}): {said}", f"later: {again}") from None
    except FAULTS as error:
        what = "the hub cannot be reached" if isinstance(error, NETWORK) else "pushing failed"
        why = one_line(str(error)) or type(error).__name__
        raise UserError(f"{what}: {why}", f"later: {again}") from None


def one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def keep_record(run: Path, digest: str, found: Mapping[str, str]) -> None:
    told = {"schema": "published/1", "digest": digest, **found}
    write_atomic(run / RECORD, json.dumps(told, indent=2) + "\n")


# ---- the command ---------------------------------------------------------------------------------


def publish(
    run: Path, to: str, ui: Ui, *, fused: bool = False, public: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Publishes a finished run, or with `dry_run` says what that would send. Raises UserError."""
    try:
        validate_repo_id(to)
    except HFValidationError as error:
        raise UserError(f"--to {to}: {one_line(str(error))}", "give --to USER/NAME") from None
    if not HUB_NAME.fullmatch(to):
        raise UserError(f"--to {to} names no repository of the hub", "give --to USER/NAME")
    check_run(run)
    again = f"mlxreflect publish {quote(str(run))} --to {to}" + " --fused" * fused
    with TemporaryDirectory(dir=run, prefix=".fused-") if fused else nullcontext("") as folder:
        whole = fuse_into(run, Path(folder) / "model", ui) if fused else None
        package = pack(run, to, whole)
        told: dict[str, Any] = {
            "schema": "publish/1", "to": to, "dry_run": dry_run,
            "files": [{"repository": kind, "path": name, "bytes": size_of(one)}
                      for kind, files in package.repositories().items()
                      for name, one in files.items()],
            "card": bytes_of(package.model["README.md"]).decode(),
        }  # fmt: skip
        if dry_run:
            return told
        digest, found = package.digest(), push(package, public, again)
    keep_record(run, digest, found)
    return {**told, **found}


def fuse_into(run: Path, out: Path, ui: Ui) -> Path:
    """Writes the model of a run with its adapter merged in, and returns its folder."""
    adapter = find_adapter(str(run), "RUN_DIR")
    how = as_evaluated(run, adapter, "")
    ui.line("merging the adapter into the model")
    fuse.write_folder(how.model, str(adapter), out, 0, how)
    return out


def bytes_of(one: bytes | Path) -> bytes:
    return one if isinstance(one, bytes) else one.read_bytes()


def size_of(one: bytes | Path) -> int:
    return len(one) if isinstance(one, bytes) else one.stat().st_size


def render_published(told: Mapping[str, Any]) -> Group:
    """Returns the files, the card where nothing was sent, and where they are now."""
    rows = [(one["repository"], one["path"], f"{one['bytes']:,}") for one in told["files"]]
    parts: list[Any] = [table("", ("repository", "file", "|bytes"), rows, wraps="file"), plain("")]
    if told["dry_run"]:
        parts += [plain(told["card"]), plain(f"Nothing was sent. These would go to {told['to']}.")]
    for kind in ("model", "dataset"):
        if kind in told:
            parts.append(plain(f"{kind}: {told[kind]} ({told[f'{kind}_visibility']})"))
    return Group(*parts)


# ---- a run that pushes as it goes ----------------------------------------------------------------


class Pusher:
    """Pushes the epochs and the end of a run, in a thread that the run does not wait for.

    One that fails is a warning. Of epochs that wait only the newest is pushed. say: is told.
    """

    def __init__(self, run: Path, to: str, say: Callable[[str], None]) -> None:
        self.run, self.to, self.say = run, to, say
        self.again = f"mlxreflect publish {quote(str(run))} --to {to}"
        self.queue: SimpleQueue[int | None] = SimpleQueue()  # epochs; None: the end
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self) -> None:
        ended = False
        while not ended:
            epoch = self.queue.get()
            ended = epoch is None
            if not ended and not self.queue.empty():
                continue
            try:
                self.push(epoch)
            except UserError as error:
                self.warn(error.message, error.hint)
            except FAULTS as error:
                self.warn(one_line(str(error)), f"later: {self.again}")

    def push(self, epoch: int | None) -> None:
        """Pushes what is there now, unless it was pushed already. Raises UserError."""
        package, file = pack(self.run, self.to, epoch=epoch), self.run / RECORD
        digest = package.digest()
        if file.is_file() and read_json(file).get("digest") == digest:
            return
        found = push(package, False, self.again)
        keep_record(self.run, digest, found)
        self.say(f"{package.what} is on the hub: {found['model']}")

    def warn(self, why: str, hint: str) -> None:
        self.say(f"warning: not pushed to the hub: {why}; {hint}")

    def close(self) -> None:
        """Pushes the end, and waits for it."""
        self.queue.put(None)
        self.thread.join(PATIENCE_S)
        if self.thread.is_alive():
            self.warn("it does not answer", f"later: {self.again}")


@contextmanager
def pushed(run: Path, recipe: Recipe, say: Callable[[str], None]) -> Iterator[Pusher]:
    """Yields what pushes a run, whose end is pushed too, unless something stops it before."""
    disable_progress_bars()
    if not get_token():
        say(f"warning: publish.to = {recipe.publish.to}, and you are not logged in: {LOG_IN}")
    pusher = Pusher(run, recipe.publish.to, say)
    yield pusher
    pusher.close()
