"""How good a trace is as an example of reasoning: four marks from 0 to 1, and which traces pass.

The marks come from a critic, or from rules that read nothing but the trace itself. Neither says
whether the answer is right: that is the grader's.
"""

import json
import re
from dataclasses import asdict, astuple, dataclass
from statistics import fmean

from mlxreflect.config.methods import TracesConfig
from mlxreflect.core.records import Turn

STEPS, WORDS = 3, 12  # a thought of so many steps and words is as deep as rules can tell
# Words of somebody who looks at his own work again.
CHECKS = ("check", "verif", "confirm", "wait", "actually", "let me see", "indeed", "makes sense",
          "substitut", "recompute", "mistake")  # fmt: skip
SENTENCE = re.compile(r"\n|(?<=[.!?;])\s")


@dataclass(frozen=True)
class Quality:
    """depth: worked out in steps. coherence: each follows from those before. verification: it
    looks at its own work again. completeness: it covers everything and ends in an answer."""

    depth: float
    coherence: float
    verification: float
    completeness: float

    @property
    def mean(self) -> float:
        return fmean(astuple(self))

    @property
    def least(self) -> float:
        least: float = min(astuple(self))
        return least


def by_rules(turn: Turn) -> Quality:
    """Marks of a graded trace: its steps and words, what it says twice, words of self-checking,
    its format and whether it ended by itself. Linear in its length."""
    start, end = turn.spans.get("think", [0, 0])
    thought = turn.text[start:end]
    steps = [" ".join(step.split()) for step in SENTENCE.split(thought) if step.strip()]
    lowered = thought.lower()
    whole = turn.verdict is not None and turn.verdict.format_ok
    return Quality(
        depth=(min(1, len(steps) / STEPS) + min(1, len(thought.split()) / WORDS)) / 2,
        coherence=len(set(steps)) / len(steps) if steps else 0.0,
        verification=float(any(word in lowered for word in CHECKS)),
        completeness=(whole + (turn.finish_reason != "length")) / 2,
    )


def fits(turn: Turn, quality: Quality | None, config: TracesConfig) -> bool:
    """Whether the filter lets a trace through. One without marks never passes.

    strict: right in the format asked for, and no mark below the threshold. lenient: right, and the
    mean of its marks not below.
    """
    if quality is None or turn.verdict is None or not turn.verdict.correct:
        return False
    if config.filter == "strict":
        return turn.verdict.format_ok and quality.least >= config.threshold
    return quality.mean >= config.threshold


def written(quality: Quality) -> str:
    """As a turn keeps it, in `parsed`."""
    return json.dumps({name: round(mark, 4) for name, mark in asdict(quality).items()})


def quality_of(turn: Turn) -> Quality | None:
    """The marks that a `score` turn gave; None where its call failed."""
    return None if turn.parsed is None else Quality(**json.loads(turn.parsed))
