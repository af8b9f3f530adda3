"""Recursive inference, its pure part: what a chain asks next, when it stops, what it answers.

A chain is attempt → critique → improved thinking, prefilled (or a retry prompt) → answer, and so on
up to N answers: PRefLexOR's phase III (arXiv 2410.12375), and with two answers ReflectEvo's retry
(arXiv 2505.16475). Nobody in it is shown the expected answer: every turn's visibility is "none".
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from mlxreflect import texts
from mlxreflect.prompts import ANSWER, TAGS, parse_response, without_tags
from mlxreflect.records import Episode, Outcome, Problem, Turn
from mlxreflect.tables import ChainConfig

ANSWERS = ("attempt", "continue", "retry", "integrate")  # roles whose text answers the question
SELF = "self"  # the policy, as the critic of its own answers
GIVEN = "given"  # the span of an answer that was prefilled
Stop = Literal["", "grader", "critic"]


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
    """Whether a critique finds nothing wrong, in the words that it was asked to say so."""
    return said.strip().strip("\"'.*").casefold().startswith(texts.PRAISE)


# ---- what is asked next --------------------------------------------------------------------------


def opening_of(text: str, tags: str) -> str:
    """The thinking in a critic's text, from its tag on; where it is closed only the answer follows.

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
    """Improved thinking to prefill: of all that critics wrote what failed least; or "".

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
    """How often what was prefilled led to no good answer; whole thoughts count as given up."""
    start, _ = TAGS[tags]
    found: Counter[str] = Counter()
    for turn in chain.answers:
        found[given(turn)] += 1
        if span := turn.spans.get("think"):
            found[f"{start}\n{turn.text[slice(*span)].strip()}"] += tries
    return found


def given(turn: Turn) -> str:
    """What an answer was given to begin with."""
    return turn.text[slice(*turn.spans.get(GIVEN, [0, 0]))]


def failed_steps(chain: Chain, opening: str, tags: str) -> list[str]:
    """How answers that failed went on after an opening ("": how they began), without repeats.

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
    """A chain's answer after its first rounds (all of them): the last one.

    Of fresh samples that nobody looks at the most frequent one, the first given of equals.
    """
    answers = chain.answers[:rounds]
    if config.gated or config.round != "resample" or config.feedback != "none":
        return answers[-1]
    if answers[-1].role == "integrate":
        return answers[-1]
    votes = Counter(turn.parsed for turn in answers if turn.parsed is not None)
    winner = max(votes, key=votes.__getitem__) if votes else answers[0].parsed
    return next(turn for turn in answers if turn.parsed == winner)


def episode_of(chain: Chain, config: ChainConfig, wave: int) -> Episode:
    final, first = answer_of(chain, config), correct(chain.answers[0])
    right = correct(final)
    status: Literal["solved_first", "solved", "discarded"] = (
        ("solved_first" if final is chain.answers[0] else "solved") if right else "discarded"
    )
    outcome = Outcome(first, final.index if right else None, status)
    return Episode("chain", 0, wave, chain.problem, list(chain.turns), outcome)


def chain_of(episode: Episode, stopped: Stop) -> Chain:
    return Chain(episode.problem, list(episode.turns), stopped)


# ---- figures -------------------------------------------------------------------------------------


def figures(chains: Sequence[Chain], config: ChainConfig) -> dict[str, Any]:
    """What rounds gained and took, over all chains.

    name: what the last of acc_at is usually called. acc_at: accuracy of what chains answer after
    round 1, 2, … (a chain that has stopped keeps its answer), and after they were integrated.
    right_to_wrong, wrong_to_right: of the last answer against the first; a grader that stops chains
    keeps what is right. samples: solutions drawn from the policy. tokens, a question's: generated
    by the policy (its critiques of itself too), prefilled (put into its mouth), of the critic.
    failed: critic calls.
    """
    most = max(len(chain.answers) for chain in chains)
    acc = [
        fmean(correct(answer_of(chain, config, k)) for chain in chains)
        for k in range(1, most + 1)
    ]  # fmt: skip
    moved = Counter(
        (correct(chain.answers[0]), correct(answer_of(chain, config))) for chain in chains
    )
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
    }  # fmt: skip


def name_of(config: ChainConfig) -> str:
    """pass@N: one of N samples is right, as the grader sees; maj@N: what most of N say is."""
    if config.integrate:
        return "integrated"
    if config.round == "resample" and config.feedback == "none":
        return f"{'pass' if config.gated else 'maj'}@{config.rounds}"
    return f"Acc@t{config.rounds}"


def generated(chains: Sequence[Chain]) -> int:
    """Tokens that the policy generated: answers, and what it said of them itself."""
    turns = [turn for chain in chains for turn in chain.turns]
    return written([turn for turn in turns if turn.role in ANSWERS or turn.actor == SELF])


def written(turns: Sequence[Turn]) -> int:
    return sum(turn.usage.get("completion", 0) for turn in turns)
