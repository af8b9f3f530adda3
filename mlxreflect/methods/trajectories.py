"""Stories: episodes in the making, and what becomes of the bucket list when they end."""

from dataclasses import dataclass, field, replace

from mlxreflect.config.schema import Recipe
from mlxreflect.core.records import Episode, Outcome, Problem, Turn
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.waves import State, Wave


@dataclass(eq=False)
class Story:
    """An episode in the making; only one thread at a time writes to it.

    opened: the sample that opened the present cycle. current: the text to improve, that sample or
    the last rewrite of it. tries: rounds of the present cycle. won: its rewrite that passed.
    winner: the last rewrite that passed in any cycle. solved: the turn that solved it.
    """

    problem: Problem
    turns: list[Turn] = field(default_factory=list)
    opened: Turn | None = None
    current: Turn | None = None
    tries: int = 0
    won: Turn | None = None
    winner: Turn | None = None
    solved: Turn | None = None

    def add(self, turn: Turn) -> Turn:
        turn = replace(turn, index=len(self.turns))
        self.turns.append(turn)
        return turn

    def open(self, turn: Turn) -> None:
        """Begin a cycle with a sample."""
        self.opened = self.current = turn
        self.tries, self.won = 0, None


def episode_of(story: Story, wave: Wave, recipe: Recipe) -> Episode:
    return Episode(
        recipe.strategy,
        wave.epoch,
        wave.number,
        story.problem,
        list(story.turns),
        outcome_of(story, wave, recipe),
    )


def outcome_of(story: Story, wave: Wave, recipe: Recipe) -> Outcome:
    first = bool(story.turns) and pairs.passed(story.turns[0])
    critiques = [turn for turn in story.turns if turn.role == "critique"]
    if first:
        return Outcome(True, 0, "solved_first", wave.tier)
    if story.solved:
        return Outcome(False, story.solved.index, "solved", wave.tier)
    if story.winner and recipe.r3.verifications == 0:
        return Outcome(False, None, "trained", wave.tier)
    if critiques and all(turn.error for turn in critiques):
        return Outcome(False, None, "failed", wave.tier)
    return Outcome(False, None, "bucket", wave.tier)


def keep_bucket(state: State, wave: Wave, story: Story, episode: Episode) -> None:
    """Move the bucket list on; a problem keeps the last winner it ever had."""
    bucket, pid = state.bucket, story.problem.id
    if wave.stage == "problems":
        state.first_correct += episode.outcome.first_correct
    if episode.outcome.status not in ("bucket", "failed"):
        bucket.pop(pid, None)
    elif story.winner:
        won = pairs.completion(episode, story.winner)
        bucket[pid] = {
            "prompt": won.prompt,
            "completion": won.completion,
            "completion_ids": won.completion_ids,
        }
    else:
        bucket.setdefault(pid, None)


def index(turn: Turn | None) -> int | None:
    return turn.index if turn else None
