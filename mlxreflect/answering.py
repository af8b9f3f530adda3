"""The arms of one `mlxreflect eval` answer, one after another; then they are compared."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxreflect.answers import Answers
from mlxreflect.chains_eval import check_chain, evaluate_chains
from mlxreflect.errors import UserError
from mlxreflect.evaluate import eval_problems, evaluate, fingerprint
from mlxreflect.evidence.compare import compare_all
from mlxreflect.exports.report import write_outputs
from mlxreflect.lineup import Entry, replaces_weights
from mlxreflect.policy import Policy, adapted, load_policy
from mlxreflect.records import Problem, read_rows
from mlxreflect.results import warnings
from mlxreflect.served import ServedModel, evaluate_served
from mlxreflect.tables import EvalSpec, PolicyConfig
from mlxreflect.tasks import TASKS, check_exam
from mlxreflect.tasks.base import Task
from mlxreflect.ui import Ui


@dataclass(frozen=True)
class Exam:
    """What every arm answers."""

    task: Task
    spec: EvalSpec
    problems: list[Problem]


def answer_all(
    entries: Sequence[Entry],
    spec: EvalSpec,
    out: Path | None,
    cache: str,
    ui: Ui,
    *,
    twice: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate the arms one after another; each one's results, by name and with its comparison.

    What others read of them (see `exports.report`) is written into the folder's report/.

    out: the folder of a single arm, of several the folder of theirs; None: one under runs/. cache:
    as of `answers.Answers.open`. twice: the A/A check. Raises UserError.
    """
    check_exam(spec)
    check_chain(spec)
    check_served(entries, spec)
    exam = Exam(task := TASKS[spec.task.name], spec, eval_problems(task, spec))
    root = out or default_folder(spec, entries)
    folders = [root if len(entries) == 1 else root / entry.name for entry in entries]
    host = Host(Answers.open(cache), ui)
    ui_facts = {"evaluating": spec.name or spec.task.name,
                "arms": ", ".join(entry.name for entry in entries),
                "problems": len(exam.problems), "out": str(root)}  # fmt: skip
    found: list[dict[str, Any]] = []
    for entry, folder in zip(entries, folders, strict=True):
        host.prepare(entry)
        if not found:
            ui.header(ui_facts)
        label = f" {entry.name}" if len(entries) > 1 else ""
        results = host.measure(entry, exam, folder, f"evaluating{label}")
        for said in warnings(results):
            ui.line(f"{entry.name}: {said}" if label else said)
        if twice:
            results["noise"] = check_noise(host, entry, exam, folder, label)
        found.append(results if len(entries) == 1 else
                     {"name": entry.name, "folder": str(folder), **results})  # fmt: skip
    write_outputs(folders, root / "report", plots=len(entries) > 1)
    return found if len(entries) == 1 else compared(found, folders)


def check_served(entries: Sequence[Entry], spec: EvalSpec) -> None:
    """Raises UserError for a server that is to play chains, before any arm has been evaluated."""
    served = [entry.name for entry in entries if isinstance(entry.model, ServedModel)]
    if served and spec.chain.rounds > 1:
        raise UserError(
            f"{served[0]}: a spec with [chain] continues answers, which a server does not",
            "give a --model in its place, or add --set chain.rounds=1",
        )


class Host:
    """Holds the weights of one arm at a time; arms that share them follow each other."""

    def __init__(self, answers: Answers | None, ui: Ui) -> None:
        self.answers, self.ui = answers, ui
        self.loaded: PolicyConfig | None = None
        self.policy: Policy | None = None

    def prepare(self, entry: Entry) -> None:
        """Load what an arm needs and let go of what it does not."""
        config = entry.model
        if isinstance(config, PolicyConfig) and not replaces_weights(config):
            config = config.model_copy(update={"adapter": ""})
        if config == self.loaded:
            return
        self.loaded = self.policy = None
        mx.clear_cache()
        if isinstance(config, PolicyConfig):
            self.policy, self.loaded = load_policy(config), config

    def measure(self, entry: Entry, exam: Exam, folder: Path, label: str) -> dict[str, Any]:
        """An arm's results. Says how many answers were kept from before."""
        given = (exam.task, exam.problems, exam.spec, folder)
        if exam.spec.chain.rounds > 1:
            return self.chain(entry, exam, folder, label)
        with self.ui.progress(label, len(exam.problems) * exam.spec.samples) as bar:
            if isinstance(entry.model, ServedModel):
                return evaluate_served(entry.model, *given, advance=bar.advance, note=self.ui.line)
            with self.weights(entry.model) as policy:
                results = evaluate(
                    policy, *given, **recorded(entry.model), answers=self.answers,
                    advance=bar.advance,
                )  # fmt: skip
        for said in self.answers.report() if self.answers else []:
            self.ui.line(said)
        return results

    def chain(self, entry: Entry, exam: Exam, folder: Path, label: str) -> dict[str, Any]:
        """An arm's results where each question is a chain of answers."""
        assert not isinstance(entry.model, ServedModel)  # check_served
        given = (exam.task, exam.problems, exam.spec, folder)
        with (
            self.ui.progress(label, len(exam.problems)) as bar,
            self.weights(entry.model) as policy,
        ):
            return evaluate_chains(
                policy, *given, **recorded(entry.model), advance=bar.advance, told=bar.update_text
            )

    @contextmanager
    def weights(self, config: PolicyConfig) -> Iterator[Policy]:
        """The policy that `prepare` has loaded, with the arm's adapter on it."""
        assert self.policy is not None
        bare = config.adapter == (self.loaded or config).adapter
        with nullcontext() if bare else adapted(self.policy, config):
            yield self.policy


def recorded(config: PolicyConfig) -> dict[str, Any]:
    """What of an arm's model an evaluation writes down."""
    adapter = fingerprint(Path(config.adapter)) if config.adapter else ""
    return {"adapter": adapter, "quantize": config.quantize}


def check_noise(host: Host, entry: Entry, exam: Exam, folder: Path, label: str) -> dict[str, Any]:
    """The A/A check: the same model again, at half the batch (a server: asked again).

    gains, losses: answers that became right or wrong by rounding alone. A difference of two models
    that is no larger is no difference.
    """
    batch = exam.spec.batch // 2 or 2
    spec = exam.spec.model_copy(update={"batch": batch})
    again = Exam(exam.task, spec, exam.problems)
    host.measure(entry, again, folder / "noise", f"evaluating{label} again, batch {batch}")
    rows = [list(read_rows(place / "samples.jsonl")) for place in (folder, folder / "noise")]
    both = list(zip(*rows, strict=True))
    return {
        "batch": batch,
        "answers": len(both),
        "gains": sum(b["correct"] > a["correct"] for a, b in both),
        "losses": sum(b["correct"] < a["correct"] for a, b in both),
        "same_text": sum(a["text"] == b["text"] for a, b in both) / len(both),
    }


def compared(found: list[dict[str, Any]], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Each arm with its comparison with the first, Holm's adjustment being over all of them."""
    result = compare_all(folders)
    against = result.get("comparisons", [result])
    return [{**arm, "comparison": c} for arm, c in zip(found, [None, *against], strict=True)]


def default_folder(spec: EvalSpec, entries: Sequence[Entry]) -> Path:
    """One folder for each evaluation, so that the same command again goes on with it."""
    asked = [
        [e.model.url, e.model.name] if isinstance(e.model, ServedModel)
        else [e.model.model, e.model.adapter, *([e.model.quantize] if e.model.quantize else [])]
        for e in entries
    ]  # fmt: skip
    told = spec.model_dump(exclude={"quick"})
    what = json.dumps([told, *(asked if len(asked) > 1 else asked[0])], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    name = entries[0].name if len(entries) == 1 else f"{len(entries)}-arms"
    return Path("runs") / "eval" / f"{spec.task.name}--{name}--{digest}"
