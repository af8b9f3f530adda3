"""Critics in this process: the policy itself, or another mlx-lm model beside it."""

from collections.abc import Sequence

from mlxreflect.config.schema import CriticConfig, PolicyConfig
from mlxreflect.critics.base import Call, Reply
from mlxreflect.critics.http import strip_thought
from mlxreflect.models.load import load_policy
from mlxreflect.models.policy import Completion, Policy
from mlxreflect.training.network import Arrays, parameters


class SelfCritic:
    """The policy as its own critic: the same model and batching, dropout off.

    weights: trainable parameters that it has in this role; None: those that the policy has.
    """

    waits = False

    def __init__(
        self, policy: Policy, config: CriticConfig, batch: int, weights: Arrays | None = None
    ) -> None:
        self.policy = policy
        self.config = config
        self.batch = batch
        self.weights = weights
        self.actor = "self"

    def preflight(self) -> None:
        pass

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        with parameters(self.policy.model, self.weights or {}):
            done = complete(self.policy, self.config, calls, self.batch, "self")
        return [reply(one, one.text, one.token_ids) for one in done]

    def close(self) -> None:
        pass


class LocalCritic:
    """A model by hub name or path, loaded when it is first needed; `concurrency` is its batch.

    Its replies are the same for the same calls, and free: they are not kept on disk.
    Raises UserError for a model that cannot be loaded.
    """

    waits = False

    def __init__(self, config: CriticConfig) -> None:
        self.config = config
        self.actor = f"local:{config.model}"
        self.model: Policy | None = None

    def preflight(self) -> None:
        self.load()

    def load(self) -> Policy:
        if self.model is None:
            self.model = load_policy(PolicyConfig(model=self.config.model), "critic")
        return self.model

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        if not calls:
            return []
        done = complete(self.load(), self.config, calls, self.config.concurrency, "local")
        texts = [strip_thought(one.text, call) for one, call in zip(done, calls, strict=True)]
        return [reply(one, text) for one, text in zip(done, texts, strict=True)]

    def close(self) -> None:
        self.model = None


def complete(
    model: Policy, config: CriticConfig, calls: Sequence[Call], batch: int, name: str
) -> list[Completion]:
    """Returns a completion a call; name and the first call's seed name the random stream.

    Calls that are asked together have one temperature.
    """
    if not calls:
        return []
    return model.generate(
        [model.encode(call.messages) for call in calls],
        temperature=calls[0].heat(config.temperature),
        top_p=1.0,
        max_new_tokens=config.max_tokens,
        batch=batch,
        seed=(name, calls[0].seed),
    )


def reply(done: Completion, text: str, token_ids: list[int] | None = None) -> Reply:
    return Reply(
        text,
        error=None if text.strip() else "the model wrote nothing",
        kind="" if text.strip() else "empty",
        finish_reason=done.finish_reason,
        usage={"prompt": done.prompt_tokens, "completion": len(done.token_ids)},
        token_ids=token_ids,
    )
