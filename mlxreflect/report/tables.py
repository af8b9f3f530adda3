"""Evaluations and comparisons as a person reads them on a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlxreflect.core.ui import percent, plain, table
from mlxreflect.evaluation.compare import deciding_p
from mlxreflect.stats import SHARPER, level, points, verdict

FEW = 5  # problems shown of each list, unless all are asked for
FEWER = 2  # where there are several comparisons
WIDTH = 60  # characters of a problem

# ---- evaluations ---------------------------------------------------------------------------------


def show_arms(arms: Sequence[dict[str, Any]]) -> Iterator[RenderableType]:
    """A row an arm, and how each compares with the first. arms: as the runner returns them."""
    yield figures(arms)
    for arm in arms:
        if chain := arm.get("chain"):
            yield plain(chain_line(named(arm), chain))
        if noise := arm.get("noise"):
            yield plain(
                f"A/A check: {named(arm)} again at batch {noise['batch']}: {noise['gains']} gained "
                f"and {noise['losses']} lost of {noise['answers']} answers, "
                f"{noise['same_text']:.1%} of the texts the same. A difference of this size is "
                "noise."
            )
    if any("comparison" in arm for arm in arms[1:]):
        yield Text()
        compared = {named(arm): arm["comparison"] for arm in arms[1:]}
        yield comparisons(f"Against {named(arms[0])}", compared)
        for arm in arms[1:]:
            yield plain(arm["comparison"]["sentence"])


def figures(arms: Sequence[dict[str, Any]]) -> Table:
    """strict: right, and in the format asked for. unparsed and cut off: numbers of answers.

    Of open answers, which nobody grades, there is no right and no strict.
    """
    judged = all(arm["accuracy"] is None for arm in arms)
    right = [] if judged else ["|right", "|95% interval", "|strict"]
    columns = ["|questions", *right, "|format", "|unparsed", "|cut off", "|tokens"]
    several = {f"pass@{k}" for arm in arms for k in arm.get("pass_at", {}) if k != "1"}
    votes = {f"maj@{k}" for arm in arms for k in arm.get("maj_at", {})}
    more = [*sorted(several, key=lambda name: int(name[5:])), *sorted(votes)]
    failed = any(arm.get("failed") for arm in arms)
    graded = ["|F1"] if any("f1" in arm for arm in arms) else []
    headings = [*columns, *graded, *(f"|{name}" for name in more), *(["|failed"] if failed else [])]
    rows = []
    for arm in arms:
        tokens = arm["tokens_mean"]
        rates = {f"{kind}@{k}": percent(rate) for kind in ("pass", "maj")
                 for k, rate in arm.get(f"{kind}_at", {}).items()}  # fmt: skip
        rows.append([
            named(arm), arm["n"],
            *([] if judged else [percent(arm["accuracy"]), interval(arm),
                                 percent(arm["strict_accuracy"])]),
            percent(arm["format_rate"]), arm["parse_failures"], arm["truncated"],
            "–" if tokens is None else f"{tokens:.0f}",
            *([percent(arm.get("f1", 0.0))] if graded else []),
            *(rates.get(name, "") for name in more), *([arm.get("failed", 0)] if failed else []),
        ])  # fmt: skip
    title = f"Evaluation: {arms[0].get('eval') or arms[0]['task']}"
    return table(title, ["", *headings], rows)


def interval(arm: Mapping[str, Any]) -> str:
    """The ends of the interval of an arm's accuracy; of answers that nobody grades a dash."""
    ends = (arm.get("ci_low"), arm.get("ci_high"))
    return "–" if None in ends else " to ".join(map(percent, ends))


def comparisons(title: str, compared: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns a table with a row a comparison, by name."""
    rows = [
        [
            name, points(c["difference"]), between(c), c.get("gains", ""), c.get("losses", ""),
            f"{deciding_p(c):.2g}", f"{c['p_holm']:.2g}", c["verdict"],
        ]
        for name, c in compared.items()
    ]  # fmt: skip
    interval = f"|{level(next(iter(compared.values()))['alpha'])} interval"
    columns = ["", "|difference", interval, "|gained", "|lost", "|p", "|p (Holm)", "verdict"]
    return table(title, columns, rows)


def second_answers(found: dict[str, Any]) -> Iterator[RenderableType]:
    """Of retries.json: a row an arm and a kind of retry, then trained against base, a line a test.

    Ungated, all is tried again; gated, what the grader calls wrong, so nothing becomes wrong.
    """
    lost = any(row["failed"] for row in found["arms"])
    gated = {(row["arm"], row["retry"]): row for row in found["arms"] if row["gated"]}
    ungated = sorted((r for r in found["arms"] if not r["gated"]), key=lambda r: str(r["arm"]))
    columns = ["|Acc@t1", "|Acc@t2 ungated", "|became right", "|became wrong", "|Acc@t2 gated"]
    rows = [
        [
            f"{row['arm']}, {row['retry']} retry", percent(row["acc_t1"]), percent(row["acc_t2"]),
            row["wrong_to_right"], row["right_to_wrong"],
            percent(gated[row["arm"], row["retry"]]["acc_t2"]), *([row["failed"]] if lost else []),
        ]
        for row in ungated
    ]  # fmt: skip
    last = ["|without a reflection"] if lost else []
    yield table("Second answers", ["", *columns, *last], rows)
    for test in found["comparisons"]:
        p = test["p_exact"]
        yield plain(
            f"trained against base, {test['retry']} retry, "
            f"{'gated' if test['gated'] else 'ungated'}: {points(test['difference'])} points "
            f"({between(test)}; {test['gains']} gained, {test['losses']} lost), "
            f"{verdict(p, test['ci_low'], test['ci_high'])} (exact McNemar p = {p:.2g})"
        )


def named(arm: dict[str, Any]) -> str:
    """The arm's name; of a single one, its model's."""
    return str(arm.get("name") or arm["model"] + (" + adapter" if arm.get("adapter") else ""))


def chain_line(name: str, chain: dict[str, Any]) -> str:
    """The gain of recursive inference over its first answer, and its cost."""
    stops = chain["gated"] and chain.get("stops", True)
    ended = "the grader ends a chain" if stops else "no grader ends a chain"
    gained = ""
    if chain["acc_at"]:  # of answers that are graded
        first, last = chain["acc_at"][0], chain["acc_at"][-1]
        gained = (
            f"{percent(first)} at the first answer, {chain['name']} {percent(last)} "
            f"({points(last - first)}; {chain['right_to_wrong']} right became wrong, "
            f"{chain['wrong_to_right']} wrong became right); "
        )
    said = (
        f"{name}: {gained}{ended}. A question took "
        f"{chain['samples_mean']:.2f} samples, {chain['tokens_generated']:.0f} tokens generated"
    )
    if chain["tokens_prefilled"]:
        said += f" and {chain['tokens_prefilled']:.0f} prefilled"
    if "own_reflections" in chain:
        said += f"; {chain['own_reflections']} critiques stood in the answers themselves"
    return said + (f"; {chain['failed']} critic calls failed." if chain["failed"] else ".")


def between(r: Mapping[str, Any]) -> str:
    return f"{points(r['ci_low'])} to {points(r['ci_high'])}"


# ---- comparisons ---------------------------------------------------------------------------------


def render_comparison(result: Mapping[str, Any], *, whole: bool = False) -> Group:
    """A comparison as tables, sentences and the problems gained and lost.

    result: of `compare_all` or `compare_counts`. whole: every problem gained and lost.
    """
    results = result.get("comparisons", [result])
    several = len(results) > 1
    tasks = len(result.get("tasks", ())) > 1
    by_name = {
        (f"{r['task']}: " if tasks else "") + f"{r['b']} against {r['a']}": r for r in results
    }
    parts: list[RenderableType] = [
        comparisons(f"{len(results)} comparisons", by_name) if several else single(result)
    ]
    for one in results:
        parts += [
            plain(one["sentence"]),
            *([plain(one["plan"]["sentence"])] if "plan" in one else []),
        ]
    notes = [note for one in results for note in remarks(one)]
    if several:
        notes.append(
            f"The verdicts use Holm's adjustment for {len(results)} comparisons: of so many, one "
            "looks significant by chance too often."
        )
        notes += [SHARPER] if "unpaired" in results[0] else []
    parts += map(plain, dict.fromkeys(notes))
    few = FEWER if several else FEW
    for one in results:
        parts += problem_lists(one, None if whole else few, name=several)
    return Group(*parts)


def single(r: Mapping[str, Any]) -> Table:
    """One comparison, a figure a line."""
    unpaired = "unpaired" in r
    if "judged" in r:
        return two_columns(r, judged_rows(r))
    rows = {
        "questions": f"{r['n_a']} and {r['n_b']}, not paired" if unpaired else f"{r['n']}",
        "samples a question": "" if r.get("samples", 1) == 1 else f"{r['samples']}",
        f"accuracy of {r['a']}": accuracy(r, "a"),
        f"accuracy of {r['b']}": accuracy(r, "b"),
        "gained, lost": "" if unpaired else f"{r['gains']}, {r['losses']}",
        "difference": f"{points(r['difference'])} points",
        f"{level(r['alpha'])} interval": between(r),
        "exact McNemar p": "" if unpaired else number(r["p_exact"]),
        "mid-p": number(r.get("p_mid")),
        "sign-flip p": number(r.get("p_perm")),
        "two-proportion z, p": f"{r['z']:.3f}, {number(r['p'])}" if unpaired else "",
        "Fisher's exact p": number(r["p_exact"]) if unpaired else "",
        **{f"{name}@{k}": score(one) for name in ("pass", "maj")
           for k, one in r.get(f"{name}_at", {}).items()},
        "verdict": r["verdict"],
    }  # fmt: skip
    return two_columns(r, rows)


def judged_rows(r: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a comparison of open answers, and of its judge."""
    found = r["judged"]
    return {
        "questions": f"{r['n']}",
        "not judged": f"{found.get('unjudged') or ''}",
        f"preferred: {r['b']}": accuracy(r, "b"),
        f"preferred: {r['a']}": accuracy(r, "a"),
        "wins, losses, ties": f"{r['gains']}, {r['losses']}, {found['ties']}",
        f"win rate of {r['b']}": f"{r['win_rate']:.1%}, a tie counted half",
        f"{level(r['alpha'])} interval": f"{r['win_low']:.1%} to {r['win_high']:.1%}",
        "exact sign test p": number(r["p_exact"]),
        "mid-p": number(r["p_mid"]),
        "judge": f"{found['by']}, {found['calls']} replies",
        "same verdict in both orders": f"{percent(found['consistency'])} of {found['asked']}",
        "first answer preferred": f"{percent(found['first_won'])} of {found['first_of']}",
        "longer answer won": f"{percent(found['longer_won'])} of {found['longer_of']}",
        "verdict": r["verdict"],
    }


def two_columns(r: Mapping[str, Any], rows: Mapping[str, str]) -> Table:
    title = plain(f"{r['b']} against {r['a']}", "bold")
    made = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
    for _ in range(2):  # too wide for a terminal, it becomes paragraphs as all tables do
        made.add_column(no_wrap=True)
    for name, value in rows.items():
        if value:
            made.add_row(plain(name), plain(value))
    return made


def remarks(r: Mapping[str, Any]) -> Iterator[str]:
    if r.get("differs"):
        told = ", ".join(f"{d['key']} ({d['a']!r} and {d['b']!r})" for d in r["differs"])
        yield f"Meant to differ: {told}."
    if r.get("unchecked"):
        yield f"Not checked to be the same: {', '.join(r['unchecked'])}."
    yield from judge_remarks(r.get("judged"))
    if r.get("maj_at"):
        yield "maj@k: a tie goes to the answer given first. pass@k and maj@k are not adjusted for."


def judge_remarks(judged: Mapping[str, Any] | None) -> Iterator[str]:
    """Returns what to know of a judge before its verdicts are believed; None: there was none."""
    if judged is None:
        return
    if judged["itself"]:
        yield f"{judged['by']} is the model that answered: models prefer their own answers."
    if judged["empty"] or judged["same"]:
        yield (
            f"Nobody was asked about {judged['empty'] + judged['same']} questions: "
            f"{judged['empty']} with an empty answer, which loses to any other, and "
            f"{judged['same']} with the same answer twice, a tie."
        )


def problem_lists(r: Mapping[str, Any], most: int | None, *, name: bool) -> Iterator[Text]:
    """The problems gained and lost, the first few or all."""
    for kind in ("gained", "lost"):
        found = r.get(kind) or []
        if not found:
            continue
        whose = f" ({r['task']}: {r['b']} against {r['a']})" if name else ""
        yield plain(f"\n{kind}: {len(found)}{whose}", "bold")
        for one in found[:most]:
            yield plain(f"  {problem(one)}")
        if most is not None and len(found) > most:
            yield Text(f"  … and {len(found) - most} more; all of them with --list or --json")


def problem(one: Mapping[str, Any]) -> str:
    """id, question, and the answers before and after."""
    if "why" in one:
        change = " ".join(one["why"].split())[:WIDTH]
    elif "answer_a" in one:
        given = (one["answer_a"], one["answer_b"])
        before, after = (" ".join((text or "no answer").split()) for text in given)
        change = f"{before[:30]} → {after[:30]}"
    else:
        change = f"{one['right_a']:.0%} → {one['right_b']:.0%}"
    text = one["question"] or ""
    text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
    return "  ".join(part for part in (one["id"], text, f"({change})") if part)


def accuracy(r: Mapping[str, Any], side: str) -> str:
    """A percentage with its own interval."""
    low, high = r[f"ci_{side}"]
    return f"{r[f'accuracy_{side}']:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def score(one: Mapping[str, float]) -> str:
    return (
        f"{one['accuracy_a']:.1%} → {one['accuracy_b']:.1%}, {points(one['difference'])} points "
        f"({between(one)}), p {number(one['p_perm'])}"
    )


def number(p: float | None) -> str:
    return "" if p is None else f"{p:.3g}"
