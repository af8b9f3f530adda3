"""`eval --quick`: two models side by side, until the evidence decides between them.

Both answer the same problems in the same shuffled order, a chunk at a time, in the one loop of
`evaluate`. After each chunk comes a look at the e-process of `stats`; at 1/alpha or more
the difference is real, however often one looked.
"""

import json
from collections import Counter
from collections.abc import Generator as Chunks
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from mlxreflect.core.journal import write_atomic
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.arms import open_arm
from mlxreflect.evaluation.evaluate import (
    SILENT,
    Bar,
    Generator,
    ProblemSet,
    Row,
    answer_chunks,
    describe_setup,
)
from mlxreflect.evaluation.generators import LocalGenerator, LocalModel
from mlxreflect.stats import anytime_interval, evidence, level, points

LARGEST = 1e300  # of the evidence that is written down: JSON has no infinity


class SideBySide(Generator):
    """A generator of two: each chunk is a batch of one model, then a batch of the other.

    models: by the names of their arms, the baseline first. Looking more often than after a batch
    would waste time, less often problems. quick.max_n changes no answer; it may cut the last chunk.
    """

    file = "quick.jsonl"

    def __init__(self, models: dict[str, LocalModel], asked: ProblemSet) -> None:
        super().__init__(asked)
        self.names, spec = list(models), asked.spec
        self.at_once = -(-spec.batch // spec.samples)
        self.sides = [
            LocalGenerator(model, asked, at_once=self.at_once, purpose="quick")
            for model in models.values()
        ]
        self.most = min(spec.quick.max_n or len(asked.problems), len(asked.problems))
        self.rows = 2 * spec.samples  # of a problem
        self.size, self.total = self.at_once * self.rows, self.most * self.rows

    def setup(self) -> dict[str, Any]:
        return {letter: describe_setup(one) for letter, one in zip("ab", self.sides, strict=True)}

    def chunks(self, first: int, out: Path, bar: Bar) -> Chunks[list[Row]]:
        for start in range(first // self.rows, self.most, self.at_once):
            stop = min(start + self.at_once, self.most)
            rows = chain.from_iterable(
                self.answer(name, side, start, stop)
                for name, side in zip(self.names, self.sides, strict=True)
            )
            yield sorted(rows, key=itemgetter("index"))  # a problem's rows together, of both sides

    def answer(self, name: str, side: LocalGenerator, start: int, stop: int) -> list[Row]:
        """Returns one side's samples, which say whose they are and of which problem."""
        with side.model.weights():
            rows = side.answer(start, stop, SILENT)
        return [
            {**row, "schema": "quick-sample/1", "arm": name,
             "index": start + i // self.asked.spec.samples}
            for i, row in enumerate(rows)
        ]  # fmt: skip


@dataclass(frozen=True)
class Look:
    """The evidence after some problems. means: each one's share of right samples, of both sides."""

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


def ask_until_decided(
    models: dict[str, LocalModel], asked: ProblemSet, out: Path, ui: Ui
) -> dict[str, Any]:
    """Asks until it is decided, going on with what is in `out`; returns (and writes) quick.json.

    models: by the names of their arms, the baseline first. Raises UserError.
    """
    alpha = asked.spec.quick.alpha
    pair = SideBySide(models, asked)
    setup = pair.setup()
    known: list[Row] = []
    with (
        open_arm(out, {"quick": {"alpha": alpha}, **setup}, [], []),  # samples tell the problems
        ui.progress("asking", pair.most) as bar,
        closing(answer_chunks(out, pair, SILENT)) as chunks,
    ):
        for rows in chunks:
            known += rows
            look = take_look(known, pair.names)
            # An estimate, and no p-value: that would be wrong for whoever stops at it.
            bar.update_text(
                f"{look.accuracy(0):.1%} and {look.accuracy(1):.1%} so far, "
                f"{points(look.difference)} points, E = {look.evidence:.3g}"
            )
            bar.advance(len(rows) // pair.rows)
            if look.evidence >= 1 / alpha:
                break
        result = {
            **conclude(look, pair.names, alpha, pair.most, len(asked.problems)),
            "setup": setup,
        }
        write_atomic(out / "quick.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        return result


def take_look(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Look:
    """Returns each problem's share of right samples, and the evidence in these rows."""
    right: dict[int, dict[str, list[bool]]] = {}
    for row in rows:
        right.setdefault(row["index"], {}).setdefault(row["arm"], []).append(row["correct"])
    sides = ([sum(one[name]) / len(one[name]) for one in right.values()] for name in names)
    means = list(zip(*sides, strict=True))
    return Look(means, evidence(Counter(b - a for a, b in means)))


def conclude(
    look: Look, names: Sequence[str], alpha: float, most: int, there: int
) -> dict[str, Any]:
    """Returns the record `quick/1`: the decision, after how many problems, and how sure it is.

    most: problems that it might have asked; there: problems of the spec.
    """
    counts, n = look.counts, len(look.means)
    low, high = anytime_interval(counts, alpha)
    decided = look.evidence >= 1 / alpha
    decision = "undecided" if not decided else "better" if look.difference > 0 else "worse"
    result = {
        "schema": "quick/1", "a": names[0], "b": names[1], "n": n, "of": most, "saved": most - n,
        "decision": decision, "e_value": min(look.evidence, LARGEST), "threshold": 1 / alpha,
        "alpha": alpha, "accuracy_a": look.accuracy(0), "accuracy_b": look.accuracy(1),
        "gains": sum(times for d, times in counts.items() if d > 0),
        "losses": sum(times for d, times in counts.items() if d < 0),
        "difference": look.difference, "ci_low": low, "ci_high": high,
    }  # fmt: skip
    return {**result, "sentence": sentence(result, more=most < there)}


def sentence(r: dict[str, Any], *, more: bool) -> str:
    """more: whether the spec has questions that might still be asked."""
    counted = (
        f"{r['b']} answers {r['accuracy_b']:.1%} of {r['n']} questions right, {r['a']} "
        f"{r['accuracy_a']:.1%}: {points(r['difference'])} points, {r['gains']} gained, "
        f"{r['losses']} lost."
    )
    evidence = (
        f"The evidence: E = {r['e_value']:.3g}, {r['threshold']:g} decides; {level(r['alpha'])} "
        f"interval {points(r['ci_low'])} to {points(r['ci_high'])} points, valid at every look."
    )
    if r["decision"] == "undecided":
        ends = "A larger --max-n goes on from here." if more else "All questions were asked."
        return f"Not decided after {r['n']} questions. {counted} {ends} {evidence}"
    return (
        f"{r['b']} is {r['decision']} than {r['a']}. {counted} {r['saved']} of {r['of']} questions "
        "saved. Stopping early overstates the difference; for its true size evaluate all "
        f"questions. Of equal models, at most {100 * r['alpha']:.10g}% would be told apart so. "
        f"{evidence}"
    )
