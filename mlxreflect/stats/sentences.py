"""Comparisons in words."""

from collections.abc import Mapping
from typing import Any

SHARPER = "Pairing the answers question by question, where both have them, is a sharper test."


def points(fraction: float) -> str:
    """A signed difference in percentage points."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def level(alpha: float) -> str:
    """The name of an interval: 95%."""
    return f"{100 * (1 - alpha):.10g}%"


def verdict(p: float, ci_low: float, ci_high: float, alpha: float = 0.05) -> str:
    """The test decides; borderline is an interval without 0 whose test does not reach alpha."""
    if p < alpha:
        return "significant"
    return "borderline" if ci_low > 0 or ci_high < 0 else "not significant"


def sentence(r: Mapping[str, Any], *, task: str = "") -> str:
    """Returns a paired comparison in words: significant, borderline or not significant.

    r: the fields of `Comparison`, a and b (the names), alpha; p_perm where there is no exact p;
    p_holm, which decides, and tests, where this is one of several. task: named where there are
    several. Raises ValueError without a p-value.
    """
    exact = r["p_exact"] is not None
    p, test = (r["p_exact"], "exact McNemar") if exact else (r.get("p_perm"), "sign-flip")
    if p is None:
        raise ValueError("a comparison of several samples a question needs its p_perm")
    alpha = r["alpha"]
    found = verdict(r.get("p_holm", p), r["ci_low"], r["ci_high"], alpha)
    text = (
        f"{f'{task}: ' if task else ''}{r['b']} answers {r['accuracy_b']:.1%} of {r['n']} "
        f"questions right, {r['a']} {r['accuracy_a']:.1%}: {spread(r)}; "
        f"{r['gains']} gained, {r['losses']} lost), {found} ({test} p = {p:.2g}{adjusted(r)})."
    )
    if found == "borderline":
        text += f" The interval leaves out 0, but the test does not reach {alpha:g}."
    if found != "significant" and r["mde"] < 1:
        text += (
            f" {r['n']} questions show a true difference of {100 * r['mde']:.1f} points 4 times "
            "in 5."
        )
    elif found != "significant":
        text += " So few questions cannot show any difference."
    return text


def unpaired_sentence(r: Mapping[str, Any]) -> str:
    """Returns a comparison of counts in words. r: as `compare_counts` gives it."""
    exact = r["p_exact"] is not None
    found = verdict(r["p_holm"], r["ci_low"], r["ci_high"], r["alpha"])
    told = f"p = {r['p_exact']:.2g}" if exact else f"= {r['z']:.2f}, p = {r['p']:.2g}"
    return (
        f"{r['b']} answers {r['right_b']} of {r['n_b']} questions right ({r['accuracy_b']:.1%}), "
        f"{r['a']} {r['right_a']} of {r['n_a']} ({r['accuracy_a']:.1%}): {spread(r)}), {found} "
        f"({r['test']}{', ' if exact else ' '}{told}{adjusted(r)})."
        + (f" {SHARPER}" if r["tests"] == 1 else "")
    )


def spread(r: Mapping[str, Any]) -> str:
    return (
        f"a difference of {points(r['difference'])} points ({level(r['alpha'])} interval "
        f"{points(r['ci_low'])} to {points(r['ci_high'])}"
    )


def adjusted(r: Mapping[str, Any]) -> str:
    tests = r.get("tests", 1)
    if tests == 1:
        return ""
    return f"; {r['p_holm']:.2g} with Holm's adjustment for {tests} comparisons"
