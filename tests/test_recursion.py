"""Chains, their pure part: what is prefilled next, what may not be written again, what is answered;
and a solver that looks at them without searching."""

from dataclasses import replace
from typing import Any

import pytest

from mlxreflect.config.schema import ChainConfig, CriticConfig
from mlxreflect.core.records import Problem, Turn, Verdict, Visibility, make_problem
from mlxreflect.critics.base import Call, Role
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.evaluation.chains import (
    GIVEN,
    Chain,
    answer_of,
    episode_of,
    failed_steps,
    figures,
    next_opening,
    opening_of,
    satisfied,
)
from mlxreflect.prompts.parsing import parse_response
from mlxreflect.prompts.templates import PRAISE
from mlxreflect.report.tables import chain_line
from mlxreflect.tasks import arithmetic, countdown_solver

GAME = make_problem("countdown", {"numbers": [3, 4, 5], "target": 35})


def config(**keys: Any) -> ChainConfig:
    return ChainConfig.model_validate({"rounds": 3} | keys)


def answer(
    thought: str, said: str = "7", right: bool = False, given: str = "", **more: Any
) -> Turn:
    text = f"<think>\n{thought}\n</think>\n<answer> {said} </answer>"
    spans = parse_response(text).spans | ({GIVEN: [0, len(given)]} if given else {})
    turn = Turn(-1, None, "continue" if given else "attempt", "policy:m", [], text, spans, said,
                Verdict(right, True, "" if right else "no"), usage={"completion": 10})  # fmt: skip
    return replace(turn, **more)


def said(text: str, role: Any = "rewrite", **more: Any) -> Turn:
    return replace(Turn(-1, None, role, "solver", [], text), **more)


def chain(*turns: Turn) -> Chain:
    made = Chain(GAME)
    for turn in turns:
        made.add(turn)
    return made


# ---- what is prefilled ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("<think>\na\nb\n</think>\n<answer>1</answer>", "<think>\na\nb\n</think>\n<answer>"),
        ("<think>\na = 1\n", "<think>\na = 1"),
        ("no tag at all <answer>1</answer>", "<think>\nno tag at all"),
        (
            "<think>\na <answer>1</answer>\n</think>\nb\n</think>\n<answer>2</answer>",
            "<think>\na 1\n\nb\n</think>\n<answer>",
        ),
        ("<think>\na\n<think>\nb", "<think>\na\n\nb"),
        ("<think>\n\n</think>\n<answer>1</answer>", ""),
        ("<think>", ""),
        ("<answer>12</answer>", ""),
        ("", ""),
    ],
)
def test_an_opening_is_the_thinking_alone(text: str, opening: str) -> None:
    assert opening_of(text, "think") == opening


def test_what_failed_loses_its_last_line() -> None:
    improved = said("<think>\na\nb")
    first = answer("x")
    assert next_opening(chain(first, improved), config(), "think") == "<think>\na\nb"
    tried = chain(first, improved, answer("a\nb\nc", given="<think>\na\nb"))
    assert next_opening(tried, config(tries=2), "think") == "<think>\na\nb"
    assert next_opening(tried, config(), "think") == "<think>\na"
    both = chain(*tried.turns, answer("a\nc", given="<think>\na"))
    assert next_opening(both, config(), "think") == ""


def test_an_opening_is_not_the_whole_thought_of_an_answer_that_failed() -> None:
    ended = chain(answer("a\nb"), said("<think>\na\nb"))
    assert next_opening(ended, config(tries=5), "think") == "<think>\na"


def test_closed_thinking_that_failed_is_opened_again() -> None:
    improved = said("<think>\na\nb\n</think>")
    tried = answer("a\nb", given="<think>\na\nb\n</think>\n<answer>")
    assert next_opening(chain(answer("x"), improved, tried), config(), "think") == "<think>\na"


def test_of_several_openings_the_one_that_failed_least_is_next() -> None:
    turns = [
        answer("x"),
        said("<think>\na"),
        answer("a\nc", given="<think>\na"),
        said("<think>\nb"),
    ]
    assert next_opening(chain(*turns), config(tries=2), "think") == "<think>\nb"


def test_failed_steps_stop_before_the_sign_and_belong_to_their_opening() -> None:
    made = chain(
        answer("step 1: 5 + 4 = 7\nstep 2: 7 * 5 = 35"),
        answer("step 1: 5 + 4 = 8\nstep 2: 8 * 3 = 35"),
        answer("step 1: 3 + 4 = 7\nstep 2: 7 + 7 = 35", given="<think>\nstep 1: 3 + 4 = 7"),
        answer("I see no way"),
    )
    assert failed_steps(made, "", "think") == [
        "<think>\nstep 1: 5 + 4", "<think>\nstep 1: 3 + 4", "<think>\nI see no way",
    ]  # fmt: skip
    assert failed_steps(made, "<think>\nstep 1: 3 + 4 = 7", "think") == ["\nstep 2: 7 + 7"]
    assert failed_steps(made, "<think>\nstep 1: 3 * 4 = 12", "think") == []


def test_a_failed_step_after_a_tag_that_the_prompt_ends_in() -> None:
    text = "\nstep 1: 5 + 4 = 7\n</think>\n<answer> 7 </answer>"
    bare = answer("x", text=text, spans=parse_response(text).spans)
    assert failed_steps(chain(bare), "", "think") == ["<think>\nstep 1: 5 + 4"]


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        (PRAISE, True), (" **Every step holds.**\n", True), ('"Every step holds', True),
        ("not every step holds", False), ("Step 2 is wrong", False), ("", False),
    ],
)  # fmt: skip
def test_praise_is_what_was_asked_for(text: str, fine: bool) -> None:
    assert satisfied(text) is fine


# ---- what is answered ----------------------------------------------------------------------------


def test_fresh_samples_vote_and_all_others_answer_last() -> None:
    made = chain(*(answer("x", each) for each in ("1", "2", "2", "1")))
    bare = config(round="resample", feedback="none")
    assert answer_of(made, bare).index == 0  # of equals the first
    assert answer_of(made, bare, 3).parsed == "2"
    silent = chain(answer("x", "9", parsed=None), answer("x", "4"))
    assert answer_of(silent, bare).parsed == "4"
    for other in (config(round="retry"), config(round="resample", feedback="none", gated=True)):
        assert answer_of(made, other).index == 3


def test_figures_of_two_chains() -> None:
    lost = chain(answer("x", right=True), said("hm", "reflection", actor="self",
                                                usage={"completion": 5}), answer("y"))  # fmt: skip
    won = chain(
        answer("x"), said("bad", "critique", usage={"completion": 7}), said("", error="gone"),
        answer("y", right=True, given="<think>\n", usage={"completion": 4, "prefilled": 3}),
    )  # fmt: skip
    won.stopped = "critic"
    found = figures([lost, won], config(round="retry"))
    assert found["acc_at"] == [0.5, 0.5] and found["delta"] == 0
    assert (found["right_to_wrong"], found["wrong_to_right"]) == (1, 1)
    assert found["samples_mean"] == 2
    assert found["tokens_generated"] == (10 + 5 + 10 + 10 + 4) / 2
    assert found["tokens_prefilled"] == 1.5 and found["tokens_critic"] == 3.5
    assert found["stopped"] == {"rounds": 1, "critic": 1} and found["failed"] == 1
    assert (
        figures([lost], config(round="resample", feedback="none", gated=True))["name"] == "pass@3"
    )
    kept, merged = config(stops=False, gated=True), config(integrate=True, round="resample")
    assert chain_line("m", figures([lost], kept)).count("no grader ends a chain") == 1
    assert figures([lost], merged)["name"] == "integrated"
    outcomes = [episode_of(c, config(), 0).outcome for c in (lost, won)]
    assert [(o.status, o.solved_turn, o.first_correct) for o in outcomes] == [
        ("discarded", None, True), ("solved", 3, False),
    ]  # fmt: skip


# ---- the solver, shown no answer -----------------------------------------------------------------


def look(role: Role, problem: Problem, text: str, seen: Visibility = "none") -> str:
    return SolverCritic(CriticConfig(), problem.task).ask(
        [Call(role, problem, [], text, visibility=seen)]
    )[0].text  # fmt: skip


@pytest.mark.parametrize("role", ["critique", "rewrite", "judge"])
def test_without_the_answer_the_solver_never_searches(
    role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*_: object) -> Any:
        raise AssertionError("a search")

    for name in ("solvable", "search_path", "steps_from"):
        monkeypatch.setattr(countdown_solver, name, searched)
    # 3 * 4 = 12 is a dead end for 35: only a search knows.
    texts = [answer(thought).text for thought in
             ("step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 18", "step 1: 3 * 4 = 12", "no idea",
              "step 1: 3 + 4 = 8", "step 1: 3 + 4 = 7\nstep 2: 7 * 5 = 35")]  # fmt: skip
    for text in texts:
        look(role, GAME, text)
    with pytest.raises(AssertionError, match="a search"):
        look(role, GAME, texts[0], "verdict")


def test_a_dead_end_is_kept_where_only_a_search_would_show_it() -> None:
    text = answer("step 1: 3 * 4 = 12\nstep 2: 12 + 5 = 18").text
    assert look("critique", GAME, text) == "step 2 is wrong: 12 + 5 is 17, not 18"
    assert look("rewrite", GAME, text) == "<think>\nstep 1: 3 * 4 = 12"
    assert "leads nowhere" in look("critique", GAME, text, "verdict")


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
    assert look("rewrite", GAME, answer(thought).text) == opening


def test_what_only_the_answer_shows_is_not_said() -> None:
    problem = make_problem("arithmetic", {"expression": "3 + 4"}, "4711")
    text = answer("step 1: 3 + 4 = 7", "8").text
    assert look("critique", problem, text) == PRAISE
    assert look("critique", problem, text, "gold_answer") != PRAISE
    assert "is wrong" in look("critique", problem, answer("step 1: 3 + 4 = 8", "8").text)
    assert arithmetic.review(problem, "step 1: 3 + 4 = 7", False).fault == ""
