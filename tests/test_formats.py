"""Foreign training data: every form from real files, bad rows by line, and what is held out."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rows import write_rows

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Example, to_row
from mlxreflect.data.examples import BadRow, read_examples, split_examples
from mlxreflect.data.forms import trl_row

Rows = list[Any]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    """Writes rows as JSONL and reads them back: the examples, without weight and source."""

    def run(objective: str, *rows: Any, **keys: Any) -> tuple[list[Example], list[str]]:
        found, bad = read_examples(
            str(write_rows(tmp_path / "d.jsonl", [*rows])), objective, **keys
        )
        return found, [row.reason for row in bad]

    return run


def fault(source: Path | str, objective: str = "sft", **keys: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        read_examples(str(source), objective, **keys)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


# ---- forms ---------------------------------------------------------------------------------------

TWO = [user("q"), bot("a"), user("r")]
SHAREGPT: dict[str, Any] = {
    "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
                      {"from": "human", "value": "r"}],
    "chosen": {"from": "gpt", "value": "y"},
}  # fmt: skip
PAIRS: list[tuple[str, dict[str, Any], Rows, str, str]] = [
    ("standard", {"prompt": "q", "chosen": "y", "rejected": "n"}, [user("q")], "y", "n"),
    ("with system", {"system": "s", "prompt": "q", "chosen": "y", "rejected": "n"},
     [system("s"), user("q")], "y", "n"),
    ("no system", {"system": " ", "prompt": "q", "chosen": "y", "rejected": "n"},
     [user("q")], "y", "n"),
    ("conversational", {"prompt": [system("s"), user("q")], "chosen": [bot("y")],
     "rejected": [bot("n")]}, [system("s"), user("q")], "y", "n"),
    ("mixed", {"prompt": "q", "chosen": [bot("y")], "rejected": "n"}, [user("q")], "y", "n"),
    ("implicit", {"chosen": [*TWO, bot("y")], "rejected": [*TWO, bot("n")]}, TWO, "y", "n"),
    ("implicit words", {"chosen": "The sky is blue.", "rejected": "The sky is bluish."},
     [user("The sky is")], " blue.", " bluish."),
    ("implicit, one word longer", {"chosen": "it is so", "rejected": "it is so-so"},
     [user("it is")], " so", " so-so"),
    ("implicit, line ends", {"chosen": "Q: a?\nA: b", "rejected": "Q: a?\nB"},
     [user("Q: a?")], "\nA: b", "\nB"),
    ("prompt repeated", {"prompt": "q", "chosen": [user("q"), bot("y")],
     "rejected": [user("q"), bot("n")]}, [user("q")], "y", "n"),
    ("prompt repeated after a system text", {"prompt": "q",
     "chosen": [system("s"), user("q"), bot("y")], "rejected": [system("s"), user("q"), bot("n")]},
     [system("s"), user("q")], "y", "n"),
    ("prompt is the first of many", {"prompt": "q", "chosen": [*TWO, bot("y")],
     "rejected": [*TWO, bot("n")]}, TWO, "y", "n"),
    ("system in the prompt only", {"prompt": [system("s"), user("q")],
     "chosen": [user("q"), bot("y")], "rejected": [user("q"), bot("n")]},
     [system("s"), user("q")], "y", "n"),
    ("shared turns move", {"prompt": [user("q")], "chosen": [*TWO[1:], bot("y")],
     "rejected": [*TWO[1:], bot("n")]}, TWO, "y", "n"),
    ("parts", {"prompt": [user([{"type": "text", "text": "q", "image": None},
     {"type": "text", "text": "?"}])], "chosen": "y", "rejected": "n"}, [user("q?")], "y", "n"),
    ("nulls", {"prompt": [user("q") | {"tool_calls": None}], "chosen": "y", "rejected": "n",
     "messages": None, "weight": None}, [user("q")], "y", "n"),
    ("LLaMA-Factory's", SHAREGPT | {"rejected": {"from": "gpt", "value": "n"}}, TWO, "y", "n"),
    ("Alpaca's", {"instruction": "q", "input": "r", "chosen": "y", "rejected": "n"},
     [user("q\n\nr")], "y", "n"),
    ("Alpaca's without input", {"instruction": "q", "input": "", "chosen": "y", "rejected": "n"},
     [user("q")], "y", "n"),
    ("more columns", {"prompt": "q", "chosen": "y", "rejected": "n", "score": [1, {}],
     "messages": [user("q"), bot("y")]}, [user("q")], "y", "n"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "prompt", "chosen", "rejected"), [p[1:] for p in PAIRS],
                         ids=[p[0] for p in PAIRS])  # fmt: skip
def test_preference_forms(
    read: Any, row: dict[str, Any], prompt: Rows, chosen: str, rejected: str
) -> None:
    (example,), bad = read("dpo", row)
    assert (example.kind, example.prompt) == ("preference", prompt) and not bad
    assert (example.chosen, example.rejected, example.weight) == (chosen, rejected, 1.0)
    assert example.source["row"].endswith("d.jsonl, line 1")
    assert [read(o, row)[0] for o in ("ipo", "exo_pair", "orpo")] == [[example]] * 3


SFT: list[tuple[dict[str, Any], list[tuple[Rows, str]]]] = [
    ({"prompt": "q", "completion": "a"}, [([user("q")], "a")]),
    ({"prompt": [user("q")], "completion": [bot("a")]}, [([user("q")], "a")]),
    ({"prompt": [user("q")], "completion": [*TWO[1:], bot("b")]}, [(TWO, "b")]),
    ({"messages": [*TWO, bot("b")]}, [(TWO[:1], "a"), (TWO, "b")]),
    ({"messages": [bot("hi"), user("q"), bot("a")]}, [([bot("hi"), user("q")], "a")]),
    ({"system": "s", "messages": [system("s"), user("q"), bot("a")]},
     [([system("s"), user("q")], "a")]),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
      {"from": "gpt", "value": "a"}]}, [([system("s"), user("q")], "a")]),
    ({"conversations": [user("q"), bot("a")]}, [([user("q")], "a")]),
    ({"messages": [{"role": "Developer", "content": "s"}, {"role": " USER", "content": "q"},
                   {"role": "model", "content": "a"}]}, [([system("s"), user("q")], "a")]),
    ({"messages": [*TWO[:1], bot("a") | {"weight": 0}, TWO[2], bot("b") | {"weight": 1}]},
     [(TWO, "b")]),
    ({"instruction": "q", "input": "r", "output": "a", "text": "q\n\nr: a", "system": "s"},
     [([system("s"), user("q\n\nr")], "a")]),
    ({"instruction": "q", "input": None, "output": "a"}, [([user("q")], "a")]),
    ({"text": " all of it\n"}, [([], " all of it\n")]),
    ({"prompt": "q", "chosen": "y", "rejected": "n", "messages": [user("m"), bot("y")]},
     [([user("m")], "y")]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "made"), SFT)
def test_sft_forms(read: Any, row: dict[str, Any], made: list[tuple[Rows, str]]) -> None:
    found, bad = read("sft", row)
    assert [(e.prompt, e.completion) for e in found] == made and not bad
    assert {e.kind for e in found} == {"sft"}
    last, _ = read("sft", row, turns="last")
    assert last == found[-1:]


TOOL = {"type": "function", "function": {"name": "t"}}
CALL = {"type": "function", "function": {"name": "t", "arguments": {"x": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
HEARD = {"role": "tool", "content": "9"}
WITH_TOOLS: list[tuple[dict[str, Any], Any]] = [
    ({"messages": [user("q"), {"role": "assistant", "content": None, "tool_calls": [{
        "type": "function", "function": {"name": "t", "arguments": '{"x": 1}'}}]},
        HEARD, bot("a")], "tools": [TOOL]}, [TOOL]),
    ({"conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "t", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "9"}, {"from": "gpt", "value": "a"}],
      "tools": '[{"name": "t"}]'}, [TOOL]),
    ({"messages": [user("q"), bot(None) | {"function_call": {"name": "t", "arguments": {"x": 1}}},
                   {"role": "function", "content": "9"}, bot("a")], "tools": "[]"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("row", "tools"), WITH_TOOLS)
def test_tools_and_their_calls(read: Any, row: dict[str, Any], tools: Any) -> None:
    (call, said), bad = read("sft", row)
    assert not bad and call.tools == said.tools == tools
    assert (call.prompt, call.completion) == ([user("q")], "")
    assert call.parts == {"completion": {"tool_calls": [CALL]}}
    assert (said.prompt, said.completion) == ([user("q"), CALLING, HEARD], "a")
    assert said.parts is None


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_of_its_own(read: Any, name: str) -> None:
    thinking = [user("q"), bot("a") | {name: "t"}, user("r"), bot("b") | {name: "u"}]
    (first, second), _ = read("sft", {"messages": thinking})
    assert first.parts == {"completion": {"reasoning_content": "t"}}
    assert second.prompt[1] == {**bot("a"), "reasoning_content": "t"}
    (pair,), _ = read("dpo", {"prompt": "q", "chosen": thinking[1:2], "rejected": "n"})
    assert (pair.chosen, pair.parts) == ("a", {"chosen": {"reasoning_content": "t"}})
    (same,), _ = read("sft", {"schema": "example/1", **to_row(first)})
    assert same.parts == first.parts


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"prompt": "q", "completion": "a", "system": "s"}, {}, ""),
        ({"prompt": "q", "completion": "a", "id": 1, "": 2}, {}, "that nothing reads: id"),
        ({"prompt": "q", "output": "a"}, {"completion": "output"}, ""),
        ({"prompt": "q", "completion": "a", "weight": 3}, {},
         "weight; data.columns.weight=weight takes weight as a row's weight"),
        ({"prompt": "q", "completion": "a", "w": "0,5"}, {"weight": "w"}, ""),
        ({"schema": "example/1", "kind": "sft", "prompt": [user("q")], "completion": "a",
          "weight": 0.5}, {}, ""),
    ],
)  # fmt: skip
def test_columns_that_nothing_reads_are_told(
    read: Any, row: dict[str, Any], columns: dict[str, str], said: str
) -> None:
    """A weight is one where it is asked for, or in a row of our own."""
    lines: list[str] = []
    (example,), _ = read("sft", row, columns=columns, say=lines.append)
    assert (len(lines), said in "".join(lines)) == (bool(said), True)
    assert example.weight == (0.5 if "weight" in columns or "schema" in row else 1.0)


def test_groups(read: Any) -> None:
    rows = [
        {"prompt": "q", "completions": ["a", ""], "rewards": [1, 0.5]},
        {"prompt": [user("q")], "completions": [[bot("a")], [bot("b")]], "rewards": [0, -1e3]},
    ]
    found, bad = read("grpo", *rows)
    assert [(e.kind, e.prompt) for e in found] == [("group", [user("q")])] * 2 and not bad
    assert [(e.completions, e.rewards) for e in found] == [
        (["a", ""], [1.0, 0.5]), (["a", "b"], [0.0, -1000.0])]  # fmt: skip


def test_our_own_examples_come_back_as_they_were(tmp_path: Path) -> None:
    ids = {"problem": "0f", "epoch": 1, "wave": 2, "turns": [4, 0]}
    odd = "\ud83d[{'role': 1}]"
    kinds = {
        "sft": [Example("sft", [user("q")], completion="a", weight=0.25, source=ids),
                Example("sft", [user("q")], completion="", completion_ids=[7]),
                Example("sft", [], completion="raw")],
        "orpo": [Example("preference", [user("q")], chosen=odd, rejected="n", chosen_ids=[1, 9])],
        "grpo": [Example("group", [user("q")], completions=["[{'role': 1}]", ""],
                         rewards=[0.0, 1.0], source=ids)],
    }  # fmt: skip
    path = tmp_path / "examples.jsonl"
    append_rows(path, [to_row(e) for examples in kinds.values() for e in examples])
    for objective, examples in kinds.items():
        found, bad = read_examples(str(path), objective)
        assert found == examples and len(bad) == 5 - len(examples)


# ---- bad rows ------------------------------------------------------------------------------------

DEEP = json.loads("[" * 900 + "]" * 900)
Q = {"prompt": "q"}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("dpo", Q | {"chosen": "", "rejected": "n"}, "chosen is empty"),
    ("dpo", Q | {"chosen": "y", "rejected": " \n"}, "rejected is empty"),
    ("dpo", Q | {"chosen": "y", "rejected": "y"}, "are the same"),
    ("dpo", Q | {"chosen": "y", "rejected": [bot([{"type": "text", "text": "y"}])]}, "the same"),
    ("dpo", {"chosen": "The sky", "rejected": "The sky is"}, "chosen is empty"),
    ("dpo", {"chosen": "yes", "rejected": "no"}, "do not begin alike"),
    ("dpo", {"prompt": None, "chosen": "a b", "rejected": "a c"}, "there is no prompt"),
    ("dpo", Q | {"chosen": None, "rejected": "n"}, "chosen has no value"),
    ("dpo", Q | {"chosen": float("nan"), "rejected": "n"}, "chosen is no list of messages"),
    ("dpo", {"prompt": " ", "chosen": "y", "rejected": "n"}, "the prompt is empty"),
    ("dpo", {"prompt": [], "chosen": "y", "rejected": "n"}, "prompt is no list of messages"),
    ("dpo", {"prompt": 5, "chosen": "y", "rejected": "n"}, "prompt is no list of messages"),
    ("dpo", Q | {"chosen": [bot("y"), user("z")], "rejected": "n"}, "last message of chosen"),
    ("dpo", Q | {"chosen": [bot("y"), user("z"), bot("w")], "rejected": "n"}, "3 messages"),
    ("dpo", Q | {"chosen": [user("z"), bot("y")], "rejected": [user("z"), bot("n")]},
     "other messages than the prompt's"),
    ("dpo", {"chosen": [bot("y")], "rejected": [bot("n")]}, "there is no prompt"),
    ("dpo", Q | {"chosen": "[{'role': 'assistant', 'content': 'y'}]", "rejected": "n"},
     "written out as text"),
    ("dpo", {"prompt": TWO[:2], "chosen": "y", "rejected": "n"}, "not end in a user's message"),
    ("dpo", Q | {"chosen": "y\ud83d", "rejected": "n"}, "half a surrogate pair"),
    ("dpo", Q | {"chosen": "y", "rejected": "n", "weight": 0}, "weight is not above 0"),
    ("dpo", Q | {"chosen": "y", "rejected": "n", "weight": float("nan")}, "no finite number"),
    ("dpo", Q | {"chosen": "y", "rejected": "n", "weight": 10**400}, "no finite number"),
    ("dpo", Q | {"chosen": "y", "rejected": "n", "weight": True}, "no finite number"),
    ("dpo", Q | {"chosen": DEEP, "rejected": "n"}, "chosen, message 1, is no object"),
    ("dpo", SHAREGPT | {"rejected": {"from": "human", "value": "n"}}, "is not the assistant's"),
    ("dpo", SHAREGPT | {"rejected": {"from": "gpt", "value": "n"}, "conversations": None},
     "there is no prompt"),
    ("sft", Q | {"completion": ""}, "completion is empty"),
    ("sft", Q | {"completion": "a", "label": False}, "unpaired preferences"),
    ("sft", {"messages": []}, "no list of messages"),
    ("sft", {"messages": "text"}, "no list of messages"),
    ("sft", {"messages": ["text"]}, "message 1, is no object"),
    ("sft", {"messages": [user("q")]}, "last message is not the assistant's"),
    ("sft", {"messages": [bot("a")]}, "no user's message"),
    ("sft", {"messages": [user("q"), bot("a"), bot("b")]}, "not end in a user's message"),
    ("sft", {"messages": [user("q"), bot(" ")]}, "messages, message 2, is empty"),
    ("sft", {"messages": [user("q"), bot(None)]}, "messages, message 2, is no text"),
    ("sft", {"messages": [user(3), bot("a")]}, "messages, message 1, is no text"),
    ("sft", {"messages": [user([{"type": "image_url"}]), bot("a")]}, "other than text"),
    ("sft", {"messages": [user([{"type": "text", "text": DEEP}]), bot("a")]}, "is no text"),
    ("sft", {"messages": [user("q"), bot("a") | {"tool_calls": [{}]}]}, "calls a tool without a n"),
    ("sft", {"messages": [user("q"), bot("a") | {"tool_calls": "x"}]}, "calls a tool without a n"),
    ("sft", {"messages": [user("q"), bot("a")], "tools": "x"}, "tools is no list of objects"),
    ("sft", {"messages": [user("q"), {"role": "boss", "content": "a"}]}, "has no role out of"),
    ("sft", {"messages": [user("q"), bot("a") | {"weight": 0}]}, "every answer has the weight 0"),
    ("sft", {"messages": [user("q"), bot("a") | {"weight": "x"}]}, "weight is no finite number"),
    ("grpo", {"prompt": "q", "completions": ["a", "b"], "rewards": [1e300, -1e300]}, "beyond 1e"),
    ("sft", {"messages": [user("q"), bot("a") | {"thinking": 7}]}, "message 2, is no text"),
    ("grpo", Q | {"completions": ["a", [bot("b") | {"thinking": "t"}]], "rewards": [1, 2]},
     "hold their thoughts in their text"),
    ("sft", {"messages": [user("q"), {"role": ["x"], "content": "a"}]}, "has no role out of"),
    ("sft", {"messages": [user("q"), system("s"), user("r"), bot("a")]}, "stands behind"),
    ("sft", {"system": "t", "messages": [system("s"), user("r"), bot("a")]}, "stands behind"),
    ("sft", {"text": "\n"}, "text is empty"),
    ("sft", {"text": DEEP}, "text has content other than text"),
    ("grpo", Q | {"completions": ["a", "b"], "rewards": [1]}, "2 completions with 1 rewards"),
    ("grpo", Q | {"completions": ["a"], "rewards": [1]}, "two of each at least"),
    ("grpo", Q | {"completions": "ab", "rewards": [1, 2]}, "not two lists"),
    ("grpo", Q | {"completions": ["a", user("b")], "rewards": [1, 2]}, "completion 2 is no list"),
    ("grpo", Q | {"completions": ["a", [user("b")]], "rewards": [1, 2]}, "of the assistant"),
    ("grpo", Q | {"completions": ["a", "b"], "rewards": [1, float("inf")]}, "reward 2 is no"),
    ("sft", {"schema": "example/1", "kind": [], "prompt": []}, "kind is none of"),
    ("sft", {"schema": "example/1", "kind": "sft", "completion": "a"}, "no list of messages"),
    ("sft", {"schema": "example/1", "kind": "sft", "prompt": [], "completion": 1}, "is no text"),
    ("sft", {"schema": "example/1", "kind": "sft", "prompt": [user("q")], "completion": "a",
             "completion_ids": [1, True]}, "completion_ids is no list of token ids"),
    ("sft", {"schema": "example/1", "kind": "sft", "prompt": [user("q")], "completion": "a",
             "completion_ids": [1, -1]}, "completion_ids is no list of token ids"),
    ("sft", {"schema": "example/1", "kind": "sft", "prompt": [user("q")], "completion": "a",
             "source": 1}, "source is no object"),
    ("grpo", {"schema": "example/1", "kind": "group", "prompt": [user("q")]}, "not two lists"),
    ("sft", {"prompt": "q", "output": "a\x1b"}, "its columns are: prompt, output"),
]  # fmt: skip


@pytest.mark.parametrize(("objective", "row", "reason"), BAD)
def test_bad_rows(tmp_path: Path, objective: str, row: dict[str, Any], reason: str) -> None:
    good = {"prompt": "q", "chosen": "y", "rejected": "n", "completion": "a",
            "completions": ["a", "b"], "rewards": [0, 1]}  # fmt: skip
    path = write_rows(tmp_path / "d.jsonl", [good, row, good])
    keys: Any = {"columns": {"weight": "weight"} if "weight" in row else {}}
    found, (bad,) = read_examples(str(path), objective, **keys)
    assert len(found) == 2 and found[1].source["row"] == f"{path}, line 3"
    assert bad.where == f"{path}, line 2" and reason in bad.reason
    assert bad.reason.isprintable() and len(bad.reason) < 200
    message = fault(path, objective, bad_row="fatal", **keys).message
    assert message == f"{path}, line 2: {bad.reason}"
    assert reason in fault(write_rows(tmp_path / "only.jsonl", [row]), objective, **keys).message


def test_bad_lines(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "q", "completion": "a"}).encode()
    lines = [b"\xef\xbb\xbf" + good, b"", b'{"prompt": "q"', b"[1]", good[:-2] + b'\xff"}', good,
             b'{"a": ' + b"[" * 200_000, b'{"a": ' + b"9" * 9_000 + b"}", good + b"\r",
             b'{"prompt": "q\x00"}', good]  # fmt: skip
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, bad = read_examples(str(path), "sft")
    at = [int(row.where.rpartition(" ")[2]) for row in bad]
    assert len(found) == 4 and at == [3, 4, 5, 7, 8, 10]
    assert [row.reason.startswith("not JSON") for row in bad] == [i != 1 for i in range(6)]
    assert bad[1].reason == "no JSON object"
    assert "line 3: not JSON" in fault(path, bad_row="fatal").message


def test_a_torn_last_line_is_named_and_never_fatal(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"prompt": "q", "completion": "é"}] * 2)
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        found, bad = read_examples(str(path), "sft", bad_row="fatal")
        assert len(found) == 1 and [row.where for row in bad] == [f"{path}, line 2"]
        assert "cut off" in bad[0].reason
    path.write_bytes(whole[:-1])
    assert len(read_examples(str(path), "sft")[0]) == 2


def test_tables(tmp_path: Path) -> None:
    rows = [
        ["prompt", "chosen", "rejected", "weight", "text"],
        ['q, or\n"r"', "y", "n", "0.5", ""],
        ["q", "", "n", "", ""],
        ["q", "y"],
        [],
        ["", "a b", "a c", "", ""],
        ["q", "y", "n", "x", ""],
        ["q", "y" * 1_000_000, "n", "", ""],
        ["", "", "", "", "all"],
    ]
    for name, delimiter in (("d.csv", ","), ("d.tsv", "\t")):
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8-sig") as out:
            csv.writer(out, delimiter=delimiter).writerows(rows)
        limit = csv.field_size_limit()
        found, bad = read_examples(str(path), "dpo", columns={"weight": "weight"})
        assert csv.field_size_limit() == limit
        assert [e.prompt[0]["content"] for e in found] == ['q, or\n"r"', "q"]
        assert found[0].weight == 0.5 and len(found[1].chosen or "") == 1_000_000
        assert found[1].source == {"row": f"{path}, line 9"}
        assert [(row.where, row.reason[:20]) for row in bad] == [
            (f"{path}, line 4", "chosen has no value"),
            (f"{path}, line 5", "2 cells under 5 colu"),
            (f"{path}, line 7", "there is no prompt"),
            (f"{path}, line 8", "weight is no finite "),
            (f"{path}, line 10", "rows with text are t"),
        ]
        assert [e.completion for e in read_examples(str(path), "sft")[0]] == ["all"]
    path.write_text('prompt\tchosen\n"q\ta\n')
    assert "not CSV" in fault(path).message
    path.write_bytes(b"prompt\n\xff")
    assert "not UTF-8" in fault(path).message


def test_json_files(tmp_path: Path) -> None:
    row = {"messages": [user("q"), bot("a")]}
    path = tmp_path / "d.json"
    for tree in ([row, 5], {"version": 1, "data": [row, 5]}):
        path.write_text(json.dumps(tree))
        found, bad = read_examples(str(path), "sft")
        assert [e.completion for e in found] == ["a"]
        assert bad == [BadRow(f"{path}, item 2", "no JSON object")]
    for text in (json.dumps(row), json.dumps(row, indent=1), f"{json.dumps(row)}\n" * 2):
        path.write_text(text)
        assert {e.completion for e in read_examples(str(path), "sft")[0]} == {"a"}
    path.write_text(json.dumps(row) + "\n{]\n" + json.dumps(row))
    assert [row.where for row in read_examples(str(path), "sft")[1]] == [f"{path}, line 2"]
    assert "line 2: not JSON" in fault(path, bad_row="fatal").message
    for text in ("[1", "[" * 200_000):
        path.write_text(text)
        assert "not JSON" in fault(path).message
    path.write_text("[]")
    assert "no rows" in fault(path).message


def test_hostile_texts_stay_as_they_are(tmp_path: Path) -> None:
    odd = "".join(map(chr, [*range(32), 127, 0x2028, 0x202E, 0xFFFF, 0x1F600])) + "<|im_end|>"
    texts = [odd, "x" * 1_000_000, odd * 20_000, "\\ud83d", "]}'\\\""]
    rows = [{"prompt": text, "chosen": "y" + text, "rejected": "n" + text} for text in texts]
    found, bad = read_examples(str(write_rows(tmp_path / "d.jsonl", rows)), "dpo")
    assert [(e.prompt[0]["content"], e.chosen) for e in found] == [(t, "y" + t) for t in texts]
    same = [{"chosen": f"{text} y", "rejected": f"{text} n"} for text in texts[1:3]]
    found, bad = read_examples(str(write_rows(tmp_path / "d.jsonl", same)), "dpo")
    assert [e.prompt[0]["content"] for e in found] == texts[1:3] and not bad


# ---- what fits and what does not -----------------------------------------------------------------


def test_rows_that_do_not_fit(tmp_path: Path, read: Any) -> None:
    pair = {"prompt": "q", "chosen": "y", "rejected": "n"}
    error = fault(write_rows(tmp_path / "p.jsonl", [pair] * 3), "sft")
    said = "rows with prompt, chosen, rejected are preference pairs: train dpo, ipo, exo_pair or"
    assert said in error.message and error.hint.startswith("train one of these")
    assert "messages" in error.hint and "chosen" not in error.hint
    talk = {"messages": [user("q"), bot("a")]}
    error = fault(write_rows(tmp_path / "m.jsonl", [talk, {"a": 1}, talk]), "orpo")
    assert "messages are texts to imitate: train sft" in error.message
    assert "chosen, rejected" in error.hint
    assert "grpo" in fault(write_rows(tmp_path / "g.jsonl", [
        {"prompt": "q", "completions": ["a", "b"], "rewards": [0, 1]}]), "dpo").message  # fmt: skip
    found, bad = read("sft", pair, talk, {"text": "t"}, {"a": 1})
    assert [e.completion for e in found] == ["a", "t"]
    assert "train dpo" in bad[0] and "its columns are: a" in bad[1]


def test_no_known_columns(tmp_path: Path) -> None:
    row = {"ask": "q", "\x1b[2J": "", "output": "a"}
    path = write_rows(tmp_path / "d.jsonl", [row] * 2)
    error = fault(path)
    assert "ask, '\\x1b[2J', output" in error.message
    assert "the forms for sft are: prompt, completion; messages;" in error.hint
    assert "chosen" not in error.hint
    names = {"prompt": "ask", "completion": "output"}
    found, _ = read_examples(str(path), "sft", columns=names)
    assert [(e.prompt, e.completion) for e in found] == [([user("q")], "a")] * 2
    error = fault(path, columns=names | {"prompt": "asks"})
    assert "no column 'asks' to take as prompt" in error.message
    assert "example ask" in error.hint
    assert "'promt' is no column" in fault(path, columns={"promt": "a"}).message


def test_columns_are_taken_for_nothing_else(read: Any) -> None:
    row = {"text": "q", "prompt": "y", "bad": "n", "w": 2}
    names = {"prompt": "text", "chosen": "prompt", "rejected": "bad", "weight": "w"}
    (example,), _ = read("dpo", row, columns=names)
    assert (example.prompt, example.chosen, example.weight) == ([user("q")], "y", 2.0)
    found, bad = read("sft", {"text": "q"}, {"text": "q", "completion": "a"},
                      columns={"prompt": "text"})  # fmt: skip
    assert [e.completion for e in found] == ["a"] and "it should have prompt, completion" in bad[0]


def test_limit(read: Any) -> None:
    talk = {"messages": [user("q"), bot("a"), user("r"), bot("b")]}
    found, bad = read("sft", talk, talk, {}, limit=3)
    assert [e.completion for e in found] == ["a", "b", "a"] and not bad
    assert len(read("sft", talk, talk, {}, limit=0)[0]) == 4


# ---- where rows come from ------------------------------------------------------------------------


def test_a_folder_as_mlx_lm_has_it(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        write_rows(tmp_path / f"{part}.jsonl", [{"prompt": "q", "completion": part}])
    for part in ("train", "valid"):
        found, _ = read_examples(str(tmp_path), "sft", split=part)
        assert [e.completion for e in found] == [part]
    error = fault(tmp_path, split="test")
    assert "no test.jsonl" in error.message and "train.jsonl, valid.jsonl" in error.message


def test_the_folder_of_a_run_is_read_by_objective(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    write_rows(tmp_path / "preference.jsonl", [pair])
    write_rows(tmp_path / "sft.jsonl", [{"prompt": "q", "completion": "c"}])
    assert read_examples(str(tmp_path), "dpo")[0][0].chosen == "a"
    assert read_examples(str(tmp_path), "sft")[0][0].completion == "c"
    assert "no train.jsonl" in fault(tmp_path, "grpo").message
    write_rows(tmp_path / "train.jsonl", [{"prompt": "q", "completion": "t"}])
    assert read_examples(str(tmp_path), "sft")[0][0].completion == "t"  # one a split comes first


def test_columns_of_other_names_are_answered_by_the_key(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "qa.jsonl", [{"question": "1+1?", "answer": "2"}])
    hint = fault(path, "sft").hint
    assert '--set \'data.columns={prompt="question", completion="answer"}\'' in hint
    names = {"prompt": "question", "completion": "answer"}
    assert read_examples(str(path), "sft", columns=names)[0][0].completion == "2"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.parquet", "none.csv"):
        assert "no such file" in fault(tmp_path / name).message
        assert "no such file" in fault(name).message
    (tmp_path / "d.parquet").write_bytes(b"garbage" * 99)
    assert "not Parquet" in fault(tmp_path / "d.parquet").message


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        rows = [{"chosen": [*TWO, bot("y")], "rejected": [*TWO, bot(end)]} for end in "ny"]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (example,), bad = read_examples("someone/pairs", "dpo", config="c", split="test")
    assert example.prompt == TWO and asked == [("someone/pairs", "c", "test")]
    assert bad == [BadRow("someone/pairs (test), row 2", "chosen and rejected are the same")]


OWN = {
    "dpo": [Example("preference", [system("s"), user(f"q {i}\u2028\n")], chosen=f"y{i}\t😀",
                    rejected="n", chosen_ids=[i, 9]) for i in range(3)],
    "sft": [Example("sft", [*TWO[:2], user(f"q {i}")], completion=f"a{i}\x00") for i in range(3)],
}  # fmt: skip


@pytest.mark.parametrize("objective", OWN)
def test_files_of_ours_and_of_datasets(tmp_path: Path, objective: str) -> None:
    """What a run writes loads in `datasets`; what `datasets` writes of it loads here."""
    import datasets

    written = [trl_row(example) for example in OWN[objective]]
    path = tmp_path / f"{objective}.jsonl"
    append_rows(path, written)
    data = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert list(data) == written
    ends = ("lines.jsonl", "lines.json", "list.json", "a [1].parquet")
    paths = [path, *(tmp_path / end for end in ends)]
    data.to_json(str(paths[1]))
    data.to_json(str(paths[2]))
    data.to_json(str(paths[3]), lines=False)
    data.to_parquet(str(paths[4]))
    for each in paths:
        found, bad = read_examples(str(each), objective)
        assert [trl_row(example) for example in found] == written and not bad, each.name


def test_mixed_forms_through_datasets(tmp_path: Path) -> None:
    """A table gives each row every column: what a form lacks is null."""
    import datasets

    rows = [{"prompt": "q", "completion": "a"}, {"text": "t"},
            {"messages": [user([{"type": "text", "text": "q"}]), bot("b")]}]  # fmt: skip
    path = write_rows(tmp_path / "mixed.jsonl", rows)
    data = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "hf")
    )
    data.to_json(str(tmp_path / "nulls.jsonl"))
    data.to_parquet(str(tmp_path / "nulls.parquet"))
    expected = [e.completion for e in read_examples(str(path), "sft")[0]]
    for name in ("nulls.jsonl", "nulls.parquet"):
        found, bad = read_examples(str(tmp_path / name), "sft")
        assert [e.completion for e in found] == expected == ["a", "t", "b"] and not bad


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
TALK = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(
    lambda turns: [message for q, a in turns for message in (user(q), bot(a))]
)


@given(st.booleans(), TALK, TEXT, TEXT, TEXT, st.booleans())
@settings(max_examples=60)
def test_conversational_preferences_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    instructed: bool, talk: Rows, question: str, chosen: str, rejected: str, implicit: bool,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    path.unlink(missing_ok=True)
    prompt = [*[system("s")][:instructed], *talk, user(question)]
    written = Example("preference", prompt, chosen=chosen, rejected=rejected)
    row = trl_row(written)
    if implicit:
        row = {k: [*prompt, *row[k]] for k in ("chosen", "rejected")}  # type: ignore[misc]
    append_rows(path, [row])
    if chosen == rejected:
        assert "are the same" in fault(path, "dpo").message
        return
    (example,), bad = read_examples(str(path), "dpo")
    assert (example.prompt, example.chosen, example.rejected) == (prompt, chosen, rejected)
    assert not bad


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_an_implicit_prompt_loses_no_character(
    tmp_path_factory: pytest.TempPathFactory, chosen: str, rejected: str
) -> None:
    rows = [{"chosen": chosen, "rejected": rejected}, Q | {"chosen": "y", "rejected": "n"}]
    path = write_rows(tmp_path_factory.getbasetemp() / "words.jsonl", rows)
    (example, *rest), _ = read_examples(str(path), "dpo")
    if rest:
        prompt = example.prompt[0]["content"]
        assert (prompt + (example.chosen or ""), prompt + (example.rejected or "")) == (
            chosen, rejected)  # fmt: skip
        assert example.chosen and example.rejected and prompt == prompt.rstrip()
        assert example.chosen[0].isspace() and example.rejected[0].isspace()


# ---- held out ------------------------------------------------------------------------------------


def pairs(*prompts: str) -> list[Example]:
    return [Example("preference", [user(p)], chosen=f"y{i}", rejected="n")
            for i, p in enumerate(prompts)]  # fmt: skip


def test_held_out_prompts_are_in_no_training_row() -> None:
    examples = pairs(*(f"q {i % 40}" if i < 60 else f"Q  {i % 40}" for i in range(120)))
    for part, wanted in ((0.1, 12), (12, 12), (0.5, 60), (1, 1)):
        if wanted == 1:
            with pytest.raises(UserError, match="1 of 120 examples, with 40 different prompts"):
                split_examples(examples, part, 0)
            continue
        train, held = split_examples(examples, part, 0)
        assert len(held) == wanted and len(train) == 120 - wanted
        sides = [{e.prompt[0]["content"].split()[1] for e in side} for side in (train, held)]
        assert not sides[0] & sides[1]
        assert sorted([*train, *held], key=examples.index) == examples
        assert train == sorted(train, key=examples.index)


def test_what_is_held_out_depends_on_prompts_and_seed_alone() -> None:
    examples = pairs(*(f"q {i}" for i in range(50)))
    held = split_examples(examples, 10, 1)[1]
    assert split_examples(examples, 0.2, 1)[1] == held
    turned = split_examples(examples[::-1], 10, 1)[1]
    assert turned[::-1] == held
    assert split_examples(examples, 10, 2)[1] != held
    assert {e.prompt[0]["content"] for e in split_examples(examples, 5, 1)[1]} < {
        e.prompt[0]["content"] for e in held}  # fmt: skip


def test_holding_out_nothing_and_too_much() -> None:
    examples = pairs("a", "b")
    assert split_examples(examples, 0, 0) == (examples, [])
    assert split_examples([], 0, 0) == ([], [])
    for rows, part in (
        (examples, 2),
        (examples, 3),
        (pairs("a", "a"), 1),
        ([], 0.5),
        (examples, -1),
    ):
        with pytest.raises(UserError, match="cannot be held out"):
            split_examples(rows, part, 0)


def test_the_turns_of_a_conversation_stay_together(read: Any) -> None:
    talks = [{"messages": [user(f"q {i}"), bot("a"), user("r"), bot("b")]} for i in range(30)]
    shared = {"prompt": talks[0]["messages"][:3], "completion": "c"}
    found, _ = read(
        "sft", *talks, shared, *({"text": f"{'tT'[i // 5]} {i % 5}"} for i in range(10))
    )
    for seed in range(5):
        train, held = split_examples(found, 0.3, seed)
        sides = [{e.prompt[0]["content"] for e in side if e.prompt} for side in (train, held)]
        assert not sides[0] & sides[1] and len(held) > 10
        texts = [{e.completion.lower() for e in side if not e.prompt} for side in (train, held)]
        assert not texts[0] & texts[1]
        assert split_examples(found[::-1], 0.3, seed)[1] == held[::-1]
