"""What the statistics say, in words."""

from mlxreflect.stats import Comparison


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


def sentence(
    comparison: Comparison,
    name_a: str,
    name_b: str,
    *,
    alpha: float = 0.05,
    p_perm: float | None = None,
    task: str = "",
    p_holm: float | None = None,
    tests: int = 1,
) -> str:
    """The comparison in words: significant, borderline or not significant.

    p_perm: the p-value of `clustered`, which has no exact one. task: named where there are several.
    p_holm: the p-value that decides, where this is one of several tests.
    """
    c = comparison
    p, test = (c.p_exact, "exact McNemar") if c.p_exact is not None else (p_perm, "sign-flip")
    if p is None:
        raise ValueError("a comparison of several samples a question needs its p_perm")
    decides = p if p_holm is None else p_holm
    found = verdict(decides, c.ci_low, c.ci_high, alpha)
    told = f"{test} p = {p:.2g}"
    if tests > 1:
        told += f"; {decides:.2g} with Holm's adjustment for {tests} comparisons"
    text = (
        f"{f'{task}: ' if task else ''}{name_b} answers {c.accuracy_b:.1%} of {c.n} questions "
        f"right, {name_a} {c.accuracy_a:.1%}: a difference of {points(c.difference)} points "
        f"({level(alpha)} interval {points(c.ci_low)} to {points(c.ci_high)}; "
        f"{c.gains} gained, {c.losses} lost), {found} ({told})."
    )
    if found == "borderline":
        text += f" The interval leaves out 0, but the test does not reach {alpha:g}."
    if found != "significant" and c.mde < 1:
        text += f" {c.n} questions show a true difference of {100 * c.mde:.1f} points 4 times in 5."
    elif found != "significant":
        text += " So few questions cannot show any difference."
    return text
