"""`mlxreflect export`: what comes back is what went out, and what others read is what they know."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.shell import Shell, rows

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows, dump_line
from mlxreflect.core.records import Episode, Example, Outcome, Turn, Verdict, make_problem, to_row
from mlxreflect.data.examples import read_examples
from mlxreflect.data.forms import mlx_row, sharegpt_row, trl_row
from mlxreflect.prompts.roles import REFLECT, REFLECT_AND_RETRY
from mlxreflect.report.export import FORMS, export

Row = dict[str, Any]
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 · 7?"}]
TALK = [*ASKED, {"role": "assistant", "content": "41"}, {"role": "user", "content": "Again."}]
RIGHT, WRONG = Verdict(True, True, ""), Verdict(False, True, "it is 42")
SOURCE = {"problem": "ff", "epoch": 1, "wave": 0, "turns": [2, 0]}
EXAMPLES = [
    Example("preference", ASKED, chosen="<think>\né\n</think> 42", rejected="41",
            rejected_ids=[4, 1, 9], weight=0.5, mask="answer", source=SOURCE),
    Example("preference", TALK, chosen="42", rejected="", rejected_ids=[9]),
    Example("sft", TALK, completion="42", completion_ids=[4, 2, 9], source={"row": {"deep": [1]}}),
    Example("sft", ASKED, completion="half \ud83d", completion_ids=[7], source=SOURCE),
    Example("sft", [], completion="raw text", weight=2.0),
    Example("group", ASKED, completions=["42", "", "[{'role': 1}]"], rewards=[1.0, 0.0, -0.5],
            source={"turns": "none"}),
]  # fmt: skip


def turn(index: int, parent: int | None, role: Any, text: str, **more: Any) -> Turn:
    return Turn(index, parent, role, "someone", more.pop("messages", ASKED), text, **more)


def episode(*turns: Turn, gold: str | None = "42", number: int = 0) -> Episode:
    problem = make_problem("jsonl", {"question": f"6 · 7? ({number})"}, gold)
    solved = next((t.index for t in turns if t.verdict == RIGHT), None)
    return Episode("r3", 1, 0, problem, list(turns), Outcome(False, solved, "solved"))


FAILED = turn(1, 0, "critique", "", error="timed out")
SOLVED = episode(
    turn(0, None, "attempt", "<think>\n</think><answer>41</answer>", verdict=WRONG, parsed="41"),
    FAILED,
    turn(2, 0, "critique", "40 + 2 is not 41"),
    turn(3, 2, "rewrite", "41? No: 42 \ud83d", verdict=RIGHT, parsed="42", token_ids=[4, 2, 9]),
    turn(4, 3, "integrate", "6 · 7 = 42", verdict=RIGHT, parsed="42"),
)
UNSOLVED = episode(turn(0, None, "attempt", "", verdict=WRONG), FAILED, gold=None, number=1)
SILENT = episode(turn(0, None, "attempt", "", error="timed out"), number=2)
# Two reflections whose retries are right, one whose retry is wrong, one whose retry failed.
REFLECTED = episode(
    turn(0, None, "attempt", "41", verdict=WRONG, parsed="41"),
    turn(1, 0, "reflection", "I miscounted.", token_ids=[5, 9], messages=TALK),
    turn(2, 1, "retry", "42", verdict=RIGHT, parsed="42"),
    turn(3, 0, "reflection", "I guessed.", messages=TALK),
    turn(4, 3, "retry", "forty-two", verdict=RIGHT, parsed="42"),
    turn(5, 0, "reflection", "No idea.", messages=TALK),
    turn(6, 5, "retry", "43", verdict=WRONG, parsed="43"),
    turn(7, 0, "reflection", "…", messages=TALK),
    turn(8, 7, "retry", "", error="timed out"),
    number=3,
)
PREFERRED = Example("preference", TALK, chosen="I guessed.", rejected="I miscounted.",
                    source={"problem": REFLECTED.problem.id, "epoch": 1, "wave": 0,
                            "turns": [3, 1]})  # fmt: skip


def make_run(folder: Path, examples: list[Example], episodes: list[Episode]) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    append_rows(folder / "examples.jsonl", map(to_row, examples))
    append_rows(folder / "episodes.jsonl", map(to_row, episodes))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", EXAMPLES, [SOLVED, UNSOLVED, SILENT, REFLECTED])


# ---- round trips ---------------------------------------------------------------------------------


def texts(example: Example) -> list[Any]:
    """The prompt and the answers, with half a character as other programs have to write it."""
    said = [example.prompt, example.chosen, example.rejected, example.completion]
    return json.loads(json.dumps([*said, example.completions]).replace("\\ud83d", "\ufffd"))


@pytest.mark.parametrize("objective", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize("form", ["trl", "sharegpt", "mlx-chat"])
def test_an_export_has_the_runs_texts(run: Path, tmp_path: Path, form: str, objective: str) -> None:
    """Also where another program has read and written the rows."""
    out = tmp_path / "all.jsonl"
    export(run, form, out)
    kind = {"sft": "sft", "dpo": "preference", "grpo": "group"}[objective]
    # A pair whose rejected answer is empty, and raw text as a chat without a prompt, give no row.
    ours = [
        e for e in EXAMPLES if e.kind == kind and e.rejected != "" and (e.prompt or form == "trl")
    ]
    if form == "mlx-chat" and kind != "group":  # a chosen answer there is a text to imitate
        chosen = [Example("sft", e.prompt, completion=e.chosen) for e in EXAMPLES[:2]]
        ours = [*chosen, *ours] if kind == "sft" else []
    if not ours:
        with pytest.raises(UserError, match="nothing here fits dpo"):
            read_examples(str(out), objective)
        return
    import datasets

    data = datasets.load_dataset("json", data_files=str(out), split="train",
                                 cache_dir=str(tmp_path / "hf"))  # fmt: skip
    assert len(data) == len(EXAMPLES)
    data.to_json(str(tmp_path / "again.jsonl"))
    for path in (out, tmp_path / "again.jsonl"):
        found, _ = read_examples(str(path), objective, turns="last")
        assert [texts(e) for e in found] == [texts(e) for e in ours]


# ---- what others read ----------------------------------------------------------------------------


def test_the_rows_that_others_know(run: Path, tmp_path: Path) -> None:
    said = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "6 · 7?"}]
    answer = "<think>\né\n</think> 42"
    assert sharegpt_row(EXAMPLES[0]) == {
        "conversations": said, "chosen": {"from": "gpt", "value": answer},
        "rejected": {"from": "gpt", "value": "41"},
    }  # fmt: skip
    assert trl_row(EXAMPLES[4]) == {"text": "raw text"}
    assert mlx_row(EXAMPLES[3]) == {
        "messages": [*ASKED, {"role": "assistant", "content": "half �"}]
    }
    files = {form: export(run, form, None)["files"] for form in FORMS}
    assert files == {
        "trl": {"preference.jsonl": 2, "sft.jsonl": 2, "text.jsonl": 1, "group.jsonl": 1},
        "sharegpt": {"preference.jsonl": 2, "sft.jsonl": 3, "group.jsonl": 1},
        "mlx-chat": {"train.jsonl": 3, "valid.jsonl": 2, "group.jsonl": 1},
        "reasonset": {"reasonset.jsonl": 3},
        "reflectevo": {"d_plus.jsonl": 2, "d_plus_minus.jsonl": 2},
    }
    assert all(list(counts) == sorted(counts) for counts in files.values())
    info = json.loads((run / "export/sharegpt/dataset_info.json").read_text())
    assert {name: info[name]["file_name"] for name in info} == {
        "sft": "sft.jsonl", "preference": "preference.jsonl"}  # fmt: skip
    assert info["preference"]["ranking"] is True
    import datasets

    for path in (run / "export").rglob("*.jsonl"):
        data = datasets.load_dataset("json", data_files=str(path), split="train",
                                     cache_dir=str(tmp_path / "hf"))  # fmt: skip
        assert len(data) == len(rows(path))


def test_mlx_lm_reads_its_folder(tmp_path: Path) -> None:
    from mlx_lm.tuner.datasets import ChatDataset, load_local_dataset

    examples = [Example("sft", [{"role": "user", "content": f"{i}?"}], completion=str(i))
                for i in range(20)]  # fmt: skip
    run = make_run(tmp_path / "run", examples, [])
    out = Path(export(run, "mlx-chat", tmp_path / "deep" / "data")["out"])
    train, valid, test = load_local_dataset(out, None, None)
    assert isinstance(train, ChatDataset) and isinstance(valid, ChatDataset) and test == []
    assert (len(train), len(valid)) == (16, 4)
    asked = [row["messages"][0]["content"] for part in (train, valid) for row in part]
    assert sorted(asked) == sorted(f"{i}?" for i in range(20))
    one = make_run(tmp_path / "one", examples[:1], [])
    assert export(one, "mlx-chat", None)["files"] == {"train.jsonl": 1}


# ---- ReasonSet -----------------------------------------------------------------------------------


def test_reasonset(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    export(run, "reasonset", path)
    solved, unsolved, reflected = rows(path)
    assert solved == {
        "problem": "6 · 7? (0)", "ground_truth": "42", "working_out": "41? No: 42 �",
        "final_solution": "6 · 7 = 42", "is_correct": True, "iterations": 2,
        "error_description": "40 + 2 is not 41",
    }  # fmt: skip
    assert unsolved == {
        "problem": "6 · 7? (1)", "ground_truth": None, "working_out": "", "final_solution": None,
        "is_correct": False, "iterations": 1, "error_description": None,
    }  # fmt: skip
    assert (reflected["iterations"], reflected["error_description"]) == (2, "I miscounted.")
    found, bad = read_examples(str(path), "sft")
    assert found[0] == Example(
        "sft", [{"role": "user", "content": "6 · 7? (0)"}], completion="41? No: 42 �",
        source={"row": f"{path}, line 1"},
    )  # fmt: skip
    assert found[1].completion == "42" and len(found) == 2
    assert [b.where for b in bad] == [f"{path}, line 2"] and "is_correct is false" in bad[0].reason


def test_reasonset_of_a_judged_working_and_of_a_person(tmp_path: Path) -> None:
    """An episode is one row, whatever the run trained on; a person's working is another."""
    judged = episode(
        turn(0, None, "attempt", "41", verdict=WRONG, parsed="41"),
        turn(1, 0, "judge", '{"verdict": "wrong"}', parsed="one too few"),
        turn(2, 1, "continue", "41? No: 42.", verdict=RIGHT, parsed="42"),
    )
    at = {"problem": judged.problem.id, "epoch": 1, "wave": 0, "turns": [2]}
    made = [
        Example("sft", TALK, completion="41? No: 42.", source=at),
        Example("preference", TALK, chosen="42", rejected="41", source=at),
        Example("sft", TALK, completion="By hand: <answer>42</answer>", weight=2.0,
                source={"human": "w.md, line 3", "problem": None}),
    ]  # fmt: skip
    run = make_run(tmp_path / "run", made, [judged])
    export(run, "reasonset", tmp_path / "r.jsonl")
    worked, human = rows(tmp_path / "r.jsonl")
    assert (worked["error_description"], worked["iterations"]) == ("one too few", 2)
    assert human == {
        "problem": "Again.", "ground_truth": "42", "working_out": "By hand: <answer>42</answer>",
        "final_solution": None, "is_correct": True, "iterations": 1, "error_description": None,
    }  # fmt: skip


def test_the_published_reasonset_is_read_without_what_it_should_not_have(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    row = {"problem": "6 · 7?", "ground_truth": "42", "working_out": "So.<answer>42.0</answer>"}
    faults = [
        ({"working_out": None}, "working_out has no value"),
        ({"problem": " "}, "the prompt is empty"),
        ({"ground_truth": None}, "there is no ground_truth"),
        ({"ground_truth": " "}, "there is no ground_truth"),
        ({"ground_truth": float("nan")}, "there is no ground_truth"),  # pandas' empty cell
        ({"working_out": "So.<answer>41</answer>"}, "its answer is not its ground_truth"),
        ({"working_out": r"So \boxed{41}"}, "its answer is not its ground_truth"),
        ({"working_out": "So.\r\n <answer>42.0</answer>"}, None),
        ({"ground_truth": None, "provided_solution": "42", "working_out": "41? No: 42."}, None),
        ({"problem": "6  · 7? ", "working_out": "So. <answer>42.0</answer>"}, "it is there twice"),
        ({"working_out": "The expected answer is 42."}, "it says 'expected answer'"),
        *(({"is_correct": no}, "is_correct is false, so its working is none to imitate")
          for no in (False, "FALSE", 0)),
    ]  # fmt: skip
    append_rows(path, [row, *({**row, **change} for change, _ in faults)])
    found, bad = read_examples(str(path), "sft")
    assert [e.completion for e in found] == [
        "So.<answer>42.0</answer>", "So.\r\n <answer>42.0</answer>", "41? No: 42.",
    ]  # fmt: skip
    assert found[2].prompt == ASKED[1:]
    assert [b.reason for b in bad] == [reason for _, reason in faults if reason]


# ---- ReflectEvo ----------------------------------------------------------------------------------

BEGUN = {"id": REFLECTED.problem.id, "question": "6 · 7? (3)", "answer": "42",
         "first_trial_reasoning": "41", "first_trial_answer": "41"}  # fmt: skip
REFLECTING = [
    {"role": "user", "content": "6 · 7? (3)"},
    {"role": "assistant", "content": "41"},
    {"role": "user", "content": REFLECT_AND_RETRY},
]


def test_reflectevo(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [*EXAMPLES, PREFERRED], [SOLVED, REFLECTED])
    out = Path(export(run, "reflectevo", None)["out"])
    first, second = rows(out / "d_plus.jsonl")
    prompt = "\n\n".join(m["content"] for m in TALK)
    assert first == BEGUN | {
        "second_trial_reasoning": "42", "second_trial_answer": "42", "reflections": "I miscounted.",
        "reason_prompt": ["Be brief.", "6 · 7?"], "reflect_prompt": prompt,
    }  # fmt: skip
    assert second["reflections"] == "I guessed."
    pair, _ = rows(out / "d_plus_minus.jsonl")
    assert pair == BEGUN | {
        "second_trial_reasoning_chosen": "42", "second_trial_answer_chosen": "42",
        "reflection_chosen": "I miscounted.", "second_trial_reasoning_rejected": "43",
        "second_trial_answer_rejected": "43", "reflection_rejected": "No idea.",
        "reflection_prompt": prompt,
    }  # fmt: skip
    (liked,) = rows(out / "d_pref.jsonl")
    assert (liked["reflection_chosen"], liked["reflection_rejected"]) == (
        "I guessed.", "I miscounted.")  # fmt: skip
    found, _ = read_examples(str(out / "d_plus.jsonl"), "sft")
    assert found[0].prompt == REFLECTING and found[0].completion == "I miscounted.\n\n42"
    found, _ = read_examples(str(out / "d_plus_minus.jsonl"), "dpo")
    assert (found[0].prompt, found[0].chosen) == (
        [{"role": "user", "content": prompt}], "I miscounted.")  # fmt: skip
    (found_one,) = read_examples(str(out / "d_pref.jsonl"), "dpo")[0]
    assert (found_one.chosen, found_one.rejected) == (PREFERRED.chosen, PREFERRED.rejected)


def test_d_plus_minus_pairs_reflections_as_the_run_does(tmp_path: Path) -> None:
    """Words that led to a right answer once are no worse ones, and each pair is there once."""
    told = [("so", RIGHT), ("so", WRONG), ("hm", WRONG), ("hm", WRONG), ("well", RIGHT)]
    turns = [turn(0, None, "attempt", "41", verdict=WRONG)]
    turns += [turn(i, 0, "reflection", said) for i, (said, _) in enumerate(told, 1)]
    turns += [turn(i + 5, i, "retry", "4", verdict=v) for i, (_, v) in enumerate(told, 1)]
    run = make_run(tmp_path / "run", [], [episode(*turns)])
    out = Path(export(run, "reflectevo", None)["out"])
    found = [(r["reflection_chosen"], r["reflection_rejected"])
             for r in rows(out / "d_plus_minus.jsonl")]  # fmt: skip
    assert found == [("so", "hm"), ("well", "hm")]
    assert len(rows(out / "d_plus.jsonl")) == 2 and not (out / "d_pref.jsonl").exists()


def test_a_prompt_that_showed_the_answer_is_not_exported(tmp_path: Path) -> None:
    told = [{"role": "user", "content": "The answer is GOLD. Reflect."}]
    turns = [turn(0, None, "attempt", "41", verdict=WRONG),
             turn(1, 0, "reflection", "So.", messages=told, visibility="gold_answer"),
             turn(2, 1, "retry", "42", verdict=RIGHT)]  # fmt: skip
    run = make_run(tmp_path / "run", [], [episode(*turns)])
    export(run, "reflectevo", tmp_path / "r.jsonl")
    assert "GOLD" not in (tmp_path / "r.jsonl").read_text()


def test_published_reflectevo_rows_are_read(tmp_path: Path) -> None:
    """Those of its repository's examples, where a trial is an object."""

    def trial(answer: str, right: bool, *reflections: str) -> Row:
        text = f"\nThought: {answer}?\nAction: Finish[{answer}]\nObservation: Answer is x"
        return {"generated_answer": answer, "reflections": [*reflections], "scratchpad": text,
                "is_correct": right, "trail": 2, "reasoning_source": "N/A"}  # fmt: skip

    start = {"question": "q?", "answer": "a", "id": 3, "trail1": trial("B", False)}
    plus = start | {"trail2": trial("A", True, "One.", "Two.")}
    both = start | {"trail2_true": trial("A", True, "Good."),
                    "trail2_false": trial("C", False, "Bad.")}  # fmt: skip
    append_rows(tmp_path / "p.jsonl", [plus, plus | {"trail2": "A"},
                                       plus | {"trail2": trial("A", True)}])  # fmt: skip
    flat = {"question": "q?", "first_trial_reasoning": "B", "reflections": "So.",
            "second_trial_reasoning": "A", "trail1": None}  # fmt: skip
    append_rows(tmp_path / "f.jsonl", [flat])
    assert read_examples(str(tmp_path / "f.jsonl"), "sft")[0][0].completion == "So.\n\nA"
    append_rows(tmp_path / "b.jsonl", [both, both | {"trail2_false": both["trail2_true"]}])
    (example,), bad = read_examples(str(tmp_path / "p.jsonl"), "sft")
    assert example.prompt[1]["content"] == "\nThought: B?\nAction: Finish[B]"
    assert example.completion == "One.\nTwo.\n\n\nThought: A?\nAction: Finish[A]"
    assert [b.reason for b in bad] == ["trail2 is no object", "reflections is empty"]
    (example,), bad = read_examples(str(tmp_path / "b.jsonl"), "dpo")
    assert (example.chosen, example.rejected) == ("Good.", "Bad.")
    assert example.prompt[-1]["content"] == REFLECT
    assert "are the same" in bad[0].reason


# ---- as a command --------------------------------------------------------------------------------


def test_the_command(shell: Shell, run: Path) -> None:
    done = shell.works("export", run, "--format", "trl", "--json")
    assert json.loads(done.out)["files"]["sft.jsonl"] == 2
    assert "preference.jsonl" in shell.works("export", run, "--format", "trl").out  # written anew
    out = shell.folder / "out"
    shell.works("export", run, "--format", "trl", "--out", out)
    before = rows(out / "sft.jsonl")
    for place in (out, out / "sft.jsonl"):
        error, hint = shell.mistake("export", run, "--format", "trl", "--out", place)
        assert "already exists" in error and "--out" in hint
    assert rows(out / "sft.jsonl") == before
    error, hint = shell.mistake("export", run, "--format", "parquet")
    assert "parquet: no such form" in error and "trl, sharegpt, mlx-chat" in hint
    for folder in (shell.folder / "none", out):
        assert "not a run folder" in shell.mistake("export", folder, "--format", "trl")[0]
    error, hint = shell.mistake("export", run, "--format", "trl", "--out", "rows.csv")
    assert "rows.csv: rows are written as JSONL" in error and "NAME.jsonl" in hint
    shell.works("export", run, "--format", "trl", "--out", "rows.JSONL")
    assert (shell.folder / "rows.JSONL").is_file()
    error, hint = shell.mistake("export", run, "--format", "trl", "--out", run / "run.json" / "x")
    assert "run.json" in error and "--out" in hint


@pytest.mark.parametrize(
    ("file", "form", "damage"),
    [("examples.jsonl", "trl", lambda row: row.update(prompt=5)),
     ("examples.jsonl", "sharegpt", lambda row: row.update(prompt=["q"])),
     ("examples.jsonl", "mlx-chat", lambda row: row.pop("kind")),
     ("examples.jsonl", "reflectevo", lambda row: row.update(source=[])),
     ("episodes.jsonl", "reasonset", lambda row: row.pop("turns")),
     ("episodes.jsonl", "reasonset", lambda row: row["turns"][0].update(text=1)),
     ("episodes.jsonl", "reflectevo", lambda row: row.update(turns=[1]))],
)  # fmt: skip
def test_a_damaged_row_is_named(
    run: Path, tmp_path: Path, shell: Shell, file: str, form: str, damage: Callable[[Row], Any]
) -> None:
    written = rows(run / file)
    damage(written[1])
    (run / file).write_text("".join(map(dump_line, written)))
    error, _ = shell.mistake("export", run, "--format", form)
    assert f"{file}, row 2: not an e" in error
    whole = (run / file).read_bytes()
    (run / file).write_bytes(whole[: whole.index(b"\n") + 20])  # torn: written until then
    if form in ("trl", "sharegpt", "mlx-chat"):
        assert sum(export(run, form, None)["files"].values()) == 1


def test_a_run_without_anything_yet(shell: Shell) -> None:
    run = make_run(shell.folder / "run", [], [SOLVED])
    for form, said in (("trl", "none yet"), ("reflectevo", "reflections on failed attempts")):
        error, hint = shell.mistake("export", run, "--format", form)
        assert "holds nothing" in error and said in hint
