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

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlxreflect.config.fields import LocalFile, Positive, Rate, Table
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Episode, Example, Messages, Outcome, Problem, Turn
from mlxreflect.methods.base import (
    ExportForm,
    Frame,
    Method,
    Note,
    Plan,
    Played,
    Rows,
    Seed,
    Trajectory,
    Try,
    Wave,
    judged,
    refuse_direct,
    unless_right,
)
from mlxreflect.methods.examples import completion, passed
from mlxreflect.prompts.parsing import carried_on, open_working

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe, Tier
    from mlxreflect.critics.base import Call


class RelConfig(Table):
    """Attempts are asked at policy.temperature, the judge marks at 0."""

    rounds: Positive = 2
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
    human_weight: Rate = 2.0
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


def asks_itself(recipe: Recipe) -> bool:
    return recipe.rel.writer == "self" and (recipe.rel.tries > 1 or recipe.rel.review)


def plan(recipe: Recipe, n: int, wrong: float) -> Plan:
    config = recipe.rel
    first = n * config.rounds
    tried = [first * wrong**i for i in range(config.tries)]
    most = wrong == 1  # what the judge refuses may have passed the grader, and no reply be read
    judged = sum(tried[:-1]) * (1.0 if config.judge else wrong)
    judged += tried[-1] * config.judge * (1.0 if most else 1 - wrong)
    calls: dict[tuple[Tier, str], float] = {}
    roles: tuple[str, ...] = ()
    if judged:
        calls["judge", "judge"], roles = judged * (2 if most else 1), ("judge",)
    written = dict(zip(("continue", "rewrite"), tried[1:], strict=False))
    if config.review:
        written["integrate"] = first * (1.0 if most else 1 - wrong**config.tries)
    if config.writer == "critic":
        calls |= {("basic", role): times for role, times in written.items()}
    return Plan(first, config.wave, calls, (*roles, *written))


def notes(recipe: Recipe, problems: list[Problem]) -> list[Note]:
    """What is in the file of worked solutions by people, where there is one."""
    if not recipe.rel.human:
        return []
    from mlxreflect.data.rows import local_path
    from mlxreflect.methods.rel_worked import human_examples, read_some
    from mlxreflect.tasks import TASKS

    if not problems:
        found = read_some(local_path(recipe.rel.human))
        return [Note(f"worked solutions: {len(found)} by people")]
    human = human_examples(recipe, TASKS[recipe.task.name], problems)
    return [Note(human.sentence(), fine=bool(human.examples))]


def reasonset(episode: Episode, examples: Sequence[Example]) -> Rows:
    from mlxreflect.methods.rel_worked import reasonset_rows

    return reasonset_rows(episode, examples)


def loose_rows(example: Example) -> Rows:
    from mlxreflect.methods.rel_worked import worked_rows

    return iter(worked_rows(example))


Hinted = list[tuple[Trajectory, str]]  # what may be tried again, and what is wrong with it


@dataclass
class State:
    """Where the strategy stands between two waves. epoch: the round.

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


def worked_examples(
    episode: Episode, prompt: Messages, target: str, *, tags: str = "think", mistakes: bool = True
) -> Iterator[Example]:
    """REL: the accepted working of a problem, to be imitated as an answer to `prompt`.

    prompt: as an evaluation asks; that of the attempts is another. target: "working", with the
    errors that it found and mended; "tidied", the review's clean solution of it, where one passed.
    mistakes: false, what a continued working begins with is shown and not imitated. tags: of a
    thought.
    """
    solved = episode.outcome.solved_turn
    for turn in episode.turns:
        tidied = turn.role == "integrate" and turn.parent == solved
        wanted = tidied if target == "tidied" else turn.index == solved
        if solved is not None and wanted and passed(turn):
            went_on = turn.role == "continue" and not mistakes
            before = repeated(open_working(episode.turns[0].text, tags), turn.text)
            mask = f"from {before}" if went_on else "response"
            yield replace(completion(episode, turn), prompt=prompt, mask=mask)
            return  # one working a problem, however often it was tidied


def repeated(working: str, text: str) -> int:
    """How many characters of a text repeat what a working begins with, spacing aside."""
    left = (c for c in working if not c.isspace())
    end, wanted = 0, next(left, "")
    for i, character in enumerate(text):
        if character == wanted:
            end, wanted = i + 1, next(left, "")
        elif not character.isspace():
            break
    return end


class Rel:
    """Plays waves. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(self, frame: Frame) -> None:
        from mlxreflect.methods.rel_worked import human_examples

        self.frame, self.recipe, self.problems = frame, frame.recipe, frame.problems
        self.task, self.rollouts = frame.task, frame.rollouts
        self.session, self.learning = frame.session, frame.learning
        if self.recipe.rel.restart:
            self.learning.keep_start()
        human = human_examples(self.recipe, self.task, list(self.problems.values()))
        self.state = State(human=[asdict(e) for e in human.examples], left_out=human.left_out)

    @property
    def wave(self) -> Wave:
        return self.frame.wave

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        """Problems in an order of the round's own, then the training that ends the round."""
        state, config = self.state, self.recipe.rel
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
        n = len(self.problems)
        return n * (self.state.epoch - 1) + self.state.cursor, n * self.recipe.rel.rounds

    def play(self, wave: Wave) -> Played:
        episodes = [] if wave.stage == "train" else self.try_all()
        examples = self.train() if wave.stage == "train" else []
        self.keep(episodes)
        figures = {
            "accepted": len(self.state.made),
            "human": len(self.state.human),
            "left_out": self.state.left_out,
            "told": self.told(),
        }
        measured = wave.stage == "train" and wave.epoch < self.recipe.rel.rounds
        arm = f"round-{wave.epoch}" if measured and self.recipe.rel.measure else ""
        return Played(episodes, figures, arm, examples)

    def told(self) -> str:
        made, human = len(self.state.made), len(self.state.human)
        if self.wave.stage == "problems":
            return f"{made} different workings so far"
        from mlxreflect.methods.rel_worked import by_people

        people = by_people(human, self.state.left_out) if self.recipe.rel.human else ""
        return f"trained on {made} workings" + (f" and {people}" if people else "")

    # ---- tries ----------------------------------------------------------------------------------

    def try_all(self) -> list[Episode]:
        """Attempt, continue, rewrite; then tidy what was accepted, where a review is asked for."""
        stories = self.frame.trajectories()
        self.frame.status(f"{len(stories)} attempts")
        problems = [s.problem for s in stories]
        drawn = self.frame.sample(problems, 1, self.seed("sample"))
        for story, (turn,) in zip(stories, drawn, strict=True):
            story.current = story.add(turn)
        hinted = self.mark(stories, 1)
        for number in range(2, self.recipe.rel.tries + 1):
            self.frame.status(f"try {number}, {len(hinted)} problems")
            written = self.write(hinted, number)
            hinted = self.mark(written, number)
        if self.recipe.rel.review:
            self.tidy([s for s in stories if s.solved])
        return [self.episode(story) for story in stories]

    def mark(self, stories: list[Trajectory], number: int) -> Hinted:
        """Accept what is right; of all else that may be tried again, say what is wrong.

        Where the judge gave no verdict, nothing is accepted that must convince it, and there is no
        hint to go on from.
        """
        judge, more = self.recipe.rel.judge, number < self.recipe.rel.tries
        shown = [s for s in stories if s.current and (judge if passed(s.current) else more)]
        found = self.session.judge(
            [s.problem for s in shown],
            [s.current for s in shown if s.current],
            self.at("judge", number),
            temperature=0.0,
        )
        hinted: Hinted = []
        for story, (judgement, said) in zip(shown, found, strict=True):
            assert story.current is not None  # of all that are shown
            hint = self.hint(story, *judged(judgement)) if judgement else None
            marked = unless_right(story.current, judgement, said.actor)
            if passed(story.current):  # else the grader's reason stays
                story.current = story.turns[marked.index] = marked
            story.add(replace(said, parsed=hint))
            if hint and more and not passed(story.current):
                hinted.append((story, hint))
        for story in stories:
            if story.current and passed(story.current):
                story.solved = story.current
        return hinted

    def hint(self, story: Trajectory, verdict: str, why: str) -> str:
        """What is wrong, without the expected answer; never the grader's reason, which names it."""
        assert story.current and story.current.verdict
        from mlxreflect.graders.text import withheld

        if verdict == "wrong":
            problem = story.problem
            gold = self.task.gold(problem)
            option = problem.fields.get("choices", {}).get(gold)
            return withheld(why, gold, option, *problem.meta.get("golds", []))
        if story.current.verdict.correct:
            return story.current.verdict.reason or why  # the format alone
        return "the answer does not come out right"

    def write(self, hinted: Hinted, number: int) -> list[Trajectory]:
        """The second try goes on from the hint, the third is shown the solution.

        A failed call ends the story: what failed is no try to be judged.
        """
        at = self.at("self" if self.recipe.rel.writer == "self" else "basic", number)
        move = self.continuation if number == 2 else self.rewrite
        calls = [replace(move(s, hint, at), temperature=self.heat(number)) for s, hint in hinted]
        told = [story.turns[-1] for story, _ in hinted]
        written = []
        turns = self.session.ask(calls, told, at)
        for (story, _), call, turn in zip(hinted, calls, turns, strict=True):
            if turn.error is None:
                story.current = story.add(self.graded(story.problem, turn, call))
                written.append(story)
            else:
                story.add(turn)
        return written

    def continuation(self, story: Trajectory, hint: str, at: Try) -> Call:
        working = open_working(self.text(story), self.recipe.prompt.tags)
        return self.session.call("continue", story.problem, at, working=working, hint=hint)

    def rewrite(self, story: Trajectory, hint: str, at: Try) -> Call:
        """The solution is shown where the data have one, else the answer alone."""
        solution = story.problem.meta.get("solution")
        shown: dict[str, Any] = {"attempt": self.text(story), "feedback": hint}
        if solution:
            shown |= {"expected": solution, "seen": "gold_solution"}
        return self.session.call("rewrite", story.problem, at, **shown)

    def text(self, story: Trajectory) -> str:
        return story.current.text if story.current else ""

    def graded(self, problem: Problem, turn: Turn, call: Call) -> Turn:
        """A turn with its verdict; what goes on from a working is put behind it."""
        if turn.role == "continue":
            whole = carried_on(call.text, turn.text, self.recipe.prompt.tags)
            if whole != turn.text:  # no longer the tokens that were generated
                turn = replace(turn, text=whole, token_ids=None)
        return self.rollouts.graded(problem, turn)

    def tidy(self, stories: list[Trajectory]) -> None:
        """A clean solution of each accepted working, kept beside it."""
        self.frame.status(f"tidying {len(stories)} workings")
        at = self.at("self" if self.recipe.rel.writer == "self" else "basic", 0)
        calls = [self.session.call("integrate", s.problem, at, text=self.text(s)) for s in stories]
        turns = self.session.ask(calls, [s.solved for s in stories if s.solved], at)
        for story, call, turn in zip(stories, calls, turns, strict=True):
            story.add(turn if turn.error else self.graded(story.problem, turn, call))

    def at(self, tier: Any, number: int) -> Try:
        return Try(tier, self.wave.epoch, f"{self.wave.number}/{number}")

    def heat(self, number: int) -> float:
        """The writer's temperature, lower with each try."""
        own = self.recipe.critic.temperature
        if self.recipe.rel.writer == "self":
            own = self.recipe.policy.temperature
        return own * self.recipe.rel.decay ** (number - 1)

    def episode(self, story: Trajectory) -> Episode:
        return self.frame.episode(story.problem, story.turns, outcome_of(story))

    # ---- training -------------------------------------------------------------------------------

    def keep(self, episodes: list[Episode]) -> None:
        """Remember what was accepted, no text of a problem twice."""
        config = self.recipe.rel
        known = {(e["source"]["problem"], e["completion"]) for e in self.state.made}
        for episode in episodes:
            prompt = self.rollouts.prompt(episode.problem)
            worked = worked_examples(
                episode, prompt, config.target,
                tags=self.recipe.prompt.tags, mistakes=config.mistakes,
            )  # fmt: skip
            for example in worked:
                if (episode.problem.id, example.completion) not in known:
                    self.state.made.append(asdict(replace(example, weight=config.weight)))

    def train(self) -> list[Example]:
        """SFT on all there is, from the start; returns what was not trained on before."""
        if self.recipe.rel.restart:
            self.learning.restart()
        examples = [Example(**row) for row in [*self.state.human, *self.state.made]]
        self.frame.status(f"training on {len(examples)} worked solutions")
        self.learning.imitate(examples, 1.0, self.seed("sft"))
        now = self.wave.epoch
        return [e for e in self.learning.examples if e.source.get("epoch", 1) == now]

    def seed(self, role: str) -> Seed:
        return self.frame.seed(role)


def outcome_of(story: Trajectory) -> Outcome:
    """failed: each call to a critic that might have helped was lost."""
    if story.solved:
        first = story.solved.index == 0
        return Outcome(first, story.solved.index, "solved_first" if first else "solved")
    asked = [turn for turn in story.turns if turn.role != "attempt"]
    lost = bool(asked) and all(turn.error for turn in asked)
    return Outcome(False, None, "failed" if lost else "discarded")


METHOD = Method(
    name="rel",
    keys=RelConfig,
    check=check,
    tiers=tiers,
    asks_itself=asks_itself,
    plan=plan,
    start=Rel,
    compares=lambda recipe: False,
    wording="explore",
    words={"solved": "accepted at a later try", "discarded": "not accepted"},
    solved="accepted",
    notes=notes,
    exports={
        "reasonset": ExportForm(reasonset, "a row an episode, and none has ended yet", loose_rows)
    },
)
