"""GSM8K's two scores as lm-evaluation-harness 0.4 computes them (tasks/gsm8k/gsm8k.yaml).

Its filters and its `exact_match` compare texts, not numbers: "18.00" is not "18". They are here so
that a figure can be put beside published ones; neither is a headline of this project.
"""

import re

from mlxreflect.records import Problem, Verdict
from mlxreflect.tasks.base import Grade, Grader

UNTIL = ("Question:", "</s>", "<|im_end|>")  # generation_kwargs.until
INVALID = "[invalid]"  # the filters' fallback
STRICT = re.compile(r"#### (-?[0-9.,]+)")
# The last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)` is the first one of a text read backwards: runs of
# these characters never touch. It spares a list of half a million matches.
FLEXIBLE_BACKWARDS = re.compile(r"[$0-9.,]{2,}-?|[0-9]-?")
MAX_SHOWN = 80


def response_of(text: str) -> str:
    """What lm-eval would have kept: nothing from a stop string on."""
    for stop in UNTIL:
        text = text.partition(stop)[0]
    return text


def strict_match(text: str) -> str:
    found = STRICT.search(text)
    return found[1].strip() if found else INVALID


def flexible_extract(text: str) -> str:
    found = FLEXIBLE_BACKWARDS.search(text[::-1])
    return found[0][::-1].strip() if found else INVALID


def normal(text: str) -> str:
    """exact_match's regexes_to_ignore, in their order, and ignore_case."""
    text = text.replace(",", "").replace("$", "")
    return re.sub(r"\.$", "", text.rpartition("#### ")[2]).lower()


def target(problem: Problem) -> str:
    """lm-eval's target is the whole worked answer; other tasks have the number alone."""
    solution = problem.meta.get("solution")
    return solution if isinstance(solution, str) and "#### " in solution else problem.gold or ""


def grader(extract: str) -> Grader:
    """extract: "strict" or "flexible". The format obeyed is a line `#### number`."""

    def grade(problem: Problem, text: str, tags: str = "think", style: str = "thinking") -> Grade:
        text = response_of(text)
        obeyed = STRICT.search(text) is not None
        found = strict_match(text) if extract == "strict" else flexible_extract(text)
        parsed = None if found == INVALID else found[:MAX_SHOWN]
        correct = normal(found) == normal(target(problem))
        reason = "" if obeyed else 'no "#### number"'
        if not correct:
            reason = f"expected {problem.gold}, got {found[:MAX_SHOWN]}"
        return Grade(parsed, Verdict(correct, obeyed, reason))

    return grade


def lm_eval_rules() -> dict[str, Grader]:
    return {"lm-eval-strict": grader("strict"), "lm-eval-flexible": grader("flexible")}
