"""Open questions: a critic says which of two arms' answers is better, blind and in both orders.

A question counts for an arm only if its answer is preferred whichever is shown first. Two orders
that disagree are a tie, and the judge's own inconsistency. Nobody is asked where the answers settle
it: an empty one loses to any other, and two that are the same are a tie.

What was judged is kept in `judged/NUMBER-JUDGE-DIGEST/` of the arm that is compared with the
baseline: setup.json says what and how, judgements.jsonl has a line a judgement. Judging that was
killed goes on there, and whoever compares later asks nobody. A call that failed, and a reply
without a verdict, is a line without one: its question is not judged, until another line has one.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from mlxreflect.config.recipe import check_critic, load_recipe
from mlxreflect.config.schema import REMOTE, BudgetConfig, CriticConfig, EvalSpec
from mlxreflect.config.toml import bundled
from mlxreflect.core.errors import UserError, reworded
from mlxreflect.core.journal import (
    append_rows,
    convert_rows,
    count_rows,
    locked,
    read_json,
    sha256,
    write_atomic,
)
from mlxreflect.core.records import Finite, Problem, fits
from mlxreflect.core.seeds import rng_for, seed_for
from mlxreflect.core.ui import Ui
from mlxreflect.evaluation.arms import Arm, short_hash, slug, whole_chunks
from mlxreflect.prompts.roles import BUNDLED, RUBRIC, role_messages, untagged

if TYPE_CHECKING:
    from mlxreflect.critics.base import Call, Critic, Reply
    from mlxreflect.critics.ledger import Ledger
    from mlxreflect.critics.verdicts import Answer, Choice

FOLDER, FILE = "judged", "judgements.jsonl"
ROLE = "prefer_answer"
AT_ONCE = 32  # judgements that are asked for, and written, together
MANY = 0.5  # a larger share of failed calls is no judge
TIE = "tie"
UNREAD = "unknown"  # kind of a reply without a verdict
EMPTY = "the other answer is empty"  # why one wins that nobody was asked about
# Keys of a critic that change what it says.
SAYS = ("provider", "model", "top_p", "max_tokens", "num_ctx", "thinking", "top_k", "min_p",
        "repetition_penalty", "presence_penalty")  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """The answers of both arms to one question."""

    problem: Problem
    a: str
    b: str

    @property
    def settled(self) -> str:
        """Names who wins without a judge, "a", "b" or "tie"; "" where one has to look."""
        if self.a == self.b:
            return TIE
        return ("b" if self.b else "a") if not (self.a and self.b) else ""


class Judgement(NamedTuple):
    """A question with the answer of one arm, `first`, shown before the other's."""

    pair: Pair
    first: str

    @property
    def key(self) -> tuple[str, str]:
        return self.pair.problem.id, self.first


def pairs_of(a: Arm, b: Arm) -> list[Pair]:
    """Returns the answers of two arms, in the order of the first one's problems."""
    found = []
    for id_, one in a.problems.items():
        texts = [(side.problems[id_].parsed[0] or "").strip() for side in (a, b)]
        found.append(Pair(one.problem or Problem(id_, a.task, {}), *texts))
    return found


def judgements_of(pairs: Sequence[Pair], seed: int) -> list[Judgement]:
    """Returns what a judge is asked: each question in both orders, the first of them drawn."""
    found = []
    for pair in pairs:
        first, other = rng_for("judge", seed, pair.problem.id).sample("ab", 2)
        found += [] if pair.settled else [Judgement(pair, first), Judgement(pair, other)]
    return found


# ---- what was judged -----------------------------------------------------------------------------


class SetupRow(TypedDict):
    """Holds what is read of setup.json."""

    judge: str
    rubric: str
    itself: bool
    samples: dict[str, str]
    judgements: int


class JudgementRow(TypedDict):
    """Holds what is read of a line of judgements.jsonl."""

    problem: str
    first: Literal["a", "b"]
    verdict: Literal["a", "b", "tie"] | None
    why: str
    error: str | None
    kind: str
    calls: int
    tokens_in: int
    tokens_out: int
    usd: Finite


def read_setup(folder: Path) -> dict[str, Any]:
    """Returns what setup.json says. Raises UserError for a damaged one."""
    file = folder / "setup.json"
    setup = read_json(file)
    if not fits(SetupRow)(setup):
        raise UserError(
            f"{file}: not the setup of a judge: a key is missing, or holds another kind of value",
            f"restore that file, or delete {folder} and have its answers judged again",
        )
    return setup


def find_judged(a: Arm, b: Arm) -> Path | None:
    """Returns the folder of the first judge who was asked about all of two arms' answers."""
    known = [path.parent for path in b.path.glob(f"{FOLDER}/*/setup.json")]
    for folder in sorted(known, key=number_of):
        setup = read_setup(folder)
        whole = count_rows(folder / FILE) >= setup["judgements"]
        if whole and setup["samples"] == samples_of(a, b):
            return folder
    return None


def judgements_in(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Returns the lines of each judgement, the one that counts last.

    Raises UserError for a damaged journal.
    """

    def make(row: dict[str, Any]) -> dict[str, Any]:
        if not fits(JudgementRow)(row):
            raise TypeError("a key is missing, or holds another kind of value")
        return row

    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in convert_rows(folder / FILE, make, "a judgement"):
        found.setdefault((row["problem"], row["first"]), []).append(row)
    return found


def samples_of(a: Arm, b: Arm) -> dict[str, str]:
    return {"a": sha256(a.file), "b": sha256(b.file)}


def number_of(folder: Path) -> int:
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


@dataclass(frozen=True)
class Judged:
    """The outcome of judging. won: problem → "a", "b" or "tie", of each that was judged.

    why: problem → the judge's words. figures: see `figures_of`.
    """

    won: dict[str, str]
    why: dict[str, str]
    figures: dict[str, Any]


def read_judged(folder: Path, a: Arm, b: Arm) -> Judged:
    """Returns what a judge said of two arms. Raises UserError for a damaged journal."""
    setup, pairs = read_setup(folder), pairs_of(a, b)
    lines = judgements_in(folder)
    said: dict[str, dict[str, dict[str, Any]]] = {}
    for (problem, first), rows in lines.items():
        said.setdefault(problem, {})[first] = rows[-1]
    asked = {pair.problem.id for pair in pairs if not pair.settled}
    if said.keys() != asked or any(len(both) != 2 for both in said.values()):
        raise UserError(
            f"{folder / FILE}: not the judgements of these answers",
            f"restore that file, or delete {folder} and have them judged again",
        )
    decided = {p.problem.id: p.settled or agreed(said[p.problem.id]) for p in pairs}
    won = {id_: who for id_, who in decided.items() if who}
    if not won:
        last = [rows[-1] for rows in lines.values()]
        error = next(row["error"] for row in reversed(last) if row["verdict"] is None)
        raise UserError(
            f"{folder / FILE}: none of {len(pairs)} questions was judged; the last: {error}",
            "see that the judge answers as it is asked to, then compare again with --judge",
        )
    why = {pair.problem.id: EMPTY for pair in pairs if pair.settled in ("a", "b")}
    for id_, (one, other) in ((id_, (both["a"], both["b"])) for id_, both in said.items()):
        why[id_] = one["error"] or other["error"] or one["why"] or other["why"]
    figures = {
        "by": setup["judge"], "rubric": setup["rubric"], "itself": setup["itself"],
        "folder": f"{FOLDER}/{folder.name}", **figures_of(pairs, won, lines.values()),
    }  # fmt: skip
    return Judged(won, why, figures)


def agreed(both: dict[str, dict[str, Any]]) -> str:
    """Returns who wins by both orders: a tie where they disagree, "" where one has no verdict."""
    one, other = both["a"]["verdict"], both["b"]["verdict"]
    if one is None or other is None:
        return ""
    return str(one) if one == other else TIE


def figures_of(
    pairs: Sequence[Pair], won: dict[str, str], lines: Collection[Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    """Returns the counts of a comparison, and what they say of the judge.

    lines: of each judgement, the one that counts last. ties: of all questions that are decided.
    empty, same: settled by an empty answer, or as both are the same. asked: questions that a judge
    saw; unjudged: of these, without a verdict in one of the orders. consistency: share of the
    others with the same verdict in both orders; inconsistent: their number without. first_won:
    share of verdicts for an answer (first_of) that are for the one shown first. longer_won: share
    of decided questions (longer_of) that the longer answer won. unread, failed: judgements without
    a verdict in the reply, and without a reply, of the `kinds`. calls, tokens_in, tokens_out, usd:
    of all replies.
    """
    every = [row for rows in lines for row in rows]
    last = [rows[-1] for rows in lines]
    verdicts: dict[str, list[str | None]] = {}
    for row in last:
        verdicts.setdefault(row["problem"], []).append(row["verdict"])
    whole = [both for both in verdicts.values() if None not in both]
    same = sum(one == other for one, other in whole)
    chosen = [row["first"] == row["verdict"] for row in last if row["verdict"] in ("a", "b")]
    decided = [
        (len(p.b) > len(p.a)) == (won[p.problem.id] == "b")
        for p in pairs
        if not p.settled and won.get(p.problem.id, TIE) != TIE and len(p.a) != len(p.b)
    ]
    lost = Counter(row["kind"] for row in last if row["verdict"] is None)
    unread = lost.pop(UNREAD, 0)
    return {
        "ties": sum(one == TIE for one in won.values()),
        "empty": sum(not (p.a and p.b) for p in pairs),
        "same": sum(p.a == p.b != "" for p in pairs),
        "asked": len(verdicts), "unjudged": len(verdicts) - len(whole),
        "consistency": share(same, len(whole)), "inconsistent": len(whole) - same,
        "first_won": share(sum(chosen), len(chosen)), "first_of": len(chosen),
        "longer_won": share(sum(decided), len(decided)), "longer_of": len(decided),
        "unread": unread, "failed": lost.total(), "kinds": sorted(lost),
        **{key: sum(row[key] for row in every) for key in ("calls", "tokens_in", "tokens_out")},
        "usd": round(sum(row["usd"] for row in every), 9),
    }  # fmt: skip


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# ---- judging -------------------------------------------------------------------------------------


class Judging:
    """Has the answers of two arms judged, where that has not been done; from the main thread.

    named: the critic that a person names for it. usual: the one of a recipe, where neither a person
    nor the spec names one. rubric: in place of the spec's. ledger: of a run; None keeps counts for
    this command alone, with its `budget`. stack: closes the critics.
    """

    def __init__(
        self, ui: Ui, stack: ExitStack, *, named: CriticConfig | None = None,
        usual: CriticConfig | None = None, rubric: str = "", ledger: "Ledger | None" = None,
        budget: BudgetConfig | None = None,
    ) -> None:  # fmt: skip
        self.ui, self.stack, self.named, self.usual, self.rubric = ui, stack, named, usual, rubric
        self.ledger, self.budget = ledger, budget
        self.opened: dict[CriticConfig, Critic] = {}

    def __call__(self, a: Arm, b: Arm) -> Path:
        """Returns the folder with all judgements of two arms. Raises UserError: there is no judge.

        Where nobody names one, what was judged before will do; the same judge is asked again for
        verdicts that are missing.
        """
        found = None if self.named or self.rubric else find_judged(a, b)
        if found and all(rows[-1]["verdict"] for rows in judgements_in(found).values()):
            return found
        if a.spec is None or not b.path.is_dir():
            raise UserError(
                f"{b.path}: answers are judged in the folder of their evaluation",
                "give the folders that `mlxreflect eval` or `run` made, not files",
            )
        config = find_judge(a.spec, named=self.named, usual=self.usual)
        if config is None:
            if found:
                return found
            raise no_judge(b)
        rubric = (self.rubric or a.spec.judge.rubric or RUBRIC).strip()
        pairs = pairs_of(a, b)
        owed = judgements_of(pairs, a.spec.seed)
        setup = {
            "schema": "judged/1", "judge": f"{config.provider}:{config.model}", "rubric": rubric,
            "itself": any(of_model(config.model) == of_model(arm.model) for arm in (a, b)),
            "critic": config.model_dump(include=set(SAYS)), "seed": a.spec.seed,
            "template": BUNDLED.replaced(a.spec.prompt.templates).version(ROLE),
            "samples": samples_of(a, b), "judgements": len(owed),
        }  # fmt: skip
        if found and read_json(found / "setup.json") != setup:
            return found
        if owed:
            self.ui.line(
                f"{setup['judge']} will judge {b.name} against {a.name}: {len(owed)} calls, "
                f"{len(owed) // 2} of {len(pairs)} questions in both orders, without names"
            )
        if setup["itself"]:
            self.ui.line(
                "warning: the judge is the model that answered, and models prefer their own "
                "answers: name another one"
            )
        return self.judge(b, config, setup, owed, a.spec)

    def judge(
        self, arm: Arm, config: CriticConfig, setup: dict[str, Any], owed: Sequence[Judgement],
        spec: EvalSpec,
    ) -> Path:  # fmt: skip
        """Asks for the verdicts that the folder of this setup lacks, and returns that folder."""
        place = arm.path / FOLDER
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{place}: {error.strerror}", "copy the evaluation first") from None
        with locked(place):
            folder = open_folder(place, setup)
            path = folder / FILE
            whole_chunks(path, 1, len(owed))  # without a line that was never written to its end
            known = judgements_in(folder)
            again = [o for o in owed if o.key in known and known[o.key][-1]["verdict"] is None]
            left = [one for one in owed if one.key not in known] + again  # as `find_judged` counts
            with self.ui.progress(f"judging {arm.name}", len(owed)) as bar:
                bar.advance(len(owed) - len(left))
                for start in range(0, len(left), AT_ONCE):
                    part = left[start : start + AT_ONCE]
                    calls = [call_of(one, setup["rubric"], spec, len(known.get(one.key, ())))
                             for one in part]  # fmt: skip
                    append_rows(path, self.ask(self.critic(config), part, calls, bar.advance))
        return folder

    def critic(self, config: CriticConfig) -> "Critic":
        """Returns a critic that is known to answer; it is opened once."""
        from mlxreflect.critics import open_critic
        from mlxreflect.critics.ledger import Ledger

        if config not in self.opened:
            ledger = self.ledger = self.ledger or Ledger(None, self.budget)
            critic = self.opened[config] = open_critic(config, "jsonl", "judge", ledger)
            critic.say = self.ui.line
            self.stack.callback(critic.close)
            critic.preflight()
        return self.opened[config]

    def ask(
        self, critic: "Critic", part: Sequence[Judgement], calls: "Sequence[Call]",
        advance: Callable[[int], None],
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Returns the rows of some judgements. Raises UserError where most calls fail.

        advance: is told of each judgement once its first reply is here.
        """
        from mlxreflect.critics.ledger import BudgetReached
        from mlxreflect.critics.verdicts import Choice, ask_structured

        left = len(part)

        def answered(n: int) -> None:  # a reply that is asked for again is no further judgement
            nonlocal left
            advance(min(n, left))
            left -= min(n, left)

        critic.answered = answered
        try:
            answers = ask_structured(critic, calls, Choice)
        except BudgetReached as error:
            if self.ledger and self.ledger.path:
                raise
            hint = "what was judged is kept: raise that limit, then give the same command again"
            raise UserError(error.message, hint) from None
        last = [answer.replies[-1] for answer in answers]
        failed = [reply.error for reply in last if reply.error and reply.kind != UNREAD]
        if len(failed) > MANY * len(part):
            raise UserError(
                f"{len(failed)} of {len(part)} calls to the judge failed; the last: {failed[-1]}",
                "see that the critic answers, then give the same command again: it goes on there",
            )
        return (row_of(one, answer) for one, answer in zip(part, answers, strict=True))


def call_of(one: Judgement, rubric: str, spec: EvalSpec, tries: int = 0) -> "Call":
    """Returns a request that names no arm; no answer in it can close its quotes, or open others.

    tries: how often it was asked before, in vain: another seed may bring another reply.
    """
    from mlxreflect.critics.base import Call

    pair, templates = one.pair, BUNDLED.replaced(spec.prompt.templates)
    shown = [pair.a, pair.b] if one.first == "a" else [pair.b, pair.a]
    question = str(pair.problem.fields.get("question", ""))
    first, second = (untagged(text, ROLE) for text in shown)
    messages = role_messages(
        ROLE, "think", templates, rubric=rubric, question=untagged(question, ROLE),
        answer_1=first, answer_2=second,
    )  # fmt: skip
    return Call(
        role="prefer", problem=pair.problem, messages=messages, text="\n".join(shown),
        visibility="none", template=templates.version(ROLE), temperature=0.0,
        attempt=str(tries or ""), seed=seed_for("judge", spec.seed, pair.problem.id) + 2 * tries,
    )  # fmt: skip


def row_of(one: Judgement, answer: "Answer[Choice]") -> dict[str, Any]:
    """Returns a line of judgements.jsonl. verdict: None where there is none; text: the reply."""
    last: Reply = answer.replies[-1]
    other = "b" if one.first == "a" else "a"
    said = answer.value
    return {
        "schema": "judgement/1", "problem": one.pair.problem.id, "first": one.first,
        "verdict": {"1": one.first, "2": other, TIE: TIE}[said.better] if said else None,
        "why": said.why if said else "", "text": last.text, "error": last.error,
        "kind": last.kind, "calls": len(answer.replies),
        "tokens_in": sum(reply.cost.tokens_in for reply in answer.replies),
        "tokens_out": sum(reply.cost.tokens_out for reply in answer.replies),
        "usd": round(sum(reply.cost.usd for reply in answer.replies), 9),
    }  # fmt: skip


def open_folder(place: Path, setup: dict[str, Any]) -> Path:
    """Returns the folder of a setup, a new one with the next number where there is none."""
    name = f"{slug(setup['judge'])}-{short_hash(setup)[:8]}"
    known = [path for path in place.iterdir() if path.is_dir()]
    for folder in known:
        if folder.name.partition("-")[2] == name:
            return folder
    folder = place / f"{1 + max(map(number_of, known), default=0)}-{name}"
    folder.mkdir()
    write_atomic(folder / "setup.json", json.dumps(setup, indent=2, ensure_ascii=False) + "\n")
    return folder


def of_model(name: str) -> str:
    """Returns a model's own name, wherever it is from."""
    return Path(name).name.casefold()


def find_judge(
    spec: EvalSpec, *, named: CriticConfig | None = None, usual: CriticConfig | None = None
) -> CriticConfig | None:
    """Returns the critic that judges the answers of a spec; None where nobody names one.

    named, usual: as of `Judging`. Raises UserError for keys that its provider could not do with.
    """
    own = spec.judge.critic
    config = named or (own if own.provider != "solver" else usual)
    if config is None or config.provider == "solver":
        return None
    with reworded({"critic.": "judge.critic."} if config is own else {}):
        check_critic(config, Path("[judge]"))
    return config


def no_judge(arm: Arm) -> UserError:
    return UserError(
        f"{arm.path}: answers to open questions, which no critic has judged yet",
        "name one: mlxreflect compare BASE OTHER --judge ollama:NAME",
    )


def find_critic(who: str) -> tuple[CriticConfig, BudgetConfig | None]:
    """Returns the critic of `--judge`: PROVIDER:MODEL, or that of a recipe, with its budget."""
    if who in bundled("recipes") or who.endswith(".toml"):
        critics = load_recipe(who).critic
        return critics.tier("judge"), critics.budget
    provider, _, model = who.partition(":")
    if provider not in ("local", *REMOTE) or not model:
        raise UserError(
            f"--judge {who}: no critic that judges open answers",
            f"give PROVIDER:MODEL, such as ollama:qwen2.5:7b ({', '.join(('local', *REMOTE))}), "
            "or a recipe that has a [critic]",
        )
    return CriticConfig.model_validate({"provider": provider, "model": model}), None
