"""R³: as it is played, with real training and a critic that does as the test says; its waves."""

import math
import re
from collections import Counter
from dataclasses import replace

import pytest
from support.methods import (
    COUNTDOWN,
    Critic,
    Remote,
    make,
    make_remote,
    pairs_of,
    play,
    roles,
    walk_r3,
)

from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Turn, Verdict, make_problem
from mlxreflect.critics.base import Reply
from mlxreflect.methods.base import failure, passed
from mlxreflect.methods.r3 import METHOD
from mlxreflect.methods.session import graded
from mlxreflect.prompts.roles import quote
from mlxreflect.runs.figures import too_short


def test_the_first_rewrite_that_passes_ends_the_cycle_and_makes_the_pair():
    strategy = make(Critic(bad_rewrites=1), r3={"wave": 6, "verifications": 0, "bucket_every": 0})
    (played,) = play(strategy)
    wrong = [e for e in played.episodes if not e.outcome.first_correct]
    assert wrong
    for episode in wrong:
        assert roles(episode) == ["attempt", "critique", "rewrite", "critique", "rewrite"]
        attempt, _, bad, again, good = episode.turns
        assert bad.verdict and not bad.verdict.passed
        assert good.verdict and good.verdict.passed
        # The second try works on the first rewrite, from fresh feedback on it.
        assert quote("attempt", bad.text) in again.messages[-1]["content"]
        assert again.parent == bad.index
        (example,) = pairs_of(episode)
        assert (example.chosen, example.rejected) == (good.text, attempt.text)
        assert example.rejected_ids == attempt.token_ids
        assert example.prompt == attempt.messages
        assert example in [replace(e, source=example.source) for e in played.examples]
        assert episode.outcome.status == "trained"
    first = next(step for step in played.steps if step.objective == "dpo")
    assert first.margin == pytest.approx(0, abs=1e-4)  # the reference is the policy itself yet


def test_asked_for_answers_alone_it_learns_answers_alone():
    """What the critic thought stays in the records: such a prompt wants nothing beside the answer.

    That holds of pairs, of what is imitated after them, and of what the bucket list keeps.
    """
    strategy = make(
        r3={"wave": 6, "verifications": 1, "bucket_every": 0},
        prompt={"style": "direct"}, train={"sft": {"scale_failed": 1.0}},
    )  # fmt: skip
    (played,) = play(strategy)
    assert {example.kind for example in played.examples} == {"preference", "sft"}
    for example in played.examples:
        assert "and nothing else" in example.prompt[0]["content"]
        taught = example.chosen or example.completion
        assert re.fullmatch(r"<answer>[^<\s][^<]*</answer>", taught), taught
    rewrites = [turn for e in played.episodes for turn in e.turns if turn.role == "rewrite"]
    assert rewrites and all("<think>" in turn.text for turn in rewrites)
    kept = [winner for winner in strategy.state.bucket.values() if winner]
    assert all("<think>" not in winner["completion"] for winner in kept)
    for episode in played.episodes:
        for pair in pairs_of(episode, "direct"):
            found = [replace(e, source=pair.source) for e in played.examples]
            assert pair in found


@pytest.mark.parametrize(("critic", "turns", "status", "lost"), [
    (Critic(bad_rewrites=99), ["critique", "rewrite"] * 2, "bucket", 0),
    (Critic(errors=("critique",)), ["critique"] * 2, "failed", 2),  # is no feedback
])  # fmt: skip
def test_without_a_winner_it_is_the_bucket_list_without_training(critic, turns, status, lost):
    strategy = make(critic, r3={"wave": 6, "rewrites": 2, "bucket_every": 0},
                    critic_table={"max_failed": 1.0})  # fmt: skip
    (played,) = play(strategy)
    wrong = [e for e in played.episodes if not e.outcome.first_correct]
    assert wrong
    assert all(roles(e) == ["attempt", *turns] for e in wrong)
    assert {e.outcome.status for e in wrong} == {status}
    assert set(strategy.state.bucket) == {e.problem.id for e in wrong}
    assert played.figures["critic"]["failed"] == lost * len(wrong)
    assert not played.examples
    assert not played.steps


def test_a_failed_verification_opens_a_cycle_of_its_own():
    """Of three tokens no sample is ever right, so all verifications fail and each but the last is
    criticised, rewritten and trained on in its turn."""
    strategy = make(
        problems=2, policy={"max_new_tokens": 3}, train={"cut": "keep"},
        r3={"wave": 2, "verifications": 3, "bucket_every": 0},
    )  # fmt: skip
    (played,) = play(strategy)
    for episode in played.episodes:
        cycle = ["critique", "rewrite", "verify"]
        assert roles(episode) == ["attempt", *cycle * 3]
        assert episode.outcome.status == "bucket"
        assert [turn.parent for turn in episode.turns] == [None, *range(9)]
        texts = [turn.text for turn in episode.turns]
        pid = episode.problem.id
        pairs = [e for e in played.examples if e.chosen and e.source["problem"] == pid]
        assert [e.source["turns"] for e in pairs] == [[2, 0], [5, 3], [8, 6]]
        assert [e.chosen for e in pairs] == [texts[2], texts[5], texts[8]]
        assert [e.rejected for e in pairs] == [texts[0], texts[3], texts[6]]
    assert sum(step.objective == "dpo" for step in played.steps) == 3


@pytest.mark.parametrize(("cut", "pairs"), [("skip", 0), ("keep", 2)])
def test_what_was_cut_off_is_no_rejected_answer(cut, pairs):
    strategy = make(
        problems=2, policy={"max_new_tokens": 3}, train={"cut": cut},
        r3={"wave": 2, "verifications": 0, "bucket_every": 0},
    )  # fmt: skip
    (played,) = play(strategy)
    assert {e.turns[0].finish_reason for e in played.episodes} == {"length"}
    assert all(passed(e.turns[2]) for e in played.episodes)  # the rewrites are right
    assert len(played.examples) == pairs and bool(played.steps) == bool(pairs)
    status = "trained" if pairs else "bucket"
    assert [e.outcome.status for e in played.episodes] == [status] * 2
    assert (played.figures["answers"], played.figures["cut"]) == (2, 2)


@pytest.mark.parametrize("role", ["attempt", "verify", "rewrite"])
def test_what_was_cut_off_never_passes(role):
    """So that it is never imitated, for its end is missing."""
    recipe, problem = Recipe(), make_problem("countdown", {"numbers": [2, 3], "target": 5})
    text = "<think>\n2 + 3 = 5\n</think>\n<answer>2 + 3</answer>"
    whole, cut = (
        graded(recipe, COUNTDOWN, problem,
               Turn(0, None, role, "policy", [], text, finish_reason=reason))
        for reason in ("stop", "length")
    )  # fmt: skip
    assert passed(whole) and not passed(cut)
    assert cut.verdict.correct and cut.verdict.reason == "cut off at the token limit"
    assert failure(cut) == "truncated"


@pytest.mark.parametrize(
    ("answers", "cut", "keys", "said"),
    [
        (640, 200, {}, "31.2% of 640 answers were cut off at policy.max_new_tokens = 7, and are "
                       "neither imitated nor held against the policy: raise policy.max_new_tokens"),
        (640, 200, {"train": {"cut": "keep"}}, "policy.max_new_tokens = 7: raise"),
        (640, 32, {}, ""),  # one in twenty, and no more
        (19, 19, {}, ""),  # too few to tell
        (0, 0, {}, ""),
    ],
)  # fmt: skip
def test_a_run_says_that_much_was_cut_off(answers, cut, keys, said):
    recipe = Recipe.model_validate({"policy": {"max_new_tokens": 7}, **keys})
    found = too_short(Counter(answers=answers, cut=cut), recipe)
    assert said in found and bool(said) == bool(found)


def pass_verifications(strategy, solved):
    """Let the first `solved` problems pass their verification, whatever the policy says."""
    draw = strategy.rollouts.sample

    def sample(problems, role, n, seed, actor, first=0):
        drawn = draw(problems, role, n, seed, actor, first)
        for problem, turns in zip(problems, drawn, strict=True):
            if role == "verify" and problem.id in solved:
                turns[:] = [replace(turn, verdict=Verdict(True, True, "")) for turn in turns]
        return drawn

    strategy.rollouts.sample = sample


@pytest.mark.parametrize("waits", [False, True])
def test_what_is_solved_is_criticised_no_more(waits):
    critic = Remote()
    critic.waits = waits
    strategy = make_remote(critic, problems=4, r3={"verifications": 3})
    solved = set(list(strategy.problems)[:2])
    pass_verifications(strategy, solved)
    (played,) = play(strategy)
    for episode in played.episodes:
        first = episode.problem.id in solved
        assert episode.outcome.status == ("solved" if first else "bucket")
        cycles = [c.attempt.split("/")[2] for c in critic.calls
                  if c.problem.id == episode.problem.id and c.role == "critique"]  # fmt: skip
        assert cycles == (["0"] if first else ["0", "1", "2"])


def test_after_a_failed_rewrite_the_old_text_is_criticised_again():
    class Failing(Critic):
        def ask(self, calls):
            failed = Reply("", error="out of order", kind="http_500")
            replies = super().ask(calls)
            return [failed if c.role == "rewrite" and c.attempt.endswith("/1") else r
                    for c, r in zip(calls, replies, strict=True)]  # fmt: skip

    strategy = make(
        Failing(), problems=2, policy={"max_new_tokens": 3}, train={"cut": "keep"},
        critic_table={"max_failed": 1.0},
        r3={"wave": 2, "rewrites": 2, "verifications": 0, "bucket_every": 0},
    )  # fmt: skip
    (played,) = play(strategy)
    for episode in played.episodes:
        assert roles(episode) == ["attempt", "critique", "rewrite", "critique", "rewrite"]
        attempt, _, failed, again, won = episode.turns
        assert failed.error and failed.verdict is None and again.parent == attempt.index
        assert quote("attempt", attempt.text) in again.messages[-1]["content"]
        assert won.verdict.passed and episode.outcome.status == "trained"


def test_attempts_that_are_right_at_once_are_imitated_where_the_recipe_says_so():
    train = {"sft": {"lr": 1e-3, "scale_verified": 0.1}}
    config = {"wave": 12, "rewrites": 1, "verifications": 0, "bucket_every": 0}
    strategy = make(Critic(bad_rewrites=9), problems=12, train=train,
                    r3={**config, "sft_correct": True})  # fmt: skip
    (played,) = play(strategy)
    right = {e.problem.id: e.turns[0].text for e in played.episodes if e.outcome.first_correct}
    assert 0 < len(right) < 12
    assert {e.source["problem"]: e.completion for e in played.examples} == right
    assert {round(step.lr, 8) for step in played.steps} == {1e-4}


def test_forced_sft_has_the_whole_rate_of_sft():
    strategy = make(
        Critic(bad_rewrites=9), problems=1, policy={"max_new_tokens": 3},
        train={"sft": {"lr": 2e-4}}, r3={"rewrites": 1, "until_mastered": True, "bucket_every": 0},
    )  # fmt: skip
    (pid,) = strategy.problems
    prompt = [{"role": "user", "content": "Numbers: 3 4"}]
    won = {"prompt": prompt, "completion": "<answer>7</answer>", "completion_ids": None}
    state = strategy.state
    state.stage, state.cursor, state.queue = "mastery", 1, [pid]
    state.bucket, state.force = {pid: won}, True
    played = strategy.play(strategy.next_wave())
    (example,) = played.examples
    assert example.source == {"problem": pid, "forced": True}
    assert (example.prompt, example.completion) == (prompt, "<answer>7</answer>")
    assert [round(step.lr, 8) for step in played.steps] == [2e-4]


@pytest.mark.slow
@pytest.mark.parametrize("wanted,status", [(1, "solved"), (4, "bucket")])
def test_verify_pass_of_verify_samples(wanted, status):
    """Of four samples at temperature 1 rarely all are right, and often one is."""
    config = {"wave": 12, "verifications": 1, "verify_samples": 4, "verify_pass": wanted,
              "bucket_every": 0}  # fmt: skip
    (played,) = play(make(problems=12, r3=config))
    tried = [e for e in played.episodes if "verify" in roles(e)]
    assert status in {e.outcome.status for e in tried}
    for episode in tried:
        right = [t.verdict.passed for t in episode.turns if t.role == "verify"]
        assert len(right) == 4
        assert (episode.outcome.status == "solved") == (sum(right) >= wanted)


@pytest.mark.slow
@pytest.mark.parametrize("mode,expected", [
    (0, {}), (1, {"rewrite": 1e-3}), (2, {"verify": 1e-4}), (3, {"rewrite": 1e-3, "verify": 1e-4}),
])  # fmt: skip
def test_sft_modes(mode, expected):
    """Which text is imitated, and at which rate."""
    config = {"wave": 12, "verifications": 1, "verify_samples": 8, "sft_mode": mode,
              "bucket_every": 0}  # fmt: skip
    train = {"sft": {"lr": 1e-3, "scale_verified": 0.1, "scale_failed": 0.0}}
    (played,) = play(make(problems=12, r3=config, train=train))
    solved = {e.problem.id: e for e in played.episodes if e.outcome.status == "solved"}
    assert solved
    made = Counter()
    for example in played.examples:
        if example.kind == "sft":
            turn = solved[example.source["problem"]].turns[example.source["turns"][0]]
            assert example.completion == turn.text
            made[turn.role] += 1
    assert made == Counter({role: len(solved) for role in expected})
    rates = {round(step.lr, 8) for step in played.steps if step.objective == "sft"}
    assert rates == {round(rate, 8) for rate in expected.values()}


def test_after_a_failed_verification_the_last_winner_is_imitated_gently():
    config = {"wave": 12, "verifications": 1, "sft_mode": 0, "bucket_every": 0}
    train = {"sft": {"lr": 1e-3, "scale_failed": 0.01}}
    strategy = make(problems=12, r3=config, train=train)
    (played,) = play(strategy)
    failed = {e.problem.id for e in played.episodes if e.outcome.status == "bucket"}
    assert failed
    imitated = [e for e in played.examples if e.kind == "sft"]
    assert {e.source["problem"] for e in imitated} == failed
    for step in played.steps:
        if step.objective == "sft":
            assert math.isclose(step.lr, 1e-5, rel_tol=1e-5)
    for pid in failed:  # and stays beside the problem on the bucket list
        won = next(e for e in imitated if e.source["problem"] == pid)
        assert strategy.state.bucket[pid]["completion"] == won.completion


@pytest.mark.slow
def test_the_bucket_list_is_for_the_advanced_critic():
    basic, advanced = Critic("basic", bad_rewrites=99), Critic("advanced")
    config = {"wave": 3, "rewrites": 1, "verifications": 1, "bucket_every": 3}
    strategy = make(basic, advanced, problems=12, r3=config)
    played = play(strategy)
    assert advanced.calls
    for one in played:
        for episode in one.episodes:
            actors = {t.actor for t in episode.turns if t.role in ("critique", "rewrite")}
            assert actors <= {episode.outcome.tier}
    by_stage = [one.figures["stage"] for one in played]
    assert by_stage[:2] == ["problems", "bucket"]
    assert "bucket" in by_stage[2:]
    attempts = [call.attempt for call in advanced.calls]
    assert all(attempt.startswith("bucket/") for attempt in attempts)


def test_a_wave_in_which_too_much_fails_stops():
    strategy = make(Critic(errors=("critique",)), r3={"wave": 6}, critic_table={"max_failed": 0.2})
    with pytest.raises(UserError, match="max_failed"):
        play(strategy)


def test_self_feedback_sees_the_last_winning_rewrite():
    critic = Critic()
    strategy = make(critic, r3={"wave": 3, "feedback": "self", "verifications": 1,
                                "bucket_every": 0})  # fmt: skip
    first, second = play(strategy, 2)
    winners = [e.chosen for e in first.examples if e.kind == "preference"]
    later = [c for c in critic.calls if c.role == "critique" and "/1/0/" in c.attempt]
    assert later
    assert all(quote("example", winners[-1]) in c.messages[-1]["content"] for c in later)
    assert second.episodes


def test_within_a_stage_the_reference_stays_and_the_loss_leaves_ln_2():
    config = {"wave": 3, "verifications": 0, "bucket_every": 0}
    strategy = make(problems=12, r3=config, train={"nll": 0.0, "lr": 3e-3})
    played = play(strategy)
    dpo = [[s for s in one.steps if s.objective == "dpo"] for one in played]
    firsts = [steps[0].loss for steps in dpo if steps]
    assert len(firsts) >= 3
    assert firsts[0] == pytest.approx(math.log(2), abs=1e-4)
    assert all(abs(loss - math.log(2)) > 1e-3 for loss in firsts[1:])


def test_a_rewrite_that_gives_itself_away_is_a_failed_try():
    class Leaky(Critic):
        def ask(self, calls):
            told = "<think>\nAs provided, I know it."
            return [replace(r, text=r.text.replace("<think>", told)) for r in super().ask(calls)]

    strategy = make(Leaky(), r3={"wave": 6, "rewrites": 1, "bucket_every": 0})
    (played,) = play(strategy)
    rewrites = [t for e in played.episodes for t in e.turns if t.role == "rewrite"]
    assert rewrites
    assert all(t.verdict.source == "leak filter" and not t.verdict.passed for t in rewrites)
    assert played.figures["leaks"] == played.figures["rewrites"] == len(rewrites)
    assert not played.examples


# ---- the policy's own pairs ----------------------------------------------------------------------


def answer_as(strategy, patterns):
    """Let samples be right (r) or wrong (w, cut off: c), of each problem as its pattern says.

    A capital has the text of the sample before. patterns: of attempts, then of verifications.
    """
    draw, ids = strategy.rollouts.sample, list(strategy.problems)

    def sample(problems, role, n, seed, actor, first=0):
        drawn = draw(problems, role, n, seed, actor, first)
        for problem, turns in zip(problems, drawn, strict=True):
            pattern = patterns[role == "verify"][ids.index(problem.id)]
            assert len(turns) == len(pattern) == n
            for i, letter in enumerate(pattern):
                said = f"{role} {i - letter.isupper()}"
                kind = letter.lower()
                turns[i] = replace(
                    turns[i], text=said, verdict=Verdict(kind == "r", kind == "r", ""),
                    finish_reason="length" if kind == "c" else "stop",
                    token_ids=list(said.encode()),
                )  # fmt: skip
        return drawn

    strategy.rollouts.sample = sample


OWN = {"rrww": [(0, 2), (1, 3)], "wrww": [(1, 0)], "rRww": [(0, 2)], "rrrw": [(0, 3)],
       "rwWr": [(0, 1)], "rccc": [], "cwrr": [(2, 1)], "rrrr": [], "wwww": []}  # fmt: skip


@pytest.mark.parametrize("pairs", ["rewrite", "own", "both"])
def test_pairs_of_known_samples(pairs):
    """A right sample over a wrong one, each text once; the critic sees what has no right one."""
    critic = Critic()
    strategy = make(critic, problems=len(OWN), r3={
        "wave": len(OWN), "pairs": pairs, "attempts": 4, "verifications": 0, "bucket_every": 0,
    })  # fmt: skip
    answer_as(strategy, [list(OWN)])
    (played,) = play(strategy)
    (helped,) = {call.problem.id for call in critic.calls}
    found = {kind: [(e.source["problem"], *e.source["turns"]) for e in played.examples
                    if e.kind == kind] for kind in ("preference", "sft")}  # fmt: skip
    own = [(pid, *pair) for pid, pattern in zip(strategy.problems, OWN, strict=True)
           for pair in OWN[pattern]]  # fmt: skip
    rewrite = 5  # attempts, critique, rewrite
    assert helped == list(strategy.problems)[-1] and len(critic.calls) == 2
    by_rewrite = [(helped, rewrite, 0)] if pairs != "own" else []
    assert sorted(found["preference"]) == sorted((own if pairs != "rewrite" else []) + by_rewrite)
    assert found["sft"] == ([(helped, rewrite)] if pairs == "own" else [])
    assert [e.outcome.status for e in played.episodes] == [
        "trained" if pattern == "wwww" else "solved_first" if pattern[0] == "r" else "solved"
        for pattern in map(dict(zip(strategy.problems, OWN, strict=True)).get,
                           [e.problem.id for e in played.episodes])
    ]  # fmt: skip
    texts = {e.problem.id: [turn.text for turn in e.turns] for e in played.episodes}
    for example in (e for e in played.examples if e.kind == "preference"):
        pid, (chosen, rejected) = example.source["problem"], example.source["turns"]
        assert example.prompt == attempt_prompt_of(played, pid)
        assert (example.chosen, example.rejected) == (texts[pid][chosen], texts[pid][rejected])


def attempt_prompt_of(played, pid):
    return next(e for e in played.episodes if e.problem.id == pid).turns[0].messages


def test_samples_of_a_verification_make_pairs_too():
    """Also those of the last one, which no cycle follows."""
    strategy = make(problems=2, r3={
        "wave": 2, "pairs": "own", "verifications": 2, "verify_samples": 2, "verify_pass": 2,
        "sft_mode": 0, "bucket_every": 0,
    })  # fmt: skip
    answer_as(strategy, [["w", "w"], ["wr", "rr"]])
    (played,) = play(strategy)
    mixed, solved = strategy.problems
    by_id = {e.problem.id: e for e in played.episodes}
    assert [by_id[pid].outcome.status for pid in (mixed, solved)] == ["bucket", "solved"]
    cycle = ["critique", "rewrite", "verify", "verify"]
    assert roles(by_id[mixed]) == ["attempt", *cycle, *cycle]
    pairs = [e.source["turns"] for e in played.examples if e.kind == "preference"]
    assert pairs == [[4, 3], [8, 7]]


def test_without_rewrites_no_critic_is_asked():
    r3 = {"wave": 6, "pairs": "own", "attempts": 4, "rewrites": 0, "judge": True}
    strategy = make(problems=6, r3=r3)
    strategy.session.critics.clear()
    played = play(strategy)
    assert METHOD.tiers(strategy.recipe) == [] and not METHOD.asks_itself(strategy.recipe)
    assert {turn.role for one in played for e in one.episodes for turn in e.turns} == {"attempt"}
    assert any(one.steps for one in played)
    assert {example.kind for one in played for example in one.examples} == {"preference"}


@pytest.mark.slow
def test_while_nothing_is_solved_a_problem_is_verified_once():
    """Here after two problems in a row; one that is solved sets it going again."""
    strategy = make(problems=6, r3={"wave": 2, "verifications": 3, "bucket_every": 0,
                                    "patience": 2})  # fmt: skip
    answer_as(strategy, [["w"] * 6, ["w"] * 6])
    order = strategy.order(1)
    pass_verifications(strategy, {order[3]})
    first, second, third = play(strategy)
    counts = [[roles(e).count("verify") for e in one.episodes] for one in (first, second, third)]
    assert counts == [[3, 3], [1, 1], [3, 3]]
    assert strategy.state.unsolved == 2


# ---- the order of waves, by hand -----------------------------------------------------------------

NAMES = [f"p{i}" for i in range(15)]


def always(wave, name):
    return True


def never(wave, name):
    return False


MASTERY = {"epochs": 1, "bucket_every": 0, "until_mastered": True}
# Settings, how many problems, what is solved; waves by stage and size, ! where SFT is forced.
ORDERS = {
    "one by one": ({"wave": 1, "bucket_every": 0}, 10, always, "p1 p1 p1 p1 p1 p1 p1 p1 p1 p1"),
    "the bucket after every chunk, of an epoch once": (
        {"wave": 4, "bucket_every": 5, "epochs": 2}, 10, never,
        "p4 p1 b4 b1 p4 p1 b4 b1 p4 p1 b4 b4 b2 p4 p1"),
    "twice": ({"wave": 5, "bucket_every": 5, "bucket_visits": 2}, 15, never,
              "p5 b5 p5 b5 b5 p5 b5 b5"),
    "at every pass, as in the paper": (
        {"wave": 4, "bucket_every": 5, "bucket_visits": 0}, 10, never,
        "p4 p1 b4 b1 p4 p1 b4 b4 b2"),
    # 6 unsolved in a row; a pass begins, has 8 after its first wave, and leaves the others for the
    # next, which has those and 6 more, and ends alike. No second epoch begins.
    "what does not pay ends": (
        {"wave": 2, "bucket_every": 6, "patience": 7, "epochs": 2}, 12, never,
        "p2 p2 p2 b2 p2 p2 p2 b2"),
    "one that is solved sets it going again": (
        {"wave": 2, "bucket_every": 6, "patience": 7, "epochs": 2}, 6,
        lambda wave, name: wave.stage == "bucket" and name == wave.problems[-1],
        "p2 p2 p2 b2 b2 b2 p2 p2 p2 b2 b2 b2"),
    "what the bucket pass solves leaves it": (
        {"wave": 5, "bucket_every": 5}, 10, lambda wave, name: wave.stage == "bucket",
        "p5 b5 p5 b5"),
    "an empty bucket is passed over": (
        {"wave": 2, "bucket_every": 3}, 10, always, "p2 p1 p2 p1 p2 p1 p1"),
    "no mastery where it is not asked for": ({"wave": 10, "bucket_every": 0}, 10, never, "p10"),
    # Sizes after the mastery rounds: 4 → 3 → 3 (stuck) → forced → 2 → 2 (stuck) → forced → 2.
    "mastery while the bucket shrinks, then SFT is forced once": (
        {"wave": 10, **MASTERY}, 10,
        lambda wave, name: NAMES.index(name) >= (4, 3, 3, 2, 2, 2)[wave.number],
        "p10 m4 m3 m3! m2 m2!"),
    "a mastery round of several waves": (
        {"wave": 3, **MASTERY}, 5, never, "p3 p2 m3 m2 m3! m2"),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_waves(name):
    r3, n, solve, expected = ORDERS[name]
    seen = walk_r3(Recipe.model_validate({"r3": r3}), NAMES[:n], solve)
    told = [f"{w.stage[0]}{len(w.problems)}{'!' * w.own['force_sft']}" for w in seen]
    assert told == expected.split()
    tiers = {"problems": "basic", "bucket": "advanced", "mastery": "advanced"}
    assert all(w.own["tier"] == tiers[w.stage] for w in seen)


def test_an_epoch_takes_every_problem_once_in_a_seeded_order():
    r3 = {"wave": 4, "epochs": 2, "bucket_every": 0}
    names = NAMES[:10]
    seen = walk_r3(Recipe.model_validate({"r3": r3}), names, always)
    first, second = ([p for w in seen if w.epoch == n for p in w.problems] for n in (1, 2))
    assert sorted(first) == sorted(second) == names
    assert first != second
    assert [len(w.problems) for w in seen] == [4, 4, 2, 4, 4, 2]
    assert [w.new_epoch for w in seen] == [True, False, False, True, False, False]


def test_it_stops_early_when_everything_is_right_at_once():
    recipe = Recipe.model_validate({"r3": {"wave": 5, "epochs": 7}})
    seen = walk_r3(recipe, NAMES, always, first=lambda wave, name: wave.epoch == 2)
    assert {wave.epoch for wave in seen} == {1, 2}
