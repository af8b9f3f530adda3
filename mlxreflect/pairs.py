"""Episode → Example. Pure, so training data can be rebuilt from episodes without a critic.

A training prompt is always the attempt's own prompt: nothing a critic was shown gets into it.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from mlxreflect.quality import fits, quality_of
from mlxreflect.records import Episode, Example, Messages, Turn
from mlxreflect.tables import TracesConfig

LEAKS = (
    "expected answer", "the answer was given", "answer given above", "as provided",
    "given answer", "provided answer", "previous attempt", "according to the feedback",
    "the hint",
)  # fmt: skip
MIN_WORKING = 2  # characters of thought; less only restates the answer


def leak(text: str, spans: dict[str, list[int]], style: str) -> str:
    """Why a rewrite gives away that it was helped, or has no working; empty when it does not."""
    lowered = text.lower()
    for phrase in LEAKS:
        if re.search(rf"\b{phrase}\b", lowered):  # not "has provided"
            return f"the rewrite says {phrase!r}"
    start, end = spans.get("think", [0, 0])
    if style == "thinking" and len(text[start:end].strip()) < MIN_WORKING:
        return "the rewrite only restates the answer"
    return ""


def withheld(said: str, gold: str | None) -> str:
    """What a critic says of an error, the expected answer taken out wherever it stands alone."""
    if not gold or not gold.strip():
        return said
    return re.sub(rf"(?<![\w.,]){re.escape(gold.strip())}(?![\w]|[.,]\d)", "…", said)


def preference(episode: Episode, chosen: Turn, rejected: Turn) -> Example:
    """chosen ≻ rejected, both as answers to the first attempt's prompt."""
    return Example(
        kind="preference",
        prompt=episode.turns[0].messages,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_ids=chosen.token_ids,
        rejected_ids=rejected.token_ids,
        source=source(episode, chosen, rejected),
    )


def completion(episode: Episode, turn: Turn, weight: float = 1.0) -> Example:
    """A text to imitate, as an answer to the first attempt's prompt."""
    return Example(
        kind="sft",
        prompt=episode.turns[0].messages,
        completion=turn.text,
        completion_ids=turn.token_ids,
        weight=weight,
        source=source(episode, turn),
    )


def source(episode: Episode, *turns: Turn) -> dict[str, object]:
    return {
        "problem": episode.problem.id,
        "epoch": episode.epoch,
        "wave": episode.wave,
        "turns": [turn.index for turn in turns],
    }


def r3_pairs(episode: Episode) -> Iterator[Example]:
    """R³: each rewrite that passed, against the sample that opened its cycle."""
    by_index = {turn.index: turn for turn in episode.turns}
    for turn in episode.turns:
        if turn.role == "rewrite" and turn.verdict and turn.verdict.passed:
            yield preference(episode, turn, opener(by_index, turn))


def rel_worked(
    episode: Episode, prompt: Messages, target: str, *, mistakes: bool = True
) -> Iterator[Example]:
    """REL: the accepted working of a problem, to be imitated as an answer to `prompt`.

    prompt: as an evaluation asks; that of the attempts is another. target: "working", with the
    errors that it found and mended; "tidied", the review's clean solution of it, where one passed.
    mistakes: false, what a continued working begins with is shown and not imitated.
    """
    solved = episode.outcome.solved_turn
    for turn in episode.turns:
        tidied = turn.role == "integrate" and turn.parent == solved
        wanted = tidied if target == "tidied" else turn.index == solved
        if solved is not None and wanted and turn.verdict and turn.verdict.passed:
            went_on = turn.role == "continue" and not mistakes
            before = len(shared(episode.turns[0].text, turn.text).rstrip())
            mask = f"from {before}" if went_on else "response"
            yield replace(completion(episode, turn), prompt=prompt, mask=mask)


def shared(one: str, other: str) -> str:
    """What two texts begin with."""
    pairs = zip(one, other, strict=False)
    return one[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]


def opener(by_index: dict[int, Turn], turn: Turn) -> Turn:
    """The policy's sample (attempt or verify) from which a chain of rewrites began."""
    while turn.role not in ("attempt", "verify"):
        assert turn.parent is not None  # every chain begins at a sample
        turn = by_index[turn.parent]
    return turn


def traces_kept(episode: Episode, config: TracesConfig) -> list[Example]:
    """ThinkingTraces, warm-up: the best traces that pass the filter, each text once."""
    marks = {turn.parent: quality_of(turn) for turn in episode.turns if turn.role == "score"}
    passed: dict[str, tuple[float, Turn]] = {}
    for turn in episode.turns:
        quality = marks.get(turn.index)
        if turn.role == "attempt" and quality and fits(turn, quality, config):
            passed.setdefault(turn.text, (quality.mean, turn))
    best = sorted(passed.values(), key=lambda one: -one[0])[: config.keep or None]
    return [completion(episode, turn) for _, turn in best]


def traces_group(episode: Episode, config: TracesConfig) -> Example | None:
    """ThinkingTraces, rounds: all answers with their rewards; None where the rewards are equal."""
    turns = [turn for turn in episode.turns if turn.role == "attempt"]
    rewards = [reward(turn, config) for turn in turns]
    if len(set(rewards)) < 2:
        return None
    return Example(
        kind="group",
        prompt=episode.turns[0].messages,
        completions=[turn.text for turn in turns],
        completions_ids=[turn.token_ids or [] for turn in turns],
        rewards=rewards,
        source=source(episode, *turns),
    )


def reward(turn: Turn, config: TracesConfig) -> float:
    """What a sample is worth, verifiably: its answer's weight and its format's."""
    if turn.verdict is None:
        return 0.0
    right, kept = turn.verdict.correct, turn.verdict.format_ok
    return config.reward_answer * right + config.reward_format * kept


def trl_preference(example: Example) -> dict[str, object]:
    """TRL's conversational preference form."""
    return {
        "prompt": example.prompt,
        "chosen": answer(example.chosen),
        "rejected": answer(example.rejected),
    }


def trl_sft(example: Example) -> dict[str, object]:
    """TRL's conversational prompt-completion form."""
    return {
        "prompt": example.prompt,
        "completion": answer(example.completion),
    }


def answer(text: str | None) -> Messages:
    """An assistant's message."""
    return [{"role": "assistant", "content": whole(text or "")}]


def whole(text: str) -> str:
    """Half a character (a lone surrogate) becomes �: for one, other readers give a file up."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
