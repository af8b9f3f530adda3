"""A comparison as a person reads it: a table, the sentences, the problems gained and lost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlxreflect.core.ui import safe_text
from mlxreflect.evaluation.unpaired import SHARPER
from mlxreflect.stats.sentences import level, points

FEW = 5  # problems shown of each list, unless all are asked for
FEWER = 2  # where there are several comparisons
WIDTH = 60  # characters of a question


def render_comparison(result: Mapping[str, Any], *, whole: bool = False) -> Group:
    """What `compare_all` or `compare_counts` found. whole: every problem gained and lost."""
    results = result.get("comparisons", [result])
    parts: list[RenderableType] = [several(result) if "comparisons" in result else pair(result)]
    parts += [Text(line) for one in results for line in lines(one)]
    notes = {text: None for one in results for text in remarks(one)}
    if len(results) > 1:
        notes |= dict.fromkeys(remarks_of_several(results))
    parts += [Text(note) for note in notes]
    few = FEWER if len(results) > 1 else FEW
    for one in results:
        parts += problem_lists(one, None if whole else few, name=len(results) > 1)
    return Group(*parts)


def pair(r: Mapping[str, Any]) -> Table:
    """One comparison, a figure a line."""
    a, b = safe_text(str(r["a"])), safe_text(str(r["b"]))
    unpaired = r.get("unpaired", False)
    rows = {
        "questions": f"{r['n_a']} and {r['n_b']}, not paired" if unpaired else f"{r['n']}",
        "samples a question": "" if r.get("samples", 1) == 1 else f"{r['samples']}",
        f"accuracy of {a}": accuracy(r, "a"),
        f"accuracy of {b}": accuracy(r, "b"),
        "gained, lost": "" if unpaired else f"{r['gains']}, {r['losses']}",
        "difference": f"{points(r['difference'])} points",
        f"{level(r['alpha'])} interval": f"{points(r['ci_low'])} to {points(r['ci_high'])}",
        "exact McNemar p": number(r.get("p_exact")),
        "mid-p": number(r.get("p_mid")),
        "sign-flip p": number(r.get("p_perm")),
        "two-proportion z, p": f"{r['z']:.3f}, {number(r['p'])}" if unpaired else "",
        "Fisher's exact p": number(r["p_exact"]) if unpaired else "",
        **{f"{name}@{k}": score(one) for name in ("pass", "maj")
           for k, one in r.get(f"{name}_at", {}).items()},
        "verdict": r["verdict"],
    }  # fmt: skip
    title = Text(f"{b} against {a}", "bold")
    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
    for name, value in rows.items():
        if value:
            table.add_row(Text(name), Text(value))
    return table


def several(result: Mapping[str, Any]) -> Table:
    """Many comparisons, one a line."""
    results = result["comparisons"]
    title = Text(f"{len(results)} comparisons", "bold")
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column()
    for head in ("right", f"difference ({level(result['alpha'])})", "+, −", "Holm's p", "verdict"):
        table.add_column(Text(head), no_wrap=True)
    for r in results:
        task = f"{r['task']}: " if len(result["tasks"]) > 1 else ""
        between = f"({points(r['ci_low'])} to {points(r['ci_high'])})"
        cells = (
            f"{task}{r['b']} against {r['a']}",
            f"{r['accuracy_a']:.1%} → {r['accuracy_b']:.1%}",
            f"{points(r['difference'])} {between}",
            f"{r['gains']}, {r['losses']}" if "gains" in r else "",
            number(r["p_holm"]),
            r["verdict"],
        )
        table.add_row(*(Text(safe_text(cell)) for cell in cells))
    return table


def lines(r: Mapping[str, Any]) -> Iterator[str]:
    yield safe_text(r["sentence"])
    if "plan" in r:
        yield r["plan"]["sentence"]


def remarks(r: Mapping[str, Any]) -> Iterator[str]:
    if r.get("differs"):
        told = ", ".join(f"{d['key']} ({d['a']!r} and {d['b']!r})" for d in r["differs"])
        yield safe_text(f"Meant to differ: {told}.")
    if r.get("unchecked"):
        yield f"Not checked to be the same: {', '.join(r['unchecked'])}."
    if r.get("maj_at"):
        yield "maj@k: a tie goes to the answer given first. pass@k and maj@k are not adjusted for."


def remarks_of_several(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"The verdicts use Holm's adjustment for {len(results)} comparisons: of so many, one looks "
        "significant by chance too often."
    )
    if any(one.get("unpaired") for one in results):
        yield SHARPER


def problem_lists(r: Mapping[str, Any], most: int | None, *, name: bool) -> Iterator[Text]:
    """The problems gained and lost, the first few or all."""
    for kind in ("gained", "lost"):
        found = r.get(kind) or []
        if not found:
            continue
        whose = f" ({r['task']}: {r['b']} against {r['a']})" if name else ""
        yield Text(safe_text(f"\n{kind}: {len(found)}{whose}"), "bold")
        for one in found[:most]:
            yield Text(safe_text(f"  {problem(one)}"))
        if most is not None and len(found) > most:
            yield Text(f"  … and {len(found) - most} more; all of them with --list or --json")


def problem(one: Mapping[str, Any]) -> str:
    """id, question, and what was answered before and after."""
    if "answer_a" in one:
        given = (one["answer_a"], one["answer_b"])
        before, after = (" ".join((text or "no answer").split()) for text in given)
        change = f"{before[:30]} → {after[:30]}"
    else:
        change = f"{one['right_a']:.0%} → {one['right_b']:.0%}"
    asked = one["question"] or ""
    asked = asked if len(asked) <= WIDTH else asked[: WIDTH - 1] + "…"
    return "  ".join(part for part in (one["id"], asked, f"({change})") if part)


def accuracy(r: Mapping[str, Any], side: str) -> str:
    """A percentage with its own interval."""
    low, high = r[f"ci_{side}"]
    return f"{r[f'accuracy_{side}']:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def score(one: Mapping[str, float]) -> str:
    return (
        f"{one['accuracy_a']:.1%} → {one['accuracy_b']:.1%}, {points(one['difference'])} points "
        f"({points(one['ci_low'])} to {points(one['ci_high'])}), p {number(one['p_perm'])}"
    )


def number(p: float | None) -> str:
    return "" if p is None else f"{p:.3g}"
