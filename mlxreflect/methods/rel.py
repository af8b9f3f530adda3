"""REL: Reasoning Enhancement Loop (arXiv 2412.04645), in rounds over all problems.

A round: an exploratory attempt at each problem; grade; a judge, which sees the answer and works
at temperature 0, says what is wrong without giving it away. After the first failure the working is
continued from that hint, so that it comes upon its mistake by itself; after the second it is
written again with the solution shown; what fails then is discarded. When all problems were tried,
SFT on what was accepted in this round and those before, and on people's worked solutions, from the
start of the run: what is imitated is the working with its mistakes and their mending, or a tidied
one. The next round's attempts are those of the trained policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlxreflect.config.fields import LocalFile, Positive, Rate, Table
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Episode, Example, Messages, Problem, Turn
from mlxreflect.graders.text import withheld
from mlxreflect.methods.base import (
    ExportForm,
    Frame,
    Method,
    Note,
    Plan,
    Played,
    Shares,
    Trajectory,
    Try,
    Wave,
    completion,
    judged,
    outcome_of,
    passed,
    refuse_direct,
    unless_right,
)
from mlxreflect.methods.rel_worked import (
    by_people,
    human_examples,
    read_human,
    reasonset_rows,
    worked_rows,
)
from mlxreflect.prompts.parsing import carried_on, open_working, plain_solution

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe, Tier
    from mlxreflect.critics.base import Call


class RelConfig(Table):
    """Attempts are asked at policy.temperature, the judge marks at 0."""

    rounds: Positive = 2  # passes over all problems, each ending in training
    wave: Positive = 10  # problems taken and committed together
    tries: Literal[1, 2, 3] = 3  # the attempt, its continuation, a rewrite shown the solution
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9  # of the temperature, each further try
    writer: Literal["critic", "self"] = "critic"  # who continues, rewrites and tidies
    judge: bool = False  # what passes the grader must also convince the judge
    review: bool = False  # what was accepted is tidied into a clean solution, too
    target: Literal["working", "tidied"] = "working"  # what is imitated
    mistakes: bool = True  # false: what went wrong before its mending is shown, not imitated
    weight: Rate = 1.0  # of what the loop made
    human: LocalFile = ""  # worked solutions by people: a Markdown or JSONL file
    human_weight: Rate = 2.0  # of people's worked solutions
    restart: bool = True  # each round trains from the start; false: from the round before
    measure: bool = False  # an evaluation after each round, beside base and trained


def check(recipe: Recipe, path: Path) -> None:
    refuse_direct(recipe, path)
    if recipe.rel.target == "tidied" and not recipe.rel.review:
        raise UserError(
            f"{path}: rel.target = 'tidied' while rel.review = false, which tidies nothing",
            'set rel.review = true, or rel.target = "working"',
        )


def tiers(recipe: Recipe) -> list[Tier]:
    config = recipe.rel
    found: list[Tier] = []
    if config.writer == "critic" and (config.tries > 1 or config.review):
        found.append("basic")
    return [*found, "judge"] if config.tries > 1 or config.judge else found


def plan(recipe: Recipe, n: int, shares: Shares) -> Plan:
    config, rounds, most = recipe.rel, recipe.rel.rounds, shares.most
    first = n * rounds
    wrong = [shares.wrong, *[shares.helped] * (config.tries - 1)]  # at each try
    tried = [first * prod(wrong[:i]) for i in range(config.tries)]
    # What the judge refuses may have passed the grader, and no reply be read.
    judged = sum(n if config.judge else n * w for n, w in zip(tried[:-1], wrong, strict=False))
    judged += tried[-1] * config.judge * (1.0 if most else 1 - wrong[-1])
    marked = {"judge": judged * (2 if most else 1)} if judged else {}
    written = dict(zip(("continue", "rewrite"), tried[1:], strict=False))
    accepted = first * (1.0 if most else 1 - prod(wrong))
    if config.review:
        written["integrate"] = accepted
    calls: dict[tuple[Tier, str], float] = {("judge", role): n for role, n in marked.items()}
    if config.writer == "critic":
        calls |= {("basic", role): times for role, times in written.items()}
    human = len(read_human(recipe)) if config.human else 0
    imitated = accepted * (rounds + 1) / 2 + human * rounds  # each round also those before
    return Plan(
        first, config.wave, calls, (*marked, *written),
        written=written if config.writer == "self" else {},
        trained={(0, "sft"): imitated},
        answers=(rounds - 1) * config.measure,
        waves=first / config.wave,
    )  # fmt: skip


def notes(recipe: Recipe, problems: list[Problem]) -> list[Note]:
    """Returns what is in the file of worked solutions by people; unchecked without problems."""
    if not recipe.rel.human:
        return []
    if not problems:
        return [Note(f"worked solutions: {len(read_human(recipe))} by people")]
    examples, left_out = human_examples(recipe, problems)
    said = by_people(len(examples), left_out)
    return [Note(f"worked solutions: {said}", fine=bool(examples))]


# ---- examples ------------------------------------------------------------------------------------


def worked_examples(
    episode: Episode, prompt: Messages, config: RelConfig, tags: str
) -> Iterator[Example]:
    """Yields what is imitated of a problem: its accepted working, or a review's tidied one.

    prompt: as an evaluation asks; that of the attempts is another. tags: of a thought.
    """
    solved = episode.outcome.solved_turn
    for turn in episode.turns:
        tidied = turn.role == "integrate" and turn.parent == solved
        wanted = tidied if config.target == "tidied" else turn.index == solved
        if solved is not None and wanted and passed(turn):
            example = replace(completion(episode, turn, config.weight), prompt=prompt)
            if turn.role == "continue" and not config.mistakes:
                before = repeated(open_working(episode.turns[0].text, tags), turn.text)
                example = replace(example, mask=f"from {before}")
            yield example
            return  # one working a problem, however often it was tidied


def repeated(working: str, text: str) -> int:
    """Returns how many characters of a text repeat a working's beginning, spacing aside."""
    left = (c for c in working if not c.isspace())
    end, wanted = 0, next(left, "")
    for i, character in enumerate(text):
        if character == wanted:
            end, wanted = i + 1, next(left, "")
        elif not character.isspace():
            break
    return end


# ---- waves ---------------------------------------------------------------------------------------


@dataclass
class State:
    """The state between two waves. epoch: the round.

    made: examples that the loop made, in this round and those before. human: people's, and what of
    them was left out and why.
    """

    epoch: int = 1
    cursor: int = 0
    wave: int = 0
    stage: str = "problems"
    made: list[dict[str, Any]] = field(default_factory=list)
    human: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


class Rel:
    """Plays waves of tries, and at a round's end the training."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.config = frame, frame.recipe.rel
        if self.config.restart:
            frame.learning.keep_start()
        human, left_out = human_examples(frame.recipe, list(frame.problems.values()))
        self.state = State(human=[asdict(example) for example in human], left_out=left_out)
        self.tier: Any = "self" if self.config.writer == "self" else "basic"

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        """Takes problems in an order of the round's own, then the training that ends it."""
        state, config = self.state, self.config
        if state.stage == "train":
            if ending or state.epoch >= config.rounds:
                return None
            state.epoch, state.cursor, state.stage = state.epoch + 1, 0, "problems"
        new, order = state.cursor == 0, self.frame.order(state.epoch)
        taken = [] if ending else order[state.cursor : state.cursor + config.wave]
        state.cursor += len(taken)
        state.stage = "problems" if taken else "train"
        return Wave(state.wave, state.epoch, state.stage, taken, new)

    def progress(self) -> tuple[int, int]:
        n = len(self.frame.problems)
        return n * (self.state.epoch - 1) + self.state.cursor, n * self.config.rounds

    def play(self, wave: Wave) -> Played:
        trains = wave.stage == "train"
        episodes = [] if trains else self.try_all()
        examples = self.train() if trains else []
        self.keep(episodes)
        made = len(self.state.made)
        told = f"trained on {made} workings" if trains else f"{made} different workings so far"
        if trains and self.config.human:
            told += f" and {by_people(len(self.state.human), self.state.left_out)}"
        figures = {
            "accepted": made, "human": len(self.state.human), "left_out": self.state.left_out,
            "told": told,
        }  # fmt: skip
        measured = trains and wave.epoch < self.config.rounds and self.config.measure
        return Played(episodes, figures, f"round-{wave.epoch}" if measured else "", examples)

    # ---- tries ----------------------------------------------------------------------------------

    def try_all(self) -> list[Episode]:
        """Attempts, continues and rewrites; tidies what was accepted, with a review."""
        frame, tried = self.frame, self.frame.trajectories()
        frame.attempt(tried, frame.seed("sample"))
        hinted = self.mark(tried, 1)
        for number in range(2, self.config.tries + 1):
            frame.status(f"try {number}, {len(hinted)} problems")
            hinted = self.mark(self.write(hinted, number), number)
        if self.config.review:
            self.tidy([one for one in tried if one.solved])
        return [
            frame.episode(one.problem, one.turns, outcome_of(one.solved, one.turns[1:]))
            for one in tried
        ]

    def mark(self, tried: list[Trajectory], number: int) -> list[Trajectory]:
        """Accepts what is right, and returns all else that may be tried again.

        Their last turn is the judge's, with the hint as its `parsed`. Where the judge gave no
        verdict, nothing is accepted that must convince it, and there is no hint to go on from.
        """
        judge, more = self.config.judge, number < self.config.tries
        shown = [one for one in tried if (judge if passed(current(one)) else more)]
        texts = [current(one) for one in shown]
        at = self.at("judge", number)
        said = self.frame.session.judge([s.problem for s in shown], texts, at, temperature=0.0)
        hinted = []
        for one, text, (judgement, turn) in zip(shown, texts, said, strict=True):
            hint = self.hint(one, *judged(judgement)) if judgement else None
            if passed(text):  # else the grader's reason stays
                text = unless_right(text, judgement, turn.actor)
                one.current = one.turns[text.index] = text
            one.add(replace(turn, parsed=hint))
            if hint and more and not passed(text):
                hinted.append(one)
        for one in tried:
            if passed(current(one)):
                one.solved = one.current
        return hinted

    def hint(self, one: Trajectory, word: str, why: str) -> str:
        """Returns what is wrong, without the expected answer, which a grader's reason may name."""
        if word == "wrong":
            problem, gold = one.problem, self.frame.task.gold(one.problem)
            option = problem.fields.get("choices", {}).get(gold)
            return withheld(why, gold, option, *problem.meta.get("golds", []))
        verdict = current(one).verdict
        if verdict and verdict.correct:
            return verdict.reason or why  # the format alone
        return "the answer does not come out right"

    def write(self, tried: list[Trajectory], number: int) -> list[Trajectory]:
        """Adds another try to each, and returns those that have it; a failed call is no try."""
        at = self.at(self.tier, number)
        config = self.frame.recipe.policy if self.tier == "self" else self.frame.recipe.critic
        heat = config.temperature * self.config.decay ** (number - 1)
        calls = [replace(self.call(one, at, number), temperature=heat) for one in tried]
        self.ask(tried, calls, [one.turns[-1] for one in tried], at)
        written = [one for one in tried if one.turns[-1].error is None]
        for one in written:
            one.current = one.turns[-1]
        return written

    def call(self, one: Trajectory, at: Try, number: int) -> Call:
        """Returns the second try's call with a hint, the third's with the solution or answer."""
        text, hint, session = current(one).text, one.turns[-1].parsed, self.frame.session
        if number == 2:
            working = open_working(text, self.frame.recipe.prompt.tags)
            return session.call("continue", one.problem, at, working=working, hint=hint)
        shown = {"attempt": text, "feedback": hint}
        if solution := one.problem.meta.get("solution"):
            shown["expected"] = plain_solution(solution)
        seen: Any = "gold_solution" if solution else None
        return session.call("rewrite", one.problem, at, seen=seen, **shown)

    def ask(self, tried: list[Trajectory], calls: list[Call], parents: list[Turn], at: Try) -> None:
        """Adds a graded reply to each; what goes on from a working is put behind it."""
        turns = self.frame.session.ask(calls, parents, at)
        for one, call, turn in zip(tried, calls, turns, strict=True):
            if turn.role == "continue" and not turn.error:
                whole = carried_on(call.text, turn.text, self.frame.recipe.prompt.tags)
                if whole != turn.text:  # no longer the tokens that were generated
                    turn = replace(turn, text=whole, token_ids=None)
            one.add(turn if turn.error else self.frame.rollouts.graded(one.problem, turn))

    def tidy(self, solved: list[Trajectory]) -> None:
        """Adds a clean solution of each accepted working."""
        self.frame.status(f"tidying {len(solved)} workings")
        session, at = self.frame.session, self.at(self.tier, 0)
        texts = [current(one) for one in solved]
        calls = [session.call("integrate", one.problem, at, text=text.text)
                 for one, text in zip(solved, texts, strict=True)]  # fmt: skip
        self.ask(solved, calls, texts, at)

    def at(self, tier: Any, number: int) -> Try:
        return Try(tier, self.frame.wave.epoch, f"{self.frame.wave.number}/{number}")

    # ---- training -------------------------------------------------------------------------------

    def keep(self, episodes: list[Episode]) -> None:
        """Remembers what was accepted, no text of a problem twice."""
        tags = self.frame.recipe.prompt.tags
        known = {(e["source"]["problem"], e["completion"]) for e in self.state.made}
        for episode in episodes:
            prompt = self.frame.rollouts.prompt(episode.problem)
            for example in worked_examples(episode, prompt, self.config, tags):
                if (episode.problem.id, example.completion) not in known:
                    self.state.made.append(asdict(example))

    def train(self) -> list[Example]:
        """Trains on all there is, from the start; returns what was not trained on before."""
        learning = self.frame.learning
        if self.config.restart:
            learning.restart()
        examples = [Example(**row) for row in [*self.state.human, *self.state.made]]
        self.frame.status(f"training on {len(examples)} worked solutions")
        learning.imitate(examples, 1.0, self.frame.seed("sft"))
        now = self.frame.wave.epoch
        return [e for e in learning.examples if e.source.get("epoch", 1) == now]


def current(one: Trajectory) -> Turn:
    assert one.current is not None  # every trajectory begins with an attempt
    return one.current


METHOD = Method(
    name="rel",
    keys=RelConfig,
    check=check,
    tiers=tiers,
    asks_itself=lambda r: r.rel.writer == "self" and (r.rel.tries > 1 or r.rel.review),
    plan=plan,
    start=Rel,
    compares=lambda recipe: False,
    wording="explore",
    words={"solved": "accepted at a later try", "discarded": "not accepted"},
    solved="accepted",
    notes=notes,
    exports={
        "reasonset": ExportForm(
            lambda episode, examples: reasonset_rows(episode),
            "a row an episode, and none has ended yet",
            worked_rows,
        )
    },
)
