"""What occurs in an evaluation is found, and what only looks alike is not."""

import json
import random
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxreflect.core.records import make_problem
from mlxreflect.data.contamination import (
    WORDING,
    Index,
    Question,
    build_index,
    count,
    find,
    normal_words,
    told,
    whole_key,
)
from mlxreflect.tasks import question_of

DATA = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
SHORT = "What is 48 plus 17?"
LONG = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?"
)
WORDS = LONG.split()  # 27 of them, none of them twice in the same company


def index(*texts: str, n: int = 13) -> Index:
    return build_index([Question("exam", str(i), [t], t) for i, t in enumerate(texts)], n)


def how(text: str, *asked: str, n: int = 13) -> str | None:
    match = find(index(*asked, n=n), [text], [text])
    return match.how if match else None


# ---- the same question ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelled",
    [
        str.upper,
        str.title,
        lambda text: text.replace(" ", " \n\t "),
        lambda text: text.replace(",", "").replace("?", " !!!").replace(".", " ;"),
        lambda text: f"“{text}”",
        lambda text: f"**{text}**",
        lambda text: "".join(c + "\u200b" for c in text),
        lambda text: text.replace("a", "a\u0301").replace("a\u0301", "a"),
    ],
)
@pytest.mark.parametrize("text", [SHORT, LONG])
def test_a_question_in_other_spelling_is_the_same(text, spelled):
    assert how(spelled(text), text) == "exact"
    assert how(text, spelled(text)) == "exact"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 + 4?", "what is 3+4"),
        ("A half-price ticket costs $1,000.", "a half price ticket costs 1000"),
        ("Don't he and she add 3, 4, 5?", "Dont he and she add 3,4,5"),
        ("From 3–4 pm", "from 3 - 4 PM"),
        ("What is 7 × 8 ÷ 2?", "What is 7*8/2?"),
        ("Straße und Café", "STRASSE UND CAFE\u0301"),
        ("Tom - a boy - has 3 of them", "Tom, a boy, has 3 of them"),
        ("He has 5 - not 6 - apples", "He has 5, not 6, apples"),
        ("x + 2 = 5", "x+2=5"),
    ],
)
def test_punctuation_and_spaces_make_no_other_text(one, other):
    assert whole_key(normal_words(one)) == whole_key(normal_words(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 48 plus 17?", "What is 48 plus 18?"),
        ("It costs 3.5 dollars", "It costs 35 dollars"),
        ("What is 3 + 4?", "What is 3 - 4?"),
        ("What is (3 + 4) * 5?", "What is (3 + 4) - 5?"),
        ("What is 3 / 4 of it?", "What is 34 of it?"),
        ("x^2 + 3x = 5", "x^2 - 3x = 5"),
        ("x <= 5", "x >= 5"),
        ("It was -5 degrees", "It was 5 degrees"),
        ("Add 3 45", "Add 34 5"),
        ("Add {3}{45}", "Add {34}{5}"),
        ("हिन्दी", "हनद"),
    ],
)
def test_another_number_or_calculation_is_another_text(one, other):
    assert whole_key(normal_words(one)) != whole_key(normal_words(other))
    assert how(one, other) is None


def test_symbols_alone_are_no_text():
    assert how("???", "…") is None
    assert how("", "") is None


# ---- words in a row ------------------------------------------------------------------------------


def around(words: list[str], before: int = 20, after: int = 20) -> str:
    """Words of a question in the middle of others."""
    rng = random.Random(1)
    noise = ["".join(rng.choices(string.ascii_lowercase, k=9)) for _ in range(before + after)]
    return " ".join([*noise[:before], *words, *noise[before:]])


@pytest.mark.parametrize("start", range(len(WORDS) - 12))
def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not(start):
    assert how(around(WORDS[start : start + 13]), LONG) == "ngram"
    assert how(around(WORDS[start : start + 12]), LONG) is None
    assert how(around(WORDS[start : start + 12]), LONG, n=12) == "ngram"


def test_the_words_shared_are_named():
    text = around(WORDS[5:18]).upper().replace(" ", "  ")
    match = find(index("Something else entirely?", LONG), ["other", text], ["other", text])
    assert match
    assert (match.spec, match.id, match.how, match.text) == ("exam", "1", "ngram", text)
    assert match.shared == "of her friends in april and then she sold half as many clips"


def test_a_changed_number_leaves_no_overlap_where_less_than_thirteen_words_are_left():
    text = "A shop has 12 red and some blue pens and sells 7 of them a day at 3 dollars each"
    for number in ("12", "7", "3"):
        assert how(text, text) == "exact"
        text = text.replace(number, f"4{number}")
    assert how(text, text.replace("47", "7")) is None  # 10 words before it and 9 after it
    assert how(text, text.replace("43", "3")) == "ngram"  # 17 before it


def test_a_short_question_must_be_the_whole_text():
    assert how(f"Please tell me: {SHORT}", SHORT) is None
    assert how(around(SHORT.split()), SHORT) is None
    twelve = " ".join(WORDS[:12])
    assert how(twelve, twelve) == "exact"
    assert how(around(WORDS[:12]), twelve) is None


def test_zero_words_compare_whole_texts_only():
    assert how(around(WORDS), LONG, n=0) is None
    assert how(LONG.upper(), LONG, n=0) == "exact"


def test_words_that_many_questions_share_are_their_wording():
    frame = "Read the story with care and then answer with one number without any unit please:"
    asked = [f"{frame} how old is person {i}?" for i in range(WORDING + 1)]
    assert how(f"{frame} where is the train?", *asked) is None
    assert index(*asked).wording > 0
    assert how(asked[3].upper(), *asked) == "exact"
    # As many as that may still share it by chance; asked again and again one is still one.
    assert how(f"{frame} where is the train?", *asked[1:]) == "ngram"
    assert how(around(WORDS), *[LONG] * 20) == "ngram"


@settings(max_examples=50)
@given(st.text(), st.text())
def test_any_text_is_found_in_itself(one, other):
    words = normal_words(one)
    assert len(words) <= len(one.split())
    assert all(word and not any(c.isspace() for c in word) for word in words)
    assert how(one, other, one) == ("exact" if words else None)


# ---- problems ------------------------------------------------------------------------------------


def problem_match(trained, asked):
    question = question_of(trained)
    exam = build_index([question_of(asked, "exam")], 13)
    return find(exam, question.wholes, [question.body])


def countdown(numbers, target):
    return make_problem("countdown", {"numbers": numbers, "target": target})


def test_the_template_of_generated_problems_tells_nothing():
    assert problem_match(countdown([3, 4, 5], 35), countdown([3, 4, 5], 36)) is None
    same = problem_match(countdown([3, 4, 5], 35), countdown([5, 3, 4], 35))
    assert same and same.how == "exact"
    sums = [" + ".join(map(str, range(i, i + 20))) for i in (1, 2)]
    first, second = (make_problem("arithmetic", {"expression": e}, "1") for e in sums)
    assert problem_match(first, second) is None
    assert problem_match(first, first)


def choice(question, *options):
    choices = dict(zip("ABCD", options, strict=False))
    return make_problem(
        "jsonl", {"question": question, "answer_type": "choice", "choices": choices}, "A"
    )


def test_options_belong_to_a_short_question_in_any_order():
    asked = choice("Which is true?", "Birds fly.", "Fish sing.")
    assert problem_match(choice("which is TRUE", "Fish sing", "Birds fly"), asked)
    assert problem_match(choice("Which is true?", "Birds sing.", "Fish fly."), asked) is None
    assert problem_match(choice(LONG, "1", "2"), choice(f"So: {LONG}", "3", "4"))


def test_a_problem_of_another_task_is_found_by_its_text():
    written = make_problem(
        "jsonl", {"question": "numbers: 3, 4, 5; target: 35.", "answer_type": "text"}, "x"
    )
    assert problem_match(written, countdown([3, 4, 5], 35))


# ---- figures -------------------------------------------------------------------------------------


def test_counts_and_what_is_said_of_them():
    exam = index(SHORT, LONG)
    texts = [SHORT, LONG, around(WORDS), "Nothing of it."]
    found = [match for text in texts if (match := find(exam, [text], [text]))]
    counts = count(found, exam)
    assert counts == {"dropped": 3, "exact": 2, "ngram": 1, "specs": {"exam": 3}, "n": 13,
                      "wording": 0}  # fmt: skip
    assert told(counts) == (
        "3 training problems occur in the evaluation (2 as a whole, 1 by 13 words in a row) and "
        "were left out; see decontamination.jsonl"
    )
    assert told(count(found[:1], exam)).startswith("1 training problem occurs in")
    assert told(count([], exam), "row") == "no row occurs in the evaluation"


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["-", "1 ", ", ", "1,", "( ", "1 + ", "\u0301", "a\u0301", "1-", "x ", "word "]
)
def test_hostile_texts_take_linear_time(piece):
    """A quadratic step would take minutes here, and the whole run with it."""
    text = piece * (200_000 // len(piece))
    assert find(index(LONG), [text], [text]) is None


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no GSM8K here")
def test_gsm8k():
    """Four of 7473; three are a test problem with other numbers, one shares a sentence."""

    def asked(split):
        lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line)["question"] for line in lines if line]

    strip = str.maketrans("", "", string.punctuation)

    def runs(text):  # as lm-evaluation-harness counts them
        words = text.lower().translate(strip).split()
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    train, test = asked("train"), asked("test")
    exam = index(*test)
    found = {i: m for i, text in enumerate(train) if (m := find(exam, [text], [text]))}
    theirs = set().union(*map(runs, test))
    assert set(found) == {i for i, text in enumerate(train) if runs(text) & theirs}
    assert {i: m.how for i, m in found.items()} == dict.fromkeys((20, 406, 1314, 5162), "ngram")
    # Every test problem is found again, whatever its case and spaces.
    for i, text in enumerate(test):
        match = find(exam, [f" {text.upper()}\n"], [])
        assert match and (match.how, match.id) == ("exact", str(i))
