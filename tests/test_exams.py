"""Problems and rows that occur in an evaluation are left out, listed and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.shell import Shell, rows, sets
from support.trainings import said, user, write
from test_decontaminate import LONG, SHORT, WORDS, around

from mlxreflect.config.recipe import load_recipe
from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.evaluation.contamination import clean

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
    assert dropped(**{"eval.ngram": 12}) == every | ({ALIKE[2]} & set(trained(data)))


def test_all_of_the_evaluation_counts_whatever_its_limit(data: Path) -> None:
    assert clean(recipe(data, **{"eval.limit": 1})).rows == clean(recipe(data)).rows


def test_further_evaluations(data: Path) -> None:
    asked = next(text for text in trained(data) if text.startswith("What is"))
    write(data / "other.jsonl", [{"problem": f" {asked.upper()}", "id": "o1"}])
    (data / "spec.toml").write_text(
        f'part = "all"\n[task]\nname = "jsonl"\nsource = "{data / "other.jsonl"}"\n'
        'question = "problem"\nanswer = "id"\nanswer_type = "text"\n'
    )
    few = str(data / "few.toml")
    Path(few).write_text('limit = 4\n[task]\nname = "countdown"\n')
    plainly = clean(recipe(data))
    for name in ("other.jsonl", "spec.toml"):
        name = str(data / name)
        cleaned = clean(recipe(data, **{"eval.against": [name, few]}))
        (row,) = [row for row in cleaned.rows if row not in plainly.rows]
        assert (row["question"], row["spec"], row["how"]) == (asked, name, "exact")
        if name.endswith("jsonl"):
            assert row["eval_id"] == "o1"


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


def test_generated_problems_are_not_mistaken_for_each_other() -> None:
    cleaned = clean(load_recipe("quickstart", ["task.limit=200", "eval.limit=100"]))
    assert len(cleaned.problems) == 200
    assert cleaned.rows == []


@pytest.mark.slow
def test_a_run_leaves_them_out_and_says_so(data: Path, shell: Shell) -> None:
    given = [f"{key}={json.dumps(value)}" for key, value in own(data).items()]
    limits = sets("task.limit=0", "r3.wave=50", "r3.verifications=0", "r3.bucket_every=0",
                  "critic.max_tokens=12", "r3.rewrites=1")  # fmt: skip
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

FORMS: dict[str, Any] = {
    "prompt": lambda text: {"prompt": text, "completion": "7"},
    "completion": lambda text: {"prompt": "Repeat it.", "completion": text},
    "messages": lambda text: {"messages": [user("Hello?"), said("Yes?"), user(text), said("7")]},
    "answered": lambda text: {"messages": [user("Which?"), said(text), user("So?"), said("7")]},
    "conversations": lambda text: {"conversations": [{"from": "human", "value": text},
                                                     {"from": "gpt", "value": "7"}]},
    "text": lambda text: {"text": text},
    "pair": lambda text: {"prompt": text, "chosen": "7", "rejected": "8"},
    "rejected": lambda text: {"prompt": "Which?", "chosen": "7", "rejected": text},
    "group": lambda text: {"prompt": text, "completions": ["7", "8"], "rewards": [1, 0]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_command_finds_them_in_any_form(
    data: Path, shell: Shell, form: str
) -> None:  # fmt: skip
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
    (data / "rows.jsonl").write_text(
        json.dumps({"prompt": SHORT})
        + "\n{broken\n"
        + json.dumps({"prompt": "\x1b[31mfine"})
        + "\n"
    )
    done = shell.works("decontaminate", "rows.jsonl", "--against", "exam.jsonl")
    assert " ".join(done.out.split()).endswith(
        "1 row occurs in the evaluation (1 as a whole, 0 by 13 words in a row); 1 of 2 rows are "
        "clean; 1 could not be read"
    )
    assert "what is 48 plus 17" in done.out
    assert "rows.jsonl, line 1" in done.out
    write(data / "other.jsonl", [{"question": plain(1)}])
    said = shell.works("decontaminate", "rows.jsonl", "--against", "other.jsonl").out
    assert said.startswith("no row occurs in the evaluation")


def test_no_questions_are_no_assurance(shell: Shell) -> None:
    (shell.folder / "empty.jsonl").write_text("")
    (shell.folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    error, _ = shell.mistake("decontaminate", "rows.jsonl", "--against", "empty.jsonl")
    assert "empty.jsonl: no questions in it" in error


def test_mistakes_of_the_command(data: Path, shell: Shell) -> None:
    common = ["decontaminate", "mine.jsonl", "--against"]
    assert "no eval 'nothing'" in shell.mistake(*common, "nothing")[0]
    assert "missing.jsonl" in shell.mistake(*common, "missing.jsonl")[0]
    assert "is there already" in shell.mistake(*common, "exam.jsonl", "--out", "mine.jsonl")[0]
    said = shell.mistake(*common, "exam.jsonl", "--out", "no/where.jsonl")[0]
    assert said == "no/where.jsonl: No such file or directory"
    said, hint = shell.mistake(*common, "exam.jsonl", "--out", "clean rows.csv")
    assert said == "clean rows.csv: rows are written as JSON lines"
    assert hint == "give --out 'clean rows.jsonl'"
    said = shell.mistake("decontaminate", "missing.jsonl", "--against", "exam.jsonl")[0]
    assert said == "missing.jsonl: no such file"


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
    assert said[0] == "data.ngram = 8 does nothing without data.against"
