"""PRefLexOR (arXiv 2410.12375, 2501.08120), phases I and II, in rounds.

Each round has new questions: posed by a teacher from passages of a corpus, or the next problems of
a task. The chosen answer is the teacher's, its thought structured and its answer grounded; rejected
is what the policy, as the rounds before have left it, says by itself. A filter decides which pairs
are trained on: the task's grader or, of a corpus, a judge who sees the passages.

Phase I (ORPO) teaches to think in structure before answering; Phase II (EXO) compares the answers
with the policy of Phase I as the reference. Phase III, recursive inference, trains nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    Shares,
    Trajectory,
    Try,
    Wave,
    held_against,
    passed,
    preference,
    refuse_direct,
)
from mlxreflect.methods.preflexor_corpus import (
    Teacher,
    bm25,
    came_about,
    make_question,
    read_corpus,
)

if TYPE_CHECKING:
    from mlxreflect.config.schema import CriticConfig, Recipe, Tier, TrainConfig


RETRIEVER = re.compile(r"bm25|(ollama|openai):\S+")


class PhaseTwoConfig(Table):
    """Phase II: what it has of its own; all else is [train]'s, which are Phase I's settings."""

    rounds: Count = 10  # 0: no Phase II
    objective: Objective = "exo_pair"  # loss of Phase II
    lr: Rate = 1e-6  # learning rate of Phase II
    beta: Rate = 0.1  # strength of its loss
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 5e-3  # its label smoothing; exo_pair's ε
    clip: Annotated[float, Field(ge=0)] = 0.3  # of its gradient's norm
    answer_only: bool = True  # answers are compared without what was thought before them
    think_fraction: Fraction = 0.0  # share of the thought's tokens left out at random


class PreflexorConfig(Table):
    rounds: Count = 10  # of Phase I; 0: none
    questions: Positive = 50  # new ones each round; with topics, for each of them
    only_wrong: bool = False  # pairs only where the policy's own answer did not pass
    corpus: LocalPath = ""  # folder or file of text, Markdown, JSONL; "": the task's own problems
    column: str = "text"  # of JSONL rows
    # Characters of a passage at most; shorter ones than 40 are left out, so that is the least.
    chunk: Annotated[int, Field(ge=40)] = 1500
    # What to ask about; empty: passages at random. A number: each round draws so many topics, each
    # a passage at random and those most related to it.
    topics: Names | Count = []
    retrieve: Count = 2  # passages that a teacher is shown beside the one asked about
    # What finds them, and those on a topic: "bm25" by words, or an embedding model by meaning,
    # "ollama:MODEL" or "openai:MODEL", at the server of that provider's critic
    retriever: str = "bm25"
    sections: Annotated[Names, Field(min_length=1)] = [
        "reasoning steps", "relevant concepts", "hypothesis",
    ]  # that a teacher divides its thought into  # fmt: skip
    two: PhaseTwoConfig = PhaseTwoConfig()

    @property
    def drawn(self) -> int:
        """Returns how many topics a round draws; 0 where they are named, or there are none."""
        return self.topics if isinstance(self.topics, int) else 0

    @property
    def parts(self) -> int:
        """Times that a round has its number of questions."""
        return self.drawn or len(self.named) or 1

    @property
    def named(self) -> list[str]:
        return [] if isinstance(self.topics, int) else self.topics


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
    check_retriever(config, path)
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


def check_retriever(config: PreflexorConfig, path: Path) -> None:
    name = config.retriever
    if not RETRIEVER.fullmatch(name):
        raise UserError(
            f"{path}: preflexor.retriever = {name!r} is no way to look passages up",
            'write "bm25", "ollama:MODEL" or "openai:MODEL", such as "ollama:nomic-embed-text"',
        )
    if name != "bm25" and not (config.corpus and (config.retrieve or config.topics)):
        raise UserError(
            f"{path}: preflexor.retriever = {name!r} does nothing where no passage is looked up",
            "set preflexor.corpus, and preflexor.retrieve above 0; or leave the retriever out",
        )


def embedder(recipe: Recipe) -> CriticConfig | None:
    """Returns the settings of the retriever's model: those of the first critic of its provider.

    Without one, the provider is where it usually is, and OpenAI's key is in OPENAI_API_KEY.
    """
    provider, _, model = recipe.preflexor.retriever.partition(":")
    if not model:
        return None
    critics = [recipe.critic.tier(tier) for tier in tiers(recipe)]
    usual = critics[0].model_copy(update={
        "provider": provider, "base_url": "", "price_in": 0.0,
        "key_env": "OPENAI_API_KEY" if provider == "openai" else "",
    })  # fmt: skip
    found = next((critic for critic in critics if critic.provider == provider), usual)
    own = {"model": model, "thinking": "auto", "max_tokens": 1}  # it writes nothing
    return found.model_copy(update=own)


def tiers(recipe: Recipe) -> list[Tier]:
    return ["basic", "judge"] if recipe.preflexor.corpus else ["basic"]


def phases(recipe: Recipe) -> tuple[TrainConfig, ...]:
    """Returns the settings of Phase I, and of Phase II, which has some of its own."""
    two = recipe.preflexor.two.model_dump(exclude={"rounds"})
    shown = {name: two.pop(name) for name in ("answer_only", "think_fraction")}
    mask = recipe.train.mask.model_copy(update=shown)
    return recipe.train, recipe.train.model_copy(update={**two, "mask": mask})


def plan(recipe: Recipe, n: int, shares: Shares) -> Plan:
    """Returns the calls of all rounds; of passages a round may have more questions than n."""
    config, rounds = recipe.preflexor, (recipe.preflexor.rounds, recipe.preflexor.two.rounds)
    each = config.questions * config.parts if config.corpus else min(config.questions, n)
    posed = float(each * sum(rounds))
    # Nobody teaches where an attempt was cut off.
    taught = each * ((shares.wrong if config.only_wrong else 1) - shares.wrong * shares.cut)
    pairs = taught * (1 - shares.helped)  # of a round
    more: dict[str, Any] = {
        "trained": {(phase, "preference"): pairs * times for phase, times in enumerate(rounds)},
        "answers": float(all(rounds)),
        "waves": float(sum(rounds)),
    }
    if not config.corpus:
        calls: dict[tuple[Tier, str], float] = {("basic", "answer"): taught * sum(rounds)}
        return Plan(round(posed), each, calls, ("answer",), **more)
    # What is no JSON is asked for once more.
    again, judged = (2, 4) if shares.most else (1, 2)
    calls = {
        ("basic", "pose"): posed, ("basic", "extract"): posed * again, ("basic", "ground"): posed,
        ("judge", "support"): posed * judged,
    }  # fmt: skip
    shown = (1 + config.retrieve) * config.chunk
    quoted = {"pose": config.chunk, "extract": shown, "ground": shown, "support": shown}
    roles = ("pose", "extract", "ground", "support")
    if embedder(recipe):
        more |= {"embedded": [n, len(config.named), *[each] * sum(rounds)], "longest": config.chunk}
    return Plan(round(posed), each, calls, roles, quoted, **more)


def sources(recipe: Recipe) -> list[Problem] | None:
    config = recipe.preflexor
    if config.corpus and config.retriever == "bm25":
        bm25()  # to know it at once
    return read_corpus(config.corpus, config.chunk, config.column) if config.corpus else None


def questions(recipe: Recipe, sources: list[Problem]) -> list[Problem]:
    posed = bool(recipe.preflexor.corpus)
    return [make_question(one, "(a question)") if posed else one for one in sources]


def taught_pairs(episode: Episode, only_wrong: bool, train: TrainConfig) -> Iterator[Example]:
    """Yields a teacher's solution that passed, against the policy's own attempt.

    only_wrong: not where the attempt passed too, or nobody could say that it did not.
    """
    own = (turn for turn in episode.turns if turn.role == "attempt")
    attempts = [turn for turn in own if held_against(turn, train)]
    taught = [turn for turn in episode.turns if turn.role in ("answer", "ground")]
    for rejected, chosen in product(attempts, taught):
        wrong = rejected.verdict is not None and not rejected.verdict.passed
        differ = chosen.text != rejected.text
        if passed(chosen) and differ and (wrong or not only_wrong):
            yield replace(preference(episode, chosen, rejected), prompt=rejected.messages)


@dataclass
class State:
    """epoch: the phase. round: rounds played in it. cursor: sources taken in all (of each topic,
    where topics are named; where their number is, topics drawn). asked: ids of the questions posed
    so far."""

    epoch: int = 1
    round: int = 0
    wave: int = 0
    cursor: int = 0
    asked: list[str] = field(default_factory=list)


class Preflexor:
    """Plays rounds. The problems of its frame are a task's own, or passages of a corpus."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.config, self.state = frame, frame.recipe.preflexor, State()
        self.teacher: Teacher | None = None
        self.on_topic: list[list[str]] = []  # ids of the passages on each topic, the best first
        self.rounds = {1: self.config.rounds, 2: self.config.two.rounds}  # of each phase
        if not self.config.corpus:
            return
        from mlxreflect.evaluation.contamination import index_for

        # Passages are clean of what evaluations ask; the teacher may still ask it.
        self.teacher = Teacher(frame, index_for(frame.recipe))
        self.teacher.library.expect(self.config.named)
        for topic in self.config.named:
            found = self.related(topic)
            if not found:
                raise UserError(
                    f"preflexor.topics: no passage of {self.config.corpus} has a word of {topic!r}",
                    "leave that topic out, or write it as the texts do",
                )
            self.on_topic.append(found)

    # ---- which questions ------------------------------------------------------------------------

    def next_wave(self, *, ending: bool = False) -> Wave | None:
        if ending:
            return None
        state, rounds = self.state, self.rounds
        if state.epoch == 1 and state.round >= rounds[1] and rounds[2]:
            state.epoch, state.round = 2, 0
        if state.round >= rounds[state.epoch]:
            return None
        taken = self.take()
        state.round += 1
        ends = state.epoch == 1 and state.round == rounds[1] and rounds[2] > 0
        stage = f"phase-{state.epoch}"
        own = {"arm": stage if ends else ""}
        return Wave(state.wave, state.epoch, stage, taken, state.round == 1, own)

    def size(self) -> int:
        """Returns the questions of a round (on each topic); a passage may have several."""
        asked = self.config.questions
        return asked if self.teacher else min(asked, len(self.frame.problems))

    def take(self) -> list[str]:
        """Returns the next sources: down the list of each topic, or all in an order drawn anew each
        time all of them have been taken. Of a number of topics, each is the next of that order,
        followed by the passages most related to it."""
        begin, size = self.state.cursor, self.size()
        places = range(begin, begin + (self.config.drawn or size))
        self.state.cursor = places.stop
        if self.on_topic:
            return [ids[i % len(ids)] for ids in self.on_topic for i in places]
        each = len(self.frame.problems)
        orders = {number: self.frame.order(number) for number in {i // each for i in places}}
        found = [orders[i // each][i % each] for i in places]
        if not self.config.drawn:
            return found
        texts = [self.frame.problems[one].fields["question"] for one in found]
        near = [
            list(dict.fromkeys([one, *self.related(text, size)]))
            for one, text in zip(found, texts, strict=True)
        ]
        return [ids[i % len(ids)] for ids in near for i in range(size)]

    def related(self, text: str, most: int | None = None) -> list[str]:
        """Returns ids of the passages that share a word with a text, the best first."""
        assert self.teacher is not None
        ids = list(self.frame.problems)
        return [ids[i] for i in self.teacher.library.related(text, most)]

    def progress(self) -> tuple[int, int]:
        each = self.size() * self.config.parts
        done = self.state.round + (self.rounds[1] if self.state.epoch == 2 else 0)
        return done * each, sum(self.rounds.values()) * each

    # ---- one round ------------------------------------------------------------------------------

    def play(self, wave: Wave) -> Played:
        """Plays a round: questions, answers of teacher and policy, the filter, training."""
        learning = self.frame.learning
        learning.use(phases(self.frame.recipe)[wave.epoch - 1])
        if wave.new_epoch:
            learning.begin_stage()
        sources = self.frame.trajectories()
        lessons = self.learn_from(self.teacher, sources) if self.teacher else self.solve(sources)
        episodes = [self.episode(lesson) for lesson in lessons]
        made = [pair for episode in episodes for pair in self.pairs(episode)]
        self.frame.status(f"training on {len(made)} pairs")
        learning.prefer(made, (*self.seed(), "pairs"))
        return Played(episodes, self.counted(), wave.own["arm"])

    def solve(self, lessons: list[Trajectory]) -> list[Trajectory]:
        """Has the policy attempt problems of a task, and the teacher write solutions."""
        session, at = self.frame.session, self.at("basic")
        self.frame.attempt(lessons, self.seed())
        every, train = not self.config.only_wrong, self.frame.recipe.train
        tried = [lesson for lesson in lessons if held_against(lesson.turns[0], train)]
        taught = [lesson for lesson in tried if every or not passed(lesson.turns[0])]
        self.frame.status(f"{len(taught)} solutions")
        named = "; ".join(self.config.sections)
        calls = [session.call("answer", one.problem, at, sections=named) for one in taught]
        turns = session.ask(calls, [lesson.turns[0] for lesson in taught], at)
        for lesson, turn in zip(taught, turns, strict=True):
            graded = self.frame.rollouts.graded
            lesson.add(turn if turn.error else graded(lesson.problem, turn))
        return lessons

    def learn_from(self, teacher: Teacher, passages: list[Trajectory]) -> list[Trajectory]:
        """Has the teacher pose and answer questions from passages, and the policy attempt them.

        A question goes on only while each step comes about, and is attempted only where the
        teacher's own solution has passed.
        """
        at, status = self.at("basic"), self.frame.status
        teacher.begin_wave()
        status(f"posing {len(passages)} questions")
        lessons = teacher.pose([s.problem for s in passages], self.state.asked, at)
        going = came_about(lessons)
        for step in (teacher.extract, teacher.ground):
            status(f"answering {len(going)} questions")
            step(going, at)
            going = came_about(going)
        going = [s for s in going if s.turns[-1].verdict and s.turns[-1].verdict.format_ok]
        status(f"judging {len(going)} answers")
        teacher.judge(going, self.at("judge"))
        going = [lesson for lesson in going if passed(lesson.turns[-2])]
        self.frame.attempt(going, self.seed())
        # The words of the teacher's answer are right without a judge.
        doubtful = [s for s in going if not (v := s.turns[-1].verdict) or not v.correct]
        status(f"judging {len(doubtful)} attempts")
        teacher.judge(doubtful, self.at("judge"))
        return lessons

    # ---- records --------------------------------------------------------------------------------

    def episode(self, lesson: Trajectory) -> Episode:
        made = self.frame.episode(lesson.problem, lesson.turns, Outcome(False, None, "discarded"))
        attempt = next((turn for turn in made.turns if turn.role == "attempt"), None)
        if attempt and passed(attempt):
            return replace(made, outcome=Outcome(True, attempt.index, "solved_first"))
        if any(self.pairs(made)):
            return replace(made, outcome=Outcome(False, None, "trained"))
        # A reply of no use has an error too, and its text; a call that failed has none.
        if any(turn.error and not turn.text.strip() for turn in made.turns):
            return replace(made, outcome=Outcome(False, None, "failed"))
        return made

    def pairs(self, episode: Episode) -> Iterator[Example]:
        return taught_pairs(episode, self.config.only_wrong, self.frame.recipe.train)

    def counted(self) -> dict[str, Any]:
        if not self.teacher:
            return {}
        names = ("posed", "in_evaluation", "empty_sections", "grounded")
        counts = {name: self.teacher.counts[name] for name in names}
        said = f"{counts['posed']} questions posed, {counts['grounded']} answered"
        if known := counts["in_evaluation"]:
            said += f", {known} left out that the evaluation asks"
        return {**counts, "told": said}

    def at(self, tier: Any) -> Try:
        wave = self.frame.wave
        return Try(tier, wave.epoch, f"{wave.stage}/{wave.number}")

    def seed(self) -> Seed:
        wave = self.frame.wave
        return self.frame.recipe.seed, wave.epoch, wave.stage, wave.number


METHOD = Method(
    name="preflexor",
    keys=PreflexorConfig,
    check=check,
    tiers=tiers,
    embedder=embedder,
    phases=phases,
    plan=plan,
    start=Preflexor,
    words={"trained": "taught by the teacher", "discarded": "nothing to learn from"},
    solved="",
    sources=sources,
    questions=questions,
)
