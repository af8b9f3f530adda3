"""PRefLexOR (arXiv 2410.12375, 2501.08120), phases I and II, in rounds.

Each round has new questions: posed by a teacher from passages of a corpus, or the next problems of
a task. The chosen answer is the teacher's, its thought structured and its answer grounded; rejected
is what the policy, as the rounds before have left it, says by itself. A filter decides which pairs
are trained on: the task's grader or, of a corpus, a judge who sees the passages.

Phase I (ORPO) teaches to think in structure before answering; Phase II (EXO) compares the answers
with the policy of Phase I as the reference. Phase III, recursive inference, trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mlxreflect.config.fields import (
    Count,
    Fraction,
    LocalPath,
    Names,
    Objective,
    Positive,
    Rate,
    Table,
)
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Episode, Example, Outcome, Problem
from mlxreflect.methods.base import (
    Frame,
    Method,
    Plan,
    Played,
    Seed,
    Trajectory,
    Try,
    Wave,
    refuse_direct,
)
from mlxreflect.methods.examples import passed, preference
from mlxreflect.methods.preflexor_corpus import (
    Lesson,
    Teacher,
    fine,
    make_question,
    question_id,
    read_corpus,
)

if TYPE_CHECKING:
    from mlxreflect.config.schema import Recipe, Tier, TrainConfig


class PhaseTwoConfig(Table):
    """Phase II: what it has of its own; all else is [train]'s, which are Phase I's settings."""

    rounds: Count = 10  # 0: no Phase II
    objective: Objective = "exo_pair"
    lr: Rate = 1e-6
    beta: Rate = 0.1
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 5e-3
    clip: Annotated[float, Field(ge=0)] = 0.3
    answer_only: bool = True  # answers are compared without what was thought before them
    think_fraction: Fraction = 0.0


class PreflexorConfig(Table):
    rounds: Count = 10  # of Phase I; 0: none
    questions: Positive = 50  # new ones each round; with topics, for each of them
    only_wrong: bool = False  # pairs only where the policy's own answer did not pass
    corpus: LocalPath = ""  # folder or file of text, Markdown, JSONL; "": the task's own problems
    column: str = "text"  # of JSONL rows
    # Characters of a passage at most; shorter ones than 40 are left out, so that is the least.
    chunk: Annotated[int, Field(ge=40)] = 1500
    topics: Names = []  # what to ask about; empty: passages at random
    retrieve: Count = 2  # passages that a teacher is shown beside the one asked about
    sections: Annotated[Names, Field(min_length=1)] = [
        "reasoning steps", "relevant concepts", "hypothesis",
    ]  # of the thought  # fmt: skip
    two: PhaseTwoConfig = PhaseTwoConfig()


def check(recipe: Recipe, path: Path) -> None:
    refuse_direct(recipe, path)
    config = recipe.preflexor
    if not config.rounds and not config.two.rounds:
        raise UserError(
            f"{path}: preflexor.rounds and preflexor.two.rounds are both 0, nothing would be done",
            "give one of the phases a round",
        )
    if config.topics and not config.corpus:
        raise UserError(
            f"{path}: preflexor.topics are looked for in a corpus, and preflexor.corpus is empty",
            "set preflexor.corpus to a folder of texts, or leave the topics out",
        )
    if config.corpus and recipe.task.name != "jsonl":
        raise UserError(
            f"{path}: questions posed from preflexor.corpus are no problems of the task "
            f"{recipe.task.name}",
            'set task.name = "jsonl", and task.source or eval.spec to what the model is tested on',
        )
    from mlxreflect.config.schema import TIERS

    if config.corpus and "solver" in (recipe.critic.tier(tier).provider for tier in TIERS):
        raise UserError(
            f'{path}: critic.provider = "solver" cannot pose questions from preflexor.corpus',
            'set critic.provider = "ollama", or another one that reads texts',
        )


def tiers(recipe: Recipe) -> list[Tier]:
    return ["basic", "judge"] if recipe.preflexor.corpus else ["basic"]


def phases(recipe: Recipe) -> tuple[TrainConfig, ...]:
    """The settings of Phase I, and of Phase II, which has some of its own."""
    two = recipe.preflexor.two.model_dump(exclude={"rounds"})
    shown = {name: two.pop(name) for name in ("answer_only", "think_fraction")}
    mask = recipe.train.mask.model_copy(update=shown)
    return recipe.train, recipe.train.model_copy(update={**two, "mask": mask})


def plan(recipe: Recipe, n: int, wrong: float) -> Plan:
    """n says nothing: there are as many questions as rounds ask for."""
    config = recipe.preflexor
    each = config.questions * max(1, len(config.topics))
    asked = float(each * (config.rounds + config.two.rounds))
    if not config.corpus:
        taught = asked * (wrong if config.only_wrong else 1)
        return Plan(round(asked), each, {("basic", "answer"): taught}, ("answer",))
    # What is no JSON is asked for once more.
    again, judged = (2, 4) if wrong == 1 else (1, 2)
    calls: dict[tuple[Tier, str], float] = {
        ("basic", "pose"): asked, ("basic", "extract"): asked * again, ("basic", "ground"): asked,
        ("judge", "support"): asked * judged,
    }  # fmt: skip
    shown = (1 + config.retrieve) * config.chunk
    quoted = {"pose": config.chunk, "extract": shown, "ground": shown, "support": shown}
    return Plan(round(asked), each, calls, ("pose", "extract", "ground", "support"), quoted)


def sources(recipe: Recipe) -> list[Problem] | None:
    """Passages to pose questions from, where there is a corpus."""
    config = recipe.preflexor
    return read_corpus(config.corpus, config.chunk, config.column) if config.corpus else None


def questions(recipe: Recipe, sources: list[Problem]) -> list[Problem]:
    if not recipe.preflexor.corpus:
        return sources
    return [make_question(passage, "(a question)") for passage in sources]


def taught_pairs(episode: Episode, only_wrong: bool) -> Iterator[Example]:
    """PRefLexOR: a teacher's solution that passed, against the policy's own attempt.

    only_wrong: not where the attempt passed too, or nobody could say whether it did.
    """
    attempts = [turn for turn in episode.turns if turn.role == "attempt"]
    taught = [turn for turn in episode.turns if turn.role in ("answer", "ground")]
    for rejected, chosen in product(attempts, taught):
        wrong = rejected.verdict is not None and not rejected.verdict.passed
        differ = chosen.text != rejected.text
        if passed(chosen) and differ and (wrong or not only_wrong):
            yield replace(preference(episode, chosen, rejected), prompt=rejected.messages)


@dataclass
class State:
    """epoch: the phase. round: rounds played in it. cursor: sources taken in all (of each topic,
    where there are topics). asked: ids of the questions posed so far."""

    epoch: int = 1
    round: int = 0
    wave: int = 0
    cursor: int = 0
    asked: list[str] = field(default_factory=list)


class Preflexor:
    """Plays rounds. Everything it needs is handed in; what it makes goes out in `Played`."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.recipe, self.problems = frame, frame.recipe, frame.problems
        self.session, self.learning = frame.session, frame.learning
        self.state = State()
        self.teacher: Teacher | None = None
        self.on_topic: list[list[str]] = []
        recipe = self.recipe
        if recipe.preflexor.corpus:
            from mlxreflect.evaluation.contamination import exam_index

            # Passages are clean of what evaluations ask; the teacher may still ask it.
            exams = exam_index(recipe) if recipe.eval.decontaminate != "off" else None
            self.teacher = Teacher(recipe, self.session, list(self.problems.values()), exams)
            self.on_topic = [self.passages_on(topic) for topic in recipe.preflexor.topics]

    @property
    def wave(self) -> Wave:
        return self.frame.wave

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
        """Trys of each phase."""
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
        return Wave(state.wave, state.epoch, stage, taken, begins, {"arm": stage if ends else ""})

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
            drawn += self.frame.order(number)
        return drawn[begin - first * len(ids) :][:n]

    def progress(self) -> tuple[int, int]:
        rounds, state = self.rounds(), self.state
        each = self.size() * max(1, len(self.on_topic))
        done = state.round + (rounds[1] if state.epoch == 2 else 0)
        return done * each, sum(rounds.values()) * each

    # ---- one round ------------------------------------------------------------------------------

    def play(self, wave: Wave) -> Played:
        """Questions, the teacher's answers and the policy's own, the filter, training."""
        self.learning.use(phases(self.recipe)[wave.epoch - 1])
        if wave.new_epoch:
            self.learning.begin_stage()
        sources = [self.problems[pid] for pid in wave.problems]
        stories = self.learn_from(self.teacher, sources) if self.teacher else self.solve(sources)
        episodes = [self.episode(story) for story in stories]
        only_wrong = self.recipe.preflexor.only_wrong
        self.train([pair for e in episodes for pair in taught_pairs(e, only_wrong)])
        return Played(episodes, self.told(), wave.own["arm"])

    def solve(self, problems: Sequence[Problem]) -> list[Trajectory]:
        """Problems of a task: the policy attempts, the teacher writes a solution."""
        stories = [Trajectory(problem) for problem in problems]
        self.attempt(stories)
        if self.recipe.preflexor.only_wrong:
            taught = [story for story in stories if not passed(story.turns[0])]
        else:
            taught = stories
        self.frame.status(f"{len(taught)} solutions")
        at = self.at("basic")
        calls = [self.session.call("answer", story.problem, at) for story in taught]
        parents = [story.turns[0] for story in taught]
        for story, turn in zip(taught, self.session.ask(calls, parents, at), strict=True):
            story.add(turn if turn.error else self.frame.rollouts.graded(story.problem, turn))
        return stories

    def learn_from(self, teacher: Teacher, passages: Sequence[Problem]) -> list[Lesson]:
        """Passages of a corpus: the teacher poses and answers questions, the policy attempts them.

        A question goes on only while each step comes about, and is attempted only where the
        teacher's own solution has passed.
        """
        at = self.at("basic")
        teacher.counts.clear()
        self.frame.status(f"posing {len(passages)} questions")
        lessons = teacher.pose(passages, self.state.asked, at)
        under_way = list(filter(fine, lessons))
        self.state.asked += [question_id(s.problem.fields["question"]) for s in under_way]
        for step in (teacher.extract, teacher.ground):
            self.frame.status(f"answering {len(under_way)} questions")
            step(under_way, at)
            under_way = list(filter(fine, under_way))
        under_way = [s for s in under_way if s.turns[-1].verdict and s.turns[-1].verdict.format_ok]
        self.frame.status(f"judging {len(under_way)} answers")
        teacher.judge(under_way, self.at("judge"))
        under_way = [lesson for lesson in under_way if passed(lesson.turns[-2])]
        self.attempt(under_way)
        # The words of the teacher's answer are right without a judge.
        doubtful = [s for s in under_way if not (v := s.turns[-1].verdict) or not v.correct]
        self.frame.status(f"judging {len(doubtful)} attempts")
        teacher.judge(doubtful, self.at("judge"))
        return lessons

    def attempt(self, stories: Sequence[Trajectory]) -> None:
        """A sample of the policy as it is now, for each."""
        self.frame.status(f"{len(stories)} attempts")
        drawn = self.frame.sample([story.problem for story in stories], 1, self.seed())
        for story, (turn,) in zip(stories, drawn, strict=True):
            story.add(turn)

    def train(self, examples: Sequence[Example]) -> None:
        self.frame.status(f"training on {len(examples)} pairs")
        self.learning.prefer(examples, (*self.seed(), "pairs"))

    # ---- records --------------------------------------------------------------------------------

    def episode(self, story: Trajectory) -> Episode:
        made = self.frame.episode(story.problem, story.turns, Outcome(False, None, "discarded"))
        paired = any(taught_pairs(made, self.recipe.preflexor.only_wrong))
        return replace(made, outcome=outcome_of(made, paired))

    def told(self) -> dict[str, Any]:
        if not self.teacher:
            return {}
        names = ("posed", "in_evaluation", "empty_sections", "grounded")
        counts = {name: self.teacher.counts[name] for name in names}
        said = f"{counts['posed']} questions posed, {counts['grounded']} answered"
        if known := counts["in_evaluation"]:
            said += f", {known} left out that the evaluation asks"
        return {**counts, "told": said}

    def at(self, tier: Any) -> Try:
        return Try(tier, self.wave.epoch, f"{self.wave.stage}/{self.wave.number}")

    def seed(self) -> Seed:
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


METHOD = Method(
    name="preflexor",
    keys=PreflexorConfig,
    check=check,
    tiers=tiers,
    phases=phases,
    plan=plan,
    start=Preflexor,
    words={"trained": "taught by the teacher", "discarded": "nothing to learn from"},
    solved="",
    sources=sources,
    questions=questions,
)
