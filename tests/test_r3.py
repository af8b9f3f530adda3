"""R³: as it is played, with real training and a critic that does as the test says; its waves."""

import json
import math
import re
from collections import Counter
from dataclasses import asdict, replace

import pytest
from support.methods import COUNTDOWN, Critic, Remote, make, make_remote, pairs_of, play, roles

from mlxreflect.config.schema import Recipe
from mlxreflect.core.errors import UserError
from mlxreflect.core.records import Verdict
from mlxreflect.critics.base import Reply
from mlxreflect.methods.r3 import State, next_wave
from mlxreflect.prompts.roles import quote


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


def test_no_rewrite_that_passes_is_the_bucket_list_without_training():
    critic = Critic(bad_rewrites=99)
    strategy = make(critic, r3={"wave": 6, "rewrites": 2, "bucket_every": 0})
    (played,) = play(strategy)
    wrong = [e for e in played.episodes if not e.outcome.first_correct]
    assert wrong
    assert {tuple(roles(e)) for e in wrong} == {("attempt", *("critique", "rewrite") * 2)}
    assert {e.outcome.status for e in wrong} == {"bucket"}
    assert set(strategy.state.bucket) == {e.problem.id for e in wrong}
    assert not played.examples
    assert not played.steps


def test_a_failed_verification_opens_a_cycle_of_its_own():
    """Of three tokens no sample is ever right, so all verifications fail and each but the last is
    criticised, rewritten and trained on in its turn."""
    strategy = make(
        problems=2, policy={"max_new_tokens": 3},
        r3={"wave": 2, "verifications": 3, "bucket_every": 0},
    )  # fmt: skip
    (played,) = play(strategy)
    for episode in played.episodes:
        cycle = ["critique", "rewrite", "verify"]
        assert roles(episode) == ["attempt", *cycle * 3]
        assert episode.outcome.status == "bucket"
        assert [turn.parent for turn in episode.turns] == [None, *range(9)]
        texts = [turn.text for turn in episode.turns]
        pairs = [
            e for e in played.examples if e.chosen and e.source["problem"] == episode.problem.id
        ]
        assert [e.source["turns"] for e in pairs] == [[2, 0], [5, 3], [8, 6]]
        assert [e.chosen for e in pairs] == [texts[2], texts[5], texts[8]]
        assert [e.rejected for e in pairs] == [texts[0], texts[3], texts[6]]
    assert sum(step.objective == "dpo" for step in played.steps) == 3


def pass_verifications(strategy, solved):
    """Let the first `solved` problems pass their verification, whatever the policy says."""
    draw = strategy.rollouts.sample

    def sample(problems, role, n, seed, actor):
        drawn = draw(problems, role, n, seed, actor)
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
        Failing(), problems=2, policy={"max_new_tokens": 3}, critic_table={"max_failed": 1.0},
        r3={"wave": 2, "rewrites": 2, "verifications": 0, "bucket_every": 0},
    )  # fmt: skip
    (played,) = play(strategy)
    for episode in played.episodes:
        assert roles(episode) == ["attempt", "critique", "rewrite", "critique", "rewrite"]
        attempt, _, failed, again, won = episode.turns
        assert failed.error and again.parent == attempt.index
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
        samples = [t for t in episode.turns if t.role == "verify"]
        assert len(samples) == 4
        right = sum(t.verdict.passed for t in samples)
        assert (episode.outcome.status == "solved") == (right >= wanted)


@pytest.mark.slow
@pytest.mark.parametrize("mode,expected", [(0, []), (1, ["winner"]), (2, ["verified"]),
                                           (3, ["winner", "verified"])])  # fmt: skip
def test_sft_modes(mode, expected):
    config = {"wave": 12, "verifications": 1, "verify_samples": 8, "sft_mode": mode,
              "bucket_every": 0}  # fmt: skip
    train = {"sft": {"lr": 1e-3, "scale_verified": 0.1, "scale_failed": 0.0}}
    strategy = make(problems=12, r3=config, train=train)
    (played,) = play(strategy)
    solved = [e for e in played.episodes if e.outcome.status == "solved"]
    assert solved
    made = Counter()
    for example in played.examples:
        if example.kind == "sft":
            episode = next(e for e in solved if e.problem.id == example.source["problem"])
            turn = episode.turns[example.source["turns"][0]]
            assert example.completion == turn.text
            made["winner" if turn.role == "rewrite" else "verified"] += 1
    assert made == Counter({kind: len(solved) for kind in expected})
    rates = {round(step.lr, 8) for step in played.steps if step.objective == "sft"}
    scale = {"winner": 1e-3, "verified": 1e-4}
    assert rates == {round(scale[kind], 8) for kind in expected}


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


def test_the_bucket_list_is_for_the_advanced_critic():
    basic, advanced = Critic("basic", bad_rewrites=99), Critic("advanced")
    config = {"wave": 3, "rewrites": 1, "verifications": 1, "bucket_every": 3}
    strategy = make(basic, advanced, r3=config)
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


@pytest.mark.slow
def test_forced_sft_trains_each_problem_on_its_own_winner():
    strategy = make(problems=5, policy={"max_new_tokens": 3}, train={"sft": {"lr": 1e-4}},
                    r3={"wave": 5, "verifications": 1, "bucket_every": 0, "sft_mode": 0,
                        "until_mastered": True})  # fmt: skip
    played = play(strategy)  # with three tokens no attempt can ever be right
    forced = [e for one in played for e in one.examples if e.source.get("forced")]
    assert {e.source["problem"] for e in forced} == set(strategy.problems)
    for example in forced:
        problem = strategy.problems[example.source["problem"]]
        assert COUNTDOWN.grade(problem, example.completion, "think", "thinking").verdict.passed
    assert played[-1].figures["force_sft"]  # once more without progress, and it ends


def test_a_failed_critique_is_no_feedback_and_a_failed_wave_stops():
    strategy = make(
        Critic(errors=("critique",)),
        r3={"wave": 6, "bucket_every": 0},
        critic_table={"max_failed": 1.0},
    )
    (played,) = play(strategy)
    wrong = [e for e in played.episodes if not e.outcome.first_correct]
    assert {tuple(roles(e)) for e in wrong} == {("attempt", *("critique",) * 3)}
    assert {e.outcome.status for e in wrong} == {"failed"}
    assert set(strategy.state.bucket) == {e.problem.id for e in wrong}
    assert played.figures["critic"]["failed"] == 3 * len(wrong)
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
            replies = super().ask(calls)
            return [
                replace(r, text=r.text.replace("<think>", "<think>\nAs provided, I know it."))
                for r in replies
            ]

    strategy = make(Leaky(), r3={"wave": 6, "rewrites": 1, "bucket_every": 0})
    (played,) = play(strategy)
    rewrites = [t for e in played.episodes for t in e.turns if t.role == "rewrite"]
    assert rewrites
    assert all(t.verdict.source == "leak filter" and not t.verdict.passed for t in rewrites)
    assert not played.examples


# ---- the order of waves, by hand -----------------------------------------------------------------


def recipe_of(**r3):
    return Recipe.model_validate({"r3": r3})


def walk(recipe, names, solve=lambda wave, name: True, first=lambda wave, name: False):
    """Every wave as (stage, epoch, problems), with a bucket list moved on as R³ does."""
    state, seen = State(), []
    while (wave := next_wave(state, names, recipe)) is not None:
        # A run may be killed here: the state on disk is the one before this wave.
        seen.append((wave.stage, wave.epoch, list(wave.problems), wave))
        for name in wave.problems:
            if wave.stage == "problems":
                state.first_correct += first(wave, name)
            if solve(wave, name) or first(wave, name):
                state.bucket.pop(name, None)
            else:
                state.bucket.setdefault(name, None)
        state.wave += 1
        state = State(**json.loads(json.dumps(asdict(state))))
        assert len(seen) < 1000
    return seen


NAMES = [f"p{i}" for i in range(10)]


def test_an_epoch_takes_every_problem_once_in_a_seeded_order():
    seen = walk(recipe_of(wave=4, epochs=2, bucket_every=0), NAMES)
    for epoch in (1, 2):
        taken = [p for _, e, ps, _ in seen if e == epoch for p in ps]
        assert sorted(taken) == NAMES
    assert [len(ps) for _, _, ps, _ in seen] == [4, 4, 2, 4, 4, 2]
    first, second = ([p for _, e, ps, _ in seen if e == n for p in ps] for n in (1, 2))
    assert first != second
    assert [w.new_epoch for *_, w in seen] == [True, False, False, True, False, False]


def test_a_wave_of_one_is_the_sequential_order():
    assert [len(ps) for _, _, ps, _ in walk(recipe_of(wave=1, bucket_every=0), NAMES)] == [1] * 10


def test_the_bucket_is_visited_after_every_chunk_and_carried_on():
    seen = walk(recipe_of(wave=4, epochs=1, bucket_every=5), NAMES, solve=lambda wave, name: False)
    stages = [(stage, len(ps)) for stage, _, ps, _ in seen]
    assert stages == [
        ("problems", 4), ("problems", 1), ("bucket", 4), ("bucket", 1),
        ("problems", 4), ("problems", 1), ("bucket", 4), ("bucket", 4), ("bucket", 2),
    ]  # fmt: skip
    assert all(wave.own["tier"] == ("basic" if stage == "problems" else "advanced")
               for stage, _, _, wave in seen)  # fmt: skip


def test_what_the_bucket_pass_solves_leaves_the_bucket():
    seen = walk(recipe_of(wave=5, epochs=1, bucket_every=5), NAMES,
                solve=lambda wave, name: wave.stage == "bucket")  # fmt: skip
    assert [len(ps) for stage, _, ps, _ in seen if stage == "bucket"] == [5, 5]


def test_it_stops_early_when_everything_is_right_at_once():
    seen = walk(recipe_of(wave=5, epochs=7), NAMES, first=lambda wave, name: wave.epoch == 2)
    assert {epoch for _, epoch, _, _ in seen} == {1, 2}


def test_mastery_goes_on_while_the_bucket_shrinks_then_forces_sft_once():
    """Sizes after the mastery rounds: 4 → 3 → 3 (stuck) → forced → 2 → 2 (stuck) → forced → 2."""
    after = iter([3, 3, 2, 2, 2])
    sizes = {}

    def solve(wave, name):
        if wave.stage != "mastery":
            return name not in NAMES[:4]
        size = sizes.setdefault(wave.number, next(after) if wave.number not in sizes else 0)
        return NAMES.index(name) >= size

    seen = walk(recipe_of(wave=10, epochs=1, bucket_every=0, until_mastered=True), NAMES, solve)
    mastery = [
        (len(ps), wave.own["force_sft"]) for stage, _, ps, wave in seen if stage == "mastery"
    ]
    assert mastery == [(4, False), (3, False), (3, True), (2, False), (2, True)]


def test_a_mastery_round_of_several_waves_forces_sft_once():
    seen = walk(recipe_of(wave=3, epochs=1, bucket_every=0, until_mastered=True), NAMES[:5],
                lambda wave, name: False)  # fmt: skip
    mastery = [
        (len(ps), wave.own["force_sft"]) for stage, _, ps, wave in seen if stage == "mastery"
    ]
    assert mastery == [(3, False), (2, False), (3, True), (2, False)]


def test_an_empty_bucket_is_passed_over():
    seen = walk(recipe_of(wave=2, epochs=1, bucket_every=3), NAMES)
    assert [len(ps) for _, _, ps, _ in seen] == [2, 1, 2, 1, 2, 1, 1]


def test_without_until_mastered_there_is_no_mastery():
    seen = walk(recipe_of(wave=10, epochs=1, bucket_every=0), NAMES, lambda wave, name: False)
    assert {stage for stage, *_ in seen} == {"problems"}
