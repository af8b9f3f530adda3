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
    """An attempt as the policy makes them: right, or wrong in a step's result or direction."""
    kind = rng.random()
    if kind < 0.2:
        return solution(p, rng)
    terms, lines = given(p), list[str]()
    slip = rng.randint(1, 2) if kind < 0.4 else 0
    while len(terms) > 1:
        step, after = plain_step(terms, rng)
        value = step.value
        if slip == len(lines) + 1:
            value = Fraction(max(0, int(value) + rng.choice([-20, -10, -2, -1, 1, 2, 10, 20])))
            after = [*after[:-1], Term(value, after[-1].text, False)]
        lines.append(f"step {len(lines) + 1}: {str(step).split(' = ')[0]} = {value}")
        terms = after
    return response("\n".join(lines), terms[0].text)


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
    if role < 0.58:
        return attempt_messages(ask, question, "think", "thinking"), solution(p, rng)
    if role < 0.64:
        text = solution(p, rng)
        direct = text[text.index("<answer>") :]
        return attempt_messages(ask, question, "think", "direct"), direct
    text = attempt(p, rng)
    call = Call("critique", p, [], text, seed=rng.getrandbits(32))
    feedback = critique(TASK, call).text
    if role < 0.80:
        return critique_messages(question, text, "think", None), feedback
    passed = TASK.grade(p, text, "think", "thinking").verdict.passed
    again = text if passed else rewrite(TASK, call).text
    shown = None if rng.random() < 0.2 else feedback
    return rewrite_messages(ask, question, text, shown, "think", None), again
