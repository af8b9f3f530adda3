"""Episode → Example. Pure, so training data can be rebuilt from episodes without a critic.

A training prompt is the attempt's own prompt: nothing a critic was shown gets into it. ReflectEvo's
builders stand in `reflected`.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from mlxreflect.config.methods import TracesConfig
from mlxreflect.core.records import Episode, Example, Messages, Turn
from mlxreflect.methods.quality import fits, quality_of
from mlxreflect.prompts.messages import ANSWER, open_working


def as_asked(turn: Turn, style: str) -> Turn:
    """A helped text as an attempt is asked for: in the style "direct" its answer alone."""
    span = turn.spans.get("answer")
    if style != "direct" or span is None:
        return turn
    alone = "".join((ANSWER[0], turn.text[slice(*span)].strip(), ANSWER[1]))
    return turn if alone == turn.text else replace(turn, text=alone, token_ids=None)


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


def r3_pairs(episode: Episode, style: str = "thinking") -> Iterator[Example]:
    """R³: each rewrite that passed, against the sample that opened its cycle."""
    by_index = {turn.index: turn for turn in episode.turns}
    for turn in episode.turns:
        if turn.role == "rewrite" and passed(turn):
            yield preference(episode, as_asked(turn, style), opener(by_index, turn))


def passed(turn: Turn) -> bool:
    return turn.verdict is not None and turn.verdict.passed


def rel_worked(
    episode: Episode, prompt: Messages, target: str, *, tags: str = "think", mistakes: bool = True
) -> Iterator[Example]:
    """REL: the accepted working of a problem, to be imitated as an answer to `prompt`.

    prompt: as an evaluation asks; that of the attempts is another. target: "working", with the
    errors that it found and mended; "tidied", the review's clean solution of it, where one passed.
    mistakes: false, what a continued working begins with is shown and not imitated. tags: of a
    thought.
    """
    solved = episode.outcome.solved_turn
    for turn in episode.turns:
        tidied = turn.role == "integrate" and turn.parent == solved
        wanted = tidied if target == "tidied" else turn.index == solved
        if solved is not None and wanted and passed(turn):
            went_on = turn.role == "continue" and not mistakes
            before = repeated(open_working(episode.turns[0].text, tags), turn.text)
            mask = f"from {before}" if went_on else "response"
            yield replace(completion(episode, turn), prompt=prompt, mask=mask)
            return  # one working a problem, however often it was tidied


def repeated(working: str, text: str) -> int:
    """How many characters of a text repeat what a working begins with, spacing aside."""
    left = (c for c in working if not c.isspace())
    end, wanted = 0, next(left, "")
    for i, character in enumerate(text):
        if character == wanted:
            end, wanted = i + 1, next(left, "")
        elif not character.isspace():
            break
    return end


def preflexor_pairs(episode: Episode, only_wrong: bool) -> Iterator[Example]:
    """PRefLexOR: a teacher's solution that passed, against the policy's own attempt.

    only_wrong: not where the attempt passed too, or nobody could say whether it did.
    """
    attempts = [turn for turn in episode.turns if turn.role == "attempt"]
    taught = [turn for turn in episode.turns if turn.role in ("answer", "ground")]
    for rejected, chosen in product(attempts, taught):
        wrong = rejected.verdict is not None and not rejected.verdict.passed
        differ = chosen.text != rejected.text
        if passed(chosen) and differ and (wrong or not only_wrong):
            yield replace(preference(episode, chosen, rejected), prompt=rejected.messages)


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
