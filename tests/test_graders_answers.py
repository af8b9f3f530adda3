"""Answers as they are written: tables with both verdicts, cases from practice, generated ones."""
# ruff: noqa: E501

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from support.answers import LATEX, LETTERS, NUMBERS, Table
from support.expressions import ast_value
from support.rows import write_rows

from mlxreflect.evaluation.evaluate import grade_file
from mlxreflect.tasks import TASKS

OPTIONS = ["red", "blue", "green", "none"]
KINDS: dict[str, tuple[Table, dict[str, object]]] = {
    "number": (NUMBERS, {}), "math": (LATEX, {}), "choice": (LETTERS, {"choices": OPTIONS}),
}  # fmt: skip
CASES = Path(__file__).parents[2] / "shared" / "cases" / "grade"
FILES = {
    "choice": "choice", "countdown-notation": "countdown", "math-no-box": "math",
    "num-answer-colon": "number", "num-notation": "number", "num-time-date": "number",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "gold", "right"),
    [
        (kind, gold, right)
        for kind, (table, _) in KINDS.items()
        for gold in table
        for right in (1, 0)
    ],
)
def test_what_is_right_and_what_stays_wrong(kind: str, gold: str, right: int) -> None:
    if kind == "math":
        pytest.importorskip("math_verify")
    table, row = KINDS[kind]
    problem = TASKS["jsonl"].from_row({"gold": gold, "answer_type": kind, **row})
    found = {
        text: TASKS["jsonl"].grade(problem, text, "think", "direct")
        for text in table[gold][1 - right]
    }
    misjudged = {t: g.parsed for t, g in found.items() if g.verdict.correct is not bool(right)}
    assert not misjudged


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases from practice are not there")
@pytest.mark.parametrize("name", FILES)
def test_cases_from_practice(name: str, tmp_path: Path) -> None:
    if FILES[name] == "math":
        pytest.importorskip("math_verify")
    lines = (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{**json.loads(line), "answer_type": FILES[name]} for line in lines]
    graded = grade_file("jsonl", write_rows(tmp_path / "rows.jsonl", rows))
    assert [row["correct"] for row in graded] == [row["expected_correct"] for row in rows]


# ---- generated responses -------------------------------------------------------------------------
# A known value in clutter of known kinds: its verdict follows from what was put in. One seed by
# default, so that a failure is its change's own; MLXREFLECT_FUZZ_SEED=N tries another.

SEED = int(os.environ.get("MLXREFLECT_FUZZ_SEED", "14"))
BEFORE = [
    "", "", "First 3 + 4 = 7. ", "<think>The answer is 97.</think>", "#### 97\n", "\\boxed{97}\n", "\n",
    "Answer: 97\nNo, that is wrong.\n", "At 11:05 she had 97 of 99.\n", "Question: 97 or 99?\n",
    "<answer>97</answer>\n", "{\"draft\": 97}\n", "On May 5, 2024 it was 97.\n", "It is not 97.\n",
    "I doubt that the answer is 97.\n", "<h2>97 eggs</h2>\n", "The wrong answer is 97.\n", "<del>97</del>\n",
    "**Step 1:** 90 + 7 = 97\n\n", "- 97\n- 99\n", "The answer is not 97.\n", "\\boxed{}\n",
]  # fmt: skip
SAID = [
    "Answer: @", "**Answer:** @", "**Final Answer: @**", "### Final Answer\n@", "Final answer: @",
    "**Final Answer**\n\n@", "The answer is @", "The final answer would be @", "#### @", "answer = @",
    "The answer to question 97 is @", "> **Answer**: @", "## Answer:\n\n@", "The answer must be **@**",
    "Ans: @", "**Ans:** @", "Ans. @", "ANS = @", "<b>Answer</b>: <b>@</b>", "Answer:- @",
    "<p>The answer is <span class=\"a2\">@</span>", "The answer to this question is @", "The answer has to be @",
]  # fmt: skip
ENCLOSED = ["<answer>@</answer>", "\\boxed{@}", "\\boxed {@}", "$\\boxed{@}$", "{\"answer\": \"@\"}",
            "{\"n\": 97, \"answer\": \"@\", \"check\": 99}", "<answer>**@**</answer>", "<h1>Answer: @</h1>"]  # fmt: skip
AFTER = [
    "", "", ".", "\n", " (97 less 99)", " (since 97 is too large)", ", because 97 is no option.",
    " since 97 + 2 = 99", ", not 97", " and not 97", "<br>", "; 97 is too large", ", which is 97 less than before", " (not 97)", "\n\\boxed{}",
    " <answer></answer>", "<|im_end|> 97", "\n\nQuestion: and 97?\nAnswer: 99",
]  # fmt: skip
# What makes another answer of it, or none: @ is the right value.
SPOILED = [
    "not @", "@ or 97", "97 or @", "between @ and 9999", "more than @", "less than @", "@ to 9999",
    "@ thousand", "@:05", "\\sqrt{@}", "@ and 97", "@; 97", "@, 97", "@/7", "@k", "@²", "@^2", "@ + 1",
    "2 * @", "H@", "@_1", "@ \\times 10^3", "\\frac{@}{7}", "@½", "1@", "-@", "x > @", "@e5", "@x", "@i", "@\\pi", "@\\sqrt{2}", "@π", "twice @", "half of @", "@ squared",
    "@ cubed", "@ dozen", "@ and a half", "@ plus 1", "at least @", "up to @", "@ at most", "x + @", "@ - x", "@ < x",
    "@ tenths", "@ feet 6 inches", "@ to the power of 2", "@ vs 97", "<del>@</del> 97", "@<sup>2</sup>", "(@, \\infty)",
]  # fmt: skip


def written(value: int, rng: random.Random) -> str:
    """A whole number as people write it."""
    digits, groups = str(value), f"{value:,}"
    ways = [digits, groups, f"${groups}", f"{digits}.0", f"Rs.{groups}", f"{groups} km", "€" + groups,
            f"\\text{{{digits}}}", f"\\frac{{{2 * value}}}{{2}}",
            f"{digits} \\text{{ m}}^2", f"{digits} cm^2", f"x = {digits}", f"{groups.replace(',', '{,}')}",
            f"{groups} m/s^2", f"{groups} km/h", f"{groups} kg/m^3", f"{digits} square metres", f"{digits} sq ft",
            f"about {digits}", f"{digits} m<sup>2</sup>", f"{digits}/1", f"<{digits}>",
            f"{value - 1} + 1 = {digits}", f"{digits}0 \\times 10^{{-1}}", f"{digits}%"]  # fmt: skip
    if value >= 1000:
        ways += [groups.replace(",", mark) for mark in ("'", "’", "\u00a0", "\u202f", "\\,", " ")]
        ways += [groups.replace(",", ".") + ",00"]
    return rng.choice(ways)


def expression(rng: random.Random) -> tuple[list[int], int, str]:
    """Numbers, a target, and an expression that reaches it, with Fraction's own arithmetic."""
    while True:
        a, b, c = (rng.randint(2, 60) for _ in range(3))
        left, right = rng.choice("+-*/"), rng.choice("+-*/")
        value = ast_value(f"({a} {left} {b}) {right} {c}")
        if value is not None and value.denominator == 1 and value > 0:
            return [a, b, c], int(value), f"({a} {left} {b}) {right} {c}"


def dressed(text: str, rng: random.Random) -> str:
    """An expression in other notation."""
    signs = {"*": ["*", "\\times", "\\cdot", "×", "⋅", "∗"], "/": ["/", "÷", "\\div", "∕"],
             "-": ["-", "−", "–", "—"], "+": ["+"], "(": ["(", "[", "\\left("]}  # fmt: skip
    opened = rng.choice(signs["("])
    closed = {"(": ")", "[": "]", "\\left(": "\\right)"}[opened]
    text = "".join(rng.choice(signs[c]) if c in "*/-+" else c for c in text)
    text = text.replace("(", opened).replace(")", closed)
    wrap = rng.choice(
        ["@", "$@$", "`@`", "\\boxed{@}", "$\\boxed{@}$", "\\(@\\)", "@.", "$$@$$", "**@**"]
    )
    return wrap.replace("@", text)


def response(kind: str, core: str, rng: random.Random, more: bool) -> str:
    """The answer in a response. Only numbers are marked by ####, and boxes rule over words in LaTeX."""
    before, said, after = rng.choice(BEFORE), rng.choice(SAID), rng.choice(AFTER) if more else ""
    if kind != "number" and said.startswith("####"):
        said = "The answer is @"
    if kind != "number":
        after = after.replace("<answer></answer>", "")
    if kind == "math":
        before = "" if "boxed{9" in before or "<answer>9" in before else before
    if rng.random() < 0.4:
        tail = rng.choice(["", " ", "\n", ".", " <answer></answer>", " I hope this helps."])
        return before + rng.choice(ENCLOSED).replace("@", core) + tail
    return before + said.replace("@", core) + after


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["number", "math", "choice", "countdown"])
def test_a_known_answer_in_clutter_has_the_verdict_that_was_put_in(kind: str) -> None:
    print(f"MLXREFLECT_FUZZ_SEED={SEED}")
    rng, task = random.Random(f"{kind} {SEED}"), TASKS["jsonl"]
    for _ in range(4000):
        gold, wrong = rng.sample(range(100, 99_999), 2)
        row: dict[str, Any] = {"gold": str(gold), "answer_type": kind}
        core, other, spoiled = written(gold, rng), written(wrong, rng), ""
        if kind == "number":
            spoiled = rng.choice(SPOILED).replace("@", str(gold))
        elif kind == "math":
            core, other = (
                rng.choice(["@", "$@$", "x = @", "$x = @$"]).replace("@", str(n))
                for n in (gold, wrong)
            )
        elif kind == "choice":
            row |= {"gold": "B", "choices": ["red", "blue", "green"]}
            forms = ["@", "(@)", "@.", "**@**", "$@$", "option @"]
            core, other = (rng.choice(forms).replace("@", letter) for letter in "BC")
            spoiled = rng.choice(
                [
                    "B or C",
                    "not B",
                    "B and C",
                    "A, B",
                    "B. green",
                    "BC",
                    "neither B nor C",
                    "either B or C",
                    "B? No",
                    "never B",
                    "B (or C)",
                ]
            )
        else:
            numbers, target, text = expression(rng)
            row |= {"numbers": numbers, "target": target}
            core, other = dressed(text, rng), dressed(f"{text} + 1", rng)
            spoiled = rng.choice(
                ["@!", "@ + 97 - 97", "@ = 97 = 97", "(@", "@ @", "@ or @", "@^1", "2@"]
            ).replace("@", text)
        problem = task.from_row(row)
        for said, right in ((core, True), (other, False), (spoiled, False)):
            text = (
                f"<answer>{said}</answer>"
                if kind == "countdown"
                else response(kind, said, rng, right)
            )
            if said:
                grade = task.grade(problem, text, "think", "direct")
                assert grade.verdict.correct is right, (text, row["gold"], grade)
