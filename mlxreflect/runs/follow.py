"""A rank that is not the first: it holds models and trainers, and does what rank 0 orders.

Each order is a method of `Follower` of that name, which takes what came with it. Between two orders
only the post goes (`Hosts.post`). Nothing here writes a record.
"""

import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlxreflect.config.schema import CriticConfig, Fitting, PolicyConfig, Sampling
from mlxreflect.core.hosts import Hosts
from mlxreflect.core.liveness import beat_file
from mlxreflect.critics import open_for_rank_0
from mlxreflect.critics.post import Delegate
from mlxreflect.models.load import adapted, limit_memory, load_together, share_adapter
from mlxreflect.models.policy import Policy
from mlxreflect.train.hosts import BATCHES, FITTING, help_score
from mlxreflect.train.lora import attach
from mlxreflect.train.objectives import from_json
from mlxreflect.train.references import What
from mlxreflect.train.trainer import LRSchedule, Step, Trainer

Json = dict[str, Any]


def follow(hosts: Hosts) -> None:
    """Does what rank 0 orders until it says that all is done."""
    with ExitStack() as stack:
        Follower(hosts, stack).follow()


class Follower:
    """Follows rank 0's orders to the end. Raises UserError, as the first rank would.

    policies, configs, trainers: by the policy's number. adapter: what can be put on, and `worn`,
    what is on, by its number; 0: nothing. fits: of the trainers, those under way.
    """

    def __init__(self, hosts: Hosts, stack: ExitStack) -> None:
        self.hosts, self.stack = hosts, stack
        made = tempfile.TemporaryDirectory(prefix=f"{beat_file().stem}-")  # swept with that
        self.place = Path(stack.enter_context(made))
        self.policies: dict[int, Policy] = {}
        self.configs: dict[int, PolicyConfig] = {}
        self.trainers: dict[int, Trainer] = {}
        self.fits: dict[int, Generator[Step, None, None]] = {}
        self.wearing = stack.enter_context(ExitStack())
        self.adapter: PolicyConfig | None = None
        self.worn = 0
        limit_memory()

    def follow(self) -> None:
        while True:
            order: dict[str, Any] | None = self.hosts.meet()[0]
            if order is None:
                continue
            name = order.pop("do")
            if name == "end":
                return
            getattr(self, name)(**order)

    def goes_on(self, command: str) -> None:
        """Remembers the command that goes on, should rank 0 be gone."""
        self.hosts.goes_on(command)

    # ---- critics --------------------------------------------------------------------------------

    def critic(self, number: int, config: dict[str, Any], run_id: str) -> None:
        """Opens a critic, to make requests of rank 0."""
        if self.hosts.post is None:
            self.hosts.post = self.stack.enter_context(Delegate(self.hosts))
        assert isinstance(self.hosts.post, Delegate)
        open_for_rank_0(self.hosts.post, CriticConfig(**config), run_id)

    # ---- models ---------------------------------------------------------------------------------

    def load(self, number: int, policy: dict[str, Any], table: str, keep: list[int]) -> None:
        """Loads a model beside those that rank 0 still holds."""
        self.wear(0)
        for old in self.policies.keys() - set(keep):
            del self.policies[old], self.configs[old]
            self.trainers.pop(old, None)
            self.fits.pop(old, None)
        config = self.received(number, policy)
        self.configs[number] = config
        self.policies[number] = load_together(config, table, self.hosts, number)

    def received(self, number: int, policy: Mapping[str, Any]) -> PolicyConfig:
        """Returns a model's config; its adapter is a copy of rank 0's files."""
        config = PolicyConfig.model_validate(policy)
        files = share_adapter(self.hosts, config)
        if not files:
            return config
        folder = self.place / str(number)
        folder.mkdir()
        for name, data in files.items():
            (folder / Path(name).name).write_bytes(data)
        return config.model_copy(update={"adapter": str(folder)})

    def put_on(self, policy: int, number: int, config: dict[str, Any]) -> None:
        """Keeps an adapter, for the policy to wear where rank 0's wears it."""
        self.wear(0)
        if self.adapter:
            shutil.rmtree(self.adapter.adapter)
        self.adapter = self.received(number, config)

    def wear(self, number: int, policy: Policy | None = None) -> None:
        """Puts an adapter on a policy, or takes off what one wears."""
        if number == self.worn:
            return
        self.wearing.close()
        self.worn = number
        if policy and self.adapter and number:
            self.wearing.enter_context(adapted(policy, self.adapter))

    def generate(
        self, policy: int, puts_on: int, prompts: list[list[int]], sampling: dict[str, Any],
        **how: Any,
    ) -> None:  # fmt: skip
        """Writes its share of the completions of a call."""
        model = self.policies[policy]
        self.wear(puts_on, model)
        model.generate_shared(prompts, sampling=Sampling.model_validate(sampling), **how)

    # ---- training -------------------------------------------------------------------------------

    def attach(self, policy: int, train: dict[str, Any], seed: int) -> None:
        """Puts what is trained on a model, and makes its trainer."""
        config, model = self.configs[policy], self.policies[policy].model
        self.policies[policy].learns = True
        fitting = Fitting.model_validate(train)
        limit_memory(fitting.cache_limit_gb, fitting.wired_limit_gb)
        attach(model, fitting, seed, config.model, config.adapter)
        self.trainers[policy] = Trainer(model, hosts=self.hosts, number=policy)

    def trainer(self, number: int) -> Trainer:
        """Returns a trainer, whose model wears no other adapter."""
        self.wear(0)
        return self.trainers[number]

    def fit(
        self, number: int, objective: Json, config: Json, seed: list[int | str], lr: float | None,
        schedule: Json, start: int,
    ) -> None:  # fmt: skip
        """Begins a fit as rank 0 does; each of its steps is an order of its own.

        One that rank 0 has left ends with it.
        """
        self.fits[number] = self.trainer(number).train(
            from_json(objective), FITTING.validate_python(config), tuple(seed), lr,
            LRSchedule(**schedule), start,
        )  # fmt: skip

    def step(self, number: int) -> None:
        self.wear(0)
        next(self.fits[number])

    def compare(self, number: int, name: str) -> None:
        """Takes rank 0's weights and optimizer where its own are others."""
        self.trainer(number).compare(name)

    def measure(self, number: int, objective: Json | None, config: Json) -> None:
        """Measures items; objective: None where it is the last one again."""
        trainer = self.trainer(number)
        given = from_json(objective) if objective else trainer.measured
        assert given is not None
        trainer.measure(given, FITTING.validate_python(config))

    def score(self, number: int, batches: list[Any], what: What, keep_shared: bool) -> None:
        """Scores some of the batches, for rank 0."""
        trainer, items = self.trainer(number), BATCHES.validate_python(batches)
        network = trainer.understood([])
        help_score(self.hosts, network, trainer.trainable(), what, keep_shared, items)
