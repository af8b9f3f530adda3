"""The table of an evaluation: a row an arm, and how each compares with the first."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxreflect.core.ui import safe_text
from mlxreflect.stats.sentences import points, verdict


def show_arms(arms: Sequence[dict[str, Any]]) -> Iterator[RenderableType]:
    """arms: as `evaluation.runner.evaluate_arms` returns them, one or several."""
    yield figures(arms)
    for arm in arms:
        if chain := arm.get("chain"):
            yield Text(safe_text(chain_line(named(arm), chain)))
        if noise := arm.get("noise"):
            yield Text(safe_text(noise_line(named(arm), noise)))
    if len(arms) > 1:
        yield Text()
        yield comparisons(arms)
        for arm in arms[1:]:
            yield Text(safe_text(arm["comparison"]["sentence"]))


def figures(arms: Sequence[dict[str, Any]]) -> Table:
    """strict: right, and in the format asked for. unparsed and cut off: numbers of answers."""
    columns = ["|questions", "|right", "|95% interval", "|strict", "|format", "|unparsed",
               "|cut off", "|tokens"]  # fmt: skip
    several = {f"pass@{k}" for arm in arms for k in arm.get("pass_at", {}) if k != "1"}
    votes = {f"maj@{k}" for arm in arms for k in arm.get("maj_at", {})}
    more = [*sorted(several, key=lambda name: int(name[5:])), *sorted(votes)]
    failed = any(arm.get("failed") for arm in arms)
    graded = ["|F1"] if any("f1" in arm for arm in arms) else []
    headings = [*columns, *graded, *(f"|{name}" for name in more), *(["|failed"] if failed else [])]
    made = table(f"Evaluation: {arms[0].get('eval') or arms[0]['task']}", ["", *headings])
    for arm in arms:
        tokens = arm["tokens_mean"]
        rates = {f"{kind}@{k}": percent(rate) for kind in ("pass", "maj")
                 for k, rate in arm.get(f"{kind}_at", {}).items()}  # fmt: skip
        cells = [
            named(arm), arm["n"], percent(arm["accuracy"]),
            f"{percent(arm['ci_low'])} to {percent(arm['ci_high'])}",
            percent(arm["strict_accuracy"]), percent(arm["format_rate"]), arm["parse_failures"],
            arm["truncated"], "–" if tokens is None else f"{tokens:.0f}",
            *([percent(arm.get("f1", 0.0))] if graded else []),
            *(rates.get(name, "") for name in more), *([arm.get("failed", 0)] if failed else []),
        ]  # fmt: skip
        made.add_row(*(Text(safe_text(str(cell))) for cell in cells))
    return made


def comparisons(arms: Sequence[dict[str, Any]]) -> Table:
    made = table(f"Against {named(arms[0])}",
                 ["", "|difference", "|95% interval", "|gained", "|lost", "|p", "|p (Holm)",
                  "verdict"])  # fmt: skip
    for arm in arms[1:]:
        c = arm["comparison"]
        p = c["p_exact"] if c["p_perm"] is None else c["p_perm"]
        cells = [
            named(arm), points(c["difference"]),
            f"{points(c['ci_low'])} to {points(c['ci_high'])}", c["gains"], c["losses"],
            f"{p:.2g}", f"{c['p_holm']:.2g}", c["verdict"],
        ]  # fmt: skip
        made.add_row(*(Text(safe_text(str(cell))) for cell in cells))
    return made


def second_answers(found: dict[str, Any]) -> Iterator[RenderableType]:
    """Of retries.json: a row an arm and a kind of retry, then trained against base, a line a test.

    Ungated, all is tried again; gated, what the grader calls wrong, so nothing becomes wrong.
    """
    columns = ["|Acc@t1", "|Acc@t2 ungated", "|became right", "|became wrong", "|Acc@t2 gated"]
    lost = any(row["failed"] for row in found["arms"])
    made = table("Second answers", ["", *columns, *(["|without a reflection"] if lost else [])])
    gated = {(row["arm"], row["retry"]): row for row in found["arms"] if row["gated"]}
    for row in sorted((r for r in found["arms"] if not r["gated"]), key=lambda r: str(r["arm"])):
        cells = [
            f"{row['arm']}, {row['retry']} retry", percent(row["acc_t1"]), percent(row["acc_t2"]),
            row["wrong_to_right"], row["right_to_wrong"],
            percent(gated[row["arm"], row["retry"]]["acc_t2"]), *([row["failed"]] if lost else []),
        ]  # fmt: skip
        made.add_row(*(Text(safe_text(str(cell))) for cell in cells))
    yield made
    for test in found["comparisons"]:
        low, high, p = test["ci_low"], test["ci_high"], test["p_exact"]
        yield Text(
            f"trained against base, {test['retry']} retry, "
            f"{'gated' if test['gated'] else 'ungated'}: {points(test['difference'])} points "
            f"({points(low)} to {points(high)}; {test['gains']} gained, {test['losses']} lost), "
            f"{verdict(p, low, high)} (exact McNemar p = {p:.2g})"
        )


def table(title: str, columns: Sequence[str]) -> Table:
    """A column named `|name` is set to the right."""
    made = Table(title=Text(safe_text(title), "bold"), title_justify="left", header_style="bold",
                 box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0))  # fmt: skip
    for column in columns:
        right = column.startswith("|")
        made.add_column(column.lstrip("|"), justify="right" if right else "left",
                        no_wrap=bool(column), overflow="fold")  # fmt: skip
    return made


def named(arm: dict[str, Any]) -> str:
    """The arm's name; of a single one, its model's."""
    return str(arm.get("name") or arm["model"] + (" + adapter" if arm.get("adapter") else ""))


def noise_line(name: str, noise: dict[str, Any]) -> str:
    return (
        f"A/A check: {name} again at batch {noise['batch']}: {noise['gains']} gained and "
        f"{noise['losses']} lost of {noise['answers']} answers, {noise['same_text']:.1%} of the "
        "texts the same. A difference of this size is noise."
    )


def chain_line(name: str, chain: dict[str, Any]) -> str:
    """What the rounds of recursive inference gained and took."""
    first, last = chain["acc_at"][0], chain["acc_at"][-1]
    stops = chain["gated"] and chain.get("stops", True)
    ended = "the grader ends a chain" if stops else "no grader ends a chain"
    said = (
        f"{name}: {percent(first)} at the first answer, {chain['name']} {percent(last)} "
        f"({points(last - first)}; {chain['right_to_wrong']} right became wrong, "
        f"{chain['wrong_to_right']} wrong became right); {ended}. A question took "
        f"{chain['samples_mean']:.2f} samples, {chain['tokens_generated']:.0f} tokens generated"
    )
    if chain["tokens_prefilled"]:
        said += f" and {chain['tokens_prefilled']:.0f} prefilled"
    return said + (f"; {chain['failed']} critic calls failed." if chain["failed"] else ".")


def percent(share: float) -> str:
    return f"{share:.1%}"
