"""The five records of a run and their JSONL form: frozen dataclasses, one JSON object a line.

Files of records are append-only. A line is written whole; a torn last line (a crash in the middle
of a write) is ignored by the reader; a resumed run cuts it off.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Required,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

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

    def in_a_line(self, width: int) -> str:
        """Returns it in one line of so many characters at most: its question, else its fields."""
        listed = ", ".join(f"{key} {in_words(value)}" for key, value in self.fields.items())
        line = " ".join(str(self.fields.get("question") or listed).split())
        return line if len(line) <= width else line[: width - 1] + "…"


def in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


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


class Source(TypedDict, total=False):
    """The episode and the turns (chosen, rejected) that an example comes from, if any."""

    problem: str | None
    epoch: int
    wave: int
    turns: list[int]
    forced: bool


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
    source: Annotated[dict[str, Any], Source] = field(default_factory=dict)


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
    fields = dataclasses.asdict(record) if isinstance(record, Episode) else vars(record)
    row = {"schema": record.SCHEMA, **fields}
    few = {Sample: ("score", "tokens"), Example: ("tools", "parts")}.get(type(record), ())
    return {key: value for key, value in row.items() if value is not None or key not in few}


def episode_from_row(row: dict[str, Any]) -> Episode:
    turns = []
    for turn in row["turns"]:
        verdict = flat_from_row(Verdict, turn["verdict"]) if turn.get("verdict") else None
        turns.append(flat_from_row(Turn, {**turn, "verdict": verdict}))
    rest = {k: row[k] for k in ("recipe", "epoch", "wave")}
    problem = flat_from_row(Problem, row["problem"])
    outcome = flat_from_row(Outcome, row["outcome"])
    return Episode(**rest, problem=problem, turns=turns, outcome=outcome)


@cache
def names_of(kind: type) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(kind))


def flat_from_row(kind: type, row: dict[str, Any]) -> Any:
    """A record without another one in it; keys that it does not have are left out."""
    names = names_of(kind)
    return kind(**{k: v for k, v in row.items() if k in names})


# ---- rows whose form nobody promises -------------------------------------------------------------


Finite = Annotated[float, math.isfinite]


class StepRow(TypedDict, total=False):
    """A row of metrics.jsonl, as far as it is read: a step of training."""

    kind: Required[Literal["step"]]
    objective: str
    loss: float | None
    margin: float | None
    accuracy: float | None
    tokens: int
    seconds: float


class AskedRow(TypedDict, total=False):
    """Counts what a wave asked of its critics."""

    calls: int
    cached: int
    answered: int
    failed: int
    unknown: int
    kinds: dict[str, int]
    tokens_in: int
    tokens_out: int
    usd: Finite


class WaveRow(TypedDict, total=False):
    """A row of metrics.jsonl, as far as it is read: a wave."""

    kind: Required[Literal["wave"]]
    epoch: Required[int]
    wave: Required[int]
    seconds: Required[float]
    stage: Required[str]
    problems: int
    first_correct: int
    format_ok: int
    solved: int
    bucket: int
    verifications: int
    answers: int
    cut: int
    reward: float | None
    tokens_generated: int
    critic: AskedRow
    arm: str
    anew: list[Literal["reference", "adapter"]]


class DevRow(TypedDict):
    """A row of metrics.jsonl, as far as it is read: a look at dev problems."""

    kind: Literal["dev"]
    wave: int
    accuracy: float
    base: float
    worse: bool
    best: bool


class HeldOutRow(TypedDict, total=False):
    """A row of metrics.jsonl, as far as it is read: a training's held-out rows."""

    kind: Required[Literal["held_out"]]
    step: Required[int]
    loss: float | None
    margin: float | None
    accuracy: float | None


class TripleRow(TypedDict):
    """A row of graph.jsonl, as far as it is read: a triple that a thought drew."""

    wave: int
    problem: str
    role: str
    subject: str
    relation: str
    object: str


class ProbeRow(TypedDict):
    """A row of probes.jsonl: an answer to the recipe's probe of that number.

    wave: that the policy was trained in; None before the first.
    """

    epoch: int
    wave: int | None
    probe: int
    prompt: str
    text: str
    tokens: int
    finish_reason: str | None


MetricsRow = StepRow | WaveRow | DevRow | HeldOutRow
# A line of critic.jsonl, as far as it is read.
RequestRow = TypedDict(
    "RequestRow",
    {"kind": str, "try": int, "tokens_in": int, "tokens_out": int, "usd": Finite, "seconds": float},
)
LARGEST = 2**63  # of a whole number: what is computed with it stays a number


@cache
def fits(kind: Any) -> Callable[[Any], bool]:
    """Returns a function that tells whether a value of JSON has the form of a type.

    kind: a record or another dataclass, a TypedDict, or what annotates their fields, where
    `Annotated` has another type to fit or a test to pass. Keys without a name in it may be there.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: True
    if origin is Required:
        return fits(parts[0])
    if origin is Annotated:
        of, also = fits(parts[0]), kind.__metadata__[0]
        also = fits(also) if isinstance(also, type) else also
        return lambda value: of(value) and also(value)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in parts
    if origin in (Union, UnionType):
        choices = [fits(part) for part in parts]
        return lambda value: any(choice(value) for choice in choices)
    if kind == list[int]:  # of tokens there are thousands
        return lambda value: type(value) is list and set(map(type, value)) <= {int}
    if origin is list:
        one = fits(parts[0])
        return lambda value: type(value) is list and all(map(one, value))
    if origin is dict:
        held = fits(parts[1])
        return lambda value: type(value) is dict and all(map(held, value.values()))
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return fits_object(kind)
    if kind is float:
        return lambda value: type(value) is float or fits(int)(value)
    if kind is int:
        return lambda value: type(value) is int and abs(value) < LARGEST
    return lambda value: type(value) is kind


def fits_object(kind: Any) -> Callable[[Any], bool]:
    """Returns `fits` of a dataclass or a TypedDict."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        needed, schema = set(kind.__required_keys__), None
    else:
        hints = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
        absent = dataclasses.MISSING
        needed = {f.name for f in dataclasses.fields(kind)
                  if f.default is absent and f.default_factory is absent}  # fmt: skip
        schema = getattr(kind, "SCHEMA", None)
    checks = {name: fits(hint) for name, hint in hints.items()}

    def check(value: Any) -> bool:
        return (
            type(value) is dict
            and needed <= value.keys()
            and schema in (None, value.get("schema", schema))
            and all(checks[key](one) for key, one in value.items() if key in checks)
        )

    return check
