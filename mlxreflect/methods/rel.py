"""REL: Reasoning Enhancement Loop (arXiv 2412.04645), in rounds over all problems.

A round: an exploratory attempt at each problem; grade; a judge, which sees the answer and works
at temperature 0, says what is wrong without giving it away. After the first failure the working is
continued from that hint, so that it comes upon its mistake by itself; after the second it is
written again with the solution shown; what fails then is discarded. When all problems were tried,
SFT on what was accepted in this round and those before, and on people's worked solutions, from the
start of the run: what is imitated is the working with its mistakes and their mending, or a tidied
one. The next round's attempts are those of the trained policy.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mlxreflect.core.records import Episode, Example, Outcome, Problem, Turn
from mlxreflect.core.seeds import rng_for
from mlxreflect.critics.base import Call
from mlxreflect.graders.text import withheld
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.base import Hands, Played
from mlxreflect.methods.examples import passed
from mlxreflect.methods.figures import count_wave
from mlxreflect.methods.learning import Learning
from mlxreflect.methods.rel_worked import by_people, human_examples
from mlxreflect.methods.roles import Round, judged
from mlxreflect.methods.rollouts import Attempts
from mlxreflect.methods.session import Exchange, unless_right
from mlxreflect.methods.trajectories import Story, index
from mlxreflect.prompts import messages as prompts

Hinted = list[tuple[Story, str]]  # what may be tried again, and what is wrong with it


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


@dataclass(frozen=True)
class Wave:
    """Problems that are tried together; or, at a round's end, the training."""

    number: int
    epoch: int
    stage: str
    problems: list[str]
    new_epoch: bool


class Rel:
    """Plays waves. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(self, hands: Hands) -> None:
        recipe, task, policy, trainer, critics, problems = hands
        self.recipe, self.problems, self.task = recipe, problems, task
        self.attempts = Attempts(recipe, task, policy, "explore")
        self.exchange = Exchange(recipe, task, critics)
        self.learning = Learning(recipe, policy, trainer)
        if recipe.rel.restart:
            self.learning.keep_start()
        human = human_examples(recipe, task, list(problems.values()))
        self.state = State(human=[asdict(e) for e in human.examples], left_out=human.left_out)
        self.wave = Wave(0, 1, "problems", [], True)
        self.status: Callable[[str], None] = lambda text: None

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        """Problems in an order of the round's own, then the training that ends the round."""
        state, config = self.state, self.recipe.rel
        if state.stage == "train":
            if ending or state.epoch >= config.rounds:
                return None
            state.epoch, state.cursor, state.stage = state.epoch + 1, 0, "problems"
        new, order = state.cursor == 0, list(self.problems)
        rng_for(self.recipe.seed, "order", state.epoch).shuffle(order)
        taken = [] if ending else order[state.cursor : state.cursor + config.wave]
        state.cursor += len(taken)
        state.stage = "problems" if taken else "train"
        return Wave(state.wave, state.epoch, state.stage, taken, new)

    def progress(self) -> tuple[int, int]:
        n = len(self.problems)
        return n * (self.state.epoch - 1) + self.state.cursor, n * self.recipe.rel.rounds

    def play(self, wave: Wave) -> Played:
        self.wave = wave
        self.exchange.begin_wave()
        self.learning.begin_wave()
        episodes = [] if wave.stage == "train" else self.try_all()
        examples = self.train() if wave.stage == "train" else []
        self.keep(episodes)
        self.state.wave += 1
        figures = {
            **asdict(wave),
            **count_wave(episodes),
            "accepted": len(self.state.made),
            "human": len(self.state.human),
            "left_out": self.state.left_out,
            "told": self.told(),
            **self.learning.figures(),
            "critic": dict(self.exchange.counts),
        }
        measured = wave.stage == "train" and wave.epoch < self.recipe.rel.rounds
        arm = f"round-{wave.epoch}" if measured and self.recipe.rel.measure else ""
        return Played(episodes, examples, self.learning.steps, figures, arm)

    def told(self) -> str:
        made, human = len(self.state.made), len(self.state.human)
        if self.wave.stage == "problems":
            return f"{made} different workings so far"
        people = by_people(human, self.state.left_out) if self.recipe.rel.human else ""
        return f"trained on {made} workings" + (f" and {people}" if people else "")

    # ---- tries ----------------------------------------------------------------------------------

    def try_all(self) -> list[Episode]:
        """Attempt, continue, rewrite; then tidy what was accepted, where a review is asked for."""
        stories = [Story(self.problems[pid]) for pid in self.wave.problems]
        self.status(f"{len(stories)} attempts")
        problems = [s.problem for s in stories]
        drawn = self.attempts.sample(problems, "attempt", 1, self.seed("sample"), self.actor)
        for story, (turn,) in zip(stories, drawn, strict=True):
            story.current = story.add(turn)
        hinted = self.mark(stories, 1)
        for number in range(2, self.recipe.rel.tries + 1):
            self.status(f"try {number}, {len(hinted)} problems")
            written = self.write(hinted, number)
            hinted = self.mark(written, number)
        if self.recipe.rel.review:
            self.tidy([s for s in stories if s.solved])
        return [self.episode(story) for story in stories]

    def mark(self, stories: list[Story], number: int) -> Hinted:
        """Accept what is right; of all else that may be tried again, say what is wrong.

        Where the judge gave no verdict, nothing is accepted that must convince it, and there is no
        hint to go on from.
        """
        judge, more = self.recipe.rel.judge, number < self.recipe.rel.tries
        shown = [s for s in stories if s.current and (judge if passed(s.current) else more)]
        found = self.exchange.judgements(
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

    def hint(self, story: Story, verdict: str, why: str) -> str:
        """What is wrong, without the expected answer; never the grader's reason, which names it."""
        assert story.current and story.current.verdict
        if verdict == "wrong":
            problem = story.problem
            gold = self.task.gold(problem)
            option = problem.fields.get("choices", {}).get(gold)
            return withheld(why, gold, option, *problem.meta.get("golds", []))
        if story.current.verdict.correct:
            return story.current.verdict.reason or why  # the format alone
        return "the answer does not come out right"

    def write(self, hinted: Hinted, number: int) -> list[Story]:
        """The second try goes on from the hint, the third is shown the solution.

        A failed call ends the story: what failed is no try to be judged.
        """
        at = self.at("self" if self.recipe.rel.writer == "self" else "basic", number)
        move = self.continuation if number == 2 else self.rewrite
        calls = [replace(move(s, hint, at), temperature=self.heat(number)) for s, hint in hinted]
        told = [story.turns[-1] for story, _ in hinted]
        written = []
        turns = self.exchange.ask(calls, told, at)
        for (story, _), call, turn in zip(hinted, calls, turns, strict=True):
            if turn.error is None:
                story.current = story.add(self.graded(story.problem, turn, call))
                written.append(story)
            else:
                story.add(turn)
        return written

    def continuation(self, story: Story, hint: str, at: Round) -> Call:
        working = prompts.open_working(self.text(story), self.recipe.prompt.tags)
        return self.exchange.moves.go_on(story.problem, working, hint, at)

    def rewrite(self, story: Story, hint: str, at: Round) -> Call:
        """The solution is shown where the data have one, else the answer alone."""
        solution = story.problem.meta.get("solution")
        return self.exchange.moves.rewrite(
            story.problem, self.text(story), hint, at, solution=solution
        )

    def text(self, story: Story) -> str:
        return story.current.text if story.current else ""

    def graded(self, problem: Problem, turn: Turn, call: Call) -> Turn:
        """A turn with its verdict; what goes on from a working is put behind it."""
        if turn.role == "continue":
            whole = prompts.carried_on(call.text, turn.text, self.recipe.prompt.tags)
            if whole != turn.text:  # no longer the tokens that were generated
                turn = replace(turn, text=whole, token_ids=None)
        return self.attempts.graded(problem, turn)

    def tidy(self, stories: list[Story]) -> None:
        """A clean solution of each accepted working, kept beside it."""
        self.status(f"tidying {len(stories)} workings")
        at = self.at("self" if self.recipe.rel.writer == "self" else "basic", 0)
        moves = self.exchange.moves
        calls = [moves.integrate(s.problem, [self.text(s)], at) for s in stories]
        turns = self.exchange.ask(calls, [s.solved for s in stories if s.solved], at)
        for story, call, turn in zip(stories, calls, turns, strict=True):
            story.add(turn if turn.error else self.graded(story.problem, turn, call))

    def at(self, tier: Any, number: int) -> Round:
        return Round(tier, self.wave.epoch, f"{self.wave.number}/{number}")

    def heat(self, number: int) -> float:
        """The writer's temperature, lower with each try."""
        own = self.recipe.critic.temperature
        if self.recipe.rel.writer == "self":
            own = self.recipe.policy.temperature
        return own * self.recipe.rel.decay ** (number - 1)

    @property
    def actor(self) -> str:
        return self.learning.actor

    def episode(self, story: Story) -> Episode:
        return Episode(
            "rel", self.wave.epoch, self.wave.number, story.problem, story.turns, outcome_of(story)
        )

    # ---- training -------------------------------------------------------------------------------

    def keep(self, episodes: list[Episode]) -> None:
        """Remember what was accepted, no text of a problem twice."""
        config = self.recipe.rel
        known = {(e["source"]["problem"], e["completion"]) for e in self.state.made}
        for episode in episodes:
            prompt = self.attempts.prompt(episode.problem)
            worked = pairs.rel_worked(
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
        self.status(f"training on {len(examples)} worked solutions")
        self.learning.imitate(examples, 1.0, self.seed("sft"))
        now = self.wave.epoch
        return [e for e in self.learning.examples if e.source.get("epoch", 1) == now]

    def seed(self, role: str) -> tuple[int | str, ...]:
        return (self.recipe.seed, self.wave.epoch, self.wave.number, role)


def outcome_of(story: Story) -> Outcome:
    """failed: each call to a critic that might have helped was lost."""
    if story.solved:
        first = story.solved.index == 0
        return Outcome(first, index(story.solved), "solved_first" if first else "solved")
    asked = [turn for turn in story.turns if turn.role != "attempt"]
    lost = bool(asked) and all(turn.error for turn in asked)
    return Outcome(False, None, "failed" if lost else "discarded")
