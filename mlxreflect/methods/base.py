"""What a method is to the loop: waves, one after the other, and a state that is committed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mlxreflect.config.schema import Recipe
from mlxreflect.core.records import Episode, Example, Problem
from mlxreflect.critics.base import Critic
from mlxreflect.methods.learning import Learning
from mlxreflect.models.policy import Policy
from mlxreflect.tasks.base import Task
from mlxreflect.train.trainer import Step, Trainer


class Hands(NamedTuple):
    """What the loop hands to a method. problems: by id."""

    recipe: Recipe
    task: Task
    policy: Policy
    trainer: Trainer
    critics: dict[str, Critic]
    problems: dict[str, Problem]


class Wave(Protocol):
    """What is played and committed together. A method's own class may hold more.

    epoch: from 1, 0 for a warm-up; a round, where a method has rounds. new_epoch: another epoch
    begins with it, so the adapter is kept as it is at the end of the one before.
    """

    @property
    def number(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def stage(self) -> str: ...
    @property
    def new_epoch(self) -> bool: ...


@dataclass(frozen=True)
class Played:
    """What a wave leaves behind: records and figures, to be committed together.

    arm: the policy is evaluated after the wave, beside base and trained, under this name.
    """

    episodes: list[Episode]
    examples: list[Example]
    steps: list[Step]
    figures: dict[str, Any]
    arm: str = ""


class Strategy(Protocol):
    """One method.

    state: a dataclass of JSON values, `epoch` among them; with the adapter, the optimizers and what
    `learning` holds it says all that a resumed run needs. status: told what is under way.
    """

    state: Any
    learning: Learning
    status: Callable[[str], None]

    def next_wave(self, *, ending: bool = False) -> Any | None:
        """The wave that follows the state, which is moved on; None at the end.

        ending: a limit of the recipe is reached. Only the training of what was collected follows.
        """

    def play(self, wave: Any) -> Played:
        """Attempts, critics, training."""
        ...

    def progress(self) -> tuple[int, int]:
        """Problems done and problems in all, for the bar."""
        ...
