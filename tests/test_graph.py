"""The graphs that thoughts draw: how they are read, kept and merged, shown and exported."""

import json
import random
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.corpus import teacher, write_corpus
from support.fake_ollama import FakeOllama
from support.run_outputs import run_process
from support.shell import Shell, two_lines
from support.whole_runs import contents, finish

from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows, read_rows
from mlxreflect.core.records import Episode, Outcome, Problem, Turn
from mlxreflect.core.ui import console
from mlxreflect.data.graph import (
    MOST_NAME,
    MOST_TRIPLES,
    KnowledgeGraph,
    graph_rows,
    node_key,
    read_graph,
    triples_of,
)
from mlxreflect.prompts.roles import GRAPH
from mlxreflect.report.export import export
from mlxreflect.report.show import show_summary

# ---- one thought ---------------------------------------------------------------------------------

HONEY = ("bees", "make", "honey")
FORMS = {
    "as the prompt asks": ("bees | make | honey", [HONEY]),
    "bulleted, bold": ("- **bees** | make | `honey`\n2. honey | feeds | \"people\".",
                       [HONEY, ("honey", "feeds", "people")]),
    "a table": ("| Subject | Relation | Object |\n|---|:--|---|\n| bees | make | honey |", [HONEY]),
    "arrows with a relation": (
        "bees -- make --> honey\nhoney --feeds--> people\nwax —comes from→ bees\nx == is-a ==> y",
        [HONEY, ("honey", "feeds", "people"), ("wax", "comes from", "bees"), ("x", "is-a", "y")],
    ),
    "as the paper's teacher is asked": ("[bees] -[make]-> [honey]\n[Honey] -[IS-A]-> [Food]",
                                        [HONEY, ("Honey", "IS-A", "Food")]),
    "arrows alone, and chains": ("bees -> honey\nwax --> candles → light",
                                 [("bees", "", "honey"), ("wax", "", "candles"),
                                  ("candles", "", "light")]),
    "a relation behind": ('bees -> honey: make\n"wax" -> "light" [label="gives"];',
                          [HONEY, ("wax", "gives", "light")]),
    "colons": ("bees: make: honey\nnote: this is no triple", [HONEY]),
    "tuples": ("(bees, make, honey)\n('honey', 'feeds', 'people'), <wax, of, bees>",
               [HONEY, ("honey", "feeds", "people"), ("wax", "of", "bees")]),
    "JSON lists": ('```json\n[["bees", "make", "honey"], ["a", 1, "b"]]\n```', [HONEY]),
    "JSON objects": ('{"triples": [{"subject": "bees", "predicate": "make", "object": "honey"},\n'
                     '{"head": "wax", "relation": "of", "tail": "bees"}]}',
                     [HONEY, ("wax", "of", "bees")]),
    "JSON a line": ('{"source": "bees", "label": "make", "target": "honey"}\n["wax", "of", "bees"]',
                    [HONEY, ("wax", "of", "bees")]),
    "nodes and edges": (
        '{"nodes": [{"id": "n1", "label": "bees"}, {"id": "honey"}], "edges":\n'
        '[{"source": "n1", "relation": "make", "target": "honey"}]}', [HONEY]),
    "nodes are no triple": ('{"nodes": ["bees", "wax", "honey"], "edges": []}', []),
    "Mermaid": (
        '```mermaid\ngraph TD;\n  A[bees] -->|make| B(("honey"));\n  B -- feeds --> C{people}\n'
        "  A -.-> D\n  style A fill:#fff\n```",
        [HONEY, ("honey", "feeds", "people"), ("bees", "", "D")],
    ),
    "several on a line": ("Edges: bees -> honey (high → high); wax → light",
                          [("bees", "", "honey"), ("wax", "", "light")]),
    "colons in names": ("Triple: bees | kind: of | honey\nwax: pure -- of --> bees: wild",
                        [("bees", "kind: of", "honey"), ("pure", "of", "bees: wild")]),
    "hyphens in names": ("beta-sheet --enables--> high-strength\nstructure–property → use",
                         [("beta-sheet", "enables", "high-strength"),
                          ("structure–property", "", "use")]),
    "one drawn twice, one of one node": ("bees | make | honey\nBees |MAKE|  honey\na | is | A",
                                         [HONEY]),
    "no graph at all": ("Let me add: 2 + 3 = 5 | 4.\nIt follows that I multiply.", []),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_models_write(form: str) -> None:
    text, expected = FORMS[form]
    assert triples_of(text) == expected


AROUND = {
    "the pattern ends it": "{}\nThe general pattern is A -> B.\nx -> y",
    "a heading ends it": "Knowledge graph:\n{}\n\nAbstracted pattern:\nα → β\n\nHypothesis:\nx → y",
    "headings of its own do not": "**Knowledge Graph**\nNodes:\n- bees\nRelationships:\n{}\n## So"
                                  "\nx | y | z",
    "steps are no triples": "{}\nStep 1: x -> y\n1: compute: z",
    "a sentence ends it": "{}\n" + "Now I reason from both of them, and I do so step by step. " * 2
                          + "\nx -> y",
    "after what was thought first": "Reasoning:\nx -> y\n\n### Knowledge graph\n{}",
    "without a heading": "Let me see:\n{}",
}  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("drawn", ["bees | make | honey", "- bees -- make --> honey"])
def test_what_stands_beside_the_graph(around: str, drawn: str) -> None:
    assert triples_of(AROUND[around].format(drawn)) == [HONEY]


def test_the_prompt_asks_for_a_form_that_is_read() -> None:
    example = GRAPH.partition('one line "')[2].partition('"')[0]
    assert triples_of(example.replace("subject", "bees")) == [("bees", "relation", "object")]


UNITS = [
    "a -> ", "a|b|", "[", "{", '["a","b","c"],', "--", "- ", " \n", "\n", "(a,", ": ", "*", "é",
    "-- a ", "graph TD\n", "a[b]-->", "# ", "\u202e", "<", '{"a":', "1. ", ". ", "```\n",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_much_of_anything_is_bounded(unit: str) -> None:
    for text in (unit * (100_000 // len(unit)), "a | b | c\n" + unit * 500):
        found = triples_of(text)
        assert len(found) <= MOST_TRIPLES
        assert all(len(part) <= MOST_NAME for one in found for part in one)


def test_names_are_bounded_and_printable() -> None:
    rng = random.Random(0)
    alphabet = "ab|->→[](){}\"',:;\n\t\0\x1b\u202e\ud800\ufffe<&`*#é漢"
    for _ in range(2000):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 80)))
        for one in triples_of(text):
            assert one.subject and one.object
            assert all(part.isprintable() and part == part.strip() for part in one)
    assert triples_of(f"{'x' * MOST_NAME} | y | z")
    assert not triples_of(f"{'x' * (MOST_NAME + 1)} | y | z")
    assert not triples_of(f"x | {'y' * (MOST_NAME + 1)} | z")
    many = "\n".join(f"a{i} | to | b" for i in range(2 * MOST_TRIPLES))
    assert len(triples_of(many)) == MOST_TRIPLES


@pytest.mark.parametrize(
    ("one", "other"),
    [("Beta-Sheet", "beta sheet"), ("IS_A", "is a"), ("Größe", "GRÖSSE"), ("e\u0301", "É")],
)
def test_the_same_node(one: str, other: str) -> None:
    assert node_key(one) == node_key(other)


# ---- a run's -------------------------------------------------------------------------------------


def episode(problem: str, wave: int, *thoughts: str, role: Any = "attempt") -> Episode:
    turns = [
        Turn(i, None, role, "policy", [], f"<think>{t}</think>x", {"think": [7, 7 + len(t)]})
        for i, t in enumerate(thoughts)
    ]
    asked = Problem(problem, "jsonl", {"question": "?"})
    return Episode("preflexor", 1, wave, asked, turns, Outcome(False, None, "discarded"))


EPISODES = [  # in the last wave nothing is new
    episode("p1", 0, "bees | make | honey", "Bees | make | honey\nwax | of | bees"),
    episode("p2", 0, "nothing"),
    episode("p2", 1, "honey | feeds | people\nBEES | make | HONEY", role="ground"),
    episode("p3", 3, "iron | rusts in | air"),
    episode("p1", 4, "iron | rusts in | air"),
]


def write_rows(folder: Path) -> list[dict[str, Any]]:
    rows = [row for one in EPISODES for row in graph_rows(one)]
    append_rows(folder / "graph.jsonl", rows)
    return rows


def test_rows_say_where_a_triple_was_drawn(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    assert list(read_rows(tmp_path / "graph.jsonl")) == rows
    assert rows[1] == {
        "schema": "triple/1", "epoch": 1, "wave": 0, "problem": "p1", "turn": 1, "role": "attempt",
        "subject": "Bees", "relation": "make", "object": "honey",
    }  # fmt: skip
    assert [row["role"] for row in rows] == ["attempt"] * 3 + ["ground"] * 2 + ["attempt"] * 2
    lost = [replace(turn, error="of no use") for turn in EPISODES[0].turns]
    assert list(graph_rows(replace(EPISODES[0], turns=lost))) == []


def test_graphs_grow_together(tmp_path: Path) -> None:
    write_rows(tmp_path)
    with (tmp_path / "graph.jsonl").open("a") as torn:
        torn.write('{"schema": "triple/1", "subject": "half')
    graph = read_graph(tmp_path)
    assert graph
    assert list(graph.names.values()) == ["bees", "honey", "wax", "people", "iron", "air"]
    made = graph.edges["bees", "make", "honey"]
    assert (made.count, dict(made.problems), dict(made.waves)) == (
        3,
        {"p1": 2, "p2": 1},
        {0: 2, 1: 1},
    )
    assert dict(made.roles) == {"attempt": 2, "ground": 1}
    assert graph.largest() == 4
    said = ("6 nodes, 4 edges, 4 nodes in the largest component; new nodes in each wave: "
            "3, 1, 0, 2, 0")  # fmt: skip
    assert graph.sentence() == said
    out = StringIO()
    console(out).print(*show_summary(tmp_path))
    assert "knowledge graph" in out.getvalue()
    assert said in " ".join(out.getvalue().split())
    assert read_graph(tmp_path / "none") is None


def test_components_are_those_of_a_search() -> None:
    networkx = pytest.importorskip("networkx")
    rng = random.Random(1)
    for _ in range(30):
        graph, expected = KnowledgeGraph(), networkx.Graph()
        for _ in range(rng.randint(1, 40)):
            a, b = rng.sample(range(40), 2)
            at = {"wave": 0, "problem": "p", "role": "attempt"}
            graph.add({**at, "subject": f"n{a}", "relation": "to", "object": f"n{b}"})
            expected.add_edge(a, b)
        assert graph.largest() == max(map(len, networkx.connected_components(expected)))


@pytest.mark.parametrize(
    "row", [{}, {"subject": 7}, {"wave": "x"}, {"wave": None}, {"object": ["a"]}]
)
def test_a_row_that_is_none_is_named(row: dict[str, Any], tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    append_rows(tmp_path / "graph.jsonl", [{**rows[0], **row} if row else {}])
    with pytest.raises(UserError, match=r"graph\.jsonl, row 8: not a triple"):
        read_graph(tmp_path)


# ---- GraphML -------------------------------------------------------------------------------------

HOSTILE = [
    "<node id='x'/>", "&amp; ]]> <!--", "a\0b\x1b[31m\x08c", "\ud83d half", "\ufffe\uffff!a",
    "\u202eright to left", "x" * 2**20, "漢字 é", '"quoted"', "a\nb", "../../etc/passwd",
]  # fmt: skip


def test_graphml_has_every_node_and_edge(tmp_path: Path) -> None:
    networkx = pytest.importorskip("networkx")
    write_rows(tmp_path)
    result = export(tmp_path, "graphml", None)
    file = tmp_path / "export" / "graph.graphml"
    assert result == {"schema": "export/1", "format": "graphml", "out": str(file),
                      "files": {"graph.graphml": 4}}  # fmt: skip
    found = networkx.read_graphml(file, force_multigraph=True)
    assert found.is_directed()
    names = dict(found.nodes(data="label"))
    edges = {(names[a], data["label"], names[b]): data for a, b, data in found.edges(data=True)}
    assert set(edges) == {HONEY, ("wax", "of", "bees"), ("honey", "feeds", "people"),
                          ("iron", "rusts in", "air")}  # fmt: skip
    made = edges[HONEY]
    assert (made["weight"], made["problems"], made["waves"], made["roles"]) == (
        3, "p1 p2", "0 1", "attempt ground",
    )  # fmt: skip
    assert dict(found.nodes(data="wave"))["n3"] == 1
    export(tmp_path, "graphml", None)  # the default place is written anew
    out = tmp_path / "deep" / "mine.graphml"
    export(tmp_path, "graphml", out)
    assert out.read_bytes() == file.read_bytes()


def test_hostile_names_make_no_markup(tmp_path: Path) -> None:
    """Also where they stand in the file and never went through the reading of a thought."""
    pytest.importorskip("networkx")
    at = {"schema": "triple/1", "epoch": 1, "wave": 0, "role": "<attempt>\0", "problem": "<p>\x01"}
    append_rows(
        tmp_path / "graph.jsonl",
        [{**at, "subject": name, "relation": name, "object": f"o{i}"}
         for i, name in enumerate(HOSTILE)],
    )  # fmt: skip
    file = Path(export(tmp_path, "graphml", None)["out"])
    assert file.stat().st_size < 20_000
    root = ElementTree.fromstring(file.read_text("utf-8"))  # well-formed
    space = "{http://graphml.graphdrawing.org/xmlns}"
    (graph,) = root.findall(f"{space}graph")
    assert {child.tag for child in graph} == {f"{space}node", f"{space}edge"}
    texts = [data.text or "" for data in graph.iter(f"{space}data")]
    assert "<node id='x'/>" in texts or "node id='x'/" in texts
    assert "a b [31m c" in texts and all(text.isprintable() for text in texts)
    assert max(map(len, texts)) <= MOST_NAME
    assert len(graph.findall(f"{space}edge")) == len(HOSTILE) - 1  # a megabyte is no name


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(tmp_path, tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    arguments = ("export", str(run), "--format", "graphml")
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(UserError, match="needs the package networkx, which is missing") as caught:
        export(run, "graphml", None)
    assert caught.value.hint == "pip install 'mlxreflect[graph]'"
    monkeypatch.undo()
    pytest.importorskip("networkx")
    assert "is not a run folder" in two_lines(shell(*arguments).err)[0]
    (run / "run.json").write_text("{}")
    assert 'prompt.style = "graph"' in two_lines(shell(*arguments).err)[1]
    write_rows(run)
    for name, said in (("x.jsonl", "is no name of a GraphML file"), ("run", "already exists")):
        assert said in two_lines(shell(*arguments, "--out", str(tmp_path / name)).err)[0]
    assert "4 edges" in shell.works(*arguments).out


# ---- a run ---------------------------------------------------------------------------------------


def drawing(body: dict[str, Any]) -> str:
    """The teacher, who draws a graph of what it was asked."""
    said = teacher(body)
    if not body["messages"][-1]["content"].endswith("Sections:"):
        return said
    sections = json.loads(said)["sections"]
    assert sections[0]["name"] == "knowledge graph"
    sections[0]["text"] = f"notes | answer | question {len(str(body['messages']))}"
    return json.dumps({"sections": sections})


@pytest.mark.slow
def test_a_killed_run_draws_the_same_graph(tmp_path: Path) -> None:
    write_corpus(tmp_path / "notes")
    row = {"question": "What do bees make?", "answer": "honey"}
    (tmp_path / "asked.jsonl").write_text(json.dumps(row) + "\n")
    runs = []
    for driver in ((), ("appended half a journal", 12)):
        with FakeOllama(reply=drawing) as server:
            keys = {
                "profile": "quick", "prompt.style": "graph", "task.name": "jsonl",
                "task.source": str(tmp_path / "asked.jsonl"), "eval.spec": "countdown",
                "preflexor.corpus": str(tmp_path / "notes"), "preflexor.questions": 2,
                "preflexor.rounds": 2, "preflexor.two.rounds": 0, "eval.limit": 2,
                "critic.provider": "ollama", "critic.model": "critic", "critic.cache": "off",
                "critic.base_url": server.url, "train.batch": 2,
            }  # fmt: skip
            run_dir = tmp_path / f"run{len(runs)}"
            run_process("preflexor", keys, run_dir, *driver)
            if driver:
                finish(run_dir)
        runs.append(run_dir)
    rows = list(read_rows(runs[0] / "graph.jsonl"))
    assert len(rows) == 4 and {row["wave"] for row in rows} == {0, 1}
    expected, found = map(contents, runs)
    assert "graph.jsonl" in expected
    assert not [name for name in expected if found[name] != expected[name]]
