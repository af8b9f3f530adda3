"""The five records of a run and their JSONL form: frozen dataclasses, one JSON object a line.

Files of records are append-only. A line is written whole; a torn last line (a crash in the middle
of a write) is ignored by the reader; a resumed run cuts it off.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

# Of role and content, and what few have: reasoning_content, tool_calls, name, tool_call_id.
Messages = list[dict[str, Any]]
Visibility = Literal["none", "verdict", "gold_answer", "gold_solution"]
Role = Literal[
    "attempt", "critique", "reflection", "rewrite", "continue", "retry", "verify", "integrate",
    "judge", "prefer", "pose", "score", "answer", "extract", "ground", "support", "embed",
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One question. `fields` is what the prompt shows; `gold` is never part of a training prompt.

    id: first 16 hex digits of SHA-256 over task, fields and gold.
    """

    SCHEMA: ClassVar[str] = "problem/1"
    id: str
    task: str
    fields: dict[str, Any]
    gold: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


# Half a character, which neither UTF-8 nor a tokenizer takes.
SURROGATE = re.compile("[\ud800-\udfff]")


def make_problem(
    task: str, fields: dict[str, Any], gold: str | None = None, meta: dict[str, Any] | None = None
) -> Problem:
    content = json.dumps([task, fields, gold], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return Problem(digest[:16], task, fields, gold, meta or {})


@dataclass(frozen=True)
class Verdict:
    """The judgement of a text.

    score: 1.0 right answer in the right format, 0.5 one of the two, 0.0 neither.
    source: "grader", or the critic that judged.
    """

    correct: bool
    format_ok: bool
    reason: str
    source: str = "grader"

    @property
    def score(self) -> float:
        return (self.correct + self.format_ok) / 2

    @property
    def passed(self) -> bool:
        return self.correct and self.format_ok


@dataclass(frozen=True)
class Turn:
    """One text of an episode: who wrote it, seeing what, and how it was judged.

    spans: character spans [start, end) of `think` and `answer` inside `text`.
    token_ids: what the policy generated, end token included; None for texts of a critic.
    usage: tokens in and out, as {"prompt": n, "completion": n}.
    error: why the call that should have written the text failed, and `text` is empty; or why a
        reply is of no use.
    """

    index: int
    parent: int | None
    role: Role
    actor: str
    messages: Messages
    text: str
    spans: dict[str, list[int]] = field(default_factory=dict)
    parsed: str | None = None
    verdict: Verdict | None = None
    visibility: Visibility = "none"
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    usage: dict[str, int] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of an episode.

    status: solved_first; solved (by a later turn, whoever wrote it, or verified after training);
        trained (and not verified); bucket (not yet); discarded (given up); failed (no call to the
        critic got through).
    solved_turn: index of the turn that passed. tier: the critic used, basic or advanced.
    """

    first_correct: bool
    solved_turn: int | None
    status: Literal["solved_first", "solved", "trained", "bucket", "discarded", "failed"]
    tier: Literal["basic", "advanced"] = "basic"


@dataclass(frozen=True)
class Episode:
    """Everything that happened to one problem in one wave."""

    SCHEMA: ClassVar[str] = "episode/1"
    recipe: str
    epoch: int
    wave: int
    problem: Problem
    turns: list[Turn]
    outcome: Outcome


@dataclass(frozen=True)
class Example:
    """One row of training data, with the turns it came from.

    chosen_ids, rejected_ids, completion_ids: the exact tokens where the policy wrote the text
    (end token included when it stopped by itself), None where a critic did.
    mask: which tokens the loss sees: "response", all; "from N", those from that character on.
    completions, completions_ids, rewards: of a group, several answers to one prompt and what each
    was worth.
    tools: that the chat template shows. parts: of a text, by its name, what the assistant's message
    has besides it: reasoning_content, tool_calls.
    source: {"problem": id, "epoch": n, "wave": n, "turns": [chosen, rejected]}.
    """

    SCHEMA: ClassVar[str] = "example/1"
    kind: Literal["sft", "preference", "group"]
    prompt: Messages
    chosen: str | None = None
    rejected: str | None = None
    completion: str | None = None
    chosen_ids: list[int] | None = None
    rejected_ids: list[int] | None = None
    completion_ids: list[int] | None = None
    completions: list[str] | None = None
    completions_ids: list[list[int]] | None = None
    rewards: list[float] | None = None
    weight: float = 1.0
    mask: str = "response"
    tools: list[dict[str, Any]] | None = None
    parts: dict[str, dict[str, Any]] | None = None
    source: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One answer in an evaluation.

    score: token F1, where the grading rules have it. tokens: how many a server says it took; None
    where token_ids hold them. finish_reason: "error" where the call to a server was given up.
    """

    SCHEMA: ClassVar[str] = "sample/1"
    task: str
    problem_id: str
    sample: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    parsed: str | None
    correct: bool
    format_ok: bool
    score: float | None = None
    tokens: int | None = None


Record = Problem | Episode | Example | Sample


def to_row(record: Record) -> dict[str, Any]:
    """The JSON object of a record, its schema first; keys that few have stand in those alone."""
    row = {"schema": record.SCHEMA, **dataclasses.asdict(record)}
    few = {Sample: ("score",), Example: ("tools", "parts")}.get(type(record), ())
    return {key: value for key, value in row.items() if value is not None or key not in few}


def episode_from_row(row: dict[str, Any]) -> Episode:
    turns = [
        Turn(**{**turn, "verdict": Verdict(**turn["verdict"]) if turn["verdict"] else None})
        for turn in row["turns"]
    ]
    rest = {k: row[k] for k in ("recipe", "epoch", "wave")}
    return Episode(
        **rest, problem=Problem(**row["problem"]), turns=turns, outcome=Outcome(**row["outcome"])
    )


def flat_from_row(kind: type, row: dict[str, Any]) -> Any:
    """A Problem, Example or Sample of a row; keys that the record does not have are left out."""
    names = {f.name for f in dataclasses.fields(kind)}
    return kind(**{k: v for k, v in row.items() if k in names})
