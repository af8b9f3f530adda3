"""The knowledge graphs that thoughts draw in the style "graph": read, kept as rows, merged.

A triple is a subject, a relation ("" where only an arrow was drawn) and an object. All three are a
model's words: one line of printable characters, no longer than MOST_NAME, and never anything but
text. Models write triples in many forms, whatever they were asked for; what is in none is left out.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mlxreflect.core.journal import convert_rows
from mlxreflect.core.records import Episode, TripleRow, fits
from mlxreflect.core.ui import composed
from mlxreflect.data.rows import fold

FILE = "graph.jsonl"  # of a run: a row for each triple that a thought drew
MOST_NAME = 120  # characters of a node or a relation; what is longer is no name
MOST_TRIPLES = 200  # of a thought
MOST_READ, MOST_LINE = 20_000, 1000  # characters of a thought, and of a line, that are read
MOST_JSON, MOST_DEPTH = 200, 6  # places where JSON may begin, and how deep it is read
SHOWN = 8  # waves whose new nodes are told


class Triple(NamedTuple):
    subject: str
    relation: str
    object: str

    @property
    def key(self) -> tuple[str, str, str]:
        return node_key(self.subject), node_key(self.relation), node_key(self.object)


def node_key(name: str) -> str:
    """Returns what names of the same node have in common, however they are written."""
    return fold(re.sub("[-_‐‑–]", " ", name))


# ---- names ---------------------------------------------------------------------------------------

AROUND = " \"'“”‘’`*;,."
PAIRS = ("[]", "()", "{}", "<>")


def in_one_line(text: str) -> str:
    """Returns the printable characters of a text's beginning."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:MOST_LINE]).split())


def clean_name(text: str) -> str:
    """Returns a name without what models put around it; "" where it is none, or too long."""
    name = composed(in_one_line(text)).strip(AROUND)
    for _ in range(3):  # such as ["bees"]
        if name[:1] + name[-1:] not in PAIRS:
            break
        name = name[1:-1].strip(AROUND)
    return name if len(name) <= MOST_NAME and any(map(str.isalnum, name)) else ""


def triple(subject: str, relation: str, object_: str) -> Iterator[Triple]:
    """Yields the triple of three texts, if both nodes have names and are not the same."""
    found = Triple(clean_name(subject), clean_name(relation), clean_name(object_))
    lost = relation.strip() and not found.relation and len(relation) > MOST_NAME
    if found.subject and found.object and not lost and found.key[0] != found.key[2]:
        yield found


# ---- one line ------------------------------------------------------------------------------------

BULLET = re.compile(r"(?:[-*+•–]\s+|\(?\d{1,3}[.):]\s+)+")
LABEL = re.compile(r"^[\w #]{1,40}:\s+")  # before triples on one line: "Edges: A -> B"
ASIDE = re.compile(r"\([^()]*(?:->|→)[^()]*\)")
ARROW = r"(?:[-–—=]{1,3}>|-\.->|[-–—]{0,3}[→⟶⇒➔➜])"
CONNECTOR = re.compile(
    rf"""\s*(?:
      {ARROW}\s*\|(?P<bar>[^|]*)\|                            # A -->|makes| B
    | [-–—=]{{1,3}}\s*\[(?P<box>[^\[\]]*)\]\s*{ARROW}         # [A] -[makes]-> [B]
    | (?:[-=]{{2,3}}|(?<=\s)[–—]{{1,2}}|-\.)\s*(?P<text>[^\s>|→.=–—-][^>|→]{{0,{MOST_NAME}}}?)
      \s*(?:\.->|{ARROW})                                     # A -- makes --> B, A —makes→ B
    | {ARROW}                                                 # A -> B
    )\s*""",
    re.VERBOSE,
)
DOT_LABEL = re.compile(r"(.*?)\s*\[\s*label\s*=\s*([^\]]*)\]\s*;?$")
TUPLE = re.compile(r"[(<\[]([^()<>\[\],]+),([^()<>\[\],]+),([^()<>\[\],]+)[)>\]]")
COLUMNS = {"subject", "source", "head", "node 1"}  # heads of tables
MOST_WORDS = 8  # of a part of A: relation: B, which sentences look like


def in_line(line: str) -> Iterator[Triple]:
    """Yields the triples of a line without its bullet; several are joined by semicolons."""
    if len(line) > MOST_LINE:
        return
    if "|" in line and not CONNECTOR.search(line):
        parts = LABEL.sub("", line).strip().strip("|").split("|")
        if len(parts) == 3 and node_key(parts[0]).strip() not in COLUMNS:
            yield from triple(*parts)
        return
    for piece in ASIDE.sub("", line).split(";"):
        yield from in_piece(piece)


def in_piece(text: str) -> Iterator[Triple]:
    """Yields the triples that arrows, brackets or colons make."""
    links = list(CONNECTOR.finditer(text))
    if not links:
        tuples = TUPLE.findall(text)
        parts = re.split(r":\s+", text)
        if tuples and not TUPLE.sub("", text).strip(" ,[]."):
            for found in tuples:
                yield from triple(*found)
        elif len(parts) == 3 and all(0 < len(part.split()) <= MOST_WORDS for part in parts):
            yield from triple(*parts)
        return
    ends = [0, *(link.end() for link in links)]
    nodes = [text[i : link.start()] for i, link in zip(ends, links, strict=False)]
    nodes = [LABEL.sub("", nodes[0].lstrip()), *nodes[1:], text[ends[-1] :]]
    said = ["".join(filter(None, link.groups())) for link in links]
    if len(links) == 1 and not said[0]:
        nodes[1], said[0] = said_after(nodes[1])
    for subject, relation, object_ in zip(nodes, said, nodes[1:], strict=False):
        yield from triple(subject, relation, object_)


def said_after(node: str) -> tuple[str, str]:
    """Returns a node and the relation that stands behind it: B [label="makes"], or B: makes."""
    if dot := DOT_LABEL.match(node):
        return dot[1], dot[2]
    name, _, said = node.partition(": ")
    return name, said if len(said.split()) <= MOST_WORDS else ""


# ---- JSON ----------------------------------------------------------------------------------------

ENDS = {
    "subject": ("subject", "source", "head", "from", "s"),
    "relation": ("relation", "predicate", "relationship", "label", "type", "p", "r"),
    "object": ("object", "target", "tail", "to", "o"),
}
NODES = ("nodes", "entities", "concepts", "vertices")


def in_json(value: Any, names: dict[str, str], depth: int = 0) -> Iterator[Triple]:
    """Yields triples of lists of three texts, and of objects with both ends of an edge.

    names: of nodes, by their ids.
    """
    if depth > MOST_DEPTH:
        return
    if isinstance(value, list):
        if len(value) == 3 and all(isinstance(part, str) for part in value):
            yield from triple(*value)
            return
        for one in value[: 2 * MOST_TRIPLES]:
            yield from in_json(one, names, depth + 1)
    elif isinstance(value, dict):
        ends = [next((value[k] for k in keys if k in value), "") for keys in ENDS.values()]
        if all(isinstance(end, str | int) for end in ends) and ends[0] != "" and ends[2] != "":
            subject, relation, object_ = map(str, ends)
            found = names.get(subject, subject), relation, names.get(object_, object_)
            yield from triple(*found)
            return
        known = {**names, **named_nodes(value)}
        for key, inner in value.items():
            if key.lower() not in NODES:
                yield from in_json(inner, known, depth + 1)


def named_nodes(graph: dict[str, Any]) -> dict[str, str]:
    """Returns the names of nodes such as {"id": "n1", "label": "bees"}, by id."""
    rows = [row for key in NODES if isinstance(graph.get(key), list) for row in graph[key]]
    pairs = (
        (str(row.get("id", "")), row.get("label") or row.get("name"))
        for row in rows
        if isinstance(row, dict)
    )
    return {one: name for one, name in pairs if one and isinstance(name, str)}


def json_triples(text: str) -> list[Triple]:
    """Returns the triples of all JSON that begins a line of a text."""
    found: list[Triple] = []
    end, decoder = 0, json.JSONDecoder()
    for begin in list(re.finditer(r"^[ \t]*[\[{]", text, re.MULTILINE))[:MOST_JSON]:
        if begin.start() < end:
            continue
        try:
            value, end = decoder.raw_decode(text, begin.end() - 1)
            found += in_json(value, {})
        except (ValueError, RecursionError):
            continue
    return found


# ---- a thought -----------------------------------------------------------------------------------

MERMAID = re.compile(r"^[ \t]*(?:graph|flowchart)\s+(?:TB|TD|BT|RL|LR)\b", re.MULTILINE)
SHAPE = re.compile(r"^\s*(\w+)\s*[\[({>]+(.*?)[\])}]+\s*$")  # A["bees"], A((bees))
OTHER_PART = re.compile(
    r"\W*(?:the\s+)?(?:general|abstract\w*|overall|underlying)?\s*patterns?\b"
    r"|\W*(?:reasoning|steps?|hypothes\w+|synthesis|conclusion|answer)\b",
    re.IGNORECASE,
)
GRAPH_PART = re.compile(r"graph|nodes?\b|edges?\b|concept|relation|triple|entit", re.IGNORECASE)
LONG = 80  # characters of a line that ends with a point: a sentence, after the graph
MOST_HEAD = 60  # characters of a heading


def triples_of(thought: str) -> list[Triple]:
    """Returns the triples that a thought draws, each once, at most MOST_TRIPLES.

    A graph in JSON is all of it. Else it is the thought's beginning, up to its pattern, a heading
    of something else or a sentence, and what stands under a heading that names it.
    """
    text = thought[:MOST_READ]
    found = json_triples(text) or drawn(text)
    if MERMAID.search(text):
        found = with_labels(found)
    once: dict[tuple[str, str, str], Triple] = {}
    for one in found:
        once.setdefault(one.key, one)
    return list(once.values())[:MOST_TRIPLES]


def drawn(text: str) -> list[Triple]:
    """Returns the triples of the lines that belong to the graph."""
    found: list[Triple] = []
    reading, fenced = True, False
    for whole in text.splitlines():
        line = whole.strip()
        if line.startswith("```"):
            fenced = not fenced
            continue
        bullet = BULLET.match(line)
        said = line[bullet.end() :] if bullet else line
        if not fenced and line.count("|") < 2 and OTHER_PART.match(said[:LONG]):
            reading = False
            continue
        made = list(in_line(said)) if reading or fenced else []
        if not made and heads(line) and not fenced:
            reading = bool(GRAPH_PART.search(line)) or (reading and not found)
        elif found and not made and not (bullet or fenced) and len(line) > LONG:
            reading = reading and not line.endswith(".")
        found += made
    return found


def heads(line: str) -> bool:
    """Tells if a line looks like a heading."""
    bold = line.startswith("**") and line.endswith("**")
    return len(line) <= MOST_HEAD and (line.startswith("#") or line.endswith(":") or bold)


def with_labels(triples: list[Triple]) -> list[Triple]:
    """Returns triples of Mermaid with the texts of its nodes for their ids."""
    ends = (end for one in triples for end in (one.subject, one.object))
    texts = {shape[1]: clean_name(shape[2]) for shape in map(SHAPE.match, ends) if shape}

    def name(end: str) -> str:
        shape = SHAPE.match(end)
        return texts.get(shape[1] if shape else end) or end

    return [Triple(name(one.subject), one.relation, name(one.object)) for one in triples]


# ---- rows ----------------------------------------------------------------------------------------


def graph_rows(episode: Episode) -> Iterator[dict[str, Any]]:
    """Yields a row for each triple that a thought of the episode draws, in the order of turns."""
    at = {"epoch": episode.epoch, "wave": episode.wave, "problem": episode.problem.id}
    for turn in episode.turns:
        if (span := turn.spans.get("think")) and not turn.error:
            for one in triples_of(turn.text[slice(*span)]):
                yield {"schema": "triple/1", **at, "turn": turn.index, "role": turn.role,
                       **one._asdict()}  # fmt: skip


@dataclass
class Edge:
    """relation: as it was first written. count: thoughts that drew it."""

    relation: str
    count: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    waves: Counter[int] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)


class KnowledgeGraph:
    """All triples of a run together: nodes and relations with the same key are one.

    names: of nodes by their keys, as they were first written. first: the wave that drew a node
    first. edges: by subject, relation and object, all of them keys.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.first: dict[str, int] = {}
        self.edges: dict[tuple[str, str, str], Edge] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row. Raises TypeError for what is none."""
        if not fits(TripleRow)(row):
            raise TypeError("a field is missing, or of another kind")
        wave = row["wave"]
        *parts, problem, role = (in_one_line(row[k]) for k in (*Triple._fields, "problem", "role"))
        for one in triple(*parts):
            subject, _, object_ = one.key
            for key, name in ((subject, one.subject), (object_, one.object)):
                self.names.setdefault(key, name)
                self.first.setdefault(key, wave)
            edge = self.edges.setdefault(one.key, Edge(one.relation))
            edge.count += 1
            edge.problems[problem] += 1
            edge.waves[wave] += 1
            edge.roles[role] += 1

    def largest(self) -> int:
        """Returns the nodes of the largest component, whichever way its edges point."""
        near: dict[str, set[str]] = {key: set() for key in self.names}
        for subject, _, object_ in self.edges:
            near[subject].add(object_)
            near[object_].add(subject)
        most, left = 0, set(near)
        while left:
            size, reached = 0, [left.pop()]
            while reached:
                fresh = near[reached.pop()] & left
                left -= fresh
                reached += fresh
                size += 1
            most = max(most, size)
        return most

    def sentence(self) -> str:
        """Returns the size of the graph, and how many nodes each of the last waves found."""
        new, last = Counter(self.first.values()), max(max(e.waves) for e in self.edges.values())
        grown = ", ".join(str(new[wave]) for wave in range(last + 1)[-SHOWN:])
        return (
            f"{len(self.names)} nodes, {len(self.edges)} edges, {self.largest()} nodes in the "
            f"largest component; new nodes in each wave{' of the last' * (last >= SHOWN)}: {grown}"
        )


def read_graph(run: Path) -> KnowledgeGraph | None:
    """Returns what a run's thoughts have drawn so far; None where that is nothing.

    Raises UserError naming a row that is none.
    """
    graph = KnowledgeGraph()
    for _ in convert_rows(run / FILE, graph.add, "a triple"):
        pass
    return graph if graph.names else None
