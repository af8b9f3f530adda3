"""Examples of a wave → steps of the trainer, with the recipe's [train]."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mlx.utils import tree_unflatten

from mlxreflect.config.fields import GrpoConfig
from mlxreflect.config.schema import Recipe, TrainConfig
from mlxreflect.core.records import Example
from mlxreflect.methods.base import Seed
from mlxreflect.models.load import weights_hash
from mlxreflect.models.policy import Policy
from mlxreflect.train.batches import Group, Pair, Row
from mlxreflect.train.encode import Dropped, Encoder
from mlxreflect.train.lora import base_reference
from mlxreflect.train.network import Arrays
from mlxreflect.train.objectives import Objective, imitation
from mlxreflect.train.trainer import CONSTANT, LRSchedule, Step, Trainer

ADAPTER = "adapter-"  # what is held under such a name becomes a folder of the run
REFLECTOR = f"{ADAPTER}reflection"  # what the policy reflects with, where that is another


class Learning:
    """Trains the policy and remembers on what.

    held: parameters that are committed beside the adapter, by name: "reference" is what the policy
    was when the stage began; it lacks where there is no reference, or no stage has begun. Names
    that begin with ADAPTER are adapters, written beside the policy's when the run ends.
    start: parameters to begin from anew, kept where `keep_start` was told to.
    examples, steps, dropped: of the wave under way, and how many prompts were cut to fit. anew:
    what began anew before its steps, "reference" or "adapter".
    generated: tokens written before it.
    """

    def __init__(self, recipe: Recipe, policy: Policy, trainer: Trainer) -> None:
        self.recipe, self.policy, self.trainer = recipe, policy, trainer
        self.held: dict[str, Arrays] = {}
        self.start: Arrays = {}
        self.count: Callable[[str, int], None] = lambda what, n: None  # of steps made
        self.use(recipe.train)
        self.begin_wave()

    def use(self, train: TrainConfig) -> None:
        """Trains with these settings from now on, of a phase that has its own."""
        self.train = train
        tags, seed = self.recipe.prompt.tags, self.recipe.seed
        self.encoder = Encoder(self.policy, train.max_length, train.mask, tags, seed)

    def begin_wave(self) -> None:
        self.examples: list[Example] = []
        self.steps: list[Step] = []
        self.anew: list[str] = []
        self.dropped: Counter[str] = Counter()
        self.cut = 0
        self.generated = self.policy.tokens_generated
        self.name_policy()

    def begin_stage(self) -> None:
        """Makes the policy as it is the reference, or as it was without its adapter."""
        self.anew.append("reference")
        if self.train.reference == "stage":
            self.held["reference"] = dict(self.trainer.trainable())
        elif self.train.reference == "base":
            self.held["reference"] = base_reference(self.policy.model)

    def keep_start(self) -> None:
        """Remembers what is trained as it is now, before any step, for `restart`."""
        self.start = dict(self.trainer.trainable())

    def restart(self) -> None:
        """Puts the policy and its training back to where the run began."""
        self.anew.append("adapter")
        self.trainer.model.update(tree_unflatten(list(self.start.items())))
        self.trainer.optimizers.clear()
        self.trainer.steps.clear()
        self.name_policy()

    def name_policy(self) -> None:
        self.actor = f"policy:{weights_hash(self.trainer.trainable())}"

    def prefer(
        self, examples: Sequence[Example], seed: Seed, schedule: LRSchedule = CONSTANT
    ) -> None:
        """Trains on preference pairs with DPO, or what train.objective says."""
        pairs = [row for row in self.encode(examples) if isinstance(row, Pair)]
        reference, train = self.held.get("reference"), self.train
        objective = self.trainer.pair_objective(pairs, reference, train, train.objective)
        self.fit(objective, seed, train.lr, schedule)

    def imitate(
        self, examples: Sequence[Example], scale: float, seed: Seed, schedule: LRSchedule = CONSTANT
    ) -> None:
        """Trains by SFT with a learning rate of train.sft.lr × scale."""
        if not examples or scale == 0:
            return
        rows = [row for row in self.encode(examples) if isinstance(row, Row)]
        self.fit(imitation(rows), seed, self.train.sft.lr * scale, schedule)

    def reinforce(self, examples: Sequence[Example], grpo: GrpoConfig, seed: Seed) -> None:
        """Trains by GRPO on groups that the policy as it is has written."""
        groups = [row for row in self.encode(examples) if isinstance(row, Group)]
        reference = self.held.get("reference")
        objective = self.trainer.group_objective(groups, reference, self.train, grpo)
        self.fit(objective, seed, self.train.lr)

    def fit(
        self, objective: Objective, seed: Seed, lr: float, schedule: LRSchedule = CONSTANT
    ) -> None:
        for step in self.trainer.train(objective, self.train, seed, lr, schedule):
            self.steps.append(step)
            self.count("steps", 1)
        self.name_policy()

    def encode(self, examples: Sequence[Example]) -> list[Row | Pair | Group]:
        kept: list[Row | Pair | Group] = []
        for example in examples:
            row = self.encoder.encode(example)
            if isinstance(row, Dropped):
                self.dropped[row.reason] += 1
            else:
                self.examples.append(example)
                kept.append(row)
                self.cut += row.cut > 0
        return kept

    def figures(self) -> dict[str, Any]:
        """Returns figures of the wave's training and of what the policy wrote in it."""
        return {
            "pairs": sum(example.kind == "preference" for example in self.examples),
            "dropped": dict(self.dropped),
            "cut_prompts": self.cut,
            "tokens_trained": sum(step.tokens for step in self.steps),
            "tokens_generated": self.policy.tokens_generated - self.generated,
            **({"anew": self.anew} if self.anew else {}),
        }
