"""The exact critic on hand-made thoughts: the first fault, and rewrites that keep what holds."""

from typing import Any

import pytest

from mlxreflect.config.schema import TaskConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Problem, Visibility, make_problem
from mlxreflect.critics.base import Call
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.prompts.parsing import TAGS
from mlxreflect.prompts.roles import PRAISE
from mlxreflect.tasks import TASKS, arithmetic, countdown
from mlxreflect.tasks.countdown import TASK

CRITIC = SolverCritic("countdown")


def game(numbers: list[int], target: int) -> Problem:
    return make_problem("countdown", {"numbers": numbers, "target": target})


GAME = game([3, 4, 5], 35)


def written(thought: str, answer: str, tags: str = "think") -> str:
    start, end = TAGS[tags]
    return f"{start}\n{thought}\n{end}\n<answer> {answer} </answer>"


def ask(
    problem: Problem, text: str, role: str, visibility: Visibility = "verdict",
    tags: str = "think", seed: int = 0,
) -> str:  # fmt: skip
    call = Call(role, problem, [], text, visibility=visibility, tags=tags, seed=seed)  # type: ignore[arg-type]
    (reply,) = SolverCritic(problem.task).ask([call])
    assert reply.error is None
    return reply.text


# ---- the critic ---------------------------------------------------------------------------------


def test_critiques_name_the_fault() -> None:
    dead = written("step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 17", "3 * 4 + 5")
    assert ask(GAME, dead, "critique") == "step 1 leads nowhere: 3 * 4 = 12"
    right = written("step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35", "( 3 + 4 ) * 5")
    assert ask(GAME, right, "critique") == "every step holds"
    other = right.replace("( 3 + 4 ) * 5", "3 + 4 * 5")
    assert "23" in ask(GAME, other, "critique")  # the steps hold, the answer does not
    twice = right + "<answer> ( 3 + 4 ) * 5 </answer>"
    assert "2 closed <answer> blocks" in ask(GAME, twice, "critique")


OPENINGS = [
    "step 1: 3 + 4 = 7", "  step 1:  3 + 4 = 7  ", "Hmm…\tlet me think.\n\n3 + 4 = 7, yes",
    "step 1: 3 + 4 = 7\r", "1. 3 + 4 = 7 ✓ 😀\u2028and so on", "I like 5.\nAnd 4 too.",
    "(3 + 4) = 7",
]  # fmt: skip


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("opening", OPENINGS)
def test_a_rewrite_keeps_the_valid_opening_byte_for_byte(opening: str, tags: str) -> None:
    for wrong in ("step 2: 7 * 5 = 36", "step 2: 9 + 5 = 14", "then 7 + 5 = 12\nand so 12"):
        text = written(f"{opening}\n{wrong}", "3 + 4 + 5", tags)
        again = ask(GAME, text, "rewrite", tags=tags)
        kept = f"{TAGS[tags][0]}\n{opening}\n"
        assert text.startswith(kept)
        assert again.startswith(kept)
        assert wrong not in again
        assert TASK.grade(GAME, again, tags, "thinking").verdict.passed


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
    assert ask(GAME, text, "critique") not in ("", "every step holds")
    again = ask(GAME, text, "rewrite")
    assert TASK.grade(GAME, again, "think", "thinking").verdict.passed
    if "step 1: 3 + 4 = 7" in text:
        assert "step 1: 3 + 4 = 7\n" in again


def test_replies_are_in_the_order_of_the_calls() -> None:
    problems = TASK.load(TaskConfig(limit=4), "train", 9)
    roles: list[Any] = ["rewrite", "critique"] * 2
    calls = [Call(role, p, [], written("", "1"), seed=i)
             for i, (role, p) in enumerate(zip(roles, problems, strict=True))]  # fmt: skip
    replies = CRITIC.ask(calls)
    for role, problem, reply in zip(roles, problems, replies, strict=True):
        if role == "critique":
            assert reply.text == "the steps stop with 3 numbers left"
        else:
            assert TASK.grade(problem, reply.text, "think", "thinking").verdict.passed
    assert CRITIC.ask(calls) == replies


def test_what_cannot_be_solved_is_a_failed_call() -> None:
    (reply,) = CRITIC.ask([Call("rewrite", game([1, 1, 1], 100), [], written("", "1"))])
    assert reply.error and (reply.text, reply.kind) == ("", "unsolved")


def test_a_task_without_a_solver_is_refused_before_the_run() -> None:
    CRITIC.preflight()
    without = next(name for name, task in TASKS.items() if task.solver is None)
    with pytest.raises(UserError) as caught:
        SolverCritic(without).preflight()
    assert without in caught.value.message
    assert "countdown" in caught.value.hint


# ---- shown no answer -----------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["critique", "rewrite", "judge"])
def test_without_the_answer_the_solver_never_searches(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*_: object) -> Any:
        raise AssertionError("a search")

    for name in ("solvable", "search_path", "steps_from"):
        monkeypatch.setattr(countdown, name, searched)
    # 3 * 4 = 12 is a dead end for 35: only a search knows.
    texts = [written(thought, "7") for thought in
             ("step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 18", "step 1: 3 * 4 = 12", "no idea",
              "step 1: 3 + 4 = 8", "step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35")]  # fmt: skip
    for text in texts:
        ask(GAME, text, role, "none")
    with pytest.raises(AssertionError, match="a search"):
        ask(GAME, texts[0], role)


def test_a_dead_end_is_kept_where_only_a_search_would_show_it() -> None:
    text = written("step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 18", "7")
    assert ask(GAME, text, "critique", "none") == "step 2 is wrong: 12 + 5 is 17, not 18"
    assert ask(GAME, text, "rewrite", "none") == "<think>\nstep 1: 3 * 4 = 12"
    assert "leads nowhere" in ask(GAME, text, "critique")
    for thought in ("step 1: 3 * 4 = 12", "step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 17"):
        assert ask(GAME, written(thought, "3"), "critique", "none").startswith("the steps ")


@pytest.mark.parametrize(
    ("thought", "opening"),
    [
        ("step 1: 3 + 4 = 8\nstep 2: 8 * 5 = 35", "<think>\nstep 1: 3 + 4 = 7"),
        ("Hm.\n- (3 + 4) = 9, so", "<think>\nHm.\n- (3 + 4) = 7"),
        ("step 1: 3 + 6 = 8", "<think>"),  # 6 is not there: computing does not mend it
        ("step 1: 3 / 0 = 8", "<think>"),
        ("step 1: 3 + 4 = 7\nstep 2: 7 + 5 = 35", "<think>\nstep 1: 3 + 4 = 7"),  # nothing after it
    ],
)
def test_a_sum_is_computed_again_where_something_follows(thought: str, opening: str) -> None:
    assert ask(GAME, written(thought, "7"), "rewrite", "none") == opening


def test_what_only_the_answer_shows_is_not_said() -> None:
    problem = make_problem("arithmetic", {"expression": "3 + 4"}, "4711")
    text = written("step 1: 3 + 4 = 7", "8")
    assert ask(problem, text, "critique", "none") == PRAISE
    assert ask(problem, text, "critique", "gold_answer") != PRAISE
    assert "is wrong" in ask(problem, written("step 1: 3 + 4 = 8", "8"), "critique", "none")
    assert arithmetic.review(problem, "step 1: 3 + 4 = 7", False).fault == ""
