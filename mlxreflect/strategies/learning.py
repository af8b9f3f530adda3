"""Examples of a wave → steps of the trainer, with the recipe's settings."""

from collections import Counter
from collections.abc import Sequence

from mlxreflect.policy import Policy, weights_hash
from mlxreflect.recipe import Recipe
from mlxreflect.records import Example
from mlxreflect.train.batches import Dropped, Pair, Row, encode_example
from mlxreflect.train.lora import base_reference
from mlxreflect.train.trainer import Arrays, Settings, Step, Trainer

Seed = tuple[int | str, ...]


class Learning:
    """Trains the policy and remembers on what.

    reference: trainable parameters of the reference policy; None: none, or no stage has begun.
    examples, steps, dropped: of the wave under way.
    """

    def __init__(self, recipe: Recipe, policy: Policy, trainer: Trainer) -> None:
        self.recipe, self.policy, self.trainer = recipe, policy, trainer
        self.reference: Arrays | None = None
        self.begin_wave()

    def begin_wave(self) -> None:
        self.examples: list[Example] = []
        self.steps: list[Step] = []
        self.dropped: Counter[str] = Counter()
        self.name_policy()

    def begin_stage(self) -> None:
        """What the policy is now becomes the reference, or what it was without its adapter."""
        if self.recipe.train.reference == "stage":
            self.reference = dict(self.trainer.trainable())
        elif self.recipe.train.reference == "base":
            self.reference = base_reference(self.policy.model)

    def name_policy(self) -> None:
        self.actor = f"policy:{weights_hash(self.trainer.trainable())}"

    def prefer(self, examples: Sequence[Example], seed: Seed) -> None:
        """DPO on preference pairs."""
        encoded = [row for row in self.encode(examples) if isinstance(row, Pair)]
        settings = self.settings(self.recipe.train.lr)
        self.steps += self.trainer.fit_pairs(encoded, self.reference, settings, seed)
        self.name_policy()

    def imitate(self, examples: Sequence[Example], scale: float, seed: Seed) -> None:
        """SFT with a learning rate of train.sft.lr × scale."""
        if not examples or scale == 0:
            return
        rows = [row for row in self.encode(examples) if isinstance(row, Row)]
        settings = self.settings(self.recipe.train.sft.lr * scale)
        self.steps += self.trainer.fit_rows(rows, settings, seed)
        self.name_policy()

    def encode(self, examples: Sequence[Example]) -> list[Row | Pair]:
        kept: list[Row | Pair] = []
        for example in examples:
            row = encode_example(self.policy, example, self.recipe.train.max_length)
            if isinstance(row, Dropped):
                self.dropped[row.reason] += 1
            else:
                self.examples.append(example)
                kept.append(row)
        return kept

    def settings(self, lr: float) -> Settings:
        train = self.recipe.train
        return Settings(
            lr=lr,
            batch=train.batch,
            accumulate=train.accumulate,
            epochs=train.epochs,
            beta=train.beta,
            logps=train.logps,
            nll=train.nll,
            dpo=train.dpo,
            clip=train.clip,
            warmup=train.warmup,
            weight_decay=train.weight_decay,
            grad_checkpoint=train.grad_checkpoint,
        )
