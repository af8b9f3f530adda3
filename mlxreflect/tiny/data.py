"""What the embedded policy learns: to attempt, to reflect on an attempt, and to retry.

All three in the project's own prompts, on problems of Countdown's training part only.
"""

import random
from fractions import Fraction

from mlxreflect.critics.base import Call
from mlxreflect.critics.solver import critique, rewrite
from mlxreflect.prompts import attempt_messages, critique_messages, rewrite_messages
from mlxreflect.records import Messages, Problem, make_problem
from mlxreflect.tasks.countdown import TASK, draw, part_of
from mlxreflect.tasks.countdown_solver import (
    Step,
    Term,
    equation,
    finish,
    given,
    review,
    steps_from,
)
from mlxreflect.tasks.expression import parse_expression


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
    if kind < 0.2:
        return solution(p, rng)
    first, after = plain_step(given(p), rng)
    other, made = after
    if kind < 0.55 and (bent := rng.choice(ways_to(target, other.value))) != first.value:
        made = Term(bent, made.text, False)
    second, (last,) = plain_step([other, made], rng)
    if kind < 0.9:
        last = Term(target, second.term.text, False)
    lines = [f"step 1: {left(first)} = {made.value}", f"step 2: {left(second)} = {last.value}"]
    return response("\n".join(lines), last.text)


def reflection(p: Problem, text: str) -> str:
    """What is wrong with an attempt, each step computed anew up to the first fault.

    Computing comes before judging: a small model that judges first believes its own slips.
    """
    thought = text[len("<think>\n") : text.index("\n</think>")]
    fault = review(p, thought, True).fault
    said = []
    for number, line in enumerate(thought.split("\n"), 1):
        written = equation(line)
        assert written is not None  # every line of an attempt made here is a step
        value = parse_expression(written[0]).value
        said.append(f"step {number}: {written[0]} = {value}")
        if str(value) != written[1]:
            return "\n".join(said) + f", not {written[1]}"
        if fault.startswith(f"step {number} "):
            return "\n".join(said) + " leads nowhere"
    return "\n".join([*said, "every step holds"])


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
    if role < 0.50:
        return attempt_messages(ask, question, "think", "thinking"), solution(p, rng)
    if role < 0.54:
        text = solution(p, rng)
        direct = text[text.index("<answer>") :]
        return attempt_messages(ask, question, "think", "direct"), direct
    text = attempt(p, rng)
    if role < 0.78:
        return critique_messages(question, text, "think", None), reflection(p, text)
    call = Call("rewrite", p, [], text, seed=rng.getrandbits(32))
    passed = TASK.grade(p, text, "think", "thinking").verdict.passed
    again = text if passed else rewrite(TASK, call).text
    source = rng.random()  # its own reflection, a solver's critique, or none at all
    feedback = reflection(p, text) if source < 0.7 else critique(TASK, call).text
    shown = None if source > 0.85 else feedback
    return rewrite_messages(ask, question, text, shown, "think", None), again
