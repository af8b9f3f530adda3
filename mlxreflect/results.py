"""Figures of an evaluation's samples.

What could not be parsed is wrong and stays in the denominator. With several samples a question,
questions are the units: accuracy is the mean over questions of the mean over samples (avg@k).
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mlxreflect.records import Sample, flat_from_row, read_rows
from mlxreflect.stats import Interval, pass_at_k, quantile, wilson

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
    low, high = wilson(right, len(samples)) if each == 1 else clustered_mean(means)
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
        **({"failed": failed} if failed else {}),
        **(several(questions) if each > 1 else {}),
    }


def clustered_mean(means: Sequence[float], alpha: float = 0.05) -> Interval:
    """Normal interval of the mean over questions, with the error clustered by question.

    means: of each question over its samples (Miller 2024, arXiv 2411.00640).
    """
    if len(means) < 2:  # one question says nothing of the others
        return 0.0, 1.0
    centre = fmean(means)
    half = quantile(1 - alpha / 2) * stdev(means) / math.sqrt(len(means))
    return max(0.0, centre - half), min(1.0, centre + half)


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
        "maj_at": {str(n): fmean(majority(question) for question in questions)},
    }


def majority(question: Sequence[Sample]) -> bool:
    """Whether the answer given most often is right; of several such, the one given first counts.

    Samples without an answer that could be read have no vote; without any vote it is wrong.
    """
    votes = Counter(s.parsed for s in question if s.parsed is not None)
    if not votes:
        return False
    (chosen, _), *_ = votes.most_common(1)  # equal counts stand in the order they were first seen
    return next(s.correct for s in question if s.parsed == chosen)


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
