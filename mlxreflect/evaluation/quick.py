"""`eval --quick`: two models side by side, until the evidence decides between them.

Both answer the same questions in the same shuffled order, a chunk at a time. After each chunk the
e-process of `sequential` is looked at; at 1/alpha or more the difference is real, however often one
looked. Each chunk is appended whole, so a quick evaluation that was killed goes on with the same
bytes and comes to the same end.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import EvalSpec, PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows, read_rows, write_atomic
from mlxreflect.core.records import Problem
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.arms import (
    continue_only,
    describe_setup,
    fingerprint,
    sample_row,
    short_hash,
    whole_chunks,
)
from mlxreflect.evaluation.evaluate import ask_all, eval_problems, grade_sample
from mlxreflect.evaluation.runner import Entry, replaces_weights
from mlxreflect.models.load import adapted, load_policy
from mlxreflect.models.policy import Completion, Policy
from mlxreflect.stats.sentences import level, points
from mlxreflect.stats.sequential import anytime_interval, evidence
from mlxreflect.tasks import check_exam, find_rules, get_task
from mlxreflect.tasks.base import Task, load_shots

LARGEST = 1e300  # of the evidence that is written down: JSON has no infinity


@dataclass(frozen=True)
class Answerer:
    """One side. policy: loaded with what config says, but for a LoRA adapter."""

    name: str
    policy: Policy
    config: PolicyConfig
    loaded: PolicyConfig

    def generate(
        self, prompts: Sequence[list[int]], spec: EvalSpec, start: int
    ) -> list[Completion]:
        bare = self.config == self.loaded
        with nullcontext() if bare else adapted(self.policy, self.config):
            return self.policy.generate(
                prompts,
                temperature=spec.temperature,
                top_p=spec.top_p,
                max_new_tokens=spec.max_new_tokens,
                batch=spec.batch,
                seed=("quick", spec.seed, start),
                samples=spec.samples,
                stop=spec.stop,
            )


@dataclass(frozen=True)
class Look:
    """What is known after some of the questions. means: of each question, of both sides."""

    means: list[tuple[float, float]]
    evidence: float

    @property
    def counts(self) -> Counter[float]:
        return Counter(b - a for a, b in self.means)

    def accuracy(self, side: int) -> float:
        return sum(pair[side] for pair in self.means) / len(self.means)

    @property
    def difference(self) -> float:
        return self.accuracy(1) - self.accuracy(0)


def quick_eval(
    spec: EvalSpec, entries: Sequence[Entry], out: Path | None, ui: Ui
) -> dict[str, Any]:
    """`mlxreflect eval --quick`: load both, and ask until it is decided.

    entries: of `lineup.line_up`, the baseline first. Raises UserError.
    """
    check_exam(spec)
    task = get_task(spec.task.name)
    problems = eval_problems(task, spec)
    folder = out or default_folder(spec, entries)
    pair = load_answerers(entries)
    ui.header({"evaluating": spec.name or spec.task.name,
               "base": pair[0].name, "trained": pair[1].name,
               "questions": f"at most {at_most(spec, problems)}", "out": str(folder)})  # fmt: skip
    return ask_until_decided(pair, task, problems, spec, folder, ui=ui)


def at_most(spec: EvalSpec, problems: Sequence[Problem]) -> int:
    return min(spec.quick.max_n or len(problems), len(problems))


def load_answerers(entries: Sequence[Entry]) -> list[Answerer]:
    """Both sides ready to answer; what differs by a LoRA adapter alone is in memory once."""
    configs = [e.model for e in entries if isinstance(e.model, PolicyConfig)]
    if len(configs) != 2 or len(entries) != 2:
        raise UserError(
            f"--quick sets two models side by side, not {len(entries)}, and none behind a server",
            "give one --model and its --adapter, or two models",
        )
    policies: dict[PolicyConfig, Policy] = {}
    answerers = []
    for entry, config in zip(entries, configs, strict=True):
        plain = config.model_copy(update={"adapter": ""})
        loaded = config if replaces_weights(config) else plain
        if loaded not in policies:
            policies[loaded] = load_policy(loaded)
        answerers.append(Answerer(entry.name, policies[loaded], config, loaded))
    return answerers


def ask_until_decided(
    pair: Sequence[Answerer],
    task: Task,
    problems: Sequence[Problem],
    spec: EvalSpec,
    out: Path,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Ask chunk by chunk, going on with what is in `out`; returns (and writes) quick.json.

    A chunk is a batch of each side: looking more often would waste time, less often questions.
    What is answered in it does not depend on quick.max_n, but that it may cut the last one.
    """
    alpha, most = spec.quick.alpha, at_most(spec, problems)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}", "give another --out") from None
    asked = ask_all(task, problems, spec, load_shots(task, spec))
    tokens = [[one.policy.encode(each) for each in asked] for one in pair]
    setup = {
        side: {**describe_setup(one.policy, spec, problems, asked, mark(one.config)),
               "token_hash": short_hash(prompts)}
        for side, one, prompts in zip("ab", pair, tokens, strict=True)
    }  # fmt: skip
    continue_only(out, {"quick": {"alpha": alpha}, **setup})
    path, size = out / "quick.jsonl", -(-spec.batch // spec.samples)
    rows = 2 * spec.samples  # of a question
    kept = whole_chunks(path, size * rows, most * rows)
    known = list(islice(read_rows(path), kept)) if kept else []
    look, n = Look([], 1.0), 0
    with ui.progress("asking", most) as bar:
        while n < most and look.evidence < 1 / alpha:
            chunk = range(n, min(n + size, most))
            if len(known) < chunk.stop * rows:
                new = [
                    row
                    for one, prompts in zip(pair, tokens, strict=True)
                    for row in answer(one, task, problems, prompts, spec, chunk)
                ]
                new.sort(key=itemgetter("index"))  # a question's rows together, of both sides
                append_rows(path, new)
                known += new
            look, n = take_look(known[: chunk.stop * rows], pair), chunk.stop
            bar.update_text(interim(look))
            bar.advance(len(chunk))
    result = {**conclude(look, pair, alpha, most, len(problems)), "setup": setup}
    write_atomic(out / "quick.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def answer(
    one: Answerer,
    task: Task,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    spec: EvalSpec,
    chunk: range,
) -> Iterator[dict[str, Any]]:
    """One side's rows of a chunk: samples that say whose they are and of which question."""
    grader = find_rules(task, spec.rules, spec.task.answer_type)[1]
    completions = one.generate(prompts[chunk.start : chunk.stop], spec, chunk.start)
    for i, completion in enumerate(completions):
        index = chunk.start + i // spec.samples
        sample = grade_sample(grader, problems[index], i % spec.samples, completion, spec)
        yield {**sample_row(sample), "schema": "quick-sample/1", "arm": one.name, "index": index}


def mark(config: PolicyConfig) -> str:
    """What an adapter is known by, and the bits that the model is quantised to."""
    adapter = fingerprint(Path(config.adapter)) if config.adapter else ""
    return f"{adapter} {config.quantize} bit".strip() if config.quantize else adapter


def take_look(rows: Sequence[dict[str, Any]], pair: Sequence[Answerer]) -> Look:
    """What these rows say: each question's share of right samples, and the evidence in them."""
    right: dict[int, dict[str, list[bool]]] = {}
    for row in rows:
        right.setdefault(row["index"], {}).setdefault(row["arm"], []).append(row["correct"])
    sides = ([sum(one[arm.name]) / len(one[arm.name]) for one in right.values()] for arm in pair)
    means = list(zip(*sides, strict=True))
    return Look(means, evidence(Counter(b - a for a, b in means)))


def interim(look: Look) -> str:
    """An estimate, and no p-value: that would be wrong for whoever stops at it."""
    return (
        f"{look.accuracy(0):.1%} and {look.accuracy(1):.1%} so far, {points(look.difference)} "
        f"points, E = {look.evidence:.3g}"
    )


def conclude(
    look: Look, pair: Sequence[Answerer], alpha: float, most: int, there: int
) -> dict[str, Any]:
    """The record `quick/1`: what was decided, after how many questions, and how sure it is.

    most: questions that it might have asked; there: questions of the spec.
    """
    counts, n = look.counts, len(look.means)
    low, high = anytime_interval(counts, alpha)
    decided = look.evidence >= 1 / alpha
    decision = "undecided" if not decided else "better" if look.difference > 0 else "worse"
    result = {
        "schema": "quick/1",
        "a": pair[0].name,
        "b": pair[1].name,
        "n": n,
        "of": most,
        "saved": most - n,
        "decision": decision,
        "e_value": min(look.evidence, LARGEST),
        "threshold": 1 / alpha,
        "alpha": alpha,
        "accuracy_a": look.accuracy(0),
        "accuracy_b": look.accuracy(1),
        "gains": sum(times for d, times in counts.items() if d > 0),
        "losses": sum(times for d, times in counts.items() if d < 0),
        "difference": look.difference,
        "ci_low": low,
        "ci_high": high,
    }
    return {**result, "sentence": sentence(result, more=most < there)}


def sentence(r: dict[str, Any], *, more: bool) -> str:
    """more: whether the spec has questions that might still be asked."""
    begin = (
        f"{r['b']} answers {r['accuracy_b']:.1%} of {r['n']} questions right, {r['a']} "
        f"{r['accuracy_a']:.1%}: {points(r['difference'])} points "
        f"(anytime-valid {level(r['alpha'])} interval {points(r['ci_low'])} to "
        f"{points(r['ci_high'])}; {r['gains']} gained, {r['losses']} lost; E = {r['e_value']:.3g})."
    )
    if r["decision"] == "undecided":
        return (
            f"{begin} Not decided after {r['n']} questions: E stayed below {r['threshold']:g}. "
            + ("A larger --max-n goes on from here." if more else "All questions were asked.")
        )
    return (
        f"{begin} {r['b']} is {r['decision']} than {r['a']}: E reached {r['threshold']:g}, which "
        f"between equals happens {100 * r['alpha']:.10g}% of the time at most, however often one "
        f"looks. {r['saved']} of {r['of']} questions saved. Stopping early overstates the "
        "difference; for its true size evaluate all questions."
    )


def default_folder(spec: EvalSpec, entries: Sequence[Entry]) -> Path:
    """One folder for each quick evaluation, so that the same command again goes on with it."""
    asked = [[str(entry.model), entry.name] for entry in entries]
    what = json.dumps([spec.model_dump(exclude={"quick": {"max_n"}}), asked], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    return Path("runs") / "quick" / f"{spec.task.name}--{digest}"
