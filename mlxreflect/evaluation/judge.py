"""Open questions: a critic says which of two arms' answers is better, blind and in both orders.

A question counts for an arm only if its answer is preferred whichever is shown first. Two orders
that disagree are a tie, and the judge's own inconsistency. Nobody is asked where the answers settle
it: an empty one loses to any other, and two that are the same are a tie.

What was judged is kept in `judged/NUMBER-JUDGE-DIGEST/` of the arm that is compared with the
baseline: setup.json says what and how, judgements.jsonl has a line a judgement. A line is written
once, so judging that was killed goes on, and whoever compares later asks nobody.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from mlxreflect.core.records import Problem
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


def find_judged(a: Arm, b: Arm) -> Path | None:
    """Returns the folder of the first judge who has judged two arms' answers to the end."""
    known = [path.parent for path in b.path.glob(f"{FOLDER}/*/setup.json")]
    for folder in sorted(known, key=number_of):
        setup = read_json(folder / "setup.json")
        if (
            setup.get("samples") == samples_of(a, b)
            and count_rows(folder / FILE) == setup["judgements"]
        ):
            return folder
    return None


def samples_of(a: Arm, b: Arm) -> dict[str, str]:
    return {"a": sha256(a.file), "b": sha256(b.file)}


def number_of(folder: Path) -> int:
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


@dataclass(frozen=True)
class Judged:
    """The outcome of judging. won: problem → "a", "b" or "tie". why: problem → the judge's words.

    figures: see `figures_of`.
    """

    won: dict[str, str]
    why: dict[str, str]
    figures: dict[str, Any]


def read_judged(folder: Path, a: Arm, b: Arm) -> Judged:
    """Returns what a judge said of two arms. Raises UserError for a damaged journal."""
    setup, pairs = read_json(folder / "setup.json"), pairs_of(a, b)

    def make(row: dict[str, Any]) -> dict[str, Any]:
        if row["first"] not in ("a", "b") or row["verdict"] not in ("a", "b", TIE, None):
            raise TypeError("first and verdict name an arm")
        return row

    rows = list(convert_rows(folder / FILE, make, "a judgement"))
    said: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        said.setdefault(row["problem"], {})[row["first"]] = row
    asked = {pair.problem.id for pair in pairs if not pair.settled}
    if said.keys() != asked or any(len(both) != 2 for both in said.values()):
        raise UserError(
            f"{folder / FILE}: not the judgements of these answers",
            f"restore that file, or delete {folder} and have them judged again",
        )
    won = {p.problem.id: p.settled or agreed(said[p.problem.id]) for p in pairs}
    why = {pair.problem.id: EMPTY for pair in pairs if pair.settled in ("a", "b")}
    why |= {id_: both["a"]["why"] or both["b"]["why"] for id_, both in said.items()}
    figures = {"by": setup["judge"], "rubric": setup["rubric"], "itself": setup["itself"],
               "folder": f"{FOLDER}/{folder.name}", **figures_of(pairs, won, rows)}  # fmt: skip
    return Judged(won, why, figures)


def agreed(both: dict[str, dict[str, Any]]) -> str:
    """Returns who wins by both orders; a tie where they disagree, or one has no verdict."""
    one, other = both["a"]["verdict"], both["b"]["verdict"]
    return str(one) if one is not None and one == other else TIE


def figures_of(
    pairs: Sequence[Pair], won: dict[str, str], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the counts of a comparison, and what they say of the judge.

    ties: of all questions. empty, same: settled by an empty answer, or as both are the same. asked:
    questions that a judge saw; undecided: of these, without a verdict in one of the orders.
    consistency: share of the others with the same verdict in both orders; inconsistent: their
    number without. first_won: share of verdicts for an answer (first_of) that are for the one
    shown first. longer_won: share of decided questions (longer_of) that the longer answer won.
    unread, failed: judgements without a verdict in the reply, and without a reply. calls,
    tokens_in, tokens_out, usd: of all replies.
    """
    verdicts: dict[str, list[str | None]] = {}
    for row in rows:
        verdicts.setdefault(row["problem"], []).append(row["verdict"])
    whole = [both for both in verdicts.values() if None not in both]
    same = sum(one == other for one, other in whole)
    chosen = [row["first"] == row["verdict"] for row in rows if row["verdict"] in ("a", "b")]
    decided = [
        (len(p.b) > len(p.a)) == (won[p.problem.id] == "b")
        for p in pairs
        if not p.settled and won[p.problem.id] != TIE and len(p.a) != len(p.b)
    ]
    lost = [row for row in rows if row["verdict"] is None]
    return {
        "ties": sum(one == TIE for one in won.values()),
        "empty": sum(not (p.a and p.b) for p in pairs),
        "same": sum(p.a == p.b != "" for p in pairs),
        "asked": len(verdicts), "undecided": len(verdicts) - len(whole),
        "consistency": share(same, len(whole)), "inconsistent": len(whole) - same,
        "first_won": share(sum(chosen), len(chosen)), "first_of": len(chosen),
        "longer_won": share(sum(decided), len(decided)), "longer_of": len(decided),
        "unread": sum(row["kind"] == "unknown" for row in lost),
        "failed": sum(row["kind"] != "unknown" for row in lost),
        **{key: sum(row[key] for row in rows) for key in ("calls", "tokens_in", "tokens_out")},
        "usd": round(sum(row["usd"] for row in rows), 9),
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

        Where nobody names one, what was judged before will do.
        """
        asked = self.named or self.rubric
        if not asked and (found := find_judged(a, b)):
            return found
        if a.spec is None or not b.path.is_dir():
            raise UserError(
                f"{b.path}: answers are judged in the folder of their evaluation",
                "give the folders that `mlxreflect eval` or `run` made, not files",
            )
        config = find_judge(a.spec, named=self.named, usual=self.usual)
        if config is None:
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
        if owed:
            self.ui.line(
                f"{setup['judge']} judges {b.name} against {a.name}: {len(owed)} calls, "
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
        """Asks for what is not in the folder of this setup yet, and returns that folder."""
        place = arm.path / FOLDER
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{place}: {error.strerror}", "copy the evaluation first") from None
        with locked(place):
            folder = open_folder(place, setup)
            path = folder / FILE
            done = whole_chunks(path, AT_ONCE, len(owed))
            with self.ui.progress(f"judging {arm.name}", len(owed)) as bar:
                bar.advance(done)
                for start in range(done, len(owed), AT_ONCE):
                    part = owed[start : start + AT_ONCE]
                    append_rows(path, self.ask(self.critic(config), part, setup["rubric"], spec))
                    bar.advance(len(part))
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
        self, critic: "Critic", part: Sequence[Judgement], rubric: str, spec: EvalSpec
    ) -> Iterator[dict[str, Any]]:
        """Returns the rows of some judgements. Raises UserError where most calls fail."""
        from mlxreflect.critics.ledger import BudgetReached
        from mlxreflect.critics.verdicts import Choice, ask_structured

        try:
            answers = ask_structured(critic, [call_of(o, rubric, spec) for o in part], Choice)
        except BudgetReached as error:
            if self.ledger and self.ledger.path:
                raise
            hint = "what was judged is kept: raise that limit, then give the same command again"
            raise UserError(error.message, hint) from None
        last = [answer.replies[-1] for answer in answers]
        failed = [reply.error for reply in last if reply.error and reply.kind != "unknown"]
        if len(failed) > MANY * len(part):
            raise UserError(
                f"{len(failed)} of {len(part)} calls to the judge failed; the last: {failed[-1]}",
                "see that the critic answers, then give the same command again: it goes on there",
            )
        return (row_of(one, answer) for one, answer in zip(part, answers, strict=True))


def call_of(one: Judgement, rubric: str, spec: EvalSpec) -> "Call":
    """Returns a request that names no arm; no answer in it can close its quotes, or open others."""
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
        seed=seed_for("judge", spec.seed, pair.problem.id),
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
            f"--judge {who}: no such critic",
            f"give PROVIDER:MODEL, such as ollama:qwen2.5:7b ({', '.join(('local', *REMOTE))}), "
            "or a recipe that has a [critic]",
        )
    return CriticConfig.model_validate({"provider": provider, "model": model}), None
