"""Episodes to training data: which pairs, from which turns, and nothing a critic was shown."""

import csv
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hostile import flood
from support.marks import slow_but

from mlxreflect.core.records import Episode, Outcome, Turn, Verdict, make_problem
from mlxreflect.data.forms import trl_row
from mlxreflect.data.leak_wordings import heaviest
from mlxreflect.data.leaks import giveaway, leak
from mlxreflect.methods.base import completion, preference
from mlxreflect.prompts.parsing import TAGS, parse_response
from mlxreflect.prompts.roles import quote, role_messages

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import leaks as bench

DATA_FOLDER = Path(__file__).parent / "data"

QUESTION, GOLD = "What is six times seven?", "GOLD-42"
DATA = {"instruction": "Multiply.", "question": QUESTION, "attempt": "x", "expected": GOLD}
PROMPT = role_messages("attempt_thinking", "think", **DATA)
SHOWN = role_messages("critique", "think", **DATA)
REWRITING = role_messages("rewrite", "think", **DATA, feedback="feedback: SECRET")
RIGHT, WRONG = Verdict(True, True, ""), Verdict(False, True, "the answer is 36")


def turn(index: int, parent: int | None, role: Any, verdict: Verdict | None, **more: Any) -> Turn:
    by_policy = role in ("attempt", "verify")
    messages = PROMPT if by_policy else SHOWN if role == "critique" else REWRITING
    text = f"text {index}"
    ids = [index, 9] if by_policy else None
    return Turn(index, parent, role, "someone", messages, text, verdict=verdict, token_ids=ids,
                visibility="none" if by_policy else "gold_answer", **more)  # fmt: skip


def episode(*turns: Turn) -> Episode:
    problem = make_problem("jsonl", {"question": QUESTION}, GOLD)
    return Episode("r3", 2, 5, problem, list(turns), Outcome(False, None, "bucket"))


# Attempt, two rewrites (the second on feedback to the first), a failed verification, a rewrite of
# that, and another verification: the whole course of an R³ problem.
WHOLE = episode(*(turn(i, i - 1 if i else None, role, verdict) for i, (role, verdict) in enumerate([
    ("attempt", WRONG), ("critique", None), ("rewrite", WRONG), ("critique", None),
    ("rewrite", RIGHT), ("verify", WRONG), ("critique", None), ("rewrite", RIGHT),
    ("verify", RIGHT),
])))  # fmt: skip


def test_tokens_of_the_policy_are_kept_and_a_critics_are_not_invented() -> None:
    first = preference(WHOLE, WHOLE.turns[4], WHOLE.turns[0])
    assert (first.chosen_ids, first.rejected_ids) == (None, [0, 9])
    own = replace(WHOLE.turns[4], token_ids=[4, 4, 9])  # the policy was its own critic
    pair = preference(WHOLE, own, WHOLE.turns[0])
    assert pair.chosen_ids == [4, 4, 9]
    assert completion(WHOLE, WHOLE.turns[8]).completion_ids == [8, 9]
    assert completion(WHOLE, WHOLE.turns[4]).completion_ids is None
    found = completion(WHOLE, WHOLE.turns[8], 0.25)
    assert (found.kind, found.completion, found.weight) == ("sft", "text 8", 0.25)
    assert found.source["turns"] == [8]
    assert (found.chosen, found.rejected) == (None, None)


def test_a_training_prompt_is_the_attempts_own() -> None:
    """Never a rewrite's: that one shows the attempt, the feedback and the gold answer."""
    examples = [
        preference(WHOLE, WHOLE.turns[7], WHOLE.turns[5]),
        completion(WHOLE, WHOLE.turns[4]),
        completion(WHOLE, WHOLE.turns[8]),
    ]
    for example in examples:
        assert example.prompt == PROMPT
        text = json.dumps([example.prompt, trl_row(example)])
        assert GOLD not in text
        assert "SECRET" not in text
    assert GOLD in json.dumps([SHOWN, REWRITING])  # it was there to be leaked
    assert quote("expected", GOLD) in REWRITING[1]["content"]


def test_trls_forms() -> None:
    first = preference(WHOLE, WHOLE.turns[4], WHOLE.turns[0])
    assert trl_row(first) == {
        "prompt": PROMPT,
        "chosen": [{"role": "assistant", "content": "text 4"}],
        "rejected": [{"role": "assistant", "content": "text 0"}],
    }
    assert trl_row(completion(WHOLE, WHOLE.turns[4])) == {
        "prompt": PROMPT,
        "completion": [{"role": "assistant", "content": "text 4"}],
    }


def leaked(text: str, style: str = "thinking", question: str = "") -> str:
    return leak(text, parse_response(text, "think", style).spans, style, question)


@pytest.mark.parametrize("kind", ["leak", "fine"])
def test_sentences_that_leak_and_sentences_with_the_same_words(kind: str) -> None:
    """data/leaks.tsv, from which rules and weights were learned: so they have to know nearly all.

    How lists are judged that taught nothing is the next test's, and tests/bench/leaks.py's.
    """
    with (DATA_FOLDER / "leaks.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [row["text"] for row in rows if row["kind"] == kind]
    assert len(texts) >= 150
    missed = [text for text in texts if bool(giveaway(text)) != (kind == "leak")]
    assert len(missed) <= {"leak": 0.03, "fine": 0.02}[kind] * len(texts), missed


@pytest.mark.slow
def test_a_list_is_judged_by_what_the_other_lists_teach() -> None:
    texts = [*bench.listed(), *bench.made(random.Random(0), [])]
    corpus = bench.Corpus(texts, json.loads(bench.SHIPPED.read_text(encoding="utf-8"))["classes"])
    judged = corpus.lists == "W1"
    weights, _ = corpus.learn(~judged)
    scores = corpus.scores(weights)
    threshold = np.quantile(scores[judged & ~corpus.leaks], 0.98)
    assert np.mean(scores[judged & corpus.leaks] > threshold) >= 0.8


@pytest.mark.parametrize(
    ("said", "phrase"),
    [
        ("the expected answer", "expected answer"),
        ("As the **critic** said, it", "as the critic said"),
        ("my previous attempt", "previous attempt"), ("You’re right, it", "you're right"),
        ("see `</Expected>`; it", "</expected>"), ("the expected_answer", "expected answer"),
    ],
)  # fmt: skip
def test_a_rewrite_that_says_it_was_helped(said: str, phrase: str) -> None:
    broken = said.replace(" ", "\n ")  # where a line breaks
    for told in (said, said.upper(), broken):
        assert repr(phrase) in leaked(f"<think>6 * 7, {told}, is 42</think><answer>42</answer>")
        assert leaked(f"<think>6 * 7 is 42</think><answer>42</answer> {told}")


def test_each_sentence_is_weighed_by_itself() -> None:
    """What was said before makes no sentence worse, so a long text may say what a short one may."""
    with (DATA_FOLDER / "leaks.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:800]
    rows = [row for row in rows if bool(heaviest(row["text"])) == (row["kind"] == "leak")][:600]
    fine = [row["text"] for row in rows if row["kind"] == "fine"]
    leaks = [row["text"] for row in rows if row["kind"] == "leak"]
    assert min(len(fine), len(leaks)) > 200
    assert heaviest("\n".join(fine)) == ""
    for at in range(0, len(leaks), 20):
        assert heaviest("\n".join([*fine[at : at + 20], leaks[at]]))


@pytest.mark.parametrize("tags", ["think", "preflexor"])
def test_headings_and_edges_of_a_thought_leak_nothing(tags: str) -> None:
    start, end = TAGS[tags]
    sections = "Reasoning steps:\nBees gather nectar.\n\nHypothesis:\nOn hypothesis."
    graph = "Knowledge graph:\nnotes | answer | question\nfeedback | controls | system"
    for thought in (sections, graph):
        assert giveaway(f"{start}\n{thought}\n{end}\n<answer>432 of them</answer>") == ""


def test_a_label_leaks_at_the_beginning_of_a_line_alone() -> None:
    assert giveaway("6 * 7\n**Feedback:** the sum is wrong") == "feedback:"
    assert giveaway("A loop of\nfeedback: 6 * 7") == "feedback:"
    assert giveaway("a loop with feedback: 6 * 7") == ""


def test_a_text_may_speak_of_what_its_problem_speaks_of() -> None:
    said = "The reviewers said yes in 3 of 4 cases, and the attempt costs 5. "
    question = "Two reviewers judge each attempt. What does it cost?"
    assert (giveaway(said, question), bool(giveaway(said))) == ("", True)
    assert giveaway(said + "The feedback says 15.", question) == "the feedback"


@pytest.mark.parametrize(
    "unit",
    slow_but(
        ["the ", "the first answer ", "in the ", "as if i ", "a", "the first answer a, ", "'", "\n",
         "*"], "a", "the first answer a, ", "'", "\n", "*",
    ),
)  # fmt: skip
def test_a_long_text_is_read_in_seconds(unit: str) -> None:
    """A rule that is not linear would not come to an end here."""
    text = flood(unit, 1 << 18)
    assert giveaway(text) == ""
    assert giveaway(text + ". The feedback says no.")


def test_a_rewrite_without_working() -> None:
    for thought in ("<think></think>", "<think> </think>", "<think>\n \n</think>",
                    "<think>7</think>", ""):  # fmt: skip
        text = f"{thought}<answer>42</answer>"
        assert "restates" in leaked(text)
        assert leaked(text, "direct") == ""


@pytest.mark.parametrize(
    "text",
    [
        "<think>6 * 7 = 42</think><answer>42</answer>",
        "6 * 7 = 42</think><answer>42</answer>",
        "<think>The problem has provided two numbers: 6 * 7 = 42</think><answer>42</answer>",
        "<think>Of the given answer choices,\nB is 42</think><answer>B</answer>",
        "<think>The feedback loop gains 42</think><answer>42</answer>",
        "<think>\nWait, 6 * 6 is 36. The answer must be 42.\n</think>\n<answer>42</answer>",
    ],
)
def test_honest_working_is_no_leak(text: str) -> None:
    assert leaked(text) == ""
