"""PRefLexOR (arXiv 2410.12375, 2501.08120), phases I and II, in rounds.

Each round has new questions: posed by a teacher from passages of a corpus, or the next problems of
a task. The chosen answer is the teacher's, its thought structured and its answer grounded; rejected
is what the policy, as the rounds before have left it, says by itself. A filter decides which pairs
are trained on: the task's grader or, of a corpus, a judge who sees the passages.

Phase I (ORPO) teaches to think in structure before answering; Phase II (EXO) compares the answers
with the policy of Phase I as the reference. Phase III, recursive inference, trains nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Episode, Example, Outcome, Problem
from mlxreflect.core.seeds import rng_for
from mlxreflect.evaluation.contamination import exam_index
from mlxreflect.methods import examples as pairs
from mlxreflect.methods.asked import phases
from mlxreflect.methods.base import Hands, Played
from mlxreflect.methods.examples import passed
from mlxreflect.methods.figures import count_wave
from mlxreflect.methods.learning import Learning
from mlxreflect.methods.preflexor_corpus import Lesson, Teacher, fine, question_id
from mlxreflect.methods.roles import Round
from mlxreflect.methods.rollouts import Attempts
from mlxreflect.methods.session import Exchange
from mlxreflect.methods.trajectories import Story


@dataclass
class State:
    """epoch: the phase. round: rounds played in it. cursor: sources taken in all (of each topic,
    where there are topics). asked: ids of the questions posed so far."""

    epoch: int = 1
    round: int = 0
    wave: int = 0
    cursor: int = 0
    asked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wave:
    """A round. problems: ids of problems, or of the passages that questions are posed from."""

    number: int
    epoch: int
    stage: str
    problems: list[str]
    new_epoch: bool
    arm: str = ""


class Preflexor:
    """Plays rounds. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(self, hands: Hands) -> None:
        recipe, task, policy, trainer, critics, problems = hands
        self.recipe, self.problems = recipe, problems
        self.attempts = Attempts(recipe, task, policy)
        self.exchange = Exchange(recipe, task, critics)
        self.learning = Learning(recipe, policy, trainer)
        self.state = State()
        self.wave = Wave(0, 1, "phase-1", [], True)
        self.status: Callable[[str], None] = lambda text: None
        self.teacher: Teacher | None = None
        self.on_topic: list[list[str]] = []
        if recipe.preflexor.corpus:
            # Passages are clean of what evaluations ask; the teacher may still ask it.
            exams = exam_index(recipe) if recipe.eval.decontaminate != "off" else None
            self.teacher = Teacher(recipe, self.exchange, list(problems.values()), exams)
            self.on_topic = [self.passages_on(topic) for topic in recipe.preflexor.topics]

    def passages_on(self, topic: str) -> list[str]:
        """Ids of the passages on a topic, the most telling ones first."""
        assert self.teacher is not None
        found = self.teacher.library.related(topic)
        if not found:
            raise UserError(
                f"preflexor.topics: no passage of {self.recipe.preflexor.corpus} has a word of "
                f"{topic!r}",
                "leave that topic out, or write it as the texts do",
            )
        ids = list(self.problems)
        return [ids[i] for i in found]

    # ---- which questions ------------------------------------------------------------------------

    def rounds(self) -> dict[int, int]:
        """Rounds of each phase."""
        config = self.recipe.preflexor
        return {1: config.rounds, 2: config.two.rounds}

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        if ending:
            return None
        state, rounds = self.state, self.rounds()
        if state.epoch == 1 and state.round >= rounds[1] and rounds[2]:
            state.epoch, state.round = 2, 0
        if state.round >= rounds[state.epoch]:
            return None
        begins = state.round == 0
        taken = self.take()
        state.round += 1
        ends = state.epoch == 1 and state.round == rounds[1] and rounds[2] > 0
        stage = f"phase-{state.epoch}"
        return Wave(state.wave, state.epoch, stage, taken, begins, stage if ends else "")

    def size(self) -> int:
        """Questions a round (on each topic). A passage may have several, a problem is one."""
        asked = self.recipe.preflexor.questions
        return asked if self.teacher else min(asked, len(self.problems))

    def take(self) -> list[str]:
        """The next sources: down the list of each topic, or all in an order drawn anew each time
        all of them have been taken."""
        begin, n = self.state.cursor, self.size()
        self.state.cursor += n
        if self.on_topic:
            return [ids[i % len(ids)] for ids in self.on_topic for i in range(begin, begin + n)]
        ids = list(self.problems)
        first, last = begin // len(ids), (begin + n - 1) // len(ids)
        drawn: list[str] = []
        for number in range(first, last + 1):
            order = list(ids)
            rng_for(self.recipe.seed, "order", number).shuffle(order)
            drawn += order
        return drawn[begin - first * len(ids) :][:n]

    def progress(self) -> tuple[int, int]:
        rounds, state = self.rounds(), self.state
        each = self.size() * max(1, len(self.on_topic))
        done = state.round + (rounds[1] if state.epoch == 2 else 0)
        return done * each, sum(rounds.values()) * each

    # ---- one round ------------------------------------------------------------------------------

    def play(self, wave: Wave) -> Played:
        """Questions, the teacher's answers and the policy's own, the filter, training."""
        self.wave = wave
        self.exchange.begin_wave()
        self.learning.use(phases(self.recipe)[wave.epoch - 1])
        self.learning.begin_wave()
        if wave.new_epoch:
            self.learning.begin_stage()
        sources = [self.problems[pid] for pid in wave.problems]
        stories = self.learn_from(self.teacher, sources) if self.teacher else self.solve(sources)
        episodes = [self.episode(story) for story in stories]
        only_wrong = self.recipe.preflexor.only_wrong
        made = [pair for e in episodes for pair in pairs.preflexor_pairs(e, only_wrong)]
        self.train(made)
        self.state.wave += 1
        figures = {
            **asdict(wave),
            **count_wave(episodes),
            **self.learning.figures(),
            **self.told(),
            "critic": dict(self.exchange.counts),
        }
        return Played(episodes, self.learning.examples, self.learning.steps, figures, wave.arm)

    def solve(self, problems: Sequence[Problem]) -> list[Story]:
        """Problems of a task: the policy attempts, the teacher writes a solution."""
        stories = [Story(problem) for problem in problems]
        self.attempt(stories)
        if self.recipe.preflexor.only_wrong:
            taught = [story for story in stories if not passed(story.turns[0])]
        else:
            taught = stories
        self.status(f"{len(taught)} solutions")
        at = self.at("basic")
        calls = [self.exchange.moves.answer(story.problem, at) for story in taught]
        parents = [story.turns[0] for story in taught]
        for story, turn in zip(taught, self.exchange.ask(calls, parents, at), strict=True):
            story.add(turn if turn.error else self.attempts.graded(story.problem, turn))
        return stories

    def learn_from(self, teacher: Teacher, passages: Sequence[Problem]) -> list[Lesson]:
        """Passages of a corpus: the teacher poses and answers questions, the policy attempts them.

        A question goes on only while each step comes about, and is attempted only where the
        teacher's own solution has passed.
        """
        at = self.at("basic")
        teacher.counts.clear()
        self.status(f"posing {len(passages)} questions")
        lessons = teacher.pose(passages, self.state.asked, at)
        under_way = list(filter(fine, lessons))
        self.state.asked += [question_id(s.problem.fields["question"]) for s in under_way]
        for step in (teacher.extract, teacher.ground):
            self.status(f"answering {len(under_way)} questions")
            step(under_way, at)
            under_way = list(filter(fine, under_way))
        under_way = [s for s in under_way if s.turns[-1].verdict and s.turns[-1].verdict.format_ok]
        self.status(f"judging {len(under_way)} answers")
        teacher.judge(under_way, self.at("judge"))
        under_way = [lesson for lesson in under_way if passed(lesson.turns[-2])]
        self.attempt(under_way)
        # The words of the teacher's answer are right without a judge.
        doubtful = [s for s in under_way if not (v := s.turns[-1].verdict) or not v.correct]
        self.status(f"judging {len(doubtful)} attempts")
        teacher.judge(doubtful, self.at("judge"))
        return lessons

    def attempt(self, stories: Sequence[Story]) -> None:
        """A sample of the policy as it is now, for each."""
        self.status(f"{len(stories)} attempts")
        drawn = self.attempts.sample(
            [story.problem for story in stories], "attempt", 1, self.seed(), self.learning.actor
        )
        for story, (turn,) in zip(stories, drawn, strict=True):
            story.add(turn)

    def train(self, examples: Sequence[Example]) -> None:
        self.status(f"training on {len(examples)} pairs")
        self.learning.prefer(examples, (*self.seed(), "pairs"))

    # ---- records --------------------------------------------------------------------------------

    def episode(self, story: Story) -> Episode:
        wave, only_wrong = self.wave, self.recipe.preflexor.only_wrong
        made = Episode(
            self.recipe.strategy, wave.epoch, wave.number, story.problem, list(story.turns),
            Outcome(False, None, "discarded"),
        )  # fmt: skip
        outcome = outcome_of(made, bool(list(pairs.preflexor_pairs(made, only_wrong))))
        return Episode(made.recipe, made.epoch, made.wave, made.problem, made.turns, outcome)

    def told(self) -> dict[str, Any]:
        if not self.teacher:
            return {}
        names = ("posed", "in_evaluation", "empty_sections", "grounded")
        counts = {name: self.teacher.counts[name] for name in names}
        said = f"{counts['posed']} questions posed, {counts['grounded']} answered"
        if known := counts["in_evaluation"]:
            said += f", {known} left out that the evaluation asks"
        return {**counts, "told": said}

    def at(self, tier: Any) -> Round:
        return Round(tier, self.wave.epoch, f"{self.wave.stage}/{self.wave.number}")

    def seed(self) -> tuple[int | str, ...]:
        return self.recipe.seed, self.wave.epoch, self.wave.stage, self.wave.number


def outcome_of(episode: Episode, paired: bool) -> Outcome:
    attempt = next((turn for turn in episode.turns if turn.role == "attempt"), None)
    if attempt and passed(attempt):
        return Outcome(True, attempt.index, "solved_first")
    if paired:
        return Outcome(False, None, "trained")
    # A reply of no use has an error too, and its text; a call that failed has none.
    failed = any(turn.error and not turn.text.strip() for turn in episode.turns)
    return Outcome(False, None, "failed" if failed else "discarded")
