"""Critics in this process: the policy itself, or another mlx-lm model beside it."""

from collections.abc import Callable, Sequence

from mlxreflect.config.schema import EFFORTS, CriticConfig, PolicyConfig
from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.http import no_words, strip_thought
from mlxreflect.models.load import load_policy
from mlxreflect.models.policy import Policy
from mlxreflect.train.network import Arrays, parameters


class SelfCritic(Critic):
    """The policy as its own critic: the same model and batching, dropout off.

    weights: trainable parameters that it has in this role; None: those that the policy has.
    """

    actor = "self"

    def __init__(
        self, policy: Policy, config: CriticConfig, batch: int, weights: Arrays | None = None
    ) -> None:
        self.policy, self.config, self.batch, self.weights = policy, config, batch, weights

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        with parameters(self.policy.model, self.weights or {}):
            return replies(self.policy, self.config, calls, self.batch, self.answered, own=True)


class LocalCritic(Critic):
    """A model by hub name or path, loaded when it is first needed; `concurrency` is its batch.

    hosts: that have it too, or each a part of it. Its replies are the same for the same calls, and
    free: they are not kept on disk.
    Raises UserError for a model that cannot be loaded.
    """

    def __init__(self, config: CriticConfig, hosts: Hosts = ALONE) -> None:
        self.config, self.hosts = config, hosts
        self.actor = f"local:{config.model}"
        self.model: Policy | None = None

    def preflight(self) -> None:
        if self.model is None:
            said = self.config.thinking
            how = (
                {"template": {"reasoning_effort": said}} if said in EFFORTS else {"thinking": said}
            )
            config = PolicyConfig.model_validate({"model": self.config.model, **how})
            self.model = load_policy(config, "critic", self.hosts)

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        if not calls:
            return []
        self.preflight()
        assert self.model is not None
        self.model.say = self.say
        return replies(
            self.model, self.config, calls, self.config.concurrency, self.answered, own=False
        )

    def close(self) -> None:
        self.model = None


def replies(
    model: Policy, config: CriticConfig, calls: Sequence[Call], batch: int,
    answered: Callable[[int], None], *, own: bool,
) -> list[Reply]:  # fmt: skip
    """Returns a reply a call; calls that are asked together have one temperature and one seed.

    own: the model is the policy, to which its thought and its tokens are of use.
    """
    if not calls:
        return []
    done = model.generate(
        [model.encode(call.messages) for call in calls],
        temperature=calls[0].heat(config.temperature),
        top_p=config.top_p,
        sampling=config,
        max_new_tokens=config.max_tokens,
        batch=batch,
        seed=("self" if own else "local", calls[0].seed),
        advance=answered,
    )
    made = []
    for one, call in zip(done, calls, strict=True):
        cut = one.finish_reason == "length"
        text = one.text if own else strip_thought(one.text, call, cut)
        empty = not text.strip()
        made.append(
            Reply(
                text,
                error=no_words(config.max_tokens, one.finish_reason) if empty else None,
                kind="empty" if empty else "",
                finish_reason=one.finish_reason,
                usage={"prompt": one.prompt_tokens, "completion": len(one.token_ids)},
                token_ids=one.token_ids if own else None,
            )
        )
    return made
