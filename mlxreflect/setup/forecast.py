"""Tells how long a run takes: what its method plans, times what `pace` has measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from heapq import heapreplace
from itertools import cycle, islice
from statistics import fmean
from typing import Any, NamedTuple

from mlxreflect.config.schema import Recipe, Tier, method_of
from mlxreflect.core.ui import plural
from mlxreflect.evaluation.generators import CHUNK
from mlxreflect.methods.base import Plan, Shares

# ---- what was measured ---------------------------------------------------------------------------


class Speed(NamedTuple):
    """Seconds that generating takes: of a prompt's token, of a step, of each token made in it."""

    prompt: float
    step: float
    token: float

    def seconds(self, prompt: float, lengths: Sequence[float], batch: int) -> float:
        """Returns the time of answers that one call draws, `batch` of them at once.

        prompt: tokens of each prompt. lengths: tokens of each answer.
        """
        places = [0.0] * min(batch, len(lengths))
        for length in lengths:  # the next begins where one has ended
            heapreplace(places, places[0] + length)
        read = self.prompt * prompt * len(lengths)
        return read + self.step * max(places, default=0.0) + self.token * sum(lengths)


@dataclass(frozen=True)
class Drawn:
    """Answers of one kind. prompt: mean tokens of a prompt. lengths: tokens of each answer.

    batch: drawn at once. factor: how many times longer they took than their speed says.
    """

    prompt: float
    lengths: Sequence[float]
    batch: int
    factor: float = 1.0

    def seconds(self, speed: Speed, count: float, in_a_call: float) -> float:
        """Returns the time of so many answers like these, with so many in each call."""
        many = max(1, round(min(count, in_a_call)))
        lengths = list(islice(cycle(self.lengths), many))
        return self.factor * speed.seconds(self.prompt, lengths, self.batch) * count / many


@dataclass
class Pace:
    """All that was measured.

    start: seconds before the first answer. shares: of attempts, of which `right` of `tried` were.
    evaluations, questions: by name, the headline first. examples: seconds of one, by phase, kind.
    replies: seconds a call, by critic and role, with as many out at once as in the run. waited:
    critics beside whose replies the policy goes on. written: what the policy writes in a critic's
    place, by role. unknown: what was not measured, and why. took: seconds of measuring.
    """

    start: float
    speed: Speed
    attempts: Drawn
    shares: Shares
    tried: int
    right: int
    evaluations: dict[str, Drawn] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)
    examples: dict[tuple[int, str], float] = field(default_factory=dict)
    replies: dict[tuple[Tier, str], float] = field(default_factory=dict)
    waited: set[Tier] = field(default_factory=set)
    written: dict[str, Drawn] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    took: float = 0.0


# ---- what follows --------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part of a run: how often it is done, and the seconds of all of it; None: not known."""

    what: str
    times: float
    seconds: float | None


def foretell(recipe: Recipe, n: int, pace: Pace) -> list[Part]:
    """Returns the parts of a run over n problems, in their order."""
    plan, speed = method_of(recipe).plan(recipe, n, pace.shares), pace.speed
    share = share_of(recipe, plan, pace)
    headline = next(iter(pace.questions))

    def learned(what: str, drawn: Drawn, count: float) -> Part:
        each = count / plan.waves
        return Part(what, share * count, share * drawn.seconds(speed, count, each))

    def asked(name: str, count: float) -> float | None:
        drawn = pace.evaluations.get(name)
        return drawn.seconds(speed, count, CHUNK * drawn.batch) if drawn else None

    both = {name: 2 * count for name, count in pace.questions.items()}
    attempts = pace.attempts
    alone = replace(attempts, prompt=attempts.prompt * plan.group)
    parts = [
        Part("loading", 1, pace.start),
        *(Part(f"answers of base and trained ({name})", count, asked(name, count))
          for name, count in both.items()),
        learned("attempts", attempts, plan.attempts),
        learned("more samples (verifications, retries, the bucket list)", alone, plan.samples),
        *(learned(f"texts of the policy itself ({role})", pace.written[role], count)
          for role, count in plan.written.items() if role in pace.written),
        *calls_of(plan, pace, share),
        *(Part(f"examples to train on ({kind})", share * count,
               share * count * pace.examples[phase, kind])
          for (phase, kind), count in plan.trained.items() if (phase, kind) in pace.examples),
    ]  # fmt: skip
    if plan.answers:
        count = plan.answers * pace.questions[headline]
        parts.append(Part("answers of further arms", count, asked(headline, count)))
    if every := recipe.eval.dev_every:
        looks = recipe.eval.dev_limit * (2 + share * plan.waves // every)
        parts.append(Part("dev questions, at most", looks, asked(headline, looks)))
    if probes := len(recipe.probes.prompts):
        count = probes * (1 + share * plan.waves)
        parts.append(Part("answers to probes, at most", count, asked(headline, count)))
    return [part for part in parts if part.times]


def calls_of(plan: Plan, pace: Pace, share: float) -> Iterator[Part]:
    """Yields each critic's calls. What the policy draws meanwhile is not waited for."""
    tiers = dict.fromkeys(tier for (tier, _), count in plan.calls.items() if count)
    sampling = share * pace.attempts.seconds(pace.speed, plan.attempts, plan.attempts / plan.waves)
    for tier in tiers:
        asked = {key: count for key, count in plan.calls.items() if key[0] == tier and count}
        count = share * sum(asked.values())
        if tier in pace.unknown:
            yield Part(f"calls of the {tier} critic", count, None)
            continue
        seconds = share * sum(pace.replies[key] * many for key, many in asked.items())
        if tier in pace.waited:
            beside = min(seconds, sampling) * (1 - 1 / plan.parts)
            seconds, sampling = seconds - beside, sampling - beside
        yield Part(f"calls of the {tier} critic", count, seconds)


def share_of(recipe: Recipe, plan: Plan, pace: Pace) -> float:
    """Returns the share of learning that is done where a limit of the recipe ends it."""
    tokens = fmean(pace.attempts.lengths)
    sides = {"preference": 2, "group": plan.group}
    spent = {
        "policy_tokens": (plan.attempts + plan.samples) * tokens + sum(
            count * fmean(pace.written[role].lengths)
            for role, count in plan.written.items() if role in pace.written),
        "critic_calls": sum(plan.calls.values()) + sum(plan.written.values()),
        "training_tokens": recipe.train.epochs * tokens * sum(
            count * sides.get(kind, 1) for (_, kind), count in plan.trained.items()),
    }  # fmt: skip
    ends = [limit / spent[name] for name, limit in recipe.limits if limit and spent[name]]
    return min(1.0, *ends) if ends else 1.0


def told(recipe: Recipe, n: int, pace: Pace, now: datetime) -> dict[str, Any]:
    """Returns hours and the clock time of the end, in figures and in words (lines)."""
    parts = foretell(recipe, n, pace)
    seconds = sum(part.seconds or 0.0 for part in parts)
    least = "at least " * bool(pace.unknown)
    ends = now + timedelta(seconds=seconds)
    day = "" if ends.date() == now.date() else f"{ends:%a} "
    text = (
        f"{least or 'about '}{span(seconds)}; begun now it ends "
        f"{'not before' if least else 'about'} {day}{ends:%H:%M}"
    )
    lines = [f"--- time: {text}"]
    for part in parts:
        took = "not known" if part.seconds is None else span(part.seconds)
        lines.append(f"{took}: {part.what}" + (f", {part.times:,.0f}" if part.times != 1 else ""))
    lines += [f"not known: {what}: {why}" for what, why in pace.unknown.items()]
    warning = doubt(recipe, n, pace)
    lines += [f"warning: {': '.join(warning)}"] if warning else []
    rate = fmean(pace.attempts.lengths)
    lines.append(
        f"Measured here, for {span(pace.took)}: {pace.right} of {pace.tried} attempts were right, "
        f"with {rate:.0f} tokens each. A policy that learns makes fewer mistakes, and what an "
        "answer cache holds is not asked again: then it takes less."
    )
    return {
        "seconds": None if pace.unknown else round(seconds, 1), "known_seconds": round(seconds, 1),
        "ends": ends.isoformat(timespec="minutes"), "unknown": pace.unknown,
        "parts": [part._asdict() for part in parts], "shares": pace.shares, "right": pace.right,
        "attempts": pace.tried, "measured_seconds": round(pace.took, 1), "text": text,
        "warning": warning, "lines": lines,
    }  # fmt: skip


def doubt(recipe: Recipe, n: int, pace: Pace) -> tuple[str, str] | None:
    """Returns why a run over n problems may learn nothing, and what to change; None: it may.

    Of questions that are posed later, attempts tell nothing.
    """
    method, tried = method_of(recipe), pace.tried
    if not tried or 0 < pace.right < tried or method.sources(recipe) is not None:
        return None
    shares = pace.shares._replace(wrong=1 - pace.right / tried)
    # What is hardly ever made is not counted: a plan gives shares, and no whole examples.
    nothing = sum(method.plan(recipe, n, shares).trained.values()) < 0.5
    so = "the run would probably train on nothing"
    if not pace.right:
        why = f"none of {plural(tried, 'measured attempt')} was right"
        easier = "take an easier task ([task]) or a larger policy.model"
        shots = "show it worked examples (--set prompt.shots=3), "
        why += f", and so {so}" if nothing else ""
        return why, f"{shots if not recipe.prompt.shots else ''}{easier}"
    if not nothing:
        return None
    return (f"all of {plural(tried, 'measured attempt')} were right, and so {so}",
            "take harder problems ([task]), or raise policy.temperature")  # fmt: skip


def span(seconds: float) -> str:
    """Returns a time in words, as exact as anyone wants to know it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
