"""Asks in a run: the policy for samples, critics for texts about them; replies become turns.

Samples come graded. A failed call of a critic is a turn with an error.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing.pool import ThreadPool
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any, Literal

from mlxreflect.config.schema import REMOTE, Recipe, Tier
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import ALONE, Hosts
from mlxreflect.core.records import Messages, Problem, Turn, Verdict, Visibility
from mlxreflect.core.seeds import seed_for
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.ledger import tally
from mlxreflect.critics.replies import forget
from mlxreflect.critics.verdicts import (
    Answer,
    Judgement,
    Marks,
    Preference,
    Sections,
    ask_structured,
)
from mlxreflect.data.leaks import leak
from mlxreflect.methods.base import LEAK_FILTER, Seed, Try, cut_off
from mlxreflect.models.policy import Policy
from mlxreflect.prompts.parsing import parse_response
from mlxreflect.prompts.roles import BUNDLED, GRAPH, ROLES, Data, part, role_messages
from mlxreflect.tasks.base import Task, ask_in_chat, first_shots

# Roles whose text may become training data.
TRAINED = ("reflection", "rewrite", "continue", "integrate", "answer")
# Roles that reply with JSON, by what it is read as.
STRUCTURED: dict[str, type[Any]] = {
    "judge": Judgement, "support": Judgement, "score": Marks, "prefer": Preference,
    "extract": Sections,
}  # fmt: skip
HELPED = ("rewrite", "continue", "integrate", "answer")  # written seeing more than the problem
Count = Callable[[str, int], None]  # is told of what how many more are done
SampleRole = Literal["attempt", "verify", "retry"]
SHOTS: dict[tuple[object, ...], tuple[Problem, ...]] = {}  # of `known_shots`
RECENT, FEW = 40, 10  # a run stops for many failures among its last calls, never for a few


# ---- the policy ----------------------------------------------------------------------------------


class Rollouts:
    """Draws and grades; turns come without an index, which the episode gives them.

    wording: the attempt_… template that samples are asked with, where it is not that of the style.
    """

    def __init__(self, recipe: Recipe, task: Task, policy: Policy, wording: str = "") -> None:
        self.recipe, self.task, self.policy, self.wording = recipe, task, policy, wording
        self.count: Count = lambda what, n: None

    def prompt(self, problem: Problem) -> Messages:
        """Returns the prompt that an evaluation asks with; every training example has it."""
        return attempt_prompt(self.recipe, self.task, problem)

    def sample(
        self, problems: Sequence[Problem], role: SampleRole, n: int, seed: Seed, actor: str,
        first: int = 0,
    ) -> list[list[Turn]]:  # fmt: skip
        """Returns n graded samples a problem, all drawn in one batch.

        first: samples that were drawn of the same seed before.
        """
        prompts = [(p, attempt_prompt(self.recipe, self.task, p, self.wording)) for p in problems]
        asked = [one for one in prompts for _ in range(n)]
        turns = self.draw(asked, role, seed, actor, first=first)
        return [turns[i : i + n] for i in range(0, len(turns), n)]

    def draw(
        self, prompts: Sequence[tuple[Problem, Messages]], role: SampleRole, seed: Seed, actor: str,
        *, temperature: float | None = None, first: int = 0,
    ) -> list[Turn]:  # fmt: skip
        """Returns a graded sample of each prompt. temperature: None for the policy's own."""
        config = self.recipe.policy
        completions = self.policy.generate(
            [self.policy.encode(messages) for _, messages in prompts],
            temperature=config.temperature if temperature is None else temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            batch=config.batch,
            seed=(*seed, role),
            first=first,
            sampling=config,
            advance=partial(self.count, "attempts"),
        )
        turns = []
        for (problem, messages), one in zip(prompts, completions, strict=True):
            usage = {"prompt": one.prompt_tokens, "completion": len(one.token_ids)}
            turn = Turn(
                -1, None, role, actor, messages, one.text, finish_reason=one.finish_reason,
                token_ids=one.token_ids, usage=usage,
            )  # fmt: skip
            turns.append(self.graded(problem, turn))
        return turns

    def graded(self, problem: Problem, turn: Turn) -> Turn:
        return graded(self.recipe, self.task, problem, turn)


def graded(recipe: Recipe, task: Task, problem: Problem, turn: Turn) -> Turn:
    """Returns the turn with its parsed answer and verdict; a helped one may not give that away.

    What was cut off does not pass, whoever wrote it. Where its call failed it stays as it is.
    """
    if turn.error:
        return turn
    tags, style = recipe.prompt.tags, recipe.prompt.style
    grade = task.grade(problem, turn.text, tags, style)
    spans = parse_response(turn.text, tags, style).spans
    verdict = grade.verdict
    helped = turn.role in HELPED and verdict.passed
    if helped and (reason := leak(turn.text, spans, style, task.show(problem))):
        verdict = Verdict(False, verdict.format_ok, reason, LEAK_FILTER)
    if verdict.passed and cut_off(turn):  # its end is missing, which nobody is to imitate
        verdict = replace(verdict, format_ok=False, reason="cut off at the token limit")
    return replace(turn, spans=spans, parsed=grade.parsed, verdict=verdict)


def attempt_prompt(recipe: Recipe, task: Task, problem: Problem, wording: str = "") -> Messages:
    """Returns the prompt of an attempt. wording: its template, where it is not the style's."""
    prompt = recipe.prompt
    shots = [shot for shot in known_shots(recipe, task) if shot.id != problem.id][: prompt.shots]
    return ask_in_chat(task, problem, prompt, f"attempt_{wording or prompt.style}", shots)


def known_shots(recipe: Recipe, task: Task) -> tuple[Problem, ...]:
    """Returns the worked examples of attempts, and one more; read once for a task."""
    count, thinks = recipe.prompt.shots, recipe.prompt.style != "direct"
    key = (task.name, recipe.task.model_dump_json(), count, thinks)
    if key not in SHOTS:
        SHOTS[key] = tuple(first_shots(task, recipe.task, count, spare=True, thinks=thinks))
    return SHOTS[key]


# ---- the critics ---------------------------------------------------------------------------------


class Session:
    """Asks the critics of a run, and counts what came of it; from any thread."""

    def __init__(self, recipe: Recipe, task: Task, critics: dict[str, Critic]) -> None:
        self.recipe, self.task, self.critics = recipe, task, critics
        self.replies: list[Reply] = []  # of the wave
        self.recent: deque[bool] = deque(maxlen=RECENT)  # true for each of the last that failed
        self.unread: list[tuple[Tier, Call]] = []  # of the wave, with replies without a verdict
        self.lock = Lock()  # of all three
        self.count_calls: Count = lambda what, n: None

    def figures(self) -> dict[str, Any]:
        """Returns the counts of the wave's calls."""
        return tally(self.replies)

    def workers(self, tier: Tier, asked: set[str]) -> "AbstractContextManager[Workers | None]":
        """Returns as many workers as the tier is asked at once, where all of `asked` are waited
        for; else none."""
        if not asked or not all(self.critics[name].waits for name in asked):
            return nullcontext()
        critic = self.critics[tier]
        return Workers(self.recipe.critic.tier(tier).concurrency * critic.servers, critic.hosts)

    def begin_wave(self) -> None:
        self.replies.clear()
        self.unread.clear()

    def call(
        self, role: str, problem: Problem, at: Try, *, seen: Visibility | None = None, **data: Data
    ) -> Call:
        """Returns a call as `make_call` does."""
        return make_call(self.recipe, self.task, role, problem, at, seen=seen, **data)

    def ask(self, calls: list[Call], parents: Sequence[Turn | None], at: Try) -> list[Turn]:
        """Returns a turn a call, without an index; parents: of these turns."""
        critic = self.critics[at.tier]
        replies = critic.ask(calls)
        with self.lock:
            self.count(replies)
        return [
            turn_of(call, reply, critic.actor, parent)
            for call, reply, parent in zip(calls, replies, parents, strict=True)
        ]

    def structured(
        self, calls: list[Call], parents: Sequence[Turn | None], at: Try
    ) -> list[tuple[Any, Turn]]:
        """Returns what each reply says in the form of its role, None where it says nothing in that
        form, and its turn."""
        if not calls:  # a run that shows a judge nothing has none
            return []
        critic = self.critics[at.tier]
        answers: list[Answer[Any]] = ask_structured(critic, calls, STRUCTURED[calls[0].role])
        with self.lock:
            if at.tier != "self":
                self.unread += [(at.tier, call) for one in answers for call in one.unread()]
            self.count([reply for answer in answers for reply in answer.replies])
        return [
            (answer.value, turn_of(call, answer.replies[-1], critic.actor, parent))
            for call, answer, parent in zip(calls, answers, parents, strict=True)
        ]

    def judge(
        self, problems: Sequence[Problem], turns: Sequence[Turn], at: Try,
        temperature: float | None = None,
    ) -> list[tuple[Judgement | None, Turn]]:  # fmt: skip
        """Returns what the judge says of each text, None where it gave no verdict, and its turn.

        temperature: where it is not the critic's own.
        """
        calls = [
            replace(self.call("judge", problem, at, attempt=turn.text), temperature=temperature)
            for problem, turn in zip(problems, turns, strict=True)
        ]
        return self.structured(calls, turns, at)

    def count(self, replies: list[Reply]) -> None:
        """Keeps the counts. Raises UserError when too many of the last calls failed."""
        failed = [reply for reply in replies if reply.error is not None]
        self.replies += replies
        self.count_calls("critic calls", len(replies))
        self.recent.extend(reply.error is not None for reply in replies)
        limit, lost = self.recipe.critic.max_failed, sum(self.recent)
        if failed and lost >= FEW and lost > limit * len(self.recent):
            self.forget_unread()
            raise UserError(
                f"{lost} of the last {len(self.recent)} critic calls failed, more than "
                f"critic.max_failed = {limit:g}; the last: {failed[-1].error}",
                "see that the critic answers as it is asked to, then resume the run; this wave "
                "will be done again",
            )

    def forget_unread(self) -> None:
        """Deletes unreadable replies from the disk: a critic that was mended is asked again."""
        for tier in {tier for tier, _ in self.unread}:
            config = self.recipe.critic.tier(tier)
            if config.provider in REMOTE and not config.replay:
                forget(config, [call for one, call in self.unread if one == tier])


# ---- calls and turns -----------------------------------------------------------------------------


def make_call(
    recipe: Recipe, task: Task, role: str, problem: Problem, at: Try, *,
    seen: Visibility | None = None, **data: Data,
) -> Call:  # fmt: skip
    """Returns a call in the wording of a recipe.

    data: what the role is shown beside the problem. seen: what its writer sees, where it is not as
    the role says.
    """
    spec, gold = ROLES[role], task.gold(problem)
    templates = BUNDLED.replaced(recipe.prompt.templates)
    asked = task.instruction(problem)
    if spec.graph and recipe.prompt.style == "graph":
        asked = f"{asked}\n{GRAPH}"
    shown = {"question": task.show(problem), "instruction": asked, "expected": gold, **data}
    recorded: Any = spec.recorded or role
    return Call(
        role=recorded,
        problem=problem,
        messages=role_messages(role, recipe.prompt.tags, templates, **shown),
        text="\n\n".join(part(spec.text, shown)),
        feedback="\n\n".join(part(spec.feedback, shown)),
        visibility=seen or spec.seen or ("verdict" if gold is None else "gold_answer"),
        template=templates.version(role),
        tags=recipe.prompt.tags,
        epoch=at.epoch,
        attempt=at.attempt,
        seed=seed_for(recipe.seed, at.epoch, at.attempt, recorded, problem.id),
    )


def example_call(
    recipe: Recipe, task: Task, role: str, problem: Problem, text: str = "", feedback: str = ""
) -> Call:
    """Returns a call of a role, for those who look at prompts and ask nobody."""
    data: dict[str, Any] = {
        "attempt": text, "working": text, "text": text, "attempt_A": text,
        "attempt_B": feedback, "feedback": feedback, "hint": feedback, "passage": "(a passage)",
        "sections": "(sections)" if role == "ground" else "; ".join(recipe.preflexor.sections),
    }  # fmt: skip
    if role == "reflection":
        data |= {"instruction": "(an instruction)", "words": "100"}
    return make_call(recipe, task, role, problem, Try("basic", 0, ""), **data)


def turn_of(call: Call, reply: Reply, actor: str, parent: Turn | None) -> Turn:
    """Returns a reply as a turn without an index."""
    return Turn(
        index=-1,
        parent=parent.index if parent else None,
        role=call.role,
        actor=actor,
        messages=call.messages,
        text=reply.text,
        visibility=call.visibility,
        finish_reason=reply.finish_reason,
        token_ids=reply.token_ids if call.role in TRAINED else None,
        usage=reply.usage,
        error=reply.error,
    )


# ---- calls side by side --------------------------------------------------------------------------
# A critic that is waited for answers many calls side by side. In lock-step the slowest reply of a
# round would hold up all the others, and the policy would stand still meanwhile. So each trajectory
# goes its own way, call by call, and the main thread goes on generating. Threads only wait, grade
# and write to their own trajectory: MLX stays on the main thread, and what a trajectory becomes
# does not depend on the others, so no byte depends on which reply came first.


class Workers:
    """Threads for the length of a wave, each of which makes one call at a time.

    A job is an iterator that makes a call at each step. After it the job queues again, behind the
    others: so what is left at a wave's end are single calls and no whole jobs, and all threads stay
    busy almost to the last. The first exception of a job is raised in the main thread, by the next
    `start` or `wait`; from then on, and when the wave is left early, no job takes another step.
    hosts: which make the calls, and are met while jobs are waited for.
    """

    def __init__(self, threads: int, hosts: Hosts = ALONE) -> None:
        self.hosts, self.stopped = hosts, Event()
        self.out = 0  # jobs that have not ended
        self.ended: SimpleQueue[BaseException | None] = SimpleQueue()
        # Daemons, unlike those of concurrent.futures: Ctrl-C waits for no reply.
        self.pool = ThreadPool(threads)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.pool.terminate()

    def start(self, job: Iterator[Any]) -> None:
        """Queues a job. Raises what an earlier one raised."""
        while not self.ended.empty():
            self.collect()
        self.out += 1
        self.queue(job)

    def wait(self, tell: Callable[[str], Any]) -> None:
        """Returns when every job has ended. Raises what one raised as soon as it did."""
        while self.out:
            tell(f"critique and rewrite: {self.out} to go")
            self.collect()

    def collect(self) -> None:
        if not self.hosts.alone:
            self.hosts.wait(lambda: not self.ended.empty())
        error = self.ended.get()
        if error is not None:
            raise error
        self.out -= 1

    def queue(self, job: Iterator[Any]) -> None:
        self.pool.apply_async(self.step, (job,), error_callback=self.ended.put)

    def step(self, job: Iterator[Any]) -> None:
        if self.stopped.is_set():
            return
        fine = False
        try:
            more = next(job, self) is not self
            fine = True
        finally:
            if not fine:  # here, before this thread takes another job
                self.stopped.set()
        if more:
            self.queue(job)
        else:
            self.ended.put(None)
