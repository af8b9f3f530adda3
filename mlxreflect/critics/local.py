"""The policy as its own critic: the same model and batching, dropout off."""

from collections.abc import Sequence

from mlxreflect.critics.base import Call, Reply
from mlxreflect.policy import Policy
from mlxreflect.recipe import CriticConfig


class SelfCritic:
    def __init__(self, policy: Policy, config: CriticConfig, batch: int) -> None:
        self.policy = policy
        self.config = config
        self.batch = batch
        self.actor = "self"

    def preflight(self) -> None:
        pass

    def ask(self, calls: Sequence[Call]) -> list[Reply]:
        if not calls:
            return []
        completions = self.policy.generate(
            [self.policy.encode(call.messages) for call in calls],
            temperature=self.config.temperature,
            top_p=1.0,
            max_new_tokens=self.config.max_tokens,
            batch=self.batch,
            seed=("self", calls[0].seed),
        )
        return [
            Reply(
                c.text,
                error=None if c.text.strip() else "the policy wrote nothing",
                kind="" if c.text.strip() else "empty",
                finish_reason=c.finish_reason,
                usage={"prompt": c.prompt_tokens, "completion": len(c.token_ids)},
                token_ids=c.token_ids,
            )
            for c in completions
        ]

    def close(self) -> None:
        pass
