"""One problem's whole story for a terminal: attempt, critique, rewrite, verdict, training, verify.

All text of models and critics goes through `plain`: no markup, no control characters.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from mlxreflect.config.schema import METHODS
from mlxreflect.core.records import Episode, Example, Turn
from mlxreflect.core.ui import plain

ANSWERS = ("attempt", "rewrite", "continue", "retry", "verify", "integrate", "answer", "ground")
MOST_WORDS = 10_000  # and spaces, in a difference; beyond, comparing would take seconds
REMOVED, ADDED = "red strike", "green"
MARKS = {REMOVED: ("[-", "-]"), ADDED: ("{+", "+}")}
STATUS_STYLE = {"solved_first": "green", "solved": "green", "trained": "cyan", "bucket": "yellow",
                "discarded": "yellow", "failed": "red"}  # fmt: skip
ENDED = {
    "solved_first": "solved at the first try",
    "solved": "solved",
    "trained": "trained on, not verified",
    "bucket": "not solved: on the bucket list",
    "discarded": "given up: it is not trained on",
    "failed": "no call to the critic got through",
}


def tell_story(episodes: list[Episode], examples: list[Example]) -> list[RenderableType]:
    """All episodes of one problem, in order, with the examples that came of it."""
    problem = episodes[0].problem
    parts: list[RenderableType] = [plain(f"problem {problem.id} ({problem.task})", "bold")]
    asked = next((t.messages for t in episodes[0].turns if t.role == "attempt" and t.messages), [])
    parts.append(Padding(plain(asked[-1]["content"] if asked else problem.fields), (0, 2)))
    if problem.gold is not None:
        parts.append(plain(f"expected: {problem.gold}"))
    for episode in episodes:
        at = {"epoch": episode.epoch, "wave": episode.wave}
        own = [e for e in examples if {k: e.source.get(k) for k in at} == at]
        parts += tell_episode(episode, own)
    forced = sum(bool(example.source.get("forced")) for example in examples)
    if forced:
        parts.append(plain(f"on the bucket list to the last: {forced} × SFT on its last winner"))
    return parts


def tell_episode(episode: Episode, examples: list[Example]) -> list[RenderableType]:
    title = f"epoch {episode.epoch}, wave {episode.wave}"
    method = METHODS.get(episode.recipe)
    title += f", {episode.outcome.tier} critic" if method and method.escalates else ""
    parts: list[RenderableType] = [Text(), Rule(plain(title, "bold"), align="left", style="dim")]
    for turn in episode.turns:
        parts += tell_turn(turn, episode.turns)
        parts += [tell_pair(e) for e in examples if pair_of(e) and pair_of(e)[0] == turn.index]
    imitated = Counter(str(turn) for e in examples if e.kind == "sft" for turn in turns_of(e))
    if imitated:
        times = ", ".join(f"{turn} ({n} ×)" if n > 1 else turn for turn, n in imitated.items())
        parts.append(plain(f"trained by SFT on turn {times}", "magenta"))
    for group in (e for e in examples if e.kind == "group"):
        worth = ", ".join(f"{reward:g}" for reward in group.rewards or ())
        parts.append(plain(f"trained by GRPO, its answers worth {worth}", "magenta"))
    status = episode.outcome.status
    solved = episode.outcome.solved_turn
    ended = ENDED.get(status, status)
    if solved is not None:
        trained = status == "solved" and episode.turns[solved].role == "verify"
        ended += f"{': verified after training' if trained else ''}, turn {solved}"
    return [*parts, plain(ended, f"bold {STATUS_STYLE.get(status, '')}")]


def turns_of(example: Example) -> list[int]:
    return list(example.source.get("turns", []))


def pair_of(example: Example) -> list[int]:
    """[chosen, rejected] of a preference pair; empty for what is none."""
    turns = turns_of(example)
    return turns if example.kind == "preference" and len(turns) == 2 else []


def tell_pair(example: Example) -> Text:
    chosen, rejected = pair_of(example)
    return plain(f"trained on a pair: turn {chosen} preferred to turn {rejected}", "magenta")


def tell_turn(turn: Turn, turns: list[Turn]) -> list[RenderableType]:
    """A turn's head, its text (a rewrite as a difference) and its verdict."""
    facts = [f"{turn.index} {turn.role} by {turn.actor}"]
    if turn.role == "score":
        facts.append(f"of turn {turn.parent}")
    if turn.usage.get("completion"):
        facts.append(f"{turn.usage['completion']} tokens")
    if turn.finish_reason == "length":
        facts.append("cut off at the token limit")
    if turn.visibility != "none":
        facts.append(f"shown: {turn.visibility.replace('_', ' ')}")
    parts: list[RenderableType] = [Text(), plain(", ".join(facts), "bold")]
    if turn.error is not None:
        text = [Padding(plain(turn.text), (0, 2))] if turn.text.strip() else []
        what = "the reply is of no use" if text else "the call failed"
        return [*parts, *text, plain(f"  {what}: {turn.error}", "red")]
    before = rewritten(turn, turns) if turn.role == "rewrite" else None
    body = plain(turn.text) if before is None else Rewriting(before.text, turn.text)
    parts.append(Padding(body, (0, 2)))
    return parts if turn.verdict is None else [*parts, tell_verdict(turn)]


def tell_verdict(turn: Turn) -> Text:
    verdict = turn.verdict
    assert verdict is not None
    answer = "right" if verdict.correct else "wrong"
    shape = "format kept" if verdict.format_ok else "format broken"
    style = "green" if verdict.passed else "yellow" if verdict.correct else "red"
    text = f"  {'✓' if verdict.passed else '✗'} {answer}, {shape}"
    text += f": {verdict.reason}" if verdict.reason else ""
    return plain(text + (f" ({verdict.source})" if verdict.source != "grader" else ""), style)


def rewritten(turn: Turn, turns: list[Turn]) -> Turn | None:
    """The answer that a turn rewrites: the nearest one among the turns it came from."""
    by_index = {t.index: t for t in turns}
    parent = turn.parent
    for _ in turns:  # no longer than there are turns, should parents go in a circle
        ancestor = by_index.get(parent) if parent is not None else None
        if ancestor is None or ancestor.role in ANSWERS:
            return ancestor
        parent = ancestor.parent
    return None


@dataclass(frozen=True)
class Rewriting:
    """A rewrite as the difference to what it rewrote, readable without colours too."""

    before: str
    after: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield word_diff(self.before, self.after, marks=console.no_color or not console.is_terminal)


def word_diff(before: str, after: str, *, marks: bool = False) -> Text:
    """Returns a rewrite as a difference to what it rewrote.

    The opening that it kept is dim, removed text is red, added text is green.
    marks: put [-…-] and {+…+} around what was removed and added, as git does.
    """
    old, new = split_words(before), split_words(after)
    kept = shared(old, new)
    tail = shared(old[kept:][::-1], new[kept:][::-1])
    middle = middle_diff(old[kept : len(old) - tail], new[kept : len(new) - tail])
    text = Text()
    for words, style in [(new[:kept], "dim"), *middle, (new[len(new) - tail :], "")]:
        left, right = MARKS.get(style, ("", "")) if marks else ("", "")
        if words:
            text.append_text(plain(f"{left}{''.join(words)}{right}", style))
    return text


def middle_diff(old: list[str], new: list[str]) -> list[tuple[list[str], str]]:
    """Runs of words, each with its style."""
    if len(old) + len(new) > MOST_WORDS:
        return [(old, REMOVED), (new, ADDED)]
    runs = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, new).get_opcodes():
        runs += [(new[k:m], "")] if tag == "equal" else [(old[i:j], REMOVED), (new[k:m], ADDED)]
    return runs


def split_words(text: str) -> list[str]:
    """Words and the spaces between them; joined, they are the text again."""
    return re.findall(r"\s+|\S+", text)


def shared(a: Iterable[str], b: Iterable[str]) -> int:
    """Returns how many items two sequences have in common at their start."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
