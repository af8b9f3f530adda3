"""Recursive inference: what a chain asks next, when it stops, and what it answers.

A chain is attempt → critique → improved thinking, prefilled (or a retry prompt) → answer, and so on
up to N answers: recursive inference (arXiv 2410.12375), and with two answers one retry
(arXiv 2505.16475). Nobody in it is shown the expected answer: every turn's visibility is "none".
All chains go in lock-step: every answer of a round is generated in one batch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from mlxreflect.config.recipe import check_critic
from mlxreflect.config.schema import ChainConfig, CriticConfig, EvalSpec
from mlxreflect.core.errors import UserError, reworded
from mlxreflect.core.records import Episode, Messages, Outcome, Problem, Turn, to_row
from mlxreflect.core.seeds import seed_for
from mlxreflect.critics import open_critic as open_one
from mlxreflect.critics.base import Call, Critic
from mlxreflect.critics.ledger import Ledger
from mlxreflect.critics.local import SelfCritic
from mlxreflect.graders import Grader
from mlxreflect.models.policy import Completion, Policy
from mlxreflect.prompts.parsing import ANSWER, TAGS, parse_response, reflection_in, without_tags
from mlxreflect.prompts.roles import BUNDLED, PRAISE, Data, role_messages
from mlxreflect.tasks.base import Task
from mlxreflect.train.network import Arrays

ANSWERS = ("attempt", "continue", "retry", "integrate")  # roles whose text answers the question
SELF = "self"  # the policy, as the critic of its own answers
GIVEN = "given"  # the span of an answer that was prefilled
Stop = Literal["", "grader", "critic"]
AnswerRole = Literal["attempt", "continue", "retry", "integrate"]
CriticRole = Literal["critique", "rewrite"]
Seed = tuple[int | str, ...]
KEYS = {"critic.": "chain.critic."}  # a recipe's, as a spec names them


@dataclass(eq=False)
class Chain:
    """An episode in the making. stopped: who was satisfied before the rounds were used up."""

    problem: Problem
    turns: list[Turn] = field(default_factory=list)
    stopped: Stop = ""

    def add(self, turn: Turn) -> Turn:
        turn = replace(turn, index=len(self.turns))
        self.turns.append(turn)
        return turn

    @property
    def answers(self) -> list[Turn]:
        return [turn for turn in self.turns if turn.role in ANSWERS]


def correct(turn: Turn) -> bool:
    return turn.verdict is not None and turn.verdict.correct


def satisfied(said: str) -> bool:
    """Tells if a critique finds nothing wrong, in the words that it was asked to say so."""
    return said.strip().strip("\"'.*").casefold().startswith(PRAISE)


# ---- what is asked next --------------------------------------------------------------------------


def opening_of(text: str, tags: str) -> str:
    """Returns the thinking in a critic's text from its tag on; closed, only the answer follows.

    It ends in no white space: a tokenizer would join that with what follows. No tag is inside it,
    with which no answer could keep the format; where nothing is left there is no opening.
    """
    start, end = TAGS[tags]
    span = parse_response(text, tags).spans.get("think")
    if span:
        body = without_tags(text[slice(*span)], tags)
        return f"{start}\n{body}\n{end}\n{ANSWER[0]}" if body else ""
    _, tag, thought = text.partition(start)
    body = without_tags((thought if tag else text).partition(ANSWER[0])[0], tags)
    return f"{start}\n{body}" if body else ""


def next_opening(chain: Chain, config: ChainConfig, tags: str) -> str:
    """Returns improved thinking to prefill: of all that critics wrote the least failed; or "".

    Thinking that has failed `config.tries` times, or that an answer ended in, loses its last line
    until what is left has not; where nothing is left there is nothing to prefill.
    """
    start, end = TAGS[tags]
    failed = failures(chain, config.tries, tags)
    found: list[str] = []
    for turn in chain.turns:
        lines = opening_of(turn.text, tags).split("\n") if turn.role == "rewrite" else []
        while lines and (failed["\n".join(lines)] >= config.tries or lines[-1] == end):
            lines.pop()
        if lines not in ([], [""], [start]):
            found.append("\n".join(lines))
    return min(found, key=failed.__getitem__, default="")


def failures(chain: Chain, tries: int, tags: str) -> Counter[str]:
    """Counts how often a prefilled opening led to no good answer; whole thoughts are given up."""
    start, _ = TAGS[tags]
    found: Counter[str] = Counter()
    for turn in chain.answers:
        found[turn.text[slice(*turn.spans.get(GIVEN, [0, 0]))]] += 1
        if span := turn.spans.get("think"):
            found[f"{start}\n{turn.text[slice(*span)].strip()}"] += tries
    return found


def failed_steps(chain: Chain, opening: str, tags: str) -> list[str]:
    """Returns how failed answers went on after an opening ("": how they began), without repeats.

    Each up to its line's equals sign, or the whole line. What stands after that sign is not left
    open: a model that may not write 5 + 4 = 7 again will write 5 + 4 = 8.
    """
    start, _ = TAGS[tags]
    head = f"{opening or start}\n"
    thoughts = [turn.text[: turn.spans["think"][1]] for turn in chain.answers
                if "think" in turn.spans]  # fmt: skip
    # Where the prompt itself ends in the tag, answers begin after it.
    thoughts = [text if start in text else f"{start}\n{text.lstrip()}" for text in thoughts]
    lines = [text[len(head) :].split("\n")[0] for text in thoughts if text.startswith(head)]
    stems = [line.partition("=")[0].rstrip() for line in lines]
    return [("\n" if opening else head) + stem for stem in dict.fromkeys(stems) if stem]


# ---- what a chain answers ------------------------------------------------------------------------


def answer_of(chain: Chain, config: ChainConfig, rounds: int | None = None) -> Turn:
    """Returns a chain's answer after its first rounds (default: all): the last one.

    Of fresh samples that nobody looks at the most frequent one, the first given of equals.
    """
    answers = chain.answers[:rounds]
    fresh = config.round == "resample" and config.feedback == "none" and not config.gated
    if not fresh or answers[-1].role == "integrate":
        return answers[-1]
    votes = Counter(turn.parsed for turn in answers if turn.parsed is not None)
    winner = max(votes, key=votes.__getitem__) if votes else answers[0].parsed
    return next(turn for turn in answers if turn.parsed == winner)


def episode_of(chain: Chain, config: ChainConfig, wave: int) -> Episode:
    final, first = answer_of(chain, config), chain.answers[0]
    outcome = Outcome(correct(first), None, "discarded")
    if correct(final):
        status: Literal["solved_first", "solved"] = "solved_first" if final is first else "solved"
        outcome = Outcome(correct(first), final.index, status)
    return Episode("chain", 0, wave, chain.problem, list(chain.turns), outcome)


def chain_of(episode: Episode, stopped: Stop) -> Chain:
    return Chain(episode.problem, list(episode.turns), stopped)


def chain_row(chain: Chain, config: ChainConfig, wave: int) -> dict[str, Any]:
    """Returns a line of chains.jsonl: an episode, the turn it answers with, who stopped it."""
    episode = to_row(episode_of(chain, config, wave))
    return {**episode, "answer": answer_of(chain, config).index, "stopped": chain.stopped}


# ---- figures -------------------------------------------------------------------------------------


def figures(chains: Sequence[Chain], config: ChainConfig) -> dict[str, Any]:
    """Returns what the rounds gained and took, over all chains.

    name: what the last of acc_at is usually called. acc_at: accuracy of what chains answer after
    round 1, 2, … (a chain that has stopped keeps its answer), and after they were integrated.
    right_to_wrong, wrong_to_right: of the last answer against the first; a grader that stops chains
    keeps what is right. samples: solutions drawn from the policy. tokens, a question's: generated
    by the policy (its critiques of itself too), prefilled (put into its mouth), of the critic.
    failed: critic calls. own_reflections: critiques that stood in answers, where those count.
    """
    ks = range(1, 1 + max(len(chain.answers) for chain in chains))
    acc = [fmean(correct(answer_of(chain, config, k)) for chain in chains) for k in ks]
    moved = Counter((correct(one.answers[0]), correct(answer_of(one, config))) for one in chains)
    answers = [turn for chain in chains for turn in chain.answers]
    others = [turn for chain in chains for turn in chain.turns if turn.role not in ANSWERS]
    own = [turn for turn in others if turn.actor == SELF]
    each = len(chains)
    return {
        "name": name_of(config), "rounds": config.rounds, "round": config.round,
        "feedback": config.feedback,
        "gated": config.gated, "stops": config.stops, "acc_at": acc, "delta": acc[-1] - acc[0],
        "right_to_wrong": moved[True, False], "wrong_to_right": moved[False, True],
        "samples_mean": (len(answers) + sum(turn.role == "rewrite" for turn in own)) / each,
        "tokens_generated": generated(chains) / each,
        "tokens_prefilled": sum(turn.usage.get("prefilled", 0) for turn in answers) / each,
        "tokens_critic": (written(others) - written(own)) / each,
        "stopped": dict(Counter(chain.stopped or "rounds" for chain in chains)),
        "failed": sum(turn.error is not None for turn in others),
        **({"own_reflections": sum(not turn.messages for turn in own)}
           if config.own_reflection else {}),
    }  # fmt: skip


def name_of(config: ChainConfig) -> str:
    """pass@N: one of N samples is right, as the grader sees; maj@N: what most of N say is."""
    if config.integrate:
        return "integrated"
    if config.round == "resample" and config.feedback == "none":
        return f"{'pass' if config.gated else 'maj'}@{config.rounds}"
    return f"Acc@t{config.rounds}"


def generated(chains: Sequence[Chain]) -> int:
    """Counts tokens that the policy generated: answers, and what it said of them itself."""
    turns = [turn for chain in chains for turn in chain.turns]
    return written([turn for turn in turns if turn.role in ANSWERS or turn.actor == SELF])


def written(turns: Sequence[Turn]) -> int:
    return sum(turn.usage.get("completion", 0) for turn in turns)


# ---- playing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A prompt for the policy. opening: of its answer. banned: texts that must not follow it."""

    chain: Chain
    role: AnswerRole
    messages: Messages
    opening: str = ""
    banned: tuple[str, ...] = ()


class Rounds:
    """Plays chains of an evaluation's `[chain]`.

    critic: whose feedback it is; None where nobody gives any. grader: whose verdict stops gated
    chains, and is nobody's feedback.
    """

    def __init__(
        self, policy: Policy, task: Task, spec: EvalSpec, grader: Grader, critic: Critic | None
    ) -> None:
        self.policy, self.task, self.spec, self.grader = policy, task, spec, grader
        self.config: ChainConfig = spec.chain
        self.critic = critic
        self.tags = spec.prompt.tags
        self.templates = BUNDLED.replaced(spec.prompt.templates)

    def play(
        self,
        problems: Sequence[Problem],
        seed: Seed,
        progress: Callable[[str], None] = lambda text: None,
    ) -> list[Chain]:
        """Plays chains of these problems, in their order. progress: is called each round."""
        chains = [Chain(problem) for problem in problems]
        self.answer([Ask(c, "attempt", self.attempt(c.problem)) for c in chains], (*seed, 1))
        for number in range(2, self.config.rounds + 1):
            if not (still := open_chains(chains)):
                break
            progress(f"round {number}: {len(still)} open")
            self.look(still, seed, number)
            asks = [self.next_ask(chain, number) for chain in open_chains(chains)]
            self.answer(asks, (*seed, number))
        if self.config.integrate:
            several = [c for c in open_chains(chains) if len(c.answers) > 1]
            texts = [[turn.text for turn in chain.answers] for chain in several]
            asks = [
                Ask(chain, "integrate", self.messages("integrate", chain.problem, text=each))
                for chain, each in zip(several, texts, strict=True)
            ]
            self.answer(asks, (*seed, "integrate"))
        return chains

    # ---- the policy -----------------------------------------------------------------------------

    def attempt(self, problem: Problem) -> Messages:
        return self.messages(f"attempt_{self.spec.prompt.style}", problem)

    def messages(self, role: str, problem: Problem, **data: Data) -> Messages:
        """Returns the prompt of a role; nobody is shown the expected answer."""
        instruction, question = self.task.instruction(problem), self.task.show(problem)
        return role_messages(
            role, self.tags, self.templates, instruction=instruction, question=question, **data
        )

    def next_ask(self, chain: Chain, number: int) -> Ask:
        """Returns the prompt of a further answer."""
        config, problem, last = self.config, chain.problem, chain.answers[-1]
        if config.round == "retry":
            said = chain.turns[-1]
            usable = said.role in ("critique", "reflection") and not said.error
            feedback = said.text if usable else None
            asked = "retry_bare" if feedback is None else "rewrite"
            messages = self.messages(asked, problem, attempt=last.text, feedback=feedback)
            return Ask(chain, "retry", messages)
        if config.round == "reflect":
            messages = self.messages("reflect_and_retry", problem, attempt=last.text)
            return Ask(chain, "retry", messages)
        prefills = config.round == "prefill" and number > config.fresh
        opening = next_opening(chain, config, self.tags) if prefills else ""
        known = config.avoid and config.feedback != "none"  # else nobody has said what failed
        banned = failed_steps(chain, opening, self.tags) if known else []
        role: AnswerRole = "continue" if opening else "attempt"
        return Ask(chain, role, self.attempt(problem), opening, tuple(banned))

    def answer(self, asks: Sequence[Ask], seed: Seed) -> None:
        """Generates and grades; a right answer stops a gated chain."""
        if not asks:
            return
        encoded = [self.policy.encode(ask.messages) for ask in asks]
        pairs = list(zip(encoded, asks, strict=True))
        openings = [self.encode_opening(ids, ask.opening) for ids, ask in pairs]
        reflects = self.config.round == "reflect" and asks[0].role == "retry"
        completions = self.policy.generate(
            [ids + more for ids, more in zip(encoded, openings, strict=True)],
            temperature=self.spec.temperature,
            top_p=self.spec.top_p,
            max_new_tokens=self.spec.max_new_tokens + (self.config.max_tokens if reflects else 0),
            batch=self.spec.batch,
            seed=("chain", *seed),
            stop=self.spec.stop,
            sampling=self.spec,
            banned=[self.encode_banned(ids, ask) for ids, ask in pairs],
        )
        for ask, more, completion in zip(asks, openings, completions, strict=True):
            turn = ask.chain.add(self.turn(ask, len(more), completion))
            if self.config.stops and self.config.gated and correct(turn):
                ask.chain.stopped = "grader"

    def encode_opening(self, prompt: list[int], opening: str) -> list[int]:
        """Returns a prefilled opening's token ids, less the tag that the prompt itself ends in."""
        return self.policy.encode_response(prompt, opening, ended=False) if opening else []

    def encode_banned(self, prompt: list[int], ask: Ask) -> list[list[int]]:
        """Returns token sequences that must not open what is generated."""
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
        """Adds a critique of each last answer; where it praises, an ungated chain stops.

        With round = "prefill" the critic also writes the thinking again that it finds fault with.
        """
        others = [chain for chain in chains if not self.reflected(chain)]
        if self.critic and others:
            self.consult(self.critic, others, "critique", seed, number)
        looked_at = [chain for chain in chains if chain.turns[-1].role not in ANSWERS
                     and chain.turns[-1].error is None]  # fmt: skip
        faulty = [chain for chain in looked_at if not satisfied(chain.turns[-1].text)]
        if self.config.stops and not self.config.gated:
            for chain in looked_at:
                chain.stopped = "" if chain in faulty else "critic"
        if self.critic and self.config.round == "prefill":
            self.consult(self.critic, faulty, "rewrite", seed, number)

    def reflected(self, chain: Chain) -> bool:
        """Adds what the last answer says of itself, where that counts; tells if there is any."""
        last = chain.answers[-1]
        own = last.text[last.spans.get(GIVEN, [0, 0])[1] :]  # no critic's words
        said = reflection_in(own) if self.config.own_reflection else ""
        if said:
            chain.add(Turn(-1, last.index, "reflection", SELF, [], said))
        return bool(said)

    def consult(
        self, critic: Critic, chains: Sequence[Chain], role: CriticRole, seed: Seed, number: int
    ) -> None:
        """Adds the critic's turn to each chain; what the policy says of itself is a reflection."""
        calls = [self.call(chain, role, seed, number) for chain in chains]
        reflects = role == "critique" and critic.actor == SELF
        for chain, call, reply in zip(chains, calls, critic.ask(calls), strict=True):
            turn = Turn(
                index=-1,
                parent=chain.turns[-1].index,
                role="reflection" if reflects else role,
                actor=critic.actor,
                messages=call.messages,
                text=reply.text,
                visibility=call.visibility,
                finish_reason=reply.finish_reason,
                token_ids=reply.token_ids,
                usage=reply.usage,
                error=reply.error,
            )
            chain.add(turn)

    def call(self, chain: Chain, role: CriticRole, seed: Seed, number: int) -> Call:
        """Returns a request that shows no expected answer and no verdict of the grader."""
        problem, text = chain.problem, chain.answers[-1].text
        template = "check" if role == "critique" else "rewrite"
        feedback = chain.turns[-1].text if role == "rewrite" else ""
        return Call(
            role=role,
            problem=problem,
            messages=self.messages(template, problem, attempt=text, feedback=feedback),
            text=text,
            feedback=feedback,
            visibility="none",
            template=self.templates.version(template),
            tags=self.tags,
            attempt=f"chain/{number}",
            seed=seed_for("chain", *seed, number, role, problem.id),
        )


def open_chains(chains: Sequence[Chain]) -> list[Chain]:
    return [chain for chain in chains if not chain.stopped]


def self_critic(policy: Policy, spec: EvalSpec, weights: Arrays | None = None) -> SelfCritic:
    """Returns the policy as its own critic. weights: those it has in that role, if others."""
    config = CriticConfig(
        temperature=spec.chain.temperature, max_tokens=spec.chain.max_tokens, model=policy.name
    )
    return SelfCritic(policy, config, spec.batch, weights)


def open_critic(
    policy: Policy, spec: EvalSpec, task: str, ledger: Ledger, stack: ExitStack
) -> Critic | None:
    """Returns the critic that looks at the answers, known to reply. Raises UserError."""
    config = spec.chain
    if config.feedback == "none":
        return None
    if config.feedback == "self":
        return self_critic(policy, spec)
    with reworded(KEYS):
        critic = open_one(config.critic, task, "chain", ledger)
        stack.callback(critic.close)
        critic.preflight()
    return critic


# ---- the spec ------------------------------------------------------------------------------------

ONE_ANSWER = {"samples": 1, "shots": 0, "form": "chat"}  # what a chain's answers have to be


def check_chain(spec: EvalSpec) -> None:
    """Raises UserError for keys that contradict `[chain]`, or each other."""
    config = spec.chain
    for key, value in ONE_ANSWER.items():
        if getattr(spec, key) != value:
            raise UserError(
                f"[chain] with {key} = {getattr(spec, key)!r}: a chain is one answer to a chat",
                f"leave {key} out, or chain.rounds",
            )
    if config.round == "prefill" and (config.feedback == "none" or spec.prompt.style == "direct"):
        what = "chain.feedback = 'none'" if config.feedback == "none" else "prompt.style = 'direct'"
        raise UserError(
            f"chain.round = 'prefill' with {what}: there is no improved thinking to prefill",
            'set chain.round to "retry" or "resample"',
        )
    if config.feedback == "critic":
        with reworded(KEYS):
            check_critic(config.critic, Path("[chain]"))
