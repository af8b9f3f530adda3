"""Contamination: what an evaluation asks is found, left out, listed and counted; likes are not."""

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shell import Shell, rows, sets
from support.trainings import said, user, write

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import DataConfig, Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Example, make_problem
from mlxreflect.data.matching import (
    WORDING,
    Index,
    Match,
    Question,
    build_index,
    count,
    find,
    normal_words,
    sentence,
    whole_key,
)
from mlxreflect.evaluation.contamination import clean, clean_examples, question_of

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
        ("???", "… and so on"),
    ],
)
def test_another_number_or_calculation_is_another_text(one, other):
    assert whole_key(normal_words(one)) != whole_key(normal_words(other))
    assert how(one, other) is None


# ---- words in a row ------------------------------------------------------------------------------


def around(words: list[str], before: int = 20, after: int = 20) -> str:
    """Words of a question in the middle of others."""
    rng = random.Random(1)
    noise = ["".join(rng.choices(string.ascii_lowercase, k=9)) for _ in range(before + after)]
    return " ".join([*noise[:before], *words, *noise[before:]])


@pytest.mark.parametrize("start", (0, 7, len(WORDS) - 13))
def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not(start):
    assert how(around(WORDS[start : start + 13]), LONG) == "ngram"
    assert how(around(WORDS[start : start + 12]), LONG) is None
    assert how(around(WORDS[start : start + 12]), LONG, n=12) == "ngram"


def test_the_words_shared_are_named():
    text = around(WORDS[5:18]).upper().replace(" ", "  ")
    found = find(index("Something else entirely?", LONG), ["other", text], ["other", text])
    shared = "of her friends in april and then she sold half as many clips"
    assert found == Match("exam", "1", "ngram", shared, text)


def test_a_changed_number_leaves_no_overlap_where_less_than_thirteen_words_are_left():
    text = "A shop has 12 red and some blue pens and sells 7 of them a day at 3 dollars each"
    for number in ("12", "7", "3"):
        assert how(text, text) == "exact"
        text = text.replace(number, f"4{number}")
    assert how(text, text.replace("47", "7")) is None  # 10 words before it and 9 after it
    assert how(text, text.replace("43", "3")) == "ngram"  # 17 before it


def test_a_short_question_must_be_the_whole_text():
    twelve = " ".join(WORDS[:12])
    for text, asked, n, found in (
        (f"Please tell me: {SHORT}", SHORT, 13, None),
        (around(SHORT.split()), SHORT, 13, None),
        (twelve, twelve, 13, "exact"),
        (around(WORDS[:12]), twelve, 13, None),
        (around(WORDS), LONG, 0, None),  # no words count: whole texts only
        (LONG.upper(), LONG, 0, "exact"),
        ("???", "…", 13, None),
        ("", "", 13, None),
    ):
        assert how(text, asked, n=n) == found


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
    written = {"question": "numbers: 3, 4, 5; target: 35.", "answer_type": "text"}
    assert problem_match(make_problem("jsonl", written, "x"), countdown([3, 4, 5], 35))


# ---- figures -------------------------------------------------------------------------------------


def test_counts_and_what_is_said_of_them():
    exam = index(SHORT, LONG)
    texts = [SHORT, LONG, around(WORDS), "Nothing of it."]
    found = [match for text in texts if (match := find(exam, [text], [text]))]
    assert count(found, exam) == {
        "dropped": 3, "exact": 2, "ngram": 1, "specs": {"exam": 3}, "n": 13, "wording": 0,
    }  # fmt: skip
    for matches, begins in (
        (found, "3 training problems occur in the evaluation (2 as a whole, 1 by 13 words in a row)"
                " and were left out; see decontamination.jsonl"),
        (found[:1], "1 training problem occurs in"),
        ([], "no training problem occurs in the evaluation"),
    ):  # fmt: skip
        assert sentence(count(matches, exam)).startswith(begins)


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


# ---- what is left out --------------------------------------------------------------------------

# What is planted, and how it is found.
PLANTED = [(SHORT.upper(), "exact"), (f"“{LONG}”", "exact"), (around(WORDS[3:16]), "ngram")]
ALIKE = [f"Tell me: {SHORT}", "What is 48 plus 18?", around(WORDS[3:15])]  # and not the same


def plain(i: int) -> str:
    return f"What is {i} times {i} more than {i}?"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """mine.jsonl: 40 plain questions, three planted and three near misses; exam.jsonl: two."""
    texts = [*map(plain, range(40)), *ALIKE, *(text for text, _ in PLANTED)]
    write(tmp_path / "mine.jsonl", [{"question": t, "answer": "7"} for t in texts])
    write(tmp_path / "exam.jsonl", [{"question": t, "answer": "65"} for t in (SHORT, LONG)])
    return tmp_path


def recipe(folder: Path, **settings: Any) -> Recipe:
    """Of mine.jsonl, all of it for training but what is asked in exam.jsonl."""
    given = {**own(folder), **settings}
    return load_recipe("quickstart", [f"{key}={json.dumps(v)}" for key, v in given.items()])


def own(folder: Path) -> dict[str, Any]:
    return {
        "task.name": "jsonl", "task.source": str(folder / "mine.jsonl"), "eval.spec": "jsonl",
        "eval.source": str(folder / "exam.jsonl"), "r3.feedback": "self", "r3.rewriter": "self",
    }  # fmt: skip


def trained(folder: Path) -> list[str]:
    """The questions of the training part, asked of nobody."""
    found = clean(recipe(folder, **{"eval.decontaminate": "off"})).problems
    return [problem.fields["question"] for problem in found.values()]


# ---- a recipe ------------------------------------------------------------------------------------


def test_what_is_asked_is_left_out_listed_and_counted(data: Path) -> None:
    """The training part is 70 %, so which are in it is looked up first."""
    before = trained(data)
    planted = {text: how for text, how in PLANTED if text in before}
    assert len(planted) > 1 and set(ALIKE) & set(before)
    cleaned = clean(recipe(data))
    left = [problem.fields["question"] for problem in cleaned.problems.values()]
    assert left == [text for text in before if text not in planted]
    assert {row["question"]: row["how"] for row in cleaned.rows} == planted
    for row in cleaned.rows:
        assert row["schema"] == "collision/1" and row["spec"] == "jsonl"
        assert row["id"] not in cleaned.problems
        assert len(row["shared"].split()) == 13 or row["how"] == "exact"
    assert cleaned.counts
    assert cleaned.counts["dropped"] == len(planted)
    assert cleaned.sentence().startswith(f"{len(planted)} training problems occur in the eval")


def test_exact_and_off_and_other_numbers_of_words(data: Path) -> None:
    def dropped(**settings: Any) -> set[str]:
        return {row["question"] for row in clean(recipe(data, **settings)).rows}

    every = dropped()
    overlaps = {text for text, how in PLANTED if how == "ngram"} & every
    assert dropped(**{"eval.decontaminate": "exact"}) == every - overlaps
    assert clean(recipe(data, **{"eval.decontaminate": "off"})).counts is None
    assert dropped(**{"eval.ngram": 14}) == every - overlaps
    assert dropped(**{"eval.limit": 1}) == every  # all of the evaluation counts
    assert dropped(**{"eval.ngram": 12}) == every | ({ALIKE[2]} & set(trained(data)))


def test_further_evaluations(data: Path) -> None:
    asked = next(text for text in trained(data) if text.startswith("What is"))
    other = str(write(data / "other.jsonl", [{"problem": f" {asked.upper()}", "id": "o1"}]))
    spec, few = data / "spec.toml", data / "few.toml"
    spec.write_text(f'part = "all"\n[task]\nname = "jsonl"\nsource = "{other}"\n'
                    'question = "problem"\nanswer = "id"\nanswer_type = "text"\n')  # fmt: skip
    few.write_text('limit = 4\n[task]\nname = "countdown"\n')
    plainly = clean(recipe(data))
    for name in (other, str(spec)):
        cleaned = clean(recipe(data, **{"eval.against": [name, str(few)]}))
        (row,) = [row for row in cleaned.rows if row not in plainly.rows]
        assert (row["question"], row["spec"], row["how"]) == (asked, name, "exact")
        assert row["eval_id"] == "o1" or name != other


def test_names_may_be_one_word_on_the_command_line() -> None:
    given = ["eval.against=gsm8k", "eval.against=gsm8k,countdown", 'eval.against=["gsm8k"]']
    found = [load_recipe("quickstart", [setting]).eval.against for setting in given]
    assert found == [["gsm8k"], ["gsm8k", "countdown"], ["gsm8k"]]


def test_mistakes(data: Path) -> None:
    with pytest.raises(UserError, match="no eval 'nothing'"):
        clean(recipe(data, **{"eval.against": ["nothing"]}))
    with pytest.raises(UserError, match=r"does nothing while eval\.decontaminate"):
        recipe(data, **{"eval.against": ["gsm8k"], "eval.decontaminate": "off"})
    write(data / "odd.jsonl", [{"text": "no question"}])
    with pytest.raises(UserError, match=r"odd\.jsonl, line 1: no question"):
        clean(recipe(data, **{"eval.against": [str(data / "odd.jsonl")]}))
    same = {"eval.source": str(data / "mine.jsonl")}
    with pytest.raises(UserError, match=r"no problem is left to train on: all \d+ occur"):
        clean(recipe(data, **same))


@pytest.mark.slow
def test_a_run_leaves_them_out_and_says_so(data: Path, shell: Shell) -> None:
    given = [f"{key}={json.dumps(value)}" for key, value in own(data).items()]
    limits = sets("task.limit=0", "r3.wave=50", "r3.verifications=0", "r3.bucket_every=0",
                  "critic.max_tokens=12", "r3.rewrites=1", "allow_untrained=true")  # fmt: skip
    common = ["run", "quickstart", *shell.small, *sets(*given), *limits]
    expected = clean(recipe(data))
    assert expected.rows
    assert expected.sentence() in shell.works(*common, "--dry-run").out
    assert expected.sentence() in shell.works(*common, "--run-dir", "run").out
    assert rows(data / "run" / "decontamination.jsonl") == expected.rows
    summary = json.loads((data / "run" / "summary.json").read_text())
    assert summary["decontaminated"] == expected.counts
    episodes = list(read_rows(data / "run" / "episodes.jsonl"))
    assert {row["problem"]["id"] for row in episodes} == set(expected.problems)
    shown = " ".join(shell.works("show", "run").out.split())
    assert f"decontaminated {expected.sentence()}" in shown
    # Taken up again it lists the same, once.
    before = (data / "run" / "decontamination.jsonl").read_bytes()
    (data / "run" / "summary.json").unlink()
    shell.works("resume", "run")
    assert (data / "run" / "decontamination.jsonl").read_bytes() == before


# ---- anyone's training data ----------------------------------------------------------------------

FORMS: dict[str, Any] = {  # whatever holds them, at any depth
    "messages": lambda text: {"messages": [user("Hello?"), said("Yes?"), user(text), said("7")]},
    "rejected": lambda text: {"prompt": "Which?", "chosen": "7", "rejected": text},
    "group": lambda text: {"prompt": "?", "completions": ["7", text], "rewards": [1, 0]},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_command_finds_them_in_any_form(data: Path, shell: Shell, form: str) -> None:
    make = FORMS[form]
    clean_rows = [make(text) for text in [*map(plain, range(3)), *ALIKE]]
    write(data / "rows.jsonl", [*clean_rows, *(make(text) for text, _ in PLANTED)])
    arguments = ["decontaminate", "rows.jsonl", "--against", "exam.jsonl"]
    done = shell.works(*arguments, "--json", "--out", "clean.jsonl")
    found = json.loads(done.out)
    assert rows(data / "clean.jsonl") == clean_rows
    assert (found["rows"], found["clean"], found["dropped"]) == (9, 6, 3)
    assert [row["how"] for row in found["collisions"]] == [how for _, how in PLANTED]
    assert [row["id"] for row in found["collisions"]] == [
        f"rows.jsonl, line {i}" for i in (7, 8, 9)
    ]
    assert {row["eval_id"] for row in found["collisions"]} == {"line 1", "line 2"}


def test_the_command_for_a_person(data: Path, shell: Shell) -> None:
    lines = [json.dumps({"prompt": SHORT}), "{broken", json.dumps({"prompt": "\x1b[31mfine"})]
    (data / "rows.jsonl").write_text("\n".join([*lines, ""]))
    done = shell.works("decontaminate", "rows.jsonl", "--against", "exam.jsonl")
    assert " ".join(done.out.split()).startswith(
        "1 row occurs in the evaluation (1 as a whole, 0 by 13 words in a row); 1 of 2 rows are "
        "clean; 1 could not be read"
    )
    assert "what is 48 plus 17" in done.out and "rows.jsonl, line 1" in done.out


def test_mistakes_of_the_command(data: Path, shell: Shell) -> None:
    write(data / "empty.jsonl", [])
    for rows_, exam, out, fault in (
        ("mine.jsonl", "missing.jsonl", "", "missing.jsonl"),
        ("mine.jsonl", "empty.jsonl", "", "empty.jsonl: no questions in it"),
        ("mine.jsonl", "exam.jsonl", "mine.jsonl", "already exists"),
        ("mine.jsonl", "exam.jsonl", "no/where.jsonl", "no/where.jsonl: No such file or directory"),
        ("missing.jsonl", "exam.jsonl", "", "missing.jsonl: no such file"),
        ("mine.jsonl", "exam.jsonl", "a b.csv", "a b.csv: rows are written as JSON lines"),
    ):
        given = ["--out", out] if out else []
        error, hint = shell.mistake("decontaminate", rows_, "--against", exam, *given)
        assert fault in error
    assert hint == "give --out 'a b.jsonl'"


@pytest.mark.parametrize("place", ["prompt", "completion", "chosen", "rejected", "completions"])
def test_every_text_of_an_example_is_looked_at(data: Path, place: str) -> None:
    told: Any = {"prompt": [user(LONG)], "completions": ["7", LONG]}.get(place, LONG)
    quoting = Example("sft", **{"prompt": [user("Which?")], place: told})
    other = Example("sft", [user("Which?")], completion="7")
    config = DataConfig(source="x", against=[str(data / "exam.jsonl")])
    kept, found, _ = clean_examples([other, quoting], config)
    assert kept == [other] and [row["question"] for row in found] == [LONG]


def test_a_training_leaves_out_whole_rows(data: Path, shell: Shell) -> None:
    """Also the turns of a conversation before the one that quotes the evaluation."""
    talks = [[user(plain(i)), said("7"), user(plain(i + 9)), said("8")] for i in range(8)]
    quoting = [user("Hello?"), said("Yes?"), user(LONG), said("72")]
    write(data / "talks.jsonl", [{"messages": talk} for talk in [*talks, quoting]])
    arguments = ["train", "sft", "--model", str(shell.model), "--data", "talks.jsonl",
                 *sets("data.against=exam.jsonl", "data.held_out=2")]  # fmt: skip
    done = shell.works(*arguments, "--out", "out", "--json")
    summary = json.loads(done.out)
    assert summary["rows"] + summary["held_out"] == 16
    assert summary["decontaminated"]["dropped"] == 1
    (row,) = rows(data / "out" / "decontamination.jsonl")
    assert (row["id"], row["question"]) == (f"{data / 'talks.jsonl'}, line 9", LONG)
    sentence = ("1 row occurs in the evaluation (1 as a whole, 0 by 13 words in a row) and was "
                "left out; see decontamination.jsonl")  # fmt: skip
    assert sentence in done.err
    assert sentence in " ".join(shell.works("show", "out").out.split())
    quotes = write(data / "quotes.jsonl", [{"messages": quoting}])
    arguments[arguments.index("talks.jsonl")] = str(quotes)
    assert "all 1 rows occur in" in shell.mistake(*arguments, "--out", "none")[0]


def test_keys_of_a_training_that_would_do_nothing(shell: Shell) -> None:
    said = shell.mistake("train", "sft", "--data", "x.jsonl", "--out", "o",
                         *sets("data.ngram=8"))  # fmt: skip
    assert said[0] == "mlxreflect train: data.ngram = 8 does nothing without data.against"
