"""What a wave's row of metrics.jsonl counts."""

from collections import Counter
from typing import Any

from mlxreflect.core.records import Episode, Turn


def count_wave(episodes: list[Episode]) -> dict[str, Any]:
    """Counts over a wave's episodes; first_correct and format_ok are of the first attempts."""
    roles = Counter(turn.role for e in episodes for turn in e.turns)
    attempts = ([turn for turn in e.turns if turn.role == "attempt"] for e in episodes)
    first = [turns[0] for turns in attempts if turns]
    return {
        "problems": len(episodes),
        "first_correct": sum(bool(t.verdict and t.verdict.correct) for t in first),
        "format_ok": sum(bool(t.verdict and t.verdict.format_ok) for t in first),
        "passed": sum(e.outcome.first_correct for e in episodes),
        "solved": sum(e.outcome.status in ("solved_first", "solved") for e in episodes),
        "rewrites": roles["rewrite"] + roles["continue"],
        "verifications": roles["verify"],
        "failures": dict(Counter(filter(None, map(failure, first)))),
    }


def failure(turn: Turn) -> str | None:
    """What kind of error an attempt made; None when it made none."""
    verdict = turn.verdict
    if verdict is None or verdict.passed:
        return None
    if turn.finish_reason == "length":
        return "truncated"
    if turn.parsed is None:
        return "no_answer"
    if verdict.correct:
        return "format"
    return "wrong_answer" if verdict.format_ok else "wrong_answer_and_format"
