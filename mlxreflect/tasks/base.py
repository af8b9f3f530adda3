r"""Tasks: how their problems are made, and how an evaluation asks one of them.

Completion form is that of lm-evaluation-harness for GSM8K: `Question: …\nAnswer:`, after worked
examples with an empty line between them. The examples are the first ones of the training part, the
same for every problem (lm-eval calls that `first_n`), so what prompts share is computed once.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from mlxreflect.config.schema import EvalSpec, PromptConfig, TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Messages, Problem
from mlxreflect.graders import Grader
from mlxreflect.prompts.parsing import ANSWER, TAGS, plain_solution
from mlxreflect.prompts.roles import BUNDLED, role_messages


@dataclass(frozen=True)
class Review:
    """The judgement of an exact solver on a thought.

    kept: the opening lines that are valid (when searching: that a right answer can still follow).
    fault: of the first other line, such as "step 2 is wrong: 4 + 13 = 17"; "" if every step holds.
    mended: that line, its arithmetic computed again, where nothing else is wrong with it and there
        is something to do after it; else "".
    """

    kept: list[str]
    fault: str
    mended: str = ""


@dataclass(frozen=True)
class Solver:
    """A task's exact solver.

    review(problem, thought, search): search = False only checks the steps written.
    finish(problem, kept, seed): (thought, answer) that begins with the kept lines and is right;
        None where they lead nowhere. Deterministic in its arguments.
    """

    review: Callable[[Problem, str, bool], Review]
    finish: Callable[[Problem, list[str], int], tuple[str, str] | None]


@dataclass(frozen=True)
class Task:
    """One kind of problem.

    load(config, part, seed): the problems of a part ("train", "dev", "heldout", "all"), in a fixed
        order; parts never share a problem. Raises UserError for data that cannot be read.
    instruction(problem): what the system prompt asks for.
    show(problem): the user message.
    gold(problem): the expected answer as a critic may see it; None where any right answer counts.
    from_row(row): a Problem of a row of `mlxreflect grade`. Raises UserError.
    rules: every set of grading rules by name, the headline's first.
    hub: the data sets of the hub that it reads where no source is given.
    solver: exact, where the task has one.
    generated: it makes as many problems as are asked for.
    teaches: it has a training part, of which worked examples are, too.
    checkable: the problem itself says what is right, so grading needs no gold answer.
    """

    name: str
    load: Callable[[TaskConfig, str, int], list[Problem]]
    instruction: Callable[[Problem], str]
    show: Callable[[Problem], str]
    from_row: Callable[[dict[str, Any]], Problem]
    rules: dict[str, Grader]
    gold: Callable[[Problem], str | None] = attrgetter("gold")
    hub: tuple[str, ...] = ()
    solver: Solver | None = None
    generated: bool = False
    teaches: bool = True
    checkable: bool = False

    @property
    def grade(self) -> Grader:
        """Grades by the headline's rules."""
        return next(iter(self.rules.values()))


# ---- problems that a task makes itself -----------------------------------------------------------

GENERATED_PARTS = {"heldout": 1, "dev": 1, "train": 8}
DEFAULT_PROBLEMS = 1000
MOST = 100_000  # problems that are generated of a part; more would take minutes before a run begins
MISSES = 200_000  # draws without a new problem after which there is none left
Drawn = TypeVar("Drawn")


def generate(
    name: str,
    config: TaskConfig,
    part: str,
    draw: Callable[[], Drawn | None],
    part_of: Callable[[Drawn], str],
    key: Callable[[Drawn], Hashable],
    misses: int = MISSES,
) -> list[Drawn]:
    """Returns `config.limit` (1000 when 0) different problems of a part, or all that it has.

    draw(): one try at a problem. key: what makes two the same. misses: draws without a new one
    after which there is none left. Raises UserError for a source, and for more than MOST.
    """
    if config.source:
        raise UserError(
            f"task.source = {config.source!r}: {name} makes its own problems",
            'remove task.source, or set task.name = "jsonl"',
        )
    check_limit(name, config.limit)
    found: dict[Hashable, Drawn] = {}
    missed = 0
    while len(found) < (config.limit or DEFAULT_PROBLEMS) and missed < misses:
        drawn = draw()
        missed += 1
        if drawn is not None and key(drawn) not in found and part in ("all", part_of(drawn)):
            found[key(drawn)] = drawn
            missed = 0
    return list(found.values())


def check_limit(name: str, limit: int) -> None:
    """Raises UserError for more problems than are generated."""
    if limit > MOST:
        raise UserError(
            f"limit = {limit}: {name} makes at most {MOST} problems of a part",
            f"set task.limit, eval.limit or limit to at most {MOST}",
        )


# ---- how a problem is asked ----------------------------------------------------------------------


def ask(task: Task, problem: Problem, spec: EvalSpec, shots: Sequence[Problem]) -> Messages | str:
    """Returns what a model is asked: messages (chat), or the raw text to continue (completion).

    shots: of `load_shots`. The problem itself is never one of its own examples.
    """
    shots = [shot for shot in shots if shot.id != problem.id][: spec.shots]
    if spec.form == "completion":
        parts = [f"{raw_text(task, shot)} {completion_of(task, shot)}" for shot in shots]
        return "\n\n".join([*parts, raw_text(task, problem)])
    return ask_in_chat(task, problem, spec.prompt, f"attempt_{spec.prompt.style}", shots)


def ask_in_chat(
    task: Task, problem: Problem, prompt: PromptConfig, wording: str, shots: Sequence[Problem]
) -> Messages:
    """Returns a problem behind worked examples, each a question and its answer.

    wording: the template of the system message.
    """
    system, user = role_messages(
        wording, prompt.tags, BUNDLED.replaced(prompt.templates),
        instruction=task.instruction(problem), question=task.show(problem),
    )  # fmt: skip
    turns: Messages = []
    for shot in shots:
        turns += [
            {"role": "user", "content": task.show(shot)},
            {"role": "assistant", "content": reply_of(task, shot, prompt.tags, prompt.style)},
        ]
    return [system, *turns, user]


def load_shots(task: Task, spec: EvalSpec) -> list[Problem]:
    """Returns the first `spec.shots` problems of the training part; one more if they may be asked.

    Raises UserError as `first_shots` does, and for a stop string that would cut the answers that
    the examples teach.
    """
    thinks = spec.form == "completion" or spec.prompt.style != "direct"
    spare = spec.part in ("train", "all")
    shots = first_shots(task, spec.task, spec.shots, spare=spare, thinks=thinks)
    check_stop(task, spec, shots)
    return shots


def first_shots(
    task: Task, config: TaskConfig, count: int, *, spare: bool, thinks: bool
) -> list[Problem]:
    """Returns the first `count` problems of the training part; spare: one more, if they are asked.

    Raises UserError for a task without enough of them, and for examples that have no worked
    solution where one has to be shown (thinks).
    """
    if not count:
        return []
    wanted = count + spare
    shots = task.load(config.model_copy(update={"limit": wanted}), "train", 0)[:wanted]
    if len(shots) < count:
        raise UserError(
            f"shots = {count}: the training part of {task.name} has {len(shots)}",
            f"set shots to {len(shots)} or less",
        )
    if thinks and not all(worked(task, shot)[0] for shot in shots):
        raise UserError(
            f"shots = {count}: the problems of {task.name} come without worked solutions",
            'set prompt.style = "direct" and form = "chat", or leave shots out',
        )
    return shots


def check_stop(task: Task, spec: EvalSpec, shots: Sequence[Problem]) -> None:
    """Raises UserError for a stop string inside of what a right response holds."""
    if spec.form == "completion":
        taught = [completion_of(task, shot) for shot in shots]
    else:
        taught = ["".join(TAGS[spec.prompt.tags] + ANSWER)]
        taught += [reply_of(task, s, spec.prompt.tags, spec.prompt.style) for s in shots]
    for stop in spec.stop:
        if any(stop in text for text in taught):
            raise UserError(
                f"stop = {stop!r} would cut a right response before it ends",
                'take it out of stop, or use one such as "Question:"',
            )


def raw_text(task: Task, problem: Problem) -> str:
    return f"Question: {task.show(problem)}\nAnswer:"


def completion_of(task: Task, problem: Problem) -> str:
    """Returns a worked solution as raw text, in the form that the task's rules read.

    GSM8K's own solutions end in `#### 72`; other answers stand in a block.
    """
    thought, answer = worked(task, problem)
    solution = problem.meta.get("solution")
    if isinstance(solution, str) and "####" in solution:
        return solution
    return f"{thought}\n{ANSWER[0]}{answer}{ANSWER[1]}"


def reply_of(task: Task, problem: Problem, tags: str, style: str) -> str:
    """Returns a worked solution in the format that the chat asks for."""
    thought, answer = worked(task, problem)
    block = f"{ANSWER[0]}{answer}{ANSWER[1]}"
    start, end = TAGS[tags]
    return f"{start}\n{thought}\n{end}\n{block}" if style != "direct" else block


def worked(task: Task, problem: Problem) -> tuple[str, str]:
    """Returns (thought, answer): the exact solver's, or the data's own; "" for no thought."""
    if task.solver and (found := task.solver.finish(problem, [], 0)):
        return found
    solution = problem.meta.get("solution")
    thought = solution.partition("####")[0] if isinstance(solution, str) else ""
    return plain_solution(thought).strip(), problem.gold or ""
