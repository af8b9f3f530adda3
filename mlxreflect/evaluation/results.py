"""Figures of an evaluation's samples.

What could not be parsed is wrong and stays in the denominator. With several samples a question,
questions are the units: accuracy is the mean over questions of the mean over samples (avg@k).
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Sample, flat_from_row
from mlxreflect.stats import majority, mean_interval, pass_at_k, wilson

MUCH = 0.05  # of the answers cut off: then a figure says more of max_new_tokens than of the model
FAILED = "error"  # finish reason of a call that was given up


def summarise(path: Path) -> dict[str, Any]:
    """The keys of results.json that follow from the samples alone.

    pass_at, maj_at: only with several samples. failed: only where calls were given up.
    """
    samples: list[Sample] = [flat_from_row(Sample, row) for row in read_rows(path)]
    questions = [list(group) for _, group in groupby(samples, key=lambda s: s.problem_id)]
    means = [fmean(s.correct for s in question) for question in questions]
    each = len(questions[0])
    right = sum(s.correct for s in samples)
    low, high = wilson(right, len(samples)) if each == 1 else mean_interval(means)
    failed = sum(s.finish_reason == FAILED for s in samples)
    return {
        "schema": "results/1",
        "task": samples[0].task,
        "n": len(questions),
        "samples": each,
        "accuracy": right / len(samples),
        "ci_low": low,
        "ci_high": high,
        "strict_accuracy": fmean(s.correct and s.format_ok for s in samples),
        "format_rate": fmean(s.format_ok for s in samples),
        "parse_failures": sum(s.parsed is None for s in samples) - failed,
        "truncated": sum(s.finish_reason == "length" for s in samples),
        "tokens_mean": tokens_mean(samples),
        **mean_score(samples),
        **({"failed": failed} if failed else {}),
        **(several(questions) if each > 1 else {}),
    }


def mean_score(samples: Sequence[Sample]) -> dict[str, float]:
    """{"f1": the mean token F1}, where the rules have such a score."""
    scores = [s.score for s in samples if s.score is not None]
    return {"f1": sum(scores) / len(samples)} if scores else {}


def tokens_mean(samples: Sequence[Sample]) -> float | None:
    """Tokens an answer, of those whose number is known; None where none is (a silent server)."""
    counts = [len(s.token_ids) if s.tokens is None else s.tokens for s in samples
              if s.token_ids or s.tokens is not None]  # fmt: skip
    return fmean(counts) if counts else None


def several(questions: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    """pass@k for k = 1, 2, 4, … and all samples, and maj@k of all samples; mean over questions."""
    n = len(questions[0])
    ks = [*(2**i for i in range(n.bit_length()) if 2**i < n), n]
    right = [sum(s.correct for s in question) for question in questions]
    return {
        "pass_at": {str(k): fmean(pass_at_k(n, c, k) for c in right) for k in ks},
        "maj_at": {str(n): fmean(map(voted, questions))},
    }


def voted(question: Sequence[Sample]) -> bool:
    return majority([s.parsed for s in question], [s.correct for s in question])


def warnings(results: dict[str, Any]) -> list[str]:
    """What a person should know before believing the figures."""
    total, cut = results["n"] * results["samples"], results["truncated"]
    most, said = results["decoding"]["max_new_tokens"], []
    if cut > MUCH * total:
        said.append(
            f"warning: {cut} of {total} answers ({cut / total:.1%}) were cut off at "
            f"max_new_tokens = {most}; what they would have ended in is not known: raise it"
        )
    if failed := results.get("failed"):
        said.append(f"warning: {failed} of {total} answers are failed calls, counted as wrong")
    return said
