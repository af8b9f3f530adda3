"""Which problems come next: epochs over all of them, passes over the bucket list, mastery rounds.

Pure bookkeeping on a state that is committed with the adapter, so a resumed run takes the same
waves as one never stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlxreflect.config.schema import Recipe
from mlxreflect.core.seeds import rng_for
from mlxreflect.methods.plans import MAX_MASTERY_ROUNDS

Stage = Literal["problems", "bucket", "mastery"]
Tier = Literal["basic", "advanced"]


@dataclass
class State:
    """Where the strategy stands between two waves; committed with the adapter.

    bucket: problem id → its last winning rewrite, or None. queue: what is left of the pass over
    the bucket under way. since_bucket: problems since the last pass. first_correct: of this epoch.
    before: size of the bucket when the mastery round began; -1: no round under way. force: the
    round begins with forced SFT; forced: it began so.
    """

    epoch: int = 1
    cursor: int = 0
    wave: int = 0
    stage: Stage = "problems"
    bucket: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)
    since_bucket: int = 0
    first_correct: int = 0
    round: int = 0
    before: int = -1
    force: bool = False
    forced: bool = False
    last_winner: str | None = None


@dataclass(frozen=True)
class Wave:
    """Problems taken and committed together."""

    number: int
    epoch: int
    stage: Stage
    tier: Tier
    problems: list[str]
    new_epoch: bool = False
    force_sft: bool = False


def next_wave(state: State, problems: Sequence[str], recipe: Recipe) -> Wave | None:
    """The wave that follows `state` (whose bookkeeping it moves on), or None at the end."""
    config, size = recipe.r3, recipe.r3.wave
    new_epoch = state.cursor == 0 and state.wave == 0
    while True:
        if state.queue:
            taken, state.queue = state.queue[:size], state.queue[size:]
            force, state.force = state.force, False
            return Wave(state.wave, state.epoch, state.stage, "advanced", taken, new_epoch, force)
        if state.stage == "mastery":
            if not (config.until_mastered and begin_mastery_round(state)):
                return None
            continue
        ended = state.cursor >= len(problems)
        full = state.since_bucket >= config.bucket_every
        if config.bucket_every and state.since_bucket and (full or ended):
            state.stage, state.queue, state.since_bucket = "bucket", list(state.bucket), 0
            continue
        state.stage = "problems"
        if not ended:
            # A wave ends where a pass over the bucket is due.
            room = config.bucket_every - state.since_bucket if config.bucket_every else size
            order = list(problems)
            rng_for(recipe.seed, "order", state.epoch).shuffle(order)
            taken = order[state.cursor : state.cursor + min(size, room)]
            state.cursor += len(taken)
            state.since_bucket += len(taken)
            return Wave(state.wave, state.epoch, "problems", "basic", taken, new_epoch)
        mastered = state.first_correct == len(problems) and not state.bucket
        if mastered or state.epoch >= config.epochs:
            state.stage = "mastery"
        else:
            state.epoch, state.cursor, state.first_correct = state.epoch + 1, 0, 0
            new_epoch = True


def begin_mastery_round(state: State) -> bool:
    """A pass over the bucket, while it shrinks; a round without progress forces SFT, once."""
    stuck = state.before >= 0 and len(state.bucket) >= state.before
    if not state.bucket or state.round >= MAX_MASTERY_ROUNDS or (stuck and state.forced):
        return False
    state.force = state.forced = stuck
    state.round, state.before, state.queue = state.round + 1, len(state.bucket), list(state.bucket)
    return True
