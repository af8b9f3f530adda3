"""Worked solutions by people: files of them, what is trained on, and `mlxreflect annotate`."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_ollama import FakeOllama
from support.fake_server import free_port
from support.shell import Done, Shell

from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Example, make_problem
from mlxreflect.methods.rel_worked import (
    Worked,
    add_worked,
    by_people,
    human_examples,
    read_worked,
)
from mlxreflect.tasks import TASKS

COUNTDOWN = TASKS["countdown"]


# ---- files ---------------------------------------------------------------------------------------

ONE, TWO = Worked("1 + 1?", "It is 2.", "2", ""), Worked("2 + 2?", "It is 4.", "4", "")


@pytest.mark.parametrize("name", ["w.md", "w.jsonl"])
@pytest.mark.parametrize("change", [
    lambda data: data.rstrip(b"\n"), lambda data: b"\xef\xbb\xbf" + data,
    lambda data: data.replace(b"\n", b"\r\n"), lambda data: data + b"\n\n",
])  # fmt: skip
def test_a_file_that_others_wrote_is_added_to(tmp_path: Path, name: str, change: Any) -> None:
    """Without a newline at its end, with a byte order mark, with the line ends of Windows."""
    path = tmp_path / name
    add_worked(path, ONE)
    path.write_bytes(before := change(path.read_bytes()))
    add_worked(path, TWO)
    assert path.read_bytes().startswith(before)
    found = [(w.question, w.working.partition("\n")[0], w.gold) for w in read_worked(path)]
    assert found == [("1 + 1?", "It is 2.", "2"), ("2 + 2?", "It is 4.", "4")]


def test_headings_with_numbers_and_texts(tmp_path: Path) -> None:
    """None of them becomes part of the answer before it."""
    (tmp_path / "w.md").write_text(
        "### Question\nA?\n### Answer\n<answer>1</answer>\n"
        "### Question 2\nB?\n### Answer #2:\n<answer>2</answer>\n"
        "## Question: C?\nOr so?\n## Answer: Well.\n<answer>3</answer>\n## Questions are hard\n"
    )
    assert [(w.question, w.working, w.gold) for w in read_worked(tmp_path / "w.md")] == [
        ("A?", "<answer>1</answer>", "1"), ("B?", "<answer>2</answer>", "2"),
        ("C?\nOr so?", "Well.\n<answer>3</answer>\n## Questions are hard", "3"),
    ]  # fmt: skip


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    (tmp_path / "w.md").write_bytes(b"\xef\xbb\xbf\r\n")
    assert read_worked(tmp_path / "w.md") == []
    add_worked(tmp_path / "w.md", ONE)
    assert [w.question for w in read_worked(tmp_path / "w.md")] == ["1 + 1?"]


LINE = st.sampled_from(
    ["", "a", "### Answer", "  # question:", "\\### Question", "\\\\###### ANSWER ",
     " \\### Answer", "\\a", "### Answers", "### Answer\u2028b", "### Question 2: a", "## answer. "]
)  # fmt: skip
TEXT = st.lists(LINE, min_size=1).map(lambda lines: "\n".join(lines).strip() or "x")


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_whatever_a_text_says_the_file_can_be_read(texts: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "w.md"
        for question, working in texts:
            add_worked(path, Worked(question, working, None, ""))
        found = [(worked.question, worked.working, worked.gold) for worked in read_worked(path)]
    assert found == [(*("\n".join(text.splitlines()) for text in pair), None) for pair in texts]


# ---- worked solutions by people ------------------------------------------------------------------

GOOD = "step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35"


def people(path: Path, text: str, **tables: Any) -> tuple[list[Example], dict[str, int]]:
    path.write_text(text)
    rel = {"human": str(path), **tables.pop("rel", {})}
    tree = {"strategy": "rel", "rel": rel, "eval": {"decontaminate": "off"}, **tables}
    recipe = Recipe.model_validate(tree)
    known = make_problem("countdown", {"numbers": [3, 4, 5], "target": 35})
    return human_examples(recipe, [known])


def test_markdown_of_people(tmp_path: Path) -> None:
    asked = "Numbers: 3 4 5\nTarget: 35"
    examples, left_out = people(
        tmp_path / "w.md",
        f"""# Ours
### Question
{asked}
### Answer
Hm. 3 * 4 = 12? No.
{GOOD}
<answer>(3 + 4) * 5</answer>

### question:
Another one?
#### Answer
Yes.
<answer>yes</answer>

### Question
{asked}
### Answer
{GOOD}
<answer>3 + 4 + 5</answer>

### Question
No answer here
### Answer
None.
""",
    )
    first, second = examples
    assert first.completion == (
        f"<think>\nHm. 3 * 4 = 12? No.\n{GOOD}\n</think>\n<answer>(3 + 4) * 5</answer>"
    )
    assert first.weight == 2.0 and first.prompt[-1]["content"] == asked
    assert first.source["human"].endswith("w.md, line 2") and first.source["problem"]
    assert second.prompt[-1]["content"] == "Another one?" and second.source["problem"] is None
    assert left_out == {"the grader calls it wrong": 1, "it has no answer": 1}
    why = "(2 left out; the grader calls it wrong: 1, it has no answer: 1)"
    assert by_people(len(examples), left_out) == f"2 by people {why}"


def test_a_question_of_the_run_is_known_whatever_its_spacing(tmp_path: Path) -> None:
    """And is asked as an evaluation asks it; its grader decides."""
    asked = "\ufeff### Question\r\nNUMBERS: 3  4 5 \r\nTarget: 35\r\n### Answer\r\n"
    examples, left_out = people(
        tmp_path / "w.md", f"{asked}{GOOD}\r\n<answer>(3 + 4) * 5</answer>\r\n"
    )
    (example,) = examples
    assert example.source["problem"] and left_out == {}
    assert example.prompt[-1]["content"] == "Numbers: 3 4 5\nTarget: 35"
    _, left_out = people(tmp_path / "w.md", f"{asked}{GOOD}\r\n<answer>(3 + 5) * 4</answer>\r\n")
    assert left_out == {"the grader calls it wrong": 1}


def test_reasonset_rows_of_people(tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text('{"question": "Asked?", "answer": 1}\n')
    base = {"problem": "Q?", "ground_truth": "1", "working_out": "It is 1.", "final_solution": "1!"}
    rows = [base, base, {**base, "working_out": "It is 2.", "is_correct": False},
            {**base, "ground_truth": None}, {**base, "problem": "Asked ?"},
            {**base, "working_out": "<think>so</think><answer>1</answer>",
             "ground_truth": 1}]  # fmt: skip
    text = "".join(json.dumps(r) + "\n" for r in rows)
    examples, left_out = people(tmp_path / "w.jsonl", text,
                   eval={"spec": "jsonl", "source": str(tmp_path / "exam.jsonl")})  # fmt: skip
    assert [e.completion for e in examples] == [
        "<think>\nIt is 1.\n</think>\n<answer>1</answer>", "<think>so</think><answer>1</answer>",
    ]  # fmt: skip
    assert left_out == {
        "it is there twice": 1, "it says itself that it is wrong": 1, "it has no answer": 1,
        "its question occurs in the evaluation": 1,
    }  # fmt: skip
    (tidied,), _ = people(
        tmp_path / "w.jsonl", json.dumps(base), rel={"target": "tidied", "review": True}
    )
    assert tidied.completion == "<think>\n1!\n</think>\n<answer>1</answer>"


def test_what_people_have_wrong_is_not_mended_and_not_trained_on(tmp_path: Path) -> None:
    """Of problems that only their file has: by the ground truth beside them."""
    base = {"problem": "What is 40 + 4?", "ground_truth": "44"}
    workings = [
        "I think 40 + 4 <answer>45</answer>",
        "<think>40 + 4 = 45</think><answer>45</answer>",
        "40 + 4, <answer>44",  # never closed
        "According to the feedback it is 44. <answer>44</answer>",
        "40 + 4 <answer>44.0</answer>",
        "40  +  4\n<answer>44.0</answer>",
        r"40 + 4 is \boxed{45}",
        r"40 + 4 is \boxed{44\text{ cm}}",
    ]
    rows = [{**base, "working_out": text} for text in workings]
    rows.append({**rows[5], "problem": "what is  40 + 4? "})
    text = "".join(json.dumps(r) + "\n" for r in rows)
    examples, left_out = people(tmp_path / "w.jsonl", text)
    assert [e.completion for e in examples] == [
        "<think>\n40 + 4\n</think>\n<answer>44.0</answer>",
        "<think>\n40 + 4 is \\boxed{44\\text{ cm}}\n</think>\n<answer>44</answer>",
    ]
    assert left_out == {
        "its answer is not its ground_truth": 3, "it does not fit the format": 1,
        "it says 'according to the feedback'": 1, "it is there twice": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name,text,said", [
    ("w.md", "### Question\na\n### Question\nb", "w.md, line 3: a second question"),
    ("w.md", "### Answer\na", "w.md, line 1: a second answer"),
    ("w.md", "### Question\na\n", "w.md, line 1: a question without an answer"),
    ("w.md", "nothing", "w.md: no question"),
    ("w.md", "### Question\na\n### Answer\n \n", "w.md, line 3: nothing stands below this answer"),
    ("w.md", " \n", "w.md: no worked solution is in it"),
    ("w.jsonl", "", "w.jsonl: no worked solution is in it"),
    ("w.jsonl", '{"problem": "a"}\n', "w.jsonl, line 1: no problem or no working_out"),
    ("w.jsonl", '{"problem": 1, "working_out": "b"}\n', "w.jsonl, line 1: problem is no str"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        people(tmp_path / name, text)
    assert said in caught.value.message


# ---- annotate ------------------------------------------------------------------------------------


def asked(shell: Shell, *more: str) -> Done:
    """On sums of one's own; 5 + 5 is the next one."""
    lines = [json.dumps({"question": f"{i} + 2?", "answer": str(i + 2)}) + "\n" for i in range(20)]
    (shell.folder / "sums.jsonl").write_text("".join(lines))
    settings = ("task.name=jsonl", "task.source=sums.jsonl", "eval.spec=", "critic.cache=off",
                "eval.decontaminate=off")  # fmt: skip
    return shell("annotate", "rel", *more, *(f"--set={one}" for one in settings))


def writes_out(body: dict[str, Any]) -> str:
    """In the format asked for, with a step more."""
    notes = body["messages"][-1]["content"].partition("<notes>\n")[2].partition("\n</notes>")[0]
    thought, _, answer = notes.partition("<answer>")
    return f"<think>\nIn full: {thought.strip()}\n</think>\n<answer>{answer}"


def use_editor(shell: Shell, text: str) -> None:
    """$EDITOR is a program that writes a text above the line."""
    (shell.folder / "editor.py").write_text(
        "import sys\npath = sys.argv[1]\ntext = open(path).read()\n"
        f"open(path, 'w').write({text!r} + text)\n"
    )
    shell.env |= {"VISUAL": "", "EDITOR": f"{sys.executable} editor.py"}


def next_sum(shell: Shell) -> int:
    """The sum that comes next, from what the command says of a wrong answer to it."""
    (shell.folder / "wrong.txt").write_text("No. <answer>-1</answer>")
    done = asked(shell, "w.md", "--working", "wrong.txt", "--no-expand", "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert found["kept"] is False
    return int(found["reason"].removeprefix("expected ").partition(",")[0])


@pytest.mark.slow
def test_right_workings_are_added_and_wrong_ones_are_not(tmp_path: Path) -> None:
    shell = Shell(tmp_path, tmp_path)
    first = next_sum(shell)
    assert not (shell.folder / "w.md").exists()
    (shell.folder / "notes.txt").write_text(f"Hm, 3? No.\n<answer>{first}</answer>")
    with FakeOllama(reply=writes_out, models=["critic"]) as server:
        critic = (f"--set=critic.base_url={server.url}", "--set=critic.model=critic")
        done = asked(shell, "w.md", "--working", "notes.txt", *critic)
        assert done.code == 0, done.err
        (body,) = server.chats
    assert "Hm, 3? No." in body["messages"][-1]["content"]
    assert "expected" not in body["messages"][-1]["content"]
    (one,) = read_worked(shell.folder / "w.md")
    assert (one.question, one.gold) == (f"{first - 2} + 2?", str(first))
    assert one.working == f"In full: Hm, 3? No.\n<answer>{first}</answer>"
    second = next_sum(shell)  # the first is worked
    assert second != first and len(read_worked(shell.folder / "w.md")) == 1
    use_editor(shell, f"Easy.\n<answer>{second}</answer>")  # and without the critic
    done = asked(shell, "w.md", "--no-expand")
    assert done.code == 0, done.err
    assert [w.gold for w in read_worked(shell.folder / "w.md")] == [str(first), str(second)]
    shell.env["EDITOR"] = "true"  # writes nothing
    done = asked(shell, "w.md", "--no-expand")
    assert done.code == 2 and "no working was written" in done.err
    assert not list(shell.folder.glob("w-*"))


@pytest.mark.slow
def test_what_a_person_wrote_is_not_lost(tmp_path: Path) -> None:
    """The critic is not there: the working stays, and the editor opens it again."""
    shell = Shell(tmp_path, tmp_path)
    right = next_sum(shell)
    use_editor(shell, f"Hm.\n<answer>{right}</answer>")
    done = asked(shell, "w.md", f"--set=critic.base_url=http://127.0.0.1:{free_port()}")
    assert done.code == 2 and not (shell.folder / "w.md").exists()
    (draft,) = shell.folder.glob("w-*.txt")
    assert f"your working is in {draft.name}" in done.out
    assert draft.read_text().startswith(f"Hm.\n<answer>{right}</answer>\n\n---")
    assert f"{right - 2} + 2?" in draft.read_text()
    shell.env["EDITOR"] = "true"  # leaves it as it is
    done = asked(shell, "w.md", "--no-expand")
    assert done.code == 0, done.err
    (one,) = read_worked(shell.folder / "w.md")
    assert one.working == f"Hm.\n<answer>{right}</answer>"
    assert not draft.exists()


@pytest.mark.slow
def test_what_cannot_be_added_is_said(tmp_path: Path) -> None:
    shell = Shell(tmp_path, tmp_path)
    shell.env |= {"VISUAL": "", "EDITOR": "touch opened"}
    for name in ("w.csv", "w.json", "w"):
        (shell.folder / name).write_text("[]")
        done = asked(shell, name, "--no-expand")
        assert done.code == 2 and "give a file that ends in .md or .jsonl" in done.err
        assert (shell.folder / name).read_text() == "[]"
    done = asked(shell, "w.csv/w.md", "--no-expand")
    assert done.code == 2 and "give another file" in done.err
    assert not (shell.folder / "opened").exists()
    (shell.folder / "none.txt").write_text(" \n")
    done = asked(shell, "new/w.md", "--working", "none.txt")
    assert done.code == 2 and "nothing is written in it" in done.err
    (shell.folder / "none.txt").write_text("It is 7.")
    done = asked(shell, "w.md", "--working", "none.txt", "--no-expand")
    assert done.code == 1 and "not kept: no <answer>…</answer> at its end" in done.out
    assert not (shell.folder / "w.md").exists()
