"""Rounds of recursive inference: the policy answers, a critic looks, all chains in lock-step.

Every answer of a round is generated in one batch. What is asked next and when a chain stops stands
in `recursion`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mlxreflect import prompts, texts
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.local import SelfCritic
from mlxreflect.policy import Completion, Policy
from mlxreflect.prompts import TAGS, parse_response
from mlxreflect.records import Messages, Problem, Turn
from mlxreflect.recursion import (
    GIVEN,
    SELF,
    Chain,
    correct,
    failed_steps,
    next_opening,
    satisfied,
)
from mlxreflect.seeds import seed_for
from mlxreflect.tables import ChainConfig, CriticConfig, EvalSpec
from mlxreflect.tasks.base import Grader, Task
from mlxreflect.train.network import Arrays

Seed = tuple[int | str, ...]
AnswerRole = Literal["attempt", "continue", "retry", "integrate"]


@dataclass(frozen=True)
class Ask:
    """What the policy is to answer. opening: of its answer. banned: texts that do not follow it."""

    chain: Chain
    role: AnswerRole
    messages: Messages
    opening: str = ""
    banned: tuple[str, ...] = ()


class Rounds:
    """Plays chains of an evaluation's `[chain]`.

    critic: whose feedback it is; None where nobody gives any. grader: by its verdict gated chains
    stop, and it is nobody's feedback.
    """

    def __init__(
        self, policy: Policy, task: Task, spec: EvalSpec, grader: Grader, critic: Critic | None
    ) -> None:
        self.policy, self.task, self.spec, self.grader = policy, task, spec, grader
        self.config: ChainConfig = spec.chain
        self.critic = critic
        self.tags = spec.prompt.tags
        self.templates = texts.BUNDLED.replaced(spec.prompt.templates)

    def play(
        self,
        problems: Sequence[Problem],
        seed: Seed,
        told: Callable[[str], None] | None = None,
    ) -> list[Chain]:
        """Chains of these problems, in their order. told: which round is under way."""
        chains = [Chain(problem) for problem in problems]
        self.answer([Ask(c, "attempt", self.attempt(c.problem)) for c in chains], (*seed, 1))
        for number in range(2, self.config.rounds + 1):
            if not open_chains(chains):
                break
            if told:
                told(f"round {number}: {len(open_chains(chains))} open")
            self.look(open_chains(chains), seed, number)
            asks = [self.next_ask(chain, number) for chain in open_chains(chains)]
            self.answer(asks, (*seed, number))
        if self.config.integrate:
            several = [c for c in open_chains(chains) if len(c.answers) > 1]
            self.answer([self.merge(chain) for chain in several], (*seed, "integrate"))
        return chains

    # ---- the policy -----------------------------------------------------------------------------

    def attempt(self, problem: Problem) -> Messages:
        asked, shown = self.task.instruction(problem), self.task.show(problem)
        style = self.spec.prompt.style
        return prompts.attempt_messages(asked, shown, self.tags, style, self.templates)

    def next_ask(self, chain: Chain, number: int) -> Ask:
        """The prompt of a further answer."""
        config, problem, last = self.config, chain.problem, chain.answers[-1]
        if config.round == "retry":
            asked, shown = self.task.instruction(problem), self.task.show(problem)
            said = chain.turns[-1]
            heard = (
                said.text if said.role in ("critique", "reflection") and not said.error else None
            )
            messages = prompts.rewrite_messages(
                asked, shown, last.text, heard, self.tags, None, self.templates
            )
            return Ask(chain, "retry", messages)
        if config.round == "reflect":
            asked, shown = self.task.instruction(problem), self.task.show(problem)
            return Ask(
                chain,
                "retry",
                prompts.reflect_and_retry_messages(
                    asked, shown, last.text, self.tags, self.templates
                ),
            )
        prefills = config.round == "prefill" and number > config.fresh
        opening = next_opening(chain, config, self.tags) if prefills else ""
        known = config.avoid and config.feedback != "none"  # else nobody has said what failed
        banned = failed_steps(chain, opening, self.tags) if known else []
        role: AnswerRole = "continue" if opening else "attempt"
        return Ask(chain, role, self.attempt(problem), opening, tuple(banned))

    def merge(self, chain: Chain) -> Ask:
        asked, shown = self.task.instruction(chain.problem), self.task.show(chain.problem)
        texts = [turn.text for turn in chain.answers]
        messages = prompts.integrate_messages(asked, shown, texts, self.tags, self.templates)
        return Ask(chain, "integrate", messages)

    def answer(self, asks: Sequence[Ask], seed: Seed) -> None:
        """Generate and grade; a right answer stops a gated chain."""
        encoded = [self.policy.encode(ask.messages) for ask in asks]
        openings = [
            self.encode_opening(ids, ask.opening) for ids, ask in zip(encoded, asks, strict=True)
        ]
        reflects = self.config.round == "reflect" and asks and asks[0].role == "retry"
        completions = self.policy.generate(
            [ids + more for ids, more in zip(encoded, openings, strict=True)],
            temperature=self.spec.temperature,
            top_p=self.spec.top_p,
            max_new_tokens=self.spec.max_new_tokens + (self.config.max_tokens if reflects else 0),
            batch=self.spec.batch,
            seed=("chain", *seed),
            stop=self.spec.stop,
            banned=[self.encode_banned(ids, a) for ids, a in zip(encoded, asks, strict=True)],
        ) if asks else []  # fmt: skip
        for ask, more, completion in zip(asks, openings, completions, strict=True):
            turn = ask.chain.add(self.turn(ask, len(more), completion))
            if self.config.stops and self.config.gated and correct(turn):
                ask.chain.stopped = "grader"

    def encode_opening(self, prompt: list[int], opening: str) -> list[int]:
        """Tokens of a prefilled opening, less the tag that the prompt itself ends in."""
        start, _ = TAGS[self.tags]
        if opening and self.policy.decode(prompt[-8:]).rstrip().endswith(start):
            opening = opening.removeprefix(start).removeprefix("\n")
        return self.policy.encode_response(prompt, opening)[:-1] if opening else []

    def encode_banned(self, prompt: list[int], ask: Ask) -> list[list[int]]:
        """Token sequences that must not open what is generated."""
        whole = [self.encode_opening(prompt, ask.opening + text) for text in ask.banned]
        skip = len(self.encode_opening(prompt, ask.opening))
        return [ids[skip:] for ids in whole]

    def turn(self, ask: Ask, prefilled: int, completion: Completion) -> Turn:
        text = ask.opening + completion.text
        grade = self.grader(ask.chain.problem, text, self.tags, self.spec.prompt.style)
        spans = parse_response(text, self.tags, self.spec.prompt.style).spans
        used = {"prompt": completion.prompt_tokens, "completion": len(completion.token_ids)}
        return Turn(
            index=-1,
            parent=ask.chain.turns[-1].index if ask.chain.turns else None,
            role=ask.role,
            actor=f"policy:{self.policy.name}",
            messages=ask.messages,
            text=text,
            spans=spans | ({GIVEN: [0, len(ask.opening)]} if ask.opening else {}),
            parsed=grade.parsed,
            verdict=grade.verdict,
            finish_reason=completion.finish_reason,
            token_ids=completion.token_ids,
            usage=used | ({"prefilled": prefilled} if prefilled else {}),
        )

    # ---- the critic -----------------------------------------------------------------------------

    def look(self, chains: Sequence[Chain], seed: Seed, number: int) -> None:
        """A critique of each chain's last answer; where that is praised an ungated chain stops.

        With round = "prefill" the critic also writes the thinking again that it finds fault with.
        """
        if self.critic is None:
            return
        for chain, turn in self.ask(chains, "critique", seed, number):
            chain.add(turn)
            if (
                self.config.stops
                and not self.config.gated
                and turn.error is None
                and satisfied(turn.text)
            ):
                chain.stopped = "critic"
        if self.config.round != "prefill":
            return
        faulty = [c for c in open_chains(chains)
                  if c.turns[-1].error is None and not satisfied(c.turns[-1].text)]  # fmt: skip
        for chain, turn in self.ask(faulty, "rewrite", seed, number):
            chain.add(turn)

    def ask(
        self, chains: Sequence[Chain], role: Literal["critique", "rewrite"], seed: Seed, number: int
    ) -> list[tuple[Chain, Turn]]:
        assert self.critic is not None
        calls = [self.call(chain, role, seed, number) for chain in chains]
        replies = self.critic.ask(calls)
        return [
            (chain, heard(chain, call, reply, self.critic.actor))
            for chain, call, reply in zip(chains, calls, replies, strict=True)
        ]

    def call(
        self, chain: Chain, role: Literal["critique", "rewrite"], seed: Seed, number: int
    ) -> Call:
        """A request that shows no answer and no verdict of the grader."""
        problem, last = chain.problem, chain.answers[-1]
        shown = self.task.show(problem)
        if role == "critique":
            messages = prompts.check_messages(shown, last.text, self.tags, self.templates)
            said, template = "", "check"
        else:
            said, template = chain.turns[-1].text, "rewrite"
            messages = prompts.rewrite_messages(
                self.task.instruction(problem), shown, last.text, said, self.tags, None,
                self.templates,
            )  # fmt: skip
        return Call(
            role=role,
            problem=problem,
            messages=messages,
            text=last.text,
            feedback=said,
            visibility="none",
            template=self.templates.version(template),
            tags=self.tags,
            attempt=f"chain/{number}",
            seed=seed_for("chain", *seed, number, role, problem.id),
        )


def open_chains(chains: Sequence[Chain]) -> list[Chain]:
    return [chain for chain in chains if not chain.stopped]


def heard(chain: Chain, call: Call, reply: Reply, actor: str) -> Turn:
    """A critic's turn; what the policy says of its own answer is a reflection."""
    role: Literal["critique", "reflection", "rewrite"] = (
        "rewrite" if call.role == "rewrite" else "reflection" if actor == SELF else "critique"
    )
    return Turn(
        index=-1,
        parent=chain.turns[-1].index,
        role=role,
        actor=actor,
        messages=call.messages,
        text=reply.text,
        visibility=call.visibility,
        finish_reason=reply.finish_reason,
        token_ids=reply.token_ids,
        usage=reply.usage,
        error=reply.error,
    )


def self_critic(policy: Policy, spec: EvalSpec, weights: Arrays | None = None) -> SelfCritic:
    """The policy as the critic of its own answers. weights: that it has then, if others."""
    config = CriticConfig(
        temperature=spec.chain.temperature, max_tokens=spec.chain.max_tokens, model=policy.name
    )
    return SelfCritic(policy, config, spec.batch, weights)
