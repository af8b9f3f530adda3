"""The exact critic on hand-made thoughts: the first fault, and rewrites that keep what holds."""

import itertools
from fractions import Fraction

import pytest

from mlxreflect.config.schema import CriticConfig, TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, Visibility, make_problem
from mlxreflect.critics.base import Call
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.prompts.messages import TAGS
from mlxreflect.tasks import TASKS
from mlxreflect.tasks.countdown import TASK
from mlxreflect.tasks.countdown_solver import finish, review

CRITIC = SolverCritic(CriticConfig(), "countdown")


def game(numbers: list[int], target: int) -> Problem:
    return make_problem("countdown", {"numbers": numbers, "target": target})


def written(thought: str, answer: str, tags: str = "think") -> str:
    start, end = TAGS[tags]
    return f"{start}\n{thought}\n{end}\n<answer> {answer} </answer>"


def ask(
    problem: Problem, text: str, role: str, visibility: Visibility = "verdict",
    tags: str = "think", seed: int = 0,
) -> str:  # fmt: skip
    call = Call(role, problem, [], text, visibility=visibility, tags=tags, seed=seed)  # type: ignore[arg-type]
    (reply,) = CRITIC.ask([call])
    assert reply.error is None
    return reply.text


def can_reach(values: tuple[Fraction, ...], target: int) -> bool:
    """Brute force, fractions and negative results included."""
    if len(values) == 1:
        return values[0] == target
    for (i, a), (j, b) in itertools.permutations(enumerate(values), 2):
        rest = tuple(v for k, v in enumerate(values) if k not in (i, j))
        results = {a + b, a * b, a - b} | ({a / b} if b else set())
        if any(can_reach((*rest, r), target) for r in results):
            return True
    return False


# numbers, target, thought; valid lines and fault when searching, then when only checking
CASES = {
    "right": ([3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35", (2, ""), (2, "")),
    "wrong sum": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 8\nstep 2: 8 * 5 = 40",
        (0, "step 1 is wrong: 3 + 4 is 7, not 8"), (0, "step 1 is wrong: 3 + 4 is 7, not 8"),
    ),
    "wrong later": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 36",
        (1, "step 2 is wrong: 7 * 5 is 35, not 36"), (1, "step 2 is wrong: 7 * 5 is 35, not 36"),
    ),
    "wrong decimal": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7.5", (0, "step 1 is wrong: 3 + 4 is 7, not 7.5"),
        (0, "step 1 is wrong: 3 + 4 is 7, not 7.5"),
    ),
    "number not there": (
        [3, 4, 5], 35, "step 1: 3 + 6 = 9", (0, "step 1 uses 6, which is not there: 3 + 6 = 9"),
        (0, "step 1 uses 6, which is not there: 3 + 6 = 9"),
    ),
    "number used twice": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 3 * 5 = 15",
        (1, "step 2 uses 3, which is not there: 3 * 5 = 15"),
        (1, "step 2 uses 3, which is not there: 3 * 5 = 15"),
    ),
    "dead end": (
        [3, 4, 5], 35, "step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 17",
        (0, "step 1 leads nowhere: 3 * 4 = 12"), (2, "the steps end at 17, not 35"),
    ),
    "last step elsewhere": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 7 + 5 = 12",
        (1, "step 2 ends at 12, not 35: 7 + 5 = 12"), (2, "the steps end at 12, not 35"),
    ),
    "stops early": (
        [3, 4, 5], 35, "step 1: 3 + 4 = 7", (1, "the steps stop with 2 numbers left"),
        (1, "the steps stop with 2 numbers left"),
    ),
    "nothing": (
        [3, 4, 5], 35, "", (0, "the steps stop with 3 numbers left"),
        (0, "the steps stop with 3 numbers left"),
    ),
    "only prose": (
        [3, 4, 5], 35, "Let me think.\nHard.", (2, "the steps stop with 3 numbers left"),
        (2, "the steps stop with 3 numbers left"),
    ),
    "prose between": (
        [3, 4, 5], 35, "First the sum.\n3 + 4 = 7, good\n\nSo 7 * 5 = 35!", (4, ""), (4, ""),
    ),
    "wrong before a dead end": (
        [3, 4, 5], 35, "step 1: 3 * 4 = 11\nstep 2: 11 + 5 = 16",
        (0, "step 1 is wrong: 3 * 4 is 12, not 11"), (0, "step 1 is wrong: 3 * 4 is 12, not 11"),
    ),
    "in one line": ([3, 4, 5], 35, "(3 + 4) * 5 = 35", (1, ""), (1, "")),
    "other labels": ([3, 4, 5], 35, "1. 3 + 4 = 7\n2) 7 * 5 = 35", (2, ""), (2, "")),
    "other signs": ([3, 4, 5], 35, "step 1: 3 + 4 = 7\nstep 2: 7 × 5 = 35", (2, ""), (2, "")),
    "fractions": (
        [3, 3, 8, 8], 24, "step 1: 8 / 3 = 8/3\nstep 2: 3 - 8/3 = 1/3\nstep 3: 8 / 1/3 = 24",
        (3, ""), (3, ""),
    ),
    "negative numbers": ([3, 5, 9], 7, "3 − 5 = −2\n9 + -2 = 7", (2, ""), (2, "")),
    "three numbers in a step": ([8, 4, 3], 5, "step 1: 8/4 + 3 = 5", (1, ""), (1, "")),
    "a chain": (
        [3, 4, 5], 35, "3 + 4 = 7 * 5 = 35", (0, "step 1 uses 7, which is not there: 7 * 5 = 35"),
        (0, "step 1 uses 7, which is not there: 7 * 5 = 35"),
    ),
    "division by zero": (
        [4, 4, 5], 5, "step 1: 4 - 4 = 0\nstep 2: 5 / 0 = 5",
        (1, "step 2 is no arithmetic: a division by zero"),
        (1, "step 2 is no arithmetic: a division by zero"),
    ),
    "no arithmetic": (
        [3, 4, 5], 35, "step 1: 9**9 = 3",
        (0, "step 1 is no arithmetic: * where a number was expected"),
        (0, "step 1 is no arithmetic: * where a number was expected"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_first_fault(name: str) -> None:
    numbers, target, thought, searched, checked = CASES[name]
    lines = thought.split("\n") if thought else []
    for search, (valid, fault) in ((True, searched), (False, checked)):
        found = review(game(numbers, target), f"\n{thought}\n", search)
        assert (found.fault, found.kept) == (fault, lines[:valid])


def test_a_dead_end_is_one_by_brute_force() -> None:
    """Every first step from four numbers: reported exactly where no way to the target is left."""
    numbers, target = [2, 7, 7, 25], 23
    reported = 0
    for a, b in [(2, 7), (2, 25), (7, 7), (7, 25), (25, 7), (25, 2), (7, 2)]:
        rest = list(numbers)
        rest.remove(a)
        rest.remove(b)
        for sign, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", Fraction(a, b))):
            line = f"step 1: {a} {sign} {b} = {value}"
            after = (*map(Fraction, rest), Fraction(value))
            fault = review(game(numbers, target), line, True).fault
            dead = not can_reach(after, target)
            assert ("leads nowhere" in fault) is dead, line
            reported += dead
    assert 0 < reported < 28


def test_lines_that_were_not_checked_are_not_kept() -> None:
    prose = [f"thought number {chr(97 + i % 26)}" for i in range(250)]
    found = review(game([3, 4, 5], 35), "\n".join([*prose, "step 1: 3 + 4 = 8"]), True)
    assert found.kept == prose[: len(found.kept)]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_every_opening_of_a_solution_is_finished(count: int) -> None:
    limit = {3: 12, 4: 8, 5: 4}[count]
    for problem in TASK.load(TaskConfig(numbers=[count], limit=limit), "train", 4):
        solved = finish(problem, [], 1)
        assert solved is not None
        lines = solved[0].split("\n")
        assert [line.split(":")[0] for line in lines] == [f"step {i}" for i in range(1, count)]
        for kept in range(count):
            opening = ["Let me see.", *lines[:kept]]
            again = finish(problem, opening, 2)
            assert again is not None
            thought, answer = again
            assert thought.split("\n")[: kept + 1] == opening
            assert review(problem, thought, True).fault == ""
            assert TASK.grade(problem, written(thought, answer), "think", "thinking").verdict.passed


@pytest.mark.parametrize(
    ("numbers", "target", "needed"),
    [([3, 3, 8, 8], 24, "1/3"), ([1, 5, 5, 5], 24, "1/5"), ([3, 5], -2, "3 - 5 = -2")],
)
def test_solutions_need_fractions_or_negative_numbers_at_times(
    numbers: list[int], target: int, needed: str
) -> None:
    solved = finish(game(numbers, target), [], 0)
    assert solved is not None
    assert needed in solved[0]
    grade = TASK.grade(game(numbers, target), written(*solved), "think", "thinking")
    assert grade.verdict.passed
    assert review(game(numbers, target), solved[0], True).fault == ""


def test_the_seed_chooses_among_solutions() -> None:
    problem = game([1, 2, 3, 4], 10)
    found = {finish(problem, [], seed) for seed in range(12)}
    assert len(found) > 3
    assert finish(problem, [], 3) == finish(problem, [], 3)


@pytest.mark.parametrize(
    ("numbers", "target", "kept"),
    [
        ([1, 1, 1], 100, []),
        ([3, 4, 5], 35, ["step 1: 3 * 4 = 12"]),
        ([3, 4, 5], 35, ["step 1: 3 + 4 = 8"]),
        ([3, 4, 5], 35, ["step 1: 3 + 4 = 7", "step 2: 7 + 5 = 12"]),
    ],
)
def test_what_leads_nowhere_is_not_finished(
    numbers: list[int], target: int, kept: list[str]
) -> None:
    assert finish(game(numbers, target), kept, 0) is None


# ---- the critic ---------------------------------------------------------------------------------


def test_critiques_name_the_fault() -> None:
    problem = game([3, 4, 5], 35)
    dead = written("step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 17", "3 * 4 + 5")
    assert ask(problem, dead, "critique") == "step 1 leads nowhere: 3 * 4 = 12"
    right = written("step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35", "( 3 + 4 ) * 5")
    assert ask(problem, right, "critique") == "every step holds"
    other = right.replace("( 3 + 4 ) * 5", "3 + 4 * 5")
    assert "23" in ask(problem, other, "critique")  # the steps hold, the answer does not
    twice = right + "<answer> ( 3 + 4 ) * 5 </answer>"
    assert "2 closed <answer> blocks" in ask(problem, twice, "critique")


def test_without_visibility_nothing_is_searched() -> None:
    problem = game([3, 4, 5], 35)
    for thought, answer in (
        ("step 1: 3 * 4 = 12", "3 * 4"),
        ("step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 17", "3 * 4 + 5"),
    ):
        text = written(thought, answer)
        assert "leads nowhere" in ask(problem, text, "critique", "verdict")
        hidden = ask(problem, text, "critique", "none")
        assert "leads nowhere" not in hidden
        assert hidden.startswith("the steps ")
    wrong = written("step 1: 3 + 4 = 8", "3")
    assert ask(problem, wrong, "critique", "none") == "step 1 is wrong: 3 + 4 is 7, not 8"


OPENINGS = [
    "step 1: 3 + 4 = 7", "  step 1:  3 + 4 = 7  ", "Hmm…\tlet me think.\n\n3 + 4 = 7, yes",
    "step 1: 3 + 4 = 7\r", "1. 3 + 4 = 7 ✓ 😀\u2028and so on", "I like 5.\nAnd 4 too.",
    "(3 + 4) = 7",
]  # fmt: skip


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("opening", OPENINGS)
def test_a_rewrite_keeps_the_valid_opening_byte_for_byte(opening: str, tags: str) -> None:
    problem = game([3, 4, 5], 35)
    for wrong in ("step 2: 7 * 5 = 36", "step 2: 9 + 5 = 14", "then 7 + 5 = 12\nand so 12"):
        text = written(f"{opening}\n{wrong}", "3 + 4 + 5", tags)
        again = ask(problem, text, "rewrite", tags=tags)
        kept = f"{TAGS[tags][0]}\n{opening}\n"
        assert text.startswith(kept)
        assert again.startswith(kept)
        assert wrong not in again
        assert TASK.grade(problem, again, tags, "thinking").verdict.passed


@pytest.mark.parametrize(
    "text",
    [
        "", "no tags", "<think>", "<think>\nstep 1: 3 + 4 = 7", "step 1: 3 + 4 = 7\n</think>",
        "<think>\nstep 1: 3 + 4 = 7\n<answer>3 + 4</answer>", "</think><think>",
        "<answer>1</answer>",
        "<think>\nstep 1: 3 + 4 = 8</think><answer>" + "(" * 1000, "\ud800", "=" * 100_000,
        "<think>" + "1 + 1 = 2\n" * 50_000, "<think>" + "1 " * 100_000 + "= 3",
    ],
    ids=lambda text: text[:30].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_any_text_is_reviewed_and_rewritten(text: str) -> None:
    problem = game([3, 4, 5], 35)
    assert ask(problem, text, "critique") not in ("", "every step holds")
    again = ask(problem, text, "rewrite")
    assert TASK.grade(problem, again, "think", "thinking").verdict.passed
    if "step 1: 3 + 4 = 7" in text:
        assert "step 1: 3 + 4 = 7\n" in again


def test_replies_are_in_the_order_of_the_calls() -> None:
    problems = TASK.load(TaskConfig(limit=8), "train", 9)
    calls = [
        Call("critique" if i % 2 else "rewrite", p, [], written("", "1"), seed=i)
        for i, p in enumerate(problems)
    ]
    replies = CRITIC.ask(calls)
    assert len(replies) == 8
    for i, (problem, reply) in enumerate(zip(problems, replies, strict=True)):
        if i % 2:
            assert reply.text == "the steps stop with 3 numbers left"
        else:
            assert TASK.grade(problem, reply.text, "think", "thinking").verdict.passed
    assert CRITIC.ask(calls) == replies


def test_what_cannot_be_solved_is_a_failed_call() -> None:
    (reply,) = CRITIC.ask([Call("rewrite", game([1, 1, 1], 100), [], written("", "1"))])
    assert reply.error
    assert reply.text == ""
    assert reply.kind == "unsolved"


def test_a_task_without_a_solver_is_refused_before_the_run() -> None:
    CRITIC.preflight()
    without = next(name for name, task in TASKS.items() if task.solver is None)
    with pytest.raises(UserError) as caught:
        SolverCritic(CriticConfig(), without).preflight()
    assert without in caught.value.message
    assert "countdown" in caught.value.hint
