"""Chains: their openings, bans, answers and figures; as played, evaluated, and by `solve`."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from support.evaluations import evaluated
from support.fake_openai import FakeOpenAI
from support.fake_server import Body, http

from mlxreflect.config.schema import ChainConfig, EvalSpec, PolicyConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import read_rows
from mlxreflect.core.records import Problem, Turn, Verdict, make_problem
from mlxreflect.critics.base import Call, Critic, Reply
from mlxreflect.critics.solver import SolverCritic
from mlxreflect.evaluation.chains import (
    GIVEN,
    Chain,
    Rounds,
    answer_of,
    check_chain,
    episode_of,
    failed_steps,
    figures,
    next_opening,
    opening_of,
    satisfied,
    self_critic,
)
from mlxreflect.evaluation.evaluate import eval_problems
from mlxreflect.evaluation.solve import find_task, read_question, render_solved, solve, solve_spec
from mlxreflect.models.load import load_policy
from mlxreflect.models.policy import Policy
from mlxreflect.prompts.parsing import parse_response, reflection_in
from mlxreflect.prompts.roles import PRAISE
from mlxreflect.report.tables import chain_line
from mlxreflect.tasks import TASKS

TASK = TASKS["countdown"]
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


# ---- the next opening ----------------------------------------------------------------------------


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


TRIED = (answer("x"), said("<think>\na\nb"), answer("a\nb\nc", given="<think>\na\nb"))
CLOSED = "<think>\na\nb\n</think>"


@pytest.mark.parametrize(
    ("turns", "tries", "opening"),
    [
        (TRIED[:2], 1, "<think>\na\nb"),
        (TRIED, 2, "<think>\na\nb"),
        (TRIED, 1, "<think>\na"),  # what failed loses its last line
        ((*TRIED, answer("a\nc", given="<think>\na")), 1, ""),
        # The whole thought of an answer that failed is no opening, however often one may try.
        ((answer("a\nb"), said("<think>\na\nb")), 5, "<think>\na"),
        # Closed thinking that failed is opened again.
        ((answer("x"), said(CLOSED), answer("a\nb", given=f"{CLOSED}\n<answer>")), 1, "<think>\na"),
        # Of several the one that failed least is next.
        ((answer("x"), said("<think>\na"), answer("a\nc", given="<think>\na"),
          said("<think>\nb")), 2, "<think>\nb"),
    ],
)  # fmt: skip
def test_the_next_opening(turns: tuple[Turn, ...], tries: int, opening: str) -> None:
    assert next_opening(chain(*turns), config(tries=tries), "think") == opening


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

    # After a tag that the prompt ends in.
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
    merged = chain(answer("x", "1"), answer("x", "1"), answer("x", "2", role="integrate"))
    assert answer_of(merged, bare).parsed == "2"
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


# ---- rounds --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(PolicyConfig())


def spec_of(chain: dict[str, Any], **keys: Any) -> EvalSpec:
    tree = {"task": {"name": "countdown"}, "max_new_tokens": 30, "limit": 6} | keys
    return EvalSpec.model_validate(tree | {"chain": {"rounds": 3} | chain})


def play(
    policy: Policy, spec: EvalSpec, problems: list[Problem] | None = None, critic: Any = "solver"
) -> list[Chain]:
    problems = problems or eval_problems(TASK, spec)
    task = TASKS[problems[0].task]
    chosen: Critic = SolverCritic(task.name) if critic == "solver" else critic
    return Rounds(policy, task, spec, task.grade, chosen).play(problems, (0,))


@pytest.mark.parametrize("opens", [False, True])
def test_an_answer_goes_on_from_what_was_prefilled(
    policy: Policy, opening: Path, opens: bool
) -> None:
    if opens:  # the prompt ends in <think>
        policy = load_policy(PolicyConfig(model=str(opening)))
    chains = play(policy, spec_of({"gated": True}, limit=8))
    turns = [turn for chain in chains for turn in chain.turns if turn.role == "continue"]
    assert turns
    for chain in chains:
        for before, turn in zip(chain.turns, chain.turns[1:], strict=False):
            if turn.role == "continue":
                assert turn.text[slice(*turn.spans[GIVEN])] == before.text
    for turn in turns:
        assert turn.token_ids
        given = turn.text[: turn.spans[GIVEN][1]]
        assert turn.text == given + policy.decode(turn.token_ids).removesuffix("<|end|>")
        asked = policy.encode(turn.messages)
        assert turn.usage["prompt"] == len(asked) + turn.usage["prefilled"]
        whole = policy.encode_response(asked, turn.text)[:-1]
        assert len(whole) - len(turn.token_ids) + 1 == turn.usage["prefilled"]
        assert policy.decode([*asked, *whole]).count("<think>") == 1
        assert turn.text.count("</think>") <= 1


def test_a_chain_stops_where_someone_is_satisfied(policy: Policy) -> None:
    for gated, by in ((True, "grader"), (False, "critic")):
        for chain in play(policy, spec_of({"gated": gated}, limit=4)):
            right = [bool(turn.verdict and turn.verdict.correct) for turn in chain.answers]
            assert not any(right[:-1])
            assert chain.stopped == (by if right[-1] else "")
            assert len(chain.answers) == 3 or right[-1]


@pytest.mark.slow
def test_nobody_in_a_chain_is_shown_the_answer(policy: Policy) -> None:
    problem = make_problem("arithmetic", {"expression": "3 + 4"}, "987654321")
    for chain in ({"feedback": "self"}, {"round": "retry", "integrate": True}, {"gated": True}):
        spec = spec_of(chain, task={"name": "arithmetic"})
        own = self_critic(policy, spec) if spec.chain.feedback == "self" else "solver"
        (made,) = play(policy, spec, [problem], own)
        assert len(made.turns) > 2
        assert {turn.visibility for turn in made.turns} == {"none"}
        assert "987654321" not in json.dumps([turn.messages for turn in made.turns])


def test_what_failed_is_not_written_again(policy: Policy) -> None:
    keys = {"round": "resample", "gated": True, "avoid": True}
    problems = eval_problems(TASK, spec_of({}))
    bare = play(policy, spec_of(keys | {"feedback": "none"}), problems, None)
    failed = [chain for chain in bare if not chain.stopped]
    assert failed
    for chain in failed:  # greedy, and nobody has said what failed: the same answer each time
        assert len({turn.text for turn in chain.answers}) == 1
    for chain in play(policy, spec_of(keys), problems):
        begun = [turn.text.partition("=")[0] for turn in chain.answers]
        assert len(set(begun)) == len(begun)


def test_a_ban_is_of_its_own_prompt_alone(policy: Policy) -> None:
    asked = [policy.encode([{"role": "user", "content": f"Numbers: 3 4 {n}\nTarget: 20"}])
             for n in (5, 6, 7)]  # fmt: skip
    how: dict[str, Any] = {"temperature": 0, "top_p": 1.0, "max_new_tokens": 20, "batch": 2,
                           "seed": (1,), "samples": 2}  # fmt: skip
    free = policy.generate(asked, **how)
    begun = free[2].token_ids[:3]
    held = policy.generate(asked, **how, banned=[[], [begun], []])
    assert [one.token_ids for one in held[:2] + held[4:]] == [
        one.token_ids for one in free[:2] + free[4:]
    ]
    for one in held[2:4]:
        assert one.token_ids[:3] != begun and one.token_ids[:2] == begun[:2]


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("a<|reflect|> b\n<|/reflect|>c", "b"),
        ("<|reflect|>a<|/reflect|><|reflect|>b<|/reflect|>", "b"),
        ("<|reflect|>a<|reflect|>b<|/reflect|>", "b"),
        ("<|reflect|>a<|/reflect|><|reflect|>cut off", "a"),
        ("<|reflect|>cut off", ""), ("a<|/reflect|>", ""), ("<|reflect|> <|/reflect|>", ""),
        ("<|/reflect|>a<|reflect|>", ""),
    ],
)  # fmt: skip
def test_a_reflection_is_the_last_closed_one(text: str, held: str) -> None:
    assert reflection_in(text) == held


class Says:
    """A critic that records what it is asked."""

    actor, waits = "says", False

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def ask(self, calls: Any) -> list[Reply]:
        self.calls += calls
        return [Reply("<think>\nstep 1" if c.role == "rewrite" else "it is wrong") for c in calls]


OWN = "<think>\nx\n</think>\n<|reflect|>try another sum<|/reflect|>\n<answer>1</answer>"


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("how", [{"round": "retry"}, {"round": "prefill"}])
def test_the_reflection_in_an_answer_is_its_critique(
    policy: Policy, how: dict[str, Any], own: bool
) -> None:
    spec, critic = spec_of(how | {"own_reflection": own}), Says()
    one, silent = chain(answer("x", text=OWN)), chain(answer("x"))
    rounds = Rounds(policy, TASK, spec, TASK.grade, cast(Critic, critic))
    rounds.look([one, silent], (0,), 2)
    assert [turn.actor for turn in (one.turns[1], silent.turns[1])] == [
        "self" if own else "says", "says",
    ]  # fmt: skip
    said = "try another sum" if own else "it is wrong"
    assert one.turns[1].text == said and silent.turns[1].text == "it is wrong"
    if how["round"] == "retry":
        assert f"<feedback>\n{said}\n</feedback>" in rounds.next_ask(one, 2).messages[1]["content"]
    else:
        assert [c.feedback for c in critic.calls if c.role == "rewrite"] == [said, "it is wrong"]
        assert rounds.next_ask(one, 2).opening == "<think>\nstep 1"
    found = figures([one, silent], spec.chain)
    assert found.get("own_reflections") == (1 if own else None)
    assert ("1 critiques stood in" in chain_line("m", found)) == own


def test_a_reflection_of_ones_own_needs_no_critic_and_may_end_a_chain(policy: Policy) -> None:
    made = [
        chain(answer("x", text=OWN)),
        chain(answer("x")),
        chain(answer("x", text=OWN.replace("try another sum", "Every step holds."))),
        chain(answer("x", text=f"{OWN}y", given=OWN)),
    ]  # whose words a critic prefilled
    spec = spec_of({"round": "retry", "feedback": "none", "own_reflection": True})
    rounds = Rounds(policy, TASK, spec, TASK.grade, None)
    rounds.look(made, (0,), 2)
    assert [len(one.turns) for one in made] == [2, 1, 2, 1]
    assert [one.stopped for one in made] == ["", "", "critic", ""]
    asked = [rounds.next_ask(one, 2).messages for one in made[:2]]
    assert "try another sum" in asked[0][1]["content"]
    assert asked[1] == rounds.messages("retry_bare", GAME, attempt=made[1].turns[0].text)


# ---- evaluation ----------------------------------------------------------------------------------


def assess(policy: Policy, out: Path, **chain: Any) -> dict[str, Any]:
    spec = spec_of({"gated": True} | chain, batch=1, temperature=0.7)
    return evaluated(policy, spec, out)


@pytest.mark.slow
def test_a_cut_journal_is_completed_to_the_same_bytes(policy: Policy, tmp_path: Path) -> None:
    whole = assess(policy, tmp_path / "a")
    assess(policy, tmp_path / "b")
    journal, samples = tmp_path / "b" / "chains.jsonl", tmp_path / "b" / "samples.jsonl"
    data = journal.read_bytes()
    journal.write_bytes(data[: int(len(data) * 0.9)])  # in the second chunk, of two problems
    samples.unlink()
    (tmp_path / "b" / "results.json").unlink()  # written last
    assert assess(policy, tmp_path / "b") == whole
    assert journal.read_bytes() == data
    assert samples.read_bytes() == (tmp_path / "a" / "samples.jsonl").read_bytes()
    rows = list(zip(read_rows(journal), read_rows(samples), strict=True))
    assert len(rows) == 6
    for chain, sample in rows:
        final = chain["turns"][chain["answer"]]
        assert (sample["problem_id"], sample["text"]) == (chain["problem"]["id"], final["text"])
        assert sample["correct"] is (chain["outcome"]["solved_turn"] is not None)
        assert sample["tokens"] == sum(len(t["token_ids"] or []) for t in chain["turns"])
    assert whole["chain"]["acc_at"][-1] == whole["accuracy"]
    with pytest.raises(UserError, match="tries"):
        assess(policy, tmp_path / "a", tries=2)


@pytest.mark.parametrize(
    ("chain", "keys", "said"),
    [
        ({}, {"samples": 2}, "samples"), ({}, {"form": "completion"}, "form"),
        ({"feedback": "none"}, {}, "prefill"), ({}, {"prompt": {"style": "direct"}}, "prefill"),
        ({"critic": {"provider": "ollama"}}, {}, "needs a model"),
        ({"critic": {"key_env": "no name"}}, {}, r"chain\.critic\.key_env"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(chain: dict[str, Any], keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_chain(spec_of(chain, **keys))
    check_chain(spec_of({}))


# ---- solve ---------------------------------------------------------------------------------------


def asked(policy: Policy, question: str, task: str = "", *settings: str, critic: str = "solver",
          rounds: int = 3) -> dict[str, Any]:  # fmt: skip
    chosen = find_task(task)
    spec = solve_spec(chosen, critic, rounds, False, ["max_new_tokens=30", *settings])
    return solve(policy, chosen, read_question(question, chosen), spec, lambda _: None)


def shown(result: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    for part in render_solved(result):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_countdown_question_is_read_in_words_or_fields() -> None:
    for question in ("numbers 3 5 7, target 22", "3 5 7 22", "Numbers: 3 5 7\nTarget: 22",
                     '{"numbers": [3, 5, 7], "target": 22}'):  # fmt: skip
        assert read_question(question, TASK).fields == {"numbers": [3, 5, 7], "target": 22}


@pytest.mark.parametrize(
    ("question", "task"),
    [("", ""), ("no numbers", "countdown"), ("what is 2 plus 2", "countdown"), ("2 2", "countdown"),
     ("{bad", "countdown"), ('{"words": 3}', "last_letter"),
     ("[" * 99999, "countdown"), ('{"question": ' + "[" * 99999, "gsm8k")],
)  # fmt: skip
def test_what_a_task_cannot_ask_is_a_users_mistake(question: str, task: str) -> None:
    with pytest.raises(UserError):
        read_question(question, find_task(task))


@pytest.mark.parametrize(
    ("task", "critic", "setting", "said"),
    [("", "solver", "", "no exact solver"), ("gsm8k", "solver", "", "no exact solver"),
     *((task, "self", "chain.gated=true", r"chain\.gated = true: no grader")
       for task in ("", "gsm8k", "arithmetic")),
     ("", "nobody", "", "--critic nobody: no critic"), ("", "x.toml", "", r"x\.toml")],
)  # fmt: skip
def test_what_solve_cannot_do_is_named(task: str, critic: str, setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        solve_spec(find_task(task), critic, 2, False, [setting] if setting else [])
    assert critic != "solver" or "--task countdown or arithmetic" in caught.value.hint


def test_the_critic_may_be_a_recipes() -> None:
    spec = solve_spec(TASK, "quickstart", 2, False, [])
    assert spec.chain.critic.provider == "solver" and spec.chain.gated


def test_a_question_with_a_checkable_answer_stops_at_the_right_one(policy: Policy) -> None:
    found = asked(policy, "3 4 5 60", "countdown", "chain.avoid=true", rounds=8)
    json.dumps(found)
    assert found["correct"] is True and found["stopped"] == "grader"
    assert found["turns"][found["turn"]]["parsed"] == found["answer"]
    assert found["answer"] in shown(found) and "which is right" in shown(found)


def critic_says(body: Body) -> str:
    if body["messages"][-1]["content"].endswith("Retry:"):
        return "<think>\nTwo and three\nare five. [red]\n</think>\n<answer>5</answer>"
    return "\x1b[31m[bold]wrong[/bold]"


def asked_a_server(
    policy: Policy, reply: Any, faults: Any = (), rounds: int = 3
) -> tuple[dict[str, Any], FakeOpenAI]:
    with FakeOpenAI(reply, faults) as server:
        keys = [f"chain.critic.base_url={server.url}", "chain.critic.model=critic",
                "chain.critic.cache=off"]  # fmt: skip
        found = asked(policy, "What is 2 + 3?", "", *keys, critic="openai", rounds=rounds)
    return found, server


def test_any_question_is_thought_over_with_a_server_as_the_critic(policy: Policy) -> None:
    found, server = asked_a_server(policy, critic_says, rounds=2)
    roles = [turn["role"] for turn in found["turns"]]
    assert roles == ["attempt", "critique", "rewrite", "continue"]
    assert found["correct"] is None and found["stopped"] == "rounds"
    opening = "<think>\nTwo and three\nare five. [red]\n</think>\n<answer>"
    assert found["turns"][3]["text"].startswith(opening)
    assert found["turns"][3]["spans"][GIVEN] == [0, len(opening)]
    assert "every step holds" in server.chats[0]["messages"][0]["content"]
    text = shown(found)
    assert "\\x1b[31m[bold]wrong[/bold]" in text and "[red]" in text


def test_a_server_that_praises_ends_the_chain_and_one_that_fails_does_not(policy: Policy) -> None:
    found, _ = asked_a_server(policy, lambda body: "Every step holds.")
    assert found["stopped"] == "critic" and len(found["turns"]) == 2
    found, _ = asked_a_server(policy, lambda body: "Every step holds.", [http(400), http(400)])
    assert [turn["role"] for turn in found["turns"]] == [
        "attempt", "critique", "attempt", "critique", "attempt",
    ]  # fmt: skip
    assert found["took"]["failed"] == 2 and "the call failed" in shown(found)
