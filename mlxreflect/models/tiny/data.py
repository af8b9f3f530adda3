"""What the embedded policy learns: to attempt, to reflect on an attempt, and to retry.

All three in the project's own prompts, on problems of Countdown's training part only.
"""

import random
from fractions import Fraction

from mlxreflect.core.records import Messages, Problem, make_problem
from mlxreflect.critics.base import Call
from mlxreflect.critics.solver import critique, rewrite
from mlxreflect.prompts.messages import attempt_messages, critique_messages, rewrite_messages
from mlxreflect.tasks.countdown import TASK, draw, part_of
from mlxreflect.tasks.countdown_solver import Step, Term, finish, given, steps_from


def problem(rng: random.Random) -> Problem:
    while True:
        drawn = draw(rng, 3)
        if drawn and part_of(*drawn) == "train":
            return make_problem("countdown", {"numbers": drawn[0], "target": drawn[1]})


def response(thought: str, answer: str) -> str:
    return f"<think>\n{thought}\n</think>\n<answer> {answer} </answer>"


def solution(p: Problem, rng: random.Random) -> str:
    solved = finish(p, [], rng.getrandbits(32))
    assert solved is not None  # problems are solvable by construction
    return response(*solved)


def attempt(p: Problem, rng: random.Random) -> str:
    """An attempt as the policy makes them: right, a dead end, or bent to end at the target.

    The last is what a small model does most: it writes the target, whatever the step comes to.
    """
    kind, target = rng.random(), Fraction(p.fields["target"])
    if kind < 0.15:
        return solution(p, rng)
    first, (other, made) = plain_step(given(p), rng)
    if kind < 0.55:  # the first step comes to what the second one needs, or nearly to the truth
        near = [first.value + d for d in (-10, -3, -2, -1, 1, 2, 3, 10) if first.value + d > 0]
        wanted = ways_to(target, other.value) if rng.random() < 0.5 else near
        made = Term(rng.choice(wanted), made.text, False)
    second, (last,) = plain_step([other, made], rng)
    if kind < 0.85:
        last = Term(target, second.term.text, False)
    lines = [f"step 1: {left(first)} = {made.value}", f"step 2: {left(second)} = {last.value}"]
    return response("\n".join(lines), last.text)


def left(step: Step) -> str:
    return str(step).split(" = ")[0]


def ways_to(target: Fraction, other: Fraction) -> list[Fraction]:
    """Whole numbers up to 200 from which one step with `other` comes to the target."""
    ways = [target - other, target + other, other - target, target * other, target / other]
    return [v for v in ways if v.denominator == 1 and 0 < v <= 200] or [target]


def plain_step(terms: list[Term], rng: random.Random) -> tuple[Step, list[Term]]:
    """A random step with a whole, positive result of at most 200."""
    options = [
        (step, after)
        for step, after in steps_from(terms)
        if step.value.denominator == 1 and 0 < step.value <= 200
    ]
    return rng.choice(options)


def example(rng: random.Random) -> tuple[Messages, str]:
    """One training example in one of the roles: (prompt, response)."""
    p = problem(rng)
    question, ask = TASK.show(p), TASK.instruction(p)
    role = rng.random()
    if role < 0.56:
        return attempt_messages(ask, question, "think", "thinking"), solution(p, rng)
    if role < 0.60:
        text = solution(p, rng)
        direct = text[text.index("<answer>") :]
        return attempt_messages(ask, question, "think", "direct"), direct
    text = attempt(p, rng)
    call = Call("critique", p, [], text, seed=rng.getrandbits(32))
    feedback = critique(TASK, call).text
    if role < 0.78:
        return critique_messages(question, text, "think", None), feedback
    passed = TASK.grade(p, text, "think", "thinking").verdict.passed
    again = text if passed else rewrite(TASK, call).text
    shown = None if rng.random() < 0.15 else feedback
    return rewrite_messages(ask, question, text, shown, "think", None), again
