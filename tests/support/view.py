# ruff: noqa: E501
"""Runs to look at, written without a model: as many problems as wanted, of any texts."""

import json
from collections.abc import Sequence
from pathlib import Path

from mlxreflect.config.recipe import dump_recipe, load_recipe
from mlxreflect.core.journal import append_rows
from mlxreflect.core.records import Episode, Example, Outcome, Turn, Verdict, make_problem, to_row
from support.arm_folders import gsm8k, write_arm

MARKUP = [
    "<script>window.hit = 1</script>", "</script><script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>", "<svg onload=window.hit=1>", "<!--<script>",
    '"><iframe srcdoc="<script>parent.hit = 1</script>">', "{{ 7 * 7 }}{% include 'x' %}",
    "javascript:window.hit=1", "<a href='javascript:window.hit=1' autofocus onfocus='window.hit=1'>",
    "&lt;script&gt;window.hit = 1&lt;/script&gt;", "<style>*{display:none}</style>",
    "<base href='http://example.invalid/'>", "<meta http-equiv=refresh content='0;url=x'>",
    "</style></title></textarea><script>window.hit = 1</script>", "${window.hit = 1}",
    "<math><mtext><script>window.hit = 1</script>", "\u2028window.hit = 1\u2029",
]  # fmt: skip
STEERING = [
    "\u202ereversed\u202c", "\u2066isolated", "\u200bhidden", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07",
    "\x00nothing", "a\rb", "\x9b2J", "\ud83d", "\udc00", "\ufeff", "\U000e0041tag", "e" + "\u0301" * 500,
]  # fmt: skip
YAML = [
    "---", "...", "--- evil", "a: b", "license: evil", "!!python/object/apply:os.system [id]", "&a [*a]",
    "*a", "<<: *a", "'", '"', "it's \"so\"", "- x", "? x", "# x", "|", ">-", "{a: b}", "[a", "@a", "`a`",
    "%YAML 1.2", "\t", "null", "true", "1e9", "2026-01-01", "0x1f", "=", "~", "\\", "\x85---\x85",
    "\u2028---\u2028", "\x0c", "\r", "\0", "\ud800", "\u202e", "\ufeff---", "x" * 1_000,
]  # fmt: skip
# 200 again: alone, on lines of their own, after a key, in quotes, at an end.
HOSTILE_YAML = [form.format(text) for text in YAML
                for form in ("{}", "\n{}\n", "\n---\nlicense: {}\n---\n", "'{}\"", "a {}\n")]  # fmt: skip
# 200 of them, no two alike.
HOSTILE = [f"{text} {i}" for i, text in enumerate((MARKUP + STEERING) * 7)][:200]


def turn(
    index: int, role: str, actor: str, text: str, verdict: Verdict | None, **more: object
) -> Turn:
    asked = [{"role": "system", "content": "Think first."}, {"role": "user", "content": "What?"}]
    parent = index - 1 if index else None
    return Turn(index, parent, role, actor, asked, text, verdict=verdict, **more)  # type: ignore[arg-type]


def episode(number: int, text: str, wave: int, epoch: int = 1) -> tuple[Episode, Example]:
    """A wrong attempt, its critique, a rewrite that is right, and a verification."""
    problem = make_problem("gsm8k", {"question": f"Question {number}: {text}"}, str(number))
    right = number % 3 == 0
    turns = [
        turn(0, "attempt", "policy:1", f"{text}\nstep 1: 2\n<answer>0</answer>",
             Verdict(False, True, f"0 instead of {number}"), parsed="0",
             finish_reason="length" if number % 10 == 0 else "stop"),
        turn(1, "critique", "critic", f"step 1 is wrong: {text}", None, visibility="verdict"),
        turn(2, "rewrite", "critic", f"{text}\nstep 1: 3\n<answer>{number}</answer>",
             Verdict(True, True, "")),
        turn(3, "verify", "policy:2", "<answer>1</answer>", Verdict(right, True, "")),
    ]  # fmt: skip
    status = "solved" if right else "bucket"
    outcome = Outcome(False, 3 if right else None, status)  # type: ignore[arg-type]
    source = {"problem": problem.id, "epoch": epoch, "wave": wave, "turns": [2, 0]}
    pair = Example("preference", turns[0].messages, turns[2].text, turns[0].text, source=source)
    return Episode("r3", epoch, wave, problem, turns, outcome), pair


def write_run(folder: Path, texts: Sequence[str], wave: int = 100, *, answers: bool = True) -> Path:
    """A finished run of a problem for each text, and held-out problems answered with the texts."""
    folder.mkdir(parents=True)
    recipe = load_recipe("quickstart", [f"task.limit={len(texts)}"])
    (folder / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    made = [episode(i, text, i // wave) for i, text in enumerate(texts)]
    append_rows(folder / "episodes.jsonl", (to_row(one) for one, _ in made))
    append_rows(folder / "examples.jsonl", (to_row(pair) for _, pair in made))
    waves = -(-len(texts) // wave)
    append_rows(folder / "metrics.jsonl", (row for i in range(waves) for row in metrics(i, wave)))
    if answers:
        problems = gsm8k(max(2, min(len(texts), 200)))
        for arm, right in (("base", 2), ("trained", 3)):
            texts_of = [[f"{texts[i % len(texts)]}<answer>{i + 1 if i % 5 < right else 0}</answer>"]
                        for i in range(len(problems))]  # fmt: skip
            write_arm(folder / "eval" / arm, problems, texts_of, adapter="x" * (arm != "base"))
    summary = {"status": "finished", "recipe": "quickstart", "policy": "tiny", "wall_seconds": 60.0}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def metrics(number: int, problems: int) -> list[dict[str, object]]:
    at = {"schema": "metrics/1", "epoch": 1, "wave": number}
    step = {**at, "kind": "step", "objective": "dpo", "step": number + 1, "loss": 0.7 - number / 1e4,
            "margin": number / 10, "accuracy": 0.5, "tokens": 9, "seconds": 0.5}  # fmt: skip
    wave = {**at, "kind": "wave", "number": number, "stage": "problems", "problems": problems,
            "first_correct": 0, "format_ok": problems, "solved": problems // 3, "bucket": problems,
            "verifications": problems, "answers": 2 * problems, "cut": problems // 10, "pairs": 1,
            "failures": {}, "tokens_generated": 100, "tokens_trained": 9, "seconds": 2.0,
            "critic": {"calls": 2 * problems, "failed": 0},
            **({"anew": ["reference"]} if number == 1 else {})}  # fmt: skip
    return [step, wave]
