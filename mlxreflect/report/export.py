"""A run's data in the forms of others: `mlxreflect export`. `mlxreflect train` reads all of them.

A form has one or more JSONL files; asked for a file, all of them are one.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from mlxreflect.config.schema import METHODS
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import convert_rows, dump_line, place, write_atomic
from mlxreflect.core.records import Example, episode_from_row, flat_from_row
from mlxreflect.data import forms
from mlxreflect.data.examples import split_examples
from mlxreflect.data.graph import KnowledgeGraph, read_graph
from mlxreflect.methods.base import ExportForm

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # file and row
T = TypeVar("T")

VALID = 0.1  # of a chat form is for mlx_lm.lora's validation
BATCH = 4  # rows that it asks for at least: its default batch
INFO = "dataset_info.json"
GRAPHML, LISTED = "graphml", 50  # problems and waves that an edge of it names
OTHERS = (".json", ".csv", ".tsv", ".parquet", ".txt")  # endings of files that it does not write


def export(run: Path, form: str, out: Path | None) -> dict[str, Any]:
    """Write a run's data into a folder, or a file where `out` ends in .jsonl.

    Returns the rows of each file. Raises UserError where the run has no such data, a row of it is
    damaged, or `out` already exists; the default place, inside the run, is written anew.
    """
    if form == GRAPHML:
        return export_graph(run, out)
    if form not in FORMS:
        names = ", ".join([*FORMS, GRAPHML])
        raise UserError(f"--format {form}: no such form", f"choose from: {names}")
    final = out or run / "export" / form
    if out is not None and out.suffix.lower() in OTHERS:
        raise UserError(f"--out {out}: rows are written as JSONL", "give a folder, or NAME.jsonl")
    if out is not None and out.exists():
        raise UserError(f"{out} already exists", "give another --out, or remove it")
    read, holds = FORMS[form]
    rows = read(run)
    try:
        first = next(rows, None) if run.is_dir() else None
        if first is None:
            check_run(run)
        if first is None:
            raise UserError(f"{run} holds nothing for --format {form}", f"it writes {holds}")
        counts = write(first, rows, final, form)
    except OSError as error:
        raise UserError(f"{final}: {error.strerror}", "give another --out") from None
    files = dict(sorted(counts.items()))
    return {"schema": "export/1", "format": form, "out": str(final), "files": files}


def check_run(run: Path) -> None:
    if not (run / "run.json").is_file():
        hint = "give the folder that `mlxreflect run` made"
        raise UserError(f"{run} is not a run folder", hint)


def write(first: tuple[str, Row], rest: Rows, final: Path, form: str) -> Counter[str]:
    """All rows beside their place first: it is there whole or not at all."""
    one = final.suffix.lower() == ".jsonl"
    counts: Counter[str] = Counter()
    there = next(folder for folder in final.absolute().parents if folder.is_dir())
    with TemporaryDirectory(prefix=f".{final.name}-", dir=there) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        with ExitStack() as stack:
            files = {}
            for name, row in chain([first], rest):
                name = final.name if one else name
                if name not in files:
                    files[name] = stack.enter_context((made / name).open("w", encoding="utf-8"))
                files[name].write(dump_line(row))
                counts[name] += 1
        final.parent.mkdir(parents=True, exist_ok=True)
        if one:
            (made / final.name).replace(final)
            return counts
        if form == "sharegpt":
            known = {k: v for k, v in forms.SHAREGPT.items() if v["file_name"] in counts}
            write_atomic(made / INFO, json.dumps(known, indent=2) + "\n")
        if final.exists():
            shutil.rmtree(final)
        place(made, final)
    return counts


# ---- what a run holds ----------------------------------------------------------------------------


def examples(run: Path, to: Callable[[Example], T]) -> Iterator[tuple[Example, T]]:
    """The examples that a run trained on, each with what `to` makes of it."""

    def make(row: Row) -> tuple[Example, T]:
        example: Example = flat_from_row(Example, row)
        return example, to(example)

    return convert_rows(run / "examples.jsonl", make, "an example")


def trl(run: Path) -> Rows:
    for example, row in examples(run, forms.trl_row):
        yield "text.jsonl" if "text" in row else forms.FILES[example.kind], row


def sharegpt(run: Path) -> Rows:
    for example, row in examples(run, forms.sharegpt_row):
        yield forms.FILES[example.kind], row


def mlx_chat(run: Path) -> Rows:
    made = list(examples(run, forms.mlx_row))
    texts = [example for example, _ in made if example.kind != "group"]
    wanted = max(min(BATCH, len(texts) // 2), round(VALID * len(texts)))
    try:
        held = {id(example) for example in split_examples(texts, wanted, 0)[1]}
    except UserError:  # all have one prompt: nothing would be held out of training
        held = set()
    for example, row in made:
        ours = "valid.jsonl" if id(example) in held else "train.jsonl"
        yield forms.FILES["group"] if example.kind == "group" else ours, row


def of_method(form: ExportForm, run: Path) -> Rows:
    """Yields the rows of each episode, made with the examples that the run made of it.

    Then those of examples that no episode has.
    """
    made: dict[str, list[Example]] = defaultdict(list)
    keys = ("problem", "epoch", "wave")  # of an example's source: the episode that it was made of
    for example, at in examples(run, lambda e: json.dumps([e.source.get(key) for key in keys])):
        made[at].append(example)

    def make(row: Row) -> list[tuple[str, Row]]:
        episode = episode_from_row(row)
        at = json.dumps([episode.problem.id, episode.epoch, episode.wave])
        return list(form.rows(episode, made.get(at, [])))

    yield from chain.from_iterable(convert_rows(run / "episodes.jsonl", make, "an episode"))
    if loose := form.loose:
        for _, rows in examples(run, lambda example: list(loose(example))):
            yield from rows


# ---- the knowledge graph -------------------------------------------------------------------------


def export_graph(run: Path, out: Path | None) -> dict[str, Any]:
    """Writes what the run's thoughts drew, merged, as GraphML: one file, whole or not at all.

    Raises UserError as `export` does, and where networkx is not installed.
    """
    try:
        import networkx  # takes a while, which other forms are spared
    except ImportError:
        raise UserError(
            "--format graphml needs the package networkx, which is missing",
            "pip install 'mlxreflect[graph]'",
        ) from None
    final = out or run / "export" / "graph.graphml"
    if out is not None and (out.exists() or out.suffix.lower() != ".graphml"):
        fault = "already exists" if out.exists() else "is no name of a GraphML file"
        raise UserError(f"{out} {fault}", "give another --out, NAME.graphml")
    graph = read_graph(run)
    if graph is None:
        check_run(run)
        hint = 'thoughts draw graphs where prompt.style = "graph"'
        raise UserError(f"{run} holds nothing for --format graphml", hint)
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        networkx.write_graphml_xml(as_networkx(graph), temporary)
        temporary.replace(final)
    except OSError as error:
        raise UserError(f"{final}: {error.strerror}", "give another --out") from None
    files = {final.name: len(graph.edges)}
    return {"schema": "export/1", "format": GRAPHML, "out": str(final), "files": files}


def as_networkx(graph: KnowledgeGraph) -> Any:
    """Returns a networkx.MultiDiGraph. Nodes have numbers for ids; names are only attributes."""
    import networkx

    made = networkx.MultiDiGraph()
    numbers = {key: f"n{i}" for i, key in enumerate(graph.names)}
    for key, name in graph.names.items():
        made.add_node(numbers[key], label=name, wave=graph.first[key])
    for i, ((subject, _, object_), edge) in enumerate(graph.edges.items()):
        problems = list(edge.problems)[:LISTED]
        made.add_edge(
            numbers[subject], numbers[object_], key=f"e{i}", label=edge.relation,
            weight=edge.count, problems=" ".join(problems),
            waves=" ".join(map(str, list(edge.waves)[:LISTED])), roles=" ".join(edge.roles),
        )  # fmt: skip
    return made


EXAMPLES = "the examples that a run trained on, and there are none yet"
# How the rows of a form are read off a run, and what it needs of one.
FORMS: dict[str, tuple[Callable[[Path], Rows], str]] = {
    "trl": (trl, EXAMPLES),
    "sharegpt": (sharegpt, EXAMPLES),
    "mlx-chat": (mlx_chat, EXAMPLES),
    **{
        name: (partial(of_method, form), form.needs)
        for method in METHODS.values()
        for name, form in method.exports.items()
    },
}
